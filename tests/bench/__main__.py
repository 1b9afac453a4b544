"""The command: `python3 -m tests.bench [balancer|server|client|truth]`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from tests.bench import profiling, readme, truth
from tests.bench.figures import (
    TABLE_COLUMNS,
    TABLE_HEAD,
    Check,
    Samples,
    ratio,
    reached,
    table_line,
)
from tests.bench.machine import RunError, describe_machine, raise_descriptor_limit
from tests.bench.rows import ITSELF, ROWS, Bench, Row, Settings, ours_name
from tests.bench.subjects import (
    BALANCER,
    INSTALL,
    free_threaded_python,
    missing,
)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PARTS = ("balancer", "server", "client")
QUICK_ROUNDS, QUICK_SECONDS = 2, 0.5  # all rows in less than two minutes
STRANGERS_CORES = 0.1  # of the median turn: beyond it the machine was not quiet
TOP = Path(__file__).resolve().parents[2]


class Parser(argparse.ArgumentParser):
    """Say what is wrong in one line; the whole usage is one `--help` away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def row_names(text: str) -> list[str]:
    """Return the rows of "small,churn"."""
    names = text.split(",")
    known = [row.name for row in ROWS]
    for name in names:
        if name not in known:
            message = f"no row {name!r}; there are {', '.join(known)}"
            raise argparse.ArgumentTypeError(message)
    return names


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(
        prog="python3 -m tests.bench",
        description="Measure the three scripts, as they come, side by side with their"
        " peers, in one run; ratios are of runs that take turns. `truth` as the first"
        " word measures how true the client's figures are (truth --help).",
    )
    add = parser.add_argument
    add("part", nargs="?", choices=PARTS, help="measure one script only (default: all)")
    add("--rows", type=row_names, metavar="NAME,…", help="measure these rows only")
    add("--quick", action="store_true", help="judge by short runs, in two minutes")
    add("--rounds", type=int, help="let every subject have N turns (default: 3)")
    add("--seconds", type=float, help="make a turn this long (default: 3)")
    add("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    add("--table", action="store_true", help="print README's table at the end")
    add(
        "--from",
        dest="earlier",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="measure nothing: print README's table of what --json wrote",
    )
    add(
        "--free-threaded",
        default="",
        metavar="PATH",
        help="show a free-threaded Python beside the others (default: one that is"
        " installed, or $LAB_FREE_THREADED)",
    )
    add(
        "--balancer-args",
        action="append",
        metavar="ARGS",
        help="start the balancer with these options; repeat it to compare several"
        " (default: none)",
    )
    add("--server-args", default="", metavar="ARGS", help="more options of server2.py")
    add(
        "--client-args",
        default="",
        metavar="ARGS",
        help="more options of client2.py",
    )
    add(
        "--scripts",
        type=Path,
        default=TOP,
        metavar="FOLDER",
        help="take the three scripts from FOLDER (default: this repository)",
    )
    add("--python", default="", metavar="PROGRAM", help="run the scripts with another")
    add(
        "--profile",
        type=row_names,
        metavar="ROW",
        help="show where the CPU goes while a row runs, and measure nothing",
    )
    return parser.parse_args(argv)


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings that the options ask for."""
    return Settings(
        rounds=args.rounds or (QUICK_ROUNDS if args.quick else 3),
        seconds=args.seconds or (QUICK_SECONDS if args.quick else 3.0),
        quick=args.quick,
        scripts=args.scripts.resolve(),
        python=args.python,
        balancer_args=args.balancer_args or [""],
        server_args=args.server_args,
        client_args=args.client_args,
        free_threaded=free_threaded_python(args.free_threaded),
    )


def chosen_rows(args: argparse.Namespace) -> list[Row]:
    """Return the rows that were asked for, in the table's order."""
    return [
        row
        for row in ROWS
        if (not args.part or row.part == args.part)
        and (not args.rows or row.name in args.rows)
    ]


# ---- Running and showing ---------------------------------------------------------


def run_row(bench: Bench, row: Row) -> bool:
    """Measure one row; return whether it went through."""
    if absent := missing(row.needs):
        for program in absent:
            bench.note(f"row {row.name} left out; install {INSTALL[program]}")
        return True
    bench.row = row.name
    try:
        row.measure(bench)
    except RunError as error:
        bench.note(f"row {row.name} FAILED: {error}")
        return False
    return True


def ours_of(bench: Bench, row: Row, check: Check) -> list[str]:
    """Return the subjects that a check is about: one for each set of options."""
    if check.ours or row.ours != BALANCER:
        return [check.ours or row.ours]
    options = bench.settings.balancer_args
    return [ours_name(bench.settings, text) for text in options]


def results_of(bench: Bench, row: Row) -> list[dict[str, Any]]:
    """Return the checks of a row that have figures, with their samples."""
    found = []
    for check in row.checks:
        for name in ours_of(bench, row, check):
            against = name if check.against == ITSELF else check.against
            theirs_metric = check.their_metric or check.metric
            ours = bench.samples.get(row.name, name, check.metric)
            theirs = bench.samples.get(row.name, against, theirs_metric)
            if (ours and theirs) or (check.target and (ours or theirs)):
                found.append(
                    {"check": check, "subject": name, "ours": ours, "theirs": theirs}
                )
    return found


def print_row(bench: Bench, row: Row) -> None:
    """Print the lines of a row, by subject if there are several of ours."""
    results = results_of(bench, row)
    print(f"{row.title}")
    named = row.ours == BALANCER and len(bench.settings.balancer_args) > 1
    subjects = list(dict.fromkeys(r["subject"] for r in results))
    for subject in subjects if named else [""]:
        if named:
            print(f" {subject}")
        for result in results:
            if not named or result["subject"] == subject:
                print(table_line(result["check"], result["ours"], result["theirs"]))
    sys.stdout.flush()


def summary(bench: Bench, rows: Sequence[Row], started: str) -> dict[str, Any]:
    """Return all that was measured, for --json."""
    checks = []
    for row in rows:
        for result in results_of(bench, row):
            check: Check = result["check"]
            found = ratio(result["ours"], result["theirs"])
            checks.append(
                {
                    "row": row.name,
                    "title": check.title,
                    "metric": check.metric,
                    "subject": result["subject"],
                    "against": check.against,
                    "ratio": asdict(found) if found else None,
                    "target": check.target,
                    "reached": reached(found.median, check.target) if found else None,
                }
            )
    samples = [
        {
            "row": r,
            "subject": s,
            "metric": m,
            "median": statistics.median(v),
            "values": v,
        }
        for (r, s, m), v in bench.samples.values.items()
    ]
    return {
        "version": 1,
        "command": ["python3", "-m", "tests.bench", *sys.argv[1:]],
        "started": started,
        "machine": describe_machine(),
        "rounds": bench.settings.rounds,
        "seconds": bench.settings.seconds,
        "free_threaded": bench.settings.free_threaded,
        "balancer_args": list(bench.settings.balancer_args),
        "strangers_cores": bench.others,
        "checks": checks,
        "samples": samples,
        "notes": bench.notes,
    }


def samples_of(paths: Sequence[Path]) -> Samples:
    """Return the samples of files of --json; a later file's rows replace a former's."""
    samples = Samples()
    for path in paths:
        found = json.loads(path.read_text())["samples"]
        rows = {sample["row"] for sample in found}
        for key in [key for key in samples.values if key[0] in rows]:
            del samples.values[key]
        for sample in found:
            key = (sample["row"], sample["subject"], sample["metric"])
            samples.values[key] = sample["values"]
    return samples


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the whole file or nothing."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")
    os.replace(file.name, path)


def unwind(number: int, frame: object) -> NoReturn:
    """Handle Ctrl-C and SIGTERM: end all that was started, once, undisturbed."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and return 0; 1 if a row failed; 130 if interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["truth"]:
        return truth.main(words[1:])
    args = parse_args(words)
    if args.earlier:
        print(readme.table(samples_of(args.earlier)))
        return 0
    try:
        settings = settings_of(args)
    except RunError as error:
        print(f"--free-threaded: {error}", file=sys.stderr)
        return 2
    raise_descriptor_limit()
    for number in STOP_SIGNALS:
        signal.signal(number, unwind)
    if args.profile:
        return profiling.run(settings, args.profile[0])
    bench = Bench(settings)
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for name in missing(list(INSTALL)):
        bench.note(f"missing; to compare with it install {INSTALL[name]}")
    rows, code = chosen_rows(args), 0
    print(
        "Linux {kernel}, {cores} cores, load {load_average:.1f}, Python {python},"
        " {descriptor_limit} descriptors, {temporary_folder}".format_map(
            describe_machine()
        )
    )
    print(TABLE_HEAD.rstrip())
    try:
        for row in rows:
            code |= not run_row(bench, row)
            print_row(bench, row)
    except KeyboardInterrupt:
        print_row(bench, row)
        bench.note("interrupted: the figures are of the rounds until then")
        code = 130
    if bench.others and statistics.median(bench.others) > STRANGERS_CORES:
        used = f"{statistics.median(bench.others):.2f} of {os.cpu_count()} cores"
        bench.note(f"NOT QUIET: other programs used {used} meanwhile; trust no figure")
    for note in bench.notes:
        print(textwrap.fill(f"note: {note}", TABLE_COLUMNS, subsequent_indent="  "))
    if args.json:
        write_json(args.json, summary(bench, rows, started))
    if args.table:
        print(f"\n{readme.table(bench.samples)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
