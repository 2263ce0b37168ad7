// After a crash: the connections of a dead luo-cache, brought up to date with what their sockets know.
#pragma once
#include "cache/store.h"

namespace luo::cache {

/// What the dead one received and sent without having been able to say so: TCP counted it (luo/tcp.h). Nobody else
/// reads or writes the socket. Writes two words of the record; doing it again changes nothing.
/// EOPNOTSUPP: no TCP socket; ENOTCONN: it has ended; ESTALE: the socket is another connection's. The connection has
/// to be closed then, the record is unchanged.
Result<> catch_up(ConnectionRecord& record, FdRef socket);

}  // namespace luo::cache
