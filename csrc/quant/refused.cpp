#include "quant/refused.h"

#include <map>

namespace kt::quant {
namespace {

constexpr char kIk[] =
    "only ik_llama.cpp writes this type; use a file quantized to a type of llama.cpp, such as q4_k";
constexpr char kIkRows[] =
    "ik_llama.cpp's interleaved rows; use the file it was repacked from, rows are interleaved here "
    "when a model is loaded";
constexpr char kRemoved[] =
    "llama.cpp removed this type; quantize the original model again, to q4_0 or q4_k";
constexpr char kRepacked[] =
    "llama.cpp removed this repacked form of q4_0; quantize the original model again, to q4_0";
constexpr char kRepackedNl[] =
    "llama.cpp removed this repacked form of iq4_nl; quantize the original model again, to iq4_nl";
constexpr char kActivations[] = "a type for activations inside llama.cpp, never for weights";
constexpr char kNumbers[] = "a type for plain numbers, never for weights";
constexpr char kOneBit[] = "this type is not supported; use a file quantized to iq1_s or more";

constexpr RefusedFormat kRefused[] = {
    {4, "q4_2", kRemoved},
    {5, "q4_3", kRemoved},
    {9, "q8_1", kActivations},
    {15, "q8_k", kActivations},
    {24, "i8", kNumbers},
    {25, "i16", kNumbers},
    {26, "i32", kNumbers},
    {27, "i64", kNumbers},
    {28, "f64", kNumbers},
    {31, "q4_0_4_4", kRepacked},
    {32, "q4_0_4_8", kRepacked},
    {33, "q4_0_8_8", kRepacked},
    {36, "iq4_nl_4_4 (or i2_s, written by bitnet.cpp under the same number)", kRepackedNl},
    {37, "iq4_nl_4_8", kRepackedNl},
    {38, "iq4_nl_8_8", kRepackedNl},
    {41, "q1_0", kOneBit},
    {97, "q8_0_x4", kActivations},
    {98, "q8_1_x4", kActivations},
    {99, "q8_2_x4", kActivations},
    {133, "q6_0", kIk},
    {134, "iq1_bn", kIk},
    {135, "iq2_bn", kIk},
    {136, "q8_k64", kActivations},
    {137, "iq2_k", kIk},
    {138, "iq3_k", kIk},
    {139, "iq4_k", kIk},
    {140, "iq5_k", kIk},
    {141, "iq6_k", kIk},
    {142, "iq2_tn", kIk},
    {143, "iq1_tn", kIk},
    {144, "iq4_ks", kIk},
    {145, "iq2_ks", kIk},
    {146, "iq4_kss", kIk},
    {147, "q8_k16", kActivations},
    {148, "q8_k32", kActivations},
    {149, "q8_kr8", kActivations},
    {150, "q8_k128", kActivations},
    {151, "q8_kv", kIk},
    {152, "iq5_ks", kIk},
    {153, "iq2_kt", kIk},
    {154, "iq3_kt", kIk},
    {155, "iq4_kt", kIk},
    {156, "iq3_ks", kIk},
    {157, "iq2_kl", kIk},
    {158, "iq1_kt", kIk},
    {202, "q4_0_r8", kIkRows},
    {206, "q5_0_r4", kIkRows},
    {208, "q8_0_r8", kIkRows},
    {210, "q2_k_r4", kIkRows},
    {211, "q3_k_r4", kIkRows},
    {212, "q4_k_r4", kIkRows},
    {213, "q5_k_r4", kIkRows},
    {214, "q6_k_r4", kIkRows},
    {216, "iq2_xxs_r4", kIkRows},
    {217, "iq2_xs_r4", kIkRows},
    {218, "iq3_xxs_r4", kIkRows},
    {219, "iq1_s_r4", kIkRows},
    {220, "iq4_nl_r4", kIkRows},
    {221, "iq3_s_r4", kIkRows},
    {222, "iq2_s_r4", kIkRows},
    {223, "iq4_xs_r8", kIkRows},
    {229, "iq1_m_r4", kIkRows},
    {230, "bf16_r16", kIkRows},
    {233, "q6_0_r4", kIk},
    {335, "iq2_bn_r4", kIk},
    {337, "iq2_k_r4", kIk},
    {338, "iq3_k_r4", kIk},
    {339, "iq4_k_r4", kIk},
    {340, "iq5_k_r4", kIk},
    {344, "iq4_ks_r4", kIk},
    {352, "iq5_ks_r4", kIk},
    {353, "mxfp4_r8", kIkRows},
    {397, "q8_k_r16", kIk},
    {398, "q8_kv_r8", kIk},
    {399, "q8_k_r8", kIk},
    {-1, nullptr, nullptr},
};

}  // namespace

const RefusedFormat* refused_formats() { return kRefused; }

const char* refused_format(int gguf_id) {
  static const std::map<int, std::string> lines = [] {
    std::map<int, std::string> made;
    for (const RefusedFormat* row = kRefused; row->name; ++row)
      made[row->gguf_id] = concat(row->name, ": ", row->reason);
    return made;
  }();
  const auto found = lines.find(gguf_id);
  return found == lines.end() ? nullptr : found->second.c_str();
}

Unsupported unsupported_format(int gguf_id) {
  if (const char* line = refused_format(gguf_id))
    return Unsupported(concat("weight type ", gguf_id, ", ", line));
  return Unsupported(concat("weight type id ", gguf_id, " is unknown"));
}

}  // namespace kt::quant
