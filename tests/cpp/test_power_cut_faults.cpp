// A run on a disk that forgets what was not synchronised: cut off before every system call, all that was acknowledged
// is there. With NSF_POWER_CUT_IMAGES=FOLDER the folders that the cuts leave are kept there, for tests/test_power_cut.py.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "core/checksum.hpp"
#include "core/sink.hpp"
#include "fault_injection.hpp"
#include "made_block.hpp"
#include "power_cut.hpp"
#include "temp_folder.hpp"
#include "whole_tensors.hpp"

namespace nsf {
namespace {

using testing_support::Image;
using testing_support::InjectFaults;
using testing_support::MadeBlock;
using testing_support::PowerCuts;
using testing_support::TempFolder;
using testing_support::whole_tensors;
using Keys = std::set<std::string>;

const std::vector<Stream> streams{{"uint8", false}, {"float32", false}};

std::string key_of(DType dtype, std::uint32_t step) {
    std::string digits = std::to_string(step);
    return std::string(name(dtype)) + "/" + std::string(6 - digits.size(), '0') + digits;
}

// The bytes of the record of a step: of another size, and others, in each.
std::string bytes_of(DType dtype, std::uint32_t step) {
    const std::size_t size = (step * 1237 % 9000 + 1) * item_size(dtype);
    std::string bytes(size, '\0');
    for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 31 + step * 7 + i / 253);
    return bytes;
}

// Stores records as the two threads behind the ring do: block by block, each beginning with the last unaligned bytes of
// the one before it.
class Lane {
  public:
    Lane(DiskSink& sink, DType dtype) : sink_(sink), dtype_(dtype) {}

    void open_shard() {
        ++shard_;
        end_ = 0;
        tail_.clear();
    }

    void store(std::uint32_t step) {
        const std::string bytes = bytes_of(dtype_, step);
        MadeBlock made(dtype_, shard_, end_ - tail_.size());
        std::memcpy(made.block.data, tail_.data(), tail_.size());
        made.block.used = tail_.size();
        Record record = testing_support::byte_record(step, end_, bytes.size(), dtype_);
        record.stream = dtype_ == DType::f32 ? 1 : 0;
        record.crc = crc32c(0, reinterpret_cast<const std::byte*>(bytes.data()), bytes.size());
        made.append(record, bytes);
        end_ += bytes.size();
        const std::size_t unaligned = made.block.used % alignment;
        tail_.assign(reinterpret_cast<const char*>(made.block.data) + made.block.used - unaligned, unaligned);
        sink_.write(made.block);
        sink_.add(made.block.segments[0].record);
        sink_.flush(dtype_);
        stored.insert(key_of(dtype_, step));
    }

    Keys stored;

  private:
    DiskSink& sink_;
    const DType dtype_;
    std::uint32_t shard_ = 0;
    std::uint64_t end_ = 0;
    std::string tail_;
};

void write_image(const std::filesystem::path& folder, const Image& image, const Keys& promised) {
    std::filesystem::create_directories(folder);
    for (const auto& [file, bytes] : image) std::ofstream(folder / file, std::ios::binary) << bytes;
    std::ofstream list(folder / "promised");
    for (const std::string& key : promised) list << key << '\n';
}

Keys whole_in(const Image& image) {
    Keys found;
    for (const auto& [key, bytes] : whole_tensors(image)) {
        const DType dtype = key.starts_with("float32") ? DType::f32 : DType::u8;
        EXPECT_EQ(bytes, bytes_of(dtype, static_cast<std::uint32_t>(std::stoul(key.substr(key.size() - 6)))));
        found.insert(key);
    }
    return found;
}

class PowerCut : public ::testing::TestWithParam<bool> {};

TEST_P(PowerCut, WhatWasAcknowledgedIsThere) {
    const bool at_close = GetParam();
    const TempFolder folder;
    Keys promised;
    std::size_t cuts = 0;
    std::size_t most = 0;
    const char* kept = std::getenv("NSF_POWER_CUT_IMAGES");
    const auto at_each = [&](const std::vector<Image>& images) {
        for (std::size_t i = 0; i < images.size(); ++i) {
            const Keys found = whole_in(images[i]);
            most = std::max(most, found.size());
            EXPECT_TRUE(std::includes(found.begin(), found.end(), promised.begin(), promised.end()))
                << "image " << i << " of cut " << cuts << ": " << found.size() << " whole, "
                << promised.size() << " promised";
            if (kept != nullptr) {
                const std::string place = (at_close ? "close-" : "shard-") + std::to_string(cuts);
                write_image(std::filesystem::path(kept) / (place + "-" + std::to_string(i)), images[i],
                            promised);
            }
        }
        ++cuts;
    };
    PowerCuts power(folder.path(), at_each);
    const InjectFaults faults(power.faults());
    DiskSink sink(folder.path(), true, streams, at_close);
    Lane bytes(sink, DType::u8);
    Lane floats(sink, DType::f32);
    const auto promise_all = [&] {
        for (const Lane* lane : {&bytes, &floats}) promised.insert(lane->stored.begin(), lane->stored.end());
        EXPECT_EQ(sink.acknowledged(), promised.size());
    };
    for (std::uint32_t step = 0; step < 12; ++step) {
        const Keys before = bytes.stored;
        if (step == 7) bytes.open_shard();
        bytes.store(step);
        if (step == 7 && !at_close)
            promised.insert(before.begin(), before.end());  // the shard before is published
        if (step % 2 == 0) floats.store(step);
        if (step % 5 == 3) {
            sink.sync();
            promise_all();
            sink.sync();  // nothing is left to do
        }
    }
    sink.close();
    promise_all();
    at_each(power.images());
    EXPECT_EQ(promised.size(), 18U);
    EXPECT_EQ(most, 18U);
    EXPECT_GT(cuts, 80U);
}

INSTANTIATE_TEST_SUITE_P(Shards, PowerCut, ::testing::Values(false, true),
                         [](const auto& of) { return of.param ? "AtClose" : "WhenFull"; });

}  // namespace
}  // namespace nsf
