// Rows of logits in tiles of kTile columns, fixed by column so that a row's bits depend on nothing
// but the row: what one read leaves of each tile, and the totals of a row from it.
//
// A tile is kTileThreads threads of 16 columns, in vectors of 16 bytes; a group is the columns of
// two neighbouring threads. Weights are 2^((x - reference) * scale), scale = log2(e) / temperature.
#pragma once
#include "launch.cuh"
#include "select.cuh"

namespace pyttc {

constexpr int kTile = 4096, kTileThreads = 256, kTileGroups = kTileThreads / 2;
constexpr int kOfThread = kTile / kTileThreads;  // columns
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

// What a scan leaves of each tile: of all its columns, or of those a mask allows.
struct Scanned {
  TileStat* stats;  // [rows, tiles]
  uint32_t* words;  // [rows, tiles, kTileGroups]: of the groups' maxima
};

struct RowTiles {
  const void* logits;
  DType dtype;
  int64_t rows, columns, tiles, stride;
  const int32_t* mask;  // may be null
  int64_t mask_stride;
  RealOfRows temperature;
  Scanned all, allowed;  // the same without a mask

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

// workspace: 32-bit, 3 + kTileGroups a tile of a row, twice with a mask.
inline RowTiles row_tiles(const Tensor& logits, int64_t rows, const RealOfRows& temperature,
                          const OptionalTensor& mask, const Tensor& workspace) {
  const int64_t columns = logits.size(1), tiles = (columns + kTile - 1) / kTile;
  RowTiles t{
      logits.data<void>(), logits.dtype(), rows,     columns, tiles, logits.stride(0), nullptr, 0,
      temperature,         Scanned{},      Scanned{}};
  t.all.stats = workspace.data<TileStat>();
  t.all.words = reinterpret_cast<uint32_t*>(t.all.stats + rows * tiles);
  t.allowed = t.all;
  if (mask) {
    t.mask = mask->data<int32_t>(), t.mask_stride = mask->stride(0);
    t.allowed.stats = reinterpret_cast<TileStat*>(t.all.words + rows * tiles * kTileGroups);
    t.allowed.words = reinterpret_cast<uint32_t*>(t.allowed.stats + rows * tiles);
  }
  return t;
}

// A temperature of 0 stands for 1. Below the least any two unequal logits are further apart than
// probabilities reach.
__device__ inline double scale_of(double temperature) {
  if (temperature == 0) temperature = 1;
  return 1.4426950408889634 / (temperature > 1.5e-250 ? temperature : 1.5e-250);
}

// One vector of a row from `column` on, -inf past its end.
template <class T, int kVector>
__device__ __forceinline__ void load_vector(const RowTiles& t, const T* row, int64_t column,
                                            float (&x)[kVector]) {
  static_assert(kVector * sizeof(T) == 16);
  if (column + kVector <= t.columns && reinterpret_cast<uintptr_t>(row) % 16 == 0) {
    T part[kVector];
    const uint4 all = *reinterpret_cast<const uint4*>(row + column);
    memcpy(part, &all, sizeof(all));
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] = widen(part[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      x[i] = column + i < t.columns ? widen(row[column + i]) : -INFINITY;
  }
}

// The first column of a thread's i-th vector.
template <class T>
__device__ __forceinline__ int64_t vector_column(int64_t tile, int thread, int i) {
  return tile * kTile + (i * kTileThreads + thread) * static_cast<int>(16 / sizeof(T));
}

// Column `i` of the 32 of a group: columns of two threads' vectors, side by side.
__device__ inline int64_t group_column(const RowTiles& t, int64_t group, int i) {
  const int pair = t.dtype == DType::f32 ? 8 : 16;
  const int64_t tile = group / kTileGroups, thread = group % kTileGroups * 2;
  return tile * kTile + (i / pair * kTileThreads + thread) * (pair / 2) + i % pair;
}

// log2 of the weight, with the scale in two parts so that it is not rounded.
__device__ __forceinline__ float log2_weight(float x, float reference, float high, float low) {
  const float d = x - reference;
  float y = d * high;
  if (y > -1e30f) y += d * low;
  return d == 0.f ? 0.f : y;
}

// Of the columns a block holds: their maxima and sums, in a fixed order.
__device__ __forceinline__ void scan_tile(const float (&x)[kOfThread], double scale, int64_t place,
                                          const Scanned& out) {
  constexpr int kWarps = kTileThreads / 32;
  __shared__ float highs[kWarps], sums[kWarps], moments[kWarps];
  const int t = threadIdx.x, lane = t % 32, warp = t / 32;
  float high = -INFINITY;
#pragma unroll
  for (int i = 0; i < kOfThread; ++i) high = fmaxf(high, x[i] == x[i] ? x[i] : INFINITY);
  high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
  if (t % 2 == 0) out.words[place * kTileGroups + t / 2] = word_of(high);
#pragma unroll
  for (int by = 2; by < 32; by *= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, by));
  if (lane == 0) highs[warp] = high;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) high = fmaxf(high, highs[i]);

  const float reference = high == -INFINITY ? 0.f : high;
  const double most = fmin(scale, 3e38);
  const float scale_high = static_cast<float>(most);
  const float scale_low = static_cast<float>(most - scale_high);
  float sum = 0.f, moment = 0.f;
#pragma unroll
  for (int i = 0; i < kOfThread; ++i) {
    const float y = log2_weight(x[i], reference, scale_high, scale_low);
    const float e = exp2f(y);
    sum += e;
    moment += e > 0.f ? e * y : 0.f;
  }
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
  constexpr int kVector = 16 / sizeof(T);
  const int64_t row = blockIdx.x, tile = blockIdx.y, place = row * p.tiles + tile;
  const double scale = scale_of(p.temperature.at(row));
  float x[kOfThread];
#pragma unroll
  for (int i = 0; i < kOfThread; i += kVector) {
    float part[kVector];
    load_vector(p, p.row<T>(row), vector_column<T>(tile, threadIdx.x, i / kVector), part);
#pragma unroll
    for (int j = 0; j < kVector; ++j) x[i + j] = part[j];
  }
  scan_tile(x, scale, place, p.all);
  if (!p.mask) return;
#pragma unroll
  for (int i = 0; i < kOfThread; ++i) {
    const int64_t column = vector_column<T>(tile, threadIdx.x, i / kVector) + i % kVector;
    if (column >= p.columns || !p.allows(row, column)) x[i] = -INFINITY;
  }
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
  const int lane = threadIdx.x;
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
