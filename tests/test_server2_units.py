"""Parts of server2.py alone: its log, connections, threads, work, and the terminal."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import unittest
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import server2
from tests import test_server2
from tests.support import (
    DEADLINE_S,
    ROOT,
    ScriptTestCase,
    dial,
    in_parallel,
    read_exactly,
    read_line,
    read_to_end,
    send_reset,
    wait_until,
)

RECORD = b"2026-11-23 14:50:15,613 - 9991 - 127.0.0.1:56457 - connected\n"


def some_server(*options: str) -> mock.Mock:
    """Return what a connection needs of a server: one that logs and says nothing."""
    server = mock.Mock(port=9991, args=server2.parse_args(["9991", *options]))
    server.work.is_needed = False
    server.log.append.side_effect = lambda entries: (len(entries), "")
    server.terminal.shows.return_value = False
    server.stopping = threading.Event()
    return server


class Appending(ScriptTestCase):
    """A log is written by whoever has something to record."""

    def test_with_fsync_a_leader_that_fails_leaves_nobody_waiting(self) -> None:
        log = server2.FlushedLog(str(self.folder / "log.txt"))
        self.addCleanup(os.close, log.file)
        leading, plain = threading.Event(), log._write_and_flush

        def fail_once(group: list[bytes]) -> tuple[int, str]:
            if leading.is_set():
                return plain(group)
            leading.set()
            wait_until(lambda: log._group, 5, "an append made meanwhile")
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

    def grouped(self, outcome: Any) -> list[tuple[int, str]]:
        """Return what two appends of one group are told when it ends like that."""
        log = server2.FlushedLog(str(self.folder / "log.txt"))
        self.addCleanup(os.close, log.file)
        busy, answers = threading.Event(), []

        def be_busy() -> None:
            with log.flushing:
                busy.set()
                wait_until(lambda: len(log._group) == 2, 5, "a group of two")

        def append(before: int) -> None:
            busy.wait(5)
            wait_until(lambda: len(log._group) == before, 5, "its turn")
            with contextlib.suppress(MemoryError):
                answers.append(log.append([RECORD]))

        with mock.patch.object(log, "_write_and_flush", side_effect=[outcome]):
            in_parallel(be_busy, lambda: append(0), lambda: append(1), timeout=5)
        return sorted(answers, reverse=True)

    def test_with_fsync_each_of_a_group_is_told_what_became_of_its_own(self) -> None:
        for logged, reason, told in (
            (2, "", [(1, ""), (1, "")]),
            (1, "no space", [(1, ""), (0, "no space")]),
            (0, "no space", [(0, "no space"), (0, "no space")]),
        ):
            with self.subTest(logged=logged):
                self.assertEqual(self.grouped((logged, reason)), told)

    def test_with_fsync_who_joined_a_leader_that_fails_is_told(self) -> None:
        self.assertEqual(
            self.grouped(MemoryError()), [(0, "internal error: MemoryError()")]
        )

    def test_of_a_write_cut_off_the_whole_is_logged_and_the_torn_blanked(self) -> None:
        log = server2.Log(str(self.folder / "log.txt"))
        self.addCleanup(os.close, log.file)
        full = OSError(errno.ENOSPC, "no space")

        def cut_off(file: int, data: bytes) -> int:
            return os.write(file, data[: len(RECORD) + 40])

        with mock.patch.object(server2, "write_quickly", side_effect=cut_off) as write:
            write.side_effect = [cut_off(log.file, RECORD * 3), full]
            self.assertEqual(log.append([RECORD] * 3), (1, "no space"))
        self.assertEqual(log.append([RECORD]), (1, ""))
        blank = b" " * 39 + b"\n\n"
        text = (self.folder / "log.txt").read_bytes()
        self.assertEqual(text, RECORD + blank + RECORD)

    def test_a_write_cut_off_within_an_entry_goes_on_with_the_torn_record(self) -> None:
        log = server2.Log(str(self.folder / "log.txt"))
        self.addCleanup(os.close, log.file)
        one, two = RECORD.replace(b"connected", b"one"), RECORD
        writes = iter([len(one) + 40])

        def cut_off(file: int, data: bytes) -> int:
            return os.write(file, data[: next(writes, len(data))])

        with mock.patch.object(server2, "write_quickly", side_effect=cut_off):
            self.assertEqual(log.append([one + two]), (1, ""))
        blank = b" " * 39 + b"\n\n"
        text = (self.folder / "log.txt").read_bytes()
        self.assertEqual(text, one + blank + two)

    def test_a_torn_record_is_blanked_where_it_is_though_the_log_was_renamed(
        self,
    ) -> None:
        if not Path("/proc/self/fd").exists():
            self.skipTest("needs /proc (Linux)")
        path = self.folder / "log.txt"
        log = server2.Log(str(path))
        self.addCleanup(os.close, log.file)
        os.write(log.file, RECORD + RECORD[:40])
        path.rename(self.folder / "log.1")
        log.torn.set()
        self.assertEqual(log.append([RECORD]), (1, ""))
        text = (self.folder / "log.1").read_bytes()
        self.assertEqual(text, RECORD + b" " * 39 + b"\n\n" + RECORD)

    def test_what_nobody_may_mend_is_ended_before_the_first_record(self) -> None:
        path = self.folder / "log.txt"
        path.write_bytes(RECORD[:40])
        with mock.patch.object(server2, "repair", side_effect=PermissionError()):
            log = server2.open_log(str(path), flushed=False)
            self.addCleanup(os.close, log.file)
            self.assertEqual(log.append([RECORD]), (1, ""))
        self.assertEqual(path.read_bytes(), RECORD[:40] + b"\n" + RECORD)

    def test_connected_is_recorded_once_whatever_became_of_the_message(self) -> None:
        server = some_server()
        answers = iter([(1, "no space"), (0, "no space"), (1, ""), (1, "")])
        server.log.append.side_effect = lambda entries: next(answers)
        connection = server2.Connection(server, mock.Mock(), ("127.0.0.1", 56457))
        said = b"Server 9991 error: cannot log: no space\n"
        confirmed = b"Server 9991 received: hi\n"
        for answer in (said, said, confirmed, confirmed):
            self.assertEqual(connection._record_messages([b"hi\n"]), answer)
        calls = [call.args[0] for call in server.log.append.call_args_list]
        self.assertEqual([len(entries) for entries in calls], [2, 1, 1, 1])
        self.assertTrue(calls[0][0].endswith(b" - 127.0.0.1:56457 - connected\n"))

    def test_a_log_that_cannot_be_reopened_costs_no_descriptor(self) -> None:
        log = server2.Log(str(self.folder / "log.txt"))
        self.addCleanup(os.close, log.file)
        free = os.dup(log.file)
        os.close(free)
        no_more = OSError(errno.EMFILE, "Too many open files")
        with mock.patch("os.dup", side_effect=no_more), self.assertRaises(OSError):
            server2.reopen(log)
        again = os.dup(log.file)
        os.close(again)
        self.assertEqual(again, free)

    def read_log(self, kind: type[server2.Log]) -> tuple[server2.Log, int]:
        """Return a log that is a FIFO, and the descriptor of its reader."""
        path = self.folder / "log.txt"
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        log = kind(str(path))
        self.addCleanup(os.close, log.file)
        return log, reader

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs FIFOs")
    def test_after_a_reader_that_left_within_a_record_a_line_begins(self) -> None:
        log, reader = self.read_log(server2.Log)
        gone = BrokenPipeError(errno.EPIPE, "Broken pipe")
        with mock.patch("os.write", side_effect=[10, gone, gone]):
            self.assertEqual(log.append([RECORD]), (0, "Broken pipe"))
        self.assertEqual(log.append([RECORD]), (1, ""))
        self.assertEqual(os.read(reader, 4096), b"\n" + RECORD)
        os.close(reader)

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs FIFOs")
    def test_whether_writers_take_turns_is_decided_at_every_opening(self) -> None:
        path = self.folder / "log.txt"
        log = server2.Log(str(path))
        self.addCleanup(os.close, log.file)
        self.assertFalse(log.is_pipe)
        path.unlink()
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        server2.reopen(log)
        self.assertTrue(log.is_pipe)
        path.unlink()
        server2.reopen(log)
        self.assertFalse(log.is_pipe)


    def test_with_fsync_a_device_is_not_flushed(self) -> None:
        log = server2.FlushedLog(os.devnull)
        self.addCleanup(os.close, log.file)
        self.assertEqual(log.append([RECORD]), (1, ""))

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs FIFOs")
    def test_with_fsync_a_reader_that_stalls_does_not_stall_a_reopening(self) -> None:
        log, reader = self.read_log(server2.FlushedLog)
        much = [bytes(1_000_000)]
        writing = threading.Thread(target=log.append, args=(much,), daemon=True)
        writing.start()
        wait_until(lambda: select.select([reader], [], [], 0)[0], what="a full pipe")
        try:
            in_parallel(lambda: server2.reopen(log), timeout=5)
        finally:
            os.close(reader)
        writing.join(DEADLINE_S)
        self.assertFalse(writing.is_alive())

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs FIFOs")
    def test_a_reader_that_leaves_at_once_is_followed_by_another(self) -> None:
        path = self.folder / "log.txt"
        os.mkfifo(path)
        waits, opened = threading.Semaphore(0), list[server2.Log]()

        def open_it() -> None:
            with mock.patch.object(server2, "complain", lambda _: waits.release()):
                opened.append(server2.open_log(str(path), flushed=False))

        opening = threading.Thread(target=open_it, daemon=True)
        opening.start()
        plain = os.open
        self.assertTrue(waits.acquire(timeout=DEADLINE_S))

        def leave_before(name: Any, *rest: Any) -> int:
            """Have the reader gone when the log itself is opened."""
            if rest[0] & os.O_NONBLOCK and reader:
                os.close(reader.pop())
            return plain(name, *rest)

        with mock.patch("os.open", leave_before):
            reader = [plain(path, os.O_RDONLY | os.O_NONBLOCK)]
            self.assertTrue(waits.acquire(timeout=DEADLINE_S))
        with open(path, "rb"):
            opening.join(DEADLINE_S)
        (log,) = opened
        os.close(log.file)

    def test_a_log_that_is_a_socket_is_refused(self) -> None:
        path = str(self.folder / "s")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            said = contextlib.redirect_stderr(io.StringIO())
            with said as stderr, self.assertRaises(OSError) as raised:
                server2.open_log(path, flushed=False)
        self.assertEqual((raised.exception.errno, stderr.getvalue()), (errno.ENXIO, ""))

    def test_what_is_printed_to_the_logs_own_file_overwrites_nothing(self) -> None:
        path = self.folder / "log.txt"
        code = (
            "import os, server2\n"
            f"log = server2.open_log({str(path)!r}, False)\n"
            "os.write(1, b'one\\n'); log.append([b'two\\n']); os.write(1, b'three\\n')"
        )
        with path.open("wb") as file:
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=file,
                           check=True, timeout=DEADLINE_S)  # fmt: skip
        self.assertEqual(path.read_bytes(), b"one\ntwo\nthree\n")


class Mending(ScriptTestCase):
    """A torn record is blanked; what a person wrote is kept."""

    def mended(self, before: bytes) -> bytes:
        path = self.folder / "log"
        path.write_bytes(before)
        server2.repair(str(path))
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

    def test_no_message_is_mended_wherever_the_search_begins(self) -> None:
        unit = b"2026-11-23 14:50:15,613 - 9991 - 6.6.6.6:6 - closed: by client, x "
        own = b"2026-11-23 14:50:15,613 - 9991 - 127.0.0.1:5 - "
        text = b"received: " + 3 * unit + b"\n"
        entry = own + text + own + b"replied: Server 9991 " + text
        for size in range(1, 3 * len(entry), 7):
            with mock.patch.object(server2, "MEND_BYTES", size):
                self.assertEqual(self.mended(3 * entry), 3 * entry)

    def test_a_message_like_a_record_is_kept_when_its_reply_was_blanked(self) -> None:
        own = b"2026-11-23 14:50:15,613 - 9991 - 127.0.0.1:5 - "
        message = own.replace(b"127.0.0.1:5", b"6.6.6.6:6") + b"closed: by client\n"
        before = own + b"received: " + message + 80 * b" " + b"\n" + RECORD
        self.assertEqual(self.mended(before), before)

    def test_a_number_that_a_person_wrote_at_the_end_is_kept(self) -> None:
        for text in (b"2", b"20", b"2026", b"-", b"2026 was fine"):
            with self.subTest(text=text):
                self.assertEqual(self.mended(RECORD + text), RECORD + text + b"\n")

    def test_a_message_like_a_record_is_kept_when_its_reply_is_torn(self) -> None:
        own = b"2026-11-23 14:50:15,613 - 9991 - 127.0.0.1:5 - "
        for event in (
            b"replied: Server 9993 received: pay 1000",
            b"received: pay 1000",
            b"closed: by client, 1 message, 2 bytes in, 3 bytes out, 1.0 ms",
        ):
            message = b"x 2026-11-28 09:00:00,000 - 9993 - 10.9.8.7:4 - " + event
            received = own + b"received: " + message + b"\n"
            replied = own + b"replied: Server 9991 received: " + message
            for size in (10, 40, len(replied) - 1):
                with self.subTest(event=event, size=size):
                    after = self.mended(received + replied[:size])
                    self.assertEqual(after, received + b" " * (size - 1) + b"\n\n")

    def test_a_message_like_a_reply_is_kept_whatever_stands_beside_it(self) -> None:
        own = b"2026-11-23 14:50:15,613 - 9991 - 127.0.0.1:5 - received: "
        forged = b"2026-11-28 09:00:00,000 - 9993 - 10.9.8.7:4 - replied: Server 9993"
        text = own + forged + b" received: pay 1000\n" + RECORD
        self.assertEqual(self.mended(text), text)

    def test_a_torn_record_before_a_whole_message_becomes_blanks(self) -> None:
        own = b"2026-11-23 14:50:15,613 - 9992 - 127.0.0.1:5 - "
        whole = own + b"received: a\n" + own + b"replied: Server 9992 received: a\n"
        torn = own.replace(b"9992", b"9991") + b"received: half of"
        blank = b" " * (len(torn) - 1) + b"\n"
        self.assertEqual(self.mended(torn + whole), blank + whole + b"\n")

    def test_long_messages_of_others_are_kept(self) -> None:
        own = b"2026-11-23 14:50:15,613 - 9991 - 127.0.0.1:5 - "
        for size in (150_000, 700_000, 2_000_000):
            with self.subTest(size=size):
                forged = RECORD.replace(b"connected\n", b"received: me")
                message = b"m" * size + forged + b"m" * size
                text = own + b"received: " + message + b"\n"
                text += own + b"replied: Server 9991 received: " + message + b"\n"
                self.assertEqual(self.mended(text * 4 + RECORD), text * 4 + RECORD)

    def test_a_line_of_another_program_is_kept(self) -> None:
        text = RECORD + b"2026-11-28 14:00:00,000 - root - INFO - hello"
        self.assertEqual(self.mended(text), text + b"\n")

    def test_a_log_without_a_torn_record_is_not_touched(self) -> None:
        for text in (b"", RECORD, b"2026-\n"):
            with self.subTest(text=text):
                self.assertEqual(self.mended(text), text)

    def test_what_was_mended_is_on_disk(self) -> None:
        seen: list[bytes] = []
        log = self.folder / "log"

        def flush(number: int) -> None:
            self.assertTrue(os.path.samestat(os.fstat(number), os.stat(log)))
            seen.append(log.read_bytes())

        with mock.patch("os.fsync", flush):
            self.assertEqual([self.mended(RECORD + RECORD[:-1])], seen)

    def test_of_a_long_log_so_much_of_the_end_is_searched(self) -> None:
        torn, far = RECORD[:40] + RECORD * 4, RECORD[:40] + RECORD * 5
        with mock.patch.object(server2, "MEND_BYTES", len(torn)):
            self.assertEqual(self.mended(torn)[:40], b" " * 39 + b"\n")
            self.assertEqual(self.mended(far), far)

    def test_a_message_that_quotes_a_record_is_kept(self) -> None:
        head = b"2026-11-23 14:50:15,613 - 9991 - 127.0.0.1:56457 - "
        said = b"received: %b\n" % RECORD[:-1]
        whole = head + said + head + b"replied: Server 9991 " + said
        for text in (whole, whole * 2, RECORD + whole + RECORD):
            with self.subTest(text=text):
                self.assertEqual(self.mended(text), text)
        self.assertEqual(
            self.mended(RECORD[:30] + whole), b" " * 29 + b"\n" + whole + b"\n"
        )

class ProxyLines(unittest.TestCase):
    """What is no PROXY line is a ValueError; half of one leaves a record."""

    def test_every_invalid_line_raises_value_error(self) -> None:
        for line in test_server2.ProxyHeaders.INVALID:
            if len(line) <= server2.PROXY_LINE_BYTES:  # longer ones never get here
                with self.subTest(line=line), self.assertRaises(ValueError):
                    server2.parse_proxy_line(line)

    def test_what_came_of_a_line_is_counted(self) -> None:
        for sent in (b"", b"PROXY "):
            ours, theirs = socket.socketpair()
            with ours, theirs, mock.patch.object(server2, "PROXY_TIMEOUT_S", 0.05):
                theirs.sendall(sent)
                connection = server2.Connection(some_server(), ours, ("127.0.0.1", 1))
                with self.assertRaisesRegex(server2.ConnectionOver, "in time"):
                    in_parallel(partial(server2.read_proxy_line, connection), timeout=5)
                self.assertEqual(connection.bytes_in, len(sent))


    def test_a_line_that_a_stop_cuts_off_is_not_the_clients_fault(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(b"PROXY TCP4 ")
            theirs.shutdown(socket.SHUT_WR)
            connection = server2.Connection(some_server(), ours, ("127.0.0.1", 1))
            connection.server.stopping.set()
            with self.assertRaisesRegex(server2.ConnectionOver, "^shutdown$"):
                server2.read_proxy_line(connection)
            said: Any = connection.server.terminal.warn
            said.assert_not_called()


class Records(unittest.TestCase):
    """What a record says besides the message."""

    def test_each_has_the_time_of_its_event(self) -> None:
        server = some_server("--delay", "0.01")
        server.work = server2.PretendedWork(server.args.delay, 0)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(b"hi\n")
            theirs.shutdown(socket.SHUT_WR)
            began, before = time.monotonic(), server2.timestamp()
            connection = server2.Connection(server, ours, ("127.0.0.1", 56457))
            accepted = server2.timestamp()
            threading.Event().wait(0.05)
            connection.serve()
            took_ms = (time.monotonic() - began) * 1e3
        entries = [x for call in server.log.append.call_args_list for x in call.args[0]]
        lines = b"".join(entries).decode().splitlines()
        connected, received, replied, closed = (line.split(" - ")[0] for line in lines)
        self.assertLessEqual(before, connected)
        self.assertLessEqual(connected, accepted)
        self.assertLess(accepted, received)
        self.assertLess(received, replied)
        self.assertLessEqual(replied, closed)
        duration_ms = float(lines[-1].split()[-2])
        self.assertTrue(50 <= duration_ms <= took_ms + 0.1, (duration_ms, took_ms))

    def test_a_time_has_three_digits_of_milliseconds(self) -> None:
        with mock.patch("time.time_ns", return_value=1_764_000_000_007_900_000):
            self.assertRegex(server2.timestamp(), r"\A2025-11-2\d \d\d:\d\d:\d\d,007\Z")


class Ends(ScriptTestCase):
    """A connection ends, and the log says how."""

    def test_a_client_that_reset_does_not_hold_up_a_stop(self) -> None:
        server = some_server()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = self.dial(listener.getsockname())
            connection = server2.Connection(server, *listener.accept())
        self.addCleanup(connection.sock.close)
        much = mock.patch.object(
            connection, "_record_messages", lambda messages: bytes(300_000_000)
        )
        with much, mock.patch.object(server2, "DELIVERY_S", 10 * DEADLINE_S):
            serving = threading.Thread(target=connection.serve, daemon=True)
            serving.start()
            client.sendall(b"\n")
            read_exactly(client, 1)
            server.stopping.set()
            send_reset(client)
            serving.join(DEADLINE_S)
            self.assertFalse(serving.is_alive())

    def test_a_stop_awaits_that_a_client_has_every_confirmation(self) -> None:
        listener, client = socket.create_server(("127.0.0.1", 0)), socket.socket()
        with listener, client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.settimeout(DEADLINE_S)
            client.connect(listener.getsockname())
            connection = server2.Connection(some_server(), *listener.accept())
            connection.server.stopping.set()

            def serve() -> None:
                connection.serve()
                connection.sock.close()

            with mock.patch.object(server2, "DELIVERY_S", DEADLINE_S):
                serving = threading.Thread(target=serve, daemon=True)
                serving.start()
                message = b"x" * 60_000 + b"\n"
                client.sendall(message)
                read_exactly(client, 1)
                serving.join(0.3)  # not before this client has the rest
                client.sendall(b"more")  # to a closed socket: the rest would be lost
                rest = read_to_end(client)
                serving.join(DEADLINE_S)
        self.assertEqual(rest, b"erver 9991 received: " + message)

    def test_a_client_that_reads_nothing_is_given_up(self) -> None:
        server = some_server()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.dial(listener.getsockname()).sendall(b"\n")
            connection = server2.Connection(server, *listener.accept())
        much = mock.patch.object(
            connection, "_record_messages", lambda messages: bytes(300_000_000)
        )
        with connection.sock, much, mock.patch.object(server2, "SEND_TIMEOUT_S", 0.1):
            in_parallel(connection.serve, timeout=10)
        record = server.log.append.call_args.args[0][-1]
        self.assertIn(b" - closed: by server (client does not read), 1 mess", record)

    def test_a_pause_is_no_limit_for_sending_where_one_limit_is_for_both(self) -> None:
        much, got = bytes(20_000_000), list[int]()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = self.dial(listener.getsockname())
            connection = server2.Connection(some_server(), *listener.accept())

        def read_late() -> None:
            threading.Event().wait(0.3)
            got.append(len(read_exactly(client, len(much))))

        def send() -> None:
            with contextlib.suppress(BlockingIOError, TimeoutError):
                connection._receive(0.05)
            connection._send(much)

        plain = mock.patch.object(server2, "TIMES_OUT_IN_KERNEL", False)
        with connection.sock, plain:
            in_parallel(send, read_late, timeout=DEADLINE_S)
        self.assertEqual(got, [len(much)])

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
                server, sock = some_server(), mock.Mock()
                sock.recv.side_effect = received
                sock.sendall.side_effect = sent
                with mock.patch.object(server2, "send_quickly", lambda *_: 0):
                    server2.Connection(server, sock, ("127.0.0.1", 56457)).serve()
                *_, record = server.log.append.call_args.args[0]
                self.assertIn(b" - closed: %b, " % reason.encode(), record)


class Threads(ScriptTestCase):
    """How the server's threads take, serve and close connections."""

    pause = threading.Event()  # never set

    def setUp(self) -> None:
        super().setUp()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.terminal, bell = mock.Mock(), mock.patch.object(server2, "Bell")
        self.terminal.shows.return_value = False
        args, log = server2.parse_args(["0"]), mock.Mock()
        log.append.side_effect = lambda entries: (len(entries), "")
        with bell:
            self.server = server2.Server(self.listener, log, self.terminal, args)

    def serve(self, connection: mock.Mock) -> None:
        """Serve a connection on a thread of its own, which ends with it."""
        self.server.live.add(connection)
        self.server._clients.put(connection)
        with mock.patch.object(server2, "RESTING_THREADS", 0):
            in_parallel(self.server._serve)

    def test_a_defect_is_told_with_its_traceback_and_ends_one_connection(self) -> None:
        connection = mock.Mock(client="127.0.0.1:56457")
        connection.serve.side_effect = ZeroDivisionError("a defect")
        self.serve(connection)
        kind, text = self.terminal.warn.call_args.args
        self.assertEqual(kind, "defect")
        self.assertTrue(text.startswith("Traceback "), text)
        self.assertTrue(text.endswith("\nZeroDivisionError: a defect"), text)
        connection.sock.close.assert_called_once_with()

    def test_no_connection_is_closed_while_a_stop_can_reach_it(self) -> None:
        live: list[bool] = []
        connection = mock.Mock(client="127.0.0.1:56457")
        connection.serve.side_effect = lambda: live.append(is_live())
        connection.sock.close.side_effect = lambda: live.append(is_live())

        def is_live() -> bool:
            return connection in self.server.live

        self.serve(connection)
        self.assertEqual(live, [True, False])

    def test_a_thread_serves_the_next_client_too(self) -> None:
        port = self.listener.getsockname()[1]
        before = threading.active_count()
        for _ in range(5):
            with self.dial(self.listener.getsockname()) as client:
                name = test_server2.name_of(client)
                self.assertTrue(self.server.accept())
                client.sendall(b"hi\n")
                self.assertEqual(read_line(client), b"Server %d received: hi\n" % port)
            wait_until(lambda: not self.server.live, 5, "the connection's end")
        self.assertEqual(threading.active_count(), before + 1)
        names = [thread.name for thread in threading.enumerate()]
        self.assertIn(f"connection-{name}", names)

    def test_want_of_descriptors_is_told_and_waited_out_but_not_who_has_left(
        self,
    ) -> None:
        full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        told = mock.call("accept", "Too many open files: new clients wait")
        for error, calls, pauses in (
            (ConnectionAbortedError(), [], []),
            (full, [told], [mock.call(server2.BACKOFF_S)]),
        ):
            self.terminal.warn.reset_mock()
            accept = mock.Mock(side_effect=error)
            with (
                self.subTest(repr(error)),
                mock.patch.object(self.server, "listener", mock.Mock(accept=accept)),
                mock.patch.object(self.server, "stopping") as stopping,
            ):
                self.assertFalse(self.server.accept())
                self.assertEqual(self.terminal.warn.call_args_list, calls)
                self.assertEqual(stopping.wait.call_args_list, pauses)

    def test_a_stop_serves_who_waits_for_a_thread_also_at_max_connections(self) -> None:
        self.server.args.max_connections = 1
        bell: Any = self.server.bell
        bell.wait.side_effect = lambda *_, **__: self.pause.wait(0.01)
        self.listener.setblocking(False)
        with self.dial(self.listener.getsockname()) as client:
            client.sendall(b"hi\n")
            no_thread = RuntimeError("can't start new thread")
            with mock.patch.object(threading.Thread, "start", side_effect=no_thread):
                self.assertFalse(self.server.accept())
            with mock.patch.object(signal, "signal"):
                server2.stop(self.server)
            port = self.server.port
            self.assertEqual(read_line(client), b"Server %d received: hi\n" % port)

    def test_clients_are_served_where_sockets_inherit_o_nonblock(self) -> None:
        plain = socket.socket.accept

        def accept_like_bsd(listener: socket.socket) -> tuple[socket.socket, Any]:
            sock, address = plain(listener)
            os.set_blocking(sock.fileno(), listener.getblocking())
            return sock, address

        self.listener.setblocking(False)
        with self.dial(self.listener.getsockname()) as client:
            with mock.patch.object(socket.socket, "accept", accept_like_bsd):
                self.assertTrue(self.server.accept())
            self.assertTrue(test_server2.nothing_comes(client))
            client.sendall(b"hi\n")
            port = self.listener.getsockname()[1]
            self.assertEqual(read_line(client), b"Server %d received: hi\n" % port)
        wait_until(lambda: not self.server.live, 5, "the connection's end")


class MayAccept(unittest.TestCase):
    """Whether there may be one more connection."""

    def server(self, *options: str) -> server2.Server:
        """Return a server that listens to nobody."""
        with mock.patch.object(server2, "Bell"), socket.socket() as listener:
            args = server2.parse_args(["0", *options])
            return server2.Server(listener, mock.Mock(), mock.Mock(), args)

    def test_a_bell_that_rings_late_lets_nobody_in_beyond_the_limit(self) -> None:
        server = self.server("--max-connections=1")
        server.live = {mock.Mock()}
        bell: Any = server.bell
        bell.wait.return_value = 0
        bell.means_stop.side_effect = [False, True]
        server.listener = listener = mock.Mock()
        with mock.patch.object(server2, "stop"):
            server.run()
        listener.accept.assert_not_called()

    def test_who_refuses_accepts_nobody_whatever_the_limit(self) -> None:
        for limit in ([], ["--max-connections=5"]):
            self.assertFalse(self.server("--fault=refuse", *limit).may_accept)


class Listening(unittest.TestCase):
    """The options that are not given, and what an accepted socket has."""

    def test_the_defaults_are_those_of_the_contract(self) -> None:
        self.assertEqual(
            vars(server2.parse_args(["9991"])),
            {
                "port": 9991, "host": "127.0.0.1", "log": "server_log.txt",
                "fsync": False, "max_message": 65_536, "message_pause": 0.2,
                "idle_timeout": 3_600, "max_connections": 0, "accept_proxy": [],
                "delay": None, "parallel": 0, "fault": ("", 0.0), "quiet": False,
            },
        )  # fmt: skip

    def test_what_is_no_number_in_range_is_refused(self) -> None:
        self.assertEqual(server2.parse_args(["65535"]).port, 65_535)
        for args in (
            ["65536"], ["\u0663\u0664"], ["1.5"], ["0", "--max-message", "0"],
            ["0", "--idle-timeout", "nan"], ["0", "--delay", "inf"],
        ):  # fmt: skip
            unseen = contextlib.redirect_stderr(io.StringIO())
            with self.subTest(args), unseen, self.assertRaises(SystemExit) as end:
                server2.parse_args(args)
            self.assertEqual(end.exception.code, 2)

    def test_a_confirmation_waits_for_no_acknowledgement_of_the_last(self) -> None:
        listener = server2.open_listener(server2.parse_args(["0"]))
        with listener, dial(listener.getsockname()), listener.accept()[0] as sock:
            no_delay = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            asks = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        self.assertTrue(no_delay)
        self.assertTrue(asks, "a client that vanished is never found")


class Screen(unittest.TestCase):
    """A terminal that stalls."""

    def test_with_more_lines_than_may_wait_it_keeps_nobody_waiting(self) -> None:
        stalls, goes_on = threading.Event(), threading.Event()

        def stall(*_: object) -> None:
            stalls.set()
            goes_on.wait(DEADLINE_S)
            raise SystemExit  # the thread's end

        def use() -> None:
            terminal = server2.Terminal(quiet=False)
            for number in range(server2.LINES_WAITING + 10):
                terminal.say(f"line {number}")
                stalls.wait(5)
            terminal.close()

        stalled = mock.patch.object(server2, "write_whole", stall)
        with stalled, mock.patch.object(server2, "CUT_S", 0.05):
            self.addCleanup(goes_on.set)
            in_parallel(use, timeout=5)


class Work(unittest.TestCase):
    """`--parallel N`: N places, and a queue in the order of arrival."""

    def test_no_more_work_than_places_and_the_first_to_come_is_the_first(self) -> None:
        lock, go = threading.Lock(), threading.Semaphore(0)
        began: list[str] = []
        working = most = 0

        def draw() -> float:
            nonlocal working, most
            with lock:
                working += 1
                most = max(most, working)
                began.append(threading.current_thread().name)
            go.acquire(timeout=DEADLINE_S)
            with lock:
                working -= 1
            return 0

        work = server2.PretendedWork(draw, 2)
        threads = []
        for number in range(8):
            thread = threading.Thread(
                target=work.do, args=(threading.Event(),), name=f"{number}", daemon=True
            )
            thread.start()
            threads.append(thread)
            wait_until(
                lambda n=number: work._came == n + 1,  # type: ignore[misc]
                DEADLINE_S,
                "the arrival",
            )
        for number in range(8):
            go.release()
            wait_until(
                lambda n=number: len(began) == min(8, n + 3),  # type: ignore[misc]
                DEADLINE_S,
                "the next one",
            )
        for thread in threads:
            thread.join(DEADLINE_S)
        self.assertEqual((began, most), (list("01234567"), 2))

    def test_drawn_times_have_the_mean_and_the_bounds_that_are_asked_for(self) -> None:
        for text, low, high in (("exp:0.02", 0, 1), ("uniform:0.01:0.03", 0.01, 0.03)):
            with self.subTest(text):
                draw = server2.delay(text)
                assert draw
                times = [draw() for _ in range(10_000)]
                self.assertTrue(low <= min(times) <= max(times) <= high)
                # Six times as far off as the mean of so many usually is.
                self.assertAlmostEqual(statistics.fmean(times), 0.02, delta=0.0012)
                self.assertGreater(statistics.stdev(times), 0.005)


if __name__ == "__main__":
    unittest.main()
