# Kernels are .cu files written against csrc/cuda/common/device.h. Two libraries are made of them:
#   kt_cuda_emulated   by the C++ compiler, on fibres; linked into the tests
#   kt_cuda            by nvcc (csrc/cuda/CMakeLists.txt), with -DKT_CUDA=ON
file(GLOB_RECURSE KT_CUDA_KERNELS CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cuda/*.cu)
file(GLOB_RECURSE KT_CUDA_HOST CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cuda/*.cpp)
list(FILTER KT_CUDA_HOST EXCLUDE REGEX "/common/(emulator|fibre)\\.cpp$")

# Needs the CUDA runtime: only for nvcc.
set(KT_CUDA_PORTABLE ${KT_CUDA_KERNELS})
list(FILTER KT_CUDA_PORTABLE EXCLUDE REGEX "_device\\.cu$")

if(KT_BUILD_TESTS)
  set_source_files_properties(${KT_CUDA_PORTABLE} PROPERTIES LANGUAGE CXX)
  add_library(kt_cuda_emulated STATIC csrc/cuda/common/emulator.cpp csrc/cuda/common/fibre.cpp
              ${KT_CUDA_PORTABLE} ${KT_CUDA_HOST})
  target_link_libraries(kt_cuda_emulated PUBLIC kt_quant kt_base)
endif()

if(KT_CUDA)
  add_subdirectory(csrc/cuda)
endif()
