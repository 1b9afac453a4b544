"""The short form: scenarios of all parts, with the choices of a fixed seed.

Most of their time is waiting, so those that are wanted run side by side, and each
test then looks at the result of its own.
"""

from __future__ import annotations

import os
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from tests.faults import all_scenarios
from tests.faults.lab import LONG_ONLY, Result, Scenario, run_scenario
from tests.support import THOROUGH

SEED = 6
# These keep the processor busy; the default run is short.
THOROUGH_ONLY = ("clock-that-steps", "chaos-among-servers-with-workers")
AT_ONCE = 6


class ShortForm(unittest.TestCase):
    """A test for each scenario, named after it; nothing may be lost or broken."""

    takes_long = True

    wanted: frozenset[str] = frozenset()  # names of tests, known when all are loaded
    _results: dict[str, Future[Result]]

    @classmethod
    def setUpClass(cls) -> None:
        """Start the scenarios of this run."""
        if os.environ.get("LAB_REFUSED"):
            raise unittest.SkipTest("the judges read /proc, which LAB_REFUSED closes")
        pool = ThreadPoolExecutor(AT_ONCE, "scenario")
        cls.addClassCleanup(pool.shutdown, cancel_futures=True)
        cls._results = {
            one.name: pool.submit(run_scenario, one, SEED, one.short_s)
            for one in all_scenarios().values()
            if name_of_test(one) in cls.wanted
        }

    def result_of(self, one: Scenario) -> Result:
        """Return how a scenario went; run it, when only this test was asked for."""
        started = self._results.get(one.name)
        return started.result() if started else run_scenario(one, SEED, one.short_s)


def name_of_test(one: Scenario) -> str:
    """Return the name of a scenario's test method."""
    return f"test_{one.name.replace('-', '_')}"


def test_of(one: Scenario) -> Callable[[ShortForm], None]:
    """Return the test method of a scenario."""

    def test(self: ShortForm) -> None:
        result = self.result_of(one)
        if result.skipped:
            self.skipTest(result.skipped)
        self.assertEqual(result.losses, [])

    test.__doc__ = one.says
    return test


for _one in all_scenarios().values():
    if _one.short_s != LONG_ONLY and (THOROUGH or _one.name not in THOROUGH_ONLY):
        setattr(ShortForm, name_of_test(_one), test_of(_one))


def names_in(suite: unittest.TestSuite | unittest.TestCase) -> Iterator[str]:
    """Yield the names of the test methods in a suite."""
    if isinstance(suite, unittest.TestSuite):
        for part in suite:
            yield from names_in(part)
    else:
        yield suite.id().rpartition(".")[2]


def load_tests(
    _loader: unittest.TestLoader, tests: unittest.TestSuite, _pattern: str | None
) -> unittest.TestSuite:
    """Note which tests are wanted, after -k (unittest: the load_tests protocol)."""
    ShortForm.wanted = frozenset(names_in(tests))
    return tests
