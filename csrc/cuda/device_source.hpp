// A record of a tensor on a device: works out what to launch, and starts it where the staging ring says.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/record_source.hpp"
#include "cuda/gather.hpp"
#include "cuda/kernels.hpp"
#include "cuda/position_tables.hpp"
#include "cuda/staging_ring.hpp"

namespace nsf::cuda {

class DeviceSource final : public RecordSource {
  public:
    DeviceSource(const Driver& driver, Context context, Kernels& kernels, StagingRing& staging,
                 PositionTables& tables)
        : driver_(driver), context_(context), kernels_(kernels), staging_(staging), tables_(tables) {}

    // The next record. Nothing is started. Throws std::invalid_argument for what cannot be stored, and
    // EngineError where there is no kernel for it.
    void begin(const TensorView& view, const Selection* selection, DType target, CastRules rules);
    // The whole tensor goes to `slot` by work that the graph under capture on its stream takes up; a plain cast or copy.
    void put(const TensorView& view, DType target, CastRules rules, Address slot);

    // Loads the kernel for large contiguous tensors, the most common one.
    void prepare(DType from, DType to, CastRules rules);

    std::uint64_t elements() const override { return gather_->elements(); }
    bool quantizes() const override { return quantizes_; }
    std::uint64_t rows() const override { return gather_->rows(); }
    void write(Block& block, std::size_t begin, std::size_t count) override;
    void write_scales(Block& block, std::size_t begin, std::size_t count) override;
    void finish() override { launch_deferred(); }
    void abandon() noexcept override { deferred_.clear(); }
    void waited() override { ++host_waits_; }

    bool in_graph(Stream stream) const;

    // Whether something that belongs into this block was kept back; launch_deferred() starts it.
    bool keeps_back(const Block& block) const;
    void launch_deferred();

    std::uint64_t host_waits() const { return host_waits_; }

  private:
    // Codes and scales of an int8 record are kept back until both places are known: one launch then writes
    // both, and reads the tensor once.
    struct Piece {
        Block* block = nullptr;
        std::size_t begin = 0;
        std::uint64_t first = 0;  // element, or row
        std::uint64_t count = 0;
        bool scales = false;
    };

    bool is_plain_copy() const { return from_ == to_ && gather_->contiguous(); }
    void cast(Address to, std::uint64_t first, std::uint64_t count);
    void launch_cast(const GatherPart& part, Address to, std::uint64_t first, std::uint64_t count);
    void launch_pieces(const Piece* codes, const Piece* scales);
    void launch_quantize(const GatherPart& part, Address codes, std::uint64_t first, std::uint64_t count,
                         Address scales, std::uint64_t first_row, std::uint64_t rows);
    KernelRequest request(const GatherPart& part) const;
    void set_cast(DType from, DType to, CastRules rules);
    void load(KernelRequest request);
    Address table_address(const GatherPart& part) const {
        return table_ + part.table_offset * sizeof(std::int64_t);
    }
    Address source_address(const GatherPart& part) const {
        return static_cast<Address>(reinterpret_cast<std::uintptr_t>(part.data));
    }

    const Driver& driver_;
    const Context context_;  // entered by whatever starts something
    Kernels& kernels_;
    StagingRing& staging_;
    PositionTables& tables_;

    std::optional<Gather> gather_;
    Stream stream_ = nullptr;
    bool stays_ = false;
    DType from_ = DType::f32;
    DType to_ = DType::f32;
    CastRules rules_;
    bool quantizes_ = false;
    bool table_aligned_ = true;
    bool first_aligned_ = true;
    Address table_ = 0;
    std::uint64_t next_ = 0;        // element to be written
    std::uint64_t next_scale_ = 0;  // row
    std::vector<Piece> deferred_;
    std::uint64_t host_waits_ = 0;
};

// How many rows and columns of a record a program of `gather_cast` takes; one row says that the record is one.
// The same rules as in kernels/launch.py.
struct Tile {
    std::int64_t rows = 1;
    std::int64_t columns = 1;
};
Tile cast_tile(const GatherPart& part);
std::int64_t quantize_columns(std::int64_t length);

}  // namespace nsf::cuda
