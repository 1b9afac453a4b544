"""Run the breaks: see the package's docstring."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.breaks import Break, client2, load_balancer, server2

ROOT = Path(__file__).resolve().parents[2]
BREAKS = {
    "server2.py": server2.BREAKS,
    "load_balancer.py": load_balancer.BREAKS,
    "client2.py": client2.BREAKS,
}
TIMEOUT_S = 300  # for the tests of one break: one that hangs the script is noticed, too


def broken(script: str, one: Break) -> str:
    """Return the script's text with the break in it, or raise ValueError."""
    text = (ROOT / script).read_text(encoding="utf-8")
    if (count := text.count(one.old)) != 1:
        raise ValueError(f"{script}: stands {count} times, not once: {one.old!r}")
    return text.replace(one.old, one.new)


def notice(script: str, one: Break) -> str:
    """Return the first test that noticed the break, "" if none did."""
    with tempfile.TemporaryDirectory(prefix="break-") as folder:
        copy = Path(folder, "lab")
        ignored = shutil.ignore_patterns(".git", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=ignored)
        text = broken(script, one)
        compile(text, script, "exec")  # a syntax error would be noticed by anything
        Path(copy, script).write_text(text, encoding="utf-8")
        environment = {k: v for k, v in os.environ.items() if k != "LAB_JOBS"}
        tests = subprocess.Popen(
            [sys.executable, "-m", "unittest", "--failfast", *one.tests],
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, said = tests.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"none in {TIMEOUT_S} s: a test hung"
        finally:  # a script may be broken such that it outlives its test
            end_all_in(copy)
            tests.communicate()
    if tests.returncode == 0 or "unittest.loader._FailedTest" in said:
        return ""  # nobody looked, or there is no such test
    starts = ("FAIL: ", "ERROR: ")
    found = [line for line in said.splitlines() if line.startswith(starts)]
    return found[0].split()[1] if found else said.strip()[-200:]


def end_all_in(copy: Path) -> None:
    """End the processes that were started with a script or folder of this copy."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = Path(entry, "cmdline").read_bytes()
            folder = os.readlink(Path(entry, "cwd"))
            if os.fsencode(copy) in command or folder.startswith(str(copy)):
                os.kill(int(entry.name), signal.SIGKILL)


def main() -> int:
    """Run all breaks, or those asked for; return 1 if one was not noticed."""
    parser = argparse.ArgumentParser("python3 -m tests.breaks", description=__doc__)
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help=", ".join(BREAKS))
    parser.add_argument("--only", default="", metavar="WORD", help="in the promise")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N")
    args = parser.parse_args()
    if unknown := set(args.scripts) - set(BREAKS):
        parser.error(f"no such script: {', '.join(sorted(unknown))}")
    todo = [
        (script, one)
        for script in args.scripts or BREAKS
        for one in BREAKS[script]
        if args.only in one.promise
    ]
    began, missed = time.monotonic(), 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        noticed = pool.map(lambda pair: notice(*pair), todo)
        for (script, one), test in zip(todo, noticed, strict=True):
            missed += not test
            print(f"{script}: {one.promise}: {test or 'NOT NOTICED'}", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(todo)} breaks, {missed} not noticed, {seconds:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
