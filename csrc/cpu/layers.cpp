// The rows of a pass, one by one: what a row gives depends on that row alone.
#include "layers.h"

#include "fits.h"
#include "isa.h"
#include "ops.h"
#include "parallel.h"

namespace pyttc {
namespace {

constexpr int64_t kEnough = 16384;  // elements that are worth another thread

const LayerKernels& kernels(DType dtype) {
  const Layers& layers = pick(layers_generic, layers_avx2, layers_avx512);
  return dtype == DType::f32 ? layers.f32 : dtype == DType::bf16 ? layers.bf16 : layers.f16;
}

// Where row r (and head j) of a tensor begins.
char* at(const Tensor& t, int64_t r, int64_t j = 0) {
  const int64_t width = t.dtype() == DType::f32 ? 4 : 2;
  const int64_t heads = t.t.ndim == 3 ? t.stride(1) : 0;
  return t.data<char>() + (r * t.stride(0) + j * heads) * width;
}

int threads_for(const Tensor& t, int threads) { return t.numel() < kEnough ? 1 : threads; }

}  // namespace

// x [B, H] or [B, heads, H], `added` and out likewise, weight [H]: x += added, unless there is
// none; out = weight * x / sqrt(mean(x^2) + eps). out may be x.
void rms_norm(const Tensor& x, const OptionalTensor& added, const Tensor& weight, double eps,
              const Output& out, int threads) {
  const int rank = x.t.ndim;
  require(rank == 2 || rank == 3);
  const int64_t heads = rank == 3 ? x.size(1) : 1, h = x.size(rank - 1);
  require(is_float(x) && on_cpu(x) && dense_last(x) && fits(weight, x.dtype(), {h}));
  for (const Tensor* t : {static_cast<const Tensor*>(&out), added ? &*added : &x})
    require(t->t.ndim == rank && same_shape(*t, x, rank) && t->dtype() == x.dtype() && on_cpu(*t) &&
            dense_last(*t));
  const auto norm = kernels(x.dtype()).rms_norm;
  parallel_for(x.size(0), threads_for(x, threads), [&](int64_t r) {
    for (int64_t j = 0; j < heads; ++j)
      norm(at(x, r, j), added ? at(*added, r, j) : nullptr, weight.data<void>(),
           static_cast<float>(eps), h, at(out, r, j));
  });
}

// x [B, heads, D], cos and sin [B, D]: every head of x turned in place.
void rotary(const Output& x, const Tensor& cos, const Tensor& sin, int threads) {
  require(x.t.ndim == 3 && is_float(x) && on_cpu(x) && dense_last(x) && x.size(2) % 2 == 0);
  for (const Tensor* t : {&cos, &sin}) require(fits(*t, x.dtype(), {x.size(0), x.size(2)}));
  const auto turn = kernels(x.dtype()).rotary;
  parallel_for(x.size(0), threads_for(x, threads), [&](int64_t r) {
    for (int64_t j = 0; j < x.size(1); ++j) turn(at(x, r, j), at(cos, r), at(sin, r), x.size(2));
  });
}

// gate, up, out [B, I]
void silu_mul(const Tensor& gate, const Tensor& up, const Output& out, int threads) {
  require(is_float(gate) && fits(gate, gate.dtype(), {kAny, kAny}));
  for (const Tensor* t : {&up, static_cast<const Tensor*>(&out)})
    require(fits(*t, gate.dtype(), {gate.size(0), gate.size(1)}));
  const auto multiply = kernels(gate.dtype()).silu_mul;
  parallel_for(gate.size(0), threads_for(gate, threads),
               [&](int64_t r) { multiply(at(gate, r), at(up, r), gate.size(1), at(out, r)); });
}

}  // namespace pyttc
