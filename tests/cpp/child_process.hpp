// Runs a piece of a test in a forked child.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <exception>
#include <iostream>
#include <string>

namespace nsf::testing_support {

// Checks in a child: gtest's own count only in the process that they run in.
class ChildChecks {
  public:
    void check(bool good, const std::string& what) {
        if (good) return;
        ++wrong_;
        std::cerr << "in the child: " << what << std::endl;
    }
    int wrong() const { return wrong_; }

  private:
    int wrong_ = 0;
};

// Runs body(checks) in a child; "" if everything was right there, else how the child ended.
template <typename Body>
std::string run_in_child(Body body) {
    const pid_t child = ::fork();
    if (child == 0) {
        // Only to end a child that hangs, which is then what the test reports.
        std::signal(SIGALRM, SIG_DFL);
        ::alarm(30);
        ChildChecks checks;
        try {
            body(checks);
        } catch (const std::exception& error) {
            checks.check(false, std::string("an exception: ") + error.what());
        }
        ::_exit(checks.wrong() == 0 ? 0 : 1);
    }
    if (child < 0) return "fork failed";
    int status = 0;
    while (::waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) return "waitpid failed";
    }
    if (WIFSIGNALED(status)) return "signal " + std::to_string(WTERMSIG(status));
    return WEXITSTATUS(status) == 0 ? "" : "exit code " + std::to_string(WEXITSTATUS(status));
}

}  // namespace nsf::testing_support
