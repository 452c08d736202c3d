// munit_fast._C: what was built, and which instruction set is in use. Importing it registers the operators of
// cpu/ops.cpp and cuda/ops.cpp, so `import torch` comes first.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/enums.h"
#include "cpu/kernels.h"
#include "cuda/prepare.h"

namespace py = pybind11;
namespace cpu = munit_fast::cpu;

namespace {

#include "build.inl"  // written by ninja_build.py

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const char* const* name = cpu::available(); *name; ++name) names.emplace_back(*name);
  return names;
}

void set_isa(const std::optional<std::string>& name) {
  if (!cpu::force(name ? name->c_str() : nullptr)) {
    std::string known;
    for (const auto& isa : available_isas()) known += (known.empty() ? "" : ", ") + isa;
    throw py::value_error("isa must be one of " + known + " on this machine; got '" + *name + "'");
  }
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["flags"] = build_flags;
#if defined(__aarch64__)
  info["architecture"] = "aarch64";
#else
  info["architecture"] = "x86-64";
#endif
  info["instruction set"] = cpu::active().name;
#if MUNIT_FAST_CUDA
  info["cuda_compiler"] = cuda_compiler;
  info["cuda_architectures"] = cuda_architectures;
  info["cuda_flags"] = cuda_flags;
#else
  info["cuda_error"] = cuda_error;
#endif
  return info;
}

template <size_t count> std::vector<std::string> list(const char* const (&names)[count]) {
  return {names, names + count};
}

py::dict enums() {
  py::dict codes;
  codes["norms"] = list(munit_fast::norm_names);
  codes["activations"] = list(munit_fast::activation_names);
  codes["pad_modes"] = list(munit_fast::pad_mode_names);
  codes["winograd_plans"] = list(munit_fast::winograd_plan_names);
  return codes;
}

void prepare_cuda(int index) {
#if MUNIT_FAST_CUDA
  munit_fast::cuda::prepare(index);
#else
  throw std::runtime_error(std::string("built without CUDA: ") + cuda_error + ", device " + std::to_string(index));
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native part of munit_fast.";
  // Not while the library is loaded, where an exception would end the process: here it becomes an ImportError.
  try {
    cpu::register_operators();
#if MUNIT_FAST_CUDA
    munit_fast::cuda::register_operators();
#endif
  } catch (const std::runtime_error& error) {
    throw py::import_error(error.what());
  }
  m.def("available_isas", &available_isas, "Instruction sets that this machine runs, best first.");
  m.def("isa", [] { return std::string(cpu::active().name); }, "The instruction set in use.");
  m.def("set_isa", &set_isa, py::arg("isa").none(true), "Use one instruction set; None: the best.");
  m.def("vector_floats", [] { return cpu::active().vector_floats; },
        "Numbers in a vector of the Winograd convolutions of the instruction set in use; 0: it has none.");
  m.def("build_info", &build_info,
        "Compiler, flags, architecture and instruction set in use; the same of the CUDA part, or cuda_error.");
  m.def("enums", &enums, "Names of the norms, activations and padding modes; the index of each is its code.");
  m.def("prepare_cuda", &prepare_cuda, py::arg("index"),
        "Load the CUDA kernels on a device and set their attributes; RuntimeError says why that fails.");
}
