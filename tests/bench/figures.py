"""The pure part of the benchmark: figures in, figures out, nothing is started."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TABLE_COLUMNS = 100


@dataclass(slots=True, frozen=True)
class Ratio:
    """Ours divided by theirs, round by round: the median and the whole spread."""

    median: float
    low: float
    high: float


@dataclass(slots=True, frozen=True)
class Check:
    """One line of the table: a metric of our subject beside the same of another.

    `target` is "≥ 2", "≤ 1.7", or empty where nothing is to be reached. `against` is
    a subject's name; `their_metric` is `metric` unless it is said. Both figures are
    multiplied by `scale` for the table, so that CPU seconds can be shown as µs.
    """

    title: str
    metric: str
    against: str
    target: str = ""
    unit: str = ""
    scale: float = 1.0
    their_metric: str = ""
    ours: str = ""  # a subject's name, where it is not the script itself


@dataclass(slots=True)
class Samples:
    """What was measured: the values of (row, subject, metric), one per round."""

    values: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)

    def add(self, row: str, subject: str, metric: str, value: float) -> None:
        """Append the value of one round."""
        self.values.setdefault((row, subject, metric), []).append(value)

    def get(self, row: str, subject: str, metric: str) -> list[float]:
        """Return the values in the order of the rounds; empty if there are none."""
        return self.values.get((row, subject, metric), [])


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio | None:
    """Return the ratio of the rounds that both have; None if it cannot be told.

    Each round is divided by its own neighbour, before the median is taken: so a
    machine that is slower in one round is slower for both.
    """
    pairs = [a / b for a, b in zip(ours, theirs, strict=False) if b > 0]
    if not pairs:
        return None
    return Ratio(statistics.median(pairs), min(pairs), max(pairs))


def reached(value: float, target: str) -> bool | None:
    """Return whether a ratio meets "≥ 2" or "≤ 1.7"; None without a target."""
    if not target:
        return None
    sign, limit = target.split()
    return value >= float(limit) if sign == "≥" else value <= float(limit)


def nearest_rank(ordered: Sequence[float], percent: float) -> float:
    """Return the percentile of ordered values by nearest rank, ⌈p·n⌉ (1-based)."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(1, int(rank)) - 1]


def parse_redis_benchmark(text: str) -> dict[str, float]:
    """Return what `redis-benchmark --csv` printed for its only test.

    Keys: `rps`, and `avg`, `min`, `p50`, `p95`, `p99`, `max` in seconds.
    Raises ValueError when there is no such line (it prints its errors instead).
    """
    rows = [r for r in csv.reader(text.splitlines()) if len(r) == 8]
    if len(rows) < 2 or rows[0][0] != "test":
        raise ValueError(f"redis-benchmark printed no result: {text.strip()[:200]!r}")
    found = dict(zip(rows[0][1:], map(float, rows[-1][1:]), strict=True))
    suffix = "_latency_ms"
    result = {
        name.removesuffix(suffix): ms / 1000
        for name, ms in found.items()
        if name.endswith(suffix)
    }
    return {"rps": found["rps"]} | result


def parse_iperf3(text: str) -> dict[str, float]:
    """Return `bytes` received and `seconds` of what `iperf3 -J` printed.

    Raises ValueError with iperf3's own words when the run failed.
    """
    result: dict[str, Any] = json.loads(text)
    if "error" in result:
        raise ValueError(f"iperf3: {result['error']}")
    total = result["end"]["sum_received"]
    return {"bytes": float(total["bytes"]), "seconds": float(total["seconds"])}


def parse_stat(text: str) -> tuple[str, int, int, int]:
    """Return (name, parent, user, system) of a line of /proc/PID/stat, in ticks.

    Fields 14 and 15 (proc(5)), with 16 and 17 added: children that ended and were
    waited for, so that a worker that was replaced is not lost from the sum. The name
    stands in parentheses and may itself hold any of them.
    """
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    user, system, child_user, child_system = map(int, fields[11:15])
    return name, int(fields[1]), user + child_user, system + child_system


def family(parents: Mapping[int, int], root: int) -> list[int]:
    """Return `root` and all that descend from it, given each process's parent."""
    found = [root] if root in parents else []
    for pid in found:  # grows while it is walked: children of children follow
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


def format_figure(value: float) -> str:
    """Return three significant digits, or all of a large number, with spaces."""
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"


TABLE_HEAD = (
    f"{'':<39}{'ours':>8} {'theirs':>8} {'unit':<7} {'ratio':>5} {'spread':>12}"
    f" {'to reach':>8} "
)


def table_line(check: Check, ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return one line of the table, at most 100 columns wide."""
    found = ratio(ours, theirs)
    shown = [
        format_figure(statistics.median(v) * check.scale) if v else "–"
        for v in (ours, theirs)
    ]
    line = f" {check.title:<38}{shown[0]:>8} {shown[1]:>8} {check.unit:<7}"
    if found is None:
        return f"{line} {'–':>5} {'':>12} {check.target:>8} –".rstrip()
    verdict = {True: "yes", False: "NO", None: ""}[reached(found.median, check.target)]
    spread = f"{found.low:.2f}–{found.high:.2f}"
    line += f" {found.median:>5.2f} {spread:>12} {check.target:>8} {verdict}"
    return line.rstrip()
