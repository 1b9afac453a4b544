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
        at("board", "Health"),
    ),
    Break(
        "a good check between failed ones starts the count again",
        "if self.is_healthy:\n                self.health = self.top_health",
        "if self.is_healthy:\n"
        "                self.health = min(self.health, self.top_health)",
        at("board", "Health"),
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
        at("board", "Health"),
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
        "for _ in range(16):  # an unread banner makes the close a reset\n"
        "                sock.settimeout(max(0.001, deadline - time.monotonic()))\n"
        "                if time.monotonic() >= deadline or not",
        "while True:\n                if not",
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
        'c if " " <= c <= "~" and',
        "c if",
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
        "server = self._board.server_of(session.row)\n"
        "                if not server or server.state",
        "server = self._board.servers()[0]\n"
        "                if not server or server.state",
        at("asked", "OnDown.test_connections_to_other_servers_stay"),
    ),
    Break(
        "--on-down reset: drain and maint reset nobody",
        "if not server or server.state != DOWN or",
        "if not server or server.state == UP or",
        at("asked", "OnDown.test_drain_and_maintenance_reset_nobody"),
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
        "the queue is in the order of accept, over all workers",
        "while before.number > row.number:",
        "while before.number:",
        at("board", "TheQueue"),
    ),
    Break(
        "a place that is free goes to who waits, at once",
        "self.live -= 1\n        self._hand_out_locked()",
        "self.live -= 1",
        at("board", "TheQueue"),
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
        "if board.stopping or self._full:\n",
        "if board.stopping:\n",
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
        at("board", "Health"),
    ),
    Break(
        "the limit of open files is raised as far as it goes",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))",
        "pass",
        at("limits", "DescriptorLimit.test_limit_is_raised_to_the_hard_limit_and_told"),
    ),
]


STOPPING = [
    Break(
        "a stop: live connections may end for --grace seconds",
        "self._deadline = time.monotonic() + grace_s",
        "self._deadline = time.monotonic()",
        at(
            "operations",
            "Stopping.test_live_connections_end_normally_within_the_grace",
        ),
    ),
    Break(
        "a stop: those left after --grace seconds are closed",
        "self._deadline = time.monotonic() + grace_s",
        "self._deadline = time.monotonic() + 120",
        at(
            "operations",
            "Stopping.test_connections_left_at_the_end_of_the_grace_are_closed",
        ),
    ),
    Break(
        "a stop: nobody is accepted any more",
        "self._board.stopping = 1\n",
        "pass\n",
        at(
            "operations",
            "Stopping.test_live_connections_end_normally_within_the_grace",
        ),
    ),
    Break(
        "a stop: nobody waits in the kernel's queue, either",
        "shut_down(listener, socket.SHUT_RDWR)",
        "pass",
        at("asked", "StopDelay.test_without_it_nobody_comes_any_more"),
    ),
    Break(
        "a stop ends with status 0",
        "return error.status\n    return 0",
        "return error.status\n    return 1",
        at("operations", "Stopping.test_idle_balancer_stops_at_once"),
    ),
    Break(
        "a balancer without connections stops at once",
        "if rings:\n            self._bell.ring()",
        "pass",
        at(
            "operations",
            "Stopping.test_live_connections_end_normally_within_the_grace",
        ),
    ),
    Break(
        "Ctrl-C stops it as SIGTERM does",
        "return number in (signal.SIGINT, signal.SIGTERM)",
        "return number == signal.SIGTERM",
        at(
            "operations",
            "Stopping.test_interrupt_from_the_keyboard_stops_it_like_a_term_signal",
        ),
    ),
    Break(
        "a second signal exits at once",
        "if self._stops > 1:",
        "if self._stops > 9:",
        at("operations", "Stopping.test_second_signal_ends_it_at_once"),
    ),
    Break(
        "a second signal: half a reply ends with a reset",
        "self._cut(HASTE_S)\n            return",
        "self._stops = 3\n            return",
        at("operations", "Stopping.test_second_signal_resets_half_a_reply"),
    ),
    Break(
        "what is cut at a stop is reset, not ended like a whole reply",
        "for way in self._ways:\n"
        "            if not way.end_passed:\n"
        "                reset_at_close(way.to_sock)\n"
        "        return",
        "return",
        at("operations", "Stopping.test_connection_cut_in_data_is_reset_on_both_sides"),
    ),
    Break(
        "what is lost by a cut is told",
        "lost = sum(way.undelivered() for way in self._ways)",
        "lost = 0",
        at("operations", "Stopping.test_bytes_lost_by_the_cut_are_counted"),
    ),
    Break(
        "a client in the queue hears of the stop",
        "CUT_QUEUED if session.cut else LEFT_QUEUE",
        "LEFT_QUEUE",
        at("operations", "Stopping.test_queued_clients_are_told_when_it_stops"),
    ),
    Break(
        "a connection cut before its server is no end in data",
        "if session.cut:\n"
        "                raise OverError(CUT_CONNECTING) from None\n"
        "            words",
        "words",
        at("operations", "Stopping.test_cut_before_the_proxy_header_is_no_end_in_data"),
    ),
    Break(
        "--stop-delay: clients are still accepted",
        "if delay_s := self._options.stop_delay:",
        "if delay_s := 0.0:",
        at(
            "asked",
            "StopDelay.test_clients_are_served_while_health_says_that_it_leaves",
        ),
    ),
    Break(
        "--stop-delay: /healthz says 503 meanwhile",
        "if board.leaving:\n",
        "if board.stopping:\n",
        at(
            "asked",
            "StopDelay.test_clients_are_served_while_health_says_that_it_leaves",
        ),
    ),
    Break(
        "--stop-delay: a second signal does not wait for it",
        "if not self._board.stopping:\n"
        "                self._close()\n"
        "            self._cut",
        "if not self._board.stopping:\n                return\n            self._cut",
        at("asked", "StopDelay.test_second_signal_ends_it_at_once"),
    ),
    Break(
        "the log says that it stops, and how many are live",
        "text += f\": {count(live, 'live connection')}, waiting",
        "text += f\": {count(1, 'live connection')}, waiting",
        at("operations", "Stopping.test_start_and_stop_have_a_line_each_in_the_log"),
    ),
    Break(
        "the log's last line says that it has stopped",
        "self._log.line(\"stopped\")\n        self._log.close()",
        "self._log.close()",
        at("operations", "Stopping.test_start_and_stop_have_a_line_each_in_the_log"),
    ),
    Break(
        "the log's first line says where it listens, and its version",
        "self._log.line(f\"{first_line.partition(' (')[0]} with {what}\")",
        "pass",
        at("operations", "Stopping.test_start_and_stop_have_a_line_each_in_the_log"),
    ),
    Break(
        "systemd is told when it is ready",
        'notify("READY=1")',
        "pass",
        at("operations", "Activation.test_service_manager_is_told_ready_and_stopping"),
    ),
    Break(
        "systemd is told when it stops",
        'notify("STOPPING=1")',
        "pass",
        at("operations", "Activation.test_service_manager_is_told_ready_and_stopping"),
    ),
    Break(
        "systemd's sockets are listened on",
        "given = int(number) if ours and number.isdigit() else 0",
        "given = 0",
        at("operations", "Activation.test_given_socket_is_used_and_named"),
    ),
    Break(
        "sockets that are meant for another process are left alone",
        "given = int(number) if ours and number",
        "given = int(number) if number",
        at(
            "operations",
            "Activation.test_socket_meant_for_another_process_is_left_alone",
        ),
    ),
    Break(
        "with systemd a restart refuses nobody",
        "options.owns_listeners = not given",
        "options.owns_listeners = True",
        at("operations", "Activation.test_restart_refuses_no_connection"),
    ),
    Break(
        "SIGHUP reopens the log",
        "os.dup2(new, self._file, inheritable=False)",
        "pass",
        at("operations", "Stopping.test_log_is_reopened_also_while_it_stops"),
    ),
    Break(
        "SIGHUP is a stop after the terminal has been closed",
        "return not (self.outlives_terminal or has_terminal())",
        "return False",
        (
            "tests.test_surroundings.ClosedWindow.test_closing_the_window_stops_it_"
            "as_sigterm_does",
        ),
    ),
    Break(
        "SIGHUP is no stop for one that nohup started",
        "return not (self.outlives_terminal or has_terminal())",
        "return not has_terminal()",
        ("tests.test_surroundings.ClosedWindow.test_with_nohup_it_goes_on",),
    ),
]


RELAYING = [
    Break(
        "an end of file is passed on as an end of file",
        "try:\n            self.to_sock.shutdown(socket.SHUT_WR)",
        "try:\n            pass",
        at("", "Closing.test_client_that_half_closes_gets_the_whole_reply"),
    ),
    Break(
        "after one end of file the other direction goes on",
        "while not (upstream.end_passed and downstream.end_passed):",
        "while not (upstream.end_passed or downstream.end_passed):",
        at("", "Closing.test_client_that_half_closes_gets_the_whole_reply"),
    ),
    Break(
        "--half-close-timeout holds once one side has ended",
        "timeout_s = options.half_close_timeout if half else options.idle_timeout",
        "timeout_s = options.idle_timeout",
        at("", "HalfCloseLimit"),
    ),
    Break(
        "--idle-timeout holds while both sides are there",
        "timeout_s = options.half_close_timeout if half else options.idle_timeout",
        "timeout_s = options.half_close_timeout",
        at("", "TimeLimits"),
    ),
    Break(
        "0 as a timeout: never",
        "limit_ms = timeout_s * 1000 or math.inf",
        "limit_ms = timeout_s * 1000",
        at("", "HalfCloseLimit"),
    ),
    Break(
        "an idle connection that has bytes left is reset",
        "if missing:  # lest",
        "if False:  # lest",
        at(
            "faults",
            "StoppedReaders.test_client_that_stops_in_the_last_reply_is_reset",
        ),
    ),
    Break(
        "an idle connection that has no bytes left is no reset",
        "if missing:  # lest",
        "if True:  # lest",
        at("faults", "StoppedReaders.test_silence_after_all_was_delivered_is_no_reset"),
    ),
    Break(
        "who reads slowly is not idle",
        "quiet_ms = 0.0 if self._has_progressed() else quiet_ms + wait_ms",
        "quiet_ms = quiet_ms + wait_ms",
        at("faults", "SlowReaders.test_client_that_reads_slowly_is_not_idle"),
    ),
    Break(
        "a reset is passed on, from server to client",
        "if not from_dead.from_ended:  # more was to follow",
        "if not from_dead.from_ended and from_dead is self.upstream:",
        at("", "Closing.test_server_reset_in_a_reply_is_a_reset_for_the_client"),
    ),
    Break(
        "a reset is passed on, from client to server",
        "if not from_dead.from_ended:  # more was to follow",
        "if not from_dead.from_ended and from_dead is self.downstream:",
        at("", "Closing.test_client_reset_in_an_upload_is_a_reset_for_the_server"),
    ),
    Break(
        "bytes that came before a reset are delivered first",
        "Burial(from_dead).flush(patience_s)",
        "pass",
        at("", "Closing.test_bytes_that_arrived_before_a_server_reset_are_delivered"),
    ),
    Break(
        "a reset never overtakes bytes for a slow reader",
        "onward.rest = memoryview(data)\n        return onward.undelivered()",
        "onward.rest = memoryview(data)\n        return onward.pending",
        at("", "Closing.test_server_reset_never_overtakes_bytes_for_a_slow_client"),
    ),
    Break(
        "a server that is blocked in its reply hears of a dead client",
        "mask = 0 if back.from_ended else POLLIN",
        "mask = 0",
        at(
            "",
            "Closing.test_client_reset_reaches_a_server_that_is_blocked_in_its_reply",
        ),
    ),
    Break(
        "a server that streams for ever to a dead client is ended",
        "now_s > quiet_until or self._back.dropped > most_dropped",
        "now_s > quiet_until",
        at("", "Closing.test_server_that_streams_for_ever_to_a_dead_client_is_ended"),
    ),
    Break(
        "bytes that were never taken are counted undelivered",
        "return self.dropped + self.pending + max(0, not_acknowledged)",
        "return self.dropped + self.pending",
        at(
            "faults",
            "StoppedReaders.test_client_that_stops_in_the_last_reply_is_reset",
        ),
    ),
    Break(
        "urgent data holds nothing up, and costs no byte",
        "return not done and self.pull_copied()",
        "return False",
        at("faults", "UrgentData"),
    ),
    Break(
        "what a slow reader has not taken yet is kept for it",
        "return self.in_pipe or (len(self.rest) if self.rest else 0)",
        "return self.in_pipe",
        at(
            "",
            "Relay.test_reader_that_stops_costs_no_memory_and_gets_everything_later",
        ),
    ),
    Break(
        "a reader that has stopped costs nothing",
        "mask = 0 if reads.from_ended or reads.pending else POLLIN",
        "mask = 0 if reads.from_ended else POLLIN",
        at("", "Relay.test_reader_that_stops_costs_no_time"),
    ),
    Break(
        "both sides are probed by keepalive",
        "options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))",
        "pass",
        at("", "Closing.test_keepalive_guards_both_sides_against_a_vanished_peer"),
    ),
    Break(
        "messages are not held back to fill a segment",
        "(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)",
        "(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)",
        at("", "Relay", "Closing"),
    ),
    Break(
        "bytes arrive whatever splice answers",
        "except OSError:  # refused, or not for this kind of socket: nothing moved\n",
        "except PermissionError:\n",
        at("faults", "SpliceThatStops"),
    ),
    Break(
        "a dead side's last bytes are given up when nobody takes them",
        "best, quiet_until, pause_s = acknowledged, now_s + timeout_s, 0.001",
        "best, pause_s = acknowledged, 0.001",
        at("units", "LastBytes"),
    ),
    Break(
        "a client never talks to itself",
        "if is_connected_to_itself(server_sock):",
        "if False:",
        at("faults", "SelfConnect.test_client_never_talks_to_itself"),
    ),
    Break(
        "a check that reaches itself has failed",
        "if is_connected_to_itself(sock):",
        "if False:",
        at("faults", "SelfConnect.test_check_that_reaches_itself_has_failed"),
    ),
    Break(
        "a defect ends one connection, with a traceback and ID in the log",
        'end = End("ID", f"internal error: {error!r}")',
        "raise",
        at("", "Relay"),
    ),
]


ADDRESSES = [
    Break(
        "--allow: clients from elsewhere are refused",
        "return bool(options.allow) and not is_in(options.allow, source)",
        "return False",
        at("limits", "Access.test_client_outside_is_closed_and_no_server_contacted"),
    ),
    Break(
        "--allow: no server is contacted for who is refused",
        "if is_barred(options, peer):\n                raise OverError",
        "if False:\n                raise OverError",
        at("limits", "Access.test_client_outside_is_closed_and_no_server_contacted"),
    ),
    Break(
        "an IPv4-mapped client is IPv4, for --allow and in the log",
        'return getattr(ip, "ipv4_mapped", None) or ip',
        "return ip",
        at(
            "limits",
            "Access.test_ipv4_rule_holds_for_ipv4_clients_of_an_ipv6_listener",
        ),
    ),
    Break(
        "--allow takes an IPv4-mapped network as IPv4",
        "if mapped and network.prefixlen >= 96:",
        "if False:",
        at("faults", "OneAddress.test_allow_takes_a_mapped_network"),
    ),
    Break(
        "--accept-proxy: --allow is for the client in the header",
        "if is_barred(options, row.source()):",
        "if is_barred(options, peer):",
        at(
            "proxy",
            "Trust.test_allowed_networks_are_those_of_the_client_in_the_header",
        ),
    ),
    Break(
        "--accept-proxy: all other sources are refused",
        "if not is_in(options.accept_proxy, peer):",
        "if False:",
        at("proxy", "Trust.test_source_that_is_not_trusted_is_refused"),
    ),
    Break(
        "without --accept-proxy a header is data",
        "if not options.accept_proxy:\n            if",
        "if False:\n            if",
        at("proxy", "Trust.test_header_is_data_without_the_option"),
    ),
    Break(
        "--accept-proxy v1: the client is who the line says",
        "for word in words[2:4])",
        "for word in words[3:1:-1])",
        at(
            "proxy",
            "Receiving.test_every_valid_header_gives_the_client_and_is_taken_off",
        ),
    ),
    Break(
        "--accept-proxy v1: PROXY UNKNOWN leaves the connection's own address",
        'if words[:2] == ["PROXY", "UNKNOWN"]:',
        "if False:",
        at(
            "proxy",
            "Receiving.test_every_valid_header_gives_the_client_and_is_taken_off",
        ),
    ),
    Break(
        "--accept-proxy v1: not one byte more is taken",
        "header += read(ahead.find(b\"\\n\") + 1 or len(ahead))",
        "header += read(len(ahead))",
        at(
            "proxy",
            "Receiving.test_every_valid_header_gives_the_client_and_is_taken_off",
        ),
    ),
    Break(
        "--accept-proxy v1: 107 bytes at most",
        "PROXY_V1_MAX_BYTES = 107",
        "PROXY_V1_MAX_BYTES = 207",
        at("proxy", "Receiving.test_no_byte_of_an_invalid_header_reaches_a_server"),
    ),
    Break(
        "--accept-proxy v1: a port that is none is refused",
        "!= words[4:] or max(ports) > 65535",
        "!= words[4:]",
        at("proxy", "Receiving.test_no_byte_of_an_invalid_header_reaches_a_server"),
    ),
    Break(
        "--accept-proxy v2: the client is who the header says",
        'form = ">4s4sHH" if',
        'form = "<4s4sHH" if',
        at(
            "proxy",
            "Receiving.test_every_valid_header_gives_the_client_and_is_taken_off",
        ),
    ),
    Break(
        "--accept-proxy v2: LOCAL leaves the connection's own address",
        "if command == 0x20:",
        "if False:",
        at(
            "proxy",
            "Receiving.test_every_valid_header_gives_the_client_and_is_taken_off",
        ),
    ),
    Break(
        "--accept-proxy v2: extensions are taken off, too",
        'size += int.from_bytes(header[14:], "big")',
        'size += min(12, int.from_bytes(header[14:], "big"))',
        at(
            "proxy",
            "Receiving.test_every_valid_header_gives_the_client_and_is_taken_off",
        ),
    ),
    Break(
        "--accept-proxy v2: a wrong checksum is refused",
        '!= crc32c(zeroed).to_bytes(4, "big")',
        "!= header[start + 3 : end]",
        at("proxy", "Receiving.test_no_byte_of_an_invalid_header_reaches_a_server"),
    ),
    Break(
        "--accept-proxy v2: an unknown version is refused",
        "if command not in (0x20, 0x21):",
        "if False:",
        at("proxy", "Receiving.test_no_byte_of_an_invalid_header_reaches_a_server"),
    ),
    Break(
        "--accept-proxy: who sends no whole header is closed after 5 s",
        "PROXY_HEADER_TIMEOUT_S = 5.0",
        "PROXY_HEADER_TIMEOUT_S = 120.0",
        at(
            "proxy",
            "Receiving.test_peer_without_a_complete_header_is_closed_after_a_few_"
            "seconds",
        ),
    ),
    Break(
        "--send-proxy v1: source, destination and their ports, in this order",
        "{one} {two} {source[1]} {destination[1]}",
        "{two} {one} {source[1]} {destination[1]}",
        at(
            "proxy",
            "Sending.test_version_1_line_comes_first_with_both_addresses",
            "Sending.test_ipv6_addresses_are_sent_as_such",
        ),
    ),
    Break(
        "--send-proxy v1: TCP4 or TCP6, one family for both",
        "return hosts if both_4 else [as_ipv6(ip) for ip in hosts]",
        "return hosts",
        at("proxy", "Sending"),
    ),
    Break(
        "--send-proxy v2: the family of the addresses",
        "family = 0x11 if one.version == 4 else 0x21",
        "family = 0x11",
        at("proxy", "Sending.test_ipv6_addresses_are_sent_as_such"),
    ),
    Break(
        "--send-proxy comes before all else, and at once",
        "server_sock.send(preface)",
        "pass",
        at("proxy", "Sending.test_version_2_header_comes_first_with_both_addresses"),
    ),
    Break(
        "--send-proxy behind --accept-proxy keeps the first client",
        "row.set_source(session.source)",
        "pass",
        at("proxy", "Sending.test_chain_of_balancers_keeps_the_first_client"),
    ),
    Break(
        "--send-proxy behind --accept-proxy keeps where the client came to",
        "destination = session.destination or session",
        "destination = session",
        at("proxy", "Sending.test_chain_of_balancers_keeps_the_first_client"),
    ),
    Break(
        "--send-proxy: checks announce themselves, no client",
        "sock.sendall(PROXY_V2_LOCAL)",
        "pass",
        at("proxy", "Sending.test_checks_announce_themselves_and_no_client"),
    ),
    Break(
        "a loop through another balancer is noticed by PROXY headers",
        "if loops:",
        "if False:",
        at(
            "asked",
            "Itself.test_loop_through_another_balancer_ends_by_its_proxy_header",
        ),
    ),
    Break(
        "a balancer that is its own --server is refused",
        "if is_own(address, options.own):\n                    text",
        "if False:\n                    text",
        at("asked", "Itself.test_own_address_as_a_server_is_refused_at_the_start"),
    ),
    Break(
        "the same port of another address is another server",
        "if listens == ip or (covers and is_local(ip, address[2:])):",
        "if listens == ip or covers:",
        at("asked", "Itself.test_same_port_of_another_address_is_another_server"),
    ),
    Break(
        "a name that moves to the balancer itself is left out",
        "own = {a for _, a in addresses if is_own(a, self._options.own)}",
        "own = set()",
        at("asked", "Itself.test_name_that_moves_to_itself_is_left_out_with_a_line"),
    ),
    Break(
        "several addresses of a name are several servers",
        "return sorted({(int(family), address) for family, _, _, _, address in "
        "answers})",
        "return sorted({(int(f), where) for f, _, _, _, where in answers})[:1]",
        at("health", "Names.test_each_address_of_a_name_is_a_server"),
    ),
    Break(
        "a name is looked up again and again",
        "while not self._stopped.wait(self._options.check_interval):",
        "while not self._stopped.wait(60.0):",
        at("health", "Names.test_name_that_moves_takes_new_connections_along"),
    ),
    Break(
        "an address that is gone gets no new connection",
        "here = self.family and not self.gone",
        "here = self.family",
        at("health", "Names.test_name_that_moves_takes_new_connections_along"),
    ),
    Break(
        "a name that cannot be resolved for a while keeps its servers",
        "self._log.warn(name, words)\n                continue",
        "self._log.warn(name, words)\n                addresses = []",
        at(
            "health",
            "Names.test_name_that_cannot_be_resolved_for_a_while_keeps_its_servers",
        ),
    ),
    Break(
        "an address that returns is what the operator set it to",
        "server.gone = int(not stays)\n",
        "server.gone, server.admin = int(not stays), 0\n",
        at("units", "NamesThatMove"),
    ),
    Break(
        "new addresses of a name are checked, too",
        "self._watch(added)",
        "pass",
        at("faults", "Names"),
    ),
    Break(
        "a name without an address is DOWN, and comes in later",
        'return [], f"cannot resolve: {say_why(error)}"',
        "parser.error(say_why(error))",
        at(
            "asked",
            "NamesAtTheStart.test_only_name_without_an_address_starts_all_the_same",
        ),
    ),
    Break(
        "two names with one address are one server",
        'server["resolved"].remove(where)',
        "pass",
        at("asked", "NamesAtTheStart.test_two_names_with_one_address_are_one_server"),
    ),
    Break(
        "two forms of one address are one server",
        'parser.error(f"--server: {text} is given more than once")',
        "pass",
        at("faults", "OneAddress.test_two_forms_of_one_address_are_one_server"),
    ),
    Break(
        "several --listen: each serves",
        "for fd in self._doors:\n            self._poll.register(fd, self._mask)",
        "for fd in list(self._doors)[:1]:\n"
        "            self._poll.register(fd, self._mask)",
        at("asked", "SeveralListen.test_each_serves_and_the_log_names_it"),
    ),
    Break(
        "several --listen: the log names it",
        "{f'listen={door} ' if door else ''}",
        "",
        at("asked", "SeveralListen.test_each_serves_and_the_log_names_it"),
    ),
    Break(
        "one --listen: the log names none",
        "doors if len(doors) > 1 else []",
        "doors",
        at("asked", "SeveralListen.test_log_names_none_when_there_is_only_one"),
    ),
    Break(
        "two --listen of one address are refused",
        "if len(set(places)) < len(places):",
        "if False:",
        at("asked", "SeveralListen.test_two_of_one_address_are_refused"),
    ),
    Break(
        "--listen :PORT is all addresses",
        'host, port = parse_address(f"[{every}]{text}" if text[:1] == ":" else text)',
        "host, port = parse_address(text)",
        at("asked", "SeveralListen.test_colon_and_a_port_are_all_addresses"),
    ),
]


BREAKS: list[Break] = [
    *CHOOSING,
    *CHECKS,
    *WAITING,
    *STOPPING,
    *RELAYING,
    *ADDRESSES,
]
