// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

#include "check.h"

#include <torch/csrc/stable/library.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <string>
#include <vector>

namespace fastvq {
namespace {

#if defined(__x86_64__)
// Below this many channels codes lie too close for shorter products to tell many apart.
constexpr int64_t kCoarseDepth = 4;
// Products of 32 channels, were they 8 or 32: float32 was 1.4 times as fast at 8 (a Xeon).
constexpr int64_t kAmxDepth = 9;

Kernels with_coarse(Kernels table, const char* name, const ScoreKernels& coarse, int64_t depth) {
  table.name = name;
  table.coarse = &coarse;
  table.coarse_depth = depth;
  return table;
}

// Whether the machine has AMX with bfloat16, and the system lets this process use its tiles.
bool has_amx() {
#if defined(__linux__)
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24;  // cpuid, leaf 7, edx
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kBfloat16) != 0 &&
         (edx & kTile) != 0 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
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
      tables.insert(
          __builtin_cpu_is("amd") ? tables.begin() : tables.end(),
          with_coarse(kAvx512Kernels, "avx512_bf16", kAvx512Bfloat16Scores, kCoarseDepth));
      if (has_amx()) {
        tables.insert(tables.begin(), with_coarse(kAvx512Kernels, "amx", kAmxScores, kAmxDepth));
      }
    }
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    tables.push_back(kAvx2Kernels);
    // where two vectors of integers are multiplied a cycle; elsewhere not measured
    const bool wide = __builtin_cpu_is("amd") && !__builtin_cpu_is("amdfam15h") &&
                      !__builtin_cpu_is("amdfam17h");
    tables.insert(wide ? tables.end() - 1 : tables.end(),
                  with_coarse(kAvx2Kernels, "avx2_int16", kAvx2Int16Scores, kCoarseDepth));
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
