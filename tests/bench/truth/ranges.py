"""How often the printed range holds the percentile of the whole run it is part of."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from tests.bench.machine import Stage
from tests.bench.subjects import CLIENT
from tests.bench.truth.system import (
    Figure,
    Options,
    System,
    cores,
    read_exchanges,
    say,
)
from tests.bench.truth.tenths import PERCENTILES, Sent, holds, nearest_rank, ranges

CLIENTS = (1, 9, 30, 200)
MODES = ("closed loop", "--rate", "--reconnect")
DELAYS = ("", "0.005")
QUIET, BUSY = "quiet", "beside busy processes"
WINDOW_S = 10.0
WHOLE_S = 30.0
RATE_SHARE = 0.5  # of what the closed loop reaches in the run before
FEWEST = 30  # exchanges of a window that is worth asking


@dataclass(slots=True)
class Tally:
    """How often a range held, of how many windows that had one, and how wide it was."""

    held: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    none: Counter[str] = field(default_factory=Counter)
    widths: defaultdict[str, list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(
        self, found: dict[str, tuple[float, float] | None], whole: dict[str, float]
    ) -> None:
        """Compare the ranges of one window with the whole run's percentiles."""
        for name, value in whole.items():
            if around := found[name]:
                self.asked[name] += 1
                self.held[name] += holds(around, value)
                self.widths[name].append((around[1] - around[0]) / value)
            else:
                self.none[name] += 1

    def figure(self, name: str, what: str, target: str, label: str) -> Figure:
        """Return a line of the table."""
        widths = self.widths[name]
        note = f"{100 * statistics.median(widths):.0f} % wide" if widths else ""
        return Figure(what, self.held[name], self.asked[name], target, label, note)


# ---- Real runs -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """How a real run is made."""

    mode: str
    clients: int
    delay: str
    busy: bool

    def __str__(self) -> str:
        delay = f"servers of {float(self.delay) * 1e3:g} ms" if self.delay else "bare"
        place = BUSY if self.busy else QUIET
        return f"{self.clients} clients, {self.mode}, {delay}, {place}"


def all_settings() -> list[Setting]:
    """Return all 48."""
    return [
        Setting(mode, clients, delay, busy)
        for mode, clients, delay, busy in itertools.product(
            MODES, CLIENTS, DELAYS, (False, True)
        )
    ]


def some_settings() -> list[Setting]:
    """Return twelve: each mode with each number of clients, the rest dealt evenly."""
    return [
        Setting(mode, clients, DELAYS[(m + c) % 2], bool((m + c // 2) % 2))
        for m, mode in enumerate(MODES)
        for c, clients in enumerate(CLIENTS)
    ]


def real(options: Options) -> Iterator[Figure]:
    """Cut long runs into windows; yield how often each window's range held."""
    settings = all_settings() if options.full else some_settings()
    if options.short:
        settings = settings[:1]
    seconds = options.seconds_or(WHOLE_S)
    by_place: defaultdict[str, Tally] = defaultdict(Tally)
    for setting in settings * options.runs_or(1):
        say(f"ranges: {setting}")
        exchanges = run_of(setting, seconds, options)
        places = (
            "all",
            BUSY if setting.busy else QUIET,
            setting.mode,
        )
        for found, whole in windows(exchanges, seconds, options):
            for place in places:
                by_place[place].add(found, whole)
    what = f"windows of {min(WINDOW_S, seconds):g} s of real runs of {seconds:g} s"
    for name in PERCENTILES:
        target = "≥ 80 %" if name == "p50" else ""
        whose = f"{what}: the range holds the whole run's"
        yield by_place["all"].figure(name, whose, target, name)
    for place in (QUIET, BUSY, *MODES):
        if place in by_place:
            yield by_place[place].figure("p50", f"{what}: of p50", "", place)


def run_of(setting: Setting, seconds: float, options: Options) -> list[Sent]:
    """Make one run; return its exchanges in order of time."""
    with Stage() as stage, ExitStack() as stack:
        system = System(stage, options)
        target = system.behind_balancer([setting.delay] * 3).address
        if setting.busy:
            stack.enter_context(system.busy(cores()))
        words = [str(setting.clients)]
        if setting.mode == "--reconnect":
            words.append("--reconnect")
        if setting.mode == "--rate":
            pilot = system.measure(target, *words, "--duration", "1", seconds=1)
            rate = max(10.0, RATE_SHARE * pilot["exchanges"]["per_s"])
            words += ["--rate", f"{rate:.0f}"]
        table = stage.folder / "run.csv"
        words += ["--duration", str(seconds), "--csv", str(table)]
        system.measure(target, *words, seconds=seconds)
        return read_exchanges(table)


def windows(
    exchanges: Sequence[Sent], seconds: float, options: Options
) -> Iterator[tuple[dict[str, tuple[float, float] | None], dict[str, float]]]:
    """Yield the ranges of each window of a run, with the whole run's percentiles."""
    if not exchanges:
        return
    whole = nearest_rank(latency for _, latency in exchanges)
    length = min(WINDOW_S, seconds)
    cut: defaultdict[int, list[Sent]] = defaultdict(list)
    for exchange in exchanges:
        cut[int(exchange[0] / length)].append(exchange)
    for number, window in cut.items():
        if number < round(seconds / length) and len(window) >= FEWEST:
            yield ranges(options.scripts / CLIENT, window), dict(whole)


# ---- Exchanges that are made up --------------------------------------------------

Source = Callable[[random.Random], tuple[list[Sent], float]]
COUNT = 1_200
BASE_NS = 200_000.0
NOISE = 0.1  # of a latency's logarithm
PAUSE_S = 0.001  # between two exchanges


def sent(latencies: Sequence[float]) -> list[Sent]:
    """Return exchanges of these latencies, one after the other."""
    return [(k * PAUSE_S, round(latency)) for k, latency in enumerate(latencies)]


def autocorrelated(choices: random.Random) -> tuple[list[Sent], float]:
    """Return AR(1) of ρ 0.9 in the logarithm, and the median it comes from."""
    rho, level, found = 0.9, choices.gauss(0, 0.3), []
    for _ in range(COUNT):
        found.append(BASE_NS * math.exp(level))
        level = rho * level + choices.gauss(0, 0.3 * math.sqrt(1 - rho * rho))
    return sent(found), BASE_NS


def offset(choices: random.Random, clients: int = 30) -> tuple[list[Sent], float]:
    """Return clients that differ by 10 %, and what the same clients' median is."""
    offsets = [math.exp(choices.gauss(0, 0.1)) for _ in range(clients)]

    def draw(count: int) -> list[float]:
        return [
            BASE_NS * offsets[k % clients] * math.exp(choices.gauss(0, NOISE))
            for k in range(count)
        ]

    return sent(draw(COUNT)), statistics.median(draw(20 * COUNT))


def other_clients(choices: random.Random) -> tuple[list[Sent], float]:
    """Return the same, and the median of all clients that there could be."""
    return offset(choices)[0], BASE_NS


def regimes(choices: random.Random) -> tuple[list[Sent], float]:
    """Return three levels that follow each other by chance, and their long median."""
    levels, stay = (1.0, 1.15, 1.3), 1 - 20 / COUNT

    def draw(count: int) -> list[float]:
        found, level = [], choices.choice(levels)
        for _ in range(count):
            if choices.random() > stay:
                level = choices.choice(levels)
            found.append(BASE_NS * level * math.exp(choices.gauss(0, 0.02)))
        return found

    return sent(draw(COUNT)), statistics.median(draw(20 * COUNT))


SOURCES: tuple[tuple[str, Source, str], ...] = (
    ("AR(1) of ρ 0.9", autocorrelated, "≥ 90 %"),
    ("30 clients that differ by 10 %, theirs", offset, "≥ 90 %"),
    ("30 clients that differ by 10 %, that of all such", other_clients, ""),
    ("three regimes", regimes, "≥ 90 %"),
)


def made_up(options: Options) -> Iterator[Figure]:
    """Draw exchanges whose true p50 is known; yield how often the range holds it."""
    path = options.scripts / CLIENT
    for what, source, target in SOURCES:
        choices = options.chooser(what)
        tally = Tally()
        for _ in range(10 if options.short else options.runs or 300):
            exchanges, median = source(choices)
            tally.add(ranges(path, exchanges), {"p50": median})
        say(f"ranges: {what}")
        whose = f"{COUNT:,} exchanges made up: the range of p50 holds the true one"
        yield tally.figure("p50", whose, target, what)
