// Whether a capture stored what the casts of the core give, byte by byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/cast.hpp"
#include "core/checksum.hpp"
#include "core/engine.hpp"
#include "job.hpp"

namespace nsf {

inline void expect(bool right, const char* what) {
    if (!right) throw std::runtime_error(what);
}

// One record as the casts of the core make it: its elements, and the scales of its rows.
struct Expected {
    explicit Expected(const Job& job, const std::byte* source)
        : elements(job.elements() * item_size(job.to)) {
        if (!job.quantizes()) {
            find_cast(job.from, job.to, CastRules{}, cpu_level())(source, elements.data(), job.elements());
            return;
        }
        const auto columns = static_cast<std::size_t>(job.columns);
        for (std::size_t row = 0; row < static_cast<std::size_t>(job.rows); ++row) {
            const std::byte* const from = source + row * columns * item_size(job.from);
            const float scale = row_scale(job.from, from, 1, columns, cpu_level());
            auto* const codes = reinterpret_cast<std::int8_t*>(elements.data()) + row * columns;
            quantize_row(job.from, from, 1, codes, columns, scale, cpu_level());
            const std::size_t at = scales.size();
            scales.resize(at + sizeof scale);
            std::memcpy(scales.data() + at, &scale, sizeof scale);
        }
    }

    std::vector<std::byte> elements;
    std::vector<std::byte> scales;
};

inline std::vector<std::byte> read_record(const Job& job, const Engine& engine, const Record& record) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(record.bytes));
    if (job.folder.empty()) {
        const std::shared_ptr<Slab> slab = engine.slab(record.shard);
        std::memcpy(bytes.data(), slab->data + record.offset, bytes.size());
        return bytes;
    }
    std::ifstream file(job.folder + "/" + shard_name(record.dtype, record.shard), std::ios::binary);
    std::uint64_t header = 0;
    file.read(reinterpret_cast<char*>(&header), sizeof header);
    file.seekg(static_cast<std::streamoff>(sizeof header + header + record.offset));
    file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    expect(file.good(), "a shard is shorter than its records");
    return bytes;
}

inline void check_records(const Job& job, const Engine& engine, const std::byte* source) {
    const Expected expected(job, source);
    for (const Record& record : engine.records()) {
        const std::vector<std::byte>& wanted = record.is_scale ? expected.scales : expected.elements;
        expect(read_record(job, engine, record) == wanted, "a record is not what the cast gives");
        expect(record.crc == crc32c(0, wanted.data(), wanted.size()), "a checksum is not that of the bytes");
    }
}

}  // namespace nsf
