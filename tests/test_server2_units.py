"""Parts of server2.py alone: its log, connections, threads, and the terminal."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
import unittest
from typing import Any
from unittest import mock

import server2
from tests import test_server2
from tests.support import (
    DEADLINE_S,
    ScriptTestCase,
    dial,
    in_parallel,
    read_exactly,
    read_line,
    send_reset,
    wait_until,
)

RECORD = b"2026-11-23 14:50:15,613 - 9991 - 127.0.0.1:56457 - connected\n"


class Appending(ScriptTestCase):
    """A log is written by whoever has something to record."""

    def test_with_fsync_a_leader_that_fails_leaves_nobody_waiting(self) -> None:
        log = server2.FlushedLog(str(self.folder / "log.txt"), server2.QuickCalls())
        self.addCleanup(log.close)
        leading, plain = threading.Event(), log._write_and_flush

        def fail_once(group: list[server2.Share]) -> None:
            if leading.is_set():
                plain(group)
                return
            leading.set()
            wait_until(lambda: log._next_group, 5, "an append made meanwhile")
            raise MemoryError

        def lead() -> None:
            with self.assertRaises(MemoryError):
                log.append([b"first\n"])

        def follow() -> tuple[int, str]:
            leading.wait(5)
            return log.append([b"second\n"])

        with mock.patch.object(log, "_write_and_flush", fail_once):
            _, followed = in_parallel(lead, follow, timeout=5)
            (later,) = in_parallel(lambda: log.append([b"third\n"]), timeout=5)
        self.assertEqual((followed, later), ((1, ""), (1, "")))
        self.assertEqual(self.log_lines("log.txt"), ["second", "third"])

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs FIFOs")
    def test_only_a_file_that_no_reader_stalls_is_written_with_the_lock_kept(
        self,
    ) -> None:
        path = self.folder / "log.txt"
        log = server2.Log(str(path), server2.QuickCalls())
        self.addCleanup(log.close)
        self.assertTrue(log._is_quick)
        log.reopen()
        self.assertTrue(log._is_quick)
        path.unlink()
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        log.reopen()
        self.assertFalse(log._is_quick)
        path.unlink()
        log.reopen()
        self.assertFalse(log._is_quick, "it changes once")


class HalfAProxyLine(unittest.TestCase):
    """Who sends half a line and stalls leaves a record; who sends nothing, none."""

    def test_what_came_of_a_line_is_counted(self) -> None:
        for sent in (b"", b"PROXY "):
            ours, theirs = socket.socketpair()
            with ours, theirs, mock.patch.object(server2, "PROXY_TIMEOUT_S", 0.05):
                theirs.sendall(sent)
                server = mock.Mock(args=server2.parse_args(["0"]))
                connection = server2.Connection(server, ours, ("127.0.0.1", 50000))
                with self.assertRaisesRegex(server2.ConnectionOver, "in time"):
                    connection._read_proxy_line()
                self.assertEqual(connection.bytes_in, len(sent))


class Mending(ScriptTestCase):
    """A torn record is blanked; what a person wrote is kept."""

    def mended(self, before: bytes) -> bytes:
        path = self.folder / "log"
        path.write_bytes(before)
        server2.mend(str(path))
        return path.read_bytes()

    def test_a_torn_record_at_the_end_becomes_a_line_of_blanks(self) -> None:
        for size in (len("2026-"), len("2026-11-23 14"), len(RECORD) - 1):
            with self.subTest(torn=RECORD[:size]):
                after = self.mended(RECORD + RECORD[:size])
                self.assertEqual(after, RECORD + b" " * (size - 1) + b"\n\n")

    def test_the_first_bytes_of_a_record_before_another_become_blanks(self) -> None:
        for size in (1, len("2026-"), len(RECORD) - 1):
            with self.subTest(torn=RECORD[:size]):
                after = self.mended(RECORD + RECORD[:size] + RECORD)
                blank = b" " * (size - 1) + b"\n"
                self.assertEqual(after, RECORD + blank + RECORD + b"\n")

    def test_a_number_that_a_person_wrote_at_the_end_is_kept(self) -> None:
        for text in (b"2", b"20", b"2026", b"-", b"2026 was fine"):
            with self.subTest(text=text):
                self.assertEqual(self.mended(RECORD + text), RECORD + text + b"\n")

    def test_a_log_without_a_torn_record_is_not_touched(self) -> None:
        for text in (b"", RECORD, b"2026-\n"):
            with self.subTest(text=text):
                self.assertEqual(self.mended(text), text)


class ProxyLines(unittest.TestCase):
    """What is no PROXY line is a ValueError, and nothing else."""

    def test_every_invalid_line_raises_value_error(self) -> None:
        for line in test_server2.ProxyHeaders.INVALID:
            if len(line) <= server2.PROXY_LINE_BYTES:  # longer ones never get here
                with self.subTest(line=line), self.assertRaises(ValueError):
                    server2.parse_proxy_line(line)


class Ends(ScriptTestCase):
    """A connection ends, and the log says how."""

    def test_a_client_that_reset_does_not_hold_up_a_stop(self) -> None:
        log = mock.Mock()
        log.append.side_effect = lambda records: (len(records), "")
        server = mock.Mock(port=9991, log=log, prefix=bytes(60_000))
        server.args = server2.parse_args(["9991"])
        server.calls.send_at_once.return_value = 0
        server.stopping = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = self.dial(listener.getsockname())
            connection = server2.Connection(server, *listener.accept())
        serving = threading.Thread(target=connection.serve)
        serving.start()
        client.sendall(b"\n" * 5_000)  # 300 MB of replies: nobody reads so much
        read_exactly(client, 1)
        server.stopping.set()
        began = time.monotonic()
        send_reset(client)
        serving.join(DEADLINE_S)
        self.assertLess(time.monotonic() - began, server2.DELIVERY_S / 2)
        connection.sock.close()

    def test_a_client_that_vanished_is_not_called_idle(self) -> None:
        gone = TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))  # by TCP
        ours = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        for case, received, sent, reason in (
            ("awaited", [b"hi\n", gone], None, "client vanished, 1 message"),
            ("in a pause", [b"h", gone, gone], None, "client vanished, 0 messages"),
            ("answered", [b"hi\n"], gone, "client vanished, 1 message"),
            ("our own deadline", [b"hi\n", ours], None, "idle, 1 message"),
        ):
            with self.subTest(case):
                log = mock.Mock()
                log.append.side_effect = lambda records: (len(records), "")
                server = mock.Mock(port=9991, log=log, prefix=b"")
                server.args = server2.parse_args(["9991"])
                server.calls.send_at_once.return_value = 0  # sendall instead
                server.stopping.is_set.return_value = False
                sock = mock.Mock()
                sock.recv.side_effect = received
                sock.sendall.side_effect = sent
                server2.Connection(server, sock, ("127.0.0.1", 56457)).serve()
                (record,) = log.append.call_args.args[0]
                self.assertIn(b" - closed: %b, " % reason.encode(), record)


class Threads(ScriptTestCase):
    """How the server's threads take, serve and close connections."""

    def setUp(self) -> None:
        super().setUp()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.printer = mock.Mock()
        log = mock.Mock()
        log.append.side_effect = lambda records: (len(records), "")
        args = server2.parse_args(["0"])
        calls = server2.QuickCalls()
        self.server = server2.Server(self.listener, log, self.printer, args, calls)
        self.addCleanup(self.server._inbox.close)
        self.addCleanup(self.server._outbox.close)

    def serve_and_end(self, connection: mock.Mock) -> None:
        """Serve a connection on a thread that ends with it."""
        self.server._live.add(connection)
        self.server.stopping.set()
        self.assertTrue(self.server._start_thread(connection))

    def test_a_defect_is_told_with_its_traceback_and_ends_one_connection(self) -> None:
        connection = mock.Mock(client="127.0.0.1:56457")
        connection.serve.side_effect = ZeroDivisionError("a defect")
        self.serve_and_end(connection)
        wait_until(lambda: connection.sock.close.called, 5, "the connection's end")
        (call,) = self.printer.warn.call_args_list
        kind, text = call.args
        self.assertEqual(kind, "defect: ZeroDivisionError")
        self.assertTrue(text.startswith("127.0.0.1:56457: Traceback "), text)
        self.assertTrue(text.endswith("\nZeroDivisionError: a defect"), text)

    def test_no_connection_is_closed_while_a_stop_can_reach_it(self) -> None:
        live: list[bool] = []
        connection = mock.Mock(client="127.0.0.1:56457")
        connection.serve.side_effect = lambda: live.append(is_live())
        connection.sock.close.side_effect = lambda: live.append(is_live())

        def is_live() -> bool:
            return connection in self.server._live

        self.serve_and_end(connection)
        wait_until(lambda: len(live) == 2, 5, "the connection's end")
        self.assertEqual(live, [True, False])

    def test_the_last_clients_are_served_where_sockets_inherit_o_nonblock(self) -> None:
        plain = socket.socket.accept

        def accept_like_bsd(listener: socket.socket) -> tuple[socket.socket, Any]:
            sock, address = plain(listener)
            os.set_blocking(sock.fileno(), listener.getblocking())
            return sock, address

        with dial(self.listener.getsockname()) as client:
            self.server.stopping.set()
            with mock.patch.object(socket.socket, "accept", accept_like_bsd):
                self.server._accept_the_last()
            client.sendall(b"hi\n")
            port = self.listener.getsockname()[1]
            self.assertEqual(read_line(client), b"Server %d received: hi\n" % port)
        wait_until(lambda: not self.server._threads, 5, "the thread's end")


class Terminal(unittest.TestCase):
    """Lines for the person who watches, and what becomes of them."""

    def test_lines_not_shown_are_counted_where_they_are_missing(self) -> None:
        written: list[tuple[int, str]] = []
        is_free = threading.Event()

        def write(file: int, text: str) -> None:
            is_free.wait(5)
            if text:
                written.append((file, text))

        with (
            mock.patch.object(server2.Printer, "_write", staticmethod(write)),
            mock.patch.object(server2, "PRINTED_LINES", 1),
        ):
            printer = server2.Printer(quiet=True)
            printer.warn("one", "one")
            wait_until(lambda: not printer._lines, 5, "the terminal to stall")
            for text in ("two", "three", "four"):
                printer.warn(text, text)
            is_free.set()
            printer.stop()
        self.assertEqual(
            written,
            [
                (2, "server2.py: one\n"),
                (2, "server2.py: two\n(2 lines not shown)\n"),
            ],
        )


if __name__ == "__main__":
    unittest.main()
