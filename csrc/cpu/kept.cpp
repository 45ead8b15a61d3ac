#include "kept.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

namespace pyttc {
namespace {

constexpr int64_t kListed = 1024;  // the longest top_k taken from the scan's best columns
constexpr int64_t kNucleus = 128;  // the columns looked at for top_p and min_p alone
constexpr int64_t kMany = 16;  // draws from one row that pay for a guide and for kept group sums
// A scan's sums are in float within a block: what this share of them would decide is decided again,
// more exactly.
constexpr double kDoubt = 2e-7;

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

// The order key of the column at which the cumulative weight, best column first, reaches `mass`:
// one histogram of weights by the highest bits of the value, in four parts so that no addition
// waits for the one before it, then two of the bin where that ends by the bits below, then a sort
// of what is left.
uint64_t key_at_mass(const std::vector<float>& x, const std::vector<float>& weights, int64_t v,
                     double mass) {
  constexpr int kBits = 11, kBins = 1 << kBits, kParts = 4;
  constexpr int kFew = 256;
  std::vector<double> bins(kBins * kParts);
  double before = 0;
  const auto bin_of = [](uint64_t key, int shift) { return key >> shift & (kBins - 1); };
  // The bin where the mass is reached; `before` is what the better bins hold.
  const auto crossing = [&] {
    int found = 0;
    for (int bin = kBins - 1; bin >= 0; --bin) {
      double here = 0;
      for (int part = 0; part < kParts; ++part) here += bins[bin * kParts + part];
      if (!(here > 0)) continue;
      found = bin;
      if (before + here >= mass) break;
      before += here;
    }
    return static_cast<uint64_t>(found);
  };

  int shift = 64 - kBits;
  for (int64_t c = 0; c < v; ++c)
    bins[bin_of(order_key(x[c], c), shift) * kParts + c % kParts] += weights[c];
  uint64_t bin = crossing();
  std::vector<std::pair<uint64_t, float>> items;
  for (int64_t c = 0; c < v; ++c) {
    const uint64_t key = order_key(x[c], c);
    if (bin_of(key, shift) == bin && weights[c] > 0) items.emplace_back(key, weights[c]);
  }
  while (items.size() > kFew && shift > 32) {
    shift = std::max(32, shift - kBits);
    std::fill(bins.begin(), bins.end(), 0);
    for (const auto& [key, weight] : items) bins[bin_of(key, shift) * kParts] += weight;
    bin = crossing();
    items.erase(std::remove_if(items.begin(), items.end(),
                               [&](const auto& item) { return bin_of(item.first, shift) != bin; }),
                items.end());
  }
  const auto better = [](const auto& a, const auto& b) { return a.first > b.first; };
  if (!std::is_sorted(items.begin(), items.end(), better))
    std::sort(items.begin(), items.end(), better);
  for (const auto& [key, weight] : items)
    if ((before += weight) >= mass) return key;
  return items.back().first;
}

}  // namespace

int64_t candidates_of(const Filters& filters) {
  if (!filters.any()) return 0;
  return filters.top_k && filters.top_k <= kListed ? filters.top_k : kNucleus;
}

namespace {

// The kept columns if they are among the best columns of a scan: the first `n`.
struct Listed {
  bool complete;
  int64_t n;
  std::vector<double> weights;  // in units of the best column's
  float floor;                  // the least value that min_p keeps
};

Listed list_kept(const ScannedRow& allowed, const Scale& scale, const Filters& filters) {
  const int64_t candidates = candidates_of(filters);
  const bool by_count = filters.top_k && filters.top_k <= kListed;
  const int64_t n = std::min(allowed.best, candidates);
  const float largest = key_value(allowed.keys[0]);
  std::vector<double> weights(n);
  for (int64_t i = 0; i < n; ++i)
    weights[i] = std::exp2((key_value(allowed.keys[i]) - static_cast<double>(largest)) * scale.c);
  // The listed columns are all that top_k leaves, or all there are.
  const bool all = by_count || n < candidates;
  const double mass = all ? std::accumulate(weights.begin(), weights.end(), 0.)
                          : allowed.totals.sum * std::exp2(allowed.totals.ref - largest * scale.c);
  const float floor = floor_of(filters.min_p, largest, scale);
  const double enough = filters.top_p * mass;
  int64_t end = 0;
  double cumulative = 0;
  bool reached = false;
  while (end < n && key_value(allowed.keys[end]) >= floor && !reached) {
    cumulative += weights[end++];
    reached = filters.top_p < 1 && cumulative >= enough;
  }
  const double doubt = kDoubt * mass;
  const bool clear = !reached || (cumulative - enough > doubt &&
                                  (end == 1 || enough - (cumulative - weights[end - 1]) > doubt));
  const bool mass_known = !filters.top_k || filters.top_p == 1;
  const bool complete = all || (mass_known && clear && (reached || end < n));
  return {complete, end, std::move(weights), floor};
}

// The blocks' masses and those before, in units of 2^ref.
void cumulate(const BlockStat* blocks, int64_t n, double ref, std::vector<double>& cumulative) {
  cumulative.resize(n);
  double sum = 0;
  for (int64_t b = 0; b < n; ++b) {
    if (blocks[b].sum > 0) sum += blocks[b].sum * power_of_two(blocks[b].ref - ref);
    cumulative[b] = sum;
  }
}

int64_t first_above(const std::vector<double>& cumulative, double target) {
  return std::upper_bound(cumulative.begin(), cumulative.end(), target) - cumulative.begin();
}

// u * total may round up to the total: then it is the last column with any mass.
double below(double target, double total) { return std::min(target, std::nextafter(total, 0.)); }

}  // namespace

bool needs_row(const ScannedRow& allowed, const Scale& scale, const Filters& filters) {
  return allowed.totals.sum > 0 && filters.any() && !list_kept(allowed, scale, filters).complete;
}

bool Kept::find(const Row& row, const ScannedRow& raw, const ScannedRow* masked, const Scale& scale,
                const Filters& filters, int threads) {
  row_ = &row;
  scale_ = scale;
  own_filter_ = Filter();
  own_filter_.mask = filters.mask;
  const Filter* filter = filters.mask ? &own_filter_ : nullptr;
  if (filter && !masked) own_.scan(row, filter, scale, candidates_of(filters), threads);
  const ScannedRow& allowed = !filter ? raw : masked ? *masked : own_;
  if (!(allowed.totals.sum > 0)) return false;
  if (!filters.any()) {
    use_blocks(allowed, filter);
    return true;
  }
  const Listed listed = list_kept(allowed, scale, filters);
  if (listed.complete) {
    use_list(allowed.keys.data(), listed.weights.data(), listed.n);
    return true;
  }
  own_filter_.floor = listed.floor;
  if (filters.top_k || filters.top_p < 1) {
    const uint64_t last = find_last(allowed, filters);
    if (key_value(last) >= listed.floor) {
      own_filter_.floor = key_value(last);
      own_filter_.last = key_column(last);
    }
  }
  own_.scan(row, &own_filter_, scale, 0, threads);
  use_blocks(own_, &own_filter_);
  return true;
}

uint64_t Kept::find_last(const ScannedRow& allowed, const Filters& filters) {
  const int64_t v = row_->v, groups = (v + kGroup - 1) / kGroup;
  Filter allowed_only;
  allowed_only.mask = filters.mask;
  std::vector<float> x(groups * kGroup), weights(groups * kGroup);
  row_->kernels.values(row_->columns(0, v), v, filters.mask ? &allowed_only : nullptr, x.data());
  uint64_t last = order_key(-INFINITY, v);  // after every column
  if (filters.top_k) {
    int64_t finite = 0;
    for (int64_t c = 0; c < v; ++c) finite += weights[c] = x[c] > -INFINITY;
    if (filters.top_k < finite) last = key_at_mass(x, weights, v, filters.top_k);
  }
  if (filters.top_p == 1) return last;
  row_scan_kernels(DType::f32)
      .weights(x.data(), v, 0, groups, nullptr, scale_, unit(scale_, key_value(allowed.keys[0])),
               weights.data());
  double mass = 0;
  for (int64_t c = 0; c < v; ++c) {
    if (order_key(x[c], c) < last) weights[c] = 0;
    mass += weights[c];
  }
  return std::max(last, key_at_mass(x, weights, v, filters.top_p * mass));
}

void Kept::use_list(const uint64_t* keys, const double* weights, int64_t n) {
  listed_ = true;
  list_.clear();
  for (int64_t i = 0; i < n; ++i) list_.emplace_back(key_column(keys[i]), weights[i]);
  std::sort(list_.begin(), list_.end());
  cumulative_.clear();
  double sum = 0;
  for (const auto& [column, weight] : list_) cumulative_.push_back(sum += weight);
  ref_ = key_value(keys[0]) * scale_.c;
  log2_sum_ = std::log2(sum);
}

void Kept::use_blocks(const ScannedRow& scanned, const Filter* filter) {
  listed_ = false;
  scanned_ = &scanned;
  filter_ = filter;
  ref_ = scanned.totals.ref;
  log2_sum_ = scanned.totals.log2_sum;
  cumulate(scanned.blocks.data(), blocks_of(row_->v), ref_, cumulative_);
  refined_.clear();
}

void Kept::refine() {
  const int64_t n = cumulative_.size();
  // What float rounds averages out over many blocks but not where a few hold the mass.
  const double share =
      std::max(std::pow(8000. / static_cast<double>(row_->v), 2), 2. / static_cast<double>(n));
  std::vector<BlockStat> blocks(scanned_->blocks.begin(), scanned_->blocks.begin() + n);
  for (int64_t b = 0; b < n; ++b)
    if (!blocks[b].wide &&
        cumulative_[b] - (b ? cumulative_[b - 1] : 0) >= share * cumulative_[n - 1])
      row_->kernels.refine(columns_of(b), row_->v, b, filter_, scale_, blocks[b]);
  cumulate(blocks.data(), n, ref_, refined_);
}

const void* Kept::columns_of(int64_t block) const {
  return row_->columns(block * kBlock, std::min(row_->v, (block + 1) * kBlock));
}

int64_t Kept::column_in(int64_t block, const std::vector<double>& cumulative, double target) {
  const BlockStat& stat = scanned_->blocks[block];
  double* groups = groups_.data() + (have_groups_.empty() ? 0 : block * kGroups);
  if (have_groups_.empty() || !have_groups_[block])
    row_->kernels.groups(columns_of(block), row_->v, block, filter_, scale_, stat, groups);
  if (!have_groups_.empty()) have_groups_[block] = 1;
  // From units of the row's reference to the block's.
  const double rest =
      (target - (block ? cumulative[block - 1] : 0)) / power_of_two(stat.ref - ref_);
  int group = 0;
  for (int g = 0; g < kGroups; ++g) group += groups[g] <= rest;
  // Where rounding leaves the groups short of the block's own sum, the last with any weight is
  // meant.
  if (group == kGroups)
    for (--group; group > 0 && !(groups[group] > groups[group - 1]);) --group;
  return row_->kernels.column(columns_of(block), row_->v, block * kGroups + group,
                              rest - (group ? groups[group - 1] : 0), filter_, scale_, stat);
}

void Kept::draw(const double* u, int64_t n, int64_t* columns) {
  const int64_t size = cumulative_.size();
  const double total = cumulative_[size - 1], doubt = kDoubt * total;
  const bool many = n >= kMany;
  if (many) {
    guide_.resize(size);
    int32_t at = 0;
    for (int64_t j = 0; j < size; ++j) {
      while (cumulative_[at] <= total * j / size && at < size - 1) ++at;
      guide_[j] = at;
    }
  }
  if (!listed_) {
    groups_.resize((many ? size : 1) * kGroups);
    have_groups_.assign(many ? size : 0, 0);
  }
  const auto place = [&](double target) {
    if (!many) return first_above(cumulative_, target);
    int64_t i = guide_[std::min(size - 1, static_cast<int64_t>(target / total * size))];
    while (i > 0 && cumulative_[i - 1] > target) --i;
    while (cumulative_[i] <= target) ++i;
    return i;
  };
  const auto column_at = [&](double target) {
    return column_in(place(target), cumulative_, target);
  };
  for (int64_t draw = 0; draw < n; ++draw) {
    const double target = below(u[draw] * total, total);
    if (listed_) {
      columns[draw] = list_[place(target)].first;
      continue;
    }
    columns[draw] = column_at(std::max(0., target - doubt));
    if (columns[draw] == column_at(below(target + doubt, total))) continue;
    if (refined_.empty()) refine();
    const double exact = below(u[draw] * refined_.back(), refined_.back());
    columns[draw] = column_in(first_above(refined_, exact), refined_, exact);
  }
}

}  // namespace pyttc
