#include "core/safetensors_shard.hpp"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "core/error.hpp"

namespace nsf {
namespace {

constexpr std::size_t integer_digits = 20;  // of the largest 64-bit number

struct FreeMemory {
    void operator()(std::byte* memory) const { std::free(memory); }
};
using AlignedMemory = std::unique_ptr<std::byte, FreeMemory>;

AlignedMemory allocate_aligned(std::size_t size) {
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(alignment, size));
    if (memory == nullptr) throw std::bad_alloc();
    return AlignedMemory(memory);
}

// Of a stream whose hook id is escaped.
void append_entry(std::string& header, const Record& record, const Stream& stream) {
    header += ",\"";
    append_key(header, stream, record);
    header += "\":{\"dtype\":\"";
    header += safetensors_name(record.dtype);
    header += "\",\"shape\":";
    append_shape(header, *record.shape);
    header += ",\"data_offsets\":[";
    append_number(header, record.offset);
    header += ',';
    append_number(header, record.offset + record.bytes);
    header += "]}";
}

}  // namespace

std::size_t header_entry_bound(std::size_t escaped_key_bytes, std::size_t rank) {
    constexpr std::size_t key_tail = 64;  // /p…/c…/step/input/indices/scale
    constexpr std::size_t fixed = 64;     // quotes, braces, field names, the dtype
    return escaped_key_bytes + key_tail + fixed + (rank + 2) * (integer_digits + 1);
}

SafetensorsShard::SafetensorsShard(const std::string& folder, DType dtype, std::uint32_t number,
                                   std::size_t reserve, bool direct)
    : name_(folder + "/" + shard_name(dtype, number)),
      dtype_(dtype),
      number_(number),
      reserve_(reserve),
      file_(name_ + ".partial", direct),
      journal_(name_ + ".journal", dtype, reserve) {
    // The reserve is written now, so that a full disk cannot take the room for the header away at the end.
    const AlignedMemory spaces = allocate_aligned(reserve_);
    std::memset(spaces.get(), ' ', reserve_);
    file_.write(spaces.get(), reserve_, 0);
}

void SafetensorsShard::write(const Block& block) {
    // A short tail is padded to the alignment of O_DIRECT; the next block of this shard begins with the same
    // tail, and publish() cuts what stands behind the last record.
    const std::size_t size = (block.used + alignment - 1) / alignment * alignment;
    std::memset(block.data + block.used, 0, size - block.used);
    file_.write(block.data, size, reserve_ + block.offset);
}

void SafetensorsShard::add(const Record& record, const Stream& stream) {
    records_.push_back(record);
    data_bytes_ = record.offset + record.bytes;
    journal_.add(record, stream);
}

void SafetensorsShard::sync() {
    if (unsynced() == 0) return;
    file_.sync();
    if (!is_named_) sync_folder(name_);
    is_named_ = true;
    // Only now: an entry that says so may reach the disk before anything else that is written with it.
    journal_.acknowledge(records_.size());
    synced_ = records_.size();
}

void SafetensorsShard::publish(const std::vector<Stream>& streams) {
    std::string header =
        "{\"__metadata__\":{\"format\":\"pt\",\"writer\":\"neuroscope-fast\",\"format_version\":\"1\"}";
    const std::vector<Stream> escaped = json_escape(streams);
    for (const Record& record : records_) append_entry(header, record, escaped[record.stream]);
    header += '}';
    if (header.size() + 8 > reserve_) {
        throw EngineError("the header of " + name_ + " outgrew its reserve; its journal is kept");
    }
    const AlignedMemory front = allocate_aligned(reserve_);
    std::memset(front.get(), ' ', reserve_);
    const std::uint64_t length = reserve_ - 8;
    for (std::size_t i = 0; i < 8; ++i) front.get()[i] = static_cast<std::byte>(length >> (8 * i) & 0xFFU);
    std::memcpy(front.get() + 8, header.data(), header.size());
    file_.write(front.get(), reserve_, 0);
    file_.truncate(reserve_ + data_bytes_);
    file_.sync();
    file_.close();
    // The journal stays until the metadata JSON stands: it alone knows positions, padding and source dtypes.
    journal_.acknowledge(records_.size());
    journal_.close();
    publish_file(name_ + ".partial", name_);
}

}  // namespace nsf
