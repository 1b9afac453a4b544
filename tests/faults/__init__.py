"""What the three scripts must survive: kill, cut, starve, flood.

    python3 -m unittest tests.faults.test_faults    the short form, a part of all tests
    python3 -m tests.faults --seconds 300 --seed 7  the long form
    python3 -m tests.faults --list

A scenario is a function that gets a `Lab` (lab.py): a folder, a seeded source of
choices, a number of seconds, and a place to report what was lost or broken. All that
it starts ends with the lab, whatever happens. Load goes to loopback only, or to
networks that the lab made itself (wires.py).

    confirmed.py   1, 2  what was confirmed is in the log, once; a log that fails
    relayed.py     3     the balancer among servers and clients that come and go
    workers.py     3     the balancer's own processes die
    networks.py    4     five hosts: delay, loss, cuts, IPv6
    hostile.py     5     clients that mean no good, on every port
    starved.py     6     too few descriptors, threads, ports; clocks that step
    played.py      7     server2.py --fault, seen through the balancer
    processes.py         the processes of a balancer, by their kind
    records.py           reads server_log.txt and compares it with what was confirmed
    talkers.py           clients that remember what was confirmed to them
    disk.py              a disk that forgets what was not flushed (FUSE)
    wires.py             hosts and the wires between them (network namespaces, TUN)
    peer.py              a server process that keeps its own count of every byte
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.lab import Scenario

PARTS = ("confirmed", "relayed", "workers", "networks", "hostile", "starved", "played")


def all_scenarios() -> dict[str, Scenario]:
    """Return every scenario by its name, in the order of the parts."""
    for part in PARTS:
        importlib.import_module(f"tests.faults.{part}")
    from tests.faults.lab import SCENARIOS

    return SCENARIOS
