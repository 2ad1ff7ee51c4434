#include "cuda/model/pins.h"

#include <algorithm>

#include "base/error.h"
#include "base/os.h"

namespace kt::cuda {

namespace {

uintptr_t address(const uint8_t* at) { return reinterpret_cast<uintptr_t>(at); }
const uint8_t* end_of(const HostRange& range) { return range.at + range.bytes; }

std::string refusal(const HostRange& range, const std::string& reason) {
  const uint64_t lock = os::lock_limit();
  const std::string limit =
      lock == UINT64_MAX ? "" : concat("; this process may lock ", lock, " bytes (ulimit -l)");
  return concat(range.bytes, " bytes of them are refused: ", reason, limit);
}

}  // namespace

std::vector<HostRange> whole_pages(std::vector<HostRange> pieces, size_t page) {
  std::sort(pieces.begin(), pieces.end(),
            [](const HostRange& a, const HostRange& b) { return a.at < b.at; });
  std::vector<HostRange> ranges;
  for (const HostRange& piece : pieces) {
    const uint8_t* const begin = piece.at - address(piece.at) % page;
    const uint8_t* const past = end_of(piece) + (page - address(end_of(piece)) % page) % page;
    if (!ranges.empty() && begin < end_of(ranges.back()))
      ranges.back().bytes = std::max(end_of(ranges.back()), past) - ranges.back().at;
    else
      ranges.push_back({begin, size_t(past - begin)});
  }
  return ranges;
}

Pins::Pins(Memory& memory, std::vector<HostRange> pieces, size_t most_bytes) : memory_(memory) {
  const std::vector<HostRange> ranges = whole_pages(std::move(pieces), os::page_size());
  for (const HostRange& range : ranges) report_.asked += range.bytes;
  try {
    pin_all(ranges, most_bytes);
  } catch (...) {
    release();
    throw;
  }
}

void Pins::pin_all(const std::vector<HostRange>& ranges, size_t most_bytes) {
  const double begin = os::seconds();
  pinned_.reserve(ranges.size());
  int refusals = 0;
  for (const HostRange& range : ranges) {
    if (range.bytes > most_bytes - report_.pinned) {
      report_.why = "KT_PIN_LIMIT allows no more";
      continue;
    }
    if (os::seconds() - begin > kMostSeconds) {
      report_.why = concat("it took longer than ", kMostSeconds, " s");
      break;
    }
    const std::string reason = memory_.pin(range.at, range.bytes);
    if (reason.empty()) {
      pinned_.push_back(range);
      report_.pinned += range.bytes;
      continue;
    }
    report_.why = refusal(range, reason);
    if (++refusals == kMostRefusals) break;
  }
  report_.seconds = os::seconds() - begin;
}

void Pins::release() noexcept {
  if (!pinned_.empty()) memory_.finish_copies();  // of a step that ended in an exception
  for (const HostRange& range : pinned_) memory_.unpin(range.at);
  pinned_.clear();
}

bool Pins::has(const uint8_t* at, size_t bytes) const {
  const auto next = std::upper_bound(
      pinned_.begin(), pinned_.end(), at,
      [](const uint8_t* one, const HostRange& range) { return one < range.at; });
  return next != pinned_.begin() && at + bytes <= end_of(*std::prev(next));
}

}  // namespace kt::cuda
