// Counts the lines that it reads. The count outlives the process: the line "exec" replaces the program, "crash" kills
// it inside a transaction, and it may be killed from outside at any time. README: src/kho/README.md
#include <fcntl.h>
#include <kho/arena.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

using namespace luo;
constexpr kho::Layout kLayout{"kho-counter", 1};

// One life: takes over what the one before left in the memfd, and goes on.
Result<> live(Fd memfd, char** argv) {
  auto arena = LUO_TRY(kho::Arena::open(std::move(memfd), kLayout));  // rolls back what was not committed
  auto* count = arena.get(kho::Ref<std::uint64_t>{arena.root(0).raw()});
  std::string line;
  for (char c = 0; ::read(STDIN_FILENO, &c, 1) == 1;) {  // byte by byte: the rest stays in the pipe for the next life
    if (c != '\n') {
      line += c;
      continue;
    }
    const std::string word = std::exchange(line, {});
    if (word == "exec") {
      ::fcntl(arena.fd().raw, F_SETFD, 0);  // it is CLOEXEC, but this exec is to keep it
      ::execlp(argv[0], argv[0], std::to_string(arena.fd().raw).c_str(), nullptr);
      return sys_fail("exec {}", argv[0]);
    }
    kho::Tx tx{arena};
    tx.set(*count, *count + 1);
    if (word == "crash") ::raise(SIGKILL);  // counted, but not committed
    tx.commit();
    ::dprintf(STDOUT_FILENO, "%llu\n", static_cast<unsigned long long>(*count));
  }
  return {};
}

// Makes the arena, keeps its descriptor, and starts a new life when one is killed.
Result<> supervise(char** argv) {
  auto arena = LUO_TRY(kho::Arena::create({.name = "kho-counter", .layout = kLayout, .max_size = 1_MiB}));
  {
    kho::Tx tx{arena};
    const auto count = LUO_TRY(tx.make<std::uint64_t>());
    tx.set_root(0, count.addr());
    tx.commit();
  }
  Fd memfd = arena.release();
  for (;;) {
    const pid_t child = ::fork();
    if (child < 0) return sys_fail("fork");
    if (child == 0) return live(std::move(memfd), argv);
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    if (!WIFSIGNALED(status)) std::exit(WEXITSTATUS(status));
    ::dprintf(STDERR_FILENO, "killed by signal %d; the next life begins\n", WTERMSIG(status));
  }
}

int main(int argc, char** argv) {
  const auto result = argc > 1 ? live(Fd::adopt(std::atoi(argv[1])), argv) : supervise(argv);
  if (result) return 0;
  fmt::print(stderr, "{}\n", result.error());
  return 1;
}
