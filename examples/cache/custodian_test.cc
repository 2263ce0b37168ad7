// What the custodian tells luod, against a real one, with an update that a test plays.
#include "cache/custodian.h"

#include <gtest/gtest.h>
#include <poll.h>

#include "integration/play.h"

namespace luo::cache {
namespace {

using luo::test::raw_client;
using luo::test::raw_session;
using luo::test::RawClient;
using wire::Command;

class CustodianOfASession : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(luod_.running()) << luod_.log();
    auto made = Custodian::connect(luod_.socket(), "s");
    ASSERT_TRUE(made.has_value()) << made.error().what;
    custodian_ = *std::move(made);
    Fd session = Fd::adopt(luo_session_create(custodian_->luod(), "s"));
    ASSERT_TRUE(session.valid()) << luo_last_error();
    ASSERT_TRUE(custodian_->start(std::move(session), {}).has_value());
    custodian_->begin();
  }
  Notice next_notice() {
    for (;;) {
      EXPECT_TRUE(luo::test::readable(custodian_->wakeup().raw));
      auto notices = custodian_->take_notices();
      if (!notices.empty()) return notices.front();
      if (HasFailure()) return {};
    }
  }
  struct Update {
    wire::UpdateArg offer;
    RawClient successor;
    luo::test::RawSession session;
  };
  /// Up to the moment in which the successor waits for us.
  Update begin_update() {
    const auto offer = admin_.call(Command::UpdateService, 0, luo::test::update_arg("s", 20'000));
    LUO_CHECK(offer.has_value() && offer->error() == 0);
    Update update{
        offer->as<wire::UpdateArg>(), raw_client(luod_, "successor", offer->as<wire::UpdateArg>().ticket), {}};
    update.session = raw_session(update.successor, Command::RetrieveSession, "s");
    LUO_CHECK(update.successor.post(Command::TakeOver, update.session.handle, luo::test::wait_arg(20'000)).has_value());
    return update;
  }
  luo::test::Luod luod_;
  RawClient admin_ = raw_client(luod_, "admin");
  std::unique_ptr<Custodian> custodian_;
};

TEST_F(CustodianOfASession, WhatWasSaidForOneUpdateCountsForNoOther) {
  Update first = begin_update();
  const Notice asked = next_notice();
  ASSERT_EQ(asked.kind, Notice::Prepare);
  EXPECT_EQ(asked.update, first.offer.id);
  wire::UpdateArg off = luo::test::update_arg();
  off.id = first.offer.id;
  ASSERT_EQ(admin_.call(Command::UpdateCancel, 0, off)->error(), 0);
  ASSERT_EQ(next_notice().kind, Notice::Resumed);

  Update second = begin_update();
  const Notice again = next_notice();
  ASSERT_EQ(again.kind, Notice::Prepare);
  ASSERT_EQ(again.update, second.offer.id);
  // Late: the loop stopped for the first one, which is off, and went on since.
  custodian_->quiesced(first.offer.id);
  // A job behind it has been carried out when luod does not have the token any more; so has this one.
  custodian_->give_up(luo::test::memfd_with("x"), 77);
  pollfd one{second.successor.socket().raw, POLLIN, 0};
  EXPECT_EQ(poll(&one, 1, 300), 0) << "luod was told that the cache has stopped, and it has not";
  custodian_->quiesced(second.offer.id);
  EXPECT_EQ(second.successor.answer()->error(), 0);
  EXPECT_EQ(second.successor.call(Command::Renew, second.session.handle, luo::test::plain_arg())->error(), 0);
  EXPECT_EQ(next_notice().kind, Notice::HandedOver);
}

TEST_F(CustodianOfASession, IsToldOfAnUpdateThatBeginsAtOnce) {
  Update update = begin_update();
  const Notice asked = next_notice();
  EXPECT_EQ(asked.kind, Notice::Prepare);
  custodian_->quiesced(asked.update);
  EXPECT_EQ(update.successor.answer()->error(), 0);
}

}  // namespace
}  // namespace luo::cache
