// Successors that a running luo-cache must survive. Which one this is, its argument says.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "cache/records.h"
#include "kho/arena.h"
#include "luo/luo.h"

int main(int argc, char** argv) {
  const char* how = argc > 1 ? argv[1] : "take_over";
  luo_connection* luod = nullptr;
  if (luo_open(nullptr, &luod) != 0) ::_exit(10);
  const int session = luo_session_retrieve(luod, "cache");
  if (session < 0) ::_exit(11);
  if (strcmp(how, "take_over") == 0) {
    // At the last moment: the old owner has stopped, the session is not renewed yet.
    ::_exit(luo_session_take_over(luod, session, 10'000) != 0 ? 11 : 12);
  }
  luo::kho::Layout layout = luo::cache::kLayout;
  if (strcmp(how, "other_layout") == 0) ++layout.version;
  auto memory =
      luo::kho::Arena::warm(luo::FdRef::borrow(luo_retrieve_fd(luod, session, luo::cache::kArenaToken)), layout);
  if (!memory) {
    fprintf(stderr, "last words: %s\n", memory.error().what.c_str());
    ::_exit(13);
  }
  fputs("last words: read it all\n", stderr);
  abort();
}
