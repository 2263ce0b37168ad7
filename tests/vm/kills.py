#!/usr/bin/env python3
"""luod's processes killed in the kernel medium, over real kexecs, in a virtual machine: kills.sh.

Ends with "N passed, N failed"; exit status 0 if all passed.
"""
import argparse
import pathlib
import re
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
import guest  # noqa: E402
import harness  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "build/release/bin", help="where luod and what tests it are")
    options = parser.parse_args()

    def test(verdicts):
        with tempfile.TemporaryDirectory(prefix="luo-vm-kills-") as share:
            script = (HERE / "kills.sh").read_text()
            suites = re.findall(r" suite (\S+)", script)
            programs = [options.programs / name for name in ("luod", "luoctl", "luo-vm-service", "luo-vm-kills", *suites)] + [harness.program("kexec"), harness.program("prlimit")]
            # The suites know luod by where it was built.
            done = guest.run(["sh", "/kills.sh", str(options.programs.resolve())], programs, [(HERE / "kills.sh", "kills.sh"), (HERE / "lib.sh", "lib.sh")], timeout=600,
                             memory="2G", share=share, with_kernel=True)
            harness.tell(verdicts, done, script)

    harness.main("kills", test)


if __name__ == "__main__":
    main()
