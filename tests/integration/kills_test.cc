// luod's worker is killed at each system call of each kind of request, its keeper before each, and its
// clients at each system call of theirs: every request takes effect once, nothing is lost or left over.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>

#include <chrono>
#include <fstream>
#include <random>
#include <thread>

#include "scenario.h"
#include "support/kill_process.h"
#include "sys/pipe.h"

namespace luo::test {
namespace {

/// What an operation works on.
struct Bench {
  explicit Bench(Luod& l) : luod{l} { renew_client(); }
  void renew_client() { client = std::make_unique<Client>(luod); }
  /// A session with two files, outgoing.
  void make_session() {
    session = client->create("s");
    for (const std::uint64_t token : {1U, 2U}) {
      files.push_back(memfd_with(std::to_string(token)));
      ASSERT_EQ(luo_preserve_fd(*client, session.raw(), files.back().raw(), token), 0) << luo_last_error();
    }
  }
  void make_incoming() {
    make_session();
    RawClient admin = raw_client(luod);
    const auto crossed = admin.call(wire::Command::UpdateSimulated, 0, update_arg());
    ASSERT_TRUE(crossed.has_value() && crossed->error() == 0);
    session.close();
    renew_client();
  }
  void make_retrieved() {
    make_incoming();
    session = client->retrieve("s");
    ASSERT_TRUE(session.valid()) << luo_last_error();
  }
  Luod& luod;
  std::unique_ptr<Client> client;
  Fd session;
  std::vector<Fd> files;
};

struct Operation {
  const char* name;
  void (*set_up)(Bench&);
  std::string (*call)(Bench&);  ///< returns what the client saw
};

std::string errno_or_zero(int r) { return r >= 0 ? "0" : strerrorname_np(-r); }

const Operation kOperations[] = {
    {"hello", [](Bench& b) { b.client.reset(); },
     [](Bench& b) {
       b.renew_client();
       return errno_or_zero(b.client->error());
     }},
    {"create", [](Bench&) {},
     [](Bench& b) {
       b.session = b.client->create("s");
       return std::string{b.session.valid() ? "session" : luo_last_error()};
     }},
    {"create_again", [](Bench& b) { b.make_session(); },
     [](Bench& b) { return errno_or_zero(luo_session_create(*b.client, "s")); }},
    {"retrieve_session", [](Bench& b) { b.make_incoming(); },
     [](Bench& b) {
       b.session = b.client->retrieve("s");
       return std::string{b.session.valid() ? "session" : luo_last_error()};
     }},
    {"present",
     [](Bench& b) {
       b.make_session();
       b.renew_client();
     },
     [](Bench& b) {
       char name[LUO_NAME_LENGTH] = {};
       return errno_or_zero(luo_session_get_name(*b.client, b.session.raw(), name)) + name;
     }},
    {"preserve", [](Bench& b) { b.make_session(); },
     [](Bench& b) {
       b.files.push_back(memfd_with("3"));
       return errno_or_zero(luo_preserve_fd(*b.client, b.session.raw(), b.files.back().raw(), 3));
     }},
    {"preserve_busy", [](Bench& b) { b.make_session(); },
     [](Bench& b) { return errno_or_zero(luo_preserve_fd(*b.client, b.session.raw(), b.files[0].raw(), 3)); }},
    {"preserve_many", [](Bench& b) { b.make_session(); },
     [](Bench& b) {
       int fds[5], errors[5];
       const std::uint64_t tokens[5] = {10, 11, 1, 13, 14};
       for (int& fd : fds) {
         b.files.push_back(memfd_with("m"));
         fd = b.files.back().raw();
       }
       fds[3] = -1;
       std::string text = std::to_string(luo_preserve_many(*b.client, b.session.raw(), fds, tokens, errors, 5));
       for (const int error : errors) text += fmt::format(" {}", error);
       return text;
     }},
    {"unpreserve", [](Bench& b) { b.make_session(); },
     [](Bench& b) { return errno_or_zero(luo_unpreserve_fd(*b.client, b.session.raw(), 1)); }},
    {"retrieve", [](Bench& b) { b.make_retrieved(); },
     [](Bench& b) {
       const Fd fd = Fd::adopt(luo_retrieve_fd(*b.client, b.session.raw(), 2));
       return fd.valid() ? content_of(fd) : luo_last_error();
     }},
    {"retrieve_many", [](Bench& b) { b.make_retrieved(); },
     [](Bench& b) {
       const std::uint64_t tokens[3] = {2, 7, 1};
       int fds[3];
       std::string text = std::to_string(luo_retrieve_many(*b.client, b.session.raw(), tokens, fds, 3));
       for (const int fd : fds) text += fd < 0 ? fmt::format(" {}", fd) : " " + content_of(Fd::adopt(fd));
       return text;
     }},
    {"tokens", [](Bench& b) { b.make_session(); },
     [](Bench& b) {
       std::uint64_t tokens[2] = {};
       const int n = luo_session_tokens(*b.client, b.session.raw(), tokens, 2);
       return fmt::format("{} {} {}", n, tokens[0], tokens[1]);
     }},
    {"finish", [](Bench& b) { b.make_retrieved(); },
     [](Bench& b) { return errno_or_zero(luo_session_finish(*b.client, b.session.raw())); }},
    {"renew", [](Bench& b) { b.make_retrieved(); },
     [](Bench& b) { return errno_or_zero(luo_session_renew(*b.client, b.session.raw())); }},
    {"close_outgoing", [](Bench& b) { b.make_session(); },
     [](Bench& b) {
       b.session.close();
       return std::string{};
     }},
    {"close_retrieved", [](Bench& b) { b.make_retrieved(); },
     [](Bench& b) {
       b.session.close();
       return std::string{};
     }},
    {"disconnect", [](Bench& b) { b.make_session(); },
     [](Bench& b) {
       b.client.reset();
       return std::string{};
     }},
    {"cross", [](Bench& b) { b.make_session(); },
     [](Bench& b) {
       RawClient admin = raw_client(b.luod);
       const auto answer = admin.call(wire::Command::UpdateSimulated, 0, update_arg());
       return answer ? errno_or_zero(-answer->error()) : answer.error().what;
     }},
};

std::ostream& operator<<(std::ostream& out, const Operation& operation) { return out << operation.name; }

class Kills : public testing::TestWithParam<Operation> {
 protected:
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }

  struct Seen {
    std::string result, state;
    bool operator==(const Seen&) const = default;
    friend std::ostream& operator<<(std::ostream& out, const Seen& seen) { return out << seen.result << '\n' << seen.state; }
  };
  /// One run; `around` is called with what to do while something is killed.
  template <class Around>
  Seen run(Around around) {
    Seen seen;
    {
      Bench bench{luod_};
      GetParam().set_up(bench);
      around([&] { seen.result = GetParam().call(bench); });
      seen.state = luod_.state();
    }
    drop_incoming();
    return seen;
  }
  /// What nobody holds goes with two crossings: the next run finds an empty luod.
  void drop_incoming() {
    if (luod_.list()["sessions"].empty()) return;
    RawClient admin = raw_client(luod_);
    for (int i = 0; i < 2; ++i) {
      const auto crossed = admin.call(wire::Command::UpdateSimulated, 0, update_arg());
      ASSERT_TRUE(crossed.has_value() && crossed->error() == 0);
    }
  }
  Luod luod_;
};

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
    ASSERT_EQ(seen, whole) << "killed at stop " << n << "\n" << luod_.log().substr(luod_.log().size() > 3000 ? luod_.log().size() - 3000 : 0);
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
      kill(luod_.keeper(), SIGKILL);  // dies while the request is in work
      call();
    });
    ASSERT_EQ(seen, whole) << luod_.log();
    ASSERT_EQ(luod_.state(), empty);
  }
}

INSTANTIATE_TEST_SUITE_P(Of, Kills, testing::ValuesIn(kOperations),
                         [](const auto& of) { return std::string{of.param.name}; });

/// The worker is killed in the middle of a request, and the next one in the middle of making good for it.
class TwoKills : public Kills {
 protected:
  /// The keeper's child that has become a worker after `old`; -1: there is none within a second.
  static pid_t next_worker(pid_t keeper, pid_t old) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds{1};
    while (std::chrono::steady_clock::now() < until) {
      std::ifstream children{fmt::format("/proc/{0}/task/{0}/children", keeper)};
      for (pid_t child = 0; children >> child;) {
        std::string name;
        std::getline(std::ifstream{fmt::format("/proc/{}/comm", child)}, name);
        if (child != old && name == "luod-worker") return child;
      }
    }
    return -1;
  }
};

TEST_P(TwoKills, OfWorkersOneAfterTheOther) {
  const std::string empty = luod_.state();
  const Seen whole = run([](auto call) { call(); });
  int seconds = 0;
  bool more = true;
  for (unsigned n = 1; more; n += 4) {
    ASSERT_LT(n, 2000U);
    for (const unsigned m : {1U, 9U, 25U, 60U, 110U}) {
      const Seen seen = run([&](auto call) {
        const pid_t keeper = luod_.keeper(), worker = luod_.worker();
        auto first = SyscallKill::arm(worker, n);
        ASSERT_TRUE(first.has_value()) << first.error().what;
        std::thread caller{call};
        const auto outcome = first->wait(std::chrono::milliseconds{300});
        more = outcome.has_value() && outcome->killed;
        if (const pid_t next = more ? next_worker(keeper, worker) : -1; next > 0)
          if (auto second = SyscallKill::arm(next, m); second) {
            const auto end = second->wait(std::chrono::milliseconds{20});
            seconds += end && end->killed ? 1 : 0;
          }
        caller.join();
        died_rather_than_idled(luod_.worker());
      });
      ASSERT_EQ(seen, whole) << "killed at stops " << n << " and " << m;
      ASSERT_EQ(luod_.state(), empty) << "killed at stops " << n << " and " << m;
      if (!more) break;
    }
  }
  EXPECT_GT(seconds, 3) << "the second kill hardly ever came";
}

std::vector<Operation> twice_killed() {
  std::vector<Operation> out;
  for (const Operation& operation : kOperations)
    for (const char* name : {"create", "retrieve_session", "preserve", "preserve_many", "unpreserve", "retrieve", "finish", "cross"})
      if (std::string_view{operation.name} == name) out.push_back(operation);
  return out;
}
INSTANTIATE_TEST_SUITE_P(Of, TwoKills, testing::ValuesIn(twice_killed()),
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
    more = killed_at(n, [&](const Client& own) { return luo_preserve_fd(own, session.raw(), file.raw(), 1) == 0 ? 0 : 1; });
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
    // Once it has accepted, its death is a last close, which finishes.
    if (!again.valid()) {
      ASSERT_EQ(luod_.list()["sessions"].size(), 0U) << "stranded at stop " << n;
      was_finished = true;
      continue;
    }
    ASSERT_FALSE(was_finished) << n;
    ASSERT_EQ(content_of(Fd::adopt(luo_retrieve_fd(next, again.raw(), 1))), "x") << "stop " << n;
    ASSERT_EQ(luo_session_finish(next, again.raw()), 0);
  }
  EXPECT_TRUE(was_finished);
}

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
    if (keeper || random() % 2 == 0)
      kill(victim, SIGKILL);
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
