// The compiled kernels of one device: found by what they do, loaded once, launched on a caller's stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "core/cast.hpp"
#include "core/dtype.hpp"
#include "cuda/driver.hpp"

namespace nsf::cuda {

enum class KernelKind : std::uint8_t { gather_cast, quantize };

// Which kernel: see python/neuroscope_fast/kernels for what each field does to it.
struct KernelRequest {
    KernelKind kind = KernelKind::gather_cast;
    DType source = DType::f32;
    DType target = DType::f32;
    int table_dimension = 0;
    bool per_row = false;
    int write = 0;          // quantize: 1 codes, 2 scales, 3 both
    std::int64_t rows = 1;  // of a tile
    std::int64_t columns = 1;
    bool aligned = false;
    CastRules rules;

    auto key() const {
        return std::tuple(kind, source, target, table_dimension, per_row, write, rows, columns, aligned,
                          rules.e4m3_saturates, rules.e5m2_saturates);
    }
};

// The most values a kernel takes, its compiler's own included.
inline constexpr std::size_t most_arguments = 20;

// A compiled kernel as its maker gives it.
struct KernelImage {
    std::string image;  // a cubin; empty: `launch` does it
    std::string name;
    unsigned warps = 4;
    unsigned shared_bytes = 0;
    std::size_t trailing_pointers =
        0;  // that the compiler added behind the arguments; null is given for them
    // The way through Triton's own launcher, where the image's parameters are not known to this version.
    std::function<void(unsigned grid, Stream stream, const std::uint64_t* arguments, std::size_t count)>
        launch;
};

class KernelMaker {
  public:
    virtual ~KernelMaker() = default;
    // Called once for each request, with the device's context current. Throws EngineError with the reason.
    virtual KernelImage make(const KernelRequest& request, int device) = 0;
};

class Kernels {
  public:
    Kernels(const Driver& driver, Context context, KernelMaker& maker, int device)
        : driver_(driver), context_(context), maker_(maker), device_(device) {}
    ~Kernels();
    Kernels(const Kernels&) = delete;
    Kernels& operator=(const Kernels&) = delete;

    // Makes and loads the kernel where that has not been done.
    void load(const KernelRequest& request) { static_cast<void>(find(request)); }
    void launch(const KernelRequest& request, std::uint64_t grid, Stream stream,
                std::span<const std::uint64_t> arguments);

  private:
    struct Loaded {
        KernelImage image;
        Module module = nullptr;
        Function function = nullptr;
    };

    const Loaded& find(const KernelRequest& request);

    const Driver& driver_;
    const Context context_;
    KernelMaker& maker_;
    const int device_;
    std::map<decltype(KernelRequest().key()), Loaded> loaded_;
    const Loaded* last_ = nullptr;  // the taps of one step mostly need the same
    decltype(KernelRequest().key()) last_key_;
};

}  // namespace nsf::cuda
