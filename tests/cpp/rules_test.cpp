#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/error.h"
#include "rules/yaml.h"

namespace {

using kt::FormatError;
using kt::rules::Node;
using kt::rules::parse_yaml_file;
using kt::rules::parse_yaml_text;
using kt::rules::resolve_plain;
using kt::rules::Scalar;

std::string refusal(std::string_view text) {
  try {
    parse_yaml_text(text, "f");
  } catch (const FormatError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(RulesYaml, KeepsPlacesOfKeysAndValues) {
  const Node root = parse_yaml_text("# rules\n- match:\n    name: 'x'\n", "f");
  ASSERT_EQ(root.kind, Node::Kind::kSequence);
  ASSERT_EQ(root.items.size(), 1u);
  const Node& rule = root.items[0];
  EXPECT_EQ(rule.place.line, 2u);
  EXPECT_EQ(rule.place.column, 3u);
  const auto& [key, value] = rule.entries.at(0).second.entries.at(0);
  EXPECT_EQ(std::get<std::string>(key.scalar), "name");
  EXPECT_EQ(key.place.line, 3u);
  EXPECT_EQ(key.place.column, 5u);
  EXPECT_EQ(value.place.column, 11u);
}

TEST(RulesYaml, ColumnsCountCharacters) {
  const Node root = parse_yaml_text("\xEF\xBB\xBF{\xC3\xA9\xC3\xA9: 1}", "f");  // BOM, two accents
  EXPECT_EQ(root.entries.at(0).first.place.column, 2u);
  EXPECT_EQ(root.entries.at(0).second.place.column, 6u);
}

TEST(RulesYaml, QuotedScalarsStayText) {
  const Node root = parse_yaml_text("[\"no\", 'null', \"12\", '', no, null, 12]", "f");
  for (int i = 0; i < 4; ++i)
    EXPECT_TRUE(std::holds_alternative<std::string>(root.items[i].scalar)) << i;
  EXPECT_EQ(root.items[4].scalar, Scalar(false));
  EXPECT_EQ(root.items[5].scalar, Scalar());
  EXPECT_EQ(root.items[6].scalar, Scalar(int64_t{12}));
}

TEST(RulesYaml, RefusesWithPlace) {
  EXPECT_EQ(refusal("a: 1\na: 2"), "f:2:1: duplicate key a");
  EXPECT_EQ(refusal("1: a\ntrue: b"), "f:2:1: duplicate key true");
  EXPECT_EQ(refusal("a: &x 1"), "f:1:4: anchors are not accepted; write the value out");
  EXPECT_NE(refusal("a: *x").find("f:1:4: "), std::string::npos);
  EXPECT_NE(refusal("a: 1\nb: !!str 2").find("f:2:4: tags are not accepted"), std::string::npos);
  EXPECT_NE(refusal("a: ! ~").find("f:1:4: tags are not accepted"), std::string::npos);
  EXPECT_NE(refusal("<<: {a: 1}").find("f:1:1: merge keys"), std::string::npos);
  EXPECT_NE(refusal("a: 1\n---\nb: 2").find("a second document"), std::string::npos);
  EXPECT_NE(refusal("{[1]: 2}").find("f:1:2: a key must be"), std::string::npos);
  EXPECT_NE(refusal("{1.5: 2}").find("f:1:2: a key must be"), std::string::npos);
  EXPECT_NE(refusal("a: \x80").find("f:1:4: not UTF-8"), std::string::npos);
  EXPECT_NE(refusal(std::string_view("a: \0", 4)).find("f:1:4: control character U+0000"),
            std::string::npos);
  EXPECT_NE(refusal("a: [1, 2").find("f:1:"), std::string::npos);
  EXPECT_NE(refusal("a: 99999999999999999999").find("f:1:4: the integer"), std::string::npos);
  EXPECT_NE(refusal("a: 2024-01-31").find("f:1:4: dates"), std::string::npos);
}

TEST(RulesYaml, RefusesOverlongUtf8AndSurrogates) {
  for (const char* bad :
       {"\xC0\xAF", "\xE0\x80\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82"})
    EXPECT_NE(refusal(bad).find("not UTF-8"), std::string::npos);
  EXPECT_EQ(refusal("\xE2\x82\xAC"), "accepted");
}

TEST(RulesYaml, EscapesThatGiveNoUtf8AreRefused) {
  EXPECT_EQ(refusal("a: \"\\xe9 \\u20ac\""), "accepted");
  EXPECT_NE(refusal("a: \"x\\_y\"").find("f:1:4: an escape sequence"), std::string::npos);
  EXPECT_NE(refusal("a: \"\\ud800\"").find("f:1:"), std::string::npos);
  EXPECT_EQ(refusal("a: \"\\\xE2\x82\xAC\"").find('\xE2'), std::string::npos);  // half a sign
}

TEST(RulesYaml, RefusesWhatYamlCppLetsPass) {
  EXPECT_EQ(refusal("a: \"b\nc: d\n"), "f:1:4: the quote is never closed");
  EXPECT_EQ(refusal("- a: 'b''\n"), "f:1:6: the quote is never closed");
  EXPECT_EQ(refusal("- \"\\\"\"\n- 'it''s'\n"), "accepted");
  EXPECT_EQ(refusal("a: 1\nwhy\n"), "f:2:1: key why has no colon after it");
  EXPECT_EQ(refusal("a: 1\nb:"), "accepted");
  EXPECT_EQ(refusal("a:"), "accepted");
  EXPECT_EQ(refusal(": a"), "f:1:1: a colon without a key before it");
}

TEST(RulesYaml, BoundsDepthAndSize) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_EQ(refusal(nested(16)), "accepted");
  EXPECT_EQ(refusal(nested(17)), "f:1:17: nested deeper than 16 levels");
  EXPECT_NE(refusal(std::string(100'000, '[')).find("nested deeper than 16"), std::string::npos);
  EXPECT_NE(refusal(std::string(100'000, '{')).find("nested deeper than 16"), std::string::npos);
  std::string large = "a: ";
  large.resize(kt::rules::kMaxYamlBytes, 'x');
  EXPECT_EQ(refusal(large), "accepted");
  EXPECT_EQ(refusal(large + "x"), "f: larger than 256 KiB");
}

TEST(RulesYaml, EmptyTextIsNull) {
  EXPECT_EQ(parse_yaml_text("", "f").scalar, Scalar());
  EXPECT_EQ(parse_yaml_text("# only words\n", "f").scalar, Scalar());
}

TEST(RulesYaml, FilesThatCannotBeRead) {
  EXPECT_THROW(parse_yaml_file("/nonexistent/rules.yaml"), kt::SystemError);
  EXPECT_THROW(parse_yaml_file("/"), kt::SystemError);
}

TEST(RulesScalar, TypesAsYaml11) {
  EXPECT_EQ(resolve_plain("017"), Scalar(int64_t{15}));
  EXPECT_EQ(resolve_plain("018"), Scalar(std::string("018")));
  EXPECT_EQ(resolve_plain("-0x_Ff"), Scalar(int64_t{-255}));
  EXPECT_EQ(resolve_plain("+0b1_01"), Scalar(int64_t{5}));
  EXPECT_EQ(resolve_plain("190:20:30"), Scalar(int64_t{685230}));
  EXPECT_EQ(resolve_plain("190:20:30.15"), Scalar(685230.15));
  EXPECT_EQ(resolve_plain("1e3"), Scalar(std::string("1e3")));
  EXPECT_EQ(resolve_plain("1.5e+3"), Scalar(1500.0));
  EXPECT_EQ(resolve_plain("1.5e3"), Scalar(std::string("1.5e3")));
  EXPECT_EQ(resolve_plain("-9223372036854775808"), Scalar(std::numeric_limits<int64_t>::min()));
  EXPECT_EQ(resolve_plain("None"), Scalar(std::string("None")));
  EXPECT_TRUE(std::isnan(std::get<double>(resolve_plain(".NaN"))));
  EXPECT_THROW(resolve_plain("9223372036854775808"), FormatError);
  EXPECT_THROW(resolve_plain("0x_"), FormatError);
}

}  // namespace
