"""Which server is called slower, and is a run different from the same run again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from tests.bench.machine import Stage
from tests.bench.truth.system import Figure, Options, System, say

SLOWER = re.compile(r"(\d+) is slower than (\d+)")
RUN_S = 1.5
EQUAL_RUNS = 40
DIFFERENT_RUNS = 12
LONG_S, LONG_RUNS = 10.0, 5
PER_SYSTEM = 5  # runs against the same processes
DELAY_S = 0.005


# ---- Servers of one run ----------------------------------------------------------


def servers(options: Options) -> Iterator[Figure]:
    """Yield how often a server of three is called slower: none, then one being so."""
    equal, seconds = options.runs_or(EQUAL_RUNS), options.seconds_or(RUN_S)
    for name, delays, words in (
        ("kept connections", [""] * 3, []),
        ("kept connections, servers of 5 ms", [f"{DELAY_S}"] * 3, []),
        ("--reconnect", [""] * 3, ["--reconnect"]),
    ):
        if options.short and words:
            break
        named = called(delays, ["9", *words], equal, seconds, options)
        what = f"three equal servers, {name}: one is called slower"
        yield Figure(what, equal - named["nobody"], equal, "≤ 3 %")
    if options.short:
        return
    several = options.runs_or(DIFFERENT_RUNS)
    for more in (5, 10, 20):
        yield from one_slower(more, "9", several, seconds, options)
    count, long_s = options.runs_or(LONG_RUNS), options.seconds_or(LONG_S)
    yield from one_slower(20, "30", count, long_s, options, "≥ 95 %")


def one_slower(
    more: int, clients: str, runs: int, seconds: float, options: Options, goal: str = ""
) -> Iterator[Figure]:
    """Yield how often the slow server is named, and how often another one."""
    delays = [f"{DELAY_S}", f"{DELAY_S * (1 + more / 100):.6f}", f"{DELAY_S}"]
    named = called(delays, [clients], runs, seconds, options)
    what = f"servers of 5 ms, one {more} % slower, {clients} clients, {seconds:g} s"
    yield Figure(f"{what}: it is named", named["the slow one"], runs, goal)
    yield Figure(f"{what}: another is", named["another"], runs, "≤ 1 %")


def called(
    delays: Sequence[str],
    words: Sequence[str],
    runs: int,
    seconds: float,
    options: Options,
) -> Counter[str]:
    """Make runs; return how often which server was called slower, the second or not."""
    named: Counter[str] = Counter()
    while named.total() < runs:
        with Stage() as stage:
            system = System(stage, options)
            ours = [system.server(*(["--delay", d] if d else [])) for d in delays]
            target = system.balancer(ours).address
            for _ in range(min(PER_SYSTEM, runs - named.total())):
                run = [*words, "--duration", str(seconds)]
                report = system.measure(target, *run, seconds=seconds)
                found = SLOWER.search(report["terminal"])
                slow = found and int(found[1]) == ours[1].address[1]
                who = "the slow one" if slow else "another" if found else "nobody"
                named[who] += 1
    say(f"servers: {[*delays]} {[*words]}: {dict(named)}")
    return named


# ---- Runs ------------------------------------------------------------------------


def repeats(options: Options) -> Iterator[Figure]:
    """Wait for the client's way to say it."""
    yield from ()
