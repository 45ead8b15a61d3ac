// Bound by one read of the logits, which the tiles' kernel does; rows that are one row are read
// once. A block a row, or for as many draws of one row as it has warps, then draws by inverse CDF.
// Where nothing filters, a warp goes from the tiles' sums to those of a tile's groups and to 32
// columns. Else the columns that reach a threshold are sorted, if these are known to hold all that
// the filters keep: what is kept is then a run of them. If not, the filters are radix selections
// over all of the row, by count or by weight. Weights are integers there, so that sums are exact in
// any order.
#include <vector>

#include "choose.cuh"
#include "launch.cuh"
#include "ops.h"
#include "philox.h"

namespace pyttc {
namespace {

constexpr int64_t kListed = 256;  // groups looked at where top_k does not say how many
constexpr int64_t kMostListed = 1024;
constexpr int kSlices = kRowThreads;  // of a row, whose sums its draws have in common

struct Counters {
  const void* data;
  bool wide;
  int64_t stride;
  __device__ uint32_t at(int64_t i) const {
    return static_cast<uint32_t>(wide ? static_cast<const int64_t*>(data)[i * stride]
                                      : static_cast<const int32_t*>(data)[i * stride]);
  }
};

struct SampleParams {
  RowTiles tiles;
  WholeOfRows seed, top_k;
  RealOfRows top_p, min_p;
  Counters path_ids, positions;
  int64_t topk;
  int64_t outputs;  // rows of them
  bool same;        // all are draws of the first row
  int bits;         // of the largest weight
  int64_t* tokens;
  float *logprobs, *processed, *kept_mass, *entropy;
  bool* valid;
  float* topk_logprobs;
  int64_t* topk_indices;
};

struct Shared {
  RowTotals all, allowed;
  Selection<2> counts;
  Selection<2, unsigned long long> weights;
  Chosen chosen;
  uint64_t sums[kRoom];  // running sums of weights: of a list, or of slices of the row
  uint64_t warps[kRowWarps];
  int kept;
};

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

struct Filters {
  int64_t top_k;  // 0: off
  double top_p, min_p;
  __device__ bool any() const { return top_k || top_p < 1 || min_p > 0; }
};

// Running sums of value(i), i < n, to sums[i]; every value is read before any sum is written.
template <class F>
__device__ void add_up(int n, Shared& s, F value) {
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
__device__ int first_above(const uint64_t* sums, int n, uint64_t target) {
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

// Of a mass a share below 1, less than it.
__device__ uint64_t share_of(uint64_t mass, double share) {
  return min(static_cast<uint64_t>(share * static_cast<double>(mass)), mass - 1);
}

// --- nothing filters

// By a warp: of `count` masses in order the one where their running sum passes the target, of which
// what lies within that one is left. Where rounding leaves it beyond all, the last that is not 0.
template <class Mass>
__device__ int64_t find_mass(int64_t count, double& target, Mass mass) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t each = (count + 31) / 32;
  double own = 0;
  for (int64_t i = lane * each; i < min(count, (lane + 1) * each); ++i) own += mass(i);
  double upto = own;
  for (int by = 1; by < 32; by *= 2) {
    const double below = __shfl_up_sync(~0u, upto, by);
    if (lane >= by) upto += below;
  }
  const unsigned some = __ballot_sync(~0u, own > 0);
  const unsigned past = __ballot_sync(~0u, own > 0 && upto > target);
  const int at = past ? __ffs(static_cast<int>(past)) - 1 : 31 - __clz(static_cast<int>(some));
  double left = target - __shfl_sync(~0u, upto - own, at);
  int64_t found = at * each;
  for (int64_t i = at * each; i < min(count, (at + 1) * each); ++i) {
    const double here = mass(i);
    if (!(here > 0)) continue;
    found = i, target = fmax(left, 0.);
    if (left < here) break;
    left -= here;
  }
  return found;
}

// By a warp: the column where the weights of the row, in order of index, pass `share` of their sum.
__device__ int64_t draw_from_tiles(const RowTiles& p, int64_t row, double scale,
                                   const RowTotals& totals, double share) {
  const TileStat* stats = p.allowed.stats + row * p.tiles;
  double target = share * exp(totals.log_sum);
  const int64_t tile = find_mass(p.tiles, target, [&](int64_t i) {
    return stats[i].sum * exp2(log2_of(stats[i].high, totals.high, scale));
  });
  const float largest = stats[tile].high;
  target /= exp2(log2_of(largest, totals.high, scale));
  const float* sums = p.allowed.sums + (row * p.tiles + tile) * kTileThreads;
  const int64_t group = find_mass(kTileThreads, target, [&](int64_t i) { return double{sums[i]}; });
  const int64_t first = tile * kTile + group * kGroup;
  const int64_t at = find_mass(min(int64_t{kGroup}, p.columns - first), target, [&](int64_t i) {
    if (!p.allows(row, first + i)) return 0.;
    return exp2(log2_of(p.at(row, first + i), largest, scale));
  });
  return first + at;
}

// --- the filters keep columns of a list

// Whether the list, made of groups' maxima for `wanted` columns, holds all that the filters keep.
__device__ bool is_covered(const Filters& filters, bool known, const Weigher& weigher, double total,
                           Shared& s) {
  const uint32_t worst = s.counts.bound[0];
  if (s.chosen.count > kRoom) return false;
  if (known || worst >= word_of(-INFINITY)) return true;  // no other column has a weight
  if (filters.top_k) return false;
  if (filters.min_p > 0 && weigher.relative(float_of(worst)) < filters.min_p) return true;
  return filters.top_p < 1 &&
         static_cast<double>(s.sums[s.chosen.count - 1]) >= ceil(filters.top_p * total);
}

// Leaves of the sorted list, whose running sums are known, what the filters keep, in order of
// index, and its running sums; returns how many they are.
__device__ int keep_of_list(const Filters& filters, const Weigher& weigher, double total,
                            Shared& s) {
  const int t = static_cast<int>(threadIdx.x);
  uint64_t* list = s.chosen.list;
  int n = static_cast<int>(s.chosen.count);
  if (filters.top_k) {
    n = static_cast<int>(min(int64_t{n}, filters.top_k));
    total = static_cast<double>(s.sums[n - 1]);
  }
  uint64_t wanted = ~uint64_t{0};
  if (filters.top_p < 1) wanted = static_cast<uint64_t>(fmax(ceil(filters.top_p * total), 1.));
  if (t == 0) s.kept = n;
  __syncthreads();
  for (int i = t + 1; i < n; i += kRowThreads) {
    bool kept = s.sums[i - 1] < wanted;
    if (kept && filters.min_p > 0) {
      const float x = float_of(static_cast<uint32_t>(list[i] >> 32));
      kept = weigher.relative(x) >= filters.min_p;
    }
    if (!kept) atomicMin(&s.kept, i);
  }
  __syncthreads();
  n = s.kept;
  for (int i = t; i < n; i += kRowThreads)
    list[i] = uint64_t{static_cast<uint32_t>(list[i])} << 32 | static_cast<uint32_t>(i);
  sort(list, n);
  add_up(n, s, [&](int i) {
    const auto at = static_cast<uint32_t>(list[i]);
    return s.sums[at] - (at ? s.sums[at - 1] : 0);
  });
  return n;
}

// --- the filters look at all of the row

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
__device__ void narrow_by_count(Shared& s, Keep& keep, int64_t count_) {
  for (begin(s.counts, count_); more(s.counts); next(s.counts)) {
    const bool index = s.counts.digit >= 4;
    each_place(keep.tiles.columns, [&](uint32_t column, bool live) {
      const float x = live ? keep.tiles.at(keep.row, column) : -INFINITY;
      const uint32_t word = word_of(x);
      live = x > -INFINITY && keep.tiles.allows(keep.row, column);
      count(s.counts, live && (!index || word == s.counts.bound[0]), index ? column : word);
    });
  }
  keep.bound = {s.counts.bound[0], s.counts.bound[1]};
}

__device__ void narrow_by_mass(Shared& s, Keep& keep, double mass) {
  for (begin(s.weights, mass < 1 ? 1 : static_cast<int64_t>(mass)); more(s.weights);
       next(s.weights)) {
    const bool index = s.weights.digit >= 4;
    each_place(keep.tiles.columns, [&](uint32_t column, bool live) {
      const float x = live ? keep.tiles.at(keep.row, column) : -INFINITY;
      const uint32_t word = word_of(x);
      const bool counted = !index || word == s.weights.bound[0];
      weigh(s.weights, live && counted ? keep(column, x) : 0, index ? column : word);
    });
  }
  if (keep.bound.reached(s.weights.bound[0], s.weights.bound[1]))
    keep.bound = {s.weights.bound[0], s.weights.bound[1]};
}

__device__ uint32_t slice_columns(const RowTiles& p) {
  return static_cast<uint32_t>((p.columns + 32 * kSlices - 1) / (32 * kSlices) * 32);
}

// Running sums of the weights of a row's slices.
__device__ void weigh_slices(Shared& s, const Keep& keep) {
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
__device__ uint32_t draw_from_slices(const Shared& s, const Keep& keep, uint64_t target) {
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

__global__ void __launch_bounds__(kRowThreads, 2) sample_kernel(const SampleParams p) {
  __shared__ Shared s;
  const int64_t of_block = p.same ? kRowWarps : 1, begin = blockIdx.x * of_block;
  const int64_t end = min(p.outputs, begin + of_block), row = p.same ? 0 : begin;
  const int64_t t = threadIdx.x;
  const RowTiles& tiles = p.tiles;
  const double temperature = tiles.temperature.at(row), scale = tiles.scale(row);
  total_of_row(tiles, tiles.all, row, scale, s.all);
  if (tiles.mask)
    total_of_row(tiles, tiles.allowed, row, scale, s.allowed);
  else if (t == 0)
    s.allowed = s.all;
  __syncthreads();
  float* logprobs = p.topk_logprobs + begin * p.topk;
  int64_t* indices = p.topk_indices + begin * p.topk;
  if (s.all.valid && p.topk)
    write_topk(tiles, row, p.topk, scale, s.all, s.counts, s.chosen, logprobs, indices,
               end - begin);
  else
    for (int64_t i = t; i < (end - begin) * p.topk; i += kRowThreads)
      logprobs[i] = -INFINITY, indices[i] = -1;
  if (!s.all.valid || !s.allowed.valid) {
    const int64_t out = begin + t;
    if (out >= end) return;
    p.tokens[out] = -1, p.valid[out] = false;
    p.logprobs[out] = p.processed[out] = p.kept_mass[out] = -INFINITY;
    p.entropy[out] = static_cast<float>(s.all.entropy);
    return;
  }

  Filters filters{p.top_k.at(begin), p.top_p.at(begin), p.min_p.at(begin)};
  if (filters.top_k < 0 || filters.top_k >= tiles.columns) filters.top_k = 0;
  if (temperature == 0) filters.top_k = 1;
  const Weigher weigher{s.allowed.high, p.bits, scale};
  Keep keep{tiles, row, weigher, Bound(), 0};
  int listed = 0;  // how many are kept of the list, 0 if it is not used
  if (filters.any()) {
    const double total = scalbn(exp(s.allowed.log_sum), p.bits);
    const bool known = filters.top_k > 0 && filters.top_k <= kMostListed;
    choose_from_groups(tiles, true, row, known ? filters.top_k : kListed, s.counts, s.chosen);
    __syncthreads();
    const auto count = static_cast<int>(s.chosen.count);
    if (count <= kRoom) {
      sort(s.chosen.list, count);
      add_up(count, s, [&](int i) {
        return weigher(float_of(static_cast<uint32_t>(s.chosen.list[i] >> 32)));
      });
    }
    if (is_covered(filters, known, weigher, total, s)) {
      listed = keep_of_list(filters, weigher, total, s);
    } else {
      double of = total;
      if (filters.top_k) {
        narrow_by_count(s, keep, filters.top_k);
        weigh_slices(s, keep);
        of = static_cast<double>(s.sums[kSlices - 1]);
      }
      if (filters.top_p < 1) narrow_by_mass(s, keep, ceil(filters.top_p * of));
      keep.min_p = filters.min_p;
      weigh_slices(s, keep);
    }
  }

  const int64_t out = begin + t / 32;
  if (out >= end) return;
  const double u = uniform(static_cast<uint64_t>(p.seed.at(out)), p.path_ids.at(out),
                           p.positions.at(out), 0, Purpose::token);
  int64_t column;
  double log_kept = log2_of(s.allowed.high, s.all.high, scale) * kLn2 - s.all.log_sum;
  if (!filters.any()) {
    column = draw_from_tiles(tiles, row, scale, s.allowed, u);
    log_kept += s.allowed.log_sum;
  } else {
    const uint64_t mass = s.sums[(listed ? listed : kSlices) - 1], target = share_of(mass, u);
    if (listed)
      column = s.chosen.list[first_above(s.sums, listed, target)] >> 32;
    else
      column = draw_from_slices(s, keep, target);
    log_kept += log(scalbn(static_cast<double>(mass), -p.bits));
  }
  if (t % 32 > 0) return;
  log_kept = fmin(log_kept, 0.);
  const double logprob = log_probability(tiles.at(row, column), s.all, scale);
  p.tokens[out] = column, p.valid[out] = true;
  p.logprobs[out] = static_cast<float>(logprob);
  p.processed[out] = static_cast<float>(fmin(logprob - log_kept, 0.));
  p.kept_mass[out] = static_cast<float>(log_kept);
  p.entropy[out] = static_cast<float>(s.all.entropy);
}

Counters counters(const Tensor& t) {
  return {t.data<void>(), t.dtype() == DType::i64, t.stride(0)};
}

}  // namespace

// per_row: none, or seed, temperature, top_k, top_p and min_p as tensors [B].
cudaError_t sample(cudaStream_t stream, const Tensor& logits, const std::vector<Tensor>& per_row,
                   int64_t seed, double temperature, int64_t top_k, double top_p, double min_p,
                   const Tensor& path_ids, const Tensor& positions, const OptionalTensor& mask,
                   int64_t topk, const Tensor& workspace, const Tensor& tokens,
                   const Tensor& logprobs, const Tensor& processed, const Tensor& kept_mass,
                   const Tensor& entropy, const Tensor& valid, const Tensor& topk_logprobs,
                   const Tensor& topk_indices) {
  const int64_t rows = logits.size(0), columns = logits.size(1);
  if (rows == 0) return cudaSuccess;
  const bool each = !per_row.empty();
  const bool same = logits.stride(0) == 0 && !each && (!mask || mask->stride(0) == 0);
  const RealOfRows heat = each ? RealOfRows(per_row[1]) : RealOfRows(temperature);
  SampleParams p{row_tiles(logits, same ? 1 : rows, heat, mask, workspace, true),
                 each ? WholeOfRows(per_row[0]) : WholeOfRows(seed),
                 each ? WholeOfRows(per_row[2]) : WholeOfRows(top_k),
                 each ? RealOfRows(per_row[3]) : RealOfRows(top_p),
                 each ? RealOfRows(per_row[4]) : RealOfRows(min_p),
                 counters(path_ids),
                 counters(positions),
                 topk,
                 rows,
                 same};
  if (!p.tiles.serves() || rows > INT32_MAX) return cudaErrorInvalidValue;
  // Of all columns the sum has at most 62 bits.
  for (p.bits = 52; columns >> (62 - p.bits);) --p.bits;
  p.tokens = tokens.data<int64_t>(), p.valid = valid.data<bool>();
  p.logprobs = logprobs.data<float>(), p.processed = processed.data<float>();
  p.kept_mass = kept_mass.data<float>(), p.entropy = entropy.data<float>();
  p.topk_logprobs = topk_logprobs.data<float>(), p.topk_indices = topk_indices.data<int64_t>();
  const cudaError_t scanned = scan_rows(stream, p.tiles);
  if (scanned != cudaSuccess) return scanned;
  const int64_t blocks = same ? (rows + kRowWarps - 1) / kRowWarps : rows;
  PYTTC_LAUNCH(sample_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kRowThreads), 0, stream, p);
  return cudaGetLastError();
}

}  // namespace pyttc
