// Weights of a row's columns as integers, whose sums are exact in any order, and what filters and
// draws make of them where they look at all of a row: radix selections by count or by weight, and
// running sums of slices.
#pragma once
#include "choose.cuh"

namespace pyttc {

constexpr int kSlices = kRowThreads;  // of a row, whose sums its draws have in common

// Of columns of a row: exact where they are equal, 2^bits for the largest.
struct Weigher {
  float largest;
  int bits;
  double scale;
  __device__ double relative(float x) const { return exp2(log2_of(x, largest, scale)); }
  __device__ uint64_t operator()(float x) const {
    return static_cast<uint64_t>(scalbn(relative(x), bits) + 0.5);
  }
};

struct Sums {
  uint64_t sums[kRoom];  // running sums of weights: of a list, or of slices of the row
  uint64_t warps[kRowWarps];
};

// Running sums of value(i), i < n, to sums[i]; every value is read before any sum is written.
template <class F>
__device__ void add_up(int n, Sums& s, F value) {
  constexpr int kEach = (kRoom + kRowThreads - 1) / kRowThreads;
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, warp = t / 32;
  uint64_t upto[kEach], own = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int i = t * kEach + j;
    if (i < n) own += value(i);
    upto[j] = own;
  }
  uint64_t before = own;
  for (int by = 1; by < 32; by *= 2) {
    const uint64_t below = __shfl_up_sync(~0u, before, by);
    if (lane >= by) before += below;
  }
  if (lane == 31) s.warps[warp] = before;
  __syncthreads();
  before -= own;
  for (int i = 0; i < warp; ++i) before += s.warps[i];
#pragma unroll
  for (int j = 0; j < kEach; ++j)
    if (t * kEach + j < n) s.sums[t * kEach + j] = before + upto[j];
  __syncthreads();
}

// The first of n running sums that is above a target below the last.
__device__ inline int first_above(const uint64_t* sums, int n, uint64_t target) {
  int first = 0;
  for (int last = n - 1; first < last;) {
    const int middle = (first + last) / 2;
    if (sums[middle] > target)
      last = middle;
    else
      first = middle + 1;
  }
  return first;
}

// A bound in the order (value descending, index ascending).
struct Bound {
  uint32_t word = kNever - 1, index = kNever;
  __device__ bool reached(uint32_t w, uint32_t i) const {
    return w < word || (w == word && i <= index);
  }
};

// Which columns of a row are kept, and what they weigh.
struct Keep {
  const RowTiles& tiles;
  int64_t row;
  Weigher weigher;
  Bound bound;
  double min_p;

  __device__ uint64_t operator()(uint32_t column, float x) const {
    if (!(x > -INFINITY) || !tiles.allows(row, column)) return 0;
    if (!bound.reached(word_of(x), column)) return 0;
    if (min_p > 0 && weigher.relative(x) < min_p) return 0;
    return weigher(x);
  }
  __device__ uint64_t at(uint32_t column) const { return (*this)(column, tiles.at(row, column)); }
};

// Narrows `keep` to the best columns that hold `count` columns, or to those that hold `mass`.
__device__ inline void narrow_by_count(Selection<2>& s, Keep& keep, int64_t count_) {
  for (begin(s, count_); more(s); next(s)) {
    const bool index = s.digit >= 4;
    each_place(keep.tiles.columns, [&](uint32_t column, bool live) {
      const float x = live ? keep.tiles.at(keep.row, column) : -INFINITY;
      const uint32_t word = word_of(x);
      live = x > -INFINITY && keep.tiles.allows(keep.row, column);
      count(s, live && (!index || word == s.bound[0]), index ? column : word);
    });
  }
  keep.bound = {s.bound[0], s.bound[1]};
}

__device__ inline void narrow_by_mass(Selection<2, unsigned long long>& s, Keep& keep,
                                      double mass) {
  for (begin(s, mass < 1 ? 1 : static_cast<int64_t>(mass)); more(s); next(s)) {
    const bool index = s.digit >= 4;
    each_place(keep.tiles.columns, [&](uint32_t column, bool live) {
      const float x = live ? keep.tiles.at(keep.row, column) : -INFINITY;
      const uint32_t word = word_of(x);
      const bool counted = !index || word == s.bound[0];
      weigh(s, live && counted ? keep(column, x) : 0, index ? column : word);
    });
  }
  if (keep.bound.reached(s.bound[0], s.bound[1])) keep.bound = {s.bound[0], s.bound[1]};
}

__device__ inline uint32_t slice_columns(const RowTiles& p) {
  return static_cast<uint32_t>((p.columns + 32 * kSlices - 1) / (32 * kSlices) * 32);
}

// Running sums of the weights of a row's slices.
__device__ inline void weigh_slices(Sums& s, const Keep& keep) {
  const uint32_t each = slice_columns(keep.tiles);
  const auto columns = static_cast<uint32_t>(keep.tiles.columns);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  __syncthreads();
  for (int i = warp; i < kSlices; i += kRowWarps) {
    const uint32_t end = min(columns, (i + 1) * each);
    uint64_t sum = 0;
#pragma unroll 4
    for (uint32_t column = i * each + lane; column < end; column += 32) sum += keep.at(column);
    for (int by = 1; by < 32; by *= 2) sum += __shfl_xor_sync(~0u, sum, by);
    if (lane == 0) s.sums[i] = sum;
  }
  __syncthreads();
  add_up(kSlices, s, [&](int i) { return s.sums[i]; });
}

// By a warp: the column where the running sum of weights is above the target.
__device__ inline uint32_t draw_from_slices(const Sums& s, const Keep& keep, uint64_t target) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int slice = first_above(s.sums, kSlices, target);
  uint64_t before = slice ? s.sums[slice - 1] : 0;
  for (uint32_t first = slice * slice_columns(keep.tiles);; first += 32) {
    uint64_t upto = first + lane < keep.tiles.columns ? keep.at(first + lane) : 0;
    for (int by = 1; by < 32; by *= 2) {
      const uint64_t below = __shfl_up_sync(~0u, upto, by);
      if (lane >= by) upto += below;
    }
    const unsigned above = __ballot_sync(~0u, before + upto > target);
    if (above) return first + __ffs(static_cast<int>(above)) - 1;
    before += __shfl_sync(~0u, upto, 31);
  }
}

}  // namespace pyttc
