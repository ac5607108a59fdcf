// What the tile instructions of AMX do, by their definition, on machines without them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace emulated {

struct Tile {
  uint8_t bytes[16][64];
};

inline bool configured = false;
inline Tile tiles[8];

inline void configure(const void* shapes) {
  const uint8_t* bytes = static_cast<const uint8_t*>(shapes);
  if (bytes[0] != 1 || bytes[1] != 0) std::abort();  // palette, first row
  for (int t = 0; t < 8; ++t) {
    uint16_t width;
    std::memcpy(&width, bytes + 16 + 2 * t, sizeof(width));
    if (width != 64 || bytes[48 + t] != 16) std::abort();
  }
  std::memset(tiles, 0, sizeof(tiles));
  configured = true;
}

inline void load(int tile, const void* base, long stride) {
  if (!configured) std::abort();
  for (int r = 0; r < 16; ++r) {
    std::memcpy(tiles[tile].bytes[r], static_cast<const uint8_t*>(base) + r * stride, 64);
  }
}

inline void store(int tile, void* base, long stride) {
  if (!configured) std::abort();
  for (int r = 0; r < 16; ++r) {
    std::memcpy(static_cast<uint8_t*>(base) + r * stride, tiles[tile].bytes[r], 64);
  }
}

inline float element(const Tile& tile, int row, int column) {
  uint16_t half;
  std::memcpy(&half, tile.bytes[row] + 2 * column, sizeof(half));
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// total[m][n] += the sum over k of left[m][2k] * right[k][2n] + left[m][2k + 1] * right[k][2n + 1]
inline void multiply(int total, int left, int right) {
  if (!configured) std::abort();
  for (int m = 0; m < 16; ++m) {
    float* out = reinterpret_cast<float*>(tiles[total].bytes[m]);
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 16; ++n) {
        for (int j = 0; j < 2; ++j) {
          out[n] += element(tiles[left], m, 2 * k + j) * element(tiles[right], k, 2 * n + j);
        }
      }
    }
  }
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(shapes) emulated::configure(shapes)
#define _tile_release() (emulated::configured = false)
#define _tile_loadd(tile, base, stride) emulated::load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated::store(tile, base, stride)
#define _tile_dpbf16ps(total, left, right) emulated::multiply(total, left, right)
