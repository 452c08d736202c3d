// munit_fast._C: what was built, and which instruction set is in use. Importing it registers the operators of ops.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace py = pybind11;
namespace cpu = munit_fast::cpu;

namespace {

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
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native part of munit_fast.";
  m.def("available_isas", &available_isas, "Instruction sets that this machine runs, best first.");
  m.def("isa", [] { return std::string(cpu::active().name); }, "The instruction set in use.");
  m.def("set_isa", &set_isa, py::arg("isa").none(true), "Use one instruction set; None: the best.");
  m.def("build_info", &build_info, "Compiler, flags, architecture and the torch whose headers were used.");
}
