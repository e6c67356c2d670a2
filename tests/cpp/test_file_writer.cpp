#include <gtest/gtest.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <string>

#include "core/block_ring.hpp"
#include "core/error.hpp"
#include "core/file_writer.hpp"
#include "temp_folder.hpp"

namespace nsf {
namespace {

using testing_support::aligned_bytes;
using testing_support::read_file;
using testing_support::TempFolder;
using testing_support::write_file;

const std::byte* bytes_of(const std::string& text) { return reinterpret_cast<const std::byte*>(text.data()); }

template <typename Action>
void expect_error(Action action, int error_number, const std::string& path) {
    try {
        action();
        ADD_FAILURE() << "no error for " << path;
    } catch (const EngineError& error) {
        const std::string message = error.what();
        EXPECT_EQ(error.error_number(), error_number) << message;
        EXPECT_NE(message.find(path), std::string::npos) << message;
        EXPECT_NE(message.find("errno " + std::to_string(error_number)), std::string::npos) << message;
        EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    }
}

TEST(FileWriter, WritesWhereItIsTold) {
    const TempFolder folder;
    FileWriter file(folder / "a", false);
    EXPECT_EQ(file.path(), folder / "a");
    EXPECT_FALSE(file.direct());
    file.write(bytes_of("world"), 5, 6);
    file.write(bytes_of("hello "), 6, 0);
    file.write(bytes_of(""), 0, 1000);  // nothing: the file does not grow
    EXPECT_EQ(read_file(folder / "a"), "hello world");
    file.truncate(5);
    file.sync();
    file.close();
    EXPECT_EQ(read_file(folder / "a"), "hello");
}

TEST(FileWriter, AppendsBehindItsOwnEnd) {
    const TempFolder folder;
    FileWriter file(folder / "a", false);
    file.append(bytes_of("one"), 3);
    file.append(bytes_of(""), 0);
    file.append(bytes_of("two"), 3);
    EXPECT_EQ(read_file(folder / "a"), "onetwo");
}

TEST(FileWriter, NeverTouchesAFileThatIsThere) {
    const TempFolder folder;
    write_file(folder / "a", "precious");
    for (const bool direct : {false, true}) {
        expect_error([&] { const FileWriter file(folder / "a", direct); }, EEXIST, folder / "a");
        EXPECT_EQ(read_file(folder / "a"), "precious");
    }
    // Nor through a link that leads nowhere yet.
    std::filesystem::create_symlink(folder / "nowhere", folder / "link");
    expect_error([&] { const FileWriter file(folder / "link", false); }, EEXIST, folder / "link");
    EXPECT_FALSE(std::filesystem::exists(folder / "nowhere"));
}

TEST(FileWriter, ErrorsNamePathAndErrno) {
    const TempFolder folder;
    for (const bool direct : {false, true}) {
        expect_error([&] { const FileWriter file(folder / "missing/a", direct); }, ENOENT,
                     folder / "missing/a");
    }
    write_file(folder / "plain", "");
    expect_error([&] { const FileWriter file(folder / "plain/a", true); }, ENOTDIR, folder / "plain/a");
    FileWriter file(folder / "a", false);
    file.close();
    file.close();  // idempotent
    expect_error([&] { file.write(bytes_of("x"), 1, 0); }, EBADF, folder / "a");
    expect_error([&] { file.append(bytes_of("x"), 1); }, EBADF, folder / "a");
    expect_error([&] { file.truncate(1); }, EBADF, folder / "a");
    expect_error([&] { file.sync(); }, EBADF, folder / "a");
}

// Blocks, the reserve and the padded tail, in the order in which a shard writes them.
void write_like_a_shard(const std::string& folder) {
    const std::string path = folder + "/a";
    FileWriter file(path, true);
    file.write(aligned_bytes(2 * alignment, 'h').get(), 2 * alignment, 0);
    file.write(aligned_bytes(alignment, 'b').get(), alignment, 3 * alignment);
    file.write(aligned_bytes(alignment, 'a').get(), alignment, 2 * alignment);
    file.truncate(3 * alignment + 10);
    file.sync();
    file.close();
    EXPECT_EQ(read_file(path),
              std::string(2 * alignment, 'h') + std::string(alignment, 'a') + std::string(10, 'b'));
}

TEST(FileWriter, DirectWhereTheFileSystemHasIt) {
    const TempFolder folder;
    write_like_a_shard(folder.path());
    EXPECT_EQ(supports_direct_io(folder.path()), FileWriter(folder / "b", true).direct());
}

TEST(FileWriter, DirectOrBufferedInSharedMemory) {
    if (!std::filesystem::is_directory("/dev/shm")) GTEST_SKIP() << "no /dev/shm here";
    const TempFolder folder("/dev/shm");
    write_like_a_shard(folder.path());
    EXPECT_EQ(supports_direct_io(folder.path()), FileWriter(folder / "b", true).direct());
}

// O_DIRECT refuses odd sizes with EINVAL on most file systems: the writer goes on through the page cache.
TEST(FileWriter, OddSizesAndAddressesFallBackToThePageCache) {
    const TempFolder folder;
    FileWriter file(folder / "a", true);
    const auto block = aligned_bytes(2 * alignment, 'a');
    file.write(block.get(), alignment, 0);
    file.write(block.get() + 1, 100, alignment);
    file.write(block.get() + 3, alignment + 1, alignment + 100);
    file.write(block.get(), alignment, 0);
    file.close();
    EXPECT_EQ(read_file(folder / "a"), std::string(2 * alignment + 101, 'a'));
}

TEST(PublishFile, RenamesWithinAFolder) {
    const TempFolder folder;
    write_file(folder / "a.partial", "whole");
    publish_file(folder / "a.partial", folder / "a");
    EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
    EXPECT_EQ(read_file(folder / "a"), "whole");
    expect_error([&] { publish_file(folder / "b.partial", folder / "b"); }, ENOENT, folder / "b.partial");
}

TEST(PublishFile, TakesRelativePaths) {
    const TempFolder folder;
    const std::filesystem::path before = std::filesystem::current_path();
    std::filesystem::current_path(folder.path());
    write_file("a.partial", "whole");
    EXPECT_NO_THROW(publish_file("a.partial", "a"));
    EXPECT_NO_THROW(static_cast<void>(supports_direct_io(".")));
    std::filesystem::current_path(before);
    EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
}

TEST(SupportsDirectIo, LeavesNothingBehind) {
    const TempFolder folder;
    static_cast<void>(supports_direct_io(folder.path()));
    EXPECT_TRUE(folder.names().empty());
    expect_error([&] { static_cast<void>(supports_direct_io(folder / "missing")); }, ENOENT,
                 folder / "missing");
}

}  // namespace
}  // namespace nsf
