// A parallel loop over independent items on the OpenMP threads that torch uses too. How items fall
// to threads never shows in a result: each writes its own outputs, and reductions have a fixed
// order.
#pragma once
#include <cstdint>

namespace pyttc {

template <class F>
void parallel_for(int64_t n, int threads, F body) {
  if (threads <= 1 || n <= 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t i = 0; i < n; ++i) body(i);
}

}  // namespace pyttc
