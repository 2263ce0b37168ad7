// A successor that dies at the last moment: the old owner has stopped, the session is not renewed yet.
#include <unistd.h>

#include "luo/luo.h"

int main() {
  luo_connection* luod = nullptr;
  if (luo_open(nullptr, &luod) != 0) ::_exit(10);
  const int session = luo_session_retrieve(luod, "cache");
  if (session < 0 || luo_session_take_over(luod, session, 10'000) != 0) ::_exit(11);
  ::_exit(12);
}
