"""The pure functions of client2.py: percentiles, ranges, histograms, texts."""

from __future__ import annotations

import argparse
import contextlib
import math
import queue
import random
import socket
import threading
import time
import unittest
from array import array
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import client2
from client2 import (
    CONFIDENCE,
    Chunk,
    Config,
    Connection,
    Distribution,
    Gap,
    Scale,
    Summary,
    Tally,
    Timeline,
)
from tests.support import wait_until

MS = 1_000_000  # nanoseconds


def distribution(values: list[int]) -> Distribution:
    """Return a distribution of some values."""
    metric = Distribution()
    metric.extend(array("q", values))
    return metric


def config(clients: int = 1, messages: int = 1, **rest: object) -> Config:
    """Return a run's configuration with nothing to connect to."""
    made = Config("127.0.0.1:1", [], clients, messages)
    for name, value in rest.items():
        setattr(made, name, value)
    return made


def chunk_of(*rows: tuple[int, ...], client: int = 1, server: str = "9991") -> Chunk:
    """Return a chunk of rows: due, sent, first, last, seen, outcome."""
    chunk = Chunk(client, servers=[server])
    for *times, outcome in rows:
        index = 0 if outcome == client2.CONFIRMED else client2.UNKNOWN_SERVER
        chunk.rows.extend([*times, outcome | index << 4 | 43 << 20])
        chunk.failure = "" if outcome == client2.CONFIRMED else "it failed"
    return chunk


def connection_of(made: Config) -> Connection:
    """Return a connection to a configuration's addresses that nobody cuts."""
    return Connection(made.addresses, made, b"message\n", threading.Event())


@contextlib.contextmanager
def full_listener() -> Iterator[tuple[str, int]]:
    """Yield the address of a listener whose queue is full: a connect hangs."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(address)
            yield address


class PercentilesAreNearestRank(unittest.TestCase):
    """Rank ⌈p · n⌉ of the sorted samples: no value is invented between two."""

    def test_of_one_to_ten(self) -> None:
        metric = distribution([7, 3, 10, 1, 9, 2, 8, 4, 6, 5])
        found = [metric.percentile(p) for p in (0, 0.1, 0.5, 0.9, 0.91, 1)]
        self.assertEqual(found, [1, 1, 5, 9, 10, 10])

    def test_of_three_values(self) -> None:
        metric = distribution([30, 10, 20])
        self.assertEqual(
            [metric.percentile(p) for p in (0.5, 0.75, 0.99)], [20, 30, 30]
        )

    def test_of_nothing_is_nothing(self) -> None:
        found = Distribution().as_json()
        self.assertEqual(found["count"], 0)
        empty = [found[k] for k in ("min", "mean", "p50", "p90", "p99", "p99_9", "max")]
        self.assertEqual(empty, [None] * 7)

    def test_none_is_reported_that_the_sample_cannot_carry(self) -> None:
        for name, least in (("p90", 29), ("p99", 299), ("p99_9", 2995)):
            with self.subTest(name):
                self.assertIsNone(distribution([5] * (least - 1)).reported(name))
                self.assertEqual(distribution([5] * least).reported(name), 5)


class RangesAreOrderStatistics(unittest.TestCase):
    """Between two samples lies the percentile with 95 % confidence."""

    def test_published_ranks_of_the_median(self) -> None:
        # real-statistics.com, order statistics: 6 → 96.9 %, 9 → x2 to x8 96.1 %.
        self.assertIsNone(client2.percentile_ranks(5, 0.5))
        self.assertEqual(client2.percentile_ranks(6, 0.5), (1, 6))
        self.assertEqual(client2.percentile_ranks(9, 0.5), (2, 8))

    def test_fewest_samples_for_a_range(self) -> None:
        for share, least in ((0.75, 11), (0.9, 29), (0.95, 59), (0.99, 299)):
            with self.subTest(share):
                self.assertIsNone(client2.percentile_ranks(least - 1, share))
                self.assertIsNotNone(client2.percentile_ranks(least, share))

    def test_coverage_is_at_least_the_confidence(self) -> None:
        for count, share in ((9, 0.5), (40, 0.9), (100, 0.5), (500, 0.99)):
            with self.subTest(count=count, share=share):
                ranks = client2.percentile_ranks(count, share)
                assert ranks is not None
                covered = sum(
                    math.comb(count, k) * share**k * (1 - share) ** (count - k)
                    for k in range(ranks[0], ranks[1])
                )
                self.assertGreaterEqual(covered, CONFIDENCE)

    def test_ranks_of_a_million_samples_are_those_of_the_normal_distribution(
        self,
    ) -> None:
        low, high = client2.percentile_ranks(1_000_000, 0.5) or (0, 0)
        self.assertAlmostEqual(low, 500_000 - 980, delta=2)
        self.assertAlmostEqual(high, 500_000 + 980, delta=2)


class Histograms(unittest.TestCase):
    """HdrHistogram, 1 ns unit, three digits."""

    def test_known_indices_and_their_values(self) -> None:
        for value, index, highest in (
            (0, 0, 0),
            (2047, 2047, 2047),
            (2048, 2048, 2049),
            (4096, 3072, 4099),
            (1_000_000, 11169, 1_000_447),
        ):
            with self.subTest(value):
                self.assertEqual(client2.hdr_index(value), index)
                self.assertEqual(client2.hdr_highest(index), highest)

    def test_no_value_moves_by_more_than_a_thousandth(self) -> None:
        source = random.Random(1)
        for _ in range(2000):
            value = int(10 ** source.uniform(0, 13))
            moved = client2.hdr_highest(client2.hdr_index(value)) - value
            self.assertTrue(0 <= moved <= value / 1000, value)

    def test_counts_are_written_as_zigzag_leb128(self) -> None:
        for number, written in (
            (0, b"\x00"),
            (1, b"\x02"),
            (-2, b"\x03"),
            (63, b"\x7e"),
            (64, b"\x80\x01"),
            (-2047, b"\xfd\x1f"),
        ):
            with self.subTest(number):
                self.assertEqual(client2.zigzag_varint(number), written)
                self.assertEqual(list(client2.zigzag_numbers(written)), [number])

    def test_text_starts_as_every_v2_histogram_and_comes_back(self) -> None:
        counts = {0: 1, 3: 2, 4: 70_000, 11169: 5}
        text = client2.hdr_encode(counts, 10**6)
        self.assertTrue(text.startswith("HISTFAAA"))
        self.assertEqual(b64decode(text)[:4].hex(), "1c849314")
        self.assertEqual(client2.hdr_decode(text), counts)

    def test_published_histograms_are_read(self) -> None:
        # HdrHistogram's own tests: one value, 42.
        one = "HISTFAAAAB542pNpmSzMwMDAxAABzFCaEUoz2X+AMIKZAEARAtM="
        self.assertEqual(client2.hdr_decode(one), {42: 1})
        # A log's interval whose line says: maximum 103. It writes one zero as -1.
        log = (
            "HISTFAAAAJt4nJNpmSzMwMBQyQABzFCaEYhFZK8nMNh/gAi0OF1qYPyQ9SlzVfqxxEsZx1K2"
            "xSxJuhHzK35R3K3ohrhlYQ+SLiSciv+QeiD5Ue6C5LbSH+VtBZNiT/lscXyjeU34B8cn5hmM"
            "TjYqTmYGbKosAkxCbGIsQiw8XBx8LEIiTAIcQjxABqMYD4cQi4AQBxeQFmAUYxTi4wEAuYst"
            "OA=="
        )
        counts = client2.hdr_decode(log)
        self.assertEqual((len(counts), max(counts), counts[0]), (82, 103, 4226))
        self.assertEqual(sum(counts.values()), 187_311)

    def test_what_is_no_histogram_is_refused(self) -> None:
        for text in ("", "HIST", "AAAA" * 20, "not base64!"):
            with self.subTest(text), self.assertRaises(ValueError):
                client2.hdr_decode(text)

    def test_a_merge_is_as_good_as_one_run(self) -> None:
        source = random.Random(2)
        values = [int(source.lognormvariate(14, 1)) for _ in range(3000)]
        whole = Distribution.from_json(distribution(values).as_json())
        merged = Distribution()
        for part in (values[:1000], values[1000:1500], values[1500:]):
            merged.merge(Distribution.from_json(distribution(part).as_json()))
        self.assertEqual(merged.hdr_counts(), whole.hdr_counts())
        self.assertEqual(merged.percentile(0.99), whole.percentile(0.99))
        self.assertEqual(merged.count, 3000)
        self.assertEqual((merged.minimum, merged.maximum), (min(values), max(values)))

    def test_beyond_the_limit_memory_is_bounded_and_figures_stay_close(self) -> None:
        values = [1000 + 37 * k for k in range(5000)]
        with mock.patch.object(client2, "EXACT_LIMIT", 1000):
            metric = Distribution()
            for k in range(0, 5000, 500):
                metric.extend(array("q", values[k : k + 500]))
        self.assertIsNone(metric.values)
        self.assertEqual(metric.count, 5000)
        self.assertEqual(metric.total, sum(values))
        for share in (0.5, 0.9, 0.999):
            exact = distribution(values).percentile(share)
            self.assertAlmostEqual(metric.percentile(share), exact, delta=exact / 1000)
        self.assertEqual(metric.percentile(1), max(values))


class Comparisons(unittest.TestCase):
    """A difference is claimed only where its range leaves 0 out."""

    def test_a_tenfold_difference_is_shown(self) -> None:
        found = client2.compare(
            distribution([10_000 + k for k in range(100)]),
            distribution([1000 + k for k in range(100)]),
            0.5,
            CONFIDENCE,
        )
        assert found is not None
        ratio, low, high = found
        self.assertAlmostEqual(ratio, 10_049 / 1049 - 1)
        self.assertTrue(8 < low < ratio < high < 9)

    def test_the_same_samples_show_none(self) -> None:
        metric = distribution([1000 + 10 * k for k in range(50)])
        ratio, low, high = client2.compare(metric, metric, 0.5, CONFIDENCE) or (1, 1, 1)
        self.assertEqual(ratio, 0)
        self.assertTrue(low < 0 < high)

    def test_too_few_samples_show_nothing(self) -> None:
        few = distribution([1, 2, 3])
        self.assertIsNone(client2.compare(few, few, 0.5, CONFIDENCE))


class Texts(unittest.TestCase):
    """What people read."""

    def test_three_significant_digits(self) -> None:
        cases = {0.01234: "0.0123", 1.617: "1.62", 9.996: "10.0", 431.4: "431"}
        cases |= {1019.6: "1\u2009020", 99_999.0: "100\u2009000", 0.0: "0"}
        for value, text in cases.items():
            with self.subTest(value):
                self.assertEqual(client2.three_digits(value), text)

    def test_durations_and_rates_carry_their_unit(self) -> None:
        self.assertEqual(client2.format_duration(1_617_000), "1.62 ms")
        self.assertEqual(client2.format_duration(950), "0.950 µs")
        self.assertEqual(client2.format_duration(2_000_000_000), "2.00 s")
        self.assertEqual(client2.format_throughput(23_414.6), "23.4 kB/s")

    def test_no_byte_of_a_reply_can_steer_a_terminal(self) -> None:
        hostile = b"\x1b[2J\x9b31m\x07\xe2\x80\xae\r\n"
        self.assertEqual(client2.safe_text(hostile), r"\x1b[2J\x9b31m\x07\u202e")
        self.assertEqual(client2.safe_text("Grüße\n".encode()), "Grüße")

    def test_bars_show_what_is_not_zero(self) -> None:
        self.assertEqual(client2.bar(0, 100), "")
        self.assertEqual(client2.bar(1, 100_000), "▏")
        self.assertEqual(client2.bar(100, 100), "█" * 24)

    def test_axis_steps_enclose_the_values(self) -> None:
        for low, high in ((700_000, 6_900_000), (5_000_000, 5_300_000), (10, 10**11)):
            with self.subTest(low=low, high=high):
                steps = client2.axis_steps(low, high, 12)
                self.assertTrue(steps[0] <= low and high < steps[-1])
                self.assertLessEqual(len(steps), 13)

    def test_a_histogram_loses_no_value(self) -> None:
        values = [1, 999, 1000, 54_321, 10**6, 10**9]
        steps = client2.axis_steps(1, 10**9, 12)
        self.assertEqual(sum(client2.binned(distribution(values), steps)), 6)


class Messages(unittest.TestCase):
    """The bytes that a client sends."""

    def test_hello_is_twenty_bytes_and_a_newline(self) -> None:
        self.assertEqual(client2.message_of(config(), 1), b"Hello from client 1!\n")

    def test_size_includes_the_newline(self) -> None:
        for size, expected in (
            (1, b"\n"),
            (6, b"Hello\n"),
            (21, b"Hello from client 7!\n"),
            (22, b"Hello from client 7! \n"),
            (25, b"Hello from client 7! xxx\n"),
        ):
            with self.subTest(size):
                found = client2.message_of(config(size=size), 7)
                self.assertEqual(found, expected)

    def test_a_message_of_its_own(self) -> None:
        self.assertEqual(client2.message_of(config(message=b"\xff\r"), 1), b"\xff\r\n")


class Limits(unittest.TestCase):
    """What --fail-if understands."""

    def test_figures_signs_and_units(self) -> None:
        for text, figure, sign, value in (
            ("p99>50ms", "latency.p99", ">", 50e6),
            ("response.p99.9 >= 1.5s", "response.p99_9", ">=", 1.5e9),
            ("connect.max<200us", "connect.max", "<", 200e3),
            ("failed>0", "failed", ">", 0),
            ("failed>1%", "failed%", ">", 1),
            ("rate<1000/s", "rate", "<", 1000),
            ("rate<1000", "rate", "<", 1000),
        ):
            with self.subTest(text):
                found = client2.parse_limit(text)
                self.assertEqual(
                    (found.figure, found.sign, found.value), (figure, sign, value)
                )

    def test_nonsense_is_refused(self) -> None:
        for text in ("p99", "p98>1ms", "p99>1", "rate>1%", "failed>1/s", "p99>1.2.3ms"):
            with (
                self.subTest(text),
                self.assertRaises(argparse.ArgumentTypeError),
            ):
                client2.parse_limit(text)


class LateThreads(unittest.TestCase):
    """The kernel's time counts, not the moment when a thread wakes up."""

    def test_a_reply_that_came_in_time_is_no_timeout_and_a_missing_one_is(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(10)
            made = config(addresses=[(socket.AF_INET, listener.getsockname())])
            connection = connection_of(made)
            connection.connect()
            self.addCleanup(connection.close)
            peer, _ = listener.accept()
            self.addCleanup(peer.close)
        sent = time.time_ns()
        late = sent + 60 * 10**9  # long after the deadline
        peer.sendall(b"y\n")
        assert connection.sock is not None
        self.assertEqual(connection.sock.recv(2, socket.MSG_PEEK), b"y\n")
        reply, last, _ = connection._receive_rest(b"repl", sent, late, sent)
        self.assertEqual(reply, b"reply\n")
        self.assertLess(last, late)
        with self.assertRaisesRegex(client2.ExchangeError, "only 4 bytes") as found:
            connection._receive_rest(b"repl", sent, late, sent)
        self.assertEqual(found.exception.outcome, client2.TIMEOUT)


class Connections(unittest.TestCase):
    """One connection without a client and a run."""

    def test_an_address_whose_socket_cannot_be_made_gives_way_to_the_next(self) -> None:
        unheard_of = (9999, ("::1", 1))  # EAFNOSUPPORT, like a missing IPv6
        with socket.create_server(("127.0.0.1", 0)) as listener:
            reachable = (socket.AF_INET, listener.getsockname())
            made = config(addresses=[unheard_of, reachable])
            connection = connection_of(made)
            self.addCleanup(connection.close)
            connection.connect()
            assert connection.sock is not None
            self.assertEqual(connection.sock.getpeername(), listener.getsockname())
        connection = Connection([unheard_of], made, b"message\n", threading.Event())
        with self.assertRaisesRegex(client2.ExchangeError, "not supported") as found:
            connection.connect()
        self.assertEqual(found.exception.outcome, client2.CONNECT)

    def test_waiting_awake_ends_with_a_wait_asleep(self) -> None:
        connection = Connection([], config(), b"message\n", threading.Event())
        connection.sock = mock.Mock()
        nothing = BlockingIOError()
        connection.sock.recvmsg.side_effect = [
            nothing,
            nothing,
            (b"reply\n", [], 0, None),
        ]
        with mock.patch.object(client2, "AWAKE_TRIES", 2):
            self.assertEqual(connection._receive_awake(64, 32)[0], b"reply\n")
        awake, asleep = mock.call(64, 32, socket.MSG_DONTWAIT), mock.call(64, 32)
        self.assertEqual(connection.sock.recvmsg.mock_calls, [awake, awake, asleep])

    def test_connect_time_is_the_connect_alone(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            reachable = (socket.AF_INET, listener.getsockname())
            made = config(addresses=[reachable])
            connection = connection_of(made)
            self.addCleanup(connection.close)
            make = connection._new_socket

            def slow(family: int) -> socket.socket:
                threading.Event().wait(0.2)
                return make(family)

            with mock.patch.object(connection, "_new_socket", slow):
                self.assertLess(connection.connect(), 150_000_000)

    def test_a_connect_that_hangs_can_be_cut(self) -> None:
        with full_listener() as address:
            made = config(addresses=[(socket.AF_INET, address)], timeout_s=20.0)
            is_cut = threading.Event()
            connection = Connection(made.addresses, made, b"message\n", is_cut)
            failures: queue.SimpleQueue[Exception] = queue.SimpleQueue()

            def connect() -> None:
                try:
                    connection.connect()
                except client2.ExchangeError as error:
                    failures.put(error)

            thread = threading.Thread(target=connect)
            thread.start()
            wait_until(lambda: connection.sock is not None)
            threading.Event().wait(0.05)  # it hangs in connect(2) by now
            is_cut.set()
            connection.cut()
            thread.join(5)
            self.assertFalse(thread.is_alive())
            self.assertIsInstance(failures.get(timeout=1), client2.ExchangeError)

    def test_a_pause_before_connecting_again_is_short_after_a_success(self) -> None:
        gates, inbox = client2.Gates(), queue.SimpleQueue[object]()
        gates.stop.set()
        client = client2.Client(1, config(), gates, inbox)
        client.pause_s = client2.LAST_PAUSE_S
        with mock.patch.object(client.connection, "connect", return_value=1):
            client._connect()
        self.assertEqual(client.pause_s, client2.FIRST_PAUSE_S)

    def test_a_new_connection_forgets_who_answered_on_the_old_one(self) -> None:
        gates, inbox = client2.Gates(), queue.SimpleQueue[object]()
        client = client2.Client(1, config(any_reply=True), gates, inbox)
        client.connection.server = "9991"
        client._record(0, 1, 2, 3, 4, 5)
        with mock.patch.object(client.connection, "connect", return_value=1):
            client._connect()
        client.connection.server = ""
        client._record(0, 1, 2, 3, 4, 5)
        names = [client.chunk.server_of(row[5]) for _, row in client.chunk.exchanges()]
        self.assertEqual(names, ["9991", ""])


class Workers(unittest.TestCase):
    """How many processes there are, and one that never was."""

    def test_auto_is_one_per_dozen_clients_and_for_very_many_some_per_core(
        self,
    ) -> None:
        for clients, cores, workers in (
            (1, 8, 1),
            (12, 8, 1),
            (20, 8, 2),
            (50, 2, 3),
            (200, 2, 3),
            (1000, 2, 7),
            (9000, 2, 8),
        ):
            options = client2.parse_args([str(clients), "--workers", "auto"])
            with (
                self.subTest(clients=clients, cores=cores),
                mock.patch.object(client2, "usable_cores", return_value=cores),
                mock.patch.object(client2, "raise_descriptor_limit", return_value=None),
            ):
                made = client2.make_config(options, ("127.0.0.1", 1))
                self.assertEqual(made.workers, workers)

    def test_auto_is_as_many_as_can_open_the_clients_files(self) -> None:
        spare = client2.SPARE_DESCRIPTORS
        for clients, each, limit, workers in (
            (2000, 1, 200 + spare, 10),
            (2000, 2, 200 + spare, 20),
            (100, 1, 1000, 3),
        ):
            with (
                self.subTest(clients=clients, each=each, limit=limit),
                mock.patch.object(client2, "usable_cores", return_value=2),
                mock.patch.object(
                    client2, "raise_descriptor_limit", return_value=limit
                ),
            ):
                self.assertEqual(client2.workers_for(clients, 0, each), workers)

    def test_a_group_whose_process_was_never_started_can_be_closed(self) -> None:
        inbox: client2.Inbox = queue.SimpleQueue()
        client2.WorkerGroup(config(), range(1, 2), inbox, 1).close()
        self.assertTrue(inbox.empty())


class TheTally(unittest.TestCase):
    """Rows become figures."""

    def test_latency_response_time_and_bytes_of_a_row(self) -> None:
        tally = Tally(config())
        tally.start_ns = 1000
        tally.take(chunk_of((1000, 1500, 4500, 5500, 7000, client2.CONFIRMED)))
        self.assertEqual(tally.latency.percentile(0.5), 3000)
        self.assertEqual(tally.response_time.percentile(0.5), 4500)
        self.assertEqual(tally.wake_delay.percentile(0.5), 1500)
        self.assertEqual((tally.bytes_sent, tally.bytes_received), (21, 43))
        self.assertEqual(tally.servers["9991"].confirmed, 1)

    def test_a_clock_that_is_set_back_makes_no_negative_duration(self) -> None:
        tally = Tally(config())
        tally.take(chunk_of((1000, 1000, 700, 700, 700, client2.CONFIRMED)))
        for metric in (tally.latency, tally.response_time):
            self.assertEqual(metric.minimum, 0)
            self.assertEqual(Distribution.from_json(metric.as_json()).count, 1)

    def test_failures_are_counted_and_left_out_of_latency(self) -> None:
        tally = Tally(config(messages=2))
        tally.take(
            chunk_of(
                (0, 0, 10, 10, 10, client2.CONFIRMED),
                (20, 20, 900, 900, 900, client2.TIMEOUT),
            )
        )
        self.assertEqual(tally.latency.count, 1)
        self.assertEqual((tally.confirmed, tally.failed), (1, 1))
        self.assertEqual(tally.outcomes[client2.TIMEOUT], 1)

    def test_the_longest_gap_spans_chunks_and_failures(self) -> None:
        tally = Tally(config(clients=2, messages=9))
        good, reset = client2.CONFIRMED, client2.RESET
        tally.take(chunk_of((0, 0, 10, 10, 10, good), (10, 10, 40, 40, 40, reset)))
        self.assertEqual(tally.gap, Gap(30, 1, 10, until_the_end=True))
        tally.take(chunk_of((0, 0, 25, 25, 25, good), client=2))
        tally.take(chunk_of((60, 60, 95, 95, 95, good)))
        self.assertEqual(tally.gap, Gap(85, 1, 10))

    def test_a_client_that_starts_late_or_waits_for_its_turn_has_no_gap(self) -> None:
        tally = Tally(config(messages=9, rate=2.0))
        good, second = client2.CONFIRMED, 10**9
        rows = [(k * second, k * second, k * second + 7, k * second + 7, k * second + 8)
                for k in range(1, 4)]  # fmt: skip
        tally.take(chunk_of(*((*row, good) for row in rows)))
        self.assertEqual(tally.gap.length_ns, 7)

    def test_what_the_progress_did_not_ask_for_does_not_pile_up(self) -> None:
        tally = Tally(config(messages=10_000))
        rows = [(k, k, k + 1, k + 1, k + 2, client2.CONFIRMED) for k in range(100)]
        for _ in range(client2.RECENT // 100 + 5):
            tally.take(chunk_of(*rows))
        self.assertEqual(len(tally.recent), client2.RECENT)

    def test_an_open_loop_tells_its_own_lateness_from_the_servers(self) -> None:
        tally = Tally(config(messages=2, rate=10.0))
        good = client2.CONFIRMED
        chunk = chunk_of((0, 5, 100, 100, 110, good), (50, 113, 150, 150, 151, good))
        chunk.send_delays.extend((5, 0))  # as its client saw it
        tally.take(chunk)
        self.assertEqual(tally.backlog_ns, 60)  # due at 50, free at 110
        self.assertEqual(list(tally.send_delay.values or []), [5, 0])

    def test_a_connect_is_not_called_the_clients_own_lateness(self) -> None:
        gates = client2.Gates(start_mono_ns=time.monotonic_ns())
        inbox: client2.Inbox = queue.SimpleQueue()
        client = client2.Client(1, config(messages=1, rate=10.0), gates, inbox)

        def slow_connect() -> None:
            threading.Event().wait(0.1)
            raise client2.ExchangeError(client2.CONNECT, "refused")

        with mock.patch.object(client, "_connect", slow_connect):
            client._converse()
        _, chunk = inbox.get_nowait()
        late_ns = chunk.send_delays if chunk.send_delays else [1 << 62]
        self.assertLess(max(late_ns), 100_000_000)

    def test_rows_of_a_long_run_are_let_go(self) -> None:
        rows = [(k, k, k + 1, k + 1, k + 2, client2.CONFIRMED) for k in range(8)]
        with mock.patch.object(client2, "DOTS_SHOWN", 10):
            tally = Tally(config(messages=16))
            for _ in range(2):
                tally.take(chunk_of(*rows))
        self.assertEqual(tally.kept, [])
        self.assertEqual(tally.confirmed, 16)


class TheTimeline(unittest.TestCase):
    """Counts over time in a bounded number of columns."""

    def test_a_day_fits_and_nothing_is_lost(self) -> None:
        timeline = Timeline()
        day = 86_400 * 10**9
        moments = array("q", range(0, day, day // 500))
        latency = array("q", [MS] * len(moments))
        for k in range(0, len(moments), 10):
            last = moments[k : k + 10]
            sent = array("q", [moment - MS for moment in last])
            timeline.add(0, sent, latency[k : k + 10], last)
        timeline.add_failures(0, array("q", [day - 9]), array("q", [day - 1]))
        self.assertEqual(timeline.cells.total(), len(moments))
        self.assertEqual(timeline.failed.total(), 1)
        self.assertLess(max(k for k, _ in timeline.cells), client2.TIME_BINS)
        self.assertLessEqual(
            len(timeline.columns(client2.COLUMNS)[1]), client2.COLUMNS + 1
        )

    def test_an_exchange_that_failed_was_in_flight_until_then(self) -> None:
        timeline = Timeline()
        timeline.add_failures(0, array("q", [MS // 2]), array("q", [5 * MS // 2]))
        flights = Counter({0: MS // 2, 1: MS, 2: MS // 2})
        self.assertEqual(timeline.in_flight_ns, flights)

    def test_time_in_flight_is_shared_among_the_columns_it_spans(self) -> None:
        timeline = Timeline()
        timeline.add(
            0, array("q", [MS // 2]), array("q", [2 * MS]), array("q", [5 * MS // 2])
        )
        self.assertEqual(
            timeline.in_flight_ns, Counter({0: MS // 2, 1: MS, 2: MS // 2})
        )


class Scales(unittest.TestCase):
    """From values to points on a drawing."""

    def test_a_logarithmic_scale_spaces_decades_evenly(self) -> None:
        scale = Scale(1, 10_000, 0, 400, log=True)
        points = [scale(v) for v in (1, 10, 100, 10_000)]
        for point, expected in zip(points, (0, 100, 200, 400), strict=True):
            self.assertAlmostEqual(point, expected)

    def test_ticks_are_round_and_inside(self) -> None:
        self.assertEqual(Scale(0, 10, 0, 1).ticks(), [0, 2, 4, 6, 8, 10])
        self.assertEqual(Scale(8, 120, 0, 1, log=True).ticks()[:3], [10, 15, 20])


class TheVerdict(unittest.TestCase):
    """A run that measured its own client more than the server says so."""

    def summary(self, tally: Tally, seen: client2.Course) -> Summary:
        run = mock.Mock(config=tally.config, tally=tally, course=seen)
        return client2.summarize(run, ["client2.py"])

    def quiet_run(self) -> tuple[Tally, client2.Course]:
        tally = Tally(config(messages=100))
        rows = [
            (k * MS, k * MS, k * MS + 900_000, k * MS + 900_000, (k + 1) * MS, 0)
            for k in range(100)
        ]
        tally.take(chunk_of(*rows))
        return tally, client2.Course(connected=1, wall_s=0.1)

    def test_a_quiet_run_is_valid(self) -> None:
        found = self.summary(*self.quiet_run())
        self.assertEqual((found.verdict, found.reasons), ("valid", []))

    def test_reasons_to_doubt(self) -> None:
        cases: dict[str, dict[str, object]] = {
            "stood still": {"stalled_s": 2.0},
            "clock was stepped": {"clock_step_ns": 3_600 * 10**9},
            "worker process died": {"lost": 5},
        }
        for words, change in cases.items():
            with self.subTest(words):
                tally, seen = self.quiet_run()
                for name, value in change.items():
                    setattr(seen, name, value)
                found = self.summary(tally, seen)
                self.assertEqual(found.verdict, "doubtful")
                self.assertIn(words, found.reasons[0])

    def test_clients_that_mostly_do_other_things_than_wait_are_a_reason(self) -> None:
        tally = Tally(config(messages=100))
        rows = [(k * MS, k * MS, k * MS + 9, k * MS + 9, k * MS + 500_000, 0)
                for k in range(100)]  # fmt: skip
        tally.take(chunk_of(*rows))
        found = self.summary(tally, client2.Course(connected=1, wall_s=0.1))
        self.assertIn("Little's law only 0.00", found.reasons[0])

    def test_clients_that_are_done_or_wait_for_a_dead_server_are_none(
        self,
    ) -> None:
        tally = Tally(config(messages=100, clients=2))
        quick = [(k * MS, k * MS, k * MS + 900_000, k * MS + 900_000, (k + 1) * MS, 0)
                 for k in range(100)]  # fmt: skip
        tally.take(chunk_of(*quick))  # done after 0.1 of 9 s
        second = 10**9
        tally.take(chunk_of((0, 0, second, second, second, client2.TIMEOUT), client=2))
        found = self.summary(tally, client2.Course(connected=2, wall_s=9.0))
        self.assertEqual(found.verdict, "valid")

    def test_missing_timestamps_are_a_reason(self) -> None:
        tally, seen = self.quiet_run()
        tally.unstamped = 50
        self.assertIn("timestamp", self.summary(tally, seen).reasons[0])

    def test_an_open_loop_that_sent_too_little_is_doubtful(self) -> None:
        tally, seen = self.quiet_run()
        tally.config.rate = tally.config.duration_s = 20.0
        tally.config.messages = 0
        found = self.summary(tally, seen)
        self.assertIn("sent 25% of the 400 messages planned", found.reasons[0])

    def test_a_split_by_chance_is_told_from_an_uneven_one(self) -> None:
        for counts, words in (
            ((34, 33, 33), "split evenly"),
            ((40, 30, 30), "as chance would"),
            ((80, 10, 10), "unevenly"),
        ):
            with self.subTest(counts):
                tally, seen = self.quiet_run()
                for name, count in zip("abc", counts, strict=True):
                    tally.server(name).connections = count
                del tally.servers["9991"]
                self.assertIn(words, client2.split_words(self.summary(tally, seen)))


class TheReport(unittest.TestCase):
    """The page, from a summary alone."""

    def test_more_exchanges_than_dots_make_a_heat_map(self) -> None:
        tally = Tally(config(messages=9000))
        tally.timeline = Timeline()
        rows = [(k * MS, k * MS, k * MS + 10**5, k * MS + 10**5, (k + 1) * MS, 0)
                for k in range(9000)]  # fmt: skip
        tally.take(chunk_of(*rows))
        seen = client2.Course(connected=1, wall_s=9.0)
        run = mock.Mock(config=tally.config, tally=tally, course=seen)
        page = client2.render_report(client2.summarize(run, ["client2.py"]), None, "")
        self.assertIn("the darker a field", page.lower())
        self.assertEqual(page.count("<svg"), 4)
        self.assertLess(len(page.encode()), 500_000)

    def test_a_reply_of_no_server_has_its_dot_beside_those_of_named_ones(self) -> None:
        tally = Tally(config(messages=2, any_reply=True))
        tally.timeline = Timeline()
        tally.take(chunk_of((0, 0, MS, MS, MS, 0)))
        unnamed = chunk_of((MS, MS, 2 * MS, 2 * MS, 2 * MS, 0))
        unnamed.rows[5] |= client2.UNKNOWN_SERVER << 4
        tally.take(unnamed)
        seen = client2.Course(connected=1, wall_s=0.1)
        run = mock.Mock(config=tally.config, tally=tally, course=seen)
        page = client2.render_report(client2.summarize(run, ["client2.py"]), None, "")
        self.assertIn('class="dots square c1"', page)

    def test_a_report_can_be_read_back(self) -> None:
        tally = Tally(config(message=b"</script>"))
        tally.take(chunk_of((0, 0, MS, MS, MS, 0)))
        seen = client2.Course(connected=1, wall_s=0.1)
        run = mock.Mock(config=tally.config, tally=tally, course=seen)
        summary = client2.summarize(run, ["client2.py", "--message", "</script>"])
        page = client2.render_report(summary, None, "")
        with mock.patch.object(Path, "read_text", return_value=page):
            found = client2.read_summary("run.html")
        self.assertEqual(found.as_json(), summary.as_json())


if __name__ == "__main__":
    unittest.main()
