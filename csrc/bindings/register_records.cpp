#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <utility>

#include "bindings/held_records.hpp"
#include "bindings/register.hpp"

namespace py = pybind11;

namespace nsf {
namespace {

// Text that is made without the GIL.
template <typename Make>
py::bytes made(Make make) {
    std::string text;
    {
        const py::gil_scoped_release released;
        text = make();
    }
    return py::bytes(text);
}

py::list kinds(const HeldRecords& held, std::size_t hook) {
    std::vector<RecordTable::Kind> found;
    {
        const py::gil_scoped_release released;
        found = held.table.kinds(hook);
    }
    py::list list;
    for (const RecordTable::Kind& kind : found) {
        list.append(py::make_tuple(*kind.shape, name(kind.dtype), kind.is_input, kind.count));
    }
    return list;
}

// (slab, dtype, shape, offset), or None where there is no such record.
py::object find(const HeldRecords& held, std::uint32_t stream, std::uint32_t prompt, std::uint32_t step,
                std::uint32_t call, bool is_scale) {
    const Record* record = held.table.find({stream, prompt, step, call}, is_scale);
    if (record == nullptr) return py::none();
    return py::make_tuple(held.slabs.at(record->shard), name(record->dtype),
                          py::tuple(py::cast(*record->shape)), record->offset);
}

std::vector<RecordedHook> recorded(const std::vector<GivenHook>& given) {
    std::vector<RecordedHook> hooks;
    for (const auto& [front, part, input, output] : given) hooks.push_back({front, part, input, output});
    return hooks;
}

}  // namespace

HeldRecords::HeldRecords(const Engine& engine, const std::vector<GivenHook>& given,
                         std::map<std::uint32_t, std::uint32_t> indices,
                         const std::optional<RecordTable::Published>& published)
    : table(engine.records(), engine.streams(), recorded(given), std::move(indices),
            published.value_or(nullptr)) {
    if (published) return;
    std::uint32_t count = 0;
    for (const Record& record : table.records()) count = std::max(count, record.shard + 1);
    for (std::uint32_t number = 0; number < count; ++number) slabs.push_back(engine.slab(number));
}

void register_records(py::module_& module) {
    using namespace py::literals;
    py::class_<HeldRecords, std::shared_ptr<HeldRecords>>(module, "Records",
                                                          "The whole records of a closed session.")
        .def(
            "count", [](const HeldRecords& held, std::size_t hook) { return held.table.count(hook); },
            "hook"_a)
        .def(
            "lines",
            [](const HeldRecords& held, std::size_t hook) {
                return made([&] { return held.table.lines(hook); });
            },
            "hook"_a)
        .def("kinds", &kinds, "hook"_a)
        .def("weight_map",
             [](const HeldRecords& held) { return made([&] { return held.table.weight_map(); }); })
        .def("checksums",
             [](const HeldRecords& held) { return made([&] { return held.table.checksums(); }); })
        .def_property_readonly("shards", [](const HeldRecords& held) { return held.table.shards(); })
        .def_property_readonly("total_bytes",
                               [](const HeldRecords& held) { return held.table.total_bytes(); })
        .def("find", &find, "stream"_a, "prompt"_a, "step"_a, "call"_a, "is_scale"_a);
}

}  // namespace nsf
