"""Breaks of server2.py, in the order of its promises."""

from __future__ import annotations

from tests.breaks import Break

BREAKS: list[Break] = [
    Break(
        "bytes in and out are counted in the closing record",
        "self.bytes_in += len(data)",
        "self.bytes_in += 1",
        ("tests.test_server2",),
    ),
]
