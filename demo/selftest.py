#!/usr/bin/env python3
"""Shows that the demonstration would notice: a lost key, a wrong value, a lost connection, a lost increment.

Uses redis-server as the cache, and does to it behind the verifying client's back what must never happen.
"""
import os
import pathlib
import sys
import tempfile
import time
import unittest

import analysis
import stage as stages

BIN = pathlib.Path(os.environ.get("LUO_BIN", pathlib.Path(__file__).resolve().parent.parent / "build/release/bin"))
KEYS = 2000


class VerifyingClient(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.stage = stages.Stage(pathlib.Path(self.directory.name) / "run", BIN).__enter__()
        self.port = stages.free_port()
        self.stage.start_redis(self.port)
        self.stage.call(self.command("load"))

    def tearDown(self):
        self.stage.close()
        self.directory.cleanup()

    def command(self, name, *more):
        return ["luo-verify", "--port", self.port, "--keys", KEYS, "--value", 64, "--trace", self.stage.directory / "trace", name, *more]

    def run_with(self, mischief):
        client = stages.Client(self.stage, "luo-verify", self.command("run"))
        time.sleep(0.2)
        mischief()
        return client.finish()[-1]

    def do(self, *words):
        return stages.resp_command(self.port, *words)

    def test_finds_nothing_where_nothing_is_wrong(self):
        found = self.run_with(lambda: None)
        self.assertEqual((found["failed_requests"], found["keys_lost"], found["wrong_values"], found["resets"]), (0, 0, 0, 0))
        self.assertGreater(found["requests"], KEYS)

    def test_finds_lost_keys(self):
        def mischief():
            for key in range(KEYS):  # the live clients set some of them again, but not all of the time
                self.do("DEL", f"demo:{key:08}")
        found = self.run_with(mischief)
        self.assertGreater(found["keys_lost"], 0)
        self.assertGreater(found["failed_requests"], 0)

    def test_finds_a_lost_connection(self):
        found = self.run_with(lambda: self.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
        self.assertGreater(found["resets"], 0)
        self.assertGreater(found["failed_requests"], 0)

    def test_finds_a_lost_increment(self):
        found = self.run_with(lambda: self.do("DECR", "demo:count:all"))
        self.assertEqual(found["wrong_values"], 1)

    def test_finds_an_increment_that_counted_twice(self):
        self.assertGreater(self.run_with(lambda: self.do("INCR", "demo:count:0"))["wrong_values"], 0)

    def test_finds_wrong_values(self):
        def mischief():
            for key in range(KEYS):
                self.do("SET", f"demo:{key:08}", "x" * 64)
        self.assertGreater(self.run_with(mischief)["wrong_values"], 0)

    def test_its_trace_says_when(self):
        start = stages.monotonic_ns()
        self.run_with(lambda: self.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
        event = analysis.Event("kill", start, stages.monotonic_ns())
        analysis.attribute([event], analysis.Trace(self.stage.directory / "trace"), analysis.Trace("/nonexistent"))
        self.assertGreater(event.failed, 0)
        self.assertGreater(event.requests, 0)


class Analysis(unittest.TestCase):
    def test_percentiles_are_values_that_occurred(self):
        self.assertEqual(analysis.percentile([3, 1, 2], 50), 2)
        self.assertEqual(analysis.percentile(range(1, 101), 99), 99)
        self.assertEqual(analysis.percentile([], 99), 0)

    def test_the_pause_is_the_longest_request_under_way(self):
        with tempfile.NamedTemporaryFile() as file:
            for start, duration, role in ((0, 50, 0), (40, 1000, 0), (2000, 9000, 0), (100, 500, 1)):
                file.write(analysis.RECORD.pack(start, duration, 0, 1, 0, role, 0))
            file.flush()
            events = [analysis.Event("a", 60, 100), analysis.Event("b", 1500, 1600)]
            analysis.attribute(events, analysis.Trace(file.name), analysis.Trace("/nonexistent"))
        self.assertEqual([event.pause_ns for event in events], [1000, 0])
        self.assertEqual([event.requests for event in events], [2, 0])  # the pipelined one counts, for requests


if __name__ == "__main__":
    sys.exit(unittest.main(verbosity=1))
