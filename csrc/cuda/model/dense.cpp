#include "cuda/model/dense.h"

#include <algorithm>

#include "base/error.h"

namespace kt::cuda {

std::vector<std::vector<ExpertPart>> cut_experts(const std::vector<int>& experts,
                                                 const std::vector<int32_t>& counts, int most_rows,
                                                 int most_experts) {
  KT_CHECK(most_rows > 0 && most_experts > 0 && most_experts <= DenseGemmParams::kMostRuns,
           most_rows, " rows of ", most_experts, " experts at a time");
  std::vector<int32_t> first(counts.size() + 1);
  for (size_t e = 0; e < counts.size(); ++e) first[e + 1] = first[e] + counts[e];
  std::vector<std::vector<ExpertPart>> chunks;
  int rows = most_rows;  // of the last chunk: none is open
  for (const int expert : experts) {
    KT_CHECK(expert >= 0 && size_t(expert) < counts.size(), "expert ", expert, " of ",
             counts.size());
    for (int done = 0; done < counts[expert];) {
      if (rows == most_rows || int(chunks.back().size()) == most_experts) {
        chunks.emplace_back();
        rows = 0;
      }
      const int part = std::min(counts[expert] - done, most_rows - rows);
      chunks.back().push_back({expert, {first[expert] + done, part, rows}});
      done += part, rows += part;
    }
  }
  return chunks;
}

}  // namespace kt::cuda
