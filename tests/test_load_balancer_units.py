"""load_balancer.py: what needs a failure or a moment that no client can bring about.

Parts of it by themselves: the pool and the queue with workers that do nothing, a clock
that a test sets, a name that moves away and back, a check without a source port, a log
on a full disk, the last bytes to a side that acknowledges none.
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
from load_balancer import Direction, Frontend, Log, Pool, Worker, figures_of
from tests.balancer import TIME


class IdleWorker(Worker):
    """A worker that takes sessions and does nothing."""

    def assign(self, job: load_balancer.Job) -> bool:
        """Take the session."""
        return True


def pool_of(*workers: IdleWorker, server: str = "127.0.0.1:9991") -> Pool:
    """Return a pool with one server, rise 2 and fall 3, and these workers."""
    options = [f"--server={server}", "--rise=2", "--fall=3"]
    pool = Pool(load_balancer.parse_args(options), 20)
    for worker in workers:
        pool.add_worker(worker)
    return pool


def admit(pool: Pool) -> load_balancer.Session:
    """Begin a session that has no socket."""
    return pool.begin(mock.Mock(), ("127.0.0.1", 50000))


def move_in_background(
    pool: Pool, session: load_balancer.Session
) -> tuple[threading.Thread, list[bool]]:
    """Move the session to another worker; return the thread, and where it answers."""
    moved: list[bool] = []
    thread = threading.Thread(
        target=lambda: moved.append(pool.move(session)), daemon=True
    )
    thread.start()
    return thread, moved


class WorkersThatDie(unittest.TestCase):
    """A dead worker gets no session; one that cannot be replaced blocks no others."""

    def test_dead_worker_gets_no_session_while_another_lives(self) -> None:
        first, second = IdleWorker(10), IdleWorker(10)
        pool = pool_of(first, second)
        pool.set_alive(first, False)
        for _ in range(4):
            self.assertIs(admit(pool).worker, second)
        pool.set_alive(first, True)
        self.assertIs(admit(pool).worker, first)

    def test_session_moves_to_a_live_worker(self) -> None:
        first, second = IdleWorker(10), IdleWorker(10)
        pool = pool_of(first, second)
        session = admit(pool)
        self.assertIs(session.worker, first)
        pool.set_alive(first, False)
        self.assertTrue(pool.move(session))
        self.assertIs(session.worker, second)
        self.assertEqual((first.sessions, second.sessions), (0, 1))

    def test_session_waits_for_a_live_worker(self) -> None:
        first, second = IdleWorker(10), IdleWorker(10)
        pool = pool_of(first, second)
        session = admit(pool)
        for worker in (first, second):
            pool.set_alive(worker, False)
        mover, moved = move_in_background(pool, session)
        mover.join(0.1)
        self.assertEqual(moved, [])
        pool.set_alive(second, True)
        mover.join(10)
        self.assertEqual(moved, [True])
        self.assertIs(session.worker, second)

    def test_session_that_waits_for_a_live_worker_hears_of_the_stop(self) -> None:
        worker = IdleWorker(10)
        pool = pool_of(worker)
        session = admit(pool)
        pool.set_alive(worker, False)
        mover, moved = move_in_background(pool, session)
        pool.stop()
        mover.join(10)
        self.assertEqual(moved, [False])


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
            signals.start(mock.Mock(), mock.Mock())
            self.assertTrue(signals.stop_asked.wait(10))
        self.assertIs(signal.getsignal(signal.SIGTERM), before)
        self.assertEqual(signal.set_wakeup_fd(-1), -1)


class WorkersShortOfThreads(unittest.TestCase):
    """A worker gets no more sessions than it has threads."""

    def test_worker_without_any_thread_may_have_one_session_until_it_has_them_again(
        self,
    ) -> None:
        worker = IdleWorker(8)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            log = Log(None, quiet=True)
            frontend = Frontend(listener, pool_of(worker), log)
            self.addCleanup(frontend.close)
            frontend.limit_worker(worker, 0, "can't start new thread")
            self.assertEqual(worker.capacity, 1)
            frontend.limit_worker(worker, 3, "can't start new thread")
            self.assertEqual(worker.capacity, 3)
            frontend.limit_worker(worker, None, "")
            self.assertEqual(worker.capacity, 8)


class ChecksInAShortage(unittest.TestCase):
    """A shortage of our own is no result of a check."""

    def test_check_without_a_result_changes_no_health(self) -> None:
        pool = pool_of()
        (server,) = pool.servers()
        for passed, health in ((False, 3), (None, 3), (False, 2), (False, 0)):
            pool.record_check(server, passed, "as told")
            self.assertEqual(server.health, health)
        self.assertEqual(pool.record_check(server, None, "not checked"), "")
        self.assertEqual((server.health, server.last_check), (0, "not checked"))
        pool.record_check(server, True, "connected")
        pool.record_check(server, None, "not checked")
        self.assertEqual(server.health, 1)

    def test_check_without_a_descriptor_or_a_source_port_has_no_result(self) -> None:
        pool = pool_of()
        (server,) = pool.servers()
        frontend = mock.Mock(options=pool.options, pool=pool)
        checks = load_balancer.Checks(frontend)

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
                    found = checks._check_once(server)
                self.assertEqual(found, (None, f"not checked: {words}"))

    def test_server_that_no_own_address_reaches_fails_its_check(self) -> None:
        pool = pool_of()
        (server,) = pool.servers()
        checks = load_balancer.Checks(mock.Mock(options=pool.options, pool=pool))

        class NoAddress(socket.socket):
            """A socket of a family that this machine has no address of."""

            def connect(self, address: object) -> None:
                why = "Cannot assign requested address"
                raise OSError(errno.EADDRNOTAVAIL, why)

        with mock.patch.object(socket, "socket", NoAddress):
            found = checks._check_once(server)
        self.assertEqual(found, (False, "cannot assign requested address"))


class PenaltiesWithoutChecks(unittest.TestCase):
    """A server that refuses is left alone for a while, longer each time."""

    def setUp(self) -> None:
        """Have a server that is DOWN, and a clock."""
        self.pool = pool_of(IdleWorker(20))
        (self.server,) = self.pool.servers()
        self.now_s = time.monotonic()
        clock = mock.patch.object(time, "monotonic", lambda: self.now_s)
        clock.start()
        self.addCleanup(clock.stop)
        self.take_down()

    def take_down(self) -> None:
        """Let connects fail until the server is DOWN."""
        while "state=DOWN" not in self.pool.record_connect_failure(
            self.server, "refused"
        ):
            pass

    def test_server_is_tried_again_after_its_penalty_which_doubles(self) -> None:
        for penalty_s in (10, 20, 40):
            self.now_s += penalty_s - 0.1
            self.assertEqual(self.pool.forgive(), [])
            self.now_s += 0.2
            (line,) = self.pool.forgive()
            self.assertIn(f'state=UP reason="tried again after {penalty_s} s', line)
            self.take_down()

    def test_log_tells_how_many_failures_in_a_row_it_were(self) -> None:
        self.now_s += 10.1
        self.pool.forgive()
        line = self.pool.record_connect_failure(self.server, "refused")
        self.assertIn("state=DOWN", line)
        self.assertIn("checks=1/3", line)

    def test_server_that_has_recovered_is_not_demoted_by_its_old_penalty(self) -> None:
        for _ in range(2):
            self.now_s += 1
            session = admit(self.pool)
            self.assertIs(self.pool.pick(session), self.server)
            self.pool.counters.cells(session.slot)[load_balancer.CONNECT_NS] = 1
            self.pool.end(session.slot, load_balancer.End("--", "closed by both sides"))
        healthy = self.server.health
        self.now_s += 100
        self.assertEqual(self.pool.forgive(), [])
        self.assertEqual(self.server.health, healthy)
        self.take_down()
        self.now_s += 10.1
        self.assertEqual(len(self.pool.forgive()), 1)


class LastReports(unittest.TestCase):
    """What a worker process has said before its end is heard."""

    @unittest.skipUnless(load_balancer.CAN_SEND_SOCKETS, "needs Linux")
    def test_reports_before_an_unread_job_are_not_lost(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.send(b"a job that it does not read")
            theirs.send(b"a report")
            theirs.close()
            self.assertEqual(load_balancer.receive(ours), (b"a report", []))
            self.assertEqual(load_balancer.receive(ours), (b"", []))


class NamesThatMove(unittest.TestCase):
    """An address that is back is the server that it was."""

    def test_address_that_comes_back_is_one_server_with_its_limit(self) -> None:
        pool = pool_of(IdleWorker(20), server="127.0.0.1:9991,max=1")
        (server,) = pool.servers()
        session = admit(pool)
        pool.pick(session)
        here, there = (
            (int(socket.AF_INET), (host, 9991)) for host in ("127.0.0.1", "127.0.0.2")
        )
        (new,), lines = pool.move_name(server.name, [there])
        self.assertEqual(self.states(lines), ["state=DRAIN", "state=UP"])
        added, lines = pool.move_name(server.name, [here])
        self.assertEqual(added, [])
        self.assertEqual(self.states(lines), ["state=UP", "state=DRAIN"])
        self.assertEqual(pool.servers(), [server])
        self.assertFalse(pool.has(new))
        self.assertIsNone(pool.pick(admit(pool)), "a second place at max=1")

    def test_names_that_take_each_others_addresses_keep_servers(self) -> None:
        hosts = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
        here, there, away = ((int(socket.AF_INET), (host, 9991)) for host in hosts)
        one, two = "--server=127.0.0.1:9991", "--server=127.0.0.2:9991"
        options = load_balancer.parse_args([one, two])
        for server, name in zip(options.servers, ("a:9991", "b:9991"), strict=True):
            server.name = name
        pool = Pool(options, 20)
        pool.move_name("a:9991", [there])  # as b has, too
        pool.move_name("b:9991", [there])
        pool.move_name("a:9991", [there])  # its own is gone, and remembered
        pool.move_name("b:9991", [here])
        pool.move_name("a:9991", [there])  # now they have changed places
        self.assertEqual(
            sorted((s.name, s.address[0]) for s in pool.servers()),
            [("a:9991", "127.0.0.2"), ("b:9991", "127.0.0.1")],
        )
        pool.move_name("a:9991", [away])
        self.assertEqual(len(figures_of(pool.snapshot())["servers"]), 2)
        pool.move_name("a:9991", [here])  # that b has now
        self.assertEqual([s.name for s in pool.servers()], ["b:9991"])

    def states(self, lines: list[str]) -> list[str]:
        """Return the states that lines of the log tell."""
        return [line.split()[1] for line in lines]


class Counting(unittest.TestCase):
    """What counts as a failed connection."""

    def test_connection_closed_at_shutdown_before_its_server_has_not_failed(
        self,
    ) -> None:
        pool = pool_of(IdleWorker(20))
        for code, failed in (("KQ", 0), ("KC", 0), ("CC", 0), ("SC", 1)):
            pool.end(admit(pool).slot, load_balancer.End(code, "as told"))
            self.assertEqual(
                figures_of(pool.snapshot())["connections"]["failed"], failed, code
            )


class FailuresAmongSuccesses(unittest.TestCase):
    """Only failures in a row take a server DOWN: long sessions count, too."""

    def test_live_session_connected_since_the_last_failure_breaks_the_row(self) -> None:
        pool = pool_of(IdleWorker(20))
        (server,) = pool.servers()
        for _ in range(10):
            session = admit(pool)
            self.assertIs(pool.pick(session), server)
            pool.counters.cells(session.slot)[load_balancer.CONNECT_NS] = 1
            self.assertEqual(pool.record_connect_failure(server, "refused"), "")
        for _ in range(2):
            line = pool.record_connect_failure(server, "refused")
        self.assertIn("state=DOWN", line)


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


class TheQueue(unittest.TestCase):
    """What a place that becomes free costs, however many wait for it."""

    def setUp(self) -> None:
        """Have a full server, and 15 sessions in the queue before it."""
        self.pool = pool_of(IdleWorker(100), server="127.0.0.1:9991,max=1")
        listener = socket.create_server(("127.0.0.1", 0))
        self.frontend = Frontend(listener, self.pool, Log(None, quiet=True))
        self.addCleanup(self.frontend.close)
        self.holder, *self.waiting = [self.begin() for _ in range(16)]
        for session in (self.holder, *self.waiting):
            self.frontend.dispatch(session)
        for session in self.pool.newly_queued():
            self.frontend.queue._add(session)

    def begin(self) -> load_balancer.Session:
        """Begin a session with a socket."""
        client_sock, other = socket.socketpair()
        self.addCleanup(client_sock.close)
        self.addCleanup(other.close)
        return self.pool.begin(client_sock, ("127.0.0.1", 50000))

    def test_free_place_goes_to_the_first_and_the_rest_is_not_asked(self) -> None:
        first, second = self.waiting[:2]
        self.pool.end(self.holder.slot, load_balancer.CLOSED)
        with mock.patch.object(self.pool, "pick", wraps=self.pool.pick) as pick:
            self.frontend.queue._dispatch_all()
        self.assertEqual([call.args for call in pick.mock_calls], [(first,), (second,)])
        self.assertIsNotNone(first.server)
        self.assertIsNone(second.server)

    def test_session_that_comes_back_and_has_no_server_left_ends_at_once(
        self,
    ) -> None:
        end = load_balancer.End("SC", "refused")
        self.pool.requeue(self.holder.slot, self.begin_socket(), end)
        (session,) = self.pool.newly_queued()
        self.frontend.queue._add(session)
        self.assertEqual([s for s, _ in self.pool.sessions()], self.waiting)

    def test_session_that_has_tried_a_server_keeps_no_place_from_new_ones(self) -> None:
        options = ["--server=127.0.0.1:9991,max=1", "--server=127.0.0.1:9992,max=1"]
        pool = Pool(load_balancer.parse_args(options), 20)
        pool.add_worker(IdleWorker(20))
        frontend = Frontend(
            socket.create_server(("127.0.0.1", 0)), pool, Log(None, True)
        )
        self.addCleanup(frontend.close)
        self.pool = pool
        first, second = self.begin(), self.begin()
        for session in (first, second):
            frontend.dispatch(session)
        refused = load_balancer.End("SC", "refused")
        pool.requeue(first.slot, self.begin_socket(), refused)  # the other one is full
        newcomer = self.begin()
        self.assertFalse(frontend.dispatch(newcomer))  # behind it, at first
        for session in pool.newly_queued():
            frontend.queue._add(session)
        frontend.queue._dispatch_all()
        self.assertIs(newcomer.server, first.tried[0])

    def test_without_a_timeout_who_waited_is_not_remembered(self) -> None:
        queue = self.frontend.queue
        queue._timeout_s, before = 0.0, len(queue._deadlines)
        session = self.begin()
        self.frontend.dispatch(session)
        queue._add(session)
        self.assertEqual(len(queue._deadlines), before)

    def begin_socket(self) -> socket.socket:
        """Return a client's socket that comes back from a worker."""
        client_sock, other = socket.socketpair()
        self.addCleanup(client_sock.close)
        self.addCleanup(other.close)
        return client_sock
