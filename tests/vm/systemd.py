#!/usr/bin/env python3
"""luod as a unit of systemd, the first process of a virtual machine, over a kexec by `systemctl kexec`: systemd.sh.

The systemd is this machine's (252 in Debian 12). Ends with "N passed, N failed"; exit status 0 if all passed.
"""
import pathlib
import tempfile

import guest
import harness

HERE, ROOT = harness.HERE, harness.ROOT
SYSTEMD = pathlib.Path("/lib/systemd")
# Of systemd's own units, those of a start and of `systemctl kexec`.
UNITS = ["basic.target", "sysinit.target", "local-fs.target", "swap.target", "sockets.target", "timers.target", "paths.target", "slices.target",
         "shutdown.target", "umount.target", "final.target", "kexec.target", "systemd-kexec.service"]
OURS = {
    "default.target": "[Unit]\nRequires=basic.target\nAfter=basic.target\nWants=luod.socket luod.service kept.service slow.service test.service\nAllowIsolate=yes\n",
    # Begins in the first kernel only, and ends with the shutdown as every service does.
    "kept.service": "[Unit]\nConditionKernelCommandLine=!luo.boot\nAfter=luod.service\n[Service]\nEnvironment=LUO_SOCKET=/run/luo/luod.sock\n"
                    "Type=oneshot\nRemainAfterExit=yes\nExecStart=/bin/luo-vm-service keep special 12 5000 --special\n"
                    "ExecStart=/bin/luo-vm-service keep many 300 4096\nExecStopPost=/bin/sh -c '/bin/pidof luo-vm-service >/share/stopped; echo stopped >>/share/stopped'\n",
    # Takes longer to end than the update is allowed, and does meanwhile what must not disturb luod.
    "slow.service": "[Unit]\nConditionKernelCommandLine=!luo.boot\nAfter=luod.service luod.socket\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
                    "ExecStart=/bin/true\nExecStop=/bin/sh /systemd.sh ends-slowly\nTimeoutStopSec=60\n",
    "test.service": "[Unit]\nAfter=luod.service kept.service\n[Service]\nExecStart=/bin/sh /systemd.sh\n",
}


def units(folder):
    """(path here, path there) of all units; luod's are those of dist/, with another path to luod."""
    where = "etc/systemd/system"
    for name in UNITS:
        yield SYSTEMD / "system" / name, f"{where}/{name}"
    texts = {**OURS, **{name: (ROOT / "dist" / name).read_text().replace("/usr/local/bin/", "/bin/") for name in ("luod.service", "luod.socket")},
             "luod.service.d/kernel.conf": (ROOT / "dist/luod-kernel.conf").read_text()}
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        yield path, f"{where}/{name}"
    (folder / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    yield folder / "machine-id", "etc/machine-id"
    # There is no journal: what services say goes to the console.
    (folder / "system.conf").write_text("[Manager]\nDefaultStandardOutput=tty\nDefaultTimeoutStopSec=20s\n")
    yield folder / "system.conf", "etc/systemd/system.conf"


def main():
    options = harness.arguments(__doc__, "luod, luoctl, luo-vm-service").parse_args()

    def test(verdicts):
        with tempfile.TemporaryDirectory(prefix="luo-vm-systemd-") as share, tempfile.TemporaryDirectory(prefix="luo-vm-units-") as folder:
            programs = [options.programs / name for name in ("luod", "luoctl", "luo-vm-service")]
            programs += [SYSTEMD / "systemd", SYSTEMD / "systemd-shutdown", pathlib.Path("/bin/systemctl")]
            for program in programs:
                if not program.exists():
                    raise harness.Missing(f"{program} is missing")
            files = [(HERE / "systemd.sh", "systemd.sh"), (HERE / "lib.sh", "lib.sh"), (HERE / "systemd.init", "systemd.init"), *units(pathlib.Path(folder))]
            done = guest.run(["true"], programs, files, timeout=400, share=share, with_kernel=True, memory="2G",
                             append="rdinit=/systemd.init systemd.log_target=console systemd.show_status=false")
            harness.tell(verdicts, done, (HERE / "systemd.sh").read_text(), 100)

    harness.main("systemd", test)


if __name__ == "__main__":
    main()
