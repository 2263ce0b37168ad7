#!/usr/bin/env python3
"""luod's processes killed in the kernel medium, over real kexecs, in a virtual machine: kills.sh.

Ends with "N passed, N failed"; exit status 0 if all passed.
"""
import re

import harness


def main():
    options = harness.arguments(__doc__, "luod and what tests it").parse_args()
    suites = re.findall(r" suite (\S+)", (harness.HERE / "kills.sh").read_text())
    programs = [options.programs / name for name in ("luod", "luoctl", "luo-vm-service", "luo-vm-kills", *suites)] + [harness.program("prlimit")]
    # The suites know luod by where it was built.
    words = [str(options.programs.resolve())]
    harness.main("kills", lambda verdicts: harness.run_script(verdicts, "kills", programs, words, timeout=600, memory="2G"))


if __name__ == "__main__":
    main()
