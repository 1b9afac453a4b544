#!/usr/bin/env python3
"""A TCP load balancer: one port in front, many servers behind, a thread per connection.

    client ─► :9990 ──► Board.admit ──► connect ──► Relay ◄─► server :9991
              accept    who is next     or the      bytes,           :9992
              in turn   (one lock)      next one    both ways        :9993

A connection's life, in this order, on one thread ("connection-N"):

    Worker._accept       wait for the turn; accept, and pick a server or queue, in one
                         (Board.admit); the next thread has the turn
    Worker._serve        tells all the rest:
      _meet              may it come? with --accept-proxy, its PROXY header: pick then
      _connected         connect, or the next server; _wait_for_place, in the queue or,
                         when all have failed, for --hold seconds (nothing is retried
                         once a byte was forwarded)
      Relay.run          bytes both ways, until both sides have ended; an end of file
                         is passed on (Direction._pass_end), and when one side dies its
                         last bytes and then a reset (Relay._deliver_last)
      _finish            its place is free, one line for the log

A server has `max` *places*; a connection has one from pick to end, or until its connect
fails. Processes, with --workers N above 1 (auto: one per core):

    parent      forks the others, reaps them, forks them again; hears signals; has no
                threads
    worker-1…N  MainThread "hears the bell"; connection-…, one thread per connection
    desk        check-HOST:PORT, one per server (with --no-checks: forgive);
                name-HOST:PORT, one per name that may move; status, status-N for its
                client at port N, and history for its plots; log, and log-pipe that
                brings it the others' lines

What they share stands on the `Board`: numbers in shared memory, under one lock. Rows of
live connections are the truth; other counts can be made from them anew, and are when a
worker has died. With one worker, all of this is in one process.

To stop: `leaving`, for --stop-delay seconds clients still come, though /healthz says
503; `stopping`, nobody accepts, --grace seconds for live connections; `cutting`, those
left are reset (closed, if not connected yet); then processes end.

Bytes are never looked at. A direction that has moved much is spliced inside the kernel
(splice(2)) where the system can. An end of file is passed on as an end of file, a reset
as a reset, and neither before the bytes that came first have been delivered.

    python3 load_balancer.py
    python3 load_balancer.py --server 10.0.0.1:6379 --server 10.0.0.2:6379,max=100
    python3 load_balancer.py --status 127.0.0.1:8080 --algorithm leastconn

It does not speak TLS or HTTP to clients and servers, and keeps no state across a
restart.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - older ones get here, too
    found = ".".join(map(str, sys.version_info[:3]))
    sys.stderr.write(f"load_balancer.py needs Python 3.11 or newer, this is {found}\n")
    sys.exit(2)

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # Until it runs, Ctrl-C ends it at once: in a slow look-up of a name, too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import array
import base64
import bisect
import collections
import contextlib
import errno
import hashlib
import http.server
import ipaddress
import itertools
import json
import math
import mmap
import multiprocessing
import os
import queue
import random
import re
import select
import shutil
import socket
import socketserver
import struct
import textwrap
import threading
import time
import traceback
import urllib.parse
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn, Union

try:
    import resource  # Unix only: how many descriptors this process may have
except ImportError:
    resource = None  # type: ignore[assignment]
try:
    import fcntl  # Unix only: asks the kernel what a socket has not delivered yet
    import termios
except ImportError:
    fcntl = None  # type: ignore[assignment]

VERSION = "2.0"
READ_BYTES = 4096  # first reads: most messages are short, most connections idle
BUFFER_BYTES = 65536  # ... and at most; larger gains nothing before splicing takes over
PIPE_BYTES = 1048576  # the most that an unprivileged process may ask for (pipe(7))
SPLICE_ROUNDS = 16  # fills of the pipe before the other direction gets its turn
TIMEOUT_PARTS = 4  # of a timeout: so often it is asked whether bytes were taken
DROPPED_BYTES = 64 << 20  # sent to a dead side: more than buffers hold both ways
LISTEN_QUEUE = 4096  # the kernel lowers it to somaxconn (listen(2))
# A vanished peer is found after 60 + 4 x 15 s by the kernel (tcp(7)). Bytes that it
# never acknowledges stop the kernel's probes: then it is looked for here.
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
VANISHED_S = 120.0  # without any answer
LOOK_NS = 10_000_000_000  # so often, while something is to be acknowledged
PROXY_HEADER_TIMEOUT_S = 5.0  # at least 3 s, a retransmitted segment (proxy-protocol 2)
LOOP_ROUNDS = 128  # as many live connections of one client's port are a loop
RETRY_S = 1.0  # a held client tries all servers again so often (HAProxy's retries)
BACKOFF_S = 0.1  # pause of a listener when the system has run out of something
PENALTY_S = 10.0  # --no-checks: how long a server stays DOWN, then doubled
PENALTY_MAX_S = 300.0
SPARE_THREADS = 8  # at least so many wait for the next connection ...
MAX_SPARE_THREADS = 64  # ... and at most; the others end
STACK_BYTES = 262144  # enough for the relay; the default of 8 MiB is only address space
CUT_S = 1.0  # at a stop, after SHUT_RD, after SHUT_RDWR, and for workers to end, ...
HASTE_S = 0.2  # ... and at a second signal
LOCK_PAUSE_S = 0.00002  # until the next try for the board's lock, then doubled
STALL_S = 5.0  # a process that keeps the board's lock for so long is killed
FORK_PAUSE_S = 1.0  # a process that dies at once is not replaced more often
LOG_BATCH_S = 0.02  # a busy log is written in batches, not a wake-up for each line:
LOG_BURST_WRITES = 10  # ... busy after so many writes, each so soon after the last
LOG_BATCH_LINES = 256  # at most, by one write
SCREEN_COLUMNS = 80
SCREEN_LINES = 20  # of connections that end, each second; more are summed up
LOG_BACKLOG_LINES = 100_000  # beyond that a stalled terminal or disk loses lines
OWN_DESCRIPTORS = 24  # standard streams, listeners, log, bells, what wakes the threads
STATUS_CONNECTIONS = 16  # at once; the oldest makes way for the newest
STATUS_TIMEOUT_S = 5.0
HISTORY_S = 90  # kept for the status page, a sample a second
EVENTS = 10  # ... and the last things that happened
LIVE_LISTED = 200  # live connections listed by the status page, oldest first
CHECK_SHOWN_BYTES = 40  # of an answer that was not the expected one
BELL_BYTES = 65536  # what a pipe holds: if so much is heard, more may be lost
LOOK = -1  # what a bell says, if not the row that was given a place: look at all,
REOPEN = -2  # ... that the log's file is another one now,
STIR = -3  # ... or only to wake: a thread is to be started, a connection has ended
MAX_ROWS = 1 << 20  # of live connections, of all workers together
MOVED_SERVERS = 64  # places on the board for addresses that names move to

DEFAULT_PORTS = (9991, 9992, 9993)  # server2.py's, one after the other
ALGORITHMS = ("roundrobin", "leastconn", "source", "random")
UP, DOWN, DRAIN, MAINT = "UP", "DOWN", "DRAIN", "MAINT"
ADMIN = ("ready", "drain", "maint")  # what an operator can set a server to
BUCKETS_S = (  # of the histograms
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600),
)
BOUNDS = (*map(str, BUCKETS_S), "+Inf")
LOCAL_SHORTAGE = {  # what the system, not the server, has run out of
    *(errno.EMFILE, errno.ENFILE),  # descriptors
    *(errno.ENOBUFS, errno.ENOMEM),  # memory
    *(errno.EADDRNOTAVAIL, errno.EAGAIN),  # source ports (connect(2))
}
CONNECTING = {errno.EINPROGRESS, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS)}
NONBLOCKING: int = getattr(socket, "SOCK_NONBLOCK", 0)  # saves a system call
CAN_SPLICE = hasattr(os, "splice")
SPLICE_REFUSALS = {  # of the call or the kind of file: not what became of the peer
    *(errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP),
    *(errno.EPERM, errno.EACCES, errno.ENOMEM),
}
SPLICE_FLAGS = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)
SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGCHLD = getattr(signal, "SIGCHLD", None)

FAMILIES = (socket.AF_INET, socket.AF_INET6)
SocketAddress = tuple[Any, ...]  # (host, port) or, for IPv6, (host, port, flow, scope)
Options = argparse.Namespace
Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]  # noqa: UP007 - Python 3.8
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]  # noqa: UP007


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
    """Return "host:port" of a socket address, or "[IPv6%zone]:port"."""
    host, port = address[:2]
    if any(address[3:]) and "%" not in host:
        with contextlib.suppress(OSError):  # the interface may be gone
            host += f"%{socket.if_indextoname(address[3])}"
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
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError:
        return 1024  # POSIX systems give that many
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
    with contextlib.suppress(AttributeError, OSError):
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


def silence_s(sock: socket.socket) -> float:
    """Return for how long the peer has answered nothing, asked at least twice.

    A peer that only reads nothing answers each probe of its window, however long it
    takes: TCP_USER_TIMEOUT would end that one, too (tcp(7)).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
            if max(info[2:4]) > 1:  # struct tcp_info: retransmits, probes, ...
                last_ack_ms = int.from_bytes(info[56:60], sys.byteorder)
                return last_ack_ms / 1000
    return 0.0


def prepare(sock: socket.socket) -> None:
    """Send without waiting for more; find out when the peer has vanished (tcp(7))."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    for option in options:
        with contextlib.suppress(OSError):  # one that is refused costs only itself
            sock.setsockopt(*option)


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


def milliseconds(seconds: float) -> int:
    """Return what poll takes for a time: rounded up, 0 for the past, -1 for ever."""
    return -1 if seconds == math.inf else max(0, math.ceil(seconds * 1000))


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


class Bell:
    """Wakes whoever polls it; the numbers that it is rung with wait to be heard.

    Any thread or process may ring; one listens. Made before a fork, both share it.
    """

    def __init__(self) -> None:
        self._sockets: tuple[socket.socket, ...] = ()
        if hasattr(os, "fork"):
            self._inner, self._outer = os.pipe()
        else:  # Windows polls only sockets
            self._sockets = socket.socketpair()
            self._inner, self._outer = (sock.fileno() for sock in self._sockets)
            for sock in self._sockets:
                sock.setblocking(False)
            return
        for fd in (self._inner, self._outer):
            os.set_blocking(fd, False)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._inner

    def ring(self, number: int = LOOK) -> None:
        """Wake the listener; LOOK says no more than "look at everything"."""
        data = struct.pack("q", number)
        with contextlib.suppress(OSError):  # full: then `hear` finds it so
            if self._sockets:
                self._sockets[1].send(data)
            else:
                os.write(self._outer, data)

    def hear(self) -> list[int]:
        """Return the numbers since the last call; LOOK among them if some are lost."""
        try:
            if self._sockets:
                self._sockets[0].recv(BELL_BYTES)
                return [LOOK]
            heard = os.read(self._inner, BELL_BYTES)
        except OSError:
            return []
        lost = [LOOK] if len(heard) == BELL_BYTES else []
        return [*struct.unpack(f"{len(heard) // 8}q", heard), *lost]

    def close(self) -> None:
        """Close both ends."""
        for sock in self._sockets:
            sock.close()
        if not self._sockets:
            os.close(self._inner)
            os.close(self._outer)



class Wake:
    """Wakes one thread of this process; a single descriptor where the system can."""

    def __init__(self) -> None:
        """Make it, or raise OSError."""
        self._bell: Bell | None = None
        try:
            self._fd = os.eventfd(0, os.EFD_NONBLOCK)
        except (AttributeError, OSError):  # there is none, or it is refused
            self._bell = Bell()
            self._fd = self._bell.fileno()

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd

    def ring(self) -> None:
        """Wake the thread."""
        if self._bell:
            self._bell.ring()
        else:
            os.eventfd_write(self._fd, 1)

    def hear(self) -> None:
        """Be ready for the next ring."""
        if self._bell:
            self._bell.hear()
            return
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """Close its descriptors."""
        if self._bell:
            self._bell.close()
        else:
            os.close(self._fd)


# ---- PROXY protocol: who the client really is ----------------------------------------
# https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, "PP" below. Configuration
# says whether a header comes; its absence or presence is never guessed (PP 2).

PROXY_V1_MAX_BYTES = 107  # with CRLF (PP 2.1)
PROXY_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"  # (PP 2.2)
PROXY_V2_LOCAL = PROXY_V2_SIGNATURE + b"\x20\0\0\0"  # "for myself": a check
PP2_TYPE_CRC32C = 0x03  # (PP 2.2.3)

# What a header says, (source, destination); None if nothing (LOCAL, UNKNOWN): then the
# connection's own addresses hold.
Route = Union[tuple[SocketAddress, SocketAddress], None]  # noqa: UP007 - Python 3.8


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


def parse_proxy_v1(line: bytes) -> Route:
    """Return what a version 1 line says; raise ValueError with the rule it breaks."""
    if not line.endswith(b"\r\n"):
        raise ValueError("PROXY line without CRLF in its first 107 bytes")
    words = line[:-2].decode("ascii", "replace").split(" ")
    if words[:2] == ["PROXY", "UNKNOWN"]:
        return None
    if len(words) != 6 or words[0] != "PROXY" or words[1] not in ("TCP4", "TCP6"):
        form = "PROXY TCP4|TCP6 source destination port port"
        raise ValueError(f"PROXY line is not '{form}'")
    version = ipaddress.IPv4Address if words[1] == "TCP4" else ipaddress.IPv6Address
    one, two = (str(version(word)) for word in words[2:4])
    ports = [int(word) for word in words[4:] if word.isdigit()]
    if [str(port) for port in ports] != words[4:] or max(ports) > 65535:
        raise ValueError("PROXY line has a port that is none")
    if "%" in one + two:
        raise ValueError("PROXY line with a zone: addresses only")
    return (one, ports[0]), (two, ports[1])


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
        end = start + 3 + size
        if end > len(header):
            raise ValueError("PROXY header with an extension that does not end in it")
        if kind == PP2_TYPE_CRC32C:
            zeroed = header[: start + 3] + bytes(size) + header[end:]
            if header[start + 3 : end] != crc32c(zeroed).to_bytes(4, "big"):
                raise ValueError("PROXY header with a wrong checksum")
        start = end


def parse_proxy_v2(header: bytes) -> Route:
    """Return what a version 2 header says; raise ValueError with the rule it breaks."""
    command, family = header[12:14]
    if not header.startswith(PROXY_V2_SIGNATURE):
        raise ValueError("no PROXY header")
    if command not in (0x20, 0x21):
        raise ValueError("PROXY header of an unknown version or command")
    if command == 0x20:  # LOCAL: a check of the sender's own; what follows is skipped
        return None
    sizes = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
    if family not in sizes or len(header) - 16 < sizes[family]:
        why = "PROXY header of an unknown family, or shorter than its family"
        raise ValueError(why)
    check_tlvs(header, len(header) if family == 0 else 16 + sizes[family])
    if family not in (0x11, 0x21):
        return None  # not TCP
    form = ">4s4sHH" if family == 0x11 else ">16s16sHH"
    source, destination, *ports = struct.unpack_from(form, header, 16)
    one, two = (str(ipaddress.ip_address(host)) for host in (source, destination))
    return (one, ports[0]), (two, ports[1])


def read_proxy_header(sock: socket.socket, timeout_s: float) -> Route:
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
    if header == b"P":
        while not header.endswith(b"\n") and len(header) < PROXY_V1_MAX_BYTES:
            ahead = read(PROXY_V1_MAX_BYTES - len(header), socket.MSG_PEEK)
            header += read(ahead.find(b"\n") + 1 or len(ahead))
            if not b"PROXY ".startswith(header[:6]):
                raise ValueError("no PROXY header")
        return parse_proxy_v1(header)
    size = 16
    while len(header) < size:
        if not PROXY_V2_SIGNATURE.startswith(header[:12]):
            raise ValueError("no PROXY header")
        header += read(size - len(header))
        if len(header) == 16:
            size += int.from_bytes(header[14:], "big")
    return parse_proxy_v2(header)


# ---- The board: what all processes share ---------------------------------------------
# Numbers in shared memory, read and written like attributes. A process that is killed
# may leave off anywhere: the rows of live connections are then the truth.


class Cell:
    """A number on the board that reads and writes like an attribute."""

    def __set_name__(self, owner: type[Cells], name: str) -> None:
        self.at = owner.SIZE
        owner.SIZE += 1

    def __get__(self, row: Cells, owner: type | None = None) -> int:
        return row.cells[self.at]

    def __set__(self, row: Cells, value: int) -> None:
        row.cells[self.at] = value


class Cells:
    """Some cells of the board, by name."""

    SIZE = 0
    __slots__ = ("cells",)

    def __init__(self, cells: memoryview) -> None:
        self.cells = cells

    def clear(self) -> None:
        """Make it nobody's."""
        self.cells[:] = memoryview(bytes(8 * len(self.cells))).cast("q")


class Addressed(Cells):
    """Cells that begin with an address: of a client, or of a server."""

    host, host2, port = Cell(), Cell(), Cell()  # the host as IPv6

    def source(self) -> tuple[str, int]:
        """Return (host, port), an IPv4 host as such."""
        ip = ipaddress.IPv6Address(struct.pack("qq", self.host, self.host2))
        return str(ip.ipv4_mapped or ip), self.port

    def set_source(self, address: SocketAddress) -> None:
        """Note an address."""
        packed = as_ipv6(plain_ip(address[0])).packed
        (self.host, self.host2), self.port = struct.unpack("qq", packed), address[1]


HISTOGRAM_CELLS = 1 + len(BOUNDS)


def count_time(histogram: memoryview, time_ns: int) -> None:
    """Count a time in a histogram: the sum, then how many are in each of BOUNDS."""
    histogram[0] += time_ns
    histogram[1 + bisect.bisect_left(BUCKETS_S, time_ns / 1e9)] += 1


# Where the relay of a row counts: the next cells of Row.
TO_SERVER, TO_CLIENT, LAST_NS = range(3, 6)


class Row(Addressed):
    """A live connection. Its own thread writes it; under the lock others, its place."""

    to_server, to_client = Cell(), Cell()  # bytes
    last_ns = Cell()  # when the last byte came
    connect_ns = Cell()  # how long the connect took; 0: not connected
    number = Cell()  # in the order of accept; 0: it is nobody's
    server = Cell()  # 1 + index of the server at which it has a place; 0: none
    waits = Cell()  # 1: for a place, in the ring `own`, ...
    before, after = Cell(), Cell()  # ... between these rows
    tries = Cell()  # connects that failed
    accepted_ns = Cell()
    queued_ns = Cell()  # since when it waits; 0: not
    door = Cell()  # which --listen it came to
    own = Cell()  # with --algorithm source: 1 + the server that is this client's, ...
    own_version = Cell()  # ... as of a version of the servers' states
    TRIED = 62  # servers in one further cell: a bit for each that could not be reached
    __slots__ = ("index", "worker")

    def __init__(self, cells: memoryview, index: int, worker: int) -> None:
        super().__init__(cells)
        self.index, self.worker = index, worker

    @property
    def key(self) -> str:
        """Which connection this is, among all that have the row in turn."""
        return f"{self.index}.{self.accepted_ns}"

    def copy(self) -> Row:
        """Return what it is now, not on the board."""
        cells = memoryview(bytes(self.cells)).cast("q")
        return Row(cells, self.index, self.worker)

    def has_tried(self, server: Server) -> bool:
        """Tell whether it could not be connected to a server."""
        cell, bit = divmod(server.index, self.TRIED)
        return bool(self.cells[self.SIZE + cell] >> bit & 1)

    def forget_tried(self) -> None:
        """Have all servers tried again."""
        for cell in range(self.SIZE, len(self.cells)):
            self.cells[cell] = 0

    def note_tried(self, server: Server) -> None:
        """Note that it could not be connected to a server."""
        cell, bit = divmod(server.index, self.TRIED)
        self.cells[self.SIZE + cell] |= 1 << bit
        self.tries += 1


class Server(Addressed):
    """A server: its cells, and the settings that --server gives it.

    The methods are called under the board's lock.
    """

    scope, family = Cell(), Cell()
    version = Cell()  # changes with the address; 0: none
    gone = Cell()  # 1: its name no longer resolves to it
    given = Cell()  # which --server it is of
    health = Cell()  # 0 … rise + fall - 1; UP at `rise` and above
    admin = Cell()  # what the operator has set it to: an index of ADMIN
    last_passed = Cell()  # the result of the last check or connect, ...
    in_a_row = Cell()  # ... and how often it was the same
    credit = Cell()  # smooth round robin: who has waited longest, by weight
    places_taken = Cell()
    total, connect_failures, retries, checks_failed = (Cell() for _ in range(4))
    to_server, to_client = Cell(), Cell()  # bytes, of connections that have ended
    penalty_s = Cell()  # for how long it stays DOWN, without checks
    changed_ns = Cell()

    def __init__(self, cells: memoryview, index: int, options: Options) -> None:
        super().__init__(cells)
        self.connects = cells[self.SIZE :]  # a histogram
        self.index, self.options, self.seen = index, options, 0
        self.rise, self.top_health = options.rise, options.rise + options.fall - 1

    def settle(self, given: int, family: int, address: SocketAddress | None) -> None:
        """Make it the server at an address that --server number `given` resolves to.

        Without one (its name has none yet), it is DOWN.
        """
        last = self.version
        self.clear()
        if address:
            self.set_source(address)
            self.scope = address[3] if len(address) > 3 else 0
        self.family, self.given = family, given
        self.last_passed, self.penalty_s = 1, int(PENALTY_S)
        self.changed_ns = time.monotonic_ns()
        self.health = self.top_health if address else 0
        self.version = last + 1

    def look(self) -> Server:
        """See where it is now: another process may have placed it; return it."""
        if self.seen != (version := self.version):
            given = self.options.servers[self.given]
            address: SocketAddress = self.source()
            self.weight, self.backup = given["weight"], given["backup"]
            self.max, self.check_at = given["max"], given["check"]
            self.last_check = "not checked yet"  # of the process that checks
            self.address_text = format_address((*address, 0, self.scope))
            if not self.family:
                self.address_text = format_address((given["host"], given["port"]))
                self.last_check = given["why"]
            if self.family == socket.AF_INET6:
                host = str(as_ipv6(plain_ip(address[0])))
                address = (host, self.port, 0, self.scope)
            self.address = address
            self.seen = version  # last: another thread may ask without the lock
        return self

    @property
    def is_healthy(self) -> bool:
        """Whether its health is good enough, whatever the operator says."""
        return bool(self.health >= self.rise)

    @property
    def may_serve(self) -> bool:
        """Whether the operator and its name let it have new clients."""
        here = self.family and not self.gone
        return bool(here and not self.admin and self.weight)

    @property
    def state(self) -> str:
        """UP, DOWN, DRAIN or MAINT."""
        if self.gone:
            return DRAIN  # its live connections go on
        return (UP if self.is_healthy else DOWN, DRAIN, MAINT)[self.admin]

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
        self.last_passed = int(passed)
        if passed:
            self.penalty_s = int(PENALTY_S)
            self.health += 1
            if self.is_healthy:
                self.health = self.top_health
        else:
            self.health = self.health - 1 if self.health > self.rise else 0

    def copy(self) -> Server:
        """Return what it is now, not on the board."""
        cells = memoryview(bytearray(self.cells)).cast("q")
        copy = Server(cells, self.index, self.options).look()
        copy.last_check = self.last_check
        return copy

    def add_row(self, row: Row) -> None:
        """Add one connection's counters."""
        self.to_server += row.to_server
        self.to_client += row.to_client
        if row.connect_ns:
            self.total += 1
            count_time(self.connects, row.connect_ns)


def candidates(servers: Iterable[Server]) -> tuple[list[Server], bool]:
    """Return who may be asked: UP servers, else (fail open) any.

    The second value tells whether it came to that: no server is UP.
    """
    ready = [s for s in servers if s.may_serve]
    up = [s for s in ready if s.is_healthy]
    return up or ready, bool(ready and not up)


def first_rank(servers: list[Server], fail_open: bool) -> list[Server]:
    """Return servers that are no backup; without one the first backup serves all."""
    if fail_open:
        return servers
    return [s for s in servers if not s.backup] or servers[:1]  # like HAProxy


def choose(servers: list[Server], algorithm: str, rng: Any) -> Server | None:
    """Return the one whose turn it is; None when those that could serve are full."""
    servers = [s for s in servers if s.has_place]
    if algorithm == "random" and len(servers) > 1:
        servers = rng.choices(servers, [s.weight for s in servers], k=2)
    if algorithm in ("leastconn", "random") and servers:
        loads = [s.places_taken / s.weight for s in servers]
        least = min(loads)
        servers = [s for s, load in zip(servers, loads, strict=True) if load == least]
    return smooth_round_robin(servers) if servers else None


def smooth_round_robin(servers: list[Server]) -> Server:
    """Give each server its weight in credit, take the richest, make it pay for all.

    Weights 5:1:1 interleave (a a b a c a a) instead of bursting; a connection that is
    retried charges the server that serves it, so a dead server's share spreads over all
    the rest.
    """
    richest, most, total = servers[0], -math.inf, 0
    for server in servers:
        server.credit = credit = server.credit + server.weight
        total += server.weight
        if credit > most:
            richest, most = server, credit
    richest.credit -= total
    return richest


def rendezvous(host: str, server: Server) -> float:
    """Return the score of a server for a client's host: the highest score serves it.

    Losing one server moves only its own clients (Thaler and Ravishankar, 1998; weights
    by -w / ln h, Schindelhauer and Schomaker, 2005).
    """
    key = f"{host} {server.address_text}".encode()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return float(-server.weight / math.log((number + 0.5) / 2**64))


class BoardLock:
    """The board's lock: it says who has it, so that the dead can be robbed.

    Between processes, who finds it taken tries again, rather than sleep in the
    semaphore: woken there, a thread would have the lock and wait for the interpreter,
    and all others for it.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self.bells: list[tuple[int, int]] = []  # to ring once it is free: (whose, why)
        self._alone = board.options.workers == 1
        kind = threading if self._alone else multiprocessing.get_context("fork")
        self._lock: Any = kind.Lock()
        self.me = self._parent = os.getpid()

    def __enter__(self) -> None:
        if not self._lock.acquire(self._alone):
            self._try_again()
        self._board.holder = self.me

    def _try_again(self) -> None:
        """Take it from its holder, from a dead one if this is the parent.

        If nobody has noted itself for a second, it died within the two lines where the
        lock is taken or given back.
        """
        pause_s, waited_s, holder = LOCK_PAUSE_S, 0.0, 0
        while not self._lock.acquire(False):
            time.sleep(pause_s)
            if holder != self._board.holder:
                pause_s, waited_s, holder = LOCK_PAUSE_S, 0.0, self._board.holder
            waited_s += pause_s
            pause_s = min(2 * pause_s, 0.01)
            is_parent = self.me == self._parent
            if is_parent and (is_dead(holder) if holder else waited_s > 1.0):
                break
            if waited_s > STALL_S and holder not in (0, self.me):
                with contextlib.suppress(OSError):
                    os.kill(holder, signal.SIGKILL)  # stopped, and all wait for it

    def __exit__(self, *_: object) -> None:
        bells = self.bells
        if bells:
            self.bells = []
        self._board.holder = 0
        self._lock.release()
        for number, why in bells:
            self._board.bells[number].ring(why)


def is_dead(child: int) -> bool:
    """Tell whether a child has ended, and leave it to be reaped."""
    try:
        state = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True  # it has been reaped
    return state is not None


class NoServerError(Exception):
    """No server is left that this connection could be sent to."""


class Board(Cells):
    """Servers, live connections, the queue and the totals, under `lock`.

    Whoever calls a method without `_locked` must not have the lock; methods return
    lines for the log instead of writing them. A place is counted before a row names its
    server, and no longer only after it does not; `bury` counts all anew.

    Who waits for a place is in a ring of rows, in the order of accept, that begins and
    ends at row 0. With --algorithm source each server has a ring, at row 1 + its index.
    """

    holder = Cell()  # the process that has the lock; 0: none
    begun, live, failed, refused, queued = (Cell() for _ in range(5))
    to_servers, to_clients = Cell(), Cell()  # bytes, of connections that have ended
    version = Cell()  # changes when it matters for choosing: a server's state
    leaving, stopping, over = (Cell() for _ in range(3))
    cutting = Cell()  # milliseconds for each step of it

    def __init__(self, options: Options, rows_each: int) -> None:
        """Lay out the board; place the servers that options.servers resolved to."""
        self.options = options
        resolved = [
            (n, *where)
            for n, given in enumerate(options.servers)
            for where in given["resolved"] or [(0, None)] * bool(given["why"])
        ]
        moves = any(not is_literal(given["host"]) for given in options.servers)
        slots = len(resolved) + MOVED_SERVERS * moves
        self._heads = 1 + slots * (options.algorithm == "source")
        self._rows_each = rows_each
        self._row_size = Row.SIZE + -(-slots // Row.TRIED)
        server_size = Server.SIZE + HISTOGRAM_CELLS
        rows = self._heads + rows_each * options.workers
        first = self.SIZE + 2 * HISTOGRAM_CELLS + len(END_CODES)
        first_row = first + slots * server_size
        size = first_row + rows * self._row_size
        cells = memoryview(mmap.mmap(-1, 8 * size)).cast("q")
        super().__init__(cells[: self.SIZE])
        histograms = cells[self.SIZE : self.SIZE + 2 * HISTOGRAM_CELLS]
        self._queue_times = histograms[:HISTOGRAM_CELLS]
        self._connection_times = histograms[HISTOGRAM_CELLS:]
        self._ends = cells[self.SIZE + len(histograms) : first]
        self._rows = cells[first_row:]
        self._slots = [
            Server(cells[at : at + server_size], index, options)
            for index, at in enumerate(range(first, first_row, server_size))
        ]
        for server, where in zip(self._slots, resolved, strict=False):
            server.settle(*where)
        self.doors: list[str] = []  # the addresses of several --listen
        most = rows - self._heads
        self.limit = min(options.max_connections or most, most)
        self.started_ns, self.started_s = time.monotonic_ns(), time.time()
        self._seen = -1  # the version that these are of:
        self._candidates: list[Server] = []
        self._asked: list[Server] = []  # by who has not tried any
        self.fail_open = False  # no server is UP: all are tried
        self._empty_rings()
        self.lock = BoardLock(self)
        self.bells = [Bell() for _ in range(options.workers + 1)]  # 0: the desk's

    def row(self, index: int) -> Row:
        """Return a row by its index; worker N has those of N."""
        cells = self._rows[index * self._row_size : (index + 1) * self._row_size]
        return Row(cells, index, (index - self._heads) // self._rows_each + 1)

    def rows_of(self, worker: int) -> Iterator[Row]:
        """Yield the rows of a worker."""
        first = self._heads + (worker - 1) * self._rows_each
        yield from map(self.row, range(first, first + self._rows_each))

    def taken_rows(self) -> list[Row]:
        """Return the rows of live connections, the oldest first."""
        numbers = enumerate(self._column("number", len(self._rows)))
        taken = sorted((number, index) for index, number in numbers if number)
        return [self.row(index) for _, index in taken]

    def _column(self, name: str, end: int) -> list[int]:
        """Return one cell of all rows, up to a cell."""
        start = Row.__dict__[name].at
        column: list[int] = self._rows[start : end : self._row_size].tolist()
        return column

    def servers(self) -> list[Server]:
        """Return the servers of this moment, also those whose address is gone."""
        return [server.look() for server in self._slots if server.version]

    def server_of(self, row: Row) -> Server | None:
        """Return the server at which a row has a place."""
        return self._slots[row.server - 1].look() if row.server else None

    def line_of(self, row: Row, end: End) -> str:
        """Return the line of the log that a connection ends with."""
        door = self.doors[row.door] if self.doors else ""
        return end_line(row, self.server_of(row), end, door)

    def ring_all(self) -> None:
        """Have every process look at the board."""
        for bell in self.bells:
            bell.ring(LOOK)

    def _ring_workers_locked(self, what: int = LOOK) -> None:
        self.lock.bells += [(number, what) for number in range(1, len(self.bells))]

    # A connection's steps -------------------------------------------------------------

    def admit(
        self, row: Row, listener: socket.socket, door: int = 0
    ) -> tuple[socket.socket, SocketAddress] | None:
        """Accept a client at a door and choose its server; None: there are too many.

        Under one lock, so that servers take turns in the order of accept whichever
        process accepts. Raise OSError when nobody is there, or cannot be accepted.
        """
        options = self.options
        with self.lock:
            if self.live >= self.limit:
                return None
            client_sock, peer = listener.accept()
            self.begun += 1
            self.live += 1
            row.number, row.door = self.begun, door
            row.accepted_ns = time.monotonic_ns()
            row.set_source(peer)
            if not options.accept_proxy and not is_barred(options, peer):
                self._pick_locked(row)
        return client_sock, peer

    def pick(self, row: Row) -> Server | None:
        """Take a place at a server; None: the row is in the queue.

        Raise NoServerError when all that could be tried have been.
        """
        with self.lock:
            if not (row.server or row.waits):  # as somebody else may have seen to
                self._pick_locked(row)
            return self.server_of(row)

    def forget_tried(self, row: Row) -> None:
        """Have a row try again what it could not be connected to, now if it waits.

        It alone, and without a bell: it is the caller that asks, once a second.
        """
        with self.lock:
            row.forget_tried()
            if row.waits and not self.cutting:
                self._serve_waiting_locked(row)

    def _pick_locked(self, row: Row) -> None:
        """Give a row a place, or put it into the queue behind those who wait there."""
        asked = self._asked_locked(row)
        first = self.row(self.row(row.own).after) if self.queued else None
        if first and 0 < first.number < row.number:
            self._enqueue_locked(row)
            self._hand_out_locked()  # for those in front, its server may be no choice
        elif not self._give_place_locked(row, asked):
            self._enqueue_locked(row)

    def _asked_locked(self, row: Row) -> list[Server]:
        """Return the servers that a row may be sent to; raise NoServerError."""
        if self._seen != self.version:
            self._seen = self.version
            self._candidates, self.fail_open = candidates(self.servers())
            self._asked = first_rank(self._candidates, self.fail_open)
        asked = self._asked
        if row.tries:
            left = [s for s in self._candidates if not row.has_tried(s)]
            if not left:
                raise NoServerError
            asked = first_rank(left, self.fail_open)
        if self.options.algorithm != "source" or not asked:
            return asked
        if not row.own or row.own_version != self.version:
            host = row.source()[0]
            row.own = 1 + max(asked, key=lambda s: rendezvous(host, s)).index
            row.own_version = self.version
        return [self._slots[row.own - 1]]

    def _give_place_locked(self, row: Row, asked: list[Server]) -> bool:
        server = choose(asked, self.options.algorithm, random)
        if server is None:
            return False
        server.places_taken += 1  # in this order: see above
        row.server = server.index + 1
        return True

    def give_back(self, row: Row, server: Server, failure: End) -> str:
        """Take a row off a server that it could not be connected to.

        Return a line for the log if that changed the server's state.
        """
        with self.lock:
            row.note_tried(server)
            row.server = row.own = 0
            server.places_taken -= 1
            goes_on = any(not row.has_tried(other) for other in self._candidates)
            server.retries += goes_on
            line = ""
            if failure.blames_server:
                server.connect_failures += 1
                line = self._count_result_locked(server, False, failure.words)
            self._hand_out_locked()
            return line

    def connected(self, row: Row, server: Server, began_ns: int) -> str:
        """Note that a connect has succeeded, which speaks for a server as a check does.

        Return a line for the log when it brought its server UP.
        """
        row.last_ns = now_ns = time.monotonic_ns()
        row.connect_ns = max(1, now_ns - began_ns)
        speaks = self.options.check_expect or server.check_at
        if speaks and not self.options.no_checks:
            return ""  # a server that hangs, or only refuses, accepts connections, too
        if server.health < server.top_health:  # only failures in a row count
            with self.lock:
                return self._count_result_locked(server, True, "connected for a client")
        return ""

    def end(self, row: Row, end: End) -> None:
        """End a connection: count it, free its place, hand that on."""
        with self.lock:
            if self.live >= self.limit:
                self._ring_workers_locked(STIR)  # who waits at accept
            self._end_locked(row, end)

    def _end_locked(self, row: Row, end: End) -> None:
        self._ends[END_CODES.index(end.code)] += 1
        count_time(self._connection_times, time.monotonic_ns() - row.accepted_ns)
        self._count_wait_locked(row)
        self._leave_queue_locked(row)
        if server := self.server_of(row):
            row.server = 0
            server.places_taken -= 1
            server.add_row(row)
        self.to_servers += row.to_server
        self.to_clients += row.to_client
        self.refused += end.code == "PC"
        self.failed += not row.connect_ns and end.is_failure
        row.clear()
        self.live -= 1
        self._hand_out_locked()

    # The queue: rings of rows ---------------------------------------------------------

    def _empty_rings(self) -> None:
        for head in map(self.row, range(self._heads)):
            head.before = head.after = head.index

    def _enqueue_locked(self, row: Row) -> None:
        """Put a row into its ring, by its number: who has tried a server is early."""
        before = self.row(self.row(row.own).before)
        while before.number > row.number:  # a head has none
            before = self.row(before.before)
        after = self.row(before.after)
        row.before, row.after, row.waits = before.index, after.index, 1
        before.after = after.before = row.index
        row.queued_ns = row.queued_ns or time.monotonic_ns()
        self.queued += 1

    def _leave_queue_locked(self, row: Row) -> None:
        if row.waits:
            self.row(row.before).after = row.after
            self.row(row.after).before = row.before
            row.waits = 0
            self.queued -= 1

    def _count_wait_locked(self, row: Row) -> None:
        """Count how long a row has waited in the queue, if it has."""
        if row.queued_ns:
            count_time(self._queue_times, time.monotonic_ns() - row.queued_ns)
            row.queued_ns = 0

    def _hand_out_locked(self) -> None:
        """Give places to those who wait, in order, and tell them; none at a cut."""
        if not self.queued or self.cutting:
            return
        heads = self._heads * self._row_size
        for ring, first in enumerate(self._column("after", heads)):
            row = self.row(first)
            while row.index != ring:
                after = self.row(row.after)
                if self._serve_waiting_locked(row):
                    self.lock.bells.append((row.worker, row.index))
                elif not row.tries:
                    break  # those behind it will get none, either
                row = after

    def _serve_waiting_locked(self, row: Row) -> bool:
        """Take a row out of the queue if there is a place for it, or no server."""
        try:
            if not self._give_place_locked(row, self._asked_locked(row)):
                return False
        except NoServerError:
            pass  # it asks again, to hear so
        self._count_wait_locked(row)
        self._leave_queue_locked(row)
        return True

    # Health, the operator, names ------------------------------------------------------

    def record_check(self, server: Server, passed: bool | None, result: str) -> str:
        """Note the result of a check, None: no result; return a line for a change."""
        with self.lock:
            server.last_check = result
            if passed is None:
                return ""
            server.checks_failed += not passed
            return self._count_result_locked(server, passed, result)

    def _count_result_locked(self, server: Server, passed: bool, result: str) -> str:
        before = server.state
        server.count_result(passed)
        return self._say_change_locked(server, before, result)

    def set_admin(self, address_text: str, admin: str, whence: str) -> str | None:
        """Set a server ready, drain or maint; return a line if its state changed.

        None when there is no such server.
        """
        with self.lock:
            for server in self.servers():
                if server.address_text == address_text and not server.gone:
                    before, server.admin = server.state, ADMIN.index(admin)
                    why = f"set to {admin} by the operator at {whence}"
                    return self._say_change_locked(server, before, why)
        return None

    def forgive(self) -> list[str]:
        """Call servers UP again whose penalty is over; return a line for each one.

        One more failed connect takes it DOWN again, twice as long (Envoy's ejection).
        """
        lines = []
        with self.lock:
            for server in self.servers():
                waited_s = (time.monotonic_ns() - server.changed_ns) / 1e9
                over = server.family and waited_s >= server.penalty_s
                if server.state == DOWN and over:
                    why = f"tried again after {server.penalty_s} s without checks"
                    server.penalty_s = min(2 * server.penalty_s, int(PENALTY_MAX_S))
                    server.health, server.in_a_row = self.options.rise, 0
                    lines.append(self._say_change_locked(server, DOWN, why))
        return lines

    def may_serve(self) -> bool:
        """Tell whether any server may have clients, be it UP or not."""
        with self.lock:
            return any(server.may_serve for server in self.servers())

    def is_up(self) -> bool:
        """Tell whether any server is UP that may have clients."""
        with self.lock:
            return any(s.may_serve and s.is_healthy for s in self.servers())

    def _say_change_locked(self, server: Server, before: str, why: str) -> str:
        """Return a line for the log if the state is not what it was before."""
        if server.state == before:
            return ""
        options = self.options
        server.changed_ns = time.monotonic_ns()
        self.version += 1
        self._ring_workers_locked()  # for those who are held
        if options.algorithm == "source" and self.queued:
            waiting = [row for row in self.taken_rows() if row.waits]
            for row in waiting:
                self._leave_queue_locked(row)
                with contextlib.suppress(NoServerError):  # it is told below
                    self._asked_locked(row)
                self._enqueue_locked(row)
        self._hand_out_locked()
        needed = options.rise if server.last_passed else options.fall
        present = [s for s in self.servers() if not s.gone]
        up = sum(s.may_serve and s.is_healthy for s in present)
        return (
            f'server={server.address_text} state={server.state} reason="{why}" '
            f"checks={min(server.in_a_row, needed)}/{needed} up={up}/{len(present)}"
        )

    def move_name(
        self, given: int, resolved: list[tuple[int, SocketAddress]]
    ) -> tuple[list[Server], list[SocketAddress], list[str]]:
        """Bring a name's servers in line with its addresses.

        Return the new ones, the addresses that are another --server's already, and a
        line for the log for each server new, gone or back. An address that is gone gets
        no new connection; its live ones go on, and what the operator set and the checks
        knew is kept for its return.
        """
        where = {plain_key(address): (family, address) for family, address in resolved}
        settings = self.options.servers[given]
        name, why = format_address((settings["host"], settings["port"])), "has moved"
        changed, added = [], []
        with self.lock:
            servers = [s for s in self.servers() if s.family]
            others = {
                plain_key(s.address) for s in servers if not s.gone and s.given != given
            }
            for server in (s for s in self.servers() if not s.family):
                if server.given == given and where and not server.gone:
                    server.gone = 1  # it stood for the name without an address
                    why = "has an address"
            for server in (s for s in servers if s.given == given):
                key = plain_key(server.address)
                stays = where.pop(key, None) and not (server.gone and key in others)
                if bool(server.gone) == bool(stays):
                    server.gone = int(not stays)
                    changed.append(server)
            shared = [where.pop(key)[1] for key in others if key in where]
            for family_and_address in where.values():
                if slot := self._free_slot_locked(changed):
                    slot.settle(given, *family_and_address)
                    added.append(slot.look())
            why = f"{name} {why}"
            lines = [self._say_change_locked(s, "", why) for s in changed + added]
            return added, shared, lines

    def _free_slot_locked(self, changed: list[Server]) -> Server | None:
        """Return a place for one more server: an unused one, or a forgotten one's."""
        unused = [s for s in self._slots if not s.version]
        forgotten = [s for s in self._slots if s.gone and not s.places_taken]
        return next((s for s in unused + forgotten if s not in changed), None)

    # A worker's death, and figures ----------------------------------------------------

    def bury(self, worker: int, end: End) -> list[tuple[str, str]]:
        """End what a dead worker had, and make all counts anew.

        Return its lines, each with its row's key. Called by the parent: its lock is not
        held up by the dead.
        """
        with self.lock:
            rows = self.taken_rows()
            dead = [row for row in rows if row.worker == worker]
            lines = [
                (self.line_of(row, row_end(row, end)), row.key)
                for row in dead
            ]
            self.live, self.queued = len(rows), 0
            places = collections.Counter(row.server for row in rows)
            for server in self._slots:
                server.places_taken = places[server.index + 1]
            self._empty_rings()
            for row in rows:
                waits, row.waits = row.waits and not row.server, 0
                if waits:
                    self._enqueue_locked(row)
            for row in dead:
                self._end_locked(row, end)
        self.ring_all()
        return lines

    def snapshot(self) -> dict[str, Any]:
        """Return a moment's figures as /status.json has them, and "more".

        The lock is held for copies; nobody waits while thousands of them are added up.
        """
        with self.lock:
            now_ns = time.monotonic_ns()
            rows = [row.copy() for row in self.taken_rows()]
            copies = {s.index + 1: s.copy() for s in self.servers()}
            amounts = {"to_servers": self.to_servers, "to_clients": self.to_clients}
            figures = {
                "uptime_s": round((now_ns - self.started_ns) / 1e9, 3),
                "stopping": bool(self.leaving),
                "connections": {
                    "active": len(rows), "total": self.begun, "failed": self.failed,
                    "refused": self.refused, "queued": self.queued,
                },
            }  # fmt: skip
            more = {
                "ends": dict(zip(END_CODES, self._ends.tolist(), strict=True)),
                "queue": self._queue_times.tolist(),
                "connections": self._connection_times.tolist(),
                "started_s": round(self.started_s, 3),
            }
        for row in rows:
            amounts["to_servers"] += row.to_server
            amounts["to_clients"] += row.to_client
            if row.server:
                copies[row.server].add_row(row)
        servers = [s for s in copies.values() if not s.gone or s.places_taken]
        return figures | {
            "bytes": amounts,
            "servers": [describe(server, now_ns) for server in servers],
            "live": [
                describe_live(row, copies.get(row.server), now_ns)
                for row in rows[:LIVE_LISTED]
            ],
            "more": more | {"servers": [describe_more(server) for server in servers]},
        }


def plain_key(address: SocketAddress) -> tuple[Any, ...]:
    """Return what is the same for all forms of an address: IPv4-mapped, zone, case."""
    return str(plain_ip(address[0])), address[1], *filter(None, address[3:4])


def is_literal(host: str) -> bool:
    """Tell whether the host is an address already, be it "127.1" (inet_aton(3))."""
    with contextlib.suppress(ValueError):
        return bool(plain_ip(host))
    with contextlib.suppress(OSError, UnicodeError):
        return bool(socket.inet_aton(host))
    return False


def is_barred(options: Options, source: SocketAddress) -> bool:
    """Tell whether --allow keeps a client out."""
    return bool(options.allow) and not is_in(options.allow, source)


# ---- Ends ----------------------------------------------------------------------------


END_CODES = (  # README's table
    *("--", "CD", "SD", "cD", "sD", "CL", "cL", "KD", "KC", "KQ", "DD"),
    *("SC", "sC", "CC", "CQ", "sQ", "PC", "RC", "ID"),
)


@dataclass(frozen=True)
class End:
    """How a connection ended: HAProxy's two letters, and the same in words.

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
        """Whether a connection that was not connected to a server counts as failed."""
        return self.code[0] not in "CPK"


# README's table. Who says those whose words depend on more:
#   CD SD cD sD CL cL    Relay: a side reset the connection, vanished, or was idle
#   SC sC RC             connect: refused, timed out, nothing left to connect with
#   PC                   refuse: --allow, --accept-proxy
#   ID                   Worker._serve: a defect
CLOSED = End("--", "closed by both sides")
CUT = End("KD", "closed at shutdown")
CUT_CONNECTING = End("KC", "closed at shutdown")
CUT_QUEUED = End("KQ", "closed at shutdown")
LEFT_CONNECTING = End("CC", "client left while connecting")
LEFT_QUEUE = End("CQ", "client left the queue")
DOWN_RESET = End("DD", "reset: its server went DOWN")
QUEUED_TOO_LONG = End("sQ", "no place at a server in time")
NO_SERVER = End("SC", "no server may have clients")
WORKER_DIED = End("ID", "its worker process died")


def refuse(why: str) -> End:
    """Return how a client ends that may not come."""
    return End("PC", f"refused: {why}")


def row_end(row: Row, end: End) -> End:
    """Return the end of a row that somebody else ends: CUT says where it was cut."""
    if end is not CUT or row.connect_ns:
        return end
    return CUT_CONNECTING if row.server else CUT_QUEUED


def end_line(row: Row, server: Server | None, end: End, door: str) -> str:
    """Return the line of the log; it names a --listen only if there are several."""
    connect_ms = f"{row.connect_ns / 1e6:.2f}" if row.connect_ns else "-"
    seconds = (time.monotonic_ns() - row.accepted_ns) / 1e9
    return (
        f"client={format_address(row.source())} "
        f"{f'listen={door} ' if door else ''}"
        f"server={server.address_text if server else '-'} "
        f"tries={row.tries + bool(server)} "
        f"connect_ms={connect_ms} duration_ms={seconds * 1000:.1f} "
        f"to_server={row.to_server} to_client={row.to_client} "
        f"undelivered={end.undelivered} end={end.code} {end.words}"
    )


class OverError(Exception):
    """A connection ends before it was connected to a server."""

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.end = end


# ---- Worker: a thread for every connection -------------------------------------------
# Threads wait for the turn to accept rather than being started by a client, and more
# start whenever few are left waiting: so no client waits for a thread to come to life.


class Session:
    """A client's connection, as its thread and its process's MainThread know it."""

    __slots__ = ("client_sock", "connected_ns", "cut", "destination", "held_until",
                 "over", "peer", "queued_until", "row", "server_sock", "source",
                 "wake")  # fmt: skip

    def __init__(
        self, row: Row, client_sock: socket.socket, peer: SocketAddress
    ) -> None:
        self.row, self.client_sock, self.peer = row, client_sock, peer
        self.server_sock: socket.socket | None = None
        self.source: SocketAddress | None = None  # as its PROXY header has it, ...
        self.destination: SocketAddress | None = None  # ... and where it came to
        self.wake: Wake | None = None  # while it waits for a place
        self.held_until = 0.0  # since no server could be connected (monotonic), ...
        self.queued_until = 0.0  # ... since it first waited for a place
        self.connected_ns = 0
        self.cut: End | None = None  # why it is to end: its own end of file is no more
        self.over = False  # somebody ends it

    def sockets(self) -> list[socket.socket]:
        """Return the sockets that there are."""
        return [sock for sock in (self.client_sock, self.server_sock) if sock]


class Worker:
    """Threads that take turns at accepting, each for one connection at a time.

    `_lock` guards `_free`, `_unused`, `_full`, `_live`, `_sources`, `_waiting`,
    `_spare` and `_threads`. `_turn` is had by the thread that accepts; the others wait
    for it. The MainThread, in `run`, starts threads, wakes those that have been given a
    place, and cuts.
    """

    def __init__(
        self, board: Board, listeners: list[socket.socket], log: Log, number: int
    ) -> None:
        self._options, self._board, self._log = board.options, board, log
        self._bell = board.bells[number]
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._free: list[Row] = []
        self._unused = board.rows_of(number)  # rows that were never used
        self._live: dict[int, Session] = {}
        self._sources: collections.Counter[SocketAddress] = collections.Counter()
        self._waiting: dict[int, Session] = {}  # those that wait for a place
        self._spare = self._threads = 0
        self._full = False  # the thread at accept waits for a connection to end
        self._leave = Bell()  # wakes the thread at accept
        self._clients = Clients(listeners, self._leave)

    # One connection -------------------------------------------------------------------

    def _work(self) -> None:
        """Thread "connection-N": one connection after the other."""
        while session := self._accept():
            self._serve(session)
            with self._lock:
                if self._spare >= MAX_SPARE_THREADS:
                    break
                self._spare += 1
        with self._lock:
            self._threads -= 1

    def _serve(self, session: Session) -> None:
        """Take a connection from accept to close."""
        row = session.row
        try:
            self._meet(session)
            session.server_sock, died = self._connected(session)
            if session.cut:  # nothing was sent yet, and nothing is
                raise OverError(CUT_CONNECTING)
            socks = (session.client_sock, session.server_sock)
            session.connected_ns = time.monotonic_ns()
            end = Relay(self._options, row.cells, *socks, session).run(died)
        except OverError as over:
            end = over.end
        except Exception as error:  # a defect: say where, end this connection
            traceback.print_exc()
            end = End("ID", f"internal error: {error!r}")
        self._finish(session, end)

    def _meet(self, session: Session) -> None:
        """See whether the client may come, and who it is; raise OverError."""
        options, row, peer = self._options, session.row, session.peer
        if not options.accept_proxy:
            if is_barred(options, peer):
                raise OverError(refuse("not in --allow"))
            return
        if not is_in(options.accept_proxy, peer):
            raise OverError(refuse("not in --accept-proxy"))
        try:
            route = read_proxy_header(session.client_sock, PROXY_HEADER_TIMEOUT_S)
        except (OSError, ValueError) as error:
            if session.cut:
                raise OverError(CUT_CONNECTING) from None
            words = say_why(error) if isinstance(error, OSError) else str(error)
            raise OverError(refuse(f"bad PROXY header: {words}")) from None
        session.client_sock.setblocking(False)
        if route:
            session.source, session.destination = route
            row.set_source(session.source)
            with self._lock:
                self._sources[session.source] += 1
                again = self._sources[session.source]
                loops = session.source[1] and again > LOOP_ROUNDS  # a port is one's own
            if loops:
                raise OverError(refuse("a loop: it has come here again and again"))
        if is_barred(options, row.source()):
            raise OverError(refuse("not in --allow"))

    def _connected(self, session: Session) -> tuple[socket.socket, bool]:
        """Return a socket connected to a server, and whether it died since.

        Raise OverError when there is no server for the client.
        """
        row, board, failure = session.row, self._board, NO_SERVER
        while True:
            try:
                server = board.server_of(row) or self._wait_for_place(session)
            except NoServerError:
                raise OverError(failure) from None
            if board.fail_open and not board.is_up():
                self._log.warn("open", "no server is UP: every server is tried")
            began_ns = time.monotonic_ns()
            try:
                sock, died = connect(
                    server, self._preface(session), session.client_sock,
                    self._options.connect_timeout,
                )  # fmt: skip
            except OverError as over:
                failure = over.end
                if session.cut:
                    raise OverError(CUT_CONNECTING) from None
                if failure is LEFT_CONNECTING:
                    raise
                self._log.line(board.give_back(row, server, failure))
                self._warn_of_shortage(failure)
                continue
            self._log.line(board.connected(row, server, began_ns))
            return sock, died

    def _preface(self, session: Session) -> bytes:
        """Return the PROXY header that a server is sent before all else."""
        if not self._options.send_proxy:
            return b""
        destination = session.destination or session.client_sock.getsockname()
        header = proxy_v1 if self._options.send_proxy == "v1" else proxy_v2
        return header(session.row.source(), destination)

    def _wait_for_place(self, session: Session) -> Server:
        """Return a server with a place, waiting for one; the client may leave.

        Or, when all have been tried in vain, for one that can be tried again, for
        --hold. Raise OverError, or NoServerError when that time is over.
        """
        row, board = session.row, self._board
        try:
            session.wake = Wake()
        except OSError as error:
            raise OverError(End("RC", f"no descriptor: {say_why(error)}")) from None
        client_fd = session.client_sock.fileno()
        poll = new_poll()
        poll.register(client_fd, POLLIN)
        poll.register(session.wake.fileno(), POLLIN)
        with self._lock:
            self._waiting[row.index] = session
        try:
            while True:
                server, in_vain = board.server_of(row), False
                if server is None and board.cutting:
                    raise OverError(CUT_QUEUED)
                if server is None and not row.waits:
                    try:
                        server = board.pick(row)
                    except NoServerError:
                        in_vain = True
                if server:
                    return server
                if in_vain or not board.may_serve():
                    wait_s, over = self._held_s(session), NO_SERVER
                else:
                    wait_s, over = self._queued_s(session), QUEUED_TOO_LONG
                if not wait_s:
                    raise NoServerError if in_vain else OverError(over)
                retry_s = RETRY_S if row.tries else math.inf
                ready = dict(poll.poll(milliseconds(min(wait_s, retry_s))))
                if mask := ready.get(client_fd):
                    if mask & (POLLERR | POLLHUP) or has_left(session.client_sock):
                        raise OverError(CUT_QUEUED if session.cut else LEFT_QUEUE)
                    poll.register(client_fd, 0)  # it has sent: now only errors matter
                elif in_vain or row.tries:  # RETRY_S is over, or something has changed
                    board.forget_tried(row)
                session.wake.hear()
        finally:
            with self._lock:
                del self._waiting[row.index]
                session.wake.close()

    def _held_s(self, session: Session) -> float:
        """Return for how long a client is still held, with no server for it."""
        now_s = time.monotonic()
        session.held_until = session.held_until or now_s + self._options.hold
        return max(0.0, session.held_until - now_s)

    def _queued_s(self, session: Session) -> float:
        """Return for how long a client may still wait for a place, in all."""
        now_s, timeout_s = time.monotonic(), self._options.queue_timeout or math.inf
        if not session.row.tries:
            session.held_until = 0.0  # what it was held for is over
        session.queued_until = session.queued_until or now_s + timeout_s
        return max(0.0, session.queued_until - now_s)

    def _finish(self, session: Session, end: End) -> None:
        """Close the sockets, then free the place: the server knows before the next."""
        row, board = session.row, self._board
        with self._lock:
            if session.over:
                return  # all were ended at the cut
            session.over = True
        for sock in session.sockets():
            sock.close()
        self._warn_of_shortage(end)
        if not self._log.silent:  # before the row is nobody's: the dead are told, too
            line = board.line_of(row, end)
            self._log.line(line, row.key)
        board.end(row, end)
        with self._lock:
            if session.source:
                self._sources[session.source] -= 1
                if not self._sources[session.source]:
                    del self._sources[session.source]
            del self._live[row.index]  # the last step: without any, the process ends
            self._free.append(row)
            rings = self._full or board.stopping
        if rings:
            self._bell.ring(STIR)

    def _warn_of_shortage(self, end: End) -> None:
        if end.code == "RC":
            self._log.warn("shortage", f"{end.words}; live connections go on")

    # Accepting ------------------------------------------------------------------------

    def _accept(self) -> Session | None:
        """Wait for the turn and then for a client; None at a stop.

        A row comes first: the kernel wakes one worker for a client, and that one must
        be able to take it.
        """
        row = None
        with self._turn:
            while not self._board.stopping:
                row = row or self._next_row()
                if row is None:
                    self._wait_for_end(False)
                    continue
                door, listener = self._clients.wait()
                if listener is None:
                    continue
                try:
                    accepted = self._board.admit(row, listener, door)
                except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                    continue
                except OSError as error:
                    if not self._board.stopping:
                        words = f"cannot accept: {say_why(error)}"
                        self._log.warn("accept", f"{words}; live connections go on")
                        self._pause()
                    continue
                if accepted:
                    return self._begin(row, *accepted)
                self._wait_for_end(True)
            if row:
                with self._lock:
                    self._free.append(row)
        return None

    def _next_row(self) -> Row | None:
        with self._lock:
            return self._free.pop() if self._free else next(self._unused, None)

    def _begin(
        self, row: Row, client_sock: socket.socket, peer: SocketAddress
    ) -> Session:
        client_sock.setblocking(False)
        session = Session(row, client_sock, peer)
        with self._lock:
            self._live[row.index] = session
            self._spare -= 1
            short = self._spare < SPARE_THREADS
        if short:
            self._bell.ring(STIR)
        if len(self._live) * self._options.workers > self._board.live:
            self._clients.stand_back()
        return session

    def _pause(self) -> None:
        """Wait for BACKOFF_S, or for the stop."""
        poll = new_poll()
        poll.register(self._leave.fileno(), POLLIN)
        poll.poll(BACKOFF_S * 1000)

    def _wait_for_end(self, has_row: bool) -> None:
        """Wait for the end of any connection: the MainThread hears of it."""
        poll = new_poll()
        poll.register(self._leave.fileno(), POLLIN)
        board = self._board
        with self._lock:
            self._full = True  # said before it is asked: one may end in between
        with self._lock:
            waits = board.live >= board.limit if has_row else not self._free
        if waits and not board.stopping:
            poll.poll()
        with self._lock:
            self._full = False
        self._leave.hear()

    # The MainThread -------------------------------------------------------------------

    def run(self, life: int | None) -> None:
        """Hear the bell, until no connection is left after a stop.

        `life` is a pipe that ends when the parent dies: then this process does, too.
        """
        poll = new_poll()
        poll.register(self._bell.fileno(), POLLIN)
        if life is not None:
            poll.register(life, 0)
        cuts = iter((socket.SHUT_RD, socket.SHUT_RDWR))
        cut_at = math.inf
        board, given = self._board, [LOOK]
        self._start_threads()
        board.bells[0].ring()  # ready
        while True:
            retry_s = self._start_threads()
            with self._lock:
                for index in [*self._waiting] if LOOK in given else given:
                    session = self._waiting.get(index)
                    if session and session.wake:
                        session.wake.ring()
                live = len(self._live)
            if LOOK in given and self._options.on_down == "reset":
                self._reset_of_down()
            if board.stopping or self._full:
                self._leave.ring()
            if board.stopping and not live and self._at_rest():
                break
            if step_s := board.cutting / 1000:
                if cut_at == math.inf or time.monotonic() >= cut_at:
                    how = next(cuts, None)
                    if how is None:
                        break
                    self._cut(how)
                    cut_at = math.inf
                cut_at = min(cut_at, time.monotonic() + step_s)
            wait_s = min(cut_at - time.monotonic(), retry_s)
            ready = poll.poll(milliseconds(wait_s))
            if life in dict(ready):
                os._exit(1)  # the parent was killed
            given = self._bell.hear() if ready else []
        for session in list(self._live.values()):
            self._finish(session, row_end(session.row, CUT))

    def _at_rest(self) -> bool:
        """Whether nobody has the turn: an accept may be under way."""
        if self._turn.acquire(timeout=0.1):
            self._turn.release()
            return not self._live
        self._bell.ring(STIR)
        return False

    def _reset_of_down(self) -> None:
        """End the connections of servers that have gone DOWN since (--on-down reset).

        A server's socket is shut both ways, so that its thread wakes even if it waits
        for the client to read.
        """
        with self._lock:
            for session in self._live.values():
                server = self._board.server_of(session.row)
                if not server or server.state != DOWN or session.cut or session.over:
                    continue
                if session.server_sock and 0 < session.connected_ns < server.changed_ns:
                    session.cut = DOWN_RESET
                    shut_down(session.server_sock, socket.SHUT_RDWR)

    def _cut(self, how: int) -> None:
        """End all connections: their threads wake up and see `Session.cut`."""
        with self._lock:
            for session in self._live.values():
                session.cut = CUT
                if not session.over:
                    for sock in session.sockets():
                        shut_down(sock, how)
            for session in self._waiting.values():
                if session.wake:
                    session.wake.ring()

    def _start_threads(self) -> float:
        """Start threads until enough are spare; return when to try again, in s."""
        while not self._board.stopping:
            with self._lock:
                if self._spare >= SPARE_THREADS:
                    break
                self._spare += 1
                self._threads += 1
                name = f"connection-{self._threads}"
            try:
                new_thread(name, self._work).start()
            except (RuntimeError, MemoryError) as error:
                with self._lock:
                    self._spare -= 1
                    self._threads -= 1
                words = f"cannot start a thread: {error or 'no memory'}"
                self._log.warn("thread", f"{words}; live connections go on")
                return 1.0
        return math.inf


class Clients:
    """Where a worker waits for clients, so that each is told to one worker only."""

    def __init__(self, listeners: list[socket.socket], leave: Bell) -> None:
        self._doors = {sock.fileno(): n for n, sock in enumerate(listeners)}
        self._listeners, self._leave = listeners, leave
        self._poll: Any = new_poll()
        self._mask = POLLIN
        if hasattr(select, "epoll") and hasattr(select, "EPOLLEXCLUSIVE"):
            self._poll = select.epoll()
            self._mask = select.EPOLLIN | select.EPOLLEXCLUSIVE
        self._poll.register(leave.fileno(), POLLIN)
        for fd in self._doors:
            self._poll.register(fd, self._mask)

    def wait(self) -> tuple[int, socket.socket | None]:
        """Return a listener with a client, and its number; None: `leave` has rung."""
        ready = [fd for fd, _ in self._poll.poll()]
        if self._leave.fileno() in ready:
            self._leave.hear()
            return 0, None
        door = self._doors[random.choice(ready)]
        return door, self._listeners[door]

    def stand_back(self) -> None:
        """Go to the end of the line: the kernel always wakes the first that waits."""
        if self._mask != POLLIN:
            for fd in self._doors:
                with contextlib.suppress(OSError):
                    self._poll.unregister(fd)
                    self._poll.register(fd, self._mask)


def has_left(client_sock: socket.socket) -> bool:
    """Tell whether a waiting client has gone: reset, or ended without a byte."""
    try:
        return client_sock.recv(1, socket.MSG_PEEK) == b""
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True


def connect(
    server: Server, preface: bytes, client_sock: socket.socket, timeout_s: float
) -> tuple[socket.socket, bool]:
    """Connect to the server while watching the client; raise OverError.

    Return the socket, and whether the server has reset it since: what it had sent is
    still there to be read, but the error is not, now that SO_ERROR has told of it.
    """
    try:
        server_sock = socket.socket(server.family, socket.SOCK_STREAM | NONBLOCKING)
    except OSError as error:
        raise OverError(End("RC", f"no socket: {say_why(error)}")) from None
    try:
        if not NONBLOCKING:
            server_sock.setblocking(False)
        code = server_sock.connect_ex(server.address)
        if code in CONNECTING and is_connected(server_sock):
            code = 0  # loopback: it has by now
        elif code in CONNECTING:
            code = wait_connected(server_sock, client_sock, timeout_s)
        if code == errno.ECONNRESET:  # a refusal would be ECONNREFUSED
            return server_sock, True
        if code:
            raise OverError(connect_failure(code, server))
        if is_connected_to_itself(server_sock):
            reset_at_close(server_sock)
            raise OverError(End("SC", "connected to itself: nobody listens there"))
        prepare(server_sock)
        if preface:
            server_sock.send(preface)  # one segment, before all else (PP 2)
        return server_sock, False
    except OSError as error:
        server_sock.close()
        raise OverError(End("SC", say_why(error))) from None
    except OverError:
        server_sock.close()
        raise


def is_connected(sock: socket.socket) -> bool:
    """Tell whether a connect has succeeded, without a wait.

    Not by a second connect(2): to a socket that was reset, it throws away what the
    server had sent before.
    """
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def is_connected_to_itself(sock: socket.socket) -> bool:
    """Tell whether both ends are one (RFC 9293, 3.5: simultaneous open).

    A connect to a free port of this machine may take that very port for its own. To be
    closed by a reset: TIME-WAIT would keep the port from its server.
    """
    with contextlib.suppress(OSError):  # no peer: it has been reset since
        return bool(sock.getsockname() == sock.getpeername())
    return False


def connect_failure(code: int, server: Server) -> End:
    """Return the end that an error number of connect(2) means."""
    words = say_why(OSError(code, os.strerror(code)))
    if code in LOCAL_SHORTAGE and has_own_address(server):
        return End("RC", f"cannot connect: {words}")
    return End("sC" if code == errno.ETIMEDOUT else "SC", words)


def has_own_address(server: Server) -> bool:
    """Tell whether this machine has an address to reach the server from (connect(2)).

    Without one, TCP says EADDRNOTAVAIL, as it does when only its ports are used up.
    """
    with contextlib.suppress(OSError):
        with socket.socket(server.family, socket.SOCK_DGRAM) as probe:
            probe.connect(server.address)  # sends nothing
        return True
    return False


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
            raise OverError(LEFT_CONNECTING)
        poll.unregister(client_sock.fileno())
        poll.register(client_sock.fileno(), 0)  # it has sent: now only errors matter


# ---- Relay: bytes from side to side --------------------------------------------------
# One thread, two sockets, two directions, one poll. `Relay` moves bytes as they come as
# long as both sides are well; when one side dies, `LastBytes` delivers what it left
# behind, and the other side is reset, too.


class SideDiedError(Exception):
    """One of the two sockets of a relay failed: "client" or "server", and why."""

    def __init__(self, side: str, error: OSError) -> None:
        super().__init__(side, error)
        self.side, self.error = side, error
        self.vanished = isinstance(error, TimeoutError)


class Pipe:
    """A pipe through which the kernel moves bytes without a copy (splice(2))."""

    # How many more this process may have, so that splicing never takes the descriptors
    # that were promised to connections; each process has a count of its own.
    budget = threading.Semaphore(0)

    def __init__(self) -> None:
        """Make it, or raise OSError."""
        if not self.budget.acquire(blocking=False):
            raise OSError(errno.EMFILE, "no descriptors for a pipe")
        try:
            self.read_fd, self.write_fd = os.pipe()
        except OSError:
            self.budget.release()
            raise
        self.size = BUFFER_BYTES
        with contextlib.suppress(AttributeError, OSError):  # its user has too many
            self.size = fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def close(self) -> None:
        """Close both ends; what is inside is lost."""
        os.close(self.read_fd)
        os.close(self.write_fd)
        self.budget.release()


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
        session: Session,
    ) -> None:
        self.from_name, self.from_sock = from_side
        self.to_name, self.to_sock = to_side
        self.cells, self.cell = cells, cell  # its session's row; where bytes count
        self.session = session  # once it is cut, an end of file is not the peer's own
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

    def acknowledged(self) -> int:
        """Return how many bytes the other side's kernel has acknowledged."""
        return int(self.cells[self.cell]) - unacknowledged(self.to_sock)

    def pull(self) -> bool:
        """Read what there is, write it; True when what to wait for changed."""
        if self.pipe is not None:
            return self._pull_spliced(self.pipe)
        return self.pull_copied()

    def pull_copied(self) -> bool:
        """Do as `pull` does, by way of this process.

        The hot path, once for each message and way: so it calls nothing of ours.
        """
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
        elif self.can_splice and self.pipe is None:
            try:
                self.pipe = Pipe()
            except OSError:
                self.can_splice = False

    def push(self) -> bool:
        """Write what is left over; True when what to wait for changed."""
        self.send_pending()
        if self.pending:
            return False
        return self._pass_end() if self.from_ended else True

    def send_pending(self) -> None:
        """Write what is left over, as far as the other side takes it."""
        if self.pipe is not None and self.in_pipe:
            self._empty_pipe(self.pipe)
        elif self.rest:
            try:
                sent = self.to_sock.send(self.rest)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise SideDiedError(self.to_name, error) from None
            self.cells[self.cell] += sent
            self.rest = self.rest[sent:] or None

    def _pass_end(self) -> bool:
        """Half-close: one side's end of file becomes the other's (RFC 9293, 3.6)."""
        if self.session.cut:
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
        """On entry the pipe is empty."""
        for done in range(SPLICE_ROUNDS):
            from_fd = self.from_sock.fileno()
            try:
                self.in_pipe = os.splice(
                    from_fd, pipe.write_fd, pipe.size, flags=SPLICE_FLAGS
                )
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                if error.errno not in SPLICE_REFUSALS:
                    raise SideDiedError(self.from_name, error) from None
                self.close_pipe()  # nothing has moved: recv serves as well
                self.can_splice = False
            if not self.in_pipe:
                # Nothing, where poll says something: an end of file, an error, urgent
                # data (tcp(7)), at which splice stops. recv tells them apart.
                return not done and self.pull_copied()
            self.cells[LAST_NS] = time.monotonic_ns()
            self._empty_pipe(pipe)
            if self.in_pipe:
                return True
        return False

    def _empty_pipe(self, pipe: Pipe) -> None:
        """On entry and on return the pipe holds exactly `in_pipe` bytes."""
        to_fd = self.to_sock.fileno()
        while self.in_pipe:
            try:
                moved = os.splice(
                    pipe.read_fd, to_fd, self.in_pipe, flags=SPLICE_FLAGS
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
        session: Session,
    ) -> None:
        self._options, self._session = options, session
        client, server = ("client", client_sock), ("server", server_sock)
        self.upstream = Direction(client, server, cells, TO_SERVER, session)
        self.downstream = Direction(server, client, cells, TO_CLIENT, session)
        self.upstream.other, self.downstream.other = self.downstream, self.upstream
        self._ways = (self.upstream, self.downstream)
        self._poll = new_poll()
        self._watched: dict[int, int] = {}  # by descriptor: the mask that poll has
        self._resting: set[int] = set()  # that say POLLHUP for ever
        self._taken = [0, 0]  # bytes acknowledged each way, when last asked

    def run(self, server_died: bool) -> End:
        """Move bytes until both sides have ended, one died, or nothing moves."""
        try:
            if server_died:
                raise SideDiedError("server", ConnectionResetError())
            return self._run() or CLOSED
        except SideDiedError as death:
            if not self._session.cut:
                end = self._deliver_last(death)
                if not self._session.cut:  # nor meanwhile
                    return end
            return self._cut(death)
        finally:
            for way in self._ways:
                way.close_pipe()

    def _run(self) -> End | None:
        """Move bytes; each socket has a direction that reads and one that writes it."""
        upstream, downstream = self.upstream, self.downstream
        client_fd = upstream.from_sock.fileno()
        poll = self._poll.poll
        upstream.pull()  # most clients have spoken by now
        limit_ms, brief_ms = self._watch()
        wait_ms, quiet_ms = brief_ms, 0.0  # ... for how long nothing moved
        cells = upstream.cells
        look_ns = cells[LAST_NS] + LOOK_NS  # when to look after both sides
        # The direction that moved last: if both go idle, its receiver is the silent one
        latest = upstream if cells[upstream.cell] else downstream
        while not (upstream.end_passed and downstream.end_passed):
            ready = poll(wait_ms)
            if not ready:
                quiet_ms = 0.0 if self._has_progressed() else quiet_ms + wait_ms
                if quiet_ms >= limit_ms:
                    return self._timed_out(latest)
                left_ms = -1 if limit_ms == math.inf else limit_ms - quiet_ms
                wait_ms = brief_ms if self._look() else left_ms
                continue
            wait_ms, quiet_ms, changed = brief_ms, 0.0, False
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
                limit_ms, brief_ms = self._watch()
                wait_ms = brief_ms
            if cells[LAST_NS] > look_ns:
                self._look()
                look_ns = cells[LAST_NS] + LOOK_NS
        return None

    def _look(self) -> bool:
        """Tell whether bytes are on their way; raise SideDiedError to a vanished side.

        The kernel tells of one only after a quarter of an hour of such bytes.
        """
        for way in self._ways:
            if silence_s(way.to_sock) >= VANISHED_S:
                reset_at_close(way.to_sock)
                raise SideDiedError(way.to_name, TimeoutError())
        return any(way.undelivered() for way in self._ways)

    def _check_hangup(self, reads: Direction, mask: int) -> None:
        """See whether a socket that is not read now has died.

        Or only both its ends of file have passed: then, too, poll says POLLHUP.
        """
        code = reads.from_sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        is_over = mask & POLLERR or self._session.cut or not reads.other.end_passed
        self._resting.add(reads.from_sock.fileno())
        if code or is_over:
            raise SideDiedError(reads.from_name, OSError(code, os.strerror(code)))

    def _watch(self) -> tuple[float, float]:
        """Tell poll what to wait for.

        Return the time limit (ms), idle or half-closed, and after how long to ask
        whether bytes were taken: no event says so.
        """
        for reads in self._ways:
            writes = reads.other
            mask = 0 if reads.from_ended or reads.pending else POLLIN
            mask |= POLLOUT if writes.pending else 0
            fd = reads.from_sock.fileno()
            wanted = None if fd in self._resting and not mask else mask
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
        limit_ms = timeout_s * 1000 or math.inf
        return limit_ms, min(limit_ms / TIMEOUT_PARTS, LOOK_NS / 1e6)

    def _has_progressed(self) -> bool:
        """Tell whether a receiver has taken bytes since this was last asked.

        One that reads slowly takes them from its kernel: no event says so.
        """
        before, self._taken = self._taken, [way.acknowledged() for way in self._ways]
        return self._taken != before and any(way.undelivered() for way in self._ways)

    def _timed_out(self, latest: Direction) -> End:
        """Say for whom the relay waited in vain."""
        upstream, downstream, options = self.upstream, self.downstream, self._options
        to_server, to_client = upstream.undelivered(), downstream.undelivered()
        lost = to_server + to_client
        for way, missing in ((upstream, to_server), (downstream, to_client)):
            if missing:  # lest a part be taken for the whole
                reset_at_close(way.to_sock)
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

    def _deliver_last(self, death: SideDiedError) -> End:
        """Deliver what the dead side sent; reset the other if more was to follow."""
        patience_s = self._options.half_close_timeout or math.inf
        from_dead, to_dead = self.upstream, self.downstream
        if death.side == "server":
            from_dead, to_dead = self.downstream, self.upstream
        # c, C, s or S for who; then L for a server that had finished, or D. Its end of
        # file may have been passed on, and its last bytes not have arrived.
        down = self.downstream
        missed = not down.end_passed or down.undelivered() > 0
        code = death.side[0] if death.vanished else death.side[0].upper()
        code += "L" if death.side == "client" and down.from_ended and missed else "D"
        with contextlib.suppress(SideDiedError):  # the survivor dies, or takes nothing
            LastBytes(from_dead).flush(patience_s)
        lost = from_dead.undelivered() + to_dead.undelivered()
        if not from_dead.from_ended:  # more was to follow
            reset_at_close(from_dead.to_sock)
        if death.vanished:
            return End(code, f"{death.side} vanished: it no longer answers", lost)
        return End(code, f"{death.side} reset the connection", lost)

    def _cut(self, death: SideDiedError) -> End:
        """End for others' reason; a reset, lest half a reply be taken for a whole."""
        cut = self._session.cut or CUT
        lost = sum(way.undelivered() for way in self._ways)
        # The cut's SHUT_RDWR has sent an end of file behind the bytes that are stuck:
        # `undelivered` took it for a byte, as `end_passed` does not know of it.
        stuck = cut is DOWN_RESET and unacknowledged(self.upstream.to_sock)
        if isinstance(death.error, BrokenPipeError) or stuck:
            lost -= 1
        for way in self._ways:
            if not way.end_passed:
                reset_at_close(way.to_sock)
        return replace(cut, undelivered=max(0, lost))


class LastBytes:
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
            acknowledged = onward.acknowledged()
            if acknowledged > best:
                best, quiet_until, pause_s = acknowledged, now_s + timeout_s, 0.001
                most_dropped = self._back.dropped + DROPPED_BYTES
            if now_s > quiet_until or self._back.dropped > most_dropped:
                raise SideDiedError(onward.to_name, TimeoutError())
            if onward.session.cut:
                raise SideDiedError(onward.to_name, ConnectionAbortedError())
            # An acknowledgement is no event: look again after 1, 2, 4 … 64 ms.
            self._wait(pause_s)
            pause_s = min(2 * pause_s, 0.064)

    def _send_last(self) -> int:
        """Send what the dead side has left; return how much is not delivered yet."""
        onward = self._onward
        while True:
            onward.send_pending()
            if onward.pending:
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
            time.sleep(pause_s)  # poll would say POLLHUP for ever
            return
        mask = 0 if back.from_ended else POLLIN
        mask |= POLLOUT if onward.pending else 0
        self._poll.register(onward.to_sock.fileno(), mask)
        for _, ready in self._poll.poll(pause_s * 1000):
            if ready & POLLIN:
                try:  # what it sends to the dead side is forgotten
                    data = back.from_sock.recv(BUFFER_BYTES)
                except (BlockingIOError, InterruptedError):
                    return
                except OSError as error:
                    raise SideDiedError(back.from_name, error) from None
                back.from_ended = not data
                back.dropped += len(data)
            elif ready & (POLLERR | POLLHUP):
                raise SideDiedError(onward.to_name, ConnectionResetError())


# ---- Desk: checks, names -------------------------------------------------------------
# A thread per server connects to it every interval and tells the board; a change of
# state is one line in the log. With --no-checks, one thread ends the penalties that
# clients' failed connects have earned. Each name that may move has a thread, too.


class Desk:
    """The threads that check servers, or forgive them, and follow their names."""

    def __init__(self, board: Board, log: Log) -> None:
        self._options, self._board, self._log = board.options, board, log
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the thread that starts the others: it may take long (RLIMIT_NPROC)."""
        new_thread("desk", self._start_all).start()

    def _start_all(self) -> None:
        """Thread "desk": one for every server, or one for all; one for each name."""
        if self._options.no_checks:
            self._insist(new_thread("forgive", self._forgive))
        self._watch([server for server in self._board.servers() if server.family])
        for number, given in enumerate(self._options.servers):
            if not is_literal(given["host"]):
                # On a daemon thread: getaddrinfo(3) cannot be interrupted.
                name = f"name-{given['host']}:{given['port']}"
                self._insist(new_thread(name, self._follow, number))

    def stop(self) -> None:
        """Tell the threads to end; one that is checking ends after its timeout."""
        self._stopped.set()

    def _watch(self, servers: list[Server]) -> None:
        if self._options.no_checks:
            return
        for server in servers:
            thread = new_thread(
                f"check-{server.address_text}", self._keep_checking, server
            )
            self._insist(thread)

    def _insist(self, thread: threading.Thread) -> None:
        """Start a thread, now or when one can be started again."""
        while not self._stopped.is_set():
            try:
                thread.start()
                return
            except (RuntimeError, MemoryError) as error:
                self._log.warn("check", f"cannot start {thread.name}: {error}")
                self._stopped.wait(1.0)

    def _keep_checking(self, server: Server) -> None:
        """Thread "check-HOST:PORT": check once per interval, first within it."""
        interval_s, version = self._options.check_interval, server.version
        pause_s = random.uniform(0, interval_s)  # so that checks do not come in step
        while not self._stopped.wait(pause_s) and server.version == version:
            pause_s = interval_s * random.uniform(0.95, 1.05)
            if ADMIN[server.admin] != "maint" and not server.gone:
                began = time.monotonic()
                passed, result = check(server, self._options)
                if not self._stopped.is_set() and server.version == version:
                    self._log.line(self._board.record_check(server, passed, result))
                pause_s = max(0.0, pause_s - (time.monotonic() - began))

    def _forgive(self) -> None:
        """Thread "forgive", with --no-checks: end the penalties of DOWN servers."""
        while not self._stopped.wait(1.0):
            for line in self._board.forgive():
                self._log.line(line)

    def _follow(self, number: int) -> None:
        """Thread "name-HOST:PORT": every interval, look where the name points now."""
        given = self._options.servers[number]
        name = format_address((given["host"], given["port"]))
        left_out = set(given["left_out"])  # and why they are has been said
        while not self._stopped.wait(self._options.check_interval):
            try:
                addresses = resolve(given["host"], given["port"])
            except OSError as error:
                words = f"cannot resolve {name}: {say_why(error)}; addresses kept"
                self._log.warn(name, words)
                continue
            own = {a for _, a in addresses if is_own(a, self._options.own)}
            addresses = [place for place in addresses if place[1] not in own]
            added, shared, lines = self._board.move_name(number, addresses)
            whys = dict.fromkeys(shared, "a server already")
            whys |= dict.fromkeys(own, "this balancer itself")
            for address in whys.keys() - left_out:
                text = f"{format_address(address)} is {whys[address]}: left out"
                lines.append(f"{name}: {text}")
            left_out = set(whys)
            for line in lines:
                self._log.line(line)
            self._watch(added)


def check(server: Server, options: Options) -> tuple[bool | None, str]:
    """Connect, speak, and part with an end of file, never a reset: servers log resets.

    Return whether it passed (None: a shortage of our own, which tells nothing of the
    server), and the result in words. All of it has one deadline.
    """
    began = time.monotonic()
    deadline = began + options.check_timeout
    family, address = server.family, server.address
    try:
        if server.check_at:
            host, port = server.check_at
            family, address = resolve(host or address[0], port)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except socket.gaierror as error:
        return False, f"cannot resolve {host}: {say_why(error)}"
    except OSError as error:
        return None, f"not checked: {say_why(error)}"
    with sock:
        sock.settimeout(options.check_timeout)
        try:
            sock.connect(address)
            if is_connected_to_itself(sock):
                reset_at_close(sock)
                return False, "connected to itself: nobody listens there"
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            if options.send_proxy == "v1" and not server.check_at:
                sock.sendall(proxy_v1(sock.getsockname(), sock.getpeername()))
            elif options.send_proxy and not server.check_at:
                sock.sendall(PROXY_V2_LOCAL)
            sock.sendall(options.check_send)
        except OSError as error:
            if error.errno in LOCAL_SHORTAGE and has_own_address(server):
                return None, f"not checked: {say_why(error)}"
            return False, say_why(error)
        result, fault = "connected", ""
        if options.check_expect:
            result, fault = "answered", hear(sock, options.check_expect, deadline)
        took_ms = (time.monotonic() - began) * 1000
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            deadline = min(deadline, time.monotonic() + 1.0)
            for _ in range(16):  # an unread banner makes the close a reset
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                if time.monotonic() >= deadline or not sock.recv(BUFFER_BYTES):
                    break
    return not fault, fault or f"{result} in {took_ms:.1f} ms"


def hear(sock: socket.socket, expected: bytes, deadline: float) -> str:
    """Read until the expected bytes have come; return what is wrong, "" if they have.

    They are looked for in the first BUFFER_BYTES.
    """
    heard, why = b"", "too long"
    try:
        while len(heard) < BUFFER_BYTES:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            if not (data := sock.recv(BUFFER_BYTES)):
                why = "closed"
                break
            heard += data
            if expected in heard:
                return ""
    except OSError as error:
        why = say_why(error)
    # In quotes, in a line of the log: only what cannot end either.
    start = heard[:CHECK_SHOWN_BYTES].decode("ascii", "replace").rstrip()
    shown = "".join(c if " " <= c <= "~" and c not in '"\\' else "." for c in start)
    return f"{why}, got '{shown}'" if heard else f"{why} without an answer"


# ---- Log -----------------------------------------------------------------------------
# Lines are handed to a thread: a slow disk or a stalled terminal never holds a
# connection up. Processes hand theirs to the desk's through a pipe, which keeps them
# when the process that wrote them is killed (pipe(7): whole, or not at all).

ARROW = "->" if os.name == "nt" else "→"  # its console may not be UTF-8
YELLOW = 33
COLOURS = {UP: 32, DOWN: 31, DRAIN: YELLOW, MAINT: 36}  # green, red, yellow, cyan
STATE_LINE = re.compile(
    r'server=(\S+) state=(\S+) reason="(.*)" checks=(\S+) up=(\d+)/(\d+)'
)
HANGING: dict[str, Any] = {"subsequent_indent": " " * 9, "break_on_hyphens": False}


class Screen:
    """What a terminal is shown: short lines, and one a second when there are many.

    Used by one thread. Colours are for terminals that have said so, by TERM.
    """

    def __init__(self) -> None:
        plain = os.environ.get("TERM", "dumb") == "dumb" or "NO_COLOR" in os.environ
        self._has_colours = not plain
        self._second = 0  # what follows is of this second of the clock:
        self._is_busy = False  # in the one before there were too many to be shown
        self._ended: collections.Counter[str] = collections.Counter()  # by server
        self._codes: collections.Counter[str] = collections.Counter()  # other than "--"

    def format(self, at: float, text: str) -> str:
        """Return what to show for a line of the log, with what is due before it."""
        before = self.sum_up(at)
        clock = time.strftime("%H:%M:%S", time.localtime(at))
        if text.startswith("client="):
            return before + self._end(clock, text)
        if match := STATE_LINE.fullmatch(text):
            server, state, why, checks, up, all_servers = match.groups()
            name = self._paint(f"{short_address(server)} is {state}", COLOURS[state])
            text = f"{name}: {why}; {checks} checks, {up} of {all_servers} UP"
        wide = SCREEN_COLUMNS + 9 * ("\x1b" in text)
        return before + textwrap.fill(f"{clock} {text}", wide, **HANGING) + "\n"

    def wait_s(self) -> float | None:
        """Return in how many seconds a sum is due, None: none is."""
        is_due = self._ended.total() > SCREEN_LINES or self._is_busy
        return max(0.0, self._second + 1 - time.time()) if is_due else None

    def sum_up(self, now: float) -> str:
        """Return the line about the last second, if it is over and had many ends."""
        if now < self._second + 1:
            return ""
        clock = time.strftime("%H:%M:%S", time.localtime(self._second))
        ended, codes = sorted(self._ended.items()), self._codes.most_common()
        total, was_busy = self._ended.total(), self._is_busy
        self._is_busy = total > SCREEN_LINES
        self._second = int(now)
        self._ended.clear()
        self._codes.clear()
        if not (total and (self._is_busy or was_busy)):
            return ""
        parts = [f"{name}\u00a0{n}/s" for name, n in ended]
        parts += [self._paint(f"{code}\u00a0{n}", YELLOW) for code, n in codes]
        text = textwrap.fill("  ".join([clock, *parts]), SCREEN_COLUMNS, **HANGING)
        return text + "\n"

    def _end(self, clock: str, text: str) -> str:
        """Return the line of a connection's end, nothing when there are too many."""
        figures, _, how = text.partition(" end=")
        fields = dict(word.split("=", 1) for word in figures.split(" "))
        server, code = short_address(fields["server"]), how[:2]
        self._ended[server] += 1
        if code != "--":
            self._codes[code] += 1
        if self._is_busy or self._ended.total() > SCREEN_LINES:
            return ""
        how = "ok" if code == "--" else how
        line = (
            f"{clock} client {short_address(fields['client'])} {ARROW} {server}  "
            f"{float(fields['duration_ms']):.1f} ms  "
            f"{fields['to_server']}/{fields['to_client']} bytes  {how}"
        )
        if len(line) > SCREEN_COLUMNS:
            line = line[: SCREEN_COLUMNS - 1] + "…"
        return (line if code == "--" else self._paint(line, YELLOW)) + "\n"

    def _paint(self, text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._has_colours else text


def short_address(text: str) -> str:
    """Return an address without its host, where that is this machine's usual one."""
    return "no server" if text == "-" else text.removeprefix("127.0.0.1:")


class Log:
    """Lines with their time, written whole by thread "log", many at once if busy.

    On a terminal they are shortened (`Screen`).

    `_lock` guards `_lost`, `_said`, `_events` and `_ended`. The file needs none: only
    thread "log" writes, and dup2(2) puts another file behind the descriptor at once.
    """

    def __init__(self, path: str | None, quiet: bool) -> None:
        """Open the file (appending), or standard output; raise OSError."""
        self._path = path
        self.silent = quiet and path is None
        self._lock = threading.Lock()
        self._file = open_to_append(path) if path else 1
        self._screen = Screen() if not path and os.isatty(1) else None
        self._torn = False  # the last line in the file is cut short: a full disk
        self._lost = 0
        self._said: dict[str, float] = {}  # by kind of warning, when it was said last
        # The last lines that no connection has ended with, and when
        self._events: collections.deque[tuple[float, str]]
        self._events = collections.deque(maxlen=EVENTS)
        self._ended: dict[str, str] = {}  # by row, the connection that ended there last
        self._stamp = (0, "")  # a second, and how it is written
        self._lines: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._pipe: tuple[int, int] | None = None
        self._writes = True  # this process writes the file
        self._thread: threading.Thread | None = None  # made after a fork

    def share(self) -> None:
        """Make the pipe for the processes that will be forked."""
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._writes = False
        with contextlib.suppress(AttributeError, OSError):
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def start(self) -> None:
        """Start the thread that writes, and the one that brings other processes' lines.

        Lines wait until then.
        """
        self._writes = True
        self._thread = new_thread("log", self._write_lines)
        self._thread.start()
        if self._pipe:
            new_thread("log-pipe", self._take_lines, self._pipe[0]).start()

    def _take_lines(self, pipe: int) -> None:
        """Thread "log-pipe": put what comes through the pipe into the queue."""
        rest = b""
        while data := os.read(pipe, PIPE_BYTES):
            *whole, rest = (rest + data).split(b"\n")
            for entry in whole:
                if entry == b"end":
                    self.close()
                    return
                decoded = entry.decode("utf-8", "surrogateescape")
                at, key, text = decoded.split(" ", 2)
                kind, is_warning, words = text.partition("\0")
                if is_warning:  # each process has said it once a second: now all have
                    self.warn(kind, words)
                else:
                    self._put(float(at), text, key)

    def end(self) -> None:
        """Tell the desk that no line will follow; called by the parent."""
        if self._pipe:
            with contextlib.suppress(OSError):  # full: the desk is stopped
                select.select([], [self._pipe[1]], [], CUT_S)
                os.write(self._pipe[1], b"end\n")

    def line(self, text: str, key: str = "-") -> None:
        """Log a line, with the time of now; an empty text is none.

        With a row's key it is the last line of that connection, and a second one is
        none: a worker may be killed when it has just handed over the first.
        """
        if not text or (self.silent and key != "-"):
            return
        if self._writes or not self._pipe:
            self._put(time.time(), text, key)
            return
        data = f"{time.time():.3f} {key} {text}\n".encode("utf-8", "surrogateescape")
        try:
            os.write(self._pipe[1], data)
        except OSError:  # full: the desk is stopped, or has just died
            with self._lock:
                self._lost += 1

    def write_rest(self) -> None:
        """Write what the desk has left in the pipe: it died; called by the parent."""
        if self._pipe and not self.silent:
            os.set_blocking(self._pipe[0], False)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(self._pipe[0], PIPE_BYTES):
                    entries = (entry.split(b" ", 2) for entry in data.splitlines())
                    for at, key, text in (e for e in entries if len(e) == 3):
                        line = text.decode("utf-8", "surrogateescape").split("\0")[-1]
                        if self._is_first(key.decode()):
                            self._write([self._format(float(at), line)])

    def _is_first(self, key: str) -> bool:
        """Tell whether this connection ("-": none) has had no line before."""
        row, _, accepted = key.partition(".")
        if not accepted:
            return True
        with self._lock:
            before, self._ended[row] = self._ended.get(row), accepted
        return before != accepted

    def _put(self, at: float, text: str, key: str) -> None:
        if not self._is_first(key):
            return
        if key == "-":
            self.note(at, text)
        if self.silent:
            return
        if self._lines.qsize() < LOG_BACKLOG_LINES:
            self._lines.put((at, text))
        else:
            with self._lock:
                self._lost += 1

    def note(self, at: float, text: str) -> None:
        """Keep an event for the status page."""
        with self._lock:
            self._events.append((at, text))

    def events(self) -> list[tuple[float, str]]:
        """Return the last events, oldest first, each with its Unix time."""
        with self._lock:
            return list(self._events)

    def warn(self, kind: str, text: str) -> None:
        """Log a line that may come often: once per second and kind at most."""
        now_s = time.monotonic()
        with self._lock:
            if now_s - self._said.get(kind, -1.0) < 1.0:
                return
            self._said[kind] = now_s
        shared = self._pipe and not self._writes
        self.line(f"{kind}\0{text}" if shared else text)

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
        if self._thread:  # it was started
            self._thread.join(2.0)

    def join(self) -> None:
        """Wait until `end` was heard and all is written, for three seconds at most."""
        if self._closing.wait(1.0) and self._thread:
            self._thread.join(2.0)

    def _write_lines(self) -> None:
        """Thread "log": write until `close` was called and no line is left."""
        written_s, burst = -1.0, 0
        while not (self._closing.is_set() and self._lines.empty()):
            entry = self._next()
            burst = burst + 1 if time.monotonic() - written_s < LOG_BATCH_S else 0
            if burst > LOG_BURST_WRITES:
                self._closing.wait(LOG_BATCH_S)  # more come, for one write
            batch = [entry]
            while len(batch) < LOG_BATCH_LINES and not self._lines.empty():
                batch.append(self._lines.get())
            lines = [self._format(*entry) for entry in batch if entry]
            if self._screen:
                lines.append(self._screen.sum_up(time.time()))
            self._write(lines)
            written_s = time.monotonic()

    def _next(self) -> tuple[float, str] | None:
        """Wait for a line, or until the screen has a sum to show."""
        with contextlib.suppress(queue.Empty):
            wait_s = self._screen.wait_s() if self._screen else None
            return self._lines.get(timeout=wait_s)
        return None

    def _format(self, at: float, text: str) -> str:
        if self._screen:
            return self._screen.format(at, text)
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
        data = "".join(lines).encode("utf-8", "surrogateescape")
        ending = b"\n" * self._torn  # of the line before
        rest = ending + data
        with contextlib.suppress(OSError):  # traffic goes on
            while rest:
                try:
                    written = os.write(self._file, rest)
                except BlockingIOError:  # somebody made it non-blocking
                    ready = select.select([], [self._file], [], CUT_S)[1]
                    if ready or not self._closing.is_set():
                        continue
                    raise
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


def describe(server: Server, now_ns: int) -> dict[str, Any]:
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
        "last_change_s": round((now_ns - server.changed_ns) / 1e9, 3),
        "last_check": server.last_check,
    }


def describe_more(server: Server) -> dict[str, Any]:
    """Return what only /metrics has of a server."""
    return {
        "checks_failed": server.checks_failed,
        "connects": server.connects.tolist(),
        "up": server.state == UP,
    }


def describe_live(row: Row, server: Server | None, now_ns: int) -> dict[str, Any]:
    """Return a live connection's entry of /status.json; ages in seconds."""
    last_ns = row.last_ns or row.accepted_ns
    return {
        "client": format_address(row.source()),
        "server": server.address_text if server else None,
        "age_s": round((now_ns - row.accepted_ns) / 1e9, 3),
        "idle_s": round(max(0.0, (now_ns - last_ns) / 1e9), 3),
        "to_server": row.to_server,
        "to_client": row.to_client,
    }


# Of metrics: the name after "load_balancer_", its kind, the figure, what it says
TOTALS = (
    ("connections_total", "counter", "total", "Connections accepted."),
    ("connections_active", "gauge", "active", "Connections that are live now."),
    ("connections_failed_total", "counter", "failed", "No server could take them."),
    ("refused_total", "counter", "refused", "Connections refused."),
    ("queued", "gauge", "queued", "Connections that wait for a place at a server."),
    ("stopping", "gauge", "stopping", "1 once it was told to stop."),
    ("start_time_seconds", "gauge", "started_s", "When it began, in Unix time."),
)
NOTED_ENDS = {  # events of the status page
    "PC": "refused",
    "RC": "ended by a shortage of this machine",
    "SC": "found no server that could be connected",
    "sC": "found no server that answered in time",
    "sQ": "found no place at a server in time",
}
PER_SERVER = (
    ("up", "gauge", "up", "1 while the server is UP."),
    ("backup", "gauge", "backup", "1 for a backup."),
    ("weight", "gauge", "weight", "Its share of new connections."),
    ("max", "gauge", "max", "Its places; 0: no limit."),
    ("connections_active", "gauge", "active", "Connections at the server now."),
    ("connections_total", "counter", "total", "Connections made to the server."),
    ("connect_failures_total", "counter", "connect_failures", "Connects that failed."),
    ("retries_total", "counter", "retries", "Connections that went on to another."),
    ("checks_failed_total", "counter", "checks_failed", "Checks that failed."),
    ("last_change_seconds", "gauge", "last_change_s", "How long it is in its state."),
)


def render_metrics(figures: dict[str, Any], workers: int) -> str:
    """Return the figures in Prometheus' text exposition format, version 0.0.4."""
    lines: list[str] = []

    def add(name: str, kind: str, text: str, samples: Iterable[str]) -> None:
        full = f"load_balancer_{name}"
        lines.extend([f"# HELP {full} {text}", f"# TYPE {full} {kind}"])
        lines.extend(full + sample for sample in samples)

    more = figures["more"]
    totals = figures | figures["connections"] | more
    for name, kind, key, text in TOTALS:
        add(name, kind, text, [f" {+totals[key]}"])
    ends = more["ends"].items()
    text = "Connections that have ended, by how."
    add("ends_total", "counter", text, (f'{{code="{k}"}} {n}' for k, n in ends))
    ways = figures["bytes"].items()
    text = "Bytes relayed."
    samples = [f'{{direction="{way[:-1]}"}} {amount}' for way, amount in ways]
    add("bytes_total", "counter", text, samples)
    text = "Time in the queue."
    add("queue_seconds", "histogram", text, histogram(more["queue"]))
    text = "Time from accept to end."
    add("connection_seconds", "histogram", text, histogram(more["connections"]))
    python = ".".join(map(str, sys.version_info[:3]))
    info = f'version="{VERSION}",python="{python}",workers="{workers}"'
    info += f',free_threaded="{"yes" if is_free_threaded() else "no"}"'
    add("build_info", "gauge", "What runs here.", [f"{{{info}}} 1"])

    servers = [
        (f'server="{one["address"]}"', one | extra)
        for one, extra in zip(figures["servers"], more["servers"], strict=True)
    ]
    for name, kind, key, text in PER_SERVER:
        samples = [f"{{{label}}} {+one[key]}" for label, one in servers]
        add(f"server_{name}", kind, text, samples)
    samples = [
        f'{{{label},state="{state}"}} {int(one["state"] == state)}'
        for label, one in servers
        for state in (UP, DOWN, DRAIN, MAINT)
    ]
    add("server_state", "gauge", "1 for the state that the server is in.", samples)
    samples = [
        f'{{{label},direction="{way}"}} {one[f"bytes_{way}"]}'
        for label, one in servers
        for way in ("to_server", "to_client")
    ]
    add("server_bytes_total", "counter", "Bytes relayed.", samples)
    samples = [s for label, one in servers for s in histogram(one["connects"], label)]
    add("server_connect_seconds", "histogram", "Time of a TCP connect.", samples)
    return "\n".join(lines) + "\n"


def histogram(cells: list[int], label: str = "") -> list[str]:
    """Return its samples: of each bound, how many times were not above it."""
    totals = list(itertools.accumulate(cells[1:]))
    front, alone = (f"{label},", f"{{{label}}}") if label else ("", "")
    return [
        *(
            f'_bucket{{{front}le="{bound}"}} {total}'
            for bound, total in zip(BOUNDS, totals, strict=True)
        ),
        f"_sum{alone} {cells[0] / 1e9:.9f}",
        f"_count{alone} {totals[-1]}",
    ]


class Sample(NamedTuple):
    """A moment of the history; of each server: total, active, bytes of both ways."""

    uptime_s: float
    queued: int
    servers: dict[str, tuple[int, int, int]]


class History:
    """The last HISTORY_S seconds, for the plots of the status page.

    `_lock` guards `_samples`, which thread "history" adds to.
    """

    def __init__(self, board: Board, log: Log) -> None:
        self._board, self._log = board, log
        self._lock = threading.Lock()
        self._samples: collections.deque[Sample]
        self._samples = collections.deque(maxlen=HISTORY_S + 1)
        self.stopped = threading.Event()

    def keep(self) -> None:
        """Thread "history": look once a second until `stopped`."""
        ends: dict[str, int] = {}
        while not self.stopped.is_set():
            figures = self._board.snapshot()
            servers = {
                one["address"]: (
                    one["total"],
                    one["active"],
                    one["bytes_to_server"] + one["bytes_to_client"],
                )
                for one in figures["servers"]
            }
            queued = figures["connections"]["queued"]
            with self._lock:
                self._samples.append(Sample(figures["uptime_s"], queued, servers))
            now = figures["more"]["ends"]
            for code, words in NOTED_ENDS.items():
                if more := now[code] - ends.get(code, 0):
                    self._log.note(time.time(), f"{count(more, 'client')} {words}")
            ends = now
            self.stopped.wait(1.0)

    def document(self) -> dict[str, Any]:
        """Return /history.json: oldest first, rates since the second before."""
        with self._lock:
            pairs = list(itertools.pairwise(self._samples))
        newest = pairs[-1][1] if pairs else Sample(0.0, 0, {})
        servers = []
        for address in newest.servers:
            rates = [change(address, *pair) for pair in pairs]
            connections, active, amounts = zip(*rates, strict=True)
            servers.append(
                {
                    "address": address,
                    "connections_per_s": connections,
                    "active": active,
                    "bytes_per_s": amounts,
                }
            )
        return {
            "algorithm": self._board.options.algorithm,
            "length_s": HISTORY_S,
            "ages_s": [round(newest.uptime_s - two.uptime_s, 3) for _, two in pairs],
            "queued": [two.queued for _, two in pairs],
            "servers": servers,
            "events": [{"at": at, "text": text} for at, text in self._log.events()],
        }


def change(address: str, one: Sample, two: Sample) -> tuple[float | None, ...]:
    """Return a server's connections/s, live ones, bytes/s; None where it was not."""
    if address not in one.servers or address not in two.servers:
        return None, None, None
    seconds = max(0.001, two.uptime_s - one.uptime_s)
    (total, _, amount), (total_now, active, amount_now) = (
        sample.servers[address] for sample in (one, two)
    )
    connections = max(0.0, (total_now - total) / seconds)
    return round(connections, 2), active, max(0, round((amount_now - amount) / seconds))


class StatusHandler(http.server.BaseHTTPRequestHandler):
    """A status client, on a thread of its own ("status-N")."""

    server: StatusServer
    server_version = "load_balancer"
    sys_version = ""
    timeout = STATUS_TIMEOUT_S  # per read or write; the oldest makes way anyway

    def do_GET(self) -> None:
        """Answer /, /status.json, /history.json (the page's), /metrics, /healthz."""
        path, board = self.path.partition("?")[0], self.server.board
        if path not in ("/healthz", "/metrics") and not self._is_own_host():
            return
        if path == "/":
            page = PAGE if self._may_control() else PAGE.replace(BUTTONS, "")
            self._reply(200, "text/html; charset=utf-8", page)
        elif path == "/status.json":
            figures = board.snapshot()
            del figures["more"]
            head = {"version": 1, "listen": self.server.listen_text}
            self._reply(200, "application/json", json.dumps(head | figures))
        elif path == "/history.json":
            text = json.dumps(self.server.history.document())
            self._reply(200, "application/json", text)
        elif path == "/metrics":
            text = render_metrics(board.snapshot(), board.options.workers)
            self._reply(200, "text/plain; version=0.0.4", text)
        elif path == "/healthz":
            words = "ok\n" if board.is_up() else "no server is UP\n"
            if board.leaving:
                words = "stopping\n"
            self._reply(200 if words == "ok\n" else 503, "text/plain", words)
        else:
            words = "try /, /status.json, /history.json, /metrics or /healthz\n"
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
        if not self._may_control():
            words = "servers are set on a loopback address only, or anywhere with "
            self._reply(403, "text/plain", words + "--status-control\n")
            return
        address_text, admin = urllib.parse.unquote(path[1]), path[2]
        whence = str(plain_ip(self.client_address[0]))
        line = self.server.board.set_admin(address_text, admin, whence)
        if line is None:
            self._reply(404, "text/plain", f"no server {address_text}\n")
        else:
            self.server.log.line(line)
            self._reply(200, "text/plain", f"{address_text}: {admin}\n")

    def _is_own_host(self) -> bool:
        """Refuse a name that only a foreign DNS would give us (DNS rebinding)."""
        given, host = self.headers.get("Host"), None
        if given is None and self.command != "POST":
            return True  # no browser: those always name it (RFC 9112, 3.2)
        with contextlib.suppress(ValueError):  # "[" is none
            host = urllib.parse.urlsplit(f"//{given or ''}").hostname
        if host in ("localhost", self._own_ip(), *self.server.names):
            return True
        words = "not a known name of this host: ask by its address, or start with "
        self._reply(421, "text/plain", words + "--status-host NAME\n")
        return False

    def _own_ip(self) -> str:
        """Return the address that the client has connected to."""
        return str(plain_ip(self.connection.getsockname()[0]))

    def _may_control(self) -> bool:
        """Tell whether a server may be set from here."""
        is_near = ipaddress.ip_address(self._own_ip()).is_loopback
        return is_near or bool(self.server.board.options.status_control)

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
        self, where: tuple[str, int], listen_text: str, board: Board, log: Log
    ) -> None:
        """Listen for status clients; raise OSError."""
        names = (where[0], *(board.options.status_host or ()))
        self.names = [name.lower() for name in names]
        self.listen_text, self.board, self.log = listen_text, board, log
        self.history = History(board, log)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}
        family, address = resolve(*where)[0]
        self.address_family = family
        super().__init__(address, StatusHandler)

    def server_bind(self) -> None:
        """Bind without asking the DNS for our own name, as HTTPServer would."""
        socketserver.TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def start(self) -> None:
        """Start the thread "status", in the process that serves it."""
        self._thread = new_thread("status", self.serve_forever, 0.25)
        self._thread.start()
        new_thread("history", self.history.keep).start()

    def stop(self) -> None:
        """Answer no more requests; close the port."""
        self.history.stopped.set()
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
        try:
            super().process_request(request, client_address)
        except (RuntimeError, MemoryError):  # no thread left: this one answers
            self.process_request_thread(request, client_address)

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


# ---- Processes -----------------------------------------------------------------------


class Signals:
    """Signals as numbers that are waited for, whatever the MainThread is doing.

    They become bytes of a socket (signal.set_wakeup_fd).
    """

    def __init__(self) -> None:
        numbers = filter(None, (signal.SIGINT, signal.SIGTERM, SIGHUP, SIGCHLD))
        self.outlives_terminal = ignores_hangups() or not has_terminal()
        self._inner, self._outer = socket.socketpair()
        self._outer.setblocking(False)
        # In this order: a handler without the descriptor would swallow a signal.
        fd = self._outer.fileno()
        self._old_fd = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        self._old = {n: signal.signal(n, lambda *_: None) for n in numbers}

    def wait(self, seconds: float) -> int:
        """Return the next signal's number, 0 when there is none within some seconds."""
        self._inner.settimeout(None if seconds == math.inf else max(0.001, seconds))
        try:
            return self._inner.recv(1)[0]
        except TimeoutError:
            return 0

    def wake(self) -> None:
        """Let `wait` return 0."""
        self._outer.send(b"\0")

    def stops(self, number: int) -> bool:
        """Tell whether a signal asks to stop: a hangup does if the terminal is gone."""
        if number == SIGHUP:
            return not (self.outlives_terminal or has_terminal())
        return number in (signal.SIGINT, signal.SIGTERM)

    def leave(self) -> None:
        """In a child: the parent hears what a terminal or systemd sends to all."""
        self.close()
        for number in self._old:
            signal.signal(number, signal.SIG_IGN)

    def close(self) -> None:
        """Handle signals as before."""
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._inner.close()
        self._outer.close()


def show(text: str) -> None:
    """Say on standard output what is no line of the log; nobody may be there."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), f"{text}\n".encode())


class Balancer:
    """All that runs, in this process: one worker, and the desk's threads.

    From the first signal on: `leaving`, for --stop-delay seconds; `stopping`, for
    --grace seconds; `cutting`. A second one cuts at once.
    """

    def __init__(
        self,
        board: Board,
        listeners: list[socket.socket],
        log: Log,
        status: StatusServer | None,
        signals: Signals,
    ) -> None:
        self._options, self._board, self._listeners = board.options, board, listeners
        self._log, self._status, self._signals = log, status, signals
        self._stops = 0
        self._deadline = math.inf  # of the grace, then of the cut
        self._waiting: dict[int, float] = {}  # children to be forked, and when

    def run(self, first_line: str) -> None:
        """Run until a stop has come to its end; raise RuntimeError without threads."""
        self._start_workers()
        show(first_line)  # before any line of the log
        what = f"{count(self._options.workers, 'worker')}, version {VERSION}"
        self._log.line(f"{first_line.partition(' (')[0]} with {what}")
        for note in self._options.notes:
            self._log.line(note)
        self._start_desk()
        notify("READY=1")
        while not self._is_over():
            moment = min([self._deadline, *self._waiting.values()])
            number = self._signals.wait(moment - time.monotonic())
            if self._signals.stops(number):
                self._stop()
            elif number == SIGHUP:
                self._reopen_log()
            self._look_after()
            if time.monotonic() >= self._deadline:
                if self._board.cutting:  # stopped by SIGSTOP, for one
                    break
                if self._board.stopping:
                    self._cut(CUT_S)
                else:
                    self._close()
        self._end()

    def _stop(self) -> None:
        """Say that clients should go elsewhere; accept for --stop-delay.

        A second signal cuts at once: not by this process' end alone, for half a reply
        must not end like a whole one.
        """
        self._stops += 1
        if self._stops > 1:
            if not self._board.stopping:
                self._close()
            self._cut(HASTE_S)
            return
        notify("STOPPING=1")
        self._board.leaving = 1
        if delay_s := self._options.stop_delay:
            self._log.line(f"leaving: clients are accepted for {delay_s:g} s more")
            self._deadline = time.monotonic() + delay_s
        else:
            self._close()

    def _close(self) -> None:
        """Accept nobody any more; let live connections end, for --grace."""
        self._board.stopping = 1
        if self._options.owns_listeners:  # nobody comes who is not accepted
            for listener in self._listeners:
                shut_down(listener, socket.SHUT_RDWR)
        self._board.ring_all()
        live, grace_s = self._board.live, self._options.grace
        text = "stopping"
        if live:
            text += f": {count(live, 'live connection')}, waiting {grace_s:g} s"
            text += " at most; Ctrl-C again cuts them"
        self._log.line(text)
        if self._options.log and not self._options.quiet:
            show(text)
        self._deadline = time.monotonic() + grace_s

    def _cut(self, step_s: float) -> None:
        """Have all connections reset, in steps of some seconds: see Worker.run."""
        self._board.cutting = milliseconds(step_s)
        self._board.ring_all()
        self._deadline = time.monotonic() + 3 * step_s

    # With one worker ------------------------------------------------------------------

    def _start_workers(self) -> None:
        worker = Worker(self._board, self._listeners, self._log, 1)
        self._at_rest = threading.Event()  # the worker has ended
        new_thread("bell", self._work, worker).start()

    def _start_desk(self) -> None:
        self._log.start()
        self._desk = Desk(self._board, self._log)
        self._desk.start()
        if self._status:
            self._status.start()

    def _work(self, worker: Worker) -> None:
        """Thread "bell": what is a worker's MainThread elsewhere."""
        worker.run(None)
        self._at_rest.set()
        self._signals.wake()

    def _is_over(self) -> bool:
        return self._stops > 2 or self._at_rest.is_set()

    def _look_after(self) -> None:
        """See to whatever may have died."""

    def _reopen_log(self) -> None:
        self._log.reopen()

    def _end(self) -> None:
        """End what is still live, and say so in the log."""
        self._desk.stop()
        with self._board.lock:  # threads go on ending theirs
            for row in self._board.taken_rows():
                end = row_end(row, CUT)
                self._log.line(self._board.line_of(row, end), row.key)
        if self._status and self._stops < 2:
            self._status.stop()
        self._log.line("stopped")
        self._log.close()


class Parent(Balancer):
    """The process that forks the others, and has no threads.

    So a fork copies no lock that somebody holds, and a child that replaces a dead one
    is as good as the first. Children learn of a stop from the board.
    """

    def _start_workers(self) -> None:
        self._children: dict[int, int] = {}  # number by process; 0: the desk
        self._forked: dict[int, float] = {}  # by number, when it was last
        self._life = os.pipe()  # ends with this process
        probe = new_thread("probe", self._look_after)
        probe.start()  # or RuntimeError: no child could have threads
        probe.join()
        self._log.share()
        # No thread is left, but Python may still count the probe (os.fork, 3.12).
        warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)
        for number in range(1, self._options.workers + 1):
            self._fork(number)
        # For a second at most: until all of them share the clients.
        bell, ready, deadline = self._board.bells[0], 0, time.monotonic() + 1
        poll = new_poll()
        poll.register(bell.fileno(), POLLIN)
        while ready < self._options.workers and time.monotonic() < deadline:
            if poll.poll(milliseconds(deadline - time.monotonic())):
                ready += len(bell.hear())

    def _start_desk(self) -> None:
        self._fork(0)

    def _is_over(self) -> bool:
        stopping = bool(self._board.stopping)
        return self._stops > 2 or (stopping and not any(self._children.values()))

    def _fork(self, number: int) -> None:
        """Fork a worker, or the desk; try again when that cannot be done."""
        sys.stdout.flush()
        # Until they are the child's
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._forked[number] = time.monotonic()
        try:
            pid = os.fork()
            if not pid:
                self._become(number, mask)
            self._children[pid] = number
        except OSError as error:
            self._log.warn("fork", f"cannot fork: {say_why(error)}")
            self._waiting[number] = time.monotonic() + FORK_PAUSE_S
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _become(self, number: int, mask: Iterable[int]) -> NoReturn:
        """Be a worker, or the desk (0), to the end."""
        who = f"worker-{number}" if number else "desk"
        try:
            self._signals.leave()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(self._life[1])
            self._board.lock.me = os.getpid()
            with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
                file.write(who)  # for ps and top (proc(5))
            if number:
                self._be_worker(number)
            else:
                self._be_desk()
            os._exit(0)
        except (RuntimeError, MemoryError, OSError) as error:
            self._log.line(f"cannot start {who}: {error or 'no memory'}")
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _be_worker(self, number: int) -> None:
        sys.setswitchinterval(1.0)
        do_not_preempt()
        if self._status:  # the desk's
            self._status.socket.close()
        Worker(self._board, self._listeners, self._log, number).run(self._life[0])

    def _be_desk(self) -> None:
        board, bell = self._board, self._board.bells[0]
        for listener in self._listeners:
            listener.close()
        super()._start_desk()
        poll = new_poll()
        poll.register(bell.fileno(), POLLIN)
        poll.register(self._life[0], 0)
        while not board.over:
            if self._life[0] in dict(poll.poll()):
                os._exit(1)  # the parent was killed
            if REOPEN in bell.hear():
                self._log.reopen()
            if board.stopping:
                self._desk.stop()
        self._log.join()

    def _reopen_log(self) -> None:
        self._board.bells[0].ring(REOPEN)

    def _look_after(self) -> None:
        """Bury the dead, and have them replaced, once a second at most."""
        with contextlib.suppress(ChildProcessError):
            while (dead := os.waitpid(-1, os.WNOHANG))[0]:
                number = self._children.pop(dead[0], None)
                if number is not None:  # else whoever started us left us a child
                    self._bury(number, os.waitstatus_to_exitcode(dead[1]))
        for number, at in list(self._waiting.items()):
            if time.monotonic() >= at:
                del self._waiting[number]
                if not (number and self._board.stopping):
                    self._fork(number)

    def _bury(self, number: int, code: int) -> None:
        orderly = self._board.stopping and code == 0
        lines = self._board.bury(number, CUT if orderly else WORKER_DIED)
        if not orderly:
            cause = f"signal {-code}" if code < 0 else f"exit code {code}"
            who = f"worker={number}" if number else "desk"
            with_what = f" with {count(len(lines), 'connection')}" if number else ""
            text = f"{who} died by {cause}{with_what}"
            if not (number and self._board.stopping):
                text += ", and is replaced"
                at = max(time.monotonic(), self._forked[number] + FORK_PAUSE_S)
                self._waiting[number] = at
            self._log.line(text)
        for line, key in lines:
            self._log.line(line, key)

    def _end(self) -> None:
        """Kill who is left, and log what they had; then the desk may go."""
        workers = [pid for pid, number in self._children.items() if number]
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        for pid in workers:
            os.waitpid(pid, 0)
            for line, key in self._board.bury(self._children.pop(pid), CUT):
                self._log.line(line, key)
        self._log.line("stopped")
        self._log.end()
        self._board.over = 1
        self._board.bells[0].ring()
        deadline = time.monotonic() + 2 * CUT_S
        for desk in self._children:
            while not is_dead(desk) and time.monotonic() < deadline:
                self._signals.wait(deadline - time.monotonic())  # SIGCHLD
            os.kill(desk, signal.SIGKILL)  # if it is stopped by SIGSTOP
            os.waitpid(desk, 0)
        self._log.write_rest()


def has_terminal() -> bool:
    """Tell whether the process has a controlling terminal, its window open (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | getattr(os, "O_NOCTTY", 0)))
    except OSError as error:  # for want of a descriptor it is not known: it has
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return True


def ignores_hangups() -> bool:
    """Tell whether the process was started to outlive its terminal (nohup(1))."""
    return SIGHUP is not None and signal.getsignal(SIGHUP) is signal.SIG_IGN


def notify(message: str) -> None:
    """Tell systemd how we are, when it wants to know (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path and hasattr(socket, "AF_UNIX"):
        where = "\0" + path[1:] if path[0] == "@" else path  # abstract (unix(7))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with sock, contextlib.suppress(OSError):
            sock.sendto(message.encode(), where)


# ---- Command line --------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Say what is wrong in one line; the whole usage is one `--help` away."""

    def error(self, message: str) -> NoReturn:
        """Print one line on standard error; exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def parse_listen(text: str) -> tuple[str, int]:
    """Return (host, port) of "HOST:PORT" or ":PORT", all addresses as "::"."""
    every = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    host, port = parse_address(f"[{every}]{text}" if text[:1] == ":" else text)
    with contextlib.suppress(ValueError):
        if not int(ipaddress.IPv6Address(host.partition("%")[0])):
            host = "::"  # in its many forms
    return host, port


def in_range(
    convert: Callable[[str], Any], what: str, low: float, high: float
) -> Callable[[str], Any]:
    """Return a parser of numbers in a range, which says what is no such number."""

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if text.isascii() and low <= (value := convert(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return parse


parse_seconds = in_range(float, "a number of seconds from 0", 0, 1e6)
parse_period = in_range(float, "a number of seconds above 0", 1e-6, 1e6)
parse_count = in_range(int, "a whole number from 0", 0, 1e9)
parse_times = in_range(int, "a whole number from 1", 1, 1e9)
parse_weight = in_range(int, "a weight from 0 to 256", 0, 256)
parse_port = in_range(int, "a port from 1 to 65535", 1, 65535)
parse_processes = in_range(int, "auto or 1 to 256 processes", 1, 256)


def parse_workers(text: str) -> int:
    """Return how many processes relay; 0 stands for `auto`."""
    return 0 if text == "auto" else int(parse_processes(text))


def parse_network(text: str) -> Network:
    """Return the network of a CIDR or a single address, a mapped one as IPv4."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        why = f"{text!r} is not an address or CIDR: {error}"
        raise argparse.ArgumentTypeError(why) from None
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped and network.prefixlen >= 96:
        return ipaddress.ip_network((mapped, network.prefixlen - 96))
    return network


def parse_bytes(text: str) -> bytes:
    r"""Return the bytes of a text (UTF-8) with the escapes \r, \n, \t, \xHH and \\."""
    known = {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\"}
    plain, *rest = re.split(r"\\(x[0-9A-Fa-f]{2}|.|\Z)", text, flags=re.DOTALL)
    found = os.fsencode(plain)
    for escape, plain in zip(rest[::2], rest[1::2], strict=True):
        if len(escape) != 3 and escape not in known:
            why = rf"'\{escape}' is none of \r \n \t \xHH \\"
            raise argparse.ArgumentTypeError(why)
        found += known.get(escape) or bytes.fromhex(escape[1:])
        found += os.fsencode(plain)
    return found


def parse_check(text: str) -> tuple[str, int]:
    """Return where PORT or HOST:PORT is; a host of "" is the server's own."""
    if ":" not in text:
        return "", parse_port(text)
    host, port = parse_address(text)
    try:
        host.encode("idna")
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"{host!r} is no name of a host") from None
    return host, parse_port(str(port))


def parse_server(text: str) -> dict[str, Any]:
    """Return what is in HOST:PORT[,weight=N][,backup][,max=N][,check=[HOST:]PORT]."""
    name, *words = text.split(",")
    host, port = parse_address(name)
    given: dict[str, Any] = {"host": host, "port": parse_port(str(port))}
    given |= {"weight": 1, "backup": False, "max": 0, "check": None}
    parsers = {"weight": parse_weight, "max": parse_count, "check": parse_check}
    for word in words:
        key, equals, value = word.partition("=")
        if word == "backup":
            given["backup"] = True
        elif equals and key in parsers:
            try:
                given[key] = parsers[key](value)
            except argparse.ArgumentTypeError as error:
                raise argparse.ArgumentTypeError(f"{key}: {error}") from None
        else:
            why = f"{word!r} is none of weight=N, backup, max=N, check=[HOST:]PORT"
            raise argparse.ArgumentTypeError(why)
    return given


# A row: option, metavar or choices, type, default, help, and the default in words if it
# does not show itself. A switch has neither metavar nor default; a list is repeatable.
OPTIONS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "addresses": (
        ("--listen", "HOST:PORT", parse_listen, [],
         "accept clients here, :PORT for all addresses", "127.0.0.1:9990"),
        ("--server", "HOST:PORT[,weight=N][,backup][,max=N][,check=[HOST:]PORT]",
         parse_server, [], "send clients to this server",
         "127.0.0.1:9991, :9992, :9993"),
        ("--algorithm", ALGORITHMS, str, ALGORITHMS[0],
         "choose the next server by this rule; random: the less loaded of two"),
        ("--workers", "N", parse_workers, 0, "relay in N processes",
         "auto, one per core"),
    ),
    "checks": (
        ("--check-interval", "S", parse_period, 2.0,
         "connect to each server every S seconds"),
        ("--rise", "N", parse_times, 2, "call a server UP after N good checks"),
        ("--fall", "N", parse_times, 3,
         "call a server DOWN after N failed checks, or connects for clients"),
        ("--check-timeout", "S", parse_period, 2.0, "let a check fail after S seconds"),
        ("--check-send", "TEXT", parse_bytes, b"",
         r"send TEXT in a check (\r \n \t \xHH \\)", "off"),
        ("--check-expect", "TEXT", parse_bytes, b"",
         "let a check pass only when TEXT has come back, or as a greeting", "off"),
        ("--no-checks", "", None, None, "judge servers by clients' connects alone"),
        ("--on-down", ("keep", "reset"), str, "keep",
         "let live connections of a server that goes DOWN go on, or reset them"),
    ),
    "limits": (
        ("--connect-timeout", "S", parse_period, 3.0,
         "try another server after S seconds"),
        ("--idle-timeout", "S", parse_seconds, 3600.0,
         "close after S seconds without a byte; 0: never"),
        ("--half-close-timeout", "S", parse_seconds, 300.0,
         "close after S seconds without a byte once one side has ended; 0: never"),
        ("--hold", "S", parse_seconds, 3.0,
         "let a client wait for S seconds while no server can be connected"),
        ("--stop-delay", "S", parse_seconds, 0.0,
         "accept for S seconds more at a stop, while /healthz says 503"),
        ("--grace", "S", parse_seconds, 30.0,
         "let live connections end for S seconds at a stop"),
        ("--queue-timeout", "S", parse_seconds, 5.0,
         "close after S seconds in the queue for a place at a server; 0: never"),
        ("--max-connections", "N", parse_count, 0,
         "serve N at once, let more wait to be accepted; 0: as descriptors allow"),
    ),
    "access": (
        ("--allow", "CIDR", parse_network, [], "refuse clients from elsewhere",
         "all may come"),
        ("--accept-proxy", "CIDR", parse_network, [], "require a PROXY header, version"
         " 1 or 2, from these sources and refuse all others", "off"),
        ("--send-proxy", ("v1", "v2"), str, None,
         "tell servers the client's address by a PROXY header", "off"),
    ),
    "output": (
        ("--status", "HOST:PORT", parse_address, None,
         "serve a live page, /status.json, /metrics and /healthz here", "off"),
        ("--status-host", "NAME", str, [],
         "answer a browser that asks for this name, too", "none"),
        ("--status-control", "", None, None,
         "obey drain, ready and maint on any address, not on loopback alone"),
        ("--log", "FILE", str, "-", "append the log to FILE; a terminal gets shorter"
         " lines", "standard output, -"),
        ("--quiet", "", None, None,
         "print nothing but the first line; a --log FILE is still written"),
    ),
}  # fmt: skip


def add_option(
    group: argparse._ArgumentGroup, name: str, values: Any, kind: Any, default: Any,
    text: str, shown: str = "",
) -> None:  # fmt: skip
    """Add a row of OPTIONS to its group; its help ends with the default."""
    if not values:
        group.add_argument(name, action="store_true", help=f"{text} (default: off)")
        return
    if isinstance(default, list):
        text += "; repeatable"
    shown = shown or (f"{default:g}" if isinstance(default, float) else str(default))
    how = {"choices": values} if isinstance(values, tuple) else {"metavar": values}
    group.add_argument(
        name, type=kind, default=default, help=f"{text} (default: {shown})",
        action="append" if isinstance(default, list) else "store", **how,
    )  # fmt: skip


def parse_args(argv: Sequence[str] | None) -> Options:
    """Return the options; exit with status 2 and one line when they are wrong."""
    parser = Parser(
        prog="load_balancer.py",
        usage="%(prog)s [options]",
        description="Hand TCP connections to servers in turn, and relay their bytes.",
        epilog="SIGTERM or Ctrl-C: stop accepting, let live connections end for "
        "--grace seconds; a second one: exit at once. SIGHUP: reopen --log.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    for title, rows in OPTIONS.items():
        group = parser.add_argument_group(title)
        for row in rows:
            add_option(group, *row)
    options = parser.parse_args(argv)
    why = why_one_process()
    if options.workers > 1 and why:
        parser.error(f"--workers: {why}: use --workers 1")
    alone = why or is_free_threaded()
    options.workers = options.workers or (1 if alone else usable_cores())
    usual = [parse_server(f"127.0.0.1:{port}") for port in DEFAULT_PORTS]
    options.servers = options.server or usual
    options.notes = resolve_servers(parser, options.servers)
    options.log = None if options.log == "-" else options.log
    places = [place for place in options.listen if place[1]]
    if len(set(places)) < len(places):
        parser.error("--listen: an address is given more than once")
    return options


def resolve_servers(parser: Parser, servers: list[dict[str, Any]]) -> list[str]:
    """Give each --server its addresses; return what the log should say of them."""
    notes = []
    known: dict[tuple[Any, ...], dict[str, Any]] = {}  # by address, whose it is
    for server in servers:
        name = format_address((server["host"], server["port"]))
        server["resolved"], server["why"] = resolve_server(parser, server)
        server["left_out"] = []  # addresses that an earlier one has
        if server["why"]:
            notes.append(f"{name}: {server['why']}; DOWN until it has an address")
        for where in list(server["resolved"]):
            first = known.setdefault(plain_key(where[1]), server)
            if first is server:
                continue
            text = format_address((str(plain_ip(where[1][0])), where[1][1]))
            if is_literal(server["host"]) and is_literal(first["host"]):
                parser.error(f"--server: {text} is given more than once")
            server["resolved"].remove(where)
            server["left_out"].append(where[1])
            whose = format_address((first["host"], first["port"]))
            notes.append(f"{name} is {text}, as {whose}: with its settings")
    return notes


def resolve_server(
    parser: Parser, given: dict[str, Any]
) -> tuple[list[tuple[int, SocketAddress]], str]:
    """Return the addresses of a --server, or none and why; exit 2: it can have none."""
    try:
        return resolve(given["host"], given["port"]), ""
    except UnicodeError as error:
        parser.error(f"--server: cannot resolve {given['host']!r}: {error.args[-1]}")
    except OSError as error:
        return [], f"cannot resolve: {say_why(error)}"


def why_one_process() -> str:
    """Return why this system cannot have several processes, "" if it can."""
    if not (hasattr(os, "fork") and hasattr(os, "waitid")):
        return "this system cannot fork"
    try:
        multiprocessing.get_context("fork").Lock()
    except (ImportError, OSError, ValueError) as error:
        return f"this system has no lock for processes ({error})"
    return ""


def is_free_threaded() -> bool:
    """Tell whether threads run side by side: one process is enough then (PEP 703)."""
    return not getattr(sys, "_is_gil_enabled", lambda: True)()


def open_missing_streams() -> None:
    """Open descriptors 0, 1, 2 that were closed, before a file or socket gets them."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


class StartError(Exception):
    """Why the balancer cannot run, in one line, and the exit status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@contextlib.contextmanager
def start_step(what_fails: str, status: int = 1, port: int = 0) -> Iterator[None]:
    """Raise StartError when a step of the start cannot be done; 2 for a wrong name."""
    try:
        yield
    except (OSError, UnicodeError, RuntimeError) as error:
        if isinstance(error, (socket.gaierror, UnicodeError)):
            status = 2
        why = say_why(error) if isinstance(error, OSError) else str(error)
        number = error.errno if isinstance(error, OSError) else 0
        if number == errno.EADDRINUSE:
            why = "the port is in use: an earlier one may still run; find it with "
            why += who_listens(port)
        elif number == errno.EADDRNOTAVAIL:
            why = "no address of this machine; 0.0.0.0 stands for all that it has"
        elif number in (errno.EACCES, errno.EPERM) and port:
            why = "not allowed: choose a port from 1024"
        raise StartError(status, f"{what_fails}: {why}") from None


def who_listens(port: int) -> str:
    """Return the command that shows which process listens on a port."""
    if shutil.which("ss"):
        return f"ss -ltnp 'sport = :{port}'"
    if sys.platform == "win32":
        return f"netstat -ano | findstr :{port}"
    return f"lsof -nP -iTCP:{port} -sTCP:LISTEN"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the balancer until a signal stops it; return the exit status."""
    open_missing_streams()
    options = parse_args(argv)
    threading.stack_size(STACK_BYTES)
    with contextlib.ExitStack() as stack:
        try:
            signals = stack.enter_context(contextlib.closing(Signals()))
            with start_step(f"--log: cannot write {options.log}", 2):
                log = Log(options.log, options.quiet)
            run(options, log, signals)
        except StartError as error:
            print(f"load_balancer.py: {error}", file=sys.stderr)
            return error.status
    return 0


def run(options: Options, log: Log, signals: Signals) -> None:
    """Open the ports, run until a stop; raise StartError."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(sock) for sock in open_listeners(options)]
        doors = [format_address(sock.getsockname()) for sock in listeners]
        options.own = [sock.getsockname() for sock in listeners]
        for given in options.servers:
            for _, address in given["resolved"]:
                if is_own(address, options.own):
                    text = f"{format_address(address)} is this balancer itself"
                    listens = f"--listen {', '.join(doors)}"
                    raise StartError(2, f"--server: {text} ({listens})")
        descriptors = raise_descriptor_limit() or MAX_ROWS
        pipes = min(64, descriptors // 32)  # two descriptors each
        Pipe.budget = threading.Semaphore(pipes)
        own = OWN_DESCRIPTORS + len(options.servers) + 2 * options.workers
        own += len(listeners)
        own += STATUS_CONNECTIONS + 2 if options.status else 0
        each = max(1, (descriptors - own) // 2 - pipes)
        each = min(each, MAX_ROWS // options.workers)
        board = Board(options, each)
        board.doors, where = doors if len(doors) > 1 else [], ", ".join(doors)
        about, status = f"up to {board.limit:,} connections", None
        if options.status:
            on = format_address(options.status)
            what = f"--status: cannot listen on {on}"
            with start_step(what, port=options.status[1]):
                status = StatusServer(options.status, where, board, log)
            about += f"; status on http://{format_address(status.server_address)}/"
        kind = Balancer if options.workers == 1 else Parent
        with start_step("cannot start"):
            first_line = f"listening on {where} ({about})"
            kind(board, listeners, log, status, signals).run(first_line)


def open_listeners(options: Options) -> list[socket.socket]:
    """Return the listening sockets: systemd's, or new ones; raise StartError.

    Sockets of systemd's (sd_listen_fds(3)) outlive us: a restart refuses nobody.
    """
    ours = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    number = os.environ.pop("LISTEN_FDS", "")
    given = int(number) if ours and number.isdigit() else 0
    options.owns_listeners = not given
    if given and options.listen:
        raise StartError(2, "--listen: systemd's sockets take its place, leave it out")
    with start_step("LISTEN_FDS: no sockets from systemd", 2):
        listeners = [socket.socket(fileno=3 + number) for number in range(given)]
    if any(s.family not in FAMILIES or s.type != socket.SOCK_STREAM for s in listeners):
        raise StartError(2, "LISTEN_FDS: only TCP sockets are listened on (HOST:PORT)")
    for host, port in [] if given else options.listen or [("127.0.0.1", 9990)]:
        where = format_address((host, port))
        with start_step(f"--listen: cannot listen on {where}", port=port):
            family, address = resolve(host, port)[0]
            both = host == "::" and socket.has_dualstack_ipv6()
            listener = socket.create_server(
                address, family=family, backlog=LISTEN_QUEUE, dualstack_ipv6=both
            )
        listeners.append(listener)
    for listener in listeners:
        listener.setblocking(False)
        prepare(listener)  # accepted sockets inherit it
    return listeners


def is_own(address: SocketAddress, own: Iterable[SocketAddress]) -> bool:
    """Tell whether a server's address is one of the listening addresses `own`."""
    ip, port = plain_ip(address[0]), address[1]
    if ip.is_unspecified:  # a connect to it goes to this machine (ip(7))
        ip = plain_ip("127.0.0.1" if ip.version == 4 else "::1")
    for listens in (plain_ip(where[0]) for where in own if where[1] == port):
        covers = listens.is_unspecified and listens.version >= ip.version
        if listens == ip or (covers and is_local(ip, address[2:])):
            return True
    return False


def is_local(ip: Address, flow_and_zone: tuple[int, ...]) -> bool:
    """Tell whether an address is one of this machine's: only those can be bound."""
    family, rest = socket.AF_INET6, flow_and_zone
    if ip.version == 4:
        family, rest = socket.AF_INET, ()
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((str(ip), 0, *rest))
        return True
    return False


# ---- The status page -----------------------------------------------------------------
# It asks for /status.json and /history.json once a second and draws what they say.

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
  --maint: #55606e; --plot: #2563a8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --soft: #9aa8b8;
  --line: #2c3744; --page: #11171e; --card: #1a222c; --up: #4cc38a; --down: #ff8a80;
  --drain: #f0b429; --maint: #a3b0bf; --plot: #6cb0f5 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.25rem; max-width: 80rem; color: var(--ink);
  background: var(--page); font: 15px/1.45 system-ui, sans-serif;
  font-variant-numeric: tabular-nums }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem 1rem;
  margin-bottom: 1rem }
h1 { font-size: 1.35rem; margin: 0 }
h2 { font-size: 1.05rem; margin: 1.5rem 0 .5rem }
a { color: var(--plot) }
.soft { color: var(--soft); font-weight: 400 }
#note { margin-left: auto }
#note.bad { color: var(--down); font-weight: 600 }
dl, #servers { display: grid; gap: .75rem; margin: 0 }
dl { grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)) }
#servers { grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)) }
dl div, article, .box { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .7rem .9rem; min-width: 0 }
dt { color: var(--soft); font-size: .85rem }
dd { margin: 0; font-size: 1.35rem; font-weight: 600 }
h3 { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .5rem;
  margin: 0; font-size: 1rem; overflow-wrap: anywhere }
.state { font-weight: 700; white-space: nowrap }
.state::before { content: "\25CF\00A0" }
.UP { color: var(--up) } .DOWN { color: var(--down) }
.DRAIN { color: var(--drain) } .MAINT { color: var(--maint) }
p { margin: .15rem 0; font-size: .88rem; overflow-wrap: anywhere }
.big { display: none }
figure { display: grid; grid-template-columns: 4.2rem 1fr; margin: .5rem 0 0;
  font-size: .8rem }
figcaption { grid-column: 1 / 3; display: flex; justify-content: space-between }
.scale { display: flex; flex-direction: column; justify-content: space-between;
  text-align: right; padding-right: .4rem; line-height: 1; color: var(--soft) }
.times { grid-column: 2; display: grid; grid-template-columns: 1fr 1fr 1fr 0;
  white-space: nowrap; color: var(--soft) }
.times :last-child { justify-self: end }
svg { display: block; width: 100%; height: 3.6rem; border: solid var(--line);
  border-width: 1px 0; background:
  repeating-linear-gradient(90deg, var(--line) 0 1px, transparent 1px 33.33%) }
polyline { fill: none; stroke: var(--plot); stroke-width: 2;
  vector-effect: non-scaling-stroke }
.actions { display: flex; gap: .4rem; margin-top: .6rem }
button { flex: 1; font: inherit; font-size: .88rem; padding: .35rem .5rem;
  color: inherit; background: none; border: 1px solid var(--line);
  border-radius: .4rem; cursor: pointer }
button:hover { border-color: var(--soft) }
button:disabled { opacity: .45; cursor: default }
ol { list-style: none; margin: 0; padding: 0 }
li { display: flex; gap: 0 .8rem; overflow-wrap: anywhere; font-size: .9rem }
time { color: var(--soft); white-space: nowrap }
table { border-collapse: collapse; width: 100%; font-size: .88rem }
th, td { text-align: right; padding: .35rem .5rem; vertical-align: top }
td:nth-child(n+3) { white-space: nowrap }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; overflow-wrap: anywhere }
th { color: var(--soft); font-weight: 500 }
tr + tr td { border-top: 1px solid var(--line) }
@media (max-width: 40rem) { body { padding: .75rem } .box { padding: .5rem }
  table { font-size: .75rem } th, td { padding: .3rem .2rem } }
body.large { max-width: none }
.large article { container-type: inline-size }  /* its width: 100cqw */
.large .big { display: block; font-size: clamp(1.5rem, 11cqw, 6rem);
  line-height: 1.1; font-weight: 700 }
.large .small { display: none }
.large h3 { font-size: clamp(1.2rem, 9cqw, 4rem); line-height: 1.2 }
.large figure { font-size: 1.15rem; grid-template-columns: 6.5rem 1fr }
.large li { font-size: 1.3rem }
.large svg { height: 8rem } .large polyline { stroke-width: 4 }
.large #servers { grid-template-columns:
  repeat(auto-fit, minmax(min(24rem, 100%), 1fr)) }
@media (max-width: 40rem) {
  .large figure { font-size: 1rem; grid-template-columns: 4.5rem 1fr } }
</style>
</head>
<body>
<header><h1>Load balancer</h1><span class="soft" id="where"></span>
<a id="size" href="#big">big</a><span id="note" role="status">…</span></header>
<dl id="totals" class="small"></dl>
<h2>Servers <span class="soft" id="how"></span></h2>
<div id="servers"></div>
<h2>Queue <span class="soft">clients that wait for a place at a server</span></h2>
<div id="queue" class="box"></div>
<h2>Last events</h2>
<ol id="events" class="box"></ol>
<div class="small"><h2>Live connections <span class="soft" id="count"></span></h2>
<div class="box"><table><thead><tr><th scope="col">client<th scope="col">server
<th scope="col">age<th scope="col">idle<th scope="col">to server
<th scope="col">to client</tr></thead><tbody id="live"></tbody></table></div></div>
<template id="buttons"><button data-admin="ready">Ready</button>
<button data-admin="drain">Drain</button>
<button data-admin="maint">Maint</button></template>
<script>
"use strict";
const cards = new Map(), byId = id => document.getElementById(id);
function make(tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
}
function place(tag, address) {  // may be broken before its port
  const node = make(tag), port = address.lastIndexOf(":") + 1;
  node.append(address.slice(0, port), make("wbr"), address.slice(port));
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
const count = n => n < 10 && n % 1 ? n.toFixed(1) : Math.round(n).toLocaleString("en");
// The next of 1, 2, 4, 6, 8, 10, 20, 40 …: all plots of a kind get the same
function scale(series) {
  const most = Math.max(2, ...series.flat()), ten = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 4, 6, 8, 10].find(step => step * ten >= most) * ten;
}
function plot(name, format) {
  const ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg");
  const box = make("figure"), words = make("figcaption"), value = make("b");
  const numbers = make("div", "", "scale"), times = make("div", "", "times");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  words.append(make("span", name), value);
  box.append(words, numbers, svg, times);
  return { box, show(values, ages, length, top) {
    svg.setAttribute("viewBox", "0 0 " + length + " 100");
    numbers.replaceChildren(...[top, top / 2, 0].map(v => make("span", format(v))));
    const labels = ["−" + length + " s", "−" + length * 2 / 3, "−" + length / 3, "now"];
    times.replaceChildren(...labels.map(text => make("span", text)));
    const lines = [];
    let points = [];
    values.forEach((v, i) => {  // null: it was no server then
      if (v === null || ages[i] > length) return;
      if (!points.length || values[i - 1] === null) lines.push(points = []);
      points.push((length - ages[i]).toFixed(1) + "," + (99 - 97 * v / top).toFixed(1));
    });
    svg.replaceChildren(...lines.map(line => {
      const node = document.createElementNS(ns, "polyline");
      node.setAttribute("points", line.join(" "));
      return node;
    }));
    value.textContent = values.length ? format(values[values.length - 1] || 0) : "";
  } };
}
const STATE = /^server=(\S+) state=(\S+) reason="(.*)" checks=\S+ up=(\S+)$/;
const KINDS = [["connections_per_s", "connections/s", count], ["active", "live", count],
  ["bytes_per_s", "bytes/s, both ways", amount]];
const queue = plot("queued", count);
byId("queue").append(queue.box);
function card(address) {
  const box = make("article"), head = make("h3"), state = make("span", "", "state");
  const lines = [make("p", "", "big"), make("p"), make("p", "", "soft small")];
  const plots = KINDS.map(([_, name, format]) => plot(name, format));
  const actions = make("div", undefined, "actions small"), buttons = {};
  if (byId("buttons")) actions.append(byId("buttons").content.cloneNode(true));
  for (const button of actions.children) {
    const admin = button.dataset.admin;
    buttons[admin] = button;
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
  head.append(place("span", address), state);
  box.append(head, ...lines, ...plots.map(p => p.box), actions);
  lines[1].classList.add("small");
  plots[2].box.classList.add("small");
  byId("servers").append(box);
  return { box, state, lines, plots, buttons };
}
function show(s, h) {
  byId("where").textContent = "on " + s.listen + ", up " + time(s.uptime_s);
  byId("how").textContent = h.algorithm + "; all on one scale";
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
  for (const [address, one] of cards) {
    if (s.servers.some(x => x.address === address)) continue;
    one.box.remove();
    cards.delete(address);
  }
  const tops = KINDS.map(([key]) => scale(h.servers.map(x => x[key])));
  for (const x of s.servers) {
    if (!cards.has(x.address)) cards.set(x.address, card(x.address));
    const one = cards.get(x.address);
    const past = h.servers.find(y => y.address === x.address);
    one.state.textContent = x.state;
    one.state.className = "state " + x.state;
    const live = count(x.active) + (x.max ? " of " + count(x.max) : "") + " live";
    one.lines[0].textContent = live;
    one.lines[1].textContent = [live,
      count(x.total) + " connected", count(x.connect_failures) + " failed connects",
      count(x.retries) + " retries"].join(", ");
    one.lines[2].textContent = "weight " + x.weight + (x.backup ? ", backup" : "") +
      "; " + x.last_check + "; " + x.state + " for " + time(x.last_change_s);
    KINDS.forEach(([key], i) =>
      one.plots[i].show(past ? past[key] : [], h.ages_s, h.length_s, tops[i]));
    const now = { UP: "ready", DOWN: "ready", DRAIN: "drain", MAINT: "maint" }[x.state];
    for (const admin in one.buttons) one.buttons[admin].disabled = admin === now;
  }
  queue.show(h.queued, h.ages_s, h.length_s, scale([h.queued]));
  byId("events").replaceChildren(...h.events.reverse().map(e => {
    const row = make("li"), at = new Date(e.at * 1000).toTimeString().slice(0, 8);
    const m = STATE.exec(e.text);
    const text = m ? m[1] + ": " + m[3] + ", " + m[4] + " servers UP" : e.text;
    row.append(make("time", at));
    if (m) row.append(make("span", m[2], "state " + m[2]));
    row.append(make("span", text));
    return row;
  }));
  byId("count").textContent = c.active <= s.live.length ? ""
    : "the oldest " + s.live.length + " of " + count(c.active);
  byId("live").replaceChildren(...s.live.map(x => {
    const row = make("tr");
    const cells = [time(x.age_s), time(x.idle_s), amount(x.to_server),
      amount(x.to_client)];
    row.append(place("td", x.client), place("td", x.server || "–"),
      ...cells.map(text => make("td", text)));
    return row;
  }));
}
function resize() {
  const big = location.hash === "#big";
  document.body.classList.toggle("large", big);
  byId("size").textContent = big ? "all" : "big";
  byId("size").href = big ? "#" : "#big";
}
addEventListener("hashchange", resize);
resize();
const ask = async path => (await fetch(path)).json();
let timer = 0;
async function refresh() {
  clearTimeout(timer);
  try {
    show(...await Promise.all([ask("/status.json"), ask("/history.json")]));
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


BUTTONS = PAGE[PAGE.index("<template") : PAGE.index("<script>")]


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


if __name__ == "__main__":
    exit_status = main()
    for handled in filter(None, (signal.SIGINT, signal.SIGTERM, SIGHUP)):
        signal.signal(handled, signal.SIG_IGN)  # none that comes late changes it
    sys.stdout.flush()
    os._exit(exit_status)
