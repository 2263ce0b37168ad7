#!/usr/bin/env python3
"""What `luoctl update kernel` says before a real kernel is left: its checks, what the kernel refuses to load, dry runs.

No kexec happens here (luod.py does that). Ends with "N passed, N failed"; exit status 0 if all passed.
"""
import argparse
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import guest  # noqa: E402
import harness  # noqa: E402

JSON_MARK = "== json"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=pathlib.Path, default=harness.ROOT / "build/release/bin", help="where luod and luoctl are")
    options = parser.parse_args()

    def test(verdicts):
        script = HERE / "update_kernel.sh"
        expected = len(re.findall(r"(?m)^does ", script.read_text()))
        programs = [options.programs / "luod", options.programs / "luoctl", harness.kexec()]
        done = guest.run(["sh", "/update_kernel.sh"], programs, [(script, "update_kernel.sh")], with_kernel=True,
                         append="kho_scratch=64M,64M,64M")
        lines, _, text = done.output.replace("\r\n", "\n").partition(JSON_MARK)
        for line in lines.splitlines():
            if match := re.match(r"(not )?ok - (.*)", line):
                verdicts.line(match[2], match[1] is None)
            else:
                print(line, flush=True)
        if verdicts.passed + verdicts.failed != expected or done.status != 0:
            verdicts.line(f"all {expected} were tried", False, f"{verdicts.passed + verdicts.failed} were, status {done.status}\n"
                          + harness.end_of(done.console))
        try:
            report = json.loads(text)
        except ValueError:
            report = {}
        verdicts.line("JSON of a dry run is one object with all parts", report.get("ok") is True and report["report"]["dry_run"]
                      and report["luod"]["medium"] == "kernel" and report["kernel"]["configuration"]["LIVEUPDATE"] == "yes"
                      and all(check["level"] == "ok" for check in report["checks"]), text)

    harness.main("update_kernel", test)


if __name__ == "__main__":
    main()
