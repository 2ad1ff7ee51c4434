#include "cuda/model/memory.h"

#include <numeric>

namespace kt::cuda {

std::vector<size_t> share_out(size_t room, const std::vector<size_t>& wanted) {
  std::vector<size_t> order(wanted.size()), shares(wanted.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return wanted[a] < wanted[b]; });
  for (size_t i = 0; i < order.size(); ++i) {
    size_t& share = shares[order[i]];
    share = std::min(wanted[order[i]], room / (order.size() - i));
    room -= share;
  }
  return shares;
}

}  // namespace kt::cuda
