// Records that come from another system: an image of one engine's arena, read in as if another kernel ran. Both systems
// are this process, so that what the first has open under the numbers in the image is there to be closed by mistake.
#include <gmock/gmock.h>
#include <sys/eventfd.h>

#include "kho/image.h"
#include "luo/engine_testing.h"
#include "luo/records.h"

namespace luo::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kFirstNumber = 3000;  ///< what is brought has numbers that nothing in the image has

/// One system: three kinds of files, of which one shares state.
struct System {
  explicit System(Bytes arena_size = 64_MiB) : w{{&files, &shared, &events}, arena_size} {
    files.wants = [](const FileInfo& f) { return S_ISREG(f.st.st_mode) && f.st.st_size % 2 == 0; };
    shared.wants = [](const FileInfo& f) { return S_ISREG(f.st.st_mode) && f.st.st_size % 2 == 1; };
    events.wants = [](const FileInfo& f) { return !S_ISREG(f.st.st_mode); };
    events.identify = [](const FileInfo& f) { return Identity{f.st.st_dev, f.st.st_ino, true}; };
    EXPECT_TRUE(w.registry.add_flb(shared, flb).has_value());
    w.reopen();
  }
  Calls calls;
  FakeHandler files{"files-v1", calls}, shared{"shared-v1", calls}, events{"events-v1", calls};
  FakeFlb flb{"flb", calls};
  World w;
};

Fd event() { return Fd::adopt(eventfd(0, EFD_CLOEXEC)); }
Fd odd_memfd() {
  Fd fd = memfd();
  EXPECT_EQ(ftruncate(fd.raw(), 1), 0);
  return fd;
}
int renumbered(Fd fd) { return fcntl(fd.raw(), F_DUPFD_CLOEXEC, kFirstNumber); }

Result<> preserve_after(World& w, SessionId id, std::uint64_t token, std::vector<std::uint64_t> after) {
  Fd fd = memfd();
  auto result = w.step(
      [&](Change& c) { return w.engine->preserve(c, id, {.token = Token{token}, .fd = fd.raw(), .after = after}); });
  if (result) (void)fd.release();
  return result;
}
Result<> hold(World& w, SessionId id, Hold how = Hold::User, std::string_view who = "") {
  return w.step([&](Change& c) { return w.engine->set_hold(c, id, how, who); });
}
Result<> renew(World& w, SessionId id) {
  return w.step([&](Change& c) { return w.engine->renew(c, id, Role::Owner); });
}
SessionId incoming(World& w, std::string_view name) {
  const auto id = w.engine->find_incoming(name);
  EXPECT_TRUE(id.has_value()) << name;
  return id.value_or(SessionId{});
}
FileView file(World& w, SessionId id, std::uint64_t token) {
  FileView found{};
  w.engine->for_each_file(id, [&](const FileView& f) {
    if (f.token == Token{token}) found = f;
  });
  EXPECT_EQ(found.token, Token{token});
  return found;
}
Engine::FlbView shared_state(World& w) {
  Engine::FlbView view{};
  w.engine->for_each_flb([&](const Engine::FlbView& f) { view = f; });
  return view;
}

class Arrivals : public ::testing::Test {
 protected:
  /// What is brought by default: another file of the same kind for each, as from another kernel.
  Engine::Arrival another(const SessionView& session, const FileView& f) {
    brought.push_back(fmt::format("{} {}", session.name, f.token.raw()));
    EXPECT_EQ(f.fd, -1) << "no number of the other system is shown";
    Fd fd = f.handler == "events-v1" ? event() : f.handler == "shared-v1" ? odd_memfd() : memfd();
    return {.fd = renumbered(std::move(fd)), .data = {f.data[0], f.data[1], 7, 7}};
  }
  /// Freezes `there`, and has its image arrive `here`.
  Result<> cross(const Engine::Bring& bring) {
    const auto frozen = there.w.engine->freeze_all();
    EXPECT_TRUE(frozen.has_value());
    image = memfd();
    EXPECT_TRUE(kho::write_image(*there.w.arena, image));
    return arrive(bring);
  }
  Result<> arrive(const Engine::Bring& bring) {
    here.w.engine.reset();
    here.w.arena.emplace(kho::populate(image, Engine::kLayout, "arrived").value());
    here.w.engine.emplace(Engine::open(*here.w.arena, here.w.registry, pipe_is_closed, Engine::Take::Later).value());
    here.w.take_calls();
    brought.clear();
    auto result = here.w.engine->arrive(bring);
    if (result) here.w.engine->settle_flbs();
    return result;
  }
  Engine::Bring bring_all() {
    return [this](const SessionView& s, const FileView& f) { return another(s, f); };
  }
  static std::pair<dev_t, ino_t> inode_of(int fd) {
    struct stat st {};
    return fstat(fd, &st) == 0 ? std::pair{st.st_dev, st.st_ino} : std::pair<dev_t, ino_t>{};
  }
  /// Every number that the image names is what it was, and nothing here has one of them.
  void expect_nothing_closed() {
    for (const auto& [fd, inode] : in_image) EXPECT_EQ(inode_of(fd), inode) << fd;
    for (const int fd : here.w.fds()) EXPECT_FALSE(in_image.contains(fd)) << fd;
  }

  System there, here;
  Fd image;
  std::map<int, std::pair<dev_t, ino_t>> in_image;  ///< descriptors
  std::vector<std::string> brought;
};

/// No descriptor is free now: that is no reason to take a file for lost.
TEST_F(Arrivals, WhatCanBeHadLaterMakesAllOfItComeLater) {
  const SessionId vm = there.w.create("vm");
  for (const std::uint64_t token : {1, 2, 3}) there.w.preserve(vm, token);
  const auto refused = cross([this](const SessionView& s, const FileView& f) -> Engine::Arrival {
    if (f.token == Token{2}) return {.error = EMFILE, .later = true};
    return another(s, f);
  });
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, EMFILE);
  EXPECT_EQ(brought.size(), 1U);
  ASSERT_TRUE(arrive(bring_all()).has_value());
  EXPECT_EQ(brought.size(), 3U);
  const auto here_id = here.w.engine->find_incoming("vm");
  ASSERT_TRUE(here_id.has_value());
  for (const std::uint64_t token : {1, 2, 3}) EXPECT_GE(file(here.w, *here_id, token).fd, 0) << token;
}

TEST_F(Arrivals, SessionsThatWereFrozenAreIncomingWithTheirFiles) {
  const SessionId vm = there.w.create("vm");
  there.w.preserve(vm, 1);
  there.w.preserve(vm, 2, event());
  there.w.preserve(vm, 3, odd_memfd());
  ASSERT_TRUE(preserve_after(there.w, vm, 4, {1, 2}).has_value());
  ASSERT_TRUE(there.w.step([&](Change& c) { return there.w.engine->set_carry(c, vm, kCarryGrow, 0); }).has_value());
  const SessionId db = there.w.create("db");
  there.w.preserve(db, 1, event());
  Capability successor = capability();
  ASSERT_TRUE(there.w.step([&](Change& c) {
    return there.w.engine->add_successor(c, db, successor.holder, {3, 300});
  }));
  const auto generation = there.w.engine->generation();

  const auto arrived = cross(bring_all());
  ASSERT_TRUE(arrived.has_value()) << to_string(arrived.error());
  EXPECT_THAT(brought, ElementsAre("vm 1", "vm 2", "vm 3", "vm 4", "db 1")) << "each once, in order";
  here.w.expect_sound();
  expect_nothing_closed();
  EXPECT_EQ(here.w.engine->generation(), generation + 1);
  EXPECT_EQ(here.w.engine->incoming_count(), 2U);
  EXPECT_EQ(here.w.engine->session_count(), 2U);
  EXPECT_EQ(here.w.engine->file_count(), 5U);
  for (const SessionId id : {vm, db}) {
    const auto view = here.w.engine->find(id);
    ASSERT_TRUE(view.has_value());
    EXPECT_EQ(view->state, SessionState::Incoming);
    EXPECT_EQ(view->owner.pid, 100) << "who it was is shown";
    for (const Holder& holder : view->holder) {
      EXPECT_EQ(holder.write_fd, -1);
      EXPECT_EQ(holder.inode, 0U);
    }
  }
  EXPECT_EQ(here.w.engine->carry_of(vm), kCarryGrow);
  EXPECT_THAT(here.w.engine->depends_on(vm, Token{4}), ElementsAre(Token{1}, Token{2}));
  EXPECT_EQ(file(here.w, vm, 2).data, (HandlerData{2, 2, 7, 7})) << "frozen there, replaced by what was brought";
  EXPECT_EQ(shared_state(here.w).incoming_files, 1U);
  EXPECT_EQ(shared_state(here.w).outgoing_files, 0U);

  here.w.reopen();
  here.w.expect_sound();
  EXPECT_EQ(here.w.retrieve_session("vm"), vm);
  for (std::uint64_t token = 1; token <= 4; ++token) {
    const auto fd = here.w.retrieve(vm, token);
    ASSERT_TRUE(fd.has_value()) << to_string(fd.error());
    EXPECT_TRUE(is_open(*fd));
  }
  EXPECT_TRUE(here.w.finish(vm).has_value());
  here.w.engine->settle_flbs();
  EXPECT_FALSE(shared_state(here.w).incoming);
  here.w.expect_sound();
  expect_nothing_closed();
  ::close(successor.holder.write_fd);
}

TEST_F(Arrivals, APipeOfTheOtherSystemSaysNothingHere) {
  Capability old = capability();
  ASSERT_TRUE(there.w.try_create("vm", old.holder).has_value());
  ASSERT_TRUE(cross(bring_all()).has_value());
  EXPECT_FALSE(here.w.engine->find_by_inode(old.holder.inode).has_value());
  // Inode numbers begin anew with each kernel.
  Capability fresh = capability();
  const Holder same_number{fresh.holder.write_fd, -1, old.holder.inode, true, PeerId{2}};
  const auto id = here.w.try_create("other", same_number);
  ASSERT_TRUE(id.has_value());
  const auto hit = here.w.engine->find_by_inode(old.holder.inode);
  ASSERT_TRUE(hit.has_value());
  EXPECT_EQ(hit->id, *id);
  here.w.expect_sound();
}

TEST_F(Arrivals, WhichFileIsWhichIsToldByThoseOfThisSystem) {
  const SessionId vm = there.w.create("vm");
  const Fd plain_before = memfd(), event_before = event();
  there.w.preserve(vm, 1, duplicate(plain_before));
  for (std::uint64_t token = 2; token < 40; ++token) there.w.preserve(vm, token, event());
  there.w.preserve(vm, 40, duplicate(event_before));
  ASSERT_TRUE(cross(bring_all()).has_value());
  here.w.expect_sound();
  const SessionId other = here.w.create("other");
  here.w.preserve(other, 100, duplicate(plain_before));
  here.w.preserve(other, 101, duplicate(event_before));
  for (std::uint64_t token = 1; token <= 40; ++token) {
    const Fd same = Fd::adopt(fcntl(file(here.w, vm, token).fd, F_DUPFD_CLOEXEC, 0));
    EXPECT_EQ(code(here.w.try_preserve(other, 1, duplicate(same))), EBUSY) << token;
  }
  here.w.expect_sound();
  here.w.retrieve_session("vm");
  EXPECT_TRUE(here.w.finish(vm).has_value());
  here.w.expect_sound();
  here.w.closed(vm);
  here.w.closed(other);
  here.w.expect_sound();
  EXPECT_EQ(here.w.engine->file_count(), 0U);
  expect_nothing_closed();
}

TEST_F(Arrivals, WhyAFileWasLostIsRememberedForWhoAsks) {
  const SessionId vm = there.w.create("vm");
  for (std::uint64_t token = 1; token <= 5; ++token) there.w.preserve(vm, token, token == 4 ? odd_memfd() : memfd());
  ASSERT_TRUE(preserve_after(there.w, vm, 6, {2}).has_value());
  ASSERT_TRUE(cross([&](const SessionView& s, const FileView& f) -> Engine::Arrival {
    if (f.token == Token{2}) return {.error = ENOMEM};
    if (f.token == Token{3}) return {};  // not a word about it
    if (f.token == Token{4}) return {.error = ESTALE};
    return another(s, f);
  }));
  here.w.expect_sound();
  for (int again = 0; again < 2; ++again) {
    EXPECT_THAT(here.w.tokens(vm), ElementsAre(1, 2, 3, 4, 5, 6)) << "lost, not forgotten";
    EXPECT_EQ(file(here.w, vm, 2).retrieve_status, -ENOMEM);
    EXPECT_EQ(file(here.w, vm, 2).fd, -1);
    EXPECT_EQ(shared_state(here.w).incoming_files, 1U);
    here.w.retrieve_session("vm", again == 1);
    for (int twice = 0; twice < 2; ++twice) {
      const auto lost = here.w.retrieve(vm, 2);
      EXPECT_EQ(code(lost), ENOMEM);
      EXPECT_THAT(to_string(lost.error()), HasSubstr("token 2"));
      EXPECT_EQ(code(here.w.retrieve(vm, 3)), EIO);
      EXPECT_EQ(code(here.w.retrieve(vm, 4)), ESTALE);
      EXPECT_TRUE(here.w.retrieve(vm, 5).has_value());
    }
    if (again == 0) here.w.closed(vm);  // it was never accepted: the next one gets the same answers
    here.w.reopen();
    here.w.expect_sound();
  }
  EXPECT_THAT(here.w.take_calls(), ::testing::Not(::testing::Contains("retrieve 2")));
  EXPECT_TRUE(here.w.finish(vm).has_value());
  here.w.expect_sound();
  expect_nothing_closed();
}

TEST_F(Arrivals, WhatWasLeftBehindIsNotThereUnlessOthersNeedIt) {
  const SessionId vm = there.w.create("vm");
  there.w.preserve(vm, 1);
  there.w.preserve(vm, 2, odd_memfd());
  there.w.preserve(vm, 3);
  ASSERT_TRUE(preserve_after(there.w, vm, 4, {3}).has_value());
  there.w.preserve(vm, 5);
  ASSERT_TRUE(preserve_after(there.w, vm, 6, {5}).has_value());
  ASSERT_TRUE(preserve_after(there.w, vm, 7, {6}).has_value());
  there.w.preserve(vm, 8, event());
  const SessionId all = there.w.create("all of it");
  there.w.preserve(all, 1);
  ASSERT_TRUE(cross([&](const SessionView& s, const FileView& f) -> Engine::Arrival {
    const bool stays = s.id == vm && (f.token == Token{1} || f.token == Token{4} || f.token == Token{8});
    return stays ? another(s, f) : Engine::Arrival{.gone = true};
  }));
  here.w.expect_sound();
  EXPECT_THAT(here.w.tokens(vm), ElementsAre(1, 3, 4, 8)) << "5, 6, 7 need each other only";
  EXPECT_THAT(here.w.tokens(all), IsEmpty());
  EXPECT_EQ(here.w.engine->file_count(), 4U);
  EXPECT_EQ(shared_state(here.w).incoming_files, 0U);
  EXPECT_FALSE(shared_state(here.w).incoming) << "its only file is gone";
  EXPECT_EQ(here.w.retrieve_session("all of it"), all) << "the session itself crossed";
  here.w.retrieve_session("vm");
  EXPECT_EQ(code(here.w.retrieve(vm, 3)), EOPNOTSUPP);
  EXPECT_EQ(code(here.w.retrieve(vm, 5)), ENOENT);
  EXPECT_TRUE(here.w.retrieve(vm, 4).has_value());
  EXPECT_TRUE(renew(here.w, vm).has_value());
  EXPECT_EQ(code(here.w.unpreserve(vm, 3)), EBUSY);
  EXPECT_TRUE(here.w.unpreserve(vm, 4).has_value());
  EXPECT_TRUE(here.w.unpreserve(vm, 3).has_value());
  here.w.preserve(vm, 3);
  here.w.expect_sound();
  expect_nothing_closed();
}

/// Unclaimed, held, and dropped ones that the crossing before has left to be swept.
class OlderArrivals : public Arrivals {
 protected:
  OlderArrivals() {
    World& w = there.w;
    w.preserve(w.create("dropped"), 1);
    w.cross();
    EXPECT_FALSE(w.engine->find_incoming("unclaimed").has_value());
    w.preserve(w.create("unclaimed"), 1, event());
    held = w.create("held");
    EXPECT_TRUE(hold(w, held).has_value());
    for (std::uint64_t token = 1; token <= 4; ++token) w.preserve(held, token);
    w.preserve(held, 5, event());
    unit = w.create("unit");
    EXPECT_TRUE(hold(w, unit, Hold::Unit, "vm.service").has_value());
    w.preserve(unit, 1);
    w.cross();
    EXPECT_TRUE(w.engine->find_incoming("unclaimed").has_value());
    w.retrieve_session("unit");
    EXPECT_TRUE(w.retrieve(unit, 1).has_value());
    out = w.create("out");
    EXPECT_TRUE(hold(w, out, Hold::Executable, "/bin/vm").has_value());
    w.preserve(out, 1);
  }
  SessionId held, unit, out;
};

TEST_F(OlderArrivals, WhatNobodyClaimedIsDroppedWhatIsHeldWaitsOn) {
  const auto arrived = cross([&](const SessionView& s, const FileView& f) -> Engine::Arrival {
    if (s.id == held && f.token == Token{2}) return {.error = EIO};
    if (s.id == held && f.token == Token{3}) return {.gone = true};
    return another(s, f);
  });
  ASSERT_TRUE(arrived.has_value()) << to_string(arrived.error());
  EXPECT_THAT(brought, ::testing::UnorderedElementsAre("out 1", "held 1", "held 4", "held 5", "unit 1"))
      << "nothing is brought for what is dropped";
  here.w.expect_sound();
  expect_nothing_closed();
  EXPECT_EQ(here.w.engine->session_count(), 3U);
  EXPECT_FALSE(here.w.engine->find_incoming("unclaimed").has_value());
  EXPECT_FALSE(here.w.engine->find_incoming("dropped").has_value());
  EXPECT_EQ(incoming(here.w, "held"), held);
  EXPECT_EQ(here.w.engine->find(unit)->hold, Hold::Unit);
  EXPECT_EQ(here.w.engine->find(unit)->held_for, "vm.service");
  EXPECT_EQ(here.w.engine->find(unit)->state, SessionState::Incoming) << "who had it is gone";
  EXPECT_EQ(here.w.engine->find(out)->held_for, "/bin/vm");
  EXPECT_THAT(here.w.tokens(held), ElementsAre(1, 2, 4, 5));
  EXPECT_EQ(file(here.w, held, 2).retrieve_status, -EIO);
  EXPECT_EQ(file(here.w, unit, 1).retrieve_status, 0);
  here.w.reopen();
  here.w.expect_sound();
  here.w.retrieve_session("held");
  EXPECT_EQ(code(here.w.retrieve(held, 2)), EIO);
  EXPECT_TRUE(here.w.retrieve(held, 5).has_value());
  const SessionId other = here.w.create("other");
  const Fd same = Fd::adopt(fcntl(file(here.w, held, 5).fd, F_DUPFD_CLOEXEC, 0));
  EXPECT_EQ(code(here.w.try_preserve(other, 1, duplicate(same))), EBUSY);
  here.w.closed(held);
  EXPECT_EQ(here.w.state(held), SessionState::Incoming);
  here.w.expect_sound();
}

TEST_F(OlderArrivals, CrossAgainAndAgain) {
  ASSERT_TRUE(cross(bring_all()).has_value());
  here.w.retrieve_session("out");
  ASSERT_TRUE(here.w.retrieve(out, 1).has_value());
  ASSERT_TRUE(renew(here.w, out).has_value());
  const SessionId fresh = here.w.create("fresh");
  here.w.preserve(fresh, 1, event());
  here.w.expect_sound();
  here.w.cross();  // simulated
  here.w.engine->sweep();
  here.w.expect_sound();
  EXPECT_EQ(here.w.state(out), SessionState::Incoming);
  EXPECT_EQ(here.w.state(held), SessionState::Incoming);
  here.w.retrieve_session("out");
  ASSERT_TRUE(renew(here.w, out).has_value());
  // Over the next kexec, the systems' parts exchanged.
  ASSERT_TRUE(here.w.engine->freeze_all().has_value());
  const Fd next_image = memfd();
  ASSERT_TRUE(kho::write_image(*here.w.arena, next_image));
  System third;
  third.w.engine.reset();
  third.w.arena.emplace(kho::populate(next_image, Engine::kLayout, "third").value());
  third.w.engine.emplace(Engine::open(*third.w.arena, third.w.registry, pipe_is_closed, Engine::Take::Later).value());
  ASSERT_TRUE(third.w.engine->arrive(bring_all()).has_value());
  third.w.expect_sound();
  EXPECT_TRUE(here.w.engine->check().has_value()) << "its descriptors are as they were";
  EXPECT_EQ(third.w.engine->generation(), there.w.engine->generation() + 3);
  EXPECT_THAT(third.w.tokens(out), ElementsAre(1));
  EXPECT_THAT(third.w.tokens(held), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_FALSE(third.w.engine->find_incoming("fresh").has_value()) << "nobody claimed it";
}

TEST_F(Arrivals, WhatIsNotFrozenDoesNotArrive) {
  const SessionId vm = there.w.create("vm");
  there.w.preserve(vm, 1);
  image = memfd();
  ASSERT_TRUE(kho::write_image(*there.w.arena, image));
  std::vector<int> given;
  const auto refused = arrive([&](const SessionView& s, const FileView& f) {
    const Engine::Arrival arrival = another(s, f);
    given.push_back(arrival.fd);
    return arrival;
  });
  EXPECT_EQ(code(refused), EBUSY);
  expect_nothing_closed();
}

TEST_F(Arrivals, ManyFilesInManySteps) {
  const SessionId vm = there.w.create("vm");
  for (std::uint64_t token = 0; token < 1500; ++token)
    there.w.preserve(vm, token, token % 3 == 0 ? event() : token % 3 == 1 ? memfd() : odd_memfd());
  for (int i = 0; i < 300; ++i) there.w.create(fmt::format("session {}", i));
  const auto arrived = cross([&](const SessionView& s, const FileView& f) -> Engine::Arrival {
    if (f.token.raw() % 10 == 4) return {.gone = true};
    if (f.token.raw() % 10 == 5) return {.error = ENOENT};
    return another(s, f);
  });
  ASSERT_TRUE(arrived.has_value()) << to_string(arrived.error());
  here.w.expect_sound();
  expect_nothing_closed();
  EXPECT_EQ(here.w.engine->session_count(), 301U);
  EXPECT_EQ(here.w.tokens(vm).size(), 1350U);
  here.w.retrieve_session("vm");
  EXPECT_TRUE(here.w.finish(vm).has_value());
  here.w.expect_sound();
}

TEST_F(Arrivals, VersionOneOfTheRecordsArrives) {
  // Of a luod that knew no shared state: those records cannot say it.
  const SessionId vm = there.w.create("vm");
  there.w.preserve(vm, 1);
  there.w.preserve(vm, 2, event());
  ASSERT_TRUE(there.w.engine->freeze_all().has_value());
  ASSERT_TRUE(there.w.step([&](Change& c) { return there.w.engine->write_version_before(c); }).has_value());
  const auto* root = there.w.arena->get(Ref<RootRecord>{there.w.arena->root(0).raw()});
  ASSERT_EQ(root->magic, kRootMagic1);
  image = memfd();
  ASSERT_TRUE(kho::write_image(*there.w.arena, image));
  const auto arrived = arrive(bring_all());
  ASSERT_TRUE(arrived.has_value()) << to_string(arrived.error());
  here.w.expect_sound();
  expect_nothing_closed();
  EXPECT_THAT(here.w.tokens(vm), ElementsAre(1, 2));
  here.w.retrieve_session("vm");
  EXPECT_TRUE(hold(here.w, vm).has_value()) << "what version 2 brings works";
  EXPECT_TRUE(renew(here.w, vm).has_value());
  here.w.preserve(vm, 3, odd_memfd());
  here.w.expect_sound();
  there.w.reopen();
}

/// Memory for the new tables may be short: an arena that is full but for a little.
TEST(ArrivalWithoutMemory, IsAnErrorAtEveryPlaceAndNeverACrash) {
  System there{1_MiB};
  const SessionId vm = there.w.create("vm");
  for (std::uint64_t token = 0; token < 300; ++token) there.w.preserve(vm, token, token % 2 == 0 ? memfd() : event());
  const SessionId held = there.w.create("held");
  ASSERT_TRUE(hold(there.w, held).has_value());
  ASSERT_TRUE(there.w.engine->freeze_all().has_value());
  const Fd image = memfd();
  ASSERT_TRUE(kho::write_image(*there.w.arena, image));
  bool failed = false, arrived = false;
  for (std::uint64_t left = 0; left <= 60 && !arrived; left += 5) {
    System here{1_MiB};
    here.w.engine.reset();
    here.w.arena.emplace(kho::populate(image, Engine::kLayout, "arrived").value());
    std::vector<PhysAddr> blocks;
    {  // all that there is, and some of it back
      kho::Tx tx{*here.w.arena};
      for (const std::size_t size : {std::size_t{65536}, std::size_t{4096}, std::size_t{256}, std::size_t{16}})
        while (tx.room() > 65536) {
          const auto block = tx.allocate(size);
          if (!block) break;
          blocks.push_back(*block);
        }
      tx.commit();
    }
    {
      kho::Tx tx{*here.w.arena};
      for (std::uint64_t i = 0; i < left && !blocks.empty(); ++i) {
        // The large ones came first; small ones first back.
        tx.release(blocks.back());
        blocks.pop_back();
      }
      for (std::uint64_t i = 0; i < left / 10 && i < blocks.size(); ++i) tx.release(blocks[i]);
      tx.commit();
    }
    auto opened = Engine::open(*here.w.arena, here.w.registry, pipe_is_closed, Engine::Take::Later);
    if (!opened) {
      EXPECT_EQ(opened.error().code, ENOMEM);
      continue;
    }
    here.w.engine.emplace(std::move(*opened));
    std::vector<int> given;
    const auto done = here.w.engine->arrive([&](const SessionView&, const FileView& f) -> Engine::Arrival {
      given.push_back(renumbered(f.handler == "events-v1" ? event() : memfd()));
      return {.fd = given.back()};
    });
    arrived = done.has_value();
    if (done) {
      here.w.expect_sound();
      continue;
    }
    failed = true;
    EXPECT_EQ(code(done), ENOMEM) << to_string(done.error());
    EXPECT_TRUE(there.w.engine->check().has_value()) << "nothing of the other system's was closed";
    here.w.engine.reset();  // its arena is made again from the image
    for (const int fd : given)
      if (is_open(fd)) ::close(fd);
  }
  EXPECT_TRUE(failed);
  EXPECT_TRUE(arrived);
}

}  // namespace
}  // namespace luo::testing
