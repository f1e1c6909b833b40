// _cpu: what the processor can do. It is asked before a module for an instruction set is loaded, so
// nothing here may need more than the baseline of the architecture.
#include <pybind11/pybind11.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace natgrad {
namespace {

namespace py = pybind11;

#if defined(__x86_64__)

// Features of which __builtin_cpu_supports knows the names only in newer compilers.
struct Cpuid {
  unsigned int ecx1 = 0;      // leaf 1
  unsigned int ecx_ext1 = 0;  // leaf 0x80000001
  Cpuid() {
    unsigned int a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d)) ecx1 = c;
    if (__get_cpuid(0x80000001U, &a, &b, &c, &d)) ecx_ext1 = c;
  }
};

// The levels of the x86-64 psABI, feature by feature: not all compilers that know -march=x86-64-v3
// can ask for "x86-64-v3". __builtin_cpu_supports says yes to avx and what builds on it only if the
// operating system saves the registers (XCR0).
bool has_v2(const Cpuid& id) {
  return __builtin_cpu_supports("sse3") && __builtin_cpu_supports("ssse3") &&
         __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("sse4.2") &&
         __builtin_cpu_supports("popcnt") && (id.ecx1 & bit_CMPXCHG16B) &&
         (id.ecx_ext1 & bit_LAHF_LM);
}

bool has_v3(const Cpuid& id) {
  return has_v2(id) && __builtin_cpu_supports("avx") && __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("fma") && (id.ecx1 & bit_F16C) && (id.ecx1 & bit_MOVBE) &&
         (id.ecx1 & bit_OSXSAVE) && (id.ecx_ext1 & bit_LZCNT);
}

bool has_v4(const Cpuid& id) {
  return has_v3(id) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

#endif

py::tuple levels() {
  py::list found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const Cpuid id;
  if (has_v2(id)) found.append("x86-64-v2");
  if (has_v3(id)) found.append("x86-64-v3");
  if (has_v4(id)) found.append("x86-64-v4");
#endif
  return py::tuple(found);
}

}  // namespace
}  // namespace natgrad

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Private: instruction sets of this processor, built for any processor.";
  m.def("levels",
        &natgrad::levels,
        "The x86-64 levels that processor and operating system have, lowest first.");
}
