"""The arithmetic of the benchmark, and its short form; no figure is judged here."""

from __future__ import annotations

import subprocess
import sys
import unittest
from pathlib import Path

from tests.bench import figures, readme
from tests.bench.machine import Cpu
from tests.bench.rows import ROWS
from tests.bench.truth import command, ranges, tenths
from tests.bench.truth.system import Figure
from tests.support import THOROUGH

TOP = Path(__file__).resolve().parents[1]
SHORT_DEADLINE_S = 300

REDIS_BENCHMARK_CSV = (
    '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms",'
    '"p95_latency_ms","p99_latency_ms","max_latency_ms"\n'
    '"PING_INLINE","68965.52","0.385","0.120","0.367","0.487","0.895","2.871"\n'
)
IPERF3_JSON = """{"start": {}, "intervals": [], "end": {"streams": [],
 "sum_sent": {"seconds": 1.001217, "bytes": 2553282560, "retransmits": 5},
 "sum_received": {"seconds": 1.001881, "bytes": 2553282000,
                  "bits_per_second": 20387910819.7}}}"""
IPERF3_ERROR = '{"start": {}, "error": "the server is busy running a test"}'
STAT = (
    "4242 (a (b) c) S 17 4242 4242 0 -1 4194560 950 0 0 0 120 45 7 3 20 0 9 0"
    " 123456 1000 200 18446744073709551615\n"
)


class RatioTest(unittest.TestCase):
    """Ratios, targets and percentiles."""

    def test_each_round_is_divided_by_its_own_neighbour_before_the_median(self) -> None:
        found = figures.ratio([10.0, 40.0, 90.0], [10.0, 20.0, 30.0])
        self.assertEqual(found, figures.Ratio(median=2.0, low=1.0, high=3.0))

    def test_an_even_number_of_rounds_takes_the_middle_of_two(self) -> None:
        found = figures.ratio([1.0, 4.0], [1.0, 2.0])
        self.assertEqual(found, figures.Ratio(median=1.5, low=1.0, high=2.0))

    def test_a_round_that_one_side_lacks_is_left_out(self) -> None:
        found = figures.ratio([6.0, 8.0], [3.0])
        self.assertEqual(found, figures.Ratio(median=2.0, low=2.0, high=2.0))

    def test_nothing_measured_has_no_ratio(self) -> None:
        self.assertIsNone(figures.ratio([], [1.0]))
        self.assertIsNone(figures.ratio([1.0], [0.0]))

    def test_a_target_is_reached_at_its_very_limit(self) -> None:
        for value, target, expected in (
            (2.0, "≥ 2", True),
            (1.99, "≥ 2", False),
            (1.7, "≤ 1.7", True),
            (1.71, "≤ 1.7", False),
            (1.0, "", None),
        ):
            with self.subTest(value=value, target=target):
                self.assertIs(figures.reached(value, target), expected)

    def test_percentiles_are_by_nearest_rank(self) -> None:
        ordered = [float(n) for n in range(1, 11)]
        self.assertEqual(figures.nearest_rank(ordered, 50), 5.0)
        self.assertEqual(figures.nearest_rank(ordered, 99), 10.0)
        self.assertEqual(figures.nearest_rank([7.0], 50), 7.0)


class ParsingTest(unittest.TestCase):
    """What the programs of others print."""

    def test_redis_benchmark_figures_come_in_seconds(self) -> None:
        found = figures.parse_redis_benchmark(REDIS_BENCHMARK_CSV)
        self.assertEqual(found["rps"], 68965.52)
        self.assertAlmostEqual(found["p50"], 0.000367)
        self.assertAlmostEqual(found["p99"], 0.000895)
        self.assertEqual(
            sorted(found), ["avg", "max", "min", "p50", "p95", "p99", "rps"]
        )

    def test_redis_benchmark_that_could_not_connect_is_an_error(self) -> None:
        said = "Could not connect to Redis at 127.0.0.1:1: Connection refused\n"
        with self.assertRaisesRegex(ValueError, "Connection refused"):
            figures.parse_redis_benchmark(said)

    def test_iperf3_counts_what_was_received(self) -> None:
        found = figures.parse_iperf3(IPERF3_JSON)
        self.assertEqual(found, {"bytes": 2553282000.0, "seconds": 1.001881})

    def test_iperf3_that_failed_is_an_error_in_its_words(self) -> None:
        with self.assertRaisesRegex(ValueError, "busy running a test"):
            figures.parse_iperf3(IPERF3_ERROR)


class CpuTest(unittest.TestCase):
    """CPU time of a process and its children, as /proc has it."""

    def test_stat_line_adds_children_that_ended_and_survives_any_name(self) -> None:
        self.assertEqual(figures.parse_stat(STAT), ("a (b) c", 17, 127, 48))

    def test_family_has_grandchildren_and_no_strangers(self) -> None:
        parents = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1}
        self.assertEqual(sorted(figures.family(parents, 10)), [10, 11, 12])

    def test_family_of_a_process_that_is_gone_is_empty(self) -> None:
        self.assertEqual(figures.family({1: 0}, 10), [])

    def test_cpu_between_two_readings_counts_a_new_worker_from_its_start(self) -> None:
        before = Cpu(2.0, 1.0, {5: ("lb", 2.0, 1.0)})
        after = Cpu(3.5, 1.75, {5: ("lb", 3.0, 1.5), 6: ("lb", 0.5, 0.25)})
        used = after.since(before)
        self.assertEqual((used.user_s, used.system_s, used.total_s), (1.5, 0.75, 2.25))
        self.assertEqual(used.processes, {5: ("lb", 1.0, 0.5), 6: ("lb", 0.5, 0.25)})


class TableTest(unittest.TestCase):
    """The lines on the terminal."""

    def test_line_shows_both_the_ratio_its_spread_and_the_verdict(self) -> None:
        check = figures.Check("CPU, HAProxy", "CPU", "HAProxy", "≤ 1.7", "µs", 1e6)
        line = figures.table_line(check, [30e-6, 34e-6], [20e-6, 17e-6])
        self.assertEqual(
            " ".join(line.split()),
            "CPU, HAProxy 32.0 18.5 µs 1.75 1.50–2.00 ≤ 1.7 NO",
        )

    def test_peer_that_is_not_installed_leaves_a_dash_and_no_verdict(self) -> None:
        check = figures.Check("rate, HAProxy", "rate", "HAProxy", "≥ 1", "/s")
        line = figures.table_line(check, [36_900.4], [])
        self.assertEqual(" ".join(line.split()), "rate, HAProxy 36 900 – /s – ≥ 1 –")

    def test_every_line_of_the_table_fits_the_terminal(self) -> None:
        for row in ROWS:
            for check in row.checks:
                with self.subTest(row=row.name, check=check.title):
                    value = 123_456.0 / check.scale
                    line = figures.table_line(check, [value] * 2, [value] * 2)
                    self.assertLessEqual(len(line), figures.TABLE_COLUMNS)
                    self.assertLessEqual(len(check.title), 38)


class ReadmeTest(unittest.TestCase):
    """The Markdown table of README."""

    def table_of(self, line: readme.Line, ours: float, theirs: float) -> str:
        samples = figures.Samples()
        for row, check in readme.checks_of(line):
            samples.add(row.name, check.ours or row.ours, check.metric, ours)
            metric = check.their_metric or check.metric
            samples.add(row.name, check.against, metric, theirs)
        return readme.table(samples)

    def test_every_line_names_checks_that_there_are(self) -> None:
        for line in readme.LINES:
            self.assertTrue(readme.checks_of(line), line.what)

    def test_line_shows_ratio_spread_and_what_is_to_be_reached(self) -> None:
        self.assertIn(
            "| small messages, 50 kept connections: rate | HAProxy, 1 thread |"
            " 0.75 (0.75–0.75) | ≥ 0.7 |",
            self.table_of(readme.LINES[0], 30.0, 40.0),
        )

    def test_line_that_misses_its_aim_is_marked(self) -> None:
        self.assertIn(
            " 0.50 (0.50–0.50) **missed** | ≥ 0.7 |",
            self.table_of(readme.LINES[0], 20.0, 40.0),
        )

    def test_memory_is_shown_itself_and_marked_beyond_its_limit(self) -> None:
        line = next(line for line in readme.LINES if line.most)
        for ours, shown in (
            (20.5, "20.5 KiB to 3.40 | ≤ 22"),
            (22.1, "22.1 KiB to 3.40 **missed** | ≤ 22"),
        ):
            self.assertIn(f"| {shown} KiB |", self.table_of(line, ours, 3.4))

    def test_lines_of_which_nothing_was_measured_are_left_out(self) -> None:
        self.assertEqual(readme.table(figures.Samples()), readme.HEAD)


class TruthTest(unittest.TestCase):
    """How true the figures are: what is counted, and that it runs."""

    takes_long = True

    def test_share_is_held_against_what_is_to_be_reached(self) -> None:
        for hits, target, missed in (
            (79, "≥ 80 %", True),
            (80, "≥ 80 %", False),
            (3, "≤ 3 %", False),
            (4, "≤ 3 %", True),
            (0, "", False),
        ):
            with self.subTest(hits=hits, target=target):
                self.assertIs(Figure("", hits, 100, target).is_missed, missed)

    def test_figures_of_the_same_thing_make_one_line_of_the_table(self) -> None:
        found = [
            Figure("a server is named", 4, 40, "≤ 3 %", "none slower", "9 s"),
            Figure("another thing", 1, 200),
            Figure("a server is named", 38, 40, "≥ 95 %", "one slower"),
        ]
        self.assertEqual(
            command.table(found).splitlines()[2:],
            [
                "| a server is named: none slower (9 s) / one slower"
                " | 10 % **missed** / 95 % | 40 | ≤ 3 % / ≥ 95 % |",
                "| another thing | 0.5 % | 200 |  |",
            ],
        )

    def test_range_holds_its_ends_and_no_range_holds_nothing(self) -> None:
        self.assertTrue(tenths.holds((100.0, 200.0), 200.9))
        self.assertFalse(tenths.holds((100.0, 200.0), 202.0))
        self.assertFalse(tenths.holds(None, 100.0))

    def test_settings_have_every_mode_with_every_number_of_clients(self) -> None:
        some = {(s.mode, s.clients) for s in ranges.some_settings()}
        self.assertEqual(len(some), 12)
        self.assertEqual(len(ranges.all_settings()), 48)
        busy = sum(setting.busy for setting in ranges.some_settings())
        slow = sum(bool(setting.delay) for setting in ranges.some_settings())
        self.assertEqual((busy, slow), (6, 6))

    @unittest.skipUnless(sys.platform == "linux", "needs /proc and SIGSTOP (Linux)")
    @unittest.skipUnless(THOROUGH, "takes half a minute: set LAB_LONG=1")
    def test_short_form_measures_each_part_and_what_is_made_up_is_true(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench", "truth", "--short"],
            cwd=TOP,
            capture_output=True,
            text=True,
            timeout=SHORT_DEADLINE_S,
        )
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        lines = done.stdout.splitlines()
        for start in (
            "| 1,200 exchanges made up",
            "| windows of",
            "| three equal servers",
            "| the same run again",
            "| honest runs",
            "| one client",
        ):
            self.assertTrue([ln for ln in lines if ln.startswith(start)], start)
        for line in lines:  # drawn by a seed: no load can change it
            if " made up: " in line:
                self.assertNotIn("missed", line)


if __name__ == "__main__":
    unittest.main()
