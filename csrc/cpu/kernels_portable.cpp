// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"
#include "target.h"

namespace fastvq::portable {
namespace {
#include "simd_portable.h"
#include "compare_kernel.h"
#include "read_kernel.h"
#include "gather_kernel.h"
#include "accumulate_kernel.h"
#include "entropy_kernel.h"
namespace float32 {
constexpr int kRowVectors = 3;
constexpr int kBlockCodes = 4;
#include "product_float32.h"
#include "score_kernel.h"
#include "group_kernel.h"
#include "pack_kernel.h"
}  // namespace float32
}  // namespace
}  // namespace fastvq::portable

namespace fastvq {
using namespace portable;
#include "kernel_table.h"
const Kernels kPortableKernels = make_table("portable");
}  // namespace fastvq
