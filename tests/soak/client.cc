#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "luo/luo.h"
#include "soak/model.h"
#include "support/luod_fixture.h"

namespace luo::soak {
namespace {

class Life {
 public:
  Life(World& world, unsigned number, const char* socket, std::uint64_t seed)
      : world_{world}, me_{world.client[number]}, number_{number}, luod_{std::string{socket}}, random_{seed} {}

  [[noreturn]] void live() {
    if (luod_.error() != 0) wrong("connect: {}", luo_last_error());
    take_up();
    while (__atomic_load_n(&world_.stop, __ATOMIC_ACQUIRE) == 0) {
      if (__atomic_load_n(&world_.pause, __ATOMIC_ACQUIRE) != 0) {
        wait_for_the_crossing();
        continue;
      }
      one_operation();
      ++me_.operations;
    }
    for (unsigned s = 0; s < kSessions; ++s) check_whole(s);
    _exit(0);
  }

 private:
  template <class... Args>
  [[noreturn]] void wrong(fmt::format_string<Args...> format, Args&&... args) {
    const std::string text = fmt::format(format, std::forward<Args>(args)...);
    text.copy(me_.text, sizeof me_.text - 1);
    __atomic_store_n(&me_.failed, 1U, __ATOMIC_RELEASE);
    _exit(1);
  }
  template <class... Args>
  void expect(int got, int wanted, fmt::format_string<Args...> format, Args&&... args) {
    if (got == wanted) return;
    wrong("{}: {} instead of {} ({})", fmt::format(format, std::forward<Args>(args)...), got, wanted, luo_last_error());
  }
  std::uint64_t pick(std::uint64_t below) { return random_() % below; }
  std::string name(unsigned s) const { return fmt::format("c{}-{}", number_, s); }
  std::string content(std::uint64_t serial) const { return fmt::format("client {} file {}", number_, serial); }

  void begin(Op op, unsigned s) {
    me_.pending.op = Op::None;
    me_.pending.session = s;
    me_.pending.files = 0;
    __atomic_store_n(&me_.pending.op, op, __ATOMIC_RELEASE);
  }
  void end() { __atomic_store_n(&me_.pending.op, Op::None, __ATOMIC_RELEASE); }

  // --- taking up what a predecessor, or the time before a crossing, left ---------------------------------

  void take_up() {
    const Pending pending = me_.pending;
    for (unsigned s = 0; s < kSessions; ++s) {
      Session& session = me_.session[s];
      if (session.where == Where::None || session.mine != 0) {
        // Held by our predecessor's descriptor: closed with it. What it was about to do may have happened.
        const bool concerned = pending.op != Op::None && pending.session == s;
        const bool may_be_held = session.held != 0 || (concerned && pending.op == Op::Hold);
        const bool may_be_plain = session.held == 0 || (concerned && pending.op == Op::Unhold);
        const bool was_taken_up = session.mine == 2;  // perhaps: then it ended with our predecessor, or waits on
        const int fd = luo_session_retrieve(luod_, name(s).c_str());
        if (session.where == Where::None || (fd < 0 && may_be_plain) ||
            (fd < 0 && concerned && pending.op == Op::Drop)) {
          if (fd >= 0)
            wrong("session {} is there, nobody left it (where {})", name(s), static_cast<int>(session.where));
          if (fd != -ENOENT) expect(fd, -ENOENT, "retrieve {} that nobody left", name(s));
          session = Session{};
          continue;
        }
        if (fd < 0 || (!may_be_held && !was_taken_up))
          expect(fd, may_be_held ? 0 : -ENOENT, "retrieve {} after a kill", name(s));
        fd_[s] = Fd::adopt(fd);
        if (!was_taken_up) session.held = 1;
        settle(s, concerned ? pending : Pending{});
      } else {
        // Nobody had it, unless we are killed with it before it is settled.
        session.mine = 2;
        const int fd = luo_session_retrieve(luod_, name(s).c_str());
        const bool dropped = pending.op == Op::Drop && pending.session == s;
        if (fd == -ENOENT && dropped) {
          session = Session{};
          continue;
        }
        if (fd < 0) expect(fd, 0, "retrieve {}, which nobody had", name(s));
        fd_[s] = Fd::adopt(fd);
        settle(s, Pending{});
      }
    }
    end();
  }

  /// Ours again: what luod says is in it is what the model says, but for the pending operation.
  void settle(unsigned s, const Pending& pending) {
    Session& session = me_.session[s];
    session.mine = 1;
    session.event = Event::None;
    const int state = luo_session_get_state(luod_, fd_[s].raw());
    if (state == LUO_STATE_NORMAL) session.where = Where::Outgoing;
    else if (state == LUO_STATE_UPDATED) session.where = Where::Retrieved;
    else wrong("session {} is in state {} ({})", name(s), state, luo_last_error());
    const std::vector<std::uint64_t> tokens = tokens_of(s);
    if (pending.op == Op::Preserve && tokens.size() == session.files + pending.files)
      for (unsigned i = 0; i < pending.files; ++i) session.file[session.files++] = pending.file[i];
    if (pending.op == Op::Unpreserve && tokens.size() + 1 == session.files) remove(session, pending.file[0].token);
    check_whole(s);
    if (session.where == Where::Retrieved) {
      expect(luo_session_renew(luod_, fd_[s].raw()), 0, "renew {}", name(s));
      session.where = Where::Outgoing;
    }
  }

  void wait_for_the_crossing() {
    const std::uint64_t before = __atomic_load_n(&world_.crossings, __ATOMIC_ACQUIRE);
    __atomic_store_n(&me_.paused, 1U, __ATOMIC_RELEASE);
    while (__atomic_load_n(&world_.pause, __ATOMIC_ACQUIRE) != 0) usleep(500);
    __atomic_store_n(&me_.paused, 0U, __ATOMIC_RELEASE);
    if (__atomic_load_n(&world_.crossings, __ATOMIC_ACQUIRE) == before) return;
    // Everything came in; our descriptors mean nothing any more, nor does our connection. As after a kexec.
    execute_again();
  }
  [[noreturn]] void execute_again() {
    for (Session& session : me_.session)
      if (session.where != Where::None) session.mine = 0;
    _exit(2);
  }

  // --- checks ---------------------------------------------------------------------------------------------

  std::vector<std::uint64_t> tokens_of(unsigned s) {
    std::vector<std::uint64_t> tokens(kFiles + kBatch);
    const int n = luo_session_tokens(luod_, fd_[s].raw(), tokens.data(), tokens.size());
    if (n < 0 || static_cast<std::size_t>(n) > tokens.size())
      wrong("tokens of {}: {} ({})", name(s), n, luo_last_error());
    tokens.resize(static_cast<std::size_t>(n));
    return tokens;
  }
  void check_whole(unsigned s) {
    const Session& session = me_.session[s];
    if (session.where == Where::None || session.mine == 0) return;
    const std::vector<std::uint64_t> tokens = tokens_of(s);
    if (tokens.size() != session.files) wrong("{} has {} files, not {}", name(s), tokens.size(), session.files);
    for (unsigned i = 0; i < session.files; ++i)
      if (tokens[i] != session.file[i].token)
        wrong("{}: token {} at place {}, not {}", name(s), tokens[i], i, session.file[i].token);
    if (session.where != Where::Retrieved && session.held == 0) return;
    for (unsigned i = 0; i < session.files; ++i) check_file(s, session.file[i]);
  }
  void check_file(unsigned s, const File& file) {
    const Fd fd = Fd::adopt(luo_retrieve_fd(luod_, fd_[s].raw(), file.token));
    if (!fd.valid()) wrong("retrieve token {} of {}: {}", file.token, name(s), luo_last_error());
    struct stat st {};
    fstat(fd.raw(), &st);
    if (st.st_ino != file.inode)
      wrong("token {} of {} is inode {}, not {}", file.token, name(s), st.st_ino, file.inode);
    if (const std::string found = test::content_of(fd); found != content(file.serial))
      wrong("token {} of {} contains '{}', not '{}'", file.token, name(s), found, content(file.serial));
  }

  // --- operations -------------------------------------------------------------------------------------------

  static void remove(Session& session, std::uint64_t token) {
    File* const last = session.file + session.files;
    File* const at = std::find_if(session.file, last, [&](const File& f) { return f.token == token; });
    std::copy(at + 1, last, at);
    --session.files;
  }
  Fd new_file(File& file) {
    file.serial = ++me_.serial;
    Fd fd = test::memfd_with(content(file.serial));
    struct stat st {};
    fstat(fd.raw(), &st);
    file.inode = st.st_ino;
    return fd;
  }

  void one_operation() {
    const auto s = static_cast<unsigned>(pick(kSessions));
    Session& session = me_.session[s];
    if (session.where == Where::None) return create(s);
    switch (pick(16)) {
      case 0: return close_session(s);
      case 1: return hold(s, session.held == 0);
      case 2: return event(s);
      case 3: return again(s);
      case 4: return check_whole(s);
      case 5:
      case 6: return unpreserve(s);
      case 7:
      case 8: return preserve_batch(s);
      default: return preserve(s);
    }
  }

  void create(unsigned s) {
    begin(Op::Create, s);
    const int fd = luo_session_create(luod_, name(s).c_str());
    if (fd < 0) expect(fd, 0, "create {}", name(s));
    fd_[s] = Fd::adopt(fd);
    me_.session[s] = Session{};
    me_.session[s].mine = 1;
    me_.session[s].where = Where::Outgoing;
    end();
  }
  void close_session(unsigned s) {
    Session& session = me_.session[s];
    if (session.held != 0) {  // stays, and we take it up again
      fd_[s].close();
      const int fd = luo_session_retrieve(luod_, name(s).c_str());
      if (fd < 0) expect(fd, 0, "retrieve {}, which is held", name(s));
      fd_[s] = Fd::adopt(fd);
      session.event = Event::None;
      check_whole(s);
      if (pick(3) != 0) return;
      begin(Op::Drop, s);
      expect(luo_session_drop(luod_, name(s).c_str()), -EBUSY, "drop {}, which we have", name(s));
      session.mine = 0;
      fd_[s].close();
      expect(luo_session_drop(luod_, name(s).c_str()), 0, "drop {}", name(s));
      session = Session{};
      return end();
    }
    session = Session{};  // first: if we are killed in between, it is gone all the same
    fd_[s].close();
  }
  void hold(unsigned s, bool on) {
    Session& session = me_.session[s];
    begin(on ? Op::Hold : Op::Unhold, s);
    const int wanted = session.event == Event::Frozen ? -EBUSY : 0;
    expect(luo_session_hold(luod_, fd_[s].raw(), on ? LUO_HOLD_USER : LUO_HOLD_OFF), wanted, "hold {}", name(s));
    if (wanted == 0) session.held = on ? 1 : 0;
    end();
  }
  void event(unsigned s) {
    Session& session = me_.session[s];
    begin(Op::Other, s);
    const int fd = fd_[s].raw();
    if (session.event == Event::None) {
      expect(luo_session_set_event(luod_, fd, LUO_EVENT_FREEZE), -EINVAL, "freeze {} unprepared", name(s));
      expect(luo_session_set_event(luod_, fd, LUO_EVENT_PREPARE), 0, "prepare {}", name(s));
      session.event = Event::Prepared;
    } else if (session.event == Event::Prepared && pick(2) == 0) {
      expect(luo_session_set_event(luod_, fd, LUO_EVENT_FREEZE), 0, "freeze {}", name(s));
      session.event = Event::Frozen;
    } else {
      expect(luo_session_set_event(luod_, fd, LUO_EVENT_CANCEL), 0, "cancel {}", name(s));
      session.event = Event::None;
    }
    expect(luo_session_get_state(luod_, fd),
           session.event == Event::None       ? LUO_STATE_NORMAL
           : session.event == Event::Prepared ? LUO_STATE_PREPARED
                                              : LUO_STATE_FROZEN,
           "state of {}", name(s));
    end();
  }
  /// What is refused.
  void again(unsigned s) {
    const Session& session = me_.session[s];
    begin(Op::Other, s);
    expect(luo_session_create(luod_, name(s).c_str()), -EEXIST, "create {} again", name(s));
    expect(luo_session_retrieve(luod_, name(s).c_str()), session.held != 0 ? -EINVAL : -ENOENT, "retrieve {}", name(s));
    expect(luo_session_finish(luod_, fd_[s].raw()), -EINVAL, "finish {}", name(s));
    if (session.files != 0) {
      const File& file = session.file[pick(session.files)];
      const Fd other = test::memfd_with("other");
      expect(luo_preserve_fd(luod_, fd_[s].raw(), other.raw(), file.token),
             session.event == Event::Frozen ? -EBUSY : -EEXIST, "preserve token {} of {} again", file.token, name(s));
      if (session.held != 0) {
        const Fd same = Fd::adopt(luo_retrieve_fd(luod_, fd_[s].raw(), file.token));
        expect(luo_preserve_fd(luod_, fd_[s].raw(), same.raw(), 1000), -EBUSY, "preserve a file of {} again", name(s));
      }
    }
    end();
  }
  std::uint64_t free_token(const Session& session) {
    for (;;) {
      const std::uint64_t token = pick(500);
      const auto uses = [&](const File& f) { return f.token == token; };
      if (std::none_of(session.file, session.file + session.files, uses)) return token;
    }
  }
  void preserve(unsigned s) {
    Session& session = me_.session[s];
    if (session.files + kBatch >= kFiles) return unpreserve(s);
    File file{};
    file.token = free_token(session);
    const Fd fd = new_file(file);
    std::uint64_t after = 0;
    if (session.files != 0 && pick(3) == 0) {
      after = session.file[pick(session.files)].token;
      file.after = after + 1;
    }
    begin(Op::None, s);
    me_.pending.file[0] = file;
    me_.pending.files = 1;
    __atomic_store_n(&me_.pending.op, Op::Preserve, __ATOMIC_RELEASE);
    const int wanted = session.event == Event::Frozen ? -EBUSY : 0;
    const int got = file.after != 0 ? luo_preserve_fd_after(luod_, fd_[s].raw(), fd.raw(), file.token, &after, 1)
                                    : luo_preserve_fd(luod_, fd_[s].raw(), fd.raw(), file.token);
    expect(got, wanted, "preserve token {} in {}", file.token, name(s));
    if (wanted == 0) session.file[session.files++] = file;
    end();
  }
  void preserve_batch(unsigned s) {
    Session& session = me_.session[s];
    if (session.files + kBatch >= kFiles) return unpreserve(s);
    begin(Op::None, s);
    std::vector<Fd> files;
    int fds[kBatch], errors[kBatch];
    std::uint64_t tokens[kBatch];
    for (unsigned i = 0; i < kBatch; ++i) {
      File& file = me_.pending.file[i];
      file = File{};
      do file.token = free_token(session);
      while (std::find(tokens, tokens + i, file.token) != tokens + i);
      files.push_back(new_file(file));
      fds[i] = files.back().raw();
      tokens[i] = file.token;
    }
    me_.pending.files = kBatch;
    __atomic_store_n(&me_.pending.op, Op::Preserve, __ATOMIC_RELEASE);
    const bool frozen = session.event == Event::Frozen;
    expect(luo_preserve_many(luod_, fd_[s].raw(), fds, tokens, errors, kBatch), frozen ? 0 : static_cast<int>(kBatch),
           "preserve {} files in {}", kBatch, name(s));
    for (const int error : errors) expect(error, frozen ? EBUSY : 0, "one of {} files in {}", kBatch, name(s));
    if (!frozen)
      for (const File& file : me_.pending.file) session.file[session.files++] = file;
    end();
  }
  void unpreserve(unsigned s) {
    Session& session = me_.session[s];
    if (session.files == 0) {
      begin(Op::Other, s);
      expect(luo_unpreserve_fd(luod_, fd_[s].raw(), 7), session.event == Event::Frozen ? -EBUSY : -ENOENT,
             "unpreserve what is not in {}", name(s));
      return end();
    }
    const File file = session.file[pick(session.files)];
    const auto needs = [&](const File& f) { return f.after == file.token + 1; };
    const bool needed = std::any_of(session.file, session.file + session.files, needs);
    begin(Op::None, s);
    me_.pending.file[0] = file;
    me_.pending.files = 1;
    __atomic_store_n(&me_.pending.op, Op::Unpreserve, __ATOMIC_RELEASE);
    const int wanted = session.event == Event::Frozen || needed ? -EBUSY : 0;
    expect(luo_unpreserve_fd(luod_, fd_[s].raw(), file.token), wanted, "unpreserve token {} of {}", file.token,
           name(s));
    if (wanted == 0) remove(session, file.token);
    end();
  }

  World& world_;
  Client& me_;
  const unsigned number_;
  const test::Client luod_;
  std::mt19937_64 random_;
  Fd fd_[kSessions];
};

}  // namespace

void live(World& world, unsigned number, const char* socket, std::uint64_t seed) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  Life{world, number, socket, seed}.live();
}

}  // namespace luo::soak
