#!/usr/bin/env python3
"""What luod's work costs beside much, and beside a tenth of it; how long its updates take then; its memory.

Each run starts two luods, fills one with ten times as much as the other, and takes every step at both in turns.
Writes report.json and, with --plot, the plots of docs/performance.md. Exit status 0 if the limits are met, 1 if not,
2 if something could not be measured.
"""
import argparse
import datetime
import json
import os
import pathlib
import resource
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
sys.path.insert(0, str(ROOT / "demo"))
sys.path.insert(0, str(HERE))

import machine  # noqa: E402 (the demonstration's modules are used as they are)
import plot  # noqa: E402
import stage as stages  # noqa: E402

PER_ITEM, OF_BARE = 1.3, 3.0
SPARE = 200  # descriptors that luod, or the client, needs for itself and keeps in reserve

# Sessions, files in each. luod has one descriptor for each of both; here it may have 20,000.
RUNS = {"sessions": (9000, 1), "files in tens": (1780, 10), "files in hundreds": (180, 100)}
QUICK = {"sessions": (900, 1), "files in tens": (100, 10)}


def measure(options, name, sessions, files):
    needed = sessions * (files + 1) + SPARE
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise stages.StageError(f"{sessions} sessions with {files} files each need {needed} descriptors, {limit} are allowed")
    label = name.replace(" ", "-")
    with stages.Stage(options.out / f"run-{label}-small", options.bin) as small, \
            stages.Stage(options.out / f"run-{label}-large", options.bin) as large:
        small.start_luod()
        large.start_luod()
        return json.loads(large.call(
            ["luo-scale", "--small", small.luo_socket, "--large", large.luo_socket, "--luoctl", large.program("luoctl"),
             "--sessions", sessions, "--files", files, "--rounds", options.rounds,
             "--processor", max(os.sched_getaffinity(0))], timeout=options.timeout))


def judge(runs):
    """(what, measured, limit) of all that has one."""
    limits = []
    for name, run in runs.items():
        for call, numbers in run["calls"].items():
            limits.append((f"{name}: {call} at {run['sessions']} sessions with {run['files_in_each']}, of that at a tenth",
                           numbers["ratio"], PER_ITEM))
        update = run["large"]["update_luod"]
        limits.append((f"{name}: update luod, of fork and exec with {update['descriptors']} descriptors",
                       update["ratio"], OF_BARE))
        small, large = (run[side]["update_simulated"]["blackout_ms"] / run[side]["files"] for side in ("small", "large"))
        limits.append((f"{name}: update simulated, per file, of that at a tenth", large / small, PER_ITEM))
    return [{"what": what, "measured": measured, "limit": limit, "met": measured <= limit} for what, measured, limit in limits]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin", help="of a build with LUO_BENCH")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/bench-scale")
    parser.add_argument("--rounds", type=int, default=11, help="of update luod")
    parser.add_argument("--timeout", type=int, default=300, help="of each run, in seconds")
    parser.add_argument("--quick", action="store_true", help="a tenth: tells whether it works, not how fast")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FOLDER", help="write the plots there")
    options = parser.parse_args()
    options.bin, options.out = options.bin.resolve(), options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)

    load = [round(value, 2) for value in os.getloadavg()]  # others at work make pauses longer
    runs, broken = {}, []
    for name, (sessions, files) in (QUICK if options.quick else RUNS).items():
        print(f"{name}: {sessions} sessions with {files} files each", flush=True)
        try:
            runs[name] = measure(options, name, sessions, files)
        except stages.StageError as error:
            broken.append(name)
            print(f"bench-scale: {name}: {error}", file=sys.stderr)
    limits = judge(runs)
    report = {"date": datetime.date.today().isoformat(), "machine": machine.describe(), "load_average": load, "quick": options.quick,
              "rounds": options.rounds, "limits": limits, "not_measured": broken, "runs": runs}
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print_tables(runs, limits)
    if options.plot and runs:
        for path in plot.draw(report, options.plot):
            print(f"plot: {path}")
    print(f"report: {options.out / 'report.json'}")
    if broken:
        return 2
    return 0 if options.quick or all(limit["met"] for limit in limits) else 1


def print_tables(runs, limits):
    for name, run in runs.items():
        print(f"\n{name}: µs of one                median    p99  of a tenth (of means)")
        for call, numbers in run["calls"].items():
            print(f"  {call:<28} {numbers['large']['median_us']:9.2f} {numbers['large']['p99_us']:7.1f}  "
                  f"{numbers['ratio']:.2f} ({numbers['ratio_of_means']:.2f})")
        for side in ("small", "large"):
            numbers = run[side]
            update, simulated = numbers["update_luod"], numbers["update_simulated"]
            used, nothing = (numbers["memory"][when] for when in ("preserved", "nothing"))
            arena = (used["arena"]["used_bytes"] - nothing["arena"]["used_bytes"]) / numbers["files"]
            print(f"  {numbers['files']} files: update luod {update['blackout_ms']['median']:.2f} ms "
                  f"(bare {update['bare_running_ms']['median']:.2f} ms, with its end {update['bare_ended_ms']['median']:.2f}), "
                  f"simulated {simulated['blackout_ms']:.2f} ms, worker {used['worker']['VmRSS'] / 2**20:.1f} MiB, "
                  f"{arena:.0f} arena bytes for each file")
    print("\nlimit" + " " * 85 + "measured  limit")
    for limit in limits:
        print(f"{limit['what']:<88}  {limit['measured']:8.3g} <= {limit['limit']:<5g} {'met' if limit['met'] else 'MISSED'}")


if __name__ == "__main__":
    sys.exit(main())
