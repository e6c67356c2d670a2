#include "core/record_table.hpp"

#include <algorithm>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

namespace nsf {
namespace {

constexpr const char* between_lines = ",\n      ";
constexpr std::size_t line_bytes = 320;  // of most records

std::tuple<std::uint32_t, std::uint32_t, std::uint32_t> place(const Record& record) {
    return {record.prompt, record.step, record.call};
}

bool is_quantised(const Record& record) { return record.dtype == DType::i8 && record.source != DType::i8; }

void append_field(std::string& text, const char* field, std::uint32_t number) {
    if (number == 0) return;  // the default
    text += field;
    append_number(text, number);
}

}  // namespace

RecordTable::RecordTable(std::vector<Record> records, const std::vector<Stream>& streams,
                         std::vector<RecordedHook> hooks, std::map<std::uint32_t, std::uint32_t> indices,
                         const Published& published)
    : records_(std::move(records)),
      streams_(json_escape(streams)),
      hooks_(std::move(hooks)),
      indices_(std::move(indices)),
      on_disk_(published != nullptr),
      of_stream_(streams.size()) {
    std::sort(records_.begin(), records_.end(), [](const Record& a, const Record& b) {
        return a.sequence != b.sequence ? a.sequence < b.sequence : a.is_scale < b.is_scale;
    });
    if (on_disk_) leave_out_unpublished(published);
    take_texts();
    for (std::uint32_t number = 0; number < records_.size(); ++number) {
        const Record& record = records_[number];
        total_bytes_ += record.bytes;
        if (!record.is_scale) of_stream_[record.stream].push_back(number);
    }
    // They mostly are; threads that ran the model side by side may have stored theirs in another order.
    const auto before = [&](std::uint32_t a, std::uint32_t b) {
        return place(records_[a]) < place(records_[b]);
    };
    for (auto& numbers : of_stream_) {
        if (!std::is_sorted(numbers.begin(), numbers.end(), before))
            std::sort(numbers.begin(), numbers.end(), before);
    }
}

void RecordTable::leave_out_unpublished(const Published& published) {
    std::set<Shard> unpublished;
    std::erase_if(records_, [&](const Record& record) {
        const Shard shard{record.dtype, record.shard};
        if (shard_numbers_.contains(shard)) return false;
        if (unpublished.contains(shard)) return true;
        std::string name = shard_name(record.dtype, record.shard);
        if (!published(name)) {
            unpublished.insert(shard);
            return true;
        }
        shard_numbers_.emplace(shard, shards_.size());
        shards_.push_back(std::move(name));
        return false;
    });
}

// Makes copies of the shapes and notes, which the engine keeps, and has the records point to these.
void RecordTable::take_texts() {
    std::unordered_map<const Shape*, const Shape*> shapes;
    std::unordered_map<const std::string*, const std::string*> notes;
    for (Record& record : records_) {
        const Shape*& shape = shapes[record.shape];
        if (shape == nullptr) shape = &shapes_.emplace_back(*record.shape);
        record.shape = shape;
        if (record.note == nullptr) continue;
        const std::string*& note = notes[record.note];
        if (note == nullptr) {
            std::string& fields = notes_.emplace_back(*record.note);
            fields.front() = ',';  // in place of the braces around them
            fields.pop_back();
            note = &fields;
        }
        record.note = note;
    }
}

const Record* RecordTable::find(const Origin& origin, bool is_scale) const {
    if (origin.stream >= of_stream_.size()) return nullptr;
    const std::vector<std::uint32_t>& numbers = of_stream_[origin.stream];
    const std::tuple wanted{origin.prompt, origin.step, origin.call};
    const auto found =
        std::lower_bound(numbers.begin(), numbers.end(), wanted,
                         [&](std::uint32_t number, const auto& to) { return place(records_[number]) < to; });
    if (found == numbers.end() || place(records_[*found]) != wanted) return nullptr;
    return is_scale ? scale_of(*found) : &records_[*found];
}

// Null where it has none, or they were not written: the engine failed between the two.
const Record* RecordTable::scale_of(std::uint32_t number) const {
    if (number + 1 == records_.size()) return nullptr;
    const Record& next = records_[number + 1];
    return next.is_scale && next.sequence == records_[number].sequence ? &next : nullptr;
}

const Record* RecordTable::indices_of(const Record& record) const {
    const auto stream = indices_.find(record.stream);
    if (stream == indices_.end()) return nullptr;
    return find({stream->second, record.prompt, record.step, record.call}, false);
}

// With all that belongs to it.
bool RecordTable::is_whole(std::uint32_t number) const {
    const Record& record = records_[number];
    if (is_quantised(record) && scale_of(number) == nullptr) return false;
    return !indices_.contains(record.stream) || indices_of(record) != nullptr;
}

std::vector<std::uint32_t> RecordTable::of_hook(std::size_t hook) const {
    std::vector<std::uint32_t> numbers;
    for (const std::optional<std::uint32_t>& side : {hooks_.at(hook).input, hooks_.at(hook).output}) {
        if (!side) continue;
        for (const std::uint32_t number : of_stream_.at(*side)) {
            if (is_whole(number)) numbers.push_back(number);
        }
    }
    std::sort(numbers.begin(), numbers.end());
    return numbers;
}

void RecordTable::append_ref(std::string& text, const char* field, const Record& record) const {
    text += field;
    text += "{\"file\":\"";
    text += shards_[shard_number(record)];
    text += "\",\"key\":\"";
    append_key(text, streams_[record.stream], record);
    text += "\"}";
}

// Fields are left out at their default.
void RecordTable::append_line(std::string& text, const RecordedHook& hook, std::uint32_t number) const {
    const Record& record = records_[number];
    text += hook.front;
    text += ",\"shape\":";
    append_shape(text, *record.shape);
    text += ",\"dtype\":\"";
    text += name(record.dtype);
    text += streams_[record.stream].is_input ? "\",\"is_input\":true" : "\",\"is_input\":false";
    append_field(text, ",\"step\":", record.step);
    append_field(text, ",\"prompt\":", record.prompt);
    append_field(text, ",\"call\":", record.call);
    if (record.note != nullptr) text += *record.note;
    text += hook.part;
    if (record.source != record.dtype) {
        text += ",\"source_dtype\":\"";
        text += name(record.source);
        text += '"';
    }
    if (on_disk_) {
        if (is_quantised(record)) append_ref(text, ",\"scale\":", *scale_of(number));
        if (const Record* indices = indices_of(record)) append_ref(text, ",\"indices\":", *indices);
        append_ref(text, ",\"data\":", record);
    }
    text += '}';
}

std::string RecordTable::lines(std::size_t hook) const {
    const std::vector<std::uint32_t> numbers = of_hook(hook);
    std::string text;
    text.reserve(numbers.size() * line_bytes);
    for (const std::uint32_t number : numbers) {
        if (!text.empty()) text += between_lines;
        append_line(text, hooks_[hook], number);
    }
    return text;
}

std::vector<RecordTable::Kind> RecordTable::kinds(std::size_t hook) const {
    std::vector<Kind> kinds;
    std::map<std::tuple<const Shape*, DType, bool>, std::size_t> known;
    for (const std::uint32_t number : of_hook(hook)) {
        const Record& record = records_[number];
        const bool is_input = streams_[record.stream].is_input;
        const auto [found, is_new] = known.try_emplace({record.shape, record.dtype, is_input}, kinds.size());
        if (is_new) kinds.push_back({record.shape, record.dtype, is_input, 0});
        ++kinds[found->second].count;
    }
    return kinds;
}

std::string RecordTable::weight_map() const {
    if (!on_disk_) return "{}";
    std::string text = "{";
    for (const Record& record : records_) {
        text += text.size() > 1 ? ",\"" : "\"";
        append_key(text, streams_[record.stream], record);
        text += "\":\"";
        text += shards_[shard_number(record)];
        text += '"';
    }
    return text += '}';
}

std::string RecordTable::checksums() const {
    if (!on_disk_) return "{}";
    constexpr const char* hex = "0123456789abcdef";
    std::vector<std::string> entries(shards_.size());
    for (const Record& record : records_) {
        std::string& text = entries[shard_number(record)];
        text += text.empty() ? "\"" : ",\"";
        append_key(text, streams_[record.stream], record);
        text += "\":\"";
        for (unsigned digit = 8; digit-- > 0;) text += hex[record.crc >> (4 * digit) & 0xFU];
        text += '"';
    }
    std::string text = "{";
    for (std::size_t i = 0; i < shards_.size(); ++i) {
        text += i > 0 ? ",\"" : "\"";
        text += shards_[i];
        text += "\":{";
        text += entries[i];
        text += '}';
    }
    return text += '}';
}

}  // namespace nsf
