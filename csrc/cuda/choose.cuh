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
__device__ inline void choose_from_groups(const RowTiles& p, bool masked, int64_t row, int64_t k,
                                          Selection<2>& s, Chosen& chosen) {
  const int64_t groups = p.tiles * kTileGroups, warps = kRowThreads / 32;
  const uint32_t* words = (masked ? p.allowed : p.all).words + row * groups;
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
      const int64_t column = group_column(p, group, lane);
      const bool live = column < p.columns && (!masked || p.allows(row, column));
      const uint32_t word = live ? word_of(p.at(row, column)) : kNever;
      add(chosen, word <= bound && word != kNever, word, column);
    }
  }
}

// Columns of a row to go through: [begin, end), or those of a list.
struct Source {
  const RowTiles& tiles;
  int64_t row, begin, end;
  const Chosen* list;  // null: all; else [begin, end) are places in it

  // f(live, x, column), whole warps at a time.
  template <class F>
  __device__ void each(F f) const {
    for (int64_t first = begin; first < end; first += kRowThreads) {
      const int64_t place = first + threadIdx.x;
      const bool live = place < end;
      const uint64_t entry = live && list ? list->list[place] : 0;
      const int64_t column = list ? static_cast<uint32_t>(entry) : place;
      float x = -INFINITY;
      if (live) x = list ? float_of(static_cast<uint32_t>(entry >> 32)) : tiles.at(row, column);
      f(live, x, static_cast<uint32_t>(column));
    }
  }
};

// The k best of all columns of a row, digit by digit of their words and then of their indices.
__device__ inline void choose_from_row(const RowTiles& p, int64_t row, int64_t k, Selection<2>& s,
                                       Chosen& chosen) {
  const Source all{p, row, 0, p.columns, nullptr};
  for (begin(s, k); more(s); next(s)) {
    const bool index = s.digit >= 4;
    all.each([&](bool live, float x, uint32_t column) {
      const uint32_t word = word_of(x);
      count(s, live && (!index || word == s.bound[0]), index ? column : word);
    });
  }
  const uint32_t bound = s.bound[0], last = s.bound[1];
  all.each([&](bool live, float x, uint32_t column) {
    const uint32_t word = word_of(x);
    add(chosen, live && (word < bound || (word == bound && column <= last)), word, column);
  });
}

// Writes the k best columns of a valid row in order, and their log-probabilities.
__device__ inline void write_topk(const RowTiles& p, int64_t row, int64_t k, double scale,
                                  const RowTotals& totals, Selection<2>& selection, Chosen& chosen,
                                  float* logprobs, int64_t* indices) {
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) chosen.count = 0;
  choose_from_groups(p, false, row, k, selection, chosen);
  __syncthreads();
  if (chosen.count > kRoom) {
    __syncthreads();
    if (t == 0) chosen.count = 0;
    choose_from_row(p, row, k, selection, chosen);
    __syncthreads();
  }
  const int count = static_cast<int>(chosen.count);
  for (int i = t; i < count; i += kRowThreads) {
    const uint64_t mine = chosen.list[i];
    int place = 0;
    for (int j = 0; j < count; ++j) place += chosen.list[j] < mine;
    if (place >= k) continue;
    const float x = float_of(static_cast<uint32_t>(mine >> 32));
    logprobs[place] = static_cast<float>(log_probability(x, totals, scale));
    indices[place] = static_cast<uint32_t>(mine);
  }
  __syncthreads();
}

}  // namespace pyttc
