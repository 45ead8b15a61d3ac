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

#if defined(__SANITIZE_THREAD__)
#include <thread>
#include <vector>
#endif

namespace pyttc {

// Threads beyond this many share their items with another: nothing is allocated here, so that what
// was begun is not left half done for want of memory.
constexpr int kMostRanges = 64;
inline int ranges_of(int threads) {
  return threads < 1 ? 1 : threads < kMostRanges ? threads : kMostRanges;
}

// Range r of ranges_of(threads) has the items from first(r) to first(r + 1) - 1.
template <class First, class F>
void parallel_ranges(int threads, First first, F body) {
  if (threads <= 1) {
    for (int64_t i = first(0); i < first(1); ++i) body(i);
    return;
  }
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const int count = ranges_of(threads);
  Range ranges[kMostRanges];
  for (int r = 0; r < count; ++r) {
    ranges[r].next = first(r);
    ranges[r].end = first(r + 1);
  }
  std::exception_ptr thrown;
  std::mutex throwing;
  const auto work = [&](int own) {
    for (int r = 0; r < count; ++r) {
      Range& range = ranges[(own + r) % count];
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
  if (n <= 1) threads = 1;
  const int64_t count = ranges_of(threads);
  parallel_ranges(threads, [=](int64_t r) { return n * r / count; }, body);
}

}  // namespace pyttc
