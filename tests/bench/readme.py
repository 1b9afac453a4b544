"""README's table "How fast it is": samples in, Markdown out.

A line names checks of rows.py, so that what is to be reached stands in one place. A
line that misses it is marked; `--profile ROW` shows where the time goes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.figures import Check, Samples, format_figure, ratio, reached
from tests.bench.rows import FREE, ITSELF, MEMORY_LIMIT_KIB, ROWS, Row
from tests.bench.subjects import C_RELAY, CLIENT, SERVER

HEAD = (
    "| what | beside | ratio (spread over the rounds) | to reach |\n|---|---|---|---|"
)
NOTHING = "not measured"
MISSED = " **missed**"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: its words, and the checks whose figures it shows."""

    what: str
    beside: str
    row: str
    titles: tuple[str, ...]
    figures: bool = False  # show the figures themselves, ours and theirs, no ratio
    most: float = 0.0  # that our figure may be, where the check itself has no target


CLIENT_COUNTS = ("1 client", "50 clients", "200 clients", "1000 clients")
KEPT = "small messages, 50 kept connections"
EACH = "a connection per message, 50 at once"
HAPROXY = "HAProxy, 1 thread"
NGINX = "nginx `stream`, 1 worker"
IN_C = "a thread per connection in C"
REDIS_BENCHMARK = "redis-benchmark"
LINES = (
    Line(f"{KEPT}: rate", HAPROXY, "small", ("rate, HAProxy",)),
    Line(f"{KEPT}: rate", NGINX, "small", ("rate, nginx",)),
    Line(f"{KEPT}: rate", IN_C, "small", (f"rate, {C_RELAY}",)),
    Line(f"{KEPT}: CPU", HAPROXY, "small", ("CPU per message, HAProxy",)),
    Line(f"{EACH}: rate", HAPROXY, "churn", ("rate, HAProxy",)),
    Line(f"{EACH}: rate", NGINX, "churn", ("rate, nginx",)),
    Line(f"{EACH}: rate", IN_C, "churn", (f"rate, {C_RELAY}",)),
    Line(f"{EACH}: CPU", HAPROXY, "churn", ("CPU per connection, HAProxy",)),
    Line(
        "the relay in C itself, kept, and a connection per message: rate",
        HAPROXY,
        "small churn",
        (f"rate of {C_RELAY}, HAProxy",),
    ),
    Line("latency of one client, p50", HAPROXY, "latency", ("p50, HAProxy",)),
    Line("latency of one client, p50", "no balancer", "latency", ("p50, direct",)),
    Line("bulk, up and down: rate", HAPROXY, "bulk", ("up, HAProxy", "down, HAProxy")),
    Line(
        "bulk, up and down: rate",
        f"{HAPROXY}, 128 KiB buffers",
        "bulk",
        ("up, HAProxy 128 KiB", "down, HAProxy 128 KiB"),
    ),
    Line(
        "bulk, up and down: rate", "no balancer", "bulk", ("up, direct", "down, direct")
    ),
    Line(
        "bulk, up and down: CPU per GB",
        HAPROXY,
        "bulk",
        ("up CPU, HAProxy", "down CPU, HAProxy"),
    ),
    Line(
        "opening 9,000 connections: rate", HAPROXY, "held", ("opening them, HAProxy",)
    ),
    Line(
        "memory of each (Pss)",
        HAPROXY,
        "held",
        ("memory each, HAProxy",),
        figures=True,
        most=MEMORY_LIMIT_KIB,
    ),
    Line("p50 of a busy one beside them", "alone", "held", ("p50 beside them, alone",)),
    Line(
        f"{FREE} Python, one process: kept, a connection per message: rate",
        HAPROXY,
        "small churn",
        (f"rate, {FREE}, HAProxy",),
    ),
    Line(
        f"{FREE} Python: memory of each connection (Pss)",
        HAPROXY,
        "held",
        (f"memory each, {FREE}, HAProxy",),
        figures=True,
    ),
    Line(
        f"`{SERVER}`, 50 clients, log on: rate",
        "`ThreadingTCPServer` with `logging`",
        "server",
        ("rate, socketserver + logging",),
    ),
    Line(
        f"`{SERVER}`, log on: rate",
        "its log off",
        "server",
        ("rate, log to /dev/null",),
    ),
    Line(
        f"`{SERVER} --fsync`, 50 clients: rate",
        "a flush per message",
        "fsync",
        ("rate, flush each (socketserver)",),
    ),
    Line(
        f"`{SERVER}`, {FREE} Python: rate",
        "`ThreadingTCPServer` with `logging`",
        "server",
        (f"rate, {FREE}, socketserver",),
    ),
    Line(
        f"`{CLIENT}`, 1, 50, 200, 1,000 clients: rate",
        REDIS_BENCHMARK,
        "client",
        tuple(f"rate, {n}" for n in CLIENT_COUNTS),
    ),
    Line(
        f"`{CLIENT}`, the same, {FREE} Python: rate",
        REDIS_BENCHMARK,
        "client",
        tuple(f"rate, {n}, {FREE}" for n in CLIENT_COUNTS),
    ),
)


def checks_of(line: Line) -> list[tuple[Row, Check]]:
    """Return the checks that a line shows. Raises KeyError when there is none."""
    rows = {row.name: row for row in ROWS}
    found = []
    for name in line.row.split():
        checks = {check.title: check for check in rows[name].checks}
        found += [(rows[name], checks[title]) for title in line.titles]
    return found


def sides(samples: Samples, row: Row, check: Check) -> tuple[list[float], list[float]]:
    """Return the values of both sides of a check."""
    name = check.ours or row.ours
    against = name if check.against == ITSELF else check.against
    ours = samples.get(row.name, name, check.metric)
    return ours, samples.get(row.name, against, check.their_metric or check.metric)


def cell(samples: Samples, row: Row, check: Check, line: Line) -> str:
    """Return what one check shows: "0.72 (0.70–0.75)", or both figures."""
    ours, theirs = sides(samples, row, check)
    if line.figures and ours:
        value = statistics.median(ours)
        text = f"{format_figure(value)} {check.unit}"
        if theirs:
            text += f" to {format_figure(statistics.median(theirs))}"
        return text + MISSED * bool(line.most and value > line.most)
    found = ratio(ours, theirs)
    if found is None:
        return NOTHING
    text = f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})"
    return text + MISSED * (reached(round(found.median, 2), check.target) is False)


def target_of(line: Line, checks: Sequence[Check]) -> str:
    """Return what is to be reached, once if it is the same for all."""
    if line.most:
        return f"≤ {line.most:g} {checks[0].unit}"
    targets = [check.target for check in checks]
    return targets[0] if len(set(targets)) == 1 else "; ".join(targets)


def table(samples: Samples) -> str:
    """Return the table; lines of which nothing was measured are left out."""
    lines = [HEAD]
    for line in LINES:
        checks = checks_of(line)
        cells = [cell(samples, row, check, line) for row, check in checks]
        if set(cells) == {NOTHING}:
            continue
        target = target_of(line, [check for _, check in checks])
        lines.append(f"| {line.what} | {line.beside} | {'; '.join(cells)} | {target} |")
    return "\n".join(lines)
