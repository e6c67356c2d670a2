// The notes of the records of one step, worked out once for all tensors of the same sequence and layout.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "core/sequence_kind.hpp"

namespace nsf {

struct StepFacts;

// All that keep_positions() looks at when every position is kept.
struct NoteKey {
    const StepFacts* facts = nullptr;
    SequenceKind kind = SequenceKind::pass;
    std::int32_t rank = 0;
    std::int64_t rows = 0;    // the size of the first axis
    std::int64_t length = 0;  // the size of the sequence axis

    NoteKey(const StepFacts& of, SequenceKind what, const std::int64_t* shape, std::size_t axes)
        : facts(&of), kind(what), rank(static_cast<std::int32_t>(axes)) {
        if (axes < 2) return;
        rows = shape[0];
        length = shape[sequence_axis(what, axes)];
    }
    NoteKey() = default;
    bool operator==(const NoteKey&) const = default;
};

// Belongs to one thread's step. A note is a pointer that outlives the step (the engine interns them); null says nothing.
class StepNotes {
  public:
    static constexpr std::size_t capacity = 12;  // sequences and layouts a step has at once

    std::optional<const std::string*> find(const NoteKey& key) const {
        for (std::size_t i = 0; i < count_; ++i) {
            if (entries_[i].key == key) return entries_[i].note;
        }
        return std::nullopt;
    }
    // Forgets the oldest where there are many: it is worked out again.
    void add(const NoteKey& key, const std::string* note) {
        entries_[next_] = {key, note};
        next_ = (next_ + 1) % entries_.size();
        if (count_ < entries_.size()) ++count_;
    }
    // The step's facts are others now.
    void clear() {
        count_ = 0;
        next_ = 0;
    }

  private:
    struct Entry {
        NoteKey key;
        const std::string* note = nullptr;
    };

    std::array<Entry, capacity> entries_{};
    std::size_t count_ = 0;
    std::size_t next_ = 0;
};

}  // namespace nsf
