// Hides the stub's own bookkeeping from ThreadSanitizer.
//
// Two host threads that meet in the driver, or a host thread and a stream, are not ordered by that. The stub's
// one mutex would order them all the same in ThreadSanitizer's eyes, and an engine that forgets an event wait would
// look correct. So bookkeeping happens in an Unseen scope, in which neither accesses nor locks are recorded, and
// the few edges that CUDA does give are made with release and acquire on atomics in a Seen scope: enqueue ->
// execution, finished operation -> event wait, synchronisation, a query that answers "done".
#pragma once

#if defined(__SANITIZE_THREAD__)
#define NSF_STUB_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NSF_STUB_TSAN 1
#endif
#endif

#ifdef NSF_STUB_TSAN
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
void AnnotateIgnoreSyncBegin(const char* file, int line);
void AnnotateIgnoreSyncEnd(const char* file, int line);
}
#endif

namespace nsf::stub {

inline void begin_unseen() {
#ifdef NSF_STUB_TSAN
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
#endif
}

inline void end_unseen() {
#ifdef NSF_STUB_TSAN
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
}

class Unseen {
  public:
    Unseen() { begin_unseen(); }
    ~Unseen() { end_unseen(); }
    Unseen(const Unseen&) = delete;
    Unseen& operator=(const Unseen&) = delete;
};

// Within an Unseen scope, and never within another Seen one.
class Seen {
  public:
    Seen() { end_unseen(); }
    ~Seen() { begin_unseen(); }
    Seen(const Seen&) = delete;
    Seen& operator=(const Seen&) = delete;
};

}  // namespace nsf::stub
