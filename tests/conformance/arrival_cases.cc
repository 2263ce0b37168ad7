#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "conformance/cases.h"

// What stage 1 leaves: "one" (tokens 0: content, 7: content2), "empty", "unclaimed" (token 1), "closing" (token 1),
// "finishing" (token 1), "stays" (token 1).
namespace conformance {
namespace {

std::string content_of(int fd) {
  std::array<char, 64> text{};
  const ssize_t n = ::pread(fd, text.data(), text.size(), 0);
  return n < 0 ? "(error)" : std::string{text.data(), static_cast<std::size_t>(n)};
}

int taken(Checker& c, std::string_view name) {
  const int session = c.keep(c.side.retrieve(name));
  c.expect(std::string{"retrieve "} + std::string{name}, session, 0);
  return session;
}

void retrieve_files(Checker& c) {
  const int s = taken(c, "one");
  c.expect("retrieve it again", c.side.retrieve("one"), EINVAL);
  c.expect("PRESERVE_FD into it", c.side.preserve(s, c.memfd(), 50), EINVAL);
  c.expect("an unknown token", c.side.retrieve_fd(s, 3), ENOENT);
  const int last = c.keep(c.side.retrieve_fd(s, 7));
  c.expect("token 7 first: any order", last, 0);
  const int file = c.keep(c.side.retrieve_fd(s, 0)), again = c.keep(c.side.retrieve_fd(s, 0));
  c.expect("token 0", file, 0);
  c.expect("token 0 again", again, 0);
  c.check("the content is there", content_of(file) == "content" && content_of(last) == "content2");
  c.check("another number", file != again);
  ::lseek(file, 3, SEEK_SET);
  c.check("the same open file", ::lseek(again, 0, SEEK_CUR) == 3);
  c.check("close-on-exec", (::fcntl(file, F_GETFD) & FD_CLOEXEC) != 0);
  const int out = c.session("busy");
  c.expect("a retrieved file is preserved still", c.side.preserve(out, file, 1), EBUSY);
  c.expect("finish", c.side.finish(s), 0);
  c.expect("finish again", c.side.finish(s), 0);
  c.expect("RETRIEVE_FD after that", c.side.retrieve_fd(s, 0), ENOENT);
  c.expect("PRESERVE_FD after that", c.side.preserve(s, c.memfd(), 50), EINVAL);
  c.expect("retrieve it while it is open", c.side.retrieve("one"), EINVAL);
  c.expect("now the file can be preserved again", c.side.preserve(out, file, 1), 0);
  c.close(s);
  c.expect("retrieve it after its close", c.side.retrieve("one"), ENOENT);
}

void empty_session(Checker& c) {
  const int s = taken(c, "empty");
  std::array<char, 64> name{};
  c.expect("its name", c.side.name(s, name), 0);
  c.check("is as it was", std::string_view{name.data()} == "empty");
  c.expect("a file of it", c.side.retrieve_fd(s, 0), ENOENT);
  c.expect("finish with nothing in it", c.side.finish(s), 0);
}

void same_name_outgoing(Checker& c) {
  const int twin = c.keep(c.side.create("unclaimed"));
  c.expect("an outgoing session of an incoming one's name", twin, 0);
  c.close(twin);
}

void close_finishes(Checker& c) {
  const int s = taken(c, "closing");
  const int file = c.keep(c.side.retrieve_fd(s, 1));
  c.expect("its file", file, 0);
  c.close(s);
  c.expect("after a close without finish", c.side.retrieve("closing"), ENOENT);
  c.check("the retrieved file is usable", content_of(file) == "content");
  const int out = c.session("after-close");
  c.expect("and free", c.side.preserve(out, file, 1), 0);
}

void finish_without_retrieving(Checker& c) {
  const int s = taken(c, "finishing");
  c.expect("finish with nothing retrieved", c.side.finish(s), 0);
  c.expect("its file", c.side.retrieve_fd(s, 1), ENOENT);
}

void finish_arguments(Checker& c) {
  const int s = taken(c, "stays");
  FinishArg arg{.reserved = 1};
  c.expect("FINISH with reserved set", raw_ioctl(s, kFinish, &arg), EINVAL);
  const int file = c.keep(c.side.retrieve_fd(s, 1));
  c.expect("nothing was finished", file, 0);
  FileArg wrong;
  c.expect("a device's number on a session", raw_ioctl(s, kCreateSession, &wrong), EINVAL);
  c.expect("finish", c.side.finish(s), 0);
}

/// Read-only memory for the answer destroys the session in the kernel (D3).
void retrieve_into_read_only_memory(Checker& c) {
  void* page = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  SessionArg arg;
  std::strcpy(arg.name, "read-only");
  std::memcpy(page, &arg, sizeof arg);
  ::mprotect(page, 4096, PROT_READ);
  c.expect("RETRIEVE_SESSION into read-only memory", raw_ioctl(c.device(), kRetrieveSession, page), EFAULT);
  ::munmap(page, 4096);
  c.expect_differs("retrieve it properly", c.keep(c.side.retrieve("read-only")), ENOENT, 0);
}

void gone_after_the_second_hop(Checker& c) {
  c.expect("nobody had claimed it", c.side.retrieve("unclaimed"), ENOENT);
  const int s = taken(c, "second");
  c.expect("what was preserved on the way", c.keep(c.side.retrieve_fd(s, 1)), 0);
  c.expect("finish", c.side.finish(s), 0);
}

}  // namespace

void leave(Checker& c) {
  const auto put = [&](const char* name, std::initializer_list<std::pair<std::uint64_t, const char*>> files) {
    const int s = c.session(name);
    for (const auto& [token, content] : files) c.expect("preserve", c.side.preserve(s, c.memfd(content), token), 0);
  };
  put("one", {{0, "content"}, {7, "content2"}});
  put("empty", {});
  put("unclaimed", {{1, "content"}});
  put("closing", {{1, "content"}});
  put("finishing", {{1, "content"}});
  put("stays", {{1, "content"}});
  put("read-only", {{1, "content"}});
}

std::vector<Case> arrival_cases() {
  return {
      {"files of a retrieved session", "2.7, 2.8", Needs::Anything, retrieve_files},
      {"an empty session", "2.7", Needs::Anything, empty_session},
      {"an outgoing twin of an incoming session", "2.4", Needs::Anything, same_name_outgoing},
      {"close without finish", "3.2", Needs::Anything, close_finishes},
      {"finish with nothing retrieved", "2.8", Needs::Anything, finish_without_retrieving},
      {"arguments of FINISH", "2.8", Needs::BareIoctls, finish_arguments},
      {"retrieve into read-only memory", "2.5", Needs::BareIoctls, retrieve_into_read_only_memory},
  };
}

std::vector<Case> second_arrival_cases() {
  return {{"unclaimed over a second hop", "3.7", Needs::Anything, gone_after_the_second_hop}};
}

}  // namespace conformance
