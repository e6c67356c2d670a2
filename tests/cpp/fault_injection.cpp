#include "fault_injection.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdarg>
#include <utility>

namespace nsf::testing_support {
namespace {

Faults* in_force = nullptr;

template <typename Hook, typename... Arguments>
Verdict ask(Hook Faults::*hook, Arguments... arguments) {
    if (in_force == nullptr || !(in_force->*hook)) return Verdict::pass();
    return (in_force->*hook)(arguments...);
}

// Calls or fails as the verdict says.
template <typename Call>
auto carry_out(const Verdict& verdict, Call call) -> decltype(call()) {
    if (verdict.kind != Verdict::Kind::fail) return call();
    if (verdict.do_it_first) static_cast<void>(call());
    errno = verdict.error_number;
    return -1;
}

}  // namespace

InjectFaults::InjectFaults(Faults faults) { in_force = new Faults(std::move(faults)); }

InjectFaults::~InjectFaults() { delete std::exchange(in_force, nullptr); }

std::string path_of(int descriptor) {
    std::array<char, 4096> path{};
    const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
    const ssize_t size = ::readlink(link.c_str(), path.data(), path.size());
    return size < 0 ? std::string() : std::string(path.data(), static_cast<std::size_t>(size));
}

bool is_file(int descriptor, const std::string& suffix) {
    const std::string path = path_of(descriptor);
    return path.size() >= suffix.size() &&
           path.compare(path.size() - suffix.size(), suffix.size(), suffix) == 0;
}

extern "C" {

int __real_open(const char* path, int flags, ...);
ssize_t __real_pwrite(int descriptor, const void* data, std::size_t size, off_t offset);
int __real_fsync(int descriptor);
int __real_ftruncate(int descriptor, off_t size);
int __real_close(int descriptor);
int __real_rename(const char* from, const char* to);

int __wrap_open(const char* path, int flags, ...) {
    mode_t mode = 0;
    if ((flags & O_CREAT) != 0) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    return carry_out(ask(&Faults::open, path, flags), [&] { return __real_open(path, flags, mode); });
}

ssize_t __wrap_pwrite(int descriptor, const void* data, std::size_t size, off_t offset) {
    const Verdict verdict = ask(&Faults::pwrite, descriptor, size, offset);
    if (verdict.kind == Verdict::Kind::shorten) {
        if (verdict.at_most == 0) return 0;
        return __real_pwrite(descriptor, data, std::min(size, verdict.at_most), offset);
    }
    return carry_out(verdict, [&] { return __real_pwrite(descriptor, data, size, offset); });
}

int __wrap_fsync(int descriptor) {
    return carry_out(ask(&Faults::fsync, descriptor), [&] { return __real_fsync(descriptor); });
}

int __wrap_ftruncate(int descriptor, off_t size) {
    return carry_out(ask(&Faults::ftruncate, descriptor), [&] { return __real_ftruncate(descriptor, size); });
}

int __wrap_close(int descriptor) {
    return carry_out(ask(&Faults::close, descriptor), [&] { return __real_close(descriptor); });
}

int __wrap_rename(const char* from, const char* to) {
    return carry_out(ask(&Faults::rename, from, to), [&] { return __real_rename(from, to); });
}

}  // extern "C"

}  // namespace nsf::testing_support
