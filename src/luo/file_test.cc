// Files: errors in their order, identity, retrieve, finish.
#include <gmock/gmock.h>
#include <sys/eventfd.h>

#include "luo/engine_testing.h"

namespace luo::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// An incoming, retrieved session with files 1, 2, 3.
SessionId retrieved(World& w) {
  const SessionId id = w.create("vm");
  for (std::uint64_t token : {1, 2, 3}) w.preserve(id, token);
  w.cross();
  w.engine->sweep();
  w.retrieve_session("vm");
  w.take_calls();
  return id;
}

TEST(Preserve, KeepsTheFileUnderItsToken) {
  World w;
  const SessionId id = w.create("vm");
  Fd fd = memfd();
  const int number = fd.raw();
  struct stat st {};
  fstat(number, &st);
  w.preserve(id, 0, std::move(fd));
  w.preserve(id, UINT64_MAX);
  std::vector<FileView> views;
  w.engine->for_each_file(id, [&](const FileView& f) { views.push_back(f); });
  ASSERT_EQ(views.size(), 2U);
  EXPECT_EQ(views[0].token, Token{0});
  EXPECT_EQ(views[0].fd, number);
  EXPECT_EQ(views[0].handler, "fake-v1");
  EXPECT_EQ(views[0].inode, st.st_ino);
  EXPECT_EQ(views[0].device, st.st_dev);
  EXPECT_EQ(views[0].data[1], 1U);
  EXPECT_EQ(views[0].retrieve_status, 0);
  EXPECT_EQ(views[1].token, Token{UINT64_MAX});
  EXPECT_EQ(w.engine->file_count(), 2U);
  EXPECT_EQ(w.engine->find(id)->files, 2U);
  w.expect_sound();
}

/// Each request has all the faults from one on; the first of them decides.
TEST(Preserve, ReportsErrorsInTheKernelsOrder) {
  World w;
  const SessionId id = w.create("vm");
  const SessionId other = w.create("other");
  Fd same = memfd();
  const Fd dup = duplicate(same);
  w.preserve(other, 9, std::move(same));
  w.preserve(id, 1);
  w.fake.errors["preserve 5"] = EFBIG;
  // The handler's own errno comes last.
  EXPECT_EQ(code(w.try_preserve(id, 5, memfd())), EFBIG);
  // A file that is preserved already, before the handler is asked.
  w.take_calls();
  const auto busy = w.try_preserve(id, 5, duplicate(dup));
  EXPECT_EQ(code(busy), EBUSY);
  EXPECT_THAT(busy.error().what, HasSubstr("preserve token 5 in session 'vm': the file is already preserved in "
                                           "session 'other' under token 9"));
  EXPECT_THAT(w.calls, IsEmpty());
  // No handler.
  EXPECT_EQ(code(w.try_preserve(id, 5, Fd::adopt(open("/dev/null", O_RDWR | O_CLOEXEC)))), ENOENT);
  // O_PATH, a number that is not open, none; before that, what the client met.
  EXPECT_EQ(code(w.try_preserve(id, 5, Fd::adopt(open("/dev/null", O_PATH | O_CLOEXEC)))), EBADF);
  EXPECT_EQ(code(w.try_preserve(id, 5, Fd{})), EBADF);
  EXPECT_EQ(code(w.try_preserve(id, 5, Fd{}, EMFILE)), EMFILE);
  // The token, even if the descriptor is bad.
  EXPECT_EQ(code(w.try_preserve(id, 1, Fd{}, EBADF)), EEXIST);
  // Frozen, before the token.
  EXPECT_TRUE(w.step([&](Change& c) { return w.engine->begin_prepare(c, id); }).has_value());
  w.run([&](Change& c) { EXPECT_TRUE(w.engine->freeze_one(c, id).has_value()); });
  EXPECT_EQ(code(w.try_preserve(id, 1, Fd{}, EBADF)), EBUSY);
  EXPECT_EQ(code(w.unpreserve(id, 1)), EBUSY);
  w.run([&](Change& c) { w.engine->cancel_prepare(c, id); });
  EXPECT_EQ(w.tokens(id), std::vector<std::uint64_t>{1});
  // Incoming, before everything.
  w.cross();
  EXPECT_EQ(code(w.try_preserve(id, 1, Fd{}, EBADF)), EINVAL);
  EXPECT_EQ(code(w.unpreserve(id, 1)), EINVAL);
  EXPECT_EQ(code(w.try_preserve(SessionId{1234}, 1, Fd{})), EBADF);
  w.expect_sound();
}

TEST(Preserve, ThatFailsLeavesTheDescriptorToTheCaller) {
  World w;
  const SessionId id = w.create("vm");
  w.fake.errors["preserve 1"] = EINPROGRESS;
  const Fd fd = memfd();
  EXPECT_EQ(code(w.step([&](Change& c) { return w.engine->preserve(c, id, {Token{1}, fd.raw(), 0}); })), EINPROGRESS);
  EXPECT_TRUE(is_open(fd.raw()));
  EXPECT_EQ(w.engine->file_count(), 0U);
  w.expect_sound();
  w.fake.errors.clear();
  w.preserve(id, 1, duplicate(fd));  // asked again, it works
}

TEST(Preserve, AFileTwiceIsRefusedHoweverItWasOpened) {
  World w;
  const SessionId id = w.create("vm");
  Fd fd = memfd();
  Fd by_dup = duplicate(fd);
  Fd by_open = Fd::adopt(open(fmt::format("/proc/self/fd/{}", fd.raw()).c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(by_open.valid());
  w.preserve(id, 1, std::move(fd));
  EXPECT_EQ(code(w.try_preserve(id, 2, std::move(by_dup))), EBUSY);
  EXPECT_EQ(code(w.try_preserve(id, 2, duplicate(by_open))), EBUSY);
  EXPECT_TRUE(w.unpreserve(id, 1).has_value());
  w.preserve(id, 2, std::move(by_open));
  w.expect_sound();
}

TEST(Preserve, DoesNotMindAFileOfASessionWhoseHolderIsGone) {
  World w;
  const SessionId dead = w.create("dead");
  const SessionId id = w.create("vm");
  Fd fd = memfd();
  const Fd dup = duplicate(fd);
  w.preserve(dead, 1, std::move(fd));
  EXPECT_EQ(code(w.try_preserve(id, 2, duplicate(dup))), EBUSY);
  EXPECT_EQ(w.asked, 1);
  w.clients.erase(dead);
  w.take_calls();
  w.preserve(id, 2, duplicate(dup));
  EXPECT_THAT(w.take_calls(), ElementsAre("unpreserve 1", "preserve 2"));
  EXPECT_FALSE(w.engine->find(dead).has_value());
  // Of a session of one's own nobody asks: the one who asks holds it.
  EXPECT_EQ(code(w.try_preserve(id, 3, duplicate(dup))), EBUSY);
  EXPECT_EQ(w.asked, 2);
  w.expect_sound();
}

TEST(Preserve, CloseThatItCarriedOutStaysIfTheFileIsRefusedAllTheSame) {
  World w;
  const SessionId dead = w.create("dead");
  const SessionId id = w.create("vm");
  Fd fd = memfd();
  const Fd dup = duplicate(fd);
  w.preserve(dead, 1, std::move(fd));
  w.clients.erase(dead);
  w.fake.errors["preserve 2"] = EFBIG;
  EXPECT_EQ(code(w.try_preserve(id, 2, duplicate(dup))), EFBIG);
  EXPECT_FALSE(w.engine->find(dead).has_value());
  EXPECT_EQ(w.engine->file_count(), 0U);
  w.expect_sound();
}

TEST(Preserve, ABatchIsOneStepAndSmallInTheLog) {
  World w;
  const SessionId id = w.create("vm");
  constexpr std::uint64_t kBatch = 253;
  for (std::uint64_t round = 0; round < 4; ++round) {
    Change change{*w.arena};
    for (std::uint64_t i = 0; i < kBatch; ++i) {
      const std::size_t before = change.tx.room();
      Fd fd = memfd();
      ASSERT_TRUE(w.engine->preserve(change, id, {Token{round * kBatch + i}, fd.raw(), 0}).has_value());
      (void)fd.release();
      EXPECT_LT(before - change.tx.room(), 4096U);
    }
    change.commit();
  }
  EXPECT_EQ(w.engine->file_count(), 4 * kBatch);
  w.expect_sound();
  w.closed(id);
  EXPECT_EQ(w.engine->file_count(), 0U);
  EXPECT_THAT(w.fds(), IsEmpty());
  w.expect_sound();
}

TEST(Unpreserve, GivesOneFileUp) {
  World w;
  const SessionId id = w.create("vm");
  for (std::uint64_t token : {1, 2, 3}) w.preserve(id, token);
  const int fd = [&] {
    int found = -1;
    w.engine->for_each_file(id, [&](const FileView& f) { found = f.token == Token{2} ? f.fd : found; });
    return found;
  }();
  w.take_calls();
  EXPECT_TRUE(w.unpreserve(id, 2).has_value());
  EXPECT_THAT(w.take_calls(), ElementsAre("unpreserve 2"));
  EXPECT_FALSE(is_open(fd));
  EXPECT_THAT(w.tokens(id), ElementsAre(1, 3));
  EXPECT_EQ(code(w.unpreserve(id, 2)), ENOENT);
  w.preserve(id, 2);
  EXPECT_THAT(w.tokens(id), ElementsAre(1, 3, 2));
  w.expect_sound();
}

TEST(Retrieve, GivesTheSameDescriptorAgainAndAsksTheHandlerOnce) {
  World w;
  const SessionId id = retrieved(w);
  const auto first = w.retrieve(id, 2);
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(w.retrieve(id, 2).value(), *first);
  EXPECT_THAT(w.take_calls(), ElementsAre("retrieve 2"));
  EXPECT_TRUE(is_open(*first));
  EXPECT_EQ(code(w.retrieve(id, 9)), ENOENT);
  std::vector<int> statuses;
  w.engine->for_each_file(id, [&](const FileView& f) { statuses.push_back(f.retrieve_status); });
  EXPECT_THAT(statuses, ElementsAre(0, 1, 0));
}

TEST(Retrieve, RemembersAFailure) {
  World w;
  const SessionId id = retrieved(w);
  w.fake.errors["retrieve 1"] = ENOSPC;
  EXPECT_EQ(code(w.retrieve(id, 1)), ENOSPC);
  w.fake.errors.clear();
  w.take_calls();
  EXPECT_EQ(code(w.retrieve(id, 1)), ENOSPC);
  EXPECT_THAT(w.take_calls(), IsEmpty());
  w.reopen();
  EXPECT_EQ(code(w.retrieve(id, 1)), ENOSPC);
  EXPECT_TRUE(w.finish(id).has_value());
  EXPECT_THAT(w.take_calls(),
              ElementsAre("can_finish 1", "can_finish 2", "can_finish 3", "finish- 3", "finish- 2", "finish- 1"));
}

TEST(Retrieve, IsForRetrievedSessions) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 1);
  EXPECT_EQ(code(w.retrieve(id, 1)), EINVAL);
  EXPECT_EQ(code(w.retrieve(id, 1, Role::Successor)), EINVAL);
  EXPECT_EQ(code(w.retrieve(id, 9)), EINVAL);
  w.cross();
  EXPECT_EQ(code(w.retrieve(id, 1)), EINVAL);
  w.retrieve_session("vm");
  EXPECT_TRUE(w.retrieve(id, 1).has_value());
  EXPECT_TRUE(w.finish(id).has_value());
  EXPECT_EQ(code(w.retrieve(id, 1)), ENOENT);
}

TEST(Finish, AsksAllBeforeAnyAndGoesNewestFirst) {
  World w;
  const SessionId id = retrieved(w);
  EXPECT_TRUE(w.retrieve(id, 2).has_value());
  w.fake.errors["can_finish 2"] = 1;
  w.take_calls();
  const auto busy = w.finish(id);
  EXPECT_EQ(code(busy), EBUSY);
  EXPECT_THAT(busy.error().what, HasSubstr("token 2"));
  EXPECT_THAT(w.take_calls(), ElementsAre("can_finish 1", "can_finish 2"));
  EXPECT_EQ(w.tokens(id).size(), 3U);
  w.fake.errors.clear();
  EXPECT_TRUE(w.finish(id).has_value());
  EXPECT_THAT(w.take_calls(),
              ElementsAre("can_finish 1", "can_finish 2", "can_finish 3", "finish- 3", "finish+ 2", "finish- 1"));
  EXPECT_EQ(w.state(id), SessionState::Finished);
  EXPECT_EQ(w.engine->file_count(), 0U);
  EXPECT_THAT(w.tokens(id), IsEmpty());
  EXPECT_TRUE(w.finish(id).has_value());
  EXPECT_THAT(w.take_calls(), IsEmpty());
  w.expect_sound();
  w.closed(id);
  EXPECT_THAT(w.take_calls(), IsEmpty());
  EXPECT_FALSE(w.engine->find(id).has_value());
  w.expect_sound();
}

TEST(Finish, IsForRetrievedSessions) {
  World w;
  const SessionId id = w.create("vm");
  EXPECT_EQ(code(w.finish(id)), EINVAL);
  w.cross();
  EXPECT_EQ(code(w.finish(id)), EINVAL);
  EXPECT_EQ(code(w.finish(SessionId{1234})), EBADF);
}

TEST(Finish, LeavesTheFileBusyUntilThen) {
  World w;
  const SessionId before = w.create("vm");
  Fd fd = memfd();
  const Fd dup = duplicate(fd);
  w.preserve(before, 1, std::move(fd));
  w.cross();
  const SessionId after = w.create("vm");
  EXPECT_EQ(code(w.try_preserve(after, 1, duplicate(dup))), EBUSY);
  w.retrieve_session("vm");
  EXPECT_EQ(code(w.try_preserve(after, 1, duplicate(dup))), EBUSY);
  EXPECT_TRUE(w.finish(before).has_value());
  w.preserve(after, 1, duplicate(dup));
  w.expect_sound();
}

/// More files than one step takes out: the rest follows after the commit, or after a crash before it.
TEST(Files, OfALargeSessionGoInSteps) {
  World w;
  w.fake.identify = [](const FileInfo& f) { return Identity{1, static_cast<std::uint64_t>(f.fd), false}; };
  for (const bool crash : {false, true}) {
    for (const bool crossed : {false, true}) {
      const SessionId id = w.create("large");
      const Fd one = memfd();
      constexpr std::uint64_t kFiles = 1000;
      for (std::uint64_t token = 0; token < kFiles; ++token) w.preserve(id, token, duplicate(one));
      std::vector<int> fds = w.fds();
      if (crossed) {
        w.cross();
        w.engine->sweep();
        fds = w.fds();
        w.retrieve_session("large");
      }
      w.take_calls();
      {
        Change change{*w.arena};
        if (crossed) EXPECT_TRUE(w.engine->finish(change, id).has_value());
        else w.engine->holder_closed(change, id, Role::Owner);
        if (crash) change.tx.commit();  // killed right after it
        else change.commit();
      }
      const Calls calls = w.take_calls();
      ASSERT_EQ(calls.size(), crossed ? 2 * kFiles : kFiles);
      EXPECT_EQ(calls.back(), crossed ? "finish- 0" : "unpreserve 0");
      EXPECT_EQ(w.engine->file_count(), 0U);
      const auto all_closed = [&] {
        for (const int fd : fds) EXPECT_FALSE(is_open(fd)) << fd;
      };
      if (!crash) all_closed();
      // What still names the file only waits to be swept: it keeps nobody out.
      const SessionId next = w.create("next");
      w.fake.identify = [&](const FileInfo&) { return Identity{1, static_cast<std::uint64_t>(fds.back()), false}; };
      w.preserve(next, 1);
      w.fake.identify = [](const FileInfo& f) { return Identity{1, static_cast<std::uint64_t>(f.fd), false}; };
      w.expect_sound();
      if (crash) {
        const int write_end = crossed ? -1 : fds.front();  // closed by the next worker, as nobody names it
        if (write_end >= 0) ::close(write_end);
        w.reopen();
        EXPECT_EQ(w.take_calls().size(), 1U) << "handlers were told before the crash";
        all_closed();
      }
      EXPECT_EQ(w.fds().size(), crossed ? 3U : 2U);
      w.expect_sound();
      w.closed(next);
      if (crossed) w.closed(id);
      EXPECT_EQ(w.engine->session_count(), 0U);
      w.expect_sound();
    }
  }
}

/// ENOMEM has its place in the order, too, and leaves everything as it was.
TEST(Engine, WithoutMemoryRefusesInOrderAndGoesOnWhenThereIsSome) {
  World w{{}, 1_MiB};
  w.fake.identify = [](const FileInfo& f) { return Identity{1, static_cast<std::uint64_t>(f.fd), false}; };
  const SessionId id = w.create("first");
  const Fd one = memfd();
  w.preserve(id, 0, duplicate(one));
  // Sessions until no more fit, then files until the last block is gone.
  std::vector<SessionId> more;
  std::vector<Fd> clients;
  for (;;) {
    Capability cap = capability();
    const auto made = w.try_create(fmt::format("s{}", more.size()), cap.holder);
    if (!made) {
      EXPECT_EQ(code(made), ENOMEM) << to_string(made.error());
      close_number(cap.holder.write_fd);
      break;
    }
    clients.push_back(std::move(cap.client));
    more.push_back(*made);
  }
  ASSERT_GT(more.size(), 100U);
  w.expect_sound();
  std::uint64_t token = 1;
  while (true) {
    const auto done = w.try_preserve(id, token, duplicate(one));
    if (!done) {
      EXPECT_EQ(code(done), ENOMEM) << to_string(done.error());
      break;
    }
    ++token;
  }
  w.expect_sound();
  EXPECT_EQ(w.engine->file_count(), token);
  EXPECT_EQ(code(w.try_preserve(id, 0, Fd{}, EBADF)), EEXIST);
  EXPECT_EQ(code(w.try_preserve(id, token, Fd{}, EBADF)), ENOMEM);
  const Capability cap = capability();
  EXPECT_EQ(code(w.try_create("", cap.holder)), EINVAL);
  EXPECT_EQ(code(w.try_create("first", cap.holder)), ENOMEM);
  close_number(cap.holder.write_fd);
  // Freeing needs no memory; what was freed can be used.
  for (const SessionId s : more) w.closed(s);
  w.preserve(id, token, duplicate(one));
  w.expect_sound();
  w.closed(id);
  EXPECT_EQ(w.engine->session_count(), 0U);
  w.expect_sound();
}

TEST(Engine, RefusesAFileWhoseHandlerIsMissing) {
  World w;
  const SessionId id = w.create("vm");
  w.preserve(id, 1);
  Calls calls;
  FakeHandler other{"other-v1", calls};
  HandlerRegistry registry;
  ASSERT_TRUE(registry.add(other).has_value());
  const auto opened = Engine::open(*w.arena, registry, nullptr);
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code, ENOTSUP);
  EXPECT_THAT(opened.error().what, HasSubstr("fake-v1"));
  // One that no file needs may be missing, and a new one may come.
  EXPECT_TRUE(w.unpreserve(id, 1).has_value());
  EXPECT_TRUE(Engine::open(*w.arena, registry, nullptr).has_value());
  ASSERT_TRUE(registry.add(w.fake).has_value());
  EXPECT_TRUE(Engine::open(*w.arena, registry, nullptr).has_value());
}

TEST(HandlerRegistry, RefusesBadAndTakenNames) {
  Calls calls;
  FakeHandler good{"a-v1", calls}, twin{"a-v1", calls}, empty{"", calls}, endless{std::string(48, 'x'), calls},
      longest{std::string(47, 'x'), calls};
  HandlerRegistry registry;
  EXPECT_EQ(code(registry.add(good)), 0);
  EXPECT_EQ(code(registry.add(twin)), EEXIST);
  EXPECT_EQ(code(registry.add(empty)), EINVAL);
  EXPECT_EQ(code(registry.add(endless)), EINVAL);
  EXPECT_EQ(code(registry.add(longest)), 0);
  EXPECT_EQ(registry.find("a-v1"), &good);
  EXPECT_EQ(registry.find("b"), nullptr);
}

}  // namespace
}  // namespace luo::testing
