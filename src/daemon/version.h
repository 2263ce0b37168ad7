#pragma once
namespace luo::daemon {
inline constexpr const char* kVersion = LUO_VERSION;
}
