"""load_balancer.py: the board by itself, with rows that no thread serves."""

from __future__ import annotations

import os
import random
import signal
import threading
import unittest
from unittest import mock

import load_balancer
from load_balancer import CLOSED, LOOK, STIR, Bell, Board, End, Row, Wake
from tests.support import DEADLINE_S

REFUSED = End("SC", "refused")


def board_of(*servers: str, workers: int = 1, arguments: tuple[str, ...] = ()) -> Board:
    """Return a board with these servers, rise 2 and fall 3, 20 rows a worker."""
    named = [f"--server={server}" for server in servers or ("127.0.0.1:9991",)]
    given = [*named, "--rise=2", "--fall=3", f"--workers={workers}", *arguments]
    options = load_balancer.parse_args(given)
    for server in options.servers:
        server["resolved"] = load_balancer.resolve(server["host"], server["port"])
    return Board(options, 20)


def takes_lock(board: Board) -> bool:
    """Tell whether the lock can be had; on a thread, for a test must not hang."""
    found = []

    def take() -> None:
        with board.lock:
            alone = not board.lock._lock.acquire(False)
            found.append((alone, board.holder))

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    return found == [(True, os.getpid())]


class Clients:
    """Rows of a board that begin as if a worker had accepted a client."""

    def __init__(self, board: Board, worker: int = 1) -> None:
        self.board, self._rows = board, board.rows_of(worker)
        self._listener = mock.Mock()
        self._listener.accept.side_effect = lambda: (mock.Mock(), ("127.0.0.1", 50000))

    def begin(self) -> Row:
        """Begin a connection: it has a place, or waits for one."""
        row = next(self._rows)
        if self.board.admit(row, self._listener) is None:
            raise AssertionError("the board is full")
        return row


class Cells(unittest.TestCase):
    """A row says what was noted in it, and nothing when it is nobody's."""

    def test_name_without_an_address_is_never_forgiven(self) -> None:
        board = board_of("127.0.0.1:9991")
        options = board.options
        options.servers[0] |= {"resolved": [], "why": "cannot resolve: unknown"}
        board = Board(options, 10)
        (server,) = board.servers()
        server.changed_ns -= 3600 * 10**9
        self.assertEqual((server.state, board.forgive()), ("DOWN", []))

    def test_row_keeps_its_client_and_the_servers_it_has_tried(self) -> None:
        board = board_of(*(f"127.0.0.1:{port}" for port in range(9001, 9101)))
        row = next(board.rows_of(1))
        servers = board.servers()
        row.set_source(("::ffff:192.0.2.1", 4711))
        self.assertEqual(row.source(), ("192.0.2.1", 4711))
        for server in (servers[0], servers[99]):
            row.note_tried(server)
        tried = [server.index for server in servers if row.has_tried(server)]
        self.assertEqual((tried, row.tries), ([0, 99], 2))
        row.clear()
        self.assertEqual([s for s in servers if row.has_tried(s)], [])

    def test_rows_of_workers_are_their_own(self) -> None:
        board = board_of(workers=2)
        rows = [{row.index for row in board.rows_of(number)} for number in (1, 2)]
        self.assertEqual([len(those) for those in rows], [20, 20])
        self.assertFalse(rows[0] & rows[1])
        self.assertNotIn(0, rows[0], "the ring's head")
        self.assertEqual({board.row(i).worker for i in rows[1]}, {2})


class Choice(unittest.TestCase):
    """Who is asked, and whose turn it is."""

    def served(self, board: Board, number: int) -> list[int]:
        """Return the indexes of the servers of so many clients, each one ended."""
        clients, found = Clients(board), []
        for _ in range(number):
            row = clients.begin()
            found.append(row.server - 1)
        return found

    def test_weights_interleave_instead_of_bursting(self) -> None:
        board = board_of("127.0.0.1:1,weight=5", "127.0.0.1:2", "127.0.0.1:3")
        self.assertEqual(self.served(board, 7), [0, 0, 1, 0, 2, 0, 0])

    def test_backup_serves_when_no_other_is_up_and_all_do_when_none_is(self) -> None:
        board = board_of("127.0.0.1:1", "127.0.0.1:2,backup", "127.0.0.1:3,backup")
        first, second, third = servers = board.servers()
        for down, asked in (
            ((), [first]),
            ((first,), [second]),
            ((first, second), [third]),
            (tuple(servers), servers),
        ):
            with self.subTest(down=[server.index for server in down]):
                for server in servers:
                    server.health = 0 if server in down else server.top_health
                found = load_balancer.candidates(servers)
                self.assertEqual(load_balancer.first_rank(*found), asked)

    def test_random_takes_a_busier_server_only_when_both_picks_are_it(self) -> None:
        board = board_of("127.0.0.1:1", "127.0.0.1:2")
        busy, _ = servers = board.servers()
        busy.places_taken, rng = 5, random.Random(7)
        found = [load_balancer.choose(servers, "random", rng) for _ in range(1000)]
        self.assertAlmostEqual(found.count(busy), 250, delta=70)  # 5 deviations

    def test_full_servers_are_passed_over(self) -> None:
        board = board_of("127.0.0.1:1,max=1", "127.0.0.1:2,max=2")
        self.assertEqual(self.served(board, 4), [0, 1, 1, -1])


class Health(unittest.TestCase):
    """What checks, and connects for clients, say of a server."""

    def states(self, board: Board, results: str) -> str:
        """Note checks, "+" for one that passed; return "U" or "D" after each one."""
        (server,) = board.servers()
        found = ""
        for result in results:
            board.record_check(server, result == "+", "")
            found += server.state[0]
        return found

    def test_only_results_in_a_row_count(self) -> None:
        for results, states in (("--+--+---", "UUUUUUUUD"), ("---+-+-++", "UUDDDDDDU")):
            with self.subTest(results):
                self.assertEqual(self.states(board_of(), results), states)

    def test_change_of_state_is_told_to_each_worker_for_its_held_clients(self) -> None:
        board = board_of(workers=2)
        for results, told in (("--", []), ("-", [LOOK]), ("+", []), ("+", [LOOK])):
            self.states(board, results)
            self.assertEqual([bell.hear() for bell in board.bells[1:]], [told, told])

    def test_connect_for_a_client_says_nothing_where_checks_speak(self) -> None:
        for server, argument, state in (
            ("127.0.0.1:1", "--check-expect=+PONG", "DOWN"),
            ("127.0.0.1:1,check=2", "--rise=2", "DOWN"),
            ("127.0.0.1:1", "--check-send=PING", "UP"),
        ):
            with self.subTest(server=server, argument=argument):
                board = board_of(server, arguments=(argument,))
                self.states(board, "---")
                (served,), row = board.servers(), Clients(board).begin()
                for _ in range(2):
                    board.connected(row, served, 0)
                self.assertEqual(served.state, state)

    def test_shortage_of_this_machine_is_no_failure_of_the_server(self) -> None:
        for code, failures in (("RC", 0), ("SC", 1), ("sC", 1)):
            with self.subTest(code):
                board = board_of("127.0.0.1:1", arguments=("--fall=1",))
                row, (server,) = Clients(board).begin(), board.servers()
                board.give_back(row, server, End(code, "why"))
                self.assertEqual(server.connect_failures, failures)
                self.assertEqual(server.is_healthy, not failures)


class TheQueue(unittest.TestCase):
    """Who waits is served in the order of accept."""

    def test_free_place_goes_to_the_first_and_its_worker_is_told(self) -> None:
        board = board_of("127.0.0.1:9991,max=1")
        clients = Clients(board)
        holder, first, second = (clients.begin() for _ in range(3))
        self.assertEqual(board.queued, 2)
        board.end(holder, CLOSED)
        self.assertEqual((first.server, second.server, board.queued), (1, 0, 1))
        self.assertIn(first.index, board.bells[1].hear())

    def test_place_that_a_cut_has_freed_is_handed_to_nobody(self) -> None:
        board = board_of("127.0.0.1:9991,max=1")
        clients = Clients(board)
        holder, waiting = clients.begin(), clients.begin()
        board.cutting = 1000
        board.end(holder, End("KD", "closed at shutdown"))
        self.assertEqual((waiting.server, board.queued), (0, 1))

    def test_newcomer_does_not_overtake(self) -> None:
        board = board_of("127.0.0.1:9991,max=1")
        clients = Clients(board)
        holder, first = clients.begin(), clients.begin()
        with board.lock:
            board._leave_queue_locked(first)
        board.end(holder, CLOSED)
        self.assertEqual(first.server, 0)
        newcomer = clients.begin()
        self.assertEqual(newcomer.server, 1)

    def test_one_that_has_tried_a_server_is_before_all_others(self) -> None:
        board = board_of("127.0.0.1:1,max=1", "127.0.0.1:2,max=1")
        clients = Clients(board)
        one, two, waiting = (clients.begin() for _ in range(3))
        server = board.server_of(one)
        assert server
        board.give_back(one, server, REFUSED)
        self.assertIsNone(board.pick(one))  # the other one is full
        self.assertEqual(waiting.server, server.index + 1)
        later = clients.begin()
        board.end(two, CLOSED)
        self.assertEqual((one.server, later.server), (2, 0))

    def test_wait_is_counted_once_though_it_is_over_long_before_the_end(self) -> None:
        board = board_of("127.0.0.1:1,max=1")
        clients = Clients(board)
        for row in [clients.begin(), clients.begin()]:
            board.end(row, CLOSED)
        _, *counts = board.snapshot()["more"]["queue"]
        self.assertEqual(sum(counts), 1)

    def test_one_that_tries_again_looks_for_itself_and_rings_no_bell(self) -> None:
        board = board_of("127.0.0.1:1,max=1", "127.0.0.1:2,max=1")
        clients = Clients(board)
        _, *waiting = (clients.begin() for _ in range(3))
        for row in waiting:  # the second server, which then refuses
            server = board.server_of(row)
            assert server
            board.give_back(row, server, REFUSED)
            self.assertIsNone(board.pick(row))
        self.assertEqual(board.queued, 2)
        board.bells[1].hear()
        board.forget_tried(waiting[1])
        self.assertEqual([row.server for row in waiting], [0, 2])
        self.assertEqual((board.queued, board.bells[1].hear()), (1, []))
        board.cutting = 1000
        board.forget_tried(waiting[0])
        self.assertEqual((waiting[0].server, board.queued), (0, 1))

    def test_end_at_the_limit_wakes_who_accepts_and_nobody_in_the_queue(self) -> None:
        board = board_of(workers=2, arguments=("--max-connections=1",))
        row = Clients(board).begin()
        board.end(row, CLOSED)
        self.assertEqual([bell.hear() for bell in board.bells[1:]], [[STIR], [STIR]])

    def test_one_that_has_tried_all_servers_is_told_so(self) -> None:
        board = board_of()
        row = Clients(board).begin()
        (server,) = board.servers()
        board.give_back(row, server, REFUSED)
        with self.assertRaises(load_balancer.NoServerError):
            board.pick(row)


class DeadWorkers(unittest.TestCase):
    """After a death, all counts are made from the rows that are left."""

    def test_counts_are_right_whatever_a_dead_worker_left(self) -> None:
        board = board_of("127.0.0.1:9991,max=3", workers=2)
        dead, other = Clients(board, 1), Clients(board, 2)
        (server,) = board.servers()
        dead.begin()
        dead.begin()
        alive = other.begin()
        waiting = [other.begin(), dead.begin(), other.begin()]
        server.places_taken, board.queued, board.live = 7, 9, 11  # in mid-update
        lines = board.bury(1, load_balancer.WORKER_DIED)
        self.assertEqual(len(lines), 3)
        self.assertTrue(all(" end=ID " in line for line, _ in lines), lines)
        self.assertEqual((board.live, board.queued, server.places_taken), (3, 0, 3))
        self.assertEqual([r.server for r in (alive, waiting[0], waiting[2])], [1] * 3)
        for row in (alive, waiting[0], waiting[2]):
            board.end(row, CLOSED)
        self.assertEqual((board.live, server.places_taken), (0, 0))

    def test_all_look_again_for_the_dead_may_not_have_told_its_news(self) -> None:
        board = board_of(workers=2)
        board.bury(1, load_balancer.WORKER_DIED)
        self.assertEqual([bell.hear() for bell in board.bells], [[LOOK]] * 3)

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_lock_of_a_dead_process_is_taken_from_it(self) -> None:
        board = board_of(workers=2)
        for noted in (True, False):
            with self.subTest(noted=noted):
                child = os.fork()
                if not child:
                    board.lock.me = os.getpid()
                    board.lock.__enter__()
                    board.holder *= noted  # else it dies before it is noted
                    os._exit(0)
                os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
                self.assertTrue(takes_lock(board))
                os.waitpid(child, 0)
                self.assertTrue(takes_lock(board))  # it is free, once

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_stopped_process_that_has_the_lock_is_killed(self) -> None:
        board = board_of(workers=2)
        child = os.fork()
        if not child:
            board.lock.me = os.getpid()
            board.lock.__enter__()
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        os.waitid(os.P_PID, child, os.WSTOPPED)
        with mock.patch.object(load_balancer, "STALL_S", 0.1):
            taken = takes_lock(board)
        if not taken:
            os.kill(child, signal.SIGKILL)
        self.assertEqual(os.waitpid(child, 0)[1], signal.SIGKILL)
        self.assertTrue(taken)


class Bells(unittest.TestCase):
    """Who is rung hears it, also when it was rung before it listened."""

    def test_bell_says_which_rows_it_was_rung_for(self) -> None:
        bell = Bell()
        self.addCleanup(bell.close)
        for number in (5, 70000):
            bell.ring(number)
        self.assertEqual(sorted(bell.hear()), [5, 70000])

    def test_bell_that_nobody_hears_holds_nobody_up(self) -> None:
        bell = Bell()
        self.addCleanup(bell.close)
        for _ in range(100_000):
            bell.ring(7)
        self.assertTrue(bell.hear())

    def test_wake_is_heard_once(self) -> None:
        wake = Wake()
        self.addCleanup(wake.close)
        poll = load_balancer.new_poll()
        poll.register(wake.fileno(), load_balancer.POLLIN)
        wake.ring()
        wake.ring()
        self.assertTrue(poll.poll(0))
        wake.hear()
        self.assertEqual(poll.poll(0), [])
