"""Packs an initramfs (cpio, "newc"): busybox, programs with the shared libraries that they need, files, a command."""
import os
import pathlib
import re
import stat
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
BUSYBOX = pathlib.Path("/bin/busybox")


class Archive:
    """Entries in the order in which they come; parents are made as needed."""

    def __init__(self):
        self.parts = []
        self.names = set()
        self.inode = 0

    def entry(self, name, mode, data=b"", device=(0, 0)):
        name = name.strip("/")
        if not name or name in self.names:
            return
        if "/" in name:
            self.entry(name.rsplit("/", 1)[0], stat.S_IFDIR | 0o755)
        self.names.add(name)
        self._append(name, mode, data, device)

    def _append(self, name, mode, data, device):
        self.inode += 1
        encoded = name.encode() + b"\0"
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self.parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]

    def file(self, name, data, mode=0o644):
        self.entry(name, stat.S_IFREG | mode, data)

    def link(self, name, target):
        self.entry(name, stat.S_IFLNK | 0o777, target.encode())

    def program(self, path, name=None):
        """A program as /bin/NAME, without its debug information, and its libraries in /lib (see LD_LIBRARY_PATH in init)."""
        path = pathlib.Path(path).resolve()
        self.file(f"bin/{name or path.name}", stripped(path), 0o755)
        for name_there, library in libraries(path):
            self.file(name_there, stripped(library), 0o755)

    def image(self):
        self._append("TRAILER!!!", 0, b"", (0, 0))
        return b"".join(self.parts)


def stripped(path):
    data = path.read_bytes()
    if not data.startswith(b"\x7fELF"):
        return data
    with tempfile.NamedTemporaryFile() as out:
        done = subprocess.run(["strip", "--strip-debug", "-o", out.name, str(path)], capture_output=True, check=False)
        return pathlib.Path(out.name).read_bytes() if done.returncode == 0 else data


def libraries(path):
    """(name there, path here) of all that a program needs; none of a static program or a script."""
    done = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return []
    missing = re.findall(r"(\S+) => not found", done.stdout)
    if missing:
        raise FileNotFoundError(f"{path} needs {', '.join(missing)}")
    found = [(f"lib/{name}", pathlib.Path(library)) for name, library in re.findall(r"(?m)^\s+(\S+) => (/\S+) \(0x", done.stdout)]
    loaders = re.findall(r"(?m)^\s+(/\S+) \(0x", done.stdout)  # at the place that the program names
    return found + [(loader, pathlib.Path(loader)) for loader in loaders]


def pack(programs, files, command):
    """`programs`: paths; `files`: (path here, path there); `command`: words, run by /init. Returns the image."""
    archive = Archive()
    archive.entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    for name in ("proc", "sys", "dev", "tmp", "run", "root", "mnt", "etc"):
        archive.entry(name, stat.S_IFDIR | 0o755)
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    for program in programs:
        archive.program(program)
    archive.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    for applet in subprocess.run([str(BUSYBOX), "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            archive.link(f"bin/{applet}", "busybox")
    archive.file("init", (HERE / "init").read_bytes(), 0o755)
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in command)
    archive.file("luo/command", f"#!/bin/sh\nexec {quoted}\n".encode(), 0o755)
    for here, there in files:
        mode = 0o755 if os.access(here, os.X_OK) else 0o644
        archive.file(there, pathlib.Path(here).read_bytes(), mode)
    return archive.image()
