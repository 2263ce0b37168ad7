// Damaged arenas: every bit of every record and table of a small world is flipped in turn. Either the
// damage is refused, and then nothing has been written, or all that the engine shows can still be walked.
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cstring>
#include <set>

#include "luo/engine_testing.h"
#include "luo/records.h"

namespace luo::testing {
namespace {

class Damage : public ::testing::Test {
 protected:
  struct Region {
    std::string name;
    std::byte* at;
    std::size_t length;
  };

  Damage() {
    for (FakeFlb* flb : {&flb_a, &flb_b}) EXPECT_TRUE(w.registry.add_flb(w.fake, *flb).has_value());
    w.reopen();
    w.fake.identify = [this](const FileInfo& f) {
      return per_file ? Identity{1, 1, true} : Identity{f.st.st_dev, f.st.st_ino, false};
    };
    root = w.arena->get(Ref<RootRecord>{w.arena->root(0).raw()});
  }

  void incoming_and_outgoing() {
    const SessionId incoming = w.create("incoming");
    w.preserve(incoming, 1);
    w.preserve(incoming, 2);
    w.create("finished");
    w.cross();
    w.engine->sweep();
    w.retrieve_session("finished");
    EXPECT_TRUE(w.finish(*w.engine->find_incoming("finished")).has_value());
    const SessionId outgoing = w.create("outgoing");
    per_file = true;
    for (std::uint64_t token = 0; token < 5; ++token) w.preserve(outgoing, token);
    per_file = false;
    w.preserve(outgoing, 6);
    const std::uint64_t after[] = {6, 2};
    const int dependent = memfd().release();
    EXPECT_TRUE(w.step([&](Change& c) {
                   return w.engine->preserve(c, outgoing, {.token = Token{7}, .fd = dependent, .after = after});
                 }).has_value());
    EXPECT_TRUE(
        w.step([&](Change& c) { return w.engine->set_hold(c, outgoing, Hold::Unit, "a.service"); }).has_value());
    EXPECT_TRUE(w.step([&](Change& c) { return w.engine->set_carry(c, outgoing, kCarryGrow, 0); }).has_value());
    EXPECT_TRUE(w.step([&](Change& c) { return w.engine->owner_prepare(c, outgoing); }).has_value());
    Capability cap = capability();
    EXPECT_TRUE(w.step([&](Change& c) { return w.engine->add_successor(c, outgoing, cap.holder, {}); }).has_value());
    successor = std::move(cap.client);
  }

  /// A session that was closed right before a crash, with more files than fit into that step.
  void doomed() {
    const SessionId id = w.create("doomed");
    w.preserve(id, 5);
    w.preserve(id, 6);
    const int write_end = w.engine->find(id)->holder[0].write_fd;
    Change change{*w.arena};
    const PhysAddr large = *change.tx.allocate(30000);
    while (change.tx.room() > (std::size_t{2} << 20)) change.tx.save(w.arena->get(Ref<std::byte>{large.raw()}), 30000);
    w.engine->holder_closed(change, id, Role::Owner);
    change.tx.release(large);
    change.tx.commit();
    ::close(write_end);
    ASSERT_TRUE(root->doomed);
  }

  void find_regions() {
    const auto add = [&](std::string name, auto* at, std::size_t length) {
      regions.push_back({std::move(name), reinterpret_cast<std::byte*>(at), length});
    };
    const auto record = [&](std::string name, auto ref) {
      add(std::move(name), w.arena->get(ref), sizeof *w.arena->get(ref));
    };
    const auto table = [&](std::string name, const TableRecord& t) {
      add(std::move(name), w.arena->get(t.slots), t.capacity * sizeof(TableSlot));
    };
    std::set<std::uint64_t> trees;
    const auto session = [&](Ref<SessionRecord> s) {
      record("session", s);
      for (Ref<FileRecord> f = w.arena->get(s)->files.first; f; f = w.arena->get(f)->links.next) {
        record("file", f);
        if (const Ref<TreeRecord> tree = w.arena->get(f)->tree; tree && trees.insert(tree.at).second)
          record("tree", tree);
      }
    };
    for (const auto* list : {&root->outgoing.sessions, &root->incoming.sessions, &root->dropped})
      for (Ref<SessionRecord> s = list->first; s; s = w.arena->get(s)->links.next) session(s);
    for (Ref<SessionRecord> s = root->doomed; s; s = w.arena->get(s)->next_doomed) session(s);
    record("root", Ref<RootRecord>{w.arena->root(0).raw()});
    add("handlers", w.arena->get(root->handlers), 16 + 2 * 48);
    table("outgoing names", root->outgoing.names);
    table("incoming names", root->incoming.names);
    table("ids", root->ids);
    table("inodes", root->inodes);
    table("tokens", root->tokens);
    table("identities", root->identities);
    table("trees", root->trees);
    add("flbs", w.arena->get(root->flbs), offsetof(FlbsRecord, held) + 3 * sizeof(std::uint64_t));
    add("flb", w.arena->get(root->flbs)->flb, 2 * sizeof(FlbRecord));
    table("options", root->options);
    table("relations", root->relations);
    const auto each = [&](std::string name, const TableRecord& t, auto kind) {
      for (std::uint64_t i = 0; i < t.capacity; ++i)
        if (const std::uint64_t ref = w.arena->get(t.slots)[i].ref; ref != 0) record(name, decltype(kind){ref});
    };
    each("option", root->options, Ref<OptionsRecord>{});
    each("relation", root->relations, Ref<RelationRecord>{});
  }

  std::vector<std::byte> image() const {
    std::vector<std::byte> bytes;
    for (const Region& r : regions) bytes.insert(bytes.end(), r.at, r.at + r.length);
    return bytes;
  }

  /// Calls `look` for each flip; it says whether the damage was refused.
  template <class Look>
  void flip_each(Look&& look) {
    std::size_t flips = 0;
    std::size_t refused = 0;
    for (const Region& r : regions) {
      for (std::size_t bit = 0; bit < r.length * 8; ++bit) {
        SCOPED_TRACE(fmt::format("{}: byte {}, bit {}", r.name, bit / 8, bit % 8));
        const std::byte mask{static_cast<unsigned char>(1U << (bit % 8))};
        r.at[bit / 8] ^= mask;
        const std::byte damaged = r.at[bit / 8];
        refused += look() ? 1 : 0;
        r.at[bit / 8] = damaged ^ mask;
        ++flips;
        if (HasFailure()) return;
      }
    }
    RecordProperty("flips", static_cast<int>(flips));
    // Most of what lies there is links, counts and keys; the rest (padding, ages, names of owners) may change.
    EXPECT_GT(refused * 2, flips) << refused << " of " << flips;
  }

  static void walk(const Engine& engine) {
    std::uint64_t sum = 0;
    engine.for_each_session([&](const SessionView& s) {
      sum += s.name.size() + s.files + to_string(s.state).size();
      for (const Holder& holder : s.holder) sum += engine.find_by_inode(holder.inode).has_value() ? 1 : 0;
      engine.for_each_file(s.id,
                           [&](const FileView& f) { sum += f.handler.size() + static_cast<std::uint64_t>(f.fd); });
      sum += engine.find(s.id).has_value() + engine.find_incoming(s.name).has_value() +
             engine.find_outgoing(s.name).has_value();
    });
    std::vector<int> fds;
    engine.append_fds(fds);
    EXPECT_GT(sum + fds.size(), 0U);
  }

  World w;
  FakeFlb flb_a{"a", w.calls}, flb_b{"b", w.calls};
  RootRecord* root = nullptr;
  bool per_file = false;
  Fd successor;
  std::vector<Region> regions;
};

TEST_F(Damage, IsRefusedWhenOpenedOrHarmless) {
  incoming_and_outgoing();
  w.reopen();  // nothing is left to sweep: opening writes nothing
  root = w.arena->get(Ref<RootRecord>{w.arena->root(0).raw()});
  find_regions();
  flip_each([&] {
    const auto before = image();
    const auto opened = Engine::open(*w.arena, w.registry, nullptr);
    if (opened) {
      root->stale_holders = 0;  // the one word that opening may settle
      walk(*opened);
      return false;
    }
    EXPECT_TRUE(image() == before);
    EXPECT_TRUE(opened.error().code == EBADMSG || opened.error().code == ENOTSUP) << to_string(opened.error());
    return true;
  });
}

TEST_F(Damage, OfWhatWaitsToBeSweptIsFoundByTheCheck) {
  const SessionId dropped = w.create("dropped");
  w.preserve(dropped, 1);
  w.preserve(dropped, 2);
  w.create("gone");
  w.cross();
  w.engine->sweep();
  incoming_and_outgoing();
  w.create("more");
  doomed();
  w.expect_sound();
  find_regions();
  flip_each([&] {
    const auto sound = w.engine->check();
    if (!sound) return true;
    walk(*w.engine);
    return false;
  });
  w.reopen();
  w.expect_sound();
}

/// The arena's content in a memfd of its own, so that what is done to it stays there.
Fd copy_of(const kho::Arena& arena) {
  Fd copy = memfd();
  const int from = arena.fd().raw;
  struct stat st {};
  EXPECT_EQ(fstat(from, &st), 0);
  EXPECT_EQ(ftruncate(copy.raw(), st.st_size), 0);
  std::vector<char> buffer(64 << 10);
  for (off_t at = lseek(from, 0, SEEK_DATA); at >= 0; at = lseek(from, at, SEEK_DATA)) {
    const off_t end = lseek(from, at, SEEK_HOLE);
    while (at < end) {
      const ssize_t n =
          pread(from, buffer.data(), std::min<std::size_t>(buffer.size(), static_cast<std::size_t>(end - at)), at);
      EXPECT_EQ(pwrite(copy.raw(), buffer.data(), static_cast<std::size_t>(n), at), n);
      at += n;
    }
  }
  return copy;
}

/// Everything that can be done with what is there. In a process of its own: descriptors get closed.
int use(const kho::Arena& damaged, const HandlerRegistry& registry) {
  auto arena = kho::Arena::open(copy_of(damaged), Engine::kLayout);
  if (!arena) return 1;
  auto engine = Engine::open(*arena, registry, nullptr);
  if (!engine) return 1;
  const auto step = [&](auto&& what) {
    Change change{*arena};
    what(change);
    change.commit();
  };
  const auto all = [&] {
    std::vector<SessionId> ids;
    engine->for_each_session([&](const SessionView& s) { ids.push_back(s.id); });
    return ids;
  };
  for (const SessionId id : all()) {
    std::vector<Token> tokens;
    engine->for_each_file(id, [&](const FileView& f) { tokens.push_back(f.token); });
    for (const Token token : tokens)
      step([&](Change& c) { (void)engine->retrieve(c, id, Role::Owner, token).has_value(); });
    if (!tokens.empty()) step([&](Change& c) { (void)engine->unpreserve(c, id, tokens.back()).has_value(); });
    step([&](Change& c) { (void)engine->renew(c, id, Role::Owner).has_value(); });
    step([&](Change& c) { (void)engine->owner_cancel(c, id).has_value(); });
    step([&](Change& c) { (void)engine->owner_prepare(c, id).has_value(); });
  }
  (void)engine->freeze_all().has_value();
  step([&](Change& c) { (void)engine->cross(c).has_value(); });
  engine->sweep();
  for (const SessionId id : all()) step([&](Change& c) { engine->holder_closed(c, id, Role::Owner); });
  (void)engine->freeze_all().has_value();
  for (int i = 0; i < 2; ++i) step([&](Change& c) { (void)engine->cross(c).has_value(); });
  engine->sweep();
  for (const SessionId id : all()) step([&](Change& c) { (void)engine->drop(c, id).has_value(); });
  return engine->session_count() == 0 ? 0 : 1;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::size_t kUseEvery = 50;  // a fork with their shadow memory takes 100 ms
#else
constexpr std::size_t kUseEvery = 1;
#endif

TEST_F(Damage, ThatIsAcceptedDoesNotBreakWhatComesAfterwards) {
  incoming_and_outgoing();
  w.reopen();
  root = w.arena->get(Ref<RootRecord>{w.arena->root(0).raw()});
  find_regions();
  std::size_t used = 0;
  const auto use_in_a_child = [&] {
    const pid_t child = fork();
    if (child == 0) _exit(use(*w.arena, w.registry));
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    return WEXITSTATUS(status);
  };
  ASSERT_EQ(use_in_a_child(), 0);
  for (const Region& r : regions) {
    for (std::size_t byte = 0; byte < r.length; ++byte) {
      const std::byte mask{static_cast<unsigned char>(1U << (byte * 5 % 8))};
      SCOPED_TRACE(fmt::format("{}: byte {}, bit {}", r.name, byte, byte * 5 % 8));
      r.at[byte] ^= mask;
      const bool accepted = w.engine->check().has_value();  // with the descriptors: a wrong number would be closed
      if (accepted && used++ % kUseEvery == 0) {
        const int refused = use_in_a_child();  // open looks at the names of handlers, too
        EXPECT_TRUE(refused == 0 || r.name == "handlers" || r.name == "flb" || r.name == "flbs");
      }
      r.at[byte] ^= mask;
    }
  }
  EXPECT_GT(used, 100U);
}

TEST_F(Damage, APredecessorIsTrustedForAllButTheFirstRecords) {
  const SessionId id = w.create("large");
  for (std::uint64_t token = 0; token < 1500; ++token) w.preserve(id, token);
  w.reopen();
  root = w.arena->get(Ref<RootRecord>{w.arena->root(0).raw()});
  const auto opens = [&](Engine::Trust trust) {
    const auto opened = Engine::open(*w.arena, w.registry, nullptr, Engine::Take::Later, trust);
    EXPECT_TRUE(opened.has_value() || opened.error().code == EBADMSG) << to_string(opened.error());
    return opened.has_value();
  };
  const SessionRecord& session = *w.arena->get(root->outgoing.sessions.first);
  for (const auto& [record, found] : {std::pair{session.files.first, true}, {session.files.last, false}}) {
    FileRecord& file = *w.arena->get(record);
    file.status = 7;
    EXPECT_FALSE(opens(Engine::Trust::Nobody));
    EXPECT_EQ(opens(Engine::Trust::Predecessor), !found);
    file.status = 0;
  }
  // A table that leads out of the arena is found in any case.
  root->tokens.slots.at ^= 1ULL << 40;
  EXPECT_FALSE(opens(Engine::Trust::Predecessor));
  root->tokens.slots.at ^= 1ULL << 40;
  EXPECT_TRUE(opens(Engine::Trust::Predecessor));
}

TEST_F(Damage, RootThatIsNoBlockIsRefused) {
  Change change{*w.arena};
  const PhysAddr real = w.arena->root(0);
  for (const std::uint64_t bad :
       {std::uint64_t{1}, real.raw() + 16, real.raw() + 8, ~std::uint64_t{0}, ~std::uint64_t{0} << 4}) {
    change.tx.set_root(0, PhysAddr{bad});
    change.tx.mark();
    const auto opened = Engine::open(*w.arena, w.registry, nullptr);
    ASSERT_FALSE(opened.has_value());
    EXPECT_EQ(opened.error().code, EBADMSG);
  }
}

}  // namespace
}  // namespace luo::testing
