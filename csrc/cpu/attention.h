// Decode attention of many paths over a forest of shared keys and values: one core under
// shared_prefix_attention and prefix_tree_attention.
//
// A path reads its tokens on a fixed grid: tiles of kTile tokens anchored at absolute position 0,
// chunks of kChunkTiles tiles. Within a tile every sum runs in a fixed order; tiles are merged in
// order within a chunk, chunks in order at the end. So a path's bits depend on its own tokens
// alone, never on how they are cut into nodes and pages, who shares them, or how many threads run.
#pragma once
#include <vector>

#include "tensor.h"

namespace pyttc {

constexpr int kTile = 64;
constexpr int kChunkTiles = 16;

// How the tokens of some nodes are laid out; strides in bytes.
struct KvLayout {
  int64_t k_page, k_token, k_head, v_page, v_token, v_head;
  int64_t page_size = 0;  // 0: a node is one run of tokens, from its own pointers
  Indices pages;          // the page lists of all nodes, one after the other
};

struct AttentionNode {
  int64_t parent;  // -1: a root
  int64_t length;
  const char *k, *v;  // where the node's tokens, or the pool of pages, begin
  int64_t first_page;
  const KvLayout* layout;
};

struct Attention {
  DType dtype;
  int64_t paths, heads, kv_heads, dim;
  // The query of path i lies at q + (i / inner) * q_outer + (i % inner) * q_inner, strides in
  // bytes.
  const char* q;
  int64_t inner, q_outer, q_inner, q_head;
  char* out;  // [paths, heads, dim]
  float* lse;
  std::vector<AttentionNode> nodes;
  std::vector<int64_t> leaves;  // the node a path ends in, -1: the path is empty
  float scale;
  float softcap = 0.f;         // 0: none
  int64_t window = INT64_MAX;  // the last `window` tokens of a path are seen
  int threads;
};

// Fills out and lse. `nodes` may come in any order; a cycle is an error before anything is written.
void attention(const Attention& call);

// What a kernel does with one tile of one KV head, all query rows below it.
struct AttentionRows {
  int64_t rows, dim, padded;  // padded: floats from a row of q or o to the next, a multiple of 16
  const float* q;             // [rows, padded], scaled
  const void *k, *v;          // as `pack` left them
  float *m, *l, *o;  // running maximum, sum, weighted values; m and l with room for 16 more
  int begin, end;    // the tokens of the tile that exist
  const int* first;  // per row, the first token inside its window; null: begin for all
  float softcap;
};

struct AttentionKernels {
  // One query row, scaled, as float32, padded with zeros.
  void (*query)(const void* q, int64_t dim, float scale, float* row);
  // Tokens [begin, end) of a tile from their rows, for `rows`.
  void (*pack)(const void* const* k, const void* const* v, int begin, int end, int64_t dim,
               int64_t padded, void* k_packed, void* v_packed);
  void (*rows)(const AttentionRows& a);
  // out = sum over chunks of weight[i] * o[i], divided by `sum`.
  void (*finish)(const float* const* o, const float* weight, int64_t chunks, float sum, int64_t dim,
                 void* out);
};

struct AttentionTable {
  AttentionKernels f32, bf16, f16;
};

extern const AttentionTable attention_generic, attention_avx2, attention_avx512;

}  // namespace pyttc
