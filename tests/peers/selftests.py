#!/usr/bin/env python3
"""The kernel's own selftests of LUO, unmodified, under `luoctl run`: each built dynamic, static and with nolibc.

Gets the source by apt (see tests/vm/kernel.py), builds tools/testing/selftests/liveupdate in a cache outside of the
project, and runs the 15 tests of the harness and the 4 that go over an update. Ends with "N passed, N failed";
exit status 0 if all passed.
"""
import argparse
import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "vm"))
import kernel  # noqa: E402  (the same source as the virtual machine's kernel)

HARNESS = "liveupdate"
HARNESS_TESTS = 15
STAGED = ("luo_kexec_simple", "luo_multi_session", "luo_stress_sessions", "luo_stress_files")
# Of the source, what these programs are made of.
PARTS = ("tools/testing/selftests/liveupdate", "tools/testing/selftests/kselftest.h",
         "tools/testing/selftests/kselftest_harness.h", "tools/include/nolibc", "include/uapi/linux/liveupdate.h")


def cache_directory():
    return kernel.cache_directory().parent / "peers"


def unpack(cache):
    """The directory with PARTS of the newest source."""
    work = cache / f"get-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        kernel.say(f"getting {kernel.PACKAGE} from {kernel.SUITE}")
        package, version = kernel.fetch(work)
        log = work / "unpack.log"
        kernel.run(["dpkg-deb", "-x", str(package), str(work / "package")], log)
        archive = next((work / "package/usr/src").glob("linux-source-*.tar.*"))
        top = archive.name.split(".tar")[0]
        kernel.run(["tar", "-xf", str(archive), "-C", str(work), *(f"{top}/{part}" for part in PARTS)], log)
        done = cache / f"linux-{version.replace('~', '-')}"
        shutil.rmtree(done, ignore_errors=True)
        (work / top).rename(done)
        return done
    finally:
        shutil.rmtree(work, ignore_errors=True)


def source():
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = sorted(cache.glob("linux-*"), key=lambda path: path.stat().st_mtime)
        return known[-1] if known else unpack(cache)


def build(tree, way, out):
    tests = tree / "tools/testing/selftests"
    headers = out / "headers/linux"
    headers.mkdir(parents=True, exist_ok=True)
    shutil.copy(tree / "include/uapi/linux/liveupdate.h", headers)
    flags = {"dynamic": [], "static": ["-static"],
             "nolibc": ["-nostdlib", "-static", "-include", str(tree / "tools/include/nolibc/nolibc.h"),
                        "-I", str(tree / "tools/include/nolibc")]}[way]
    for name in (HARNESS, *STAGED):
        command = [os.environ.get("CC", "cc"), "-O2", "-w", "-D_GNU_SOURCE", *flags, "-isystem", str(out / "headers"),
                   "-I", str(tests / "liveupdate/lib/include"), str(tests / f"liveupdate/{name}.c"),
                   *map(str, sorted((tests / "liveupdate/lib").glob("*.c"))), "-o", str(out / name)]
        if way == "nolibc":
            command.append("-lgcc")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise kernel.KernelError(f"{name} ({way}) does not compile:\n{done.stderr[-2000:]}")


class Run:
    def __init__(self, luoctl, folder):
        self.luoctl, self.folder = luoctl, folder
        self.passed = self.failed = 0

    def call(self, *words):
        return subprocess.run([str(self.luoctl), f"--private={self.folder}", *map(str, words)], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300)

    def count(self, what, good, output):
        self.passed += good
        self.failed += not good
        print(f"{'ok' if good else 'not ok'} - {what}", flush=True)
        if not good:
            print("\n".join("#   " + line for line in output.splitlines()[-30:]), flush=True)

    def harness(self, way, program):
        done = self.call("run", "--", program)
        results = re.findall(r"(?m)^(ok|not ok) \d+ (\S+)(.*)$", done.stdout)
        for verdict, name, rest in results:
            self.count(f"{way}: {name}", verdict == "ok" and "SKIP" not in rest, done.stdout)
        self.count(f"{way}: {HARNESS} as a whole, {HARNESS_TESTS} tests",
                   done.returncode == 0 and len(results) == HARNESS_TESTS, done.stdout)

    def staged(self, way, program):
        steps = [self.call("run", "--", program, "-s", "1"), self.call("update", "simulated"),
                 self.call("run", "--", program, "-s", "2")]
        self.count(f"{way}: {program.name}, two stages",
                   all(step.returncode == 0 for step in steps) and "TEST PASSED" in steps[-1].stdout,
                   "\n".join(step.stdout for step in steps))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=pathlib.Path, default=HERE.parent.parent / "build/release/bin",
                        help="where luod and luoctl are (default: build/release/bin)")
    options = parser.parse_args()
    luoctl = options.programs / "luoctl"
    if not luoctl.exists():
        sys.exit(f"selftests: {luoctl} is not there; make build, or --programs DIR")
    passed = failed = 0
    try:
        tree = source()
        with tempfile.TemporaryDirectory(prefix="luo-peers-") as folder:
            for way in ("dynamic", "static", "nolibc"):
                out = pathlib.Path(folder) / way
                build(tree, way, out)
                run = Run(luoctl, out / "d")
                try:
                    run.harness(way, out / HARNESS)
                    for name in STAGED:
                        run.staged(way, out / name)
                finally:
                    run.call("stop")
                passed, failed = passed + run.passed, failed + run.failed
    except kernel.KernelError as error:
        sys.exit(f"selftests: {error}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
