"""What README tells a student to type: it is run, shortened, on free ports."""

from __future__ import annotations

import importlib
import operator
import re
import shlex
import unittest
from functools import partial

from tests.support import ROOT, ScriptTestCase, in_parallel

PLACES = {"S": "server2.py", "B": "load_balancer.py", "C": "client2.py"}
TYPED = re.compile(r"^([SBC])\$ (.*?)(?: {2,}# .*)?$", re.MULTILINE)
LOOP = re.compile(r"for p in ([\d ]+); do (.*?) & done")


def section(head: str) -> str:
    """Return the part of README below a heading, up to the next of its kind."""
    text = (ROOT / "README.md").read_text("utf-8")
    kind = head.split()[0]
    return text.split(f"\n{head}", 1)[1].split(f"\n{kind} ", 1)[0]


def experiments() -> list[list[tuple[str, str]]]:
    """Return each experiment's commands: the terminal's letter, what is typed."""
    parts = section("## Five experiments").split("\n### ")[1:]
    return [TYPED.findall(part) for part in parts]


def commands(line: str) -> list[list[str]]:
    """Return what a line of the shell starts, one by one, as arguments."""
    found = LOOP.sub(
        lambda m: " & ".join(m[2].replace("$p", port) for port in m[1].split()) + " &",
        line,
    )
    return [shlex.split(part) for part in re.split(r"[&;]", found) if part.strip()]


class TheExperiments(ScriptTestCase):
    """Five experiments, in English and in Indonesian."""

    takes_long = True

    def run_it(self, typed: list[tuple[str, str]]) -> list[str]:
        """Run an experiment; return what its clients printed, on one line."""
        addresses: dict[str, str] = {}
        balancer, printed = None, []

        def local(text: str) -> str:
            return re.sub(
                r"127\.0\.0\.1:(\d+)", lambda m: addresses.get(m[1], m[0]), text
            )

        for letter, line in typed:
            for command in commands(line):
                if command[0] != "python3":
                    self.assertEqual(command[:2], ["kill", "-9"])
                    continue
                script, *args = command[1:]
                self.assertEqual(script, PLACES[letter])
                if letter == "S":
                    server = self.start(script, "0", *args[1:])
                    addresses[args[0]] = server.address
                elif letter == "B":
                    servers = () if "--server" in args else [*addresses.values()]
                    options = map(local, args)
                    balancer = self.balancer(*options, servers=servers)
                else:
                    assert balancer is not None
                    shorter = {"--duration": "1", "--messages": "20"}
                    after = ["", *args]
                    args = [
                        shorter.get(before, local(arg))
                        for before, arg in zip(after, args, strict=False)
                    ]
                    result = self.client(*args, "--target", balancer.address)
                    self.assertEqual(result.returncode, 0, result)
                    printed.append(" ".join(result.stdout.split()))
        return printed

    def test_each_runs_as_it_is_written(self) -> None:
        kill, unequal, queue, knee, cost = in_parallel(
            *(partial(self.run_it, typed) for typed in experiments())
        )
        self.assertIn("(open loop)", kill[0])
        self.assertIn("connections split evenly", unequal[0])
        self.assertIn("one message at a time", queue[0])
        self.assertIn("(open loop)", queue[1])
        self.assertIn("the target holds", knee[0])
        self.assertIn("balancer adds", cost[0])

    def test_indonesian_has_the_same_commands(self) -> None:
        rows = section("## Bahasa Indonesia").split("\n| **")[1:]
        rows = [row for row in rows if "<br>" in row]
        for typed, row in zip(experiments(), rows, strict=True):
            for _, line in typed:
                self.assertIn(f"`{line}`", row)


class WhatIsWhere(unittest.TestCase):
    """The table of "How it works"."""

    def test_every_name_is_in_its_script(self) -> None:
        rows = re.findall(r"\| `(\w+)\.py`: (.*) \|$", section("## How it works"), re.M)
        self.assertGreater(len(rows), 5)
        for script, names in rows:
            for name in re.findall(r"`([\w.]+)`", names):
                with self.subTest(script=script, name=name):
                    operator.attrgetter(name)(importlib.import_module(script))
