// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

#include "check.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string>
#include <vector>

namespace fastvq {
namespace {

#if defined(__x86_64__)
Kernels with_coarse(Kernels table, const char* name, const ScoreKernels& coarse) {
  table.name = name;
  table.coarse = &coarse;
  return table;
}
#endif

// In order of preference.
std::vector<Kernels> available() {
  std::vector<Kernels> tables;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    tables.push_back(kAvx512Kernels);
    if (__builtin_cpu_supports("avx512bf16")) {
      // Intel's cores have one unit for these products and two for float32 ones: no gain there
      tables.insert(__builtin_cpu_is("amd") ? tables.begin() : tables.end(),
                    with_coarse(kAvx512Kernels, "avx512_bf16", kAvx512Bfloat16Scores));
    }
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    tables.push_back(kAvx2Kernels);
  }
#endif
  tables.push_back(kPortableKernels);
  return tables;
}

Kernels choose() {
  const std::vector<Kernels> tables = available();
  const char* wanted = std::getenv("FASTVQ_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return tables.front();
  std::string names;
  for (const Kernels& table : tables) {
    if (std::string(wanted) == table.name) return table;
    names += (names.empty() ? "" : ", ") + std::string(table.name);
  }
  check<std::runtime_error>(false, "FASTVQ_CPU_CAPABILITY must be one of those this machine has (",
                            names, "), got '", wanted, "'");
  return tables.back();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels table = choose();
  return table;
}

namespace {

std::string capability() { return kernels().name; }

}  // namespace
}  // namespace fastvq

STABLE_TORCH_LIBRARY_IMPL(fastvq_native, CompositeExplicitAutograd, m) {
  m.impl("capability", TORCH_BOX(&fastvq::capability));
}
