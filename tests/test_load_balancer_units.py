"""load_balancer.py: what needs a failure or a moment that no client can bring about.

Parts of it by themselves: the board with rows that nobody serves, a clock that a test
sets, a name that moves away and back, a check without a source port, a log on a full
disk, the last bytes to a side that acknowledges none.
"""

from __future__ import annotations

import array
import contextlib
import errno
import io
import itertools
import os
import signal
import socket
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import load_balancer
from load_balancer import CLOSED, Board, Direction, End, Log, Row
from tests.balancer import TIME
from tests.support import DEADLINE_S, wait_until

REFUSED = End("SC", "refused")


class Connections:
    """A board, and connections that nobody serves."""

    def __init__(self, *options: str) -> None:
        """Lay out a board of one worker with 100 rows, rise 2 and fall 3."""
        given = [*(options or ["--server=127.0.0.1:9991"]), "--workers=1"]
        here = [(socket.AF_INET, ("127.0.0.1", 9991))]
        resolve = load_balancer.resolve

        def resolve_here(host: str, port: int) -> Any:
            """Resolve localhost where nobody else does: without /etc/hosts."""
            return here if host == "localhost" else resolve(host, port)

        with mock.patch.object(load_balancer, "resolve", resolve_here):
            parsed = load_balancer.parse_args([*given, "--rise=2", "--fall=3"])
        self.board = Board(parsed, 100)
        self._rows: Iterator[Row] = self.board.rows_of(1)

    @property
    def servers(self) -> list[load_balancer.Server]:
        """Return the servers whose address is not gone."""
        return [s for s in self.board.servers() if not s.gone]

    def admit(self, host: str = "127.0.0.1") -> Row:
        """Accept a client."""
        row = next(self._rows)
        listener = mock.Mock()
        listener.accept.return_value = (mock.Mock(), (host, 50000))
        self.board.admit(row, listener)
        return row

    def server_of(self, row: Row) -> int:
        """Return the port of the server at which a row has a place; 0: none."""
        server = self.board.server_of(row)
        return server.address[1] if server else 0

    def connect(self, row: Row) -> str:
        """Let a row's connect succeed; return the line for the log."""
        server = self.board.server_of(row)
        assert server
        return self.board.connected(row, server, time.monotonic_ns())

    def fail(self, row: Row) -> str:
        """Let a row's connect be refused; return the line for the log."""
        server = self.board.server_of(row)
        assert server
        return self.board.give_back(row, server, REFUSED)


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
        self.assertIs(signal.getsignal(signal.SIGTERM), before)
        self.assertEqual(signal.set_wakeup_fd(-1), -1)


class ChecksInAShortage(unittest.TestCase):
    """A shortage of our own is no result of a check."""

    def setUp(self) -> None:
        """Have a server."""
        self.board = Connections().board
        (self.server,) = self.board.servers()

    def test_check_without_a_result_changes_no_health(self) -> None:
        server, record = self.server, self.board.record_check
        for passed, health in ((False, 3), (None, 3), (False, 2), (False, 0)):
            record(server, passed, "as told")
            self.assertEqual(server.health, health)
        self.assertEqual(record(server, None, "not checked"), "")
        self.assertEqual((server.health, server.last_check), (0, "not checked"))
        record(server, True, "connected")
        record(server, None, "not checked")
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
                    found = load_balancer.check(self.server, self.board.options)
                self.assertEqual(found, (None, f"not checked: {words}"))

    def test_server_that_no_own_address_reaches_fails_its_check(self) -> None:
        class NoAddress(socket.socket):
            """A socket of a family that this machine has no address of."""

            def connect(self, address: object) -> None:
                why = "Cannot assign requested address"
                raise OSError(errno.EADDRNOTAVAIL, why)

        with mock.patch.object(socket, "socket", NoAddress):
            found = load_balancer.check(self.server, self.board.options)
        self.assertEqual(found, (False, "cannot assign requested address"))

    def test_address_that_this_machine_cannot_reach_is_the_servers_failure(
        self,
    ) -> None:
        for reaches, code in ((True, "RC"), (False, "SC")):
            with mock.patch.object(load_balancer, "has_own_address") as has:
                has.return_value = reaches
                end = load_balancer.connect_failure(errno.EADDRNOTAVAIL, self.server)
            self.assertEqual(end.code, code)


class PenaltiesWithoutChecks(unittest.TestCase):
    """A server that refuses is left alone for a while, longer each time."""

    def setUp(self) -> None:
        """Have a server that is DOWN, and a clock."""
        self.lab = Connections()
        (self.server,) = self.lab.servers
        self.now_s = time.monotonic()
        for name, now in (
            ("monotonic", lambda: self.now_s),
            ("monotonic_ns", lambda: int(self.now_s * 10**9)),
        ):
            clock = mock.patch.object(time, name, now)
            clock.start()
            self.addCleanup(clock.stop)
        self.take_down()

    def take_down(self) -> str:
        """Let connects fail until the server is DOWN."""
        while "state=DOWN" not in (line := self.lab.fail(self.lab.admit())):
            pass
        return line

    def test_server_is_tried_again_after_its_penalty_which_doubles(self) -> None:
        for penalty_s in (10, 20, 40):
            self.now_s += penalty_s - 0.1
            self.assertEqual(self.lab.board.forgive(), [])
            self.now_s += 0.2
            (line,) = self.lab.board.forgive()
            self.assertIn(f'state=UP reason="tried again after {penalty_s} s', line)
            self.take_down()

    def test_log_tells_how_many_failures_in_a_row_it_were(self) -> None:
        self.now_s += 10.1
        self.lab.board.forgive()
        line = self.lab.fail(self.lab.admit())
        self.assertIn("state=DOWN", line)
        self.assertIn("checks=1/3", line)

    def test_server_that_has_recovered_is_not_demoted_by_its_old_penalty(self) -> None:
        for _ in range(2):
            self.now_s += 1
            row = self.lab.admit()
            self.lab.connect(row)
            self.lab.board.end(row, CLOSED)
        healthy = self.server.health
        self.now_s += 100
        self.assertEqual(self.lab.board.forgive(), [])
        self.assertEqual(self.server.health, healthy)
        self.take_down()
        self.now_s += 10.1
        self.assertEqual(len(self.lab.board.forgive()), 1)


class NamesThatMove(unittest.TestCase):
    """An address that is back is the server that it was."""

    HERE, THERE, AWAY = (
        (int(socket.AF_INET), (host, 9991))
        for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    )

    def test_address_that_comes_back_is_one_server_with_its_limit(self) -> None:
        lab = Connections("--server=localhost:9991,max=1")
        lab.board.move_name(0, [self.HERE])
        (server,) = lab.servers
        self.assertEqual(lab.server_of(lab.admit()), 9991)
        lab.board.set_admin("127.0.0.1:9991", "maint", "::1")
        (new,), _, lines = lab.board.move_name(0, [self.THERE])
        self.assertEqual(self.states(lines), ["state=DRAIN", "state=UP"])
        added, _, lines = lab.board.move_name(0, [self.HERE])
        self.assertEqual(added, [])
        self.assertEqual(self.states(lines), ["state=MAINT", "state=DRAIN"])
        self.assertEqual(lab.servers, [server])
        self.assertTrue(new.gone)
        lab.board.set_admin("127.0.0.1:9991", "ready", "::1")
        self.assertEqual(lab.server_of(lab.admit()), 0, "a second place at max=1")

    def test_names_that_take_each_others_addresses_keep_servers(self) -> None:
        lab = Connections("--server=localhost:9991", "--server=127.0.0.2:9991")
        board = lab.board
        board.move_name(0, [self.THERE])  # as the other has, too
        board.move_name(1, [self.HERE])
        board.move_name(0, [self.THERE])  # now they have changed places
        self.assertEqual(
            sorted((s.given, s.address[0]) for s in lab.servers),
            [(0, "127.0.0.2"), (1, "127.0.0.1")],
        )
        board.move_name(0, [self.AWAY])
        self.assertEqual(len(board.snapshot()["servers"]), 2)

    def test_first_address_of_a_name_is_said_once(self) -> None:
        with mock.patch.object(load_balancer, "resolve", side_effect=OSError("none")):
            board = load_balancer.Board(
                load_balancer.parse_args(["--server=my.test:9991"]), 20
            )
        said = []
        for there in (self.HERE, self.THERE, self.AWAY):
            _, _, lines = board.move_name(0, [there])
            said.append(lines[-1].partition('reason="')[2].partition('"')[0])
        first, *later = said
        self.assertEqual(first, "my.test:9991 has an address")
        self.assertEqual(later, ["my.test:9991 has moved"] * 2)

    def test_forms_of_an_address_are_one(self) -> None:
        forms = (("::ffff:127.0.0.1", 1), ("127.0.0.1", 1), ("::FFFF:127.0.0.1", 1))
        self.assertEqual(len({load_balancer.plain_key(form) for form in forms}), 1)

    def states(self, lines: list[str]) -> list[str]:
        """Return the states that lines of the log tell."""
        return [line.split()[1] for line in lines]


class Counting(unittest.TestCase):
    """What counts as a failed connection, and as a failure in a row."""

    def test_connection_closed_at_shutdown_before_its_server_has_not_failed(
        self,
    ) -> None:
        lab = Connections()
        for code, failed in (("KQ", 0), ("KC", 0), ("CC", 0), ("SC", 1)):
            row, end = lab.admit(), End(code, "as told")
            lab.board.end(row, end)
            self.assertEqual(lab.board.snapshot()["connections"]["failed"], failed)

    def test_live_connection_made_since_the_last_failure_breaks_the_row(self) -> None:
        lab = Connections()
        for _ in range(10):
            row = lab.admit()
            self.assertEqual(lab.server_of(row), 9991)
            lab.connect(row)
            self.assertEqual(lab.fail(lab.admit()), "")
        for _ in range(2):
            line = lab.fail(lab.admit())
        self.assertIn("state=DOWN", line)

    def test_server_of_weight_0_is_not_up_for_anybody(self) -> None:
        lab = Connections("--server=127.0.0.1:9991,weight=0", "--server=127.0.0.1:9992")
        self.assertTrue(lab.board.is_up())
        for _ in range(3):
            line = lab.board.record_check(lab.servers[1], False, "refused")
        self.assertFalse(lab.board.is_up())
        self.assertIn("up=0/2", line)


class TheQueue(unittest.TestCase):
    """First come, first served, whatever a connection has tried."""

    def test_free_place_goes_to_the_first_that_waits(self) -> None:
        lab = Connections("--server=127.0.0.1:9991,max=1")
        holder, *waiting = (lab.admit() for _ in range(16))
        self.assertEqual(lab.board.queued, 15)
        lab.board.end(holder, CLOSED)
        places = [lab.server_of(row) for row in waiting]
        self.assertEqual(places, [9991, *[0] * 14])
        self.assertEqual(lab.board.queued, 14)

    def test_place_that_is_handed_out_meanwhile_is_the_only_one(self) -> None:
        lab = Connections("--server=127.0.0.1:9991,max=2")
        one, two, waiter = (lab.admit() for _ in range(3))
        for row in (one, two):  # as its thread is about to ask for a place
            lab.board.end(row, CLOSED)
        server = lab.board.pick(waiter)
        self.assertEqual(server and server.places_taken, 1)
        lab.board.end(waiter, CLOSED)
        self.assertEqual([s.places_taken for s in lab.servers], [0])

    def test_connection_that_goes_nowhere_else_is_no_retry(self) -> None:
        lab = Connections("--server=127.0.0.1:9991", "--server=127.0.0.1:9992")
        row = lab.admit()
        for retries in (1, 1):
            lab.fail(row)
            self.assertEqual(sum(s.retries for s in lab.servers), retries)
            with contextlib.suppress(load_balancer.NoServerError):
                lab.board.pick(row)

    def test_limit_is_what_there_are_rows_for(self) -> None:
        for asked, limit in ((5, 5), (100_000, 20), (0, 20)):
            options = load_balancer.parse_args(
                ["--server=127.0.0.1:9991", "--workers=1", f"--max-connections={asked}"]
            )
            self.assertEqual(load_balancer.Board(options, 20).limit, limit)

    def test_connection_that_has_no_server_left_is_told(self) -> None:
        lab = Connections()
        row = lab.admit()
        lab.fail(row)
        with self.assertRaises(load_balancer.NoServerError):
            lab.board.pick(row)

    def test_connection_that_has_tried_a_server_keeps_no_place_from_new_ones(
        self,
    ) -> None:
        lab = Connections(
            "--server=127.0.0.1:9991,max=1", "--server=127.0.0.1:9992,max=1"
        )
        first, second = lab.admit(), lab.admit()
        lab.fail(first)
        self.assertIsNone(lab.board.pick(first))  # the other one is full
        newcomer = lab.admit()
        self.assertEqual(lab.server_of(newcomer), 9991)
        lab.board.end(second, CLOSED)
        self.assertEqual(lab.server_of(first), 9992)

    def test_with_source_those_of_a_server_that_is_down_keep_order(self) -> None:
        lab = Connections(
            "--server=127.0.0.1:9991,max=1", "--server=127.0.0.1:9992,max=1",
            "--algorithm=source",
        )  # fmt: skip
        rows = [lab.admit(f"10.0.0.{n}") for n in range(1, 41)]
        (down, up), waiting = lab.servers, [row for row in rows if not row.server]
        for _ in range(3):
            lab.board.record_check(down, False, "refused")
        (holder,) = (row for row in rows if row.server == up.index + 1)
        for first in waiting:
            lab.board.end(holder, CLOSED)
            self.assertEqual([row for row in waiting if row.server], [first])
            holder = first

    def test_with_source_each_client_waits_for_its_own_server(self) -> None:
        lab = Connections(
            "--server=127.0.0.1:9991,max=1", "--server=127.0.0.1:9992,max=1",
            "--algorithm=source",
        )  # fmt: skip
        rows = [lab.admit(f"10.0.0.{n}") for n in range(1, 41)]
        holders = [row for row in rows if row.server]
        self.assertEqual({lab.server_of(row) for row in holders}, {9991, 9992})
        for holder in holders:
            after = [r for r in rows if r.own == holder.own and r is not holder]
            lab.board.end(holder, CLOSED)
            served = [bool(row.server) for row in after]
            self.assertEqual(served, [True, *[False] * (len(after) - 1)])


@unittest.skipIf(load_balancer.why_one_process(), "needs several processes")
class WorkersThatDie(unittest.TestCase):
    """Rows are the truth: all counts are made from them when a worker has died."""

    def test_counts_are_made_anew_and_places_are_free(self) -> None:
        options = load_balancer.parse_args(
            ["--server=127.0.0.1:9991,max=2", "--workers=2"]
        )
        board = Board(options, 10)
        listener = mock.Mock()
        listener.accept.side_effect = lambda: (mock.Mock(), ("127.0.0.1", 50000))
        one, two = (list(board.rows_of(number)) for number in (1, 2))
        for row in (one[0], two[0], two[1], one[1]):
            board.admit(row, listener)
        self.assertEqual((board.live, board.queued), (4, 2))
        board.servers()[0].places_taken = 17  # it died in the middle
        lines = board.bury(1, load_balancer.WORKER_DIED)
        self.assertEqual(len(lines), 2)
        for line, key in lines:
            self.assertIn(" end=ID its worker process died", line)
            self.assertRegex(key, r"\A\d+\.\d+\Z")
        self.assertEqual((board.live, board.queued), (2, 0))
        self.assertEqual(board.servers()[0].places_taken, 2)
        self.assertTrue(two[1].server, "the place of the dead goes to who waits")


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


    def test_end_does_not_wait_for_a_desk_that_is_stopped(self) -> None:
        log = load_balancer.Log(str(self.path), quiet=False)
        log.share()
        assert log._pipe
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(log._pipe[1], bytes(4096))
        start = time.monotonic()
        log.end()
        self.assertLess(time.monotonic() - start, 10)

    def test_lines_for_a_desk_that_is_stopped_hold_nobody_up(self) -> None:
        log = load_balancer.Log(str(self.path), quiet=False)
        log.share()

        def say_much() -> None:
            for _ in range(3000):
                log.line("x" * 1000)

        worker = threading.Thread(target=say_much, daemon=True)
        worker.start()
        worker.join(DEADLINE_S)
        self.assertFalse(worker.is_alive(), "it waits for the desk")
        self.assertGreater(log._lost, 0)

    def test_connection_whose_worker_died_just_after_its_line_has_no_second(
        self,
    ) -> None:
        log = load_balancer.Log(str(self.path), quiet=False)
        log.share()
        log.line("one end=--", "7.1000")  # handed over; its row is still taken
        log.line("one end=ID", "7.1000")
        log.line("the next in that row end=--", "7.2000")
        log.line("of nobody")
        log.line("of nobody")
        log.start()
        log.end()
        log.join()
        lines = [line[24:] for line in self.path.read_text().splitlines()]
        expected = ["one end=--", "the next in that row end=--", *2 * ["of nobody"]]
        self.assertEqual(lines, expected)


class LastBytes(unittest.TestCase):
    """What a dead side had sent is delivered, but not waited for without end."""

    def test_sink_that_never_acknowledged_anything_is_given_up(self) -> None:
        client, server = self.pair(), self.pair()
        cells = memoryview(array.array("q", [0] * load_balancer.Row.SIZE))
        one, two = ("client", client), ("server", server)
        session = mock.Mock(cut=None)
        way = Direction(one, two, cells, load_balancer.TO_SERVER, session)
        way.other = Direction(two, one, cells, load_balancer.TO_CLIENT, session)
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
            load_balancer.LastBytes(way).flush(0.2)

    def pair(self) -> socket.socket:
        """Return a connected socket that does not block, its other end kept open."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        ours.setblocking(False)
        return ours


class Itself(unittest.TestCase):
    """Which servers are this balancer itself."""

    def test_all_addresses_are_those_of_this_machine_only(self) -> None:
        for server, listens, own in (
            ("127.0.0.1", "0.0.0.0", True),
            ("127.0.0.9", "0.0.0.0", True),
            ("192.0.2.1", "0.0.0.0", False),
            ("127.0.0.1", "127.0.0.2", False),
            ("0.0.0.0", "127.0.0.1", True),
        ):
            with self.subTest(server=server, listens=listens):
                found = load_balancer.is_own((server, 9990), [(listens, 9990)])
                self.assertEqual(found, own)
                self.assertFalse(
                    load_balancer.is_own((server, 9991), [(listens, 9990)])
                )


class Headers(unittest.TestCase):
    """The PROXY headers of addresses that are not of one family."""

    def test_ipv4_address_beside_an_ipv6_one_is_mapped(self) -> None:
        addresses = ("::ffff:192.0.2.1", 4000), ("2001:db8::1", 80)
        self.assertEqual(
            load_balancer.proxy_v2(*addresses),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24"
            b"\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\x02\x01"
            b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x0f\xa0\0\x50",
        )
        line = load_balancer.proxy_v1(*addresses)
        self.assertRegex(line, rb"\APROXY TCP6 ::ffff:\S+ 2001:db8::1 4000 80\r\n\Z")


class Lines(unittest.TestCase):
    """What a line of the log says, in which units."""

    @unittest.skipUnless(hasattr(time, "tzset"), "needs tzset")
    def test_time_is_local_with_three_digits_of_milliseconds(self) -> None:
        self.addCleanup(time.tzset)
        for zone, at, expected in (
            ("XXX-5:30", 60.0072, "1970-01-01 05:31:00,007 text\n"),
            ("XXX3", 86400.25, "1970-01-01 21:00:00,250 text\n"),
        ):
            with self.subTest(zone), mock.patch.dict(os.environ, TZ=zone):
                time.tzset()
                self.assertEqual(Log(os.devnull, False)._format(at, "text"), expected)

    def test_times_are_in_milliseconds(self) -> None:
        lab = Connections()
        row, now_ns = lab.admit("192.0.2.1"), time.monotonic_ns()
        row.accepted_ns, row.connect_ns = now_ns - 2_000_000_000, 1_230_000
        line = lab.board.line_of(row, CLOSED)
        self.assertRegex(
            line,
            r"\Aclient=192\.0\.2\.1:50000 server=127\.0\.0\.1:9991 tries=1 "
            r"connect_ms=1\.23 duration_ms=[2-9]\d{3}\.\d to_server=0 to_client=0 "
            r"undelivered=0 end=-- closed by both sides\Z",
        )


class Rates(unittest.TestCase):
    """What the plots of the page show."""

    def test_rates_are_per_second_and_none_where_a_server_was_not(self) -> None:
        before = load_balancer.Sample(10.0, 0, {"a": (100, 5, 1000)})
        after = load_balancer.Sample(12.0, 0, {"a": (106, 3, 5000), "b": (1, 1, 1)})
        found = [load_balancer.change(server, before, after) for server in "ab"]
        self.assertEqual(found, [(3.0, 3, 2000), (None, None, None)])


class Defaults(unittest.TestCase):
    """What holds without options."""

    def test_defaults_are_those_of_the_contract(self) -> None:
        options = load_balancer.parse_args([])
        usual = [(s["host"], s["port"], s["weight"]) for s in options.servers]
        self.assertEqual(usual, [("127.0.0.1", 9991 + n, 1) for n in range(3)])
        for name, value in (
            ("algorithm", "roundrobin"),
            ("check_interval", 2),
            ("rise", 2),
            ("fall", 3),
            ("check_timeout", 2),
            ("no_checks", False),
            ("on_down", "keep"),
            ("connect_timeout", 3),
            ("idle_timeout", 3600),
            ("half_close_timeout", 300),
            ("hold", 3),
            ("stop_delay", 0),
            ("grace", 30),
            ("queue_timeout", 5),
            ("max_connections", 0),
            ("send_proxy", None),
            ("status", None),
            ("log", None),
            ("quiet", False),
        ):
            with self.subTest(name):
                self.assertEqual(getattr(options, name), value)

    def test_one_process_is_enough_for_a_free_threaded_python(self) -> None:
        for free, workers in ((True, 1), (False, 7)):
            with (
                mock.patch.object(load_balancer, "usable_cores", return_value=7),
                mock.patch.object(load_balancer, "is_free_threaded", return_value=free),
            ):
                self.assertEqual(load_balancer.parse_args([]).workers, workers)

    def test_usual_address_is_9990_on_loopback(self) -> None:
        with mock.patch.object(socket, "create_server") as create:
            load_balancer.open_listeners(load_balancer.parse_args([]))
        self.assertEqual(create.call_args[0], (("127.0.0.1", 9990),))


class SlowReader(unittest.TestCase):
    """What its kernel does not take yet is kept."""

    def test_rest_of_what_was_read_arrives_in_order(self) -> None:
        client, ours = socket.socketpair()
        to_server, server = socket.socketpair()
        for sock in (client, ours, to_server, server):
            self.addCleanup(sock.close)
            sock.setblocking(False)
        cells = memoryview(array.array("q", [0] * load_balancer.Row.SIZE))
        sides, session = (("client", ours), ("server", to_server)), mock.Mock(cut=None)
        way = Direction(*sides, cells, load_balancer.TO_SERVER, session)
        way.can_splice, sent, received = False, 0, b""
        data = b"".join(b"%07d " % number for number in range(250_000))
        while len(received) < len(data):
            with contextlib.suppress(BlockingIOError):
                sent += client.send(data[sent : sent + 500_000])
            for _ in range(10):  # fills the way to the server
                way.push() if way.pending else way.pull()
            if way.pending or sent == len(data):
                received += server.recv(100_000)
        self.assertEqual(received, data)


class Vanished(unittest.TestCase):
    """A side whose kernel no longer answers is given up, and the other is told."""

    def test_side_without_an_answer_for_two_minutes_ends_the_connection(self) -> None:
        for side in ("client", "server"):
            pairs = {name: socket.socketpair() for name in ("client", "server")}
            for sock in itertools.chain(*pairs.values()):
                self.addCleanup(sock.close)
            client_sock, server_sock = (ours for ours, _ in pairs.values())
            for sock in (client_sock, server_sock):
                sock.setblocking(False)
            gone = pairs[side][0]
            options = load_balancer.parse_args(["--idle-timeout=5"])
            cells = memoryview(array.array("q", [0] * load_balancer.Row.SIZE))
            session = mock.Mock(cut=None)
            relay = load_balancer.Relay(
                options, cells, client_sock, server_sock, session
            )
            with (
                self.subTest(side),
                mock.patch.object(load_balancer, "LOOK_NS", 10_000_000),
                mock.patch.object(
                    load_balancer,
                    "silence_s",
                    lambda sock, gone=gone: 120.0 if sock is gone else 119.9,
                ),
            ):
                end = relay.run(False)
                words = f"{side} vanished: it no longer answers"
                self.assertEqual((end.code, end.words), (f"{side[0]}D", words))


class Loops(unittest.TestCase):
    """A client that comes here again and again through another balancer."""

    def test_so_many_live_connections_of_one_clients_port_are_a_loop(self) -> None:
        lab = Connections("--server=127.0.0.1:9991", "--accept-proxy=127.0.0.1")
        worker = load_balancer.Worker(lab.board, [], mock.Mock(), 1)
        peer, route = ("127.0.0.1", 1), (("192.0.2.1", 4000), ("192.0.2.2", 80))

        def meet() -> None:
            session = load_balancer.Session(lab.admit(), mock.Mock(), peer)
            worker._meet(session)

        with (
            mock.patch.object(load_balancer, "read_proxy_header", return_value=route),
            mock.patch.object(load_balancer, "LOOP_ROUNDS", 3),
        ):
            for _ in range(3):
                meet()
            with self.assertRaises(load_balancer.OverError) as raised:
                meet()
        self.assertEqual(raised.exception.end.code, "PC")
        self.assertRegex(raised.exception.end.words, "a loop")


class Prepared(unittest.TestCase):
    """What sockets are told before they are used."""

    def test_bytes_go_at_once_and_a_vanished_peer_is_looked_for(self) -> None:
        with socket.socket() as sock:
            load_balancer.prepare(sock)
            for level, option, value in (
                (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
                (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
                (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 60),
                (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 15),
                (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
            ):
                if number := getattr(socket, option, None):
                    with self.subTest(option):
                        self.assertEqual(sock.getsockopt(level, number), value)


class Defects(unittest.TestCase):
    """What should not happen costs one connection, and is told."""

    def test_defect_ends_its_connection_with_a_traceback_and_a_code(self) -> None:
        lab = Connections()
        log = mock.Mock(silent=False)
        worker = load_balancer.Worker(lab.board, [], log, 1)
        row, client_sock = lab.admit(), mock.Mock()
        session = load_balancer.Session(row, client_sock, ("127.0.0.1", 50000))
        worker._live[row.index] = session
        with (
            mock.patch.object(worker, "_meet", side_effect=ValueError("a defect")),
            contextlib.redirect_stderr(io.StringIO()) as stderr,
        ):
            worker._serve(session)
        self.assertIn("Traceback", stderr.getvalue())
        line, _ = log.line.call_args[0]
        self.assertRegex(line, r"end=ID internal error: ValueError\('a defect'\)\Z")
        client_sock.close.assert_called_once_with()
        self.assertEqual((lab.board.live, lab.servers[0].places_taken), (0, 0))


class Cuts(unittest.TestCase):
    """At a cut nobody who was not connected yet is sent anything."""

    def setUp(self) -> None:
        """Make a worker with one session, whose other end is `client`."""
        self.lab, self.log = Connections(), mock.Mock(silent=False)
        self.worker = load_balancer.Worker(self.lab.board, [], self.log, 1)
        self.client, client_sock = socket.socketpair()
        self.addCleanup(self.client.close)
        row = self.lab.admit()
        peer = ("127.0.0.1", 50000)
        self.session = load_balancer.Session(row, client_sock, peer)
        self.worker._live[row.index] = self.session

    def line(self) -> str:
        """Return the line of the log that the session has ended with."""
        line, _ = self.log.line.call_args[0]
        return str(line)

    def test_connect_that_succeeds_after_it_passes_nothing_on(self) -> None:
        server_sock, server = socket.socketpair()
        self.addCleanup(server.close)
        self.client.sendall(b"PAY")
        for sock in (self.client, server):
            sock.shutdown(socket.SHUT_WR)

        def connect(session: load_balancer.Session) -> tuple[socket.socket, bool]:
            session.cut = load_balancer.CUT
            return server_sock, False

        with mock.patch.object(self.worker, "_connected", connect):
            self.worker._serve(self.session)
        self.assertEqual(server.recv(10), b"")
        self.assertRegex(self.line(), "to_server=0 .* end=KC closed at shutdown$")

    def test_end_of_file_that_it_makes_is_not_a_client_that_has_left(self) -> None:
        lab = Connections("--server=127.0.0.1:9991,max=1")
        worker, peer = load_balancer.Worker(lab.board, [], self.log, 1), ("::1", 1)
        lab.admit()  # has the place
        session = load_balancer.Session(lab.admit(), self.session.client_sock, peer)
        worker._live[session.row.index] = session
        waiting = threading.Thread(target=worker._serve, args=(session,), daemon=True)
        waiting.start()
        wait_until(lambda: session.row.index in worker._waiting, what="a place")
        session.cut = load_balancer.CUT
        session.client_sock.shutdown(socket.SHUT_RD)
        waiting.join(DEADLINE_S)
        self.assertRegex(self.line(), "end=KQ closed at shutdown$")

    def test_who_waits_then_is_given_no_server_though_one_is_free(self) -> None:
        server = self.lab.board.server_of(self.session.row)
        assert server
        self.lab.board.give_back(self.session.row, server, REFUSED)
        self.session.row.forget_tried()
        self.lab.board.cutting = 1000
        self.worker._serve(self.session)
        self.assertRegex(self.line(), "server=- tries=1 .* end=KQ closed at shutdown$")


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
