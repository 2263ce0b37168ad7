// Damaged arenas: every bit of every record and table of a small world is flipped in turn. Either the
// damage is refused, and then nothing has been written, or all that the engine shows can still be walked.
#include <gmock/gmock.h>

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
    const auto record = [&](std::string name, auto ref) { add(std::move(name), w.arena->get(ref), sizeof *w.arena->get(ref)); };
    const auto table = [&](std::string name, const TableRecord& t) {
      add(std::move(name), w.arena->get(t.slots), t.capacity * sizeof(TableSlot));
    };
    std::set<std::uint64_t> trees;
    const auto session = [&](Ref<SessionRecord> s) {
      record("session", s);
      for (Ref<FileRecord> f = w.arena->get(s)->files.first; f; f = w.arena->get(f)->links.next) {
        record("file", f);
        if (const Ref<TreeRecord> tree = w.arena->get(f)->tree; tree && trees.insert(tree.at).second) record("tree", tree);
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
      engine.for_each_file(s.id, [&](const FileView& f) { sum += f.handler.size() + static_cast<std::uint64_t>(f.fd); });
      sum += engine.find(s.id).has_value() + engine.find_incoming(s.name).has_value() + engine.find_outgoing(s.name).has_value();
    });
    std::vector<int> fds;
    engine.append_fds(fds);
    EXPECT_GT(sum + fds.size(), 0U);
  }

  World w;
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

TEST_F(Damage, RootThatIsNoBlockIsRefused) {
  Change change{*w.arena};
  const PhysAddr real = w.arena->root(0);
  for (const std::uint64_t bad : {std::uint64_t{1}, real.raw() + 16, real.raw() + 8, ~std::uint64_t{0}, ~std::uint64_t{0} << 4}) {
    change.tx.set_root(0, PhysAddr{bad});
    change.tx.mark();
    const auto opened = Engine::open(*w.arena, w.registry, nullptr);
    ASSERT_FALSE(opened.has_value());
    EXPECT_EQ(opened.error().code, EBADMSG);
  }
}

}  // namespace
}  // namespace luo::testing
