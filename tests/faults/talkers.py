"""Clients that remember what was confirmed to them."""

from __future__ import annotations

import itertools
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator

from tests.faults.lab import Lab
from tests.faults.records import is_large, message
from tests.support import split_address

CONFIRMED = re.compile(rb"Server (\d{1,5}) received: (.*)")
NOT_LOGGED = re.compile(rb"Server \d{1,5} error: cannot log: .+")
PAUSE_S = 0.02  # before the next try, when nobody could be reached


class Talkers:
    """Threads that each send numbered messages, one connection after another.

    `_lock` guards `confirmed` and `_numbers`.
    """

    def __init__(
        self,
        lab: Lab,
        target: Callable[[], str],
        count: int,
        batch: int = 64,
        timeout: float = 20.0,
        messages: int = 1000,
    ) -> None:
        """Talk to `target()`: `batch` messages at once at most, `messages` in all."""
        self.lab = lab
        self.confirmed: dict[int, int] = {}  # connection: its first so many messages
        self._target = target
        self._batch = batch
        self._timeout = timeout
        self._messages = messages
        self._lock = threading.Lock()
        self._numbers: Iterator[int] = itertools.count()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._talk, args=(lab.chooser(),), name=f"talker-{k}",
                daemon=True,
            )
            for k in range(count)
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def total(self) -> int:
        """Return how many messages were confirmed so far."""
        with self._lock:
            return sum(self.confirmed.values())

    def stop(self) -> None:
        """Let every thread end after the batch that it waits for."""
        self._stop.set()
        for thread in self._threads:
            thread.join(self._timeout + 10)
            if thread.is_alive():
                self.lab.lost(f"{thread.name} is stuck")
        self.lab.count("messages confirmed", self.total())
        self.lab.count("connections", len(self.confirmed))

    def _talk(self, choices: random.Random) -> None:
        while not self._stop.is_set():
            with self._lock:
                number = next(self._numbers)
                self.confirmed[number] = 0
            try:
                self._converse(number, choices)
            except TimeoutError:
                self.lab.lost(f"connection {number}: silence for {self._timeout:g} s")
            except OSError:  # the server was killed, or nobody listens just now
                self.lab.count("connections cut")
                self._stop.wait(PAUSE_S)

    def _converse(self, connection: int, choices: random.Random) -> None:
        address = split_address(self._target())
        with socket.create_connection(address, self._timeout) as sock:
            replies = sock.makefile("rb")
            with replies:
                sent = 0
                messages = self._messages // (15 if is_large(connection) else 1)
                while sent < messages and not self._stop.is_set():
                    size = choices.randint(1, self._batch)
                    batch = [message(connection, sent + k) for k in range(size)]
                    sock.sendall(b"\n".join(batch) + b"\n")
                    sent += size
                    if not all(
                        self._check(connection, replies.readline(), expected)
                        for expected in batch
                    ):
                        return

    def _check(self, connection: int, reply: bytes, expected: bytes) -> bool:
        """Note a confirmation; False when the conversation is over."""
        if not reply.endswith(b"\n"):
            self.lab.count("connections cut")
            return False
        match = CONFIRMED.fullmatch(reply, 0, len(reply) - 1)
        if match and match[2] == expected:
            with self._lock:
                self.confirmed[connection] += 1
            return True
        if NOT_LOGGED.fullmatch(reply, 0, len(reply) - 1):
            self.lab.count("told: cannot log")
        else:
            text = f"got {reply[:80]!r} for {expected[:80]!r}"
            self.lab.lost(f"connection {connection}: {text}")
        return False
