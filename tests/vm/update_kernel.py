#!/usr/bin/env python3
"""What `luoctl update kernel` says before a real kernel is left: its checks, what the kernel refuses to load, dry runs.

No kexec happens here (luod.py does that). Ends with "N passed, N failed"; exit status 0 if all passed.
"""
import json
import pathlib
import tempfile
import zlib

import guest
import harness
import kernel as kernels

JSON_MARK = "== json"
GZIP = b"\x1f\x8b\x08"


def with_formats(image, was, becomes):
    """The kernel's image with another name of a format in it, as long as the one that was."""
    at = image.find(GZIP)
    while at >= 0:
        stream = zlib.decompressobj(31)
        try:
            unpacked = stream.decompress(image[at:])
        except zlib.error:
            unpacked = b""
        if stream.eof and was in unpacked:
            break
        at = image.find(GZIP, at + 1)
    else:
        raise guest.VmError(f"the kernel's image, unpacked, has no {was}")
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = pack.compress(unpacked.replace(was, becomes)) + pack.flush()
    room = len(image) - at - len(stream.unused_data)
    if len(packed) > room:
        raise guest.VmError(f"the image cannot be packed again: {len(packed)} bytes instead of {room}")
    return image[:at] + packed + image[at + len(packed):]


def main():
    options = harness.arguments(__doc__, "luod and luoctl").parse_args()

    def test(verdicts):
        script = harness.HERE / "update_kernel.sh"
        programs = [options.programs / "luod", options.programs / "luoctl", harness.kexec()]
        with tempfile.TemporaryDirectory(prefix="luo-update-kernel-") as work:
            other = pathlib.Path(work) / "other"
            other.write_bytes(with_formats(kernels.kernel().read_bytes(), b"\0luo-v5\0", b"\0luo-v6\0"))
            files = [(script, "update_kernel.sh"), (harness.HERE / "lib.sh", "lib.sh"), (other, "boot/other")]
            done = guest.run(["sh", "/update_kernel.sh"], programs, files, with_kernel=True, append="kho_scratch=64M,64M,64M")
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
