# One kernel source, compiled once per instruction set into its own OBJECT library and namespace.
# Only these targets ever see -m flags; everything else is baseline x86-64.
set(KT_ISA_LIST "" CACHE INTERNAL "")
# The symbol test builds the kernels with -O0 too, where nothing is inlined away.
set(KT_ISA_OPTIMIZE -O3 CACHE STRING "optimization of the kernels")

# kt_add_isa(name FAMILY source flags...): FAMILY chooses the vectors of simd_inl.h. Some sets have all
# the kernels (table.cpp); others have a source of their own with those they change, and the rest are
# their parent's (dispatch.cpp), so that a set costs the compile time of what is new in it.
function(kt_add_isa name family source)
  add_library(kt_isa_${name} OBJECT csrc/cpu/kernels/${source})
  target_compile_definitions(kt_isa_${name} PRIVATE KT_ISA=${name} KT_ISA_NAME="${name}" KT_ISA_${family}=1)
  # No exceptions or RTTI: kernels are noexcept raw-pointer code, and nothing weak may be emitted.
  target_compile_options(kt_isa_${name} PRIVATE ${KT_ISA_OPTIMIZE} -fno-exceptions -fno-rtti -fno-math-errno ${ARGN})
  set(KT_ISA_LIST ${KT_ISA_LIST} ${name} CACHE INTERNAL "")
endfunction()

function(kt_link_isas target)
  foreach(name ${KT_ISA_LIST})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:kt_isa_${name}>)
  endforeach()
endfunction()

set(avx2 -mavx2 -mfma -mf16c)
# GCC 12 warns falsely of uninitialised values inside its own AVX-512 headers.
set(avx512 -Wno-uninitialized -Wno-maybe-uninitialized
    -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni ${avx2})
set(avx512bf16 ${avx512} -mavx512vbmi -mavx512bf16)

kt_add_isa(scalar SCALAR table.cpp)
kt_add_isa(avx2 AVX2 table.cpp ${avx2})
kt_add_isa(avx512 AVX512 table.cpp ${avx512})
kt_add_isa(avx512bf16 AVX512 table_vbmi.cpp ${avx512bf16})
# VNNI in 256 bits: in the encoding of Alder Lake and its successors, and in that of AVX-512, in which
# machines without the other check the kernels. Written by name in the source: no flag is needed.
# They use only some of what is in the headers they include.
set(avxvnni -DKT_VNNI=1 ${avx2} -Wno-unused-function)
kt_add_isa(avxvnni AVX2 table_vnni.cpp ${avxvnni})
kt_add_isa(avxvnni_evex AVX2 table_vnni.cpp ${avxvnni} -DKT_VNNI_EVEX=1)
# Tiles, and their twin in plain C++ that runs wherever AVX-512 does.
kt_add_isa(amx AVX512 table_amx.cpp -DKT_TILES=1 ${avx512})
kt_add_isa(amx_emulated AVX512 table_amx.cpp -DKT_TILES=1 -DKT_TILES_EMULATED=1 ${avx512})
