// The functions of torch's stable C interface that the compiled part calls. They are declared here, not included from
// torch, so that building needs no torch, and the result loads into any torch from 2.11 on, which have all of them with
// these signatures. tests/packaging/test_torch_abi.py compiles this file together with torch's own headers.
//
// They are found when munit_fast._C is loaded: the library needs libtorch_cpu.so by name, which `import torch` has
// loaded by then. One that is missing makes the import fail with an ImportError that names it.
#pragma once

#include <cstddef>
#include <cstdint>

// Handles own what they point to unless a comment says that they are borrowed.
struct AtenTensorOpaque;
struct DeviceGuardOpaque;
struct StableListOpaque;
class TorchLibraryOpaque;

extern "C" {

// All but those that give a number return 0, or an error code.

// An operator's arguments and results cross the interface as 64 bits each: numbers as they are, in the first bytes;
// tensors and lists as handles; T? as null or a pointer to such a value, allocated with `new`.
using StableIValue = uint64_t;

// Registration. A boxed kernel takes ownership of its arguments and leaves its results in the same array.
int32_t aoti_torch_library_init_def(const char* name, const char* file, uint32_t line, TorchLibraryOpaque** library);
int32_t aoti_torch_library_init_impl(const char* name, const char* dispatch_key, const char* file, uint32_t line,
                                     TorchLibraryOpaque** library);
int32_t aoti_torch_library_def(TorchLibraryOpaque* library, const char* schema);
int32_t torch_library_impl(TorchLibraryOpaque* library, const char* operator_name,
                           void (*kernel)(StableIValue* stack, uint64_t arguments, uint64_t results),
                           uint64_t version_of_the_interface);

// Tensors. Sizes and strides are borrowed.
int32_t aoti_torch_get_dim(AtenTensorOpaque* tensor, int64_t* dimensions);
int32_t aoti_torch_get_numel(AtenTensorOpaque* tensor, int64_t* elements);
int32_t aoti_torch_get_sizes(AtenTensorOpaque* tensor, int64_t** sizes);
int32_t aoti_torch_get_strides(AtenTensorOpaque* tensor, int64_t** strides);
int32_t aoti_torch_get_dtype(AtenTensorOpaque* tensor, int32_t* dtype);
int32_t aoti_torch_get_device_type(AtenTensorOpaque* tensor, int32_t* type);
int32_t aoti_torch_get_device_index(AtenTensorOpaque* tensor, int32_t* index);
int32_t aoti_torch_is_contiguous(AtenTensorOpaque* tensor, bool* contiguous);
int32_t torch_get_const_data_ptr(AtenTensorOpaque* tensor, const void** data);
int32_t torch_get_mutable_data_ptr(AtenTensorOpaque* tensor, void** data);
int32_t aoti_torch_empty_strided(int64_t dimensions, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                 int32_t device_type, int32_t device_index, AtenTensorOpaque** tensor);
int32_t aoti_torch_delete_tensor_object(AtenTensorOpaque* tensor);

// torch's numbers for dtypes.
int32_t aoti_torch_dtype_float32();
int32_t aoti_torch_dtype_float64();
int32_t aoti_torch_dtype_bfloat16();
int32_t aoti_torch_dtype_float16();

// Lists of arguments.
int32_t torch_list_size(StableListOpaque* list, size_t* size);
int32_t torch_list_get_item(StableListOpaque* list, size_t index, StableIValue* item);
int32_t torch_delete_list(StableListOpaque* list);

// torch's threads.
int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t begin, int64_t end, void*),
                           void* context);
int32_t torch_get_num_threads(uint32_t* threads);

// The current device, for the life of the guard.
int32_t aoti_torch_create_device_guard(int32_t index, DeviceGuardOpaque** guard);
int32_t aoti_torch_delete_device_guard(DeviceGuardOpaque* guard);
}
