"""How often the verdict is right: runs that are spoilt on purpose, and honest ones."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.machine import Stage, family_of, loopback
from tests.bench.subjects import SERVER, start_script
from tests.bench.truth import crooked
from tests.bench.truth.system import (
    FIRST_SERVER,
    Figure,
    Json,
    Options,
    System,
    cores,
    say,
)

RUN_S = 2.0
RUNS = 2
CLOSED = 9  # a port of our /24 where nobody listens
QUOTA_PERIOD_US = 100_000
GROUP_EMPTY_S = 10.0
GROUP_ROOT = Path("/sys/fs/cgroup")
Process = subprocess.Popen[bytes]
Meanwhile = Callable[[Process], None]


class CannotError(Exception):
    """This machine or user cannot make a situation; says why."""


@dataclass(frozen=True, slots=True)
class Situation:
    """A way to make a run, and what its verdict has to be.

    `reason` is a pattern, one of the reasons has to match; "" where the run is honest
    and VALID is right.
    """

    what: str  # the line of the table
    name: str
    run: Callable[[System, float], Json]
    reason: str = ""


def judged(options: Options) -> Iterator[Figure]:
    """Make each situation some times; yield how often its verdict was right."""
    runs, seconds = options.runs_or(RUNS), options.seconds_or(RUN_S)
    situations = SITUATIONS[:1] + SITUATIONS[-1:] if options.short else SITUATIONS
    for situation in situations:
        say(f"verdict: {situation.name}")
        try:
            found = [once(situation, options, seconds) for _ in range(runs)]
        except CannotError as error:
            say(f"verdict: {situation.name}: left out: {error}")
            continue
        rights = sum(is_right(situation, report) for report in found)
        if wrong := [r for r in found if not is_right(situation, r)]:
            said = f"{wrong[0]['verdict']} {wrong[0]['reasons']}"
            say(f"verdict: {situation.name}: it said {said}")
        count = len(found)
        yield Figure(situation.what, rights, count, "≥ 100 %", situation.name)


def is_right(situation: Situation, report: Json) -> bool:
    """Tell whether a run's verdict is what it has to be."""
    if not situation.reason:
        return bool(report["verdict"] == "valid")
    said = any(re.search(situation.reason, text) for text in report["reasons"])
    return said and report["verdict"] == "doubtful"


def once(situation: Situation, options: Options, seconds: float) -> Json:
    """Make one run in a system of its own."""
    with Stage() as stage:
        return situation.run(System(stage, options), seconds)


# ---- A client that stands still --------------------------------------------------


def closed_loop(
    system: System, seconds: float, meanwhile: Meanwhile | None = None
) -> Json:
    """Run nine clients in a closed loop, all figures as they come."""
    target = system.behind_balancer([""] * 3)
    words = ("9", "--duration", str(seconds))
    return system.measure(target.address, *words, seconds=seconds, meanwhile=meanwhile)


def open_loop(
    system: System, seconds: float, meanwhile: Meanwhile | None = None
) -> Json:
    """Run 30 clients on a schedule that they can hold."""
    target = system.behind_balancer(["0.005"] * 3)
    words = ("30", "--rate", "200", "--duration", str(seconds))
    return system.measure(target.address, *words, seconds=seconds, meanwhile=meanwhile)


def stop_and_go(still_s: float, go_s: float, process: Process) -> None:
    """Stop a client and all its processes again and again, until it has ended."""
    time.sleep(0.5)  # it starts; standing still before the run costs the run nothing
    while process.poll() is None:
        send(process, signal.SIGSTOP)
        time.sleep(still_s)
        send(process, signal.SIGCONT)
        if process.poll() is None:
            time.sleep(go_s)


def send(process: Process, number: signal.Signals) -> None:
    """Send a signal to a process and all that descend from it."""
    for pid in family_of(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def stopped(
    loop: Callable[[System, float, Meanwhile | None], Json],
    still_s: float,
    go_s: float,
    system: System,
    seconds: float,
) -> Json:
    """Run a loop whose client stands still for so long, then goes on for so long."""
    return loop(system, seconds, partial(stop_and_go, still_s, go_s))


@contextlib.contextmanager
def quota(share: float) -> Iterator[Path]:
    """Make a control group that gets so much of one core (cgroups(7))."""
    period, name = QUOTA_PERIOD_US, f"lab-bench-{os.getpid()}"
    limits = {"cpu.max": f"{share * period:.0f} {period}"}
    folder = GROUP_ROOT / name
    if (GROUP_ROOT / "cpu" / "cpu.cfs_quota_us").exists():  # version 1
        folder = GROUP_ROOT / "cpu" / name
        limits = {
            "cpu.cfs_period_us": f"{period}",
            "cpu.cfs_quota_us": f"{share * period:.0f}",
        }
    try:
        folder.mkdir()
    except OSError as error:
        raise CannotError(f"no control group can be made: {error}") from None
    try:
        for file, text in limits.items():
            (folder / file).write_text(text)
    except OSError as error:
        folder.rmdir()
        raise CannotError(f"no quota can be set: {error}") from None
    try:
        yield folder
    finally:
        remove_group(folder)


def remove_group(folder: Path) -> None:
    """Remove a control group, as soon as its last process has gone."""
    deadline = time.monotonic() + GROUP_EMPTY_S
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def with_quota(system: System, seconds: float) -> Json:
    """Run the closed loop with a fifth of a core."""
    with quota(0.2) as folder:

        def join(process: Process) -> None:
            for pid in family_of(process.pid):
                (folder / "cgroup.procs").write_text(str(pid))

        return closed_loop(system, seconds, join)


# ---- A load that the clients cannot make -----------------------------------------


def too_few_clients(share: float, system: System, seconds: float) -> Json:
    """Run two clients on a schedule of which they can send about this share."""
    target = system.behind_balancer(["0.005"] * 3).address
    pilot = system.measure(target, "2", "--duration", str(seconds), seconds=seconds)
    rate = pilot["exchanges"]["per_s"] / share
    words = ("2", "--rate", f"{rate:.1f}", "--duration", str(2 * seconds))
    return system.measure(target, *words, seconds=2 * seconds)


# ---- A machine that has run out --------------------------------------------------

NAMES = itertools.count(1)


def ip(*words: str) -> None:
    """Have the ip command do something. Raises CannotError when it cannot."""
    try:
        done = subprocess.run(["ip", *words], capture_output=True, check=False)
    except FileNotFoundError:
        raise CannotError("needs ip (package iproute2)") from None
    if done.returncode:
        raise CannotError(f"needs root: {done.stderr.decode().strip()}")


def without_ports(system: System, seconds: float) -> Json:
    """Run 30 reconnecting clients in a network of their own with 100 source ports."""
    name = f"bench{os.getpid()}-{next(NAMES)}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        system.inside = ["ip", "netns", "exec", name]
        for setting in ("ip_local_port_range=40000 40099", "tcp_tw_reuse=0"):
            command = [*system.inside, "sysctl", "-qw", f"net.ipv4.{setting}"]
            subprocess.run(command, check=True)
        target = system.server()
        words = ("30", "--reconnect", "--duration", str(seconds))
        return system.measure(target.address, *words, seconds=seconds)
    finally:
        system.stage.end_all()
        ip("netns", "del", name)


# ---- A server that confirms wrongly, one that cannot be reached --------------------


def crooked_server(kind: str, system: System, seconds: float) -> Json:
    """Run one client against a server that sends a confirmation too many."""
    host = loopback(FIRST_SERVER)
    script = Path(crooked.__file__)
    target = start_script(system.stage, SERVER, script, [kind, host])
    words = ("1", "--messages", "50", "--message", "Hello")
    return system.measure(target.address, *words, seconds=seconds)


def direct_that_fails(system: System, seconds: float) -> Json:
    """Run with a --direct at which nobody listens."""
    target = system.behind_balancer([""] * 3)
    words = ("9", "--duration", str(seconds), "--direct", f"{loopback(CLOSED)}:9")
    return system.measure(target.address, *words, seconds=seconds)


def beside_busy(
    loop: Callable[[System, float], Json], number: int, system: System, seconds: float
) -> Json:
    """Run a loop beside busy processes, so many for each core."""
    with system.busy(number * cores()):
        return loop(system, seconds)


HONEST = "honest runs: VALID"
STILL = "the client stood still: DOUBTFUL, and why"
SPOILT = "runs that cannot be believed: DOUBTFUL, and why"
STOOD = r"stood still"
SITUATIONS = (
    Situation(HONEST, "9 clients", closed_loop),
    Situation(HONEST, "9 beside 2 busy", partial(beside_busy, closed_loop, 1)),
    Situation(HONEST, "9 beside 4 busy", partial(beside_busy, closed_loop, 2)),
    Situation(HONEST, "30 on a schedule", open_loop),
    Situation(HONEST, "30 beside 2 busy", partial(beside_busy, open_loop, 1)),
    Situation(STILL, "0.1 s of 0.3", partial(stopped, closed_loop, 0.1, 0.2), STOOD),
    Situation(STILL, "0.4 s of 0.8", partial(stopped, closed_loop, 0.4, 0.4), STOOD),
    Situation(
        STILL, "0.1 s of 0.3, --rate", partial(stopped, open_loop, 0.1, 0.2), STOOD
    ),
    Situation(STILL, "a fifth of a core", with_quota, STOOD),
    Situation(
        SPOILT, "2 busy clients, 67 % sent", partial(too_few_clients, 0.67), "busy"
    ),
    Situation(
        SPOILT, "2 busy clients, 97 % sent", partial(too_few_clients, 0.97), "busy"
    ),
    Situation(SPOILT, "no local ports", without_ports, "local ports"),
    Situation(
        SPOILT,
        "confirmed twice",
        partial(crooked_server, "twice"),
        r"left over|came before",
    ),
    Situation(
        SPOILT,
        "confirmed early",
        partial(crooked_server, "early"),
        r"left over|came before",  # both may be there when the client reads
    ),
    Situation(SPOILT, "--direct fails", direct_that_fails, "direct"),
)
