"""The processes of a run: started in a directory of their own, and none of them left at the end.

Everything that is started here, and everything that those start, is a descendant of this process:
it asks the kernel to be the one to whom orphans go (a keeper's worker is one when the keeper is
killed), so that `Stage.close` can end all of them by pid, and nothing else.
"""
import ctypes
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import threading
import time

PR_SET_CHILD_SUBREAPER = 36


class StageError(Exception):
    """Something that a run needs did not work; the text says what."""


def monotonic_ns():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def descendants(pid):
    """All pids below `pid`, parents first."""
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            found.append(child)
            found.extend(descendants(child))
    return found


def resp_command(port, *words, timeout=30):
    """One command to a RESP server; the answer as text (bulk answers without their length)."""
    request = f"*{len(words)}\r\n" + "".join(f"${len(w)}\r\n{w}\r\n" for w in words)
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(request.encode())
        stream = connection.makefile("rb")
        first = stream.readline().decode().rstrip("\r\n")
        if first.startswith("$") and first != "$-1":
            return stream.read(int(first[1:])).decode(errors="replace")
        return first


def resp_info(port):
    """INFO as a dictionary."""
    lines = resp_command(port, "INFO").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


class Stage:
    """A run directory and the processes in it. Use as a context manager."""

    def __init__(self, directory, bin_directory):
        self.directory = pathlib.Path(directory)
        self.bin = pathlib.Path(bin_directory)
        self.popen = {}  # name → Popen, of those started last under that name
        self.luo_socket = str(self.directory / "luod.sock")
        if len(self.luo_socket) > 100:  # a socket's address has 108 bytes
            self.luo_socket = f"/tmp/luo-demo.{os.getpid()}/luod.sock"

    def __enter__(self):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if self.directory.exists():
            shutil.rmtree(self.directory)
        self.directory.mkdir(parents=True)
        pathlib.Path(self.luo_socket).parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_):
        self.close()

    def program(self, name):
        path = self.bin / name
        if path.exists():
            return str(path)
        found = shutil.which(name)
        if found is None:
            raise StageError(f"{name} is neither in {self.bin} nor in PATH")
        return found

    def environment(self):
        return dict(os.environ, LUO_SOCKET=self.luo_socket)

    def start(self, name, arguments, **options):
        """Starts a process in a session of its own (Ctrl-C is for us alone); its output goes to NAME.log."""
        command = [self.program(arguments[0]), *map(str, arguments[1:])]
        with open(self.directory / f"{name}.log", "ab") as log:
            options.setdefault("stdout", log)
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True,
                                       env=self.environment(), cwd=self.directory, **options)
        self.popen[name] = process
        return process

    def log_tail(self, name, lines=15):
        try:
            text = (self.directory / f"{name}.log").read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])

    def call(self, arguments, timeout=120):
        """Runs a command to its end; its standard output. StageError with its words if it fails."""
        command = [self.program(arguments[0]), *map(str, arguments[1:])]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
                                  env=self.environment(), cwd=self.directory, start_new_session=True)
        except subprocess.TimeoutExpired as late:
            raise StageError(f"{' '.join(map(str, arguments))}: no end after {timeout} s") from late
        self.reap()
        if done.returncode != 0:
            raise StageError(f"{' '.join(map(str, arguments))}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def wait_until(self, what, condition, timeout=60, every=0.005):
        """Polls `condition` until it gives something true; exceptions of the network count as not yet."""
        end = time.monotonic() + timeout
        while True:
            try:
                value = condition()
                if value:
                    return value
            except (OSError, StageError, ValueError, KeyError) as error:
                last = error
            else:
                last = None
            if time.monotonic() > end:
                raise StageError(f"waited {timeout} s for {what}" + (f": {last}" if last else ""))
            self.reap()
            time.sleep(every)

    def reap(self):
        """Collects orphans that have ended. Those of Popen are left to it."""
        own = {process.pid for process in self.popen.values()}
        for task in pathlib.Path("/proc/self/task").glob("*"):
            for pid in map(int, (task / "children").read_text().split()):
                if pid in own:
                    continue
                try:
                    with open(f"/proc/{pid}/stat", "rb") as stat:
                        name, rest = stat.read().split(b"(", 1)[1].rsplit(b")", 1)
                    if rest.split()[0] == b"Z" and name.startswith(b"luo"):  # others may be a thread's Popen
                        os.waitpid(pid, os.WNOHANG)
                except (OSError, ChildProcessError):
                    pass

    def close(self):
        """Ends every descendant and removes the directory. Signals that ask us to stop are ignored meanwhile."""
        before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            end = time.monotonic() + 20
            while (pids := descendants(os.getpid())) and time.monotonic() < end:
                # Stopped first: a keeper and its worker start each other anew.
                for sign in (signal.SIGSTOP, signal.SIGKILL):
                    for pid in pids:
                        try:
                            os.kill(pid, sign)
                        except ProcessLookupError:
                            pass
                for process in self.popen.values():
                    process.poll()
                while True:
                    try:
                        if os.waitpid(-1, os.WNOHANG)[0] == 0:
                            break
                    except ChildProcessError:
                        break
                time.sleep(0.005)
            shutil.rmtree(self.directory, ignore_errors=True)
            if not self.luo_socket.startswith(str(self.directory)):
                shutil.rmtree(pathlib.Path(self.luo_socket).parent, ignore_errors=True)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- luod and luo-cache ---------------------------------------------------------------------------

    def start_luod(self, name="luod"):
        self.start(name, ["luod", "--socket", self.luo_socket, "--state-dir", self.directory / "luod-state", "--medium", "exec"])
        self.wait_until("luod to serve", self.status)

    def status(self):
        return json.loads(self.call(["luoctl", "status", "--json"]))

    def cache_command(self, port, session="cache"):
        return ["luo-cache", "--supervise", "--port", str(port), "--session", session]

    def start_cache(self, port, session="cache"):
        self.start("luo-cache", self.cache_command(port, session))
        self.wait_until("luo-cache to answer", lambda: resp_command(port, "PING") == "+PONG")

    def update_luod(self):
        return self.call(["luoctl", "update", "luod", "--json"])

    def update_service(self, port, session="cache"):
        command = self.cache_command(port, session)
        return self.call(["luoctl", "update", "service", session, "--json", "--", self.program(command[0]), *command[1:]])

    # --- redis-server, restarted as its users do -------------------------------------------------------

    def start_redis(self, port):
        data = self.directory / "redis"
        data.mkdir(exist_ok=True)
        self.start("redis-server", ["redis-server", "--port", port, "--dir", data, "--save", "", "--daemonize", "no"])
        self.wait_until("redis-server to answer", lambda: resp_command(port, "PING") == "+PONG", timeout=300)

    def restart_redis(self, port):
        process = self.popen["redis-server"]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"SHUTDOWN SAVE\r\n")
            process.wait(timeout=600)
        self.start_redis(port)


class Client:
    """luo-verify or another client that says {"ready": true} and, after SIGTERM, what it found."""

    def __init__(self, stage, name, arguments):
        self.stage, self.name = stage, name
        self.process = stage.start(name, arguments, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if "ready" not in line:
            self.process.wait()
            raise StageError(f"{name} did not start: {line}{stage.log_tail(name)}")

    def alive(self):
        return self.process.poll() is None

    def finish(self, timeout=300):
        """All lines that it prints after SIGTERM, parsed; the last one is the sum."""
        if self.alive():
            self.process.terminate()
        try:
            output, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as late:
            raise StageError(f"{self.name}: no result {timeout} s after SIGTERM") from late
        if self.process.returncode != 0:
            raise StageError(f"{self.name}: exit status {self.process.returncode}\n{self.stage.log_tail(self.name)}")
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


class Benchmark:
    """redis-benchmark, over and over without a pause until stopped. Any error that it prints, or an end
    that is not a normal one, is a complaint."""

    def __init__(self, stage, name, port, connections, pipeline, requests):
        self.stage, self.name = stage, name
        self.command = [stage.program("redis-benchmark"), "-h", "127.0.0.1", "-p", str(port), "-c", str(connections),
                        "-P", str(pipeline), "-n", str(requests), "-r", "100000", "-d", "100", "-t", "set,get,incr",
                        "--csv"]
        self.requests, self.tests = requests, 3
        self.complaints, self.rates, self.completed = [], {}, 0
        self.stopping = threading.Event()
        self.process = None
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()

    def _loop(self):
        while not self.stopping.is_set():
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                            stderr=subprocess.STDOUT, text=True, start_new_session=True)
            self.stage.popen[self.name] = self.process
            output, _ = self.process.communicate()
            errors = [line for line in output.splitlines() if "rror" in line or line.startswith("-")]
            errors = [line for line in errors if "Could not fetch server CONFIG" not in line]
            self.complaints.extend(errors[:5])
            if self.stopping.is_set():
                return
            if self.process.returncode != 0:
                self.complaints.append(f"redis-benchmark ended with {self.process.returncode}: {output[-300:]}")
                return
            self.completed += self.requests * self.tests
            for line in output.splitlines():
                cells = [cell.strip('"') for cell in line.split(",")]
                if len(cells) > 1 and cells[0] != "test":
                    try:
                        self.rates.setdefault(cells[0], []).append(float(cells[1]))
                    except ValueError:
                        pass

    def finish(self):
        self.stopping.set()
        while self.thread.is_alive():
            if self.process is not None and self.process.poll() is None:
                self.process.terminate()
            self.thread.join(0.2)
        return self.complaints
