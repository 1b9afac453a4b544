"""Tests of the lab: run `python3 -m unittest` from the top of the repository.

Nothing but Python is needed: no fixed port, no fixture, any order. What needs a
program that is not installed is skipped, and the reason names the program.

Classes of tests run side by side (side_by_side.py); `LAB_JOBS=1` runs them in turn.
`LAB_DEV=1` starts every script under test with `-X dev -W error`.
`LAB_LONG=1` runs the long forms (a transfer of 1 GiB instead of 64 MiB) and variants
of test classes (two workers, no splice), which `.ci/run` runs, too.
`LAB_REFUSED=all` refuses every optional call to the scripts (refused/sitecustomize.py).
"""

from __future__ import annotations

import unittest
from pathlib import Path


def load_tests(
    loader: unittest.TestLoader, _tests: unittest.TestSuite, pattern: str | None
) -> unittest.TestSuite:
    """Return all tests of the folder as one suite (unittest: load_tests protocol)."""
    from tests.side_by_side import SideBySide

    here = Path(__file__).parent
    found = loader.discover(str(here), pattern or "test*.py", str(here.parent))
    return SideBySide([found])
