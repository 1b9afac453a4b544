"""Part 6: too few descriptors, threads, ports; clocks that step; a stopped client."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
import unittest
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.balancer import STATUS, endings
from tests.faults.lab import LONG_ONLY, Lab, scenario
from tests.faults.records import TIME
from tests.faults.wires import Host
from tests.support import (
    Running,
    Target,
    cpu_s,
    dial,
    in_parallel,
    read_line,
    run_script,
    split_address,
    status_json,
    threads,
    wait_until,
)

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PATIENCE_S = 25.0
GREETING = b"Hello\n"


def is_confirmed(sock: socket.socket) -> bool:
    """Send a message; tell whether it is confirmed before the patience ends."""
    sock.settimeout(PATIENCE_S)
    try:
        sock.sendall(GREETING)
        return read_line(sock).endswith(b" received: " + GREETING)
    except OSError:
        return False


def confirm_once(target: Target) -> bool:
    """Dial, and tell whether a message is confirmed."""
    try:
        with dial(target, PATIENCE_S) as sock:
            return is_confirmed(sock)
    except OSError:
        return False


def lines_about(running: Running, pattern: str) -> list[str]:
    """Return the lines of both outputs that match."""
    text = running.stdout_text() + running.stderr_text()
    return [line for line in text.splitlines() if re.search(pattern, line)]


# ---- Descriptors -----------------------------------------------------------------


@scenario(6, short_s=0)
def few_descriptors(lab: Lab) -> None:
    """Allow 64 descriptors and send 120 clients: each is served in the end."""
    if resource is None:
        raise unittest.SkipTest("needs resource limits (Unix)")
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64))
    server = lab.start("server2.py", 0, "--quiet", preexec_fn=limit)
    balancer = lab.balancer([server], preexec_fn=limit)
    for target in (server, balancer):
        with contextlib.ExitStack() as stack:
            first = [stack.enter_context(dial(target, PATIENCE_S)) for _ in range(10)]
            lab.expect(all(map(is_confirmed, first)), "no service before the crowd")
            # Many more than there are descriptors wait in the listen queue meanwhile.
            crowd = [stack.enter_context(dial(target, PATIENCE_S)) for _ in range(120)]
            before = cpu_s(target.pid)
            lab.expect(all(map(is_confirmed, first)), "live connections stopped")
            threading.Event().wait(0.5)
            spent = cpu_s(target.pid) - before
            lab.expect(spent < 0.4, f"{target.script} spent {spent:.2f} s CPU waiting")
            for sock in first:
                sock.close()
            served = 0
            for sock in crowd:  # one after the other: each leaves room for the next
                served += is_confirmed(sock)
                sock.close()
            lab.expect(served == 120, f"{served} of 120 served by {target.script}")
            lab.count("connections", 130)
        lab.expect(confirm_once(target), f"{target.script} does not recover")
    few = lines_about(balancer, "state=DOWN")
    lab.expect(not few, f"a server was blamed for the balancer's shortage: {few}")


@scenario(6, short_s=LONG_ONLY)
def client_with_few_descriptors(lab: Lab) -> None:
    """Run client2.py with 64 descriptors: it spreads out, or a line says what to do."""
    if resource is None:
        raise unittest.SkipTest("needs resource limits (Unix)")
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64))
    server = lab.start("server2.py", 0, "--quiet")
    for clients, options in ((300, ("--workers", 1)), (300, ()), (3000, ())):
        done = run_script(
            "client2.py", clients, "--target", server.address, "--quiet", *options,
            cwd=lab.folder, preexec_fn=limit,
        )  # fmt: skip
        said = f"{clients} clients {options}: exit {done.returncode}: {done.stderr!r}"
        line = re.fullmatch(r"client2\.py: [^\n]+\n", done.stderr)
        told = done.returncode == 2 and line and "ulimit -n" in done.stderr
        # Processes have 64 each: with many, so few are enough.
        lab.expect(told or (done.returncode == 0 and not options), said[:500])


# ---- Threads ---------------------------------------------------------------------


@contextlib.contextmanager
def task_limit(lab: Lab, name: str) -> Iterator[Path]:
    """Make a control group; its file pids.max limits threads (cgroups(7))."""
    folder = next(
        (
            root / f"lab-faults-{os.getpid()}-{name}"
            for root in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
            if (root / "cgroup.procs").exists()
        ),
        None,
    )
    if folder is None:
        raise unittest.SkipTest("needs control groups (Linux)")
    try:
        folder.mkdir()
    except OSError as error:
        raise unittest.SkipTest(f"needs root for a control group: {error}") from None
    lab.at_end(folder.rmdir)
    if not (folder / "pids.max").exists():
        raise unittest.SkipTest("needs the control group pids")
    yield folder


def join_group(folder: Path) -> None:
    """Move this process there (a `preexec_fn`)."""
    (folder / "cgroup.procs").write_text(str(os.getpid()))


def has_settled(pid: int) -> bool:
    """Tell whether a process has as many threads as a moment ago."""
    before = threads(pid)
    threading.Event().wait(0.2)
    return threads(pid) == before


@scenario(6, short_s=0)
def few_threads(lab: Lab) -> None:
    """Allow few threads and send more clients: live ones go on, the rest is served."""
    for script in ("server2.py", "load_balancer.py"):
        name = script.partition(".")[0]
        with task_limit(lab, name) as group:
            join = partial(join_group, group)
            if script == "server2.py":
                target = lab.start(script, 0, "--quiet", preexec_fn=join)
            else:
                servers = lab.servers(1)
                target = lab.balancer(servers, preexec_fn=join)
            lab.expect(confirm_once(target), "no service before the limit")
            # It serves before all its own threads are started.
            wait_until(partial(has_settled, target.pid), what="its last thread")
            room = 12
            (group / "pids.max").write_text(str(threads(target.pid) + room))
            with contextlib.ExitStack() as stack:
                crowd = [
                    stack.enter_context(dial(target, PATIENCE_S)) for _ in range(60)
                ]
                lab.expect(is_confirmed(crowd[0]), f"{script}: the first is not served")
                # As long as all are open, each one holds a thread or waits for one.
                words = partial(lines_about, target, "thread")
                wait_until(words, what=f"{script} to say that threads are short")
                served = 0
                for sock in crowd:
                    served += is_confirmed(sock)
                    sock.close()
                lab.expect(served == 60, f"{script}: {served} of 60 were served")
            said = words()
            lab.expect(len(said) < 60, f"{script} says too much: {len(said)} lines")
            (group / "pids.max").write_text("max")
            wait_until(partial(confirm_once, target), what="service after the limit")
            lab.count("connections", 60)


# ---- Listen queues and source ports ----------------------------------------------


def host_alone(lab: Lab) -> Host:
    """Return a network namespace with loopback only."""
    if not hasattr(os, "geteuid") or os.geteuid():
        raise unittest.SkipTest("needs root for network namespaces (Linux)")
    host = Host(1)
    lab.at_end(host.close)
    host.loopback()
    return host


@scenario(6, short_s=LONG_ONLY)
def tiny_listen_queue(lab: Lab) -> None:
    """Let one connection wait in each listen queue: 12 clients get an answer."""
    host = host_alone(lab)
    host.configure("net.core.somaxconn", "1")
    # Cookies would let clients believe in connections that the kernel has forgotten.
    host.configure("net.ipv4.tcp_syncookies", "0")
    servers = lab.servers(3, preexec_fn=host.enter)
    balancer = lab.balancer(servers, preexec_fn=host.enter)

    def client() -> str:
        try:
            with host.dial(split_address(balancer), 2 * PATIENCE_S) as sock:
                sock.sendall(GREETING)
                return "confirmed" if read_line(sock) else "ended"
        except ConnectionError:
            return "refused"
        except TimeoutError:
            return "silence"

    # Not many: the kernel repeats their requests in step, and takes two of each round.
    answers = Counter(in_parallel(*[client] * 12, timeout=120))
    lab.note(f"answers: {dict(answers)}")
    lab.expect(answers["confirmed"] == 12, f"not all are served: {answers}")
    lab.expect(client() == "confirmed", "no service after the crowd")
    lab.note(f"ends: {Counter(e.code for e in endings(balancer.stdout_lines()))}")
    lab.count("connections", 13)


@scenario(6, short_s=0)
def no_source_port_left(lab: Lab) -> None:
    """Take all source ports of the balancer: no server is blamed, and it recovers."""
    host = host_alone(lab)
    server = lab.servers(1, preexec_fn=host.enter)[0]
    options = ("--status", "127.0.0.1:0", "--check-interval", 0.3)
    balancer = lab.balancer([server], *options, preexec_fn=host.enter)
    host.configure("net.ipv4.ip_local_port_range", "40000 40015")

    def client(port: int) -> socket.socket:
        with host.entered():
            sock = socket.socket()
        sock.bind(("127.0.0.1", port))  # outside of that range
        sock.settimeout(PATIENCE_S)
        sock.connect(split_address(balancer))
        return sock

    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(client(20_000 + k)) for k in range(40)]
        answered = [is_confirmed(sock) for sock in crowd]
        served = sum(answered)
        lab.expect(0 < served <= 16, f"{served} of 40 were served by 16 ports")
        alive = [sock for sock, yes in zip(crowd, answered, strict=True) if yes]
        lab.expect(all(map(is_confirmed, alive)), "live connections stopped")
        blamed = lines_about(balancer, "state=DOWN")
        lab.expect(not blamed, f"a server was blamed: {blamed}")
        told = lines_about(balancer, "source port|[Cc]annot assign|cannot connect")
        lab.expect(told, "nothing is said about source ports")
    with host.entered():
        where = STATUS.search(balancer.stdout_lines()[0])
    assert where
    host.configure("net.ipv4.ip_local_port_range", "41000 42000")
    with client(21_000) as sock:
        lab.expect(is_confirmed(sock), "the balancer does not recover")
    with host.entered():
        states = {server["state"] for server in status_json(where[1])["servers"]}
    lab.expect(states == {"UP"}, f"states {states}")
    lab.count("connections", 41)


# ---- Clocks ----------------------------------------------------------------------

STEPPED = """
import os, time
_time, _time_ns = time.time, time.time_ns
def _step():
    try:
        with open(os.environ["LAB_CLOCK"]) as file:
            return int(file.read() or 0)
    except OSError:
        return 0
time.time = lambda: _time() + _step()
time.time_ns = lambda: _time_ns() + _step() * 10**9
"""


class Clock:
    """A wall clock that a test can set, for the processes that get `environment`.

    Setting the machine's would hit everybody on it, and there is no namespace for it
    (time_namespaces(7) has the monotonic clocks only): so Python's reading of it is
    replaced, by a `sitecustomize` module.
    """

    def __init__(self, lab: Lab) -> None:
        """Make the module; the clock shows the right time."""
        folder = lab.folder / "clock"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(STEPPED)
        self._file = folder / "step"
        self.environment = {"PYTHONPATH": str(folder), "LAB_CLOCK": str(self._file)}

    def step(self, seconds: int) -> None:
        """Set the clock off by so much."""
        part = self._file.with_suffix(".new")
        part.write_text(str(seconds))
        os.replace(part, self._file)


@scenario(6, short_s=0)
def clock_that_steps(lab: Lab) -> None:
    """Step the clock an hour back and forth: service and durations do not notice."""
    clock = Clock(lab)
    server = lab.start("server2.py", 0, "--idle-timeout", 20, env=clock.environment)
    options = ("--idle-timeout", 20, "--check-interval", 0.2, "--status", "127.0.0.1:0")
    balancer = lab.balancer([server], *options, env=clock.environment)
    with dial(balancer) as sock:
        lab.expect(is_confirmed(sock), "no service")
        for step in (3600, -3600, 0):
            clock.step(step)
            lab.count("clock steps")
            lab.expect(is_confirmed(sock), f"cut off after a step of {step} s")
            lab.expect(confirm_once(balancer), f"no service after a step of {step} s")
    line = balancer.wait_for_line(" client=", count=4)
    del line
    for line in lines_about(balancer, "duration_ms="):
        took_ms = float(line.partition("duration_ms=")[2].split()[0])
        lab.expect(0 <= took_ms < 60_000, f"a step is in a duration: {line}")
    closed = r"closed: by client, \d+ messages?, \d+ bytes in, \d+ bytes out, (\S+) ms"
    wait_until(lambda: len(re.findall(closed, lab.log.read_text())) == 4, what="closed")
    for took in re.findall(closed, lab.log.read_text()):
        lab.expect(0 <= float(took) < 60_000, f"a step is in the log: {took} ms")
    hours = {line[11:13] for line in lab.log.read_text().splitlines()}
    lab.expect(len(hours) >= 3, f"the clock did not step: {hours}")
    lab.expect(re.match(TIME.decode(), lab.log.read_text()), "no time in the log")
    lab.expect(not lines_about(balancer, "state=DOWN"), "a server went DOWN")


@scenario(6, short_s=LONG_ONLY)
def clock_that_steps_under_the_client(lab: Lab) -> None:
    """Step the client's clock during a run: its verdict says so."""
    clock = Clock(lab)
    server = lab.start("server2.py", 0, "--quiet")
    running = lab.spawn(
        "client2.py", 5, "--target", server.address, "--rate", 200, "--duration", 3,
        "--json", "run.json", "--quiet", env=clock.environment,
    )  # fmt: skip
    wait_until(lambda: lab.log.exists() and lab.log.stat().st_size > 5000, what="load")
    clock.step(3600)
    lab.count("clock steps")
    code = running.wait(60)
    document = json.loads((lab.folder / "run.json").read_text())
    lab.expect(code == 0, f"exit {code}: {document['failures']}")
    for name in ("min", "mean", "p50", "max"):
        figure = document["latency_ns"][name]
        lab.expect(0 <= figure < 60e9, f"latency {name} = {figure} ns")
    p50_s, wall_s = document["response_time_ns"]["p50"] / 1e9, document["wall_s"]
    figures = f"response time p50 {p50_s:.3f} s, wall {wall_s:.1f} s"
    lab.expect(0 <= p50_s < 60 and 0 < wall_s < 60, f"the step is in {figures}")
    reasons = " ".join(document["reasons"])
    said = document["verdict"] == "doubtful" and "clock" in reasons
    lab.expect(said, f"{document['verdict']}: {reasons}")


# ---- A stopped client ------------------------------------------------------------


@scenario(6, short_s=0)
def stopped_client(lab: Lab) -> None:
    """Stop client2.py for a while: its verdict says so."""
    if not hasattr(signal, "SIGSTOP"):
        raise unittest.SkipTest("needs SIGSTOP (Unix)")
    server = lab.start("server2.py", 0, "--quiet")
    running = lab.spawn(
        "client2.py", 5, "--target", server.address, "--rate", 100, "--duration", 2.5,
        "--json", "run.json", "--quiet",
    )  # fmt: skip
    wait_until(lambda: lab.log.exists() and lab.log.stat().st_size > 2000, what="load")
    running.signal(signal.SIGSTOP)
    try:
        threading.Event().wait(1.2)
    finally:
        running.signal(signal.SIGCONT)
    lab.count("stops")
    code = running.wait(60)
    document = json.loads((lab.folder / "run.json").read_text())
    lab.expect(code == 0, f"exit {code}: {document['failures']}")
    lab.expect(document["verdict"] == "doubtful", f"verdict {document['verdict']}")
    reasons = " ".join(document["reasons"])
    lab.expect(re.search("stopped|stood still", reasons), f"reasons: {reasons}")


@scenario(6, short_s=LONG_ONLY)
def no_memory_for_the_log(lab: Lab) -> None:
    """Limit address space of the server: it goes on serving what it can."""
    if resource is None:
        raise unittest.SkipTest("needs resource limits (Unix)")
    size = 160 << 20
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (size, size))
    server = lab.start("server2.py", 0, "--quiet", preexec_fn=limit)
    lab.expect(confirm_once(server), "no service before the crowd")
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(dial(server, PATIENCE_S)) for _ in range(400)]
        served = silent = 0
        for sock in crowd:
            answered = silent < 2 and is_confirmed(sock)
            served, silent = served + answered, silent + (not answered)
            sock.close()
    lab.note(f"{served} of 400 served at once with 160 MiB of address space")
    lab.expect(server.returncode is None, f"ended: {server.stderr_text()[-500:]}")
    wait_until(partial(confirm_once, server), what="service after the crowd")
    lab.count("connections", 401)
