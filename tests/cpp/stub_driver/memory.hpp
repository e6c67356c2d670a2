// The memory that a context can reach: allocations with guard zones, and page-locked host ranges.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace nsf::stub {

inline constexpr std::size_t guard_bytes = 256;

// Device memory: host memory between two guard zones. The address is a multiple of 256 and of nothing more.
class Allocation {
  public:
    explicit Allocation(std::size_t bytes);  // throws std::bad_alloc
    ~Allocation();
    Allocation(const Allocation&) = delete;
    Allocation& operator=(const Allocation&) = delete;

    std::uint64_t address() const { return reinterpret_cast<std::uint64_t>(begin_); }
    std::size_t bytes() const { return bytes_; }
    void fill(std::byte value);
    bool guards_are_whole() const;

  private:
    std::byte* block_;
    std::byte* begin_;
    std::size_t bytes_;
};

// A page-locked range of host memory.
struct Registration {
    std::size_t bytes = 0;
    unsigned flags = 0;
    void* context = nullptr;  // that it was registered in
};

class MemoryTable {
  public:
    void add(std::shared_ptr<Allocation> allocation);
    // The allocation that begins there, taken out of the table; nullptr if none does.
    std::shared_ptr<Allocation> take(std::uint64_t address);
    // The live allocation in which the range lies, or nullptr.
    std::shared_ptr<Allocation> find(std::uint64_t address, std::size_t bytes) const;
    // Whether the range and a live allocation have a byte in common.
    bool touches(std::uint64_t address, std::size_t bytes) const;

    // Freed memory keeps its content of freed_poison for a while, so that a late access finds it.
    void keep_for_a_while(std::shared_ptr<Allocation> freed);

    std::size_t allocated() const { return allocated_; }
    std::size_t count() const { return live_.size(); }
    const std::map<std::uint64_t, std::shared_ptr<Allocation>>& live() const { return live_; }
    void clear();

  private:
    std::map<std::uint64_t, std::shared_ptr<Allocation>> live_;
    std::size_t allocated_ = 0;
    std::deque<std::shared_ptr<Allocation>> freed_;
    std::size_t freed_bytes_ = 0;
};

// Page-locked ranges of the whole process.
class Registrations {
  public:
    enum class Lies { inside, outside, across };

    bool overlaps(std::uint64_t begin, std::size_t bytes) const;
    void add(std::uint64_t begin, Registration registration) { ranges_.emplace(begin, registration); }
    const Registration* at(std::uint64_t begin) const;
    void remove(std::uint64_t begin) { ranges_.erase(begin); }
    // Where the range lies with regard to the ranges that count in this context; `across` is one that is only in part
    // in a registered range, or in two.
    Lies where(std::uint64_t begin, std::size_t bytes, const void* context) const;
    // The range lies in one that is mapped into the device's address space for this context.
    bool mapped(std::uint64_t begin, std::size_t bytes, const void* context) const;
    const std::map<std::uint64_t, Registration>& all() const { return ranges_; }
    void clear() { ranges_.clear(); }

  private:
    const Registration* around(std::uint64_t begin, std::size_t bytes, const void* context) const;

    std::map<std::uint64_t, Registration> ranges_;
};

}  // namespace nsf::stub
