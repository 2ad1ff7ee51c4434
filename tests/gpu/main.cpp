// Runs what tests/gpu/gtest/gtest.h registered: kt_gpu_tests [PART OF A NAME]...
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <exception>

namespace {

bool chosen(const std::string& name, int argc, char** argv) {
  if (argc < 2) return true;
  for (int i = 1; i < argc; ++i)
    if (name.find(argv[i]) != std::string::npos) return true;
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  int failed = 0, skipped = 0, run = 0;
  for (const testing::Case& test : testing::cases()) {
    if (!chosen(test.name, argc, argv)) continue;
    testing::outcome() = {};
    const auto begin = std::chrono::steady_clock::now();
    try {
      test.run();
    } catch (const std::exception& error) {
      ++testing::outcome().failures;
      testing::outcome().messages.push_back(std::string("exception: ") + error.what());
    }
    const double ms =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    const testing::Outcome& outcome = testing::outcome();
    ++run;
    failed += outcome.failures > 0;
    skipped += outcome.skipped;
    std::printf("%-7s %s (%.0f ms)\n",
                outcome.failures  ? "FAILED"
                : outcome.skipped ? "skipped"
                                  : "ok",
                test.name.c_str(), ms);
    for (size_t i = 0; i < outcome.messages.size() && i < 5; ++i)
      std::printf("        %s\n", outcome.messages[i].c_str());
    std::fflush(stdout);
  }
  std::printf("%d tests, %d failed, %d skipped\n", run, failed, skipped);
  return failed > 0 || run == 0;
}
