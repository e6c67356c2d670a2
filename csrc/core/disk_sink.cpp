#include <exception>

#include "core/sink.hpp"

namespace nsf {

void DiskSink::write(const Block& block) {
    auto& open = shard(block.dtype);
    if (open && open->number() != block.shard) {
        open->publish(streams_);
        open.reset();
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
