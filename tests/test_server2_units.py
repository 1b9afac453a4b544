"""Parts of server2.py alone: mending a log, the PROXY line, threads, the terminal."""

from __future__ import annotations

import os
import socket
import threading
import unittest
from typing import Any
from unittest import mock

import server2
from tests import test_server2
from tests.support import ScriptTestCase, dial, read_line, wait_until

RECORD = b"2026-11-23 14:50:15,613 - 9991 - 127.0.0.1:56457 - connected\n"


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
