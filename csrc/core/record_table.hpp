// The whole records of a capture that has ended, and the JSON that the files beside the shards hold of them.
//
// Contract
//   What a table was made from may go: shapes and notes are its own. It never changes, so that any thread may ask it.
//   Text is made when it is asked for, hook by hook: that of a disk run goes to its file and is not kept, that of a
//   memory run is mostly never needed. Keys and their order are those of the structs in records.py, which read it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/record.hpp"

namespace nsf {

// A hook, and the JSON that all of its records have in common.
struct RecordedHook {
    std::string front;  // {"hook_id":…,"layer_name":…,"component":…
    std::string part;   // ,"heads":…,"reduction":… or nothing: what of the component it is
    std::optional<std::uint32_t> input;  // the streams of its sides
    std::optional<std::uint32_t> output;
};

class RecordTable {
  public:
    // So many records of a hook that a report does not tell apart.
    struct Kind {
        const Shape* shape = nullptr;
        DType dtype = DType::u8;
        bool is_input = false;
        std::size_t count = 0;
    };
    using Published = std::function<bool(const std::string& shard)>;

    // indices: by a stream of weights that of the keys, or experts, which they are of. published: whether a shard can be
    // read; records in others are left to their journals. Null: nothing is in shards, the records are in memory.
    RecordTable(std::vector<Record> records, const std::vector<Stream>& streams,
                std::vector<RecordedHook> hooks, std::map<std::uint32_t, std::uint32_t> indices,
                const Published& published);
    RecordTable(const RecordTable&) = delete;  // its records point into it
    RecordTable& operator=(const RecordTable&) = delete;

    // Of a hook, by its number: how many records it has, their JSON in the order of capture with `,\n      ` between
    // them, and their kinds in the order in which each came first.
    std::size_t count(std::size_t hook) const { return of_hook(hook).size(); }
    std::string lines(std::size_t hook) const;
    std::vector<Kind> kinds(std::size_t hook) const;

    // {key: shard} and {shard: {key: CRC-32C in hex}}, in the order of capture; of records in memory empty.
    std::string weight_map() const;
    std::string checksums() const;
    const std::vector<std::string>& shards() const { return shards_; }
    std::uint64_t total_bytes() const { return total_bytes_; }

    // Null where there is none.
    const Record* find(const Origin& origin, bool is_scale) const;
    const std::vector<Record>& records() const { return records_; }

  private:
    using Shard = std::pair<DType, std::uint32_t>;

    std::size_t shard_number(const Record& record) const {
        return shard_numbers_.at({record.dtype, record.shard});
    }
    void leave_out_unpublished(const Published& published);
    void take_texts();
    std::vector<std::uint32_t> of_hook(std::size_t hook) const;
    const Record* scale_of(std::uint32_t number) const;
    const Record* indices_of(const Record& record) const;
    bool is_whole(std::uint32_t number) const;
    void append_line(std::string& text, const RecordedHook& hook, std::uint32_t number) const;
    void append_ref(std::string& text, const char* field, const Record& record) const;

    std::vector<Record> records_;        // in the order of capture, scales behind what they are of
    const std::vector<Stream> streams_;  // their ids as they stand in JSON
    const std::vector<RecordedHook> hooks_;
    const std::map<std::uint32_t, std::uint32_t> indices_;
    const bool on_disk_;
    std::deque<Shape> shapes_;
    std::deque<std::string> notes_;    // as fields of a record: ,"positions":…
    std::vector<std::string> shards_;  // that hold a record, in the order of their first
    std::map<Shard, std::size_t> shard_numbers_;
    std::vector<std::vector<std::uint32_t>>
        of_stream_;  // records by number, without scales, sorted by origin
    std::uint64_t total_bytes_ = 0;
};

}  // namespace nsf
