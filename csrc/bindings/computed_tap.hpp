// A tap whose tensors are computed from what a module is given, and only as far as they are stored: before the
// work it tells which rules want a record in this step and which rows of it, after the work it stores them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/session.hpp"

namespace nsf {

struct ComputedTap {
    std::shared_ptr<Session> session;
    PyObject* module = nullptr;  // that it was made for, never followed: a copy of the model is not captured
    TapPlace place;              // its sequence: of the whole tensor, of which rows are chosen
};

// One call of the module, of which at least one record is wanted. Not for two threads at once.
class ComputedCall {
  public:
    // A record that is wanted. Without `rows` all rows of the sequence axis are.
    struct Wanted {
        const TapRule* rule = nullptr;
        std::optional<Selection> rows;
        std::string note;
    };

    // Counts the call. Null where nothing of it is wanted. `given` is a tensor that the module got, and tells the
    // device; `shape` that of the whole tensor which would be computed. Needs the GIL. Throws EngineError.
    static std::unique_ptr<ComputedCall> begin(std::shared_ptr<const ComputedTap> tap,
                                               const py::handle& module, const py::handle& given,
                                               const Shape& shape);

    const std::vector<Wanted>& wanted() const { return wanted_; }
    // For each token of the pass, [batch, length], 1 where it is a real one; empty where all are or where the
    // tensor's rows are not the pass's tokens.
    const std::vector<std::uint8_t>& real() const { return real_; }
    // The tokens in the cache before the pass; nothing where that is not known, or the tensor's rows are not the
    // pass's tokens.
    std::optional<std::int64_t> offset() const { return offset_; }

    // Stores the rows that wanted()[number] names, computed: as they are, in a stream other than the rule's own
    // where one is named. Needs the GIL, and releases it. Throws EngineError.
    void store(std::size_t number, const py::handle& tensor, std::optional<std::uint32_t> stream);

  private:
    std::shared_ptr<const ComputedTap> tap_;
    std::uint64_t since_ = 0;  // of TickClock
    std::uint32_t prompt_ = 0;
    std::uint32_t step_ = 0;
    std::uint32_t call_ = 0;
    std::vector<std::uint8_t> real_;
    std::optional<std::int64_t> offset_;
    std::vector<Wanted> wanted_;
};

}  // namespace nsf
