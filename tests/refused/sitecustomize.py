"""Refuses what a system may refuse, to every Python that has this folder in its path.

Python imports it before a script (docs: site). With LAB_REFUSED in the environment,
tests/support.py puts it before the scripts under test: a call that is optional raises
PermissionError then, as in a container, for an ordinary user, under seccomp. Which:
`LAB_REFUSED=all`, or some of the names below, `LAB_REFUSED=setsockopt,splice`.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WANTED = os.environ.get("LAB_REFUSED", "all").split(",")
# Without these a script does something else, and does not only go without.
NEEDED_OPTIONS = ("SO_REUSEADDR", "SO_LINGER", "SO_RCVTIMEO", "SO_SNDTIMEO")
NEEDED_OPTIONS_V6 = ("IPV6_V6ONLY",)
PIPE_SIZES = range(1024, 2048)  # F_LINUX_SPECIFIC_BASE and up: F_SETPIPE_SZ, leases
CLOSED_TREES = ("/proc", "/sys")


def refuse(*_: object, **__: object) -> Any:
    """Raise what a system raises that does not permit it."""
    raise PermissionError(errno.EPERM, "Operation not permitted (by LAB_REFUSED)")


def guard(owner: Any, name: str, refused: Callable[..., bool]) -> None:
    """Let `owner.name` refuse the calls whose arguments are `refused`."""
    permitted = getattr(owner, name, None)
    if permitted is None:
        return

    def guarded(*args: Any, **options: Any) -> Any:
        return (refuse if refused(*args, **options) else permitted)(*args, **options)

    setattr(owner, name, guarded)


def is_optional(_sock: Any, level: int, option: int, *_: object) -> bool:
    """Tell whether a connection works without this socket option."""
    if level == socket.SOL_SOCKET:
        return option not in [getattr(socket, name, None) for name in NEEDED_OPTIONS]
    if level == socket.IPPROTO_IPV6:
        return option not in [getattr(socket, name, None) for name in NEEDED_OPTIONS_V6]
    return True


def is_closed(path: Any = ".", *_: object, **__: object) -> bool:
    """Tell whether a path lies in a tree that nobody may read."""
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    return os.fsdecode(path).startswith(CLOSED_TREES)


def refuse_system_calls(*names: str) -> None:
    """Let functions of `os` refuse every call."""
    for name in names:
        guard(os, name, lambda *_, **__: True)


def refuse_limits() -> None:
    """No limit may be raised, and none lowered."""
    try:
        import resource
    except ImportError:
        return
    guard(resource, "setrlimit", lambda *_: True)
    guard(resource, "prlimit", lambda *_: True)


def refuse_pipe_sizes() -> None:
    """Pipes stay as large as they are."""
    try:
        import fcntl
    except ImportError:
        return
    guard(fcntl, "fcntl", lambda _descriptor, command, *_: command in PIPE_SIZES)


def close_trees() -> None:
    """/proc and /sys cannot be read."""
    for owner in (builtins, io, os):
        guard(owner, "open", is_closed)
    for name in ("listdir", "scandir"):
        guard(os, name, is_closed)


def continue_with_the_next() -> None:
    """Run the sitecustomize that a test itself has put into the path."""
    here = Path(__file__).resolve().parent
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        path = Path(folder, "sitecustomize.py")
        if folder and Path(folder).resolve() != here and path.exists():
            exec(compile(path.read_text(), str(path), "exec"), {"__name__": __name__})
            return


REFUSALS: dict[str, Callable[[], None]] = {
    "limits": refuse_limits,
    "setsockopt": lambda: guard(socket.socket, "setsockopt", is_optional),
    "scheduler": lambda: refuse_system_calls(
        "sched_setscheduler", "sched_setaffinity", "setpriority", "nice"
    ),
    "splice": lambda: refuse_system_calls("splice"),
    "descriptors": lambda: refuse_system_calls("pidfd_open", "eventfd", "memfd_create"),
    "pipes": refuse_pipe_sizes,
    "proc": close_trees,
}
for kind, refusal in REFUSALS.items():
    if kind in WANTED or "all" in WANTED:
        refusal()
if unknown := set(WANTED) - {*REFUSALS, "all"}:
    sys.exit(f"LAB_REFUSED: unknown {', '.join(sorted(unknown))}")
continue_with_the_next()
