// The staging ring: memory on the device in which tensors are put together as they will stand in the host's
// blocks, so that a whole step leaves the device in one copy.
//
// Life of a staging block
//   free     nobody writes it. Its last copy to the host may still be under way: a stream that writes the block
//            next is made to wait for that copy, on the device.
//   bound    it mirrors one block of the host ring, byte for byte: what is written at an offset here will be
//            copied to that offset there. Streams write ranges of it; copy() and copy_all() start the copies.
//   free     again, after copy() of its host block, or when another host block needs it and none is free: the
//            one that was used longest ago is copied then, and its host block gets another if it goes on.
//
// Contract: used under the engine's producer mutex, with the device's context current. The host never waits
// here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "core/block_ring.hpp"
#include "cuda/copy_stream.hpp"
#include "cuda/driver.hpp"

namespace nsf::cuda {

class StagingRing {
  public:
    // device: the number that PendingCopy will carry. memory: `count` times `block_bytes`, at least one block.
    StagingRing(const Driver& driver, std::uint32_t device, CopyStream& copies, Address memory,
                std::size_t block_bytes, std::size_t count);

    // Where `stream`, in work that the caller starts next, shall write the bytes that belong at
    // host.data + begin.
    Address place(Block& host, std::size_t begin, std::size_t bytes, Stream stream);

    // Writes there what stands at `from`. The copy may be started as late as start_fills(), or as whatever brings it to
    // the host: neighbours become one copy.
    void fill(Block& host, std::size_t begin, Address from, std::size_t bytes, Stream stream);
    void start_fills();

    bool holds(const Block& host) { return mirror_of(host) != bound_.end(); }
    // Starts the copy of everything that has been written for this host block, and lets go of it.
    void copy(Block& host);
    // Starts the copies of everything that has been written: one batch.
    void copy_all();
    // Orders the copy stream behind all writers, though there may be nothing to copy.
    void follow_writers();

    std::size_t block_bytes() const { return block_bytes_; }
    std::size_t block_count() const { return blocks_.size(); }
    // The most blocks that were bound or still on their way to the host at once.
    std::size_t peak_blocks() const { return peak_; }

  private:
    struct Range {
        std::size_t begin = 0;
        std::size_t end = 0;
    };
    struct StagingBlock {
        Address memory = 0;
        Block* host = nullptr;
        std::vector<Range> written;    // and not copied
        std::uint64_t last_copy = 0;   // ticket; 0: never copied
        std::uint64_t free_after = 0;  // the last copy for the host block that it mirrored before
        std::vector<Stream> admitted;  // streams that were ordered behind free_after since the last batch
    };

    struct Fill {
        Address to = 0;
        Address from = 0;
        std::size_t bytes = 0;  // 0: there is none
        Stream stream = nullptr;
    };

    // In bound_; its end where nothing mirrors this host block.
    std::vector<StagingBlock*>::iterator mirror_of(const Block& host);
    StagingBlock& bind(Block& host);
    void admit(StagingBlock& block, Stream stream);
    void copy_ranges(StagingBlock& block);
    void finish(const std::vector<StagingBlock*>& copied);

    const Driver& driver_;
    const std::uint32_t device_;
    CopyStream& copies_;
    const std::size_t block_bytes_;
    std::vector<StagingBlock> blocks_;
    std::deque<StagingBlock*> free_;    // the one released first in front: its copy is the oldest
    std::vector<StagingBlock*> bound_;  // the one used last at the back
    std::vector<Stream> writers_;       // streams that have written since the copy stream last followed them
    Fill fill_;                         // that has not been started
    std::size_t peak_ = 0;
};

}  // namespace nsf::cuda
