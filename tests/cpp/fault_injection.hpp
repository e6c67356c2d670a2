// Makes the system calls that the engine writes with fail on demand (Linux: the linker's --wrap).
//
// A hook gets the arguments and decides; where it is empty, the call goes through. Hooks are called on the
// threads that make the calls, and on those of every thread of the test: they look at the arguments first.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <string>

namespace nsf::testing_support {

// What becomes of a call.
struct Verdict {
    enum class Kind { pass, fail, shorten };

    Kind kind = Kind::pass;
    int error_number = 0;      // fail: what errno is
    std::size_t at_most = 0;   // shorten: pwrite writes no more than this, and really nothing for 0
    bool do_it_first = false;  // fail: make the call, throw its result away

    static Verdict pass() { return {}; }
    static Verdict fail(int error_number) { return {Kind::fail, error_number, 0, false}; }
    static Verdict fail_after(int error_number) { return {Kind::fail, error_number, 0, true}; }
    static Verdict shorten(std::size_t at_most) { return {Kind::shorten, 0, at_most, false}; }
};

struct Faults {
    std::function<Verdict(const char* path, int flags)> open;
    std::function<Verdict(int descriptor, std::size_t size, off_t offset)> pwrite;
    std::function<Verdict(int descriptor)> fsync;
    std::function<Verdict(int descriptor)> ftruncate;
    std::function<Verdict(int descriptor)> close;
    std::function<Verdict(const char* from, const char* to)> rename;
};

// The hooks are in force while this object lives. One at a time; made before the engine whose thread they
// meet, and destroyed after it.
class InjectFaults {
  public:
    explicit InjectFaults(Faults faults);
    ~InjectFaults();
    InjectFaults(const InjectFaults&) = delete;
    InjectFaults& operator=(const InjectFaults&) = delete;
};

// The path behind a descriptor, as the kernel tells it.
std::string path_of(int descriptor);

// Whether the file's name ends so: hooks meet descriptors of shards, journals and folders alike.
bool is_file(int descriptor, const std::string& suffix);

}  // namespace nsf::testing_support
