#include "path_order.h"

#include <algorithm>
#include <numeric>

namespace pyttc {
namespace {

std::vector<int64_t> parents_first(const std::vector<AttentionNode>& nodes) {
  const int64_t n = nodes.size();
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  const bool sorted =
      std::all_of(order.begin(), order.end(), [&](int64_t i) { return nodes[i].parent < i; });
  if (sorted) return order;
  std::vector<int64_t> children(n, 0);
  for (const AttentionNode& node : nodes)
    if (node.parent >= 0) ++children[node.parent];
  int64_t at = n, next = n;  // filled from the back: a node follows once its children are in
  for (int64_t i = 0; i < n; ++i)
    if (!children[i]) order[--at] = i;
  while (next > at) {
    const int64_t parent = nodes[order[--next]].parent;
    if (parent >= 0 && !--children[parent]) order[--at] = parent;
  }
  if (at > 0) {
    const auto looped =
        std::find_if(children.begin(), children.end(), [](auto c) { return c > 0; });
    fail("parents", looped - children.begin(), nodes[looped - children.begin()].parent,
         "a forest, but it is part of a cycle");
  }
  return order;
}

}  // namespace

PathOrder path_order(const std::vector<AttentionNode>& nodes, const std::vector<int64_t>& leaves) {
  const int64_t n = nodes.size(), paths = leaves.size();
  PathOrder order;
  order.nodes = parents_first(nodes);
  for (auto* of : {&order.start, &order.first, &order.own, &order.below}) of->assign(n, 0);
  // The node itself or, if it is empty, the nearest above that is not.
  std::vector<int64_t> holder(n);
  for (int64_t i : order.nodes) {
    const int64_t parent = nodes[i].parent;
    if (parent >= 0) order.start[i] = order.start[parent] + nodes[parent].length;
    holder[i] = nodes[i].length > 0 || parent < 0 ? i : holder[parent];
  }
  std::vector<int64_t> ends(paths);  // the node that holds a path's last token
  for (int64_t i = 0; i < paths; ++i) {
    ends[i] = leaves[i] < 0 ? -1 : holder[leaves[i]];
    if (ends[i] >= 0 && nodes[ends[i]].length == 0) ends[i] = -1;
    if (ends[i] >= 0) ++order.own[ends[i]];
  }
  for (int64_t k = n - 1; k >= 0; --k) {
    const int64_t i = order.nodes[k];
    order.below[i] += order.own[i];
    if (nodes[i].parent >= 0) order.below[nodes[i].parent] += order.below[i];
  }
  std::vector<int64_t> free(n);  // below a node, where the next child's paths begin
  int64_t root = 0;
  for (int64_t i : order.nodes) {
    int64_t& from = nodes[i].parent < 0 ? root : free[nodes[i].parent];
    order.first[i] = from;
    from += order.below[i];
    free[i] = order.first[i] + order.own[i];
  }
  order.paths.resize(paths);
  order.length.assign(paths, 0);
  std::vector<int64_t> slot = order.first;
  for (int64_t i = 0; i < paths; ++i) {
    const int64_t at = ends[i] < 0 ? root++ : slot[ends[i]]++;
    order.paths[at] = i;
    if (ends[i] >= 0) order.length[at] = order.start[ends[i]] + nodes[ends[i]].length;
  }
  return order;
}

}  // namespace pyttc
