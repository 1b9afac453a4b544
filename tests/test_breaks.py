"""The list of breaks (`python3 -m tests.breaks`) fits the scripts as they are."""

from __future__ import annotations

import unittest

from tests.breaks.__main__ import BREAKS, broken


class EveryBreak(unittest.TestCase):
    """Each can be made, and names tests that exist."""

    def test_stands_once_in_its_script(self) -> None:
        for script, breaks in BREAKS.items():
            for one in breaks:
                with self.subTest(script=script, promise=one.promise):
                    self.assertIn(one.new, broken(script, one))

    def test_names_tests_that_exist(self) -> None:
        for script, breaks in BREAKS.items():
            for one in breaks:
                with self.subTest(script=script, promise=one.promise):
                    loader = unittest.TestLoader()
                    found = loader.loadTestsFromNames(one.tests)
                    self.assertGreater(found.countTestCases(), 0)
                    self.assertEqual(loader.errors, [])
