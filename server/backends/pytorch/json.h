// Reads a model's config, which tritonserver passes as JSON.
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace widefield {

struct Json {
  std::string text;  // a string, unescaped; a number, true, false or null as written
  std::vector<Json> items;
  std::map<std::string, Json> members;

  static Json parse(std::string_view source);

  // Returns the member, or an empty value, since an absent field has its default.
  const Json& operator[](const std::string& name) const {
    static const Json absent;
    const auto found = members.find(name);
    return found == members.end() ? absent : found->second;
  }
  int64_t number(int64_t absent = 0) const { return text.empty() ? absent : std::stoll(text); }
};

class JsonReader {
 public:
  explicit JsonReader(std::string_view source) : source_(source) {}

  Json value() {
    Json json;
    switch (peek()) {
      case '{':
        list('}', [&] {
          std::string name = string();
          expect(':');
          json.members[std::move(name)] = value();
        });
        break;
      case '[':
        list(']', [&] { json.items.push_back(value()); });
        break;
      case '"':
        json.text = string();
        break;
      default:
        json.text = word();
    }
    return json;
  }

 private:
  char peek() {
    at_ = source_.find_first_not_of(" \t\r\n", at_);
    if (at_ == std::string_view::npos) throw std::invalid_argument("the model config's JSON ends early");
    return source_[at_];
  }

  void expect(char wanted) {
    if (peek() != wanted) throw std::invalid_argument("the model config's JSON is malformed at " + std::to_string(at_));
    ++at_;
  }

  template <class Element>
  void list(char close, Element element) {
    ++at_;
    if (peek() != close) {
      element();
      while (peek() == ',') {
        ++at_;
        element();
      }
    }
    expect(close);
  }

  std::string word() {
    const size_t end = std::min(source_.find_first_of(",]} \t\r\n", at_), source_.size());
    std::string word(source_.substr(at_, end - at_));
    at_ = end;
    return word;
  }

  std::string string() {
    expect('"');
    std::string text;
    while (at_ < source_.size() && source_[at_] != '"') text += source_[at_] == '\\' ? escaped() : source_[at_++];
    expect('"');
    return text;
  }

  char escaped() {
    const char kind = source_.substr(at_ + 1, 1).empty() ? '\0' : source_[at_ + 1];
    at_ += 2;
    static const std::map<char, char> control{{'n', '\n'}, {'t', '\t'}, {'r', '\r'}, {'b', '\b'}, {'f', '\f'}};
    if (kind == 'u') {  // the server escapes only control characters like this
      const auto code = std::stoi(std::string(source_.substr(at_, 4)), nullptr, 16);
      at_ += 4;
      return static_cast<char>(code);
    }
    const auto found = control.find(kind);
    return found == control.end() ? kind : found->second;
  }

  std::string_view source_;
  size_t at_ = 0;
};

inline Json Json::parse(std::string_view source) { return JsonReader(source).value(); }

}  // namespace widefield
