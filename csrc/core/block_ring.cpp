#include "core/block_ring.hpp"

#include <sys/mman.h>

#include <new>
#include <stdexcept>
#include <string>

namespace nsf {
namespace {

std::size_t count_blocks(std::size_t ring_bytes, std::size_t block_bytes) {
    if (block_bytes == 0 || block_bytes % alignment != 0) {
        throw std::invalid_argument("the block size must be a multiple of " + std::to_string(alignment) +
                                    " bytes, not " + std::to_string(block_bytes));
    }
    if (ring_bytes < block_bytes) {
        throw std::invalid_argument("the ring (" + std::to_string(ring_bytes) +
                                    " bytes) must hold at least one block (" + std::to_string(block_bytes) +
                                    " bytes): raise the ring size or lower the block size");
    }
    return ring_bytes / block_bytes;
}

constexpr std::uint32_t stop_index = 0xFFFFFFFFU;
constexpr std::uint32_t mark_index = 0xFFFFFFFEU;

// With smaller blocks, one that is used for the first time would take memory for its neighbours too.
constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;

}  // namespace

BlockRing::BlockRing(std::size_t ring_bytes, std::size_t block_bytes)
    : block_bytes_(block_bytes),
      arena_bytes_(count_blocks(ring_bytes, block_bytes) * block_bytes),
      blocks_(arena_bytes_ / block_bytes),
      usable_(blocks_.size()),
      free_(blocks_.size()),
      full_(blocks_.size() + 2),
      checked_(blocks_.size() + 2) {
    // Anonymous memory costs nothing until a block is first used: a small capture touches a few blocks only.
    void* memory = mmap(nullptr, arena_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    arena_ = static_cast<std::byte*>(memory);
#ifdef MADV_HUGEPAGE
    // Fewer pages to fault in, to find, and to hold during a direct write. Advice: a system without them says no.
    if (block_bytes_ >= huge_page_bytes) madvise(memory, arena_bytes_, MADV_HUGEPAGE);
#endif
    for (std::size_t i = 0; i < blocks_.size(); ++i) blocks_[i].data = arena_ + i * block_bytes_;
}

BlockRing::~BlockRing() {
    if (arena_ != nullptr) munmap(arena_, arena_bytes_);
}

void BlockRing::limit(std::size_t blocks) {
    if (blocks < touched_ || blocks > blocks_.size() || blocks == 0) {
        throw std::logic_error("a ring cannot be limited to " + std::to_string(blocks) + " blocks");
    }
    usable_ = blocks;
}

Block* BlockRing::take_now() {
    if (const std::optional<std::uint32_t> index = free_.try_pop()) return &blocks_[*index];
    return fresh_blocks() > 0 ? &blocks_[touched_++] : nullptr;
}

Block& BlockRing::acquire() {
    Block* const block = take_now();
    return block != nullptr ? *block : blocks_[free_.pop()];
}

Block* BlockRing::acquire_within(std::chrono::duration<double> patience) {
    if (Block* const block = take_now()) return block;
    const std::optional<std::uint32_t> index = free_.pop_within(patience);
    return index ? &blocks_[*index] : nullptr;
}

void BlockRing::submit(Block& block) { full_.push(index_of(block)); }

bool BlockRing::mark() {
    // acquire: pairs with the release in recycle(), so that the queues have room for this one.
    if (marked_.load(std::memory_order_acquire)) return false;
    marked_.store(true, std::memory_order_relaxed);
    full_.push(mark_index);
    return true;
}

void BlockRing::stop() { full_.push(stop_index); }

Block* BlockRing::next() { return block_at(full_.pop()); }

void BlockRing::hand_on(Block& block) { checked_.push(index_of(block)); }

void BlockRing::stop_checked() { checked_.push(stop_index); }

Block* BlockRing::next_checked() { return block_at(checked_.pop()); }

void BlockRing::recycle(Block& block) {
    if (is_mark(block)) {
        marked_.store(false, std::memory_order_release);  // pairs with the acquire in mark()
        return;
    }
    block.used = 0;
    block.carried = 0;
    block.sound = true;
    block.segments.clear();
    block.pending.clear();
    free_.push(index_of(block));
}

std::uint32_t BlockRing::index_of(const Block& block) const {
    return is_mark(block) ? mark_index : static_cast<std::uint32_t>(&block - blocks_.data());
}

Block* BlockRing::block_at(std::uint32_t index) {
    if (index == stop_index) return nullptr;
    return index == mark_index ? &mark_ : &blocks_[index];
}

}  // namespace nsf
