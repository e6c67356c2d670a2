#include <exception>
#include <memory>
#include <utility>

#include "core/sink.hpp"

namespace nsf {

void DiskSink::write(const Block& block) {
    auto& open = shard(block.dtype);
    if (open && open->number() != block.shard) {
        // A shard that fails here is left as it is and not tried again by close(): after a failed fsync a second
        // one succeeds, though bytes may be lost.
        const std::unique_ptr<SafetensorsShard> done = std::move(open);
        done->publish(streams_);
    }
    if (!open) {
        open = std::make_unique<SafetensorsShard>(folder_, block.dtype, block.shard, block.reserve, direct_);
    }
    open->write(block);
}

void DiskSink::add(Record& record) { shard(record.dtype)->add(record, streams_[record.stream]); }

void DiskSink::flush(DType dtype) { shard(dtype)->flush_journal(); }

void DiskSink::close() {
    std::exception_ptr first_error;
    for (auto& open : shards_) {
        if (!open) continue;
        try {
            open->publish(streams_);
        } catch (...) {
            if (!first_error) first_error = std::current_exception();
        }
        open.reset();  // a shard that could not be published stays as .partial with its journal
    }
    if (first_error) std::rethrow_exception(first_error);
}

}  // namespace nsf
