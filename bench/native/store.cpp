// Stores tensors through the engine as taps do, for bench/instructions.py to count the instructions of.
//
//   nsf_store WAY FROM TO ROWS COLUMNS COUNT [FOLDER] [check]
//
// COUNT times the same tensor [1, ROWS, COLUMNS] of dtype FROM, stored as TO, from 36 taps that take turns. WAY:
//   submit   Engine::submit(), what large tensors go through, and small ones that a tap sees for the first time
//   tap      Engine::try_submit() and, where that cannot be, submit(): what small tensors go through
//   memcpy   no engine: the bytes as stored, copied into memory that stands ready
//   write    no engine: as many bytes written to a file, from memory that stands ready
// FOLDER: of the shards, or of the file; without one ("-") the memory sink. ROWS of 1 is a decode, each pass with a note
// of its own; more are the prefills of many prompts. `check` compares what is stored with the casts of the core, byte
// by byte. Prints one line of JSON.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "check_records.hpp"
#include "core/cast.hpp"
#include "core/engine.hpp"
#include "core/step_clock.hpp"
#include "core/tap_rule.hpp"
#include "job.hpp"

namespace {

using namespace nsf;

constexpr std::size_t tap_count = 36;
constexpr std::size_t block_bytes = std::size_t{4} << 20;
constexpr std::int64_t cached_tokens = 16;  // before the first step of a decode

// Memory as the ring's: aligned for O_DIRECT.
struct Freed {
    void operator()(std::byte* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<std::byte, Freed>;

Memory allocate(std::size_t bytes) {
    const std::size_t whole = (bytes + alignment - 1) / alignment * alignment;
    Memory memory(static_cast<std::byte*>(std::aligned_alloc(alignment, whole)));
    if (!memory) throw std::bad_alloc();
    std::memset(memory.get(), 1, whole);
    return memory;
}

// Normal numbers; float32, or cast from it.
Memory make_source(const Job& job) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    Memory floats = allocate(job.elements() * sizeof(float));
    for (std::size_t i = 0; i < job.elements(); ++i) {
        const float value = normal(random);
        std::memcpy(floats.get() + i * sizeof value, &value, sizeof value);
    }
    if (job.from == DType::f32) return floats;
    Memory cast = allocate(job.elements() * item_size(job.from));
    find_cast(DType::f32, job.from, CastRules{}, cpu_level())(floats.get(), cast.get(), job.elements());
    return cast;
}

// The taps of one model: what bindings/tap.cpp does with a tensor of the host, but for Python's part of it.
class Taps {
  public:
    Taps(Engine& engine, const Job& job)
        : engine_(engine),
          tries_(job.way == "tap"),
          places_(tap_count),
          forms_(tap_count),
          clock_(tap_count) {
        for (std::size_t i = 0; i < tap_count; ++i) {
            places_[i].index = i;
            TapRule& rule = places_[i].rules.emplace_back();
            rule.stream = static_cast<std::uint32_t>(i);
            rule.dtype = job.to;
        }
    }

    StepClock& clock() { return clock_; }

    void fire(std::size_t number, const TensorView& view) {
        const std::uint64_t start = TickClock::now();
        const TapPlace& place = places_[number];
        Step& step = clock_.fire(number);
        if (tries_ && store_known(place, step, view, start)) return;
        const auto view_of = [&](const TapRule&) { return view; };
        apply_rules(place, step, view_of, [&](const TapRule& rule, const Origin& origin, const Kept& kept) {
            engine_.submit(origin, kept, rule.stored_as(view.dtype));
            if (tries_) learn(place, step, view, kept.note);
        });
        engine_.count_tap(TickClock::since(start), view.elements() * item_size(view.dtype));
    }

  private:
    bool store_known(const TapPlace& place, Step& step, const TensorView& view, std::uint64_t start) {
        const std::optional<RecordForm>& form = forms_[place.index];
        if (!form) return false;
        const StepFacts& facts = place.facts_of(step);
        std::optional<const std::string*> note = nullptr;
        if (!needs_no_note(facts, place.sequence)) {
            note = step.notes.find({facts, place.sequence, view.shape.data(), view.shape.size()});
            if (!note) return false;
        }
        const Origin origin{form->stream, step.prompt, step.number, step.calls[place.index] - 1};
        if (!engine_.try_submit(*form, origin, *note, view.data)) return false;
        engine_.count_tap(TickClock::since(start), form->elements * item_size(form->computed));
        return true;
    }

    void learn(const TapPlace& place, Step& step, const TensorView& view, const std::string& note) {
        const TapRule& rule = place.rules[0];
        std::optional<RecordForm>& form = forms_[place.index];
        if (!form) form = engine_.form_of(rule.stream, view.dtype, rule.stored_as(view.dtype), view.shape);
        const StepFacts& facts = place.facts_of(step);
        if (needs_no_note(facts, place.sequence)) return;
        const NoteKey key(facts, place.sequence, view.shape.data(), view.shape.size());
        if (!step.notes.find(key)) step.notes.add(key, engine_.intern(note));
    }

    Engine& engine_;
    const bool tries_;
    std::vector<TapPlace> places_;
    std::vector<std::optional<RecordForm>> forms_;
    StepClock clock_;
};

std::uint64_t store(const Job& job) {
    const Memory source = make_source(job);
    TensorView view;
    view.data = source.get();
    view.dtype = job.from;
    view.shape = {1, job.rows, job.columns};
    view.strides = {job.rows * job.columns, job.columns, 1};

    std::vector<Stream> streams(tap_count);
    for (std::size_t i = 0; i < tap_count; ++i) {
        streams[i].hook_id = "model.layers." + std::to_string(i) + "_residual";
    }
    EngineOptions options;
    options.folder = job.folder;
    Engine engine(options, streams);
    Taps taps(engine, job);
    StepFacts facts;
    facts.batch = 1;
    facts.length = job.rows;
    facts.decode = job.is_decode();
    facts.offset = job.is_decode() ? cached_tokens : 0;
    for (std::uint64_t done = 0; done < job.count;) {
        if (!job.is_decode()) taps.clock().next_prompt();
        taps.clock().begin(facts);
        for (std::size_t tap = 0; tap < tap_count && done < job.count; ++tap, ++done) taps.fire(tap, view);
        taps.clock().end();
        if (job.is_decode()) ++facts.offset;
    }
    engine.close();
    expect(engine.stats().records == job.count * (job.quantizes() ? 2 : 1), "not every record was stored");
    expect(engine.stats().bytes_written == job.count * job.stored_bytes(), "not every byte was stored");
    if (job.check) check_records(job, engine, source.get());
    return engine.small_records();
}

// The compiler may not leave out what only writes memory.
void keep(const std::byte* memory) { asm volatile("" : : "r"(memory) : "memory"); }

void copy(const Job& job) {
    const std::size_t bytes = job.stored_bytes();
    const Memory source = allocate(bytes);
    const Memory target = allocate(std::max(block_bytes, bytes));
    std::size_t at = 0;
    for (std::uint64_t i = 0; i < job.count; ++i) {
        if (at + bytes > block_bytes) at = 0;
        std::memcpy(target.get() + at, source.get(), bytes);
        keep(target.get());
        at += bytes;
    }
}

void write(const Job& job) {
    const Memory block = allocate(block_bytes);
    const std::string path = job.folder + "/plain";
    const int flags = O_WRONLY | O_CREAT | O_TRUNC;
    int file = -1;
#ifdef O_DIRECT
    file = open(path.c_str(), flags | O_DIRECT, 0666);
#endif
    if (file < 0) file = open(path.c_str(), flags, 0666);
    expect(file >= 0, "the file cannot be opened");
    std::uint64_t left = job.count * job.stored_bytes();
    for (std::uint64_t at = 0; left > 0;) {
        const auto piece = static_cast<std::size_t>(std::min<std::uint64_t>(left, block_bytes));
        const std::size_t whole = (piece + alignment - 1) / alignment * alignment;  // O_DIRECT takes no less
        expect(pwrite(file, block.get(), whole, static_cast<off_t>(at)) == static_cast<ssize_t>(whole),
               "a block cannot be written");
        at += piece;
        left -= piece;
    }
    const bool synced = fsync(file) == 0;
    expect(close(file) == 0 && synced, "the file cannot be made durable");
}

DType dtype_of(std::string_view text) {
    const std::optional<DType> found = dtype_from_name(text);
    if (!found) throw std::invalid_argument("there is no dtype " + std::string(text));
    return *found;
}

int run(const std::vector<std::string>& arguments) {
    if (arguments.size() < 6 || arguments.size() > 8) {
        throw std::invalid_argument("usage: nsf_store WAY FROM TO ROWS COLUMNS COUNT [FOLDER] [check]");
    }
    Job job{arguments[0],
            dtype_of(arguments[1]),
            dtype_of(arguments[2]),
            std::stoll(arguments[3]),
            std::stoll(arguments[4]),
            std::stoull(arguments[5]),
            arguments.size() > 6 && arguments[6] != "-" ? arguments[6] : "",
            arguments.size() > 7 && arguments[7] == "check"};
    std::uint64_t short_way = 0;
    if (job.way == "submit" || job.way == "tap") {
        short_way = store(job);
    } else if (job.way == "memcpy") {
        copy(job);
    } else if (job.way == "write") {
        write(job);
    } else {
        throw std::invalid_argument("there is no way " + job.way);
    }
    std::printf("{\"cpu_level\": \"%s\", \"stored_bytes\": %llu, \"short_way\": %llu}\n",
                std::string(name(cpu_level())).c_str(),
                static_cast<unsigned long long>(job.count * job.stored_bytes()),
                static_cast<unsigned long long>(short_way));
    return 0;
}

}  // namespace

int main(int count, char** values) {
    try {
        return run(std::vector<std::string>(values + 1, values + count));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "nsf_store: %s\n", error.what());
        return 1;
    }
}
