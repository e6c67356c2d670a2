// Torch's own context of a device.
#pragma once

#include "cuda/driver.hpp"

namespace nsf::cuda {

// Keeps the context alive. Throws EngineError where there is no such device.
class PrimaryContext {
  public:
    PrimaryContext(const Driver& driver, int device);
    ~PrimaryContext();
    PrimaryContext(const PrimaryContext&) = delete;
    PrimaryContext& operator=(const PrimaryContext&) = delete;

    Context get() const { return context_; }

  private:
    const Driver& driver_;
    int handle_ = 0;
    Context context_ = nullptr;
};

}  // namespace nsf::cuda
