#include "rules/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>

#include "base/error.h"
#include "rules/utf8.h"

namespace kt::rules {
namespace {

/// The text, and what is needed to say where something in it stands.
class Source {
 public:
  Source(std::string_view text, const std::string& name) : text_(text), name_(name) {
    line_starts_.push_back(0);
    for (size_t at = 0; at < text.size(); ++at)
      if (text[at] == '\n') line_starts_.push_back(at + 1);
  }

  /// Offset of a mark in bytes; yaml-cpp counts columns in bytes, and knows marks past the end.
  size_t offset(const YAML::Mark& mark) const {
    if (mark.is_null() || mark.line < 0) return 0;
    const size_t line = std::min<size_t>(mark.line, line_starts_.size() - 1);
    return std::min(line_starts_[line] + std::max(mark.column, 0), text_.size());
  }

  Place place(size_t offset) const {
    const auto after = std::upper_bound(line_starts_.begin(), line_starts_.end(), offset);
    const size_t line = after - line_starts_.begin() - 1;
    Place place{line + 1, 1};
    for (size_t at = line_starts_[line]; at < offset; ++at)
      place.column += !is_utf8_continuation(text_[at]);
    return place;
  }

  bool is_quote(size_t offset) const { return at(offset) == '"' || at(offset) == '\''; }

  /// Offset behind the quoted scalar that begins at `offset`; npos if it never ends. yaml-cpp lets
  /// the end of the file close a quote, and so would swallow every rule below a forgotten one.
  size_t quote_end(size_t offset) const {
    const char quote = at(offset);
    for (size_t i = offset + 1; i < text_.size(); ++i) {
      if (quote == '"' && text_[i] == '\\') {
        ++i;
      } else if (text_[i] == quote) {
        if (quote == '"' || at(i + 1) != quote) return i + 1;
        ++i;  // '' inside single quotes is one quote
      }
    }
    return std::string_view::npos;
  }

  /// True if a colon ends the key at `offset`, on the same line.
  bool has_colon(size_t offset) const {
    size_t i = is_quote(offset) ? quote_end(offset) : offset;
    for (; i < text_.size() && text_[i] != '\n'; ++i)
      if (text_[i] == ':' && (i + 1 == text_.size() || std::strchr(" \t\r\n", text_[i + 1])))
        return true;
    return false;
  }

  char at(size_t offset) const { return offset < text_.size() ? text_[offset] : '\0'; }

  [[noreturn]] void fail(const Place& place, const std::string& what) const {
    throw FormatError(concat(name_, ":", place.line, ":", place.column, ": ", what));
  }

 private:
  std::string_view text_;
  const std::string& name_;
  std::vector<size_t> line_starts_;
};

/// Keys are equal when Python's are: 1 and true share an entry there, so they do here.
std::string key_identity(const Scalar& key) {
  if (const auto* text = std::get_if<std::string>(&key)) return "s" + *text;
  if (const auto* number = std::get_if<int64_t>(&key)) return concat("n", *number);
  if (const auto* flag = std::get_if<bool>(&key)) return concat("n", *flag ? 1 : 0);
  return "~";
}

std::string key_text(const Scalar& key) {
  if (const auto* text = std::get_if<std::string>(&key)) return *text;
  if (const auto* number = std::get_if<int64_t>(&key)) return concat(*number);
  if (const auto* flag = std::get_if<bool>(&key)) return *flag ? "true" : "false";
  return "null";
}

/// Builds the tree from yaml-cpp's events; refuses as soon as something is refused.
class Builder : public YAML::EventHandler {
 public:
  explicit Builder(const Source& source) : source_(source) {}

  std::optional<Node> take_root() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override {
    Node node = open(mark);
    const std::optional<Node>& key = waiting_key();
    // yaml-cpp takes a last line without a colon for a key, and marks its value with it.
    if (key && key->place == node.place && !source_.has_colon(source_.offset(mark)))
      source_.fail(node.place, concat("key ", key_text(key->scalar), " has no colon after it"));
    if (in_map() && !key && source_.at(source_.offset(mark)) == ':')
      source_.fail(node.place, "a colon without a key before it");
    add(std::move(node));
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { open(mark); }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string& value) override {
    Node node = open(mark);
    const size_t offset = source_.offset(mark);
    if (source_.is_quote(offset) && source_.quote_end(offset) == std::string_view::npos)
      source_.fail(node.place, "the quote is never closed");
    if (!is_utf8(value))  // yaml-cpp writes the escape \_ as a bare byte A0
      source_.fail(node.place, "an escape sequence in the text stands for no UTF-8 character");
    if (tag == "?") {
      try {
        node.scalar = resolve_plain(value);
      } catch (const FormatError& error) {
        source_.fail(node.place, error.what());
      }
    } else {
      node.scalar = value;  // quoted and block scalars are text whatever they look like
    }
    add(std::move(node));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    push(mark, Node::Kind::kSequence);
  }
  void OnSequenceEnd() override { pop(); }

  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    push(mark, Node::Kind::kMap);
  }
  void OnMapEnd() override { pop(); }

 private:
  struct Level {
    Node node;
    std::optional<Node> key;     // a map's key that waits for its value
    std::set<std::string> keys;  // identities seen so far
  };

  bool in_map() const { return !levels_.empty() && levels_.back().node.kind == Node::Kind::kMap; }

  const std::optional<Node>& waiting_key() const {
    static const std::optional<Node> none;
    return levels_.empty() ? none : levels_.back().key;
  }

  /// A node at `mark`; properties in front of it are refused by looking at the text there, because
  /// yaml-cpp does not tell a quoted scalar from one tagged `!`.
  Node open(const YAML::Mark& mark) const {
    const size_t offset = source_.offset(mark);
    Node node;
    node.place = source_.place(offset);
    switch (source_.at(offset)) {
      case '&':
        source_.fail(node.place, "anchors are not accepted; write the value out");
      case '*':
        source_.fail(node.place,
                     "aliases are not accepted; write the value out (quote text that "
                     "begins with *)");
      case '!':
        source_.fail(node.place, "tags are not accepted; quote text that begins with !");
      default:
        return node;
    }
  }

  void push(const YAML::Mark& mark, Node::Kind kind) {
    Node node = open(mark);
    node.kind = kind;
    if (levels_.size() >= kMaxYamlDepth)
      source_.fail(node.place, concat("nested deeper than ", kMaxYamlDepth, " levels"));
    levels_.push_back({std::move(node), std::nullopt, {}});
  }

  void pop() {
    Node node = std::move(levels_.back().node);
    levels_.pop_back();
    add(std::move(node));
  }

  void add(Node node) {
    if (levels_.empty()) {
      root_ = std::move(node);
      return;
    }
    Level& level = levels_.back();
    if (level.node.kind == Node::Kind::kSequence) {
      level.node.items.push_back(std::move(node));
    } else if (level.key) {
      level.node.entries.emplace_back(std::move(*level.key), std::move(node));
      level.key.reset();
    } else {
      check_key(level, node);
      level.key = std::move(node);
    }
  }

  void check_key(Level& level, const Node& key) const {
    if (key.kind != Node::Kind::kScalar || std::holds_alternative<double>(key.scalar))
      source_.fail(key.place, "a key must be text, an integer, a boolean or null");
    if (!level.keys.insert(key_identity(key.scalar)).second)
      source_.fail(key.place, concat("duplicate key ", key_text(key.scalar)));
  }

  const Source& source_;
  std::vector<Level> levels_;
  std::optional<Node> root_;
};

/// Refuses what is not printable UTF-8 text, and line ends that editors and YAML count differently.
void check_text(std::string_view text, const Source& source) {
  for (size_t at = 0; at < text.size();) {
    const DecodedChar c = decode_utf8(text.substr(at));
    if (c.length == 0) source.fail(source.place(at), "not UTF-8 text");
    const bool line_end = c.value == '\n' || (c.value == '\r' && source.at(at + 1) == '\n');
    const bool control = c.value < 0x20 || (c.value >= 0x7f && c.value < 0xa0) ||
                         c.value == 0x2028 || c.value == 0x2029 || c.value == 0xfffe ||
                         c.value == 0xffff;
    if (control && !line_end && c.value != '\t')
      source.fail(source.place(at), concat("control character U+", hex4(c.value)));
    at += c.length;
  }
}

}  // namespace

Node parse_yaml_text(std::string_view text, const std::string& name) {
  if (text.size() > kMaxYamlBytes)
    throw FormatError(concat(name, ": larger than ", kMaxYamlBytes / 1024, " KiB"));
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  const Source source(text, name);
  check_text(text, source);

  Builder builder(source);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(builder)) return Node();  // nothing but comments: null
    std::optional<Node> root = builder.take_root();
    if (parser) {
      // Something follows. A second parse of what is left would say where, not why.
      Builder rest(source);
      parser.HandleNextDocument(rest);
      const std::optional<Node> next = rest.take_root();
      source.fail(next ? next->place : Place(),
                  "a second document begins here; one file is one list of rules");
    }
    return std::move(*root);
  } catch (const YAML::Exception& error) {
    source.fail(source.place(source.offset(error.mark)), printable(error.msg));
  }
}

Node parse_yaml_file(const std::string& path) {
  std::error_code status;
  if (std::filesystem::is_directory(path, status))
    throw SystemError(concat(path, ": is a directory, not a rule file"));
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file)
    throw SystemError(concat(path, ": ", errno ? std::strerror(errno) : "cannot be opened"));
  std::string text(kMaxYamlBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) throw SystemError(concat(path, ": cannot be read"));
  text.resize(static_cast<size_t>(file.gcount()));
  return parse_yaml_text(text, path);
}

}  // namespace kt::rules
