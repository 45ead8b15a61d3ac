// Radix selection by a block: digit by digit of words that order elements, smaller first, until the
// elements that reach the bound are as many as wanted. Each digit is one pass of the block over
// what it selects from, whole warps at a time:
//
//   for (begin(s, wanted); more(s); next(s)) for each element: count(s, live, word, value);
//
// where value is the word of the element that s.word names, and live excludes elements that differ
// from the bound in a word before it.
#pragma once
#include "launch.cuh"

namespace pyttc {

constexpr uint32_t kNever = 0xffffffffu;  // the word of what is not there: no float has it

// A float as a word: larger floats have smaller words, -0 and +0 have one.
__device__ inline uint32_t word_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.f);
  return bits >> 31 ? bits : ~(bits | 0x80000000u);
}
__device__ inline float float_of(uint32_t word) {
  return __uint_as_float(word >> 31 ? word : ~word & 0x7fffffffu);
}

// In shared memory. Sum is what a digit's elements add up to: their number, or integer weights.
template <int kWords, class Sum = uint32_t>
struct Selection {
  Sum histogram[256];
  uint32_t bound[kWords];
  int64_t need;  // wanted of those with the digits so far
  int digit;     // the one that is counted
  bool done;
};

template <int kWords, class Sum>
__device__ void begin(Selection<kWords, Sum>& s, int64_t wanted) {
  __syncthreads();
  const int t = static_cast<int>(threadIdx.x);
  for (int i = t; i < 256; i += static_cast<int>(blockDim.x)) s.histogram[i] = 0;
  if (t < kWords) s.bound[t] = 0;
  if (t == 0) s.need = wanted, s.digit = 0, s.done = false;
  __syncthreads();
}

// The digit of an element, 256 where it is not counted.
template <int kWords, class Sum>
__device__ unsigned digit_of(const Selection<kWords, Sum>& s, bool live, uint32_t value) {
  const int shift = 24 - s.digit % 4 * 8;
  if (shift < 24) live = live && value >> (shift + 8) == s.bound[s.digit / 4] >> (shift + 8);
  return live ? value >> shift & 255 : 256;
}

template <int kWords>
__device__ void count(Selection<kWords>& s, bool live, uint32_t value) {
  const unsigned mine = digit_of(s, live, value);
  const unsigned alike = __match_any_sync(~0u, mine);
  if (mine < 256 && static_cast<int>(threadIdx.x % 32) == __ffs(static_cast<int>(alike)) - 1)
    atomicAdd(&s.histogram[mine], static_cast<uint32_t>(__popc(alike)));
}

// Weights are at most 2^52. Those of a warp that meet are added up before they go to the histogram:
// a 64-bit addition in shared memory is a loop which one thread leaves at a time.
template <int kWords>
__device__ void weigh(Selection<kWords, unsigned long long>& s, uint64_t weight, uint32_t value) {
  const unsigned mine = digit_of(s, weight > 0, value);
  const unsigned alike = __match_any_sync(~0u, mine);
  constexpr int kHalf = 26;
  const unsigned low =
      __reduce_add_sync(alike, static_cast<unsigned>(weight & ((1u << kHalf) - 1)));
  const unsigned high = __reduce_add_sync(alike, static_cast<unsigned>(weight >> kHalf));
  if (mine < 256 && static_cast<int>(threadIdx.x % 32) == __ffs(static_cast<int>(alike)) - 1)
    atomicAdd(&s.histogram[mine], (static_cast<unsigned long long>(high) << kHalf) + low);
}

// After a pass: which digit the last element wanted has. A bound that up to `slack` more than
// wanted reach will do; with a negative one the bound becomes the last element wanted.
template <int kWords, class Sum>
__device__ void next(Selection<kWords, Sum>& s, int64_t slack = 0) {
  __syncthreads();
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x), word = s.digit / 4;
    const int shift = 24 - s.digit % 4 * 8;
    int64_t counts[8];  // of eight digits a lane
    int64_t own = 0;
    for (int i = 0; i < 8; ++i) own += counts[i] = static_cast<int64_t>(s.histogram[lane * 8 + i]);
    int64_t before = own;
    for (int by = 1; by < 32; by *= 2) {
      const int64_t below = __shfl_up_sync(~0u, before, by);
      if (lane >= by) before += below;
    }
    const int64_t total = __shfl_sync(~0u, before, 31), wanted = s.need;
    const bool all = slack >= 0 && s.digit == 0 && total <= wanted, mine = before - own < wanted;
    __syncwarp();
    if (lane == 0) ++s.digit;
    if (all) {
      if (lane < kWords) s.bound[lane] = kNever - 1;
      if (lane == 0) s.done = true;
    } else if (mine && wanted <= before) {
      before -= own;
      int i = 0;
      int64_t of_digit = counts[0];
      for (int j = 1; j < 8 && before + of_digit < wanted; ++j)
        before += of_digit, of_digit = counts[j], i = j;
      s.need = wanted - before;
      s.bound[word] |= static_cast<uint32_t>(lane * 8 + i) << shift;
      if (of_digit - s.need <= slack) {
        s.bound[word] |= (1u << shift) - 1;
        for (int w = word + 1; w < kWords; ++w) s.bound[w] = kNever;
        s.done = true;
      }
    }
    for (int i = 0; i < 8; ++i) s.histogram[lane * 8 + i] = 0;
  }
  __syncthreads();
}

template <int kWords, class Sum>
__device__ bool more(const Selection<kWords, Sum>& s) {
  return !s.done && s.digit < kWords * 4;
}

}  // namespace pyttc
