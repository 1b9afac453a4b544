#!/usr/bin/env python3
"""Start N clients at once, and measure every exchange by the kernel's clock.

    client-1 ─┐  Hello from client 1!                ┌─► server 9991
    client-2 ─┼────────► load balancer :9990 ────────┼─► server 9992
    client-N ─┘  Server 9991 received: Hello from…   └─► server 9993

Each client has its own thread and connection. An exchange is one message (a line) and
its reply, which must be `Server <port> received: ` and the same bytes
(`Connection._check`). In a closed loop a client sends the next message when the reply
is there; in an open loop (--rate) every message has its moment in one schedule.

    due ── sent ──► kernel … network, balancer, server … kernel ──► first … last byte
           ├────────────────── latency ───────────────────────────────┤
     ├──────────────────────── response time ──────────────────────────────────┤

Latency ends when the reply's first byte reaches this machine's kernel, by its receive
timestamp (`Connection._arrival`, inlined in `exchange_many`): how late the client's
thread wakes up is on a line of its own. `Tally._add_part` subtracts for the percentiles
(`Client._compare_direct` for --direct; for single exchanges `exchange_lines`,
`CsvWriter` and `draw_dots`).

Data flow: options → Config → N × Client, each with a Connection → rows (an exchange
each), handed over as a Chunk → Tally adds up → Summary, with the verdict
(`reasons_to_doubt`) and the exit status → terminal, JSON, HTML. --csv is written from
the chunks, --merge begins with Summaries.

Threads of the main process:
    MainThread   main → measure → Run.execute: orders to the clients, their chunks into
                 the Tally, the progress line; then all output
    client-K     Client.run (with --workers: in the workers)
    worker-K     WorkerGroup._read_events: passes on what a worker process sends
    demo-…       Child._read_lines: lets what the demo's scripts print go by
Threads of a worker process:
    MainThread   serve_as_worker: passes its clients' events to the main process
    orders       follow_orders: carries out what the main process says
The only lock is Connection's; the rest is handed over through queues (the Inbox of a
process; Child.address) and the workers' pipes, or is written before an event is set
(Gates).

To stop: --duration ends with the order `stop`, nothing more is sent; Ctrl-C or SIGTERM
is `cut`, which ends the waits, too; a second one ends the program at once.

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
import multiprocessing
import operator
import os
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
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection as MpConnection
from pathlib import Path
from time import time_ns
from typing import Any, NoReturn, TextIO

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Percentiles are nearest rank; one is printed when the sample can carry its 95 % range,
# the median always (its range from 6 exchanges on).
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
LABELS = {"p50": "p50", "p90": "p90", "p99": "p99", "p99_9": "p99.9"}
NEEDED = {"p50": 1, "p90": 29, "p99": 299, "p99_9": 2995}
CONFIDENCE = 0.95
EXACT_LIMIT = 1_000_000  # samples kept one by one (8 bytes each), then a histogram
HDR_MOST_BYTES = 1 << 24  # of a histogram in a file

# A row is an exchange: due, sent, first, last, seen (CLOCK_REALTIME, ns), and a code:
# the outcome (4 bits), the server's index in the chunk (16), bytes received (the rest).
# Of a failed one, first, last and seen are the moment when it was given up.
ROW_FIELDS = 6
FAILURES = ("connect", "send", "timeout", "reset", "closed", "mismatch", "error_reply")
OUTCOMES = ("confirmed", *FAILURES)  # an outcome is an index of these
CONFIRMED, CONNECT, SEND, TIMEOUT, RESET, CLOSED, MISMATCH, ERROR_REPLY = range(8)
OUTCOME_MASK, KEY_MASK = 0xF, 0xFFFFF  # a code's key: outcome and server
SERVER_SHIFT, BYTES_SHIFT = 4, 20
UNKNOWN_SERVER = 0xFFFF

LINUX = sys.platform == "linux"
TWO_LONGS = struct.Struct("@ll")  # a timespec, a timeval
# Linux stamps received segments when asked (socket(7), timestamping.rst 1.1). Python
# has no name for option 35 of asm-generic/socket.h, which is also the message's type.
TIMESTAMP_OPTION = 35 if LINUX else None
STAMP_SPACE = 64  # bytes for one control message of two longs
TCP_INFO_BYTES = 160  # up to tcpi_data_segs_out, linux/tcp.h
TCP_INFO_RETRANSMITS, TCP_INFO_DATA_SEGMENTS_IN = 100, 152
TIMED_OUT = (BlockingIOError, TimeoutError)  # by a kernel's deadline, by Python's

# A client hands its rows over every HANDOVER_NS: so old is the progress line. Many do
# so less often, and all at the same moments: a hand-over holds the interpreter lock:
# one disturbance is better than many.
HANDOVER_NS, HANDOVER_NS_PER_CLIENT, HANDOVER_MOST_NS = 5 * 10**8, 2 * 10**6, 2 * 10**9
MOST_REPEATS = 4096  # exchanges between two looks at the stop, whatever the clock does
CLOCK_STEP_NS = 500_000_000  # slewing and a late thread stay below this
TICK_S = 0.25  # the main thread's heartbeat; waking later than it tells of a stop
STALL_S = 0.5  # a heartbeat later than this: the client was stopped or starved
REDRAW_S = 0.25  # between two progress lines
RATE_LINES = 16  # progress lines over which it shows the rate
RECENT = 2000  # latencies that the progress' p99 is taken from, at most
GAP_SHOWN_S = 0.5  # a gap without a good reply is worth a line from here on
FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 1.0  # pause after a connect that failed
STACK_BYTES = 256 * 1024  # a client's thread needs little, and there may be thousands
# Of --workers auto: one lock serves so many clients well. Processes beyond one more
# than there are cores cost as much as they bring, unless threads are very many.
CLIENTS_PER_WORKER, MANY_CLIENTS_PER_WORKER, WORKERS_PER_CORE = 12, 160, 4
AWAKE_TRIES = 150  # the only client asks so often, about 200 µs, before it sleeps
REARM_BELOW = 0.99  # of the timeout left: the kernel's deadline must be set again
SPARE_DESCRIPTORS = 40  # standard streams, pipes, files besides the connections
EXCHANGES_SHOWN = 120  # lines, for a dozen clients or fewer
CLIENTS_SHOWN = 12
SLOWEST_SHOWN = 10  # in the report
DOTS_SHOWN = 4000  # in the report; more exchanges than this become a heat map
TIME_BINS = 240  # of a timeline, at most; then two become one
ANY_REPLY_BYTES = 64 * 1024 * 1024  # longest line taken with --any-reply
SYN_RETRY_NS = 900_000_000  # Linux sends a lost SYN again after 1 s

LARGEST = 1e9  # of numbers given on the command line, and of ...
MOST_EXCHANGES, LONGEST_NS = 10**12, 2**62  # ... those in a file

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
    escaped = (c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return "".join(escaped) + ("…" if len(data) > limit else "")


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
    for unit_ns, name in ((10**9, "s"), (10**6, "ms")):
        if duration_ns >= unit_ns:
            return unit_ns, name
    return 1000, "µs"


def metric_unit(metric: Distribution) -> tuple[int, str]:
    """Return the unit for all of a metric's figures, by its median and its maximum."""
    return time_unit(max(metric.percentile(0.5), metric.maximum / 10))


def in_unit(value: float | None, unit_ns: int) -> str:
    """Return a figure in a unit; a dash for one that is not known."""
    return "–" if value is None else three_digits(value / unit_ns)


def format_range(around: tuple[int, int] | None, unit_ns: int) -> str:
    """Return a range in a unit: 1.43–1.80; two digits below 1."""
    if around is None:
        return "–"
    low, high = (in_unit(v, unit_ns)[: 5 if v < unit_ns else None] for v in around)
    return f"{low}–{high}"


def format_duration(duration_ns: float) -> str:
    """Return a duration with its unit: 1.62 ms."""
    unit_ns, name = time_unit(duration_ns)
    return f"{three_digits(duration_ns / unit_ns)} {name}"


def format_throughput(bytes_per_s: float) -> str:
    """Return a throughput with its unit: 129 kB/s."""
    for unit, name in ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")):
        if bytes_per_s >= unit:
            return f"{three_digits(bytes_per_s / unit)} {name}"
    return f"{three_digits(bytes_per_s)} B/s"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: 1 byte, 2 bytes."""
    return f"{grouped(number)} {noun}{'' if number == 1 else 's'}"


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
        body = zlib.decompressobj().decompress(data[8 : 8 + length], HDR_MOST_BYTES)
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
    if counts and max(counts) > hdr_index(LONGEST_NS):
        raise ValueError("histogram with a value that is none")
    return counts


def percentile_ranks(
    count: int, p: float, confidence: float = CONFIDENCE
) -> tuple[int, int] | None:
    """Return the ranks (1 to count) between which a percentile lies, None if unknown.

    The number of samples below the percentile is Binomial(count, p): the range
    from one order statistic to another holds it with a probability that needs no
    assumption about the distribution (Hahn and Meeker, Statistical Intervals, 5.2).
    """
    miss = 1 - confidence
    if count < 1 or p**count > miss:
        return None
    spread = 8 * math.sqrt(count * p * (1 - p)) + 8
    low = max(0, math.floor(count * p - spread))
    high = min(count, math.ceil(count * p + spread))
    chances = [binomial(count, p, k) for k in range(low, high + 1)]
    # `above`: how likely the percentile lies beyond rank `upper`; `below` likewise.
    upper, above = high + 1, 0.0
    while above + chances[upper - 1 - low] <= miss / 2:
        upper -= 1
        above += chances[upper - low]
    if upper > count:  # there is no such rank
        upper, above = count, chances[-1]
    lower, below = low, 0.0
    while below + chances[lower - low] <= miss - above:
        below += chances[lower - low]
        lower += 1
    return (lower, upper) if lower >= 1 else None


def binomial(count: int, p: float, k: int) -> float:
    """Return the probability of k successes in `count` trials."""
    ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
    return math.exp(ways + k * math.log(p) + (count - k) * math.log1p(-p))


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
        """Add durations in ns."""
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
            self.counts, self.values = self.hdr_counts(), None
            self.counts.update(map(hdr_index, values))

    def merge(self, other: Distribution) -> None:
        """Add another distribution's samples, or its counts."""
        if other.values is not None:
            self.extend(other.values)
            return
        self.counts, self.values = self.hdr_counts(), None
        self.counts.update(other.counts)
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def hdr_counts(self) -> Counter[int]:
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

    def percentile(self, p: float) -> int:
        """Return the value at rank ⌈p · count⌉ (nearest rank); 0 when empty."""
        rank = math.ceil(round(p * self.count, 6))  # 0.9 · 10 is 9, not 9.000…1
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
        self, p: float, confidence: float = CONFIDENCE
    ) -> tuple[int, int] | None:
        """Return the percentile's range by order statistics, None if not to be had."""
        ranks = percentile_ranks(self.count, p, confidence)
        return ranks and (self.at_rank(ranks[0]), self.at_rank(ranks[1]))

    def as_json(self) -> dict[str, Any]:
        """Return what --json has of a metric, in ns; `from_json` reads it back."""
        empty = not self.count
        return {
            "count": self.count,
            "min": None if empty else self.minimum,
            "mean": None if empty else round(self.total / self.count),
            **{name: self.reported(name) for name in PERCENTILES},
            "max": None if empty else self.maximum,
            "hdr": hdr_encode(self.hdr_counts(), self.maximum),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Distribution:
        """Return what `as_json` wrote; KeyError, TypeError or ValueError if not."""
        self = cls()
        self.counts, self.count = hdr_decode(data["hdr"]), int(data["count"])
        if self.count != sum(self.counts.values()) or self.count > MOST_EXCHANGES:
            raise ValueError("its histogram has another count")
        if self.count:
            self.values = None
            self.minimum, self.maximum = int(data["min"]), int(data["max"])
            self.total = int(data["mean"]) * self.count
            if not 0 <= self.minimum <= self.maximum <= LONGEST_NS:
                raise ValueError("its least value is more than its largest")
        return self


def compare(
    ours: Distribution, theirs: Distribution, p: float, confidence: float
) -> tuple[float, float, float] | None:
    """Return how much larger our percentile is: (ratio, lowest, highest), minus 1.

    The range joins both ranges on a log scale (MOVER: Zou and Donner, 2008).
    """
    a, b = ours.range_of(p, confidence), theirs.range_of(p, confidence)
    if not (a and b and min(a + b) > 0):
        return None
    x, y = math.log(ours.percentile(p)), math.log(theirs.percentile(p))
    down = math.hypot(x - math.log(a[0]), math.log(b[1]) - y)
    up = math.hypot(math.log(a[1]) - x, y - math.log(b[0]))
    return math.expm1(x - y), math.expm1(x - y - down), math.expm1(x - y + up)


class Timeline:
    """Counts by time and latency in at most TIME_BINS bins, for a run of any length.

    A latency's level is its HdrHistogram index in steps of 128: eight per doubling.
    """

    def __init__(self) -> None:
        self.width_ns = 1_000_000  # of a bin
        self.cells: Counter[tuple[int, int]] = Counter()  # confirmed, by (bin, level)
        self.failed: Counter[int] = Counter()  # by bin
        self.in_flight_ns: Counter[int] = Counter()  # exchanges in flight × time

    def add(self, start_ns: int, sent: array[int], latency: array[int],
            last: array[int]) -> None:  # fmt: skip
        """Add confirmed exchanges of a run that began at `start_ns`."""
        bins = self._add_flights(start_ns, sent, last)
        levels = (hdr_index(value) >> 7 for value in latency)
        self.cells.update(zip(bins, levels, strict=True))

    def add_failures(
        self, start_ns: int, due: array[int], given_up: array[int]
    ) -> None:
        """Add exchanges that failed."""
        self.failed.update(self._add_flights(start_ns, due, given_up))

    def _add_flights(
        self, start_ns: int, begins: array[int], ends: array[int]
    ) -> list[int]:
        """Add exchanges to those in flight; return the bins in which they ended."""
        self._widen(max(ends) - start_ns)
        width = self.width_ns
        bins = [max(0, moment - start_ns) // width for moment in ends]
        for begin, end, last_bin in zip(begins, ends, bins, strict=True):
            begin = max(0, begin - start_ns)
            for k in range(begin // width, last_bin):
                self.in_flight_ns[k] += (k + 1) * width - begin
                begin = (k + 1) * width
            self.in_flight_ns[last_bin] += max(0, end - start_ns - begin)
        return bins

    def _widen(self, latest_ns: int) -> None:
        """Make bins twice as wide until the latest moment has one."""
        while latest_ns >= TIME_BINS * self.width_ns:
            self.width_ns *= 2
            cells: Counter[tuple[int, int]] = Counter()
            for (k, level), number in self.cells.items():
                cells[k // 2, level] += number
            self.cells, self.failed = cells, joined(self.failed, 2)
            self.in_flight_ns = joined(self.in_flight_ns, 2)

    def columns(self, most: int) -> tuple[float, dict[int, Counter[int]]]:
        """Return (seconds per column, {column: Counter of levels})."""
        per_column = max((k for k, _ in self.cells), default=0) // most + 1
        columns: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for (k, level), number in self.cells.items():
            columns[k // per_column][level] += number
        return per_column * self.width_ns / 1e9, columns


def joined(counts: Counter[int], number: int) -> Counter[int]:
    """Return counts by bin with `number` bins made one."""
    result: Counter[int] = Counter()
    for k, value in counts.items():
        result[k // number] += value
    return result


def level_percentile(levels: Counter[int], p: float) -> float:
    """Return a percentile of levels, in ns: the middle of its level."""
    rank = math.ceil(p * levels.total())
    for level in sorted(levels):
        rank -= levels[level]
        if rank <= 0:
            break
    return (hdr_highest(level << 7) + hdr_highest((level << 7) + 127)) / 2


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
    """What a client measured since its last chunk: plain data, handed over whole.

    A failed exchange ends its chunk: only the last row can be one.
    """

    client: int
    rows: array[int] = field(default_factory=lambda: array("q"))
    connects: array[int] = field(default_factory=lambda: array("q"))  # ns
    send_delays: array[int] = field(default_factory=lambda: array("q"))  # ns
    servers: list[str] = field(default_factory=list)  # names, by the rows' codes
    connected_to: Counter[str] = field(default_factory=Counter)  # by server's name
    failure: str = ""  # of the last row, in words
    replies: list[bytes] = field(default_factory=list)  # beginnings, if kept
    differences: array[int] = field(default_factory=lambda: array("q"))  # --direct, ns
    direct_failed: int = 0
    messages_before: int = 0  # number of the first row's message, less one
    retransmits: int = 0
    merged_segments: int = 0  # segments read together with another one
    unstamped: int = 0  # reads without a kernel timestamp
    final: bool = False

    def exchanges(self) -> Iterator[tuple[int, array[int]]]:
        """Yield (number of the message, row) in order."""
        for number, offset in enumerate(range(0, len(self.rows), ROW_FIELDS), 1):
            row = self.rows[offset : offset + ROW_FIELDS]
            yield self.messages_before + number, row

    def server_of(self, code: int) -> str:
        """Return the server that a row's code names, "" if none."""
        index = code >> SERVER_SHIFT & 0xFFFF
        return "" if index == UNKNOWN_SERVER else self.servers[index]


# Events for the main thread, (name, payload), and who sends them:
#   connected  (client, words of the failure or "")   client-K, before the start
#   chunk      Chunk                                  client-K
#   tick       None: nothing came for a while         who waits for events
#   stalled    seconds that a heartbeat was late      the same, a worker too
#   used       seconds of processor time              a worker, at its end
#   ended      numbers of its clients                 worker-K: the process has ended
#   signal     number                                 the signal handler
Inbox = queue.SimpleQueue[Any]


class ExchangeError(Exception):
    """An exchange failed: an index of OUTCOMES, words, and when it was sent (or 0)."""

    def __init__(self, outcome: int, words: str, sent: int = 0) -> None:
        super().__init__(words)
        self.outcome, self.sent = outcome, sent


def say_why(error: OSError) -> str:
    """Return the reason of a failed call in lower-case words, without its number."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return "timed out"
    return (error.strerror or str(error) or type(error).__name__).lower()


# ---- One connection, one client ------------------------------------------------------
# The measuring itself; nothing is shared but the socket, for the cut. A connection's
# first reply is read one byte first, to have the first byte's own stamp. Where replies
# come in one piece, the next ones cost one send and one receive (`exchange_many`);
# others go to `_complete`.


# When the message was handed to the kernel, when the reply's first and last byte
# reached the kernel, and when the client's thread saw the last one (ns of
# CLOCK_REALTIME, the timestamps' clock); the reply's length.
Times = tuple[int, int, int, int, int]
Control = Sequence[tuple[int, int, bytes]]  # control messages: at most one, the stamp


def ask_for_stamps(sock: socket.socket) -> None:
    """Have received segments stamped, where the system can."""
    if TIMESTAMP_OPTION is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, TIMESTAMP_OPTION, 1)


def read_stamped(sock: socket.socket, size: int) -> tuple[bytes, Control]:
    """Receive, with the stamp of the last segment consumed where there is one."""
    if TIMESTAMP_OPTION is None:
        return sock.recv(size), ()
    return sock.recvmsg(size, STAMP_SPACE)[:2]


def segments_of(sock: socket.socket) -> tuple[int, int]:
    """Return how many segments were sent again, and how many came with data."""
    if LINUX:  # other systems arrange TCP_INFO in another way
        with contextlib.suppress(OSError, struct.error):
            option = socket.IPPROTO_TCP, socket.TCP_INFO
            info = sock.getsockopt(*option, TCP_INFO_BYTES)
            (resent,) = struct.unpack_from("@I", info, TCP_INFO_RETRANSMITS)
            (came,) = struct.unpack_from("@I", info, TCP_INFO_DATA_SEGMENTS_IN)
            return resent, came
    return 0, 0


class Connection:
    """A TCP connection to one address, used by its client's thread alone.

    `lock` guards `sock` between that thread, which replaces it, and the one that may
    cut it (the main one; "orders" in a worker): a closed descriptor's number can be
    another file's at once.
    """

    def __init__(self, addresses: Addresses, config: Config, message: bytes,
                 is_cut: threading.Event) -> None:  # fmt: skip
        self.addresses, self.message, self.is_cut = addresses, message, is_cut
        self.timeout_s, self.any_reply = config.timeout_s, config.any_reply
        # Whose message a reply can be; with one text for all nobody can tell.
        self.known_clients = config.clients if config.message is None else 0
        self.waits_awake = config.clients == 1 and usable_cores() > 1
        self.read_size = max(4096, len(message) + 64)  # takes a usual reply whole
        self.longest = ANY_REPLY_BYTES if config.any_reply else 2 * self.read_size
        self.lock = threading.Lock()
        self.sock: socket.socket | None = None
        self.server = ""  # that answered last
        self.expected: bytes | None = None  # what it will answer again
        self.in_one_piece = False  # so the last reply came
        self.ended_by_eof = False  # so the last reply ended
        self.reply_count = self.retransmits = self.merged_segments = self.unstamped = 0

    def connect(self) -> int:
        """Connect and return the connect time in ns; raise ExchangeError."""
        reason = "no address"
        for family, address in self.addresses:
            try:
                sock = self._new_socket(family)
                began = time_ns()
                sock.connect(address)
            except OSError as error:
                late = f"no answer in {self.timeout_s:g} s"
                reason = late if isinstance(error, TIMED_OUT) else say_why(error)
                self._drop_socket()
                continue
            took = max(0, time_ns() - began)  # the clock may have been set back
            self.expected, self.in_one_piece, self.reply_count = None, False, 0
            self.ended_by_eof, self.server = False, ""
            return took
        raise ExchangeError(CONNECT, reason)

    def _new_socket(self, family: int) -> socket.socket:
        """Return a socket that `cut` can reach, with its options set."""
        sock = socket.socket(family, socket.SOCK_STREAM)
        with self.lock:
            self.sock = sock
        if self.is_cut.is_set():  # made after cut() had looked
            raise ConnectionAbortedError
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ask_for_stamps(sock)  # before the first segment
        self._set_deadline(sock, self.timeout_s)
        return sock

    def _set_deadline(self, sock: socket.socket, seconds: float) -> None:
        """Bound a connect, a send, and a receive."""
        if not LINUX:
            sock.settimeout(max(seconds, 1e-6))
            return
        # A deadline in the kernel saves the poll() that settimeout() makes.
        value = TWO_LONGS.pack(*divmod(max(1, round(seconds * 1e6)), 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    @property
    def first_read(self) -> int:
        """Bytes to ask for at first: a known reply and one more, else a single one."""
        return len(self.expected) + 1 if self.in_one_piece and self.expected else 1

    def exchange(self) -> Times:
        """Send the message and read its reply; raise ExchangeError."""
        sock, sending = self.sock, True
        assert sock is not None
        sent = time_ns()
        try:
            sock.sendall(self.message)
            sending = False
            data, control = read_stamped(sock, self.first_read)
        except OSError as error:
            raise self._failure(error, sending, sent) from None
        return self._complete(sent, data, control, time_ns())

    def exchange_many(
        self, rows: array[int], code: int, most: int, until_ns: int
    ) -> Times | None:
        """Make up to `most` exchanges like the last one, and append their rows.

        Here a run spends its time: one send, one receive, and nothing else that
        could be spared. The first exchange that is different (a reply in pieces, no
        timestamp) is returned, completed; None after `most` or `until_ns`.
        """
        sock, message, expected = self.sock, self.message, self.expected
        assert sock is not None and expected is not None
        send, size, unpack = sock.sendall, self.first_read, TWO_LONGS.unpack
        receive = self._receive_awake if self.waits_awake else sock.recvmsg
        code |= len(expected) << BYTES_SHIFT
        before, sending, sent = len(rows), True, 0
        try:
            for _ in range(most):
                sending = True
                sent = time_ns()
                send(message)
                sending = False
                data, control, _, _ = receive(size, STAMP_SPACE)
                seen = time_ns()
                if data != expected or not control:
                    return self._complete(sent, data, control, seen)
                seconds, nanos = unpack(control[0][2])
                arrived = seconds * 1_000_000_000 + nanos
                if not sent <= arrived <= seen:  # the clock was stepped
                    return self._complete(sent, data, control, seen)
                rows.extend((sent, sent, arrived, arrived, seen, code))
                if seen > until_ns:
                    break
        except OSError as error:
            raise self._failure(error, sending, sent) from None
        finally:
            self.reply_count += (len(rows) - before) // ROW_FIELDS
        return None

    def _receive_awake(self, size: int, space: int) -> tuple[bytes, Control, int, Any]:
        """Receive like recvmsg, but do not go to sleep at once.

        The only client of a run would spend as long on waking up as some servers
        spend on their reply.
        """
        assert self.sock is not None
        receive = self.sock.recvmsg
        for _ in range(AWAKE_TRIES):
            try:
                return receive(size, space, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
        return receive(size, space)

    def _complete(self, sent: int, data: bytes, control: Control, seen: int) -> Times:
        """Read what is missing of a reply, and check it; raise ExchangeError."""
        first = self._arrival(control, sent, seen) if data else seen
        self.reply_count += 1
        if data == self.expected:
            return sent, first, first, seen, len(data)
        try:
            reply, last, seen = self._receive_rest(data, first, seen, sent)
            self._check(reply)
        except ExchangeError as error:
            error.sent = sent
            raise
        return sent, first, last, seen, len(reply)

    def _arrival(self, control: Control, sent: int, seen: int) -> int:
        """Return when the last segment read reached the kernel, by its stamp if any."""
        if control:
            seconds, nanos = TWO_LONGS.unpack(control[0][2])
            arrived: int = seconds * 1_000_000_000 + nanos
            if sent <= arrived <= seen:  # else the clock was stepped
                return arrived
        self.unstamped += 1
        return seen

    def _receive_rest(
        self, data: bytes, first: int, seen: int, sent: int
    ) -> tuple[bytes, int, int]:
        """Read on until the reply is whole: return (reply, last byte's arrival, now).

        A reply is whole when a newline has come; what came with it belongs to it.
        """
        sock = self.sock
        assert sock is not None
        reply, piece, reads, last = bytearray(data), data, 1, first
        deadline, armed = sent + round(self.timeout_s * 1e9), False
        while piece and b"\n" not in piece:
            if (reads > 1 and last > deadline) or len(reply) > self.longest:
                raise self._endless(reply)
            # When time is up, what the kernel has already is still in time.
            left_s = (deadline - seen) / 1e9
            if armed or left_s < REARM_BELOW * self.timeout_s:
                armed = True
                self._set_deadline(sock, left_s)
            try:
                piece, control = read_stamped(sock, self.read_size)
            except TIMED_OUT:
                raise self._endless(reply) from None
            except OSError as error:
                words = f"{say_why(error)} after {counted(len(reply), 'byte')}"
                raise ExchangeError(RESET, words) from None
            seen = time_ns()
            last = self._arrival(control, sent, seen) if piece else last
            reply += piece
            reads += 1
        if armed:
            self._set_deadline(sock, self.timeout_s)
        if not piece:
            self._end_of_file(reply)
        if reads > 1 or self.first_read > 1:  # else it was one byte: nothing learnt
            same_stamp = last == first or TIMESTAMP_OPTION is None
            self.in_one_piece = reads <= 2 and same_stamp
        return bytes(reply), last, seen

    def _check(self, reply: bytes) -> None:
        """Learn who answered; raise ExchangeError unless it repeats our message."""
        match = REPLY.match(reply)
        if match:
            self.server = match[1].decode()
        if self.any_reply or (match and reply[match.end() :] == self.message):
            self.expected = reply
            return
        if ERROR.match(reply):
            raise ExchangeError(ERROR_REPLY, safe_text(reply))
        words = safe_text(reply, 60) or "an empty line"
        body = reply[match.end() :] if match else reply
        owner = re.match(rb"Hello from client (\d{1,9})!", body)
        if owner and 1 <= int(owner[1]) <= self.known_clients:
            words = f"reply belongs to client {int(owner[1])}: {words}"
        raise ExchangeError(MISMATCH, words)

    def _endless(self, reply: bytearray) -> ExchangeError:
        """Return why reading stops before the reply has ended."""
        size = counted(len(reply), "byte")
        if len(reply) > self.longest:
            return ExchangeError(MISMATCH, f"no end of the reply after {size}")
        words = f"no whole reply in {self.timeout_s:g} s, only {size}"
        return ExchangeError(TIMEOUT, words)

    def _end_of_file(self, reply: bytearray) -> None:
        """Take the end of file as the end of any reply, or raise ExchangeError."""
        self.ended_by_eof = True
        if not (self.any_reply and reply):
            when = (
                f"after {counted(len(reply), 'byte')}" if reply else "without a reply"
            )
            raise ExchangeError(CLOSED, f"connection closed {when}")

    def _failure(self, error: OSError, sending: bool, sent: int) -> ExchangeError:
        """Return what an error of a send or a receive means."""
        if not sending:
            if isinstance(error, TIMED_OUT):
                return ExchangeError(TIMEOUT, f"no reply in {self.timeout_s:g} s", sent)
            return ExchangeError(RESET, say_why(error), sent)
        if isinstance(error, TIMED_OUT):
            return ExchangeError(SEND, f"not taken in {self.timeout_s:g} s", sent)
        with contextlib.suppress(OSError):  # the server may have said why
            assert self.sock is not None
            self._set_deadline(self.sock, 0.001)
            reply = self.sock.recv(self.read_size)
            if ERROR.match(reply):
                return ExchangeError(ERROR_REPLY, safe_text(reply), sent)
        return ExchangeError(SEND, say_why(error), sent)

    def close(self) -> None:
        """Close, and keep what the kernel knows about the connection."""
        if self.sock is None:
            return
        resent, came = segments_of(self.sock)
        self.retransmits += resent
        if self.in_one_piece and came:
            self.merged_segments += max(0, came - self.reply_count)
        self._drop_socket()

    def _drop_socket(self) -> None:
        with self.lock:
            sock, self.sock = self.sock, None
        if sock is not None:
            sock.close()

    def cut(self) -> None:
        """End a wait at once: the run is interrupted (main thread, or "orders")."""
        with self.lock, contextlib.suppress(OSError):
            if self.sock is not None:
                self.sock.shutdown(socket.SHUT_RDWR)


@dataclass(slots=True)
class Gates:
    """What a group's threads go by. Each event is set by the order of its name.

    The order `cut` sets them all, its own first, then calls `Connection.cut`: a socket
    made after that call finds `cut` set. Else plain fields are written before `go` is.
    """

    connect: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    cut: threading.Event = field(default_factory=threading.Event)
    start_mono_ns: int = 0  # CLOCK_MONOTONIC: a schedule must not follow a clock step
    end_mono_ns: int = sys.maxsize  # the end of --duration
    to_realtime_ns: int = 0  # CLOCK_REALTIME less CLOCK_MONOTONIC at the start


class Client(threading.Thread):
    """One client: its thread, its connection, its own rows until it hands them over."""

    def __init__(self, number: int, config: Config, gates: Gates, inbox: Inbox) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.number, self.config, self.gates, self.inbox = number, config, gates, inbox
        message = message_of(config, number)
        self.connection = Connection(config.addresses, config, message, gates.cut)
        # With --direct, to the server that has just answered.
        self.direct_connection = Connection([], config, message, gates.cut)
        self.chunk = Chunk(number)
        self.hand_over_at = 0  # CLOCK_MONOTONIC, ns
        interval_ns = max(HANDOVER_NS, HANDOVER_NS_PER_CLIENT * config.clients)
        self.interval_ns = min(interval_ns, HANDOVER_MOST_NS)  # between hand-overs
        self.server, self.code = "", UNKNOWN_SERVER << SERVER_SHIFT
        one_by_one = (
            config.rate or config.reconnect or config.direct or config.keep_replies
        )
        self.may_repeat = not one_by_one and TIMESTAMP_OPTION is not None
        self.pause_s = FIRST_PAUSE_S
        self.first_failure: ExchangeError | None = None  # of the connect before `go`

    def run(self) -> None:
        """Connect, wait for the common start, converse (the thread's whole life)."""
        gates, config = self.gates, self.config
        try:
            gates.connect.wait()
            if not config.ramp_s:
                self._connect_first()
            gates.go.wait()
            self.hand_over_at = gates.start_mono_ns + HANDOVER_NS
            if config.ramp_s:
                turn = (self.number - 1) / config.clients
                self._wait_until(gates.start_mono_ns + int(turn * config.ramp_s * 1e9))
            self._converse()
        finally:
            self._close()
            self._hand_over(final=True)

    def _connect_first(self) -> None:
        """Connect before the start, and tell the main thread how it went."""
        try:
            self._connect()
        except ExchangeError as error:
            self.first_failure = error
        words = str(self.first_failure or "")
        self.inbox.put(("connected", (self.number, words)))

    def _converse(self) -> None:
        """Exchange message after message until all are done or the run is stopped."""
        stop, messages = self.gates.stop, self.config.messages
        while not messages or self.done < messages:
            if self.first_failure is None:
                if stop.is_set():
                    return
                due = self._await_due() if self.config.rate else 0
                if due is None:
                    return
            else:  # it goes on record, even if nothing is to be sent any more
                due = 0
            self._attempt(due)

    def _await_due(self) -> int | None:
        """Wait until the next message is due; None if the schedule has no more."""
        turn = self.number - 1 + self.config.clients * self.done
        if 0 < self.config.planned <= turn:
            return None
        due = self.gates.start_mono_ns + int(turn * 1e9 / self.config.rate)
        free = time.monotonic_ns()
        self._wait_until(due)
        if self.gates.stop.is_set():
            return None
        self.chunk.send_delays.append(time.monotonic_ns() - max(due, free))
        return self._to_realtime(due)

    def _wait_until(self, moment_ns: int) -> None:
        """Wait for a moment of CLOCK_MONOTONIC, or the stop."""
        delay_ns = moment_ns - time.monotonic_ns()
        if delay_ns > 0:
            self.gates.stop.wait(min(delay_ns / 1e9, threading.TIMEOUT_MAX))

    def _to_realtime(self, moment_ns: int) -> int:
        """Return a moment of CLOCK_MONOTONIC on CLOCK_REALTIME, stepped or not."""
        offset, usual = clock_offset(), self.gates.to_realtime_ns
        return moment_ns + (usual if abs(offset - usual) < CLOCK_STEP_NS else offset)

    @property
    def done(self) -> int:
        """Messages so far, failed ones included."""
        return self.chunk.messages_before + len(self.chunk.rows) // ROW_FIELDS

    def _attempt(self, due: int) -> None:
        """Make an exchange, or many alike, and append rows, whatever comes of it.

        `due` is 0 in the closed loop: a message is due when it is sent.
        """
        connection = self.connection
        began = 0 if connection.sock else time_ns()
        try:
            if began:
                self._connect()
            if self.may_repeat and connection.in_one_piece:
                times = self._repeat()
            else:
                times = connection.exchange()
        except ExchangeError as error:
            self._fail(due or error.sent or began, error)
            return
        if times:
            self._record(due, *times)
        if time.monotonic_ns() > self.hand_over_at:
            self._hand_over()

    def _repeat(self) -> Times | None:
        """Make as many exchanges as are left, until the next hand-over or the end."""
        most = min(MOST_REPEATS, (self.config.messages or sys.maxsize) - self.done)
        end = min(self.hand_over_at, self.gates.end_mono_ns)
        until_ns = time_ns() + end - time.monotonic_ns()
        rows = self.chunk.rows
        return self.connection.exchange_many(rows, self.code, most, until_ns)

    def _record(
        self, due: int, sent: int, first: int, last: int, seen: int, received: int
    ) -> None:
        """Append an exchange's row, and do what only some runs need."""
        connection, config = self.connection, self.config
        if connection.server != self.server:
            self._name_server()
        code = self.code | received << BYTES_SHIFT
        self.chunk.rows.extend((due or sent, sent, first, last, seen, code))
        if config.keep_replies:
            self.chunk.replies.append((connection.expected or b"")[:200])
        if connection.server in config.direct:
            self._compare_direct(first - sent)
        if config.reconnect or connection.ended_by_eof:
            connection.close()

    def _connect(self) -> None:
        """Connect, or raise the error that the connect before the start met."""
        error, self.first_failure = self.first_failure, None
        if error:
            raise error
        self.chunk.connects.append(self.connection.connect())
        self.server, self.code = "", UNKNOWN_SERVER << SERVER_SHIFT
        self.pause_s = FIRST_PAUSE_S

    def _name_server(self) -> None:
        """Note who answers on this connection: an index in the chunk's servers."""
        self.server = self.connection.server
        if self.server not in self.chunk.servers:
            self.chunk.servers.append(self.server)
        self.code = self.chunk.servers.index(self.server) << SERVER_SHIFT
        self.chunk.connected_to[self.server] += 1

    def _fail(self, due: int, error: ExchangeError) -> None:
        """Record a failed exchange: when it was due, how long it waited, and why."""
        if self.gates.cut.is_set():
            return  # the run was interrupted: neither confirmed nor failed
        now = time_ns()
        code = UNKNOWN_SERVER << SERVER_SHIFT | error.outcome
        self.chunk.rows.extend((due, error.sent or due, now, now, now, code))
        self.chunk.failure = str(error)
        if self.config.keep_replies:
            self.chunk.replies.append(b"")
        self._close()
        if error.outcome == CONNECT and not self.gates.stop.is_set():
            self.gates.stop.wait(self.pause_s)
            self.pause_s = min(LAST_PAUSE_S, 2 * self.pause_s)
        self._hand_over()

    def _compare_direct(self, through_ns: int) -> None:
        """Make the same exchange directly with the same server; note the difference."""
        direct, addresses = self.direct_connection, self.config.direct[self.server]
        if direct.addresses != addresses:
            direct.close()
            direct.addresses = addresses
        try:
            if direct.sock is None:
                direct.connect()
            sent, first, *_ = direct.exchange()
            self.chunk.differences.append(through_ns - (first - sent))
        except ExchangeError:
            self.chunk.direct_failed += 1
            direct.close()

    def _close(self) -> None:
        self.connection.close()
        self.direct_connection.close()

    def _hand_over(self, final: bool = False) -> None:
        """Give the rows to the main thread, and go on with an empty chunk."""
        chunk, done = self.chunk, self.done
        chunk.final = final
        for connection in (self.connection, self.direct_connection):
            chunk.retransmits += connection.retransmits
            chunk.merged_segments += connection.merged_segments
            chunk.unstamped += connection.unstamped
            connection.retransmits = connection.merged_segments = 0
            connection.unstamped = 0
        servers = list(chunk.servers)
        self.chunk = Chunk(self.number, servers=servers, messages_before=done)
        start, interval = self.gates.start_mono_ns, self.interval_ns
        past = (time.monotonic_ns() - start) // interval
        self.hand_over_at = start + (past + 1) * interval
        self.inbox.put(("chunk", chunk))

    def cut(self) -> None:
        """End its waits (main thread, or "orders")."""
        self.connection.cut()
        self.direct_connection.cut()


# ---- Groups: clients in this process, and in worker processes ------------------------
# The main thread gives a group its orders by their names: connect, go, stop, cut. A
# worker's come through a pipe, which brings back what its clients hand over; when the
# pipe ends, the main process has gone, and the worker goes, too.


class Group:
    """Clients that run as threads of this process."""

    def __init__(self, config: Config, numbers: range, inbox: Inbox) -> None:
        self.gates, self.duration_s = Gates(), config.duration_s
        self.used_before_s = 0.0  # processor time of this process before the start
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
        """Carry out an order: connect, go, stop or cut."""
        getattr(self, name)(*arguments)

    def connect(self) -> None:
        """Let all connect, unless they ramp up."""
        self.gates.connect.set()

    def go(self, start_mono_ns: int) -> None:
        """Let all start: their common start is a moment of CLOCK_MONOTONIC."""
        self.gates.start_mono_ns = start_mono_ns
        self.gates.to_realtime_ns = clock_offset()
        if self.duration_s:
            self.gates.end_mono_ns = start_mono_ns + int(self.duration_s * 1e9)
        self.used_before_s = time.process_time()
        self.gates.go.set()

    def stop(self) -> None:
        """Send nothing more; exchanges in flight may end."""
        self.gates.stop.set()

    def cut(self) -> None:
        """Stop, and end the exchanges in flight."""
        for gate in (self.gates.cut, self.gates.stop, self.gates.connect):
            gate.set()
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
        self, config: Config, numbers: range, inbox: Inbox, number: int
    ) -> None:
        self.numbers, self.inbox = numbers, inbox
        context = multiprocessing.get_context("spawn")  # a fork would copy held locks
        self.pipe, self.far_end = context.Pipe()
        arguments = (self.far_end, config, numbers)
        self.process = context.Process(target=serve_as_worker, args=arguments)
        self.reader = threading.Thread(
            target=self._read_events, name=f"worker-{number}", daemon=True
        )

    def start(self) -> None:
        """Start the process and its reader; OSError when the system refuses."""
        with uninterrupted():
            self.process.start()
        self.far_end.close()  # the pipe ends with the process
        try:
            self.reader.start()
        except RuntimeError:
            words = "the system allows no more threads: use fewer --workers"
            raise OSError(errno.EAGAIN, words) from None

    def order(self, *words: Any) -> None:
        """Have the worker's Group carry out an order: its name, its arguments."""
        with contextlib.suppress(OSError):  # `_read_events` sees that it has ended
            self.pipe.send(words)

    def _read_events(self) -> None:
        """Pass the worker's events on (thread `worker-K`) until it ends."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self.inbox.put(self.pipe.recv())
        self.inbox.put(("ended", self.numbers))

    def close(self, timeout_s: float = 5.0) -> None:
        """Wait for the process to end by itself, and make it end if it does not."""
        if self.process.pid is None:  # the system had refused one
            return
        self.order("cut")
        self.process.join(timeout_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        if self.reader.ident is not None:
            self.reader.join()
        self.pipe.close()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Start a process that Ctrl-C does not reach: ours tells it what to do.

    A process inherits the signals that are blocked (sigprocmask(2)).
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve_as_worker(pipe: MpConnection, config: Config, numbers: range) -> None:
    """Run a group for the process at the other end of the pipe (a worker's main)."""
    if hasattr(os, "setsid"):  # the scheduler shares cores by session (sched(7))
        os.setsid()
    raise_descriptor_limit()
    sys.setswitchinterval(1.0)  # all threads wait in calls: none need be made to yield
    inbox: Inbox = queue.SimpleQueue()
    group = Group(config, numbers, inbox)
    try:
        group.start()
    except OSError as error:
        complain(say_why(error))  # its clients are lost
        return
    threading.Thread(
        target=follow_orders, args=(pipe, group), name="orders", daemon=True
    ).start()
    unfinished = len(numbers)
    with contextlib.suppress(OSError):
        while unfinished:
            name, payload = next_event(inbox)
            if name == "chunk" and payload.final:
                unfinished -= 1
            if name != "tick":
                pipe.send((name, payload))
        pipe.send(("used", time.process_time() - group.used_before_s))
    group.close()


def follow_orders(pipe: MpConnection, group: Group) -> None:
    """Do what the main process says (thread `orders`); its end is an order, too."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            group.order(*pipe.recv())
    group.cut()


def next_event(inbox: Inbox) -> tuple[str, Any]:
    """Return the next event; ("tick", None) when there is none for a while."""
    before = time.monotonic()
    try:
        event: tuple[str, Any] = inbox.get(timeout=TICK_S)
    except queue.Empty:
        event = ("tick", None)
    overslept_s = time.monotonic() - before - TICK_S
    if overslept_s > STALL_S:
        inbox.put(("stalled", overslept_s))
    return event


def make_groups(config: Config, inbox: Inbox) -> Sequence[Group | WorkerGroup]:
    """Return the groups of a run: this process, or as many workers as asked for."""
    number = min(config.workers, config.clients)
    if number <= 1:
        return [Group(config, range(1, config.clients + 1), inbox)]
    edges = [1 + config.clients * k // number for k in range(number + 1)]
    parts = enumerate(itertools.starmap(range, itertools.pairwise(edges)), 1)
    return [WorkerGroup(config, numbers, inbox, k) for k, numbers in parts]


def usable_cores() -> int:
    """Return how many processor cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


# ---- The run: from the common start to a tally ---------------------------------------
# The main thread owns the tally; it alone adds to it, from chunks handed over.


@dataclass(slots=True)
class ServerTally:
    """What one server confirmed, and how fast."""

    confirmed: int = 0
    connections: int = 0
    clients: set[int] = field(default_factory=set)
    latency: Distribution = field(default_factory=Distribution)


@dataclass(slots=True)
class Gap:
    """The longest time in which a client waited for a confirmed reply, in ns."""

    length_ns: int = 0
    client: int = 0
    from_ns: int = 0  # since the start of the run
    until_the_end: bool = False


class Tally:
    """Everything that the chunks of a run add up to, in bounded memory."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.start_ns = self.end_ns = 0  # CLOCK_REALTIME; of the last exchange
        self.kept: list[Chunk] = []  # of a short run, for the lines and the dots
        self.exchanges = 0  # failed ones included
        self.bytes_sent = self.bytes_received = 0  # of confirmed ones
        self.latency, self.response_time = Distribution(), Distribution()
        self.connect_time, self.balancer_cost = Distribution(), Distribution()
        self.wake_delay = Distribution()  # last byte in the kernel → client saw it
        self.send_delay = Distribution()  # open loop: due and free → awake to send it
        self.backlog_ns = 0  # open loop: due, but the client's last reply was not there
        self.waiting_ns = 0  # closed loop: sent → last byte in the kernel
        self.own_ns = 0  # closed loop: all other time between a client's messages
        self.free_since: dict[int, int] = {}  # by client: when it saw its last reply
        self.direct_failed = 0
        self.servers: dict[str, ServerTally] = {}
        self.outcomes: Counter[int] = Counter()
        self.examples: dict[tuple[int, str], list[tuple[int, int]]] = {}
        self.slowest: list[tuple[Any, ...]] = []  # by latency, the slowest first
        self.timeline: Timeline | None = None  # for the report
        self.gap = Gap()
        self.last_confirmed: dict[int, int] = {}  # by client: its last confirmed reply
        self.silent_since: dict[
            int, int
        ] = {}  # by client: failures, and no confirmed reply
        self.retransmits = self.merged_segments = self.unstamped = 0
        self.slow_connects = 0
        self.recent: deque[int] = deque(maxlen=RECENT)  # latencies, for the progress

    def take(self, chunk: Chunk) -> None:
        """Add what a client handed over."""
        self.connect_time.extend(chunk.connects)
        self.slow_connects += sum(took >= SYN_RETRY_NS for took in chunk.connects)
        self.send_delay.extend(chunk.send_delays)
        pairs = self.balancer_cost.count + len(chunk.differences)
        if pairs <= EXACT_LIMIT:  # a histogram has no place for what is below 0
            self.balancer_cost.extend(chunk.differences)
        self.direct_failed += chunk.direct_failed
        self.retransmits += chunk.retransmits
        self.merged_segments += chunk.merged_segments
        self.unstamped += chunk.unstamped
        for name, number in chunk.connected_to.items():
            self.server(name).connections += number
        rows = chunk.rows
        if not rows:
            return
        self.exchanges += len(rows) // ROW_FIELDS
        self.end_ns = max(self.end_ns, rows[-2])
        for key, part in split_rows(rows).items():
            self._add_part(chunk, key, part)
        self._add_waits(chunk)
        self._find_gap(chunk)
        if chunk.failure:
            self._add_example(chunk)
        if self.exchanges <= (EXACT_LIMIT if self.config.keep_replies else DOTS_SHOWN):
            self.kept.append(chunk)
        else:  # a long run is its figures alone
            self.kept.clear()

    def _add_part(self, chunk: Chunk, key: int, rows: array[int]) -> None:
        """Add rows of one outcome and one server: here rows become metrics."""
        outcome, name = key & OUTCOME_MASK, chunk.server_of(key)
        number = len(rows) // ROW_FIELDS
        self.outcomes[outcome] += number
        due, sent, first, last, seen, codes = (rows[k::ROW_FIELDS] for k in range(6))
        if outcome != CONFIRMED:
            if self.timeline:
                self.timeline.add_failures(self.start_ns, due, seen)
            return
        latency = durations(first, sent)
        self.latency.extend(latency)
        self.recent.extend(latency[-100:])
        self.response_time.extend(durations(last, due))
        self.wake_delay.extend(durations(seen, last))
        self.bytes_sent += number * len(message_of(self.config, chunk.client))
        if codes.count(codes[0]) == number:
            self.bytes_received += number * (codes[0] >> BYTES_SHIFT)
        else:
            self.bytes_received += sum(code >> BYTES_SHIFT for code in codes)
        if name:
            server = self.server(name)
            server.confirmed += number
            server.latency.extend(latency)
            if self.config.clients <= CLIENTS_SHOWN:
                server.clients.add(chunk.client)
        if self.timeline:
            self.timeline.add(self.start_ns, sent, latency, last)
            who = itertools.repeat(chunk.client), itertools.repeat(name)
            parts = zip(latency, *who, due, sent, first, last, seen, strict=False)
            self.slowest = heapq.nlargest(SLOWEST_SHOWN, [*self.slowest, *parts])

    def _add_waits(self, chunk: Chunk) -> None:
        """Note how long messages waited for their client, and clients for replies."""
        due, sent, _, last, seen, _ = (chunk.rows[k::ROW_FIELDS] for k in range(6))
        free = array("q", [self.free_since.get(chunk.client, due[0])])
        free.extend(seen[:-1])
        self.free_since[chunk.client] = seen[-1]
        if self.config.rate:
            waits = map(operator.sub, free, due)
            self.backlog_ns += sum(wait for wait in waits if wait > 0)
            return
        self.waiting_ns += sum(last) - sum(sent)
        self.own_ns += sum(seen) - sum(last) + sum(sent) - sum(free)
        if chunk.failure:  # it may pause, and connects again: neither is its work
            del self.free_since[chunk.client]

    def server(self, name: str) -> ServerTally:
        """Return a server's own tally, a new one at first."""
        return self.servers.setdefault(name, ServerTally())

    def _add_example(self, chunk: Chunk) -> None:
        """Keep the first few examples of each way to fail."""
        way = chunk.rows[-1] & OUTCOME_MASK, chunk.failure
        if way in self.examples or len(self.examples) < 20:
            examples = self.examples.setdefault(way, [])
            if len(examples) < 10:
                number = chunk.messages_before + len(chunk.rows) // ROW_FIELDS
                examples.append((chunk.client, number))

    def _find_gap(self, chunk: Chunk) -> None:
        """Note the longest time in which this client waited for a confirmed reply.

        It begins with the last one, or when the next message was due if that
        was later, and goes on over failures.
        """
        client, rows = chunk.client, chunk.rows
        number = len(rows) // ROW_FIELDS - bool(chunk.failure)
        due, good = rows[0::ROW_FIELDS], rows[3::ROW_FIELDS][:number]
        before = [self.last_confirmed.get(client, 0), *good]
        starts = list(map(max, before, due))
        starts[0] = self.silent_since.pop(client, starts[0])
        if good:
            self.last_confirmed[client] = good[-1]
            gaps = list(map(operator.sub, good, starts))
            longest = max(gaps)
            self._note_gap(client, longest, starts[gaps.index(longest)])
        if chunk.failure:
            self.silent_since[client] = starts[-1]
            # A confirmed reply that ends this gap makes it longer: it takes its place.
            self._note_gap(client, rows[-2] - starts[-1], starts[-1], True)

    def _note_gap(
        self, client: int, length_ns: int, since_ns: int, until_the_end: bool = False
    ) -> None:
        if length_ns > self.gap.length_ns:
            from_ns = since_ns - self.start_ns
            self.gap = Gap(length_ns, client, from_ns, until_the_end)

    @property
    def uses_kernel_stamps(self) -> bool:
        """Whether arrival times are the kernel's: at least some of them."""
        return TIMESTAMP_OPTION is not None and (
            not self.confirmed or self.unstamped < self.confirmed
        )

    @property
    def confirmed(self) -> int:
        """How many exchanges were confirmed."""
        return self.outcomes[CONFIRMED]

    @property
    def failed(self) -> int:
        """How many exchanges were not."""
        return self.outcomes.total() - self.confirmed


def durations(ends: array[int], begins: array[int]) -> array[int]:
    """Return the times between; 0 where the clock was set back meanwhile."""
    values = array("q", map(operator.sub, ends, begins))
    return values if min(values) >= 0 else array("q", (max(0, v) for v in values))


def split_rows(rows: array[int]) -> dict[int, array[int]]:
    """Return the rows by outcome and server."""
    keys = {code & KEY_MASK for code in rows[5::ROW_FIELDS]}
    if len(keys) == 1:
        return {keys.pop(): rows}
    parts: defaultdict[int, array[int]] = defaultdict(lambda: array("q"))
    for offset in range(0, len(rows), ROW_FIELDS):
        row = rows[offset : offset + ROW_FIELDS]
        parts[row[5] & KEY_MASK].extend(row)
    return parts


@dataclass(slots=True)
class Course:
    """How a run went, besides what its chunks tell: the main thread's own notes."""

    started: float = 0.0  # seconds since the epoch
    connected: int = 0
    connect_wall_ns: int = 0  # all connects before the start
    connect_failures: Counter[str] = field(default_factory=Counter)  # by their words
    wall_s: float = 0.0  # from the common start to the end of the last exchange
    interrupted: bool = False
    lost: int = 0  # clients whose worker died
    stalled_s: float = 0.0  # the longest stall
    clock_step_ns: int = 0
    overflows: int = 0  # of this machine's listen queues
    cpu_s: float = 0.0  # processor time since the common start, workers' included


class Run:
    """One run: starts the groups together, collects, and ends them whatever happens."""

    def __init__(self, config: Config, inbox: Inbox) -> None:
        self.config, self.inbox = config, inbox
        self.groups = make_groups(config, inbox)
        self.tally, self.course = Tally(config), Course()
        self.unfinished = set(range(1, config.clients + 1))
        self.connecting = self.unfinished.copy()  # for the first time
        self.start_mono_ns = 0
        self.on_chunk: Callable[[Chunk], None] = lambda chunk: None

    def execute(self, progress: Progress) -> None:
        """Run from the first connect to the last reply (main thread)."""
        course = self.course
        with socket.socket() as holder:  # the kernel turns its stamps on with a delay
            ask_for_stamps(holder)
            overflows, clock = listen_overflows(), clock_offset()
            course.started = time.time()
            try:
                self._start_together()
                used_s = time.process_time()
                self._collect(progress)
                course.cpu_s += time.process_time() - used_s
            finally:
                for group in self.groups:
                    group.close()
            self._take_rest()
        course.overflows = listen_overflows() - overflows
        course.clock_step_ns = clock_offset() - clock
        wall_ns = max(0, self.tally.end_ns - self.tally.start_ns)
        if abs(course.clock_step_ns) > CLOCK_STEP_NS:
            wall_ns = time.monotonic_ns() - self.start_mono_ns
        course.wall_s = wall_ns / 1e9

    def _start_together(self) -> None:
        """Start the threads, connect them all, and let them go at one moment."""
        for group in self.groups:
            group.start()
        began = time.monotonic_ns()
        self._order("connect")
        ramps, course = bool(self.config.ramp_s), self.course
        while self.connecting and not (ramps or course.interrupted):
            self._handle(*next_event(self.inbox))
        course.connect_wall_ns = time.monotonic_ns() - began
        if not (ramps or course.connected):
            self._order("stop")  # nobody there: each records its one attempt, and ends
        course.stalled_s = 0.0  # before the start it does no harm
        self.start_mono_ns = time.monotonic_ns()
        self.tally.start_ns = self.start_mono_ns + clock_offset()
        self._order("go", self.start_mono_ns)

    def _collect(self, progress: Progress) -> None:
        """Take chunks until every client has handed over its last one."""
        stop_at = self.start_mono_ns + (self.config.duration_s or math.inf) * 1e9
        while self.unfinished:
            self._handle(*next_event(self.inbox))
            if time.monotonic_ns() >= stop_at:
                stop_at = math.inf  # once
                self._order("stop")
            progress.draw(self.tally)
        progress.clear()

    def _order(self, name: str, *arguments: Any) -> None:
        for group in self.groups:
            group.order(name, *arguments)

    def _handle(self, name: str, payload: Any) -> None:
        """Act on one event: they are listed at `Inbox`."""
        course = self.course
        if name == "chunk":
            self.tally.take(payload)
            self.on_chunk(payload)
            if payload.final:
                self.unfinished.discard(payload.client)
                self.connecting.discard(payload.client)
        elif name == "connected":
            number, failure = payload
            self.connecting.discard(number)
            if failure:
                course.connect_failures[failure] += 1
            else:
                course.connected += 1
        elif name == "ended":  # a worker: what it has not handed over is lost
            lost = self.unfinished.intersection(payload)
            course.lost += len(lost)
            self.unfinished -= lost
            self.connecting -= lost
        elif name == "used":
            course.cpu_s += payload
        elif name == "stalled":
            course.stalled_s = max(course.stalled_s, payload)
        elif name == "signal":
            course.interrupted = True
            self._order("cut")

    def _take_rest(self) -> None:
        """Take the events that came while the groups were ending."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._handle(*self.inbox.get_nowait())


def clock_offset() -> int:
    """Return CLOCK_REALTIME less CLOCK_MONOTONIC in ns: it changes when one is set.

    The best of three: a thread may lose its core between the two readings.
    """
    readings = []
    for _ in range(3):
        before, now, after = time.monotonic_ns(), time_ns(), time.monotonic_ns()
        readings.append((after - before, now - before))
    return min(readings)[1]


def listen_overflows() -> int:
    """Return how often a listen queue of this machine overflowed (0: not known)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/net/netstat").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
        return int(values[names.index("ListenOverflows")])
    return 0


# ---- The summary, and the verdict ----------------------------------------------------
# One object from a run, from a file, or from several: the outputs read nothing else.


@dataclass(slots=True)
class Summary:
    """A run in figures. Metrics are as in the map at the top; times in ns or s."""

    command: list[str]
    started: str  # UTC
    target: str
    clients: int
    wall_s: float  # from the common start to the end of the last exchange
    timestamps: str  # "kernel" or "user": whose clock says when a byte arrived
    interrupted: bool
    planned: int
    confirmed: int
    bytes_sent: int  # of confirmed exchanges
    bytes_received: int
    latency: Distribution  # message handed to the kernel → reply's first byte there
    response_time: Distribution  # message due → reply's last byte in the kernel
    connect_time: Distribution  # TCP connect alone
    servers: dict[str, ServerTally]
    failures: dict[str, int]  # by outcome
    reasons: list[str]  # to doubt the run; none: valid
    notices: list[str] = field(default_factory=list)  # what else the run showed
    headline: str = ""  # how it was loaded
    tally: Tally | None = None  # of a run of our own
    course: Course | None = None

    @property
    def metrics(self) -> dict[str, Distribution]:
        """The metrics that have values, by name."""
        metrics = {
            "latency": self.latency,
            "response time": self.response_time,
            "connect": self.connect_time,
        }
        return {name: metric for name, metric in metrics.items() if metric.count}

    @property
    def failed(self) -> int:
        """How many exchanges failed."""
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
        """Whether to trust the run: "valid", or "doubtful"."""
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
            "response_time_ns": self.response_time.as_json(),
            "connect_ns": self.connect_time.as_json(),
            "servers": {
                name: {"confirmed": s.confirmed, "latency_ns": s.latency.as_json()}
                for name, s in sorted(self.servers.items())
            },
            "failures": self.failures,
            "verdict": self.verdict,
            "reasons": self.reasons,
        }
        if self.tally and self.tally.config.direct:
            data["direct_ns"] = cost_as_json(self.tally)
        return data


def cost_as_json(tally: Tally) -> dict[str, Any]:
    """Return what the balancer adds at the median, by pairs, with its range."""
    cost = tally.balancer_cost
    low, high = cost.range_of(0.5) or (None, None)
    return {
        "pairs": cost.count,
        "failed": tally.direct_failed,
        "p50": cost.percentile(0.5) if cost.count else None,
        "low": low,
        "high": high,
    }


def summarize(run: Run, command: list[str]) -> Summary:
    """Return the figures of a run, with the verdict."""
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
        response_time=tally.response_time,
        connect_time=tally.connect_time,
        servers=tally.servers,
        failures={name: tally.outcomes[k] for k, name in enumerate(FAILURES, 1)},
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
        words = f"{three_digits(config.rate)} messages/s on a schedule (open loop)"
    elif config.messages == 1:
        words = "1 message each"
    elif config.messages:
        words = f"{counted(config.messages, 'message')} each, one at a time"
    else:
        words = "one message at a time"
    if config.duration_s:
        words += f", for {config.duration_s:g} s"
    if config.reconnect:
        words += ", a connection per message"
    return words


def reasons_to_doubt(summary: Summary, tally: Tally, course: Course) -> Iterator[str]:
    """Yield why the figures may say more about client2 than about the target."""
    if not summary.confirmed:
        yield "nothing was confirmed: there is nothing to measure"
    if course.stalled_s:
        yield (
            f"client2 itself stood still for {course.stalled_s:.1f} s (stopped, or no"
            " processor time): rate, gaps and response times include that"
        )
    if course.lost:
        yield f"a worker process died: {counted(course.lost, 'client')} lost"
    step_ns = course.clock_step_ns
    if abs(step_ns) > 2_000_000 + course.wall_s * 500_000:  # 500 ppm is slewing
        yield f"the clock was stepped by {step_ns / 1e9:+.3f} s during the run"
    if tally.uses_kernel_stamps and tally.unstamped > 0.01 * max(1, tally.confirmed):
        reads = counted(tally.unstamped, "read")
        yield f"{reads} had no kernel timestamp: client2's own time was taken"
    if tally.slow_connects and course.overflows > 0:
        yield (
            f"{counted(tally.slow_connects, 'connect')} took 1 s or longer and this"
            " machine's listen queues overflowed: a listener's queue is too short"
        )
    if tally.config.rate:
        yield from doubts_of_open_loop(summary, tally, course)
    else:
        yield from doubts_of_closed_loop(tally)


def doubts_of_open_loop(
    summary: Summary, tally: Tally, course: Course
) -> Iterator[str]:
    """Yield whether too little was sent, or sent too late by the client itself."""
    share = tally.exchanges / max(1, summary.planned)
    if share < 0.95 and not course.interrupted:
        who = "client2 could not keep up: try more clients or --workers auto"
        if tally.backlog_ns > tally.send_delay.total:
            who = "the clients were waiting for earlier replies: the target does not"
            who += " hold this rate with so few clients"
        planned = f"{grouped(summary.planned)} messages planned"
        yield f"sent {share:.0%} of the {planned}: {who}"
    late_ns = tally.send_delay.percentile(0.99)
    if late_ns > max(5_000_000, 0.5 * tally.response_time.percentile(0.99)):
        yield (
            f"client2 sent {format_duration(late_ns)} late at p99: response times say"
            " more about this machine than about the target"
        )


def checks_of(summary: Summary) -> str:
    """Return in words what was checked, of a run that nothing makes doubtful."""
    tally = summary.tally
    if tally is None:
        return "as each of the runs was"
    words = "clock steady, no stall"
    if summary.timestamps == "kernel":
        words += ", kernel arrival times"
    if tally.config.rate:
        words += ", sent in time"
    elif can_keep_up_be_judged(tally):
        words += ", client2 kept up"
    return words


def can_keep_up_be_judged(tally: Tally) -> bool:
    """Tell whether a closed loop shows if the clients' own work set the rate."""
    config = tally.config
    if config.direct or config.reconnect:  # they do other things in between
        return False
    return tally.exchanges >= 50 * config.clients


def doubts_of_closed_loop(tally: Tally) -> Iterator[str]:
    """Yield whether the clients' own work, not the replies, set the rate.

    By Little's law the clients that wait for a reply are rate × waiting time. All
    others have their reply, and wait for a processor or the interpreter lock.
    """
    config = tally.config
    waited = tally.waiting_ns / max(1, tally.waiting_ns + tally.own_ns)
    if can_keep_up_be_judged(tally) and waited < 0.5:
        yield (
            f"by Little's law only {three_digits(waited * config.clients)} of"
            f" {grouped(config.clients)} clients waited for a reply at a time: the rate"
            " is the limit of client2, not of the target (try --workers auto)"
        )


def notices_of(summary: Summary, tally: Tally) -> Iterator[str]:
    """Yield what else the run showed: one sentence each."""
    slow, again, merged = tally.slow_connects, tally.retransmits, tally.merged_segments
    if slow:
        words = "took 1 s or longer: SYN sent again, listen queue full?"
        yield f"{counted(slow, 'connect')} {words}"
    if again:
        yield f"{counted(again, 'segment')} sent again by clients"
    if merged:
        words = "read together with another: their latency ends with the later one"
        yield f"{counted(merged, 'segment')} {words}"
    near_40_ms = tally.latency.between(38_000_000, 46_000_000)
    if near_40_ms > 0.05 * summary.confirmed and summary.latency.percentile(0.5) < 2e7:
        yield (
            f"{near_40_ms / summary.confirmed:.0%} of replies took about 40 ms: Nagle's"
            " algorithm and delayed ACK? The sender should set TCP_NODELAY"
        )
    if tally.config.keep_replies and not tally.kept and tally.exchanges:
        yield f"more than {grouped(EXACT_LIMIT)} exchanges: --verbose shows none"


# What stands here can be asked of a run with --fail-if.
NUMBER = r"(\d+\.?\d*|\.\d+)"
DURATION_LIMIT = re.compile(
    r"(?:(latency|response|connect)\.)?(min|mean|p50|p90|p99|p99\.9|max)"
    rf"\s*([<>]=?)\s*{NUMBER}\s*(ns|us|µs|ms|s)"
)
COUNT_LIMIT = re.compile(rf"(failed|rate)\s*([<>]=?)\s*{NUMBER}\s*(%|/s|)")
COUNT_UNITS = {"failed": ("", "%"), "rate": ("", "/s")}
UNITS_NS = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
SIGNS = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}


@dataclass(slots=True)
class Limit:
    """A --fail-if condition: the run fails when `figure` `sign` `value` holds."""

    text: str
    figure: str
    sign: str
    value: float


def parse_limit(text: str) -> Limit:
    """Return a --fail-if condition such as p99>50ms, failed>1%, rate<1000/s."""
    match = DURATION_LIMIT.fullmatch(text.strip())
    if match:
        metric, key, sign, value, unit = match.groups()
        figure = f"{metric or 'latency'}.{key.replace('.', '_')}"
        return Limit(text, figure, sign, float(value) * UNITS_NS[unit])
    match = COUNT_LIMIT.fullmatch(text.strip())
    if match and match[4] in COUNT_UNITS[match[1]]:
        return Limit(text, match[1] + match[4].strip("/s"), match[2], float(match[3]))
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a limit like p99>50ms, response.p90>=1s, failed>1%,"
        " rate<1000/s"
    )


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
    found = {
        "latency": summary.latency,
        "response": summary.response_time,
        "connect": summary.connect_time,
    }[metric]
    if not found.count:
        return None
    if key in PERCENTILES:
        return found.reported(key)
    mean = found.total / found.count
    return {"min": found.minimum, "mean": mean, "max": found.maximum}[key]


def exit_status(summary: Summary, broken: list[str]) -> tuple[int, str]:
    """Return the exit status, as the end of `--help` lists them, and the reason."""
    lost = summary.course.lost if summary.course else 0
    if summary.interrupted:
        return 130, "interrupted"
    if broken:
        return 99, "a limit is broken"
    if lost:
        return 1, f"{counted(lost, 'client')} lost"
    if summary.failed:
        return 1, f"{grouped(summary.failed)} failed"
    if not summary.confirmed:
        return 1, "none confirmed"
    return 0, "all confirmed" if summary.confirmed == summary.planned else "none failed"


def unreachable(summary: Summary) -> str:
    """Return one line about a target that nobody could connect to, "" otherwise."""
    course = summary.course
    if course is None or course.connected or summary.confirmed or summary.interrupted:
        return ""
    for reason, _ in course.connect_failures.most_common(1):
        if "refused" not in reason:
            return f"cannot connect to {summary.target}: {reason}"
        start = "start the balancer with: python load_balancer.py"
        return f"nobody listens at {summary.target}: {start}"
    return ""


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
        # (moment, confirmed) of the last lines: rates over a few hand-overs are steady
        self.counts = deque([(self.began, 0)], RATE_LINES)
        self.p99 = 0  # as last drawn

    def draw(self, tally: Tally) -> None:
        """Draw, but at most four times a second."""
        now = time.monotonic()
        if not self.enabled or now - self.drawn < REDRAW_S:
            return
        self.drawn = now
        done, planned = tally.exchanges, self.config.planned
        since, before = self.counts[0]
        self.counts.append((now, tally.confirmed))
        if tally.recent:
            latency = Distribution()
            latency.extend(array("q", tally.recent))
            tally.recent.clear()
            self.p99 = latency.percentile(0.99)
        by_time = (now - self.began) / (self.config.duration_s or math.inf)
        share = min(1.0, max(by_time, done / (planned or math.inf)))
        parts = [
            f" {counted(self.config.clients, 'client')}  {bar(share, 1, 12):<12}",
            f"{grouped(done)}/{grouped(planned)}" if planned else grouped(done),
            f"{three_digits((tally.confirmed - before) / (now - since))}/s",
        ]
        if self.p99:
            parts.append(f"p99 {format_duration(self.p99)}")
        if tally.failed:
            parts.append(f"{grouped(tally.failed)} failed")
        if share > 0.02:
            parts.append(f"{(now - self.began) * (1 / share - 1):.0f} s left")
        self._write("  ".join(parts)[: WIDTH - 1])

    def _write(self, line: str) -> None:
        self.out.write(f"\r\x1b[K{line}")
        self.out.flush()

    def clear(self) -> None:
        """Leave nothing of the line."""
        if self.enabled:
            self._write("")


def bar(value: float, largest: float, width: int = BAR_WIDTH) -> str:
    """Return a bar of block characters; something if the value is not 0."""
    eighths = round(8 * width * value / largest) if largest else 0
    eighths = max(eighths, 1 if value else 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def wrapped(name: str, text: str) -> list[str]:
    """Return a named paragraph of at most 80 columns."""
    first, others = f" {name:<8} ", " " * 10
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=others)


def exchange_lines(tally: Tally) -> Iterator[str]:
    """Yield one line per exchange: client, figures, reply; by client and message."""
    numbered = tally.config.messages != 1
    yield f" client{' message' * numbered} latency response throughput reply"
    by_client = operator.attrgetter("client", "messages_before")
    for chunk in sorted(tally.kept, key=by_client):
        sent_bytes = len(message_of(tally.config, chunk.client))
        replies = map(safe_text, chunk.replies)
        for number, (due, sent, first, last, _, code) in chunk.exchanges():
            reply, outcome = next(replies), code & OUTCOME_MASK
            line = f"{chunk.client:7}" + (f"{number:8}" if numbered else "")
            if outcome == CONFIRMED:
                size = sent_bytes + (code >> BYTES_SHIFT)
                throughput = format_throughput(size / max(1, last - due) * 1e9)
                line += f"{format_duration(first - sent):>8}"
                line += f"{format_duration(last - due):>9}{throughput:>11} {reply}"
            else:
                line += f"  failed: {OUTCOMES[outcome]}: {chunk.failure}"
            yield line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def percentile_lines(summary: Summary) -> Iterator[str]:
    """Yield the percentiles of each metric, with their 95 % ranges."""
    shown = [n for n in PERCENTILES if summary.latency.count >= NEEDED[n]]
    yield f"{'min':>21}{''.join(f'{LABELS[n]:>12}' for n in shown)}{'max':>8}"
    for name, metric in summary.metrics.items():
        unit_ns, unit = metric_unit(metric)
        cells = "".join(f"{in_unit(metric.reported(n), unit_ns):>12}" for n in shown)
        low, high = compact(metric.minimum / unit_ns), compact(metric.maximum / unit_ns)
        yield f" {name:<13}{low:>7}{cells}{high:>8} {unit}"
        ranges = [metric.range_of(PERCENTILES[n]) for n in shown]
        if name != "connect" and any(ranges):
            cells = "".join(f"{format_range(r, unit_ns):>12}" for r in ranges)
            yield f"   95 % range        {cells}"
    yield "   latency = sent → reply's first byte; response time = due → its last byte"
    if summary.latency.count >= 6:
        yield "   95 % range = holds the true percentile, with 95 % confidence"
    yield from sample_words(summary.latency)


def sample_words(metric: Distribution) -> Iterator[str]:
    """Say what the sample cannot tell."""
    size = metric.count
    if size < 6 and metric.values is not None:
        unit_ns, unit = metric_unit(metric)
        values = "  ".join(in_unit(metric.at_rank(k + 1), unit_ns) for k in range(size))
        yield f"   {counted(size, 'exchange')}: latency {values} {unit}"
        covered = 1 - 2 * 0.5**size
        yield f"   min to max holds the median with {covered:.0%} confidence only"
        return
    missing = [n for n in NEEDED if size < NEEDED[n]][:2]
    if missing:
        needs = ", ".join(f"{LABELS[n]} needs {grouped(NEEDED[n])}" for n in missing)
        yield f"   {needs} exchanges"
        below = three_digits(100 * (1 - CONFIDENCE) ** (1 / size))
        yield f"   at least {below} % of exchanges lie below max, with 95 % confidence"


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
    for index, number in metric.hdr_counts().items():
        value = max(steps[0], min(metric.maximum, hdr_highest(index)))
        bins[min(len(bins), bisect.bisect_right(steps, value)) - 1] += number
    return bins


def histogram_lines(metric: Distribution) -> Iterator[str]:
    """Yield the latency histogram; a narrow range gives one bar."""
    unit_ns, unit = metric_unit(metric)
    steps = axis_steps(metric.minimum, max(metric.maximum, 1), HISTOGRAM_ROWS)
    bins = binned(metric, steps)
    values = {LABELS[n]: metric.reported(n) for n in PERCENTILES}
    yield f"{f'latency, {unit}':>16}{'exchanges':>13}"
    for (low, high), number in zip(itertools.pairwise(steps), bins, strict=True):
        marks = " ".join(n for n, v in values.items() if v and low <= v < high)
        edges = f"{round_number(low / unit_ns):>7} – {round_number(high / unit_ns):<7}"
        line = f"{edges}{grouped(number):>12} {bar(number, max(bins))}"
        yield f"{line}  ← {marks}" if marks else line


def server_lines(summary: Summary) -> Iterator[str]:
    """Yield who confirmed how much and how fast, and how sure the difference is."""
    if not summary.servers:
        return
    clients = any(s.clients for s in summary.servers.values())
    head = "  clients" if clients else ""
    unit_ns, unit = metric_unit(summary.latency)
    unit = f"p50 {unit}"
    yield f" server  confirmed   share {unit:>7}  (95 % range)         p99{head}"
    for name, server in sorted(summary.servers.items()):
        metric = server.latency
        share = server.confirmed / max(1, summary.confirmed)
        line = f" {name:<6} {grouped(server.confirmed):>10} {share:>6.1%}"
        line += f" {in_unit(metric.percentile(0.5), unit_ns):>7}"
        line += f"  {format_range(metric.range_of(0.5), unit_ns):<15}"
        line += f" {in_unit(metric.reported('p99'), unit_ns):>7}"
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
        return "connections split evenly ✓"
    expected, freedom = sum(counts) / len(counts), len(counts) - 1
    chi = sum((number - expected) ** 2 for number in counts) / expected
    spread = 2 / (9 * freedom)  # Wilson and Hilferty's approximation of χ²
    z = ((chi / freedom) ** (1 / 3) - 1 + spread) / math.sqrt(spread)
    chance = 0.5 * math.erfc(z / math.sqrt(2))
    how = "unevenly, for equal weights" if chance < 0.05 else "as chance would do it"
    sure = f"= {three_digits(chance)}" if chance >= 0.001 else "< 0.001"
    return f"connections split {how} (χ², p {sure})"


def slower_words(servers: dict[str, ServerTally]) -> str:
    """Say which server was slowest, and whether the sample shows it."""
    if len(servers) < 2:
        return ""
    by_speed = sorted(servers, key=lambda name: servers[name].latency.percentile(0.5))
    fast, slow = by_speed[0], by_speed[-1]
    pairs = len(servers) * (len(servers) - 1) // 2  # each could have come out so
    confidence = 1 - (1 - CONFIDENCE) / pairs
    change = compare(servers[slow].latency, servers[fast].latency, 0.5, confidence)
    if change is None:
        return "too few exchanges to say which server is slower"
    ratio, low, high = change
    digits = 0 if high >= 0.1 else 1
    more, least, most = (f"{value:+.{digits}%}" for value in change)
    if ratio >= 1:
        more, least, most = (f"{three_digits(1 + value)} times" for value in change)
    words = f"{more} (95 % range {least} to {most})"
    if low <= 0:
        return f"no server shown to be slower: p50 of {slow} against {fast}: {words}"
    return f"{slow} is slower than {fast}: p50 {words}"


def failure_lines(summary: Summary) -> Iterator[str]:
    """Yield what failed, by outcome, with examples, and how long it was noticed."""
    counts = [f"{grouped(n)} {name}" for name, n in summary.failures.items() if n]
    if counts:
        yield from wrapped("failed", ", ".join(counts).replace("_", " "))
    for way, examples in summary.tally.examples.items() if summary.tally else ():
        where = ", ".join(f"client {c} message {m}" for c, m in examples[:3])
        more = " …" if len(examples) > 3 else ""
        name = OUTCOMES[way[0]].replace("_", " ")
        yield from wrapped("", f"{name}: {way[1]} ({where}{more})")
    yield from wrapped("gap", gap_words(summary))


def gap_words(summary: Summary) -> str:
    """Say how long a client waited for a confirmed reply, if it failed or took long."""
    gap = summary.tally.gap if summary.tally else Gap()
    usual = summary.response_time.percentile(0.5)
    is_long = gap.length_ns > max(GAP_SHOWN_S * 1e9, 10 * usual)
    if not gap.length_ns or not (summary.failed or is_long):
        return ""
    since, until = gap.from_ns / 1e9, (gap.from_ns + gap.length_ns) / 1e9
    rest = ", and none came" if gap.until_the_end else ""
    return (
        f"longest wait for a confirmed reply: {format_duration(gap.length_ns)}"
        f" (client {gap.client}, from {since:.2f} s to {until:.2f} s{rest})"
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
    target = f"{counted(summary.clients, 'client')} → {summary.target}"
    head = f"client2  {target}   {summary.headline}"
    yield from textwrap.wrap(head, WIDTH, subsequent_indent=" " * 9)
    course, ready = summary.course, ""
    if course and course.connected:
        took = format_duration(course.connect_wall_ns)
        connected = f"{grouped(course.connected)}/{grouped(summary.clients)}"
        ready = f"connected {connected} in {took}   "
    clock = "kernel receive timestamps"
    if summary.timestamps != "kernel":
        clock = "user space receive times"
    yield f"         {ready}ran {format_duration(summary.wall_s * 1e9)}   {clock}"
    yield ""
    yield (
        f" {grouped(summary.confirmed)} of {grouped(summary.planned)} confirmed"
        f"   {grouped(summary.failed)} failed"
        f"   {three_digits(summary.per_s)} exchanges/s"
        f"   throughput {format_throughput(summary.bytes_per_s)}"
    )
    yield ""
    if summary.latency.count:
        yield from percentile_lines(summary)
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
    if tally and tally.balancer_cost.count:
        yield from wrapped("balancer", cost_words(tally))
    for notice in summary.notices:
        yield from wrapped("notice", notice)
    if tally and course and tally.wake_delay.count:
        late = format_duration(tally.wake_delay.percentile(0.99))
        where = "not in" if summary.timestamps == "kernel" else "part of"
        words = f"woke {late} late at p99 to read replies ({where} the figures)"
        if tally.send_delay.count:
            late = format_duration(tally.send_delay.percentile(0.99))
            words += f", {late} late to send (part of response time)"
        if course.cpu_s and summary.wall_s > 0.2:
            words += f"; used {course.cpu_s / summary.wall_s:.0%} of a processor core"
        yield from wrapped("client2", words)
    checked = "" if summary.reasons else f": {checks_of(summary)}"
    yield from wrapped("verdict", summary.verdict.upper() + checked)
    for reason in summary.reasons:
        yield from wrapped("", reason)


def cost_words(tally: Tally) -> str:
    """Say what the balancer costs: the median of paired differences."""
    cost = cost_as_json(tally)
    unit_ns, unit = time_unit(abs(cost["p50"]))
    middle, low, high = (in_unit(cost[key], unit_ns) for key in ("p50", "low", "high"))
    words = f"adds {middle} {unit} to latency at p50 (95 % range {low} to {high};"
    words += (
        f" {counted(cost['pairs'], 'pair')}; the wall time has the direct ones, too)"
    )
    if tally.direct_failed:
        words += f"; {counted(tally.direct_failed, 'direct exchange')} failed"
    return words


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


# ---- The report: one page, four plots, nothing from outside --------------------------
# Inline SVG without a script; hover texts are <title>s. Colours are Okabe and Ito's,
# told apart by the colour-blind; servers differ in shape, too.

PLOT_WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 72, 704, 28, 40  # SVG units
LEGEND_Y = 10  # above the plot
SERVER_ROW, SERVERS_SHOWN = 64, 30
COLUMNS = 60  # of lines and bars over time, at most
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
wall time from the common start to the end of the last exchange. <b>Connect</b>: TCP
connect alone, in neither (but a message of a schedule is due before it connects).</p>
<p>Percentiles are nearest rank, of confirmed exchanges; failed ones are counted apart.
Ranges hold the percentile with 95 % confidence by order statistics, as if exchanges
were independent; those of one client are not quite, so read them as the least
uncertainty. A percentile that the sample cannot carry is not given: p90 needs 29
exchanges, p99 299, p99.9 2,995.</p>
"""


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
        self.bottom = height - BOTTOM - 6  # where the axis of time lies
        self.parts: list[str] = []

    def path(self, style: str, way: str, hint: str = "") -> None:
        """Draw along `way` (SVG path data), with a text to show when hovered over."""
        hint = f"<title>{hint}</title>" if hint else ""
        self.parts.append(f'<path class="{style}" d="{way}">{hint}</path>')

    def line(self, style: str, points: Iterable[tuple[float, float]]) -> None:
        """Draw from point to point; nothing without points."""
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        if way:
            self.path(f"line {style}", f"M{way}")

    def text(self, x: float, y: float, words: str, anchor: str = "start",
             style: str = "", turn: int = 0) -> None:  # fmt: skip
        """Write words at a point, turned by so many degrees."""
        at = f"translate({x:.1f} {y:.1f})" + (f" rotate({turn})" if turn else "")
        head = f'<text class="{style}" transform="{at}" text-anchor="{anchor}">'
        self.parts.append(f"{head}{words}</text>")

    def left_axis(self, scale: Scale, name: str, words: Callable[[float], str]) -> None:
        """Draw grid lines, their labels, and the axis' name."""
        for value in scale.ticks():
            self.path("grid", f"M{LEFT} {scale(value):.1f}H{RIGHT}")
            self.text(LEFT - 8, scale(value) + 4, words(value), "end")
        self.text(14, (scale.start + scale.end) / 2, name, "middle", turn=-90)

    def bottom_axis(self, scale: Scale, name: str, marks: dict[float, str]) -> None:
        """Draw the axis, its marks, and its name."""
        bottom = self.bottom
        self.path("axis", f"M{scale.start} {bottom}H{scale.end}")
        for value, words in marks.items():
            self.path("axis", f"M{scale(value):.1f} {bottom}v4")
            self.text(scale(value), bottom + 17, words, "middle")
        self.text((scale.start + scale.end) / 2, bottom + 34, name, "middle")

    def time_axis(self, wall_s: float) -> Scale:
        """Draw the axis of the run's time in seconds, and return its scale."""
        scale = Scale(0, max(wall_s, 1e-6), LEFT, RIGHT)
        marks = {value: f"{value:g}" for value in scale.ticks()}
        self.bottom_axis(scale, "seconds since the common start", marks)
        return scale

    def finish(self, text: str) -> str:
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
    y = duration_scale([summary.latency], plot.bottom, TOP + 14)
    plot.left_axis(y, "latency", brief)
    if tally.exchanges <= DOTS_SHOWN and tally.kept:
        text = "A dot is one exchange; its colour and shape name the server."
        draw_dots(plot, tally, x, y)
    else:
        text = "The darker a field, the more exchanges (logarithmic)."
        draw_heat(plot, timeline, x, y)
    draw_percentiles(plot, timeline, x, y)
    for k, number in sorted(timeline.failed.items()):
        at_s = (k + 0.5) * timeline.width_ns / 1e9
        way = f"M{min(x.end, x(at_s)):.1f} {TOP}m-4-4l8 8m0-8l-8 8"
        plot.path("fail", way, f"{number} failed near {at_s:.3g} s")
    return plot.finish(
        f"{text} Failures are crosses at the top. Lines, where exchanges are many"
        " enough: p50 and p99 of each moment."
    )


def draw_percentiles(plot: Plot, timeline: Timeline, x: Scale, y: Scale) -> None:
    """Draw p50 and p99 over time, as lines that stop where exchanges are few."""
    column_s, columns = timeline.columns(COLUMNS)
    for name, least, style in (("p50", 3, "ink"), ("p99", 100, "ink dash")):
        line: list[tuple[float, float]] = []
        ends = None
        for k in range(max(columns, default=0) + 2):
            levels = columns.get(k, Counter())
            if levels.total() >= least:
                value = level_percentile(levels, PERCENTILES[name])
                ends = min(x.end, x((k + 0.5) * column_s)), y(value)
                line.append(ends)
            else:
                plot.line(style, line)
                line.clear()
        if ends:
            plot.text(ends[0] + 6, ends[1] + 4, name, style="name")


def draw_dots(plot: Plot, tally: Tally, x: Scale, y: Scale) -> None:
    """Draw one path per server with a dot per exchange, and a legend."""
    names = sorted(tally.servers)
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for chunk in tally.kept:
        for _, (_, sent, first, _, _, code) in chunk.exchanges():
            if code & OUTCOME_MASK == CONFIRMED:
                name = chunk.server_of(code)
                if name not in names:  # "": no server's, with --any-reply
                    names.append(name)
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
    column_s, columns = timeline.columns(2 * COLUMNS)
    most = math.log1p(max((max(c.values()) for c in columns.values()), default=1))
    paths: defaultdict[int, list[str]] = defaultdict(list)
    width = x(column_s) - x(0)
    for k, levels in columns.items():
        for level, number in levels.items():
            shade = min(SHADES - 1, int(SHADES * math.log1p(number) / most))
            top, bottom = y(hdr_highest((level << 7) + 127)), y(hdr_highest(level << 7))
            at = f"M{x(0) + width * k:.1f} {top:.1f}"
            paths[shade].append(f"{at}h{width:.1f}v{bottom - top:.1f}h-{width:.1f}z")
    for shade, path in sorted(paths.items()):
        plot.path(f"f0 h{shade}", "".join(path))


def plot_spectrum(summary: Summary, baseline: Summary | None) -> str:
    """Plot 2: latency and response time by percentile, the tail stretched."""
    plot = Plot(2, "Percentiles", 300)
    drawn = {
        "response time": (summary.response_time, "c1"),
        "latency": (summary.latency, "c0"),
    }
    if baseline:
        drawn["baseline latency"] = (baseline.latency, "ink dash")
    y = duration_scale([metric for metric, _ in drawn.values()], plot.bottom, TOP)
    most = max(2, *(metric.count for metric, _ in drawn.values()))
    x = Scale(1, most, LEFT, RIGHT, log=True)  # of 1 / (1 - p)
    marks = {1.0: "min", 2.0: "50", 10.0: "90", 1e2: "99", 1e3: "99.9", 1e4: "99.99"}
    marks |= {1e5: "99.999", 1e6: "99.9999"}
    plot.left_axis(y, "time", brief)
    plot.bottom_axis(x, "percentile", {m: w for m, w in marks.items() if m <= most})
    upper, lower = [], []
    for odds in spectrum(summary.latency)[1::2]:  # a band needs fewer points
        around = summary.latency.range_of(1 - 1 / odds)
        if around:
            upper.append((x(odds), y(around[1])))
            lower.append((x(odds), y(around[0])))
    plot.line("band f0", upper + lower[::-1])
    for k, (name, (metric, style)) in enumerate(drawn.items()):
        points = (
            (x(odds), y(metric.percentile(1 - 1 / odds))) for odds in spectrum(metric)
        )
        plot.line(style, points)
        at = LEFT + 150 * k
        plot.line(style, [(at, LEGEND_Y), (at + 22, LEGEND_Y)])
        plot.text(at + 28, LEGEND_Y + 4, name, style="name")
    return plot.finish(
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
    for (k, _), number in timeline.cells.items():
        confirmed[k] += number
    bins = max([*timeline.failed, *confirmed]) + 1
    per_bar = bins // COLUMNS + 1
    bar_s = per_bar * timeline.width_ns / 1e9
    confirmed, failed = joined(confirmed, per_bar), joined(timeline.failed, per_bar)
    highest = max((confirmed + failed).values()) / bar_s
    y = Scale(0, max(highest, tally.config.rate) * 1.1, plot.bottom, TOP)
    plot.left_axis(y, "exchanges per second", lambda value: grouped(round(value)))
    for k in range(bins // per_bar + 1):
        left, right = x(k * bar_s), min(x.end, x((k + 1) * bar_s)) - 1
        stacked = 0  # exchanges below this part of the bar
        for number, style in ((confirmed[k], "f0 bar"), (failed[k], "bad bar")):
            bottom, top = y(stacked / bar_s), y((stacked + number) / bar_s)
            way = f"M{left:.1f} {bottom:.1f}V{top:.1f}H{max(left + 0.5, right):.1f}"
            if number and left < x.end:
                plot.path(style, f"{way}V{bottom:.1f}z", f"{number / bar_s:.0f}/s")
            stacked += number
    draw_flight(plot, timeline, bins, x)
    text = (
        "Bars: exchanges confirmed per second, failed ones on top in the other colour"
        " (left). Line: exchanges in flight, waiting for their reply (right)."
    )
    if tally.config.rate:
        planned = y(tally.config.rate)
        plot.line("ink dash", [(x.start, planned), (x.end, planned)])
        text += " Dashed: the planned rate."
    return plot.finish(text)


def draw_flight(plot: Plot, timeline: Timeline, bins: int, x: Scale) -> None:
    """Draw the line of exchanges in flight (a bin's mean), and its axis."""
    flight = [timeline.in_flight_ns[k] / timeline.width_ns for k in range(bins)]
    z = Scale(0, max(*flight, 1) * 1.1, plot.bottom, TOP)
    middles = (min(x.end, x((k + 0.5) * timeline.width_ns / 1e9)) for k in range(bins))
    plot.line("c1", zip(middles, map(z, flight), strict=True))
    for value in z.ticks():
        if value == int(value):
            plot.text(x.end + 8, z(value) + 4, f"{value:g}")
    plot.text(x.end + 48, (plot.bottom + TOP) / 2, "in flight", "middle", turn=90)


def plot_servers(summary: Summary) -> str:
    """Plot 4: one row per server, on one latency axis."""
    servers = sorted(summary.servers.items())[:SERVERS_SHOWN]
    plot = Plot(4, "Latency by server", TOP + SERVER_ROW * len(servers) + BOTTOM)
    plot.bottom += 6
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
    return plot.finish(
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


def percentile_table(summary: Summary) -> str:
    """Return the percentiles of each metric, ranges below them."""
    rows = []
    for name, metric in summary.metrics.items():
        unit_ns, unit = metric_unit(metric)
        cells = [name, unit, three_digits(metric.minimum / unit_ns)]
        for key, p in PERCENTILES.items():
            around = metric.range_of(p)
            words = f"<small>{format_range(around, unit_ns)}</small>" if around else ""
            cells.append(in_unit(metric.reported(key), unit_ns) + words)
        rows.append([*cells, three_digits(metric.maximum / unit_ns)])
    return html_table(["", "", "min", *LABELS.values(), "max"], rows)


def failures_table(summary: Summary) -> str:
    """Return the failures by outcome, with examples."""
    examples: defaultdict[str, list[str]] = defaultdict(list)
    if summary.tally:
        for (outcome, words), ((client, message), *_) in summary.tally.examples.items():
            example = f"{html.escape(words)} (client {client}, message {message})"
            examples[OUTCOMES[outcome]].append(example)
    rows = [
        [name.replace("_", " "), grouped(number), "<br>".join(examples[name])]
        for name, number in summary.failures.items()
        if number
    ]
    table = html_table(["failure", "count", "for example"], rows)
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
        (format_throughput(summary.bytes_per_s), "throughput"),
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
        table = percentile_table(summary)
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
    if tally and tally.balancer_cost.count:
        yield "What the balancer costs", f"<p>{html.escape(cost_words(tally))}."
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
    items = "".join(f"<li>{html.escape(w)}" for w in summary.reasons + summary.notices)
    title = f"{counted(summary.clients, 'client')} → {html.escape(summary.target)}"
    ran = f"ran {format_duration(summary.wall_s * 1e9)} · {summary.started}"
    checked = "" if summary.reasons else f" ({checks_of(summary)})"
    parts = sections(summary, baseline)
    content = "".join(f"<h2>{heading}</h2>{text}" for heading, text in parts)
    data = json.dumps(summary.as_json()).replace("<", "\\u003c")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
        " style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width">'
        f"<title>client2: {title}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{title}</h1><p class=soft>{html.escape(summary.headline)} · {ran}"
        f'<div class="tiles">{tiles(summary)}</div>'
        f'<p><b class="{summary.verdict}">Verdict: {summary.verdict}</b>{checked}.'
        f" {ending}"
        f"<ul>{items}</ul>{content}</main>"
        f'<script type="application/json" id="run">{data}</script></body></html>\n'
    )


# ---- Files: JSON, CSV ----------------------------------------------------------------
# A file is written whole or not at all, under another name first, then renamed; but the
# CSV as the run goes on.


def write_whole(path: str, text: str) -> None:
    """Write a file in one step, so that no reader finds half of it; OSError.

    What is no plain file (a pipe, /dev/stdout) cannot be replaced: it is written to.
    """
    if is_stdout(path):
        with leaving_reader():
            print(text, end="", flush=True)
        return
    if os.path.exists(path) and not os.path.isfile(path):
        Path(path).write_text(text, encoding="utf-8")
        return
    path = os.path.realpath(path)
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def is_stdout(path: str) -> bool:
    """Return whether a path names our standard output, wherever that goes."""
    with contextlib.suppress(OSError):  # there is no such file, or no descriptor
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    return False


class CsvWriter:
    """One line per exchange, as the chunks come.

    A failed one has no latency; its response time is how long it was waited for.
    """

    HEAD = "client,message,server,due_s,latency_ns,response_time_ns"
    HEAD += ",bytes_sent,bytes_received,outcome\n"

    def __init__(self, file: TextIO, tally: Tally) -> None:
        self.file, self.tally = file, tally
        file.write(self.HEAD)

    def write(self, chunk: Chunk) -> None:
        """Write the exchanges of a chunk."""
        message_bytes = len(message_of(self.tally.config, chunk.client))
        for number, (due, sent, first, last, _, code) in chunk.exchanges():
            outcome, received = code & OUTCOME_MASK, code >> BYTES_SHIFT
            due_s = (due - self.tally.start_ns) / 1e9
            latency = first - sent if outcome == CONFIRMED else ""
            size = 0 if outcome in (CONNECT, SEND) else message_bytes
            self.file.write(
                f"{chunk.client},{number},{chunk.server_of(code)},{due_s:.9f},"
                f"{latency},{last - due},{size},{received},{OUTCOMES[outcome]}\n"
            )


def read_summary(path: str) -> Summary:
    """Return the summary in a --json file; InputError with the reason if it is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if text.startswith("<!doctype"):  # a report: it carries its figures
            text = text.rpartition('id="run">')[2].partition("</script>")[0]
        return summary_from_json(json.loads(text))
    except OSError as error:
        raise InputError(f"cannot read {path}: {say_why(error)}") from None
    except KeyError as error:
        words = f"{path} was not written by --json: no {error}"
        raise InputError(words) from None
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{path} was not written by --json: {error}") from None
    except (RecursionError, MemoryError):
        raise InputError(f"{path} was not written by --json: too deep") from None


def summary_from_json(data: dict[str, Any]) -> Summary:
    """Return what `as_json` wrote; KeyError, TypeError or ValueError if it did not.

    The texts are shown on terminals and in pages, so they must be what we write.
    """
    if data["version"] != 1:
        raise ValueError(f"version {data['version']!r:.20} of the format; 1 wanted")
    if not 0 <= data["wall_s"] <= LARGEST:
        raise ValueError("its wall time is none")
    if data["timestamps"] not in ("kernel", "user"):
        raise ValueError("timestamps are of the kernel, or the user's")
    time.strptime(data["started"], UTC_FORMAT)
    servers = {}
    for name, figures in data["servers"].items():
        if not re.fullmatch(r"\d{1,5}", name):
            raise ValueError("a server is named by its port")
        latency = Distribution.from_json(figures["latency_ns"])
        servers[name] = ServerTally(int(figures["confirmed"]), latency=latency)
    return Summary(
        command=list(map(str, data["command"])),
        started=data["started"],
        target=safe_text(data["target"].encode()),
        clients=int(data["clients"]),
        wall_s=float(data["wall_s"]),
        timestamps=data["timestamps"],
        interrupted=bool(data["interrupted"]),
        planned=int(data["exchanges"]["planned"]),
        confirmed=int(data["exchanges"]["confirmed"]),
        bytes_sent=int(data["bytes"]["sent"]),
        bytes_received=int(data["bytes"]["received"]),
        latency=Distribution.from_json(data["latency_ns"]),
        response_time=Distribution.from_json(data["response_time_ns"]),
        connect_time=Distribution.from_json(data["connect_ns"]),
        servers=servers,
        failures={name: int(data["failures"][name]) for name in FAILURES},
        reasons=[safe_text(str(reason).encode()) for reason in data["reasons"]],
    )


def merge_summaries(parts: list[Summary], command: list[str]) -> Summary:
    """Return several machines' runs as one: samples add up, percentiles do not."""
    merged = dataclasses.replace(parts[0], command=command, reasons=[])
    merged.wall_s = wall_of(parts)
    if merged.wall_s > 1 + max(part.wall_s for part in parts):
        merged.notices = ["not all runs were at the same time: wall times were added"]
    merged.started = min(part.started for part in parts)
    for name in ("clients", "planned", "confirmed", "bytes_sent", "bytes_received"):
        setattr(merged, name, sum(getattr(part, name) for part in parts))
    merged.target = ", ".join(dict.fromkeys(part.target for part in parts))
    merged.interrupted = any(part.interrupted for part in parts)
    if any(part.timestamps == "user" for part in parts):
        merged.timestamps = "user"
    merged.failures = {k: sum(p.failures[k] for p in parts) for k in FAILURES}
    for name in ("latency", "response_time", "connect_time"):
        setattr(merged, name, Distribution())
        for part in parts:
            getattr(merged, name).merge(getattr(part, name))
    merged.servers = {}
    for k, part in enumerate(parts, 1):
        merged.reasons += [f"file {k}: {reason}" for reason in part.reasons]
        for name, server in part.servers.items():
            ours = merged.servers.setdefault(name, ServerTally())
            ours.confirmed += server.confirmed
            ours.latency.merge(server.latency)
    merged.headline = f"merged from {counted(len(parts), 'run')}"
    return merged


def wall_of(parts: list[Summary]) -> float:
    """Return for how many seconds at least one of some runs lasted."""
    wall_s, begin, end = 0.0, -math.inf, -math.inf
    runs = [(calendar.timegm(time.strptime(p.started, UTC_FORMAT)), p) for p in parts]
    for started, part in sorted(runs, key=operator.itemgetter(0)):
        # A start is known to the second: one second apart may be the same moment.
        begin = begin if started <= begin + 1 else started
        wall_s += max(0.0, begin + part.wall_s - max(begin, end))
        end = max(end, begin + part.wall_s)
    return wall_s


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
        self._start()

    def _start(self) -> None:
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
        self.reader = threading.Thread(target=self._read_lines, name=name, daemon=True)
        self.reader.start()

    def _read_lines(self) -> None:
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
            address = self.address.get(timeout=CHILD_START_S)
        except queue.Empty:
            address = ""
        if address:
            return address
        if not self.port:
            raise DemoError(f"{self.path.name} did not start")
        self.stop()  # its port is taken: let the system choose one
        self.complaints.close()
        self.port = 0
        self._start()
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


# ---- Command line --------------------------------------------------------------------
# Everything wrong with the options is said before a client is started.


class InputError(Exception):
    """Options or files that cannot be used; said in one line, exit status 2."""


def parse_number(
    convert: Callable[[str], Any], least: float, above: bool = False
) -> Callable[[str], Any]:
    """Return a parser of numbers that refuses what is too small or beyond reason."""

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not (math.isfinite(value) and (value > least if above else value >= least)):
            words = "above" if above else "at least"
            raise argparse.ArgumentTypeError(f"{text} is not {words} {least:g}")
        if value > LARGEST:
            raise argparse.ArgumentTypeError(f"{text} is more than {LARGEST:.0e}")
        return value

    return parse


parse_count = parse_number(int, 1)
parse_positive = parse_number(float, 0, above=True)


def parse_workers(text: str) -> int:
    """Return the number of worker processes; 0 stands for auto."""
    return 0 if text == "auto" else int(parse_count(text))


def parse_addresses(text: str) -> list[tuple[str, int]]:
    """Return the addresses of a comma-separated list."""
    return [parse_address(part) for part in text.split(",")]


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options; SystemExit with 2 when they make no sense."""
    parser = Parser(
        prog="client2.py",
        description="Start N clients at once and measure every exchange.",
        epilog="Percentiles are nearest rank. Exit status: 0 none failed, 1 something"
        " failed, 2 usage, 99 a --fail-if limit broken, 130 interrupted.",
    )
    parser.add_argument(
        "clients", metavar="N", nargs="?", type=parse_count, help="start N clients"
    )
    parser.add_argument("--demo", action="store_true",
        help="start three servers and the balancer first, stop them"
        " afterwards")  # fmt: skip
    load = add_load_options(parser)
    add_output_options(parser)
    options = parser.parse_args(argv)
    check_options(parser, options, load)
    return options


def add_load_options(parser: Parser) -> list[argparse.Action]:
    """Add what a run does; return these options."""
    add = parser.add_argument_group("load").add_argument
    return [
        add("--target", metavar="HOST:PORT", type=parse_address,
            help="connect to this address (default: 127.0.0.1:9990)"),
        add("--messages", metavar="COUNT", type=parse_count,
            help="send so many per client (default: 1; with --duration, no limit)"),
        add("--duration", metavar="S", type=parse_positive, default=0.0,
            help="send for so many seconds (default: until all messages are sent)"),
        add("--rate", metavar="R", type=parse_positive, default=0.0,
            help="send R messages per second, all clients together, on a fixed"
            " schedule: an open loop (default: a closed loop, each client sends when"
            " its last reply has come)"),
        add("--ramp", metavar="S", type=parse_number(float, 0), default=0.0,
            help="spread the clients' starts over so many seconds (default: 0)"),
        add("--message", metavar="TEXT",
            help='send this line (default: "Hello from client <i>!")'),
        add("--size", metavar="BYTES", type=parse_count, default=0,
            help="fill up or shorten the message to this size, newline included"
            " (default: off)"),
        add("--timeout", metavar="S", type=parse_positive, default=5.0,
            help="wait at most so long for a connection, and for a whole reply"
            " (default: 5)"),
        add("--workers", metavar="COUNT", type=parse_workers, default=1,
            help='spread the clients over processes; "auto": as many as it takes'
            " (default: 1)"),
        add("--direct", metavar="HOST:PORT,...", type=parse_addresses, default=[],
            help="pair each exchange with one directly with the same server: what the"
            " balancer costs (default: off)"),
        add("--reconnect", action="store_true",
            help="open a new connection for every message (default: keep it)"),
        add("--any-reply", action="store_true",
            help="take any reply that ends a line, e.g. of another protocol (default:"
            " it must repeat the message)"),
    ]  # fmt: skip


def add_output_options(parser: Parser) -> None:
    """Add what is made of a run's figures."""
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--json", metavar="FILE", help="write the figures (default: off)")
    add("--csv", metavar="FILE", help="write one line per exchange (default: off)")
    add("--report", metavar="FILE.html",
        help="write a page with plots, in one file (default: off)")  # fmt: skip
    add("--baseline", metavar="FILE.json",
        help="compare latency and rate with an earlier run's --json"
        " (default: off)")  # fmt: skip
    add("--merge", metavar="FILE.json", nargs="+",
        help="run nothing: add up what --json wrote, e.g. on several"
        " machines")  # fmt: skip
    add("--fail-if", metavar="LIMIT", type=parse_limit, default=[], action="append",
        help="exit with 99 when this holds: p99>50ms, response.p50>=1s, failed>1%%,"
        " rate<1000/s; repeatable")  # fmt: skip
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--verbose", action="store_true", help="show every exchange as well"
    )
    either.add_argument("--quiet", action="store_true", help="print errors only")


def check_options(
    parser: Parser, options: argparse.Namespace, load: list[argparse.Action]
) -> None:
    """Refuse options that contradict each other, and files that cannot be written."""
    if (options.clients is None) == (options.merge is None):
        parser.error("give the number of clients N, or files to --merge")
    if options.demo and (options.target or options.merge):
        parser.error("--demo brings its own target and runs by itself")
    if options.merge:
        given = [a for a in load if a.default != getattr(options, a.dest)]
        flags = [a.option_strings[0] for a in given] + ["--csv"] * bool(options.csv)
        if flags:
            parser.error(f"--merge runs nothing: leave out {flags[0]}")
    if options.rate and options.ramp:
        parser.error("--rate is a schedule of its own: leave out --ramp")
    if options.message and "\n" in options.message and not options.any_reply:
        parser.error("--message is one line; more lines need --any-reply")
    ports = [port for _, port in options.direct]
    if len(set(ports)) < len(ports):
        parser.error("--direct: a reply names its server by the port, so ports differ")
    for name in ("json", "csv", "report"):
        path = getattr(options, name)
        if path and not can_write(path, replaces=name != "csv"):
            parser.error(f"--{name}: cannot write {path!r}")


def can_write(path: str, replaces: bool) -> bool:
    """Return whether a file can be written: replaced as a whole, or opened."""
    if os.path.isdir(path):
        return False
    if os.path.exists(path) and not (replaces and os.path.isfile(path)):
        return os.access(path, os.W_OK)
    return os.access(os.path.dirname(os.path.realpath(path)), os.W_OK)


def resolve(address: tuple[str, int]) -> Addresses:
    """Return the socket addresses of a host and port; InputError if it has none."""
    try:
        answers = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise InputError(f"cannot resolve {address[0]!r}: {reason}") from None
    return [(family, sockaddr) for family, _, _, _, sockaddr in answers]


def complain(text: str) -> None:
    """Say in one line on standard error what is wrong."""
    print(f"client2.py: {text}", file=sys.stderr, flush=True)


def make_config(options: argparse.Namespace, target: tuple[str, int]) -> Config:
    """Return the run that the options describe; InputError if it cannot be run."""
    clients, message = options.clients, options.message
    messages = options.messages or (0 if options.duration else 1)
    few = clients <= CLIENTS_SHOWN and 0 < clients * messages <= EXCHANGES_SHOWN
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
        workers=workers_for(clients, options.workers, 2 if options.direct else 1),
        direct={str(a[1]): resolve(a) for a in options.direct},
        keep_replies=not options.quiet and (few or options.verbose),
    )


def workers_for(clients: int, workers: int, each: int) -> int:
    """Return how many processes run the clients: as asked for, or (0) as it takes.

    Each client has `each` files open; InputError if a process may not open so many.
    """
    limit = raise_descriptor_limit()
    most = clients if limit is None else max(1, (limit - SPARE_DESCRIPTORS) // each)
    if not workers:
        cores, many = usable_cores(), math.ceil(clients / MANY_CLIENTS_PER_WORKER)
        enough = max(cores + 1, min(many, WORKERS_PER_CORE * cores))
        enough = min(enough, math.ceil(clients / CLIENTS_PER_WORKER))
        return max(enough, math.ceil(clients / most))
    if math.ceil(clients / workers) > most:
        need = each * math.ceil(clients / workers) + SPARE_DESCRIPTORS
        raise InputError(
            f"{clients} clients need {need} open files and this process may have"
            f" {limit}: raise the limit (ulimit -n {need}), or use fewer or --workers"
        )
    return workers


@contextlib.contextmanager
def signals_to(inbox: Inbox) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into an event; a second one ends at once."""

    def send(signum: int, frame: Any) -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        inbox.put(("signal", signum))  # SimpleQueue.put may interrupt itself

    if threading.current_thread() is not threading.main_thread():
        yield  # called from a test's thread: signals are not ours
        return
    before = {s: signal.signal(s, send) for s in (signal.SIGINT, signal.SIGTERM)}
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
        # The server keeps its core when a client wakes. Not earlier: the demo's scripts
        # choose for themselves.
        do_not_preempt()
        run = Run(make_config(options, target), inbox)
        run.tally.timeline = Timeline() if options.report else None
        if options.csv:
            file = sys.stdout
            if not is_stdout(options.csv):
                file = stack.enter_context(open(options.csv, "w", encoding="utf-8"))
            run.on_chunk = CsvWriter(file, run.tally).write
        run.execute(Progress(run.config, sys.stderr, not options.quiet))
        return summarize(run, command)


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


def finish(
    summary: Summary, baseline: Summary | None, options: argparse.Namespace
) -> int:
    """Write the files and print what was asked for; return the exit status."""
    broken = broken_limits(options.fail_if, summary)
    status, reason = exit_status(summary, broken)
    ending = f"exit {status}: {reason}"
    nobody = unreachable(summary)
    if not (nobody or options.quiet):  # first: a file may be impossible to write
        with leaving_reader():
            show(summary, baseline, broken)
    words = html.escape("; ".join([ending, *broken])).capitalize()
    if not write_files(summary, baseline, options, words):
        status = status or 1
    elif nobody:
        complain(nobody)
    elif options.quiet:
        if status:
            complain("; ".join([reason, *broken]))
    else:
        for name in ("report", "json", "csv"):
            path = getattr(options, name)
            ending += f"   {name}: {path}" if path else ""
        with leaving_reader():
            print(f" {ending}", flush=True)
    return status


def show(summary: Summary, baseline: Summary | None, broken: list[str]) -> None:
    """Print exchanges, summary, comparison, and broken limits."""
    if summary.tally and summary.tally.config.keep_replies:
        print("\n".join(exchange_lines(summary.tally)), end="\n\n")
    print_summary(summary, sys.stdout)
    if baseline:
        print("\n".join(baseline_lines(summary, baseline)))
    for words in broken:
        print("\n".join(wrapped("limit", f"broken: {words}")))


def write_files(
    summary: Summary, baseline: Summary | None, options: argparse.Namespace, ending: str
) -> bool:
    """Write --json and --report; say which could not be, and return False."""
    texts: list[tuple[str, Callable[[], str]]] = [
        (options.json, lambda: json.dumps(summary.as_json(), indent=1) + "\n"),
        (options.report, lambda: render_report(summary, baseline, ending)),
    ]
    done = True
    for path, text in texts:
        try:
            if path:
                write_whole(path, text())
        except OSError as error:
            complain(f"cannot write {path}: {say_why(error)}")
            done = False
    return done


def main(argv: Sequence[str] | None = None) -> int:
    """Run the client; return the exit status, as the end of `--help` lists them."""
    if sys.stdout is None or sys.stderr is None:  # closed: `>&-`
        nowhere = open(os.devnull, "w", encoding="utf-8")
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    argv = sys.argv[1:] if argv is None else argv
    options = parse_args(argv)
    command = ["client2.py", *argv]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without these characters
    try:
        # Read before the run: a mistake is said at once.
        baseline = read_summary(options.baseline) if options.baseline else None
        if options.merge:
            summary = merge_summaries(list(map(read_summary, options.merge)), command)
        else:
            summary = measure(options, command)
        return finish(summary, baseline, options)
    except KeyboardInterrupt:  # before or after the run
        complain("interrupted")
        return 130
    except InputError as error:
        complain(str(error))
        return 2
    except DemoError as error:
        complain(str(error))
        return 1
    except OSError as error:
        complain(f"{error.filename or 'error'}: {say_why(error)}")
        with leaving_reader():
            sys.stdout.flush()
        return 1


if __name__ == "__main__":
    sys.exit(main())
