"""Where the CPU goes while a row runs: `--profile ROW`.

The same load is sent three times: undisturbed (user and system time of each process
and its busiest threads, from /proc), under `strace -c` (system calls per message; it
slows the subject down, so its times are left out), and under `perf record` (the
functions of kernel and interpreter, sampled by the clock). A balancer's row shows
HAProxy first, the server's ThreadingTCPServer, the client's redis-benchmark.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import loads, machine
from tests.bench.machine import POLL_S, START_DEADLINE_S, RunError, Stage
from tests.bench.rows import (
    FIRST_SERVER,
    KEPT_CLIENTS,
    SOCKETSERVER,
    Bench,
    Settings,
    start_ours,
    start_peer,
    start_peers,
    start_redis_servers,
    start_server,
)
from tests.bench.subjects import CLIENT, SERVER, Address, Subject, start_redis

TOP_CALLS = 12
TOP_SYMBOLS = 30
TRACE_SHARE = 0.2  # of the messages: a traced system call takes far longer

Load = Callable[[float], float]  # a share of the load to send → units that were sent
CLIENTS = {"small": 50, "churn": 50, "latency": 1, "growth": 1_000}
KNOWN = ("bulk", *CLIENTS, "held", "server", "client")
HELD = 1_000  # connections that are opened and closed, three times
LOADERS = (1, 50, 200)  # clients of client2.py


def message_load(stage: Stage, subject: Subject, row: str, seconds: float) -> Load:
    """Return a load of small messages; its unit is a message."""
    clients, keep = CLIENTS[row], row != "churn"
    pilot = max(loads.PILOT_MESSAGES, 2 * clients)
    address = subject.address
    found, _ = loads.redis_benchmark(stage, address, clients, pilot, keep=keep)
    count = int(found["rps"] * seconds)

    def send(share: float) -> float:
        part = max(clients, int(count * share))
        loads.redis_benchmark(stage, address, clients, part, keep=keep)
        return part

    return send


def bulk_load(stage: Stage, subject: Subject, server: Address, seconds: float) -> Load:
    """Return a load of bytes, up then down; its unit is a GB."""

    def send(share: float) -> float:
        moved = [
            loads.iperf3(stage, server, subject.address, seconds, down=down)["bytes"]
            for down in (False, True)
        ]
        return sum(moved) / 1e9

    return send


def held_load(subject: Subject) -> Load:
    """Return a load of connections that are opened, used once and closed."""

    def send(share: float) -> float:
        held = loads.Held(subject.address)
        try:
            held.open(int(HELD * share))
        finally:
            held.close()
        return HELD * share

    return send


def lines_load(stage: Stage, subject: Subject, seconds: float) -> Load:
    """Return a load of lines on kept connections; its unit is a message."""

    def send(share: float) -> float:
        return loads.generate(
            stage, subject.address, KEPT_CLIENTS, seconds * share
        ).exchanges

    return send


# ---- Three ways to look ----------------------------------------------------------


def show_cpu(subject: Subject, load: Load, unit: str) -> None:
    """Print user and system time per unit, of each process and the busiest threads."""
    assert subject.pid
    before, threads = machine.cpu_of(subject.pid), machine.threads_of(subject.pid)
    started = time.perf_counter()
    units = load(1.0)
    wall_s = time.perf_counter() - started
    cpu = machine.cpu_of(subject.pid).since(before)
    scale, name = (1.0, "s") if unit == "GB" else (1e6, "µs")
    print(
        f" {cpu.total_s / units * scale:.3g} {name} per {unit}:"
        f" user {cpu.user_s / units * scale:.3g}"
        f" + system {cpu.system_s / units * scale:.3g}"
        f"   ({cpu.total_s / wall_s:.2f} cores, {units:.4g} {unit}s in {wall_s:.1f} s)"
    )
    for pid, (command, user, system) in sorted(cpu.processes.items()):
        if user + system:
            print(
                f"  process {pid:<7} {command:<16}"
                f" user {user:.2f} s, system {system:.2f} s"
            )
    after = machine.threads_of(subject.pid)
    used = sorted((v - threads.get(t, 0.0) for t, v in after.items()), reverse=True)
    busiest = ", ".join(f"{v:.2f}" for v in used[:8] if v)
    print(f"  {len(used)} threads; the busiest used {busiest} s")


@contextlib.contextmanager
def watching(
    stage: Stage, command: list[str], is_ready: Callable[[], bool]
) -> Iterator[None]:
    """Run a program that watches others from its being ready until the block ends."""
    watcher = stage.start(command)
    deadline = time.monotonic() + START_DEADLINE_S
    try:
        while not is_ready():
            if watcher.poll() is not None or time.monotonic() > deadline:
                raise RunError(f"{command[0]}: {stage.last_error()}")
            time.sleep(POLL_S)
        yield
        watcher.send_signal(signal.SIGINT)
        watcher.wait(START_DEADLINE_S)
    finally:
        stage.stop(watcher)


def show_calls(stage: Stage, subject: Subject, load: Load, unit: str) -> None:
    """Print the system calls per unit."""
    assert subject.pid
    if not shutil.which("strace"):
        print(" system calls: apt install strace")
        return
    family = machine.family_of(subject.pid)
    output = stage.folder / "strace.txt"
    targets = [word for pid in family for word in ("-p", str(pid))]
    command = ["strace", "-f", "-c", "-U", "name,calls,errors", "-o", str(output)]
    seen = len(stage.errors())

    def is_ready() -> bool:
        return stage.errors()[seen:].count("attached") >= len(family)

    with watching(stage, [*command, *targets], is_ready):
        units = load(TRACE_SHARE)
    print_calls(output, units, unit)


def print_calls(output: Path, units: float, unit: str) -> None:
    """Print what strace counted, per unit."""
    calls = []
    for line in output.read_text().splitlines():
        if match := re.match(r"\s*(\w+)\s+(\d+)(?:\s+(\d+))?\s*$", line):
            calls.append((int(match[2]), int(match[3] or 0), match[1]))
    print(f" system calls per {unit} (strace -c; of which with an error):")
    for number, errors, name in sorted(calls, reverse=True)[: TOP_CALLS + 1]:
        if name != "total":
            failed = f"  ({errors / units:.2f})" if errors else ""
            print(f"  {number / units:>9.2f}  {name}{failed}")


def show_functions(stage: Stage, subject: Subject, load: Load) -> None:
    """Print the functions that the samples of a clock fell into."""
    assert subject.pid
    if not shutil.which("perf"):
        print(" functions: apt install linux-perf")
        return
    data = stage.folder / "perf.data"
    pids = ",".join(map(str, machine.family_of(subject.pid)))
    command = ["perf", "record", "-e", "cpu-clock", "-F", "997", "-o", str(data)]
    # perf opens its counters, then writes the file's header, then lets them run.
    with watching(
        stage, [*command, "-p", pids], lambda: data.exists() and data.stat().st_size > 0
    ):
        load(1.0)
    print_functions(data)


def print_functions(data: Path) -> None:
    """Print the functions that perf's samples fell into."""
    report = subprocess.run(
        ["perf", "report", "-i", str(data), "--stdio", "-F", "overhead,dso,sym"],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [ln for ln in report.stdout.splitlines() if re.match(r"\s+\d+\.\d+%", ln)]
    if not lines:
        print(f" functions: perf found none ({report.stderr.strip()[:60]!r})")
        return
    print(" functions (perf, by samples of the clock):")
    shares: dict[str, float] = {}
    for line in lines:
        share, dso = line.split()[:2]
        shares[dso] = shares.get(dso, 0.0) + float(share.rstrip("%"))
    for dso, total in sorted(shares.items(), key=lambda pair: -pair[1])[:5]:
        print(f"  {total:>8.2f}%  all of {Path(dso).name}")
    for line in lines[:TOP_SYMBOLS]:
        share, dso, *symbol = line.split()
        print(f"  {share:>9}  {Path(dso).name[:24]:<24}  {' '.join(symbol)[:50]}")


def profile_client(bench: Bench, stage: Stage) -> None:
    """Show redis-benchmark and client2.py against one Redis, from start to end."""
    address = start_redis(stage, FIRST_SERVER)
    script = bench.settings.scripts / CLIENT
    python = bench.settings.python or sys.executable
    for clients in LOADERS:
        pilot, _ = loads.redis_benchmark(stage, address, clients, 20_000)
        count = int(pilot["rps"] * bench.settings.seconds)
        theirs = f"redis-benchmark -h {address[0]} -p {address[1]} -t ping_inline"
        theirs += f" -c {clients} -n {count}"
        ours = f"{python} {script} {clients} --target {address[0]}:{address[1]}"
        ours += f" --messages {count // clients} --message PING --any-reply --quiet"
        ours += f" --json {stage.folder}/client.json {bench.settings.client_args}"
        for command in (theirs, ours):
            print(f"{Path(command.split()[0]).name}, {clients} clients")
            show_program(stage, command.split(), count)


def show_program(stage: Stage, command: list[str], units: int) -> None:
    """Print CPU, system calls and functions of a program that runs to its end."""
    done = stage.run(command, START_DEADLINE_S * 4)
    share, rate = done.cpu_s / done.wall_s, units / done.wall_s
    cost = f"{done.cpu_s / units * 1e6:.3g} µs per message"
    print(f" {cost} ({share:.2f} cores, {rate:.0f}/s)")
    if shutil.which("strace"):
        output = stage.folder / "strace.txt"
        tracer = ["strace", "-f", "-c", "-U", "name,calls,errors", "-o", str(output)]
        stage.run([*tracer, *command], START_DEADLINE_S * 20)
        print_calls(output, units, "message")
    if shutil.which("perf"):
        data = stage.folder / "perf.data"
        recorder = ["perf", "record", "-e", "cpu-clock", "-F", "997", "-o", str(data)]
        stage.run([*recorder, *command], START_DEADLINE_S * 4)
        print_functions(data)


def subjects_of(bench: Bench, stage: Stage, row: str) -> list[tuple[Subject, Load]]:
    """Start what a row measures; return it with the load of each."""
    seconds = bench.settings.seconds
    if row == "server":
        log = str(stage.folder / "server2.log")
        found = [start_peer(stage, SOCKETSERVER, "threading")]
        found.append(start_server(bench, stage, SERVER, log))
        return [(subject, lines_load(stage, subject, seconds)) for subject in found]
    host = machine.loopback(FIRST_SERVER)
    bulk = (host, machine.free_port(host))
    servers = [bulk] if row == "bulk" else start_redis_servers(stage)
    found = start_peers(bench, stage, servers, judged_only=True)
    found += start_ours(bench, stage, servers)
    if row == "bulk":
        return [(s, bulk_load(stage, s, bulk, seconds)) for s in found]
    if row == "held":
        return [(s, held_load(s)) for s in found]
    return [(s, message_load(stage, s, row, seconds)) for s in found]


def run(settings: Settings, row: str) -> int:
    """Profile a row's subjects under its load; return an exit code."""
    if row not in KNOWN:
        print(f"--profile: only the rows {', '.join(KNOWN)}", file=sys.stderr)
        return 2
    bench = Bench(settings)
    unit = {"bulk": "GB", "churn": "connection", "held": "connection"}
    with Stage() as stage:
        if row == "client":
            profile_client(bench, stage)
            return 0
        for subject, load in subjects_of(bench, stage, row):
            print(subject.name)
            show_cpu(subject, load, unit.get(row, "message"))
            show_functions(stage, subject, load)
            try:
                show_calls(stage, subject, load, unit.get(row, "message"))
            except RunError as error:
                print(f" system calls: none, traced it is too slow: {error}")
    for note in bench.notes:
        print(f"note: {note}")
    return 0
