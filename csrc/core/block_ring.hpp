// The host ring: a fixed arena of aligned blocks that travel in a circle between the taps, the checker and the writer.
//
// Life of a block
//   fresh    never used: its memory has not been touched yet, and is taken only when no used block is free. A writer that
//            keeps up so works with a few blocks, warm in the cache, and the rest of the ring costs no memory.
//   free     in free_; nobody looks at it.
//   filling  taken by acquire(); the producer (whoever holds the engine's producer mutex) writes bytes and segments.
//   full     in full_, after submit(); only the checking thread looks at it, and makes its bytes and segments whole.
//   checked  in checked_, after hand_on(); only the writer thread reads it.
//   free     again, after recycle() by the writer.
// A mark travels the same way and holds nothing: what was submitted before it has been written when the writer meets it.
//
// Contract
//   Producer: acquire(), submit(), mark(), stop(); one thread at a time. Checker: next(), hand_on(), stop_checked(); one thread.
//   Writer:   next_checked(), recycle(); one thread. A single thread may be both and recycle what next() gave it.
//   Full:     no block is free. acquire() waits; free_blocks(), which only grows for the producer, says so
//   beforehand. A block's fields are plain: handing its index through a queue orders every access.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/index_queue.hpp"
#include "core/record.hpp"

namespace nsf {

// The file system's O_DIRECT asks for memory, offsets and sizes in multiples of this (and a page is no
// smaller).
inline constexpr std::size_t alignment = 4096;

// The part of a record that lies in one block.
struct Segment {
    Record record;
    std::size_t begin = 0;  // within the block
    std::size_t size = 0;
    bool last = false;  // the record is whole with this segment
};

// More segments than this in one block and it is handed over early: bounds the memory that records of a few
// bytes take.
inline constexpr std::size_t max_segments = 4096;

// A copy from a device's memory into a block that was started and must be waited for.
struct PendingCopy {
    std::uint32_t device = 0;
    std::uint64_t ticket = 0;
};

struct Block {
    std::byte* data = nullptr;
    // Written by the producer while filling:
    DType dtype = DType::u8;   // which lane
    std::uint32_t shard = 0;   // which shard of that lane
    std::size_t reserve = 0;   // the data start of that shard: 8 + N
    std::uint64_t offset = 0;  // of data[0] from the data start; a multiple of `alignment`
    std::size_t used = 0;
    std::size_t carried =
        0;  // bytes at the front that the lane's previous block ended with; filled in by the checker
    std::vector<Segment> segments;
    std::vector<PendingCopy> pending;  // at most one a device: a later copy implies the earlier ones
    // Written by the checker:
    bool sound = true;  // neither this block nor one before it failed there
};

class BlockRing {
  public:
    // ring_bytes is rounded down to whole blocks, at least one. Throws std::invalid_argument for sizes that
    // make no ring and std::bad_alloc where the memory cannot be had.
    BlockRing(std::size_t ring_bytes, std::size_t block_bytes);
    ~BlockRing();
    BlockRing(const BlockRing&) = delete;
    BlockRing& operator=(const BlockRing&) = delete;

    std::size_t block_bytes() const { return block_bytes_; }
    std::size_t block_count() const { return usable_; }
    std::byte* arena() const { return arena_; }
    std::size_t free_blocks() const { return free_.size() + fresh_blocks(); }
    // The most blocks that were in use at once, give or take those that came back meanwhile.
    std::size_t touched_blocks() const { return touched_; }

    // In a forked child: the arena may be a hole there, in which the child keeps memory of its own. It is left alone.
    void abandon() { arena_ = nullptr; }
    // From here on only the first `blocks` are used. Producer; `blocks` must not be below touched_blocks().
    void limit(std::size_t blocks);

    Block& acquire();
    // Null where no block became free for so long.
    Block* acquire_within(std::chrono::duration<double> patience);
    void submit(Block& block);
    // Sends a mark; false, and nothing done, while one is on its way.
    bool mark();
    bool is_marked() const { return marked_.load(std::memory_order_acquire); }  // pairs with recycle()
    bool is_mark(const Block& block) const { return &block == &mark_; }
    void stop();

    // The next full block or mark, or nullptr once stop() was called and everything before it was returned.
    Block* next();
    void hand_on(Block& block);
    void stop_checked();

    // The next block or mark that was handed on, or nullptr once stop_checked() was called and all of them were returned.
    Block* next_checked();
    void recycle(Block& block);

  private:
    Block* take_now();
    std::size_t fresh_blocks() const { return usable_ - touched_; }
    std::uint32_t index_of(const Block& block) const;
    Block* block_at(std::uint32_t index);

    std::size_t block_bytes_;
    std::byte* arena_ = nullptr;
    std::size_t arena_bytes_ = 0;
    std::vector<Block> blocks_;
    Block mark_;
    std::atomic<bool> marked_{false};  // a mark is on its way
    std::size_t usable_ = 0;           // of blocks_: all of them, unless limit() was called
    std::size_t touched_ = 0;          // blocks before this one have been used; the producer's own
    IndexQueue<> free_;
    IndexQueue<> full_;
    IndexQueue<> checked_;
};

}  // namespace nsf
