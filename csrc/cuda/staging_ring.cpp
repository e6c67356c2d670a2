#include "cuda/staging_ring.hpp"

#include <algorithm>

#include "cuda/waits.hpp"

namespace nsf::cuda {
namespace {

bool contains(const std::vector<Stream>& streams, Stream stream) {
    return std::find(streams.begin(), streams.end(), stream) != streams.end();
}

void add_pending(Block& host, std::uint32_t device, std::uint64_t ticket) {
    for (PendingCopy& copy : host.pending) {
        if (copy.device != device) continue;
        copy.ticket = ticket;
        return;
    }
    host.pending.push_back({device, ticket});
}

}  // namespace

StagingRing::StagingRing(const Driver& driver, std::uint32_t device, CopyStream& copies, Address memory,
                         std::size_t block_bytes, std::size_t count)
    : driver_(driver), device_(device), copies_(copies), block_bytes_(block_bytes), blocks_(count) {
    for (StagingBlock& block : blocks_) {
        block.memory = memory;
        memory += block_bytes;
        free_.push_back(&block);
    }
}

Address StagingRing::place(Block& host, std::size_t begin, std::size_t bytes, Stream stream) {
    StagingBlock& block = bind(host);
    admit(block, stream);
    if (!block.written.empty() && block.written.back().end == begin) {
        block.written.back().end += bytes;
    } else {
        block.written.push_back({begin, begin + bytes});
    }
    if (!contains(writers_, stream)) writers_.push_back(stream);
    return block.memory + begin;
}

void StagingRing::fill(Block& host, std::size_t begin, Address from, std::size_t bytes, Stream stream) {
    const Address to = place(host, begin, bytes, stream);
    const bool goes_on =
        fill_.stream == stream && fill_.to + fill_.bytes == to && fill_.from + fill_.bytes == from;
    if (fill_.bytes > 0 && goes_on) {
        fill_.bytes += bytes;
        return;
    }
    start_fills();
    fill_ = {to, from, bytes, stream};
}

void StagingRing::start_fills() {
    if (fill_.bytes == 0) return;
    // Kept where it fails: the records are taken for whole, and nothing may be copied to the host without it.
    driver_.check(driver_.copy_on_device(fill_.to, fill_.from, fill_.bytes, fill_.stream),
                  "copy into the staging ring");
    fill_ = {};
}

std::vector<StagingRing::StagingBlock*>::iterator StagingRing::mirror_of(const Block& host) {
    return std::find_if(bound_.begin(), bound_.end(),
                        [&](const StagingBlock* each) { return each->host == &host; });
}

StagingRing::StagingBlock& StagingRing::bind(Block& host) {
    const auto mirror = mirror_of(host);
    if (mirror != bound_.end()) {
        std::rotate(mirror, mirror + 1, bound_.end());
        return *bound_.back();
    }
    if (free_.empty()) copy(*bound_.front()->host);
    StagingBlock& block = *free_.front();
    bound_.push_back(&block);
    free_.pop_front();
    block.host = &host;
    block.free_after = block.last_copy;
    block.admitted.clear();
    const auto leaving = std::count_if(free_.begin(), free_.end(), [&](const StagingBlock* each) {
        return each->last_copy > copies_.last_arrived();
    });
    peak_ = std::max(peak_, bound_.size() + static_cast<std::size_t>(leaving));
    return block;
}

// A copy that has arrived needs no waiting for; and what waits for it need not do so twice.
void StagingRing::admit(StagingBlock& block, Stream stream) {
    if (contains(block.admitted, stream)) return;
    const bool waits =
        block.admitted.empty() ? keeps(Wait::compute_for_copy) : keeps(Wait::other_compute_for_copy);
    if (waits && !copies_.arrived(block.free_after)) copies_.hold_back(stream, block.free_after);
    block.admitted.push_back(stream);
}

void StagingRing::follow_writers() {
    start_fills();
    for (std::size_t i = 0; i < writers_.size(); ++i) {
        if (i + 1 == writers_.size() || keeps(Wait::copy_for_other_compute)) copies_.after(writers_[i]);
    }
    writers_.clear();
}

void StagingRing::copy_ranges(StagingBlock& block) {
    for (const Range& range : block.written) {
        copies_.copy(block.host->data + range.begin, block.memory + range.begin, range.end - range.begin);
    }
}

// Ends the batch that copied these.
void StagingRing::finish(const std::vector<StagingBlock*>& copied) {
    if (copied.empty()) return;
    const std::uint64_t ticket = copies_.finish_batch();
    for (StagingBlock* block : copied) {
        add_pending(*block->host, device_, ticket);
        block->last_copy = ticket;
        block->written.clear();
        block->admitted.clear();  // a stream may end with its pass, and another get its handle
    }
}

void StagingRing::copy(Block& host) {
    const auto mirror = mirror_of(host);
    if (mirror == bound_.end()) return;
    StagingBlock& block = **mirror;
    if (!block.written.empty()) {
        follow_writers();
        copy_ranges(block);
        finish({&block});
    }
    block.host = nullptr;
    free_.push_back(&block);
    bound_.erase(mirror);
}

void StagingRing::copy_all() {
    std::vector<StagingBlock*> copied;
    for (StagingBlock* block : bound_) {
        if (!block->written.empty()) copied.push_back(block);
    }
    if (copied.empty()) return;
    follow_writers();
    for (StagingBlock* block : copied) copy_ranges(*block);
    finish(copied);
}

}  // namespace nsf::cuda
