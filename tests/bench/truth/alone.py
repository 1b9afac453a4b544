"""One client alone beside busy processes: what client2.py says, and a plain client."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator

from tests.bench.machine import Stage
from tests.bench.subjects import Address
from tests.bench.truth import plain
from tests.bench.truth.system import (
    RUN_SLACK_S,
    Figure,
    Options,
    System,
    address,
    cores,
    say,
)

RUN_S = 2.0
RUNS = 5
WITHIN = 1.5  # times the plain client's p50


def compared(options: Options) -> Iterator[Figure]:
    """Let both clients measure in turns; yield how often their p50 agree."""
    runs, seconds = options.runs_or(RUNS), options.seconds_or(RUN_S)
    for busy in (0,) if options.short else (0, 1, 2):
        ratios = [one_turn(busy, options, seconds) for _ in range(runs)]
        say(f"alone: {busy} busy per core: {[f'{r:.2f}' for r in ratios]}")
        label = f"beside {busy * cores()} busy processes" if busy else "quiet"
        note = f"median {statistics.median(ratios):.2f} times"
        hits = sum(r <= WITHIN for r in ratios)
        what = f"one client: p50 at most {WITHIN:g} times that of a plain blocking one"
        yield Figure(what, hits, runs, "≥ 90 %", label, note)


def one_turn(busy: int, options: Options, seconds: float) -> float:
    """Measure with a plain client, then client2.py, then the plain one; their ratio."""
    with Stage() as stage:
        system = System(stage, options)
        target = system.server().address
        with system.busy(busy * cores()):
            before = plain_p50(system, target, seconds / 2)
            words = ("1", "--duration", str(seconds), "--message", "Hello")
            report = system.measure(target, *words, seconds=seconds)
            after = plain_p50(system, target, seconds / 2)
    return float(report["latency_ns"]["p50"]) / statistics.fmean((before, after))


def plain_p50(system: System, target: Address, seconds: float) -> float:
    """Run a plain blocking client in a process of its own; return its p50 in ns."""
    command = [sys.executable, plain.__file__, address(target), str(seconds)]
    return float(system.stage.run(command, seconds + RUN_SLACK_S).output)
