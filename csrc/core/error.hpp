// Errors of the engine. The message is one line that names the file and the cause.
#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

namespace nsf {

class EngineError : public std::runtime_error {
  public:
    explicit EngineError(const std::string& message, int error_number = 0)
        : std::runtime_error(message), error_number_(error_number) {}

    // errno of the system call that failed, 0 where none did.
    int error_number() const noexcept { return error_number_; }

  private:
    int error_number_;
};

// "cannot write PATH: No space left on device (errno 28)"
inline EngineError system_error(const std::string& action, const std::string& path, int error_number) {
    return EngineError("cannot " + action + " " + path + ": " +
                           std::generic_category().message(error_number) + " (errno " +
                           std::to_string(error_number) + ")",
                       error_number);
}

}  // namespace nsf
