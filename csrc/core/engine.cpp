#include "core/engine.hpp"

#include <pthread.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.hpp"

namespace nsf {
namespace {

using Clock = std::chrono::steady_clock;

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
    return std::make_unique<DiskSink>(options.folder, options.direct_io, streams);
}

}  // namespace

Engine::Engine(EngineOptions options, std::vector<Stream> streams)
    : options_(std::move(options)),
      streams_(std::move(streams)),
      fork_count_(watch_forks()),
      ring_(options_.ring_bytes, options_.block_bytes),
      sink_(make_sink(options_, streams_)),
      memory_(dynamic_cast<MemorySink*>(sink_.get())) {
    for (const Stream& stream : streams_) escaped_id_bytes_.push_back(json_escape(stream.hook_id).size());
    worker_ = std::make_unique<Worker>(ring_, *sink_);
}

Engine::~Engine() {
    if (forks.load(std::memory_order_relaxed) != fork_count_) {
        // The thread, and perhaps the producer mutex, are those of the parent at the moment of the fork. What
        // is left here may not be destroyed in order; the process is short-lived or never asked for this
        // engine.
        static_cast<void>(worker_.release());
        static_cast<void>(sink_.release());
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
        slot = std::make_unique<Lane>(memory_ != nullptr ? ShardPlan::unbounded()
                                                         : ShardPlan(options_.shard_bytes));
    }
    return *slot;
}

std::size_t Engine::entry_bound(const Record& record) const {
    return header_entry_bound(escaped_id_bytes_[record.stream], record.shape->size());
}

void Engine::check_process() const {
    if (forks.load(std::memory_order_relaxed) != fork_count_) {
        throw EngineError("a capture cannot be used in a forked process: start the capture after the fork");
    }
}

void Engine::check_usable() const {
    if (closed_) throw EngineError("the capture is closed");
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
    Block& block = *std::exchange(from.current, nullptr);
    // A block handed over early ends anywhere; the file is written in aligned pieces, so the next block
    // starts with the unaligned tail of this one and writes it again.
    from.carried = block.used % alignment;
    from.next_offset = block.offset + block.used - from.carried;
    std::memcpy(from.carry.data(), block.data + block.used - from.carried, from.carried);
    ring_.submit(block);
}

void Engine::hand_over_all() {
    for (auto& each : lanes_) {
        if (each) hand_over(*each);
    }
}

Block& Engine::acquire_block(Lane& to, const Record& record, const Placement& placement) {
    if (ring_.free_blocks() == 0) {
        // Every block may stand half full in some lane: those must go, or nothing would ever become free.
        hand_over_all();
        const auto start = Clock::now();
        Block& block = ring_.acquire();
        stalled_ += Clock::now() - start;
        ++stalls_;
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
    std::memcpy(block.data, to.carry.data(), to.carried);
    return block;
}

// fill(target, elements) writes the record's next elements.
template <typename Fill>
void Engine::write_record(Record record, Fill fill) {
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
        Block& block = to.current != nullptr ? *to.current : acquire_block(to, record, placement);
        const std::uint64_t room = ring_.block_bytes() - block.used;
        const auto piece = static_cast<std::size_t>(std::min(left, room));
        if (piece > 0) fill(block.data + block.used, piece / size);
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

void Engine::submit(const Origin& origin, const Kept& kept, DType target) {
    check_process();  // the mutex may have been held at the fork
    const std::lock_guard lock(producer_mutex_);
    check_usable();
    ElementReader reader(kept.view, kept.selection ? &*kept.selection : nullptr, target, options_.cast_rules);

    Record record;
    record.sequence = sequence_;
    record.stream = origin.stream;
    record.prompt = origin.prompt;
    record.step = origin.step;
    record.call = origin.call;
    record.shape = &*shapes_.insert(kept.shape).first;
    record.note = intern_note(kept.note);
    record.dtype = target;
    record.source = kept.view.dtype;
    record.bytes = reader.elements() * item_size(target);

    Record scale = record;
    if (reader.quantizes()) {
        Shape rows(kept.shape.begin(), kept.shape.end() - (kept.shape.empty() ? 0 : 1));
        scale.shape = &*shapes_.insert(std::move(rows)).first;
        scale.dtype = DType::f32;
        scale.is_scale = true;
        scale.bytes = reader.row_scales().size() * sizeof(float);
    }

    if (options_.overflow != Overflow::block) {
        std::size_t needed = blocks_needed(target, record.bytes, entry_bound(record));
        if (reader.quantizes()) needed += blocks_needed(DType::f32, scale.bytes, entry_bound(scale));
        if (needed > ring_.free_blocks()) {
            hand_over_all();  // so that room comes back even if all of the ring is half-full blocks
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
    write_record(record, [&](std::byte* to, std::size_t count) { reader.read(to, count); });
    if (reader.quantizes()) {
        const auto* next = reinterpret_cast<const std::byte*>(reader.scales().data());
        write_record(scale, [&](std::byte* to, std::size_t count) {
            std::memcpy(to, next, count * sizeof(float));
            next += count * sizeof(float);
        });
    }
}

void Engine::close() {
    if (forks.load(std::memory_order_relaxed) != fork_count_)
        return;  // the mutex may have been held at the fork
    const std::lock_guard lock(producer_mutex_);
    if (!closed_) {
        closed_ = true;
        hand_over_all();
        ring_.stop();
        worker_->join();
    }
    if (worker_->failed()) throw *worker_->failure();
}

void Engine::count_tap(std::chrono::nanoseconds spent, std::uint64_t bytes) {
    tap_calls_.fetch_add(1, std::memory_order_relaxed);
    tap_nanoseconds_.fetch_add(static_cast<std::uint64_t>(spent.count()), std::memory_order_relaxed);
    bytes_in_.fetch_add(bytes, std::memory_order_relaxed);
}

std::vector<DroppedRecord> Engine::dropped() const {
    const std::lock_guard lock(producer_mutex_);
    return dropped_;
}

Stats Engine::stats() const {
    const std::lock_guard lock(producer_mutex_);
    Stats stats;
    stats.records = worker_->log().size();
    stats.bytes_in = bytes_in_.load(std::memory_order_relaxed);
    stats.bytes_written = worker_->bytes_written();
    stats.stalls = stalls_;
    stats.stall_seconds = std::chrono::duration<double>(stalled_).count();
    stats.drops = dropped_.size();
    stats.peak_ring_bytes = peak_blocks_ * ring_.block_bytes();
    stats.ring_bytes = ring_.block_count() * ring_.block_bytes();
    stats.tap_calls = tap_calls_.load(std::memory_order_relaxed);
    stats.tap_seconds = static_cast<double>(tap_nanoseconds_.load(std::memory_order_relaxed)) * 1e-9;
    return stats;
}

std::shared_ptr<Slab> Engine::slab(std::uint32_t number) const {
    return memory_ != nullptr ? memory_->slab(number) : nullptr;
}

}  // namespace nsf
