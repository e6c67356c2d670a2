// Signals belong to the interpreter's main thread: the engine's own threads take none.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace nsf {

// Of the calling thread.
inline void block_signals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

}  // namespace nsf
