#!/usr/bin/env python3
"""A line server: confirm every message, after recording it in a shared log.

    client ──► socket ──► Framer ──► messages ──► Log.append ──► confirmations ──┐
       ▲                                          (server_log.txt)               │
       └─────────────────────────────────────────────────────────────────────────┘

Wire: a message is a line, all bytes up to and including "\\n". The confirmation
(client2.py calls it the reply) is "Server <port> received: " and the same bytes.
Messages may come in any pieces and many at once; they are confirmed in order. At end of
file, what came without "\\n" is the last message. A client that never sends a "\\n" is
served too: up to 1,024 bytes and then 0.2 s of silence are a message, confirmed without
a line ending.

Log: one line per event (connected, received, replied, closed), appended with one write
for the messages that arrived together (BATCH_MESSAGES at most), always before their
confirmations: Connection._confirm. Several servers append to the same file. SIGHUP
reopens it, for log rotation. A record that SIGKILL tore is blanked when a server starts
on the log, one that a full disk tore at once: a line of blanks marks it. A connection
that never sends a byte leaves no record.

Threads of the one process:
    MainThread      Server.run      waits on one socket for signals, and for word that
                                    threads are short, which it starts, or all ended
    serving-N       Server._work    accepts a client (_accept), serves it from first
                                    byte to last (Connection.serve), accepts the next
    printer         Printer._run    writes to the terminal, so that a stalled one
                                    stalls nothing else

Stop (Server._stop): SIGTERM or Ctrl-C. Accept who is connected already (up to
--max-connections), and nobody else; confirm what was received, for GRACE_S at most; cut
what goes on; exit with 0. A second signal ends the process at once.

    python server2.py 9991
    python server2.py 9991 --log /var/log/lab.txt --fsync --max-connections 500
    python server2.py 9992 --fault slow:0.5     # a server to try the balancer on

It does not encrypt, does not ask who a client is, and keeps nothing but the log.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import errno
import functools
import importlib
import io
import ipaddress
import math
import os
import re
import signal
import socket
import stat
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NoReturn, cast

try:
    import fcntl
    import resource
    import termios
except ImportError:  # Windows
    fcntl = resource = termios = None  # type: ignore[assignment]

RECEIVE_BYTES = 65_536  # one read; a whole message of the default limit fits
BATCH_MESSAGES = 256  # per write to the log: bounds memory and the wait of others
PAUSE_MESSAGE_BYTES = 1_024  # longest message that a pause may end
PROXY_LINE_BYTES = 107  # longest PROXY line with its CRLF (proxy-protocol.txt 2.1)
PROXY_TIMEOUT_S = 5.0  # the specification asks for 3 s at least
SEND_TIMEOUT_S = 30.0  # a client that reads nothing for so long is given up
LINGER_S = 5.0  # how long a client may go on sending after an error line, ...
LINGER_BYTES = 64 << 20  # ... and how much, before the connection is closed
LAST_S = 0.5  # at the stop: to accept the clients in the listen queue, ...
GRACE_S = 2.0  # ... then for messages that are being received or confirmed, ...
CUT_S = 1.0  # ... then for threads to end after their connections were cut
DELIVERY_S = 2.0  # at the stop, for a client's kernel to acknowledge what was sent
BACKOFF_S = 0.1  # after accept or a thread's start failed for want of resources
LISTEN_QUEUE = 4_096  # clients that wait for accept; the kernel caps it (somaxconn)
MIN_SPARE = 2  # threads in accept at least, so that a client finds one ready
MAX_SPARE = 64  # threads in accept at most; further ones end
BLOCK_BYTES = 4 << 20  # of the log are searched for torn records at once
LINE_BYTES = 1 << 20  # no line of the log is longer, with the default --max-message
MEND_BYTES = 256 << 20  # of the log's end are searched for torn records at most
STACK_BYTES = 512 << 10  # per thread: calls here are shallow, threads many
PRINTED_LINES = 1_000  # waiting for a slow terminal; later ones are dropped
PRINTED_BYTES = 60  # of a message, on the terminal
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none
TIMEOUTS = (BlockingIOError, TimeoutError)  # by SO_RCVTIMEO, by settimeout
FAULTS = ("refuse", "hang", "reset", "slow", "close-early", "half-close")


# ---- Framing: bytes become messages -------------------------------------------------
# The one place that knows where a message ends.


@dataclass(slots=True)
class Framer:
    """Split a stream of bytes into messages, at most `limit` bytes each."""

    limit: int
    rest: bytearray = field(default_factory=bytearray)  # a message's first bytes
    sends_lines: bool = False  # True once a "\n" came
    too_long: bool = False  # True once a message exceeded the limit: feed no more

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that `data`, at least a byte, completes, in order."""
        newline = data.find(b"\n")
        if newline == len(data) - 1 and not self.rest and len(data) <= self.limit:
            self.sends_lines = True  # one whole message: the most frequent case
            return [data]
        messages = []
        if newline < 0:
            self.rest += data
        else:
            self.sends_lines = True
            messages = io.BytesIO(bytes(self.rest) + data).readlines()  # at "\n" only
            self.rest = bytearray(b"" if data.endswith(b"\n") else messages.pop())
        self.too_long = max(map(len, (*messages, self.rest))) > self.limit
        if self.too_long:
            messages = list(takewhile(lambda m: len(m) <= self.limit, messages))
        return messages

    def pause_ends_message(self) -> bool:
        """Tell whether silence now would make what came so far a message."""
        return not self.sends_lines and 0 < len(self.rest) <= PAUSE_MESSAGE_BYTES

    def take_rest(self) -> bytes:
        """Return what came without "\\n" as the last message, b"" for none."""
        rest, self.rest = bytes(self.rest), bytearray()
        return rest


# ---- Text: what records and confirmations look like ---------------------------------
# Pure functions from values to text or bytes.


@functools.lru_cache(maxsize=4)
def second_text(second: int) -> str:
    """Return the local time of a Unix second, as the log shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))


def timestamp() -> str:
    """Return the local time as "2026-11-23 14:50:15,613"."""
    milliseconds = time.time_ns() // 1_000_000
    return f"{second_text(milliseconds // 1000)},{milliseconds % 1000:03d}"


def printable(data: bytes, limit: int = 0) -> str:
    """Return text that prints on one line and obeys nothing: \\x1b for ESC.

    Undecodable bytes, control characters and all else that is not printable (line
    separators, text direction) are escaped. More than `limit` bytes, if it is not 0,
    end in "…".
    """
    if limit and len(data) > limit:
        return printable(data[:limit]) + "…"
    text = data.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def count(number: int, noun: str) -> str:
    """Return "1 message" or "2 messages"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_address(address: tuple[Any, ...]) -> str:
    """Return "host:port" of a socket address, an IPv6 host in brackets."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_proxy_line(line: bytes) -> tuple[str, int] | None:
    """Return the client's (host, port) of a PROXY line, None for UNKNOWN.

    `line` is the whole line with its CRLF. Raise ValueError when it breaks a rule
    of HAProxy's proxy-protocol.txt, section 2.1 (version 1).
    """
    words = line.removesuffix(b"\r\n").decode("ascii").split(" ")
    if not line.endswith(b"\r\n") or "\r" in words[-1] or words[0] != "PROXY":
        raise ValueError("not a PROXY line")
    if words[1:2] == ["UNKNOWN"]:
        return None
    _, family, source, target, source_port, target_port = words
    if family not in ("TCP4", "TCP6") or "%" in source + target:  # "%": a zone
        raise ValueError("not an address of TCP4 or TCP6")
    parse = ipaddress.IPv4Address if family == "TCP4" else ipaddress.IPv6Address
    parse(target)
    for port in (source_port, target_port):
        if not (port.isdigit() and str(int(port)) == port and int(port) <= 65535):
            raise ValueError("not a port")
    return str(parse(source)), int(source_port)


# ---- Terminal: lines for the person who watches -------------------------------------
# Serving never waits for a terminal: lines are queued, and dropped when it stalls.


def complain(text: str) -> None:
    """Say in one line on standard error what is wrong."""
    print(f"server2.py: {text}", file=sys.stderr, flush=True)


class Printer:
    """Write lines to standard output and standard error on a thread of its own."""

    def __init__(self, quiet: bool) -> None:
        """Start the thread, or raise RuntimeError when there is none to be had."""
        self.quiet = quiet
        # Guards the four fields below; notified when a line comes, and to stop.
        self._changed = threading.Condition()
        self._lines: list[tuple[int, str]] = []  # (file descriptor, line)
        self._dropped = {1: 0, 2: 0}  # file descriptor: lines
        self._warned: dict[str, float] = {}  # kind: when it was last said
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="printer", daemon=True)
        self._thread.start()

    def say(self, line: str) -> None:
        """Print a line on standard output, unless --quiet."""
        if not self.quiet:
            self._put(1, line)

    def warn(self, kind: str, text: str) -> None:
        """Print a text on standard error; of each kind one per second at most."""
        now = time.monotonic()
        with self._changed:
            if now - self._warned.get(kind, -math.inf) < 1:
                return
            self._warned[kind] = now
        self._put(2, f"server2.py: {text}")

    def stop(self) -> None:
        """Let the thread print what is queued; wait for it CUT_S at most."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(CUT_S)

    def _put(self, file: int, line: str) -> None:
        with self._changed:
            if len(self._lines) >= PRINTED_LINES:
                self._dropped[file] += 1
                return
            self._lines.append((file, line))
            self._changed.notify()

    def _run(self) -> None:
        """Write what is queued, again and again. Runs on the thread printer."""
        stopping = False
        while not stopping:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._stopping)
                lines, self._lines = self._lines, []
                dropped, self._dropped = self._dropped, {1: 0, 2: 0}
                stopping = self._stopping
            for file, number in dropped.items():
                if number:
                    lines.append((file, f"({count(number, 'line')} not shown)"))
                text = "".join(f"{line}\n" for f, line in lines if f == file)
                self._write(file, text)

    @staticmethod
    def _write(file: int, text: str) -> None:
        """Write past sys.stdout, whose lock a stalled write would hold at exit."""
        stream = sys.stdout if file == 1 else sys.stderr
        encoding = getattr(stream, "encoding", None) or "utf-8"
        data = text.encode(encoding, "backslashreplace")
        with contextlib.suppress(OSError):  # nobody reads: serving goes on
            while data:
                data = data[os.write(file, data) :]


# ---- Calls that keep the interpreter lock -------------------------------------------
# Python lets go of its lock around every system call, and a thread that waits for it
# wakes: with 50 busy clients that takes longer than the call. These take microseconds
# and hardly ever wait, so they keep the lock: a third less time per message. (A disk
# that stalls then stalls all clients at once, not one after the other.)

AT_EMPTY_PATH, STATX_NLINK, STATX_BYTES, LINKS = 0x1000, 4, 256, slice(16, 20)
SEND_FLAGS = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)


class QuickCalls:
    """Three calls of the C library; Python's own where they cannot be had.

    Any thread may make them.
    """

    def __init__(self) -> None:
        # Not at the top: some Pythons open a file with ctypes, some are built without.
        self._ctypes: Any = None
        with contextlib.suppress(ImportError):
            self._ctypes = importlib.import_module("ctypes")
        self._write = self._function("c_ssize_t write c_int c_char_p c_size_t")
        self._send = self._function("c_ssize_t send c_int c_char_p c_size_t c_int")
        self._statx = self._function("c_int statx c_int c_char_p c_int c_uint c_char_p")

    def _function(self, prototype: str) -> Callable[..., int] | None:
        """Return a function of the C library that keeps the lock (ctypes.PyDLL).

        `prototype` is its result's type, its name, its arguments' types. It returns
        what its man page says: less than 0 when it failed. None: it does not exist.
        """
        result, name, *arguments = prototype.split()
        try:
            function = getattr(self._ctypes.PyDLL(None, use_errno=True), name)
        except (AttributeError, OSError, TypeError):  # no such function; Windows
            return None
        function.restype = getattr(self._ctypes, result)
        function.argtypes = [getattr(self._ctypes, kind) for kind in arguments]
        return cast("Callable[..., int]", function)

    def write(self, file: int, data: bytes) -> int:
        """Do the same as os.write."""
        if self._write:
            written = self._write(file, data, len(data))
            if written >= 0:
                return written
        return os.write(file, data)  # or says why not

    def send_at_once(self, sock: socket.socket, data: bytes) -> int:
        """Return how many bytes the kernel took without waiting; raise OSError."""
        if not (self._send and SEND_FLAGS):
            return 0
        sent = self._send(sock.fileno(), data, len(data), SEND_FLAGS)
        if sent < 0:
            error = self._ctypes.get_errno()
            if error not in (errno.EAGAIN, errno.EINTR):
                raise OSError(error, os.strerror(error))
        return max(0, sent)

    def count_links(self, file: int) -> int:
        """Return how many names an open file has, or raise OSError (statx(2))."""
        if self._statx:
            answer = self._ctypes.create_string_buffer(STATX_BYTES)
            if self._statx(file, b"", AT_EMPTY_PATH, STATX_NLINK, answer) == 0:
                return int.from_bytes(answer.raw[LINKS], sys.byteorder)
        return os.fstat(file).st_nlink


# ---- Log: a record is written before its confirmation is sent -----------------------
# Records are appended by one write(2) with O_APPEND, so several servers share a file.
# A write that SIGKILL or a full disk ended too early leaves a torn record.


def is_quick(file: int) -> bool:
    """Tell whether no reader decides how long a write takes: no pipe, no terminal."""
    status = os.fstat(file)
    if stat.S_ISREG(status.st_mode):
        return True
    return os.path.samestat(status, os.stat(os.devnull))


class Log:
    """The log file. Every method may be called by any thread.

    `append` takes no lock: write(2) with O_APPEND is atomic among threads and
    processes, and dup2(2) puts another file behind the descriptor at once.
    """

    def __init__(self, path: str, calls: QuickCalls) -> None:
        """Open the file for appending, or raise OSError."""
        self.path = path
        self._calls = calls
        self._file = self._open()
        # Without a lock: it changes from True to False only, and a thread that read
        # it before makes one more quick write.
        self._is_quick = is_quick(self._file)
        self._torn = threading.Event()  # set: `mend` before the next write

    def append(self, entries: Sequence[bytes]) -> tuple[int, str]:
        """Append entries by one write; leave no torn one behind.

        An entry is what stands or falls together, as a message's two records. Return
        how many are in the log, and why not all: "" when all are.
        """
        data = b"".join(entries)
        try:
            if self._calls.count_links(self._file) == 0:  # deleted: all would be lost
                self._replace()
            if self._torn.is_set():
                self._mend()
            write = self._calls.write if self._is_quick else os.write
            written = write(self._file, data)
        except OSError as error:
            return 0, error.strerror or str(error)
        if written == len(data):
            return len(entries), ""
        whole, end = 0, 0  # entries that are in the log, their bytes
        while end + len(entries[whole]) <= written:
            end += len(entries[whole])
            whole += 1
        if end < written and not self._blank(data[:written], end):
            self._torn.set()
        # A write that is too short does not say why: the next one does, or succeeds.
        # (Not self.append: a FlushedLog's would wait for the group that it leads.)
        more, reason = Log.append(self, entries[whole:])
        return whole + more, reason

    def reopen(self) -> None:
        """Open the path anew, or raise OSError and keep the old file.

        Torn records in the old one are blanked now: a server that left one there, and
        comes back, finds the new file only.
        """
        old = os.dup(self._file)
        try:
            self._replace()
            with contextlib.suppress(OSError):  # where the system has no such path
                mend(f"/proc/self/fd/{old}")
        finally:
            os.close(old)

    def close(self) -> None:
        """Close the file. No other method may be called after it."""
        os.close(self._file)

    def _open(self, at_once: int = 0) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | at_once
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self.path, flags, 0o644)
        if at_once:
            os.set_blocking(descriptor, True)
        return descriptor

    def _replace(self) -> None:
        """Put the file that has the path now behind the descriptor."""
        # Not waiting for somebody to read a FIFO (open(2), ENXIO).
        new = self._open(getattr(os, "O_NONBLOCK", 0))
        try:
            if not is_quick(new):
                self._is_quick = False
            os.dup2(new, self._file, inheritable=False)
        finally:
            os.close(new)

    def _blank(self, written: bytes, end: int) -> bool:
        """Overwrite what was written from `end` on with an empty line, if possible.

        The disk became full in the middle of a record. Nothing may be cut off the
        file, to which others append; but overwriting takes no space. What was written
        is found by its content, so that nothing else is overwritten.
        """
        with contextlib.suppress(OSError), io.FileIO(self.path, "r+") as file:
            size = len(written) + BLOCK_BYTES
            start = file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            offset = file.read(size).rfind(written)
            if offset >= 0:
                file.seek(start + offset + end)
                blank = b" " * (len(written) - end - 1) + b"\n"
                return file.write(blank) == len(blank)
        return False

    def _mend(self) -> None:
        """Blank the torn record that `_blank` could not, or raise OSError."""
        self._torn.clear()  # first: another thread may set it anew
        try:
            mend(self.path)
        except PermissionError:  # a file that may only be appended to
            os.write(self._file, b"\n")
        except OSError:  # no space yet (copy-on-write): ask again
            self._torn.set()
            raise


class Share:
    """What one thread brings to a group, and gets back from its leader."""

    def __init__(self, entries: Sequence[bytes]) -> None:
        self.entries = entries
        self.done = False  # True: `result` is what `append` returns
        self.result = (0, "internal error")  # unless the leader says better
        # Taken until the share is done, or it is its thread's turn to lead. (A lock,
        # because waiting for an Event costs three of them.)
        self.wake = threading.Lock()
        self.wake.acquire()


class FlushedLog(Log):
    """A log whose entries are on disk when `append` returns (--fsync): group commit.

    The first to come leads: it writes and flushes for its group. Meanwhile others
    queue as the next group, the first of which leads as soon as the leader is done:

        thread A   ── leads [A] ──►
        thread B      waits ──────►── leads [B, C] ──►
        thread C         waits ──────────────────────►

    (With one lock that all wait for, they wake one by one: less than half as fast.)
    """

    def __init__(self, path: str, calls: QuickCalls) -> None:
        super().__init__(path, calls)
        # Held from a write to its flush, and while the file is replaced, which a
        # write may do itself.
        self._flushing = threading.RLock()
        self._queueing = threading.Lock()  # guards the two below
        self._next_group: list[Share] = []
        self._has_leader = False  # a thread leads, or was woken to lead

    def append(self, entries: Sequence[bytes]) -> tuple[int, str]:
        """Do as Log.append does, and return when the entries are on disk."""
        share = Share(entries)
        with self._queueing:
            self._next_group.append(share)
            leads, self._has_leader = not self._has_leader, True
        if not leads:
            share.wake.acquire()
        if not share.done:
            self._lead()
        return share.result

    def _lead(self) -> None:
        """Write and flush for all who queue by now; wake them and the next leader."""
        with self._queueing:
            group, self._next_group = self._next_group, []
        try:
            self._write_and_flush(group)
        finally:  # whatever happened: nobody else would wake them
            for share in group:
                share.done = True
                share.wake.release()
            with self._queueing:
                self._has_leader = bool(self._next_group)
                if self._has_leader:
                    self._next_group[0].wake.release()

    def _write_and_flush(self, group: list[Share]) -> None:
        with self._flushing:
            entries = [entry for share in group for entry in share.entries]
            written, reason = super().append(entries)
            try:
                os.fsync(self._file)
            except OSError as error:
                written, reason = 0, error.strerror or str(error)
        for share in group:
            logged = min(written, len(share.entries))
            share.result = logged, "" if logged == len(share.entries) else reason
            written -= logged

    def _replace(self) -> None:
        with self._flushing:
            super()._replace()


# ---- Repair: torn records are blanked -----------------------------------------------
# When a server starts on a log, when it leaves one, and after a disk was full.

STAMP = rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - "
SAMPLE = b"2026-11-23 14:50:15,613 - "  # to complete a stamp that is torn itself
SURE_BYTES = len(b"2026-")  # less at the log's end may be what a person wrote
HEAD = STAMP + rb"\d+ - \S+ - "
RECORD = re.compile(HEAD + rb"(?:connected$|received: |replied: |closed: )")
MESSAGE = re.compile(HEAD + rb"(?:replied: Server \d+ )?received: (.*)")
# Both begin with a literal, for speed, and then look back at what must be before it.
GLUED = re.compile(rb",(?<=[^\n]\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,)\d{3} - \d+ - ")
OF_PORT = rb",(?<=^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,)\d{3} - %b - "
COMMA_AT = len(b"2026-11-23 14:50:15")  # in a record: where OF_PORT begins


def may_begin_record(data: bytes) -> bool:
    """Tell whether a record may begin like `data`, which may end in the stamp."""
    return bool(re.match(STAMP, data + SAMPLE[len(data) :]))


def is_message(data: bytes, neighbours: Sequence[bytes]) -> bool:
    """Tell whether a record is whole: "received" beside an equal "replied"."""
    if not (message := MESSAGE.match(data)):
        return False
    return any(line.endswith(b" received: " + message[1]) for line in neighbours)


def torn_in_line(before: bytes, line: bytes, after: bytes) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the torn records in a line, given its neighbours.

    A torn record has no line ending, so the record of another server follows on its
    line. It begins with a stamp, or with the first bytes of one; what somebody else
    wrote does not. A message that contains a record only looks like that.
    """
    start = 0
    while record := RECORD.search(line, start + 1):
        end = record.start()
        whole = is_message(line[start:], (before, after))
        if whole or not may_begin_record(line[start:end]):
            return
        yield start, end
        start = end


def torn_records(file: io.FileIO, size: int, port: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the torn records in the first `size` bytes of a log.

    The last line may be one; others are in the middle of lines. Walks back block by
    block, MEND_BYTES at most, and no further than to a whole record of `port`: what a
    server's death tore was its last record.
    """
    of_port = re.compile(OF_PORT % str(port).encode(), re.MULTILINE)
    for high in range(size, max(0, size - MEND_BYTES), -BLOCK_BYTES):
        low = max(0, high - BLOCK_BYTES)
        first = file.seek(max(0, low - LINE_BYTES))  # so that lines have neighbours
        data = file.read(min(size, high + LINE_BYTES) - first)
        last = data.rpartition(b"\n")[2] if high == size else b""
        if len(last) >= SURE_BYTES and may_begin_record(last):
            yield size - len(last), size
        lines = data.split(b"\n") if GLUED.search(data) else []
        offset = first
        for before, line, after in zip([b"", *lines], lines, lines[1:], strict=False):
            if low <= offset < high:
                for start, end in torn_in_line(before, line, after):
                    yield offset + start, offset + end
            offset += len(line) + 1
        if of_port.search(data, low - first + COMMA_AT):
            return


def mend(path: str, port: int = 0) -> None:
    """Blank the torn records in the log's end, or raise OSError.

    Of which server, `port` says: its last whole record ends the search. 0: of all.

    What looks torn may be a write under way. So a line ending is appended first:
    that waits for such a write (inode lock), and what is torn then stays torn.
    """
    if not os.path.isfile(path):  # not yet, or a FIFO or a device
        return
    with io.FileIO(path, "r+") as file, io.FileIO(path, "a") as log:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read(1) in (b"", b"\n") and not any(torn_records(file, size, port)):
            return
        log.write(b"\n")
        for start, end in torn_records(file, log.tell() - 1, port):
            file.seek(start)
            file.write(b" " * (end - start - 1) + b"\n")


# ---- Connection: one client, one thread ---------------------------------------------
# Receive, split into messages, record, confirm; until one side ends it.


class ConnectionOver(Exception):  # noqa: N818 - a way out, often not an error
    """The connection is over; the text says by whom, for the log."""


def set_timeouts(sock: socket.socket, receive_s: float) -> None:
    """Bound a blocking socket's receives (0 s: not at all), and its sends.

    They raise one of TIMEOUTS. By the kernel where it can (socket(7)), sends by
    SEND_TIMEOUT_S: Python's own timeout costs a second system call each time, and is
    the same for both.
    """
    if not hasattr(socket, "SO_RCVTIMEO") or sys.platform == "win32":
        sock.settimeout(receive_s or None)
        return
    both = (socket.SO_RCVTIMEO, receive_s), (socket.SO_SNDTIMEO, SEND_TIMEOUT_S)
    for option, s in both:
        timeval = struct.pack("@ll", *divmod(math.ceil(s * 1e6), 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, option, timeval)


def has_vanished(error: OSError) -> bool:
    """Tell whether it is not our deadline but TCP's: the peer answers no more."""
    return error.errno == errno.ETIMEDOUT


def unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes the peer has not acknowledged (tcp(7), SIOCOUTQ)."""
    if fcntl is None or not hasattr(termios, "TIOCOUTQ"):
        return 0
    answer = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(sock, termios.TIOCOUTQ, answer)
    return answer[0]


class Connection:
    """One client's connection. Its thread calls it, another one only `shut_down`."""

    _batch_size = BATCH_MESSAGES

    def __init__(
        self, server: Server, sock: socket.socket, address: tuple[Any, ...]
    ) -> None:
        self.server = server
        self.args = server.args
        self.sock = sock
        self.address = address
        self.client = format_address(address)  # the PROXY line's, after one
        # Received. At the stop the main thread reads it without a lock: it has set
        # `stopping` before, and this thread asks for `stopping` after it counted, so
        # that one of them sees what the other did.
        self.message_count = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self._framer = Framer(self.args.max_message)
        if self.args.delay:
            self._batch_size = 1
        self._accepted_ns = time.monotonic_ns()
        self._accepted_at = timestamp()  # for the record "connected", ...
        self._start_is_logged = False  # ... which goes before the first other one

    def serve(self) -> None:
        """Serve the client to the end, and record the end. The caller closes."""
        is_there = True  # the client
        try:
            set_timeouts(self.sock, self.args.idle_timeout)
            self._exchange()
            reason = "by client"
        except ConnectionOver as over:
            reason = str(over)
        except TIMEOUTS as error:
            is_there = not has_vanished(error)
            reason = "idle" if is_there else "client vanished"
        except OSError:
            is_there = False
            reason = "reset by client"
        stopping = self.server.stopping.is_set()
        if stopping and reason in ("by client", "reset by client"):
            reason = "shutdown"
        self._record_end(reason)
        if stopping and is_there:
            self._await_delivery()

    def shut_down(self, how: int) -> None:
        """Make `serve` end: by SHUT_RD after what was received, by SHUT_RDWR now.

        Another thread calls it only while the server's lock keeps this connection
        among the live ones: they are not closed.
        """
        with contextlib.suppress(OSError):  # the client has left
            self.sock.shutdown(how)

    def _exchange(self) -> None:
        """Confirm messages until the client's end of file."""
        data = self._read_proxy_line() if self._needs_proxy_line() else b""
        data = data or self._receive()
        while data:
            self.bytes_in += len(data)
            self._confirm_all(self._framer.feed(data))
            if self._framer.too_long:
                self._reject_too_long()
            data = self._receive()
        last = self._framer.take_rest()
        if last and not self.server.stopping.is_set():  # else its end may be missing
            self._confirm_all([last])

    def _receive(self) -> bytes:
        """Return the next bytes, b"" at end of file; a pause may end a message."""
        pause_s = self.args.message_pause
        if pause_s and self._framer.pause_ends_message():
            set_timeouts(self.sock, pause_s)
            try:
                return self.sock.recv(RECEIVE_BYTES)
            except TIMEOUTS as error:
                if has_vanished(error):
                    raise
            finally:
                set_timeouts(self.sock, self.args.idle_timeout)
            self._confirm_all([self._framer.take_rest()])
        return self.sock.recv(RECEIVE_BYTES)

    def _confirm_all(self, messages: list[bytes]) -> None:
        """Record and confirm messages, as many together as may be."""
        if messages and not self.message_count:
            text = printable(messages[0].rstrip(b"\r\n"), PRINTED_BYTES)
            self.server.printer.say(f"{self.client} received: {text}")
        for start in range(0, len(messages), self._batch_size):
            batch = messages[start : start + self._batch_size]
            self.message_count += len(batch)
            self._confirm(batch)
        if self.message_count and self.server.stopping.is_set():
            self.shut_down(socket.SHUT_RD)

    def _confirm(self, messages: list[bytes]) -> None:
        """Record messages by one write; then confirm those that are in the log."""
        self._send(self._record(messages))

    def _record(self, messages: list[bytes]) -> bytes:
        """Append an entry of two records per message; return the confirmations.

        An error line stands for each message that could not be recorded.
        """
        received = replied = timestamp()
        if self.args.delay:
            self.server.stopping.wait(self.args.delay)
            replied = timestamp()
        port = self.server.port
        before = f"{self._head(received)}received: "
        between = f"\n{self._head(replied)}replied: Server {port} received: "
        entries = []
        for message in messages:
            text = printable(message.removesuffix(b"\n").removesuffix(b"\r"))
            entries.append(f"{before}{text}{between}{text}\n".encode())
        entries[0] = self._start_record() + entries[0]
        logged, reason = self.server.log.append(entries)
        answers = [self.server.prefix + message for message in messages[:logged]]
        if logged:
            self._start_is_logged = True
        if reason:
            error = f"Server {port} error: cannot log: {reason}\n"
            answers += [error.encode()] * (len(messages) - logged)
            self.server.printer.warn("log", f"cannot log: {reason}")
        return b"".join(answers)

    def _send(self, data: bytes) -> None:
        """Send all of `data`; a client that reads nothing for too long is given up."""
        try:
            sent = self.server.calls.send_at_once(self.sock, data)
            if sent < len(data):
                self.sock.sendall(data[sent:])
        except TIMEOUTS as error:
            if has_vanished(error):
                raise
            raise ConnectionOver("by server (client does not read)") from None
        self.bytes_out += len(data)

    def _head(self, when: str) -> str:
        """Return how every record begins."""
        return f"{when} - {self.server.port} - {self.client} - "

    def _start_record(self) -> bytes:
        """Return the record "connected", b"" once it is in the log."""
        if self._start_is_logged:
            return b""
        return f"{self._head(self._accepted_at)}connected\n".encode()

    def _record_end(self, reason: str) -> None:
        """Append the closing record, unless the client never sent a byte."""
        if not self.bytes_in:
            return
        duration_ms = (time.monotonic_ns() - self._accepted_ns) / 1e6
        event = (
            f"closed: {reason}, {count(self.message_count, 'message')}, "
            f"{count(self.bytes_in, 'byte')} in, {count(self.bytes_out, 'byte')} out, "
            f"{duration_ms:.1f} ms"
        )
        record = self._start_record() + f"{self._head(timestamp())}{event}\n".encode()
        _, error = self.server.log.append([record])
        if error:
            self.server.printer.warn("log", f"cannot log: {error}")
        self.server.printer.say(f"{self.client} {event}")

    def _reject_too_long(self) -> NoReturn:
        """Say so, and let the client read it although it may still be sending.

        Closing with bytes unread would send a reset, which overtakes the line.
        """
        text = f"message longer than {self.args.max_message} bytes"
        self._send(f"Server {self.server.port} error: {text}\n".encode())
        self.sock.shutdown(socket.SHUT_WR)
        deadline, most = time.monotonic() + LINGER_S, self.bytes_in + LINGER_BYTES
        with contextlib.suppress(OSError):
            while self.bytes_in < most and time.monotonic() < deadline:
                set_timeouts(self.sock, max(deadline - time.monotonic(), 1e-3))
                data = self.sock.recv(RECEIVE_BYTES)
                if not data:
                    break
                self.bytes_in += len(data)
        raise ConnectionOver("by server (message too long)")

    def _await_delivery(self) -> None:
        """Let the client's kernel have all we sent before we close, DELIVERY_S at most.

        Closing with bytes unread sends a reset, which overtakes what was sent. So drop
        what still comes, until nothing does and all is acknowledged. The kernel has no
        event for that: ask again after 1, 2, 4 … 64 ms.
        """
        deadline, pause_s = time.monotonic() + DELIVERY_S, 0.001
        self.shut_down(socket.SHUT_RD)  # from here on, recv does not wait
        with contextlib.suppress(OSError):  # the client has left
            came = True
            while (came or unacknowledged(self.sock)) and time.monotonic() < deadline:
                came = False
                while self.sock.recv(RECEIVE_BYTES) and time.monotonic() < deadline:
                    came = True
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.064)

    def _needs_proxy_line(self) -> bool:
        """Tell whether the client must begin with a PROXY line."""
        if not self.args.accept_proxy:
            return False
        address = ipaddress.ip_address(self.address[0].partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self.args.accept_proxy)

    def _read_proxy_line(self) -> bytes:
        """Take the client's address from the PROXY line; return what follows it."""
        deadline = time.monotonic() + PROXY_TIMEOUT_S
        data = b""
        while b"PROXY ".startswith(data[:6]) and b"\n" not in data:
            set_timeouts(self.sock, max(deadline - time.monotonic(), 1e-3))
            try:
                more = self.sock.recv(RECEIVE_BYTES)
            except TIMEOUTS:
                self.bytes_in += len(data)  # what came of it; of nothing no record
                raise ConnectionOver("by server (no PROXY line in time)") from None
            data += more
            if not more or len(data) >= PROXY_LINE_BYTES:
                break
        if not data:
            raise ConnectionOver("by client")
        end = data.find(b"\n", 0, PROXY_LINE_BYTES) + 1
        try:
            client = parse_proxy_line(data[:end])
        except ValueError:
            self.bytes_in += len(data)
            self.server.printer.warn("proxy", f"{self.client} sent no PROXY line")
            raise ConnectionOver("by server (no PROXY line)") from None
        set_timeouts(self.sock, self.args.idle_timeout)
        if client:
            self.client = format_address(client)
        return data[end:]


class FaultyConnection(Connection):
    """A connection that misbehaves as --fault says, to try the balancer."""

    _batch_size = 1
    _is_mute = False  # True after "half-close"

    def _confirm(self, messages: list[bytes]) -> None:
        fault, seconds = self.args.fault
        if fault == "hang" or self._is_mute:
            return
        if fault == "reset":
            on = struct.pack("ii", 1, 0)  # close sends RST (socket(7), SO_LINGER)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, on)
            raise ConnectionOver("by server (fault: reset)")
        confirmations = self._record(messages)
        if fault == "close-early":
            self._send(confirmations[: len(confirmations) // 2])
            raise ConnectionOver("by server (fault: close-early)")
        if fault == "slow":
            self._send(confirmations[:1])
            self.server.stopping.wait(seconds)
            confirmations = confirmations[1:]
        self._send(confirmations)
        if fault == "half-close":
            self.sock.shutdown(socket.SHUT_WR)
            self._is_mute = True


# ---- Server: accept clients, keep threads, stop -------------------------------------
# Threads wait in accept; each serves the client that it got. The main thread starts
# one more whenever few of them are spare, because starting one takes time.


def drop_packets(listener: socket.socket) -> None:
    """Have the kernel drop what arrives for a listener (socket(7), SO_ATTACH_FILTER).

    Accepted connections are not touched. Raise OSError when it cannot; do nothing
    where there is no such thing.
    """
    if sys.platform == "linux":
        so_attach_filter = 26  # Python has no name for it
        program = array.array("B", struct.pack("=HBBI", 6, 0, 0, 0))  # "ret 0"
        filters = struct.pack("HP", 1, program.buffer_info()[0])
        listener.setsockopt(socket.SOL_SOCKET, so_attach_filter, filters)


class Server:
    """The listener, its threads and their connections."""

    def __init__(
        self,
        listener: socket.socket,
        log: Log,
        printer: Printer,
        args: argparse.Namespace,
        calls: QuickCalls,
    ) -> None:
        self.log = log  # this and what follows up to `stopping`: for the connections
        self.printer = printer
        self.args = args
        self.calls = calls
        self.port: int = listener.getsockname()[1]
        self.prefix = f"Server {self.port} received: ".encode()
        self.stopping = threading.Event()
        self._listener = listener
        self._connection_class = FaultyConnection if args.fault[0] else Connection
        self._max_threads = args.max_connections or sys.maxsize
        self._started = 0  # threads, for their names; the main thread's
        # Bytes to the main thread: a signal's number, or 0 for "see to the threads".
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        # Guards the three below. A thread serves one of the live connections or is
        # spare: it accepts, or is about to. So `_threads - len(_live)` are spare.
        self._lock = threading.Lock()
        self._threads = 0
        self._live: set[Connection] = set()  # none of them is closed
        self._asked = False  # a 0 is in the inbox: one at most, so that signals fit in

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Runs on the main thread."""
        with self._signals():
            # Not earlier: whoever reads the line may send a signal at once.
            line = f"listening on {format_address(self._listener.getsockname())}"
            if fault := self.args.fault[0]:
                line += f" (fault: {fault})"
            with contextlib.suppress(OSError):  # nobody reads it
                print(line, flush=True)
            event = 0
            while event not in STOP_SIGNALS:
                event = self._next_event(self._start_threads())
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
            self._stop()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals arrive as bytes in the inbox meanwhile."""
        numbers = [number for number in (*STOP_SIGNALS, SIGHUP) if number]
        # In this order: a handler without the descriptor would swallow a signal.
        old_fd = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        old = {number: signal.signal(number, lambda *_: None) for number in numbers}
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_fd)
            for number, handler in old.items():
                signal.signal(number, handler)
            self._inbox.close()
            self._outbox.close()

    def _next_event(self, seconds: float | None) -> int:
        """Wait for a signal, and return its number; SIGHUP reopens the log.

        0: the threads are to be seen to, or `seconds` are over (None: never).
        """
        self._inbox.settimeout(seconds)
        try:
            event = self._inbox.recv(1)[0]
        except TimeoutError:
            return 0
        if event == 0:
            with self._lock:
                self._asked = False
        elif event == SIGHUP:
            try:
                self.log.reopen()
            except OSError as error:
                text = f"cannot reopen {self.log.path}: {error.strerror}"
                self.printer.warn("reopen", text)
        return event

    def _start_threads(self) -> float | None:
        """Start threads until enough are spare; return when to try again, if at all."""
        if self.args.fault[0] == "refuse":
            return None
        while True:
            with self._lock:
                if not self._is_short_of_threads_locked():
                    return None
            if not self._start_thread():
                return BACKOFF_S

    def _is_short_of_threads_locked(self) -> bool:
        few = self._threads - len(self._live) < MIN_SPARE
        return few and self._threads < self._max_threads

    def _start_thread(self, connection: Connection | None = None) -> bool:
        """Start a thread, for a connection or for the next; tell whether one could."""
        self._started += 1
        name = f"serving-{self._started}"
        thread = threading.Thread(
            target=self._work, args=(connection,), name=name, daemon=True
        )
        with self._lock:
            self._threads += 1
        try:
            thread.start()
        except RuntimeError as error:
            self.printer.warn("threads", f"{error}: new clients wait")
            with self._lock:
                self._threads -= 1
            return False
        return True

    def _work(self, connection: Connection | None) -> None:
        """Accept a client and serve it, again and again. Runs on serving-N."""
        while connection := connection or self._accept():
            try:
                connection.serve()
            except Exception as error:  # a defect here must not end the others
                text = f"{connection.client}: {traceback.format_exc().rstrip()}"
                self.printer.warn(f"defect: {type(error).__name__}", text)
            goes_on = self._leave_client(connection)
            connection.sock.close()
            if not goes_on:
                return
            connection = None
        self._leave_client(None)

    def _leave_client(self, connection: Connection | None) -> bool:
        """Take a served connection off; tell whether its thread goes on, as a spare.

        None: it served none, and ends because the server stops.
        """
        with self._lock:
            self._live.discard(connection)
            enough = self._threads - len(self._live) > MAX_SPARE
            ends = enough or self.stopping.is_set()
            self._threads -= ends
            if not self._threads:
                self._wake_main_locked()
            return not ends

    def _accept(self) -> Connection | None:
        """Wait for the next client; None when the server stops."""
        while not self.stopping.is_set():
            try:
                return self._accept_one()
            except ConnectionAbortedError:
                continue  # the client left before
            except (OSError, MemoryError) as error:
                if not self.stopping.is_set():
                    reason = getattr(error, "strerror", "") or "out of memory"
                    self.printer.warn("accept", f"{reason}: new clients wait")
                    self.stopping.wait(BACKOFF_S)
        return None

    def _accept_one(self) -> Connection:
        """Return the next client's connection, now a live one, or raise OSError."""
        sock, address = self._listener.accept()
        if self.stopping.is_set():  # the listener does not block then
            sock.setblocking(True)  # BSD, macOS: the socket inherits that
        connection = self._connection_class(self, sock, address)
        with self._lock:
            self._live.add(connection)
            if self._is_short_of_threads_locked():
                self._wake_main_locked()
        return connection

    def _wake_main_locked(self) -> None:
        """Have the main thread see to the threads."""
        if not self._asked:
            self._asked = True
            with contextlib.suppress(OSError):  # the main thread has left
                self._outbox.send(b"\0")

    def _stop(self) -> None:
        """Stop accepting; let connections end, and after GRACE_S cut them."""
        self.stopping.set()
        self._accept_the_last()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept; close does not
        self._listener.close()
        with self._lock:
            for connection in self._live:
                if connection.message_count:  # else the first may be on the way
                    connection.shut_down(socket.SHUT_RD)
        if not self._wait_for_threads(GRACE_S):
            with self._lock:
                for connection in self._live:
                    connection.shut_down(socket.SHUT_RDWR)
            self._wait_for_threads(CUT_S)

    def _accept_the_last(self) -> None:
        """Serve also clients that are connected and wait in the listen queue.

        Closing the listener resets them, and their messages with them. From here on
        their number must not grow, so the kernel drops requests for new connections:
        whoever made one asks again after a second, and finds the port closed.
        """
        self._listener.setblocking(False)
        with contextlib.suppress(OSError):
            drop_packets(self._listener)
            deadline = time.monotonic() + LAST_S
            while time.monotonic() < deadline:
                with self._lock:
                    if self._threads >= self._max_threads:
                        return
                if not self._start_thread(self._accept_one()):
                    return

    def _wait_for_threads(self, seconds: float) -> bool:
        """Wait until the last thread ends; tell whether it did in time."""
        deadline = time.monotonic() + seconds
        while True:
            with self._lock:
                if not self._threads:
                    return True
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            self._next_event(remaining)


# ---- Command line -------------------------------------------------------------------
# Bad input ends with one line on standard error.


class Parser(argparse.ArgumentParser):
    """Say what is wrong in one line; the whole usage is one `--help` away."""

    def error(self, message: str) -> NoReturn:
        """Print one line on standard error; exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def parse_whole(what: str, low: int, high: int, text: str) -> int:
    """Return a whole number, or say that `text` is not `what`."""
    digits = text.isascii() and text.isdigit() and len(text) <= 12
    if not (digits and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return int(text)


parse_port = functools.partial(parse_whole, "a port (0 to 65535)", 0, 65_535)
parse_count = functools.partial(parse_whole, "a whole number from 0", 0, sys.maxsize)
parse_size = functools.partial(parse_whole, "a number of bytes from 1", 1, sys.maxsize)


def parse_seconds(text: str) -> float:
    """Return a time in seconds, 0 to a year."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= 366 * 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds from 0")
    return seconds


def parse_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return the network of "10.0.0.0/8", "127.0.0.1" or "fd00::/8"."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        reason = f"{text!r} is not a network like 10.0.0.0/8"
        raise argparse.ArgumentTypeError(reason) from None


def parse_fault(text: str) -> tuple[str, float]:
    """Return (kind, seconds) of "slow:SECONDS" or of another one of FAULTS."""
    kind, colon, seconds = text.partition(":")
    if kind not in FAULTS or (kind == "slow") != bool(colon):
        kinds = ", ".join(FAULTS).replace("slow", "slow:SECONDS")
        raise argparse.ArgumentTypeError(f"{text!r} is none of {kinds}")
    return kind, parse_seconds(seconds or "0")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, or exit with one line."""
    parser = Parser(
        prog="server2.py",
        description="Confirm every message (a line), after recording it in a log.",
    )
    add = parser.add_argument_group("addresses").add_argument
    add("port", metavar="PORT", type=parse_port, help="listen here; 0 takes a free one")
    add("--host", default="127.0.0.1", help="listen on this (default: %(default)s)")
    add = parser.add_argument_group("limits").add_argument
    add("--max-message", metavar="BYTES", type=parse_size, default=65_536,
        help="reject longer messages (default: %(default)s)")  # fmt: skip
    add("--message-pause", metavar="S", type=parse_seconds, default=0.2,
        help="take silence as the end of a message from clients that send no "
        "newline; 0: never (default: %(default)s)")  # fmt: skip
    add("--idle-timeout", metavar="S", type=parse_seconds, default=3_600,
        help="close after so long without a byte; 0: never "
        "(default: %(default)s)")  # fmt: skip
    add("--max-connections", metavar="N", type=parse_count, default=0,
        help="let further clients wait; 0: no limit "
        "(default: %(default)s)")  # fmt: skip
    add = parser.add_argument_group("access").add_argument
    add("--accept-proxy", metavar="CIDR", type=parse_network, action="append",
        default=[], help="require a PROXY protocol version 1 line from these "
        "addresses; repeatable (default: off)")  # fmt: skip
    add = parser.add_argument_group("output").add_argument
    add("--log", metavar="FILE", default="server_log.txt",
        help="append records to this file (default: %(default)s)")  # fmt: skip
    add("--fsync", action="store_true",
        help="confirm only what is on disk (default: what was written)")  # fmt: skip
    add("--quiet", action="store_true", help="print the address and errors only")
    add = parser.add_argument_group("experiments").add_argument
    add("--delay", metavar="S", type=parse_seconds, default=0,
        help="pretend work for each message (default: %(default)s)")  # fmt: skip
    add("--fault", metavar="KIND", type=parse_fault, default=("", 0.0),
        help="misbehave, to try the balancer: refuse, hang, reset, slow:SECONDS, "
        "close-early or half-close (default: off)")  # fmt: skip
    return parser.parse_args(argv)


def open_listener(host: str, port: int, only_bind: bool) -> socket.socket:
    """Return a listening socket, or raise OSError; one that is only bound refuses."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = addresses[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these: find clients that vanished, do not let a
        # second confirmation wait for the client's acknowledgement of the first.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        if not only_bind:
            listener.listen(LISTEN_QUEUE)
    except BaseException:
        listener.close()
        raise
    return listener


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until a signal; return the exit code."""
    args = parse_args(argv)
    where = format_address((args.host, args.port))
    try:
        listener = open_listener(args.host, args.port, args.fault[0] == "refuse")
    except (socket.gaierror, UnicodeError):  # the latter: no valid name (idna)
        complain(f"cannot resolve {args.host!r}; try --host 127.0.0.1")
        return 2
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            complain(f"port {args.port} is in use ({where}); choose another one")
            return 1
        complain(f"cannot listen on {where}: {error.strerror}")
        return 2
    with listener:
        return run_server(listener, args)


def run_server(listener: socket.socket, args: argparse.Namespace) -> int:
    """Serve on a listener until a signal; return the exit code."""
    calls = QuickCalls()
    with contextlib.suppress(OSError):  # as far as the file may be changed
        mend(args.log, args.port)
    try:
        log = (FlushedLog if args.fsync else Log)(args.log, calls)
    except OSError as error:
        complain(f"cannot write the log {args.log}: {error.strerror}")
        return 2
    with contextlib.closing(log):
        raise_descriptor_limit()
        # A thread that wakes would only find the interpreter lock taken and sleep
        # again: with 50 busy clients that costs more than all the rest of the work.
        do_not_preempt()
        threading.stack_size(STACK_BYTES)
        try:
            printer = Printer(args.quiet)
        except RuntimeError as error:  # no more threads
            complain(f"cannot start: {error}")
            return 2
        Server(listener, log, printer, args, calls).run()
        printer.stop()
    return 0


if __name__ == "__main__":
    exit_status = main()
    for signal_number in filter(None, (*STOP_SIGNALS, SIGHUP)):
        # None that comes late changes the exit status.
        signal.signal(signal_number, signal.SIG_IGN)
    sys.exit(exit_status)
