// The engine on records that somebody has written over: open() refuses them, or all that the engine shows can
// be walked; if check() finds them sound too, the engine can be worked with and is sound afterwards. The
// arena's own tables stay whole here: fuzz_arena is about those. So do the numbers of descriptors: another
// number that is open cannot be told from the right one, and what the engine would close is this process's.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "damage.h"
#include "handlers/handlers.h"
#include "inspect/report.h"
#include "kho/format.h"
#include "luo/engine.h"
#include "luo/records.h"

namespace {

using namespace luo;
using luo::fuzz::Damage;
using luo::fuzz::found;

constexpr std::uint64_t kHeapBytes = std::uint64_t{4} << 20;

struct Name {
  char bytes[64] = {};
  explicit Name(std::string_view text) { text.copy(bytes, 63); }
  std::span<const char, 64> raw() const { return std::span<const char, 64>{bytes}; }
};

/// An engine with a session of every kind, as a worker that was killed leaves it.
class World {
 public:
  World() : handlers_{*make_handlers("all")} {
    kho::Arena arena =
        *kho::Arena::create({.name = "fuzz-engine", .layout = Engine::kLayout, .max_size = Bytes{kHeapBytes}});
    fd_ = Fd::adopt(fcntl(arena.fd().raw, F_DUPFD_CLOEXEC, 0));
    fill(arena);
    const kho::Geometry g = kho::geometry_of(kHeapBytes);
    auto* base = static_cast<std::byte*>(mmap(nullptr, g.file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.raw(), 0));
    if (base == MAP_FAILED) std::abort();
    // All that is in use, in pieces of a chunk. Only these are damaged; everything is put back.
    const auto* state = &reinterpret_cast<const kho::Header*>(base)->state;
    std::vector<std::span<std::byte>> records, rest;
    for (std::uint32_t i = 0; i < state->frontier; ++i)
      records.emplace_back(base + g.heap_at + i * kho::kChunkBytes, used_in(arena, g, i));
    std::erase_if(records, [](const auto& region) { return region.empty(); });
    for (std::uint32_t i = 0; i < state->frontier; ++i)
      rest.emplace_back(base + g.heap_at + i * kho::kChunkBytes, kho::kChunkBytes);
    rest.emplace_back(base + g.table_at, g.chunks * sizeof(kho::Chunk));
    rest.emplace_back(base + g.bitmap_at, g.chunks * kho::kBitmapBytes);
    rest.emplace_back(base + g.backed_at, g.backed_bytes);
    rest.emplace_back(base, sizeof(kho::Header));
    rest.emplace_back(base + kho::kLogAt, 64);
    records_.emplace(records);
    everything_.emplace(rest);
    find_numbers(base);
  }

  void damage(std::span<const std::uint8_t> input) {
    records_->apply(input);
    for (const auto& [at, number] : numbers_) *at = number;
  }
  const HandlerRegistry& registry() const { return handlers_->registry(); }
  Fd arena() const { return Fd::adopt(fcntl(fd_.raw(), F_DUPFD_CLOEXEC, 0)); }
  const std::vector<int>& fds() const { return fds_; }

  void restore() {
    everything_->restore();
    // Numbers that the engine has closed, and that others may have got since, name the same files again.
    for (std::size_t i = 0; i < fds_.size(); ++i) dup3(copies_[i], fds_[i], O_CLOEXEC);
  }

 private:
  /// How much of a chunk the records of a small world use; what lies behind has never been written.
  static std::size_t used_in(const kho::Arena& arena, const kho::Geometry& g, std::uint32_t chunk) {
    const std::uint64_t begin = g.heap_at + chunk * kho::kChunkBytes;
    std::size_t used = 0;
    for (std::uint64_t at = begin; at < begin + kho::kChunkBytes; at += 16)
      if (arena.is_allocated(PhysAddr{at}, 16)) used = at - begin + 16;
    return used;
  }

  void find_numbers(std::byte* base) {
    const auto at = [&]<class T>(Ref<T> ref) { return reinterpret_cast<T*>(base + ref.at); };
    const std::uint64_t root_at = reinterpret_cast<const kho::Header*>(base)->state.roots[0];
    const auto& root = *at(Ref<RootRecord>{root_at});
    const auto keep = [&](std::int32_t& number) { numbers_.emplace_back(&number, number); };
    for (const auto* list : {&root.outgoing.sessions, &root.incoming.sessions, &root.dropped})
      for (Ref<SessionRecord> s = list->first; s; s = at(s)->links.next) {
        for (HolderRecord& holder : at(s)->holder) {
          keep(holder.write_fd);
          keep(holder.read_fd);
        }
        for (Ref<FileRecord> f = at(s)->files.first; f; f = at(f)->links.next) keep(at(f)->fd);
      }
  }

  void fill(kho::Arena& arena) {
    Engine engine = *Engine::open(arena, registry(), nullptr);
    const auto holder = [] {
      int ends[2];
      if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) std::abort();
      struct stat st {};
      fstat(ends[0], &st);
      return Holder{ends[1], ends[0], st.st_ino, true, PeerId{1}};
    };
    const auto step = [&](auto&& what) {
      Change change{arena};
      what(change);
      change.commit();
    };
    const auto create = [&](std::string_view name) {
      SessionId id;
      step([&](Change& c) { id = *engine.create_session(c, Name{name}.raw(), holder(), {1000, 1}, 1); });
      return id;
    };
    const auto preserve = [&](SessionId id, std::uint64_t token, int fd) {
      step([&](Change& c) {
        if (!engine.preserve(c, id, {Token{token}, fd, 0})) std::abort();
      });
    };
    const auto all_kinds = [&](SessionId id) {
      int ends[2];
      if (pipe2(ends, O_CLOEXEC) != 0) std::abort();
      std::uint64_t token = 0;
      for (const int fd : {memfd_create("a", MFD_CLOEXEC), memfd_create("b", MFD_CLOEXEC), eventfd(0, EFD_CLOEXEC),
                           eventfd(0, EFD_CLOEXEC), eventfd(0, EFD_CLOEXEC), ends[0], ends[1]})
        preserve(id, token++, fd);
    };
    all_kinds(create("retrieved"));
    all_kinds(create("incoming"));
    create("finished");
    if (!engine.freeze_all()) std::abort();
    step([&](Change& c) { (void)engine.cross(c); });
    engine.sweep();
    for (const char* name : {"retrieved", "finished"})
      step([&](Change& c) { (void)engine.retrieve_session(c, Name{name}.raw(), holder(), {1000, 2}); });
    step([&](Change& c) { (void)engine.retrieve(c, *engine.find_incoming("retrieved"), Role::Owner, Token{0}); });
    step([&](Change& c) { (void)engine.finish(c, *engine.find_incoming("finished")); });
    const SessionId passing = create("passing");
    all_kinds(passing);
    step([&](Change& c) { (void)engine.add_successor(c, passing, holder(), {1000, 3}); });
    step([&](Change& c) { (void)engine.begin_prepare(c, passing); });
    all_kinds(create("outgoing"));
    const SessionId held = create("held");
    all_kinds(held);
    step([&](Change& c) { (void)engine.set_hold(c, held, Hold::Unit, "a.service"); });
    step([&](Change& c) { (void)engine.set_carry(c, held, kCarryTransient, 0); });
    const std::uint64_t after[] = {0, 6};
    step([&](Change& c) {
      const int fd = memfd_create("dependent", MFD_CLOEXEC);
      if (!engine.preserve(c, held, {.token = Token{8}, .fd = fd, .after = after})) std::abort();
    });
    step([&](Change& c) { (void)engine.owner_prepare(c, held); });
    if (const auto sound = engine.check(); !sound) found(to_string(sound.error()).c_str());
    engine.append_fds(fds_);
    std::ranges::sort(fds_);
    for (const int fd : fds_) copies_.push_back(fcntl(fd, F_DUPFD_CLOEXEC, 500));
  }

  std::unique_ptr<HandlerSet> handlers_;
  Fd fd_;
  std::optional<Damage> records_, everything_;
  std::vector<int> fds_, copies_;
  std::vector<std::pair<std::int32_t*, std::int32_t>> numbers_;  ///< where descriptors stand, and which
};

/// What is shown of it. Returns the sessions' ids.
std::vector<SessionId> walk(const Engine& engine) {
  std::vector<SessionId> sessions;
  engine.for_each_session([&](const SessionView& session) {
    sessions.push_back(session.id);
    (void)to_string(session.state);
    engine.for_each_file(session.id, [](const FileView& file) {
      if (file.handler.empty()) found("a file without a handler");
    });
    (void)engine.find_outgoing(session.name);
    (void)engine.find_incoming(session.name);
    for (const Holder& holder : session.holder) (void)engine.find_by_inode(holder.inode);
  });
  return sessions;
}

void work(kho::Arena& arena, Engine& engine, const std::vector<SessionId>& sessions) {
  const auto step = [&](auto&& what) {
    Change change{arena};
    what(change);
    change.commit();
  };
  const auto still_sound = [&](const char* what) {
    if (const auto sound = engine.check(); !sound)
      found(fmt::format("after {}: {}", what, to_string(sound.error())).c_str());
  };
  for (const SessionId id : sessions) {
    for (const std::uint64_t token : {0U, 3U, 6U}) {
      step([&](Change& c) { (void)engine.retrieve(c, id, Role::Owner, Token{token}); });
      step([&](Change& c) { (void)engine.retrieve(c, id, Role::Successor, Token{token}); });
    }
    step([&](Change& c) { (void)engine.unpreserve(c, id, Token{2}); });
    int fd = memfd_create("new", MFD_CLOEXEC);
    step([&](Change& c) {
      if (engine.preserve(c, id, {Token{77}, fd, 0})) fd = -1;
    });
    if (fd >= 0) close(fd);
  }
  still_sound("operations on files");
  if (!sessions.empty()) {
    step([&](Change& c) { (void)engine.freeze_one(c, sessions.back()); });
    step([&](Change& c) { (void)engine.renew(c, sessions[sessions.size() / 2], Role::Successor); });
    step([&](Change& c) { (void)engine.renew(c, sessions.front(), Role::Owner); });
    still_sound("renew");
  }
  if (engine.freeze_all()) {
    step([&](Change& c) { (void)engine.cross(c); });
    still_sound("cross");
    engine.sweep();
    still_sound("sweep");
  }
  for (const SessionId id : sessions) {
    step([&](Change& c) { (void)engine.owner_cancel(c, id); });
    step([&](Change& c) { (void)engine.finish(c, id); });
    step([&](Change& c) { engine.holder_closed(c, id, Role::Successor); });
    step([&](Change& c) { engine.holder_closed(c, id, Role::Owner); });
  }
  still_sound("the last closes");
  for (const SessionId id : sessions) step([&](Change& c) { (void)engine.drop(c, id); });
  still_sound("drop");
  if (const auto sound = arena.check(); !sound) found(to_string(sound.error()).c_str());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static World world;
  world.damage({data, size});
  {
    auto arena = kho::Arena::open(world.arena(), Engine::kLayout);
    if (!arena) found(to_string(arena.error()).c_str());
    const auto looked = inspect::report(world.arena(), false);  // believes nothing, and has to come to an end
    if (!looked) found(to_string(looked.error()).c_str());
    (void)inspect::to_dts(looked->json);
    auto engine = Engine::open(*arena, world.registry(), nullptr);
    if (!engine && (engine.error().code == 0 || engine.error().what.empty())) found("an error without code or text");
    if (engine) {
      const std::vector<SessionId> sessions = walk(*engine);
      std::vector<int> fds;
      engine->append_fds(fds);
      std::ranges::sort(fds);
      // A record may have been left out of a list, or an end swept: then there is less to do.
      if (fds == world.fds() && engine->check()) work(*arena, *engine, sessions);
    }
  }
  // What work() has preserved and not given up.
  if (auto arena = kho::Arena::open(world.arena(), Engine::kLayout)) {
    if (auto engine = Engine::open(*arena, world.registry(), nullptr); engine && engine->check()) {
      std::vector<int> fds;
      engine->append_fds(fds);
      for (const int fd : fds)
        if (fd > 2 && fd < 500 && !std::ranges::binary_search(world.fds(), fd)) close(fd);
    }
  }
  world.restore();
  return 0;
}
