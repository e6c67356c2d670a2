// A file that is written at explicit offsets, past the page cache where the file system can do that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace nsf {

// Not thread-safe. Every failure throws EngineError with the path and errno.
class FileWriter {
  public:
    // Creates the file; one that exists already is an error: nothing is ever overwritten.
    FileWriter(std::string path, bool want_direct);
    ~FileWriter();
    FileWriter(const FileWriter&) = delete;
    FileWriter& operator=(const FileWriter&) = delete;

    const std::string& path() const { return path_; }
    // O_DIRECT is in force: write() then takes memory, sizes and offsets in multiples of `alignment` only.
    bool direct() const { return direct_; }

    void write(const std::byte* data, std::size_t size, std::uint64_t offset);
    void append(const std::byte* data, std::size_t size);
    void truncate(std::uint64_t size);
    void sync();
    void close();

  private:
    [[noreturn]] void fail(const char* action) const;

    std::string path_;
    int descriptor_ = -1;
    bool direct_ = false;
    std::uint64_t end_ = 0;  // where append() continues
};

// Makes the names in the folder of this file durable.
void sync_folder(const std::string& path);

// Renames within one folder and makes the new name durable.
void publish_file(const std::string& from, const std::string& to);

// Whether a file in `folder` can be opened for direct writes (a temporary file is made and removed).
bool supports_direct_io(const std::string& folder);

}  // namespace nsf
