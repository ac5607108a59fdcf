// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"
#include "target.h"

#if defined(__x86_64__)
#include <immintrin.h>

FASTVQ_TARGET_BEGIN("avx2,fma")
namespace fastvq::avx2 {
namespace {
#include "simd_avx2.h"
#include "compare_kernel.h"
#include "read_kernel.h"
#include "gather_kernel.h"
#include "accumulate_kernel.h"
#include "entropy_kernel.h"
namespace float32 {
// 12 accumulators, 3 row vectors and a broadcast code fill the 16 registers
constexpr int kRowVectors = 3;
constexpr int kBlockCodes = 4;
#include "product_float32.h"
#include "score_kernel.h"
#include "group_kernel.h"
#include "pack_kernel.h"
}  // namespace float32
}  // namespace
}  // namespace fastvq::avx2
FASTVQ_TARGET_END

namespace fastvq {
using namespace avx2;
#include "kernel_table.h"
const Kernels kAvx2Kernels = make_table("avx2");
}  // namespace fastvq
#endif
