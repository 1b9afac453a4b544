r"""What the tests share: start a script, dial it, and fakes that misbehave.

    class MyTest(ScriptTestCase):
        def test_a_message_is_confirmed(self) -> None:
            server = self.start("server2.py", "0")
            with dial(server) as client:
                client.sendall(b"Hello\n")
                reply = read_line(client)
            self.assertEqual(reply, f"Server {server.port} received: Hello\n".encode())

Started scripts (`Running`), fake servers (`Backend`) and sockets that a test case
made through its own methods are stopped, waited for and closed when it ends, and a
traceback on any script's standard error fails the test, as does a process left over.

Waiting: every socket has a timeout, every wait a deadline, and `wait_until` is the
only place that polls. Deadlines are long, because machines are slow at times; no test
depends on something happening quickly, except where it compares two measured times.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 30.0  # for whatever takes milliseconds on a quiet machine
SOCKET_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.01
LONG = bool(os.environ.get("LAB_LONG"))
THOROUGH = bool(LONG or os.environ.get("CI"))  # the default run is short
DEV = bool(os.environ.get("LAB_DEV"))
# What a system may refuse is refused to every script: tests/refused/sitecustomize.py.
REFUSED = bool(os.environ.get("LAB_REFUSED"))
LISTENING = re.compile(r"listening on (\S+):(\d+)")
# What the surroundings must not decide for a script under test.
FOREIGN_VARIABLES = ("LISTEN_", "NOTIFY_SOCKET", "PYTHON", "NO_COLOR", "COLUMNS")

# A shell's background commands ignore it, and what they start would be deaf to it, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# ---- Waiting ---------------------------------------------------------------------


def wait_until(
    condition: Callable[[], Any], timeout: float = DEADLINE_S, what: str = "condition"
) -> Any:
    """Return the first true value of `condition()`, asked every 10 ms.

    Raises AssertionError that says `what` it waited for after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain: {what}")
        time.sleep(POLL_INTERVAL_S)
    return value


def in_parallel(*actions: Callable[[], Any], timeout: float = 60.0) -> list[Any]:
    """Run every action on a thread of its own; return their results in order.

    The first exception of any is raised here, after all have ended.
    """
    results: list[Any] = [None] * len(actions)
    errors: list[BaseException] = []

    def run(index: int, action: Callable[[], Any]) -> None:
        try:
            results[index] = action()
        except BaseException as error:  # handed on to the caller's thread below
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=pair, name=f"parallel-{pair[0]}", daemon=True)
        for pair in enumerate(actions)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    if any(thread.is_alive() for thread in threads):
        raise AssertionError(f"not all parallel actions ended in {timeout:g} s")
    return results


# ---- Sockets ---------------------------------------------------------------------


class HasAddress(Protocol):
    """A `Running`, a `Backend`, a `BlackHole`: whatever has an address."""

    @property
    def address(self) -> str:
        """Return "host:port"."""


Target = str | tuple[str, int] | HasAddress


def address_of(target: Target) -> str:
    """Return "host:port" of whatever can be dialled."""
    if isinstance(target, str):
        return target
    if isinstance(target, tuple):
        host, port = target
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return target.address


def split_address(target: Target) -> tuple[str, int]:
    """Return (host, port) of whatever can be dialled, without brackets."""
    host, _, port = address_of(target).rpartition(":")
    return host.strip("[]"), int(port)


def dial(target: Target, timeout: float = SOCKET_TIMEOUT_S) -> socket.socket:
    """Return a connected TCP socket with `timeout` seconds on every operation."""
    connection = socket.create_connection(split_address(target), timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_line(connection: socket.socket, limit: int = 1 << 20) -> bytes:
    """Return bytes up to and including a line feed, or what came before end of file.

    Looks before it takes, so that nothing after the line is taken.
    """
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < limit:
        ahead = connection.recv(65536, socket.MSG_PEEK)
        if not ahead:
            break
        line += read_exactly(connection, ahead.find(b"\n") + 1 or len(ahead))
    return bytes(line)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Return `size` bytes, fewer only at end of file."""
    data = bytearray()
    while len(data) < size and (piece := connection.recv(min(size - len(data), 65536))):
        data += piece
    return bytes(data)


def read_to_end(connection: socket.socket) -> bytes:
    """Return all bytes up to end of file."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def send_reset(connection: socket.socket) -> None:
    """Close with a reset instead of an end of file (SO_LINGER 0, socket(7))."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def is_reset(connection: socket.socket) -> bool:
    """Read to the end: True for a reset, False for a clean end of file."""
    try:
        read_to_end(connection)
    except ConnectionResetError:
        return True
    return False


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that was free a moment ago: only where port 0 cannot serve.

    None of those that the system gives to others for port 0 (RFC 6335, 6; Linux).
    """
    while True:
        where = (host, random.randrange(20_000, 32_000))
        with contextlib.suppress(OSError), socket.create_server(where) as probe:
            return int(probe.getsockname()[1])


def localhost_resolves() -> bool:
    """Tell whether the system knows the name: a bare root has no /etc/hosts."""
    try:
        return bool(socket.getaddrinfo("localhost", 0))
    except OSError:
        return False


@contextlib.contextmanager
def refusing_address(host: str = "127.0.0.1") -> Iterator[str]:
    """Give an address that refuses connections, and stays taken meanwhile."""
    with socket.socket() as holder:
        holder.bind((host, 0))
        yield f"{host}:{holder.getsockname()[1]}"


class BlackHole:
    """A listener whose accept queue is full: a connect to it hangs (Linux)."""

    def __init__(self) -> None:
        """Listen with the shortest queue, and fill it."""
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port = int(self._listener.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        self._fillers: list[socket.socket] = []
        for _ in range(8):
            filler = socket.socket()
            self._fillers.append(filler)
            filler.settimeout(0.3)
            try:
                filler.connect(("127.0.0.1", self.port))
            except TimeoutError:
                return
        self.close()
        raise unittest.SkipTest("this system's listen queue cannot be filled")

    def close(self) -> None:
        """Close the listener and what fills its queue."""
        for connection in (*self._fillers, self._listener):
            connection.close()


@contextlib.contextmanager
def black_hole() -> Iterator[BlackHole]:
    """Give an address where a connect neither succeeds nor fails."""
    hole = BlackHole()
    try:
        yield hole
    finally:
        hole.close()


# ---- A fake server ---------------------------------------------------------------
# `Backend(behaviour)` accepts on a thread, and runs `behaviour(visit)` on a thread
# per connection. A behaviour is any callable; the usual ones follow below. A list of
# behaviours serves one connection each, the last one all later connections.


TCP_ESTABLISHED = 1  # the first byte of struct tcp_info, linux/tcp.h


class Visit:
    """One connection to a `Backend`: its socket, and what was seen on it."""

    def __init__(self, backend: Backend, index: int, connection: socket.socket) -> None:
        """Belong to `backend` as its connection number `index`, from 0."""
        self.backend = backend
        self.index = index
        self.socket = connection
        self.peer: tuple[Any, ...] = ()
        self.began = time.monotonic()  # when it was accepted, seconds
        self._lock = threading.Lock()  # guards _received
        self._received = bytearray()
        self.end = ""  # "eof", "reset" or "timeout" once reading has ended
        self.error: BaseException | None = None  # what ended the behaviour early
        self.done = threading.Event()  # the connection is closed
        with contextlib.suppress(OSError):  # the client may have gone already
            self.peer = connection.getpeername()

    @property
    def has_ended(self) -> bool:
        """Tell whether the other side has closed: the kernel knows before our thread.

        A connection that is closed and another one opened in its place are never
        live at once, however late the thread of the first one hears of its end.
        """
        if self.done.is_set():
            return True
        try:
            state = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except (OSError, AttributeError):  # just closed, or no Linux
            return self.done.is_set() or self.socket.fileno() < 0
        return state != TCP_ESTABLISHED

    @property
    def received(self) -> bytes:
        """Return everything read so far, in order."""
        with self._lock:
            return bytes(self._received)

    def _record(self, data: bytes) -> None:
        with self._lock:
            self._received += data

    def read(self, size: int = 65536) -> bytes:
        """Return the next bytes (recorded), b"" at end of file or after a reset."""
        try:
            data = self.socket.recv(size)
        except ConnectionResetError:
            self.end = "reset"
            return b""
        except TimeoutError:
            self.end = "timeout"
            return b""
        self._record(data)
        if not data:
            self.end = "eof"
        return data

    def read_line(self) -> bytes:
        """Return the next line with its end, or what came before the end."""
        try:
            line = read_line(self.socket)
        except ConnectionResetError:
            self.end = "reset"
            return b""
        except TimeoutError:
            self.end = "timeout"
            return b""
        self._record(line)
        if not line.endswith(b"\n"):
            self.end = "eof"
        return line

    def send(self, data: bytes) -> None:
        """Send all of `data`."""
        self.socket.sendall(data)

    def pause(self, seconds: float) -> bool:
        """Wait; True when the backend is being closed meanwhile."""
        return self.backend.closing.wait(seconds)


Behaviour = Callable[[Visit], None]


def echo(visit: Visit) -> None:
    """Send back every byte; pass an end of file on."""
    while data := visit.read():
        visit.send(data)


def sink(visit: Visit) -> None:
    """Read (and record) everything to the end, send nothing."""
    while visit.read():
        pass


def silent(visit: Visit) -> None:
    """Read nothing and send nothing until the backend is closed."""
    visit.backend.closing.wait()


def accept_then_close(visit: Visit) -> None:
    """Close at once, without reading."""


def reset_at_once(visit: Visit) -> None:
    """Answer the connection with a reset, without reading."""
    send_reset(visit.socket)


def banner(text: bytes) -> Behaviour:
    """Speak first, then echo."""

    def behave(visit: Visit) -> None:
        visit.send(text)
        echo(visit)

    return behave


def reset_after(sent: bytes, reads: int = 1) -> Behaviour:
    """Read at least `reads` bytes, send `sent`, then reset: a reply cut short."""

    def behave(visit: Visit) -> None:
        while len(visit.received) < reads and visit.read():
            pass
        visit.send(sent)
        # A reset overtakes bytes that the other end has not read: give them time.
        visit.pause(0.2)
        send_reset(visit.socket)

    return behave


def half_close_first(sent: bytes = b"") -> Behaviour:
    """Send `sent`, end that direction at once, then read to the end."""

    def behave(visit: Visit) -> None:
        visit.send(sent)
        visit.socket.shutdown(socket.SHUT_WR)
        sink(visit)

    return behave


def reply_after_eof(sent: bytes) -> Behaviour:
    """Read to the end of file, and only then send `sent`."""

    def behave(visit: Visit) -> None:
        sink(visit)
        visit.send(sent)

    return behave


def slow_reader(size: int, seconds: float) -> Behaviour:
    """Read at most `size` bytes every `seconds`, to the end."""

    def behave(visit: Visit) -> None:
        while visit.read(size) and not visit.pause(seconds):
            pass

    return behave


def confirm(
    delay: float | Callable[[int], float] = 0.0, name: str | None = None
) -> Behaviour:
    """Confirm lines like server2.py, each after `delay` seconds.

    `delay` may be a function of the message's number on its connection, from 0.
    `name` replaces the port in "Server <port> received: ".
    """

    def behave(visit: Visit) -> None:
        server = name or str(visit.backend.port)
        number = 0
        while line := visit.read_line():
            wait = delay(number) if callable(delay) else delay
            if wait and visit.pause(wait):
                return
            visit.send(f"Server {server} received: ".encode() + line)
            number += 1

    return behave


class Backend:
    """A TCP server on threads of the test's process, with a chosen behaviour."""

    def __init__(
        self,
        behaviour: Behaviour | Sequence[Behaviour] = echo,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        backlog: int = 1024,
        timeout: float = 30.0,
        receive_buffer: int = 0,
    ) -> None:
        """Listen at once; `timeout` (s) bounds each socket operation.

        `receive_buffer` (bytes) makes the kernel's buffer small, for tests of
        back-pressure.
        """
        self._behaviours = [behaviour] if callable(behaviour) else list(behaviour)
        self._timeout = timeout
        self.closing = threading.Event()
        self._lock = threading.Lock()  # guards visits, peak, _live
        self.visits: list[Visit] = []  # every connection ever, in order of accept
        self.peak = 0  # how many were live at once, as the kernel saw them
        self._live: list[Visit] = []
        self._threads: list[threading.Thread] = []  # the accept thread's own
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer:
            self._listener.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer
            )
        self._listener.bind((host, port))
        self._listener.listen(backlog)
        self.port = int(self._listener.getsockname()[1])
        self.address = address_of((host, self.port))
        self._acceptor = threading.Thread(
            target=self._accept, name=f"backend-{self.port}", daemon=True
        )
        self._acceptor.start()

    def __enter__(self) -> Backend:
        """Return itself: `with Backend(echo) as backend:`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @property
    def current(self) -> int:
        """Return how many connections are live now."""
        with self._lock:
            return sum(not visit.done.is_set() for visit in self.visits)

    @property
    def total(self) -> int:
        """Return how many connections were accepted so far."""
        with self._lock:
            return len(self.visits)

    @property
    def received(self) -> bytes:
        """Return what all connections sent, joined in order of accept."""
        with self._lock:
            return b"".join(visit.received for visit in self.visits)

    def visit(self, index: int = 0, timeout: float = DEADLINE_S) -> Visit:
        """Return connection number `index`, waiting until it exists."""
        wait_until(
            lambda: self.total > index,
            timeout,
            f"connection {index} at the backend {self.address}",
        )
        with self._lock:
            return self.visits[index]

    def close(self) -> None:
        """Stop listening, cut live connections, wait for every thread."""
        if self.closing.is_set():
            return
        self.closing.set()
        with contextlib.suppress(OSError):  # wakes accept (not by close, Linux)
            self._listener.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):  # where shutdown does not, a visit does
            socket.create_connection(split_address(self.address), 1).close()
        self._acceptor.join(DEADLINE_S)
        self._listener.close()
        with self._lock:
            visits = list(self.visits)
        for visit in visits:
            with contextlib.suppress(OSError):
                visit.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE_S)

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self.closing.is_set():
                connection.close()
                return
            connection.settimeout(self._timeout)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                visit = Visit(self, len(self.visits), connection)
                self.visits.append(visit)
                self._live = [other for other in self._live if not other.has_ended]
                self._live.append(visit)
                self.peak = max(self.peak, len(self._live))
            self._threads.append(
                threading.Thread(
                    target=self._serve,
                    args=(visit,),
                    name=f"visit-{visit.index}",
                    daemon=True,
                )
            )
            self._threads[-1].start()

    def _serve(self, visit: Visit) -> None:
        behaviour = self._behaviours[min(visit.index, len(self._behaviours) - 1)]
        try:
            behaviour(visit)
        except OSError as error:  # the other side left: for the test to look at
            visit.error = error
        finally:
            visit.socket.close()
            visit.done.set()


# ---- Processes, as /proc shows them ----------------------------------------------


def _proc(pid: int, name: str) -> Path:
    if not Path("/proc/self/stat").exists():
        raise unittest.SkipTest("needs /proc (Linux)")
    return Path("/proc", str(pid), name)


def descriptors(pid: int) -> int:
    """Return how many descriptors the process has open."""
    return len(os.listdir(_proc(pid, "fd")))


def threads(pid: int) -> int:
    """Return how many threads the process has."""
    return len(os.listdir(_proc(pid, "task")))


def memory_kib(pid: int) -> int:
    """Return the process's resident memory in KiB (VmRSS, proc(5))."""
    status = _proc(pid, "status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


def cpu_s(pid: int) -> float:
    """Return user plus system seconds that the process has used."""
    fields = _proc(pid, "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _process_table() -> Iterator[tuple[int, str, int, int]]:
    """Yield (pid, state, parent, group) of every process (proc(5), stat)."""
    for entry in os.listdir(_proc(os.getpid(), "stat").parent.parent):
        if entry.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                stat = Path("/proc", entry, "stat").read_text()
                state, parent, group = stat.rpartition(")")[2].split()[:3]
                yield int(entry), state, int(parent), int(group)


def children(pid: int) -> list[int]:
    """Return the live child processes (no zombies) of a process."""
    return [
        child
        for child, state, parent, _ in _process_table()
        if parent == pid and state != "Z"
    ]


def family(pid: int) -> list[int]:
    """Return the process and all that descend from it: a balancer's workers too."""
    return [pid, *(member for child in children(pid) for member in family(child))]


def group_members(group: int) -> list[int]:
    """Return the live processes of a process group."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, AttributeError):
        return []  # nobody, or a system without process groups
    except PermissionError:
        pass
    return [
        pid
        for pid, state, _, owner in _process_table()
        if owner == group and state != "Z"
    ]


def marked_processes(name: str, value: str) -> list[int]:
    """Return the live processes that were started with this variable (proc(5)).

    It is inherited: so a child is found whatever group or session it is in.
    """
    mark = f"{name}={value}".encode()
    found = []
    for pid, state, _, _ in _process_table():
        with contextlib.suppress(OSError):  # it ended meanwhile, or is not ours
            variables = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
            if state != "Z" and mark in variables:
                found.append(pid)
    return found


# ---- Started scripts -------------------------------------------------------------


def script_command(script: str, args: Iterable[object]) -> list[str]:
    """Return the command line that starts a script of the repository."""
    flags = ["-X", "dev", "-W", "error"] if DEV else []
    return [sys.executable, *flags, str(ROOT / script), *(str(arg) for arg in args)]


def script_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a script: without what could change its doings."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN_VARIABLES)
    }
    environment |= dict(extra or {})
    if REFUSED:
        folders = [str(ROOT / "tests/refused"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    return environment


def needs_permission(what: str) -> Callable[[Any], Any]:
    """Skip a test of what LAB_REFUSED refuses."""
    return unittest.skipIf(REFUSED, f"LAB_REFUSED refuses {what}")


class _Drain(threading.Thread):
    """Reads a pipe to its end, so that a script never waits for its reader."""

    def __init__(self, pipe: Any, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._pipe = pipe
        self._data = bytearray()
        self._changed = threading.Condition()  # guards _data and _ended
        self._ended = False
        self.start()

    def run(self) -> None:
        with self._pipe:
            while data := os.read(self._pipe.fileno(), 65536):
                with self._changed:
                    self._data += data
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def content(self) -> bytes:
        with self._changed:
            return bytes(self._data)

    def wait_for(self, found: Callable[[bytes], Any], timeout: float) -> Any:
        """Return the first true `found(content)`; None at the end or the deadline."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                if value := found(bytes(self._data)):
                    return value
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    return None
                self._changed.wait(left)


class Running:
    """One started script: its address, its output, and how to stop it."""

    def __init__(
        self,
        script: str,
        *args: object,
        cwd: Path | str,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        preexec_fn: Callable[[], None] | None = None,
    ) -> None:
        """Start `script` in the folder `cwd`, in a process group of its own.

        `preexec_fn` runs in the child before Python starts (limits and the like).
        """
        self.script = script
        self._process = subprocess.Popen(
            script_command(script, args),
            cwd=cwd,
            env=script_environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=preexec_fn,
        )
        self._stdout = _Drain(self._process.stdout, f"{script}-stdout")
        self._stderr = _Drain(self._process.stderr, f"{script}-stderr")
        self._listening: tuple[str, int] | None = None

    @property
    def pid(self) -> int:
        """Return the process's id, which is its group's id as well."""
        return self._process.pid

    @property
    def host(self) -> str:
        """Return the host that the first line names (an IPv6 one in brackets)."""
        return self.listening()[0]

    @property
    def port(self) -> int:
        """Return the port that the first line names."""
        return self.listening()[1]

    @property
    def address(self) -> str:
        """Return "host:port" of the first line."""
        return f"{self.host}:{self.port}"

    @property
    def returncode(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.poll()

    def listening(self, timeout: float = DEADLINE_S) -> tuple[str, int]:
        """Return (host, port) of the first line, waiting for it.

        Raises AssertionError with what the script said instead.
        """
        if self._listening is None:
            line = self._stdout.wait_for(
                lambda data: data.partition(b"\n")[0] if b"\n" in data else b"", timeout
            )
            match = LISTENING.match((line or b"").decode("utf-8", "replace"))
            if not match:
                raise AssertionError(
                    f"{self.script} did not say where it listens; exit code "
                    f"{self.returncode}, it said {self.stdout_text()!r} and "
                    f"{self.stderr_text()!r}"
                )
            self._listening = match[1], int(match[2])
        return self._listening

    def stdout_text(self) -> str:
        """Return what it wrote to standard output so far."""
        return self._stdout.content().decode("utf-8", "surrogateescape")

    def stderr_text(self) -> str:
        """Return what it wrote to standard error so far."""
        return self._stderr.content().decode("utf-8", "surrogateescape")

    def stdout_lines(self) -> list[str]:
        """Return the complete lines on standard output so far, without ends."""
        return self.stdout_text().split("\n")[:-1]

    def wait_for_line(
        self, pattern: str, timeout: float = DEADLINE_S, count: int = 1
    ) -> str:
        """Return the `count`-th complete line of standard output with `pattern`.

        Raises AssertionError with the output so far when it does not come.
        """
        return self._wait_for_line(self._stdout, pattern, timeout, count)

    def wait_for_error(
        self, pattern: str, timeout: float = DEADLINE_S, count: int = 1
    ) -> str:
        """Return the `count`-th complete line of standard error with `pattern`."""
        return self._wait_for_line(self._stderr, pattern, timeout, count)

    def _wait_for_line(
        self, drain: _Drain, pattern: str, timeout: float, count: int
    ) -> str:
        def find(data: bytes) -> str | None:
            lines = data.decode("utf-8", "surrogateescape").split("\n")[:-1]
            matching = [line for line in lines if re.search(pattern, line)]
            return matching[count - 1] if len(matching) >= count else None

        line = drain.wait_for(find, timeout)
        if line is None:
            raise AssertionError(
                f"{self.script}: no line number {count} with {pattern!r} within "
                f"{timeout:g} s; it said {self.stdout_text()[-4000:]!r} and "
                f"{self.stderr_text()[-4000:]!r}"
            )
        return str(line)

    def signal(self, number: int) -> None:
        """Send a signal to the script alone."""
        self._process.send_signal(number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the script and its children, as Ctrl-C in a terminal."""
        os.killpg(self.pid, number)

    def wait(self, timeout: float = DEADLINE_S) -> int:
        """Return the exit code; AssertionError when it still runs at the deadline."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.script} still runs after {timeout:g} s; it said "
                f"{self.stdout_text()[-2000:]!r} and {self.stderr_text()[-2000:]!r}"
            ) from None
        # The pipes end with the last process that holds them: a forgotten child
        # holds them too, and `finish` names it.
        self._stdout.join(2)
        self._stderr.join(2)
        return code

    def stop(self, timeout: float = DEADLINE_S) -> int:
        """Send SIGTERM, wait, and return the exit code."""
        if self.returncode is None:
            self._process.terminate()
        return self.wait(timeout)

    def kill(self) -> None:
        """End the process with SIGKILL (not its children), and wait for it."""
        self._process.kill()
        self.wait()

    def finish(self) -> None:
        """Stop what still runs, and fail for a traceback or a process left over."""
        problems = []
        try:
            self.stop()
        except AssertionError as error:
            problems.append(str(error))
        try:
            wait_until(lambda: not group_members(self.pid), 5, "the group's end")
        except AssertionError:
            left = group_members(self.pid)
            problems.append(f"{self.script} left processes behind: {left}")
        if problems:
            with contextlib.suppress(ProcessLookupError):
                self.signal_group(getattr(signal, "SIGKILL", signal.SIGTERM))
            self._process.wait(DEADLINE_S)
        self._stdout.join(DEADLINE_S)
        self._stderr.join(DEADLINE_S)
        if "Traceback" in self.stderr_text() + self.stdout_text():
            problems.append(f"{self.script} printed {self.stderr_text()}")
        if problems:
            raise AssertionError("; ".join(problems))


def run_script(
    script: str,
    *args: object,
    cwd: Path | str,
    env: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    preexec_fn: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end; its output as text, line ends as they were.

    Raises AssertionError when it is still running after `timeout` seconds, and for a
    traceback. Bytes that are not UTF-8 come as surrogates.
    """
    running = Running(script, *args, cwd=cwd, env=env, preexec_fn=preexec_fn)
    try:
        code = running.wait(timeout)
    finally:
        running.finish()
    return subprocess.CompletedProcess(
        [script, *(str(arg) for arg in args)],
        code,
        running.stdout_text(),
        running.stderr_text(),
    )


MAIN_LOOP = """
import contextlib, io, json, sys, traceback
folder, script, cases = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, folder)
sys.dont_write_bytecode = True
main = __import__(script[:-3]).main
for case in cases:
    sys.argv = [script, *case]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(case)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def run_main(
    script: str,
    cases: Iterable[Sequence[str]],
    *,
    cwd: Path | str,
    timeout: float = 60.0,
) -> list[subprocess.CompletedProcess[str]]:
    """Call `main(argv)` of a script for each case, all in one new process.

    For arguments that end it at once: starting Python for each takes far longer.
    """
    cases = [list(case) for case in cases]
    done = subprocess.run(
        [sys.executable, "-c", MAIN_LOOP, str(ROOT), script, json.dumps(cases)],
        cwd=cwd,
        env=script_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if len(answers) != len(cases):
        raise AssertionError(f"{script} {cases[len(answers)]} ended all: {done.stderr}")
    return [
        subprocess.CompletedProcess([script, *case], code, out, err)
        for case, (code, out, err) in zip(cases, answers, strict=True)
    ]


# ---- Test cases ------------------------------------------------------------------

TAKE_AWAY = """
import importlib, sys
class Missing:
    def __get__(self, *_):
        raise AttributeError("taken away by a test")
for name in {names!r}:
    head, *path = name.split(".")
    if not path:
        sys.modules[name] = None
        continue
    owner = importlib.import_module(head)
    for part in path[:-1]:
        owner = getattr(owner, part)
    if path[-1] in vars(owner):
        delattr(owner, path[-1])
    if hasattr(owner, path[-1]):  # inherited of a type in C
        setattr(owner, path[-1], Missing())
"""


class ScriptTestCase(unittest.TestCase):
    """A test with a temporary folder and scripts that end when it ends."""

    maxDiff = None
    folder: Path  # temporary, and the current folder of every started script

    def setUp(self) -> None:
        """Make the temporary folder."""
        self.folder = Path(tempfile.mkdtemp(prefix="lab-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    @classmethod
    def shared_folder(cls) -> Path:
        """Return a new temporary folder that lasts for the whole class."""
        folder = Path(tempfile.mkdtemp(prefix="lab-"))
        cls.addClassCleanup(shutil.rmtree, folder, ignore_errors=True)
        return folder

    @classmethod
    def start_shared(
        cls,
        script: str,
        *args: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a script for all tests of the class (call it in `setUpClass`)."""
        running = Running(script, *args, cwd=cwd or cls.shared_folder(), env=env)
        cls.addClassCleanup(running.finish)
        running.listening()
        return running

    def spawn(
        self,
        script: str,
        *args: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        preexec_fn: Callable[[], None] | None = None,
    ) -> Running:
        """Start a script and return without waiting for its first line."""
        running = Running(
            script,
            *args,
            cwd=cwd or self.folder,
            env=env,
            pass_fds=pass_fds,
            preexec_fn=preexec_fn,
        )
        self.addCleanup(running.finish)
        return running

    def start(
        self,
        script: str,
        *args: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        preexec_fn: Callable[[], None] | None = None,
    ) -> Running:
        """Start a script and wait until it says where it listens."""
        running = self.spawn(
            script,
            *args,
            cwd=cwd,
            env=env,
            pass_fds=pass_fds,
            preexec_fn=preexec_fn,
        )
        running.listening()
        return running

    def servers(
        self, count: int = 3, *args: object, cwd: Path | None = None
    ) -> list[Running]:
        """Start `count` server2.py on free ports; they share one log."""
        started = [self.spawn("server2.py", "0", *args, cwd=cwd) for _ in range(count)]
        for server in started:
            server.listening()
        return started

    def balancer(
        self,
        *args: object,
        servers: Sequence[Target] = (),
        listen: str = "127.0.0.1:0",
        env: Mapping[str, str] | None = None,
        preexec_fn: Callable[[], None] | None = None,
    ) -> Running:
        """Start load_balancer.py on a free port before these servers."""
        options = [f"--server={address_of(server)}" for server in servers]
        return self.start(
            "load_balancer.py",
            f"--listen={listen}",
            *options,
            *args,
            env=env,
            preexec_fn=preexec_fn,
        )

    def client(
        self,
        *args: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run client2.py to its end."""
        return self.run_script("client2.py", *args, cwd=cwd, env=env, timeout=timeout)

    def run_script(
        self,
        script: str,
        *args: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        preexec_fn: Callable[[], None] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run any script to its end (see `run_script` above)."""
        return run_script(
            script,
            *args,
            cwd=cwd or self.folder,
            env=env,
            timeout=timeout,
            preexec_fn=preexec_fn,
        )

    def backend(
        self, behaviour: Behaviour | Sequence[Behaviour] = echo, **options: Any
    ) -> Backend:
        """Start a `Backend` that is closed when the test ends."""
        backend = Backend(behaviour, **options)
        self.addCleanup(backend.close)
        return backend

    def dial(self, target: Target, timeout: float = SOCKET_TIMEOUT_S) -> socket.socket:
        """Dial, and close the socket when the test ends."""
        connection = dial(target, timeout)
        self.addCleanup(connection.close)
        return connection

    def log_lines(self, name: str = "server_log.txt") -> list[str]:
        """Return the lines of a log in the test's folder."""
        text = (self.folder / name).read_text(encoding="utf-8")
        return text.split("\n")[:-1]

    def assert_one_line(
        self, result: subprocess.CompletedProcess[str], code: int, *words: str
    ) -> None:
        """Expect `code` and exactly one line on standard error with all `words`.

        The line starts with the script's name, and nothing is on standard output.
        """
        self.assertEqual(result.returncode, code, result)
        self.assertEqual(result.stdout, "", result)
        script = str(result.args[0])
        self.assertRegex(result.stderr, rf"\A{re.escape(script)}: [^\n]+\n\Z")
        for word in words:
            self.assertIn(word, result.stderr)

    def without(self, *names: str) -> dict[str, str]:
        """Return an environment where Python lacks the named things.

        "os.splice" takes a name from a module, "socket.socket.recvmsg" from a class,
        "resource" a whole module: what a system without it looks like to a script.
        By a `sitecustomize` module, which Python imports before any script (docs:
        site).
        """
        folder = Path(tempfile.mkdtemp(prefix="lab-without-", dir=self.folder))
        (folder / "sitecustomize.py").write_text(TAKE_AWAY.format(names=names))
        return {"PYTHONPATH": str(folder)}


# ---- The balancer's status port --------------------------------------------------


def http_request(
    target: Target,
    path: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    timeout: float = SOCKET_TIMEOUT_S,
) -> tuple[int, dict[str, str], bytes]:
    """Return (status, headers with lower-case names, body) of one HTTP request."""
    host, port = split_address(target)
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return response.status, fields, response.read()
    finally:
        connection.close()


def status_json(target: Target) -> dict[str, Any]:
    """Return `/status.json` of a balancer's status port."""
    status, _, body = http_request(target, "/status.json")
    if status != 200:
        raise AssertionError(f"/status.json answered {status}: {body!r}")
    document: dict[str, Any] = json.loads(body)
    return document
