// What the records of one tap have in common while its tensors keep their dtype and shape.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/cast.hpp"
#include "core/record.hpp"

namespace nsf {

// Of contiguous tensors on the host, every position of which is kept, in one piece. Made by Engine::form_of().
struct RecordForm {
    std::uint32_t stream = 0;
    DType computed = DType::u8;
    DType stored = DType::u8;
    const Shape* shape = nullptr;  // the engine's own
    std::uint64_t elements = 0;
    std::size_t bytes = 0;        // as stored
    std::size_t entry_bound = 0;  // of the record's entry in a header
    CastFunction cast = nullptr;
};

}  // namespace nsf
