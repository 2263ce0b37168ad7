#!/usr/bin/env python3
"""What `luoctl update kernel` says before a real kernel is left: its checks, what the kernel refuses to load, dry runs.

No kexec happens here (luod.py does that). Ends with "N passed, N failed"; exit status 0 if all passed.
"""
import json

import guest
import harness

JSON_MARK = "== json"


def main():
    options = harness.arguments(__doc__, "luod and luoctl").parse_args()

    def test(verdicts):
        script = harness.HERE / "update_kernel.sh"
        programs = [options.programs / "luod", options.programs / "luoctl", harness.kexec()]
        done = guest.run(["sh", "/update_kernel.sh"], programs, [(script, "update_kernel.sh"), (harness.HERE / "lib.sh", "lib.sh")], with_kernel=True,
                         append="kho_scratch=64M,64M,64M")
        done.output, _, text = done.output.partition(JSON_MARK)
        harness.tell(verdicts, done, script.read_text())
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
