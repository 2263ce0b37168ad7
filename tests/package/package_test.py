#!/usr/bin/env python3
"""Installs the build into a directory of its own, builds the counter against that (by pkg-config and by CMake), and
runs each of them, and the one in Python, through updates.

    package_test.py BUILD
"""
import os
import pathlib
import shutil
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
        log = open(self.state / "log", "w")
        self.addCleanup(log.close)
        self.luod = subprocess.Popen([self.prefix / "bin/luod", "--state-dir", self.state], env=self.env, stdin=subprocess.DEVNULL, stderr=log)
        self.addCleanup(self.luod.wait)
        self.addCleanup(self.luod.terminate)
        while not (self.state / "luod.sock").exists():
            self.assertIsNone(self.luod.poll(), (self.state / "log").read_text())
            time.sleep(0.01)

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

    def test_only_the_api_is_exported_and_each_symbol_has_a_version(self):
        symbols = [line.split() for line in run("nm", "-D", "--defined-only", self.lib / "libluo.so").splitlines()]
        names = [parts[-1] for parts in symbols if parts[1] != "A"]
        self.assertGreater(len(names), 10)
        for name in names:
            self.assertTrue(name.startswith("luo_") and name.endswith("@@LUO_0"), name)


if __name__ == "__main__":
    unittest.main()
