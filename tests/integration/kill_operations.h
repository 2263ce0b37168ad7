// Each kind of request that a client can make, with what it needs and what the client sees of it; and the
// fixture of the tests that kill luod's processes meanwhile.
#pragma once
#include <cstring>
#include <memory>
#include <optional>

#include "scenario.h"

namespace luo::test {

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
  void make_held() {
    make_session();
    ASSERT_EQ(luo_session_hold(*client, session.raw(), LUO_HOLD_USER), 0) << luo_last_error();
  }
  void make_incoming() {
    make_session();
    cross_all();
  }
  /// "s" with its two files, and "t" with one.
  void make_two() {
    make_session();
    other = client->create("t");
    files.push_back(memfd_with("3"));
    ASSERT_EQ(luo_preserve_fd(*client, other.raw(), files.back().raw(), 3), 0) << luo_last_error();
  }
  void make_two_incoming() {
    make_two();
    cross_all();
    other.close();
  }
  void cross_all() {
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
  std::optional<RawClient> administrator;
  Fd session, other;
  std::vector<Fd> files;
};

struct Operation {
  const char* name;
  void (*set_up)(Bench&);
  std::string (*call)(Bench&);  ///< returns what the client saw
};

/// It asks for several things, of which some may be refused, and says so of each.
inline bool is_in_parts(std::string_view name) { return name.find("_each") != name.npos || name.ends_with("_many"); }
/// Whether what the client saw tells that something was refused with `code`, by its name or as a number.
inline bool tells(const std::string& seen, int code) {
  return seen.find(strerrorname_np(code)) != seen.npos || seen.find(std::to_string(code)) != seen.npos;
}

inline std::string errno_or_zero(int r) { return r >= 0 ? "0" : strerrorname_np(-r); }

inline const Operation kOperations[] = {
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
    {"create_each", [](Bench& b) { b.make_session(); },
     [](Bench& b) {
       const char* const names[] = {"t", "s", ""};
       int sessions[3];
       const int made = luo_session_create_each(*b.client, names, sessions, 3);
       b.other = Fd::adopt(sessions[0]);
       return fmt::format("{} {} {} {}", made, errno_or_zero(sessions[0]), errno_or_zero(sessions[1]),
                          errno_or_zero(sessions[2]));
     }},
    {"retrieve_each_session", [](Bench& b) { b.make_two_incoming(); },
     [](Bench& b) {
       const char* const names[] = {"t", "none", "s"};
       int sessions[3];
       const int came = luo_session_retrieve_each(*b.client, names, sessions, 3);
       b.other = Fd::adopt(sessions[0]);
       b.session = Fd::adopt(sessions[2]);
       return fmt::format("{} {} {} {}", came, errno_or_zero(sessions[0]), errno_or_zero(sessions[1]),
                          errno_or_zero(sessions[2]));
     }},
    {"preserve_each", [](Bench& b) { b.make_two(); },
     [](Bench& b) {
       int fds[6], errors[6];
       const int s = b.session.raw(), t = b.other.raw();
       const int sessions[6] = {s, s, t, t, s, t};
       const std::uint64_t tokens[6] = {10, 1, 11, 12, 13, 14};
       for (int& fd : fds) {
         b.files.push_back(memfd_with("e"));
         fd = b.files.back().raw();
       }
       fds[3] = -1;
       std::string text = std::to_string(luo_preserve_each(*b.client, sessions, fds, tokens, errors, 6));
       for (const int error : errors) text += fmt::format(" {}", error);
       return text;
     }},
    {"retrieve_each",
     [](Bench& b) {
       b.make_two_incoming();
       b.session = b.client->retrieve("s");
       b.other = b.client->retrieve("t");
     },
     [](Bench& b) {
       const int s = b.session.raw(), t = b.other.raw();
       const int sessions[5] = {s, t, t, s, -1};
       const std::uint64_t tokens[5] = {2, 3, 7, 1, 1};
       int fds[5];
       std::string text = std::to_string(luo_retrieve_each(*b.client, sessions, tokens, fds, 5));
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
    {"hold", [](Bench& b) { b.make_session(); },
     [](Bench& b) { return errno_or_zero(luo_session_hold(*b.client, b.session.raw(), LUO_HOLD_EXECUTABLE)); }},
    {"set_option", [](Bench& b) { b.make_session(); },
     [](Bench& b) { return errno_or_zero(luo_session_set_option(*b.client, b.session.raw(), "transient", "allow")); }},
    {"close_held", [](Bench& b) { b.make_held(); },
     [](Bench& b) {
       b.session.close();
       return std::string{};
     }},
    {"retrieve_held",
     [](Bench& b) {
       b.make_held();
       b.session.close();
     },
     [](Bench& b) {
       b.session = b.client->retrieve("s");
       return std::string{b.session.valid() ? "session" : luo_last_error()};
     }},
    {"retrieve_from_held", [](Bench& b) { b.make_held(); },
     [](Bench& b) {
       const Fd fd = Fd::adopt(luo_retrieve_fd(*b.client, b.session.raw(), 2));
       return fd.valid() ? content_of(fd) : luo_last_error();
     }},
    {"drop",
     [](Bench& b) {
       b.make_held();
       b.session.close();
     },
     [](Bench& b) { return errno_or_zero(luo_session_drop(*b.client, "s")); }},
    {"drop_busy", [](Bench& b) { b.make_held(); },
     [](Bench& b) { return errno_or_zero(luo_session_drop(*b.client, "s")); }},
    {"event_prepare", [](Bench& b) { b.make_session(); },
     [](Bench& b) { return errno_or_zero(luo_session_set_event(*b.client, b.session.raw(), LUO_EVENT_PREPARE)); }},
    {"event_freeze",
     [](Bench& b) {
       b.make_session();
       luo_session_set_event(*b.client, b.session.raw(), LUO_EVENT_PREPARE);
     },
     [](Bench& b) {
       const std::string set = errno_or_zero(luo_session_set_event(*b.client, b.session.raw(), LUO_EVENT_FREEZE));
       return set + std::to_string(luo_session_get_state(*b.client, b.session.raw()));
     }},
    {"event_cancel",
     [](Bench& b) {
       b.make_session();
       luo_session_set_event(*b.client, b.session.raw(), LUO_EVENT_PREPARE);
       luo_session_set_event(*b.client, b.session.raw(), LUO_EVENT_FREEZE);
     },
     [](Bench& b) {
       const std::string set = errno_or_zero(luo_session_set_event(*b.client, b.session.raw(), LUO_EVENT_CANCEL));
       return set + std::to_string(luo_session_get_state(*b.client, b.session.raw()));
     }},
    {"preserve_after", [](Bench& b) { b.make_session(); },
     [](Bench& b) {
       b.files.push_back(memfd_with("3"));
       const std::uint64_t after[] = {1, 2};
       const int fd = b.files.back().raw();
       const int preserved = luo_preserve_fd_after(*b.client, b.session.raw(), fd, 3, after, 2);
       if (preserved != 0) return errno_or_zero(preserved);
       return "0" + errno_or_zero(luo_unpreserve_fd(*b.client, b.session.raw(), 1));
     }},
    {"cross_held",
     [](Bench& b) {
       b.make_held();
       b.session.close();
       b.administrator.emplace(raw_client(b.luod));
     },
     [](Bench& b) {
       std::string seen;
       for (int i = 0; i < 2; ++i) {
         const auto answer = b.administrator->call(wire::Command::UpdateSimulated, 0, update_arg());
         seen += answer ? errno_or_zero(-answer->error()) : answer.error().what;
         if (!answer || answer->error() != 0) break;
       }
       return seen;
     }},
    {"cross",
     [](Bench& b) {
       b.make_session();
       b.administrator.emplace(raw_client(b.luod));
     },
     [](Bench& b) {
       const auto answer = b.administrator->call(wire::Command::UpdateSimulated, 0, update_arg());
       return answer ? errno_or_zero(-answer->error()) : answer.error().what;
     }},
    {"inspect",
     [](Bench& b) {
       b.make_session();
       b.administrator.emplace(raw_client(b.luod));
     },
     [](Bench& b) {
       const auto answer = b.administrator->call(wire::Command::Inspect, 0, plain_arg());
       return answer ? errno_or_zero(-answer->error()) + (answer->fds.empty() ? "" : " an image") : answer.error().what;
     }},
};

inline std::ostream& operator<<(std::ostream& out, const Operation& operation) { return out << operation.name; }

class Kills : public testing::TestWithParam<Operation> {
 protected:
  explicit Kills(LuodOptions options = {}) : luod_{std::move(options)} {}
  void SetUp() override { ASSERT_TRUE(luod_.running()) << luod_.log(); }

  struct Seen {
    std::string result, state;
    bool operator==(const Seen&) const = default;
    friend std::ostream& operator<<(std::ostream& out, const Seen& seen) {
      return out << seen.result << '\n' << seen.state;
    }
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
  /// The next run finds an empty luod.
  void drop_incoming() {
    const nlohmann::json all = luod_.list();
    if (all["sessions"].empty()) return;
    RawClient admin = raw_client(luod_);
    for (const auto& session : all["sessions"]) {
      const auto dropped = admin.call(wire::Command::Drop, 0, name_arg(session["name"]));
      ASSERT_TRUE(dropped.has_value() && dropped->error() == 0) << session;
    }
  }
  Luod luod_;
};

}  // namespace luo::test
