// Bound by one read of the logits. The first kernel, a block a tile of 4096 columns fixed by
// column, keeps a tile in registers for its maximum, its sums, and the maximum of every 32 columns.
// The second, a block a row, takes as threshold a maximum that about k groups reach: at least k
// columns do, and they are in those groups, the only ones read again, and are sorted. Where more
// columns reach it than a block has room for (ties, a short row), it selects among all columns of
// the row instead: the result is exact in either case.
#include "choose.cuh"
#include "launch.cuh"
#include "ops.h"

namespace pyttc {
namespace {

struct TopKParams {
  RowTiles tiles;
  int64_t k;
  float *logprobs, *logsumexp, *entropy;
  int64_t* indices;
};

__global__ void __launch_bounds__(kRowThreads, 2) topk_score_kernel(const TopKParams p) {
  __shared__ RowTotals totals;
  __shared__ Selection<2> selection;
  __shared__ Chosen chosen;
  const int64_t row = blockIdx.x, t = threadIdx.x;
  const double scale = p.tiles.scale(row);
  total_of_row(p.tiles, p.tiles.all, row, scale, totals);
  __syncthreads();
  if (t == 0) {
    p.logsumexp[row] = static_cast<float>(totals.logsumexp);
    p.entropy[row] = static_cast<float>(totals.entropy);
  }
  float* logprobs = p.logprobs + row * p.k;
  int64_t* indices = p.indices + row * p.k;
  if (totals.valid)
    write_topk(p.tiles, row, p.k, scale, totals, selection, chosen, logprobs, indices, 1);
  else
    for (int64_t i = t; i < p.k; i += kRowThreads) logprobs[i] = -INFINITY, indices[i] = -1;
}

}  // namespace

cudaError_t topk_score(cudaStream_t stream, const Tensor& logits, int64_t k, double temperature,
                       const Tensor& workspace, const Tensor& logprobs, const Tensor& indices,
                       const Tensor& logsumexp, const Tensor& entropy) {
  if (logits.size(0) == 0) return cudaSuccess;
  TopKParams p{row_tiles(logits, logits.size(0), temperature, std::nullopt, workspace, false), k};
  p.logprobs = logprobs.data<float>(), p.indices = indices.data<int64_t>();
  p.logsumexp = logsumexp.data<float>(), p.entropy = entropy.data<float>();
  if (!p.tiles.serves()) return cudaErrorInvalidValue;
  const cudaError_t scanned = scan_rows(stream, p.tiles);
  if (scanned != cudaSuccess) return scanned;
  const dim3 rows(static_cast<unsigned>(p.tiles.rows));
  PYTTC_LAUNCH(topk_score_kernel, rows, dim3(kRowThreads), 0, stream, p);
  return cudaGetLastError();
}

}  // namespace pyttc
