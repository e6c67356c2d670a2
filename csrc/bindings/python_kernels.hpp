// Gets compiled kernels from neuroscope_fast.kernels.launch.
#pragma once

#include "bindings/tensor_access.hpp"
#include "cuda/kernels.hpp"

namespace nsf {

// Called by taps that have released the GIL; takes it for as long as Python compiles.
class PythonKernels final : public cuda::KernelMaker {
  public:
    cuda::KernelImage make(const cuda::KernelRequest& request, int device) override;
};

}  // namespace nsf
