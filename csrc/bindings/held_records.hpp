// The records of a capture that has ended as Python has them: without the engine, so that its ring can go.
#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/engine.hpp"
#include "core/record_table.hpp"
#include "core/sink.hpp"

namespace nsf {

// (front, part, input, output): see RecordedHook.
using GivenHook =
    std::tuple<std::string, std::string, std::optional<std::uint32_t>, std::optional<std::uint32_t>>;

struct HeldRecords {
    // See _core.pyi. Called without the GIL, but for what `published` is.
    HeldRecords(const Engine& engine, const std::vector<GivenHook>& given,
                std::map<std::uint32_t, std::uint32_t> indices,
                const std::optional<RecordTable::Published>& published);

    RecordTable table;
    std::vector<std::shared_ptr<Slab>> slabs;  // by Record::shard, of a capture in memory
};

}  // namespace nsf
