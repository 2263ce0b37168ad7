// A seeded random run against a model of std::map, the arena opened anew after every operation, some
// steps abandoned in the middle.
#include <gmock/gmock.h>

#include <algorithm>
#include <random>

#include "luo/engine_testing.h"

namespace luo::testing {
namespace {

struct ModelFile {
  std::uint64_t token;
  int object;  ///< which of the world's files
  int status = 0;
};
struct ModelSession {
  std::string name;
  SessionState state{};
  std::vector<ModelFile> files{};  ///< in order of preservation
  auto find(std::uint64_t token) { return std::ranges::find(files, token, &ModelFile::token); }
  bool holder = true;
  bool successor = false;
  bool holder_died = false;  ///< and nobody has told the engine
  bool successor_died = false;
};
struct Model {
  std::map<std::uint64_t, ModelSession> sessions;  ///< by id
  std::uint64_t generation = 0;

  /// Ids; 0: none.
  std::uint64_t named(bool outgoing, const std::string& name) const {
    for (const auto& [id, s] : sessions)
      if (is_out(s) == outgoing && s.name == name) return id;
    return 0;
  }
  std::uint64_t user_of(int object) const {
    for (const auto& [id, s] : sessions)
      for (const ModelFile& f : s.files)
        if (f.object == object) return id;
    return 0;
  }
  void close(std::uint64_t id, Role role) {
    ModelSession& s = sessions.at(id);
    bool& mine = role == Role::Owner ? s.holder : s.successor;
    const bool other = role == Role::Owner ? s.successor : s.holder;
    if (!mine) return;
    mine = false;
    (role == Role::Owner ? s.holder_died : s.successor_died) = false;
    if (!is_out(s) || !other) {
      sessions.erase(id);
    } else if (role == Role::Successor) {
      s.state = SessionState::Outgoing;
      forget_statuses(s);
    }
  }
  /// The closes of a session that stands in the way.
  void close_the_dead(std::uint64_t id) {
    for (const Role role : {Role::Successor, Role::Owner}) {
      const auto found = sessions.find(id);
      if (found == sessions.end()) return;
      if (role == Role::Owner ? found->second.holder_died : found->second.successor_died) close(id, role);
    }
  }
  int renew(std::uint64_t id) {
    ModelSession& s = sessions.at(id);
    if (s.state != SessionState::Retrieved) return EINVAL;
    if (const std::uint64_t other = named(true, s.name)) close_the_dead(other);
    if (named(true, s.name) != 0) return EEXIST;
    s.state = SessionState::Outgoing;
    forget_statuses(s);
    return 0;
  }
  int take_over(std::uint64_t id) {
    ModelSession& s = sessions.at(id);
    if (!s.successor || (s.state != SessionState::Frozen && s.holder)) return EINVAL;
    s.state = SessionState::Outgoing;
    s.holder = true;
    s.successor = false;
    s.holder_died = std::exchange(s.successor_died, false);
    forget_statuses(s);
    return 0;
  }
  void cross() {
    ++generation;
    std::erase_if(sessions, [](const auto& entry) { return !is_out(entry.second); });
    for (auto& [id, s] : sessions) {
      s.state = SessionState::Incoming;
      s.holder = s.successor = s.holder_died = s.successor_died = false;
      forget_statuses(s);
    }
  }
  static void forget_statuses(ModelSession& s) {
    for (ModelFile& f : s.files) f.status = 0;
  }
  static bool is_out(const ModelSession& s) {
    return s.state == SessionState::Outgoing || s.state == SessionState::Preparing || s.state == SessionState::Frozen;
  }
  static bool open_for_files(const ModelSession& s) { return is_out(s) && s.state != SessionState::Frozen; }
};

class RandomRun {
 public:
  explicit RandomRun(std::uint64_t seed) : random_{seed} {
    for (int i = 0; i < 24; ++i) objects_.push_back(memfd());
    // Half of them are told apart as files of one inode.
    w_.fake.identify = [this](const FileInfo& f) {
      for (std::size_t i = 0; i < objects_.size(); i += 2) {
        struct stat st {};
        fstat(objects_[i].raw(), &st);
        if (st.st_ino == f.st.st_ino) return Identity{1, 1, true};
      }
      return Identity{f.st.st_dev, f.st.st_ino, false};
    };
  }

  void go(int operations) {
    for (int n = 0; n < operations && !::testing::Test::HasFailure(); ++n) {
      SCOPED_TRACE(n);
      operation();
      compare();
      w_.reopen();
      compare();
    }
  }

 private:
  std::uint64_t pick(std::uint64_t below) { return random_() % below; }

  /// `what` asks the engine, `effect` says what a model of it answers and becomes. The step is committed,
  /// abandoned, or taken back in the middle and perhaps done again. True: committed with success.
  template <class Do, class Effect>
  bool attempt(Do&& what, Effect&& effect) {
    Change change{*w_.arena};
    const bool partly = pick(4) == 0;
    const Change::Mark mark = change.mark();
    const int result = what(change);
    Model next = model_;
    EXPECT_EQ(result, effect(next));
    if (partly) {
      change.back_to(mark);
      if (pick(2) == 0) {
        change.commit();
        return false;
      }
      EXPECT_EQ(what(change), result);
    } else if (pick(8) == 0) {
      return false;
    }
    change.commit();
    model_ = std::move(next);
    return result == 0;
  }

  /// The same for what hands a pipe to the engine: closed if it was not taken, else its client's end.
  template <class Do, class Effect>
  std::optional<Fd> attempt_with_pipe(Do&& what, Effect&& effect) {
    Capability cap = capability();
    if (attempt([&](Change& c) { return what(c, cap.holder); }, effect)) return std::move(cap.client);
    close_number(cap.holder.write_fd);
    return std::nullopt;
  }

  void operation() {
    const std::uint64_t what = pick(100);
    if (what < 14) return create();
    if (what < 26) return retrieve_session();
    if (model_.sessions.empty()) return create();
    const auto chosen = std::next(model_.sessions.begin(), static_cast<std::ptrdiff_t>(pick(model_.sessions.size())));
    const SessionId id{chosen->first};
    if (what < 50) return preserve(id);
    if (what < 57) return unpreserve(id);
    if (what < 68) return retrieve(id);
    if (what < 72) return finish(id);
    if (what < 77) return close(id);
    if (what < 84) return die(id);
    if (what < 88) return renew(id);
    if (what < 92) return prepare_or_cancel(id);
    if (what < 98) return succession(id);
    cross();
  }

  void create() {
    const std::string name = fmt::format("n{}", pick(8));
    SessionId id;
    auto client = attempt_with_pipe(
        [&](Change& c, const Holder& h) {
          auto r = w_.engine->create_session(c, Name{name}, h, {}, 0);
          if (r) id = *r;
          return code(r);
        },
        [&](Model& m) {
          if (const std::uint64_t other = m.named(true, name)) m.close_the_dead(other);
          if (m.named(true, name) != 0) return EEXIST;
          EXPECT_FALSE(m.sessions.contains(id.raw()));
          m.sessions[id.raw()] = {name, SessionState::Outgoing, {}};
          return 0;
        });
    if (client) clients_[id.raw()] = std::move(*client);
  }
  void retrieve_session() {
    const std::string name = fmt::format("n{}", pick(8));
    SessionId id;
    auto client = attempt_with_pipe(
        [&](Change& c, const Holder& h) {
          auto r = w_.engine->retrieve_session(c, Name{name}, h, {});
          if (r) id = *r;
          return code(r);
        },
        [&](Model& m) {
          const auto has_another = [&](std::uint64_t found) {
            return found != 0 && m.sessions.at(found).state != SessionState::Incoming;
          };
          if (const std::uint64_t found = m.named(false, name); has_another(found)) m.close_the_dead(found);
          const std::uint64_t found = m.named(false, name);
          if (found == 0) return ENOENT;
          if (has_another(found)) return EINVAL;
          EXPECT_EQ(found, id.raw());
          m.sessions.at(found).state = SessionState::Retrieved;
          m.sessions.at(found).holder = true;
          return 0;
        });
    if (client) clients_[id.raw()] = std::move(*client);
  }
  void preserve(SessionId id) {
    const std::uint64_t token = pick(12);
    const int object = static_cast<int>(pick(objects_.size()));
    Fd fd = duplicate(objects_[static_cast<std::size_t>(object)]);
    const bool taken = attempt(
        [&](Change& c) {
          return code(w_.engine->preserve(c, id, {Token{token}, fd.raw(), 0}));
        },
        [&](Model& m) {
          ModelSession& s = m.sessions.at(id.raw());
          if (!Model::is_out(s)) return EINVAL;
          if (!Model::open_for_files(s)) return EBUSY;
          if (s.find(token) != s.files.end()) return EEXIST;
          if (const std::uint64_t user = m.user_of(object); user != 0 && user != id.raw()) m.close_the_dead(user);
          if (m.user_of(object) != 0) return EBUSY;
          s.files.push_back({token, object});
          return 0;
        });
    if (taken) (void)fd.release();
  }
  /// Mostly one that is there.
  std::uint64_t some_token(SessionId id) {
    const ModelSession& s = model_.sessions.at(id.raw());
    return s.files.empty() || pick(5) == 0 ? pick(12) : s.files[pick(s.files.size())].token;
  }
  void unpreserve(SessionId id) {
    const std::uint64_t token = some_token(id);
    attempt([&](Change& c) { return code(w_.engine->unpreserve(c, id, Token{token})); },
            [&](Model& m) {
              ModelSession& s = m.sessions.at(id.raw());
              if (!Model::is_out(s)) return EINVAL;
              if (!Model::open_for_files(s)) return EBUSY;
              if (s.find(token) == s.files.end()) return ENOENT;
              s.files.erase(s.find(token));
              return 0;
            });
  }
  void retrieve(SessionId id) {
    const std::uint64_t token = some_token(id);
    const Role role = pick(2) == 0 ? Role::Owner : Role::Successor;
    attempt([&](Change& c) { return code(w_.engine->retrieve(c, id, role, Token{token})); },
            [&](Model& m) {
              ModelSession& s = m.sessions.at(id.raw());
              if (Model::is_out(s) && !(role == Role::Successor && s.successor)) return EINVAL;
              if (s.state == SessionState::Incoming) return EINVAL;
              if (s.find(token) == s.files.end()) return ENOENT;
              s.find(token)->status = 1;
              return 0;
            });
  }
  void finish(SessionId id) {
    attempt([&](Change& c) { return code(w_.engine->finish(c, id)); },
            [&](Model& m) {
              ModelSession& s = m.sessions.at(id.raw());
              if (s.state != SessionState::Retrieved && s.state != SessionState::Finished) return EINVAL;
              s.state = SessionState::Finished;
              s.files.clear();
              return 0;
            });
  }
  void close(SessionId id) {
    const Role role = pick(3) == 0 ? Role::Successor : Role::Owner;
    attempt(
        [&](Change& c) {
          w_.engine->holder_closed(c, id, role);
          return 0;
        },
        [&](Model& m) {
          m.close(id.raw(), role);
          return 0;
        });
  }
  /// A client goes, and nobody tells the engine.
  void die(SessionId id) {
    ModelSession& s = model_.sessions.at(id.raw());
    if (pick(2) == 0 && s.successor) {
      s.successor_died = true;
      successors_.erase(id.raw());
    } else if (s.holder) {
      s.holder_died = true;
      clients_.erase(id.raw());
    }
  }
  void renew(SessionId id) {
    const Role role = pick(2) == 0 ? Role::Owner : Role::Successor;
    const bool renewed =
        attempt([&](Change& c) { return code(w_.engine->renew(c, id, role)); },
                [&](Model& m) { return role == Role::Owner ? m.renew(id.raw()) : m.take_over(id.raw()); });
    if (renewed && role == Role::Successor) clients_[id.raw()] = std::exchange(successors_[id.raw()], Fd{});
  }
  void prepare_or_cancel(SessionId id) {
    const auto state = [&](Model& m) -> SessionState& { return m.sessions.at(id.raw()).state; };
    switch (pick(3)) {
      case 0:
        attempt([&](Change& c) { return code(w_.engine->begin_prepare(c, id)); },
                [&](Model& m) {
                  if (state(m) != SessionState::Outgoing) return EINVAL;
                  state(m) = SessionState::Preparing;
                  return 0;
                });
        return;
      case 1:
        attempt(
            [&](Change& c) {
              w_.engine->cancel_prepare(c, id);
              return 0;
            },
            [&](Model& m) {
              if (Model::is_out(m.sessions.at(id.raw()))) state(m) = SessionState::Outgoing;
              return 0;
            });
        return;
      default:
        attempt(
            [&](Change& c) {
              const auto r = w_.engine->freeze_one(c, id);
              return r ? 0 : r.error().error.code;
            },
            [&](Model& m) {
              if (!Model::is_out(m.sessions.at(id.raw()))) return EINVAL;
              state(m) = SessionState::Frozen;
              return 0;
            });
    }
  }
  void succession(SessionId id) {
    auto client =
        attempt_with_pipe([&](Change& c, const Holder& h) { return code(w_.engine->add_successor(c, id, h, {})); },
                          [&](Model& m) {
                            ModelSession& s = m.sessions.at(id.raw());
                            if (!Model::is_out(s)) return EINVAL;
                            if (s.successor) {
                              m.close_the_dead(id.raw());
                              if (!m.sessions.contains(id.raw())) return EBADF;
                              if (s.successor) return EBUSY;
                            }
                            s.successor = true;
                            return 0;
                          });
    if (client) successors_[id.raw()] = std::move(*client);
  }
  void cross() {
    EXPECT_TRUE(w_.engine->freeze_all().has_value());
    for (auto& [id, s] : model_.sessions)
      if (Model::is_out(s)) s.state = SessionState::Frozen;
    const bool crossed = attempt([&](Change& c) { return code(w_.engine->cross(c)); },
                                 [&](Model& m) {
                                   m.cross();
                                   return 0;
                                 });
    if (crossed && pick(2) == 0) w_.engine->sweep();
  }

  void compare() {
    w_.expect_sound();
    EXPECT_EQ(w_.engine->generation(), model_.generation);
    ASSERT_EQ(w_.engine->session_count(), model_.sessions.size());
    std::uint64_t files = 0;
    std::uint64_t seen = 0;
    w_.engine->for_each_session([&](const SessionView& view) {
      ++seen;
      ASSERT_TRUE(model_.sessions.contains(view.id.raw()));
      const ModelSession& s = model_.sessions.at(view.id.raw());
      EXPECT_EQ(view.name, s.name);
      EXPECT_EQ(view.state, s.state) << to_string(view.state) << ", not " << to_string(s.state);
      EXPECT_EQ(view.holder[0].write_fd >= 0, s.holder);
      EXPECT_EQ(view.holder[1].write_fd >= 0, s.successor);
      EXPECT_EQ(view.files, s.files.size());
      EXPECT_EQ(Model::is_out(s) ? w_.engine->find_outgoing(s.name) : w_.engine->find_incoming(s.name), view.id);
      std::size_t n = 0;
      w_.engine->for_each_file(view.id, [&](const FileView& f) {
        ASSERT_LT(n, s.files.size());
        EXPECT_EQ(f.token.raw(), s.files[n].token);
        EXPECT_EQ(f.retrieve_status, s.files[n].status);
        struct stat mine {
        }, theirs{};
        fstat(f.fd, &theirs);
        fstat(objects_[static_cast<std::size_t>(s.files[n].object)].raw(), &mine);
        EXPECT_EQ(mine.st_ino, theirs.st_ino);
        ++n;
      });
      EXPECT_EQ(n, s.files.size());
      files += n;
    });
    EXPECT_EQ(seen, model_.sessions.size());
    EXPECT_EQ(w_.engine->file_count(), files);
  }

  World w_;
  Model model_;
  std::mt19937_64 random_;
  std::vector<Fd> objects_;
  std::map<std::uint64_t, Fd> clients_, successors_;
};

class AgreesWithAModel : public ::testing::TestWithParam<std::uint64_t> {};
TEST_P(AgreesWithAModel, OverARandomRun) { RandomRun{GetParam()}.go(600); }
INSTANTIATE_TEST_SUITE_P(Engine, AgreesWithAModel, ::testing::Range<std::uint64_t>(1, 11));

}  // namespace
}  // namespace luo::testing
