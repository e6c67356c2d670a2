// CRC-32C (Castagnoli) for the bytes of records, CRC-32 (zlib's polynomial) for journal entries, which a
// reader without this library has to check as well.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nsf {

// Continues `crc` (0 at the start) over `size` bytes: crc32c(crc32c(0, a), b) is the checksum of a followed
// by b.
std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t size) noexcept;

// The table-driven form that crc32c falls back to where the processor has no instruction for it.
std::uint32_t crc32c_portable(std::uint32_t crc, const void* data, std::size_t size) noexcept;

std::uint32_t crc32(std::uint32_t crc, const void* data, std::size_t size) noexcept;

}  // namespace nsf
