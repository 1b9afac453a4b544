"""Runs the classes of a test suite side by side, each in a process of its own.

    LAB_JOBS=1 python -m unittest     one after the other, as unittest does it
    LAB_JOBS=8 python -m unittest     eight classes at once

Most tests wait, so more classes than cores can run at once. The parent has no thread,
and forks a child for each class (for a whole module, where it has fixtures). A child
runs its tests as usual and reports each one when it is over; the parent plays reports
into the result that unittest gave it: dots, tracebacks, numbers and the exit code are
what they are without children. A class with `alone = True` runs after the others, one
with `takes_long = True` begins before them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import unittest.case
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

END_TIMEOUT_S = 30.0  # for a child that has reported all, or was told to stop
# The lists of a result, and the methods that fill them.
ADD = {
    "failures": "addFailure",
    "errors": "addError",
    "skipped": "addSkip",
    "expectedFailures": "addExpectedFailure",
    "unexpectedSuccesses": "addUnexpectedSuccess",
}


def jobs_wanted() -> int:
    """Return how many classes run at once; one for CI and the long forms: no hurry."""
    if wanted := os.environ.get("LAB_JOBS"):
        return int(wanted)
    slow = os.environ.get("CI") or os.environ.get("LAB_LONG")
    return 1 if slow else min(2 * (os.cpu_count() or 1), 4)


def units_of(suite: Iterable[Any]) -> list[list[unittest.TestCase]]:
    """Return the tests of each class (or module with fixtures), longest first."""

    def tests_in(suite: Iterable[Any]) -> Iterator[unittest.TestCase]:
        for part in suite:
            yield from [part] if isinstance(part, unittest.TestCase) else tests_in(part)

    units: dict[Any, list[unittest.TestCase]] = {}
    for test in tests_in(suite):
        module = sys.modules[type(test).__module__]
        shares = hasattr(module, "setUpModule") or hasattr(module, "tearDownModule")
        units.setdefault(module if shares else type(test), []).append(test)
    by_need = [(getattr(u[0], "takes_long", False), len(u), u) for u in units.values()]
    return [unit for _, _, unit in sorted(by_need, key=lambda n: n[:2], reverse=True)]


class Recorder(unittest.TestResult):
    """The result in a child: sends what a test added to its lists, and clears them."""

    def __init__(self, pipe: Connection, tests: list[unittest.TestCase]) -> None:
        super().__init__()
        self._pipe = pipe
        self._places = {id(test): place for place, test in enumerate(tests)}
        self._seconds = 0.0

    def addDuration(self, test: unittest.TestCase, elapsed: float) -> None:  # noqa: N802
        self._seconds = elapsed

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        self.report(running=test.id())
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        self.report(ended=self._places[id(test)])

    def report(self, running: str = "", ended: int | None = None) -> None:
        """Send the test that starts now, the place of the one that ended, and news."""
        news = []
        for kept_in in ADD:
            for entry in getattr(self, kept_in):  # (test, text), or the test alone
                test, text = entry if isinstance(entry, tuple) else (entry, "")
                name = "" if id(test) in self._places else str(test)
                news.append((kept_in, name, text))  # named: a fixture or a subtest
            getattr(self, kept_in).clear()
        self._pipe.send((running, ended, self._seconds, news))


class Named(unittest.TestCase):
    """Stands for a fixture, or a child as a whole."""

    def __init__(self, name: str) -> None:
        unittest.TestCase.__init__(self)  # not of what is between, for a subtest
        self.name = name

    def id(self) -> str:
        return self.name

    __str__ = id

    def shortDescription(self) -> None:  # noqa: N802
        """Return nothing: the name says it all."""


class NamedSubtest(Named, unittest.case._SubTest):  # type: ignore[misc, name-defined]
    """Stands for a subtest, which a result shows below its test."""


def run_child(tests: list[unittest.TestCase], like: Any, pipes: list[Any]) -> None:
    """Run tests in this new process as the result `like` wants it; report to pipes[0].

    It gets the signal of Ctrl-C from its parent, and then leaves no script behind.
    """
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for inherited in pipes[1:]:  # so that pipes[0] breaks when the parent ends
        inherited.close()
    recorder = Recorder(pipes[0], tests)
    for option in ("failfast", "buffer", "tb_locals"):
        setattr(recorder, option, getattr(like, option))
    try:
        unittest.TestSuite(tests).run(recorder)
        recorder.report()
    except (KeyboardInterrupt, BrokenPipeError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for test in tests:
            test.doCleanups()
        for kind in {type(test) for test in tests}:
            kind.doClassCleanups()


class SideBySide(unittest.TestSuite):
    """A suite that runs its classes side by side."""

    def run(
        self, result: unittest.TestResult, debug: bool = False
    ) -> unittest.TestResult:
        """Run all tests, in this process where it cannot or shall not fork."""
        jobs = jobs_wanted()
        can = hasattr(os, "fork") and threading.active_count() == 1
        if debug or jobs < 2 or not can:
            return super().run(result, debug)
        units = units_of(self)
        alone = [unit for unit in units if getattr(unit[0], "alone", False)]
        others = [unit for unit in units if unit not in alone]
        children: dict[Any, Child] = {}
        try:
            for waiting, most in ((others, jobs), (alone, 1)):
                while (waiting or children) and not result.shouldStop:
                    while waiting and len(children) < most:
                        child = Child(waiting.pop(0), result, list(children))
                        children[child.pipe] = child
                    for pipe in wait(list(children)):
                        if not children[pipe].receive():
                            children.pop(pipe).end()
        finally:
            for child in children.values():
                child.interrupt()
            for child in children.values():
                child.close()
        return result


class Child:
    """A process that runs the tests of one class, as its parent sees it."""

    def __init__(
        self, tests: list[unittest.TestCase], result: Any, inherited: list[Any]
    ) -> None:
        self.tests, self.result, self.running = tests, result, ""
        context = multiprocessing.get_context("fork")
        self.pipe, far_end = context.Pipe(duplex=False)
        pipes = [far_end, self.pipe, *inherited]
        self.process = context.Process(target=run_child, args=(tests, result, pipes))
        self.process.start()
        far_end.close()

    def receive(self) -> bool:
        """Play a report into the result; False when the pipe has ended."""
        try:
            self.running, ended, seconds, news = self.pipe.recv()
        except (EOFError, OSError):  # at the end; in mid-report, if it was killed
            return False
        test = None if ended is None else self.tests[ended]
        if test:
            self.result.startTest(test)
            if seconds and hasattr(self.result, "addDuration"):  # Python 3.12
                self.result.addDuration(test, seconds)
        for entry in news:
            self.add(test, *entry)
        if test:
            if not news:
                self.result.addSuccess(test)
            self.result.stopTest(test)
        return True

    def add(self, test: Any, kept_in: str, name: str, text: str) -> None:
        """Add to a list of the result by its method; a child's text is ready-made."""
        what = test
        if name:
            what = NamedSubtest(name) if test else Named(name)
        error: Any = (Exception, Exception(), None)
        arguments = {"skipped": [text], "unexpectedSuccesses": []}.get(kept_in, [error])
        getattr(self.result, ADD[kept_in])(what, *arguments)
        if arguments == [error]:
            getattr(self.result, kept_in)[-1] = (what, text)

    def end(self) -> None:
        """Wait for its end; add an error when tests, or their threads, still ran."""
        self.process.join(END_TIMEOUT_S)
        code = self.process.exitcode
        if code != 0 or self.running:
            kind = type(self.tests[0])
            name = self.running or f"{kind.__module__}.{kind.__qualname__}"
            how = "does not end" if code is None else f"ended with exit code {code}"
            self.add(None, "errors", name, f"the process of these tests {how}\n")
        self.close()

    def interrupt(self) -> None:
        """Tell it to stop; it cleans up first."""
        if self.process.exitcode is None and self.process.pid:
            os.kill(self.process.pid, signal.SIGINT)

    def close(self) -> None:
        """Wait for its end, in the end by force, and give back what it took."""
        self.pipe.close()
        self.process.join(END_TIMEOUT_S)
        self.process.kill()
        self.process.join()
        self.process.close()
