// A block of the ring put together by hand, for tests of what stands behind the ring.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <string>

#include "core/block_ring.hpp"
#include "temp_folder.hpp"

namespace nsf::testing_support {

class MadeBlock {
  public:
    static constexpr std::size_t capacity = 1 << 16;

    MadeBlock(DType dtype, std::uint32_t shard, std::uint64_t offset = 0)
        : memory_(aligned_bytes(capacity, '#')) {
        block.data = memory_.get();
        block.dtype = dtype;
        block.shard = shard;
        block.reserve = 8192;
        block.offset = offset;
    }

    // The part of a record that lies in this block.
    MadeBlock& append(const Record& record, const std::string& bytes, bool last = true) {
        std::memcpy(block.data + block.used, bytes.data(), bytes.size());
        block.segments.push_back({record, block.used, bytes.size(), last});
        block.used += bytes.size();
        return *this;
    }

    Block block;

  private:
    AlignedBytes memory_;
};

// A record of bytes; `step` names it. Its shape lives as long as the program.
inline Record byte_record(std::uint32_t step, std::uint64_t offset, std::uint64_t bytes,
                          DType dtype = DType::u8) {
    static std::deque<Shape> shapes;
    Record record;
    record.step = step;
    record.offset = offset;
    record.bytes = bytes;
    record.dtype = dtype;
    record.source = dtype;
    record.shape = &shapes.emplace_back(Shape{static_cast<std::int64_t>(bytes / item_size(dtype))});
    return record;
}

}  // namespace nsf::testing_support
