// Do two tensors share memory? The in-place ops refuse arguments that do, since their result would then
// depend on the order of the copies. Pools are often interleaved (keys and values of a page side by side
// in one tensor), so ranges of addresses alone cannot decide.
#pragma once
#include <algorithm>

#include "tensor.h"

namespace pyttc {

// The elements of a tensor as offsets from `begin`: dimensions by ascending stride, sizes 1 left out.
struct Extent {
  const char* begin;
  int64_t width, rank = 0, reach = 0;  // bytes an element; the largest offset, in elements
  struct Dim {
    int64_t stride, size;
    bool operator<(const Dim& o) const { return stride < o.stride; }
    bool operator!=(const Dim& o) const { return stride != o.stride || size != o.size; }
  } dim[8];
  bool empty, overlaps_itself = false;

  explicit Extent(const Tensor& t)
      : begin(t.data<char>()), width(t.t.dtype.bits / 8), empty(t.numel() == 0) {
    for (int i = 0; i < t.t.ndim; ++i)
      if (t.size(i) > 1) dim[rank++] = {t.stride(i), t.size(i)};
    std::sort(dim, dim + rank);
    for (int i = 0; i < rank; ++i) {
      overlaps_itself |= dim[i].stride <= reach;
      reach += dim[i].stride * (dim[i].size - 1);
    }
  }
  const char* end() const { return begin + (reach + 1) * width; }
  bool same_layout(const Extent& o) const {
    if (rank != o.rank || width != o.width) return false;
    for (int i = 0; i < rank; ++i)
      if (dim[i] != o.dim[i]) return false;
    return true;
  }
};

// Is `distance` the difference of the offsets of two elements, going down from dimension rank - 1?
inline bool reachable(const Extent& t, int64_t rank, int64_t distance) {
  if (distance < 0) distance = -distance;
  if (rank == 0) return distance == 0;
  const auto [stride, size] = t.dim[rank - 1];
  const int64_t steps = distance / stride;  // what is left must come from the smaller strides
  return (steps < size && reachable(t, rank - 1, distance - steps * stride)) ||
         (steps + 1 < size && reachable(t, rank - 1, distance - (steps + 1) * stride));
}

// Exact for tensors of the same layout; of others, true as soon as their ranges of addresses meet.
inline bool share_memory(const Extent& a, const Extent& b) {
  if (a.empty || b.empty || a.begin >= b.end() || b.begin >= a.end()) return false;
  const int64_t bytes = a.begin - b.begin;
  if (!a.same_layout(b) || a.overlaps_itself || bytes % a.width) return true;
  return reachable(a, a.rank, bytes / a.width);
}

inline void require_apart(const char* name, const Extent& tensor, const char* other_name,
                          const Extent& other) {
  if (share_memory(tensor, other))
    throw py::value_error(std::string(name) + ": got memory it shares with " + other_name +
                          ", expected memory of its own");
}

// For a tensor that is written.
inline void require_single(const char* name, const Extent& tensor) {
  if (tensor.overlaps_itself && !tensor.empty)
    throw py::value_error(std::string(name) +
                          ": got elements that share memory (an expanded tensor?), "
                          "expected each to have its own");
}

}  // namespace pyttc
