// SPDX-License-Identifier: Apache-2.0
// Tasks handed out to torch's own thread pool. A task's result must not depend on who runs it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fastvq {

class TaskQueue {
 public:
  explicit TaskQueue(int64_t tasks) : tasks_(tasks) {}

  bool take(int64_t& task) {
    task = next_.fetch_add(1, std::memory_order_relaxed);
    return task < tasks_;
  }

 private:
  std::atomic<int64_t> next_{0};
  int64_t tasks_;
};

// Calls worker(queue) once on each thread that takes part; a worker owns its scratch memory and
// takes tasks until none is left, so uneven tasks balance themselves.
template <class Worker>
void run_workers(int64_t tasks, const Worker& worker) {
  TaskQueue queue(tasks);
  const int64_t workers = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  if (workers <= 1) {
    worker(queue);
    return;
  }
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) { worker(queue); });
}

template <class Task>
void run_tasks(int64_t tasks, const Task& task) {
  run_workers(tasks, [&](TaskQueue& queue) {
    for (int64_t i; queue.take(i);) task(i);
  });
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

}  // namespace fastvq
