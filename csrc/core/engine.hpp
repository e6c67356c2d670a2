// The capture engine: takes tensors from taps, lays them into the ring as they will stand in their shards,
// and lets the writer thread do the rest.
//
// Contract
//   submit() may be called by any number of threads; they take turns (one producer mutex), and each returns
//   when its bytes have been copied: the tensor is never read afterwards. With the policy `block` it waits
//   while the ring is full. The first error of the writer thread is thrown by every later submit() and by
//   close(). close() is idempotent: it hands over what is in the ring, waits for the writer, and publishes
//   the shards. The destructor does the same and drops errors. Nothing here touches Python. In a forked child
//   the engine is dead: submit() throws, and the destructor leaves files and thread alone.
//   A tensor on a device is read by what submit() starts on the tensor's own stream: whatever the caller starts
//   on that stream afterwards may change it. A record that could be stored only in part breaks the engine: what
//   came before it is kept, what comes after is refused with the same error, which close() throws too.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/block_ring.hpp"
#include "core/cast.hpp"
#include "core/device.hpp"
#include "core/error.hpp"
#include "core/positions.hpp"
#include "core/pulse.hpp"
#include "core/record.hpp"
#include "core/record_form.hpp"
#include "core/record_source.hpp"
#include "core/shard_plan.hpp"
#include "core/sink.hpp"
#include "core/stats.hpp"
#include "core/ticks.hpp"
#include "core/worker.hpp"

namespace nsf {

// How far behind the disk may be. A shard that is full is always made durable, unless it is left to the close; beyond
// that, everything is whenever so many bytes have been stored since the last time, or so many seconds have passed.
struct Durability {
    bool at_close = false;
    std::uint64_t bytes = 0;  // 0: never
    double seconds = 0;       // 0: never
};

enum class Overflow : std::uint8_t { block, drop, fail };

struct EngineOptions {
    std::string folder;  // empty: the memory sink
    std::size_t ring_bytes = std::size_t{64} << 20;
    std::size_t block_bytes = std::size_t{4} << 20;
    std::uint64_t shard_bytes = std::uint64_t{4} << 30;
    Overflow overflow = Overflow::block;
    bool direct_io = true;
    Durability durability;
    double patience = 0;  // seconds to wait for a disk that takes nothing; 0: for ever
    std::array<std::uint32_t, dtype_count>
        first_shards{};  // by dtype: for a folder that holds others already
    CastRules cast_rules;
};

class Engine {
  public:
    // Makes what takes tensors off devices and puts them into the ring; none: such tensors are refused.
    using TransferFactory = std::function<std::unique_ptr<DeviceTransfer>(BlockRing&)>;

    Engine(EngineOptions options, std::vector<Stream> streams, const TransferFactory& transfer = nullptr);
    ~Engine();
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    // Stores what `kept` names as a record of dtype `target` (see ElementReader for the casts there are).
    void submit(const Origin& origin, const Kept& kept, DType target) {
        submit(origin, kept, target, kept.view.dtype);
    }
    // The same, of a tensor that the model computed as `computed` and that has been cast since.
    void submit(const Origin& origin, const Kept& kept, DType target, DType computed);

    // Stores a small tensor of the host, with a note of intern()'s, if that can be done without waiting for anything:
    // then it may be called with the GIL held, and costs a fraction of submit(). False: nothing was done, and
    // submit() must be called.
    bool try_submit(const RecordForm& form, const Origin& origin, const std::string* note,
                    const std::byte* data);
    // How many records have gone that way.
    std::uint64_t small_records() const;
    // For try_submit(); none where the cast is none of single elements (to int8 with scales).
    std::optional<RecordForm> form_of(std::uint32_t stream, DType computed, DType stored, const Shape& shape);
    // The engine's own copy of a record's note, null for an empty one.
    const std::string* intern(const std::string& note);

    // A forward pass has ended: what it left on devices is brought to the host in one batch for each of them.
    // Errors are kept for the next submit() or close(), so that they do not come out of the model's own call.
    void end_step();
    // Makes all that has been stored durable, and returns when it is. Throws the first error of the writer.
    void sync();
    // Whether end_step() has anything to do.
    bool uses_devices() const { return devices_used_.load(std::memory_order_relaxed); }
    void close();
    // Whether waiting was given up: a call of the system does not return. Then the writer still uses this engine, which
    // must not be destroyed: its destructor would wait.
    bool hung() const { return hung_.load(std::memory_order_relaxed); }

    // Makes a device ready before the first tensor comes, and its kernels for tensors of these dtypes.
    void open_device(int device, const std::vector<std::pair<DType, DType>>& casts);

    // Throws std::invalid_argument where in_graph(view), as submit() does.
    void refuse_graph(const TensorView& view);

    // For GraphRecording; see DeviceTransfer.
    bool in_graph(const TensorView& view);
    std::unique_ptr<GraphSlots> make_slots(int device);
    TensorView put_into_slot(GraphSlots& slots, const TensorView& view, DType target);
    void before_replay(GraphSlots& slots, void* stream);
    void after_replay(GraphSlots& slots, void* stream);

    // ticks: of TickClock.
    void count_tap(std::uint64_t ticks, std::uint64_t bytes);

    const EngineOptions& options() const { return options_; }
    const std::vector<Stream>& streams() const { return streams_; }
    std::vector<Record> records() const { return worker_->log().snapshot(); }
    std::vector<DroppedRecord> dropped() const;
    Stats stats() const;
    std::vector<DeviceStats> device_stats() const;
    std::vector<std::string> warnings() const;
    // The slab of a record in memory; null for the disk sink.
    std::shared_ptr<Slab> slab(std::uint32_t number) const;

  private:
    // What the producer knows of the open shard of one dtype.
    struct Lane {
        explicit Lane(const ShardPlan& shards) : plan(shards) {}

        ShardPlan plan;
        Block* current = nullptr;
        std::uint64_t next_offset = 0;  // of the next block's first byte; a multiple of `alignment`
        std::size_t carried = 0;  // bytes of a block handed over early that the next one starts with again
    };

    class ProducerLock {
      public:
        explicit ProducerLock(const Engine& engine);
        ~ProducerLock();
        ProducerLock(const ProducerLock&) = delete;
        ProducerLock& operator=(const ProducerLock&) = delete;

      private:
        const Engine& engine_;
    };

    Lane& lane(DType dtype);
    std::size_t entry_bound(const Record& record) const;
    std::size_t blocks_needed(DType dtype, std::uint64_t bytes, std::size_t bound);
    Block& acquire_block(Lane& lane, const Record& record, const Placement& placement, RecordSource& source);
    void hand_over(Lane& lane);
    void hand_over_all();
    bool start_sync();
    void count_unsynced(std::uint64_t bytes);
    void sync_now_and_then();
    void store(const Origin& origin, const Kept& kept, DType target, DType computed, RecordSource& source);
    DeviceTransfer& usable_transfer();
    [[noreturn]] static void refuse_captured();
    void write_record(Record record, RecordSource& source);
    std::chrono::duration<double> patience() const {
        return std::chrono::duration<double>(memory_ == nullptr ? options_.patience : 0);
    }
    void wait_for_marks(std::uint64_t count);
    EngineError give_up();
    void take_back(std::uint64_t sequence);
    // Runs what would leave a record half stored if it failed: then nothing more is stored.
    template <typename Action>
    void breaking(Action action);
    const std::string* intern_note(const std::string& note);
    bool forked() const;
    void check_process() const;
    void check_usable() const;

    const EngineOptions options_;
    const std::vector<Stream> streams_;
    std::vector<std::size_t> escaped_id_bytes_;  // by stream: the hook id's length in a header
    const std::uint64_t fork_count_;             // of the process that made this engine

    BlockRing ring_;
    std::unique_ptr<DeviceTransfer> transfer_;  // null: there is none
    std::unique_ptr<Sink> sink_;
    MemorySink* memory_ = nullptr;  // sink_, where it is one

    mutable std::mutex producer_mutex_;  // guards all that follows but the atomics; taken by ProducerLock
    mutable std::atomic<std::thread::id> holder_{};
    std::array<std::unique_ptr<Lane>, dtype_count> lanes_;
    std::set<Shape> shapes_;                  // interned: a record keeps a pointer
    std::set<std::string> notes_;             // likewise
    const std::string* last_note_ = nullptr;  // the records of one step mostly have the same
    std::vector<DroppedRecord> dropped_;
    std::uint64_t sequence_ = 0;
    std::uint64_t small_records_ = 0;
    std::uint64_t stalls_ = 0;
    std::chrono::nanoseconds stalled_{0};
    std::size_t peak_blocks_ = 0;
    std::uint64_t unsynced_ = 0;  // bytes stored since the last mark
    std::uint64_t marks_ = 0;     // sent through the ring
    bool closed_ = false;
    std::optional<EngineError> broken_;  // why nothing more is stored
    std::atomic<bool> devices_used_{false};
    std::atomic<bool> hung_{false};

    std::atomic<std::uint64_t> tap_calls_{0};
    std::atomic<std::uint64_t> tap_ticks_{0};
    const TickClock tick_clock_;
    std::atomic<std::uint64_t> bytes_in_{0};

    std::unique_ptr<Worker> worker_;  // uses ring, transfer and sink
    std::unique_ptr<Pulse> pulse_;    // last: it uses everything; null without Durability::seconds
};

template <typename Action>
void Engine::breaking(Action action) {
    try {
        action();
        return;
    } catch (const EngineError& error) {
        if (!broken_) broken_ = error;
    } catch (const std::bad_alloc&) {
        if (!broken_) broken_ = EngineError("there was no memory left to store a record");
    } catch (const std::exception& error) {
        if (!broken_) broken_ = EngineError(std::string("a record could not be stored: ") + error.what());
    }
    throw *broken_;
}

}  // namespace nsf
