#include "core/positions.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace nsf {
namespace {

struct SequenceAxis {
    std::size_t axis = 0;
    std::int64_t rows = 1;
    std::int64_t length = 0;
    bool of_this_pass = false;  // rows and length are those of the step: its offset and mask apply
    std::int64_t skipped = 0;   // positions of the pass before the tensor's first
    bool flattened = false;
};

std::optional<SequenceAxis> find_sequence_axis(const StepFacts& facts, const Shape& shape,
                                               SequenceKind kind) {
    const std::size_t rank = shape.size();
    SequenceAxis found;
    if (rank >= 3) {
        found.axis = sequence_axis(kind, rank);
        found.rows = shape[0];
        found.length = shape[found.axis];
        found.of_this_pass = facts.known() && found.rows == facts.batch && found.length == facts.length;
        const std::int64_t kept = std::min(facts.logits_kept, facts.length);
        if (kind == SequenceKind::logits && kept > 0 && found.rows == facts.batch && found.length == kept) {
            found.of_this_pass = true;
            found.skipped = facts.length - kept;
        }
        return found;
    }
    if (rank < 2) return std::nullopt;
    const bool known = facts.batch > 0 && facts.length > 0;
    if (known && shape[0] == facts.batch * facts.length) {
        found.rows = facts.batch;
        found.length = facts.length;
        found.of_this_pass = true;
        found.flattened = facts.batch > 1;
        found.axis = found.flattened ? 1 : 0;
        return found;
    }
    if (known && facts.batch > 1) return std::nullopt;  // neither [batch, …] nor [length, …] for certain
    found.length = shape[0];
    return found;
}

// The indices on the axis that the spec picks, ascending as the spec gives them.
std::vector<std::int64_t> pick(const PositionSpec& spec, std::int64_t offset, std::int64_t length) {
    const std::int64_t total = offset + length;
    std::vector<std::int64_t> indices;
    if (spec.kind == PositionSpec::Kind::last) {
        if (length > 0) indices.push_back(length - 1);
    } else if (spec.kind == PositionSpec::Kind::list) {
        for (const std::int64_t position : spec.list) {
            const std::int64_t index = (position < 0 ? position + total : position) - offset;
            const bool inside = index >= 0 && index < length;
            // 41 and -1 may be the same position now.
            if (inside && std::find(indices.begin(), indices.end(), index) == indices.end())
                indices.push_back(index);
        }
    } else {
        // Python's slice semantics over the sequence so far, then the part of it that this pass computes.
        const bool forward = spec.step > 0;
        // A step beyond the sequence picks its start alone; a larger one says no more, and would overflow.
        const std::int64_t step = std::clamp<std::int64_t>(spec.step, -total - 1, total + 1);
        const auto clamp = [&](std::int64_t value) {
            if (value < 0) value += total;
            return forward ? std::clamp<std::int64_t>(value, 0, total)
                           : std::clamp<std::int64_t>(value, -1, total - 1);
        };
        std::int64_t start = spec.start ? clamp(*spec.start) : (forward ? 0 : total - 1);
        // Skip what the cache holds: a long decode must not walk the whole sequence at each step.
        if (forward && start < offset) start += (offset - start + step - 1) / step * step;
        const std::int64_t stop = spec.stop ? clamp(*spec.stop) : (forward ? total : -1);
        for (std::int64_t p = start; forward ? p < stop : p > stop; p += step) {
            if (p >= offset && p < total) indices.push_back(p - offset);
        }
    }
    return indices;
}

// The last real token of each row, as an index on the tensor's axis; its last position where none of them is
// real.
std::vector<std::int64_t> last_real(const StepFacts& facts, std::int64_t skipped) {
    std::vector<std::int64_t> last;
    for (std::int64_t row = 0; row < facts.batch; ++row) {
        const std::uint8_t* mask = facts.mask.data() + row * facts.length;
        std::int64_t index = facts.length - 1;
        while (index > skipped && mask[index] == 0) --index;
        last.push_back((mask[index] != 0 ? index : facts.length - 1) - skipped);
    }
    return last;
}

std::string json_list(const std::vector<std::int64_t>& values, std::size_t begin, std::size_t count,
                      std::int64_t plus) {
    std::string text = "[";
    for (std::size_t i = begin; i < begin + count; ++i) {
        if (i > begin) text += ',';
        text += std::to_string(values[i] + plus);
    }
    text += ']';
    return text;
}

// [first, first + 1, …], `count` numbers.
std::string counting_json(std::int64_t first, std::int64_t count) {
    std::string text = "[";
    for (std::int64_t i = 0; i < count; ++i) {
        if (i > 0) text += ',';
        text += std::to_string(first + i);
    }
    text += ']';
    return text;
}

std::string positions_json(const Selection& selection, std::int64_t offset) {
    if (selection.rows == 1) return json_list(selection.indices, 0, selection.per_row, offset);
    std::string text = "[";
    for (std::size_t row = 0; row < selection.rows; ++row) {
        if (row > 0) text += ',';
        text += json_list(selection.indices, row * selection.per_row, selection.per_row, offset);
    }
    text += ']';
    return text;
}

// For each row start and stop of every range of real tokens on the stored axis, one after the other.
std::string real_tokens_json(const StepFacts& facts, const std::optional<Selection>& selection,
                             const SequenceAxis& axis) {
    const std::size_t stored = selection ? selection->per_row : static_cast<std::size_t>(axis.length);
    bool all_real = true;
    std::string text = "[";
    for (std::int64_t row = 0; row < facts.batch; ++row) {
        if (row > 0) text += ',';
        text += '[';
        std::size_t start = 0;
        bool inside = false;
        bool first = true;
        for (std::size_t i = 0; i <= stored; ++i) {
            bool real = false;
            if (i < stored) {
                std::int64_t index = static_cast<std::int64_t>(i);
                if (selection) {
                    const std::size_t front =
                        selection->rows > 1 ? static_cast<std::size_t>(row) * stored : 0;
                    index = selection->indices[front + i];
                }
                real = facts.mask[static_cast<std::size_t>(row * facts.length + axis.skipped + index)] != 0;
                all_real = all_real && real;
            }
            if (real && !inside) start = i;
            if (!real && inside) {
                if (!first) text += ',';
                text += std::to_string(start);
                text += ',';
                text += std::to_string(i);
                first = false;
            }
            inside = real;
        }
        text += ']';
    }
    if (all_real) return {};
    text += ']';
    return text;
}

// Keys and values: all of them, whose positions are those of the sequence unless the cache holds others too.
Kept keep_cache(const StepFacts& facts, TensorView view) {
    Kept kept;
    kept.shape = view.shape;
    const std::size_t rank = view.shape.size();
    if (rank >= 3 && facts.known() && view.shape[0] == facts.batch) {
        const std::int64_t length = view.shape[rank - 2];
        if (facts.offset < 0 || length != facts.offset + facts.length) {
            kept.note = R"({"positions":[]})";  // a window of the sequence, or room that is not used yet
        } else if (facts.offset == 0 && !facts.mask.empty()) {
            SequenceAxis axis;
            axis.length = length;
            const std::string real = real_tokens_json(facts, std::nullopt, axis);
            if (!real.empty()) kept.note = "{\"real_tokens\":" + real + "}";
        }
    }
    kept.view = std::move(view);
    return kept;
}

TensorView unflatten(TensorView view, const SequenceAxis& axis) {
    const std::int64_t stride = view.strides[0];
    view.shape.insert(view.shape.begin() + 1, axis.length);
    view.strides.insert(view.strides.begin() + 1, stride);
    view.shape[0] = axis.rows;
    view.strides[0] = stride * axis.length;
    return view;
}

}  // namespace

Kept keep_positions(const PositionSpec& spec, const StepFacts& facts, TensorView view, SequenceKind kind) {
    const bool wants_all = spec.kind == PositionSpec::Kind::all;
    if (kind == SequenceKind::cache || kind == SequenceKind::foreign) {
        if (!wants_all) throw std::invalid_argument("it is of another sequence; capture all positions");
        return keep_cache(kind == SequenceKind::cache ? facts : StepFacts{}, std::move(view));
    }
    Kept kept;
    kept.shape = view.shape;
    if (wants_all && needs_no_note(facts, kind)) {
        kept.view = std::move(view);
        return kept;
    }
    const std::optional<SequenceAxis> axis = find_sequence_axis(facts, view.shape, kind);
    if (!axis && !wants_all) {
        throw std::invalid_argument("it has no sequence axis to take positions from; capture all positions");
    }
    const bool of_this_pass = axis && axis->of_this_pass;
    const bool masked = of_this_pass && !facts.mask.empty();
    const bool offset_known = !of_this_pass || facts.offset >= 0;
    const std::int64_t first = of_this_pass && offset_known ? facts.offset + axis->skipped : 0;
    if (!wants_all) {
        const bool by_number = spec.kind != PositionSpec::Kind::last;
        if (by_number && !offset_known) {
            throw std::invalid_argument(
                "the cache does not say how many tokens it holds, so positions cannot be told; "
                "capture all positions, or the last");
        }
        Selection selection;
        selection.axis = axis->axis;
        if (!by_number && masked) {
            selection.indices = last_real(facts, axis->skipped);
            selection.per_row = 1;
            selection.rows = static_cast<std::size_t>(facts.batch);
            const bool same = std::adjacent_find(selection.indices.begin(), selection.indices.end(),
                                                 std::not_equal_to<>()) == selection.indices.end();
            if (same) {
                selection.indices.resize(1);
                selection.rows = 1;
            }
        } else {
            selection.indices = pick(spec, first, axis->length);
            selection.per_row = selection.indices.size();
        }
        if (selection.per_row == 0 && axis->length > 0) {
            kept.nothing = true;
            return kept;
        }
        if (axis->flattened) view = unflatten(std::move(view), *axis);
        const auto count = static_cast<std::int64_t>(selection.per_row);
        if (axis->flattened) {
            kept.shape[0] = axis->rows * count;
        } else {
            kept.shape[axis->axis] = count;
        }
        kept.selection = std::move(selection);
    }
    std::string note;
    if (!offset_known) {
        note = "\"positions\":[]";
    } else if (kept.selection) {
        note = "\"positions\":" + positions_json(*kept.selection, first);
    } else if (first > 0) {
        note = "\"positions\":" + counting_json(first, axis->length);
    }
    if (masked) {
        const std::string real = real_tokens_json(facts, kept.selection, *axis);
        if (!real.empty()) {
            if (!note.empty()) note += ',';
            note += "\"real_tokens\":";
            note += real;
        }
    }
    if (!note.empty()) {
        kept.note.reserve(note.size() + 2);
        kept.note += '{';
        kept.note += note;
        kept.note += '}';
    }
    kept.view = std::move(view);
    return kept;
}

}  // namespace nsf
