"""The place where a scenario works: processes, choices, counts and what was lost."""

from __future__ import annotations

import contextlib
import functools
import random
import shutil
import socket
import tempfile
import threading
import time
import traceback
import unittest
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import Running, Target, address_of, in_parallel

LONG_ONLY = -1.0  # for `short_s`: no part of the short form
SERVICES = ("server2.py", "load_balancer.py")
KILLED = -9  # by us, with SIGKILL
Preparation = Callable[[], None]  # runs in a started process before Python does


class Lab:
    """One run of one scenario; closes all that was started through it.

    `_lock` guards `counts` and `losses`; scenarios have threads.
    """

    def __init__(self, seed: int, seconds: float, long: bool = False) -> None:
        """Choices come from `seed`; the scenario's load lasts about `seconds`."""
        self.seed = seed
        self.seconds = seconds
        self.long = long  # the sizes of the long form
        self.random = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="lab-faults-"))
        self.counts: Counter[str] = Counter()
        self.losses: list[str] = []  # what was lost or broken, in words
        self.notes: list[str] = []  # measured, not judged
        self._lock = threading.Lock()
        self._started: list[Running] = []
        self._cleanups: list[Callable[[], Any]] = []
        self._deadline = time.monotonic() + seconds

    @property
    def log(self) -> Path:
        """Return the path of the servers' log."""
        return self.folder / "server_log.txt"

    def begin(self) -> None:
        """Start the clock of `seconds`: when all is up and the load begins."""
        self._deadline = time.monotonic() + self.seconds

    def left(self) -> float:
        """Return the seconds that are left for the load, 0 when it is over."""
        return max(0.0, self._deadline - time.monotonic())

    def chooser(self) -> random.Random:
        """Return a source of choices for one thread, itself chosen by the seed."""
        return random.Random(self.random.getrandbits(64))

    # What happened --------------------------------------------------------------------

    def count(self, what: str, number: int = 1) -> None:
        """Add to a figure of the report."""
        with self._lock:
            self.counts[what] += number

    def lost(self, text: str) -> None:
        """Report that something was lost or broken."""
        with self._lock:
            self.losses.append(text)

    def note(self, text: str) -> None:
        """Report something that was measured."""
        self.notes.append(text)

    def expect(self, true: object, text: str) -> None:
        """Report `text` as broken unless `true`."""
        if not true:
            self.lost(text)

    # Processes ------------------------------------------------------------------------

    def spawn(
        self,
        script: str,
        *args: object,
        env: Mapping[str, str] | None = None,
        preexec_fn: Preparation | None = None,
    ) -> Running:
        """Start a script in the lab's folder; it ends with the lab."""
        running = Running(
            script, *args, cwd=self.folder, env=env, preexec_fn=preexec_fn
        )
        with self._lock:
            self._started.append(running)
        return running

    def start(self, script: str, *args: object, **how: Any) -> Running:
        """Start a script and wait until it says where it listens."""
        running = self.spawn(script, *args, **how)
        running.listening()
        return running

    def servers(self, count: int, *args: object, **how: Any) -> list[Running]:
        """Start servers on ports to which they can return; they share one log."""
        ports = [steady_port() for _ in range(count)]
        started = [
            self.spawn("server2.py", port, "--quiet", *args, **how) for port in ports
        ]
        for server in started:
            server.listening()
        return started

    def balancer(self, servers: Sequence[Target], *args: object, **how: Any) -> Running:
        """Start a balancer on a free port before these servers."""
        where = how.pop("listen", "127.0.0.1:0")
        options = [f"--server={address_of(server)}" for server in servers]
        return self.start(
            "load_balancer.py", f"--listen={where}", *options, *args, **how
        )

    def running(self, script: str) -> list[Running]:
        """Return the live processes of a script."""
        with self._lock:
            started = list(self._started)
        return [r for r in started if r.script == script and r.returncode is None]

    def release(self, running: Running) -> None:
        """End a process now, and report what `Running.finish` finds wrong."""
        with self._lock:
            if running in self._started:
                self._started.remove(running)
        try:
            running.finish()
        except AssertionError as error:
            self.lost(shortened(str(error)))
        code = running.returncode
        if running.script in SERVICES and code not in (0, KILLED):
            self.lost(f"{running.script} ended with {code}: {running.stderr_text()}")

    def at_end(self, cleanup: Callable[[], Any]) -> None:
        """Call `cleanup` when the lab closes, the last one first."""
        self._cleanups.append(cleanup)

    def close(self) -> None:
        """End all processes, then undo the rest, and remove the folder."""
        started = list(self._started)
        in_parallel(*(functools.partial(self.release, r) for r in started))
        for cleanup in reversed(self._cleanups):
            try:
                cleanup()
            except Exception as error:
                self.lost(f"could not clean up: {error!r}")
        shutil.rmtree(self.folder, ignore_errors=True)


def shortened(text: str, most: int = 1400) -> str:
    """Return a text, or its beginning and its end."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} […] {text[-half:]}"


def steady_port() -> int:
    """Return a free port that the kernel gives to no client, for servers that return.

    Below Linux' ip_local_port_range; another process may still be faster.
    """
    choices = random.SystemRandom()  # not the seed: two runs at once may have the same
    for _ in range(100):
        port = choices.randrange(12_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no free port was found")


# ---- Scenarios -------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """A function, and what the command line knows it by."""

    name: str
    group: int  # the number of its part, see the package's docstring
    does: Callable[[Lab], None]
    share: float  # of the long form's time, relative to the others
    short_s: float  # seconds of load in the short form, or LONG_ONLY

    @property
    def says(self) -> str:
        """Return the first line of the docstring."""
        return (self.does.__doc__ or "").partition("\n")[0]


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    group: int, share: float = 1.0, short_s: float = 0.5
) -> Callable[[Callable[[Lab], None]], Callable[[Lab], None]]:
    """Enter a function into the list of scenarios, under its name with hyphens."""

    def enter(function: Callable[[Lab], None]) -> Callable[[Lab], None]:
        name = function.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(name, group, function, share, short_s)
        return function

    return enter


@dataclass
class Result:
    """How a scenario went."""

    name: str
    took_s: float
    counts: Counter[str]
    losses: list[str]
    notes: list[str]
    skipped: str = ""


def run_scenario(
    which: Scenario, seed: int, seconds: float, long: bool = False
) -> Result:
    """Run a scenario in a lab of its own; an exception in it counts as a loss."""
    began = time.monotonic()
    lab = Lab(seed, seconds, long)
    skipped = ""
    try:
        which.does(lab)
    except unittest.SkipTest as reason:
        skipped = str(reason)
    except Exception:
        lab.lost(traceback.format_exc())
    finally:
        lab.close()
    took_s = time.monotonic() - began
    return Result(which.name, took_s, lab.counts, lab.losses, lab.notes, skipped)
