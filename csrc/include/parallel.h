// A parallel loop over independent items on the OpenMP threads that torch uses too. How items fall
// to threads never shows in a result: each writes its own outputs, and reductions have a fixed
// order. What an item throws (memory runs out) is thrown to the caller once all have ended; out of
// a thread it would end the process.
#pragma once
#include <cstdint>
#include <exception>
#include <mutex>

#if defined(__SANITIZE_THREAD__)
#include <atomic>
#include <thread>
#include <vector>
#endif

namespace pyttc {

template <class F>
void parallel_for(int64_t n, int threads, F body) {
  if (threads <= 1 || n <= 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  std::exception_ptr thrown;
  std::mutex throwing;
  const auto guarded = [&](int64_t i) {
    try {
      body(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(throwing);
      thrown = std::current_exception();
    }
  };
#if defined(__SANITIZE_THREAD__)  // ThreadSanitizer knows these threads, but not OpenMP's
  std::atomic<int64_t> next{0};
  const auto work = [&] {  // relaxed: taking an item must not order it after another
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) guarded(i);
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
#else
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t i = 0; i < n; ++i) guarded(i);
#endif
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace pyttc
