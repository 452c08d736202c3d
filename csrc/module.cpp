// munit_fast._C: what was built, and which instruction set is in use. Importing it registers the operators of ops.cpp and
// cuda/ops.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cuda/prepare.h"

namespace py = pybind11;
namespace cpu = munit_fast::cpu;

namespace {

// What a kernel takes on an architecture, as ptxas says.
struct Resources {
  const char *kernel, *architecture;
  int registers, shared, stack, spilled;
};

#include "cuda_build.inl"  // written by setup.py

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
  info["flags"] = MUNIT_FAST_FLAGS;
  info["torch"] = MUNIT_FAST_TORCH;
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

py::list resource_table() {
  py::list table;
#if MUNIT_FAST_CUDA
  for (const Resources& r : resources) {
    py::dict row;
    row["kernel"] = r.kernel, row["architecture"] = r.architecture, row["registers"] = r.registers;
    row["shared"] = r.shared, row["stack"] = r.stack, row["spilled"] = r.spilled;
    table.append(row);
  }
#endif
  return table;
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
  m.def("available_isas", &available_isas, "Instruction sets that this machine runs, best first.");
  m.def("isa", [] { return std::string(cpu::active().name); }, "The instruction set in use.");
  m.def("set_isa", &set_isa, py::arg("isa").none(true), "Use one instruction set; None: the best.");
  m.def("build_info", &build_info,
        "Compiler, flags, architecture, instruction set in use and the torch whose headers were used; the same of the "
        "CUDA part, or cuda_error.");
  m.def("resource_table", &resource_table,
        "Registers, static shared memory, stack and spilled bytes of each CUDA kernel on each architecture.");
  m.def("prepare_cuda", &prepare_cuda, py::arg("index"),
        "Load the CUDA kernels on a device and set their attributes; RuntimeError says why that fails.");
}
