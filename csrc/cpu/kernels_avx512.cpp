// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"
#include "target.h"

#if defined(__x86_64__)
#include <immintrin.h>

FASTVQ_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace fastvq::avx512 {
namespace {
#include "simd_avx512.h"
#include "compare_kernel.h"
#include "read_kernel.h"
#include "gather_kernel.h"
#include "accumulate_kernel.h"
#include "entropy_kernel.h"
namespace float32 {
// 24 accumulators, 2 row vectors and a broadcast code leave 5 of the 32 registers to the compiler
constexpr int kRowVectors = 2;
constexpr int kBlockCodes = 12;
#include "product_float32.h"
#include "score_kernel.h"
#include "group_kernel.h"
#include "pack_kernel.h"
}  // namespace float32
}  // namespace
}  // namespace fastvq::avx512
FASTVQ_TARGET_END

namespace fastvq {
using namespace avx512;
#include "kernel_table.h"
const Kernels kAvx512Kernels = make_table("avx512");
}  // namespace fastvq
#endif
