"""Part 3: the balancer's own processes die: its workers, its desk."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import threading
import unittest
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.balancer import Ending, endings
from tests.faults.lab import LONG_ONLY, Lab, scenario
from tests.faults.processes import (
    deaths,
    desks_of,
    has_ended,
    has_workers,
    kill_worker,
    status_address,
    workers_of,
)
from tests.faults.relayed import (
    IDLE_TIMEOUT_S,
    STUCK_S,
    Peers,
    Travellers,
    check_figures,
    check_held,
    check_trips,
    held,
)
from tests.support import (
    Running,
    dial,
    in_parallel,
    read_exactly,
    split_address,
    status_json,
    wait_until,
)

WORKERS = 4
NUMBER_BYTES = 10  # of a connection, as peer.py counts them
FIRST_NUMBER = 5_000_000_000  # beyond those of the travellers
STOPPED_S = 8.0  # longer than the balancer lets a process keep its lock

# In every process but the first (the parent): die at a line, by chance, of the code
# that is named. PYTHONPATH has it imported before the script is.
DYING = """
import os, random, re, signal, threading
first = os.getpid()
chance = float(os.environ["LAB_DIE_CHANCE"])
where = re.compile(os.environ["LAB_DIE_WHERE"])
dice = {}
def line(frame, event, arg):
    if event == "line":
        pid = os.getpid()
        if pid not in dice:
            dice[pid] = random.Random(f"{os.environ['LAB_SEED']} {pid}").random
        if dice[pid]() < chance:
            os.kill(pid, signal.SIGKILL)
    return line
def call(frame, event, arg):
    code = frame.f_code
    if (code.co_filename.endswith("load_balancer.py") and os.getpid() != first
            and where.match(code.co_qualname)
            and threading.current_thread().name.startswith("connection")):
        return line
    return None
threading.settrace(call)
"""


def needs_workers() -> None:
    """Skip where there are no processes to be killed."""
    if not hasattr(os, "fork") or not Path("/proc/self/comm").exists():
        raise unittest.SkipTest("needs processes, SIGKILL and /proc (Linux)")


# ---- Clients with a connection per message ---------------------------------------


class Knockers:
    """Threads that connect, exchange ten bytes, close, and begin anew.

    `_lock` guards `ends` and `clients`.
    """

    def __init__(self, lab: Lab, target: str, count: int) -> None:
        """Start `count` threads."""
        self.lab = lab
        self.ends: Counter[str] = Counter()
        self.clients: dict[str, str] = {}  # how it ended, by the client's address
        self._target = target
        self._lock = threading.Lock()
        self._numbers = itertools.count(FIRST_NUMBER)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._knock, name=f"knocker-{k}", daemon=True)
            for k in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every thread end after its connection."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * STUCK_S)
            self.lab.expect(not thread.is_alive(), f"{thread.name} is stuck")
        self.lab.count("connections", sum(self.ends.values()))
        self.lab.expect(not self.ends["stuck"], f"{self.ends['stuck']} stuck")

    def _knock(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                number = next(self._numbers)
            with socket.socket() as sock:
                # A host of its own: no two connections of a run have one address.
                high, middle, low = number >> 16, number >> 8 & 255, number & 255
                host = f"127.{2 + high % 50}.{middle}.{low}"
                sock.bind((host, 0))
                client = "{}:{}".format(*sock.getsockname())
                end = self._exchange(sock, b"%010d" % number)
            with self._lock:
                self.ends[end] += 1
                self.clients[client] = end

    def _exchange(self, sock: socket.socket, data: bytes) -> str:
        """Return "whole", "cut" (reset or an early end), "refused" or "stuck"."""
        sock.settimeout(STUCK_S)
        try:
            sock.connect(split_address(self._target))
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return "cut"
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            reply = read_exactly(sock, NUMBER_BYTES)
            return "whole" if reply == data and not sock.recv(1) else "cut"
        except TimeoutError:
            return "stuck"
        except (OSError, AssertionError, EOFError):
            return "cut"


def check_knocks(lab: Lab, knockers: Knockers, lines: list[Ending]) -> None:
    """Expect one line for each connection, and a reason for each one that was cut."""
    by_client = Counter(line.client for line in lines)
    codes = {line.client: line for line in lines}
    for client, end in knockers.clients.items():
        if end == "refused":
            lab.lost(f"{client}: the port was closed")
        elif by_client[client] > 1:
            lab.lost(f"{client}: {by_client[client]} lines in the log")
        elif end == "whole" and not by_client[client]:
            lab.lost(f"{client}: served, and not in the log")
        elif end == "cut" and not by_client[client]:
            lab.count("cut and not in the log")
        elif end == "cut" and codes[client].code not in ("ID", "KD"):
            lab.lost(f"{client}: cut, and logged as {codes[client].line}")


# ---- Killed workers --------------------------------------------------------------


def among_deaths(
    lab: Lab,
    die: Callable[[Running, random.Random], object],
    options: tuple[object, ...] = (),
    most: int = 0,
    **how: Any,
) -> Running:
    """Load a balancer while its workers die: every count agrees, and is zero, after."""
    needs_workers()
    peers = Peers(lab)
    balancer = lab.balancer(
        [f"{peer.address},max={most}" for peer in peers.live],
        "--workers", WORKERS, "--status", "127.0.0.1:0", "--queue-timeout", 20,
        "--idle-timeout", IDLE_TIMEOUT_S, "--check-interval", 0.3, *options, **how,
    )  # fmt: skip
    everyone = partial(has_workers, balancer, WORKERS)
    wait_until(everyone, what="all workers")
    wait_until(partial(answers, status_address(balancer)), what="the desk")
    before = held(balancer)
    lab.begin()
    knockers = Knockers(lab, balancer.address, 8)
    travellers = Travellers(lab, balancer.address, 4)
    choices = lab.chooser()
    while lab.left():
        die(balancer, choices)
    knockers.stop()
    trips = travellers.stop()
    wait_until(everyone, what="all workers again")
    lines = check_figures(lab, balancer)
    status = status_json(status_address(balancer))
    for server in status["servers"]:
        lab.expect(not server["active"], f"not back at zero: {server}")
    live = {name: status["connections"][name] for name in ("active", "queued")}
    lab.expect(not any(live.values()), f"not back at zero: {live}")
    in_parallel(*(peer.stop for peer in peers.live))
    lab.count("workers died", len(deaths(balancer)))
    own = {trip.client for trip in trips}
    check_knocks(lab, knockers, [line for line in lines if line.client not in own])
    travelled = [line for line in lines if line.client in own]
    logged = {line.client for line in travelled}
    known = [trip for trip in trips if trip.client in logged or trip.received]
    lab.count("cut and not in the log", len(trips) - len(known))
    check_trips(lab, known, travelled, peers.all)
    unseen, died = lab.counts["cut and not in the log"], len(deaths(balancer))
    # A worker that dies between accept and its row leaves no trace of that client.
    lab.expect(unseen <= died, f"{unseen} clients left no line, {died} deaths")
    check_held(lab, balancer, before)
    codes = Counter(line.code for line in lines)
    lab.count("connections that died with a worker", codes["ID"])
    lab.note(f"ends: {dict(codes.most_common())}; knocks: {dict(knockers.ends)}")
    return balancer


@scenario(3, share=3, short_s=1)
def killed_workers(lab: Lab) -> None:
    """Kill workers again and again under load: only their own connections end."""

    def die(balancer: Running, choices: random.Random) -> None:
        threading.Event().wait(choices.random() * 0.3)
        kill_worker(balancer, choices)

    among_deaths(lab, die)


@scenario(3, share=3, short_s=LONG_ONLY)
def killed_workers_with_a_queue(lab: Lab) -> None:
    """Do the same with two places at each server: clients wait, places are given."""

    def die(balancer: Running, choices: random.Random) -> None:
        threading.Event().wait(choices.random() * 0.5)
        kill_worker(balancer, choices)
        for server in status_json(status_address(balancer))["servers"]:
            lab.expect(server["active"] <= 2, f"above its max of 2: {server}")

    among_deaths(lab, die, most=2)


def dying_at(lab: Lab, where: str, chance: float) -> dict[str, str]:
    """Return an environment in which workers die at lines of that code, by chance."""
    folder = lab.folder / "dying"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(DYING)
    return {
        "PYTHONPATH": str(folder),
        "LAB_DIE_CHANCE": str(chance),
        "LAB_DIE_WHERE": where,
        "LAB_SEED": str(lab.seed),
    }


@scenario(3, share=3, short_s=LONG_ONLY)
def killed_inside_the_lock(lab: Lab) -> None:
    """Let workers die at any line of the board's code, most with its lock in hand."""
    environment = dying_at(lab, r"Board\.|BoardLock\.|Row\.|Server\.", 1 / 15_000)

    def die(balancer: Running, choices: random.Random) -> None:
        threading.Event().wait(0.3)
        for server in status_json(status_address(balancer))["servers"]:
            lab.expect(server["active"] <= 2, f"above its max of 2: {server}")

    among_deaths(lab, die, most=2, env=environment)
    lab.expect(lab.counts["workers died"], "no worker died")


@scenario(3, share=0.5, short_s=LONG_ONLY)
def stopped_worker(lab: Lab) -> None:
    """Stop a worker with SIGSTOP under load: others go on, it is freed or killed."""

    def die(balancer: Running, choices: random.Random) -> None:
        victim = choices.choice(workers_of(balancer))
        os.kill(victim, signal.SIGSTOP)
        lab.count("stops")
        threading.Event().wait(choices.choice((0.05, 1.0, STOPPED_S)))
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)
        threading.Event().wait(0.5)

    among_deaths(lab, die, ("--idle-timeout", 2 * STOPPED_S))


@scenario(3, share=0.3, short_s=0)
def killed_desk(lab: Lab) -> None:
    """Kill the process that checks, logs and serves the status: nobody notices."""
    needs_workers()
    peers = Peers(lab)
    balancer = lab.balancer(
        peers.live, "--workers", 2, "--status", "127.0.0.1:0", "--check-interval", 0.2
    )
    where = status_address(balancer)
    served = 0
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(dial(balancer, STUCK_S)) for _ in range(6)]
        for round_ in range(10 if lab.long else 2):
            desks = wait_until(lambda: desks_of(balancer), what="a desk")
            os.kill(desks[0], signal.SIGKILL)
            wait_until(partial(has_ended, desks[0]), what="its end")
            lab.count("desks killed")
            for sock in kept:
                data = b"%010d" % round_
                sock.sendall(data)
                lab.expect(read_exactly(sock, len(data)) == data, "a live one was cut")
            with dial(balancer, STUCK_S) as another:
                another.sendall(b"0000000000")
                lab.expect(read_exactly(another, 10), "no service without a desk")
                served += 1
            wait_until(lambda: answers(where), what="the status page again")
            # What a desk has in hand when it is killed is lost: not the next one's.
            wait_until(
                lambda: len(endings(balancer.stdout_lines())) == served,  # noqa: B023
                what="the line of the other one",
            )
    wait_until(
        lambda: len(endings(balancer.stdout_lines())) == served + len(kept),
        what="a line for each connection",
    )
    check_figures(lab, balancer)
    lab.count("connections", served + len(kept))


def answers(where: str) -> bool:
    """Tell whether the status is served."""
    try:
        return bool(status_json(where)["servers"])
    except OSError:
        return False
