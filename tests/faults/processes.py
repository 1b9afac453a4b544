"""The processes of a balancer: its workers, its desk, and whether they live."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
from pathlib import Path

from tests.balancer import STATUS
from tests.support import (
    Running,
    children,
    memory_kib,
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
    """Return the process that checks, logs and serves the status, once it is named."""
    found = children(balancer.pid)
    return [pid for pid in found if name_of(pid).startswith("desk")]


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
