#include "kept.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "nucleus.h"

namespace pyttc {
namespace {

constexpr int64_t kListed = 1024;  // the longest top_k taken from the scan's best columns
constexpr int64_t kNucleus = 128;  // the columns looked at for top_p and min_p alone
// A scan's sums are in float within a block: what this share of them would decide is decided again,
// more exactly.
constexpr double kDoubt = 3e-7;

// The lowest value whose weight is at least min_p times that of `largest`.
float floor_of(double min_p, float largest, const Scale& scale) {
  if (!(min_p > 0)) return -INFINITY;
  const double exact = largest + std::log2(min_p) / scale.c;
  const float near = static_cast<float>(exact);
  return near < exact ? std::nextafter(near, INFINITY) : near;
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
  double sum = 0, shift = 0, unit = 1;
  for (int64_t b = 0; b < n; ++b) {
    if (blocks[b].sum > 0) {
      if (blocks[b].ref - ref != shift) unit = power_of_two(shift = blocks[b].ref - ref);
      sum += blocks[b].sum * unit;
    }
    cumulative[b] = sum;
  }
}

// Calls found(i, first, target) for each of n draws: the first entry above the target, which is
// u(i) times the last, the total. Their product may round up to the total: then it is the last
// column with any mass. The searches take their steps side by side, without a branch on what is
// found: one alone waits for every load.
template <class U, class F>
void first_above(const std::vector<double>& cumulative, int64_t n, U u, F found) {
  constexpr int kTogether = 8;
  const double total = cumulative.back(), most = std::nextafter(total, 0.);
  for (int64_t begin = 0; begin < n; begin += kTogether) {
    const double* first[kTogether];
    double target[kTogether];
    for (int j = 0; j < kTogether; ++j) {
      first[j] = cumulative.data();
      target[j] = std::min(u(std::min(begin + j, n - 1)) * total, most);
    }
    for (int64_t left = cumulative.size(); left > 1;) {
      const int64_t half = left / 2;
      for (int j = 0; j < kTogether; ++j) first[j] += first[j][half - 1] <= target[j] ? half : 0;
      left -= half;
    }
    for (int j = 0; j < kTogether && begin + j < n; ++j)
      found(begin + j, first[j] - cumulative.data(), target[j]);
  }
}

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
  const float largest = key_value(allowed.keys[0]);
  if (!filters.top_k && filters.top_p < 1 &&
      find_nucleus(allowed.totals, largest, filters.top_p, listed.floor, threads))
    return true;
  own_filter_ = {filters.mask, listed.floor};
  if (filters.top_k || filters.top_p < 1) {
    const uint64_t last = find_last(largest, filters);
    if (key_value(last) >= listed.floor) {
      own_filter_.floor = key_value(last);
      own_filter_.last = key_column(last);
    }
  }
  own_.scan(row, &own_filter_, scale, 0, threads);
  use_blocks(own_, &own_filter_);
  return true;
}

bool Kept::find_nucleus(RowTotals allowed, float largest, double top_p, float least, int threads) {
  const int64_t v = row_->v;
  const BlockStat unit = unit_of(scale_, largest);
  if (unit.wide) return false;
  const double mass = allowed.sum * power_of_two(allowed.ref - unit.ref), enough = top_p * mass;
  const Filter allowed_only{own_filter_.mask};
  for (const double errors : {3., 12.}) {
    const ValueRange range = guess_end(*row_, own_filter_.mask ? &allowed_only : nullptr, scale_,
                                       unit, mass - enough, errors);
    if (!(range.low < range.high) || range.low < least) return false;
    const int64_t n = own_.scan_above(*row_, own_filter_.mask, range.low, range.high, scale_,
                                      unit.ref, near_, threads);
    const double above = own_.totals.sum;
    if (above >= enough) continue;
    const int64_t groups = (n + kGroup - 1) / kGroup;
    near_values_.assign(groups * kGroup, -INFINITY);
    near_weights_.resize(groups * kGroup);
    for (int64_t i = 0; i < n; ++i) near_values_[i] = key_value(near_[i]);
    row_scan_kernels(DType::f32)
        .weights(near_values_.data(), n, 0, groups, nullptr, scale_, unit, near_weights_.data());
    std::vector<Weighted> columns(n);
    double here = 0;
    for (int64_t i = 0; i < n; ++i) {
      columns[i] = {near_[i], near_weights_[i]};
      here += near_weights_[i];
    }
    if (n == 0 || above + here < enough) continue;
    const uint64_t last = key_at_mass(columns, above, enough);
    own_filter_ = {own_filter_.mask, key_value(last), key_column(last)};
    for (int64_t i = 0; i < n; ++i)
      if (near_[i] >= last) own_.blocks[key_column(near_[i]) / kBlock].sum += near_weights_[i];
    own_.totals = total(own_.blocks.data(), blocks_of(v));
    use_blocks(own_, &own_filter_);
    return true;
  }
  return false;
}

uint64_t Kept::find_last(float largest, const Filters& filters) {
  const int64_t v = row_->v, groups = (v + kGroup - 1) / kGroup;
  Filter allowed_only;
  allowed_only.mask = filters.mask;
  std::vector<float> x(groups * kGroup), weights(groups * kGroup);
  row_->kernels.values(row_->columns(0, v), v, filters.mask ? &allowed_only : nullptr, x.data());
  uint64_t last = order_key(-INFINITY, v);  // after every column
  std::vector<Weighted> columns;
  if (filters.top_k) {
    for (int64_t c = 0; c < v; ++c)
      if (x[c] > -INFINITY) columns.push_back({order_key(x[c], c), 1});
    if (filters.top_k < static_cast<int64_t>(columns.size()))
      last = key_at_mass(columns, 0, filters.top_k);
  }
  if (filters.top_p == 1) return last;
  row_scan_kernels(DType::f32)
      .weights(x.data(), v, 0, groups, nullptr, scale_, unit_of(scale_, largest), weights.data());
  columns.clear();
  double mass = 0;
  for (int64_t c = 0; c < v; ++c) {
    const uint64_t key = order_key(x[c], c);
    if (key < last || !(weights[c] > 0)) continue;
    columns.push_back({key, weights[c]});
    mass += weights[c];
  }
  return std::max(last, key_at_mass(columns, 0, filters.top_p * mass));
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
      blocks[b].sum =
          row_->kernels.refined_sum(columns_of(b), row_->v, b, filter_, scale_, blocks[b]);
  cumulate(blocks.data(), n, ref_, refined_);
}

const void* Kept::columns_of(int64_t block) const {
  return row_->columns(block * kBlock, std::min(row_->v, (block + 1) * kBlock));
}

void Kept::locate(const std::vector<double>& cumulative, const double* u, int64_t* columns) {
  const int64_t n = draws_.size();
  blocks_.resize(n);
  within_.resize(n);
  order_.resize(n);
  masses_.resize(n);
  margins_.resize(n);
  found_.resize(n);
  int32_t lowest = INT32_MAX, highest = 0;
  const auto uniform = [&](int64_t i) { return u[draws_[i]]; };
  first_above(cumulative, n, uniform, [&](int64_t i, int64_t first, double target) {
    const int32_t block = static_cast<int32_t>(first);
    blocks_[i] = block;
    within_[i] = target - (block ? cumulative[block - 1] : 0);
    lowest = std::min(lowest, block);
    highest = std::max(highest, block);
  });
  starts_.assign(highest - lowest + 2, 0);
  for (const int32_t block : blocks_) ++starts_[block - lowest + 1];
  for (size_t i = 1; i < starts_.size(); ++i) starts_[i] += starts_[i - 1];
  for (int64_t i = 0; i < n; ++i) {
    const int32_t block = blocks_[i], at = starts_[block - lowest]++;
    order_[at] = draws_[i];
    masses_[at] = within_[i];
  }
  for (int64_t begin = 0, block = lowest; block <= highest; ++block) {
    const int64_t end = starts_[block - lowest];
    if (begin == end) continue;
    const double shift = scanned_->blocks[block].ref - ref_;
    const double unit = power_of_two(shift), units = power_of_two(-shift);
    for (int64_t i = begin; i < end; ++i) masses_[i] *= units;
    row_->kernels.columns_at(columns_of(block), row_->v, block, filter_, scale_,
                             scanned_->blocks[block], &masses_[begin], end - begin, &found_[begin],
                             &margins_[begin]);
    for (; begin < end; ++begin) {
      columns[order_[begin]] = found_[begin];
      margins_[begin] *= unit;
    }
  }
}

void Kept::draw(const double* u, int64_t n, int64_t* columns) {
  if (listed_) {
    first_above(
        cumulative_, n, [&](int64_t i) { return u[i]; },
        [&](int64_t i, int64_t first, double) { columns[i] = list_[first].first; });
    return;
  }
  draws_.resize(n);
  std::iota(draws_.begin(), draws_.end(), 0);
  locate(cumulative_, u, columns);
  draws_.clear();
  for (int64_t i = 0; i < n; ++i)
    if (margins_[i] < kDoubt * cumulative_.back()) draws_.push_back(order_[i]);
  if (draws_.empty()) return;
  refine();
  locate(refined_, u, columns);
}

}  // namespace pyttc
