#!/usr/bin/env python3
"""What a kexec costs with sessions and files kept over it: by the bare kernel's ioctls and through luod, in turns, in one
virtual machine (tests/vm), one kexec after the other. What preserving many files in one session costs, both ways, in
turns. And how create, preserve and retrieve grow with what is there: the bare kernel's, and those of luod that keeps
files itself (--medium exec).

The first kexec is nobody's: memory is laid out anew by it, and each one after it begins as the one before. The ways come
as a, b, b, a, so that neither is always the later one.

Its processor is emulated: times are many times longer than on a real one, and only those of one boot sequence can be
compared. Writes report.json. Exit status 0 if the limits are met, 1 if not, 2 if it could not be measured.
"""
import argparse
import datetime
import json
import pathlib
import statistics
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "tests/vm")]

import guest  # noqa: E402
import harness  # noqa: E402
import kernel as kernels  # noqa: E402
import machine  # noqa: E402

OVER_BARE = 1.05
CLOCKS_AGREE = 0.01  # the cycle counter's frequency, before and after
RTC_MS = 2100  # CLOCK_REALTIME begins in each kernel with a whole second of the RTC


def boot(options, words, timeout):
    """What the guest's programs printed, one JSON object a line."""
    programs = [options.bin / name for name in ("luod", "luoctl", "luo-timeline")] + [harness.kexec()]
    with tempfile.TemporaryDirectory(prefix="luo-kexec-") as share:
        try:
            # Its memory is there from the start: what this machine takes to give it is not the guest's time.
            memory = ["-object", f"memory-backend-ram,id=ram,size={options.memory},prealloc=on", "-machine", "memory-backend=ram"]
            done = guest.run(["sh", "/guest.sh", *map(str, words)], programs, [(HERE / "guest.sh", "guest.sh")], memory=options.memory,
                             timeout=timeout, share=share, with_kernel=True, arguments=memory)
        except guest.VmError as error:
            error.console += said(share)
            raise
        (options.out / f"console-{words[0]}").write_text(done.console)
        if done.status != 0:
            raise guest.VmError(f"{' '.join(map(str, words))} ended with {done.status}", done.console + done.output + said(share))
    return [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]


def said(share):
    errors = pathlib.Path(share) / "errors"
    return errors.read_text(errors="replace") if errors.exists() else ""


def find_update(status):
    """Of luoctl status: the update of the kernel that luod came from."""
    if isinstance(status, dict):
        if status.get("kind") == "kernel" and "phases" in status:
            return status
        status = list(status.values())
    if isinstance(status, list):
        for part in status:
            found = find_update(part)
            if found:
                return found
    return None


def rounds_of(lines, way):
    """One dict for each round: what fill, take, and luod itself measured. Not of the first boot's."""
    rounds, current = [], {}
    lines = lines[2:]
    for line in lines:
        if line["way"] != way:
            continue
        if line["step"] == "fill":
            current = {"fill": line}
        elif line["step"] == "take":
            current["take"] = line
            rounds.append(current)
        elif line["step"] == "luod":
            current["luod"] = find_update(line["status"])
    for one in rounds:
        one["from_freeze_ms"] = one["take"]["over_ms"]
        if way == "luod":  # the client's clock stands from when it was ready
            phases = (one.get("luod") or {}).get("phases")
            if not phases:
                raise guest.VmError("luod's history tells nothing of the update of the kernel", json.dumps(lines[-1])[-2000:])
            one["from_ready_ms"] = one["take"]["over_ms"]
            one["from_freeze_ms"] -= phases["preserve_ms"] + phases["image_ms"]
    return rounds


def check_clocks(rounds):
    """What is wrong with the joined clock, or nothing."""
    for one in rounds:
        take = one["take"]
        if abs(take["cycles_per_ns_after"] / take["cycles_per_ns_before"] - 1) > CLOCKS_AGREE:
            return f"the cycle counter had {take['cycles_per_ns_before']} per ns, then {take['cycles_per_ns_after']}"
        if abs(take["over_ms"] - take["over_by_real_ms"]) > RTC_MS:
            return f"{take['over_ms']} ms by cycles, {take['over_by_real_ms']} ms by the RTC"
    return None


def medians(rounds, files, sessions):
    def median(pick):
        values = [pick(one) for one in rounds]
        return {"median": statistics.median(values), "least": min(values), "most": max(values)}
    out = {"from_freeze_ms": median(lambda one: one["from_freeze_ms"]),
           "create_us": median(lambda one: one["fill"]["create_ms"] * 1000 / sessions),
           "preserve_us": median(lambda one: one["fill"]["preserve_ms"] * 1000 / files),
           "preserve_big_ms": median(lambda one: one["fill"]["preserve_big_ms"]),
           "up_ms": median(lambda one: one["take"]["up_ms"]),
           "open_ms": median(lambda one: one["take"]["open_ms"]),
           "retrieve_sessions_us": median(lambda one: one["take"]["retrieve_sessions_ms"] * 1000 / sessions),
           "retrieve_files_us": median(lambda one: one["take"]["retrieve_files_ms"] * 1000 / files),
           "retrieve_big_ms": median(lambda one: one["take"]["retrieve_big_ms"]),
           "verify_ms": median(lambda one: one["take"]["verify_ms"]),
           "finish_ms": median(lambda one: one["take"]["finish_ms"])}
    if "from_ready_ms" in rounds[0]:
        out["from_ready_ms"] = median(lambda one: one["from_ready_ms"])
    return out


def deep_medians(lines, files):
    """Preserving many files in one session, in µs for each, by way."""
    out = {}
    for way in ("bare", "luod"):
        values = [line["preserve_ms"] * 1000 / files for line in lines if line["way"] == way]
        out[way] = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return out


def judge(ways, deep):
    if "luod" not in ways:
        return []
    pairs = [("from the freeze to the last retrieve, of the bare kernel's", ways["luod"]["from_freeze_ms"], ways["bare"]["from_freeze_ms"], OVER_BARE),
             ("preserve in batches, a few in each session, of the bare ioctl's", ways["luod"]["preserve_us"], ways["bare"]["preserve_us"], 1.0),
             ("preserve in batches, all in one session, of the bare ioctl's", deep["luod"], deep["bare"], 1.0)]
    out = []
    for what, luod, bare, limit in pairs:
        measured = luod["median"] / bare["median"]
        out.append({"what": what, "measured": measured, "limit": limit, "met": measured <= limit})
    return out


def show(ways, deep, curves, limits):
    keys = list(ways.get("luod", ways["bare"]))
    print(f"\n{'':<24}" + "".join(f"{way:>12}" for way in ways))
    for key in keys:
        print(f"{key:<24}" + "".join(f"{ways[way][key]['median']:12.2f}" if key in ways[way] else f"{'-':>12}" for way in ways))
    print(f"{'deep preserve_us':<24}" + "".join(f"{deep[way]['median']:12.2f}" if way in deep else "" for way in ways))
    for way, curve in curves.items():
        for what, points in curve.items():
            print(f"{way + ' ' + what:<24}" + " ".join(f"{point['at']}: {point['median_us']:.1f}" for point in points) + " (µs)")
    for limit in limits:
        print(f"{limit['what']:<64} {limit['measured']:6.3f} <= {limit['limit']:<5g} {'met' if limit['met'] else 'MISSED'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin", help="of a build with LUO_BENCH")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/bench-kexec")
    parser.add_argument("--rounds", type=int, default=5, help="of each way (default: 5)")
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--files", type=int, default=8, help="in each session (default: 8)")
    parser.add_argument("--big", type=int, default=256 << 20, help="bytes of one more file (default: 256 MiB)")
    parser.add_argument("--curve-sessions", type=int, default=4000)
    parser.add_argument("--curve-files", type=int, default=8000)
    parser.add_argument("--deep-rounds", type=int, default=5, help="of each way, preserving --curve-files in one session (default: 5)")
    parser.add_argument("--ways", nargs="+", choices=("bare", "luod"), default=["bare", "luod"])
    parser.add_argument("--memory", default="3G", help="of the machine (default: 3G)")
    parser.add_argument("--timeout", type=int, default=1800, help="of each of the four boot sequences, in seconds")
    options = parser.parse_args()
    options.bin, options.out = options.bin.resolve(), options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        order = [way for n in range(options.rounds) for way in (options.ways if n % 2 == 0 else options.ways[::-1])]
        lines = boot(options, ["timeline", options.sessions, options.files, options.big, "bare", *order], options.timeout)
        (options.out / "lines.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
        rounds = {way: rounds_of(lines, way) for way in options.ways}
        deep = deep_medians(boot(options, ["deep", options.curve_files, *["bare", "luod"] * options.deep_rounds], options.timeout), options.curve_files)
        curves = {}
        for way in options.ways:
            got = boot(options, ["curve", way, options.curve_sessions, options.curve_files], options.timeout)
            curves[way] = {what: points for line in got for what, points in line.items() if isinstance(points, list)}
    except (kernels.KernelError, guest.VmError, harness.Missing, OSError, ValueError) as error:
        print(f"bench-kexec: {error}\n{harness.end_of(getattr(error, 'console', ''))}", file=sys.stderr)
        return 2
    wrong = [f"{way}: {len(of)} rounds came of {options.rounds}" for way, of in rounds.items() if len(of) != options.rounds]
    wrong += [f"{way}: {check_clocks(of)}" for way, of in rounds.items() if check_clocks(of)]
    if wrong:
        print("bench-kexec: " + "; ".join(wrong), file=sys.stderr)
        return 2
    ways = {way: medians(of, options.sessions * options.files, options.sessions) for way, of in rounds.items()}
    limits = judge(ways, deep)
    report = {"date": datetime.date.today().isoformat(), "on": machine.describe(), "rounds": options.rounds, "sessions": options.sessions,
              "files": options.sessions * options.files, "big_bytes": options.big, "limits": limits, "ways": ways, "deep_preserve_us": deep,
              "curves": curves, "all": rounds}
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    show(ways, deep, curves, limits)
    print(f"report: {options.out / 'report.json'}")
    return 0 if all(limit["met"] for limit in limits) else 1


if __name__ == "__main__":
    sys.exit(main())
