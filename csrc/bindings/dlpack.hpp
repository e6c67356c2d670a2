// The part of DLPack's C ABI (version 1) that reads a tensor through torch.Tensor.__dlpack_c_exchange_api__.
// Declared here so that the extension builds without torch. Source: github.com/dmlc/dlpack,
// include/dlpack/dlpack.h.
#pragma once

#include <cstdint>

namespace nsf::dlpack {

struct Version {
    std::uint32_t major;
    std::uint32_t minor;
};

enum DeviceType : std::int32_t { cpu = 1, cuda = 2, cuda_host = 3 };

enum TypeCode : std::uint8_t {
    code_int = 0,
    code_uint = 1,
    code_float = 2,
    code_bfloat = 4,
    code_complex = 5,
    code_bool = 6,
    code_float8_e4m3fn = 10,
    code_float8_e5m2 = 12
};

struct DataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};

struct Device {
    std::int32_t type;
    std::int32_t id;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // may be null: contiguous
    std::uint64_t byte_offset;
};

struct ExchangeApi {
    Version version;
    ExchangeApi* previous;
    void* managed_tensor_allocator;
    void* managed_tensor_from_py_object_no_sync;
    void* managed_tensor_to_py_object_no_sync;
    // Fills `out` with pointers into the tensor, which stays the owner; 0, or -1 with a Python error set.
    int (*tensor_from_py_object_no_sync)(void* py_object, Tensor* out);
    // The stream on which torch works now, for the calling thread; 0, or -1 with a Python error set.
    int (*current_work_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

}  // namespace nsf::dlpack
