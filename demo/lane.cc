#include "lane.h"

#include <unistd.h>

#include <utility>

namespace demo {
namespace {
constexpr std::size_t kComplaints = 10;
constexpr unsigned kCheckDepth = 64;
}  // namespace

void Totals::complain(std::string text) {
  if (complaints.size() < kComplaints) complaints.push_back(std::move(text));
}

void Totals::add(const Totals& other) {
  requests += other.requests;
  failed += other.failed;
  wrong += other.wrong;
  lost += other.lost;
  resets += other.resets;
  shared_incr += other.shared_incr;
  shared_maybe += other.shared_maybe;
  for (const std::string& text : other.complaints) complain(text);
}

Lane::Lane(const LaneOptions& options, const DataSet& data, std::vector<std::uint32_t>& versions, TraceWriter trace)
    : options_{options},
      data_{data},
      versions_{versions},
      trace_{std::move(trace)},
      random_{options.number + 1U},
      own_keys_{(data.keys - options.number + options.lanes - 1U) / options.lanes},
      counter_key_{fmt::format("demo:count:{}", options.number)} {}

luo::Result<> Lane::ensure_connected() {
  if (connected_) return {};
  client_ = LUO_TRY(RespClient::connect(options_.port));
  connected_ = true;
  return {};
}

void Lane::plan(unsigned count) {
  requests_.clear();
  for (unsigned i = 0; i < count; ++i) {
    const std::uint32_t key = options_.number + static_cast<std::uint32_t>(random_() % own_keys_) * options_.lanes;
    const auto dice = random_() % 20;
    const Op op = dice < 8 ? Op::Set : dice < 18 ? Op::Get : dice == 18 ? Op::Incr : Op::SharedIncr;
    requests_.push_back({op, key, 0});
  }
}

void Lane::encode(const Request& request) {
  switch (request.op) {
    case Op::Set:
      DataSet::key_name(request.key, key_text_);
      data_.value(request.key, request.version, value_text_);
      RespClient::encode(output_, {"SET", key_text_, value_text_});
      return;
    case Op::Get:
      DataSet::key_name(request.key, key_text_);
      RespClient::encode(output_, {"GET", key_text_});
      return;
    case Op::Incr: RespClient::encode(output_, {"INCR", counter_key_}); return;
    case Op::SharedIncr: RespClient::encode(output_, {"INCR", kSharedCounter}); return;
  }
}

bool Lane::judge_value(std::uint32_t key, const Reply& reply, TraceRecord& record) {
  if (reply.kind == Reply::Kind::Nil) {
    ++totals_.lost;
    if (record.lost < 255) ++record.lost;
    totals_.complain(fmt::format("key {} is gone", key));
    return false;
  }
  if (reply.kind != Reply::Kind::Bulk) {
    totals_.complain(fmt::format("GET of key {}: {}", key, reply.text));
    return false;
  }
  data_.value(key, versions_[key], value_text_);
  if (reply.text == value_text_) return true;
  if (const auto maybe = maybe_.find(key); maybe != maybe_.end()) {
    data_.value(key, maybe->second, value_text_);
    if (reply.text == value_text_) {
      versions_[key] = maybe->second;
      maybe_.erase(maybe);
      return true;
    }
  }
  ++totals_.wrong;
  totals_.complain(
      fmt::format("key {} has another value than its version {} ({} bytes)", key, versions_[key], reply.text.size()));
  return false;
}

bool Lane::judge(const Request& request, const Reply& reply, TraceRecord& record) {
  switch (request.op) {
    case Op::Set:
      if (reply.kind != Reply::Kind::Status || reply.text != "OK") break;
      versions_[request.key] = request.version;
      maybe_.erase(request.key);
      return true;
    case Op::Get: return judge_value(request.key, reply, record);
    case Op::Incr: {
      if (reply.kind != Reply::Kind::Integer) break;
      const std::int64_t least = counter_ + 1;
      const std::int64_t most = least + counter_maybe_;
      counter_ = reply.integer;
      counter_maybe_ = 0;
      if (reply.integer >= least && reply.integer <= most) return true;
      ++totals_.wrong;
      totals_.complain(fmt::format("{} is {} where {} was due", counter_key_, reply.integer, least));
      return false;
    }
    case Op::SharedIncr:
      if (reply.kind != Reply::Kind::Integer) break;
      ++totals_.shared_incr;
      return true;
  }
  totals_.complain(fmt::format("unexpected answer: {}", reply.kind == Reply::Kind::Nil ? "nil" : reply.text));
  return false;
}

void Lane::forget(const Request& request) {
  if (request.op == Op::Set) maybe_[request.key] = request.version;
  if (request.op == Op::Incr) ++counter_maybe_;
  if (request.op == Op::SharedIncr) ++totals_.shared_maybe;
}

luo::Result<> Lane::batch() {
  plan(options_.depth);
  output_.clear();
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    Request& request = requests_[i];
    // What a GET later in the same batch must see is judged when its answer comes, after the SET's.
    if (request.op == Op::Set) {
      request.version = versions_[request.key] + 1;
      for (std::size_t before = 0; before < i; ++before)
        if (requests_[before].op == Op::Set && requests_[before].key == request.key) ++request.version;
    }
    encode(request);
  }
  TraceRecord record{.start_ns = now_ns(),
                     .duration_ns = 0,
                     .lane = options_.number,
                     .requests = static_cast<std::uint16_t>(requests_.size()),
                     .failed = 0,
                     .role = options_.role,
                     .lost = 0};
  std::size_t answered = 0;
  luo::Result<> transport = ensure_connected();
  if (transport) transport = client_.send(output_);
  for (; transport && answered < requests_.size(); ++answered) {
    transport = client_.receive(reply_);
    if (!transport) break;
    if (!judge(requests_[answered], reply_, record)) ++record.failed;
  }
  record.duration_ns = now_ns() - record.start_ns;
  if (!transport) {
    record.failed = static_cast<std::uint16_t>(record.failed + requests_.size() - answered);
    for (std::size_t i = answered; i < requests_.size(); ++i) forget(requests_[i]);
    totals_.complain(to_string(transport.error()));
    ++totals_.resets;
    client_ = {};
    connected_ = false;
    ::usleep(1000);  // reconnecting without end would take the server's processor
  } else if (options_.role == Role::Fresh) {
    client_ = {};
    connected_ = false;
  }
  totals_.requests += record.requests;
  totals_.failed += record.failed;
  return trace_.add(record);
}

luo::Result<> Lane::run(const std::atomic<bool>& stop) {
  while (!stop.load(std::memory_order_relaxed)) {
    LUO_TRY(batch());
    if (options_.pause_us > 0) ::usleep(options_.pause_us);
  }
  return trace_.flush();
}

luo::Result<> Lane::check_all() {
  LUO_TRY_DURING("final check", ensure_connected());
  TraceRecord unused{};
  for (std::uint32_t from = options_.number; from < data_.keys;) {
    requests_.clear();
    output_.clear();
    for (; from < data_.keys && requests_.size() < kCheckDepth; from += options_.lanes) {
      requests_.push_back({Op::Get, from, 0});
      encode(requests_.back());
    }
    LUO_TRY_DURING("final check", client_.send(output_));
    for (const Request& request : requests_) {
      LUO_TRY_DURING("final check", client_.receive(reply_));
      ++totals_.requests;
      if (!judge(request, reply_, unused)) ++totals_.failed;
    }
  }
  output_.clear();
  encode({Op::Incr, 0, 0});
  LUO_TRY_DURING("final check", client_.send(output_));
  LUO_TRY_DURING("final check", client_.receive(reply_));
  ++totals_.requests;
  if (!judge({Op::Incr, 0, 0}, reply_, unused)) ++totals_.failed;
  return {};
}

}  // namespace demo
