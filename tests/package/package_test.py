#!/usr/bin/env python3
"""Installs the build into a directory of its own, builds the counter against that (by pkg-config and by CMake), and
runs each of them, and the one in Python, through updates.

    package_test.py BUILD
"""
import ctypes
import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SOURCE = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(sys.argv.pop(1)).resolve()


def run(*command, **more):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, **more).stdout


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="luo-package-"))
        cls.addClassCleanup(shutil.rmtree, cls.work)
        cls.prefix = cls.work / "installed"
        run("cmake", "--install", BUILD, "--prefix", cls.prefix)
        config, = cls.prefix.glob("lib/**/libluo.pc")
        cls.lib = config.parent.parent
        cls.env = dict(os.environ, LD_LIBRARY_PATH=str(cls.lib), PKG_CONFIG_PATH=str(config.parent), CMAKE_PREFIX_PATH=str(cls.prefix))

    def setUp(self):
        self.state = pathlib.Path(tempfile.mkdtemp(dir=self.work))
        self.env = dict(self.env, LUO_SOCKET=str(self.state / "luod.sock"))
        self.start_luod()
        while not (self.state / "luod.sock").exists():
            self.assertIsNone(self.luod.poll(), (self.state / "log").read_text())
            time.sleep(0.01)

    def start_luod(self, *more):
        with open(self.state / "log", "a") as log:
            self.luod = subprocess.Popen([self.prefix / "bin/luod", "--state-dir", self.state, *more], env=self.env,
                                         stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.addCleanup(self.luod.wait)
        # Not by its pid: after an update that failed it has another.
        self.addCleanup(subprocess.run, [str(self.prefix / "bin/luoctl"), "stop"], env=self.env, capture_output=True)

    def luoctl(self, *arguments):
        return run(self.prefix / "bin/luoctl", *arguments, env=self.env)

    def counts(self, *command):
        """Through a crossing, an update of luod while it runs, and another crossing."""
        for expected in ("1", "2", "3"):
            with subprocess.Popen([str(part) for part in command], env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as counter:
                self.assertEqual(counter.stdout.readline().strip(), expected)
                if expected == "2":
                    self.luoctl("update", "luod")
                self.luoctl("update", "simulated")
                self.assertEqual(counter.wait(30), 0)

    def test_pkg_config(self):
        flags = run("pkg-config", "--cflags", "--libs", "libluo", env=self.env).split()
        self.assertIn(f"-I{self.prefix}/include", flags)
        run("cc", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", SOURCE / "examples/counter/counter.c", *flags, "-o", self.state / "counter")
        self.counts(self.state / "counter")

    def test_cmake(self):
        run("cmake", "-S", SOURCE / "examples/counter", "-B", self.state / "build", "-DCMAKE_C_FLAGS=-D_GNU_SOURCE", env=self.env)
        run("cmake", "--build", self.state / "build", env=self.env)
        self.counts(self.state / "build/counter")

    def test_ctypes(self):
        self.counts(sys.executable, SOURCE / "examples/counter/counter.py")

    def test_the_c_header_is_c_and_the_other_is_cxx(self):
        for compiler, language, header in (("cc", "c", "luo.h"), ("c++", "c++", "luo.hpp")):
            run(compiler, "-x", language, *(["-std=c++23"] if language == "c++" else ["-std=c11"]), "-Wall", "-Wextra", "-Werror",
                "-fsyntax-only", "-I", self.prefix / "include", "-include", f"luo/{header}", "/dev/null")

    def test_a_handler_from_outside(self):
        run("cmake", "-S", SOURCE / "examples/handler", "-B", self.state / "build", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror", env=self.env)
        run("cmake", "--build", self.state / "build", env=self.env)
        self.luoctl("stop")
        self.luod.wait(30)
        plugin = self.state / "build/ledger.so"
        self.start_luod("--handlers", f"{plugin},all")
        luo = ctypes.CDLL(str(self.lib / "libluo.so"))
        luo.luo_preserve_fd.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_uint64]
        luo.luo_retrieve_fd.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64]
        luo.luo_last_error.restype = ctypes.c_char_p
        where = str(self.state / "luod.sock").encode()

        def connect():
            connection = ctypes.c_void_p()
            while luo.luo_open(where, ctypes.byref(connection)) != 0:
                self.assertIsNone(self.luod.poll(), (self.state / "log").read_text())
                time.sleep(0.01)
            return connection

        def good(result):
            self.assertGreaterEqual(result, 0, luo.luo_last_error())
            return result

        def volume():
            flb, = json.loads(self.luoctl("--json", "status"))["flbs"]
            self.assertEqual(flb["name"], "volume-v1")
            return flb["outgoing_files"], flb["incoming_files"]

        def data():
            return [file["data"][:2] for file in json.loads(self.luoctl("--json", "files", "--handler", "ledger-v1"))["files"]]

        connection = connect()
        session = good(luo.luo_session_create(connection, b"books"))
        ledgers = [os.memfd_create("ledger") for _ in range(3)]
        for token, ledger in enumerate(ledgers):
            os.write(ledger, b"x" * 10)
            good(luo.luo_preserve_fd(connection, session, ledger, token))
        good(luo.luo_preserve_fd(connection, session, os.memfd_create("other"), 99))
        self.assertEqual(volume(), (3, 0))
        self.assertEqual(data(), [[10, 1]] * 3)
        os.write(ledgers[0], b"more")
        # A killed worker and an updated luod load it again, even if the file has gone meanwhile.
        os.kill(json.loads(self.luoctl("--json", "status"))["worker_pid"], signal.SIGKILL)
        self.assertEqual(volume(), (3, 0))
        self.luoctl("update", "luod")
        self.assertEqual(volume(), (3, 0))
        os.rename(plugin, self.state / "gone.so")
        os.kill(json.loads(self.luoctl("--json", "status"))["worker_pid"], signal.SIGKILL)
        self.assertEqual(volume(), (3, 0))
        failed = subprocess.run([str(self.prefix / "bin/luoctl"), "update", "luod"], env=self.env, capture_output=True, text=True)
        self.assertEqual(failed.returncode, 1)
        self.assertIn("ledger.so", failed.stderr)
        os.rename(self.state / "gone.so", plugin)
        self.assertEqual(volume(), (3, 0))
        self.luoctl("update", "simulated")
        self.assertEqual(volume(), (0, 3))
        self.assertEqual(sorted(data()), [[10, 1], [10, 1], [14, 1]])

        connection = connect()
        session = good(luo.luo_session_retrieve(connection, b"books"))
        os.ftruncate(ledgers[1], 5)
        self.assertEqual(luo.luo_retrieve_fd(connection, session, 1), -errno.EIO)
        self.assertIn(b"the ledger had 10 bytes, and has 5", luo.luo_last_error())
        good(luo.luo_retrieve_fd(connection, session, 0))
        # A new ledger begins the next volume, which goes on from the one that came.
        fresh = good(luo.luo_session_create(connection, b"new books"))
        good(luo.luo_preserve_fd(connection, fresh, os.memfd_create("ledger-new"), 7))
        self.assertIn([0, 2], data())
        good(luo.luo_session_finish(connection, session))
        self.assertEqual(volume(), (1, 0))
        os.close(fresh)
        while volume() != (0, 0):
            time.sleep(0.01)

    def test_only_the_api_is_exported_and_each_symbol_has_a_version(self):
        symbols = [line.split() for line in run("nm", "-D", "--defined-only", self.lib / "libluo.so").splitlines()]
        names = [parts[-1] for parts in symbols if parts[1] != "A"]
        self.assertGreater(len(names), 10)
        for name in names:
            self.assertTrue(name.startswith("luo_") and name.endswith("@@LUO_0"), name)


if __name__ == "__main__":
    unittest.main()
