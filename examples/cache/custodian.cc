#include "cache/custodian.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <semaphore>
#include <system_error>
#include <thread>
#include <utility>

#include "base/log.h"
#include "cache/custodian_files.h"
#include "luo/luo.h"

namespace luo::cache {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// New connections are preserved in batches: at most this much later, unless an update is coming.
constexpr milliseconds kCollect{10};
constexpr milliseconds kFirstRetry{100};
constexpr milliseconds kLastRetry{5000};
constexpr milliseconds kLetGo{2000};

void signal_eventfd(const Fd& fd) noexcept {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(fd.raw(), &one, sizeof one);  // full is signalled as well
}

void clear_eventfd(const Fd& fd) noexcept {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t n = ::read(fd.raw(), &count, sizeof count);
}

}  // namespace

class Custodian::Worker {
 public:
  struct Job {
    enum Kind { Preserve, GiveUp, Replace, Quiesced, Unable, LetGo, Stop };
    Kind kind;
    int fd;
    std::uint64_t token;  ///< Quiesced, Unable: the update
    int old_fd = -1;      ///< Replace
    std::uint64_t old_token = 0;
    std::string why = {};  ///< Unable
  };

  Worker(std::string where, std::string session, std::atomic<int>* shown)
      : where_{std::move(where)}, name_{std::move(session)}, shown_{shown} {}
  Result<> prepare();
  Result<> connect();
  Result<> start(Fd session, const std::vector<KeptFile>& kept);
  void begin() noexcept { may_begin_.release(); }
  luo_connection* luod() const noexcept { return luod_; }
  void end();
  void let_go();

  // Either thread.
  void enqueue(Job job);
  std::vector<Notice> take_notices();
  const Fd& to_loop() const noexcept { return to_loop_; }

 private:
  void run();
  bool take_jobs();
  void wait();
  void carry_out();
  // After a call of files_, whose only error is that luod is gone for good.
  void settle(const Result<>& result) {
    if (!result) lost(result.error().what);
  }
  Keeping keeping() const noexcept { return {luod_, session_.raw()}; }
  void refuse(std::uint64_t update, const std::string& why);
  int open_and_subscribe();
  void dispatch();
  void say_ready();
  void end_hold();
  void show(int session) noexcept {
    if (shown_ != nullptr) shown_->store(session);
  }
  bool has_crossed();
  void lost(std::string_view during);
  void connect_again();
  void notify(Notice::Kind kind, std::string text = {}, std::uint64_t update = 0, bool of_the_kernel = false);
  // True unless luod is gone for good.
  bool still_there(int result, std::string_view during) {
    if (result != -ECONNRESET) return true;
    lost(during);
    return false;
  }

  static void on_prepare(void* context, const luo_update* update);
  static void on_resumed(void* context, std::uint64_t id, const char* why);
  static void on_handed_over(void* context, std::uint64_t id);

  std::mutex mutex_;
  std::vector<Job> queue_;       // guarded by mutex_
  std::vector<Notice> notices_;  // guarded by mutex_
  Fd to_worker_;
  Fd to_loop_;
  std::thread thread_;
  std::counting_semaphore<2> may_begin_{0};
  std::counting_semaphore<2> let_go_done_{0};

  // The thread's own, from begin() on.
  std::string where_;
  std::string name_;
  std::atomic<int>* shown_;
  luo_connection* luod_ = nullptr;
  Fd session_;
  SessionFiles files_;
  std::vector<Job> jobs_;
  Clock::time_point due_ = Clock::time_point::max();  // when jobs_ are carried out, or luod is tried again
  milliseconds retry_ = kFirstRetry;
  std::uint64_t update_ = 0;  // the one that is being prepared
  bool preparing_ = false;
  bool simulated_ = false;          // and it is one that ends this side, as a kexec would
  bool of_the_kernel_ = false;      // and it is one
  std::uint64_t quiesced_for_ = 0;  // the update for which the loop has stopped last
  bool crossed_ = false;            // there is nothing left to keep
  bool letting_go_ = false;
  bool stop_ = false;
};

// As luo_open(). Subscribed before anything else: a session that is not announced an update could change
// hands while we still write.
int Custodian::Worker::open_and_subscribe() {
  if (const int result = luo_open(where_.empty() ? nullptr : where_.c_str(), &luod_); result < 0) return result;
  const luo_update_callbacks callbacks{.prepare = on_prepare, .resumed = on_resumed, .handed_over = on_handed_over};
  const int result = luo_on_update(luod_, &callbacks, this);
  if (result < 0) luo_close(std::exchange(luod_, nullptr));
  return result;
}

Result<> Custodian::Worker::prepare() {
  to_worker_ = Fd::adopt(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  to_loop_ = Fd::adopt(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!to_worker_.valid() || !to_loop_.valid()) return sys_fail("eventfd");
  return {};
}

Result<> Custodian::Worker::connect() {
  if (const int result = open_and_subscribe(); result < 0)
    return fail(-result, "connect to luod ({}). Start luod first, name its socket with --luod, or run with --no-luo",
                luo_last_error());
  return {};
}

Result<> Custodian::Worker::start(Fd session, const std::vector<KeptFile>& kept) {
  session_ = std::move(session);
  show(session_.raw());
  for (const KeptFile& file : kept) files_.add(file.fd, file.token, luod_ != nullptr);
  if (luod_ == nullptr) due_ = Clock::now();
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  int refused = 0;
  try {
    thread_ = std::thread{[this] {
      may_begin_.acquire();
      run();
    }};
  } catch (const std::system_error& error) {
    refused = error.code().value();
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (refused != 0) return fail(refused, "start the custodian's thread");
  return {};
}

void Custodian::Worker::end() {
  if (thread_.joinable()) {
    enqueue({Job::Stop, -1, 0});
    may_begin_.release();  // if it has begun, nobody waits for this
    thread_.join();
  }
  for (const Job& job : queue_) {
    if (job.kind == Job::GiveUp && job.fd >= 0) close_number(job.fd);
    if (job.kind == Job::Replace && job.old_fd >= 0) close_number(job.old_fd);
  }
  luo_close(luod_);
}

void Custodian::Worker::let_go() {
  enqueue({Job::LetGo, -1, 0});
  if (!let_go_done_.try_acquire_for(kLetGo))
    log(Level::Warning, "luod does not answer: session '{}' stays; luoctl drop {} ends it", name_, name_);
}

void Custodian::Worker::enqueue(Job job) {
  bool first = false;
  const bool urgent = job.kind > Job::GiveUp;
  {
    const std::lock_guard lock{mutex_};
    first = queue_.empty();
    queue_.push_back(std::move(job));
  }
  if (first || urgent) signal_eventfd(to_worker_);
}

std::vector<Notice> Custodian::Worker::take_notices() {
  clear_eventfd(to_loop_);
  const std::lock_guard lock{mutex_};
  return std::exchange(notices_, {});
}

void Custodian::Worker::notify(Notice::Kind kind, std::string text, std::uint64_t update, bool of_the_kernel) {
  {
    const std::lock_guard lock{mutex_};
    notices_.push_back({kind, std::move(text), update, of_the_kernel});
  }
  signal_eventfd(to_loop_);
}

void Custodian::Worker::run() {
  while (!stop_) {
    wait();
    if (take_jobs() || Clock::now() >= due_) {
      due_ = Clock::time_point::max();
      if (luod_ == nullptr && !crossed_) connect_again();
      carry_out();
    }
    dispatch();
  }
}

void Custodian::Worker::wait() {
  pollfd files[2] = {{to_worker_.raw(), POLLIN, 0}, {luod_ != nullptr ? luo_fd(luod_) : -1, POLLIN, 0}};
  timespec timeout{};
  const timespec* until = nullptr;
  if (due_ != Clock::time_point::max()) {
    const auto left = std::max(std::chrono::nanoseconds{0}, std::chrono::nanoseconds{due_ - Clock::now()});
    timeout = {.tv_sec = left.count() / 1'000'000'000, .tv_nsec = left.count() % 1'000'000'000};
    until = &timeout;
  }
  ::ppoll(files, 2, until, nullptr);
}

// Moves what has been queued to jobs_. True: it must be carried out at once.
bool Custodian::Worker::take_jobs() {
  clear_eventfd(to_worker_);
  std::vector<Job> fresh;
  {
    const std::lock_guard lock{mutex_};
    fresh.swap(queue_);
  }
  if (fresh.empty()) return false;
  bool urgent = false;
  for (const Job& job : fresh) {
    if (job.kind == Job::Stop) stop_ = true;
    if (job.kind == Job::Quiesced) {
      quiesced_for_ = job.token;
      urgent = true;
    }
    if (job.kind == Job::Replace || job.kind == Job::Unable) urgent = true;
    if (job.kind == Job::LetGo) letting_go_ = urgent = true;
    jobs_.push_back(job);
  }
  due_ = std::min(due_, Clock::now() + kCollect);
  return urgent || stop_;
}

// In order, except that files which come and go within one batch never reach luod.
void Custodian::Worker::carry_out() {
  std::vector<Job> jobs = std::exchange(jobs_, {});
  std::vector<Job> leaving;
  for (const Job& job : jobs) {
    if (job.kind == Job::Preserve) {
      files_.add(job.fd, job.token, false);
    } else if (job.kind == Job::GiveUp) {
      if (files_.remove(job.token)) leaving.push_back(job);
      else if (job.fd >= 0) close_number(job.fd);
    } else if (job.kind == Job::Replace) {
      settle(files_.begin_replacing(keeping(), job.fd, job.token, Fd::adopt(job.old_fd), job.old_token));
    } else if (job.kind == Job::Unable) {
      refuse(job.token, job.why);
    }
  }
  settle(files_.preserve_missing(keeping()));
  settle(files_.end_replacing(keeping()));
  for (const Job& job : leaving) {
    settle(files_.unpreserve(keeping(), job.token));
    if (job.fd >= 0) close_number(job.fd);
  }
  if (preparing_ && quiesced_for_ == update_) say_ready();
  if (letting_go_) end_hold();
}

void Custodian::Worker::refuse(std::uint64_t update, const std::string& why) {
  if (luod_ == nullptr || !preparing_ || update != update_) return;
  preparing_ = false;
  const int result = luo_update_refuse(luod_, update, why.c_str());
  if (!still_there(result, "refuse an update") || result == 0) return;
  log(Level::Warning, "update {}: luod does not take our refusal: {}", update, luo_last_error());
}

void Custodian::Worker::end_hold() {
  letting_go_ = false;
  if (luod_ != nullptr)
    if (const int result = luo_session_hold(luod_, session_.raw(), LUO_HOLD_OFF); result < 0 && result != -ECONNRESET)
      log(Level::Warning, "session '{}' stays for the next one: {}", name_, luo_last_error());
  let_go_done_.release();
}

void Custodian::Worker::dispatch() {
  if (luod_ != nullptr) still_there(luo_dispatch(luod_), "listen to luod");
}

void Custodian::Worker::on_prepare(void* context, const luo_update* update) {
  auto& self = *static_cast<Worker*>(context);
  self.update_ = update->id;
  self.preparing_ = true;
  self.simulated_ = update->kind == LUO_UPDATE_SIMULATED;
  self.of_the_kernel_ = update->kind == LUO_UPDATE_KERNEL;
  if (update->kind == LUO_UPDATE_LUOD) return self.say_ready();  // nothing of ours changes hands
  self.notify(Notice::Prepare, {}, update->id, self.of_the_kernel_);
}

void Custodian::Worker::on_resumed(void* context, std::uint64_t id, const char* why) {
  auto& self = *static_cast<Worker*>(context);
  if (id != self.update_) return;
  self.preparing_ = false;
  self.update_ = 0;
  self.notify(Notice::Resumed, why != nullptr ? why : "");
}

void Custodian::Worker::on_handed_over(void* context, std::uint64_t /*id*/) {
  static_cast<Worker*>(context)->notify(Notice::HandedOver);
}

void Custodian::Worker::say_ready() {
  preparing_ = false;
  if (luod_ == nullptr) return;
  // An update that would close connections is no update that we agree to, except of the kernel, which closes all.
  const char* missing = nullptr;
  if (of_the_kernel_ && files_.replacing()) missing = "luod could not keep the image of the cache";
  if (!of_the_kernel_ && files_.missing()) missing = "luod could not keep some of the connections";
  const int result = missing != nullptr ? luo_update_refuse(luod_, update_, missing) : luo_update_ready(luod_, update_);
  if (!still_there(result, "answer that an update can go on") || result == 0) return;
  log(Level::Warning, "update {}: luod does not take our answer: {}", update_, luo_last_error());
}

// After a simulated kexec luod serves the next side and knows nobody of this one.
bool Custodian::Worker::has_crossed() {
  if (update_ == 0 || quiesced_for_ != update_ || !simulated_) return false;
  luo_connection* next_side = nullptr;
  const bool serves = luo_open(where_.empty() ? nullptr : where_.c_str(), &next_side) == 0;
  luo_close(next_side);
  return serves;
}

void Custodian::Worker::lost(std::string_view during) {
  if (has_crossed()) {
    log(Level::Notice, "the session has crossed; a luo-cache that is started now takes it");
    luo_close(std::exchange(luod_, nullptr));
    crossed_ = true;
    return notify(Notice::HandedOver);
  }
  log(Level::Error, "luod is gone ({}); serving on, but what is cached now survives neither an update nor a crash",
      during);
  luo_close(std::exchange(luod_, nullptr));
  show(-1);
  session_.close();
  files_.none_is_preserved();
  preparing_ = false;
  retry_ = kFirstRetry;
  due_ = Clock::now() + retry_;
  notify(Notice::Disconnected, std::string{during});
}

void Custodian::Worker::connect_again() {
  if (open_and_subscribe() == 0) {
    const int session = luo_session_create(luod_, name_.c_str());
    if (session >= 0) {
      session_ = Fd::adopt(session);
      show(session);
      let_cross_kernels(luod_, session);
      hold_for_the_next(luod_, session);
      log(Level::Notice, "luod is back: keeping {} files in a new session '{}'", files_.size(), name_);
      return notify(Notice::Connected);
    }
    log(Level::Warning, "luod is back, but not session '{}': {}", name_, luo_last_error());
    luo_close(std::exchange(luod_, nullptr));
  }
  retry_ = std::min(2 * retry_, kLastRetry);
  due_ = Clock::now() + retry_;
}

Custodian::Custodian(std::unique_ptr<Worker> worker) : worker_{std::move(worker)} {}

Custodian::~Custodian() { worker_->end(); }

Result<std::unique_ptr<Custodian>> Custodian::connect(std::string where, std::string session, std::atomic<int>* shown) {
  auto worker = std::make_unique<Worker>(std::move(where), std::move(session), shown);
  LUO_TRY(worker->prepare());
  LUO_TRY(worker->connect());
  return std::unique_ptr<Custodian>{new Custodian{std::move(worker)}};
}

Result<std::unique_ptr<Custodian>> Custodian::unconnected(std::string where, std::string session,
                                                          std::atomic<int>* shown) {
  auto worker = std::make_unique<Worker>(std::move(where), std::move(session), shown);
  LUO_TRY(worker->prepare());
  return std::unique_ptr<Custodian>{new Custodian{std::move(worker)}};
}

void let_cross_kernels(luo_connection* luod, int session) {
  for (const char* option : {"transient", "grow"}) {
    const int result = luo_session_set_option(luod, session, option, "allow");
    if (result == -ENOTSUP) return;
    if (result < 0) log(Level::Warning, "option {} of the session: {}", option, luo_last_error());
  }
}

void hold_for_the_next(luo_connection* luod, int session) {
  if (luo_session_hold(luod, session, LUO_HOLD_USER) < 0)
    log(Level::Warning, "luod will not keep the session if luo-cache crashes: {}", luo_last_error());
}

luo_connection* Custodian::luod() const noexcept { return worker_->luod(); }
Result<> Custodian::start(Fd session, const std::vector<KeptFile>& kept) {
  return worker_->start(std::move(session), kept);
}

void Custodian::begin() { worker_->begin(); }
void Custodian::let_go() { worker_->let_go(); }

FdRef Custodian::wakeup() const noexcept { return worker_->to_loop(); }
std::vector<Notice> Custodian::take_notices() { return worker_->take_notices(); }
void Custodian::preserve(FdRef file, std::uint64_t token) {
  worker_->enqueue({Worker::Job::Preserve, file.raw, token});
}
void Custodian::give_up(Fd file, std::uint64_t token) {
  worker_->enqueue({Worker::Job::GiveUp, file.release(), token});
}
void Custodian::replace(FdRef fresh, std::uint64_t token, Fd old, std::uint64_t old_token) {
  worker_->enqueue({Worker::Job::Replace, fresh.raw, token, old.release(), old_token});
}
void Custodian::quiesced(std::uint64_t update) { worker_->enqueue({Worker::Job::Quiesced, -1, update}); }
void Custodian::unable(std::uint64_t update, std::string why) {
  worker_->enqueue({.kind = Worker::Job::Unable, .fd = -1, .token = update, .why = std::move(why)});
}

}  // namespace luo::cache
