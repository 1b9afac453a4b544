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
JUDGED = UNITS + "TheVerdict."
SCHEDULE = UNITS + "TheSchedule."
MESSAGES = UNITS + "Messages."
WORKERS = UNITS + "Workers."
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
        "listen queues that overflowed make a run doubtful",
        "if slow and r.overflows > 0:",
        "if slow and r.overflows < 0:",
        (REASONS,),
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
        "if slow and not r.overflows:",
        "if slow < 0:",
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
        (JUDGED
         + "test_a_queue_that_is_left_at_the_schedules_end_is_beyond_the_knee",),
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
        (EXCHANGES + "test_messages_are_sent_one_after_the_other_on_one_connection",),
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
        "return [os.fsencode(message)]",
        'return [message.encode("utf-8", "replace")]',
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
        (REPLY + "test_replies_of_one_line_do_not_wait",),
    ),
    Break(
        "with --any-reply the end of file ends a reply",
        'if not has_end and b"\\n" not in reply:',
        "if not has_end:",
        (REPLY + "test_a_reply_that_ends_with_its_connection_is_one",),
    ),
    Break(
        "--workers auto is one process per dozen clients",
        "math.ceil(clients / CLIENTS_PER_WORKER)",
        "math.ceil(clients / MANY_CLIENTS_PER_WORKER)",
        (WORKERS + "test_auto_is_one_per_dozen_clients"
         "_and_for_very_many_some_per_core",),
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
        (EXCHANGES + "test_more_workers_than_clients_do_no_harm",),
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

BREAKS: list[Break] = [
    *METRICS, *PERCENTILES, *TENTHS, *SERVERS, *BASELINE, *VERDICT, *LOAD
]  # fmt: skip
