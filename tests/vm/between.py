#!/usr/bin/env python3
"""From one kernel to another, and back, with luod's files kept: tests/vm/between.py --other /path/bzImage.

The first kernel is the machine's own, or LUO_VM_KERNEL. Not a part of tests/vm/all: it takes a second kernel, which has
what kernel.config has, built in. Ends with "N passed, N failed"; exit status 0 if all passed.
"""
import pathlib

import harness


def main():
    parser = harness.arguments(__doc__, "luod, luoctl and luo-vm-service")
    parser.add_argument("--other", type=pathlib.Path, required=True, help="the other kernel's bzImage")
    options = parser.parse_args()
    programs = [options.programs / name for name in ("luod", "luoctl", "luo-vm-service")]
    files = [(options.other, "boot/other")]
    harness.main("between", lambda verdicts: harness.run_script(verdicts, "between", programs, files=files, memory="2G"))


if __name__ == "__main__":
    main()
