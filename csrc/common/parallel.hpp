// A loop over independent tasks on at most `workers` threads. The number of threads is always
// passed explicitly: the process-wide OpenMP setting belongs to torch.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace causalprune {

// How many threads are worth starting: one inside a parallel region or for less than about 50
// microseconds of work, `work` being counted in multiply-adds.
inline int worker_count(int threads, std::int64_t tasks, std::int64_t work) {
#if defined(_OPENMP)
  constexpr std::int64_t kSmallWork = 1 << 20;
  if (omp_in_parallel() || work < kSmallWork) return 1;
  return static_cast<int>(std::clamp<std::int64_t>(threads, 1, tasks));
#else
  (void)threads, (void)tasks, (void)work;
  return 1;
#endif
}

// Calls body(worker, task) for every task; the body must not throw.
template <class Body>
void parallel_for(int workers, std::int64_t tasks, const Body& body) {
#if defined(_OPENMP)
  if (workers > 1) {
#pragma omp parallel for num_threads(workers) schedule(dynamic)
    for (std::int64_t task = 0; task < tasks; ++task) body(omp_get_thread_num(), task);
    return;
  }
#endif
  (void)workers;
  for (std::int64_t task = 0; task < tasks; ++task) body(0, task);
}

}  // namespace causalprune
