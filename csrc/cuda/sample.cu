// Bound by one read of the logits, which the tiles' kernel does; rows that are one row are read
// once. A block a row then draws by inverse CDF: from the tiles' sums and one tile where nothing
// filters, else from the columns that reach a threshold, if these are known to hold all that the
// filters keep, and if not, from all of the row. Weights are integers, so that sums are exact in
// any order: filters and the draw are radix selections by count or by weight.
#include <vector>

#include "choose.cuh"
#include "launch.cuh"
#include "ops.h"
#include "philox.h"

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
  bool same;  // all rows are the first
  int bits;   // of the largest weight
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
  unsigned long long sum;
  int64_t tile;
  double rest;  // of the target, of the tile's mass
};

struct Weigher {
  float largest;
  double scale, one;
  __device__ uint64_t operator()(float x) const {
    const double y = log2_of(x, largest, scale);
    return y < -100 ? 0 : static_cast<uint64_t>(exp2(y) * one + 0.5);
  }
};

// A bound in the order (value descending, index ascending).
struct Bound {
  uint32_t word = kNever - 1, index = kNever;
  __device__ bool reached(uint32_t w, uint32_t i) const {
    return w < word || (w == word && i <= index);
  }
};

struct Filters {
  int64_t top_k;  // 0: off
  double top_p, min_p;
};

// Which columns of a source are kept, and what they weigh.
struct Keep {
  const RowTiles& tiles;
  int64_t row;
  Weigher weigher;
  Bound bound;
  double min_p;

  __device__ uint64_t operator()(bool live, float x, uint32_t column) const {
    if (!live || !(x > -INFINITY) || !tiles.allows(row, column)) return 0;
    if (!bound.reached(word_of(x), column)) return 0;
    if (min_p > 0 && exp2(log2_of(x, weigher.largest, weigher.scale)) < min_p) return 0;
    return weigher(x);
  }
};

__device__ uint64_t sum_of(const Source& source, Shared& s, const Keep& keep) {
  __syncthreads();
  if (threadIdx.x == 0) s.sum = 0;
  __syncthreads();
  unsigned long long sum = 0;
  source.each([&](bool live, float x, uint32_t column) { sum += keep(live, x, column); });
  for (int by = 1; by < 32; by *= 2) sum += __shfl_xor_sync(~0u, sum, by);
  if (threadIdx.x % 32 == 0) atomicAdd(&s.sum, sum);
  __syncthreads();
  return s.sum;
}

// Narrows `keep` to the best columns that hold `count` columns, or to those that hold `mass`.
__device__ void narrow_by_count(const Source& source, Shared& s, Keep& keep, int64_t count_) {
  for (begin(s.counts, count_); more(s.counts); next(s.counts)) {
    const bool index = s.counts.digit >= 4;
    source.each([&](bool live, float x, uint32_t column) {
      const uint32_t word = word_of(x);
      live = live && x > -INFINITY && keep.tiles.allows(keep.row, column);
      count(s.counts, live && (!index || word == s.counts.bound[0]), index ? column : word);
    });
  }
  keep.bound = {s.counts.bound[0], s.counts.bound[1]};
}

__device__ void narrow_by_mass(const Source& source, Shared& s, Keep& keep, double mass) {
  for (begin(s.weights, mass < 1 ? 1 : static_cast<int64_t>(mass)); more(s.weights);
       next(s.weights)) {
    const bool index = s.weights.digit >= 4;
    source.each([&](bool live, float x, uint32_t column) {
      const uint32_t word = word_of(x);
      const uint64_t weight =
          !index || word == s.weights.bound[0] ? keep(live, x, column) : uint64_t{0};
      weigh(s.weights, weight, index ? column : word);
    });
  }
  if (keep.bound.reached(s.weights.bound[0], s.weights.bound[1]))
    keep.bound = {s.weights.bound[0], s.weights.bound[1]};
}

// The column of the source where the weights, in order of index, pass `share` of their sum `mass`.
__device__ int64_t column_at(const Source& source, Shared& s, const Keep& keep, uint64_t mass,
                             double share) {
  const auto target = static_cast<uint64_t>(share * static_cast<double>(mass));
  const int64_t wanted = static_cast<int64_t>(min(target + 1, mass));
  begin(s.weights, wanted);
  for (; s.weights.digit < 4; next(s.weights, -1))
    source.each([&](bool live, float x, uint32_t column) {
      weigh(s.weights, keep(live, x, column), column);
    });
  return s.weights.bound[0];
}

// By the first warp: the tile where the sums of tiles pass the target, and how far into it.
__device__ void find_tile(const SampleParams& p, int64_t row, double scale, double u, Shared& s) {
  if (threadIdx.x >= 32) return;
  const int lane = static_cast<int>(threadIdx.x);
  const TileStat* stats = p.tiles.allowed.stats + row * p.tiles.tiles;
  const double target = u * exp(s.allowed.log_sum);
  double before = 0;
  for (int64_t first = 0; first < p.tiles.tiles; first += 32) {
    double own = 0;
    if (first + lane < p.tiles.tiles) {
      const TileStat stat = stats[first + lane];
      own = stat.sum * exp2(log2_of(stat.high, s.allowed.high, scale));
    }
    double upto = own;
    for (int by = 1; by < 32; by *= 2) {
      const double below = __shfl_up_sync(~0u, upto, by);
      if (lane >= by) upto += below;
    }
    // The last with any weight holds what rounding leaves beyond.
    const unsigned some = __ballot_sync(~0u, own > 0);
    const unsigned past = __ballot_sync(~0u, own > 0 && before + upto > target);
    const int at = past ? __ffs(static_cast<int>(past)) - 1 : 31 - __clz(static_cast<int>(some));
    if (some && lane == at) {
      s.tile = first + lane;
      s.rest = fmin(fmax((target - (before + upto - own)) / own, 0.), 1.);
    }
    if (past) return;
    before += __shfl_sync(~0u, upto, 31);
    __syncwarp();
  }
}

__global__ void __launch_bounds__(kRowThreads, 1) sample_kernel(const SampleParams p) {
  __shared__ Shared s;
  const int64_t out = blockIdx.x, row = p.same ? 0 : out, t = threadIdx.x;
  const double temperature = p.tiles.temperature.at(row), scale = scale_of(temperature);
  total_of_row(p.tiles, p.tiles.all, row, scale, s.all);
  total_of_row(p.tiles, p.tiles.allowed, row, scale, s.allowed);
  __syncthreads();
  const bool any = s.all.valid && s.allowed.valid;
  float* logprobs = p.topk_logprobs + out * p.topk;
  int64_t* indices = p.topk_indices + out * p.topk;
  if (s.all.valid && p.topk)
    write_topk(p.tiles, row, p.topk, scale, s.all, s.counts, s.chosen, logprobs, indices);
  else
    for (int64_t i = t; i < p.topk; i += kRowThreads) logprobs[i] = -INFINITY, indices[i] = -1;
  if (!any) {
    if (t > 0) return;
    p.tokens[out] = -1, p.valid[out] = false;
    p.logprobs[out] = p.processed[out] = p.kept_mass[out] = -INFINITY;
    p.entropy[out] = static_cast<float>(s.all.entropy);
    return;
  }

  Filters filters{p.top_k.at(out), p.top_p.at(out), p.min_p.at(out)};
  if (filters.top_k < 0 || filters.top_k >= p.tiles.columns) filters.top_k = 0;
  if (temperature == 0) filters.top_k = 1;
  const double u = uniform(static_cast<uint64_t>(p.seed.at(out)), p.path_ids.at(out),
                           p.positions.at(out), 0, Purpose::token);
  const Weigher weigher{s.allowed.high, scale, exp2(double(p.bits))};
  const double total = exp(s.allowed.log_sum) * weigher.one;
  Source source{p.tiles, row, 0, p.tiles.columns, nullptr};
  Keep keep{p.tiles, row, weigher, Bound(), 0};
  double share = u, log_kept = log2_of(s.allowed.high, s.all.high, scale) * kLn2 - s.all.log_sum;
  const bool filtered = filters.top_k || filters.top_p < 1 || filters.min_p > 0;
  if (!filtered) {
    find_tile(p, row, scale, u, s);
    __syncthreads();
    source.begin = s.tile * kTile, source.end = min(p.tiles.columns, source.begin + kTile);
    keep.weigher.largest = p.tiles.allowed.stats[row * p.tiles.tiles + s.tile].high;
    share = s.rest;
  } else {
    const bool known = filters.top_k > 0 && filters.top_k <= kMostListed;
    if (t == 0) s.chosen.count = 0;
    choose_from_groups(p.tiles, true, row, known ? filters.top_k : kListed, s.counts, s.chosen);
    __syncthreads();
    const Source listed{p.tiles, row, 0, s.chosen.count, &s.chosen};
    const uint32_t worst = s.counts.bound[0];
    bool covered = listed.end <= kRoom;
    if (covered && !known && worst < word_of(-INFINITY)) {  // columns with a weight are left out
      covered = filters.top_k == 0;
      const bool few = filters.min_p > 0 &&
                       exp2(log2_of(float_of(worst), weigher.largest, scale)) < filters.min_p;
      if (covered && !few)
        covered = filters.top_p < 1 &&
                  static_cast<double>(sum_of(listed, s, keep)) >= ceil(filters.top_p * total);
    }
    if (covered) source.end = listed.end, source.list = &s.chosen;
    if (filters.top_k) narrow_by_count(source, s, keep, filters.top_k);
    if (filters.top_p < 1) {
      const double of = filters.top_k ? static_cast<double>(sum_of(source, s, keep)) : total;
      narrow_by_mass(source, s, keep, ceil(filters.top_p * of));
    }
    keep.min_p = filters.min_p;
  }
  const uint64_t mass = sum_of(source, s, keep);
  const int64_t column = column_at(source, s, keep, mass, share);
  log_kept += filtered ? log(static_cast<double>(mass) / weigher.one) : s.allowed.log_sum;
  if (t > 0) return;
  if (log_kept > 0) log_kept = 0;
  const double logprob = log_probability(p.tiles.at(row, column), s.all, scale);
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
  SampleParams p{row_tiles(logits, same ? 1 : rows, heat, mask, workspace),
                 each ? WholeOfRows(per_row[0]) : WholeOfRows(seed),
                 each ? WholeOfRows(per_row[2]) : WholeOfRows(top_k),
                 each ? RealOfRows(per_row[3]) : RealOfRows(top_p),
                 each ? RealOfRows(per_row[4]) : RealOfRows(min_p),
                 counters(path_ids),
                 counters(positions),
                 topk,
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
  PYTTC_LAUNCH(sample_kernel, dim3(static_cast<unsigned>(rows)), dim3(kRowThreads), 0, stream, p);
  return cudaGetLastError();
}

}  // namespace pyttc
