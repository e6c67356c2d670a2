// What a folder holds after a power cut: a model of a disk that forgets what was not synchronised.
//
// Bytes of a file survive once fsync() of the file has returned, names once fsync() of the folder has. What was not
// synchronised may survive or not, in pieces of 4 KiB; a name may have changed already, or not yet.
#pragma once

#include <sys/stat.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "fault_injection.hpp"
#include "temp_folder.hpp"
#include "whole_tensors.hpp"

namespace nsf::testing_support {

class PowerCuts {
  public:
    // `at_each` is given the images that a cut right before each system call on the folder may leave.
    PowerCuts(std::string folder, std::function<void(const std::vector<Image>&)> at_each)
        : folder_(std::move(folder)), at_each_(std::move(at_each)) {}

    Faults faults() {
        Faults faults;
        faults.open = [this](const char* path, int) {
            if (std::string(path).starts_with(folder_)) at_each_(images());
            return Verdict::pass();
        };
        faults.pwrite = [this](int descriptor, std::size_t, off_t) { return before(descriptor); };
        faults.ftruncate = [this](int descriptor) { return before(descriptor); };
        faults.close = [this](int descriptor) { return before(descriptor); };
        faults.rename = [this](const char*, const char*) {
            at_each_(images());
            return Verdict::pass();
        };
        faults.fsync = [this](int descriptor) {
            before(descriptor);
            const std::string path = path_of(descriptor);
            if (path.starts_with(folder_)) synchronised(path);
            return Verdict::pass();
        };
        return faults;
    }

    std::vector<Image> images() {
        std::vector<Image> all(3);
        for (const auto& [name, inode] : names_) all[0][name] = contents_[inode];
        for (const auto& [name, inode] : live_names()) {
            all[1][name] = contents_[inode];
            all[2][name] = torn(contents_[inode], read_file(folder_ + "/" + name));
        }
        return all;
    }

  private:
    using Names = std::map<std::string, ino_t>;

    Verdict before(int descriptor) {
        if (path_of(descriptor).starts_with(folder_)) at_each_(images());
        return Verdict::pass();
    }

    void synchronised(const std::string& path) {
        if (std::filesystem::is_directory(path)) {
            names_ = live_names();
        } else {
            contents_[inode_of(path)] = read_file(path);
        }
    }

    Names live_names() const {
        Names names;
        for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
            names[entry.path().filename().string()] = inode_of(entry.path().string());
        }
        return names;
    }

    static ino_t inode_of(const std::string& path) {
        struct stat status {};
        if (::stat(path.c_str(), &status) != 0) throw std::runtime_error("no " + path);
        return status.st_ino;
    }

    // The file as it was, with some of the pieces that have been written since.
    std::string torn(std::string durable, const std::string& live) {
        constexpr std::size_t piece = 4096;
        for (std::size_t at = 0; at < live.size(); at += piece) {
            if (random_() % 2 == 0) continue;
            const std::size_t size = std::min(piece, live.size() - at);
            if (durable.size() < at + size) durable.resize(at + size, '\0');
            durable.replace(at, size, live, at, size);
        }
        return durable;
    }

    const std::string folder_;
    const std::function<void(const std::vector<Image>&)> at_each_;
    Names names_;                            // that are durable
    std::map<ino_t, std::string> contents_;  // that are durable
    std::mt19937 random_{20260101};
};

}  // namespace nsf::testing_support
