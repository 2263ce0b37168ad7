#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "conformance/cases.h"

namespace conformance {
namespace {

void names(Checker& c) {
  c.expect("an empty name", c.side.create(""), EINVAL);
  const std::string longest(63, 'n');
  const int s = c.keep(c.side.create(longest));
  c.expect("63 bytes", s, 0);
  std::array<char, 64> name{};
  c.expect("its name", c.side.name(s, name), 0);
  c.check("is what it was given", longest == name.data());
  c.expect("64 bytes without a NUL", c.side.create(std::string(64, 'n')), EINVAL);
  const std::string any = "/\x01\x7f\xff \n%s";
  const int odd = c.keep(c.side.create(any));
  c.expect("any bytes", odd, 0);
  c.expect("its name", c.side.name(odd, name), 0);
  c.check("any bytes come back", any == name.data());
}

void twice(Checker& c) {
  const int first = c.session("twice");
  c.expect("the same name again", c.side.create("twice"), EEXIST);
  c.expect("a prefix of it is another", c.keep(c.side.create("twic")), 0);
  c.close(first);
  c.expect("once it is closed", c.keep(c.side.create("twice")), 0);
}

void retrieve_what_is_not_there(Checker& c) {
  c.session("outgoing");
  c.expect("no such session", c.side.retrieve("never-was"), ENOENT);
  c.expect("an outgoing one", c.side.retrieve("outgoing"), ENOENT);
  c.expect("no name", c.side.retrieve(""), ENOENT);
  c.expect("an unterminated name", c.side.retrieve(std::string(64, 'n')), ENOENT);
}

void wrong_direction(Checker& c) {
  const int s = c.session("direction");
  c.expect("FINISH of an outgoing session", c.side.finish(s), EINVAL);
  c.expect("RETRIEVE_FD from an outgoing session", c.side.retrieve_fd(s, 0), EINVAL);
}

void reserved_fields(Checker& c) {
  const int s = c.session("reserved");
  NameArg arg{.reserved = 1};
  c.expect("GET_NAME with reserved set", raw_ioctl(s, kGetName, &arg), EINVAL);
}

/// Takes all numbers but `leave`.
class FullTable {
 public:
  explicit FullTable(rlim_t limit) {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit small{limit, before_.rlim_max};
    ::setrlimit(RLIMIT_NOFILE, &small);
    for (int fd; (fd = ::dup(STDIN_FILENO)) >= 0;) taken_.push_back(fd);
  }
  ~FullTable() {
    for (const int fd : taken_) ::close(fd);
    ::setrlimit(RLIMIT_NOFILE, &before_);
  }
  FullTable(const FullTable&) = delete;
  FullTable& operator=(const FullTable&) = delete;

 private:
  rlimit before_{};
  std::vector<int> taken_;
};

void full_table(Checker& c) {
  const int s = c.session("before");
  {
    const FullTable full{64};
    c.expect("CREATE_SESSION with a full table", c.side.create("full"), EMFILE);
    c.expect("the full table comes before the name", c.side.create(""), EMFILE);
    c.expect("and before the name that is there", c.side.create("before"), EMFILE);
    c.expect("RETRIEVE_SESSION likewise", c.side.retrieve("never-was"), EMFILE);
  }
  c.expect("nothing of it is left", c.keep(c.side.create("full")), 0);
  std::array<char, 64> name{};
  c.expect("the other one still works", c.side.name(s, name), 0);
}

void last_close(Checker& c) {
  const int s = c.keep(c.side.create("closing"));
  const int file = c.memfd();
  c.expect("preserve", c.side.preserve(s, file, 1), 0);
  const int twin = c.keep(::dup(s));
  c.close(s);
  c.expect("while a duplicate is open", c.side.create("closing"), EEXIST);
  c.close(twin);
  const int again = c.keep(c.side.create("closing"));
  c.expect("after the last close", again, 0);
  c.expect("and its file is free", c.side.preserve(again, file, 2), 0);
}

void death_is_a_close(Checker& c) {
  const int s = c.keep(c.side.create("mortal"));
  const pid_t child = ::fork();
  if (child == 0) {
    for (;;) ::pause();
  }
  c.close(s);
  c.expect("while a child has it", c.side.create("mortal"), EEXIST);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  c.expect("after its death", c.keep(c.side.create("mortal")), 0);
}

/// In a message that nobody has received yet, a descriptor is still open.
void in_flight_is_open(Checker& c) {
  const int s = c.keep(c.side.create("travelling"));
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return c.check("socketpair", false);
  char byte = 0;
  iovec data{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof s)] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof s);
  std::memcpy(CMSG_DATA(header), &s, sizeof s);
  c.check("it is sent", ::sendmsg(ends[0], &message, 0) == 1);
  c.close(s);
  c.expect("while it travels", c.side.create("travelling"), EEXIST);
  c.check("it arrives", ::recvmsg(ends[1], &message, MSG_CMSG_CLOEXEC) == 1);
  int arrived = -1;
  std::memcpy(&arrived, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof arrived);
  c.expect("while its receiver has it", c.side.create("travelling"), EEXIST);
  std::array<char, 64> name{};
  c.expect("it can be used there", c.side.name(arrived, name), 0);
  ::close(arrived);
  c.expect("after that", c.keep(c.side.create("travelling")), 0);
  for (const int end : ends) ::close(end);
}

void close_on_exec(Checker& c) {
  const int s = c.session("cloexec");
  c.check("a session fd is close-on-exec", (::fcntl(s, F_GETFD) & FD_CLOEXEC) != 0);
}

}  // namespace

std::vector<Case> session_cases() {
  return {
      {"names", "2.4, 2.9", Needs::Anything, names},
      {"a name twice", "2.4", Needs::Anything, twice},
      {"retrieve what is not there", "2.5", Needs::Anything, retrieve_what_is_not_there},
      {"wrong direction", "2.3 step 4", Needs::Anything, wrong_direction},
      {"reserved fields", "2.9", Needs::BareIoctls, reserved_fields},
      {"a full descriptor table", "2.4, 2.5", Needs::Anything, full_table},
      {"last close", "3.2", Needs::Anything, last_close},
      {"death is a close", "3.2", Needs::Anything, death_is_a_close},
      {"a descriptor in a message", "3.2", Needs::Anything, in_flight_is_open},
      {"close on exec", "2.1", Needs::Anything, close_on_exec},
  };
}

}  // namespace conformance
