#!/usr/bin/env python3
"""A line server: record every message in a shared log, then confirm it.

    client ──► Server ──► Connection.batches ──► Log.append ──► confirmation ──► client
               accept      bytes → messages      server_log.txt

Wire: a message is a line, all bytes up to and including "\\n". The confirmation is
"Server <port> received: " and the same bytes. Messages may come in any pieces and many
at once; they are confirmed in order. At end of file, what came without "\\n" is the
last message. A client that never sends a "\\n" is served too: up to 1,024 bytes and
then 0.2 s of silence are a message, confirmed without a line ending.

Log: a line per event (connected, received, replied, closed), one write for what came
together, and always before its confirmation: what was confirmed has been handed to the
kernel, and is in the file even when this process is killed in the next moment (with
--fsync also when the machine is). What cannot be written, on a full disk say, is not
confirmed: an error line says why; what was cut off becomes a line of blanks. Several
servers append to the same file. SIGHUP reopens it. A connection that never sends a byte
leaves no record.

Threads:
    MainThread      Server.run       accepts clients, hears signals, stops
    connection-…    Server._serve    serves one client, from its first byte to its last
    terminal        Terminal._run    prints, so that a stalled terminal stalls nobody

Stop (SIGTERM, Ctrl-C, a closed terminal): accept who waits in the listen queue (as far
as --max-connections allows), and nobody else; let connections confirm what they
received, for GRACE_S at most; cut the rest; exit with 0. A second signal ends the
process at once.

    python3 server2.py 9991
    python3 server2.py 9992 --fault slow:0.5     # a server to try the balancer on

It does not encrypt, does not ask who a client is, and keeps nothing but the log.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - older ones run this far
    found = ".".join(map(str, sys.version_info[:3]))
    sys.stderr.write(f"server2.py needs Python 3.11 or newer, this is {found}\n")
    sys.exit(2)

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # Until the server runs, Ctrl-C ends it at once: in a slow look-up of a name, too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import array
import concurrent.futures
import contextlib
import errno
import functools
import importlib
import io
import ipaddress
import itertools
import math
import os
import queue
import random
import re
import select
import selectors
import shutil
import socket
import stat
import struct
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

try:
    import fcntl
    import resource
    import termios
except ImportError:  # Windows
    fcntl = resource = termios = None  # type: ignore[assignment]

RECEIVE_BYTES = 65_536  # one read; a whole message of the default limit fits
BATCH_MESSAGES = 256  # per write to the log: bounds memory and the wait of others
PAUSE_MESSAGE_BYTES = 1_024  # longest message that a pause may end
BACKOFF_S = 0.1  # after accept or a thread's start failed for want of resources
RESTING_THREADS = 8  # kept for the next clients: to start one costs more than a message


# ---- Server: accept, a thread per client, stop ---------------------------------------


class Server:
    """The listener, and the live connections, each with a thread of its own."""

    def __init__(
        self, listener: socket.socket, log: Log, terminal: Terminal, args: Any
    ) -> None:
        self.log, self.terminal, self.args = log, terminal, args
        self.port: int = listener.getsockname()[1]
        self.work = PretendedWork(args.delay, args.parallel)
        self.stopping = threading.Event()
        self.listener, self.bell = listener, Bell(listener)
        self._connection = FaultyConnection if args.fault[0] else Connection
        self._clients: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self.lock = threading.Lock()  # guards the two below
        self.live: set[Connection] = set()  # none of them is closed
        self._idle = 0  # threads without a client; less than 0: clients without one

    def run(self) -> None:
        """Serve until a signal, then let connections finish (MainThread)."""
        self.listener.setblocking(False)
        while not self.bell.means_stop(
            number := self.bell.wait(0 if self._idle < 0 else None, self.may_accept)
        ):
            reopen_log(self) if number else self.accept()
        stop(self)

    @property
    def may_accept(self) -> bool:
        """Tell whether there may be one more live connection, or one has no thread."""
        most = self.args.max_connections or sys.maxsize
        most = 0 if self.args.fault[0] == "refuse" else most
        return len(self.live) < most or self._idle < 0

    def accept(self) -> bool:
        """Accept a client and see that it has a thread; False: none, or no room."""
        if not self.may_accept:  # a bell rang after the last place was taken
            return False
        try:
            if self._idle >= 0:
                sock, address = self.listener.accept()
                sock.setblocking(True)  # BSD, macOS: it inherits what the listener has
                connection = self._connection(self, sock, address)
                with self.lock:
                    self.live.add(connection)
                    self._idle -= 1
                self._clients.put(connection)
            if self._idle < 0:
                threading.Thread(target=self._serve, daemon=True).start()
                with self.lock:
                    self._idle += 1
            return True
        except (BlockingIOError, ConnectionAbortedError):
            return False  # the client has left
        except (OSError, MemoryError, RuntimeError) as error:
            reason = getattr(error, "strerror", "") or str(error) or "out of memory"
            self.terminal.warn("accept", f"{reason}: new clients wait")
            self.stopping.wait(BACKOFF_S)
            return False

    def _serve(self) -> None:
        """Serve one client after the other to its end (thread connection-…)."""
        rests = True
        while rests:
            connection = self._clients.get()
            threading.current_thread().name = f"connection-{connection.client}"
            try:
                connection.serve()
            except Exception:  # a defect here must not end the others
                self.terminal.warn("defect", traceback.format_exc().rstrip())
            with self.lock:
                was_full = not self.may_accept
                self.live.discard(connection)
                rests = self._idle < RESTING_THREADS
                self._idle += rests
            connection.sock.close()
            if was_full or self.stopping.is_set():
                self.bell.ring()


# ---- Connection: one client, one thread ----------------------------------------------


class ConnectionOver(Exception):  # noqa: N818 - a way out, often not an error
    """The connection is over; the text says by whom, for the log."""


class Connection:
    """One client's connection. Its thread calls it, another one only `shut_down`."""

    def __init__(self, server: Server, sock: socket.socket, address: Any) -> None:
        self.server, self.args, self.sock = server, server.args, sock
        self.client = format_address(address)  # the PROXY line's, after one
        self.message_count = self.bytes_in = self.bytes_out = 0
        alone = server.work.is_needed or self.args.fault[0]
        self._batch_size = 1 if alone else BATCH_MESSAGES
        self._began, self._began_text = time.monotonic(), timestamp()
        self._is_recorded = False  # the record "connected" is in the log
        self._patience_s = -1.0  # of the socket: not set yet

    def serve(self) -> None:
        """Serve the client to the end, and record the end (thread connection-…)."""
        is_there = True
        try:
            if is_trusted(self.client, self.args.accept_proxy):
                read_proxy_line(self)
            for messages in self.batches():
                self._confirm(messages)
            reason = "by client"
        except ConnectionOver as over:
            reason = str(over)
        except TIMEOUTS as error:
            is_there = not has_vanished(error)
            reason = "idle" if is_there else "client vanished"
        except OSError:
            is_there, reason = False, "reset by client"
        except MemoryError:
            reason = "by server (out of memory)"
        if self.server.stopping.is_set() and reason in ("by client", "reset by client"):
            reason = "shutdown"
        if self.server.stopping.is_set() and is_there:
            shut_down(self, socket.SHUT_RD)  # from here on, recv does not wait
            linger(self, DELIVERY_S)
        if self.bytes_in:
            self._record_end(reason)

    def batches(self) -> Iterator[list[bytes]]:
        """Yield messages that came together: the one place that knows their ends."""
        rest, limit = bytearray(), self.args.max_message
        pause_s, idle_s = self.args.message_pause, self.args.idle_timeout
        if 0 < idle_s <= pause_s:
            pause_s = 0
        while True:
            may_pause = pause_s and 0 < len(rest) <= PAUSE_MESSAGE_BYTES
            try:
                data = self._receive(pause_s if may_pause else idle_s)
            except TIMEOUTS as error:
                if not may_pause or has_vanished(error):
                    raise
                yield [bytes(rest)]
                rest.clear()
                continue
            if not data:  # end of file; a stop makes one, too
                is_own = not self.server.stopping.is_set() or has_ended(self.sock)
                if rest and (is_own or may_pause):
                    yield [bytes(rest)]
                return
            self.bytes_in += len(data)
            rest += data
            end = rest.rfind(b"\n", len(rest) - len(data)) + 1
            lines = io.BytesIO(rest[:end]).readlines()  # at "\n" only
            del rest[:end]
            if end:
                pause_s = 0  # it sends lines: from here on, only they end a message
            fitting = list(itertools.takewhile(lambda line: len(line) <= limit, lines))
            for k in range(0, len(fitting), self._batch_size):
                yield fitting[k : k + self._batch_size]
            if len(fitting) < len(lines) or len(rest) > limit:
                self._reject()

    def _receive(self, seconds: float) -> bytes:
        """Return the next bytes, b"" at end of file; TIMEOUTS: none came (0: never)."""
        if seconds != self._patience_s:
            set_timeouts(self.sock, seconds)
            self._patience_s = seconds
        return self.sock.recv(RECEIVE_BYTES)

    def _confirm(self, messages: list[bytes]) -> None:
        """Record messages by one write, then confirm them, or say why not."""
        if self.server.terminal.shows("message", len(messages)):
            for message in messages:
                text = printable(message.rstrip(b"\r\n")[:240])[:60]  # 4 bytes at most
                self.server.terminal.say(f"{self.client} received: {text}")
        self.message_count += len(messages)
        self._send(self._record_messages(messages))
        if self.server.stopping.is_set():
            shut_down(self, socket.SHUT_RD)

    def _record_messages(self, messages: list[bytes]) -> bytes:
        """Append two records per message; return the confirmations.

        An error line stands for each message that could not be recorded.
        """
        said, received = f"Server {self.server.port} ", self._record("received: ")
        replied = received.replace("received: ", f"replied: {said}received: ")
        if self.server.work.is_needed:
            self.server.work.do(self.server.stopping)
            replied = self._record(f"replied: {said}received: ")
        entries = []
        for message in messages:
            text = printable(message.removesuffix(b"\n").removesuffix(b"\r"))
            entries.append(f"{received}{text}\n{replied}{text}\n".encode())
        logged, reason = self._append(entries)
        confirmed = f"{said}received: ".encode()
        error = f"{said}error: cannot log: {reason}\n".encode()
        answers = [confirmed + message for message in messages[:logged]]
        return b"".join(answers) + error * (len(messages) - logged)

    def _record(self, event: str, when: str = "") -> str:
        """Return the begin of a record, of now or of an earlier time."""
        return f"{when or timestamp()} - {self.server.port} - {self.client} - {event}"

    def _append(self, entries: list[bytes]) -> tuple[int, str]:
        """Append to the log, after the record "connected"; return as Log.append."""
        is_first = not self._is_recorded
        if is_first:
            connected = self._record("connected\n", self._began_text)
            entries = [connected.encode(), *entries]
        logged, reason = self.server.log.append(entries)
        self._is_recorded = logged > 0 or not is_first
        if reason:
            self.server.terminal.warn("log", f"cannot log: {reason}")
        return max(0, logged - is_first), reason

    def _send(self, data: bytes) -> None:
        """Send all; a client that reads nothing for SEND_TIMEOUT_S is given up."""
        try:
            if (sent := send_quickly(self.sock, data)) < len(data):
                self._patience_s = bound_sends(self.sock, self._patience_s)
                self.sock.sendall(data[sent:])
        except TIMEOUTS as error:
            if has_vanished(error):
                raise
            raise ConnectionOver("by server (client does not read)") from None
        self.bytes_out += len(data)

    def _record_end(self, reason: str) -> None:
        event = (
            f"closed: {reason}, {counted(self.message_count, 'message')}, "
            f"{counted(self.bytes_in, 'byte')} in, "
            f"{counted(self.bytes_out, 'byte')} out, "
            f"{(time.monotonic() - self._began) * 1e3:.1f} ms"
        )
        self._append([self._record(f"{event}\n").encode()])
        if self.server.terminal.shows("closed connection"):
            self.server.terminal.say(f"{self.client} {event}")

    def _reject(self) -> NoReturn:
        """Refuse a message that is too long, and let the client read why."""
        text = f"message longer than {self.args.max_message} bytes"
        self._send(f"Server {self.server.port} error: {text}\n".encode())
        self.sock.shutdown(socket.SHUT_WR)
        linger(self, LINGER_S)
        raise ConnectionOver("by server (message too long)")


# ---- Log: a record is written before its confirmation is sent ------------------------


class Log:
    """The log file. Any thread may append, without a lock.

    write(2) with O_APPEND is atomic among threads and processes, and dup2(2) puts
    another file behind the descriptor at once. What SIGKILL or a full disk cuts off in
    mid-write is a torn record: see "Repair"; for a pipe see "write_in_turn".
    """

    def __init__(self, path: str) -> None:
        """Open the file for appending, or raise OSError."""
        self.path = path
        self.file = open_to_append(path)
        self.is_pipe = is_pipe(self.file)
        self.torn = threading.Event()  # set: blank what is torn before the next write
        self.flushing: Any = contextlib.nullcontext()  # a FlushedLog's is a lock

    def append(self, entries: list[bytes]) -> tuple[int, str]:
        """Append entries, each of whole records, by one write; leave none torn.

        Return how many entries are in the log, and why not all: "" when all are.
        """
        data, logged = b"".join(entries), 0
        try:
            while True:
                if is_deleted(self.file):  # all would be lost
                    reopen(self)
                if self.torn.is_set():
                    mend(self, sure=1)
                write = write_in_turn if self.is_pipe else write_quickly
                end = logged + write(self.file, data[logged:])
                if end == len(data):
                    return len(entries), ""
                # A write that is too short does not say why: the next one does, or
                # succeeds. It begins with the record that was cut off.
                if data[end - 1 : end] != b"\n":
                    self.torn.set()
                logged = max(logged, data.rfind(b"\n", logged, end) + 1)
        except OSError as error:
            reason = error.strerror or str(error)
        ends = itertools.accumulate(map(len, entries))
        return sum(end <= logged for end in ends), reason


# ======== What only few need: everything above reads without what is below ============
# ---- Text: what records and confirmations look like ----------------------------------


@functools.lru_cache(maxsize=4)
def second_text(second: int) -> str:
    """Return the local time of a Unix second, as the log shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))


def timestamp() -> str:
    """Return the local time as "2026-11-23 14:50:15,613"."""
    milliseconds = time.time_ns() // 1_000_000
    return f"{second_text(milliseconds // 1000)},{milliseconds % 1000:03d}"


def printable(data: bytes) -> str:
    r"""Return text that prints on one line, obeys nothing, and tells all bytes apart.

    \x1b is the byte ESC, \xa0 a byte that is no UTF-8, \u00a0 the character; the
    backslash itself is \\.
    """
    text = data.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(c if c.isprintable() and c != "\\" else escaped(c) for c in text)


def escaped(char: str) -> str:
    """Return a character as `printable` shows it."""
    code = ord(char)
    if code < 0x80:
        return ascii(char)[1:-1]
    if 0xDC80 <= code <= 0xDCFF:  # an undecodable byte (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code < 0x1_0000 else f"\\U{code:08x}"


def counted(number: int, noun: str) -> str:
    """Return "1 message" or "2 messages"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_address(address: tuple[Any, ...]) -> str:
    """Return "host:port" of a socket address, or "[IPv6%zone]:port"."""
    host, port = address[:2]
    if any(address[3:]) and "%" not in host:
        with contextlib.suppress(OSError):  # the interface may be gone
            host += f"%{socket.if_indextoname(address[3])}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# ---- The main thread: what wakes it, and how it stops --------------------------------

SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = {signal.SIGTERM, signal.SIGINT} | ({SIGHUP} if SIGHUP else set())
LAST_S = 0.5  # at the stop: to accept the clients in the listen queue, ...
GRACE_S = 2.0  # ... then for messages that are being received or confirmed, ...
CUT_S = 1.0  # ... then for threads to end after their connections were cut


class Bell:
    """What the main thread waits for. The rules for signals are here, too."""

    def __init__(self, listener: socket.socket) -> None:
        """Hear signals from now on."""
        is_ignored = SIGHUP and signal.getsignal(SIGHUP) is signal.SIG_IGN  # nohup(1)
        self._outlives_terminal = is_ignored or not has_terminal()
        # A byte is a signal's number, or 0: a client has left.
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        self._alone = selectors.DefaultSelector()
        self._alone.register(self._inbox, selectors.EVENT_READ)
        self._with_clients = selectors.DefaultSelector()
        self._with_clients.register(self._inbox, selectors.EVENT_READ)
        self._with_clients.register(listener, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)  # the byte in the inbox says it all

    def wait(self, seconds: float | None, accepts: bool) -> int:
        """Return a signal's number; 0: a client waits, has left, or time is over."""
        ready = (self._with_clients if accepts else self._alone).select(seconds)
        if all(key.fileobj is not self._inbox for key, _ in ready):
            return 0
        return self._inbox.recv(1)[0]

    def ring(self) -> None:
        """Tell that a client has left (any thread)."""
        with contextlib.suppress(OSError):  # full: it will be looked for anyway
            self._outbox.send(b"\0")

    def means_stop(self, number: int) -> bool:
        """Tell whether a signal means stop: SIGHUP when its terminal was closed."""
        is_hangup = number == SIGHUP and (self._outlives_terminal or has_terminal())
        return bool(number) and not is_hangup


def stop(server: Server) -> None:
    """Serve who waits in the listen queue, close; cut connections after GRACE_S."""
    for number in SIGNALS - {SIGHUP}:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process
    live = len(server.live)
    server.stopping.set()
    # Closing the listener resets who waits in its queue, and their messages.
    deadline = time.monotonic() + LAST_S
    while time.monotonic() < deadline and server.accept():
        pass
    live = max(live, len(server.live))
    server.listener.close()
    if live and not server.args.quiet:
        how_long = f"waiting {GRACE_S:g} s at most; Ctrl-C again cuts them"
        text = f"stopping: {counted(live, 'live connection')}, {how_long}"
        server.terminal.say(text)
    for how, seconds in ((socket.SHUT_RD, GRACE_S), (socket.SHUT_RDWR, CUT_S)):
        with server.lock:
            for connection in server.live:
                # Without a message yet, the first may be on the way: await it.
                if connection.message_count or how == socket.SHUT_RDWR:
                    shut_down(connection, how)
        deadline = time.monotonic() + seconds
        while server.live and (left := deadline - time.monotonic()) > 0:
            if server.bell.wait(left, accepts=False):
                reopen_log(server)


def shut_down(connection: Connection, how: int) -> None:
    """Shut down a connection's socket, which wakes the thread that waits in it.

    Another thread calls it only while the server's lock keeps the connection among the
    live ones: they are not closed.
    """
    with contextlib.suppress(OSError):  # the client has left
        connection.sock.shutdown(how)


def reopen_log(server: Server) -> None:
    """Reopen the log after a SIGHUP, or say why not."""
    try:
        reopen(server.log)
    except OSError as error:
        reason = f"cannot reopen {server.log.path}: {error.strerror}"
        server.terminal.warn("reopen", reason)


# ---- Lingering, and PROXY lines ------------------------------------------------------

TIMEOUTS = (BlockingIOError, TimeoutError)  # by SO_RCVTIMEO, by settimeout
TIMES_OUT_IN_KERNEL = hasattr(socket, "SO_RCVTIMEO") and sys.platform != "win32"
SEND_TIMEOUT_S = 30.0  # a client that reads nothing for so long is given up
LINGER_S = 5.0  # how long a client may go on sending after an error line
DELIVERY_S = 2.0  # at the stop, for a client's kernel to acknowledge what was sent,
ACKNOWLEDGED_S = 0.002  # ... asked for so often
TCP_ENDED = (8, 9)  # TCP_CLOSE_WAIT, TCP_LAST_ACK (linux/tcp_states.h)
PROXY_TIMEOUT_S = 5.0  # the specification asks for 3 s at least


def has_ended(sock: socket.socket) -> bool:
    """Tell whether an end of file is the client's own, not that of our SHUT_RD."""
    try:
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except (AttributeError, OSError):  # no Linux: nobody knows
        return False
    return state in TCP_ENDED


def linger(connection: Connection, seconds: float) -> None:
    """Drop what a client still sends until it has all that was sent, or has left.

    Closing with bytes unread would send a reset, which overtakes what was sent.
    """
    sock = connection.sock
    deadline = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        while (left := deadline - time.monotonic()) > 0:
            set_timeouts(sock, left)
            data = sock.recv(RECEIVE_BYTES)
            connection.bytes_in += len(data)
            if not data and not unacknowledged(sock):
                return
            if not data:  # the kernel has no event for an acknowledgement
                time.sleep(ACKNOWLEDGED_S)


def unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes the peer has not acknowledged (tcp(7), SIOCOUTQ)."""
    if fcntl is None or not hasattr(termios, "TIOCOUTQ"):
        return 0
    answer = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(sock, termios.TIOCOUTQ, answer)
    return answer[0]


def read_proxy_line(connection: Connection) -> None:
    """Take the client's address from the PROXY line, byte by byte."""
    deadline, line = time.monotonic() + PROXY_TIMEOUT_S, b""
    try:
        while b"PROXY ".startswith(line[:6]) and not line.endswith(b"\n"):
            set_timeouts(connection.sock, max(deadline - time.monotonic(), 1e-3))
            byte = connection.sock.recv(1)
            line += byte
            if not byte or len(line) >= PROXY_LINE_BYTES:
                break
        if client := parse_proxy_line(line):
            connection.client = format_address(client)
    except (*TIMEOUTS, ValueError) as error:
        connection.bytes_in = len(line)  # of nothing there is no record
        if connection.server.stopping.is_set():
            raise ConnectionOver("shutdown") from None
        late = " in time" if isinstance(error, TIMEOUTS) else ""
        if line:
            text = f"{connection.client} sent no PROXY line{late}"
            connection.server.terminal.warn("proxy", text)
        raise ConnectionOver(f"by server (no PROXY line{late})") from None


PROXY_LINE_BYTES = 107  # longest with its CRLF (proxy-protocol.txt 2.1)
PORT = rb"(0|[1-9]\d{0,4})"
PROXY_LINE = re.compile(
    rb"PROXY (?:UNKNOWN[^\r\n]*|TCP([46]) (\S+) (\S+) %b %b)\r\n" % (PORT, PORT)
)


def parse_proxy_line(line: bytes) -> tuple[str, int] | None:
    """Return the client's (host, port) of a PROXY line, None for UNKNOWN.

    Raise ValueError when it breaks a rule of proxy-protocol.txt, 2.1 (version 1).
    """
    match = PROXY_LINE.fullmatch(line)
    if not match:
        raise ValueError("not a PROXY line")
    family, source, target, port, target_port = match.groups()
    if family is None:
        return None
    parse = ipaddress.IPv4Address if family == b"4" else ipaddress.IPv6Address
    host, _ = (str(parse(text.decode("ascii"))) for text in (source, target))
    if "%" in host or max(int(port), int(target_port)) > 65_535:
        raise ValueError("not an address and a port")
    return host, int(port)


def is_trusted(client: str, networks: Sequence[Any]) -> bool:
    """Tell whether a client's address is in one of the networks."""
    host = client.rpartition(":")[0].strip("[]").partition("%")[0]
    address = ipaddress.ip_address(host)
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in networks)


def set_timeouts(sock: socket.socket, receive_s: float) -> None:
    """Bound a blocking socket's receives (0 s: not at all) and sends, by TIMEOUTS.

    By the kernel where it can (socket(7)): Python's own timeout costs a second system
    call each time, and is the same for both.
    """
    if not TIMES_OUT_IN_KERNEL:
        sock.settimeout(receive_s or None)
        return
    both = (socket.SO_RCVTIMEO, receive_s), (socket.SO_SNDTIMEO, SEND_TIMEOUT_S)
    for option, s in both:
        timeval = struct.pack("@ll", *divmod(math.ceil(s * 1e6), 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, option, timeval)


def bound_sends(sock: socket.socket, patience_s: float) -> float:
    """Bound a send where it is not by the kernel; return what bounds receives then."""
    if TIMES_OUT_IN_KERNEL:
        return patience_s
    sock.settimeout(SEND_TIMEOUT_S)
    return SEND_TIMEOUT_S


def has_vanished(error: OSError) -> bool:
    """Tell a peer that reset or vanished (TCP's own timeout) from one that is idle."""
    is_ours = isinstance(error, BlockingIOError) or not error.errno
    return not (isinstance(error, TIMEOUTS) and is_ours)


# ---- Calls that keep the interpreter lock --------------------------------------------
# Python lets go of its lock around every system call, and a thread that waits for it
# wakes: with 50 busy clients that takes longer than the call. These take microseconds
# and hardly ever wait, so they keep the lock: a third more messages per second. (A disk
# that stalls then stalls all clients at once, not one after the other.)

AT_EMPTY_PATH, STATX_NLINK = 0x1000, 4
SEND_FLAGS = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)


@functools.cache
def quick(prototype: str) -> Callable[..., int]:
    """Return a function of the C library that keeps the lock (ctypes.PyDLL).

    `prototype` is its result's type, its name, its arguments' types. It returns less
    than 0 when it failed; always, where it does not exist.
    """
    result, name, *arguments = prototype.split()
    try:
        # Not at the top: some Pythons open a file with ctypes, some are built without.
        ctypes = importlib.import_module("ctypes")
        function: Callable[..., int] = getattr(ctypes.PyDLL(None), name)
        function.restype = getattr(ctypes, result)  # type: ignore[attr-defined]
        kinds = [getattr(ctypes, kind) for kind in arguments]
        function.argtypes = kinds  # type: ignore[attr-defined]
    except (ImportError, AttributeError, OSError, TypeError):  # Windows
        return lambda *_: -1
    return function


def write_quickly(file: int, data: bytes) -> int:
    """Do the same as os.write."""
    write = quick("c_ssize_t write c_int c_char_p c_size_t")
    written = write(file, data, len(data))
    return written if written >= 0 else os.write(file, data)  # or says why not


def send_quickly(sock: socket.socket, data: bytes) -> int:
    """Return how many bytes the kernel took without waiting, 0 when it failed."""
    if not SEND_FLAGS:
        return 0
    send = quick("c_ssize_t send c_int c_char_p c_size_t c_int")
    return max(0, send(sock.fileno(), data, len(data), SEND_FLAGS))


def is_deleted(file: int) -> bool:
    """Tell whether an open file has no name any more (statx(2)), or raise OSError."""
    statx = quick("c_int statx c_int c_char_p c_int c_uint c_void_p")
    answer = array.array("I", bytes(256))  # a struct statx: its fifth is stx_nlink
    buffer, _ = answer.buffer_info()
    if statx(file, b"", AT_EMPTY_PATH, STATX_NLINK, buffer) == 0:
        return answer[4] == 0
    return os.fstat(file).st_nlink == 0


# ---- The log's file: opened, reopened; a pipe; on disk before the confirmation -------


def open_log(path: str, flushed: bool) -> Log:
    """Return the log at a path, repaired as far as it may be; or raise OSError."""
    kind = FlushedLog if flushed else Log
    try:
        log = kind(path)
    except OSError as error:
        if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):
            raise
        complain(f"{path} is a pipe that nobody reads: waiting for somebody who does")
        with open(os.open(path, os.O_WRONLY), "wb", 0):
            return open_log(path, flushed)
    for stream in (1, 2):  # what is printed there must not be written over the log
        if fcntl and os.path.samestat(os.fstat(stream), os.fstat(log.file)):
            flags = fcntl.fcntl(stream, fcntl.F_GETFL)
            fcntl.fcntl(stream, fcntl.F_SETFL, flags | os.O_APPEND)
    if not log.is_pipe:
        with contextlib.suppress(OSError):
            mend(log)
    return log


def open_to_append(path: str) -> int:
    """Return a descriptor whose writes all go to the end, or raise OSError.

    ENXIO: it is a FIFO that nobody reads (open(2)). Not waited for here.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    file = os.open(path, flags, 0o644)
    if hasattr(os, "O_NONBLOCK"):
        os.set_blocking(file, True)
    return file


def reopen(log: Log) -> None:
    """Open the log's path anew, or raise OSError and keep the old file.

    Torn records in the old one are blanked now: a server that left one there, and
    comes back, finds the new file only.
    """
    with log.flushing, contextlib.ExitStack() as closing:
        new = open_to_append(log.path)
        closing.callback(os.close, new)
        if isinstance(log, FlushedLog):
            flush_name(log.path)
        old = os.dup(log.file)
        closing.callback(os.close, old)
        log.is_pipe = True  # until it is known: right for a file, too
        os.dup2(new, log.file, inheritable=False)
        log.is_pipe = is_pipe(new)
        with contextlib.suppress(OSError):  # where the system has no such path
            repair(f"/proc/self/fd/{old}", 1 if log.torn.is_set() else SURE_BYTES)


class FlushedLog(Log):
    """A log whose entries are on disk when `append` returns (--fsync): group commit.

    One write and one flush serve all that came meanwhile. Who comes first to an empty
    group leads it: while it waits for the flush of the group before, others join.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        flush_name(path)
        self.flushing = threading.RLock()  # held from a write to its flush
        self._joining = threading.Lock()  # guards the two below
        self._group: list[bytes] = []
        self._logged: concurrent.futures.Future[tuple[int, str]]

    def append(self, entries: list[bytes]) -> tuple[int, str]:
        """Do as Log.append does, and return when the entries are on disk."""
        # A reader that stalls must not stall `reopen`, which says "pipe" for a moment.
        if self.is_pipe and not is_on_disk(self.file):
            return self._write_and_flush(entries)
        with self._joining:
            if leads := not self._group:
                self._logged = concurrent.futures.Future()
            first, logged = len(self._group), self._logged
            self._group += entries
        if leads:
            with self.flushing:
                with self._joining:
                    group, self._group = self._group, []
                try:
                    logged.set_result(self._write_and_flush(group))
                except BaseException as error:  # whatever it was: others wait
                    logged.set_result((0, f"internal error: {error!r}"))
                    raise
        count, reason = logged.result()
        own = min(max(count - first, 0), len(entries))
        return own, "" if own == len(entries) else reason

    def _write_and_flush(self, group: list[bytes]) -> tuple[int, str]:
        logged, reason = super().append(group)
        try:
            if is_on_disk(self.file):
                os.fsync(self.file)
        except OSError as error:
            return 0, error.strerror or str(error)
        return logged, reason


def is_on_disk(file: int) -> bool:
    """Tell whether there is anything to flush: not of a pipe or a device."""
    return stat.S_ISREG(os.fstat(file).st_mode)


def flush_name(path: str) -> None:
    """Have the name of a file on disk, which may be new (fsync(2)), where one can."""
    with contextlib.suppress(OSError):
        folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


PIPE_TURN = threading.Lock()  # held while a thread writes to a pipe


def is_pipe(file: int) -> bool:
    """Tell whether a file is a pipe or a terminal; not the null device."""
    mode, null = os.fstat(file), os.stat(os.devnull)
    is_device = stat.S_ISCHR(mode.st_mode) and not os.path.samestat(mode, null)
    return stat.S_ISFIFO(mode.st_mode) or is_device


def write_in_turn(file: int, data: bytes) -> int:
    """Write all to a pipe, while threads and processes that do the same wait.

    For a write of more than PIPE_BUF bytes is not atomic (pipe(7)). Return how many
    bytes were taken: fewer if the reader has left in between.
    """
    with PIPE_TURN, contextlib.ExitStack() as turn:
        with contextlib.suppress(OSError, AttributeError):  # as where no flock(2) is
            fcntl.flock(file, fcntl.LOCK_EX)
            turn.callback(fcntl.flock, file, fcntl.LOCK_UN)
        written = 0
        try:
            while written < len(data):
                written += os.write(file, data[written:])
        except OSError:
            if not written:
                raise
        return written


# ---- Repair: what a killed server or a full disk left torn is blanked ----------------
# When a server starts on a log, when it leaves one, and after a disk was full.

MEND_BYTES = 64 << 20  # of the log's end are searched for torn records
LINE_BYTES = 1 << 20  # longer lines are left alone; with --max-message's default: none
STAMP = rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - "
SAMPLE = b"2026-11-23 14:50:15,613 - "  # to complete a stamp that is torn itself
REST = rb"(?:\d+(?: (?:-(?: .*)?)?)?)?"  # of a record, after the stamp; also torn
SURE_BYTES = len(b"2026-")  # less at the log's end may be what a person wrote
# What a write begins with; a message: (port), (client), (replied), (text).
RECORD = re.compile(STAMP + rb"(\d+)( - \S+ - )(?:connected$|closed: |received: )")
MESSAGE = re.compile(STAMP + rb"(\d+)( - \S+ - )(replied: Server \d+ )?received: (.*)")
# Begins with a literal, for speed, and then looks back at what must be before it.
GLUED = re.compile(rb",(?<=[^\n]\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,)\d{3} - \d+ - ")


def may_begin_record(data: bytes) -> bool:
    """Tell whether a record may begin like `data`, which may end anywhere."""
    return bool(re.fullmatch(STAMP + REST, data + SAMPLE[len(data) :], re.DOTALL))


def torn_in_line(before: bytes, line: bytes, after: bytes) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the torn records in a line, given its neighbours.

    A torn record has no line ending, so the record of another server follows on its
    line. A message that contains a record only looks like that: "received" and an
    equal "replied", or what a full disk left of it, stand beside each other then.
    """
    start = 0
    while len(line) < LINE_BYTES and (record := RECORD.search(line, start + 1)):
        end, message = record.start(), MESSAGE.match(line[start:])
        whole = message and (
            before.endswith(b" received: " + message[4])
            or is_replied(after, message[1], message[2], message[4])
            or after.isspace()  # its "replied" was torn, and is blanked
        )
        if whole or not may_begin_record(line[start:end]):
            return
        is_last = not RECORD.search(line, end + 1)
        if is_last and record[0].endswith(b"received: ") and not is_replied(
            after, record[1], record[2]
        ):
            return  # a server would have written on
        yield start, end
        start = end


def is_replied(after: bytes, port: bytes, client: bytes, text: bytes = b"") -> bool:
    """Tell whether a line is the "replied" of a message, or a torn begin of it."""
    replied = b"%b%breplied: Server %b received: %b" % (port, client, port, text)
    rest = after[len(SAMPLE) :]
    if not text:
        rest = rest[: len(replied)]
    return bool(after) and may_begin_record(after) and replied.startswith(rest)


def torn_records(data: bytes, sure: int, is_all: bool) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the torn records in a log's end; `sure`: see repair.

    If that is not all of it, the first line only says what was before the second.
    """
    last = data.rpartition(b"\n")[2]
    if len(last) >= sure and may_begin_record(last):
        yield len(data) - len(last), len(data)
    lines, offset = data.split(b"\n") if GLUED.search(data) else [], 0
    for before, line, after in zip([b"", *lines], lines, lines[1:], strict=False):
        if GLUED.search(line) and (offset or is_all):
            for start, end in torn_in_line(before, line, after):
                yield offset + start, offset + end
        offset += len(line) + 1


def repair(path: str, sure: int = SURE_BYTES) -> None:
    """Blank the torn records in a log's end, or raise OSError.

    A torn record of `sure` bytes or more at the end is one, and nobody's own words.

    What looks torn may be a write under way. So a line ending is appended first:
    that waits for such a write (inode lock), and what is torn then stays torn.
    """
    if not os.path.isfile(path) or not os.path.getsize(path):
        return
    with open(path, "rb") as file:
        low = max(0, file.seek(0, os.SEEK_END) - MEND_BYTES)
        file.seek(low)
        low += len(file.readline()) if low else 0  # a part of a line
        data = file.read()
    if data[-1:] in (b"", b"\n") and not any(torn_records(data, sure, not low)):
        return
    with open(path, "r+b", 0) as file, open(path, "ab", 0) as log:
        size, full = file.seek(0, os.SEEK_END), None
        try:
            log.write(b"\n")
            size = log.tell() - 1
        except OSError as error:  # yet it has waited, and what is there may be blanked
            if file.seek(0, os.SEEK_END) != size:
                raise
            full = error
        file.seek(low)
        for start, end in torn_records(file.read(size - low), sure, not low):
            file.seek(low + start)
            file.write(b" " * (end - start - 1) + b"\n")
        file.seek(size - 1)
        if full and file.read(1) != b"\n":
            raise full
        os.fsync(file.fileno())  # else a power cut now would bring the torn one back


def mend(log: Log, sure: int = SURE_BYTES) -> None:
    """Repair a log before anything follows, or raise OSError."""
    log.torn.clear()  # first: another thread may set it anew
    own = f"/proc/self/fd/{log.file}"  # the file may have another name by now
    try:
        if log.is_pipe:
            write_in_turn(log.file, b"\n")
        else:
            repair(own if os.path.exists(own) else log.path, sure)
    except PermissionError:  # a file that may only be appended to
        os.write(log.file, b"\n")
    except OSError:  # no space yet (copy-on-write), no reader: ask again
        log.torn.set()
        raise


# ---- Work that is pretended (--delay, --parallel) ------------------------------------


class PretendedWork:
    """Time that each message takes, and places where it is worked on.

    Who finds no place waits in the order of arrival, whatever connection it came by.
    With one place and exponential times, this is the M/M/1 queue of the textbooks.
    """

    def __init__(self, draw: Callable[[], float] | None, places: int) -> None:
        self.is_needed = bool(draw or places)
        self._draw, self._places = draw or (lambda: 0.0), places or sys.maxsize
        # Guards the two below; who has waited longest is woken when one has left.
        self._changed = threading.Condition()
        self._came = self._left = 0

    def do(self, stopping: threading.Event) -> None:
        """Wait for a place and work there; a stop lets nobody work any longer."""
        with self._changed:
            number, self._came = self._came, self._came + 1
            self._changed.wait_for(lambda: number < self._left + self._places)
        try:
            stopping.wait(self._draw())
        finally:
            with self._changed:
                self._left += 1
                self._changed.notify()


# ---- Faults to play with (--fault) ---------------------------------------------------

FAULTS = ("refuse", "hang", "reset", "slow", "close-early", "half-close")


class FaultyConnection(Connection):
    """A connection that misbehaves as --fault says, to try the balancer."""

    _is_mute = False  # True after "half-close"

    def _confirm(self, messages: list[bytes]) -> None:
        fault, seconds = self.args.fault
        if fault == "hang" or self._is_mute:
            return
        if fault == "reset":
            on = struct.pack("ii", 1, 0)  # close sends RST (socket(7), SO_LINGER)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, on)
            raise ConnectionOver("by server (fault: reset)")
        self.message_count += len(messages)
        confirmations = self._record_messages(messages)
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


# ---- Terminal: a stalled one must not stall the clients ------------------------------

LINES_WAITING = 1_000  # for a slow terminal; later ones are dropped
EVENTS_SHOWN = 20  # a second; the others are summed up in one line


class Terminal:
    """Lines for the person who watches, printed by a thread of their own.

    What clients do is shown line by line, EVENTS_SHOWN a second; the others are counted
    and summed up in one line when the second is over.
    """

    def __init__(self, quiet: bool) -> None:
        """Start the thread, or raise RuntimeError."""
        self._quiet = quiet
        # (1 or 2, line); 0: the last one. An empty line only wakes the thread.
        self._lines: queue.Queue[tuple[int, str]] = queue.Queue(LINES_WAITING)
        self._lock = threading.Lock()  # guards all below
        self._shown, self._second_ends = 0, 0.0  # events of this second
        self._counted: Counter[str] = Counter()  # the others, by noun
        self._warned: dict[str, float] = {}  # kind: not again before
        self._thread = threading.Thread(target=self._run, name="terminal", daemon=True)
        self._thread.start()

    def say(self, line: str, file: int = 1) -> None:
        """Have a line printed; drop it when too many wait."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait((file, line))

    def warn(self, kind: str, text: str) -> None:
        """Say what is wrong on standard error, once a second for each kind."""
        with self._lock:
            now = time.monotonic()
            if now >= self._warned.get(kind, 0.0):
                self._warned[kind] = now + 1
                self.say(f"server2.py: {text}", 2)

    def shows(self, noun: str, number: int = 1) -> bool:
        """Tell whether events are to be said line by line; else they are counted."""
        if self._quiet:
            return False
        with self._lock:
            if not self._counted and time.monotonic() >= self._second_ends:
                self._shown, self._second_ends = 0, time.monotonic() + 1
            if self._shown + number <= EVENTS_SHOWN:
                self._shown += number
                return True
            if not self._counted:
                self.say("")  # their sum is due when the second ends
            self._counted[noun] += number
            return False

    def close(self) -> None:
        """Wait until all is printed, for CUT_S at most: nobody may be reading."""
        with contextlib.suppress(queue.Full):
            self._lines.put((0, ""), timeout=CUT_S)
            self._thread.join(CUT_S)

    def _run(self) -> None:
        """Print what is queued (thread terminal)."""
        file = 1
        while file:
            with self._lock:
                left = self._second_ends - time.monotonic() if self._counted else None
            try:
                file, line = self._lines.get(timeout=left and max(0, left))
            except queue.Empty:
                file, line = 1, self._sums()
            if not file:
                line = self._sums()
            with contextlib.suppress(OSError, ValueError):  # nobody reads it
                write_whole(line, sys.stderr if file == 2 else sys.stdout)

    def _sums(self) -> str:
        """Return a line on the events that were counted, "" for none; begin anew."""
        with self._lock:
            sums = [counted(n, f"more {noun}") for noun, n in self._counted.items()]
            self._counted.clear()
            return "… " + " and ".join(sums) if sums else ""


def write_whole(line: str, stream: TextIO) -> None:
    """Write a line, in what the encoding can show, also where it must wait; OSError."""
    line, encoding = f"{line}\n" if line else "", stream.encoding or "utf-8"
    try:
        data = line.encode(encoding)
    except UnicodeEncodeError:
        data = line.replace("…", "...").encode(encoding, "backslashreplace")
    while data:
        try:
            data = data[os.write(stream.fileno(), data) :]
        except BlockingIOError:  # somebody made it non-blocking
            select.select([], [stream], [])


# ---- Surroundings: streams, terminals, limits ----------------------------------------

STACK_BYTES = 512 << 10  # per thread: calls here are shallow, threads many


def open_missing_streams() -> None:
    """Open descriptors 0, 1, 2 that were closed, before a file or socket gets them."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


def has_terminal() -> bool:
    """Tell whether the process has a controlling terminal, its window open (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | getattr(os, "O_NOCTTY", 0)))
    except OSError as error:  # for want of a descriptor it is not known: it has
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return True


def use_what_the_system_gives() -> None:
    """Raise the limit of open files; let a thread that wakes wait for its turn.

    (It would only find the interpreter lock taken: sched(7), SCHED_BATCH.)
    """
    with contextlib.suppress(AttributeError, ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    threading.stack_size(STACK_BYTES)


def who_listens(port: int) -> str:
    """Return the command that shows which process listens on a port."""
    if shutil.which("ss"):
        return f"ss -ltnp 'sport = :{port}'"
    if sys.platform == "win32":
        return f"netstat -ano | findstr :{port}"
    return f"lsof -nP -iTCP:{port} -sTCP:LISTEN"


# ---- Command line --------------------------------------------------------------------

VERSION = "2.0"


def complain(text: str) -> int:
    """Say in one line on standard error what is wrong; return the exit code."""
    print(f"server2.py: {text}", file=sys.stderr, flush=True)
    return 2


class Parser(argparse.ArgumentParser):
    """Say what is wrong in one line; the whole usage is one `--help` away."""

    def error(self, message: str) -> NoReturn:
        """Print one line on standard error; exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def in_range(
    convert: Callable[[str], Any], what: str, low: float, high: float = sys.maxsize
) -> Callable[[str], Any]:
    """Return a parser of numbers in a range, which says what is no such number."""

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if text.isascii() and low <= (value := convert(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return parse


port = in_range(int, "a port (0 to 65535)", 0, 65_535)
seconds = in_range(float, "a time in seconds from 0", 0, 366 * 86_400)
count = in_range(int, "a whole number from 0", 0)
size = in_range(int, "a number of bytes from 1", 1)


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return the network of "10.0.0.0/8", "127.0.0.1" or "fd00::/8"."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_network(text, strict=False)
    raise argparse.ArgumentTypeError(f"{text!r} is not a network like 10.0.0.0/8")


def delay(text: str) -> Callable[[], float] | None:
    """Return what draws the time of a message's work, None for no work at all."""
    if ":" not in text:
        fixed = seconds(text)
        return (lambda: fixed) if fixed else None
    kind, *times = text.split(":")
    drawn = [seconds(time) for time in times]
    if kind == "exp" and len(drawn) == 1 and drawn[0]:
        return functools.partial(random.expovariate, 1 / drawn[0])
    if kind == "uniform" and len(drawn) == 2 and drawn == sorted(drawn):
        return functools.partial(random.uniform, *drawn)
    raise argparse.ArgumentTypeError(f"{text!r} is not S, exp:MEAN or uniform:LOW:HIGH")


def fault(text: str) -> tuple[str, float]:
    """Return (kind, seconds) of "slow:SECONDS" or of another one of FAULTS."""
    kind, colon, rest = text.partition(":")
    if kind not in FAULTS or (kind == "slow") != bool(colon):
        kinds = ", ".join(FAULTS).replace("slow", "slow:SECONDS")
        raise argparse.ArgumentTypeError(f"{text!r} is none of {kinds}")
    return kind, seconds(rest or "0")


# A row: option, metavar, type, default, help. A switch has neither metavar nor default.
OPTIONS: tuple[tuple[str, str, Any, Any, str], ...] = (
    ("--host", "HOST", str, "127.0.0.1", "listen on this"),
    ("--log", "FILE", str, "server_log.txt", "append records to this file"),
    ("--fsync", "", None, None, "confirm only what is on disk"),
    ("--max-message", "BYTES", size, 65_536, "reject longer messages"),
    ("--message-pause", "S", seconds, 0.2,
     "for clients that send no newline: silence that ends a message; 0: none does"),
    ("--idle-timeout", "S", seconds, 3_600,
     "close after so long without a byte; 0: never"),
    ("--max-connections", "N", count, 0, "let further clients wait; 0: no limit"),
    ("--accept-proxy", "CIDR", network, [],
     "require a PROXY protocol version 1 line from these addresses; repeatable"),
    ("--delay", "S", delay, "0", "pretend work for each message: 0.02, exp:0.02"
     " (exponential, mean 0.02 s) or uniform:0.01:0.03"),
    ("--parallel", "N", count, 0,
     "work on so many messages at a time, the others wait in order; 0: no limit"),
    ("--fault", "KIND", fault, ("", 0.0), "misbehave, to try the balancer: refuse,"
     " hang, reset, slow:SECONDS, close-early or half-close"),
    ("--quiet", "", None, None, "print the address and errors only"),
)  # fmt: skip


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, or exit with one line."""
    about = "Confirm every message (a line), after recording it in a log."
    parser = Parser(prog="server2.py", description=about)
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    words = "listen here; 0 takes a free one"
    parser.add_argument("port", metavar="PORT", type=port, help=words)
    for name, metavar, kind, default, words in OPTIONS:
        if not metavar:
            parser.add_argument(name, action="store_true", help=words)
            continue
        shown = default if isinstance(default, (int, float, str)) else "off"
        action = "append" if isinstance(default, list) else "store"
        parser.add_argument(
            name, metavar=metavar, type=kind, default=default, action=action,
            help=f"{words} (default: {shown})",
        )  # fmt: skip
    return parser.parse_args(argv)


LISTEN_QUEUE = 4_096  # clients that wait for accept; the kernel caps it (somaxconn)


def open_listener(args: argparse.Namespace) -> socket.socket:
    """Return a listening socket, or raise OSError; one that is only bound refuses."""
    answers = socket.getaddrinfo(args.host, args.port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = answers[0]
    listener = socket.socket(family, kind, protocol)
    # Accepted sockets inherit the first two: find clients that vanished, do not let a
    # second confirmation wait for the client's acknowledgement of the first.
    for level, option, system in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, os.name),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, os.name),
        (socket.SOL_SOCKET, socket.SO_REUSEADDR, "posix"),  # elsewhere: two on a port
    ):
        with contextlib.suppress(OSError):
            listener.setsockopt(level, option, int(os.name == system))
    try:
        listener.bind(address)
        if args.fault[0] != "refuse":
            listener.listen(LISTEN_QUEUE)
    except OSError:
        listener.close()
        raise
    return listener


def why_not_listening(error: Exception, args: argparse.Namespace) -> str:
    """Return what is wrong with the address, and what to do, in one line."""
    if isinstance(error, (socket.gaierror, UnicodeError)):  # the latter: idna
        return f"cannot resolve {args.host!r}; try --host 127.0.0.1"
    where = format_address((args.host, args.port))
    not_allowed = f"not allowed to listen on {where}: choose a port from 1024"
    told = {
        errno.EADDRINUSE: f"port {args.port} is in use ({where}): an earlier server may"
        f" still run; find it with {who_listens(args.port)}, or choose another port",
        errno.EADDRNOTAVAIL: f"{where} is no address of this machine;"
        " try --host 0.0.0.0",
        errno.EACCES: not_allowed,
        errno.EPERM: not_allowed,
    }
    reason = getattr(error, "strerror", error)
    return told.get(getattr(error, "errno", 0), f"cannot listen on {where}: {reason}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until a signal; return the exit code."""
    open_missing_streams()
    args = parse_args(argv)
    try:
        listener = open_listener(args)
    except (OSError, UnicodeError) as error:
        complain(why_not_listening(error, args))
        return 1 if getattr(error, "errno", 0) == errno.EADDRINUSE else 2
    with listener:
        try:
            log = open_log(args.log, args.fsync)
        except OSError as error:
            return complain(f"cannot write the log {args.log}: {error.strerror}")
        use_what_the_system_gives()
        try:
            terminal = Terminal(args.quiet)
            server = Server(listener, log, terminal, args)
        except (OSError, RuntimeError) as error:  # no more threads, or descriptors
            return complain(f"cannot start: {error}")
        name = format_address(listener.getsockname())
        fault = f" (fault: {args.fault[0]})" if args.fault[0] else ""
        terminal.say(f"listening on {name}{fault}")
        if not args.quiet:
            terminal.say(f"logging to {os.path.abspath(args.log)}")
        server.run()
    terminal.close()
    return 0


if __name__ == "__main__":
    exit_status = main()
    for signal_number in SIGNALS:  # none that comes late changes the exit status
        signal.signal(signal_number, signal.SIG_IGN)
    sys.exit(exit_status)
