// A small run whose n-th system call fails, for every n and in every way: the error names operation, file and errno, what
// was acknowledged stays, what is stored is right, and nobody waits for ever.
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/engine.hpp"
#include "engine_fixture.hpp"
#include "fault_injection.hpp"
#include "search_stride.hpp"
#include "whole_tensors.hpp"

namespace nsf {
namespace {

using testing_support::Capture;
using testing_support::engine_error;
using testing_support::Faults;
using testing_support::image_of;
using testing_support::InjectFaults;
using testing_support::path_of;
using testing_support::Place;
using testing_support::search_stride;
using testing_support::small_options;
using testing_support::Tensors;
using testing_support::Verdict;
using testing_support::whole_tensors;
using testing_support::WholeTensors;

struct Fault {
    std::string name;
    Verdict verdict;
    bool lasts = false;  // every later call fails too
};

std::vector<Fault> all_faults() {
    return {
        {"NoSpace", Verdict::fail(ENOSPC), true},       {"NoSpaceOnce", Verdict::fail(ENOSPC)},
        {"Quota", Verdict::fail(EDQUOT), true},         {"InputOutput", Verdict::fail(EIO)},
        {"DoneAndFailed", Verdict::fail_after(EIO)},    {"ReadOnly", Verdict::fail(EROFS), true},
        {"MountVanished", Verdict::fail(ESTALE), true}, {"ShortWrites", Verdict::shorten(1000), true},
        {"NothingWritten", Verdict::shorten(0), true},
    };
}

// Counts the calls on files of the folder; from the `at`-th on they fail.
class FailAt {
  public:
    FailAt(std::string folder, Fault fault, int at)
        : folder_(std::move(folder)), fault_(std::move(fault)), at_(at) {}

    Faults faults() {
        Faults faults;
        faults.open = [this](const char* path, int) { return decide(path, false); };
        faults.pwrite = [this](int descriptor, std::size_t, off_t) {
            return decide(path_of(descriptor), true);
        };
        faults.fsync = [this](int descriptor) { return decide(path_of(descriptor), false); };
        faults.ftruncate = faults.fsync;
        faults.close = faults.fsync;
        faults.rename = [this](const char* from, const char*) { return decide(from, false); };
        return faults;
    }
    bool came() const { return calls_ >= at_; }

  private:
    Verdict decide(const std::string& path, bool is_write) {
        if (!path.starts_with(folder_)) return Verdict::pass();
        const int call = ++calls_;
        const bool fails = fault_.lasts ? call >= at_ : call == at_;
        const bool can = is_write || fault_.verdict.kind == Verdict::Kind::fail;
        return fails && can ? fault_.verdict : Verdict::pass();
    }

    const std::string folder_;
    const Fault fault_;
    const int at_;
    std::atomic<int> calls_{0};
};

struct Outcome {
    std::string error;
    WholeTensors whole;
    Tensors expected;
    std::vector<std::string> promised;
};

// Two lanes, several shards, everything durable twice on the way. `inject` puts the faults in force.
template <typename Inject>
Outcome run(bool at_close, Inject inject) {
    EngineOptions options = small_options();
    options.shard_bytes = 20'000;
    options.durability.at_close = at_close;
    Capture capture(Place::direct, options);
    const InjectFaults faults(inject(capture.folder().path()));
    Outcome outcome;
    const auto attempt = [&](auto action) {
        const std::string error = engine_error(action);
        if (outcome.error.empty()) outcome.error = error;
        return error.empty();
    };
    for (int i = 0; i < 8; ++i) {
        attempt([&] { capture.submit(DType::u8, {i * 700 + 1}); });
        attempt([&] { capture.submit(DType::f32, {i % 3, 50}); });
        if (i % 3 == 2 && attempt([&] { capture.engine->sync(); })) {
            outcome.promised.clear();
            for (const auto& [key, tensor] : capture.expected) outcome.promised.push_back(key);
        }
    }
    attempt([&] { capture.engine->close(); });
    EXPECT_GE(capture.engine->stats().acknowledged, outcome.promised.size());
    outcome.whole = whole_tensors(image_of(capture.folder()));
    outcome.expected = capture.expected;
    return outcome;
}

class EveryCall : public ::testing::TestWithParam<Fault> {};

TEST_P(EveryCall, IsSaidAndLosesNothingAcknowledged) {
    const Fault& fault = GetParam();
    int failed = 0;
    for (const bool at_close : {false, true}) {
        bool came = true;
        for (int at = 1; came; at += search_stride) {
            SCOPED_TRACE("call " + std::to_string(at) + (at_close ? ", close" : ", shard"));
            std::string folder;
            std::optional<FailAt> fail;
            const Outcome outcome = run(at_close, [&](const std::string& path) {
                folder = path;
                return fail.emplace(path, fault, at).faults();
            });
            came = fail->came();
            for (const auto& [key, bytes] : outcome.whole) {
                const auto expected = outcome.expected.find(key);
                ASSERT_NE(expected, outcome.expected.end()) << key << " is stored though its tap failed";
                EXPECT_TRUE(expected->second.bytes == bytes) << key << " is wrong";
            }
            for (const std::string& key : outcome.promised) {
                EXPECT_EQ(outcome.whole.count(key), 1U) << key << " was acknowledged";
            }
            if (outcome.error.empty()) {
                EXPECT_EQ(outcome.whole.size(), outcome.expected.size())
                    << "something is missing, and nobody said so";
                continue;
            }
            ++failed;
            const int number = fault.verdict.kind == Verdict::Kind::fail ? fault.verdict.error_number : EIO;
            EXPECT_NE(outcome.error.find("errno " + std::to_string(number)), std::string::npos)
                << outcome.error;
            EXPECT_NE(outcome.error.find(folder), std::string::npos) << outcome.error;
            EXPECT_TRUE(outcome.error.starts_with("cannot ")) << outcome.error;
        }
    }
    if (fault.name == "ShortWrites") {
        EXPECT_EQ(failed, 0);
    } else {
        EXPECT_GT(failed, 30 / search_stride);
    }
}

INSTANTIATE_TEST_SUITE_P(Faults, EveryCall, ::testing::ValuesIn(all_faults()),
                         [](const auto& of) { return of.param.name; });

}  // namespace
}  // namespace nsf
