#!/usr/bin/env python3
"""luod with the kernel medium in a virtual machine, over three real kexecs by `luoctl update kernel`: luod.sh.

Ends with "N passed, N failed"; exit status 0 if all passed.
"""
import argparse
import pathlib
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
import guest  # noqa: E402
import harness  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "build/release/bin", help="where luod, luoctl, luo-vm-service are")
    options = parser.parse_args()

    def test(verdicts):
        with tempfile.TemporaryDirectory(prefix="luo-vm-luod-") as share:
            programs = [options.programs / name for name in ("luod", "luoctl", "luo-vm-service")] + [harness.program("kexec"), harness.program("prlimit")]
            script = (HERE / "luod.sh").read_text()
            done = guest.run(["sh", "/luod.sh"], programs, [(HERE / "luod.sh", "luod.sh"), (HERE / "lib.sh", "lib.sh"), (options.programs / "luo-vm-ledger.so", "ledger.so")], timeout=300, share=share, with_kernel=True)
            harness.tell(verdicts, done, script)

    harness.main("luod", test)


if __name__ == "__main__":
    main()
