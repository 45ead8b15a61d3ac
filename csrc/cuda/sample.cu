// Bound by one read of the logits, which the tiles' kernel does; rows that are one row are read
// once. A block a row, or for as many draws of one row as it has warps, then draws by inverse CDF.
// Where nothing filters, a warp goes from the tiles' sums to those of a tile's groups and to 32
// columns. Else the columns that reach a threshold are sorted, if these are known to hold all that
// the filters keep: what is kept is then a run of them. If not, the filters are radix selections
// over all of the row, by count or by weight. Weights are integers there, so that sums are exact in
// any order.
#include <vector>

#include "launch.cuh"
#include "ops.h"
#include "philox.h"
#include "weights.cuh"

namespace pyttc {
namespace {

constexpr int64_t kListed = 256;  // groups looked at where top_k does not say how many
constexpr int64_t kMostListed = 1024;

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

struct Shared : Sums {
  RowTotals all, allowed;
  Selection<2> counts;
  Selection<2, unsigned long long> weights;
  Chosen chosen;
  int kept;
};

struct Filters {
  int64_t top_k;  // 0: off
  double top_p, min_p;
  __device__ bool any() const { return top_k || top_p < 1 || min_p > 0; }
};

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
        narrow_by_count(s.counts, keep, filters.top_k);
        weigh_slices(s, keep);
        of = static_cast<double>(s.sums[kSlices - 1]);
      }
      if (filters.top_p < 1) narrow_by_mass(s.weights, keep, ceil(filters.top_p * of));
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
