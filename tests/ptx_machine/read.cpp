// Reads PTX: as much of its grammar as nvcc and Triton write.
#include <cstring>

#include "program.h"

namespace ptx {
namespace {

// Without comments, and without the lines that tell a debugger where it is.
std::string bare(const std::string& text) {
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    line = line.substr(0, line.find("//"));
    const size_t first = line.find_first_not_of(" \t");
    if (first != line.npos && line.compare(first, 4, ".loc") != 0) kept += line + '\n';
    begin = end + 1;
  }
  return kept;
}

// Of ".b32" or ".f32x2", in bytes.
size_t bytes_of(const std::string& type) {
  if (type == "pred") return 1;
  const size_t digits = type.find_first_of("0123456789");
  if (digits == type.npos) fail("not a type: " + type);
  size_t read = 0;
  const size_t bits = std::stoul(type.substr(digits), &read);
  return bits / 8 * (type.compare(digits + read, type.npos, "x2") == 0 ? 2 : 1);
}

// The declaration of a variable or parameter: ".align 4 .b8 name[16]".
struct Declaration {
  std::string name;
  size_t bytes = 0;
  size_t alignment = 1;

  explicit Declaration(const std::string& text) {
    size_t count = 1;
    const std::vector<std::string> words = split(text, " \t\n,;()");
    for (size_t i = 0; i < words.size(); ++i) {
      const std::string& word = words[i];
      if (word == ".align") {
        alignment = std::stoul(words[++i]);
      } else if (word[0] == '=') {
        break;  // the names of debug settings, which no kernel reads
      } else if (word[0] != '.') {
        const size_t bracket = word.find('[');
        name = word.substr(0, bracket);
        if (bracket != word.npos && word[bracket + 1] != ']')
          count = std::stoul(word.substr(bracket + 1));
        else if (bracket != word.npos)
          count = 0;  // as much as a launch asks for
      } else if (word.find_first_of("0123456789") != word.npos) {
        bytes = bytes_of(word.substr(1));
      }
    }
    alignment = std::max(alignment, bytes);
    bytes *= count;
  }
};

}  // namespace

Module::Module(const std::string& text) : text_(bare(text)) {
  for (size_t begin = 0; begin < text_.size();) {
    const size_t end = text_.find('\n', begin);
    const std::string line = text_.substr(begin, end - begin);
    const size_t entry = line.find(".entry ");
    if (entry != line.npos) {
      begins_[split(line.substr(entry + 7), " (")[0]] = begin + entry;
    } else {
      declare(line);
    }
    begin = end + 1;
  }
}

void Module::declare(const std::string& line) {
  const std::vector<std::string> words = split(line, " \t");
  const size_t first = words[0] == ".extern" || words[0] == ".visible" ? 1 : 0;
  if (words.size() <= first || (words[first] != ".global" && words[first] != ".shared")) return;
  const Declaration declared(line);
  const bool is_global = words[first] == ".global";
  Variable& variable = (is_global ? global_ : shared_)[declared.name];
  variable = {declared.bytes, declared.alignment, {}};
  if (is_global) variable.data.resize(declared.bytes / 8 + 1);
}

// Reads one kernel.
class KernelReader {
 public:
  KernelReader(Module& module, size_t begin) : module_(module), text_(module.text_), at_(begin) {}

  Kernel read() {
    const size_t open = text_.find('(', at_), close = text_.find(')', open);
    for (const std::string& one : split(text_.substr(open + 1, close - open - 1), ",")) {
      if (one.find(".param") == one.npos) continue;
      const Declaration declared(one);
      size_t& bytes = kernel_.parameter_bytes;
      bytes = (bytes + declared.alignment - 1) / declared.alignment * declared.alignment;
      addresses_[declared.name] = bytes;
      kernel_.parameters.push_back({bytes, declared.bytes});
      bytes += declared.bytes;
    }
    at_ = text_.find('{', close);
    const std::vector<std::string> limits = split(text_.substr(close, at_ - close), " \t\n)");
    for (size_t i = 0; i + 1 < limits.size(); ++i) {
      if (limits[i] == ".maxntid" || limits[i] == ".reqntid")
        kernel_.most_threads = std::stoul(limits[i + 1]);
    }
    read_body();
    for (auto [branch, label] : branches_) {
      if (labels_.count(label) == 0) fail("no such label: " + label);
      kernel_.code[branch].target = labels_[label];
    }
    return std::move(kernel_);
  }

 private:
  // Scopes, labels and statements.
  void read_body() {
    while (true) {
      at_ = text_.find_first_not_of(" \t\n;", at_);
      if (text_[at_] == '{') {
        scopes_.emplace_back();
        ++at_;
      } else if (text_[at_] == '}') {
        scopes_.pop_back();
        ++at_;
        if (scopes_.empty()) return;
      } else {
        const size_t end = text_.find_first_of(" \t\n:;", at_);
        if (text_[end] == ':' && text_[end + 1] != ':') {
          labels_[text_.substr(at_, end - at_)] = int(kernel_.code.size());
          at_ = end + 1;
        } else {
          const size_t stop = text_.find(';', at_);
          read_statement(text_.substr(at_, stop - at_));
          at_ = stop + 1;
        }
      }
    }
  }

  void read_statement(const std::string& text) {
    if (text[0] != '.') return read_instruction(text);
    // Registers are known by their names; those of a scope are its own.
    const std::vector<std::string> words = split(text, " \t\n,");
    if (words[0] == ".reg") {
      for (size_t i = 2; i < words.size(); ++i) {
        if (words[i].find('<') == words[i].npos) scopes_.back()[words[i]] = kernel_.registers++;
      }
    } else if (words[0] != ".pragma" && words[0] != ".shared") {
      fail("not known: " + text);
    }
  }

  void read_instruction(const std::string& text) {
    Instruction instruction;
    for (const std::string& word : split(text, " \t\n")) {
      instruction.text += (instruction.text.empty() ? "" : " ") + word;
    }
    size_t begin = 0;
    if (text[0] == '@') {
      begin = text.find_first_of(" \t");
      instruction.guard = operand(text.substr(1, begin - 1));
      begin = text.find_first_not_of(" \t", begin);
    }
    const size_t end = std::min(text.find_first_of(" \t\n", begin), text.size());
    const std::string name = text.substr(begin, end - begin);
    instruction.parts = split(name, ".");
    read_operands(instruction, end < text.size() ? text.substr(end) : "");
    set_step(instruction);
    kernel_.code.push_back(std::move(instruction));
  }

  // What an instruction writes comes first: of most the first operand, of others none.
  void read_operands(Instruction& instruction, std::string text) {
    text.erase(std::remove_if(text.begin(), text.end(), [](char c) { return c <= ' '; }),
               text.end());
    const std::string& base = instruction.parts[0];
    if (base == "bra") {
      branches_.emplace_back(kernel_.code.size(), text);
      return;
    }
    bool writes = base != "st" && base != "bar";
    for (size_t begin = 0; begin < text.size();) {
      const bool is_many = text[begin] == '{';
      const size_t end = std::min(text.find(is_many ? '}' : ',', begin), text.size());
      for (const std::string& one : split(text.substr(begin, end - begin), "{},|")) {
        (writes ? instruction.out : instruction.in).push_back(operand(one));
      }
      writes = false;
      begin = end + (is_many ? 2 : 1);
    }
  }

  Operand operand(std::string text) {
    Operand found;
    if (text == "_") return found;
    if (text[0] == '[') {  // register, variable, or one of them and a number
      text = text.substr(1, text.find(']') - 1);
      const size_t plus = text.find('+');
      found = operand(text.substr(0, plus));
      if (plus != text.npos) found.value += std::stoll(text.substr(plus + 1));
      return found;
    }
    if (text[0] == '!') {
      found = operand(text.substr(1));
      found.is_negated = true;
      return found;
    }
    static const std::map<std::string, Special> specials{{"%tid", Special::kThread},
                                                         {"%ntid", Special::kThreads},
                                                         {"%ctaid", Special::kBlock},
                                                         {"%nctaid", Special::kBlocks}};
    const auto special = specials.find(text.substr(0, text.find('.')));
    if (special != specials.end()) {
      found.kind = Operand::kSpecial;
      found.special = special->second;
      found.axis = text.back() - 'x';
      return found;
    }
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto mine = scope->find(text);
      if (mine == scope->end()) continue;
      found.kind = Operand::kRegister;
      found.number = mine->second;
      return found;
    }
    if (text[0] == '%') {
      scopes_.front()[text] = kernel_.registers;
      found.kind = Operand::kRegister;
      found.number = kernel_.registers++;
      return found;
    }
    found.kind = Operand::kNumber;
    if (text[0] == '0' && (text[1] == 'f' || text[1] == 'd')) {
      found.value = std::stoull(text.substr(2), nullptr, 16);
    } else if (text[0] == '-' || (text[0] >= '0' && text[0] <= '9')) {
      found.value =
          text[0] == '-' ? uint64_t(std::stoll(text, nullptr, 0)) : std::stoull(text, nullptr, 0);
    } else {
      found.value = address_of(text);
    }
    return found;
  }

  // Of a parameter or a shared variable, in its space: places are given to those that are used.
  uint64_t address_of(const std::string& name) {
    const auto known = addresses_.find(name);
    if (known != addresses_.end()) return known->second;
    const auto global = module_.global_.find(name);
    if (global != module_.global_.end())
      return reinterpret_cast<uint64_t>(global->second.data.data());
    const auto shared = module_.shared_.find(name);
    if (shared == module_.shared_.end()) fail("no such variable: " + name);
    size_t& bytes = kernel_.shared_bytes;
    const size_t alignment = shared->second.alignment;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    addresses_[name] = bytes;
    bytes += shared->second.bytes;
    return addresses_[name];
  }

  Module& module_;
  const std::string& text_;
  size_t at_;
  Kernel kernel_;
  std::map<std::string, uint64_t> addresses_;
  std::map<std::string, int> labels_;
  std::vector<std::pair<size_t, std::string>> branches_;
  std::vector<std::map<std::string, int>> scopes_;
};

const Kernel& Module::kernel(const std::string& name) {
  const auto known = kernels_.find(name);
  if (known != kernels_.end()) return known->second;
  return kernels_[name] = KernelReader(*this, begins_.at(name)).read();
}

}  // namespace ptx
