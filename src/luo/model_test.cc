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
  SessionState state;
  std::vector<ModelFile> files;  ///< in order of preservation
  bool holder = true;
  bool successor = false;
};
struct Model {
  std::map<std::uint64_t, ModelSession> sessions;  ///< by id
  std::uint64_t generation = 0;

  const ModelSession* named(bool outgoing, const std::string& name) const {
    for (const auto& [id, s] : sessions)
      if (is_out(s) == outgoing && s.name == name) return &s;
    return nullptr;
  }
  bool uses(int object) const {
    for (const auto& [id, s] : sessions)
      for (const ModelFile& f : s.files)
        if (f.object == object) return true;
    return false;
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

  /// Does it, or does it and takes it back.
  template <class Do, class Then>
  void attempt(int expected, Do&& what, Then&& then) {
    Change change{*w_.arena};
    const bool partly = pick(4) == 0;
    const Change::Mark mark = change.mark();
    const int result = what(change);
    EXPECT_EQ(result, expected);
    if (partly) {
      change.back_to(mark);
      if (pick(2) == 0) {  // and again
        EXPECT_EQ(what(change), expected);
        change.commit();
        if (result == 0) then();
        return;
      }
    }
    if (!partly && pick(8) == 0) return;  // abandoned: undone
    change.commit();
    if (result == 0 && !partly) then();
  }

  void operation() {
    const std::uint64_t what = pick(100);
    if (what < 14) return create();
    if (what < 26) return retrieve_session();
    const auto chosen = any();
    if (chosen == model_.sessions.end()) return create();
    const SessionId id{chosen->first};
    ModelSession& s = chosen->second;
    if (what < 52) return preserve(id, s);
    if (what < 60) return unpreserve(id, s);
    if (what < 72) return retrieve(id, s);
    if (what < 76) return finish(id, s);
    if (what < 82) return close(id, s);
    if (what < 86) return renew(id, s);
    if (what < 90) return prepare_or_cancel(id, s);
    if (what < 97) return succession(id, s);
    cross();
  }

  std::map<std::uint64_t, ModelSession>::iterator any() {
    if (model_.sessions.empty()) return model_.sessions.end();
    return std::next(model_.sessions.begin(), static_cast<std::ptrdiff_t>(pick(model_.sessions.size())));
  }

  /// Attempts something that hands a pipe to the engine; closes it if it was not taken.
  template <class Do, class Then>
  void with_pipe(int expected, Do&& what, Then&& then) {
    Capability cap = capability();
    bool taken = false;
    attempt(
        expected, [&](Change& c) { return what(c, cap.holder); },
        [&] {
          taken = true;
          then(std::move(cap.client));
        });
    if (!taken) close_number(cap.holder.write_fd);
  }

  void create() {
    const std::string name = fmt::format("n{}", pick(8));
    SessionId id;
    with_pipe(
        model_.named(true, name) != nullptr ? EEXIST : 0,
        [&](Change& c, const Holder& h) {
          auto r = w_.engine->create_session(c, Name{name}, h, {}, 0);
          if (r) id = *r;
          return code(r);
        },
        [&](Fd client) {
          EXPECT_FALSE(model_.sessions.contains(id.raw()));
          model_.sessions[id.raw()] = {name, SessionState::Outgoing, {}};
          clients_[id.raw()] = std::move(client);
        });
  }
  void retrieve_session() {
    const std::string name = fmt::format("n{}", pick(8));
    const ModelSession* found = model_.named(false, name);
    const int expected = found == nullptr ? ENOENT : found->state == SessionState::Incoming ? 0 : EINVAL;
    SessionId id;
    with_pipe(
        expected,
        [&](Change& c, const Holder& h) {
          auto r = w_.engine->retrieve_session(c, Name{name}, h, {});
          if (r) id = *r;
          return code(r);
        },
        [&](Fd client) {
          model_.sessions.at(id.raw()).state = SessionState::Retrieved;
          model_.sessions.at(id.raw()).holder = true;
          clients_[id.raw()] = std::move(client);
        });
  }
  void preserve(SessionId id, ModelSession& s) {
    const std::uint64_t token = pick(12);
    const int object = static_cast<int>(pick(objects_.size()));
    const bool taken = std::ranges::find(s.files, token, &ModelFile::token) != s.files.end();
    const int expected = !Model::is_out(s)            ? EINVAL
                         : !Model::open_for_files(s)  ? EBUSY
                         : taken                      ? EEXIST
                         : model_.uses(object)        ? EBUSY
                                                      : 0;
    Fd fd = duplicate(objects_[static_cast<std::size_t>(object)]);
    attempt(
        expected, [&](Change& c) { return code(w_.engine->preserve(c, id, {Token{token}, fd.raw(), 0})); },
        [&] {
          s.files.push_back({token, object});
          (void)fd.release();
        });
  }
  /// Mostly one that is there.
  std::uint64_t some_token(const ModelSession& s) {
    return s.files.empty() || pick(5) == 0 ? pick(12) : s.files[pick(s.files.size())].token;
  }
  void unpreserve(SessionId id, ModelSession& s) {
    const std::uint64_t token = some_token(s);
    const auto file = std::ranges::find(s.files, token, &ModelFile::token);
    const int expected = !Model::is_out(s) ? EINVAL : !Model::open_for_files(s) ? EBUSY : file == s.files.end() ? ENOENT : 0;
    attempt(
        expected, [&](Change& c) { return code(w_.engine->unpreserve(c, id, Token{token})); },
        [&] { s.files.erase(file); });
  }
  void retrieve(SessionId id, ModelSession& s) {
    const std::uint64_t token = some_token(s);
    const auto file = std::ranges::find(s.files, token, &ModelFile::token);
    const Role role = pick(2) == 0 ? Role::Owner : Role::Successor;
    const bool may = s.state == SessionState::Retrieved || s.state == SessionState::Finished ||
                     (Model::is_out(s) && role == Role::Successor && s.successor);
    attempt(
        !may                    ? EINVAL
        : file == s.files.end() ? ENOENT
                                : 0,
        [&](Change& c) { return code(w_.engine->retrieve(c, id, role, Token{token})); }, [&] { file->status = 1; });
  }
  void finish(SessionId id, ModelSession& s) {
    const int expected = s.state == SessionState::Retrieved || s.state == SessionState::Finished ? 0 : EINVAL;
    attempt(
        expected, [&](Change& c) { return code(w_.engine->finish(c, id)); },
        [&] {
          s.state = SessionState::Finished;
          s.files.clear();
        });
  }
  void close(SessionId id, ModelSession& s) {
    const Role role = pick(3) == 0 ? Role::Successor : Role::Owner;
    attempt(
        0,
        [&](Change& c) {
          w_.engine->holder_closed(c, id, role);
          return 0;
        },
        [&] {
          bool& mine = role == Role::Owner ? s.holder : s.successor;
          const bool& other = role == Role::Owner ? s.successor : s.holder;
          if (!mine) return;
          mine = false;
          if (!Model::is_out(s) || !other) {
            model_.sessions.erase(id.raw());
          } else if (role == Role::Successor) {
            s.state = SessionState::Outgoing;
            forget_statuses(s);
          }
        });
  }
  static void forget_statuses(ModelSession& s) {
    for (ModelFile& f : s.files) f.status = 0;
  }
  void renew(SessionId id, ModelSession& s) {
    const Role role = pick(2) == 0 ? Role::Owner : Role::Successor;
    int expected = EINVAL;
    if (role == Role::Owner && s.state == SessionState::Retrieved)
      expected = model_.named(true, s.name) != nullptr ? EEXIST : 0;
    if (role == Role::Successor && s.successor && (s.state == SessionState::Frozen || !s.holder)) expected = 0;
    attempt(
        expected, [&](Change& c) { return code(w_.engine->renew(c, id, role)); },
        [&] {
          s.state = SessionState::Outgoing;
          forget_statuses(s);
          if (role == Role::Owner) return;
          s.holder = true;
          s.successor = false;
          clients_[id.raw()] = std::move(successors_[id.raw()]);
        });
  }
  void prepare_or_cancel(SessionId id, ModelSession& s) {
    if (pick(2) == 0) {
      attempt(
          s.state == SessionState::Outgoing ? 0 : EINVAL,
          [&](Change& c) { return code(w_.engine->begin_prepare(c, id)); }, [&] { s.state = SessionState::Preparing; });
    } else if (pick(2) == 0) {
      attempt(
          0,
          [&](Change& c) {
            w_.engine->cancel_prepare(c, id);
            return 0;
          },
          [&] {
            if (Model::is_out(s)) s.state = SessionState::Outgoing;
          });
    } else {
      attempt(
          Model::is_out(s) ? 0 : EINVAL,
          [&](Change& c) {
            const auto r = w_.engine->freeze_one(c, id);
            return r ? 0 : r.error().error.code;
          },
          [&] { s.state = SessionState::Frozen; });
    }
  }
  void succession(SessionId id, ModelSession& s) {
    with_pipe(
        !Model::is_out(s) ? EINVAL
        : s.successor     ? EBUSY
                          : 0,
        [&](Change& c, const Holder& h) { return code(w_.engine->add_successor(c, id, h, {})); },
        [&](Fd client) {
          s.successor = true;
          forget_statuses(s);
          successors_[id.raw()] = std::move(client);
        });
  }
  void cross() {
    EXPECT_TRUE(w_.engine->freeze_all().has_value());
    for (auto& [id, s] : model_.sessions)
      if (Model::is_out(s)) s.state = SessionState::Frozen;
    attempt(
        0, [&](Change& c) { return code(w_.engine->cross(c)); },
        [&] {
          ++model_.generation;
          std::erase_if(model_.sessions, [](const auto& entry) { return !Model::is_out(entry.second); });
          for (auto& [id, s] : model_.sessions) {
            s.state = SessionState::Incoming;
            s.holder = s.successor = false;
            forget_statuses(s);
          }
          if (pick(2) == 0) w_.engine->sweep();
        });
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
        struct stat mine {}, theirs {};
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
INSTANTIATE_TEST_SUITE_P(Engine, AgreesWithAModel, ::testing::Values(1, 2, 3, 4, 5, 6));

}  // namespace
}  // namespace luo::testing
