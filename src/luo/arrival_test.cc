// Records that come from another system: what arrives, what does not, and what is told of it.
#include <gmock/gmock.h>

#include "luo/arrival_testing.h"
#include "luo/records.h"

namespace luo::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

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

}  // namespace
}  // namespace luo::testing
