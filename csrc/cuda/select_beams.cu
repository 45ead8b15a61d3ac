// Bound by reading logprobs once, and by latency: the groups are few. A block a group computes the
// keys of its children, keeps them in shared memory where they fit, and selects digit by digit of
// the whole order (key, row, token, column) until exactly `width` children reach a bound: a few
// passes over keys, further ones only where ties straddle the bound. What is chosen is ranked by
// counting. The order is strict, so that no race over places can show.
#include <cfloat>

#include "launch.cuh"
#include "ops.h"
#include "select.cuh"

namespace pyttc {
namespace {

constexpr int kIndexThreads = 1024, kNormThreads = 128;
constexpr int kWords = 5, kRankTile = 256;
constexpr int64_t kMostHeld = 22 << 10;    // keys in dynamic shared memory
constexpr int64_t kStaticBytes = 7 << 10;  // of static shared memory, as ptxas counts them
static_assert(kStaticBytes + kMostHeld * sizeof(uint32_t) <= kMostShared);

struct Integers {
  const void* data;
  bool wide;
  int64_t stride;
  __device__ int64_t at(int64_t i, int64_t j = 0) const {
    const int64_t k = i * stride + j;
    return wide ? static_cast<const int64_t*>(data)[k] : static_cast<const int32_t*>(data)[k];
  }
};

struct SelectBeamsParams {
  const float *scores, *logprobs, *bonus;  // bonus may be null
  Integers tokens, groups;
  int64_t score_stride, logprob_stride, bonus_stride, bonus_column;
  int64_t rows, k, width, count;
  int64_t held;                   // keys a block has shared memory for
  int32_t *first, *next, *order;  // where each group's rows begin in `order`
  float* norms;                   // of rows what their keys are divided by; may be null
  // Of each group its chosen children.
  uint64_t* lead;  // key, row
  int64_t* token;
  int32_t* column;
  int64_t *parents, *best_tokens;
  float* best_scores;
};

// length ** penalty, rounded once. A power of integers is an integer, and rounding it must not be
// off by a tie.
__global__ void __launch_bounds__(kNormThreads)
    norms_kernel(Integers length, double penalty, int64_t rows, float* norms) {
  const int64_t row = int64_t{blockIdx.x} * kNormThreads + threadIdx.x;
  if (row >= rows) return;
  double power = pow(static_cast<double>(length.at(row)), fabs(penalty));
  const double whole = rint(power);
  if (fabs(power - whole) < power * 1e-13) power = whole;
  norms[row] = static_cast<float>(penalty < 0 ? 1 / power : power);
}

// The rows of each group, next to each other in any order.
__global__ void __launch_bounds__(kIndexThreads) index_rows_kernel(const SelectBeamsParams p) {
  __shared__ int32_t sums[kIndexThreads];
  const int t = threadIdx.x;
  for (int64_t g = t; g < p.count; g += kIndexThreads) p.next[g] = 0;
  __syncthreads();
  for (int64_t r = t; r < p.rows; r += kIndexThreads) {
    const int64_t g = p.groups.at(r);
    if (g >= 0 && g < p.count) atomicAdd(&p.next[g], 1);
  }
  __syncthreads();
  const int64_t share = (p.count + kIndexThreads - 1) / kIndexThreads, begin = t * share;
  const int64_t end = min(p.count, begin + share);
  int32_t sum = 0;
  for (int64_t g = begin; g < end; ++g) sum += p.next[g];
  sums[t] = sum;
  for (int by = 1; by < kIndexThreads; by *= 2) {
    __syncthreads();
    const int32_t before = t >= by ? sums[t - by] : 0;
    __syncthreads();
    sums[t] += before;
  }
  sum = sums[t] - sum;
  for (int64_t g = begin; g < end; ++g) {
    const int32_t rows = p.next[g];
    p.first[g] = p.next[g] = sum;
    sum += rows;
  }
  if (t == kIndexThreads - 1) p.first[p.count] = sums[t];
  __syncthreads();
  for (int64_t r = t; r < p.rows; r += kIndexThreads) {
    const int64_t g = p.groups.at(r);
    if (g >= 0 && g < p.count) p.order[atomicAdd(&p.next[g], 1)] = static_cast<int32_t>(r);
  }
}

__device__ float score_of(const SelectBeamsParams& p, int64_t row, int64_t column) {
  return p.scores[row * p.score_stride] + p.logprobs[row * p.logprob_stride + column];
}

// The first word of a child's place in the order: smaller is better.
__device__ uint32_t key_of(const SelectBeamsParams& p, int64_t row, int64_t column) {
  float key = score_of(p, row, column);
  if (p.bonus) key += p.bonus[row * p.bonus_stride + column * p.bonus_column];
  if (p.norms) key /= p.norms[row];
  if (!(fabsf(key) <= FLT_MAX) || p.tokens.at(row, column) < 0) return kNever;
  return word_of(key);
}

__device__ uint32_t word_of(int word, uint32_t key, int64_t row, int64_t token, int64_t column) {
  if (word == 0) return key;
  if (word == 1) return static_cast<uint32_t>(row);
  if (word == 2) return static_cast<uint32_t>(token >> 32);
  return static_cast<uint32_t>(word == 3 ? token : column);
}

// The children of a group, whole warps at a time: f(live, key, row, column).
template <class F>
__device__ void each_child(const SelectBeamsParams& p, const int32_t* order, int64_t rows,
                           const uint32_t* held, F f) {
  const int64_t threads = blockDim.x, passes = (rows * p.k + threads - 1) / threads;
  const int64_t by_rows = threads / p.k, by_columns = threads % p.k;
  int64_t at = threadIdx.x / p.k, column = threadIdx.x % p.k;
  for (int64_t pass = 0; pass < passes; ++pass) {
    const bool live = at < rows;
    const int64_t row = live ? order[at] : 0;
    uint32_t key = kNever;
    if (live) key = held ? held[pass * threads + threadIdx.x] : key_of(p, row, column);
    f(key != kNever, key, row, column);
    at += by_rows, column += by_columns;
    if (column >= p.k) column -= p.k, ++at;
  }
}

__global__ void __launch_bounds__(1024) select_beams_kernel(const SelectBeamsParams p) {
  PYTTC_DYNAMIC_SHARED(uint32_t, keys);
  __shared__ Selection<kWords> selection;
  __shared__ int32_t kept;
  __shared__ uint64_t other_lead[kRankTile];
  __shared__ int64_t other_token[kRankTile];
  __shared__ int32_t other_column[kRankTile];
  const int64_t group = blockIdx.x, threads = blockDim.x;
  const int t = threadIdx.x;
  const uint32_t* bound = selection.bound;
  const int32_t* order = p.order + p.first[group];
  const int64_t rows = p.first[group + 1] - p.first[group];
  const uint32_t* held = nullptr;
  if (rows * p.k <= p.held) {
    int64_t i = t;
    each_child(p, order, rows, nullptr, [&](bool, uint32_t key, int64_t, int64_t) {
      if (i < rows * p.k) keys[i] = key;
      i += threads;
    });
    held = keys;  // of each thread its own
  }
  if (t == 0) kept = 0;
  for (begin(selection, p.width); more(selection); next(selection)) {
    const int word = selection.digit / 4;
    each_child(p, order, rows, held, [&](bool live, uint32_t key, int64_t row, int64_t column) {
      live = live && (word == 0 || key == bound[0]);
      uint32_t value = key;
      if (word > 0 && live) {
        const int64_t token = p.tokens.at(row, column);
        for (int w = 1; w < word; ++w) live &= word_of(w, key, row, token, column) == bound[w];
        value = word_of(word, key, row, token, column);
      }
      count(selection, live, value);
    });
  }

  const int64_t at = group * p.width;
  each_child(p, order, rows, held, [&](bool live, uint32_t key, int64_t row, int64_t column) {
    if (!live || key > bound[0]) return;
    const int64_t token = p.tokens.at(row, column);
    if (key == bound[0]) {
      for (int w = 1; w < kWords; ++w) {
        const uint32_t value = word_of(w, key, row, token, column);
        if (value > bound[w]) return;
        if (value < bound[w]) break;
      }
    }
    const int64_t to = at + atomicAdd(&kept, 1);
    p.lead[to] = uint64_t{key} << 32 | static_cast<uint32_t>(row);
    p.token[to] = token;
    p.column[to] = static_cast<int32_t>(column);
  });
  __syncthreads();
  const int32_t chosen = kept;
  for (int32_t i = t; i - t < chosen; i += threads) {
    const bool live = i < chosen;
    const uint64_t lead = live ? p.lead[at + i] : 0;
    const int64_t token = live ? p.token[at + i] : 0;
    const int32_t column = live ? p.column[at + i] : 0;
    int32_t place = 0;
    for (int32_t first = 0; first < chosen; first += kRankTile) {
      const int32_t n = min(kRankTile, chosen - first);
      __syncthreads();
      for (int32_t j = t; j < n; j += threads) {
        other_lead[j] = p.lead[at + first + j];
        other_token[j] = p.token[at + first + j];
        other_column[j] = p.column[at + first + j];
      }
      __syncthreads();
      for (int32_t j = 0; j < n; ++j) {
        bool better = other_lead[j] < lead;
        if (other_lead[j] == lead)
          better = other_token[j] < token || (other_token[j] == token && other_column[j] < column);
        place += better;
      }
    }
    if (live) {
      const int64_t row = static_cast<uint32_t>(lead);
      p.parents[at + place] = row;
      p.best_tokens[at + place] = token;
      p.best_scores[at + place] = score_of(p, row, column);
    }
  }
  for (int64_t i = chosen + t; i < p.width; i += threads) {
    p.parents[at + i] = p.best_tokens[at + i] = -1;
    p.best_scores[at + i] = -INFINITY;
  }
}

Integers integers(const Tensor& t) {
  return {t.data<void>(), t.dtype() == DType::i64, t.stride(0)};
}

}  // namespace

// workspace: int64, 3 a place in the outputs, 2 a group, 1 a row and 1 more.
cudaError_t select_beams(cudaStream_t stream, const Tensor& scores, const Tensor& logprobs,
                         const Tensor& tokens, const Tensor& groups, int64_t width,
                         const OptionalTensor& bonus, const OptionalTensor& length,
                         double length_penalty, const Tensor& workspace, const Tensor& parents,
                         const Tensor& best_tokens, const Tensor& best_scores) {
  SelectBeamsParams p{};
  p.scores = scores.data<float>(), p.score_stride = scores.stride(0);
  p.logprobs = logprobs.data<float>(), p.logprob_stride = logprobs.stride(0);
  p.tokens = integers(tokens), p.groups = integers(groups);
  if (bonus) {
    p.bonus = bonus->data<float>(), p.bonus_stride = bonus->stride(0);
    p.bonus_column = bonus->t.ndim - 1;
  }
  p.rows = logprobs.size(0), p.k = logprobs.size(1), p.width = width, p.count = parents.size(0);
  if (p.count == 0) return cudaSuccess;
  if (p.rows > INT32_MAX || p.k > INT32_MAX || p.count >= INT32_MAX) return cudaErrorInvalidValue;
  const int64_t places = p.count * width;
  p.lead = workspace.data<uint64_t>();
  p.token = workspace.data<int64_t>() + places;
  p.column = reinterpret_cast<int32_t*>(p.token + places);
  p.first = p.column + places;
  p.next = p.first + p.count + 1;
  p.order = p.next + p.count;
  p.parents = parents.data<int64_t>(), p.best_tokens = best_tokens.data<int64_t>();
  p.best_scores = best_scores.data<float>();

  const int64_t children = p.rows * max(p.k, int64_t{1});
  if (p.k == 0) p.rows = 0, p.k = 1;
  // Groups are taken for about equal: those up to twice the mean hold their keys.
  p.held = min(min(kMostHeld, children), max(2 * children / p.count, int64_t{1024}));
  const unsigned threads = children / p.count >= 4096 ? 1024 : 256;
  if (length && length_penalty != 0 && p.rows) {
    p.norms = reinterpret_cast<float*>(p.order + p.rows);
    const dim3 grid(static_cast<unsigned>((p.rows + kNormThreads - 1) / kNormThreads));
    PYTTC_LAUNCH(norms_kernel, grid, dim3(kNormThreads), 0, stream, integers(*length),
                 length_penalty, p.rows, p.norms);
  }
  PYTTC_LAUNCH(index_rows_kernel, dim3(1), dim3(kIndexThreads), 0, stream, p);
  const int64_t bytes = p.held * static_cast<int64_t>(sizeof(uint32_t));
  const cudaError_t error = allow_shared(select_beams_kernel, kStaticBytes, bytes);
  if (error != cudaSuccess) return error;
  PYTTC_LAUNCH(select_beams_kernel, dim3(static_cast<unsigned>(p.count)), dim3(threads),
               static_cast<size_t>(bytes), stream, p);
  return cudaGetLastError();
}

}  // namespace pyttc
