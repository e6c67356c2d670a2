#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <tuple>

#include "bindings/computed_tap.hpp"
#include "bindings/held_records.hpp"
#include "bindings/register.hpp"
#include "bindings/session.hpp"
#include "bindings/tapped_call.hpp"
#include "core/error.hpp"

namespace nsf {
namespace {

using Released = py::call_guard<py::gil_scoped_release>;

template <typename Value>
Value choose(const std::string& what, const std::string& given,
             const std::vector<std::pair<const char*, Value>>& choices) {
    std::string names;
    for (const auto& [name, value] : choices) {
        if (given == name) return value;
        names += std::string(names.empty() ? "" : ", ") + name;
    }
    throw std::invalid_argument(what + " must be one of " + names + ", not '" + given + "'");
}

PositionSpec parse_positions(const py::object& positions) {
    PositionSpec spec;
    if (py::isinstance<py::str>(positions)) {
        spec.kind = choose<PositionSpec::Kind>(
            "positions", positions.cast<std::string>(),
            {{"all", PositionSpec::Kind::all}, {"last", PositionSpec::Kind::last}});
    } else if (py::isinstance<py::slice>(positions)) {
        spec.kind = PositionSpec::Kind::slice;
        spec.start = positions.attr("start").cast<std::optional<std::int64_t>>();
        spec.stop = positions.attr("stop").cast<std::optional<std::int64_t>>();
        spec.step = positions.attr("step").cast<std::optional<std::int64_t>>().value_or(1);
        if (spec.step == 0) throw std::invalid_argument("the step of a slice of positions cannot be 0");
    } else {
        spec.kind = PositionSpec::Kind::list;
        spec.list = positions.cast<std::vector<std::int64_t>>();
    }
    return spec;
}

SequenceKind parse_sequence(const std::string& text) {
    return choose<SequenceKind>("sequence", text,
                                {{"pass", SequenceKind::pass},
                                 {"logits", SequenceKind::logits},
                                 {"heads", SequenceKind::heads},
                                 {"cache", SequenceKind::cache},
                                 {"foreign", SequenceKind::foreign}});
}

TapRule make_rule(const Session& session, std::uint32_t stream, const std::optional<std::string>& dtype,
                  const py::object& positions, const std::string& phase, std::uint32_t every) {
    if (stream >= session.engine.streams().size()) throw std::invalid_argument("no such stream");
    if (every == 0) throw std::invalid_argument("every must be at least 1");
    TapRule rule;
    rule.stream = stream;
    if (dtype) rule.dtype = parse_dtype(*dtype);
    rule.positions = parse_positions(positions);
    rule.phase = choose<TapRule::Phase>("phase", phase,
                                        {{"both", TapRule::Phase::both},
                                         {"prefill", TapRule::Phase::prefill},
                                         {"decode", TapRule::Phase::decode}});
    rule.every = every;
    return rule;
}

// [(stream, dtype or None, positions, phase, every), …]
std::vector<TapRule> make_rules(const Session& session, const py::list& given) {
    std::vector<TapRule> rules;
    for (const py::handle rule : given) {
        const auto parts = rule.cast<py::tuple>();
        rules.push_back(make_rule(session, parts[0].cast<std::uint32_t>(),
                                  parts[1].cast<std::optional<std::string>>(), parts[2],
                                  parts[3].cast<std::string>(), parts[4].cast<std::uint32_t>()));
    }
    return rules;
}

std::shared_ptr<Session> make_session(const std::vector<std::tuple<std::string, bool, bool>>& streams,
                                      std::size_t taps, const std::optional<std::string>& folder,
                                      std::size_t ring_bytes, std::size_t block_bytes,
                                      std::uint64_t shard_bytes, bool sync_at_close, std::uint64_t sync_bytes,
                                      double sync_seconds, double patience, std::uint32_t first_prompt,
                                      const std::map<std::string, std::uint32_t>& first_shards, bool detaches,
                                      const std::string& overflow, bool direct_io, bool e4m3_saturates,
                                      bool e5m2_saturates, const std::string& tensor_access,
                                      std::size_t staging_bytes, double staging_share) {
    EngineOptions options;
    options.folder = folder.value_or("");
    if (folder && folder->empty()) throw std::invalid_argument("the folder of a capture has no name");
    options.ring_bytes = ring_bytes;
    options.block_bytes = block_bytes;
    options.shard_bytes = shard_bytes;
    options.direct_io = direct_io;
    options.durability = {sync_at_close, sync_bytes, sync_seconds};
    options.patience = patience;
    for (const auto& [dtype, number] : first_shards)
        options.first_shards[static_cast<std::size_t>(parse_dtype(dtype))] = number;
    options.overflow =
        choose<Overflow>("overflow", overflow,
                         {{"block", Overflow::block}, {"drop", Overflow::drop}, {"fail", Overflow::fail}});
    options.cast_rules = CastRules{e4m3_saturates, e5m2_saturates};
    const auto method = choose<TensorAccessMethod>("tensor_access", tensor_access,
                                                   {{"automatic", TensorAccessMethod::automatic},
                                                    {"dlpack", TensorAccessMethod::dlpack},
                                                    {"attributes", TensorAccessMethod::attributes}});
    std::vector<Stream> named;
    for (const auto& [hook_id, is_input, is_indices] : streams)
        named.push_back({hook_id, is_input, is_indices});
    auto session = std::make_shared<Session>(std::move(options), std::move(named), taps, first_prompt, method,
                                             cuda::CudaOptions{staging_bytes, staging_share});
    session->detaches = detaches;
    return session;
}

StepFacts make_facts(bool decode, std::int64_t offset, std::int64_t batch, std::int64_t length,
                     const py::bytes& mask, std::int64_t logits_kept, bool guessed) {
    StepFacts facts{decode, offset, batch, length, {}, logits_kept, guessed};
    const auto bytes = static_cast<std::string_view>(mask);
    if (!bytes.empty() && bytes.size() != static_cast<std::size_t>(batch * length)) {
        throw std::invalid_argument("the mask must have batch * length bytes");
    }
    facts.mask.assign(bytes.begin(), bytes.end());
    return facts;
}

// Its writer is in a call of the system that does not return: what it uses must outlive it.
void keep_for_ever(std::shared_ptr<Session> session) {
    static std::mutex mutex;
    static auto* const kept = new std::vector<std::shared_ptr<Session>>;
    const std::lock_guard lock(mutex);
    kept->push_back(std::move(session));
}

py::list dropped(const Session& session) {
    std::vector<DroppedRecord> all;
    {
        const py::gil_scoped_release released;
        all = session.engine.dropped();
    }
    py::list list;
    for (const DroppedRecord& d : all) list.append(py::make_tuple(d.stream, d.prompt, d.step, d.call));
    return list;
}

void open_device(Session& session, int device,
                 const std::vector<std::pair<std::string, std::string>>& casts) {
    std::vector<std::pair<DType, DType>> pairs;
    for (const auto& [from, to] : casts) pairs.emplace_back(parse_dtype(from), parse_dtype(to));
    const py::gil_scoped_release released;
    session.engine.open_device(device, pairs);
}

py::list devices(const Session& session) {
    std::vector<DeviceStats> all;
    {
        const py::gil_scoped_release released;
        all = session.engine.device_stats();
    }
    using namespace py::literals;
    py::list list;
    for (const DeviceStats& each : all) {
        list.append(py::dict("device"_a = "cuda:" + std::to_string(each.device), "name"_a = each.name,
                             "driver"_a = each.driver, "staging_bytes"_a = each.staging_bytes,
                             "peak_staging_bytes"_a = each.peak_staging_bytes,
                             "peak_slot_bytes"_a = each.peak_slot_bytes, "dtoh_bytes"_a = each.dtoh_bytes,
                             "dtoh_copies"_a = each.dtoh_copies, "dtoh_seconds"_a = each.dtoh_seconds,
                             "host_waits"_a = each.host_waits, "device_waits"_a = each.device_waits));
    }
    return list;
}

py::dict stats(const Session& session) {
    Stats s;
    {
        const py::gil_scoped_release released;
        s = session.engine.stats();
    }
    using namespace py::literals;
    return py::dict("records"_a = s.records, "taken"_a = s.taken, "acknowledged"_a = s.acknowledged,
                    "bytes_in"_a = s.bytes_in, "bytes_written"_a = s.bytes_written, "stalls"_a = s.stalls,
                    "stall_seconds"_a = s.stall_seconds, "drops"_a = s.drops,
                    "peak_ring_bytes"_a = s.peak_ring_bytes, "ring_bytes"_a = s.ring_bytes,
                    "pinned_bytes"_a = s.pinned_bytes, "tap_calls"_a = s.tap_calls,
                    "tap_seconds"_a = s.tap_seconds, "steps"_a = session.clock.steps());
}

}  // namespace

void register_session(py::module_& module) {
    using namespace py::literals;
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const EngineError& error) {
            PyErr_SetString(capture_error(), error.what());
        }
    });

    py::class_<Slab, std::shared_ptr<Slab>>(module, "Slab", py::buffer_protocol(),
                                            "Memory that holds whole records of a memory capture.")
        .def_buffer([](Slab& slab) {
            return py::buffer_info(reinterpret_cast<std::uint8_t*>(slab.data),
                                   static_cast<py::ssize_t>(slab.size));
        });

    py::class_<Session, std::shared_ptr<Session>>(module, "Session", "One capture: the engine and its taps.")
        .def(py::init(&make_session), "streams"_a, "taps"_a, py::kw_only(), "folder"_a, "ring_bytes"_a,
             "block_bytes"_a, "shard_bytes"_a, "sync_at_close"_a = false, "sync_bytes"_a = 0,
             "sync_seconds"_a = 0.0, "patience"_a = 0.0, "first_prompt"_a = 0,
             "first_shards"_a = std::map<std::string, std::uint32_t>{}, "detaches"_a = false, "overflow"_a,
             "direct_io"_a, "e4m3_saturates"_a, "e5m2_saturates"_a, "tensor_access"_a, "staging_bytes"_a,
             "staging_share"_a)
        .def("open_device", &open_device, "device"_a, "casts"_a)
        .def("devices", &devices)
        .def(
            "warnings", [](const Session& session) { return session.engine.warnings(); }, Released())
        .def(
            "tap",
            [](const std::shared_ptr<Session>& session, std::size_t index, const py::object& hooked,
               bool is_input, bool in_encoder, const std::string& sequence, const std::string& field,
               py::ssize_t argument, const std::string& description, const py::list& rules) {
                if (index >= session->fired.size()) throw std::invalid_argument("no such tap");
                TapPlace place{index, parse_sequence(sequence), in_encoder, description,
                               make_rules(*session, rules)};
                return make_tap({session,
                                 hooked.ptr(),
                                 is_input,
                                 field,
                                 argument,
                                 std::make_shared<const TapPlace>(std::move(place)),
                                 {}});
            },
            "index"_a, "module"_a, "is_input"_a, "in_encoder"_a, "sequence"_a, "field"_a, "argument"_a,
            "description"_a, "rules"_a)
        .def("tapped_call", &make_tapped_call, "module"_a, "before"_a, "after"_a)
        .def(
            "computed_tap",
            [](const std::shared_ptr<Session>& session, std::size_t index, const py::object& hooked,
               bool in_encoder, const std::string& sequence, const std::string& description,
               const py::list& rules) {
                if (index >= session->fired.size()) throw std::invalid_argument("no such tap");
                return std::make_shared<ComputedTap>(ComputedTap{
                    session,
                    hooked.ptr(),
                    {index, parse_sequence(sequence), in_encoder, description, make_rules(*session, rules)}});
            },
            "index"_a, "module"_a, "in_encoder"_a, "sequence"_a, "description"_a, "rules"_a)
        .def(
            "begin_step",
            [](Session& session, bool decode, std::int64_t offset, std::int64_t batch, std::int64_t length,
               const py::bytes& mask, std::int64_t logits_kept, bool guessed, bool continues_encoder) {
                return session.clock.begin(
                    make_facts(decode, offset, batch, length, mask, logits_kept, guessed), continues_encoder);
            },
            py::kw_only(), "decode"_a, "offset"_a, "batch"_a, "length"_a, "mask"_a, "logits_kept"_a,
            "guessed"_a, "continues_encoder"_a)
        .def(
            "begin_encoder",
            [](Session& session, std::int64_t batch, std::int64_t length, const py::bytes& mask) {
                session.clock.begin_encoder(make_facts(false, 0, batch, length, mask, 0, false));
            },
            py::kw_only(), "batch"_a, "length"_a, "mask"_a)
        .def("end_step",
             [](Session& session) {
                 if (!session.clock.end() || !session.engine.uses_devices()) return;
                 const py::gil_scoped_release released;
                 session.engine.end_step();
             })
        .def("next_prompt", [](Session& session) { session.clock.next_prompt(); })
        .def_property_readonly("prompt", [](const Session& session) { return session.clock.prompt(); })
        .def_property_readonly("uses_dlpack",
                               [](const Session& session) { return session.access.uses_dlpack(); })
        .def("detach", &Session::detach, "why"_a)
        .def_property_readonly("detached_by", [](const Session& session) { return session.detached_by; })
        .def(
            "sync", [](Session& session) { session.engine.sync(); }, Released())
        .def(
            "close",
            [](const std::shared_ptr<Session>& session) {
                session->closed.store(true, std::memory_order_relaxed);
                try {
                    session->engine.close();
                } catch (const EngineError&) {
                    if (session->engine.hung()) keep_for_ever(session);
                    throw;
                }
            },
            Released())
        .def_property_readonly("hung", [](const Session& session) { return session.engine.hung(); })
        .def_property_readonly("small_records",
                               [](const Session& session) {
                                   const py::gil_scoped_release released;
                                   return session.engine.small_records();
                               })
        .def(
            "records",
            [](const Session& session, const std::vector<GivenHook>& hooks,
               std::map<std::uint32_t, std::uint32_t> indices,
               const std::optional<RecordTable::Published>& published) {
                const py::gil_scoped_release released;
                return std::make_shared<HeldRecords>(session.engine, hooks, std::move(indices), published);
            },
            "hooks"_a, "indices"_a, "published"_a)
        .def("dropped", &dropped)
        .def("fired",
             [](const Session& session) {
                 return std::vector<std::uint64_t>(session.fired.begin(), session.fired.end());
             })
        .def("stats", &stats)
        .def("slab",
             [](const Session& session, std::uint32_t number) { return session.engine.slab(number); });
}

}  // namespace nsf
