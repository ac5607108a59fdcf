// SPDX-License-Identifier: Apache-2.0
// The coarse pass on AVX2 with 16-bit integer products: twice the rate of float32 ones where a core
// multiplies two vectors of them a cycle and has other units for the sums.
#include "kernels.h"
#include "target.h"

#if defined(__x86_64__)
#include <immintrin.h>

FASTVQ_TARGET_BEGIN("avx2,fma")
namespace fastvq::avx2_int16 {
namespace {
#include "simd_avx2.h"
#include "compare_kernel.h"

using Ints = __m256i;
FASTVQ_INLINE Ints round_to_int(Floats v) { return _mm256_cvtps_epi32(v); }
FASTVQ_INLINE Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
FASTVQ_INLINE Floats floats_of(Ints v) { return _mm256_castsi256_ps(v); }
FASTVQ_INLINE Floats subtract_product(Floats a, Floats b, Floats c) {
  return _mm256_fnmadd_ps(a, b, c);
}
// The low halves of two vectors, in the low and the high halves of one.
FASTVQ_INLINE Ints joined_halves(Ints low, Ints high) {
  return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xAA);
}

#include "product_int16.h"

// 8 accumulators, 2 row vectors and a broadcast code leave 5 of the 16 registers to products on
// their way; sums of integers take one cycle, so that more accumulators would gain nothing
constexpr int kRowVectors = 2;
constexpr int kBlockCodes = 4;

#include "register_block.h"

// score[code][row] = bias[code] + scale[code] * scale[row] * sum_w packed[w][code] * panel[w][row]
FASTVQ_INLINE void score_block(const float* panel, int64_t words, const float* packed,
                               const float* bias, Scores& score) {
  Ints total[kBlockCodes][kRowVectors];
#pragma GCC unroll 4
  for (int c = 0; c < kBlockCodes; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < kRowVectors; ++v) total[c][v] = _mm256_setzero_si256();
  }
#pragma GCC unroll 2
  for (int64_t w = 0; w < words - kScaleWords; ++w) {
    Ints row[kRowVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kRowVectors; ++v) row[v] = _mm256_castps_si256(load(panel + v * kLanes));
#pragma GCC unroll 4
    for (int c = 0; c < kBlockCodes; ++c) {
      const Ints code = _mm256_castps_si256(broadcast(packed[c]));
#pragma GCC unroll 2
      for (int v = 0; v < kRowVectors; ++v) {
        total[c][v] = _mm256_add_epi32(total[c][v], _mm256_madd_epi16(row[v], code));
      }
    }
    panel += kPanelRows;
    packed += kBlockCodes;
  }
#pragma GCC unroll 4
  for (int c = 0; c < kBlockCodes; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < kRowVectors; ++v) {
      const Floats scale = load(panel + v * kLanes) * broadcast(packed[c]);
      score[c][v] = multiply_add(to_floats(total[c][v]), scale, broadcast(bias[c]));
    }
  }
}

#include "group_kernel.h"
#include "pack_kernel.h"
}  // namespace
}  // namespace fastvq::avx2_int16
FASTVQ_TARGET_END

namespace fastvq {
#include "score_table.h"
const ScoreKernels kAvx2Int16Scores = FASTVQ_SCORE_TABLE(avx2_int16);
}  // namespace fastvq
#endif
