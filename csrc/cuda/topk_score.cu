// Bound by one read of the logits. The first kernel, a block a tile of 4096 columns fixed by
// column, keeps a tile in registers for its maximum, its sums, and the maximum of every 32 columns.
// The second, a block a row, takes as threshold a maximum that about k groups reach: at least k
// columns do, and they are in those groups, the only ones read again. Where more columns reach it
// than a block has room for (ties, a short row), it selects among all columns of the row instead:
// the result is exact in either case.
#include "launch.cuh"
#include "ops.h"
#include "row_tiles.cuh"
#include "select.cuh"

namespace pyttc {
namespace {

constexpr int kRowThreads = 512, kRoom = 2048;

struct TopKParams {
  RowTiles tiles;
  int64_t k;
  double scale;
  float *logprobs, *logsumexp, *entropy;
  int64_t* indices;
};

struct Chosen {  // columns, best first once ranked: word, column
  uint64_t list[kRoom];
  uint32_t count;
};

// Adds the columns of a warp that are to be chosen; past the room only their number.
__device__ void add(Chosen& chosen, bool take, uint32_t word, int64_t column) {
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
__device__ void choose_from_groups(const TopKParams& p, int64_t row, Selection<2>& s,
                                   Chosen& chosen) {
  const int64_t groups = p.tiles.tiles * kTileGroups, warps = kRowThreads / 32;
  const uint32_t* words = p.tiles.words + row * groups;
  const T* logits = p.tiles.row<T>(row);
  const int64_t passes = (groups + kRowThreads - 1) / kRowThreads;
  for (begin(s, p.k); more(s) && s.digit < 4; next(s, p.k / 8 + 32)) {
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
      const uint32_t word = column < p.tiles.columns ? word_of(widen(logits[column])) : kNever;
      add(chosen, word <= bound && word != kNever, word, column);
    }
  }
}

// The k best of all columns of a row, digit by digit of their words and then of their indices.
template <class T>
__device__ void choose_from_row(const TopKParams& p, int64_t row, Selection<2>& s, Chosen& chosen) {
  constexpr int kVector = 16 / sizeof(T);
  const int64_t step = int64_t{kRowThreads} * kVector;
  const auto each = [&](auto f) {
    for (int64_t first = 0; first < p.tiles.columns; first += step) {
      const int64_t column = first + threadIdx.x * kVector;
      float x[kVector];
      load_vector(p.tiles, p.tiles.row<T>(row), column, x);
      for (int i = 0; i < kVector; ++i)
        f(column + i < p.tiles.columns, word_of(x[i]), static_cast<uint32_t>(column + i));
    }
  };
  for (begin(s, p.k); more(s); next(s)) {
    const bool index = s.digit >= 4;
    each([&](bool live, uint32_t word, uint32_t column) {
      count(s, live && (!index || word == s.bound[0]), index ? column : word);
    });
  }
  const uint32_t bound = s.bound[0], last = s.bound[1];
  each([&](bool live, uint32_t word, uint32_t column) {
    add(chosen, live && (word < bound || (word == bound && column <= last)), word, column);
  });
}

template <class T>
__global__ void __launch_bounds__(kRowThreads) topk_score_kernel(const TopKParams p) {
  __shared__ RowTotals totals;
  __shared__ Selection<2> selection;
  __shared__ Chosen chosen;
  const int64_t row = blockIdx.x, t = threadIdx.x;
  total_of_row(p.tiles, row, p.scale, totals);
  if (t == 0) chosen.count = 0;
  __syncthreads();
  if (t == 0) {
    p.logsumexp[row] = static_cast<float>(totals.logsumexp);
    p.entropy[row] = static_cast<float>(totals.entropy);
  }
  float* logprobs = p.logprobs + row * p.k;
  int64_t* indices = p.indices + row * p.k;
  if (!totals.valid) {
    for (int64_t i = t; i < p.k; i += kRowThreads) logprobs[i] = -INFINITY, indices[i] = -1;
    return;
  }
  choose_from_groups<T>(p, row, selection, chosen);
  __syncthreads();
  if (chosen.count > kRoom) {
    __syncthreads();
    if (t == 0) chosen.count = 0;
    choose_from_row<T>(p, row, selection, chosen);
    __syncthreads();
  }
  const int count = static_cast<int>(chosen.count);
  for (int i = static_cast<int>(t); i < count; i += kRowThreads) {
    const uint64_t mine = chosen.list[i];
    int place = 0;
    for (int j = 0; j < count; ++j) place += chosen.list[j] < mine;
    if (place >= p.k) continue;
    const float x = float_of(static_cast<uint32_t>(mine >> 32));
    logprobs[place] = static_cast<float>(log_probability(x, totals, p.scale));
    indices[place] = static_cast<uint32_t>(mine);
  }
}

}  // namespace

cudaError_t topk_score(cudaStream_t stream, const Tensor& logits, int64_t k, double temperature,
                       const Tensor& workspace, const Tensor& logprobs, const Tensor& indices,
                       const Tensor& logsumexp, const Tensor& entropy) {
  if (logits.size(0) == 0) return cudaSuccess;
  TopKParams p{row_tiles(logits, workspace), k, scale_of(temperature)};
  p.logprobs = logprobs.data<float>(), p.indices = indices.data<int64_t>();
  p.logsumexp = logsumexp.data<float>(), p.entropy = entropy.data<float>();
  if (!p.tiles.serves()) return cudaErrorInvalidValue;
  return dispatch_device_float(logits.dtype(), [&](auto t) {
    using T = decltype(t);
    PYTTC_LAUNCH(tiles_kernel<T>, p.tiles.grid(), dim3(kTileThreads), 0, stream, p.tiles, p.scale);
    const dim3 rows(static_cast<unsigned>(p.tiles.rows));
    PYTTC_LAUNCH(topk_score_kernel<T>, rows, dim3(kRowThreads), 0, stream, p);
    return cudaGetLastError();
  });
}

}  // namespace pyttc
