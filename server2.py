#!/usr/bin/env python3
"""A line server: confirm every message, after recording it in a shared log.

    client ──► socket ──► Framer ──► messages ──► Log.append ──► confirmations ──┐
       ▲                                          (server_log.txt)               │
       └─────────────────────────────────────────────────────────────────────────┘

Wire: a message is a line, all bytes up to and including "\\n". The confirmation is
"Server <port> received: " and the same bytes. Messages may come in any pieces and
many at once; they are confirmed in order. At end of file, what is left without "\\n"
is the last message. A client that never sends a "\\n" is served too: up to 1,024
bytes and then 0.2 s of silence are a message, confirmed without a line ending.

Log: one line per event (connected, received, replied, closed), appended with one
write for all messages that arrived together, always before their confirmations:
Connection._record_and_confirm. Several servers append to the same file. SIGHUP
reopens it, for log rotation. A record that SIGKILL cut is blanked when a server starts
on the log, one that a full disk cut at once: a line of blanks marks the place. A
connection that never sends a byte leaves no record.

Threads of the one process:
    MainThread      waits on one socket for signals and for requests to start threads
    connection-N    accepts a client, serves it from first byte to last, accepts again
    printer         writes to the terminal, so that a stalled terminal stalls only it

Stop: SIGTERM or Ctrl-C. What was received is answered first, for GRACE_S at most.
A second signal ends the process at once.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

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
LAST_S = 0.5  # at the end: to accept the clients in the listen queue
GRACE_S = 2.0  # ... then: for messages that are being received or answered
CUT_S = 1.0  # ... and then for threads to end after their sockets were shut down
BACK_OFF_S = 0.1  # after accept or a thread's start failed for want of resources
LISTEN_QUEUE = 4_096  # clients that wait for accept; the kernel caps it (somaxconn)
SPARE_THREADS = 2  # waiting in accept at least, so that a client finds one ready
IDLE_THREADS = 64  # waiting in accept at most; the others end
BLOCK_BYTES = 4 << 20  # of the log are searched for cut records at once
LINE_BYTES = 1 << 20  # no line of the log is longer, with the default --max-message
MEND_BYTES = 256 << 20  # of the log's end are searched for cut records at most
STACK_BYTES = 512 << 10  # per thread: calls here are shallow, threads many
PRINTED_LINES = 1_000  # waiting for a slow terminal; later ones are dropped
PRINTED_CHARACTERS = 60  # of a message, on the terminal
TIMEOUTS = (BlockingIOError, TimeoutError)  # by SO_RCVTIMEO, by settimeout
FAULTS = ("refuse", "hang", "reset", "slow", "close-early", "half-close")


# ---- Framing: bytes become messages -------------------------------------------------
# The one place that knows where a message ends.


@dataclass(slots=True)
class Framer:
    """Cut a stream of bytes into messages, at most `limit` bytes each."""

    limit: int
    rest: bytearray = field(default_factory=bytearray)  # a message's first part
    lines: bool = False  # True once a "\n" has been seen
    too_long: bool = False  # True once a message exceeded the limit: feed no more

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that `data` completes, in order."""
        if not self.rest and data.find(b"\n") == len(data) - 1 < self.limit:
            self.lines = True  # by far the most frequent case
            return [data]
        end = data.rfind(b"\n") + 1
        if not end:
            self.rest += data
            self.too_long = len(self.rest) > self.limit
            return []
        self.lines = True
        whole = bytes(self.rest) + data[:end] if self.rest else data[:end]
        self.rest = bytearray(data[end:])
        messages = io.BytesIO(whole).readlines()  # cuts at "\n" only
        for index, message in enumerate(messages):
            if len(message) > self.limit:
                self.too_long = True
                return messages[:index]
        self.too_long = len(self.rest) > self.limit
        return messages

    def pause_ends_message(self) -> bool:
        """Tell whether silence now would make what is left a message."""
        return not self.lines and 0 < len(self.rest) <= PAUSE_MESSAGE_BYTES

    def take_rest(self) -> bytes:
        """Return what is left without "\\n" as the last message, b"" for none."""
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


def printable(message: bytes) -> str:
    """Return text that prints on one line and obeys nothing: \\x1b for ESC.

    The line ending, "\\n" or "\\r\\n", is left out. Undecodable bytes, control
    characters and all else that is not printable (line separators, text direction)
    are written as escapes.
    """
    line = message.removesuffix(b"\n").removesuffix(b"\r")
    text = line.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


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
    parse = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}[family]
    if "%" in source + target:
        raise ValueError("an address with a zone")
    parse(target)
    for port in (source_port, target_port):
        if not (port.isdigit() and str(int(port)) == port and int(port) <= 65535):
            raise ValueError("not a port")
    return str(parse(source)), int(source_port)


# ---- Terminal: lines for the person who watches -------------------------------------
# Serving never waits for a terminal: lines are queued, and dropped when it stalls.


class Printer:
    """Write lines to standard output and standard error on a thread of its own."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        # Guards the four fields below; notified when a line comes or the end does.
        self._changed = threading.Condition()
        self._lines: list[tuple[int, str]] = []  # (file descriptor, line)
        self._dropped = 0
        self._warned: dict[str, float] = {}  # kind: when it was last said
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="printer", daemon=True)
        self._thread.start()

    def say(self, line: str) -> None:
        """Print a line on standard output, unless --quiet."""
        if not self.quiet:
            self._put(1, line)

    def warn(self, kind: str, text: str) -> None:
        """Print a line on standard error; of each kind one per second at most."""
        now = time.monotonic()
        with self._changed:
            if now - self._warned.get(kind, -math.inf) < 1:
                return
            self._warned[kind] = now
        self._put(2, f"server2.py: {text}")

    def stop(self) -> None:
        """Let the thread print what is queued; wait for it CUT_S at most."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(CUT_S)

    def _put(self, file: int, line: str) -> None:
        with self._changed:
            if len(self._lines) >= PRINTED_LINES:
                self._dropped += 1
                return
            self._lines.append((file, line))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._ended)
                lines, self._lines = self._lines, []
                dropped, self._dropped = self._dropped, 0
                ended = self._ended
            if dropped:
                lines.append((1, f"({count(dropped, 'line')} not shown)"))
            for file in (1, 2):
                text = "".join(f"{line}\n" for f, line in lines if f == file)
                self._write(file, text)
            if ended:
                return

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
# that stalls then stalls all clients at once, not one after the other.) Where there is
# no such call, or it says no, Python's own does the work, or says why not.


AT_EMPTY_PATH, STATX_NLINK, STATX_BYTES, LINKS = 0x1000, 4, 256, slice(16, 20)
SEND_FLAGS = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)
# Set by `keep_lock`: with ctypes some Pythons open a file, and some are built without.
ctypes: Any = None
kept_write: Callable[..., int] | None = None
kept_send: Callable[..., int] | None = None
kept_statx: Callable[..., int] | None = None


def keep_lock() -> None:
    """Have the calls keep the lock from now on, where that can be."""
    global ctypes, kept_write, kept_send, kept_statx
    with contextlib.suppress(ImportError):
        ctypes = importlib.import_module("ctypes")
        kept_write = keeping_lock("c_ssize_t", "write", "c_int c_char_p c_size_t")
        kept_send = keeping_lock("c_ssize_t", "send", "c_int c_char_p c_size_t c_int")
        kinds = "c_int c_char_p c_int c_uint c_char_p"
        kept_statx = keeping_lock("c_int", "statx", kinds)


def keeping_lock(result: str, name: str, kinds: str) -> Callable[..., int] | None:
    """Return a function of the C library that keeps the lock (ctypes.PyDLL), or None.

    `result` and `kinds` name the types of ctypes. The function returns what its man
    page says: less than 0 when it failed.
    """
    try:
        function = getattr(ctypes.PyDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):  # no such function; Windows
        return None
    function.restype = getattr(ctypes, result)
    function.argtypes = [getattr(ctypes, kind) for kind in kinds.split()]
    kept: Callable[..., int] = function
    return kept


def count_links(file: int) -> int:
    """Return how many names an open file has, or raise OSError (statx(2))."""
    if kept_statx:
        answer = ctypes.create_string_buffer(STATX_BYTES)
        if kept_statx(file, b"", AT_EMPTY_PATH, STATX_NLINK, answer) == 0:
            return int.from_bytes(answer.raw[LINKS], sys.byteorder)
    return os.fstat(file).st_nlink


def is_quick(file: int) -> bool:
    """Tell whether no reader decides how long a write takes: no pipe, no terminal."""
    status = os.fstat(file)
    if stat.S_ISREG(status.st_mode):
        return True
    return os.path.samestat(status, os.stat(os.devnull))


def send_at_once(sock: socket.socket, data: bytes) -> int:
    """Return how many bytes the kernel took without waiting; raise OSError."""
    if not (kept_send and SEND_FLAGS):
        return 0
    sent = kept_send(sock.fileno(), data, len(data), SEND_FLAGS)
    if sent < 0 and (error := ctypes.get_errno()) not in (errno.EAGAIN, errno.EINTR):
        raise OSError(error, os.strerror(error))
    return max(0, sent)


# ---- Log: a record is written before its confirmation is sent -----------------------
# Records are appended by one write(2) with O_APPEND, so several servers share a file.
# A write that SIGKILL or a full disk ended too early leaves a cut record.


STAMP = rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - "
SAMPLE = b"2026-11-23 14:50:15,613 - "  # to complete a stamp that is cut itself
HEAD = STAMP + rb"\d+ - \S+ - "
RECORD = re.compile(HEAD + rb"(?:connected$|received: |replied: |closed: )")
MESSAGE = re.compile(HEAD + rb"(?:replied: Server \d+ )?received: (.*)")
# Both begin with a literal, for speed, and then look back at what must be before it.
GLUED = re.compile(rb",(?<=[^\n]\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,)\d{3} - \d+ - ")
OWN = rb",(?<=^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,)\d{3} - %b - "


def is_like_record(part: bytes) -> bool:
    """Tell whether a record may begin like `part`, which may end in the stamp."""
    return bool(re.match(STAMP, part + SAMPLE[len(part) :]))


def is_message(part: bytes, neighbours: Sequence[bytes]) -> bool:
    """Tell whether a record is whole: "received" beside an equal "replied"."""
    if not (message := MESSAGE.match(part)):
        return False
    return any(line.endswith(b" received: " + message[1]) for line in neighbours)


def cut_in_line(before: bytes, line: bytes, after: bytes) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the cut records in a line, given its neighbours.

    A cut record has no line ending, so the record of another server follows on its
    line. It begins with a stamp, or with the first part of one; what somebody else
    wrote does not. A message that contains a record only looks like that.
    """
    start = 0
    while record := RECORD.search(line, start + 1):
        end = record.start()
        whole = is_message(line[start:], (before, after))
        if whole or not is_like_record(line[start:end]):
            return
        yield start, end
        start = end


def cut_records(file: io.FileIO, size: int, port: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the cut records in the first `size` bytes of a log.

    The last line may be one; others are in the middle of lines. Walks back block by
    block, MEND_BYTES at most, and no further than to a whole record of `port`: what a
    server's death cut was its last record.
    """
    own = re.compile(OWN % str(port).encode(), re.MULTILINE)
    for high in range(size, max(0, size - MEND_BYTES), -BLOCK_BYTES):
        low = max(0, high - BLOCK_BYTES)
        first = file.seek(max(0, low - LINE_BYTES))  # so that lines have neighbours
        data = file.read(min(size, high + LINE_BYTES) - first)
        last = data.rpartition(b"\n")[2] if high == size else b""
        if last and is_like_record(last):
            yield size - len(last), size
        lines = data.split(b"\n") if GLUED.search(data) else []
        place = first
        for before, line, after in zip([b"", *lines], lines, lines[1:], strict=False):
            if low <= place < high:
                for start, end in cut_in_line(before, line, after):
                    yield place + start, place + end
            place += len(line) + 1
        if own.search(data, low - first + len("2026-11-23 14:50:15")):
            return


def mend(path: str, port: int = 0) -> None:
    """Blank the cut records in the log's end, or raise OSError.

    What looks cut may be a write under way. So a line ending is appended first:
    that waits for such a write (inode lock), and what is cut then stays cut.
    """
    if not os.path.isfile(path):  # not yet, or a FIFO or a device
        return
    with io.FileIO(path, "r+") as file, io.FileIO(path, "a") as log:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read(1) in (b"", b"\n") and not any(cut_records(file, size, port)):
            return
        log.write(b"\n")
        for start, end in cut_records(file, log.tell() - 1, port):
            file.seek(start)
            file.write(b" " * (end - start - 1) + b"\n")


def locked() -> threading.Lock:
    """Return a lock that is taken, for another thread to release."""
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True)
class Share:
    """One thread's part of a write that serves several (--fsync)."""

    records: Sequence[bytes]
    # Released by whoever writes: the result is known, or it is this thread's turn to
    # write. (A lock, because waiting for an Event costs three of them.)
    ready: threading.Lock = field(default_factory=locked)
    result: tuple[int, str] | None = None  # what Log.append returns, once known


class Log:
    """The log file. Every method may be called by any thread.

    Without --fsync `append` takes no lock: write(2) with O_APPEND is atomic among
    threads and processes, and dup2(2) puts another file behind the descriptor at once.
    """

    def __init__(self, path: str, fsync: bool) -> None:
        """Open the file for appending, or raise OSError."""
        self.path = path
        self._fsync = fsync
        self._file = self._open()
        self._is_quick = is_quick(self._file)
        self._cut = threading.Event()  # set: `mend` before the next write
        # With --fsync: held from a write to its flush, and while the file is replaced.
        self._flushing = threading.Lock()
        # With --fsync: guards the two below.
        self._sharing = threading.Lock()
        self._queue: list[Share] = []  # for the next write
        self._led = False  # a thread writes, or was told to

    def append(self, records: Sequence[bytes]) -> tuple[int, str]:
        """Append whole records; return how many are in the log, and why not all.

        The reason is "" when all are. With --fsync they are on disk then.
        """
        if not self._fsync:
            return self._write(records)
        own = Share(records)
        self._append_shared(own)
        return own.result or (0, "")

    def reopen(self) -> None:
        """Open the path anew, or raise OSError and keep the old file.

        Cut records in the old one are blanked now: a server that left one there, and
        comes back, finds the new file only.
        """
        old = os.dup(self._file)
        try:
            with self._flushing:
                self._replace()
            with contextlib.suppress(OSError):  # where the system has no such path
                mend(f"/proc/self/fd/{old}")
        finally:
            os.close(old)

    def close(self) -> None:
        """Close the file. No other method may be called after it."""
        os.close(self._file)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        return os.open(self.path, flags, 0o644)

    def _replace(self) -> None:
        new = self._open()
        try:
            self._is_quick = self._is_quick and is_quick(new)
            os.dup2(new, self._file, inheritable=False)
        finally:
            os.close(new)

    def _write(self, records: Sequence[bytes]) -> tuple[int, str]:
        """Append by one write; leave no cut record behind."""
        data = b"".join(records)
        try:
            if count_links(self._file) == 0:  # deleted: records would be lost
                self._replace()
            if self._cut.is_set():
                self._mend()
            written = self._write_once(data)
        except OSError as error:
            return 0, error.strerror or str(error)
        if written == len(data):
            return len(records), ""
        whole, end = 0, 0  # records, their bytes
        while end + len(records[whole]) <= written:
            end += len(records[whole])
            whole += 1
        if end < written and not self._blank(data[:written], end):
            self._cut.set()
        more, reason = self._write(records[whole:])  # says why, if not all
        return whole + more, reason

    def _write_once(self, data: bytes) -> int:
        """Return how many bytes one write(2) took, or raise OSError."""
        if kept_write and self._is_quick:
            written = kept_write(self._file, data, len(data))
            if written >= 0:
                return written
        return os.write(self._file, data)  # or says why not

    def _blank(self, written: bytes, end: int) -> bool:
        """Overwrite what was written from `end` on with an empty line, if possible.

        The disk became full in the middle of a record. Nothing may be cut off the
        file, to which others append; but overwriting needs no room. The place is
        found by its content, so that nothing else is overwritten.
        """
        with contextlib.suppress(OSError), io.FileIO(self.path, "r+") as file:
            size = len(written) + BLOCK_BYTES
            start = file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            place = file.read(size).rfind(written)
            if place >= 0:
                file.seek(start + place + end)
                blank = b" " * (len(written) - end - 1) + b"\n"
                return file.write(blank) == len(blank)
        return False

    def _mend(self) -> None:
        """Blank the cut record that `_blank` could not, or raise OSError."""
        self._cut.clear()  # first: another thread may set it anew
        try:
            mend(self.path)
        except PermissionError:  # a file that may only be appended to
            os.write(self._file, b"\n")
        except OSError:  # no room yet (copy-on-write): ask again
            self._cut.set()
            raise

    def _append_shared(self, own: Share) -> None:
        """Append and flush `own` together with what other threads bring meanwhile.

        Group commit: the first to come leads; while it writes and flushes, others
        queue. Then the first of the queue leads, for all who are in it by then. (With
        one lock that all wait for, they wake one by one: less than half as fast.)
        """
        with self._sharing:
            self._queue.append(own)
            leads, self._led = not self._led, True
        if not leads:
            own.ready.acquire()
            if own.result:
                return
        with self._sharing:
            group, self._queue = self._queue, []
        written, reason = 0, "internal error"
        try:
            written, reason = self._write_and_flush(
                [r for s in group for r in s.records]
            )
        finally:  # whatever happened: nobody else would wake them
            self._tell(group, own, written, reason)

    def _write_and_flush(self, records: Sequence[bytes]) -> tuple[int, str]:
        with self._flushing:
            written, reason = self._write(records)
            try:
                os.fsync(self._file)
            except OSError as error:
                return 0, error.strerror or str(error)
        return written, reason

    def _tell(self, group: list[Share], own: Share, written: int, reason: str) -> None:
        """Tell the threads of a group, and the one that leads next."""
        for share in group:
            logged = min(written, len(share.records))
            share.result = logged, reason if logged < len(share.records) else ""
            written -= logged
            if share is not own:
                share.ready.release()
        with self._sharing:
            self._led = bool(self._queue)
            if self._led:
                self._queue[0].ready.release()


# ---- Connection: one client, one thread ---------------------------------------------
# Receive, cut into messages, record, confirm; until one side ends it.


class Ended(Exception):  # noqa: N818 - a way out, often not an error
    """The connection is over; the text says by whom, for the log."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line decides about a connection; times in seconds."""

    max_message: int  # bytes, line ending included
    message_pause: float  # 0: only "\n" ends a message
    idle_timeout: float  # without a byte from the client; 0: no limit
    delay: float  # pretended work per message
    accept_proxy: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
    fault: str  # one of FAULTS, or ""
    fault_s: float  # of "slow"


def set_timeouts(sock: socket.socket, receive_s: float) -> None:
    """Bound a blocking socket's calls, by 0 s not at all. They raise one of TIMEOUTS.

    By the kernel where it can (socket(7)): Python's own timeouts cost a second
    system call each time.
    """
    if not hasattr(socket, "SO_RCVTIMEO") or sys.platform == "win32":
        sock.settimeout(receive_s or None)
        return
    both = (socket.SO_RCVTIMEO, receive_s), (socket.SO_SNDTIMEO, SEND_TIMEOUT_S)
    for option, s in both:
        timeval = struct.pack("@ll", *divmod(math.ceil(s * 1e6), 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, option, timeval)


def is_gone(error: OSError) -> bool:
    """Tell whether it is not our deadline but TCP's: the peer answers no more."""
    return error.errno == errno.ETIMEDOUT


def unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes the peer has not acknowledged (tcp(7), SIOCOUTQ)."""
    if fcntl is None or not hasattr(termios, "TIOCOUTQ"):
        return 0
    answer = array.array("i", [0])
    fcntl.ioctl(sock, termios.TIOCOUTQ, answer)
    return answer[0]


class Connection:
    """One client's connection. Only its own thread calls `serve`."""

    def __init__(
        self, server: Server, sock: socket.socket, address: tuple[Any, ...]
    ) -> None:
        self.server = server
        self.options = server.options
        self.sock = sock
        self.address = address
        self.client = format_address(address)  # the PROXY line's, after one
        self.started_ns = time.monotonic_ns()
        self.messages = 0  # received; the main thread reads it, at the end
        self.bytes_in = 0
        self.bytes_out = 0
        self.mute = False  # after --fault half-close
        self.framer = Framer(self.options.max_message)
        self.connected = timestamp()  # "" once its record is in the log

    def serve(self) -> None:
        """Serve the client to the end, record the end, close the socket."""
        is_there = True
        try:
            set_timeouts(self.sock, self.options.idle_timeout)
            reason = self._exchange()
        except Ended as ended:
            reason = str(ended)
        except TIMEOUTS as error:
            is_there = not is_gone(error)
            reason = "idle" if is_there else "client vanished"
        except OSError:
            is_there = False
            reason = "reset by client"
        if self.server.stopping.is_set() and reason in ("by client", "reset by client"):
            reason = "shutdown"
        self._record_end(reason)
        if self.server.stopping.is_set() and is_there:
            self._part()
        self.sock.close()

    def _part(self) -> None:
        """Let the client's kernel have all replies before we close, GRACE_S at most.

        Closing with bytes unread sends a reset, which overtakes replies. So drop what
        still comes, until nothing does and all replies are acknowledged. The kernel has
        no event for that: look again after 1, 2, 4 … 64 ms.
        """
        deadline, pause_s = time.monotonic() + GRACE_S, 0.001
        self.shut_down(socket.SHUT_RD)  # from here on, recv does not wait
        with contextlib.suppress(OSError):  # the client has gone
            came = True
            while (came or unacknowledged(self.sock)) and time.monotonic() < deadline:
                came = False
                while self.sock.recv(RECEIVE_BYTES) and time.monotonic() < deadline:
                    came = True
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.064)

    def shut_down(self, how: int) -> None:
        """Make `serve` end: by SHUT_RD after what was received, by SHUT_RDWR now.

        Any thread may call it.
        """
        with contextlib.suppress(OSError):
            self.sock.shutdown(how)

    def _exchange(self) -> str:
        """Answer messages until the client's end of file; return the reason."""
        data = self._read_proxy_line() if self._is_proxy() else b""
        while data or (data := self._receive()):
            self.bytes_in += len(data)
            self._answer(self.framer.feed(data))
            if self.framer.too_long:
                self._refuse_too_long()
            if self.messages and self.server.stopping.is_set():
                self.shut_down(socket.SHUT_RD)
            data = b""
        last = self.framer.take_rest()
        if last and not self.server.stopping.is_set():  # else its end may be missing
            self._answer([last])
        return "by client"

    def _receive(self) -> bytes:
        """Return the next bytes, b"" at end of file; a pause may end a message."""
        pause = self.options.message_pause
        while self.framer.rest and pause and self.framer.pause_ends_message():
            set_timeouts(self.sock, pause)
            try:
                return self.sock.recv(RECEIVE_BYTES)
            except TIMEOUTS as error:
                if is_gone(error):
                    raise
                self._answer([self.framer.take_rest()])
            finally:
                set_timeouts(self.sock, self.options.idle_timeout)
        return self.sock.recv(RECEIVE_BYTES)

    def _answer(self, messages: list[bytes]) -> None:
        """Record and confirm messages, as many together as may be."""
        alone = self.options.delay or self.options.fault
        size = 1 if alone else BATCH_MESSAGES
        for start in range(0, len(messages), size):
            self._record_and_confirm(messages[start : start + size])

    def _record_and_confirm(self, messages: list[bytes]) -> None:
        """Record messages by one write; then confirm those that are in the log."""
        if not self.messages:
            text = printable(messages[0])[:PRINTED_CHARACTERS]
            self.server.printer.say(f"{self.client} received: {text}")
        self.messages += len(messages)
        if self.options.fault in ("hang", "reset") or self.mute:
            self._misbehave(b"")
            return
        received = replied = timestamp()
        if self.options.delay:
            self.server.stopping.wait(self.options.delay)
            replied = timestamp()
        records = self._message_records(messages, received, replied)
        logged, reason = self.server.log.append(records)
        replies = [self.server.prefix + message for message in messages[:logged]]
        if logged:
            self.connected = ""
        if reason:
            text = f"Server {self.server.port} error: cannot log: {reason}\n"
            replies += [text.encode()] * (len(messages) - logged)
            self.server.printer.warn("log", f"cannot log: {reason}")
        if self.options.fault:
            self._misbehave(b"".join(replies))
        else:
            self._send(b"".join(replies))

    def _message_records(
        self, messages: list[bytes], received: str, replied: str
    ) -> list[bytes]:
        """Return the two records of each message, those of one message together."""
        port = self.server.port
        head = f"{received} - {port} - {self.client} - received: "
        middle = f"\n{replied} - {port} - {self.client} - replied: "
        middle += f"Server {port} received: "
        records = []
        for message in messages:
            text = printable(message)
            records.append(f"{head}{text}{middle}{text}\n".encode())
        records[0] = self._record_start() + records[0]
        return records

    def _send(self, data: bytes) -> None:
        try:
            sent = send_at_once(self.sock, data)
            if sent < len(data):
                self.sock.sendall(data[sent:])
        except TIMEOUTS as error:
            if is_gone(error):
                raise
            raise Ended("by server (client does not read)") from None
        self.bytes_out += len(data)

    def _refuse_too_long(self) -> NoReturn:
        """Say so, and let the client read it although it may still be sending.

        Closing with bytes unread would send a reset, which overtakes the line.
        """
        text = f"message longer than {self.options.max_message} bytes"
        self._send(f"Server {self.server.port} error: {text}\n".encode())
        self.sock.shutdown(socket.SHUT_WR)
        deadline, size = time.monotonic() + LINGER_S, LINGER_BYTES
        with contextlib.suppress(OSError):
            while size > 0 and (left := deadline - time.monotonic()) > 0:
                set_timeouts(self.sock, left)
                received = len(self.sock.recv(RECEIVE_BYTES))
                self.bytes_in += received
                size -= received or size
        raise Ended("by server (message too long)")

    def _is_proxy(self) -> bool:
        """Tell whether the client must begin with a PROXY line."""
        if not self.options.accept_proxy:
            return False
        address = ipaddress.ip_address(self.address[0].partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self.options.accept_proxy)

    def _read_proxy_line(self) -> bytes:
        """Take the client's address from the PROXY line; return what follows it."""
        deadline = time.monotonic() + PROXY_TIMEOUT_S
        data = b""
        while b"\n" not in data and len(data) < PROXY_LINE_BYTES:
            set_timeouts(self.sock, max(deadline - time.monotonic(), 1e-3))
            try:
                more = self.sock.recv(RECEIVE_BYTES)
            except TIMEOUTS:
                raise Ended("by server (no PROXY line in time)") from None
            if not (more or data):
                raise Ended("by client")
            data += more
            if not (more and b"PROXY ".startswith(data[:6])):
                break
        end = data.find(b"\n", 0, PROXY_LINE_BYTES) + 1
        try:
            client = parse_proxy_line(data[:end])
        except (ValueError, KeyError):
            self.bytes_in += len(data)
            self.server.printer.warn("proxy", f"{self.client} sent no PROXY line")
            raise Ended("by server (no PROXY line)") from None
        set_timeouts(self.sock, self.options.idle_timeout)
        if client:
            self.client = format_address(client)
        return data[end:]

    def _misbehave(self, replies: bytes) -> None:
        """Do what --fault asks for, instead of sending the replies."""
        fault = self.options.fault
        if fault == "reset":
            on = struct.pack("ii", 1, 0)  # close sends RST (socket(7), SO_LINGER)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, on)
            raise Ended("by server (fault: reset)")
        if fault == "slow":
            self._send(replies[:1])
            self.server.stopping.wait(self.options.fault_s)
            self._send(replies[1:])
        if fault == "close-early":
            self._send(replies[: len(replies) // 2])
            raise Ended("by server (fault: close-early)")
        if fault == "half-close" and not self.mute:
            self._send(replies)
            self.sock.shutdown(socket.SHUT_WR)
            self.mute = True

    def _record(self, when: str, event: str) -> bytes:
        return f"{when} - {self.server.port} - {self.client} - {event}\n".encode()

    def _record_start(self) -> bytes:
        """Return the record that goes before the first other one, b"" after that."""
        return self._record(self.connected, "connected") if self.connected else b""

    def _record_end(self, reason: str) -> None:
        """Append the closing record, unless the client never sent a byte."""
        if not self.bytes_in:
            return
        duration_ms = (time.monotonic_ns() - self.started_ns) / 1e6
        event = (
            f"closed: {reason}, {count(self.messages, 'message')}, "
            f"{count(self.bytes_in, 'byte')} in, {count(self.bytes_out, 'byte')} out, "
            f"{duration_ms:.1f} ms"
        )
        record = self._record_start() + self._record(timestamp(), event)
        _, error = self.server.log.append([record])
        if error:
            self.server.printer.warn("log", f"cannot log: {error}")
        self.server.printer.say(f"{self.client} {event}")


# ---- Server: accept clients, keep threads, stop -------------------------------------
# Threads wait in accept; each serves the client that it got. The main thread starts
# one more whenever few are left waiting, because starting one takes time.


def drop_packets(listener: socket.socket) -> None:
    """Have the kernel drop what arrives for a listener (socket(7), SO_ATTACH_FILTER).

    Accepted connections are not touched. Raise OSError when it refuses; do nothing
    where there is no such thing.
    """
    if sys.platform == "linux":
        so_attach_filter = 26  # Python has no name for it
        program = array.array("B", struct.pack("=HBBI", 6, 0, 0, 0))  # "ret 0"
        filters = struct.pack("HP", 1, program.buffer_info()[0])
        listener.setsockopt(socket.SOL_SOCKET, so_attach_filter, filters)


class Server:
    """Owns the listener, the threads and the live connections."""

    def __init__(
        self,
        listener: socket.socket,
        log: Log,
        printer: Printer,
        options: Options,
        max_connections: int,  # 0: no limit
    ) -> None:
        self.listener = listener
        self.log = log
        self.printer = printer
        self.options = options
        self.port: int = listener.getsockname()[1]
        self.prefix = f"Server {self.port} received: ".encode()
        self.stopping = threading.Event()
        self._max_threads = max_connections or sys.maxsize
        # Bytes to the main thread: a signal's number, or 0 for "start a thread".
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        # Guards the fields below; notified when a thread ends.
        self._changed = threading.Condition()
        self._live: set[Connection] = set()
        self._threads = 0
        self._waiting = 0  # of the threads, those in accept
        self._asked = False  # the main thread was asked to start one
        self._started = 0  # threads ever started, for their names

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Runs on the main thread."""
        with self._signals():
            # Not earlier: whoever reads the line may send a signal at once.
            self._announce()
            if self.options.fault != "refuse":
                self._start_threads()
            while (number := self._next_event()) not in (signal.SIGTERM, signal.SIGINT):
                if number == 0:
                    self._start_threads()
                else:
                    self._reopen_log()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
            self._stop()

    def _announce(self) -> None:
        where = format_address(self.listener.getsockname())
        fault = f" (fault: {self.options.fault})" if self.options.fault else ""
        with contextlib.suppress(OSError):
            print(f"listening on {where}{fault}", flush=True)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals arrive as bytes in the inbox meanwhile."""
        numbers = [signal.SIGTERM, signal.SIGINT]
        if hasattr(signal, "SIGHUP"):
            numbers.append(signal.SIGHUP)
        # In this order: a handler without the descriptor would swallow a signal.
        old_fd = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        old = {n: signal.signal(n, lambda *_: None) for n in numbers}
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_fd)
            for number, handler in old.items():
                signal.signal(number, handler)
            self._inbox.close()
            self._outbox.close()

    def _next_event(self) -> int:
        """Return the next signal's number; 0 when threads may have to be started."""
        try:
            return self._inbox.recv(1)[0]
        except TimeoutError:
            return 0

    def _start_threads(self) -> None:
        """Start threads until enough wait in accept. Runs on the main thread."""
        self._inbox.settimeout(None)
        while True:
            with self._changed:
                self._asked = False
                if not self._is_short_of_threads_locked():
                    return
            if not self._start_thread():
                self._inbox.settimeout(BACK_OFF_S)  # then try again
                return

    def _start_thread(self, connection: Connection | None = None) -> bool:
        """Start a thread, for a connection or for the next; tell whether one could."""
        with self._changed:
            self._started += 1
            self._threads += 1
            self._waiting += connection is None
            if connection:
                self._live.add(connection)
            name = f"connection-{self._started}"
        thread = threading.Thread(
            target=self._work, args=(connection,), name=name, daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            with self._changed:
                self._threads -= 1
                self._waiting -= connection is None
                if connection:
                    self._live.discard(connection)
            if connection:
                connection.sock.close()
            self.printer.warn("threads", f"{error}: new clients wait")
            return False
        return True

    def _is_short_of_threads_locked(self) -> bool:
        few = self._waiting < SPARE_THREADS and self._threads < self._max_threads
        return few and not self.stopping.is_set()

    def _work(self, connection: Connection | None = None) -> None:
        """Accept a client and serve it, again and again. Runs on connection-N."""
        while connection := connection or self._accept():
            try:
                connection.serve()
            except Exception as error:  # a fault here must not end the others
                self.printer.warn("bug", f"{connection.client}: {error!r}")
                connection.sock.close()
            with self._changed:
                self._live.discard(connection)
                if self._waiting >= IDLE_THREADS or self.stopping.is_set():
                    break
                self._waiting += 1
            connection = None
        with self._changed:
            self._threads -= 1
            self._changed.notify()

    def _accept(self) -> Connection | None:
        """Wait for the next client; None when the server stops."""
        while not self.stopping.is_set():
            try:
                connection = Connection(self, *self.listener.accept())
            except ConnectionAbortedError:
                continue  # the client left before
            except (OSError, MemoryError) as error:
                if not self.stopping.is_set():
                    reason = getattr(error, "strerror", "") or "out of memory"
                    self.printer.warn("accept", f"{reason}: new clients wait")
                    self.stopping.wait(BACK_OFF_S)
                continue
            with self._changed:
                self._waiting -= 1
                self._live.add(connection)
                ask = self._is_short_of_threads_locked() and not self._asked
                self._asked = self._asked or ask
            if ask:
                with contextlib.suppress(OSError):  # the main thread has left
                    self._outbox.send(b"\0")
            return connection
        with self._changed:
            self._waiting -= 1
        return None

    def _reopen_log(self) -> None:
        try:
            self.log.reopen()
        except OSError as error:
            text = f"cannot reopen {self.log.path}: {error.strerror}"
            self.printer.warn("reopen", text)

    def _stop(self) -> None:
        """Stop accepting; let connections end, and after GRACE_S cut them."""
        self.stopping.set()
        self._accept_the_last()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes accept; close does not
        self.listener.close()
        with self._changed:
            live = list(self._live)
        for connection in live:
            if connection.messages:  # else its first message may be on the way
                connection.shut_down(socket.SHUT_RD)
        if not self._wait_for_threads(GRACE_S):
            with self._changed:
                live = list(self._live)
            for connection in live:
                connection.shut_down(socket.SHUT_RDWR)
            self._wait_for_threads(CUT_S)

    def _accept_the_last(self) -> None:
        """Serve also clients that are connected and wait in the listen queue.

        Closing the listener resets them, and their messages with them. From here on
        their number must not grow, so the kernel drops requests for new connections:
        whoever made one asks again after a second, and finds the port closed.
        """
        self.listener.setblocking(False)
        with contextlib.suppress(OSError):
            drop_packets(self.listener)
            deadline = time.monotonic() + LAST_S
            while self._has_room() and time.monotonic() < deadline:
                self._start_thread(Connection(self, *self.listener.accept()))

    def _has_room(self) -> bool:
        with self._changed:
            return self._threads < self._max_threads

    def _wait_for_threads(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._threads, seconds)


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
    add = parser.add_argument
    add("port", metavar="PORT", type=parse_port, help="listen here; 0 takes a free one")
    add("--host", default="127.0.0.1", help="listen on this (default: %(default)s)")
    add("--quiet", action="store_true", help="print the address and errors only")
    add = parser.add_argument_group("log").add_argument
    add("--log", metavar="FILE", default="server_log.txt",
        help="append records to this file (default: %(default)s)")  # fmt: skip
    add("--fsync", action="store_true",
        help="confirm only what is on disk (default: what was written)")  # fmt: skip
    add = parser.add_argument_group("messages").add_argument
    add("--max-message", metavar="BYTES", type=parse_size, default=65_536,
        help="refuse longer messages (default: %(default)s)")  # fmt: skip
    add("--message-pause", metavar="S", type=parse_seconds, default=0.2,
        help="take silence as the end of a message from clients that send no "
        "newline; 0 turns this off (default: %(default)s)")  # fmt: skip
    add("--delay", metavar="S", type=parse_seconds, default=0,
        help="pretend work for each message (default: %(default)s)")  # fmt: skip
    add("--fault", metavar="KIND", type=parse_fault, default=("", 0.0),
        help="misbehave, to try the balancer: refuse, hang, reset, slow:SECONDS, "
        "close-early or half-close (default: none)")  # fmt: skip
    add = parser.add_argument_group("connections").add_argument
    add("--idle-timeout", metavar="S", type=parse_seconds, default=3_600,
        help="close after so long without a byte; 0: never "
        "(default: %(default)s)")  # fmt: skip
    add("--max-connections", metavar="N", type=parse_count, default=0,
        help="let further clients wait; 0: no limit "
        "(default: %(default)s)")  # fmt: skip
    add("--accept-proxy", metavar="CIDR", type=parse_network, action="append",
        default=[], help="require a PROXY protocol version 1 line from these "
        "addresses; repeatable (default: off)")  # fmt: skip
    return parser.parse_args(argv)


def open_listener(host: str, port: int, refuse: bool = False) -> socket.socket:
    """Return a listening socket, or raise OSError; a refusing one is only bound."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these: find clients that vanished, do not let a
        # second confirmation wait for the client's acknowledgement of the first.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        if not refuse:
            listener.listen(LISTEN_QUEUE)
    except BaseException:
        listener.close()
        raise
    return listener


def fail(code: int, text: str) -> int:
    """Print one line on standard error; return the exit code."""
    print(f"server2.py: {text}", file=sys.stderr)
    return code


def raise_descriptor_limit() -> None:
    """Allow as many connections as the system lets us, one descriptor each."""
    if resource:
        with contextlib.suppress(OSError, ValueError):
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def do_not_preempt() -> None:
    """Let a thread that wakes wait for the one that runs (sched(7), SCHED_BATCH).

    It would only find the interpreter lock taken and go back to sleep: with 50
    busy clients that costs more than all the rest of the work.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until a signal; return the exit code."""
    args = parse_args(argv)
    try:
        listener = open_listener(args.host, args.port, args.fault[0] == "refuse")
    except (socket.gaierror, UnicodeError):  # the latter: no valid name (idna)
        return fail(2, f"cannot resolve {args.host!r}; try --host 127.0.0.1")
    except OSError as error:
        where = format_address((args.host, args.port))
        if error.errno == errno.EADDRINUSE:
            return fail(1, f"port {args.port} is in use ({where}); choose another one")
        return fail(2, f"cannot listen on {where}: {error.strerror}")
    with contextlib.suppress(OSError):  # as far as the file may be changed
        mend(args.log, args.port)
    try:
        log = Log(args.log, args.fsync)
    except OSError as error:
        listener.close()
        return fail(2, f"cannot write the log {args.log}: {error.strerror}")
    raise_descriptor_limit()
    do_not_preempt()
    keep_lock()
    threading.stack_size(STACK_BYTES)
    options = Options(
        args.max_message, args.message_pause, args.idle_timeout, args.delay,
        args.accept_proxy, *args.fault,
    )  # fmt: skip
    printer = Printer(args.quiet)
    server = Server(listener, log, printer, options, args.max_connections)
    server.run()
    printer.stop()
    log.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
