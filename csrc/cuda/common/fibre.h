// A fibre: a stack of its own that runs until it hands control back. Only the emulator uses it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace kt::cuda::emulated {

class Fibre {
 public:
  /// The context that resumes fibres: the calling thread's own stack.
  static void adopt_caller(Fibre& caller);

  Fibre() = default;
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  /// Makes entry(argument) what the next switch to this fibre starts. entry never returns: it ends
  /// with leave().
  void start(void (*entry)(void*), void* argument);
  /// Runs `to` until it switches back to `from`.
  static void transfer(Fibre& from, Fibre& to);
  /// The last switch of a fibre that is done.
  static void leave(Fibre& from, Fibre& to);

 private:
  static void enter(Fibre* self);
  friend struct FibreEntry;

  std::unique_ptr<uint8_t[]> stack_;
  void* stack_pointer_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  // For the sanitizers, which follow stacks.
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* tsan_ = nullptr;
  bool own_tsan_ = false;
};

}  // namespace kt::cuda::emulated
