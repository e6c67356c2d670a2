// The kernels, for the stub driver: what each program of a launch does, element by element, as the docstrings of
// python/neuroscope_fast/kernels say it. A grid that is too small so leaves poison behind.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "core/cast.hpp"
#include "core/error.hpp"
#include "cuda/kernels.hpp"
#include "stub_driver/stub_control.hpp"

namespace nsf::testing_support {

class StubKernels final : public cuda::KernelMaker {
  public:
    cuda::KernelImage make(const cuda::KernelRequest& request, int) override {
        if (const std::function<void()> what = meanwhile) what();
        const std::lock_guard lock(mutex_);
        if (!refusal.empty()) throw EngineError(refusal);
        const std::string kernel = "kernel_" + std::to_string(number_of(request));
        requests_.push_back(request);
        const bool quantizes = request.kind == cuda::KernelKind::quantize;
        std::vector<stub::Parameter> parameters(quantizes ? 4 : 3, stub::pointer);
        parameters.resize(quantizes ? 15 : 13, stub::value<std::int64_t>());
        parameters.resize(parameters.size() + trailing, stub::pointer);
        cuda::KernelImage image;
        image.name = kernel;
        image.warps = 8;
        image.trailing_pointers = trailing;
        if (through_launcher) {
            image.launch = [request, quantizes, this](unsigned grid, cuda::Stream stream,
                                                      const std::uint64_t* arguments, std::size_t count) {
                launcher(request, quantizes, grid, stream,
                         std::vector<std::uint64_t>(arguments, arguments + count));
            };
            return image;
        }
        image.image = "stub\n" + kernel + "\n";
        stub::register_kernel(kernel, parameters, [request, quantizes](const stub::Launch& launch) {
            const Arguments arguments{launch, request, quantizes ? 5U : 3U};
            for (unsigned program = 0; program < launch.grid_x; ++program) {
                if (quantizes) {
                    quantize_row_of(arguments, program);
                } else {
                    cast_tile_of(arguments, program, launch.grid_x);
                }
            }
        });
        return image;
    }

    std::vector<cuda::KernelRequest> requests() const {
        const std::lock_guard lock(mutex_);
        return requests_;
    }

    std::size_t trailing = 2;
    std::function<void()> meanwhile;  // what happens while a kernel is compiled
    std::string refusal;              // not empty: there are no kernels, for this reason
    bool through_launcher = false;
    std::function<void(const cuda::KernelRequest&, bool, unsigned, cuda::Stream, std::vector<std::uint64_t>)>
        launcher;

  private:
    struct Arguments {
        const stub::Launch& launch;
        const cuda::KernelRequest& request;
        std::size_t first;  // of the numbers behind pointers and, for quantize, the first row: begin

        std::int64_t number(std::size_t index) const { return launch.get<std::int64_t>(index); }
        std::int64_t begin() const { return number(first); }
        std::int64_t count() const { return number(first + 1); }
        std::int64_t length() const { return number(first + 2); }
        std::int64_t stride() const { return number(first + 3); }
        std::int64_t size(int dimension) const {
            return number(first + 2 + 2 * static_cast<std::size_t>(dimension));
        }
        std::int64_t step(int dimension) const {
            return number(first + 3 + 2 * static_cast<std::size_t>(dimension));
        }

        std::int64_t row_offset(std::int64_t row) const {
            const std::int64_t index[3] = {row % size(1), row / size(1) % size(2), row / size(1) / size(2)};
            std::int64_t offset = 0;
            for (int dimension = 1; dimension <= 3; ++dimension) {
                const std::int64_t at = index[dimension - 1];
                if (dimension != request.table_dimension) {
                    offset += at * step(dimension);
                    continue;
                }
                const std::int64_t entry = at + (request.per_row ? index[2] * size(dimension) : 0);
                const std::size_t table = request.kind == cuda::KernelKind::quantize ? 3 : 2;
                offset += launch.array<std::int64_t>(table, static_cast<std::size_t>(entry) + 1)[entry];
            }
            return offset;
        }
        const std::byte* source(std::int64_t offset) const {
            const std::uint64_t address =
                launch.get<std::uint64_t>(0) + static_cast<std::uint64_t>(offset) * item_size(request.source);
            return reinterpret_cast<const std::byte*>(launch.checked(address, item_size(request.source)));
        }
    };

    static void expect_promise(bool kept, const char* promise) {
        if (!kept) throw EngineError(std::string("a launch breaks its promise: ") + promise);
    }

    static void cast_tile_of(const Arguments& arguments, unsigned program, unsigned grid) {
        const cuda::KernelRequest& request = arguments.request;
        const std::int64_t begin = arguments.begin();
        const std::int64_t count = arguments.count();
        const std::int64_t length = arguments.length();
        const std::size_t size = item_size(request.target);
        expect_promise(count > 0 && length > 0 && begin >= 0, "something to do");
        const std::uint64_t from = arguments.launch.get<std::uint64_t>(0);
        const std::uint64_t to = arguments.launch.get<std::uint64_t>(1);
        if (request.aligned) {
            expect_promise(from % 16 == 0 && to % 16 == 0 && begin % 16 == 0 && arguments.stride() == 1,
                           "alignment");
            if (request.rows > 1) {
                expect_promise(length % 16 == 0 && count % 16 == 0, "alignment of rows");
                for (int each = 1; each <= 3; ++each) {
                    expect_promise(arguments.step(each) % 16 == 0, "alignment of strides");
                }
            }
        }
        const CastFunction cast = find_cast(request.source, request.target, request.rules, CpuLevel::scalar);
        const auto store = [&](std::int64_t element, std::int64_t offset) {
            const std::uint64_t address = to + static_cast<std::uint64_t>(element) * size;
            cast(arguments.source(offset),
                 reinterpret_cast<std::byte*>(arguments.launch.checked(address, size)), 1);
        };
        const std::int64_t columns = request.columns;
        if (request.rows == 1) {
            expect_promise(grid == (count + columns - 1) / columns, "the grid");
            for (std::int64_t e = program * columns; e < std::min(count, (program + 1) * columns); ++e) {
                store(e, (begin + e) * arguments.stride());
            }
            return;
        }
        const std::int64_t first_row = begin / length;
        const std::int64_t end_row = (begin + count - 1) / length + 1;
        const bool single = end_row - first_row == 1;
        const std::int64_t first_column = single ? begin - first_row * length : 0;
        const std::int64_t blocks = ((single ? count : length) + columns - 1) / columns;
        expect_promise(grid == (end_row - first_row + request.rows - 1) / request.rows * blocks, "the grid");
        const std::int64_t tile_row = first_row + program / blocks * request.rows;
        const std::int64_t tile_column = first_column + program % blocks * columns;
        for (std::int64_t row = tile_row; row < std::min(tile_row + request.rows, end_row); ++row) {
            const std::int64_t start = arguments.row_offset(row);
            for (std::int64_t column = tile_column; column < std::min(tile_column + columns, length);
                 ++column) {
                const std::int64_t element = row * length + column - begin;
                if (element >= 0 && element < count) store(element, start + column * arguments.stride());
            }
        }
    }

    static bool launch_aligned(const Arguments& arguments) {
        return arguments.launch.get<std::uint64_t>(0) % 16 == 0 &&
               arguments.launch.get<std::uint64_t>(1) % 16 == 0 && arguments.stride() == 1 &&
               arguments.step(1) % 16 == 0 && arguments.step(2) % 16 == 0 && arguments.step(3) % 16 == 0;
    }

    static void quantize_row_of(const Arguments& arguments, unsigned program) {
        const cuda::KernelRequest& request = arguments.request;
        const std::int64_t first_row = arguments.number(4);
        const std::int64_t row = first_row + program;
        const std::int64_t length = arguments.length();
        if (request.aligned) {
            const bool kept = launch_aligned(arguments) && length % 16 == 0;
            expect_promise(kept && arguments.begin() % 16 == 0 && arguments.count() % 16 == 0,
                           "alignment of rows");
        }
        const std::int64_t start = arguments.row_offset(row);
        const std::byte* source = length > 0 ? arguments.source(start) : nullptr;
        const auto stride = static_cast<std::ptrdiff_t>(arguments.stride());
        const float scale =
            row_scale(request.source, source, stride, static_cast<std::size_t>(length), CpuLevel::scalar);
        if ((request.write & 2) != 0) {
            float* scales = arguments.launch.array<float>(2, program + 1);
            scales[program] = scale;
        }
        if ((request.write & 1) == 0) return;
        const std::int64_t begin = arguments.begin();
        const std::int64_t from = std::max(begin, row * length);
        const std::int64_t end = std::min(begin + arguments.count(), (row + 1) * length);
        if (end <= from) return;
        auto* codes = arguments.launch.array<std::int8_t>(1, static_cast<std::size_t>(end - begin));
        quantize_row(request.source, arguments.source(start + (from - row * length) * stride), stride,
                     codes + (from - begin), static_cast<std::size_t>(end - from), scale, CpuLevel::scalar);
    }

    std::size_t number_of(const cuda::KernelRequest&) const { return requests_.size(); }

    mutable std::mutex mutex_;
    std::vector<cuda::KernelRequest> requests_;
};

}  // namespace nsf::testing_support
