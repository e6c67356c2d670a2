// The journal beside an open shard: one CRC-protected entry for each record, so that the shard can be read
// before it has a header. The layout is in docs/file_format.md; neuroscope_fast/journal.py reads it.
//
// Contract: used by the writer thread alone. add() only fills a buffer; flush() appends it to the file, and
// is called after the bytes that the entries speak of have been written to the shard.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/file_writer.hpp"
#include "core/record.hpp"

namespace nsf {

class Journal {
  public:
    Journal(std::string path, DType dtype, std::uint64_t data_start);

    void add(const Record& record, const Stream& stream);
    void flush();
    // Notes that the bytes of the first `records` records are durable, and makes the entries so too.
    void acknowledge(std::uint64_t records);
    // Its shard is whole, and all of it acknowledged.
    void close();

  private:
    void put(std::uint64_t value, std::size_t bytes);
    void begin_entry(std::uint8_t kind);
    void end_entry();

    FileWriter file_;
    std::string buffer_;
    std::size_t entry_ = 0;              // where the entry being written starts in buffer_
    std::vector<bool> known_streams_;    // those with a stream entry in this journal
    const std::string* note_ = nullptr;  // the note in force
};

}  // namespace nsf
