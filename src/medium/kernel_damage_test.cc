// Damaged records of the kernel medium: each bit of each is flipped in turn, each link of their list put wrong. Either
// the damage is refused, with a message, or it is harmless: nobody else's descriptor is closed, no loop goes on, and
// what the engine has is in the kernel when a kexec is due, nothing else.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>

#include "medium/fake_kernel.h"
#include "medium/kernel.h"

namespace luo::medium {
namespace {

Fd memfd() { return Fd::adopt(memfd_create("damage", MFD_CLOEXEC)); }
std::uint64_t inode_of(int fd) {
  struct stat st {};
  return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

/// A small world with a part of each kind.
class World {
 public:
  World() {
    start().value();
    device.most_files = 2;
    preserve(2, 3);  // a part that is full, and one more
    device.most_files = 1000;
    preserve(1, 3);
    preserve(3, 2, When::Late);
    preserve(4, 3);
    preserve(5, 2);
    device.most_sessions = device.session_count();
    preserve(6, 2);  // shares
    device.most_sessions = 1000;
    device.fails = [](const char*) { return ENOMEM; };
    give_up(4);  // what was left of it could not be put back
    device.fails = [](const char*) { return 0; };
    // A worker was killed in the middle of a step.
    const Fd fresh = memfd();
    kho::Tx tx{*arena};
    EXPECT_TRUE(kernel->preserve(1, fresh.raw(), When::Now));
    tx.abort();
    kernel->append_fds(sessions);
    for (const int session : sessions)
      for (int bit = 0; bit < 9; ++bit)
        if (const int at = session ^ 1 << bit; at > 2 && fcntl(at, F_GETFD) < 0)
          dup2(bystander.raw(), at), others.insert(at);
  }
  ~World() {
    for (const int other : others) close(other);
    std::vector<int> open;
    kernel->append_fds(open);
    open.insert(open.end(), sessions.begin(), sessions.end());
    for (const int fd : std::set<int>{open.begin(), open.end()})
      if (!others.contains(fd) && !is_file(fd)) close(fd);
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  /// As a worker does that comes after one that was killed.
  Result<> start() {
    auto opened = Kernel::open(*arena, device, [this](std::uint64_t group, const Visit& visit) {
      for (auto& [key, file] : files)
        if (group == kShared || key.first == group) visit(file.place, file.fd.raw());
    });
    if (!opened) return std::unexpected(opened.error());
    LUO_TRY(opened->check());
    kernel = std::make_unique<Kernel>(std::move(*opened));
    kernel->recover();
    return kernel->reserve();
  }
  void preserve(std::uint64_t group, int count, When when = When::Now) {
    for (int i = 0; i < count; ++i) {
      kho::Tx tx{*arena};
      Fd fd = memfd();
      const auto place = kernel->preserve(group, fd.raw(), when);
      ASSERT_TRUE(place) << to_string(place.error());
      inodes[{group, next}] = inode_of(fd.raw());
      files[{group, next++}] = {*place, std::move(fd)};
      tx.commit();
      kernel->settle();
      ASSERT_TRUE(kernel->reserve());
    }
  }
  void give_up(std::uint64_t group) {
    const auto at = files.lower_bound({group, 0});
    ASSERT_EQ(at->first.first, group);
    kho::Tx tx{*arena};
    kernel->unpreserve(at->second.place);
    files.erase(at);
    tx.commit();
    kernel->settle();
  }
  /// As before a kexec.
  Result<> place_all() {
    for (auto& [key, file] : files) {
      if (kernel->holds(file.place)) continue;
      kho::Tx tx{*arena};
      file.place = LUO_TRY(kernel->preserve(key.first, file.fd.raw(), When::Late));
      tx.commit();
      LUO_TRY(kernel->reserve());
    }
    kernel->settle();
    LUO_TRY(kernel->complete());
    return {};
  }
  void expect_all() {
    EXPECT_EQ(device.file_count(), files.size()) << "in the kernel";
    for (auto& [key, file] : files)
      EXPECT_TRUE(device.has(file.fd.raw())) << "group " << key.first << ", file " << key.second;
    const Kernel::Counts counts = kernel->counts();
    EXPECT_EQ(counts.files, files.size());
    EXPECT_EQ(counts.lacking, 0U);
    EXPECT_EQ(counts.sessions, device.session_count());
    EXPECT_FALSE(device.duplicate_create);
  }
  void expect_others_untouched() const {
    for (const int other : others)
      EXPECT_EQ(inode_of(other), inode_of(bystander.raw())) << "descriptor " << other << " was closed";
    for (const auto& [key, file] : files)
      EXPECT_EQ(inode_of(file.fd.raw()), inodes.at(key)) << "the file's own descriptor was closed";
  }
  void go_on() {
    const std::uint64_t calls = device.calls;
    expect_others_untouched();
    for (const std::uint64_t group : {1, 2, 3, 4, 5, 6, 7}) preserve(group, 1);
    for (const std::uint64_t group : {6, 5, 4, 3, 2, 1}) give_up(group);
    const auto placed = place_all();
    ASSERT_TRUE(placed) << to_string(placed.error());
    expect_all();
    const auto again = start();
    ASSERT_TRUE(again) << to_string(again.error());
    expect_all();
    while (!files.empty()) give_up(files.begin()->first.first);
    EXPECT_EQ(device.session_count(), 0U) << "nothing is left";
    EXPECT_EQ(device.file_count(), 0U);
    expect_others_untouched();
    EXPECT_LT(device.calls - calls, 1000U) << "asked of the kernel";
  }

  KernelRoot& root() const { return *arena->get(kho::Ref<KernelRoot>{arena->root(Kernel::kRootSlot).raw()}); }
  PartsChunk& chunk() const { return *arena->get(root().chunks); }
  template <class Is>
  PartRecord* part(Is is) const {
    for (PartRecord& record : chunk().part)
      if (is(record)) return &record;
    return nullptr;
  }

  struct File {
    Place place;
    Fd fd;
  };
  FakeKernel device;
  std::unique_ptr<kho::Arena> arena = std::make_unique<kho::Arena>(
      kho::Arena::create({.name = "damage", .layout = {"test", 1}, .max_size = 4_MiB}).value());
  std::map<std::pair<std::uint64_t, std::uint64_t>, File> files;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t> inodes;
  std::uint64_t next = 1;
  std::unique_ptr<Kernel> kernel;
  const Fd bystander = memfd();
  std::set<int> others;       ///< descriptors of somebody else: those that a wrong bit makes of ours
  std::vector<int> sessions;  ///< of the kernel sessions before the damage

 private:
  bool is_file(int fd) const {
    for (const auto& [key, file] : files)
      if (file.fd.raw() == fd) return true;
    return fd == bystander.raw();
  }
};

struct Record {
  const char* name;
  std::span<std::byte> (*in)(const World&);
  bool (*is_refused)(std::size_t byte);  ///< whatever bit of it is wrong
};
std::ostream& operator<<(std::ostream& out, const Record& record) { return out << record.name; }

template <class T>
std::span<std::byte> bytes_of(T* record) {
  return std::as_writable_bytes(std::span{record, 1});
}
template <auto Member, class T>
bool is_of(std::size_t byte) {
  static T record{};
  const auto at =
      static_cast<std::size_t>(reinterpret_cast<std::byte*>(&(record.*Member)) - reinterpret_cast<std::byte*>(&record));
  return byte >= at && byte < at + sizeof(record.*Member);
}
bool names_it(std::size_t byte) {
  return is_of<&PartRecord::group, PartRecord>(byte) || is_of<&PartRecord::serial, PartRecord>(byte) ||
         is_of<&PartRecord::fd, PartRecord>(byte) || is_of<&PartRecord::birth, PartRecord>(byte);
}
PartRecord* of_group(const World& world, std::uint64_t group) {
  return world.part([&](const PartRecord& part) { return part.group == group; });
}

const Record kRecords[] = {
    {"Root", [](const World& world) { return bytes_of(&world.root()); },
     [](std::size_t byte) {
       return is_of<&KernelRoot::magic, KernelRoot>(byte) || is_of<&KernelRoot::key, KernelRoot>(byte) ||
              is_of<&KernelRoot::chunks, KernelRoot>(byte) || is_of<&KernelRoot::arriving, KernelRoot>(byte);
     }},
    {"Chunk", [](const World& world) { return bytes_of(&world.chunk()).first(64); }, [](std::size_t) { return true; }},
    {"Marked", [](const World& world) { return bytes_of(of_group(world, 1)); }, names_it},
    {"Full",
     [](const World& world) {
       return bytes_of(world.part([](const PartRecord& part) { return part.group == 2 && part.full != 0; }));
     },
     names_it},
    {"Ordinary",
     [](const World& world) {
       return bytes_of(world.part([](const PartRecord& part) { return part.group == 2 && part.full == 0; }));
     },
     names_it},
    {"Late", [](const World& world) { return bytes_of(of_group(world, 3)); }, names_it},
    {"Lacking", [](const World& world) { return bytes_of(of_group(world, 4)); },
     [](std::size_t byte) {  // without a kernel session it is not much that can be wrong
       return is_of<&PartRecord::fd, PartRecord>(byte) || is_of<&PartRecord::birth, PartRecord>(byte);
     }},
    {"Shared", [](const World& world) { return bytes_of(of_group(world, kShared)); }, names_it},
    {"Free", [](const World& world) { return bytes_of(of_group(world, 0)); },
     [](std::size_t byte) {
       return is_of<&PartRecord::fd, PartRecord>(byte) || is_of<&PartRecord::group, PartRecord>(byte);
     }},
};

class DamagedRecord : public testing::TestWithParam<Record> {};

TEST_P(DamagedRecord, IsRefusedOrHarmless) {
  const Record& record = GetParam();
  std::size_t refused = 0, bits = 0;
  {
    World world;
    ASSERT_NE(record.in(world).data(), nullptr);
    bits = record.in(world).size() * 8;
    ASSERT_TRUE(world.start());
    world.go_on();
    ASSERT_FALSE(HasFailure()) << "undamaged";
  }
  for (std::size_t bit = 0; bit < bits; ++bit) {
    SCOPED_TRACE(fmt::format("byte {}, bit {}", bit / 8, bit % 8));
    World world;
    ASSERT_FALSE(HasFailure());
    const auto bytes = record.in(world);
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    const auto started = world.start();
    if (!started) {
      ++refused;
      EXPECT_EQ(started.error().code, EBADMSG) << to_string(started.error());
      EXPECT_FALSE(started.error().what.empty());
      EXPECT_EQ(world.device.session_count(), world.sessions.size()) << "nothing was closed";
      world.expect_others_untouched();
      bytes[bit / 8] ^= std::byte{1} << (bit % 8);
      const auto mended = world.start();
      EXPECT_TRUE(mended) << to_string(mended.error());
    } else {
      EXPECT_FALSE(record.is_refused(bit / 8)) << "it was not refused";
    }
    world.go_on();
    if (HasFailure()) return;
  }
  RecordProperty("refused", static_cast<int>(refused));
  EXPECT_GT(refused, 0U);
}

INSTANTIATE_TEST_SUITE_P(Each, DamagedRecord, testing::ValuesIn(kRecords),
                         [](const auto& test) { return test.param.name; });

/// Two chunks, of which the first is used up in part, and a link that is wrong.
TEST(DamagedList, IsRefused) {
  struct Link {
    const char* name;
    std::function<void(World&, kho::Tx&)> make;
  };
  const auto second = [](World& world) -> PartsChunk& { return *world.arena->get(world.chunk().next); };
  const auto block = [](World& world, kho::Tx& tx, std::size_t bytes, int filled) {
    const auto at = tx.allocate(bytes).value();
    std::memset(world.arena->get(kho::Ref<std::byte>{at.raw()}), filled, bytes);
    return kho::Ref<PartsChunk>{at.raw()};
  };
  const Link links[] = {
      {"a chunk follows itself", [](World& world, kho::Tx&) { world.chunk().next = world.root().chunks; }},
      {"the last one is followed by the first",
       [&](World& world, kho::Tx&) { second(world).next = world.root().chunks; }},
      {"the last one is followed by itself", [&](World& world, kho::Tx&) { second(world).next = world.chunk().next; }},
      {"the first one is missing", [](World& world, kho::Tx&) { world.root().chunks = world.chunk().next; }},
      {"all are missing", [](World& world, kho::Tx&) { world.root().chunks = {}; }},
      {"the second one is missing", [](World& world, kho::Tx&) { world.chunk().next = {}; }},
      {"into the middle of a block", [](World& world, kho::Tx&) { world.chunk().next.at += 64; }},
      {"unaligned", [](World& world, kho::Tx&) { world.chunk().next.at += 1; }},
      {"far beyond the arena", [](World& world, kho::Tx&) { world.chunk().next.at = UINT64_MAX - 4095; }},
      {"into the header", [](World& world, kho::Tx&) { world.chunk().next.at = 4096; }},
      {"to the root record",
       [](World& world, kho::Tx&) { world.chunk().next.at = world.arena->root(Kernel::kRootSlot).raw(); }},
      {"to a block that is not allocated", [](World& world, kho::Tx&) { world.chunk().next.at += 32 * 4096; }},
      {"to a block of zeros",
       [&](World& world, kho::Tx& tx) { world.chunk().next = block(world, tx, sizeof(PartsChunk), 0); }},
      {"to a block of ones",
       [&](World& world, kho::Tx& tx) { world.chunk().next = block(world, tx, sizeof(PartsChunk), 0xff); }},
      {"to a block that is too small",
       [&](World& world, kho::Tx& tx) { world.chunk().next = block(world, tx, 64, 0); }},
      {"the root is missing", [](World&, kho::Tx& tx) { tx.set_root(Kernel::kRootSlot, PhysAddr{}); }},
      {"the root is elsewhere",
       [&](World& world, kho::Tx& tx) { tx.set_root(Kernel::kRootSlot, block(world, tx, 4096, 0).addr()); }},
      {"the root is a chunk",
       [](World& world, kho::Tx& tx) { tx.set_root(Kernel::kRootSlot, world.root().chunks.addr()); }},
      {"the root is nowhere",
       [](World& world, kho::Tx& tx) {
         tx.set_root(Kernel::kRootSlot, PhysAddr{world.arena->root(Kernel::kRootSlot).raw() + 16});
       }},
  };
  for (const Link& link : links) {
    SCOPED_TRACE(link.name);
    World world;
    for (std::uint64_t group = 100; group < 160; ++group) world.preserve(group, 1);
    ASSERT_TRUE(world.chunk().next);
    ASSERT_TRUE(std::ranges::any_of(second(world).part, [](const PartRecord& part) { return part.group != 0; }));
    std::vector<int> sessions;
    world.kernel->append_fds(sessions);
    {
      kho::Tx tx{*world.arena};
      link.make(world, tx);
      tx.commit();
    }
    const auto started = world.start();
    EXPECT_FALSE(started);
    if (!started) {
      EXPECT_EQ(started.error().code, EBADMSG) << to_string(started.error());
      EXPECT_FALSE(started.error().what.empty());
    }
    EXPECT_EQ(world.device.session_count(), sessions.size()) << "nothing was closed";
    EXPECT_EQ(world.device.file_count(), world.files.size() - 2) << "two are lacking";
    world.expect_others_untouched();
  }
}

}  // namespace
}  // namespace luo::medium
