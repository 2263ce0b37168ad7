#!/usr/bin/env python3
"""The bare kernel, as the yardstick: its own selftests of LUO and our conformance suite, in a virtual machine, over kexecs.

Each line where the kernel differs from what tests/conformance expects of a kernel (and docs/differences.md says) fails.
Ends with "N passed, N failed"; exit status 0 if all passed.
"""
import argparse
import pathlib
import re
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "peers")]
import guest  # noqa: E402
import kernel as kernels  # noqa: E402
import selftests  # noqa: E402

EXPECTED = 9


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "build/release/bin", help="where luo-conformance is")
    options = parser.parse_args()
    kexec = shutil.which("kexec", path="/sbin:/usr/sbin:/usr/bin")
    if kexec is None:
        sys.exit("bare: kexec is missing; scripts/install-vm-deps installs it")
    try:
        with tempfile.TemporaryDirectory(prefix="luo-bare-") as folder:
            out = pathlib.Path(folder) / "selftests"
            selftests.build(selftests.source(), "static", out)
            share = pathlib.Path(folder) / "share"
            share.mkdir()
            programs = [options.programs / "luo-conformance", pathlib.Path(kexec), out / selftests.HARNESS,
                        *(out / name for name in selftests.STAGED)]
            done = guest.run(["sh", "/bare.sh"], programs, [(HERE / "bare.sh", "bare.sh")], timeout=600,
                             append="kho=on liveupdate=on", share=str(share), with_kernel=True)
    except (kernels.KernelError, OSError) as error:
        sys.exit(f"bare: {error}")
    except guest.VmError as error:
        print("\n".join(error.console.splitlines()[-60:]), file=sys.stderr)
        sys.exit(f"bare: {error}")
    print(done.output.replace("\r\n", "\n"), end="")
    passed = len(re.findall(r"(?m)^ok - ", done.output))
    failed = len(re.findall(r"(?m)^not ok - ", done.output))
    if done.status != 0 or passed + failed != EXPECTED:
        print(f"# ended with {done.status} after {passed + failed} of {EXPECTED}", file=sys.stderr)
        print("\n".join(done.console.splitlines()[-40:]), file=sys.stderr)
        failed += EXPECTED - passed - failed
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or done.status != 0 else 0


if __name__ == "__main__":
    sys.exit(main())
