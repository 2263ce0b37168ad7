#!/usr/bin/env python3
"""luod with the kernel medium in a virtual machine, over three real kexecs by `luoctl update kernel`: luod.sh.

Ends with "N passed, N failed"; exit status 0 if all passed.
"""
import harness


def main():
    options = harness.arguments(__doc__, "luod, luoctl, luo-vm-service and luo-vm-ledger.so").parse_args()
    programs = [options.programs / name for name in ("luod", "luoctl", "luo-vm-service")] + [harness.program("prlimit")]
    files = [(options.programs / "luo-vm-ledger.so", "ledger.so")]
    harness.main("luod", lambda verdicts: harness.run_script(verdicts, "luod", programs, files=files))


if __name__ == "__main__":
    main()
