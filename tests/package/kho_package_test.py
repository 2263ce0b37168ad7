#!/usr/bin/env python3
"""Installs libkho alone into a directory of its own, builds the examples against that (by pkg-config, as the README of
libkho says, and by CMake), runs the README's commands, and kills both programs under load.

    kho_package_test.py BUILD
"""
import os
import pathlib
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

SOURCE = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
README = SOURCE / "src/kho/README.md"
KILLS = 100
KILLED = "killed by signal 9; the next life begins"

SUBTREES = """
#include <cstdio>
#include <string_view>
using namespace luo;

int main() {
  constexpr kho::Layout kMine{"subtrees", 1};
  auto arena = kho::Arena::create({.name = "subtrees", .layout = kMine, .max_size = 1_MiB}).value();
  constexpr std::string_view text{"blob of cache"};
  {
    kho::Tx tx{arena};
    const auto root = kho::PreservedMemory::create(tx, arena).value();
    tx.set_root(0, root.addr());
    kho::Subtrees subtrees{kho::PreservedMemory::open(arena, root).value()};
    subtrees.add(tx, "cache", std::as_bytes(std::span{text})).value();
    if (!subtrees.memory().advance(tx)) return 1;
    tx.commit();
  }
  const Fd image = kho::seal(arena, "image").value();
  auto next = kho::populate(image, kMine, "next").value();
  const kho::Ref<kho::PreservedRoot> root{next.root(0).raw()};
  kho::Subtrees subtrees{kho::PreservedMemory::open(next, root).value()};
  kho::Tx tx{next};
  const auto found = subtrees.claim(tx, "cache", 1).value();
  const int again = subtrees.claim(tx, "cache", 1).error().code;
  std::printf("%.*s, %s\\n", static_cast<int>(found.size.raw()), next.get(kho::Ref<char>{found.blob.raw()}),
              again == EALREADY ? "EALREADY" : "?");
  tx.commit();
}
"""


def run(*command, **more):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          stdin=subprocess.DEVNULL, **more)
    if done.returncode != 0:
        raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}")
    return done.stdout


class Program:
    """An example at work: its output, line by line, what its supervisor says among it; and its killer."""

    def __init__(self, path):
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.lines = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.decode().rstrip("\n"))

    def send(self, *lines):
        os.write(self.process.stdin.fileno(), "".join(line + "\n" for line in lines).encode())

    def line(self):
        return self.lines.get(timeout=60)

    def life(self):
        """The process that does the work now, if there is one."""
        supervisor = self.process.pid
        return pathlib.Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()[:1]

    def kill_at_random(self, rng):
        before = []
        for _ in range(KILLS):
            time.sleep(rng.uniform(0, 0.01))
            while (now := self.life()) in ([], before):
                time.sleep(0.0005)
            os.kill(int(now[0]), signal.SIGKILL)
            before = now

    def end(self):
        """What it still said, after the end of its input."""
        self.process.stdin.close()
        self.reader.join(60)
        return [self.lines.get() for _ in range(self.lines.qsize())], self.process.wait(60)


class Kho(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="luo-kho-package-"))
        cls.addClassCleanup(shutil.rmtree, cls.work)
        cls.prefix = cls.work / "installed"
        run("cmake", "--install", BUILD, "--component", "kho", "--prefix", cls.prefix)
        config, = cls.prefix.glob("lib/**/libkho.pc")
        cls.env = dict(os.environ, PKG_CONFIG_PATH=str(config.parent), CMAKE_PREFIX_PATH=str(cls.prefix))
        # The README is followed here; the programs that it builds are what the other tests run.
        cls.home = cls.work / "home"
        cls.home.mkdir()
        (cls.home / "examples").symlink_to(SOURCE / "examples")
        cls.said = [cls.follow(step) for step in re.findall(r"^```console\n(.*?)^```", README.read_text(), re.S | re.M)]

    @classmethod
    def follow(cls, block):
        """A block of commands and what they say: pairs of what the README shows and what was said."""
        pairs = []
        for step in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, shown = step.partition("\n")
            pairs.append((command, shown, run("bash", "-c", command, cwd=cls.home, env=cls.env, timeout=300)))
        return pairs

    def setUp(self):
        seed = int(os.environ.get("LUO_TEST_SEED") or random.randrange(1 << 32))
        print(f"{self.id()}: LUO_TEST_SEED={seed}", file=sys.stderr)
        self.rng = random.Random(seed)

    def start(self, name):
        program = Program(self.home / name)
        for step in (program.process.stdout.close, program.process.wait, program.process.kill, program.process.stdin.close):
            self.addCleanup(step)
        killer = threading.Thread(target=program.kill_at_random, args=(random.Random(self.rng.random()),), daemon=True)
        return program, killer

    def test_only_libkho_is_installed(self):
        files = [str(path.relative_to(self.prefix)) for path in self.prefix.rglob("*") if path.is_file()]
        self.assertEqual([name for name in files if "kho" not in name and "cmake/luo/luo-config" not in name], [])

    def test_readme(self):
        pairs = [pair for block in self.said for pair in block]
        self.assertGreater(len(pairs), 3)
        for command, shown, said in pairs:
            self.assertEqual(said, shown, command)

    def test_cmake(self):
        warnings = "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror"
        for name, line, says in (("kho-counter", "", "1\n2\n"), ("kho-kv", "incr n", "n = 1\nn = 2\n")):
            build = self.work / f"build-{name}"
            run("cmake", "-S", SOURCE / "examples" / name, "-B", build, warnings, env=self.env)
            run("cmake", "--build", build, env=self.env)
            done = subprocess.run([build / name], input=f"{line}\nexec\n{line}\n", capture_output=True, text=True, timeout=60)
            self.assertEqual((done.stdout, done.stderr, done.returncode), (says, "", 0))

    def test_all_headers_and_named_subtrees(self):
        headers = sorted((self.prefix / "include/luo/kho").rglob("*.h"))
        self.assertGreater(len(headers), 5)
        source = self.work / "subtrees.cc"
        source.write_text("".join(f'#include "{path.relative_to(self.prefix / "include/luo/kho")}"\n' for path in headers)
                          + SUBTREES)
        run("bash", "-c", f"g++ -std=c++23 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror {source} "
            f"$(pkg-config --cflags --libs libkho) -o {self.work}/subtrees", env=self.env)
        self.assertEqual(run(self.work / "subtrees"), "blob of cache, EALREADY\n")

    def test_the_rest_is_missed_where_it_is_asked_for(self):
        (self.work / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.20)\nproject(x LANGUAGES CXX)\n"
                                                  "find_package(luo REQUIRED COMPONENTS ${wanted})\n")
        with self.assertRaisesRegex(AssertionError, "only libkho is installed"):
            run("cmake", "-S", self.work, "-B", self.work / "none", env=self.env)
        with self.assertRaisesRegex(AssertionError, "component plugin is not installed"):
            run("cmake", "-S", self.work, "-B", self.work / "none", "-Dwanted=plugin", env=self.env)
        run("cmake", "-S", self.work, "-B", self.work / "none", "-Dwanted=kho", env=self.env)

    def test_a_counter_that_is_killed_counts_exactly(self):
        counter, killer = self.start("kho-counter")
        killer.start()
        sent = said = last = kills = 0
        while killer.is_alive() or kills < KILLS:
            counter.send("")
            sent += 1
            if (line := counter.line()) == KILLED:
                kills += 1
                continue
            said += 1
            self.assertGreater(int(line), last)
            last = int(line)
        killer.join()
        rest, status = counter.end()
        for line in rest:
            said += 1
            self.assertGreater(int(line), last)
            last = int(line)
        self.assertEqual((status, kills), (0, KILLS))
        # A kill costs at most one line that was read but not counted, or one number that was counted but not said.
        self.assertTrue(said <= last <= sent <= said + kills, (said, last, sent))

    def settle(self, kv, kills):
        """Waits until all that was sent is done; gives the kills until then. What is asked for is no key, and so the
        answer names it."""
        while True:
            kills_then = kills
            self.asked = (getattr(self, "asked", 0) + 1) % 1000
            kv.send(f"get {self.asked:03}", "list   ")
            answer, pairs = False, []
            while kills == kills_then:
                line = kv.line()
                kills += line == KILLED
                if line.startswith(f"error: {self.asked:03}: No such"):
                    answer = True
                elif answer and line.endswith(" keys"):
                    self.assertEqual(len(pairs), int(line.split()[0]))
                    return dict(pairs), kills
                elif answer and line != KILLED:
                    pairs.append(tuple(line.split(" = ")))

    # Lines have a multiple of 8 bytes here, as the ring has: so a kill loses whole lines or none.

    def test_a_store_that_is_killed_keeps_what_it_acknowledged(self):
        kv, killer = self.start("kho-kv")
        killer.start()
        store, kills, steps = {}, 0, 0
        while killer.is_alive() or kills < KILLS:
            steps += 1
            after, key = dict(store), f"k{self.rng.randrange(8)}"
            kind = self.rng.choice(("set", "set", "del", "exec"))
            if kind == "exec":
                kv.send("exec   ")
                found, kills = self.settle(kv, kills)
                self.assertEqual(found, store)
                continue
            if kind == "del":
                kv.send(f"del {key} ")
                after.pop(key, None)
                answer = f"{key} is gone" if key in store else f"error: {key}: No such file or directory [ENOENT]"
            else:
                after[key] = f"{steps:08}" + "8 bytes." * self.rng.randrange(100)
                kv.send(f"set {key} {after[key]}")
                answer = f"{key} = {after[key]}"
            if (line := kv.line()) == KILLED:
                found, kills = self.settle(kv, kills + 1)
                self.assertIn(found, (store, after))
                store = found
            else:
                self.assertEqual(line, answer)
                store = after
        killer.join()
        found, kills = self.settle(kv, kills)
        self.assertEqual((found, kills), (store, KILLS))
        self.assertEqual(kv.end(), ([], 0))

    def test_a_store_that_is_killed_takes_each_line_once(self):
        kv, killer = self.start("kho-kv")
        kv.send("set nn 00000000")
        self.assertEqual(kv.line(), "nn = 00000000")
        killer.start()
        count = kills = 0
        while killer.is_alive() or kills < KILLS:
            batch = self.rng.randrange(1, 300)
            kv.send(*["incr nn"] * batch)
            # Answers are looked at by settle(): its own come after all of them.
            found, now = self.settle(kv, kills)
            value = int(found["nn"])
            if now == kills:
                self.assertEqual(value, count + batch)
            self.assertTrue(count <= value <= count + batch, (count, value, batch))
            count, kills = value, now
        killer.join()
        self.assertEqual(kills, KILLS)
        self.assertEqual(kv.end(), ([], 0))


if __name__ == "__main__":
    unittest.main()
