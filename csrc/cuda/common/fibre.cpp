#include "cuda/common/fibre.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace kt::cuda::emulated {

namespace {
// A kernel's frames are small; sanitizers make them larger. Pages never touched cost nothing.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif
thread_local Fibre* caller_of_fibres = nullptr;
}  // namespace

#if defined(__x86_64__)

// Saves what the System V ABI calls callee-saved on the old stack, then takes it from the new one.
// (swapcontext would do, but makes a system call for the signal mask: 30 times slower.)
asm(R"(
.text
.local kt_fibre_switch
.type kt_fibre_switch, @function
kt_fibre_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kt_fibre_switch, .-kt_fibre_switch
.local kt_fibre_start
.type kt_fibre_start, @function
kt_fibre_start:
  movq %rbx, %rdi
  call *%r12
  ud2
.size kt_fibre_start, .-kt_fibre_start
)");
extern "C" void kt_fibre_switch(void** save, void* load);
extern "C" void kt_fibre_start();

void Fibre::start(void (*entry)(void*), void* argument) {
  if (!stack_) stack_.reset(new uint8_t[kStackBytes]);
  entry_ = entry;
  argument_ = argument;
  bottom_ = stack_.get();
  size_ = kStackBytes;
  const uintptr_t top = (reinterpret_cast<uintptr_t>(stack_.get()) + kStackBytes) & ~uintptr_t{15};
  void** slot = reinterpret_cast<void**>(top) - 7;  // r15 r14 r13 r12 rbx rbp, return
  slot[0] = slot[1] = slot[2] = slot[5] = nullptr;
  slot[3] = reinterpret_cast<void*>(&Fibre::enter);
  slot[4] = this;
  slot[6] = reinterpret_cast<void*>(&kt_fibre_start);
  stack_pointer_ = slot;
  fake_stack_ = nullptr;
#if defined(__SANITIZE_THREAD__)
  if (!own_tsan_) tsan_ = __tsan_create_fiber(0);
  own_tsan_ = true;
#endif
}

static void swap(void** save, void* load) { kt_fibre_switch(save, load); }

#else  // any other processor: the C library's contexts

void Fibre::start(void (*entry)(void*), void* argument) {
  if (!stack_) stack_.reset(new uint8_t[kStackBytes + sizeof(ucontext_t) + 64]);
  entry_ = entry;
  argument_ = argument;
  bottom_ = stack_.get();
  size_ = kStackBytes;
  const uintptr_t at =
      (reinterpret_cast<uintptr_t>(stack_.get()) + kStackBytes + 63) & ~uintptr_t{63};
  auto* context = reinterpret_cast<ucontext_t*>(at);
  getcontext(context);
  context->uc_stack.ss_sp = stack_.get();
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  static auto trampoline = [](unsigned high, unsigned low) {
    enter(reinterpret_cast<Fibre*>(uintptr_t{high} << 32 | low));
  };
  const auto self = reinterpret_cast<uintptr_t>(this);
  void (*call)(unsigned, unsigned) = trampoline;
  makecontext(context, reinterpret_cast<void (*)()>(call), 2, static_cast<unsigned>(self >> 32),
              static_cast<unsigned>(self));
  stack_pointer_ = context;
}

static void swap(void** save, void* load) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(load));
}

#endif

void Fibre::adopt_caller(Fibre& caller) {
#if defined(__SANITIZE_THREAD__)
  caller.tsan_ = __tsan_get_current_fiber();
#endif
  caller_of_fibres = &caller;
}

Fibre::~Fibre() {
#if defined(__SANITIZE_THREAD__)
  if (own_tsan_) __tsan_destroy_fiber(tsan_);
#endif
}

void Fibre::transfer(Fibre& from, Fibre& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.size_);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan_, 0);
#endif
  swap(&from.stack_pointer_, to.stack_pointer_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

void Fibre::leave(Fibre& from, Fibre& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, to.bottom_, to.size_);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan_, 0);
#endif
  swap(&from.stack_pointer_, to.stack_pointer_);
}

void Fibre::enter(Fibre* self) {
#if defined(__SANITIZE_ADDRESS__)
  // Tells where the stack it came from lies, which nothing else knows for the thread's own.
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (caller_of_fibres) {
    caller_of_fibres->bottom_ = bottom;
    caller_of_fibres->size_ = size;
  }
#endif
  self->entry_(self->argument_);
}

}  // namespace kt::cuda::emulated
