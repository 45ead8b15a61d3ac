// The work list of prefix_tree_attention on a GPU: which query rows go through which tiles of
// tokens. It is written straight into int32 arrays, from where one copy takes it to a device.
//
// Paths are ranked depth first, so that those below a node are neighbours. A step is one tile of
// kTile tokens, which the ranks in [first, last) share; an item is up to `most_paths` neighbouring
// ranks with their steps in one chunk of kChunk tokens. Nothing here shows in a result's bits.
//
// Linear in nodes, ranks, steps: neighbours that agree on a chunk are taken together, and each node
// knows who holds the token before its first tile and its first chunk, so that depth costs nothing.
// Where paths have only grown since the last call, only what they change is written.
#pragma once
#include <vector>

#include "tensor.h"

namespace pyttc {

constexpr int kTile = 64, kChunk = 512;  // as in triton_kernels/attention.py
constexpr int kChunkTiles = kChunk / kTile;

// Where the lists go, and how many items and steps there is room for.
struct PlanRoom {
  int32_t* items;  // first rank, ranks, first step, steps, chunk
  int32_t* steps;  // tile, first rank, last rank, tokens of the tile
  int32_t* slots;  // of a step, the place in the pool of the first of each `granule` of its tokens
  int32_t* paths;  // of a rank: path, length, first state (of which it has one a chunk)
  int64_t items_room, steps_room, slots_room;
};

struct PlanSizes {
  int64_t items, steps, states;
  int granule;  // a power of two: every page, and every node that has tokens, begins at a multiple
  bool grown;   // only what grew was written
  bool fits;    // if not, the sizes say how much room is needed
};

class TreePlan {
 public:
  // An item has at most `most_paths` paths; the granule is at most `most_granule`.
  TreePlan(int64_t page_size, int64_t most_paths, int64_t most_granule);

  // The tree as PrefixTree holds it; raises for what is wrong with it. Items of earlier calls
  // behind the last one are made empty.
  PlanSizes fill(const Tensor& parents, const Tensor& page_offsets, const Tensor& page_ids,
                 const Tensor& lengths, const Tensor& leaves, const PlanRoom& room);

 private:
  using Ints = std::vector<int32_t>;
  struct Tree {
    Ints parents, offsets, ids, lengths, leaves;
  };
  // Neighbouring ranks that share all their tiles of a chunk: the owner of a tile is the node that
  // holds its last token, and says which tokens it has.
  struct Run {
    int32_t first, last, tiles;
    int32_t owner[kChunkTiles];  // -1 where there is no tile
  };
  // So many steps of neighbouring tiles that have one owner, and the first of them.
  struct Known {
    int32_t owner, count;
    int64_t step;
  };
  // A step of a node's last tile, and where in the list of these the node's one before is.
  struct End {
    int32_t step, before;
  };

  void check_nodes() const;
  void order_nodes();
  void visit(int32_t node, int32_t place);
  void rank_paths();
  void number_states();
  bool only_grew();
  void grow();
  void build(int32_t chunk);
  void take_run(int32_t chunk);
  [[gnu::flatten]] void close(int32_t chunk);  // calls of every step, inlined
  void add_steps(int32_t tile, int32_t count, int32_t first, int32_t last, int32_t owner);
  void write_slots(int64_t step, int32_t tile, int32_t count, int32_t owner);
  int32_t length_of(int32_t rank) const { return leaf_[rank] < 0 ? 0 : end_[leaf_[rank]]; }
  int32_t next_longer(int32_t rank, int32_t length);

  const int32_t page_size_, most_paths_, most_granule_;
  int32_t page_shift_ = -1;  // of a page size that is a power of two
  int32_t granules_ = 0;     // of a tile
  int32_t granule_shift_ = 0;
  Tree tree_, was_;
  // Of nodes: below and beside; order; positions; the nearest above that has tokens, and the node
  // that holds the last token before the tile, and before the chunk, in which this one begins.
  Ints child_, next_, place_, start_, end_, above_, before_tile_, before_chunk_;
  Ints first_rank_, last_rank_, own_ranks_;  // the ranks below, of which the first end in the node
  Ints last_end_;                            // in ends_
  Ints leaf_, skip_;                         // of ranks
  Ints items_before_, steps_before_;         // of chunks
  Ints grown_;
  std::vector<End> ends_;                  // steps ascend
  std::vector<Run> runs_;                  // of the chunk
  Run *group_ = nullptr, *run_ = nullptr;  // the first of the item that is being made, the next run
  int32_t group_steps_ = 0;
  Known known_[kChunkTiles];  // by the first tile: steps whose slots others copy
  PlanRoom room_{};
  PlanSizes sizes_{};
  int64_t written_items_ = 0, steps_room_ = 0;
  int32_t longest_ = 0;
  bool built_ = false;
};

}  // namespace pyttc
