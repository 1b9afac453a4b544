"""load_balancer.py: what needs a failure or a moment that no client can bring about.

Parts of it by themselves: the board with rows that no thread serves, a clock that a
test sets, a dead process that has the lock, a name that moves away and back, a check
without a source port, a log on a full disk, last bytes that nobody acknowledges.
"""

from __future__ import annotations

import array
import contextlib
import errno
import io
import os
import signal
import socket
import tempfile
import threading
import time
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import load_balancer
from load_balancer import Bell, Board, Direction, End, Log, Row, Wake
from tests.balancer import TIME

REFUSED = End("SC", "refused")
HERE, THERE, AWAY = (
    (int(socket.AF_INET), (f"127.0.0.{number}", 9991)) for number in (1, 2, 3)
)


def board_of(*servers: str, workers: int = 1, arguments: tuple[str, ...] = ()) -> Board:
    """Return a board with these servers, rise 2 and fall 3, 20 rows a worker."""
    named = [f"--server={server}" for server in servers or ("127.0.0.1:9991",)]
    given = [*named, "--rise=2", "--fall=3", f"--workers={workers}", *arguments]
    options = load_balancer.parse_args(given)
    for server in options.servers:
        server["resolved"] = load_balancer.resolve(server["host"], server["port"])
    return Board(options, 20)


def named_board(*servers: str) -> Board:
    """Return a board whose servers are named a, b … and are at 127.0.0.1, .2 and on."""
    board = board_of(*(f"127.0.0.{1 + n}:9991{s}" for n, s in enumerate(servers)))
    for given, name in zip(board.options.servers, "ab", strict=False):
        given["host"] = name
    return Board(board.options, 20)


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

    def test_full_servers_are_passed_over(self) -> None:
        board = board_of("127.0.0.1:1,max=1", "127.0.0.1:2,max=2")
        self.assertEqual(self.served(board, 4), [0, 1, 1, -1])


class TheQueue(unittest.TestCase):
    """Who waits is served in the order of accept."""

    def test_free_place_goes_to_the_first_and_its_worker_is_told(self) -> None:
        board = board_of("127.0.0.1:9991,max=1")
        clients = Clients(board)
        holder, first, second = (clients.begin() for _ in range(3))
        self.assertEqual(board.queued, 2)
        board.end(holder, False)
        self.assertEqual((first.server, second.server, board.queued), (1, 0, 1))
        self.assertIn(first.index, board.bells[1].hear())

    def test_newcomer_does_not_overtake(self) -> None:
        board = board_of("127.0.0.1:9991,max=1")
        clients = Clients(board)
        holder, first = clients.begin(), clients.begin()
        board.leave_queue(first)
        board.end(holder, False)
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
        board.end(two, False)
        self.assertEqual((one.server, later.server), (2, 0))

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
        self.assertTrue(all(" end=ID " in line for line in lines), lines)
        self.assertEqual((board.live, board.queued, server.places_taken), (3, 0, 3))
        self.assertEqual([r.server for r in (alive, waiting[0], waiting[2])], [1] * 3)
        for row in (alive, waiting[0], waiting[2]):
            board.end(row, False)
        self.assertEqual((board.live, server.places_taken), (0, 0))

    def test_line_that_is_written_is_not_written_again(self) -> None:
        board = board_of(workers=2)
        Clients(board, 1).begin().logged = 1
        self.assertEqual(board.bury(1, load_balancer.WORKER_DIED), [])

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
                board.lock.rob()
                board.lock.__exit__()
                os.waitpid(child, 0)
                with board.lock:  # it is free, once
                    self.assertFalse(board.lock._semaphore.acquire(False))


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


class SignalsAtTheStart(unittest.TestCase):
    """No signal is lost, and afterwards all is as it was."""

    def test_signal_that_comes_while_handlers_are_installed_is_obeyed(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        install = signal.signal

        def install_late(number: int, handler: Any) -> Any:
            """Let the signal come as soon as it can be handled."""
            old = install(number, handler)
            if number == signal.SIGTERM:
                os.kill(os.getpid(), number)
            return old

        with mock.patch.object(signal, "signal", install_late):
            signals = load_balancer.Signals()
        with contextlib.closing(signals):
            self.assertEqual(signals.wait(10), signal.SIGTERM)
            self.assertTrue(signals.stops(signal.SIGTERM))
        self.assertIs(signal.getsignal(signal.SIGTERM), before)
        self.assertEqual(signal.set_wakeup_fd(-1), -1)


class ChecksInAShortage(unittest.TestCase):
    """A shortage of our own is no result of a check."""

    def setUp(self) -> None:
        """Have a board with one server."""
        self.board = board_of()
        (self.server,) = self.board.servers()

    def found(self) -> tuple[bool | None, str]:
        """Return what a check finds."""
        return load_balancer.check(self.server, self.board.options)

    def test_check_without_a_result_changes_no_health(self) -> None:
        board, server = self.board, self.server
        for passed, health in ((False, 3), (None, 3), (False, 2), (False, 0)):
            board.record_check(server, passed, "as told")
            self.assertEqual(server.health, health)
        self.assertEqual(board.record_check(server, None, "not checked"), "")
        self.assertEqual((server.health, server.last_check), (0, "not checked"))
        board.record_check(server, True, "connected")
        board.record_check(server, None, "not checked")
        self.assertEqual(server.health, 1)

    def test_check_without_a_descriptor_or_a_source_port_has_no_result(self) -> None:
        class NoPort(socket.socket):
            """A socket that cannot be given a source port."""

            def connect(self, address: object) -> None:
                if self.type == socket.SOCK_STREAM:
                    why = "Cannot assign requested address"
                    raise OSError(errno.EADDRNOTAVAIL, why)

        no_descriptor = OSError(errno.EMFILE, "Too many open files")
        for broken, words in (
            (mock.Mock(side_effect=no_descriptor), "too many open files"),
            (NoPort, "cannot assign requested address"),
        ):
            with self.subTest(words):
                with mock.patch.object(socket, "socket", broken):
                    found = self.found()
                self.assertEqual(found, (None, f"not checked: {words}"))

    def test_server_that_no_own_address_reaches_fails_its_check(self) -> None:
        class NoAddress(socket.socket):
            """A socket of a family that this machine has no address of."""

            def connect(self, address: object) -> None:
                why = "Cannot assign requested address"
                raise OSError(errno.EADDRNOTAVAIL, why)

        with mock.patch.object(socket, "socket", NoAddress):
            found = self.found()
        self.assertEqual(found, (False, "cannot assign requested address"))


class PenaltiesWithoutChecks(unittest.TestCase):
    """A server that refuses is left alone for a while, longer each time."""

    def setUp(self) -> None:
        """Have a server that is DOWN, and a clock."""
        self.board = board_of(arguments=("--no-checks",))
        (self.server,) = self.board.servers()
        self.clients = Clients(self.board)
        self.now_ns = time.monotonic_ns()
        clock = mock.patch.object(time, "monotonic_ns", lambda: self.now_ns)
        clock.start()
        self.addCleanup(clock.stop)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now_ns += round(seconds * 1e9)

    def fail_once(self) -> str:
        """Let a client's connect fail; return the line for the log."""
        row = self.clients.begin()
        self.assertEqual(row.server, 1)
        line = self.board.give_back(row, self.server, REFUSED)
        self.board.end(row, True)
        return line

    def succeed(self) -> Row:
        """Let a client's connect succeed."""
        row = self.clients.begin()
        row.connect_ns = 1
        return row

    def take_down(self) -> None:
        """Let connects fail until the server is DOWN."""
        for _ in range(9):
            if "state=DOWN" in self.fail_once():
                return
        self.fail("it is still UP")

    def test_server_is_tried_again_after_its_penalty_which_doubles(self) -> None:
        self.take_down()
        for penalty_s in (10, 20, 40):
            self.wait(penalty_s - 0.1)
            self.assertEqual(self.board.forgive(), [])
            self.wait(0.2)
            (line,) = self.board.forgive()
            self.assertIn(f'state=UP reason="tried again after {penalty_s} s', line)
            self.take_down()

    def test_log_tells_how_many_failures_in_a_row_it_were(self) -> None:
        self.take_down()
        self.wait(10.1)
        self.board.forgive()
        line = self.fail_once()
        self.assertIn("state=DOWN", line)
        self.assertIn("checks=1/3", line)

    def test_live_session_connected_since_the_last_failure_breaks_the_row(self) -> None:
        for _ in range(6):
            self.wait(1)
            self.succeed()
            self.wait(1)
            self.assertEqual(self.fail_once(), "")
        self.assertEqual([self.fail_once() for _ in range(1)], [""])
        self.assertIn("state=DOWN", self.fail_once())

    def test_server_that_has_recovered_is_not_demoted_by_its_old_penalty(self) -> None:
        self.take_down()
        for _ in range(2):
            self.wait(1)
            self.board.end(self.succeed(), False)
        healthy = self.server.health
        self.assertTrue(self.server.is_healthy)
        self.wait(100)
        self.assertEqual(self.board.forgive(), [])
        self.assertEqual(self.server.health, healthy)


class NamesThatMove(unittest.TestCase):
    """An address that is back is the server that it was."""

    def test_address_that_comes_back_is_one_server_with_its_limit(self) -> None:
        board = named_board(",max=1")
        clients = Clients(board)
        (server,) = board.servers()
        self.assertEqual(clients.begin().server, 1)
        (new,), lines = board.move_name(0, [THERE])
        self.assertEqual(self.states(lines), ["state=DRAIN", "state=UP"])
        added, lines = board.move_name(0, [HERE])
        self.assertEqual(added, [])
        self.assertEqual(self.states(lines), ["state=UP", "state=DRAIN"])
        self.assertEqual((server.gone, new.gone), (0, 1))
        self.assertEqual(clients.begin().server, 0, "a second place at max=1")

    def test_address_that_comes_back_is_what_the_operator_and_the_checks_said(
        self,
    ) -> None:
        board = named_board("")
        (server,) = board.servers()
        board.set_admin("127.0.0.1:9991", "maint")
        for address in (THERE, HERE):
            board.move_name(0, [address])
        self.assertEqual(server.state, "MAINT")
        board.set_admin("127.0.0.1:9991", "ready")
        while server.is_healthy:
            board.record_check(server, False, "refused")
        for address in (THERE, HERE):
            board.move_name(0, [address])
        self.assertEqual(server.state, "DOWN")

    def test_names_that_take_each_others_addresses_keep_servers(self) -> None:
        board = named_board("", "")
        board.move_name(0, [THERE])  # as b has, too
        board.move_name(1, [THERE])
        board.move_name(0, [THERE])  # its own is gone, and remembered
        board.move_name(1, [HERE])
        board.move_name(0, [THERE])  # now they have changed places
        self.assertEqual(
            self.present(board), [("a:9991", "127.0.0.2"), ("b:9991", "127.0.0.1")]
        )
        board.move_name(0, [AWAY])
        self.assertEqual(len(board.snapshot()["servers"]), 2)
        board.move_name(0, [HERE])  # that b has now
        self.assertEqual([name for name, _ in self.present(board)], ["b:9991"])

    def present(self, board: Board) -> list[tuple[str, str]]:
        """Return the name and the host of each server that is there."""
        there = [server for server in board.servers() if not server.gone]
        return sorted((server.name, server.address[0]) for server in there)

    def states(self, lines: list[str]) -> list[str]:
        """Return the states that lines of the log tell."""
        return [line.split()[1] for line in lines]


class Counting(unittest.TestCase):
    """What counts as a failed connection."""

    def test_end_counts_what_its_worker_says(self) -> None:
        for code, failed in (("KQ", False), ("KC", False), ("CC", False), ("SC", True)):
            self.assertEqual(End(code, "as told").is_failure, failed, code)


class LogThatCannotBeWritten(unittest.TestCase):
    """Lines that are lost are counted, and the count is written once it can be."""

    def setUp(self) -> None:
        """Open a log in a temporary folder."""
        folder = tempfile.TemporaryDirectory(prefix="lab-")
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "balancer.log")
        self.log = Log(str(self.path), quiet=False)
        self.addCleanup(os.close, self.log._file)

    def test_each_lost_line_is_counted_once_and_told_with_the_time(self) -> None:
        full = OSError(errno.ENOSPC, "No space left on device")
        with mock.patch.object(os, "write", side_effect=full):
            self.log._write(["1\n", "2\n"])
            self.log._write(["3\n"])
            self.log._write(["4\n", "5\n"])
        self.log._write(["6\n"])
        self.log._write(["7\n"])
        first, *rest = self.path.read_text().splitlines()
        self.assertRegex(first, rf"\A{TIME} 5 log lines could not be written\Z")
        self.assertEqual(rest, ["6", "7"])

    def test_line_torn_by_a_full_disk_ends_before_the_next_begins(self) -> None:
        write = os.write

        def write_three(fd: int, data: bytes) -> int:
            """Take three bytes, then none."""
            if self.path.read_bytes():
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(fd, data[:3])

        with mock.patch.object(os, "write", write_three):
            self.log._write(["line 1\n"])
            self.log._write(["line 2\n"])
        self.log._write(["line 3\n"])
        torn, lost, last = self.path.read_text().splitlines()
        self.assertEqual((torn, last), ("lin", "line 3"))
        self.assertRegex(lost, " 2 log lines could not be written")

    def test_line_that_comes_while_the_last_ones_are_written_is_written(self) -> None:
        self.log.line("before")
        self.log._lines.put(None)
        self.log.line("after")
        self.log.start()
        self.log.close()
        lines = self.path.read_text().splitlines()
        self.assertEqual([line.split()[-1] for line in lines], ["before", "after"])


class LastBytes(unittest.TestCase):
    """What a dead side had sent is delivered, but not waited for without end."""

    def test_sink_that_never_acknowledged_anything_is_given_up(self) -> None:
        client, server = self.pair(), self.pair()
        cells = memoryview(array.array("q", [0] * 4))
        one, two = ("client", client), ("server", server)
        cut = threading.Event()
        way = Direction(one, two, cells, load_balancer.TO_SERVER, cut)
        way.other = Direction(two, one, cells, load_balancer.TO_CLIENT, cut)
        way.other.other = way
        start = time.monotonic()

        def unacknowledged(_: socket.socket) -> int:
            """Return the size of a PROXY header, which no counter has."""
            if time.monotonic() - start > 5:
                raise AssertionError("still waiting after 5 s")
            return 50

        with (
            mock.patch.object(load_balancer, "unacknowledged", unacknowledged),
            self.assertRaises(load_balancer.SideDiedError),
        ):
            load_balancer.Burial(way).flush(0.2)

    def pair(self) -> socket.socket:
        """Return a connected socket that does not block, its other end kept open."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        ours.setblocking(False)
        return ours


class DefectsOfTheStatusPage(unittest.TestCase):
    """What should not happen is shown; that a client left early is nothing."""

    def test_defect_is_shown_with_its_traceback(self) -> None:
        server = mock.Mock(spec=load_balancer.StatusServer)
        for error, shown in ((ValueError("a defect"), True), (OSError(), False)):
            with (
                self.subTest(error=error),
                contextlib.redirect_stderr(io.StringIO()) as stderr,
            ):
                try:
                    raise error
                except (ValueError, OSError):
                    load_balancer.StatusServer.handle_error(server, None, None)
                self.assertEqual("a defect" in stderr.getvalue(), shown)
