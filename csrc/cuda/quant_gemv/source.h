// Where a warp's weights come from: 16 rows of 256 values at a time ("a chunk"), brought to shared
// memory and read from there as tensor-core fragments and scales.
//
//   kChunkBytes          of shared memory per chunk
//   kGroup               values that share a scale
//   load(...)            starts the copies of a chunk; finished by async_wait
//   pair(row, v, ...)    values v ... v + 3 of a row as two words of halves, scale not applied
//   scale, minimum       of a row's group within the chunk
#pragma once

#include "cuda/quant_gemv/decode.h"

namespace kt::cuda {

constexpr int kChunk = 256;

/// Codes 0..255 in the bytes of a word -> halves (u - offset), exact.
KT_DEVICE void codes_to_halves(uint32_t codes, uint32_t minus, uint32_t* low, uint32_t* high) {
  // 0x6400 is 1024, whose unit is 1.
  *low = sub2<half_t>(byte_permute(codes, 0x64646464u, 0x4140), minus);
  *high = sub2<half_t>(byte_permute(codes, 0x64646464u, 0x4342), minus);
}

/// 1024 + offset in both halves of a word; exact up to an offset of 1024.
constexpr uint32_t code_bias(int offset) { return (0x6400u + offset) * 0x00010001u; }

template <class F>
struct RecordReader {
  static constexpr int kGroup = F::kGroup;
  static constexpr bool kHasMin = F::kHasMin;
  static constexpr int kBlocks = F::kValues >= kChunk ? 1 : kChunk / F::kValues;
  static constexpr int kRecordBytes = quant::R16<F>::kRecordBytes;
  static constexpr int kChunkBytes = kBlocks * kRecordBytes;

  KT_DEVICE static RecordRow<F> row_at(Shared<const uint32_t> chunk, int row, int v) {
    return {chunk + v / F::kValues * (kRecordBytes / 4), row};
  }
  KT_DEVICE static void pair(Shared<const uint32_t> chunk, int row, int v, uint32_t* low,
                             uint32_t* high) {
    codes_to_halves(Decode<F>::codes(row_at(chunk, row, v), v % F::kValues), code_bias(F::kOffset),
                    low, high);
  }
  KT_DEVICE static float scale(Shared<const uint32_t> chunk, int row, int g, float) {
    return Decode<F>::scale(row_at(chunk, row, g * kGroup), g * kGroup % F::kValues / kGroup);
  }
  KT_DEVICE static float minimum(Shared<const uint32_t> chunk, int row, int g) {
    return Decode<F>::minimum(row_at(chunk, row, g * kGroup), g * kGroup % F::kValues / kGroup);
  }
};

/// Records in R16: a chunk does not cross a panel, so it is one run of bytes.
template <class F>
struct R16Source : RecordReader<F> {
  using Base = RecordReader<F>;
  KT_DEVICE static void load(Shared<uint32_t> chunk, Global<const uint8_t> weights, int n, int k,
                             int group, int index) {
    const int blocks = k / F::kValues, first = index * Base::kBlocks;
    const int count = min(Base::kBlocks, blocks - first);
    const Global<const uint8_t> from =
        weights + quant::r16_record<F>(div_up(n, 16), blocks, group, first) * Base::kRecordBytes;
    for (int i = lane_id(); i < count * Base::kRecordBytes / 16; i += 32)
      async_copy16_once(chunk + i * 4, from + i * 16);
  }
};

/// The file's blocks, rows one after another: woven into records on the way to shared memory.
/// Blocks are read by two bytes, as most formats' sizes allow no more.
template <class F>
struct BlockSource : RecordReader<F> {
  using Base = RecordReader<F>;
  static_assert(sizeof(typename F::Block) % 2 == 0);
  KT_DEVICE static void load(Shared<uint32_t> chunk, Global<const uint8_t> weights, int n, int k,
                             int group, int index) {
    using Layout = quant::R16<F>;
    constexpr int kBlockHalves = sizeof(typename F::Block) / 2;
    const int blocks = k / F::kValues, first = index * Base::kBlocks;
    const int count = min(Base::kBlocks, blocks - first);
    const Shared<uint16_t> to = shared_cast<uint16_t>(chunk);
    for (int row = 0; row < 16; ++row) {
      const bool present = group * 16 + row < n;
      const Global<const uint16_t> from = global_cast<const uint16_t>(
          weights + (static_cast<int64_t>(present ? group * 16 + row : 0) * blocks + first) *
                        static_cast<int64_t>(sizeof(typename F::Block)));
      for (int i = lane_id(); i < count * kBlockHalves; i += 32) {
        const int block = i / kBlockHalves, byte = i % kBlockHalves * 2;
        const int behind = byte - static_cast<int>(Layout::kWordOffset);  // of the words' begin
        const bool head = Layout::kHead != 0 && byte == static_cast<int>(Layout::kHeadOffset);
        const int at = head ? row * static_cast<int>(Layout::kHead)
                            : static_cast<int>(Layout::kWordsAt) +
                                  64 * quant::r16_place(F{}, behind / 4) + row * 4 + behind % 4;
        const uint16_t value = present ? uint16_t{from[i]} : uint16_t{0};
        to[(block * Base::kRecordBytes + at) / 2] = value;
      }
    }
  }
};

/// FP8 (E4M3), row-major, one scale per 128 x 128 values.
struct Fp8Source {
  static constexpr int kGroup = 32;  // the scale repeats
  static constexpr bool kHasMin = false;
  static constexpr int kRowBytes = kChunk + 16;  // rows' equal words in different banks
  static constexpr int kChunkBytes = 16 * kRowBytes;
  KT_DEVICE static void load(Shared<uint32_t> chunk, Global<const uint8_t> weights, int n, int k,
                             int group, int index) {
    const int pieces = min(kChunk, k - index * kChunk) / 16;
    for (int i = lane_id(); i < 16 * 16; i += 32) {
      const int row = i / 16, piece = i % 16, global_row = group * 16 + row;
      if (piece >= pieces) continue;
      const bool present = global_row < n;
      async_copy16_once(chunk + (row * kRowBytes / 4 + piece * 4),
                        weights + (static_cast<int64_t>(present ? global_row : 0) * k +
                                   index * kChunk + piece * 16),
                        present);
    }
  }
  /// Sign to the top, exponent and mantissa below: a half 2^8 too small.
  KT_DEVICE static void pair(Shared<const uint32_t> chunk, int row, int v, uint32_t* low,
                             uint32_t* high) {
    const uint32_t bytes = chunk[(row * kRowBytes + v) / 4];
    const uint32_t a = byte_permute(bytes, 0, 0x1404), b = byte_permute(bytes, 0, 0x3424);
    *low = (a & 0x80008000u) | (a & 0x7F007F00u) >> 1;
    *high = (b & 0x80008000u) | (b & 0x7F007F00u) >> 1;
  }
  KT_DEVICE static float scale(Shared<const uint32_t>, int, int, float block_scale) {
    return block_scale * 256.0f;
  }
  KT_DEVICE static float minimum(Shared<const uint32_t>, int, int) { return 0; }
};

}  // namespace kt::cuda
