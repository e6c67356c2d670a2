// What FileWriter does when system calls fail: the linker puts fault_injection.cpp between the two.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstddef>
#include <string>

#include "core/block_ring.hpp"
#include "core/error.hpp"
#include "core/file_writer.hpp"
#include "fault_injection.hpp"
#include "temp_folder.hpp"

namespace nsf {
namespace {

using testing_support::aligned_bytes;
using testing_support::Faults;
using testing_support::InjectFaults;
using testing_support::is_file;
using testing_support::read_file;
using testing_support::TempFolder;
using testing_support::Verdict;

const std::byte* bytes_of(const std::string& text) { return reinterpret_cast<const std::byte*>(text.data()); }

template <typename Action>
int error_of(Action action) {
    try {
        action();
    } catch (const EngineError& error) {
        return error.error_number() == 0 ? -1 : error.error_number();
    }
    return 0;
}

// Refuses O_DIRECT, once the file is there (do_it_first, as Linux does it) or before (as FUSE may).
Faults refuse_direct(bool file_made) {
    Faults faults;
    faults.open = [file_made](const char*, int flags) {
        if ((flags & O_DIRECT) == 0) return Verdict::pass();
        return file_made ? Verdict::fail_after(EINVAL) : Verdict::fail(EINVAL);
    };
    return faults;
}

TEST(FileWriterFaults, AFileSystemWithoutDirectWritesIsWrittenThroughTheCache) {
    for (const bool file_made : {true, false}) {
        const TempFolder folder;
        const InjectFaults faults(refuse_direct(file_made));
        FileWriter file(folder / "a", true);
        EXPECT_FALSE(file.direct());
        file.append(bytes_of("odd"), 3);
        EXPECT_EQ(read_file(folder / "a"), "odd");
        EXPECT_FALSE(supports_direct_io(folder.path()));
        EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
    }
}

TEST(FileWriterFaults, AnInterruptedWriteIsRepeated) {
    const TempFolder folder;
    int calls = 0;
    Faults hooks;
    hooks.pwrite = [&](int, std::size_t, off_t) {
        return ++calls % 2 == 1 ? Verdict::fail(EINTR) : Verdict::pass();
    };
    const InjectFaults faults(hooks);
    FileWriter file(folder / "a", false);
    file.append(bytes_of("hello "), 6);
    file.append(bytes_of("world"), 5);
    EXPECT_EQ(read_file(folder / "a"), "hello world");
    EXPECT_EQ(calls, 4);
}

TEST(FileWriterFaults, AShortWriteIsContinued) {
    for (const bool direct : {false, true}) {
        const TempFolder folder;
        Faults hooks;
        hooks.pwrite = [](int, std::size_t, off_t) { return Verdict::shorten(1000); };
        const InjectFaults faults(hooks);
        FileWriter file(folder / "a", direct);
        file.write(aligned_bytes(alignment, 'x').get(), alignment, 0);
        EXPECT_EQ(read_file(folder / "a"), std::string(alignment, 'x'));
    }
}

TEST(FileWriterFaults, AWriteThatWritesNothingIsAnErrorAndNoEndlessLoop) {
    const TempFolder folder;
    int calls = 0;
    Faults hooks;
    hooks.pwrite = [&](int, std::size_t, off_t) {
        return ++calls > 100 ? Verdict::fail(EDOM) : Verdict::shorten(0);
    };
    const InjectFaults faults(hooks);
    FileWriter file(folder / "a", false);
    EXPECT_EQ(error_of([&] { file.append(bytes_of("x"), 1); }), EIO);
}

TEST(FileWriterFaults, EinvalMeansBufferedOnceAndAnErrorAfterThat) {
    const TempFolder folder;
    int refusals = 1;
    Faults hooks;
    hooks.pwrite = [&](int, std::size_t, off_t) {
        return refusals-- > 0 ? Verdict::fail(EINVAL) : Verdict::pass();
    };
    const InjectFaults faults(hooks);
    FileWriter file(folder / "a", true);
    if (!file.direct()) GTEST_SKIP() << "no O_DIRECT in " << folder.path();
    file.write(aligned_bytes(alignment, 'x').get(), alignment, 0);
    EXPECT_FALSE(file.direct());
    EXPECT_EQ(read_file(folder / "a"), std::string(alignment, 'x'));
    refusals = 1;
    EXPECT_EQ(error_of([&] { file.append(bytes_of("x"), 1); }), EINVAL);
}

TEST(FileWriterFaults, ErrorsComeOutWithTheirErrno) {
    const TempFolder folder;
    Faults hooks;
    hooks.pwrite = [](int, std::size_t, off_t) { return Verdict::fail(ENOSPC); };
    hooks.fsync = [](int) { return Verdict::fail(EIO); };
    hooks.ftruncate = [](int) { return Verdict::fail(EFBIG); };
    const InjectFaults faults(hooks);
    FileWriter file(folder / "a", false);
    EXPECT_EQ(error_of([&] { file.append(bytes_of("x"), 1); }), ENOSPC);
    EXPECT_EQ(error_of([&] { file.sync(); }), EIO);
    EXPECT_EQ(error_of([&] { file.truncate(10); }), EFBIG);
}

TEST(FileWriterFaults, AFileSystemWithNothingToSynchroniseIsNoError) {
    for (const int refusal : {EINVAL, ENOTSUP}) {
        const TempFolder folder;
        Faults hooks;
        hooks.fsync = [refusal](int) { return Verdict::fail(refusal); };
        const InjectFaults faults(hooks);
        FileWriter file(folder / "a", false);
        EXPECT_NO_THROW(file.sync());
        file.close();
        EXPECT_NO_THROW(publish_file(folder / "a", folder / "b"));
    }
}

TEST(FileWriterFaults, AnInterruptedTruncateIsRepeated) {
    const TempFolder folder;
    int calls = 0;
    Faults hooks;
    hooks.ftruncate = [&](int) { return ++calls == 1 ? Verdict::fail(EINTR) : Verdict::pass(); };
    const InjectFaults faults(hooks);
    FileWriter file(folder / "a", false);
    file.append(bytes_of("hello"), 5);
    file.truncate(2);
    EXPECT_EQ(read_file(folder / "a"), "he");
}

// After close() has failed the descriptor is gone all the same: closing it again could close another file.
TEST(FileWriterFaults, AFailedCloseIsToldOnceAndNotRepeated) {
    for (const int error_number : {EIO, EINTR}) {
        const TempFolder folder;
        int calls = 0;
        Faults hooks;
        hooks.close = [&](int descriptor) {
            if (!is_file(descriptor, "/a")) return Verdict::pass();
            ++calls;
            return Verdict::fail_after(error_number);
        };
        const InjectFaults faults(hooks);
        {
            FileWriter file(folder / "a", false);
            EXPECT_EQ(error_of([&] { file.close(); }), error_number == EINTR ? 0 : EIO);
            EXPECT_NO_THROW(file.close());
        }
        EXPECT_EQ(calls, 1);
    }
}

TEST(FileWriterFaults, PublishTellsThatTheFolderCouldNotBeSynchronised) {
    const TempFolder folder;
    testing_support::write_file(folder / "a.partial", "x");
    int open_folders = 0;
    Faults hooks;
    hooks.open = [&](const char*, int flags) {
        if ((flags & O_DIRECTORY) != 0) ++open_folders;
        return Verdict::pass();
    };
    hooks.close = [&](int) {
        --open_folders;
        return Verdict::pass();
    };
    hooks.fsync = [](int) { return Verdict::fail(EIO); };
    const InjectFaults faults(hooks);
    EXPECT_EQ(error_of([&] { publish_file(folder / "a.partial", folder / "a"); }), EIO);
    EXPECT_EQ(open_folders, 0);
}

}  // namespace
}  // namespace nsf
