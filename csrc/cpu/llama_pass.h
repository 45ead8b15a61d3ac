// The layers of a Llama-shaped model, and the memory that a pass over so many rows computes in.
#pragma once
#include <array>
#include <chrono>

#include "ops.h"
#include "row_product.h"

namespace pyttc {

// A part of a tensor, or of a buffer: shape and strides lie in it. From `offset` elements on.
struct View : Output {
  std::array<int64_t, 4> shape{}, strides{};

  View(const Tensor& of, int64_t offset, std::initializer_list<int64_t> sizes,
       std::initializer_list<int64_t> steps);
  View(const View&) = delete;
};

// New memory [rows, width] for what is computed between the kernels.
struct Buffer {
  const CacheLines lines;
  const View all;

  Buffer(const Tensor& like, int64_t rows, int64_t width)
      : lines(
            new CacheLine[elements({rows, width, like.t.dtype.bits / 8}) / sizeof(CacheLine) + 1]),
        all(in(lines, like), 0, {rows, width}, {width, 1}) {}

  View columns(int64_t first, int64_t n) const {
    return {all, first, {all.size(0), n}, {all.size(1), 1}};
  }
  View heads(int64_t first, int64_t n, int64_t d) const {
    return {all, first * d, {all.size(0), n, d}, {all.size(1), d, 1}};
  }
  static Tensor in(const CacheLines& lines, Tensor like) {
    like.t.data = lines.get();
    like.t.byte_offset = 0;
    return like;
  }
};

class Stopwatch {
 public:
  // Ends a lap: its time goes to a part.
  void operator()(int part) {
    const auto now = std::chrono::steady_clock::now();
    seconds[part] += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }
  PassSeconds seconds{};

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

class LlamaPass {
 public:
  LlamaPass(const LlamaModel& model, int64_t rows);

  // tokens, positions [rows]; out [rows, H]
  void run(const Tensor& tokens, const Tensor& positions, const Tensor& slots,
           const TreeTensors& tree, const Output& out, int threads);
  Stopwatch lap;  // of all that is done with it, between passes too

 private:
  struct Widths {
    int64_t hidden, dim, heads, kv_heads, inner;
    explicit Widths(const LlamaModel& model);
  };
  const Tensor& like() const { return std::get<1>(model_); }

  const LlamaModel& model_;
  const Widths widths_;
  const int64_t rows_;
  const Buffer stream_, cosines_, sines_, normed_, added_, attended_, gate_up_, qkv_, lse_;
};

}  // namespace pyttc
