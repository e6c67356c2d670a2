#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/checksum.hpp"
#include "core/worker.hpp"
#include "gate.hpp"
#include "made_block.hpp"

namespace nsf {
namespace {

using testing_support::byte_record;

// Notes what it is called for, and throws where a test wants it to. Used by the writer thread; the test looks
// at it after join().
class TestSink : public Sink {
  public:
    std::function<void(const std::string& call)> before = [](const std::string&) {};
    std::vector<std::string> calls;

    void write(const Block& block) override { note("write " + std::to_string(block.offset)); }
    void add(Record& record) override {
        note("add " + std::to_string(record.step));
        record.shard = 77;  // as the memory sink does
    }
    void flush(DType dtype) override { note("flush " + std::string(name(dtype))); }
    void close() override { note("close"); }

  private:
    void note(const std::string& call) {
        calls.push_back(call);
        before(call);
    }
};

class WorkerTest : public ::testing::Test {
  protected:
    static constexpr std::size_t block_bytes = 4096;

    // A block that holds one record, or a part of it, and is known by its offset.
    void submit(std::uint64_t number, const Record& record, const std::string& bytes, bool last = true,
                DType dtype = DType::u8) {
        Block& block = ring_.acquire();
        block.dtype = dtype;
        block.offset = number;
        std::memcpy(block.data, bytes.data(), bytes.size());
        block.segments.push_back({record, 0, bytes.size(), last});
        block.used = bytes.size();
        ring_.submit(block);
    }
    void submit(std::uint32_t number) { submit(number, byte_record(number, 0, 3), "abc"); }

    // A block that waits for a copy, whose ticket is its number.
    void submit_pending(std::uint32_t number) {
        Block& block = ring_.acquire();
        block.offset = number;
        block.segments.push_back({byte_record(number, 0, 3), 0, 3, true});
        block.used = 3;
        block.pending.push_back({0, number});
        ring_.submit(block);
    }

    // Everything that was submitted, and then the end.
    void finish(Worker& worker) {
        ring_.stop();
        worker.join();
    }

    // The worker fails in `call` with what `raise` throws; the test goes on as if it knew nothing of it.
    EngineError failure_in(const std::string& call, const std::function<void()>& raise) {
        sink_.before = [=](const std::string& now) {
            if (now == call) raise();
        };
        Worker worker(ring_, sink_);
        for (std::uint32_t i = 0; i < 20; ++i) submit(i);  // more than the ring has blocks
        finish(worker);
        EXPECT_TRUE(worker.failed());
        EXPECT_EQ(ring_.free_blocks(), ring_.block_count());
        records_ = worker.log().size();
        bytes_ = worker.bytes_written();
        return worker.failure().value_or(EngineError("no failure"));
    }

    BlockRing ring_{4 * block_bytes, block_bytes};
    TestSink sink_;
    std::size_t records_ = 0;
    std::uint64_t bytes_ = 0;
};

using Calls = std::vector<std::string>;

// Copies arrive at once, but for one that fails.
class TestTransfer : public DeviceTransfer {
  public:
    std::function<void(std::uint64_t ticket)> before = [](std::uint64_t) {};

    void wait(const PendingCopy& copy) override { before(copy.ticket); }

    void open(int) override {}
    void prepare(int, DType, DType, CastRules) override {}
    RecordSource& source(const TensorView&, const Selection*, DType, CastRules) override {
        throw EngineError("not for this test");
    }
    bool in_graph(const TensorView&) override { return false; }
    std::unique_ptr<GraphSlots> make_slots(int) override { return nullptr; }
    TensorView put_into_slot(GraphSlots&, const TensorView& view, DType, CastRules) override { return view; }
    void before_replay(GraphSlots&, void*) override {}
    void after_replay(GraphSlots&, void*) override {}
    void settle(Block&) override {}
    void flush() override {}
    void close() noexcept override {}
    std::vector<DeviceStats> stats() const override { return {}; }
    std::uint64_t pinned_bytes() const override { return 0; }
    std::vector<std::string> warnings() const override { return {}; }
};

TEST_F(WorkerTest, BytesThenRecordsThenFlush) {
    Worker worker(ring_, sink_);
    submit(0);
    submit(1, byte_record(5, 0, 3), "abc", true, DType::i8);
    finish(worker);
    EXPECT_EQ(sink_.calls,
              (Calls{"write 0", "add 0", "flush uint8", "write 1", "add 5", "flush int8", "close"}));
    EXPECT_FALSE(worker.failed());
    EXPECT_FALSE(worker.failure());
    EXPECT_EQ(worker.bytes_written(), 6U);
    EXPECT_EQ(ring_.free_blocks(), 4U);
}

TEST_F(WorkerTest, TheLogHoldsTheRecordsAsTheSinkPlacedThem) {
    Worker worker(ring_, sink_);
    submit(3);
    finish(worker);
    const std::vector<Record> log = worker.log().snapshot();
    ASSERT_EQ(log.size(), 1U);
    EXPECT_EQ(log[0].shard, 77U);
    EXPECT_EQ(log[0].step, 3U);
    EXPECT_EQ(log[0].crc, crc32c(0, "abc", 3));
}

// Records of two lanes run on side by side: each lane has a checksum of its own.
TEST_F(WorkerTest, ChecksumsGoOnFromBlockToBlock) {
    Worker worker(ring_, sink_);
    const Record bytes = byte_record(0, 0, 9);
    const Record floats = byte_record(1, 0, 8, DType::f32);
    submit(0, bytes, "abc", false);
    submit(1, floats, "1234", false, DType::f32);
    submit(2, bytes, "defghi");
    submit(3, floats, "5678", true, DType::f32);
    submit(4, byte_record(2, 0, 0), "");
    submit(5, byte_record(3, 0, 2), "zz");
    finish(worker);
    const std::vector<Record> log = worker.log().snapshot();
    ASSERT_EQ(log.size(), 4U);
    EXPECT_EQ(log[0].crc, crc32c(0, "abcdefghi", 9));
    EXPECT_EQ(log[1].crc, crc32c(0, "12345678", 8));
    EXPECT_EQ(log[2].crc, 0U);
    EXPECT_EQ(log[3].crc, crc32c(0, "zz", 2));
}

TEST_F(WorkerTest, ManyRecordsInOneBlock) {
    Worker worker(ring_, sink_);
    Block& block = ring_.acquire();
    block.dtype = DType::u8;
    block.used = 100;  // the first bytes repeat the tail of the block before
    for (std::uint32_t i = 0; i < 50; ++i) {
        std::memset(block.data + block.used, static_cast<int>(i), i);
        block.segments.push_back({byte_record(i, 0, i), block.used, i, true});
        block.used += i;
    }
    ring_.submit(block);
    finish(worker);
    const std::vector<Record> log = worker.log().snapshot();
    ASSERT_EQ(log.size(), 50U);
    for (std::uint32_t i = 0; i < 50; ++i) {
        const std::string bytes(i, static_cast<char>(i));
        EXPECT_EQ(log[i].crc, crc32c(0, bytes.data(), bytes.size()));
        EXPECT_EQ(log[i].step, i);
    }
    EXPECT_EQ(worker.bytes_written(), 50U * 49 / 2);  // the repeated bytes are not counted again
}

TEST_F(WorkerTest, AfterAFailureBlocksAreRecycledUnwritten) {
    const EngineError error = failure_in("write 2", [] { throw EngineError("cannot write x", 28); });
    EXPECT_STREQ(error.what(), "cannot write x");
    EXPECT_EQ(error.error_number(), 28);
    EXPECT_EQ(sink_.calls, (Calls{"write 0", "add 0", "flush uint8", "write 1", "add 1", "flush uint8",
                                  "write 2", "close"}));
    EXPECT_EQ(records_, 2U);
    EXPECT_EQ(bytes_, 6U);
}

TEST_F(WorkerTest, FailuresInEveryPlaceEndTheSameWay) {
    for (const std::string call : {"write 0", "add 0", "add 3", "flush uint8", "close"}) {
        sink_.calls.clear();
        EXPECT_STREQ(failure_in(call, [] { throw EngineError("broken"); }).what(), "broken") << call;
        EXPECT_EQ(sink_.calls.back(), "close") << call;
    }
}

TEST_F(WorkerTest, TheFirstErrorIsKept) {
    sink_.before = [](const std::string& call) {
        if (call == "add 1" || call == "close") throw EngineError("in " + call);
    };
    Worker worker(ring_, sink_);
    for (std::uint32_t i = 0; i < 8; ++i) submit(i);
    finish(worker);
    EXPECT_STREQ(worker.failure()->what(), "in add 1");
    EXPECT_EQ(sink_.calls.back(), "close");
}

TEST_F(WorkerTest, ABlockIsCheckedWhileAnotherIsBeingWritten) {
    testing_support::Gate writing;
    testing_support::Gate checking;
    sink_.before = [&](const std::string& call) {
        if (call == "write 0") writing.pass();
    };
    TestTransfer transfer;
    transfer.before = [&](std::uint64_t ticket) {
        if (ticket == 2) checking.pass();
    };
    Worker worker(ring_, sink_, &transfer);
    for (std::uint32_t i = 0; i < 3; ++i) submit_pending(i);
    writing.wait_for_visitor();
    checking.wait_for_visitor();  // block 2, while block 0 is still being written
    EXPECT_EQ(worker.log().size(), 0U);
    checking.open();
    writing.open();
    finish(worker);
    EXPECT_EQ(worker.log().size(), 3U);
}

TEST_F(WorkerTest, WhatWasCheckedBeforeAFailureIsWritten) {
    testing_support::Gate writing;
    testing_support::Gate failing;
    sink_.before = [&](const std::string& call) {
        if (call == "write 0") writing.pass();
    };
    TestTransfer transfer;
    std::vector<std::uint64_t> waited;
    transfer.before = [&](std::uint64_t ticket) {
        waited.push_back(ticket);
        if (ticket == 3) failing.pass();  // block 2 has been handed on
        if (ticket == 2) throw EngineError("the copy failed");
    };
    Worker worker(ring_, sink_, &transfer);
    for (std::uint32_t i = 0; i < 4; ++i) submit_pending(i);
    writing.wait_for_visitor();
    failing.wait_for_visitor();
    EXPECT_TRUE(worker.failed());  // while block 0 is being written and block 1 waits
    failing.open();
    writing.open();
    finish(worker);
    EXPECT_STREQ(worker.failure()->what(), "the copy failed");
    EXPECT_EQ(waited, (std::vector<std::uint64_t>{0, 1, 2, 3}));
    EXPECT_EQ(sink_.calls,
              (Calls{"write 0", "add 0", "flush uint8", "write 1", "add 1", "flush uint8", "close"}));
    EXPECT_EQ(ring_.free_blocks(), ring_.block_count());
}

TEST_F(WorkerTest, OtherExceptionsBecomeEngineErrors) {
    EXPECT_STREQ(failure_in("add 0", [] { throw std::bad_alloc(); }).what(),
                 "the writer thread ran out of memory");
    EXPECT_STREQ(failure_in("add 0", [] { throw std::out_of_range("slab"); }).what(),
                 "the writer thread failed: slab");
}

// The interpreter's main thread has the handlers; SIGXFSZ in particular must become an errno here.
TEST_F(WorkerTest, SignalsAreNotForThisThread) {
    std::vector<int> open;
    sink_.before = [&](const std::string& call) {
        if (call != "close") return;
        sigset_t blocked;
        pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
        for (const int number : {SIGINT, SIGTERM, SIGXFSZ, SIGALRM, SIGUSR1}) {
            if (sigismember(&blocked, number) != 1) open.push_back(number);
        }
    };
    Worker worker(ring_, sink_);
    finish(worker);
    EXPECT_TRUE(open.empty());
}

TEST_F(WorkerTest, TheLogIsReadWhileItGrows) {
    Worker worker(ring_, sink_);
    std::thread reader([&] {
        std::size_t before = 0;
        while (before < 300) {
            const std::vector<Record> log = worker.log().snapshot();
            EXPECT_GE(log.size(), before);
            for (std::size_t i = before; i < log.size(); ++i) EXPECT_EQ(log[i].step, i);
            before = log.size();
            EXPECT_FALSE(worker.failed());
            std::this_thread::yield();
        }
    });
    for (std::uint32_t i = 0; i < 300; ++i) submit(i);
    finish(worker);
    reader.join();
    EXPECT_EQ(worker.log().size(), 300U);
}

}  // namespace
}  // namespace nsf
