"""What client2.py promises, measured against servers whose truth is known."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import math
import os
import re
import select
import signal
import socket
import struct
import subprocess
import time
import unittest
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from functools import partial
from itertools import pairwise
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, ClassVar

import client2
from tests.support import (
    DEADLINE_S,
    REFUSED,
    Backend,
    Behaviour,
    Running,
    ScriptTestCase,
    Target,
    Visit,
    accept_then_close,
    address_of,
    black_hole,
    children,
    confirm,
    echo,
    in_parallel,
    localhost_resolves,
    marked_processes,
    read_line,
    refusing_address,
    reset_after,
    reset_at_once,
    run_main,
    run_script,
    script_command,
    script_environment,
    silent,
    wait_until,
)

MS = 1_000_000  # nanoseconds
STAMPS = "user" if REFUSED else "kernel"  # who notes arrivals on Linux
NOISE_NS = 400 * MS  # what a busy machine may add to one figure
PERCENTILES = ("p50", "p90", "p99", "p99_9")
SUMMARY_KEYS = {"count", "min", "mean", *PERCENTILES, "p95", "max", "hdr"}
SUMMARY_KEYS |= {"tenths", "parts"}
CSV_HEADER = (
    "client,message,server,due_s,latency_ns,response_time_ns,"
    "bytes_sent,bytes_received,outcome"
)
ESCAPE = "\x1b"


def decode_histogram(text: str) -> dict[int, int]:
    """Return {lowest value of a bucket: count} of an HdrHistogram V2 blob.

    Written from the format's description (HdrHistogram's ENCODING.rst): zlib behind
    cookie 0x1c849314; then cookie 0x1c849313, lengths, and ZigZag LEB128 counts,
    where -k stands for k zeros.
    """
    outer = base64.b64decode(text, validate=True)
    cookie, length = struct.unpack(">ii", outer[:8])
    assert cookie == 0x1C849314 and length == len(outer) - 8, "outer header"
    inner = zlib.decompress(outer[8:])
    cookie, payload, _, digits, lowest, _, ratio = struct.unpack(">iiiiqqd", inner[:40])
    assert cookie == 0x1C849313 and payload == len(inner) - 40, "inner header"
    assert digits == 3 and lowest == 1 and ratio == 1.0, "three digits, unit 1"
    counts: dict[int, int] = {}
    index = position = 0
    data = inner[40:]
    while position < len(data):
        number = shift = 0
        while True:
            byte = data[position]
            position += 1
            if shift == 56:  # the ninth byte carries eight bits
                number |= byte << shift
                break
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        value = (number >> 1) ^ -(number & 1)
        if value < 0:
            index -= value
            continue
        if value:
            bucket = max(0, (index >> 10) - 1)
            counts[(index - (bucket << 10)) << bucket] = value
        index += 1
    return counts


def mixed_up(visit: Visit) -> None:
    """Confirm every line as if the next client had sent it."""
    while line := visit.read_line():
        number = int(re.findall(rb"client (\d+)", line)[0])
        other = line.replace(b"client %d" % number, b"client %d" % (number + 1))
        visit.send(b"Server 9991 received: " + other)


def in_two_pieces(gap: float) -> Behaviour:
    """Confirm every line in two pieces, `gap` seconds apart."""

    def behave(visit: Visit) -> None:
        while line := visit.read_line():
            visit.send(b"Server 9991 rec")
            visit.pause(gap)
            visit.send(b"eived: " + line)

    return behave


def answer(reply: bytes) -> Behaviour:
    """Send the same reply to every line."""

    def behave(visit: Visit) -> None:
        while visit.read_line():
            visit.send(reply)

    return behave


def endless(visit: Visit) -> None:
    """Answer the first line with a line that has no end."""
    visit.read_line()
    while not visit.backend.closing.is_set():
        visit.send(b"x" * 65536)


class ClientTestCase(ScriptTestCase):
    """Runs the client against a target and returns what it wrote."""

    def measure(
        self, target: Target, *args: object, code: int = 0, timeout: float = 60.0
    ) -> dict[str, Any]:
        """Return the `--json` document of a run that ends with `code`."""
        path = self.folder / f"run-{time.monotonic_ns()}.json"
        result = self.client(
            *args, "--target", address_of(target), "--json", path, timeout=timeout
        )
        self.assertEqual(result.returncode, code, result)
        document: dict[str, Any] = json.loads(path.read_text())
        return document

    def rows(
        self, target: Target, *args: object, code: int = 0
    ) -> list[dict[str, str]]:
        """Return the `--csv` rows of a run that ends with `code`."""
        path = self.folder / f"run-{time.monotonic_ns()}.csv"
        result = self.client(*args, "--target", address_of(target), "--csv", path)
        self.assertEqual(result.returncode, code, result)
        with path.open(newline="") as file:
            return list(csv.DictReader(file))


class TheExchange(ClientTestCase):
    """Who sends what, how often, on how many connections."""

    def test_each_client_says_hello_on_its_own_connection(self) -> None:
        backend = self.backend(confirm())
        result = self.client(9, "--target", backend.address)
        self.assertEqual(result.returncode, 0, result)
        self.assertEqual(
            sorted(visit.received for visit in backend.visits),
            [b"Hello from client %d!\n" % number for number in range(1, 10)],
        )

    def test_all_clients_are_connected_at_once(self) -> None:
        def confirm_once_all_are_there(visit: Visit) -> None:
            visit.read_line()
            wait_until(lambda: visit.backend.total == 12, what="twelve connections")
            visit.send(b"Server 9991 received: " + visit.received)

        backend = self.backend(confirm_once_all_are_there)
        result = self.client(12, "--timeout", 30, "--target", backend.address)
        self.assertEqual(result.returncode, 0, result)
        self.assertEqual((backend.total, backend.peak), (12, 12))

    def test_all_are_connected_before_the_first_message_is_sent(self) -> None:
        # The queue holds one connection: the third and the fourth have to wait.
        with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
            target = f"127.0.0.1:{listener.getsockname()[1]}"
            client = self.spawn("client2.py", 4, "--timeout", 30, "--target", target)
            first, _ = listener.accept()
            self.assertEqual(select.select([first], [], [], 0.5)[0], [])
            rest = [listener.accept()[0] for _ in range(3)]
            for connection in (first, *rest):
                with connection:
                    connection.sendall(b"Server 1 received: " + read_line(connection))
            self.assertEqual(client.wait(), 0)

    def test_messages_are_sent_one_after_the_other_on_one_connection(self) -> None:
        backend = self.backend(confirm())
        self.client(2, "--messages", 3, "--target", backend.address)
        self.assertEqual(
            sorted(visit.received for visit in backend.visits),
            [b"Hello from client 1!\n" * 3, b"Hello from client 2!\n" * 3],
        )

    def test_the_next_message_waits_for_the_confirmation(self) -> None:
        early = []

        def watch(visit: Visit) -> None:
            while line := visit.read_line():
                early.append(bool(select.select([visit.socket], [], [], 0.1)[0]))
                visit.send(b"Server 1 received: " + line)

        self.client(1, "--messages", 4, "--target", self.backend(watch).address)
        self.assertEqual(early, [False] * 4)

    def test_reconnect_makes_a_connection_per_message(self) -> None:
        backend = self.backend(confirm())
        document = self.measure(backend, 3, "--messages", 4, "--reconnect")
        self.assertEqual(backend.total, 12)
        self.assertEqual(document["connect_ns"]["count"], 12)
        self.assertEqual(
            sorted(visit.received for visit in backend.visits),
            sorted([b"Hello from client %d!\n" % n for n in (1, 2, 3)] * 4),
        )

    def test_message_replaces_the_text(self) -> None:
        backend = self.backend(confirm())
        self.client(1, "--message", "Halo, dunia ✓", "--target", backend.address)
        self.assertEqual(backend.received, "Halo, dunia ✓\n".encode())

    def test_size_counts_the_bytes_of_the_whole_message(self) -> None:
        for size in (1, 50, 65536):
            with self.subTest(size=size):
                backend = self.backend(confirm())
                document = self.measure(backend, 2, "--size", size)
                self.assertEqual(document["bytes"]["sent"], 2 * size)
                self.assertEqual(
                    [len(visit.received) for visit in backend.visits], [size] * 2
                )
                self.assertEqual(backend.received.count(b"\n"), 2)

    def test_any_reply_accepts_what_is_not_a_confirmation(self) -> None:
        backend = self.backend(answer(b"+PONG\r\n"))
        args = (3, "--message", "PING", "--messages", 2)
        strict = self.measure(backend, *args, code=1)
        self.assertEqual(strict["exchanges"]["confirmed"], 0)
        self.assertGreaterEqual(strict["failures"]["mismatch"], 3)
        loose = self.measure(backend, *args, "--any-reply")
        self.assertEqual(loose["exchanges"]["confirmed"], 6)

    def test_workers_share_the_clients(self) -> None:
        backend = self.backend(confirm())
        document = self.measure(backend, 10, "--messages", 20, "--workers", 3)
        self.assertEqual(document["exchanges"]["confirmed"], 200)
        self.assertEqual(document["latency_ns"]["count"], 200)
        self.assertEqual(
            {visit.received for visit in backend.visits},
            {b"Hello from client %d!\n" % number * 20 for number in range(1, 11)},
        )

    def test_more_workers_than_clients_do_no_harm(self) -> None:
        document = self.measure(self.backend(confirm()), 2, "--workers", 4)
        self.assertEqual(document["exchanges"]["confirmed"], 2)

    def test_ramp_spreads_the_start_of_the_clients(self) -> None:
        backend = self.backend(confirm())
        self.client(5, "--ramp", 2, "--target", backend.address)
        starts = sorted(visit.began for visit in backend.visits)
        self.assertEqual(len(starts), 5)
        self.assertGreater(starts[-1] - starts[0], 0.6)

    def test_duration_ends_the_run(self) -> None:
        backend = self.backend(confirm(0.01))
        document = self.measure(backend, 2, "--duration", 0.7)
        self.assertGreaterEqual(document["wall_s"], 0.65)
        self.assertLess(document["wall_s"], DEADLINE_S)
        self.assertGreater(document["exchanges"]["confirmed"], 2)
        self.assertEqual(document["exchanges"]["failed"], 0)

    def test_rate_is_for_all_clients_together(self) -> None:
        backend = self.backend(confirm())
        rows = self.rows(backend, 5, "--rate", 60, "--messages", 12)
        self.assertEqual(backend.received.count(b"\n"), 60)
        due = sorted(float(row["due_s"]) for row in rows)
        self.assertAlmostEqual(due[-1] - due[0], 59 / 60, delta=0.002)

    def test_names_and_ipv6_addresses_can_be_targets(self) -> None:
        backend = self.backend(confirm())
        if localhost_resolves():
            self.assertEqual(
                self.client(2, "--target", f"localhost:{backend.port}").returncode, 0
            )
        try:
            other = self.backend(confirm(), host="::1")
        except OSError:
            self.skipTest("needs IPv6 on the loopback")
        self.assertEqual(
            self.client(2, "--target", f"[::1]:{other.port}").returncode, 0
        )


class TheFigures(ClientTestCase):
    """Latency, response time and throughput, against a known truth."""

    takes_long = True

    document: ClassVar[dict[str, Any]]  # of one run of nine clients
    target: ClassVar[str]

    @classmethod
    def setUpClass(cls) -> None:
        folder = cls.shared_folder()
        with Backend(confirm()) as backend:
            cls.target = backend.address
            args = (9, "--target", cls.target, "--json", "run.json")
            run_script("client2.py", *args, cwd=folder)
        cls.document = json.loads((folder / "run.json").read_text())

    def test_the_document_has_exactly_the_promised_keys(self) -> None:
        document = self.document
        self.assertEqual(
            set(document),
            {
                *("version", "command", "started", "target", "clients", "wall_s"),
                *("title", "workers", "rate", "arrivals", "seed", "warmup_s", "load"),
                *("comparison", "direct", "notices"),
                *("timestamps", "interrupted", "exchanges", "bytes", "latency_ns"),
                *("response_time_ns", "connect_ns", "servers", "failures"),
                *("verdict", "reasons"),
            },
        )
        self.assertEqual(
            set(document["exchanges"]),
            {"planned", "confirmed", "failed", "not_sent", "per_s"},
        )
        self.assertEqual(set(document["bytes"]), {"sent", "received", "per_s"})
        for name in ("latency_ns", "response_time_ns", "connect_ns"):
            self.assertEqual(set(document[name]), SUMMARY_KEYS, name)
        (server,) = document["servers"].values()
        self.assertEqual(
            set(server), {"confirmed", "latency_ns", "by_part", "connections"}
        )
        self.assertEqual(set(server["latency_ns"]), SUMMARY_KEYS)
        self.assertEqual(
            document["failures"],
            {
                "connect": 0,
                "send": 0,
                "timeout": 0,
                "reset": 0,
                "closed": 0,
                "mismatch": 0,
                "error_reply": 0,
                "local": 0,
            },
        )

    def test_the_document_says_what_was_run(self) -> None:
        document = self.document
        self.assertEqual(document["version"], 1)
        self.assertEqual(document["command"][:2], ["client2.py", "9"])
        self.assertIn(self.target, document["command"])
        moment = r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z"
        self.assertRegex(document["started"], moment)
        self.assertEqual(document["target"], self.target)
        self.assertEqual(document["clients"], 9)
        self.assertIs(document["interrupted"], False)
        of_a_schedule = [document[name] for name in ("rate", "arrivals", "seed")]
        self.assertEqual(of_a_schedule, [None] * 3)
        self.assertIn(document["verdict"], ("valid", "doubtful"))
        self.assertEqual(bool(document["reasons"]), document["verdict"] == "doubtful")

    def test_counts_and_bytes_add_up(self) -> None:
        backend = self.backend(confirm())
        document = self.measure(backend, 9, "--messages", 2)
        sent = 18 * len("Hello from client 1!\n")
        received = sent + 18 * len(f"Server {backend.port} received: ")
        self.assertEqual(document["exchanges"]["planned"], 18)
        self.assertEqual(document["exchanges"]["confirmed"], 18)
        self.assertEqual(document["exchanges"]["failed"], 0)
        self.assertEqual(document["bytes"]["sent"], sent)
        self.assertEqual(document["bytes"]["received"], received)
        wall = document["wall_s"]
        for rate, amount in (
            (document["exchanges"]["per_s"], 18),
            (document["bytes"]["per_s"], sent + received),
        ):
            self.assertAlmostEqual(rate * wall / amount, 1, delta=0.02)

    def test_percentiles_are_nearest_rank(self) -> None:
        # Message k waits d[k]; latency is that and a little more.
        delays_ms = [(number * 7) % 30 * 4 + 4 for number in range(30)]
        self.assertEqual(sorted(delays_ms), list(range(4, 124, 4)))
        backend = self.backend(confirm(lambda number: delays_ms[number] / 1000))
        path = self.folder / "run.json"
        rows = self.rows(backend, 1, "--messages", 30, "--json", path)
        samples = sorted(int(row["latency_ns"]) for row in rows)
        latency = json.loads(path.read_text())["latency_ns"]
        self.assertEqual(latency["count"], 30)
        self.assertEqual(latency["p50"], samples[15 - 1])
        self.assertEqual(latency["p90"], samples[27 - 1])
        for name, least_ms in (
            ("min", 4),
            ("p50", 60),  # rank 15 of 30
            ("p90", 108),  # rank 27 of 30
            ("max", 120),
            ("mean", 62),
        ):
            self.assertGreaterEqual(latency[name], least_ms * MS, name)

    def test_summaries_agree_with_the_samples(self) -> None:
        backend = self.backend(confirm(lambda number: 0.001 * (number % 5)))
        path, table = self.folder / "run.json", self.folder / "run.csv"
        result = self.client(
            *(7, "--messages", 43, "--json", path, "--csv", table),
            *("--target", backend.address),
        )
        self.assertEqual(result.returncode, 0, result)
        document = json.loads(path.read_text())
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), 301)
        for name in ("latency_ns", "response_time_ns"):
            samples = sorted(int(row[name]) for row in rows)
            summary = document[name]
            self.assertEqual(summary["count"], 301)
            self.assertEqual(summary["min"], samples[0])
            self.assertEqual(summary["max"], samples[-1])
            self.assertEqual(summary["p50"], samples[151 - 1])  # ceil(0.5 * 301)
            self.assertEqual(summary["p90"], samples[271 - 1])  # ceil(0.9 * 301)
            self.assertEqual(summary["p99"], samples[298 - 1])  # ceil(0.99 * 301)
            self.assertIsNone(summary["p99_9"])
            self.assertAlmostEqual(summary["mean"], sum(samples) / 301, delta=1)
            histogram = decode_histogram(summary["hdr"])
            self.assertEqual(sum(histogram.values()), 301)
            buckets = [
                low for low, count in sorted(histogram.items()) for _ in range(count)
            ]
            for low, sample in zip(buckets, samples, strict=True):
                self.assertLessEqual(low, sample)
                self.assertLessEqual(sample, low * 1.001 + 1)

    def test_a_percentile_that_the_sample_cannot_carry_is_null(self) -> None:
        backend = self.backend(confirm())
        given = {  # exchanges: (p90, p99, p99.9) are there
            (28, 1): (False, False, False),
            (29, 1): (True, False, False),
            (2, 149): (True, False, False),
            (13, 23): (True, True, False),
            (5, 599): (True, True, True),
        }
        for (clients, messages), expected in given.items():
            with self.subTest(exchanges=clients * messages):
                document = self.measure(backend, clients, "--messages", messages)
                latency = document["latency_ns"]
                self.assertIsInstance(latency["p50"], int)
                self.assertEqual(
                    tuple(latency[name] is not None for name in PERCENTILES[1:]),
                    expected,
                )

    def test_latency_is_no_shorter_than_the_server_waited(self) -> None:
        rows = self.rows(self.backend(confirm(0.005)), 20, "--messages", 5)
        self.assertEqual(len(rows), 100)
        self.assertGreaterEqual(min(int(row["latency_ns"]) for row in rows), 5 * MS)

    def test_a_lone_client_that_waits_awake_first_measures_the_same(self) -> None:
        backend = self.backend(confirm(0.005))
        document = self.measure(backend, 1, "--messages", 20)
        self.assertEqual(document["latency_ns"]["count"], 20)
        self.assertGreaterEqual(document["latency_ns"]["min"], 5 * MS)
        self.assertLess(document["latency_ns"]["p50"], 5 * MS + NOISE_NS)
        if os.uname().sysname == "Linux":
            self.assertEqual(document["timestamps"], STAMPS)
        self.assertNotIn("had no kernel timestamp", str(document["reasons"]))

    def test_two_modes_show_as_two_modes(self) -> None:
        backend = self.backend(confirm(lambda number: 0.002 if number % 3 else 0.06))
        rows = self.rows(backend, 1, "--messages", 30)
        slow = [int(row["latency_ns"]) >= 60 * MS for row in rows]
        self.assertGreaterEqual(sum(slow), 10)
        self.assertLess(sum(slow), 15)
        self.assertEqual(
            [row for row, _ in enumerate(slow) if row % 3 == 0 and not slow[row]], []
        )

    def test_latency_ends_with_the_first_byte_response_time_with_the_last(self) -> None:
        for row in self.rows(self.backend(in_two_pieces(0.1)), 3, "--messages", 2):
            self.assertEqual(row["outcome"], "confirmed")
            gap = int(row["response_time_ns"]) - int(row["latency_ns"])
            late_ms = 1 if STAMPS == "kernel" else 50  # that a busy machine reads
            self.assertGreaterEqual(gap, (100 - late_ms) * MS)

    def test_pieces_3_ms_apart_are_told_apart(self) -> None:
        rows = self.rows(self.backend(in_two_pieces(0.003)), 1, "--messages", 20)
        gaps = [int(row["response_time_ns"]) - int(row["latency_ns"]) for row in rows]
        # Not all on a busy machine: the kernel joins pieces that wait for a late
        # reader, and keeps the stamp of the last one (tcp_try_coalesce).
        self.assertGreaterEqual(sum(gap >= 2.9 * MS for gap in gaps), 10, gaps)

    def test_a_stall_of_a_second_is_not_hidden_by_waiting_clients(self) -> None:
        backend = self.backend(confirm(lambda number: 1.0 if number == 5 else 0.0))
        rows = self.rows(backend, 1, "--rate", 50, "--messages", 80)
        self.assertEqual(len(rows), 80)
        latencies = [int(row["latency_ns"]) for row in rows]
        responses = [int(row["response_time_ns"]) for row in rows]
        self.assertLess(sum(value >= 900 * MS for value in latencies), 5)
        # Due every 20 ms: those due in the first half of the stall waited 0.5 s.
        self.assertGreaterEqual(sum(value >= 500 * MS for value in responses), 25)

    def test_without_a_rate_response_time_counts_from_sending(self) -> None:
        backend = self.backend(confirm(lambda number: 0.5 if number == 1 else 0.0))
        rows = self.rows(backend, 1, "--messages", 10)
        slow = [
            row["message"] for row in rows if int(row["response_time_ns"]) > 450 * MS
        ]
        self.assertLess(len(slow), 3)

    def test_due_times_follow_the_schedule(self) -> None:
        rows = self.rows(self.backend(confirm()), 2, "--rate", 40, "--messages", 10)
        due = sorted(float(row["due_s"]) for row in rows)
        self.assertEqual(len(due), 20)
        for earlier, later in pairwise(due):
            self.assertAlmostEqual(later - earlier, 1 / 40, delta=0.002)

    def test_connect_time_is_part_of_neither(self) -> None:
        document = self.measure(self.backend(confirm()), 4, "--messages", 3)
        self.assertEqual(document["connect_ns"]["count"], 4)
        self.assertGreater(document["connect_ns"]["min"], 0)

    def test_the_servers_are_told_apart(self) -> None:
        names = ("9991", "9992", "9993")
        backend = self.backend(
            [confirm(0.03 * (n % 3 == 1), name=names[n % 3]) for n in range(9)]
        )
        document = self.measure(backend, 9, "--messages", 2)
        self.assertEqual(set(document["servers"]), set(names))
        for name in names:
            server = document["servers"][name]
            self.assertEqual(server["confirmed"], 6)
            self.assertEqual(server["latency_ns"]["count"], 6)
        self.assertGreaterEqual(
            document["servers"]["9992"]["latency_ns"]["min"], 30 * MS
        )

    def test_the_output_says_where_arrival_times_come_from(self) -> None:
        # Linux has receive timestamps (option 35 of level 1): taken away here.
        env = self.without()
        Path(env["PYTHONPATH"], "sitecustomize.py").write_text(
            "import errno, socket\n"
            "plain = socket.socket.setsockopt\n"
            "def without_stamps(self, level, option, *rest):\n"
            "    if level == 1 and option in (29, 35, 37, 63, 64, 65):\n"
            "        raise OSError(errno.ENOPROTOOPT, 'Protocol not available')\n"
            "    return plain(self, level, option, *rest)\n"
            "socket.socket.setsockopt = without_stamps\n"
        )
        backend = self.backend(confirm(0.005))
        args = (3, "--json", "run.json", "--target", backend.address)
        result = self.client(*args, env=env)
        self.assertEqual(result.returncode, 0, result)
        document = json.loads((self.folder / "run.json").read_text())
        self.assertRegex(document["timestamps"], "user")
        self.assertRegex(result.stdout, r"\buser\b")
        self.assertGreaterEqual(document["latency_ns"]["min"], 5 * MS)
        if os.uname().sysname == "Linux":
            result = self.client(*args)
            document = json.loads((self.folder / "run.json").read_text())
            self.assertEqual(document["timestamps"], STAMPS)
            self.assertIn(STAMPS, result.stdout)

    def test_it_works_without_what_only_some_systems_have(self) -> None:
        env = self.without(
            "resource",
            "socket.SO_TIMESTAMPNS",
            "socket.socket.recvmsg",
            "socket.SO_REUSEPORT",
            "signal.SIGHUP",
            "signal.SIGUSR1",
            "os.fork",
            "os.sched_getaffinity",
            "os.get_terminal_size",
            "fcntl",
            "termios",
        )
        result = self.client(
            *(4, "--messages", 3, "--workers", 2, "--json", "run.json"),
            *("--target", self.backend(confirm()).address),
            env=env,
        )
        self.assertEqual(result.returncode, 0, result)
        document = json.loads((self.folder / "run.json").read_text())
        self.assertEqual(document["exchanges"]["confirmed"], 12)


class Failures(ClientTestCase):
    """Each failure is counted by its kind, and ends the run with 1."""

    def kinds(self, document: dict[str, Any]) -> dict[str, int]:
        """Return the kinds of failure that occurred, after a check of the sum."""
        counts: dict[str, int] = document["failures"]
        exchanges = document["exchanges"]
        self.assertEqual(sum(counts.values()), exchanges["failed"])
        self.assertEqual(
            exchanges["planned"], exchanges["confirmed"] + exchanges["failed"]
        )
        return {kind: count for kind, count in counts.items() if count}

    def test_an_answer_that_never_comes_is_a_timeout(self) -> None:
        document = self.measure(self.backend(silent), 3, "--timeout", 0.4, code=1)
        self.assertEqual(self.kinds(document), {"timeout": 3})
        self.assertGreaterEqual(document["wall_s"], 0.39)
        self.assertEqual(document["latency_ns"]["count"], 0)
        self.assertIsNone(document["latency_ns"]["p50"])

    def test_an_answer_that_comes_too_late_is_a_timeout(self) -> None:
        backend = self.backend(confirm(lambda number: 0.8 if number == 1 else 0))
        document = self.measure(backend, 1, "--messages", 3, "--timeout", 0.3, code=1)
        self.assertEqual(self.kinds(document), {"timeout": 1})
        self.assertEqual(document["exchanges"]["confirmed"], 2)
        self.assertEqual(backend.total, 2)  # the late one must not be the next one's

    def test_a_reset_is_a_reset(self) -> None:
        document = self.measure(self.backend(reset_after(b"Server 9")), 3, code=1)
        self.assertEqual(self.kinds(document), {"reset": 3})

    def test_a_reset_before_the_message_is_a_failure_too(self) -> None:
        document = self.measure(self.backend(reset_at_once), 3, code=1)
        self.assertEqual(sum(self.kinds(document).values()), 3)
        self.assertLessEqual(set(self.kinds(document)), {"reset", "send", "connect"})

    def test_an_end_instead_of_an_answer_is_closed(self) -> None:
        def hang_up(visit: Visit) -> None:
            visit.read_line()

        document = self.measure(self.backend(hang_up), 3, code=1)
        self.assertEqual(self.kinds(document), {"closed": 3})

    def test_an_answer_cut_short_is_closed(self) -> None:
        def cut(visit: Visit) -> None:
            visit.send(b"Server 9991 received: " + visit.read_line()[:-1])

        document = self.measure(self.backend(cut), 3, code=1)
        self.assertEqual(sum(self.kinds(document).values()), 3)
        self.assertEqual(document["exchanges"]["confirmed"], 0)

    def test_a_connection_closed_at_once_is_a_failure(self) -> None:
        document = self.measure(self.backend(accept_then_close), 3, code=1)
        self.assertLessEqual(set(self.kinds(document)), {"closed", "reset", "send"})

    def test_an_error_reply_is_an_error_reply(self) -> None:
        backend = self.backend(answer(b"Server 9991 error: cannot log: disk full\n"))
        result = self.client(2, "--json", "run.json", "--target", backend.address)
        self.assertEqual(result.returncode, 1)
        document = json.loads((self.folder / "run.json").read_text())
        self.assertEqual(self.kinds(document), {"error_reply": 2})
        self.assertIn("disk full", result.stdout + result.stderr)

    def test_an_answer_to_another_client_is_named_as_such(self) -> None:
        backend = self.backend(mixed_up)
        result = self.client(4, "--json", "run.json", "--target", backend.address)
        self.assertEqual(result.returncode, 1)
        document = json.loads((self.folder / "run.json").read_text())
        self.assertEqual(self.kinds(document), {"mismatch": 4})
        self.assertRegex(result.stdout, r"belongs to client 2\b")

    def test_one_changed_byte_is_a_mismatch(self) -> None:
        def change(visit: Visit) -> None:
            while line := visit.read_line():
                visit.send(b"Server 9991 received: " + line.replace(b"H", b"h"))

        document = self.measure(self.backend(change), 3, code=1)
        self.assertEqual(self.kinds(document), {"mismatch": 3})

    def test_an_echo_is_no_confirmation(self) -> None:
        document = self.measure(self.backend(echo), 2, code=1)
        self.assertEqual(self.kinds(document), {"mismatch": 2})

    def test_a_connect_that_hangs_ends_at_the_timeout(self) -> None:
        with black_hole() as hole:
            document = self.measure(hole, 2, "--timeout", 0.5, code=1)
        self.assertEqual(self.kinds(document), {"connect": 2})

    def test_a_line_without_end_is_not_kept_in_memory(self) -> None:
        started = time.monotonic()
        document = self.measure(
            self.backend(endless), 1, "--timeout", 1, code=1, timeout=20
        )
        self.assertEqual(sum(self.kinds(document).values()), 1)
        self.assertLess(time.monotonic() - started, 15)

    def test_some_failures_do_not_hide_the_rest(self) -> None:
        behaviours = [confirm(), confirm(), reset_after(b""), confirm()]
        document = self.measure(self.backend(behaviours), 6, code=1)
        self.assertEqual(document["exchanges"]["confirmed"], 5)
        self.assertEqual(self.kinds(document), {"reset": 1})

    def test_nobody_listening_is_said_in_one_line_with_the_remedy(self) -> None:
        with refusing_address() as address:
            result = self.client(9, "--target", address)
        self.assert_one_line(result, 1, address, "load_balancer.py")

    def test_a_schedule_counts_connects_that_nobody_answers(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            target = f"127.0.0.1:{listener.getsockname()[1]}"
        options = ("--rate", 10, "--duration", 1, "--target", target)
        result = self.client(2, *options, "--json", "run.json")
        self.assertEqual(result.returncode, 1, result)
        document = json.loads((self.folder / "run.json").read_text())
        self.assertEqual(document["failures"]["connect"], 2)

    def test_a_socket_that_cannot_be_made_is_a_failed_connect(self) -> None:
        env = self.without()
        Path(env["PYTHONPATH"], "sitecustomize.py").write_text(
            "import errno, os, socket\n"
            "plain = socket.socket.__init__\n"
            "def without_ipv6(self, family=-1, *rest, **named):\n"
            "    if family == socket.AF_INET6:\n"
            "        number = errno.EAFNOSUPPORT\n"
            "        raise OSError(number, os.strerror(number))\n"
            "    plain(self, family, *rest, **named)\n"
            "socket.socket.__init__ = without_ipv6\n"
        )
        result = self.client(
            *(2, "--json", "run.json", "--target", "[::1]:9990"), env=env, timeout=20
        )
        self.assert_one_line(result, 1, "[::1]:9990", "family not supported")
        document = json.loads((self.folder / "run.json").read_text())
        self.assertEqual(self.kinds(document), {"connect": 2})

    def test_a_second_worker_that_cannot_be_started_is_said_in_one_line(self) -> None:
        env = self.without()
        Path(env["PYTHONPATH"], "sitecustomize.py").write_text(
            "import errno, os\n"
            "from multiprocessing.context import SpawnProcess\n"
            "start, started = SpawnProcess.start, []\n"
            "def scarce(process):\n"
            "    if started:\n"
            "        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
            "    started.append(start(process))\n"
            "SpawnProcess.start = scarce\n"
        )
        backend = self.backend(confirm())
        result = self.client(
            *(3, "--workers", 3, "--target", backend.address), env=env, timeout=20
        )
        self.assert_one_line(result, 1, "temporarily unavailable")


class Limits(ClientTestCase):
    """`--fail-if`, `--baseline`, `--merge`, `--direct`: for use in CI and in class."""

    def test_fail_if_ends_with_99_only_when_the_limit_is_broken(self) -> None:
        backend = self.backend(confirm(0.005))
        cases = {
            "p50>1ms": 99,
            "p50>60s": 0,
            "max>60000ms": 0,
            "max>0.004s": 99,
            "p90>2ms": 99,
        }
        target = backend.address
        runs = [
            partial(self.client, 30, "--fail-if", limit, "--target", target)
            for limit in cases
        ]
        results = in_parallel(*runs)
        for limit, result in zip(cases, results, strict=True):
            with self.subTest(limit=limit):
                self.assertEqual(result.returncode, cases[limit], result)
                if cases[limit]:
                    self.assertIn(limit.split(">")[0], result.stdout + result.stderr)

    def test_the_example_of_the_help_works(self) -> None:
        backend = self.backend(confirm(0.06))
        result = self.client(
            *(30, "--messages", 10, "--fail-if", "p99>50ms"),
            *("--target", backend.address),
        )
        self.assertEqual(result.returncode, 99, result)

    def test_a_baseline_tells_a_difference_from_none(self) -> None:
        slow, fast = self.backend(confirm(0.25)), self.backend(confirm(0.0))
        self.client(10, "--messages", 16, "--json", "slow", "--target", slow.address)
        same = self.client(
            *(10, "--messages", 16, "--baseline", "slow", "--target", slow.address)
        )
        other = self.client(
            *(10, "--messages", 16, "--baseline", "slow", "--target", fast.address)
        )
        # Sixteen bursts of ten: enough moments for tenths, with and without a delay.
        for result in (same, other):
            self.assertEqual(result.returncode, 0, result)
            self.assertRegex(result.stdout, r"p50[^\n]*%")
        self.assertRegex(other.stdout, r"latency p50 -\d[^\n]*: faster\n")
        self.assertNotRegex(same.stdout, r"faster|slower")
        self.assertIn("one run each: repeat both, in turns", same.stdout)

    def test_a_baseline_can_be_several_runs(self) -> None:
        backend = self.backend(confirm(0.002))
        for name in "ab":
            self.client(2, "--json", name, "--target", backend.address)
        document = self.measure(backend, 2, "--baseline", "a", "b", "a")
        baseline = document["baseline"]
        self.assertEqual(baseline["runs"], [1, 3])
        self.assertEqual(baseline["doubts"], ["the same run was given twice"])
        self.assertEqual(baseline["p50"]["said"], "repeat")

    def test_merge_adds_runs_up(self) -> None:
        fast, slow = (
            self.backend(in_two_pieces(0.002)),
            self.backend(confirm(0.01, name="9992")),
        )
        first = self.measure(fast, 10, "--messages", 20)
        second = self.measure(slow, 5, "--messages", 20)
        files = sorted(self.folder.glob("run-*.json"))
        result = self.client("--merge", *files, "--json", "sum.json")
        self.assertEqual(result.returncode, 0, result)
        merged = json.loads((self.folder / "sum.json").read_text())
        self.assertEqual(merged["exchanges"]["confirmed"], 300)
        self.assertEqual(merged["exchanges"]["planned"], 300)
        self.assertEqual(merged["clients"], 15)
        for name in ("sent", "received"):
            self.assertEqual(
                merged["bytes"][name], first["bytes"][name] + second["bytes"][name]
            )
        latency = merged["latency_ns"]
        self.assertEqual(latency["count"], 300)
        for name, choose in (("min", min), ("max", max)):
            expected = choose(first["latency_ns"][name], second["latency_ns"][name])
            self.assertAlmostEqual(latency[name] / expected, 1, delta=0.002)
        self.assertIsNotNone(latency["p99"])
        # A third of the exchanges took 10 ms: p50 is a fast one, p90 a slow one,
        # which no average of the runs' percentiles would give.
        self.assertLessEqual(latency["p50"], first["latency_ns"]["max"] * 1.002)
        self.assertGreaterEqual(latency["p90"], 10 * MS)
        self.assertEqual(merged["servers"]["9991"]["confirmed"], 200)
        self.assertEqual(merged["servers"]["9992"]["confirmed"], 100)
        one, two, total = (
            decode_histogram(document["latency_ns"]["hdr"])
            for document in (first, second, merged)
        )
        self.assertEqual(
            total,
            {value: one.get(value, 0) + two.get(value, 0) for value in {*one, *two}},
        )

    def test_merged_runs_lasted_as_long_as_any_of_them(self) -> None:
        backend = self.backend(confirm())
        self.measure(backend, 2)
        (first,) = self.folder.glob("run-*.json")
        document = json.loads(first.read_text())
        document["wall_s"] = 60.0
        for name, started in (("a", "14:00:00"), ("b", "14:00:01"), ("c", "14:03:00")):
            document["started"] = f"2026-11-23T{started}Z"
            (self.folder / f"{name}.json").write_text(json.dumps(document))
        files = "a.json", "b.json", "c.json"
        result = self.client("--merge", *files, "--json", "sum.json")
        self.assertEqual(result.returncode, 0, result)
        merged = json.loads((self.folder / "sum.json").read_text())
        self.assertEqual(merged["wall_s"], 120.0)  # two side by side, one later

    def test_a_file_that_is_not_ours_is_said_in_one_line(self) -> None:
        self.measure(self.backend(confirm(name="9991")), 2)
        (path,) = self.folder.glob("run-*.json")
        document = json.loads(path.read_text())
        latency = document["latency_ns"]
        for change in (
            {"servers": {"<img src=x>": document["servers"]["9991"]}},
            {"timestamps": "<h1>"},
            {"started": "<b>"},
            {"version": "\x1b[2J"},
            {"clients": math.inf},
            {"wall_s": math.inf},
            {"latency_ns": {**latency, "max": -1}},
            {"latency_ns": {**latency, "max": 10**40}},
            {"latency_ns": {**latency, "count": 10**30}},
        ):
            with self.subTest(change):
                path.write_text(json.dumps({**document, **change}))
                with redirect_stderr(io.StringIO()) as stderr:
                    self.assertEqual(client2.main(["--merge", str(path)]), 2)
                said = stderr.getvalue()
                self.assertRegex(said, r"^client2.py: .*not written by --json: .*\n$")
                self.assertTrue(said[:-1].isprintable(), said)

    def test_direct_exchanges_are_paired_with_those_through_the_balancer(self) -> None:
        direct = self.backend(confirm(0.002))
        through = self.backend(confirm(0.302, name=str(direct.port)))
        result = self.client(
            *(4, "--messages", 10, "--direct", direct.address),
            *("--target", through.address),
        )
        self.assertEqual(result.returncode, 0, result)
        self.assertEqual(direct.received.count(b"\n"), 40)
        self.assertEqual(through.received.count(b"\n"), 40)
        line = re.search(r"[^\n]*balancer[^\n]*", result.stdout)
        assert line, result.stdout
        figures = re.findall(r"(\d+(?:\.\d+)?)\s*ms", line[0])
        self.assertTrue(figures, result.stdout)
        self.assertGreater(float(figures[0]), 100)  # 300, and what a busy machine adds


class Files(ClientTestCase):
    """What is written to disk: whole, and safe to open."""

    def test_csv_has_one_line_per_exchange(self) -> None:
        backend = self.backend(confirm())
        result = self.client(
            *(3, "--messages", 4, "--csv", "run.csv", "--target", backend.address)
        )
        self.assertEqual(result.returncode, 0, result)
        text = (self.folder / "run.csv").read_text()
        self.assertEqual(text.splitlines()[0], CSV_HEADER)
        rows = list(csv.DictReader(text.splitlines()))
        self.assertEqual(len(rows), 12)
        self.assertEqual({row["client"] for row in rows}, {"1", "2", "3"})
        pairs = {(row["client"], row["message"]) for row in rows}
        self.assertEqual(len(pairs), 12)
        for row in rows:
            self.assertEqual(row["server"], str(backend.port))
            self.assertEqual(row["outcome"], "confirmed")
            self.assertEqual(row["bytes_sent"], "21")
            self.assertEqual(
                int(row["bytes_received"]),
                21 + len(f"Server {backend.port} received: "),
            )
            self.assertLessEqual(
                int(row["latency_ns"]), int(row["response_time_ns"]) + 5 * MS
            )

    def test_csv_has_a_line_for_each_of_many_exchanges(self) -> None:
        backend = self.backend(confirm())
        rows = self.rows(backend, 26, "--messages", 20, "--workers", 2, "--quiet")
        pairs = {(int(row["client"]), int(row["message"])) for row in rows}
        self.assertEqual(len(rows), 520)
        self.assertEqual(
            pairs, {(client, k) for client in range(1, 27) for k in range(1, 21)}
        )

    def test_csv_names_the_kind_of_each_failure(self) -> None:
        rows = self.rows(self.backend([confirm(), reset_after(b"")]), 3, code=1)
        self.assertEqual(
            sorted(row["outcome"] for row in rows), ["confirmed", "reset", "reset"]
        )

    @unittest.skipUnless(Path("/dev/full").exists(), "needs /dev/full")
    def test_a_file_that_cannot_be_written_after_all_loses_no_summary(self) -> None:
        target = self.backend(confirm()).address
        path = self.folder / "full"
        path.symlink_to("/dev/full")
        result = self.client(2, "--target", target, "--json", path)
        self.assertEqual(result.returncode, 1, result)
        self.assertIn("2 of 2 confirmed", result.stdout)
        self.assertIn("full: no space left on device\n", result.stderr)
        self.assertTrue(Path("/dev/full").is_char_device())

    @unittest.skipUnless(Path("/dev/stdout").exists(), "needs /dev/stdout")
    def test_json_on_standard_output_comes_whole(self) -> None:
        target = self.backend(confirm()).address
        result = self.client(2, "--quiet", "--target", target, "--json", "/dev/stdout")
        self.assertEqual(json.loads(result.stdout)["clients"], 2)

    def test_csv_says_how_long_a_failed_exchange_waited(self) -> None:
        backend = self.backend(silent)
        (row,) = self.rows(backend, 1, "--timeout", 0.3, code=1)
        self.assertEqual((row["outcome"], row["latency_ns"]), ("timeout", ""))
        self.assertGreaterEqual(int(row["response_time_ns"]), 290 * MS)
        self.assertLess(float(row["due_s"]), 0.2)

    def test_json_can_be_sent_down_a_pipe(self) -> None:
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)
        target = self.backend(confirm()).address
        with ThreadPoolExecutor() as pool:
            text = pool.submit(pipe.read_text)
            result = self.client(1, "--target", target, "--json", "pipe")
            self.assertEqual(result.returncode, 0, result)
            self.assertEqual(json.loads(text.result(10))["clients"], 1)

    def test_a_report_is_one_file_without_script_or_outside_resource(self) -> None:
        backend = self.backend(confirm(0.001))
        hostile = "<b>bold</b></script><script>alert(1)</script>\"'&"
        result = self.client(
            *(20, "--messages", 10, "--report", "run.html"),
            *("--message", hostile, "--target", backend.address),
        )
        self.assertEqual(result.returncode, 0, result)
        page = (self.folder / "run.html").read_text("utf-8")
        self.assertIn("Content-Security-Policy", page)
        self.assertIn("default-src 'none'", page.replace("&#x27;", "'"))
        self.assertGreaterEqual(page.count("<svg"), 4)
        self.assertNotIn("<b>bold", page)
        self.assertNotIn("alert(1)</script>", page)
        for script in re.findall(r"<script[^>]*>", page):
            self.assertIn("application/json", script)
        self.assertEqual(
            re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page), []
        )
        self.assertNotRegex(page, r"(?i)@import|url\(\s*[\"']?http|\son\w+\s*=")
        self.assertIn("prefers-color-scheme", page)
        self.assertIn("@media print", page)
        self.assertLess(len(page.encode()), 500_000)

    def test_a_report_of_failures_only_can_be_made(self) -> None:
        backend = self.backend(reset_after(b""))
        result = self.client(3, "--report", "run.html", "--target", backend.address)
        self.assertEqual(result.returncode, 1, result)
        self.assertIn("</html>", (self.folder / "run.html").read_text("utf-8"))

    def test_a_file_that_cannot_be_written_is_noticed_before_the_run(self) -> None:
        backend = self.backend(confirm())
        for option in ("--json", "--csv", "--report"):
            with self.subTest(option=option):
                result = self.client(
                    1, option, "no/such/folder/file", "--target", backend.address
                )
                self.assert_one_line(result, 2, "no/such/folder/file")
        self.assertEqual(backend.received, b"")

    def test_an_old_document_is_replaced_whole(self) -> None:
        path = self.folder / "run.json"
        path.write_text("x" * 100_000)
        result = self.client(
            1, "--json", path, "--target", self.backend(confirm()).address
        )
        self.assertEqual(result.returncode, 0, result)
        self.assertEqual(json.loads(path.read_text())["version"], 1)
        self.assertEqual([entry.name for entry in self.folder.iterdir()], ["run.json"])


class TheScreen(ClientTestCase):
    """What a person sees."""

    def test_each_of_nine_exchanges_is_one_whole_line(self) -> None:
        backend = self.backend(confirm())
        result = self.client(9, "--target", backend.address)
        for number in range(1, 10):
            lines = [
                line
                for line in result.stdout.splitlines()
                if f"Hello from client {number}!" in line
            ]
            self.assertEqual(len(lines), 1, result.stdout)
            self.assertRegex(lines[0], rf"\A\s*(client )?{number}\b")
            self.assertIn(str(backend.port), lines[0])
            self.assertGreaterEqual(len(re.findall(r"\d+(?:\.\d+)?", lines[0])), 5)

    def test_many_exchanges_are_summed_up_unless_verbose(self) -> None:
        target = self.backend(confirm()).address
        brief = self.client(30, "--target", target).stdout
        self.assertNotIn("Hello from client 17!", brief)
        self.assertIn("30", brief)
        full = self.client(30, "--verbose", "--target", target).stdout
        for number in range(1, 31):
            self.assertEqual(full.count(f"Hello from client {number}!"), 1)

    def test_quiet_says_less(self) -> None:
        target = self.backend(confirm()).address
        quiet = self.client(9, "--quiet", "--target", target)
        self.assertEqual(quiet.returncode, 0)
        self.assertNotIn("Hello", quiet.stdout)
        self.assertLess(
            len(quiet.stdout), len(self.client(9, "--target", target).stdout) / 2
        )
        self.assertEqual(quiet.stderr, "")

    def test_quiet_says_why_the_exit_status_is_not_0(self) -> None:
        target = self.backend(confirm()).address
        limit = self.client(2, "--quiet", "--fail-if", "max>1ns", "--target", target)
        self.assertEqual((limit.returncode, limit.stdout), (99, ""))
        self.assertRegex(limit.stderr, r"a limit is broken; max>1ns: it is \S+ .s\n$")
        silence = self.backend(silent).address
        failed = self.client(2, "--quiet", "--timeout", 0.2, "--target", silence)
        self.assertEqual((failed.returncode, failed.stdout), (1, ""))
        self.assertEqual(failed.stderr, "client2.py: 2 failed\n")

    def test_the_summary_defines_its_metrics_and_judges_the_run(self) -> None:
        text = self.client(9, "--target", self.backend(confirm()).address).stdout
        where = "kernel receive timestamps" if STAMPS == "kernel" else "user space"
        for word in ("latency", "response", "confirmed", where, "p50", "min", "max"):
            self.assertIn(word, text.lower())
        self.assertRegex(text.lower(), "valid|doubtful")
        self.assertRegex(text, r"\d\s?(µs|us|ms|s)\b")

    def test_few_exchanges_get_no_invented_percentile(self) -> None:
        text = self.client(3, "--target", self.backend(confirm()).address).stdout
        self.assertNotRegex(text, r"p9\d(\.9)?\s+\d")

    def test_no_line_is_longer_than_80_columns(self) -> None:
        backend = self.backend(confirm(0.002))
        long = "a long message " * 20
        runs: list[tuple[object, ...]] = [
            (9,),
            (3, "--message", long),
            (13, "--verbose", "--reconnect", "--messages", 10),
            (20, "--reconnect", "--rate", 100, "--duration", 0.5, "--workers", 2),
            (4, "--messages", 5, "--direct", backend.address),
        ]
        results = in_parallel(
            *(partial(self.client, *args, "--target", backend.address) for args in runs)
        )
        for args, result in zip(runs, results, strict=True):
            with self.subTest(args=args):
                self.assertEqual(result.returncode, 0)
                wide = [line for line in result.stdout.splitlines() if len(line) > 80]
                self.assertEqual(wide, [])
        failing = self.backend([reset_after(b""), mixed_up, silent])
        result = self.client(9, "--timeout", 0.5, "--target", failing.address)
        wide = [line for line in result.stdout.splitlines() if len(line) > 80]
        self.assertEqual(wide, [])

    def test_no_reply_commands_the_terminal(self) -> None:
        error = self.backend(answer(b"Server 1 error: \x1b[2J\x07\xff\r\n"))
        other = self.backend(answer(b"\x1b]0;title\x07\xc2\x9b2J\r\n"))
        for target, args in (
            (error, ()),
            (other, ()),
            (other, ("--any-reply",)),
            (self.backend(confirm()), ("--message", "\x1b[31mred\x07")),
        ):
            result = self.client(2, "--verbose", *args, "--target", target.address)
            text = result.stdout + result.stderr
            controls = {c for c in text if c < " " or "\x7f" <= c < "\xa0"}
            self.assertEqual(controls - {"\n"}, set(), text)

    def on_a_terminal(
        self, args: Sequence[object], env: dict[str, str] | None = None
    ) -> str:
        """Return what the client writes when both outputs are a terminal."""
        if not hasattr(os, "openpty"):
            self.skipTest("needs pseudo-terminals")
        own, other = os.openpty()
        with subprocess.Popen(
            script_command("client2.py", args),
            cwd=self.folder,
            env=script_environment({"TERM": "xterm-256color"} | (env or {})),
            stdin=subprocess.DEVNULL,
            stdout=other,
            stderr=other,
        ) as process:
            os.close(other)
            data = b""
            with contextlib.suppress(OSError):  # EIO: the other side was closed
                while piece := os.read(own, 65536):
                    data += piece
            os.close(own)
            self.assertEqual(process.wait(DEADLINE_S), 0, data)
        return data.decode()

    def test_progress_is_shown_on_a_terminal_only(self) -> None:
        backend = self.backend(confirm(0.01))
        args = (2, "--duration", 1.5, "--target", backend.address)
        shown, quiet, result = in_parallel(
            partial(self.on_a_terminal, args),
            partial(self.on_a_terminal, (*args, "--quiet")),
            partial(self.client, *args),
        )
        self.assertEqual(quiet, "")
        self.assertGreater(shown.count("\r") - shown.count("\r\n"), 2)
        self.assertEqual(result.stderr, "")
        self.assertNotIn("\r", result.stdout)

    def test_a_reader_that_leaves_gets_no_traceback(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        result = subprocess.run(
            script_command(
                "client2.py", [9, "--target", self.backend(confirm()).address]
            ),
            cwd=self.folder,
            env=script_environment(),
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        os.close(writing)
        self.assertEqual(result.stderr, b"")

    def test_no_color_is_obeyed(self) -> None:
        backend = self.backend(confirm())
        args = (9, "--target", backend.address)
        color = re.compile(r"\x1b\[[0-9;]*m")
        usual, plain, dumb = in_parallel(
            partial(self.on_a_terminal, args),
            partial(self.on_a_terminal, args, {"NO_COLOR": "1"}),
            partial(self.on_a_terminal, args, {"TERM": "dumb"}),
        )
        self.assertRegex(usual, color)
        self.assertNotRegex(plain, color)
        self.assertNotIn(ESCAPE, dumb)
        self.assertNotIn(ESCAPE, self.client(*args).stdout)


class Interruption(ClientTestCase):
    """Ctrl-C at any time gives what there is, and 130."""

    def interrupted(self, *args: object) -> tuple[CompletedProcess[str], Backend]:
        backend = self.backend(confirm(0.005))
        client = self.spawn("client2.py", *args, "--target", backend.address)
        wait_until(
            lambda: backend.received.count(b"\n") > 20, what="messages under way"
        )
        client.signal_group(signal.SIGINT)
        code = client.wait()
        result = CompletedProcess(
            ["client2.py"], code, client.stdout_text(), client.stderr_text()
        )
        return result, backend

    def test_ctrl_c_prints_and_writes_partial_results(self) -> None:
        for workers in (1, 2):
            with self.subTest(workers=workers):
                result, backend = self.interrupted(
                    *(3, "--duration", 60, "--workers", workers),
                    *("--json", "run.json", "--csv", "run.csv"),
                )
                self.assertEqual(result.returncode, 130, result)
                self.assertIn("latency", result.stdout)
                document = json.loads((self.folder / "run.json").read_text())
                self.assertIs(document["interrupted"], True)
                confirmed = document["exchanges"]["confirmed"]
                self.assertGreater(confirmed, 10)
                self.assertLessEqual(confirmed, backend.received.count(b"\n"))
                with (self.folder / "run.csv").open(newline="") as file:
                    outcomes = [row["outcome"] for row in csv.DictReader(file)]
                self.assertEqual(outcomes.count("confirmed"), confirmed)
                self.assertEqual(document["failures"]["reset"], 0)

    def test_sigterm_does_the_same(self) -> None:
        backend = self.backend(confirm(0.005))
        client = self.spawn("client2.py", 2, "--duration", 60, "--json", "run.json",
                            "--target", backend.address)  # fmt: skip
        wait_until(lambda: backend.received.count(b"\n") > 20, what="messages")
        client.signal(signal.SIGTERM)
        self.assertEqual(client.wait(), 130)
        document = json.loads((self.folder / "run.json").read_text())
        self.assertIs(document["interrupted"], True)
        self.assertGreater(document["exchanges"]["confirmed"], 4)
        self.assertIn("exit 130: interrupted", client.stdout_text())

    def workers(self) -> tuple[Running, list[int]]:
        """Start a run of two workers, and return it with their process ids."""
        backend, mark = self.backend(confirm(0.005)), {"LAB_CLIENT": self.folder.name}
        client = self.spawn(
            *("client2.py", 4, "--workers", 2, "--duration", 3, "--json", "run.json"),
            *("--target", backend.address),
            env=mark,
        )
        wait_until(lambda: backend.received.count(b"\n") > 20, what="messages")
        spawned = [
            pid
            for pid in children(client.pid)
            if b"--multiprocessing-fork" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        self.assertEqual(len(spawned), 2)
        return client, spawned

    def test_a_worker_that_is_killed_is_said_and_the_rest_goes_on(self) -> None:
        client, (victim, _) = self.workers()
        os.kill(victim, signal.SIGKILL)
        self.assertEqual(client.wait(), 1)
        document = json.loads((self.folder / "run.json").read_text())
        self.assertIn("a worker process died: 2 clients lost", document["reasons"][0])
        self.assertGreater(document["wall_s"], 2.5)
        self.assertIn("exit 1: 2 clients lost", client.stdout_text())

    def test_workers_end_with_a_client_that_is_killed(self) -> None:
        client, _ = self.workers()
        client.kill()
        client.wait()
        wait_until(
            lambda: not marked_processes("LAB_CLIENT", self.folder.name),
            what="the workers' end",
        )

    def test_ctrl_c_ends_a_run_whose_server_is_silent(self) -> None:
        backend = self.backend(silent)
        client = self.spawn(
            *("client2.py", 3, "--timeout", 60, "--target", backend.address)
        )
        backend.visit(2)
        client.signal_group(signal.SIGINT)
        self.assertEqual(client.wait(10), 130)

    @unittest.skipUnless(hasattr(signal, "SIGSTOP"), "needs SIGSTOP")
    def test_a_run_that_was_stopped_for_a_while_is_doubtful(self) -> None:
        backend = self.backend(confirm(0.005))
        client = self.spawn(
            *("client2.py", 2, "--rate", 100, "--duration", 2),
            *("--json", "run.json", "--target", backend.address),
        )
        wait_until(lambda: backend.received.count(b"\n") > 20, what="messages")
        client.signal(signal.SIGSTOP)
        backend.closing.wait(0.8)
        client.signal(signal.SIGCONT)
        self.assertEqual(client.wait(), 0)
        document = json.loads((self.folder / "run.json").read_text())
        self.assertEqual(document["verdict"], "doubtful")
        self.assertTrue(document["reasons"])
        self.assertIn("doubtful", client.stdout_text().lower())


class BadInput(ClientTestCase):
    """One line that says what to do, and exit 2; never a traceback."""

    def test_bad_arguments_end_with_one_line_and_2(self) -> None:
        (self.folder / "text").write_text("not a document\n")
        (self.folder / "list").write_text("[]\n")
        (self.folder / "empty").touch()
        (self.folder / "other").write_text('{"version": 99}\n')
        cases: list[tuple[tuple[str, ...], str]] = [
            ((), "N"),
            (("nine",), "nine"),
            (("0",), "0"),
            (("-3",), ""),
            (("1.5",), "1.5"),
            (("9", "9"), "9"),
            (("1", "--no-such-option"), "--no-such-option"),
            (("1", "--target", "9990"), "9990"),
            (("1", "--target", "127.0.0.1:port"), "127.0.0.1:port"),
            (("1", "--target", "127.0.0.1:65536"), "65536"),
            (("1", "--target", "::1:9990"), "::1:9990"),
            (("1", "--target", "no-such-host.invalid:1"), "no-such-host.invalid"),
            (("1", "--target", "a..b:1"), "a..b"),
            (("1", "--messages", "0"), "--messages"),
            (("1", "--duration", "-1"), "--duration"),
            (("1", "--duration", "nan"), "--duration"),
            (("1", "--rate", "0"), "--rate"),
            (("1", "--rate", "inf"), "--rate"),
            (("1", "--ramp", "-1"), "--ramp"),
            (("1", "--size", "0"), "--size"),
            (("1", "--timeout", "0"), "--timeout"),
            (("1", "--timeout", "soon"), "--timeout"),
            (("1", "--workers", "0"), "--workers"),
            (("1", "--workers", "many"), "--workers"),
            (("1", "--message", "two\nlines"), "--message"),
            (("1", "--fail-if", "p99"), "--fail-if"),
            (("1", "--fail-if", "p99>fast"), "--fail-if"),
            (("1", "--fail-if", "speed>1ms"), "--fail-if"),
            (("1", "--direct", "9991"), "9991"),
            (("1", "--baseline", "missing"), "missing"),
            (("1", "--baseline", "text"), "text"),
            (("1", "--baseline", "list"), "list"),
            (("--demo", "1", "--target", "127.0.0.1:1"), "its own target"),
            (("1", "--rate", "5", "--think", "1"), "leave out --think"),
            (("1", "--rate", "5", "--ramp", "1"), "leave out --ramp"),
            (("1", "--rate", "1,2"), "need a --duration"),
            (("1", "--arrivals", "poisson"), "needs a --rate"),
            (("1", "--arrivals", "odd"), "--arrivals"),
            (("1", "--seed", "-1"), "--seed"),
            (("1", "--warmup", "2y"), "--warmup"),
            (("1", "--runs", "0"), "--runs"),
            (("1", "--message", "@empty"), "empty has no line"),
            (("1", "--json", "a", "--report", "./a"), "a file of its own"),
            (("--merge", "missing"), "missing"),
            (("--merge", "text"), "text"),
            (("--merge", "other"), "other"),
            (("--merge", "other", "--csv", "rows.csv"), "leave out --csv"),
            (("--merge", "other", "--rate", "5"), "leave out --rate"),
        ]
        results = run_main("client2.py", [args for args, _ in cases], cwd=self.folder)
        for (args, word), result in zip(cases, results, strict=True):
            with self.subTest(args=args):
                self.assert_one_line(result, 2, word)

    def test_help_names_every_option(self) -> None:
        result = self.run_script("client2.py", "--help")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        words = (
            "--target --messages --duration --rate --ramp --message --size "
            "--reconnect --timeout --any-reply --workers --json --csv --report "
            "--merge --baseline --direct --fail-if --verbose --quiet --demo "
            "127.0.0.1:9990"
        )
        for word in words.split():
            self.assertIn(word, result.stdout)


if __name__ == "__main__":
    unittest.main()
