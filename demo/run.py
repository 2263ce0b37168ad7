#!/usr/bin/env python3
"""The demonstration: a cache under load, while everything under it is replaced and killed.

Starts luod and luo-cache, loads a data set, and while redis-benchmark and a verifying client talk to
the cache without a pause, updates luod, updates the cache, kills luod's worker, luod's keeper and the
cache itself, each many times in random order at random moments. Then restarts a redis-server with the same data the way
its users do. Ends with a table, report.json and timeline.svg; exit status 0 if no request failed and
no key was lost, 1 otherwise, 2 if the run itself went wrong.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time

import analysis
import machine
import picture
import stage as stages
import table

HERE = pathlib.Path(__file__).resolve().parent
KINDS = ("update luod", "update service", "kill worker", "kill keeper", "kill service")
REDIS_RESTARTS = 3


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--bin", default=HERE.parent / "build/release/bin", type=pathlib.Path, help="directory of the programs")
    parser.add_argument("--out", default=HERE.parent / "build/demo", type=pathlib.Path, help="where the results go")
    parser.add_argument("--keys", type=int, default=262144, help="in the data set")
    parser.add_argument("--value", type=int, default=1024, help="bytes in each value")
    parser.add_argument("--connections", type=int, default=50, help="of each redis-benchmark")
    parser.add_argument("--rounds", type=int, default=50, help="how often each event happens")
    parser.add_argument("--seed", type=int, default=None, help="of the order and the moments")
    return parser.parse_args()


class Progress:
    """One line updated in place on a terminal, plain lines elsewhere."""

    def __init__(self):
        self.tty = sys.stdout.isatty()

    def step(self, text):
        print(("\r\x1b[K" if self.tty else "") + text, flush=True)

    def update(self, text):
        if self.tty:
            print(f"\r\x1b[K{text}", end="", flush=True)
        else:
            print(text, flush=True)


class Generations:
    """Which process did a job from when to when."""

    def __init__(self):
        self.lanes = {}

    def saw(self, lane, pid, at):
        runs = self.lanes.setdefault(lane, [])
        if runs and runs[-1]["pid"] == pid:
            return
        if runs and runs[-1]["to"] is None:
            runs[-1]["to"] = at
        runs.append({"pid": pid, "from": at, "to": None})

    def renewed(self, lane, at):
        """The same process runs a new image."""
        run = self.lanes[lane][-1]
        run["to"] = at
        self.lanes[lane].append({"pid": run["pid"], "from": at, "to": None})

    def ended(self, lane, at):
        if self.lanes.get(lane) and self.lanes[lane][-1]["to"] is None:
            self.lanes[lane][-1]["to"] = at


class Demo:
    def __init__(self, options, stage, progress):
        self.options, self.stage, self.progress = options, stage, progress
        self.port = stages.free_port()
        self.random = random.Random(options.seed)
        self.generations = Generations()
        self.events = []
        self.pids = {}

    def cache_pid(self):
        return int(stages.resp_info(self.port).get("process_id", 0))

    def look(self, at=None):
        """Who does what now."""
        status = self.stage.status()
        at = at or stages.monotonic_ns()
        self.pids = {"keeper": status["keeper_pid"], "worker": status["worker_pid"]}
        self.generations.saw("luod keeper", status["keeper_pid"], at)
        self.generations.saw("luod worker", status["worker_pid"], at)
        self.generations.saw("luo-cache", self.cache_pid(), at)

    def kill(self, who):
        old = self.pids[who]
        os.kill(old, signal.SIGKILL)

        def replaced():
            status = self.stage.status()
            return status[f"{who}_pid"] not in (old, 0)

        self.stage.wait_until(f"a new {who}", replaced, every=0.001)

    def kill_service(self):
        """Its supervisor starts the next one, which goes on with every connection."""
        old = self.cache_pid()
        os.kill(old, signal.SIGKILL)
        self.stage.wait_until("the next luo-cache", lambda: self.cache_pid() not in (old, 0), every=0.001)

    def do(self, kind):
        before = stages.resp_info(self.port)
        # The pause is what clients see, so the clock starts before anything is done.
        start = stages.monotonic_ns()
        if kind == "update luod":
            self.stage.update_luod()
        elif kind == "update service":
            self.stage.update_service(self.port)
        elif kind == "kill service":
            self.kill_service()
        else:
            self.kill("worker" if kind == "kill worker" else "keeper")
        end = stages.monotonic_ns()
        self.events.append(analysis.Event(kind, start, end, int(before.get("used_memory", 0))))
        if kind == "update luod":
            self.generations.renewed("luod keeper", end)
        self.look(end)

    def verify_arguments(self, command, port, trace, *more):
        return ["luo-verify", "--port", port, "--keys", self.options.keys, "--value", self.options.value,
                *(["--trace", self.stage.directory / trace] if trace else []), command, *more]

    def load(self, port):
        return json.loads(self.stage.call(self.verify_arguments("load", port, None), timeout=600))

    def run_events(self):
        order = [kind for kind in KINDS for _ in range(self.options.rounds)]
        self.random.shuffle(order)
        self.pause(1.0, 1.5)
        for number, kind in enumerate(order, 1):
            self.do(kind)
            self.progress.update(f"[{number:3}/{len(order)}] {kind:14}  took {(self.events[-1].end - self.events[-1].start) / 1e6:7.1f} ms")
            for client in (self.verify, self.probe):
                if not client.alive():
                    raise stages.StageError(f"{client.name} ended: {self.stage.log_tail(client.name)}")
            self.pause(0.2, 0.6)
        self.pause(0.5, 1.0)

    def pause(self, least, most):
        """The random moment of the next event."""
        time.sleep(self.random.uniform(least, most))

    def live(self):
        """The cache, its clients and what happens to it."""
        options, stage = self.options, self.stage
        self.progress.step("starting luod and luo-cache")
        stage.start_luod()
        stage.start_cache(self.port)
        self.progress.step(f"loading {options.keys} keys of {options.value} bytes")
        self.load(self.port)
        self.look()
        self.began = stages.monotonic_ns()
        self.verify = stages.Client(stage, "luo-verify", self.verify_arguments("run", self.port, "clients.trace"))
        self.probe = stages.Client(stage, "luo-probe", ["luo-probe", "--trace", stage.directory / "probe.trace",
                                                         "--interval-us", 200])
        benchmarks = [stages.Benchmark(stage, "redis-benchmark", self.port, options.connections, 1, 40_000),
                      stages.Benchmark(stage, "redis-benchmark -P 16", self.port, options.connections, 16, 250_000)]
        self.run_events()
        self.progress.step("the load ends; reading every key")
        complaints = [text for benchmark in benchmarks for text in benchmark.finish()]
        self.ended = stages.monotonic_ns()
        found = self.verify.finish()[-1]
        probe = self.probe.finish()[-1]
        self.look()
        self.carried = int(stages.resp_info(self.port).get("used_memory", 0))
        return {"verify": found, "probe": probe,
                "redis_benchmark": {"complaints": complaints, "completed_requests": sum(b.completed for b in benchmarks),
                                    "requests_per_second": {f"{b.name} {test}": round(analysis.percentile(rates, 50))
                                                            for b in benchmarks for test, rates in b.rates.items()}}}

    def redis(self):
        """The same data in redis-server, restarted with nothing else going on."""
        port = stages.free_port()
        self.progress.step("the same data in redis-server: loading")
        self.stage.start_redis(port)
        self.redis_began = stages.monotonic_ns()
        self.load(port)
        used = int(stages.resp_info(port)["used_memory"])
        watch = stages.Client(self.stage, "luo-verify watch", self.verify_arguments("watch", port, "redis.trace"))
        restarts = []
        size = self.options.keys * self.options.value
        for number in range(REDIS_RESTARTS if size <= 1 << 30 else 1):
            time.sleep(0.5)
            self.progress.update(f"redis-server: SHUTDOWN SAVE, start, wait until loaded ({number + 1})")
            start = stages.monotonic_ns()
            self.stage.restart_redis(port)
            self.stage.wait_until("redis-server to have loaded", lambda: resp_loaded(port), timeout=600)
            end = stages.monotonic_ns()
            restarts.append((start, end))
        time.sleep(0.5)
        lines = watch.finish()
        self.redis_ended = stages.monotonic_ns()
        self.progress.step("redis-server restarted")
        outages = [(line["outage_from_ns"], line["outage_to_ns"]) for line in lines if "outage_from_ns" in line]
        # Outages that touch one restart (refused, then loading) are one pause.
        pauses = []
        for start, end in restarts:
            own = [o for o in outages if start < o[1] <= end + 250_000_000]
            if own:
                pauses.append((min(o[0] for o in own), max(o[1] for o in own)))
        if len(pauses) < len(restarts):
            raise stages.StageError("a restart of redis-server was not noticed by its client")
        return {"pauses": pauses, "bytes": used, "failed_requests": lines[-1]["failed_requests"]}


def resp_loaded(port):
    return stages.resp_info(port).get("loading") == "0"


def main():
    options = parse_arguments()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    progress = Progress()
    progress.step(f"demo: {options.keys} keys of {options.value} bytes, {options.rounds} of each event, seed {options.seed}")
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(options.out / "logs", ignore_errors=True)  # of a run before that went wrong
    try:
        with stages.Stage(options.out / "run", options.bin.resolve()) as stage:
            demo = Demo(options, stage, progress)
            try:
                results = demo.live()
                redis = demo.redis()
            except stages.StageError:
                (options.out / "logs").mkdir(exist_ok=True)
                for log in stage.directory.glob("*.log"):
                    (options.out / "logs" / log.name).write_bytes(log.read_bytes())
                raise
            progress.step("reading the clients' records")
            clients = analysis.Trace(stage.directory / "clients.trace")
            probe = analysis.Trace(stage.directory / "probe.trace")
            analysis.attribute(demo.events, clients, probe)
            redis_trace = analysis.Trace(stage.directory / "redis.trace")
    except stages.StageError as error:
        print(f"\ndemo: {error}\ndemo: logs are in {options.out / 'logs'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ndemo: stopped; everything that was started has ended", file=sys.stderr)
        return 130

    for lane in list(demo.generations.lanes):
        demo.generations.ended(lane, demo.ended)
    report = table.make_report(options, demo, results, redis, clients, machine.describe())
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "timeline.svg").write_text(picture.draw(demo, clients, probe, redis, redis_trace, report))
    table.show(report)
    print(f"\nreport:  {options.out / 'report.json'}\npicture: {options.out / 'timeline.svg'}")
    return 0 if report["failed_requests"] == 0 and report["keys_lost"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
