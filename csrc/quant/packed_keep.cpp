// Codes of a packed matrix as blocks of q4_0, q4_1 and q8_0. A block's nibbles are put in order as
// they lie in a vector, and the sums for the error are over groups, in 16 bits. What rounds, is out
// of range or rare goes through Plain, value by value. With groups of 32 what a group takes (its
// scale, its sums) costs more than its block does.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "base/os_team.h"
#include "quant/formats.h"
#include "quant/packed_reader.h"
#include "quant/quantize.h"
#include "quant/vectors.h"

namespace kt::quant {
namespace {

constexpr size_t kBlock = 32;  // values of q4_0, q4_1, q8_0

// A tile is rows by blocks: for words along columns one row of as many blocks as kTile; for the
// others as many rows as PackedReader takes, and 256 columns: with what comes of it half of the
// first-level cache, which each line of the file enters once.
constexpr size_t kTile = 1024, kTileBlocks = kTile / PackedReader::kRows;

// What a group of a row has, and what its blocks hold instead: slope * code + offset.
struct Group {
  float scale;
  int zero;
  uint16_t d, m;  // binary16; m where the format has one
  float slope, offset;
};

// float_to_half() and half_to_float() of each: `half` and what that is, `back`. The loop is for
// vectors, hence without branches, and right for zeros and for what is a normal number in
// binary16; where there is something else, all are done again.
void narrow(const float* values, size_t count, uint16_t* half, float* back) {
  uint32_t others = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = float_to_bits(values[i]), size = bits & 0x7FFFFFFFu;
    const uint32_t is_some = size != 0 ? ~0u : 0u, based = size - 0x38000000u;
    others |= (size - 0x38800000u >= 0x477FF000u - 0x38800000u ? ~0u : 0u) & is_some;
    const uint32_t rounded = (based + 0xFFFu + (based >> 13 & 1u)) >> 13 & is_some;
    half[i] = static_cast<uint16_t>((bits >> 16 & 0x8000u) | rounded);
    back[i] = bits_to_float((bits & 0x80000000u) | (((rounded << 13) + 0x38000000u) & is_some));
  }
  if (others == 0) return;
  for (size_t i = 0; i < count; ++i) {
    half[i] = float_to_half(values[i]);
    back[i] = half_to_float(half[i]);
  }
}

// Sums over codes, value by value.
struct Plain {
  int64_t sum = 0, squares = 0, count = 0;
  int least = 255, most = 0;

  void add(const uint8_t* u, size_t values) {
    for (size_t i = 0; i < values; ++i) {
      sum += u[i];
      squares += u[i] * u[i];
      least = std::min<int>(least, u[i]);
      most = std::max<int>(most, u[i]);
    }
    count += static_cast<int64_t>(values);
  }
  // Sum of (a code + b)^2.
  double sum_of(double a, double b) const {
    return a * a * static_cast<double>(squares) + 2 * a * b * static_cast<double>(sum) +
           b * b * static_cast<double>(count);
  }
};

// What keep_group() takes: a format, and how codes come. A block's words are kBytes; kMost is the
// largest code; kAtOnce blocks may be put between two take_squares().

// Formats of nibbles, from codes of 4 bits.
template <class F>
struct Nibbles {
  static constexpr size_t kBytes = 16, kOut = sizeof(typename F::Block);
  static constexpr size_t kAtOnce = 64;  // 64 * 4 * 225 < 2^16
  static constexpr int kMost = 15;
  static constexpr bool kHasMin = F::kHasMin;
  uint16_t head[kHasMin ? 2 : 1];
  bool is_lost;
  Bytes16 zero;
  Words8 squares{};

  explicit Nibbles(const Group& group) : is_lost(!kHasMin && group.zero != 8) {
    head[0] = group.d;
    if constexpr (kHasMin) head[1] = group.m;
    zero = Bytes16{} + static_cast<uint8_t>(group.zero);
  }
  static float offset(float slope, int) { return -8 * slope; }

  void put(const uint8_t* words, uint8_t* out) {
    const Bytes16 x = load16<Bytes16>(words);
    const Bytes16 low = x & 15, high = (Bytes16)((Words8)x >> 4) & 15;
    const Bytes16 a = zip_low(low, high), b = zip_high(low, high);  // values 0 .. 15, 16 .. 31
    std::memcpy(out, head, kOut - 16);
    store16(out + kOut - 16, a | (Bytes16)((Words8)b << 4));
    add_squares((Words8)(a - zero));
    add_squares((Words8)(b - zero));
  }

  // Squares of differences are below 256: a product's lowest byte has them, whatever the sign.
  void add_squares(Words8 v) {
    const Words8 odd = v >> 8;
    squares += (v * v & 255) + (odd * odd & 255);
  }
  // Sum of (code - zero)^2 since the last call.
  int64_t take_squares() { return lanes(std::exchange(squares, Words8{})); }

  size_t lost(size_t values) const { return is_lost ? values : 0; }
  static void unpack(const uint8_t* words, uint8_t* u) {
    for (size_t i = 0; i < 16; ++i) u[2 * i] = words[i] & 15, u[2 * i + 1] = words[i] >> 4;
  }
};

// q8_0 from codes of 8 bits around 128.
struct Bytes {
  static constexpr size_t kBytes = 32, kOut = sizeof(Q8_0::Block), kAtOnce = 1 << 14;
  static constexpr int kMost = 255;
  static constexpr bool kHasMin = false;
  uint16_t d;
  Ints4 squares{};

  explicit Bytes(const Group& group) : d(group.d) {}
  static float offset(float slope, int zero) { return -slope * static_cast<float>(zero); }

  void put(const uint8_t* words, uint8_t* out) {
    std::memcpy(out, &d, 2);
    for (size_t i = 0; i < 32; i += 16) {
      const Bytes16 q = load16<Bytes16>(words + i) ^ 0x80;
      store16(out + 2 + i, q);
      const Shorts8 even = (Shorts8)((Words8)q << 8) >> 8, odd = (Shorts8)q >> 8;
      const Words8 two = (Words8)even * (Words8)even + (Words8)odd * (Words8)odd;  // <= 2^15
      squares += ((Ints4)two & 0xFFFF) + ((Ints4)two >> 16);
    }
  }
  int64_t take_squares() { return lanes(std::exchange(squares, Ints4{})); }
  size_t lost(size_t) const { return 0; }
  static void unpack(const uint8_t* words, uint8_t* u) { std::memcpy(u, words, 32); }
};

// q8_0 from other codes.
template <int kBits>
struct Others {
  static constexpr size_t kBytes = 4 * kBits, kOut = sizeof(Q8_0::Block), kAtOnce = 1 << 14;
  static constexpr int kMost = (1 << kBits) - 1;
  static constexpr bool kHasMin = false;
  Q8_0::Block block;
  int zero;
  size_t out_of_range = 0;
  int64_t squares = 0;

  explicit Others(const Group& group) : zero(group.zero) { block.d = group.d; }
  static float offset(float slope, int zero) { return Bytes::offset(slope, zero); }

  void put(const uint8_t* words, uint8_t* out) {
    uint8_t u[kBlock];
    unpack(words, u);
    int sum = 0, too_far = 0;
    for (size_t i = 0; i < kBlock; ++i) {
      const int q = u[i] - zero;
      sum += q * q;
      too_far += q < -128 || q > 127;
      block.qs[i] = static_cast<int8_t>(std::clamp(q, -128, 127));
    }
    squares += sum;
    out_of_range += static_cast<size_t>(too_far);
    std::memcpy(out, &block, sizeof block);
  }
  int64_t take_squares() { return std::exchange(squares, 0); }
  size_t lost(size_t) const { return out_of_range; }
  static void unpack(const uint8_t* words, uint8_t* u) {
    if constexpr (kBits == 4) {
      Nibbles<Q4_0>::unpack(words, u);
    } else {
      Bytes::unpack(words, u);
    }
  }
};

// Blocks of one row that share a group.
template <class Form>
void keep_group(const Group& group, const uint8_t* words, size_t blocks, uint8_t* out,
                Requantized& result) {
  Form form(group);
  int64_t squares = 0;
  for (size_t done = 0; done < blocks;) {
    for (const size_t end = std::min(blocks, done + Form::kAtOnce); done < end; ++done) {
      form.put(words + done * Form::kBytes, out + done * Form::kOut);
    }
    squares += form.take_squares();
  }
  const size_t values = blocks * kBlock;
  const bool fits = std::isfinite(group.slope) && std::isfinite(group.offset);
  result.out_of_range += fits ? form.lost(values) : values;
  const double s = group.scale;
  result.power += s * s * static_cast<double>(squares);

  // What is written is off by a code + b. Mostly nothing is, but q4_1's minimum.
  const double a = group.slope - s;
  const double b = group.offset + s * group.zero;
  if (fits && a == 0) result.error += b * b * static_cast<double>(values);
  const float size = std::fabs(group.scale);
  const int farthest = std::max(group.zero, Form::kMost - group.zero);
  if (a == 0 && size * static_cast<float>(farthest) <= result.largest) return;
  Plain plain;
  for (size_t i = 0; i < blocks; ++i) {
    uint8_t u[kBlock];
    Form::unpack(words + i * Form::kBytes, u);
    plain.add(u, kBlock);
  }
  if (fits && a != 0) result.error += plain.sum_of(a, b);
  const int far = std::max(std::abs(plain.least - group.zero), plain.most - group.zero);
  result.largest = std::max(result.largest, size * static_cast<float>(far));
}

// Works through rows in tiles.
class Keeper {
 public:
  Keeper(const Packed& m, int gguf_id, uint8_t* out)
      : m_(m),
        reader_(m),
        gguf_id_(gguf_id),
        out_(out),
        blocks_(m.k / kBlock),
        group_blocks_(blocks_ / m.groups) {}

  // Rows first .. first + rows of the matrix, the first of which is row `at` of what is written.
  Requantized keep(size_t first, size_t rows, size_t at) {
    result_ = {};
    const bool by_row = m_.layout == Packed::Layout::kRows;
    const size_t high = by_row ? 1 : PackedReader::kRows, wide = by_row ? kTile : kTileBlocks;
    for (size_t r = 0; r < rows; r += high) {
      for (size_t b = 0; b < blocks_; b += wide) {
        tile(first + r, std::min(high, rows - r), b, std::min(wide, blocks_ - b), at + r);
      }
    }
    return result_;
  }

 private:
  void tile(size_t first, size_t rows, size_t from, size_t blocks, size_t at) {
    const size_t block_words = static_cast<size_t>(m_.bits);
    reader_.lines(first, rows, from * block_words, blocks * block_words, scratch_, line_);
    const size_t group = from / group_blocks_;
    const size_t groups = (from + blocks - 1) / group_blocks_ - group + 1;
    if (rows == 1) {
      reader_.scales(first, 1, group, groups, scale_);
    } else {
      for (size_t g = 0; g < groups; ++g) {
        reader_.scales(first, rows, group + g, 1, scale_ + g * rows);
      }
    }
    const size_t count = rows * groups;
    narrow(scale_, count, d_, slope_);
    for (size_t g = 0, i = 0; g < groups; ++g) {
      for (size_t r = 0; r < rows; ++r, ++i) zero_[i] = reader_.zero(first + r, group + g);
    }
    if (gguf_id_ == Q4_1::kGgufId) {
      for (size_t i = 0; i < count; ++i) least_[i] = -scale_[i] * static_cast<float>(zero_[i]);
      narrow(least_, count, m_half_, offset_);
    }
    if (gguf_id_ == Q4_0::kGgufId) return put<Nibbles<Q4_0>>(rows, from, blocks, at);
    if (gguf_id_ == Q4_1::kGgufId) return put<Nibbles<Q4_1>>(rows, from, blocks, at);
    if (m_.bits == 4) return put<Others<4>>(rows, from, blocks, at);
    const bool is_even = std::all_of(zero_, zero_ + count, [](int zero) { return zero == 128; });
    is_even ? put<Bytes>(rows, from, blocks, at) : put<Others<8>>(rows, from, blocks, at);
  }

  template <class Form>
  void put(size_t rows, size_t from, size_t blocks, size_t at) {
    const size_t group = from / group_blocks_;
    Requantized result;  // of its own: bytes that are written may not be part of it
    result.largest = result_.largest;
    for (size_t r = 0; r < rows; ++r) {
      uint8_t* out = out_ + ((at + r) * blocks_ + from) * Form::kOut;
      for (size_t done = 0, i = r, g = group; done < blocks; i += rows, ++g) {
        const size_t end = std::min(blocks, (g + 1) * group_blocks_ - from);
        Group of{scale_[i], zero_[i], d_[i], 0, slope_[i], Form::offset(slope_[i], zero_[i])};
        if constexpr (Form::kHasMin) of.m = m_half_[i], of.offset = offset_[i];
        keep_group<Form>(of, line_[r] + done * Form::kBytes, end - done, out + done * Form::kOut,
                         result);
        done = end;
      }
    }
    result_ += result;
  }

  const Packed& m_;
  const PackedReader reader_;
  int gguf_id_;
  uint8_t* out_;
  size_t blocks_, group_blocks_;
  Requantized result_;
  uint8_t scratch_[PackedReader::scratch_bytes(PackedReader::kRows, 8 * kTileBlocks)];
  const uint8_t* line_[PackedReader::kRows];
  float scale_[kTile], slope_[kTile], least_[kTile], offset_[kTile];
  uint16_t d_[kTile], m_half_[kTile];
  int zero_[kTile];
};

}  // namespace

bool can_keep_codes(const Packed& m, int gguf_id) {
  const bool has_runs = m.group_of.empty() && m.k / m.groups % kBlock == 0;
  const bool is_nibbles = gguf_id == Q4_0::kGgufId || gguf_id == Q4_1::kGgufId;
  return has_runs && ((is_nibbles && m.bits == 4) || gguf_id == Q8_0::kGgufId);
}

Requantized keep_codes(const Packed& m, size_t first, size_t count, int gguf_id,
                       std::span<uint8_t> out, int threads) {
  KT_CHECK(can_keep_codes(m, gguf_id), "type ", gguf_id, " cannot have codes of ", m.bits,
           " bits in groups of ", m.k / m.groups);
  KT_CHECK(first <= m.n && count <= m.n - first, "rows ", first, " .. ", first + count, " of ",
           m.n);
  KT_CHECK(out.size() == count * row_bytes(gguf_id, m.k), "room for ", out.size(),
           " bytes, the rows take ", count * row_bytes(gguf_id, m.k));
  constexpr size_t kPiece = PackedReader::kRows;
  const size_t pieces = (count + kPiece - 1) / kPiece;
  const size_t team = std::clamp<size_t>(std::max(threads, 1), 1, std::max<size_t>(pieces, 1));
  os::Pieces left(pieces);
  std::vector<Requantized> results(team);
  os::share(left, team, [&](size_t self) {
    Keeper keeper(m, gguf_id, out.data());
    for (size_t i; left.take(i);) {
      const size_t at = i * kPiece;
      results[self] += keeper.keep(first + at, std::min(kPiece, count - at), at);
    }
  });
  Requantized sum;
  for (const Requantized& one : results) sum += one;
  return sum;
}

}  // namespace kt::quant
