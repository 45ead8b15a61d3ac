#include "attention.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "isa.h"
#include "parallel.h"
#include "path_order.h"

namespace pyttc {
namespace {

constexpr int64_t kChunk = int64_t{kTile} * kChunkTiles;
constexpr float kLn2 = 0x1.62e43p-1f;
// Partial results of this many floats are held at once; more paths than fit are done in turn.
constexpr int64_t kStateFloats = int64_t{16} << 20;
// Query and output rows of one item, in floats: with a tile they stay in the second-level cache.
constexpr int64_t kItemFloats = 24576;

// Tiles of one chunk that the paths below a node read, for one KV head. A full tile belongs to the
// node that holds its last token, the rest of a path to the node the path ends in.
struct Item {
  int64_t node, tile, tile_end, token_end, path, path_end, head, wave;
};

int64_t chunks_of(int64_t first_token, int64_t end) {
  return end > first_token ? (end - 1) / kChunk - first_token / kChunk + 1 : 0;
}

// Memory of one thread, kept between calls.
template <class T>
T* scratch(std::vector<char>& held, int64_t count) {
  const size_t bytes = count * sizeof(T) + 64;
  if (held.size() < bytes) held.resize(bytes);
  const auto address = reinterpret_cast<uintptr_t>(held.data());
  return reinterpret_cast<T*>((address + 63) / 64 * 64);
}

class Run {
 public:
  Run(const Attention& call, const AttentionKernels& kernels)
      : call_(call),
        kernels_(kernels),
        order_(path_order(call.nodes, call.leaves)),
        group_(call.heads / call.kv_heads),
        padded_((call.dim + 15) / 16 * 16),
        width_(call.dtype == DType::f32 ? 4 : 2),
        item_paths_(std::max<int64_t>(1, kItemFloats / padded_ / group_)) {}

  void operator()() {
    slot_.resize(call_.paths + 1);
    for (int64_t path = 0; path < call_.paths;) {
      const int64_t begin = path;
      int64_t slots = 0;
      for (; path < call_.paths; ++path) {
        const int64_t more = chunks_of(low(path), order_.length[path]);
        const int64_t floats = (slots + more) * call_.heads * (padded_ + 2);
        if (path > begin && floats > kStateFloats) break;
        slot_[path] = slots;
        slots += more;
      }
      states_.reset(new float[elements({slots, call_.heads, padded_ + 2})]);
      make_items(begin, path);
      for (size_t i = 0; i < items_.size();) i = run_wave(i);
      constexpr int64_t kRowsAnItem = 64;
      const int64_t rows = (path - begin) * call_.heads;
      parallel_for((rows + kRowsAnItem - 1) / kRowsAnItem, call_.threads, [&](int64_t k) {
        const int64_t end = std::min(rows, (k + 1) * kRowsAnItem);
        for (int64_t r = k * kRowsAnItem; r < end; ++r)
          finish(begin + r / call_.heads, r % call_.heads);
      });
    }
  }

 private:
  int64_t low(int64_t path) const {  // the first position inside the path's window
    return std::max<int64_t>(0, order_.length[path] - call_.window);
  }

  // The state of head 0 of a path in a chunk: m of all heads, l of all heads, then o of all heads.
  float* state(int64_t path, int64_t chunk) const {
    const int64_t slot = slot_[path] + chunk - low(path) / kChunk;
    return states_.get() + slot * call_.heads * (padded_ + 2);
  }

  void make_items(int64_t path_begin, int64_t path_end) {
    items_.clear();
    // Of each node: the last chunk in which it or a node above owns a tile, and the wave of that
    // item.
    struct Last {
      int64_t chunk, wave;
    };
    std::vector<Last> last(call_.nodes.size(), Last{-1, 0});
    int64_t waves = 1;
    const int64_t heads_at_once = std::max<int64_t>(1, call_.kv_heads / std::max(1, call_.threads));
    std::vector<Item> parts;
    const auto add = [&](int64_t node, Last& before, int64_t tile, int64_t tile_end,
                         int64_t token_end, int64_t first, int64_t end) {
      first = std::max(first, path_begin);
      end = std::min(end, path_end);
      parts.clear();
      while (tile < tile_end && first < end) {
        const int64_t chunk = tile / kChunkTiles;
        const int64_t stop = std::min(tile_end, (chunk + 1) * kChunkTiles);
        before = {chunk, before.chunk == chunk ? before.wave + 1 : 0};
        waves = std::max(waves, before.wave + 1);
        parts.push_back(
            {node, tile, stop, std::min(token_end, stop * kTile), 0, 0, 0, before.wave});
        tile = stop;
      }
      // Threads that heads_at_once a long node go through its tokens side by side, each for some
      // heads.
      for (int64_t head = 0; head < call_.kv_heads; head += heads_at_once)
        for (Item item : parts)
          for (item.path = first; item.path < end; item.path = item.path_end) {
            item.path_end = std::min(end, item.path + item_paths_);
            for (item.head = head; item.head < std::min(head + heads_at_once, call_.kv_heads);
                 ++item.head)
              items_.push_back(item);
          }
    };
    for (int64_t node : order_.nodes) {
      if (!order_.below[node]) continue;
      const AttentionNode& at = call_.nodes[node];
      Last& before = last[node];
      if (at.parent >= 0) before = last[at.parent];
      const int64_t start = order_.start[node], end = start + at.length, first = order_.first[node];
      const bool alone = order_.own[node] == order_.below[node];
      const int64_t tile = start / kTile, full = end / kTile, tiles = (end + kTile - 1) / kTile;
      add(node, before, tile, alone ? tiles : full, end, first, first + order_.below[node]);
      if (!alone && order_.own[node]) {
        Last tail = before;
        add(node, tail, full, tiles, end, first, first + order_.own[node]);
      }
    }
    if (waves > 1)
      std::stable_sort(items_.begin(), items_.end(),
                       [](const Item& a, const Item& b) { return a.wave < b.wave; });
  }

  // Runs the items of the wave that begins at `first`, shared out to threads by what they cost;
  // returns where the next wave begins.
  size_t run_wave(size_t first) {
    // As measured: turning keys costs as much as 12 rows, beginning an item as 16 tokens.
    const auto cost = [&](const Item& item) {
      return (item.token_end - item.tile * kTile + 16) *
             ((item.path_end - item.path) * group_ + 12);
    };
    const int count = ranges_of(call_.threads);
    int64_t all = 0, before = 0;
    size_t end = first;
    for (; end < items_.size() && items_[end].wave == items_[first].wave; ++end)
      all += cost(items_[end]);
    std::vector<int64_t> ranges(1, first);
    for (size_t i = first; i < end; before += cost(items_[i++]))
      while (before * count >= all * static_cast<int64_t>(ranges.size())) ranges.push_back(i);
    ranges.resize(count + 1, end);
    parallel_ranges(
        call_.threads, [&](int r) { return ranges[r]; },
        [&](size_t i) { run(items_[i], i + 1 < end ? &items_[i + 1] : nullptr); });
    return end;
  }

  // The rows of an item's tile that some path of it sees.
  void locate(const Item& item, int64_t tile, TileRows& rows) const {
    const int64_t origin = tile * kTile;
    rows.begin = 0;
    rows.end = static_cast<int>(std::min<int64_t>(kTile, item.token_end - origin));
    if (call_.window != INT64_MAX) {
      rows.begin = rows.end;
      for (int64_t path = item.path; path < item.path_end; ++path)
        rows.begin = std::min(rows.begin, inside(path, tile));
    }
    int64_t node = item.node, end = origin + rows.end;
    const int64_t begin = origin + rows.begin;
    while (end > begin) {
      const AttentionNode& at = call_.nodes[node];
      const KvLayout& layout = *at.layout;
      const int64_t start = order_.start[node], from = std::max(begin, start);
      const char* k_base = at.k + item.head * layout.k_head;
      const char* v_base = at.v + item.head * layout.v_head;
      for (int64_t position = from; position < end;) {
        int64_t i = position - start, stop = end;
        const char *k_row = k_base, *v_row = v_base;
        if (layout.page_size) {
          const int64_t page = layout.pages.at(at.first_page + i / layout.page_size);
          k_row += page * layout.k_page;
          v_row += page * layout.v_page;
          stop = std::min(end, start + (i / layout.page_size + 1) * layout.page_size);
          i %= layout.page_size;
        }
        k_row += i * layout.k_token;
        v_row += i * layout.v_token;
        for (; position < stop; ++position, k_row += layout.k_token, v_row += layout.v_token) {
          rows.k[position - origin] = k_row;
          rows.v[position - origin] = v_row;
        }
      }
      end = std::min(end, from);
      node = at.parent;
    }
    for (const void** to : {rows.k, rows.v}) {
      const void* one = rows.begin < rows.end ? to[rows.begin] : nullptr;
      std::fill(to, to + rows.begin, one);
      std::fill(to + rows.end, to + kTile, one);
    }
  }

  // Of a tile the first token inside the window of a path.
  int inside(int64_t path, int64_t tile) const {
    return static_cast<int>(std::clamp<int64_t>(low(path) - tile * kTile, 0, kTile));
  }

  // `after` is the item this thread may run next.
  void run(const Item& item, const Item* after) const {
    const int64_t most = item_paths_ * group_, chunk = item.tile / kChunkTiles;
    static thread_local std::vector<char> held_floats, held_ints;
    float* q = scratch<float>(held_floats,
                              2 * most * padded_ + 2 * (most + 16) + kTile * (call_.dim + padded_));
    float *o = q + most * padded_, *k_packed = o + most * padded_;
    float *v_packed = k_packed + kTile * call_.dim, *m = v_packed + kTile * padded_;
    float* l = m + most + 16;
    int64_t* path_of = scratch<int64_t>(held_ints, item_paths_ + most);
    int* first = reinterpret_cast<int*>(path_of + item_paths_);

    const int64_t h = item.head * group_;
    int64_t paths = 0;
    for (int64_t path = item.path; path < item.path_end; ++path) {
      if (low(path) >= item.token_end) continue;
      const int64_t row = paths * group_, source = order_.paths[path];
      const char* q_row = call_.q + source / call_.inner * call_.q_outer +
                          source % call_.inner * call_.q_inner + h * call_.q_head;
      for (int64_t j = 0; j < group_; ++j)
        kernels_.query(q_row + j * call_.q_head, call_.dim, q + (row + j) * padded_);
      if (item.tile <= std::max(chunk * kChunkTiles, low(path) / kTile)) {
        std::fill_n(m + row, group_, -INFINITY);
        std::fill_n(l + row, group_, 0.f);
        std::fill_n(o + row * padded_, group_ * padded_, 0.f);
      } else {
        const float* held = state(path, chunk);
        std::copy_n(held + h, group_, m + row);
        std::copy_n(held + call_.heads + h, group_, l + row);
        std::copy_n(held + 2 * call_.heads + h * padded_, group_ * padded_, o + row * padded_);
      }
      path_of[paths++] = path;
    }
    if (!paths) return;

    TileRows tiles[2], *rows = tiles, *next = tiles + 1;
    locate(item, item.tile, *rows);
    for (int64_t tile = item.tile; tile < item.tile_end; ++tile) {
      if (tile + 1 < item.tile_end)
        locate(item, tile + 1, *next);
      else if (after)
        locate(*after, after->tile, *next);
      else
        *next = *rows;
      if (rows->begin < rows->end) {
        for (int64_t i = 0; i < paths && call_.window != INT64_MAX; ++i)
          std::fill_n(first + i * group_, group_, inside(path_of[i], tile));
        const int64_t n = paths * group_;
        Prefetch prefetch(*next, call_.dim * width_, kernels_.prefetches(n, call_.dim));
        kernels_.pack(*rows, n, call_.dim, padded_, k_packed, v_packed, prefetch);
        kernels_.rows(
            {n, call_.dim, padded_, q, k_packed, v_packed, rows, m, l, o, rows->begin, rows->end,
             call_.window == INT64_MAX ? nullptr : first, call_.scale, call_.softcap},
            prefetch);
        prefetch.rest();
      }
      std::swap(rows, next);
    }

    for (int64_t i = 0; i < paths; ++i) {
      float* held = state(path_of[i], chunk);
      const int64_t row = i * group_;
      std::copy_n(m + row, group_, held + h);
      std::copy_n(l + row, group_, held + call_.heads + h);
      std::copy_n(o + row * padded_, group_ * padded_, held + 2 * call_.heads + h * padded_);
    }
  }

  // Merges the chunks of one row in order and writes its output.
  void finish(int64_t path, int64_t head) const {
    const int64_t first = low(path) / kChunk, chunks = chunks_of(low(path), order_.length[path]);
    static thread_local std::vector<const float*> o;
    static thread_local std::vector<float> weight;
    o.resize(chunks);
    weight.resize(chunks);
    // Where nothing was seen the sum is 0; a NaN shows in the sum, not always in the maximum.
    float high = -INFINITY, sum = 0.f;
    for (int64_t i = 0; i < chunks; ++i) high = std::max(high, state(path, first + i)[head]);
    for (int64_t i = 0; i < chunks; ++i) {
      const float* held = state(path, first + i);
      const float l = held[call_.heads + head];
      weight[i] = l == 0.f ? 0.f : std::exp2(held[head] - high);
      sum += weight[i] * l;
      o[i] = held + 2 * call_.heads + head * padded_;
    }
    const int64_t row = order_.paths[path] * call_.heads + head;
    const bool empty = sum == 0.f;
    kernels_.finish(o.data(), weight.data(), empty ? 0 : chunks, empty ? 1.f : sum, call_.dim,
                    call_.out + row * call_.dim * width_);
    call_.lse[row] = empty ? -INFINITY : high * kLn2 + std::log(sum);
  }

  const Attention& call_;
  const AttentionKernels& kernels_;
  const PathOrder order_;
  const int64_t group_, padded_, width_, item_paths_;
  std::vector<int64_t> slot_;  // of each path, its first state
  std::unique_ptr<float[]> states_;
  std::vector<Item> items_;
};

const AttentionKernels& kernels_of(DType dtype) {
  if (dtype == DType::bf16 && isa() >= Isa::avx512bf16)
    return isa() == Isa::amx ? attention_amx : attention_avx512bf16;
  const AttentionTable& table = pick(attention_generic, attention_avx2, attention_avx512);
  return dtype == DType::f32 ? table.f32 : dtype == DType::bf16 ? table.bf16 : table.f16;
}

}  // namespace

void attention(const Attention& call) {
  if (call.heads > 0) Run(call, kernels_of(call.dtype))();
}

}  // namespace pyttc
