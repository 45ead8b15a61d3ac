// The roof of the CPU it runs on, for a number of threads: GB/s that can be read and copied,
// GFLOP/s of fp32 and bf16 multiply-adds. Compiled with -march=native by benchmarks/common.py;
// prints JSON. Arithmetic stays in registers, so no real kernel can be faster: above this roof is a
// wrong benchmark.
#include <omp.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(kLanes * 4)));
constexpr int kAccumulators = 12;

// Thread CPU time on one thread, which neighbours disturb less; else time on the wall.
double now(int threads) {
  timespec t;
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

template <class F>
double best_seconds(int threads, F f) {
  double best = 1e30;
  for (int i = 0; i < (threads == 1 ? 15 : 60); ++i) {
    const double start = now(threads);
    f();
    const double took = now(threads) - start;
    if (took < best) best = took;
  }
  return best;
}

// Keeps a value alive that nothing reads.
template <class T>
void use(T& value) {
  __asm__ volatile("" : "+m"(value));
}

// Memory in large pages, where the system gives them: with small ones half of what can be read is
// lost.
float* large_pages(int64_t floats) {
  constexpr int64_t kPage = int64_t{2} << 20;
  const int64_t bytes = (floats * 4 + kPage - 1) / kPage * kPage;
  void* memory = std::aligned_alloc(kPage, bytes);
#if defined(__linux__)
  if (memory) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return static_cast<float*>(memory);
}

double read_rate(const float* data, int64_t n, int threads) {
  const double seconds = best_seconds(threads, [&] {
#pragma omp parallel num_threads(threads)
    {
      constexpr int kBlock = 8 * kLanes;
      const int64_t share = n / threads / kBlock * kBlock;
      const float* p = data + omp_get_thread_num() * share;
      Vector sum[8] = {};
      for (int64_t i = 0; i < share; i += kBlock)
        for (int k = 0; k < 8; ++k) {
          Vector v;
          std::memcpy(&v, p + i + k * kLanes, sizeof v);
          sum[k] += v;
        }
      use(sum);
    }
  });
  return n * 4 / seconds / 1e9;
}

double copy_rate(const float* from, float* to, int64_t n, int threads) {
  const double seconds = best_seconds(threads, [&] {
#pragma omp parallel num_threads(threads)
    {
      const int64_t share = n / threads / kLanes * kLanes, begin = omp_get_thread_num() * share;
      for (int64_t i = begin; i < begin + share; i += kLanes) {
#if defined(__AVX512F__)
        _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
#else
        std::memcpy(to + i, from + i, kLanes * 4);
#endif
      }
    }
  });
  return n * 8 / seconds / 1e9;
}

// GFLOP/s of all threads, each running `step` for `steps` rounds of `flops` operations.
template <class F>
double arithmetic_rate(int threads, int64_t steps, double flops, F step) {
  const double seconds = best_seconds(threads, [&] {
#pragma omp parallel num_threads(threads)
    step(steps);
  });
  return threads * steps * flops / seconds / 1e9;
}

double fma_rate(int threads) {
  return arithmetic_rate(threads, 1 << 21, 2.0 * kLanes * kAccumulators, [](int64_t steps) {
    Vector sum[kAccumulators] = {}, a = {}, b = {};
    a += 0.999f, b += 0.001f;
    for (Vector& s : sum) use(s);  // else twelve equal chains are one
    for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
      for (int k = 0; k < kAccumulators; ++k) sum[k] = sum[k] * a + b;
    }
    use(sum);
  });
}

#if defined(__AVX512BF16__)
double dot_bf16_rate(int threads) {
  return arithmetic_rate(threads, 1 << 21, 2.0 * 32 * kAccumulators, [](int64_t steps) {
    __m512 sum[kAccumulators] = {};
    for (__m512& s : sum) use(s);
    const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
    for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
      for (int k = 0; k < kAccumulators; ++k) sum[k] = _mm512_dpbf16_ps(sum[k], a, a);
    }
    use(sum);
  });
}
#endif

#if defined(__AMX_BF16__)
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
const TileConfig kTiles;

double tile_bf16_rate(int threads) {
  if (syscall(SYS_arch_prctl, 0x1023, 18)) return 0;  // ARCH_REQ_XCOMP_PERM, tile data
  return arithmetic_rate(threads, 1 << 19, 4 * 2.0 * 16 * 16 * 32, [](int64_t steps) {
    _tile_loadconfig(&kTiles);
    _tile_zero(0), _tile_zero(1), _tile_zero(2), _tile_zero(3), _tile_zero(4), _tile_zero(5);
    for (int64_t i = 0; i < steps; ++i) {
      _tile_dpbf16ps(0, 4, 5);
      _tile_dpbf16ps(1, 4, 5);
      _tile_dpbf16ps(2, 4, 5);
      _tile_dpbf16ps(3, 4, 5);
    }
    _tile_release();
  });
}
#endif

}  // namespace

int main(int, char** argv) {
  const int threads = std::atoi(argv[1]);
  const int64_t n = std::atoll(argv[2]) / 4 / 64 * 64;  // bytes: well above the last-level cache
  float *from = large_pages(n), *to = large_pages(n);
  if (!from || !to) return 1;
#pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < n; ++i) from[i] = 1.f, to[i] = 0.f;
  const double fp32 = fma_rate(threads);
  double bf16 = fp32;
#if defined(__AVX512BF16__)
  if (const double rate = dot_bf16_rate(threads); rate > bf16) bf16 = rate;
#endif
#if defined(__AMX_BF16__)
  if (const double rate = tile_bf16_rate(threads); rate > bf16) bf16 = rate;
#endif
  std::printf("{\"read\": %.4g, \"copy\": %.4g, \"float32\": %.4g, \"bfloat16\": %.4g}\n",
              read_rate(from, n, threads), copy_rate(from, to, n, threads), fp32, bf16);
}
