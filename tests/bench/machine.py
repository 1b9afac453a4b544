"""Processes that are started and stopped by id, and what /proc says about them."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.bench.figures import family, parse_stat

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
START_DEADLINE_S = 15.0
STOP_DEADLINE_S = 10.0
ERROR_FILE = "errors.txt"
POLL_S = 0.01  # between two looks at a foreign process, which sends no event
FIRST_PORT = 20_000  # below the kernel's source ports (32768 and up by default),
LAST_PORT = 32_000  # which a run with a connection per message uses up


class RunError(Exception):
    """A program did not start, ended too early, or took too long; says which."""


# ---- CPU and memory of a process and its children --------------------------------


@dataclass(slots=True)
class Cpu:
    """CPU time in seconds; by process as (name, user, system), for profiles."""

    user_s: float = 0.0
    system_s: float = 0.0
    processes: dict[int, tuple[str, float, float]] = field(default_factory=dict)

    @property
    def total_s(self) -> float:
        """Return user and system time together."""
        return self.user_s + self.system_s

    def since(self, before: Cpu) -> Cpu:
        """Return what was used between two readings of the same family."""
        return Cpu(
            self.user_s - before.user_s,
            self.system_s - before.system_s,
            {
                pid: (name, user - old[1], system - old[2])
                for pid, (name, user, system) in self.processes.items()
                for old in [before.processes.get(pid, ("", 0.0, 0.0))]
            },
        )


def read_stat(path: Path) -> tuple[str, int, int, int] | None:
    """Return the parsed stat file of a process or thread; None if it is gone."""
    try:
        return parse_stat((path / "stat").read_text(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def family_of(pid: int) -> list[int]:
    """Return `pid` and all processes that descend from it, as they are now."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := read_stat(Path("/proc", entry))):
            parents[int(entry)] = stat[1]
    return family(parents, pid)


def cpu_of(pid: int) -> Cpu:
    """Return the CPU time of a process, all its threads, and all its children."""
    cpu = Cpu()
    for member in family_of(pid):
        if stat := read_stat(Path("/proc", str(member))):
            name, _, user, system = stat
            cpu.processes[member] = (name, user * TICK_S, system * TICK_S)
            cpu.user_s += user * TICK_S
            cpu.system_s += system * TICK_S
    return cpu


def threads_of(pid: int) -> dict[int, float]:
    """Return the CPU seconds of each living thread of a process and its children."""
    found = {}
    for member in family_of(pid):
        with contextlib.suppress(FileNotFoundError):
            for task in Path("/proc", str(member), "task").iterdir():
                if stat := read_stat(task):
                    found[int(task.name)] = (stat[2] + stat[3]) * TICK_S
    return found


def memory_of(pid: int) -> int:
    """Return the bytes of memory of a process and its children (PSS).

    The proportional set counts a page that forked workers share once, not once for
    each of them (proc(5), smaps_rollup).
    """
    total = 0
    for member in family_of(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def descriptors_of(pid: int) -> int:
    """Return how many descriptors a process and its children have open."""
    total = 0
    for member in family_of(pid):
        with contextlib.suppress(FileNotFoundError):
            total += len(os.listdir(f"/proc/{member}/fd"))
    return total


def kernel_memory() -> int:
    """Return the bytes of the kernel's stacks, page tables and slabs, of all."""
    wanted = ("KernelStack:", "PageTables:", "Slab:")
    lines = Path("/proc/meminfo").read_text().splitlines()
    return sum(int(ln.split()[1]) * 1024 for ln in lines if ln.startswith(wanted))


def busy_s() -> float:
    """Return the CPU seconds that all processes of the machine have used (proc(5))."""
    line = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, _, _, irq, softirq = map(int, line.split()[1:8])
    return (user + nice + system + irq + softirq) * TICK_S


def raise_descriptor_limit() -> int:
    """Raise our limit, which the children inherit, to the hard one; return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def file_system_of(folder: str) -> str:
    """Return the type of file system of a folder ("ext4", "tmpfs")."""
    path, best = os.path.realpath(folder), ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind = line.split()[:3]
        inside = (path + "/").startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]


def describe_machine() -> dict[str, object]:
    """Return what a reader of the figures must know about where they come from."""
    return {
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "temporary_folder": file_system_of(tempfile.gettempdir()),
    }


# ---- Addresses -------------------------------------------------------------------
# Each run has its own /24 of 127.0.0.0/8, so that two runs beside each other never
# meet, and each subject its own address in it: its connections in TIME_WAIT do not
# take the source ports of the next one.


def loopback(number: int) -> str:
    """Return address `number` (1 to 254) of the /24 of this run."""
    pid = os.getpid()
    return f"127.{64 + (pid >> 8) % 128}.{pid % 256}.{number}"


def free_port(host: str) -> int:
    """Return a port of `host` on which nothing listens, below the source ports."""
    for port in range(FIRST_PORT, LAST_PORT):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((host, port))
                return port
    raise RunError(f"no port of {host} is free")


def is_listening(host: str, port: int) -> bool:
    """Return whether somebody listens there; no connection is made to find out."""
    address = f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == address and fields[3] == "0A":
            return True
    return False


# ---- Starting and stopping -------------------------------------------------------


@dataclass(slots=True)
class Finished:
    """A program that ran to its end: its output, CPU seconds and seconds."""

    output: str
    cpu_s: float
    wall_s: float


class Stage:
    """Owns every process and the folder of a run; leaves nothing behind.

    Used as a context manager by the one thread of the benchmark.
    """

    def __init__(self) -> None:
        self.folder = Path()
        self._running: list[subprocess.Popen[bytes]] = []
        self._files = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        name = self._files.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        self.folder = Path(name)
        self.folder.chmod(0o755)  # nginx's workers run as another user
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.end_all()
        finally:
            self._files.close()

    def end_all(self) -> None:
        """End all processes that still run."""
        for process in reversed(self._running.copy()):
            self.stop(process)

    def start(
        self,
        command: Sequence[str],
        output: int | IO[bytes] = subprocess.DEVNULL,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own; its errors go to a file."""
        with open(self.folder / ERROR_FILE, "ab") as errors:
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=output,
                stderr=errors,
                cwd=self.folder,
                start_new_session=True,
                bufsize=0,  # select(2) must see what is unread
            )
        self._running.append(process)
        return process

    def errors(self) -> str:
        """Return what the programs said on standard error until now."""
        return (self.folder / ERROR_FILE).read_text(errors="replace")

    def last_error(self) -> str:
        """Return the last line that any program said on standard error."""
        lines = self.errors().strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End a process that we started, and all of its session."""
        if process.returncode is None:
            os.kill(process.pid, signal.SIGTERM)  # Popen's would reap it unmeasured
            if self._wait(process, STOP_DEADLINE_S) is None:
                os.kill(process.pid, signal.SIGKILL)
                self._wait(process, STOP_DEADLINE_S)
        with contextlib.suppress(ProcessLookupError):  # workers that it left behind
            os.killpg(process.pid, signal.SIGKILL)
        for stream in (process.stdin, process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if process in self._running:
            self._running.remove(process)

    @staticmethod
    def _wait(process: subprocess.Popen[bytes], seconds: float) -> float | None:
        """Wait for the end; return its CPU seconds with its children's, or None."""
        if process.returncode is not None:
            return 0.0  # somebody asked, and it had ended
        descriptor = os.pidfd_open(process.pid)
        try:
            if not select.select([descriptor], [], [], seconds)[0]:
                return None
        finally:
            os.close(descriptor)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_utime + usage.ru_stime

    def run(self, command: Sequence[str], deadline_s: float) -> Finished:
        """Run a program to its end. Raises RunError on an error or the deadline."""
        with tempfile.TemporaryFile() as output:
            started = time.perf_counter()
            process = self.start(command, output)
            try:
                cpu_s = self._wait(process, deadline_s)
                wall_s = time.perf_counter() - started
            finally:
                self.stop(process)
            output.seek(0)
            text = output.read().decode(errors="replace")
        if cpu_s is None:
            raise RunError(f"{command[0]} took longer than {deadline_s:.0f} s")
        if process.returncode:
            said = text.strip() or self.last_error()
            raise RunError(
                f"{command[0]} ended with {process.returncode}: {said[:300]}"
            )
        return Finished(text, cpu_s, wall_s)

    def wait_until_listening(
        self, process: subprocess.Popen[bytes], host: str, port: int
    ) -> None:
        """Wait for a server's listener. Raises RunError if it ends or never comes."""
        deadline = time.monotonic() + START_DEADLINE_S
        while not is_listening(host, port):
            ended = process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.stop(process)
                raise RunError(f"{process.args!r} did not start: {self.last_error()}")
            time.sleep(POLL_S)
