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

class KnownTensor {
  public:
    // The form of this tensor's records; null where it is of another kind than the last, or of none that has one.
    const RecordForm* form(const dlpack::Tensor& raw) const {
        return form_ && is_last(raw) ? &*form_ : nullptr;
    }
    // Whether a form should be made for tensors like this one: for the second in a row, since shapes that change at
    // every step never come to it.
    bool asks_for_form(const dlpack::Tensor& raw, const TensorView& view) {
        if (is_last(raw)) {
            const std::uint64_t elements = view.elements();
            return !form_ && view.device == TensorView::host && elements > 0 && view.contiguous() &&
                   elements * item_size(view.dtype) <= small_bytes;
        }
        remember(raw);
        return false;
    }
    // The form of tensors like this one, whatever the tap has been given in another thread meanwhile.
    void keep(const dlpack::Tensor& raw, const RecordForm& form) {
        remember(raw);
        if (axes_ >= 0) form_ = form;
    }

  private:
    static constexpr std::int32_t most_axes = 8;

    bool is_last(const dlpack::Tensor& raw) const {
        return raw.ndim == axes_ && raw.data != nullptr && raw.device.type == dlpack::cpu &&
               raw.dtype.code == type_.code && raw.dtype.bits == type_.bits &&
               raw.dtype.lanes == type_.lanes && raw.strides != nullptr &&
               std::equal(raw.shape, raw.shape + axes_, shape_.begin()) &&
               std::equal(raw.strides, raw.strides + axes_, strides_.begin());
    }
    void remember(const dlpack::Tensor& raw) {
        form_.reset();
        axes_ = -1;
        if (raw.ndim > most_axes || raw.strides == nullptr) return;
        axes_ = raw.ndim;
        type_ = raw.dtype;
        std::copy(raw.shape, raw.shape + axes_, shape_.begin());
        std::copy(raw.strides, raw.strides + axes_, strides_.begin());
    }

    std::int32_t axes_ = -1;
    dlpack::DataType type_{};
    std::array<std::int64_t, most_axes> shape_{};
    std::array<std::int64_t, most_axes> strides_{};
    std::optional<RecordForm> form_;
};

}  // namespace nsf
