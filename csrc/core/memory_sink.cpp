#include <cstdlib>
#include <cstring>
#include <new>

#include "core/sink.hpp"

namespace nsf {
namespace {

constexpr std::size_t shared_slab_bytes = 1 << 20;
constexpr std::size_t slab_alignment = 64;

std::size_t round_up(std::size_t bytes) {
    return (bytes + slab_alignment - 1) / slab_alignment * slab_alignment;
}

}  // namespace

Slab::Slab(std::size_t bytes)
    : data(static_cast<std::byte*>(std::aligned_alloc(slab_alignment, round_up(bytes)))), size(bytes) {
    if (data == nullptr) throw std::bad_alloc();
}

Slab::~Slab() { std::free(data); }

std::shared_ptr<Slab> MemorySink::slab(std::uint32_t number) const {
    const std::lock_guard lock(mutex_);
    return slabs_.at(number);
}

MemorySink::Target MemorySink::allocate(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    Target target;
    target.open = true;
    if (bytes >= shared_slab_bytes / 4) {
        slabs_.push_back(std::make_shared<Slab>(bytes));
        target.slab = static_cast<std::uint32_t>(slabs_.size() - 1);
        return target;
    }
    if (!has_shared_ || shared_used_ + bytes > shared_slab_bytes) {
        slabs_.push_back(std::make_shared<Slab>(shared_slab_bytes));
        shared_slab_ = static_cast<std::uint32_t>(slabs_.size() - 1);
        shared_used_ = 0;
        has_shared_ = true;
    }
    target.slab = shared_slab_;
    target.offset = shared_used_;
    shared_used_ += round_up(bytes);
    return target;
}

void MemorySink::write(const Block& block) {
    whole_.clear();
    next_whole_ = 0;
    for (const Segment& segment : block.segments) {
        Target& target = open_[static_cast<std::size_t>(block.dtype)];
        if (!target.open) target = allocate(segment.record.bytes);
        std::byte* const data = slab(target.slab)->data + target.offset + target.filled;
        if (segment.size > 0) std::memcpy(data, block.data + segment.begin, segment.size);
        target.filled += segment.size;
        if (segment.last) {
            whole_.push_back(target);
            target = Target{};
        }
    }
}

void MemorySink::add(Record& record) {
    const Target& target = whole_[next_whole_++];
    record.shard = target.slab;
    record.offset = target.offset;
}

}  // namespace nsf
