"""What client2.py says of a run, and of what went wrong in it, is true."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import unittest
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from tests.support import (
    Behaviour,
    Running,
    Visit,
    accept_then_close,
    confirm,
    family,
    in_parallel,
    refusing_address,
    run_script,
    script_command,
    script_environment,
    wait_until,
)
from tests.test_client2 import MS, ClientTestCase, answer

PYENV = Path.home() / ".pyenv" / "versions"


def twice(visit: Visit) -> None:
    """Confirm every line twice, in one go."""
    while line := visit.read_line():
        visit.send(2 * (b"Server 9991 received: " + line))


def late_copy(visit: Visit) -> None:
    """Confirm every line twice, the second time a little later."""
    while line := visit.read_line():
        visit.send(b"Server 9991 received: " + line)
        visit.pause(0.02)
        visit.send(b"Server 9991 received: " + line)
        visit.pause(0.02)


def in_segments(*pieces: bytes, gap: float = 0.004) -> Behaviour:
    """Answer every line with pieces, so many seconds apart."""

    def behave(visit: Visit) -> None:
        while visit.read_line():
            for k, piece in enumerate(pieces):
                if k:
                    visit.pause(gap)
                visit.send(piece)

    return behave


def closes_after_each(visit: Visit) -> None:
    """Confirm one line, then close."""
    visit.send(b"Server 9991 received: " + visit.read_line())


class TheVerdict(ClientTestCase):
    """DOUBTFUL where figures say more about the client, with the right reason."""

    takes_long = True

    def stopped(self, still_s: float, go_s: float, *args: object) -> dict[str, Any]:
        """Return the document of a run that is stopped six times, and interrupted."""
        backend = self.backend(confirm(0.005))
        path = self.folder / "run.json"
        words = (*args, "--duration", 600, "--json", path, "--target", backend.address)
        client = self.spawn("client2.py", *words)
        wait_until(lambda: backend.received.count(b"\n") > 5, what="messages")
        for _ in range(6):
            for number, seconds in ((signal.SIGSTOP, still_s), (signal.SIGCONT, go_s)):
                for pid in family(client.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                backend.closing.wait(seconds)
        client.signal(signal.SIGINT)
        self.assertEqual(client.wait(), 130)
        document: dict[str, Any] = json.loads(path.read_text())
        return document

    @unittest.skipUnless(hasattr(signal, "SIGSTOP"), "needs SIGSTOP")
    def test_a_client_that_stood_still_in_any_pattern_is_doubtful(self) -> None:
        for still_s, go_s, *args in (
            (0.1, 0.2, 9),
            (0.4, 0.4, 9),
            (0.05, 0.15, 9),  # a quarter: a busy machine makes it less
            (0.1, 0.2, 30, "--rate", 200),
        ):
            with self.subTest(still_s=still_s, args=args):
                document = self.stopped(float(still_s), float(go_s), *args)
                self.assertEqual(document["verdict"], "doubtful")
                self.assertIn("client2 itself stood still", str(document["reasons"]))

    def test_a_busy_machine_alone_is_no_reason(self) -> None:
        hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
                for _ in range(4)]  # fmt: skip
        try:
            document = self.measure(self.backend(confirm(0.005)), 9, "--duration", 2)
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()
        self.assertEqual((document["verdict"], document["reasons"]), ("valid", []))

    def test_too_few_clients_are_named_even_when_nearly_all_was_sent(self) -> None:
        backend = self.backend(confirm(0.02))  # two clients can send 100 per second
        for rate in (150, 104):
            words = ("--rate", rate, "--duration", 2)
            document = self.measure(backend, 2, *words)
            with self.subTest(rate=rate):
                self.assertEqual(document["verdict"], "doubtful")
                (reason,) = document["reasons"]
                self.assertRegex(reason, r"all 2 clients were busy when \d+% of the")
                self.assertIn("use more clients", reason)

    def test_a_confirmation_too_many_is_a_mismatch_and_said(self) -> None:
        # Which of the two is seen depends on when the copy is read.
        words = r"bytes were left over|came before their messages were sent"
        for behaviour in (twice, late_copy):
            with self.subTest(behaviour):
                more = ("--messages", 4, "--think", 0.3)
                document = self.measure(self.backend(behaviour), 2, *more, code=1)
                self.assertGreater(document["failures"]["mismatch"], 0)
                self.assertEqual(document["verdict"], "doubtful")
                self.assertRegex(str(document["reasons"]), words)

    def test_bytes_left_over_after_the_last_reply_are_seen(self) -> None:
        pieces = (b"Server 9991 received: Hi\n", b"Server 9991 received: Hi\n")
        document = self.measure(
            self.backend(in_segments(*pieces, gap=0.1)),
            *(1, "--message", "Hi", "--messages", 2, "--think", 1, "--duration", 0.8),
        )  # the second is never sent: what came meanwhile is looked at, at the end
        self.assertEqual(document["exchanges"]["confirmed"], 1)
        self.assertIn("bytes were left over on 1 connection", document["reasons"][0])
        self.assertEqual(document["verdict"], "doubtful")

    def test_direct_exchanges_that_fail_are_said(self) -> None:
        through = self.backend(confirm(name="9"))
        with refusing_address() as address:
            port = address.rpartition(":")[2]
            through = self.backend(confirm(name=port))
            document = self.measure(through, 3, "--messages", 4, "--direct", address)
            unnamed = self.backend(confirm(name="1"))
            other = self.measure(unnamed, 3, "--direct", address)
        self.assertIn("most direct exchanges failed (12 of 12)", document["reasons"][0])
        self.assertIn("no direct exchange was made", other["reasons"][0])
        self.assertEqual((document["verdict"], other["verdict"]), ("doubtful",) * 2)

    @unittest.skipUnless(hasattr(os, "geteuid") and not os.geteuid(), "needs root")
    def test_local_ports_that_run_out_are_not_the_targets_failure(self) -> None:
        space = f"lab-{os.getpid()}"
        inside = ["ip", "netns", "exec", space]
        if subprocess.run(
            ["ip", "netns", "add", space], capture_output=True
        ).returncode:
            self.skipTest("needs network namespaces")
        try:
            for command in (
                ["ip", "link", "set", "lo", "up"],
                ["sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40019"],
                ["sysctl", "-qw", "net.ipv4.tcp_tw_reuse=0"],
            ):
                subprocess.run([*inside, *command], check=True)
            server = subprocess.Popen(
                [*inside, *script_command("server2.py", ["9991", "--quiet"])],
                cwd=self.folder, env=script_environment(), stdout=subprocess.PIPE,
            )  # fmt: skip
            assert server.stdout
            server.stdout.readline()
            client = [9, "--reconnect", "--duration", "0.5", "--target",
                      "127.0.0.1:9991", "--json", "run.json"]  # fmt: skip
            subprocess.run([*inside, *script_command("client2.py", client)], timeout=60,
                           cwd=self.folder, env=script_environment(),
                           capture_output=True, check=False)  # fmt: skip
            server.terminate()
            server.communicate(timeout=20)
        finally:
            subprocess.run(["ip", "netns", "del", space], check=True)
        document = json.loads((self.folder / "run.json").read_text())
        self.assertGreater(document["failures"]["local"], 0)
        self.assertEqual(document["failures"]["connect"], 0)
        self.assertIn("local ports of this machine ran out", document["reasons"][0])


class TheReply(ClientTestCase):
    """Where a reply ends, and whose it is."""

    def test_replies_of_several_lines_end_by_silence(self) -> None:
        pieces = (b"+one\r\ntwo\r\n", b"three\r\n")
        backend = self.backend(in_segments(*pieces))
        rows = self.rows(backend, 2, "--messages", 5, "--any-reply")
        # Where the second piece came within the silence (a busy machine may be late).
        whole = [row for row in rows if row["bytes_received"] == "18"]
        self.assertTrue(whole, rows)
        gaps = [int(r["response_time_ns"]) - int(r["latency_ns"]) for r in whole]
        # The second piece was waited for, and is part of it; a machine that is late
        # may read both at once.
        self.assertGreater(max(gaps), 3 * MS)

    def test_a_reply_longer_than_one_read_is_one_reply(self) -> None:
        body = b"$300000\r\n" + b"x" * 300_000 + b"\r\n"
        rows = self.rows(self.backend(answer(body)), 1, "--messages", 3, "--any-reply")
        self.assertEqual([row["bytes_received"] for row in rows], [str(len(body))] * 3)

    def test_a_reply_that_ends_with_its_connection_is_one(self) -> None:
        def page(visit: Visit) -> None:
            visit.read_line()
            visit.send(b"HTTP/1.0 200 OK\r\n\r\n<p>\n")

        backend = self.backend(page)
        rows = self.rows(backend, 1, "--messages", 3, "--any-reply", "--reconnect")
        self.assertEqual([row["outcome"] for row in rows], ["confirmed"] * 3)
        self.assertEqual(backend.total, 3)

    def test_a_reply_that_is_longer_than_the_last_one_is_read_to_its_end(self) -> None:
        # Redis' INFO was cut after a line that ended one byte beyond the last length.
        replies = [b"+ab\r\n", b"+ab\r\n", b"+abcd\nthe rest\n"]

        def behave(visit: Visit) -> None:
            for reply in cycle(replies):
                if not visit.read_line():
                    break
                visit.send(reply)

        rows = self.rows(self.backend(behave), 1, "--messages", 9, "--any-reply")
        self.assertEqual([row["outcome"] for row in rows], ["confirmed"] * 9)
        received = [int(row["bytes_received"]) for row in rows]
        self.assertEqual(received, [*map(len, replies)] * 3)

    def test_replies_of_one_line_do_not_wait(self) -> None:
        backend = self.backend(answer(b"+PONG\r\n"))
        document = self.measure(backend, 1, "--messages", 200, "--any-reply")
        self.assertLess(document["wall_s"], 3.9)  # once 20 ms, not 200 times
        self.assertEqual(document["exchanges"]["confirmed"], 200)

    def test_replies_of_one_line_that_differ_do_not_wait(self) -> None:
        def count(visit: Visit) -> None:
            number = 0
            while visit.read_line():
                number += 1
                visit.send(b"+%d\r\n" % number)

        rows = self.rows(self.backend(count), 1, "--messages", 90, "--any-reply")
        sent = sorted(float(row["due_s"]) for row in rows)
        gaps = [after - before for before, after in pairwise(sent[1:])]
        self.assertLess(min(gaps), 0.02)  # the silence after the first reply

    def test_a_line_end_that_was_changed_is_named(self) -> None:
        def change(visit: Visit) -> None:
            while line := visit.read_line():
                visit.send(b"Server 9991 received: " + line[:-1] + b"\r\n")

        for message in ("Hello from client {client}!", "x" * 300):
            backend = self.backend(change)
            words = ("--message", message, "--target", backend.address)
            result = self.client(1, *words)
            self.assertEqual(result.returncode, 1)
            self.assertIn(r"ends in \r\n instead of \n", result.stdout)
            self.assertNotIn("belongs to", result.stdout)

    def test_messages_have_numbers_and_replies_to_others_are_named(self) -> None:
        def shifted(visit: Visit) -> None:
            line = visit.read_line()
            visit.send(b"Server 9991 received: " + line)
            visit.read_line()
            visit.send(b"Server 9991 received: " + line)

        words = ("--message", "m{message} of {client}", "--messages", 2)
        backend = self.backend(confirm())
        self.client(2, *words, "--target", backend.address)
        self.assertEqual(
            sorted(visit.received for visit in backend.visits),
            [b"m1 of 1\nm2 of 1\n", b"m1 of 2\nm2 of 2\n"],
        )
        result = self.client(2, *words, "--target", self.backend(shifted).address)
        self.assertRegex(result.stdout, r"reply belongs to message 1 client [12]")

    def test_messages_come_from_the_lines_of_a_file(self) -> None:
        (self.folder / "lines").write_text("one\ntwo {client}\n")
        backend = self.backend(confirm())
        words = (1, "--message", "@lines", "--messages", 3)
        self.client(*words, "--target", backend.address)
        self.assertEqual(backend.received, b"one\ntwo 1\none\n")
        missing = self.client(1, "--message", "@missing", "--target", backend.address)
        self.assert_one_line(missing, 2, "missing")

    def test_a_server_that_closes_after_each_reply_gets_the_hint(self) -> None:
        backend = self.backend(closes_after_each)
        result = self.client(2, "--messages", 3, "--target", backend.address)
        self.assertIn("--reconnect", result.stdout)
        result = self.client(
            2, "--messages", 3, "--reconnect", "--target", backend.address
        )
        self.assertEqual(result.returncode, 0, result)

    def test_a_balancer_without_servers_is_told_from_nobody_there(self) -> None:
        result = self.client(3, "--target", self.backend(accept_then_close).address)
        self.assertRegex(" ".join(result.stdout.split()), "answers, but no server does")


class TheClock(ClientTestCase):
    """Durations, rates and moments."""

    def test_connecting_does_not_count_the_start_of_processes(self) -> None:
        (self.folder / "sitecustomize.py").write_text("import time\ntime.sleep(1.5)")
        result = run_script(
            *("client2.py", 4, "--workers", 2, "--messages", 2),
            *("--target", self.backend(confirm()).address),
            cwd=self.folder,
            env={"PYTHONPATH": str(self.folder)},
        )
        ((took, unit),) = re.findall(r"connected 4/4 in (\S+) (\S+)", result.stdout)
        self.assertLess(float(took) * {"µs": 1, "ms": 1e3, "s": 1e6}[unit], 1.4e6)

    def test_a_short_duration_is_kept(self) -> None:
        # The old one ran a quarter second, always.
        for _ in range(10):
            document = self.measure(self.backend(confirm()), 2, "--duration", 0.01)
            if document["wall_s"] < 0.2:
                return
        self.fail(f"{document['wall_s']} s of 10 ms")

    def test_a_schedule_that_is_kept_reports_its_rate(self) -> None:
        document = self.measure(
            self.backend(confirm()), 10, "--rate", 50, "--duration", 1
        )
        self.assertEqual(document["exchanges"]["confirmed"], 50)
        # Of the second, not of the 0.98 s between first and last: a late machine only
        # makes it longer.
        self.assertLess(document["exchanges"]["per_s"], 50.5)
        self.assertGreater(document["wall_s"], 0.99)
        self.assertEqual(document["arrivals"], "even")

    def test_the_first_seconds_or_messages_can_be_left_out(self) -> None:
        backend = self.backend(confirm(lambda number: 0.3 if number < 2 else 0.0))
        target = ("--target", backend.address)
        path = self.folder / "run.json"
        result = self.client(
            1, "--messages", 20, "--warmup", "2x", "--json", path, *target
        )
        document = json.loads(path.read_text())
        self.assertEqual(document["exchanges"]["confirmed"], 18)
        self.assertEqual(document["exchanges"]["planned"], 18)
        self.assertGreater(document["warmup_s"], 0.5)
        self.assertIn("(2 exchanges) are left out", result.stdout)
        words = ("--rate", 40, "--duration", 1, "--warmup", 0.5)
        document = self.measure(backend, 2, *words)
        self.assertEqual(document["exchanges"]["confirmed"], 20)
        self.assertLess(document["exchanges"]["per_s"], 41)

    def test_clients_that_a_short_run_never_started_are_counted(self) -> None:
        backend = self.backend(confirm())
        words = (4, "--ramp", 8, "--duration", 0.5, "--target", backend.address)
        result = self.client(*words)
        self.assertIn("3 clients never started", result.stdout)

    def test_messages_that_were_not_sent_are_counted(self) -> None:
        words = ("--messages", 100, "--duration", 0.5)
        document = self.measure(self.backend(confirm(0.02)), 1, *words)
        exchanges = document["exchanges"]
        self.assertEqual(exchanges["planned"], 100)
        self.assertEqual(exchanges["not_sent"], 100 - exchanges["confirmed"])
        self.assertIn("not sent when time was up", document["notices"][0])

    def test_merged_runs_that_followed_one_another_have_their_own_rate(self) -> None:
        backend = self.backend(confirm(0.01))
        words = ("--messages", 20, "--rate", 60)
        documents = [self.measure(backend, 2, *words) for _ in range(4)]
        files = sorted(self.folder.glob("run-*.json"))
        self.client("--merge", *files, "--json", "sum.json")
        merged = json.loads((self.folder / "sum.json").read_text())
        total = sum(document["wall_s"] for document in documents)
        self.assertAlmostEqual(merged["wall_s"], total, delta=0.001)
        parts = len(merged["latency_ns"]["parts"]["p50"])  # of a late run, fewer
        self.assertIn(parts, range(31, 41))
        self.assertEqual(merged["rate"], 60)  # and not that of all four
        # Beside one another they asked for more.
        for document, name in zip(documents, "abcd", strict=True):
            document["started"] = documents[0]["started"]
            (self.folder / f"{name}.json").write_text(json.dumps(document))
        self.client("--merge", "a.json", "b.json", "--json", "sum.json")
        merged = json.loads((self.folder / "sum.json").read_text())
        self.assertEqual(merged["rate"], 120)
        self.assertEqual(set(documents[0]["latency_ns"]["tenths"]), {
            "p50", "p90", "p95", "p99", "p99_9"})  # fmt: skip

    def test_the_gap_of_an_outage_is_little_longer_than_the_outage(self) -> None:
        first = self.backend(confirm(0.002))
        port = first.port
        client = self.spawn(
            *("client2.py", 9, "--duration", 3, "--timeout", 2, "--json", "run.json"),
            *("--target", first.address),
        )
        wait_until(lambda: first.received.count(b"\n") > 50, what="messages")
        began_s = time.monotonic()
        first.close()
        threading.Event().wait(0.9)
        with contextlib.suppress(OSError):
            self.backend(confirm(0.002), port=port)
        outage_s = time.monotonic() - began_s
        client.wait()
        text = client.stdout_text()
        found = re.search(r"confirmed reply: ([\d.]+) (m?s)", text)
        assert found, text
        gap_s = float(found[1]) / (1000 if found[2] == "ms" else 1)
        self.assertLess(gap_s, outage_s + 0.6)
        self.assertGreater(gap_s, 0.85)

    def test_clients_think_between_messages(self) -> None:
        backend = self.backend(confirm())
        rows = self.rows(backend, 2, "--messages", 4, "--think", 0.1)
        for client in ("1", "2"):
            sent = [float(row["due_s"]) for row in rows if row["client"] == client]
            for one, next_one in pairwise(sorted(sent)):
                self.assertGreaterEqual(next_one - one, 0.1)

    def test_poisson_arrivals_can_be_repeated(self) -> None:
        words = (
            20,
            "--rate",
            100,
            "--messages",
            3,
            "--arrivals",
            "poisson",
            "--seed",
            7,
        )
        due = [
            sorted(
                float(row["due_s"])
                for row in self.rows(self.backend(confirm()), *words)
            )
            for _ in range(2)
        ]
        for one, again in zip(*due, strict=True):
            self.assertAlmostEqual(one, again, delta=0.005)
        gaps = [b - a for a, b in pairwise(due[0])]
        self.assertGreater(max(gaps), 4 * min(gaps))

    def test_with_reconnect_a_client_connects_when_its_message_is_due(self) -> None:
        backend = self.backend(confirm())
        words = (8, "--rate", 10, "--messages", 1, "--reconnect")
        self.measure(backend, *words)
        starts = sorted(visit.began for visit in backend.visits)
        self.assertEqual(len(starts), 8)
        self.assertGreater(starts[-1] - starts[0], 0.25)
        self.assertLessEqual(backend.peak, 3)


class TheOutput(ClientTestCase):
    """Nothing that was measured is lost to an output."""

    def test_a_full_disk_for_the_csv_costs_only_the_csv(self) -> None:
        target = self.backend(confirm()).address
        (self.folder / "full").symlink_to("/dev/full")
        result = self.client(
            3, "--csv", "full", "--json", "run.json", "--target", target
        )
        self.assertEqual(result.returncode, 1, result)
        self.assertIn("3 of 3 confirmed", result.stdout)
        self.assertEqual(
            result.stderr, "client2.py: cannot write full: no space left on device\n"
        )
        self.assertTrue((self.folder / "run.json").exists())

    def test_a_full_or_closed_standard_output_costs_only_itself(self) -> None:
        target = self.backend(confirm()).address
        command = script_command(
            "client2.py", [3, "--json", "run.json", "--target", target]
        )
        for how in (">/dev/full", ">&-", "<&- >&- 2>&-"):
            with self.subTest(how):
                (self.folder / "run.json").unlink(missing_ok=True)
                shell = subprocess.run(
                    ["sh", "-c", f'"$@" {how}', "sh", *map(str, command)],
                    cwd=self.folder, env=script_environment(), timeout=60,
                    stderr=subprocess.PIPE, check=False,
                )  # fmt: skip
                document = json.loads((self.folder / "run.json").read_text())
                self.assertEqual(document["exchanges"]["confirmed"], 3)
                self.assertNotIn(b"Traceback", shell.stderr)
                if how == ">/dev/full":
                    self.assertEqual(shell.returncode, 1)
                    self.assertIn(b"standard output: no space left", shell.stderr)

    def test_arguments_that_are_no_utf8_can_be_reported(self) -> None:
        target = self.backend(confirm()).address
        files = ("--report", "r.html", "--json", "r.json", "--message")
        command = script_command("client2.py", [2, "--target", target, *files])
        result = subprocess.run(
            [*map(os.fsencode, map(str, command)), b"\xff\xfe"], cwd=self.folder,
            env=script_environment(), capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        self.assertIn("</html>", (self.folder / "r.html").read_text())

    def test_json_keeps_the_mode_of_the_file_it_replaces(self) -> None:
        path = self.folder / "run.json"
        path.write_text("old")
        path.chmod(0o640)
        self.measure_to(path)
        self.assertEqual(path.stat().st_mode & 0o777, 0o640)
        self.assertEqual([p.name for p in self.folder.iterdir()], ["run.json"])

    def measure_to(self, path: Path) -> None:
        result = self.client(
            1, "--json", path, "--target", self.backend(confirm()).address
        )
        self.assertEqual(result.returncode, 0, result)

    def test_a_dash_is_standard_output_and_the_summary_goes_beside_it(self) -> None:
        target = self.backend(confirm()).address
        result = self.client(2, "--json", "-", "--target", target)
        self.assertEqual(json.loads(result.stdout)["clients"], 2)
        self.assertIn("2 of 2 confirmed", result.stderr)
        result = self.client(2, "--csv", "-", "--quiet", "--target", target)
        self.assertEqual(len(result.stdout.splitlines()), 3)

    def test_a_title_heads_summary_json_and_report(self) -> None:
        words = ("--title", "Two <servers>", "--json", "r.json", "--report", "r.html")
        result = self.client(2, *words, "--target", self.backend(confirm()).address)
        self.assertTrue(result.stdout.startswith("Two <servers>\n"))
        self.assertEqual(json.loads((self.folder / "r.json").read_text())["title"],
                         "Two <servers>")  # fmt: skip
        self.assertIn(
            "<h1>Two &lt;servers&gt;</h1>", (self.folder / "r.html").read_text()
        )

    def test_the_most_important_figures_are_the_last_lines(self) -> None:
        target = self.backend(confirm()).address
        text = self.client(40, "--messages", 10, "--target", target).stdout
        last = text.splitlines()[-6:]
        for words in ("400 of 400 confirmed", "latency p50", "verdict", "exit 0"):
            self.assertTrue(any(words in line for line in last), text)
        nine = self.client(9, "--target", target).stdout
        self.assertLessEqual(len(nine.splitlines()), 38)  # and two of the demo

    def test_several_rates_make_a_knee_curve(self) -> None:
        backend = self.backend(confirm(0.02))
        result = self.client(
            *(2, "--rate", "20,40,400", "--duration", 1, "--json", "k.json"),
            *("--report", "k.html", "--target", backend.address),
        )
        self.assertEqual(result.returncode, 0, result)
        document = json.loads((self.folder / "k.json").read_text())
        self.assertEqual([run["rate"] for run in document["runs"]], [20, 40, 400])
        self.assertEqual(document["knee"], 40)
        self.assertIn("the knee: the target holds 40.0/s; at 400/s", result.stdout)
        page = (self.folder / "k.html").read_text()
        self.assertIn("Response time by rate", page)
        head = "rate<th>confirmed/s<th>response p50<th>tenths<th>p99<th>verdict"
        self.assertIn(f"<tr><th>{head}<tr><td>20.0/s<td>", page)
        self.assertRegex(page, "<tr><td>400/s<td>[0-9.]+<td>.*<td>doubtful</table>")
        again = self.client(2, "--rate", 20, "--duration", 1, "--baseline", "k.json",
                            "--target", backend.address)  # fmt: skip
        self.assertIn("baseline not like this run: other rate:", again.stdout)

    def test_nothing_is_sent_when_time_is_up(self) -> None:
        backend = self.backend(confirm(0.6))
        self.measure(backend, 1, "--duration", 0.8)  # was three: at 0, 0.6 and 1.2 s
        self.assertLessEqual(backend.received.count(b"\n"), 2)

    def test_runs_are_repeated_and_each_is_in_the_document(self) -> None:
        words = ("--runs", 3, "--messages", 2)
        document = self.measure(self.backend(confirm()), 2, *words)
        confirmed = [run["exchanges"]["confirmed"] for run in document["runs"]]
        self.assertEqual(confirmed, [4, 4, 4])
        self.assertIsNone(document["knee"])

    def test_no_word_claims_a_confidence(self) -> None:
        target = self.backend(confirm()).address
        text = self.client(40, "--messages", 60, "--report", "r.html", "--target",
                           target).stdout  # fmt: skip
        page = (self.folder / "r.html").read_text()
        for found in (text, page, self.run_script("client2.py", "--help").stdout):
            self.assertNotRegex(found, r"95 ?%|confidence")
        self.assertIn("tenths", text)

    def test_a_dumb_terminal_gets_no_redrawn_line_and_a_narrow_one_no_trail(
        self,
    ) -> None:
        if not hasattr(os, "openpty"):
            self.skipTest("needs pseudo-terminals")
        backend = self.backend(confirm(0.01))

        def shown(term: str, columns: str) -> str:
            own, other = os.openpty()
            shape = {"TERM": term, "COLUMNS": columns}
            with subprocess.Popen(
                script_command("client2.py", [2, "--duration", 1, "--target",
                                              backend.address]),
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=other, env=script_environment(shape),
            ) as process:  # fmt: skip
                os.close(other)
                data = b""
                with contextlib.suppress(OSError):
                    while piece := os.read(own, 65536):
                        data += piece
                os.close(own)
                process.wait(30)
            return data.decode()

        dumb, narrow = in_parallel(
            partial(shown, "dumb", "80"), partial(shown, "xterm", "40")
        )
        self.assertEqual(dumb, "")
        lines = re.split(r"\r\x1b\[K", narrow)
        self.assertGreater(len(lines), 2)
        self.assertLess(max(map(len, lines)), 40)


class TheStart(ClientTestCase):
    """Versions, and an end before anything began."""

    def test_it_says_its_version(self) -> None:
        result = self.run_script("client2.py", "--version")
        self.assertEqual((result.returncode, result.stdout), (0, "client2.py 2.0\n"))

    def test_an_old_python_is_told_so_in_one_line(self) -> None:
        old = sorted(PYENV.glob("3.[89].*/bin/python3")) + sorted(
            PYENV.glob("3.10.*/bin/python3")
        )
        if not old:
            self.skipTest("needs a Python older than 3.11")
        for python in old:
            command = script_command("client2.py", ["9"])
            result = subprocess.run([python, *map(str, command[1:])], timeout=60,
                capture_output=True, text=True, check=False)  # fmt: skip
            self.assertEqual((result.returncode, result.stdout), (2, ""), result)
            self.assertRegex(
                result.stderr,
                r"\Aclient2.py needs Python 3.11 or newer, this is 3\.\d+\.\d+\n\Z",
            )

    def test_ctrl_c_in_a_slow_look_up_ends_it_at_once(self) -> None:
        env = self.without()
        Path(env["PYTHONPATH"], "sitecustomize.py").write_text(
            "import socket, sys, threading, time\n"
            "def slow(*args, **named):\n"
            "    print('looking', file=sys.stderr, flush=True)\n"
            "    time.sleep(60)\n"
            "socket.getaddrinfo = slow\n"
        )
        client: Running = self.spawn(
            "client2.py", 2, "--target", "slow.example:1", env=env
        )
        client.wait_for_error("looking")
        client.signal(signal.SIGINT)
        self.assertEqual(client.wait(10), 130)
        self.assertEqual(client.stderr_text(), "looking\nclient2.py: interrupted\n")

    def test_every_part_of_p95_can_fail_a_run(self) -> None:
        target = self.backend(confirm(0.005)).address
        words = (8, "--messages", 10, "--target", target, "--fail-if")
        self.assertEqual(self.client(*words, "p95>1ms").returncode, 99)
        self.assertEqual(self.client(*words, "p75>60s").returncode, 0)


if __name__ == "__main__":
    unittest.main()
