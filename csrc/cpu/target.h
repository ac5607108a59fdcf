// SPDX-License-Identifier: Apache-2.0
// Opens and closes a region of a file compiled for more than the baseline instruction set.
#pragma once

#define FASTVQ_PRAGMA(text) _Pragma(#text)
#define FASTVQ_INLINE inline __attribute__((always_inline))

#if defined(__clang__)
#define FASTVQ_TARGET_BEGIN(features) \
  FASTVQ_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FASTVQ_TARGET_END FASTVQ_PRAGMA(clang attribute pop)
#elif defined(__GNUC__)
#define FASTVQ_TARGET_BEGIN(features) \
  FASTVQ_PRAGMA(GCC push_options) FASTVQ_PRAGMA(GCC target(features))
#define FASTVQ_TARGET_END FASTVQ_PRAGMA(GCC pop_options)
#else
#error "the native backend needs GCC or Clang"
#endif
