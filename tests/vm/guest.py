"""Boots the virtual machine, runs one command in it, brings back what came of it. See README.md."""
import os
import pathlib
import subprocess
import tempfile
import time

import initramfs
import kernel as kernels

COMMAND_LINE = "console=ttyS0 panic=-1 quiet loglevel=4 random.trust_cpu=on kho=on liveupdate=on"
QEMU = "qemu-system-x86_64"


class VmError(Exception):
    """The machine did not come to the end of the command; `console` has what it said."""

    def __init__(self, text, console=""):
        super().__init__(text)
        self.console = console


class Finished:
    """What the command wrote to standard output, its exit status, what was on the console."""

    def __init__(self, status, output, console):
        self.status, self.output, self.console = status, output, console


def run(command, programs=(), files=(), memory="1G", cpus=1, timeout=120, append="", share=None, with_kernel=False, arguments=()):
    """Boots, runs `command` (a list of words) as root, and powers off. Finished, or VmError.

    `programs` become /bin/NAME, with their libraries; `files` are (path here, path there); `share` is a directory of
    this machine, at /share there; `with_kernel` puts the kernel and the initramfs (without these two) into /boot, for
    a kexec; `arguments` are for QEMU; `timeout` is in seconds, for all of it. The machine is killed when it is over.
    """
    image = kernels.kernel()
    with tempfile.TemporaryDirectory(prefix="luo-vm-") as name:
        work = pathlib.Path(name)
        packed = initramfs.pack(programs, files, command)
        if with_kernel:
            (work / "first").write_bytes(packed)
            packed = initramfs.pack(programs, [*files, (image, "boot/bzImage"), (work / "first", "boot/initrd")], command)
        (work / "initrd").write_bytes(packed)
        line = f"{COMMAND_LINE} {append}" + (" luo.share=1" if share else "")
        qemu = [QEMU, "-M", "q35", "-accel", os.environ.get("LUO_VM_ACCEL", "tcg"), "-cpu", "max", "-m", memory, "-smp", str(cpus),
                "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-kernel", image, "-initrd", work / "initrd", "-append", line,
                "-serial", f"file:{work}/console", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
                "-chardev", f"file,id=out,path={work}/out", "-device", "virtserialport,chardev=out,name=luo.out",
                "-chardev", f"file,id=status,path={work}/status", "-device", "virtserialport,chardev=status,name=luo.status"]
        if share:
            qemu += ["-virtfs", f"local,path={share},mount_tag=luo,security_model=none"]
        began = time.monotonic()
        with subprocess.Popen([*map(str, qemu), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as process:
            try:
                said, _ = process.communicate(timeout=timeout)
                late = False
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
                late = True
            except BaseException:
                process.kill()
                raise
        texts = {part: (work / part).read_text(errors="replace") if (work / part).exists() else "" for part in ("console", "out", "status")}
        console = said.decode(errors="replace") + texts["console"]
        if late:
            raise VmError(f"not over after {timeout} s: killed", console + texts["out"])
        if not texts["status"].strip().isdigit():
            raise VmError(f"it ended after {time.monotonic() - began:.1f} s without having run the command to its end", console + texts["out"])
        return Finished(int(texts["status"]), texts["out"], console)
