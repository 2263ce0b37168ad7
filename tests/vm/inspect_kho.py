#!/usr/bin/env python3
"""luoctl inspect --kho of a real kernel: before a kexec, with memory preserved and without, and after it."""
import json
import pathlib
import re
import tempfile

import guest
import harness

SCRIPT = r"""
exec 2>&1
show() { name=$1; shift; echo "== $name"; "$@" luoctl --json inspect --kho; }
case $LUO_BOOT in
1) show nothing; show empty luo-defects hold 0; show file luo-defects hold 16777216
   echo "== copy"; cp -r /sys/kernel/debug/kho /tmp/kho && luoctl --json inspect --kho=/tmp/kho
   kexec -s -l /boot/bzImage --initrd=/boot/initrd --command-line="$(cat /proc/cmdline) luo.boot=2" || exit 90
   sync; kexec -e; exit 91 ;;
2) show after ;;
esac
"""
MAP_AND_LIST = 40 * 4096  # what the kernel preserves beside a file of 16 MiB, at most: its list of pages


def reports(output):
    parts = re.split(r"(?m)^== (\w+)\r?\n", output)
    return {name: json.loads(text) for name, text in zip(parts[1::2], parts[2::2])}


def test(verdicts, options):
    with tempfile.TemporaryDirectory(prefix="luo-kho-") as folder:
        script = pathlib.Path(folder) / "script"
        script.write_text(SCRIPT)
        programs = [options.programs / "luoctl", harness.build("defects/defects.c", folder), harness.kexec()]
        done = guest.run(["sh", "/script"], programs, [(script, "script")], with_kernel=True)
    try:
        shown = reports(done.output)
    except ValueError:
        shown = {}
    if done.status != 0 or set(shown) != {"nothing", "empty", "file", "copy", "after"}:
        raise guest.VmError(f"it ended with {done.status}", done.console + done.output)
    for name, report in shown.items():
        verdicts.line(f"{name}: all that is shown is understood", report["sound"], report["faults"])
    nothing, empty, file = (shown[name]["out"]["preserved"] for name in ("nothing", "empty", "file"))
    verdicts.line("preserved memory is known on a kernel that was started cold", all(of["known"] for of in (nothing, empty, file)),
                  (nothing, empty, file))
    more = file.get("bytes", 0) - empty.get("bytes", 0) - (16 << 20)
    verdicts.line("a preserved file of 16 MiB is counted, with the list of its pages", 0 < more <= MAP_AND_LIST, f"{more} bytes more")
    verdicts.line("no handover into the first kernel", shown["nothing"]["in"] is None)
    verdicts.line("a copy of the folder shows the same, but for the memory",
                  {**shown["copy"]["out"], "preserved": 0} == {**shown["nothing"]["out"], "preserved": 0} and
                  not shown["copy"]["out"]["preserved"]["known"], shown["copy"])
    after = shown["after"]
    came = {of["name"]: of for of in after["in"]["subtrees"]}
    verdicts.equal("after the kexec: from which kernel, and which kexec it was", came["kexec-metadata"].get("kexec", {}).get("count"), 1)
    verdicts.equal("after the kexec: LUO's part came", came.get("LUO", {}).get("bytes"), 32)
    next_one = {of["name"]: of for of in after["out"]["subtrees"]}["LUO"]["luo"]["number"]
    verdicts.equal("after the kexec: the number of the next live update", next_one, 2)
    verdicts.line("after the kexec: why preserved memory is not known is said",
                  not after["out"]["preserved"]["known"] and "kexec" in after["out"]["preserved"]["why"], after["out"])


if __name__ == "__main__":
    chosen = harness.arguments(__doc__, "luoctl").parse_args()
    harness.main("inspect_kho", lambda verdicts: test(verdicts, chosen))
