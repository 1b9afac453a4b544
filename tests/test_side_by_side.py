"""Tests in child processes look to unittest as tests always do."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tests.support import ROOT, script_environment, wait_until

SAMPLE = """
import os, sys, time, unittest
from pathlib import Path
from tests.side_by_side import SideBySide

class First(unittest.TestCase):
    @unittest.expectedFailure
    def test_a_surprise(self): pass
    def test_error(self): raise ValueError("an error")
    @unittest.expectedFailure
    def test_expected(self): self.fail()
    def test_failure(self): self.assertEqual(1, 2)
    def test_parts(self):
        for part in range(3):
            with self.subTest("part", number=part): self.assertEqual(part, 0)
    def test_pass(self): pass
    def test_skip(self): self.skipTest("a reason")

class Fixture(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise ValueError("a fixture")
    def test_never(self): pass

class Skipped(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise unittest.SkipTest("no such program")
    def test_never(self): pass

class Dies(unittest.TestCase):
    def test_a_pass(self): pass
    def test_dies(self): os._exit(3)

class Waits(unittest.TestCase):
    def test_waits(self):
        self.addCleanup(Path("cleaned").touch)
        Path("started").touch()
        time.sleep(60)

class Alone(unittest.TestCase):
    alone = True
    def test_all_others_have_ended(self):
        self.assertTrue(Path("ended").exists())

class Slow(unittest.TestCase):
    def test_slow(self):
        time.sleep(0.3)
        Path("ended").touch()

def load_tests(loader, tests, pattern):
    return SideBySide([tests])

unittest.main(verbosity=2)
"""


def after_dots(lines: list[str]) -> list[str]:
    """Return the lines that do not depend on which test ended first, sorted."""
    return sorted(lines[lines.index("=" * 70) :])


class SideBySideTest(unittest.TestCase):
    """A sample of classes, run with and without child processes."""

    maxDiff = None

    def setUp(self) -> None:
        """Write the sample into a folder of its own."""
        folder = tempfile.TemporaryDirectory(prefix="lab-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / "sample.py").write_text(SAMPLE)

    def start(self, *options: str, jobs: int = 4) -> subprocess.Popen[str]:
        """Start the sample's tests, with options of unittest."""
        process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "sample.py", *options],
            cwd=self.folder,
            env=script_environment({"LAB_JOBS": str(jobs), "PYTHONPATH": str(ROOT)}),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def run_sample(self, *options: str, jobs: int = 4) -> tuple[int, list[str]]:
        """Return the exit code and the lines of the sample's tests."""
        process = self.start(*options, jobs=jobs)
        text = re.sub(r"tests in \S+", "tests in TIME", process.communicate()[1])
        return process.returncode, text.splitlines()

    def test_every_outcome_is_told_as_unittest_tells_it(self) -> None:
        classes = ("-kFirst", "-kFixture", "-kSkipped")
        code, lines = self.run_sample(*classes, jobs=2)
        self.assertEqual(code, 1)
        self.assertIn("test_pass (__main__.First.test_pass) ... ok", lines)
        self.assertIn("AssertionError: 1 != 2", lines)
        self.assertIn("Ran 7 tests in TIME", lines)
        self.assertEqual(
            lines[-1],
            "FAILED (failures=3, errors=2, skipped=2, expected failures=1, "
            "unexpected successes=1)",
        )
        expected_code, expected = self.run_sample(*classes, jobs=1)
        self.assertEqual(
            (code, after_dots(lines)), (expected_code, after_dots(expected))
        )

    def test_child_that_dies_is_an_error_that_names_its_test(self) -> None:
        code, lines = self.run_sample("-kDies", "-kFirst.test_pass")
        self.assertEqual(code, 1)
        self.assertIn("ERROR: __main__.Dies.test_dies", lines)
        self.assertIn("the process of these tests ended with exit code 3", lines)
        self.assertEqual(lines[-1], "FAILED (errors=1)")
        self.assertIn("Ran 2 tests in TIME", lines)

    def test_class_that_wants_to_be_alone_comes_after_the_others(self) -> None:
        code, lines = self.run_sample("-kAlone", "-kSlow")
        self.assertEqual(code, 0, lines)

    def test_first_failure_ends_all_when_asked_for(self) -> None:
        code, lines = self.run_sample("-f", "-kWaits", "-kFirst.test_failure")
        self.assertEqual(code, 1)
        self.assertEqual(lines[-1], "FAILED (failures=1)")

    def test_interrupt_ends_the_children_and_they_clean_up(self) -> None:
        process = self.start("-kWaits", "-kFirst")
        wait_until((self.folder / "started").exists)
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1]
        self.assertIn("KeyboardInterrupt", errors)
        self.assertTrue((self.folder / "cleaned").exists(), errors)


if __name__ == "__main__":
    unittest.main()
