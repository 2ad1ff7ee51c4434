// The part of GoogleTest's interface that the tests of csrc/cuda use, for machines that have no
// GoogleTest: registration, fixtures, typed and parameterised tests, expectations. Written from the
// documented behaviour; messages are terser.
#pragma once

#include <cmath>
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

#define KT_REPORT(ok, what) ::testing::Report(!(ok), __FILE__, __LINE__, what)
#define KT_EXPECT(a, op, b) KT_REPORT((a)op(b), ::testing::both(#a " " #op " " #b, a, b))
#define KT_ASSERT(ok, what) \
  if (ok)                   \
    ;                       \
  else                      \
    return ::testing::Ignore() = KT_REPORT(false, what)

#define EXPECT_EQ(a, b) KT_EXPECT(a, ==, b)
#define EXPECT_NE(a, b) KT_EXPECT(a, !=, b)
#define EXPECT_LT(a, b) KT_EXPECT(a, <, b)
#define EXPECT_LE(a, b) KT_EXPECT(a, <=, b)
#define EXPECT_GT(a, b) KT_EXPECT(a, >, b)
#define EXPECT_GE(a, b) KT_EXPECT(a, >=, b)
#define EXPECT_TRUE(a) KT_REPORT(bool(a), #a " is false")
#define EXPECT_FALSE(a) KT_REPORT(!(a), #a " is true")
#define EXPECT_NEAR(a, b, limit)                               \
  KT_REPORT(std::fabs(double(a) - double(b)) <= double(limit), \
            ::testing::both(#a " near " #b, a, b))
#define ASSERT_EQ(a, b) KT_ASSERT((a) == (b), ::testing::both(#a " == " #b, a, b))
#define ASSERT_LT(a, b) KT_ASSERT((a) < (b), ::testing::both(#a " < " #b, a, b))
#define ASSERT_LE(a, b) KT_ASSERT((a) <= (b), ::testing::both(#a " <= " #b, a, b))
#define ASSERT_GT(a, b) KT_ASSERT((a) > (b), ::testing::both(#a " > " #b, a, b))
#define ASSERT_GE(a, b) KT_ASSERT((a) >= (b), ::testing::both(#a " >= " #b, a, b))
#define ASSERT_TRUE(a) KT_ASSERT(bool(a), #a " is false")
#define ASSERT_FALSE(a) KT_ASSERT(!(a), #a " is true")
#define ASSERT_NEAR(a, b, limit)                               \
  KT_ASSERT(std::fabs(double(a) - double(b)) <= double(limit), \
            ::testing::both(#a " near " #b, a, b))
#define EXPECT_THROW(statement, kind)                  \
  do {                                                 \
    bool thrown = false;                               \
    try {                                              \
      statement;                                       \
    } catch (const kind&) {                            \
      thrown = true;                                   \
    }                                                  \
    KT_REPORT(thrown, #statement " throws no " #kind); \
  } while (0)
#define FAIL() return ::testing::Ignore() = KT_REPORT(false, "failed:")
#define GTEST_SKIP()                   \
  ::testing::outcome().skipped = true; \
  return ::testing::Ignore() = KT_REPORT(true, "")
#define KT_JOIN2(a, b) a##b
#define KT_JOIN(a, b) KT_JOIN2(a, b)
#define SCOPED_TRACE(text) const ::testing::Trace KT_JOIN(kt_trace_, __LINE__)(text)
