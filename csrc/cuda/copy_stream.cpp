#include "cuda/copy_stream.hpp"

#include "cuda/waits.hpp"

namespace nsf::cuda {

CopyStream::CopyStream(const Driver& driver) : driver_(driver), slots_(slots) {
    try {
        // Non-blocking: work on the legacy default stream, torch's own, must not wait for our copies.
        driver_.check(driver_.stream_create(&stream_, stream_non_blocking), "create the copy stream");
        driver_.check(driver_.event_create(&ready_, event_disable_timing), "create an event");
        for (Slot& each : slots_) {
            driver_.check(driver_.event_create(&each.started, 0), "create an event");
            // The writer thread sleeps in event_synchronize() rather than spin on a core of the model's.
            driver_.check(driver_.event_create(&each.done, event_blocking_sync), "create an event");
        }
    } catch (...) {
        destroy();
        throw;
    }
}

CopyStream::~CopyStream() { destroy(); }

void CopyStream::destroy() noexcept {
    // Errors are of no use to anybody here: the driver may be shutting down with the process.
    for (const Slot& each : slots_) {
        if (each.started != nullptr) static_cast<void>(driver_.event_destroy(each.started));
        if (each.done != nullptr) static_cast<void>(driver_.event_destroy(each.done));
    }
    if (ready_ != nullptr) static_cast<void>(driver_.event_destroy(ready_));
    if (stream_ != nullptr) static_cast<void>(driver_.stream_destroy(stream_));
}

void CopyStream::after(Stream compute) {
    driver_.check(driver_.event_record(ready_, compute), "record an event on the compute stream");
    if (keeps(Wait::copy_for_compute)) {
        driver_.check(driver_.stream_wait_event(stream_, ready_, 0), "make the copy stream wait");
    }
}

void CopyStream::begin_batch() {
    const std::uint64_t ticket = next_ticket();
    if (ticket > slots && keeps(Wait::producer_for_ticket) && !arrived(ticket - slots)) {
        ++host_waits_;
        wait(ticket - slots);
    }
    if (ticket > slots) note_arrival(ticket - slots);
    driver_.check(driver_.event_record(slot(ticket).started, stream_), "record an event on the copy stream");
    in_batch_ = true;
}

void CopyStream::copy(void* host, Address device, std::size_t bytes) {
    if (!in_batch_) begin_batch();
    driver_.check(driver_.copy_to_host(host, device, bytes, stream_), "copy from the device");
    bytes_ += bytes;
    ++copies_;
}

std::uint64_t CopyStream::finish_batch() {
    driver_.check(driver_.event_record(slot(next_ticket()).done, stream_),
                  "record an event on the copy stream");
    in_batch_ = false;
    return ++last_;
}

void CopyStream::hold_back(Stream compute, std::uint64_t ticket) {
    driver_.check(driver_.stream_wait_event(compute, slot(ticket).done, 0), "make the compute stream wait");
    ++device_waits_;
}

bool CopyStream::arrived(std::uint64_t ticket) {
    // acquire: pairs with the release in note_arrival(); what the copy brought is there.
    if (ticket <= arrived_.load(std::memory_order_acquire)) return true;
    if (ticket > last_) return false;  // not even started: the events still are those of an older batch
    const BesideCaptures beside(driver_);
    const Result result = driver_.event_query(slot(ticket).done);
    if (result == not_ready) return false;
    driver_.check(result, "ask for a copy's end");
    note_arrival(ticket);
    return true;
}

void CopyStream::wait(std::uint64_t ticket) {
    if (ticket <= arrived_.load(std::memory_order_acquire)) return;  // as in arrived()
    const BesideCaptures beside(driver_);
    driver_.check(driver_.event_synchronize(slot(ticket).done), "wait for a copy from the device");
    note_arrival(ticket);
}

void CopyStream::note_arrival(std::uint64_t ticket) {
    const std::lock_guard lock(times_mutex_);
    while (timed_ < ticket) {
        const Slot& next = slot(++timed_);
        float milliseconds = 0;
        driver_.check(driver_.event_elapsed_time(&milliseconds, next.started, next.done), "time a copy");
        seconds_ += static_cast<double>(milliseconds) * 1e-3;
    }
    // release: pairs with the acquire in arrived() and wait().
    if (arrived_.load(std::memory_order_relaxed) < ticket) arrived_.store(ticket, std::memory_order_release);
}

void CopyStream::drain() noexcept { static_cast<void>(driver_.stream_synchronize(stream_)); }

double CopyStream::seconds() const {
    const std::lock_guard lock(times_mutex_);
    return seconds_;
}

}  // namespace nsf::cuda
