#!/usr/bin/env python3
"""luo-cache over real kexecs: its data set comes, twice in a row; its connections do not; a dry run leaves it serving."""
import pathlib
import re
import tempfile

import guest
import harness

KEYS = 20000
MORE = 2000  # of 4 KiB, so that the heap has to grow after the dry run
LATER = 3000  # in the second kernel

SCRIPT = r"""
exec 2>&1
export LUO_SOCKET=/run/luod.sock LD_LIBRARY_PATH=/lib
PORT=6390
fact() { echo "$1=$2"; }
die() { echo "died: $*"; tail -n 40 /tmp/luod.log /tmp/cache.log; exit 99; }
until_true() { # COMMAND...: waits for the thing itself; the machine has a time limit
  while ! "$@" >/dev/null 2>&1; do
    kill -0 $luod 2>/dev/null || die "luod ended, waiting for: $*"
    usleep 20000
  done
}
talk() { { cat; printf 'QUIT\r\n'; } | nc 127.0.0.1 $PORT; } # requests in, answers out
one() { printf '%s\r\n' "$*" | talk 2>/dev/null | head -n 1 | tr -d '\r'; }
info() { printf 'INFO\r\n' | talk | tr -d '\r' | sed -n "s/^$1://p"; }
# NAME COUNT BYTES: the requests; value N of a name is the same text in every kernel.
sets() { awk -v name=$1 -v n=$2 -v bytes=$3 'BEGIN { for (i = 0; i < n; ++i) { k = name ":" i; v = name i * 7919 "-"; while (length(v) < bytes) v = v v;
  printf "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", length(k), k, length(v), v } }'; }
gets() { awk -v name=$1 -v n=$2 'BEGIN { for (i = 0; i < n; ++i) { k = name ":" i; printf "*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n", length(k), k } }'; }
answers() { awk -v name=$1 -v n=$2 -v bytes=$3 'BEGIN { for (i = 0; i < n; ++i) { v = name i * 7919 "-"; while (length(v) < bytes) v = v v;
  printf "$%d\r\n%s\r\n", length(v), v } printf "+OK\r\n" }'; }
load() { sets $1 $2 $3 | talk >/tmp/loaded; fact "$1.loaded" $(($(grep -c '^+OK' /tmp/loaded) - 1)); } # -1: QUIT's
verify() { # how many of them are there, and are what they were
  gets $1 $2 | talk >/tmp/got; answers $1 $2 $3 >/tmp/wanted
  if cmp -s /tmp/got /tmp/wanted; then fact "boot$LUO_BOOT.$1.verified" $2
  else fact "boot$LUO_BOOT.$1.verified" "differs: $(cmp /tmp/got /tmp/wanted 2>&1 | head -n 1)"; fi
}
start() {
  luod --medium kernel --state-dir /run/luo --socket $LUO_SOCKET >/tmp/luod.log 2>&1 </dev/null &
  luod=$!
  until_true luoctl status
  luo-cache --port $PORT >/tmp/cache.log 2>&1 </dev/null &
  cache=$!
  while [ "$(one PING)" != +PONG ]; do kill -0 $cache || die "luo-cache ended"; usleep 20000; done
  fact "boot$LUO_BOOT.log" "$(grep -o 'took over session.*' /tmp/cache.log)"
  fact "boot$LUO_BOOT.connections" "$(grep -o '[0-9]* connections did not come across' /tmp/cache.log)"
}
update() { # OPTIONS...
  line="$(sed 's/ *luo.boot=[0-9]*//g' /proc/cmdline) luo.boot=$((LUO_BOOT + 1))"
  luoctl --json update kernel --kernel /share/bzImage --initrd /share/initrd --cmdline "$line" "$@" >/tmp/update.json 2>/tmp/update.err
}
leave() { # the connections that are left open here are lost; that is said afterwards
  for i in 1 2 3; do { printf '*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$900\r\n'; exec sleep 1000; } | nc 127.0.0.1 $PORT >/dev/null & done
  while [ "$(info connected_clients)" -lt 4 ]; do usleep 20000; done
  fact "boot$LUO_BOOT.options" "$(luoctl --json show cache | grep -o '"\(transient\|grow\)": *"[a-z]*"' | tr -d ' "' | sort | tr '\n' ' ')"
  sync
  update "$@"
  cat /tmp/update.json /tmp/update.err /tmp/luod.log /tmp/cache.log
  exit 90
}
case $LUO_BOOT in
1) cp /boot/bzImage /boot/initrd /share/ || exit 92
   start
   load key KEYS 10
   update --dry-run
   fact dry.status $?
   cat /tmp/update.json | tr '\n' ' ' | sed 's/^/# dry run: /'; echo
   tail -n 3 /tmp/cache.log | sed 's/^/# /'
   verify key KEYS 10
   load more MORE 4096
   verify more MORE 4096
   fact boot1.dbsize "$(one DBSIZE)"
   leave ;;
2) start
   verify key KEYS 10
   verify more MORE 4096
   fact boot2.generation "$(info generation)"
   fact boot2.pause_us "$(info last_pause_us)"
   load later LATER 100
   fact boot2.dbsize "$(one DBSIZE)"
   leave ;;
3) start
   verify key KEYS 10
   verify more MORE 4096
   verify later LATER 100
   fact boot3.generation "$(info generation)"
   fact boot3.dbsize "$(one DBSIZE)"
   luoctl status | sed 's/^/# /'
   kill $cache; wait $cache
   fact boot3.sessions "$(luoctl --json list | grep -c '"name"')" ;;
esac
"""


def facts(output):
    return dict(re.findall(r"(?m)^(\w[\w.]*)=(.*?)\r?$", output))


def test(verdicts, options):
    with tempfile.TemporaryDirectory(prefix="luo-cache-vm-") as folder:
        share = pathlib.Path(folder) / "share"
        share.mkdir()
        script = pathlib.Path(folder) / "script"
        script.write_text(re.sub(r"\b(KEYS|MORE|LATER)\b", lambda m: str(globals()[m[0]]), SCRIPT))
        programs = [options.programs / name for name in ("luod", "luoctl", "luo-cache")]
        done = guest.run(["sh", "/script"], programs, [(script, "script")], memory="2G", timeout=options.timeout, share=str(share),
                         with_kernel=True)
    if options.verbose:
        print(done.output)
    if done.status != 0:
        raise guest.VmError(f"it ended with {done.status}", done.console + done.output)
    seen = facts(done.output)
    verdicts.equal("first kernel: loaded", seen.get("key.loaded"), str(KEYS))
    verdicts.equal("a dry run ends well", seen.get("dry.status"), "0")
    verdicts.equal("and leaves every key", seen.get("boot1.key.verified"), str(KEYS))
    verdicts.equal("and a cache that can grow", seen.get("boot1.more.verified"), str(MORE))
    verdicts.equal("its session may lose its sockets, and grow", seen.get("boot1.options", "").split(), ["grow:allow", "transient:allow"])
    for boot, total in ((2, KEYS + MORE), (3, KEYS + MORE + LATER)):
        for name, count in (("key", KEYS), ("more", MORE), ("later", LATER))[:boot]:
            verdicts.equal(f"kernel {boot}: every {name}", seen.get(f"boot{boot}.{name}.verified"), str(count))
        verdicts.equal(f"kernel {boot}: no others", seen.get(f"boot{boot}.dbsize"), f":{total if boot == 3 else total + LATER}")
        verdicts.equal(f"kernel {boot}: kexecs so far", seen.get(f"boot{boot}.generation"), str(boot - 1))
        verdicts.line(f"kernel {boot}: the log says how many keys came", f"image of the memory: {total} keys" in seen.get(f"boot{boot}.log", ""),
                      seen.get(f"boot{boot}.log"))
        verdicts.line(f"kernel {boot}: and that the connections did not", seen.get(f"boot{boot}.connections", "").startswith("3 connections"),
                      seen.get(f"boot{boot}.connections"))
    verdicts.line("the pause is measured over both kernels' clocks", 0 < int(seen.get("boot2.pause_us") or 0) < options.timeout * 1000000,
                  seen.get("boot2.pause_us"))
    verdicts.equal("stopped, it leaves no session", seen.get("boot3.sessions"), "0")


if __name__ == "__main__":
    parser = harness.arguments(__doc__, "luod, luoctl and luo-cache")
    parser.add_argument("--timeout", type=int, default=300, help="seconds for all of it")
    parser.add_argument("--verbose", action="store_true", help="what the machine said")
    chosen = parser.parse_args()
    harness.main("cache", lambda verdicts: test(verdicts, chosen))
