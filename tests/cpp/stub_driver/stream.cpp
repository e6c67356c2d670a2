// When a stream's next operation begins.
#include "stream.hpp"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <thread>

#include "runtime.hpp"

namespace nsf::stub {

bool Operation::may_start() const {
    return std::all_of(after.begin(), after.end(), [](const auto& earlier) { return earlier->ended(); });
}

bool Operation::uses(std::uint64_t begin, std::size_t size) const {
    const auto meets = [&](std::uint64_t other, std::size_t other_size) {
        return other < begin + size && begin < other + other_size;
    };
    if (includes(Kind::copy, kind)) return meets(to, bytes) || (staged.empty() && meets(from, bytes));
    if (kind != Kind::kernel) return false;
    for (std::size_t i = 0; i < kernel->parameters.size(); ++i) {
        if (kernel->parameters[i].pointer && meets(launch.get<std::uint64_t>(i), 1)) return true;
    }
    return false;
}

Stream::Stream(Runtime& runtime, Context& its_context, std::uint64_t its_handle, bool is_blocking,
               bool is_legacy)
    : state(runtime),
      context(its_context),
      handle(its_handle),
      blocking(is_blocking),
      legacy(is_legacy),
      random(runtime.seed ^ (++runtime.streams_made * 0x9E3779B97F4A7C15U)) {}

void Stream::start() {
    std::thread([this] { run(); }).detach();
}

void Stream::drop() {
    closed = true;
    for (const auto& operation : queue) {
        operation->completion->done.store(true, std::memory_order_relaxed);
    }
    queue.clear();
    changed.notify_all();
}

Hold& Stream::hold() { return legacy ? state.legacy_hold : own_hold; }

bool Stream::stops(const Operation& operation) const {
    if (operation.passed_hold) return false;
    const Hold& own = legacy ? state.legacy_hold : own_hold;
    return own.stops() || state.holds[index_of(operation.kind)].stops();
}

void Stream::pass_hold(Operation& operation) {
    if (operation.passed_hold) return;
    operation.passed_hold = true;
    hold().pass();
    state.holds[index_of(operation.kind)].pass();
}

void Stream::choose_delay(Operation& operation) {
    if (operation.not_before) return;
    Range range = state.delays[index_of(operation.kind)];
    if (legacy && state.legacy_delayed) range = state.legacy_delay;
    if (!legacy && own_delay) range = {own_delay->first, own_delay->second};
    auto pause = range.min.count();
    if (range.max > range.min) {
        pause = std::uniform_int_distribution<decltype(pause)>(range.min.count(), range.max.count())(random);
    }
    operation.not_before = std::chrono::steady_clock::now() + std::chrono::microseconds(pause);
}

bool Stream::ready() const {
    if (queue.empty() || current != nullptr) return false;
    return context.broken != 0 || (!stops(*queue.front()) && queue.front()->may_start());
}

bool Stream::is_held(Kind kinds) const {
    return at_hold && !queue.empty() && includes(kinds, queue.front()->kind) && stops(*queue.front());
}

// The operation to execute, or nullptr when the stream has come to its end.
std::unique_ptr<Operation> Stream::next(std::unique_lock<std::mutex>& lock) {
    const auto take = [&] {
        std::unique_ptr<Operation> operation = std::move(queue.front());
        queue.pop_front();
        current = operation.get();
        at_hold = false;
        return operation;
    };
    for (;;) {
        if (state.ended) return nullptr;
        if (queue.empty()) {
            if (closed) return nullptr;
            changed.wait(lock);
            continue;
        }
        Operation& head = *queue.front();
        if (context.broken != 0) return take();
        if (stops(head)) {
            at_hold = true;
            state.host_changed.notify_all();
            if (state.turn == this) {
                state.turn = nullptr;
                state.advance();
            }
            changed.wait(lock);
            continue;
        }
        at_hold = false;
        if (!head.may_start()) {
            changed.wait(lock);
        } else if (state.reordering) {
            if (state.turn == this) {
                pass_hold(head);
                return take();
            }
            // So that work goes on even if nobody calls the driver any more.
            if (changed.wait_for(lock, state.patience) == std::cv_status::timeout && state.credits == 0) {
                state.credits = 1;
                state.advance();
            }
        } else {
            pass_hold(head);
            choose_delay(head);
            if (*head.not_before <= std::chrono::steady_clock::now()) return take();
            changed.wait_until(lock, *head.not_before);
        }
    }
}

void Stream::retire(Operation& operation, bool executed) {
    current = nullptr;
    if (state.turn == this) state.turn = nullptr;
    if (executed) {
        ++state.executed_counts[index_of(operation.kind)];
        if (operation.kind == Kind::dtoh) state.counters.dtoh_bytes += operation.bytes;
        if (operation.kind == Kind::htod) state.counters.htod_bytes += operation.bytes;
        if (operation.kind == Kind::dtod) state.counters.dtod_bytes += operation.bytes;
        state.executed.push_back({operation.kind, legacy ? nullptr : reinterpret_cast<const void*>(handle),
                                  context.device, operation.kernel ? operation.kernel->name : std::string(),
                                  operation.bytes});
    }
    state.wake_streams();
    state.host_changed.notify_all();
}

void Stream::run() {
    // Signals belong to the threads of the program.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    for (;;) {
        begin_unseen();
        std::unique_lock lock(state.mutex);
        std::unique_ptr<Operation> operation = next(lock);
        if (operation == nullptr) {
            {
                const Seen seen;
                // release: pairs with the acquire in reset(); no acquire here, streams are not ordered by ending.
                state.streams_ended.fetch_add(1, std::memory_order_release);
            }
            if (state.turn == this) state.turn = nullptr;
            // Notified under the mutex: from here on `this` is gone, and the runtime stays.
            Runtime& staying = state;
            staying.host_changed.notify_all();
            const std::uint64_t own = handle;
            staying.streams.erase(own);
            lock.unlock();
            end_unseen();
            return;
        }
        bool broken = context.broken != code::success;
        if (!broken) {
            const int failure = prepare(*operation);
            if (failure != 0) state.break_context(context, failure);
            broken = failure != 0;
        }
        lock.unlock();
        end_unseen();

        // acquire: pairs with the release in Caller::enqueue().
        static_cast<void>(operation->published.load(std::memory_order_acquire));
        for (const auto& completion : operation->after) {
            // acquire: pairs with the release below, in the other stream.
            static_cast<void>(completion->done.load(std::memory_order_acquire));
        }
        const int failure = broken ? 0 : execute(*operation);
        operation->completion->when = std::chrono::steady_clock::now();

        begin_unseen();
        lock.lock();
        if (failure != 0) state.break_context(context, failure);
        {
            const Seen seen;
            // release: pairs with the acquire in Caller::wait(), in queries, and above in a stream that waits.
            operation->completion->done.store(true, std::memory_order_release);
        }
        retire(*operation, !broken && failure == 0);
        operation.reset();
        lock.unlock();
        end_unseen();
    }
}

}  // namespace nsf::stub
