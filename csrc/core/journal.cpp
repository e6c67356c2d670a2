#include "core/journal.hpp"

#include <utility>

#include "core/checksum.hpp"

namespace nsf {
namespace {

constexpr std::uint32_t format_version = 1;
constexpr std::size_t prefix_bytes = 8;  // payload length and CRC

enum Kind : std::uint8_t { stream_entry = 1, note_entry = 2, record_entry = 3, acknowledgement = 4 };

}  // namespace

Journal::Journal(std::string path, DType dtype, std::uint64_t data_start) : file_(std::move(path), false) {
    buffer_ += "NSFJRNL1";
    put(format_version, 4);
    put(static_cast<std::uint64_t>(dtype), 4);
    put(data_start, 8);
    put(0, 4);
    put(crc32(0, buffer_.data(), buffer_.size()), 4);
    flush();
}

void Journal::put(std::uint64_t value, std::size_t bytes) {
    char little_endian[8];
    for (std::size_t i = 0; i < sizeof little_endian; ++i) {
        little_endian[i] = static_cast<char>(value >> (8 * i) & 0xFFU);  // compiles to one store
    }
    buffer_.append(little_endian, bytes);
}

void Journal::begin_entry(std::uint8_t kind) {
    entry_ = buffer_.size();
    buffer_.resize(entry_ + prefix_bytes);  // filled in by end_entry()
    put(kind, 1);
}

void Journal::end_entry() {
    const std::size_t payload = entry_ + prefix_bytes;
    const std::size_t length = buffer_.size() - payload;
    const std::uint32_t crc = crc32(0, buffer_.data() + payload, length);
    for (std::size_t i = 0; i < 4; ++i) {
        buffer_[entry_ + i] = static_cast<char>(length >> (8 * i) & 0xFFU);
        buffer_[entry_ + 4 + i] = static_cast<char>(crc >> (8 * i) & 0xFFU);
    }
}

void Journal::add(const Record& record, const Stream& stream) {
    if (known_streams_.size() <= record.stream) known_streams_.resize(record.stream + 1);
    if (!known_streams_[record.stream]) {
        known_streams_[record.stream] = true;
        begin_entry(stream_entry);
        put(record.stream, 4);
        put((stream.is_input ? 1U : 0U) | (stream.is_indices ? 2U : 0U), 1);
        buffer_ += stream.hook_id;
        end_entry();
    }
    if (record.note != note_) {
        note_ = record.note;
        begin_entry(note_entry);
        if (note_ != nullptr) buffer_ += *note_;
        end_entry();
    }
    begin_entry(record_entry);
    put(record.stream, 4);
    put(record.prompt, 4);
    put(record.step, 4);
    put(record.call, 4);
    put(record.is_scale ? 1 : 0, 1);
    put(static_cast<std::uint64_t>(record.source), 1);
    put(record.shape->size(), 2);
    for (const std::int64_t size : *record.shape) put(static_cast<std::uint64_t>(size), 8);
    put(record.offset, 8);
    put(record.bytes, 8);
    put(record.crc, 4);
    end_entry();
}

void Journal::flush() {
    file_.append(reinterpret_cast<const std::byte*>(buffer_.data()), buffer_.size());
    buffer_.clear();
}

void Journal::acknowledge(std::uint64_t records) {
    begin_entry(acknowledgement);
    put(records, 8);
    end_entry();
    flush();
    file_.sync();
}

void Journal::close() { file_.close(); }

}  // namespace nsf
