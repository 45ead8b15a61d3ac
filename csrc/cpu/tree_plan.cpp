#include "tree_plan.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <type_traits>

#include "fits.h"

namespace pyttc {
namespace {

constexpr int32_t kMostSteps = 12;  // of an item, unless a single path has more

int32_t up(int32_t n, int32_t unit) { return (n + unit - 1) / unit; }

// Whether all are low to high, which the highest bit of `outside` tells.
template <class T>
bool copy(const T* from, int64_t stride, int64_t n, int64_t low, int64_t high, int32_t* to) {
  using U = std::make_unsigned_t<T>;
  U outside = 0;
  const auto take = [&](int64_t i, T value) {
    to[i] = static_cast<int32_t>(value);
    outside |= (static_cast<U>(value) - static_cast<U>(low)) |
               (static_cast<U>(high) - static_cast<U>(value));
  };
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) take(i, from[i]);
  else
    for (int64_t i = 0; i < n; ++i) take(i, from[i * stride]);
  return static_cast<T>(outside) >= 0;
}

void load(const char* name, const Tensor& t, int64_t low, int64_t high, std::vector<int32_t>& to) {
  require(fits_index(t, {kAny}) && t.size(0) < INT32_MAX);
  to.resize(t.size(0));
  const bool inside = t.dtype() == DType::i64
                          ? copy(t.data<int64_t>(), t.stride(0), t.size(0), low, high, to.data())
                          : copy(t.data<int32_t>(), t.stride(0), t.size(0), low, high, to.data());
  if (inside) return;
  const Indices values(t);
  for (int64_t i = 0;; ++i)
    if (values.at(i) < low || values.at(i) > high)
      fail(name, i, values.at(i), (low < 0 ? "-1, or 0 to " : "0 to ") + std::to_string(high));
}

}  // namespace

TreePlan::TreePlan(int64_t page_size, int64_t most_paths, int64_t most_granule)
    : page_size_(page_size), most_paths_(most_paths), most_granule_(most_granule) {
  require(page_size >= 1 && page_size <= 256 && most_paths >= 1 && most_paths <= kTile);
  require(most_granule >= 1 && most_granule <= kTile && (most_granule & (most_granule - 1)) == 0);
  for (int shift = 0; shift <= 8; ++shift)
    if (page_size_ == 1 << shift) page_shift_ = shift;
}

PlanSizes TreePlan::fill(const Tensor& parents, const Tensor& page_offsets, const Tensor& page_ids,
                         const Tensor& lengths, const Tensor& leaves, const PlanRoom& room) {
  const bool usable = built_ && room.items == room_.items && room.paths == room_.paths;
  built_ = false;
  std::swap(tree_, was_);
  const int64_t nodes = parents.numel();
  load("parents", parents, -1, nodes - 1, tree_.parents);
  load("page_offsets", page_offsets, 0, page_ids.numel(), tree_.offsets);
  load("page_ids", page_ids, 0, INT32_MAX / page_size_ - 1, tree_.ids);
  load("lengths", lengths, 0, INT32_MAX, tree_.lengths);
  load("leaves", leaves, -1, nodes - 1, tree_.leaves);
  check_nodes();
  if (room.items != room_.items) written_items_ = 0;
  room_ = room;
  sizes_.grown = usable && only_grew();
  if (sizes_.grown) {
    grow();
  } else {
    order_nodes();
    rank_paths();
    number_states();
    sizes_.items = sizes_.steps = 0;
    ends_.clear();
    last_end_.assign(tree_.parents.size(), -1);
    build(0);
  }
  sizes_.fits = sizes_.items <= room.items_room && sizes_.steps <= room.steps_room &&
                sizes_.steps * granules_ <= room.slots_room;
  if (!sizes_.fits) return sizes_;
  if (written_items_ > sizes_.items)
    std::memset(room.items + sizes_.items * 5, 0, (written_items_ - sizes_.items) * 5 * 4);
  written_items_ = sizes_.items;
  built_ = true;
  return sizes_;
}

void TreePlan::check_nodes() const {
  const Tree& t = tree_;
  const int32_t nodes = t.parents.size();
  require(t.lengths.size() == t.parents.size() && t.offsets.size() == t.parents.size() + 1);
  int64_t wrong = 0;  // negative once a node has too few pages
  for (int32_t i = 0; i < nodes; ++i)
    wrong |= int64_t{t.offsets[i + 1] - t.offsets[i]} * page_size_ - t.lengths[i];
  for (int32_t i = 0; wrong < 0; ++i) {
    const int64_t room = int64_t{t.offsets[i + 1] - t.offsets[i]} * page_size_;
    if (room < 0) fail("page_offsets", i + 1, t.offsets[i + 1], "ascending");
    if (room < t.lengths[i]) fail("lengths", i, t.lengths[i], "0 to " + std::to_string(room));
  }
}

void TreePlan::order_nodes() {
  const Ints& parents = tree_.parents;
  const int32_t nodes = parents.size();
  int32_t node = -1, count = 0, starts = page_size_ | most_granule_;
  child_.assign(nodes, -1), place_.assign(nodes, -1);
  for (Ints* of : {&next_, &start_, &end_, &above_, &before_tile_, &before_chunk_})
    of->resize(nodes);
  for (int32_t i = nodes - 1; i >= 0; --i) {
    int32_t& first = parents[i] < 0 ? node : child_[parents[i]];
    next_[i] = first, first = i;
  }
  while (node >= 0) {
    visit(node, count++);
    if (tree_.lengths[node]) starts |= start_[node];
    if (child_[node] >= 0) {
      node = child_[node];
      continue;
    }
    while (node >= 0 && next_[node] < 0) node = parents[node];
    if (node >= 0) node = next_[node];
  }
  if (count < nodes)
    for (int32_t i = 0;; ++i)
      if (place_[i] < 0) fail("parents", i, parents[i], "a forest, but it leads to a cycle");
  sizes_.granule = starts & -starts;
  granules_ = kTile / sizes_.granule;
  granule_shift_ = __builtin_ctz(starts);
}

void TreePlan::visit(int32_t node, int32_t place) {
  const int32_t parent = tree_.parents[node];
  const int64_t start = parent < 0 ? 0 : end_[parent], end = start + tree_.lengths[node];
  if (end >= INT32_MAX - kChunk)
    fail("lengths", node, tree_.lengths[node], "paths of less than 2^31 tokens");
  place_[node] = place, start_[node] = start, end_[node] = end;
  above_[node] = before_tile_[node] = before_chunk_[node] = -1;
  if (parent < 0) return;
  above_[node] = tree_.lengths[parent] ? parent : above_[parent];
  before_tile_[node] = start_[parent] < start / kTile * kTile ? parent : before_tile_[parent];
  before_chunk_[node] = start_[parent] < start / kChunk * kChunk ? parent : before_chunk_[parent];
}

void TreePlan::rank_paths() {
  const int32_t nodes = tree_.parents.size(), paths = tree_.leaves.size();
  Ints first(nodes + 2);  // ranks of the node in a place, the first for paths without one
  const auto place = [&](int32_t leaf) { return leaf < 0 ? 0 : place_[leaf] + 1; };
  for (const int32_t leaf : tree_.leaves) ++first[place(leaf) + 1];
  for (int32_t i = 0; i <= nodes; ++i) first[i + 1] += first[i];
  first_rank_.resize(nodes), last_rank_.resize(nodes), own_ranks_.resize(nodes);
  for (int32_t i = 0; i < nodes; ++i) {
    const int32_t at = place_[i] + 1;
    first_rank_[i] = first[at], last_rank_[i] = first[at + 1],
    own_ranks_[i] = first[at + 1] - first[at];
  }
  leaf_.resize(paths);
  longest_ = 0;
  for (int32_t n = 0; n < paths; ++n) {
    const int32_t leaf = tree_.leaves[n], rank = first[place(leaf)]++;
    leaf_[rank] = leaf;
    room_.paths[rank * 3] = n;
    room_.paths[rank * 3 + 1] = length_of(rank);
    longest_ = std::max(longest_, length_of(rank));
  }
  // Deepest first: the places of all below a node follow its own.
  Ints at(nodes);
  for (int32_t i = 0; i < nodes; ++i) at[place_[i]] = i;
  for (int32_t i = nodes - 1; i >= 0; --i) {
    const int32_t node = at[i], parent = tree_.parents[node];
    if (parent >= 0) last_rank_[parent] = std::max(last_rank_[parent], last_rank_[node]);
  }
}

void TreePlan::number_states() {
  const int64_t ranks = leaf_.size();
  int64_t states = 0;
  for (int64_t r = 0; r < ranks; ++r) {
    room_.paths[r * 3 + 2] = static_cast<int32_t>(states);
    states += up(room_.paths[r * 3 + 1], kChunk);
  }
  require(states < INT32_MAX);
  sizes_.states = states;
}

// Whether nothing has changed but the lengths of leaves that had tokens, and has grown.
bool TreePlan::only_grew() {
  if (tree_.parents != was_.parents || tree_.leaves != was_.leaves) return false;
  const int32_t nodes = tree_.parents.size();
  grown_.clear();
  for (int32_t i = 0; i < nodes; ++i) {
    const int32_t length = tree_.lengths[i], was = was_.lengths[i];
    if (length == was) continue;
    if (length < was || was == 0 || child_[i] >= 0) return false;
    if (int64_t{start_[i]} + length >= INT32_MAX - kChunk) return false;
    grown_.push_back(i);
  }
  if (tree_.offsets == was_.offsets && tree_.ids == was_.ids) return true;
  for (int32_t i = 0; i < nodes; ++i) {
    const int32_t* ids = tree_.ids.data() + tree_.offsets[i];
    const int32_t* before = was_.ids.data() + was_.offsets[i];
    if (!std::equal(before, before + up(was_.lengths[i], page_size_), ids)) return false;
  }
  return true;
}

// Writes the tiles that became fuller, and again all chunks from the first that has a new tile.
void TreePlan::grow() {
  int32_t from = INT32_MAX;
  for (const int32_t node : grown_) {
    const int32_t tiles = up(end_[node], kTile);
    end_[node] = start_[node] + tree_.lengths[node];
    for (int32_t i = 0; i < own_ranks_[node]; ++i)
      room_.paths[(first_rank_[node] + i) * 3 + 1] = end_[node];
    if (own_ranks_[node]) longest_ = std::max(longest_, end_[node]);
    for (int32_t at = last_end_[node]; at >= 0; at = ends_[at].before) {
      const int64_t step = ends_[at].step;
      int32_t* entry = room_.steps + step * 4;
      const int32_t before = entry[3], tokens = std::min(kTile, end_[node] - entry[0] * kTile);
      entry[3] = tokens;
      // The last granule begins where it did, unless tokens entered another.
      if (((tokens - 1) ^ (before - 1)) & -sizes_.granule) write_slots(step, entry[0], 1, node);
    }
    if (up(end_[node], kTile) == tiles) continue;
    last_end_[node] = -1;
    if (own_ranks_[node]) from = std::min(from, tiles / kChunkTiles);
  }
  if (from == INT32_MAX) return;
  number_states();
  if (from < static_cast<int32_t>(steps_before_.size()))
    sizes_.items = items_before_[from], sizes_.steps = steps_before_[from];
  while (!ends_.empty() && ends_.back().step >= sizes_.steps) ends_.pop_back();
  for (int32_t& at : last_end_)
    if (at >= static_cast<int32_t>(ends_.size())) at = -1;
  build(from);
}

void TreePlan::build(int32_t from) {
  steps_room_ = std::min(room_.steps_room, room_.slots_room / granules_);
  const int32_t ranks = leaf_.size(), chunks = up(longest_, kChunk);
  items_before_.resize(chunks), steps_before_.resize(chunks);
  runs_.resize(ranks + 1);
  skip_.resize(ranks);
  for (int32_t r = 0; r < ranks; ++r) skip_[r] = r + 1;
  for (int32_t chunk = from; chunk < chunks; ++chunk) {
    const int32_t first = chunk * kChunk, last = first + kChunk;
    items_before_[chunk] = sizes_.items, steps_before_[chunk] = sizes_.steps;
    std::fill_n(known_, kChunkTiles, Known{-1, 0, 0});
    group_ = run_ = runs_.data();
    group_steps_ = 0;
    int32_t before = 0;
    for (int32_t r; (r = next_longer(before, first)) < ranks;) {
      if (r > before) close(chunk);
      const int32_t leaf = leaf_[r], end = std::min(end_[leaf], last);
      int32_t owner = tree_.lengths[leaf] ? leaf : above_[leaf];
      while (start_[owner] >= end) owner = before_chunk_[owner];
      // All paths below a node that reaches past the chunk have the same tokens in it.
      const int32_t same =
          end_[leaf] >= last ? last_rank_[owner] : first_rank_[leaf] + own_ranks_[leaf];
      Run& run = *run_;
      run.first = r, run.last = same, run.tiles = up(end - first, kTile);
      for (int32_t i = 0; i < kChunkTiles; ++i) run.owner[i] = i < run.tiles ? owner : -1;
      while (start_[owner] >= first + kTile) {
        const int32_t tile = (start_[owner] - first) / kTile;
        owner = before_tile_[owner];
        for (int32_t i = 0; i < tile; ++i) run.owner[i] = owner;
      }
      take_run(chunk);
      before = same;
    }
    close(chunk);
  }
}

// The first rank from `rank` on with more than `length` tokens. Ranks passed once are passed at a
// leap by later chunks.
int32_t TreePlan::next_longer(int32_t rank, int32_t length) {
  const int32_t ranks = leaf_.size();
  while (rank < ranks && length_of(rank) <= length) {
    int32_t& next = skip_[rank];
    if (next < ranks && length_of(next) <= length) next = skip_[next];
    rank = next;
  }
  return rank;
}

// Takes run_ into the group, or into as many groups as its ranks need.
void TreePlan::take_run(int32_t chunk) {
  for (int32_t last = run_->last; run_->first < last; ++run_) {
    int32_t fresh = run_->tiles;
    if (run_ > group_) {
      const Run& back = run_[-1];
      int32_t same = 0;
      while (same < run_->tiles && run_->owner[same] == back.owner[same]) ++same;
      fresh -= same;
      if (back.last - group_->first == most_paths_ || group_steps_ + fresh > kMostSteps) {
        close(chunk);
        fresh = run_->tiles;
      }
    }
    group_steps_ += fresh;
    run_->last = std::min(last, group_->first + most_paths_);
    if (run_->last < last) run_[1] = *run_;
    run_[1].first = run_->last;
  }
}

void TreePlan::close(int32_t chunk) {
  if (group_ == run_) return;
  const Run *const begin = group_, *const end = run_;
  const int64_t first_step = sizes_.steps;
  int32_t tiles = 0;
  for (const Run* run = begin; run < end; ++run) tiles = std::max(tiles, run->tiles);
  for (int32_t i = 0, count; i < tiles; i += count) {
    count = 1;
    for (const Run* run = begin; run < end;) {
      const int32_t owner = run->owner[i], first = run->first;
      while (++run < end && run->owner[i] == owner) {
      }
      // Of one run, the tiles that have its last owner go together.
      if (end - begin == 1 && owner == begin->owner[tiles - 1]) count = tiles - i;
      if (owner >= 0) add_steps(chunk * kChunkTiles + i, count, first, run[-1].last, owner);
    }
  }
  require(sizes_.steps <= INT32_MAX / kTile);
  if (sizes_.items < room_.items_room) {
    int32_t* item = room_.items + sizes_.items * 5;
    item[0] = begin->first, item[1] = end[-1].last - begin->first;
    item[2] = static_cast<int32_t>(first_step);
    item[3] = static_cast<int32_t>(sizes_.steps - first_step), item[4] = chunk;
  }
  ++sizes_.items;
  group_ = run_;
  group_steps_ = 0;
}

// Steps of neighbouring tiles with one owner.
void TreePlan::add_steps(int32_t tile, int32_t count, int32_t first, int32_t last, int32_t owner) {
  const int64_t step = sizes_.steps;
  sizes_.steps += count;
  const int32_t tokens = end_[owner] - (tile + count - 1) * kTile;  // from the last tile on
  if (tokens <= kTile) {
    ends_.push_back({static_cast<int32_t>(sizes_.steps - 1), last_end_[owner]});
    last_end_[owner] = static_cast<int32_t>(ends_.size()) - 1;
  }
  if (sizes_.steps > steps_room_) return;
  const int32_t entry[] = {tile, first, last, kTile};
  int32_t* to = room_.steps + step * 4;
  for (int32_t i = 0; i < count; ++i, to += 4) std::memcpy(to, entry, sizeof entry), to[0] += i;
  to[-1] = std::min(kTile, tokens);
  Known& known = known_[tile & (kChunkTiles - 1)];
  if (known.owner != owner || known.count < count) {
    known = {owner, count, step};
    write_slots(step, tile, count, owner);
    return;
  }
  const int32_t *from = room_.slots + known.step * granules_, slots = count * granules_;
  to = room_.slots + step * granules_;
  if (granules_ >= 4)  // by as many as one instruction moves: a call of memcpy takes longer
    for (int32_t i = 0; i < slots; i += 4) std::memcpy(to + i, from + i, 16);
  else
    for (int32_t i = 0; i < slots; ++i) to[i] = from[i];
}

void TreePlan::write_slots(int64_t step, int32_t tile, int32_t count, int32_t node) {
  const int32_t granule = sizes_.granule, size = page_size_, shift = granule_shift_;
  const int32_t first = tile * kTile, all = count * granules_;
  int32_t* to = room_.slots + step * granules_;
  int32_t end = std::min(all, (end_[node] - first + granule - 1) >> shift);
  if (end < all) std::fill(to + end, to + all, 0);
  for (; end > 0; node = above_[node]) {
    // The node's are those from `begin` to `end`.
    const int32_t begin = std::max(0, start_[node] - first) >> shift;
    const int32_t index = std::max(0, first - start_[node]);
    const int32_t pages = page_shift_ >= 0 ? index >> page_shift_ : index / size;
    const int32_t* page = tree_.ids.data() + tree_.offsets[node] + pages;
    int32_t i = begin, offset = index - pages * size;
    if (granule == size) {
      for (; i < end; ++i) to[i] = *page++ << shift;
    } else if (size >> shift < 8) {
      for (; i < end; ++i) {
        to[i] = *page * size + offset;
        offset += granule;
        if (offset == size) offset = 0, ++page;
      }
    } else {  // enough of each page for the compiler to vectorise
      for (; i < end; ++page, offset = 0) {
        const int32_t slot = *page * size + offset;
        const int32_t many = std::min(end - i, (size - offset) >> shift);
        for (int32_t j = 0; j < many; ++j) to[i + j] = slot + (j << shift);
        i += many;
      }
    }
    end = begin;
  }
}

}  // namespace pyttc
