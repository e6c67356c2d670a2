// What a tap remembers of the tensor that it was given last, so that the next one of the same kind needs no checks.
// Used with the GIL held.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "bindings/dlpack.hpp"
#include "core/record_form.hpp"
#include "core/tensor_view.hpp"

namespace nsf {

// Small enough to be copied with the GIL held: letting it go and taking it back costs as much as some 4 KiB of copying,
// and far more where other Python threads wait for it.
inline constexpr std::uint64_t small_bytes = 32 << 10;

// dtype, shape and strides of a tensor on the host, copied: torch's own may change as soon as the GIL is let go.
class TensorKind {
  public:
    // Of no tensor, as for those that have no kind: on a device, without memory or strides, of many axes.
    TensorKind() = default;
    explicit TensorKind(const dlpack::Tensor& raw) {
        if (!has_kind(raw)) return;
        axes_ = raw.ndim;
        type_ = raw.dtype;
        std::copy(raw.shape, raw.shape + axes_, shape_.begin());
        std::copy(raw.strides, raw.strides + axes_, strides_.begin());
    }

    bool is_of(const dlpack::Tensor& raw) const {
        return raw.ndim == axes_ && has_kind(raw) && raw.dtype.code == type_.code &&
               raw.dtype.bits == type_.bits && raw.dtype.lanes == type_.lanes &&
               std::equal(raw.shape, raw.shape + axes_, shape_.begin()) &&
               std::equal(raw.strides, raw.strides + axes_, strides_.begin());
    }

  private:
    static constexpr std::int32_t most_axes = 8;

    static bool has_kind(const dlpack::Tensor& raw) {
        return raw.ndim <= most_axes && raw.data != nullptr && raw.strides != nullptr &&
               raw.device.type == dlpack::cpu;
    }

    std::int32_t axes_ = -1;
    dlpack::DataType type_{};
    std::array<std::int64_t, most_axes> shape_{};
    std::array<std::int64_t, most_axes> strides_{};
};

class KnownTensor {
  public:
    // The form of this tensor's records; null where it is of another kind than the last, or of none that has one.
    const RecordForm* form(const dlpack::Tensor& raw) const {
        return form_ && kind_.is_of(raw) ? &*form_ : nullptr;
    }
    // Whether a form should be made for tensors like this one: for the second in a row, since shapes that change at
    // every step never come to it. Complex tensors have none: whether one is conjugated its bytes do not say.
    bool asks_for_form(const dlpack::Tensor& raw, const TensorView& view) {
        if (kind_.is_of(raw)) {
            const std::uint64_t elements = view.elements();
            return !form_ && view.device == TensorView::host && view.dtype != DType::c64 && elements > 0 &&
                   view.contiguous() && elements * item_size(view.dtype) <= small_bytes;
        }
        kind_ = TensorKind(raw);
        form_.reset();
        return false;
    }
    // Whatever the tap has been given in another thread meanwhile.
    void keep(const TensorKind& kind, const RecordForm& form) {
        kind_ = kind;
        form_ = form;
    }

  private:
    TensorKind kind_;
    std::optional<RecordForm> form_;
};

}  // namespace nsf
