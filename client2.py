#!/usr/bin/env python3
"""Start N clients at once, and measure every exchange by the kernel's clock.

    client-1 ─┐  Hello from client 1!                ┌─► server 9991
    client-2 ─┼────────► load balancer :9990 ────────┼─► server 9992
    client-N ─┘  Server 9991 received: Hello from…   └─► server 9993

Each client has its own thread and connection. An exchange is one message (a line) and
its reply, which must be `Server <port> received: ` and the same bytes. In a closed loop
a client sends the next message when the reply is there; in an open loop (--rate) every
message has its moment in one schedule, and the next client that is free sends it.

    due ── sent ──► kernel … network, balancer, server … kernel ──► first … last byte
           ├────────────────── latency ───────────────────────────────┤
     ├──────────────────────── response time ──────────────────────────────────┤

Latency ends when the reply's first byte reaches this machine's kernel, by its receive
timestamp: how late the client's thread wakes up is on a line of its own.

Data flow: options → N × Client, each with a Connection → an Exchange each → the group's
Results, a new one four times a second → added up (as --merge adds up files) → verdict
and exit status → terminal, JSON, HTML. --csv is written as the run goes on. Ranges are
tenths: a run is cut, in order of time, into ten parts of about equal number, and a
percentile's range goes from the least to the greatest of the parts' own percentiles.

Threads of the main process:
    MainThread   main → measure → run: starts the groups together, adds up; all output
    reader-K     read_reports: passes on what group K reports
Of each group (in this process; where it takes several, in a process of its own):
    group-K      serve_group: reports what its clients did, and watches for stalls
    orders       follow_orders: the start, and the end before its time
    client-K     Client.run
Handed over through queues and pipes, or written before an event is set; the one lock is
the schedule's.

To stop: each client knows the end of --duration; Ctrl-C or SIGTERM ends the run at
once, without waiting for replies; a second one ends the program.

    python3 client2.py 9 --demo             servers, balancer and nine clients at once
    python3 client2.py 1000 --messages 10   against the balancer at 127.0.0.1:9990
    python3 client2.py 50 --rate 500,1000,2000 --duration 10 --report run.html
    python3 client2.py --merge a.json b.json

--json has in each metric `tenths` (the ranges) and `parts` (the ten parts' percentiles,
which --merge joins); each server's p50 in the ten parts and of its connections; and
`comparison` (`slower`: which server than which one); several --rate or --runs: `runs`.

It does not speak TLS or HTTP, send a message before the last one's reply (no
pipelining), or load more than one target.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - who runs an older one is told so
    found = ".".join(map(str, sys.version_info[:3]))
    sys.stderr.write("client2.py needs Python 3.11 or newer, this is " + found + "\n")
    sys.exit(2)

import signal

if __name__ == "__main__" and callable(signal.getsignal(signal.SIGINT)):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from half an import

import argparse
import bisect
import contextlib
import errno
import gc
import html
import io
import itertools
import json
import math
import multiprocessing
import multiprocessing.dummy
import operator
import os
import platform
import queue
import random
import re
import select
import shlex
import shutil
import socket
import statistics
import struct
import subprocess
import textwrap
import threading
import time
import zlib
from array import array
from base64 import b64decode, b64encode
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import time_ns
from typing import Any, NamedTuple, NoReturn, TextIO

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

VERSION = "2.0"
# Percentiles are nearest rank. One is given when, if exchanges were independent, the
# largest would lie above it in 95 of 100 runs: of ⌈log 0.05 / log p⌉ exchanges or more.
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}
LABELS = {name: name.replace("_", ".") for name in PERCENTILES}
EXACT_LIMIT = 10_000  # so many values are kept as they are
HDR_MOST_BYTES = 1 << 24  # of a histogram in a file

PARTS = 10  # of a run: alike and independent, all lie on one side once in 512
FEWEST_PARTS = 6  # for a range or a difference
MOST_SLICES = 128  # of time; then two become one
CONNECTION_GROUPS = 32  # of a server's connections, at most
SHUFFLES = 1000
CHANCE = 0.05  # at most, of a difference that is none, in time or of runs, ...
CHANCE_OF_CONNECTIONS = 0.01  # ... and of servers that differ by their connections
LEAST_RATIO = 1.05  # of two servers, to be worth a sentence; in each part, ...
LEAST_IN_PART = 1.02  # ... for equal ones differ by less in one part or other

CONFIRMED = "confirmed"
FAILURES = ("connect", "send", "timeout", "reset", "closed", "mismatch", "error_reply",
            "local")  # fmt: skip

LINUX = sys.platform == "linux"
TWO_LONGS = struct.Struct("@ll")  # a timespec, a timeval
# Linux stamps received segments when asked (socket(7), timestamping.rst 1.1). Python
# has no name for option 35 of asm-generic/socket.h, which is also the message's type.
TIMESTAMP_OPTION = 35 if LINUX and hasattr(socket.socket, "recvmsg") else None
STAMP_SPACE = 64  # bytes for one control message of two longs
TIMED_OUT = (BlockingIOError, TimeoutError)  # by a kernel's deadline, by Python's
# What this machine can run out of, which says nothing about the target.
SCARCE = {errno.EADDRNOTAVAIL: "local ports", errno.EMFILE: "descriptors",
          errno.ENFILE: "descriptors", errno.ENOMEM: "memory",
          errno.ENOBUFS: "memory"}  # fmt: skip
READ_BYTES = 1 << 16
LONGEST_REPLY = 64 << 20  # with --any-reply
SILENCE_S = 0.02  # ends a reply of several lines, with --any-reply

TICK_S = 0.25  # a group reports so often, and the progress line moves
BEAT_S = 0.01  # a group looks so often whether it stood still
STILL_S = 0.02  # beats later than this can be that
STILL_SHARE = 0.05  # of the run: then its figures are doubtful
CLOCK_STEP_NS = 500_000_000  # slewing and a late thread stay below this
GAP_SHOWN_NS = 500_000_000  # a gap without a good reply is worth a line from here on
FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 1.0  # after a connect that failed
STACK_BYTES = 256 * 1024  # a client's thread needs little, and there may be thousands
CLIENTS_PER_WORKER = 12  # one interpreter lock serves so many well
MANY_CLIENTS_PER_WORKER = 150
WORKERS_PER_CORE = 4  # at most
GC_EVERY = 200_000  # new objects in a worker
SPARE_DESCRIPTORS = 40  # standard streams, pipes, files besides the connections
EXCHANGES_SHOWN = 120  # lines, for a dozen clients or fewer
CLIENTS_SHOWN = 12
HISTOGRAM_LEAST = 20  # exchanges
SLOWEST_SHOWN = 10  # in the report
MOST_EXAMPLES = 50  # of failures, each in other words
DOTS_SHOWN = 4000  # in the report; more exchanges than this become a heat map
SYN_RETRY_NS = 900_000_000  # Linux sends a lost SYN again after 1 s
HELD_SHARE = 0.98  # of a rate: then the target holds it
QUEUE_SHARE = 0.05  # of a run, to answer what waited when its schedule ended
LARGEST = 1e9  # of numbers given on the command line


# ---- Text: three significant digits, a unit, and nothing that moves the cursor -------

TIMES = ((10**9, "s"), (10**6, "ms"), (1000, "µs"))
RATES = ((10**9, "GB/s"), (10**6, "MB/s"), (1000, "kB/s"), (1, "B/s"))
PLAIN = str.maketrans({
    "✓": "+", "█": "#", "µ": "u", "→": "->", "–": "-", "…": "...", "\u2009": " ",
    "·": "-", "←": "<-", "χ": "chi", "²": "^2", "ρ": "rho", "×": "x", "≥": ">=",
    **dict.fromkeys("▏▎▍▌▋▊▉", "#"),
})  # fmt: skip


def grouped(number: float) -> str:
    """Return a whole number with thin spaces between thousands: 10 000."""
    return f"{number:,.0f}".replace(",", "\u2009")


def digits(value: float | None) -> str:
    """Return a number with three significant digits: 0.0123, 1.62, 431, 1 020."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 999.5:
        return grouped(float(f"{value:.3g}"))
    return f"{value:#.3g}".rstrip(".") if value else "0"


def with_unit(value: float | None, units: Sequence[tuple[int, str]] = TIMES) -> str:
    """Return a duration in ns, or a rate, with its unit: 1.62 ms."""
    if value is None:
        return "–"
    size, name = next((u for u in units if abs(value) >= 0.9995 * u[0]), units[-1])
    return f"{digits(value / size)} {name}"


def from_to(values: tuple[float, float] | None) -> str:
    """Return a range of durations in the unit of the longer one: 0.292–1.15 ms."""
    if values is None:
        return "–"
    high, unit = with_unit(values[1]).rsplit(" ", 1)  # a thin space is in 1 020 s
    low = values[0] / next(size for size, name in TIMES if name == unit)
    first = digits(low) if low >= 1e-4 else "0"
    return f"{high} {unit}" if first == high else f"{first}–{high} {unit}"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: 1 byte, 2 bytes, 2 replies."""
    several = noun[:-1] + "ies" if noun.endswith("ly") else noun + "s"
    return f"{grouped(number)} {noun if number == 1 else several}"


def safe_text(data: bytes, limit: int = 200) -> str:
    """Return `data` as printable text: no byte of a reply may steer a terminal."""
    text = data[:limit].decode("utf-8", "backslashreplace").rstrip("\r\n")
    escaped = (c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return "".join(escaped) + ("…" if len(data) > limit else "")


def say_why(error: OSError) -> str:
    """Return the reason of a failed call in lower-case words, without its number."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return "timed out"
    return (error.strerror or str(error) or type(error).__name__).lower()


def put(text: str, stream: TextIO) -> None:
    """Write text whole: in ASCII where the stream's encoding has no better; OSError.

    A stream that somebody made non-blocking is waited for, so that no line is lost.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        data = text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(PLAIN)
        data = text.encode(encoding, "backslashreplace")
    stream.flush()
    if os.name != "posix" or not isinstance(stream, io.TextIOWrapper):
        stream.write(data.decode(encoding))
        stream.flush()
        return
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(stream.fileno(), left) :]
        except BlockingIOError:
            select.select([], [stream], [])


def complain(text: str) -> None:
    """Say in one line on standard error what is wrong."""
    with contextlib.suppress(OSError, ValueError):
        put(f"client2.py: {text}\n", sys.stderr)


def open_missing_streams() -> None:
    """Open descriptors 0, 1, 2 that were closed, before a file or socket gets them."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


# ---- Counts: HdrHistogram's, and the same by time, for tenths ------------------------


def hdr_index(value: int) -> int:
    """Return the counter of a value: 2,048 linear sub-buckets, 1,024 per doubling."""
    shift = value.bit_length() - 11
    return (shift << 10) + (value >> shift) if shift > 0 else value


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
    payload, position = bytearray(), 0
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
    try:
        body = zlib.decompressobj().decompress(b64decode(text)[8:], HDR_MOST_BYTES)
        cookie, size, offset, *scale = struct.unpack_from(">iiiiq", body)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"not an HdrHistogram: {error}") from None
    if (cookie, offset, scale) != (0x1C849313, 0, [3, 1]):
        raise ValueError("not an HdrHistogram V2 of 3 digits and unit 1")
    counts: Counter[int] = Counter()
    position = 0
    for number in zigzag_numbers(body[40 : 40 + size]):
        if number > 0:
            counts[position] = number
        position += -number if number < 0 else 1
    return counts


@dataclass(slots=True)
class Slices:
    """Counts of things by time: at most MOST_SLICES slices of 2**shift ns."""

    shift: int = 14  # 16 µs: a run of a millisecond has parts, too
    first: int = sys.maxsize  # moments, ns; a slice starts at a multiple of its length
    last: int = 0
    counts: Counter[tuple[int, Any]] = field(default_factory=Counter)  # (slice, thing)

    def add(self, moments: Sequence[int], things: Iterable[Any]) -> None:
        """Count things, each at its moment in ns."""
        if moments:
            self.reach(min(moments), max(moments))
            slices = map(operator.rshift, moments, itertools.repeat(self.shift))
            self.counts.update(zip(slices, things, strict=False))

    def merge(self, other: Slices) -> None:
        """Add what another one has, which gets slices of the same length."""
        shift = max(self.shift, other.shift)
        self.widen(shift)
        other.widen(shift)
        self.counts.update(other.counts)
        self.reach(other.first, other.last)

    def reach(self, first: int, last: int) -> None:
        """Have room from one moment to another."""
        self.first, self.last = min(self.first, first), max(self.last, last)
        shift = self.shift
        while (self.last >> shift) - (self.first >> shift) >= MOST_SLICES:
            shift += 1
        self.widen(shift)

    def widen(self, shift: int) -> None:
        """Make slices 2**shift ns long, if they are shorter."""
        if by := max(0, shift - self.shift):
            counts, self.counts, self.shift = self.counts, Counter(), shift
            for (slice_, thing), number in counts.items():
                self.counts[slice_ >> by, thing] += number

    def by_slice(self) -> dict[int, Counter[Any]]:
        """Return {slice: counts of things}, in order of time."""
        found: defaultdict[int, Counter[Any]] = defaultdict(Counter)
        for slice_, thing in sorted(self.counts):
            found[slice_][thing] = self.counts[slice_, thing]
        return found

    def cut(self) -> dict[int, int]:
        """Return {slice: its part of the run}: ten parts of about equal number."""
        sizes = {k: things.total() for k, things in self.by_slice().items()}
        before, total, part_of = 0, sum(sizes.values()), {}
        for slice_, size in sizes.items():  # it belongs where its middle is
            part_of[slice_] = int(PARTS * (before + size / 2) / total)
            before += size
        return part_of


# The levels of slices: an HdrHistogram index in steps of 8, 128 to a doubling.
LEVEL = 3


def percentile_of(levels: Mapping[int, int], p: float) -> float:
    """Return a percentile (nearest rank), by its rank's place within its level."""
    rank = max(1, math.ceil(round(p * sum(levels.values()), 6)))
    for level in sorted(levels):
        if rank <= levels[level]:
            low = hdr_highest((level << LEVEL) - 1) + 1 if level else 0
            high = hdr_highest((level + 1 << LEVEL) - 1) + 1
            return low + (high - low) * (rank - 0.5) / levels[level]
        rank -= levels[level]
    return 0.0


def needed(p: float) -> int:
    """Return how many exchanges a percentile needs to be given."""
    return 1 if p <= 0.5 else math.ceil(math.log(0.05) / math.log(p))


NEEDED = {name: needed(p) for name, p in PERCENTILES.items()}
PARTS_NEED = {name: round(PARTS / (1 - p)) for name, p in PERCENTILES.items()}


@dataclass(slots=True)
class Distribution:
    """Durations in ns: HdrHistogram counts, three digits, any number.

    The values themselves, too, while they are few; and levels by time, if moments are
    given, or (read from files) the parts' percentiles, to which they lead.
    """

    counts: Counter[int] = field(default_factory=Counter)
    count: int = 0
    total: int = 0
    minimum: int = sys.maxsize
    maximum: int = 0
    values: array[int] | None = field(default_factory=lambda: array("q"))
    slices: Slices = field(default_factory=Slices)
    read: dict[str, list[float]] = field(default_factory=dict)
    known: tuple[int, list[Counter[int]]] = (0, [])  # at which count; the parts then

    def extend(self, values: Sequence[int], moments: Sequence[int] = ()) -> list[int]:
        """Add durations, and when each was; return their levels, if that is known."""
        if not values:
            return []
        if (least := min(values)) < 0:  # the clock was set back
            values, least = [max(0, value) for value in values], 0
        indices, levels = list(map(hdr_index, values)), list[int]()
        if moments:
            levels = list(map(operator.rshift, indices, itertools.repeat(LEVEL)))
            self.slices.add(moments, levels)
        self.merge(Distribution(Counter(indices), len(values), sum(values), least,
                                max(values), array("q", values)))  # fmt: skip
        return levels

    def merge(self, other: Distribution) -> None:
        """Add what another one has."""
        self.counts.update(other.counts)
        self.slices.merge(other.slices)
        for name, values in other.read.items():
            self.read[name] = self.read.get(name, []) + values
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        if other.values is None or self.count > EXACT_LIMIT:
            self.values = None
        elif self.values is not None:
            self.values.extend(other.values)

    def percentile(self, p: float) -> int:
        """Return the value at rank ⌈p · count⌉ (nearest rank); 0 when empty."""
        rank = max(1, math.ceil(round(p * self.count, 6)))  # 0.9 · 10 is 9, not 9.0…1
        if self.values is not None:
            return sorted(self.values)[rank - 1] if self.values else 0
        for index in sorted(self.counts):
            rank -= self.counts[index]
            if rank <= 0:
                return max(self.minimum, min(self.maximum, hdr_highest(index)))
        return self.maximum

    def between(self, low: int, high: int) -> int:
        """Return how many values lie in low ≤ value < high."""
        pairs = self.counts.items()
        return sum(n for index, n in pairs if low <= hdr_highest(index) < high)

    def reported(self, p: float) -> int | None:
        """Return a percentile, or None where the sample cannot carry it."""
        return self.percentile(p) if self.count >= needed(p) else None

    def parts(self, part_of: dict[int, int] | None = None) -> list[Counter[int]]:
        """Return the levels of the ten parts, by their own cut or by a given one."""
        part_of = self.slices.cut() if part_of is None else part_of
        parts = [Counter[int]() for _ in range(PARTS)]
        for (slice_, level), number in self.slices.counts.items():
            if slice_ in part_of:
                parts[part_of[slice_]][level] += number
        return parts

    def part_values(self, name: str) -> list[float]:
        """Return the parts' percentile; none when the run is too short for it.

        A part should have 1 / (1 - p) exchanges, 100 for p99; one that has less than
        half of them, because slices are not equal, is left out.
        """
        if self.read:
            return self.read[name]
        if self.known[0] != self.count:
            self.known = self.count, self.parts()
        p, (_, parts) = PERCENTILES[name], self.known
        if sum(part.total() for part in parts) * (1 - p) <= PARTS - 1e-9:
            return []
        rich = [part for part in parts if part.total() * (1 - p) > 0.5 - 1e-9]
        values = [percentile_of(part, p) for part in rich]
        return [min(self.maximum, max(self.minimum, value)) for value in values]

    def tenths(self, name: str) -> tuple[float, float] | None:
        """Return the least and the greatest of the parts, None if they are too few."""
        values = self.part_values(name)
        return (min(values), max(values)) if len(values) >= FEWEST_PARTS else None

    def as_json(self) -> dict[str, Any]:
        """Return what --json has of a metric, in ns; `from_json` reads it back."""
        tenths = {name: self.tenths(name) for name in PERCENTILES}
        return {
            "count": self.count,
            "min": self.minimum if self.count else None,
            "mean": round(self.total / self.count) if self.count else None,
            **{name: self.reported(p) for name, p in PERCENTILES.items()},
            "max": self.maximum if self.count else None,
            "tenths": {n: t and [round(t[0]), round(t[1])] for n, t in tenths.items()},
            "parts": {n: [round(v) for v in self.part_values(n)] for n in PERCENTILES},
            "hdr": hdr_encode(self.counts, self.maximum),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Distribution:
        """Return what `as_json` wrote; KeyError, TypeError or ValueError if not."""
        counts, count = hdr_decode(data["hdr"]), int(data["count"])
        if count != sum(counts.values()):
            raise ValueError("its histogram has another count")
        # A file of version 1.x has no parts: then there are no ranges.
        parts = data.get("parts") or dict.fromkeys(PERCENTILES, ())
        read = {name: [float(v) for v in parts[name]] for name in PERCENTILES}
        if not all(0 <= v <= 2**62 for values in read.values() for v in values):
            raise ValueError("its parts are no durations")
        if not count:
            return cls(read=read)
        least, most, mean = (int(data[key]) for key in ("min", "max", "mean"))
        if not 0 <= least <= most <= 2**62:
            raise ValueError("its least value is more than its largest")
        return cls(counts, count, mean * count, least, most, None, read=read)


# ---- Differences: of servers in one run, of runs -------------------------------------


def chance(groups: Sequence[Sequence[float]]) -> float:
    """Return how often groups differ as much when their members are dealt out anew.

    A permutation test of the groups' mean logarithms: of servers' connections, of two
    sides' runs. It is 1.0 for groups of one, and above 0.05 for three against three.
    """
    logs = [math.log(max(1.0, value)) for value in itertools.chain(*groups)]

    def spread() -> float:
        rest = iter(logs)
        means = [statistics.fmean(itertools.islice(rest, len(g))) for g in groups]
        return max(means) - min(means)

    seen, dealer, as_much = spread() - 1e-12, random.Random(1), 0
    for _ in range(SHUFFLES):
        dealer.shuffle(logs)
        as_much += spread() >= seen
    return (1 + as_much) / (1 + SHUFFLES)


def ratios_of(
    slow: Sequence[float | None], fast: Sequence[float | None], pairs: int
) -> list[float]:
    """Return the ratios of two servers' medians, part by part, if one is slower in all.

    None are returned where so few parts could agree by chance (sign test, for as many
    pairs of servers as there are).
    """
    both = zip(slow, fast, strict=True)
    ratios = [a / b for a, b in both if a is not None and b]
    enough = 2 * 0.5 ** len(ratios) * pairs <= CHANCE
    return ratios if enough and min(ratios) > LEAST_IN_PART else []


def take_turns(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Return whether two sides' runs took turns, by the moments when they started.

    Else the machine may have changed between them, and nothing in them can tell.
    """
    starts = sorted([(t, 0) for t in ours] + [(t, 1) for t in theirs])
    changes = sum(a[1] != b[1] for a, b in itertools.pairwise(starts))
    return changes >= min(len(ours), len(theirs))


# ---- One exchange, one connection, one client ----------------------------------------
# The measuring itself; nothing is shared but the schedule.


class Outcome(NamedTuple):
    """What exchanges that are alike have in common."""

    name: str  # CONFIRMED, or one of FAILURES
    server: str = ""  # that answered, by its port
    sent: int = 0  # bytes
    received: int = 0
    text: str = ""  # why it failed; the reply, when it is to be shown


class Exchange(NamedTuple):
    """One message, and what became of it. Moments are ns of CLOCK_REALTIME."""

    client: int
    number: int  # of the client's messages, from 1
    due: int  # by the schedule; without one, when it was sent
    sent: int  # handed to the kernel
    first: int  # the reply's first byte reached the kernel, ...
    last: int  # ... its last byte; of a failed one, when it was given up
    seen: int  # the client's thread had it all
    outcome: Outcome
    since: int  # its client waits for a good reply since then
    connect: int = 0  # ns that its connect took; 0: the connection was there
    late: int = 0  # ns that the client woke too late to send it
    direct: int | None = None  # latency of its twin that went to the server directly


class Failed(Exception):  # noqa: N818 - an outcome, not a defect
    """An exchange failed: how, in words, and when it had been sent (0: not)."""

    def __init__(self, outcome: str, words: str, sent: int = 0) -> None:
        super().__init__(words)
        self.outcome, self.sent = outcome, sent


def message_of(options: argparse.Namespace, client: int, number: int) -> bytes:
    """Return the bytes of a client's number-th message, newline included."""
    text: bytes = options.texts[(number - 1) % len(options.texts)]
    text = text.replace(b"{client}", b"%d" % client)
    text = text.replace(b"{message}", b"%d" % number)
    room = options.size - 1
    if options.size:
        text = text[:room] if room <= len(text) else (text + b" ").ljust(room, b"x")
    return text + b"\n"


def owner_pattern(text: bytes) -> re.Pattern[bytes]:
    """Return a pattern that tells whose message a reply repeats; "" for nobody's."""
    pattern, seen = b"", set()
    for part in re.split(rb"(\{client\}|\{message\})", text):
        name = part.strip(b"{}")
        if part in (b"{client}", b"{message}") and name not in seen:
            seen.add(name)
            pattern += b"(?P<%s>[0-9]{1,9})" % name
        else:
            pattern += re.escape(part)
    return re.compile(pattern if seen else b"(?!)")


def difference(reply: bytes, message: bytes) -> str:
    """Say how a confirmed text differs from what was sent, wherever it does."""
    if reply == message[:-1] + b"\r\n":
        return "ends in \\r\\n instead of \\n"
    if reply.startswith(message):
        more = len(reply) - len(message)
        return f"{counted(more, 'byte')} left over after it"
    pairs = zip(reply, message, strict=False)
    same = next((k for k, (a, b) in enumerate(pairs) if a != b), len(reply))
    if same == len(reply):
        return f"ends after {same} of {counted(len(message), 'byte')}"
    ours, theirs = message[same : same + 12], reply[same : same + 12]
    return f"byte {same + 1}: {safe_text(theirs)!r} instead of {safe_text(ours)!r}"


Addresses = list[tuple[int, tuple[Any, ...]]]  # (family, socket address), all tried
Times = tuple[int, int, int, int]  # sent, first, last, seen: as in an Exchange


class Connection:
    """A client's TCP connection.

    A reply that came in one piece is read at once; others one byte first, so that the
    first byte has its own stamp.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.timeout_s = options, options.timeout
        self.any_reply = options.any_reply
        self.message = b""
        self.sock: socket.socket | None = None
        self.reply = b""  # the last one
        self.outcome = Outcome(CONFIRMED)  # of it
        self.server = ""  # that sent it
        self.in_one_piece = False  # so it came
        self.has_ended = False  # no more will come
        self.ends_by_silence: bool | None = None  # so replies do; None: not known yet
        self.clocks = 0, 0  # when it connected: CLOCK_MONOTONIC, and what to add

    def connect(self, addresses: Addresses) -> int:
        """Connect and return how long it took in ns; raise Failed."""
        outcome, reason = "connect", "no address"
        for family, address in addresses:
            try:
                self.sock = sock = socket.socket(family, socket.SOCK_STREAM)
                with contextlib.suppress(OSError):  # refused: it costs only itself
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ask_for_stamps(sock)  # before the first segment
                self._set_deadline(self.timeout_s)
                self.clocks = time.monotonic_ns(), clock_offset()
                began = time_ns()
                sock.connect(address)
                took = max(1, time_ns() - began)
                self.reply, self.in_one_piece, self.has_ended = b"", False, False
                return took
            except TIMED_OUT:
                outcome, reason = "connect", f"no answer in {self.timeout_s:g} s"
            except OSError as error:
                outcome, reason = "connect", say_why(error)
                if what := SCARCE.get(error.errno or 0):
                    outcome, reason = "local", f"{what} of this machine ran out"
            self.close()
        raise Failed(outcome, reason)

    def _set_deadline(self, seconds: float) -> None:
        assert self.sock is not None
        if not LINUX:
            self.sock.settimeout(seconds)
            return
        # A deadline in the kernel saves the poll() that settimeout() makes.
        value = TWO_LONGS.pack(*divmod(max(1, round(seconds * 1e6)), 1_000_000))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def exchange(self, message: bytes) -> Times:
        """Send the message, read its reply: (sent, first, last, seen), or Failed."""
        sock, sending, self.message = self.sock, True, message
        assert sock is not None
        sent = time_ns()
        try:
            sock.sendall(message)
            sending = False
            return self.complete(sent, *receive(sock, self.expected_bytes()))
        except OSError as error:
            raise self.failure(error, sending, sent) from None

    def expected_bytes(self) -> int:
        """Return how much to read at first: a reply like the last one, and a byte.

        Any reply may be longer than that, and have a line end just there: it gets much
        more room, but not READ_BYTES, whose buffer would take a microsecond.
        """
        if not self.in_one_piece:
            return 1
        return (2 * len(self.reply) + 400) if self.any_reply else len(self.reply) + 1

    def complete(self, sent: int, data: bytes, arrived: int, seen: int) -> Times:
        """Read what is missing of a reply, and check it; raise Failed, or OSError."""
        first = last = self._arrival(sent, arrived, seen) if data else seen
        if data and data == self.reply and self.outcome.sent == len(self.message):
            self._check(data, True, sent)
            return sent, last, last, seen
        reply, reads, silent = bytearray(data), 1, False
        longest = 2 * len(self.message) + READ_BYTES
        longest = LONGEST_REPLY if self.any_reply else longest
        while data and not silent and (piece := self._wants_more(reply)):
            if len(reply) > longest:
                words = f"no end of the reply after {counted(len(reply), 'byte')}"
                raise Failed("mismatch", words, sent)
            left_s = self.timeout_s - (last - sent) / 1e9
            if piece == "rest" and reads > 1 and left_s <= 0:
                raise TimeoutError
            try:
                left_s = SILENCE_S if piece == "silence" else max(1e-3, left_s)
                self._set_deadline(left_s)
                data, arrived, woke = receive(self.sock, READ_BYTES)
                last, seen = self._arrival(sent, arrived, woke) if data else last, woke
                self.ends_by_silence = piece == "silence" or self.ends_by_silence
            except TIMED_OUT:
                if piece == "rest":
                    raise
                silent, self.ends_by_silence = True, bool(self.ends_by_silence)
                continue
            reply += data
            reads += 1
        self.has_ended = not data
        if reads > 1 or silent:
            self._set_deadline(self.timeout_s)
        self.in_one_piece = reads <= 2 and first == last and not self.ends_by_silence
        self._check(bytes(reply), bool(data), sent)
        return sent, first, last, seen

    def _wants_more(self, reply: bytearray) -> str:
        """Return what a reply lacks: its "rest", "silence" after it, or nothing.

        It ends at its newline. With --any-reply a client looks once whether more comes
        after that; if so, its replies end by silence.
        """
        if not (reply.endswith(b"\n") if self.any_reply else b"\n" in reply):
            return "rest"
        return "silence" if self.any_reply and self.ends_by_silence is not False else ""

    def _arrival(self, sent: int, arrived: int, seen: int) -> int:
        """Return when a segment reached the kernel; Failed if before its message left.

        Without a stamp, or when the clock was stepped, it is when we saw it.
        """
        if sent <= arrived <= seen:
            return arrived
        began, offset = self.clocks
        slewed = 1_000_000 + (time.monotonic_ns() - began) // 1000  # 1000 ppm, at most
        if 0 < arrived < sent and abs(clock_offset() - offset) < slewed:
            raise Failed("mismatch", "the reply came before its message was sent: the"
                " last one was confirmed twice, or had more bytes", sent)  # fmt: skip
        return seen

    def _check(self, reply: bytes, has_end: bool, sent: int) -> None:
        """Learn who answered; raise Failed unless it repeats our message."""
        match = REPLY.match(reply)
        server, body = match[1].decode() if match else "", reply
        body = reply[match.end() :] if match else reply
        if (self.any_reply and reply) or (match and body == self.message):
            if reply != self.reply or self.outcome.sent != len(self.message):
                text = safe_text(reply) if self.options.keep else ""
                self.server, self.reply = server, reply
                sizes = len(self.message), len(reply)
                self.outcome = Outcome(CONFIRMED, server, *sizes, text)
            return
        if not has_end and b"\n" not in reply:
            size = counted(len(reply), "byte")
            when = f"after {size}" if reply else "without a reply"
            raise Failed("closed", f"connection closed {when}", sent)
        if ERROR.match(reply):
            raise Failed("error_reply", safe_text(reply), sent)
        words = safe_text(reply, 60) or "an empty line"
        if whose := self._owner(body.partition(b"\n")[0] + b"\n"):
            words = f"reply belongs to {whose}: {words}"
        elif match:
            words = f"{difference(body, self.message)}: {words}"
        raise Failed("mismatch", words, sent)

    def _owner(self, body: bytes) -> str:
        """Return whose message a reply repeats, if it is another one of this run."""
        if body.strip() == self.message.strip():
            return ""
        for text in self.options.texts:
            found = owner_pattern(text).match(body)
            named = found.groupdict() if found else {}
            if named and 0 < int(named.get("client", 1)) <= self.options.clients:
                return " ".join(f"{name} {int(n)}" for name, n in named.items())
        return ""

    def failure(self, error: OSError, sending: bool, sent: int) -> Failed:
        """Return what an error of a send or a receive means."""
        is_late, limit = isinstance(error, TIMED_OUT), f"in {self.timeout_s:g} s"
        if what := SCARCE.get(error.errno or 0):
            return Failed("local", f"{what} of this machine ran out", sent)
        if not sending:
            words = f"no reply {limit}" if is_late else say_why(error)
            return Failed("timeout" if is_late else "reset", words, sent)
        if not is_late:
            with contextlib.suppress(OSError):  # the server may have said why
                assert self.sock is not None
                self._set_deadline(0.001)
                reply = self.sock.recv(READ_BYTES)
                if ERROR.match(reply):
                    return Failed("error_reply", safe_text(reply), sent)
        return Failed("send", f"not taken {limit}" if is_late else say_why(error), sent)

    def has_left_over(self, waits: bool) -> bool:
        """Return whether bytes have come that belong to no message.

        Or come within SILENCE_S before the server's end of file, which ours brings on.
        """
        if self.sock is None:
            return False
        with contextlib.suppress(OSError):
            if waits:
                self.sock.shutdown(socket.SHUT_WR)
                self._set_deadline(SILENCE_S)
                return bool(self.sock.recv(1))
            if flag := getattr(socket, "MSG_DONTWAIT", 0):  # Windows has none
                return bool(self.sock.recv(1, flag))
        return False

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None


# Who answers, and why not.
REPLY = re.compile(rb"Server (\d{1,5}) received: ")
ERROR = re.compile(rb"Server \d{1,5} error: ")


def ask_for_stamps(sock: socket.socket) -> None:
    """Have received segments stamped, where the system can."""
    if TIMESTAMP_OPTION is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, TIMESTAMP_OPTION, 1)


def receive(sock: socket.socket | None, size: int) -> tuple[bytes, int, int]:
    """Return (data, when its last segment reached the kernel or 0, when we saw it)."""
    assert sock is not None
    if TIMESTAMP_OPTION is None:
        return sock.recv(size), 0, time_ns()
    data, control, _, _ = sock.recvmsg(size, STAMP_SPACE)
    seen = time_ns()
    seconds, nanos = TWO_LONGS.unpack(control[0][2]) if control else (0, 0)
    return data, seconds * 1_000_000_000 + nanos, seen


def clock_offset() -> int:
    """Return CLOCK_REALTIME less CLOCK_MONOTONIC in ns: it changes when one is set.

    The best of three: a thread may lose its core between the two readings.
    """
    readings = []
    for _ in range(3):
        before, now, after = time.monotonic_ns(), time_ns(), time.monotonic_ns()
        readings.append((after - before, now - before))
    return min(readings)[1]


class Client(threading.Thread):
    """One client: its thread, its connection; hands its exchanges to the group."""

    def __init__(self, number: int, options: argparse.Namespace,
                 clients: Clients) -> None:  # fmt: skip
        super().__init__(name=f"client-{number}", daemon=True)
        self.number, self.options, self.clients = number, options, clients
        self.connection = Connection(options)
        self.twin = Connection(options)  # --direct: to the same server
        self.done = 0  # messages so far, failed ones included
        self.connect_ns = 0  # of a connection that has not been used yet
        self.first_failure: Failed | None = None  # of the connect before the start
        self.waits_since = 0  # the first failure after the last good reply was due then
        self.down_since, self.pause_s = 0, FIRST_PAUSE_S  # while connects fail
        self.repeats = not (  # all messages alike, and nothing between them
            TIMESTAMP_OPTION is None or options.rate or options.reconnect
            or options.direct or options.think or options.varies
            or (options.keep and options.any_reply)
        )  # fmt: skip

    def run(self) -> None:
        """Converse, and say that it has ended (the thread's whole life)."""
        try:
            self._converse()
        finally:
            self.clients.events.put(1 + self.done)

    def _converse(self) -> None:
        """Connect, wait for the common start, make exchange after exchange."""
        options, clients = self.options, self.clients
        if options.connects_first:
            try:
                self._connect()
            except Failed as error:
                self.first_failure = error
            clients.events.put(str(self.first_failure or ""))
        clients.go.wait()
        turn = (self.number - 1) / options.clients
        self._wait_until(clients.start_mono_ns + int(turn * options.ramp * 1e9))
        most = 0 if options.rate else options.messages
        while not 0 < most <= self.done:
            due = late = 0
            if self.first_failure is None:  # it goes on record in any case
                if options.rate:
                    if (after := clients.next_due()) is None:
                        break
                    due, free = clients.start_mono_ns + after, time.monotonic_ns()
                    self._wait_until(due)
                    late = time.monotonic_ns() - max(due, free)
                    due += clock_offset()  # a schedule is not moved by a clock step
                elif options.think and self.done:
                    self._wait_until(time.monotonic_ns() + int(options.think * 1e9))
                if time.monotonic_ns() >= clients.end_mono_ns:
                    break
            self._attempt(due, late)
        self._leave(at_end=True)

    def _wait_until(self, moment_ns: int) -> None:
        """Wait for a moment of CLOCK_MONOTONIC, or for the end of the run."""
        moment_ns = min(moment_ns, self.clients.end_mono_ns)
        delay_ns = moment_ns - time.monotonic_ns()
        if delay_ns > 0:
            time.sleep(delay_ns / 1e9)

    def _connect(self) -> None:
        error, self.first_failure = self.first_failure, None
        if error:
            raise error
        self.connect_ns = self.connection.connect(self.options.addresses)
        self.down_since, self.pause_s = 0, FIRST_PAUSE_S

    def _attempt(self, due: int, late: int) -> None:
        """Make one exchange, or many that are alike, whatever comes of it."""
        connection, began = self.connection, time_ns()
        try:
            if connection.sock is None:
                self._connect()
            if self.repeats and connection.in_one_piece:
                times = self._repeat()
            else:
                message = message_of(self.options, self.number, self.done + 1)
                times = connection.exchange(message)
        except Failed as error:
            self.done += 1
            self._fail(due or error.sent or began, error)
            return
        if times is None:  # many, all recorded
            return
        self.done += 1
        sent = times[0]
        direct = self._direct_latency() if self.options.direct else None
        self.clients.exchanges.append(
            Exchange(self.number, self.done, due or sent, *times, connection.outcome,
                self.waits_since or sent, self.connect_ns, late, direct)
        )  # fmt: skip
        self.connect_ns = self.waits_since = 0
        if self.options.reconnect or connection.has_ended:
            self._leave(at_end=False)

    def _repeat(self) -> Times | None:
        """Make exchanges like the last one, until the end, or until one is different.

        Here a run spends its time: one send, one receive, and nothing else that could
        be spared. The different one (a reply in pieces, no timestamp) is returned.
        """
        connection, me, done = self.connection, self.number, self.done
        sock, message, reply = connection.sock, connection.message, connection.reply
        assert sock is not None
        outcome, new = connection.outcome, tuple.__new__
        append = self.clients.exchanges.append
        send, receive, unpack = sock.sendall, sock.recvmsg, TWO_LONGS.unpack
        end = time_ns() + self.clients.end_mono_ns - time.monotonic_ns()
        most, size = self.options.messages or sys.maxsize, connection.expected_bytes()
        sent, seen, sending = 0, 0, True
        try:
            while done < most and seen < end:
                sending, sent = True, time_ns()
                send(message)
                sending = False
                data, control, _, _ = receive(size, STAMP_SPACE)
                seen = time_ns()
                seconds, nanos = unpack(control[0][2]) if control else (0, 0)
                last = seconds * 1_000_000_000 + nanos
                if data != reply or not sent <= last <= seen:
                    return connection.complete(sent, data, last, seen)
                done += 1
                append(new(Exchange, (me, done, sent, sent, last, last, seen, outcome,
                                      sent, 0, 0, None)))  # fmt: skip
        except OSError as error:
            raise connection.failure(error, sending, sent) from None
        finally:
            self.done = done
        return None

    def _fail(self, due: int, error: Failed) -> None:
        """Record a failed exchange: when it was due, how long it waited, and why."""
        now, sent = time_ns(), error.sent or due
        self.waits_since = self.waits_since or due
        size = len(self.connection.message) if error.sent else 0
        outcome = Outcome(error.outcome, "", size, 0, str(error))
        self.clients.exchanges.append(
            Exchange(self.number, self.done, due, sent, now, now, now, outcome,
                     self.waits_since, self.connect_ns)
        )  # fmt: skip
        self.connect_ns = 0
        self._close()
        if error.outcome in ("connect", "local"):
            self._pause()

    def _pause(self) -> None:
        """Wait before the next connect: 50 ms for a second, then longer and longer.

        Spread, for clients that all failed at one moment should not all knock at one.
        """
        now = time.monotonic_ns()
        self.down_since = self.down_since or now
        if now - self.down_since > 1_000_000_000:
            self.pause_s = min(LAST_PAUSE_S, 2 * self.pause_s)
        pause_s = self.pause_s * random.uniform(0.5, 1.5)
        self._wait_until(now + int(pause_s * 1e9))

    def _leave(self, at_end: bool) -> None:
        """Close the connection, and note what was left over on it."""
        if self.connection.has_left_over(waits=at_end):
            self.clients.left_over.append(self.number)
        self._close()

    def _close(self) -> None:
        self.connection.close()
        self.twin.close()

    def _direct_latency(self) -> int | None:
        """Make the same exchange directly with the same server; -1 when it failed."""
        addresses = self.options.direct.get(self.connection.server)
        if addresses is None:
            return None
        try:
            if self.twin.sock is None or self.twin.server != self.connection.server:
                self.twin.close()
                self.twin.connect(addresses)
            sent, first, _, _ = self.twin.exchange(self.connection.message)
            return first - sent
        except Failed:
            self.twin.close()
            return -1


# ---- Groups: clients in this process, or in processes of their own -------------------
# A group is driven through a pipe in both cases: orders go in, Results come out. When
# the pipe of a process ends, the main process has gone, and the group goes, too.


def arrivals(options: argparse.Namespace) -> Iterator[int]:
    """Yield when each message is due by --rate and --arrivals, ns after the start."""
    rate, end_ns = options.rate, options.duration * 1e9 or math.inf
    dealer, at_ns = random.Random(options.seed), 0.0
    for k in itertools.count():
        if options.arrivals == "poisson":
            at_ns += dealer.expovariate(rate) * 1e9
        else:
            at_ns = k * 1e9 / rate
        if at_ns >= end_ns or k >= (options.clients * options.messages or math.inf):
            return
        yield int(at_ns)


class Clients:
    """What the threads of a group share: each field is written before `go` is set.

    `lock` guards `schedule`, from which a client that is free takes its next message.
    """

    def __init__(self, options: argparse.Namespace, number: int) -> None:
        self.go = threading.Event()
        self.start_mono_ns = 0  # a schedule must not follow a clock step
        self.end_mono_ns = sys.maxsize  # nothing is sent after it
        self.exchanges: deque[Exchange] = deque()  # made, not reported yet
        self.left_over: deque[int] = deque()  # clients whose connection had more bytes
        # Of each client how its first connect went (words, or ""), and at its end 1 and
        # its messages; 0 is the order to end at once.
        # Not a SimpleQueue: a signal makes its get() wait longer than its timeout.
        self.events: queue.Queue[str | int] = queue.Queue()
        self.lock = threading.Lock()
        self.schedule = arrivals(options) if options.rate else iter(())
        self.schedule = itertools.islice(self.schedule, number, None, options.workers)
        self.beat = 0.0  # the last one, CLOCK_MONOTONIC
        self.late: list[tuple[float, float]] = []  # beats: due, come

    def next_due(self) -> int | None:
        """Return when the next message is due, in ns after the start; None: no more."""
        with self.lock:
            return next(self.schedule, None)

    def wait(self, left: int) -> list[int]:
        """Wait a tick, or for the last to end: messages that those who ended had."""
        ended: list[int] = []
        until = time.monotonic() + TICK_S
        while len(ended) < left and (now := time.monotonic()) < until:
            with contextlib.suppress(queue.Empty):
                event = self.events.get(timeout=min(BEAT_S, until - now))
                if not event:
                    return [0] * left
                ended.append(int(event) - 1)
            self._feel_pulse()
        return ended

    def _feel_pulse(self) -> None:
        """Note when this thread woke too late: the process may have been stopped."""
        now = time.monotonic()
        if self.beat and now - self.beat > BEAT_S + STILL_S:
            self.late.append((self.beat + BEAT_S, now))
        self.beat = now

    @property
    def still_s(self) -> float:
        """Time for which this process was stopped: late beats that ended with SIGCONT.

        Others are late because a processor is busy, which costs all programs alike.
        """
        return sum(
            come - due for due, come in self.late
            if any(due <= moment <= come + 0.05 for moment in CONTINUED)
        )  # fmt: skip


CONTINUED: deque[float] = deque(maxlen=10_000)  # moments of CLOCK_MONOTONIC


def note_continuations() -> None:
    """Have it noted when this process goes on after a stop (main thread).

    All others have the signal blocked: a main thread that waits hears it at once only
    when the kernel gives it to this thread.
    """
    with contextlib.suppress(AttributeError, ValueError):  # Windows; another thread
        signal.signal(signal.SIGCONT, lambda *_: CONTINUED.append(time.monotonic()))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCONT})


def throttled_s() -> float:
    """Return for how long this process had used up its CPU quota (cgroups(7))."""
    total = 0.0
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds == "" or "cpu" in kinds.split(","):
                folder = Path("/sys/fs/cgroup", "cpu" if kinds else "")
                text = (folder / place.strip("/") / "cpu.stat").read_text()
                words = dict(line.split() for line in text.splitlines())
                total += int(words.get("throttled_usec", 0)) / 1e6
                total += int(words.get("throttled_time", 0)) / 1e9
    return total


def serve_group(pipe: Any, options: argparse.Namespace, numbers: range, k: int) -> None:
    """Run a group's clients, and report what they did (thread or process group-K)."""
    if options.workers > 1:
        if hasattr(os, "setsid"):  # the scheduler shares cores by session (sched(7))
            with contextlib.suppress(OSError):
                os.setsid()
        raise_descriptor_limit()
        sys.setswitchinterval(1.0)  # threads wait in calls: none need be made to yield
        gc.freeze()
        gc.set_threshold(GC_EVERY)  # exchanges are many, and hold no cycles
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    clients, began = Clients(options, k), time.monotonic_ns()
    threading.stack_size(STACK_BYTES)
    try:
        for number in numbers:
            Client(number, options, clients).start()
    except (RuntimeError, MemoryError):
        pipe.send("the system allows no more threads: start fewer clients")
        return
    finally:
        threading.stack_size(0)
    threading.Thread(
        target=follow_orders, args=(pipe, clients), name="orders", daemon=True
    ).start()
    if options.workers > 1:
        note_continuations()
    first = [clients.events.get() for _ in numbers if options.connects_first]
    pipe.send((first.count(""), time.monotonic_ns() - began))
    clients.go.wait()
    start_ns = clients.start_mono_ns + clock_offset()
    used_s, left = time.process_time(), len(numbers)
    while left > 0:
        ended = clients.wait(left)
        left -= len(ended)
        made = [clients.exchanges.popleft() for _ in range(len(clients.exchanges))]
        results = Results.of(made, options, start_ns)
        results.ended, results.never_started = len(ended), ended.count(0)
        results.left_over = len(clients.left_over)
        clients.left_over.clear()
        results.still_s = {k: clients.still_s}
        if not left:
            results.cpu_s = {k: time.process_time() - used_s}
        pipe.send(results)
    pipe.send(None)


def follow_orders(pipe: Any, clients: Clients) -> None:
    """Start together when told so (thread orders); end when the main process does."""
    with contextlib.suppress(EOFError, OSError):
        # 0 instead of the two moments: a stop came before the start.
        order = pipe.recv()
        clients.start_mono_ns, clients.end_mono_ns = order or (time.monotonic_ns(), 0)
        clients.go.set()
        if order:
            pipe.recv()  # the order to end at once, or the end of the main process
        clients.end_mono_ns = 0
        clients.events.put(0)
        return
    os._exit(1)


def start_group(k: int, numbers: range, options: argparse.Namespace,
                inbox: queue.SimpleQueue[Any]) -> Any:  # fmt: skip
    """Start group K and the thread that passes on its reports; return its pipe."""
    kind: Any = multiprocessing.dummy
    if options.workers > 1:
        kind = multiprocessing.get_context("spawn")  # a fork would copy held locks
    pipe, far_end = kind.Pipe()
    arguments = far_end, options, numbers, k
    worker = kind.Process(target=serve_group, args=arguments, name=f"group-{k}")
    worker.daemon = True
    with without_signals():
        worker.start()
        threading.Thread(
            target=read_reports, args=(pipe, k, inbox), name=f"reader-{k}", daemon=True
        ).start()
    if options.workers > 1:
        far_end.close()  # the pipe ends with the process
    return pipe


def read_reports(pipe: Any, k: int, inbox: queue.SimpleQueue[Any]) -> None:
    """Pass on what group K reports, and None when it ends (thread reader-K)."""
    with contextlib.suppress(EOFError, OSError):
        while (report := pipe.recv()) is not None:
            inbox.put((k, report))
    inbox.put((k, None))


@contextlib.contextmanager
def without_signals() -> Iterator[None]:
    """Start threads and processes that leave Ctrl-C and SIGCONT to this thread."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    signals = {signal.SIGINT, signal.SIGCONT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def usable_cores() -> int:
    """Return how many processor cores this process may run on."""
    with contextlib.suppress(AttributeError, OSError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


# ---- Results: what exchanges add up to, of a tick, a run, a file, or several ---------


@dataclass
class ServerResults:
    """What one server confirmed, and how fast."""

    confirmed: int = 0
    connections: int = 0
    clients: set[int] = field(default_factory=set)
    latency: Distribution = field(default_factory=Distribution)
    # Levels by group of connections, where they are kept.
    groups: Counter[tuple[int, int]] = field(default_factory=Counter)
    by_part: list[float | None] = field(default_factory=list)  # p50, at the run's end
    medians: list[float] = field(default_factory=list)  # of connections, then, too

    def merge(self, other: ServerResults) -> None:
        """Add what another one has: of the same run, or of another machine."""
        self.confirmed += other.confirmed
        self.connections += other.connections
        self.clients |= other.clients
        self.latency.merge(other.latency)
        self.groups.update(other.groups)
        self.by_part += other.by_part
        self.medians += other.medians

    def finish(self, part_of: dict[int, int]) -> None:
        """Derive the medians of the run's parts and of connections."""
        parts = self.latency.parts(part_of)
        self.by_part = [percentile_of(p, 0.5) if p else None for p in parts]
        groups: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for (group, level), number in self.groups.items():
            groups[group][level] = number
        self.medians = [percentile_of(levels, 0.5) for levels in groups.values()]


class Slower(NamedTuple):
    """A server that is slower than another one, and by what ratio of their p50."""

    server: str
    than: str
    ratio: float
    tenths: tuple[float, float]  # the least and the greatest of a part


@dataclass
class Results:
    """Figures in bounded memory. Metrics are as in the map at the top; ns, or s."""

    latency: Distribution = field(default_factory=Distribution)
    response_time: Distribution = field(default_factory=Distribution)
    connect_time: Distribution = field(default_factory=Distribution)  # TCP alone
    servers: dict[str, ServerResults] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    bytes_sent: int = 0  # of confirmed exchanges
    bytes_received: int = 0
    confirmed: int = 0
    # --direct: latency through the balancer less directly; 0 where that is below.
    difference: Distribution = field(default_factory=Distribution)
    direct_failed: int = 0
    # What is not in a file: of this run alone.
    wake_delay: Distribution = field(default_factory=Distribution)  # in kernel → seen
    send_delay: Distribution = field(default_factory=Distribution)  # open loop
    waited_for_client: int = 0  # messages due while all clients were busy
    backlog_ns: int = 0  # for which these waited
    unstamped: int = 0
    left_over: int = 0  # connections that had more bytes than replies
    warmed_up: int = 0  # exchanges left out of all figures
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    slowest: list[Exchange] = field(default_factory=list)
    # The longest wait for a good reply: (ns, client, since, whether none came).
    gap: tuple[int, int, int, bool] = (0, 0, 0, False)
    events: Slices = field(default_factory=Slices)  # "sent", "ended", "failed"
    begin_ns: int = sys.maxsize  # the first message that counts, CLOCK_REALTIME
    end_ns: int = 0  # of the last exchange
    kept: list[Exchange] = field(default_factory=list)  # for lines, dots and --csv
    cpu_s: dict[int, float] = field(default_factory=dict)  # of each group
    still_s: dict[int, float] = field(default_factory=dict)
    ended: int = 0  # clients, in a group's report
    never_started: int = 0
    # Of the run as a whole.
    options: argparse.Namespace | None = None
    command: list[str] = field(default_factory=list)
    started: float = 0.0  # Unix time
    target: str = ""
    title: str = ""
    clients: int = 0
    workers: int = 1
    planned: int = 0
    rate: float = 0.0  # asked for, of all clients together; 0: a closed loop
    arrivals: str | None = None
    seed: int | None = None
    warmup_s: float = 0.0
    wall_s: float = 0.0
    timestamps: str = "kernel"
    interrupted: bool = False
    load: str = ""  # how the target was loaded, in words
    start_ns: int = 0  # CLOCK_REALTIME
    start_mono_ns: int = 0
    connected: int = 0
    connect_wall_ns: int = 0  # connects before the start, of the slowest group
    lost: int = 0  # clients whose worker died
    clock_step_ns: int = 0
    overflows: int = 0  # of this machine's listen queues
    silent_servers: list[str] = field(default_factory=list)  # of a demo or --direct
    reasons: list[str] = field(default_factory=list)  # to doubt it; none: valid
    notices: list[str] = field(default_factory=list)  # what else it showed

    @classmethod
    def of(
        cls, made: list[Exchange], options: argparse.Namespace, start: int
    ) -> Results:
        """Return the figures of some exchanges: here moments become metrics."""
        self, tried = cls(), len(made)
        if options.warmup:
            made = [e for e in made if counts(e, options, start)]
        self.warmed_up = tried - len(made)
        good = [e for e in made if e.outcome.name == CONFIRMED]
        for slices in (self.latency.slices, self.response_time.slices, self.events):
            slices.reach(start, time_ns())
        self.confirmed = len(good)
        if good:
            self._add_confirmed(good, options)
        if len(good) < len(made):
            self._add_failed(e for e in made if e.outcome.name != CONFIRMED)
        if not made:
            return self
        new = [e for e in made if e.connect]
        self.connect_time.extend([e.connect for e in new], [e.sent for e in new])
        waits = [e.last - e.since for e in made]
        longest = made[waits.index(max(waits))]
        is_open = longest.outcome.name != CONFIRMED
        self.gap = max(waits), longest.client, longest.since - start, is_open
        self.begin_ns = min(e.sent for e in made)
        self.end_ns = max(e.last for e in made)
        if options.report:
            flights = [e for e in made if e.outcome.name not in ("connect", "local")]
            ended = [e.last for e in flights]
            self.events.add([e.sent for e in flights], itertools.repeat("sent"))
            self.events.add(ended, itertools.repeat("ended"))
            self.slowest = sorted(good, key=slowness, reverse=True)[:SLOWEST_SHOWN]
        if options.keep or options.csv or (options.report and len(made) <= DOTS_SHOWN):
            self.kept = made
        return self

    def _add_confirmed(self, good: list[Exchange], options: argparse.Namespace) -> None:
        """Add confirmed exchanges, column by column."""
        columns = zip(*good, strict=True)
        _, _, due, sent, first, last, seen, outcome, _, connect, late, _ = columns
        minus, kinds = operator.sub, Counter(outcome)
        by_server = {kind.server: good for kind in kinds}
        if len(by_server) > 1:
            for name in by_server:
                by_server[name] = [e for e in good if e.outcome.server == name]
        for name, mine in by_server.items():
            self._add_server(name, mine, options)
        response = array("q", map(minus, last, due))
        if response == array("q", map(minus, first, sent)):
            self.response_time.merge(self.latency)
        else:
            self.response_time.extend(response, due)
        self.wake_delay.extend(array("q", map(minus, seen, last)))
        if TIMESTAMP_OPTION is not None:
            self.unstamped = sum(map(operator.eq, seen, last))
        if options.rate:
            self.send_delay.extend(late)
            waits = list(map(minus, map(minus, map(minus, sent, due), late), connect))
            self.waited_for_client = sum(ns > 1_000_000 for ns in waits)
            self.backlog_ns = sum(ns for ns in waits if ns > 0)
        for kind, number in kinds.items():
            self.bytes_sent += number * kind.sent
            self.bytes_received += number * kind.received
        if options.direct:
            pairs = [e for e in good if e.direct is not None]
            both = [e for e in pairs if e.direct and e.direct >= 0]
            self.direct_failed = len(pairs) - len(both)
            more = [e.first - e.sent - (e.direct or 0) for e in both]
            self.difference.extend(more, [e.sent for e in both])

    def _add_server(
        self, name: str, mine: list[Exchange], options: argparse.Namespace
    ) -> None:
        """Add exchanges that one server confirmed; "" is one that did not say who."""
        server = ServerResults(len(mine), sum(e.connect > 0 for e in mine))
        server.latency.slices.widen(self.latency.slices.shift)
        latency = array("q", [e.first - e.sent for e in mine])
        levels = server.latency.extend(latency, [e.sent for e in mine])
        self.latency.merge(server.latency)
        if not name:
            return
        self.servers[name] = server
        if not options.reconnect:
            groups = [e.client % CONNECTION_GROUPS for e in mine]
            server.groups.update(zip(groups, levels, strict=True))
        if options.clients <= CLIENTS_SHOWN:
            server.clients = {e.client for e in mine}

    def _add_failed(self, failed: Iterable[Exchange]) -> None:
        for e in failed:
            self.failures[e.outcome.name] += 1
            where = f"client {e.client} message {e.number}"
            key = e.outcome.name, e.outcome.text
            if key in self.examples or len(self.examples) < MOST_EXAMPLES:
                self.examples.setdefault(key, []).append(where)
            self.events.add([e.last], ["failed"])

    def merge(self, other: Results) -> None:
        """Add what another one has: of the same run, or of another machine."""
        for name in ("latency", "response_time", "connect_time", "wake_delay",
                     "send_delay", "difference", "events"):  # fmt: skip
            getattr(self, name).merge(getattr(other, name))
        for name in ("bytes_sent", "bytes_received", "confirmed", "unstamped",
                     "direct_failed", "waited_for_client", "backlog_ns", "kept",
                     "left_over", "warmed_up", "never_started",
                     "clients", "planned"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failures.update(other.failures)
        for name, theirs in other.servers.items():
            self.servers.setdefault(name, ServerResults()).merge(theirs)
        self.servers = {name: self.servers[name] for name in by_port(self.servers)}
        for way, where in other.examples.items():
            if way in self.examples or len(self.examples) < MOST_EXAMPLES:
                self.examples[way] = (self.examples.get(way, []) + where)[:10]
        self.slowest = sorted(self.slowest + other.slowest, key=slowness, reverse=True)
        del self.slowest[SLOWEST_SHOWN:]
        self.gap, self.end_ns = max(self.gap, other.gap), max(self.end_ns, other.end_ns)
        self.begin_ns = min(self.begin_ns, other.begin_ns)
        self.cpu_s |= other.cpu_s
        self.still_s |= other.still_s

    @property
    def failed(self) -> int:
        """How many exchanges failed, in whatever way."""
        return self.failures.total()

    @property
    def not_sent(self) -> int:
        """How many planned messages were never sent."""
        return max(0, self.planned - self.confirmed - self.failed)

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

    def slower_servers(self) -> tuple[list[Slower], list[str]]:
        """Return which servers are slower than the fastest, and which not to compare.

        Slower is one that was so in every part of the run, and by more than connections
        would differ that were dealt out anew; one that was not there all the time, or
        by less than 5 %, is not.
        """
        known = {name: server.by_part for name, server in self.servers.items()}
        absent = [name for name, parts in known.items() if None in parts or not parts]
        there = [name for name in self.servers if name not in absent]
        names = sorted(there, key=self.p50_of)
        lines = [self.servers[name].medians for name in names]
        if len(names) < 2 or (
            all(lines) and chance(lines) > CHANCE_OF_CONNECTIONS
        ):
            return [], absent
        fast, slower = names[0], []
        for name in names[:0:-1]:
            ratio = self.p50_of(name) / self.p50_of(fast)
            ratios = ratios_of(known[name], known[fast], math.comb(len(names), 2))
            if ratios and ratio >= LEAST_RATIO:
                slower.append(Slower(name, fast, ratio, (min(ratios), max(ratios))))
        return slower, absent

    def p50_of(self, server: str) -> int:
        """Return a server's median latency; 1 ns at least."""
        return max(1, self.servers[server].latency.percentile(0.5))

    def as_json(self) -> dict[str, Any]:
        """Return what --json writes: `read_results` reads it back."""
        slower, absent = self.slower_servers()
        data: dict[str, Any] = {"version": 1, "started": format_utc(self.started)}
        data |= {name: getattr(self, name) for name in PLAIN_FIELDS}
        data |= {name: round(getattr(self, name), 6) for name in ("warmup_s", "wall_s")}
        data |= {"rate": self.rate or None, "verdict": self.verdict}
        counts = {name: getattr(self, name) for name in COUNT_FIELDS}
        data["exchanges"] = counts | {"per_s": round(self.per_s, 1)}
        data["bytes"] = {"sent": self.bytes_sent, "received": self.bytes_received,
                         "per_s": round(self.bytes_per_s, 1)}  # fmt: skip
        data |= {name: getattr(self, own).as_json() for name, own in METRICS.items()}
        data["direct"] = self.difference.as_json() if self.difference.count else None
        data["servers"] = {
            name: {
                "confirmed": s.confirmed,
                "latency_ns": s.latency.as_json(),
                "by_part": [v and round(v) for v in s.by_part],
                "connections": [round(v) for v in s.medians],
            }
            for name, s in self.servers.items()
        }
        rows = [found._asdict() for found in slower]
        data["comparison"] = {"slower": rows, "not_compared": absent}
        data["failures"] = {name: self.failures[name] for name in FAILURES}
        return data | {"notices": self.notices}


def clean(text: Any) -> str:
    """Return a text of a file as one that may be shown."""
    return safe_text(str(text).encode("utf-8", "backslashreplace"))


TIMESTAMPS = {"kernel": "kernel", "user": "user"}  # there are no others
# What of Results is in JSON under its own name, how it is read, and where metrics are.
PLAIN_FIELDS: dict[str, Callable[[Any], Any]] = {
    "command": lambda words: [str(word) for word in words],
    "target": clean, "title": clean, "clients": int, "workers": int, "rate": float,
    "arrivals": clean, "seed": int, "load": clean, "timestamps": TIMESTAMPS.__getitem__,
    "interrupted": bool, "warmup_s": float, "wall_s": float,
    "reasons": lambda words: [clean(word) for word in words],
}  # fmt: skip
COUNT_FIELDS = ("planned", "confirmed", "failed", "not_sent")
METRICS = {"latency_ns": "latency", "response_time_ns": "response_time",
           "connect_ns": "connect_time"}  # fmt: skip


def counts(exchange: Exchange, options: argparse.Namespace, start: int) -> bool:
    """Tell whether an exchange counts: --warmup leaves out the first ones."""
    kind, number = options.warmup
    if kind == "messages":
        return bool(exchange.number > number)
    return bool(exchange.due >= start + number * 1e9 - 1e5)  # clocks are read apart


def by_port(names: Iterable[str]) -> list[str]:
    """Return servers' names in the order of their numbers: 9991 before 10000."""
    return sorted(names, key=lambda name: int(name or 0))


def slowness(exchange: Exchange) -> int:
    """Return the response time: what an exchange's user waited."""
    return exchange.last - exchange.due


def format_utc(moment: float) -> str:
    """Return a moment with its fraction: 2026-11-23T14:50:15.123456Z."""
    when = datetime.fromtimestamp(moment, UTC).replace(tzinfo=None)
    return when.isoformat(timespec="microseconds") + "Z"


def parse_utc(text: str) -> float:
    """Return the moment that `format_utc` wrote, with a fraction or without one."""
    return datetime.fromisoformat(text.removesuffix("Z") + "+00:00").timestamp()


# ---- The run: from the common start to the last report -------------------------------


def run(
    options: argparse.Namespace,
    inbox: queue.SimpleQueue[Any],
    on_report: Callable[[Results, Results], None],
) -> Results:
    """Run from the first connect to the last reply (main thread)."""
    o = options
    total = Results(options=o, target=o.target_text, clients=o.clients, title=o.title,
        workers=o.workers, rate=o.rate, started=time.time(),
        arrivals=o.arrivals if o.rate else None,
        seed=o.seed if o.arrivals == "poisson" else None)  # fmt: skip
    overflows, clock = listen_overflows(), clock_offset()
    throttled = throttled_s()
    edges = [1 + o.clients * k // o.workers for k in range(o.workers + 1)]
    parts = list(itertools.starmap(range, itertools.pairwise(edges)))
    with socket.socket() as holder:  # the kernel turns its stamps on with a delay
        ask_for_stamps(holder)
        pipes = [start_group(k, part, o, inbox) for k, part in enumerate(parts)]
        left = [len(part) for part in parts]  # clients of each group
        going, unready = set(range(o.workers)), set(range(o.workers))
        while going:
            k, report = inbox.get()
            if isinstance(report, Results):
                left[k] -= report.ended
                total.merge(report)
                on_report(total, report)
            elif isinstance(report, tuple):  # it is ready: how first connects went
                unready.discard(k)
                total.connected += report[0]
                total.connect_wall_ns = max(total.connect_wall_ns, report[1])
            elif report is None:  # it has ended
                going.discard(k)
                unready.discard(k)
                total.lost += left[k]
            elif isinstance(report, str):
                raise OSError(report)
            elif not total.interrupted:  # a signal: report what there is, and end
                total.interrupted = True
                if not total.start_ns:
                    break
                send_order(pipes, 0)
            if not (unready or total.start_ns):
                start = total.start_mono_ns = time.monotonic_ns()
                total.start_ns = start + clock_offset()
                total.started = total.start_ns / 1e9
                length = int(o.duration * 1e9) or sys.maxsize - start
                if o.connects_first and not total.connected:
                    length = 0  # nobody answered: each records that, and ends
                send_order(pipes, (start, start + length))
        send_order(pipes, 0)  # its thread ends
    total.overflows = listen_overflows() - overflows
    total.clock_step_ns = clock_offset() - clock
    total.still_s[-1] = throttled_s() - throttled
    finish_run(total, o)
    return total


def send_order(pipes: Iterable[Any], order: Any) -> None:
    """Send an order to all groups: (start, end) or 0, to end at once."""
    for pipe in pipes:
        with contextlib.suppress(OSError):  # its reader sees that it has ended
            pipe.send(order)


def finish_run(total: Results, options: argparse.Namespace) -> None:
    """Set what can be said at the end only: wall time, plan, headline, servers."""
    begin_ns, wall_ns = total.start_ns, total.end_ns - total.start_ns
    if options.warmup and total.end_ns:
        kind, number = options.warmup
        is_s = kind == "seconds"
        begin_ns = total.start_ns + int(number * 1e9) if is_s else total.begin_ns
        wall_ns = total.end_ns - begin_ns
        total.warmup_s = (begin_ns - total.start_ns) / 1e9
    if abs(total.clock_step_ns) > CLOCK_STEP_NS:
        wall_ns = time.monotonic_ns() - total.start_mono_ns
    planned = options.planned - total.warmed_up
    total.planned = planned if options.planned else total.confirmed + total.failed
    total.wall_s = max(0, wall_ns) / 1e9
    if options.rate and options.planned and not total.interrupted and total.end_ns:
        # A schedule ends with the place after its last message.
        end_s = min(options.duration or math.inf, options.planned / options.rate)
        total.wall_s = max(total.wall_s, end_s - total.warmup_s)
    total.load = describe_load(options)
    if TIMESTAMP_OPTION is None or 0 < total.confirmed == total.unstamped:
        total.timestamps = "user"
    part_of = total.latency.slices.cut()
    for server in total.servers.values():
        # Ticks without an exchange of its have made the run's slices longer.
        server.latency.slices.widen(total.latency.slices.shift)
        server.finish(part_of)
    expected = options.server_names
    usual = [str(port) for port in USUAL_PORTS[:3]]
    is_usual = total.target.endswith(":9990") and not options.demo
    if is_usual and total.connect_time.count > 2:
        # Two of the three: one was forgotten. A single one may be all there is to be.
        expected = expected or usual * (len(set(total.servers) & set(usual)) == 2)
    if total.servers:
        total.silent_servers = by_port(set(expected) - set(total.servers))


def listen_overflows() -> int:
    """Return how often a listen queue of this machine overflowed (0: not known)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/net/netstat").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
        return int(values[names.index("ListenOverflows")])
    return 0


def describe_load(options: argparse.Namespace) -> str:
    """Return in a few words how the clients load the target."""
    if options.rate:
        words = f"{digits(options.rate)} messages/s on a schedule (open loop)"
        if options.arrivals == "poisson":
            words += f", Poisson arrivals (--seed {options.seed})"
    elif options.messages == 1:
        words = "1 message each"
    elif options.messages:
        words = f"{counted(options.messages, 'message')} each, one at a time"
    else:
        words = "one message at a time"
    words += f", for {options.duration:g} s" if options.duration else ""
    words += f", started over {options.ramp:g} s" if options.ramp else ""
    words += f", {options.think:g} s between" if options.think else ""
    words += f", {counted(options.size, 'byte')} each" if options.size else ""
    words += ", in pairs with direct ones" if options.direct else ""
    return words + (", a connection per message" if options.reconnect else "")


# ---- The verdict, limits, exit status ------------------------------------------------


def judge(results: Results, options: argparse.Namespace) -> None:
    """Say why the figures may say more about client2 than about the target."""
    r, doubt = results, results.reasons.append
    still_s, tried = max(r.still_s.values(), default=0.0), r.confirmed + r.failed
    if not r.confirmed:
        doubt("nothing was confirmed: there is nothing to measure")
    if still_s > max(STILL_S, STILL_SHARE * r.wall_s):
        share = min(1.0, still_s / max(r.wall_s, 1e-9))
        doubt(f"client2 itself stood still for {still_s:.2g} s, {share:.0%} of the run"
            " (stopped, or no processor time): rates are too low, the load came in"
            " bursts")  # fmt: skip
    if r.lost:
        doubt(f"a worker process died: {counted(r.lost, 'client')} lost")
    if abs(r.clock_step_ns) > 2_000_000 + r.wall_s * 500_000:  # 500 ppm is slewing
        doubt(f"the clock was stepped by {r.clock_step_ns / 1e9:+.3f} s during the run")
    if r.timestamps == "kernel" and r.unstamped > 0.01 * max(1, r.confirmed):
        doubt(f"{counted(r.unstamped, 'reply')} had no kernel timestamp: client2's own"
            " time was taken")  # fmt: skip
    for outcome, words in r.examples:
        if outcome == "local":
            doubt(f"{words}: {counted(r.failures['local'], 'message')} could not be"
                " sent, and that is not the target's failure")  # fmt: skip
        if "came before its message" in words:
            doubt("replies came before their messages were sent: an earlier message was"
                " confirmed twice, or its reply had more bytes")  # fmt: skip
        if "left over" in words:
            doubt("bytes were left over after a reply: a message was confirmed twice,"
                " or before it was sent")  # fmt: skip
    if r.left_over:
        doubt(f"bytes were left over on {counted(r.left_over, 'connection')}: more came"
            " than replies, so that some may belong to other messages")  # fmt: skip
    pairs = r.direct_failed + r.difference.count
    if r.direct_failed > r.difference.count:
        doubt(f"most direct exchanges failed ({grouped(r.direct_failed)} of"
            f" {grouped(pairs)}): is --direct right?")  # fmt: skip
    if options.direct and r.confirmed and not pairs:
        doubt(f"no direct exchange was made: the servers that answered,"
            f" {', '.join(r.servers)}, are none of --direct's")  # fmt: skip
    slow = r.connect_time.between(SYN_RETRY_NS, sys.maxsize)
    if slow and r.overflows > 0:
        doubt(f"{counted(slow, 'connect')} took 1 s or longer and this machine's listen"
            " queues overflowed: a listener's queue is too short")  # fmt: skip
    if options.rate and tried and not r.interrupted:
        judge_open_loop(r, options, doubt)
    elif not (options.direct or options.reconnect or options.think):
        own, latency = r.wake_delay.total, r.latency.total
        works = max(r.cpu_s.values(), default=0.0) > 0.7 * r.wall_s > 0
        if works and own > 0.5 * (own + latency) and r.confirmed >= 50 * r.clients:
            waited = digits(latency / (own + latency) * r.clients)
            doubt(f"only {waited} of {grouped(r.clients)} clients waited for a reply at"
                " a time (Little's law), the others for client2's own work: the rate is"
                " the limit of client2, not of the target (try more --workers)")
    r.reasons[:] = dict.fromkeys(r.reasons)


def judge_open_loop(
    results: Results, options: argparse.Namespace, doubt: Callable[[str], None]
) -> None:
    """Say whether a schedule was kept, and who was in its way."""
    r = results
    everybody = f"all {counted(r.clients, 'client')} were busy"
    everybody = "the only client was busy" if r.clients == 1 else everybody
    share = r.waited_for_client / max(1, r.confirmed)
    sent_share = (r.confirmed + r.failed) / max(1, r.planned)
    late_ns = r.send_delay.percentile(0.99)
    if r.backlog_ns > 0.5 * r.response_time.total:
        sent = f"; {sent_share:.0%} were sent" if r.not_sent else ""
        doubt(f"{everybody} when {share:.0%} of the messages were due{sent}: response"
            " time is mostly that; use more clients, unless this is to show a target"
            " that does not hold the rate")  # fmt: skip
    elif sent_share < 0.95 and r.failed <= 0.05 * r.planned:
        doubt(f"sent {sent_share:.0%} of the {grouped(r.planned)} messages planned:"
            " client2 could not keep up; use more clients")  # fmt: skip
    elif sent_share < 0.95:
        doubt(f"sent {sent_share:.0%} of the {grouped(r.planned)} messages planned: the"
            " clients were waiting after failures")  # fmt: skip
    if late_ns > max(5_000_000, 0.5 * r.response_time.percentile(0.99)):
        doubt(f"client2 sent {with_unit(late_ns)} late at p99: response times say"
            " more about this machine than about the target")  # fmt: skip


def notice(results: Results, options: argparse.Namespace) -> None:
    """Note what else a run showed: one sentence each."""
    r, say = results, results.notices.append
    slow, latency = r.connect_time.between(SYN_RETRY_NS, sys.maxsize), r.latency
    if r.not_sent and not r.interrupted and not r.lost:
        when = "when time was up" if options.duration else "at the end"
        say(f"{counted(r.not_sent, 'message')} not sent {when}")
    if r.warmed_up or options.warmup:
        kind, number = options.warmup
        what = f"the first {number:g} s" if kind == "seconds" else (
            f"each client's first {counted(number, 'message')}")  # fmt: skip
        say(f"{what} ({counted(r.warmed_up, 'exchange')}) are left out of all figures")
    if r.never_started and not r.interrupted and not options.rate:
        say(f"{counted(r.never_started, 'client')} never started: the run was shorter"
            " than --ramp")  # fmt: skip
    for name in r.silent_servers:
        say(f"{name} answered nobody: is it running? (python3 server2.py {name})")
    if slow and not r.overflows:
        say(f"{counted(slow, 'connect')} took 1 s or longer: SYN sent again, listen"
            " queue full?")  # fmt: skip
    ends = r.failures["closed"] + r.failures["reset"]
    connects = r.connect_time.count
    if not options.reconnect and ends and 0 < r.confirmed <= connects:
        say("no connection was good for a second message: does the server close after"
            " each reply? Then use --reconnect")  # fmt: skip
    if r.connected and not r.confirmed and ends == r.failed > 0:
        say(f"{r.target} answers, but no server does: a balancer without servers? Start"
            " them: python3 server2.py 9991 (and 9992, 9993)")  # fmt: skip
    near_40_ms = latency.between(38_000_000, 46_000_000)
    if near_40_ms > 0.05 * r.confirmed and latency.percentile(0.5) < 2e7:
        say(f"{near_40_ms / r.confirmed:.0%} of replies took about 40 ms: Nagle's"
            " algorithm, delayed ACK? The sender should set TCP_NODELAY")  # fmt: skip


def checks_of(results: Results) -> str:
    """Return in words what was checked, of a run that nothing makes doubtful."""
    if not results.options:
        return "as each of the runs was"
    words = "clock steady"
    words += ", client2 did not stand still" if hasattr(signal, "SIGCONT") else ""
    words += ", kernel arrival times" if results.timestamps == "kernel" else ""
    return words + (", sent in time" if results.send_delay.count else "")


# What stands here can be asked of a run with --fail-if.
LIMIT = re.compile(
    r"(?:(?:(latency|response|connect)\.)?(min|mean|max|p\d\d?(?:\.\d+)?)|failed|rate)"
    r"\s*([<>]=?)\s*(\d+\.?\d*|\.\d+)\s*(ns|us|µs|ms|s|%|/s|)"
)
UNITS_NS = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
SIGNS = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}


class Limit(NamedTuple):
    """A --fail-if condition: the run fails when `figure` `sign` `value` holds."""

    text: str
    figure: str  # "latency.p99", "failed", "failed%", "rate"
    sign: str
    value: float


def parse_limit(text: str) -> Limit:
    """Return a --fail-if condition such as p99>50ms, failed>1%, rate<1000/s."""
    if match := LIMIT.fullmatch(text.strip()):
        metric, key, sign, number, unit = match.groups()
        if key and unit in UNITS_NS and key.strip("p0.") != "":
            value = float(number) * UNITS_NS[unit]
            return Limit(text, f"{metric or 'latency'}.{key}", sign, value)
        if not key and unit in ("", "%" if text.strip()[0] == "f" else "/s"):
            figure = "rate" if text.strip()[0] == "r" else f"failed{unit}"
            return Limit(text, figure, sign, float(number))
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a limit like p99>50ms, response.p90>=1s, failed>1%,"
        " rate<1000/s"
    )


def broken_limits(limits: Iterable[Limit], results: Results) -> list[str]:
    """Return a sentence per limit that is broken, or that the run cannot answer."""
    broken = []
    for limit in limits:
        value = figure_of(results, limit.figure)
        if value is None:
            broken.append(f"{limit.text}: too few exchanges to know")
        elif SIGNS[limit.sign](value, limit.value):
            shown = with_unit(value) if "." in limit.figure else digits(value)
            broken.append(f"{limit.text}: it is {shown}")
    return broken


def figure_of(results: Results, name: str) -> float | None:
    """Return a figure by its name in a limit; None when there is no such figure."""
    if name == "rate":
        return results.per_s
    if name.startswith("failed"):
        tried = max(1, results.confirmed + results.failed)
        return 100 * results.failed / tried if name == "failed%" else results.failed
    metric, _, key = name.partition(".")
    own = next(own for own in METRICS.values() if own.startswith(metric))
    values: Distribution = getattr(results, own)
    if key[0] == "p":
        return values.reported(float(key[1:]) / 100)
    if not values.count:
        return None
    mean = values.total / values.count
    return {"min": values.minimum, "mean": mean, "max": values.maximum}[key]


def exit_status(results: Results, broken: list[str]) -> tuple[int, str]:
    """Return the exit status, as the end of `--help` lists them, and the reason."""
    if results.interrupted:
        return 130, "interrupted"
    if broken:
        return 99, "a limit is broken"
    if results.lost or results.failed or not results.confirmed:
        lost = results.lost and f"{counted(results.lost, 'client')} lost"
        failed = results.failed and f"{grouped(results.failed)} failed"
        return 1, lost or failed or "none confirmed"
    return 0, "all confirmed" if results.confirmed == results.planned else "none failed"


def unreachable(results: Results) -> str:
    """Return one line about a target that nobody could connect to, "" otherwise."""
    r = results
    if r.confirmed or r.interrupted or not r.failed or r.failed > r.failures["connect"]:
        return ""
    (_, reason), _ = next(iter(r.examples.items()))
    if "refused" not in reason:
        return f"cannot connect to {r.target}: {reason}"
    start = "start the balancer with: python3 load_balancer.py"
    return f"nobody listens at {r.target}: {start}"


# ---- Runs beside each other: --baseline, --runs, several --rate ----------------------


class Change(NamedTuple):
    """How a percentile of our runs compares with theirs."""

    ours: float  # ns; of several runs the median one
    theirs: float
    tenths: tuple[float, float] | None  # the ratio's least and greatest, one run each
    said: str  # "slower", "faster", "not told apart", "repeat" (too few runs)
    chance: float | None = None  # of such a difference among equal runs


def compare_runs(
    ours: Sequence[Results], theirs: Sequence[Results], name: str
) -> Change | None:
    """Return how our latency percentile compares; None where runs cannot carry it.

    One run on each side: another one only if all its parts lie beyond all of the
    other's, and by a tenth more. Four or more on each side: permutation of runs.
    """
    p = PERCENTILES[name]
    sides = [[run.latency.reported(p) or 0 for run in runs] for runs in (ours, theirs)]
    if not all(value for side in sides for value in side):
        return None
    a, b = (statistics.median(side) for side in sides)
    if len(ours) == len(theirs) == 1:
        x, y = (run[0].latency.tenths(name) for run in (ours, theirs))
        if not (x and y and min(y) > 0):
            return Change(a, b, None, "repeat")
        low, high = x[0] / y[1], x[1] / y[0]
        said = "slower" if low > 1.1 else "faster" if high < 1 / 1.1 else "repeat"
        return Change(a, b, (low, high), said)
    if min(len(ours), len(theirs)) < 4:
        return Change(a, b, None, "repeat")
    odds = chance(sides)
    said = "not told apart" if odds > CHANCE else "slower" if a > b else "faster"
    return Change(a, b, None, said, odds)


def baseline_doubts(ours: Sequence[Results], theirs: Sequence[Results]) -> list[str]:
    """Return what speaks against a comparison, in words."""
    words: list[str] = []
    for name in ("clients", "rate", "arrivals", "load"):
        found = [str(getattr(run, name)) for run in (*ours, *theirs)]
        # Another seed is chance, as between any two runs.
        kinds = dict.fromkeys(re.sub(r" \(--seed \d+\)", "", kind) for kind in found)
        if len(kinds) > 1 and not words:
            words.append(f"other {name}: {', '.join(kinds)}")
    confirmed = [run for run in (*ours, *theirs) if run.confirmed]
    sizes = [run.bytes_sent / run.confirmed for run in confirmed] or [0.0]
    if max(sizes) > 1.1 * min(sizes) and not words:  # numbers in them may be longer
        words.append(f"other messages: {min(sizes):.0f} and {max(sizes):.0f} bytes")
    if len({run.warmup_s > 0 for run in (*ours, *theirs)}) > 1:
        words.append("only one side had a --warmup")
    if any(run.interrupted for run in theirs):
        words.append("it was interrupted")
    if any(run.reasons for run in theirs):
        words.append("its own verdict was doubtful")
    if len({(run.started, run.latency.total) for run in theirs}) < len(theirs):
        words.append("the same run was given twice")
    if len(ours) > 3 < len(theirs):
        starts = [run.started for run in ours], [run.started for run in theirs]
        if not take_turns(*starts):
            words.append("the runs did not take turns: the machine may have changed")
    return words


def baseline_lines(ours: Sequence[Results], theirs: Sequence[Results]) -> Iterator[str]:
    """Yield how our runs compare with earlier ones, and how sure that is."""
    if doubts := baseline_doubts(ours, theirs):
        yield "not like this run: " + "; ".join(doubts)
    several = len(ours) * len(theirs) > 1
    for name in ("p50", "p90", "p99"):
        change = compare_runs(ours, theirs, name)
        if change is None:
            continue
        line = f"latency {name} {change.ours / change.theirs - 1:+.1%} "
        line += f"({with_unit(change.theirs)} → {with_unit(change.ours)}"
        line += f"; p {change.chance:.3f}" if change.chance is not None else ""
        yield f"{line}){'' if change.said == 'repeat' else f': {change.said}'}"
        if change.tenths:
            ranges = [from_to(run[0].latency.tenths(name)) for run in (theirs, ours)]
            yield f"  tenths {' → '.join(ranges)}"
    rates = [statistics.median(run.per_s for run in runs) for runs in (ours, theirs)]
    if rates[1]:
        yield f"exchanges per second {rates[0] / rates[1] - 1:+.1%}"
    if not several:
        yield "one run each: repeat both, in turns, to know what is chance"
    elif min(len(ours), len(theirs)) < 4:
        yield "four runs or more on each side, in turns, show what is chance"


def held(results: Results) -> bool:
    """Return whether the target held the rate of a run, and left no long queue."""
    sent = results.confirmed >= HELD_SHARE * max(1, results.planned)
    # How long it ran on after its schedule. Poisson arrivals may end early by chance:
    # the queue was no longer than the longest response time.
    queue_s = results.wall_s - results.planned / results.rate
    queue_s = min(queue_s, results.response_time.maximum / 1e9)
    sent = sent and queue_s <= QUEUE_SHARE * results.wall_s
    return sent and not any("busy when" in reason for reason in results.reasons)


def by_rate(runs: Iterable[Results]) -> list[Results]:
    """Return the runs that had a rate, the least first."""
    return sorted((run for run in runs if run.rate), key=operator.attrgetter("rate"))


def knee_words(runs: Sequence[Results]) -> str:
    """Say up to which rate the target held what it was asked for."""
    rated = by_rate(runs)
    if not rated or rated[0].rate == rated[-1].rate:
        return ""
    good = list(itertools.takewhile(held, rated))
    rest = rated[len(good) :]
    if not rest:
        return f"the target holds all of these rates, up to {digits(rated[-1].rate)}/s"
    least = f"at {digits(rest[0].rate)}/s it confirmed {digits(rest[0].per_s)}/s"
    if not good:
        return f"the target holds none of these rates: {least}"
    return f"the knee: the target holds {digits(good[-1].rate)}/s; {least}"


def named(runs: Sequence[Results]) -> list[tuple[str, Results]]:
    """Return several runs with what tells them apart: their rate, or their number."""
    return [(f"{digits(run.rate)}/s" if run.rate else f"run {k}", run)
            for k, run in enumerate(runs, 1)]  # fmt: skip


def series_rows(runs: Sequence[Results]) -> Iterator[tuple[str, ...]]:
    """Yield what to know of each of several runs, below what it is."""
    what = "rate" if runs[0].rate else "run"
    yield what, "confirmed/s", "response p50", "tenths", "p99"
    for name, run in named(runs):
        metric = run.response_time
        p50, p99 = (with_unit(metric.reported(p)) for p in (0.5, 0.99))
        yield name, digits(run.per_s), p50, from_to(metric.tenths("p50")), p99


def series_lines(runs: Sequence[Results]) -> Iterator[str]:
    """Yield a table of several runs, with p50 drawn beside each other."""
    first, row = runs[0], "{:>9}{:>13}{:>14}{:>17}{:>10}"
    head = f"client2  {counted(first.clients, 'client')} → {first.target}"
    yield f"{head}   {counted(len(runs), 'run')}"
    yield ""
    medians = [0, *(run.response_time.reported(0.5) or 0 for run in runs)]
    for cells, median in zip(series_rows(runs), medians, strict=True):
        yield f"{row.format(*cells)}  {bar(median, max(medians), 12)}".rstrip()
    yield ""
    if words := knee_words(runs):
        yield from wrapped("", words)
    for name, run in named(runs):
        for reason in run.reasons:
            yield from wrapped(name, reason)
    confirmed, failed = sum(r.confirmed for r in runs), sum(r.failed for r in runs)
    yield f" {grouped(confirmed)} confirmed   {grouped(failed)} failed"
    doubtful = sum(bool(run.reasons) for run in runs)
    words = f"DOUBTFUL: {doubtful} of {counted(len(runs), 'run')}"
    yield from wrapped("verdict", words if doubtful else "VALID")


# ---- On the terminal: at most 80 columns; progress on standard error -----------------

WIDTH = 80
EIGHTHS = " ▏▎▍▌▋▊▉█"
BAR_WIDTH = 24
HISTOGRAM_ROWS = 10
LINE_EVERY_S = 10.0  # of progress that is not redrawn


class Progress:
    """One line on standard error while a run lasts.

    It is redrawn where that is a terminal, else a new one now and then.
    """

    def __init__(self, options: argparse.Namespace, out: TextIO) -> None:
        self.options, self.out = options, out
        is_terminal = out.isatty() and os.environ.get("TERM") != "dumb"
        self.redraws = is_terminal and not options.quiet
        self.width = shutil.get_terminal_size().columns if is_terminal else WIDTH
        self.began = self.written = time.monotonic()
        self.counts = deque([(self.began, 0)], 16)  # steady over a few reports

    def draw(self, total: Results, latest: Results) -> None:
        """Show how far the run is, and the p99 latency of the latest report."""
        now, planned = time.monotonic(), self.options.planned
        done = total.confirmed + total.failed + total.warmed_up
        since, before = self.counts[0]
        self.counts.append((now, total.confirmed))
        is_soon = self.options.quiet or now - self.written < LINE_EVERY_S
        if is_soon and not self.redraws:
            return
        self.written = now
        by_time = (now - self.began) / (self.options.duration or math.inf)
        share = min(1.0, max(by_time, done / (planned or math.inf)))
        parts = [
            f"{bar(share, 1, 12):<12}" if self.redraws else f"{share:.0%}",
            grouped(done) + (f"/{grouped(planned)}" if planned else ""),
            f"{digits((total.confirmed - before) / (now - since))}/s",
            f"p99 {with_unit(latest.latency.percentile(0.99))}",
            f"{grouped(total.failed)} failed",
        ]
        line = f" {'  '.join(parts)}"[: min(WIDTH, self.width) - 1]
        self.write(f"\r\x1b[K{line}" if self.redraws else f"{line}\n")

    def write(self, text: str) -> None:
        """Write to the terminal, as long as it is there."""
        with contextlib.suppress(OSError, ValueError):
            put(text, self.out)


def bar(value: float, largest: float, width: int = BAR_WIDTH) -> str:
    """Return a bar of block characters; something if the value is not 0."""
    eighths = round(8 * width * value / largest) if largest else 0
    eighths = max(eighths, 1 if value else 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def wrapped(name: str, text: str) -> list[str]:
    """Return a named paragraph of at most 80 columns."""
    first, others = f" {name:<8} ", " " * 10
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=others)


def exchange_lines(results: Results, options: argparse.Namespace) -> Iterator[str]:
    """Yield one line per exchange: client, figures, reply; by client and message."""
    numbered = options.messages != 1
    yield f" client{' message' * numbered} latency response throughput reply"
    for e in sorted(results.kept, key=operator.attrgetter("client", "number")):
        line = f"{e.client:7}" + (f"{e.number:8}" if numbered else "")
        kind = e.outcome
        if kind.name == CONFIRMED:
            size = (kind.sent + kind.received) * 1e9
            line += f"{with_unit(e.first - e.sent):>8}{with_unit(slowness(e)):>9}"
            line += f"{with_unit(size / max(1, slowness(e)), RATES):>11} {kind.text}"
        else:
            line += f"  failed: {kind.name}: {kind.text}"
        yield line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def metrics_of(results: Results) -> dict[str, Distribution]:
    """Return the metrics that have values, by the names that people see."""
    metrics = {own.replace("_", " "): getattr(results, own) for own in METRICS.values()}
    return {name: metric for name, metric in metrics.items() if metric.count}


def percentile_lines(results: Results) -> Iterator[str]:
    """Yield the percentiles of each metric, and their tenths below them."""
    size = results.latency.count
    shown = [n for n in PERCENTILES if size >= NEEDED[n]]
    yield f"{'min':>23}{''.join(f'{LABELS[n]:>9}' for n in shown)}{'max':>9}"
    has_tenths = False
    for name, metric in metrics_of(results).items():
        cells = [metric.minimum, *(metric.reported(PERCENTILES[n]) for n in shown)]
        row = "".join(f"{with_unit(v):>9}" for v in (*cells, metric.maximum))
        yield f" {name:<13}{row}"
        ranges = [metric.tenths(n) for n in shown]
        if name == "connect time" or not any(ranges):
            continue
        has_tenths = True
        for k, edge in enumerate(("tenths from", "to")):
            row = "".join(f"{with_unit(r[k]) if r else '':>9}" for r in ranges)
            yield f" {edge:>13}{'':9}{row}".rstrip()
    yield "   latency = sent → reply's first byte; response time = due → its last byte"
    if not results.rate:
        yield "   (no schedule: a message is due when it is sent)"
    if has_tenths:
        yield "   tenths = ten parts of the run, in order of time: lowest and highest"
    for what, least in (("", NEEDED), ("tenths of ", PARTS_NEED)):
        lacking = {LABELS[n]: grouped(v) for n, v in least.items() if size < v}
        lacks = [f"{name} from {value}" for name, value in lacking.items()]
        if lacks:
            yield f"   {what}{', '.join(lacks[:2])} exchanges on"


def log_steps(low: float, high: float, number: int) -> list[float]:
    """Return boundaries from low to high, evenly spaced on a logarithmic axis."""
    low, high = max(low, 1.0), max(low, high, 1.0) * 1.0001
    return [low * (high / low) ** (k / number) for k in range(number + 1)]


def row_of(value: float, steps: Sequence[float]) -> int:
    """Return between which boundaries a value lies; the outer ones hold the rest."""
    return max(0, min(len(steps) - 2, bisect.bisect_right(steps, value) - 1))


def binned(metric: Distribution, steps: Sequence[float]) -> list[int]:
    """Return how many values lie between neighbouring steps."""
    bins = [0] * (len(steps) - 1)
    for index, number in metric.counts.items():
        bins[row_of(hdr_highest(index), steps)] += number
    return bins


def histogram_lines(metric: Distribution) -> Iterator[str]:
    """Yield the latency histogram."""
    steps = log_steps(metric.minimum, metric.maximum, HISTOGRAM_ROWS)
    bins = binned(metric, steps)
    marks: defaultdict[int, list[str]] = defaultdict(list)
    for name, p in PERCENTILES.items():
        if (value := metric.reported(p)) is not None:
            marks[row_of(hdr_highest(hdr_index(value)), steps)].append(LABELS[name])
    yield f"{'latency':>18}{'exchanges':>15}"
    for k, (low, high) in enumerate(itertools.pairwise(steps)):
        edges = f"{with_unit(low):>9} – {with_unit(high):<9}"
        line = f"{edges}{grouped(bins[k]):>12} {bar(bins[k], max(bins))}"
        yield f"{line}  ← {' '.join(marks[k])}" if k in marks else line


def server_lines(results: Results) -> Iterator[str]:
    """Yield who confirmed how much and how fast, and whether one is slower."""
    clients = any(s.clients for s in results.servers.values())
    head = "  clients" if clients else ""
    yield f" server  confirmed   share      p50           tenths      p99{head}"
    for name, server in results.servers.items():
        metric = server.latency
        share = server.confirmed / max(1, results.confirmed)
        line = f" {name:<6} {grouped(server.confirmed):>10} {share:>6.1%}"
        line += f" {with_unit(metric.percentile(0.5)):>9}"
        line += f"{from_to(metric.tenths('p50')):>17}"
        line += f" {with_unit(metric.reported(0.99)):>8}"
        line += f"  {' '.join(map(str, sorted(server.clients)))}"
        yield line.rstrip() if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
    yield from wrapped("", servers_words(results))


def servers_words(results: Results) -> str:
    """Say how the servers compare: in their share, and in their speed."""
    return "; ".join(filter(None, (split_words(results), slower_words(results))))


def split_words(results: Results) -> str:
    """Say whether the connections were split evenly, or by how much they were not."""
    counts = [s.connections for s in results.servers.values()]
    if len(counts) < 2 or not all(counts):
        return ""
    if max(counts) - min(counts) <= 1:
        return "connections split evenly ✓"
    expected, freedom = sum(counts) / len(counts), len(counts) - 1
    chi = sum((number - expected) ** 2 for number in counts) / expected
    spread = 2 / (9 * freedom)  # Wilson and Hilferty's approximation of χ²
    z = ((chi / freedom) ** (1 / 3) - 1 + spread) / math.sqrt(spread)
    odds = 0.5 * math.erfc(z / math.sqrt(2))
    how = "unevenly, for equal weights" if odds < 0.05 else "as chance would do it"
    sure = f"= {digits(odds)}" if odds >= 0.001 else "< 0.001"
    return f"connections split {how} (χ², p {sure})"


def slower_words(results: Results) -> str:
    """Say which servers are slower than the fastest, as far as the run shows it."""
    if len(results.servers) < 2:
        return ""
    slower, absent = results.slower_servers()
    words = [
        f"{server} is slower than {than}: p50 {ratio - 1:+.0%}"
        f" ({low - 1:+.0%} to {high - 1:+.0%} in the tenths)"
        for server, than, ratio, (low, high) in slower
    ]
    if absent and results.latency.tenths("p50"):
        were = "was" if len(absent) == 1 else "were"
        words.append(f"{', '.join(absent)} {were} not there all the time: not compared")
    elif absent:
        words.append("too few exchanges to say whether a server is slower")
    elif not words:
        words.append("no server shown to be slower")
    return "; ".join(words)


def failure_lines(results: Results) -> Iterator[str]:
    """Yield what failed, by outcome, with examples, and how long it was noticed."""
    found = results.failures
    if counts := [f"{grouped(found[n])} {n}" for n in FAILURES if found[n]]:
        yield from wrapped("failed", ", ".join(counts).replace("_", " "))
    for (outcome, words), where in list(results.examples.items())[:20]:
        places = ", ".join(where[:3]) + (" …" if len(where) > 3 else "")
        yield from wrapped("", f"{outcome.replace('_', ' ')}: {words} ({places})")
    yield from wrapped("gap", gap_words(results))


def gap_words(results: Results) -> str:
    """Say how long a client waited for a confirmed reply, if it failed or took long."""
    length, client, since, is_open = results.gap
    is_long = length > max(GAP_SHOWN_NS, 10 * results.response_time.percentile(0.5))
    if not (results.failed or is_long) or not length:
        return ""
    rest = ", and none came" if is_open else ""
    return (
        f"longest wait for a confirmed reply: {with_unit(length)} (client {client},"
        f" from {since / 1e9:.2f} s to {(since + length) / 1e9:.2f} s{rest})"
    )


def cost_words(results: Results) -> str:
    """Say what the balancer costs: the median of paired differences."""
    found, middle = results.difference, results.difference.percentile(0.5)
    tenths = found.tenths("p50")
    around = f"tenths {from_to(tenths)}" if tenths else "too few pairs for tenths"
    words = f"adds {with_unit(middle)} to latency at p50 ({around};"
    words += f" {counted(found.count, 'pair')}; the wall time has the direct ones, too)"
    if results.direct_failed:
        words += f"; {counted(results.direct_failed, 'direct exchange')} failed"
    return words


def head_lines(results: Results) -> Iterator[str]:
    """Yield what was run."""
    r = results
    if r.title:
        yield from textwrap.wrap(r.title, WIDTH)
    head = f"client2  {counted(r.clients, 'client')} → {r.target}   {r.load}"
    yield from textwrap.wrap(head, WIDTH, subsequent_indent=" " * 9)
    ready = ""
    if r.connected:
        took = with_unit(r.connect_wall_ns)
        ready = f"connected {grouped(r.connected)}/{grouped(r.clients)} in {took}   "
    kernel = r.timestamps == "kernel"
    clock = "kernel receive timestamps" if kernel else "user space receive times"
    yield f"         {ready}ran {with_unit(r.wall_s * 1e9)}   {clock}"
    yield ""


def own_words(results: Results) -> str:
    """Say what client2 itself took."""
    r = results
    late, where = with_unit(r.wake_delay.percentile(0.99)), "not in latency"
    where = where if r.timestamps == "kernel" else "part of latency"
    words = f"woke {late} late at p99 to read replies ({where})"
    if r.send_delay.count:
        late = with_unit(r.send_delay.percentile(0.99))
        words += f", {late} late to send (part of response time)"
    if (used := sum(r.cpu_s.values())) and r.wall_s > 0.2:
        words += f"; used {used / r.wall_s:.0%} of a processor core"
        words += f" in {r.workers} processes" if r.workers > 1 else ""
    return words


def summary_lines(results: Results) -> Iterator[str]:
    """Yield the summary: what matters most comes last, where a terminal shows it."""
    r = results
    if r.latency.count:
        yield from percentile_lines(r)
        yield ""
        if r.latency.count >= HISTOGRAM_LEAST:
            yield from histogram_lines(r.latency)
            yield ""
        if r.servers:
            yield from server_lines(r)
    yield from failure_lines(r)
    if r.difference.count:
        yield from wrapped("balancer", cost_words(r))
    for words in r.notices:
        yield from wrapped("notice", words)
    if r.wake_delay.count:
        yield from wrapped("client2", own_words(r))


def closing_lines(results: Results) -> Iterator[str]:
    """Yield the most important figures, and the verdict."""
    r = results
    words = f"{grouped(r.confirmed)} of {grouped(r.planned)} confirmed"
    words += f"   {grouped(r.failed)} failed"
    words += f"   {grouped(r.not_sent)} not sent" if r.not_sent else ""
    words += f"   {digits(r.per_s)} exchanges/s"
    words += f"   {with_unit(r.bytes_per_s, RATES)}"
    yield from textwrap.wrap(words, WIDTH, initial_indent=" ", subsequent_indent=" ")
    if r.latency.count:
        words = ""
        for name, metric in list(metrics_of(r).items())[:2]:
            p50, p99 = (with_unit(metric.reported(p)) for p in (0.5, 0.99))
            words += f"   {name} p50 {p50}, p99 {p99}"
        yield words[2:]
    checked = "" if r.reasons else f": {checks_of(r)}"
    yield from wrapped("verdict", r.verdict.upper() + checked)
    for reason in r.reasons:
        yield from wrapped("", reason)


# ---- The report: one page, nothing from outside --------------------------------------
# Inline SVG without a script; hover texts are <title>s. Colours can be told apart by
# the colour-blind up to the sixth server; shapes and legends name the rest. In an
# open loop everything goes by response time, which is what users wait.

PLOT_WIDTH, LEFT, RIGHT, TOP = 760, 72, 700, 14  # SVG units
SERVER_ROW = 64
COLUMNS = 60  # of lines and bars over time, at most
SHADES = 8
COARSE = 4  # levels of heat maps: 16 of a slice's, eight per doubling
LIGHT = ("0072b2", "d55e00", "009e73", "cc79a7", "c58500", "3fa0d8", "8a5a00", "6a3d9a",
         "b2182b", "5aae61", "777777", "c51b8a")  # fmt: skip
DARK = ("56b4e9", "f08a3c", "2ec49a", "e39cc4", "e6b800", "9ad4f5", "c99b4a", "b39ddb",
        "ef6a5f", "9bd67d", "b0b0b0", "f48cc6")  # fmt: skip
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><title>client2: {title}</title>
<style>
:root{{--ink:#1d2530;--soft:#5b6672;--line:#dfe4e9;--page:#fff;--card:#f5f7f9;
--fail:#c00020;{light}}}
@media screen and (prefers-color-scheme:dark){{:root{{--ink:#e7ebef;--soft:#9aa6b2;
--line:#323b45;--page:#14181d;--card:#1c2229;--fail:#ff6b6b;{dark}}}}}
body{{background:var(--page);color:var(--ink);max-width:840px;margin:40px auto;
padding:0 16px;font:16px/1.5 system-ui,sans-serif;font-variant-numeric:tabular-nums}}
h1{{font-size:28px}}h2{{font-size:18px;margin:44px 0 2px}}
.soft,figcaption,th,small{{color:var(--soft);font-weight:400}}figure{{margin:10px 0}}
.tiles{{display:flex;flex-wrap:wrap;gap:10px}}.tiles div{{background:var(--card);
border-radius:8px;padding:10px 16px}}.tiles b{{display:block;font-size:21px}}
.wide{{overflow-x:auto}}.key{{color:var(--soft);font-size:14px;margin:4px 0}}
.key span{{white-space:nowrap;margin-right:14px}}.key b{{font-size:16px}}
table{{border-collapse:collapse;font-size:14px}}code{{overflow-wrap:anywhere}}
th,td{{padding:5px 18px 5px 0;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap}}pre{{font-size:13px;line-height:1.35}}
svg{{width:100%;min-width:660px;height:auto}}
svg text{{font-size:13px;fill:var(--soft)}}
@media(max-width:700px){{.wide::before{{content:"scroll sideways →";font-size:13px;
color:var(--soft);position:sticky;left:0}}}}
.grid{{stroke:var(--line);fill:none}}.axis{{stroke:var(--soft);fill:none}}
.line{{fill:none;stroke-width:2}}.dash{{stroke-dasharray:6 4}}.ink{{stroke:var(--ink)}}
.dots{{fill:none;stroke-width:5;stroke-opacity:.6}}.round{{stroke-linecap:round}}
.square{{stroke-linecap:square;stroke-width:4}}.thin{{stroke-width:1.4}}
.band{{stroke:none;fill-opacity:.16}}
.fail{{stroke:var(--fail);stroke-width:2;fill:none}}
.bad{{fill:var(--fail);color:var(--fail)}}{colours}
@media print{{figure,table{{break-inside:avoid}}}}
</style></head><body><h1>{title}</h1><p class=soft>{subtitle}
<div class="tiles">{tiles}</div><p><b>Verdict: {verdict}</b><ul>{reasons}</ul>{content}
<h2>How it was measured</h2><p>Command: <code>{command}</code><br>{machine}</p>
<p><b>Latency</b>: from handing the message to the kernel to the arrival of the reply's
first byte in this machine's kernel. <b>Response time</b>: from the moment the message
was due (<code>--rate</code>; else sent) to the arrival of the reply's last byte.
<b>Throughput</b>: message and reply bytes of confirmed exchanges over the wall time.
<b>Connect</b>: TCP connect alone, in neither. Percentiles are nearest rank, of
confirmed exchanges; p90 needs 29 of them, p95 59, p99 299, p99.9 2,995.
<b>Tenths</b>: the run is cut, in order of time, into ten parts of equal number; a range
goes from the least to the greatest of the parts' own percentiles, and says how much the
run wavered.</p>
<script type="application/json" id="run">{data}</script></body></html>
"""
SHAPES = (
    ("round", "M{x:.1f} {y:.1f}h0", "●"),
    ("square", "M{x:.1f} {y:.1f}h.1", "■"),  # some printers leave h0 out
    ("thin", "M{x:.1f} {y:.1f}m-3 0h6m-3-3v6", "✚"),
    ("thin", "M{x:.1f} {y:.1f}m-3 3h6l-3-6z", "▲"),
)


def page_colours() -> dict[str, str]:
    """Return the colours of servers, as variables and as classes."""
    classes = [f".h{k}{{fill-opacity:{0.15 + 0.12 * k:.2f}}}" for k in range(SHADES)]
    for k in range(len(LIGHT)):
        for name, what in (("c", "stroke"), ("f", "fill"), ("t", "color")):
            classes.append(f".{name}{k}{{{what}:var(--s{k})}}")
    return {
        "light": "".join(f"--s{k}:#{colour};" for k, colour in enumerate(LIGHT)),
        "dark": "".join(f"--s{k}:#{colour};" for k, colour in enumerate(DARK)),
        "colours": "".join(classes),
    }


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
            tens = [10.0**k for k in range(19)]
            steps = [ten * k for ten in tens for k in (1, 2, 5)]
            fine = [v for v in steps if self.low < v < self.high]
            if len(fine) > 3:
                return fine if len(fine) < 9 else [v for v in fine if v in tens]
        rough = (self.high - self.low) / 6 or 1.0
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough)
        least, most = (math.floor(v / step + 1e-9) for v in (self.low, self.high))
        return [k * step for k in range(least, most + 1) if k * step >= self.low]


def duration_scale(metrics: Iterable[Distribution], start: float, end: float) -> Scale:
    """Return a logarithmic scale that holds all values of some metrics."""
    filled = [metric for metric in metrics if metric.count]
    low = max(1, min((m.minimum for m in filled), default=1_000_000))
    high = max(low * 1.5, max((m.maximum for m in filled), default=10_000_000))
    return Scale(low / 1.15, high * 1.15, start, end, log=True)


def box(left: float, right: float, low: float, high: float) -> str:
    """Return the way around a rectangle."""
    return f"M{left:.1f} {low:.1f}H{right:.1f}V{high:.1f}H{left:.1f}z"


class Plot:
    """A drawing that grows by paths and texts, in a figure with legend and caption."""

    def __init__(self, title: str, height: int) -> None:
        self.title, self.height, self.bottom = title, height, height - 46
        self.parts: list[str] = []
        self.key: list[str] = []

    def path(self, style: str, way: str, hint: str = "") -> None:
        """Draw along `way` (SVG path data), with a text to show when hovered over."""
        hint = f"<title>{html.escape(hint)}</title>" if hint else ""
        self.parts.append(f'<path class="{style}" d="{way}">{hint}</path>')

    def line(self, style: str, points: Iterable[tuple[float, float]]) -> None:
        """Draw from point to point; nothing without points."""
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        if way:
            self.path(f"line {style}", f"M{way}")

    def text(self, x: float, y: float, words: str, anchor: str = "start") -> None:
        """Write words that start, end or have their middle at a point."""
        at = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        self.parts.append(f"<text {at}>{html.escape(words)}</text>")

    def name(self, words: str, mark: str = "■", style: str = "") -> None:
        """Add a mark and its meaning to the legend."""
        mark = f'<b class="{style}">{mark}</b>'
        self.key.append(f"<span>{mark} {html.escape(words)}</span> ")

    def left_axis(self, scale: Scale, words: Callable[[float], str]) -> None:
        """Draw a line across, and its value in words, at each tick."""
        for value in scale.ticks():
            self.path("grid", f"M{LEFT} {scale(value):.1f}H{RIGHT}")
            self.text(LEFT - 8, scale(value) + 4, words(value), "end")

    def bottom_axis(self, scale: Scale, name: str, marks: dict[float, str]) -> None:
        """Draw the axis, its marks, and its name; no mark over another one's words."""
        self.path("axis", f"M{scale.start} {self.bottom}H{scale.end}")
        free = -math.inf
        for value, words in sorted(marks.items()):
            half = 4 * len(words)
            if scale(value) - half > free:
                self.path("axis", f"M{scale(value):.1f} {self.bottom}v4")
                self.text(scale(value), self.bottom + 17, words, "middle")
                free = scale(value) + half
        self.text((scale.start + scale.end) / 2, self.bottom + 36, name, "middle")

    def time_axis(self, wall_s: float) -> Scale:
        """Draw the axis of the run's time in seconds, and return its scale."""
        scale = Scale(0, max(wall_s, 1e-6), LEFT, RIGHT)
        marks = {value: f"{value:g}" for value in scale.ticks()}
        self.bottom_axis(scale, "seconds since the common start", marks)
        return scale

    def finish(self, caption: str) -> str:
        """Return the section with its heading, legend, drawing, and caption."""
        head = f'<svg viewBox="0 0 {PLOT_WIDTH} {self.height}" role="img">'
        key = f"<p class=key>{''.join(self.key)}" if self.key else ""
        return (
            f"<h2>{self.title}</h2>{key}<figure><div class=wide>{head}<title>{caption}"
            f"</title>{''.join(self.parts)}</svg></div><figcaption>{caption}"
            "</figcaption></figure>"
        )


def brief(duration_ns: float) -> str:
    """Return a duration for an axis: 1 ms, 0.5 s, 200 µs."""
    size, unit = next((u for u in TIMES if duration_ns * 1.0000001 >= u[0]), TIMES[-1])
    return f"{duration_ns / size:g} {unit}"


def user_metric(results: Results) -> tuple[str, Distribution]:
    """Return the metric that users feel: response time in an open loop."""
    name = "response time" if results.rate else "latency"
    return name, getattr(results, name.replace(" ", "_"))


def columns_of(
    slices: Slices, results: Results, most: int
) -> Iterator[tuple[float, float, Counter[Any]]]:
    """Yield slices as at most so many columns: (from s, to s, counts of things).

    Columns of one run have the same edges, within it, so that they can be stacked.
    """
    slices.widen(results.events.shift)
    zero, last = (ns >> slices.shift for ns in (results.start_ns, results.events.last))
    per = max(0, last - zero) // most + 1
    columns: defaultdict[int, Counter[Any]] = defaultdict(Counter)
    for slice_, things in slices.by_slice().items():
        columns[max(0, slice_ - zero) // per].update(things)
    width_s = per * 2**slices.shift / 1e9
    rest_s = (results.start_ns - (zero << slices.shift)) / 1e9
    for k in sorted(columns):
        at, to = k * width_s - rest_s, (k + 1) * width_s - rest_s
        yield max(0.0, at), min(to, results.warmup_s + results.wall_s), columns[k]


def plot_exchanges(results: Results) -> str:
    """Plot every exchange over time, or a heat map of very many."""
    (name, metric), plot = user_metric(results), Plot("Every exchange over time", 300)
    x = plot.time_axis(results.warmup_s + results.wall_s)
    y = duration_scale([metric], plot.bottom, TOP + 10)
    plot.left_axis(y, brief)
    if results.confirmed + results.failed <= DOTS_SHOWN and results.kept:
        text = f"A dot is one exchange's {name}; its colour and shape name the server."
        draw_dots(plot, results, x, y)
    else:
        text = f"{name.capitalize()}: the darker a field, the more exchanges (log)."
        draw_heat(plot, results, metric, x, y)
    columns = list(columns_of(metric.slices, results, COLUMNS))
    for p, least, style in ((0.5, 3, "ink"), (0.99, 100, "ink dash")):
        points = [
            (x((at + to) / 2), y(percentile_of(levels, p)))
            for at, to, levels in columns
            if levels.total() >= least
        ]
        plot.line(style, points)
    for at, to, things in columns_of(results.events, results, 4 * COLUMNS):
        if number := things["failed"]:
            way = f"M{x((at + to) / 2):.1f} {TOP}m-4-4l8 8m0-8l-8 8"
            plot.path("fail", way, f"{number} failed near {at:.3g} s")
    return plot.finish(
        f"{text} Failures are crosses at the top. Lines, where exchanges are many"
        " enough: p50, and p99 dashed, of each moment."
    )


def draw_dots(plot: Plot, results: Results, x: Scale, y: Scale) -> None:
    """Draw one path per server with a dot per exchange, and a legend."""
    good = [e for e in results.kept if e.outcome.name == CONFIRMED]
    for k, name in enumerate(by_port({e.outcome.server for e in good})):
        shape, mark, sign = SHAPES[k % len(SHAPES)]
        dots = (
            mark.format(x=x((e.first - results.start_ns) / 1e9),
                        y=y(slowness(e) if results.rate else e.first - e.sent))
            for e in good
            if e.outcome.server == name
        )  # fmt: skip
        plot.path(f"dots {shape} c{k % len(LIGHT)}", "".join(dots))
        plot.name(name or "no server named", sign, f"t{k % len(LIGHT)}")


def draw_heat(
    plot: Plot, results: Results, metric: Distribution, x: Scale, y: Scale
) -> None:
    """Draw a field per time and duration."""
    fields: dict[tuple[float, float, int], int] = Counter()
    for at, to, levels in columns_of(metric.slices, results, 2 * COLUMNS):
        for level, number in levels.items():
            fields[at, to, level >> COARSE] += number
    most = math.log1p(max(fields.values(), default=1))
    ways = [""] * SHADES
    for (at, to, level), number in fields.items():
        ends = [hdr_highest(((level + k) << COARSE + LEVEL) - 1) for k in (0, 1)]
        low, high = (min(plot.bottom, y(max(1, end))) for end in ends)
        shade = min(SHADES - 1, int(SHADES * math.log1p(number) / most))
        ways[shade] += box(x(at), x(to), low, high)
    for shade, way in enumerate(ways):
        plot.path(f"f0 h{shade}", way)


def plot_spectrum(results: Results, baseline: Results | None) -> str:
    """Plot latency and response time by percentile, the tail stretched."""
    plot = Plot("Percentiles", 300)
    drawn = [("response time", results.response_time, "c1", "t1"),
             ("latency", results.latency, "c0", "t0")]  # fmt: skip
    if baseline:
        drawn.append(("baseline latency", baseline.latency, "ink dash", ""))
    y = duration_scale([metric for _, metric, _, _ in drawn], plot.bottom, TOP)
    most = max(2, *(metric.count for _, metric, _, _ in drawn))
    x = Scale(1, most, LEFT, RIGHT, log=True)  # of 1 / (1 - p)
    marks = {1.0: "min", 2.0: "50"} | {
        10.0**k: f"{100 - 10 ** (2 - k):.7g}" for k in range(1, 7)
    }
    plot.left_axis(y, brief)
    plot.bottom_axis(x, "percentile", {m: w for m, w in marks.items() if m <= most})
    name, metric = user_metric(results)
    parts, band = metric.parts(), []
    for k in range(2, 81, 2):
        odds = max(2, metric.count) ** (k / 80)
        rich = [percentile_of(p, 1 - 1 / odds) for p in parts if p.total() >= odds]
        if len(rich) >= FEWEST_PARTS:
            band.append((x(odds), y(min(rich)), y(max(rich))))
    style = "f1" if results.rate else "f0"
    plot.line(f"band {style}", [(a, c) for a, _, c in band]
              + [(a, b) for a, b, _ in reversed(band)])  # fmt: skip
    for words, metric, style, colour in drawn:
        odds_of = [max(2, metric.count) ** (k / 80) for k in range(81)]
        plot.line(style, ((x(o), y(metric.percentile(1 - 1 / o))) for o in odds_of))
        plot.name(words, "╌" if "dash" in style else "━", colour)
    words = "How long the slowest exchanges took: at percentile p, p percent were"
    words += f" faster. The band holds the ten tenths of {name}."
    if not results.rate:
        words += " Without a schedule a message is due when sent, so both are the same"
        words += " but for a reply's rest."
    return plot.finish(words)


def plot_rate(results: Results) -> str:
    """Plot exchanges per second by server, stacked, and how many were in flight."""
    plot = Plot("Rate by server, and load", 260)
    x = plot.time_axis(results.warmup_s + results.wall_s)
    slices = {name: server.latency.slices for name, server in results.servers.items()}
    slices = slices or {"confirmed": results.latency.slices}
    drawn = [(name, f"f{k % len(LIGHT)} h5", f"t{k % len(LIGHT)}",
              [(at, to, n.total()) for at, to, n in columns_of(one, results, COLUMNS)])
             for k, (name, one) in enumerate(slices.items())]  # fmt: skip
    if results.failed:
        events = columns_of(results.events, results, COLUMNS)
        failed = [(at, to, things["failed"]) for at, to, things in events]
        drawn.append(("failed", "bad", "bad", failed))
    tops = defaultdict[float, float](float)  # of the bars, by where they are
    boxes = []
    for name, style, colour, columns in drawn:
        plot.name(name, "■", colour)
        for at, to, number in columns:
            if number and at < to:
                low, tops[at] = tops[at], tops[at] + number / (to - at)
                boxes.append((style, x(at), max(x(at), x(to) - 0.6), low, tops[at]))
    y = Scale(0, max(tops.values(), default=1) * 1.1, plot.bottom, TOP)
    plot.left_axis(y, grouped)
    for style, left, right, low, high in boxes:
        plot.path(style, box(left, right, y(low), y(high)))
    flight, points = 0, []
    for at, to, things in columns_of(results.events, results, MOST_SLICES):
        flight += things["sent"] - things["ended"]
        points.append((x((at + to) / 2), flight))
    z = Scale(0, max([1, *(n for _, n in points)]) * 1.1, plot.bottom, TOP)
    plot.line("ink", ((at, z(n)) for at, n in points))
    for value in z.ticks():
        plot.text(x.end + 8, z(value) + 4, f"{value:g}")
    plot.name("in flight (scale on the right)", "━")
    return plot.finish(
        "Bars: exchanges confirmed per second, by server, failed ones on top (left)."
        " Line: exchanges in flight, sent and waiting for their reply (right)."
    )


def plot_servers(results: Results) -> str:
    """Plot one row per server, on one latency axis."""
    servers = list(results.servers.items())[:30]
    plot = Plot("The servers", TOP + SERVER_ROW * len(servers) + 46)
    x = duration_scale([results.latency], LEFT, RIGHT - 110)
    steps = log_steps(x.low, x.high, 48)
    for k, (name, server) in enumerate(servers):
        base, metric = TOP + SERVER_ROW * (k + 1), server.latency
        plot.path("axis", f"M{LEFT} {base}H{x.end}")
        plot.text(LEFT - 8, base - 6, name, "end")
        share = f"{server.confirmed / max(1, results.confirmed):.1%} of confirmed"
        plot.text(x.end + 14, base - 26, share)
        plot.text(x.end + 14, base - 10, f"p50 {with_unit(metric.percentile(0.5))}")
        bins = binned(metric, steps)
        bars = zip(itertools.pairwise(map(x, steps)), bins, strict=True)
        ways = (f"M{a:.1f} {base}v-{46 * n / max(1, *bins):.1f}H{b - 0.6:.1f}V{base}z"
                for (a, b), n in bars if n)  # fmt: skip
        plot.path(f"f{k % len(LIGHT)} h5", "".join(ways))
    plot.bottom_axis(x, "latency", {value: brief(value) for value in x.ticks()})
    words = html.escape(servers_words(results))
    return plot.finish(
        "Each row shows how one server's latencies spread (heights are shares of its"
        f" own exchanges). {words}"
    )


def plot_knee(runs: Sequence[Results]) -> str:
    """Plot response time against rate."""
    rated = by_rate(run for run in runs if run.confirmed)
    if not (rated and (words := knee_words(runs))):
        return ""
    plot = Plot("Response time by rate", 300)
    x = Scale(0, rated[-1].rate * 1.08, LEFT, RIGHT)
    y = duration_scale([run.response_time for run in rated], plot.bottom, TOP)
    plot.left_axis(y, brief)
    marks = {run.rate: digits(run.rate) for run in rated}
    plot.bottom_axis(x, "messages per second", marks)
    for k, name in enumerate(("p50", "p99")):
        found = [(run, run.response_time.reported(PERCENTILES[name])) for run in rated]
        points = [(x(run.rate), value, run.response_time.tenths(name))
                  for run, value in found if value]  # fmt: skip
        plot.line(f"c{k}", ((at, y(value)) for at, value, _ in points))
        for at, value, tenths in points:
            low, high = tenths or (value, value)
            plot.path(f"line c{k}", f"M{at:.1f} {y(low):.1f}V{y(high):.1f}")
            plot.path(f"dots round c{k}", f"M{at:.1f} {y(value):.1f}h0")
        plot.name(f"response time {name}", "●", f"t{k}")
    words = html.escape(words[:1].upper() + words[1:])
    return plot.finish(f"{words}. Upright lines: the tenths of each run.")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    text = f"<tr><th>{'<th>'.join(head)}"
    text += "".join(f"<tr><td>{'<td>'.join(row)}" for row in rows)
    return f"<div class=wide><table>{text}</table></div>"


def slowest_table(results: Results) -> str:
    """Return the parts of the slowest exchanges, by response time."""
    rows = [
        [f"{(e.sent - results.start_ns) / 1e9:.3f}", str(e.client),
         e.outcome.server or "–", *map(with_unit, (slowness(e), e.sent - e.due,
         e.first - e.sent, e.last - e.first, e.seen - e.last))]
        for e in results.slowest
    ]  # fmt: skip
    head = ["sent at, s", "client", "server", "response time", "waited to be sent",
            "latency", "rest of the reply", "client woke late"]  # fmt: skip
    return f"<h2>The slowest exchanges</h2>{table(head, rows)}"


def sections(results: Results, baseline: Results | None) -> Iterator[str]:
    """Yield what a page shows of a run."""
    r, has_time = results, bool(results.events.counts)
    yield plot_exchanges(r) if has_time else ""
    yield plot_spectrum(r, baseline) if r.latency.count else ""
    yield plot_rate(r) if has_time else ""
    yield plot_servers(r) if r.servers else ""
    yield slowest_table(r) if r.slowest else ""
    figures = html.escape("\n".join(summary_lines(r)))
    yield f"<h2>All figures</h2><div class=wide><pre>{figures}</pre></div>"


def tiles_of(results: Results) -> Iterator[tuple[str, str]]:
    """Yield the most important figures and their names."""
    yield grouped(results.confirmed), f"of {grouped(results.planned)} confirmed"
    yield grouped(results.failed), "failed"
    yield digits(results.per_s), "exchanges per second"
    yield with_unit(results.bytes_per_s, RATES), "throughput"
    name, metric = user_metric(results)
    for key in ("p50", "p90", "p99"):
        if (value := metric.reported(PERCENTILES[key])) is not None:
            yield with_unit(value), f"{name} {key}"
    if results.rate and (value := results.latency.reported(0.5)):
        yield with_unit(value), "latency p50 (once sent)"


def render_report(
    runs: Sequence[Results], theirs: Sequence[Results], files: str, ending: str
) -> str:
    """Return the page; `ending` says why the exit status is what it is."""
    r, several = runs[-1], len(runs) > 1
    content = []
    if several:
        verdicts = ["verdict", *(run.verdict for run in runs)]
        pairs = zip(series_rows(runs), verdicts, strict=True)
        head, *rows = [(*cells, verdict) for cells, verdict in pairs]
        content = [f"<h2>The runs</h2>{table(head, rows)}"]
        content.append(plot_knee(runs))
    if theirs:
        lines = "".join(f"<li>{html.escape(w)}" for w in baseline_lines(runs, theirs))
        when = format_utc(theirs[0].started)[:16].replace("T", " ")
        what = f"{html.escape(files)}, {when} UTC"
        content.append(f"<h2>Baseline</h2><p>{what}<ul>{lines}</ul>")
    for name, run in named(runs):
        body = "".join(sections(run, theirs[0] if theirs else None))
        summary = f"<details><summary>{name}: {run.verdict}</summary>{body}</details>"
        content.append(summary if several else body)
    machine = f"{platform.node()}, {platform.platform()}"
    machine += f", Python {platform.python_version()}"
    doubts = list(dict.fromkeys(w for run in runs for w in run.reasons + run.notices))
    is_doubtful = any(run.reasons for run in runs)
    verdict = "doubtful" if is_doubtful else f"valid ({checks_of(r)})"
    title = r.title or f"{counted(r.clients, 'client')} → {r.target}"
    what = f"{len(runs)} runs" if several else r.load
    ran = f"ran {with_unit(r.wall_s * 1e9)} · " if not several else ""
    return PAGE.format(
        title=html.escape(title),
        subtitle=html.escape(f"{what} · {ran}{format_utc(runs[0].started)[:19]}Z"),
        tiles="" if several else "".join(
            f"<div><b>{v}</b><small>{what}</small></div>" for v, what in tiles_of(r)
        ),
        verdict=f"{verdict}. {html.escape(ending)}",
        reasons="".join(f"<li>{html.escape(w)}" for w in doubts),
        content="".join(content),
        command=html.escape(shlex.join(r.command)),
        machine=html.escape(machine) if r.options else "several machines",
        data=json.dumps(document_of(runs, theirs)).replace("<", "\\u003c"),
        **page_colours(),
    )


# ---- Files: JSON, CSV ----------------------------------------------------------------


class InputError(Exception):
    """Options or files that cannot be used; said in one line, exit status 2."""


def write_whole(path: str, text: str) -> None:
    """Write a file in one step, so that no reader finds half of it; OSError.

    It keeps the mode of the file it replaces. What is no plain file (a pipe,
    /dev/stdout) cannot be replaced: it is written to.
    """
    if path == "-" or is_stdout(path):
        put(text, sys.stdout)
        return
    data = text.encode("utf-8", "backslashreplace")
    if os.path.exists(path) and not os.path.isfile(path):
        Path(path).write_bytes(data)
        return
    path = os.path.realpath(path)
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        Path(beside).write_bytes(data)
        with contextlib.suppress(OSError):  # nothing to replace
            os.chmod(beside, os.stat(path).st_mode & 0o7777)
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def is_stdout(path: str) -> bool:
    """Return whether a path names our standard output, wherever that goes."""
    with contextlib.suppress(OSError, ValueError):  # no such file, no descriptor
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    return False


class CsvFile:
    """One line per exchange, written as the run goes on, as long as that is possible.

    A failed exchange has no latency; its response time is how long it was waited for.
    """

    HEAD = "client,message,server,due_s,latency_ns,response_time_ns"
    HEAD += ",bytes_sent,bytes_received,outcome\n"

    def __init__(self, path: str) -> None:
        self.trouble = ""
        self.file = sys.stdout if path == "-" or is_stdout(path) else open(
            path, "w", encoding="utf-8")  # fmt: skip
        self.write(self.HEAD)

    def add(self, made: Iterable[Exchange], start: int) -> None:
        """Write the exchanges of a run that began at `start`."""
        lines = []
        for e in made:
            kind = e.outcome
            latency = e.first - e.sent if kind.name == CONFIRMED else ""
            due_s = f"{(e.due - start) / 1e9:.9f}"
            lines.append(
                f"{e.client},{e.number},{kind.server},{due_s},{latency},{slowness(e)},"
                f"{kind.sent},{kind.received},{kind.name}\n"
            )
        self.write("".join(lines))

    def write(self, text: str) -> None:
        """Write, or note why that is not possible any more: the run goes on."""
        if not self.trouble:
            try:
                put(text, self.file)
            except OSError as error:
                self.trouble = say_why(error)


def document_of(runs: Sequence[Results], theirs: Sequence[Results]) -> dict[str, Any]:
    """Return what --json writes of one run, or of several."""
    documents = [run.as_json() for run in runs]
    whole = documents[0]
    if len(runs) > 1:
        reasons = list(dict.fromkeys(reason for run in runs for reason in run.reasons))
        good = list(itertools.takewhile(held, by_rate(runs)))
        names = ("version", "command", "started", "target", "title")
        whole = {name: documents[0][name] for name in names}
        whole |= {"verdict": "doubtful" if reasons else "valid", "reasons": reasons}
        knee = max((run.rate for run in good), default=None)
        whole |= {"knee": knee, "runs": documents}
    if theirs:
        changes = {name: compare_runs(runs, theirs, name) for name in PERCENTILES}
        whole["baseline"] = {
            "runs": [len(runs), len(theirs)],
            "doubts": baseline_doubts(runs, theirs),
            **{name: change and {"ratio": round(change.ours / change.theirs, 4),
                                 **change._asdict()}
               for name, change in changes.items()},
        }  # fmt: skip
    return whole


def read_results(path: str) -> list[Results]:
    """Return the runs that a --json file or a report has; InputError if none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if text.startswith("<!doctype"):  # a report: it carries its figures
            text = text.rpartition('id="run">')[2].partition("</script>")[0]
        data = json.loads(text)
        return [results_from_json(run) for run in data.get("runs", [data])]
    except OSError as error:
        raise InputError(f"cannot read {path}: {say_why(error)}") from None
    except (LookupError, TypeError, AttributeError, ValueError,
            ArithmeticError) as error:  # fmt: skip
        words = safe_text(str(error).encode(), 60)
        raise InputError(f"{path} was not written by --json: {words}") from None


def results_from_json(data: dict[str, Any]) -> Results:
    """Return what `as_json` wrote; an error if it did not."""
    if data["version"] != 1 or not 0 <= data["wall_s"] <= LARGEST:
        raise ValueError("another version, or no wall time")
    servers = {}
    for name, figures in data["servers"].items():
        servers[str(int(name))] = ServerResults(
            int(figures["confirmed"]),
            latency=Distribution.from_json(figures["latency_ns"]),
            by_part=[v and float(v) for v in figures.get("by_part", ())],
            medians=[float(v) for v in figures.get("connections", ())],
        )
    known = {name: read(data[name]) for name, read in PLAIN_FIELDS.items()
             if data.get(name) is not None}  # fmt: skip
    for name, own in METRICS.items():
        known[own] = Distribution.from_json(data[name])
    if data.get("direct"):
        known["difference"] = Distribution.from_json(data["direct"])
    return Results(
        **known,
        servers=servers,
        failures=Counter({k: int(data["failures"].get(k, 0)) for k in FAILURES}),
        bytes_sent=int(data["bytes"]["sent"]),
        bytes_received=int(data["bytes"]["received"]),
        confirmed=int(data["exchanges"]["confirmed"]),
        planned=int(data["exchanges"]["planned"]),
        started=parse_utc(data["started"]),
    )


def merge_files(paths: list[str]) -> Results:
    """Return several machines' runs as one: samples add up, percentiles do not."""
    parts = [part for path in paths for part in read_results(path)]
    merged, begin, end = Results(workers=0), -math.inf, -math.inf
    names = {name for part in parts for name in part.servers}
    for part in sorted(parts, key=operator.attrgetter("started")):
        for name in names:  # one server's parts beside the others'
            server = part.servers.setdefault(name, ServerResults())
            server.by_part = server.by_part or [None] * PARTS
        merged.merge(part)
        merged.workers += part.workers
        # Known to the second only, one second apart may be the same moment.
        if part.started > begin + part.started.is_integer():
            begin = part.started
        merged.wall_s += max(0.0, begin + part.wall_s - max(begin, end))
        end = max(end, begin + part.wall_s)
    if merged.wall_s > 1 + max(part.wall_s for part in parts):
        merged.notices = ["not all runs were at the same time: wall times were added"]
    merged.started = min(part.started for part in parts)
    merged.target = ", ".join(dict.fromkeys(part.target for part in parts))
    if all(part.rate for part in parts):  # the most that was asked for at a time
        merged.rate = max(
            sum(p.rate for p in parts if p.started <= at < p.started + p.wall_s)
            for at in [part.started for part in parts]
        )
    merged.interrupted = any(part.interrupted for part in parts)
    merged.timestamps = max(part.timestamps for part in parts)  # "user", if any is
    merged.load = f"merged from {counted(len(parts), 'run')}"
    for k, part in enumerate(parts, 1):
        merged.reasons += [f"file {k}: {reason}" for reason in part.reasons]
    if len({(part.started, part.latency.total) for part in parts}) < len(parts):
        merged.reasons.append("the same run was given twice: its figures count twice")
    return merged


# ---- The demo: three servers and the balancer as children ----------------------------
# In sessions of their own, so that Ctrl-C reaches this script alone, which ends them in
# order. If it is killed, the end of their standard input ends them (`GUARD`).

USUAL_PORTS = (9991, 9992, 9993, 9990)  # the balancer last
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


def start_child(
    children: list[subprocess.Popen[str]], script: str, port: int, *command: str
) -> str:
    """Start a script beside this one, and return the address it listens on.

    Where the port ("{}" in the command) is taken, the system chooses one; only then
    are its complaints of use.
    """
    path = Path(__file__).resolve().with_name(script)
    if not path.exists():
        raise OSError(f"--demo needs {script} beside client2.py")
    options = [part.format(port) for part in (*command, "--quiet")]
    child = subprocess.Popen(
        [sys.executable, "-c", GUARD, str(path), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if port else None,
        start_new_session=True,
        text=True,
    )
    children.append(child)
    assert child.stdout
    for line in child.stdout:
        if match := re.match(r"listening on (\S+:\d+)", line):
            threading.Thread(  # what else it prints must not fill the pipe
                target=child.stdout.read, name=f"demo-{path.stem}", daemon=True
            ).start()
            return match[1]
    if not port:
        raise OSError(f"{script} did not start")
    return start_child(children, script, 0, *command)


@contextlib.contextmanager
def demo_system(options: argparse.Namespace) -> Iterator[str]:
    """Run three servers and the balancer; yield the balancer's address."""
    children: list[subprocess.Popen[str]] = []
    try:
        servers = [
            start_child(children, "server2.py", port, "{}") for port in USUAL_PORTS[:3]
        ]
        command = ["--listen=127.0.0.1:{}", *(f"--server={a}" for a in servers)]
        target = start_child(children, "load_balancer.py", USUAL_PORTS[3], *command)
        options.server_names = [a.rpartition(":")[2] for a in servers]
        if not options.quiet:
            names = ", ".join(options.server_names)
            say(f"demo: servers {names} behind the balancer {target}\n\n", options)
        yield target
    finally:
        for child in reversed(children):  # the balancer first
            child.terminate()
            try:
                child.wait(CHILD_END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


# ---- Command line --------------------------------------------------------------------


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


def number(convert: Callable[[str], Any], least: float) -> Callable[[str], Any]:
    """Return a parser of numbers that refuses what is too small or beyond reason."""

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if least <= (value := convert(text)) <= LARGEST:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g}")

    return parse


whole, seconds = number(int, 1), number(float, 1e-6)


def listed(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return a parser of comma-separated lists."""
    return lambda text: [parse(part) for part in text.split(",")]


def workers(text: str) -> int:
    """Return the number of worker processes; 0 stands for auto."""
    return 0 if text == "auto" else int(whole(text))


def warmup(text: str) -> tuple[str, float]:
    """Return what --warmup leaves out: ("seconds", S), or ("messages", N) of "Nx"."""
    if text.endswith("x"):
        return "messages", whole(text[:-1])
    return "seconds", seconds(text)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options; SystemExit with 2 when they make no sense."""
    parser = Parser(
        prog="client2.py",
        description="Start N clients at once and measure every exchange.",
        epilog="Percentiles are nearest rank; tenths are the lowest and the highest of"
        " ten parts of a run. Exit status: 0 none failed, 1 something failed, 2 usage,"
        " 99 a --fail-if limit broken, 130 interrupted.",
    )
    add = parser.add_argument
    add("clients", metavar="N", nargs="?", type=whole, help="start N clients")
    add("--demo", action="store_true",
        help="start three servers and the balancer first, stop them"
        " afterwards")  # fmt: skip
    add("--version", action="version", version=f"client2.py {VERSION}")
    add = parser.add_argument_group("load").add_argument
    load = [
        add("--target", metavar="HOST:PORT", type=parse_address,
            help="connect to this address (default: 127.0.0.1:9990)"),
        add("--messages", metavar="COUNT", type=whole, default=0,
            help="send so many per client (default: 1; with --duration, no limit)"),
        add("--duration", metavar="S", type=seconds, default=0.0,
            help="send for so many seconds (default: until all messages are sent)"),
        add("--rate", metavar="R,...", type=listed(seconds), default=[],
            help="send R messages per second, all clients together, on a fixed"
            " schedule: an open loop; several rates are run one after the other"
            " (default: a closed loop, each client sends when its last reply came)"),
        add("--arrivals", choices=("even", "poisson"), default="even",
            help="space the schedule's messages evenly, or at random like independent"
            " users (default: even)"),
        add("--seed", metavar="NUMBER", type=number(int, 0),
            help="draw Poisson arrivals from it, to repeat a run (default: another"
            " one each time, printed)"),
        add("--think", metavar="S", type=number(float, 0), default=0.0,
            help="pause so long after each reply (default: 0)"),
        add("--ramp", metavar="S", type=number(float, 0), default=0.0,
            help="spread the clients' starts over so many seconds; shows round robin in"
            " order (default: 0)"),
        add("--warmup", metavar="S", type=warmup,
            help="leave the first S seconds out of all figures, or each client's first"
            " messages: 20x (default: off)"),
        add("--runs", metavar="COUNT", type=whole, default=1,
            help="do it so many times, to know how much runs differ (default: 1)"),
        add("--message", metavar="TEXT", default="Hello from client {client}!",
            help='send this line; {client} and {message} are numbers, "@FILE" takes a'
            ' file\'s lines in turn (default: "Hello from client {client}!")'),
        add("--size", metavar="BYTES", type=whole, default=0,
            help="fill up or shorten the message to this size, newline included"
            " (default: off)"),
        add("--timeout", metavar="S", type=seconds, default=5.0,
            help="wait at most so long for a connection, and for a reply (default: 5)"),
        add("--workers", metavar="COUNT", type=workers, default=0,
            help='spread the clients over processes; "auto": as many as it takes'
            " (default: auto)"),
        add("--direct", metavar="HOST:PORT,...", type=listed(parse_address), default=[],
            help="pair each exchange with one directly with the same server: what the"
            " balancer costs (default: off)"),
        add("--reconnect", action="store_true",
            help="open a new connection for every message (default: keep it)"),
        add("--any-reply", action="store_true",
            help="take any reply, e.g. of another protocol: it ends at its newline, or,"
            f" if more came within {SILENCE_S * 1000:.0f} ms of the first one, by such"
            " a silence, or at the end of file (default: it must repeat the message)"),
        add("--csv", metavar="FILE", help="write one line per exchange (default: off)"),
    ]  # fmt: skip
    add = parser.add_argument_group("output, to a FILE or - for stdout").add_argument
    add("--json", metavar="FILE", help="write the figures (default: off)")
    add("--report", metavar="FILE.html", help="write a page with plots (default: off)")
    add("--title", metavar="TEXT", default="", help="head summary and report with it")
    add("--baseline", metavar="FILE.json", nargs="+", default=[],
        help="compare latency and rate with earlier runs' --json; four runs or more on"
        " each side, in turns, tell a change from chance (default: off)")  # fmt: skip
    add("--merge", metavar="FILE.json", nargs="+",
        help="run nothing: add up what --json wrote, e.g. on several"
        " machines")  # fmt: skip
    add("--fail-if", metavar="LIMIT", type=parse_limit, default=[], action="append",
        help="exit with 99 when this holds: p99>50ms, response.p95>=1s, failed>1%%,"
        " rate<1000/s; any percentile; repeatable")  # fmt: skip
    add("--verbose", action="store_true", help="show every exchange as well")
    add("--quiet", action="store_true", help="print errors only")
    options = parser.parse_args(argv)
    check_options(parser, options, load)
    return options


def check_options(
    parser: Parser, options: argparse.Namespace, load: list[argparse.Action]
) -> None:
    """Refuse options that contradict each other, and files that cannot be written."""
    if (options.clients is None) == (options.merge is None):
        parser.error("give the number of clients N, or files to --merge")
    if options.demo and (options.target or options.merge):
        parser.error("--demo brings its own target and runs by itself")
    for action in load if options.merge else ():
        if getattr(options, action.dest) != action.default:
            flag = action.option_strings[0]
            parser.error(f"--merge runs nothing: leave out {flag}")
    for name in ("ramp", "think"):
        if options.rate and getattr(options, name):
            parser.error(f"--rate is a schedule of its own: leave out --{name}")
    if options.arrivals == "poisson" and not options.rate:
        parser.error("--arrivals needs a --rate")
    if len(options.rate) > 1 and not (options.duration or options.messages):
        parser.error("several rates need a --duration, or --messages")
    try:
        options.texts = texts_of(options.message)
    except OSError as error:
        parser.error(f"--message: cannot read {options.message[1:]}: {say_why(error)}")
    if any(b"\n" in text for text in options.texts) and not options.any_reply:
        parser.error("--message is one line; more lines need --any-reply")
    if not options.texts:
        parser.error(f"--message: {options.message[1:]} has no line")
    paths = [options.json, options.csv, options.report]
    for name, path in zip(("json", "csv", "report"), paths, strict=True):
        if path not in (None, "-") and not can_write(path):
            parser.error(f"--{name}: cannot write {path!r}")
    files = [os.path.realpath(path) for path in paths if path not in (None, "-")]
    if len(set(files)) < len(files):
        parser.error("--json, --csv and --report: give each a file of its own")


def can_write(path: str) -> bool:
    """Return whether a file can be written, or made and renamed."""
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path) or not os.path.isdir(folder):
        return False
    is_other = os.path.exists(path) and not os.path.isfile(path)  # a pipe, a terminal
    return os.access(path if is_other else folder, os.W_OK)


def texts_of(message: str) -> list[bytes]:
    """Return the messages' texts; OSError if their file cannot be read."""
    if message.startswith("@"):
        return Path(message[1:]).read_bytes().splitlines()
    return [os.fsencode(message)]


def resolve(address: tuple[str, int]) -> Addresses:
    """Return the socket addresses of a host and port; InputError if it has none.

    In a thread of its own, so that Ctrl-C ends a slow look-up at once.
    """
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found.put(socket.getaddrinfo(*address, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.put(error)

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    answers = found.get()
    if isinstance(answers, Exception):
        reason = answers.strerror if isinstance(answers, OSError) else "not a host name"
        raise InputError(f"cannot resolve {address[0]!r}: {reason}")
    return [(family, sockaddr) for family, _, _, _, sockaddr in answers]


def prepare(options: argparse.Namespace, rate: float) -> argparse.Namespace:
    """Return the options of one run, and what follows from them."""
    o = argparse.Namespace(**vars(options))
    o.rate, o.fail_if = rate, []
    o.messages = o.messages or (0 if o.duration else 1)
    o.varies = len(o.texts) > 1 or b"{message}" in o.texts[0]
    o.connects_first = not (o.ramp or (o.rate and o.reconnect))
    if o.seed is None:
        o.seed = random.randrange(10**6)
    o.planned = by_count = o.clients * o.messages
    if rate and (by_count or o.duration):
        o.planned = sum(1 for _ in arrivals(o))
    few = o.clients <= CLIENTS_SHOWN and 0 < by_count <= EXCHANGES_SHOWN
    o.keep = not o.quiet and (few or o.verbose) and o.is_single
    return o


def workers_for(clients: int, workers: int, each: int) -> int:
    """Return how many processes run the clients: as asked for, or (0) as it takes.

    Each client has `each` files open; InputError if a process may not open so many.
    """
    limit = raise_descriptor_limit() or sys.maxsize
    most = max(1, (limit - SPARE_DESCRIPTORS) // each)
    if not workers:
        cores, many = usable_cores(), math.ceil(clients / MANY_CLIENTS_PER_WORKER)
        enough = max(cores + 1, min(many, WORKERS_PER_CORE * cores))
        enough = min(enough, math.ceil(clients / CLIENTS_PER_WORKER))
        workers = max(enough, math.ceil(clients / most))
    workers = min(workers, clients)
    share = math.ceil(clients / workers)
    # The main process has two pipes and more for each of the others.
    if share > most or 3 * (workers - 1) + SPARE_DESCRIPTORS > limit:
        need = each * share + 3 * (workers - 1) + SPARE_DESCRIPTORS
        raise InputError(
            f"{clients} clients need {need} open files and this process may have"
            f" {limit}: raise the limit (ulimit -n {need}), or use fewer or --workers"
        )
    return workers


@contextlib.contextmanager
def signals_to(inbox: queue.SimpleQueue[Any]) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a report; a second one ends at once."""

    def send(signum: int, frame: Any) -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        inbox.put((None, signum))  # SimpleQueue.put may interrupt itself

    if threading.current_thread() is not threading.main_thread():
        yield  # called from a test's thread: signals are not ours
        return
    before = {s: signal.signal(s, send) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def measure(options: argparse.Namespace, command: list[str]) -> list[Results]:
    """Run what the options describe, one run or several, with the demo around it."""
    o, runs = options, []
    target = o.target or ("127.0.0.1", 9990)
    host = f"[{target[0]}]" if ":" in target[0] else target[0]
    o.addresses, o.target_text = resolve(target), f"{host}:{target[1]}"
    o.server_names = [str(a[1]) for a in o.direct]
    o.direct = {str(a[1]): resolve(a) for a in o.direct}
    o.workers = workers_for(o.clients, o.workers, 2 if o.direct else 1)
    rates = [rate for rate in o.rate or [0.0] for _ in range(o.runs)]
    o.is_single = len(rates) == 1
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # While signals still end this: a schedule is long to count, a pipe to open.
    planned = [prepare(o, rate) for rate in rates]
    options.table = CsvFile(o.csv) if o.csv else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals_to(inbox))
        if o.demo:
            target_text = stack.enter_context(demo_system(o))
            for one in planned:
                one.target_text = target_text
                one.addresses = resolve(parse_address(target_text))
        # The server keeps its core when a client wakes. Not earlier: the demo's scripts
        # choose for themselves.
        do_not_preempt()
        note_continuations()
        for k, one in enumerate(planned, 1):
            if not (o.is_single or o.quiet):
                what = f"{digits(one.rate)}/s" if one.rate else f"run {k}"
                complain(f"{what} ({k} of {len(rates)})")
            runs.append(measure_once(one, inbox, o.table))
            runs[-1].command = command
            if runs[-1].interrupted:
                break
    return runs


def measure_once(
    options: argparse.Namespace, inbox: queue.SimpleQueue[Any], table: CsvFile | None
) -> Results:
    """Make one run, with progress and CSV on the way, and judge it."""
    progress = Progress(options, sys.stderr)
    options.table = None  # a worker has no use for it

    def on_report(total: Results, latest: Results) -> None:
        progress.draw(total, latest)
        if table:
            table.add(latest.kept, total.start_ns)
        dots = options.report and total.confirmed + total.failed <= DOTS_SHOWN
        if not (options.keep or dots):
            total.kept.clear()

    results = run(options, inbox, on_report)
    progress.write("\r\x1b[K" * progress.redraws)
    judge(results, options)
    notice(results, options)
    return results


def say(text: str, options: argparse.Namespace) -> None:
    """Write to standard output, or beside it where that gets a file; OSError."""
    names = (options.json, options.report, options.csv)
    put(text, sys.stderr if "-" in names else sys.stdout)


def text_of(
    runs: Sequence[Results], theirs: Sequence[Results], options: argparse.Namespace,
    broken: Sequence[str],
) -> list[str]:  # fmt: skip
    """Return the lines that a person gets to read."""
    results, lines = runs[0], list[str]()
    if len(runs) == 1:
        lines += head_lines(results)
        if results.options and results.options.keep:
            lines += [*exchange_lines(results, results.options), ""]
        lines += summary_lines(results)
    for k, words in enumerate(baseline_lines(runs, theirs) if theirs else ()):
        lines += wrapped("" if k else "baseline", words)
    for words in broken:
        lines += wrapped("limit", f"broken: {words}")
    lines += closing_lines(results) if len(runs) == 1 else series_lines(runs)
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR") and (
        os.environ.get("TERM") != "dumb"
    ):  # fmt: skip
        colour = f"\x1b[{31 if any(run.reasons for run in runs) else 32}m"
        lines = [f"{colour}{line}\x1b[0m" if line.startswith(" verdict") else line
                 for line in lines]  # fmt: skip
    return lines


def finish(
    runs: Sequence[Results], theirs: Sequence[Results], options: argparse.Namespace
) -> int:
    """Print what was asked for and write the files; return the exit status.

    What cannot be written costs only itself, a line, and the status 0.
    """
    broken = [words for run in runs for words in broken_limits(options.fail_if, run)]
    status, reason = max(exit_status(run, broken) for run in runs)
    doubtful = status == 0 and any(run.reasons for run in runs)
    ending = f"exit {status}: {reason}" + ", but the verdict is DOUBTFUL" * doubtful
    nobody, failed = unreachable(runs[0]) if all(map(unreachable, runs)) else "", []
    shown = f" {ending}"
    for name in ("report", "json", "csv"):
        shown += f"   {name}: {path}" if (path := getattr(options, name)) else ""
    table = getattr(options, "table", None)
    if table and table.trouble:
        failed.append(f"cannot write {options.csv}: {table.trouble}")
    jobs: dict[str, Callable[[], str]] = {}
    if not (nobody or options.quiet):
        jobs["standard output"] = lambda: "\n".join(
            [*text_of(runs, theirs, options, broken), shown, ""])  # fmt: skip
    jobs["report"] = lambda: render_report(
        runs, theirs, ", ".join(options.baseline), "; ".join([ending, *broken]))
    jobs["json"] = lambda: json.dumps(document_of(runs, theirs), indent=1) + "\n"
    for name, text in jobs.items():
        path = getattr(options, name, name)
        try:
            if name == "standard output":
                say(text(), options)
            elif path:
                write_whole(path, text())
        except BrokenPipeError:  # the reader of our output has left, as `| head` does
            if path not in ("standard output", "-"):
                failed.append(f"cannot write {path}: broken pipe")
        except (OSError, ValueError) as error:
            why = say_why(error) if isinstance(error, OSError) else str(error)
            failed.append(f"cannot write {path}: {why}")
    for words in failed:
        complain(words)
    if nobody:
        complain(nobody)
    elif options.quiet and status:
        complain("; ".join([reason, *broken]))
    return status or int(bool(failed))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the client; return the exit status, as the end of `--help` lists them."""
    open_missing_streams()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL and (
        threading.current_thread() is threading.main_thread()
    ):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    argv = sys.argv[1:] if argv is None else argv
    options = parse_args(argv)
    command = ["client2.py", *argv]
    try:
        # Read before the run: a mistake is said at once.
        theirs = [run for path in options.baseline for run in read_results(path)]
        if options.merge:
            runs = [merge_files(options.merge)]
            runs[0].command, runs[0].title = command, options.title
        else:
            runs = measure(options, command)
        return finish(runs, theirs, options)
    except KeyboardInterrupt:  # before or after the run
        complain("interrupted")
        return 130
    except InputError as error:
        complain(str(error))
        return 2
    except OSError as error:
        complain(say_why(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
