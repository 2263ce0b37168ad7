// State that lives as long as some file of its handlers: counts, order, both sides, errors.
#include <gmock/gmock.h>

#include <memory>
#include <set>

#include "luo/engine_testing.h"
#include "luo/records.h"

namespace luo::testing {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// Two kinds of files: of even size with three FLBs, of odd size with one of them.
class Flbs : public ::testing::Test {
 protected:
  Flbs() {
    even.wants = [](const FileInfo& f) { return f.st.st_size % 2 == 0; };
    odd.wants = [](const FileInfo& f) { return f.st.st_size % 2 == 1; };
    for (Handler* handler : {&even, &odd}) EXPECT_TRUE(registry.add(*handler).has_value());
    EXPECT_TRUE(registry.add_flb(even, a).has_value());
    EXPECT_TRUE(registry.add_flb(even, b).has_value());
    EXPECT_TRUE(registry.add_flb(even, c).has_value());
    EXPECT_TRUE(registry.add_flb(odd, b).has_value());
    reopen();
  }
  /// The world, with our handlers instead of its own.
  void reopen(const HandlerRegistry* with = nullptr) {
    w.engine.reset();
    auto again = kho::Arena::open(w.arena->release(), Engine::kLayout);
    ASSERT_TRUE(again.has_value());
    w.arena.emplace(std::move(*again));
    auto opened = Engine::open(*w.arena, with != nullptr ? *with : registry, pipe_is_closed);
    ASSERT_TRUE(opened.has_value()) << to_string(opened.error());
    w.engine.emplace(std::move(*opened));
    w.engine->settle_flbs();
  }
  Result<> try_preserve(SessionId id, std::uint64_t token) {
    Fd fd = memfd();
    EXPECT_EQ(ftruncate(fd.raw(), token % 2 == 0 ? 2 : 1), 0);
    return w.try_preserve(id, token, std::move(fd));
  }
  void preserve(SessionId id, std::uint64_t token) {
    const auto done = try_preserve(id, token);
    EXPECT_TRUE(done.has_value()) << to_string(done.error());
    w.engine->settle_flbs();
  }
  void cross() {
    w.cross();
    w.engine->sweep();
    w.engine->settle_flbs();
  }
  Calls take() {
    Calls all = w.take_calls();
    std::erase_if(all, [](const std::string& call) { return call.starts_with("can_finish"); });
    return all;
  }
  Engine::FlbView view(std::string_view name) {
    Engine::FlbView found{};
    w.engine->for_each_flb([&](const Engine::FlbView& f) {
      if (f.name == name) found = f;
    });
    return found;
  }

  World w;
  Calls& calls = w.calls;
  FakeHandler even{"even-v1", calls}, odd{"odd-v1", calls};
  FakeFlb a{"a", calls}, b{"b", calls}, c{"c", calls};
  HandlerRegistry registry;
};

TEST_F(Flbs, BeginWithTheFirstFileInOrderAndEndWithTheLastInReverse) {
  const SessionId one = w.create("one"), two = w.create("two");
  preserve(one, 2);
  EXPECT_THAT(take(), ElementsAre("preserve a", "preserve b", "preserve c", "preserve 2"));
  preserve(two, 1);
  preserve(two, 4);
  EXPECT_THAT(take(), ElementsAre("preserve 1", "preserve 4"));
  EXPECT_EQ(view("a").outgoing_files, 2U);
  EXPECT_EQ(view("b").outgoing_files, 3U);
  w.expect_sound();
  EXPECT_TRUE(w.unpreserve(one, 2).has_value());
  EXPECT_THAT(take(), ElementsAre("unpreserve 2"));
  w.clients.erase(two);
  w.closed(two);
  EXPECT_THAT(take(), ElementsAre("unpreserve 4", "unpreserve c", "unpreserve a", "unpreserve 1", "unpreserve b"));
  EXPECT_EQ(b.last.object, &b);
  EXPECT_EQ(b.last.data, 101U);
  EXPECT_FALSE(view("b").outgoing);
  w.expect_sound();
  preserve(one, 6);
  EXPECT_THAT(take(), ElementsAre("preserve a", "preserve b", "preserve c", "preserve 6")) << "anew";
}

TEST_F(Flbs, AFailureUndoesInReverseAndLeavesNothing) {
  const SessionId id = w.create("s");
  c.preserve_error = EIO;
  const auto refused = try_preserve(id, 2);
  EXPECT_EQ(code(refused), EIO);
  EXPECT_THAT(to_string(refused.error()), HasSubstr("FLB c"));
  w.engine->settle_flbs();
  EXPECT_THAT(take(), ElementsAre("preserve a", "preserve b", "preserve c", "unpreserve b", "unpreserve a"));
  c.preserve_error = 0;
  even.errors["preserve 2"] = EFBIG;
  EXPECT_EQ(code(try_preserve(id, 2)), EFBIG);
  w.engine->settle_flbs();
  EXPECT_THAT(take(), ElementsAre("preserve a", "preserve b", "preserve c", "preserve 2", "unpreserve c",
                                  "unpreserve b", "unpreserve a"));
  preserve(id, 1);
  EXPECT_EQ(code(try_preserve(id, 2)), EFBIG);
  EXPECT_THAT(take(), ElementsAre("preserve b", "preserve 1", "preserve a", "preserve c", "preserve 2", "unpreserve c",
                                  "unpreserve a"))
      << "b is in use and stays";
  w.expect_sound();
}

TEST_F(Flbs, OfAStepThatIsTakenBackEndUnlessItIsDoneAgain) {
  const SessionId id = w.create("s");
  for (const bool again : {false, true}) {
    Fd fd = memfd();
    EXPECT_EQ(ftruncate(fd.raw(), 1), 0);
    const auto attempt = [&](Change& change) { return w.engine->preserve(change, id, {Token{1}, fd.raw(), 0}); };
    {
      Change change{*w.arena};
      EXPECT_TRUE(attempt(change).has_value());
    }
    if (again) w.run([&](Change& change) { EXPECT_TRUE(attempt(change).has_value()); });
    w.engine->settle_flbs();
    if (again) (void)fd.release();
    EXPECT_THAT(take(), again ? ElementsAre("preserve b", "preserve 1", "preserve 1")
                              : ElementsAre("preserve b", "preserve 1", "unpreserve b"));
    w.expect_sound();
  }
}

TEST_F(Flbs, CrossWithTheirCountsAndEndWithTheLastFile) {
  const SessionId one = w.create("one"), two = w.create("two");
  preserve(one, 2);
  preserve(two, 1);
  take();
  cross();
  EXPECT_THAT(take(), ElementsAre("freeze 2", "freeze 1", "forget a", "forget b", "forget c"));
  EXPECT_EQ(view("b").incoming_files, 2U);
  EXPECT_EQ(view("b").outgoing_files, 0U);
  w.expect_sound();
  reopen();
  // Early access, before any session is retrieved; again gives the same, and does not call again.
  for (int again = 0; again < 2; ++again) {
    const auto object = w.engine->get_incoming(b);
    ASSERT_TRUE(object.has_value()) << to_string(object.error());
    EXPECT_EQ(*object, &b);
  }
  EXPECT_THAT(take(), ElementsAre("retrieve b 101"));
  w.engine->put_incoming(b);
  w.engine->put_incoming(b);
  w.engine->settle_flbs();
  EXPECT_THAT(take(), IsEmpty()) << "files still hold it";
  w.retrieve_session("one");
  w.retrieve_session("two");
  EXPECT_TRUE(w.finish(one).has_value());
  EXPECT_THAT(take(), ElementsAre("finish- 2", "retrieve c 101", "finish c 101", "retrieve a 101", "finish a 101"));
  EXPECT_TRUE(w.finish(two).has_value());
  EXPECT_THAT(take(), ElementsAre("finish- 1", "finish b 101"));
  EXPECT_EQ(code(w.engine->get_incoming(b)), ENODATA);
  w.expect_sound();
  reopen();
  EXPECT_EQ(code(w.engine->get_incoming(b)), ENODATA);
  EXPECT_EQ(code(w.engine->get_outgoing(b)), ENOENT);
}

TEST_F(Flbs, ThatNobodyAskedForAreRetrievedAndFinished) {  // the reference's D7
  preserve(w.create("s"), 1);
  cross();
  reopen();
  const SessionId id = w.retrieve_session("s");
  take();
  EXPECT_TRUE(w.finish(id).has_value());
  EXPECT_THAT(take(), ElementsAre("finish- 1", "retrieve b 101", "finish b 101"));
  EXPECT_EQ(b.last.object, &b);
}

TEST_F(Flbs, RememberAFailedRetrieval) {
  preserve(w.create("s"), 1);
  cross();
  b.retrieve_error = EREMOTEIO;
  take();
  for (int again = 0; again < 2; ++again) {
    EXPECT_EQ(code(w.engine->get_incoming(b)), EREMOTEIO);
    b.retrieve_error = 0;
  }
  w.engine->settle_flbs();
  reopen();
  EXPECT_EQ(code(w.engine->get_incoming(b)), EREMOTEIO);
  EXPECT_THAT(take(), ElementsAre("retrieve b 101"));
  const SessionId id = w.retrieve_session("s");
  EXPECT_TRUE(w.finish(id).has_value());
  EXPECT_THAT(take(), ElementsAre("finish- 1", "finish b 101"));
  EXPECT_EQ(b.last.object, nullptr);
  w.expect_sound();
}

TEST_F(Flbs, SomebodyWhoHasOneKeepsItAliveOnThisSideOnly) {
  const SessionId id = w.create("s");
  EXPECT_EQ(code(w.engine->get_outgoing(b)), ENOENT);
  preserve(id, 1);
  ASSERT_TRUE(w.engine->get_outgoing(b).has_value());
  take();
  EXPECT_TRUE(w.unpreserve(id, 1).has_value());
  w.engine->settle_flbs();
  EXPECT_THAT(take(), ElementsAre("unpreserve 1"));
  w.expect_sound();
  w.engine->put_outgoing(b);
  w.engine->settle_flbs();
  EXPECT_THAT(take(), ElementsAre("unpreserve b"));
  EXPECT_FALSE(view("b").outgoing);
  // One that is never put does not keep the next side from finishing: counts are of files.
  preserve(id, 1);
  ASSERT_TRUE(w.engine->get_outgoing(b).has_value());
  cross();
  w.retrieve_session("s");
  take();
  EXPECT_TRUE(w.finish(id).has_value());
  EXPECT_THAT(take(), Contains("finish b 102"));
  w.expect_sound();
}

TEST_F(Flbs, AWorkerThatDiesWhileSomebodyHasOneEndsIt) {
  const SessionId id = w.create("s");
  preserve(id, 1);
  ASSERT_TRUE(w.engine->get_outgoing(b).has_value());
  EXPECT_TRUE(w.unpreserve(id, 1).has_value());
  take();
  reopen();
  EXPECT_THAT(take(), ElementsAre("reattach b 101", "unpreserve b"));
  w.expect_sound();
}

TEST_F(Flbs, ANextWorkerReattachesWhatIsOutgoing) {
  preserve(w.create("s"), 1);
  reopen();
  take();
  const auto object = w.engine->get_outgoing(b);
  ASSERT_TRUE(object.has_value());
  EXPECT_EQ(*object, &b);
  EXPECT_THAT(take(), ElementsAre("reattach b 101"));
}

TEST_F(Flbs, WithoutAnObjectCannotBeGot) {
  b.no_object = true;
  preserve(w.create("s"), 1);
  EXPECT_EQ(code(w.engine->get_outgoing(b)), ENOENT);
}

TEST_F(Flbs, OfWhatNobodyClaimsAreFinishedWithTheSweep) {
  preserve(w.create("s"), 2);
  cross();
  preserve(w.create("t"), 1);
  take();
  cross();
  const Calls seen = take();
  EXPECT_THAT(seen, Contains("finish a 101"));
  EXPECT_THAT(seen, Contains("finish b 101"));
  EXPECT_TRUE(view("b").incoming);
  EXPECT_EQ(view("b").incoming_files, 1U);
  EXPECT_FALSE(view("a").incoming);
  w.expect_sound();
}

TEST_F(Flbs, FollowARenewedSessionToTheOutgoingSide) {
  preserve(w.create("s"), 2);
  preserve(w.create("t"), 1);
  cross();
  const SessionId id = w.retrieve_session("s");
  take();
  EXPECT_TRUE(w.step([&](Change& change) { return w.engine->renew(change, id, Role::Owner); }).has_value());
  EXPECT_THAT(take(), ElementsAre("preserve a", "preserve b", "preserve c", "retrieve c 101", "finish c 101",
                                  "retrieve a 101", "finish a 101"));
  EXPECT_EQ(view("b").outgoing_files, 1U);
  EXPECT_EQ(view("b").incoming_files, 1U);
  w.expect_sound();
}

TEST_F(Flbs, AHandlerThatIsTiedToOthersLaterKeepsWhatItsOldFilesHold) {
  const SessionId id = w.create("s");
  preserve(id, 1);
  HandlerRegistry more;
  FakeFlb d{"d", calls};
  for (Handler* handler : {&even, &odd}) EXPECT_TRUE(more.add(*handler).has_value());
  EXPECT_TRUE(more.add_flb(odd, d).has_value());
  EXPECT_TRUE(more.add_flb(even, a).has_value());
  // b is not tied to anything any more, but a file holds it.
  EXPECT_EQ(code(Engine::open(*w.arena, more, nullptr)), ENOTSUP);
  EXPECT_TRUE(more.add_flb(even, b).has_value());
  reopen(&more);
  take();
  preserve(id, 3);
  EXPECT_THAT(take(), ElementsAre("preserve d", "preserve 3"));
  EXPECT_EQ(view("b").outgoing_files, 1U);
  EXPECT_TRUE(w.unpreserve(id, 1).has_value());
  EXPECT_THAT(take(), ElementsAre("unpreserve 1", "reattach b 101", "unpreserve b"));
  EXPECT_TRUE(w.unpreserve(id, 3).has_value());
  EXPECT_THAT(take(), ElementsAre("unpreserve 3", "unpreserve d"));
  w.expect_sound();
  w.engine.reset();
}

TEST_F(Flbs, AreRegisteredByTheRules) {
  FakeHandler stranger{"stranger", calls};
  FakeFlb twin{"a", calls}, nameless{"", calls}, longer{std::string(48, 'x'), calls};
  EXPECT_EQ(code(registry.add_flb(stranger, a)), EINVAL);
  EXPECT_EQ(code(registry.add_flb(even, a)), EEXIST);
  EXPECT_EQ(code(registry.add_flb(odd, twin)), EEXIST);
  EXPECT_EQ(code(registry.add_flb(odd, nameless)), EINVAL);
  EXPECT_EQ(code(registry.add_flb(odd, longer)), EINVAL);
  std::vector<std::unique_ptr<FakeFlb>> many;
  for (int i = 0; i < 60; ++i) {
    many.push_back(std::make_unique<FakeFlb>(fmt::format("f{}", i), calls));
    EXPECT_TRUE(registry.add_flb(odd, *many.back()).has_value());
  }
  FakeFlb one_more{"g", calls};
  EXPECT_EQ(code(registry.add_flb(odd, one_more)), ENOSPC);
  reopen();
  preserve(w.create("s"), 1);
  EXPECT_EQ(view("f59").outgoing_files, 1U);
  w.expect_sound();
}

TEST_F(Flbs, HandlersSeeWhatCameInBeforeAnybodyRetrievesIt) {
  const SessionId id = w.create("s");
  preserve(id, 1);
  preserve(id, 2);
  preserve(w.create("t"), 3);
  cross();
  Calls seen;
  w.engine->for_each_incoming(odd, [&](std::string_view session, const KeptFile& file) {
    seen.push_back(fmt::format("{} {} {}", session, file.token.raw(), file.data[0]));
  });
  EXPECT_THAT(seen, ElementsAre("s 1 1", "t 3 3"));
}

TEST_F(Flbs, StandInTheWayOfTheVersionBeforeOnlyWhileTheyLive) {
  const SessionId id = w.create("s");
  preserve(id, 1);
  const auto back = [&] { return w.step([&](Change& change) { return w.engine->write_version_before(change); }); };
  EXPECT_EQ(code(back()), ENOTSUP);
  EXPECT_TRUE(w.unpreserve(id, 1).has_value());
  EXPECT_TRUE(back().has_value());
  const auto names = [&] {
    const auto* root = w.arena->get(Ref<RootRecord>{w.arena->root(0).raw()});
    std::set<std::string> all;
    const HandlersRecord& handlers = *w.arena->get(root->handlers);
    for (std::uint64_t i = 0; i < handlers.count; ++i) EXPECT_TRUE(all.insert(handlers.name[i]).second) << "twice";
    return all.size();
  };
  EXPECT_GE(names(), 3U);
  reopen();
  preserve(id, 1);
  w.expect_sound();
}

TEST_F(Flbs, OfManyFilesEndInOneStep) {
  const SessionId id = w.create("s");
  for (std::uint64_t token = 0; token < 2000; ++token) preserve(id, token * 2 + 1);
  take();
  w.clients.erase(id);
  w.closed(id);
  EXPECT_EQ(take().back(), "unpreserve b");
  EXPECT_EQ(view("b").outgoing_files, 0U);
  w.expect_sound();
}

TEST_F(Flbs, LeaveNothingBehindHoweverOftenTheyCross) {  // the reference's D10
  std::uint64_t blocks = 0;
  for (int round = 0; round < 6; ++round) {
    const std::string name = fmt::format("s{}", round);
    preserve(w.create(name), 2);
    cross();
    const SessionId id = w.retrieve_session(name);
    EXPECT_TRUE(w.engine->get_incoming(a).has_value());
    w.engine->put_incoming(a);
    EXPECT_TRUE(w.finish(id).has_value());
    w.clients.erase(id);
    w.closed(id);
    w.engine->settle_flbs();
    w.expect_sound();
    if (round > 1) {
      EXPECT_EQ(w.arena->stats().blocks, blocks);
    }
    blocks = w.arena->stats().blocks;
  }
}

}  // namespace
}  // namespace luo::testing
