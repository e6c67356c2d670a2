#include <exception>
#include <memory>
#include <utility>

#include "core/sink.hpp"

namespace nsf {

// A shard that fails here is left as it is and not tried again: after a failed fsync a second one succeeds, though bytes
// may be lost.
void DiskSink::publish(std::unique_ptr<SafetensorsShard> shard) {
    const std::size_t unsynced = shard->unsynced();
    shard->publish(streams_);
    acknowledged_.fetch_add(unsynced, std::memory_order_relaxed);
}

void DiskSink::write(const Block& block) {
    auto& open = shard(block.dtype);
    if (open && open->number() != block.shard) {
        if (at_close_) {
            waiting_.push_back(std::move(open));
            if (waiting_.size() > most_waiting) {
                std::unique_ptr<SafetensorsShard> oldest = std::move(waiting_.front());
                waiting_.pop_front();
                publish(std::move(oldest));
            }
        } else {
            publish(std::move(open));
        }
    }
    if (!open) {
        open = std::make_unique<SafetensorsShard>(folder_, block.dtype, block.shard, block.reserve, direct_);
    }
    open->write(block);
}

void DiskSink::add(Record& record) { shard(record.dtype)->add(record, streams_[record.stream]); }

void DiskSink::flush(DType dtype) { shard(dtype)->flush_journal(); }

void DiskSink::sync() {
    const auto sync_one = [&](std::unique_ptr<SafetensorsShard>& each) {
        if (!each) return;
        const std::size_t unsynced = each->unsynced();
        try {
            each->sync();
        } catch (...) {
            each.reset();  // stays as .partial with its journal
            throw;
        }
        acknowledged_.fetch_add(unsynced, std::memory_order_relaxed);
    };
    for (auto& each : waiting_) sync_one(each);
    for (auto& each : shards_) sync_one(each);
}

void DiskSink::close() {
    std::exception_ptr first_error;
    const auto publish_one = [&](std::unique_ptr<SafetensorsShard>& each) {
        if (!each) return;
        try {
            publish(std::move(each));
        } catch (...) {
            if (!first_error) first_error = std::current_exception();
        }
    };
    for (auto& each : waiting_) publish_one(each);
    for (auto& each : shards_) publish_one(each);
    if (first_error) std::rethrow_exception(first_error);
}

}  // namespace nsf
