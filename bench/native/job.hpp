// What nsf_store was asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/dtype.hpp"

namespace nsf {

struct Job {
    std::string way;
    DType from;
    DType to;
    std::int64_t rows;
    std::int64_t columns;
    std::uint64_t count;
    std::string folder;
    bool check = false;

    bool is_decode() const { return rows == 1; }
    bool quantizes() const { return to == DType::i8; }
    std::size_t elements() const { return static_cast<std::size_t>(rows * columns); }
    std::size_t scale_bytes() const {
        return quantizes() ? static_cast<std::size_t>(rows) * sizeof(float) : 0;
    }
    std::size_t stored_bytes() const { return elements() * item_size(to) + scale_bytes(); }
};

}  // namespace nsf
