// Sessions that outlive their holder, what an owner does with a session by itself, how it crosses to another kernel.
#include <gmock/gmock.h>

#include "luo/engine_testing.h"

namespace luo::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Result<> hold(World& w, SessionId id, Hold how = Hold::User, std::string_view who = "") {
  return w.step([&](Change& c) { return w.engine->set_hold(c, id, how, who); });
}
Result<> drop(World& w, SessionId id) {
  return w.step([&](Change& c) { return w.engine->drop(c, id); });
}
Result<> renew(World& w, SessionId id) {
  return w.step([&](Change& c) { return w.engine->renew(c, id, Role::Owner); });
}
SessionId held(World& w, std::string_view name, std::uint64_t token = 1) {
  const SessionId id = w.create(name);
  EXPECT_TRUE(hold(w, id).has_value());
  w.preserve(id, token);
  return id;
}
/// Its holder dies, and luod notices.
void lose_holder(World& w, SessionId id) {
  w.clients.erase(id);
  w.closed(id);
}

TEST(Hold, KeepsASessionThatNobodyHolds) {
  World w;
  const SessionId id = held(w, "vm");
  w.take_calls();
  lose_holder(w, id);
  EXPECT_THAT(w.take_calls(), IsEmpty());
  for (int again = 0; again < 2; ++again) {
    const auto view = w.engine->find(id);
    ASSERT_TRUE(view.has_value());
    EXPECT_EQ(view->state, SessionState::Outgoing);
    EXPECT_EQ(view->holder[0].write_fd, -1);
    EXPECT_EQ(view->hold, Hold::User);
    EXPECT_EQ(view->files, 1U);
    w.expect_sound();
    w.reopen();
  }
  Capability other = capability();
  const auto taken = w.try_create("vm", other.holder);
  EXPECT_EQ(code(taken), EEXIST);
  EXPECT_THAT(to_string(taken.error()), HasSubstr("luoctl drop"));
  ::close(other.holder.write_fd);
}

TEST(Hold, GivesItBackToTheNextOwnerAgainAndAgain) {
  World w;
  const SessionId id = held(w, "vm");
  for (int round = 0; round < 3; ++round) {
    lose_holder(w, id);
    EXPECT_EQ(w.retrieve_session("vm", round != 1), id);
    EXPECT_EQ(w.state(id), SessionState::Outgoing);
    const auto fd = w.retrieve(id, 1);
    ASSERT_TRUE(fd.has_value()) << to_string(fd.error());
    EXPECT_TRUE(is_open(*fd));
    EXPECT_TRUE(renew(w, id).has_value()) << "nothing to be done";
    w.preserve(id, 10 + static_cast<std::uint64_t>(round));
    w.expect_sound();
    Capability second = capability();
    EXPECT_EQ(code(w.try_retrieve_session("vm", second.holder)), EINVAL);
    ::close(second.holder.write_fd);
  }
  EXPECT_EQ(w.tokens(id).size(), 4U);
}

TEST(Hold, AHolderWhoseDeathNobodyHasNoticedIsNotInTheWay) {
  World w;
  const SessionId id = held(w, "vm");
  w.clients.clear();
  EXPECT_EQ(w.retrieve_session("vm"), id);
  EXPECT_GT(w.asked, 0);
  w.expect_sound();
}

TEST(Hold, OnlyOfSessionsThatSaySo) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 1);
  Capability cap = capability();
  EXPECT_EQ(code(w.try_retrieve_session("vm", cap.holder)), ENOENT);
  ::close(cap.holder.write_fd);
  EXPECT_EQ(code(w.retrieve(id, 1)), EINVAL);
  EXPECT_EQ(code(renew(w, id)), EINVAL);
  EXPECT_TRUE(hold(w, id, Hold::Executable, "/usr/bin/vmm").has_value());
  EXPECT_EQ(w.engine->find(id)->held_for, "/usr/bin/vmm");
  EXPECT_EQ(code(hold(w, id, Hold::Executable, "")), EINVAL);
  EXPECT_EQ(code(hold(w, id, Hold::User, "x")), EINVAL);
  EXPECT_EQ(code(hold(w, id, Hold{4}, "")), EINVAL);
  EXPECT_EQ(code(hold(w, id, Hold::Unit, std::string(232, 'x'))), EINVAL);
  EXPECT_TRUE(hold(w, id, Hold::Unit, std::string(231, 'x')).has_value());
  EXPECT_TRUE(hold(w, id, Hold::Off).has_value());
  lose_holder(w, id);
  EXPECT_FALSE(w.engine->find(id).has_value());
  w.expect_sound();
}

TEST(Hold, CrossesEveryUpdateUntilSomebodyFinishesIt) {
  World w;
  const SessionId id = held(w, "vm");
  lose_holder(w, id);
  w.create("other");
  for (int hop = 0; hop < 4; ++hop) {
    w.cross();
    w.engine->sweep();
    EXPECT_EQ(w.state(id), SessionState::Incoming);
    EXPECT_EQ(w.tokens(id), std::vector<std::uint64_t>{1});
    w.expect_sound();
    w.reopen();
  }
  EXPECT_EQ(w.engine->session_count(), 1U) << "the other one was dropped";
  EXPECT_EQ(w.retrieve_session("vm"), id);
  EXPECT_TRUE(w.retrieve(id, 1).has_value());
  lose_holder(w, id);
  EXPECT_EQ(w.state(id), SessionState::Incoming) << "put back, not finished";
  w.retrieve_session("vm");
  w.cross();  // with a receiver that had not renewed it
  w.reopen();
  EXPECT_EQ(w.state(id), SessionState::Incoming);
  EXPECT_EQ(w.retrieve_session("vm"), id);
  EXPECT_TRUE(w.retrieve(id, 1).has_value());
  w.take_calls();
  EXPECT_TRUE(w.finish(id).has_value());
  EXPECT_THAT(w.take_calls(), ElementsAre("can_finish 1", "finish+ 1"));
  w.cross();
  w.engine->sweep();
  EXPECT_EQ(w.engine->session_count(), 0U);
  w.expect_sound();
}

TEST(Hold, IsNotReplacedByANewSessionOfItsName) {
  World w;
  const SessionId old = held(w, "vm");
  w.cross();
  const SessionId fresh = w.create("vm");
  const auto refused = w.engine->freeze_all();
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().error.code, EEXIST);
  EXPECT_EQ(refused.error().session, "vm");
  EXPECT_EQ(w.state(fresh), SessionState::Outgoing);
  EXPECT_TRUE(drop(w, old).has_value());
  w.cross();
  EXPECT_EQ(w.state(fresh), SessionState::Incoming);
  w.expect_sound();
}

TEST(Hold, OfASessionThatASuccessorWasToTakeOver) {
  World w;
  const SessionId id = held(w, "vm");
  Capability successor = capability();
  EXPECT_TRUE(w.step([&](Change& c) { return w.engine->add_successor(c, id, successor.holder, {}); }).has_value());
  EXPECT_TRUE(w.step([&](Change& c) { return w.engine->begin_prepare(c, id); }).has_value());
  lose_holder(w, id);
  EXPECT_EQ(w.state(id), SessionState::Preparing);
  w.run([&](Change& c) { w.engine->abandon_successor(c, id); });
  EXPECT_EQ(w.state(id), SessionState::Outgoing);
  w.expect_sound();
  EXPECT_EQ(w.retrieve_session("vm"), id);
}

TEST(Drop, EndsWhatNobodyHas) {
  World w;
  const SessionId out = held(w, "out");
  EXPECT_EQ(code(drop(w, out)), EBUSY);
  lose_holder(w, out);
  w.take_calls();
  EXPECT_TRUE(drop(w, out).has_value());
  EXPECT_THAT(w.take_calls(), ElementsAre("unpreserve 1"));
  EXPECT_EQ(code(drop(w, out)), EBADF);

  const SessionId in = w.create("in");
  w.preserve(in, 2);
  w.cross();
  w.fake.errors["can_finish 2"] = EBUSY;
  EXPECT_EQ(code(drop(w, in)), EBUSY);
  w.fake.errors.clear();
  w.take_calls();
  EXPECT_TRUE(drop(w, in).has_value());
  EXPECT_THAT(w.take_calls(), ElementsAre("can_finish 2", "finish- 2"));
  w.expect_sound();
  EXPECT_EQ(w.engine->file_count(), 0U);
}

TEST(Drop, NoticesADeadHolderByItself) {
  World w;
  const SessionId id = held(w, "vm");
  w.clients.clear();
  EXPECT_TRUE(drop(w, id).has_value());
  EXPECT_FALSE(w.engine->find(id).has_value());
  const SessionId plain = w.create("plain");
  w.clients.clear();
  EXPECT_TRUE(drop(w, plain).has_value());
  w.expect_sound();
}

// --- the per-session interface ------------------------------------------------------------------------

Result<> prepare(World& w, SessionId id) {
  return w.step([&](Change& c) { return w.engine->owner_prepare(c, id); });
}
int freeze(World& w, SessionId id) {
  return w.step([&](Change& c) {
    const auto r = w.engine->owner_freeze(c, id);
    return r ? 0 : r.error().error.code;
  });
}
Result<> cancel(World& w, SessionId id) {
  return w.step([&](Change& c) { return w.engine->owner_cancel(c, id); });
}

TEST(OwnerEvents, GoOneAfterTheOtherAndBack) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 1);
  EXPECT_EQ(freeze(w, id), EINVAL);
  EXPECT_EQ(code(cancel(w, id)), EINVAL);
  EXPECT_TRUE(prepare(w, id).has_value());
  EXPECT_EQ(code(prepare(w, id)), EINVAL);
  w.preserve(id, 2);
  w.take_calls();
  EXPECT_EQ(freeze(w, id), 0);
  EXPECT_THAT(w.take_calls(), ElementsAre("freeze 1", "freeze 2"));
  EXPECT_EQ(freeze(w, id), EINVAL);
  EXPECT_EQ(code(w.try_preserve(id, 3, memfd())), EBUSY);
  EXPECT_EQ(code(w.unpreserve(id, 1)), EBUSY);
  w.expect_sound();
  w.reopen();
  EXPECT_EQ(w.engine->find(id)->event, OwnerEvent::Frozen);
  w.take_calls();
  EXPECT_TRUE(cancel(w, id).has_value());
  EXPECT_THAT(w.take_calls(), ElementsAre("unfreeze 1", "unfreeze 2"));
  EXPECT_EQ(w.state(id), SessionState::Outgoing);
  EXPECT_TRUE(w.unpreserve(id, 1).has_value());
  w.expect_sound();
}

TEST(OwnerEvents, AFreezeThatFailsLeavesItPrepared) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 1);
  w.fake.errors["freeze 1"] = EIO;
  EXPECT_TRUE(prepare(w, id).has_value());
  EXPECT_EQ(freeze(w, id), EIO);
  EXPECT_EQ(w.engine->find(id)->event, OwnerEvent::Prepared);
  EXPECT_EQ(w.state(id), SessionState::Preparing);
  w.expect_sound();
}

TEST(OwnerEvents, AnUpdateThatIsOffLeavesThemAsTheyWere) {
  World w;
  const SessionId prepared = w.create("prepared");
  const SessionId frozen = w.create("frozen");
  const SessionId plain = w.create("plain");
  w.preserve(prepared, 1);
  w.preserve(frozen, 2);
  w.preserve(plain, 3);
  EXPECT_TRUE(prepare(w, prepared).has_value());
  EXPECT_TRUE(prepare(w, frozen).has_value());
  EXPECT_EQ(freeze(w, frozen), 0);
  EXPECT_TRUE(w.engine->freeze_all().has_value());
  EXPECT_EQ(code(cancel(w, prepared)), EBUSY);
  w.take_calls();
  w.engine->unfreeze_all();
  EXPECT_THAT(w.take_calls(), ElementsAre("unfreeze 3", "unfreeze 1"));
  EXPECT_EQ(w.state(prepared), SessionState::Preparing);
  EXPECT_EQ(w.state(frozen), SessionState::Frozen);
  EXPECT_EQ(w.state(plain), SessionState::Outgoing);
  w.expect_sound();
  w.fake.errors["freeze 3"] = EIO;
  EXPECT_FALSE(w.engine->freeze_all().has_value());
  EXPECT_EQ(w.state(prepared), SessionState::Preparing);
  EXPECT_EQ(w.state(frozen), SessionState::Frozen);
  w.expect_sound();
  w.fake.errors.clear();
  w.cross();
  w.engine->sweep();
  EXPECT_EQ(w.engine->find(frozen)->event, OwnerEvent::None);
  w.expect_sound();
  w.retrieve_session("frozen");
  EXPECT_TRUE(renew(w, frozen).has_value());
  EXPECT_EQ(w.state(frozen), SessionState::Outgoing);
  EXPECT_EQ(w.engine->find(frozen)->event, OwnerEvent::None);
  w.expect_sound();
}

TEST(OwnerEvents, EndWithTheirOwner) {
  World w;
  const SessionId id = held(w, "vm");
  EXPECT_TRUE(prepare(w, id).has_value());
  EXPECT_EQ(freeze(w, id), 0);
  lose_holder(w, id);
  EXPECT_EQ(w.state(id), SessionState::Outgoing);
  EXPECT_EQ(w.engine->find(id)->event, OwnerEvent::None);
  EXPECT_EQ(w.engine->find(id)->hold, Hold::User);
  w.expect_sound();
}

// --- how it crosses to another kernel -----------------------------------------------------------------

Result<> carry(World& w, SessionId id, std::uint16_t set, std::uint16_t clear = 0) {
  return w.step([&](Change& c) { return w.engine->set_carry(c, id, set, clear); });
}
unsigned carry_of(World& w, SessionId id) { return w.engine->find(id)->carry; }

TEST(Carry, BitsComeAndGoOneByOne) {
  World w;
  const SessionId id = w.create("vm");
  const auto blocks = w.arena->stats().blocks;
  EXPECT_EQ(carry_of(w, id), 0U);
  EXPECT_TRUE(carry(w, id, 0, kCarryAll).has_value());
  EXPECT_EQ(w.arena->stats().blocks, blocks) << "nothing is noted of a session that is as it began";
  EXPECT_TRUE(carry(w, id, kCarryTransient).has_value());
  EXPECT_EQ(carry_of(w, id), kCarryTransient);
  EXPECT_TRUE(carry(w, id, kCarryGrow).has_value());
  EXPECT_EQ(carry_of(w, id), kCarryAll);
  w.reopen();
  w.expect_sound();
  EXPECT_EQ(carry_of(w, id), kCarryAll);
  EXPECT_TRUE(carry(w, id, 0, kCarryTransient).has_value());
  EXPECT_EQ(carry_of(w, id), kCarryGrow);
  EXPECT_EQ(code(carry(w, id, 4)), EINVAL);
  EXPECT_EQ(code(carry(w, id, 0, 1U << 15)), EINVAL);
  EXPECT_EQ(code(carry(w, SessionId{99}, kCarryGrow)), EBADF);
  EXPECT_TRUE(carry(w, id, 0, kCarryGrow).has_value());
  EXPECT_EQ(carry_of(w, id), 0U);
  w.expect_sound();
}

TEST(Carry, IsApartFromWhatElseAnOwnerSays) {
  World w;
  const SessionId id = w.create("vm");
  EXPECT_TRUE(carry(w, id, kCarryGrow).has_value());
  EXPECT_TRUE(hold(w, id, Hold::Unit, "a.service").has_value());
  EXPECT_TRUE(prepare(w, id).has_value());
  EXPECT_TRUE(carry(w, id, kCarryTransient).has_value()) << "files still come and go";
  EXPECT_EQ(w.engine->find(id)->held_for, "a.service");
  EXPECT_EQ(w.engine->find(id)->event, OwnerEvent::Prepared);
  EXPECT_EQ(freeze(w, id), 0);
  EXPECT_EQ(code(carry(w, id, 0, kCarryGrow)), EBUSY);
  EXPECT_TRUE(cancel(w, id).has_value());
  EXPECT_TRUE(hold(w, id, Hold::Off).has_value());
  w.expect_sound();
  EXPECT_EQ(carry_of(w, id), kCarryAll);
}

TEST(Carry, StaysOverEveryUpdate) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 1);
  EXPECT_TRUE(carry(w, id, kCarryAll).has_value());
  for (int hop = 0; hop < 3; ++hop) {
    w.cross();
    w.engine->sweep();
    w.reopen();
    EXPECT_EQ(carry_of(w, id), kCarryAll);
    EXPECT_EQ(code(carry(w, id, 0, kCarryGrow)), EINVAL) << "nobody has it";
    w.retrieve_session("vm");
    EXPECT_TRUE(carry(w, id, 0, kCarryGrow).has_value());
    EXPECT_TRUE(carry(w, id, kCarryGrow).has_value());
    EXPECT_TRUE(renew(w, id).has_value());
    EXPECT_EQ(carry_of(w, id), kCarryAll);
    w.expect_sound();
  }
  // From an owner to its successor.
  Capability successor = capability();
  EXPECT_TRUE(w.step([&](Change& c) { return w.engine->add_successor(c, id, successor.holder, {}); }).has_value());
  EXPECT_TRUE(w.step([&](Change& c) { return w.engine->begin_prepare(c, id); }).has_value());
  EXPECT_TRUE(carry(w, id, 0, kCarryTransient).has_value());
  EXPECT_TRUE(w.step([&](Change& c) { return w.engine->freeze_one(c, id).has_value(); }));
  EXPECT_EQ(code(carry(w, id, kCarryTransient)), EBUSY);
  EXPECT_TRUE(w.step([&](Change& c) { return w.engine->renew(c, id, Role::Successor); }).has_value());
  EXPECT_EQ(carry_of(w, id), kCarryGrow);
  w.expect_sound();
  w.cross();
  w.retrieve_session("vm");
  EXPECT_TRUE(w.finish(id).has_value());
  EXPECT_EQ(code(carry(w, id, kCarryTransient)), EINVAL);
  w.cross();
  w.engine->sweep();
  EXPECT_EQ(w.engine->session_count(), 0U);
  w.expect_sound();
}

TEST(Carry, EndsWithItsSession) {
  World w;
  const SessionId id = w.create("vm");
  EXPECT_TRUE(carry(w, id, kCarryAll).has_value());
  lose_holder(w, id);
  w.expect_sound();
  EXPECT_EQ(carry_of(w, w.create("vm")), 0U);
}

}  // namespace
}  // namespace luo::testing
