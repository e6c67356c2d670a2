// The floating-point mode in which the engine computes, whatever torch has set for the thread.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace nsf {

/// While it lives, the calling thread rounds to nearest, keeps subnormals and traps nothing. Code that
/// depends on it must be in a function that is not inlined beside it, or the compiler may move arithmetic out
/// of its reach.
class DefaultFloatMode {
  public:
    DefaultFloatMode(const DefaultFloatMode&) = delete;
    DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

#if defined(__x86_64__)
    DefaultFloatMode() noexcept : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~DefaultFloatMode() { _mm_setcsr(saved_); }

  private:
    unsigned saved_;
#elif defined(__aarch64__)
    DefaultFloatMode() noexcept {
        __asm__ volatile("mrs %0, fpcr" : "=r"(saved_) : : "memory");
        __asm__ volatile("msr fpcr, %0" : : "r"(std::uint64_t{0}) : "memory");
    }
    ~DefaultFloatMode() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_) : "memory"); }

  private:
    std::uint64_t saved_ = 0;
#else
    DefaultFloatMode() noexcept = default;
#endif
};

}  // namespace nsf
