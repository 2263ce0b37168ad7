#!/usr/bin/env python3
"""What programs under `luoctl run` pay: for an ioctl, for an open, and as a whole.

Several luo-compat take turns, step by step: under `luoctl run`, natively through libluo, and under a filter whose
supervisor only answers. Writes report.json. Exit status 0 if the limits are met, 1 if not, 2 if something could not be
measured.
"""
import argparse
import datetime
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
sys.path.insert(0, str(ROOT / "demo"))

import machine  # noqa: E402 (the demonstration's modules are used as they are)
import stage as stages  # noqa: E402

PER_ITEM = 1.3
FILES = 4  # in each session
TURN = 10  # sessions of one turn
MANY_INCLUDES = "".join(f"#include <{name}>\n" for name in (
    "algorithm", "filesystem", "functional", "iostream", "map", "memory", "random", "regex", "string", "thread", "unordered_map", "vector"))


class Runner:
    """One luo-compat that waits for its turn."""

    def __init__(self, stage, name, arguments, before=()):
        self.stage, self.name = stage, name
        self.samples = {}
        with open(stage.directory / f"{name}.log", "ab") as log:
            self.process = subprocess.Popen(
                [*before, stage.program("luo-compat"), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                start_new_session=True, cwd=stage.directory, env=stage.environment())
        stage.popen[name] = self.process
        self.step("syscall", 1, count=False)  # it runs

    def step(self, *words, count=True):
        try:
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise stages.StageError(f"{self.name}: {words} failed\n{self.stage.log_tail(self.name)}")
        if count:
            for what, values in json.loads(line).items():
                self.samples.setdefault(what, []).extend(values)

    def median(self, what):
        return statistics.median(self.samples[what])

    def end(self):
        """By its stdin; killed if an update has ended it already."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def under_run(stage):
    return [stage.program("luoctl"), "--socket", stage.luo_socket, "run", "--"]


def start_luod(stage):
    """With the kernel's handlers, as `luoctl --private` starts it."""
    stage.start("luod", ["luod", "--socket", stage.luo_socket, "--state-dir", stage.directory / "luod-state", "--handlers", "memfd", "--medium", "exec"])
    stage.wait_until("luod to serve", stage.status)


def arguments(stage, way):
    return (["--device", "/dev/liveupdate"], under_run(stage)) if way == "run" else (["--socket", stage.luo_socket], ())


def ioctls(options, sessions):
    """µs of each ioctl with `sessions` held and with a tenth, under run and natively; the bare trap in the same turns.

    All on one processor: where the scheduler puts client, supervisor and luod differs from pair to pair, and makes calls
    dearer by more than half, whatever is held."""
    all_processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(all_processors)})
    try:
        return ioctls_here(options, sessions)
    finally:
        os.sched_setaffinity(0, all_processors)


def ioctls_here(options, sessions):
    sizes = {"small": sessions // 10, "large": sessions}
    # luods of their own for either way and either size
    with stages.Stage(options.out / "1", options.bin) as a, stages.Stage(options.out / "2", options.bin) as b, \
            stages.Stage(options.out / "3", options.bin) as c, stages.Stage(options.out / "4", options.bin) as d:
        where = {("run", "small"): a, ("run", "large"): b, ("native", "small"): c, ("native", "large"): d}
        for stage in where.values():
            start_luod(stage)
        bare = {"trap": Runner(a, "trap", ["--trap"]), "trap_sync": Runner(a, "trap-sync", ["--trap", "--sync-wakeup"])}

        def start(side):
            return {key: Runner(stage, side, *arguments(stage, key[0])) for key, stage in where.items()}

        held = start("before")
        for (_, size), runner in held.items():
            runner.step("create", 0, sizes[size], FILES, count=False)
        for turn in range(options.rounds):
            for key, runner in sorted(held.items(), reverse=turn % 2):
                runner.step("pass", 10 ** 6, 10 ** 6 + TURN, FILES)
            for runner in bare.values():
                runner.step("syscall", 10 * TURN)
        before = {key: runner.samples for key, runner in held.items()}
        for (way, size), stage in where.items():
            stage.call(["luoctl", "update", "simulated"])
            held[way, size].end()
        after = start("after")
        last = min(sizes["small"] // 2, options.rounds * TURN)
        for (_, size), runner in after.items():
            runner.step("retrieve", 0, sizes[size] - last, FILES, count=False)
        for turn in range(0, last, TURN):
            for (_, size), runner in sorted(after.items(), reverse=turn // TURN % 2):
                first = sizes[size] - last + turn
                runner.step("retrieve", first, first + TURN, FILES)
        for turn in range(0, last, TURN):
            for _, runner in sorted(after.items(), reverse=turn // TURN % 2):
                runner.step("finish", TURN)
        for runner in [*after.values(), *bare.values()]:
            runner.end()
        found = {}
        for way in ("run", "native"):
            for side in (before, {key: runner.samples for key, runner in after.items()}):
                for what in side[way, "large"]:
                    small, large = (statistics.median(side[way, size][what]) for size in ("small", "large"))
                    found.setdefault(what, {})[way] = {"small_us": small, "large_us": large, "ratio": large / small,
                                                       "samples": len(side[way, "large"][what])}
        return {"sessions": sizes["large"], "files": sizes["large"] * FILES, "calls": found,
                "bare_trap_us": bare["trap"].median("getppid"), "bare_trap_sync_us": bare["trap_sync"].median("getppid")}


def opens(options):
    """µs of an open and its close: untouched, and under run."""
    with stages.Stage(options.out / "opens", options.bin) as stage:
        start_luod(stage)
        (stage.directory / "file").write_text("")
        (stage.directory / "link").symlink_to("file")
        both = {"plain": Runner(stage, "plain", []), "run": Runner(stage, "run", [], under_run(stage))}
        kinds = {"absolute": (0, stage.directory / "file"), "relative": (0, "file"), "symbolic link": (0, "link"), "absent": (0, stage.directory / "absent"),
                 "folder (O_DIRECTORY, not trapped)": (os.O_DIRECTORY, stage.directory)}
        for _ in range(options.rounds):
            for runner in both.values():
                for name, (flags, path) in kinds.items():
                    runner.step("open", 100, name.replace(" ", "_"), flags, path)
                runner.step("syscall", 100)
        for _ in range(options.rounds):
            both["run"].step("open", 100, "device", os.O_RDWR, "/dev/liveupdate")
        for runner in both.values():
            runner.end()
        found = {name: {way: runner.median(key) for way, runner in both.items()}
                for name, key in [*((name, name.replace(" ", "_")) for name in kinds), ("getppid, not trapped", "getppid")]}
        found["/dev/liveupdate"] = {"run": both["run"].median("device")}
        return found


def supervisor_ns(runner):
    """Processor time of the supervisor under this `luoctl run`."""
    children = pathlib.Path(f"/proc/{runner.process.pid}/task/{runner.process.pid}/children").read_text().split()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in pathlib.Path(f"/proc/{children[0]}/task").iterdir())


def programs(options):
    """Seconds of whole programs, with and without; and of `luoctl run` itself."""
    with stages.Stage(options.out / "programs", options.bin) as stage:
        start_luod(stage)
        (stage.directory / "small.c").write_text("int f(int x) { return x + 1; }\n")
        (stage.directory / "many.cc").write_text(MANY_INCLUDES + "int f(int x) { return x + 1; }\n")
        (stage.directory / "parallel").write_text(
            "#!/bin/sh\ni=0\nwhile [ $i -lt 60 ]; do cc -c stdio.c -o $i.o & i=$((i+1)); done\nwait\n")
        (stage.directory / "stdio.c").write_text("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\nint f(int x) { return x + 1; }\n")
        (stage.directory / "parallel").chmod(0o755)
        both = {"plain": Runner(stage, "plain", []), "run": Runner(stage, "run", [], under_run(stage))}
        commands = {"cc -c, a small file": (["cc", "-c", "small.c"], 3), "c++ -c, many includes": (["c++", "-c", "many.cc"], 1),
                    "60 cc -c in parallel": ([stage.directory / "parallel"], 1), "python3 -c pass": (["python3", "-c", "pass"], 5)}
        found = {}
        for name, (command, times) in commands.items():
            supervisor = 0
            for turn in range(options.program_rounds + 1):
                for way, runner in sorted(both.items(), reverse=turn % 2):
                    before = supervisor_ns(both["run"])
                    for _ in range(times):
                        runner.step("time", *command, count=turn > 0)
                    if way == "run" and turn > 0:
                        supervisor += supervisor_ns(both["run"]) - before
            found[name] = {way: {"wall_ms": runner.median("wall_us") / 1e3, "processor_ms": runner.median("processor_us") / 1e3}
                           for way, runner in both.items()}
            found[name]["supervisor_ms"] = supervisor / 1e6 / (options.program_rounds * times)
            for kind in ("wall_ms", "processor_ms"):
                found[name][f"{kind[:-3]}_ratio"] = found[name]["run"][kind] / found[name]["plain"][kind]
            for runner in both.values():
                runner.samples.clear()
        for _ in range(options.rounds):  # of luoctl run itself
            both["plain"].step("time", "true")
        plain = both["plain"].median("wall_us") / 1e3
        both["plain"].samples.clear()
        for _ in range(options.rounds):
            both["plain"].step("time", *under_run(stage), "true")
        found["true"] = {"plain_ms": plain, "luoctl_run_true_ms": both["plain"].median("wall_us") / 1e3}
        for runner in both.values():
            runner.end()
        return found


def fuse(options):
    """The way not taken: a FUSE file in a mount namespace, and what it would need."""
    with stages.Stage(options.out / "fuse", options.bin) as stage:
        return json.loads(stage.call(["luo-compat-fuse"]))


SECTIONS = {"ioctls": lambda options: ioctls(options, options.sessions), "opens": opens, "programs": programs, "fuse": fuse}


def show(results):
    if "ioctls" in results:
        found = results["ioctls"]
        print(f"µs, {found['sessions']} sessions, {found['files']} files      run  of a tenth     libluo  of a tenth")
        for what, ways in found["calls"].items():
            run, native = ways["run"], ways["native"]
            print(f"  {what:<34} {run['large_us']:6.1f}        {run['ratio']:.2f}     {native['large_us']:6.1f}        {native['ratio']:.2f}")
        print(f"  a bare trap {found['bare_trap_us']:.1f}, with the synchronous wake-up {found['bare_trap_sync_us']:.1f}")
    for name, ways in results.get("opens", {}).items():
        plain = f"{ways['plain']:.2f}" if "plain" in ways else "none"
        print(f"  open, {name:<34} {plain:>5} µs, under run {ways['run']:6.2f}")
    for name, ways in results.get("programs", {}).items():
        if name == "true":
            print(f"  true {ways['plain_ms']:.1f} ms, luoctl run -- true {ways['luoctl_run_true_ms']:.1f} ms")
            continue
        print(f"  {name:<28} {ways['plain']['wall_ms']:8.1f} ms, under run {ways['run']['wall_ms']:8.1f} ({ways['wall_ratio']:.2f}); processor "
              f"{ways['plain']['processor_ms']:8.1f}, {ways['run']['processor_ms']:8.1f} + supervisor {ways['supervisor_ms']:.1f}")


    if "fuse" in results:
        device = results["fuse"]["device"]
        print(f"  a FUSE device: open {device['open_us']:.1f} µs, close {device['close_us']:.1f}; wrongly EBUSY "
              f"{device['wrongly_refused_after_close']} of {device['rounds']}, after a death {device['wrongly_refused_after_death']} of "
              f"{device['deaths_of_the_holder']}; {results['fuse']['limits']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin", help="of a build with LUO_BENCH")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/bench-compat")
    parser.add_argument("--sessions", type=int, default=2000, help=f"of {FILES} files each")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--program-rounds", type=int, default=7)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="only this part (may be given again)")
    parser.add_argument("--quick", action="store_true", help="small numbers: shows that all runs; misses of limits do not count")
    options = parser.parse_args()
    options.bin, options.out = options.bin.resolve(), options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.quick:
        options.sessions, options.rounds, options.program_rounds = 200, 3, 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

    load = [round(value, 2) for value in os.getloadavg()]
    results, broken = {}, []
    for name in options.only or SECTIONS:
        try:
            results[name] = SECTIONS[name](options)
        except stages.StageError as error:
            broken.append(name)
            print(f"bench-compat: {name}: {error}", file=sys.stderr)
    limits = [{"what": f"{what} under luoctl run at {results['ioctls']['sessions']} sessions, of that at a tenth",
               "measured": ways["run"]["ratio"], "limit": PER_ITEM, "met": ways["run"]["ratio"] <= PER_ITEM}
              for what, ways in results.get("ioctls", {"calls": {}})["calls"].items()]
    report = {"date": datetime.date.today().isoformat(), "machine": machine.describe(), "load_average": load, "quick": options.quick,
              "limits": limits, "not_measured": broken, **results}
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    show(results)
    for limit in limits:
        print(f"{limit['what']:<76} {limit['measured']:5.2f} <= {limit['limit']} {'met' if limit['met'] else 'MISSED'}")
    print(f"report: {options.out / 'report.json'}")
    if broken:
        return 2
    return 0 if options.quick or all(limit["met"] for limit in limits) else 1


if __name__ == "__main__":
    sys.exit(main())
