#include "cuda/pinned_memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "core/error.hpp"

namespace nsf::cuda {
namespace {

constexpr std::size_t mebibyte = std::size_t{1} << 20;

// After a fork the first write of either process to a shared page would move it away from under the device's
// copies. The child has no use for the memory.
void keep_from_children(std::byte* memory, std::size_t bytes) {
#ifdef MADV_DONTFORK
    static_cast<void>(madvise(memory, bytes, MADV_DONTFORK));
#else
    static_cast<void>(memory);
    static_cast<void>(bytes);
#endif
}

}  // namespace

PinnedRing::PinnedRing(const Driver& driver, BlockRing& ring) : driver_(driver), memory_(ring.arena()) {
    const std::size_t fewest = std::max<std::size_t>(1, ring.touched_blocks());
    const std::size_t whole = ring.block_count();
    std::size_t blocks = whole;
    Result result = driver.host_register(memory_, blocks * ring.block_bytes(), host_register_portable);
    const Result first = result;
    while (result != success && blocks > fewest) {
        blocks = std::max(fewest, blocks / 2);
        result = driver.host_register(memory_, blocks * ring.block_bytes(), host_register_portable);
    }
    driver.check(result, "page-lock memory for the ring (a smaller ring_bytes or block_bytes needs less)");
    bytes_ = blocks * ring.block_bytes();
    keep_from_children(memory_, bytes_);
    if (blocks == whole) return;
    ring.limit(blocks);
    const char* name = nullptr;
    static_cast<void>(driver.get_error_name(first, &name));
    warning_ = "only " + std::to_string(bytes_ / mebibyte) + " MiB of the ring's " +
               std::to_string(whole * ring.block_bytes() / mebibyte) + " MiB could be page-locked (" +
               (name == nullptr ? "unknown error" : name) +
               "): the capture goes on with the smaller ring, and may have to wait for the disk sooner";
}

PinnedRing::~PinnedRing() {
    static_cast<void>(driver_.host_unregister(memory_));
    // Locking has touched all of it, and nobody reads it any more.
    static_cast<void>(madvise(memory_, bytes_, MADV_DONTNEED));
}

PinnedTable::PinnedTable(const Driver& driver, std::size_t bytes) : driver_(driver), bytes_(bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<std::byte*>(memory);
    Result result = driver.host_register(memory_, bytes, host_register_portable | host_register_device_map);
    if (result == success) {
        result = driver.host_get_device_address(&address_, memory_, 0);
        if (result != success) static_cast<void>(driver.host_unregister(memory_));
    }
    if (result != success) {
        munmap(memory_, bytes_);
        driver.fail(result, "page-lock memory for position tables");
    }
    keep_from_children(memory_, bytes_);
}

PinnedTable::~PinnedTable() {
    static_cast<void>(driver_.host_unregister(memory_));
    munmap(memory_, bytes_);
}

}  // namespace nsf::cuda
