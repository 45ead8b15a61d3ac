// The part of the DLPack 1.x ABI that torch.Tensor.__dlpack_c_exchange_api__ speaks, declared here
// so that building needs no torch. Layouts follow the DLPack specification
// (github.com/dmlc/dlpack).
#pragma once
#include <cstdint>

namespace dlpack {

constexpr uint32_t kMajorVersion = 1;

enum DeviceType : int32_t { kCpu = 1, kCuda = 2 };
enum DataTypeCode : uint8_t { kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Version {
  uint32_t major;
  uint32_t minor;
};

struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  int (*managed_tensor_allocator)(Tensor*, void**, void*,
                                  void (*)(void*, const char*, const char*));
  int (*managed_tensor_from_py_object)(void*, void**);
  int (*managed_tensor_to_py_object)(void*, void**);
  int (*tensor_from_py_object)(void* py_object, Tensor* out);  // a borrowed view: may be null
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** out);
};

}  // namespace dlpack
