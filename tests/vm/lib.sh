# What the scripts in the virtual machine share: verdicts, one line each, and the way into the next kernel.
exec 2>&1
export LUO_SOCKET=/run/luo/luod.sock
kernel=/share/at/bzImage initrd=/share/at/initrd

does() { # NAME COMMAND...: one line for each, and its output if it failed
  name=$1
  shift
  if "$@" >/tmp/said 2>&1; then echo "ok - $name"; else echo "not ok - $name"; sed 's/^/#   /' /tmp/said | tail -60; fi
  [ -z "$SAY" ] || sed 's/^/#   /' /tmp/said | tail -3
}
says() { # PATTERN COMMAND...: fails, with these words
  pattern=$1
  shift
  if "$@" >/tmp/answer 2>&1; then echo "it did not fail:"; cat /tmp/answer; return 1; fi
  grep -q -- "$pattern" /tmp/answer || { echo "no '$pattern' in:"; cat /tmp/answer; return 1; }
}
shows() { # PATTERN COMMAND...: succeeds, with these words
  pattern=$1
  shift
  "$@" >/tmp/answer 2>&1 || { cat /tmp/answer; return 1; }
  grep -q -- "$pattern" /tmp/answer || { echo "no '$pattern' in:"; cat /tmp/answer; return 1; }
}
not() { ! "$@"; }
soon() { # COMMAND...: within some seconds
  for i in $(seq 100); do "$@" && return 0; sleep 0.1; done
  return 1
}
leaving_image() { # KEEPER: luod's own kernel session, which carries its state, is there
  ls -l "/proc/$1/fd" | grep 'luo_session\] luod$'
}
line() { echo "$(sed 's/ *luo.boot=[0-9]*//g' /proc/cmdline) luo.boot=$((LUO_BOOT + 1))"; }
