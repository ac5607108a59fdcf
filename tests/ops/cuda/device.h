// Takes the place of csrc/cuda/device.h: runs the kernels on the CPU, thread by thread. The threads
// of a block are fibers that run from barrier to barrier, in an order drawn anew each time, as are
// the blocks; so a missing barrier, or a result that depends on who comes first, shows.
#pragma once

#include "cpu/rows.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __launch_bounds__(threads)
#define __shared__ static

using std::max;
using std::min;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline dim3 threadIdx, blockIdx, gridDim;

namespace emulated {

inline std::mt19937 order{0};

inline std::vector<unsigned> shuffled(unsigned count) {
  std::vector<unsigned> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  std::shuffle(numbers.begin(), numbers.end(), order);
  return numbers;
}

struct Fiber {
  static constexpr size_t kStackBytes = 64 << 10;

  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool done;
};

inline ucontext_t scheduler;
inline Fiber* running;
inline const std::function<void()>* body;

inline void enter() {
  (*body)();
  running->done = true;
}

inline void run_block(int threads, std::vector<Fiber>& fibers) {
  for (Fiber& fiber : fibers) {
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = Fiber::kStackBytes;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  for (int done = 0; done < threads;) {
    for (unsigned t : shuffled(static_cast<unsigned>(threads))) {
      threadIdx.x = t;
      running = &fibers[t];
      swapcontext(&scheduler, &running->context);
      done += running->done;
    }
    if (done > 0 && done < threads) throw std::logic_error("some threads never reach a barrier");
  }
}

inline void wait() { swapcontext(&running->context, &scheduler); }

}  // namespace emulated

inline void __syncthreads() { emulated::wait(); }

namespace fastvq {

class Device {
 public:
  explicit Device(const Tensor&) {}

  int processors() const { return 1; }

  template <class Arguments>
  void launch(void (*kernel)(Arguments), dim3 grid, int threads, Arguments arguments) const {
    const std::function<void()> run = [&] { kernel(arguments); };
    std::vector<emulated::Fiber> fibers(static_cast<size_t>(threads));
    emulated::body = &run;
    gridDim = grid;
    for (unsigned block : emulated::shuffled(grid.x * grid.y * grid.z)) {
      blockIdx = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
      emulated::run_block(threads, fibers);
    }
  }
};

}  // namespace fastvq

// the kernels register as those of the CPU; what includes this file includes no more of torch's
#define CUDA CPU
