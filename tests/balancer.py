"""What the tests of load_balancer.py share: its log, its status port, one harness.

`OneServer` starts one balancer in front of one `Backend` for all tests of a class; a
test chooses with `self.behave(...)` how the backend treats the next connections, and
finds the log line of a connection with `self.ending(client)`.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import unittest
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import (
    DEADLINE_S,
    REFUSED,
    THOROUGH,
    Backend,
    Behaviour,
    Running,
    ScriptTestCase,
    Target,
    Visit,
    address_of,
    children,
    dial,
    echo,
    http_request,
    read_exactly,
    status_json,
    wait_until,
)

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
ENDING = re.compile(
    rf"(?P<time>{TIME}) client=(?P<client>\S+) server=(?P<server>\S+)"
    r" tries=(?P<tries>\d+) connect_ms=(?P<connect_ms>\d+(?:\.\d+)?|-)"
    r" duration_ms=(?P<duration_ms>\d+(?:\.\d+)?) to_server=(?P<to_server>\d+)"
    r" to_client=(?P<to_client>\d+) undelivered=(?P<undelivered>\d+)"
    r" end=(?P<code>[A-Za-z-]{2}) (?P<words>\S.*)"
)
CHANGE = re.compile(
    rf"(?P<time>{TIME}) server=(?P<server>\S+) state=(?P<state>UP|DOWN|DRAIN|MAINT)"
    r' reason="(?P<reason>[^"]*)" checks=(?P<checks>\d+/\d+) up=(?P<up>\d+/\d+)'
)
STATUS = re.compile(r"status\D*?https?://([^\s/,)]+:\d+)")
SAME_ORIGIN = {"X-Requested-With": "load-balancer"}


# ---- The log ---------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    """One closing line of the log."""

    client: str
    server: str
    tries: int
    duration_ms: float
    to_server: int
    to_client: int
    undelivered: int
    code: str
    words: str
    line: str


@dataclass(frozen=True)
class Change:
    """One line about a server's state."""

    server: str
    state: str
    reason: str
    checks: str
    up: str


def parse_ending(line: str) -> Ending:
    """Return the fields of a closing line; AssertionError for any other format."""
    match = ENDING.fullmatch(line)
    if not match:
        raise AssertionError(f"not the format of a closing line: {line!r}")
    return Ending(
        client=match["client"],
        server=match["server"],
        tries=int(match["tries"]),
        duration_ms=float(match["duration_ms"]),
        to_server=int(match["to_server"]),
        to_client=int(match["to_client"]),
        undelivered=int(match["undelivered"]),
        code=match["code"],
        words=match["words"],
        line=line,
    )


def endings(lines: Sequence[str]) -> list[Ending]:
    """Return the closing lines among the lines of a log, in order."""
    return [parse_ending(line) for line in lines if " client=" in line]


def changes(lines: Sequence[str]) -> list[Change]:
    """Return the lines about servers' states, in order."""
    found = []
    for line in lines:
        if " state=" in line:
            match = CHANGE.fullmatch(line)
            if not match:
                raise AssertionError(f"not the format of a state line: {line!r}")
            found.append(
                Change(*match.group("server", "state", "reason", "checks", "up"))
            )
    return found


def other_lines(balancer: Running) -> list[str]:
    """Return the log lines that are neither of the two, nor of the start or stop."""
    told = (" client=", " state=", " listening on ", " stopping", " stopped")
    return [
        line
        for line in balancer.stdout_lines()[1:]
        if not any(word in line for word in told)
    ]


def wait_for_endings(
    balancer: Running, count: int, timeout: float = DEADLINE_S
) -> list[Ending]:
    """Return the closing lines once there are `count`."""
    wait_until(
        lambda: len(endings(balancer.stdout_lines())) >= count,
        timeout,
        f"{count} closing lines in {balancer.stdout_text()[-3000:]}",
    )
    return endings(balancer.stdout_lines())


def wait_for_states(
    balancer: Running, server: Target, *states: str, timeout: float = DEADLINE_S
) -> list[Change]:
    """Return a server's changes of state once there are as many as `states`."""

    def seen() -> list[Change]:
        lines = changes(balancer.stdout_lines())
        return [change for change in lines if change.server == address_of(server)]

    wait_until(
        lambda: len(seen()) >= len(states),
        timeout,
        f"states {states} of {address_of(server)}, got {seen()}",
    )
    return seen()


def local_address(connection: socket.socket) -> str:
    """Return the own "host:port" of a socket, as a log names it."""
    return address_of(connection.getsockname()[:2])


# ---- The status port -------------------------------------------------------------


def status_address(balancer: Running) -> str:
    """Return where the status page listens, from the balancer's first lines."""
    text = balancer.wait_for_line(STATUS.pattern)
    match = STATUS.search(text)
    assert match
    return match[1]


def figures(balancer: Running) -> dict[str, Any]:
    """Return `/status.json`."""
    return status_json(status_address(balancer))


def server_figures(balancer: Running, server: Target) -> dict[str, Any]:
    """Return what `/status.json` says about one server."""
    found: dict[str, Any] = next(
        entry
        for entry in figures(balancer)["servers"]
        if entry["address"] == address_of(server)
    )
    return found


def command(balancer: Running, server: Target, action: str) -> int:
    """Ask the status port to drain, ready or maint a server; return the status."""
    path = f"/servers/{address_of(server)}/{action}"
    headers = SAME_ORIGIN
    return http_request(status_address(balancer), path, "POST", headers, b"")[0]


# ---- Backends --------------------------------------------------------------------


def named(visit: Visit) -> None:
    """Say the own port at once, in 5 digits, then echo: a client sees who serves."""
    visit.send(b"%05d" % visit.backend.port)
    echo(visit)


def served_by(connection: socket.socket) -> int:
    """Return the port of the `named` backend that serves a connection."""
    answer = read_exactly(connection, 5)
    if len(answer) != 5:
        raise AssertionError(f"no server answered: {answer!r}")
    return int(answer)


def visit_once(balancer: Target) -> int:
    """Make one connection from open to close; return the port that served it."""
    with dial(balancer) as client:
        port = served_by(client)
        client.shutdown(socket.SHUT_WR)
        if rest := client.recv(1):
            raise AssertionError(f"unexpected {rest!r}")
    return port


def shares(ports: Sequence[int], backends: Sequence[Backend]) -> list[int]:
    """Return how many connections each backend served."""
    count = Counter(ports)
    return [count[backend.port] for backend in backends]


# ---- One balancer, one server ----------------------------------------------------


def title(pid: int) -> str:
    """Return a process's name (proc(5), comm); "" when it has ended."""
    with contextlib.suppress(OSError):
        return Path("/proc", str(pid), "comm").read_text().strip()
    return ""


def listens_at(pid: int, port: int) -> bool:
    """Tell whether a process has a descriptor of this port's listener (proc(5))."""
    local, inodes = f":{port:04X}", set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(local) and fields[3] == "0A":  # TCP_LISTEN
            inodes.add(f"socket:[{fields[9]}]")
    with contextlib.suppress(OSError):
        return any(
            os.readlink(entry) in inodes
            for entry in Path("/proc", str(pid), "fd").iterdir()
        )
    return False


def has_ended(balancer: Running, client: socket.socket) -> bool:
    """Tell whether the balancer has sent a client its end of file, or is about to.

    Bytes that the client does not read may stand before it (proc(5), FIN_WAIT1).
    """
    table = Path("/proc/net/tcp")
    if not table.exists():
        raise unittest.SkipTest("needs /proc/net/tcp (Linux)")
    ends = f":{balancer.port:04X} 0100007F:{client.getsockname()[1]:04X}"
    return any(f"{ends} 04 " in line for line in table.read_text().splitlines())


def processes(balancer: Running) -> tuple[list[int], list[int]]:
    """Return the live workers and the desks.

    Told by their names, or where none could be written, by who has the listener.
    """
    workers, desks = [], []
    for pid in children(balancer.pid):
        name = title(pid)
        if REFUSED and name:
            name = "worker" if listens_at(pid, balancer.port) else "desk"
        if "worker" in name:
            workers.append(pid)
        elif "desk" in name:
            desks.append(pid)
    return workers, desks


def workers_of(balancer: Running) -> list[int]:
    """Return the live workers."""
    return processes(balancer)[0]


class BalancerTestCase(ScriptTestCase):
    """A test that starts its own balancer, with the class's number of workers."""

    WORKERS = 1

    @classmethod
    def setUpClass(cls) -> None:
        """Leave the variants of a class to `.ci/run`, for the default run is short."""
        super().setUpClass()
        variant = cls.__name__.endswith(("WithTwoWorkers", "WithoutSplice"))
        if variant and not THOROUGH:
            raise unittest.SkipTest("a variant: set LAB_LONG=1 to run it, too")

    def balance(
        self, servers: Sequence[Target], *options: object, checks: bool = False
    ) -> Running:
        """Start a balancer before `servers`; without checks unless asked for."""
        extra = [] if checks else ["--no-checks"]
        return self.balancer(
            f"--workers={self.WORKERS}",
            "--status=127.0.0.1:0",
            "--grace=10",
            *extra,
            *options,
            servers=servers,
        )

    def ending(
        self, balancer: Running, client: str, timeout: float = DEADLINE_S
    ) -> Ending:
        """Return the closing line of the connection from this client address."""
        pattern = rf" client={re.escape(client)} "
        return parse_ending(balancer.wait_for_line(pattern, timeout))


class OneServer(BalancerTestCase):
    """Tests that share one balancer in front of one backend."""

    OPTIONS: Sequence[str] = ()
    WITHOUT: Sequence[str] = ()  # names taken away from Python, see `without`
    running: Running
    backend_shared: Backend
    behaviours: list[Behaviour]  # its one item is what the backend does now
    chosen: list[Visit]  # those that know what the backend does with them

    @classmethod
    def setUpClass(cls) -> None:
        """Start the backend, and the balancer before it."""
        super().setUpClass()
        behaviours: list[Behaviour] = [echo]
        cls.behaviours = behaviours
        cls.chosen = []

        def behave_as_chosen(visit: Visit) -> None:
            behaviour = behaviours[0]
            cls.chosen.append(visit)  # what is chosen from now on is for later ones
            behaviour(visit)

        cls.backend_shared = Backend(behave_as_chosen)
        cls.addClassCleanup(cls.backend_shared.close)
        case = cls()
        case.folder = cls.shared_folder()
        cls.running = cls.start_shared(
            "load_balancer.py",
            "--listen=127.0.0.1:0",
            f"--server={cls.backend_shared.address}",
            "--status=127.0.0.1:0",
            "--no-checks",
            "--grace=2",
            f"--workers={cls.WORKERS}",
            *cls.OPTIONS,
            env=case.without(*cls.WITHOUT) if cls.WITHOUT else None,
        )

    def setUp(self) -> None:
        """Let the backend echo; remember how many connections and lines there were."""
        super().setUp()
        self.behave(echo)
        self.before = self.backend_shared.total
        self.lines_before = len(self.running.stdout_lines())

    def behave(self, behaviour: Behaviour) -> None:
        """Choose what the backend does with the next connections."""
        self.behaviours[0] = behaviour

    def open(self) -> tuple[socket.socket, str]:
        """Return a connection through the balancer, and its own address."""
        client = self.dial(self.running)
        return client, local_address(client)

    def visit(self, index: int = 0) -> Visit:
        """Return connection number `index` of this test at the backend."""
        return self.backend_shared.visit(self.before + index)

    def ended(self, client: str, timeout: float = DEADLINE_S) -> Ending:
        """Return the closing line of the connection from this client address.

        Only this test's lines count: a port is used again now and then.
        """

        def find() -> list[str]:
            lines = self.running.stdout_lines()[self.lines_before :]
            return [line for line in lines if f" client={client} " in line]

        return parse_ending(wait_until(find, timeout, f"the line of {client}")[-1])

    def assert_end(self, client: str, code: str, **expected: object) -> Ending:
        """Expect `code` (a regular expression) and fields of the closing line."""
        ending = self.ended(client)
        self.assertRegex(ending.code, rf"\A(?:{code})\Z", ending.line)
        for name, value in expected.items():
            self.assertEqual(getattr(ending, name), value, ending.line)
        return ending
