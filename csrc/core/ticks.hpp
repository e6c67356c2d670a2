// A clock for intervals below a microsecond: the processor's own counter where it runs at a fixed rate, at a third of the
// cost of std::chrono's.
#pragma once

#include <chrono>
#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

namespace nsf {

class TickClock {
  public:
    TickClock() : start_ticks_(now()), start_(std::chrono::steady_clock::now()) {}

    static std::uint64_t now() {
#if defined(__x86_64__)
        if (fixed_rate()) return __rdtsc();
#endif
        return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
    }
    // From `start`, a reading of now(), until now; 0 where another core's counter is behind.
    static std::uint64_t since(std::uint64_t start) {
        const std::uint64_t end = now();
        return end > start ? end - start : 0;
    }

    // By the rate that has been seen since this object was made.
    double seconds(std::uint64_t ticks) const {
        const std::uint64_t passed = since(start_ticks_);
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
        return passed == 0 ? 0.0 : elapsed.count() / static_cast<double>(passed) * static_cast<double>(ticks);
    }

  private:
#if defined(__x86_64__)
    // The "invariant TSC" bit.
    static bool fixed_rate() {
        static const bool found = [] {
            unsigned a = 0;
            unsigned b = 0;
            unsigned c = 0;
            unsigned d = 0;
            return __get_cpuid(0x80000007, &a, &b, &c, &d) != 0 && (d & (1U << 8)) != 0;
        }();
        return found;
    }
#endif

    const std::uint64_t start_ticks_;
    const std::chrono::steady_clock::time_point start_;
};

}  // namespace nsf
