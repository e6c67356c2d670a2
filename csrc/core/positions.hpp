// Which positions of a record are kept, and what its note says about them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/sequence_kind.hpp"
#include "core/step_clock.hpp"
#include "core/tensor_view.hpp"

namespace nsf {

// Positions count from the start of the whole sequence, cache included; negative ones from its present end.
struct PositionSpec {
    enum class Kind : std::uint8_t { all, last, list, slice };

    Kind kind = Kind::all;
    std::vector<std::int64_t> list;
    std::optional<std::int64_t> start;
    std::optional<std::int64_t> stop;
    std::int64_t step = 1;  // not 0
};

// The part of a tensor that a record keeps.
struct Kept {
    bool nothing = false;  // no position of this pass was asked for: no record
    TensorView view;       // as given, or with [batch * length, …] seen as [batch, length, …]
    std::optional<Selection> selection;  // absent: all of it
    Shape shape;                         // of the record
    std::string note;  // JSON for the record, see docs/file_format.md; empty where it says nothing
};

// Whether records that keep all positions have no note, whatever their shape: positions 0, 1, …, all of them real.
inline bool needs_no_note(const StepFacts& facts, SequenceKind kind) {
    return kind == SequenceKind::foreign ||
           (kind != SequenceKind::cache && facts.mask.empty() && facts.offset == 0 && facts.logits_kept == 0);
}

// Throws std::invalid_argument where positions are asked for and the tensor has no sequence axis, or its
// positions cannot be told.
//
// A tensor [batch * length, …] whose rows a model has flattened is taken apart again, where the step's facts
// show it to be one.
Kept keep_positions(const PositionSpec& spec, const StepFacts& facts, TensorView view,
                    SequenceKind kind = SequenceKind::pass);

}  // namespace nsf
