// Tests that let each call of a scenario fail in turn try every one of them; under a sanitizer, where a scenario takes
// five to ten times as long, every few.
#pragma once

namespace nsf::testing_support {

#if defined(__SANITIZE_THREAD__)
inline constexpr int search_stride = 7;
#elif defined(__SANITIZE_ADDRESS__)
inline constexpr int search_stride = 5;
#else
inline constexpr int search_stride = 1;
#endif

}  // namespace nsf::testing_support
