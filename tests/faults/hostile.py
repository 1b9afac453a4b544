"""Part 5: clients that mean no good, on every port.

What they may cost is their own connections. Everybody else is served, memory stays
bounded, no process prints a traceback (`Running.finish` looks for it), and neither the
log nor a screen obeys what they send.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.balancer import SAME_ORIGIN
from tests.faults.lab import LONG_ONLY, Lab, scenario
from tests.faults.processes import status_address
from tests.faults.records import read_log
from tests.faults.relayed import settled
from tests.faults.talkers import Talkers
from tests.support import (
    Backend,
    Running,
    Target,
    Visit,
    descriptors,
    dial,
    family,
    http_request,
    memory_kib,
    read_line,
    run_script,
    send_reset,
    status_json,
    wait_until,
)

MEMORY_KIB = 64 << 10  # that a process may grow by, whatever is sent to it
ESCAPES = (
    b"\x1b[2J\x1b[H", b"\x1b]0;owned\x07", b"\x9b31m", b"\x08\x08\x08", b"\r",
    b"\x1b[?1049h", "\u202e\u2028\u0085".encode(), b"\xff\xfe\x00", b"\x1bP+q\x1b\\",
)  # fmt: skip
V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V2_HEADER = (
    V2_SIGNATURE + b"\x21\x11\x00\x0c" + b"\x7f\0\0\x01\x7f\0\0\x01\x12\x34\x00\x50"
)
HTTP_GET = b"GET /status.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HTTP_POST = (
    b"POST /servers/127.0.0.1:9991/maint HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Origin: http://127.0.0.1\r\nContent-Length: 4\r\n\r\nmore"
)
CORPUS = (
    b"Hello from client 1!\n", b"\n", b"\r\n\r\n", b"x" * 1500 + b"\n", b"y" * 70_000,
    b"PROXY TCP4 127.0.0.1 127.0.0.1 56324 9990\r\nHello\n",
    b"PROXY TCP6 ::1 ::1 56324 9990\r\nHello\n", b"PROXY UNKNOWN\r\nHello\n",
    b"PROXY TCP4 999.0.0.1 127.0.0.1 56324 99900\r\n", b"PROXY " + b"A" * 200,
    V2_HEADER + b"Hello\n", V2_SIGNATURE + b"\x20\x00\x00\x00Hello\n",
    V2_SIGNATURE + b"\x21\x11\xff\xff", V2_SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216),
    HTTP_GET, HTTP_POST, b"GET http://[::1 HTTP/1.1\r\nHost: [::1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"2026-11-23 14:50:15,613 - 1 - 127.0.0.1:5 - replied: Server 1 received: x\n",
    *ESCAPES,
)  # fmt: skip


def mutate(choices: random.Random) -> bytes:
    """Return bytes that few decent clients would send."""
    data = bytearray(choices.choice(CORPUS))
    for _ in range(choices.randrange(4)):
        at = choices.randrange(len(data) + 1)
        size = choices.choice((1, 1, 2, 16, 200))
        kind = choices.randrange(6)
        if kind == 0:
            data[at : at + size] = choices.randbytes(size)
        elif kind == 1:
            data[at:at] = choices.choice(CORPUS)[:size]
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data += data[at:] * choices.choice((1, 2, 50))
        elif kind == 4:
            del data[at:]
        else:
            data[at:at] = choices.choice(ESCAPES)
    return bytes(data[: 1 << 20])


def poke(target: str, data: bytes, choices: random.Random) -> None:
    """Send bytes somehow, read a little or nothing, leave somehow."""
    patience_s = choices.choice((0.001, 0.001, 0.02, 0.3))
    with contextlib.suppress(OSError), dial(target, 2.0) as sock:
        for piece in cut(data, choices):
            sock.sendall(piece)
        if choices.random() < 0.3:
            sock.shutdown(socket.SHUT_WR)
        sock.settimeout(patience_s)
        while sock.recv(65536):
            pass
        if choices.random() < 0.3:
            send_reset(sock)


def cut(data: bytes, choices: random.Random) -> Iterator[bytes]:
    """Yield the bytes in one piece, in two, or byte by byte at first."""
    pieces = choices.choice((0, 0, 1, 10))
    for at in range(min(pieces, len(data))):
        yield data[at : at + 1]
    yield data[min(pieces, len(data)) :]


# ---- A system under attack -------------------------------------------------------


@dataclass
class Prey:
    """Servers and balancers of every kind, and decent clients who use them."""

    lab: Lab
    processes: list[Running]
    targets: list[str]  # every port
    balancer: Running
    talkers: Talkers
    memory: dict[int, int]

    @classmethod
    def start(cls, lab: Lab, workers: int = 1) -> Prey:
        """Start two servers, two balancers, one status page, two decent clients."""
        everyone = "127.0.0.0/8"
        plain = lab.spawn("server2.py", 0)
        strict = lab.spawn("server2.py", 0, "--accept-proxy", everyone)
        status = ("--status", "127.0.0.1:0")
        balancer = lab.balancer([plain], "--workers", workers, *status)
        behind = lab.balancer(
            [strict], "--accept-proxy", everyone, "--send-proxy", "v1"
        )
        targets = [
            *(running.address for running in (plain, strict, balancer, behind)),
            status_address(balancer),
        ]
        processes = [plain, strict, balancer, behind]
        lab.begin()
        talkers = Talkers(lab, lambda: balancer.address, 2, batch=4, messages=200)
        wait_until(lambda: talkers.total() > 20, what="decent clients served")
        memory = {pid: memory_kib(pid) for r in processes for pid in family(r.pid)}
        return cls(lab, processes, targets, balancer, talkers, memory)

    def check(self) -> None:
        """See that decent clients are served, memory is bounded, the log is whole."""
        before = self.talkers.total()
        wait_until(lambda: self.talkers.total() > before, what="decent clients served")
        self.talkers.stop()
        if cuts := self.lab.counts["connections cut"]:
            self.lab.lost(f"{cuts} connections of decent clients were cut")
        for pid, memory in self.memory.items():
            grown = memory_kib(pid) - memory
            self.lab.expect(grown < MEMORY_KIB, f"process {pid} grew by {grown} KiB")
        for running in self.processes:
            self.lab.expect(running.returncode is None, f"{running.script} has ended")
            check_screen(self.lab, running.stdout_text() + running.stderr_text())
        book = read_log([self.lab.log])
        for text in (*book.faults, *book.missing(self.talkers.confirmed)):
            self.lab.lost(text)


def check_screen(lab: Lab, text: str) -> None:
    """Report characters that a terminal would obey."""
    for line in text.split("\n"):
        lab.expect(line.isprintable(), f"a terminal would obey {line[:200]!r}")


def attack(lab: Lab, threads: int, act: Callable[[random.Random], object]) -> None:
    """Run `act` on threads, again and again until the lab's time is over."""

    def run(choices: random.Random) -> None:
        while lab.left():
            act(choices)

    started = [
        threading.Thread(target=run, args=(lab.chooser(),), name=f"attacker-{k}")
        for k in range(threads)
    ]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


@scenario(5, share=4, short_s=1.0)
def mutated_bytes(lab: Lab) -> None:
    """Send random and mutated bytes to every port: messages, relay, PROXY, status."""
    prey = Prey.start(lab, workers=1 + lab.seed % 2)

    def act(choices: random.Random) -> None:
        poke(choices.choice(prey.targets), mutate(choices), choices)
        lab.count("bad inputs")

    attack(lab, 6, act)
    prey.check()


# ---- Slow, silent and greedy -----------------------------------------------------


@contextlib.contextmanager
def many_open(targets: Sequence[str], count: int) -> Iterator[list[socket.socket]]:
    """Open many connections; close them all at the end."""
    opened: list[socket.socket] = []
    try:
        for target in itertools.islice(itertools.cycle(targets), count):
            opened.append(dial(target, 20))
        yield opened
    finally:
        for sock in opened:
            sock.close()


@scenario(5, share=1, short_s=LONG_ONLY)
def one_byte_at_a_time(lab: Lab) -> None:
    """Send a byte per second on 1,000 connections."""
    prey = Prey.start(lab)
    targets = [target for target in prey.targets if target != prey.targets[-1]]
    bored = threading.Event()
    with many_open([*targets, *prey.targets], 1000) as opened:
        for number in itertools.count():
            for sock in opened:
                with contextlib.suppress(OSError):  # PROXY ports and status give up
                    sock.send(CORPUS[0][number % 20 : number % 20 + 1])
            lab.count("bad inputs", len(opened))
            if not lab.left():
                break
            bored.wait(1.0)
    prey.check()


@scenario(5, share=1, short_s=LONG_ONLY)
def never_reading(lab: Lab) -> None:
    """Send messages and never read the confirmations."""
    prey = Prey.start(lab)
    data = b"".join(b"%03999d\n" % n for n in range(100))  # few records for many bytes
    with many_open(prey.targets[:4], 20) as opened:
        poll = select.poll()
        for sock in opened:
            sock.setblocking(False)
            poll.register(sock, select.POLLOUT)
        by_number = {sock.fileno(): sock for sock in opened}
        while lab.left():
            for number, mask in poll.poll(100):
                try:
                    lab.count("bytes sent unread", by_number[number].send(data))
                except BlockingIOError:
                    continue
                except OSError:
                    mask = select.POLLERR
                if mask & ~select.POLLOUT:  # refused for want of a PROXY line
                    poll.unregister(number)
            lab.count("bad inputs")
        prey.check()


@scenario(5, share=1, short_s=LONG_ONLY)
def endless_lines(lab: Lab) -> None:
    """Send a line without end."""
    prey = Prey.start(lab)
    block = b"x" * (1 << 20)
    told = re.compile(rb"Server \d+ error: message longer than 65536 bytes\n")

    def act(choices: random.Random) -> None:
        target = choices.choice((prey.targets[0], prey.targets[2]))
        with dial(target) as sock:
            with contextlib.suppress(ConnectionError):
                for _ in range(choices.randrange(1, 4)):
                    sock.sendall(block)
            with contextlib.suppress(ConnectionResetError):
                line = read_line(sock)
                lab.expect(told.fullmatch(line), f"told {line[:100]!r}")
            lab.count("bad inputs")

    attack(lab, 2, act)
    prey.check()


@scenario(5, share=2, short_s=0)
def opens_without_a_byte(lab: Lab) -> None:
    """Open 10,000 connections without a byte (fewer in the short form)."""
    prey = Prey.start(lab)
    before = sum(descriptors(pid) for pid in family(prey.balancer.pid))
    targets = [prey.targets[0], prey.targets[2]]
    for _ in range(5 if lab.long else 1):
        with many_open(targets, 2000 if lab.long else 100) as opened:
            lab.count("bad inputs", len(opened))
            wait_until_live(prey.balancer, len(opened) // 2)
    prey.check()
    settled(prey.balancer)
    wait_until(
        lambda: sum(descriptors(p) for p in family(prey.balancer.pid)) <= before,
        what="descriptors back to where they were",
    )
    text = prey.lab.log.read_text()
    connected = text.count(" - connected\n")
    lab.expect(connected <= lab.counts["connections"], "silent connections are logged")


def wait_until_live(balancer: Running, count: int) -> None:
    """Wait until the balancer says that it has so many connections."""
    where = status_address(balancer)
    wait_until(
        lambda: status_json(where)["connections"]["active"] >= count,
        what=f"{count} live connections",
    )


# ---- The status page -------------------------------------------------------------

BOMBS = (
    b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"y" * (1 << 20) + b"\r\n\r\n",
    b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n" + b" y\r\n" * 1000,
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nFFF\r\n",
    b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n", b"\0\r\n\r\n", b"GET / HTTP/1.1\r\n" * 500,
    b"BREW / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"get / http/1.1\r\n\r\n",
    b"GET //evil.example/%0d%0aX:y HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n",
    b"POST /servers/%ff%0d/drain HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: x\r\n\r\n",
)  # fmt: skip
FOREIGN: tuple[dict[str, str], ...] = (
    {}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": ""},
    {"Host": "evil.example", **SAME_ORIGIN},
    {"Host": "evil.example", "Origin": "http://evil.example"},
    {"Origin": "http://evil.example", **SAME_ORIGIN},
    {"Referer": "http://evil.example/", **SAME_ORIGIN},
    {"Host": "127.0.0.1.evil.example", **SAME_ORIGIN},
    {"Host": "localhost@evil.example", "Origin": "http://localhost@evil.example"},
    {"Origin": "http://127.0.0.1.evil.example"},
)  # fmt: skip


@scenario(5, share=1, short_s=0)
def status_page_under_attack(lab: Lab) -> None:
    """Drop header bombs and foreign pages' requests on the status page."""
    prey = Prey.start(lab)
    status = prey.targets[-1]
    server = prey.targets[0]
    states = set()
    while True:
        for headers in FOREIGN:
            for order in ("drain", "maint"):
                path = f"/servers/{server}/{order}"
                code, _, _ = http_request(status, path, "POST", headers, b"")
                lab.expect(400 <= code < 500, f"{code} for a POST with {headers}")
                lab.count("bad inputs")
        for bomb in BOMBS:
            answer = answer_to(status, bomb)
            served = re.match(rb"HTTP/1\.\d [23]", answer) or b"uptime" in answer
            lab.expect(not served, f"{bomb[:60]!r} was answered with {answer[:60]!r}")
            lab.count("bad inputs")
        with many_open([status], 24):  # more than the page serves at once
            lab.count("bad inputs", 24)
            states |= {s["state"] for s in status_json(status)["servers"]}
        if not lab.left():
            break
    lab.expect(states == {"UP"}, f"a foreign request changed a state: {states}")
    prey.check()


def answer_to(target: str, request: bytes) -> bytes:
    """Return the beginning of what a raw request is answered with, b"" for nothing."""
    with contextlib.suppress(OSError), dial(target) as sock:
        with contextlib.suppress(ConnectionError):  # it may refuse before the end
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
        return sock.recv(4096)
    return b""


# ---- Screens ---------------------------------------------------------------------


def answer_with_escapes(visit: Visit) -> None:
    """Answer with what a terminal would obey; on some connections as an error line."""
    visit.read_line()
    text = ESCAPES[visit.index % len(ESCAPES)]
    head = (b"Server 9991 received: ", b"Server 1 error: ", b"")[visit.index % 3]
    visit.send(head + text + b"owned\n")


@scenario(5, share=0.2, short_s=0)
def escapes_on_the_screen(lab: Lab) -> None:
    """Send terminal escapes to the server's and the client's screen and to the log."""
    server = lab.start("server2.py", 0)
    for escape in ESCAPES:
        with dial(server) as sock:
            sock.sendall(escape + b"owned\n")
            lab.expect(read_line(sock).endswith(escape + b"owned\n"), "not the same")
            lab.count("bad inputs")
    server.wait_for_line("owned", count=len(ESCAPES))
    wait_until(lambda: read_log([lab.log]).records >= 4 * len(ESCAPES), what="records")
    for fault in read_log([lab.log]).faults:
        lab.lost(fault)
    check_screen(lab, server.stdout_text() + server.stderr_text())
    with Backend(answer_with_escapes) as backend:
        options = ("--verbose", "--json", "run.json", "--report", "run.html")
        target = ("--target", backend.address, "--timeout", 3)
        done = run_script("client2.py", 9, *target, *options, cwd=lab.folder)
        check_screen(lab, done.stdout + done.stderr)
        lab.expect(done.returncode == 1, f"exit {done.returncode} for false replies")
        page = (lab.folder / "run.html").read_text(encoding="utf-8")
        obeyed = re.search("[\0-\x08\x0b-\x1f\x7f-\x9f]", page)
        lab.expect(not obeyed, f"in the report: {obeyed}")
        json.loads((lab.folder / "run.json").read_text(encoding="utf-8"))
        lab.count("bad inputs", 9)
    behind = lab.balancer([server], "--accept-proxy", "127.0.0.1", "--allow", "::1")
    for escape in ESCAPES:
        assert_closed(lab, behind, b"PROXY TCP4 " + escape + b" 127.0.0.1 1 2\r\n")
    behind.wait_for_line("client=", count=len(ESCAPES))
    check_screen(lab, behind.stdout_text() + behind.stderr_text())


def assert_closed(lab: Lab, target: Target, data: bytes) -> None:
    """Report when bytes are not answered with the end of the connection."""
    lab.count("bad inputs")
    with contextlib.suppress(ConnectionError), dial(target) as sock:
        sock.sendall(data)
        lab.expect(sock.recv(100) == b"", f"{data!r} was answered")


# ---- The others' latency ---------------------------------------------------------


@scenario(5, share=2, short_s=LONG_ONLY)
def latency_under_attack(lab: Lab) -> None:
    """Compare decent clients' p99 with and without hostile ones (printed, judged)."""
    prey = Prey.start(lab)
    prey.talkers.stop()
    quiet, busy = [], []
    pause_s = max(1.0, min(5.0, lab.seconds / 6))
    for round_ in range(3):
        quiet.append(p99_ms(lab, prey.balancer, pause_s))
        with attacked(prey, 100 + round_):
            busy.append(p99_ms(lab, prey.balancer, pause_s))
    ratio = sorted(busy)[1] / sorted(quiet)[1]
    shown = " ".join(f"{q:.2f}/{b:.2f}" for q, b in zip(quiet, busy, strict=True))
    lab.note(f"p99 quiet/attacked, ms: {shown}; medians' ratio {ratio:.2f} (aim: 2)")


def p99_ms(lab: Lab, balancer: Running, seconds: float) -> float:
    """Return the p99 of the latency of ten clients at a fixed rate."""
    run_script(
        "client2.py", 10, "--target", balancer.address, "--rate", 300, "--duration",
        max(seconds, 1.2), "--json", "p99.json", "--quiet", cwd=lab.folder,
    )  # fmt: skip
    document = json.loads((lab.folder / "p99.json").read_text())
    lab.expect(not document["exchanges"]["failed"], "a decent client failed")
    return float(document["latency_ns"]["p99"]) / 1e6


@contextlib.contextmanager
def attacked(prey: Prey, idle: int) -> Iterator[None]:
    """Have hostile clients at work: mutated bytes, slow ones, silent ones."""
    over = threading.Event()
    choices = prey.lab.chooser()

    def run() -> None:
        while not over.wait(0.005):  # a rate: the attackers share this machine
            poke(choices.choice(prey.targets), mutate(choices), choices)
            prey.lab.count("bad inputs")

    thread = threading.Thread(target=run, name="attacker")
    with many_open(prey.targets[:4], idle):
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
