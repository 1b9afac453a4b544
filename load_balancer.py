#!/usr/bin/env python3
"""A TCP load balancer: one port in front, many servers behind, a thread per session.

    client ─► frontend :9990 ──► pool.pick() ─► connect ─► relay ◄─► server :9991
              accept, --allow    who is next    or the     bytes,           :9992
              (thread "accept")  (one lock)     next one   both ways        :9993

A session is a client's connection together with the one to its server; the log, the
figures and the page, made for people, call it a connection. Its life, by thread:

    accept          Frontend._begin      takes a client that was accepted
                    Frontend.dispatch    sends it to the server that Pool.pick chooses
    connection-N    Crew._read_header    with --accept-proxy: first back to "queue"
                    connect              fails: back to "queue", and to another server;
                                         nothing is retried once a byte was forwarded
                    Relay.run            moves bytes until both sides have ended;
                                         Direction._pass_end passes on a half-close
                    Relay._bury          one side died: its last bytes, then a reset
    queue           Queue._add           a connect failed: another server, before all
                                         others
                    Queue._dispatch_all  who waits: first come, first served
    any             Frontend.finish      frees the place, one line for the log

A server has `max` *places*, of which a session takes one from pick to end, or until its
connect fails. A *slot* is a session's row in the shared counters, and its name between
processes.

The other threads:

    MainThread      run                            starts all, waits, stops all
    signals         Signals._obey                  SIGHUP; SIGTERM, and a second one
    starter         Crew.start_threads_ahead       starts connection-N before they are
                                                   needed; it and they are a crew
    check-…         Checks._keep_checking          one per server HOST:PORT
    forgive         Checks._forgive                instead of them, with --no-checks
    resolve         Checks._follow                 names whose addresses change
    log             Log._write_lines
    status          StatusServer.serve_forever, and status-N for its client at port N
    worker-N        ProcessWorker._listen          hears a process, and replaces it

With `--workers N`, N above 1, there are N crews, each in a process of its own whose
MainThread is the starter. The main process forks them, and still accepts, picks,
limits, counts and logs. It passes the accepted socket on (unix(7), SCM_RIGHTS); the
crew, called a worker on this side, reports how the session ended. A process that dies
takes its sessions with it and is replaced. The byte counts of live sessions are in
shared memory.

To stop (`run`): `stopping`, no session begins; --grace seconds for the live ones; then
`cutting`, those left are reset (closed, if not connected yet); then `over`, threads and
processes end.

Bytes are never looked at. A direction that has moved much is spliced inside the kernel
(splice(2)) where the system can. An end of file is passed on as an end of file, a reset
as a reset, and neither before the bytes that came first have been delivered.

    python load_balancer.py
    python load_balancer.py --server 10.0.0.1:6379 --server 10.0.0.2:6379,max=100
    python load_balancer.py --status 127.0.0.1:8080 --workers 4 --algorithm leastconn

It does not speak TLS or HTTP to clients and servers, and keeps no state across a
restart.
"""

from __future__ import annotations

import argparse
import array
import base64
import bisect
import contextlib
import copy
import errno
import functools
import hashlib
import http.server
import ipaddress
import itertools
import json
import math
import mmap
import os
import pickle
import queue
import random
import select
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
import traceback
import urllib.parse
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn

try:
    import resource  # Unix only: how many descriptors this process may have
except ImportError:
    resource = None  # type: ignore[assignment]
try:
    import fcntl  # Unix only: asks the kernel what a socket has not delivered yet
    import termios
except ImportError:
    fcntl = None  # type: ignore[assignment]

READ_BYTES = 4096  # first reads: most messages are short, most connections idle
BUFFER_BYTES = 65536  # ... and at most; larger gains nothing before splicing takes over
PIPE_BYTES = 1048576  # the most that an unprivileged process may ask for (pipe(7))
SPLICE_ROUNDS = 16  # fills of the pipe before the other direction gets its turn
DROPPED_BYTES = 64 << 20  # sent to a dead side: more than buffers hold both ways
LISTEN_QUEUE = 4096  # the kernel lowers it to somaxconn (listen(2))
# A vanished peer is found after 60 + 4 x 15 s (tcp(7)).
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
PROXY_HEADER_TIMEOUT_S = 5.0  # at least 3 s, a retransmitted segment (proxy-protocol 2)
BACKOFF_S = 0.1  # pause of a listener when the system has run out of something
PENALTY_S = 10.0  # --no-checks: how long a server stays DOWN, then doubled
PENALTY_MAX_S = 300.0
SPARE_THREADS = 8  # at least so many wait for the next connection ...
MAX_SPARE_THREADS = 64  # ... and at most; the others end
STACK_BYTES = 262144  # enough for the relay; the default of 8 MiB is only address space
CUT_S = 1.0  # at a stop, after SHUT_RD, after SHUT_RDWR, and for workers to end
WORKER_STALL_S = 5.0  # a worker that takes nothing for so long is replaced
LOG_BATCH_S = 0.02  # a busy log is written in batches, not a wake-up for each line:
LOG_BURST_WRITES = 10  # ... busy after so many writes, each so soon after the last
LOG_BATCH_LINES = 256  # at most, by one write
LOG_BACKLOG_LINES = 100_000  # beyond that a stalled terminal or disk loses lines
OWN_DESCRIPTORS = 16  # standard streams, listener, log, what wakes the threads
STATUS_CONNECTIONS = 16  # at once; the oldest makes way for the newest
STATUS_TIMEOUT_S = 5.0
LIVE_LISTED = 200  # live connections listed by the status page, oldest first
MAX_SLOTS = 1 << 20  # of the shared counters: 32 MiB of address space

DEFAULT_PORTS = (9991, 9992, 9993)  # server2.py's, one after the other
ALGORITHMS = ("roundrobin", "leastconn", "source", "random")
UP, DOWN, DRAIN, MAINT = "UP", "DOWN", "DRAIN", "MAINT"
ADMIN = ("ready", "drain", "maint")  # what an operator can set a server to
CONNECT_BUCKETS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1, 2.5, 5),
)
CONNECT_BOUNDS = (*map(str, CONNECT_BUCKETS_S), "+Inf")
LOCAL_SHORTAGE = {  # what the system, not the server, has run out of
    *(errno.EMFILE, errno.ENFILE),  # descriptors
    *(errno.ENOBUFS, errno.ENOMEM),  # memory
    *(errno.EADDRNOTAVAIL, errno.EAGAIN),  # source ports (connect(2))
}
CONNECTING = {errno.EINPROGRESS, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS)}
NONBLOCKING: int = getattr(socket, "SOCK_NONBLOCK", 0)  # saves a system call
CAN_SPLICE = hasattr(os, "splice")
SPLICE_FLAGS = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)
CAN_SEND_SOCKETS = (  # to a forked process, by a pair of SOCK_SEQPACKET sockets
    hasattr(os, "fork") and hasattr(socket, "send_fds") and sys.platform == "linux"
)

SocketAddress = tuple[Any, ...]  # (host, port) or, for IPv6, (host, port, flow, scope)
Options = argparse.Namespace
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


# ---- Addresses and errors ------------------------------------------------------------
# Small helpers that know nothing of sessions.


def parse_address(text: str) -> tuple[str, int]:
    """Return (host, port) of "HOST:PORT" or "[IPv6]:PORT" (RFC 3986, 3.2.2)."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""  # an IPv6 address without brackets: its end is not a port
    if not (host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT (port 0 to 65535)")
    return host, int(port)


def format_address(address: tuple[Any, ...]) -> str:
    """Return "host:port" of a socket address, an IPv6 host in brackets."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(host: str, port: int) -> list[tuple[int, SocketAddress]]:
    """Return the (family, address) pairs of a host; raise OSError (getaddrinfo(3))."""
    kind, flags = socket.SOCK_STREAM, socket.AI_PASSIVE
    answers = socket.getaddrinfo(host, port, type=kind, flags=flags)
    return sorted({(int(family), address) for family, _, _, _, address in answers})


def plain_ip(host: str) -> Address:
    """Return the address of a host, an IPv4-mapped one as IPv4 (RFC 4291, 2.5.5.2)."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    return getattr(ip, "ipv4_mapped", None) or ip


def as_ipv6(ip: Address) -> ipaddress.IPv6Address:
    """Return an address as IPv6, an IPv4 one mapped (RFC 4291, 2.5.5.2)."""
    return ipaddress.IPv6Address(f"::ffff:{ip}" if ip.version == 4 else str(ip))


def is_in(networks: Iterable[Network], address: SocketAddress) -> bool:
    """Tell whether the address belongs to one of the networks."""
    ip = plain_ip(address[0])
    return any(ip in network for network in networks)


def say_why(error: OSError) -> str:
    """Return the reason of a failed call in lower-case words, without its number."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return "timed out"
    return (error.strerror or str(error) or type(error).__name__).lower()


def raise_descriptor_limit() -> int | None:
    """Raise the limit of open files as far as it goes; return it, None for no limit."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return None if soft == resource.RLIM_INFINITY else soft


def do_not_preempt() -> None:
    """Let a thread that wakes wait for the one that runs (sched(7), SCHED_BATCH)."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def count(number: int, noun: str) -> str:
    """Return "1 message" or "2 messages"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def usable_cores() -> int:
    """Return how many processor cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes the peer has not acknowledged (tcp(7), SIOCOUTQ)."""
    if fcntl is None or not hasattr(termios, "TIOCOUTQ"):
        return 0
    answer = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(sock, termios.TIOCOUTQ, answer)
    return answer[0]


def prepare(sock: socket.socket) -> None:
    """Send without waiting for more; find out when the peer has vanished (tcp(7))."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def reset_at_close(sock: socket.socket) -> None:
    """Let close send a reset, not an end of file (socket(7), SO_LINGER of 0 s)."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def shut_down(sock: socket.socket, how: int) -> None:
    """Let its thread find the end of what it reads or writes; never waits."""
    with contextlib.suppress(OSError):
        sock.shutdown(how)


def new_thread(name: str, target: Callable[..., None], *args: Any) -> threading.Thread:
    """Return a thread, not yet started, that does not keep the process alive."""
    return threading.Thread(target=target, name=name, args=args, daemon=True)


class SelectPoll:
    """The part of `select.poll` that is used here, for a system without it."""

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}

    def register(self, fd: int, mask: int) -> None:
        """Watch a descriptor, or watch it for something else."""
        self._masks[fd] = mask

    def unregister(self, fd: int) -> None:
        """Watch a descriptor no longer."""
        del self._masks[fd]

    def poll(self, timeout_ms: float | None = None) -> list[tuple[int, int]]:
        """Wait for one of the descriptors; an error shows as readable."""
        reading = [fd for fd, mask in self._masks.items() if mask & POLLIN]
        writing = [fd for fd, mask in self._masks.items() if mask & POLLOUT]
        wait_s = None if timeout_ms is None or timeout_ms < 0 else timeout_ms / 1000
        if not self._masks:
            threading.Event().wait(wait_s)  # Windows selects only among sockets
            return []
        r, w, x = select.select(reading, writing, list(self._masks), wait_s)
        ready = dict.fromkeys([*r, *x], POLLIN)
        for fd in w:
            ready[fd] = ready.get(fd, 0) | POLLOUT
        return list(ready.items())


POLLIN: int = getattr(select, "POLLIN", 1)
POLLOUT: int = getattr(select, "POLLOUT", 4)
POLLERR: int = getattr(select, "POLLERR", 8)
POLLHUP: int = getattr(select, "POLLHUP", 16)
new_poll: Callable[[], Any] = getattr(select, "poll", SelectPoll)


# ---- PROXY protocol: who the client really is ----------------------------------------
# https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, "PP" below. Configuration
# says whether a header comes; its absence or presence is never guessed (PP 2).

PROXY_V1_MAX_BYTES = 107  # with CRLF (PP 2.1)
PROXY_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"  # (PP 2.2)
PP2_CRC32C, PP2_UNIQUE_ID = 0x03, 0x05  # TLV types (PP 2.2.1, 2.2.5)


@dataclass(frozen=True, slots=True)
class Header:
    """The addresses of a PROXY header; None where it has none (LOCAL, UNKNOWN)."""

    source: tuple[str, int] | None = None
    destination: tuple[str, int] | None = None


def one_family(source: SocketAddress, destination: SocketAddress) -> list[Address]:
    """Return both addresses as IPv4, or both as IPv6: a header has one family."""
    hosts = [plain_ip(source[0]), plain_ip(destination[0])]
    both_4 = all(ip.version == 4 for ip in hosts)
    return hosts if both_4 else [as_ipv6(ip) for ip in hosts]


def proxy_v1(source: SocketAddress, destination: SocketAddress) -> bytes:
    """Return the version 1 line for a client's two addresses (PP 2.1)."""
    one, two = one_family(source, destination)
    line = f"PROXY TCP{one.version} {one} {two} {source[1]} {destination[1]}\r\n"
    return line.encode()


def proxy_v2(source: SocketAddress, destination: SocketAddress) -> bytes:
    """Return the version 2 header for a client's two addresses (PP 2.2)."""
    one, two = one_family(source, destination)
    family = 0x11 if one.version == 4 else 0x21
    body = one.packed + two.packed + struct.pack(">HH", source[1], destination[1])
    return PROXY_V2_SIGNATURE + struct.pack(">BBH", 0x21, family, len(body)) + body


PROXY_V2_LOCAL = PROXY_V2_SIGNATURE + b"\x20\0\0\0"  # "for myself": a check


def parse_proxy_v1(line: bytes) -> Header:
    """Return what a version 1 line says; raise ValueError with the rule it breaks."""
    if len(line) > PROXY_V1_MAX_BYTES or not line.endswith(b"\r\n"):
        raise ValueError("PROXY line without CRLF in its first 107 bytes")
    words = line[:-2].decode("ascii", "replace").split(" ")
    if words[:2] == ["PROXY", "UNKNOWN"]:
        return Header()
    if len(words) != 6 or words[0] != "PROXY" or words[1] not in ("TCP4", "TCP6"):
        form = "PROXY TCP4|TCP6 source destination port port"
        raise ValueError(f"PROXY line is not '{form}'")
    version = ipaddress.IPv4Address if words[1] == "TCP4" else ipaddress.IPv6Address
    if "%" in line.decode("ascii", "replace"):
        raise ValueError("PROXY line with a zone: addresses only")
    hosts = [str(version(word)) for word in words[2:4]]
    ports = [int(word) for word in words[4:] if word.isascii() and word.isdigit()]
    if [str(port) for port in ports] != words[4:] or max(ports) > 65535:
        raise ValueError("PROXY line has a port that is none")
    return Header((hosts[0], ports[0]), (hosts[1], ports[1]))


def crc32c(data: bytes) -> int:
    """Return the Castagnoli checksum of RFC 3720, appendix B.4, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def check_tlvs(header: bytes, start: int) -> None:
    """Raise ValueError when a version 2 header's TLVs are broken (PP 2.2.1-2.2.5)."""
    while start < len(header):
        kind, size = struct.unpack_from(">BH", header.ljust(start + 3, b"\xff"), start)
        value = header[start + 3 : start + 3 + size]
        if len(value) != size:
            raise ValueError("PROXY header with an extension that does not end in it")
        if kind == PP2_CRC32C:
            zeroed = header[: start + 3] + bytes(size) + header[start + 3 + size :]
            if size != 4 or int.from_bytes(value, "big") != crc32c(zeroed):
                raise ValueError("PROXY header with a wrong checksum")
        if kind == PP2_UNIQUE_ID and size > 128:
            raise ValueError("PROXY header with a unique id longer than 128 bytes")
        start += 3 + size


def parse_proxy_v2(header: bytes) -> Header:
    """Return what a version 2 header says; raise ValueError with the rule it breaks."""
    version, family = header[12] >> 4, header[13]
    command = header[12] & 15
    if not header.startswith(PROXY_V2_SIGNATURE):
        raise ValueError("no PROXY header")
    if version != 2 or command > 1:
        raise ValueError("PROXY header of an unknown version or command")
    if command == 0:  # LOCAL: a check of the sender's own; what follows is skipped
        return Header()
    sizes = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
    if family not in sizes or len(header) - 16 < sizes[family]:
        why = "PROXY header of an unknown family, or shorter than its family"
        raise ValueError(why)
    check_tlvs(header, len(header) if family == 0 else 16 + sizes[family])
    if family not in (0x11, 0x21):
        return Header()  # not TCP: the connection's own addresses hold
    half = sizes[family] // 2 - 2
    hosts = [header[16 : 16 + half], header[16 + half : 16 + 2 * half]]
    ports = struct.unpack_from(">HH", header, 16 + 2 * half)
    source, destination = (str(ipaddress.ip_address(host)) for host in hosts)
    return Header((source, ports[0]), (destination, ports[1]))


def read_proxy_header(sock: socket.socket, timeout_s: float) -> Header:
    """Take the PROXY header off a connection, and not one byte more.

    Raise ValueError when it is none, TimeoutError when it is not whole after
    `timeout_s` seconds, ConnectionError when the client ends first.
    """
    deadline = time.monotonic() + timeout_s

    def read(size: int, flags: int = 0) -> bytes:
        """Return the next bytes, `size` at most, before the deadline."""
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        data = sock.recv(size, flags)
        if not data:
            raise ConnectionError("closed inside the PROXY header")
        return data

    header = read(1)
    while header.startswith(b"P") and not header.endswith(b"\n"):
        ahead = read(PROXY_V1_MAX_BYTES - len(header), socket.MSG_PEEK)
        header += read(ahead.find(b"\n") + 1 or len(ahead))
        stray = b"\r" in header[:-2].removesuffix(b"\r")
        if stray or not b"PROXY ".startswith(header[:6]):
            raise ValueError("no PROXY header")
        if len(header) == PROXY_V1_MAX_BYTES:
            break
    if header.startswith(b"P"):
        return parse_proxy_v1(header)
    while len(header) < 16:
        if not PROXY_V2_SIGNATURE.startswith(header[:12]):
            raise ValueError("no PROXY header")
        header += read(16 - len(header))
    whole = 16 + int.from_bytes(header[14:16], "big")
    while len(header) < whole:
        header += read(whole - len(header))
    return parse_proxy_v2(header)


# ---- Servers: who is next ------------------------------------------------------------
# A server's settings, health and figures, and the rules by which one is chosen. Called
# by the pool, under its lock; the status page has copies.


@dataclass(eq=False, slots=True)
class Server:
    """One server: options, health and figures; guarded by the pool's lock."""

    name: str  # "host:port" as --server gives it
    family: int
    address: SocketAddress
    weight: int
    backup: bool
    max: int  # how many places: sessions at once; 0: no limit
    rise: int
    fall: int
    address_text: str = field(init=False)  # host:port, in the log and in the figures
    health: int = field(init=False)  # 0 … rise + fall - 1; UP at `rise` and above
    admin: str = ADMIN[0]  # what the operator has set it to
    gone: bool = False  # its name no longer resolves to it
    credit: int = 0  # smooth round robin: who has waited longest, by weight
    last_passed: bool = True  # the result of the last check or connect, ...
    in_a_row: int = 0  # ... and how often it was the same
    places_taken: int = 0
    total: int = 0  # connects made
    connect_failures: int = 0
    retries: int = 0
    to_server: int = 0  # bytes
    to_client: int = 0
    penalty_s: float = PENALTY_S  # for how long it stays DOWN, without checks
    failed_s: float = 0.0  # when a check or a client's connect failed last
    changed_s: float = field(default_factory=time.monotonic)
    last_check: str = "not checked yet"
    connect_s: float = 0.0  # sum, and how many fell into each of CONNECT_BUCKETS_S
    connects: list[int] = field(default_factory=lambda: [0] * len(CONNECT_BOUNDS))

    def __post_init__(self) -> None:
        self.address_text = format_address(self.address)
        self.health = self.top_health

    @property
    def top_health(self) -> int:
        """The best that its health can be."""
        return self.rise + self.fall - 1

    @property
    def is_healthy(self) -> bool:
        """Whether its health is good enough, whatever the operator says."""
        return self.health >= self.rise

    @property
    def state(self) -> str:
        """UP, DOWN, DRAIN or MAINT."""
        if self.gone:
            return DRAIN  # its live sessions go on
        if self.admin != "ready":
            return DRAIN if self.admin == "drain" else MAINT
        return UP if self.is_healthy else DOWN

    @property
    def has_place(self) -> bool:
        """Whether it is below its `max`."""
        return not self.max or self.places_taken < self.max

    def count_result(self, passed: bool) -> None:
        """Move the health by one pass or failure.

        One integer holds rise, fall and state: at `rise` and above the server is UP; a
        pass there jumps to the top, a failure below drops to 0 (HAProxy, check.c).
        """
        self.in_a_row = self.in_a_row + 1 if passed == self.last_passed else 1
        self.last_passed = passed
        if passed:
            self.penalty_s = PENALTY_S
            self.health += 1
            if self.is_healthy:
                self.health = self.top_health
        else:
            self.failed_s = time.monotonic()
            self.health = self.health - 1 if self.health > self.rise else 0

    def add_row(self, row: Row) -> None:
        """Add one session's counters."""
        self.to_server += row.to_server
        self.to_client += row.to_client
        if row.connect_ns:
            seconds = row.connect_ns / 1e9
            self.total += 1
            self.connect_s += seconds
            self.connects[bisect.bisect_left(CONNECT_BUCKETS_S, seconds)] += 1

    def copied(self) -> Server:
        """Return a copy, to be read without the lock."""
        twin = copy.copy(self)
        twin.connects = list(self.connects)
        return twin


def candidates(servers: list[Server], tried: list[Server]) -> tuple[list[Server], bool]:
    """Return who may be asked: UP servers, else a backup, else (fail open) any.

    The second value tells whether it came to that: no server is UP.
    """
    ready = [s for s in servers if s.admin == "ready" and s.weight and not s.gone]
    up = [s for s in ready if s.is_healthy]
    untried = [s for s in up or ready if s not in tried]
    if ready and not up:
        return untried, True
    # Without a server of the first rank the first backup serves all, like HAProxy.
    return [s for s in untried if not s.backup] or untried[:1], False


def choose(
    servers: list[Server], algorithm: str, host: str, rng: random.Random
) -> Server | None:
    """Return the one whose turn it is; None when those that could serve are full."""
    if algorithm == "source" and servers:
        servers = [max(servers, key=lambda s: rendezvous(host, s))]
    servers = [s for s in servers if s.has_place]
    if algorithm == "random" and len(servers) > 1:
        servers = rng.choices(servers, [s.weight for s in servers], k=2)
    if algorithm in ("leastconn", "random") and servers:
        least = min(s.places_taken / s.weight for s in servers)
        servers = [s for s in servers if s.places_taken / s.weight == least]
    return smooth_round_robin(servers) if servers else None


def smooth_round_robin(servers: list[Server]) -> Server:
    """Give each server its weight in credit, take the richest, make it pay for all.

    Weights 5:1:1 interleave (a a b a c a a) instead of bursting; a session that is
    retried charges the server that serves it, so a dead server's share spreads over all
    the rest.
    """
    for server in servers:
        server.credit += server.weight
    richest = max(servers, key=lambda s: s.credit)
    richest.credit -= sum(s.weight for s in servers)
    return richest


def rendezvous(host: str, server: Server) -> float:
    """Return the score of a server for a client's host: the highest score serves it.

    Losing one server moves only its own clients (Thaler and Ravishankar, 1998; weights
    by -w / ln h, Schindelhauer and Schomaker, 2005).
    """
    key = f"{plain_ip(host)} {server.address_text}".encode()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return -server.weight / math.log((number + 0.5) / 2**64)


# ---- Sessions and the pool: all that is shared ---------------------------------------
# Servers, sessions, limits and totals, under one lock. Nothing in here uses a socket,
# and nothing waits but the two `wait_…` and `move`.


class Row(NamedTuple):
    """What a session's counters say at a moment."""

    to_server: int  # bytes
    to_client: int
    last_ns: int  # when bytes last came from a side; 0: never connected
    connect_ns: int  # how long the connect took; 0: never connected


ROW_CELLS = len(Row._fields)
TO_SERVER, TO_CLIENT, LAST_NS, CONNECT_NS = range(ROW_CELLS)


class Counters:
    """A row of numbers per live session, in memory shared by all processes.

    Only the thread that relays a session writes its row, everyone may read it, and a
    row is given out again only after its session was reported as ended: so no lock is
    needed.
    """

    def __init__(self, rows: int) -> None:
        memory = mmap.mmap(-1, rows * ROW_CELLS * 8)  # shared with what we fork
        self._cells = memoryview(memory).cast("q")

    def cells(self, slot: int) -> memoryview:
        """Return a session's row, to be written."""
        return self._cells[slot * ROW_CELLS : (slot + 1) * ROW_CELLS]

    def read(self, slot: int) -> Row:
        """Return what a session's row says now."""
        return Row(*self.cells(slot))

    def clear(self, slot: int) -> None:
        """Set a row to zero, for the next session."""
        self.cells(slot)[:] = array.array("q", [0] * ROW_CELLS)


@dataclass(frozen=True, slots=True)
class End:
    """How a session ended: HAProxy's two letters, and the same in words.

    First who or what ended it, a small letter for a timeout; then when: in Data, with
    the Last bytes, while Connecting, in the Queue. README has the table.
    """

    code: str
    words: str
    # Bytes taken from one side that the other never acknowledged. After "--" the kernel
    # goes on delivering them, and nobody measures it: that would cost each connection.
    undelivered: int = 0

    @property
    def blames_server(self) -> bool:
        """Whether the server is at fault: not the client, not this machine."""
        return self.code[0] in "sS"

    @property
    def is_failure(self) -> bool:
        """Whether a session that was not connected counts as failed."""
        return self.code[0] not in "CPK"


# README's table. Who says those whose words depend on more:
#   CD SD cD sD CL cL    Relay: a side reset the connection, vanished, or was idle
#   SC sC RC             connect: refused, timed out, nothing left to connect with
#   PC                   refuse: --allow, --accept-proxy
#   ID                   Crew: a defect
CLOSED = End("--", "closed by both sides")
CUT = End("KD", "closed at shutdown")
CUT_CONNECTING = End("KC", "closed at shutdown")
CUT_QUEUED = End("KQ", "closed at shutdown")

LEFT_CONNECTING = End("CC", "client left while connecting")
LEFT_QUEUE = End("CQ", "client left the queue")
QUEUED_TOO_LONG = End("sQ", "no place at a server in time")
NO_DESCRIPTOR = End("RC", "no descriptor left for the connection")
WORKER_DIED = End("ID", "its worker process died")


def refuse(why: str) -> End:
    """Return how a client ends that may not come."""
    return End("PC", f"refused: {why}")


@dataclass(eq=False, slots=True)
class Session:
    """One client's connection, from accept to its line in the log.

    Owned by the thread that dispatches it ("accept", later "queue"), then by the worker
    that has it, then by the thread that ends it. What the figures show of it (`server`,
    `source`) changes under the pool's lock.
    """

    number: int
    slot: int  # its row in the shared counters
    worker: Worker
    source: SocketAddress  # the client, or whom its PROXY header names
    client_sock: socket.socket | None  # while no worker has it
    destination: SocketAddress | None = None  # as its PROXY header has it
    accepted_s: float = field(default_factory=time.monotonic)
    server: Server | None = None
    tried: list[Server] = field(default_factory=list)
    failure: End | None = None  # of the last connect that failed
    queued_s: float = 0.0  # since when it is in the queue


class LiveSession(NamedTuple):
    """What the figures show of a session."""

    source: SocketAddress
    server: Server | None
    accepted_s: float
    row: Row


@dataclass(slots=True)
class Totals:
    """What the pool counts since its start."""

    begun: int = 0  # sessions, and clients refused
    failed: int = 0
    refused: int = 0
    to_servers: int = 0  # bytes, of sessions that have ended
    to_clients: int = 0


class Snapshot(NamedTuple):
    """The figures of a moment."""

    now_s: float
    uptime_s: float
    stopping: bool
    queued: int
    totals: Totals
    servers: dict[Server, Server]  # each with a copy
    live: list[LiveSession]  # in the order in which they came


class Closing(NamedTuple):
    """What the pool says of a session that has ended, and what follows from it."""

    session: Session
    row: Row
    up_line: str  # for the log, when it brought its server UP
    others_wait: bool


class NoServerError(Exception):
    """No server is left that this session could be sent to."""


class Worker:
    """A crew as the frontend sees it; the pool's lock guards its first three fields."""

    def __init__(self, max_sessions: int) -> None:
        self.alive = True
        self.sessions = 0  # how many it has
        self.capacity = max_sessions  # of now: fewer when it cannot start threads
        self.max_sessions = max_sessions

    def start(self) -> None:
        """Start its threads."""

    def assign(self, job: Job) -> bool:
        """Pass a session on to the crew; False when its process takes none."""
        raise NotImplementedError

    def cut(self, how: int) -> None:
        """End all its sessions, by shutting down their sockets."""

    def stop(self) -> None:
        """Let its threads, or its process, end."""

    def join(self, timeout_s: float) -> None:
        """Wait until its process has ended; kill one that does not."""

    def kill(self) -> None:
        """Kill its process, whatever it is doing."""


class Pool:
    """Servers and sessions: who is next, who is at a limit, how much was moved.

    `_lock` guards the servers (list and fields), the sessions (dictionaries, lists and
    fields), the free slots, the workers' loads and the totals. `_changed` is notified
    when a session ends, a worker's capacity changes, or the pool is `stopping`: from
    then on no session begins, while the live ones may go on. The two events need no
    lock to be asked; they change under it.
    """

    def __init__(
        self, options: Options, slots: int, max_unconnected: int = MAX_SLOTS
    ) -> None:
        self.options = options
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._servers: list[Server] = list(options.servers)
        self.counters = Counters(slots)
        self.workers: list[Worker] = []
        self._capacity = 0  # of all live workers
        self._free_slots: list[int] = []
        self._next_slot = 0  # that was never given out
        self.limit = min(options.max_connections or slots, slots)
        # A client that is not connected to a server sits in the main process, or may
        # come back to it: for so many that has descriptors.
        self._max_unconnected = max_unconnected
        self._unconnected = 0  # at most so many there are: recounted at the limit
        self._sessions: dict[int, Session] = {}  # by slot, all that are live
        self._queued: set[int] = set()  # the slots of those that are in the queue
        self._queue_inbox: list[Session] = []  # those that thread "queue" has not seen
        self._random = random.Random()
        self._started_s = time.monotonic()
        self.stopping = threading.Event()
        self.fail_open = threading.Event()  # no server is UP: all are tried
        self._totals = Totals()

    # Choosing -------------------------------------------------------------------------

    def pick(self, session: Session) -> Server | None:
        """Choose the session's server and take a place there; None: it is queued.

        Raise NoServerError when all that could be tried have been. As long as others
        wait for a place, a new session waits behind them.
        """
        with self._lock:
            asked, fail_open = candidates(self._servers, session.tried)
            if fail_open != self.fail_open.is_set():
                (self.fail_open.set if fail_open else self.fail_open.clear)()
            if session.tried and not asked:
                raise NoServerError
            is_new = session.slot not in self._queued
            # Without a `max` nobody waits while a server may be asked: who is queued is
            # on its way.
            overtakes = self._queued and is_new and any(s.max for s in asked)
            server = None
            if not overtakes:
                algorithm, host = self.options.algorithm, session.source[0]
                server = choose(asked, algorithm, host, self._random)
            if server is not None:
                server.places_taken += 1
                if session.tried:
                    session.tried[-1].retries += 1  # where it failed: HAProxy's wretr
                session.server, session.queued_s = server, 0.0
                self._queued.discard(session.slot)
            elif is_new:
                self._enqueue_locked(session)
            return server

    def _enqueue_locked(self, session: Session) -> None:
        session.queued_s = time.monotonic()
        self._queued.add(session.slot)
        self._queue_inbox.append(session)

    def newly_queued(self) -> list[Session]:
        """Return the sessions queued since the last call."""
        with self._lock:
            inbox, self._queue_inbox = self._queue_inbox, []
            return inbox

    def has_free_place(self) -> bool:
        """Tell whether any server has a place, one that is DOWN or a backup, too."""
        with self._lock:
            ready = (s for s in self._servers if s.admin == "ready" and not s.gone)
            return any(s.weight and s.has_place for s in ready)

    # Sessions -------------------------------------------------------------------------

    def wait_until_may_begin(self) -> bool:
        """Wait until one more session may begin; False when the pool stops."""
        with self._lock:
            while not self.stopping.is_set():
                if len(self._sessions) < min(self.limit, self._capacity):
                    if self._has_descriptor_locked():
                        return True
                    self._changed.wait(BACKOFF_S)  # nobody tells of a connect
                else:
                    self._changed.wait()
            return False

    def _has_descriptor_locked(self) -> bool:
        """Tell whether the main process could hold one more unconnected client.

        `_unconnected` only grows, as nobody tells of a connect, until it is too much:
        then the rows are asked.
        """
        if self._unconnected >= self._max_unconnected:
            rows = map(self.counters.read, self._sessions)
            self._unconnected = sum(not row.connect_ns for row in rows)
        return self._unconnected < self._max_unconnected

    def begin(self, client_sock: socket.socket, peer: SocketAddress) -> Session:
        """Begin a session: give it a number, a slot and a worker."""
        with self._lock:
            self._totals.begun += 1
            self._unconnected += 1
            if not self._free_slots:
                self._free_slots.append(self._next_slot)
                self._next_slot += 1
            slot = self._free_slots.pop()
            self.counters.clear(slot)
            worker = self._least_busy_locked()
            worker.sessions += 1
            session = Session(self._totals.begun, slot, worker, peer, client_sock)
            self._sessions[slot] = session
            return session

    def _least_busy_locked(self) -> Worker:
        """Return the live worker that is least full, the first among equals."""
        alive = [w for w in self.workers if w.alive] or self.workers
        return min(alive, key=lambda w: w.sessions / w.capacity)

    def move(self, session: Session) -> bool:
        """Give the session another worker: its own died before it took the client.

        Wait for one if none is alive; False when the pool stops before.
        """
        with self._lock:
            self._changed.wait_for(lambda: self._capacity or self.stopping.is_set())
            if not self._capacity:
                return False
            session.worker.sessions -= 1
            session.worker = self._least_busy_locked()
            session.worker.sessions += 1
            return True

    def name_client(
        self, slot: int, client_sock: socket.socket, header: Header
    ) -> SocketAddress | None:
        """Take a session back and note who its client is; None when it has ended."""
        with self._lock:
            session = self._sessions.get(slot)
            if session is None:
                return None
            session.client_sock = client_sock
            if header.source and header.destination:
                session.source, session.destination = header.source, header.destination
            return session.source

    def enqueue(self, slot: int) -> None:
        """Let a session wait for its turn to be sent to a server."""
        with self._lock:
            if session := self._sessions.get(slot):
                self._enqueue_locked(session)

    def requeue(
        self, slot: int, client_sock: socket.socket, failure: End
    ) -> Server | None:
        """Take a session off the server that it could not be connected to.

        Return that server; None when the session has ended meanwhile.
        """
        with self._lock:
            session = self._sessions.get(slot)
            if session is None or session.server is None:
                return None
            server, session.server = session.server, None
            server.places_taken -= 1
            server.connect_failures += failure.blames_server
            session.tried.append(server)
            session.failure = failure
            session.client_sock = client_sock
            self._enqueue_locked(session)
            return server

    def end(self, slot: int, end: End) -> Closing | None:
        """End a session: count it, free its place at its server, relieve its worker.

        None when it has ended already: at shutdown that happens.
        """
        with self._lock:
            session = self._sessions.pop(slot, None)
            if session is None:
                return None
            row = self.counters.read(slot)
            session.queued_s = 0.0
            self._queued.discard(slot)
            self._free_slots.append(slot)
            session.worker.sessions -= 1
            self._totals.to_servers += row.to_server
            self._totals.to_clients += row.to_client
            self._totals.refused += end.code == "PC"
            self._totals.failed += not row.connect_ns and end.is_failure
            up_line = ""
            if session.server is not None:
                session.server.places_taken -= 1
                session.server.add_row(row)
                up_line = self._note_success_locked(session, session.server, row)
            self._changed.notify_all()
            return Closing(session, row, up_line, bool(self._queued))

    def sessions(self) -> list[tuple[Session, Row]]:
        """Return the live sessions and their counters, the oldest first."""
        with self._lock:
            return [(s, self.counters.read(s.slot)) for s in self._sessions.values()]

    def count_refused(self) -> None:
        """Count a client that may not come."""
        with self._lock:
            self._totals.begun += 1
            self._totals.refused += 1

    def add_worker(self, worker: Worker) -> None:
        """Let a worker have sessions; called before any begins."""
        with self._lock:
            self.workers.append(worker)
            self._sum_up_locked()

    def set_capacity(self, worker: Worker, threads: int | None) -> None:
        """Say for how many sessions a worker has threads; None: for all it may have."""
        with self._lock:
            worker.capacity = max(
                1, worker.max_sessions if threads is None else threads
            )
            self._sum_up_locked()

    def set_alive(self, worker: Worker, alive: bool) -> None:
        """Say whether a worker can take sessions, or its process died."""
        with self._lock:
            worker.alive = alive
            self._sum_up_locked()

    def _sum_up_locked(self) -> None:
        self._capacity = sum(w.capacity for w in self.workers if w.alive)
        self._changed.notify_all()

    def stop(self) -> None:
        """Begin no more sessions."""
        with self._lock:
            self.stopping.set()
            self._changed.notify_all()

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until no session is live; False when one is after `timeout_s`."""
        with self._lock:
            return self._changed.wait_for(lambda: not self._sessions, timeout_s)

    # Health ---------------------------------------------------------------------------

    def record_check(self, server: Server, passed: bool | None, result: str) -> str:
        """Note the result of a check, None: no result; return a line for a change."""
        with self._lock:
            server.last_check = result
            if passed is None:
                return ""
            return self._count_result_locked(server, passed, result)

    def record_connect_failure(self, server: Server, why: str) -> str:
        """Hold a client's failed connect against its server, like a failed check.

        Only failures in a row count: a live session may have been connected meanwhile.
        """
        with self._lock:
            if server.is_healthy and self._has_connected_since_locked(server):
                server.count_result(True)
            return self._count_result_locked(server, False, why)

    def _has_connected_since_locked(self, server: Server) -> bool:
        """Tell whether a live session was connected after the server's last failure."""
        for session in reversed(self._sessions.values()):  # the newest first
            if session.accepted_s <= server.failed_s:
                break
            if session.server is server and self.counters.read(session.slot).connect_ns:
                return True
        return False

    def _note_success_locked(self, session: Session, server: Server, row: Row) -> str:
        """Let a session that was connected speak for its server, like a check."""
        # One that is older than the last failure says nothing of now.
        fresh = session.accepted_s > server.failed_s
        if not row.connect_ns or not fresh or server.health >= server.top_health:
            return ""
        return self._count_result_locked(server, True, "connected for a client")

    def _count_result_locked(self, server: Server, passed: bool, result: str) -> str:
        before, needed = server.state, server.rise if passed else server.fall
        server.count_result(passed)
        checks = f"{min(server.in_a_row, needed)}/{needed}"
        return self._say_change_locked(server, before, result, checks)

    def set_admin(self, address_text: str, admin: str) -> str | None:
        """Set a server ready, drain or maint; return a line if its state changed.

        None when there is no such server.
        """
        with self._lock:
            for server in self._servers:
                if server.address_text == address_text and not server.gone:
                    before, server.admin = server.state, admin
                    why = f"set to {admin} by the operator"
                    return self._say_change_locked(server, before, why, "0/0")
            return None

    def forgive(self) -> list[str]:
        """Call servers UP again whose penalty is over; return a line for each one.

        One more failed connect takes it DOWN again, twice as long (Envoy's ejection).
        """
        lines = []
        with self._lock:
            for server in self._servers:
                waited_s = time.monotonic() - server.changed_s
                if server.state == DOWN and waited_s >= server.penalty_s:
                    why = f"tried again after {server.penalty_s:.0f} s without checks"
                    server.penalty_s = min(2 * server.penalty_s, PENALTY_MAX_S)
                    server.health, server.in_a_row = server.rise, 0
                    lines.append(self._say_change_locked(server, DOWN, why, "0/0"))
        return lines

    def is_up(self) -> bool:
        """Tell whether any server is UP."""
        with self._lock:
            return any(server.state == UP for server in self._servers)

    def servers(self) -> list[Server]:
        """Return the servers of this moment, without those whose address is gone."""
        with self._lock:
            return [s for s in self._servers if not s.gone]

    def has(self, server: Server) -> bool:
        """Tell whether the server is one of ours, though its address may be gone."""
        with self._lock:
            return server in self._servers

    def wants_check(self, server: Server) -> bool:
        """Tell whether to check it: not in maintenance, its address not gone."""
        with self._lock:
            return server.admin != "maint" and not server.gone

    def _say_change_locked(
        self, server: Server, before: str, why: str, checks: str
    ) -> str:
        """Return a line for the log if the state is not what it was before."""
        if server.state == before:
            return ""
        server.changed_s = time.monotonic()
        return self._say_locked(server, why, checks)

    def _say_locked(self, server: Server, why: str, checks: str) -> str:
        present = [s for s in self._servers if not s.gone]
        up = sum(s.state == UP for s in present)
        return (
            f'server={server.address_text} state={server.state} reason="{why}" '
            f"checks={checks} up={up}/{len(present)}"
        )

    def move_name(
        self, name: str, resolved: list[tuple[int, SocketAddress]]
    ) -> tuple[list[Server], list[str]]:
        """Bring a name's servers in line with its addresses.

        Return the new ones, and a line for the log for each one new, gone or back. An
        address that is gone gets no new session; its live ones go on.
        """
        with self._lock:
            known = [s for s in self._servers if s.name == name]
            # The first of each name is kept for its settings, also when it is gone.
            models = {s.name: s for s in reversed(self._servers)}
            model = models[name]
            settings = (model.weight, model.backup, model.max, model.rise, model.fall)
            # Not those that another name has now.
            taken = [s.address for s in self._servers if not s.gone or s.name == name]
            added = [
                Server(name, family, address, *settings)
                for family, address in resolved
                if address not in taken
            ]
            others = [s.address for s in self._servers if not s.gone and s.name != name]
            changed = [
                s
                for s in known
                if s.gone == ((s.family, s.address) in resolved)
                and not (s.gone and s.address in others)
            ]
            for server in changed:
                server.gone = not server.gone
                server.last_check = f"{name} has moved" if server.gone else "is back"
                server.changed_s = time.monotonic()
            self._servers = [
                s
                for s in self._servers
                if not s.gone or s.places_taken or s is models[s.name]
            ]
            self._servers += added
            why = f"{name} has moved"
            return added, [self._say_locked(s, why, "0/0") for s in changed + added]

    # Figures --------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return copies of what the status page shows."""
        now_s, read = time.monotonic(), self.counters.read
        with self._lock:
            present = {s.address: s for s in self._servers if s.gone and s.places_taken}
            present |= {s.address: s for s in self._servers if not s.gone}
            return Snapshot(
                now_s,
                now_s - self._started_s,
                self.stopping.is_set(),
                len(self._queued),
                replace(self._totals),
                {server: server.copied() for server in present.values()},
                [
                    LiveSession(s.source, s.server, s.accepted_s, read(s.slot))
                    for s in self._sessions.values()
                ],
            )


# ---- Frontend and queue: accept, dispatch, finish ------------------------------------
# The life of a session outside its crew. Thread "accept" begins sessions and sends them
# to a server; thread "queue" does so with those that wait or come back; crews report.


class Frontend:
    """The listening side: it sends sessions to the crews, and hears of them."""

    def __init__(self, listener: socket.socket, pool: Pool, log: Log) -> None:
        self.options, self.pool, self.log = pool.options, pool, log
        self.cutting = threading.Event()  # whoever is still queued is closed
        self.over = threading.Event()  # ends what waits between two tries
        # Set by `exit_now`: the other threads go on until the process ends, and must
        # not find the sockets closed that they look at.
        self._exits = False
        self._listener = listener
        listener.setblocking(False)
        # What is sent into the second socket wakes the thread at the first.
        self._wake_pair = socket.socketpair()
        self._thread = new_thread("accept", self._accept_clients)
        self.queue = Queue(self)

    def start(self) -> None:
        """Start the threads "accept" and "queue"."""
        self._thread.start()
        self.queue.start()

    def _accept_clients(self) -> None:
        """Thread "accept": begin a session for every client, within the limits."""
        poll = new_poll()
        poll.register(self._listener.fileno(), POLLIN)
        poll.register(self._wake_pair[0].fileno(), POLLIN)
        while self.pool.wait_until_may_begin():
            try:
                client_sock, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                poll.poll()
            except OSError as error:
                words = f"cannot accept: {say_why(error)}; live connections go on"
                self.log.warn("accept", words)
                self.over.wait(BACKOFF_S)
            else:
                self._begin(client_sock, peer)

    def _begin(self, client_sock: socket.socket, peer: SocketAddress) -> None:
        """Begin a session with a client, or refuse it."""
        trusted = self.options.accept_proxy
        if trusted and not is_in(trusted, peer):
            self._refuse(client_sock, peer, "not in --accept-proxy")
        elif not trusted and self._is_barred(peer):
            self._refuse(client_sock, peer, "not in --allow")
        else:
            session = self.pool.begin(client_sock, peer)
            if trusted:  # its PROXY header says who it is
                self._assign(session, None)
            elif not self.dispatch(session):
                self.queue.wake()

    def _is_barred(self, source: SocketAddress) -> bool:
        return bool(self.options.allow) and not is_in(self.options.allow, source)

    def _refuse(
        self, client_sock: socket.socket, peer: SocketAddress, why: str
    ) -> None:
        client_sock.close()
        self.pool.count_refused()
        self.log.line(end_line(peer, None, 0, Row(0, 0, 0, 0), 0.0, refuse(why)))

    # To a server ----------------------------------------------------------------------

    def dispatch(self, session: Session) -> bool:
        """Send a session to a server, or end it; False: it is queued for a place.

        By thread "accept" for a new session, by thread "queue" for all others.
        """
        if self.cutting.is_set():
            self.finish(session.slot, CUT_QUEUED)
            return True
        try:
            server = self.pool.pick(session)
        except NoServerError:
            assert session.failure is not None  # it has tried one at least
            self.finish(session.slot, session.failure)
            return True
        if self.pool.fail_open.is_set():
            self.log.warn("open", "no server is UP: every server is tried")
        if server is not None:
            self._assign(session, server)
        return server is not None

    def _assign(self, session: Session, server: Server | None) -> None:
        """Pass a session on to its worker: to connect a server, or to read a header."""
        client_sock, session.client_sock = session.client_sock, None
        assert client_sock is not None  # whoever dispatches a session has its client
        target = self._target(session, client_sock, server) if server else None
        job = Job(client_sock, session.slot, session.number, target)
        while not session.worker.assign(job):  # its process died before it took it
            if not self.pool.move(session):
                session.client_sock = client_sock
                self.finish(session.slot, WORKER_DIED)
                break

    def _target(
        self, session: Session, client_sock: socket.socket, server: Server
    ) -> Target:
        preface = b""
        if self.options.send_proxy:
            destination = session.destination or client_sock.getsockname()
            header = proxy_v1 if self.options.send_proxy == "v1" else proxy_v2
            preface = header(session.source, destination)
        return Target(server.family, server.address, preface)

    # What crews report ----------------------------------------------------------------

    def take_back(
        self, slot: int, client_sock: socket.socket, outcome: End | Header
    ) -> None:
        """Take a session from its crew: unconnected, or with its PROXY header read."""
        if isinstance(outcome, Header):
            self._queue_named(slot, client_sock, outcome)
        else:
            self._try_another(slot, client_sock, outcome)

    def _queue_named(
        self, slot: int, client_sock: socket.socket, header: Header
    ) -> None:
        """Let a session be sent to a server, now that its PROXY header was read."""
        source = self.pool.name_client(slot, client_sock, header)
        if source is None:
            client_sock.close()  # ended at shutdown
        elif self._is_barred(source):
            self.finish(slot, refuse("not in --allow"))
        else:
            self.pool.enqueue(slot)
            self.queue.wake()

    def _try_another(self, slot: int, client_sock: socket.socket, failure: End) -> None:
        """Let a session be sent to another server: it could not be connected to its."""
        server = self.pool.requeue(slot, client_sock, failure)
        if server is None:
            client_sock.close()  # ended at shutdown
            return
        if failure.blames_server:
            self.log.line(self.pool.record_connect_failure(server, failure.words))
        self._warn_of_shortage(failure)
        self.queue.wake()

    def _warn_of_shortage(self, end: End) -> None:
        if end.code == "RC":
            self.log.warn("shortage", f"{end.words}; live connections go on")

    def limit_worker(self, worker: Worker, threads: int | None, why: str) -> None:
        """Send a worker no more sessions than it has threads for; None: as before."""
        self.pool.set_capacity(worker, threads)
        if threads is not None:
            words = f"cannot start a thread: {why}; live connections go on"
            self.log.warn("thread", words)

    def worker_died(self, number: int, code: int, slots: Sequence[int]) -> None:
        """End the sessions that went down with a worker process."""
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        self.log.line(
            f"worker={number} died by {cause} with {count(len(slots), 'connection')}, "
            "and is replaced"
        )
        for slot in slots:
            self.finish(slot, WORKER_DIED)

    def finish(self, slot: int, end: End) -> None:
        """Count and log a session that has ended, let the next one in."""
        closing = self.pool.end(slot, end)
        if closing is None:
            return  # all were ended at shutdown
        session, row, up_line, others_wait = closing
        if session.client_sock is not None and not self._exits:
            session.client_sock.close()
        self._warn_of_shortage(end)
        if not self.log.silent:
            tries = len(session.tried) + (session.server is not None)
            seconds = time.monotonic() - session.accepted_s
            server = session.server
            self.log.line(end_line(session.source, server, tries, row, seconds, end))
        self.log.line(up_line)
        if others_wait:
            self.queue.wake()

    # Stopping -------------------------------------------------------------------------

    def stop_accepting(self) -> None:
        """Take no more clients; those in the listen queue are reset, if it is ours."""
        self.pool.stop()
        self._wake_pair[1].send(b".")
        self._thread.join()
        self._listener.close()

    def stop(self) -> None:
        """End whatever is still live, then the threads and processes."""
        workers = self.pool.workers
        self.cutting.set()
        self.queue.wake()
        for how in (socket.SHUT_RD, socket.SHUT_RDWR):
            for worker in workers:
                worker.cut(how)
            if self.pool.wait_until_empty(CUT_S):
                break
        self.over.set()
        self.queue.stop()
        for worker in workers:
            worker.stop()
        deadline = time.monotonic() + CUT_S
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self._finish_all()
        self.close()

    def _finish_all(self) -> None:
        """Log the sessions that nobody else will end any more."""
        for session, row in self.pool.sessions():
            connecting = CUT_CONNECTING if session.server else CUT_QUEUED
            self.finish(session.slot, CUT if row.connect_ns else connecting)

    def exit_now(self) -> NoReturn:
        """Thread "signals": asked twice to stop, wait for nothing but the log."""
        self._exits = True
        self.kill_workers()
        self._finish_all()
        self.log.close()
        os._exit(0)

    def kill_workers(self) -> None:
        """Kill the processes of all workers."""
        for worker in self.pool.workers:
            worker.kill()

    def close(self) -> None:
        """Close the descriptors of the frontend itself."""
        self._listener.close()
        for sock in self._wake_pair:
            sock.close()
        self.queue.close()


class Queue:
    """Sessions without a server, in the order in which they came.

    Each has its `client_sock`; the tests for None are for the type checker. They came
    back from reading a PROXY header or from a connect that failed, or wait
    for a place. Only thread "queue" touches the fields; `_lock` guards the second
    socket of `_wake_pair`, which anybody may use until it is closed.
    """

    def __init__(self, frontend: Frontend) -> None:
        self._frontend, self._pool = frontend, frontend.pool
        self._timeout_s: float = frontend.options.queue_timeout
        self._by_source = frontend.options.algorithm == "source"
        self._sessions: list[Session] = []  # by number
        self._deadlines: deque[tuple[float, Session]] = deque()  # (queued_s, session)
        self._watched: dict[int, Session] = {}  # by their client's descriptor
        self._poll = new_poll()
        self._lock = threading.Lock()
        self._wake_pair = socket.socketpair()
        for sock in self._wake_pair:
            sock.setblocking(False)
        self._poll.register(self._wake_pair[0].fileno(), POLLIN)
        self._thread = new_thread("queue", self._run)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Have another look: somebody came, or a place may be free."""
        with self._lock, contextlib.suppress(OSError):  # full: it has been woken
            self._wake_pair[1].send(b".")

    def stop(self) -> None:
        """End the thread; the frontend is `over`."""
        self.wake()
        self._thread.join()

    def close(self) -> None:
        """Close its descriptors; waking does nothing from now on."""
        with self._lock:
            for sock in self._wake_pair:
                sock.close()

    def _run(self) -> None:
        """Thread "queue": first come, first served; notice who leaves or waits long."""
        while not self._frontend.over.is_set():
            for session in self._pool.newly_queued():
                self._add(session)
            self._dispatch_all()
            for fd, mask in self._poll.poll(self._expire()):
                if watched := self._watched.get(fd):
                    self._see_client(fd, mask, watched)
                elif fd == self._wake_pair[0].fileno():
                    self._wake_pair[0].recv(4096)

    def _add(self, session: Session) -> None:
        """Take in a session; one that comes back is dispatched before all others.

        It may have no server left to try, or one that nobody else waits for.
        """
        if session.tried and self._frontend.dispatch(session):
            return
        bisect.insort(self._sessions, session, key=number_of)
        if self._timeout_s:
            self._deadlines.append((session.queued_s, session))
        if session.client_sock is not None:
            fd = session.client_sock.fileno()
            self._watched[fd] = session
            self._poll.register(fd, POLLIN)

    def _dispatch_all(self) -> None:
        """Dispatch who can be, in order, until there is no place left.

        A session may find none while others would: it has tried that server, or is not
        to go there (source). Once one that has tried no server finds none, only those
        that have may still pass; with source, anybody may.
        """
        index, only_retries = 0, False
        while index < len(self._sessions):
            session = self._sessions[index]
            fd = session.client_sock.fileno() if session.client_sock else -1
            stays = only_retries and not session.tried
            if stays or not self._frontend.dispatch(session):
                if not self._pool.has_free_place():
                    break
                only_retries |= not (self._by_source or session.tried)
                index += 1
            else:
                self._remove(session, fd)

    def _remove(self, session: Session, fd: int) -> None:
        """Forget a session that has been dispatched or has ended."""
        index = bisect.bisect_left(self._sessions, session.number, key=number_of)
        del self._sessions[index]
        if self._watched.pop(fd, None):
            self._poll.unregister(fd)

    def _finish(self, session: Session, fd: int, end: End) -> None:
        self._remove(session, fd)
        self._frontend.finish(session.slot, end)

    def _expire(self) -> float | None:
        """End who has waited too long; return when to look again, in ms."""
        while self._deadlines:
            queued_s, session = self._deadlines[0]
            wait_s = queued_s + self._timeout_s - time.monotonic()
            if session.queued_s == queued_s:  # it has not left meanwhile
                if wait_s > 0:
                    return wait_s * 1000 + 1
                fd = session.client_sock.fileno() if session.client_sock else -1
                self._finish(session, fd, QUEUED_TOO_LONG)
            self._deadlines.popleft()
        return None

    def _see_client(self, fd: int, mask: int, session: Session) -> None:
        """See why poll names a client: it has left, or only sent something."""
        client_sock = session.client_sock
        if mask & (POLLERR | POLLHUP) or client_sock is None or has_left(client_sock):
            self._finish(session, fd, LEFT_QUEUE)
        else:
            self._poll.register(fd, 0)  # it has sent: from now on only errors matter


def number_of(session: Session) -> int:
    """Return a session's number, by which the queue is in order."""
    return session.number


def end_line(
    source: SocketAddress,
    server: Server | None,
    tries: int,
    row: Row,
    seconds: float,
    end: End,
) -> str:
    """Return the line of the log that a session ends with."""
    connect_ms = f"{row.connect_ns / 1e6:.2f}" if row.connect_ns else "-"
    return (
        f"client={format_address(source)} "
        f"server={server.address_text if server else '-'} tries={tries} "
        f"connect_ms={connect_ms} duration_ms={seconds * 1000:.1f} "
        f"to_server={row.to_server} to_client={row.to_client} "
        f"undelivered={end.undelivered} end={end.code} {end.words}"
    )


# ---- Crew: a thread for every session ------------------------------------------------
# Threads wait for the next session rather than being started by it, and more start
# whenever few are left waiting: so no client waits for a thread to come to life.
#
# What becomes of a session, a crew tells by one of two calls:
#
#   Crew._close      ─► Frontend.finish(slot, end)
#   Crew._hand_back  ─► Frontend.take_back(slot, client_sock, outcome) ─► thread "queue"
#
# In a process of its own a crew calls `CrewProcess`, which makes a message of it, and
# `ProcessWorker._hear` in the main process makes the call.


class Target(NamedTuple):
    """The server that a client is to be connected to."""

    family: int
    address: SocketAddress
    preface: bytes  # the PROXY header that it is sent first


@dataclass(frozen=True, slots=True)
class Job:
    """A session as a crew gets it."""

    client_sock: socket.socket
    slot: int
    number: int
    target: Target | None  # None: read the PROXY header, then hand it back


Finish = Callable[[int, End], None]
# With the client: unconnected, and why, or named by its PROXY header.
TakeBack = Callable[[int, socket.socket, End | Header], None]
# No more than so many threads can run now, and why; None: no longer so.
LimitThreads = Callable[[int | None, str], None]


class ConnectFailedError(Exception):
    """No connection to the server: with this end, if no other server can be tried."""

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.end = end


def has_left(client_sock: socket.socket) -> bool:
    """Tell whether a waiting client has gone: reset, or ended without a byte."""
    try:
        return client_sock.recv(1, socket.MSG_PEEK) == b""
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True


def connect(
    target: Target, client_sock: socket.socket, timeout_s: float
) -> tuple[socket.socket, bool]:
    """Connect to the server while watching the client; raise ConnectFailedError.

    Return the socket, and whether the server has reset it since: what it had sent is
    still there to be read, but the error is not, now that SO_ERROR has told of it.
    """
    try:
        server_sock = socket.socket(target.family, socket.SOCK_STREAM | NONBLOCKING)
    except OSError as error:
        raise ConnectFailedError(End("RC", f"no socket: {say_why(error)}")) from None
    try:
        if not NONBLOCKING:
            server_sock.setblocking(False)
        code = server_sock.connect_ex(target.address)
        if code in CONNECTING:
            code = wait_connected(server_sock, client_sock, timeout_s)
        if code == errno.ECONNRESET:  # a refusal would be ECONNREFUSED
            return server_sock, True
        if code:
            raise ConnectFailedError(connect_failure(code))
        prepare(server_sock)
        if target.preface:
            server_sock.send(target.preface)  # one segment, before all else (PP 2)
        return server_sock, False
    except OSError as error:
        server_sock.close()
        raise ConnectFailedError(End("SC", say_why(error))) from None
    except ConnectFailedError:
        server_sock.close()
        raise


def connect_failure(code: int) -> End:
    """Return the end that an error number of connect(2) means."""
    words = say_why(OSError(code, os.strerror(code)))
    if code in LOCAL_SHORTAGE:
        return End("RC", f"cannot connect: {words}")
    return End("sC" if code == errno.ETIMEDOUT else "SC", words)


def wait_connected(
    server_sock: socket.socket, client_sock: socket.socket, timeout_s: float
) -> int:
    """Wait for a connect to end; return its error number, 0 for success."""
    deadline = time.monotonic() + timeout_s
    poll = new_poll()
    poll.register(server_sock.fileno(), POLLOUT)
    poll.register(client_sock.fileno(), POLLIN)
    while True:
        ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if server_sock.fileno() in ready:
            return server_sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not ready:
            return errno.ETIMEDOUT
        if ready[client_sock.fileno()] & (POLLERR | POLLHUP) or has_left(client_sock):
            raise ConnectFailedError(LEFT_CONNECTING)
        poll.unregister(client_sock.fileno())
        poll.register(client_sock.fileno(), 0)  # it has sent: now only errors matter


class Crew:
    """Threads that serve sessions, each one session at a time.

    `_lock` guards `_spare`, `_threads`, `_over` and, by slot, `_sockets`, which are
    what `cut` may shut down; `_cutting` is set under it. `next_job` waits for the next
    job; None ends the thread that gets it.
    """

    def __init__(
        self,
        options: Options,
        counters: Counters,
        next_job: Callable[[], Job | None],
        finish: Finish,
        take_back: TakeBack,
        limit_threads: LimitThreads,
    ) -> None:
        self._options, self._counters, self._next_job = options, counters, next_job
        self._finish, self._take_back = finish, take_back
        self._limit_threads = limit_threads
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # a thread is wanted, or stop
        self._spare = 0  # of the threads, those that wait for a job
        self._threads = 0
        self._over = False
        self._cutting = threading.Event()
        self._sockets: dict[int, list[socket.socket]] = {}

    def cut(self, how: int) -> None:
        """End all sessions: their threads wake up and see `_cutting`.

        SHUT_RD wakes whoever reads and tells the peer nothing, so that a reset is the
        first that it hears; SHUT_RDWR wakes those, too, that only wait to write.
        """
        with self._lock:
            self._cutting.set()
            for sock in itertools.chain.from_iterable(self._sockets.values()):
                shut_down(sock, how)

    def stop(self) -> int:
        """Let the threads end; return how many still have to be given a None."""
        with self._lock:
            self._over = True
            self._changed.notify()
            return self._threads

    def start_threads_ahead(self) -> None:
        """Thread "starter", or a worker process's MainThread: start connection-N.

        A connection's own thread starts none: that would cost it a page of stack for as
        long as it lives. When the system has no more threads, try again every second.
        """
        is_short = False
        while self._wants_thread():
            if self._start_thread():
                if is_short:
                    self._limit_threads(None, "")
                is_short = False
            else:
                is_short = True
                with self._lock:
                    self._changed.wait_for(lambda: self._over, 1.0)

    def _wants_thread(self) -> bool:
        """Wait until too few threads are spare; return False when the crew stops."""
        with self._lock:
            self._changed.wait_for(lambda: self._over or self._spare < SPARE_THREADS)
            return not self._over

    def _start_thread(self) -> bool:
        """Add a spare thread; False, and it is told, when the system has none."""
        with self._lock:
            self._spare += 1
            self._threads += 1
            name = f"connection-spare-{self._threads}"
        try:
            new_thread(name, self._run).start()
        except (RuntimeError, MemoryError) as error:
            with self._lock:
                self._spare -= 1
                self._threads -= 1
                threads = self._threads
            self._limit_threads(threads, str(error))
            return False
        return True

    def _run(self) -> None:
        """Thread "connection-N": serve one session after the other."""
        me = threading.current_thread()
        while (job := self._next_job()) is not None:
            with self._lock:
                self._spare -= 1
                if self._spare < SPARE_THREADS:
                    self._changed.notify()
                self._sockets[job.slot] = []
            self._track(job.slot, job.client_sock)
            me.name = f"connection-{job.number}"
            try:
                self._serve(job)
            except Exception as error:  # a defect: say where, end this session
                traceback.print_exc()
                self._close(job, End("ID", f"internal error: {error!r}"))
            with self._lock:
                if self._spare >= MAX_SPARE_THREADS:
                    break
                self._spare += 1
            me.name = "connection-spare"
        with self._lock:
            self._threads -= 1

    def _track(self, slot: int, sock: socket.socket) -> None:
        """Note a socket that `cut` may shut down; after a cut, shut it down at once."""
        with self._lock:
            self._sockets[slot].append(sock)
            if self._cutting.is_set():
                shut_down(sock, socket.SHUT_RD)

    def _serve(self, job: Job) -> None:
        job.client_sock.setblocking(False)
        if job.target is None:
            self._read_header(job)
        else:
            self._relay(job, job.target)

    def _read_header(self, job: Job) -> None:
        try:
            header = read_proxy_header(job.client_sock, PROXY_HEADER_TIMEOUT_S)
        except (OSError, ValueError) as error:
            words = say_why(error) if isinstance(error, OSError) else str(error)
            self._close_unconnected(job, refuse(f"bad PROXY header: {words}"))
        else:
            job.client_sock.setblocking(False)
            self._hand_back(job, header)

    def _relay(self, job: Job, target: Target) -> None:
        began_ns = time.monotonic_ns()
        timeout_s = self._options.connect_timeout
        try:
            server_sock, died = connect(target, job.client_sock, timeout_s)
        except ConnectFailedError as failure:
            if failure.end is LEFT_CONNECTING:
                self._close_unconnected(job, failure.end)
            else:
                self._hand_back(job, failure.end)
            return
        now_ns = time.monotonic_ns()
        cells = self._counters.cells(job.slot)
        cells[LAST_NS], cells[CONNECT_NS] = now_ns, max(1, now_ns - began_ns)
        self._track(job.slot, server_sock)
        socks = (job.client_sock, server_sock)
        self._close(job, Relay(self._options, cells, *socks, self._cutting).run(died))

    def _close_unconnected(self, job: Job, end: End) -> None:
        """Close a session that is not connected: with `end`, or at the cut as cut."""
        self._close(job, CUT_CONNECTING if self._cutting.is_set() else end)

    def _close(self, job: Job, end: End) -> None:
        """Close the sockets, then report: the server knows before a place is free."""
        with self._lock:
            sockets = self._sockets.pop(job.slot, ())
        for sock in sockets:
            sock.close()
        self._finish(job.slot, end)

    def _hand_back(self, job: Job, outcome: End | Header) -> None:
        """Part with the client: from now on `cut` leaves it alone."""
        with self._lock:
            del self._sockets[job.slot]
        self._take_back(job.slot, job.client_sock, outcome)


# ---- Relay: bytes from side to side --------------------------------------------------
# One thread, two sockets, two directions, one poll. `Relay` moves bytes as they come as
# long as both sides are well; when one side dies, `Burial` delivers what it left behind
# and the other side is reset, too.


class SideDiedError(Exception):
    """One of the two sockets of a relay failed: "client" or "server", and why."""

    def __init__(self, side: str, error: OSError) -> None:
        super().__init__(side, error)
        self.side = side
        self.error = error


class Pipe:
    """A pipe through which the kernel moves bytes without a copy (splice(2))."""

    # `_lock` guards `_budget`: how many more pipes this process may have open, so that
    # splicing never takes the descriptors that were promised to connections. Set before
    # worker processes are forked: each has a budget of its own.
    _lock = threading.Lock()
    _budget = 0

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self.size = BUFFER_BYTES
        if fcntl is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):  # pipe-user-pages-soft may be used up
                self.size = fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @classmethod
    def set_budget(cls, pipes: int) -> None:
        """Say how many pipes this process may have open at once."""
        with cls._lock:
            cls._budget = pipes

    @classmethod
    def open(cls) -> Pipe | None:
        """Return a new pipe, or None when there are no descriptors for it."""
        with cls._lock:
            if cls._budget == 0:
                return None
            cls._budget -= 1
        try:
            return cls()
        except OSError:
            cls._count_closed()
            return None

    @classmethod
    def _count_closed(cls) -> None:
        with cls._lock:
            cls._budget += 1

    def close(self) -> None:
        """Close both ends; what is inside is lost."""
        os.close(self.read_fd)
        os.close(self.write_fd)
        self._count_closed()


class Direction:
    """One way of a relay: what one side sends goes to the other.

    Invariant: bytes that were read from one side and not yet written to the other are
    in `rest` or (`in_pipe` of them) in the pipe, never in both, and nothing is read
    while there are any.
    """

    def __init__(
        self,
        from_side: tuple[str, socket.socket],
        to_side: tuple[str, socket.socket],
        cells: memoryview,
        cell: int,
        cutting: threading.Event,
    ) -> None:
        self.from_name, self.from_sock = from_side
        self.to_name, self.to_sock = to_side
        self.cells, self.cell = cells, cell  # its session's row; where bytes count
        self.cutting = cutting  # set: an end of file is no longer the peer's own
        self.rest: memoryview | None = None
        self.pipe: Pipe | None = None
        self.in_pipe = 0
        self.dropped = 0  # bytes that nobody was left to take
        self.read_bytes = READ_BYTES  # at most, by the next read
        self.can_splice = CAN_SPLICE
        self.other = self  # the other way of the relay, which sets this
        self.from_ended = False  # an end of file was read
        self.end_passed = False  # ... and passed on

    @property
    def pending(self) -> int:
        """How many bytes were read and not yet written."""
        return self.in_pipe or (len(self.rest) if self.rest else 0)

    def undelivered(self) -> int:
        """Return how many bytes were read that the other side never acknowledged."""
        # An end of file that was sent and not acknowledged is a byte for the kernel.
        not_acknowledged = unacknowledged(self.to_sock) - self.end_passed
        return self.dropped + self.pending + max(0, not_acknowledged)

    def pull(self) -> bool:
        """Read what there is, write it; True when what to wait for changed.

        The hot path, once for each message and way: so it calls nothing of ours.
        """
        if self.pipe is not None:
            return self._pull_spliced(self.pipe)
        try:
            data = self.from_sock.recv(self.read_bytes)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise SideDiedError(self.from_name, error) from None
        self.cells[LAST_NS] = time.monotonic_ns()
        if not data:
            self.from_ended = True
            return self._pass_end()
        try:
            sent = self.to_sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self.rest = memoryview(data)
            raise SideDiedError(self.to_name, error) from None
        self.cells[self.cell] += sent
        if len(data) == self.read_bytes:
            self._read_more()
        if sent == len(data):
            return False
        self.rest = memoryview(data)[sent:]
        return True

    def _read_more(self) -> None:
        """Read more at once after a full read; splice what fills the largest buffer."""
        if self.read_bytes < BUFFER_BYTES:
            self.read_bytes *= 4
        elif self.can_splice:
            self.pipe = Pipe.open()
            self.can_splice = self.pipe is not None

    def push(self) -> bool:
        """Write what is left over; True when what to wait for changed."""
        if self.pipe is not None and self.in_pipe:
            self._empty_pipe(self.pipe)
        elif self.rest:
            self.send_rest(self.rest)
        if self.pending:
            return False
        return self._pass_end() if self.from_ended else True

    def send_rest(self, rest: memoryview) -> None:
        """Write what is left over, as far as the other side takes it."""
        try:
            sent = self.to_sock.send(rest)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise SideDiedError(self.to_name, error) from None
        self.cells[self.cell] += sent
        self.rest = rest[sent:] or None

    def _pass_end(self) -> bool:
        """Half-close: one side's end of file becomes the other's (RFC 9293, 3.6)."""
        if self.cutting.is_set():
            raise SideDiedError(self.from_name, ConnectionAbortedError())
        self.end_passed = True
        if self.other.end_passed:
            return True  # both ways have ended: close says so, too
        try:
            self.to_sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise SideDiedError(self.to_name, error) from None
        return True

    def _pull_spliced(self, pipe: Pipe) -> bool:
        self.cells[LAST_NS] = time.monotonic_ns()
        for _ in range(SPLICE_ROUNDS):
            if not self._fill_pipe(pipe):
                break
            self._empty_pipe(pipe)
            if self.in_pipe:
                return True
        return self.from_ended and self._pass_end()

    def _fill_pipe(self, pipe: Pipe) -> bool:
        """On entry the pipe is empty; True when it then holds `in_pipe` > 0 bytes."""
        try:
            self.in_pipe = os.splice(
                self.from_sock.fileno(), pipe.write_fd, pipe.size, flags=SPLICE_FLAGS
            )
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno == errno.EINVAL:  # not this kind of socket: nothing moved
                self.close_pipe()
                self.can_splice = False
                return False
            raise SideDiedError(self.from_name, error) from None
        self.from_ended = self.in_pipe == 0
        return not self.from_ended

    def _empty_pipe(self, pipe: Pipe) -> None:
        """On entry and on return the pipe holds exactly `in_pipe` bytes."""
        while self.in_pipe:
            try:
                moved = os.splice(
                    pipe.read_fd,
                    self.to_sock.fileno(),
                    self.in_pipe,
                    flags=SPLICE_FLAGS,
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise SideDiedError(self.to_name, error) from None
            self.in_pipe -= moved
            self.cells[self.cell] += moved

    def close_pipe(self) -> None:
        """Close the pipe, if there is one."""
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None


class Relay:
    """Both directions of a session, from the connected server to the end of both."""

    def __init__(
        self,
        options: Options,
        cells: memoryview,
        client_sock: socket.socket,
        server_sock: socket.socket,
        cutting: threading.Event,
    ) -> None:
        self._options, self._cutting = options, cutting
        client, server = ("client", client_sock), ("server", server_sock)
        self.upstream = Direction(client, server, cells, TO_SERVER, cutting)
        self.downstream = Direction(server, client, cells, TO_CLIENT, cutting)
        self.upstream.other, self.downstream.other = self.downstream, self.upstream
        self._poll = new_poll()
        self._watched: dict[int, int] = {}  # by descriptor: the mask that poll has

    def run(self, server_died: bool) -> End:
        """Move bytes until both sides have ended, one died, or nothing moves."""
        try:
            if server_died:
                raise SideDiedError("server", ConnectionResetError())
            return self._run() or CLOSED
        except SideDiedError as death:
            if not self._cutting.is_set():
                end = self._bury(death)
                if not self._cutting.is_set():  # nor meanwhile
                    return end
            return self._cut(death)
        finally:
            self.upstream.close_pipe()
            self.downstream.close_pipe()

    def _run(self) -> End | None:
        """Move bytes; each socket has a direction that reads and one that writes it."""
        upstream, downstream = self.upstream, self.downstream
        client_fd = upstream.from_sock.fileno()
        poll = self._poll.poll
        upstream.pull()  # most clients have spoken by now
        timeout_ms = self._watch()
        # The direction that moved last: if both go idle, its receiver is the silent one
        latest = upstream if upstream.cells[upstream.cell] else downstream
        while not (upstream.end_passed and downstream.end_passed):
            ready = poll(timeout_ms)
            if not ready:
                return self._timed_out(latest)
            changed = False
            for fd, mask in ready:
                reads = upstream if fd == client_fd else downstream
                writes = reads.other
                if mask & POLLOUT and writes.pending:
                    changed |= writes.push()
                if mask & ~POLLOUT:
                    if not reads.from_ended and not reads.pending:
                        changed |= reads.pull()
                        latest = reads
                    elif mask & (POLLERR | POLLHUP):
                        self._check_hangup(reads, mask)
                        changed = True
            if changed:
                timeout_ms = self._watch()
        return None

    def _check_hangup(self, reads: Direction, mask: int) -> None:
        """See whether a socket that is not read now has died.

        Or only both its ends of file have passed: then, too, poll says POLLHUP.
        """
        code = reads.from_sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code or mask & POLLERR or not reads.other.end_passed:
            raise SideDiedError(reads.from_name, OSError(code, os.strerror(code)))

    def _watch(self) -> float:
        """Tell poll what to wait for; return for how long (ms): idle or half-closed."""
        for reads in (self.upstream, self.downstream):
            writes = reads.other
            mask = 0 if reads.from_ended or reads.pending else POLLIN
            mask |= POLLOUT if writes.pending else 0
            # After both ends of file a socket says POLLHUP for ever: let it rest.
            wanted = None if writes.end_passed and not mask else mask
            fd = reads.from_sock.fileno()
            if wanted == self._watched.get(fd):
                continue
            if wanted is None:
                self._poll.unregister(fd)
                del self._watched[fd]
            else:
                self._poll.register(fd, wanted)
                self._watched[fd] = wanted
        half = self.upstream.from_ended or self.downstream.from_ended
        options = self._options
        timeout_s = options.half_close_timeout if half else options.idle_timeout
        return timeout_s * 1000 if timeout_s else -1

    def _timed_out(self, latest: Direction) -> End:
        """Say for whom the relay waited in vain."""
        upstream, downstream, options = self.upstream, self.downstream, self._options
        to_server, to_client = upstream.undelivered(), downstream.undelivered()
        lost = to_server + to_client
        if to_server:
            return End("sD", "server took nothing for too long", lost)
        if to_client:
            code = "cL" if downstream.from_ended else "cD"
            return End(code, "client took nothing for too long", lost)
        if not (upstream.from_ended or downstream.from_ended):
            code, side = ("sD", "server") if latest is upstream else ("cD", "client")
            return End(code, f"{side} idle for {options.idle_timeout:g} s")
        code, side = ("cD", "client") if downstream.from_ended else ("sD", "server")
        limit = f"{options.half_close_timeout:g} s"
        return End(code, f"{side} silent for {limit} after the other side ended")

    def _bury(self, death: SideDiedError) -> End:
        """Deliver what the dead side sent; reset the other if more was to follow."""
        patience_s = self._options.half_close_timeout or math.inf
        from_dead, to_dead = self.upstream, self.downstream
        if death.side == "server":
            from_dead, to_dead = self.downstream, self.upstream
        code = self._code(death)
        with contextlib.suppress(SideDiedError):  # the survivor dies, or takes nothing
            Burial(from_dead).flush(patience_s)
        lost = from_dead.undelivered() + to_dead.undelivered()
        if not from_dead.from_ended:  # more was to follow
            reset_at_close(from_dead.to_sock)
        return End(code, say_death(death), lost)

    def _code(self, death: SideDiedError) -> str:
        """Return c, C, s or S for who, then L for a server that had finished, or D."""
        vanished = isinstance(death.error, TimeoutError)
        who = death.side[0] if vanished else death.side[0].upper()
        down = self.downstream
        # Its end of file may have been passed on, and its last bytes not have arrived.
        missed = not down.end_passed or down.undelivered() > 0
        last = death.side == "client" and down.from_ended and missed
        return who + ("L" if last else "D")

    def _cut(self, death: SideDiedError) -> End:
        """End at shutdown; a reset, lest half a reply be taken for a whole one."""
        both = (self.upstream, self.downstream)
        lost = sum(direction.undelivered() for direction in both)
        # The cut's SHUT_RDWR has sent an end of file behind the bytes that are stuck:
        # `undelivered` took it for a byte, as `end_passed` does not know of it.
        if isinstance(death.error, BrokenPipeError):
            lost -= 1
        for direction in both:
            if not direction.end_passed:
                reset_at_close(direction.to_sock)
        return replace(CUT, undelivered=max(0, lost))


class Burial:
    """The last bytes of a side that died, on their onward to the other side."""

    def __init__(self, onward: Direction) -> None:
        self._onward, self._back = onward, onward.other
        self._poll = new_poll()

    def flush(self, timeout_s: float) -> None:
        """Deliver all that the dead side had sent, and see it acknowledged.

        Only then may the survivor be reset, which throws away what is on its way. What
        it sends meanwhile is dropped: a server that is blocked in sending to a dead
        client would take nothing, either. Raise SideDiedError when it dies too, or
        takes nothing for `timeout_s`, or while DROPPED_BYTES came, or at the cut.
        """
        onward = self._onward
        best, quiet_until, most_dropped, pause_s = -math.inf, math.inf, 0, 0.001
        while self._send_last():
            now_s = time.monotonic()
            acknowledged = onward.cells[onward.cell] - unacknowledged(onward.to_sock)
            if acknowledged > best:
                best, quiet_until, pause_s = acknowledged, now_s + timeout_s, 0.001
                most_dropped = self._back.dropped + DROPPED_BYTES
            if now_s > quiet_until or self._back.dropped > most_dropped:
                raise SideDiedError(onward.to_name, TimeoutError())
            if onward.cutting.is_set():
                raise SideDiedError(onward.to_name, ConnectionAbortedError())
            # An acknowledgement is no event: look again after 1, 2, 4 … 64 ms.
            self._wait(pause_s)
            pause_s = min(2 * pause_s, 0.064)

    def _send_last(self) -> int:
        """Send what the dead side has left; return how much is not delivered yet."""
        onward = self._onward
        if onward.pipe is not None and onward.in_pipe:
            onward.rest = memoryview(os.read(onward.pipe.read_fd, onward.in_pipe))
            onward.in_pipe = 0
        while True:
            if onward.rest:
                onward.send_rest(onward.rest)
            if onward.rest:
                break
            try:
                data = onward.from_sock.recv(BUFFER_BYTES)
            except OSError:  # it is dead, and all has been read
                break
            if not data:
                break
            onward.rest = memoryview(data)
        return onward.undelivered()

    def _wait(self, pause_s: float) -> None:
        """Wait until the survivor takes or sends something, for `pause_s` at most."""
        onward, back = self._onward, self._back
        if onward.end_passed and back.from_ended:
            onward.cutting.wait(pause_s)  # poll would say POLLHUP for ever
            return
        mask = 0 if back.from_ended else POLLIN
        mask |= POLLOUT if onward.rest else 0
        self._poll.register(onward.to_sock.fileno(), mask)
        for _, ready in self._poll.poll(pause_s * 1000):
            if ready & POLLIN:
                self._drop()
            elif ready & (POLLERR | POLLHUP):
                raise SideDiedError(onward.to_name, ConnectionResetError())

    def _drop(self) -> None:
        """Read what the survivor sends to the dead side, and forget it."""
        try:
            data = self._back.from_sock.recv(BUFFER_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise SideDiedError(self._back.from_name, error) from None
        self._back.from_ended = not data
        self._back.dropped += len(data)


def say_death(death: SideDiedError) -> str:
    """Return in words how a side of a relay died."""
    if isinstance(death.error, TimeoutError):
        return f"{death.side} vanished: it no longer answers"
    return f"{death.side} reset the connection"


# ---- Workers: where crews live -------------------------------------------------------
# One interpreter runs one thread at a time, so many busy connections want several
# processes. A worker is a crew in this process, or one in a forked process. Forked, not
# started anew: processes that share their pages share the caches too, which is worth
# about a fifth of the time per message.


class ThreadWorker(Worker):
    """A crew of threads in this process: there is nothing to wait for or to kill."""

    def __init__(self, frontend: Frontend, max_sessions: int) -> None:
        super().__init__(max_sessions)
        self._jobs = queue.SimpleQueue[Job | None]()
        limit_threads = functools.partial(frontend.limit_worker, self)
        calls = (self._jobs.get, frontend.finish, frontend.take_back, limit_threads)
        self._crew = Crew(frontend.options, frontend.pool.counters, *calls)

    def start(self) -> None:
        """Start the thread "starter", which starts the others."""
        new_thread("starter", self._crew.start_threads_ahead).start()

    def assign(self, job: Job) -> bool:
        """Queue the session for the next spare thread."""
        self._jobs.put(job)
        return True

    def cut(self, how: int) -> None:
        """End all its sessions."""
        self._crew.cut(how)

    def stop(self) -> None:
        """Let the threads end: those that wait get a None each."""
        for _ in range(self._crew.stop()):
            self._jobs.put(None)


class ProcessWorker(Worker):
    """A crew in a forked process, as the main process sees it.

    The channel to it keeps message boundaries.

    `_lock` guards `_assigned` (the slots that the process has) and `_channel`. It is
    held while a client is passed on: when the process dies, it has it, or not.
    `_pid_lock` guards `_pid`, 0 while there is none: a number is killed only before it
    is reaped. Only thread "worker-N" changes `_channel` and `_pid`, to replace the
    process.
    """

    def __init__(self, frontend: Frontend, max_sessions: int) -> None:
        """Fork the first process; raise OSError when that cannot be done."""
        super().__init__(max_sessions)
        self._frontend, self._pool = frontend, frontend.pool
        self._number = len(self._pool.workers) + 1
        self._end_wanted = threading.Event()
        self._lock = threading.Lock()
        self._assigned: set[int] = set()
        self._pid_lock = threading.Lock()
        self._forked_s = time.monotonic()
        self._channel, self._pid = self._fork()
        self._thread = new_thread(f"worker-{self._number}", self._listen)

    def start(self) -> None:
        """Start the thread that hears the process."""
        self._thread.start()

    def _fork(self) -> tuple[socket.socket, int]:
        """Fork a process that runs nothing but `worker_main`; in it, never return.

        The first ones are forked before there are threads. One that replaces a dead one
        is forked beside threads, whose locks may be taken for ever in the copy: it must
        not touch the pool, the log or the frontend, and closes all their descriptors.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A signal to the new process must not reach us by the descriptor that wakes
        # our thread "signals".
        before = signal.pthread_sigmask(signal.SIG_BLOCK, handled_signals())
        pid = -1
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        finally:
            if pid != 0:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if pid == 0:
            worker_main(theirs.detach(), self._pool.options, self._pool.counters)
        theirs.close()
        seconds = struct.pack("ll", int(WORKER_STALL_S), 0)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        return ours, pid

    def assign(self, job: Job) -> bool:
        """Send the session's client to the process; False when it takes none."""
        message = pickle.dumps((job.slot, job.number, *(job.target or ())))
        with self._lock:
            try:
                socket.send_fds(self._channel, [message], [job.client_sock.fileno()])
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    self._kill()  # took nothing for too long
                return False
            self._assigned.add(job.slot)
        job.client_sock.close()
        return True

    def _listen(self) -> None:
        """Thread "worker-N": hear what the process reports; replace it when it dies."""
        while True:
            message, fds = receive(self._channel)
            if message:
                self._hear(message, fds)
            elif self._end_process() or not self._restart():
                return

    def _hear(self, message: bytes, fds: list[int]) -> None:
        """Understand what the `CrewProcess` has sent."""
        kind, *words = pickle.loads(message)
        if kind == LIMIT:
            self._frontend.limit_worker(self, *words)
            return
        slot, *words = words
        with self._lock:
            self._assigned.discard(slot)
        if kind == ENDED:
            self._frontend.finish(slot, End(*words))
        elif not fds:  # none was free here: the kernel dropped it (unix(7))
            self._frontend.finish(slot, NO_DESCRIPTOR)
        else:
            outcome = End(*words) if kind == UNCONNECTED else Header(*words)
            client_sock = socket.socket(fileno=fds[0])
            self._frontend.take_back(slot, client_sock, outcome)

    def _end_process(self) -> bool:
        """Reap the process, whose channel has ended; return whether that was wanted."""
        with self._lock:
            self._channel.close()
            slots, self._assigned = list(self._assigned), set()
        self._pool.set_alive(self, False)
        self._kill()  # should it only have closed its channel
        with self._pid_lock:
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            self._pid = 0
        if not self._end_wanted.is_set():
            self._frontend.worker_died(self._number, code, slots)
        return self._end_wanted.is_set()

    def _restart(self) -> bool:
        """Fork again, once a second at most; False when there is no need to."""
        over = self._frontend.over
        while not over.wait(max(0.0, self._forked_s + 1 - time.monotonic())):
            self._forked_s = time.monotonic()
            try:
                channel, pid = self._fork()
            except OSError as error:
                words = f"worker={self._number} not started: {say_why(error)}"
                self._frontend.log.warn("start", words)
                continue
            with self._lock, self._pid_lock:
                self._channel, self._pid = channel, pid
            if self._end_wanted.is_set():
                self._end_channel()
            self._pool.set_capacity(self, None)
            self._pool.set_alive(self, True)
            return True
        return False

    def cut(self, how: int) -> None:
        """Have the process end all its sessions."""
        with self._lock, contextlib.suppress(OSError):
            self._channel.send(pickle.dumps((None, how)))

    def stop(self) -> None:
        """End the process: it leaves when its channel ends."""
        self._end_wanted.set()
        self._end_channel()

    def _end_channel(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    def join(self, timeout_s: float) -> None:
        """Wait for the process to end, `timeout_s` at most, then kill it."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():  # stopped by SIGSTOP, for one
            self._kill()
            self._thread.join()

    def kill(self) -> None:
        """Kill the process; it is not replaced."""
        self._end_wanted.set()
        self._kill()

    def _kill(self) -> None:
        with self._pid_lock, contextlib.suppress(ProcessLookupError):
            if self._pid:
                os.kill(self._pid, signal.SIGKILL)


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next message (b"" = the end) and the descriptor that came with it."""
    for _ in range(2):
        try:
            message, fds, _, _ = socket.recv_fds(channel, 65536, 1)
        except ConnectionResetError:  # told once, before what is still to be received
            continue
        except OSError:
            break
        return message, fds
    return b"", []


# What a worker process says: an `End` without a client, one with a client, a `Header`
# with a client, or how many threads it can have.
ENDED, UNCONNECTED, NAMED, LIMIT = "ended", "unconnected", "named", "limit"


class CrewProcess:
    """The forked process, at the other end of the channel of a `ProcessWorker`."""

    def __init__(
        self, channel: socket.socket, options: Options, counters: Counters
    ) -> None:
        self._channel = channel
        calls = (self._next_job, self._finish, self._take_back, self._limit_threads)
        self._crew = Crew(options, counters, *calls)

    def run(self) -> None:
        """Serve sessions: the MainThread of the process is its starter."""
        self._crew.start_threads_ahead()

    def _next_job(self) -> Job:
        """Wait for the next job; the end of the channel ends the process."""
        while True:
            message, fds = receive(self._channel)
            if not message:
                os._exit(0)  # live sessions end with us: the kernel closes all
            slot, number, *target = pickle.loads(message)
            if slot is None:  # from `ProcessWorker.cut`
                how = number
                self._crew.cut(how)
            elif not fds:  # none was free here: the kernel dropped it (unix(7))
                self._finish(slot, NO_DESCRIPTOR)
            else:
                # The family only matters for addresses: nobody asks for those here.
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fds[0])
                return Job(sock, slot, number, Target(*target) if target else None)

    def _finish(self, slot: int, end: End) -> None:
        self._send(None, ENDED, slot, end.code, end.words, end.undelivered)

    def _take_back(
        self, slot: int, client_sock: socket.socket, outcome: End | Header
    ) -> None:
        if isinstance(outcome, Header):
            self._send(client_sock, NAMED, slot, outcome.source, outcome.destination)
        else:
            self._send(client_sock, UNCONNECTED, slot, outcome.code, outcome.words)

    def _limit_threads(self, threads: int | None, why: str) -> None:
        if threads is not None:
            threads -= 1  # a spare one has to hear `cut` (`_next_job`)
        self._send(None, LIMIT, threads, why)

    def _send(self, client_sock: socket.socket | None, *message: Any) -> None:
        data = pickle.dumps(message)
        with contextlib.suppress(OSError):  # the main process is gone: we follow soon
            if client_sock is None:
                self._channel.send(data)
            else:
                socket.send_fds(self._channel, [data], [client_sock.fileno()])
                client_sock.close()


def worker_main(channel_fd: int, options: Options, counters: Counters) -> NoReturn:
    """Be a worker process: serve what the channel brings, until it ends."""
    try:
        for number in handled_signals():
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)  # the main process decides what a signal means
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled_signals())
        os.closerange(3, channel_fd)
        os.closerange(channel_fd + 1, raise_descriptor_limit() or MAX_SLOTS)
        do_not_preempt()
        sys.setswitchinterval(1.0)  # all threads wait in calls: none need be made yield
        channel = socket.socket(fileno=channel_fd)
        CrewProcess(channel, options, counters).run()
    finally:
        os._exit(1)  # a defect; never back into what was copied from the main process


# ---- Checks: which servers are UP ----------------------------------------------------
# A thread per server connects to it every interval and tells the pool; a change of
# state is one line in the log. With --no-checks, one thread ends the penalties that
# clients' failed connects have earned. Another one resolves the names again.


class Checks:
    """The threads that check servers, or forgive them, and follow their names."""

    def __init__(self, frontend: Frontend) -> None:
        self._options, self._pool = frontend.options, frontend.pool
        self._log, self._queue = frontend.log, frontend.queue
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start a thread for every server, or one for all; one for moving names."""
        servers = self._pool.servers()
        names = {s.name for s in servers}
        moving = sorted(n for n in names if not is_literal(parse_address(n)[0]))
        if self._options.no_checks:
            new_thread("forgive", self._forgive).start()
        self._watch(servers)
        if moving:  # on a daemon thread: getaddrinfo(3) cannot be interrupted
            new_thread("resolve", self._follow, moving).start()

    def stop(self) -> None:
        """Tell the threads to end; one that is checking ends after its timeout."""
        self._stopped.set()

    def _watch(self, servers: list[Server]) -> None:
        if not self._options.no_checks:
            for server in servers:
                name = f"check-{server.address_text}"
                new_thread(name, self._keep_checking, server).start()

    def _keep_checking(self, server: Server) -> None:
        """Thread "check-HOST:PORT": check once per interval, first within it."""
        interval_s = self._options.check_interval
        pause_s = random.uniform(0, interval_s)  # so that checks do not come in step
        while not self._stopped.wait(pause_s) and self._pool.has(server):
            pause_s = interval_s * random.uniform(0.95, 1.05)
            if self._pool.wants_check(server):
                began = time.monotonic()
                passed, result = self._check_once(server)
                self._log_change(self._pool.record_check(server, passed, result))
                pause_s = max(0.0, pause_s - (time.monotonic() - began))

    def _check_once(self, server: Server) -> tuple[bool | None, str]:
        """Connect, and part with an end of file, never a reset: servers log resets.

        Return whether it passed (None: a shortage of our own, which tells nothing of
        the server), and the result in words.
        """
        options = self._options
        began = time.monotonic()
        try:
            sock = socket.socket(server.family, socket.SOCK_STREAM)
        except OSError as error:
            return None, f"not checked: {say_why(error)}"
        with sock:
            sock.settimeout(options.check_timeout)
            try:
                sock.connect(server.address)
                took_ms = (time.monotonic() - began) * 1000
                if options.send_proxy == "v1":
                    sock.sendall(proxy_v1(sock.getsockname(), sock.getpeername()))
                elif options.send_proxy:
                    sock.sendall(PROXY_V2_LOCAL)
            except OSError as error:
                if error.errno in LOCAL_SHORTAGE and has_own_address(server):
                    return None, f"not checked: {say_why(error)}"
                return False, say_why(error)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
                sock.settimeout(min(1.0, options.check_timeout))
                for _ in range(16):  # an unread banner makes the close a reset
                    if not sock.recv(BUFFER_BYTES):
                        break
        return True, f"connected in {took_ms:.1f} ms"

    def _forgive(self) -> None:
        """Thread "forgive", with --no-checks: end the penalties of DOWN servers."""
        while not self._stopped.wait(1.0):
            for line in self._pool.forgive():
                self._log_change(line)

    def _log_change(self, line: str) -> None:
        if line and not self._stopped.is_set():
            self._log.line(line)
            self._queue.wake()

    def _follow(self, names: list[str]) -> None:
        """Thread "resolve": every interval, look where the names point now."""
        while not self._stopped.wait(self._options.check_interval):
            for name in names:
                try:
                    addresses = resolve(*parse_address(name))
                except OSError as error:
                    words = f"cannot resolve {name}: {say_why(error)}; addresses kept"
                    self._log.warn(name, words)
                    continue
                new, lines = self._pool.move_name(name, addresses)
                for line in lines:
                    self._log_change(line)
                self._watch(new)


def has_own_address(server: Server) -> bool:
    """Tell whether this machine has an address to reach the server from (connect(2)).

    Without one, TCP says EADDRNOTAVAIL, as it does when only its ports are used up.
    """
    with contextlib.suppress(OSError):
        with socket.socket(server.family, socket.SOCK_DGRAM) as probe:
            probe.connect(server.address)  # sends nothing
        return True
    return False


def is_literal(host: str) -> bool:
    """Tell whether the host is an address already."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


# ---- Log -----------------------------------------------------------------------------
# Lines are handed to a thread: a slow disk or a stalled terminal never holds a
# connection up.


class Log:
    """Lines with their time, written whole by thread "log", many at once if busy.

    `_lock` guards `_lost` and `_said`. The file needs none: only thread "log" writes,
    and dup2(2) puts another file behind the descriptor at once.
    """

    def __init__(self, path: str | None, quiet: bool) -> None:
        """Open the file (appending), or standard output; raise OSError."""
        self._path = path
        self.silent = quiet and path is None
        self._lock = threading.Lock()
        self._file = open_to_append(path) if path else 1
        self._torn = False  # the last line in the file is cut short: a full disk
        self._lost = 0
        self._said: dict[str, float] = {}  # by kind of warning, when it was said last
        self._stamp = (0, "")  # a second, and how it is written
        self._lines: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = new_thread("log", self._write_lines)

    def start(self) -> None:
        """Start the thread that writes; lines wait until then."""
        self._thread.start()

    def line(self, text: str) -> None:
        """Log a line, with the time of now; an empty text is none."""
        if not text or self.silent:
            return
        if self._lines.qsize() < LOG_BACKLOG_LINES:
            self._lines.put((time.time(), text))
        else:
            with self._lock:
                self._lost += 1

    def warn(self, kind: str, text: str) -> None:
        """Log a line that may come often: once per second and kind at most."""
        now_s = time.monotonic()
        with self._lock:
            if now_s - self._said.get(kind, -1.0) < 1.0:
                return
            self._said[kind] = now_s
        self.line(text)

    def reopen(self) -> None:
        """Open the file anew, it was renamed; keep the old one if that fails."""
        if self._path is None:
            return
        try:
            new = open_to_append(self._path, waits=False)
        except OSError as error:
            self.line(f"cannot reopen {self._path}: {say_why(error)}")
            return
        os.dup2(new, self._file, inheritable=False)
        os.close(new)

    def close(self) -> None:
        """Write what is left, for two seconds at most."""
        self._closing.set()
        self._lines.put(None)
        if self._thread.ident:  # it was started
            self._thread.join(2.0)

    def _write_lines(self) -> None:
        """Thread "log": write until `close` was called and no line is left."""
        written_s, burst = -1.0, 0
        while not (self._closing.is_set() and self._lines.empty()):
            entry = self._lines.get()
            burst = burst + 1 if time.monotonic() - written_s < LOG_BATCH_S else 0
            if burst > LOG_BURST_WRITES:
                self._closing.wait(LOG_BATCH_S)  # more come, for one write
            batch = [entry]
            while len(batch) < LOG_BATCH_LINES and not self._lines.empty():
                batch.append(self._lines.get())
            self._write([self._format(*entry) for entry in batch if entry])
            written_s = time.monotonic()

    def _format(self, at: float, text: str) -> str:
        second, stamp = self._stamp
        if int(at) != second:
            second = int(at)
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._stamp = (second, stamp)
        return f"{stamp},{int(at % 1 * 1000):03d} {text}\n"

    def _write(self, lines: list[str]) -> None:
        """Write lines, and before them how many were lost; nobody waits for this."""
        with self._lock:
            lost, self._lost = self._lost, 0
        if lost and not self._write_all([self._format(time.time(), say_lost(lost))]):
            lost = 0
        lost += self._write_all(lines)
        with self._lock:
            self._lost += lost

    def _write_all(self, lines: list[str]) -> int:
        """Write; return how many lines could not be: disk full, reader gone."""
        data = "".join(lines).encode("utf-8", "backslashreplace")
        ending = b"\n" * self._torn  # of the line before
        rest = ending + data
        with contextlib.suppress(OSError):  # traffic goes on
            while rest:
                written = os.write(self._file, rest)
                self._torn = rest[written - 1] != ord("\n")
                rest = rest[written:]
        return min(rest, data, key=len).count(b"\n")  # without the `ending`


def open_to_append(path: str, waits: bool = True) -> int:
    """Return the descriptor of a file that every write extends.

    A FIFO that nobody reads is waited for, or an OSError (open(2), ENXIO).
    """
    at_once = 0 if waits else getattr(os, "O_NONBLOCK", 0)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | at_once
    descriptor = os.open(path, flags, 0o644)
    if at_once:
        os.set_blocking(descriptor, True)
    return descriptor


def say_lost(lines: int) -> str:
    """Return what the log says of lines that could not be written."""
    return f"{count(lines, 'log line')} could not be written"


# ---- Status: what an operator sees and does ------------------------------------------
# The standard library's HTTP server on a port of its own; it reads snapshots, so no
# slow or hostile client of it can hold up a session.


def figures_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return the figures of a moment as /status.json has them."""
    rows = [live.row for live in snapshot.live]
    for live in snapshot.live:
        if live.server in snapshot.servers:
            snapshot.servers[live.server].add_row(live.row)
    servers, now_s = list(snapshot.servers.values()), snapshot.now_s
    totals = snapshot.totals
    return {
        "uptime_s": round(snapshot.uptime_s, 3),
        "stopping": snapshot.stopping,
        "connections": {
            "active": len(rows),
            "total": totals.begun,
            "failed": totals.failed,
            "refused": totals.refused,
            "queued": snapshot.queued,
        },
        "bytes": {
            "to_servers": totals.to_servers + sum(row.to_server for row in rows),
            "to_clients": totals.to_clients + sum(row.to_client for row in rows),
        },
        "servers": [describe(server, now_s) for server in servers],
        "live": [describe_live(live, now_s) for live in snapshot.live[:LIVE_LISTED]],
        "connects": {s.address_text: (s.connects, s.connect_s) for s in servers},
    }


def describe(server: Server, now_s: float) -> dict[str, Any]:
    """Return a server's entry of /status.json."""
    return {
        "address": server.address_text,
        "state": server.state,
        "weight": server.weight,
        "backup": server.backup,
        "max": server.max,
        "active": server.places_taken,
        "total": server.total,
        "connect_failures": server.connect_failures,
        "retries": server.retries,
        "bytes_to_server": server.to_server,
        "bytes_to_client": server.to_client,
        "last_change_s": round(now_s - server.changed_s, 3),
        "last_check": server.last_check,
    }


def describe_live(live: LiveSession, now_s: float) -> dict[str, Any]:
    """Return a live session's entry of /status.json; ages in seconds."""
    last_s = live.row.last_ns / 1e9 or live.accepted_s
    return {
        "client": format_address(live.source),
        "server": live.server.address_text if live.server else None,
        "age_s": round(now_s - live.accepted_s, 3),
        "idle_s": round(max(0.0, now_s - last_s), 3),
        "to_server": live.row.to_server,
        "to_client": live.row.to_client,
    }


METRICS = (  # name after "load_balancer_", its kind, what it says
    ("connections_total", "counter", "Connections accepted."),
    ("connections_active", "gauge", "Connections that are live now."),
    ("connections_failed_total", "counter", "Connections no server could take."),
    ("server_up", "gauge", "1 while the server is UP."),
    ("server_connections_active", "gauge", "Connections at the server now."),
    ("server_connections_total", "counter", "Connections made to the server."),
    ("server_connect_failures_total", "counter", "Connects that failed."),
    ("server_bytes_total", "counter", "Bytes relayed."),
    ("server_connect_seconds", "histogram", "Time of a TCP connect."),
)


def render_metrics(figures: dict[str, Any]) -> str:
    """Return the figures in Prometheus' text exposition format, version 0.0.4."""
    connections = figures["connections"]
    samples: dict[str, list[str]] = {name: [] for name, _, _ in METRICS}
    samples["connections_total"] = [f" {connections['total']}"]
    samples["connections_active"] = [f" {connections['active']}"]
    samples["connections_failed_total"] = [f" {connections['failed']}"]
    for s in figures["servers"]:
        label = f'server="{s["address"]}"'
        for name, value in (
            ("up", int(s["state"] == UP)),
            ("connections_active", s["active"]),
            ("connections_total", s["total"]),
            ("connect_failures_total", s["connect_failures"]),
        ):
            samples[f"server_{name}"].append(f"{{{label}}} {value}")
    for way in ("to_server", "to_client"):
        samples["server_bytes_total"] += [
            f'{{server="{s["address"]}",direction="{way}"}} {s[f"bytes_{way}"]}'
            for s in figures["servers"]
        ]
    for address, (counts, total_s) in figures["connects"].items():
        samples["server_connect_seconds"] += histogram(address, counts, total_s)
    lines = []
    for name, kind, text in METRICS:
        full = f"load_balancer_{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
        lines += [full + sample for sample in samples[name]]
    return "\n".join(lines) + "\n"


def histogram(address: str, counts: list[int], total_s: float) -> list[str]:
    """Return a server's connect times: of each bound, how many were not above it."""
    label = f'server="{address}"'
    totals = list(itertools.accumulate(counts))
    return [
        *(
            f'_bucket{{{label},le="{bound}"}} {total}'
            for bound, total in zip(CONNECT_BOUNDS, totals, strict=True)
        ),
        f"_sum{{{label}}} {total_s:.9f}",
        f"_count{{{label}}} {totals[-1]}",
    ]


PAGE = r"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Load balancer</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5c6b7d; --line: #dbe1e8;
  --page: #f5f7f9; --card: #fff; --up: #11734b; --down: #b3261e; --drain: #8a5a00;
  --maint: #55606e; --c1: #2563a8; --c2: #b45f06; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --soft: #9aa8b8;
  --line: #2c3744; --page: #11171e; --card: #1a222c; --up: #4cc38a; --down: #ff8a80;
  --drain: #f0b429; --maint: #a3b0bf; --c1: #6cb0f5; --c2: #f0a35a; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.25rem; max-width: 72rem; color: var(--ink);
  background: var(--page); font: 15px/1.45 system-ui, sans-serif;
  font-variant-numeric: tabular-nums }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem 1rem;
  margin-bottom: 1rem }
h1 { font-size: 1.35rem; margin: 0 }
h2 { font-size: 1.05rem; margin: 1.5rem 0 .5rem }
.soft { color: var(--soft) }
#note { margin-left: auto }
#note.bad { color: var(--down); font-weight: 600 }
dl, #servers { display: grid; gap: .75rem; margin: 0 }
dl { grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)) }
#servers { grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)) }
dl div, article, .scroll { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem }
dl div, article { padding: .7rem .9rem }
dt { color: var(--soft); font-size: .85rem }
dd { margin: 0; font-size: 1.35rem; font-weight: 600 }
article h3, figcaption { display: flex; justify-content: space-between }
article h3 { gap: .5rem; margin: 0; font-size: 1rem }
.state { font-weight: 700 } .state::before { content: "\25CF\00A0" }
.UP { color: var(--up) } .DOWN { color: var(--down) }
.DRAIN { color: var(--drain) } .MAINT { color: var(--maint) }
article p { margin: .15rem 0; font-size: .88rem }
figure { margin: .5rem 0 0 } figcaption { font-size: .82rem }
svg { display: block; width: 100%; height: 2.6rem;
  border-bottom: 1px solid var(--line) }
polyline { fill: none; stroke: var(--c1); stroke-width: 1.5;
  vector-effect: non-scaling-stroke }
polyline.second { stroke: var(--c2); stroke-dasharray: 4 2 }
.k1 { color: var(--c1) } .k2 { color: var(--c2) }
.actions { display: flex; gap: .4rem; margin-top: .6rem }
button { flex: 1; font: inherit; font-size: .88rem; padding: .35rem .5rem;
  color: inherit; background: none; border: 1px solid var(--line);
  border-radius: .4rem; cursor: pointer }
button:hover { border-color: var(--soft) }
button:disabled { opacity: .45; cursor: default }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .88rem }
th, td { text-align: right; padding: .35rem .8rem; white-space: nowrap }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left }
th { color: var(--soft); font-weight: 500 }
tr + tr td { border-top: 1px solid var(--line) }
</style>
</head>
<body>
<header><h1>Load balancer</h1><span class="soft" id="where"></span>
<span id="note" role="status">…</span></header>
<dl id="totals"></dl>
<h2>Servers</h2>
<div id="servers"></div>
<h2>Live connections <span class="soft" id="count"></span></h2>
<div class="scroll"><table><thead><tr><th scope="col">client<th scope="col">server
<th scope="col">age<th scope="col">idle<th scope="col">to server
<th scope="col">to client</tr></thead><tbody id="live"></tbody></table></div>
<script>
"use strict";
const KEEP = 90, cards = new Map(), byId = id => document.getElementById(id);
let before = null;
function make(tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
}
function amount(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let u = 0;
  while (n >= 1000 && u < 4) { n /= 1000; u++; }
  return (u && n < 100 ? n.toFixed(1) : Math.round(n)) + " " + units[u];
}
function time(s) {
  if (s < 60) return s.toFixed(1) + " s";
  if (s < 3600) return Math.floor(s / 60) + " min " + Math.floor(s % 60) + " s";
  return Math.floor(s / 3600) + " h " + Math.floor(s % 3600 / 60) + " min";
}
const count = n => n.toLocaleString("en");
function plot(names) {
  const ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg");
  const box = make("figure"), words = make("figcaption");
  svg.setAttribute("viewBox", "0 0 " + (KEEP - 1) + " 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const lines = names.map((_, i) => {
    const line = document.createElementNS(ns, "polyline");
    if (i) line.setAttribute("class", "second");
    return svg.appendChild(line);
  });
  const label = (_, i) => words.appendChild(make("span", "", "k" + (i + 1)));
  const labels = names.map(label);
  const series = names.map(() => []);
  box.append(words, svg);
  return { box, add(values, format) {
    series.forEach((s, i) => { s.push(values[i]); if (s.length > KEEP) s.shift(); });
    const top = Math.max(1e-9, ...series.flat());
    series.forEach((s, i) => {
      labels[i].textContent = names[i] + " " + format(values[i]);
      const height = v => (39 - 37 * v / top).toFixed(1);
      const point = (v, x) => KEEP - s.length + x + "," + height(v);
      lines[i].setAttribute("points", s.map(point).join(" "));
    });
  } };
}
function card(address) {
  const box = make("article"), head = make("h3"), state = make("span", "", "state");
  const rates = plot(["connections/s"]), bytes = plot(["to server/s", "to client/s"]);
  const lines = [make("p"), make("p", "", "soft")];
  const actions = make("div", undefined, "actions"), buttons = {};
  for (const admin of ["ready", "drain", "maint"]) {
    const button = make("button", admin[0].toUpperCase() + admin.slice(1));
    buttons[admin] = actions.appendChild(button);
    button.dataset.admin = admin;
    button.setAttribute("aria-label", admin + " " + address);
    button.onclick = async () => {
      button.disabled = true;
      try {
        await fetch("/servers/" + encodeURIComponent(address) + "/" + admin,
          { method: "POST", headers: { "X-Requested-With": "load-balancer" } });
      } finally { button.disabled = false; }
      refresh();
    };
  }
  head.append(make("span", address), state);
  box.append(head, ...lines, rates.box, bytes.box, actions);
  box.dataset.server = address;
  byId("servers").append(box);
  return { box, state, lines, rates, bytes, buttons };
}
function show(s) {
  byId("where").textContent = "on " + s.listen + ", up " + time(s.uptime_s);
  const up = s.servers.filter(x => x.state === "UP").length, c = s.connections;
  const note = byId("note");
  note.className = up && !s.stopping ? "soft" : "bad";
  note.textContent = s.stopping ? "stopping"
    : up ? up + " of " + s.servers.length + " servers UP"
    : s.servers.some(x => x.state === "DOWN" && x.weight)
    ? "no server is UP: every server is tried"
    : "no server may be sent clients: they wait";
  const totals = [["live now", count(c.active)], ["queued", count(c.queued)],
    ["accepted", count(c.total)], ["not connected", count(c.failed)],
    ["refused", count(c.refused)], ["to servers", amount(s.bytes.to_servers)],
    ["to clients", amount(s.bytes.to_clients)]];
  byId("totals").replaceChildren(...totals.map(([name, value]) => {
    const box = make("div");
    box.append(make("dt", name), make("dd", value));
    return box;
  }));
  const same = before && before.uptime_s < s.uptime_s;  // not started again since
  const past = new Map(same ? before.servers.map(x => [x.address, x]) : []);
  const passed = before ? s.uptime_s - before.uptime_s : 1;
  for (const [address, one] of cards) {
    if (s.servers.some(x => x.address === address)) continue;
    one.box.remove();
    cards.delete(address);
  }
  for (const x of s.servers) {
    if (!cards.has(x.address)) cards.set(x.address, card(x.address));
    const one = cards.get(x.address), was = past.get(x.address) || x;
    one.state.textContent = x.state;
    one.state.className = "state " + x.state;
    one.lines[0].textContent = [
      count(x.active) + (x.max ? " of " + count(x.max) : "") + " live",
      count(x.total) + " connected", count(x.connect_failures) + " failed connects",
      count(x.retries) + " retries"].join(", ");
    one.lines[1].textContent = "weight " + x.weight + (x.backup ? ", backup" : "") +
      "; " + x.last_check + "; " + x.state + " for " + time(x.last_change_s);
    const rate = key => Math.max(0, (x[key] - was[key]) / passed);
    one.rates.add([rate("total")], v => v < 10 ? v.toFixed(1) : count(Math.round(v)));
    one.bytes.add([rate("bytes_to_server"), rate("bytes_to_client")], amount);
    const now = { UP: "ready", DOWN: "ready", DRAIN: "drain", MAINT: "maint" }[x.state];
    for (const admin in one.buttons) one.buttons[admin].disabled = admin === now;
  }
  byId("count").textContent = c.active <= s.live.length ? ""
    : "the oldest " + s.live.length + " of " + count(c.active);
  byId("live").replaceChildren(...s.live.map(x => {
    const row = make("tr");
    const cells = [x.client, x.server || "–", time(x.age_s), time(x.idle_s),
      amount(x.to_server), amount(x.to_client)];
    row.append(...cells.map(text => make("td", text)));
    return row;
  }));
  before = s;
}
let timer = 0;
async function refresh() {
  clearTimeout(timer);
  try {
    show(await (await fetch("/status.json")).json());
  } catch (error) {
    byId("note").className = "bad";
    byId("note").textContent = "no answer from the load balancer";
  }
  timer = setTimeout(refresh, 1000);
}
refresh();
</script>
</body>
</html>
"""


def policy(page: str) -> str:
    """Return a Content-Security-Policy for the page's own script and style only."""
    hashes = {}
    for tag in ("script", "style"):
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = hashlib.sha256(text.encode()).digest()
        hashes[tag] = f"'sha256-{base64.b64encode(digest).decode()}'"
    return (
        f"default-src 'none'; script-src {hashes['script']}; "
        f"style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; frame-ancestors 'none'"
    )


PAGE_POLICY = policy(PAGE)


class StatusHandler(http.server.BaseHTTPRequestHandler):
    """A status client, on a thread of its own ("status-N")."""

    server: StatusServer
    server_version = "load_balancer"
    sys_version = ""
    timeout = STATUS_TIMEOUT_S  # per read or write; the oldest makes way anyway

    def do_GET(self) -> None:
        """Answer /, /status.json, /metrics, /healthz."""
        if not self._is_own_host():
            return
        path, pool = self.path.partition("?")[0], self.server.pool
        if path == "/":
            self._reply(200, "text/html; charset=utf-8", PAGE)
        elif path == "/status.json":
            text = json.dumps(self._status(figures_of(pool.snapshot())))
            self._reply(200, "application/json", text)
        elif path == "/metrics":
            text = render_metrics(figures_of(pool.snapshot()))
            self._reply(200, "text/plain; version=0.0.4", text)
        elif path == "/healthz":
            words = "ok\n" if pool.is_up() else "no server is UP\n"
            if pool.stopping.is_set():
                words = "stopping\n"
            self._reply(200 if words == "ok\n" else 503, "text/plain", words)
        else:
            words = "try /, /status.json, /metrics or /healthz\n"
            self._reply(404, "text/plain", words)

    def do_HEAD(self) -> None:
        """Answer like GET; `_reply` leaves the body out."""
        self.do_GET()

    def do_POST(self) -> None:
        """Carry out /servers/HOST:PORT/drain, /ready or /maint, for our page only."""
        if not (self._is_own_host() and self._is_own_page()):
            return
        _, *path = self.path.split("/")
        if len(path) != 3 or path[0] != "servers" or path[2] not in ADMIN:
            words = "POST /servers/HOST:PORT/drain|ready|maint\n"
            self._reply(404, "text/plain", words)
            return
        address_text, admin = urllib.parse.unquote(path[1]), path[2]
        if self.server.set_admin(address_text, admin):
            self._reply(200, "text/plain", f"{address_text}: {admin}\n")
        else:
            self._reply(404, "text/plain", f"no server {address_text}\n")

    def _status(self, figures: dict[str, Any]) -> dict[str, Any]:
        shown = {key: value for key, value in figures.items() if key != "connects"}
        return {"version": 1, "listen": self.server.listen_text, **shown}

    def _is_own_host(self) -> bool:
        """Refuse a name that only a foreign DNS would give us (DNS rebinding)."""
        given, host = self.headers.get("Host"), None
        if given is None and self.command != "POST":
            return True  # no browser: those always name it (RFC 9112, 3.2)
        with contextlib.suppress(ValueError):  # "[" is none
            host = urllib.parse.urlsplit(f"//{given or ''}").hostname
        address = str(plain_ip(self.connection.getsockname()[0]))
        if host in (address, "localhost", self.server.host.lower()):
            return True
        self._reply(421, "text/plain", "this is not the host that you asked for\n")
        return False

    def _is_own_page(self) -> bool:
        """Refuse a foreign page: it can neither claim our origin nor add a header."""
        origin_here = f"http://{self.headers.get('Host')}"
        origin, referer = self.headers.get("Origin"), self.headers.get("Referer")
        from_here = f"{referer or origin_here}/".startswith(f"{origin_here}/")
        ours = origin in (origin_here, None) and from_here
        if ours and (origin or self.headers.get("X-Requested-With")):
            return True
        words = "send the header X-Requested-With: load-balancer\n"
        self._reply(403, "text/plain", words)
        return False

    def _reply(self, code: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Content-Security-Policy", PAGE_POLICY)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        """Log no requests: the log is about sessions."""


class StatusServer(http.server.ThreadingHTTPServer):
    """The status page; its oldest client is cut off when there are too many.

    `_lock` guards `_open`, the connections that are being served, oldest first.
    """

    daemon_threads = True
    request_queue_size = 128  # socketserver's 5 lets a crowd wait for SYN retries

    def __init__(
        self, where: tuple[str, int], listen_text: str, frontend: Frontend
    ) -> None:
        """Listen for status clients; raise OSError."""
        self.host, self.listen_text = where[0], listen_text
        self.pool, self._frontend = frontend.pool, frontend
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}
        family, address = resolve(*where)[0]
        self.address_family = family
        super().__init__(address[:2], StatusHandler)
        self._thread = new_thread("status", self.serve_forever, 0.25)

    def server_bind(self) -> None:
        """Bind without asking the DNS for our own name, as HTTPServer would."""
        socketserver.TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def start(self) -> None:
        """Start the thread "status"."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more requests; close the port."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take in a client; beyond STATUS_CONNECTIONS the oldest is cut off."""
        with self._lock:
            self._open[request] = None
            if len(self._open) > STATUS_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                shut_down(oldest, socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Thread "status-N": serve the requests of the client at port N."""
        threading.current_thread().name = f"status-{client_address[1]}"
        super().process_request_thread(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a client's connection, and count it no longer."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a status client that leaves early; show a defect."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()

    def set_admin(self, address_text: str, admin: str) -> bool:
        """Set a server ready, drain or maint; False when there is none there."""
        line = self.pool.set_admin(address_text, admin)
        if line is None:
            return False
        self._frontend.log.line(line)
        self._frontend.queue.wake()
        return True


# ---- Command line --------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Say what is wrong in one line; the whole usage is one `--help` away."""

    def error(self, message: str) -> NoReturn:
        """Print one line on standard error; exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def parse_seconds(text: str) -> float:
    """Return a number of seconds, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def parse_positive_seconds(text: str) -> float:
    """Return a number of seconds above 0."""
    if not (value := parse_seconds(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not more than 0 seconds")
    return value


def parse_count(text: str) -> int:
    """Return a whole number, 0 or more."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def parse_positive_count(text: str) -> int:
    """Return a whole number, 1 or more."""
    if not (value := parse_count(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return value


def parse_workers(text: str) -> int:
    """Return how many processes relay; 0 stands for `auto`."""
    value = 0 if text == "auto" else parse_positive_count(text)
    if value > 256:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 256 processes")
    return value


def parse_network(text: str) -> Network:
    """Return the network that a CIDR or a single address names."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        why = f"{text!r} is not an address or CIDR: {error}"
        raise argparse.ArgumentTypeError(why) from None


def parse_server(text: str) -> dict[str, Any]:
    """Return what is in HOST:PORT[,weight=N][,backup][,max=N]."""
    name, *words = text.split(",")
    host, port = parse_address(name)
    if not port:
        why = f"{name!r} has port 0: a server listens on 1 to 65535"
        raise argparse.ArgumentTypeError(why)
    given: dict[str, Any] = {"host": host, "port": port}
    given |= {"weight": 1, "backup": False, "max": 0}
    for word in words:
        key, equals, value = word.partition("=")
        if word == "backup":
            given["backup"] = True
        elif not equals or key not in ("weight", "max"):
            why = f"{word!r} is none of weight=N, backup, max=N"
            raise argparse.ArgumentTypeError(why)
        else:
            try:
                given[key] = parse_count(value)
            except argparse.ArgumentTypeError as error:
                raise argparse.ArgumentTypeError(f"{key}: {error}") from None
    if given["weight"] > 256:
        raise argparse.ArgumentTypeError(f"weight={given['weight']} is more than 256")
    return given


class OptionGroup:
    """A group of options in the help; the help of each one ends with its default."""

    def __init__(self, parser: Parser, title: str) -> None:
        self._group = parser.add_argument_group(title)

    def add(self, name: str, text: str, shown: str = "off", **how: Any) -> None:
        """Add an option; `how` is for argparse."""
        self._group.add_argument(name, help=f"{text} (default: {shown})", **how)

    def number(
        self, name: str, parse: Callable[[str], float], default: float, text: str
    ) -> None:
        """Add seconds, when the default is a float, or a count."""
        unit = "S" if isinstance(default, float) else "N"
        shown = f"{default:g}"
        self.add(name, text, shown, type=parse, default=default, metavar=unit)


def add_addresses(group: OptionGroup) -> None:
    """Add the options that say where clients come from and where they go."""
    shown, form = "127.0.0.1:9990", "HOST:PORT"
    usual, parse = parse_address(shown), parse_address
    text = "accept clients here"
    group.add("--listen", text, shown, type=parse, default=usual, metavar=form)
    form += "[,weight=N][,backup][,max=N]"
    shown = "127.0.0.1:9991, :9992, :9993"
    text = "send clients to this server; repeat for more"
    many: dict[str, Any] = {"action": "append", "dest": "servers"}
    group.add("--server", text, shown, type=parse_server, metavar=form, **many)
    text = "choose the next server by this rule; random: the less loaded of two"
    shown = ALGORITHMS[0]
    group.add("--algorithm", text, shown, choices=ALGORITHMS, default=shown)
    text = "relay in N processes; auto: one per core"
    group.number("--workers", parse_workers, 1, text)


def add_checks(group: OptionGroup) -> None:
    """Add the options that say when a server is UP."""
    seconds, count = parse_positive_seconds, parse_positive_count
    text = "connect to each server every S seconds"
    group.number("--check-interval", seconds, 2.0, text)
    group.number("--rise", count, 2, "call a server UP after N good checks")
    text = "call a server DOWN after N failed checks, or connects for clients"
    group.number("--fall", count, 3, text)
    group.number("--check-timeout", seconds, 2.0, "let a check fail after S seconds")
    text = "judge servers by clients' connects alone"
    group.add("--no-checks", text, action="store_true")


def add_limits(group: OptionGroup) -> None:
    """Add the options that bound time and number."""
    text = "try another server after S seconds"
    group.number("--connect-timeout", parse_positive_seconds, 3.0, text)
    text = "close after S seconds without a byte; 0: never"
    group.number("--idle-timeout", parse_seconds, 3600.0, text)
    text = "close after S seconds without a byte once one side has ended; 0: never"
    group.number("--half-close-timeout", parse_seconds, 300.0, text)
    text = "let live connections end for S seconds at a stop"
    group.number("--grace", parse_seconds, 30.0, text)
    text = "close after S seconds in the queue for a place at a server; 0: never"
    group.number("--queue-timeout", parse_seconds, 5.0, text)
    text = "serve N at once, let more wait to be accepted; 0: no limit but descriptors"
    group.number("--max-connections", parse_count, 0, text)


def add_access(group: OptionGroup) -> None:
    """Add the options that say who may come, and as whom."""
    networks: dict[str, Any] = {"type": parse_network, "metavar": "CIDR"}
    networks["action"] = "append"
    text = "refuse clients from elsewhere; repeat for more"
    group.add("--allow", text, "all may come", **networks)
    text = "require a PROXY header, version 1 or 2, from these sources and refuse all "
    text += "others; repeat for more"
    group.add("--accept-proxy", text, **networks)
    text = "tell servers the client's address by a PROXY header"
    group.add("--send-proxy", text, choices=("v1", "v2"))


def add_output(group: OptionGroup) -> None:
    """Add the options that say what an operator sees."""
    text = "serve a live page, /status.json, /metrics and /healthz here"
    group.add("--status", text, type=parse_address, metavar="HOST:PORT")
    text = "append the log to FILE"
    group.add("--log", text, "standard output", metavar="FILE")
    text = "print nothing but the first line; a --log FILE is still written"
    group.add("--quiet", text, action="store_true")


def parse_args(argv: Sequence[str] | None) -> Options:
    """Return the options; exit with status 2 and one line when they are wrong."""
    parser = Parser(
        prog="load_balancer.py",
        description="Hand TCP connections to servers in turn, and relay their bytes.",
        epilog="SIGTERM or Ctrl-C: stop accepting, let live connections end for "
        "--grace seconds; a second one: exit at once. SIGHUP: reopen --log.",
    )
    add_addresses(OptionGroup(parser, "addresses"))
    add_checks(OptionGroup(parser, "checks"))
    add_limits(OptionGroup(parser, "limits"))
    add_access(OptionGroup(parser, "access"))
    add_output(OptionGroup(parser, "output"))
    options = parser.parse_args(argv)
    if options.workers == 0:
        options.workers = usable_cores() if CAN_SEND_SOCKETS else 1
    if options.workers > 1 and not CAN_SEND_SOCKETS:
        why = "this system cannot pass sockets to a process: use --workers 1"
        parser.error(f"--workers: {why}")
    given = options.servers or [parse_server(f"127.0.0.1:{p}") for p in DEFAULT_PORTS]
    servers = [
        server
        for server_given in given
        for server in make_servers(parser, options, server_given)
    ]
    addresses = [server.address for server in servers]
    for server in servers:
        if addresses.count(server.address) > 1:
            parser.error(f"--server: {server.address_text} is given more than once")
    options.servers = servers
    return options


def make_servers(
    parser: Parser, options: Options, server_given: dict[str, Any]
) -> list[Server]:
    """Return a server for every address of a --server; exit 2 if it has none."""
    where = host, port = server_given["host"], server_given["port"]
    try:
        resolved = resolve(host, port)
    except (OSError, UnicodeError) as error:
        parser.error(f"--server: cannot resolve {host!r}: {error.args[-1]}")
    settings = (server_given["weight"], server_given["backup"], server_given["max"])
    thresholds = (options.rise, options.fall)
    return [
        Server(format_address(where), family, address, *settings, *thresholds)
        for family, address in resolved
    ]


def handled_signals() -> list[int]:
    """Return the numbers of the signals that mean something to us, where there are."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


class Signals:
    """SIGTERM or Ctrl-C asks to stop, a second one to exit at once; SIGHUP: a new log.

    Signals become bytes of a socket (signal.set_wakeup_fd) that thread "signals" reads:
    so they are obeyed whatever the MainThread is waiting for.
    """

    def __init__(self) -> None:
        self.stop_asked = threading.Event()
        self._inner, self._outer = socket.socketpair()
        self._outer.setblocking(False)
        # In this order: a handler without the descriptor would swallow a signal.
        fd = self._outer.fileno()
        self._old_fd = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        self._old = {n: signal.signal(n, lambda *_: None) for n in handled_signals()}
        self._thread: threading.Thread | None = None

    def start(self, reopen: Callable[[], None], exit_now: Callable[[], None]) -> None:
        """Start the thread "signals"; signals that came before are not lost."""
        self._thread = new_thread("signals", self._obey, reopen, exit_now)
        self._thread.start()

    def _obey(self, reopen: Callable[[], None], exit_now: Callable[[], None]) -> None:
        """Thread "signals"."""
        hangup = getattr(signal, "SIGHUP", None)
        while number := self._inner.recv(1)[0]:
            if number == hangup:
                reopen()
            elif self.stop_asked.is_set():
                exit_now()
            else:
                self.stop_asked.set()

    def close(self) -> None:
        """Handle signals as before; end the thread."""
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._outer.send(b"\0")
        if self._thread and self._thread.ident:  # it was started
            self._thread.join()
        self._inner.close()
        self._outer.close()


class StartError(Exception):
    """Why the balancer cannot run, in one line, and the exit status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@contextlib.contextmanager
def start_step(what_fails: str, status: int = 1) -> Iterator[None]:
    """Raise StartError when a step of the start cannot be done; 2 for a wrong name."""
    try:
        yield
    except (OSError, UnicodeError, RuntimeError) as error:
        if isinstance(error, (socket.gaierror, UnicodeError)):
            status = 2
        why = say_why(error) if isinstance(error, OSError) else str(error)
        raise StartError(status, f"{what_fails}: {why}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the balancer until a signal stops it; return the exit status."""
    options = parse_args(argv)
    threading.stack_size(STACK_BYTES)
    with contextlib.ExitStack() as stack:
        try:
            signals = stack.enter_context(contextlib.closing(Signals()))
            with start_step(f"--log: cannot write {options.log}", 2):
                log = Log(options.log, options.quiet)
            stack.enter_context(contextlib.closing(log))
            run(options, log, signals)
        except StartError as error:
            print(f"load_balancer.py: {error}", file=sys.stderr)
            return error.status
    return 0


def run(options: Options, log: Log, signals: Signals) -> None:
    """Open the ports, start processes and threads, stop them; raise StartError."""
    with start_step(f"--listen: cannot listen on {format_address(options.listen)}"):
        listener = open_listener(*options.listen)
    descriptors = raise_descriptor_limit() or MAX_SLOTS
    Pipe.set_budget(pipe_budget(descriptors))
    frontend = Frontend(listener, make_pool(options, descriptors), log)
    checks, status = Checks(frontend), None
    where = format_address(listener.getsockname())
    about = f"up to {frontend.pool.limit:,} connections"
    with contextlib.ExitStack() as undo:  # what was opened, should the rest fail
        undo.callback(frontend.close)
        undo.callback(frontend.kill_workers)
        if options.status:
            on = format_address(options.status)
            with start_step(f"--status: cannot listen on {on}"):
                status = StatusServer(options.status, where, frontend)
            undo.callback(status.server_close)
            about += f"; status on http://{format_address(status.server_address)}/"
        add_workers(frontend, sessions_per_process(options, descriptors))
        print(f"listening on {where} ({about})", flush=True)
        with start_step("cannot start"):
            log.start()
            signals.start(log.reopen, frontend.exit_now)
            start_threads(frontend, checks, status)
        undo.pop_all()
    notify("READY=1")
    signals.stop_asked.wait()
    notify("STOPPING=1")
    frontend.stop_accepting()
    frontend.pool.wait_until_empty(options.grace)
    if status is not None:
        status.stop()
    checks.stop()
    frontend.stop()


def start_threads(
    frontend: Frontend, checks: Checks, status: StatusServer | None
) -> None:
    """Start what runs in threads; the worker processes were forked while none did.

    Checks and status wake the frontend's queue: they start after it, and are stopped
    before it.
    """
    for worker in frontend.pool.workers:
        worker.start()
    frontend.start()
    checks.start()
    if status is not None:
        status.start()


def add_workers(frontend: Frontend, max_sessions: int) -> None:
    """Add one worker in this process, or several, each in its own."""
    kind = ThreadWorker if frontend.options.workers == 1 else ProcessWorker
    # Python warns of a fork beside threads: `ProcessWorker._fork` says why it may.
    warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
    with start_step("--workers: cannot fork"):
        for _ in range(frontend.options.workers):
            frontend.pool.add_worker(kind(frontend, max_sessions))


def make_pool(options: Options, descriptors: int) -> Pool:
    """Return the pool, with its limits."""
    slots = sessions_per_process(options, descriptors) * options.workers
    if options.workers == 1:
        return Pool(options, min(slots, MAX_SLOTS))
    in_main = max(1, descriptors - own_descriptors(options))
    return Pool(options, min(slots, MAX_SLOTS), in_main)


def own_descriptors(options: Options) -> int:
    """Return how many descriptors a process needs beside those of connections."""
    number: int = OWN_DESCRIPTORS + len(options.servers) + options.workers
    return number + (STATUS_CONNECTIONS + 2 if options.status else 0)


def pipe_budget(descriptors: int) -> int:
    """Return how many pipes (two descriptors each) connections leave to a process."""
    return min(64, descriptors // 32)


def sessions_per_process(options: Options, descriptors: int) -> int:
    """Return how many sessions (two descriptors each) one process can hold."""
    for_sessions = descriptors - own_descriptors(options)
    return max(1, for_sessions // 2 - pipe_budget(descriptors))


def open_listener(host: str, port: int) -> socket.socket:
    """Return the listening socket: systemd's, or a new one; raise OSError.

    A socket of systemd's (sd_listen_fds(3)) outlives us: a restart refuses nobody.
    """
    ours = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    if os.environ.pop("LISTEN_FDS", "0") != "0" and ours:
        listener = socket.socket(fileno=3)
    else:
        family, address = resolve(host, port)[0]
        both = host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(
            address[:2], family=family, backlog=LISTEN_QUEUE, dualstack_ipv6=both
        )
    prepare(listener)  # accepted sockets inherit it
    return listener


def notify(message: str) -> None:
    """Tell systemd how we are, when it wants to know (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path and hasattr(socket, "AF_UNIX"):
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        ):
            where = "\0" + path[1:] if path[0] == "@" else path  # abstract (unix(7))
            sock.sendto(message.encode(), where)


if __name__ == "__main__":
    exit_status = main()
    for signal_number in handled_signals():  # none that comes late changes the status
        signal.signal(signal_number, signal.SIG_IGN)
    sys.exit(exit_status)
