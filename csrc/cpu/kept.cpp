#include "kept.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace pyttc {
namespace {

constexpr int64_t kListed = 1024;  // the longest top_k taken from the scan's best columns
constexpr int64_t kNucleus = 128;  // the columns looked at for top_p and min_p alone
constexpr int64_t kMany = 16;  // draws from one row that pay for a guide and for kept group sums

// What weights are measured by, for values around `largest`.
BlockStat unit(const Scale& scale, float largest) {
  BlockStat stat;
  const double z = largest * scale.c;
  stat.wide = is_wide(scale, z);
  stat.ref = stat.wide ? z : std::rint(z);
  return stat;
}

// The lowest value whose weight is at least min_p times that of `largest`.
float floor_of(double min_p, float largest, const Scale& scale) {
  if (!(min_p > 0)) return -INFINITY;
  const double exact = largest + std::log2(min_p) / scale.c;
  const float near = static_cast<float>(exact);
  return near < exact ? std::nextafter(near, INFINITY) : near;
}

struct Item {
  uint64_t key;
  float weight;
};

// The key at which the cumulative weight, in descending order of keys, reaches `mass`: histograms
// of the value's bits from the top, each over the bin the last one ended in. Items come in order of
// columns.
uint64_t key_at_mass(std::vector<Item> items, double mass) {
  constexpr int kShifts[] = {53, 42, 32}, kBins = 1 << 11;
  constexpr size_t kFew = 256;
  double before = 0;
  std::vector<double> bins(kBins);
  for (int shift : kShifts) {
    if (items.size() <= kFew) break;
    std::fill(bins.begin(), bins.end(), 0);
    const auto bin_of = [&](const Item& item) { return item.key >> shift & (kBins - 1); };
    for (const Item& item : items) bins[bin_of(item)] += item.weight;
    int64_t bin = kBins - 1,
            lowest = bin_of(*std::min_element(items.begin(), items.end(), [&](auto& a, auto& b) {
              return bin_of(a) < bin_of(b);
            }));
    while (bin > lowest && before + bins[bin] < mass) before += bins[bin--];
    items.erase(std::remove_if(items.begin(), items.end(),
                               [&](const Item& item) { return int64_t(bin_of(item)) != bin; }),
                items.end());
  }
  const auto better = [](const Item& a, const Item& b) { return a.key > b.key; };
  if (!std::is_sorted(items.begin(), items.end(), better))
    std::sort(items.begin(), items.end(), better);
  for (const Item& item : items)
    if ((before += item.weight) >= mass) return item.key;
  return items.back().key;
}

}  // namespace

int64_t candidates_of(const Filters& filters) {
  if (!filters.any()) return 0;
  return filters.top_k && filters.top_k <= kListed ? filters.top_k : kNucleus;
}

bool Kept::find(const Row& row, const ScannedRow& raw, const Scale& scale, const Filters& filters,
                int threads) {
  row_ = &row;
  scale_ = scale;
  own_filter_ = Filter();
  own_filter_.mask = filters.mask;
  const int64_t candidates = candidates_of(filters);
  const Filter* filter = filters.mask ? &own_filter_ : nullptr;
  if (filter) own_.scan(row, filter, scale, candidates, threads);
  const ScannedRow& allowed = filter ? own_ : raw;
  if (!(allowed.totals.sum > 0)) return false;
  if (!filters.any()) {
    use_blocks(allowed, filter);
    return true;
  }
  const bool by_count = filters.top_k && filters.top_k <= kListed;
  const int64_t n = std::min(allowed.best, candidates);
  const float largest = key_value(allowed.keys[0]);
  const BlockStat stat = unit(scale, largest);
  const int64_t padded = (n + kGroup - 1) / kGroup;
  std::vector<float> values(n), weights(padded * kGroup);
  for (int64_t i = 0; i < n; ++i) values[i] = key_value(allowed.keys[i]);
  row_scan_kernels(DType::f32)
      .weights(values.data(), n, 0, padded, nullptr, scale, stat, weights.data());
  // The listed columns are all that top_k leaves, or all there are.
  const bool all = by_count || n < candidates;
  double mass = allowed.totals.sum * std::exp2(allowed.totals.ref - stat.ref);
  if (by_count) {
    mass = 0;
    for (int64_t i = 0; i < n; ++i) mass += weights[i];
  }
  int64_t end = 0;
  double cumulative = 0;
  const float floor = floor_of(filters.min_p, largest, scale);
  const double enough = filters.top_p * mass;
  bool reached = false;
  while (end < n && values[end] >= floor && !reached) {
    cumulative += weights[end++];
    reached = filters.top_p < 1 && cumulative >= enough;
  }
  const bool mass_known = all || !filters.top_k || filters.top_p == 1;
  if (all || (mass_known && (reached || end < n))) {
    use_list(allowed.keys.data(), weights.data(), end, stat.ref);
    return true;
  }
  own_filter_.floor = floor;
  if (filters.top_k || filters.top_p < 1) {
    const uint64_t last = find_last(allowed, filters);
    if (key_value(last) >= floor) {
      own_filter_.floor = key_value(last);
      own_filter_.last = key_column(last);
    }
  }
  own_.scan(row, &own_filter_, scale, 0, threads);
  use_blocks(own_, &own_filter_);
  return true;
}

uint64_t Kept::find_last(const ScannedRow& allowed, const Filters& filters) {
  const BlockStat stat = unit(scale_, key_value(allowed.keys[0]));
  Filter allowed_only;
  allowed_only.mask = filters.mask;
  const int64_t v = row_->v, groups = (v + kGroup - 1) / kGroup;
  std::vector<float> weights(groups * kGroup);
  row_->kernels.weights(row_->data, v, 0, groups, &allowed_only, scale_, stat, weights.data());
  std::vector<Item> items;
  items.reserve(v);
  for (int64_t c = 0; c < v; ++c) {
    const float x = row_->at(c);
    const bool on = !filters.mask || (static_cast<uint32_t>(filters.mask[c / 32]) >> c % 32 & 1);
    if (on && x > -INFINITY) items.push_back({order_key(x, c), weights[c]});
  }
  double mass = allowed.totals.sum * std::exp2(allowed.totals.ref - stat.ref);
  uint64_t last = order_key(-INFINITY, v);
  if (filters.top_k && filters.top_k < static_cast<int64_t>(items.size())) {
    std::vector<uint64_t> keys;
    for (const Item& item : items) keys.push_back(item.key);
    std::nth_element(keys.begin(), keys.begin() + filters.top_k - 1, keys.end(), std::greater<>());
    last = keys[filters.top_k - 1];
    items.erase(std::remove_if(items.begin(), items.end(),
                               [&](const Item& item) { return item.key < last; }),
                items.end());
    mass = 0;
    for (const Item& item : items) mass += item.weight;
  }
  if (filters.top_p < 1) last = key_at_mass(std::move(items), filters.top_p * mass);
  return last;
}

void Kept::use_list(const uint64_t* keys, const float* weights, int64_t n, double ref) {
  listed_ = true;
  list_.clear();
  for (int64_t i = 0; i < n; ++i) list_.emplace_back(key_column(keys[i]), weights[i]);
  std::sort(list_.begin(), list_.end());
  cumulative_.clear();
  double sum = 0;
  for (const auto& [column, weight] : list_) cumulative_.push_back(sum += weight);
  log2_mass_ = ref + std::log2(sum);
}

void Kept::use_blocks(const ScannedRow& scanned, const Filter* filter) {
  listed_ = false;
  scanned_ = &scanned;
  filter_ = filter;
  log2_mass_ = scanned.totals.log2_sum;
  const int64_t n = blocks_of(row_->v);
  cumulative_.resize(n);
  double sum = 0;
  for (int64_t b = 0; b < n; ++b) {
    const BlockStat& stat = scanned.blocks[b];
    const double shift = stat.ref - scanned.totals.ref;
    if (stat.sum > 0) sum += stat.sum * power_of_two(shift);
    cumulative_[b] = sum;
  }
}

int64_t Kept::column_in(int64_t block, double target, const double* groups) const {
  const BlockStat& stat = scanned_->blocks[block];
  // From units of the row's reference to the block's.
  const double rest = (target - (block ? cumulative_[block - 1] : 0)) /
                      power_of_two(stat.ref - scanned_->totals.ref);
  int group = 0;
  for (int g = 0; g < kGroups; ++g) group += groups[g] <= rest;
  // Where rounding leaves the groups short of the block's own sum, the last with any weight is
  // meant.
  if (group == kGroups)
    for (--group; group > 0 && !(groups[group] > groups[group - 1]);) --group;
  return row_->kernels.column(row_->data, row_->v, block * kGroups + group,
                              rest - (group ? groups[group - 1] : 0), filter_, scale_, stat);
}

void Kept::draw(const double* u, int64_t n, int64_t* columns) {
  const int64_t size = cumulative_.size();
  const double* cumulative = cumulative_.data();
  // u * total may round up to the total: then it is the last column with any mass.
  const double total = cumulative[size - 1], most = std::nextafter(total, 0.);
  const bool many = n >= kMany;
  if (many) {
    guide_.resize(size);
    int32_t at = 0;
    for (int64_t j = 0; j < size; ++j) {
      while (cumulative[at] <= total * j / size && at < size - 1) ++at;
      guide_[j] = at;
    }
  }
  if (!listed_) {
    groups_.resize((many ? size : 1) * kGroups);
    have_groups_.assign(many ? size : 0, 0);
  }
  for (int64_t draw = 0; draw < n; ++draw) {
    const double target = std::min(u[draw] * total, most);
    int64_t i;
    if (many) {
      i = guide_[static_cast<int64_t>(u[draw] * size)];
      while (i > 0 && cumulative[i - 1] > target) --i;
      while (cumulative[i] <= target) ++i;
    } else {
      i = std::upper_bound(cumulative, cumulative + size, target) - cumulative;
    }
    if (listed_) {
      columns[draw] = list_[i].first;
      continue;
    }
    double* groups = groups_.data() + (many ? i * kGroups : 0);
    if (!many || !have_groups_[i]) {
      row_->kernels.groups(row_->data, row_->v, i, filter_, scale_, scanned_->blocks[i], groups);
      if (many) have_groups_[i] = 1;
    }
    columns[draw] = column_in(i, target, groups);
  }
}

}  // namespace pyttc
