"""A TCP load balancer: one port in front, many servers behind, a thread per session.

    client ─► frontend :9990 ──► pool.pick() ─► connect ─► relay ◄─► server :9991
              accept, --allow    who is next    or the     bytes,           :9992
              (thread "accept")  (one lock)     next one   both ways        :9993

The life of a session, and where to read it:

    Frontend.accept_clients   takes the client from the listen queue
    Pool.pick                 chooses the server: the only place where that is decided
    Crew._serve               a thread of its own: PROXY headers in and out, connect
    Relay.run                 moves bytes both ways until both sides have ended
    Relay._bury               one side died: its last bytes, then a reset, for the other
    Frontend._end             counts, frees the place, one log line, wakes who waited

A session is a client's connection together with the one to its server; the log, the
figures and the page, made for people, call it a connection.

A connect that fails hands the session back to the frontend, which picks another server:
nothing is retried once a byte of the client was forwarded. A session for which every
server is at its limit waits in the queue, first in, first out.

Three words: a server has `max` *places*, of which a session takes one from pick to end;
there is *room* for so many sessions as descriptors and threads last; a *slot* is the
session's row in the shared counters, and its name between processes.

Threads of the main process: the first one, which waits for signals; "accept"; "queue"
(sessions with no server: after a PROXY header, between two tries, or waiting for a
place); "check-HOST:PORT", one per server;
"resolve" (names that move); "log"; "status", and "status-N" for its client at port N.
One "connection-N" per live session, "connection-idle…" between two, and "spare", which
starts them, so that some are always waiting: these are a crew.

With `--workers N`, N above 1, there are N crews, each in a process of its own whose
first thread is the "spare" one. The main process forks them, has one thread "worker-N"
to hear each, and still accepts, picks, limits, counts and logs. It passes the accepted
socket on (unix(7), SCM_RIGHTS); the worker reports how the session ended. A process
that dies takes its sessions with it and is replaced (`ProcessWorker._restart`). The
byte counts of live sessions are in shared memory.

Bytes are never looked at. A direction that has moved much is spliced inside the kernel
(splice(2)) where the system can. An end of file is passed on as an end of file
(half-close), a reset as a reset, and neither before the bytes that came first have been
delivered.

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
import errno
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn, Protocol

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
LISTEN_BACKLOG = 4096  # the kernel lowers it to somaxconn (listen(2))
# A vanished peer is found after 60 + 4 x 15 s (tcp(7)).
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
PROXY_HEADER_TIMEOUT_S = 5.0  # at least 3 s, a retransmitted segment (proxy-protocol 2)
BACKOFF_S = 0.1  # pause of a listener when the system has run out of something
PENALTY_S = 10.0  # --no-checks: first pause of a server that refused, then doubled
PENALTY_MAX_S = 300.0
SPARE_THREADS = 8  # at least so many wait for the next connection ...
IDLE_THREADS = 64  # ... and at most; the others end
STACK_BYTES = 262144  # enough for the relay; the default of 8 MiB is only address space
CUT_S = 1.0  # for sessions to end after their sockets were shut down, in two ways
WORKER_STALL_S = 5.0  # a worker that takes nothing for so long is replaced
LOG_BATCH_S = 0.02  # a busy log is written in batches, not a wake-up for each line:
LOG_BURST_WRITES = 10  # ... busy after so many writes, each so soon after the last
LOG_BATCH_LINES = 256  # at most, by one write
LOG_BACKLOG_LINES = 100_000  # beyond that a stalled terminal or disk loses lines
OWN_DESCRIPTORS = 16  # standard streams, listener, log, what wakes the threads
STATUS_CONNECTIONS = 16  # at once; the oldest makes room for the newest
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


class Parser(argparse.ArgumentParser):
    """Say what is wrong in one line; the whole usage is one `--help` away."""

    def error(self, message: str) -> NoReturn:
        """Print one line on standard error; exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


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
    found = socket.getaddrinfo(host, port, type=kind, flags=flags)
    return sorted({(int(family), address) for family, _, _, _, address in found})


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


def raise_descriptor_limit() -> int:
    """Raise the soft descriptor limit to the hard one; return it (getrlimit(2))."""
    if resource is None:
        return 65536  # Windows has no such limit
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else int(soft)


def count(number: int, noun: str) -> str:
    """Return "1 line", "2 lines"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def usable_cores() -> int:
    """Return how many processor cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def unacknowledged(sock: socket.socket) -> int:
    """Return how many sent bytes the peer has not acknowledged (tcp(7), SIOCOUTQ)."""
    if fcntl is None or not hasattr(termios, "TIOCOUTQ"):
        return 0
    answer = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(sock, termios.TIOCOUTQ, answer)
    return answer[0]


def keep_alive(sock: socket.socket) -> None:
    """Find out when the peer has vanished (tcp(7)); send without waiting."""
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
    """Let its thread find a way ended; never waits (shutdown(2))."""
    with contextlib.suppress(OSError):
        sock.shutdown(how)


def daemon(name: str, target: Callable[..., None], *args: Any) -> threading.Thread:
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

    def take(size: int, flags: int = 0) -> bytes:
        """Return the next bytes, `size` at most, before the deadline."""
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        data = sock.recv(size, flags)
        if not data:
            raise ConnectionError("closed inside the PROXY header")
        return data

    header = take(1)
    while header.startswith(b"P") and not header.endswith(b"\n"):
        ahead = take(PROXY_V1_MAX_BYTES - len(header), socket.MSG_PEEK)
        header += take(ahead.find(b"\n") + 1 or len(ahead))
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
        header += take(16 - len(header))
    whole = 16 + int.from_bytes(header[14:16], "big")
    while len(header) < whole:
        header += take(whole - len(header))
    return parse_proxy_v2(header)


# ---- Pool: every decision, limit and figure ------------------------------------------
# Servers, sessions, limits and totals, under one lock. Nothing in here uses a socket,
# and nothing waits but the two `wait_…` and `move`.


@dataclass(eq=False, slots=True)
class Server:
    """One server: options, health and figures; guarded by the pool's lock."""

    name: str  # "host:port" as the option gives it
    family: int
    address: SocketAddress
    weight: int
    backup: bool
    max: int  # how many places: sessions at once; 0 = no limit
    health: int  # 0 … rise + fall - 1; UP at `rise` and above, like HAProxy's check.c
    admin: str = ADMIN[0]  # what the operator has set it to
    gone: bool = False  # its name no longer resolves to it
    credit: int = 0  # smooth round robin: who has waited longest, by weight
    active: int = 0  # places that are taken
    total: int = 0
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

    @property
    def label(self) -> str:
        """Its address: what it is called in the log and in the figures."""
        return format_address(self.address)

    def connected(self, seconds: float) -> None:
        """Count one connection that was made in so many seconds."""
        self.total += 1
        self.connect_s += seconds
        self.connects[bisect.bisect_left(CONNECT_BUCKETS_S, seconds)] += 1


@dataclass(eq=False, slots=True)
class Session:
    """One client's connection, from accept to its line in the log.

    Owned by the thread that places it ("accept", later "queue"), then by the worker
    that has it, then by the thread that ends it. It changes hands, and what the figures
    show of it (`server`, `source`) changes, under the pool's lock.
    """

    number: int
    slot: int  # its row in the shared counters
    worker: Worker
    source: SocketAddress  # the client, or whom its PROXY header names
    client: socket.socket | None  # while no worker has it
    destination: SocketAddress | None = None  # as its PROXY header has it
    barred: bool = False  # whom the header names is not in --allow
    accepted_s: float = field(default_factory=time.monotonic)
    server: Server | None = None
    tried: list[Server] = field(default_factory=list)
    failure: End | None = None  # of the last connect that failed
    queued_s: float = 0.0  # since when it waits for a place at a server


@dataclass(frozen=True, slots=True)
class End:
    """How a session ended: HAProxy's two-letter code, and the same in words."""

    code: str
    words: str
    undelivered: int = 0  # bytes taken from one side that the other never acknowledged

    @property
    def blames_server(self) -> bool:
        """Whether the server is at fault: not the client, not this machine."""
        return self.code[0] in "sS"


TO_SERVER, TO_CLIENT, LAST_NS, CONNECT_NS = range(4)  # the cells of a row


class Row(NamedTuple):
    """What a session's counters say at a moment."""

    to_server: int  # bytes
    to_client: int
    last_ns: int  # when bytes were last taken from a side; 0 = never connected
    connect_ns: int  # how long the connect took; 0 = never connected


class Counters:
    """A row of four numbers per live session, in memory shared by all processes.

    Only the thread that relays a session writes its row, everyone may read it, and a
    row is given out again only after its session was reported as ended: so no lock is
    needed.
    """

    def __init__(self, rows: int) -> None:
        memory = mmap.mmap(-1, rows * 4 * 8)  # shared with what we fork
        self._cells = memoryview(memory).cast("q")

    def cells(self, slot: int) -> memoryview:
        """Return a session's row, to be written."""
        return self._cells[slot * 4 : slot * 4 + 4]

    def read(self, slot: int) -> Row:
        """Return what a session's row says now."""
        return Row(*self.cells(slot))

    def clear(self, slot: int) -> None:
        """Set a row to zero, for the next session."""
        self.cells(slot)[:] = array.array("q", [0] * 4)


@dataclass(frozen=True, slots=True)
class Ended:
    """What the pool says of a session that ended, and what follows from it."""

    row: Row
    health: str  # a line for the log when it brought its server UP
    others_wait: bool


NO_SERVER = End("SC", "no server available")
WORKER_DIED = End("ID", "its worker process died")


class NoServerError(Exception):
    """No server is left that this session could be sent to."""


class Pool:
    """Servers and sessions: who is next, who is at a limit, how much was moved.

    `_lock` guards the servers (list and fields), the sessions (dictionaries and
    fields), the free slots, the workers' loads and the totals. `_room` is notified when
    a session ends, a worker's capacity changes, or the pool is `stopping`: from then on
    no session begins, while the live ones may go on. The two events need no lock to be
    asked; they change under it. A method whose name begins with _ wants the lock held.
    """

    def __init__(self, options: Options, slots: int) -> None:
        self.options = options
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._servers: list[Server] = list(options.servers)
        self.counters = Counters(slots)
        self.workers: list[Worker] = []
        self._capacity = 0  # of all live workers
        self._top = options.rise + options.fall - 1  # full health
        self._free = list(range(slots - 1, -1, -1))
        self.limit = min(options.max_connections or slots, slots)
        self._live: dict[int, Session] = {}
        self._waiting: dict[int, Session] = {}  # by slot, whoever has no server now
        self._random = random.Random()
        self._started_s = time.monotonic()
        self.stopping = threading.Event()
        self.fail_open = threading.Event()  # no server is UP: all are tried
        self.total = self.failed = self.refused = 0
        self._to_servers = self._to_clients = 0  # bytes of sessions that have ended

    # Choosing -------------------------------------------------------------------------

    def pick(self, session: Session) -> Server | None:
        """Choose the session's server and take a place there; None: wait for a place.

        Raise NoServerError when all that could be tried have been. A session that waits
        is passed by nobody: as long as others wait, a new one waits behind them.
        """
        with self._lock:
            candidates = self._candidates(session.tried)
            if self.options.algorithm == "source" and candidates:
                best = max(candidates, key=lambda s: rendezvous(session.source[0], s))
                free = [best] if has_place(best) else []
            else:
                free = [s for s in candidates if has_place(s)]
            is_new = session.slot not in self._waiting
            overtakes = self._waiting and is_new and any(s.max for s in candidates)
            if not free or overtakes:
                if not session.queued_s:
                    session.queued_s = time.monotonic()
                self._waiting[session.slot] = session
                return None
            server = self._choose(free)
            server.active += 1
            if session.tried:
                session.tried[-1].retries += 1  # where it failed: HAProxy's wretr
            session.server = server
            session.queued_s = 0.0
            self._waiting.pop(session.slot, None)
            return server

    def _candidates(self, tried: list[Server]) -> list[Server]:
        """Return who may be asked: UP servers, else a backup, else (fail open) any."""
        present = [s for s in self._servers if not s.gone]
        ready = [s for s in present if s.admin == "ready" and s.weight]
        up = [s for s in ready if self._is_up(s)]
        fail_open = bool(ready) and not up
        if fail_open != self.fail_open.is_set():
            (self.fail_open.set if fail_open else self.fail_open.clear)()
        untried = [s for s in up or ready if s not in tried]
        if not untried and tried:
            raise NoServerError
        if fail_open:
            return untried
        # Without a server of the first rank the first backup serves all, like HAProxy.
        return [s for s in untried if not s.backup] or untried[:1]

    def _choose(self, servers: list[Server]) -> Server:
        algorithm = self.options.algorithm
        if algorithm == "random" and len(servers) > 1:
            weights = [s.weight for s in servers]
            servers = self._random.choices(servers, weights, k=2)
        if algorithm in ("leastconn", "random"):
            least = min(s.active / s.weight for s in servers)
            servers = [s for s in servers if s.active / s.weight == least]
        return smooth_round_robin(servers)

    # Sessions -------------------------------------------------------------------------

    def wait_for_room(self) -> bool:
        """Wait until one more session may begin; False when the pool stops."""
        with self._room:
            while not self.stopping.is_set() and not self._has_room():
                self._room.wait()
            return not self.stopping.is_set()

    def _has_room(self) -> bool:
        return len(self._live) < min(self.limit, self._capacity)

    def admit(self, client: socket.socket, peer: SocketAddress) -> Session:
        """Begin a session: give it a number, a slot and a worker."""
        with self._lock:
            self.total += 1
            slot = self._free.pop()
            self.counters.clear(slot)
            worker = self._least_busy()
            worker.active += 1
            session = Session(self.total, slot, worker, peer, client)
            self._live[slot] = session
            return session

    def _least_busy(self) -> Worker:
        """Return the live worker that is least full, the first among equals."""
        alive = [w for w in self.workers if w.alive] or self.workers
        return min(alive, key=lambda w: w.active / w.capacity)

    def move(self, session: Session) -> bool:
        """Give the session another worker: its own died before it took the client.

        Wait for one if none is alive; False when the pool stops before.
        """
        with self._room:
            self._room.wait_for(lambda: self._capacity or self.stopping.is_set())
            if not self._capacity:
                return False
            session.worker.active -= 1
            session.worker = self._least_busy()
            session.worker.active += 1
            return True

    def session(self, slot: int) -> Session:
        """Return the live session of a slot."""
        with self._lock:
            return self._live[slot]

    def live(self, slot: int) -> Session | None:
        """Return the session of a slot, None when all were ended at shutdown."""
        with self._lock:
            return self._live.get(slot)

    def header_read(
        self, slot: int, client: socket.socket, header: Header, barred: bool
    ) -> None:
        """Note whom the session's PROXY header names; it can be placed now."""
        with self._lock:
            session = self._live[slot]
            session.client, session.barred = client, barred
            session.queued_s = time.monotonic()
            self._waiting[slot] = session
            if header.source and header.destination:
                session.source, session.destination = header.source, header.destination

    def connect_failed(self, slot: int, client: socket.socket, end: End) -> Server:
        """Take a session off the server that it could not be connected to."""
        with self._lock:
            session = self._live[slot]
            server = session.server
            assert server is not None
            session.client = client
            server.active -= 1
            server.connect_failures += end.blames_server
            session.tried.append(server)
            session.server = None
            session.failure = end
            self._waiting[session.slot] = session
            return server

    def end(self, session: Session, end: End) -> Ended | None:
        """End a session: count it, free its place at its server and its worker."""
        with self._lock:
            if self._live.get(session.slot) is not session:
                return None  # ended already
            row = self.counters.read(session.slot)
            del self._live[session.slot]
            self._waiting.pop(session.slot, None)
            self._free.append(session.slot)
            session.worker.active -= 1
            self._to_servers += row.to_server
            self._to_clients += row.to_client
            connected = row.connect_ns > 0
            self.refused += end.code == "PC"
            self.failed += not connected and end.code[0] not in "CPK"
            health = ""
            if session.server is not None:
                session.server.active -= 1
                add_row(session.server, row)
                # A session that is older than the last failure says nothing of now.
                fresh = session.accepted_s > session.server.failed_s
                if connected and fresh and session.server.health < self._top:
                    health = self._tally(session.server, True, "connected for a client")
            self._room.notify_all()
            return Ended(row, health, bool(self._waiting))

    def sessions(self) -> list[Session]:
        """Return the live sessions, in the order in which they came."""
        with self._lock:
            return list(self._live.values())

    def waiting(self) -> list[Session]:
        """Return the sessions without a server, in the order in which they came."""
        with self._lock:
            return sorted(self._waiting.values(), key=lambda session: session.number)

    def refuse(self) -> None:
        """Count a client that may not come."""
        with self._lock:
            self.total += 1
            self.refused += 1

    @property
    def active(self) -> int:
        """How many sessions are live."""
        with self._lock:
            return len(self._live)

    def set_capacity(self, worker: Worker, capacity: int) -> None:
        """Say how many sessions a worker can hold: as many as it has threads."""
        with self._room:
            worker.capacity = max(1, capacity)
            self._sum_up()

    def set_alive(self, worker: Worker, alive: bool) -> None:
        """Say whether a worker can take sessions, or its process died."""
        with self._room:
            worker.alive = alive
            self._sum_up()

    def _sum_up(self) -> None:
        self._capacity = sum(w.capacity for w in self.workers if w.alive)
        self._room.notify_all()

    def add_worker(self, worker: Worker) -> None:
        """Let a worker have sessions; called before any begins."""
        self.workers.append(worker)
        self.set_capacity(worker, worker.room)

    def stop(self) -> None:
        """Begin no more sessions."""
        with self._room:
            self.stopping.set()
            self._room.notify_all()

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until no session is live; False when one is after `timeout_s`."""
        with self._room:
            return self._room.wait_for(lambda: not self._live, timeout_s)

    # Health ---------------------------------------------------------------------------

    def _is_up(self, server: Server) -> bool:
        rise: int = self.options.rise
        return server.health >= rise

    def _state(self, server: Server) -> str:
        if server.gone:
            return DRAIN  # its live sessions go on
        if server.admin != "ready":
            return DRAIN if server.admin == "drain" else MAINT
        return UP if self._is_up(server) else DOWN

    def record_check(self, server: Server, passed: bool | None, result: str) -> str:
        """Note the result of a check, None: no result; return a line for a change."""
        with self._lock:
            server.last_check = result
            return "" if passed is None else self._tally(server, passed, result)

    def record_refusal(self, server: Server, why: str) -> str:
        """Hold a client's failed connect against its server, like a failed check."""
        with self._lock:
            if self._is_up(server) and self._has_connected_since(server):
                self._tally(server, True, "connected for a client")  # stays UP: no line
            return self._tally(server, False, why)

    def _has_connected_since(self, server: Server) -> bool:
        """Tell whether a live session was connected after the server's last failure."""
        for session in reversed(self._live.values()):  # the newest first
            if session.accepted_s <= server.failed_s:
                break
            if session.server is server and self.counters.read(session.slot).connect_ns:
                return True
        return False

    def _tally(self, server: Server, passed: bool, result: str) -> str:
        """Move a server's health by one pass or failure.

        One integer holds rise, fall and state: at `rise` and above the server is UP; a
        pass there jumps to the top, a failure below drops to 0 (HAProxy, check.c).
        """
        rise, fall = self.options.rise, self.options.fall
        before = self._state(server)
        if passed:
            server.penalty_s = PENALTY_S
            server.health += 1
            if server.health >= rise:
                server.health = self._top
        else:
            server.failed_s = time.monotonic()
            server.health = server.health - 1 if server.health > rise else 0
        counted = f"{rise}/{rise}" if passed else f"{fall}/{fall}"
        return self._note_change(server, before, result, counted)

    def set_admin(self, server: Server, admin: str) -> str:
        """Set a server ready, drain or maint; return a line if its state changed."""
        with self._lock:
            before = self._state(server)
            server.admin = admin
            why = f"set to {admin} by the operator"
            return self._note_change(server, before, why, "0/0")

    def forgive(self) -> list[str]:
        """Call servers UP again whose penalty is over; return a line for each one.

        One more failed connect takes it DOWN again, twice as long (Envoy's ejection).
        """
        lines = []
        with self._lock:
            for server in self._servers:
                waited_s = time.monotonic() - server.changed_s
                if self._state(server) == DOWN and waited_s >= server.penalty_s:
                    why = f"tried again after {server.penalty_s:.0f} s without checks"
                    server.penalty_s = min(2 * server.penalty_s, PENALTY_MAX_S)
                    server.health = self.options.rise
                    lines.append(self._note_change(server, DOWN, why, "0/0"))
        return lines

    def is_up(self) -> bool:
        """Tell whether any server is UP."""
        with self._lock:
            return any(self._state(s) == UP for s in self._servers)

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

    def _note_change(self, server: Server, before: str, why: str, checks: str) -> str:
        """Return a line for the log if the state is not what it was before."""
        state = self._state(server)
        if state == before:
            return ""
        server.changed_s = time.monotonic()
        return self._say(server, state, why, checks)

    def _say(self, server: Server, state: str, why: str, checks: str) -> str:
        present = [s for s in self._servers if not s.gone]
        up = sum(self._state(s) == UP for s in present)
        return (
            f'server={server.label} state={state} reason="{why}" checks={checks} '
            f"up={up}/{len(present)}"
        )

    def move_name(
        self, name: str, found: list[tuple[int, SocketAddress]]
    ) -> tuple[list[Server], list[str]]:
        """Bring a name's servers in line with its addresses.

        Return the new ones, and a line for the log for each one new, gone or back. An
        address that is gone gets no new session; its live ones go on.
        """
        with self._lock:
            known = [s for s in self._servers if s.name == name]
            model = known[0]  # kept for its settings, also when it is gone
            settings = (model.weight, model.backup, model.max, self._top)
            addresses = [s.address for s in self._servers]  # another name's, too
            more = [where for where in found if where[1] not in addresses]
            new = [Server(name, *where, *settings) for where in more]
            changed = [s for s in known if s.gone == ((s.family, s.address) in found)]
            for server in changed:
                server.gone = not server.gone
                server.changed_s = time.monotonic()
            changed += new
            kept = [s for s in self._servers if not s.gone or s.active or s is model]
            self._servers = kept + new
            why = f"{name} has moved"
            return new, [self._say(s, self._state(s), why, "0/0") for s in changed]

    # Figures --------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Return the figures of this moment as /status.json has them."""
        now_s = time.monotonic()
        with self._lock:
            present = [s for s in self._servers if not s.gone or s.active]
            copies = {s: replace(s, connects=list(s.connects)) for s in present}
            states = [self._state(s) for s in present]
            sessions = list(self._live.values())  # in the order in which they came
            owners = [session.server for session in sessions]
            rows = [self.counters.read(session.slot) for session in sessions]
            totals = (self.total, self.failed, self.refused, len(self._waiting))
            to_servers, to_clients = self._to_servers, self._to_clients
        live = list(zip(sessions, owners, rows, strict=True))
        for _, owner, row in live:
            if owner:
                add_row(copies[owner], row)
        named = zip(("total", "failed", "refused", "queued"), totals, strict=True)
        servers = list(copies.values())
        described = zip(servers, states, strict=True)
        return {
            "uptime_s": round(now_s - self._started_s, 3),
            "stopping": self.stopping.is_set(),
            "connections": {"active": len(live), **dict(named)},
            "bytes": {
                "to_servers": to_servers + sum(row.to_server for row in rows),
                "to_clients": to_clients + sum(row.to_client for row in rows),
            },
            "servers": [describe(s, state, now_s) for s, state in described],
            "live": [describe_live(*entry, now_s) for entry in live[:LIVE_LISTED]],
            "connects": {s.label: (s.connects, s.connect_s) for s in servers},
        }


def has_place(server: Server) -> bool:
    """Tell whether the server is below its `max`."""
    return not server.max or server.active < server.max


def add_row(server: Server, row: Row) -> None:
    """Add one session's counters to a server's figures."""
    server.to_server += row.to_server
    server.to_client += row.to_client
    if row.connect_ns:
        server.connected(row.connect_ns / 1e9)


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
    key = f"{plain_ip(host)} {server.label}".encode()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return -server.weight / math.log((number + 0.5) / 2**64)


def describe(server: Server, state: str, now_s: float) -> dict[str, Any]:
    """Return a server's entry of /status.json."""
    return {
        "address": server.label,
        "state": state,
        "weight": server.weight,
        "backup": server.backup,
        "max": server.max,
        "active": server.active,
        "total": server.total,
        "connect_failures": server.connect_failures,
        "retries": server.retries,
        "bytes_to_server": server.to_server,
        "bytes_to_client": server.to_client,
        "last_change_s": round(now_s - server.changed_s, 3),
        "last_check": server.last_check,
    }


def describe_live(
    session: Session, server: Server | None, row: Row, now_s: float
) -> dict[str, Any]:
    """Return a live session's entry of /status.json; ages in seconds."""
    last_s = row.last_ns / 1e9 or session.accepted_s
    return {
        "client": format_address(session.source),
        "server": server.label if server else None,
        "age_s": round(now_s - session.accepted_s, 3),
        "idle_s": round(max(0.0, now_s - last_s), 3),
        "to_server": row.to_server,
        "to_client": row.to_client,
    }


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
        self.source_ended = False  # an end of file was read
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
            self.source_ended = True
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
        return self._pass_end() if self.source_ended else True

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
        for _ in range(SPLICE_ROUNDS):
            if not self._fill_pipe(pipe):
                break
            self._empty_pipe(pipe)
            if self.in_pipe:
                return True
        self.cells[LAST_NS] = time.monotonic_ns()
        return self.source_ended and self._pass_end()

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
        self.source_ended = self.in_pipe == 0
        return not self.source_ended

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
            return self._run() or End("--", "closed by both sides")
        except SideDiedError as death:
            end = self._bury(death)
            return self._cut(death) if self._cutting.is_set() else end
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
        # What moved last: the other side's turn came then.
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
                    if not reads.source_ended and not reads.pending:
                        changed |= reads.pull()
                        latest = reads
                    elif mask & (POLLERR | POLLHUP):
                        self._check_hangup(reads, mask)
                        changed = True
            if changed:
                timeout_ms = self._watch()
        return None

    def _check_hangup(self, reads: Direction, mask: int) -> None:
        """See whether a socket that is not read now died, or has just ended twice."""
        code = reads.from_sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code or mask & POLLERR or not reads.other.end_passed:
            raise SideDiedError(reads.from_name, OSError(code, os.strerror(code)))

    def _watch(self) -> float:
        """Tell poll what to wait for; return for how long (ms): idle or half-closed."""
        for reads in (self.upstream, self.downstream):
            writes = reads.other
            mask = 0 if reads.source_ended or reads.pending else POLLIN
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
        half = self.upstream.source_ended or self.downstream.source_ended
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
            code = "cL" if downstream.source_ended else "cD"
            return End(code, "client took nothing for too long", lost)
        if not (upstream.source_ended or downstream.source_ended):
            code, side = ("sD", "server") if latest is upstream else ("cD", "client")
            return End(code, f"{side} idle for {options.idle_timeout:g} s")
        code, side = ("cD", "client") if downstream.source_ended else ("sD", "server")
        limit = f"{options.half_close_timeout:g} s"
        return End(code, f"{side} silent for {limit} after the other side ended")

    def _bury(self, death: SideDiedError) -> End:
        """Deliver what the dead side had sent; then reset the other side, too."""
        patience_s = self._options.half_close_timeout or math.inf
        from_dead, to_dead = self.upstream, self.downstream
        if death.side == "server":
            from_dead, to_dead = self.downstream, self.upstream
        code = self._code(death)
        with contextlib.suppress(SideDiedError):  # the survivor dies, or takes nothing
            Burial(from_dead).flush(patience_s)
        lost = from_dead.undelivered() + to_dead.undelivered()
        if not from_dead.source_ended:  # more was to follow
            reset_at_close(from_dead.to_sock)
        return End(code, say_death(death), lost)

    def _code(self, death: SideDiedError) -> str:
        """Return c, C, s or S for who, then L for a server that had finished, or D."""
        vanished = isinstance(death.error, TimeoutError)
        who = death.side[0] if vanished else death.side[0].upper()
        down = self.downstream
        last = death.side == "client" and down.source_ended and not down.end_passed
        return who + ("L" if last else "D")

    def _cut(self, death: SideDiedError) -> End:
        """End at shutdown; a reset, lest half a reply be taken for a whole one."""
        ways = (self.upstream, self.downstream)
        lost = sum(way.undelivered() for way in ways)
        if isinstance(death.error, BrokenPipeError):
            lost -= 1  # the end of file that the cut has put behind the bytes
        for way in ways:
            if not way.end_passed:
                reset_at_close(way.to_sock)
        return End("KD", "closed at shutdown", max(0, lost))


class Burial:
    """The last bytes of a side that died, on their way to the other side."""

    def __init__(self, direction: Direction) -> None:
        self._direction, self._back = direction, direction.other
        self._poll = new_poll()

    def flush(self, timeout_s: float) -> None:
        """Deliver all that the dead side had sent, and see it acknowledged.

        Only then may the survivor be reset, which throws away what is on the way. What
        it sends meanwhile is dropped: a server that is blocked in sending to a dead
        client would take nothing, either. Raise SideDiedError when it dies too, or
        takes nothing for `timeout_s`, or while DROPPED_BYTES came, or at the cut.
        """
        way = self._direction
        best, quiet_until, most_dropped, pause_s = -math.inf, math.inf, 0, 0.001
        while self._send_last():
            now_s = time.monotonic()
            acknowledged = way.cells[way.cell] - unacknowledged(way.to_sock)
            if acknowledged > best:
                best, quiet_until, pause_s = acknowledged, now_s + timeout_s, 0.001
                most_dropped = self._back.dropped + DROPPED_BYTES
            if now_s > quiet_until or self._back.dropped > most_dropped:
                raise SideDiedError(way.to_name, TimeoutError())
            if way.cutting.is_set():
                raise SideDiedError(way.to_name, ConnectionAbortedError())
            # An acknowledgement is no event: look again after 1, 2, 4 … 64 ms.
            self._wait(pause_s)
            pause_s = min(2 * pause_s, 0.064)

    def _send_last(self) -> int:
        """Send what the dead side has left; return how much is not delivered yet."""
        way = self._direction
        if way.pipe is not None and way.in_pipe:
            way.rest = memoryview(os.read(way.pipe.read_fd, way.in_pipe))
            way.in_pipe = 0
        while True:
            if way.rest:
                way.send_rest(way.rest)
            if way.rest:
                break
            try:
                data = way.from_sock.recv(BUFFER_BYTES)
            except OSError:  # it is dead, and all has been read
                break
            if not data:
                break
            way.rest = memoryview(data)
        return way.undelivered()

    def _wait(self, pause_s: float) -> None:
        """Wait until the survivor takes or sends something, for `pause_s` at most."""
        way, back = self._direction, self._back
        if way.end_passed and back.source_ended:
            time.sleep(pause_s)  # both ends have passed: poll says POLLHUP for ever
            return
        mask = 0 if back.source_ended else POLLIN
        mask |= POLLOUT if way.rest else 0
        self._poll.register(way.to_sock.fileno(), mask)
        for _, ready in self._poll.poll(pause_s * 1000):
            if ready & POLLIN:
                self._drop()
            elif ready & (POLLERR | POLLHUP):
                raise SideDiedError(way.to_name, ConnectionResetError())

    def _drop(self) -> None:
        """Read what the survivor sends to the dead side, and forget it."""
        try:
            data = self._back.from_sock.recv(BUFFER_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise SideDiedError(self._back.from_name, error) from None
        self._back.source_ended = not data
        self._back.dropped += len(data)


def say_death(death: SideDiedError) -> str:
    """Return in words how a side of a relay died."""
    if isinstance(death.error, TimeoutError):
        return f"{death.side} vanished: it no longer answers"
    return f"{death.side} reset the connection"


# ---- Crew: a thread for every session ------------------------------------------------
# Threads wait for the next session rather than being started by it, and more start
# whenever few are left waiting: so no client waits for a thread to come to life.


@dataclass(frozen=True, slots=True)
class Job:
    """What a crew is to do with a client: connect it, or read its PROXY header."""

    client: socket.socket
    slot: int
    number: int
    family: int = 0
    address: SocketAddress | None = None  # None: read the PROXY header first
    preface: bytes = b""  # the PROXY header for the server


Take = Callable[[], Job | None]


class Boss(Protocol):
    """Who hears from a crew how its sessions went."""

    def ended(self, slot: int, end: End) -> None:
        """Hear that a session has ended, its sockets closed."""

    def connect_failed(self, slot: int, client: socket.socket, end: End) -> None:
        """Take a session back that could not be connected."""

    def header_read(self, slot: int, client: socket.socket, header: Header) -> None:
        """Take a session back whose PROXY header has been read."""

    def short_of_threads(self, threads: int | None, why: str) -> None:
        """Hear that no more than so many threads can run now; None: no longer so."""


class ConnectFailedError(Exception):
    """No connection to the server: with this end, if no other server can be tried."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(code, words)
        self.end = End(code, words)


def has_left(client: socket.socket) -> bool:
    """Tell whether a waiting client has gone: reset, or ended without a byte."""
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True


def connect(job: Job, timeout_s: float) -> tuple[socket.socket, bool]:
    """Connect to the server while watching the client; raise ConnectFailedError.

    Return the socket, and whether the server has reset it since: what it had sent is
    still there to be read, but the error is not, now that SO_ERROR has told of it.
    """
    try:
        server = socket.socket(job.family, socket.SOCK_STREAM | NONBLOCKING)
    except OSError as error:
        raise ConnectFailedError("RC", f"no socket: {say_why(error)}") from None
    try:
        if not NONBLOCKING:
            server.setblocking(False)
        code = server.connect_ex(job.address or ())
        if code in CONNECTING:
            code = wait_connected(job, server, timeout_s)
        if code == errno.ECONNRESET:  # a refusal would be ECONNREFUSED
            return server, True
        if code:
            words = say_why(OSError(code, os.strerror(code)))
            if code in LOCAL_SHORTAGE:
                raise ConnectFailedError("RC", f"cannot connect: {words}")
            raise ConnectFailedError("sC" if code == errno.ETIMEDOUT else "SC", words)
        keep_alive(server)
        if job.preface:
            server.send(job.preface)  # one segment, before all else (PP 2)
        return server, False
    except OSError as error:
        server.close()
        raise ConnectFailedError("SC", say_why(error)) from None
    except ConnectFailedError:
        server.close()
        raise


def wait_connected(job: Job, server: socket.socket, timeout_s: float) -> int:
    """Wait for a connect to end; return its error number, 0 for success."""
    client = job.client
    deadline = time.monotonic() + timeout_s
    poll = new_poll()
    poll.register(server.fileno(), POLLOUT)
    poll.register(client.fileno(), POLLIN)
    while True:
        ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if server.fileno() in ready:
            return server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not ready:
            return errno.ETIMEDOUT
        if ready[client.fileno()] & (POLLERR | POLLHUP) or has_left(client):
            raise ConnectFailedError("CC", "client left while connecting")
        poll.unregister(client.fileno())
        poll.register(client.fileno(), 0)  # it has sent: now only errors matter


class Crew:
    """Threads that serve sessions, each one session at a time.

    `_lock` guards `_idle`, `_threads`, `_stopping` and, by slot, `_sockets`, which are
    what `cut` may shut down; `_cutting` is set under it. `take` waits for the next job;
    None ends the thread that gets it.
    """

    def __init__(
        self, options: Options, counters: Counters, boss: Boss, take: Take
    ) -> None:
        self._options, self._counters = options, counters
        self._boss, self._take = boss, take
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # a thread is wanted, or stop
        self._idle = 0
        self._threads = 0
        self._stopping = False
        self._sockets: dict[int, list[socket.socket]] = {}
        self._cutting = threading.Event()

    def cut(self, how: int) -> None:
        """End all sessions: their threads wake up and see `_cutting`.

        SHUT_RD wakes whoever reads and tells the peer nothing, so that a reset is the
        first that it hears; SHUT_RDWR wakes those, too, that only wait to write.
        """
        with self._lock:
            self._cutting.set()
            for sock in itertools.chain.from_iterable(self._sockets.values()):
                shut_down(sock, how)

    def stop(self) -> None:
        """Let the threads end: each one that waits must still take a None."""
        with self._lock:
            self._stopping = True
            self._changed.notify()

    @property
    def threads(self) -> int:
        """How many threads there are, idle ones included."""
        with self._lock:
            return self._threads

    def keep_spare(self) -> None:
        """Thread "spare", or a worker process's first one: start connection threads.

        A connection's own thread starts none: that would cost it a page of stack for as
        long as it lives. When the system has no more threads, try again every second.
        """
        short = False
        while self._wants_thread():
            if self._start_thread():
                if short:
                    self._boss.short_of_threads(None, "")
                short = False
            else:
                short = True
                with self._lock:
                    self._changed.wait_for(lambda: self._stopping, 1.0)

    def _wants_thread(self) -> bool:
        """Wait until too few threads are waiting; return False when the crew stops."""
        with self._lock:
            self._changed.wait_for(lambda: self._stopping or self._idle < SPARE_THREADS)
            return not self._stopping

    def _start_thread(self) -> bool:
        """Add an idle thread; False, and the boss is told, when the system has none."""
        with self._lock:
            self._idle += 1
            self._threads += 1
            name = f"connection-idle-{self._threads}"
        try:
            daemon(name, self._run).start()
        except (RuntimeError, MemoryError) as error:
            with self._lock:
                self._idle -= 1
                self._threads -= 1
                threads = self._threads
            self._boss.short_of_threads(threads, str(error))
            return False
        return True

    def _run(self) -> None:
        """Thread "connection-N": serve one session after the other."""
        me = threading.current_thread()
        while (job := self._take()) is not None:
            with self._lock:
                self._idle -= 1
                if self._idle < SPARE_THREADS:
                    self._changed.notify()
                self._sockets[job.slot] = []
            self._hold(job.slot, job.client)
            me.name = f"connection-{job.number}"
            try:
                self._serve(job)
            except Exception as error:  # a defect: say where, end this session
                traceback.print_exc()
                self._end(job, End("ID", f"internal error: {error!r}"))
            with self._lock:
                if self._idle >= IDLE_THREADS:
                    break
                self._idle += 1
            me.name = "connection-idle"
        with self._lock:
            self._threads -= 1

    def _hold(self, slot: int, sock: socket.socket) -> None:
        """Note a socket that `cut` may shut down; after a cut, shut it down at once."""
        with self._lock:
            self._sockets[slot].append(sock)
            if self._cutting.is_set():
                shut_down(sock, socket.SHUT_RD)

    def _serve(self, job: Job) -> None:
        job.client.setblocking(False)
        if job.address is None:
            return self._read_header(job)
        began_ns = time.monotonic_ns()
        try:
            server, died = connect(job, self._options.connect_timeout)
        except ConnectFailedError as failure:
            return self._connect_failed(job, failure.end)
        now_ns = time.monotonic_ns()
        cells = self._counters.cells(job.slot)
        cells[LAST_NS], cells[CONNECT_NS] = now_ns, max(1, now_ns - began_ns)
        self._hold(job.slot, server)
        relay = Relay(self._options, cells, job.client, server, self._cutting)
        self._end(job, relay.run(died))
        return None

    def _end(self, job: Job, end: End) -> None:
        """Close the sockets, then report: the server knows before a place is free."""
        with self._lock:
            sockets = self._sockets.pop(job.slot, ())
        for sock in sockets:
            sock.close()
        self._boss.ended(job.slot, end)

    def _connect_failed(self, job: Job, end: End) -> None:
        if end.code == "CC":
            cut = self._cutting.is_set()
            return self._end(job, End("KC", "closed at shutdown") if cut else end)
        self._let_go(job)
        return self._boss.connect_failed(job.slot, job.client, end)

    def _read_header(self, job: Job) -> None:
        try:
            header = read_proxy_header(job.client, PROXY_HEADER_TIMEOUT_S)
        except (OSError, ValueError) as error:
            if self._cutting.is_set():
                return self._end(job, End("KC", "closed at shutdown"))
            words = say_why(error) if isinstance(error, OSError) else str(error)
            return self._end(job, End("PC", f"bad PROXY header: {words}"))
        job.client.setblocking(False)
        self._let_go(job)
        return self._boss.header_read(job.slot, job.client, header)

    def _let_go(self, job: Job) -> None:
        """Forget the client, which goes back to the boss: `cut` leaves it alone."""
        with self._lock:
            del self._sockets[job.slot]


# ---- Workers: where crews live -------------------------------------------------------
# One interpreter runs one thread at a time, so many busy connections want several
# processes. Here the two kinds look alike: a crew in this process, or one in a forked
# one. Forked, not started anew: processes that share their pages share the caches too,
# which is worth about a fifth of the time per message.


class Worker(Protocol):
    """A crew as the frontend sees it; the pool's lock guards its first three fields."""

    alive: bool
    active: int  # sessions that it has
    capacity: int  # fewer than `room` when it cannot start threads
    room: int

    def start(self) -> None:
        """Start its threads."""

    def give(self, job: Job) -> bool:
        """Hand a session over; False when the worker takes none."""

    def cut(self, how: int) -> None:
        """End all its sessions, by shutting down their sockets."""

    def stop(self) -> None:
        """Let its threads, or its process, end."""

    def join(self) -> None:
        """Wait until its process has ended; kill one that does not."""

    def kill(self) -> None:
        """Kill its process, whatever it is doing."""


class LocalWorker:
    """A crew of threads in this process."""

    def __init__(self, pool: Pool, boss: Boss, room: int) -> None:
        self.alive, self.active, self.capacity, self.room = True, 0, room, room
        self._jobs = queue.SimpleQueue[Job | None]()
        self._crew = Crew(pool.options, pool.counters, boss, self._jobs.get)

    def start(self) -> None:
        """Start the thread "spare", which starts the others."""
        daemon("spare", self._crew.keep_spare).start()

    def give(self, job: Job) -> bool:
        """Hand a session over; always succeeds."""
        self._jobs.put(job)
        return True

    def cut(self, how: int) -> None:
        """End all its sessions."""
        self._crew.cut(how)

    def stop(self) -> None:
        """Let the threads end: those that wait get a None each."""
        self._crew.stop()
        for _ in range(self._crew.threads):
            self._jobs.put(None)

    def join(self) -> None:
        """Wait for nothing: a thread left in a call ends with this process."""

    def kill(self) -> None:
        """Do nothing: its threads end with this process."""


class ProcessWorker:
    """A crew in a process of its own; the channel keeps message boundaries.

    `_lock` guards `_held` (the slots that the process has) and `_channel`. It is held
    while a client is passed on: when the process dies, it has it, or not. `_pid_lock`
    guards `_pid`, 0 while there is none: a number is killed only before it is reaped.
    Only the thread "worker-N" changes `_channel` and `_pid`, to replace the process.
    """

    def __init__(self, pool: Pool, boss: Frontend, room: int) -> None:
        """Fork the first process; raise OSError when that cannot be done."""
        self.alive, self.active, self.capacity, self.room = True, 0, room, room
        self.index = len(pool.workers) + 1
        self._pool, self._boss = pool, boss
        self._lock = threading.Lock()
        self._pid_lock = threading.Lock()
        self._stopping = threading.Event()
        self._fork()
        self._thread = daemon(f"worker-{self.index}", self._listen)

    def start(self) -> None:
        """Start the thread that hears the process."""
        self._thread.start()

    def _fork(self) -> None:
        """Fork a process that runs nothing but `worker_main`.

        The first ones are forked before there are threads. One that replaces a dead one
        is forked beside threads, whose locks may be taken for ever in the copy: it must
        not touch the pool, the log or the frontend, and closes all their descriptors.
        """
        self._forked_s = time.monotonic()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with warnings.catch_warnings():  # of a fork beside threads
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            worker_main(theirs.detach(), self._pool.options, self._pool.counters)
        theirs.close()
        seconds = struct.pack("ll", int(WORKER_STALL_S), 0)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        with self._lock, self._pid_lock:
            self._channel, self._pid = ours, pid
            self._held: set[int] = set()

    def give(self, job: Job) -> bool:
        """Pass the client's socket to the process; False when it takes none."""
        parts = (job.slot, job.number, job.family, job.address, job.preface)
        message = pickle.dumps(parts)
        with self._lock:
            try:
                socket.send_fds(self._channel, [message], [job.client.fileno()])
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    self._kill()  # took nothing for too long
                return False
            self._held.add(job.slot)
        job.client.close()
        return True

    def _listen(self) -> None:
        """Thread "worker-N": hear what the process reports; replace it when it dies."""
        while True:
            message, fds = receive(self._channel)
            if message:
                self._handle(message, fds)
            elif self._end_process() or not self._restart():
                return

    def _handle(self, message: bytes, fds: list[int]) -> None:
        name, slot, *rest = pickle.loads(message)
        if name == "short_of_threads":
            return self._boss.say_short(self, slot, *rest)  # not a slot: threads
        with self._lock:
            self._held.discard(slot)
        if name == "ended":
            return self._boss.ended(slot, End(*rest))
        if not fds:  # none was free here: the kernel dropped it (unix(7))
            return self._boss.ended(slot, NO_DESCRIPTOR)
        client = socket.socket(fileno=fds[0])
        if name == "connect_failed":
            return self._boss.connect_failed(slot, client, End(*rest))
        return self._boss.header_read(slot, client, Header(*rest))

    def _end_process(self) -> bool:
        """Reap the process, whose channel has ended; return whether that was wanted."""
        with self._lock:
            self._channel.close()
            held = self._held
        self._pool.set_alive(self, False)
        self._kill()  # should it only have closed its channel
        with self._pid_lock:
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            self._pid = 0
        if self._stopping.is_set():
            return True
        self._boss.worker_died(self.index, code, held)
        return False

    def _restart(self) -> bool:
        """Fork again, once a second at most; False when there is no need to."""
        while not self._boss.over.wait(max(0.0, self._forked_s + 1 - time.monotonic())):
            try:
                self._fork()
            except OSError as error:
                words = f"worker={self.index} not started: {say_why(error)}"
                self._boss.log.warn("start", words)
            else:
                if self._stopping.is_set():
                    self._end_channel()
                self._pool.set_capacity(self, self.room)
                self._pool.set_alive(self, True)
                return True
        return False

    def cut(self, how: int) -> None:
        """End all its sessions."""
        with self._lock, contextlib.suppress(OSError):
            self._channel.send(pickle.dumps((None, how)))

    def stop(self) -> None:
        """End the process: it leaves when its channel ends."""
        self._stopping.set()
        self._end_channel()

    def _end_channel(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    def join(self) -> None:
        """Wait for the process to end; kill one that does not, it may be stopped."""
        self._thread.join(CUT_S)
        if self._thread.is_alive():
            self._kill()
            self._thread.join()

    def kill(self) -> None:
        """Kill the process, whatever it is doing; it is not replaced."""
        self._stopping.set()
        self._kill()

    def _kill(self) -> None:
        with self._pid_lock, contextlib.suppress(ProcessLookupError):
            if self._pid:
                os.kill(self._pid, signal.SIGKILL)


def kill_workers(pool: Pool) -> None:
    """Kill the processes of all workers."""
    for worker in pool.workers:
        worker.kill()


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next message (b"" = the end) and the descriptor that came with it."""
    try:
        message, fds, _, _ = socket.recv_fds(channel, 65536, 1)
    except OSError:
        return b"", []
    return message, fds


class Messenger:
    """The boss as a worker process sees it: calls become messages."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def ended(self, slot: int, end: End) -> None:
        self._tell(None, "ended", slot, end.code, end.words, end.undelivered)

    def connect_failed(self, slot: int, client: socket.socket, end: End) -> None:
        self._tell(client, "connect_failed", slot, end.code, end.words)

    def header_read(self, slot: int, client: socket.socket, header: Header) -> None:
        self._tell(client, "header_read", slot, header.source, header.destination)

    def short_of_threads(self, threads: int | None, why: str) -> None:
        self._tell(None, "short_of_threads", threads, why)

    def _tell(self, client: socket.socket | None, *message: Any) -> None:
        data = pickle.dumps(message)
        with contextlib.suppress(OSError):  # the main process is gone: we follow soon
            if client is None:
                self._channel.send(data)
            else:
                socket.send_fds(self._channel, [data], [client.fileno()])
                client.close()


NO_DESCRIPTOR = End("RC", "no descriptor left for the connection")


def worker_main(channel_fd: int, options: Options, counters: Counters) -> NoReturn:
    """Be a worker process: serve what the channel brings, until it ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name, signal.SIGTERM), signal.SIG_IGN)
    signal.set_wakeup_fd(-1)  # the main process decides what a signal means
    os.closerange(3, channel_fd)
    os.closerange(channel_fd + 1, raise_descriptor_limit())
    with contextlib.suppress(AttributeError, OSError):
        # A worker that wakes does not push client or server off their core (sched(7)).
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    sys.setswitchinterval(1.0)  # all threads wait in calls: none need be made to yield
    channel = socket.socket(fileno=channel_fd)
    boss = Messenger(channel)

    def take() -> Job | None:
        """Wait for the next job; the end of the channel ends the process."""
        while True:
            message, fds = receive(channel)
            if not message:
                os._exit(0)  # live sessions end with us: the kernel closes all
            slot, *parts = pickle.loads(message)
            if slot is None:
                crew.cut(*parts)
                continue
            if not fds:  # none was free here: the kernel dropped it (unix(7))
                boss.ended(slot, NO_DESCRIPTOR)
                continue
            # The family only matters for addresses: nobody asks for those here.
            client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fds[0])
            return Job(client, slot, *parts)

    try:
        crew = Crew(options, counters, boss, take)
        crew.keep_spare()
    finally:
        os._exit(1)  # never back into what was copied from the main process


# ---- Frontend: accept, place, queue --------------------------------------------------
# The life of a session outside its crew. Thread "accept" begins sessions; thread
# "queue" places those that come back from a failed connect or wait for a place; crews
# report how they ended.


Watched = tuple[socket.socket, Session]  # a client in the queue


class Frontend:
    """The listening side, and the boss of all crews."""

    def __init__(
        self,
        listener: socket.socket,
        pool: Pool,
        log: Log,
    ) -> None:
        self.options, self.pool, self.log = pool.options, pool, log
        self.over = threading.Event()  # ends the thread "queue", and new processes
        self._cutting = threading.Event()  # whoever still waits is closed
        self.listener = listener
        # What is sent into the second socket of a pair wakes the thread at the first.
        self._accept_pair = socket.socketpair()
        self._queue_pair = socket.socketpair()
        for sock in (listener, *self._queue_pair):
            sock.setblocking(False)
        self._accepting = daemon("accept", self.accept_clients)
        self._placing = daemon("queue", self.place_waiting)

    def start(self) -> None:
        """Start the threads "accept" and "queue"."""
        self._accepting.start()
        self._placing.start()

    # Thread "accept" ------------------------------------------------------------------

    def accept_clients(self) -> None:
        """Thread "accept": begin a session for every client while there is room."""
        poll = new_poll()
        poll.register(self.listener.fileno(), POLLIN)
        poll.register(self._accept_pair[0].fileno(), POLLIN)
        while self.pool.wait_for_room():
            try:
                client, peer = self.listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                poll.poll()
            except OSError as error:
                words = f"cannot accept: {say_why(error)}; live connections go on"
                self.log.warn("accept", words)
                self.over.wait(BACKOFF_S)
            else:
                self._admit(client, peer)

    def _admit(self, client: socket.socket, peer: SocketAddress) -> None:
        options = self.options
        if options.accept_proxy and not is_in(options.accept_proxy, peer):
            return self._refuse(client, peer, "not in --accept-proxy")
        if not options.accept_proxy and self._is_barred(peer):
            return self._refuse(client, peer, "not in --allow")
        session = self.pool.admit(client, peer)
        if options.accept_proxy:  # its PROXY header says who it is
            self._give(session, Job(client, session.slot, session.number))
        else:
            self._place(session)
        return None

    def _is_barred(self, source: SocketAddress) -> bool:
        return bool(self.options.allow) and not is_in(self.options.allow, source)

    def _refuse(self, client: socket.socket, peer: SocketAddress, why: str) -> None:
        client.close()
        self.pool.refuse()
        self.log.line(
            f"client={format_address(peer)} server=- tries=0 connect_ms=- "
            "duration_ms=0.0 to_server=0 to_client=0 undelivered=0 "
            f"end=PC refused: {why}"
        )

    # Placing --------------------------------------------------------------------------

    def _place(self, session: Session) -> bool:
        """Send the session to a server, or end it; False when it has to wait."""
        if self._cutting.is_set():
            self._end(session, End("KQ", "closed at shutdown"))
            return True
        if session.barred:
            self._end(session, End("PC", "refused: not in --allow"))
            return True
        try:
            server = self.pool.pick(session)
        except NoServerError:
            self._end(session, session.failure or NO_SERVER)
            return True
        if self.pool.fail_open.is_set():
            self.log.warn("open", "no server is UP: every server is tried")
        if server is None:
            if threading.current_thread() is not self._placing:
                self.wake_queue()
            return False
        self._give(session, self._job(session, server))
        return True

    def _job(self, session: Session, server: Server) -> Job:
        assert session.client is not None
        preface = b""
        if self.options.send_proxy:
            destination = session.destination or session.client.getsockname()
            header = proxy_v1 if self.options.send_proxy == "v1" else proxy_v2
            preface = header(session.source, destination)
        where = (server.family, server.address)
        return Job(session.client, session.slot, session.number, *where, preface)

    def _give(self, session: Session, job: Job) -> None:
        session.client = None  # the worker's from now on
        while not session.worker.give(job):  # its process died before it took it
            if not self.pool.move(session):
                session.client = job.client
                return self._end(session, WORKER_DIED)
        return None

    # Thread "queue" -------------------------------------------------------------------

    def place_waiting(self) -> None:
        """Thread "queue": place who waits, first come first; notice who leaves."""
        poll = new_poll()
        poll.register(self._queue_pair[0].fileno(), POLLIN)
        watched: dict[int, Watched] = {}
        while not self.over.is_set():
            self._watch_clients(poll, watched, self._place_all())
            waiting = [session for _, session in watched.values()]
            for fd, mask in poll.poll(self._next_deadline_ms(waiting)):
                if fd == self._queue_pair[0].fileno():
                    with contextlib.suppress(BlockingIOError):
                        self._queue_pair[0].recv(4096)
                elif mask & (POLLERR | POLLHUP) or has_left(watched[fd][0]):
                    self._end(watched[fd][1], End("CQ", "client left the queue"))
                else:
                    poll.unregister(fd)
                    poll.register(fd, 0)  # it has sent: now only errors matter

    def _place_all(self) -> list[Session]:
        """Place all that can be placed; return those that go on waiting."""
        waiting = []
        blocked = False
        for session in self.pool.waiting():
            if self._queue_timed_out(session):
                self._end(session, End("sQ", "no place at a server in time"))
            elif (blocked and not session.tried) or not self._place(session):
                waiting.append(session)
                blocked = self.options.algorithm != "source"
        return waiting

    def _queue_timed_out(self, session: Session) -> bool:
        timeout_s: float = self.options.queue_timeout
        waited_s = time.monotonic() - session.queued_s if session.queued_s else 0.0
        return waited_s >= timeout_s > 0

    def _next_deadline_ms(self, waiting: list[Session]) -> float | None:
        if not waiting or not self.options.queue_timeout:
            return None
        first_s = min(session.queued_s for session in waiting)
        left_s: float = first_s + self.options.queue_timeout - time.monotonic()
        return max(0.0, left_s) * 1000 + 1

    def _watch_clients(
        self, poll: Any, watched: dict[int, Watched], waiting: list[Session]
    ) -> None:
        """Bring the polled clients in line with those that wait."""
        wanted = {s.client.fileno(): (s.client, s) for s in waiting if s.client}
        for fd in [fd for fd, entry in watched.items() if wanted.get(fd) != entry]:
            del watched[fd]
            poll.unregister(fd)
        for fd, entry in wanted.items():
            if fd not in watched:
                watched[fd] = entry
                poll.register(fd, POLLIN)

    def wake_queue(self) -> None:
        """Have another look at who waits: a place may be free."""
        with contextlib.suppress(OSError):  # full: it has been woken already
            self._queue_pair[1].send(b".")

    # Reports of the crews (Boss) ------------------------------------------------------

    def ended(self, slot: int, end: End) -> None:
        """End a session whose sockets a crew has closed."""
        self._note_shortage(end)
        if session := self.pool.live(slot):
            self._end(session, end)

    def _note_shortage(self, end: End) -> None:
        if end.code == "RC":
            self.log.warn("shortage", f"{end.words}; live connections go on")

    def connect_failed(self, slot: int, client: socket.socket, end: End) -> None:
        """Send a session to another server: a crew could not connect it."""
        server = self.pool.connect_failed(slot, client, end)
        if end.blames_server:
            self.log.line(self.pool.record_refusal(server, end.words))
        self._note_shortage(end)
        self.wake_queue()

    def header_read(self, slot: int, client: socket.socket, header: Header) -> None:
        """Have a server picked: a crew has taken the PROXY header off."""
        source = header.source or self.pool.session(slot).source
        self.pool.header_read(slot, client, header, self._is_barred(source))
        self.wake_queue()

    def short_of_threads(self, threads: int | None, why: str) -> None:
        """Hear that this process can, or again can, start no more threads."""
        self.say_short(self.pool.workers[0], threads, why)

    def say_short(self, worker: Worker, threads: int | None, why: str) -> None:
        """Take no more sessions than a worker has threads for."""
        self.pool.set_capacity(worker, worker.room if threads is None else threads)
        if why:
            words = f"cannot start a thread: {why}; live connections go on"
            self.log.warn("thread", words)

    def worker_died(self, index: int, code: int, held: Iterable[int]) -> None:
        """End the sessions that went down with a worker process."""
        sessions = [self.pool.session(slot) for slot in held]
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        self.log.line(
            f"worker={index} died by {cause} with {len(sessions)} connections, "
            "and is replaced"
        )
        for session in sessions:
            self._end(session, WORKER_DIED)

    def _end(self, session: Session, end: End) -> None:
        """Close what is held of a session, count it, log it, let the next one in."""
        client, session.client = session.client, None
        if client is not None:
            client.close()
        ended = self.pool.end(session, end)
        if ended is None:
            return
        if not self.log.silent:
            self.log.line(end_line(session, ended.row, end))
        self.log.line(ended.health)
        if ended.others_wait:
            self.wake_queue()

    # Stopping -------------------------------------------------------------------------

    def stop_accepting(self) -> None:
        """Take no more clients; those that wait in the listen queue are refused."""
        self.pool.stop()
        self._accept_pair[1].send(b".")
        self._accepting.join()
        self.listener.close()

    def stop(self) -> None:
        """End whatever is still live, then the threads and processes."""
        self._cutting.set()
        self.wake_queue()
        for how in (socket.SHUT_RD, socket.SHUT_RDWR):
            for worker in self.pool.workers:
                worker.cut(how)
            if self.pool.wait_until_idle(CUT_S / 2):
                break
        self.over.set()
        self.wake_queue()
        self._placing.join()
        for worker in self.pool.workers:
            worker.stop()
        for worker in self.pool.workers:
            worker.join()
        self._end_all()
        self.close()

    def _end_all(self) -> None:
        """Log the sessions that nobody else will end any more."""
        for session in self.pool.sessions():
            self._end(session, End("KD", "closed at shutdown"))

    def exit_now(self) -> NoReturn:
        """Thread "signals": asked twice to stop, wait for nothing but the log."""
        kill_workers(self.pool)
        self._end_all()
        self.log.close()
        os._exit(0)

    def close(self) -> None:
        """Close the descriptors of the frontend itself."""
        self.listener.close()
        for pair in (self._accept_pair, self._queue_pair):
            for sock in pair:
                sock.close()


def end_line(session: Session, row: Row, end: End) -> str:
    """Return the line of the log that a session ends with."""
    server, connect_ns = session.server, row.connect_ns
    connect_ms = f"{connect_ns / 1e6:.2f}" if connect_ns else "-"
    duration_ms = (time.monotonic() - session.accepted_s) * 1000
    return (
        f"client={format_address(session.source)} "
        f"server={server.label if server else '-'} "
        f"tries={len(session.tried) + (server is not None)} "
        f"connect_ms={connect_ms} duration_ms={duration_ms:.1f} "
        f"to_server={row.to_server} to_client={row.to_client} "
        f"undelivered={end.undelivered} end={end.code} {end.words}"
    )


# ---- Checks: which servers are UP ----------------------------------------------------
# A thread per server connects to it every interval and tells the pool; a change of
# state is one line in the log. Another thread resolves the names again.


class Checks:
    """The check threads of all servers, and the thread that follows their names."""

    def __init__(self, frontend: Frontend) -> None:
        self._options, self._pool = frontend.options, frontend.pool
        self._log, self._frontend = frontend.log, frontend
        self._over = threading.Event()

    def start(self) -> None:
        """Start a thread for every server, and one for names that can move."""
        servers = self._pool.servers()
        names = {s.name for s in servers}
        moving = sorted(n for n in names if not is_literal(parse_address(n)[0]))
        if self._options.no_checks:
            daemon("forgive", self._forgive).start()
        self._watch(servers)
        if moving:  # on a daemon thread: getaddrinfo(3) cannot be interrupted
            daemon("resolve", self._follow, moving).start()

    def stop(self) -> None:
        """Tell the threads to end; one that is checking ends after its timeout."""
        self._over.set()

    def _watch(self, servers: list[Server]) -> None:
        if not self._options.no_checks:
            for server in servers:
                daemon(f"check-{server.label}", self._keep_checking, server).start()

    def _keep_checking(self, server: Server) -> None:
        """Thread "check-HOST:PORT": check once per interval, first within it."""
        interval_s = self._options.check_interval
        pause_s = random.uniform(0, interval_s)  # so that checks do not come in step
        while not self._over.wait(pause_s) and self._pool.has(server):
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
        while not self._over.wait(1.0):
            for line in self._pool.forgive():
                self._log_change(line)

    def _log_change(self, line: str) -> None:
        if line and not self._over.is_set():
            self._log.line(line)
            self._frontend.wake_queue()

    def _follow(self, names: list[str]) -> None:
        """Thread "resolve": every interval, look where the names point now."""
        while not self._over.wait(self._options.check_interval):
            for name in names:
                try:
                    found = resolve(*parse_address(name))
                except OSError as error:
                    words = f"cannot resolve {name}: {say_why(error)}; addresses kept"
                    self._log.warn(name, words)
                    continue
                new, lines = self._pool.move_name(name, found)
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
        self._thread = daemon("log", self._write_lines)

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
            new = open_to_append(self._path)
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
        return min(rest, data, key=len).count(b"\n")


def open_to_append(path: str) -> int:
    """Return the descriptor of a file that every write extends."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def say_lost(lines: int) -> str:
    """Return what the log says of lines that could not be written."""
    return f"{count(lines, 'log line')} could not be written"


# ---- Status: what an operator sees and does ------------------------------------------
# The standard library's HTTP server on a port of its own; it reads snapshots, so no
# slow or hostile client of it can hold up a session.


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
      look();
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
    : "no server is UP: every server is tried";
  const totals = [["live now", count(c.active)], ["queued", count(c.queued)],
    ["total", count(c.total)], ["failed", count(c.failed)],
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
      count(x.total) + " total", count(x.connect_failures) + " failed connects",
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
    const cells = [x.client, x.server || "waiting", time(x.age_s), time(x.idle_s),
      amount(x.to_server), amount(x.to_client)];
    row.append(...cells.map(text => make("td", text)));
    return row;
  }));
  before = s;
}
let timer = 0;
async function look() {
  clearTimeout(timer);
  try {
    show(await (await fetch("/status.json")).json());
  } catch (error) {
    byId("note").className = "bad";
    byId("note").textContent = "no answer from the load balancer";
  }
  timer = setTimeout(look, 1000);
}
look();
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
    timeout = STATUS_TIMEOUT_S  # per read or write; the oldest makes room anyway

    def do_GET(self) -> None:
        """Answer /, /status.json, /metrics, /healthz."""
        if not self._is_own_host():
            return
        path, pool = self.path.partition("?")[0], self.server.pool
        if path == "/":
            self._reply(200, "text/html; charset=utf-8", PAGE)
        elif path == "/status.json":
            text = json.dumps(self._status(pool.snapshot()))
            self._reply(200, "application/json", text)
        elif path == "/metrics":
            text = render_metrics(pool.snapshot())
            self._reply(200, "text/plain; version=0.0.4", text)
        elif path == "/healthz":
            up = pool.is_up() and not pool.stopping.is_set()
            words = "ok\n" if up else "no server is UP\n"
            self._reply(200 if up else 503, "text/plain", words)
        else:
            words = "try /, /status.json, /metrics or /healthz\n"
            self._reply(404, "text/plain", words)

    def do_HEAD(self) -> None:
        """Answer like GET; `_reply` leaves the body out."""
        self.do_GET()

    def do_POST(self) -> None:
        """Carry out /servers/HOST:PORT/drain, /ready or /maint, for our page only."""
        if not self._is_own_host() or not self._is_own_page():
            return None
        _, *path = self.path.split("/")
        if len(path) != 3 or path[0] != "servers" or path[2] not in ADMIN:
            words = "POST /servers/HOST:PORT/drain|ready|maint\n"
            return self._reply(404, "text/plain", words)
        label, admin = urllib.parse.unquote(path[1]), path[2]
        if not self.server.set_admin(label, admin):
            return self._reply(404, "text/plain", f"no server {label}\n")
        return self._reply(200, "text/plain", f"{label}: {admin}\n")

    def _status(self, figures: dict[str, Any]) -> dict[str, Any]:
        shown = {key: value for key, value in figures.items() if key != "connects"}
        return {"version": 1, "listen": self.server.listen_label, **shown}

    def _is_own_host(self) -> bool:
        """Refuse a name that only a foreign DNS would give us (DNS rebinding)."""
        host = None
        with contextlib.suppress(ValueError):  # "[" is none
            host = urllib.parse.urlsplit("//" + self.headers.get("Host", "")).hostname
        own = self.connection.getsockname()[0].partition("%")[0]
        if host in (own, "localhost", self.server.host):
            return True
        self._reply(421, "text/plain", "this is not the host that you asked for\n")
        return False

    def _is_own_page(self) -> bool:
        """Refuse a foreign page: it can neither claim our origin nor add a header."""
        own = f"http://{self.headers.get('Host')}"
        origin, referer = self.headers.get("Origin"), self.headers.get("Referer")
        ours = origin in (own, None) and f"{referer or own}/".startswith(f"{own}/")
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
    """The status page; a slow client is cut off when there are too many.

    `_lock` guards `_open`, the connections that are being served, oldest first.
    """

    daemon_threads = True
    request_queue_size = 128  # socketserver's 5 lets a crowd wait for SYN retries

    def __init__(
        self, where: tuple[str, int], listen_label: str, frontend: Frontend
    ) -> None:
        """Listen for status clients; raise OSError."""
        self.host, self.listen_label = where[0], listen_label
        self.pool, self._frontend = frontend.pool, frontend
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}
        family, address = resolve(*where)[0]
        self.address_family = family
        super().__init__(address[:2], StatusHandler)
        self._thread = daemon("status", self.serve_forever, 0.25)

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
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a status client that leaves early; show a defect."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()

    def set_admin(self, label: str, admin: str) -> bool:
        """Drain, stop or ready a server by its label; False when there is none."""
        for server in self.pool.servers():
            if server.label == label:
                self._frontend.log.line(self.pool.set_admin(server, admin))
                self._frontend.wake_queue()
                return True
        return False


# ---- Command line --------------------------------------------------------------------


def seconds(text: str) -> float:
    """Return a number of seconds, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def positive_seconds(text: str) -> float:
    """Return a number of seconds above 0."""
    if not (value := seconds(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not more than 0 seconds")
    return value


def whole_number(text: str) -> int:
    """Return a whole number, 0 or more."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def positive_number(text: str) -> int:
    """Return a whole number, 1 or more."""
    if not (value := whole_number(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return value


def processes(text: str) -> int:
    """Return how many processes relay; 0 stands for `auto`."""
    value = 0 if text == "auto" else positive_number(text)
    if value > 256:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 256 processes")
    return value


def network(text: str) -> Network:
    """Return the network that a CIDR or a single address names."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        why = f"{text!r} is not an address or CIDR: {error}"
        raise argparse.ArgumentTypeError(why) from None


def parse_server(text: str) -> dict[str, Any]:
    """Return the parts of HOST:PORT[,weight=N][,backup][,max=N]."""
    name, *settings = text.split(",")
    host, port = parse_address(name)
    if not port:
        why = f"{name!r} has port 0: a server listens on 1 to 65535"
        raise argparse.ArgumentTypeError(why)
    parts: dict[str, Any] = {"host": host, "port": port}
    parts |= {"weight": 1, "backup": False, "max": 0}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if setting == "backup":
            parts["backup"] = True
        elif not equals or key not in ("weight", "max"):
            why = f"{setting!r} is none of weight=N, backup, max=N"
            raise argparse.ArgumentTypeError(why)
        else:
            try:
                parts[key] = whole_number(value)
            except argparse.ArgumentTypeError as error:
                raise argparse.ArgumentTypeError(f"{key}: {error}") from None
    if parts["weight"] > 256:
        raise argparse.ArgumentTypeError(f"weight={parts['weight']} is more than 256")
    return parts


class OptionGroup:
    """A group of options in the help: each one is added by a line or two."""

    def __init__(self, parser: argparse.ArgumentParser, title: str) -> None:
        self.add = parser.add_argument_group(title).add_argument

    def number(
        self, name: str, default: float, kind: Callable[[str], float], text: str
    ) -> None:
        """Add seconds, when the default is a float, or a count."""
        unit = "S" if isinstance(default, float) else "N"
        text += f" (default: {default:g})"
        self.add(name, type=kind, default=default, metavar=unit, help=text)

    def address(self, name: str, default: tuple[str, int] | None, text: str) -> None:
        form = "HOST:PORT"
        self.add(name, type=parse_address, default=default, metavar=form, help=text)

    def networks(self, name: str, text: str) -> None:
        """Add a CIDR that may be repeated."""
        self.add(name, type=network, action="append", metavar="CIDR", help=text)


def add_where(group: OptionGroup) -> None:
    """Add the options that say where clients come from and where they go."""
    text = "accept clients here (default: 127.0.0.1:9990)"
    group.address("--listen", ("127.0.0.1", 9990), text)
    group.add(
        "--server",
        type=parse_server,
        action="append",
        dest="servers",
        metavar="HOST:PORT[,weight=N][,backup][,max=N]",
        help="send clients to this server; repeat for more "
        "(default: 127.0.0.1:9991, :9992, :9993)",
    )
    text = "choose the next server by this rule; random = the less loaded of two "
    text += "(default: %(default)s)"
    group.add("--algorithm", choices=ALGORITHMS, default=ALGORITHMS[0], help=text)
    text = "relay in N processes, auto = one per core"
    group.number("--workers", 1, processes, text)


def add_checks(group: OptionGroup) -> None:
    """Add the options that say when a server is UP."""
    text = "connect to each server every S seconds"
    group.number("--check-interval", 2.0, positive_seconds, text)
    group.number("--rise", 2, positive_number, "call a server UP after N good checks")
    text = "call a server DOWN after N failed checks, or connects for clients"
    group.number("--fall", 3, positive_number, text)
    text = "let a check fail after S seconds"
    group.number("--check-timeout", 2.0, positive_seconds, text)
    text = "judge servers by clients' connects alone (default: off)"
    group.add("--no-checks", action="store_true", help=text)


def add_limits(group: OptionGroup) -> None:
    """Add the options that bound time and number."""
    text = "try another server after S seconds"
    group.number("--connect-timeout", 3.0, positive_seconds, text)
    text = "close after S seconds without a byte, 0 = never"
    group.number("--idle-timeout", 3600.0, seconds, text)
    text = "the same once one side has ended"
    group.number("--half-close-timeout", 300.0, seconds, text)
    text = "let live connections end for S seconds when stopping"
    group.number("--grace", 30.0, seconds, text)
    text = "close after S seconds without a place at a server, 0 = wait"
    group.number("--queue-timeout", 5.0, seconds, text)
    text = "serve N at once, more wait to be accepted; 0 = as the descriptors allow"
    group.number("--max-connections", 0, whole_number, text)


def add_who(group: OptionGroup) -> None:
    """Add the options that say who may come, and as whom."""
    text = "refuse clients from elsewhere; repeat for more (default: all may come)"
    group.networks("--allow", text)
    text = "require a PROXY header, version 1 or 2, from these sources and refuse all "
    group.networks("--accept-proxy", text + "others (default: off)")
    text = "tell servers the client's address by a PROXY header (default: off)"
    group.add("--send-proxy", choices=("v1", "v2"), help=text)


def add_seeing(group: OptionGroup) -> None:
    """Add the options that say what an operator sees."""
    text = "serve a live page, /status.json, /metrics and /healthz here (default: off)"
    group.address("--status", None, text)
    text = "append the log to FILE (default: standard output)"
    group.add("--log", metavar="FILE", help=text)
    text = "print nothing but the first line; a --log FILE is still written"
    group.add("--quiet", action="store_true", help=f"{text} (default: off)")


def parse_args(argv: Sequence[str] | None) -> Options:
    """Return the options; exit with status 2 and one line when they are wrong."""
    about = "Hand TCP connections to servers in turn, and relay their bytes."
    stopping = "SIGTERM or Ctrl-C: stop accepting, let live connections end for "
    stopping += "--grace seconds. SIGHUP: reopen --log."
    parser = Parser(prog="load_balancer.py", description=about, epilog=stopping)
    add_where(OptionGroup(parser, "where"))
    add_checks(OptionGroup(parser, "checks"))
    add_limits(OptionGroup(parser, "time and number"))
    add_who(OptionGroup(parser, "who"))
    add_seeing(OptionGroup(parser, "seeing it"))
    options = parser.parse_args(argv)
    if options.workers == 0:
        options.workers = usable_cores() if CAN_SEND_SOCKETS else 1
    if options.workers > 1 and not CAN_SEND_SOCKETS:
        why = "this system cannot pass sockets to a process: use --workers 1"
        parser.error(f"--workers: {why}")
    named = options.servers or [parse_server(f"127.0.0.1:{p}") for p in DEFAULT_PORTS]
    found = [make_servers(parser, options, parts) for parts in named]
    options.servers = list(itertools.chain.from_iterable(found))
    addresses = [server.address for server in options.servers]
    for server in options.servers:
        if addresses.count(server.address) > 1:
            parser.error(f"--server: {server.label} is given more than once")
    return options


def make_servers(
    parser: Parser, options: Options, parts: dict[str, Any]
) -> list[Server]:
    """Return a server for every address of a --server; exit 2 if it has none."""
    host, port = parts["host"], parts["port"]
    try:
        found = resolve(host, port)
    except (OSError, UnicodeError) as error:
        parser.error(f"--server: cannot resolve {host!r}: {error.args[-1]}")
    name, top = format_address((host, port)), options.rise + options.fall - 1
    settings = (parts["weight"], parts["backup"], parts["max"], top)
    return [Server(name, family, address, *settings) for family, address in found]


# ---- Start and stop ------------------------------------------------------------------


def pipe_budget(descriptors: int) -> int:
    """Return for how many pipes (two descriptors each) connections leave room."""
    return min(64, descriptors // 32)


def room_for(options: Options, descriptors: int) -> int:
    """Return how many connections (two descriptors each) one process can hold."""
    own: int = OWN_DESCRIPTORS + len(options.servers) + options.workers
    own += STATUS_CONNECTIONS + 2 if options.status else 0
    return max(1, (descriptors - own) // 2 - pipe_budget(descriptors))


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
            address[:2], family=family, backlog=LISTEN_BACKLOG, dualstack_ipv6=both
        )
    keep_alive(listener)  # accepted sockets inherit it
    return listener


def notify(state: str) -> None:
    """Tell systemd how we are, when it wants to know (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path and hasattr(socket, "AF_UNIX"):
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        ):
            where = "\0" + path[1:] if path[0] == "@" else path  # abstract (unix(7))
            sock.sendto(state.encode(), where)


class Signals:
    """SIGTERM or Ctrl-C asks to stop, a second one to exit at once; SIGHUP: a new log.

    Signals become bytes of a socket (signal.set_wakeup_fd) that thread "signals" reads:
    so they are obeyed whatever the first thread is waiting for.
    """

    def __init__(self) -> None:
        self.stop_asked = threading.Event()
        self._inner, self._outer = socket.socketpair()
        self._outer.setblocking(False)
        names = ("SIGINT", "SIGTERM", "SIGHUP")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        # In this order: a handler without the descriptor would swallow a signal.
        self._old_fd = signal.set_wakeup_fd(self._outer.fileno())
        self._old = {n: signal.signal(n, lambda *_: None) for n in numbers}
        self._thread: threading.Thread | None = None

    def start(self, reopen: Callable[[], None], exit_now: Callable[[], None]) -> None:
        """Start the thread "signals"; signals that came before are not lost."""
        self._thread = daemon("signals", self._obey, reopen, exit_now)
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
def listening(option: str, where: tuple[str, int]) -> Iterator[None]:
    """Raise StartError when the port of an option cannot be listened on."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        unresolved = isinstance(error, (socket.gaierror, UnicodeError))
        why = say_why(error) if isinstance(error, OSError) else str(error)
        text = f"{option}: cannot listen on {format_address(where)}: {why}"
        raise StartError(2 if unresolved else 1, text) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the balancer until a signal stops it; return the exit status."""
    options = parse_args(argv)
    threading.stack_size(STACK_BYTES)
    with contextlib.ExitStack() as stack:
        try:
            signals = stack.enter_context(contextlib.closing(Signals()))
            log = stack.enter_context(contextlib.closing(open_log(options)))
            run(options, log, signals)
        except StartError as error:
            print(f"load_balancer.py: {error}", file=sys.stderr)
            return error.status
    return 0


def open_log(options: Options) -> Log:
    """Return the log; raise StartError when its file cannot be written."""
    try:
        return Log(options.log, options.quiet)
    except OSError as error:
        text = f"--log: cannot write {options.log}: {say_why(error)}"
        raise StartError(2, text) from None


def run(options: Options, log: Log, signals: Signals) -> None:
    """Open the ports, run processes and threads, stop them; raise StartError."""
    with listening("--listen", options.listen):
        listener = open_listener(*options.listen)
    descriptors = raise_descriptor_limit()
    Pipe.set_budget(pipe_budget(descriptors))
    room = room_for(options, descriptors)
    pool = Pool(options, min(room * options.workers, MAX_SLOTS))
    frontend = Frontend(listener, pool, log)
    where = format_address(listener.getsockname())
    about = f"room for {pool.limit:,} connections"
    parts: list[Checks | StatusServer] = [Checks(frontend)]
    with contextlib.ExitStack() as undo:  # what was opened, should the rest fail
        undo.callback(frontend.close)
        if options.status:
            with listening("--status", options.status):
                status = StatusServer(options.status, where, frontend)
            undo.callback(status.server_close)
            parts.insert(0, status)
            about += f"; status on http://{format_address(status.server_address)}/"
        undo.callback(kill_workers, pool)
        add_workers(pool, frontend, room)
        print(f"listening on {where} ({about})", flush=True)
        # Not earlier: the processes were forked while there was no thread. The status
        # page and the checks speak to the frontend, so they come last and go first.
        try:
            log.start()
            signals.start(log.reopen, frontend.exit_now)
            for part in [*pool.workers, frontend, *reversed(parts)]:
                part.start()
        except RuntimeError as error:
            raise StartError(1, f"cannot start: {error}") from None
        undo.pop_all()
    notify("READY=1")
    signals.stop_asked.wait()
    notify("STOPPING=1")
    frontend.stop_accepting()
    pool.wait_until_idle(options.grace)
    for part in parts:
        part.stop()
    frontend.stop()


def add_workers(pool: Pool, frontend: Frontend, room: int) -> None:
    """Add one worker in this process, or several, each in its own."""
    kind = LocalWorker if pool.options.workers == 1 else ProcessWorker
    try:
        for _ in range(pool.options.workers):
            pool.add_worker(kind(pool, frontend, room))
    except OSError as error:
        raise StartError(1, f"--workers: cannot fork: {say_why(error)}") from None


if __name__ == "__main__":
    sys.exit(main())
