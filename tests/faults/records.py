r"""Reads server_log.txt, and compares it with what was confirmed.

A message of the talkers is "<connection> <number> <filler>": connections are numbered
through a whole run, messages through a connection, and the filler follows from the two
numbers. So the log alone tells which messages it should have, in which order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TIME = rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
RECORD = re.compile(
    TIME + rb" - (?P<port>\d{1,5}) - (?P<client>[0-9a-fA-F.:\[\]]+:\d{1,5}) - "
    rb"(?:(?P<event>received|replied): (?P<text>.*)|connected|closed: (?P<why>[^,]+), "
    rb"(?P<messages>\d+) messages?, \d+ bytes? in, \d+ bytes? out, \d+\.\d ms)"
)
REPLIED = re.compile(rb"Server (\d{1,5}) received: (.*)")
MESSAGE = re.compile(rb"(\d+) (\d+) (x*)")
# Where a killed server or a full disk left part of a record, it is blanked afterwards:
# less than "2026-" at the log's end is not, because a person may have written it.
BLANK = re.compile(rb" *|\d{1,4}")
FILLERS = (0, 3, 17, 40, 9, 250, 1, 64, 900, 5, 30, 4000, 12, 0, 80, 2)


def is_large(connection: int) -> bool:
    """Tell whether a connection's messages are 15 times as long: up to 60,000 bytes."""
    return connection % 16 == 7


def message(connection: int, number: int) -> bytes:
    """Return a message without its line ending; lengths differ, by the numbers."""
    filler = FILLERS[(connection * 7 + number * 5) % len(FILLERS)]
    filler *= 15 if is_large(connection) else 1
    return b"%d %d %b" % (connection, number, b"x" * filler)


@dataclass
class Book:
    """What a log has of the talkers' messages, and what is wrong with it."""

    gaps: bool = False  # messages that were not confirmed may be missing in between
    received: dict[int, int] = field(default_factory=dict)  # connection: next number
    replied: dict[int, int] = field(default_factory=dict)
    numbers: dict[int, set[int]] = field(default_factory=dict)  # with gaps: replied
    records: int = 0
    blanks: int = 0  # lines that hold nothing but spaces
    foreign: int = 0  # records of messages that are not the talkers'
    faults: list[str] = field(default_factory=list)

    def fault(self, path: Path, line: bytes, what: str) -> None:
        """Remember what is wrong with a line, of the first hundred."""
        if len(self.faults) < 100:
            self.faults.append(f"{path.name}: {what}: {line[:200]!r}")

    def read(self, path: Path) -> None:
        """Read one file of the log; several in the order in which they were written."""
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    self.fault(path, line, "no line ending")
                self._take(path, line.removesuffix(b"\n"))

    def _take(self, path: Path, line: bytes) -> None:
        match = RECORD.fullmatch(line)
        if not match:
            if BLANK.fullmatch(line):
                self.blanks += 1
            else:
                self.fault(path, line, "torn or mixed")
            return
        self.records += 1
        if not line.decode("utf-8", "replace").isprintable() or b"\xef\xbf\xbd" in line:
            self.fault(path, line, "a terminal would obey it")
        event, text = match["event"], match["text"]
        if event == b"replied":
            reply = REPLIED.fullmatch(text)
            if not reply or reply[1] != match["port"]:
                self.fault(path, line, "not a reply of this server")
                return
            text = reply[2]
        if event:
            self._enter(path, line, event, text)

    def _enter(self, path: Path, line: bytes, event: bytes, text: bytes) -> None:
        found = MESSAGE.fullmatch(text)
        if not found:
            self.foreign += 1
            return
        connection, number = int(found[1]), int(found[2])
        seen = self.received if event == b"received" else self.replied
        expected = seen.get(connection, 0)
        if text != message(connection, number):
            self.fault(path, line, "altered")
        elif number < expected or (number > expected and not self.gaps):
            self.fault(path, line, f"out of order or double, {expected} is next")
        seen[connection] = max(expected, number + 1)
        if self.gaps and event == b"replied":
            self.numbers.setdefault(connection, set()).add(number)

    def missing(self, confirmed: Mapping[int, int]) -> Iterable[str]:
        """Yield what was confirmed and is not in the log."""
        for name, seen in (("received", self.received), ("replied", self.replied)):
            for connection, count in confirmed.items():
                if seen.get(connection, 0) < count:
                    yield (
                        f"connection {connection}: {count} messages confirmed, "
                        f"{seen.get(connection, 0)} in the log as {name}"
                    )


def read_log(paths: Iterable[Path], gaps: bool = False) -> Book:
    """Return what the files of a log have, oldest first."""
    book = Book(gaps)
    for path in paths:
        book.read(path)
    return book
