"""Part 3: the balancer among servers and clients that come and go."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
import re
import select
import signal
import socket
import threading
import unittest
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.balancer import SAME_ORIGIN, Ending, endings
from tests.faults.lab import LONG_ONLY, Lab, scenario, steady_port
from tests.faults.processes import (
    deaths,
    has_ended,
    has_workers,
    kill_worker,
    status_address,
    workers_of,
)
from tests.support import (
    Running,
    children,
    descriptors,
    dial,
    family,
    http_request,
    in_parallel,
    memory_kib,
    read_exactly,
    send_reset,
    split_address,
    status_json,
    threads,
    wait_until,
)

SIZES = (10, 200, 5000, 70_000, 300_000, 2_000_000)  # of what a client sends
LARGEST_TRIP = max(SIZES) + 10
IDLE_TIMEOUT_S = 3.0  # of the balancer
STUCK_S = 25.0  # far beyond it: the machine may be slow
SPARE_THREADS = 40  # that the balancer may keep for the next connections
MEMORY_KIB = 96 << 10  # that it may grow by
SEEN = re.compile(
    r"connection (\d{10}) received=(\d+) sent=(\d+) sha256=(\w+) end=(\w+)"
)
FIGURE = re.compile(r'(\w+)(?:\{server="([^"]+)"(?:,direction="(\w+)")?\})? (\S+)')


# ---- Clients with byte counts ----------------------------------------------------


@dataclass
class Trip:
    """What a client knows of one connection through the balancer."""

    number: int
    client: str  # its own address, as the balancer's log names it
    sent: int = 0
    received: int = 0
    sent_hash: str = ""
    received_hash: str = ""
    end: str = ""  # "eof", "reset", "left" (its own reset), "stuck"


class Traveller:
    """One connection: sends `size` bytes, reads the echo, both at once."""

    def __init__(self, target: str, number: int, choices: random.Random) -> None:
        """Take a port; about one in five will reset the connection half-way.

        A host of its own, too: the port of a connection that was reset can be another's
        before the balancer's session has ended.
        """
        self.target = target
        self.sock = socket.socket()
        self.sock.bind((f"127.1.{number >> 8 & 255}.{number & 255}", 0))
        self.trip = Trip(number, "{}:{}".format(*self.sock.getsockname()))
        size = int(choices.choice(SIZES))
        self.data = f"{number:010d}".encode() + choices.randbytes(size)
        leaves = choices.random() < 0.2
        self.leave_after = choices.randrange(len(self.data)) if leaves else 0
        self.piece = choices.choice((1000, 65536, 262144))
        self._sums = hashlib.sha256(), hashlib.sha256()

    def run(self) -> Trip:
        """Travel to the end; close the socket."""
        with self.sock:
            self.trip.end = "reset"
            with contextlib.suppress(ConnectionResetError):
                self.sock.settimeout(STUCK_S)
                self.sock.connect(split_address(self.target))
                self.sock.setblocking(False)
                self.trip.end = self._exchange()
            if self.trip.end == "left":
                send_reset(self.sock)
        sent, received = self._sums
        self.trip.sent_hash = sent.hexdigest()
        self.trip.received_hash = received.hexdigest()
        return self.trip

    def _exchange(self) -> str:
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | select.POLLOUT)
        while ready := poll.poll(STUCK_S * 1000):
            mask = ready[0][1]
            try:
                if mask & ~select.POLLOUT and not self._read():
                    return "eof"
                if mask & select.POLLOUT and not self._write():
                    poll.modify(self.sock, select.POLLIN)
            except BlockingIOError:
                continue
            except OSError:
                return "reset"
            if self.leave_after and self.trip.received >= self.leave_after:
                return "left"
        return "stuck"

    def _read(self) -> bool:
        data = self.sock.recv(self.piece)
        self._sums[1].update(data)
        self.trip.received += len(data)
        return bool(data)

    def _write(self) -> bool:
        """Send a piece; after the last one end this direction and return False."""
        piece = self.data[self.trip.sent : self.trip.sent + self.piece]
        if not piece:
            self.sock.shutdown(socket.SHUT_WR)
            return False
        count = self.sock.send(piece)
        self._sums[0].update(piece[:count])
        self.trip.sent += count
        return True


class Travellers:
    """Threads that make one trip after another. `_lock` guards `trips`."""

    _numbers = itertools.count(1)  # of all: a host has one connection in a run

    def __init__(self, lab: Lab, target: str, count: int) -> None:
        """Start `count` threads."""
        self.lab = lab
        self.target = target
        self.trips: list[Trip] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._travel, args=(lab.chooser(),), name=f"traveller-{k}",
                daemon=True,
            )
            for k in range(count)
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[Trip]:
        """Let every thread end after its trip; return all trips."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * STUCK_S)
            if thread.is_alive():
                self.lab.lost(f"{thread.name} is stuck")
        for trip in self.trips:
            self.lab.count("connections")
            self.lab.count("bytes", trip.sent + trip.received)
            if trip.end == "stuck":
                self.lab.lost(f"{trip}: no end for {STUCK_S:g} s")
        return self.trips

    def _travel(self, choices: random.Random) -> None:
        while not self._stop.is_set():
            with self._lock:
                number = next(self._numbers)
            try:
                trip = Traveller(self.target, number, choices).run()
            except OSError as error:
                self.lab.lost(f"the balancer could not be reached: {error}")
                return
            with self._lock:
                self.trips.append(trip)


# ---- What the balancer says, and what the others say -----------------------------


def settled(balancer: Running) -> dict[str, Any]:
    """Return the status when no connection is live and all of them are logged.

    A worker that is killed while it counts a connection that it has just accepted
    leaves it counted, without a line: so many may be missing.
    """
    where = status_address(balancer)

    def unlogged() -> int:
        """Return how many lines are missing, -1 as long as a connection is live."""
        connections = status_json(where)["connections"]
        lines = len(endings(balancer.stdout_lines()))
        return -1 if connections["active"] else int(connections["total"]) - lines

    with contextlib.suppress(AssertionError):
        wait_until(lambda: unlogged() == 0, 5 if deaths(balancer) else 30)
    missing = unlogged()
    if not 0 <= missing <= len(deaths(balancer)):
        last = status_json(where)
        said = (
            f"{last['connections']}, {missing} lines missing, live {last.get('live')}"
        )
        raise AssertionError(f"connections never end: {said[:600]}")
    return status_json(where)


def check_figures(lab: Lab, balancer: Running) -> list[Ending]:
    """Compare the status, the metrics and the log; return the closing lines.

    A worker that is killed while it counts what a connection had leaves that out of the
    totals, or in them twice: of so many connections at most. Nothing is left live.
    """
    status = settled(balancer)
    lines = endings(balancer.stdout_lines())
    spare = len(deaths(balancer))
    metrics = read_metrics(balancer)

    def agree(name: str, shown: tuple[float, ...], logged: tuple[int, ...]) -> None:
        off = [abs(a - b) for a, b in zip(shown, logged, strict=True)]
        true = off[0] <= spare and max(off[1:]) <= spare * LARGEST_TRIP
        lab.expect(true, f"{name} {shown}, log {logged}, {spare} workers died")

    agree(
        "status",
        (status["connections"]["total"], *status["bytes"].values()),
        (
            len(lines),
            sum(line.to_server for line in lines),
            sum(line.to_client for line in lines),
        ),
    )
    total = metrics[("load_balancer_connections_total", "", "")]
    lab.expect(total - len(lines) in range(spare + 1), f"metrics {total} connections")
    for server in status["servers"]:
        label = server["address"]
        own = [line for line in lines if line.server == label]
        logged = (
            sum(" connect_ms=- " not in line.line for line in own),  # it was reached
            sum(line.to_server for line in own),
            sum(line.to_client for line in own),
        )
        shown = server["total"], server["bytes_to_server"], server["bytes_to_client"]
        agree(f"{label}: status", shown, logged)
        counted = (
            metrics[("load_balancer_server_connections_total", label, "")],
            metrics[("load_balancer_server_bytes_total", label, "to_server")],
            metrics[("load_balancer_server_bytes_total", label, "to_client")],
        )
        agree(f"{label}: metrics", counted, logged)
        lab.expect(not server["active"], f"{label} still has connections: {server}")
    return lines


def read_metrics(balancer: Running) -> dict[tuple[str, str, str], float]:
    """Return the figures of /metrics by name, server and direction."""
    _, _, body = http_request(status_address(balancer), "/metrics")
    found = {}
    for line in body.decode().splitlines():
        if match := FIGURE.fullmatch(line):
            found[match[1], match[2] or "", match[3] or ""] = float(match[4])
    return found


def seen_by_peers(peers: Sequence[Running]) -> dict[int, tuple[int, int, str, str]]:
    """Return what the peers saw: (received, sent, hash, end) by number."""
    return {
        int(match[1]): (int(match[2]), int(match[3]), match[4], match[5])
        for peer in peers
        for match in SEEN.finditer(peer.stdout_text())
    }


def check_trips(
    lab: Lab, trips: Sequence[Trip], lines: Sequence[Ending], peers: Sequence[Running]
) -> None:
    """Compare what clients, balancer and peers say of every connection."""
    by_client: dict[str, list[Ending]] = defaultdict(list)
    for line in lines:
        by_client[line.client].append(line)
    seen = seen_by_peers(peers)
    for trip in trips:
        logged = by_client[trip.client]
        if not logged:
            lab.lost(f"{trip}: not in the balancer's log")
            continue
        line = logged.pop(0)
        check_trip(lab, trip, line, seen.get(trip.number))
    spare = [line.line for lines in by_client.values() for line in lines]
    lab.expect(not spare, f"logged and made by no client: {spare[:3]}")


def check_trip(
    lab: Lab, trip: Trip, line: Ending, seen: tuple[int, int, str, str] | None
) -> None:
    """Compare three views of one connection."""
    said = f"{trip}; balancer: {line.line}; peer: {seen}"
    received, sent, digest, end = seen or (0, 0, "", "")
    lab.expect(line.to_server <= trip.sent, f"more than the client sent: {said}")
    if line.code != "ID":  # a worker was killed between sending and counting
        lab.expect(line.to_client >= trip.received, f"client has more: {said}")
        lab.expect(received <= line.to_server, f"peer has more: {said}")
    lab.expect(not seen or line.to_client <= sent or end == "reset", f"more: {said}")
    if trip.end == end == "eof" and line.code == "--":  # both ends finished
        exact = line.to_server == line.to_client == trip.sent == received == sent
        same = trip.sent_hash == trip.received_hash == digest
        lab.expect(exact and same, f"not the same bytes: {said}")
        lab.count("connections whole, by SHA-256 at both ends")


# ---- Chaos -----------------------------------------------------------------------


class Peers:
    """Three peers behind a balancer; one thread kills, stops and restarts them."""

    def __init__(self, lab: Lab) -> None:
        """Start them."""
        self.lab = lab
        self.live = [lab.spawn("tests/faults/peer.py", steady_port()) for _ in range(3)]
        self.all = list(self.live)
        self.ports = [peer.port for peer in self.live]

    def kill(self, index: int) -> None:
        """Kill a peer, and start it again on its port."""
        self.live[index].kill()
        peer = self.lab.start("tests/faults/peer.py", self.ports[index])
        self.live[index] = peer
        self.all.append(peer)
        self.lab.count("kills")

    def freeze(self, index: int, seconds: float) -> None:
        """Stop a peer for a while: a machine that swaps, or a debugger."""
        peer = self.live[index]
        peer.signal(signal.SIGSTOP)
        try:
            threading.Event().wait(min(seconds, self.lab.left() + 0.05))
        finally:
            peer.signal(signal.SIGCONT)
        self.lab.count("stops")


def held(balancer: Running) -> tuple[int, int, int]:
    """Return descriptors, threads and memory (KiB) of the balancer and its workers."""
    members = family(balancer.pid)
    return (
        sum(map(descriptors, members)),
        sum(map(threads, members)),
        sum(map(memory_kib, members)),
    )


def chaos(lab: Lab, workers: int) -> None:
    """Kill and stop servers, reset clients, and compare every count afterwards."""
    if not hasattr(signal, "SIGSTOP"):
        raise unittest.SkipTest("needs SIGSTOP and SIGKILL (Unix)")
    peers = Peers(lab)
    most = lab.random.choice((0, 2, 4))  # connections to each server; 0: no limit
    balancer = lab.balancer(
        [f"{peer.address},max={most}" for peer in peers.live],
        "--workers", workers, "--status", "127.0.0.1:0", "--queue-timeout", 2,
        "--idle-timeout", IDLE_TIMEOUT_S, "--half-close-timeout", IDLE_TIMEOUT_S,
        "--check-interval", 0.3, "--rise", 1, "--fall", 2,
    )  # fmt: skip
    if workers > 1:
        everyone = partial(has_workers, balancer, workers)
        wait_until(everyone, what="all workers")
    warmed_up = Travellers(lab, balancer.address, 8)  # it has its threads and sockets
    threading.Event().wait(0.3)
    first = warmed_up.stop()
    settled(balancer)
    before = held(balancer)
    lab.begin()
    travellers = Travellers(lab, balancer.address, 8)
    choices = lab.chooser()
    longest = IDLE_TIMEOUT_S + 1 if lab.long else 0.3
    while lab.left():
        index = choices.randrange(3)
        dice = choices.random()
        if dice < 0.45:
            peers.kill(index)
        elif dice < 0.8:
            peers.freeze(index, choices.choice((0.02, 0.1, 0.3, longest)))
        elif dice < 0.9 and workers > 1:
            lab.count("workers killed", kill_worker(balancer, choices))
        else:
            give_order(lab, balancer, peers, choices)
        check_limit(lab, balancer, most)
    for index in range(3):
        order(balancer, peers.ports[index], "ready")
    trips = [*first, *travellers.stop()]
    lines = check_figures(lab, balancer)
    in_parallel(*(peer.stop for peer in peers.live))  # so that all of them have told
    check_trips(lab, trips, lines, peers.all)
    check_held(lab, balancer, before)
    lab.note("ends: " + ", ".join(f"{c} {n}" for c, n in ends_of(lines)))


def give_order(
    lab: Lab, balancer: Running, peers: Peers, choices: random.Random
) -> None:
    """Drain, stop or ready a server by the status page."""
    what = choices.choice(("drain", "maint", "ready", "ready", "ready"))
    code = order(balancer, choices.choice(peers.ports), what)
    lab.expect(code == 200, f"{code} for the order {what}")
    lab.count("orders")


def order(balancer: Running, port: int, what: str) -> int:
    """Give an order for a server; return the HTTP status."""
    path = f"/servers/127.0.0.1:{port}/{what}"
    where = status_address(balancer)
    return http_request(where, path, "POST", SAME_ORIGIN, b"")[0]


def check_limit(lab: Lab, balancer: Running, most: int) -> None:
    """Expect no server above its `max`."""
    for server in status_json(status_address(balancer))["servers"]:
        lab.expect(not most or server["active"] <= most, f"above {most}: {server}")


def ends_of(lines: Sequence[Ending]) -> list[tuple[str, int]]:
    """Return how often each termination code came."""
    return Counter(line.code for line in lines).most_common()


def check_held(lab: Lab, balancer: Running, before: tuple[int, int, int]) -> None:
    """Expect descriptors, threads and memory back to where they were."""

    def is_back() -> bool:
        fds, running, memory = held(balancer)
        workers = max(1, len(workers_of(balancer)))
        return (
            fds <= before[0] + 2  # a check may be under way
            and running <= before[1] + SPARE_THREADS * workers
            and memory <= before[2] + MEMORY_KIB * workers
        )

    with contextlib.suppress(AssertionError):
        wait_until(is_back, 15)
        return
    lab.lost(f"descriptors, threads, KiB: {before} before, {held(balancer)} after")


@scenario(3, share=4, short_s=LONG_ONLY)
def chaos_among_servers(lab: Lab) -> None:
    """Kill and stop servers, reset clients: every count agrees afterwards."""
    chaos(lab, 1)


@scenario(3, share=4, short_s=1)
def chaos_among_servers_with_workers(lab: Lab) -> None:
    """Do the same with two worker processes."""
    chaos(lab, 2)


# ---- The balancer itself dies ----------------------------------------------------


def echo_once(sock: socket.socket, data: bytes = b"0000000000") -> bool:
    """Tell whether a connection still echoes."""
    sock.sendall(data)
    return read_exactly(sock, len(data)) == data


@scenario(3, share=0.5, short_s=0)
def killed_balancer(lab: Lab) -> None:
    """Kill the balancer: clients get an end, and no worker lives on."""
    peers = Peers(lab)
    balancer = lab.balancer(peers.live, "--workers", 2, "--status", "127.0.0.1:0")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(balancer, STUCK_S)) for _ in range(12)]
        for client in clients:
            lab.expect(echo_once(client), "no echo before the kill")
        workers = workers_of(balancer)
        lab.expect(len(workers) == 2, f"{len(workers)} workers instead of 2")
        family = children(balancer.pid)
        balancer.signal(signal.SIGKILL)
        lab.count("kills")
        for client in clients:
            with contextlib.suppress(ConnectionResetError):
                lab.expect(client.recv(1) == b"", "more bytes from a dead balancer")
        wait_until(lambda: all(map(has_ended, family)), what="the end of all processes")
    lab.count("connections", 12)


@scenario(3, share=0.5, short_s=LONG_ONLY)
def killed_worker(lab: Lab) -> None:
    """Kill a worker process: only its own connections end, another one starts."""
    peers = Peers(lab)
    balancer = lab.balancer(
        peers.live, "--workers", 2, "--status", "127.0.0.1:0", "--idle-timeout", 30
    )
    choices = lab.chooser()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(balancer, STUCK_S)) for _ in range(12)]
        for client in clients:
            lab.expect(echo_once(client), "no echo before the kill")
        lab.count("workers killed", kill_worker(balancer, choices))
        line = balancer.wait_for_line(r"worker=\d+ died")
        found = re.search(r"with (\d+) connections", line)
        died = int(found[1]) if found else -1
        ended = sum(not still_echoes(client) for client in clients)
        lab.expect(0 < died < 12, f"{died} of 12 connections were the worker's")
        lab.expect(died == ended, f"{died} reported, {ended} ended")
        wait_until(partial(has_workers, balancer, 2), what="a new worker")
        for _ in range(6):
            with dial(balancer) as another:
                lab.expect(echo_once(another), "no echo after the kill")
    check_figures(lab, balancer)
    lab.count("connections", 18)


def still_echoes(sock: socket.socket) -> bool:
    """Tell whether a connection is alive; False when it was ended."""
    try:
        return echo_once(sock)
    except (ConnectionResetError, BrokenPipeError):
        return False


@scenario(3, share=1, short_s=LONG_ONLY)
def measuring_among_kills(lab: Lab) -> None:
    """Measure with client2.py while servers, then the balancer, are killed."""
    servers = lab.servers(3)
    ports = [server.port for server in servers]
    balancer = lab.balancer(servers, "--check-interval", 0.2, "--rise", 1)
    seconds = max(2.0, lab.seconds)
    lab.begin()
    running = lab.spawn(
        "client2.py", 30, "--target", balancer.address, "--duration", seconds,
        "--timeout", 5, "--json", "run.json", "--csv", "run.csv", "--quiet",
    )  # fmt: skip
    choices = lab.chooser()
    while lab.left() > seconds / 4:
        index = choices.randrange(3)
        servers[index].kill()
        lab.count("kills")
        servers[index] = lab.start("server2.py", ports[index], "--quiet")
    balancer.kill()
    lab.count("kills")
    code = running.wait(seconds + 60)
    lab.expect(code == 1, f"exit {code} although the balancer was killed")
    document = json.loads((lab.folder / "run.json").read_text())
    exchanges, failures = document["exchanges"], document["failures"]
    lab.count("messages confirmed", exchanges["confirmed"])
    lab.expect(exchanges["confirmed"], "nothing was confirmed")
    lab.expect(exchanges["failed"] == sum(failures.values()), f"{document}")
    lab.expect(not failures["mismatch"], f"a reply was altered: {failures}")
    rows = (lab.folder / "run.csv").read_text().splitlines()[1:]
    told = sum(row.endswith(",confirmed") for row in rows)
    lab.expect(told == exchanges["confirmed"], f"{told} rows, {exchanges}")
    lab.expect(
        len(rows) - told == exchanges["failed"], f"{len(rows)} rows, {exchanges}"
    )
    replied = lab.log.read_bytes().count(b" - replied: ")
    lab.expect(replied >= told, f"{told} confirmed, {replied} in the log")
    lab.note(f"failures seen by clients: {failures}")
