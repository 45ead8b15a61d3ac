// Columns of a row chosen by a block of kRowThreads threads, from what row_tiles.cuh leaves of the
// row: those that reach a threshold which at least k columns reach, read again from the groups that
// hold them, and sorted.
#pragma once
#include "row_tiles.cuh"
#include "select.cuh"

namespace pyttc {

constexpr int kRowThreads = 384, kRowWarps = kRowThreads / 32, kRoom = 2048;

struct Chosen {  // columns: word, column; best first once sorted
  uint64_t list[kRoom];
  uint32_t groups[kRoom];  // that hold one at least
  uint32_t count, group_count;
};

// Adds to a list what the threads of a warp want to; past its room only the number.
template <class T>
__device__ void add(T* list, uint32_t& count, bool take, T value) {
  const unsigned votes = __ballot_sync(~0u, take);
  if (!votes) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  uint32_t first = 0;
  if (lane == 0) first = atomicAdd(&count, static_cast<uint32_t>(__popc(votes)));
  first = __shfl_sync(~0u, first, 0) + __popc(votes & ((1u << lane) - 1));
  if (take && first < kRoom) list[first] = value;
}
__device__ inline void add(Chosen& chosen, bool take, uint32_t word, int64_t column) {
  add(chosen.list, chosen.count, take, uint64_t{word} << 32 | static_cast<uint32_t>(column));
}

// f(place, live) for places below n, by a thread each and whole warps at a time.
template <class F>
__device__ void each_place(int64_t n, F f) {
  for (uint32_t first = 0; first < n; first += kRowThreads)
    f(first + threadIdx.x, first + threadIdx.x < n);
}

// The columns of groups whose maximum reaches the bound of at least k of them; a count beyond the
// room says that there are more than that.
__device__ inline void choose_from_groups(const RowTiles& p, bool masked, int64_t row, int64_t k,
                                          Selection<2>& s, Chosen& chosen) {
  const int64_t groups = p.tiles * kTileThreads;
  const uint32_t* words = (masked ? p.allowed : p.all).words + row * groups;
  if (threadIdx.x == 0) chosen.count = chosen.group_count = 0;
  for (begin(s, k); more(s) && s.digit < 4; next(s, k / 8 + 32))
    each_place(groups, [&](uint32_t group, bool live) {
      const uint32_t word = live ? words[group] : kNever;
      count(s, word != kNever, word);
    });
  const uint32_t bound = s.bound[0];
  each_place(groups, [&](uint32_t group, bool live) {
    add(chosen.groups, chosen.group_count, live && words[group] <= bound, group);
  });
  __syncthreads();
  const uint32_t held = chosen.group_count;
  if (held > kRoom) {  // each holds a column
    if (threadIdx.x == 0) chosen.count = held;
    return;
  }
  // Several groups a warp at a time, whose reads wait together.
  constexpr int kAtOnce = 4;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  for (uint32_t first = warp * kAtOnce; first < held; first += kRowWarps * kAtOnce) {
    int64_t column[kAtOnce];
    uint32_t word[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      column[i] = first + i < held ? int64_t{chosen.groups[first + i]} * kGroup + lane : p.columns;
      const bool live = column[i] < p.columns && (!masked || p.allows(row, column[i]));
      word[i] = live ? word_of(p.at(row, column[i])) : kNever;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      add(chosen, word[i] <= bound && word[i] != kNever, word[i], column[i]);
  }
}

// The k best of all columns of a row, digit by digit of their words and then of their indices.
__device__ inline void choose_from_row(const RowTiles& p, int64_t row, int64_t k, Selection<2>& s,
                                       Chosen& chosen) {
  if (threadIdx.x == 0) chosen.count = 0;
  for (begin(s, k); more(s); next(s)) {
    const bool index = s.digit >= 4;
    each_place(p.columns, [&](uint32_t column, bool live) {
      const uint32_t word = live ? word_of(p.at(row, column)) : kNever;
      count(s, live && (!index || word == s.bound[0]), index ? column : word);
    });
  }
  const uint32_t bound = s.bound[0], last = s.bound[1];
  each_place(p.columns, [&](uint32_t column, bool live) {
    const uint32_t word = live ? word_of(p.at(row, column)) : kNever;
    add(chosen, live && (word < bound || (word == bound && column <= last)), word, column);
  });
}

// Puts n <= kRoom entries in ascending order, by a bitonic network; writes past them up to the next
// power of two, where nobody may read any more.
__device__ inline void sort(uint64_t* list, int n) {
  const int t = static_cast<int>(threadIdx.x);
  int size = 1;
  while (size < n) size *= 2;
  for (int i = n + t; i < size; i += kRowThreads) list[i] = ~uint64_t{0};
  for (int run = 2; run <= size; run *= 2) {
    for (int apart = run / 2; apart > 0; apart /= 2) {
      __syncthreads();
      for (int i = t; i < size / 2; i += kRowThreads) {
        const int low = 2 * i - (i & (apart - 1)), high = low + apart;
        const uint64_t a = list[low], b = list[high];
        if ((a > b) == !(low & run)) list[low] = b, list[high] = a;
      }
    }
  }
  __syncthreads();
}

// Writes the k best columns of a valid row in order, and their log-probabilities, to each of
// `copies` rows of the outputs.
__device__ inline void write_topk(const RowTiles& p, int64_t row, int64_t k, double scale,
                                  const RowTotals& totals, Selection<2>& selection, Chosen& chosen,
                                  float* logprobs, int64_t* indices, int64_t copies) {
  choose_from_groups(p, false, row, k, selection, chosen);
  __syncthreads();
  if (chosen.count > kRoom) {
    __syncthreads();
    choose_from_row(p, row, k, selection, chosen);
    __syncthreads();
  }
  sort(chosen.list, static_cast<int>(chosen.count));
  for (int64_t i = threadIdx.x; i < k; i += kRowThreads) {
    const uint64_t entry = chosen.list[i];
    const float x = float_of(static_cast<uint32_t>(entry >> 32));
    const auto logprob = static_cast<float>(log_probability(x, totals, scale));
    for (int64_t copy = 0; copy < copies; ++copy) {
      logprobs[copy * k + i] = logprob;
      indices[copy * k + i] = static_cast<uint32_t>(entry);
    }
  }
}

}  // namespace pyttc
