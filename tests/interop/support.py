"""Start other programs on free ports, with a configuration and a folder of their own.

    redis = self.program("redis-server", "--port", port, listens=port)

A program is waited for until it listens, and ended by its id when the test ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import unittest
from pathlib import Path

from tests.balancer import BalancerTestCase
from tests.support import DEADLINE_S, dial

# Where Debian keeps servers that are in nobody's search path.
EXTRA_FOLDERS = ("/usr/sbin", "/usr/local/sbin")


def find(program: str) -> str | None:
    """Return the full path of a program, None where it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *EXTRA_FOLDERS])
    return shutil.which(program, path=path)


def needs(*programs: str) -> None:
    """Skip the test or module, naming the first program that is not installed."""
    for program in programs:
        if not find(program):
            raise unittest.SkipTest(f"{program} is not installed")


class Program:
    """One program that runs until the test ends; its output is in a file."""

    def __init__(self, arguments: list[str], folder: Path, name: str) -> None:
        """Start it in `folder`, where `name`.out takes all that it says."""
        self.name = name
        self._out = folder / f"{name}.out"
        with self._out.open("wb") as out:
            self._process = subprocess.Popen(
                arguments,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def output(self) -> str:
        """Return what it said so far."""
        return self._out.read_text(errors="replace")

    def wait_until_it_listens(self, port: int) -> None:
        """Wait until a connection to the port succeeds."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(OSError):
                dial(f"127.0.0.1:{port}", 1).close()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} does not listen: {self.output()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)

    def wait(self, timeout: float = DEADLINE_S) -> int:
        """Return its exit code."""
        return self._process.wait(timeout)

    def stop(self) -> None:
        """End it: politely first."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


class ProgramTestCase(BalancerTestCase):
    """A test with other programs, which end when it ends."""

    def program(
        self, program: str, *arguments: object, listens: int = 0, name: str = ""
    ) -> Program:
        """Start a program; wait until it listens on the port `listens`, if given."""
        path = find(program)
        if not path:
            raise unittest.SkipTest(f"{program} is not installed")
        started = Program(
            [path, *(str(argument) for argument in arguments)],
            self.folder,
            name or f"{program}-{listens}",
        )
        self.addCleanup(started.stop)
        if listens:
            started.wait_until_it_listens(listens)
        return started

    def run_program(
        self, program: str, *arguments: object, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; fail for an exit code other than 0."""
        path = find(program)
        if not path:
            raise unittest.SkipTest(f"{program} is not installed")
        result = subprocess.run(
            [path, *(str(argument) for argument in arguments)],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        self.assertEqual(result.returncode, 0, result)
        return result
