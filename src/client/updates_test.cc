// The C API against a scripted luod: updates.
#include <gmock/gmock.h>
#include <poll.h>

#include <atomic>

#include "client/fake_luod.h"
#include "luo/luo.h"

namespace luo::client {
namespace {

using wire::Command;
using wire::Event;

wire::PrepareEvent prepare_event(std::uint64_t id, std::uint32_t deadline_ms = 100) {
  return {0, static_cast<std::uint32_t>(wire::UpdateKind::Service), id, deadline_ms, 0};
}

wire::EndEvent end_event(std::uint64_t id, const char* text = "") {
  wire::EndEvent event{};
  event.update = id;
  wire::put_text(event.text, text);
  return event;
}

/// Writes down what is called.
class UpdateTest : public testing::Test {
 protected:
  void serve(FakeLuod::Script script) {
    luod_ = std::make_unique<FakeLuod>([script = std::move(script)](FakeLuod& self) {
      const auto request = self.expect(Command::Subscribe);
      EXPECT_EQ(request.arg<wire::PlainArg>().reserved, 1U);
      self.answer(request);
      script(self);
      self.expect_end();
    });
    ASSERT_EQ(luo_open(luod_->path().c_str(), &luo_), 0);
    const luo_update_callbacks callbacks{
        [](void* self, const luo_update* update) {
          static_cast<UpdateTest*>(self)->calls_.push_back(
              fmt::format("prepare {} kind {} in {}", update->id, static_cast<int>(update->kind), update->deadline_ms));
          if (static_cast<UpdateTest*>(self)->ready_at_once_) {
            EXPECT_EQ(luo_update_ready(static_cast<UpdateTest*>(self)->luo_, update->id), 0);
          }
        },
        [](void* self, std::uint64_t id, const char* why) {
          static_cast<UpdateTest*>(self)->calls_.push_back(fmt::format("resumed {} {}", id, why));
        },
        [](void* self, std::uint64_t id) {
          static_cast<UpdateTest*>(self)->calls_.push_back(fmt::format("handed over {}", id));
        }};
    ASSERT_EQ(luo_on_update(luo_, &callbacks, this), 0);
  }
  void TearDown() override {
    luo_close(luo_);
    luod_.reset();
  }
  /// Dispatches whenever luo_fd() says so, until `calls` calls have been made.
  void dispatch_until(std::size_t calls) {
    while (calls_.size() < calls) {
      pollfd wait{luo_fd(luo_), POLLIN, 0};
      ASSERT_EQ(poll(&wait, 1, 20'000), 1);
      ASSERT_GE(luo_dispatch(luo_), 0) << luo_last_error();
    }
  }

  std::unique_ptr<FakeLuod> luod_;
  luo_connection* luo_ = nullptr;
  std::vector<std::string> calls_;
  bool ready_at_once_ = false;
};

TEST_F(UpdateTest, CallbacksRunInOrderAndMayAnswer) {
  ready_at_once_ = true;
  serve([](FakeLuod& self) {
    self.event(Event::Prepare, prepare_event(8, 1500));
    const auto verdict = self.expect(Command::Prepared);
    EXPECT_EQ(verdict.arg<wire::VerdictArg>().update, 8U);
    EXPECT_EQ(verdict.arg<wire::VerdictArg>().refused, 0U);
    self.answer(verdict);
    self.event(Event::HandedOver, end_event(8));
  });
  dispatch_until(2);
  EXPECT_THAT(calls_, testing::ElementsAre("prepare 8 kind 2 in 1500", "handed over 8"));
}

TEST_F(UpdateTest, ResumedComesOnlyAfterItsPrepare) {
  serve([](FakeLuod& self) {
    self.event(Event::Resumed, end_event(7, "never announced"));
    self.event(Event::Prepare, prepare_event(8));
    self.event(Event::Resumed, end_event(8, "the new one exited with 3"));
    self.event(Event::Resumed, end_event(8, "again"));
    self.event(Event::Prepare, prepare_event(9));
  });
  dispatch_until(3);
  EXPECT_THAT(calls_, testing::ElementsAre("prepare 8 kind 2 in 100", "resumed 8 the new one exited with 3",
                                           "prepare 9 kind 2 in 100"));
}

TEST_F(UpdateTest, RefusalCarriesItsReason) {
  serve([](FakeLuod& self) {
    const auto verdict = self.expect(Command::Prepared);
    EXPECT_EQ(verdict.arg<wire::VerdictArg>().refused, 1U);
    EXPECT_EQ(wire::text_in(verdict.arg<wire::VerdictArg>().reason), std::string(111, 'r'));
    self.answer(verdict, ESTALE);
  });
  EXPECT_EQ(luo_update_refuse(luo_, 8, std::string(200, 'r').c_str()), -ESTALE);
}

TEST_F(UpdateTest, AnnouncementRepeatedAfterACrashIsAnsweredWithoutAskingAgain) {
  ready_at_once_ = true;
  serve([](FakeLuod& self) {
    self.event(Event::Prepare, prepare_event(8));
    self.answer(self.expect(Command::Prepared));
    self.event(Event::Prepare, prepare_event(8));
    const auto again = self.expect(Command::Prepared);
    EXPECT_EQ(again.arg<wire::VerdictArg>().update, 8U);
    self.answer(again);
    self.event(Event::HandedOver, end_event(8));
  });
  dispatch_until(2);
  EXPECT_THAT(calls_, testing::ElementsAre("prepare 8 kind 2 in 100", "handed over 8"));
}

TEST_F(UpdateTest, AnnouncementRepeatedBeforeTheAnswerIsNotPassedOnTwice) {
  serve([](FakeLuod& self) {
    self.event(Event::Prepare, prepare_event(8));
    self.event(Event::Prepare, prepare_event(8));
    self.event(Event::Resumed, end_event(8, "late"));
  });
  dispatch_until(2);
  EXPECT_THAT(calls_, testing::ElementsAre("prepare 8 kind 2 in 100", "resumed 8 late"));
}

TEST_F(UpdateTest, EventThatCameDuringACallIsDispatchedAfterIt) {
  serve([](FakeLuod& self) {
    const auto request = self.expect(Command::CreateSession);
    self.event(Event::Prepare, prepare_event(8));
    self.answer(request, EEXIST, wire::NameArg{});
  });
  EXPECT_EQ(luo_session_create(luo_, "x"), -EEXIST);
  EXPECT_TRUE(calls_.empty());
  pollfd wait{luo_fd(luo_), POLLIN, 0};
  EXPECT_EQ(poll(&wait, 1, 0), 1);
  EXPECT_EQ(luo_dispatch(luo_), 1);
  EXPECT_EQ(poll(&wait, 1, 0), 0);
  EXPECT_EQ(luo_dispatch(luo_), 0);
}

TEST_F(UpdateTest, OneThreadDispatchesWhileAnotherWaits) {
  std::atomic<bool> dispatched = false;
  serve([&](FakeLuod& self) {
    const auto request = self.expect(Command::RetrieveWait);
    EXPECT_EQ(request.arg<wire::WaitArg>().timeout_ms, UINT32_MAX);
    self.event(Event::Prepare, prepare_event(8));
    dispatched.wait(false);
    self.answer(request, ETIMEDOUT, wire::WaitArg{});
  });
  std::thread waiting{[&] { EXPECT_EQ(luo_session_retrieve_wait(luo_, "x", -1), -ETIMEDOUT); }};
  dispatch_until(1);
  dispatched = true;
  dispatched.notify_one();
  waiting.join();
}

TEST_F(UpdateTest, ManyThreadsMayCall) {
  constexpr int kThreads = 4, kCalls = 50;
  serve([](FakeLuod& self) {
    for (int i = 0; i < kThreads * kCalls; ++i) {
      const auto request = self.expect(Command::RetrieveSession);
      if (i % 7 == 0) self.event(Event::Prepare, prepare_event(static_cast<std::uint64_t>(i) + 1));
      self.answer(request, ENOENT, wire::NameArg{});
    }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < kCalls; ++i) EXPECT_EQ(luo_session_retrieve(luo_, "x"), -ENOENT);
    });
  dispatch_until((kThreads * kCalls + 6) / 7);
  for (auto& thread : threads) thread.join();
}

TEST_F(UpdateTest, MalformedEventIsReportedAndUnknownOnesArePassedOver) {
  serve([](FakeLuod& self) {
    self.builder().start(0xBAFF, 0, 0).arg(wire::EndEvent{});
    self.post();
    self.event(Event::Prepare, wire::PlainArg{});
  });
  int result = 0;
  while (result == 0) {
    pollfd wait{luo_fd(luo_), POLLIN, 0};
    ASSERT_EQ(poll(&wait, 1, 20'000), 1);
    result = luo_dispatch(luo_);
  }
  EXPECT_EQ(result, -EINVAL);
}

TEST_F(UpdateTest, TakeOverReportsWhyItWasCalledOff) {
  serve([](FakeLuod& self) {
    self.answer(self.expect(Command::Present), 0, wire::PlainArg{}, {}, 5);
    const auto request = self.expect(Command::TakeOver);
    EXPECT_EQ(request.header.session, 5U);
    EXPECT_EQ(request.arg<wire::WaitArg>().timeout_ms, 250U);
    self.answer(request, ECANCELED, wire::WaitArg{});
  });
  const Pipe pipe = make_pipe().value();
  EXPECT_EQ(luo_session_take_over(luo_, pipe.read.raw(), 250), -ECANCELED);
  EXPECT_THAT(luo_last_error(), testing::HasSubstr("the old owner goes on"));
}

TEST_F(UpdateTest, DispatchReportsTheEndAfterTheLastEvent) {
  luod_ = std::make_unique<FakeLuod>([](FakeLuod& self) {
    self.answer(self.expect(Command::Subscribe));
    self.event(Event::HandedOver, end_event(8));
  });
  ASSERT_EQ(luo_open(luod_->path().c_str(), &luo_), 0);
  const luo_update_callbacks callbacks{
      nullptr, nullptr, [](void* self, std::uint64_t id) {
        static_cast<std::vector<std::string>*>(self)->push_back(fmt::format("over {}", id));
      }};
  ASSERT_EQ(luo_on_update(luo_, &callbacks, &calls_), 0);
  luod_->join();
  EXPECT_EQ(luo_dispatch(luo_), -ECONNRESET);
  EXPECT_THAT(calls_, testing::ElementsAre("over 8"));
}

}  // namespace
}  // namespace luo::client
