// The forest of an attention call in the order of its paths: those below a node are neighbours,
// those that end in it first.
#pragma once
#include <vector>

#include "attention.h"

namespace pyttc {

struct PathOrder {
  // Of each node: its first position; its first path, the paths that end in it, all below it.
  std::vector<int64_t> start, first, own, below;
  std::vector<int64_t> nodes;   // parents before children
  std::vector<int64_t> paths;   // in order; the empty ones come last
  std::vector<int64_t> length;  // in that order
};

// Linear in nodes and paths; a cycle of nodes is an error.
PathOrder path_order(const std::vector<AttentionNode>& nodes, const std::vector<int64_t>& leaves);

}  // namespace pyttc
