// R16: the layout every kernel reads, the same size as the file's blocks.
//
// Sixteen rows are woven together word by word. A block of B bytes is seen as `kHead = B % 4` head
// bytes (its half-precision scale or exponent byte, wherever the format keeps it) and B / 4 words:
//
//   record = [ head of row 0 | head of row 1 | ... row 15 ]          16 * kHead bytes
//            [ word 0 of row 0 ... row 15 ]                          64 bytes, one vector
//            [ word 1 of row 0 ... row 15 ] ...
//
// so that one 64-byte load gives the same four packed bytes of sixteen rows, and a lane is a row:
// no horizontal sums, and one broadcast activation serves sixteen rows. A matrix [n, k] is stored
// as ceil(n / 16) row groups of k / kValues records; missing rows of the last group are zero blocks.
//
// Records stand without gaps in the order in which a product of one row of activations reads them:
// bands of 8 row groups; within a band, panels of 1024 columns; within a panel, group by group.
//
//   band 0:  | group 0: columns 0 ... 1023 | group 1: the same ... group 7 |
//            | group 0: columns 1024 ... 2047 | ... group 7 |  ...
//   band 1:  ...
//
// so that the activations of a panel (2.5 KiB a row) stay in L1 for eight groups. With a row group's
// records in one run of k instead, those of k = 7168 come from L2 for every group, which disturbs
// the prefetching of the weights: 80 % of the read bandwidth instead of 97 % (Q4_K, Zen 4).
//
// The words stand in the order in which they are used, so that a product reads memory from one end to
// the other: scales first, and what belongs to the same values side by side. Formats whose file order
// is another one say so by an overload of r16_place beside their Block.
//
// kVersion changes with any change of these bytes; every cache of repacked weights carries it.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace kt::quant {

/// The place in a record of word w of the file's block. This one: where it stands in the file. Always
/// inlined: GCC 12 takes some of these for one function when it folds identical code, and warns.
template <class F>
[[gnu::always_inline]] static inline constexpr int r16_place(F, int w) {
  return w;
}

/// Where the head bytes stand in the file's block: in front (default) or, for formats whose
/// Block declares it, behind the words.
template <class F>
concept HeadAtEnd = requires { requires F::kHeadAtEnd; };

template <class F>
struct R16 {
  static constexpr int kVersion = 3;
  static constexpr int kRows = 16;
  static constexpr size_t kBlockBytes = sizeof(typename F::Block);
  static constexpr size_t kHead = kBlockBytes % 4;
  static constexpr size_t kWords = kBlockBytes / 4;
  static constexpr size_t kRecordBytes = kRows * kBlockBytes;
  static constexpr size_t kHeadOffset = HeadAtEnd<F> ? kWords * 4 : 0;  // in the file's block
  static constexpr size_t kWordOffset = HeadAtEnd<F> ? 0 : kHead;
  static constexpr size_t kWordsAt = kRows * kHead;  // first word vector in the record
};

inline constexpr int64_t kBandGroups = 8;      // row groups of a band
inline constexpr int64_t kPanelValues = 1024;  // columns of a panel

/// Records of a row group in a panel that is not the matrix's last.
template <class F>
inline constexpr int64_t kPanelBlocks = kPanelValues / F::kValues;

/// The number of the record with block `block` of row group `group`, in a matrix of `groups` row
/// groups with `blocks` blocks a row. Up to the end of the panel the group's next ones follow.
static inline constexpr int64_t r16_record(int64_t groups, int64_t blocks, int64_t group,
                                           int64_t block, int64_t panel_blocks) {
  const int64_t in_band = group % kBandGroups, band = group - in_band;
  const int64_t in_panel = block % panel_blocks, panel = block - in_panel;
  const int64_t height = groups - band < kBandGroups ? groups - band : kBandGroups;
  const int64_t width = blocks - panel < panel_blocks ? blocks - panel : panel_blocks;
  return band * blocks + panel * height + in_band * width + in_panel;
}

template <class F>
static inline constexpr int64_t r16_record(int64_t groups, int64_t blocks, int64_t group,
                                           int64_t block) {
  return r16_record(groups, blocks, group, block, kPanelBlocks<F>);
}

/// The 64 bytes that hold word w of sixteen rows.
template <class F, class Byte>
static inline Byte* r16_word(Byte* record, int w) {
  return record + R16<F>::kWordsAt + 64 * r16_place(F{}, w);
}

/// Writes one block of one row into its place in a record.
template <class F>
static inline void r16_put(const typename F::Block& block, int row, uint8_t* record) {
  const uint8_t* bytes = (const uint8_t*)&block;
  if constexpr (R16<F>::kHead != 0)
    memcpy(record + row * R16<F>::kHead, bytes + R16<F>::kHeadOffset, R16<F>::kHead);
  for (size_t w = 0; w < R16<F>::kWords; ++w)
    memcpy(r16_word<F>(record, (int)w) + row * 4, bytes + R16<F>::kWordOffset + w * 4, 4);
}

/// Reads one row's block back out of a record.
template <class F>
static inline void r16_get(const uint8_t* record, int row, typename F::Block* block) {
  uint8_t* bytes = (uint8_t*)block;
  if constexpr (R16<F>::kHead != 0)
    memcpy(bytes + R16<F>::kHeadOffset, record + row * R16<F>::kHead, R16<F>::kHead);
  for (size_t w = 0; w < R16<F>::kWords; ++w)
    memcpy(bytes + R16<F>::kWordOffset + w * 4, r16_word<F>(record, (int)w) + row * 4, 4);
}

}  // namespace kt::quant
