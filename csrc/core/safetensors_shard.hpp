// One open shard: a safetensors file whose header is written last.
//
// Contract: used by the writer thread alone. Bytes arrive in file order; add() names the records that have
// become whole. Until publish() the file is called NAME.partial and a journal stands beside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/block_ring.hpp"
#include "core/file_writer.hpp"
#include "core/journal.hpp"
#include "core/record.hpp"

namespace nsf {

// The most bytes that the entry of a record with this key can take in a header.
std::size_t header_entry_bound(std::size_t escaped_key_bytes, std::size_t rank);

// What a header holds before the first entry: the length field, the braces, `__metadata__`.
inline constexpr std::size_t header_base_bytes = 256;

class SafetensorsShard {
  public:
    // reserve: the data start, 8 + N, a multiple of `alignment`.
    SafetensorsShard(const std::string& folder, DType dtype, std::uint32_t number, std::size_t reserve,
                     bool direct);

    // Writes the bytes of a block. block.data has room up to the next multiple of `alignment`.
    void write(const Block& block);
    void add(const Record& record, const Stream& stream);
    // Makes the entries of the records added so far readable in the journal.
    void flush_journal() { journal_.flush(); }

    // Header, truncate, fsync, rename, fsync of the folder. Only whole records are kept. The journal is left
    // to whoever writes the metadata JSON.
    void publish(const std::vector<Stream>& streams);

    // Makes the records added so far durable, and says so in the journal.
    void sync();
    // How many are not known to be durable.
    std::size_t unsynced() const { return records_.size() - synced_; }

    std::uint32_t number() const { return number_; }
    std::uint64_t data_bytes() const { return data_bytes_; }

  private:
    std::string name_;  // with the folder, without ".partial"
    DType dtype_;
    std::uint32_t number_;
    std::size_t reserve_;
    FileWriter file_;
    Journal journal_;
    std::vector<Record> records_;
    std::uint64_t data_bytes_ = 0;  // of whole records
    std::size_t synced_ = 0;        // of records_: durable with the last sync()
    bool is_named_ = false;         // its names in the folder are durable
};

}  // namespace nsf
