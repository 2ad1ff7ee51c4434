# One kernel source, compiled once per instruction set into its own OBJECT library and namespace.
# Only these targets ever see -m flags; everything else is baseline x86-64.
set(KT_ISA_LIST "" CACHE INTERNAL "")
# The symbol test builds the kernels with -O0 too, where nothing is inlined away.
set(KT_ISA_OPTIMIZE -O3 CACHE STRING "optimization of the kernels")

function(kt_add_isa name)
  file(GLOB sources CONFIGURE_DEPENDS csrc/cpu/kernels/*.cpp)
  if(NOT sources)
    return()
  endif()
  add_library(kt_isa_${name} OBJECT ${sources})
  target_compile_definitions(kt_isa_${name} PRIVATE KT_ISA=${name} KT_ISA_NAME="${name}")
  string(TOUPPER ${name} upper)
  target_compile_definitions(kt_isa_${name} PRIVATE KT_ISA_${upper}=1)
  # No exceptions or RTTI: kernels are noexcept raw-pointer code, and nothing weak may be emitted.
  target_compile_options(kt_isa_${name} PRIVATE ${KT_ISA_OPTIMIZE} -fno-exceptions -fno-rtti -fno-math-errno ${ARGN})
  set(KT_ISA_LIST ${KT_ISA_LIST} ${name} CACHE INTERNAL "")
endfunction()

function(kt_link_isas target)
  foreach(name ${KT_ISA_LIST})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:kt_isa_${name}>)
  endforeach()
endfunction()

kt_add_isa(scalar)
kt_add_isa(avx2 -mavx2 -mfma -mf16c)
# GCC 12 warns falsely of uninitialised values inside its own AVX-512 headers.
kt_add_isa(avx512 -Wno-uninitialized -Wno-maybe-uninitialized
           -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx2 -mfma -mf16c)
