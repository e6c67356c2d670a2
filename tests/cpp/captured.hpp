// What a capture has stored, read back from its files or from its memory, and what it should have stored.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/checksum.hpp"
#include "core/engine.hpp"
#include "naive_tensor.hpp"
#include "shard_reader.hpp"
#include "temp_folder.hpp"

namespace nsf::testing_support {

using Tensors = std::map<std::string, StoredTensor>;

inline Kept keep_all(const TensorView& view) {
    Kept kept;
    kept.view = view;
    kept.shape = view.shape;
    return kept;
}

inline std::string as_text(const void* bytes, std::size_t size) {
    return size == 0 ? std::string() : std::string(static_cast<const char*>(bytes), size);
}

// The tensors, by key, that the engine has to make of one submission.
inline void expect_stored(Tensors& expected, const Stream& stream, const Origin& origin, const Kept& kept,
                          DType target, CastRules rules = {}) {
    const Selection* selection = kept.selection ? &*kept.selection : nullptr;
    const Shape shape = selected_shape(kept.view, selection);
    std::size_t rows = 1;
    for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) rows *= static_cast<std::size_t>(shape[axis]);
    const std::size_t row = shape.empty() ? 1 : static_cast<std::size_t>(shape.back());
    const Stored stored =
        store_naively(gather(kept.view, selection), kept.view.dtype, target, rules, row, rows);
    Record record;
    record.prompt = origin.prompt;
    record.step = origin.step;
    record.call = origin.call;
    const auto add = [&](DType dtype, const Shape& as, const void* bytes, std::size_t size) {
        const std::string key = format_key(stream, record);
        if (!expected
                 .try_emplace(key,
                              StoredTensor{std::string(safetensors_name(dtype)), as, as_text(bytes, size)})
                 .second) {
            throw std::logic_error("the test uses the key " + key + " twice");
        }
    };
    add(target, kept.shape, stored.bytes.data(), stored.bytes.size());
    if (target != DType::i8 || !is_floating(kept.view.dtype)) return;
    record.is_scale = true;
    Shape outer = kept.shape;
    if (!outer.empty()) outer.pop_back();
    add(DType::f32, outer, stored.scales.data(), stored.scales.size() * sizeof(float));
}

// Every published shard of a folder; each is checked as it is read.
inline Tensors read_run(const TempFolder& folder) {
    Tensors tensors;
    for (const std::string& name : folder.names()) {
        if (name.size() < 12 || name.substr(name.size() - 12) != ".safetensors") continue;
        for (auto& [key, tensor] : read_shard(folder / name).tensors) {
            if (!tensors.emplace(key, std::move(tensor)).second)
                throw std::runtime_error(key + " is stored twice");
        }
    }
    return tensors;
}

inline std::string shard_of(const Record& record) { return shard_name(record.dtype, record.shard); }

// What the engine's own records say: from memory, or from the places in the files that they name.
inline Tensors read_records(const Engine& engine) {
    Tensors tensors;
    std::map<std::string, std::pair<std::uint64_t, std::string>> files;  // data start and bytes
    for (const Record& record : engine.records()) {
        StoredTensor tensor;
        tensor.dtype = safetensors_name(record.dtype);
        tensor.shape = *record.shape;
        if (engine.options().folder.empty()) {
            const std::shared_ptr<Slab> slab = engine.slab(record.shard);
            tensor.bytes = as_text(slab->data + record.offset, static_cast<std::size_t>(record.bytes));
        } else {
            const std::string path = engine.options().folder + "/" + shard_of(record);
            auto file = files.find(path);
            if (file == files.end())
                file = files.emplace(path, std::pair{read_shard(path).data_start, read_file(path)}).first;
            tensor.bytes =
                file->second.second.substr(static_cast<std::size_t>(file->second.first + record.offset),
                                           static_cast<std::size_t>(record.bytes));
        }
        const std::string key = format_key(engine.streams()[record.stream], record);
        if (tensor.bytes.size() != record.bytes ||
            crc32c(0, tensor.bytes.data(), tensor.bytes.size()) != record.crc) {
            throw std::runtime_error(key + ": size or checksum is wrong");
        }
        if (!tensors.emplace(key, std::move(tensor)).second)
            throw std::runtime_error(key + " is recorded twice");
    }
    return tensors;
}

// Tells which tensors differ, without printing their bytes.
inline void expect_same(const Tensors& got, const Tensors& expected) {
    for (const auto& [key, tensor] : expected) {
        const auto found = got.find(key);
        if (found == got.end()) {
            ADD_FAILURE() << key << " is missing";
            continue;
        }
        EXPECT_EQ(found->second.dtype, tensor.dtype) << key;
        EXPECT_EQ(found->second.shape, tensor.shape) << key;
        EXPECT_TRUE(found->second.bytes == tensor.bytes)
            << key << ": " << tensor.bytes.size() << " bytes differ";
    }
    for (const auto& [key, tensor] : got)
        EXPECT_TRUE(expected.count(key) == 1) << key << " was never captured";
}

// The whole of a closed capture against what was submitted.
inline void expect_captured(const Engine& engine, const Tensors& expected) {
    expect_same(read_records(engine), expected);
    EXPECT_EQ(engine.stats().records, expected.size());
}

// What is in the folder must be a part of what was submitted, bit for bit.
inline void expect_part_of(const Tensors& got, const Tensors& expected) {
    for (const auto& [key, tensor] : got) {
        const auto found = expected.find(key);
        ASSERT_NE(found, expected.end()) << key;
        EXPECT_TRUE(found->second == tensor) << key;
    }
}

}  // namespace nsf::testing_support
