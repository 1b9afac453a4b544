"""Breaks of client2.py, in the order of its promises."""

from __future__ import annotations

from tests.breaks import Break

REAL = "tests.test_client2."
FIGURES = REAL + "TheFigures."
TRUTH = "tests.test_client2_truth."
UNITS = "tests.test_client2_units."
RESULTS = UNITS + "TheResults."
HISTOGRAMS = UNITS + "Histograms."
COMPARISONS = UNITS + "Comparisons."

ONE_EXCHANGE = RESULTS + "test_latency_response_time_and_bytes_of_an_exchange"
NEAREST_RANK = UNITS + "PercentilesAreNearestRank"
TEN_PARTS = UNITS + (
    "Tenths.test_ten_parts_of_ten_levels_give_the_least_and_the_greatest"
)
FEW_PARTS = UNITS + "Tenths.test_there_is_none_where_parts_are_too_few"
SLOWER = COMPARISONS + "test_a_slower_server_is_named_with_its_ratio"
FOUR_RUNS = COMPARISONS + "test_four_runs_each_are_compared_by_permutation"
NO_TURNS = COMPARISONS + "test_runs_that_did_not_take_turns_are_said_to_be_so"
RATIOS = COMPARISONS + (
    "test_a_ratio_of_each_part_if_all_are_above_and_enough_for_the_pairs"
)
AGAINST = COMPARISONS + "test_what_speaks_against_a_comparison_is_said"
REASONS = UNITS + "TheVerdict.test_reasons_to_doubt"
WARM_UP = RESULTS + "test_a_warm_up_is_left_out_of_all_figures"
POISSON = UNITS + "TheSchedule.test_poisson_arrivals_are_drawn_from_the_seed"
NUMBERS = UNITS + "Messages.test_numbers_and_lines_of_a_file"
PAGE = REAL + "Files.test_a_report_is_one_file_without_script_or_outside_resource"
FULL = REAL + "Files.test_a_file_that_cannot_be_written_after_all_loses_no_summary"

METRICS = [
    Break(
        "latency begins when a message is handed to the kernel, not when it was due",
        "[e.first - e.sent for e in mine]",
        "[e.first - e.due for e in mine]",
        (ONE_EXCHANGE,),
    ),
    Break(
        "latency ends with the kernel's stamp of the reply",
        "return data, seconds * 1_000_000_000 + nanos, seen",
        "return data, 0, seen",
        (FIGURES + "test_the_output_says_where_arrival_times_come_from",),
    ),
    Break(
        "the stamp is the kernel's in many alike exchanges, too",
        "last = seconds * 1_000_000_000 + nanos",
        "last = seen",
        (FIGURES + "test_a_lone_client_that_waits_awake_first_measures_the_same",),
    ),
    Break(
        "latency ends with the reply's first byte",
        "return sent, first, last, seen",
        "return sent, last, last, seen",
        (FIGURES
         + "test_latency_ends_with_the_first_byte_response_time_with_the_last",),
    ),
    Break(
        "response time runs from the moment the message was due",
        "map(minus, last, due)",
        "map(minus, last, sent)",
        (ONE_EXCHANGE,),
    ),
    Break(
        "response time ends with the reply's last byte",
        "map(minus, last, due)",
        "map(minus, first, due)",
        (ONE_EXCHANGE,),
    ),
    Break(
        "the moment due is the schedule's place, however late it was sent",
        "self._attempt(due, late)",
        "self._attempt(0, late)",
        (FIGURES + "test_a_stall_of_a_second_is_not_hidden_by_waiting_clients",),
    ),
    Break(
        "throughput is of message and reply bytes",
        "total = self.bytes_sent + self.bytes_received",
        "total = self.bytes_received",
        (FIGURES + "test_counts_and_bytes_add_up",),
    ),
    Break(
        "a failed exchange has no part in latency",
        "for e in made if e.outcome.name == CONFIRMED]",
        "for e in made if e.outcome.name != 'connect']",
        (RESULTS + "test_failures_are_counted_and_left_out_of_latency",),
    ),
    Break(
        "a duration is not negative when the clock is set back",
        "values, least = [max(0, value) for value in values], 0",
        "values, least = list(values), least",
        (RESULTS + "test_a_clock_that_is_set_back_makes_no_negative_duration",),
    ),
    Break(
        "a client that connected late was not busy",
        "map(minus, map(minus, map(minus, sent, due), late), connect)",
        "map(minus, map(minus, sent, due), late)",
        (UNITS + "Connections.test_a_connect_time_is_no_busy_client",),
    ),
    Break(
        "with --reconnect and --rate a client connects when its message is due",
        "not (o.ramp or (o.rate and o.reconnect))",
        "not o.ramp",
        (TRUTH + "TheClock"
         ".test_with_reconnect_a_client_connects_when_its_message_is_due",),
    ),
    Break(
        "a schedule lasts to its end",
        "total.wall_s = max(total.wall_s, end_s - total.warmup_s)",
        "pass",
        (RESULTS + "test_a_schedule_lasts_to_its_end_not_to_the_last_reply",),
    ),
]  # fmt: skip

PERCENTILES = [
    Break(
        "percentiles are nearest rank, of samples",
        "sorted(self.values)[rank - 1]",
        "sorted(self.values)[min(rank, self.count - 1)]",
        (NEAREST_RANK,),
    ),
    Break(
        "percentiles are nearest rank, of a histogram",
        "if rank <= 0:",
        "if rank < 0:",
        (NEAREST_RANK,),
    ),
    Break(
        "a rank is not one higher for a float's last digit",
        "rank = max(1, math.ceil(round(p * self.count, 6)))",
        "rank = max(1, math.ceil(p * self.count))",
        (NEAREST_RANK,),
    ),
    Break(
        "p90 is null below 29 exchanges, p95 59, p99 299, p99.9 2,995",
        "math.ceil(math.log(0.05) / math.log(p))",
        "math.ceil(math.log(0.06) / math.log(p))",
        (NEAREST_RANK,),
    ),
    Break(
        "p50 is given of any number of exchanges",
        "1 if p <= 0.5 else",
        "5 if p <= 0.5 else",
        (NEAREST_RANK,),
    ),
    Break(
        "a histogram has three significant digits",
        "value.bit_length() - 11",
        "value.bit_length() - 10",
        (HISTOGRAMS + "test_known_indices_and_their_values",),
    ),
    Break(
        "hdr is the compressed form of version 2",
        "0x1C849314, len(body)",
        "0x1C849303, len(body)",
        (HISTOGRAMS + "test_text_starts_as_every_v2_histogram_and_comes_back",),
    ),
    Break(
        "hdr says three digits and a unit of 1 ns",
        "0, 3, 1, highest, 1.0)",
        "0, 2, 1, highest, 1.0)",
        (HISTOGRAMS + "test_text_starts_as_every_v2_histogram_and_comes_back",),
    ),
    Break(
        "other tools' histograms are read",
        "position += -number if number < 0 else 1",
        "position += 1 - number if number < 0 else 1",
        (HISTOGRAMS + "test_published_histograms_are_read",),
    ),
    Break(
        "memory is bounded, however many exchanges there are",
        "self.count > EXACT_LIMIT",
        "self.count < 0",
        (HISTOGRAMS
         + "test_beyond_the_limit_memory_is_bounded_and_figures_stay_close",),
    ),
    Break(
        "memory is bounded, however long a run is",
        ">= MOST_SLICES:",
        ">= 10**9:",
        (UNITS + "TimeInSlices.test_a_day_fits_and_nothing_is_lost",),
    ),
    Break(
        "a merge keeps the least value of both",
        "self.minimum = min(self.minimum, ",
        "self.minimum = max(0, ",
        (HISTOGRAMS + "test_a_merge_is_as_good_as_one_run",),
    ),
]  # fmt: skip

TENTHS = [
    Break(
        "tenths go from the least to the greatest of the parts",
        "return (min(values), max(values)) if",
        "return (sorted(values)[1], max(values)) if",
        (TEN_PARTS,),
    ),
    Break(
        "JSON has tenths as [low, high]",
        "[round(t[0]), round(t[1])]",
        "[round(t[1]), round(t[0])]",
        (TEN_PARTS,),
    ),
    Break(
        "there are no tenths where parts have too few exchanges",
        "* (1 - p) <= PARTS - 1e-9",
        "* (1 - p) <= 1",
        (FEW_PARTS,),
    ),
    Break(
        "there are no tenths of fewer than six parts",
        "if len(values) >= FEWEST_PARTS else None",
        "if values else None",
        (FEW_PARTS,),
    ),
    Break(
        "the parts are of equal number, not of equal time",
        "            before += size\n",
        "            before += total / len(sizes)\n",
        (UNITS + "TimeInSlices",),
    ),
    Break(
        "the parts follow one another in time, whoever reports first",
        "self.slices.add(moments, levels)",
        "self.slices.add(sorted(moments, key=hash), sorted(levels))",
        (UNITS + "Tenths.test_the_order_in_which_threads_report_does_not_matter",),
    ),
    Break(
        "merged runs join their parts",
        "self.read[name] = self.read.get(name, []) + values",
        "self.read[name] = values",
        (UNITS + "Tenths.test_a_merge_joins_the_parts_of_both_runs",),
    ),
    Break(
        "no range is called a confidence",
        "lowest and highest of ten tenths",
        "95 % confidence of ten tenths",
        (TRUTH + "TheOutput.test_no_word_claims_a_confidence",),
    ),
]  # fmt: skip

SERVERS = [
    Break(
        "a server is slower only if it is so in every part of the run",
        "enough and min(ratios) > LEAST_IN_PART",
        "enough and max(ratios) > LEAST_IN_PART",
        (RATIOS,),
    ),
    Break(
        "so few parts that they agree by chance show nothing",
        "2 * 0.5 ** len(ratios) * pairs <= CHANCE",
        "2 * 0.5 ** len(ratios) <= CHANCE",
        (RATIOS,),
    ),
    Break(
        "a server is slower only by more than connections differ",
        "chance(lines) > CHANCE_OF_CONNECTIONS",
        "chance(lines) > 1",
        (COMPARISONS
         + "test_servers_that_differ_no_more_than_connections_do_are_equal",),
    ),
    Break(
        "less than 5 % of difference is not worth a sentence",
        "ratio >= LEAST_RATIO",
        "ratio >= 1",
        (COMPARISONS + "test_less_than_5_percent_is_not_worth_a_sentence",),
    ),
    Break(
        "a server that was not there in all tenths is not compared",
        "if None in parts or not parts]",
        "if not parts]",
        (COMPARISONS
         + "test_a_server_that_was_not_there_all_the_time_is_not_compared",),
    ),
    Break(
        "with --reconnect servers are compared by tenths alone",
        "if not options.reconnect:",
        "if True:",
        (COMPARISONS + "test_new_connections_are_compared_by_tenths_alone",),
    ),
    Break(
        "the sentence has the least and the greatest ratio of a tenth",
        "(min(ratios), max(ratios))",
        "(ratio, ratio)",
        (SLOWER,),
    ),
    Break(
        "JSON says which server is slower",
        '{"slower": rows,',
        '{"slower": rows[1:],',
        (SLOWER,),
    ),
    Break(
        "an uneven split of connections is told from chance",
        "if odds < 0.05 else",
        "if odds < 0.9 else",
        (UNITS + "TheVerdict.test_a_split_by_chance_is_told_from_an_uneven_one",),
    ),
    Break(
        "replies are counted to the server that says its name",
        "[e for e in good if e.outcome.server == name]\n        for",
        "good\n        for",
        (FIGURES + "test_the_servers_are_told_apart",),
    ),
    Break(
        "servers are in the order of their numbers",
        "key=lambda name: int(name or 0)",
        "key=str",
        (RESULTS + "test_servers_are_listed_by_their_numbers",),
    ),
]  # fmt: skip

BASELINE = [
    Break(
        "one run each is called slower only if all parts are",
        '"slower" if low > 1.1 else',
        '"slower" if high > 1.1 else',
        (COMPARISONS
         + "test_one_run_each_is_called_different_only_if_all_parts_are",),
    ),
    Break(
        "fewer than four runs on a side tell nothing",
        "if min(len(ours), len(theirs)) < 4:\n        return",
        "if min(len(ours), len(theirs)) < 2:\n        return",
        (FOUR_RUNS,),
    ),
    Break(
        "equal runs are not told apart by permutation",
        "if odds > CHANCE else",
        "if odds > 1 else",
        (FOUR_RUNS,),
    ),
    Break(
        "runs that are slower are not called faster",
        '"slower" if a > b else "faster"',
        '"slower" if a < b else "faster"',
        (FOUR_RUNS,),
    ),
    Break(
        "a permutation counts the order that was found, too",
        "(1 + as_much) / (1 + SHUFFLES)",
        "as_much / (1 + SHUFFLES)",
        (COMPARISONS
         + "test_chance_of_groups_that_differ_and_of_those_that_do_not",),
    ),
    Break(
        "turns are seen by the moments of starting",
        "changes >= min(len(ours), len(theirs))",
        "changes >= 1",
        (COMPARISONS + "test_turns_are_seen_by_the_moments_of_starting",),
    ),
    Break(
        "runs that did not take turns are said to be so",
        "if not take_turns(*starts):",
        "if not starts:",
        (NO_TURNS,),
    ),
    Break(
        "a baseline of another configuration is said to be so",
        'in ("clients", "rate", "arrivals", "load"):',
        'in ("rate", "arrivals", "load"):',
        (AGAINST,),
    ),
    Break(
        "a baseline that was interrupted is said to be so",
        "any(run.interrupted for run in theirs)",
        "any(not run for run in theirs)",
        (AGAINST,),
    ),
    Break(
        "a baseline that was doubtful is said to be so",
        "any(run.reasons for run in theirs)",
        "any(not run for run in theirs)",
        (AGAINST,),
    ),
    Break(
        "a baseline's file that is given twice is said to be so",
        "for run in theirs}) < len(theirs)",
        "for run in theirs}) < 1",
        (AGAINST,),
    ),
    Break(
        "--baseline takes several files",
        "for path in options.baseline for run",
        "for path in options.baseline[:1] for run",
        (REAL + "Limits.test_a_baseline_can_be_several_runs",),
    ),
]  # fmt: skip

BREAKS: list[Break] = [*METRICS, *PERCENTILES, *TENTHS, *SERVERS, *BASELINE]
