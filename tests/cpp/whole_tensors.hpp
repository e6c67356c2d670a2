// Everything whole in the files of a folder, as a crash or a failure leaves them: the tensors of published shards, and of
// open ones those whose bytes have the checksums of their journal. Written from docs/file_format.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/checksum.hpp"
#include "core/record.hpp"
#include "shard_reader.hpp"
#include "temp_folder.hpp"

namespace nsf::testing_support {

// The bytes of every file, by name.
using Image = std::map<std::string, std::string>;
// The bytes of every tensor, by key.
using WholeTensors = std::map<std::string, std::string>;

inline Image image_of(const TempFolder& folder) {
    Image image;
    for (const std::string& name : folder.names()) image[name] = read_file(folder / name);
    return image;
}

class JournalReader {
  public:
    JournalReader(const std::string& journal, const std::string& partial)
        : journal_(journal), partial_(partial) {}

    void add_to(WholeTensors& found) {
        if (journal_.size() < 32 || crc32(0, journal_.data(), 28) != number(28, 4)) return;
        data_start_ = number(16, 8);
        std::size_t at = 32;
        while (at + 8 <= journal_.size()) {
            const std::uint64_t length = number(at, 4);
            if (length == 0 || length > journal_.size() - at - 8) return;
            if (crc32(0, journal_.data() + at + 8, length) != number(at + 4, 4)) return;
            entry(at + 8, length, found);
            at += 8 + length;
        }
    }

  private:
    std::uint64_t number(std::size_t at, std::size_t bytes) const {
        std::uint64_t value = 0;
        for (std::size_t i = 0; i < bytes; ++i)
            value |= static_cast<std::uint64_t>(static_cast<unsigned char>(journal_.at(at + i))) << (8 * i);
        return value;
    }

    void entry(std::size_t at, std::size_t length, WholeTensors& found) {
        if (journal_[at] == 1) {
            Stream stream{journal_.substr(at + 6, length - 6), (number(at + 5, 1) & 1) != 0};
            streams_[static_cast<std::uint32_t>(number(at + 1, 4))] = stream;
        } else if (journal_[at] == 3) {
            Record record;
            record.prompt = static_cast<std::uint32_t>(number(at + 5, 4));
            record.step = static_cast<std::uint32_t>(number(at + 9, 4));
            record.call = static_cast<std::uint32_t>(number(at + 13, 4));
            record.is_scale = number(at + 17, 1) != 0;
            const std::size_t behind_shape = at + 21 + 8 * static_cast<std::size_t>(number(at + 19, 2));
            const std::uint64_t begin = data_start_ + number(behind_shape, 8);
            const std::uint64_t size = number(behind_shape + 8, 8);
            if (begin + size > partial_.size()) return;
            const std::string bytes = partial_.substr(begin, size);
            if (crc32c(0, reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()) !=
                number(behind_shape + 16, 4))
                return;
            found[format_key(streams_.at(static_cast<std::uint32_t>(number(at + 1, 4))), record)] = bytes;
        }
    }

    const std::string& journal_;
    const std::string& partial_;
    std::uint64_t data_start_ = 0;
    std::map<std::uint32_t, Stream> streams_;
};

inline WholeTensors whole_tensors(const Image& image) {
    const TempFolder scratch;
    WholeTensors found;
    for (const auto& [name, bytes] : image) {
        if (name.ends_with(".safetensors")) {
            write_file(scratch / name, bytes);
            for (const auto& [key, tensor] : read_shard(scratch / name).tensors) found[key] = tensor.bytes;
        } else if (name.ends_with(".journal")) {
            const auto partial = image.find(name.substr(0, name.size() - 8) + ".partial");
            if (partial != image.end()) JournalReader(bytes, partial->second).add_to(found);
        }
    }
    return found;
}

}  // namespace nsf::testing_support
