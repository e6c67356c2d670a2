// The short way of a small record into the ring. What it cannot do at once, submit() does.
#include <algorithm>
#include <mutex>
#include <thread>

#include "core/engine.hpp"

namespace nsf {

std::optional<RecordForm> Engine::form_of(std::uint32_t stream, DType computed, DType stored,
                                          const Shape& shape) {
    RecordForm form;
    form.cast = find_cast(computed, stored, options_.cast_rules, cpu_level());
    if (form.cast == nullptr) return std::nullopt;
    form.stream = stream;
    form.computed = computed;
    form.stored = stored;
    form.elements = 1;
    for (const std::int64_t size : shape) form.elements *= static_cast<std::uint64_t>(size);
    form.bytes = static_cast<std::size_t>(form.elements) * item_size(stored);
    check_process();
    const ProducerLock lock(*this);
    form.shape = &*shapes_.insert(shape).first;
    form.entry_bound = header_entry_bound(escaped_id_bytes_[stream], shape.size());
    return form;
}

const std::string* Engine::intern(const std::string& note) {
    check_process();
    const ProducerLock lock(*this);
    return intern_note(note);
}

bool Engine::try_submit(const RecordForm& form, const Origin& origin, const std::string* note,
                        const std::byte* data) {
    // The mutex may have been held at the fork, or by this thread, which must not try it then.
    if (forked() || holder_.load(std::memory_order_relaxed) == std::this_thread::get_id()) return false;
    const std::unique_lock lock(producer_mutex_, std::try_to_lock);
    if (!lock || closed_ || broken_ || worker_->failed()) return false;
    Lane* const to = lanes_[static_cast<std::size_t>(form.stored)].get();
    if (to == nullptr || to->current == nullptr) return false;
    Block& block = *to->current;
    // A record that fills the block makes it go to the writer: that is submit()'s business.
    if (block.used + form.bytes >= ring_.block_bytes() || block.segments.size() + 1 >= max_segments)
        return false;
    if (to->plan.would_open_shard(form.bytes, form.entry_bound)) return false;
    const std::uint64_t limit = options_.durability.bytes;
    if (limit > 0 && unsynced_ + form.bytes >= limit) return false;

    Segment& segment = block.segments.emplace_back();  // may throw, so it comes before what changes anything
    const Placement placement = to->plan.place(form.bytes, form.entry_bound);
    Record& record = segment.record;
    record.sequence = sequence_++;
    record.stream = form.stream;
    record.prompt = origin.prompt;
    record.step = origin.step;
    record.call = origin.call;
    record.shape = form.shape;
    record.note = note;
    record.offset = placement.offset;
    record.bytes = form.bytes;
    record.shard = placement.shard;
    record.dtype = form.stored;
    record.source = form.computed;
    segment.begin = block.used;
    segment.size = form.bytes;
    segment.last = true;
    form.cast(data, block.data + block.used, static_cast<std::size_t>(form.elements));
    block.used += form.bytes;
    unsynced_ += std::max<std::uint64_t>(form.bytes, 1);
    ++small_records_;
    return true;
}

std::uint64_t Engine::small_records() const {
    check_process();
    const ProducerLock lock(*this);
    return small_records_;
}

}  // namespace nsf
