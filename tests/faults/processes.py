"""The processes of a balancer: its workers, its desk, and whether they live."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
from pathlib import Path

from tests.balancer import STATUS
from tests.support import (
    Running,
    children,
    memory_kib,
    split_address,
    threads,
    wait_until,
)


def status_address(balancer: Running) -> str:
    """Return where the balancer serves its status."""
    match = STATUS.search(balancer.stdout_lines()[0])
    if not match:
        raise AssertionError(f"no status address: {balancer.stdout_text()[:200]}")
    return match[1]


def name_of(pid: int) -> str:
    """Return the name that a process gave itself (proc(5), comm)."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def workers_of(balancer: Running) -> list[int]:
    """Return the worker processes of a balancer."""
    found = children(balancer.pid)
    named = [pid for pid in found if name_of(pid).startswith("worker")]
    return named or [pid for pid in found if pid not in desks_of(balancer)]


def has_workers(balancer: Running, count: int) -> bool:
    """Tell whether so many workers run."""
    return len(workers_of(balancer)) == count


def deaths(balancer: Running) -> list[str]:
    """Return the lines of the log about workers that died."""
    return [
        line for line in balancer.stdout_lines() if re.search(r"worker=\d+ died", line)
    ]


def desks_of(balancer: Running) -> list[int]:
    """Return the process that serves the status: it listens there, its parent not."""
    found = children(balancer.pid)
    if named := [pid for pid in found if name_of(pid).startswith("desk")]:
        return named
    inode = listener_inode(status_address(balancer))
    return [pid for pid in found if f"socket:[{inode}]" in open_files(pid)]


def listener_inode(address: str) -> str:
    """Return the number of a listening socket (proc(5), /proc/net/tcp)."""
    host, port = split_address(address)
    packed = int.from_bytes(socket.inet_aton(host), "little")
    wanted = f"{packed:08X}:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == wanted and fields[3] == "0A":
            return fields[9]
    return ""


def open_files(pid: int) -> set[str]:
    """Return what the descriptors of a process are."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(os.readlink(entry))
    return found


def is_live(pid: int) -> bool:
    """Tell whether a process runs (a zombie has no threads to list)."""
    try:
        return bool(threads(pid)) and memory_kib(pid) > 0
    except (OSError, IndexError):
        return False


def has_ended(pid: int) -> bool:
    """Tell whether a process has ended."""
    return not is_live(pid)


def kill_worker(balancer: Running, choices: random.Random) -> bool:
    """Kill a worker by its id and wait for its end; tell whether there was one."""
    found = workers_of(balancer)
    if not found:
        return False
    victim = choices.choice(found)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    wait_until(lambda: has_ended(victim), what=f"the end of process {victim}")
    return True
