// What one captured tensor is called and where its bytes are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.hpp"

namespace nsf {

using Shape = std::vector<std::int64_t>;

// The stored form of one place in the model: one hook side with one set of options. Hooks that ask for the
// same share it.
// The most axes of a tensor in a run; readers refuse more.
inline constexpr std::size_t max_rank = 64;

struct Stream {
    std::string hook_id;  // of the hook named first: the front of every key
    bool is_input = false;
    bool is_indices = false;  // whole numbers that belong to the hook's other records: which keys they are of
};

// Where a record comes from; with the stream it makes its name.
struct Origin {
    std::uint32_t stream = 0;
    std::uint32_t prompt = 0;
    std::uint32_t step = 0;
    std::uint32_t call = 0;
};

// shape and note point into tables that live as long as the engine and never move (interned, std::deque).
struct Record {
    std::uint64_t sequence = 0;  // order of capture over the whole run
    std::uint32_t stream = 0;
    std::uint32_t prompt = 0;
    std::uint32_t step = 0;
    std::uint32_t call = 0;
    const Shape* shape = nullptr;
    const std::string* note =
        nullptr;  // JSON: positions and real_tokens of this record; empty where all are stored and real
    std::uint64_t offset = 0;  // from the first tensor byte of the shard
    std::uint64_t bytes = 0;
    std::uint32_t shard = 0;   // the number of the shard within its dtype
    std::uint32_t crc = 0;     // CRC-32C of the stored bytes; set by the writer
    DType dtype = DType::u8;   // as stored
    DType source = DType::u8;  // as the model computed it
    bool is_scale = false;     // the row scales of the int8 record of the same name
};

// A record that found no room under the policy `drop`.
struct DroppedRecord {
    std::uint32_t stream = 0;
    std::uint32_t prompt = 0;
    std::uint32_t step = 0;
    std::uint32_t call = 0;
};

// {hook_id}[/p{prompt}][/c{call}]/{step:06d}[/input][/indices][/scale]
std::string format_key(const Stream& stream, const Record& record);
void append_key(std::string& text, const Stream& stream, const Record& record);

// activations-{dtype}-{number:05d}.safetensors
std::string shard_name(DType dtype, std::uint32_t number);

// With zeros in front, to so many digits.
void append_number(std::string& text, std::uint64_t number, std::size_t digits = 1);
// As in JSON: [1,7,64]
void append_shape(std::string& text, const Shape& shape);

// The characters of `text` as they stand between the quotes of a JSON string (input: UTF-8, left as it is).
std::string json_escape(const std::string& text);
// Whose keys are then as they stand between the quotes.
std::vector<Stream> json_escape(const std::vector<Stream>& streams);

}  // namespace nsf
