#include "memory.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "cuda_abi.hpp"
#include "stub_control.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define NSF_STUB_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NSF_STUB_ASAN 1
#endif
#endif
#ifdef NSF_STUB_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace nsf::stub {
namespace {

// Under AddressSanitizer a kernel that leaves its array is caught in the act, else by the guard's content.
void close_off([[maybe_unused]] std::byte* begin, [[maybe_unused]] std::size_t bytes) {
#ifdef NSF_STUB_ASAN
    __asan_poison_memory_region(begin, bytes);
#endif
}
void open_up([[maybe_unused]] std::byte* begin, [[maybe_unused]] std::size_t bytes) {
#ifdef NSF_STUB_ASAN
    __asan_unpoison_memory_region(begin, bytes);
#endif
}

// How much freed memory is kept, of each context.
constexpr std::size_t keep_bytes = std::size_t{64} << 20;

}  // namespace

Allocation::Allocation(std::size_t bytes) : bytes_(bytes) {
    constexpr std::size_t alignment = 512;
    if (bytes > std::size_t{1} << 46) throw std::bad_alloc();
    const std::size_t all = (bytes + 2 * guard_bytes + alignment - 1) / alignment * alignment;
    block_ = static_cast<std::byte*>(std::aligned_alloc(alignment, all));
    if (block_ == nullptr) throw std::bad_alloc();
    begin_ = block_ + guard_bytes;
    std::memset(block_, static_cast<int>(guard_fill), guard_bytes);
    std::memset(begin_ + bytes, static_cast<int>(guard_fill), guard_bytes);
    close_off(block_, guard_bytes);
    close_off(begin_ + bytes, guard_bytes);
}

Allocation::~Allocation() {
    open_up(block_, bytes_ + 2 * guard_bytes);
    std::free(block_);
}

void Allocation::fill(std::byte value) { std::memset(begin_, static_cast<int>(value), bytes_); }

bool Allocation::guards_are_whole() const {
    const auto whole = [](std::byte* begin) {
        open_up(begin, guard_bytes);
        const bool result =
            std::all_of(begin, begin + guard_bytes, [](std::byte byte) { return byte == guard_fill; });
        close_off(begin, guard_bytes);
        return result;
    };
    return whole(block_) && whole(begin_ + bytes_);
}

void MemoryTable::add(std::shared_ptr<Allocation> allocation) {
    allocated_ += allocation->bytes();
    const std::uint64_t address = allocation->address();
    live_.emplace(address, std::move(allocation));
}

std::shared_ptr<Allocation> MemoryTable::take(std::uint64_t address) {
    const auto found = live_.find(address);
    if (found == live_.end()) return nullptr;
    std::shared_ptr<Allocation> allocation = std::move(found->second);
    live_.erase(found);
    allocated_ -= allocation->bytes();
    return allocation;
}

std::shared_ptr<Allocation> MemoryTable::find(std::uint64_t address, std::size_t bytes) const {
    const auto after = live_.upper_bound(address);
    if (after == live_.begin()) return nullptr;
    const auto& [begin, allocation] = *std::prev(after);
    const std::uint64_t offset = address - begin;
    if (offset > allocation->bytes() || bytes > allocation->bytes() - offset) return nullptr;
    return allocation;
}

bool MemoryTable::touches(std::uint64_t address, std::size_t bytes) const {
    const auto after = live_.lower_bound(address + bytes);
    if (after == live_.begin()) return false;
    const auto& [begin, allocation] = *std::prev(after);
    return begin + allocation->bytes() > address;
}

void MemoryTable::keep_for_a_while(std::shared_ptr<Allocation> freed) {
    freed_bytes_ += freed->bytes();
    freed_.push_back(std::move(freed));
    while (freed_bytes_ > keep_bytes) {
        freed_bytes_ -= freed_.front()->bytes();
        freed_.pop_front();
    }
}

void MemoryTable::clear() {
    live_.clear();
    allocated_ = 0;
    freed_.clear();
    freed_bytes_ = 0;
}

bool Registrations::overlaps(std::uint64_t begin, std::size_t bytes) const {
    const auto after = ranges_.lower_bound(begin + bytes);
    if (after == ranges_.begin()) return false;
    const auto& [start, registration] = *std::prev(after);
    return start + registration.bytes > begin;
}

const Registration* Registrations::at(std::uint64_t begin) const {
    const auto found = ranges_.find(begin);
    return found == ranges_.end() ? nullptr : &found->second;
}

const Registration* Registrations::around(std::uint64_t begin, std::size_t bytes, const void* context) const {
    const auto after = ranges_.upper_bound(begin);
    if (after == ranges_.begin()) return nullptr;
    const auto& [start, registration] = *std::prev(after);
    const std::uint64_t offset = begin - start;
    if (offset > registration.bytes || bytes > registration.bytes - offset) return nullptr;
    // Page-locked in another context counts here only if it was registered as portable.
    if ((registration.flags & register_portable) == 0 && registration.context != context) return nullptr;
    return &registration;
}

Registrations::Lies Registrations::where(std::uint64_t begin, std::size_t bytes, const void* context) const {
    if (around(begin, bytes, context) != nullptr) return Lies::inside;
    if (!overlaps(begin, bytes)) return Lies::outside;
    // What is registered in another context only is pageable memory here.
    const auto after = ranges_.lower_bound(begin + bytes);
    const auto& [start, registration] = *std::prev(after);
    const bool counts = (registration.flags & register_portable) != 0 || registration.context == context;
    return counts ? Lies::across : Lies::outside;
}

bool Registrations::mapped(std::uint64_t begin, std::size_t bytes, const void* context) const {
    const Registration* registration = around(begin, bytes, context);
    return registration != nullptr && (registration->flags & register_device_map) != 0;
}

}  // namespace nsf::stub
