#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "core/checksum.hpp"

namespace nsf {
namespace {

// The polynomial division as it is defined, a bit at a time.
std::uint32_t naive(std::uint32_t polynomial, const unsigned char* bytes, std::size_t size) {
    std::uint32_t crc = 0xFFFFFFFFU;
    for (std::size_t i = 0; i < size; ++i) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; ++bit) crc = (crc & 1U) != 0 ? crc >> 1 ^ polynomial : crc >> 1;
    }
    return ~crc;
}

constexpr std::uint32_t castagnoli = 0x82F63B78U;
constexpr std::uint32_t zlib_polynomial = 0xEDB88320U;

std::vector<unsigned char> random_bytes(std::size_t size) {
    std::mt19937 random(7);
    std::vector<unsigned char> bytes(size);
    for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random());
    return bytes;
}

void expect_all_forms(const unsigned char* bytes, std::size_t size) {
    const std::uint32_t expected = naive(castagnoli, bytes, size);
    EXPECT_EQ(crc32c(0, bytes, size), expected) << size;
    EXPECT_EQ(crc32c_portable(0, bytes, size), expected) << size;
    EXPECT_EQ(crc32(0, bytes, size), naive(zlib_polynomial, bytes, size)) << size;
}

TEST(Checksum, KnownVectorsOfCrc32c) {  // RFC 3720, appendix B.4
    const auto check = [](const std::string& bytes, std::uint32_t expected) {
        EXPECT_EQ(crc32c(0, bytes.data(), bytes.size()), expected);
        EXPECT_EQ(crc32c_portable(0, bytes.data(), bytes.size()), expected);
    };
    check("123456789", 0xE3069283U);
    check(std::string(32, '\0'), 0x8A9136AAU);
    check(std::string(32, '\xFF'), 0x62A8AB43U);
    std::string ascending;
    for (char i = 0; i < 32; ++i) ascending += i;
    check(ascending, 0x46DD794EU);
    check(std::string(ascending.rbegin(), ascending.rend()), 0x113FDB5CU);
    const std::string iscsi_read(
        "\x01\xC0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x14\0\0\0\0\0\x04\0\0\0\0\x14\0\0\0\x18\x28\0\0\0\0\0\0\0\x02\0"
        "\0\0"
        "\0\0\0\0",
        48);
    check(iscsi_read, 0xD9963A56U);
}

TEST(Checksum, KnownVectorsOfCrc32) {
    const auto check = [](std::string_view text, std::uint32_t expected) {
        EXPECT_EQ(crc32(0, text.data(), text.size()), expected);
    };
    check("", 0U);
    check("a", 0xE8B7BE43U);
    check("123456789", 0xCBF43926U);
    check("The quick brown fox jumps over the lazy dog", 0x414FA339U);
}

TEST(Checksum, NothingIsTheStartingValue) {
    EXPECT_EQ(crc32c(0, nullptr, 0), 0U);
    EXPECT_EQ(crc32c_portable(0, nullptr, 0), 0U);
    EXPECT_EQ(crc32(0, nullptr, 0), 0U);
    EXPECT_EQ(crc32c(0x12345678U, nullptr, 0), 0x12345678U);
    EXPECT_EQ(crc32c_portable(0x12345678U, nullptr, 0), 0x12345678U);
}

TEST(Checksum, EveryShortLengthAtEveryAlignment) {
    const std::vector<unsigned char> bytes = random_bytes(128);
    for (std::size_t start = 0; start < 9; ++start) {
        for (std::size_t size = 0; size <= 100; ++size) expect_all_forms(bytes.data() + start, size);
    }
}

// The hardware form reads three streams of 1 KiB side by side from 3 KiB on.
TEST(Checksum, LengthsAroundTheThreeStreams) {
    const std::vector<unsigned char> bytes = random_bytes(13'000);
    for (const std::size_t whole : {1U, 2U, 4U}) {
        for (std::size_t near = 0; near < 20; ++near) {
            for (const std::size_t start : {0U, 1U, 3U, 7U}) {
                expect_all_forms(bytes.data() + start, whole * 3072 + near - 10);
            }
        }
    }
    expect_all_forms(bytes.data() + 5, 12'345);
}

TEST(Checksum, GoesOnWhereItLeftOff) {
    const std::vector<unsigned char> bytes = random_bytes(10'000);
    const std::uint32_t whole = crc32c(0, bytes.data(), bytes.size());
    const std::uint32_t whole32 = crc32(0, bytes.data(), bytes.size());
    for (const std::size_t split :
         {0U, 1U, 7U, 8U, 100U, 3071U, 3072U, 3073U, 4096U, 6144U, 9999U, 10'000U}) {
        const unsigned char* rest = bytes.data() + split;
        const std::size_t left = bytes.size() - split;
        EXPECT_EQ(crc32c(crc32c(0, bytes.data(), split), rest, left), whole) << split;
        EXPECT_EQ(crc32c_portable(crc32c(0, bytes.data(), split), rest, left), whole) << split;
        EXPECT_EQ(crc32c(crc32c_portable(0, bytes.data(), split), rest, left), whole) << split;
        EXPECT_EQ(crc32(crc32(0, bytes.data(), split), rest, left), whole32) << split;
    }
}

TEST(Checksum, SeesEveryBitOfALongRun) {
    std::vector<unsigned char> bytes(3 * 3072 + 11);
    const std::uint32_t zero = crc32c(0, bytes.data(), bytes.size());
    for (std::size_t at = 0; at < bytes.size(); at += 97) {
        bytes[at] = 0x10;
        EXPECT_NE(crc32c(0, bytes.data(), bytes.size()), zero) << at;
        bytes[at] = 0;
    }
}

}  // namespace
}  // namespace nsf
