// Where the bytes of one record come from: the host's memory here, a device's in csrc/cuda.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/block_ring.hpp"
#include "core/element_reader.hpp"

namespace nsf {

// Elements are asked for in C order, each once; so are the row scales of an int8 record, after its elements.
// The tensor is not touched by anything that is started after finish().
class RecordSource {
  public:
    virtual ~RecordSource() = default;

    virtual std::uint64_t elements() const = 0;
    // Whether the record is quantised to int8 and has `rows()` float32 scales beside it.
    virtual bool quantizes() const = 0;
    virtual std::uint64_t rows() const = 0;
    // The next `count` elements go to block.data + begin.
    virtual void write(Block& block, std::size_t begin, std::size_t count) = 0;
    virtual void write_scales(Block& block, std::size_t begin, std::size_t count) = 0;
    virtual void finish() = 0;
    // In place of finish(), after an error: what has not been started yet never will be.
    virtual void abandon() noexcept = 0;
    // The producer has waited for a free block while it stored this record.
    virtual void waited() = 0;
};

class HostSource final : public RecordSource {
  public:
    HostSource(const TensorView& view, const Selection* selection, DType target, CastRules rules)
        : reader_(view, selection, target, rules) {
        if (reader_.quantizes()) rows_ = reader_.row_scales().size();
    }

    std::uint64_t elements() const override { return reader_.elements(); }
    bool quantizes() const override { return reader_.quantizes(); }
    std::uint64_t rows() const override { return rows_; }
    void write(Block& block, std::size_t begin, std::size_t count) override {
        reader_.read(block.data + begin, count);
    }
    void write_scales(Block& block, std::size_t begin, std::size_t count) override {
        std::memcpy(block.data + begin, reader_.scales().data() + written_, count * sizeof(float));
        written_ += count;
    }
    void finish() override {}
    void abandon() noexcept override {}
    void waited() override {}

  private:
    ElementReader reader_;
    std::uint64_t rows_ = 0;
    std::size_t written_ = 0;
};

}  // namespace nsf
