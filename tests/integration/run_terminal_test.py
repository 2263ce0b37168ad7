#!/usr/bin/env python3
"""luoctl run leaves the terminal to its command: Ctrl-C arrives once, Ctrl-Z and fg work. PROGRAMS is where luoctl is."""
import os
import pathlib
import pty
import select
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAMS = pathlib.Path(sys.argv.pop(1))


class Terminal:
    def __init__(self, *command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvp(command[0], command)
        self.said = b""

    def wait_for(self, text):
        end = time.monotonic() + 30
        while text not in self.said and time.monotonic() < end:
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    self.said += os.read(self.fd, 4096)
                except OSError:  # nobody has it open any more
                    break
        if text not in self.said:
            raise AssertionError(f"{text} did not come, but {self.said}")

    def type(self, text):
        os.write(self.fd, text)

    def end(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class RunTerminal(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory(prefix="luo-terminal-")
        self.luoctl = [str(PROGRAMS / "luoctl"), f"--private={self.directory.name}/d"]

    def tearDown(self):
        subprocess.run([*self.luoctl, "stop"], stdin=subprocess.DEVNULL, capture_output=True, check=True)
        self.directory.cleanup()

    def test_ctrl_c_arrives_once(self):
        script = "trap 'echo interrupted; exit 9' INT; echo ready; while :; do read line; done"
        terminal = Terminal(*self.luoctl, "run", "--", "sh", "-c", script)
        terminal.wait_for(b"ready")
        terminal.type(b"\x03")
        terminal.wait_for(b"interrupted")
        self.assertEqual(terminal.end(), 9)
        self.assertEqual(terminal.said.count(b"interrupted"), 1)

    def test_job_control(self):
        shell = Terminal("env", "PS1=prompt> ", "bash", "--norc", "-i")
        # What is typed does not contain the words that are waited for.
        shell.type(" ".join([*self.luoctl, "run", "--", "sh", "-c", "'echo rea\"\"dy; exec cat'"]).encode() + b"\n")
        shell.wait_for(b"ready")
        shell.said = b""
        shell.type(b"\x1a")
        shell.wait_for(b"Stopped")
        shell.wait_for(b"prompt> ")
        shell.said = b""
        shell.type(b"fg; echo sta''tus $?\n")
        shell.wait_for(b"exec cat'")  # what fg goes on with
        shell.type(b"again\n")
        shell.wait_for(b"again\r\nagain\r\n")  # the terminal's, and cat's
        shell.type(b"\x04")
        shell.wait_for(b"status 0")
        shell.type(b"exit\n")
        shell.end()


if __name__ == "__main__":
    unittest.main(verbosity=2)
