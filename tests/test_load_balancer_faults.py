"""load_balancer.py: what public reports of other balancers broke in this one.

Each class is one kind of fault, tried in both directions and in all phases. Most need
a connection that is spliced: `WithoutSplice` runs the same by way of the process,
`WithTwoWorkers` through two processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import random
import shutil
import socket
import subprocess
import threading
import time
import unittest
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.balancer import (
    BalancerTestCase,
    changes,
    command,
    endings,
    figures,
    local_address,
    server_figures,
    status_address,
    wait_for_endings,
    wait_for_states,
)
from tests.support import (
    LONG,
    Backend,
    Behaviour,
    Running,
    Target,
    Visit,
    address_of,
    banner,
    cpu_s,
    dial,
    echo,
    family,
    http_request,
    is_reset,
    read_exactly,
    read_to_end,
    refusing_address,
    run_main,
    silent,
    sink,
    wait_until,
)

MIB = 1 << 20
HEAD = random.Random(14).randbytes(2 * MIB)  # more than it takes to begin to splice
TAIL = random.Random(41).randbytes(MIB + 1)
SMALL_BUFFER = 32768  # so that a slow reader's acknowledgements come often
Result = TypeVar("Result")


def digest(data: bytes) -> tuple[int, str]:
    """Return what two long byte strings are compared by."""
    return len(data), hashlib.sha256(data).hexdigest()


def connections(balancer: Running) -> dict[str, Any]:
    """Return what /status.json says of all connections."""
    found: dict[str, Any] = figures(balancer)["connections"]
    return found


def dial_small(target: Target) -> socket.socket:
    """Dial with a small receive buffer (before the connect: socket(7))."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    client.settimeout(30)
    host, _, port = address_of(target).rpartition(":")
    client.connect((host, int(port)))
    return client


def read_until_reset(connection: socket.socket) -> tuple[int, bool]:
    """Read to the end; return how many bytes came, and whether it was a reset."""
    count = 0
    try:
        while data := connection.recv(65536):
            count += len(data)
    except ConnectionResetError:
        return count, True
    return count, False


def send_what_goes(connection: socket.socket, data: bytes) -> None:
    """Send as much as the other side takes, until one of them ends it."""
    with contextlib.suppress(OSError):
        connection.sendall(data)


class Faults(BalancerTestCase):
    """A balancer before one backend, with what the class takes away from Python."""

    WITHOUT: Sequence[str] = ()

    def start_before(self, *servers: Target, options: Sequence[object] = ()) -> Running:
        """Start a balancer without checks before these servers."""
        return self.balancer(
            f"--workers={self.WORKERS}",
            "--status=127.0.0.1:0",
            "--no-checks",
            "--grace=2",
            *options,
            servers=servers,
            env=self.without(*self.WITHOUT) if self.WITHOUT else None,
        )

    def dial_slowly(self, target: Target) -> tuple[socket.socket, str]:
        """Dial with a small receive buffer; return the socket and its address."""
        client = dial_small(target)
        self.addCleanup(client.close)
        return client, local_address(client)

    def cpu_share(self, balancer: Running, seconds: float) -> float:
        """Return what part of a core the balancer uses while nothing happens."""
        start, used = time.monotonic(), sum(cpu_s(p) for p in family(balancer.pid))
        threading.Event().wait(seconds)
        used = sum(cpu_s(p) for p in family(balancer.pid)) - used
        return used / (time.monotonic() - start)


# ---- 1: urgent data --------------------------------------------------------------


class UrgentData(Faults):
    """A byte sent as urgent (tcp(7), MSG_OOB) holds up no other byte.

    recv leaves it out of the stream: what arrives is everything before and behind it.
    """

    def send_around(self, sender: socket.socket) -> None:
        """Send HEAD, a byte that is urgent, and TAIL."""
        sender.sendall(HEAD)
        sender.send(b"!", socket.MSG_OOB)
        sender.sendall(TAIL)

    def test_all_bytes_of_a_client_that_sends_urgent_data_arrive(self) -> None:
        backend = self.backend(sink)
        balancer = self.start_before(backend)
        client = self.dial(balancer)
        name = local_address(client)
        self.send_around(client)
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(client.recv(1), b"")
        visit = backend.visit()
        self.assertTrue(visit.done.wait(30))
        self.assertEqual(digest(visit.received), digest(HEAD + TAIL))
        client.close()
        ending = self.ending(balancer, name)
        self.assertEqual(
            (ending.code, ending.to_server, ending.undelivered),
            ("--", len(HEAD) + len(TAIL), 0),
            ending.line,
        )

    def test_all_bytes_of_a_server_that_sends_urgent_data_arrive(self) -> None:
        def behave(visit: Visit) -> None:
            self.send_around(visit.socket)
            visit.socket.shutdown(socket.SHUT_WR)
            sink(visit)

        balancer = self.start_before(self.backend(behave))
        client = self.dial(balancer)
        name = local_address(client)
        self.assertEqual(digest(read_to_end(client)), digest(HEAD + TAIL))
        client.close()
        ending = self.ending(balancer, name)
        self.assertEqual((ending.code, ending.undelivered), ("--", 0), ending.line)

    def test_urgent_data_after_the_other_side_has_ended_holds_nothing_up(self) -> None:
        def behave(visit: Visit) -> None:
            sink(visit)
            self.send_around(visit.socket)

        backend = self.backend(behave)
        balancer = self.start_before(backend)
        client = self.dial(balancer)
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(digest(read_to_end(client)), digest(HEAD + TAIL))

    def test_urgent_data_alone_costs_nothing_and_an_idle_connection_ends(self) -> None:
        backend = self.backend(sink)
        balancer = self.start_before(backend, options=["--idle-timeout=5"])
        crowd = [self.dial(balancer) for _ in range(4)]
        names = [local_address(client) for client in crowd]
        for index, client in enumerate(crowd):
            client.sendall(HEAD)
            client.send(b"!", socket.MSG_OOB)
            if index % 2:
                client.sendall(b"behind it")
        wait_until(lambda: len(backend.received) >= 4 * len(HEAD), what="the heads")
        self.assertLess(self.cpu_share(balancer, 2.0), 0.1)
        for name in names:
            ending = self.ending(balancer, name)
            self.assertRegex(ending.code, "[cs]D", ending.line)
            self.assertRegex(ending.words, "idle", ending.line)

    def test_clients_that_sent_urgent_data_slow_no_other(self) -> None:
        backend = self.backend([*[echo] * 3, *[sink] * 10, echo])
        balancer = self.start_before(backend)

        def median_s() -> float:
            with dial(balancer) as client:
                times = []
                for _ in range(300):
                    start = time.monotonic()
                    client.sendall(b"x" * 64)
                    read_exactly(client, 64)
                    times.append(time.monotonic() - start)
            return sorted(times)[150]

        # In turns, and the best of each, for other programs run on this machine, too.
        alone = [median_s() for _ in range(3)]
        crowd = [self.dial(balancer) for _ in range(10)]
        backend.visit(12)
        for client in crowd:
            client.sendall(HEAD)
            client.send(b"!", socket.MSG_OOB)
            client.sendall(b"behind it")
        self.assertLess(min(median_s() for _ in range(5)), 3 * min(alone) + 0.001)


class UrgentDataWithTwoWorkers(UrgentData):
    """The same, through two processes."""

    WORKERS = 2


class UrgentDataWithoutSplice(UrgentData):
    """The same, by way of the process."""

    WITHOUT = ("os.splice",)


SPLICE = '''
import errno, itertools, os, stat
real, numbers = os.splice, itertools.count()

def splice(source, target, *args, **options):
    """Move nothing into a pipe any more after some calls, and say so in one way."""
    fills = stat.S_ISSOCK(os.fstat(source).st_mode)
    if fills and next(numbers) >= {after}:
        {answer}
    return real(source, target, *args, **options)

os.splice = splice
'''


class SpliceThatStops(Faults):
    """A splice that says "nothing", whatever poll says, loses no byte."""

    def check(self, answer: str, after: int) -> None:
        """Transfer both ways while splice answers so after some calls."""
        folder = self.folder / f"splice-{abs(hash(answer))}-{after}"
        folder.mkdir()
        text = SPLICE.format(answer=answer, after=after)
        (folder / "sitecustomize.py").write_text(text)

        def behave(visit: Visit) -> None:
            sink(visit)
            visit.send(HEAD + TAIL)

        backend = self.backend(behave)
        balancer = self.balancer(
            f"--workers={self.WORKERS}",
            "--no-checks",
            servers=[backend],
            env={"PYTHONPATH": str(folder)},
        )
        client = self.dial(balancer)
        client.sendall(HEAD + TAIL)
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(digest(read_to_end(client)), digest(HEAD + TAIL))
        self.assertEqual(digest(backend.received), digest(HEAD + TAIL))

    def test_bytes_arrive_whatever_splice_answers(self) -> None:
        answers = (
            "return 0",
            "raise BlockingIOError(errno.EAGAIN, 'again')",
            "raise PermissionError(errno.EPERM, 'refused')",
            "raise OSError(errno.EINVAL, 'invalid')",
            "raise OSError(errno.ENOMEM, 'no memory')",
        )
        for answer in answers:
            for after in (0, 3):
                with self.subTest(answer=answer, after=after):
                    self.check(answer, after)


# ---- 2 and 3: progress, and ends in the middle -----------------------------------


class SlowReaders(Faults):
    """Bytes that a receiver's kernel acknowledges are activity."""

    takes_long = True

    def read_slowly(
        self, connection: socket.socket, seconds: float, size: int = 12_000
    ) -> int:
        """Read `size` bytes ten times a second; return how many came."""
        count, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            count += len(connection.recv(size))
            threading.Event().wait(0.1)
        return count

    def test_client_that_reads_slowly_is_not_idle(self) -> None:
        backend = self.backend(lambda visit: visit.send(bytes(64 * MIB)))
        balancer = self.start_before(backend, options=["--idle-timeout=2"])
        client, name = self.dial_slowly(balancer)
        self.read_slowly(client, 6)
        found = [line for line in balancer.stdout_lines() if f"client={name} " in line]
        self.assertEqual(found, [])

    def test_server_that_reads_slowly_is_not_idle(self) -> None:
        counts: list[int] = []

        def behave(visit: Visit) -> None:
            counts.append(self.read_slowly(visit.socket, 6))
            visit.pause(30)

        backend = self.backend(behave, receive_buffer=SMALL_BUFFER)
        balancer = self.start_before(backend, options=["--idle-timeout=2"])
        client = self.dial(balancer)
        name = local_address(client)
        sender = threading.Thread(
            target=send_what_goes,
            args=(client, bytes(64 * MIB)),
            name="sender",
        )
        sender.start()
        visit = backend.visit()
        wait_until(lambda: counts or visit.done.is_set(), what="six seconds' reading")
        found = [line for line in balancer.stdout_lines() if f"client={name} " in line]
        with contextlib.suppress(OSError):  # wakes the sender, unless it was reset
            client.shutdown(socket.SHUT_RDWR)
        sender.join(30)
        self.assertEqual((len(counts), found), (1, []))

    def test_slow_client_gets_the_whole_reply_of_a_server_that_has_ended(self) -> None:
        reply = HEAD[: 600 * 1024]

        def behave(visit: Visit) -> None:
            visit.send(reply)
            visit.socket.shutdown(socket.SHUT_WR)
            sink(visit)

        options = ["--half-close-timeout=1.5"]
        balancer = self.start_before(self.backend(behave), options=options)
        client, name = self.dial_slowly(balancer)
        received = bytearray()
        while data := client.recv(12_000):
            received += data
            threading.Event().wait(0.1)
        self.assertEqual(digest(bytes(received)), digest(reply))
        client.close()
        ending = self.ending(balancer, name)
        self.assertEqual((ending.code, ending.undelivered), ("--", 0), ending.line)

    def test_slow_server_gets_the_whole_of_a_client_that_has_ended(self) -> None:
        request = HEAD[: 600 * 1024]

        def behave(visit: Visit) -> None:
            while visit.read(12_000) and not visit.pause(0.1):
                pass
            visit.send(b"thanks")

        backend = self.backend(behave, receive_buffer=SMALL_BUFFER)
        options = ["--half-close-timeout=1.5"]
        balancer = self.start_before(backend, options=options)
        client = self.dial(balancer)
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(read_to_end(client), b"thanks")
        self.assertEqual(digest(backend.visit().received), digest(request))


class SlowReadersWithTwoWorkers(SlowReaders):
    """The same, through two processes."""

    WORKERS = 2


class SlowReadersWithoutSplice(SlowReaders):
    """The same, by way of the process."""

    WITHOUT = ("os.splice",)


class StoppedReaders(Faults):
    """A receiver that stops in the middle is reset, and what it missed is counted."""

    @unittest.skipUnless(LONG, "takes half a minute: set LAB_LONG=1")
    def test_client_that_stops_in_a_reply_is_reset_and_what_it_missed_is_told(
        self,
    ) -> None:
        def behave(visit: Visit) -> None:
            visit.send(HEAD)
            visit.pause(30)

        options = ["--idle-timeout=1.5"]
        balancer = self.start_before(self.backend(behave), options=options)
        client, name = self.dial_slowly(balancer)
        count = len(read_exactly(client, 50_000))
        ending = self.ending(balancer, name)
        rest, was_reset = read_until_reset(client)
        self.assertTrue(was_reset, "a part of a reply ended like a whole one")
        self.assertEqual(ending.code, "cD", ending.line)
        self.assertRegex(ending.words, "client took nothing for too long")
        self.assertEqual(count + rest + ending.undelivered, len(HEAD), ending.line)

    def test_server_that_stops_in_a_request_is_reset_and_what_it_missed_is_told(
        self,
    ) -> None:
        ended: list[tuple[int, bool]] = []

        def behave(visit: Visit) -> None:
            count = len(read_exactly(visit.socket, 50_000))
            wait_until(lambda: endings(balancer.stdout_lines()), what="the end")
            rest, was_reset = read_until_reset(visit.socket)
            ended.append((count + rest, was_reset))

        backend = self.backend(behave, receive_buffer=SMALL_BUFFER)
        options = ["--idle-timeout=1.5"]
        balancer = self.start_before(backend, options=options)
        client = self.dial(balancer)
        name = local_address(client)
        client.sendall(HEAD)
        ending = self.ending(balancer, name)
        self.assertTrue(backend.visit().done.wait(30))
        received, was_reset = ended[0]
        self.assertTrue(was_reset, "a part of a request ended like a whole one")
        self.assertEqual(ending.code, "sD", ending.line)
        self.assertRegex(ending.words, "server took nothing for too long")
        self.assertEqual(received + ending.undelivered, len(HEAD), ending.line)

    def test_client_that_stops_in_the_last_reply_is_reset(self) -> None:
        def behave(visit: Visit) -> None:
            visit.send(HEAD)
            visit.socket.shutdown(socket.SHUT_WR)
            sink(visit)

        options = ["--half-close-timeout=1.5"]
        balancer = self.start_before(self.backend(behave), options=options)
        client, name = self.dial_slowly(balancer)
        count = len(read_exactly(client, 50_000))
        ending = self.ending(balancer, name)
        rest, was_reset = read_until_reset(client)
        self.assertTrue(was_reset, "a part of a reply ended like a whole one")
        self.assertEqual(ending.code, "cL", ending.line)
        self.assertEqual(count + rest + ending.undelivered, len(HEAD), ending.line)

    def test_server_that_stops_in_the_last_request_is_reset(self) -> None:
        ended: list[bool] = []

        def behave(visit: Visit) -> None:
            read_exactly(visit.socket, 50_000)
            wait_until(lambda: endings(balancer.stdout_lines()), what="the end")
            ended.append(is_reset(visit.socket))

        backend = self.backend(behave, receive_buffer=SMALL_BUFFER)
        options = ["--half-close-timeout=1.5"]
        balancer = self.start_before(backend, options=options)
        client = self.dial(balancer)
        name = local_address(client)
        client.sendall(HEAD)
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(self.ending(balancer, name).code, "sD")
        self.assertTrue(backend.visit().done.wait(30))
        self.assertEqual(ended, [True], "a part of a request ended like a whole one")

    def test_silence_after_all_was_delivered_is_no_reset(self) -> None:
        backend = self.backend(banner(b"all there is"))
        balancer = self.start_before(backend, options=["--idle-timeout=1"])
        client, _ = self.dial_slowly(balancer)
        self.assertEqual(read_to_end(client), b"all there is")


class StoppedReadersWithTwoWorkers(StoppedReaders):
    """The same, through two processes."""

    WORKERS = 2


class StoppedReadersWithoutSplice(StoppedReaders):
    """The same, by way of the process."""

    WITHOUT = ("os.splice",)


# ---- 6: a check has one deadline -------------------------------------------------


class Checks(BalancerTestCase):
    """A check ends in time, whatever the server does."""

    def check_two(self, behaviour: Behaviour, *options: object) -> Running:
        """Expect that a second check begins soon after the first."""
        backend = self.backend(behaviour)
        balancer = self.balance(
            [backend],
            "--check-interval=0.2",
            "--check-timeout=1",
            *options,
            checks=True,
        )
        first, second = backend.visit(0), backend.visit(1)
        self.assertLess(second.began - first.began, 6.0)
        return balancer

    def test_server_that_talks_without_end_is_checked_in_time(self) -> None:
        def drip(visit: Visit) -> None:
            with contextlib.suppress(OSError):
                while not visit.pause(0.8):
                    visit.send(b".")

        balancer = self.check_two(drip)
        self.assertEqual(figures(balancer)["servers"][0]["state"], "UP")

    def test_server_that_floods_is_checked_in_time(self) -> None:
        def flood(visit: Visit) -> None:
            with contextlib.suppress(OSError):
                while not visit.backend.closing.is_set():
                    visit.send(bytes(65536))

        self.check_two(flood)

    def test_server_that_never_ends_is_checked_in_time(self) -> None:
        self.check_two(silent)
        self.check_two(silent, "--send-proxy=v2")


# ---- 9: `source` and a full server -----------------------------------------------


class SourceQueue(BalancerTestCase):
    """Waiting for the own server costs the same however many wait, in order."""

    def drain_cost_s(self, count: int) -> float:
        """Return the CPU time per session of `count` clients that wait in line."""
        order: list[bytes] = []
        release = threading.Event()

        def behave(visit: Visit) -> None:
            order.append(visit.read(5))
            release.wait(30)

        backends = [self.backend(behave) for _ in range(2)]
        balancer = self.balancer(
            f"--workers={self.WORKERS}",
            "--no-checks",
            "--status=127.0.0.1:0",
            "--algorithm=source",
            "--queue-timeout=30",
            servers=[f"{backend.address},max=1" for backend in backends],
        )
        clients = []
        for number in range(count):
            client = self.dial(balancer)
            client.sendall(b"%05d" % number)
            client.shutdown(socket.SHUT_WR)
            clients.append(client)
        wait_until(
            lambda: connections(balancer)["queued"] == count - 1, what="the queue"
        )
        used = sum(cpu_s(pid) for pid in family(balancer.pid))
        release.set()
        for client in clients:
            self.assertEqual(client.recv(1), b"")
        used = sum(cpu_s(pid) for pid in family(balancer.pid)) - used
        self.assertEqual(order, [b"%05d" % number for number in range(count)])
        return used / count

    def test_cost_of_a_session_does_not_grow_with_the_queue(self) -> None:
        short, long = self.drain_cost_s(50), self.drain_cost_s(400)
        self.assertLess(long, 2 * short + 0.0005, f"{short:.6f} s, then {long:.6f} s")


class SourceQueueWithTwoWorkers(SourceQueue):
    """The same, through two processes."""

    WORKERS = 2


# ---- 10: no thread left ----------------------------------------------------------

NO_THREADS = '''
import os, threading

def guard(start):
    """Refuse a thread as the system does, while the file is there."""
    def guarded(*args, **options):
        if os.path.exists({flag!r}):
            raise RuntimeError("can't start new thread")
        return start(*args, **options)
    return guarded

for name in ("_start_new_thread", "_start_joinable_thread"):
    if hasattr(threading, name):
        setattr(threading, name, guard(getattr(threading, name)))
'''

RESOLVER = '''
import os, socket, time
system_answer = socket.getaddrinfo

def answer(host, port, *args, **options):
    """Answer for NAME.test what its file says now; an empty one: no such name."""
    name = host.decode() if isinstance(host, bytes) else str(host)
    if not name.endswith(".test"):
        return system_answer(host, port, *args, **options)
    with open(os.path.join({folder!r}, name)) as file:
        hosts = file.read().split()
    while "silent" in hosts and "silent" in open(os.path.join({folder!r}, name)).read():
        time.sleep(0.05)
    if not hosts:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return [one for host in hosts if host != "silent"
            for one in system_answer(host, port, 0, socket.SOCK_STREAM)]

socket.getaddrinfo = answer
'''


class Surrounded(BalancerTestCase):
    """Balancers whose resolver and threads the test decides about."""

    FAST = ("--check-interval=0.1", "--rise=2", "--fall=3", "--check-timeout=0.5")

    def setUp(self) -> None:
        """Write the module that Python imports before the balancer."""
        super().setUp()
        self.no_threads = self.folder / "no-threads"
        text = RESOLVER.format(folder=str(self.folder))
        text += NO_THREADS.format(flag=str(self.no_threads))
        (self.folder / "sitecustomize.py").write_text(text)

    def name(self, name: str, *hosts: str) -> None:
        """Let NAME.test mean these addresses from now on."""
        fresh = self.folder / "fresh"
        fresh.write_text(" ".join(hosts))
        fresh.replace(self.folder / f"{name}.test")

    def run_before(self, *servers: str, options: Sequence[object] = FAST) -> Running:
        """Start a balancer for servers that may be names."""
        return self.balancer(
            f"--workers={self.WORKERS}",
            "--status=127.0.0.1:0",
            *options,
            servers=servers,
            env={"PYTHONPATH": str(self.folder)},
        )

    def addresses(self, balancer: Running) -> set[str]:
        """Return the servers' addresses as the status port lists them."""
        return {entry["address"] for entry in figures(balancer)["servers"]}

    def wait_for_addresses(self, balancer: Running, expected: set[str]) -> None:
        """Wait until these are the servers."""
        wait_until(
            lambda: self.addresses(balancer) == expected, what=f"servers {expected}"
        )

    def wait_for_state(self, balancer: Running, server: Target, state: str) -> None:
        """Wait until a server is UP, DOWN, DRAIN or MAINT."""
        wait_until(
            lambda: server_figures(balancer, server)["state"] == state, what=state
        )


class NoThread(Surrounded):
    """When the system gives no thread, what is there goes on, and all comes back."""

    def test_health_is_told_and_no_traceback_printed(self) -> None:
        backend = self.backend(banner(b"."))
        balancer = self.run_before(backend.address)
        status = status_address(balancer)
        wait_until(lambda: backend.total > 1, what="checks")
        self.no_threads.touch()
        for _ in range(20):
            self.assertEqual(http_request(status, "/healthz")[0], 200)
            self.assertEqual(http_request(status, "/status.json")[0], 200)
        self.no_threads.unlink()
        with dial(balancer) as client:
            self.assertEqual(client.recv(1), b".")

    def test_checks_of_a_name_that_moves_begin_once_threads_are_there_again(
        self,
    ) -> None:
        one = self.backend(banner(b"1"))
        two = self.backend(banner(b"2"), host="127.0.0.2", port=one.port)
        self.name("lab", "127.0.0.1")
        self.name("other", "127.0.0.1")
        three = self.backend(banner(b"3"))
        balancer = self.run_before(f"lab.test:{one.port}", f"other.test:{three.port}")
        wait_until(lambda: one.total > 1, what="checks")
        self.no_threads.touch()
        self.name("lab", "127.0.0.2")
        wait_until(lambda: two.address in self.addresses(balancer), what="the new one")
        before = three.total
        wait_until(lambda: three.total > before + 3, what="checks of the others")
        self.no_threads.unlink()
        before = two.total
        wait_until(lambda: two.total > before + 3, what="checks of the new one")
        # The names are followed as before.
        self.name("lab", "127.0.0.1")
        self.wait_for_addresses(balancer, {one.address, three.address})

    def test_balancer_that_starts_without_threads_checks_all_once_it_has_them(
        self,
    ) -> None:
        # Threads for connections and the log are there; none to check or look up.
        one, two = self.backend(banner(b"1")), self.backend(banner(b"2"))
        self.name("lab", "127.0.0.1")
        text = (self.folder / "sitecustomize.py").read_text()
        text += (
            "\nimport itertools\nstarts = itertools.count()\n"
            "def only_some(start):\n"
            "    def guarded(*args, **options):\n"
            f"        if not os.path.exists({str(self.folder / 'threads')!r}):\n"
            "            name = args[0].__self__.name if args else ''\n"
            "            if name.startswith(('check-', 'name-')):\n"
            '                raise RuntimeError("can\'t start new thread")\n'
            "        return start(*args, **options)\n"
            "    return guarded\n"
            "for name in ('_start_new_thread', '_start_joinable_thread'):\n"
            "    if hasattr(threading, name):\n"
            "        setattr(threading, name, only_some(getattr(threading, name)))\n"
        )
        (self.folder / "sitecustomize.py").write_text(text)
        balancer = self.run_before(f"lab.test:{one.port}", two.address)
        with dial(balancer) as client:
            self.assertIn(client.recv(1), (b"1", b"2"))
        (self.folder / "threads").touch()
        before = one.total, two.total
        wait_until(lambda: one.total > before[0] + 3, what="checks of the name")
        wait_until(lambda: two.total > before[1] + 3, what="checks of the other")


class NoThreadWithTwoWorkers(NoThread):
    """The same, through two processes."""

    WORKERS = 2


# ---- 7 and 8: names --------------------------------------------------------------


class Names(Surrounded):
    """What is known of an address stays known; one name never waits for another."""

    def test_address_that_returns_is_what_the_operator_set_it_to(self) -> None:
        one = self.backend(banner(b"1"))
        two = self.backend(banner(b"2"), host="127.0.0.2", port=one.port)
        for admin, state in (("maint", "MAINT"), ("drain", "DRAIN")):
            with self.subTest(admin):
                self.name("lab", "127.0.0.1", "127.0.0.2")
                balancer = self.run_before(f"lab.test:{one.port}")
                self.assertEqual(command(balancer, two, admin), 200)
                self.name("lab", "127.0.0.1")
                self.wait_for_addresses(balancer, {one.address})
                self.name("lab", "127.0.0.1", "127.0.0.2")
                self.wait_for_addresses(balancer, {one.address, two.address})
                self.assertEqual(server_figures(balancer, two)["state"], state)
                for _ in range(6):
                    with dial(balancer) as client:
                        self.assertEqual(client.recv(1), b"1")
                self.assertEqual(command(balancer, two, "ready"), 200)
                self.wait_for_state(balancer, two, "UP")
                balancer.stop()

    def test_address_that_returns_is_as_down_as_it_was(self) -> None:
        one = self.backend(banner(b"1"))
        self.name("lab", "127.0.0.1", "127.0.0.2")
        options = (*self.FAST, "--fall=20")
        balancer = self.run_before(f"lab.test:{one.port}", options=options)
        gone = f"127.0.0.2:{one.port}"
        wait_for_states(balancer, gone, "DOWN")
        self.name("lab", "127.0.0.1")
        wait_until(lambda: gone not in self.addresses(balancer), what="it to be gone")
        self.name("lab", "127.0.0.1", "127.0.0.2")
        wait_until(lambda: gone in self.addresses(balancer), what="it to be back")
        # A fall of 20 checks is two seconds: UP now would be a guess.
        self.assertEqual(server_figures(balancer, gone)["state"], "DOWN")
        wait_until(
            lambda: changes(balancer.stdout_lines())[-1].state == "DOWN",
            what="its line in the log",
        )

    def test_silent_name_delays_no_other(self) -> None:
        one = self.backend(banner(b"1"))
        two = self.backend(banner(b"2"), host="127.0.0.2", port=one.port)
        for name in ("mute", "lab"):
            self.name(name, "127.0.0.1")
        other = self.backend(banner(b"o"))
        balancer = self.run_before(f"mute.test:{other.port}", f"lab.test:{one.port}")
        self.name("mute", "silent", "127.0.0.1")
        before = other.total
        for place in (two, one, two):
            self.name("lab", place.address.partition(":")[0])
            expected = {place.address, other.address}
            self.wait_for_addresses(balancer, expected)
        wait_until(lambda: other.total > before + 3, what="checks of the silent one")
        self.assertEqual(balancer.stop(), 0)

    def test_address_that_this_machine_cannot_reach_at_all_is_tried_no_longer(
        self,
    ) -> None:
        with Namespace() as space:
            space.sysctl("net/ipv6/conf/all/disable_ipv6", "1")
            space.sysctl("net/ipv6/conf/lo/disable_ipv6", "1")
            backend = space.call(lambda: self.backend(banner(b".")))
            self.name("lab", "127.0.0.1", "::1")
            balancer = self.start(
                "load_balancer.py",
                "--listen=127.0.0.1:0",
                f"--server=lab.test:{backend.port}",
                "--no-checks",
                f"--workers={self.WORKERS}",
                env={"PYTHONPATH": str(self.folder)},
                preexec_fn=space.enter,
            )

            def visit() -> bytes:
                with dial(balancer) as client:
                    return client.recv(1)

            answers = [space.call(visit) for _ in range(20)]
            self.assertEqual(answers, [b"."] * 20)
            tries = [ending.tries for ending in wait_for_endings(balancer, 20)]
            # Not by every second client: only now and then, after its penalty.
            self.assertLessEqual(sum(tries), 20 + 4, tries)
            wait_for_states(balancer, f"[::1]:{backend.port}", "DOWN")
            self.assertNotIn("live connections go on", balancer.stdout_text())


class NamesWithTwoWorkers(Names):
    """The same, through two processes."""

    WORKERS = 2


class OneAddress(BalancerTestCase):
    """An address is the same in each of its forms."""

    def test_mapped_address_of_a_server_is_told_as_ipv4(self) -> None:
        backend = self.backend(echo)
        balancer = self.balance([f"[::FFFF:127.0.0.1]:{backend.port}"])
        client = self.dial(balancer)
        name = local_address(client)
        client.sendall(b"x")
        self.assertEqual(client.recv(1), b"x")
        client.close()
        self.assertEqual(self.ending(balancer, name).server, backend.address)
        metrics = http_request(status_address(balancer), "/metrics")[2].decode()
        self.assertIn(f'server="{backend.address}"', metrics)
        self.assertNotIn("ffff", metrics.lower())
        self.assertEqual(command(balancer, backend, "drain"), 200)

    def test_two_forms_of_one_address_are_one_server(self) -> None:
        listen = "--listen=192.0.2.1:0"  # nobody's: two servers would end it with 1
        pairs = [
            ("127.0.0.1:1", "[::ffff:127.0.0.1]:1"),
            ("[::ffff:127.0.0.1]:1", "[::FFFF:7F00:1]:1"),
            ("[fe80::1%lo]:1", "[FE80::1%lo]:1"),
            ("[::1]:1", "[0:0::1]:1"),
        ]
        cases = [(listen, f"--server={a}", f"--server={b}") for a, b in pairs]
        results = run_main("load_balancer.py", cases, cwd=self.folder)
        for pair, result in zip(pairs, results, strict=True):
            with self.subTest(pair):
                self.assert_one_line(result, 2, "more than once")

    def test_allow_takes_a_mapped_network(self) -> None:
        backend = self.backend(banner(b"."))
        for allowed in ("::ffff:127.0.0.1", "::FFFF:127.0.0.0/104"):
            with self.subTest(allowed):
                balancer = self.balance([backend], f"--allow={allowed}")
                with dial(balancer) as client:
                    self.assertEqual(client.recv(1), b".")

    def test_client_of_an_ipv6_listener_is_told_as_ipv4(self) -> None:
        if not socket.has_dualstack_ipv6():
            self.skipTest("this system has no listener for IPv4 and IPv6 at once")
        backend = self.backend(echo)
        balancer = self.balancer("--no-checks", servers=[backend], listen="[::]:0")
        with dial(("127.0.0.1", balancer.port)) as client:
            name = local_address(client)
            client.sendall(b"x")
            client.recv(1)
        self.assertEqual(self.ending(balancer, name).client, name)


# ---- 11, 12 and 13: one rule, and words ------------------------------------------


class WhoMayBeAsked(BalancerTestCase):
    """Health, `up=` and who is asked are one rule; each reason has its own words."""

    def refused_code(self, balancer: Running) -> tuple[str, str]:
        """Return how a client ended that got nothing: code and words."""
        client = self.dial(balancer)
        name = local_address(client)
        with contextlib.suppress(ConnectionError):
            self.assertEqual(client.recv(1), b"")
        ending = self.ending(balancer, name)
        return ending.code, ending.words

    def test_server_of_weight_0_alone_is_no_health(self) -> None:
        backend = self.backend(banner(b"."))
        with refusing_address() as down:
            balancer = self.balance(
                [f"{backend.address},weight=0", down],
                "--check-interval=0.1",
                "--check-timeout=1",
                "--queue-timeout=0.5",
                checks=True,
            )
            line = wait_for_states(balancer, down, "DOWN")[0]
            self.assertEqual(line.up, "0/2")
            status = status_address(balancer)
            self.assertEqual(http_request(status, "/healthz")[0], 503)
            checks_before = backend.total
            self.assertEqual(self.refused_code(balancer)[0], "SC")
            ends = endings(balancer.stdout_lines())
            self.assertEqual(ends[-1].to_client, 0)
            self.assertGreaterEqual(checks_before, 1)

    def test_drained_server_alone_is_no_health(self) -> None:
        backend = self.backend(banner(b"."))
        balancer = self.balance([backend], "--queue-timeout=0.5")
        self.assertEqual(command(balancer, backend, "drain"), 200)
        change = wait_for_states(balancer, backend, "DRAIN")[0]
        self.assertEqual(change.up, "0/1")
        self.assertEqual(http_request(status_address(balancer), "/healthz")[0], 503)

    def test_no_place_and_no_server_are_two_reasons(self) -> None:
        backend = self.backend(banner(b"."))
        full = self.balance([f"{backend.address},max=1"], "--queue-timeout=0.5")
        holder = self.dial(full)
        self.assertEqual(holder.recv(1), b".")
        code, words = self.refused_code(full)
        self.assertEqual(code, "sQ")
        drained = self.balance([backend], "--queue-timeout=0.5")
        self.assertEqual(command(drained, backend, "drain"), 200)
        code_drained, words_drained = self.refused_code(drained)
        self.assertEqual(code_drained, "SC")
        self.assertNotEqual(words, words_drained)
        maintained = self.balance([f"{backend.address},max=1"], "--queue-timeout=0.5")
        self.assertEqual(command(maintained, backend, "maint"), 200)
        self.assertEqual(self.refused_code(maintained), ("SC", words_drained))

    def test_operators_line_counts_no_checks_that_there_are_not(self) -> None:
        backend = self.backend(echo)
        for checks in (False, True):
            with self.subTest(checks=checks):
                balancer = self.balance([backend], checks=checks)
                for action in ("maint", "drain", "ready"):
                    self.assertEqual(command(balancer, backend, action), 200)
                states = wait_for_states(balancer, backend, "MAINT", "DRAIN", "UP")
                self.assertNotIn("0/0", [state.checks for state in states])

    def test_bad_number_of_workers_is_told_what_to_give(self) -> None:
        listen = "--listen=127.0.0.1:0"
        cases = [(listen, f"--workers={w}") for w in ("many", "0", "-1", "1.5", "")]
        for result in run_main("load_balancer.py", cases, cwd=self.folder):
            with self.subTest(result.args):
                self.assert_one_line(result, 2, "--workers", "auto", "1")


# ---- 4 and 5: own networks -------------------------------------------------------

CLONE_NEWNET = 0x40000000


class Namespace:
    """A network of its own, with a loopback (ip-netns(8)); skips where it cannot be."""

    numbers = iter(range(1000))

    def __init__(self) -> None:
        """Make it."""
        if not shutil.which("ip") or not hasattr(os, "geteuid") or os.geteuid():
            raise unittest.SkipTest("needs root and the program ip (iproute2)")
        self.name = f"lab-{os.getpid()}-{next(self.numbers)}"
        try:
            self.ip("netns", "add", self.name)
        except subprocess.CalledProcessError as error:
            words = f"no network namespace: {error.stderr!r}"
            raise unittest.SkipTest(words) from None
        self.path = f"/run/netns/{self.name}"
        self.ip("-n", self.name, "link", "set", "lo", "up")

    def __enter__(self) -> Namespace:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away; it ends with the last socket in it."""
        self.ip("netns", "del", self.name)

    def ip(self, *words: str) -> None:
        """Run the program ip."""
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)

    def enter(self) -> None:
        """Let the calling thread, or a child before it starts, be in it."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(fd)

    def call(self, action: Callable[[], Result]) -> Result:
        """Return what an action returns in there; its sockets stay there."""
        results: list[Result] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                self.enter()
                results.append(action())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name=self.name)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def sysctl(self, name: str, value: str) -> None:
        """Set a parameter of the network (sysctl(8)), with slashes; skip if refused."""

        def write() -> None:
            try:
                Path("/proc/sys", name).write_text(value)
            except OSError as error:
                raise unittest.SkipTest(f"cannot set {name}: {error}") from None

        self.call(write)


class SelfConnect(BalancerTestCase):
    """A connect that ends at itself (RFC 9293, 3.5) has reached no server.

    In a network where a client's port can be only the server's own or one other.
    """

    PORT = 40000

    def setUp(self) -> None:
        """Make the network."""
        super().setUp()
        self.space = Namespace()
        self.addCleanup(self.space.__exit__)
        value = f"{self.PORT} {self.PORT + 1}"
        self.space.sysctl("net/ipv4/ip_local_port_range", value)

    def start_in(self, host: str, *options: object) -> Running:
        """Start a balancer in the network; its server is down."""
        listen = "127.0.0.1" if ":" not in host else "[::1]"
        return self.start(
            "load_balancer.py",
            f"--listen={listen}:20000",
            f"--server={host}:{self.PORT}",
            f"--workers={self.WORKERS}",
            *options,
            preexec_fn=self.space.enter,
        )

    def test_check_that_reaches_itself_has_failed(self) -> None:
        for host in ("127.0.0.1", "[::1]"):
            with self.subTest(host):
                balancer = self.start_in(
                    host, "--check-interval=0.05", "--rise=1", "--fall=3"
                )
                server = f"{host}:{self.PORT}"
                wait_for_states(balancer, server, "DOWN")
                # So many checks that half of them met themselves.
                threading.Event().wait(3)
                states = [c.state for c in changes(balancer.stdout_lines())]
                self.assertEqual(states, ["DOWN"])

                def serve(host: str = host) -> Backend:
                    def bound() -> Backend | None:
                        with contextlib.suppress(OSError):
                            return Backend(
                                banner(b"."), host=host.strip("[]"), port=self.PORT
                            )
                        return None

                    found: Backend = wait_until(bound, what="the server to bind")
                    return found

                backend = self.space.call(serve)
                self.addCleanup(backend.close)
                wait_for_states(balancer, server, "DOWN", "UP")
                backend.close()
                balancer.stop()

    def test_client_never_talks_to_itself(self) -> None:
        balancer = self.start_in("127.0.0.1", "--no-checks", "--hold=0")

        def visits() -> list[bytes]:
            answers = []
            for port in range(21000, 21040):
                with socket.socket() as client:
                    client.settimeout(30)
                    client.bind(("127.0.0.1", port))
                    client.connect(("127.0.0.1", 20000))
                    with contextlib.suppress(ConnectionError):
                        client.sendall(b"is anybody there?")
                        answers.append(client.recv(100))
            return answers

        answers = self.space.call(visits)
        self.assertEqual(set(answers) - {b""}, set())
        ends = wait_for_endings(balancer, 40)
        self.assertEqual({end.to_client for end in ends}, {0})
        self.assertEqual({end.code for end in ends} - {"SC", "RC"}, set())


class SelfConnectWithTwoWorkers(SelfConnect):
    """The same, through two processes."""

    WORKERS = 2


@unittest.skipUnless(LONG, "two and a half minutes: set LAB_LONG=1 to run it, too")
class Vanished(BalancerTestCase):
    """A peer that vanishes is found in time; one that only does not read, never."""

    FOUND_S = 120 + 30  # README: after 120 s; and a busy machine

    @contextlib.contextmanager
    def two_networks(self) -> Iterator[tuple[Namespace, Namespace]]:
        """Give a network 10.9.9.1 and another, 10.9.9.2, with a cable between."""
        with Namespace() as here, Namespace() as there:
            veth = ("type", "veth", "peer", "name", "lab0")
            here.ip("-n", here.name, "link", "add", "lab0", *veth, "netns", there.name)
            for number, space in enumerate((here, there), 1):
                address = f"10.9.9.{number}/24"
                space.ip("-n", space.name, "address", "add", address, "dev", "lab0")
                space.ip("-n", space.name, "link", "set", "lab0", "up")
            yield here, there

    def test_vanished_side_is_found_with_a_byte_in_flight_or_without(self) -> None:
        with self.two_networks() as (here, there):
            far = there.call(lambda: self.backend(echo, host="10.9.9.2", timeout=300))
            near = here.call(lambda: self.backend(echo, timeout=300))

            def start(listen: str, server: str) -> Running:
                return self.start(
                    "load_balancer.py",
                    f"--listen={listen}",
                    f"--server={server}",
                    "--no-checks",
                    f"--workers={self.WORKERS}",
                    preexec_fn=here.enter,
                )

            inner = start("127.0.0.1:20001", far.address)
            outer = start("10.9.9.1:20002", near.address)
            talk: list[tuple[Running, str, socket.socket]] = []
            for balancer, space in ((inner, here), (outer, there)):
                for _ in range(2):
                    client = space.call(functools.partial(dial, balancer, 300))
                    self.addCleanup(client.close)
                    client.sendall(b"hello")
                    self.assertEqual(read_exactly(client, 5), b"hello")
                    talk.append((balancer, local_address(client), client))
            for space in (here, there):
                space.ip("-n", space.name, "link", "set", "lab0", "down")
            start_s = time.monotonic()
            talk[0][2].sendall(b"in flight to the server")
            # A server's last word, on its way to a client that is no more there.
            last = max(near.visits, key=lambda v: v.peer)
            last.send(b"in flight to the client")
            for balancer, name, _ in talk:
                left = self.FOUND_S - (time.monotonic() - start_s)
                ending = self.ending(balancer, name, max(1.0, left))
                expected = "sD" if balancer is inner else "cD"
                self.assertEqual(ending.code, expected, ending.line)
                self.assertRegex(ending.words, "vanished", ending.line)

    def test_client_that_pauses_in_its_reply_for_minutes_gets_all_of_it(self) -> None:
        reply = HEAD * 20

        def behave(visit: Visit) -> None:
            visit.send(reply)
            visit.socket.shutdown(socket.SHUT_WR)
            sink(visit)

        balancer = self.balance([self.backend(behave, timeout=300)])
        client = dial_small(balancer)
        self.addCleanup(client.close)
        received = read_exactly(client, 100)
        threading.Event().wait(self.FOUND_S)
        received += read_to_end(client)
        self.assertEqual(digest(received), digest(reply))

    def test_server_that_pauses_in_a_request_for_minutes_gets_all_of_it(self) -> None:
        request = HEAD * 20

        def behave(visit: Visit) -> None:
            visit.read(100)
            visit.pause(self.FOUND_S)
            sink(visit)

        backend = self.backend(behave, timeout=300, receive_buffer=SMALL_BUFFER)
        balancer = self.balance([backend])
        client = self.dial(balancer, timeout=300)
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(client.recv(1), b"")
        self.assertEqual(digest(backend.visit().received), digest(request))
