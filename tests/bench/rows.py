"""The rows of the table: which subjects, under which load, and what is to be reached.

Every row starts what it needs on a stage of its own, and ends it. In each round the
subjects take turns; what a turn measured is added to the samples, and the checks of the
row, which stand beside it, turn samples into lines of the table.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.bench import loads, machine, peers, subjects
from tests.bench.figures import Check, Samples, nearest_rank
from tests.bench.loads import Held, generate, p50, probe, redis_benchmark
from tests.bench.machine import RunError, Stage, cpu_of, free_port, loopback
from tests.bench.subjects import (
    BALANCER,
    C_RELAY,
    CLIENT,
    SERVER,
    Address,
    Subject,
    start_haproxy,
    start_nginx,
    start_redis,
    start_script,
)

KEPT_CLIENTS = 50
GROWTH = (1, 10, 100, 1_000)
GROWTH_SHORT = 200  # messages of the run that is taken off
CLIENTS = (1, 50, 200, 1_000)
CLIENT_TARGETS = {1: "≥ 1", 50: "≥ 1", 200: "≥ 0.85", 1_000: "≥ 0.7"}
FSYNC_CLIENTS = 50
REDIS_SERVERS = 3
FREE_NUMBER = 150  # of the address of the balancer on a free-threaded Python
FIRST_SERVER = 200  # 127.x.y.200 and up: what is behind; 1 and up: the subjects
SPARE_DESCRIPTORS = 200  # of a balancer's limit: listeners, logs, hand-over, pipes
MEMORY_LIMIT_KIB = 22.0
MEMORY_TITLE = f"memory each (Pss), {MEMORY_LIMIT_KIB:.0f} KiB"
MOST_HELD = 9_000
CLOSE_DEADLINE_S = 20.0
CLIENT_DEADLINE_S = 60.0
LIMIT = "the limit"
FREE = "free-threaded"  # our script on such a Python, where there is one
ITSELF = "itself"  # as `Check.against`: the same subject, another metric


@dataclass(slots=True)
class Settings:
    """What the command line asked for."""

    rounds: int
    seconds: float
    quick: bool
    scripts: Path
    python: str
    balancer_args: Sequence[str]  # one subject for each
    server_args: str
    client_args: str
    free_threaded: str = ""  # an interpreter


@dataclass(slots=True)
class Bench:
    """A run: settings in, samples and notes out."""

    settings: Settings
    samples: Samples = field(default_factory=Samples)
    notes: list[str] = field(default_factory=list)
    row: str = ""
    others: list[float] = field(default_factory=list)  # cores of strangers, by turn

    def note(self, text: str) -> None:
        """Remember a remark for the end of the table, once."""
        if text not in self.notes:
            self.notes.append(text)

    def add(self, subject: str, figures: dict[str, float]) -> None:
        """Add what one turn measured, and say so while the run goes on."""
        for metric, value in figures.items():
            self.samples.add(self.row, subject, metric, value)
        shown = "  ".join(f"{m} {v:.4g}" for m, v in figures.items())
        print(f"{self.row}: {subject}: {shown}", file=sys.stderr, flush=True)

    def take_turn(self, subject: str, turn: Callable[[], dict[str, float]]) -> None:
        """Run one turn and add its figures; see what strangers used meanwhile."""
        started, busy, ours = time.monotonic(), machine.busy_s(), cpu_of(os.getpid())
        figures = turn()
        busy, ours = machine.busy_s() - busy, cpu_of(os.getpid()).since(ours)
        strangers = (busy - ours.total_s) / (time.monotonic() - started)
        self.others.append(max(0.0, strangers))
        self.add(subject, figures)

    def script(self, name: str) -> Path | None:
        """Return a script's path; note its absence."""
        path = self.settings.scripts / name
        if path.exists():
            return path
        self.note(f"{path} is missing: its peers are measured alone")
        return None

    def in_turn(
        self, turns: Sequence[tuple[str, Callable[[], dict[str, float]]]]
    ) -> None:
        """Run all turns once per round: A B C, A B C."""
        for _ in range(self.settings.rounds):
            for subject, turn in turns:
                self.take_turn(subject, turn)


@dataclass(slots=True, frozen=True)
class Row:
    """A row: its name for --rows, what it says, what it needs, how it is measured."""

    name: str
    part: str
    title: str
    needs: tuple[str, ...]
    measure: Callable[[Bench], None]
    checks: tuple[Check, ...]
    ours: str = BALANCER


# ---- The subjects of the balancer's rows -----------------------------------------


def start_redis_servers(stage: Stage) -> list[Address]:
    """Start the three Redis servers behind the balancers."""
    return [start_redis(stage, FIRST_SERVER + i) for i in range(REDIS_SERVERS)]


def start_ours(bench: Bench, stage: Stage, servers: Sequence[Address]) -> list[Subject]:
    """Start our balancer, once for each set of options that was asked for."""
    script = bench.script(BALANCER)
    found: list[Subject] = []
    for number, options in enumerate(bench.settings.balancer_args, 100):
        if script:
            args = subjects.balancer_args(
                number, servers, stage.folder / f"balancer-{number}.log"
            )
            args += shlex.split(options)
            name = ours_name(bench.settings, options)
            python = bench.settings.python
            found.append(start_script(stage, name, script, args, python))
    return found


def start_free(bench: Bench, stage: Stage, servers: Sequence[Address]) -> list[Subject]:
    """Start our balancer by a free-threaded Python, if there is one."""
    script, python = bench.script(BALANCER), bench.settings.free_threaded
    if not script or not python or bench.settings.quick:
        return []
    log = stage.folder / "balancer-free.log"
    args = subjects.balancer_args(FREE_NUMBER, servers, log)
    return [start_script(stage, FREE, script, args, python)]


def ours_name(settings: Settings, options: str) -> str:
    """Return what a set of options is called: the script, if it is the only one."""
    several = len(settings.balancer_args) > 1
    return f"{BALANCER} {options}".strip() if several else BALANCER


def start_peers(
    bench: Bench,
    stage: Stage,
    servers: Sequence[Address],
    *,
    buffers: bool = False,
    judged_only: bool = False,
    connections: int = 9_900,
) -> list[Subject]:
    """Start HAProxy and nginx, those that the table judges by first.

    `buffers` adds HAProxy with 128 KiB; a quick run leaves out what only informs.
    """
    numbers = iter(range(1, 50))
    kib = [0, 128] if buffers else [0]
    found: list[Subject] = []
    few = bench.settings.quick or judged_only

    def haproxy(threads: int, buffer_kib: int) -> None:
        subject = start_haproxy(
            stage,
            next(numbers),
            servers,
            threads=threads,
            buffer_kib=buffer_kib,
            connections=connections,
        )
        found.append(subject)

    if not subjects.missing(["haproxy"]):
        for threads in [1] if few else [1, 2]:
            for size in kib:
                haproxy(threads, size)
    if not subjects.missing(["nginx"]) and not few:
        for workers in (1, 2):
            found.append(start_nginx(stage, next(numbers), servers, workers=workers))
    return found


def cpu_now(subject: Subject) -> machine.Cpu:
    """Return the CPU time of a subject and its children; none for a direct line."""
    return cpu_of(subject.pid) if subject.pid else machine.Cpu()


# ---- Bulk ------------------------------------------------------------------------


def measure_bulk(bench: Bench) -> None:
    """Move bytes through each subject with iperf3, up and down."""
    with Stage() as stage:
        host = loopback(FIRST_SERVER)
        server = (host, free_port(host))
        found = [Subject("direct", server)]
        found += start_peers(bench, stage, [server], buffers=True)
        found += start_ours(bench, stage, [server])

        def turn(subject: Subject, down: bool) -> dict[str, float]:
            before = cpu_now(subject)
            moved = loads.iperf3(
                stage, server, subject.address, bench.settings.seconds, down=down
            )
            cpu = cpu_now(subject).since(before)
            way = "down" if down else "up"
            figures = {f"{way} Gbit/s": moved["bytes"] * 8e-9 / moved["seconds"]}
            if subject.process:
                figures[f"{way} CPU s/GB"] = cpu.total_s / moved["bytes"] * 1e9
            return figures

        bench.in_turn(
            [(s.name, partial(turn, s, d)) for d in (False, True) for s in found]
        )


def bulk_checks() -> tuple[Check, ...]:
    """Return the checks of both directions."""
    found = []
    for way in ("up", "down"):
        rate, cpu = f"{way} Gbit/s", f"{way} CPU s/GB"
        for against, target in (
            ("HAProxy", "≥ 1.8"),
            ("HAProxy 128 KiB", "≥ 1.4"),
            ("direct", "≥ 0.72"),
            ("HAProxy 2 threads", ""),
            ("HAProxy 128 KiB 2 threads", ""),
            ("nginx", ""),
            ("nginx 2 workers", ""),
        ):
            found.append(Check(f"{way}, {against}", rate, against, target, "Gbit/s"))
        for against, target in (("HAProxy", "≤ 0.3"), ("HAProxy 128 KiB", "")):
            found.append(Check(f"{way} CPU, {against}", cpu, against, target, "s/GB"))
    return tuple(found)


# ---- Small messages --------------------------------------------------------------


def messages_for(
    bench: Bench, stage: Stage, subject: Subject, clients: int, keep: bool = True
) -> int:
    """Return how many messages fill the seconds of a turn; warms the subject up."""
    pilot = max(loads.PILOT_MESSAGES, 20 * clients)  # most of it is not connecting
    figures, _ = redis_benchmark(stage, subject.address, clients, pilot, keep=keep)
    return max(pilot, int(figures["rps"] * bench.settings.seconds))


def messages_turn(
    stage: Stage, subject: Subject, clients: int, count: int, keep: bool = True
) -> dict[str, float]:
    """Send `count` messages; return the rate and the CPU seconds of each."""
    before = cpu_now(subject)
    figures, _ = redis_benchmark(stage, subject.address, clients, count, keep=keep)
    cpu = cpu_now(subject).since(before)
    return {
        "rate": figures["rps"],
        "CPU": cpu.total_s / count,
        "CPU user": cpu.user_s / count,
        "p99": figures["p99"],
    }


def measure_messages(bench: Bench, keep: bool) -> None:
    """Send small messages by 50 clients, kept connections or one per message."""
    with Stage() as stage:
        servers = start_redis_servers(stage)
        found = start_peers(bench, stage, servers)
        if not subjects.missing(["cc"]) and not bench.settings.quick:
            found.append(subjects.start_c_relay(stage, FIRST_SERVER - 1, servers))
        found += start_ours(bench, stage, servers)
        found += start_free(bench, stage, servers)
        clients = KEPT_CLIENTS
        counts = {s.name: messages_for(bench, stage, s, clients, keep) for s in found}
        bench.in_turn(
            [
                (
                    s.name,
                    partial(messages_turn, stage, s, clients, counts[s.name], keep),
                )
                for s in found
            ]
        )


def measure_small(bench: Bench) -> None:
    """Measure small messages on kept connections."""
    measure_messages(bench, keep=True)


def measure_churn(bench: Bench) -> None:
    """Measure a connection per message."""
    reuse = Path("/proc/sys/net/ipv4/tcp_tw_reuse")
    if reuse.exists() and reuse.read_text().strip() == "0":
        bench.note("churn: net.ipv4.tcp_tw_reuse is 0: source ports may run out")
    measure_messages(bench, keep=False)


def message_checks(target: str, c_target: str, unit: str) -> tuple[Check, ...]:
    """Return the checks of a row of small messages."""
    found = [Check("rate, HAProxy", "rate", "HAProxy", target, "/s")]
    found.append(Check(f"rate, {C_RELAY}", "rate", C_RELAY, c_target, "/s"))
    found.append(Check(f"CPU per {unit}, HAProxy", "CPU", "HAProxy", "", "µs", 1e6))
    for against in ("HAProxy 2 threads", "nginx", "nginx 2 workers"):
        found.append(Check(f"rate, {against}", "rate", against, "", "/s"))
    found.append(Check(f"CPU per {unit}, nginx", "CPU", "nginx", "", "µs", 1e6))
    found.append(Check(f"CPU per {unit}, {C_RELAY}", "CPU", C_RELAY, "", "µs", 1e6))
    title = f"rate of {C_RELAY}, HAProxy"
    found.append(Check(title, "rate", "HAProxy", "", "/s", ours=C_RELAY))
    found.append(Check("p99 of a message, HAProxy", "p99", "HAProxy", "", "ms", 1e3))
    title = f"rate, {FREE}, HAProxy"
    found.append(Check(title, "rate", "HAProxy", "", "/s", ours=FREE))
    title = f"CPU, {FREE}, HAProxy"
    found.append(Check(title, "CPU", "HAProxy", "", "µs", 1e6, ours=FREE))
    return tuple(found)


# ---- Latency of one client -------------------------------------------------------


def measure_latency(bench: Bench) -> None:
    """Exchange messages on one connection, nothing else going on."""
    with Stage() as stage:
        servers = start_redis_servers(stage)
        found = [Subject("direct", servers[0])]
        found += start_peers(bench, stage, servers) + start_ours(bench, stage, servers)
        found += start_free(bench, stage, servers)
        half = bench.settings.seconds / 2
        counts = {s.name: messages_for(bench, stage, s, 1) for s in found}

        def turn(subject: Subject) -> dict[str, float]:
            count = counts[subject.name] // 2
            figures, _ = redis_benchmark(stage, subject.address, 1, count)
            ordered = probe(subject.address, half)
            return {
                "p50": p50(ordered),
                "p99": nearest_rank(ordered, 99),
                "redis-benchmark p50": figures["p50"],
                "redis-benchmark mean": 1 / figures["rps"],
            }

        bench.in_turn([(s.name, partial(turn, s)) for s in found])


LATENCY_CHECKS = (
    Check("p50, HAProxy", "p50", "HAProxy", "≤ 1.05", "µs", 1e6),
    Check("p99, HAProxy", "p99", "HAProxy", "", "µs", 1e6),
    Check(
        "redis-benchmark p50 (8 µs steps)",
        "redis-benchmark p50",
        "HAProxy",
        "",
        "µs",
        1e6,
    ),
    Check("redis-benchmark mean", "redis-benchmark mean", "HAProxy", "", "µs", 1e6),
    Check("p50, nginx", "p50", "nginx", "", "µs", 1e6),
    Check("p50, direct", "p50", "direct", "", "µs", 1e6),
    Check(f"p50, {FREE}, HAProxy", "p50", "HAProxy", "", "µs", 1e6, ours=FREE),
)


# ---- Held connections ------------------------------------------------------------


def measure_held(bench: Bench) -> None:
    """Hold 9,000 connections, or what the descriptors allow, and use one more."""
    limit = machine.raise_descriptor_limit()
    count = min(MOST_HELD, (limit - SPARE_DESCRIPTORS) // 2)
    bench.note(f"held: {count} connections, by the limit of {limit} descriptors")
    with Stage() as stage:
        servers = start_redis_servers(stage)
        found = start_peers(
            bench, stage, servers, judged_only=True, connections=count + 50
        )
        found += start_ours(bench, stage, servers)
        found += start_free(bench, stage, servers)
        empty = {}
        for subject in found:
            assert subject.pid
            redis_benchmark(stage, subject.address, KEPT_CLIENTS, 2_000)
            empty[subject.name] = machine.memory_of(subject.pid)
        rounds = 1 if bench.settings.quick else bench.settings.rounds
        for _ in range(rounds):
            for subject in found:
                bench.add(LIMIT, {"memory": MEMORY_LIMIT_KIB})
                turn = partial(held_turn, bench, subject, count, empty)
                bench.take_turn(subject.name, turn)


def held_turn(
    bench: Bench, subject: Subject, count: int, empty: dict[str, int]
) -> dict[str, float]:
    """Probe alone, open, probe beside them, close, wait until all is given back."""
    assert subject.pid
    half = bench.settings.seconds / 2
    descriptors = machine.descriptors_of(subject.pid)
    alone = probe(subject.address, half)
    kernel, cpu = machine.kernel_memory(), cpu_now(subject)
    held = Held(subject.address)
    try:
        seconds = held.open(count)
        used = cpu_now(subject).since(cpu)
        busy = probe(subject.address, half)
        memory = machine.memory_of(subject.pid) - empty[subject.name]
        kernel = machine.kernel_memory() - kernel
    finally:
        started = time.monotonic()
        held.close()
    while machine.descriptors_of(subject.pid) > descriptors:
        if time.monotonic() - started > CLOSE_DEADLINE_S:
            raise RunError(f"{subject.name} keeps descriptors of closed connections")
        time.sleep(0.05)
    return {
        "opened": count / seconds,
        "opening CPU": used.total_s / count,
        "memory": memory / count / 1024,
        "kernel memory": kernel / count / 1024,
        "alone p50": p50(alone),
        "busy p50": p50(busy),
        "closed after": time.monotonic() - started,
    }


HELD_CHECKS = (
    Check(MEMORY_TITLE, "memory", LIMIT, "≤ 1", "KiB"),
    Check("memory each, HAProxy", "memory", "HAProxy", "", "KiB"),
    Check("kernel memory each, HAProxy", "kernel memory", "HAProxy", "", "KiB"),
    Check(
        "p50 beside them, alone", "busy p50", ITSELF, "≤ 1.2", "µs", 1e6, "alone p50"
    ),
    Check("p50 beside them, HAProxy", "busy p50", "HAProxy", "", "µs", 1e6),
    Check("opening them, HAProxy", "opened", "HAProxy", "≥ 0.4", "/s"),
    Check("CPU to open one, HAProxy", "opening CPU", "HAProxy", "", "µs", 1e6),
    Check("closing them all, HAProxy", "closed after", "HAProxy", "", "s"),
    Check(f"memory each, {FREE}, HAProxy", "memory", "HAProxy", "", "KiB", ours=FREE),
    Check(f"opening them, {FREE}, HAProxy", "opened", "HAProxy", "", "/s", ours=FREE),
)


# ---- Growth ----------------------------------------------------------------------


def measure_growth(bench: Bench) -> None:
    """Send small messages by ever more clients.

    A thousand connects cost as much as ten thousand messages: so a short run is taken
    off a long one, and what is left is messages on open connections alone.
    """
    with Stage() as stage:
        servers = start_redis_servers(stage)
        found = start_peers(bench, stage, servers, judged_only=True)
        found += start_ours(bench, stage, servers)
        counts = {
            (s.name, n): messages_for(bench, stage, s, n) for s in found for n in GROWTH
        }

        def turn(subject: Subject, clients: int) -> dict[str, float]:
            count = counts[subject.name, clients]
            short = max(GROWTH_SHORT, 2 * clients)
            less = messages_turn(stage, subject, clients, short)
            more = messages_turn(stage, subject, clients, short + count)
            cpu_s = more["CPU"] * (short + count) - less["CPU"] * short
            figures = {"CPU": cpu_s / count, "rate": more["rate"]}
            return {f"{m} at {clients}": v for m, v in figures.items()}

        bench.in_turn([(s.name, partial(turn, s, n)) for n in GROWTH for s in found])


def growth_checks() -> tuple[Check, ...]:
    """Return growth against ourselves, then each step beside HAProxy."""
    found = [
        Check(
            f"CPU per message at {n}, at 10",
            f"CPU at {n}",
            ITSELF,
            "≤ 1.5" if n == max(GROWTH) else "",
            "µs",
            1e6,
            "CPU at 10",
        )
        for n in GROWTH
        if n != 10
    ]
    most = max(GROWTH)
    title, cpu = f"HAProxy at {most}, HAProxy at 10", f"CPU at {most}"
    theirs = {"their_metric": "CPU at 10", "ours": "HAProxy"}
    found.append(Check(title, cpu, ITSELF, "", "µs", 1e6, **theirs))
    for n in GROWTH:
        found.append(
            Check(f"CPU at {n}, HAProxy", f"CPU at {n}", "HAProxy", "", "µs", 1e6)
        )
        found.append(
            Check(f"rate at {n}, HAProxy", f"rate at {n}", "HAProxy", "", "/s")
        )
    return tuple(found)


# ---- server2.py ------------------------------------------------------------------

LOG_OFF = f"{SERVER}, log off"
SOCKETSERVER, ASYNCIO = "socketserver", "asyncio"
FLUSH_EACH = "a flush per message"
GROUPED, ONE_CLIENT = f"{SERVER} --fsync", f"{SERVER} --fsync, 1 client"


def start_server(
    bench: Bench, stage: Stage, name: str, log: str, args: str = "", python: str = ""
) -> Subject:
    """Start server2.py with a log of its own and more options."""
    script = bench.settings.scripts / SERVER
    options = ["0", "--log", log, *shlex.split(bench.settings.server_args)]
    options += shlex.split(args)
    python = python or bench.settings.python
    return start_script(stage, name, script, options, python)


def start_peer(stage: Stage, name: str, kind: str, *options: str) -> Subject:
    """Start a server that does the same work the usual way."""
    log = str(stage.folder / f"{name.replace(' ', '-')}.log")
    script = Path(peers.__file__)
    return start_script(stage, name, script, [kind, log, *options])


def lines_turn(
    bench: Bench, stage: Stage, subject: Subject, clients: int
) -> dict[str, float]:
    """Exchange lines for a turn; return the rate and the CPU seconds of each."""
    before = cpu_now(subject)
    done = generate(stage, subject.address, clients, bench.settings.seconds)
    cpu = cpu_now(subject).since(before)
    return {
        "rate": done.rate,
        "CPU": cpu.total_s / done.exchanges,
        "generator": done.cpu_share,
    }


def measure_server(bench: Bench) -> None:
    """Compare server2.py with the usual ways, and with its own log off."""
    with Stage() as stage:
        found = [start_peer(stage, SOCKETSERVER, "threading")]
        found.append(start_peer(stage, ASYNCIO, "asyncio"))
        if bench.script(SERVER):
            log = str(stage.folder / "server2.log")
            found.append(start_server(bench, stage, SERVER, log))
            found.append(start_server(bench, stage, LOG_OFF, "/dev/null"))
            if python := bench.settings.free_threaded:
                log = str(stage.folder / "server2-free.log")
                found.append(start_server(bench, stage, FREE, log, python=python))
        measure_generator(bench, stage)
        bench.in_turn(
            [
                (s.name, partial(lines_turn, bench, stage, s, KEPT_CLIENTS))
                for s in found
            ]
        )


def measure_generator(bench: Bench, stage: Stage) -> None:
    """Note what our load generators could reach: their rate against Redis."""
    if subjects.missing(["redis-server", "redis-benchmark"]):
        return
    address = start_redis(stage, FIRST_SERVER)
    done = generate(stage, address, KEPT_CLIENTS, bench.settings.seconds, redis=True)
    count = int(done.rate * bench.settings.seconds)
    figures, _ = redis_benchmark(stage, address, KEPT_CLIENTS, count)
    bench.add("generator", {"rate": done.rate, "generator": done.cpu_share})
    bench.note(
        f"server: the load's two processes reach {done.rate:,.0f}/s against Redis,"
        f" redis-benchmark {figures['rps']:,.0f}/s; they must stay below that"
    )


def measure_fsync(bench: Bench) -> None:
    """Compare shared flushes with one flush per message."""
    kind = machine.file_system_of(tempfile.gettempdir())
    bench.note(f"fsync: the logs are on {kind}")
    with Stage() as stage:
        each = start_peer(stage, FLUSH_EACH, "threading", "--fsync")
        turns = [(FLUSH_EACH, each, FSYNC_CLIENTS)]
        if bench.script(SERVER):
            log = str(stage.folder / "server2.log")
            ours = start_server(bench, stage, GROUPED, log, "--fsync")
            turns += [(GROUPED, ours, FSYNC_CLIENTS), (ONE_CLIENT, ours, 1)]
        bench.in_turn(
            [(name, partial(lines_turn, bench, stage, s, n)) for name, s, n in turns]
        )


SERVER_CHECKS = (
    Check("rate, socketserver + logging", "rate", SOCKETSERVER, "≥ 3", "/s"),
    Check("CPU per message, socketserver", "CPU", SOCKETSERVER, "", "µs", 1e6),
    Check("rate, asyncio + logging", "rate", ASYNCIO, "", "/s"),
    Check("CPU per message, asyncio", "CPU", ASYNCIO, "", "µs", 1e6),
    Check("rate, log to /dev/null", "rate", LOG_OFF, "≥ 0.9", "/s"),
    Check(f"rate, {FREE}, socketserver", "rate", SOCKETSERVER, "", "/s", ours=FREE),
)
FSYNC_CHECKS = (
    Check(
        "rate, flush each (socketserver)",
        "rate",
        FLUSH_EACH,
        "≥ 4.5",
        "/s",
        ours=GROUPED,
    ),
    Check("rate, itself with 1 client", "rate", ONE_CLIENT, "", "/s", ours=GROUPED),
)


# ---- client2.py ------------------------------------------------------------------

REDIS_BENCHMARK = "redis-benchmark"


def client_turn(
    bench: Bench,
    stage: Stage,
    python: str,
    address: Address,
    clients: int,
    each: int,
) -> dict[str, float]:
    """Run client2.py; return its figures."""
    report = stage.folder / "client2.json"
    report.unlink(missing_ok=True)
    script = bench.settings.scripts / CLIENT
    command = [python or sys.executable, str(script), str(clients)]
    command += ["--target", f"{address[0]}:{address[1]}", "--messages", str(each)]
    command += ["--message", "PING", "--any-reply", "--quiet", "--json", str(report)]
    command += shlex.split(bench.settings.client_args)
    done = stage.run(command, CLIENT_DEADLINE_S)
    if not report.exists():
        raise RunError(f"{CLIENT} wrote no --json file: {stage.last_error()}")
    found = json.loads(report.read_text())
    if found["exchanges"]["failed"]:
        raise RunError(f"{CLIENT}: {found['exchanges']['failed']} exchanges failed")
    latency = found["latency_ns"]
    return {
        f"rate at {clients}": found["exchanges"]["per_s"],
        f"CPU at {clients}": done.cpu_s / found["exchanges"]["confirmed"],
        f"p50 at {clients}": latency["p50"] / 1e9,
        f"p99 at {clients}": latency["p99"] / 1e9,
    }


def redis_benchmark_turn(
    stage: Stage, address: Address, clients: int, count: int
) -> dict[str, float]:
    """Run redis-benchmark; return the same figures."""
    figures, cpu_s = redis_benchmark(stage, address, clients, count)
    return {
        f"rate at {clients}": figures["rps"],
        f"CPU at {clients}": cpu_s / count,
        f"p50 at {clients}": figures["p50"],
        f"p99 at {clients}": figures["p99"],
    }


def measure_client(bench: Bench) -> None:
    """Compare client2.py with redis-benchmark, against one Redis."""
    script = bench.script(CLIENT)
    interpreters = {CLIENT: bench.settings.python}
    if bench.settings.free_threaded:
        interpreters[FREE] = bench.settings.free_threaded
    with Stage() as stage:
        address = start_redis(stage, FIRST_SERVER)
        target = Subject("Redis", address)
        counts = {n: messages_for(bench, stage, target, n) for n in CLIENTS}
        for _ in range(bench.settings.rounds):
            for n in CLIENTS:
                theirs = partial(redis_benchmark_turn, stage, address, n, counts[n])
                bench.take_turn(REDIS_BENCHMARK, theirs)
                each = max(1, counts[n] // n)
                for name, python in interpreters.items() if script else ():
                    ours = partial(client_turn, bench, stage, python, address, n, each)
                    bench.take_turn(name, ours)


def client_checks() -> tuple[Check, ...]:
    """Return the rates, which are judged, then cost and latency side by side."""
    found = []
    for metric, unit, scale, ours in (
        ("rate", "/s", 1.0, ""),
        ("CPU", "µs", 1e6, ""),
        ("p50", "µs", 1e6, ""),
        ("p99", "µs", 1e6, ""),
        ("rate", "/s", 1.0, FREE),
    ):
        for n in CLIENTS:
            target = CLIENT_TARGETS[n] if metric == "rate" and not ours else ""
            name = f"{metric} at {n}"
            title = f"{metric}, {n} client{'s' * (n > 1)}{ours and ', '}{ours}"
            check = Check(title, name, REDIS_BENCHMARK, target, unit, scale, ours=ours)
            found.append(check)
    return tuple(found)


# ---- The table -------------------------------------------------------------------

REDIS = ("redis-server", "redis-benchmark")
ROWS = (
    Row(
        "bulk",
        "balancer",
        "bulk through the balancer: iperf3 -P 2",
        ("iperf3",),
        measure_bulk,
        bulk_checks(),
    ),
    Row(
        "small",
        "balancer",
        "small messages, kept connections: redis-benchmark -c 50",
        REDIS,
        measure_small,
        message_checks("≥ 0.7", "≥ 0.9", "message"),
    ),
    Row(
        "churn",
        "balancer",
        "a connection per message: redis-benchmark -c 50 -k 0",
        REDIS,
        measure_churn,
        message_checks("≥ 0.62", "≥ 0.8", "connection"),
    ),
    Row(
        "latency",
        "balancer",
        "latency, 1 client",
        REDIS,
        measure_latency,
        LATENCY_CHECKS,
    ),
    Row(
        "held",
        "balancer",
        "9,000 connections opened and held, one busy",
        REDIS,
        measure_held,
        HELD_CHECKS,
    ),
    Row(
        "growth",
        "balancer",
        "growth: redis-benchmark -c 1, 10, 100, 1000",
        REDIS,
        measure_growth,
        growth_checks(),
    ),
    Row(
        "server",
        "server",
        "server2.py: 50 clients, log on",
        (),
        measure_server,
        SERVER_CHECKS,
        SERVER,
    ),
    Row(
        "fsync",
        "server",
        "server2.py --fsync: 50 clients share flushes",
        (),
        measure_fsync,
        FSYNC_CHECKS,
        SERVER,
    ),
    Row(
        "client",
        "client",
        "client2.py beside redis-benchmark, one Redis",
        REDIS,
        measure_client,
        client_checks(),
        CLIENT,
    ),
)
