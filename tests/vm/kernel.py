"""The kernel of the virtual machine: Debian's source of it, made small, built once into a cache.

Nothing of it is committed, and the packages of this machine stay as they are: apt is pointed at a source list and
a state of its own, and only downloads (and checks the signature).
"""
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
CONFIG = HERE / "kernel.config"
SUITE = "trixie-backports"
PACKAGE = "linux-source-7.3"


class KernelError(Exception):
    """What could not be had or built, in a sentence."""


def cache_directory():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(base) / "luo" / "vm"


def say(text):
    print(f"vm: {text}", file=sys.stderr, flush=True)


def run(command, log, **more):
    with open(log, "ab") as output:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False, **more)
    if done.returncode != 0:
        last = pathlib.Path(log).read_text(errors="replace").splitlines()[-15:]
        raise KernelError(f"{' '.join(map(str, command[:3]))} ... failed ({done.returncode}); the end of {log}:\n  " + "\n  ".join(last))


# --- the source, by apt -------------------------------------------------------------------------------------

def configured_sources():
    """(uris, suites, other fields) of each source of packages that this machine has configured."""
    found = []
    files = [pathlib.Path("/etc/apt/sources.list"), *sorted(pathlib.Path("/etc/apt/sources.list.d").glob("*"))]
    for file in files:
        if not file.is_file():
            continue
        if file.suffix == ".sources":
            for stanza in re.split(r"\n\s*\n", file.read_text()):
                fields = dict(re.findall(r"(?m)^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t]+.*)*)", stanza))
                if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes") != "no":
                    found.append((fields.get("URIs", ""), fields.get("Suites", "").split(),
                                  {name: fields[name] for name in ("Signed-By", "Trusted") if name in fields}))
        elif file.suffix == ".list":
            for options, uri, suite in re.findall(r"(?m)^deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)", file.read_text()):
                signed = re.search(r"signed-by=(\S+)", options)
                found.append((uri, [suite], {"Signed-By": signed[1]} if signed else {}))
    return found


def source_stanza():
    """Where this machine gets its Debian from, with the suite that has the kernel."""
    release = dict(line.split("=", 1) for line in pathlib.Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    for uris, suites, more in configured_sources():
        if codename in suites:
            return "".join(f"{name}: {value}\n" for name, value in
                           {"Types": "deb", "URIs": uris, "Suites": SUITE, "Components": "main", **more}.items())
    raise KernelError(f"no source of packages for {codename or 'this system'} is configured: where should {PACKAGE} come from?")


def fetch(work):
    """(package file, version)"""
    for name in ("lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True, exist_ok=True)
    (work / "luo.sources").write_text(source_stanza())
    options = ["-o", f"Dir::Etc::SourceList={work}/luo.sources", "-o", "Dir::Etc::SourceParts=/dev/null",
               "-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}/cache", "-o", "APT::Sandbox::User=root"]
    log = work / "apt.log"
    run(["apt-get", *options, "update"], log)
    run(["apt-get", *options, "download", PACKAGE], log, cwd=work)
    packages = sorted(work.glob(f"{PACKAGE}_*.deb"))
    if not packages:
        raise KernelError(f"apt-get downloaded no {PACKAGE} from {SUITE}; see {log}")
    version = subprocess.run(["dpkg-deb", "-f", str(packages[-1]), "Version"], capture_output=True, text=True, check=True).stdout.strip()
    return packages[-1], version


# --- building -----------------------------------------------------------------------------------------------

def configure(source, log):
    run(["make", "-s", f"KCONFIG_ALLCONFIG={CONFIG}", "allnoconfig"], log, cwd=source)
    got = set((source / ".config").read_text().splitlines())
    lost = [line for line in CONFIG.read_text().splitlines() if line.startswith("CONFIG_") and line not in got]
    if lost:
        raise KernelError("the configuration did not take " + ", ".join(lost))


def build(cache, key):
    work = cache / f"build-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        say(f"getting {PACKAGE} from {SUITE}")
        package, version = fetch(work)
        say(f"building {PACKAGE} {version}: some minutes, once; log: {cache}/build.log")
        log = cache / "build.log"
        log.unlink(missing_ok=True)
        run(["dpkg-deb", "-x", str(package), str(work / "package")], log)
        package.unlink()
        archive = next((work / "package/usr/src").glob("linux-source-*.tar.*"))
        run(["tar", "-xf", str(archive), "-C", str(work)], log)
        source = next(path for path in work.glob("linux-source-*") if path.is_dir())
        configure(source, log)
        run(["nice", "make", "-s", f"-j{os.cpu_count()}", "bzImage"], log, cwd=source)
        done = cache / f"linux-{version.replace('~', '-')}-{key}"
        done.mkdir(exist_ok=True)
        shutil.copy(source / ".config", done / "config")
        shutil.copy(source / "System.map", done / "System.map")
        shutil.copy(source / "arch/x86/boot/bzImage", done / "bzImage.new")
        (done / "bzImage.new").rename(done / "bzImage")
        return done / "bzImage"
    finally:
        shutil.rmtree(work, ignore_errors=True)


def kernel(renew=False):
    """$LUO_VM_KERNEL; else the bzImage that belongs to kernel.config: from the cache, or built now. KernelError."""
    other = os.environ.get("LUO_VM_KERNEL")
    if other and not os.access(other, os.R_OK):
        raise KernelError(f"LUO_VM_KERNEL is {other}, which cannot be read")
    if other:
        return pathlib.Path(other)
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(CONFIG.read_bytes() + PACKAGE.encode()).hexdigest()[:12]
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = sorted(cache.glob(f"linux-*-{key}/bzImage"), key=lambda path: path.stat().st_mtime)
        return known[-1] if known and not renew else build(cache, key)
