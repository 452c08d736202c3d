// Tensors and the registration of operators over torch's C interface: what cpu/ops.cpp and cuda/ops.cpp need, no more.
#pragma once

#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../common/enums.h"
#include "abi.h"

namespace munit_fast {

// The interface's version that this file follows, 2.11, as torch writes it.
constexpr uint64_t interface_version = (uint64_t{2} << 56) | (uint64_t{11} << 48);

inline void check(bool ok, const char* message, const char* name = "") {
  if (!ok) throw std::runtime_error(std::string("munit_fast: ") + name + message);
}

// The result of a call of the interface.
inline void succeed(int32_t error, const char* what) {
  if (error != 0) throw std::runtime_error(std::string("munit_fast: torch failed at ") + what);
}

inline int32_t torch_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32: return aoti_torch_dtype_float32();
    case Dtype::bf16: return aoti_torch_dtype_bfloat16();
    case Dtype::f16: return aoti_torch_dtype_float16();
    case Dtype::f64: return aoti_torch_dtype_float64();
    default: throw std::runtime_error("munit_fast: not a floating-point type");
  }
}

class Tensor {
 public:
  explicit Tensor(AtenTensorOpaque* owned) : handle_(owned) {}

  // Contiguous, of one dimension, on the device of `like`.
  static Tensor empty(int64_t size, Dtype dtype, const Tensor& like) {
    const int64_t stride = 1;
    return empty(1, &size, &stride, dtype, like);
  }
  // [n, c, h, w], dense in one of the two layouts, on the device of `like`.
  static Tensor empty_image(const int64_t (&size)[4], bool channels_last, Dtype dtype, const Tensor& like) {
    const auto [n, c, h, w] = size;
    const int64_t nchw[4] = {c * h * w, h * w, w, 1}, nhwc[4] = {c * h * w, 1, w * c, c};
    return empty(4, size, channels_last ? nhwc : nchw, dtype, like);
  }
  // On the device of `like`.
  static Tensor empty(int64_t dimensions, const int64_t* sizes, const int64_t* strides, Dtype dtype,
                      const Tensor& like) {
    int32_t device_type = 0;
    succeed(aoti_torch_get_device_type(like.get(), &device_type), "a tensor's device");
    AtenTensorOpaque* made = nullptr;
    succeed(aoti_torch_empty_strided(dimensions, sizes, strides, torch_dtype(dtype), device_type, like.device_index(),
                                     &made),
            "allocating memory");
    return Tensor(made);
  }

  int64_t dim() const { return ask<int64_t>(aoti_torch_get_dim); }
  int64_t numel() const { return ask<int64_t>(aoti_torch_get_numel); }
  const int64_t* sizes() const { return ask<int64_t*>(aoti_torch_get_sizes); }
  const int64_t* strides() const { return ask<int64_t*>(aoti_torch_get_strides); }
  bool is_contiguous() const { return ask<bool>(aoti_torch_is_contiguous); }
  int32_t device_index() const { return ask<int32_t>(aoti_torch_get_device_index); }
  const void* data() const { return ask<const void*>(torch_get_const_data_ptr); }
  void* mutable_data() const { return ask<void*>(torch_get_mutable_data_ptr); }

  Dtype dtype() const {
    const int32_t dtype = ask<int32_t>(aoti_torch_get_dtype);
    for (const Dtype known : {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::f64})
      if (dtype == torch_dtype(known)) return known;
    return Dtype::other;
  }

  // The handle, whose owner the caller becomes.
  AtenTensorOpaque* release() { return handle_.release(); }

  // Of a tensor of floating-point numbers that this file knows; else std::runtime_error.
  Dtype floating_dtype() const {
    const Dtype found = dtype();
    check(found != Dtype::other, "a tensor of float32, float64, bfloat16 or float16 is needed");
    return found;
  }

 private:
  struct Delete {
    void operator()(AtenTensorOpaque* handle) const { aoti_torch_delete_tensor_object(handle); }
  };

  AtenTensorOpaque* get() const { return handle_.get(); }

  template <class T> T ask(int32_t (*function)(AtenTensorOpaque*, T*)) const {
    T value{};
    succeed(function(get(), &value), "reading a tensor");
    return value;
  }

  std::unique_ptr<AtenTensorOpaque, Delete> handle_;
};

using MaybeTensor = std::optional<Tensor>;

// Gradients are like their tensors, and the tensors of a pair like each other.
inline bool same_size_and_dtype(const Tensor& a, const Tensor& b) {
  return a.numel() == b.numel() && a.dtype() == b.dtype();
}

inline const void* data(const MaybeTensor& t) { return t ? t->data() : nullptr; }
inline void* mutable_data(const MaybeTensor& t) { return t ? t->mutable_data() : nullptr; }

// ---- boxed kernels ----

template <class T> struct Unboxed {  // int64_t, double and bool
  static_assert(std::is_arithmetic_v<T>);
  static T take(StableIValue value) {
    T result;
    std::memcpy(&result, &value, sizeof(T));
    return result;
  }
};

template <> struct Unboxed<Tensor> {
  static Tensor take(StableIValue value) { return Tensor(reinterpret_cast<AtenTensorOpaque*>(value)); }
};

template <class T> struct Unboxed<std::optional<T>> {
  static std::optional<T> take(StableIValue value) {
    const std::unique_ptr<StableIValue> inner(reinterpret_cast<StableIValue*>(value));
    if (!inner) return std::nullopt;
    return Unboxed<T>::take(*inner);
  }
};

template <class T> struct Unboxed<std::vector<T>> {
  static std::vector<T> take(StableIValue value) {
    struct Delete {
      void operator()(StableListOpaque* list) const { torch_delete_list(list); }
    };
    const std::unique_ptr<StableListOpaque, Delete> list(reinterpret_cast<StableListOpaque*>(value));
    size_t size = 0;
    succeed(torch_list_size(list.get(), &size), "reading a list");
    std::vector<T> result;
    result.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue item = 0;
      succeed(torch_list_get_item(list.get(), i, &item), "reading a list");
      result.push_back(Unboxed<T>::take(item));
    }
    return result;
  }
};

inline StableIValue boxed(Tensor&& t) { return reinterpret_cast<StableIValue>(t.release()); }
inline StableIValue boxed(MaybeTensor&& t) {
  return t ? reinterpret_cast<StableIValue>(new StableIValue(boxed(std::move(*t)))) : StableIValue{0};
}

template <class T> constexpr size_t result_count = 1;
template <> constexpr size_t result_count<void> = 0;
template <class... T> constexpr size_t result_count<std::tuple<T...>> = sizeof...(T);

// The function as torch calls it; its parameters are values or constant references, its result nothing, a number, a
// tensor or a tuple of tensors, some of which may be missing.
template <auto function> struct Boxed;
template <class Result, class... Parameters, Result (*function)(Parameters...)> struct Boxed<function> {
  static void call(StableIValue* stack, uint64_t arguments, uint64_t results) {
    check(arguments == sizeof...(Parameters) && results == result_count<Result>,
          "a schema and its kernel differ in the number of arguments or results");
    call(stack, std::index_sequence_for<Parameters...>());
  }

 private:
  template <size_t... i> static void call(StableIValue* stack, std::index_sequence<i...>) {
    // Braces: in order, so that all that were taken are freed if one throws.
    const std::tuple<std::decay_t<Parameters>...> values{Unboxed<std::decay_t<Parameters>>::take(stack[i])...};
    if constexpr (std::is_void_v<Result>) {
      function(std::get<i>(values)...);
    } else if constexpr (std::is_arithmetic_v<Result>) {
      const Result result = function(std::get<i>(values)...);
      stack[0] = 0;
      std::memcpy(stack, &result, sizeof(result));
    } else if constexpr (std::is_same_v<Result, Tensor>) {
      stack[0] = boxed(function(std::get<i>(values)...));
    } else {
      Result result = function(std::get<i>(values)...);
      std::apply([&](auto&... member) { ((*stack++ = boxed(std::move(member))), ...); }, result);
    }
  }
};

// A library of operators, or with a dispatch key their kernels; registered for as long as the process lives.
class Library {
 public:
  explicit Library(const char* name) {
    succeed(aoti_torch_library_init_def(name, __FILE__, __LINE__, &handle_), "registering a library");
  }
  Library(const char* name, const char* dispatch_key) {
    succeed(aoti_torch_library_init_impl(name, dispatch_key, __FILE__, __LINE__, &handle_), "registering a library");
  }
  void define(const char* schema) { succeed(aoti_torch_library_def(handle_, schema), schema); }
  template <auto function> void implement(const char* name) {
    succeed(torch_library_impl(handle_, name, &Boxed<function>::call, interface_version), name);
  }

 private:
  TorchLibraryOpaque* handle_ = nullptr;
};

}  // namespace munit_fast
