// A capture engine with a sink of any kind, that remembers what it must have stored.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "captured.hpp"
#include "core/engine.hpp"
#include "core/error.hpp"

namespace nsf::testing_support {

enum class Place { direct, buffered, memory };

inline std::ostream& operator<<(std::ostream& stream, Place place) {
    return stream << (place == Place::direct ? "direct" : place == Place::buffered ? "buffered" : "memory");
}

inline std::string place_name(const ::testing::TestParamInfo<Place>& info) {
    return ::testing::PrintToString(info.param);
}

// Sizes as small as they can be: everything is full all the time.
inline EngineOptions small_options(std::size_t blocks = 4, std::size_t block_bytes = 4096) {
    EngineOptions options;
    options.ring_bytes = blocks * block_bytes;
    options.block_bytes = block_bytes;
    return options;
}

class Capture {
  public:
    Capture(Place place, EngineOptions options,
            std::vector<Stream> streams = {{"hook", false}, {"other", true}})
        : place_(place) {
        options.folder = place == Place::memory ? "" : folder_.path();
        options.direct_io = place == Place::direct;
        engine.emplace(std::move(options), std::move(streams));
    }

    Random random{std::uint64_t{99}};
    std::optional<Engine> engine;
    Tensors expected;

    const TempFolder& folder() const { return folder_; }

    // The next step of a stream.
    Origin next(std::uint32_t stream = 0) { return Origin{stream, 0, steps_++, 0}; }

    void submit(const Origin& origin, const Kept& kept, DType target) {
        engine->submit(origin, kept, target);
        expect_stored(expected, engine->streams()[origin.stream], origin, kept, target,
                      engine->options().cast_rules);
    }
    // A tensor of random contents, stored as it is or cast.
    void submit(DType dtype, const Shape& shape, std::optional<DType> target = std::nullopt,
                std::uint32_t stream = 0) {
        submit(next(stream), keep_all(contiguous_tensor(random, dtype, shape).view), target.value_or(dtype));
    }
    bool try_submit(DType dtype, const Shape& shape, std::optional<DType> target = std::nullopt) {
        const std::uint64_t before = engine->stats().drops;
        const OwnedTensor tensor = contiguous_tensor(random, dtype, shape);
        const Origin origin = next();
        engine->submit(origin, keep_all(tensor.view), target.value_or(dtype));
        if (engine->stats().drops > before) return false;
        expect_stored(expected, engine->streams()[0], origin, keep_all(tensor.view), target.value_or(dtype));
        return true;
    }

    void close_and_compare() {
        engine->close();
        expect_captured(*engine, expected);
        if (place_ != Place::memory) {
            expect_same(read_run(folder_), expected);
            for (const std::string& name : folder_.names()) {
                EXPECT_EQ(name.find(".partial"), std::string::npos) << name;
            }
        }
    }

  private:
    const Place place_;
    const TempFolder folder_;
    std::uint32_t steps_ = 0;
};

// What an action throws, as text; "" where it throws nothing.
template <typename Action>
std::string engine_error(Action action) {
    try {
        action();
    } catch (const EngineError& error) {
        return error.what();
    }
    return "";
}

}  // namespace nsf::testing_support
