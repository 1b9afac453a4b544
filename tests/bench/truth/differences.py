"""Which server is called slower, and is a run different from the same run again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from tests.bench.machine import Stage
from tests.bench.subjects import CLIENT
from tests.bench.truth.system import Figure, Json, Options, System, say
from tests.bench.truth.tenths import client2

SLOWER = re.compile(r"(\d+) is slower than (\d+)")
RUN_S = 1.5
EQUAL_RUNS = 100
DIFFERENT_RUNS = 10
LONG_S, LONG_RUNS = 10.0, 4
PER_SYSTEM = 5  # runs against the same processes
DELAY_S = 0.005
REPEATED_RUNS = 32
EACH_SIDE = 4  # runs, when several are compared with several


# ---- Servers of one run ----------------------------------------------------------


def servers(options: Options) -> Iterator[Figure]:
    """Yield how often a server of three is called slower: none, then one being so."""
    equal, seconds = options.runs_or(EQUAL_RUNS), options.seconds_or(RUN_S)
    for name, delays, words in (
        ("kept connections", [""] * 3, []),
        ("servers of 5 ms", [f"{DELAY_S}"] * 3, []),
        ("--reconnect", [""] * 3, ["--reconnect"]),
    ):
        if options.short and words:
            break
        named = called(delays, ["9", *words], equal, seconds, options)
        what = f"three equal servers, 9 clients, {seconds:g} s: one is called slower"
        yield Figure(what, equal - named["nobody"], equal, "≤ 3 %", name)
    if options.short:
        return
    several = options.runs_or(DIFFERENT_RUNS)
    for more in (5, 10, 20):
        yield from one_slower(more, 9, several, seconds, options)
    count, long_s = options.runs_or(LONG_RUNS), options.seconds_or(LONG_S)
    yield from one_slower(20, 30, count, long_s, options, "≥ 95 %")


def one_slower(
    more: int, clients: int, runs: int, seconds: float, options: Options, goal: str = ""
) -> Iterator[Figure]:
    """Yield how often the slow server is named, and how often another one."""
    delays = [f"{DELAY_S}", f"{DELAY_S * (1 + more / 100):.6f}", f"{DELAY_S}"]
    named = called(delays, [str(clients)], runs, seconds, options)
    what = f"one of three servers of 5 ms is slower, {clients} clients, {seconds:g} s"
    label = f"+{more} %"
    yield Figure(f"{what}: it is named", named["the slow one"], runs, goal, label)
    yield Figure(f"{what}: another is", named["another"], runs, "≤ 1 %", label)


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
    """Yield how often --baseline calls runs different: the same again, then slower."""
    count = 2 * EACH_SIDE if options.short else options.runs_or(REPEATED_RUNS)
    seconds = 0.3 if options.short else options.seconds_or(RUN_S)
    same = [""] * 3, [""] * 3
    what = f"the same run again, 9 clients, {seconds:g} s, by --baseline: different"
    yield from compared(what, same, count, seconds, options, "≤ 5 %")
    if not options.short:
        more = [f"{DELAY_S}"] * 3, [f"{1.2 * DELAY_S}"] * 3
        what = f"servers of 6 ms after servers of 5 ms, {seconds:g} s: slower"
        yield from compared(what, more, count // 2, seconds, options, "")


def compared(
    what: str,
    delays: tuple[list[str], list[str]],
    count: int,
    seconds: float,
    options: Options,
    goal: str,
) -> Iterator[Figure]:
    """Make runs against two systems in turns; compare neighbours, and groups."""
    with Stage() as stage:
        system = System(stage, options)
        targets = [system.behind_balancer(side).address for side in delays]
        words = ("9", "--duration", str(seconds))
        runs = [
            system.measure(targets[k % 2], *words, seconds=seconds)
            for k in range(count - count % 2)
        ]
    pairs = [compare(options, [b], [a]) for a, b in batched(runs, 2)]
    groups = [
        compare(options, some[1::2], some[0::2])
        for k in range(0, len(runs) - 2 * EACH_SIDE + 1, 2)
        for some in [runs[k : k + 2 * EACH_SIDE]]
    ]
    wanted = {"slower", "faster"} if goal else {"slower"}
    for said, label in ((pairs, "one run each"), (groups, f"{EACH_SIDE} in turns")):
        say(f"repeats: {what}: {label}: {dict(Counter(said))}")
        if said:
            hits = sum(word in wanted for word in said)
            yield Figure(what, hits, len(said), goal, label)


def batched(runs: Sequence[Json], size: int) -> Iterator[Sequence[Json]]:
    """Yield groups of runs, one after the other."""
    for k in range(0, len(runs) - size + 1, size):
        yield runs[k : k + size]


def compare(options: Options, ours: Sequence[Json], theirs: Sequence[Json]) -> str:
    """Return what client2.py says of the p50 of runs beside others, as --baseline does.

    By its own functions: its command compares runs that it makes, and ours took turns.
    """
    module = client2(options.scripts / CLIENT)
    sides = [[*map(module.results_from_json, side)] for side in (ours, theirs)]
    change = module.compare_runs(*sides, "p50")
    return str(change.said) if change else "nothing"
