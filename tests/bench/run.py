#!/usr/bin/env python3
"""Measures what the project promises about speed, everything side by side in one run.

Prints a table of the limits and whether each is met, and writes report.json. Exit status 0 if all are
met, 1 if not, 2 if a measurement could not be made.
"""
import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "demo"))

import analysis  # noqa: E402 (the demonstration's modules are used as they are)
import machine  # noqa: E402
import stage as stages  # noqa: E402

MIB = 1 << 20
VALUE = 1024


class Bench:
    def __init__(self, options):
        self.options = options
        self.limits = []   # (what, measured, limit, unit)
        self.results = {}

    def limit(self, what, measured, limit, unit="", at_least=False):
        met = measured >= limit if at_least else measured <= limit
        self.limits.append({"what": what, "measured": measured, "limit": limit, "unit": unit,
                            "sense": ">=" if at_least else "<=", "met": met})
        print(f"   {what}: {measured:.3g} {unit} (limit {'≥' if at_least else '≤'} {limit:g}): {'met' if met else 'MISSED'}", flush=True)

    def stage(self, name):
        return stages.Stage(self.options.out / f"run-{name}", self.options.bin.resolve())

    # --- what preserving and retrieving cost -----------------------------------------------------------

    def transfer(self):
        rounds = 5 if self.options.quick else 31
        files = 1012  # four full batches in each session
        with self.stage("transfer") as stage:
            stage.start_luod()
            preserve = json.loads(stage.call(["luo-bench", "preserve", "--rounds", rounds]))
            holder = stages.Client(stage, "holder", ["luo-probe", "--name", "held", "--sessions", min(rounds, 17), "--files", files,
                                                     "--interval-us", 100000])
            stage.call(["luoctl", "update", "simulated", "--json"])
            end(holder)
            half = min(rounds, 16) // 2

            def retrieve_from(first):
                return json.loads(stage.call(["luo-bench", "retrieve", "--rounds", half, "--files", files, "--prefix", "held-",
                                              "--first", first]))
            retrieve = retrieve_from(0)
            stage.update_luod()  # the next one has seen none of the files: it looks at each before it gives it back
            late = retrieve_from(half)
        self.results["transfer"] = {"preserve": preserve, "retrieve": retrieve, "retrieve_by_another_luod": late}
        print(f"   preserve {preserve['preserve_us']:.3f} µs each, bare passing {preserve['bare_us']:.3f} µs "
              f"(unacknowledged {preserve['bare_unacknowledged_us']:.3f}); retrieve {retrieve['retrieve_us']:.3f} µs, bare {retrieve['bare_us']:.3f}")
        self.limit("batch preserve, of bare passing", preserve["preserve_us"] / preserve["bare_us"], 5, "times")
        self.limit("batch retrieve, of bare passing", retrieve["retrieve_us"] / retrieve["bare_us"], 5, "times")
        self.limit("batch retrieve from a luod that did not take the files in", late["retrieve_us"] / late["bare_us"], 5, "times")

    # --- how the cost of one operation grows ------------------------------------------------------------

    def scale(self):
        # On one processor: what a call costs, not what it costs to wake somebody on another one. That differs by a
        # factor of three from one pair of processes to the next, also if both luods hold the same.
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(allowed)})
        try:
            self.scale_on_one_processor()
        finally:
            os.sched_setaffinity(0, allowed)

    def scale_on_one_processor(self):
        rounds = 20 if self.options.quick else 200
        many_files, many_sessions = (3000, 1800) if self.options.quick else (15000, 9000)

        def pair(what, work):
            with self.stage(f"{what}-small") as small, self.stage(f"{what}-large") as large:
                small.start_luod()
                large.start_luod()
                return work(small, large)

        def sides(small, large, few, many):
            return ["--small", small.luo_socket, "--large", large.luo_socket, "--small-count", few, "--large-count", many,
                    "--rounds", rounds]

        def simulated(small, large):
            for stage, count in ((small, many_files // 10), (large, many_files)):
                holder = stages.Client(stage, "holder", ["luo-probe", "--name", "held", "--sessions", 1, "--files", count,
                                                         "--interval-us", 100000])
                stage.call(["luoctl", "update", "simulated", "--json"])
                end(holder)
            return json.loads(small.call(["luo-bench", "retrieve-scale", *sides(small, large, many_files // 10, many_files),
                                          "--prefix", "held-"]))

        files = pair("files", lambda small, large: json.loads(
            small.call(["luo-bench", "files", *sides(small, large, many_files // 10, many_files)])))
        retrieval = pair("retrieve", simulated)
        sessions = pair("sessions", lambda small, large: json.loads(
            small.call(["luo-bench", "sessions", *sides(small, large, many_sessions // 10, many_sessions)], timeout=300)))
        self.results["scale"] = {"files": files, "retrieve": retrieval, "sessions": sessions}
        for what, result in (("files", files), ("files", retrieval), ("sessions", sessions)):
            for operation, numbers in result.items():
                if isinstance(numbers, dict):
                    self.limit(f"{operation} at {result['large']} {what}, of that at {result['small']}", numbers["ratio"], 1.3, "times")

    # --- the pause of luod's clients, and of the cache's -----------------------------------------------

    def luod_pause(self):
        sessions, rounds = (100, 5) if self.options.quick else (1000, 20)
        with self.stage("luod") as stage, self.stage("stranger") as stranger:
            # A luod that the cache has nothing to do with, and that holds as much: what its updates and deaths do to
            # the cache's clients is what any work of that size does to them on this machine.
            stage.start_luod()
            stranger.start_luod()
            port = stages.free_port()
            stage.start_cache(port)
            keys = 65536
            stage.call(verify("load", port, keys))
            clients = stages.Client(stage, "luo-verify", verify("run", port, keys, "--closed", 2, "--pipelined", 0, "--fresh", 0,
                                                                "--idle", 4, "--pause-us", 100, trace=stage.directory / "clients.trace"))

            def probe_of(where, interval_us):
                return stages.Client(where, "luo-probe", ["luo-probe", "--sessions", sessions, "--files", 10, "--interval-us", interval_us,
                                                          "--trace", where.directory / "probe.trace"])
            probe, idle_probe = probe_of(stage, 100), probe_of(stranger, 100_000)
            events = []
            time.sleep(1)
            for _ in range(rounds):
                for kind in ("update luod", "kill worker"):
                    for name, where in ((kind, stage), (f"{kind} elsewhere", stranger)):
                        time.sleep(0.3)
                        worker = where.status()["worker_pid"]
                        time.sleep(0.1)
                        start = stages.monotonic_ns()
                        if kind == "update luod":
                            where.update_luod()
                        else:
                            os.kill(worker, signal.SIGKILL)
                            # It is answered when the next one serves.
                            where.call(["luoctl", "show", "probe-0", "--json"])
                        events.append(analysis.Event(name, start, stages.monotonic_ns()))
            time.sleep(0.3)
            found, asked = clients.finish()[-1], probe.finish()[-1]
            idle_probe.finish()
            analysis.attribute(events, analysis.Trace(stage.directory / "clients.trace"), analysis.Trace(stage.directory / "probe.trace"))
        if found["failed_requests"] or asked["failed_calls"] or asked["files_lost"]:
            raise stages.StageError(f"requests failed: {found} {asked}")
        reports = {report["name"]: report for report in analysis.event_reports(events)}
        self.results["luod_pause"] = {"sessions": sessions, "files": sessions * 10, "events": list(reports.values())}
        for name in ("update luod", "kill worker"):
            own, elsewhere = reports[name], reports[f"{name} elsewhere"]
            self.limit(f"pause of a client of luod, {name}, {sessions} sessions, {sessions * 10} files",
                       own["luod_pause_ms"]["max"], 50, "ms")
            print(f"   (median {own['luod_pause_ms']['median']} ms)")
            print(f"   longest request of a client of luo-cache meanwhile: median {own['pause_ms']['median']} ms, at the same elsewhere "
                  f"{elsewhere['pause_ms']['median']} ms, when nothing happens {own['control_ms']['median']} ms")
            self.limit(f"the same of a client of luo-cache, {name}: median, of that when another luod has it",
                       own["pause_ms"]["median"] / max(elsewhere["pause_ms"]["median"], 1e-3), 1.3, "times")

    # --- the pause of the cache's clients at its own update ---------------------------------------------

    def service_pause(self):
        sizes = {"16 MiB": 16, "32 MiB": 32} if self.options.quick else {"128 MiB": 128, "1 GiB": 1024}
        rounds = 3 if self.options.quick else 11
        pauses = {name: [] for name in sizes}
        redis = {}
        with self.stage("service") as stage:
            stage.start_luod()
            caches = {}
            for number, (name, size) in enumerate(sizes.items()):
                port, session, keys = stages.free_port(), f"cache-{number}", size * MIB // VALUE
                stage.start_cache(port, session)
                stage.call(verify("load", port, keys), timeout=600)
                trace = stage.directory / f"{session}.trace"
                client = stages.Client(stage, f"luo-verify-{number}", verify(
                    "run", port, keys, "--closed", 2, "--pipelined", 0, "--fresh", 0, "--idle", 4, "--pause-us", 200, trace=trace))
                caches[name] = (port, session, keys, client, trace, [])
            for _ in range(rounds):
                for name, (port, session, _keys, _client, _trace, events) in caches.items():
                    time.sleep(0.5)
                    start = stages.monotonic_ns()
                    stage.update_service(port, session)
                    events.append(analysis.Event(name, start, stages.monotonic_ns()))
            time.sleep(0.5)
            for name, (port, session, keys, client, trace, events) in caches.items():
                found = client.finish()[-1]
                if found["failed_requests"] or found["keys_lost"]:
                    raise stages.StageError(f"{name}: {found}")
                analysis.attribute(events, analysis.Trace(trace), analysis.Trace("/nonexistent"))
                pauses[name] = events
        for name, size in sizes.items():
            redis[name] = self.redis_pause(size, 1 if size >= 1024 or self.options.quick else 3)
        self.results["service_pause"] = {name: {
            "pause_ms": analysis.summary_ms([event.pause_ns for event in pauses[name]]),
            "control_ms": analysis.summary_ms([event.control_ns for event in pauses[name]]),
            "duration_ms": analysis.summary_ms([event.end - event.start for event in pauses[name]]),
            "redis_restart_ms": redis[name]} for name in sizes}
        (small, _), (large, _) = sizes.items()
        result = self.results["service_pause"]
        for name in sizes:
            print(f"   {name}: pause {result[name]['pause_ms']} ms (where nothing happens {result[name]['control_ms']}), "
                  f"redis restart {redis[name]:.0f} ms")
        self.limit(f"pause of update service at {large}, of a Redis restart", result[large]["pause_ms"]["median"] / redis[large], 0.01, "times")
        self.limit(f"pause of update service at {large}, of that at {small}",
                   result[large]["pause_ms"]["median"] / result[small]["pause_ms"]["median"], 1.5, "times")

    def redis_pause(self, size, times):
        """Median of what a client sees when redis-server with `size` MiB is restarted."""
        with self.stage("redis") as stage:
            port, keys = stages.free_port(), size * MIB // VALUE
            stage.start_redis(port)
            stage.call(verify("load", port, keys), timeout=600)
            watch = stages.Client(stage, "watch", verify("watch", port, keys))
            windows = []
            for _ in range(times):
                time.sleep(0.5)
                start = stages.monotonic_ns()
                stage.restart_redis(port)
                stage.wait_until("redis-server to have loaded", lambda: stages.resp_info(port).get("loading") == "0", timeout=600)
                windows.append((start, stages.monotonic_ns() + 250_000_000))
            time.sleep(0.5)
            outages = [(line["outage_from_ns"], line["outage_to_ns"]) for line in watch.finish() if "outage_from_ns" in line]
        pauses = []
        for start, until in windows:
            own = [outage for outage in outages if start < outage[1] <= until]
            pauses.append((max(o[1] for o in own) - min(o[0] for o in own)) / 1e6)
        return analysis.percentile(pauses, 50)

    # --- throughput -------------------------------------------------------------------------------------

    def throughput(self):
        rounds = 1 if self.options.quick else 5
        requests = {1: 30_000, 16: 200_000} if self.options.quick else {1: 200_000, 16: 1_000_000}
        rates = {}
        with self.stage("throughput") as stage:
            stage.start_luod()
            ports = {"luo-cache": stages.free_port(), "redis-server": stages.free_port()}
            stage.start_cache(ports["luo-cache"])
            stage.start_redis(ports["redis-server"])
            for turn in range(rounds + 1):  # the first one warms both up
                for pipeline, count in requests.items():
                    order = list(ports) if turn % 2 else list(reversed(ports))
                    for server in order:
                        output = subprocess.run(
                            [stage.program("redis-benchmark"), "-p", str(ports[server]), "-c", "50", "-P", str(pipeline), "-n", str(count),
                             "-r", "100000", "-d", "100", "-t", "set,get", "--csv"], capture_output=True, text=True, check=True).stdout
                        for line in output.splitlines():
                            cells = [cell.strip('"') for cell in line.split(",")]
                            if cells[0] in ("SET", "GET") and turn > 0:
                                rates.setdefault((cells[0], pipeline, server), []).append(float(cells[1]))
        self.results["throughput"] = {}
        for operation in ("SET", "GET"):
            for pipeline in requests:
                ours, theirs = (analysis.percentile(rates[(operation, pipeline, server)], 50) for server in ("luo-cache", "redis-server"))
                self.results["throughput"][f"{operation} -P {pipeline}"] = {"luo_cache": ours, "redis_server": theirs}
                print(f"   {operation} -P {pipeline}: luo-cache {ours:,.0f}/s, redis-server {theirs:,.0f}/s")
                self.limit(f"throughput of {operation} -P {pipeline}, of redis-server's", ours / theirs, 0.8, "times", at_least=True)


def verify(command, port, keys, *more, trace=None):
    return ["luo-verify", "--port", port, "--keys", keys, "--value", VALUE, *(["--trace", trace] if trace else []), command, *more]


def end(client):
    """A holder whose sessions have become incoming has nothing left to say."""
    client.process.kill()
    client.process.wait()


SECTIONS = {"transfer": Bench.transfer, "scale": Bench.scale, "luod-pause": Bench.luod_pause, "service-pause": Bench.service_pause,
            "throughput": Bench.throughput}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--bin", default=ROOT / "build/release/bin", type=pathlib.Path)
    parser.add_argument("--out", default=ROOT / "build/bench", type=pathlib.Path)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="only this part (may be given again)")
    parser.add_argument("--quick", action="store_true", help="small numbers: shows that all runs; misses of limits do not count")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bench = Bench(options)
    broken = []
    began = time.monotonic()
    for name in options.only or SECTIONS:
        print(f"== {name}", flush=True)
        try:
            SECTIONS[name](bench)
        except stages.StageError as error:
            broken.append(name)
            print(f"bench: {name}: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("bench: stopped", file=sys.stderr)
            return 130
    report = {"limits": bench.limits, "results": bench.results, "not_measured": broken, "quick": options.quick,
              "seconds": round(time.monotonic() - began, 1), "machine": machine.describe()}
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print("\nlimit" + " " * 83 + "measured        limit")
    for limit in bench.limits:
        print(f"{limit['what']:<86}  {limit['measured']:8.3g} {limit['sense']} {limit['limit']:<5g} {limit['unit']:<6} "
              f"{'met' if limit['met'] else 'MISSED'}")
    for name in broken:
        print(f"{name}: not measured")
    print(f"\nreport: {options.out / 'report.json'}")
    if broken:
        return 2
    return 0 if options.quick or all(limit["met"] for limit in bench.limits) else 1


if __name__ == "__main__":
    sys.exit(main())
