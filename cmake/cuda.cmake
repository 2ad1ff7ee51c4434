# Kernels are .cu files written against csrc/cuda/common/device.h. Two libraries are made of them:
#   kt_cuda_emulated   by the C++ compiler, on fibres; linked into the tests
#   kt_cuda            by nvcc (csrc/cuda/CMakeLists.txt), with -DKT_CUDA=ON
file(GLOB_RECURSE KT_CUDA_KERNELS CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cuda/*.cu)
file(GLOB_RECURSE KT_CUDA_HOST CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cuda/*.cpp)
list(FILTER KT_CUDA_HOST EXCLUDE REGEX "/common/(emulator|fibre)\\.cpp$")

# What a shared library lacks is found when it is linked, not when somebody loads it. Sanitizers leave
# their own symbols to the program.
function(kt_link_complete target)
  if(NOT KT_SANITIZE AND NOT APPLE AND NOT WIN32)
    target_link_options(${target} PRIVATE LINKER:--no-undefined)
  endif()
endfunction()

# Needs the CUDA runtime: only for nvcc.
set(KT_CUDA_PORTABLE ${KT_CUDA_KERNELS})
list(FILTER KT_CUDA_PORTABLE EXCLUDE REGEX "_device\\.cu$")

# The C surface: of the CUDA library, and of a shared one of emulated kernels, with which the tests run
# the benchmarks' own code.
set(KT_CUDA_API ${CMAKE_SOURCE_DIR}/csrc/cuda/api.cpp ${CMAKE_SOURCE_DIR}/csrc/cuda/api_model.cpp)
list(FILTER KT_CUDA_HOST EXCLUDE REGEX "/cuda/api.*\\.cpp$")

if(KT_BUILD_TESTS)
  # Unoptimised: emulated kernels are short work, their many instances are long to compile.
  set_source_files_properties(${KT_CUDA_PORTABLE} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS -O0)
  file(GLOB cuda_tests CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/cpp/cuda/*.cpp)
  set_source_files_properties(${cuda_tests} PROPERTIES COMPILE_OPTIONS -O1)
  add_library(kt_cuda_emulated STATIC csrc/cuda/common/emulator.cpp csrc/cuda/common/fibre.cpp
              ${KT_CUDA_PORTABLE} ${KT_CUDA_HOST})
  target_link_libraries(kt_cuda_emulated PUBLIC kt_quant kt_base)
  add_library(kt_cuda_emulated_api SHARED ${KT_CUDA_API} csrc/cuda/api_emulated.cpp)
  target_link_libraries(kt_cuda_emulated_api PRIVATE kt_cuda_emulated)
  kt_link_complete(kt_cuda_emulated_api)
endif()

if(KT_CUDA)
  add_subdirectory(csrc/cuda)
endif()
