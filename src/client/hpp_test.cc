// luo.hpp: that it compiles beside our own headers, and that results and owners arrive.
#include "luo/luo.hpp"

#include <gmock/gmock.h>
#include <poll.h>

#include "client/fake_luod.h"
#include "sys/memfd.h"

namespace luo::client {
namespace {

using wire::Command;

TEST(LuoHpp, SessionsAndFilesOwnTheirDescriptors) {
  Fd held;
  FakeLuod luod{[&](FakeLuod& self) {
    held = self.hand_out(Command::CreateSession, 4);
    self.answer(self.expect(Command::PreserveFd), 0, wire::TokenArg{});
    self.answer(self.expect(Command::PreserveFd), EEXIST);
    self.answer(self.expect(Command::SetOption));
    const auto many = self.expect(Command::RetrieveMany);
    self.builder().start(Command::RetrieveMany, many.header.nonce, 4).arg(wire::ManyArg{0, 2});
    self.builder().add(wire::ManyResult{ENOENT}).add(wire::ManyResult{0}).add_fd(self.socket().raw);
    self.post();
    const wire::ManyEntry entries[] = {{30, 0, 0}, {10, 0, 0}};
    const Fd list = sealed_memfd("tokens", {reinterpret_cast<const char*>(entries), sizeof entries}).value();
    const int number = list.raw();
    for (int i = 0; i < 2; ++i) self.answer(self.expect(Command::ListTokens), 0, wire::ManyArg{0, 2}, {&number, 1});
    self.expect_end();
  }};
  {
    auto luo = api::Connection::open(luod.path().c_str());
    ASSERT_TRUE(luo) << luo.error().text;
    auto session = luo->create("vm-7");
    ASSERT_TRUE(session) << session.error().text;
    const Fd file = make_memfd("x", 0).value();
    EXPECT_TRUE(session->preserve(file.raw(), 1));
    const auto refused = session->preserve(file.raw(), 1);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, EEXIST);
    EXPECT_THAT(refused.error().text, testing::HasSubstr("session 'vm-7'"));
    EXPECT_TRUE(session->set_option("grow", "allow"));
    const std::uint64_t tokens[] = {1, 2};
    auto files = session->retrieve(tokens);
    ASSERT_TRUE(files) << files.error().text;
    EXPECT_EQ((*files)[0].error(), ENOENT);
    EXPECT_GE((*files)[1]->get(), 0);
    EXPECT_THAT(session->tokens().value(), testing::ElementsAre(30, 10));
  }
  luod.join();
  EXPECT_TRUE(reader_gone(held.raw()));
}

TEST(LuoHpp, CallbacksSurviveAMoveOfTheConnection) {
  FakeLuod luod{[](FakeLuod& self) {
    self.answer(self.expect(Command::Subscribe));
    self.event(wire::Event::Prepare, wire::PrepareEvent{0, 1, 8, 100, 0});
    self.expect_end();
  }};
  {
    std::uint64_t prepared = 0;
    auto opened = api::Connection::open(luod.path().c_str());
    ASSERT_TRUE(opened);
    ASSERT_TRUE(opened->on_update(
        {.prepare = [&](const luo_update& u) { prepared = u.id; }, .resumed = {}, .handed_over = {}}));
    api::Connection luo = std::move(*opened);
    while (prepared == 0) {
      pollfd wait{luo.poll_fd().value(), POLLIN, 0};
      ASSERT_EQ(poll(&wait, 1, 20'000), 1);
      ASSERT_TRUE(luo.dispatch());
    }
    EXPECT_EQ(prepared, 8U);
  }
}

}  // namespace
}  // namespace luo::client
