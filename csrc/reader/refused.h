// Exception of the reader: a reason the caller can act on, and a sentence.
#pragma once

#include <stdexcept>
#include <string>

namespace camae {

enum class Reason { damaged = 0, missing = 1, unsupported = 2, request = 3 };

struct Refused : std::runtime_error {
    Refused(Reason why, const std::string &sentence) : std::runtime_error(sentence), reason(why) {}
    Reason reason;
};

[[noreturn]] inline void damaged(const std::string &sentence) { throw Refused(Reason::damaged, sentence); }
[[noreturn]] inline void unsupported(const std::string &feature) {
    throw Refused(Reason::unsupported, feature + " is not read by the native reader");
}

}  // namespace camae
