#!/usr/bin/env python3
"""Start N clients at once, and measure every exchange by the kernel's clock.

    client-1 ─┐  Hello from client 1!                ┌─► server 9991
    client-2 ─┼────────► load balancer :9990 ────────┼─► server 9992
    client-N ─┘  Server 9991 received: Hello from…   └─► server 9993

Each client has its own thread and connection. An exchange is one message (a line)
and its reply: in the closed loop a client sends the next message when the reply is
there; with --rate all messages have a place in one schedule (open loop). The reply
must be `Server <port> received: ` and the same bytes.

    due ── sent ──► kernel … network, balancer, server … kernel ──► first … last byte
           ├────────────────── latency ───────────────────────────────┤
     ├──────────────────────── response time ──────────────────────────────────┤

Latency ends when the reply's first byte reaches this machine's kernel, by its receive
timestamp (`Connection.arrival`, and inlined in `Connection.repeat`): how late the
client's thread wakes up is not in it, but on a line of its own. For the summary,
`Tally.add_part` subtracts; the CSV, the lines and the plots do so for theirs.

Data flow: options → Config → N × Client, each with a Connection → rows (six numbers
per exchange), handed over as a Chunk → Tally adds up → Summary, with the verdict →
terminal, JSON, HTML; --csv is written from the chunks, --merge starts at Summary.
Threads: `client-K` are the clients; the main thread collects their chunks, draws the
progress, and writes. With --workers, processes of this same script run the client
threads (and `orders`, which follows this process), and one thread here per process
(`worker-K`) reads what they hand over. With --demo, `demo-…` read the scripts' output.
The only lock is Connection's; all else is handed over through one queue.

Usage:
    python client2.py 9 --demo             servers, balancer and nine clients at once
    python client2.py 1000 --messages 10   against the balancer at 127.0.0.1:9990
    python client2.py 50 --rate 2000 --duration 10 --report run.html
    python client2.py --merge a.json b.json

It does not speak TLS or HTTP, send a message before the last one's reply (no
pipelining), or load more than one target.
"""

from __future__ import annotations

import argparse
import bisect
import calendar
import contextlib
import dataclasses
import errno
import heapq
import html
import io
import itertools
import json
import math
import operator
import os
import pickle
import platform
import queue
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import zlib
from array import array
from base64 import b64decode, b64encode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from time import time_ns
from typing import IO, Any, NoReturn, TextIO

# Percentiles are nearest rank; one is printed when the sample can carry its 95 % range,
# the median always (its range from 6 exchanges on).
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
NEEDED = {"p50": 1, "p90": 29, "p99": 299, "p99_9": 2995}
CONFIDENCE = 0.95
EXACT_LIMIT = 1_000_000  # samples kept one by one (8 bytes each), then a histogram

ROW_FIELDS = 6  # due, sent, first, last, seen (CLOCK_REALTIME, ns), code
KINDS = ("connect", "send", "timeout", "reset", "closed", "mismatch", "error_reply")
OUTCOMES = ("confirmed", *KINDS)  # 0, and how an exchange can fail
CONFIRMED, CONNECT, SEND, TIMEOUT, RESET, CLOSED, MISMATCH, ERROR_REPLY = range(8)
UNKNOWN_SERVER = 0xFFFF  # a code is outcome (4 bits), server (16), bytes received

# Linux stamps received segments when asked (socket(7), timestamping.rst 1.1). Python
# has no name for option 35 of asm-generic/socket.h, which is also the message's type.
TIMESTAMP_OPTION = 35 if sys.platform == "linux" else None
unpack_timespec = struct.Struct("@ll").unpack
STAMP_SPACE = 64  # bytes for one control message of two longs
# A receive deadline in the kernel saves the poll() that settimeout() makes.
TIMEVAL = struct.Struct("@ll") if sys.platform == "linux" else None
TCP_INFO_BYTES = 160  # up to tcpi_data_segs_out, linux/tcp.h
TCP_INFO_RETRANSMITS, TCP_INFO_DATA_SEGMENTS_IN = 100, 152

HANDOVER_NS = 500_000_000  # a client hands its rows over this often: the progress' age
MOST_REPEATS = 4096  # exchanges between two looks at the stop, whatever the clock does
CLOCK_STEP_NS = 500_000_000  # slewing and a late thread stay below this
TICK_S = 0.25  # the main thread's heartbeat; waking later than it tells of a stop
STALL_S = 0.5  # a heartbeat later than this: the client was stopped or starved
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 1.0  # pause after a connect that failed
STACK_BYTES = 256 * 1024  # a client's thread needs little, and there may be thousands
CLIENTS_PER_WORKER = 12  # of --workers auto: more wait for one interpreter lock
AWAKE_TRIES = 150  # a lone client asks so often, about 200 µs, before it sleeps
SPARE_DESCRIPTORS = 40  # standard streams, pipes, files besides the connections
EXCHANGES_SHOWN = 120  # lines, for a dozen clients or fewer
CLIENTS_SHOWN = 12
SLOWEST_SHOWN = 10  # in the report
ANY_REPLY_BYTES = 64 * 1024 * 1024  # longest line taken with --any-reply
SYN_RETRY_NS = 900_000_000  # Linux sends a lost SYN again after 1 s

UTC_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

REPLY = re.compile(rb"Server (\d{1,5}) received: ")
ERROR = re.compile(rb"Server \d{1,5} error: ")


# ---- Text and numbers ----------------------------------------------------------------
# What people read: three significant digits, a unit, and nothing that moves the cursor.


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


def safe_text(data: bytes, limit: int = 200) -> str:
    """Return `data` as printable text: no byte of a reply may steer a terminal."""
    text = data[:limit].decode("utf-8", "backslashreplace").rstrip("\r\n")
    shown = (c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return "".join(shown) + ("…" if len(data) > limit else "")


def grouped(number: int) -> str:
    """Return an integer with thin spaces between thousands: 10 000."""
    return f"{number:,}".replace(",", "\u2009")


def three_digits(value: float) -> str:
    """Return a number with three significant digits: 0.0123, 1.62, 431, 1 020."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    digits = 2 - math.floor(math.log10(abs(rounded)))  # 9.996 became 10.0
    return grouped(int(rounded)) if digits <= 0 else f"{rounded:.{digits}f}"


def compact(value: float) -> str:
    """Return a number in at most six columns: 0.0081, 1.62, 1 020."""
    text = three_digits(value)
    return text[:6] if text.startswith("0.") else text


def round_number(value: float) -> str:
    """Return a number that has few digits anyway, without zeros at its end."""
    return grouped(round(value)) if value >= 1000 else f"{value:.3g}"


def time_unit(duration_ns: float) -> tuple[int, str]:
    """Return (nanoseconds, name) of the unit that suits a duration."""
    for size, name in ((10**9, "s"), (10**6, "ms")):
        if duration_ns >= size:
            return size, name
    return 1000, "µs"


def row_unit(metric: Distribution) -> tuple[int, str]:
    """Return the unit for all of a metric's figures, by its median and its maximum."""
    return time_unit(max(metric.percentile(0.5), metric.maximum / 10))


def in_unit(value: float | None, size: int) -> str:
    """Return a figure in units of `size` ns; a dash for one that is not known."""
    return "–" if value is None else three_digits(value / size)


def range_text(around: tuple[int, int] | None, size: int) -> str:
    """Return a range in units of `size` ns: 1.43–1.80."""
    if around is None:
        return "–"
    low, high = (in_unit(v, size)[: 5 if v < size else None] for v in around)
    return f"{low}–{high}"


def format_duration(duration_ns: float) -> str:
    """Return a duration with its unit: 1.62 ms."""
    size, name = time_unit(duration_ns)
    return f"{three_digits(duration_ns / size)} {name}"


def format_rate(bytes_per_s: float) -> str:
    """Return a throughput with its unit: 129 kB/s."""
    for size, name in ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")):
        if bytes_per_s >= size:
            return f"{three_digits(bytes_per_s / size)} {name}"
    return f"{three_digits(bytes_per_s)} B/s"


def plural(count: int, noun: str) -> str:
    """Return a count and its noun: 1 byte, 2 bytes."""
    return f"{grouped(count)} {noun}{'' if count == 1 else 's'}"


# ---- Distributions: percentiles, their ranges, HdrHistogram --------------------------
# Exact up to a million samples; beyond, and between machines, HdrHistogram counts
# (1 ns unit, 3 digits): those can be added, percentiles cannot.


def hdr_index(value: int) -> int:
    """Return the counter of a value: 2,048 linear sub-buckets, 1,024 per doubling."""
    shift = max(0, value.bit_length() - 11)
    return (shift << 10) + (value >> shift)


def hdr_highest(index: int) -> int:
    """Return the highest value that is counted at `index`."""
    shift = max(0, (index >> 10) - 1)
    return ((index - (shift << 10) + 1) << shift) - 1


def zigzag_varint(number: int) -> bytes:
    """Return a signed integer in ZigZag LEB128, as HdrHistogram writes counts."""
    number = number << 1 if number >= 0 else (-number << 1) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def zigzag_numbers(data: bytes) -> Iterator[int]:
    """Yield the signed integers of a ZigZag LEB128 sequence."""
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            yield number >> 1 if not number & 1 else -(number + 1 >> 1)
            number = shift = 0


def hdr_encode(counts: dict[int, int], highest: int) -> str:
    """Return the V2 compressed form in Base64 (HdrHistogram, encodeIntoByteBuffer)."""
    payload = bytearray()
    position = 0
    for index in sorted(counts):
        zeros = index - position
        if zeros:
            payload += zigzag_varint(-zeros if zeros > 1 else 0)
        payload += zigzag_varint(counts[index])
        position = index + 1
    highest = max(highest, 3_600_000_000_000)  # an hour, as other tools assume
    head = struct.pack(">iiiiqqd", 0x1C849313, len(payload), 0, 3, 1, highest, 1.0)
    body = zlib.compress(head + payload)
    return b64encode(struct.pack(">ii", 0x1C849314, len(body)) + body).decode()


def hdr_decode(text: str) -> Counter[int]:
    """Return the counts of a V2 compressed histogram; ValueError if it is none."""
    data = b64decode(text, validate=True)
    try:
        cookie, length = struct.unpack_from(">ii", data)
        body = zlib.decompress(data[8 : 8 + length])
        inner, size, offset, digits, lowest = struct.unpack_from(">iiiiq", body)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"not an HdrHistogram: {error}") from None
    if (cookie, inner, offset) != (0x1C849314, 0x1C849313, 0):
        raise ValueError("not an HdrHistogram in V2 compressed form")
    if (digits, lowest) != (3, 1):
        raise ValueError(f"histogram of {digits} digits, unit {lowest}; 3 and 1 wanted")
    counts: Counter[int] = Counter()
    position = 0
    for number in zigzag_numbers(body[40 : 40 + size]):
        if number > 0:
            counts[position] = number
        position += -number if number < 0 else 1
    return counts


def percentile_ranks(
    count: int, share: float, confidence: float = CONFIDENCE
) -> tuple[int, int] | None:
    """Return the ranks (1 to count) between which a percentile lies, None if unknown.

    The number of samples below the percentile is Binomial(count, share): the range
    from one order statistic to another holds it with a probability that needs no
    assumption about the distribution (Hahn and Meeker, Statistical Intervals, 5.2).
    """
    miss = 1 - confidence
    if count < 1 or share**count > miss:
        return None
    spread = 8 * math.sqrt(count * share * (1 - share)) + 8
    low = max(0, math.floor(count * share - spread))
    high = min(count, math.ceil(count * share + spread))
    chances = [binomial(count, share, k) for k in range(low, high + 1)]
    upper, above = high + 1, 0.0
    while above + chances[upper - 1 - low] <= miss / 2:
        upper -= 1
        above += chances[upper - low]
    if upper > count:
        upper, above = count, chances[-1]
    lower, below = low, 0.0
    while below + chances[lower - low] <= miss - above:
        below += chances[lower - low]
        lower += 1
    return (lower, upper) if lower >= 1 else None


def binomial(count: int, share: float, k: int) -> float:
    """Return the probability of k successes in `count` trials."""
    ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
    return math.exp(ways + k * math.log(share) + (count - k) * math.log1p(-share))


class Distribution:
    """Durations in ns: each one up to a million (`values`), then counts (`counts`)."""

    __slots__ = ("_sorted", "count", "counts", "maximum", "minimum", "total", "values")

    def __init__(self) -> None:
        self.count = self.total = self.maximum = 0
        self.minimum = sys.maxsize
        self.values: array[int] | None = array("q")
        self.counts: Counter[int] = Counter()  # by HdrHistogram index
        self._sorted = True

    def extend(self, values: array[int]) -> None:
        if not values:
            return
        self.count += len(values)
        self.total += sum(values)
        self.minimum = min(self.minimum, min(values))
        self.maximum = max(self.maximum, max(values))
        if self.values is not None and self.count <= EXACT_LIMIT:
            self.values.extend(values)
            self._sorted = False
        else:
            self.counts, self.values = self.histogram(), None
            self.counts.update(map(hdr_index, values))

    def merge(self, other: Distribution) -> None:
        """Add another distribution's samples, or its counts."""
        if other.values is not None:
            self.extend(other.values)
            return
        self.counts, self.values = self.histogram(), None
        self.counts.update(other.counts)
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def histogram(self) -> Counter[int]:
        """Return the HdrHistogram counts by index."""
        if self.values is None:
            return self.counts
        return Counter(map(hdr_index, self.values))

    def at_rank(self, rank: int) -> int:
        """Return the rank-th smallest value (from 1)."""
        if self.values is not None:
            if not self._sorted:
                self.values = array("q", sorted(self.values))
                self._sorted = True
            return self.values[rank - 1]
        for index in sorted(self.counts):
            rank -= self.counts[index]
            if rank <= 0:
                return max(self.minimum, min(self.maximum, hdr_highest(index)))
        return self.maximum

    def percentile(self, share: float) -> int:
        """Return the value at rank ⌈share · count⌉ (nearest rank); 0 when empty."""
        rank = math.ceil(round(share * self.count, 6))  # 0.9 · 10 is 9, not 9.000…1
        return self.at_rank(max(1, rank)) if self.count else 0

    def between(self, low: int, high: int) -> int:
        """Return how many values lie in low ≤ value < high (to a bucket's width)."""
        if self.values is not None:
            return sum(low <= value < high for value in self.values)
        at = ((hdr_highest(index), number) for index, number in self.counts.items())
        return sum(number for value, number in at if low <= value < high)

    def reported(self, name: str) -> int | None:
        """Return a percentile, or None where the sample cannot carry it."""
        carried = self.count >= NEEDED[name]
        return self.percentile(PERCENTILES[name]) if carried else None

    def range_of(
        self, share: float, confidence: float = CONFIDENCE
    ) -> tuple[int, int] | None:
        """Return the percentile's range by order statistics, None if not to be had."""
        ranks = percentile_ranks(self.count, share, confidence)
        return ranks and (self.at_rank(ranks[0]), self.at_rank(ranks[1]))

    def as_json(self) -> dict[str, Any]:
        empty = not self.count
        return {
            "count": self.count,
            "min": None if empty else self.minimum,
            "mean": None if empty else round(self.total / self.count),
            **{name: self.reported(name) for name in PERCENTILES},
            "max": None if empty else self.maximum,
            "hdr": hdr_encode(self.histogram(), self.maximum),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Distribution:
        """Return what `as_json` wrote; KeyError, TypeError or ValueError if not."""
        self = cls()
        self.counts, self.count = hdr_decode(data["hdr"]), int(data["count"])
        if self.count != sum(self.counts.values()):
            raise ValueError("its histogram has another count")
        if self.count:
            self.values = None
            self.minimum, self.maximum = int(data["min"]), int(data["max"])
            self.total = int(data["mean"]) * self.count
        return self


def compare(
    ours: Distribution, theirs: Distribution, share: float, confidence: float
) -> tuple[float, float, float] | None:
    """Return how much larger our percentile is: (ratio, lowest, highest), minus 1.

    The range joins both ranges on a log scale (MOVER: Zou and Donner, 2008).
    """
    a, b = ours.range_of(share, confidence), theirs.range_of(share, confidence)
    if not (a and b and min(a + b) > 0):
        return None
    p, q = math.log(ours.percentile(share)), math.log(theirs.percentile(share))
    down = math.hypot(p - math.log(a[0]), math.log(b[1]) - q)
    up = math.hypot(math.log(a[1]) - p, q - math.log(b[0]))
    return math.expm1(p - q), math.expm1(p - q - down), math.expm1(p - q + up)


# ---- Configuration and samples -------------------------------------------------------
# What a run is asked to do, and what a client hands over: rows of six numbers.


Addresses = list[tuple[int, tuple[Any, ...]]]  # (family, socket address), all tried


@dataclass(slots=True)
class Config:
    """A run, as the options describe it. Times in seconds, sizes in bytes."""

    target: str
    addresses: Addresses
    clients: int
    messages: int  # per client; 0: as many as the duration allows
    duration_s: float = 0.0  # 0: until all messages are done
    rate: float = 0.0  # messages per second of all clients; 0: closed loop
    ramp_s: float = 0.0
    message: bytes | None = None
    size: int = 0  # of a message with its newline; 0: as long as it is
    reconnect: bool = False
    timeout_s: float = 5.0
    any_reply: bool = False
    workers: int = 1
    direct: dict[str, Addresses] = field(default_factory=dict)  # by server name
    keep_replies: bool = False  # their text is shown later

    @property
    def planned(self) -> int:
        """Messages that the run should send; 0: not known before."""
        by_rate = int(self.rate * self.duration_s + 1e-9)
        by_count = self.clients * self.messages
        return min(by_rate, by_count) if by_rate and by_count else by_rate or by_count


def message_of(config: Config, client: int) -> bytes:
    """Return the bytes that a client sends, newline included."""
    text = config.message
    if text is None:
        text = b"Hello from client %d!" % client
    room = config.size - 1
    if config.size:
        text = text[:room] if room <= len(text) else (text + b" ").ljust(room, b"x")
    return text + b"\n"


@dataclass(slots=True)
class Chunk:
    """What a client measured since its last chunk: plain data, handed over whole."""

    client: int
    rows: array[int] = field(default_factory=lambda: array("q"))
    connects: array[int] = field(default_factory=lambda: array("q"))  # ns
    send_lateness: array[int] = field(default_factory=lambda: array("q"))  # ns
    servers: list[str] = field(default_factory=list)  # names, by the rows' codes
    connections: Counter[str] = field(default_factory=Counter)  # by server
    failures: list[tuple[int, int, str]] = field(default_factory=list)
    replies: list[bytes] = field(default_factory=list)  # beginnings, if kept
    direct: array[int] = field(default_factory=lambda: array("q"))  # differences, ns
    direct_failed: int = 0
    messages_before: int = 0  # number of the first row's message, less one
    retransmits: int = 0
    merged_segments: int = 0  # segments read together with another one
    unstamped: int = 0  # replies without a kernel timestamp
    final: bool = False

    def exchanges(self) -> Iterator[tuple[int, array[int]]]:
        """Yield (number of the message, row) in order."""
        for message, place in enumerate(range(0, len(self.rows), ROW_FIELDS), 1):
            yield self.messages_before + message, self.rows[place : place + ROW_FIELDS]

    def server_of(self, code: int) -> str:
        """Return the server that a row's code names, "" if none."""
        place = code >> 4 & 0xFFFF
        return "" if place == UNKNOWN_SERVER else self.servers[place]


Inbox = queue.SimpleQueue[Any]  # of (kind, payload): see Run.handle


class ExchangeError(Exception):
    """An exchange failed: `kind` is an index of OUTCOMES, the text says how."""

    def __init__(self, kind: int, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def why(error: OSError) -> str:
    """Return an error in a few words, without its number."""
    return (error.strerror or str(error)).lower()


# ---- One connection, one client ------------------------------------------------------
# The measuring itself. A reply costs one send and one receive; nothing is shared.


# (sent, first, last, seen, bytes): when the message was handed to the kernel, when the
# reply's first and last byte reached the kernel, and when the client's thread saw the
# last one, in ns of CLOCK_REALTIME (the timestamps' clock); the reply's length.
Exchange = tuple[int, int, int, int, int]
Notes = Sequence[tuple[int, int, bytes]]  # control messages: at most one, the stamp


def read_stamped(conn: socket.socket, size: int) -> tuple[bytes, Notes]:
    """Receive, with the stamp of the last segment consumed where there is one."""
    if TIMESTAMP_OPTION is None:
        return conn.recv(size), ()
    return conn.recvmsg(size, STAMP_SPACE)[:2]


class Connection:
    """A TCP connection to one address, used by its client's thread alone.

    `lock` guards `conn` between that thread, which replaces it, and the one that may
    cut it (the main one; "orders" in a worker): a closed descriptor's number can be
    another file's at once.
    """

    def __init__(self, addresses: Addresses, config: Config, message: bytes,
                 is_cut: threading.Event) -> None:  # fmt: skip
        self.addresses, self.message, self.is_cut = addresses, message, is_cut
        self.timeout_s, self.any_reply = config.timeout_s, config.any_reply
        self.clients = config.clients if config.message is None else 0
        self.waits_awake = config.clients == 1 and usable_cores() > 1
        self.room = max(4096, len(message) + 64)  # one read takes a usual reply whole
        self.longest = ANY_REPLY_BYTES if config.any_reply else 2 * self.room
        self.lock = threading.Lock()
        self.conn: socket.socket | None = None
        self.server = ""  # that answered last
        self.expected: bytes | None = None  # what it will answer again
        self.first_read = 1
        self.ended = False  # the reply was ended by the end of file
        self.replies = self.retransmits = self.merged_segments = self.unstamped = 0

    def open(self) -> int:
        """Connect and return the connect time in ns; raise ExchangeError."""
        began = time_ns()
        reason = "no address"
        for family, address in self.addresses:
            conn = None
            try:
                conn = socket.socket(family, socket.SOCK_STREAM)
                self.set_options(conn)
                conn.connect(address)
            except OSError as error:
                if conn:
                    conn.close()
                late = isinstance(error, (BlockingIOError, TimeoutError))
                reason = f"no answer in {self.timeout_s:g} s" if late else why(error)
                continue
            took = time_ns() - began
            with self.lock:
                self.conn = conn
                if self.is_cut.is_set():  # too early for cut() to see this socket
                    with contextlib.suppress(OSError):
                        conn.shutdown(socket.SHUT_RDWR)
            self.expected, self.first_read, self.replies = None, 1, 0
            self.ended, self.server = False, ""
            return took
        raise ExchangeError(CONNECT, reason)

    def set_options(self, conn: socket.socket) -> None:
        """Ask for timestamps (before the first segment), no delay, and deadlines."""
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if TIMESTAMP_OPTION is not None:
            with contextlib.suppress(OSError):
                conn.setsockopt(socket.SOL_SOCKET, TIMESTAMP_OPTION, 1)
        self.set_deadline(conn, self.timeout_s)

    def set_deadline(self, conn: socket.socket, seconds: float) -> None:
        """Bound the next receive; a connect and a send, too."""
        if TIMEVAL is None:
            conn.settimeout(max(seconds, 1e-6))
            return
        value = TIMEVAL.pack(*divmod(max(1, round(seconds * 1e6)), 1_000_000))
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def exchange(self) -> Exchange:
        """Send the message and read its reply; raise ExchangeError."""
        conn, phase = self.conn, SEND
        assert conn is not None
        sent = time_ns()
        try:
            conn.sendall(self.message)
            phase = RESET
            data, notes = read_stamped(conn, self.first_read)
        except OSError as error:
            raise self.failure(error, phase) from None
        return self.complete(sent, data, notes, time_ns())

    def repeat(
        self, rows: array[int], code: int, most: int, until_ns: int
    ) -> Exchange | None:
        """Make up to `most` exchanges like the last one, and append their rows.

        Here a run spends its time: one send, one receive, and nothing else that
        could be spared. The first exchange that is different (a reply in pieces, no
        timestamp) is returned, completed; None after `most` or `until_ns`.
        """
        conn, message, expected = self.conn, self.message, self.expected
        assert conn is not None and expected is not None
        send, size = conn.sendall, self.first_read
        receive = self.receive_awake if self.waits_awake else conn.recvmsg
        code |= len(expected) << 20
        before, phase = len(rows), SEND
        try:
            for _ in range(most):
                phase = SEND
                sent = time_ns()
                send(message)
                phase = RESET
                data, notes, _, _ = receive(size, STAMP_SPACE)
                seen = time_ns()
                if data != expected or not notes:
                    return self.complete(sent, data, notes, seen)
                seconds, nanos = unpack_timespec(notes[0][2])
                arrived = seconds * 1_000_000_000 + nanos
                if not sent <= arrived <= seen:
                    return self.complete(sent, data, notes, seen)
                rows.extend((sent, sent, arrived, arrived, seen, code))
                if seen > until_ns:
                    break
        except OSError as error:
            raise self.failure(error, phase) from None
        finally:
            self.replies += (len(rows) - before) // ROW_FIELDS
        return None

    def receive_awake(self, size: int, space: int) -> tuple[bytes, Notes, int, Any]:
        """Receive like recvmsg, but do not go to sleep at once.

        A lone client would spend as long on waking up as many a server on its reply.
        """
        assert self.conn is not None
        receive = self.conn.recvmsg
        for _ in range(AWAKE_TRIES):
            try:
                return receive(size, space, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
        return receive(size, space)

    def complete(self, sent: int, data: bytes, notes: Notes, seen: int) -> Exchange:
        """Read what is missing of a reply, and check it; raise ExchangeError."""
        first = self.arrival(notes, sent, seen) if data else seen
        self.replies += 1
        if data == self.expected:
            return sent, first, first, seen, len(data)
        reply, last, seen = self.receive_rest(data, first, seen, sent)
        self.check(reply)
        return sent, first, last, seen, len(reply)

    def arrival(self, notes: Notes, sent: int, seen: int) -> int:
        """Return when the last segment read reached the kernel, by its stamp if any."""
        if notes:
            seconds, nanos = unpack_timespec(notes[0][2])
            arrived: int = seconds * 1_000_000_000 + nanos
            if sent <= arrived <= seen:  # else the clock was stepped
                return arrived
        self.unstamped += 1
        return seen

    def failure(self, error: OSError, phase: int) -> ExchangeError:
        """Return what an error of a send (`phase` SEND) or a receive means."""
        if phase == SEND:
            return self.send_error(error)
        if isinstance(error, (BlockingIOError, TimeoutError)):
            return ExchangeError(TIMEOUT, f"no reply in {self.timeout_s:g} s")
        return ExchangeError(RESET, why(error))

    def receive_rest(
        self, data: bytes, last: int, seen: int, sent: int
    ) -> tuple[bytes, int, int]:
        """Read on until the reply is whole: return (reply, last byte's arrival, now).

        A reply is whole when a newline has come; what came with it belongs to it.
        The first reply of a connection is read one byte first, to have the first
        byte's own stamp. If it was one segment, later ones are read at once.
        """
        conn = self.conn
        assert conn is not None
        reply, piece, reads, first = bytearray(data), data, 1, last
        deadline, armed = sent + round(self.timeout_s * 1e9), False
        while piece and b"\n" not in piece:
            if (reads > 1 and last > deadline) or len(reply) > self.longest:
                raise self.endless(reply)
            # When time is up, what the kernel has already is still in time.
            left_s = (deadline - seen) / 1e9
            if armed or left_s < 0.99 * self.timeout_s:
                armed = True
                self.set_deadline(conn, left_s)
            try:
                piece, notes = read_stamped(conn, self.room)
            except (BlockingIOError, TimeoutError):
                raise self.endless(reply) from None
            except OSError as error:
                after = plural(len(reply), "byte")
                raise ExchangeError(RESET, f"{why(error)} after {after}") from None
            seen = time_ns()
            last = self.arrival(notes, sent, seen) if piece else last
            reply += piece
            reads += 1
        if armed:
            self.set_deadline(conn, self.timeout_s)
        if not piece:
            self.end_of_file(reply)
        if not self.first_read == reads == 1:  # one byte and newline: nothing learnt
            whole = reads <= 2 and (last == first or TIMESTAMP_OPTION is None)
            self.first_read = self.room if whole or reads == 1 else 1
        return bytes(reply), last, seen

    def endless(self, reply: bytearray) -> ExchangeError:
        """Return why reading stops before the reply has ended."""
        size = plural(len(reply), "byte")
        if len(reply) > self.longest:
            return ExchangeError(MISMATCH, f"no end of the reply after {size}")
        text = f"no whole reply in {self.timeout_s:g} s, only {size}"
        return ExchangeError(TIMEOUT, text)

    def end_of_file(self, reply: bytearray) -> None:
        """Take the end of file as the end of any reply, or raise ExchangeError."""
        self.ended = True
        if not (self.any_reply and reply):
            when = f"after {plural(len(reply), 'byte')}" if reply else "without a reply"
            raise ExchangeError(CLOSED, f"connection closed {when}")

    def check(self, reply: bytes) -> None:
        """Learn who answered; raise ExchangeError unless it is our message."""
        match = REPLY.match(reply)
        if match:
            self.server = match[1].decode()
        if self.any_reply or (match and reply[match.end() :] == self.message):
            self.expected = reply
            return
        if ERROR.match(reply):
            raise ExchangeError(ERROR_REPLY, safe_text(reply))
        text = safe_text(reply, 60)
        body = reply[match.end() :] if match else reply
        owner = re.match(rb"Hello from client (\d{1,9})!", body)
        if owner and 1 <= int(owner[1]) <= self.clients:
            text = f"reply belongs to client {int(owner[1])}: {text}"
        raise ExchangeError(MISMATCH, text)

    def send_error(self, error: OSError) -> ExchangeError:
        """Return why a message could not be sent, in the server's words if any."""
        assert self.conn is not None
        if isinstance(error, (BlockingIOError, TimeoutError)):
            return ExchangeError(SEND, f"not taken in {self.timeout_s:g} s")
        with contextlib.suppress(OSError):
            self.set_deadline(self.conn, 0.001)
            reply = self.conn.recv(self.room)
            if ERROR.match(reply):
                return ExchangeError(ERROR_REPLY, safe_text(reply))
        return ExchangeError(SEND, why(error))

    def close(self) -> None:
        """Close, and keep what the kernel knows about the connection."""
        with self.lock:
            conn, self.conn = self.conn, None
        if conn is None:
            return
        if hasattr(socket, "TCP_INFO"):
            with contextlib.suppress(OSError, struct.error):
                asked = socket.IPPROTO_TCP, socket.TCP_INFO
                info = conn.getsockopt(*asked, TCP_INFO_BYTES)
                (resent,) = struct.unpack_from("@I", info, TCP_INFO_RETRANSMITS)
                (came,) = struct.unpack_from("@I", info, TCP_INFO_DATA_SEGMENTS_IN)
                self.retransmits += resent
                if self.first_read > 1 and self.expected is not None:
                    self.merged_segments += max(0, came - self.replies)
        conn.close()

    def cut(self) -> None:
        """End a wait at once: the run is interrupted (main thread, or "orders")."""
        with self.lock, contextlib.suppress(OSError):
            if self.conn is not None:
                self.conn.shutdown(socket.SHUT_RDWR)


@dataclass(slots=True)
class Gates:
    """What a group's threads wait for. Plain fields are written before `go` is set."""

    connect: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    cut: threading.Event = field(default_factory=threading.Event)
    start_ns: int = 0  # CLOCK_MONOTONIC: a schedule must not follow a clock step
    end_ns: int = sys.maxsize  # CLOCK_MONOTONIC: the end of --duration
    to_realtime_ns: int = 0  # CLOCK_REALTIME less CLOCK_MONOTONIC at the start


class Client(threading.Thread):
    """One client: its thread, its connection, its own rows until it hands them over."""

    def __init__(self, number: int, config: Config, gates: Gates, inbox: Inbox) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.number, self.config, self.gates, self.inbox = number, config, gates, inbox
        self.message = message_of(config, number)
        self.link = Connection(config.addresses, config, self.message, gates.cut)
        # With --direct, to the same server.
        self.straight = Connection([], config, self.message, gates.cut)
        self.chunk = Chunk(number)
        self.rows = self.chunk.rows
        self.hand_over_at = 0  # CLOCK_MONOTONIC, ns
        self.server, self.code = "", UNKNOWN_SERVER << 4
        self.is_special = bool(config.keep_replies or config.direct or config.reconnect)
        is_plain = not (self.is_special or config.rate)
        self.may_repeat = is_plain and TIMESTAMP_OPTION is not None
        self.retry_s = FIRST_RETRY_S
        self.refusal: ExchangeError | None = None  # of the connect before the start

    def run(self) -> None:
        """Connect, wait for the common start, converse (the thread's whole life)."""
        try:
            self.gates.connect.wait()
            if not self.config.ramp_s:
                self.connect_first()
            self.gates.go.wait()
            if self.config.ramp_s:
                share = (self.number - 1) / self.config.clients
                delay_ns = int(share * self.config.ramp_s * 1e9)
                self.wait_until(self.gates.start_ns + delay_ns)
            self.converse()
        finally:
            self.close()
            self.hand_over(final=True)

    def connect_first(self) -> None:
        """Connect before the start, and tell the main thread how it went."""
        try:
            self.open()
        except ExchangeError as error:
            self.refusal = error
        self.inbox.put(("connected", (self.number, str(self.refusal or ""))))

    def converse(self) -> None:
        """Exchange message after message until all are done or the run is stopped."""
        stop, messages = self.gates.stop, self.config.messages
        while not messages or self.done < messages:
            if stop.is_set() and self.refusal is None:
                return
            due = self.await_due() if self.config.rate else 0
            if due is None:
                return
            self.attempt(due)

    def await_due(self) -> int | None:
        """Wait for the next message's place in the schedule; None if it has no more.

        Returned is the moment on CLOCK_REALTIME, which may have been stepped.
        """
        place = self.number - 1 + self.config.clients * self.done
        if 0 < self.config.planned <= place:
            return None
        due = self.gates.start_ns + int(place * 1e9 / self.config.rate)
        now = time.monotonic_ns()
        self.wait_until(due)
        if self.gates.stop.is_set():
            return None
        late = time.monotonic_ns() - max(due, now)  # of a client that was free
        self.chunk.send_lateness.append(late)
        offset, usual = clock_offset(), self.gates.to_realtime_ns
        return due + (usual if abs(offset - usual) < CLOCK_STEP_NS else offset)

    def wait_until(self, moment_ns: int) -> None:
        """Wait for a moment of CLOCK_MONOTONIC, or the stop."""
        delay_ns = moment_ns - time.monotonic_ns()
        if delay_ns > 0:
            self.gates.stop.wait(delay_ns / 1e9)

    @property
    def done(self) -> int:
        """Messages so far, failed ones included."""
        return self.chunk.messages_before + len(self.rows) // ROW_FIELDS

    def attempt(self, due: int) -> None:
        """Make an exchange, or many alike, and append rows, whatever comes of it."""
        link = self.link
        began = time_ns() if link.conn is None else 0
        try:
            if link.conn is None:
                self.open()
            if self.may_repeat and link.first_read > 1:
                found = self.repeat()
            else:
                found = link.exchange()
        except ExchangeError as error:
            self.fail(due or began, error)
            return
        if found:
            self.record(due, *found)
        if time.monotonic_ns() > self.hand_over_at:
            self.hand_over()

    def repeat(self) -> Exchange | None:
        """Make as many exchanges as are left, until the next hand-over or the end."""
        most = min(MOST_REPEATS, (self.config.messages or sys.maxsize) - self.done)
        left_ns = min(self.hand_over_at, self.gates.end_ns) - time.monotonic_ns()
        until_ns = time_ns() + left_ns
        return self.link.repeat(self.rows, self.code, most, until_ns)

    def record(
        self, due: int, sent: int, first: int, last: int, seen: int, received: int
    ) -> None:
        """Append an exchange's row, and do what only some runs need."""
        if self.link.server != self.server:
            self.name_server()
        code = self.code | received << 20
        self.rows.extend((due or sent, sent, first, last, seen, code))
        if self.is_special:
            self.attend_to(first - sent)
        if self.link.ended:
            self.link.close()

    def attend_to(self, latency_ns: int) -> None:
        """Do what only some runs need after an exchange."""
        link = self.link
        if self.config.keep_replies:
            self.chunk.replies.append((link.expected or b"")[:200])
        if self.config.direct and link.server in self.config.direct:
            self.go_straight(latency_ns)
        if self.config.reconnect:
            link.close()

    def open(self) -> None:
        """Open the connection, or raise the error that it met before the start."""
        refusal, self.refusal = self.refusal, None
        if refusal:
            raise refusal
        self.chunk.connects.append(self.link.open())
        self.server = ""

    def name_server(self) -> None:
        """Note who answers on this connection: an index in the chunk's servers."""
        self.server = self.link.server
        if self.server not in self.chunk.servers:
            self.chunk.servers.append(self.server)
        self.code = self.chunk.servers.index(self.server) << 4
        self.chunk.connections[self.server] += 1

    def fail(self, due: int, error: ExchangeError) -> None:
        """Record a failed exchange: its waiting time, its kind, its words."""
        if self.gates.cut.is_set():
            return  # the run was interrupted: neither confirmed nor failed
        now = time_ns()
        due = due or now
        self.rows.extend((due, due, now, now, now, UNKNOWN_SERVER << 4 | error.kind))
        if len(self.chunk.failures) < 10:  # examples; the rows have them all
            self.chunk.failures.append((self.done, error.kind, str(error)))
        if self.config.keep_replies:
            self.chunk.replies.append(b"")
        self.close()
        if error.kind == CONNECT and not self.gates.stop.is_set():
            self.gates.stop.wait(self.retry_s)
            self.retry_s = min(LAST_RETRY_S, 2 * self.retry_s)
        else:
            self.retry_s = FIRST_RETRY_S
        self.hand_over()

    def go_straight(self, through_ns: int) -> None:
        """Make the same exchange straight with the same server; note the difference."""
        straight, addresses = self.straight, self.config.direct[self.link.server]
        if straight.addresses != addresses:
            straight.close()
            straight.addresses = addresses
        try:
            if straight.conn is None:
                straight.open()
            sent, first, *_ = straight.exchange()
            self.chunk.direct.append(through_ns - (first - sent))
        except ExchangeError:
            self.chunk.direct_failed += 1
            straight.close()

    def close(self) -> None:
        self.link.close()
        self.straight.close()

    def hand_over(self, final: bool = False) -> None:
        """Give the rows to the main thread, and go on with an empty chunk."""
        chunk, link = self.chunk, self.link
        chunk.final = final
        chunk.retransmits, link.retransmits = link.retransmits, 0
        chunk.merged_segments, link.merged_segments = link.merged_segments, 0
        chunk.unstamped, link.unstamped = link.unstamped, 0
        done, names = self.done, list(chunk.servers)
        self.chunk = Chunk(self.number, servers=names, messages_before=done)
        self.rows = self.chunk.rows
        self.hand_over_at = time.monotonic_ns() + HANDOVER_NS
        self.inbox.put(("chunk", chunk))

    def cut(self) -> None:
        """End its waits (main thread, or "orders")."""
        self.link.cut()
        self.straight.cut()


# ---- Groups: the threads of this process, and of worker processes --------------------
# A worker is this script again: orders come on its standard input, what its clients
# hand over goes out on its standard output. Its end of the pipe tells it when to go.


# An imported script is compiled once, a started one each time.
WORKER = (
    "import importlib, sys; sys.path.insert(0, sys.argv[1]);"
    " sys.exit(importlib.import_module(sys.argv[2][:-3]).serve_as_worker())"
)


class Group:
    """Clients that run as threads of this process."""

    def __init__(self, config: Config, numbers: range, inbox: Inbox) -> None:
        self.gates, self.duration_s = Gates(), config.duration_s
        self.members = [Client(k, config, self.gates, inbox) for k in numbers]

    def start(self) -> None:
        """Start the threads; OSError when the system refuses one."""
        threading.stack_size(STACK_BYTES)
        try:
            for member in self.members:
                member.start()
        except RuntimeError:
            words = "the system allows no more threads: start fewer clients"
            raise OSError(errno.EAGAIN, words) from None
        finally:
            threading.stack_size(0)

    def order(self, name: str, *arguments: Any) -> None:
        """Call a method by its name: connect, go, stop or cut."""
        getattr(self, name)(*arguments)

    def connect(self) -> None:
        self.gates.connect.set()

    def go(self, start_ns: int) -> None:
        """Let all start at a moment of CLOCK_MONOTONIC."""
        self.gates.start_ns = start_ns
        self.gates.to_realtime_ns = clock_offset()
        if self.duration_s:
            self.gates.end_ns = start_ns + int(self.duration_s * 1e9)
        self.gates.go.set()

    def stop(self) -> None:
        """Send nothing more; exchanges in flight may end."""
        self.gates.stop.set()

    def cut(self) -> None:
        """Stop, and end the exchanges in flight."""
        self.gates.cut.set()
        self.gates.stop.set()
        self.gates.connect.set()
        self.gates.go.set()
        for member in self.members:
            member.cut()

    def close(self, timeout_s: float = 1.0) -> None:
        """Wait for the threads; one that hangs in connect() ends with its deadline."""
        deadline = time.monotonic() + timeout_s
        for member in self.members:
            if member.ident is not None:
                member.join(max(0.0, deadline - time.monotonic()))


class WorkerGroup:
    """Clients that run as threads of another process (see `serve_as_worker`)."""

    def __init__(
        self, config: Config, numbers: range, inbox: Inbox, place: int
    ) -> None:
        self.numbers, self.config, self.inbox = numbers, config, inbox
        self.process: subprocess.Popen[bytes] | None = None
        self.reader = threading.Thread(
            target=self.read_events, name=f"worker-{place}", daemon=True
        )

    def start(self) -> None:
        """Start the process and its reader; OSError when the system refuses."""
        folder, name = os.path.split(os.path.abspath(__file__))
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", WORKER, folder, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the main process, which tells us
        )
        plain = {f.name: getattr(self.config, f.name) for f in fields(Config)}
        self.order(plain, self.numbers)
        self.reader.start()

    def order(self, *words: Any) -> None:
        """Have a method of the other process's Group called: its name, arguments."""
        assert self.process and self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # read_events sees that it died
            pickle.dump(words, self.process.stdin)
            self.process.stdin.flush()

    def read_events(self) -> None:
        """Pass the worker's events on (thread `worker-K`) until it ends."""
        assert self.process and self.process.stdout
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                kind, payload = pickle.load(self.process.stdout)
                if kind == "chunk":
                    payload = Chunk(*payload)
                self.inbox.put((kind, payload))
        self.inbox.put(("ended", self.numbers))

    def close(self, timeout_s: float = 5.0) -> None:
        """Wait for the process to end by itself, and make it end if it does not."""
        if self.process is None:  # the system had refused one
            return
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        self.process.stdout.close()


def serve_as_worker() -> int:
    """Run a group for the process at the other end of the standard streams."""
    orders, events = sys.stdin.buffer, sys.stdout.buffer
    plain, numbers = pickle.load(orders)
    raise_descriptor_limit()
    sys.setswitchinterval(1.0)  # all threads wait in calls: none need be made to yield
    inbox: Inbox = queue.SimpleQueue()
    group = Group(Config(**plain), numbers, inbox)
    group.start()
    follower = threading.Thread(
        target=follow_orders, args=(orders, group), name="orders", daemon=True
    )
    follower.start()
    left = len(numbers)
    with contextlib.suppress(BrokenPipeError):
        while left:
            kind, payload = next_event(inbox)
            if kind == "chunk":
                left -= payload.final
                payload = [getattr(payload, f.name) for f in fields(Chunk)]
            if kind != "tick":
                pickle.dump((kind, payload), events)
                events.flush()
    group.close()
    follower.join()
    return 0


def follow_orders(orders: IO[bytes], group: Group) -> None:
    """Do what the main process says (thread `orders`); its end is an order, too."""
    with contextlib.suppress(EOFError):
        while True:
            group.order(*pickle.load(orders))
    group.cut()


def next_event(inbox: Inbox) -> tuple[str, Any]:
    """Return the next event; ("tick", None) when there is none for a while."""
    before = time.monotonic()
    try:
        event: tuple[str, Any] = inbox.get(timeout=TICK_S)
    except queue.Empty:
        event = ("tick", None)
    late_s = time.monotonic() - before - TICK_S
    if late_s > STALL_S:
        inbox.put(("stalled", late_s))
    return event


def make_groups(config: Config, inbox: Inbox) -> Sequence[Group | WorkerGroup]:
    """Return the groups of a run: this process, or as many workers as asked for."""
    count = min(config.workers, config.clients)
    if count <= 1:
        return [Group(config, range(1, config.clients + 1), inbox)]
    edges = [1 + config.clients * k // count for k in range(count + 1)]
    parts = enumerate(itertools.starmap(range, itertools.pairwise(edges)), 1)
    return [WorkerGroup(config, numbers, inbox, k) for k, numbers in parts]


def usable_cores() -> int:
    """Return how many processor cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def raise_descriptor_limit() -> int | None:
    """Raise the limit of open files as far as it goes; return it, None for no limit."""
    try:
        import resource
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return None if soft == resource.RLIM_INFINITY else soft


# ---- The run: from the common start to a tally ---------------------------------------
# The main thread owns the tally; it alone adds to it, from chunks handed over.


@dataclass(slots=True)
class ServerFigures:
    """What one server confirmed, and how fast."""

    confirmed: int = 0
    connections: int = 0
    clients: set[int] = field(default_factory=set)
    latency: Distribution = field(default_factory=Distribution)


@dataclass(slots=True)
class Gap:
    """The longest time in which a client had no good reply, in ns."""

    length_ns: int = 0
    client: int = 0
    from_ns: int = 0  # since the start of the run
    open_end: bool = False  # it lasted until the end of the run


class Tally:
    """Everything that the chunks of a run add up to, in bounded memory."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.sizes: dict[int, int] = {}  # bytes of a client's message
        self.start_ns = 0  # CLOCK_REALTIME
        self.end_ns = 0
        self.kept: list[Chunk] = []  # for the lines, the dots, and the CSV
        self.exchanges = 0
        self.bytes_sent = self.bytes_received = 0
        self.latency, self.response = Distribution(), Distribution()
        self.connect, self.lateness = Distribution(), Distribution()
        self.send_lateness = Distribution()  # open loop: due, free, not awake
        self.backlog_ns = 0  # open loop: due, but the client's last reply was not there
        self.last_seen: dict[int, int] = {}
        self.direct, self.direct_failed = Distribution(), 0
        self.servers: dict[str, ServerFigures] = {}
        self.outcomes: Counter[int] = Counter()
        self.examples: dict[tuple[int, str], list[tuple[int, int]]] = {}
        self.slowest: list[tuple[Any, ...]] = []  # by latency, the slowest first
        self.timeline: Timeline | None = None  # for the report
        self.gap = Gap()
        self.last_good: dict[int, int] = {}
        self.retransmits = self.merged_segments = self.unstamped = 0
        self.slow_connects = 0
        self.recent: array[int] = array("q")  # latencies since the last progress line

    def take(self, chunk: Chunk) -> None:
        """Add what a client handed over."""
        rows = chunk.rows
        self.exchanges += len(rows) // ROW_FIELDS
        self.connect.extend(chunk.connects)
        self.slow_connects += sum(took >= SYN_RETRY_NS for took in chunk.connects)
        self.send_lateness.extend(chunk.send_lateness)
        self.direct.extend(chunk.direct)
        self.direct_failed += chunk.direct_failed
        self.retransmits += chunk.retransmits
        self.merged_segments += chunk.merged_segments
        self.unstamped += chunk.unstamped
        for name, number in chunk.connections.items():
            self.server(name).connections += number
        for message, kind, text in chunk.failures:
            self.add_example(kind, text, chunk.client, message)
        if rows:
            self.end_ns = max(self.end_ns, rows[-2])
            if self.config.rate:
                self.add_backlog(chunk.client, rows)
            for key, part in split_rows(rows).items():
                self.add_part(chunk, key, part)
            self.find_gap(chunk)
            self.kept.append(chunk)
            if self.exchanges > EXACT_LIMIT:  # a long run is its figures alone
                self.kept.clear()

    def add_backlog(self, client: int, rows: array[int]) -> None:
        """Note how long messages of an open loop waited for their client to be free."""
        due, seen = rows[0::6], rows[4::6]
        free = [self.last_seen.get(client, 0), *seen[:-1]]
        self.last_seen[client] = seen[-1]
        self.backlog_ns += sum(max(0, f - d) for f, d in zip(free, due, strict=True))

    def add_part(self, chunk: Chunk, key: int, rows: array[int]) -> None:
        """Add rows of one outcome and one server: here rows become metrics."""
        outcome, name = key & 15, chunk.server_of(key)
        count = len(rows) // ROW_FIELDS
        self.outcomes[outcome] += count
        due, sent, first, last, seen, codes = (rows[k::6] for k in range(6))
        if outcome != CONFIRMED:
            if self.timeline:
                self.timeline.add_failures(self.start_ns, seen)
            return
        latency = array("q", map(operator.sub, first, sent))
        self.latency.extend(latency)
        self.recent.extend(latency[-100:])
        self.response.extend(array("q", map(operator.sub, last, due)))
        self.lateness.extend(array("q", map(operator.sub, seen, last)))
        self.bytes_sent += count * self.size_of(chunk.client)
        self.bytes_received += sum(code >> 20 for code in codes)
        if name:
            server = self.server(name)
            server.confirmed += count
            server.latency.extend(latency)
            if self.config.clients <= CLIENTS_SHOWN:
                server.clients.add(chunk.client)
        if self.timeline:
            self.timeline.add(self.start_ns, sent, latency, last)
            # Each with its parts, for the report's table.
            who = itertools.repeat(chunk.client), itertools.repeat(name)
            found = zip(latency, *who, due, sent, first, last, seen, strict=False)
            self.slowest = heapq.nlargest(SLOWEST_SHOWN, [*self.slowest, *found])

    def size_of(self, client: int) -> int:
        if client not in self.sizes:
            self.sizes[client] = len(message_of(self.config, client))
        return self.sizes[client]

    def server(self, name: str) -> ServerFigures:
        return self.servers.setdefault(name, ServerFigures())

    def add_example(self, kind: int, text: str, client: int, message: int) -> None:
        """Keep the first few examples of each way to fail."""
        if (kind, text) in self.examples or len(self.examples) < 20:
            places = self.examples.setdefault((kind, text), [])
            if len(places) < 10:
                places.append((client, message))

    def find_gap(self, chunk: Chunk) -> None:
        """Note the longest time between two good replies of this client."""
        rows = chunk.rows
        since = self.last_good.get(chunk.client, self.start_ns)
        lasts = zip(rows[3::6], rows[5::6], strict=True)
        good = [last for last, code in lasts if code & 15 == CONFIRMED]
        if good:
            before = [since, *good[:-1]]
            gaps = map(operator.sub, good, before)
            longest, start = max(zip(gaps, before, strict=True))
            self.note_gap(longest, chunk.client, start)
            self.last_good[chunk.client] = since = good[-1]
        if rows[-1] & 15 != CONFIRMED:  # it ends with a failure: the gap is still open
            self.note_gap(rows[-2] - since, chunk.client, since, open_end=True)

    def note_gap(
        self, length_ns: int, client: int, since_ns: int, open_end: bool = False
    ) -> None:
        if length_ns > self.gap.length_ns:
            self.gap = Gap(length_ns, client, since_ns - self.start_ns, open_end)

    @property
    def uses_kernel_stamps(self) -> bool:
        """Whether arrival times are the kernel's, a few missing ones apart."""
        return TIMESTAMP_OPTION is not None and (
            not self.confirmed or self.unstamped < self.confirmed
        )

    def direct_figures(self) -> dict[str, Any]:
        """Return what the balancer adds at the median, paired, with its range."""
        around = self.direct.range_of(0.5) or (None, None)
        return {
            "pairs": self.direct.count,
            "failed": self.direct_failed,
            "p50": self.direct.percentile(0.5) if self.direct.count else None,
            "low": around[0],
            "high": around[1],
        }

    @property
    def confirmed(self) -> int:
        return self.outcomes[CONFIRMED]

    @property
    def failed(self) -> int:
        return self.outcomes.total() - self.confirmed


def split_rows(rows: array[int]) -> dict[int, array[int]]:
    """Return the rows by outcome and server (the code less its bytes)."""
    keys = {code & 0xFFFFF for code in rows[5::ROW_FIELDS]}
    if len(keys) == 1:
        return {keys.pop(): rows}
    parts: defaultdict[int, array[int]] = defaultdict(lambda: array("q"))
    for place in range(0, len(rows), ROW_FIELDS):
        row = rows[place : place + ROW_FIELDS]
        parts[row[5] & 0xFFFFF].extend(row)
    return parts


@dataclass(slots=True)
class Course:
    """How a run went, besides what its chunks tell: the main thread's own notes."""

    started: float = 0.0  # seconds since the epoch
    connected: int = 0
    connect_wall_ns: int = 0  # all connects before the start
    refusals: Counter[str] = field(default_factory=Counter)  # words of failed connects
    wall_s: float = 0.0  # from the common start to the last reply
    interrupted: bool = False
    lost: int = 0  # clients whose worker died
    stalls_s: list[float] = field(default_factory=list)
    clock_step_ns: int = 0
    kernel: Counter[str] = field(default_factory=Counter)  # growth of `kernel_counters`
    cpu_s: float = 0.0


class Run:
    """One run: starts the groups together, collects, and ends them whatever happens."""

    def __init__(self, config: Config, inbox: Inbox) -> None:
        self.config, self.inbox = config, inbox
        self.groups = make_groups(config, inbox)
        self.tally, self.course = Tally(config), Course()
        self.open_clients = set(range(1, config.clients + 1))
        self.waiting = self.open_clients.copy()  # for their first connect
        self.listeners: list[Callable[[Chunk], None]] = []

    def execute(self, progress: Progress) -> None:
        """Run from the first connect to the last reply (main thread)."""
        with stamping_kernel():
            before, clock, cpu = kernel_counters(), clock_offset(), os.times()
            self.course.started = time.time()
            try:
                self.start_together()
                self.collect(progress)
            finally:
                for group in self.groups:
                    group.close()
            self.drain()
            after, cpu_after = kernel_counters(), os.times()
        self.course.kernel = Counter({k: after[k] - before[k] for k in after})
        self.course.clock_step_ns = clock_offset() - clock
        self.course.cpu_s = sum(cpu_after[:4]) - sum(cpu[:4])
        wall_ns = max(0, self.tally.end_ns - self.tally.start_ns)
        if abs(self.course.clock_step_ns) > CLOCK_STEP_NS:
            wall_ns = time.monotonic_ns() - self.start_ns
        self.course.wall_s = wall_ns / 1e9

    def start_together(self) -> None:
        """Start the threads, connect them all, and let them go at one moment."""
        for group in self.groups:
            group.start()
        began = time.monotonic_ns()
        self.order("connect")
        while self.waiting and not self.config.ramp_s and not self.course.interrupted:
            self.handle(*next_event(self.inbox))
        self.course.connect_wall_ns = time.monotonic_ns() - began
        if not self.config.ramp_s and not self.course.connected:
            self.order("stop")  # nobody there: the one attempt is on record
        self.start_ns = time.monotonic_ns()
        self.tally.start_ns = self.start_ns + clock_offset()
        self.order("go", self.start_ns)

    def collect(self, progress: Progress) -> None:
        """Take chunks until every client has handed over its last one."""
        ends_at = self.start_ns + (self.config.duration_s or math.inf) * 1e9
        while self.open_clients:
            self.handle(*next_event(self.inbox))
            if time.monotonic_ns() >= ends_at:
                ends_at = math.inf
                self.order("stop")
            progress.draw(self.tally)
        progress.clear()

    def order(self, name: str, *arguments: Any) -> None:
        for group in self.groups:
            group.order(name, *arguments)

    def handle(self, kind: str, payload: Any) -> None:
        """Act on one event."""
        if kind == "chunk":
            self.tally.take(payload)
            for listener in self.listeners:
                listener(payload)
            if payload.final:
                self.open_clients.discard(payload.client)
                self.waiting.discard(payload.client)
        elif kind == "connected":
            number, words = payload
            self.waiting.discard(number)
            self.course.connected += not words
            self.course.refusals[words] += bool(words)
        elif kind == "ended":  # a worker: what it has not handed over is lost
            lost = self.open_clients.intersection(payload)
            self.course.lost += len(lost)
            self.open_clients -= lost
            self.waiting -= lost
        elif kind == "stalled":
            self.course.stalls_s.append(payload)
        elif kind == "signal":
            self.course.interrupted = True
            self.order("cut")

    def drain(self) -> None:
        """Take what is left in the inbox when all clients have ended."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.handle(*self.inbox.get_nowait())


@contextlib.contextmanager
def stamping_kernel() -> Iterator[None]:
    """Keep one socket that wants timestamps: the kernel turns them on with a delay."""
    with socket.socket() as holder:
        if TIMESTAMP_OPTION is not None:
            with contextlib.suppress(OSError):
                holder.setsockopt(socket.SOL_SOCKET, TIMESTAMP_OPTION, 1)
        yield


def clock_offset() -> int:
    """Return CLOCK_REALTIME less CLOCK_MONOTONIC in ns: it changes when one is set."""
    return time_ns() - time.monotonic_ns()


def kernel_counters() -> dict[str, int]:
    """Return counters of this machine's TCP that explain lost time ({} if none)."""
    wanted = ("ListenOverflows", "ListenDrops", "TCPSynRetrans", "TCPTimeouts")
    try:
        lines = Path("/proc/net/netstat").read_text().splitlines()
    except OSError:
        return {}
    names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
    found = dict(zip(names, values, strict=False))
    return {name: int(found[name]) for name in wanted if name in found}


# ---- The summary, and its judgement --------------------------------------------------
# One object from a run, from a file, or from several: the outputs read nothing else.


@dataclass(slots=True)
class Summary:
    """A run in figures. Metrics are as in the map at the top; times in ns or s."""

    command: list[str]
    started: str  # UTC
    target: str
    clients: int
    wall_s: float  # from the common start to the last reply
    timestamps: str  # "kernel" or "user": whose clock says when a byte arrived
    interrupted: bool
    planned: int
    confirmed: int
    bytes_sent: int  # of confirmed exchanges
    bytes_received: int
    latency: Distribution  # message handed to the kernel → reply's first byte there
    response: Distribution  # message due → reply's last byte in the kernel
    connect: Distribution  # TCP connect alone, part of neither
    servers: dict[str, ServerFigures]
    failures: dict[str, int]  # by kind
    reasons: list[str]  # not to trust the run; none: valid
    notices: list[str] = field(default_factory=list)  # good to know
    headline: str = ""  # how it was loaded
    tally: Tally | None = None  # of a run of our own
    course: Course | None = None

    @property
    def metrics(self) -> dict[str, Distribution]:
        """The metrics that have values, by name."""
        names = "latency", "response time", "connect"
        found = zip(names, (self.latency, self.response, self.connect), strict=True)
        return {name: metric for name, metric in found if metric.count}

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def per_s(self) -> float:
        """Confirmed exchanges per second of wall time."""
        return self.confirmed / self.wall_s if self.wall_s else 0.0

    @property
    def bytes_per_s(self) -> float:
        """Throughput of the run: all confirmed bytes per second of wall time."""
        total = self.bytes_sent + self.bytes_received
        return total / self.wall_s if self.wall_s else 0.0

    @property
    def verdict(self) -> str:
        return "doubtful" if self.reasons else "valid"

    def as_json(self) -> dict[str, Any]:
        """Return what --json writes: `read_summary` reads it back."""
        data: dict[str, Any] = {
            "version": 1,
            "command": self.command,
            "started": self.started,
            "target": self.target,
            "clients": self.clients,
            "wall_s": round(self.wall_s, 6),
            "timestamps": self.timestamps,
            "interrupted": self.interrupted,
            "exchanges": {
                "planned": self.planned,
                "confirmed": self.confirmed,
                "failed": self.failed,
                "per_s": round(self.per_s, 1),
            },
            "bytes": {
                "sent": self.bytes_sent,
                "received": self.bytes_received,
                "per_s": round(self.bytes_per_s, 1),
            },
            "latency_ns": self.latency.as_json(),
            "response_time_ns": self.response.as_json(),
            "connect_ns": self.connect.as_json(),
            "servers": {
                name: {"confirmed": s.confirmed, "latency_ns": s.latency.as_json()}
                for name, s in sorted(self.servers.items())
            },
            "failures": self.failures,
            "verdict": self.verdict,
            "reasons": self.reasons,
        }
        if self.tally and self.tally.config.direct:
            data["direct_ns"] = self.tally.direct_figures()
        return data


def summarize(run: Run, command: list[str]) -> Summary:
    """Return the figures of a run, judged."""
    config, tally, course = run.config, run.tally, run.course
    summary = Summary(
        command=command,
        started=time.strftime(UTC_FORMAT, time.gmtime(course.started)),
        target=config.target,
        clients=config.clients,
        wall_s=course.wall_s,
        timestamps="kernel" if tally.uses_kernel_stamps else "user",
        interrupted=course.interrupted,
        planned=config.planned or tally.exchanges,
        confirmed=tally.confirmed,
        bytes_sent=tally.bytes_sent,
        bytes_received=tally.bytes_received,
        latency=tally.latency,
        response=tally.response,
        connect=tally.connect,
        servers=tally.servers,
        failures={kind: tally.outcomes[k] for k, kind in enumerate(KINDS, 1)},
        reasons=[],
        headline=describe_load(config),
        tally=tally,
        course=course,
    )
    summary.reasons = list(reasons_to_doubt(summary, tally, course))
    summary.notices = list(notices_of(summary, tally))
    return summary


def describe_load(config: Config) -> str:
    """Return in a few words how the clients load the target."""
    if config.rate:
        words = f"{three_digits(config.rate)} messages/s, open loop"
    elif config.messages:
        words = f"{plural(config.messages, 'message')} each, one at a time"
    else:
        words = "one message at a time"
    if config.duration_s:
        words += f", for {config.duration_s:g} s"
    if config.reconnect:
        words += ", a connection per message"
    return words


def reasons_to_doubt(summary: Summary, tally: Tally, course: Course) -> Iterator[str]:
    """Yield why the figures may say more about the client than about the server."""
    if not summary.confirmed:
        yield "nothing was confirmed: there is nothing to measure"
    if course.stalls_s:
        stood = f"the client itself stood still for {sum(course.stalls_s):.1f} s"
        why_so = "(stopped, or no processor time)"
        yield f"{stood} {why_so}: rate, gaps and response times include that"
    if course.lost:
        yield f"a worker process died: {plural(course.lost, 'client')} lost"
    step_ns = course.clock_step_ns
    if abs(step_ns) > 2_000_000 + course.wall_s * 500_000:  # 500 ppm is slewing
        yield f"the clock was stepped by {step_ns / 1e9:+.3f} s during the run"
    if tally.uses_kernel_stamps and tally.unstamped > 0.01 * max(1, tally.confirmed):
        reads = plural(tally.unstamped, "read")
        yield f"{reads} had no kernel timestamp: the client's own time was taken"
    if tally.slow_connects and course.kernel["ListenOverflows"] > 0:
        yield (
            f"{plural(tally.slow_connects, 'connect')} took 1 s or longer and this"
            " machine's listen queues overflowed: a listener's backlog is too short"
        )
    if tally.config.rate:
        yield from doubts_of_open_loop(summary, tally, course)
    else:
        yield from doubts_of_closed_loop(summary, tally, course)


def doubts_of_open_loop(
    summary: Summary, tally: Tally, course: Course
) -> Iterator[str]:
    """Yield whether too little was sent, or sent too late by the client itself."""
    share = tally.exchanges / max(1, summary.planned)
    if share < 0.95 and not course.interrupted:
        who = "the client could not keep up: try more clients or --workers auto"
        if tally.backlog_ns > tally.send_lateness.total:
            who = "the clients were waiting for earlier replies: the server does not"
            who += " hold this rate with so few clients"
        planned = f"{grouped(summary.planned)} messages planned"
        yield f"sent {share:.0%} of the {planned}: {who}"
    late_ns = tally.send_lateness.percentile(0.99)
    if late_ns > max(5_000_000, 0.5 * tally.response.percentile(0.99)):
        yield (
            f"the client sent {format_duration(late_ns)} late at p99: response times"
            " say more about this machine than about the server"
        )


def doubts_of_closed_loop(
    summary: Summary, tally: Tally, course: Course
) -> Iterator[str]:
    """Yield whether the clients' own work, not the replies, set the rate.

    Little's law: exchanges in flight = rate × response time. The rest of the clients
    had their reply, and waited for a processor or the interpreter lock.
    """
    busy = tally.response.total / 1e9 / max(1e-9, course.wall_s)
    many = tally.exchanges >= 50 * summary.clients and not tally.config.direct
    if many and busy < 0.5 * summary.clients:
        yield (
            f"by Little's law only {busy:.3g} of {summary.clients} clients waited for a"
            " reply at a time: the rate is this client's limit, not the server's (try"
            " --workers auto)"
        )


def notices_of(summary: Summary, tally: Tally) -> Iterator[str]:
    """Yield what else the run showed: one sentence each."""
    slow, again = tally.slow_connects, tally.retransmits
    if slow:
        words = "took 1 s or longer: SYN sent again, listen queue full?"
        yield f"{plural(slow, 'connect')} {words}"
    if again:
        yield f"{plural(again, 'segment')} sent again by clients"
    if tally.merged_segments:
        words = "read together with another: their latency ends with the later one"
        yield f"{plural(tally.merged_segments, 'segment')} {words}"
    near_40_ms = tally.latency.between(38_000_000, 46_000_000)
    if near_40_ms > 0.05 * summary.confirmed and summary.latency.percentile(0.5) < 2e7:
        yield (
            f"{near_40_ms / summary.confirmed:.0%} of replies took about 40 ms: Nagle's"
            " algorithm and delayed ACK? The sender should set TCP_NODELAY"
        )


# ---- On the terminal -----------------------------------------------------------------
# At most 80 columns; results on standard output, progress on standard error.

WIDTH = 80
EIGHTHS = " ▏▎▍▌▋▊▉█"
BAR_WIDTH = 24
# Steps of a logarithmic axis, per decade: the finest that fits is taken.
LADDERS = (
    (1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 2.0, 5.0),
    (1.0, 3.0),
    (1.0,),
)
HISTOGRAM_ROWS = 12


class Progress:
    """One line on standard error while a run lasts, if that is a terminal."""

    def __init__(self, config: Config, out: TextIO, wanted: bool) -> None:
        self.config, self.out = config, out
        self.enabled = wanted and out.isatty()
        self.began = self.drawn = time.monotonic()
        self.before = 0

    def draw(self, tally: Tally) -> None:
        """Draw at most four times a second."""
        now = time.monotonic()
        if not self.enabled or now - self.drawn < TICK_S:
            return
        done, planned = tally.exchanges, self.config.planned
        rate = (done - self.before) / (now - self.drawn)
        share = self.share(done, now)
        p99 = Distribution()
        p99.extend(tally.recent)
        tally.recent = array("q")
        parts = [
            f" {plural(self.config.clients, 'client')}  {bar(share, 1, 12):<12}",
            f"{grouped(done)}/{grouped(planned)}" if planned else grouped(done),
            f"{three_digits(rate)}/s",
        ]
        if p99.count:
            parts.append(f"p99 {format_duration(p99.percentile(0.99))}")
        if tally.failed:
            parts.append(f"{grouped(tally.failed)} failed")
        if share > 0.02:
            parts.append(f"{(now - self.began) * (1 / share - 1):.0f} s left")
        self.write("  ".join(parts)[: WIDTH - 1])
        self.drawn, self.before = now, done

    def share(self, done: int, now: float) -> float:
        """Return how much of the run is over, from 0 to 1."""
        by_time = (now - self.began) / (self.config.duration_s or math.inf)
        by_count = done / (self.config.planned or math.inf)
        return min(1.0, max(by_time, by_count))

    def write(self, line: str) -> None:
        self.out.write(f"\r\x1b[K{line}")
        self.out.flush()

    def clear(self) -> None:
        if self.enabled:
            self.write("")


def bar(value: float, largest: float, width: int = BAR_WIDTH) -> str:
    """Return a bar of block characters; something if the value is not 0."""
    eighths = round(8 * width * value / largest) if largest else 0
    eighths = max(eighths, 1 if value else 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def wrapped(name: str, text: str) -> list[str]:
    """Return a named paragraph of at most 80 columns."""
    lines = textwrap.wrap(text, WIDTH - 10)
    return [f" {name if k == 0 else '':<8} {line}" for k, line in enumerate(lines)]


def fitted(line: str) -> str:
    """Return a line that fits on the terminal."""
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def exchange_lines(tally: Tally) -> Iterator[str]:
    """Yield one line per exchange: client, figures, reply; by client and message."""
    numbered = tally.config.messages != 1
    yield f" client{' message' * numbered} latency response throughput reply"
    tally.kept.sort(key=lambda chunk: (chunk.client, chunk.messages_before))
    for chunk in tally.kept:
        words = {message: text for message, _, text in chunk.failures}
        replies = iter(chunk.replies)
        for message, (due, sent, first, last, _, code) in chunk.exchanges():
            line = f"{chunk.client:7}" + (f"{message:8}" if numbered else "")
            reply = safe_text(next(replies))
            if code & 15 == CONFIRMED:
                size = tally.size_of(chunk.client) + (code >> 20)
                rate = size / max(1, last - due) * 1e9
                line += f"{format_duration(first - sent):>8}"
                line += (
                    f"{format_duration(last - due):>9}{format_rate(rate):>11} {reply}"
                )
            else:
                line += f"  failed: {OUTCOMES[code & 15]}: {words.get(message, '')}"
            yield fitted(line)


def figure_table(summary: Summary) -> Iterator[str]:
    """Yield the percentiles of each metric, with their 95 % ranges."""
    shown = [n for n in PERCENTILES if summary.latency.count >= NEEDED[n]]
    names = "".join(f"{n.replace('_', '.'):>13}" for n in shown)
    yield f"{'min':>16}{names}{'max':>9}"
    for name, metric in summary.metrics.items():
        size, unit = row_unit(metric)
        cells = "".join(f"{in_unit(metric.reported(n), size):>13}" for n in shown)
        low, high = compact(metric.minimum / size), compact(metric.maximum / size)
        yield f" {name.split()[0]:<9}{low:>6}{cells}{high:>9} {unit}"
        ranges = [metric.range_of(PERCENTILES[n]) for n in shown]
        if name != "connect" and any(ranges):
            cells = "".join(f"{range_text(r, size):>13}" for r in ranges)
            yield f"   95 % range   {cells}"
    yield "   latency = sent → first byte of the reply; response = due → its last byte"
    if summary.latency.count >= 6:
        yield "   95 % range = where the percentile itself lies, with 95 % confidence"
    yield from sample_words(summary.latency)


def sample_words(metric: Distribution) -> Iterator[str]:
    """Say what the sample cannot tell."""
    count = metric.count
    if count < 6 and metric.values is not None:
        size, unit = row_unit(metric)
        values = "  ".join(in_unit(metric.at_rank(k + 1), size) for k in range(count))
        yield f"   {plural(count, 'exchange')}: latency {values} {unit}"
        covered = 1 - 2 * 0.5**count
        yield f"   min to max holds the median with {covered:.0%} confidence only"
        return
    missing = [n for n in NEEDED if count < NEEDED[n]][:2]
    if missing:
        needs = ", ".join(f"{n.replace('_', '.')} needs {NEEDED[n]:,}" for n in missing)
        yield f"   {needs} exchanges"
        below = three_digits(100 * (1 - CONFIDENCE) ** (1 / count))
        yield f"   {below} % of exchanges lie below max, with 95 % confidence"


def axis_steps(low: float, high: float, rows: int) -> list[float]:
    """Return boundaries on a logarithmic axis that enclose low to high."""
    low = max(low, 1.0)
    steps: list[float] = []
    for ladder in LADDERS:
        decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 2)
        steps = [step * 10.0**decade for decade in decades for step in ladder]
        first = bisect.bisect_right(steps, low) - 1
        steps = steps[first : bisect.bisect_right(steps, high) + 1]
        if len(steps) <= rows + 1:
            break
    return steps


def binned(metric: Distribution, steps: list[float]) -> list[int]:
    """Return how many values lie between neighbouring steps."""
    bins = [0] * (len(steps) - 1)
    for index, number in metric.histogram().items():
        value = max(steps[0], min(metric.maximum, hdr_highest(index)))
        bins[min(len(bins), bisect.bisect_right(steps, value)) - 1] += number
    return bins


def histogram_lines(metric: Distribution) -> Iterator[str]:
    """Yield the latency histogram; a narrow range gives one bar."""
    size, unit = row_unit(metric)
    steps = axis_steps(metric.minimum, max(metric.maximum, 1), HISTOGRAM_ROWS)
    bins = binned(metric, steps)
    values = {n.replace("_", "."): metric.reported(n) or -1 for n in PERCENTILES}
    yield f"{'latency':>12}{'exchanges':>18}"
    for (low, high), number in zip(itertools.pairwise(steps), bins, strict=True):
        marks = " ".join(name for name, v in values.items() if low <= v < high)
        edges = f"{round_number(low / size):>7} – {round_number(high / size):<7}"
        line = f"{edges}{unit:<3}{grouped(number):>9} {bar(number, max(bins))}"
        yield f"{line}  ← {marks}" if marks else line


def server_lines(summary: Summary) -> Iterator[str]:
    """Yield who confirmed how much and how fast, and how sure the difference is."""
    if not summary.servers:
        return
    clients = any(s.clients for s in summary.servers.values())
    head = "  clients" if clients else ""
    size, unit = row_unit(summary.latency)
    unit = f"p50 {unit}"
    yield f" server  confirmed   share {unit:>7}  (95 % range)         p99{head}"
    for name, server in sorted(summary.servers.items()):
        metric = server.latency
        share = server.confirmed / summary.confirmed
        line = f" {name:<6} {grouped(server.confirmed):>10} {share:>6.1%}"
        line += f" {in_unit(metric.percentile(0.5), size):>7}"
        line += f"  {range_text(metric.range_of(0.5), size):<15}"
        line += f" {in_unit(metric.reported('p99'), size):>7}"
        yield f"{line}  {' '.join(map(str, sorted(server.clients)))}".rstrip()
    yield from wrapped("", servers_words(summary))


def servers_words(summary: Summary) -> str:
    """Say how the servers compare: in their share, and in their speed."""
    words = (split_words(summary), slower_words(summary.servers))
    return "; ".join(part for part in words if part)


def split_words(summary: Summary) -> str:
    """Say whether the connections were split evenly, or by how much they were not."""
    counts = [s.connections for s in summary.servers.values()]
    if len(counts) < 2 or not all(counts):
        return ""
    if max(counts) - min(counts) <= 1:
        return "even split ✓"
    expected, freedom = sum(counts) / len(counts), len(counts) - 1
    chi = sum((count - expected) ** 2 for count in counts) / expected
    spread = 2 / (9 * freedom)  # Wilson and Hilferty's approximation
    z = ((chi / freedom) ** (1 / 3) - 1 + spread) / math.sqrt(spread)
    chance = 0.5 * math.erfc(z / math.sqrt(2))
    how = "unevenly" if chance < 0.05 else "no less evenly than by chance"
    sure = f"= {three_digits(chance)}" if chance >= 0.001 else "< 0.001"
    return f"connections split {how} (χ², p {sure})"


def slower_words(servers: dict[str, ServerFigures]) -> str:
    """Say which server was slowest, and whether the sample shows it."""
    if len(servers) < 2:
        return ""
    order = sorted(servers, key=lambda name: servers[name].latency.percentile(0.5))
    fast, slow = order[0], order[-1]
    pairs = len(servers) * (len(servers) - 1) // 2  # each could have come out so
    confidence = 1 - (1 - CONFIDENCE) / pairs
    found = compare(servers[slow].latency, servers[fast].latency, 0.5, confidence)
    if found is None:
        return "too few exchanges to say which server is slower"
    ratio, low, high = found
    digits = 0 if high >= 0.1 else 1
    words = f"p50 {ratio:+.{digits}%} ({low:+.{digits}%} to {high:+.{digits}%})"
    if ratio >= 1:
        factors = (three_digits(1 + value) for value in found)
        words = "p50 {} times as long (95 % range {} to {})".format(*factors)
    if low <= 0:
        return f"no server shown to be slower ({slow} to {fast}: {words})"
    return f"{slow} is slower than {fast}: {words}"


def failure_lines(summary: Summary) -> Iterator[str]:
    """Yield what failed, by kind, with examples, and how long anyone noticed."""
    lines = []
    for (kind, text), places in summary.tally.examples.items() if summary.tally else ():
        where = ", ".join(f"client {c} message {m}" for c, m in places[:3])
        more = " …" if len(places) > 3 else ""
        lines.append(f"{OUTCOMES[kind]}: {text} ({where}{more})")
    counts = [f"{grouped(n)} {kind}" for kind, n in summary.failures.items() if n]
    if counts:
        lines.append("in all: " + ", ".join(counts))
    for k, line in enumerate(lines):
        yield from wrapped("" if k else "failed", line)
    yield from wrapped("noticed", gap_words(summary))


def gap_words(summary: Summary) -> str:
    """Say how long anyone was without a good reply, if something failed or stalled."""
    gap = summary.tally.gap if summary.tally else Gap()
    usual = summary.response.percentile(0.5)
    stalled = gap.length_ns > max(STALL_S * 1e9, 10 * usual)
    if not gap.length_ns or not (summary.failed or stalled):
        return ""
    since, until = gap.from_ns / 1e9, (gap.from_ns + gap.length_ns) / 1e9
    end = "the end" if gap.open_end else f"{until:.2f} s"
    return (
        f"longest time without a good reply: {format_duration(gap.length_ns)}"
        f" (client {gap.client}, from {since:.2f} s to {end} of the run)"
    )


def print_summary(summary: Summary, out: TextIO) -> None:
    """Print the summary; the verdict in colour on a terminal that wants it."""
    coloured = out.isatty() and not os.environ.get("NO_COLOR")
    for line in summary_lines(summary):
        if coloured and line.startswith(" verdict"):
            line = f"\x1b[{31 if summary.reasons else 32}m{line}\x1b[0m"
        print(line, file=out)


def summary_lines(summary: Summary) -> Iterator[str]:
    """Yield the summary, line by line."""
    target = f"{plural(summary.clients, 'client')} → {summary.target}"
    head = f"client2  {target}   {summary.headline}"
    yield from textwrap.wrap(head, WIDTH, subsequent_indent=" " * 9)
    course, ready = summary.course, ""
    if course and course.connected:
        took = format_duration(course.connect_wall_ns)
        count = f"{grouped(course.connected)}/{grouped(summary.clients)}"
        ready = f"connected {count} in {took}   "
    clock = "kernel receive timestamps"
    if summary.timestamps != "kernel":
        clock = "user space receive times"
    yield f"         {ready}ran {format_duration(summary.wall_s * 1e9)}   {clock}"
    yield ""
    yield (
        f" {grouped(summary.confirmed)} of {grouped(summary.planned)} confirmed"
        f"   {grouped(summary.failed)} failed"
        f"   {three_digits(summary.per_s)} exchanges/s"
        f"   {format_rate(summary.bytes_per_s)}"
    )
    yield ""
    if summary.latency.count:
        yield from figure_table(summary)
        yield ""
        if summary.latency.count >= 6:
            yield from histogram_lines(summary.latency)
            yield ""
        yield from server_lines(summary)
    yield from failure_lines(summary)
    yield from closing_lines(summary)


def closing_lines(summary: Summary) -> Iterator[str]:
    """Yield the balancer's cost, the client's own part, and the verdict."""
    tally, course = summary.tally, summary.course
    if tally and tally.direct.count:
        yield from wrapped("direct", direct_words(tally))
    for notice in summary.notices:
        yield from wrapped("notice", notice)
    if tally and course and tally.lateness.count:
        late = format_duration(tally.lateness.percentile(0.99))
        where = "not in" if summary.timestamps == "kernel" else "part of"
        words = f"woke {late} late at p99 to read replies ({where} the figures)"
        if tally.send_lateness.count:
            late = format_duration(tally.send_lateness.percentile(0.99))
            words += f", {late} late to send (part of response time)"
        if course.cpu_s and summary.wall_s > 0.2:
            words += f"; used {course.cpu_s / summary.wall_s:.0%} of a processor core"
        yield from wrapped("client", words)
    yield from wrapped("verdict", summary.verdict.upper())
    for reason in summary.reasons:
        yield from wrapped("", reason)


def direct_words(tally: Tally) -> str:
    """Say what the balancer costs: the median of paired differences."""
    figures = tally.direct_figures()
    size, unit = time_unit(abs(figures["p50"]))
    middle, low, high = (in_unit(figures[key], size) for key in ("p50", "low", "high"))
    words = f"the balancer adds {middle} {unit} at p50 (95 % range {low} to {high};"
    words += f" {plural(figures['pairs'], 'pair')})"
    if tally.direct_failed:
        words += f"; {plural(tally.direct_failed, 'direct exchange')} failed"
    return words


# ---- The report: one page, four plots, nothing from outside --------------------------
# Inline SVG without a script; hover texts are <title>s. Colours are Okabe and Ito's,
# told apart by the colour-blind; servers differ in shape, too.

PLOT_WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 72, 704, 28, 40  # SVG units
LEGEND_Y = 10  # above the plot
SERVER_ROW, SERVERS_SHOWN = 64, 30
COLUMNS = 60  # of lines and bars over time, at most
DOTS_SHOWN = 4000  # more exchanges than this become a heat map
TIME_BINS = 240  # at most, then two become one
SHADES = 8
STYLE = """
:root{--ink:#1d2530;--soft:#5b6672;--line:#dfe4e9;--page:#fff;--card:#f5f7f9;
--s0:#0072b2;--s1:#d55e00;--s2:#009e73;--s3:#cc79a7;--s4:#e69f00;--s5:#56b4e9;
--good:#00704f;--bad:#b03a00}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e7ebef;--soft:#9aa6b2;
--line:#323b45;--page:#14181d;--card:#1c2229;--s0:#56b4e9;--s1:#f08a3c;--s2:#2ec49a;
--s3:#e3a1c5;--s4:#f0c040;--s5:#9cd3f5;--good:#2ec49a;--bad:#f08a3c}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,"Segoe UI",Roboto,"Noto Sans",sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:840px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:28px;line-height:1.2;margin:0 0 4px}h2{font-size:18px;margin:44px 0 2px}
p{margin:4px 0 12px;max-width:68ch}.soft,figcaption,th,small{color:var(--soft)}
.valid{color:var(--good)}.doubtful{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(100px,1fr));
gap:10px;margin:24px 0 14px}
.tiles div{background:var(--card);border-radius:8px;padding:10px}
.tiles b{display:block;font-size:21px;font-weight:600;white-space:nowrap}
.tiles small{font-size:13px;font-weight:400}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:10px 0;font-size:14px}
th,td{padding:5px 18px 5px 0;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap;font-weight:400}td small{display:block;font-size:12px}
th:first-child,td:first-child,.text td:last-child,.text th:last-child{text-align:left}
p::first-letter,li::first-letter{text-transform:uppercase}
figure{margin:10px 0 0}figcaption{font-size:14px;max-width:68ch}
svg{width:100%;height:auto;display:block;margin:8px 0}
svg text{font-size:12px;fill:var(--soft)}svg .name{fill:var(--ink)}
.grid{stroke:var(--line);fill:none}.axis{stroke:var(--soft);fill:none}
.dots{fill:none;stroke-width:5;stroke-opacity:.6}.round{stroke-linecap:round}
.square{stroke-linecap:square;stroke-width:4}.cross{stroke-width:1.4}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.dash{stroke-dasharray:6 4}
.band{stroke:none;fill-opacity:.16}.bar{fill-opacity:.75}.ink{stroke:var(--ink)}
.fail{stroke:var(--bad);stroke-width:2;fill:none}.bad{fill:var(--bad)}
code{font:13px/1.5 ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
ul{margin:4px 0;padding-left:20px}
@media print{main{max-width:none;padding:0}figure,table,.tiles{break-inside:avoid}
h2{break-after:avoid}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
STYLE += "".join(
    f".c{k}{{stroke:var(--s{k})}}.f{k}{{fill:var(--s{k})}}" for k in range(6)
)
STYLE += "".join(f".h{k}{{fill-opacity:{0.15 + 0.12 * k:.2f}}}" for k in range(SHADES))
SHAPES = (
    ("round", "M{x:.1f} {y:.1f}h0"),
    ("square", "M{x:.1f} {y:.1f}h.1"),  # some printers leave h0 out
    ("cross", "M{x:.1f} {y:.1f}m-3 0h6m-3-3v6"),
)
METHOD = """
<p><b>Latency</b>: from handing the message to the kernel to the arrival of the reply's
first byte in this machine's kernel, by its receive timestamp (else by this program's
clock, as said above). <b>Response time</b>: from the moment the message was due, by
the <code>--rate</code> schedule (without one: sent), to the arrival of the reply's
last byte. <b>Throughput</b>: message and reply bytes of confirmed exchanges over the
wall time from the common start to the last reply. <b>Connect</b>: TCP connect alone,
in neither.</p>
<p>Percentiles are nearest rank, of confirmed exchanges; failed ones are counted apart.
Ranges hold the percentile with 95 % confidence by order statistics, as if exchanges
were independent; those of one client are not quite, so read them as the least
uncertainty. A percentile that the sample cannot carry is not given: p90 needs 29
exchanges, p99 299, p99.9 2,995.</p>
"""


class Timeline:
    """Counts by time and latency in at most TIME_BINS bins, for a run of any length.

    A latency's level is its HdrHistogram index in steps of 128: eight per doubling.
    """

    def __init__(self) -> None:
        self.width_ns = 1_000_000
        self.cells: Counter[tuple[int, int]] = Counter()  # (bin, level)
        self.failed: Counter[int] = Counter()
        self.busy_ns: Counter[int] = Counter()  # exchanges in flight × time

    def add(self, start_ns: int, sent: array[int], latency: array[int],
            last: array[int]) -> None:  # fmt: skip
        """Add confirmed exchanges of a run that began at `start_ns`."""
        self.make_room(max(last) - start_ns)
        width = self.width_ns
        bins = [(moment - start_ns) // width for moment in last]
        self.cells.update(zip(bins, (hdr_index(v) >> 7 for v in latency), strict=True))
        for begun, ended, place in zip(sent, last, bins, strict=True):
            begun = max(0, begun - start_ns)
            for k in range(begun // width, place):
                self.busy_ns[k] += (k + 1) * width - begun
                begun = (k + 1) * width
            self.busy_ns[place] += ended - start_ns - begun

    def add_failures(self, start_ns: int, moments: array[int]) -> None:
        self.make_room(max(moments) - start_ns)
        self.failed.update((m - start_ns) // self.width_ns for m in moments)

    def make_room(self, latest_ns: int) -> None:
        """Make bins wider until the latest moment has one."""
        while latest_ns >= TIME_BINS * self.width_ns:
            self.width_ns *= 2
            cells: Counter[tuple[int, int]] = Counter()
            for (place, level), number in self.cells.items():
                cells[place // 2, level] += number
            self.cells = cells
            self.failed, self.busy_ns = joined(self.failed, 2), joined(self.busy_ns, 2)

    def columns(self, most: int) -> tuple[float, dict[int, Counter[int]]]:
        """Return (seconds per column, {column: Counter of levels})."""
        wide = max((place for place, _ in self.cells), default=0) // most + 1
        found: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for (place, level), number in self.cells.items():
            found[place // wide][level] += number
        return wide * self.width_ns / 1e9, found


def joined(counts: Counter[int], wide: int) -> Counter[int]:
    """Return counts by bin with `wide` bins made one."""
    result: Counter[int] = Counter()
    for place, number in counts.items():
        result[place // wide] += number
    return result


def level_percentile(levels: Counter[int], share: float) -> float:
    """Return a percentile of levels, in ns: the middle of its level."""
    ranks = itertools.accumulate(levels[level] for level in sorted(levels))
    wanted = math.ceil(share * levels.total())
    found = next(k for k, rank in enumerate(ranks) if rank >= wanted)
    level = sorted(levels)[found]
    return (hdr_highest(level << 7) + hdr_highest((level << 7) + 127)) / 2


@dataclass(slots=True)
class Scale:
    """A map from values to SVG units, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return round values on the axis: four to nine or so."""
        if self.log:
            return axis_steps(self.low, self.high, 8)[1:-1]
        rough = (self.high - self.low) / 6 or 1.0
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough)
        first, last = self.low / step - 1e-9, self.high / step + 1e-9
        return [k * step for k in range(math.ceil(first), math.floor(last) + 1)]


def duration_scale(metrics: Iterable[Distribution], start: float, end: float) -> Scale:
    """Return a logarithmic scale that holds all values of some metrics."""
    filled = [metric for metric in metrics if metric.count]
    low = max(1, min((m.minimum for m in filled), default=1_000_000))
    high = max(low * 1.5, max((m.maximum for m in filled), default=10_000_000))
    return Scale(low / 1.15, high * 1.15, start, end, log=True)


class Plot:
    """A drawing that grows by paths and texts, in a figure that is also described."""

    def __init__(self, number: int, title: str, height: int) -> None:
        self.number, self.title, self.height = number, title, height
        self.low = height - BOTTOM - 6  # where the axis of time lies
        self.parts: list[str] = []

    def path(self, style: str, way: str, hint: str = "") -> None:
        hint = f"<title>{hint}</title>" if hint else ""
        self.parts.append(f'<path class="{style}" d="{way}">{hint}</path>')

    def line(self, style: str, points: Iterable[tuple[float, float]]) -> None:
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        if way:
            self.path(f"line {style}", f"M{way}")

    def text(self, x: float, y: float, words: str, anchor: str = "start",
             style: str = "", turn: int = 0) -> None:  # fmt: skip
        place = f"translate({x:.1f} {y:.1f})" + (f" rotate({turn})" if turn else "")
        head = f'<text class="{style}" transform="{place}" text-anchor="{anchor}">'
        self.parts.append(f"{head}{words}</text>")

    def left_axis(self, scale: Scale, name: str, words: Callable[[float], str]) -> None:
        """Draw grid lines, their labels, and the axis' name."""
        for value in scale.ticks():
            self.path("grid", f"M{LEFT} {scale(value):.1f}H{RIGHT}")
            self.text(LEFT - 8, scale(value) + 4, words(value), "end")
        self.text(14, (scale.start + scale.end) / 2, name, "middle", turn=-90)

    def bottom_axis(self, scale: Scale, name: str, marks: dict[float, str]) -> None:
        """Draw the axis, its marks, and its name."""
        low = self.low
        self.path("axis", f"M{scale.start} {low}H{scale.end}")
        for value, words in marks.items():
            self.path("axis", f"M{scale(value):.1f} {low}v4")
            self.text(scale(value), low + 17, words, "middle")
        self.text((scale.start + scale.end) / 2, low + 34, name, "middle")

    def time_axis(self, wall_s: float) -> Scale:
        """Draw the axis of the run's time in seconds, and return its scale."""
        scale = Scale(0, max(wall_s, 1e-6), LEFT, RIGHT)
        marks = {value: f"{value:g}" for value in scale.ticks()}
        self.bottom_axis(scale, "seconds since the common start", marks)
        return scale

    def figure(self, text: str) -> str:
        """Return the drawing, named and described for those who do not see it."""
        k = self.number
        return (
            f'<figure><svg viewBox="0 0 {PLOT_WIDTH} {self.height}" role="img"'
            f' aria-labelledby="t{k} d{k}"><title id="t{k}">{self.title}</title>'
            f'<desc id="d{k}">{text}</desc>{"".join(self.parts)}</svg>'
            f"<figcaption>{text}</figcaption></figure>"
        )


def brief(duration_ns: float) -> str:
    """Return a duration for an axis: 1 ms, 0.5 s, 200 µs."""
    size, unit = time_unit(duration_ns * 1.0000001)
    return f"{duration_ns / size:g} {unit}"


def plot_exchanges(summary: Summary, tally: Tally, timeline: Timeline) -> str:
    """Plot 1: every exchange over time, or a heat map of very many."""
    plot = Plot(1, "Latency over time", 300)
    x = plot.time_axis(summary.wall_s)
    y = duration_scale([summary.latency], plot.low, TOP + 14)
    plot.left_axis(y, "latency", brief)
    if tally.exchanges <= DOTS_SHOWN and tally.kept:
        text = "A dot is one exchange; its colour and shape name the server."
        draw_dots(plot, tally, x, y)
    else:
        text = "The darker a field, the more exchanges (logarithmic)."
        draw_heat(plot, timeline, x, y)
    draw_percentiles(plot, timeline, x, y)
    for place, number in sorted(timeline.failed.items()):
        at_s = (place + 0.5) * timeline.width_ns / 1e9
        way = f"M{min(x.end, x(at_s)):.1f} {TOP}m-4-4l8 8m0-8l-8 8"
        plot.path("fail", way, f"{number} failed near {at_s:.3g} s")
    return plot.figure(
        f"{text} Failures are crosses at the top. Lines, where exchanges are many"
        " enough: p50 and p99 of each moment."
    )


def draw_percentiles(plot: Plot, timeline: Timeline, x: Scale, y: Scale) -> None:
    """Draw p50 and p99 over time, as lines that stop where exchanges are few."""
    wide_s, columns = timeline.columns(COLUMNS)
    for name, least, style in (("p50", 3, "ink"), ("p99", 100, "ink dash")):
        line: list[tuple[float, float]] = []
        ends = None
        for place in range(max(columns, default=0) + 2):
            levels = columns.get(place, Counter())
            if levels.total() >= least:
                value = level_percentile(levels, PERCENTILES[name])
                ends = min(x.end, x((place + 0.5) * wide_s)), y(value)
                line.append(ends)
            else:
                plot.line(style, line)
                line.clear()
        if ends:
            plot.text(ends[0] + 6, ends[1] + 4, name, style="name")


def draw_dots(plot: Plot, tally: Tally, x: Scale, y: Scale) -> None:
    """Draw one path per server with a dot per exchange, and a legend."""
    names = sorted(tally.servers) or [""]
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for chunk in tally.kept:
        for _, (_, sent, first, _, _, code) in chunk.exchanges():
            if code & 15 == CONFIRMED:
                name = chunk.server_of(code)
                shape = SHAPES[names.index(name) % len(SHAPES)][1]
                at = x((first - tally.start_ns) / 1e9)
                paths[name].append(shape.format(x=at, y=y(first - sent)))
    for k, name in enumerate(names):
        shape, mark = SHAPES[k % len(SHAPES)]
        style = f"dots {shape} c{k % 6}"
        plot.path(style, "".join(paths[name]))
        if name:
            at = RIGHT - 76 * (len(names) - k)
            plot.path(style, mark.format(x=at + 20, y=LEGEND_Y))
            plot.text(at + 30, LEGEND_Y + 4, name)


def draw_heat(plot: Plot, timeline: Timeline, x: Scale, y: Scale) -> None:
    """Draw one path per shade, with a field per time and latency."""
    wide_s, columns = timeline.columns(2 * COLUMNS)
    most = math.log1p(max((max(c.values()) for c in columns.values()), default=1))
    paths: defaultdict[int, list[str]] = defaultdict(list)
    wide = x(wide_s) - x(0)
    for place, levels in columns.items():
        for level, number in levels.items():
            shade = min(SHADES - 1, int(SHADES * math.log1p(number) / most))
            top, low = y(hdr_highest((level << 7) + 127)), y(hdr_highest(level << 7))
            at = f"M{x(0) + wide * place:.1f} {top:.1f}"
            paths[shade].append(f"{at}h{wide:.1f}v{low - top:.1f}h-{wide:.1f}z")
    for shade, path in sorted(paths.items()):
        plot.path(f"f0 h{shade}", "".join(path))


def plot_spectrum(summary: Summary, baseline: Summary | None) -> str:
    """Plot 2: latency and response time by percentile, the tail stretched."""
    plot = Plot(2, "Percentiles", 300)
    drawn = {
        "response time": (summary.response, "c1"),
        "latency": (summary.latency, "c0"),
    }
    if baseline:
        drawn["baseline latency"] = (baseline.latency, "ink dash")
    y = duration_scale([metric for metric, _ in drawn.values()], plot.low, TOP)
    most = max(2, *(metric.count for metric, _ in drawn.values()))
    x = Scale(1, most, LEFT, RIGHT, log=True)  # of 1 / (1 - share)
    marks = {1.0: "min", 2.0: "50", 10.0: "90", 1e2: "99", 1e3: "99.9", 1e4: "99.99"}
    marks |= {1e5: "99.999", 1e6: "99.9999"}
    plot.left_axis(y, "time", brief)
    plot.bottom_axis(x, "percentile", {m: w for m, w in marks.items() if m <= most})
    upper, lower = [], []
    for odds in spectrum(summary.latency)[1::2]:
        around = summary.latency.range_of(1 - 1 / odds)
        if around:
            upper.append((x(odds), y(around[1])))
            lower.append((x(odds), y(around[0])))
    plot.line("band f0", upper + lower[::-1])
    for k, (name, (metric, style)) in enumerate(drawn.items()):
        found = ((odds, metric.percentile(1 - 1 / odds)) for odds in spectrum(metric))
        plot.line(style, ((x(odds), y(value)) for odds, value in found))
        at = LEFT + 150 * k
        plot.line(style, [(at, LEGEND_Y), (at + 22, LEGEND_Y)])
        plot.text(at + 28, LEGEND_Y + 4, name, style="name")
    return plot.figure(
        "How long the slowest exchanges took: at percentile p, p percent were faster."
        " The band is the 95 % range of latency; what response time adds is waiting to"
        " be sent, and the rest of the reply."
    )


def spectrum(metric: Distribution) -> list[float]:
    """Return the odds, 1 to `count`, of the percentiles that a spectrum is drawn at."""
    return [max(2, metric.count) ** (k / 80) for k in range(81)]


def plot_rate(summary: Summary, tally: Tally, timeline: Timeline) -> str:
    """Plot 3: exchanges per second, and how many were in flight."""
    plot = Plot(3, "Rate and load", 260)
    x = plot.time_axis(summary.wall_s)
    confirmed: Counter[int] = Counter()
    for (place, _), number in timeline.cells.items():
        confirmed[place] += number
    bins = max([*timeline.failed, *confirmed]) + 1
    wide = bins // COLUMNS + 1
    span_s = wide * timeline.width_ns / 1e9
    confirmed, failed = joined(confirmed, wide), joined(timeline.failed, wide)
    highest = max((confirmed + failed).values()) / span_s
    y = Scale(0, max(highest, tally.config.rate) * 1.1, plot.low, TOP)
    plot.left_axis(y, "exchanges per second", lambda value: grouped(round(value)))
    for k in range(bins // wide + 1):
        left, right = x(k * span_s), min(x.end, x((k + 1) * span_s)) - 1
        below = 0
        for number, style in ((confirmed[k], "f0 bar"), (failed[k], "bad bar")):
            low, top = y(below / span_s), y((below + number) / span_s)
            way = f"M{left:.1f} {low:.1f}V{top:.1f}H{max(left + 0.5, right):.1f}"
            if number and left < x.end:
                plot.path(style, f"{way}V{low:.1f}z", f"{number / span_s:.0f}/s")
            below += number
    draw_flight(plot, timeline, bins, x)
    text = (
        "Bars: exchanges confirmed per second, failed ones on top in the other colour"
        " (left). Line: exchanges in flight, waiting for their reply (right)."
    )
    if tally.config.rate:
        planned = y(tally.config.rate)
        plot.line("ink dash", [(x.start, planned), (x.end, planned)])
        text += " Dashed: the planned rate."
    return plot.figure(text)


def draw_flight(plot: Plot, timeline: Timeline, bins: int, x: Scale) -> None:
    """Draw the line of exchanges in flight (a bin's mean), and its axis."""
    flight = [timeline.busy_ns[k] / timeline.width_ns for k in range(bins)]
    z = Scale(0, max(*flight, 1) * 1.1, plot.low, TOP)
    middles = (min(x.end, x((k + 0.5) * timeline.width_ns / 1e9)) for k in range(bins))
    plot.line("c1", zip(middles, map(z, flight), strict=True))
    for value in z.ticks():
        if value == int(value):
            plot.text(x.end + 8, z(value) + 4, f"{value:g}")
    plot.text(x.end + 48, (plot.low + TOP) / 2, "in flight", "middle", turn=90)


def plot_servers(summary: Summary) -> str:
    """Plot 4: one row per server, on one latency axis."""
    servers = sorted(summary.servers.items())[:SERVERS_SHOWN]
    plot = Plot(4, "Latency by server", TOP + SERVER_ROW * len(servers) + BOTTOM)
    plot.low += 6
    x = duration_scale([summary.latency], LEFT, RIGHT - 110)
    for k, (name, server) in enumerate(servers):
        base = TOP + SERVER_ROW * (k + 1)
        share = f"{server.confirmed / max(1, summary.confirmed):.1%} of confirmed"
        plot.path("axis", f"M{LEFT} {base}H{x.end}")
        plot.text(LEFT - 8, base - 6, name, "end", "name")
        plot.text(x.end + 14, base - 26, share)
        median = format_duration(server.latency.percentile(0.5))
        plot.text(x.end + 14, base - 10, f"p50 {median}")
        draw_histogram(plot, server.latency, x, base, f"f{k % 6} bar")
    plot.bottom_axis(x, "latency", {value: brief(value) for value in x.ticks()})
    return plot.figure(
        "Each row shows how one server's latencies spread (heights are shares of its"
        " own exchanges). Upright lines: p50, and p99 dashed."
    )


def draw_histogram(
    plot: Plot, metric: Distribution, x: Scale, base: int, style: str
) -> None:
    """Draw a histogram that stands on `base`, and its percentiles."""
    steps = [x.low * (x.high / x.low) ** (k / 48) for k in range(49)]
    bins = binned(metric, steps)
    tall = (SERVER_ROW - 18) / max(1, *bins)
    bars = zip(itertools.pairwise(map(x, steps)), bins, strict=True)
    ways = (f"M{a:.1f} {base}v-{tall * n:.1f}H{b - 0.6:.1f}V{base}z"
            for (a, b), n in bars if n)  # fmt: skip
    plot.path(style, "".join(ways))
    for name, line in (("p50", "line ink"), ("p99", "line ink dash")):
        value = metric.reported(name)
        if value is not None:
            hint = f"{name} {format_duration(value)}"
            plot.path(line, f"M{x(value):.1f} {base}v-50", hint)


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are already escaped."""
    lines = [("th", head), *(("td", row) for row in rows)]
    text = "".join(
        "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells)
        for tag, cells in lines
    )
    return f'<div class="wide"><table>{text}</table></div>'


def figures_table(summary: Summary) -> str:
    """Return the percentiles of each metric, ranges below them."""
    rows = []
    for name, metric in summary.metrics.items():
        size, unit = row_unit(metric)
        cells = [name, unit, three_digits(metric.minimum / size)]
        for key, share in PERCENTILES.items():
            around = metric.range_of(share)
            words = f"<small>{range_text(around, size)}</small>" if around else ""
            cells.append(in_unit(metric.reported(key), size) + words)
        rows.append([*cells, three_digits(metric.maximum / size)])
    return html_table(["", "", "min", "p50", "p90", "p99", "p99.9", "max"], rows)


def failures_table(summary: Summary) -> str:
    """Return the failures by kind, with examples."""
    examples: defaultdict[str, list[str]] = defaultdict(list)
    if summary.tally:
        for (kind, text), ((client, message), *_) in summary.tally.examples.items():
            words = f"{html.escape(text)} (client {client}, message {message})"
            examples[OUTCOMES[kind]].append(words)
    rows = [
        [kind.replace("_", " "), grouped(number), "<br>".join(examples[kind])]
        for kind, number in summary.failures.items()
        if number
    ]
    table = html_table(["kind", "count", "for example"], rows)
    return f'<div class="text">{table}</div>'


def slowest_table(tally: Tally) -> str:
    """Return the parts of the slowest exchanges."""
    rows = []
    for latency, client, name, due, sent, first, last, seen in tally.slowest:
        at = f"{(sent - tally.start_ns) / 1e9:.3f}"
        parts = (sent - due, latency, last - first, seen - last)
        rows.append([at, str(client), name or "–", *map(format_duration, parts)])
    head = ["sent at, s", "client", "server", "waited to be sent", "latency"]
    return html_table([*head, "rest of the reply", "client woke late"], rows)


def tiles(summary: Summary) -> str:
    """Return the most wanted figures, large."""
    figures = [
        (grouped(summary.confirmed), f"of {grouped(summary.planned)} confirmed"),
        (grouped(summary.failed), "failed"),
        (three_digits(summary.per_s), "exchanges per second"),
        (format_rate(summary.bytes_per_s), "throughput"),
    ]
    for name in ("p50", "p90", "p99"):
        value = summary.latency.reported(name)
        if value is not None:
            figures.append((format_duration(value), f"latency {name}"))
    parts = ((*figure.partition(" "), what) for figure, what in figures)
    return "".join(
        f"<div><b>{value} <small>{unit}</small></b><small>{what}</small></div>"
        for value, _, unit, what in parts
    )


def sections(summary: Summary, baseline: Summary | None) -> Iterator[tuple[str, str]]:
    """Yield (heading, content) of what the run has figures for."""
    tally = summary.tally
    timeline = tally.timeline if tally else None
    if summary.latency.count:
        table = figures_table(summary)
        yield "Figures", f"<p>Below each percentile its 95 % range.{table}"
    if tally and timeline and (timeline.cells or timeline.failed):
        yield "Every exchange over time", plot_exchanges(summary, tally, timeline)
    if summary.latency.count:
        yield "Percentiles", plot_spectrum(summary, baseline)
    if tally and timeline and (timeline.cells or timeline.failed):
        yield "Rate and load", plot_rate(summary, tally, timeline)
    if summary.servers:
        words = html.escape(servers_words(summary))
        yield "The servers", plot_servers(summary) + (f"<p>{words}." if words else "")
    if summary.failed:
        words = html.escape(gap_words(summary))
        yield "Failures", failures_table(summary) + f"<p>{words}"
    if tally and tally.direct.count:
        yield "Direct", f"<p>{html.escape(direct_words(tally))}."
    if tally and tally.slowest:
        yield "The slowest exchanges", slowest_table(tally)
    command = html.escape(shlex.join(summary.command))
    machine = "several machines"
    if summary.course:
        machine = html.escape(f"{platform.node()}, {platform.platform()}")
    yield (
        "How it was measured",
        f"<p>Command: <code>{command}</code><br>"
        f"Clock: {summary.timestamps} receive timestamps, CLOCK_REALTIME<br>"
        f"Machine: {machine}, Python {platform.python_version()}</p>{METHOD}",
    )


def render_report(summary: Summary, baseline: Summary | None, ending: str) -> str:
    """Return the page; `ending` says why the exit status is what it is."""
    notes = "".join(f"<li>{html.escape(r)}" for r in summary.reasons + summary.notices)
    title = f"{plural(summary.clients, 'client')} → {html.escape(summary.target)}"
    ran = f"ran {format_duration(summary.wall_s * 1e9)} · {summary.started}"
    found = sections(summary, baseline)
    content = "".join(f"<h2>{heading}</h2>{text}" for heading, text in found)
    data = json.dumps(summary.as_json()).replace("<", "\\u003c")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
        " style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width">'
        f"<title>client2: {title}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{title}</h1><p class=soft>{html.escape(summary.headline)} · {ran}"
        f'<div class="tiles">{tiles(summary)}</div>'
        f'<p><b class="{summary.verdict}">Verdict: {summary.verdict}</b>. {ending}'
        f"<ul>{notes}</ul>{content}</main>"
        f'<script type="application/json" id="run">{data}</script></body></html>\n'
    )


# ---- Files: JSON, CSV, limits, baseline ----------------------------------------------
# A file is written whole or not at all, under another name first, then renamed; but the
# CSV as the run goes on.


def write_whole(path: str, text: str) -> None:
    """Write a file in one step, so that no reader finds half of it; OSError."""
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


class CsvWriter:
    """One line per exchange, as the chunks come."""

    HEAD = "client,message,server,due_s,latency_ns,response_time_ns"
    HEAD += ",bytes_sent,bytes_received,outcome\n"

    def __init__(self, file: TextIO, tally: Tally) -> None:
        self.file, self.tally = file, tally
        file.write(self.HEAD)

    def write(self, chunk: Chunk) -> None:
        """Write the exchanges of a chunk."""
        for message, (due, sent, first, last, _, code) in chunk.exchanges():
            outcome = code & 15
            due_s = (due - self.tally.start_ns) / 1e9
            latency = first - sent if outcome == CONFIRMED else ""
            size = self.tally.size_of(chunk.client)
            size = 0 if outcome in (CONNECT, SEND) else size
            self.file.write(
                f"{chunk.client},{message},{chunk.server_of(code)},{due_s:.9f},"
                f"{latency},{last - due},{size},{code >> 20},{OUTCOMES[outcome]}\n"
            )


@dataclass(slots=True)
class Limit:
    """A --fail-if condition: the run fails when `figure` `sign` `value` holds."""

    text: str
    figure: str
    sign: str
    value: float


LIMIT = re.compile(
    r"(?:(latency|response|connect)\.)?(min|mean|p50|p90|p99|p99\.9|max)"
    r"\s*([<>]=?)\s*([\d.]+)\s*(ns|us|µs|ms|s)"
    r"|(failed|rate)\s*([<>]=?)\s*([\d.]+)\s*(%|/s|)"
)
UNITS_NS = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
SIGNS = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}


def parse_limit(text: str) -> Limit:
    """Return a --fail-if condition such as p99>50ms, failed>1%, rate<1000/s."""
    match = LIMIT.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        if match[2]:
            figure = f"{match[1] or 'latency'}.{match[2].replace('.', '_')}"
            return Limit(text, figure, match[3], float(match[4]) * UNITS_NS[match[5]])
        if match[6] + match[9] not in ("failed", "failed%", "rate", "rate/s"):
            raise ValueError
        return Limit(text, match[6] + match[9].strip("/s"), match[7], float(match[8]))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a limit like p99>50ms, response.p90>=1s, failed>1%,"
            " rate<1000/s"
        ) from None


def broken_limits(limits: Iterable[Limit], summary: Summary) -> list[str]:
    """Return a sentence per limit that is broken, or that the run cannot answer."""
    broken = []
    for limit in limits:
        value = figure_of(summary, limit.figure)
        if value is None:
            broken.append(f"{limit.text}: too few exchanges to know")
        elif SIGNS[limit.sign](value, limit.value):
            timed = "." in limit.figure
            shown = format_duration(value) if timed else three_digits(value)
            broken.append(f"{limit.text}: it is {shown}")
    return broken


def figure_of(summary: Summary, name: str) -> float | None:
    """Return a figure by its name in a limit; None when there is no such figure."""
    if name == "rate":
        return summary.per_s
    if name.startswith("failed"):
        tried = max(1, summary.confirmed + summary.failed)
        return 100 * summary.failed / tried if name == "failed%" else summary.failed
    metric, _, key = name.partition(".")
    distribution: Distribution = getattr(summary, metric)
    value: float | None = distribution.as_json()[key]
    return value


def read_summary(path: str) -> Summary:
    """Return the summary in a --json file; ValueError with the reason if it is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if text.startswith("<!doctype"):  # a report: it carries its figures
            text = text.rpartition('id="run">')[2].partition("</script>")[0]
        data = json.loads(text)
        if data["version"] != 1:
            raise ValueError(f"version {data['version']} of the format; 1 wanted")
        servers = {}
        for name, figures in data["servers"].items():
            latency = Distribution.from_json(figures["latency_ns"])
            servers[name] = ServerFigures(int(figures["confirmed"]), latency=latency)
        return Summary(
            command=list(map(str, data["command"])),
            started=str(data["started"]),
            target=str(data["target"]),
            clients=int(data["clients"]),
            wall_s=float(data["wall_s"]),
            timestamps=str(data["timestamps"]),
            interrupted=bool(data["interrupted"]),
            planned=int(data["exchanges"]["planned"]),
            confirmed=int(data["exchanges"]["confirmed"]),
            bytes_sent=int(data["bytes"]["sent"]),
            bytes_received=int(data["bytes"]["received"]),
            latency=Distribution.from_json(data["latency_ns"]),
            response=Distribution.from_json(data["response_time_ns"]),
            connect=Distribution.from_json(data["connect_ns"]),
            servers=servers,
            failures={kind: int(data["failures"][kind]) for kind in KINDS},
            reasons=list(map(str, data["reasons"])),
        )
    except KeyError as error:
        raise ValueError(f"{path} was not written by --json: no {error}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {why(error)}") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} was not written by --json: {error}") from None


def merge_summaries(parts: list[Summary], command: list[str]) -> Summary:
    """Return several machines' runs as one: samples add up, percentiles do not.

    Runs side by side have the wall time of the longest; runs one after the other
    have the sum of theirs.
    """
    whole = dataclasses.replace(parts[0], command=command, reasons=[])
    starts = [calendar.timegm(time.strptime(p.started, UTC_FORMAT)) for p in parts]
    ends = [start + part.wall_s for start, part in zip(starts, parts, strict=True)]
    if max(starts) > min(ends) + 1:  # a start is known to the second
        whole.wall_s = sum(part.wall_s for part in parts)
        whole.notices = ["the runs did not overlap: their wall times were added"]
    else:
        whole.wall_s = max(part.wall_s for part in parts)
    whole.started = min(part.started for part in parts)
    for name in ("clients", "planned", "confirmed", "bytes_sent", "bytes_received"):
        setattr(whole, name, sum(getattr(part, name) for part in parts))
    whole.target = ", ".join(dict.fromkeys(part.target for part in parts))
    whole.interrupted = any(part.interrupted for part in parts)
    if any(part.timestamps == "user" for part in parts):
        whole.timestamps = "user"
    whole.failures = {k: sum(p.failures[k] for p in parts) for k in KINDS}
    for name in ("latency", "response", "connect"):
        setattr(whole, name, Distribution())
        for part in parts:
            getattr(whole, name).merge(getattr(part, name))
    whole.servers = {}
    for k, part in enumerate(parts, 1):
        whole.reasons += [f"run {k}: {reason}" for reason in part.reasons]
        for name, server in part.servers.items():
            ours = whole.servers.setdefault(name, ServerFigures())
            ours.confirmed += server.confirmed
            ours.latency.merge(server.latency)
    whole.headline = f"merged from {plural(len(parts), 'run')}"
    return whole


def baseline_lines(summary: Summary, baseline: Summary) -> Iterator[str]:
    """Yield how this run compares with an earlier one, and how sure that is."""
    lines = []
    for name in ("p50", "p90", "p99"):
        share = PERCENTILES[name]
        found = compare(summary.latency, baseline.latency, share, CONFIDENCE)
        if found:
            ratio, low, high = found
            shown = "slower" if low > 0 else "no difference shown"
            shown = "faster" if high < 0 else shown
            around = f"({low:+.1%} to {high:+.1%})"
            lines.append(f"latency {name} {ratio:+.1%} {around}: {shown}")
    if baseline.per_s:
        change = summary.per_s / baseline.per_s - 1
        lines.append(f"exchanges per second {change:+.1%}")
    for k, line in enumerate(lines):
        yield from wrapped("" if k else "baseline", line)


# ---- The demo: three servers and the balancer as children ----------------------------
# In sessions of their own, so that Ctrl-C reaches this script alone, which ends them in
# order. If it is killed, the end of their standard input ends them (`GUARD`).

USUAL_PORTS = (9991, 9992, 9993, 9990)  # the balancer last
CHILD_START_S = 20.0
CHILD_END_S = 10.0
GUARD = """
import os, runpy, signal, sys, threading
def watch():
    while os.read(0, 512): pass
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=watch, name="guard", daemon=True).start()
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class DemoError(Exception):
    """A child of the demo did not start."""


class Child:
    """A script beside this one; `command` has "{port}" where its port belongs."""

    def __init__(self, port: int, script: str, *command: str) -> None:
        self.path = Path(__file__).resolve().with_name(script)
        if not self.path.exists():
            raise DemoError(f"--demo needs {script} beside client2.py")
        self.port, self.command = port, command
        self.start()

    def start(self) -> None:
        """Start the process, and the thread that reads its standard output."""
        options = (part.format(port=self.port) for part in self.command)
        self.complaints = tempfile.TemporaryFile()  # its standard error
        self.process = subprocess.Popen(
            [sys.executable, "-c", GUARD, str(self.path), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            start_new_session=True,
        )
        self.address: queue.SimpleQueue[str] = queue.SimpleQueue()
        name = f"demo-{self.path.stem}"
        self.reader = threading.Thread(target=self.read_lines, name=name, daemon=True)
        self.reader.start()

    def read_lines(self) -> None:
        """Find the address in the first line; let the rest pass (thread `demo-…`)."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            match = re.match(rb"listening on (\S+:\d+)", line)
            if match:
                self.address.put(match[1].decode())
        self.address.put("")

    def listening(self) -> str:
        """Return the address it listens on; DemoError if it does not start."""
        try:
            found = self.address.get(timeout=CHILD_START_S)
        except queue.Empty:
            found = ""
        if found:
            return found
        if not self.port:
            raise DemoError(f"{self.path.name} did not start")
        self.stop()  # its port is taken: let the system choose one
        self.complaints.close()
        self.port = 0
        self.start()
        return self.listening()

    def stop(self) -> None:
        """Ask it to stop, wait, and kill it if it does not."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.terminate()
        try:
            self.process.wait(CHILD_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()
        self.reader.join()
        self.process.stdout.close()

    def end(self) -> None:
        """Stop it for good, and pass on what it complained about."""
        self.stop()
        with self.complaints:
            self.complaints.seek(0)
            sys.stderr.write(self.complaints.read().decode(errors="replace"))


@contextlib.contextmanager
def demo_system(quiet: bool) -> Iterator[str]:
    """Run three servers and the balancer; yield the balancer's address."""
    children: list[Child] = []
    try:
        for port in USUAL_PORTS[:3]:
            children.append(Child(port, "server2.py", "{port}"))
        servers = [child.listening() for child in children]
        options = ["--listen=127.0.0.1:{port}", *(f"--server={a}" for a in servers)]
        children.append(Child(USUAL_PORTS[3], "load_balancer.py", *options))
        target = children[-1].listening()
        if not quiet:
            ports = ", ".join(address.rpartition(":")[2] for address in servers)
            print(f"demo: servers {ports} behind the balancer {target}\n", flush=True)
        yield target
    finally:
        for child in reversed(children):  # the balancer first
            child.end()


# ---- Options and the main thread -----------------------------------------------------
# Everything wrong with the options is said before a client is started.


def number(
    kind: Callable[[str], Any], least: float, above: bool = False
) -> Callable[[str], Any]:
    """Return a parser of numbers that refuses what is too small or not finite."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not (math.isfinite(value) and (value > least if above else value >= least)):
            words = "above" if above else "at least"
            raise argparse.ArgumentTypeError(f"{text} is not {words} {least:g}")
        return value

    return parse


def worker_count(text: str) -> int:
    """Return the number of worker processes; 0 stands for auto."""
    return 0 if text == "auto" else int(number(int, 1)(text))


def address_list(text: str) -> list[tuple[str, int]]:
    """Return the addresses of a comma-separated list."""
    return [parse_address(part) for part in text.split(",")]


# flag, placeholder, parser of its text, default, help; grouped as --help shows them.
positive = number(float, 0, above=True)
LOAD_OPTIONS: tuple[tuple[str, str, Callable[[str], Any], Any, str], ...] = (
    ("--target", "HOST:PORT", parse_address, None,
     "connect to this address (default: 127.0.0.1:9990)"),
    ("--messages", "COUNT", number(int, 1), None,
     "send so many per client (default: 1; with --duration, no limit)"),
    ("--duration", "S", positive, 0.0,
     "send for so many seconds (default: until all messages are sent)"),
    ("--rate", "R", positive, 0.0,
     "send R messages per second, all clients together, on a fixed schedule"
     " (default: each client sends when its last reply has come)"),
    ("--ramp", "S", number(float, 0), 0.0,
     "spread the clients' starts over so many seconds (default: 0)"),
    ("--message", "TEXT", str, None,
     'send this line (default: "Hello from client <i>!")'),
    ("--size", "BYTES", number(int, 1), 0,
     "fill up or cut the message to this size, newline included (default: off)"),
    ("--timeout", "S", positive, 5.0,
     "wait so long for a connection, and for a whole reply (default: 5)"),
    ("--workers", "COUNT", worker_count, 1,
     'spread the clients over processes; "auto": as many as it takes (default: 1)'),
    ("--direct", "HOST:PORT,...", address_list, [],
     "pair each exchange with one straight to the same server: what the balancer"
     " costs (default: off)"),
)  # fmt: skip
FILE_OPTIONS = (
    ("--json", "FILE", "write the figures (default: off)"),
    ("--csv", "FILE", "write one line per exchange (default: off)"),
    ("--report", "FILE.html", "write a page with plots, in one file (default: off)"),
    ("--baseline", "FILE.json", "compare with an earlier run (default: off)"),
)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options; SystemExit with 2 when they make no sense."""
    parser = Parser(
        prog="client2.py",
        description="Start N clients at once and measure every exchange.",
        epilog="Percentiles are nearest rank. Exit status: 0 all confirmed, 1 something"
        " failed, 2 usage, 99 a --fail-if limit broken, 130 interrupted.",
    )
    add = parser.add_argument
    add("clients", metavar="N", nargs="?", type=number(int, 1), help="start N clients")
    help_demo = "start three servers and the balancer first, stop them afterwards"
    add("--demo", action="store_true", help=help_demo)
    add = parser.add_argument_group("load").add_argument
    for flag, place, kind, default, words in LOAD_OPTIONS:
        add(flag, metavar=place, type=kind, default=default, help=words)
    add("--reconnect", action="store_true",
        help="open a new connection for every message (default: keep it)")  # fmt: skip
    add("--any-reply", action="store_true",
        help="take any reply that ends a line, e.g. of another protocol (default: it"
        " must be our message)")  # fmt: skip
    output = parser.add_argument_group("output")
    for flag, place, words in FILE_OPTIONS:
        output.add_argument(flag, metavar=place, help=words)
    help_merge = "run nothing: add up what --json wrote, e.g. on several machines"
    output.add_argument("--merge", metavar="FILE.json", nargs="+", help=help_merge)
    output.add_argument("--fail-if", metavar="LIMIT", type=parse_limit, default=[],
        action="append", help="exit with 99 when this holds: p99>50ms,"
        " response.p50>=1s, failed>1%%, rate<1000/s; repeatable")  # fmt: skip
    add = output.add_mutually_exclusive_group().add_argument
    add("--verbose", action="store_true", help="show every exchange as well")
    add("--quiet", action="store_true", help="print errors only")
    options = parser.parse_args(argv)
    check_options(parser, options)
    return options


def check_options(parser: Parser, options: argparse.Namespace) -> None:
    """Refuse options that contradict each other, and files that cannot be written."""
    if (options.clients is None) == (options.merge is None):
        parser.error("give the number of clients N, or files to --merge")
    if options.demo and (options.target or options.merge):
        parser.error("--demo brings its own target and runs by itself")
    if options.merge:
        flags = [flag for flag, *_ in LOAD_OPTIONS] + ["--reconnect", "--any-reply"]
        for flag in [*flags, "--csv"]:
            name = flag[2:].replace("-", "_")
            if getattr(options, name) != parser.get_default(name):
                parser.error(f"--merge runs nothing: leave out {flag}")
    if options.rate and options.ramp:
        parser.error("--rate is a schedule of its own: leave out --ramp")
    if options.message and "\n" in options.message and not options.any_reply:
        parser.error("--message is one line; more lines need --any-reply")
    for name in ("json", "csv", "report"):
        path = getattr(options, name)
        folder = path and (os.path.dirname(path) or ".")
        if path and (os.path.isdir(path) or not os.access(folder, os.W_OK)):
            parser.error(f"--{name}: cannot write {path!r}")


def resolve(address: tuple[str, int]) -> Addresses:
    """Return the socket addresses of a host and port; SystemExit(2) if none."""
    try:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        complain(f"cannot resolve {address[0]!r}: {reason}")
        raise SystemExit(2) from None
    return [(family, place) for family, _, _, _, place in found]


def complain(text: str) -> None:
    """Say in one line on standard error what is wrong."""
    print(f"client2.py: {text}", file=sys.stderr, flush=True)


def make_config(options: argparse.Namespace, target: tuple[str, int]) -> Config:
    """Return the run that the options describe, names resolved, workers counted."""
    clients, message = options.clients, options.message
    messages = options.messages or (0 if options.duration else 1)
    few = clients <= CLIENTS_SHOWN and 0 < clients * messages <= EXCHANGES_SHOWN
    each = descriptors_each(options.direct)
    return Config(
        target=format_address(target),
        addresses=resolve(target),
        clients=clients,
        messages=messages,
        duration_s=options.duration,
        rate=options.rate,
        ramp_s=options.ramp,
        message=None if message is None else os.fsencode(message),
        size=options.size,
        reconnect=options.reconnect,
        timeout_s=options.timeout,
        any_reply=options.any_reply,
        workers=options.workers or auto_workers(clients, each),
        direct={str(a[1]): resolve(a) for a in options.direct},
        keep_replies=not options.quiet and (few or options.verbose),
    )


def descriptors_each(direct: Iterable[Any]) -> int:
    """Return how many files a client has open: two with --direct."""
    return 2 if direct else 1


def auto_workers(clients: int, each: int) -> int:
    """Return how many processes keep up with the clients, and can open their files."""
    limit = raise_descriptor_limit()
    room = clients if limit is None else max(1, (limit - SPARE_DESCRIPTORS) // each)
    many = min(math.ceil(clients / CLIENTS_PER_WORKER), usable_cores() + 1)
    return max(many, math.ceil(clients / room))


def check_descriptors(config: Config) -> None:
    """Raise the limit of open files; SystemExit(2) if the clients do not fit."""
    limit = raise_descriptor_limit()
    each = descriptors_each(config.direct)
    need = each * math.ceil(config.clients / config.workers) + SPARE_DESCRIPTORS
    if limit is not None and need > limit:
        complain(
            f"{config.clients} clients need {need} open files and this process may have"
            f" {limit}: raise the limit (ulimit -n {need}), or use fewer or --workers"
        )
        raise SystemExit(2)


@contextlib.contextmanager
def signals_to(inbox: Inbox) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into an event; a second one ends at once."""

    def note(signum: int, frame: Any) -> None:
        signal.signal(signum, signal.SIG_DFL)
        inbox.put(("signal", signum))  # SimpleQueue.put may interrupt itself

    if threading.current_thread() is not threading.main_thread():
        yield  # called from a test's thread: signals are not ours
        return
    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def measure(options: argparse.Namespace, command: list[str]) -> Summary:
    """Run what the options describe, with the demo around it if wanted."""
    inbox: Inbox = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals_to(inbox))
        target = options.target or ("127.0.0.1", 9990)
        if options.demo:
            target = parse_address(stack.enter_context(demo_system(options.quiet)))
        config = make_config(options, target)
        check_descriptors(config)
        run = Run(config, inbox)
        run.tally.timeline = Timeline() if options.report else None
        if options.csv:
            file = stack.enter_context(open(options.csv, "w", encoding="utf-8"))
            run.listeners.append(CsvWriter(file, run.tally).write)
        run.execute(Progress(config, sys.stderr, not options.quiet))
        return summarize(run, command)


def unreachable(summary: Summary) -> str:
    """Return one line about a target that nobody could connect to, "" otherwise."""
    course = summary.course
    if course is None or course.connected or not course.refusals or summary.confirmed:
        return ""
    reason = course.refusals.most_common(1)[0][0]
    if "refused" not in reason:
        return f"cannot connect to {summary.target}: {reason}"
    start = "start the balancer with: python load_balancer.py"
    return f"nobody listens at {summary.target}: {start}"


@contextlib.contextmanager
def leaving_reader() -> Iterator[None]:
    """Let the reader of our output go before its end (`| head`), as other tools do."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # for the flush at exit
        os.close(nowhere)


def judge(summary: Summary, broken: list[str]) -> tuple[int, str]:
    """Return the exit status, as the end of `--help` lists them, and the reason."""
    lost = summary.course.lost if summary.course else 0
    if summary.interrupted:
        return 130, "interrupted"
    if broken:
        return 99, "a limit is broken"
    if lost:
        return 1, f"{plural(lost, 'client')} lost"
    if summary.failed:
        return 1, f"{grouped(summary.failed)} failed"
    if not summary.confirmed:
        return 1, "none confirmed"
    return 0, "all confirmed"


def finish(summary: Summary, options: argparse.Namespace) -> int:
    """Write the files and print what was asked for; return the exit status."""
    broken = broken_limits(options.fail_if, summary)
    status, reason = judge(summary, broken)
    ending = f"exit {status}: {reason}"
    baseline = read_summary(options.baseline) if options.baseline else None
    if options.json:
        write_whole(options.json, json.dumps(summary.as_json(), indent=1) + "\n")
    if options.report:
        words = html.escape("; ".join([ending, *broken])).capitalize()
        write_whole(options.report, render_report(summary, baseline, words))
    nobody = unreachable(summary)
    if nobody:
        complain(nobody)
    elif not options.quiet:
        for name in ("report", "json", "csv"):
            path = getattr(options, name)
            ending += f"   {name}: {path}" if path else ""
        with leaving_reader():
            show(summary, baseline, broken, ending)
    return status


def show(
    summary: Summary, baseline: Summary | None, broken: list[str], ending: str
) -> None:
    """Print exchanges, summary, comparison, broken limits, and the ending."""
    tally = summary.tally
    if tally and tally.kept and tally.config.keep_replies:
        print("\n".join(exchange_lines(tally)), end="\n\n")
    print_summary(summary, sys.stdout)
    if baseline:
        print("\n".join(baseline_lines(summary, baseline)))
    for words in broken:
        print("\n".join(wrapped("limit", f"broken: {words}")))
    print(f" {ending}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the client; return the exit status of the table in `parse_args`."""
    with contextlib.suppress(AttributeError, OSError):
        # A thread that wakes does not push the server off its core (sched(7)).
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    argv = sys.argv[1:] if argv is None else argv
    options = parse_args(argv)
    command = ["client2.py", *argv]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without these characters
    try:
        if options.baseline:
            read_summary(options.baseline)  # a mistake is said before the run
        if options.merge:
            parts = [read_summary(path) for path in options.merge]
            summary = merge_summaries(parts, command)
        else:
            summary = measure(options, command)
        return finish(summary, options)
    except DemoError as error:
        complain(str(error))
        return 1
    except ValueError as error:
        complain(str(error))
        return 2
    except OSError as error:
        complain(f"{error.filename or 'error'}: {why(error)}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
