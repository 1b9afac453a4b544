"""Breaks of load_balancer.py, in the order of its promises."""

from __future__ import annotations

from tests.breaks import Break

BREAKS: list[Break] = []
