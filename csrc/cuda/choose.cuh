// Columns of a row chosen by a block of kRowThreads threads, from what row_tiles.cuh leaves of the
// row: those that reach a threshold which at least k columns reach, read again from the groups that
// hold them.
#pragma once
#include "row_tiles.cuh"
#include "select.cuh"

namespace pyttc {

constexpr int kRowThreads = 512, kRoom = 2048;

struct Chosen {  // columns, best first once ranked: word, column
  uint64_t list[kRoom];
  uint32_t count;
};

// Adds the columns of a warp that are to be chosen; past the room only their number.
__device__ inline void add(Chosen& chosen, bool take, uint32_t word, int64_t column) {
  const unsigned votes = __ballot_sync(~0u, take);
  if (!votes) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  uint32_t first = 0;
  if (lane == 0) first = atomicAdd(&chosen.count, static_cast<uint32_t>(__popc(votes)));
  first = __shfl_sync(~0u, first, 0) + __popc(votes & ((1u << lane) - 1));
  if (take && first < kRoom)
    chosen.list[first] = uint64_t{word} << 32 | static_cast<uint32_t>(column);
}

// The columns of groups whose maximum reaches the bound of at least k of them.
template <class T>
__device__ void choose_from_groups(const RowTiles& p, int64_t row, int64_t k, Selection<2>& s,
                                   Chosen& chosen) {
  const int64_t groups = p.tiles * kTileGroups, warps = kRowThreads / 32;
  const uint32_t* words = p.words + row * groups;
  const T* logits = p.row<T>(row);
  const int64_t passes = (groups + kRowThreads - 1) / kRowThreads;
  for (begin(s, k); more(s) && s.digit < 4; next(s, k / 8 + 32)) {
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t group = pass * kRowThreads + threadIdx.x;
      const uint32_t word = group < groups ? words[group] : kNever;
      count(s, word != kNever, word);
    }
  }
  const uint32_t bound = s.bound[0];
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t first = threadIdx.x / 32 * 32; first < groups; first += warps * 32) {
    const bool reached = first + lane < groups && words[first + lane] <= bound;
    for (unsigned left = __ballot_sync(~0u, reached); left; left &= left - 1) {
      const int64_t group = first + __ffs(static_cast<int>(left)) - 1;
      const int64_t column = group_column<T>(group, lane);
      const bool live = column < p.columns;
      const uint32_t word = live ? word_of(widen(logits[column])) : kNever;
      add(chosen, word <= bound && word != kNever, word, column);
    }
  }
}

// Columns of a row, whole warps at a time: f(live, x, column).
template <class T, class F>
__device__ void each_column(const RowTiles& p, int64_t row, F f) {
  constexpr int kVector = 16 / sizeof(T);
  for (int64_t first = 0; first < p.columns; first += kRowThreads * kVector) {
    const int64_t column = first + threadIdx.x * kVector;
    float x[kVector];
    load_vector(p, p.row<T>(row), column, x);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      f(column + i < p.columns, x[i], static_cast<uint32_t>(column + i));
  }
}

// The k best of all columns of a row, digit by digit of their words and then of their indices.
template <class T>
__device__ void choose_from_row(const RowTiles& p, int64_t row, int64_t k, Selection<2>& s,
                                Chosen& chosen) {
  for (begin(s, k); more(s); next(s)) {
    const bool index = s.digit >= 4;
    each_column<T>(p, row, [&](bool live, float x, uint32_t column) {
      const uint32_t word = word_of(x);
      count(s, live && (!index || word == s.bound[0]), index ? column : word);
    });
  }
  const uint32_t bound = s.bound[0], last = s.bound[1];
  each_column<T>(p, row, [&](bool live, float x, uint32_t column) {
    const uint32_t word = word_of(x);
    add(chosen, live && (word < bound || (word == bound && column <= last)), word, column);
  });
}

// Writes the k best columns of a valid row in order, and their log-probabilities.
template <class T>
__device__ void write_topk(const RowTiles& p, int64_t row, int64_t k, const RowTotals& totals,
                           Selection<2>& selection, Chosen& chosen, float* logprobs,
                           int64_t* indices) {
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) chosen.count = 0;
  choose_from_groups<T>(p, row, k, selection, chosen);
  __syncthreads();
  if (chosen.count > kRoom) {
    __syncthreads();
    if (t == 0) chosen.count = 0;
    choose_from_row<T>(p, row, k, selection, chosen);
    __syncthreads();
  }
  const int count = static_cast<int>(chosen.count);
  for (int i = t; i < count; i += kRowThreads) {
    const uint64_t mine = chosen.list[i];
    int place = 0;
    for (int j = 0; j < count; ++j) place += chosen.list[j] < mine;
    if (place >= k) continue;
    const float x = float_of(static_cast<uint32_t>(mine >> 32));
    logprobs[place] = static_cast<float>(log_probability(x, totals, p.scale));
    indices[place] = static_cast<uint32_t>(mine);
  }
  __syncthreads();
}

}  // namespace pyttc
