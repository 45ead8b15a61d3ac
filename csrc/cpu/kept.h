// Which columns of a row the filters keep, and draws among them. The kept set is a prefix of the
// order (value descending, column ascending). The best columns of the scan nearly always hold it:
// then it is a list. Any other kept set is given by its last (value, column) and by the block sums
// of one more scan: a nucleus' end is found in that scan, as nucleus.h says, that of a large top_k
// in a histogram of all columns.
#pragma once
#include <vector>

#include "row_score.h"

namespace pyttc {

struct Filters {
  const int32_t* mask = nullptr;  // null: every column is allowed
  int64_t top_k = 0;              // 0: off
  double top_p = 1, min_p = 0;    // 1 and 0: off

  bool any() const { return top_k || top_p < 1 || min_p > 0; }
};

// How many of the best columns `Kept` wants to look at.
int64_t candidates_of(const Filters& filters);
// Whether `Kept` will go through the whole row again, after this scan of what the mask allows.
bool needs_row(const ScannedRow& allowed, const Scale& scale, const Filters& filters);

class Kept {
 public:
  // Keeps what `filters` leave of the row. `raw` is its scan, with candidates_of(filters) best
  // columns if there is no mask, and `masked`, unless null, that of what the mask allows, with as
  // many; all must outlive the draws. False if nothing is left.
  bool find(const Row& row, const ScannedRow& raw, const ScannedRow* masked, const Scale& scale,
            const Filters& filters, int threads);
  // For each u the first kept column, in index order, whose cumulative mass exceeds u times the
  // total.
  void draw(const double* u, int64_t n, int64_t* columns);
  // log2 of the share of the raw scan's mass that is kept.
  double log2_share(const RowTotals& raw) const {
    return ref_ - raw.ref - raw.log2_sum + log2_sum_;
  }

 private:
  void use_list(const uint64_t* keys, const double* weights, int64_t n);
  void use_blocks(const ScannedRow& scanned, const Filter* filter);
  // Keeps the nucleus of a row with these totals and largest value, unless it is not found or its
  // last value may be below `least`; own_filter_ is lost then.
  bool find_nucleus(RowTotals allowed, float largest, double top_p, float least, int threads);
  // The last kept column as an order key, among all allowed columns, of which `largest` is the
  // best.
  uint64_t find_last(float largest, const Filters& filters);
  // Fills refined_: the sums of the heaviest blocks again, in double precision.
  void refine();
  const void* columns_of(int64_t block) const;
  // The columns of the draws in draws_, by the blocks' cumulative masses; their order and margins
  // are left in order_ and margins_.
  void locate(const std::vector<double>& cumulative, const double* u, int64_t* columns);

  const Row* row_ = nullptr;
  Scale scale_;
  double ref_ = 0, log2_sum_ = 0;   // of the kept mass
  std::vector<double> cumulative_;  // of the list's entries, or of the blocks
  std::vector<double> refined_;     // of the blocks, empty until a draw is nearly a tie
  bool listed_ = false;
  std::vector<std::pair<int64_t, double>> list_;  // column, weight
  const ScannedRow* scanned_ = nullptr;
  const Filter* filter_ = nullptr;
  Filter own_filter_;
  ScannedRow own_;
  // Columns around a nucleus' end: order keys, values and weights.
  std::vector<uint64_t> near_;
  std::vector<float> near_values_, near_weights_;
  // Of draws: which they are, their blocks, and how much of the total is left to them there; then,
  // in the order of their blocks, the same in the blocks' units and the columns found.
  std::vector<int32_t> draws_, blocks_, starts_, order_;
  std::vector<double> within_, masses_, margins_;
  std::vector<int64_t> found_;
};

}  // namespace pyttc
