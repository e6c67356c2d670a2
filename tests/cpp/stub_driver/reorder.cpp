// The mode in which a generator decides which stream begins its next operation, one at a time.
//
// An operation may begin while a host thread waits for one that has not ended, or for a credit: an enqueue gives 0 to 2,
// a query 1 or 2, and the call returns when they are used up. So a single host thread and a seed fix the order.
#include <algorithm>

#include "runtime.hpp"

namespace nsf::stub {

// Gives the turn to a stream drawn from those that are ready, if an operation may begin.
void Runtime::advance() {
    if (!reordering || turn != nullptr || anything_runs()) return;
    const bool wanted = std::any_of(awaited.begin(), awaited.end(),
                                    [](const auto& completion) { return !completion->ended(); });
    if (!wanted && credits == 0) return;
    std::vector<Stream*> ready;
    for (const auto& [handle, stream] : streams) {
        if (stream->ready()) ready.push_back(stream.get());
    }
    if (ready.empty()) {
        credits = 0;
        return;
    }
    turn = ready[std::uniform_int_distribution<std::size_t>(0, ready.size() - 1)(*reordering)];
    if (credits > 0) --credits;
    turn->changed.notify_all();
}

// Gives credits, at least so many, and lets them be used up. Not for ever: a kernel may wait for this very thread.
void Runtime::pump(std::unique_lock<std::mutex>& waiting, unsigned least) {
    credits += std::uniform_int_distribution<unsigned>(least, 2)(*reordering);
    advance();
    host_changed.wait_for(waiting, patience, [&] {
        return !reordering || ended || (turn == nullptr && credits == 0 && !anything_runs());
    });
}

}  // namespace nsf::stub
