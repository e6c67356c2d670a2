#include "cuda/device_source.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>

namespace nsf::cuda {
namespace {

constexpr std::uint64_t vector_bytes = 16;     // what one thread moves at once
constexpr std::uint64_t vector_elements = 16;  // what the kernels ask of offsets to be sure of it
constexpr int not_capturing = 0;
constexpr std::int64_t prepared_length = 4096;  // of a row: the width of a model of some billion parameters

std::uint64_t pass(std::int64_t number) { return static_cast<std::uint64_t>(number); }

std::uint64_t divide_up(std::uint64_t number, std::uint64_t by) { return (number + by - 1) / by; }

// What a launch passes, in the order of the kernel's parameters.
class Arguments {
  public:
    Arguments(std::initializer_list<std::uint64_t> first) : count_(first.size()) {
        std::copy(first.begin(), first.end(), values_.begin());
    }
    void add(const GatherPart& part) {
        add(pass(part.length));
        add(pass(part.stride));
        for (const GatherDimension& each : part.dimensions) {
            add(pass(each.size));
            // The kernels may be promised that strides are multiples of 16: one that is never used is 0.
            add(pass(each.size == 1 || each.looked_up ? 0 : each.stride));
        }
    }
    std::span<const std::uint64_t> values() const { return {values_.data(), count_}; }

  private:
    void add(std::uint64_t value) { values_[count_++] = value; }

    std::array<std::uint64_t, most_arguments> values_{};
    std::size_t count_;
};

// For plain copies: the integer type of the same size.
DType carrier(DType dtype) {
    switch (item_size(dtype)) {
        case 1:
            return DType::i8;
        case 2:
            return DType::i16;
        case 4:
            return DType::i32;
        default:
            return DType::i64;
    }
}

bool has_cast(DType from, DType to) {
    return from == to || (is_floating(from) && is_floating(to) && to != DType::f64);
}

// Whether every row starts and ends at a multiple of what the kernels move at once.
bool rows_aligned(const GatherPart& part) {
    constexpr auto unit = static_cast<std::int64_t>(vector_elements);
    if (part.length % unit != 0) return false;
    return std::all_of(part.dimensions.begin(), part.dimensions.end(), [](const GatherDimension& each) {
        return each.looked_up || each.size == 1 || each.stride % unit == 0;
    });
}

std::int64_t power_of_two(std::int64_t at_least) {
    return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(at_least)));
}

}  // namespace

Tile cast_tile(const GatherPart& part) {
    constexpr std::int64_t tile = 4096;
    if (part.rows() == 1 && part.table_dimension == 0) return {1, tile};
    const std::int64_t columns = power_of_two(std::clamp<std::int64_t>(part.length, 16, 1024));
    return {tile / columns, columns};
}

std::int64_t quantize_columns(std::int64_t length) {
    return power_of_two(std::clamp<std::int64_t>(length, 256, 4096));
}

bool DeviceSource::in_graph(Stream stream) const {
    const CurrentContext current(driver_, context_);
    int capturing = not_capturing;
    // The first call of a tap: where a kernel of the model's has failed before, this is told of it.
    driver_.check(driver_.stream_is_capturing(stream, &capturing),
                  "ask about a stream of the model's, in which something may have failed before");
    return capturing != not_capturing;
}

// Loads every kernel that the record can come to need, so that none has to be made when half of it is stored.
void DeviceSource::load(KernelRequest request) {
    kernels_.load(request);
    if (request.aligned) {
        request.aligned = false;
        kernels_.load(request);
    }
    if (request.kind != KernelKind::quantize) return;
    for (const int write : {1, 2}) {
        request.write = write;
        kernels_.load(request);
    }
}

void DeviceSource::set_cast(DType from, DType to, CastRules rules) {
    from_ = from;
    to_ = to;
    rules_ = rules;
    quantizes_ = to == DType::i8 && is_floating(from);
    first_aligned_ = true;
}

void DeviceSource::put(const TensorView& view, DType target, CastRules rules, Address slot) {
    const CurrentContext current(driver_, context_);
    begin(view, nullptr, target, rules);
    if (elements() == 0) return;
    if (is_plain_copy()) {
        driver_.check(driver_.copy_on_device(slot, source_address(gather_->part(0)),
                                             elements() * item_size(to_), stream_),
                      "copy into a slot of a CUDA graph");
    } else {
        cast(slot, 0, elements());
    }
}

void DeviceSource::begin(const TensorView& view, const Selection* selection, DType target, CastRules rules) {
    const CurrentContext current(driver_, context_);
    deferred_.clear();
    next_ = 0;
    next_scale_ = 0;
    stream_ = view.stream;
    stays_ = view.stays;
    set_cast(view.dtype, target, rules);
    if (!quantizes_ && !has_cast(from_, to_)) {
        throw std::invalid_argument("no cast from " + std::string(name(from_)) + " to " +
                                    std::string(name(to_)));
    }
    gather_.emplace(view, selection, quantizes_);
    const std::vector<std::int64_t>& table = gather_->table();
    table_ = table.empty() ? 0 : tables_.put(table);
    table_aligned_ = std::all_of(table.begin(), table.end(), [](std::int64_t entry) {
        return entry % static_cast<std::int64_t>(vector_elements) == 0;
    });
    // Now, while it can be refused: later there is half a record.
    const bool empty = quantizes_ ? gather_->rows() == 0 : gather_->elements() == 0;
    if (empty || is_plain_copy()) return;
    const KernelRequest wanted = request(gather_->part(0));
    load(wanted);
    first_aligned_ = wanted.aligned;
}

void DeviceSource::prepare(DType from, DType to, CastRules rules) {
    const CurrentContext current(driver_, context_);
    set_cast(from, to, rules);
    GatherPart part;
    part.length = prepared_length;
    if (quantizes_ || (from != to && has_cast(from, to))) load(request(part));
}

void DeviceSource::write(Block& block, std::size_t begin, std::size_t count) {
    if (quantizes_) {
        deferred_.push_back({&block, begin, next_, count, false});
    } else {
        const CurrentContext current(driver_, context_);
        if (is_plain_copy()) {
            const Address from = source_address(gather_->part(0)) + next_ * item_size(from_);
            staging_.fill(block, begin, from, count * item_size(to_), stream_);
            if (!stays_) staging_.start_fills();
        } else {
            cast(staging_.place(block, begin, count * item_size(to_), stream_), next_, count);
        }
    }
    next_ += count;
}

void DeviceSource::write_scales(Block& block, std::size_t begin, std::size_t count) {
    deferred_.push_back({&block, begin, next_scale_, count, true});
    next_scale_ += count;
}

void DeviceSource::cast(Address to, std::uint64_t first, std::uint64_t count) {
    const std::uint64_t part_elements = gather_->part_elements();
    while (count > 0) {
        const std::uint64_t within = first % part_elements;
        const std::uint64_t piece = std::min(count, part_elements - within);
        launch_cast(gather_->part(first / part_elements), to, within, piece);
        to += piece * item_size(to_);
        first += piece;
        count -= piece;
    }
}

KernelRequest DeviceSource::request(const GatherPart& part) const {
    KernelRequest request;
    request.kind = quantizes_ ? KernelKind::quantize : KernelKind::gather_cast;
    request.source = from_ == to_ ? carrier(from_) : from_;
    request.target = from_ == to_ ? carrier(to_) : to_;
    request.table_dimension = part.table_dimension;
    request.per_row = part.per_row;
    request.rules = rules_;
    // Only what load() has loaded: that is for the alignment of the first part.
    request.aligned = first_aligned_ && part.stride == 1 && source_address(part) % vector_bytes == 0;
    if (quantizes_) {
        request.write = 3;
        request.columns = quantize_columns(part.length);
        request.aligned = request.aligned && table_aligned_ && rows_aligned(part);
    } else {
        const Tile tile = cast_tile(part);
        request.rows = tile.rows;
        request.columns = tile.columns;
        if (tile.rows > 1) request.aligned = request.aligned && table_aligned_ && rows_aligned(part);
    }
    return request;
}

void DeviceSource::launch_cast(const GatherPart& part, Address to, std::uint64_t first, std::uint64_t count) {
    KernelRequest wanted = request(part);
    Address from = source_address(part);
    std::uint64_t grid = 0;
    if (wanted.rows == 1) {
        // A single row: the piece is a row of its own, so that nothing depends on where in the record it is.
        from += static_cast<Address>(static_cast<std::int64_t>(first) * part.stride) * item_size(from_);
        first = 0;
        wanted.aligned = wanted.aligned && from % vector_bytes == 0;
        grid = divide_up(count, pass(wanted.columns));
    } else {
        wanted.aligned = wanted.aligned && first % vector_elements == 0 && count % vector_elements == 0;
        const std::uint64_t length = pass(part.length);
        const std::uint64_t rows = (first + count - 1) / length - first / length + 1;
        grid =
            divide_up(rows, pass(wanted.rows)) * divide_up(rows == 1 ? count : length, pass(wanted.columns));
    }
    wanted.aligned = wanted.aligned && to % vector_bytes == 0;
    Arguments arguments{from, to, table_address(part), first, count};
    arguments.add(part);
    if (part.table_dimension != 0) tables_.read_now();
    kernels_.launch(wanted, grid, stream_, arguments.values());
}

void DeviceSource::launch_quantize(const GatherPart& part, Address codes, std::uint64_t first,
                                   std::uint64_t count, Address scales, std::uint64_t first_row,
                                   std::uint64_t rows) {
    KernelRequest wanted = request(part);
    wanted.write = (codes != 0 ? 1 : 0) | (scales != 0 ? 2 : 0);
    wanted.aligned = wanted.aligned && wanted.write == 3 && codes % vector_bytes == 0 &&
                     first % vector_elements == 0 && count % vector_elements == 0;
    Arguments arguments{source_address(part), codes, scales, table_address(part), first_row, first, count};
    arguments.add(part);
    if (part.table_dimension != 0) tables_.read_now();
    kernels_.launch(wanted, rows, stream_, arguments.values());
}

bool DeviceSource::keeps_back(const Block& block) const {
    return std::any_of(deferred_.begin(), deferred_.end(),
                       [&](const Piece& piece) { return piece.block == &block; });
}

void DeviceSource::launch_deferred() {
    if (deferred_.empty()) return;
    const CurrentContext current(driver_, context_);
    const std::vector<Piece> pieces = std::move(deferred_);
    deferred_.clear();
    // One block could not hold both: the second place would take the first one's away.
    const bool both = pieces.size() == 2 && pieces[0].count == elements() && pieces[1].scales &&
                      pieces[1].count == rows() && staging_.block_count() > 1;
    if (both) {
        launch_pieces(&pieces[0], &pieces[1]);
        return;
    }
    for (const Piece& piece : pieces)
        launch_pieces(piece.scales ? nullptr : &piece, piece.scales ? &piece : nullptr);
}

void DeviceSource::launch_pieces(const Piece* codes, const Piece* scales) {
    Address to_codes = 0;
    Address to_scales = 0;
    if (codes != nullptr) to_codes = staging_.place(*codes->block, codes->begin, codes->count, stream_);
    if (scales != nullptr) {
        to_scales = staging_.place(*scales->block, scales->begin, scales->count * sizeof(float), stream_);
    }
    // Both cover the same rows, or only one of them is there.
    const std::uint64_t part_rows = gather_->part_rows();
    const std::uint64_t length = gather_->part_elements() / part_rows;
    std::uint64_t row = scales != nullptr ? scales->first : codes->first / length;
    const std::uint64_t end_row =
        scales != nullptr ? row + scales->count : divide_up(codes->first + codes->count, length);
    while (row < end_row) {
        const std::uint64_t number = row / part_rows;
        const std::uint64_t within = row % part_rows;
        const std::uint64_t rows = std::min(end_row - row, part_rows - within);
        std::uint64_t first = within * length;
        std::uint64_t count = rows * length;
        if (codes != nullptr) {
            // The piece may begin and end within a row.
            const std::uint64_t part_first = number * gather_->part_elements();
            const std::uint64_t begin = std::max(part_first + first, codes->first);
            const std::uint64_t end = std::min(part_first + first + count, codes->first + codes->count);
            first = begin - part_first;
            count = end - begin;
        }
        launch_quantize(gather_->part(number), to_codes, first, count, to_scales, within, rows);
        if (codes != nullptr) to_codes += count;
        if (scales != nullptr) to_scales += rows * sizeof(float);
        row += rows;
    }
}

}  // namespace nsf::cuda
