// Sessions: names, hand-out, last close, the two name spaces.
#include <gmock/gmock.h>

#include "luo/engine_testing.h"

namespace luo::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(Session, IsFoundByNameIdAndPipe) {
  World w;
  Capability cap = capability(false);
  const auto id = w.try_create("vm", cap.holder);
  ASSERT_TRUE(id.has_value());
  const auto view = w.engine->find(*id);
  ASSERT_TRUE(view.has_value());
  EXPECT_EQ(view->name, "vm");
  EXPECT_EQ(view->state, SessionState::Outgoing);
  EXPECT_EQ(view->owner.uid, 1U);
  EXPECT_EQ(view->owner.pid, 100);
  EXPECT_EQ(view->created_ms, 5U);
  EXPECT_EQ(view->holder[0].write_fd, cap.holder.write_fd);
  EXPECT_FALSE(view->holder[0].accepted);
  EXPECT_EQ(view->holder[0].peer, PeerId{1});
  EXPECT_EQ(view->holder[1].write_fd, -1);
  EXPECT_EQ(w.engine->find_outgoing("vm"), *id);
  EXPECT_EQ(w.engine->find_incoming("vm"), std::nullopt);
  const auto hit = w.engine->find_by_inode(cap.holder.inode);
  ASSERT_TRUE(hit.has_value());
  EXPECT_EQ(hit->id, *id);
  EXPECT_EQ(hit->role, Role::Owner);
  EXPECT_FALSE(w.engine->find(SessionId{99}).has_value());
  w.expect_sound();
}

TEST(Session, TakesNamesOfOneTo63BytesOfAnyValueButNul) {
  World w;
  for (const std::size_t length : {1U, 2U, 62U, 63U}) w.create(std::string(length, '\xff'));
  for (int byte = 1; byte < 256; ++byte) {
    const std::string name{"n", 1};
    const auto id = w.create(name + static_cast<char>(byte));
    EXPECT_EQ(w.engine->find(id)->name, name + static_cast<char>(byte));
  }
  w.expect_sound();
}

TEST(Session, RefusesEmptyAndEndlessNamesBeforeAnythingElse) {
  World w;
  const Capability cap = capability();
  EXPECT_EQ(code(w.try_create("", cap.holder)), EINVAL);
  EXPECT_EQ(code(w.try_create(std::string(64, 'X'), cap.holder)), EINVAL);
  EXPECT_EQ(w.engine->session_count(), 0U);
  close_number(cap.holder.write_fd);
}

TEST(Session, RefusesANameThatIsOutgoingAlready) {
  World w;
  w.create("vm");
  const Capability cap = capability();
  const auto again = w.try_create("vm", cap.holder);
  EXPECT_EQ(code(again), EEXIST);
  EXPECT_THAT(again.error().what, HasSubstr("'vm'"));
  EXPECT_EQ(w.asked, 1);
  EXPECT_EQ(w.engine->session_count(), 1U);
  close_number(cap.holder.write_fd);
  w.expect_sound();
}

TEST(Session, NameIsFreeAsSoonAsItsHolderIsGoneEvenIfNobodyNoticedYet) {
  World w;
  const SessionId first = w.create("vm");
  w.preserve(first, 1);
  const int old_write_end = w.engine->find(first)->holder[0].write_fd;
  w.take_calls();
  w.clients.clear();
  const SessionId second = w.create("vm");
  EXPECT_NE(first, second);
  EXPECT_FALSE(w.engine->find(first).has_value());
  EXPECT_THAT(w.take_calls(), ElementsAre("unpreserve 1"));
  EXPECT_FALSE(is_open(old_write_end));
  w.expect_sound();
}

TEST(Session, LastCloseUnpreservesNewestFirst) {
  World w;
  const SessionId id = w.create("vm");
  for (std::uint64_t token : {3, 1, 2}) w.preserve(id, token);
  const std::vector<int> fds = w.fds();
  w.take_calls();
  w.closed(id);
  EXPECT_THAT(w.take_calls(), ElementsAre("unpreserve 2", "unpreserve 1", "unpreserve 3"));
  EXPECT_FALSE(w.engine->find(id).has_value());
  EXPECT_EQ(w.engine->session_count(), 0U);
  EXPECT_EQ(w.engine->file_count(), 0U);
  EXPECT_THAT(w.fds(), IsEmpty());
  for (const int fd : fds) EXPECT_FALSE(is_open(fd)) << fd;
  w.expect_sound();
}

TEST(Session, OneThatWasNeverAcceptedGoesAwayToo) {
  World w;
  Capability cap = capability(false);
  cap.holder.read_fd = duplicate(cap.client).release();
  const auto id = w.try_create("vm", cap.holder);
  w.closed(*id);
  EXPECT_FALSE(w.engine->find(*id).has_value());
  EXPECT_FALSE(is_open(cap.holder.write_fd));
  EXPECT_FALSE(is_open(cap.holder.read_fd));
}

TEST(Session, ForgetsTheReadEndOnceItIsSent) {
  World w;
  Capability cap = capability(false);
  cap.holder.read_fd = duplicate(cap.client).release();
  const auto id = w.try_create("vm", cap.holder);
  EXPECT_THAT(w.fds(), ::testing::UnorderedElementsAre(cap.holder.write_fd, cap.holder.read_fd));
  w.run([&](Change& c) { w.engine->sent(c, *id, Role::Owner); });
  EXPECT_FALSE(is_open(cap.holder.read_fd));
  EXPECT_EQ(w.engine->find(*id)->holder[0].read_fd, -1);
  for (int again = 0; again < 2; ++again) {
    EXPECT_TRUE(w.step([&](Change& c) { return w.engine->accept(c, *id, Role::Owner); }).has_value());
    EXPECT_TRUE(w.engine->find(*id)->holder[0].accepted);
  }
  EXPECT_EQ(code(w.step([&](Change& c) { return w.engine->accept(c, SessionId{77}, Role::Owner); })), ENOENT);
  EXPECT_EQ(code(w.step([&](Change& c) { return w.engine->accept(c, *id, Role::Successor); })), ENOENT);
  w.expect_sound();
}

TEST(Session, IsNeitherMadeNorClosedByAnAbandonedStep) {
  World w;
  const SessionId kept = w.create("kept");
  const Capability cap = capability();
  {
    Change change{*w.arena};
    ASSERT_TRUE(w.engine->create_session(change, Name{"vm"}, cap.holder, {}, 0).has_value());
    w.engine->holder_closed(change, kept, Role::Owner);
    EXPECT_FALSE(w.engine->find(kept).has_value());
  }
  EXPECT_EQ(w.engine->find_outgoing("vm"), std::nullopt);
  EXPECT_TRUE(w.engine->find(kept).has_value());
  EXPECT_TRUE(is_open(w.engine->find(kept)->holder[0].write_fd));
  EXPECT_TRUE(is_open(cap.holder.write_fd));
  close_number(cap.holder.write_fd);
  w.expect_sound();
}

TEST(Session, IsNotFoundIncomingBeforeACrossing) {
  World w;
  w.create("vm");
  const Capability cap = capability();
  EXPECT_EQ(code(w.try_retrieve_session("vm", cap.holder)), ENOENT);
  EXPECT_EQ(code(w.try_retrieve_session("", cap.holder)), ENOENT);
  EXPECT_EQ(code(w.try_retrieve_session(std::string(64, 'X'), cap.holder)), ENOENT);
  close_number(cap.holder.write_fd);
}

TEST(Session, NamesOfTheTwoSidesAreApart) {
  World w;
  const SessionId before = w.create("vm");
  w.cross();
  const SessionId after = w.create("vm");
  EXPECT_EQ(w.engine->find_incoming("vm"), before);
  EXPECT_EQ(w.engine->find_outgoing("vm"), after);
  EXPECT_EQ(w.engine->session_count(), 2U);
  w.expect_sound();
}

TEST(Session, IsRetrievedOnceAndFinishedByItsLastClose) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 1);
  w.preserve(id, 2);
  w.cross();
  w.engine->sweep();
  EXPECT_EQ(w.state(id), SessionState::Incoming);
  EXPECT_EQ(w.retrieve_session("vm"), id);
  EXPECT_EQ(w.state(id), SessionState::Retrieved);
  const Capability other = capability();
  EXPECT_EQ(code(w.try_retrieve_session("vm", other.holder)), EINVAL);
  EXPECT_EQ(w.retrieve(id, 1).has_value(), true);
  w.take_calls();
  w.closed(id);
  EXPECT_THAT(w.take_calls(), ElementsAre("can_finish 1", "can_finish 2", "finish- 2", "finish+ 1"));
  EXPECT_FALSE(w.engine->find(id).has_value());
  EXPECT_EQ(code(w.try_retrieve_session("vm", other.holder)), ENOENT);
  EXPECT_THAT(w.fds(), IsEmpty());
  close_number(other.holder.write_fd);
  w.expect_sound();
}

TEST(Session, IsPutBackIfItsReceiverNeverAcceptedIt) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 1);
  w.cross();
  w.take_calls();
  w.retrieve_session("vm", false);
  w.closed(id);
  EXPECT_EQ(w.state(id), SessionState::Incoming);
  EXPECT_THAT(w.take_calls(), IsEmpty());
  // And a dead receiver does not keep the next one out, even if nobody noticed its death.
  w.retrieve_session("vm", false);
  w.clients.clear();
  EXPECT_EQ(w.retrieve_session("vm"), id);
  EXPECT_THAT(w.tokens(id), ElementsAre(1));
  w.expect_sound();
}

TEST(Session, FinishedByADeadHolderIsGoneWhenAskedFor) {
  World w;
  const SessionId id = w.create("vm");
  w.cross();
  w.retrieve_session("vm");
  EXPECT_TRUE(w.finish(id).has_value());
  const Capability cap = capability();
  EXPECT_EQ(code(w.try_retrieve_session("vm", cap.holder)), EINVAL);
  w.clients.clear();
  EXPECT_EQ(code(w.try_retrieve_session("vm", cap.holder)), ENOENT);
  EXPECT_EQ(w.engine->session_count(), 0U);
  close_number(cap.holder.write_fd);
  w.expect_sound();
}

TEST(Session, CloseThatCannotFinishPutsItBack) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 1);
  w.cross();
  w.retrieve_session("vm");
  w.fake.errors["can_finish 1"] = 1;
  w.closed(id);
  EXPECT_EQ(w.state(id), SessionState::Incoming);
  w.fake.errors.clear();
  w.retrieve_session("vm");
  EXPECT_TRUE(w.finish(id).has_value());
}

}  // namespace
}  // namespace luo::testing
