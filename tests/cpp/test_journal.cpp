// The journal's bytes against docs/file_format.md: what is expected here is put together from that page.
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/journal.hpp"
#include "temp_folder.hpp"

namespace nsf {
namespace {

using testing_support::read_file;
using testing_support::TempFolder;

std::string number(std::uint64_t value, int bytes) {
    std::string text;
    for (int i = 0; i < bytes; ++i) text += static_cast<char>(value >> (8 * i) & 0xFFU);
    return text;
}

// zlib's CRC-32, a bit at a time.
std::uint32_t zlib_crc(const std::string& text) {
    std::uint32_t crc = 0xFFFFFFFFU;
    for (const char character : text) {
        crc ^= static_cast<unsigned char>(character);
        for (int bit = 0; bit < 8; ++bit) crc = (crc & 1U) != 0 ? crc >> 1 ^ 0xEDB88320U : crc >> 1;
    }
    return ~crc;
}

std::string header(std::uint32_t dtype, std::uint64_t data_start) {
    const std::string front =
        "NSFJRNL1" + number(1, 4) + number(dtype, 4) + number(data_start, 8) + number(0, 4);
    return front + number(zlib_crc(front), 4);
}

std::string entry(const std::string& payload) {
    return number(payload.size(), 4) + number(zlib_crc(payload), 4) + payload;
}

std::string stream_entry(std::uint32_t stream, bool is_input, const std::string& hook_id) {
    return entry(number(1, 1) + number(stream, 4) + number(is_input ? 1 : 0, 1) + hook_id);
}

std::string note_entry(const std::string& note) { return entry(number(2, 1) + note); }

std::string record_entry(const Record& record) {
    std::string payload =
        number(3, 1) + number(record.stream, 4) + number(record.prompt, 4) + number(record.step, 4) +
        number(record.call, 4) + number(record.is_scale ? 1 : 0, 1) +
        number(static_cast<std::uint64_t>(record.source), 1) + number(record.shape->size(), 2);
    for (const std::int64_t size : *record.shape) payload += number(static_cast<std::uint64_t>(size), 8);
    payload += number(record.offset, 8) + number(record.bytes, 8) + number(record.crc, 4);
    return entry(payload);
}

class JournalTest : public ::testing::Test {
  protected:
    // A record with a different number in every field.
    Record record(std::uint32_t stream, const Shape& shape, const std::string* note = nullptr) {
        Record made;
        made.stream = stream;
        made.prompt = 0x01020304U + next_;
        made.step = 0x11121314U + next_;
        made.call = 0x21222324U + next_;
        made.shape = &shape;
        made.note = note;
        made.offset = 0x3132333435363738U + next_;
        made.bytes = 0x4142434445464748U + next_;
        made.crc = 0xF1F2F3F4U + next_;
        made.source = DType::c64;
        ++next_;
        return made;
    }

    const TempFolder folder_;
    const std::string path_ = folder_ / "shard.safetensors.journal";
    const Shape scalar_;
    const Shape matrix_{7, 0x123456789AB};
    const Stream first_{"model.layers.0", false};
    const Stream second_{"\xC3\xBC \"quoted\"", true};

  private:
    std::uint32_t next_ = 0;
};

TEST_F(JournalTest, TheHeaderIsThereFromTheStart) {
    const Journal journal(path_, DType::bf16, 65'536);
    EXPECT_EQ(read_file(path_), header(3, 65'536));
    EXPECT_EQ(read_file(path_).size(), 32U);
}

// The dtype code is the position in the list of docs/file_format.md.
TEST_F(JournalTest, DtypeCodes) {
    const std::vector<std::string> listed = {
        "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32",
        "int16",   "int8",    "uint64",  "uint32",   "uint16",        "uint8",       "bool",  "complex64"};
    ASSERT_EQ(listed.size(), dtype_count);
    for (std::uint32_t code = 0; code < listed.size(); ++code) {
        const std::string path = folder_ / listed[code];
        const Journal journal(path, *dtype_from_name(listed[code]), 4096);
        EXPECT_EQ(read_file(path), header(code, 4096));
    }
}

TEST_F(JournalTest, ARecordIsPrecededByItsStreamOnce) {
    Journal journal(path_, DType::f32, 4096);
    const Record a = record(0, matrix_);
    const Record b = record(5, scalar_);  // stream numbers may skip
    const Record c = record(0, scalar_);
    const Record d = record(5, matrix_);
    journal.add(a, first_);
    journal.add(b, second_);
    journal.add(c, first_);
    journal.add(d, second_);
    journal.flush();
    EXPECT_EQ(read_file(path_), header(1, 4096) + stream_entry(0, false, first_.hook_id) + record_entry(a) +
                                    stream_entry(5, true, second_.hook_id) + record_entry(b) +
                                    record_entry(c) + record_entry(d));
}

TEST_F(JournalTest, ANoteHoldsUntilTheNext) {
    Journal journal(path_, DType::f32, 4096);
    const std::string one = R"({"positions":[1]})";
    const std::string two = R"({"real_tokens":[[0,2]]})";
    std::string expected = header(1, 4096) + stream_entry(0, false, first_.hook_id);
    const auto add = [&](const std::string* note, const std::string& written) {
        const Record each = record(0, scalar_, note);
        journal.add(each, first_);
        expected += written + record_entry(each);
    };
    add(nullptr, "");  // none is the beginning
    add(&one, note_entry(one));
    add(&one, "");
    add(&two, note_entry(two));
    add(nullptr, note_entry(""));
    add(nullptr, "");
    add(&one, note_entry(one));
    journal.flush();
    EXPECT_EQ(read_file(path_), expected);
}

TEST_F(JournalTest, AnAcknowledgementIsWrittenBehindWhatItSpeaksOf) {
    Journal journal(path_, DType::f32, 4096);
    const Record each = record(0, scalar_);
    journal.add(each, first_);
    journal.acknowledge(1);
    journal.acknowledge(0x0102030405060708);
    EXPECT_EQ(read_file(path_), header(1, 4096) + stream_entry(0, false, first_.hook_id) +
                                    record_entry(each) + entry(number(4, 1) + number(1, 8)) +
                                    entry(number(4, 1) + number(0x0102030405060708, 8)));
}

TEST_F(JournalTest, EveryJournalTellsStreamsAndNotesAnew) {
    const std::string note = "{}";
    for (const char* name : {"a", "b"}) {
        Journal journal(folder_ / name, DType::f32, 4096);
        const Record each = record(3, scalar_, &note);
        journal.add(each, first_);
        journal.close();  // what was not flushed is not written
        EXPECT_EQ(read_file(folder_ / name), header(1, 4096));
    }
    Journal journal(path_, DType::f32, 4096);
    const Record each = record(3, scalar_, &note);
    journal.add(each, first_);
    journal.flush();
    EXPECT_EQ(read_file(path_), header(1, 4096) + stream_entry(3, false, first_.hook_id) + note_entry(note) +
                                    record_entry(each));
}

TEST_F(JournalTest, ScalesAreMarkedAndKeepTheirSource) {
    Journal journal(path_, DType::f32, 4096);
    Record each = record(0, matrix_);
    each.is_scale = true;
    each.source = DType::f16;
    journal.add(each, first_);
    journal.flush();
    EXPECT_EQ(read_file(path_),
              header(1, 4096) + stream_entry(0, false, first_.hook_id) + record_entry(each));
}

// Entries speak of bytes that are in the shard: until flush() says so, none may be on the disk.
TEST_F(JournalTest, EntriesWaitForFlush) {
    Journal journal(path_, DType::f32, 4096);
    const Record a = record(0, matrix_);
    const Record b = record(0, matrix_);
    journal.add(a, first_);
    EXPECT_EQ(read_file(path_).size(), 32U);
    journal.flush();
    const std::string before = read_file(path_);
    journal.flush();
    EXPECT_EQ(read_file(path_), before);
    journal.add(b, first_);
    EXPECT_EQ(read_file(path_), before);
    journal.flush();
    journal.close();
    EXPECT_EQ(read_file(path_), before + record_entry(b));
}

TEST_F(JournalTest, ManyRecordsInManyFlushes) {
    Journal journal(path_, DType::u8, 8192);
    std::string expected = header(13, 8192) + stream_entry(0, false, first_.hook_id);
    for (int i = 0; i < 3'000; ++i) {
        const Record each = record(0, i % 2 == 0 ? matrix_ : scalar_);
        journal.add(each, first_);
        expected += record_entry(each);
        if (i % 7 == 0) journal.flush();
    }
    journal.flush();
    EXPECT_EQ(read_file(path_), expected);
}

TEST_F(JournalTest, NeverReplacesAJournal) {
    testing_support::write_file(path_, "precious");
    try {
        const Journal journal(path_, DType::f32, 4096);
        FAIL() << "replaced a journal";
    } catch (const EngineError& error) {
        EXPECT_EQ(error.error_number(), EEXIST);
        EXPECT_NE(std::string(error.what()).find(path_), std::string::npos) << error.what();
    }
    EXPECT_EQ(read_file(path_), "precious");
}

}  // namespace
}  // namespace nsf
