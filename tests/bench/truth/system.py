"""What is measured with: servers, a balancer, runs of client2.py, busy processes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.machine import RunError, Stage, loopback
from tests.bench.subjects import (
    BALANCER,
    CLIENT,
    SERVER,
    Address,
    Subject,
    address_in,
    first_line,
)

BUSY = "while True: pass"
RUN_SLACK_S = 60.0  # beyond a run's own length: the machine may be busy
FIRST_SERVER = 200  # 127.x.y.200 and up; the balancers before it, from 1
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """How often something was so, of how many tries.

    Figures of the same `what` make one line of the table, each with its `label`.
    """

    what: str
    hits: int
    tries: int
    target: str = ""  # "≥ 80 %", "≤ 3 %"
    label: str = ""
    note: str = ""  # shown behind the label

    @property
    def percent(self) -> float:
        """Return the share in percent."""
        return 100 * self.hits / max(1, self.tries)

    @property
    def is_missed(self) -> bool:
        """Tell whether the share is not what is to be reached."""
        if not self.target:
            return False
        sign, limit, _ = self.target.split()
        wanted = float(limit)
        return self.percent < wanted if sign == "≥" else self.percent > wanted


class System:
    """Owns the processes of a part: servers, a balancer, clients, busy ones.

    `inside` stands before each command (a network namespace).
    """

    def __init__(self, stage: Stage, options: Options) -> None:
        self.stage = stage
        self.inside: list[str] = []
        self.options = options
        self._numbers = iter(range(1, FIRST_SERVER))
        self._runs = 0

    def command(self, script: str) -> list[str]:
        """Return the command that starts one of the three scripts."""
        python = self.options.python or sys.executable
        return [*self.inside, python, str(self.options.scripts / script)]

    def server(self, *args: str) -> Subject:
        """Start a server2.py that logs to nowhere."""
        return self._start(SERVER, "0", "--log", os.devnull, "--quiet", *args)

    def balancer(self, servers: Sequence[Subject]) -> Subject:
        """Start a balancer, as it comes, before servers; it logs to nowhere."""
        words = ["--listen", f"{loopback(next(self._numbers))}:0", "--log", os.devnull]
        words += [f"--server={address(server.address)}" for server in servers]
        return self._start(BALANCER, *words)

    def _start(self, script: str, *words: str) -> Subject:
        """Start a script and wait until it listens."""
        command = [*self.command(script), *words]
        process = self.stage.start(command, subprocess.PIPE)
        return Subject(script, address_in(first_line(self.stage, process)), process)

    def behind_balancer(self, delays: Sequence[str]) -> Subject:
        """Start a server for each delay ("" for none) and a balancer before them."""
        servers = [self.server(*(["--delay", d] if d else [])) for d in delays]
        return self.balancer(servers)

    def measure(
        self,
        target: Address,
        *words: str,
        seconds: float,
        meanwhile: Callable[[subprocess.Popen[bytes]], None] | None = None,
    ) -> Json:
        """Run client2.py; return what --json says, and "terminal", what it printed.

        `meanwhile` is called while it runs, with the process. Raises RunError when no
        JSON was written, or it took much longer than `seconds`.
        """
        self._runs += 1
        report = self.stage.folder / f"run-{self._runs}.json"
        command = [*self.command(CLIENT), *words, "--target", address(target)]
        printed = report.with_suffix(".txt")
        with printed.open("wb") as output:
            process = self.stage.start([*command, "--json", str(report)], output)
        try:
            if meanwhile:
                meanwhile(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds + RUN_SLACK_S)
        finally:
            self.stage.stop(process)
        found = read_report(report, self.stage)
        return found | {"terminal": " ".join(printed.read_text().split())}

    @contextlib.contextmanager
    def busy(self, count: int) -> Iterator[None]:
        """Keep `count` processes busy for the length of the block."""
        command = [sys.executable, "-c", BUSY]
        started = [self.stage.start(command) for _ in range(count)]
        try:
            yield
        finally:
            for process in started:
                self.stage.stop(process)


@dataclass(slots=True)
class Options:
    """What the command line asked for; 0 where a part's own value is meant."""

    runs: int
    seconds: float
    seed: int
    full: bool
    short: bool
    scripts: Path
    python: str

    def runs_or(self, number: int) -> int:
        """Return the number of repetitions, or a part's own."""
        return self.runs or (1 if self.short else number)

    def seconds_or(self, seconds: float) -> float:
        """Return the length of a run, or a part's own."""
        return self.seconds or (min(1.0, seconds) if self.short else seconds)

    def chooser(self, part: str) -> random.Random:
        """Return a source of choices for a part, the same for the same seed."""
        return random.Random(f"{part} {self.seed}")


def address(target: Address) -> str:
    """Return "host:port"."""
    return f"{target[0]}:{target[1]}"


def read_report(path: Path, stage: Stage) -> Json:
    """Return what a run wrote. Raises RunError when there is nothing."""
    try:
        found: Json = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        message = f"{CLIENT} wrote no --json file: {stage.last_error()}"
        raise RunError(message) from None
    return found


def read_exchanges(path: Path) -> list[tuple[float, int]]:
    """Return (due in s, latency in ns) of what was confirmed, in order of time.

    Split by hand: there may be a million, and no field of the CSV has a comma.
    """
    with path.open() as file:
        names = file.readline().rstrip().split(",")
        due, latency = names.index("due_s"), names.index("latency_ns")
        confirmed = (line.split(",") for line in file if line.endswith(",confirmed\n"))
        return sorted((float(row[due]), int(row[latency])) for row in confirmed)


def cores() -> int:
    """Return the number of usable cores."""
    return len(os.sched_getaffinity(0))


def say(text: str) -> None:
    """Tell how far it has come, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
