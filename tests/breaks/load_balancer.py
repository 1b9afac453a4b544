"""Breaks of load_balancer.py, in the order of its promises."""

from __future__ import annotations

from tests.breaks import Break


def at(area: str, *names: str) -> tuple[str, ...]:
    """Return the full names of tests in tests/test_load_balancer_AREA.py."""
    module = f"tests.test_load_balancer_{area}".removesuffix("_")
    return tuple(f"{module}.{name}" for name in names)


CHOOSING = [
    Break(
        "round robin hands connection k to server k mod 3, in the order given",
        "if credit > most:",
        "if credit >= most:",
        at(
            "choice",
            "RoundRobin.test_round_robin_hands_connection_k_to_server_k_mod_3",
        ),
    ),
    Break(
        "round robin is in the order of accept, also with several workers",
        "if not options.accept_proxy and not is_barred(options, peer):",
        "if options.workers == 1:",
        at("workers", "Turns.test_servers_take_turns_in_the_order_of_accept"),
    ),
    Break(
        "round robin charges a server for all that may serve, so turns are kept",
        "richest.credit -= total",
        "richest.credit -= richest.weight",
        at("choice", "RoundRobin"),
    ),
    Break(
        "weight=N is a server's share",
        "given[\"weight\"], given[\"backup\"]\n",
        "1, given[\"backup\"]\n",
        at("choice", "RoundRobin.test_weights_hold_in_every_window_and_interleave"),
    ),
    Break(
        "weight=0 gets no new connection",
        "return bool(here and not self.admin and self.weight)",
        "return bool(here and not self.admin)",
        at("faults", "WhoMayBeAsked.test_server_of_weight_0_alone_is_no_health"),
    ),
    Break(
        "a backup serves only while every other server is DOWN",
        "given[\"weight\"], given[\"backup\"]\n",
        "given[\"weight\"], False\n",
        at(
            "choice",
            "Choosing.test_backup_serves_only_while_every_other_server_is_down",
        ),
    ),
    Break(
        "of several backups the first serves alone",
        "or servers[:1]",
        "or servers",
        at("board", "Choice"),
    ),
    Break(
        "a backup takes over from a main server that refuses",
        "left = [s for s in self._candidates if",
        "left = [s for s in self._asked if",
        at("choice", "Choosing.test_backup_takes_over_when_the_main_server_refuses"),
    ),
    Break(
        "max=N: never more connections at a server",
        "self.places_taken < self.max",
        "self.places_taken <= self.max",
        at(
            "limits",
            "ServerLimit.test_server_never_counts_more_connections_than_its_limit",
        ),
    ),
    Break(
        "check=PORT is where a server is checked",
        "if server.check_at:",
        "if server.check_at and False:",
        at("asked", "ChecksThatSpeak.test_check_may_ask_another_port"),
    ),
    Break(
        "leastconn chooses who has the fewest live connections",
        'if algorithm in ("leastconn", "random") and servers:',
        'if algorithm == "random" and servers:',
        at("choice", "Choosing.test_leastconn_evens_out_the_live_connections"),
    ),
    Break(
        "leastconn weighs live connections by weight",
        "s.places_taken / s.weight for s",
        "s.places_taken for s",
        at("choice", "Choosing.test_leastconn_weighs_live_connections_by_weight"),
    ),
    Break(
        "random takes the less loaded of two",
        'if algorithm in ("leastconn", "random") and servers:',
        'if algorithm == "leastconn" and servers:',
        at("board", "Choice"),
    ),
    Break(
        "source: a client's address keeps its server",
        "host = row.source()[0]\n",
        "host = str(row.source())\n",
        at(
            "choice",
            "Choosing.test_source_keeps_a_client_at_its_server_and_moves_only_who_must",
        ),
    ),
    Break(
        "source: a server that is lost moves only its own clients",
        "host = row.source()[0]\n",
        "host = f\"{row.source()[0]} {len(asked)}\"\n",
        at(
            "choice",
            "Choosing.test_source_keeps_a_client_at_its_server_and_moves_only_who_must",
        ),
    ),
    Break(
        "when no server is UP, every server is tried",
        "return up or ready, bool(ready and not up)",
        "return up, bool(ready and not up)",
        at("board", "Choice"),
    ),
    Break(
        "a connect that fails goes to another server, unseen by the client",
        "if failure is LEFT_CONNECTING:",
        "if failure is not NO_SERVER:",
        at("choice", "Connecting.test_refused_connect_goes_to_another_server_unseen"),
    ),
    Break(
        "each server is tried at most once for a connection, without --hold",
        "row.note_tried(server)",
        "row.tries += 1",
        at("choice", "Connecting.test_each_server_is_tried_at_most_once"),
    ),
    Break(
        "--connect-timeout: another server is tried after so long",
        "self._options.connect_timeout,\n",
        "60.0,\n",
        at(
            "choice",
            "Connecting.test_black_hole_costs_the_connect_timeout_and_only_its_own_"
            "client",
        ),
    ),
    Break(
        "a client that leaves while its server is connected is noticed at once",
        "raise OverError(LEFT_CONNECTING)",
        "pass",
        at(
            "choice",
            "Connecting.test_client_that_leaves_while_connecting_is_noticed_at_once",
        ),
    ),
    Break(
        "a client that waits loses none of its bytes",
        "return client_sock.recv(1, socket.MSG_PEEK) ==",
        "return client_sock.recv(1) ==",
        at(
            "choice",
            "Connecting.test_client_that_half_closed_after_a_request_is_served",
        ),
    ),
]


CHECKS = [
    Break(
        "--check-interval: each server is checked every so many seconds",
        "interval_s, version = self._options.check_interval, server.version",
        "interval_s, version = 60.0, server.version",
        at(
            "health",
            "Checks.test_check_ends_with_a_clean_end_of_file_and_sends_nothing",
        ),
    ),
    Break(
        "a check parts with an end of file, for servers log resets",
        "with contextlib.suppress(OSError):\n            sock.shutdown(socket.SHUT_WR)",
        "reset_at_close(sock)\n        with contextlib.suppress(OSError):",
        at(
            "health",
            "Checks.test_check_ends_with_a_clean_end_of_file_and_sends_nothing",
        ),
    ),
    Break(
        "--rise: UP only after so many good checks",
        "self.health += 1\n",
        "self.health += self.rise\n",
        at(
            "health",
            "Checks.test_server_comes_back_only_after_as_many_passed_checks_as_"
            "rise_says",
        ),
    ),
    Break(
        "--fall: DOWN only after so many failed checks",
        "self.health = self.health - 1 if self.health > self.rise else 0",
        "self.health = 0",
        at(
            "health",
            "Checks.test_one_passed_check_between_failures_starts_the_count_again",
        ),
    ),
    Break(
        "a good check between failed ones starts the count again",
        "if self.is_healthy:\n                self.health = self.top_health",
        "if self.is_healthy:\n"
        "                self.health = min(self.health, self.top_health)",
        at(
            "health",
            "Checks.test_one_passed_check_between_failures_starts_the_count_again",
        ),
    ),
    Break(
        "failed connects for clients count as failed checks",
        "line = self._count_result_locked(server, False, failure.words)",
        "pass",
        at("health", "Checks.test_failures_of_real_traffic_count_as_failed_checks"),
    ),
    Break(
        "a client's connect says nothing of a server whose checks speak",
        "if speaks and not self.options.no_checks:",
        "if False:",
        at("asked", "ChecksThatSpeak"),
    ),
    Break(
        "--check-timeout: a check that hangs has failed after so long",
        "sock.settimeout(options.check_timeout)",
        "sock.settimeout(120.0)",
        at(
            "health",
            "Checks.test_server_that_hangs_goes_down_with_a_timeout_as_reason",
        ),
    ),
    Break(
        "--check-timeout holds for all of a check that speaks",
        "deadline = began + options.check_timeout",
        "deadline = began + 120.0",
        at("asked", "ChecksThatSpeak.test_silent_server_goes_down_at_the_timeout"),
    ),
    Break(
        "--check-timeout holds for a server that goes on talking",
        "sock.settimeout(max(0.001, deadline - time.monotonic()))\n"
        "            if not (data",
        "if not (data",
        at(
            "asked",
            "ChecksThatSpeak.test_server_that_talks_without_end_has_the_timeout_in_all",
        ),
    ),
    Break(
        "a check of a server that never stops talking ends all the same",
        "for _ in range(16):  # an",
        "while True:  # an",
        at("faults", "Checks.test_server_that_floods_is_checked_in_time"),
    ),
    Break(
        "--check-send is sent in a check",
        "sock.sendall(options.check_send)",
        "pass",
        at(
            "asked",
            "ChecksThatSpeak.test_what_is_sent_has_its_escapes_and_the_answer_may_"
            "come_in_pieces",
        ),
    ),
    Break(
        "--check-send knows \\xHH",
        "bytes.fromhex(escape[1:])",
        "os.fsencode(escape)",
        at(
            "asked",
            "ChecksThatSpeak.test_what_is_sent_has_its_escapes_and_the_answer_may_"
            "come_in_pieces",
        ),
    ),
    Break(
        "--check-expect: a check passes only when TEXT has come",
        "if expected in heard:",
        "if heard:",
        at("asked", "ChecksThatSpeak.test_reason_says_what_came_instead"),
    ),
    Break(
        "--check-expect: TEXT may come in pieces",
        "heard += data",
        "heard = data",
        at(
            "asked",
            "ChecksThatSpeak.test_what_is_sent_has_its_escapes_and_the_answer_may_"
            "come_in_pieces",
        ),
    ),
    Break(
        "the reason of a failed check has nothing that could end its line",
        "c if \" \" <= c <= \"~\" and c not in '\"\\\\' else\".",
        'c if c else".',
        at("asked", "ChecksThatSpeak.test_reason_has_forty_printable_bytes_at_most"),
    ),
    Break(
        "--no-checks: a server is never visited unasked",
        "if self._options.no_checks:\n            return",
        "if False:\n            return",
        at("health", "Checks.test_without_checks_a_server_is_never_visited_unasked"),
    ),
    Break(
        "--no-checks: a DOWN server is tried again after its penalty",
        "over = server.family and waited_s >= server.penalty_s",
        "over = False",
        at("units", "PenaltiesWithoutChecks"),
    ),
    Break(
        "--no-checks: the penalty doubles",
        "min(2 * server.penalty_s, int(PENALTY_MAX_S))",
        "server.penalty_s",
        at("units", "PenaltiesWithoutChecks"),
    ),
    Break(
        "a shortage of this machine's says nothing of a server",
        "if passed is None:",
        "if False:",
        at("units", "ChecksInAShortage"),
    ),
    Break(
        "--on-down keep: live connections go on, the default",
        'if LOOK in given and self._options.on_down == "reset":',
        "if LOOK in given:",
        at("asked", "OnDown.test_live_connections_stay_by_default"),
    ),
    Break(
        "--on-down reset: the connections of a server that goes DOWN are reset",
        'if LOOK in given and self._options.on_down == "reset":',
        "if False:",
        at("asked", "OnDown.test_idle_client_learns_it_though_nothing_moves"),
    ),
    Break(
        "--on-down reset: those of other servers stay",
        "if not server or server.state != DOWN or session.cut or",
        "if not server or session.cut or",
        at("asked", "OnDown.test_connections_to_other_servers_stay"),
    ),
    Break(
        "--on-down reset: the end has a code of its own",
        "session.cut = DOWN_RESET",
        "session.cut = CUT",
        at("asked", "OnDown.test_live_connections_are_reset_with_an_end_of_their_own"),
    ),
    Break(
        "DRAIN: no new connections",
        "return bool(here and not self.admin and self.weight)",
        "return bool(here and self.weight)",
        at("health", "Draining"),
    ),
    Break(
        "MAINT: no checks, either",
        'if ADMIN[server.admin] != "maint" and not server.gone:',
        "if not server.gone:",
        at("health", "States.test_server_in_maintenance_is_neither_used_nor_checked"),
    ),
    Break(
        "one line per change of a server's state, and none for no change",
        "if server.state == before:",
        "if False:",
        at("health", "States.test_command_that_changes_nothing_is_not_logged"),
    ),
    Break(
        "the line of a state says how many servers are UP for clients",
        "up = sum(s.may_serve and s.is_healthy for s in present)",
        "up = sum(s.is_healthy for s in present)",
        at("units", "Counting"),
    ),
    Break(
        "the line of a state says how many checks it took",
        'f"checks={min(server.in_a_row, needed)}/',
        'f"checks={needed}/',
        at(
            "units",
            "PenaltiesWithoutChecks.test_log_tells_how_many_failures_in_a_row_it_were",
        ),
    ),
]


WAITING = [
    Break(
        "--hold: a client waits while no server can be connected",
        "or now_s + self._options.hold",
        "or now_s",
        at("asked", "Hold.test_default_is_three_seconds_of_patience"),
    ),
    Break(
        "--hold: not longer than that",
        "or now_s + self._options.hold",
        "or now_s + 60",
        at("asked", "Hold.test_client_is_ended_after_that_time"),
    ),
    Break(
        "--hold: all servers are tried again meanwhile",
        "row.forget_tried()",
        "pass",
        at("asked", "Hold.test_default_is_three_seconds_of_patience"),
    ),
    Break(
        "--hold is 3 s if not told otherwise",
        '("--hold", "S", parse_seconds, 3.0,',
        '("--hold", "S", parse_seconds, 0.0,',
        at("asked", "Hold.test_default_is_three_seconds_of_patience"),
    ),
    Break(
        "a client that is held costs nearly nothing",
        "poll.register(client_fd, 0)  # it has sent: now only errors matter\n"
        "                elif",
        "pass\n                elif",
        at("asked", "Hold"),
    ),
    Break(
        "--queue-timeout: a client waits for a place for so long",
        "(options.queue_timeout or math.inf)",
        "math.inf",
        at(
            "limits",
            "ServerLimit.test_queue_timeout_ends_the_wait_with_its_own_reason",
        ),
    ),
    Break(
        "the queue is first come, first served",
        "if first and 0 < first.number < row.number:",
        "if False:",
        at("board", "TheQueue"),
    ),
    Break(
        "the queue is in the order of accept, over all workers",
        "while before.number > row.number:",
        "while before.number:",
        at("limits", "ServerLimit.test_queue_is_first_in_first_out"),
    ),
    Break(
        "a place that is free goes to who waits, at once",
        "self.live -= 1\n        self._hand_out_locked()",
        "self.live -= 1",
        at("limits", "ServerLimit.test_queue_is_first_in_first_out"),
    ),
    Break(
        "a client that leaves the queue takes no place",
        "raise OverError(CUT_QUEUED if session.cut else LEFT_QUEUE)",
        "pass",
        at("limits", "ServerLimit.test_client_that_leaves_the_queue_takes_no_place"),
    ),
    Break(
        "the place of a failed connect is given back",
        "row.server = row.own = 0\n            server.places_taken -= 1",
        "row.server = row.own = 0",
        at("limits", "ServerLimit.test_place_of_a_failed_connect_is_given_back"),
    ),
    Break(
        "--max-connections: so many at once, more wait to be accepted",
        "if self.live >= self.limit:\n                return None",
        "if False:\n                return None",
        at("limits", "TotalLimit.test_connection_above_the_limit_waits_until_one_ends"),
    ),
    Break(
        "--max-connections: who waits is accepted when one ends",
        "rings = self._full or board.stopping",
        "rings = bool(board.stopping)",
        at("limits", "TotalLimit.test_connection_above_the_limit_waits_until_one_ends"),
    ),
    Break(
        "a shortage of descriptors slows new connections only",
        "if code in LOCAL_SHORTAGE and has_own_address(server):",
        "if False:",
        at("units", "ChecksInAShortage"),
    ),
    Break(
        "no server is blamed for a shortage of this machine's",
        "if failure.blames_server:",
        "if True:",
        at("limits", "Starvation.test_no_server_is_blamed_for_missing_descriptors"),
    ),
    Break(
        "the limit of open files is raised as far as it goes",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))",
        "pass",
        at("limits", "DescriptorLimit.test_limit_is_raised_to_the_hard_limit_and_told"),
    ),
]


BREAKS: list[Break] = [
    *CHOOSING,
    *CHECKS,
    *WAITING,
]
