// luod's worker is killed at each system call of each kind of request, its keeper before each, and its
// clients at each system call of theirs: every request takes effect once, nothing is lost or left over.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>

#include <random>
#include <set>

#include "kill_operations.h"
#include "support/kill_process.h"
#include "sys/pipe.h"

namespace luo::test {
namespace {

TEST_P(Kills, TheWorkerAtEachSystemCall) {
  const std::string empty = luod_.state();
  const Seen whole = run([](auto call) { call(); });
  ASSERT_EQ(luod_.state(), empty);
  unsigned n = 1;
  for (;; ++n) {
    ASSERT_LT(n, 2000U) << "it never ends";
    bool killed = false;
    const Seen seen = run([&](auto call) {
      const pid_t worker = luod_.worker();
      auto kill = SyscallKill::arm(worker, n);
      ASSERT_TRUE(kill.has_value()) << kill.error().what;
      call();
      killed = died_rather_than_idled(worker);
    });
    ASSERT_EQ(seen, whole) << "killed at stop " << n << "\n"
                           << luod_.log().substr(luod_.log().size() > 3000 ? luod_.log().size() - 3000 : 0);
    ASSERT_EQ(luod_.state(), empty) << "killed at stop " << n;
    if (!killed) break;
  }
  EXPECT_GT(n, 4U) << "so few system calls?";
  RecordProperty("kills", static_cast<int>(n) - 1);
}

TEST_P(Kills, TheKeeperBefore) {
  const std::string empty = luod_.state();
  const Seen whole = run([](auto call) { call(); });
  for (int i = 0; i < 5; ++i) {
    const Seen seen = run([&](auto call) {
      const pid_t keeper = luod_.keeper();
      kill(keeper, SIGKILL);  // dies while the request is in work
      call();
      // Its descriptors are counted when the next one is there.
      while (luod_.keeper() == keeper) sched_yield();
    });
    ASSERT_EQ(seen, whole) << luod_.log();
    ASSERT_EQ(luod_.state(), empty);
  }
}

INSTANTIATE_TEST_SUITE_P(Of, Kills, testing::ValuesIn(kOperations),
                         [](const auto& of) { return std::string{of.param.name}; });

class Clients : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }

  /// Runs `call` in a child with a connection of its own, killed at its n-th stop. True: it was.
  template <class Call>
  bool killed_at(unsigned n, Call call) {
    Pipe go = *make_pipe(), ready = *make_pipe();
    fcntl(go.read.raw(), F_SETFL, 0);
    const pid_t child = fork();
    if (child == 0) {
      const Client own{luod_};
      go.write.close();
      if (::write(ready.write.raw(), "r", 1) != 1) _exit(2);
      char c;
      if (::read(go.read.raw(), &c, 1) != 1) _exit(3);
      _exit(call(own));
    }
    LUO_CHECK(readable(ready.read.raw()));
    {
      auto kill = SyscallKill::arm(child, n);
      LUO_CHECK(kill.has_value());
      LUO_CHECK(::write(go.write.raw(), "g", 1) == 1);
      const auto outcome = kill->wait(std::chrono::seconds{30});
      LUO_CHECK(outcome.has_value());
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) == 0) << "exit status " << WEXITSTATUS(status);
    return WIFSIGNALED(status);
  }
  Luod luod_;
};

TEST_F(Clients, KilledWhileTheyCreate) {
  const std::string empty = luod_.state();
  unsigned n = 1;
  while (killed_at(n, [](const Client& own) { return own.create("a").release() >= 0 ? 0 : 1; })) {
    ASSERT_EQ(luod_.state(), empty) << "killed at stop " << n;
    ++n;
  }
  EXPECT_GT(n, 10U);
}

TEST_F(Clients, KilledWhileTheyPreserve) {
  const Client owner{luod_};
  const Fd session = owner.create("s"), file = memfd_with("x");
  const std::string before = luod_.state();
  bool was_kept = false;
  unsigned n = 1;
  for (bool more = true; more; ++n) {
    more = killed_at(
        n, [&](const Client& own) { return luo_preserve_fd(own, session.raw(), file.raw(), 1) == 0 ? 0 : 1; });
    luod_.status();  // luod has read what the dead one had sent
    const int removed = luo_unpreserve_fd(owner, session.raw(), 1);
    ASSERT_TRUE(removed == 0 || removed == -ENOENT) << luo_last_error();
    ASSERT_TRUE(removed == 0 || !was_kept) << "kept once it was sent earlier, but not at stop " << n;
    was_kept = removed == 0;
    ASSERT_EQ(luod_.state(), before) << "killed at stop " << n;
  }
  EXPECT_TRUE(was_kept);
}

TEST_F(Clients, KilledWhileTheyRetrieveASession) {
  bool was_finished = false;
  unsigned n = 1;
  for (bool more = true; more; ++n) {
    {
      const Client owner{luod_};
      const Fd session = owner.create("s"), file = memfd_with("x");
      ASSERT_EQ(luo_preserve_fd(owner, session.raw(), file.raw(), 1), 0);
      cross(luod_);
    }
    more = killed_at(n, [](const Client& own) { return own.retrieve("s").release() >= 0 ? 0 : 1; });
    const Client next{luod_};
    const Fd again = next.retrieve("s");
    // Once it has accepted, its death is a last close, which finishes. Killed after it has sent that, before it
    // has the answer, either may be seen first: the close, and the session is incoming again, or the ACCEPT.
    if (!again.valid()) {
      ASSERT_EQ(luod_.list()["sessions"].size(), 0U) << "stranded at stop " << n;
      was_finished = true;
      continue;
    }
    was_finished = false;
    ASSERT_EQ(content_of(Fd::adopt(luo_retrieve_fd(next, again.raw(), 1))), "x") << "stop " << n;
    ASSERT_EQ(luo_session_finish(next, again.raw()), 0);
  }
  EXPECT_TRUE(was_finished) << "by the one that was not killed";
}

/// What a client does with a session that another process has as well, so that its own death closes nothing.
struct ClientOperation {
  const char* name;
  bool incoming;  ///< with a session that came in, else with an outgoing one; files 1 and 2 are in it
  int (*call)(luo_connection*, int session);
};

const ClientOperation kClientOperations[] = {
    {"unpreserve", false, [](luo_connection* c, int s) { return luo_unpreserve_fd(c, s, 2); }},
    {"preserve_many", false,
     [](luo_connection* c, int s) {
       const Fd third = memfd_with("3"), fourth = memfd_with("4");
       const int fds[] = {third.raw(), fourth.raw()};
       const std::uint64_t tokens[] = {3, 4};
       int errors[2] = {};
       return luo_preserve_many(c, s, fds, tokens, errors, 2) == 2 ? 0 : -1;
     }},
    {"preserve_after", false,
     [](luo_connection* c, int s) {
       const Fd file = memfd_with("5");
       const std::uint64_t after = 1;
       return luo_preserve_fd_after(c, s, file.raw(), 5, &after, 1);
     }},
    {"hold", false, [](luo_connection* c, int s) { return luo_session_hold(c, s, LUO_HOLD_USER); }},
    {"drop", false, [](luo_connection* c, int) { return luo_session_drop(c, "held"); }},
    {"prepare", false, [](luo_connection* c, int s) { return luo_session_set_event(c, s, LUO_EVENT_PREPARE); }},
    {"get_state", false, [](luo_connection* c, int s) { return luo_session_get_state(c, s) < 0 ? -1 : 0; }},
    {"tokens", false,
     [](luo_connection* c, int s) {
       std::uint64_t tokens[2];
       return luo_session_tokens(c, s, tokens, 2) == 2 ? 0 : -1;
     }},
    {"get_name", false,
     [](luo_connection* c, int s) {
       char name[LUO_NAME_LENGTH];
       return luo_session_get_name(c, s, name);
     }},
    {"retrieve_fd", true, [](luo_connection* c, int s) { return luo_retrieve_fd(c, s, 1) >= 0 ? 0 : -1; }},
    {"retrieve_many", true,
     [](luo_connection* c, int s) {
       const std::uint64_t tokens[] = {1, 2};
       int fds[2];
       return luo_retrieve_many(c, s, tokens, fds, 2) == 2 ? 0 : -1;
     }},
    {"finish", true, [](luo_connection* c, int s) { return luo_session_finish(c, s); }},
    {"renew", true, [](luo_connection* c, int s) { return luo_session_renew(c, s); }},
};

class ClientsOfASession : public Clients, public testing::WithParamInterface<ClientOperation> {};

TEST_P(ClientsOfASession, KilledAtEachSystemCall) {
  const ClientOperation& operation = GetParam();
  const std::string empty = luod_.state();
  std::string whole;
  std::set<std::string> seen;
  for (unsigned n = 0, more = 1; more != 0; ++n) {  // n = 0: not killed
    {
      const Client owner{luod_};
      Fd session = owner.create("s");
      const Fd one = memfd_with("1"), two = memfd_with("2");
      ASSERT_EQ(luo_preserve_fd(owner, session.raw(), one.raw(), 1), 0);
      ASSERT_EQ(luo_preserve_fd(owner, session.raw(), two.raw(), 2), 0);
      if (operation.incoming) {
        cross(luod_);
        session = Fd{};
      }
      const Client holder{luod_};
      if (operation.incoming) session = holder.retrieve("s");
      ASSERT_TRUE(session.valid());
      ASSERT_EQ(luo_session_hold(holder, holder.create("held").raw(), LUO_HOLD_USER), 0);
      const std::string before = luod_.state();
      const auto call = [&](const Client& own) { return operation.call(own, session.raw()) == 0 ? 0 : 1; };
      if (n == 0) {
        killed_at(1'000'000, call);
        whole = luod_.state();
      } else {
        more = killed_at(n, call) ? 1 : 0;
        const std::string after = luod_.state();
        ASSERT_TRUE(after == before || after == whole) << "killed at stop " << n << "\n"
                                                       << after << "\nbefore\n"
                                                       << before;
        seen.insert(after == whole ? "done" : "not done");
      }
      (void)luo_session_hold(holder, session.raw(), LUO_HOLD_OFF);
      (void)luo_session_set_event(holder, session.raw(), LUO_EVENT_CANCEL);
    }
    {
      const Client next{luod_};
      (void)luo_session_drop(next, "held");
      (void)luo_session_drop(next, "s");
    }
    ASSERT_EQ(luod_.state(), empty) << "killed at stop " << n;
  }
  EXPECT_TRUE(seen.contains("done")) << "by the one that was not killed";
}
INSTANTIATE_TEST_SUITE_P(Of, ClientsOfASession, testing::ValuesIn(kClientOperations),
                         [](const auto& of) { return std::string{of.param.name}; });

/// One round of requests; the line of the first wrong answer, 0 if there is none.
int line_of_wrong_answer(const Client& client) {
  const auto wrong = [](int line) {
    fmt::print(stderr, "line {}: {}\n", line, luo_last_error());
    return line;
  };
  const Fd session = client.create("s"), file = memfd_with("x"), other = memfd_with("y");
  const int s = session.raw();
  std::uint64_t token = 0;
  if (!session.valid()) return wrong(__LINE__);
  if (luo_preserve_fd(client, s, file.raw(), 1) != 0) return wrong(__LINE__);
  if (luo_preserve_fd(client, s, other.raw(), 1) != -EEXIST) return wrong(__LINE__);
  if (luo_preserve_fd(client, s, file.raw(), 2) != -EBUSY) return wrong(__LINE__);
  if (luo_preserve_fd(client, s, other.raw(), 2) != 0) return wrong(__LINE__);
  if (luo_unpreserve_fd(client, s, 1) != 0) return wrong(__LINE__);
  if (luo_unpreserve_fd(client, s, 1) != -ENOENT) return wrong(__LINE__);
  if (luo_session_tokens(client, s, &token, 1) != 1 || token != 2) return wrong(__LINE__);
  return 0;
}

TEST_F(Clients, SeeNothingOfRandomKills) {
  const std::string empty = luod_.state();
  constexpr int kKills = 150;
  Pipe enough = *make_pipe();
  // In a process of its own, so that none that the killer forks holds its sessions.
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const Client client{luod_};
    char c;
    while (::read(enough.read.raw(), &c, 1) < 0)
      if (line_of_wrong_answer(client) != 0) _exit(1);
    _exit(0);
  }
  std::mt19937 random{1};
  for (int kills = 0; kills < kKills; ++kills) {
    const bool keeper = random() % 3 == 0;
    const pid_t victim = keeper ? luod_.keeper() : luod_.worker();
    if (keeper || random() % 2 == 0) kill(victim, SIGKILL);
    else if (!kill_at_syscall(victim, static_cast<unsigned>(1 + random() % 100)))
      break;  // it has nothing to do any more: the client has left
    ASSERT_TRUE(wait_for_death(victim));
    // Both at once is more than luod promises: the worker has made a keeper before it is the next one's turn.
    while (keeper && luod_.keeper() == victim) sched_yield();
  }
  EXPECT_EQ(::write(enough.write.raw(), "e", 1), 1);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << luod_.log();
  EXPECT_EQ(luod_.state(), empty);
}

}  // namespace
}  // namespace luo::test
