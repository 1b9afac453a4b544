"""Which server is called slower, and is a run different from the same run again."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from tests.bench.machine import Stage
from tests.bench.subjects import CLIENT
from tests.bench.truth.system import Figure, Json, Options, System, say

SLOWER = re.compile(r"(\d+) is slower than (\d+)")
RUN_S = 1.5
EQUAL_RUNS = 25
DIFFERENT_RUNS = 10
LONG_S, LONG_RUNS = 10.0, 4
PER_SYSTEM = 5  # runs against the same processes
DELAY_S = 0.005
REPEATED_RUNS = 32
EACH_SIDE = 4  # runs, when several are compared with several
COMPARE_S = 60.0
COMMON = {"version": 1, "command": ["client2.py"], "verdict": "valid", "reasons": []}


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
    """Repeat one run; yield how often --baseline calls repetitions different."""
    count = 2 * EACH_SIDE if options.short else options.runs_or(REPEATED_RUNS)
    seconds = 0.3 if options.short else options.seconds_or(RUN_S)
    with Stage() as stage:
        system = System(stage, options)
        target = system.behind_balancer([""] * 3).address
        words = ("9", "--duration", str(seconds))
        found = [system.measure(target, *words, seconds=seconds) for _ in range(count)]
        say(f"repeats: {count} runs made")
        pairs = list(itertools.pairwise(found))
        said = Counter(compare(system, [new], [old]) for old, new in pairs)
        say(f"repeats: one against one: {dict(said)}")
        several = [
            compare(system, runs[0::2], runs[1::2])
            for k in range(0, count - 2 * EACH_SIDE + 1, 2)
            for runs in [found[k : k + 2 * EACH_SIDE]]
        ]
        say(f"repeats: {EACH_SIDE} against {EACH_SIDE}: {dict(Counter(several))}")
    different = said["slower"] + said["faster"]
    what = f"the same run again, {seconds:g} s, by --baseline: called different"
    yield Figure(what, different, len(pairs), "≤ 5 %", "one run each")
    if several:
        different = sum(text in ("slower", "faster") for text in several)
        label = f"{EACH_SIDE} runs each, in turns"
        yield Figure(what, different, len(several), "≤ 5 %", label)


def compare(system: System, ours: Sequence[Json], theirs: Sequence[Json]) -> str:
    """Return what client2.py says of the p50 of runs beside others, by --baseline.

    Several runs of ours stand in one file, as --runs writes them.
    """
    folder = system.stage.folder
    own = dict(ours[0]) if len(ours) == 1 else {**COMMON, "runs": list(ours)}
    files = [folder / f"side-{number}.json" for number in range(len(theirs) + 1)]
    for file, document in zip(files, [own, *theirs], strict=True):
        file.write_text(json.dumps(document))
    out = folder / "compared.json"
    command = [*system.command(CLIENT), "--merge", str(files[0])]
    command += ["--baseline", *map(str, files[1:]), "--json", str(out), "--quiet"]
    system.stage.run(command, COMPARE_S)
    said: str = json.loads(out.read_text())["baseline"]["p50"]["said"]
    return said
