// What attention's planner asks of a kernel: one tile of tokens against all rows that read it.
#pragma once
#include <cstdint>

namespace pyttc {

constexpr int kTile = 64;        // tokens
constexpr int kChunkTiles = 16;  // tiles

// Where the keys and values of one tile's tokens [begin, end) lie; outside, those of one of them.
struct TileRows {
  int begin = 0, end = 0;
  const void *k[kTile] = {}, *v[kTile] = {};
};

// Brings the next tile's keys and values into the second level, a share with each of about `times`
// calls, evenly spread: the processor does not foresee them, and where many are asked for at once
// its queues are full, and all else waits. Few rows: 1.4 times.
class Prefetch {
 public:
  Prefetch(const TileRows& next, int64_t bytes, int64_t times)
      : next_(next), bytes_(bytes), share_(static_cast<int>((2 * kTile + times - 1) / times)) {}

  void operator()() { to(at_ + share_ < 2 * kTile ? at_ + share_ : 2 * kTile); }
  void rest() { to(2 * kTile); }

 private:
  void to(int end) {
    for (; at_ < end; ++at_) {
      const void* row = at_ < kTile ? next_.k[at_] : next_.v[at_ - kTile];
      for (int64_t byte = 0; byte < bytes_; byte += 64)
        __builtin_prefetch(static_cast<const char*>(row) + byte, 0, 2);
    }
  }

  const TileRows& next_;
  const int64_t bytes_;
  const int share_;
  int at_ = 0;
};

// What a kernel does with one tile of one KV head, all query rows below it.
struct AttentionRows {
  int64_t rows, dim, padded;  // padded: floats from a row of q or o to the next, a multiple of 16
  const float* q;             // [rows, padded]
  const void *k, *v;          // as `pack` left them; it may leave the values of few rows alone
  const TileRows* tile;       // where they came from
  // Running maximum (of score * log2(e)), sum, weighted values; m and l with room for 16 more.
  float *m, *l, *o;
  int begin, end;    // the tokens of the tile that exist
  const int* first;  // per row, the first token inside its window; null: begin for all
  float scale, softcap;
};

struct AttentionKernels {
  // One query row as float32, padded with zeros.
  void (*query)(const void* q, int64_t dim, float* row);
  // A tile's tokens from their rows, for `rows` of so many.
  void (*pack)(const TileRows& tile, int64_t rows, int64_t dim, int64_t padded, void* k_packed,
               void* v_packed, Prefetch& prefetch);
  void (*rows)(const AttentionRows& a, Prefetch& prefetch);
  // out = sum over chunks of weight[i] * o[i], divided by `sum`.
  void (*finish)(const float* const* o, const float* weight, int64_t chunks, float sum, int64_t dim,
                 void* out);
  // How often `pack` and `rows` call Prefetch, for so many rows.
  int64_t (*prefetches)(int64_t rows, int64_t dim);
};

struct AttentionTable {
  AttentionKernels f32, bf16, f16;
};

extern const AttentionTable attention_generic, attention_avx2, attention_avx512;
extern const AttentionKernels attention_avx512bf16, attention_amx;  // bfloat16 only

}  // namespace pyttc
