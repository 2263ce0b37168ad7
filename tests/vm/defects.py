#!/usr/bin/env python3
"""The defects of the kernel's LUO (docs/differences.md): that the bare kernel has them, over real kexecs.

One program, defects/defects.c, does what each defect is in and prints what came of it; here is what is expected. A
kernel that no longer has one of them fails too: then docs/differences.md has to change.
"""
import pathlib
import re
import tempfile

import guest
import harness

SCRIPT = r"""
exec 2>&1
next() {
  line="$(sed 's/ *luo.boot=[0-9]*//g' /proc/cmdline) luo.boot=$((LUO_BOOT + 1))"
  kexec -s -l /share/bzImage --initrd=/share/initrd --command-line="$line" || exit 90
  sync
  kexec -e
  exit 91
}
[ $LUO_BOOT != 1 ] || cp /boot/bzImage /boot/initrd /share/ || exit 92
case $1-$LUO_BOOT in
acts-1) luo-defects before && next ;;
acts-2) luo-defects after && luo-defects many 51 && next ;;
acts-3) luo-defects came 51 ;;
panic-1) luo-defects many 51 duplicate && next ;;
panic-2) echo booted=yes ;;
esac
"""

# What is done, the fact that tells, what the bare kernel makes of it.
EXPECTED = [
    ("D2: a memfd made with MFD_NOEXEC_SEAL has this seal before the kexec", "d2.seals.before", "0x20"),
    ("D2: and its mode", "d2.mode.before", "0x1b6"),
    ("D2: seals that it comes back with", "d2.seals.after", "0x3e"),
    ("D2: mode that it comes back with", "d2.mode.after", "0x1ff"),
    ("D2: writing to it", "d2.write", "EPERM"),
    ("D3: RETRIEVE_SESSION with an argument that cannot be written", "d3.retrieve", "EFAULT"),
    ("D3: the same session, asked for again", "d3.again", "ENOENT"),
    ("D3: its file", "d3.file", "gone"),
    ("D4: PRESERVE_FD with an argument that cannot be written", "d4.preserve", "EFAULT"),
    ("D4: another file under the same token", "d4.token", "EEXIST"),
    ("D4: which of the two comes over the kexec", "d4.came", "the refused one"),
    ("D4: FINISH with an argument that cannot be written", "d4.finish", "EFAULT"),
    ("D4: a file of that session, asked for after that", "d4.after_finish", "ENOENT"),
    ("D5: seals added to a file that is preserved", "d5.seal", "done"),
    ("D5: they are there before the kexec", "d5.seals.before", "0x6"),
    ("D5: and after it", "d5.seals.after", "0"),
    ("D1: 51 sessions (a full block) and no refused create (control): that came", "d1.came", "51"),
]


def boot(part, folder, timeout=120):
    share = pathlib.Path(folder) / f"share-{part}"
    share.mkdir()
    script = pathlib.Path(folder) / "script"
    script.write_text(SCRIPT)
    return guest.run(["sh", "/script", part], [pathlib.Path(folder) / "luo-defects", harness.kexec()], [(script, "script")],
                     share=str(share), with_kernel=True, timeout=timeout)


def facts(output):
    return dict(re.findall(r"(?m)^(\w[\w.]*)=(.*?)\r?$", output))


def bare(verdicts):
    with tempfile.TemporaryDirectory(prefix="luo-defects-") as folder:
        harness.build("defects/defects.c", folder)
        done = boot("acts", folder)
        if done.status != 0:
            raise guest.VmError(f"it ended with {done.status}", done.console + done.output)
        seen = facts(done.output)
        for what, fact, expected in EXPECTED:
            verdicts.equal(f"bare: {what}: {expected}", seen.get(fact), expected)
        panics(verdicts, folder)


def panics(verdicts, folder):
    """D1 in a boot of its own, because it ends the machine."""
    try:
        done = boot("panic", folder)
        said, ended = done.console + done.output, done.output
    except guest.VmError as error:
        said, ended = error.console, ""
    verdicts.line("bare: D1: 51 sessions and a create that is refused, of a name that is taken: EEXIST", "d1.duplicate=EEXIST" in said,
                  harness.end_of(said))
    # The kernel says why; without that it might have died of something else.
    verdicts.line("bare: D1: the next kernel panics at what it was handed over",
                  "booted=yes" not in ended and re.search(r"Kernel panic.*initialize properly \[-(22|EINVAL)\]", said), harness.end_of(said))


if __name__ == "__main__":
    harness.main("defects", bare)
