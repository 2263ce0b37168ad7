// Updates: freeze and its rollback, crossing, successors, renew.
#include <gmock/gmock.h>

#include "luo/engine_testing.h"

namespace luo::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAreArray;

void add_successor(World& w, SessionId id, std::map<int, Fd>& clients) {
  Capability cap = capability();
  const auto added = w.step([&](Change& c) { return w.engine->add_successor(c, id, cap.holder, {3, 300}); });
  EXPECT_TRUE(added.has_value());
  clients[cap.holder.write_fd] = std::move(cap.client);
}
void freeze(World& w, SessionId id) {
  w.run([&](Change& c) { EXPECT_TRUE(w.engine->freeze_one(c, id).has_value()); });
}
Result<> renew(World& w, SessionId id, Role role) {
  return w.step([&](Change& c) { return w.engine->renew(c, id, role); });
}

// --- prepare and freeze -------------------------------------------------------------------------------

TEST(Prepare, LetsFilesComeAndGoUntilTheFreeze) {
  World w;
  const SessionId id = w.create("vm");
  const auto prepare = [&] { return w.step([&](Change& c) { return w.engine->begin_prepare(c, id); }); };
  EXPECT_TRUE(prepare().has_value());
  EXPECT_EQ(w.state(id), SessionState::Preparing);
  EXPECT_EQ(code(prepare()), EINVAL);
  w.preserve(id, 1);
  EXPECT_TRUE(w.unpreserve(id, 1).has_value());
  for (int again = 0; again < 2; ++again) {
    w.run([&](Change& c) { w.engine->cancel_prepare(c, id); });
    EXPECT_EQ(w.state(id), SessionState::Outgoing);
  }
  EXPECT_TRUE(prepare().has_value());
}

TEST(Freeze, GoesOldestFirstAndMayReplaceTheData) {
  World w;
  const SessionId a = w.create("a");
  const SessionId b = w.create("b");
  w.preserve(b, 10);
  for (std::uint64_t token : {3, 1, 2}) w.preserve(a, token);
  w.take_calls();
  EXPECT_TRUE(w.engine->freeze_all().has_value());
  EXPECT_THAT(w.take_calls(), ElementsAre("freeze 3", "freeze 1", "freeze 2", "freeze 10"));
  EXPECT_EQ(w.state(a), SessionState::Frozen);
  w.engine->for_each_file(a, [](const FileView& f) { EXPECT_EQ(f.data[1], 2U); });
  w.expect_sound();
  w.engine->unfreeze_all();
  EXPECT_THAT(w.take_calls(), ElementsAre("unfreeze 10", "unfreeze 3", "unfreeze 1", "unfreeze 2"));
  EXPECT_EQ(w.state(a), SessionState::Outgoing);
  EXPECT_EQ(w.state(b), SessionState::Outgoing);
  w.expect_sound();
}

TEST(Freeze, OfOneSessionThatFailsUnfreezesThoseBeforeOldestFirst) {
  World w;
  const SessionId id = w.create("v\x01m");
  for (std::uint64_t token : {1, 2, 3, 4}) w.preserve(id, token);
  EXPECT_TRUE(w.step([&](Change& c) { return w.engine->begin_prepare(c, id); }).has_value());
  w.fake.errors["freeze 3"] = ENOSPC;
  w.take_calls();
  w.run([&](Change& c) {
    const auto result = w.engine->freeze_one(c, id);
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(result.error().session, "v\x01m");
    EXPECT_EQ(result.error().token, Token{3});
    EXPECT_EQ(result.error().handler, "fake-v1");
    EXPECT_EQ(result.error().error.code, ENOSPC);
    EXPECT_EQ(to_string(result.error().error),
              "freeze token 3 of session 'v\\x01m': fake freeze: No space left on device [ENOSPC]");
  });
  EXPECT_THAT(w.take_calls(), ElementsAre("freeze 1", "freeze 2", "freeze 3", "unfreeze 1", "unfreeze 2"));
  EXPECT_EQ(w.state(id), SessionState::Preparing);
  w.preserve(id, 5);
  w.expect_sound();
}

TEST(Freeze, OfAllThatFailsUnfreezesTheOtherSessionsNewestFirst) {
  World w;
  const SessionId a = w.create("a");
  const SessionId b = w.create("b");
  const SessionId c = w.create("c");
  const SessionId d = w.create("d");
  w.preserve(a, 1);
  w.preserve(a, 2);
  w.preserve(b, 3);
  w.preserve(c, 4);
  w.preserve(c, 5);
  w.preserve(d, 6);
  w.fake.errors["freeze 5"] = EIO;
  w.take_calls();
  const auto result = w.engine->freeze_all();
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().session, "c");
  EXPECT_EQ(result.error().token, Token{5});
  EXPECT_THAT(w.take_calls(), ElementsAre("freeze 1", "freeze 2", "freeze 3", "freeze 4", "freeze 5", "unfreeze 4",
                                          "unfreeze 3", "unfreeze 1", "unfreeze 2"));
  for (const SessionId id : {a, b, c, d}) EXPECT_EQ(w.state(id), SessionState::Outgoing);
  w.expect_sound();
  EXPECT_EQ(code(w.step([&](Change& change) { return w.engine->cross(change); })), EBUSY);
  w.fake.errors.clear();
  EXPECT_TRUE(w.engine->freeze_all().has_value());
}

TEST(Freeze, IsRememberedByTheNextWorker) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 1);
  EXPECT_TRUE(w.engine->freeze_all().has_value());
  w.reopen();
  EXPECT_EQ(w.state(id), SessionState::Frozen);
  w.engine->unfreeze_all();
  EXPECT_EQ(w.state(id), SessionState::Outgoing);
  w.expect_sound();
}

TEST(Freeze, FrozenSessionWhoseHolderDiesIsUnpreserved) {
  World w;
  const SessionId id = w.create("vm");
  const SessionId other = w.create("other");
  w.preserve(id, 1);
  EXPECT_TRUE(w.engine->freeze_all().has_value());
  w.take_calls();
  w.closed(id);
  EXPECT_THAT(w.take_calls(), ElementsAre("unpreserve 1"));
  EXPECT_EQ(w.engine->find(id), std::nullopt);
  w.expect_sound();
  EXPECT_TRUE(w.step([&](Change& c) { return w.engine->cross(c); }).has_value());
  EXPECT_EQ(w.state(other), SessionState::Incoming);
}

// --- cross --------------------------------------------------------------------------------------------

TEST(Cross, MakesOutgoingIncomingWithoutAHolder) {
  World w;
  const SessionId a = w.create("a");
  const SessionId b = w.create("b");
  w.preserve(a, 7);
  const std::uint64_t inode = w.engine->find(a)->holder[0].inode;
  const int write_end = w.engine->find(a)->holder[0].write_fd;
  EXPECT_EQ(w.engine->generation(), 0U);
  w.cross();
  EXPECT_EQ(w.engine->generation(), 1U);
  // Shown as what it is at once; the descriptors are named until they are swept.
  for (int swept = 0; swept < 2; ++swept) {
    EXPECT_EQ(w.state(a), SessionState::Incoming);
    EXPECT_EQ(w.engine->find(a)->holder[0].write_fd, -1);
    EXPECT_EQ(w.engine->find_by_inode(inode), std::nullopt);
    EXPECT_EQ(w.engine->find_incoming("b"), b);
    EXPECT_EQ(w.engine->find_outgoing("b"), std::nullopt);
    EXPECT_THAT(w.tokens(a), ElementsAre(7));
    EXPECT_EQ(w.fds().size(), swept != 0 ? 1U : 3U);
    EXPECT_EQ(is_open(write_end), swept == 0);
    w.expect_sound();
    w.engine->sweep();
  }
}

TEST(Cross, IsSweptByTheNextWorkerToo) {
  World w;
  const SessionId a = w.create("a");
  w.preserve(a, 7);
  w.cross();
  const int write_end = w.fds().front();
  w.reopen();
  EXPECT_FALSE(is_open(write_end));
  EXPECT_EQ(w.fds().size(), 1U);
  EXPECT_EQ(w.retrieve_session("a"), a);
  EXPECT_TRUE(w.retrieve(a, 7).has_value());
  w.expect_sound();
}

TEST(Cross, CanBeUsedBeforeItIsSwept) {
  World w;
  const SessionId a = w.create("a");
  w.preserve(a, 7);
  const int write_end = w.fds().front();
  w.cross();
  w.retrieve_session("a");
  EXPECT_FALSE(is_open(write_end));
  const int mine = w.engine->find(a)->holder[0].write_fd;
  w.engine->sweep();
  EXPECT_TRUE(is_open(mine));
  EXPECT_EQ(w.engine->find(a)->holder[0].write_fd, mine);
  w.expect_sound();
  w.closed(a);
  EXPECT_THAT(w.fds(), IsEmpty());
  w.expect_sound();
}

TEST(Cross, ASecondOneDropsWhatNobodyClaimed) {
  World w;
  const SessionId unclaimed = w.create("unclaimed");
  const SessionId claimed = w.create("claimed");
  const SessionId finished = w.create("finished");
  Fd fd = memfd();
  const Fd dup = duplicate(fd);
  w.preserve(unclaimed, 1);
  w.preserve(unclaimed, 2, std::move(fd));
  w.preserve(claimed, 3);
  w.preserve(claimed, 4);
  w.preserve(finished, 5);
  w.cross();
  w.engine->sweep();
  w.retrieve_session("claimed");
  EXPECT_TRUE(w.retrieve(claimed, 3).has_value());
  w.retrieve_session("finished");
  EXPECT_TRUE(w.finish(finished).has_value());
  const SessionId next = w.create("unclaimed");
  w.preserve(next, 1);
  w.cross();
  EXPECT_EQ(w.engine->session_count(), 1U);
  EXPECT_EQ(w.engine->file_count(), 1U);
  for (const SessionId id : {unclaimed, claimed, finished}) EXPECT_EQ(w.engine->find(id), std::nullopt);
  EXPECT_EQ(w.engine->find_incoming("unclaimed"), next);
  EXPECT_EQ(w.engine->find_incoming("claimed"), std::nullopt);
  w.expect_sound();
  // A dropped file keeps nobody out, swept or not.
  const SessionId now = w.create("now");
  w.preserve(now, 1, duplicate(dup));
  w.expect_sound();
  w.take_calls();
  w.engine->sweep();
  EXPECT_THAT(w.take_calls(), ElementsAre("finish- 4", "finish+ 3", "finish- 2", "finish- 1"));
  EXPECT_EQ(w.fds().size(), 3U);  // two files, one holder
  w.expect_sound();
  w.reopen();
  EXPECT_EQ(w.state(next), SessionState::Incoming);
}

TEST(Cross, ALargeDroppedSessionIsFinishedOnceAndSweptInSteps) {
  World w;
  w.fake.identify = [](const FileInfo& f) { return Identity{1, static_cast<std::uint64_t>(f.fd), false}; };
  const SessionId id = w.create("large");
  const Fd one = memfd();
  for (std::uint64_t token = 0; token < 1000; ++token) w.preserve(id, token, duplicate(one));
  w.cross();
  w.cross();
  w.take_calls();
  w.engine->sweep();
  const Calls calls = w.take_calls();
  ASSERT_EQ(calls.size(), 1000U);
  EXPECT_EQ(calls.front(), "finish- 999");
  EXPECT_EQ(calls.back(), "finish- 0");
  EXPECT_THAT(w.fds(), IsEmpty());
  w.expect_sound();
}

TEST(Cross, DropsOnceMoreBeforeTheFirstDropIsSwept) {
  World w;
  const SessionId a = w.create("a");
  w.preserve(a, 1);
  for (int i = 0; i < 3; ++i) {
    w.create("b");
    w.cross();
    w.expect_sound();
  }
  EXPECT_EQ(w.engine->session_count(), 1U);
  EXPECT_EQ(w.engine->generation(), 3U);
  w.reopen();
  EXPECT_THAT(w.fds(), IsEmpty());
  w.expect_sound();
}

TEST(Cross, OfNothingIsAllowed) {
  World w;
  w.cross();
  EXPECT_EQ(w.engine->generation(), 1U);
  w.expect_sound();
}

TEST(Cross, TakesSmallLogHoweverManyThereAre) {
  World w;
  for (int i = 0; i < 2000; ++i) w.create(fmt::format("s{}", i));
  EXPECT_TRUE(w.engine->freeze_all().has_value());
  Change change{*w.arena};
  const std::size_t before = change.tx.room();
  EXPECT_TRUE(w.engine->cross(change).has_value());
  EXPECT_LT(before - change.tx.room(), 4096U);
  change.commit();
  w.reopen();
  EXPECT_THAT(w.fds(), IsEmpty());
}

// --- renew --------------------------------------------------------------------------------------------

TEST(Renew, MakesARetrievedSessionOutgoingWithItsFiles) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 1);
  w.preserve(id, 2);
  EXPECT_EQ(code(renew(w, id, Role::Owner)), EINVAL);
  w.cross();
  EXPECT_EQ(code(renew(w, id, Role::Owner)), EINVAL);
  w.retrieve_session("vm");
  w.fake.errors["retrieve 2"] = EIO;
  EXPECT_TRUE(w.retrieve(id, 1).has_value());
  EXPECT_EQ(code(w.retrieve(id, 2)), EIO);
  w.fake.errors.clear();
  w.take_calls();
  EXPECT_TRUE(renew(w, id, Role::Owner).has_value());
  EXPECT_THAT(w.take_calls(), IsEmpty());
  EXPECT_EQ(w.state(id), SessionState::Outgoing);
  EXPECT_EQ(w.engine->find_outgoing("vm"), id);
  EXPECT_EQ(w.engine->find_incoming("vm"), std::nullopt);
  EXPECT_THAT(w.tokens(id), ElementsAre(1, 2));
  w.preserve(id, 3);
  w.expect_sound();
  // The next side starts anew: nothing is remembered of the one before.
  w.cross();
  w.engine->sweep();
  w.retrieve_session("vm");
  EXPECT_TRUE(w.retrieve(id, 2).has_value());
  EXPECT_THAT(w.take_calls(), ::testing::Contains("retrieve 2"));
  EXPECT_TRUE(w.finish(id).has_value());
  EXPECT_EQ(code(renew(w, id, Role::Owner)), EINVAL);
  w.expect_sound();
}

TEST(Renew, IsRefusedIfTheNameIsTakenByTheLiving) {
  World w;
  const SessionId id = w.create("vm");
  w.cross();
  w.retrieve_session("vm");
  const SessionId other = w.create("vm");
  EXPECT_EQ(code(renew(w, id, Role::Owner)), EEXIST);
  EXPECT_EQ(w.state(id), SessionState::Retrieved);
  w.expect_sound();
  w.clients.erase(other);
  EXPECT_TRUE(renew(w, id, Role::Owner).has_value());
  EXPECT_EQ(w.engine->find_outgoing("vm"), id);
  w.expect_sound();
}

// --- successors ---------------------------------------------------------------------------------------

struct Succession : ::testing::Test {
  Succession() {
    id = w.create("vm");
    w.preserve(id, 1);
    w.preserve(id, 2);
    add_successor(w, id, successors);
    old_end = w.engine->find(id)->holder[0].write_fd;
    new_end = w.engine->find(id)->holder[1].write_fd;
    w.take_calls();
  }
  World w;
  SessionId id;
  std::map<int, Fd> successors;
  int old_end = -1, new_end = -1;
};

TEST_F(Succession, HandsTheSessionOver) {
  const std::uint64_t old_inode = w.engine->find(id)->holder[0].inode;
  const std::uint64_t new_inode = w.engine->find(id)->holder[1].inode;
  EXPECT_EQ(w.engine->find_by_inode(new_inode)->role, Role::Successor);
  EXPECT_EQ(w.engine->find_by_inode(old_inode)->role, Role::Owner);
  EXPECT_EQ(code(renew(w, id, Role::Successor)), EINVAL);  // the owner has not let go
  EXPECT_TRUE(w.retrieve(id, 1, Role::Successor).has_value());
  EXPECT_EQ(code(w.retrieve(id, 1)), EINVAL);
  freeze(w, id);
  EXPECT_TRUE(w.retrieve(id, 2, Role::Successor).has_value());
  w.expect_sound();
  w.reopen();
  w.take_calls();
  EXPECT_TRUE(renew(w, id, Role::Successor).has_value());
  EXPECT_THAT(w.take_calls(), ElementsAre("unfreeze 1", "unfreeze 2"));
  EXPECT_EQ(w.state(id), SessionState::Outgoing);
  EXPECT_FALSE(is_open(old_end));
  const auto view = w.engine->find(id);
  EXPECT_EQ(view->holder[0].write_fd, new_end);
  EXPECT_EQ(view->holder[1].write_fd, -1);
  EXPECT_EQ(view->owner.pid, 300);
  EXPECT_EQ(w.engine->find_by_inode(new_inode)->role, Role::Owner);
  EXPECT_EQ(w.engine->find_by_inode(old_inode), std::nullopt);
  EXPECT_EQ(code(w.retrieve(id, 1, Role::Successor)), EINVAL);
  w.preserve(id, 3);
  w.expect_sound();
  // And again, to the next one.
  add_successor(w, id, successors);
  freeze(w, id);
  EXPECT_TRUE(renew(w, id, Role::Successor).has_value());
  w.expect_sound();
  w.closed(id);
  EXPECT_EQ(w.engine->session_count(), 0U);
  EXPECT_THAT(w.fds(), IsEmpty());
}

TEST_F(Succession, AllowsOneLivingSuccessor) {
  Capability cap = capability();
  const auto add = [&] {
    return w.step([&](Change& c) { return w.engine->add_successor(c, id, cap.holder, {4, 400}); });
  };
  EXPECT_EQ(code(add()), EBUSY);
  successors.clear();
  EXPECT_TRUE(add().has_value());
  EXPECT_EQ(w.engine->find(id)->holder[1].write_fd, cap.holder.write_fd);
  EXPECT_FALSE(is_open(new_end));
  w.expect_sound();
}

TEST_F(Succession, IsOnlyForOutgoingSessions) {
  w.closed(id, Role::Successor);
  w.cross();
  Capability cap = capability();
  EXPECT_EQ(code(w.step([&](Change& c) { return w.engine->add_successor(c, id, cap.holder, {}); })), EINVAL);
  EXPECT_EQ(code(renew(w, id, Role::Successor)), EINVAL);
  close_number(cap.holder.write_fd);
}

TEST_F(Succession, GivesItBackWhenTheSuccessorDies) {
  EXPECT_TRUE(w.step([&](Change& c) { return w.engine->begin_prepare(c, id); }).has_value());
  w.fake.errors["retrieve 1"] = EIO;
  EXPECT_EQ(code(w.retrieve(id, 1, Role::Successor)), EIO);
  w.fake.errors.clear();
  freeze(w, id);
  w.take_calls();
  w.closed(id, Role::Successor);
  EXPECT_THAT(w.take_calls(), ElementsAre("unfreeze 1", "unfreeze 2"));
  EXPECT_EQ(w.state(id), SessionState::Outgoing);
  EXPECT_FALSE(is_open(new_end));
  EXPECT_TRUE(is_open(old_end));
  w.preserve(id, 3);
  w.expect_sound();
  add_successor(w, id, successors);
  EXPECT_TRUE(w.retrieve(id, 1, Role::Successor).has_value()) << "the failure was the other successor's";
}

TEST_F(Succession, OutlivesItsOwner) {
  w.closed(id, Role::Owner);
  EXPECT_THAT(w.take_calls(), IsEmpty());
  EXPECT_FALSE(is_open(old_end));
  EXPECT_TRUE(w.retrieve(id, 1, Role::Successor).has_value());
  w.expect_sound();
  EXPECT_TRUE(renew(w, id, Role::Successor).has_value());
  EXPECT_EQ(w.engine->find(id)->holder[0].write_fd, new_end);
  w.expect_sound();
}

TEST_F(Succession, EndsWithTheLastOfTheTwo) {
  freeze(w, id);
  w.closed(id, Role::Owner);
  w.take_calls();
  w.closed(id, Role::Successor);
  EXPECT_THAT(w.take_calls(), ElementsAre("unpreserve 2", "unpreserve 1"));
  EXPECT_EQ(w.engine->session_count(), 0U);
  EXPECT_THAT(w.fds(), IsEmpty());
  w.expect_sound();
}

TEST_F(Succession, NameIsFreeWhenBothAreGoneUnnoticed) {
  w.clients.clear();
  Capability cap = capability();
  EXPECT_EQ(code(w.try_create("vm", cap.holder)), EEXIST);  // the successor lives
  w.expect_sound();
  successors.clear();
  EXPECT_TRUE(w.try_create("vm", cap.holder).has_value());
  EXPECT_EQ(w.engine->find(id), std::nullopt);
  EXPECT_EQ(w.engine->session_count(), 1U);
  w.expect_sound();
}

TEST_F(Succession, CrossesWithoutEither) {
  w.cross();
  w.engine->sweep();
  EXPECT_FALSE(is_open(old_end));
  EXPECT_FALSE(is_open(new_end));
  EXPECT_EQ(w.retrieve_session("vm"), id);
  w.expect_sound();
}

}  // namespace
}  // namespace luo::testing
