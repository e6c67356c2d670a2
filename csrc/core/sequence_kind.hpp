// What the rows of a captured tensor are.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nsf {

// The rows lie on the last axis but two of `heads`, where there are four; else on the last but one, or on the first
// of two.
enum class SequenceKind : std::uint8_t {
    pass,     // the positions of the pass
    logits,   // the positions of the pass, or the last of them only (StepFacts::logits_kept)
    heads,    // the positions of the pass, on the last axis but two: [batch, positions, heads, size]
    cache,    // the positions of the whole cache, those of the pass at its end; all of them are kept
    foreign,  // positions of another sequence, of which nothing is known; all of them are kept
};

// `rank` must be at least 2.
constexpr std::size_t sequence_axis(SequenceKind kind, std::size_t rank) {
    if (rank == 2) return 0;
    return rank - (kind == SequenceKind::heads && rank > 3 ? 3 : 2);
}

}  // namespace nsf
