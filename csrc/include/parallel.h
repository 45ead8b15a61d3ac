// A parallel loop over independent items on the OpenMP threads that torch uses too. How items fall
// to threads never shows in a result: each writes its own outputs, and reductions have a fixed
// order. What an item throws (memory runs out) is thrown to the caller once all have ended; out of
// an OpenMP thread it would end the process.
#pragma once
#include <cstdint>
#include <exception>

namespace pyttc {

template <class F>
void parallel_for(int64_t n, int threads, F body) {
  if (threads <= 1 || n <= 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  std::exception_ptr thrown;
  const auto guarded = [&](int64_t i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical
      thrown = std::current_exception();
    }
  };
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t i = 0; i < n; ++i) guarded(i);
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace pyttc
