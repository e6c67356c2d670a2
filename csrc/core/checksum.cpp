#include "core/checksum.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <nmmintrin.h>
#define NSF_CRC32C_SSE42 1
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define NSF_CRC32C_ARM 1
#endif

namespace nsf {
namespace {

using Table = std::array<std::uint32_t, 256>;

// One step of the reflected polynomial division for each byte value; slices[k] advances a byte over k further
// bytes.
constexpr std::array<Table, 8> make_slices(std::uint32_t polynomial) {
    std::array<Table, 8> slices{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1U) != 0 ? polynomial : 0U);
        slices[0][byte] = value;
    }
    for (std::size_t slice = 1; slice < 8; ++slice) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t previous = slices[slice - 1][byte];
            slices[slice][byte] = (previous >> 8) ^ slices[0][previous & 0xFFU];
        }
    }
    return slices;
}

constexpr std::uint32_t castagnoli = 0x82F63B78U;
constexpr std::uint32_t zlib_polynomial = 0xEDB88320U;
constexpr std::array<Table, 8> castagnoli_slices = make_slices(castagnoli);
constexpr std::array<Table, 8> zlib_slices = make_slices(zlib_polynomial);

// Slicing by eight; the byte order of the machine does not matter, since the bytes are taken one by one.
std::uint32_t sliced(const std::array<Table, 8>& slices, std::uint32_t crc, const unsigned char* bytes,
                     std::size_t size) noexcept {
    crc = ~crc;
    for (; size >= 8; size -= 8, bytes += 8) {
        const std::uint32_t low =
            crc ^ (static_cast<std::uint32_t>(bytes[0]) | static_cast<std::uint32_t>(bytes[1]) << 8 |
                   static_cast<std::uint32_t>(bytes[2]) << 16 | static_cast<std::uint32_t>(bytes[3]) << 24);
        crc = slices[7][low & 0xFFU] ^ slices[6][(low >> 8) & 0xFFU] ^ slices[5][(low >> 16) & 0xFFU] ^
              slices[4][low >> 24] ^ slices[3][bytes[4]] ^ slices[2][bytes[5]] ^ slices[1][bytes[6]] ^
              slices[0][bytes[7]];
    }
    for (; size > 0; --size, ++bytes) crc = (crc >> 8) ^ slices[0][(crc ^ *bytes) & 0xFFU];
    return ~crc;
}

#ifdef NSF_CRC32C_SSE42

// The instruction has a latency of three cycles and a throughput of one, so three independent streams run
// side by side. Their results are joined by advancing a checksum over the bytes that follow it: a linear map,
// kept as four tables for the one stream length in use.
constexpr std::size_t stream_bytes = 1024;

constexpr std::array<Table, 4> make_shift() {
    // Column i is the state 1 << i advanced over stream_bytes zero bytes.
    std::array<std::uint32_t, 32> column{};
    for (std::size_t bit = 0; bit < 32; ++bit) {
        std::uint32_t value = 1U << bit;
        for (std::size_t byte = 0; byte < stream_bytes; ++byte) {
            value = (value >> 8) ^ castagnoli_slices[0][value & 0xFFU];
        }
        column[bit] = value;
    }
    std::array<Table, 4> shift{};
    for (std::size_t part = 0; part < 4; ++part) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            std::uint32_t value = 0;
            for (std::size_t bit = 0; bit < 8; ++bit) {
                if ((byte >> bit & 1U) != 0) value ^= column[part * 8 + bit];
            }
            shift[part][byte] = value;
        }
    }
    return shift;
}

const std::array<Table, 4> shift_tables = make_shift();

std::uint32_t shift_stream(std::uint64_t crc) noexcept {
    return shift_tables[0][crc & 0xFFU] ^ shift_tables[1][(crc >> 8) & 0xFFU] ^
           shift_tables[2][(crc >> 16) & 0xFFU] ^ shift_tables[3][(crc >> 24) & 0xFFU];
}

std::uint64_t load(const unsigned char* bytes) noexcept {
    std::uint64_t word;
    std::memcpy(&word, bytes, sizeof word);
    return word;
}

__attribute__((target("sse4.2"))) std::uint32_t crc32c_sse42(std::uint32_t initial,
                                                             const unsigned char* bytes,
                                                             std::size_t size) noexcept {
    std::uint64_t crc = ~initial;
    while (size >= 3 * stream_bytes) {
        std::uint64_t second = 0;
        std::uint64_t third = 0;
        // A block comes from another core's cache or from memory, and three streams of one kilobyte are too short
        // for the processor to see ahead by itself.
        const unsigned char* const ahead = bytes + (size >= 6 * stream_bytes ? 3 * stream_bytes : 0);
        for (std::size_t line = 0; line < stream_bytes; line += 64) {
            __builtin_prefetch(ahead + line);
            __builtin_prefetch(ahead + stream_bytes + line);
            __builtin_prefetch(ahead + 2 * stream_bytes + line);
            for (std::size_t i = line; i < line + 64; i += 8) {
                crc = _mm_crc32_u64(crc, load(bytes + i));
                second = _mm_crc32_u64(second, load(bytes + stream_bytes + i));
                third = _mm_crc32_u64(third, load(bytes + 2 * stream_bytes + i));
            }
        }
        crc = shift_stream(crc) ^ second;
        crc = shift_stream(crc) ^ third;
        bytes += 3 * stream_bytes;
        size -= 3 * stream_bytes;
    }
    for (; size >= 8; size -= 8, bytes += 8) crc = _mm_crc32_u64(crc, load(bytes));
    std::uint32_t rest = static_cast<std::uint32_t>(crc);
    for (; size > 0; --size, ++bytes) rest = _mm_crc32_u8(rest, *bytes);
    return ~rest;
}

#endif

}  // namespace

std::uint32_t crc32c_portable(std::uint32_t crc, const void* data, std::size_t size) noexcept {
    return sliced(castagnoli_slices, crc, static_cast<const unsigned char*>(data), size);
}

std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t size) noexcept {
#if defined(NSF_CRC32C_SSE42)
    static const bool available = __builtin_cpu_supports("sse4.2") != 0;
    if (available) return crc32c_sse42(crc, static_cast<const unsigned char*>(data), size);
#elif defined(NSF_CRC32C_ARM)
    const auto* bytes = static_cast<const unsigned char*>(data);
    crc = ~crc;
    for (; size >= 8; size -= 8, bytes += 8) {
        std::uint64_t word;
        std::memcpy(&word, bytes, sizeof word);
        crc = __crc32cd(crc, word);
    }
    for (; size > 0; --size, ++bytes) crc = __crc32cb(crc, *bytes);
    return ~crc;
#endif
    return crc32c_portable(crc, data, size);
}

std::uint32_t crc32(std::uint32_t crc, const void* data, std::size_t size) noexcept {
    return sliced(zlib_slices, crc, static_cast<const unsigned char*>(data), size);
}

}  // namespace nsf
