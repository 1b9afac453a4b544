"""The scripts broken on purpose, once per promise: a short test has to notice.

    python3 -m tests.breaks [server2.py] [--only WORD] [--jobs 2]

Each `Break` changes one place of a script so that a promise of the contract no longer
holds. The runner makes a copy of the project, breaks it there, and runs the tests that
are named: one of them has to fail. A break that no test notices is a hole in the suite.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Break:
    """One promise, how it is broken, and the tests that notice."""

    promise: str  # in the contract's words, short
    old: str  # text that stands in the script exactly once
    new: str  # what it is replaced by: valid Python
    tests: tuple[str, ...]  # names as unittest takes them, the fewest that notice
