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
CONNECTIONS = UNITS + "Connections."
JUDGED = UNITS + "TheVerdict."
SCHEDULE = UNITS + "TheSchedule."
MESSAGES = UNITS + "Messages."
WORKERS = UNITS + "Workers."
SOCKETS = UNITS + "Connections."
ASKED = UNITS + "Limits."
SEEN = REAL + "TheScreen."
DEMO = "tests.test_system.TheDemo."
EXCHANGES = REAL + "TheExchange."
FAILURE = REAL + "Failures."
CLOCK = TRUTH + "TheClock."
REPLY = TRUTH + "TheReply."
OUTPUT = TRUTH + "TheOutput."

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
REASONS = JUDGED + "test_reasons_to_doubt"
WARM_UP = RESULTS + "test_a_warm_up_is_left_out_of_all_figures"
POISSON = SCHEDULE + "test_poisson_arrivals_are_drawn_from_the_seed"
NUMBERS = MESSAGES + "test_numbers_and_lines_of_a_file"
MERGE = UNITS + "Merging.test_a_merge_says_what_was_wrong_with_any_of_its_runs"
KEYS = FIGURES + "test_the_document_has_exactly_the_promised_keys"
TERMINALS = OUTPUT + (
    "test_a_dumb_terminal_gets_no_redrawn_line_and_a_narrow_one_no_trail"
)
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
        (
            FIGURES
            + "test_latency_ends_with_the_first_byte_response_time_with_the_last",
        ),
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
        "connect time is part of neither latency nor response time",
        "due or sent, *times",
        "due or began, *times",
        (SOCKETS + "test_connect_time_is_part_of_neither_figure",),
    ),
    Break(
        "connect time is that of TCP's connect",
        "took = max(1, time_ns() - began)",
        "took = max(1, time_ns())",
        (SOCKETS + "test_connect_time_is_part_of_neither_figure",),
    ),
    Break(
        "what failed is not part of the rate",
        "return self.confirmed / self.wall_s",
        "return (self.confirmed + self.failed) / self.wall_s",
        (RESULTS + "test_failures_are_counted_and_left_out_of_latency",),
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
        (
            TRUTH + "TheClock"
            ".test_with_reconnect_a_client_connects_when_its_message_is_due",
        ),
    ),
    Break(
        "a schedule lasts to its end",
        "total.wall_s = max(total.wall_s, end_s - total.warmup_s)",
        "pass",
        (RESULTS + "test_a_schedule_lasts_to_its_end_not_to_the_last_reply",),
    ),
]

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
        (
            HISTOGRAMS
            + "test_beyond_the_limit_memory_is_bounded_and_figures_stay_close",
        ),
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
]

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
        "in order of time: lowest and highest",
        "95 % confidence: lowest and highest",
        (TRUTH + "TheOutput.test_no_word_claims_a_confidence",),
    ),
]

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
        (
            COMPARISONS
            + "test_servers_that_differ_no_more_than_connections_do_are_equal",
        ),
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
        (
            COMPARISONS
            + "test_a_server_that_was_not_there_all_the_time_is_not_compared",
        ),
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
]

BASELINE = [
    Break(
        "one run each is called slower only if all parts are",
        '"slower" if low > 1.1 else',
        '"slower" if high > 1.1 else',
        (COMPARISONS + "test_one_run_each_is_called_different_only_if_all_parts_are",),
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
        (COMPARISONS + "test_chance_of_groups_that_differ_and_of_those_that_do_not",),
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
]

VERDICT = [
    Break(
        "a client that stood still makes a run doubtful",
        "still_s > max(STILL_S, STILL_SHARE * r.wall_s)",
        "still_s > 60",
        (REASONS,),
    ),
    Break(
        "standing still for less than a twentieth of the run is no reason",
        "max(STILL_S, STILL_SHARE * r.wall_s)",
        "STILL_S",
        (JUDGED + "test_standing_still_for_less_than_a_twentieth_is_none",),
    ),
    Break(
        "only a stop that ended with SIGCONT is a stop",
        "if any(due <= moment <= come + 0.05 for moment in CONTINUED)",
        "if come > due",
        (UNITS + "Workers.test_a_stop_is_told_from_a_busy_processor",),
    ),
    Break(
        "a clock that was stepped makes a run doubtful",
        "if abs(r.clock_step_ns) > 2_000_000",
        "if -abs(r.clock_step_ns) > 2_000_000",
        (REASONS,),
    ),
    Break(
        "a worker process that died makes a run doubtful",
        "if r.lost:",
        "if r.lost > 9:",
        (REASONS,),
    ),
    Break(
        "replies without a kernel timestamp make a run doubtful",
        "r.unstamped > 0.01 * max(1, r.confirmed)",
        "r.unstamped > max(1, r.confirmed)",
        (REASONS,),
    ),
    Break(
        "a run that confirmed nothing is doubtful",
        "if not r.confirmed:\n        doubt",
        "if r.confirmed < 0:\n        doubt",
        (REASONS,),
    ),
    Break(
        "local ports that ran out make a run doubtful",
        'if outcome == "local":',
        'if outcome == "locally":',
        (JUDGED + "test_ports_that_ran_out_are_a_reason_that_clears_the_target",),
    ),
    Break(
        "replies that came before their messages make a run doubtful",
        'if "came before its message" in words:',
        'if "came before it" in outcome:',
        (REASONS,),
    ),
    Break(
        "bytes left over after a reply make a run doubtful",
        'if "left over" in words:',
        'if "left over" in outcome:',
        (REASONS,),
    ),
    Break(
        "bytes left over on a connection make a run doubtful",
        "if r.left_over:",
        "if r.left_over > 9:",
        (REASONS,),
    ),
    Break(
        "a copy of the last reply is waited for",
        "return bool(self.sock.recv(1))",
        "return False",
        (CONNECTIONS + "test_a_copy_that_comes_after_the_last_reply_is_waited_for",),
    ),
    Break(
        "servers are compared in the run's own parts, whatever came late",
        "server.latency.slices.widen(total.latency.slices.shift)",
        "pass",
        (UNITS + "Comparisons.test_a_late_straggler_takes_no_servers_parts",),
    ),
    Break(
        "--duration: nothing is sent when it is over",
        "while done < most and seen < end:",
        "while done < most and sent < end:",
        (TRUTH + "TheOutput.test_nothing_is_sent_when_time_is_up",),
    ),
    Break(
        "the knee in the document is the one that is named",
        "good = list(itertools.takewhile(held, by_rate(runs)))\n        names",
        "good = [run for run in by_rate(runs) if held(run)]\n        names",
        (UNITS + "TheVerdict.test_the_knee_is_named",),
    ),
    Break(
        "files of their own for --json, --csv, --report",
        "if len(set(files)) < len(files):",
        "if False:",
        (REAL + "BadInput.test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "longer messages are another load",
        "if max(sizes) > 1.1 * min(sizes) and not words:",
        "if False:",
        (UNITS + "Comparisons.test_longer_messages_or_a_warmup_on_one_side_are_said",),
    ),
    Break(
        "the same run twice in a merge",
        "merged.reasons.append(",
        "str(",
        (UNITS + "Merging.test_the_same_run_given_twice_is_said",),
    ),
    Break(
        "bytes left over are looked for when a connection is closed",
        "self.clients.left_over.append(self.number)",
        "pass",
        (TRUTH + "TheVerdict.test_bytes_left_over_after_the_last_reply_are_seen",),
    ),
    Break(
        "direct exchanges that mostly failed make a run doubtful",
        "if r.direct_failed > r.difference.count:",
        "if r.direct_failed > 9 + r.difference.count:",
        (REASONS,),
    ),
    Break(
        "--direct without a server that answered makes a run doubtful",
        "if options.direct and r.confirmed and not pairs:",
        "if options.direct and pairs < 0:",
        (TRUTH + "TheVerdict.test_direct_exchanges_that_fail_are_said",),
    ),
    Break(
        "clients that were all busy make an open loop doubtful",
        "r.backlog_ns > 0.5 * r.response_time.total",
        "r.backlog_ns > 5 * r.response_time.total",
        (JUDGED + "test_busy_clients_are_named_whatever_was_sent",),
    ),
    Break(
        "a schedule that was not kept up with makes an open loop doubtful",
        "elif sent_share < 0.95 and",
        "elif sent_share < 0 and",
        (JUDGED + "test_a_schedule_that_was_not_kept_is_a_reason",),
    ),
    Break(
        "clients that waited after failures are told from busy ones",
        "and r.failed <= 0.05 * r.planned",
        "and r.failed <= r.planned",
        (JUDGED + "test_refused_connects_are_not_busy_clients",),
    ),
    Break(
        "messages that were sent late make an open loop doubtful",
        "late_ns > max(5_000_000, ",
        "late_ns > max(10**12, ",
        (JUDGED + "test_a_schedule_that_was_not_kept_is_a_reason",),
    ),
    Break(
        "clients that mostly work themselves make a run doubtful",
        "works and own > 0.5 * (own + latency)",
        "works and own > 5 * (own + latency)",
        (JUDGED + "test_clients_that_mostly_work_themselves_are_a_reason",),
    ),
    Break(
        "a processor that others took is not client2's own work",
        "if works and own >",
        "if own >",
        (JUDGED + "test_clients_that_mostly_work_themselves_are_a_reason",),
    ),
    Break(
        "JSON and summary have the verdict that the reasons make",
        '"doubtful" if self.reasons else "valid"',
        '"valid"',
        (REASONS,),
    ),
    Break(
        "messages that were not sent are noticed",
        "if r.not_sent and not r.interrupted and not r.lost:",
        "if r.not_sent < 0:",
        (CLOCK + "test_messages_that_were_not_sent_are_counted",),
    ),
    Break(
        "clients that a short run never started are noticed",
        "ended.count(0)",
        "0",
        (CLOCK + "test_clients_that_a_short_run_never_started_are_counted",),
    ),
    Break(
        "a server that answered nobody is named",
        "by_port(set(expected) - set(total.servers))",
        "by_port(set(total.servers) - set(total.servers))",
        (RESULTS + "test_a_server_of_the_usual_three_that_answers_nobody_is_named",),
    ),
    Break(
        "a server that closes after each reply gets the hint of --reconnect",
        "ends and 0 < r.confirmed <= connects:",
        "ends < 0:",
        (REPLY + "test_a_server_that_closes_after_each_reply_gets_the_hint",),
    ),
    Break(
        "a balancer without servers is told from nobody there",
        "r.connected and not r.confirmed and ends == r.failed > 0",
        "r.connected < 0",
        (REPLY + "test_a_balancer_without_servers_is_told_from_nobody_there",),
    ),
    Break(
        "replies that took about 40 ms are noticed",
        "near_40_ms > 0.05 * r.confirmed",
        "near_40_ms > 5 * r.confirmed",
        (JUDGED + "test_what_else_a_run_showed_is_a_notice",),
    ),
    Break(
        "connects whose SYN was sent again are noticed",
        "say(f\"{counted(slow, 'connect')} took 1 s or longer: SYN",
        "str(f\"{counted(slow, 'connect')} took 1 s or longer: SYN",
        (JUDGED + "test_what_else_a_run_showed_is_a_notice",),
    ),
]

LOAD = [
    Break(
        "--warmup S leaves the first seconds out",
        "exchange.due >= start + number * 1e9 - 1e5",
        "exchange.due >= start",
        (WARM_UP,),
    ),
    Break(
        "--warmup Nx leaves each client's first messages out",
        "exchange.number > number",
        "exchange.number > number - 1",
        (WARM_UP,),
    ),
    Break(
        "what --warmup leaves out was not planned",
        "planned = options.planned - total.warmed_up",
        "planned = options.planned",
        (WARM_UP,),
    ),
    Break(
        "the wall time begins after --warmup",
        "wall_ns = total.end_ns - begin_ns",
        "wall_ns = total.end_ns - total.start_ns",
        (WARM_UP,),
    ),
    Break(
        "--rate is of all clients together",
        "at_ns = k * 1e9 / rate",
        "at_ns = k * 1e9 / rate / options.clients",
        (SCHEDULE + "test_even_arrivals_are_as_many_as_rate_and_duration_say",),
    ),
    Break(
        "workers share one schedule",
        "number, None, options.workers)",
        "0, None, options.workers)",
        (SCHEDULE + "test_groups_share_one_schedule",),
    ),
    Break(
        "several rates are run one after the other",
        "for rate in o.rate or [0.0] for",
        "for rate in (o.rate or [0.0])[:2] for",
        (OUTPUT + "test_several_rates_make_a_knee_curve",),
    ),
    Break(
        "the knee lies before the first rate that was not held",
        "itertools.takewhile(held, rated)",
        "filter(held, rated[-1:])",
        (JUDGED + "test_the_knee_is_named",),
    ),
    Break(
        "a rate is held when nearly all was confirmed",
        "HELD_SHARE * max(1, results.planned)",
        "0.5 * max(1, results.planned)",
        (JUDGED + "test_the_knee_is_named",),
    ),
    Break(
        "a rate that leaves a long queue is not held",
        "queue_s <= QUEUE_SHARE * results.wall_s",
        "queue_s <= results.wall_s",
        (JUDGED + "test_a_queue_that_is_left_at_the_schedules_end_is_beyond_the_knee",),
    ),
    Break(
        "--arrivals poisson spaces them at random",
        "dealer.expovariate(rate) * 1e9",
        "1e9 / rate",
        (POISSON,),
    ),
    Break(
        "--seed repeats a run",
        "random.Random(options.seed)",
        "random.Random()",
        (POISSON,),
    ),
    Break(
        "another seed is another run",
        "random.Random(options.seed)",
        "random.Random(1)",
        (POISSON,),
    ),
    Break(
        "the seed that was drawn is printed",
        " (--seed {options.seed})",
        "",
        (SCHEDULE + "test_a_seed_that_was_drawn_is_another_one_and_said",),
    ),
    Break(
        "without --seed each run draws another one",
        "o.seed = random.randrange(10**6)",
        "o.seed = 7",
        (SCHEDULE + "test_a_seed_that_was_drawn_is_another_one_and_said",),
    ),
    Break(
        "--think pauses after each reply",
        "elif options.think and self.done:",
        "elif options.think and self.done < 0:",
        (CLOCK + "test_clients_think_between_messages",),
    ),
    Break(
        "--ramp spreads the clients' starts",
        "int(turn * options.ramp * 1e9)",
        "int(turn * options.ramp * 1e6)",
        (EXCHANGES + "test_ramp_spreads_the_start_of_the_clients",),
    ),
    Break(
        "--duration ends the run",
        "duration * 1e9) or sys.maxsize - start",
        "duration * 3e10) or sys.maxsize - start",
        (CLOCK + "test_a_short_duration_is_kept",),
    ),
    Break(
        "with --duration messages have no limit",
        "(0 if o.duration else 1)",
        "(2 if o.duration else 1)",
        (EXCHANGES + "test_duration_ends_the_run",),
    ),
    Break(
        "--messages is how many each client sends",
        "while not 0 < most <= self.done:",
        "while not 0 < most <= self.done + 1:",
        (EXCHANGES + "test_each_client_says_hello_on_its_own_connection",),
    ),
    Break(
        "all clients are connected before the first message",
        "clients.go.wait()\n        turn",
        "turn",
        (EXCHANGES + "test_all_are_connected_before_the_first_message_is_sent",),
    ),
    Break(
        "--size is of the whole message, newline included",
        "room = options.size - 1",
        "room = options.size",
        (MESSAGES + "test_size_includes_the_newline",),
    ),
    Break(
        "{client} in --message is its number",
        'text.replace(b"{client}", b"%d" % client)',
        'text.replace(b"{client}", b"%d" % number)',
        (NUMBERS,),
    ),
    Break(
        "{message} in --message is its number",
        'text.replace(b"{message}", b"%d" % number)',
        'text.replace(b"{message}", b"%d" % (number - 1))',
        (NUMBERS,),
    ),
    Break(
        "--message @FILE takes the file's lines in turn",
        "options.texts[(number - 1) % len(options.texts)]",
        "options.texts[0]",
        (NUMBERS,),
    ),
    Break(
        "--message may be any bytes",
        "[os.fsencode(",
        "[os.fsencode('Hi') or os.fsencode(",
        (MESSAGES + "test_a_message_of_its_own",),
    ),
    Break(
        "--reconnect makes a connection per message",
        "if self.options.reconnect or connection.has_ended:",
        "if connection.has_ended:",
        (EXCHANGES + "test_reconnect_makes_a_connection_per_message",),
    ),
    Break(
        "--timeout is how long a reply is waited for",
        "self.timeout_s = options, options.timeout",
        "self.timeout_s = options, 5.0",
        (FAILURE + "test_an_answer_that_comes_too_late_is_a_timeout",),
    ),
    Break(
        "--any-reply takes what is no confirmation",
        "(self.any_reply and reply) or",
        "(self.any_reply and match) or",
        (EXCHANGES + "test_any_reply_accepts_what_is_not_a_confirmation",),
    ),
    Break(
        "with --any-reply a reply of several lines ends by silence",
        'return "silence" if self.any_reply and',
        'return "silence" if self.any_reply < 0 and',
        (REPLY + "test_replies_of_several_lines_end_by_silence",),
    ),
    Break(
        "with --any-reply a reply of one line is not waited after",
        "and self.ends_by_silence is not False else",
        "else",
        (REPLY + "test_replies_of_one_line_that_differ_do_not_wait",),
    ),
    Break(
        "with --any-reply the end of file ends a reply",
        "(self.any_reply and reply) or",
        "(self.any_reply and has_end) or",
        (REPLY + "test_a_reply_that_ends_with_its_connection_is_one",),
    ),
    Break(
        "--workers auto is one process per dozen clients",
        "math.ceil(clients / CLIENTS_PER_WORKER)",
        "math.ceil(clients / MANY_CLIENTS_PER_WORKER)",
        (
            WORKERS + "test_auto_is_one_per_dozen_clients"
            "_and_for_very_many_some_per_core",
        ),
    ),
    Break(
        "--workers auto is enough to open all the files",
        "max(enough, math.ceil(clients / most))",
        "enough",
        (WORKERS + "test_auto_is_as_many_as_can_open_the_clients_files",),
    ),
    Break(
        "--workers shares out all clients, each once",
        "1 + o.clients * k // o.workers",
        "1 + o.clients // o.workers * k",
        (EXCHANGES + "test_workers_share_the_clients",),
    ),
    Break(
        "there are never more workers than clients",
        "workers = min(workers, clients)",
        "workers = max(workers, 1)",
        (WORKERS + "test_there_are_never_more_than_clients",),
    ),
    Break(
        "--direct pairs each exchange with one directly",
        "e.first - e.sent - (e.direct or 0)",
        "e.first - e.sent",
        (RESULTS + "test_what_the_balancer_adds_is_the_difference_of_each_pair",),
    ),
    Break(
        "--direct goes to the server that answered",
        "self.options.direct.get(self.connection.server)",
        "next(iter(self.options.direct.values()))",
        (TRUTH + "TheVerdict.test_direct_exchanges_that_fail_are_said",),
    ),
]

FAILURES = [
    Break(
        "a connect that is refused is a failure of its kind",
        'outcome, reason = "connect", say_why(error)',
        'outcome, reason = "send", say_why(error)',
        (FAILURE + "test_a_schedule_counts_connects_that_nobody_answers",),
    ),
    Break(
        "a connect that hangs is a failed connect",
        'outcome, reason = "connect", f"no answer',
        'outcome, reason = "timeout", f"no answer',
        (FAILURE + "test_a_connect_that_hangs_ends_at_the_timeout",),
    ),
    Break(
        "what this machine ran out of is local",
        'outcome, reason = "local"',
        'outcome, reason = "connect"',
        (SOCKETS + "test_what_this_machine_ran_out_of_is_not_the_targets_failure",),
    ),
    Break(
        "what this machine ran out of in an exchange is local, too",
        'return Failed("local"',
        'return Failed("reset"',
        (SOCKETS + "test_what_a_send_or_a_receive_failed_of",),
    ),
    Break(
        "a message that is not taken is a failed send",
        'return Failed("send"',
        'return Failed("timeout" if is_late else "reset"',
        (SOCKETS + "test_a_message_that_nobody_takes_is_a_failed_send",),
    ),
    Break(
        "a reply that does not come in time is a timeout",
        '"timeout" if is_late else "reset"',
        '"reset"',
        (FAILURE + "test_an_answer_that_never_comes_is_a_timeout",),
    ),
    Break(
        "a reset is a reset",
        '"timeout" if is_late else "reset"',
        '"timeout" if is_late else "closed"',
        (FAILURE + "test_a_reset_is_a_reset",),
    ),
    Break(
        "an end instead of a reply is closed",
        'raise Failed("closed"',
        'raise Failed("reset"',
        (FAILURE + "test_an_end_instead_of_an_answer_is_closed",),
    ),
    Break(
        "a reply must repeat the message",
        "(match and body == self.message)",
        "match",
        (FAILURE + "test_one_changed_byte_is_a_mismatch",),
    ),
    Break(
        "a reply must be a confirmation, whatever it repeats",
        "(match and body == self.message)",
        "body == self.message",
        (FAILURE + "test_an_echo_is_no_confirmation",),
    ),
    Break(
        "a reply that came before its message is a mismatch",
        "if 0 < arrived < sent and",
        "if arrived < 0 and",
        (SOCKETS + "test_a_reply_before_its_message_is_a_mismatch",),
    ),
    Break(
        "an error reply is an error reply",
        'raise Failed("error_reply"',
        'raise Failed("mismatch"',
        (FAILURE + "test_an_error_reply_is_an_error_reply",),
    ),
    Break(
        "an error reply is read when the message could not be sent",
        "if ERROR.match(reply):\n                    return",
        "if not reply:\n                    return",
        (SOCKETS + "test_an_error_reply_is_read_when_a_send_failed",),
    ),
    Break(
        "a reply to another client is named as such",
        'words = f"reply belongs to {whose}: {words}"',
        "pass",
        (FAILURE + "test_an_answer_to_another_client_is_named_as_such",),
    ),
    Break(
        "a reply without end is not kept in memory",
        "if len(reply) > longest:",
        "if len(reply) > 100 * longest:",
        (SOCKETS + "test_a_reply_without_end_is_a_mismatch_before_its_time_is_up",),
    ),
    Break(
        "after a failed connect clients knock less and less often",
        "self.pause_s = min(LAST_PAUSE_S, 2 * self.pause_s)",
        "self.pause_s = 20 * LAST_PAUSE_S",
        (
            SOCKETS
            + "test_pauses_are_short_for_a_second_then_longer_and_never_all_alike",
        ),
    ),
    Break(
        "clients that failed at one moment do not knock at one",
        "random.uniform(0.5, 1.5)",
        "1",
        (
            SOCKETS
            + "test_pauses_are_short_for_a_second_then_longer_and_never_all_alike",
        ),
    ),
    Break(
        "a connection that failed is not used again",
        "self.connect_ns = 0\n        self._close()",
        "self.connect_ns = 0",
        (FAILURE + "test_an_answer_that_comes_too_late_is_a_timeout",),
    ),
    Break(
        "an address that cannot be reached gives way to the next",
        "for family, address in addresses:",
        "for family, address in addresses[:1]:",
        (
            SOCKETS
            + "test_an_address_whose_socket_cannot_be_made_gives_way_to_the_next",
        ),
    ),
    Break(
        "the longest wait for a good reply spans failures",
        "self.waits_since = self.waits_since or due",
        "self.waits_since = due",
        (CLOCK + "test_the_gap_of_an_outage_is_little_longer_than_the_outage",),
    ),
    Break(
        "nobody listening is said with the remedy",
        'if "refused" not in reason:',
        'if "refused" in reason:',
        (FAILURE + "test_nobody_listening_is_said_in_one_line_with_the_remedy",),
    ),
    Break(
        "failures that are all different do not pile up",
        "if key in self.examples or len(self.examples) < MOST_EXAMPLES:",
        "if True:",
        (RESULTS + "test_failures_that_are_all_different_do_not_pile_up",),
    ),
]

LIMITS = [
    Break(
        "--fail-if fails when the limit holds",
        "elif SIGNS[limit.sign](value, limit.value):",
        "elif SIGNS[limit.sign](limit.value, value):",
        (ASKED + "test_a_limit_that_holds_or_cannot_be_answered_is_broken",),
    ),
    Break(
        "--fail-if fails when there are too few exchanges to know",
        'broken.append(f"{limit.text}: too few exchanges to know")',
        "pass",
        (ASKED + "test_a_limit_that_holds_or_cannot_be_answered_is_broken",),
    ),
    Break(
        "--fail-if takes any percentile",
        "values.reported(float(key[1:]) / 100)",
        "values.reported(PERCENTILES[key.replace('.', '_')])",
        (ASKED + "test_any_percentile_can_be_asked_for",),
    ),
    Break(
        "--fail-if can ask for response time",
        "f\"{metric or 'latency'}.{key}\"",
        'f"latency.{key}"',
        (ASKED + "test_figures_signs_and_units",),
    ),
    Break(
        "--fail-if can ask for a share of failures",
        "100 * results.failed / tried if",
        "results.failed / tried if",
        (ASKED + "test_a_limit_that_holds_or_cannot_be_answered_is_broken",),
    ),
    Break(
        "--fail-if knows microseconds",
        '"us": 1e3,',
        '"us": 1e6,',
        (ASKED + "test_figures_signs_and_units",),
    ),
    Break(
        "--fail-if may be given several times",
        'default=[], action="append"',
        "default=[], nargs=1",
        (ASKED + "test_each_of_several_limits_counts",),
    ),
    Break(
        "the exit status of a limit that is broken is 99",
        'return 99, "a limit is broken"',
        'return 1, "a limit is broken"',
        (ASKED + "test_exit_statuses_and_which_of_them_goes_first",),
    ),
    Break(
        "the exit status of an interrupted run is 130",
        'return 130, "interrupted"',
        'return 0, "interrupted"',
        (ASKED + "test_exit_statuses_and_which_of_them_goes_first",),
    ),
    Break(
        "the exit status is 1 when something failed",
        "if results.lost or results.failed or not",
        "if results.lost or not",
        (ASKED + "test_exit_statuses_and_which_of_them_goes_first",),
    ),
    Break(
        "the exit status is 1 when nothing was confirmed",
        "results.failed or not results.confirmed:",
        "results.failed:",
        (ASKED + "test_exit_statuses_and_which_of_them_goes_first",),
    ),
    Break(
        "the exit status is 1 when clients were lost",
        "if results.lost or results.failed or",
        "if results.failed or",
        (ASKED + "test_exit_statuses_and_which_of_them_goes_first",),
    ),
    Break(
        "the exit status of bad usage is 2",
        'self.exit(2, f"{self.prog}',
        'self.exit(1, f"{self.prog}',
        (REAL + "BadInput.test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "bad usage is one line",
        "{message} (see --help)\\n",
        "{message}\\n{self.format_usage()}",
        (REAL + "BadInput.test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "--demo refuses a --target",
        "options.demo and (options.target or",
        "options.demo and (",
        (REAL + "BadInput.test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "--rate refuses --think and --ramp",
        'in ("ramp", "think"):',
        'in ("ramp",):',
        (REAL + "BadInput.test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "several rates need an end",
        "not (options.duration or options.messages)",
        "not options.rate",
        (REAL + "BadInput.test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "--arrivals poisson needs a --rate",
        '"poisson" and not options.rate:',
        '"poisson" and options.rate:',
        (REAL + "BadInput.test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "a file without a line is no message",
        "if not options.texts:",
        "if options.texts is None:",
        (REAL + "BadInput.test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "a number that makes no sense is refused",
        "if least <= (value",
        "if -1 <= (value",
        (REAL + "BadInput.test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "a number beyond all reason is refused",
        "convert(text)) <= LARGEST",
        "convert(text)) <= math.inf",
        (REAL + "BadInput.test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "the worst of several runs is the exit status",
        "max(exit_status(run, broken) for run in runs)",
        "exit_status(runs[0], broken)",
        (ASKED + "test_the_worst_of_several_runs_is_the_exit_status",),
    ),
    Break(
        "a merge adds up the clients of all files",
        '"clients", "planned"):',
        '"planned"):',
        (REAL + "Limits.test_merge_adds_runs_up",),
    ),
    Break(
        "a merge takes runs at one time for as long as they lasted together",
        "max(0.0, begin + part.wall_s - max(begin, end))",
        "part.wall_s",
        (REAL + "Limits.test_merged_runs_lasted_as_long_as_any_of_them",),
    ),
    Break(
        "a merge of runs is doubtful if one of them was",
        'f"file {k}: {reason}" for reason in part.reasons',
        'f"file {k}: {reason}" for reason in merged.reasons',
        (MERGE,),
    ),
    Break(
        "a merge of runs was interrupted if one of them was",
        "any(part.interrupted for part in parts)",
        "all(part.interrupted for part in parts)",
        (MERGE,),
    ),
    Break(
        "a merge has user space times if one of them had",
        "max(part.timestamps for part in parts)",
        "min(part.timestamps for part in parts)",
        (MERGE,),
    ),
    Break(
        "a merge of runs beside one another has the sum of their rates",
        "sum(p.rate for p in parts",
        "max(p.rate for p in parts",
        (MERGE,),
    ),
    Break(
        "--merge refuses what --json did not write",
        'if data["version"] != 1 or',
        'if data["version"] == 99 or',
        (REAL + "Limits.test_a_file_that_is_not_ours_is_said_in_one_line",),
    ),
    Break(
        "--merge refuses a histogram that does not fit its count",
        "if count != sum(counts.values()):",
        "if count < 0:",
        (REAL + "Limits.test_a_file_that_is_not_ours_is_said_in_one_line",),
    ),
    Break(
        "--merge refuses options of a run",
        "for action in load if options.merge else ():",
        "for action in ():",
        (REAL + "BadInput.test_bad_arguments_end_with_one_line_and_2",),
    ),
]

FILES = [
    Break(
        "JSON has the keys of the contract",
        '("planned", "confirmed", "failed", "not_sent")',
        '("planned", "confirmed", "failed")',
        (KEYS,),
    ),
    Break(
        "JSON counts failures of every kind, also those that did not occur",
        "{name: self.failures[name] for name in FAILURES}",
        "dict(self.failures)",
        (KEYS,),
    ),
    Break(
        "JSON has p95",
        '"p95": 0.95, ',
        "",
        (KEYS,),
    ),
    Break(
        "JSON has a seed only of Poisson arrivals",
        'seed=o.seed if o.arrivals == "poisson" else None',
        "seed=o.seed",
        (FIGURES + "test_the_document_says_what_was_run",),
    ),
    Break(
        "JSON has arrivals only of a schedule",
        "arrivals=o.arrivals if o.rate else None",
        "arrivals=o.arrivals",
        (FIGURES + "test_the_document_says_what_was_run",),
    ),
    Break(
        "JSON has the command",
        '["client2.py", *argv]',
        "[*argv]",
        (FIGURES + "test_the_document_says_what_was_run",),
    ),
    Break(
        "JSON says when the run started, with a fraction",
        'timespec="microseconds"',
        'timespec="seconds"',
        (RESULTS + "test_a_moment_is_written_with_its_fraction_and_read_back",),
    ),
    Break(
        "not_sent is what was planned and neither confirmed nor failed",
        "self.planned - self.confirmed - self.failed",
        "self.planned - self.confirmed",
        (RESULTS + "test_failures_are_counted_and_left_out_of_latency",),
    ),
    Break(
        "several rates are several runs in JSON",
        '"runs": documents}',
        '"runs": documents[:1]}',
        (OUTPUT + "test_several_rates_make_a_knee_curve",),
    ),
    Break(
        "JSON has the title",
        "title=o.title",
        'title=""',
        (OUTPUT + "test_a_title_heads_summary_json_and_report",),
    ),
    Break(
        "--title heads the report",
        "r.title or f",
        "f",
        (OUTPUT + "test_a_title_heads_summary_json_and_report",),
    ),
    Break(
        "the columns of --csv are those of the contract",
        'HEAD = "client,message,server,due_s,',
        'HEAD = "client,message,server,due,',
        (REAL + "Files.test_csv_has_one_line_per_exchange",),
    ),
    Break(
        "a failed exchange has no latency in --csv",
        'if kind.name == CONFIRMED else ""',
        "if kind.name == CONFIRMED else 0",
        (REAL + "Files.test_csv_says_how_long_a_failed_exchange_waited",),
    ),
    Break(
        "due_s counts from the run's start",
        "(e.due - start) / 1e9",
        "e.due / 1e9",
        (REAL + "Files.test_csv_says_how_long_a_failed_exchange_waited",),
    ),
    Break(
        "--csv has every exchange, however many",
        "if options.keep or options.csv or",
        "if options.keep or",
        (REAL + "Files.test_csv_has_a_line_for_each_of_many_exchanges",),
    ),
    Break(
        "with - for a file the summary goes to standard error",
        'sys.stderr if "-" in names else sys.stdout',
        "sys.stdout",
        (OUTPUT + "test_a_dash_is_standard_output_and_the_summary_goes_beside_it",),
    ),
    Break(
        "- is standard output",
        'if path == "-" or is_stdout(path):\n        put',
        "if is_stdout(path):\n        put",
        (OUTPUT + "test_a_dash_is_standard_output_and_the_summary_goes_beside_it",),
    ),
    Break(
        "a table that cannot be written costs only the table",
        "except OSError as error:\n                self.trouble",
        "except UnicodeError as error:\n                self.trouble",
        (OUTPUT + "test_a_full_disk_for_the_csv_costs_only_the_csv",),
    ),
    Break(
        "a file that cannot be written loses nothing else",
        "except (OSError, ValueError) as error:\n            why",
        "except ValueError as error:\n            why",
        (FULL,),
    ),
    Break(
        "a file that cannot be written is not exit 0",
        "return status or int(bool(failed))",
        "return status",
        (FULL,),
    ),
    Break(
        "a file that cannot be written is noticed before the run",
        'if path not in (None, "-") and not can_write(path):',
        'if path == "-" and not can_write(path):',
        (REAL + "Files.test_a_file_that_cannot_be_written_is_noticed_before_the_run",),
    ),
    Break(
        "a document is replaced whole",
        "os.replace(beside, path)",
        "shutil.copy(beside, path)",
        (REAL + "Files.test_an_old_document_is_replaced_whole",),
    ),
    Break(
        "a file keeps its mode when it is replaced",
        "os.stat(path).st_mode & 0o7777",
        "0o600",
        (OUTPUT + "test_json_keeps_the_mode_of_the_file_it_replaces",),
    ),
    Break(
        "a report loads nothing from outside",
        "content=\"default-src 'none'; style",
        'content="default-src *; style',
        (PAGE,),
    ),
    Break(
        "no text of a run is markup of its report",
        "html.escape(shlex.join(r.command))",
        "shlex.join(r.command)",
        (PAGE,),
    ),
    Break(
        "no text of a run ends the report's data",
        '.replace("<", "\\\\u003c")',
        "",
        (PAGE,),
    ),
    Break(
        "a report can be given to --merge and --baseline",
        "text.rpartition('id=\"run\">')[2]",
        "text",
        (UNITS + "TheReport.test_a_report_can_be_read_back",),
    ),
    Break(
        "a report of very many exchanges is a heat map",
        "DOTS_SHOWN = 4000",
        "DOTS_SHOWN = 10**9",
        (UNITS + "TheReport.test_more_exchanges_than_dots_make_a_heat_map",),
    ),
    Break(
        "a report of an open loop goes by response time",
        'name = "response time" if results.rate else "latency"',
        'name = "latency"',
        (UNITS + "TheReport.test_in_an_open_loop_all_goes_by_response_time",),
    ),
    Break(
        "a report has the reasons and notices",
        "run.reasons + run.notices",
        "run.reasons[9:]",
        (UNITS + "TheReport.test_the_page_says_what_speaks_against_the_run",),
    ),
]

SCREEN = [
    Break(
        "few exchanges have a line each",
        "few = o.clients <= CLIENTS_SHOWN and",
        "few = o.clients < 0 and",
        (SEEN + "test_each_of_nine_exchanges_is_one_whole_line",),
    ),
    Break(
        "a line of an exchange has its throughput, both directions over response time",
        "(kind.sent + kind.received) * 1e9",
        "kind.received * 1e9",
        (UNITS + "Texts.test_a_line_of_an_exchange_has_its_figures_and_reply",),
    ),
    Break(
        "--verbose shows every exchange",
        "(few or o.verbose)",
        "few",
        (SEEN + "test_many_exchanges_are_summed_up_unless_verbose",),
    ),
    Break(
        "--quiet prints errors only",
        "if not (nobody or options.quiet):",
        "if not nobody:",
        (SEEN + "test_quiet_says_why_the_exit_status_is_not_0",),
    ),
    Break(
        "--quiet says why the exit status is not 0",
        "elif options.quiet and status:",
        "elif options.quiet and not status:",
        (SEEN + "test_quiet_says_why_the_exit_status_is_not_0",),
    ),
    Break(
        "a reply that differs is shown where it does",
        "same = next((k for",
        "same = next((0 for",
        (MESSAGES + "test_a_difference_is_shown_wherever_it_is",),
    ),
    Break(
        "no line is longer than 80 columns",
        "\nWIDTH = 80\n",
        "\nWIDTH = 99\n",
        (SEEN + "test_no_line_is_longer_than_80_columns",),
    ),
    Break(
        "the progress line fits 40 columns",
        "min(WIDTH, self.width) - 1",
        "WIDTH - 1",
        (TERMINALS,),
    ),
    Break(
        "a dumb terminal gets no redrawn line",
        'out.isatty() and os.environ.get("TERM") != "dumb"',
        "out.isatty()",
        (TERMINALS,),
    ),
    Break(
        "progress is shown on a terminal only",
        "self.redraws = is_terminal and not options.quiet",
        "self.redraws = not options.quiet",
        (SEEN + "test_progress_is_shown_on_a_terminal_only",),
    ),
    Break(
        "--quiet shows no progress",
        "self.redraws = is_terminal and not options.quiet",
        "self.redraws = is_terminal",
        (SEEN + "test_progress_is_shown_on_a_terminal_only",),
    ),
    Break(
        "a dumb terminal gets no colour",
        'os.environ.get("TERM") != "dumb"\n    )',
        "True\n    )",
        (SEEN + "test_no_color_is_obeyed",),
    ),
    Break(
        "only a terminal gets colour",
        "if sys.stdout.isatty() and",
        "if True and",
        (SEEN + "test_no_color_is_obeyed",),
    ),
    Break(
        "the verdict has its colour on a terminal",
        "if sys.stdout.isatty() and",
        "if not sys.stdout.isatty() and",
        (SEEN + "test_no_color_is_obeyed",),
    ),
    Break(
        "NO_COLOR is obeyed",
        'not os.environ.get("NO_COLOR")',
        "True",
        (SEEN + "test_no_color_is_obeyed",),
    ),
    Break(
        "an ASCII locale gets ASCII",
        "text = text.translate(PLAIN)",
        "pass",
        (UNITS + "Texts.test_signs_that_an_encoding_lacks_become_ascii",),
    ),
    Break(
        "no byte of a reply steers a terminal",
        "c if c.isprintable() else ascii(c)[1:-1]",
        "c",
        (UNITS + "Texts.test_no_byte_of_a_reply_can_steer_a_terminal",),
    ),
    Break(
        "an output that does not block loses nothing",
        "except BlockingIOError:\n            select",
        "except BlockingIOError:\n            break\n            select",
        (UNITS + "Texts.test_a_stream_that_does_not_block_loses_nothing",),
    ),
    Break(
        "a reader that leaves gets no traceback",
        "except BrokenPipeError:",
        "except ZeroDivisionError:",
        (SEEN + "test_a_reader_that_leaves_gets_no_traceback",),
    ),
    Break(
        "figures have three significant digits and their unit",
        "abs(value) >= 0.9995 * u[0]",
        "abs(value) >= u[0]",
        (UNITS + "Texts.test_what_rounds_to_a_thousand_gets_the_next_unit",),
    ),
    Break(
        "the output says which clock was used",
        '"kernel receive timestamps" if kernel else',
        '"receive timestamps" if kernel else',
        (SEEN + "test_the_summary_defines_its_metrics_and_judges_the_run",),
    ),
    Break(
        "the verdict is among the last lines",
        "lines += closing_lines(results) if",
        "lines[:0] = closing_lines(results) if",
        (OUTPUT + "test_the_most_important_figures_are_the_last_lines",),
    ),
]

START = [
    Break(
        "--version says 2.0",
        'VERSION = "2.0"',
        'VERSION = "2"',
        (TRUTH + "TheStart.test_it_says_its_version",),
    ),
    Break(
        "an old Python is told so in one line",
        "if sys.version_info < (3, 11):",
        "if sys.version_info < (3, 8):",
        (TRUTH + "TheStart.test_an_old_python_is_told_so_in_one_line",),
    ),
    Break(
        "Ctrl-C prints and writes partial results",
        "total.interrupted = True\n",
        "os._exit(130)\n",
        (REAL + "Interruption.test_ctrl_c_prints_and_writes_partial_results",),
    ),
    Break(
        "Ctrl-C ends a run whose server is silent",
        "return [0] * left",
        "pass",
        (REAL + "Interruption.test_ctrl_c_ends_a_run_whose_server_is_silent",),
    ),
    Break(
        "SIGTERM prints and writes partial results, too",
        "for s in (signal.SIGINT, signal.SIGTERM)}",
        "for s in (signal.SIGINT,)}",
        (REAL + "Interruption.test_sigterm_does_the_same",),
    ),
    Break(
        "a second Ctrl-C ends the program at once",
        "signal.signal(number, signal.SIG_DFL)",
        "signal.signal(number, signal.SIG_IGN)",
        (UNITS + "Signals.test_the_first_is_reported_and_a_second_ends_the_program",),
    ),
    Break(
        "Ctrl-C before the run is one line",
        'complain("interrupted")',
        "raise",
        (TRUTH + "TheStart.test_ctrl_c_in_a_slow_look_up_ends_it_at_once",),
    ),
    Break(
        "names are resolved",
        'InputError(f"cannot resolve {address[0]!r}: {reason}")',
        "OSError(reason)",
        (REAL + "BadInput.test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "--runs does it so many times",
        "for _ in range(o.runs)]",
        "for _ in range(1)]",
        (OUTPUT + "test_runs_are_repeated_and_each_is_in_the_document",),
    ),
    Break(
        "--demo starts three servers",
        "for port in USUAL_PORTS[:3]\n        ]",
        "for port in USUAL_PORTS[:2]\n        ]",
        (DEMO + "test_it_runs_while_the_usual_ports_are_taken",),
    ),
    Break(
        "--demo takes free ports where the usual ones are taken",
        "return start_child(children, script, 0, *command)",
        'raise OSError(f"{script} did not start")',
        (DEMO + "test_it_runs_while_the_usual_ports_are_taken",),
    ),
    Break(
        "a demo whose client was killed ends, too",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "return",
        (DEMO + "test_no_child_is_left_however_it_ends",),
    ),
    Break(
        "a worker that was killed is counted as lost",
        "total.lost += ",
        "total.lost += 0 * ",
        (
            REAL
            + "Interruption.test_a_worker_that_is_killed_is_said_and_the_rest_goes_on",
        ),
    ),
    Break(
        "workers end with their main process",
        "os._exit(1)",
        "pass",
        (REAL + "Interruption.test_workers_end_with_a_client_that_is_killed",),
    ),
    Break(
        "without --target it is the balancer's usual address",
        'o.target or ("127.0.0.1", 9990)',
        'o.target or ("127.0.0.1", 9991)',
        (UNITS + "Targets.test_the_usual_one_is_the_balancers_address",),
    ),
    Break(
        "an IPv6 address needs its brackets",
        'elif ":" in host:',
        'elif "::::" in host:',
        (REAL + "BadInput.test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "a client says Hello from client and its number",
        'default="Hello from client {client}!"',
        'default="Hello from client {client}"',
        (MESSAGES + "test_hello_is_twenty_bytes_and_a_newline",),
    ),
    Break(
        "stamps that are refused cost only themselves",
        "with contextlib.suppress(OSError):\n            sock.setsockopt(socket.SOL",
        "with contextlib.suppress(KeyError):\n            sock.setsockopt(socket.SOL",
        (FIGURES + "test_the_output_says_where_arrival_times_come_from",),
    ),
    Break(
        "it works without recvmsg",
        'if LINUX and hasattr(socket.socket, "recvmsg") else',
        "if LINUX else",
        (FIGURES + "test_it_works_without_what_only_some_systems_have",),
    ),
    Break(
        "it works without the module resource",
        "except ImportError:  # Windows",
        "except KeyError:  # Windows",
        (FIGURES + "test_it_works_without_what_only_some_systems_have",),
    ),
    Break(
        "it works without sched_getaffinity",
        "suppress(AttributeError, OSError):\n        return len(os.sched_get",
        "suppress(OSError):\n        return len(os.sched_get",
        (
            WORKERS
            + "test_cores_are_counted_where_the_system_cannot_say_which_are_usable",
        ),
    ),
    Break(
        "standard streams that are closed cost nothing else",
        "\n    open_missing_streams()\n",
        "\n",
        (OUTPUT + "test_a_full_or_closed_standard_output_costs_only_itself",),
    ),
]

BREAKS: list[Break] = [
    *METRICS,
    *PERCENTILES,
    *TENTHS,
    *SERVERS,
    *BASELINE,
    *VERDICT,
    *LOAD,
    *FAILURES,
    *LIMITS,
    *FILES,
    *SCREEN,
    *START,
]
