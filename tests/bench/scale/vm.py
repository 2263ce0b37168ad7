#!/usr/bin/env python3
"""The same as run.py, at sizes that this machine does not allow: in a virtual machine (tests/vm), whose processor is
emulated. Its times are many times longer than on a real one, and only those of one boot can be compared.

Writes report.json and, with --plot, the plots of docs/performance.md. Exit status 0 if the limits are met, 1 if not,
2 if it could not be measured.
"""
import argparse
import datetime
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
sys.path.insert(0, str(ROOT / "demo"))
sys.path.insert(0, str(ROOT / "tests/vm"))
sys.path.insert(0, str(HERE))

import run as here  # noqa: E402 (first: the demonstration has a run.py of its own)

import guest  # noqa: E402
import kernel as kernels  # noqa: E402
import machine  # noqa: E402
import plot  # noqa: E402

# Two luods, as run.py starts them; the first line of what is printed tells where, the second is luo-scale's report.
SCRIPT = r"""#!/bin/sh
for side in small large; do
  luod --medium exec --socket /run/$side.sock --state-dir /run/$side 2>/run/$side.log &
done
for side in small large; do
  tries=0
  until luoctl status --socket /run/$side.sock >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { cat /run/$side.log >&2; exit 3; }
    sleep 0.1
  done
done
echo "$(uname -r) $(nproc) $(sed -n 's/MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
luo-scale --small /run/small.sock --large /run/large.sock --luoctl /bin/luoctl "$@"
status=$?
[ $status = 0 ] || tail -n 20 /run/small.log /run/large.log >&2
exit $status
"""


def emulator():
    said = subprocess.run([guest.QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    return f"QEMU {said.split('version', 1)[1].split()[0]} (TCG)"


def measure(options):
    """(report of luo-scale, the machine)"""
    script = options.out / "script"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    programs = [options.bin / name for name in ("luod", "luoctl", "luo-scale")]
    command = ["/luo/scale", "--sessions", options.sessions, "--files", options.files, "--rounds", options.rounds,
               "--one-by-one", options.one_by_one, "--timeout", 300]
    done = guest.run([str(word) for word in command], programs, [(script, "luo/scale")], memory=options.memory, timeout=options.timeout)
    (options.out / "console").write_text(done.console)
    lines = done.output.splitlines()
    if done.status != 0 or len(lines) != 2:
        raise guest.VmError(f"luo-scale ended with status {done.status}", done.console + done.output)
    kernel, processors, memory_kib = lines[0].split()
    return json.loads(lines[1]), {"processors": int(processors), "memory_bytes": int(memory_kib) * 1024, "kernel": kernel,
                                  "emulated_by": emulator(), "on": machine.describe()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin", help="of a build with LUO_BENCH")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/bench-scale-vm")
    parser.add_argument("--sessions", type=int, default=100_000, help="of the larger luod (default: 100,000)")
    parser.add_argument("--files", type=int, default=10, help="in each (default: 10)")
    parser.add_argument("--one-by-one", type=int, default=10, help="the files of each so-manieth session (default: 10)")
    parser.add_argument("--rounds", type=int, default=5, help="of update luod (default: 5)")
    parser.add_argument("--memory", default="8G", help="of the machine (default: 8G)")
    parser.add_argument("--timeout", type=int, default=5400, help="for all of it, in seconds (default: 5400)")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FOLDER", help="write the plots there")
    options = parser.parse_args()
    options.bin, options.out = options.bin.resolve(), options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)

    print(f"{options.sessions} sessions with {options.files} files each, and a tenth of them", flush=True)
    try:
        measured, where = measure(options)
    except (kernels.KernelError, guest.VmError, OSError) as error:
        said = getattr(error, "console", "").replace("\r", "").splitlines()[-30:]
        print("\n".join([f"bench-scale-vm: {error}", *said]), file=sys.stderr)
        return 2
    runs = {"sessions": measured}
    limits = here.judge(runs)
    report = {"date": datetime.date.today().isoformat(), "machine": where, "rounds": options.rounds, "limits": limits,
              "one_by_one": options.one_by_one, "runs": runs}
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    here.print_tables(runs, limits)
    if options.plot:
        for path in plot.draw(report, options.plot, "scale-vm"):
            print(f"plot: {path}")
    print(f"report: {options.out / 'report.json'}")
    return 0 if all(limit["met"] for limit in limits) else 1


if __name__ == "__main__":
    sys.exit(main())
