#include "support/in_child.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "base/fd.h"

namespace luo::test {

Result<std::string> in_child(const std::function<Result<std::string>()>& work) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return sys_fail("pipe2(O_CLOEXEC)");
  Fd from = Fd::adopt(ends[0]), to = Fd::adopt(ends[1]);
  const pid_t pid = ::fork();
  if (pid < 0) return sys_fail("fork()");
  if (pid == 0) {
    const auto result = work();
    // An error goes first by its number, then as text; 0 is success.
    const int code = result ? 0 : result.error().code;
    const std::string& text = result ? *result : result.error().what;
    std::string message(sizeof code, '\0');
    std::memcpy(message.data(), &code, sizeof code);
    message += text;
    for (std::size_t done = 0; done < message.size();) {
      const ssize_t n = ::write(to.raw(), message.data() + done, message.size() - done);
      if (n < 0 && errno != EINTR) ::_exit(1);
      if (n > 0) done += static_cast<std::size_t>(n);
    }
    ::_exit(0);
  }
  to.close();
  std::string message;
  char part[4096];
  for (ssize_t n = 1; n != 0;) {
    n = ::read(from.raw(), part, sizeof part);
    if (n > 0) message.append(part, static_cast<std::size_t>(n));
    if (n < 0 && errno != EINTR) break;
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0)
    if (errno != EINTR) return sys_fail("waitpid({})", pid);
  if (WIFSIGNALED(status)) return fail(ECHILD, "the child died of signal {}", WTERMSIG(status));
  int code = 0;
  if (WEXITSTATUS(status) != 0 || message.size() < sizeof code)
    return fail(ECHILD, "the child ended with status {} and {} bytes", WEXITSTATUS(status), message.size());
  std::memcpy(&code, message.data(), sizeof code);
  message.erase(0, sizeof code);
  if (code != 0) return std::unexpected(Error{code, std::move(message)});
  return message;
}

}  // namespace luo::test
