"""What the tests in the virtual machine share: C programs for it, verdicts in lines, and how a test ends."""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import guest
import kernel as kernels

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Missing(Exception):
    """What the test needs and this machine does not have, or a program that does not compile."""


def arguments(text, programs):
    """The parser of what every test is told. `text` is its own; `programs`: which ones are to be in --programs."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "build/release/bin", help=f"where {programs} are")
    return parser


def build(source, folder, name=None):
    """The static program of one C file of this folder."""
    out = pathlib.Path(folder) / (name or "luo-" + pathlib.Path(source).stem)
    done = subprocess.run([os.environ.get("CC", "cc"), "-std=gnu11", "-D_GNU_SOURCE", "-static", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Werror",
                           "-I", str(ROOT / "include"), "-I", str(HERE), str(HERE / source), "-o", str(out)],
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing(f"{source} does not compile:\n{done.stderr[-2000:]}")
    return out


def program(name):
    """A program of this machine, to be packed."""
    found = shutil.which(name, path="/sbin:/usr/sbin:/usr/bin")
    if found is None:
        raise Missing(f"{name} is missing; scripts/install-vm-deps installs it")
    return pathlib.Path(found)


def kexec():
    return program("kexec")


class Verdicts:
    """Prints "ok - what" or "not ok - what" and, at the end, "N passed, N failed"."""

    def __init__(self):
        self.passed = self.failed = 0

    def line(self, what, well, why=""):
        if well:
            self.passed += 1
        else:
            self.failed += 1
        print(("ok - " if well else "not ok - ") + what, flush=True)
        if not well and why:
            print("#   " + str(why).replace("\n", "\n#   "), flush=True)

    def equal(self, what, got, expected):
        self.line(what, got == expected, f"expected {expected!r}, got {got!r}")

    def status(self):
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        return 1 if self.failed or not self.passed else 0


def tell(verdicts, done, script, console_lines=40):
    """The verdicts that a script (lib.sh) printed in the machine; one more if it did not come to its end."""
    for line in done.output.replace("\r\n", "\n").splitlines():
        if match := re.match(r"(not )?ok - (.*)", line):
            verdicts.line(match[2], match[1] is None)
        else:
            print(line, flush=True)
    expected = len(re.findall(r"(?m)^ *does ", script))
    tried = verdicts.passed + verdicts.failed
    if tried != expected or done.status != 0:
        verdicts.line(f"all {expected} were tried", False, f"{tried} were, status {done.status}\n{end_of(done.console, console_lines)}")


def run_script(verdicts, name, programs, words=(), files=(), timeout=300, **machine):
    """Runs NAME.sh (lib.sh) with these words in the machine, over kexecs, and tells its verdicts. More for guest.run()."""
    script = HERE / f"{name}.sh"
    with tempfile.TemporaryDirectory(prefix=f"luo-vm-{name}-") as share:
        done = guest.run(["sh", f"/{name}.sh", *words], [*programs, kexec()], [(script, script.name), (HERE / "lib.sh", "lib.sh"), *files],
                         timeout=timeout, share=share, with_kernel=True, **machine)
    tell(verdicts, done, script.read_text())


def end_of(console, lines=40):
    return "\n".join(console.replace("\r", "").splitlines()[-lines:])


def main(name, test):
    """Runs `test(verdicts)` and ends the program: 0 all passed, 1 not, 2 it could not be run."""
    verdicts = Verdicts()
    try:
        test(verdicts)
    except (kernels.KernelError, Missing, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except guest.VmError as error:
        verdicts.line(f"{name}: the virtual machine", False, f"{error}; the end of the console:\n{end_of(error.console)}")
    sys.exit(verdicts.status())
