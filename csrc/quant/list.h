// The list of weight formats; everything else is derived from it (formats.h at run time, the kernel
// tables at compile time). To add a format: write its header, include it here, add it to `Formats`.
//
// A format F is a struct of constants with a packed `F::Block`, described by free functions:
//   unpack(block, out)                    kValues floats: the truth, bit-exact with the GGUF format
//   unpack_ints(block, u, scale, min)     integer view, where kGroup > 0:
//       value[i] = scale[i / kGroup] * (u[i] - kOffset) + min[i / kGroup],  u in 0..255
//     kValues bytes, kValues / kGroup scales and (kHasMin) minima. kernels multiply u by integers.
//   kGroup   values that share a scale: 16 or 32 (a format with longer runs repeats its scale)
//   kMaxU    the largest u there can be (kernels: up to 127, pairs of products fit 16 bits)
//   kGgufId  the ggml_type number in a GGUF file
// All of them are `static inline` and free of library types, because kernel objects of every ISA
// include them (see base/half.h).
#pragma once

#include "quant/f32.h"
#include "quant/iq1_m.h"
#include "quant/iq1_s.h"
#include "quant/iq2_s.h"
#include "quant/iq2_xs.h"
#include "quant/iq2_xxs.h"
#include "quant/iq3_s.h"
#include "quant/iq3_xxs.h"
#include "quant/iq4_nl.h"
#include "quant/iq4_xs.h"
#include "quant/mxfp4.h"
#include "quant/nvfp4.h"
#include "quant/q2_k.h"
#include "quant/q3_k.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/q8_0.h"
#include "quant/tq1_0.h"
#include "quant/tq2_0.h"

namespace kt::quant {

template <class... Fs>
struct TypeList {};

using Formats = TypeList<F32, F16, BF16,                        // plain floats
                         Q4_0, Q4_1, Q5_0, Q5_1, Q8_0,          // 32 values, one scale
                         Q2_K, Q3_K, Q4_K, Q5_K, Q6_K,          // 256 values, two levels of scales
                         IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S,  // points of a codebook
                         IQ3_XXS, IQ3_S,                        // the same
                         IQ4_NL, IQ4_XS,                        // sixteen uneven levels
                         TQ1_0, TQ2_0,                          // ternary digits
                         MXFP4, NVFP4>;                         // 4-bit floats

}  // namespace kt::quant
