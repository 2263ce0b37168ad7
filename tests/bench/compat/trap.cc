// A trapped system call and nothing else: what seccomp's user notification costs by itself.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>

#include "steps.h"
#include "sys/packet_socket.h"

#ifndef SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif

namespace bench {
namespace {

luo::Result<luo::Fd> install() {
  sock_filter lines[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                         BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
                         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
                         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program{static_cast<unsigned short>(std::size(lines)), lines};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return luo::sys_fail("prctl(PR_SET_NO_NEW_PRIVS)");
  const long listener = ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
  if (listener < 0) return luo::sys_fail("seccomp");
  return luo::Fd::adopt(static_cast<int>(listener));
}

[[noreturn]] void answer_all(const luo::Fd& listener) {
  for (;;) {
    pollfd one{listener.raw(), POLLIN, 0};
    if (::poll(&one, 1, -1) < 0 || (one.revents & POLLHUP) != 0) ::_exit(0);
    seccomp_notif request{};
    if (::ioctl(listener.raw(), SECCOMP_IOCTL_NOTIF_RECV, &request) != 0) continue;
    seccomp_notif_resp response{};
    response.id = request.id;
    (void)::ioctl(listener.raw(), SECCOMP_IOCTL_NOTIF_SEND, &response);
  }
}

}  // namespace

luo::Result<> trap_getppid(bool sync_wakeup) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return luo::sys_fail("socketpair");
  luo::Fd asker = luo::Fd::adopt(pair[0]), answerer = luo::Fd::adopt(pair[1]);
  const pid_t child = ::fork();
  if (child < 0) return luo::sys_fail("fork");
  std::byte byte{};
  if (child == 0) {
    asker.close();
    for (const int stream : {0, 1}) ::close(stream);  // whoever reads what we write waits for its end
    const auto got = luo::receive(answerer, std::span{&byte, 1}, 0);
    if (!got || got->fds.size() != 1) ::_exit(1);
    if (sync_wakeup)
      (void)::ioctl(got->fds[0].raw(), SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
    answer_all(got->fds[0]);
  }
  answerer.close();
  const luo::Fd listener = LUO_TRY(install());
  const int number = listener.raw();
  return luo::send(asker, std::span{&byte, 1}, {&number, 1}, 0);
}

}  // namespace bench
