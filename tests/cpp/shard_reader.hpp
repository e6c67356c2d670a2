// Reads safetensors files as strictly as the safetensors library does, with a parser written for nothing but
// their headers.
#pragma once

#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/record.hpp"
#include "temp_folder.hpp"

namespace nsf::testing_support {

struct StoredTensor {
    std::string dtype;  // as safetensors calls it
    Shape shape;
    std::string bytes;

    bool operator==(const StoredTensor&) const = default;
};

struct ShardFile {
    std::uint64_t data_start = 0;  // 8 + N
    std::map<std::string, std::string> metadata;
    std::vector<std::pair<std::string, StoredTensor>> tensors;  // in the order of the header
};

// The JSON that a header may hold: objects, arrays of integers, strings.
class HeaderParser {
  public:
    explicit HeaderParser(std::string_view text) : text_(text) {}

    void expect(char wanted) {
        if (peek() != wanted) fail(std::string("expected '") + wanted + "'");
        ++at_;
    }
    bool accept(char wanted) {
        if (peek() != wanted) return false;
        ++at_;
        return true;
    }
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    std::size_t at() const { return at_; }

    std::string string() {
        expect('"');
        std::string value;
        while (!accept('"')) {
            if (at_ >= text_.size()) fail("the string does not end");
            if (static_cast<unsigned char>(peek()) < 0x20) fail("a bare control character");
            value += accept('\\') ? escape() : text_[at_++];
        }
        return value;
    }

    std::int64_t integer() {
        if (std::isdigit(static_cast<unsigned char>(peek())) == 0) fail("expected a number");
        std::int64_t value = 0;
        while (std::isdigit(static_cast<unsigned char>(peek())) != 0)
            value = value * 10 + (text_[at_++] - '0');
        return value;
    }

    std::vector<std::int64_t> integers() {
        std::vector<std::int64_t> values;
        expect('[');
        if (accept(']')) return values;
        do values.push_back(integer());
        while (accept(','));
        expect(']');
        return values;
    }

    // Calls visit(key) where each value begins.
    template <typename Visit>
    void object(Visit visit) {
        expect('{');
        if (accept('}')) return;
        do {
            const std::string key = string();
            expect(':');
            visit(key);
        } while (accept(','));
        expect('}');
    }

    [[noreturn]] void fail(const std::string& what) const {
        throw std::runtime_error("header, character " + std::to_string(at_) + ": " + what);
    }

  private:
    char escape() {
        const char code = text_[at_++];
        if (code == '"' || code == '\\' || code == '/') return code;
        if (code != 'u') fail("an escape that the engine never writes");
        const std::string digits(text_.substr(at_, 4));
        at_ += 4;
        return static_cast<char>(std::stoi(digits, nullptr, 16));
    }

    std::string_view text_;
    std::size_t at_ = 0;
};

inline std::size_t size_of_safetensors_dtype(const std::string& dtype) {
    for (std::size_t i = 0; i < dtype_count; ++i) {
        if (safetensors_name(static_cast<DType>(i)) == dtype) return item_size(static_cast<DType>(i));
    }
    throw std::runtime_error("no such dtype: " + dtype);
}

// Throws std::runtime_error where a reader of safetensors files would refuse this one, and where it is not
// laid out as docs/file_format.md says.
inline ShardFile read_shard(const std::string& path) {
    const std::string file = read_file(path);
    const auto check = [&](bool good, const std::string& what) {
        if (!good) throw std::runtime_error(path + ": " + what);
    };
    check(file.size() >= 8, "shorter than its length field");
    std::uint64_t length = 0;
    for (std::size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(file[i]);
    check(length <= file.size() - 8, "the header is longer than the file");
    ShardFile shard;
    shard.data_start = 8 + length;
    check(shard.data_start % 4096 == 0, "the data start is not aligned");
    const std::string_view header = std::string_view(file).substr(8, length);
    const std::string_view data = std::string_view(file).substr(shard.data_start);

    HeaderParser parser(header);
    std::int64_t end = 0;
    std::map<std::string, bool> seen;
    parser.object([&](const std::string& key) {
        check(seen.emplace(key, true).second, "the key " + key + " stands twice");
        if (key == "__metadata__") {
            parser.object([&](const std::string& name) { shard.metadata[name] = parser.string(); });
            return;
        }
        StoredTensor tensor;
        std::vector<std::int64_t> range;
        parser.object([&](const std::string& name) {
            if (name == "dtype") {
                tensor.dtype = parser.string();
            } else if (name == "shape") {
                tensor.shape = parser.integers();
            } else if (name == "data_offsets") {
                range = parser.integers();
            } else {
                parser.fail("an unknown field " + name);
            }
        });
        check(range.size() == 2 && range[0] == end && range[1] >= range[0], key + " leaves a hole");
        end = range[1];
        std::uint64_t bytes = size_of_safetensors_dtype(tensor.dtype);
        for (const std::int64_t size : tensor.shape) bytes *= static_cast<std::uint64_t>(size);
        check(bytes == static_cast<std::uint64_t>(range[1] - range[0]),
              key + " has not the size of its shape");
        check(static_cast<std::uint64_t>(end) <= data.size(), key + " ends behind the file");
        tensor.bytes = data.substr(static_cast<std::size_t>(range[0]), bytes);
        shard.tensors.emplace_back(key, std::move(tensor));
    });
    check(static_cast<std::uint64_t>(end) == data.size(), "bytes that belong to no tensor");
    for (std::size_t i = parser.at(); i < header.size(); ++i)
        check(header[i] == ' ', "padding that is no space");
    return shard;
}

}  // namespace nsf::testing_support
