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
            programs = [options.programs / name for name in ("luod", "luoctl", "luo-vm-service", "luo-vm-kills", *suites)] + [harness.kexec()]
            expected = len(re.findall(r"(?m)^  does ", script))
            # The suites know luod by where it was built.
            done = guest.run(["sh", "/kills.sh", str(options.programs.resolve())], programs, [(HERE / "kills.sh", "kills.sh")], timeout=600,
                             memory="2G", share=share, with_kernel=True)
            output = done.output.replace("\r\n", "\n")
            for line in output.splitlines():
                if match := re.match(r"(not )?ok - (.*)", line):
                    verdicts.line(match[2], match[1] is None)
                else:
                    print(line, flush=True)
            if verdicts.passed + verdicts.failed != expected:
                verdicts.line(f"all {expected} were tried", False, f"{verdicts.passed + verdicts.failed} were, status {done.status}\n"
                              + harness.end_of(done.console))

    harness.main("kills", test)


if __name__ == "__main__":
    main()
