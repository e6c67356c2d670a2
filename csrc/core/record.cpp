#include "core/record.hpp"

#include <cstdio>

namespace nsf {

std::string format_key(const Stream& stream, const Record& record) {
    std::string key = stream.hook_id;
    if (record.prompt != 0) key += "/p" + std::to_string(record.prompt);
    if (record.call != 0) key += "/c" + std::to_string(record.call);
    char step[16];
    std::snprintf(step, sizeof step, "/%06u", record.step);
    key += step;
    if (stream.is_input) key += "/input";
    if (stream.is_indices) key += "/indices";
    if (record.is_scale) key += "/scale";
    return key;
}

std::string shard_name(DType dtype, std::uint32_t number) {
    char digits[16];
    std::snprintf(digits, sizeof digits, "%05u", number);
    return "activations-" + std::string(name(dtype)) + "-" + digits + ".safetensors";
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

}  // namespace nsf
