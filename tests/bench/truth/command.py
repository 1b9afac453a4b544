"""The command: options, parts, the table."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from tests.bench.machine import RunError, describe_machine, raise_descriptor_limit
from tests.bench.truth import alone, differences, ranges, verdicts
from tests.bench.truth.system import Figure, Options

TOP = Path(__file__).resolve().parents[3]
PARTS: dict[str, tuple[Callable[[Options], Iterator[Figure]], ...]] = {
    "ranges": (ranges.made_up, ranges.real),
    "servers": (differences.servers,),
    "repeats": (differences.repeats,),
    "verdict": (verdicts.judged,),
    "alone": (alone.compared,),
}
HEAD = "| what was tried | so often | of | to reach |\n|---|---|---|---|"


def part_name(text: str) -> str:
    """Return the name of a part."""
    if text not in PARTS:
        message = f"no part {text!r}; there are {', '.join(PARTS)}"
        raise argparse.ArgumentTypeError(message)
    return text


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.bench truth",
        description="Measure how true client2.py's figures are; about a quarter of an"
        " hour on two cores. Prints README's table.",
    )
    add = parser.add_argument
    add("parts", nargs="*", type=part_name, metavar="PART",
        help=f"only these: {', '.join(PARTS)}")  # fmt: skip
    add("--runs", type=int, default=0, metavar="N", help="try each thing N times")
    add("--seconds", type=float, default=0, metavar="S", help="make a run this long")
    add("--seed", type=int, default=1, metavar="N", help="of what is made up")
    add("--full", action="store_true", help="ranges: all 48 settings, not twelve")
    add("--short", action="store_true", help="see that it works, in half a minute")
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE, too")
    add("--scripts", type=Path, default=TOP, metavar="FOLDER",
        help="take the three scripts from FOLDER")  # fmt: skip
    add("--python", default="", metavar="PROGRAM", help="run the scripts with another")
    return parser.parse_args(argv)


def share(figure: Figure) -> str:
    """Return how often, in percent, marked when that is not what is to be reached."""
    if not figure.tries:
        return "–"
    digits = 1 if 0 < figure.percent < 1 else 0
    return f"{figure.percent:.{digits}f} %" + " **missed**" * figure.is_missed


def joined(texts: Iterable[str]) -> str:
    """Return texts side by side, or the one that all of them are."""
    found = list(texts)
    return found[0] if len(set(found)) == 1 else " / ".join(t or "–" for t in found)


def table(figures: Sequence[Figure]) -> str:
    """Return the Markdown: a line for all figures of the same thing."""
    lines = [HEAD]
    for what in dict.fromkeys(figure.what for figure in figures):
        group = [figure for figure in figures if figure.what == what]
        labels = " / ".join(f.label + f" ({f.note})" * bool(f.note) for f in group)
        cells = (
            f"{what}: {labels}" if labels else what,
            " / ".join(map(share, group)),
            joined(f"{figure.tries:,}" for figure in group),
            joined(figure.target for figure in group),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def unwind(number: int, frame: object) -> NoReturn:
    """Handle SIGTERM like Ctrl-C: end all that was started."""
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, return 0; 1 if a part failed; 130 if interrupted."""
    args = parse_args(argv)
    options = Options(
        args.runs, args.seconds, args.seed, args.full, args.short,
        args.scripts.resolve(), args.python,
    )  # fmt: skip
    raise_descriptor_limit()
    signal.signal(signal.SIGTERM, unwind)
    began, found, code = time.monotonic(), [], 0
    try:
        for part in args.parts or PARTS:
            for measure in PARTS[part]:
                try:
                    found += list(measure(options))
                except RunError as error:
                    print(f"{part} FAILED: {error}", file=sys.stderr)
                    code = 1
    except KeyboardInterrupt:
        code = 130
    print(table(found))
    took_s = time.monotonic() - began
    words = "Linux {kernel}, {cores} cores, load {load_average:.1f}, Python {python}"
    print(f"\n{words.format_map(describe_machine())}; took {took_s:.0f} s")
    if args.json:
        content = {
            "version": 1,
            "command": ["python3", "-m", "tests.bench", "truth", *argv],
            "machine": describe_machine(),
            "took_s": took_s,
            "figures": [{**asdict(f), "percent": f.percent} for f in found],
        }
        part_file = args.json.with_suffix(".part")
        part_file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        os.replace(part_file, args.json)
    return code
