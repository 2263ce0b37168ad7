// luod whose operator new has no memory when the test says so (starved.h). Linked with luod's own main; this operator
// new takes the place of the standard library's. What C libraries get from malloc is not counted.
#include "starved.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <new>

namespace {

luo::test::Starved* g_starved = nullptr;

[[gnu::constructor]] void find_it() {
  const char* path = std::getenv(luo::test::kStarvedVariable);
  const int file = path != nullptr ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (file < 0) return;
  void* at = mmap(nullptr, sizeof *g_starved, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (at != MAP_FAILED) g_starved = static_cast<luo::test::Starved*>(at);
}

bool fails() noexcept {
  const pid_t who = g_starved != nullptr ? g_starved->process.load() : 0;
  if (who == 0 || (who > 0 ? who != getpid() : -who == getpid())) return false;
  const std::int64_t left = g_starved->until.fetch_sub(1);
  if (left > 1 || left <= 1 - g_starved->times.load()) return false;
  g_starved->failed.fetch_add(1);
  return true;
}

void* allocate(std::size_t bytes, std::size_t alignment) {
  for (;;) {
    void* at = nullptr;
    if (!fails() && posix_memalign(&at, alignment, bytes != 0 ? bytes : 1) == 0) return at;
    const std::new_handler handler = std::get_new_handler();
    if (handler == nullptr) throw std::bad_alloc{};
    handler();
  }
}

constexpr std::size_t kPlain = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

}  // namespace

void* operator new(std::size_t n) { return allocate(n, kPlain); }
void* operator new[](std::size_t n) { return allocate(n, kPlain); }
void* operator new(std::size_t n, std::align_val_t a) { return allocate(n, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t n, std::align_val_t a) { return allocate(n, static_cast<std::size_t>(a)); }
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return allocate(n, kPlain); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept { return allocate(n, kPlain); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { std::free(p); }
