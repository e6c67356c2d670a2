// A fork at the worst moment: another thread stands inside submit(), and holds what it holds.
#include <gtest/gtest.h>

#include <string>
#include <thread>

#include "child_process.hpp"
#include "core/engine.hpp"
#include "engine_fixture.hpp"
#include "fault_injection.hpp"
#include "gate.hpp"

namespace nsf {
namespace {

using testing_support::Capture;
using testing_support::ChildChecks;
using testing_support::engine_error;
using testing_support::Faults;
using testing_support::Gate;
using testing_support::InjectFaults;
using testing_support::is_file;
using testing_support::Place;
using testing_support::run_in_child;
using testing_support::small_options;
using testing_support::Verdict;

TEST(EngineForkFaults, TheChildDoesNotWaitForAThreadThatItHasNot) {
    Gate gate;
    Faults hooks;
    hooks.pwrite = [&](int descriptor, std::size_t, off_t) {
        if (is_file(descriptor, ".partial")) gate.pass();
        return Verdict::pass();
    };
    const InjectFaults faults(hooks);
    Capture capture(Place::buffered, small_options(1));
    const testing_support::OwnedTensor tensor =
        testing_support::contiguous_tensor(capture.random, DType::u8, {100'000});
    const Kept kept = testing_support::keep_all(tensor.view);
    std::thread producer([&] { capture.submit(Origin{0, 0, 0, 0}, kept, DType::u8); });
    // The writer has the one block and waits; the producer is about to wait for it, or does, and holds the
    // producers' lock from before it handed the block over.
    gate.wait_for_visitor();
    const auto body = [&](ChildChecks& checks) {
        const std::string error = engine_error([&] {
            capture.engine->submit(Origin{0, 0, 1, 0}, kept, DType::u8);
        });
        checks.check(error.find("forked process") != std::string::npos, "submit said: " + error);
        capture.engine->close();
        capture.engine.reset();
    };
    EXPECT_EQ(run_in_child(body), "");
    gate.open();
    producer.join();
    capture.close_and_compare();
}

}  // namespace
}  // namespace nsf
