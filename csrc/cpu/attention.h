// Decode attention of many paths over a forest of shared keys and values: one core under
// shared_prefix_attention and prefix_tree_attention.
//
// A path reads its tokens on a fixed grid: tiles of kTile tokens anchored at absolute position 0,
// chunks of kChunkTiles tiles. Within a tile every sum runs in a fixed order; tiles are merged in
// order within a chunk, chunks in order at the end. So a path's bits depend on its own tokens
// alone, never on how they are cut into nodes and pages, who shares them, or how many threads run.
#pragma once
#include <vector>

#include "attention_tile.h"
#include "fits.h"

namespace pyttc {

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

inline void require_heads(int64_t heads, int64_t kv_heads, int64_t dim) {
  require(kv_heads >= 1 && heads % kv_heads == 0 && dim % 8 == 0 && dim >= 16 && dim <= 256);
}

// Fills out and lse. `nodes` may come in any order; a cycle is an error before anything is written.
void attention(const Attention& call);

}  // namespace pyttc
