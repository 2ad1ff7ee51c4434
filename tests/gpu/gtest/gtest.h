// The part of GoogleTest's interface that the tests of csrc/cuda use, for machines that have no
// GoogleTest: registration, fixtures, typed and parameterised tests, expectations. Written from the
// documented behaviour; messages are terser.
#pragma once

#include <cmath>
#include <exception>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

namespace testing {

struct Case {
  std::string name;
  std::function<void()> run;
};
inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
/// Of the test that runs.
struct Outcome {
  int failures = 0;
  bool skipped = false;
  std::vector<std::string> messages, traces;
};
inline Outcome& outcome() {
  static Outcome one;
  return one;
}
inline bool add_case(std::string name, std::function<void()> run) {
  cases().push_back({std::move(name), std::move(run)});
  return true;
}

class Test {
 public:
  virtual ~Test() = default;
  virtual void SetUp() {}
  virtual void TearDown() {}
  virtual void TestBody() = 0;
  void Execute() {
    SetUp();
    if (!outcome().skipped) TestBody();
    TearDown();
  }
};

template <class... Ts>
struct Types {};

/// Collects `<< "text"` and reports when the statement ends; assigned to, so that macros may
/// return.
class Report {
 public:
  Report(bool failed, const char* file, int line, std::string what)
      : failed_(failed), what_(std::move(what)) {
    place_ << file << ":" << line;
  }
  ~Report() {
    if (!failed_) return;
    ++outcome().failures;
    std::string text = place_.str() + ": " + what_ + " " + extra_.str();
    for (const std::string& trace : outcome().traces) text += "\n    in " + trace;
    outcome().messages.push_back(text);
  }
  template <class T>
  Report& operator<<(const T& value) {
    if (failed_) extra_ << value;
    return *this;
  }

 private:
  bool failed_;
  std::string what_;
  std::ostringstream place_, extra_;
};
struct Ignore {
  void operator=(const Report&) const {}
};

class Trace {
 public:
  explicit Trace(std::string text) { outcome().traces.push_back(std::move(text)); }
  ~Trace() { outcome().traces.pop_back(); }
};

template <class T>
std::string shown(const T& value) {
  if constexpr (requires(std::ostringstream& s) { s << value; }) {
    std::ostringstream s;
    s << value;
    return s.str();
  } else {
    return "(value)";
  }
}
template <class A, class B>
std::string both(const char* what, const A& a, const B& b) {
  return std::string(what) + ": " + shown(a) + " against " + shown(b) + ";";
}

/// Whether something held, and what to say where it did not.
struct Check {
  bool ok;
  std::string what;
};
template <class A, class B, class Holds>
Check compared(const A& a, const B& b, Holds holds, const char* what) {
  return holds(a, b) ? Check{true, ""} : Check{false, both(what, a, b)};
}
template <class A, class B>
Check near(const A& a, const B& b, double limit, const char* what) {
  const bool ok = std::fabs(double(a) - double(b)) <= limit;
  return ok ? Check{true, ""} : Check{false, both(what, a, b)};
}
inline Report skipped() {
  outcome().skipped = true;
  return Report(false, "", 0, "");
}

template <template <class> class Fixture, class... Ts, class Make>
bool add_typed(Types<Ts...>, const char* name, Make make) {
  (add_case(std::string(name) + "/" + Ts::kName, [make] { make.template operator()<Ts>(); }), ...);
  return true;
}

}  // namespace testing

#define KT_TEST_CLASS(suite, name) suite##_##name##_Test
#define KT_TEST(suite, name, base)                                                         \
  class KT_TEST_CLASS(suite, name) : public base {                                         \
    void TestBody() override;                                                              \
  };                                                                                       \
  static const bool kt_added_##suite##_##name = ::testing::add_case(#suite "." #name, [] { \
    KT_TEST_CLASS(suite, name) test;                                                       \
    test.Execute();                                                                        \
  });                                                                                      \
  void KT_TEST_CLASS(suite, name)::TestBody()
#define TEST(suite, name) KT_TEST(suite, name, ::testing::Test)
#define TEST_F(suite, name) KT_TEST(suite, name, suite)

#define TYPED_TEST_SUITE(suite, types, ...) using KtTypes_##suite = types
#define TYPED_TEST(suite, name)                                                        \
  template <class TypeParam>                                                           \
  struct KT_TEST_CLASS(suite, name) : public suite<TypeParam> {                        \
    void TestBody() override;                                                          \
  };                                                                                   \
  static const bool kt_added_##suite##_##name =                                        \
      ::testing::add_typed<suite>(KtTypes_##suite{}, #suite "." #name, []<class T>() { \
        KT_TEST_CLASS(suite, name)<T> test;                                            \
        test.Execute();                                                                \
      });                                                                              \
  template <class TypeParam>                                                           \
  void KT_TEST_CLASS(suite, name)<TypeParam>::TestBody()

// Arguments are evaluated once. `switch (0)` keeps an `else` of the caller's from joining ours.
#define KT_CHECKED(check, fail)                                 \
  switch (0)                                                    \
  case 0:                                                       \
  default:                                                      \
    if (const ::testing::Check kt_check = (check); kt_check.ok) \
      ;                                                         \
    else                                                        \
      fail ::testing::Report(true, __FILE__, __LINE__, kt_check.what)
#define KT_EXPECT(check) KT_CHECKED(check, )
#define KT_ASSERT(check) KT_CHECKED(check, return ::testing::Ignore() =)
#define KT_COMPARED(a, op, b) \
  ::testing::compared(        \
      a, b, [](const auto& x, const auto& y) { return bool(x op y); }, #a " " #op " " #b)

#define EXPECT_EQ(a, b) KT_EXPECT(KT_COMPARED(a, ==, b))
#define EXPECT_NE(a, b) KT_EXPECT(KT_COMPARED(a, !=, b))
#define EXPECT_LT(a, b) KT_EXPECT(KT_COMPARED(a, <, b))
#define EXPECT_LE(a, b) KT_EXPECT(KT_COMPARED(a, <=, b))
#define EXPECT_GT(a, b) KT_EXPECT(KT_COMPARED(a, >, b))
#define EXPECT_GE(a, b) KT_EXPECT(KT_COMPARED(a, >=, b))
#define EXPECT_TRUE(a) KT_EXPECT((::testing::Check{bool(a), #a " is false"}))
#define EXPECT_FALSE(a) KT_EXPECT((::testing::Check{!(a), #a " is true"}))
#define EXPECT_NEAR(a, b, limit) KT_EXPECT(::testing::near(a, b, limit, #a " near " #b))
#define ASSERT_EQ(a, b) KT_ASSERT(KT_COMPARED(a, ==, b))
#define ASSERT_LT(a, b) KT_ASSERT(KT_COMPARED(a, <, b))
#define ASSERT_LE(a, b) KT_ASSERT(KT_COMPARED(a, <=, b))
#define ASSERT_GT(a, b) KT_ASSERT(KT_COMPARED(a, >, b))
#define ASSERT_GE(a, b) KT_ASSERT(KT_COMPARED(a, >=, b))
#define ASSERT_TRUE(a) KT_ASSERT((::testing::Check{bool(a), #a " is false"}))
#define ASSERT_FALSE(a) KT_ASSERT((::testing::Check{!(a), #a " is true"}))
#define ASSERT_NEAR(a, b, limit) KT_ASSERT(::testing::near(a, b, limit, #a " near " #b))
#define EXPECT_THROW(statement, kind)                               \
  KT_EXPECT(([&] {                                                  \
    try {                                                           \
      statement;                                                    \
    } catch (const kind&) {                                         \
      return ::testing::Check{true, ""};                            \
    }                                                               \
    return ::testing::Check{false, #statement " throws no " #kind}; \
  }()))
#define EXPECT_NO_THROW(statement)                                                      \
  KT_EXPECT(([&] {                                                                      \
    try {                                                                               \
      statement;                                                                        \
    } catch (const std::exception& e) {                                                 \
      return ::testing::Check{false, std::string(#statement " throws: ") + e.what()};   \
    }                                                                                   \
    return ::testing::Check{true, ""};                                                  \
  }()))
#define FAIL() KT_ASSERT((::testing::Check{false, "failed:"}))
#define GTEST_SKIP() return ::testing::Ignore() = ::testing::skipped()
#define KT_JOIN2(a, b) a##b
#define KT_JOIN(a, b) KT_JOIN2(a, b)
#define SCOPED_TRACE(text) const ::testing::Trace KT_JOIN(kt_trace_, __LINE__)(text)
