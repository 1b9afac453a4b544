"""The pure functions of client2.py: percentiles, tenths, histograms, texts."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import itertools
import json
import math
import os
import queue
import random
import signal
import socket
import tempfile
import threading
import time
import unittest
from array import array
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import client2
from client2 import (
    Clients,
    Connection,
    Distribution,
    Exchange,
    Outcome,
    Results,
    Scale,
    ServerResults,
    Slices,
)
from tests.support import wait_until

MS = 1_000_000  # nanoseconds


def distribution(values: list[int]) -> Distribution:
    """Return a distribution of some values."""
    metric = Distribution()
    metric.extend(array("q", values))
    return metric


def options_of(*argv: object, rate: float = 0.0) -> argparse.Namespace:
    """Return the options of one run with nothing to connect to."""
    options = client2.parse_args(list(map(str, argv)))
    options.is_single, options.server_names = True, []
    options.addresses, options.target_text = [], "127.0.0.1:1"
    options.direct, options.workers = {}, 1
    return client2.prepare(options, rate)


GOOD = Outcome("confirmed", "9991", 21, 43)


def exchange(
    sent: int, first: int, *, client: int = 1, number: int = 1, due: int = 0,
    last: int = 0, seen: int = 0, outcome: Outcome = GOOD, since: int = 0, **rest: int,
) -> Exchange:  # fmt: skip
    """Return an exchange whose other moments are the usual ones."""
    last = last or first
    return Exchange(client, number, due or sent, sent, first, last, seen or last,
                    outcome, since or sent, **rest)  # fmt: skip


def results_of(made: Sequence[Exchange], *argv: object, rate: float = 0.0) -> Results:
    """Return the figures of exchanges of a run that began at 0."""
    options = options_of(*(argv or (1,)), rate=rate)
    with mock.patch.object(client2, "time_ns", return_value=max(e.last for e in made)):
        found = Results.of(list(made), options, 0)
    found.options, found.clients = options, options.clients
    found.rate = options.rate
    client2.finish_run(found, options)
    client2.judge(found, options)
    client2.notice(found, options)
    return found


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
        read = Distribution.from_json(metric.as_json())  # from a histogram
        for one in (metric, read):
            found = [one.percentile(p) for p in (0, 0.1, 0.5, 0.9, 0.91, 1)]
            self.assertEqual(found, [1, 1, 5, 9, 10, 10])

    def test_a_rank_is_a_whole_number_where_a_float_is_a_little_more(self) -> None:
        self.assertGreater(0.55 * 100, 55)
        self.assertEqual(distribution(list(range(1, 101))).percentile(0.55), 55)

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
        self.assertEqual(distribution([5]).reported(0.5), 5)
        for name, least in (("p90", 29), ("p95", 59), ("p99", 299), ("p99_9", 2995)):
            with self.subTest(name):
                p = client2.PERCENTILES[name]
                self.assertIsNone(distribution([5] * (least - 1)).reported(p))
                self.assertEqual(distribution([5] * least).reported(p), 5)


class Tenths(unittest.TestCase):
    """From the least to the greatest of ten parts' own percentiles."""

    def test_ten_parts_of_ten_levels_give_the_least_and_the_greatest(self) -> None:
        metric = Distribution()
        for part in range(10):  # values 1000, 2000, ... 10000: one level each
            moments = array("q", range(part * 10**9, part * 10**9 + 10**9, 10**7))
            metric.extend(array("q", [1000 * (part + 1)] * 100), moments)
        low, high = metric.tenths("p50") or (0, 0)
        self.assertAlmostEqual(low, 1000, delta=8)
        self.assertAlmostEqual(high, 10_000, delta=80)
        self.assertEqual(len(metric.part_values("p90")), 10)
        written = metric.as_json()["tenths"]
        self.assertEqual(written["p50"], [round(low), round(high)])
        self.assertIsNone(written["p99_9"])

    def test_there_is_none_where_parts_are_too_few(self) -> None:
        for count, name, given in (
            (19, "p50", False), (20, "p50", True), (99, "p90", False),
            (100, "p90", True), (999, "p99", False), (1000, "p99", True),
        ):  # fmt: skip
            metric = Distribution()
            moments = array("q", range(0, count * 10**8, 10**8))
            metric.extend(array("q", [5000] * count), moments)
            with self.subTest(count=count, name=name):
                self.assertEqual(metric.tenths(name) is not None, given)
        for bursts in (5, 6):  # so many exchanges at one moment are in one part
            metric = Distribution()
            metric.extend([5000] * 120, [k % bursts * 10**9 for k in range(120)])
            with self.subTest(bursts=bursts):
                self.assertEqual(metric.tenths("p50") is not None, bursts == 6)

    def test_they_hold_the_median_of_a_correlated_run(self) -> None:
        source, held = random.Random(3), 0
        for _ in range(40):  # AR(1), rho 0.9: the old ranges held it in 37 %
            metric, state, logs = Distribution(), 0.0, []
            for _ in range(1200):
                state = 0.9 * state + source.gauss(0, 1)
                logs.append(round(1e6 * math.exp(state / 4)))
            metric.extend(array("q", logs), array("q", range(0, 12 * 10**11, 10**9)))
            low, high = metric.tenths("p50") or (0, 0)
            held += low <= 1e6 <= high
        self.assertGreaterEqual(held, 36)

    def test_the_order_in_which_threads_report_does_not_matter(self) -> None:
        source = random.Random(4)
        pairs = [(k * 10**7, source.randrange(10**5, 10**6)) for k in range(3000)]
        ordered, mixed = Distribution(), Distribution()
        ordered.extend([v for _, v in pairs], [m for m, _ in pairs])
        source.shuffle(pairs)
        for k in range(0, 3000, 100):
            part = pairs[k : k + 100]
            mixed.extend([v for _, v in part], [m for m, _ in part])
        self.assertEqual(mixed.tenths("p90"), ordered.tenths("p90"))

    def test_a_merge_joins_the_parts_of_both_runs(self) -> None:
        one, two = Distribution(), Distribution()
        for metric, value in ((one, 1000), (two, 9000)):
            metric.extend(array("q", [value] * 100), array("q", range(0, 10**9, 10**7)))
        merged = Distribution()
        for metric in (one, two):
            merged.merge(Distribution.from_json(metric.as_json()))
        self.assertEqual(len(merged.part_values("p50")), 20)
        low, high = merged.tenths("p50") or (0, 0)
        self.assertAlmostEqual(low, 1000, delta=8)
        self.assertAlmostEqual(high, 9000, delta=80)


class TimeInSlices(unittest.TestCase):
    """Counts by time, in bounded memory."""

    def test_a_day_fits_and_nothing_is_lost(self) -> None:
        slices, day = Slices(), 86_400 * 10**9
        moments = range(0, day, day // 5000)
        for k in range(0, 5000, 10):
            slices.add(list(moments[k : k + 10]), [7] * 10)
        self.assertEqual(slices.counts.total(), 5000)
        self.assertLessEqual(len(slices.by_slice()), client2.MOST_SLICES)

    def test_parts_are_of_about_equal_number(self) -> None:
        steady = [k * 10**7 for k in range(1000)]
        faster_and_faster = [round(math.sqrt(k) * 10**7) for k in range(1000)]
        for moments in (steady, faster_and_faster):
            slices, sizes = Slices(), Counter[int]()
            slices.add(moments, [1] * 1000)
            for slice_, part in slices.cut().items():
                sizes[part] += slices.by_slice()[slice_].total()
            self.assertEqual(sorted(sizes), list(range(10)))
            self.assertLess(max(sizes.values()), 1.4 * min(sizes.values()))


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
        values.sort()
        parts = values[:1000], values[1000:1500], values[1500:]
        for order in (parts, parts[::-1]):
            merged = Distribution()
            for part in order:
                merged.merge(Distribution.from_json(distribution(part).as_json()))
            self.assertEqual(merged.counts, whole.counts)
            self.assertEqual(merged.percentile(0.99), whole.percentile(0.99))
            self.assertEqual(merged.count, 3000)
            self.assertEqual((merged.minimum, merged.maximum), (values[0], values[-1]))

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
    """A difference is claimed only where chance does not make it."""

    def servers(self, more: float, seed: int = 1, reconnect: bool = False,
                apart: float = 0.02) -> Results:  # fmt: skip
        """Return a run of three servers, the second slower by so much."""
        source, made = random.Random(seed), []
        offsets = [source.lognormvariate(0, apart) for _ in range(30)]
        for k in range(6000):
            client = k % 30
            name = ("9991", "9992", "9993")[client % 3]
            drift = 1 + 0.3 * math.sin(k / 900)
            latency = 1e6 * drift * offsets[client] * source.lognormvariate(0, 0.1)
            latency *= 1 + more * (name == "9992")
            made.append(exchange(k * MS, k * MS + round(latency), client=client + 1,
                                 outcome=GOOD._replace(server=name)))  # fmt: skip
        words = ["--reconnect"] if reconnect else []
        return results_of(made, 30, "--messages", 200, *words)

    def test_a_slower_server_is_named_with_its_ratio(self) -> None:
        (found,), absent = self.servers(0.2).slower_servers()
        self.assertEqual((found.server, absent), ("9992", []))
        self.assertAlmostEqual(found.ratio, 1.2, delta=0.05)
        self.assertTrue(1 < found.tenths[0] < found.ratio < found.tenths[1])
        (row,) = self.servers(0.2).as_json()["comparison"]["slower"]
        self.assertEqual((row["server"], row["than"]), found[:2])
        words = client2.slower_words(self.servers(0.2))
        self.assertRegex(words, r"9992 is slower than 999[13]: p50 \+\d\d% \(\+\d")

    def test_equal_servers_are_not_told_apart(self) -> None:
        called = sum(
            bool(self.servers(0, seed).slower_servers()[0]) for seed in range(12)
        )
        self.assertLessEqual(called, 1)

    def test_servers_that_differ_no_more_than_connections_do_are_equal(self) -> None:
        # Each connection keeps its own pace: one server is slower in every part.
        for seed in range(4, 7):
            run = self.servers(0, seed, apart=0.3)
            self.assertEqual(run.slower_servers(), ([], []))

    def test_a_ratio_of_each_part_if_all_are_above_and_enough_for_the_pairs(
        self,
    ) -> None:
        for ratios, pairs, found in (
            ([1.2] * 9 + [1.1], 3, [1.2] * 9 + [1.1]),
            ([1.2] * 9 + [1.01], 3, []),
            ([1.2] * 6, 1, [1.2] * 6),  # by chance once in 32
            ([1.2] * 5, 1, []),  # once in 16
            ([1.2] * 7, 3, [1.2] * 7),  # one of three pairs: 3 in 64
            ([1.2] * 6, 3, []),
        ):
            with self.subTest(ratios=ratios, pairs=pairs):
                fast = [1.0] * len(ratios)
                self.assertEqual(client2.ratios_of(ratios, fast, pairs), found)

    def test_new_connections_are_compared_by_tenths_alone(self) -> None:
        run = self.servers(0.2, reconnect=True)
        self.assertEqual(run.servers["9992"].medians, [])
        self.assertEqual(run.slower_servers()[0][0].server, "9992")

    def test_less_than_5_percent_is_not_worth_a_sentence(self) -> None:
        for more, named in ((0.04, []), (0.08, ["9992"])):
            run = self.servers(more, apart=0)
            for name, server in run.servers.items():  # in all parts alike
                server.by_part = [1e6 + more * 1e6 * (name == "9992")] * 10
                server.medians = []
            slower, _ = run.slower_servers()
            self.assertEqual([found.server for found in slower], named)

    def test_a_server_that_was_not_there_all_the_time_is_not_compared(self) -> None:
        run = self.servers(0.5)
        run.servers["9992"].by_part[7] = None
        self.assertEqual(run.slower_servers(), ([], ["9992"]))
        self.assertIn("9992 was not there all the time", client2.slower_words(run))

    def test_a_late_straggler_takes_no_servers_parts(self) -> None:
        # Ticks with nothing but it make the run's slices longer, and not the server's.
        run = self.servers(0.5)
        before = [server.by_part[-2] or 0 for server in run.servers.values()]
        run.latency.slices.reach(0, 12_000 * MS)
        client2.finish_run(run, options_of(1))
        for p50, server in zip(before, run.servers.values(), strict=True):
            self.assertAlmostEqual((server.by_part[-2] or 0) / p50, 1, delta=0.05)

    def test_chance_of_groups_that_differ_and_of_those_that_do_not(self) -> None:
        # Ten against ten, all of one side above: 2 of 184,756 ways.
        self.assertLess(client2.chance([list(range(100, 110)), list(range(10))]), 0.005)
        self.assertGreater(client2.chance([[1, 4, 2, 3], [2, 3, 1, 4]]), 0.5)
        self.assertEqual(client2.chance([[5], [9]]), 1.0)

    def test_another_seed_is_no_other_configuration(self) -> None:
        ours, theirs = self.run_of(1000), self.run_of(1100)
        words = "9 messages/s, Poisson arrivals (--seed {}), for {} s"
        ours.load, theirs.load = words.format(1, 2), words.format(7, 2)
        self.assertEqual(client2.baseline_doubts([ours], [theirs]), [])
        theirs.load = words.format(1, 3)
        self.assertIn("other load: ", client2.baseline_doubts([ours], [theirs])[0])

    def test_messages_of_another_size_or_in_pairs_are_another_load(self) -> None:
        options = options_of(3, "--duration", 2, "--size", 2000)
        said = client2.describe_load(options)
        self.assertEqual(said, "one message at a time, for 2 s, 2\u2009000 bytes each")
        options.size, options.direct = 0, {"9991": []}
        said = client2.describe_load(options)
        self.assertTrue(said.endswith("for 2 s, in pairs with direct ones"), said)

    def test_longer_messages_or_a_warmup_on_one_side_are_said(self) -> None:
        ours, theirs = self.run_of(1000), self.run_of(1100)
        ours.bytes_sent, theirs.bytes_sent = 21_000, 22_000  # longer numbers in them
        self.assertEqual(client2.baseline_doubts([ours], [theirs]), [])
        nothing = Results(clients=1, load=ours.load)  # was confirmed: it says so itself
        self.assertEqual(client2.baseline_doubts([ours], [nothing]), [])
        theirs.bytes_sent, theirs.warmup_s = 42_000, 0.5
        words = ["other messages: 21 and 42 bytes", "only one side had a --warmup"]
        self.assertEqual(client2.baseline_doubts([ours], [theirs]), words)

    def test_a_ramp_is_another_load(self) -> None:
        said = client2.describe_load(options_of(3, "--duration", 2, "--ramp", 1))
        self.assertEqual(said, "one message at a time, for 2 s, started over 1 s")

    def test_turns_are_seen_by_the_moments_of_starting(self) -> None:
        self.assertTrue(client2.take_turns([1, 3, 5, 7], [2, 4, 6, 8]))
        self.assertFalse(client2.take_turns([1, 2, 3, 4], [5, 6, 7, 8]))

    def run_of(self, median: int, spread: float = 0.02, seed: int = 1) -> Results:
        source = random.Random(seed)
        drawn = [round(median * source.lognormvariate(0, spread)) for _ in range(1000)]
        made = [exchange(k * MS, k * MS + latency) for k, latency in enumerate(drawn)]
        return results_of(made, 1, "--messages", 1000)

    def test_one_run_each_is_called_different_only_if_all_parts_are(self) -> None:
        for median, spread, said in (
            (100_000, 0.02, "repeat"),
            (300_000, 0.02, "slower"),
            (30_000, 0.02, "faster"),
            (120_000, 0.5, "repeat"),  # some parts are slower, some are not
            (80_000, 0.5, "repeat"),
        ):
            ours = self.run_of(median, spread)
            theirs = self.run_of(100_000, spread, seed=2)
            change = client2.compare_runs([ours], [theirs], "p50")
            assert change
            self.assertEqual(change.said, said)

    def test_four_runs_each_are_compared_by_permutation(self) -> None:
        theirs = [self.run_of(100_000 + 900 * k, seed=k) for k in range(4)]
        same = [self.run_of(100_500 + 900 * k, seed=9 + k) for k in range(4)]
        slow = [self.run_of(120_000 + 900 * k, seed=9 + k) for k in range(4)]
        for ours, said in ((same, "not told apart"), (slow, "slower")):
            change = client2.compare_runs(ours, theirs, "p50")
            assert change
            self.assertEqual(change.said, said)
        change = client2.compare_runs(slow[:3], theirs, "p50")
        assert change
        self.assertEqual((change.said, change.chance), ("repeat", None))

    def test_what_speaks_against_a_comparison_is_said(self) -> None:
        ours, theirs = self.run_of(1000), self.run_of(1000)
        theirs.clients, theirs.interrupted, theirs.reasons = 5, True, ["it stood still"]
        words = client2.baseline_doubts([ours], [theirs, theirs])
        found = ["other clients: 1, 5", "it was interrupted"]
        found += ["its own verdict was doubtful", "the same run was given twice"]
        self.assertEqual(words, found)

    def test_runs_that_did_not_take_turns_are_said_to_be_so(self) -> None:
        for starts, said in (((1, 3, 5, 7), False), ((-4, -3, -2, -1), True)):
            ours = [self.run_of(1000) for _ in range(4)]
            theirs = [self.run_of(1000 + k) for k in range(4)]
            for k, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                one.started, other.started = starts[k], 2 * k
            words = "; ".join(client2.baseline_doubts(ours, theirs))
            self.assertEqual("did not take turns" in words, said, words)


class Texts(unittest.TestCase):
    """What people read."""

    def test_three_significant_digits(self) -> None:
        cases = {0.01234: "0.0123", 1.617: "1.62", 9.996: "10.0", 431.4: "431"}
        cases |= {1019.6: "1\u2009020", 99_999.0: "100\u2009000", 0.0: "0"}
        for value, text in cases.items():
            with self.subTest(value):
                self.assertEqual(client2.digits(value), text)

    def test_durations_and_rates_carry_their_unit(self) -> None:
        self.assertEqual(client2.with_unit(1_617_000), "1.62 ms")
        self.assertEqual(client2.with_unit(950), "0.950 µs")
        self.assertEqual(client2.with_unit(2_000_000_000), "2.00 s")
        self.assertEqual(client2.with_unit(23_414.6, client2.RATES), "23.4 kB/s")

    def test_what_rounds_to_a_thousand_gets_the_next_unit(self) -> None:
        # Was "1 000 µs", eight columns wide and glued to the number before it.
        self.assertEqual(client2.with_unit(999_600), "1.00 ms")
        self.assertEqual(client2.with_unit(999_400), "999 µs")
        self.assertEqual(client2.with_unit(999_960_000), "1.00 s")

    def test_bounds_are_rounded_not_cut_off(self) -> None:
        self.assertEqual(client2.from_to((11_580_000, 11_640_000)), "11.6 ms")
        self.assertEqual(client2.from_to((291_580, 2_364_000)), "0.292–2.36 ms")
        self.assertEqual(client2.from_to((1_430_000, 1_800_000)), "1.43–1.80 ms")
        self.assertEqual(client2.from_to((1e9, 1.02e12)), "1.00–1\u2009020 s")
        self.assertEqual(client2.from_to(None), "–")

    def test_a_range_has_one_unit(self) -> None:
        self.assertEqual(client2.from_to((35_600, 999_600)), "0.0356–1.00 ms")
        # Was "0.00432 µs–2.91 ms": what a balancer adds may be next to nothing.
        self.assertEqual(client2.from_to((4.32, 2_910_000)), "0–2.91 ms")
        self.assertEqual(client2.from_to((0, 0)), "0 µs")

    def test_each_value_of_a_table_has_a_unit_that_suits_it(self) -> None:
        made = [
            exchange(k * MS, k * MS + (40_000 if k else 3 * 10**9)) for k in range(30)
        ]
        text = "\n".join(
            client2.percentile_lines(results_of(made, 1, "--messages", 30))
        )
        self.assertRegex(text, r"latency +40.0 µs +40.0 µs .* 3.00 s\n")

    def test_values_that_are_alike_have_their_bar_and_marks_in_one_row(self) -> None:
        lines = list(client2.histogram_lines(distribution([1_199_900] * 400)))
        (row,) = [line for line in lines if "█" in line]
        self.assertRegex(row, "← p50 p90 p95 p99$")

    def test_a_line_of_an_exchange_has_its_figures_and_reply(self) -> None:
        outcome = GOOD._replace(text="Server 9991 received: Hello from client 3!")
        made = exchange(MS, 3 * MS, client=3, last=5 * MS, outcome=outcome)
        run = results_of([made], 3)
        run.kept = [made]
        head, line = client2.exchange_lines(run, options_of(3))
        self.assertRegex(head, "client +latency +response +throughput +reply")
        # 64 bytes in 4 ms.
        self.assertRegex(line, r"^ +3 +2.00 ms +4.00 ms +16.0 kB/s +Server 9991 rec")

    def test_signs_that_an_encoding_lacks_become_ascii(self) -> None:
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding="ascii")
        with mock.patch.object(os, "name", "nt"):
            client2.put("9\u2009991 → 1.5–2 µs ✓ █▏ … é\n", stream)
        self.assertEqual(raw.getvalue(), b"9 991 -> 1.5-2 us + ## ... \\xe9\n")

    def test_a_stream_that_does_not_block_loses_nothing(self) -> None:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        with open(reading, "rb") as end:
            found: list[bytes] = []
            thread = threading.Thread(target=lambda: found.append(end.read(1_000_000)))
            thread.start()
            with open(writing, "w", encoding="utf-8") as stream:
                client2.put("x" * 1_000_000, stream)
            thread.join(20)
        self.assertEqual(list(map(len, found)), [1_000_000])

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
                steps = client2.log_steps(low, high, 12)
                self.assertTrue(steps[0] <= low and high < steps[-1])
                self.assertLessEqual(len(steps), 13)

    def test_a_histogram_loses_no_value(self) -> None:
        values = [1, 999, 1000, 54_321, 10**6, 10**9]
        steps = client2.log_steps(1, 10**9, 12)
        self.assertEqual(sum(client2.binned(distribution(values), steps)), 6)


class Messages(unittest.TestCase):
    """The bytes that a client sends, and whose a reply is."""

    def test_hello_is_twenty_bytes_and_a_newline(self) -> None:
        self.assertEqual(
            client2.message_of(options_of(1), 1, 1), b"Hello from client 1!\n"
        )

    def test_size_includes_the_newline(self) -> None:
        for size, expected in (
            (1, b"\n"),
            (6, b"Hello\n"),
            (21, b"Hello from client 7!\n"),
            (22, b"Hello from client 7! \n"),
            (25, b"Hello from client 7! xxx\n"),
        ):
            with self.subTest(size):
                found = client2.message_of(options_of(9, "--size", size), 7, 1)
                self.assertEqual(found, expected)

    def test_a_message_of_its_own(self) -> None:
        options = options_of(1, "--message", os.fsdecode(b"\xff\r"))
        self.assertEqual(client2.message_of(options, 1, 1), b"\xff\r\n")

    def test_numbers_and_lines_of_a_file(self) -> None:
        options = options_of(3, "--message", "m{message} c{client}")
        self.assertEqual(client2.message_of(options, 2, 5), b"m5 c2\n")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "lines")
            path.write_bytes(b"one {client}\ntwo\n")
            options = options_of(3, "--message", f"@{path}")
        found = [client2.message_of(options, 3, number) for number in (1, 2, 3)]
        self.assertEqual(found, [b"one 3\n", b"two\n", b"one 3\n"])

    def test_a_difference_is_shown_wherever_it_is(self) -> None:
        for reply, words in (
            (b"hello\r\n", "ends in \\r\\n instead of \\n"),
            (b"hello\nhe", "2 bytes left over after it"),
            (b"hexlo\n", "byte 3: 'xlo' instead of 'llo'"),
            (b"hel", "ends after 3 of 6 bytes"),
        ):
            self.assertEqual(client2.difference(reply, b"hello\n"), words)
        long = b"x" * 500
        self.assertIn("byte 501", client2.difference(long + b"a\n", long + b"b\n"))

    def test_whose_message_a_reply_repeats(self) -> None:
        connection = Connection(options_of(5, "--message", "c{client} m{message}"))
        connection.message = b"c1 m1\n"
        found = [
            connection._owner(b) for b in (b"c1 m1\n", b"c4 m7\n", b"c9 m1\n", b"x")
        ]
        self.assertEqual(found, ["", "client 4 message 7", "", ""])


class TheSchedule(unittest.TestCase):
    """When messages are due."""

    def arrivals(self, *argv: object, rate: float) -> list[int]:
        return list(client2.arrivals(options_of(*argv, rate=rate)))

    def test_even_arrivals_are_as_many_as_rate_and_duration_say(self) -> None:
        due = self.arrivals(2, "--rate", 60, "--duration", 1, rate=60)
        self.assertEqual(
            (len(due), due[:2], due[30]), (60, [0, 16_666_666], 500_000_000)
        )

    def test_poisson_arrivals_are_drawn_from_the_seed(self) -> None:
        words = (2, "--rate", 1, "--duration", 20, "--arrivals", "poisson", "--seed")
        one, again, other = (self.arrivals(*words, s, rate=500) for s in (1, 1, 2))
        self.assertEqual(one, again)
        self.assertNotEqual(one, other)
        gaps = [b - a for a, b in itertools.pairwise(one)]
        mean = sum(gaps) / len(gaps)
        spread = math.sqrt(sum((g - mean) ** 2 for g in gaps) / len(gaps))
        self.assertAlmostEqual(mean, 2e6, delta=1e5)  # of 10,000: 2 % standard error
        self.assertAlmostEqual(spread / mean, 1, delta=0.06)  # exponential

    def test_a_seed_that_was_drawn_is_another_one_and_said(self) -> None:
        words = (2, "--rate", 500, "--duration", 1, "--arrivals", "poisson")
        drawn = [options_of(*words, rate=500) for _ in range(5)]
        self.assertGreater(len({options.seed for options in drawn}), 1)
        for options in drawn:
            said = client2.describe_load(options)
            self.assertIn(f"(--seed {options.seed})", said)

    def test_groups_share_one_schedule(self) -> None:
        options = options_of(4, "--rate", 100, "--messages", 25, rate=100)
        options.workers = 3
        groups = [Clients(options, k) for k in range(3)]
        due = [due for group in groups for due in iter(group.next_due, None)]
        self.assertEqual(sorted(due), [k * 10**7 for k in range(100)])


class Limits(unittest.TestCase):
    """What --fail-if understands."""

    def test_figures_signs_and_units(self) -> None:
        for text, figure, sign, value in (
            ("p99>50ms", "latency.p99", ">", 50e6),
            ("response.p99.9 >= 1.5s", "response.p99.9", ">=", 1.5e9),
            ("p95>50ms", "latency.p95", ">", 50e6),
            ("response.p97.5<1s", "response.p97.5", "<", 1e9),
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
        for text in (
            "p99",
            "p0>1ms",
            "p100>1ms",
            "p99>1",
            "rate>1%",
            "failed>1/s",
            "p99>1.2.3ms",
        ):
            with (
                self.subTest(text),
                self.assertRaises(argparse.ArgumentTypeError),
            ):
                client2.parse_limit(text)

    def test_any_percentile_can_be_asked_for(self) -> None:
        run = results_of([exchange(k, k + 1000 * k) for k in range(1, 101)],
                         1, "--messages", 100)  # fmt: skip
        self.assertEqual(client2.figure_of(run, "latency.p95"), 95_000)
        self.assertEqual(client2.figure_of(run, "latency.p60"), 60_000)
        self.assertIsNone(client2.figure_of(run, "latency.p99"))

    def test_each_of_several_limits_counts(self) -> None:
        limits = [f"--fail-if={limit}" for limit in ("p50>1ns", "failed>5", "max>1ns")]
        run = results_of([exchange(1, 101)])
        broken = client2.broken_limits(client2.parse_args(["1", *limits]).fail_if, run)
        self.assertEqual(broken, ["p50>1ns: it is 0.100 µs", "max>1ns: it is 0.100 µs"])

    def test_a_limit_that_holds_or_cannot_be_answered_is_broken(self) -> None:
        failed = Outcome("timeout", text="no reply")
        made = [exchange(k, k + 1000) for k in range(1, 10)]
        run = results_of([*made, exchange(50, 1009, outcome=failed)],
                         1, "--messages", 10)  # fmt: skip
        for text, said in (
            ("p50>1us", None),
            ("p50>=1us", "it is 1.00 µs"),
            ("max<2us", "it is 1.00 µs"),
            ("p90>1s", "too few exchanges to know"),
            ("failed>0", "it is 1.00"),
            ("failed>10%", None),
            ("failed>=10%", "it is 10.0"),
            ("rate<1/s", None),
            ("connect.max>1s", "too few exchanges to know"),
        ):
            with self.subTest(text):
                broken = client2.broken_limits([client2.parse_limit(text)], run)
                self.assertEqual(broken, [f"{text}: {said}"] if said else [])

    def test_the_worst_of_several_runs_is_the_exit_status(self) -> None:
        good, bad = Results(confirmed=5, planned=5), Results(confirmed=4, planned=5)
        bad.failures["timeout"] = 1
        options = client2.parse_args(["1", "--quiet"])
        for runs, status in (([good, good], 0), ([good, bad], 1), ([bad, good], 1)):
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                self.assertEqual(client2.finish(runs, [], options), status)
            said = "client2.py: 1 failed\n" if status else ""
            self.assertEqual(stderr.getvalue(), said)

    def test_exit_statuses_and_which_of_them_goes_first(self) -> None:
        good, failed = {"confirmed": 5, "planned": 5}, {"timeout": 1}
        for fields, broken, status, reason in (
            (good, [], 0, "all confirmed"),
            ({**good, "planned": 6}, [], 0, "none failed"),
            ({**good, "failures": Counter(failed)}, [], 1, "1 failed"),
            ({**good, "lost": 2}, [], 1, "2 clients lost"),
            ({}, [], 1, "none confirmed"),
            ({**good, "failures": Counter(failed)}, ["x"], 99, "a limit is broken"),
            ({**good, "interrupted": True}, ["x"], 130, "interrupted"),
        ):
            with self.subTest(fields):
                run = Results(**fields)
                self.assertEqual(client2.exit_status(run, broken), (status, reason))


class Targets(unittest.TestCase):
    """Where a client connects to."""

    def test_the_usual_one_is_the_balancers_address(self) -> None:
        stop = client2.InputError("that is enough")
        with (
            mock.patch.object(client2, "resolve", side_effect=stop) as resolve,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            self.assertEqual(client2.main(["1"]), 2)
        resolve.assert_called_once_with(("127.0.0.1", 9990))


class Merging(unittest.TestCase):
    """Runs of several files as one."""

    def test_a_merge_says_what_was_wrong_with_any_of_its_runs(self) -> None:
        words = (1, "--rate", 5, "--messages", 1)
        runs = [results_of([exchange(1, 9 + k)], *words, rate=5) for k in (1, 2)]
        runs[1].reasons, runs[1].interrupted = ["the clock was stepped"], True
        runs[0].timestamps, runs[1].timestamps = "kernel", "user"
        for order in (runs, runs[::-1]):
            with tempfile.TemporaryDirectory() as folder:
                paths = [str(Path(folder, f"{k}.json")) for k in range(2)]
                for path, run in zip(paths, order, strict=True):
                    Path(path).write_text(json.dumps(run.as_json()))
                merged = client2.merge_files(paths)
            (reason,) = merged.reasons
            self.assertRegex(reason, "^file [12]: the clock was stepped$")
            self.assertEqual((merged.interrupted, merged.timestamps), (True, "user"))
            self.assertEqual((merged.rate, merged.confirmed), (10, 2))


    def test_the_same_run_given_twice_is_said(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "run.json")
            path.write_text(json.dumps(results_of([exchange(1, 9)]).as_json()))
            merged = client2.merge_files([str(path)] * 2)
        words = ["the same run was given twice: its figures count twice"]
        self.assertEqual((merged.confirmed, merged.reasons), (2, words))


class Signals(unittest.TestCase):
    """Ctrl-C and SIGTERM while a run lasts."""

    def test_the_first_is_reported_and_a_second_ends_the_program(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.skipTest("needs the main thread")
        both = (signal.SIGINT, signal.SIGTERM)
        before = [signal.getsignal(number) for number in both]
        for number in both:
            inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
            with client2.signals_to(inbox):
                signal.raise_signal(number)
                self.assertEqual(inbox.get(timeout=20), (None, number))
                found = [signal.getsignal(one) for one in both]
                self.assertEqual(found, [signal.SIG_DFL] * 2)
            self.assertEqual([signal.getsignal(one) for one in both], before)


    def test_a_schedule_is_counted_while_they_still_end_the_program(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.skipTest("needs the main thread")
        before, found = signal.getsignal(signal.SIGINT), list[object]()

        def count(options: argparse.Namespace, rate: float) -> argparse.Namespace:
            found.append(signal.getsignal(signal.SIGINT))
            raise client2.InputError

        options = client2.parse_args(["1", "--rate=5", "--target=127.0.0.1:1"])
        with (
            mock.patch.object(client2, "prepare", count),
            self.assertRaises(client2.InputError),
        ):
            client2.measure(options, [])
        self.assertEqual(found, [before])


class Ends(unittest.TestCase):
    """What several runs end with."""

    def test_nobody_listens_is_said_when_no_run_reached_anybody(self) -> None:
        refused = Outcome("connect", text="connection refused")
        bad = results_of([exchange(1, 5, outcome=refused)])
        good = results_of([exchange(1, 5)])
        for runs, nobody in (([bad, good], False), ([bad, bad], True)):
            options = options_of(2, "--runs", 2)
            with (
                contextlib.redirect_stdout(io.StringIO()) as stdout,
                contextlib.redirect_stderr(io.StringIO()) as stderr,
            ):
                status = client2.finish(runs, [], options)
            self.assertEqual(status, 1)
            self.assertEqual("nobody listens" in stderr.getvalue(), nobody)
            self.assertEqual("run 2" in stdout.getvalue(), not nobody)

    def test_a_text_of_a_file_may_be_no_utf_8(self) -> None:
        self.assertEqual(client2.clean("caf\udce9"), "caf\\udce9")


class Connections(unittest.TestCase):
    """One connection without a client and a run."""

    def connected(self, *argv: object) -> tuple[Connection, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            connection = Connection(options_of(1, *argv))
            self.addCleanup(connection.close)
            connection.connect([(socket.AF_INET, listener.getsockname())])
            peer, _ = listener.accept()
            self.addCleanup(peer.close)
        return connection, peer

    def test_a_copy_that_comes_after_the_last_reply_is_waited_for(self) -> None:
        connection, peer = self.connected()
        came = list[bytes]()

        def confirm_again() -> None:
            came.append(peer.recv(10))  # our end of file
            peer.sendall(b"Server 9991 received: Hi\n")

        late = threading.Thread(target=confirm_again)
        late.start()
        with mock.patch.object(client2, "SILENCE_S", 20.0):
            self.assertTrue(connection.has_left_over(waits=True))
        late.join(20)
        self.assertEqual(came, [b""])

    def test_nothing_is_left_over_at_the_servers_end_or_after_a_silence(self) -> None:
        for ends in (True, False):
            connection, peer = self.connected()
            self.assertFalse(connection.has_left_over(waits=False))
            if ends:
                peer.close()
            self.assertFalse(connection.has_left_over(waits=True))

    def test_an_address_whose_socket_cannot_be_made_gives_way_to_the_next(self) -> None:
        unheard_of = (9999, ("::1", 1))  # EAFNOSUPPORT, like a missing IPv6
        with socket.create_server(("127.0.0.1", 0)) as listener:
            reachable = (socket.AF_INET, listener.getsockname())
            connection = Connection(options_of(1))
            self.addCleanup(connection.close)
            connection.connect([unheard_of, reachable])
            assert connection.sock is not None
            self.assertEqual(connection.sock.getpeername(), listener.getsockname())
        with self.assertRaisesRegex(client2.Failed, "not supported") as found:
            Connection(options_of(1)).connect([unheard_of])
        self.assertEqual(found.exception.outcome, "connect")

    def test_what_this_machine_ran_out_of_is_not_the_targets_failure(self) -> None:
        for number, words in (
            (errno.EADDRNOTAVAIL, "local ports of this machine ran out"),
            (errno.EMFILE, "descriptors of this machine ran out"),
            (errno.ENOBUFS, "memory of this machine ran out"),
        ):
            refuse = mock.Mock(side_effect=OSError(number, "no"))
            with (
                mock.patch.object(socket, "socket", refuse),
                self.assertRaisesRegex(client2.Failed, words) as found,
            ):
                Connection(options_of(1)).connect([(socket.AF_INET, ("127.0.0.1", 1))])
            self.assertEqual(found.exception.outcome, "local")

    @unittest.skipUnless(client2.TIMESTAMP_OPTION, "needs kernel timestamps")
    def test_a_reply_before_its_message_is_a_mismatch(self) -> None:
        def seen() -> client2.Failed | None:
            connection, peer = self.connected()
            peer.sendall(b"Server 9991 received: Hello\n")
            assert connection.sock is not None
            connection.sock.recv(1, socket.MSG_PEEK)
            try:
                connection.exchange(b"Hello\n")
            except client2.Failed as failure:
                return failure
            return None

        # The kernel begins to stamp only some time after it was asked to.
        failure = wait_until(seen, what="a reply that comes too early")
        self.assertIn("came before its message", str(failure))
        self.assertEqual(failure.outcome, "mismatch")

    def test_a_message_that_nobody_takes_is_a_failed_send(self) -> None:
        connection, _ = self.connected("--timeout", 0.1)
        with self.assertRaisesRegex(client2.Failed, "not taken in 0.1 s") as found:
            connection.exchange(b"x" * 50_000_000 + b"\n")
        self.assertEqual(found.exception.outcome, "send")

    def test_a_reply_without_end_is_a_mismatch_before_its_time_is_up(self) -> None:
        connection, peer = self.connected("--timeout", 20)
        sender = threading.Thread(target=peer.sendall, args=(b"x" * 300_000,))
        with mock.patch.object(connection, "_arrival", lambda *moments: moments[-1]):
            sender.start()
            with self.assertRaisesRegex(client2.Failed, "no end of the reply") as found:
                connection.exchange(b"Hello\n")
        connection.close()
        peer.close()
        sender.join(20)
        self.assertEqual(found.exception.outcome, "mismatch")

    def test_what_a_send_or_a_receive_failed_of(self) -> None:
        connection, _ = self.connected()
        broken, full = BrokenPipeError(errno.EPIPE, "no"), OSError(errno.ENOMEM, "no")
        reset = ConnectionResetError(errno.ECONNRESET, "no")
        for error, sending, outcome in (
            (broken, True, "send"), (TimeoutError(), True, "send"),
            (reset, False, "reset"), (TimeoutError(), False, "timeout"),
            (full, True, "local"), (full, False, "local"),
        ):  # fmt: skip
            with self.subTest(error=error, sending=sending):
                found = connection.failure(error, sending, 5)
                self.assertEqual((found.outcome, found.sent), (outcome, 5))

    def test_an_error_reply_is_read_when_a_send_failed(self) -> None:
        connection, peer = self.connected()
        peer.sendall(b"Server 9991 error: message longer than 65536 bytes\n")
        assert connection.sock is not None
        connection.sock.recv(1, socket.MSG_PEEK)
        found = connection.failure(BrokenPipeError(errno.EPIPE, "no"), True, 5)
        self.assertEqual(found.outcome, "error_reply")
        self.assertIn("longer than 65536 bytes", str(found))

    def test_connect_time_is_part_of_neither_figure(self) -> None:
        group = Clients(options_of(1), 0)
        client = client2.Client(1, options_of(1), group)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client.options.addresses = [(socket.AF_INET, listener.getsockname())]
            connect, began = client.connection.connect, time.monotonic_ns()

            def slow(addresses: client2.Addresses) -> int:
                took = connect(addresses)
                self.assertLessEqual(took, time.monotonic_ns() - began + MS)
                threading.Event().wait(0.05)  # what follows is no connecting
                return took

            def confirm() -> None:
                peer, _ = listener.accept()
                with peer:
                    peer.sendall(b"Server 1 received: " + peer.recv(1000))

            confirming = threading.Thread(target=confirm)
            confirming.start()
            with mock.patch.object(client.connection, "connect", slow):
                client._attempt(0, 0)
            confirming.join(20)
        client._close()
        (made,) = group.exchanges
        self.assertEqual(made.due, made.sent)
        self.assertGreater(made.connect, 0)

    def test_a_connect_time_is_no_busy_client(self) -> None:
        made = [exchange(50 * MS + k, 51 * MS + k, due=1 + k, connect=50 * MS)
                for k in range(20)]  # fmt: skip
        run = results_of(made, 20, "--rate", 9, rate=9)
        self.assertEqual((run.waited_for_client, run.reasons), (0, []))

    def test_pauses_are_short_for_a_second_then_longer_and_never_all_alike(
        self,
    ) -> None:
        client = client2.Client(1, options_of(1), Clients(options_of(1), 0))
        pauses, now = [], 10**9
        with (
            mock.patch.object(
                client, "_wait_until", lambda until: pauses.append(until)
            ),
            mock.patch.object(time, "monotonic_ns", lambda: now),
        ):
            for now in (10**9, 15 * 10**8, 2 * 10**9, 25 * 10**8, 35 * 10**8, 10**10):
                client._pause()
                pauses[-1] -= now
        self.assertEqual([p < 75 * MS for p in pauses], [True] * 3 + [False] * 0
                         + [p < 75 * MS for p in pauses[3:]])  # fmt: skip
        self.assertGreater(min(pauses), 24 * MS)
        self.assertLess(max(pauses), 1500 * MS)
        self.assertEqual(len(set(pauses)), 6)


class Workers(unittest.TestCase):
    """How many processes there are."""

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
            with (
                self.subTest(clients=clients, cores=cores),
                mock.patch.object(client2, "usable_cores", return_value=cores),
                mock.patch.object(client2, "raise_descriptor_limit", return_value=None),
            ):
                self.assertEqual(client2.workers_for(clients, 0, 1), workers)

    def test_there_are_never_more_than_clients(self) -> None:
        self.assertEqual(client2.workers_for(2, 4, 1), 2)
        self.assertEqual(client2.workers_for(4, 4, 1), 4)

    def test_cores_are_counted_where_the_system_cannot_say_which_are_usable(
        self,
    ) -> None:
        for error in (AttributeError, OSError):
            with mock.patch.object(
                os, "sched_getaffinity", side_effect=error, create=True
            ):
                self.assertEqual(client2.usable_cores(), os.cpu_count())

    def test_auto_is_the_default(self) -> None:
        self.assertEqual(client2.parse_args(["200"]).workers, 0)

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

    def test_a_stop_is_told_from_a_busy_processor(self) -> None:
        clients = Clients(options_of(1), 0)
        clients.late = [(1.0, 1.1), (2.0, 2.3), (3.0, 3.1)]
        with mock.patch.object(client2, "CONTINUED", [1.1, 3.1]):
            self.assertAlmostEqual(clients.still_s, 0.2)


class TheResults(unittest.TestCase):
    """Exchanges become figures."""

    def test_latency_response_time_and_bytes_of_an_exchange(self) -> None:
        run = results_of([exchange(1500, 4500, due=1000, last=5500, seen=7000)])
        self.assertEqual(run.latency.percentile(0.5), 3000)
        self.assertEqual(run.response_time.percentile(0.5), 4500)
        self.assertEqual(run.wake_delay.percentile(0.5), 1500)
        self.assertEqual((run.bytes_sent, run.bytes_received), (21, 43))
        self.assertEqual(run.servers["9991"].confirmed, 1)

    def test_what_the_balancer_adds_is_the_difference_of_each_pair(self) -> None:
        options = options_of(1, "--messages", 4)
        options.direct = {"9991": []}
        made = [exchange(k * MS, k * MS + took, direct=directly) for k, (took, directly)
                in enumerate(((9000, 4000), (8000, 1000), (9000, -1)), 1)]  # fmt: skip
        run = Results.of([*made, exchange(9 * MS, 10 * MS)], options, 0)
        self.assertEqual((run.difference.minimum, run.difference.maximum), (5000, 7000))
        self.assertEqual((run.difference.count, run.direct_failed), (2, 1))

    def test_servers_are_listed_by_their_numbers(self) -> None:
        made = [exchange(1, 10, outcome=GOOD._replace(server=name))
                for name in ("10000", "9991", "9992")]  # fmt: skip
        total = Results()
        total.merge(results_of(made, 3))
        self.assertEqual(list(total.as_json()["servers"]), ["9991", "9992", "10000"])
        lines = "\n".join(client2.server_lines(total))
        self.assertRegex(lines, r"(?s) 9991 .* 9992 .* 10000 ")

    def test_a_clock_that_is_set_back_makes_no_negative_duration(self) -> None:
        run = results_of([exchange(1000, 700)])
        for metric in (run.latency, run.response_time):
            self.assertEqual(metric.minimum, 0)
            self.assertEqual(Distribution.from_json(metric.as_json()).count, 1)

    def test_failures_are_counted_and_left_out_of_latency(self) -> None:
        late = Outcome("timeout", text="no reply")
        run = results_of([exchange(1, 10), exchange(20, 900, outcome=late)])
        self.assertEqual((run.latency.count, run.confirmed, run.failed), (1, 1, 1))
        self.assertEqual(run.failures["timeout"], 1)
        self.assertAlmostEqual(run.per_s, 1 / 900e-9)  # what failed is no rate
        run.planned = 7
        self.assertEqual(run.not_sent, 5)

    def test_failures_that_are_all_different_do_not_pile_up(self) -> None:
        made = [exchange(k, k + 1, outcome=Outcome("mismatch", text=f"no {k}"))
                for k in range(1, 500)]  # fmt: skip
        run = results_of(made, 1, "--messages", 499)
        run.merge(results_of(made[::-1], 1, "--messages", 499))
        self.assertEqual((run.failed, len(run.examples)), (998, 50))

    def test_the_longest_gap_spans_failures(self) -> None:
        reset = Outcome("reset", text="reset")
        made = [exchange(1, 10), exchange(11, 40, outcome=reset)]
        self.assertEqual(results_of(made).gap, (29, 1, 11, True))
        made += [exchange(60, 95, since=11), exchange(1, 25, client=2)]
        self.assertEqual(results_of(made).gap, (84, 1, 11, False))

    def test_a_warm_up_is_left_out_of_all_figures(self) -> None:
        made = [exchange(k * 10**8, k * 10**8 + 5000, number=k + 1) for k in range(50)]
        by_time = results_of(made, 1, "--messages", 50, "--warmup", 2)
        by_count = results_of(made, 1, "--messages", 50, "--warmup", "20x")
        for run in (by_time, by_count):
            self.assertEqual((run.confirmed, run.planned, run.warmed_up), (30, 30, 20))
            self.assertAlmostEqual(run.wall_s, 2.9, delta=0.001)
            self.assertAlmostEqual(run.warmup_s, 2)
            self.assertIn("left out of all figures", run.notices[0])

    def test_a_schedule_lasts_to_its_end_not_to_the_last_reply(self) -> None:
        made = [exchange(k * 10**8 + 1, k * 10**8 + 5000) for k in range(10)]
        run = results_of(made, 1, "--rate", 10, "--duration", 1, rate=10)
        self.assertEqual((run.wall_s, run.per_s), (1.0, 10.0))
        words = ("--rate", 10, "--duration", 60, "--messages", 10)  # done before that
        self.assertEqual(results_of(made, 1, *words, rate=10).wall_s, 1.0)

    def test_a_server_of_the_usual_three_that_answers_nobody_is_named(self) -> None:
        for answered, silent in (("12", ["9993"]), ("1", []), ("123", [])):
            made = [exchange(client, client + 9, client=client, connect=5,
                             outcome=Outcome("confirmed", f"999{answer}"))
                    for client in range(1, 10) for answer in answered]  # fmt: skip
            options = options_of(9)
            run = Results.of(made, options, 0)
            run.target = "127.0.0.1:9990"
            client2.finish_run(run, options)
            client2.notice(run, options)
            self.assertEqual(run.silent_servers, silent, answered)
            for name in silent:
                words = f"{name} answered nobody: is it running?"
                self.assertIn(words, run.notices[0])
            options.demo = True  # it has other ports where a usual one is taken
            client2.finish_run(run, options)
            self.assertEqual(run.silent_servers, [], answered)

    def test_in_flight_is_never_more_than_the_clients(self) -> None:
        reset = Outcome("reset", text="r")
        made = [exchange(k * MS + c, (k + 1) * MS - 9 + c, client=c,
                         outcome=reset if k % 3 else GOOD)
                for k in range(200) for c in range(1, 31)]  # fmt: skip
        made.append(
            exchange(7, 10**9, client=31, outcome=Outcome("connect", text="no"))
        )
        run = results_of(made, 31, "--messages", 200, "--report", "x.html")
        flight, most = 0, 0
        for things in run.events.by_slice().values():
            flight += things["sent"] - things["ended"]
            most = max(most, flight)
        self.assertLessEqual(most, 30)
        self.assertEqual(flight, 0)

    def test_a_moment_is_written_with_its_fraction_and_read_back(self) -> None:
        text = client2.format_utc(1_795_790_000.25)
        self.assertEqual(text, "2026-11-27T14:33:20.250000Z")
        self.assertEqual(client2.parse_utc(text), 1_795_790_000.25)
        self.assertEqual(client2.parse_utc("2026-11-27T14:33:20Z"), 1_795_790_000)


class Scales(unittest.TestCase):
    """From values to points on a drawing."""

    def test_a_logarithmic_scale_spaces_decades_evenly(self) -> None:
        scale = Scale(1, 10_000, 0, 400, log=True)
        points = [scale(v) for v in (1, 10, 100, 10_000)]
        for point, expected in zip(points, (0, 100, 200, 400), strict=True):
            self.assertAlmostEqual(point, expected)

    def test_ticks_are_round_and_inside(self) -> None:
        self.assertEqual(Scale(0, 10, 0, 1).ticks(), [0, 2, 4, 6, 8, 10])
        self.assertEqual(Scale(8, 120, 0, 1, log=True).ticks()[:4], [10, 20, 50, 100])

    def test_a_narrow_logarithmic_scale_has_ticks_at_even_steps(self) -> None:
        ticks = Scale(21 * MS, 36 * MS, 0, 1, log=True).ticks()
        self.assertEqual(ticks, [v * MS for v in (25, 30, 35)])
        ticks = Scale(20.2 * MS, 27.8 * MS, 0, 1, log=True).ticks()
        self.assertEqual(ticks, [v * MS for v in (22, 24, 26)])


class TheVerdict(unittest.TestCase):
    """A run that measured its own client more than the server says so."""

    def made(self, wake: int = 100_000) -> list[Exchange]:
        return [exchange(k * MS, k * MS + 900_000, seen=k * MS + 900_000 + wake)
                for k in range(1, 101)]  # fmt: skip

    def judged(self, made: list[Exchange], *argv: object, **more: Any) -> Results:
        """Return a run with something changed before it is judged."""
        argv, rate = argv or (1, "--messages", 100), more.pop("rate", 0.0)
        run, options = results_of(made, *argv, rate=rate), options_of(*argv, rate=rate)
        for name, value in more.items():
            setattr(run, name, value)
        run.reasons.clear()
        client2.judge(run, options)
        return run

    def test_a_quiet_run_is_valid(self) -> None:
        found = self.judged(self.made())
        self.assertEqual((found.verdict, found.reasons), ("valid", []))

    def test_reasons_to_doubt(self) -> None:
        cases: dict[str, dict[str, object]] = {
            "stood still for 0.05 s, 50%": {"still_s": {0: 0.01, 1: 0.05}},
            "clock was stepped": {"clock_step_ns": 3_600 * 10**9},
            "worker process died": {"lost": 5},
            "left over on 3 connections": {"left_over": 3},
            "most direct exchanges failed": {"direct_failed": 5},
            "had no kernel timestamp": {"unstamped": 50},
            "nothing was confirmed": {"confirmed": 0},
            "replies came before their messages were sent": {
                "examples": {("mismatch", "the reply came before its message"): ["x"]}
            },
            "bytes were left over after a reply": {
                "examples": {("mismatch", "2 bytes left over after it"): ["x"]}
            },
        }
        for words, change in cases.items():
            with self.subTest(words):
                found = self.judged(self.made(), **change)
                self.assertEqual(found.verdict, "doubtful")
                self.assertIn(words, found.reasons[0])

    def test_only_what_can_be_seen_here_is_said_to_be_checked(self) -> None:
        run = results_of([exchange(1, MS)])
        self.assertIn("client2 did not stand still", client2.checks_of(run))
        with mock.patch.object(signal, "SIGCONT"):
            del signal.SIGCONT  # as on Windows
            self.assertNotIn("stand still", client2.checks_of(run))

    def test_standing_still_for_less_than_a_twentieth_is_none(self) -> None:
        found = self.judged(self.made(), wall_s=10.0, still_s={0: 0.4})
        self.assertEqual(found.reasons, [])

    def test_ports_that_ran_out_are_a_reason_that_clears_the_target(self) -> None:
        words = "local ports of this machine ran out"
        made = [*self.made(), exchange(5, 9, outcome=Outcome("local", text=words))]
        (reason,) = self.judged(made).reasons
        self.assertIn(words, reason)
        self.assertIn("not the target's failure", reason)

    def test_clients_that_mostly_work_themselves_are_a_reason(self) -> None:
        made = [
            exchange(k * MS, k * MS + 9, seen=k * MS + 500_000) for k in range(1, 101)
        ]
        found = self.judged(made, cpu_s={0: 0.09}, wall_s=0.1)
        self.assertIn("(Little's law)", found.reasons[0])
        # The same with an idle processor: other processes had it.
        self.assertEqual(self.judged(made, cpu_s={0: 0.01}, wall_s=0.1).reasons, [])

    def test_busy_clients_are_named_whatever_was_sent(self) -> None:
        made = [
            exchange(k * MS + 9, k * MS + MS, due=1 + k * MS // 2) for k in range(100)
        ]
        argv = (2, "--rate", 2000, "--messages", 50)
        found = self.judged(made, *argv, rate=2000)
        self.assertRegex(
            found.reasons[0],
            r"all 2 clients were busy when 9\d% of the messages were due: response",
        )
        early = made[:33]
        found = self.judged(early, *argv, rate=2000)
        self.assertIn("33% were sent", found.reasons[0])

    def test_refused_connects_are_not_busy_clients(self) -> None:
        refused = Outcome("connect", text="connection refused")
        made = [exchange(k * MS, k * MS + 5, outcome=refused) for k in range(1, 50)]
        made += self.made()[:10]
        found = self.judged(made, 2, "--rate", 1000, "--messages", 50, rate=1000)
        self.assertIn("the clients were waiting after failures", found.reasons[0])

    def test_a_schedule_that_was_not_kept_is_a_reason(self) -> None:
        argv = (2, "--rate", 1000, "--messages", 50)
        late = distribution([20 * MS] * 100)
        for made, change, words in (
            (self.made(), {}, None),
            (self.made()[:80], {}, "sent 80% of the 100 messages planned: client2"),
            (self.made(), {"send_delay": late}, "client2 sent 20.0 ms late at p99"),
        ):
            with self.subTest(words):
                found = self.judged(made, *argv, rate=1000, **change).reasons
                self.assertEqual(len(found), 1 if words else 0, found)
                self.assertIn(words or "", str(found))

    def test_what_else_a_run_showed_is_a_notice(self) -> None:
        delayed = [exchange(k * MS, k * MS + (41 * MS if k % 5 else MS // 2))
                   for k in range(1, 101)]  # fmt: skip
        slow = [exchange(k * MS, k * MS + 9, connect=1_010 * MS) for k in (1, 2)]
        some = [exchange(k * MS, k * MS + (41 * MS if k % 5 == 0 else MS // 2))
                for k in range(1, 101)]  # fmt: skip
        for made, words in (
            (self.made(), None),
            (some, "20% of replies took about 40 ms"),
            (delayed, None),  # so long took the median, too: a server's own delay
            (slow, "2 connects took 1 s or longer: SYN sent again"),
        ):
            with self.subTest(words):
                found = results_of(made, 1, "--messages", len(made)).notices
                self.assertEqual(len(found), 1 if words else 0, found)
                self.assertIn(words or "", str(found))

    def test_a_split_by_chance_is_told_from_an_uneven_one(self) -> None:
        for counts, words in (
            ((34, 33, 33), "split evenly"),
            ((40, 30, 30), "as chance would"),
            ((80, 10, 10), "unevenly"),
        ):
            with self.subTest(counts):
                run = Results()
                for name, count in zip("abc", counts, strict=True):
                    run.servers[name] = ServerResults(connections=count)
                self.assertIn(words, client2.split_words(run))

    def test_the_knee_is_named(self) -> None:
        def run(rate: float, confirmed: int, *reasons: str) -> Results:
            return Results(rate=rate, confirmed=confirmed, planned=round(rate),
                           wall_s=1.0, reasons=list(reasons))  # fmt: skip

        runs = [run(100, 100), run(400, 399), run(200, 200), run(800, 512)]
        self.assertEqual(
            client2.knee_words(runs),
            "the knee: the target holds 400/s; at 800/s it confirmed 512/s",
        )
        self.assertIn("all of these", client2.knee_words(runs[:2]))
        self.assertIn("none of these", client2.knee_words([run(5, 1), run(9, 1)]))
        for least, knee in ((100, 800), (50, None)):  # a rate beyond one not held
            document = client2.document_of([run(100, least), run(800, 800)], [])
            self.assertEqual(document["knee"], knee)

    def test_a_queue_that_is_left_at_the_schedules_end_is_beyond_the_knee(self) -> None:
        # 1,100 messages in 20 s; the last ones were answered up to 2.9 s later.
        over = Results(rate=55, confirmed=1100, planned=1100, wall_s=22.9)
        over.response_time.extend([2_900 * MS])
        # By chance Poisson drew fewer, and the last one was due early: no queue.
        calm = Results(rate=10, confirmed=180, planned=180, wall_s=20)
        calm.response_time.extend([200 * MS])
        self.assertEqual(
            client2.knee_words([calm, over]),
            "the knee: the target holds 10.0/s; at 55.0/s it confirmed 48.0/s",
        )


class TheReport(unittest.TestCase):
    """The page, from results alone."""

    def page(self, made: list[Exchange], *argv: object, rate: float = 0) -> str:
        run = results_of(made, *argv, "--report", "run.html", rate=rate)
        return client2.render_report([run], [], "", "")

    def test_more_exchanges_than_dots_make_a_heat_map(self) -> None:
        made = [exchange(k * MS, k * MS + 10**5) for k in range(1, 9001)]
        page = self.page(made, 1, "--messages", 9000)
        self.assertIn("the darker a field", page.lower())
        self.assertEqual(page.count("<svg"), 4)
        self.assertLess(len(page.encode()), 500_000)

    def test_a_reply_of_no_server_has_its_dot_beside_those_of_named_ones(self) -> None:
        made = [exchange(1, MS), exchange(MS, 2 * MS, outcome=GOOD._replace(server=""))]
        page = self.page(made, 1, "--messages", 2, "--any-reply")
        self.assertIn('class="dots square c1"', page)

    def test_twelve_servers_have_twelve_colours(self) -> None:
        made = [exchange(k * MS, k * MS + 10**5, client=k,
                         outcome=GOOD._replace(server=str(9000 + k % 12)))
                for k in range(1, 25)]  # fmt: skip
        page = self.page(made, 24)
        for k in range(12):
            self.assertIn(f'"t{k}"', page)

    def test_the_page_says_what_speaks_against_the_run(self) -> None:
        run = results_of([exchange(1, MS)], 1, "--report", "run.html")
        run.reasons, run.notices = ["client2 <stood> still"], ["9992 answered nobody"]
        page = client2.render_report([run], [], "", "exit 0")
        self.assertIn("<li>client2 &lt;stood&gt; still<li>9992 answered nobody", page)
        self.assertIn("<b>Verdict: doubtful. exit 0</b>", page)

    def test_in_an_open_loop_all_goes_by_response_time(self) -> None:
        made = [exchange(k * MS + 10**9, k * MS + 10**9 + 400_000, due=k * MS)
                for k in range(1, 400)]  # fmt: skip
        page = self.page(made, 9, "--rate", 1000, "--messages", 50, rate=1000)
        self.assertIn("<b>1.00 s</b><small>response time p50</small>", page)
        self.assertIn("one exchange's response time", page)

    def test_a_report_can_be_read_back(self) -> None:
        run = results_of([exchange(1, MS)], 1, "--message", "</script>")
        run.command = ["client2.py", "--message", "</script>"]
        page = client2.render_report([run], [], "", "")
        with mock.patch.object(Path, "read_text", return_value=page):
            (found,) = client2.read_results("run.html")
        ours, theirs = run.as_json(), found.as_json()
        self.assertEqual(theirs | {"notices": []}, ours | {"notices": []})


if __name__ == "__main__":
    unittest.main()
