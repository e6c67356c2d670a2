#include "core/record.hpp"

#include <array>
#include <charconv>
#include <cstdio>

namespace nsf {

std::string format_key(const Stream& stream, const Record& record) {
    std::string key;
    append_key(key, stream, record);
    return key;
}

void append_key(std::string& text, const Stream& stream, const Record& record) {
    const auto part = [&](const char* front, std::uint32_t number) {
        if (number == 0) return;
        text += front;
        append_number(text, number);
    };
    text += stream.hook_id;
    part("/p", record.prompt);
    part("/c", record.call);
    text += '/';
    append_number(text, record.step, 6);
    if (stream.is_input) text += "/input";
    if (stream.is_indices) text += "/indices";
    if (record.is_scale) text += "/scale";
}

std::string shard_name(DType dtype, std::uint32_t number) {
    std::string text = "activations-";
    text += name(dtype);
    text += '-';
    append_number(text, number, 5);
    text += ".safetensors";
    return text;
}

void append_number(std::string& text, std::uint64_t number, std::size_t digits) {
    std::array<char, 20> buffer;  // of the largest
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), number).ptr;
    const auto length = static_cast<std::size_t>(end - buffer.data());
    if (length < digits) text.append(digits - length, '0');
    text.append(buffer.data(), length);
}

void append_shape(std::string& text, const Shape& shape) {
    text += '[';
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (i > 0) text += ',';
        append_number(text, static_cast<std::uint64_t>(shape[i]));
    }
    text += ']';
}

std::string json_escape(const std::string& text) {
    std::string escaped;
    escaped.reserve(text.size());
    for (const char character : text) {
        if (character == '"' || character == '\\') {
            escaped += '\\';
            escaped += character;
        } else if (static_cast<unsigned char>(character) < 0x20) {
            char code[8];
            std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(character));
            escaped += code;
        } else {
            escaped += character;
        }
    }
    return escaped;
}

std::vector<Stream> json_escape(const std::vector<Stream>& streams) {
    std::vector<Stream> escaped = streams;
    for (Stream& stream : escaped) stream.hook_id = json_escape(stream.hook_id);
    return escaped;
}

}  // namespace nsf
