// SPDX-License-Identifier: Apache-2.0
// The coarse pass on AMX: a block of 32 codes and a panel of 32 rows are four tiles of scores.
#include "kernels.h"
#include "target.h"

#if defined(__x86_64__)
#include <immintrin.h>

FASTVQ_TARGET_BEGIN(
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,amx-tile,amx-bf16")
namespace fastvq::amx {
namespace {
#include "simd_avx512.h"
#include "compare_kernel.h"
#include "product_bfloat16.h"

constexpr int kTileRows = 16;   // codes of a tile of codes, words of a tile of rows
constexpr int kTileWords = 16;  // words in a row of a tile: 64 bytes
constexpr int64_t kWordMultiple = kTileWords;
constexpr int kRowVectors = 2;
constexpr int kBlockCodes = 2 * kTileRows;
constexpr int kPanelRows = kRowVectors * kLanes;

// A tile holds a code a row, so that a row of a tile of scores is one code against 16 rows of x.
using Scores = Floats[kBlockCodes][kRowVectors];

// packed[chunk of 16 words][code][word of the chunk]
FASTVQ_INLINE float* code_words(float* block, int64_t w) { return block + w * kBlockCodes; }
FASTVQ_INLINE void store_code_words(const float* words, int64_t count, int code, float* packed) {
  __builtin_memcpy(packed + code * kTileWords, words, static_cast<size_t>(count) * sizeof(float));
}

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

constexpr TileShapes kTileShapes;

// GCC's tile loads do not tell the compiler that they read memory.
FASTVQ_INLINE void finish_stores() { __asm__ volatile("" ::: "memory"); }

// The tiles are a state of the thread: set up for a call, given back at its end.
struct ScoreSession {
  ScoreSession() {
    _tile_loadconfig(&kTileShapes);
    finish_stores();
  }
  ~ScoreSession() { _tile_release(); }
};

// Tiles 0 to 3 are scores, 4 and 5 codes, 6 and 7 rows.
FASTVQ_INLINE void score_block(const float* panel, int64_t words, const float* packed,
                               const float* bias, Scores& score) {
  constexpr int kBytes = sizeof(Floats);
  alignas(64) float start[kBlockCodes][kLanes];
  for (int c = 0; c < kBlockCodes; ++c) store(start[c], broadcast(bias[c]));
  finish_stores();
  _tile_loadd(0, start[0], kBytes);
  _tile_loadd(1, start[0], kBytes);
  _tile_loadd(2, start[kTileRows], kBytes);
  _tile_loadd(3, start[kTileRows], kBytes);
  for (int64_t w = 0; w < words; w += kTileWords) {
    const float* codes = packed + w * kBlockCodes;
    const float* rows = panel + w * kPanelRows;
    _tile_loadd(4, codes, kBytes);
    _tile_loadd(5, codes + kTileRows * kTileWords, kBytes);
    _tile_loadd(6, rows, kRowVectors * kBytes);
    _tile_loadd(7, rows + kLanes, kRowVectors * kBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, &score[0][0], kRowVectors * kBytes);
  _tile_stored(1, &score[0][1], kRowVectors * kBytes);
  _tile_stored(2, &score[kTileRows][0], kRowVectors * kBytes);
  _tile_stored(3, &score[kTileRows][1], kRowVectors * kBytes);
}

#include "group_kernel.h"
#include "pack_kernel.h"
}  // namespace
}  // namespace fastvq::amx
FASTVQ_TARGET_END

namespace fastvq {
#include "score_table.h"
const ScoreKernels kAmxScores = FASTVQ_SCORE_TABLE(amx);
}  // namespace fastvq
#endif
