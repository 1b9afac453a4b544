"""Breaks of load_balancer.py, in the order of its promises."""

from __future__ import annotations

from tests.breaks import Break


def at(area: str, *names: str) -> tuple[str, ...]:
    """Return the full names of tests in tests/test_load_balancer_AREA.py."""
    return tuple(f"tests.test_load_balancer{area and '_'}{area}.{n}" for n in names)


CHOOSING = [
    Break(
        "round robin hands connection k to server k mod 3, in the order given",
        "if credit > most:",
        "if credit >= most:",
        at("choice", "RoundRobin.test_round_robin_hands_connection_k_to_server_k_mod_3"),
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
        "clients that come at once are spread over the workers",
        "self._clients.stand_back()",
        "pass",
        at("workers", "Turns.test_clients_that_come_at_once_are_spread_over_the_workers"),
    ),
    Break(
        "weight=N is a server's share",
        'given["weight"], given["backup"]\n',
        '1, given["backup"]\n',
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
        'given["weight"], given["backup"]\n',
        'given["weight"], False\n',
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
        at("limits", "ServerLimit.test_server_never_counts_more_connections"
           "_than_its_limit"),
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
        at("choice", "Choosing.test_random_prefers_the_less_busy_of_two"),
    ),
    Break(
        "source: a client's address keeps its server",
        "host = row.source()[0]\n",
        "host = str(row.source())\n",
        at("choice", "Choosing.test_source_keeps_a_client_at_its_server_and_moves"
           "_only_who_must"),
    ),
    Break(
        "source: a server that is lost moves only its own clients",
        "host = row.source()[0]\n",
        'host = f"{row.source()[0]} {len(asked)}"\n',
        at("choice", "Choosing.test_source_keeps_a_client_at_its_server_and_moves"
           "_only_who_must"),
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
        at("choice", "Connecting.test_black_hole_costs_the_connect_timeout_and_only"
           "_its_own_client"),
    ),
    Break(
        "a client that leaves while its server is connected is noticed at once",
        "raise OverError(LEFT_CONNECTING)",
        "pass",
        at("choice", "Connecting.test_client_that_leaves_while_connecting_is_noticed"
           "_at_once"),
    ),
    Break(
        "a client that waits loses none of its bytes",
        "return client_sock.recv(1, socket.MSG_PEEK) ==",
        "return client_sock.recv(1) ==",
        at("choice", "Connecting.test_client_that_half_closed_after_a_request"
           "_is_served"),
    ),
]

BREAKS: list[Break] = [*CHOOSING]
