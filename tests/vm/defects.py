#!/usr/bin/env python3
"""The defects of the kernel's LUO (docs/differences.md), over real kexecs: that the bare kernel has them, and that luod,
which keeps what it is given in that same kernel, does not pass them on.

One program, defects/defects.c, does what each defect is in and prints what came of it: on the bare kernel, and unchanged
under `luoctl run`. Here is what is expected. A kernel that no longer has one of them fails too: then
docs/differences.md has to change.
"""
import pathlib
import re
import tempfile

import guest
import harness

SCRIPT = r"""
exec 2>&1
export LUO_SOCKET=/run/luod.sock
line="$(sed 's/ *luo.boot=[0-9]*//g' /proc/cmdline) luo.boot=$((LUO_BOOT + 1))"
next() {
  kexec -s -l /share/bzImage --initrd=/share/initrd --command-line="$line" || exit 90
  sync
  kexec -e
  exit 91
}
start() {
  luod --medium kernel --socket $LUO_SOCKET --state-dir /run/luod "$@" >/share/luod-$LUO_BOOT.log 2>&1 </dev/null &
  until [ -S $LUO_SOCKET ] && luoctl status >/tmp/status; do
    kill -0 $! || { cat /share/luod-$LUO_BOOT.log; exit 93; }
    sleep 0.1
  done
}
cross() {
  luoctl update kernel --kernel /share/bzImage --initrd /share/initrd --cmdline "$line" "$@"
  cat /share/luod-$LUO_BOOT.log
  exit 94
}
[ $LUO_BOOT != 1 ] || cp /boot/bzImage /boot/initrd /share/ || exit 92
case $1-$LUO_BOOT in
acts-1) luo-defects before && next ;;
acts-2) luo-defects after && luo-defects many 51 && next ;;
acts-3) luo-defects came 51 ;;
panic-1) luo-defects many 51 duplicate && next ;;
panic-2) echo booted=yes ;;
luod-1) start && luoctl run -- luo-defects before && cross ;;
luod-2) start && luoctl run -- luo-defects after && luoctl run -- luo-defects many 51 duplicate && cross ;;
luod-3) start && luoctl run -- luo-defects came 51 && luoctl stop && wait
   start --handlers /stubborn.so,memfd && luo-unfinished keep && luoctl update simulated && luo-unfinished take && luoctl stop ;;
esac
"""

# What is done, the fact that tells, what the bare kernel makes of it, and what luod does (None: not asked).
EXPECTED = [
    ("D1: 51 sessions (a full block), and a create that is refused, of a name that is taken", "d1.duplicate", None, "EEXIST"),
    ("D1: those of the 51 that came", "d1.came", "51", "51"),
    ("D2: a memfd made with MFD_NOEXEC_SEAL has this seal before the kexec", "d2.seals.before", "0x20", "0x20"),
    ("D2: and its mode", "d2.mode.before", "0x1b6", "0x1b6"),
    ("D2: seals that it comes back with", "d2.seals.after", "0x3e", "0x20"),
    ("D2: mode that it comes back with", "d2.mode.after", "0x1ff", "0x1b6"),
    ("D2: writing to it", "d2.write", "EPERM", "done"),
    ("D3: RETRIEVE_SESSION with an argument that cannot be written", "d3.retrieve", "EFAULT", "EFAULT"),
    ("D3: the same session, asked for again", "d3.again", "ENOENT", "done"),
    ("D3: its file", "d3.file", "gone", "done"),
    ("D4: PRESERVE_FD with an argument that cannot be written", "d4.preserve", "EFAULT", "EFAULT"),
    ("D4: another file under the same token", "d4.token", "EEXIST", "done"),
    ("D4: which of the two comes over the kexec", "d4.came", "the refused one", "the second"),
    ("D4: FINISH with an argument that cannot be written", "d4.finish", "EFAULT", "EFAULT"),
    ("D4: a file of that session, asked for after that", "d4.after_finish", "ENOENT", "done"),
    ("D5: seals added to a file that is preserved", "d5.seal", "done", "done"),
    ("D5: they are there before the kexec", "d5.seals.before", "0x6", "0x6"),
    ("D5: and after it", "d5.seals.after", "0", "0x6"),
    ("D8: FINISH while the handler is not done", "d8.finish", None, "EBUSY"),
    ("D8: the session was closed like that, and is asked for again", "d8.again", None, "done"),
    ("D8: its file", "d8.file", None, "done"),
    ("D8: FINISH when the handler is done", "d8.finish_later", None, "done"),
    ("D8: the session after that", "d8.at_last", None, "ENOENT"),
]
BARE, LUOD = 2, 3


def boot(part, folder, programs=(), files=(), timeout=180):
    share = pathlib.Path(folder) / f"share-{part}"
    share.mkdir()
    script = pathlib.Path(folder) / "script"
    script.write_text(SCRIPT)
    return guest.run(["sh", "/script", part], [pathlib.Path(folder) / "luo-defects", harness.kexec(), *programs],
                     [(script, "script"), *files], share=str(share), with_kernel=True, timeout=timeout)


def judge(verdicts, who, column, done):
    seen = dict(re.findall(r"(?m)^(\w[\w.]*)=(.*?)\r?$", done.output))
    for row in EXPECTED:
        if row[column] is not None:
            verdicts.equal(f"{who}: {row[0]}: {row[column]}", seen.get(row[1]), row[column])
    if done.status != 0:
        verdicts.line(f"{who}: to the end", False, f"it ended with {done.status}\n{done.output}\n{harness.end_of(done.console, 15)}")


def bare(verdicts, folder, _):
    judge(verdicts, "bare", BARE, boot("acts", folder))
    try:  # D1 in a boot of its own, because it ends the machine
        done = boot("panic", folder)
        said, ended = done.console + done.output, done.output
    except guest.VmError as error:
        said, ended = error.console, ""
    verdicts.line("bare: D1: 51 sessions and a create that is refused, of a name that is taken: EEXIST", "d1.duplicate=EEXIST" in said,
                  harness.end_of(said))
    # The kernel says why; without that it might have died of something else.
    verdicts.line("bare: D1: the next kernel panics at what it was handed over",
                  "booted=yes" not in ended and re.search(r"Kernel panic.*initialize properly \[-(22|EINVAL)\]", said), harness.end_of(said))


def luod(verdicts, folder, programs):
    done = boot("luod", folder, [programs / name for name in ("luod", "luoctl", "luo-unfinished")], [(programs / "luo-stubborn.so", "stubborn.so")])
    judge(verdicts, "luod", LUOD, done)


def test(verdicts, options):
    for half in (bare, luod):
        if options.only in (None, half.__name__):
            with tempfile.TemporaryDirectory(prefix="luo-defects-") as folder:
                harness.build("defects/defects.c", folder)
                try:
                    half(verdicts, folder, options.programs)
                except guest.VmError as error:
                    verdicts.line(f"{half.__name__}: the virtual machine", False, f"{error}\n{harness.end_of(error.console)}")


if __name__ == "__main__":
    parser = harness.arguments(__doc__, "luod, luoctl, luo-unfinished and luo-stubborn.so")
    parser.add_argument("--only", choices=("bare", "luod"))
    chosen = parser.parse_args()
    harness.main("defects", lambda verdicts: test(verdicts, chosen))
