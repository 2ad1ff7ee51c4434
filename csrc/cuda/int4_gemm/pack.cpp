#include "cuda/int4_gemm/pack.h"

#include <cmath>

#include "base/error.h"
#include "base/half.h"

namespace kt::cuda {

namespace {

uint16_t to_bits(float v, FloatType type) {
  return type == FloatType::kBf16 ? float_to_bf16(v) : float_to_half(v);
}
float from_bits(uint16_t v, FloatType type) {
  return type == FloatType::kBf16 ? bf16_to_float(v) : half_to_float(v);
}

/// Place of a column's scale within its strip.
int scale_at(int column) { return column % 8 * 8 + column / 8; }

/// Calls visit(byte, shift, row, column of k) for every code, in the order of pack.h.
template <class Visit>
void for_each_code(int n, int k, Visit visit) {
  // Code c of a word: which of the two subtiles, and which of a lane's four values of k.
  constexpr int kSub[8] = {0, 0, 1, 1, 0, 0, 1, 1};
  constexpr int kDepth[8] = {0, 8, 0, 8, 1, 9, 1, 9};
  const int strips = div_up(n, 64), steps = k / 16;
  for (int strip = 0; strip < strips; ++strip) {
    for (int step = 0; step < steps; ++step) {
      for (int lane = 0; lane < 32; ++lane) {
        for (int c = 0; c < 32; ++c) {
          const int word = c / 8, code = c % 8;
          const int row = strip * 64 + word * 16 + kSub[code] * 8 + lane / 4;
          const int column = step * 16 + 2 * (lane % 4) + kDepth[code];
          const size_t byte = ((size_t(strip) * steps + step) * 32 + lane) * 16 + c / 2;
          visit(byte, c % 2 * 4, row, column);
        }
      }
    }
  }
}

}  // namespace

float Int4Matrix::value(int row, int column) const {
  const size_t at = size_t(row) * (k / group) + column / group;
  const float v = scales[at] * static_cast<float>(codes[size_t(row) * k + column] - 8);
  return offsets.empty() ? v : v + offsets[at];
}

PackedInt4 pack_int4(const Int4Matrix& m, FloatType type) {
  KT_CHECK(m.n > 0 && m.k > 0 && m.k % 64 == 0, "an int4 matrix of ", m.n, " x ", m.k,
           ": columns must be a multiple of 64");
  KT_CHECK(m.group == 32 || m.group == 64 || m.group == 128, "group=", m.group,
           " must be 32, 64 or 128");
  KT_CHECK(m.k % m.group == 0, "k=", m.k, " must be a multiple of the group of ", m.group);
  const int strips = div_up(m.n, 64), groups = m.k / m.group;
  KT_CHECK(m.codes.size() == size_t(m.n) * m.k, m.codes.size(), " codes for ", m.n, " x ", m.k);
  KT_CHECK(m.scales.size() == size_t(m.n) * groups, m.scales.size(), " scales for ", m.n, " x ",
           groups, " groups");
  KT_CHECK(m.offsets.empty() || m.offsets.size() == m.scales.size(), m.offsets.size(),
           " offsets for ", m.scales.size(), " scales");
  PackedInt4 packed{m.n, m.k, m.group, type, {}, {}, {}};
  packed.weights.assign(size_t(strips) * 64 * m.k / 2, 0);
  for_each_code(m.n, m.k, [&](size_t byte, int shift, int row, int column) {
    const int code = row < m.n ? m.codes[size_t(row) * m.k + column] : 8;
    packed.weights[byte] |= static_cast<uint8_t>(code << shift);
  });
  const auto pack = [&](const std::vector<float>& from, std::vector<uint16_t>& to) {
    to.assign(size_t(groups) * strips * 64, 0);
    for (int row = 0; row < m.n; ++row) {
      for (int g = 0; g < groups; ++g) {
        const uint16_t bits = to_bits(from[size_t(row) * groups + g], type);
        KT_CHECK(std::isfinite(from_bits(bits, type)), "scale ", from[size_t(row) * groups + g],
                 " of row ", row, " is beyond the 16-bit float's range");
        to[(size_t(g) * strips + row / 64) * 64 + scale_at(row % 64)] = bits;
      }
    }
  };
  pack(m.scales, packed.scales);
  if (!m.offsets.empty()) pack(m.offsets, packed.offsets);
  return packed;
}

Int4Matrix unpack_int4(const PackedInt4& packed) {
  const int strips = div_up(packed.n, 64), groups = packed.k / packed.group;
  Int4Matrix m{packed.n, packed.k, packed.group, {}, {}, {}};
  m.codes.resize(size_t(m.n) * m.k);
  for_each_code(m.n, m.k, [&](size_t byte, int shift, int row, int column) {
    if (row < m.n) m.codes[size_t(row) * m.k + column] = packed.weights[byte] >> shift & 15;
  });
  const auto unpack = [&](const std::vector<uint16_t>& from, std::vector<float>& to) {
    to.resize(size_t(m.n) * groups);
    for (int row = 0; row < m.n; ++row)
      for (int g = 0; g < groups; ++g)
        to[size_t(row) * groups + g] =
            from_bits(from[(size_t(g) * strips + row / 64) * 64 + scale_at(row % 64)], packed.type);
  };
  unpack(packed.scales, m.scales);
  if (!packed.offsets.empty()) unpack(packed.offsets, m.offsets);
  return m;
}

}  // namespace kt::cuda
