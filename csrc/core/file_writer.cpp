#include "core/file_writer.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "core/error.hpp"

namespace nsf {
namespace {

#ifdef O_DIRECT
constexpr int direct_flag = O_DIRECT;
#else
constexpr int direct_flag = 0;  // macOS: buffered writes
#endif

int open_new(const std::string& path, int extra) {
    return ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | extra, 0666);
}

void sync_descriptor(int descriptor, const std::string& path) {
    // EINVAL and ENOTSUP: the file system has nothing to synchronise (some network and FUSE mounts).
    if (::fsync(descriptor) != 0 && errno != EINVAL && errno != ENOTSUP)
        throw system_error("sync", path, errno);
}

}  // namespace

FileWriter::FileWriter(std::string path, bool want_direct) : path_(std::move(path)) {
    if (want_direct && direct_flag != 0) {
        descriptor_ = open_new(path_, direct_flag);
        direct_ = descriptor_ >= 0;
        if (!direct_) {
            if (errno != EINVAL) fail("create");
            // A file system without O_DIRECT may have created the file before it refused the flag.
            ::unlink(path_.c_str());
        }
    }
    if (!direct_) descriptor_ = open_new(path_, 0);
    if (descriptor_ < 0) fail("create");
}

FileWriter::~FileWriter() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

void FileWriter::fail(const char* action) const { throw system_error(action, path_, errno); }

void FileWriter::write(const std::byte* data, std::size_t size, std::uint64_t offset) {
    while (size > 0) {
        const ssize_t written = ::pwrite(descriptor_, data, size, static_cast<off_t>(offset));
        if (written < 0) {
            if (errno == EINTR) continue;
#ifdef O_DIRECT
            // The device wants a coarser alignment than ours, or a short write left an odd remainder: go on
            // through the page cache.
            if (errno == EINVAL && direct_) {
                const int flags = ::fcntl(descriptor_, F_GETFL);
                if (flags < 0 || ::fcntl(descriptor_, F_SETFL, flags & ~O_DIRECT) < 0) fail("write");
                direct_ = false;
                continue;
            }
#endif
            fail("write");
        }
        if (written == 0) {  // no errno says why, and trying again might never end
            errno = EIO;
            fail("write");
        }
        data += written;
        size -= static_cast<std::size_t>(written);
        offset += static_cast<std::uint64_t>(written);
    }
}

void FileWriter::append(const std::byte* data, std::size_t size) {
    write(data, size, end_);
    end_ += size;
}

void FileWriter::truncate(std::uint64_t size) {
    while (::ftruncate(descriptor_, static_cast<off_t>(size)) != 0) {
        if (errno != EINTR) fail("truncate");
    }
}

void FileWriter::sync() { sync_descriptor(descriptor_, path_); }

void FileWriter::close() {
    if (descriptor_ < 0) return;
    const int descriptor = std::exchange(descriptor_, -1);
    if (::close(descriptor) != 0 && errno != EINTR) fail("close");
}

void sync_folder(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) throw system_error("open", folder, errno);
    try {
        sync_descriptor(descriptor, folder);
    } catch (...) {
        ::close(descriptor);
        throw;
    }
    ::close(descriptor);
}

void publish_file(const std::string& from, const std::string& to) {
    // link and unlink instead of rename would refuse to replace a file, but many file systems have no hard
    // links; the engine made the folder's names its own when it opened it, so a plain rename cannot meet
    // another file.
    if (::rename(from.c_str(), to.c_str()) != 0) throw system_error("rename", from, errno);
    sync_folder(to);
}

bool supports_direct_io(const std::string& folder) {
    const std::string path = folder + "/.direct-io-" + std::to_string(::getpid());
    try {
        const FileWriter probe(path, true);
        ::unlink(path.c_str());
        return probe.direct();
    } catch (const EngineError&) {
        ::unlink(path.c_str());
        throw;
    }
}

}  // namespace nsf
