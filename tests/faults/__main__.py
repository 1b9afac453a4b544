"""The long form: `python3 -m tests.faults --seconds 300 --seed 7`.

Prints what was done, what was lost or broken, and the seed that repeats the choices
(not their timing). Exit status 1 when anything was lost.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tests.faults import all_scenarios
from tests.faults.lab import Result, Scenario, run_scenario


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.faults",
        description="Kill, cut, starve, flood the three scripts; count what is lost.",
    )
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO",
        help="do only these, names or numbers of parts (default: all)")  # fmt: skip
    add("--seconds", type=float, default=120, metavar="N",
        help="load for so long in all, verifying not counted "
        "(default: %(default)g)")  # fmt: skip
    add("--seed", type=int, help="repeat the choices of a run (default: a new one)")
    add("--list", action="store_true", help="say what there is, and do nothing")
    options = parser.parse_args(argv)
    known = all_scenarios()
    wanted = options.scenarios or list(known)
    options.chosen = [
        one for one in known.values() if {one.name, str(one.group)} & set(wanted)
    ]
    names = {one.name for one in options.chosen} | {
        str(one.group) for one in options.chosen
    }
    if unknown := set(wanted) - names:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; see --list")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scenarios; return 1 when something was lost."""
    options = parse_args(argv)
    if options.list:
        for one in options.chosen:
            print(f"{one.group}  {one.name:<34}{one.says}")
        return 0
    # So that whatever was started, mounted or made ends with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = options.seed
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
    shares = sum(one.share for one in options.chosen)
    began = time.monotonic()
    results = []
    for one in options.chosen:
        seconds = options.seconds * one.share / shares
        results.append(run_scenario(one, seed, seconds, long=True))
        show(one, results[-1])
    return conclude(results, seed, time.monotonic() - began)


def show(one: Scenario, result: Result) -> None:
    """Print how one scenario went."""
    verdict = "skipped" if result.skipped else "LOST" if result.losses else "ok"
    print(f"{one.group}  {one.name:<34}{verdict:<8}{result.took_s:6.1f} s", flush=True)
    if result.counts:
        print(f"     {figures(result.counts)}")
    for line in (*result.notes, *((result.skipped and [result.skipped]) or [])):
        print(f"     {line}")
    for line in result.losses[:20]:
        print(f"     lost: {line[:900]}")
    if len(result.losses) > 20:
        print(f"     lost: … and {len(result.losses) - 20} more")
    sys.stdout.flush()


def figures(counts: Counter[str]) -> str:
    """Return figures with their names, in one line."""
    return " · ".join(f"{number:,} {what}" for what, number in sorted(counts.items()))


def conclude(results: Sequence[Result], seed: int, took_s: float) -> int:
    """Print the totals; return the exit status."""
    total: Counter[str] = Counter()
    for result in results:
        total.update(result.counts)
    lost = sum(len(result.losses) for result in results)
    skipped = sum(bool(result.skipped) for result in results)
    print(f"\n{len(results)} scenarios, {skipped} skipped, {took_s:.0f} s, seed {seed}")
    print(figures(total))
    print(f"lost or broken: {lost}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
