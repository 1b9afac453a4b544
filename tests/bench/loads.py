"""The loads: programs of others where there are any, else a small one of our own."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen

from tests.bench.figures import nearest_rank, parse_iperf3, parse_redis_benchmark
from tests.bench.machine import RunError, Stage
from tests.bench.subjects import Address, first_line

RUN_DEADLINE_S = 60.0
REPLY_DEADLINE_S = 10.0
PING, PONG = b"PING\r\n", b"+PONG\r\n"
OPENING_AT_ONCE = 64  # connections that wait for their first reply; no listen queue
PILOT_MESSAGES = 2_000  # enough to know the rate to a tenth


# ---- Programs of others ----------------------------------------------------------


def redis_benchmark(
    stage: Stage, address: Address, clients: int, messages: int, *, keep: bool = True
) -> tuple[dict[str, float], float]:
    """Run `redis-benchmark -t ping_inline`; return its figures and its CPU seconds."""
    command = f"redis-benchmark -h {address[0]} -p {address[1]} -t ping_inline --csv"
    command += f" -c {clients} -n {messages} -k {int(keep)}"
    done = stage.run(command.split(), RUN_DEADLINE_S)
    try:
        return parse_redis_benchmark(done.output), done.cpu_s
    except ValueError as error:
        raise RunError(str(error)) from None


def iperf3(
    stage: Stage, server: Address, target: Address, seconds: float, *, down: bool
) -> dict[str, float]:
    """Run `iperf3 -P 2` through `target` to a server started for it on `server`."""
    host, port = server
    listening = stage.start(["iperf3", "-s", "-1", "-B", host, "-p", str(port)])
    try:
        stage.wait_until_listening(listening, host, port)
        whole = max(1, round(seconds))  # iperf3 takes 0.7 for 0, which is for ever
        command = f"iperf3 -c {target[0]} -p {target[1]} -P 2 -t {whole} -J"
        done = stage.run([*command.split(), *["-R"] * down], RUN_DEADLINE_S)
        return parse_iperf3(done.output)
    except ValueError as error:
        raise RunError(str(error)) from None
    finally:
        stage.stop(listening)


# ---- Our own: one prober, and many held connections ------------------------------


def dial(address: Address) -> socket.socket:
    """Connect a client's socket, with a deadline on all that it does."""
    connection = socket.create_connection(address, REPLY_DEADLINE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def probe(address: Address, seconds: float) -> list[float]:
    """Exchange PINGs on one connection; return the ordered latencies in seconds.

    redis-benchmark gives its percentiles in steps of 8 µs, which is too coarse to
    see 5 % of 100 µs.
    """
    with dial(address) as connection:
        connection.settimeout(None)  # a timeout would cost a poll(2) per message
        set_receive_timeout(connection, REPLY_DEADLINE_S)
        send, receive, clock = connection.send, connection.recv, time.perf_counter_ns
        found = []
        end = clock() + int(seconds * 1e9)
        now = 0
        while now < end:
            sent = clock()
            send(PING)
            reply = receive(64)
            now = clock()
            if reply != PONG:
                raise RunError(f"{address[0]}:{address[1]} answered {reply!r}")
            found.append((now - sent) / 1e9)
    return sorted(found)


def set_receive_timeout(connection: socket.socket, seconds: float) -> None:
    """Bound every recv in the kernel (socket(7), SO_RCVTIMEO: a struct timeval)."""
    value = int(seconds).to_bytes(8, sys.byteorder) + bytes(8)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)


def p50(ordered: Sequence[float]) -> float:
    """Return the median by nearest rank."""
    return nearest_rank(ordered, 50)


class Held:
    """Opens many connections, proves each by one exchange, and keeps them idle."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._waiting: dict[int, socket.socket] = {}
        self._open: list[socket.socket] = []

    def open(self, count: int) -> float:
        """Open `count` connections; return the seconds until all had their reply."""
        started = time.perf_counter()
        with contextlib.closing(select.epoll()) as poller:
            while len(self._open) < count:
                self._start_some(poller, count)
                ready = poller.poll(REPLY_DEADLINE_S)
                if not ready:
                    have = len(self._open)
                    raise RunError(f"{have} of {count} connections open, then silence")
                for descriptor, events in ready:
                    self._advance(poller, descriptor, events)
        return time.perf_counter() - started

    def _start_some(self, poller: select.epoll, count: int) -> None:
        """Have as many connects under way as are allowed at once."""
        room = min(OPENING_AT_ONCE, count - len(self._open)) - len(self._waiting)
        for _ in range(room):
            connection = socket.socket()
            connection.setblocking(False)
            self._waiting[connection.fileno()] = connection
            result = connection.connect_ex(self._address)
            if result not in (0, errno.EINPROGRESS):
                raise RunError(f"cannot connect: {os.strerror(result)}")
            poller.register(connection, select.EPOLLOUT)

    def _advance(self, poller: select.epoll, descriptor: int, events: int) -> None:
        """Send on a connection that is connected; keep one that has its reply."""
        connection = self._waiting[descriptor]
        try:
            if events & select.EPOLLIN:
                if connection.recv(64) != PONG:
                    raise RunError("a held connection was closed or answered wrongly")
                poller.unregister(descriptor)
                self._open.append(self._waiting.pop(descriptor))
            else:
                connection.send(PING)
                poller.modify(descriptor, select.EPOLLIN)
        except OSError as error:
            have = len(self._open)
            raise RunError(f"{have} connections open, then: {error}") from None

    def close(self) -> None:
        """Close them all."""
        for connection in [*self._open, *self._waiting.values()]:
            connection.close()
        self._open.clear()
        self._waiting.clear()


# ---- Our own: lines to server2.py, from several processes ------------------------


@dataclass(slots=True)
class Exchanged:
    """What the generators did: exchanges, seconds, and their share of a core."""

    exchanges: int
    seconds: float
    cpu_share: float

    @property
    def rate(self) -> float:
        """Return exchanges per second."""
        return self.exchanges / self.seconds


@contextlib.contextmanager
def started(stage: Stage, argvs: list[list[str]]) -> Iterator[list[Popen[bytes]]]:
    """Start Python scripts that talk over standard input and output, and end them."""
    workers = []
    try:
        for argv in argvs:
            workers.append(stage.start([sys.executable, *argv], PIPE, PIPE))
        yield workers
    finally:
        for worker in workers:
            stage.stop(worker)


def generate(
    stage: Stage, address: Address, clients: int, seconds: float, *, redis: bool = False
) -> Exchanged:
    """Exchange lines on `clients` kept connections, from up to two processes.

    Each reply is compared with what it has to be. `redis` sends PING to a Redis
    instead: what the generators reach there is what they could reach at most.
    """
    script = str(Path(__file__).with_name("generator.py"))
    shares = [n for n in (clients - clients // 2, clients // 2) if n]
    args = [f"{address[0]}:{address[1]}", str(seconds), *["--redis"] * redis]
    with started(stage, [[script, *args, str(share)] for share in shares]) as workers:
        for worker in workers:  # all are connected
            first_line(stage, worker)
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(b"go\n")
            worker.stdin.flush()
        results = [first_line(stage, worker).split() for worker in workers]
    return Exchanged(
        exchanges=sum(int(r[0]) for r in results),
        seconds=max(float(r[1]) for r in results),
        cpu_share=max(float(r[2]) / float(r[1]) for r in results),
    )
