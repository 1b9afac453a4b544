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
        "check=HOST:PORT may be another host",
        "resolve(host or address[0], port)[0]",
        "resolve(address[0], port)[0]",
        at("asked", "ChecksThatSpeak.test_check_of_another_host_gets_no_proxy_header"),
    ),
    Break(
        "check=PORT gets no PROXY header",
        "elif options.send_proxy and not server.check_at:",
        "elif options.send_proxy:",
        at("asked", "ChecksThatSpeak.test_check_of_another_host_gets_no_proxy_header"),
    ),
    Break(
        "each server is checked by one process only",
        "if self._status:  # the desk's",
        "Desk(self._board, self._log).start()\n        if self._status:  # the desk's",
        at("health", "ChecksOfSeveral"),
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
        "--hold: a server that is UP again is tried at once",
        "self._ring_workers_locked()  # for those who are held",
        "pass",
        at("board", "Health"),
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
        "self._options.queue_timeout or math.inf",
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
        "source: those who wait for a server that goes DOWN keep their order",
        'if options.algorithm == "source" and self.queued:',
        "if False:",
        at("units", "TheQueue"),
    ),
    Break(
        "who is given a place is told",
        "self.lock.bells.append((row.worker, row.index))",
        "pass",
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
        "if rings:\n            self._bell.ring(STIR)",
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
        at("units", "Cuts"),
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
        "systemd is told by an abstract socket, too",
        'path[1:] if path[0] == "@" else path',
        'path if path[0] == "@" else path',
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
        "SIGHUP: the old log is kept when the new one cannot be opened, and told so",
        'self.line(f"cannot reopen {self._path}: {say_why(error)}")',
        "os.close(self._file)",
        at(
            "operations",
            "Log.test_log_that_cannot_be_opened_anew_goes_on_in_the_old_file",
        ),
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
        "--half-close-timeout holds for a dead side's last bytes, too",
        "patience_s = self._options.half_close_timeout or math.inf",
        "patience_s = math.inf",
        at("", "HalfCloseLimit"),
    ),
    Break(
        "a server that dies while it is connected: what it sent is delivered",
        "if server_died:",
        "if False:",
        at("", "Closing.test_bytes_that_arrived_before_a_server_reset_are_delivered"),
    ),
    Break(
        "bytes that came before a reset are delivered first",
        "LastBytes(from_dead).flush(patience_s)",
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
        at("units", "SlowReader"),
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
        at("units", "Prepared"),
    ),
    Break(
        "a reset that splice tells of is a reset",
        "if error.errno not in SPLICE_REFUSALS:",
        "if not error:",
        at("", "Closing"),
    ),
    Break(
        "who waits is given one place only",
        "if not (row.server or row.waits):",
        "if row:",
        at("units", "TheQueue"),
    ),
    Break(
        "a held client tries again once a second, whoever else comes",
        "        if short:\n            self._bell.ring(STIR)",
        "        if short:\n            self._bell.ring()",
        at("asked", "Hold"),
    ),
    Break(
        "a client in the queue tries again what has failed",
        "retry_s = RETRY_S if row.tries else math.inf",
        "retry_s = RETRY_S if in_vain else math.inf",
        at("asked", "Hold"),
    ),
    Break(
        "--hold is anew for each outage",
        "session.held_until = 0.0  # what",
        "pass  # what",
        at("asked", "Hold"),
    ),
    Break(
        "a second signal resets half a reply",
        "            self._cut(HASTE_S)\n",
        "            self._stops = 3\n",
        at("operations", "Stopping"),
    ),
    Break(
        "a stop fails nobody though nobody reads the output",
        "    with contextlib.suppress(OSError):\n        os.write(sys.stdout",
        "    with contextlib.suppress(KeyError):\n        os.write(sys.stdout",
        at("operations", "Stopping"),
    ),
    Break(
        "bytes arrive whatever splice answers",
        "if error.errno not in SPLICE_REFUSALS:",
        "if True:",
        at("faults", "SpliceThatStops"),
    ),
    Break(
        "a dead side's last bytes are given up when nobody takes them",
        "best, quiet_until, pause_s = acknowledged, now_s + timeout_s, 0.001",
        "best, pause_s = acknowledged, 0.001",
        at("units", "LastBytes"),
    ),
    Break(
        "a side that has vanished is given up after 120 s",
        "VANISHED_S = 120.0",
        "VANISHED_S = 1e9",
        at("units", "Vanished"),
    ),
    Break(
        "a side that has vanished is told by a small letter",
        "code = death.side[0] if death.vanished else death.side[0].upper()",
        "code = death.side[0].upper()",
        at("units", "Vanished"),
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
        "end = CLOSED",
        at("units", "Defects"),
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
        at("units", "Headers"),
    ),
    Break(
        "--send-proxy v1: TCP4 or TCP6, one family for both",
        "return hosts if both_4 else [as_ipv6(ip) for ip in hosts]",
        "return hosts",
        at("units", "Headers"),
    ),
    Break(
        "--send-proxy v2: source, destination and their ports, in this order",
        "body = one.packed + two.packed +",
        "body = two.packed + one.packed +",
        at("units", "Headers"),
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
        at("units", "Loops"),
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
        at("units", "Itself"),
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
        at(
            "faults",
            "NoThread.test_checks_of_a_name_that_moves_begin_once_threads_are_"
            "there_again",
        ),
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
        "an address that is left out is told once",
        "for address in whys.keys() - left_out:",
        "for address in whys:",
        at(
            "asked",
            "NamesAtTheStart.test_name_that_comes_to_anothers_address_is_left_out_"
            "with_one_line",
        ),
    ),
    Break(
        "an address that is another server's already is left out",
        "shared = [where.pop(key)[1] for key in others if key in where]",
        "shared = [where[key][1] for key in others if key in where]",
        at(
            "asked",
            "NamesAtTheStart.test_name_that_comes_to_anothers_address_is_left_out_"
            "with_one_line",
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
        "an IPv6 address has brackets before its port",
        'return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"',
        'return f"{host}:{port}"',
        at("operations", "Ipv6"),
    ),
    Break(
        "--listen :PORT is all addresses",
        'host, port = parse_address(f"[{every}]{text}" if text[:1] == ":" else text)',
        "host, port = parse_address(text)",
        at("asked", "SeveralListen.test_colon_and_a_port_are_all_addresses"),
    ),
]


STATUS = [
    Break(
        "status.json has the contract's keys",
        '"connect_failures": server.connect_failures,',
        '"failures": server.connect_failures,',
        at("status", "Formats.test_status_document_has_the_keys_of_the_contract"),
    ),
    Break(
        "status.json: version 1",
        'head = {"version": 1, "listen"',
        'head = {"version": 2, "listen"',
        at("status", "Formats.test_status_document_has_the_keys_of_the_contract"),
    ),
    Break(
        "status.json: total counts connections made to a server",
        "if row.connect_ns:\n            self.total += 1",
        "if row.connect_ns:\n            self.total += 2",
        at("status", "Figures.test_figures_are_exact_and_agree_with_log_and_metrics"),
    ),
    Break(
        "status.json: bytes of connections that have ended",
        "self.to_clients += row.to_client",
        "pass",
        at("status", "Figures.test_figures_are_exact_and_agree_with_log_and_metrics"),
    ),
    Break(
        "status.json: bytes of live connections",
        'amounts["to_clients"] += row.to_client',
        "pass",
        at("", "Relay.test_live_figures_count_the_bytes_of_an_open_connection"),
    ),
    Break(
        "status.json: retries are those that went on to another server",
        "server.retries += goes_on",
        "server.retries += 1",
        at("units", "TheQueue"),
    ),
    Break(
        "status.json: active is what is live now",
        "self.live -= 1\n",
        "pass\n",
        at("board", "DeadWorkers", "TheQueue", "Health"),
    ),
    Break(
        "status.json: stopping once it was told to",
        '"stopping": bool(self.leaving)',
        '"stopping": False',
        at("operations", "Stopping.test_status_says_that_it_is_stopping"),
    ),
    Break(
        "status.json: who was refused has not failed",
        'return self.code[0] not in "CPK"',
        'return self.code[0] not in "CK"',
        at("status", "Formats.test_failed_and_refused_connections_are_counted_apart"),
    ),
    Break(
        "status.json: who was refused is counted",
        'self.refused += end.code == "PC"',
        "pass",
        at("status", "Formats.test_failed_and_refused_connections_are_counted_apart"),
    ),
    Break(
        "metrics: the contract's names",
        '("connections_failed_total", "counter", "failed",',
        '("failed_total", "counter", "failed",',
        at("status", "Formats.test_metrics_have_a_type_and_a_help_each"),
    ),
    Break(
        "metrics: the contract's names of servers",
        '("retries_total", "counter", "retries",',
        '("retried_total", "counter", "retries",',
        at("status", "Formats.test_metrics_have_a_type_and_a_help_each"),
    ),
    Break(
        "metrics: direction is to_server or to_client",
        '{{{label},direction="{way}"}}',
        '{{{label},way="{way}"}}',
        at("status", "Figures"),
    ),
    Break(
        "metrics: each end has a counter, from the start",
        "for k, n in ends))",
        "for k, n in ends if n))",
        at("status", "Formats.test_each_end_of_readme_has_its_counter"),
    ),
    Break(
        "metrics: a wait in the queue is counted once",
        "row.queued_ns = 0\n",
        "pass\n",
        at("board", "TheQueue"),
    ),
    Break(
        "metrics: histograms are cumulative",
        "totals = list(itertools.accumulate(cells[1:]))",
        "totals = list(cells[1:])",
        at("status", "Figures", "Formats"),
    ),
    Break(
        "metrics: server_state is 1 for the present one",
        'int(one["state"] == state)',
        'int(one["up"])',
        at("asked", "Metrics.test_each_alert_has_its_figure"),
    ),
    Break(
        "metrics: failed checks are counted",
        "server.checks_failed += not passed",
        "pass",
        at("asked", "Metrics.test_failed_checks_are_counted"),
    ),
    Break(
        "metrics: start_time_seconds is in Unix time",
        "round(self.started_s, 3)",
        "round(self.started_ns / 1e9, 3)",
        at("status", "Formats.test_build_and_start_are_told"),
    ),
    Break(
        "metrics: build_info has version and python",
        "info = f'version=\"{VERSION}\",python",
        "info = f'version=\"1\",python",
        at("status", "Formats.test_build_and_start_are_told"),
    ),
    Break(
        "/healthz: 503 while no server is UP",
        "self._reply(200 if words == \"ok\\n\" else 503,",
        "self._reply(200,",
        at(
            "status",
            "Formats.test_healthz_is_200_while_a_server_is_up_and_503_otherwise",
        ),
    ),
    Break(
        "/healthz: 503 while those that are UP are drained",
        "words = \"ok\\n\" if board.is_up() else",
        "words = \"ok\\n\" if board.may_serve() else",
        at(
            "status",
            "Formats.test_healthz_is_200_while_a_server_is_up_and_503_otherwise",
        ),
    ),
    Break(
        "/healthz and /metrics answer any Host",
        'if path not in ("/healthz", "/metrics") and not',
        "if not",
        at("status", "Page.test_probe_and_prometheus_are_answered_whatever_their_host"),
    ),
    Break(
        "the others answer a known Host only",
        'if host in ("localhost", self._own_ip(), *self.server.names):',
        "if True:",
        at("status", "Page.test_foreign_host_is_refused"),
    ),
    Break(
        "--status-host is a known Host",
        "names = (where[0], *(board.options.status_host or ()))",
        "names = (where[0],)",
        at("asked", "StatusInPublic.test_names_that_are_given_are_known"),
    ),
    Break(
        "--status-host is known in any case",
        "[name.lower() for name in names]",
        "list(names)",
        at("status", "InPublic.test_names_that_are_given_are_known_in_any_case"),
    ),
    Break(
        "POST: a foreign page is refused",
        "if not (self._is_own_host() and self._is_own_page()):",
        "if not self._is_own_host():",
        at("status", "Page.test_post_that_a_foreign_page_could_send_is_refused"),
    ),
    Break(
        "POST: a foreign Host is refused",
        "if not (self._is_own_host() and self._is_own_page()):",
        "if not self._is_own_page():",
        at("status", "Page.test_foreign_host_cannot_change_a_state"),
    ),
    Break(
        "POST: another Origin is refused",
        "ours = origin in (origin_here, None) and from_here",
        "ours = from_here",
        at("status", "Page.test_post_that_a_foreign_page_could_send_is_refused"),
    ),
    Break(
        "POST: another Referer is refused",
        "ours = origin in (origin_here, None) and from_here",
        "ours = origin in (origin_here, None)",
        at("status", "Page.test_post_that_a_foreign_page_could_send_is_refused"),
    ),
    Break(
        "POST: without Origin it needs X-Requested-With",
        'if ours and (origin or self.headers.get("X-Requested-With")):',
        "if ours:",
        at("status", "Page.test_post_that_a_foreign_page_could_send_is_refused"),
    ),
    Break(
        "POST: without Host it is refused",
        'if given is None and self.command != "POST":',
        "if given is None:",
        at("status", "Page"),
    ),
    Break(
        "POST: on a loopback address only",
        "return is_near or bool(",
        "return True or bool(",
        at(
            "status",
            "InPublic.test_post_is_refused_with_the_remedy_and_the_page_has_no_buttons",
        ),
    ),
    Break(
        "--status-control: POST is obeyed elsewhere, too",
        "return is_near or bool(",
        "return is_near and bool(",
        at("status", "InPublic.test_post_is_obeyed_where_control_was_given"),
    ),
    Break(
        "the page has no buttons where they would do nothing",
        'page = PAGE if self._may_control() else PAGE.replace(BUTTONS, "")',
        "page = PAGE",
        at(
            "status",
            "InPublic.test_post_is_refused_with_the_remedy_and_the_page_has_no_buttons",
        ),
    ),
    Break(
        "POST: what is not there is 404",
        'self._reply(404, "text/plain", f"no server',
        'self._reply(200, "text/plain", f"no server',
        at("status", "Page.test_post_to_what_is_not_there_is_404_and_changes_nothing"),
    ),
    Break(
        "POST: drain, ready and maint are three",
        "server.state, ADMIN.index(admin)",
        "server.state, int(ADMIN.index(admin) > 0)",
        at("health", "States.test_server_in_maintenance_is_neither_used_nor_checked"),
    ),
    Break(
        "POST: the log says who did it",
        " by the operator at {whence}",
        " by the operator",
        at(
            "asked",
            "StatusInPublic.test_change_by_hand_is_logged_with_the_address_it_came_"
            "from",
        ),
    ),
    Break(
        "the page is never cached",
        'self.send_header("Cache-Control", "no-store")',
        "pass",
        at("status", "Page.test_answers_are_never_cached_nor_sniffed"),
    ),
    Break(
        "the page needs nothing from outside",
        "connect-src 'self'; ",
        "connect-src *; ",
        at("status", "Page.test_page_is_whole_and_needs_nothing_from_outside"),
    ),
    Break(
        "the page lists live connections, their age and bytes",
        '"age_s": round((now_ns - row.accepted_ns) / 1e9, 3),',
        '"age_s": 0.0,',
        at("status", "Page.test_live_list_shows_each_open_connection"),
    ),
    Break(
        "/history.json has connections per second",
        "connections = max(0.0, (total_now - total) / seconds)",
        "connections = float(total_now - total)",
        at("units", "Rates"),
    ),
    Break(
        "HEAD has no body",
        'if self.command != "HEAD":',
        "if True:",
        at("status", "Page.test_head_is_answered_without_a_body"),
    ),
    Break(
        "the oldest status client makes way when there are too many",
        "if len(self._open) > STATUS_CONNECTIONS:",
        "if False:",
        at("status", "Page.test_oldest_status_clients_make_way_beyond_the_limit"),
    ),
    Break(
        "the page has the rates of the last seconds though nobody looks",
        "self.stopped.wait(1.0)",
        "self.stopped.wait(60.0)",
        at("status", "History.test_rates_of_all_servers_are_kept_though_nobody_looks"),
    ),
    Break(
        "the page has the last 90 s",
        "HISTORY_S = 90 ",
        "HISTORY_S = 9 ",
        at("status", "History"),
    ),
    Break(
        "the page has the last events, also with --quiet",
        "if key == \"-\":\n            self.note",
        "if key == \"-\" and not self.silent:\n            self.note",
        at("status", "History.test_state_and_refusals_are_events_even_when_quiet"),
    ),
    Break(
        "the page says who was refused",
        "\"PC\": \"refused\",\n    \"RC\"",
        '"RC"',
        at("status", "History.test_state_and_refusals_are_events_even_when_quiet"),
    ),
]


WORKERS = [
    Break(
        "--workers auto: one per usable core",
        "1 if alone else usable_cores()",
        "1",
        at("operations", "Workers.test_auto_starts_one_worker_per_core"),
    ),
    Break(
        "--workers auto: 1 on a free-threaded Python",
        "alone = why or is_free_threaded()",
        "alone = why",
        at("units", "Defaults"),
    ),
    Break(
        "a stop that all processes hear is the parent's alone",
        "signal.signal(number, signal.SIG_IGN)\n\n    def close",
        "signal.signal(number, signal.SIG_DFL)\n\n    def close",
        at(
            "workers",
            "Deaths.test_stop_that_all_processes_hear_lets_live_connections_end",
        ),
    ),
    Break(
        "--max-connections: who waits is accepted by another worker, too",
        "if self.live >= self.limit:\n                self._ring_workers_locked(STIR)",
        "pass",
        at("workers", "Turns.test_limit_of_all_workers_lets_the_next_one_in_at_any"),
    ),
    Break(
        "a killed worker's news are not lost",
        "self.ring_all()\n        return lines",
        "return lines",
        at("board", "DeadWorkers"),
    ),
    Break(
        "a killed worker is replaced",
        "self._waiting[number] = at",
        "pass",
        at(
            "workers",
            "Deaths.test_connections_of_other_workers_go_on_and_those_that_wait_"
            "are_served",
        ),
    ),
    Break(
        "a killed worker takes its own connections only",
        "dead = [row for row in rows if row.worker == worker]",
        "dead = rows",
        at("board", "DeadWorkers"),
    ),
    Break(
        "a killed worker's places are freed",
        "server.places_taken = places[server.index + 1]",
        "pass",
        at("board", "DeadWorkers"),
    ),
    Break(
        "a killed worker leaves others in the queue",
        "waits, row.waits = row.waits and not row.server, 0",
        "waits, row.waits = 0, 0",
        at("board", "DeadWorkers"),
    ),
    Break(
        "each connection of a killed worker has its line, with ID",
        "CUT if orderly else WORKER_DIED",
        "CUT",
        at(
            "workers",
            "Deaths.test_connections_of_other_workers_go_on_and_those_that_wait_"
            "are_served",
        ),
    ),
    Break(
        "the log says which worker died, and of what",
        'text = f"{who} died by {cause}{with_what}"',
        'text = "it died"',
        at(
            "workers",
            "Deaths.test_connections_of_other_workers_go_on_and_those_that_wait_"
            "are_served",
        ),
    ),
    Break(
        "a killed desk is replaced",
        "if number is not None:  # else",
        "if number:  # else",
        at("workers", "Deaths.test_killed_desk_is_replaced"),
    ),
    Break(
        "a killed parent leaves no worker",
        "if life in dict(ready):",
        "if False:",
        at("workers", "Deaths.test_killed_parent_leaves_no_process"),
    ),
    Break(
        "a child of somebody else's is no worker",
        "self._children.pop(dead[0], None)",
        "self._children.pop(dead[0], 1)",
        at("operations", "Stopping.test_child_of_somebody_else_is_no_worker"),
    ),
    Break(
        "a dead process does not keep the board's lock",
        "if is_parent and (is_dead(holder) if holder else waited_s > 1.0):",
        "if False:",
        at("board", "DeadWorkers.test_lock_of_a_dead_process_is_taken_from_it"),
    ),
    Break(
        "a stopped process does not keep the board's lock",
        "if waited_s > STALL_S and holder not in (0, self.me):",
        "if False:",
        at("board", "DeadWorkers.test_stopped_process_that_has_the_lock_is_killed"),
    ),
    Break(
        "a worker that is stopped ends with the others",
        "for pid in workers:\n            os.kill(pid, signal.SIGKILL)",
        "for pid in []:\n            os.kill(pid, signal.SIGKILL)",
        at(
            "operations",
            "Stopping.test_second_signal_after_the_grace_ends_it_at_once_with_each_"
            "line_logged",
        ),
    ),
    Break(
        "a connection has one line, though its worker died just after it",
        "return before != accepted",
        "return True",
        at("units", "LogThatCannotBeWritten"),
    ),
    Break(
        "a system without fork is told so in one line",
        'return "this system cannot fork"',
        'return ""',
        at(
            "operations",
            "OtherSystems.test_workers_that_a_system_cannot_have_are_refused_in_"
            "one_line",
        ),
    ),
]


LOGGING = [
    Break(
        "the line of a connection has the contract's format",
        'f"undelivered={end.undelivered} end={end.code} {end.words}"',
        'f"lost={end.undelivered} end={end.code} {end.words}"',
        at("operations", "Log.test_lines_have_the_literal_format"),
    ),
    Break(
        "tries counts the server that took it",
        "tries={row.tries + bool(server)}",
        "tries={row.tries}",
        at("operations", "Log.test_lines_have_the_literal_format"),
    ),
    Break(
        "connect_ms is in milliseconds",
        "{row.connect_ns / 1e6:.2f}",
        "{row.connect_ns / 1e3:.2f}",
        at("units", "Lines"),
    ),
    Break(
        "duration_ms is in milliseconds",
        "duration_ms={seconds * 1000:.1f}",
        "duration_ms={seconds:.1f}",
        at("units", "Lines"),
    ),
    Break(
        "the time is local",
        'stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))',
        'stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(second))',
        at("units", "Lines"),
    ),
    Break(
        "the time has three digits of milliseconds",
        "{int(at % 1 * 1000):03d}",
        "{int(at % 1 * 1000)}",
        at("units", "Lines"),
    ),
    Break(
        "a time of the server's is told by a small letter",
        'End("sC" if code == errno.ETIMEDOUT else "SC", words)',
        'End("SC", words)',
        at(
            "choice",
            "Connecting.test_no_server_reachable_ends_each_client_with_the_reason",
        ),
    ),
    Break(
        "a client that is idle is told apart from its server",
        'code, side = ("sD", "server") if latest is upstream',
        'code, side = ("sD", "server") if latest',
        at("", "TimeLimits.test_silence_ends_connections_at_their_time_limits"),
    ),
    Break(
        "an end after the server had finished is told by L",
        '"L" if death.side == "client" and down.from_ended and missed',
        '"L" if False',
        at(
            "",
            "Closing.test_client_that_resets_before_a_finished_server_has_arrived_"
            "missed_its_end",
        ),
    ),
    Break(
        "CC: the client left while its server was connected",
        'LEFT_CONNECTING = End("CC",',
        'LEFT_CONNECTING = End("CQ",',
        at(
            "choice",
            "Connecting.test_client_that_leaves_while_connecting_is_noticed_at_once",
        ),
    ),
    Break(
        "CQ: the client left while it waited",
        'LEFT_QUEUE = End("CQ",',
        'LEFT_QUEUE = End("CC",',
        at("limits", "ServerLimit.test_client_that_leaves_the_queue_takes_no_place"),
    ),
    Break(
        "sQ: no place at a server in time",
        'QUEUED_TOO_LONG = End("sQ",',
        'QUEUED_TOO_LONG = End("SC",',
        at(
            "limits",
            "ServerLimit.test_queue_timeout_ends_the_wait_with_its_own_reason",
        ),
    ),
    Break(
        "SC: no server may have clients",
        'NO_SERVER = End("SC",',
        'NO_SERVER = End("sQ",',
        at("faults", "WhoMayBeAsked.test_no_place_and_no_server_are_two_reasons"),
    ),
    Break(
        "KQ: closed at shutdown while it waited",
        'CUT_QUEUED = End("KQ",',
        'CUT_QUEUED = End("KC",',
        at("operations", "Stopping.test_queued_clients_are_told_when_it_stops"),
    ),
    Break(
        "KQ: a place that the cut has freed is handed to nobody",
        "if not self.queued or self.cutting:",
        "if not self.queued:",
        at("board", "TheQueue.test_place_that_a_cut_has_freed_is_handed_to_nobody"),
    ),
    Break(
        "KQ: at a cut nobody in the queue is given a server",
        "if server is None and board.cutting:",
        "if False:",
        at("units", "Cuts.test_who_waits_then_is_given_no_server_though_one_is_free"),
    ),
    Break(
        "KC: what a client had sent is not passed on after the cut",
        "if session.cut:  # nothing was sent yet, and nothing is",
        "if False:",
        at("units", "Cuts.test_connect_that_succeeds_after_it_passes_nothing_on"),
    ),
    Break(
        "--queue-timeout: in all, however often it tries a server meanwhile",
        "session.queued_until or now_s + timeout_s",
        "now_s + timeout_s",
        at(
            "limits",
            "ServerLimit.test_queue_timeout_holds_though_another_server_fails_meanwhile",
        ),
    ),
    Break(
        "one that tries again does so for itself",
        "            if row.waits and not self.cutting:\n"
        "                self._serve_waiting_locked(row)\n",
        "            self._hand_out_locked()\n",
        at(
            "board",
            "TheQueue.test_one_that_tries_again_looks_for_itself_and_rings_no_bell",
        ),
    ),
    Break(
        "an end at --max-connections wakes who accepts, not the queue",
        "self._ring_workers_locked(STIR)",
        "self._ring_workers_locked()",
        at(
            "board",
            "TheQueue.test_end_at_the_limit_wakes_who_accepts_and_nobody_in_the_queue",
        ),
    ),
    Break(
        "--on-down reset: a half-closed client that does not read, too",
        "mask & POLLERR or self._session.cut or not reads.other.end_passed",
        "mask & POLLERR or not reads.other.end_passed",
        at(
            "asked", "OnDown.test_half_closed_client_that_does_not_read_is_reset_too"
        ),
    ),
    Break(
        "a name that had no address has moved from then on",
        "if server.given == given and where and not server.gone:",
        "if server.given == given and where:",
        at("units", "NamesThatMove.test_first_address_of_a_name_is_said_once"),
    ),
    Break(
        "PC: refused",
        'return End("PC", f"refused',
        'return End("CC", f"refused',
        at("limits", "Access.test_client_outside_is_closed_and_no_server_contacted"),
    ),
    Break(
        "RC: nothing left to connect with",
        'End("RC", f"cannot connect: {words}")',
        'End("SC", words)',
        at("units", "ChecksInAShortage"),
    ),
    Break(
        "--log FILE is appended to",
        "os.O_WRONLY | os.O_APPEND | os.O_CREAT",
        "os.O_WRONLY | os.O_TRUNC | os.O_CREAT",
        at(
            "operations",
            "Log.test_log_file_takes_the_lines_instead_of_standard_output",
        ),
    ),
    Break(
        "--log - is standard output",
        'options.log = None if options.log == "-" else options.log',
        "pass",
        at("operations", "Log.test_a_minus_is_standard_output"),
    ),
    Break(
        "--quiet prints nothing but the first line",
        "self.silent = quiet and path is None",
        "self.silent = False",
        at("operations", "Log.test_quiet_balancer_prints_nothing_but_its_first_line"),
    ),
    Break(
        "--quiet: a --log FILE is still written",
        "self.silent = quiet and path is None",
        "self.silent = quiet",
        at("operations", "Log.test_quiet_balancer_still_writes_its_log_file"),
    ),
    Break(
        "SIGHUP reopens the log, also with several workers",
        "self._board.bells[0].ring(REOPEN)",
        "pass",
        (
            "tests.test_surroundings.ClosedWindow.test_sighup_reopens_the_log_"
            "where_there_never_was_a_terminal",
        ),
    ),
    Break(
        "lines that could not be written are told in the log",
        "self._lost += lost\n",
        "pass\n",
        at("units", "LogThatCannotBeWritten"),
    ),
    Break(
        "a line torn by a full disk ends before the next begins",
        "ending = b\"\\n\" * self._torn",
        'ending = b""',
        at("units", "LogThatCannotBeWritten"),
    ),
    Break(
        "what may come often is said once a second",
        "if now_s - self._said.get(kind, -1.0) < 1.0:",
        "if False:",
        at(
            "choice",
            "Connecting.test_no_server_is_said_once_per_second_and_service_resumes",
        ),
    ),
    Break(
        "a log that nobody reads stops no service",
        "os.set_blocking(self._pipe[1], False)",
        "pass",
        at(
            "units",
            "LogThatCannotBeWritten.test_lines_for_a_desk_that_is_stopped_hold_"
            "nobody_up",
        ),
    ),
    Break(
        "a terminal gets shorter lines",
        "Screen() if not path and os.isatty(1) else None",
        "None",
        at(
            "status",
            "OnScreen.test_terminal_gets_short_lines_and_a_sum_without_a_further_line",
        ),
    ),
    Break(
        "a terminal's lines fit 80 columns",
        "SCREEN_COLUMNS = 80",
        "SCREEN_COLUMNS = 90",
        at("status", "OnScreen"),
    ),
    Break(
        "a terminal gets a sum when there are many connections",
        "SCREEN_LINES = 20",
        "SCREEN_LINES = 20000",
        at("status", "OnScreen.test_many_connections_are_summed_up_once_a_second"),
    ),
    Break(
        "a dumb terminal gets no escape sequence",
        "self._has_colours = not plain",
        "self._has_colours = True",
        at("status", "OnScreen.test_change_of_state_is_said_in_words_and_colour"),
    ),
    Break(
        "a terminal hears of a stop though the log goes to a file",
        "if self._options.log and not self._options.quiet:",
        "if False:",
        at(
            "operations",
            "Log.test_stop_is_told_on_standard_output_though_the_log_is_a_file",
        ),
    ),
]


STARTS = [
    Break(
        "--version says 2.0",
        'VERSION = "2.0"',
        'VERSION = "2.1"',
        at("asked", "Metrics.test_version_is_told_in_three_places"),
    ),
    Break(
        "an older Python is told so in a line",
        "if sys.version_info < (3, 11):",
        "if sys.version_info < (3, 6):",
        (
            "tests.test_surroundings.OldPython.test_an_older_python_gets_one_line_"
            "and_exit_code_2",
        ),
    ),
    Break(
        "a port in use is one line with the cause and how to find it",
        "if number == errno.EADDRINUSE:",
        "if False:",
        (
            "tests.test_surroundings.PortsInUse.test_a_port_in_use_is_one_line_"
            "with_the_cause_and_how_to_find_it",
        ),
    ),
    Break(
        "an address of another machine is one plain line",
        "elif number == errno.EADDRNOTAVAIL:",
        "elif False:",
        (
            "tests.test_surroundings.PortsInUse.test_an_address_that_cannot_be_had_"
            "is_one_plain_line",
        ),
    ),
    Break(
        "a port in use ends with status 1",
        "what_fails: str, status: int = 1, port",
        "what_fails: str, status: int = 3, port",
        at("operations", "BadOptions.test_port_in_use_is_named_with_exit_code_1"),
    ),
    Break(
        "a bad option is one line, with status 2",
        "self.exit(2, f\"{self.prog}: {message} (see --help)\\n\")",
        "super().error(message)",
        at("operations", "BadOptions.test_each_bad_value_is_named_with_exit_code_2"),
    ),
    Break(
        "standard streams that are closed are no other file",
        "open_missing_streams()\n    options",
        "options",
        (
            "tests.test_surroundings.ClosedStreams.test_a_balancer_serves_and_its_"
            "log_has_nothing_but_lines_of_it",
        ),
    ),
    Break(
        "a system without splice serves",
        'CAN_SPLICE = hasattr(os, "splice")',
        "CAN_SPLICE = True",
        at("operations", "OtherSystems.test_each_linux_only_call_may_be_missing"),
    ),
    Break(
        "a system without poll serves",
        'new_poll: Callable[[], Any] = getattr(select, "poll", SelectPoll)',
        "new_poll: Callable[[], Any] = select.poll",
        at("operations", "OtherSystems.test_each_linux_only_call_may_be_missing"),
    ),
    Break(
        "a system without threads is told so in one line",
        'with start_step("cannot start"):',
        "with contextlib.nullcontext():",
        at(
            "operations",
            "BadOptions.test_system_without_threads_is_named_with_exit_code_1",
        ),
    ),
    Break(
        "the usual servers are 9991, 9992 and 9993",
        "DEFAULT_PORTS = (9991, 9992, 9993)",
        "DEFAULT_PORTS = (9992, 9991, 9993)",
        at("units", "Defaults"),
    ),
    Break(
        "the usual port is 9990, on loopback",
        'or [("127.0.0.1", 9990)]',
        'or [("0.0.0.0", 9990)]',
        at("units", "Defaults"),
    ),
    Break(
        "the defaults are the contract's",
        '("--rise", "N", parse_times, 2,',
        '("--rise", "N", parse_times, 3,',
        at("units", "Defaults"),
    ),
    Break(
        "importing the script starts nothing",
        "if __name__ == \"__main__\":\n    exit_status",
        "if True:\n    exit_status",
        at("operations", "Defaults.test_importing_the_script_starts_nothing"),
    ),
    Break(
        "Ctrl-C during a name's look-up ends it at once",
        "signal.signal(signal.SIGINT, signal.SIG_DFL)",
        "pass",
        (
            "tests.test_surroundings.SlowNames.test_ctrl_c_during_a_name_lookup_"
            "ends_all_three_at_once",
        ),
    ),
]


BREAKS: list[Break] = [
    *CHOOSING,
    *CHECKS,
    *WAITING,
    *STOPPING,
    *RELAYING,
    *ADDRESSES,
    *STATUS,
    *WORKERS,
    *LOGGING,
    *STARTS,
]
