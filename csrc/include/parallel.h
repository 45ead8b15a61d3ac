// A parallel loop over independent items on the OpenMP threads that torch uses too. Each thread has
// items of its own, one after the other: what it prefetches it needs, and to take one it writes no
// line that others write (which costs some 200 ns where threads share no cache). Done with them, it
// takes those of others. How items fall to threads never shows in a result: each writes its own
// outputs, and reductions have a fixed order. What an item throws (memory runs out) is thrown to
// the caller once all have ended; out of a thread it would end the process.
#pragma once
#include <omp.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <thread>
#endif

namespace pyttc {

// Thread t's own items are those from first[t] to first[t + 1] - 1.
template <class F>
void parallel_ranges(const std::vector<int64_t>& first, F body) {
  const int threads = static_cast<int>(first.size()) - 1;
  if (threads == 1) {
    for (int64_t i = first[0]; i < first[1]; ++i) body(i);
    return;
  }
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Range> ranges(threads);
  for (int t = 0; t < threads; ++t) {
    ranges[t].next = first[t];
    ranges[t].end = first[t + 1];
  }
  std::exception_ptr thrown;
  std::mutex throwing;
  const auto work = [&](int own) {
    for (int t = 0; t < threads; ++t) {
      Range& range = ranges[(own + t) % threads];
      // Relaxed: taking an item must not order it after another.
      while (range.next.load(std::memory_order_relaxed) < range.end) {
        const int64_t i = range.next.fetch_add(1, std::memory_order_relaxed);
        if (i >= range.end) break;
        try {
          body(i);
        } catch (...) {
          const std::lock_guard<std::mutex> lock(throwing);
          thrown = std::current_exception();
        }
      }
    }
  };
#if defined(__SANITIZE_THREAD__)  // ThreadSanitizer knows these threads, but not OpenMP's
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
  work(0);
  for (std::thread& other : others) other.join();
#else
#pragma omp parallel num_threads(threads)
  work(omp_get_thread_num());
#endif
  if (thrown) std::rethrow_exception(thrown);
}

// As many items for each thread.
template <class F>
void parallel_for(int64_t n, int threads, F body) {
  threads = threads < 1 || n <= 1 ? 1 : threads;
  std::vector<int64_t> first(threads + 1);
  for (int t = 0; t <= threads; ++t) first[t] = n * t / threads;
  parallel_ranges(first, body);
}

}  // namespace pyttc
