// Each kind of engine operation, killed at every instruction and every system call: the next worker finds
// all of it or nothing, and can go on.
#include <gtest/gtest.h>

#include <filesystem>
#include <iostream>
#include <optional>
#include <set>

#include "luo/engine_testing.h"
#include "support/in_child.h"
#include "support/kill_harness.h"

namespace luo::testing {
namespace {

/// What an engine knows, as text. Descriptors are shown by what they lead to: their numbers differ from
/// run to run.
Result<std::string> describe(const kho::Arena& arena, const Engine& engine) {
  LUO_TRY(engine.check());
  LUO_TRY(arena.check());
  std::string text = fmt::format("generation {}, {} sessions, {} files\n", engine.generation(), engine.session_count(),
                                 engine.file_count());
  engine.for_each_flb([&](const Engine::FlbView& f) {
    text += fmt::format("FLB {} {} {} {} {}\n", f.name, f.outgoing, f.outgoing_files, f.incoming, f.incoming_files);
  });
  std::string trouble;
  engine.for_each_session([&](const SessionView& s) {
    text += fmt::format("{} '{}' {} of uid {} since {}:", s.id.raw(), s.name, to_string(s.state), s.owner.uid,
                        s.created_ms);
    for (const Holder& holder : s.holder) {
      if (holder.write_fd >= 0 && !is_open(holder.write_fd))
        trouble = fmt::format("session {}: its holder is closed", s.name);
      text += fmt::format(" holder {} {} {}", holder.write_fd >= 0, holder.read_fd >= 0, holder.accepted);
    }
    text += '\n';
    engine.for_each_file(s.id, [&](const FileView& f) {
      struct stat st {};
      if (fstat(f.fd, &st) != 0 || st.st_ino != f.inode)
        trouble = fmt::format("token {}: its descriptor leads elsewhere", f.token.raw());
      text += fmt::format("  {} {} {} data {} {}\n", f.token.raw(), f.handler, f.retrieve_status, f.data[0], f.data[1]);
    });
  });
  if (!trouble.empty()) return fail(EBADMSG, "{}", trouble);
  // Blocks that nobody leads to would show here.
  text += fmt::format("{} blocks of {} bytes", arena.stats().blocks, arena.stats().used_bytes);
  return text;
}

class EngineCrash : public ::testing::Test {
 protected:
  ~EngineCrash() override { clean_up(); }

  /// A file to be preserved. What becomes of it depends on when the child dies, so clean_up() closes it.
  static int new_file() { return memfd().release(); }
  /// A session fd to be handed out; the client's end stays open until the next run.
  Holder new_holder(bool accepted = true) {
    Capability cap = capability(accepted);
    clients_.push_back(std::move(cap.client));
    return cap.holder;
  }

  /// `prepare` and `operate` get the world; `operate` runs in the child that is killed.
  void expect_all_or_nothing(const std::function<void(World&)>& prepare, const std::function<void(World&)>& operate,
                             std::function<bool(const std::string&)> also_right = {}) {
    const test::KillCase c{
        .set_up = [&]() -> Result<Fd> {
          clean_up();
          world_.emplace();
          prepare(*world_);
          if (HasFailure()) return fail(EINVAL, "set up");
          return Fd::adopt(fcntl(world_->arena->fd().raw, F_DUPFD_CLOEXEC, 0));
        },
        .operate =
            [&] {
              operate(*world_);
              if (HasFailure()) ::_exit(3);
            },
        .recover = [&](Fd memfd) { return test::in_child([&] { return recover(std::move(memfd)); }); },
        .also_right = std::move(also_right)};
    const auto calls = test::kill_at_every_syscall(c);
    ASSERT_TRUE(calls.has_value()) << to_string(calls.error());
    if (!test::kStepsInstructions) {
      std::cout << calls->points << " system call stops; not at every instruction, because of the sanitizer\n";
      return;
    }
    const auto steps = test::kill_at_every_instruction(c, 2);
    ASSERT_TRUE(steps.has_value()) << to_string(steps.error());
    std::cout << calls->points << " system call stops, " << steps->points << " instructions, " << steps->recovered
              << " states recovered, " << steps->finished << " of them after\n";
  }

 private:
  /// As the next worker does, in a child: the engine may close descriptors there.
  Result<std::string> recover(Fd memfd) {
    kho::Arena arena = LUO_TRY(kho::Arena::open(std::move(memfd), Engine::kLayout));
    Engine engine = LUO_TRY(Engine::open(arena, world_->registry, pipe_is_closed));
    engine.settle_flbs();
    std::string text = LUO_TRY(describe(arena, engine));
    // And it can be worked with.
    const Capability cap = capability();
    Change change{arena};
    const SessionId id = LUO_TRY(engine.create_session(change, Name{"afterwards"}, cap.holder, {}, 1));
    const Fd file = testing::memfd();
    LUO_TRY(engine.preserve(change, id, {Token{1}, file.raw(), 0}));
    change.commit();
    LUO_TRY(engine.check());
    LUO_TRY(arena.check());
    return text;
  }

  static std::set<int> open_descriptors() {
    std::set<int> all;
    for (const auto& entry : std::filesystem::directory_iterator{"/proc/self/fd"}) {
      const int fd = std::stoi(entry.path().filename());
      all.insert(fd);
    }
    std::erase_if(all, [](int fd) { return !is_open(fd); });  // the listing's own
    return all;
  }
  /// The child wrote into the arena that our world's engine uses too, so the world cannot know any more
  /// which descriptors are its own: all that were opened since the beginning go.
  void clean_up() {
    clients_.clear();
    if (world_) world_->engine.reset();
    world_.reset();
    for (const int fd : open_descriptors())
      if (!at_first_.contains(fd)) close_number(fd);
  }

  std::set<int> at_first_ = open_descriptors();
  std::vector<Fd> clients_;
  std::optional<World> world_;
};

constexpr SessionId kFirst{1};

Result<> preserve_after(World& w, std::uint64_t token, std::vector<std::uint64_t> after, int fd) {
  return w.step(
      [&](Change& c) { return w.engine->preserve(c, kFirst, {.token = Token{token}, .fd = fd, .after = after}); });
}
void make_held(World& w) {
  const SessionId id = w.create("vm");
  EXPECT_TRUE(w.step([&](Change& c) { return w.engine->set_hold(c, id, Hold::User, ""); }).has_value());
  for (std::uint64_t token : {1, 2}) w.preserve(id, token);
}

/// One session that came over the update with three files.
void make_incoming(World& w) {
  const SessionId id = w.create("vm");
  for (std::uint64_t token : {1, 2, 3}) w.preserve(id, token);
  w.cross();
  w.engine->sweep();
}
void make_retrieved(World& w, bool accepted = true) {
  make_incoming(w);
  w.retrieve_session("vm", accepted);
}
template <class Do>
void must(World& w, Do&& what) {
  Change change{*w.arena};
  if (!what(change)) ::_exit(4);
  change.commit();
}

TEST_F(EngineCrash, FirstOpen) {
  expect_all_or_nothing(
      [](World& w) {
        w.engine.reset();
        w.arena.emplace(kho::Arena::create({.name = "fresh", .layout = Engine::kLayout, .max_size = 64_MiB}).value());
      },
      [](World& w) { w.open(); });
}

TEST_F(EngineCrash, Create) {
  Holder holder;
  expect_all_or_nothing(
      [&](World& w) {
        w.create("other");
        holder = new_holder();
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->create_session(c, Name{"vm"}, holder, {1, 2}, 3).has_value(); });
      });
}

TEST_F(EngineCrash, CreateAfterTheLastCloseOfOneOfThatName) {
  Holder holder;
  expect_all_or_nothing(
      [&](World& w) {
        const SessionId id = w.create("vm");
        w.preserve(id, 1);
        w.clients.clear();
        holder = new_holder();
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->create_session(c, Name{"vm"}, holder, {1, 2}, 3).has_value(); });
      });
}

TEST_F(EngineCrash, RetrieveSession) {
  Holder holder;
  expect_all_or_nothing(
      [&](World& w) {
        make_incoming(w);
        holder = new_holder(false);
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->retrieve_session(c, Name{"vm"}, holder, {2, 3}).has_value(); });
      });
}

TEST_F(EngineCrash, Accept) {
  expect_all_or_nothing(
      [](World& w) { make_retrieved(w, false); },
      [](World& w) { must(w, [&](Change& c) { return w.engine->accept(c, kFirst, Role::Owner).has_value(); }); });
}

TEST_F(EngineCrash, Preserve) {
  int file = -1;
  expect_all_or_nothing(
      [&](World& w) {
        w.preserve(w.create("vm"), 1);
        file = new_file();
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->preserve(c, kFirst, {Token{2}, file, 0}).has_value(); });
      });
}

TEST_F(EngineCrash, PreserveThatMakesTheTablesGrow) {
  std::uint64_t grows_at = 0;  // which file is the first that does not fit: found, not assumed
  {
    World scout;
    const SessionId id = scout.create("vm");
    for (std::uint64_t used = 0, grown = 0; grown < 1000; grown = scout.arena->stats().used_bytes - used) {
      used = scout.arena->stats().used_bytes;
      scout.preserve(id, ++grows_at);
      ASSERT_LT(grows_at, 1000U);
    }
  }
  ASSERT_GT(grows_at, 2U);
  int file = -1;
  expect_all_or_nothing(
      [&](World& w) {
        const SessionId id = w.create("vm");
        for (std::uint64_t token = 1; token < grows_at; ++token) w.preserve(id, token);
        file = new_file();
      },
      [&](World& w) {
        const std::uint64_t used = w.arena->stats().used_bytes;
        must(w, [&](Change& c) { return w.engine->preserve(c, kFirst, {Token{grows_at}, file, 0}).has_value(); });
        if (w.arena->stats().used_bytes < used + 200) ::_exit(5);
      });
}

TEST_F(EngineCrash, PreserveOfSeveralInOneStepWithOneRefused) {
  int files[3] = {};
  expect_all_or_nothing(
      [&](World& w) {
        w.preserve(w.create("vm"), 1);
        for (int& file : files) file = new_file();
      },
      [&](World& w) {
        must(w, [&](Change& c) {
          return w.engine->preserve(c, kFirst, {Token{2}, files[0], 0}).has_value() &&
                 !w.engine->preserve(c, kFirst, {Token{1}, files[1], 0}).has_value() &&
                 w.engine->preserve(c, kFirst, {Token{3}, files[2], 0}).has_value();
        });
      });
}

TEST_F(EngineCrash, Unpreserve) {
  expect_all_or_nothing(
      [](World& w) {
        const SessionId id = w.create("vm");
        for (std::uint64_t token : {1, 2, 3}) w.preserve(id, token);
      },
      [](World& w) { must(w, [&](Change& c) { return w.engine->unpreserve(c, kFirst, Token{2}).has_value(); }); });
}

TEST_F(EngineCrash, RetrieveFile) {
  expect_all_or_nothing(
      [](World& w) { make_retrieved(w); },
      [](World& w) {
        must(w, [&](Change& c) { return w.engine->retrieve(c, kFirst, Role::Owner, Token{2}).has_value(); });
      });
}

TEST_F(EngineCrash, RetrieveFileThatFails) {
  expect_all_or_nothing(
      [](World& w) {
        make_retrieved(w);
        w.fake.errors["retrieve 2"] = EIO;
      },
      [](World& w) {
        must(w, [&](Change& c) { return code(w.engine->retrieve(c, kFirst, Role::Owner, Token{2})) == EIO; });
      });
}

TEST_F(EngineCrash, Finish) {
  expect_all_or_nothing([](World& w) { make_retrieved(w); },
                        [](World& w) { must(w, [&](Change& c) { return w.engine->finish(c, kFirst).has_value(); }); });
}

TEST_F(EngineCrash, RenewOfARetrievedSession) {
  expect_all_or_nothing(
      [](World& w) { make_retrieved(w); },
      [](World& w) { must(w, [&](Change& c) { return w.engine->renew(c, kFirst, Role::Owner).has_value(); }); });
}

TEST_F(EngineCrash, CloseOfAnOutgoingSession) {
  expect_all_or_nothing(
      [](World& w) {
        const SessionId id = w.create("vm");
        for (std::uint64_t token : {1, 2, 3}) w.preserve(id, token);
        w.clients.clear();
      },
      [](World& w) { w.closed(kFirst); });
}

TEST_F(EngineCrash, CloseOfARetrievedSession) {
  expect_all_or_nothing(
      [](World& w) {
        make_retrieved(w);
        w.clients.clear();
      },
      [](World& w) { w.closed(kFirst); });
}

TEST_F(EngineCrash, CloseOfASessionThatWasNotAccepted) {
  expect_all_or_nothing(
      [](World& w) {
        make_retrieved(w, false);
        w.clients.clear();
      },
      [](World& w) { w.closed(kFirst); });
}

TEST_F(EngineCrash, PrepareAndCancel) {
  expect_all_or_nothing(
      [](World& w) { w.preserve(w.create("vm"), 1); },
      [](World& w) { must(w, [&](Change& c) { return w.engine->begin_prepare(c, kFirst).has_value(); }); });
  expect_all_or_nothing(
      [](World& w) {
        w.preserve(w.create("vm"), 1);
        must(w, [&](Change& c) { return w.engine->freeze_one(c, kFirst).has_value(); });
      },
      [](World& w) {
        must(w, [&](Change& c) {
          w.engine->cancel_prepare(c, kFirst);
          return true;
        });
      });
}

TEST_F(EngineCrash, FreezeOne) {
  expect_all_or_nothing(
      [](World& w) {
        const SessionId id = w.create("vm");
        for (std::uint64_t token : {1, 2, 3}) w.preserve(id, token);
      },
      [](World& w) { must(w, [&](Change& c) { return w.engine->freeze_one(c, kFirst).has_value(); }); });
}

TEST_F(EngineCrash, FreezeAllGoesSessionBySession) {
  expect_all_or_nothing(
      [](World& w) {
        w.preserve(w.create("a"), 1);
        w.preserve(w.create("b"), 2);
      },
      [](World& w) {
        if (!w.engine->freeze_all().has_value()) ::_exit(4);
      },
      [](const std::string& state) {  // in this order, and only whole sessions
        return state.find("'a' frozen") != std::string::npos && state.find("'b' outgoing") != std::string::npos;
      });
}

TEST_F(EngineCrash, CrossWithAnUnclaimedSessionOnTheOtherSide) {
  expect_all_or_nothing(
      [](World& w) {
        make_incoming(w);
        w.preserve(w.create("next"), 4);
        if (!w.engine->freeze_all().has_value()) ::_exit(4);
        w.clients.clear();
      },
      [](World& w) {
        must(w, [&](Change& c) { return w.engine->cross(c).has_value(); });
        w.engine->sweep();
      });
}

TEST_F(EngineCrash, AddASuccessor) {
  Holder holder;
  expect_all_or_nothing(
      [&](World& w) {
        w.preserve(w.create("vm"), 1);
        holder = new_holder(false);
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->add_successor(c, kFirst, holder, {3, 4}).has_value(); });
      });
}

/// A session whose successor is ready to take over.
class EngineCrashSuccessor : public EngineCrash {
 protected:
  void make_successor(World& w) {
    w.preserve(w.create("vm"), 1);
    const Holder holder = new_holder();
    must(w, [&](Change& c) { return w.engine->add_successor(c, kFirst, holder, {3, 4}).has_value(); });
    must(w, [&](Change& c) { return w.engine->freeze_one(c, kFirst).has_value(); });
  }
};

TEST_F(EngineCrashSuccessor, TakesOver) {
  expect_all_or_nothing(
      [&](World& w) { make_successor(w); },
      [](World& w) { must(w, [&](Change& c) { return w.engine->renew(c, kFirst, Role::Successor).has_value(); }); });
}

TEST_F(EngineCrashSuccessor, IsAbandoned) {
  expect_all_or_nothing([&](World& w) { make_successor(w); },
                        [](World& w) {
                          must(w, [&](Change& c) {
                            w.engine->abandon_successor(c, kFirst);
                            return true;
                          });
                        });
}

TEST_F(EngineCrashSuccessor, LivesOnWhenTheOwnerDies) {
  expect_all_or_nothing(
      [&](World& w) {
        make_successor(w);
        w.clients.clear();
      },
      [](World& w) { w.closed(kFirst); });
}

// --- what version 2 of the records brought ------------------------------------------------------------

TEST_F(EngineCrash, SetHold) {
  expect_all_or_nothing(
      [](World& w) { w.preserve(w.create("vm"), 1); },
      [](World& w) {
        must(w, [&](Change& c) { return w.engine->set_hold(c, kFirst, Hold::Executable, "/usr/bin/vmm").has_value(); });
      });
}

TEST_F(EngineCrash, SetCarry) {
  expect_all_or_nothing(
      [](World& w) { w.preserve(w.create("vm"), 1); },
      [](World& w) {
        must(w, [&](Change& c) { return w.engine->set_carry(c, kFirst, kCarryTransient, kCarryGrow).has_value(); });
      });
}

TEST_F(EngineCrash, TheHolderOfAHeldSessionCloses) {
  expect_all_or_nothing(
      [](World& w) {
        make_held(w);
        EXPECT_TRUE(w.step([&](Change& c) { return w.engine->owner_prepare(c, kFirst); }).has_value());
        EXPECT_TRUE(w.step([&](Change& c) { return w.engine->owner_freeze(c, kFirst).has_value(); }));
      },
      [](World& w) {
        must(w, [&](Change& c) {
          w.engine->holder_closed(c, kFirst, Role::Owner);
          return true;
        });
      });
}

TEST_F(EngineCrash, RetrieveAHeldSessionWhoseHolderIsDead) {
  Holder holder;
  expect_all_or_nothing(
      [&](World& w) {
        make_held(w);
        w.clients.clear();
        holder = new_holder(false);
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->retrieve_session(c, Name{"vm"}, holder, {2, 3}).has_value(); });
      });
}

TEST_F(EngineCrash, Drop) {
  expect_all_or_nothing(
      [](World& w) {
        make_held(w);
        w.clients.clear();
        w.closed(kFirst);
      },
      [](World& w) { must(w, [&](Change& c) { return w.engine->drop(c, kFirst).has_value(); }); });
}

TEST_F(EngineCrash, SweepThatKeepsAHeldSession) {
  expect_all_or_nothing(
      [](World& w) {
        make_held(w);
        w.preserve(w.create("plain"), 9);
        w.cross();
        w.engine->sweep();
        ASSERT_TRUE(w.engine->freeze_all().has_value());
        ASSERT_TRUE(w.step([&](Change& c) { return w.engine->cross(c); }).has_value());
      },
      [](World& w) { w.engine->sweep(); },
      // Each step of the sweep is one of its own; whoever opens the arena goes on with it.
      [](const std::string& state) { return state.find("'vm' incoming") != std::string::npos; });
}

TEST_F(EngineCrash, OwnerPreparesFreezesCancels) {
  for (int steps = 0; steps < 3; ++steps) {
    SCOPED_TRACE(steps);
    const auto step = [](World& w, int n) {
      must(w, [&](Change& c) {
        if (n == 0) return w.engine->owner_prepare(c, kFirst).has_value();
        if (n == 1) return w.engine->owner_freeze(c, kFirst).has_value();
        return w.engine->owner_cancel(c, kFirst).has_value();
      });
    };
    expect_all_or_nothing(
        [&](World& w) {
          for (std::uint64_t token : {1, 2}) w.preserve(w.engine->find(kFirst) ? kFirst : w.create("vm"), token);
          for (int n = 0; n < steps; ++n) step(w, n);
        },
        [&](World& w) { step(w, steps); });
  }
}

TEST_F(EngineCrash, PreserveOfAFileThatDependsOnOthers) {
  int file = -1;
  expect_all_or_nothing(
      [&](World& w) {
        const SessionId id = w.create("vm");
        for (std::uint64_t token : {1, 2}) w.preserve(id, token);
        file = new_file();
      },
      [&](World& w) {
        if (!preserve_after(w, 3, {1, 2}, file)) ::_exit(4);
      });
}

TEST_F(EngineCrash, UnpreserveOfAFileThatDependsOnOthers) {
  expect_all_or_nothing(
      [&](World& w) {
        const SessionId id = w.create("vm");
        for (std::uint64_t token : {1, 2}) w.preserve(id, token);
        EXPECT_TRUE(preserve_after(w, 3, {2}, new_file()).has_value());
        EXPECT_TRUE(preserve_after(w, 4, {2, 1}, new_file()).has_value());
      },
      [](World& w) { must(w, [&](Change& c) { return w.engine->unpreserve(c, kFirst, Token{4}).has_value(); }); });
}

TEST_F(EngineCrash, TheVersionBeforeIsWrittenAndTakenOver) {
  const auto make = [](World& w) {
    make_incoming(w);
    w.preserve(w.create("out"), 1);
  };
  expect_all_or_nothing(
      make, [](World& w) { must(w, [&](Change& c) { return w.engine->write_version_before(c).has_value(); }); });
  expect_all_or_nothing(
      [&](World& w) {
        make(w);
        must(w, [&](Change& c) { return w.engine->write_version_before(c).has_value(); });
        w.engine.reset();
      },
      [](World& w) { w.open(); });
}

// --- FLBs -----------------------------------------------------------------------------------------------

class FlbCrash : public EngineCrash {
 protected:
  void tie(World& w) {
    for (FakeFlb* flb : {&a_, &b_}) EXPECT_TRUE(w.registry.add_flb(w.fake, *flb).has_value());
    w.reopen();
  }
  Calls calls_;
  FakeFlb a_{"a", calls_}, b_{"b", calls_};
};

TEST_F(FlbCrash, PreserveOfTheFirstFile) {
  int file = -1;
  expect_all_or_nothing(
      [&](World& w) {
        tie(w);
        w.create("vm");
        file = new_file();
      },
      [&](World& w) {
        must(w, [&](Change& c) { return w.engine->preserve(c, kFirst, {Token{2}, file, 0}).has_value(); });
      });
}

TEST_F(FlbCrash, CloseOfTheLastFile) {
  expect_all_or_nothing(
      [&](World& w) {
        tie(w);
        const SessionId id = w.create("vm");
        for (std::uint64_t token : {1, 2}) w.preserve(id, token);
      },
      [](World& w) {
        must(w, [&](Change& c) {
          w.engine->holder_closed(c, kFirst, Role::Owner);
          return true;
        });
      });
}

TEST_F(FlbCrash, Cross) {
  expect_all_or_nothing(
      [&](World& w) {
        tie(w);
        make_incoming(w);
        w.preserve(w.create("next"), 7);
        EXPECT_TRUE(w.engine->freeze_all().has_value());
      },
      [](World& w) { must(w, [&](Change& c) { return w.engine->cross(c).has_value(); }); });
}

TEST_F(FlbCrash, FinishAndRenew) {
  for (const bool renew : {false, true})
    expect_all_or_nothing(
        [&](World& w) {
          tie(w);
          make_retrieved(w);
        },
        [&](World& w) {
          must(w, [&](Change& c) {
            return renew ? w.engine->renew(c, kFirst, Role::Owner).has_value()
                         : w.engine->finish(c, kFirst).has_value();
          });
        });
}

TEST_F(FlbCrash, Settle) {
  expect_all_or_nothing(
      [&](World& w) {
        tie(w);
        w.preserve(w.create("vm"), 1);
        EXPECT_TRUE(w.engine->get_outgoing(a_).has_value());
        EXPECT_TRUE(w.unpreserve(kFirst, 1).has_value());
        w.engine->put_outgoing(a_);
      },
      [](World& w) { w.engine->settle_flbs(); });
}

}  // namespace
}  // namespace luo::testing
