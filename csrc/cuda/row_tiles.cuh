// Rows of logits in tiles of kTile columns, fixed by column so that a row's bits depend on nothing
// but the row: what one read leaves of each tile, and the totals of a row from it.
//
// A tile is kTileThreads threads, each with a group of kGroup neighbouring columns, so that the
// maximum and the sum of a group need no other thread, and its mask is one word. Loads go through
// shared memory, where neighbouring threads' vectors become each thread's own. Weights are
// 2^((x - reference) * scale), scale = log2(e) / temperature.
#pragma once
#include "launch.cuh"
#include "select.cuh"

namespace pyttc {

constexpr int kTile = 4096, kTileThreads = 128, kGroup = kTile / kTileThreads;
constexpr double kLn2 = 0.6931471805599453;

struct TileStat {
  float high, sum, moment;  // maximum (+inf for one with NaN, too); of weights, weights * log2
};

// A parameter of each row: a number for all, or a tensor of 64- or 32-bit numbers.
template <class Wide, class Narrow>
struct OfRows {
  Wide number;
  const void* data;
  bool wide;
  int64_t stride;

  OfRows(Wide number) : number(number), data(nullptr), wide(false), stride(0) {}
  explicit OfRows(const Tensor& t)
      : number(0), data(t.data<void>()), wide(t.t.dtype.bits == 64), stride(t.stride(0)) {}
  __device__ Wide at(int64_t i) const {
    if (!data) return number;
    return wide ? static_cast<const Wide*>(data)[i * stride]
                : static_cast<const Narrow*>(data)[i * stride];
  }
};
using RealOfRows = OfRows<double, float>;
using WholeOfRows = OfRows<int64_t, int32_t>;

// A temperature of 0 stands for 1. Below the least any two unequal logits are further apart than
// probabilities reach.
__host__ __device__ inline double scale_of(double temperature) {
  if (temperature == 0) temperature = 1;
  return 1.4426950408889634 / (temperature > 1.5e-250 ? temperature : 1.5e-250);
}

// What a scan leaves of each tile: of all its columns, or of those a mask allows.
struct Scanned {
  float* sums;      // [rows, tiles, kTileThreads]: of the groups' weights, the tile's maximum being
                    // the reference; may be null
  uint32_t* words;  // [rows, tiles, kTileThreads]: of the groups' maxima
  TileStat* stats;  // [rows, tiles]
};

struct RowTiles {
  const void* logits;
  DType dtype;
  int64_t rows, columns, tiles, stride;
  const int32_t* mask;  // may be null
  int64_t mask_stride;
  RealOfRows temperature;
  double common_scale;   // where the temperature is a number
  Scanned all, allowed;  // the same without a mask

  __device__ double scale(int64_t i) const {
    return temperature.data ? scale_of(temperature.at(i)) : common_scale;
  }
  __device__ bool allows(int64_t i, int64_t column) const {
    return !mask || mask[i * mask_stride + column / 32] >> column % 32 & 1;
  }
  template <class T>
  __device__ const T* row(int64_t i) const {
    return static_cast<const T*>(logits) + i * stride;
  }
  // What looks at columns again reads them one a thread: kernels are compiled once for all dtypes.
  __device__ float at(int64_t i, int64_t column) const {
    switch (dtype) {
      case DType::f32:
        return row<float>(i)[column];
      case DType::bf16:
        return widen(row<__nv_bfloat16>(i)[column]);
      default:
        return widen(row<__half>(i)[column]);
    }
  }
  bool serves() const { return rows <= INT32_MAX && columns < INT32_MAX && tiles <= 65535; }
  dim3 grid() const { return dim3(static_cast<unsigned>(rows), static_cast<unsigned>(tiles)); }
};

// workspace: 32-bit, 3 + kTileThreads a tile of a row, with sums 3 + 2 * kTileThreads; twice with a
// mask.
inline RowTiles row_tiles(const Tensor& logits, int64_t rows, const RealOfRows& temperature,
                          const OptionalTensor& mask, const Tensor& workspace, bool sums) {
  const int64_t columns = logits.size(1), tiles = (columns + kTile - 1) / kTile;
  RowTiles t{logits.data<void>(),
             logits.dtype(),
             rows,
             columns,
             tiles,
             logits.stride(0),
             mask ? mask->data<int32_t>() : nullptr,
             mask ? mask->stride(0) : 0,
             temperature,
             scale_of(temperature.number)};
  float* at = workspace.data<float>();
  const auto take = [&](int64_t of_tile) { return at += rows * tiles * of_tile, at; };
  for (Scanned* scanned : {&t.all, &t.allowed}) {
    if (scanned == &t.allowed && !mask) {
      t.allowed = t.all;
      break;
    }
    scanned->sums = sums ? at : nullptr;
    scanned->words = reinterpret_cast<uint32_t*>(sums ? take(kTileThreads) : at);
    scanned->stats = reinterpret_cast<TileStat*>(take(kTileThreads));
    take(3);
  }
  return t;
}

// Where a tile keeps its i-th vector of 16 bytes: neither eight neighbours, which a load brings,
// nor every fourth or eighth of a thread's own meet in a bank.
__device__ __forceinline__ unsigned place_of(unsigned i) { return i ^ (i / 8 % 8); }

// Loads a tile by coalesced vectors, or by elements where the row is not aligned to vectors or
// ends.
template <class T>
__device__ __forceinline__ void load_tile(const RowTiles& p, int64_t row, int64_t tile,
                                          uint4* vectors) {
  constexpr int kVector = 16 / sizeof(T), kEach = kGroup / kVector;
  const unsigned t = threadIdx.x;
  const T* from = p.row<T>(row) + tile * kTile;
  const auto n = static_cast<unsigned>(min(int64_t{kTile}, p.columns - tile * kTile));
  if (n == kTile && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    uint4 held[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      held[i] = reinterpret_cast<const uint4*>(from)[i * kTileThreads + t];
#pragma unroll
    for (int i = 0; i < kEach; ++i) vectors[place_of(i * kTileThreads + t)] = held[i];
  } else {
    T* elements = reinterpret_cast<T*>(vectors);
#pragma unroll 8
    for (unsigned i = t; i < kTile; i += kTileThreads) {
      T x;
      narrow(-INFINITY, x);
      if (i < n) x = from[i];
      elements[place_of(i / kVector) * kVector + i % kVector] = x;
    }
  }
}

// The group of a thread.
template <class T>
__device__ __forceinline__ void own_group(const uint4* vectors, float (&x)[kGroup]) {
  constexpr int kVector = 16 / sizeof(T), kEach = kGroup / kVector;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    T part[kVector];
    const uint4 held = vectors[place_of(threadIdx.x * kEach + i)];
    memcpy(part, &held, sizeof(held));
#pragma unroll
    for (int j = 0; j < kVector; ++j) x[i * kVector + j] = widen(part[j]);
  }
}

// Of the groups a block holds: their maxima and sums, and the tile's, in a fixed order.
__device__ __forceinline__ void scan_tile(const float (&x)[kGroup], double scale, int64_t place,
                                          const Scanned& out) {
  constexpr int kWarps = kTileThreads / 32;
  __shared__ float highs[kWarps], sums[kWarps], moments[kWarps];
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, warp = t / 32;
  float high = x[0];
#pragma unroll
  for (int i = 1; i < kGroup; ++i) high = max_or_nan(high, x[i]);
  if (high != high) high = INFINITY;
  out.words[place * kTileThreads + t] = word_of(high);
#pragma unroll
  for (int by = 1; by < 32; by *= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, by));
  if (lane == 0) highs[warp] = high;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) high = fmaxf(high, highs[i]);

  const float reference = high == -INFINITY ? 0.f : high;
  // The scale in two parts, so that it is not rounded.
  const double most = fmin(scale, 3e38);
  const float scale_high = static_cast<float>(most);
  const float scale_low = static_cast<float>(most - scale_high);
  float sum = 0.f, moment = 0.f;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const float d = x[i] - reference;
    // What is -inf, or NaN where infinities of both parts meet, weighs nothing.
    const float y = fmaxf(__fmaf_rn(d, scale_low, __fmul_rn(d, scale_high)), -200.f);
    const float e = exp2_or_zero(y);
    sum += e;
    moment = __fmaf_rn(e, y, moment);
  }
  if (out.sums) out.sums[place * kTileThreads + t] = sum;
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    sum += __shfl_xor_sync(~0u, sum, by);
    moment += __shfl_xor_sync(~0u, moment, by);
  }
  if (lane == 0) sums[warp] = sum, moments[warp] = moment;
  __syncthreads();
  if (t > 0) return;
  for (int i = 1; i < kWarps; ++i) sum += sums[i], moment += moments[i];
  out.stats[place] = {high, sum, moment};
}

template <class T>
__global__ void __launch_bounds__(kTileThreads) tiles_kernel(const RowTiles p) {
  __shared__ uint4 vectors[kTile * sizeof(T) / sizeof(uint4)];
  const int64_t row = blockIdx.x, tile = blockIdx.y, place = row * p.tiles + tile;
  const double scale = p.scale(row);
  load_tile<T>(p, row, tile, vectors);
  __syncthreads();
  float x[kGroup];
  own_group<T>(vectors, x);
  scan_tile(x, scale, place, p.all);
  if (!p.mask) return;
  static_assert(kGroup == 32, "a word of the mask");
  const int64_t group = tile * kTileThreads + threadIdx.x;
  uint32_t allowed = 0;
  if (group * kGroup < p.columns)
    allowed = static_cast<uint32_t>(p.mask[row * p.mask_stride + group]);
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (!(allowed >> i & 1)) x[i] = -INFINITY;
  scan_tile(x, scale, place, p.allowed);
}

inline cudaError_t scan_rows(cudaStream_t stream, const RowTiles& tiles) {
  return dispatch_device_float(tiles.dtype, [&](auto t) {
    using T = decltype(t);
    PYTTC_LAUNCH(tiles_kernel<T>, tiles.grid(), dim3(kTileThreads), 0, stream, tiles);
    return cudaGetLastError();
  });
}

__device__ inline double log2_of(float x, float reference, double scale) {
  const double d = double{x} - reference;
  return d == 0 ? 0 : d * scale;
}

struct RowTotals {
  float high;
  bool valid;  // it holds no NaN or +inf, and something above -inf
  double log_sum, logsumexp, entropy;
};

// By the first warp of a block; tiles in a fixed order.
__device__ inline void total_of_row(const RowTiles& p, const Scanned& scanned, int64_t row,
                                    double scale, RowTotals& out) {
  if (threadIdx.x >= 32) return;
  const int lane = static_cast<int>(threadIdx.x);
  const TileStat* stats = scanned.stats + row * p.tiles;
  float high = -INFINITY;
  for (int64_t i = lane; i < p.tiles; i += 32) high = fmaxf(high, stats[i].high);
  for (int by = 1; by < 32; by *= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, by));
  const bool valid = fabsf(high) < INFINITY;
  double sum = 0, moment = 0;
  for (int64_t i = lane; valid && i < p.tiles; i += 32) {
    const TileStat s = stats[i];
    const double y = log2_of(s.high, high, scale), weight = exp2(y);
    if (weight == 0) continue;
    sum += s.sum * weight;
    moment += (s.moment + s.sum * y) * weight;
  }
  for (int by = 1; by < 32; by *= 2) {
    sum += __shfl_xor_sync(~0u, sum, by);
    moment += __shfl_xor_sync(~0u, moment, by);
  }
  if (lane > 0) return;
  const double log_sum = valid ? log(sum) : 0;
  const double entropy = valid ? log_sum - kLn2 * moment / sum : 0;
  out.high = high;
  out.valid = valid;
  out.log_sum = log_sum;
  out.logsumexp = valid ? high * (scale * kLn2) + log_sum : -INFINITY;
  out.entropy = entropy > 0 ? entropy : 0;
}

__device__ inline double log_probability(float x, const RowTotals& of, double scale) {
  return log2_of(x, of.high, scale) * kLn2 - of.log_sum;
}

}  // namespace pyttc
