#include "cuda/position_tables.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/waits.hpp"

namespace nsf::cuda {
namespace {

// The taps of one step mostly ask for the same few selections.
constexpr std::size_t most_compared = 4;

}  // namespace

PositionTables::PositionTables(const Driver& driver, CopyStream& copies, StagingRing& staging)
    : memory_(driver, capacity * sizeof(std::int64_t)), copies_(copies), staging_(staging) {}

bool PositionTables::overlaps(const Table& table, std::size_t begin, std::size_t count) const {
    return table.begin < begin + count && begin < table.begin + table.count;
}

Address PositionTables::put(const std::vector<std::int64_t>& offsets) {
    if (offsets.size() > capacity) {
        throw std::invalid_argument("a list of " + std::to_string(offsets.size()) +
                                    " positions is too long for a tensor on a device (" +
                                    std::to_string(capacity) +
                                    " at most): use a slice, or capture all positions");
    }
    for (std::size_t i = 0; i < std::min(most_compared, live_.size()); ++i) {
        Table& known = live_[live_.size() - 1 - i];
        if (known.count != offsets.size()) continue;
        if (!std::equal(offsets.begin(), offsets.end(), entries() + known.begin)) continue;
        // Its place in the queue stays: an older table behind a newer ticket is only freed later.
        current_ = &known;
        return address(known);
    }
    const std::size_t begin = next_ + offsets.size() <= capacity ? next_ : 0;
    // Tables are freed in the order in which they were put, and memory is given out in that order too.
    while (!live_.empty()) {
        const Table& oldest = live_.front();
        const bool in_the_way = std::any_of(live_.begin(), live_.end(), [&](const Table& each) {
            return overlaps(each, begin, offsets.size());
        });
        if (keeps(Wait::producer_for_table) && !copies_.arrived(oldest.ticket)) {
            if (!in_the_way) break;
            if (oldest.ticket == copies_.next_ticket()) staging_.copy_all();
            // Where that started no batch, nothing was written since the last one: no kernel reads the table.
            if (oldest.ticket < copies_.next_ticket()) {
                ++host_waits_;
                copies_.wait(oldest.ticket);
            }
        }
        live_.pop_front();
    }
    std::copy(offsets.begin(), offsets.end(), entries() + begin);
    live_.push_back({begin, offsets.size(), 0});
    current_ = &live_.back();
    next_ = begin + offsets.size();
    return address(*current_);
}

void PositionTables::read_now() { current_->ticket = copies_.next_ticket(); }

}  // namespace nsf::cuda
