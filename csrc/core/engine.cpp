#include "core/engine.hpp"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "core/error.hpp"

namespace nsf {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

// Raised in every forked child: the engine's thread does not exist there, and its files belong to the parent.
std::atomic<std::uint64_t> forks{0};

std::uint64_t watch_forks() {
    static const int registered =
        pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
    static_cast<void>(registered);
    return forks.load(std::memory_order_relaxed);
}

std::unique_ptr<Sink> make_sink(const EngineOptions& options, const std::vector<Stream>& streams) {
    if (options.folder.empty()) return std::make_unique<MemorySink>();
    return std::make_unique<DiskSink>(options.folder, options.direct_io, streams,
                                      options.durability.at_close);
}

}  // namespace

// Python code may run under the mutex (a kernel is compiled), and with it a signal handler or a finalizer that comes
// back to the engine: better an error than a thread that waits for itself.
Engine::ProducerLock::ProducerLock(const Engine& engine) : engine_(engine) {
    // relaxed: only this thread ever stores its own id.
    if (engine.holder_.load(std::memory_order_relaxed) == std::this_thread::get_id()) {
        throw EngineError("a capture cannot be used from within one of its own taps");
    }
    engine.producer_mutex_.lock();
    engine.holder_.store(std::this_thread::get_id(), std::memory_order_relaxed);
}

Engine::ProducerLock::~ProducerLock() {
    engine_.holder_.store(std::thread::id(), std::memory_order_relaxed);
    engine_.producer_mutex_.unlock();
}

Engine::Engine(EngineOptions options, std::vector<Stream> streams, const TransferFactory& transfer)
    : options_(std::move(options)),
      streams_(std::move(streams)),
      fork_count_(watch_forks()),
      ring_(options_.ring_bytes, options_.block_bytes),
      transfer_(transfer ? transfer(ring_) : nullptr),
      sink_(make_sink(options_, streams_)),
      memory_(dynamic_cast<MemorySink*>(sink_.get())) {
    for (const Stream& stream : streams_) escaped_id_bytes_.push_back(json_escape(stream.hook_id).size());
    worker_ = std::make_unique<Worker>(ring_, *sink_, transfer_.get());
    if (memory_ == nullptr && options_.durability.seconds > 0) {
        const std::chrono::duration<double> interval(options_.durability.seconds);
        try {
            pulse_ = std::make_unique<Pulse>(interval, [this] { sync_now_and_then(); });
        } catch (...) {
            ring_.stop();  // or the worker would be waited for without end
            throw;
        }
    }
}

Engine::~Engine() {
    if (forked()) {
        // The thread, and perhaps the producer mutex, are those of the parent at the moment of the fork. What
        // is left here may not be destroyed in order; the process is short-lived or never asked for this
        // engine.
        static_cast<void>(pulse_.release());
        static_cast<void>(worker_.release());
        static_cast<void>(transfer_.release());
        static_cast<void>(sink_.release());
        ring_.abandon();
        return;
    }
    try {
        close();
    } catch (const EngineError&) {
        // Nobody is left to tell: whoever wants to know calls close().
    }
}

Engine::Lane& Engine::lane(DType dtype) {
    auto& slot = lanes_[static_cast<std::size_t>(dtype)];
    if (!slot) {
        const std::uint32_t first = options_.first_shards[static_cast<std::size_t>(dtype)];
        slot = std::make_unique<Lane>(memory_ != nullptr ? ShardPlan::unbounded()
                                                         : ShardPlan(options_.shard_bytes, first));
    }
    return *slot;
}

std::size_t Engine::entry_bound(const Record& record) const {
    return header_entry_bound(escaped_id_bytes_[record.stream], record.shape->size());
}

bool Engine::forked() const { return forks.load(std::memory_order_relaxed) != fork_count_; }

void Engine::check_process() const {
    if (forked()) {
        throw EngineError("a capture cannot be used in a forked process: start the capture after the fork");
    }
}

void Engine::check_usable() const {
    if (closed_) throw EngineError("the capture is closed");
    if (broken_) throw *broken_;
    if (worker_->failed()) throw *worker_->failure();
}

// At most so many blocks must be free for the record to go through without waiting.
std::size_t Engine::blocks_needed(DType dtype, std::uint64_t bytes, std::size_t bound) {
    Lane& target = lane(dtype);
    const std::size_t block_bytes = ring_.block_bytes();
    const bool opens_shard = target.plan.would_open_shard(bytes, bound);
    const bool has_room = target.current != nullptr && !opens_shard;
    const std::size_t room = has_room ? block_bytes - target.current->used : 0;
    if (has_room && bytes <= room) return 0;
    const std::size_t carried = target.current == nullptr && !opens_shard ? target.carried : 0;
    // An empty record stands in a block too.
    return std::max<std::size_t>(1, (bytes - room + carried + block_bytes - 1) / block_bytes);
}

void Engine::hand_over(Lane& from) {
    if (from.current == nullptr) return;
    if (transfer_) transfer_->settle(*from.current);  // where it throws, close() tries again
    Block& block = *std::exchange(from.current, nullptr);
    // A block handed over early ends anywhere; the file is written in aligned pieces, so the next block
    // starts with the unaligned tail of this one and writes it again.
    from.carried = block.used % alignment;
    from.next_offset = block.offset + block.used - from.carried;
    ring_.submit(block);
}

void Engine::hand_over_all() {
    for (auto& each : lanes_) {
        if (each) hand_over(*each);
    }
}

Block& Engine::acquire_block(Lane& to, const Record& record, const Placement& placement,
                             RecordSource& source) {
    if (ring_.free_blocks() == 0) {
        // Every block may stand half full in some lane: those must go, or nothing would ever become free.
        hand_over_all();
        const auto start = Clock::now();
        Block* const found = patience() > Seconds(0) ? ring_.acquire_within(patience()) : &ring_.acquire();
        if (found == nullptr) throw give_up();
        Block& block = *found;
        stalled_ += Clock::now() - start;
        ++stalls_;
        source.waited();
        to.current = &block;
    } else {
        to.current = &ring_.acquire();
    }
    Block& block = *to.current;
    peak_blocks_ = std::max(peak_blocks_, ring_.block_count() - ring_.free_blocks());
    block.dtype = record.dtype;
    block.shard = placement.shard;
    block.reserve = placement.reserve;
    block.offset = to.next_offset;
    block.used = to.carried;
    block.carried = to.carried;
    return block;
}

void Engine::write_record(Record record, RecordSource& source) {
    Lane& to = lane(record.dtype);
    const Placement placement = to.plan.place(record.bytes, entry_bound(record));
    if (placement.opens_shard) {
        hand_over(to);
        to.next_offset = 0;
        to.carried = 0;
    }
    record.shard = placement.shard;
    record.offset = placement.offset;
    const std::size_t size = item_size(record.dtype);
    std::uint64_t left = record.bytes;
    do {
        Block& block = to.current != nullptr ? *to.current : acquire_block(to, record, placement, source);
        const std::uint64_t room = ring_.block_bytes() - block.used;
        const auto piece = static_cast<std::size_t>(std::min(left, room));
        if (piece > 0 && record.is_scale) source.write_scales(block, block.used, piece / size);
        if (piece > 0 && !record.is_scale) source.write(block, block.used, piece / size);
        left -= piece;
        block.segments.push_back({record, block.used, piece, left == 0});
        block.used += piece;
        if (block.used == ring_.block_bytes() || block.segments.size() >= max_segments) hand_over(to);
    } while (left > 0);
}

const std::string* Engine::intern_note(const std::string& note) {
    if (note.empty()) return nullptr;
    if (last_note_ == nullptr || *last_note_ != note) last_note_ = &*notes_.insert(note).first;
    return last_note_;
}

void Engine::submit(const Origin& origin, const Kept& kept, DType target, DType computed) {
    check_process();  // the mutex may have been held at the fork
    if (kept.shape.size() > max_rank) {
        throw std::invalid_argument("it has " + std::to_string(kept.shape.size()) +
                                    " axes; a run holds tensors of up to " + std::to_string(max_rank));
    }
    const ProducerLock lock(*this);
    check_usable();
    const Selection* selection = kept.selection ? &*kept.selection : nullptr;
    if (kept.view.device == TensorView::host) {
        HostSource source(kept.view, selection, target, options_.cast_rules);
        store(origin, kept, target, computed, source);
        return;
    }
    if (!transfer_)
        throw std::invalid_argument("it is on a device, and this engine takes the host's tensors only");
    if (transfer_->in_graph(kept.view)) refuse_captured();
    devices_used_.store(true, std::memory_order_relaxed);
    store(origin, kept, target, computed,
          transfer_->source(kept.view, selection, target, options_.cast_rules));
}

void Engine::store(const Origin& origin, const Kept& kept, DType target, DType computed,
                   RecordSource& source) {
    Record record;
    record.sequence = sequence_;
    record.stream = origin.stream;
    record.prompt = origin.prompt;
    record.step = origin.step;
    record.call = origin.call;
    record.shape = &*shapes_.insert(kept.shape).first;
    record.note = intern_note(kept.note);
    record.dtype = target;
    record.source = computed;
    record.bytes = source.elements() * item_size(target);

    Record scale = record;
    if (source.quantizes()) {
        Shape rows(kept.shape.begin(), kept.shape.end() - (kept.shape.empty() ? 0 : 1));
        scale.shape = &*shapes_.insert(std::move(rows)).first;
        scale.dtype = DType::f32;
        scale.is_scale = true;
        scale.bytes = source.rows() * sizeof(float);
    }

    if (options_.overflow != Overflow::block) {
        std::size_t needed = blocks_needed(target, record.bytes, entry_bound(record));
        if (source.quantizes()) needed += blocks_needed(DType::f32, scale.bytes, entry_bound(scale));
        if (needed > ring_.free_blocks()) {
            // So that room comes back even if all of the ring is half-full blocks.
            breaking([&] { hand_over_all(); });
            if (options_.overflow == Overflow::fail) {
                throw EngineError("the ring is full (" +
                                  std::to_string(ring_.block_count() * ring_.block_bytes()) +
                                  " bytes): raise ring_bytes, capture less, or use overflow='block'");
            }
            dropped_.push_back({origin.stream, origin.prompt, origin.step, origin.call});
            return;
        }
    }

    ++sequence_;
    try {
        breaking([&] {
            write_record(record, source);
            if (source.quantizes()) write_record(scale, source);
            source.finish();
        });
    } catch (const EngineError&) {
        source.abandon();
        take_back(record.sequence);
        throw;
    }
    count_unsynced(record.bytes + (source.quantizes() ? scale.bytes : 0));
}

// What a block already says of a record that did not come to be.
void Engine::take_back(std::uint64_t sequence) {
    for (auto& each : lanes_) {
        if (!each || each->current == nullptr) continue;
        std::vector<Segment>& segments = each->current->segments;
        while (!segments.empty() && segments.back().record.sequence == sequence) segments.pop_back();
    }
}

void Engine::end_step() {
    if (!uses_devices()) return;
    if (forked()) return;
    const ProducerLock lock(*this);
    if (closed_ || broken_ || worker_->failed()) return;
    try {
        breaking([&] { transfer_->flush(); });
    } catch (const EngineError&) {
        // broken_ has it for the next tap and for close().
    }
}

void Engine::after_replay(GraphSlots& slots, void* stream) {
    check_process();
    const ProducerLock lock(*this);
    DeviceTransfer& transfer = usable_transfer();
    // What is not started now would read the next replay's values.
    breaking([&] { transfer.after_replay(slots, stream); });
}

void Engine::close() {
    if (forked()) return;          // the mutex may have been held at the fork
    std::unique_ptr<Pulse> ended;  // waits for what may wait for the mutex: destroyed after the lock
    const ProducerLock lock(*this);
    ended = std::move(pulse_);
    if (!closed_) {
        closed_ = true;
        for (auto& each : lanes_) {
            try {
                if (each) breaking([&] { hand_over(*each); });
            } catch (const EngineError&) {
                // Thrown below, once all that is whole has been published.
            }
        }
        ring_.stop();
        // After a tap or sync() has given up already it is only looked whether the disk has come back.
        const Seconds longest = hung() ? std::min(patience(), Seconds(1)) : patience();
        hung_.store(false, std::memory_order_relaxed);
        if (!worker_->join_within(longest)) broken_ = give_up();
        if (transfer_ && !hung()) transfer_->close();
    }
    if (hung()) throw *broken_;
    if (worker_->failed()) throw *worker_->failure();
    if (broken_) throw *broken_;
}

void Engine::count_tap(std::uint64_t ticks, std::uint64_t bytes) {
    tap_calls_.fetch_add(1, std::memory_order_relaxed);
    tap_ticks_.fetch_add(ticks, std::memory_order_relaxed);
    bytes_in_.fetch_add(bytes, std::memory_order_relaxed);
}

std::vector<DroppedRecord> Engine::dropped() const {
    check_process();
    const ProducerLock lock(*this);
    return dropped_;
}

Stats Engine::stats() const {
    check_process();
    const ProducerLock lock(*this);
    Stats stats;
    stats.records = worker_->log().size();
    stats.taken = sequence_;
    stats.acknowledged = sink_->acknowledged();
    stats.bytes_in = bytes_in_.load(std::memory_order_relaxed);
    stats.bytes_written = worker_->bytes_written();
    stats.stalls = stalls_;
    stats.stall_seconds = std::chrono::duration<double>(stalled_).count();
    stats.drops = dropped_.size();
    stats.peak_ring_bytes = peak_blocks_ * ring_.block_bytes();
    stats.ring_bytes = ring_.block_count() * ring_.block_bytes();
    if (transfer_) stats.pinned_bytes = transfer_->pinned_bytes();
    stats.tap_calls = tap_calls_.load(std::memory_order_relaxed);
    stats.tap_seconds = tick_clock_.seconds(tap_ticks_.load(std::memory_order_relaxed));
    return stats;
}

std::shared_ptr<Slab> Engine::slab(std::uint32_t number) const {
    return memory_ != nullptr ? memory_->slab(number) : nullptr;
}

}  // namespace nsf
