// Where records go. A sink is used by the writer thread alone, until that thread has ended.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/block_ring.hpp"
#include "core/record.hpp"
#include "core/safetensors_shard.hpp"

namespace nsf {

class Sink {
  public:
    virtual ~Sink() = default;

    // The bytes of a block, then, for each record that became whole with it, one add(), then flush().
    virtual void write(const Block& block) = 0;
    virtual void add(Record& record) = 0;
    virtual void flush(DType dtype) = 0;
    // Makes all of it durable, where that means anything.
    virtual void sync() {}
    // How many records are durable. From any thread.
    virtual std::uint64_t acknowledged() const { return 0; }
    // No more blocks will come. Throws after having tried everything that can still be made whole.
    virtual void close() = 0;
};

// Shards in a folder: one open shard a dtype. A full shard is published, which makes it durable; with `at_close` that is
// put off to the end, as long as there are not too many of them.
class DiskSink : public Sink {
  public:
    DiskSink(std::string folder, bool direct, const std::vector<Stream>& streams, bool at_close = false)
        : folder_(std::move(folder)), direct_(direct), streams_(streams), at_close_(at_close) {}

    void write(const Block& block) override;
    void add(Record& record) override;
    void flush(DType dtype) override;
    void sync() override;
    std::uint64_t acknowledged() const override { return acknowledged_.load(std::memory_order_relaxed); }
    void close() override;

  private:
    static constexpr std::size_t most_waiting = 64;  // each holds two descriptors

    void publish(std::unique_ptr<SafetensorsShard> shard);
    std::unique_ptr<SafetensorsShard>& shard(DType dtype) { return shards_[static_cast<std::size_t>(dtype)]; }

    std::string folder_;
    bool direct_;
    const std::vector<Stream>& streams_;
    const bool at_close_;
    std::array<std::unique_ptr<SafetensorsShard>, dtype_count> shards_;
    std::deque<std::unique_ptr<SafetensorsShard>> waiting_;  // full, and to be published at the end
    std::atomic<std::uint64_t> acknowledged_{0};
};

// Memory that holds whole records, each in one piece; shared with whoever looks at a tensor in it.
struct Slab {
    explicit Slab(std::size_t bytes);
    ~Slab();
    Slab(const Slab&) = delete;
    Slab& operator=(const Slab&) = delete;

    std::byte* data;
    std::size_t size;
};

// Records are copied out of the ring into slabs; Record::shard and offset then name the slab and the place in
// it.
class MemorySink : public Sink {
  public:
    void write(const Block& block) override;
    void add(Record& record) override;
    void flush(DType) override {}
    void close() override {}

    // Safe from any thread; slabs are only ever added.
    std::shared_ptr<Slab> slab(std::uint32_t number) const;

  private:
    struct Target {
        std::uint32_t slab = 0;
        std::size_t offset = 0;
        std::size_t filled = 0;
        bool open = false;
    };

    Target allocate(std::size_t bytes);

    mutable std::mutex mutex_;
    std::vector<std::shared_ptr<Slab>> slabs_;
    std::uint32_t shared_slab_ = 0;  // the slab that small records share
    std::size_t shared_used_ = 0;
    bool has_shared_ = false;
    std::array<Target, dtype_count> open_{};  // the record that runs on into the lane's next block
    std::vector<Target> whole_;               // of the block in hand, in the order of add()
    std::size_t next_whole_ = 0;
};

}  // namespace nsf
