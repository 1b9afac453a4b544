"""What server2.py promises: the wire, the log, the options, and how it fails."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import random
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

import server2
from tests.support import (
    DEADLINE_S,
    LISTENING,
    LONG,
    ROOT,
    Running,
    ScriptTestCase,
    address_of,
    cpu_s,
    descriptors,
    dial,
    in_parallel,
    is_reset,
    memory_kib,
    needs_permission,
    read_exactly,
    read_line,
    read_to_end,
    run_main,
    script_command,
    script_environment,
    send_reset,
    threads,
    wait_until,
)

SILENCE_S = 0.35  # how long "nothing comes" is watched
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\Z")


def nothing_comes(connection: socket.socket, seconds: float = SILENCE_S) -> bool:
    """Return True when neither data nor an end arrives for a while."""
    return not select.select([connection], [], [], seconds)[0]


def fill(pipe: int) -> None:
    """Write "#" to a pipe until it is full; it does not block afterwards."""
    os.set_blocking(pipe, False)
    for size in (4_096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe, b"#" * size)


def name_of(connection: socket.socket) -> str:
    """Return the client's end as the log writes it."""
    return address_of(connection.getsockname()[:2])


def exchange(server: Running, data: bytes, half_close: bool = True) -> bytes:
    """Send `data`, end the sending direction, and return everything that comes."""
    with dial(server) as client:
        client.sendall(data)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        return read_to_end(client)


def events(log: Path, client: str) -> list[str]:
    """Return what a log says about one client, without time, port and address."""
    found = []
    for line in log.read_bytes().decode("utf-8").split("\n"):
        parts = line.split(" - ", 3)
        if len(parts) == 4 and parts[2] == client:
            found.append(parts[3])
    return found


def whole_story(log: Path, client: str) -> list[str]:
    """Return `events` once the connection's last line is there."""

    def told() -> list[str]:
        story = events(log, client)
        return story if story and story[-1].startswith("closed:") else []

    return list(wait_until(told, what=f"the closing line of {client}"))


def limit_to(kind: str, soft: int, hard: int | None = None) -> Callable[[], None]:
    """Return a `preexec_fn` that sets a resource limit, RLIMIT_NOFILE and such.

    The process may raise it from `soft` to `hard` (as `soft` when not given).
    """
    try:
        import resource
    except ImportError:
        raise unittest.SkipTest("needs the resource module") from None
    number = getattr(resource, kind)
    return lambda: resource.setrlimit(number, (soft, hard or soft))


class Framing(ScriptTestCase):
    """Messages are lines, in whatever pieces they come."""

    server: Running
    prefix: bytes

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = cls.start_shared("server2.py", "0", "--message-pause", "0")
        cls.prefix = f"Server {cls.server.port} received: ".encode()

    def test_a_message_is_confirmed_with_the_same_bytes(self) -> None:
        self.assertEqual(
            exchange(self.server, b"Hello from client 2!\n"),
            b"Server %d received: Hello from client 2!\n" % self.server.port,
        )

    def test_a_confirmation_comes_without_waiting_for_the_end_of_file(self) -> None:
        client = self.dial(self.server)
        for text in (b"one\n", b"two\n"):
            client.sendall(text)
            self.assertEqual(read_line(client), self.prefix + text)

    def test_cr_lf_stays_cr_lf(self) -> None:
        self.assertEqual(
            exchange(self.server, b"a\r\nb\n\r\n"),
            self.prefix + b"a\r\n" + self.prefix + b"b\n" + self.prefix + b"\r\n",
        )

    def test_an_empty_line_is_a_message(self) -> None:
        self.assertEqual(exchange(self.server, b"\n"), self.prefix + b"\n")

    def test_what_is_left_at_end_of_file_is_the_last_message(self) -> None:
        self.assertEqual(
            exchange(self.server, b"one\ntwo"),
            self.prefix + b"one\n" + self.prefix + b"two",
        )

    def test_end_of_file_alone_is_no_message(self) -> None:
        self.assertEqual(exchange(self.server, b""), b"")

    def test_every_split_of_two_messages_gives_the_same_two_confirmations(self) -> None:
        data = b"ab\r\n\xff\x00c\nrest"
        cuts = range(1, len(data))
        clients = [self.dial(self.server) for _ in cuts]
        for client, cut in zip(clients, cuts, strict=True):
            client.sendall(data[:cut])
        for client, cut in zip(clients, cuts, strict=True):
            client.sendall(data[cut:])
            client.shutdown(socket.SHUT_WR)
        expected = b"%bab\r\n%b\xff\x00c\n%brest" % ((self.prefix,) * 3)
        self.assertEqual(
            [read_to_end(client) for client in clients], [expected] * len(cuts)
        )

    def test_a_message_may_come_byte_by_byte(self) -> None:
        client = self.dial(self.server)
        for byte in b"Hello\n":
            client.sendall(bytes([byte]))
        self.assertEqual(read_line(client), self.prefix + b"Hello\n")

    def test_pipelined_messages_are_confirmed_in_order(self) -> None:
        lines = [b"message %d\n" % number for number in range(5000)]
        client = self.dial(self.server)
        sender = threading.Thread(target=client.sendall, args=(b"".join(lines),))
        sender.start()
        expected = b"".join(self.prefix + line for line in lines)
        reply = read_exactly(client, len(expected))
        sender.join()
        self.assertTrue(reply == expected, "confirmations differ")

    def test_a_client_that_reads_late_gets_every_confirmation(self) -> None:
        line = b"x" * 20_000 + b"\n"
        client = self.dial(self.server)
        sender = threading.Thread(target=client.sendall, args=(line * 200,))
        sender.start()
        wait_until(lambda: not nothing_comes(client, 0), what="the first reply")
        self.assertTrue(
            read_exactly(client, 200 * (len(self.prefix) + len(line)))
            == 200 * (self.prefix + line)
        )
        sender.join()

    def test_all_byte_values_are_confirmed_unchanged(self) -> None:
        message = bytes(value for value in range(256) if value != 10) + b"\n"
        self.assertEqual(exchange(self.server, message), self.prefix + message)

    def test_silence_ends_no_message_when_the_pause_is_off(self) -> None:
        client = self.dial(self.server)
        client.sendall(b"Hel")
        self.assertTrue(nothing_comes(client))
        client.sendall(b"lo\n")
        self.assertEqual(read_line(client), self.prefix + b"Hello\n")

    def test_a_message_may_have_65536_bytes_with_its_line_end(self) -> None:
        message = b"x" * 65_535 + b"\n"
        reply = exchange(self.server, message)
        self.assertTrue(reply == self.prefix + message, reply[:80])

    def test_the_last_message_may_have_65536_bytes(self) -> None:
        message = b"x" * 65_536
        reply = exchange(self.server, message)
        self.assertTrue(reply == self.prefix + message, reply[:80])

    def test_a_longer_message_is_answered_by_an_error_and_the_end(self) -> None:
        error = b"Server %d error: message longer than 65536 bytes\n"
        for message in (b"x" * 65_536 + b"\n", b"x" * 65_537):
            with self.subTest(size=len(message)), dial(self.server) as client:
                client.sendall(message)
                self.assertEqual(read_to_end(client), error % self.server.port)

    def test_a_client_may_send_another_mib_and_then_read_the_error(self) -> None:
        error = b"Server %d error: message longer than 65536 bytes\n"
        client = self.dial(self.server)
        client.sendall(b"x" * 70_000)
        wait_until(lambda: not nothing_comes(client, 0), what="the error line")
        for _ in range(16):  # a server that had closed would answer with a reset
            client.sendall(b"x" * 65_536)
        self.assertEqual(read_to_end(client), error % self.server.port)

    def test_messages_before_one_that_is_too_long_are_confirmed(self) -> None:
        client = self.dial(self.server)
        client.sendall(b"fine\n" + b"x" * 70_000 + b"\nnot a message\n")
        self.assertEqual(
            read_to_end(client),
            self.prefix
            + b"fine\n"
            + b"Server %d error: message longer than 65536 bytes\n" % self.server.port,
        )

    def test_a_client_that_sends_without_end_costs_no_memory(self) -> None:
        before = memory_kib(self.server.pid)
        with contextlib.suppress(OSError), dial(self.server, timeout=3) as client:
            for _ in range(512):  # 32 MiB; the server may hang up at any time
                client.sendall(b"x" * 65_536)
        self.assertLess(memory_kib(self.server.pid) - before, 8 * 1024)

    def test_one_silent_client_does_not_keep_others_waiting(self) -> None:
        self.dial(self.server).sendall(b"no line end")
        self.assertEqual(exchange(self.server, b"hi\n"), self.prefix + b"hi\n")

    def test_a_client_that_resets_takes_nobody_with_it(self) -> None:
        other = self.dial(self.server)
        for message in (b"", b"half", b"whole\n"):
            client = self.dial(self.server)
            client.sendall(message)
            send_reset(client)
        other.sendall(b"still here\n")
        self.assertEqual(read_line(other), self.prefix + b"still here\n")


class ClientsThatSendNoNewline(ScriptTestCase):
    """One send, one recv: a pause ends the message of a client without lines."""

    server: Running
    patient: Running

    PAUSE_S = 0.2

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = cls.start_shared("server2.py", "0")
        cls.patient = cls.start_shared("server2.py", "0", "--message-pause", "1")

    def test_a_pause_makes_a_message_that_is_confirmed_without_newline(self) -> None:
        client = self.dial(self.server)
        started = time.monotonic()
        client.sendall(b"Hello")
        expected = b"Server %d received: Hello" % self.server.port
        self.assertEqual(read_exactly(client, len(expected)), expected)
        self.assertGreaterEqual(time.monotonic() - started, self.PAUSE_S * 0.95)
        self.assertTrue(nothing_comes(client, 0.3), "something after the confirmation")
        client.sendall(b"again")
        expected = b"Server %d received: again" % self.server.port
        self.assertEqual(read_exactly(client, len(expected)), expected)

    def test_a_stop_is_the_end_of_a_message_that_a_pause_would_have_ended(self) -> None:
        server = self.start("server2.py", "0", "--message-pause", "1")
        client = self.dial(server)
        for message in (b"one", b"two"):
            client.sendall(message)
            if message == b"two":
                server.signal(signal.SIGTERM)
            expected = b"Server %d received: %b" % (server.port, message)
            self.assertEqual(read_exactly(client, len(expected)), expected)
        self.assertEqual(server.wait(), 0)

    def test_pieces_with_shorter_gaps_are_one_message(self) -> None:
        client = self.dial(self.patient)
        client.sendall(b"Hel")
        self.assertTrue(nothing_comes(client, 0.2))
        client.sendall(b"lo")
        expected = b"Server %d received: Hello" % self.patient.port
        self.assertEqual(read_exactly(client, len(expected)), expected)

    def test_after_a_newline_a_pause_ends_no_message(self) -> None:
        client = self.dial(self.server)
        client.sendall(b"line\nrest")
        self.assertEqual(
            read_line(client), b"Server %d received: line\n" % self.server.port
        )
        self.assertTrue(nothing_comes(client))
        client.sendall(b" of it\n")
        self.assertEqual(
            read_line(client), b"Server %d received: rest of it\n" % self.server.port
        )

    def test_a_client_may_begin_to_send_newlines(self) -> None:
        client = self.dial(self.server)
        expected = b"Server %d received: Hello" % self.server.port
        client.sendall(b"Hello")
        self.assertEqual(read_exactly(client, len(expected)), expected)
        client.sendall(b"line\n")
        self.assertEqual(
            read_line(client), b"Server %d received: line\n" % self.server.port
        )

    def test_1024_bytes_and_a_pause_are_a_message(self) -> None:
        client = self.dial(self.server)
        client.sendall(b"x" * 1024)
        expected = b"Server %d received: " % self.server.port + b"x" * 1024
        self.assertEqual(read_exactly(client, len(expected)), expected)

    def test_1025_bytes_wait_for_their_newline(self) -> None:
        client = self.dial(self.server)
        client.sendall(b"x" * 1025)
        self.assertTrue(nothing_comes(client))
        client.sendall(b"\n")
        expected = b"Server %d received: " % self.server.port + b"x" * 1025 + b"\n"
        self.assertEqual(read_line(client), expected)

    def test_a_message_by_pause_is_logged_like_any_other(self) -> None:
        log = self.folder / "log"
        server = self.start("server2.py", "0", "--log", log, "--message-pause", "0.05")
        with dial(server) as client:
            client.sendall(b"Hello")
            size = len(b"Server %d received: Hello" % server.port)
            read_exactly(client, size)
            name = name_of(client)
        story = whole_story(log, name)
        self.assertEqual(
            story[:3],
            [
                "connected",
                "received: Hello",
                f"replied: Server {server.port} received: Hello",
            ],
        )
        self.assertTrue(
            story[3].startswith(
                f"closed: by client, 1 message, 5 bytes in, {size} bytes out, "
            ),
            story[3],
        )


class TheLog(ScriptTestCase):
    """server_log.txt: one line per event, nothing forged, nothing torn."""

    server: Running
    log_folder: Path
    log: Path

    @classmethod
    def setUpClass(cls) -> None:
        cls.log_folder = cls.shared_folder()
        cls.server = cls.start_shared("server2.py", "0", "--quiet", cwd=cls.log_folder)
        cls.log = cls.log_folder / "server_log.txt"

    def story_of(self, data: bytes) -> list[str]:
        with dial(self.server) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            read_to_end(client)
            name = name_of(client)
        return whole_story(self.log, name)

    def test_four_lines_tell_the_story_of_one_message(self) -> None:
        port = self.server.port
        client = self.dial(self.server)
        client.sendall(b"Hello from client 2!\n")
        reply = read_line(client)
        client.close()
        wait_until(
            lambda: f"{len(reply)} bytes out" in self.log.read_text(), what="the end"
        )
        lines = [
            line
            for line in self.log.read_text("utf-8").split("\n")
            if "from client 2!" in line
        ]
        self.assertEqual(len(lines), 2, lines)
        stamp, port_text, client_text = lines[0].split(" - ", 3)[:3]
        self.assertRegex(stamp, STAMP)
        self.assertEqual(port_text, str(port))
        self.assertRegex(client_text, r"\A127\.0\.0\.1:\d+\Z")
        story = whole_story(self.log, client_text)
        self.assertEqual(
            story[:3],
            [
                "connected",
                "received: Hello from client 2!",
                f"replied: Server {port} received: Hello from client 2!",
            ],
        )
        self.assertRegex(
            story[3],
            rf"\Aclosed: by client, 1 message, 21 bytes in, {len(reply)} bytes out, "
            r"\d+(\.\d+)? ms\Z",
        )
        self.assertEqual(len(story), 4)

    def test_the_closing_line_counts_messages_and_bytes(self) -> None:
        size = len(f"Server {self.server.port} received: ")
        story = self.story_of(b"one\ntwo\nthree")
        self.assertTrue(
            story[-1].startswith(
                "closed: by client, 3 messages, 13 bytes in, "
                f"{3 * size + 13} bytes out, "
            ),
            story[-1],
        )

    def test_no_message_can_forge_a_line_or_command_a_terminal(self) -> None:
        cases = {
            b"\x1b[2J red": r"\x1b[2J red",
            b"bell\x07": r"bell\x07",
            b"nul\x00": r"nul\x00",
            b"del\x7f": r"del\x7f",
            b"\xff\xfe": r"\xff\xfe",
            b"cut \xc3": r"cut \xc3",
            b"surrogate \xed\xa0\x80": r"surrogate \xed\xa0\x80",
            b"eight bit \xc2\x9b2J": r"eight bit \u009b2J",
            b"next line \xc2\x85": r"next line \u0085",
            b"a\rb": r"a\rb",
            "Grüße ✓ selamat".encode(): "Grüße ✓ selamat",
            rb"\x1b[2J as text": r"\\x1b[2J as text",
            b"a space \xc2\xa0": r"a space \u00a0",
            b"a byte \xa0": r"a byte \xa0",
            "a tag \U000e0001".encode(): r"a tag \U000e0001",
            b"ended by cr lf\r": "ended by cr lf",
        }
        for message, expected in cases.items():
            with self.subTest(message=message):
                story = self.story_of(message + b"\n")
                self.assertEqual(
                    story[1:3],
                    [
                        f"received: {expected}",
                        f"replied: Server {self.server.port} received: {expected}",
                    ],
                )

    def test_no_control_character_is_in_the_log(self) -> None:
        name = f"controls {os.getpid()}"
        story = self.story_of(
            name.encode()
            + bytes(value for value in range(256) if value != 10)
            + b"\r\n\xe2\x80\xa8\xe2\x80\xaelast"
        )
        self.assertEqual(sum("received:" in line for line in story), 4, story)
        text = self.log.read_bytes().decode("utf-8")
        controls = [char for char in text if (char < " " or "\x7f" <= char < "\xa0")]
        self.assertEqual(set(controls), {"\n"})

    def test_a_connection_without_a_byte_is_not_logged(self) -> None:
        names = []
        ends: tuple[Callable[[socket.socket], None], ...]
        ends = (socket.socket.close, send_reset)
        for end in ends:
            client = self.dial(self.server)
            names.append(name_of(client))
            end(client)
        self.story_of(b"a message after them\n")
        text = self.log.read_text("utf-8")
        for name in names:
            self.assertNotIn(name, text)

    def test_a_message_is_in_the_log_before_its_confirmation(self) -> None:
        client = self.dial(self.server)
        with self.log.open("rb") as log:
            for number in range(100):
                log.seek(0, os.SEEK_END)
                client.sendall(b"before-%d\n" % number)
                read_line(client)
                self.assertIn(b" - received: before-%d\n" % number, log.read())

    def test_a_long_message_is_logged_whole_on_one_line(self) -> None:
        message = "é" * 32_000
        self.assertEqual(
            self.story_of(message.encode() + b"\n")[1], f"received: {message}"
        )

    def test_a_reset_connection_has_a_closing_line_too(self) -> None:
        client = self.dial(self.server)
        client.sendall(b"whole\nhalf")
        read_line(client)
        name = name_of(client)
        send_reset(client)
        self.assertTrue(
            whole_story(self.log, name)[-1].startswith(
                "closed: reset by client, 1 message, 10 bytes in, "
            )
        )


class WhereTheLogGoes(ScriptTestCase):
    """Appending, sharing, rotating, and a log that cannot be written."""

    def test_the_log_is_appended_to_whatever_it_holds(self) -> None:
        before = (
            b"what was there before\n"
            b"2026-11-23 14:50:15,613 - 9 - 127.0.0.1:56457 - connected\n"
            b"2026-11-23 14:50:15,614 - 9 - 127.0.0.1:56457 - received: cut off\n"
            b"\n2026-11-23: a heading\n  indented - 9991 - by hand\n\xff\xfe\x00\n"
            b"a last line without an end"
        )
        log = self.folder / "server_log.txt"
        log.write_bytes(before)
        server = self.start("server2.py", "0")
        exchange(server, b"new\n")
        after = log.read_bytes()
        self.assertTrue(after.startswith(before + b"\n"), after)
        self.assertRegex(after[len(before) + 1 :], rb"\A\d{4}-[^\n]* - connected\n")

    def test_times_are_local(self) -> None:
        server = self.start("server2.py", "0", env={"TZ": "LAB-7"})
        exchange(server, b"what time is it\n")
        zone = datetime.timezone(datetime.timedelta(hours=7))
        now = datetime.datetime.now(zone).replace(tzinfo=None)
        stamp = self.log_lines()[0].split(" - ")[0]
        logged = datetime.datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f")
        self.assertLess(abs((now - logged).total_seconds()), 60)

    def test_three_servers_share_one_log_without_mixing_lines(self) -> None:
        servers = self.servers(3, "--quiet")

        def talk(index: int) -> str:
            server = servers[index % 3]
            with dial(server) as client:
                for number in range(60):
                    text = f"{index}/{number} " + "x" * (number * 50)
                    client.sendall(text.encode() + b"\n")
                    read_line(client)
                return name_of(client)

        names = in_parallel(*(partial(talk, index) for index in range(9)))
        for index, name in enumerate(names):
            story = whole_story(self.folder / "server_log.txt", name)
            port = servers[index % 3].port
            expected = ["connected"]
            for number in range(60):
                text = f"{index}/{number} " + "x" * (number * 50)
                expected.append(f"received: {text}")
                expected.append(f"replied: Server {port} received: {text}")
            self.assertEqual(story[:-1], expected)
        self.assertEqual(len(self.log_lines()), 9 * (60 * 2 + 2))

    @unittest.skipUnless(hasattr(signal, "SIGHUP"), "needs SIGHUP")
    def test_sighup_reopens_the_log_for_live_connections_too(self) -> None:
        log = self.folder / "server_log.txt"
        server = self.start("server2.py", "0")
        client = self.dial(server)
        client.sendall(b"first\n")
        read_line(client)
        log.rename(self.folder / "old.txt")
        client.sendall(b"second\n")
        read_line(client)
        server.signal(signal.SIGHUP)
        wait_until(log.exists, what="the new log")
        client.sendall(b"third\n")
        read_line(client)
        old = (self.folder / "old.txt").read_text()
        self.assertIn("received: first", old)
        self.assertIn("received: second", old)
        self.assertNotIn("third", old)
        self.assertIn("received: third", log.read_text())
        self.assertNotIn("second", log.read_text())

    def test_a_log_that_was_deleted_is_begun_anew(self) -> None:
        log = self.folder / "server_log.txt"
        for env in ({}, self.without("ctypes")):
            server = self.start("server2.py", "0", env=env)
            client = self.dial(server)
            for text in ("first", "second"):
                client.sendall(f"{text}\n".encode())
                read_line(client)
                self.assertIn(f"received: {text}\n", log.read_text())
                log.unlink()

    @unittest.skipUnless(Path("/dev/full").exists(), "needs /dev/full")
    def test_a_full_disk_gives_an_error_instead_of_a_confirmation(self) -> None:
        server = self.start("server2.py", "0", "--log", "/dev/full")
        error = (
            f"Server {server.port} error: cannot log: No space left on device\n"
        ).encode()
        client = self.dial(server)
        client.sendall(b"one\n")
        self.assertEqual(read_line(client), error)
        client.sendall(b"two\n")
        self.assertEqual(read_line(client), error)

    def test_service_resumes_when_the_log_can_be_written_again(self) -> None:
        log = self.folder / "log"
        server = self.start(
            "server2.py", "0", "--log", log, preexec_fn=limit_to("RLIMIT_FSIZE", 4096)
        )
        client = self.dial(server)
        confirmed, number = [], 0
        error = f"Server {server.port} error: cannot log: File too large\n".encode()
        while True:
            client.sendall(b"message %d\n" % number)
            reply = read_line(client)
            if reply == error:
                break
            self.assertEqual(
                reply, b"Server %d received: message %d\n" % (server.port, number)
            )
            confirmed.append(number)
            number += 1
            self.assertLess(number, 200, "4 KiB of log were never full")
        log.rename(self.folder / "full")
        server.signal(signal.SIGHUP)
        wait_until(log.exists, what="the new log")
        client.sendall(b"there is space again\n")
        self.assertEqual(
            read_line(client),
            b"Server %d received: there is space again\n" % server.port,
        )
        text = (self.folder / "full").read_text()
        for number in confirmed:
            self.assertEqual(text.count(f"received: message {number}\n"), 2)

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs FIFOs")
    def test_no_confirmation_leaves_before_its_record_was_written(self) -> None:
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        server = self.start("server2.py", "0", "--log", fifo)
        client = self.dial(server)
        message = b"x" * 30_000 + b"\n"  # 64 KiB of pipe hold one and its reply
        client.sendall(message * 6)
        logged = b""
        confirmation = len(b"Server %d received: " % server.port + message)
        for count in range(1, 7):
            # Nobody reads the pipe: what is confirmed must already be in it.
            while nothing_comes(client, 0):
                if reader in select.select([reader, client.fileno()], [], [], 10)[0]:
                    logged += os.read(reader, 4096)
            read_exactly(client, confirmation)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(reader, 65536):
                    logged += data
                    if logged.count(b" - received: xxx") >= count:
                        break
            self.assertGreaterEqual(logged.count(b" - received: " + message), count)

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs FIFOs")
    def test_at_the_start_it_waits_for_a_reader_of_the_log_and_says_so(self) -> None:
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        server = self.spawn("server2.py", "0", "--log", fifo)
        server.wait_for_error("fifo is a pipe that nobody reads: waiting")
        with open(fifo, "rb"):
            server.wait_for_line("listening on")
            self.assertEqual(server.stop(), 0)

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs FIFOs")
    def test_sighup_does_not_wait_for_a_reader_of_the_log(self) -> None:
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        server = self.start("server2.py", "0", "--log", fifo)
        os.close(reader)
        server.signal(signal.SIGHUP)
        server.wait_for_error("cannot reopen")
        self.assertEqual(server.stop(), 0)

    def test_with_fsync_a_failed_flush_is_no_confirmation(self) -> None:
        env = self.without()
        broken = (
            "import errno, os\n"
            "def fail(descriptor):\n"
            "    raise OSError(errno.EIO, os.strerror(errno.EIO))\n"
            "os.fsync = os.fdatasync = fail\n"
        )
        Path(env["PYTHONPATH"], "sitecustomize.py").write_text(broken)
        careless = self.start("server2.py", "0", env=env)
        careful = self.start("server2.py", "0", "--fsync", env=env)
        self.assertEqual(
            exchange(careless, b"hi\n"), b"Server %d received: hi\n" % careless.port
        )
        self.assertEqual(
            exchange(careful, b"hi\n"),
            b"Server %d error: cannot log: Input/output error\n" % careful.port,
        )

    def test_with_fsync_many_clients_are_confirmed_and_logged(self) -> None:
        server = self.start("server2.py", "0", "--fsync", "--quiet")
        replies = in_parallel(
            *(lambda: exchange(server, b"durable\n" * 5) for _ in range(20))
        )
        expected = b"Server %d received: durable\n" % server.port
        self.assertEqual(replies, [expected * 5] * 20)
        text = (self.folder / "server_log.txt").read_text()
        self.assertEqual(text.count(" - received: durable\n"), 100)

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs FIFOs")
    def test_a_fifo_gets_whole_lines_from_threads_and_processes(self) -> None:
        path = self.folder / "fifo"
        os.mkfifo(path)
        fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, fifo)
        servers = [
            self.start("server2.py", "0", "--quiet", "--log", path) for _ in range(3)
        ]
        os.set_blocking(fifo, True)

        with contextlib.suppress(ImportError, AttributeError, OSError):  # Linux
            import fcntl

            fcntl.fcntl(fifo, fcntl.F_SETPIPE_SZ, 4_096)  # so that writers find it full

        def read() -> list[bytes]:
            pieces = iter(partial(os.read, fifo, 512), b"")
            return b"".join(pieces).splitlines(keepends=True)

        def send(server: Running, letter: str) -> None:
            for _ in range(10):
                exchange(server, letter.encode() * 5_000 + b"\n")

        def stop() -> None:
            in_parallel(*(partial(send, one, x) for one in servers for x in "abcd"))
            for server in servers:
                self.assertEqual(server.stop(), 0)

        lines = in_parallel(read, stop)[0]
        whole = re.compile(
            rb"\S+ \S+ - \d+ - \S+ - (connected|closed: [^-]*"
            rb"|(replied: Server \d+ )?received: (a+|b+|c+|d+))\n"
        )
        self.assertEqual([line for line in lines if not whole.fullmatch(line)], [])
        self.assertEqual(len(lines), 3 * 4 * 10 * 4)
        lengths = {len(line.rpartition(b" ")[2]) for line in lines if b"ived" in line}
        self.assertEqual(lengths, {5_001})

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs FIFOs")
    def test_a_fifo_is_written_to_also_where_no_file_can_be_locked(self) -> None:
        path = self.folder / "fifo"
        os.mkfifo(path)
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as fifo:
            env = self.without("fcntl")
            server = self.start("server2.py", "0", "--log", path, env=env)
            confirmation = b"Server %d received: hi\n" % server.port
            self.assertEqual(exchange(server, b"hi\n"), confirmation)
            self.assertIn(b" - received: hi\n", fifo.read())

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs FIFOs")
    def test_a_log_that_nobody_reads_stops_no_client_that_needs_no_record(self) -> None:
        log = self.folder / "server_log.txt"
        server = self.start("server2.py", "0", "--max-message", 64)
        busy, other = self.dial(server), self.dial(server)
        log.rename(self.folder / "old.txt")
        os.mkfifo(log)
        with open(os.open(log, os.O_RDONLY | os.O_NONBLOCK), "rb") as fifo:
            server.signal(signal.SIGHUP)

            def is_reopened() -> bool:
                busy.sendall(b"hi\n")
                read_line(busy)
                return bool(select.select([fifo], [], [], 0)[0])

            wait_until(is_reopened, what="the new log")
            busy.sendall(b"hi\n" * 1_000)  # more than a pipe holds
            while not nothing_comes(busy):
                read_exactly(busy, 1)
            other.sendall(b"x" * 65)
            self.assertEqual(
                read_line(other),
                b"Server %d error: message longer than 64 bytes\n" % server.port,
            )
            server.kill()  # the busy client's thread writes until somebody reads


class Options(ScriptTestCase):
    """Each option does what its name says."""

    def test_the_first_line_names_the_real_address(self) -> None:
        server = self.start("server2.py", "0")
        line = server.wait_for_line("listening")
        self.assertEqual(line, f"listening on 127.0.0.1:{server.port}")
        self.assertGreater(server.port, 0)

    def test_the_second_line_names_the_log(self) -> None:
        server = self.start("server2.py", "0", "--log", "own.txt")
        line = server.wait_for_line("logging")
        path = os.path.realpath(self.folder / "own.txt")
        self.assertEqual(line, f"logging to {path}")

    def test_version_is_printed(self) -> None:
        result = self.run_script("server2.py", "--version")
        self.assertEqual((result.returncode, result.stdout), (0, "server2.py 2.0\n"))

    def test_every_message_is_printed_and_many_are_summed_up(self) -> None:
        server = self.start("server2.py", "0")
        client = self.dial(server)
        for text in ("one", "two"):
            client.sendall(f"{text}\n".encode())
            server.wait_for_line(f"{name_of(client)} received: {text}$")
        exchange(server, b"x\n" * 5_000)
        server.wait_for_line(r"^… \d+ more messages")
        self.assertEqual(server.stop(), 0)
        printed = server.stdout_text()
        more = sum(map(int, re.findall(r"(\d+) more message", printed)))
        self.assertEqual(printed.count(" received: ") + more, 5_002)

    def test_parallel_is_for_all_connections_together(self) -> None:
        server = self.start("server2.py", "0", "--parallel", 1, "--delay", 0.05)
        began = time.monotonic()
        in_parallel(*(partial(exchange, server, b"a\nb\n") for _ in range(4)))
        self.assertGreaterEqual(time.monotonic() - began, 8 * 0.05)

    def test_the_time_of_a_message_may_be_drawn(self) -> None:
        for delay in ("exp:0.001", "uniform:0.001:0.002", "uniform:0:0"):
            with self.subTest(delay=delay):
                server = self.start("server2.py", "0", "--delay", delay)
                prefix = b"Server %d received: " % server.port
                answer = exchange(server, b"a\nb\n")
                self.assertEqual(answer, prefix + b"a\n" + prefix + b"b\n")

    @unittest.skipUnless(LONG, "a minute: set LAB_LONG=1")
    def test_one_place_and_drawn_times_are_the_queue_of_the_textbooks(self) -> None:
        mean_s = 0.02
        loads = (0.3, 0.5, 0.7)
        found = in_parallel(*(partial(self.responses_s, mean_s, x) for x in loads))
        for load, times in zip(loads, found, strict=True):
            size = len(times) // 10  # messages that follow each other are alike, ...
            means = [  # ... ten parts of a run are hardly
                statistics.fmean(times[k : k + size]) for k in range(0, 10 * size, size)
            ]
            wide = 4.78 * statistics.stdev(means) / math.sqrt(10)  # Student, 99.9 %
            expected = mean_s / (1 - load)  # 1 / (mu - lambda)
            with self.subTest(load=load, mean=statistics.fmean(means), wide=wide):
                apart = abs(statistics.fmean(means) - expected)
                self.assertLess(apart, wide + 0.05 * expected)

    def responses_s(self, mean_s: float, load: float) -> list[float]:
        """Return the response times of a minute's messages at random times."""
        server = self.start(
            "server2.py", "0", "--quiet", "--parallel", 1, "--delay", f"exp:{mean_s}"
        )
        clients = [self.dial(server) for _ in range(20)]
        sent: list[list[float]] = [[] for _ in clients]
        number = int(45 * load / mean_s)

        def send() -> None:
            draw, due = random.Random(int(load * 10)), time.monotonic()
            waiting = threading.Event()  # for a moment, not for anybody
            for k in range(number):
                due += draw.expovariate(load / mean_s)
                waiting.wait(max(0, due - time.monotonic()))
                sent[k % len(clients)].append(time.monotonic())
                clients[k % len(clients)].sendall(b"x\n")

        def receive(k: int) -> list[tuple[float, float]]:
            answered = []
            for n in range(len(range(k, number, len(clients)))):
                read_line(clients[k])
                answered.append((sent[k][n], time.monotonic() - sent[k][n]))
            return answered

        for client in clients:
            client.settimeout(60)
        readers = (partial(receive, k) for k in range(len(clients)))
        _, *answered = in_parallel(send, *readers, timeout=120)
        return [took for _, took in sorted(chain(*answered))]

    def test_quiet_prints_nothing_but_the_address(self) -> None:
        server = self.start("server2.py", "0", "--quiet")
        client = self.dial(server)  # live at the stop
        client.sendall(b"hi\n")
        read_line(client)
        self.assertEqual(server.stop(), 0)
        self.assertEqual(
            server.stdout_lines(), [f"listening on 127.0.0.1:{server.port}"]
        )
        self.assertEqual(server.stderr_text(), "")

    def test_an_ipv6_host_is_in_brackets(self) -> None:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            self.skipTest("needs IPv6 on the loopback")
        server = self.start("server2.py", "0", "--host", "::1")
        self.assertEqual(server.host, "[::1]")
        with dial(server) as client:
            client.sendall(b"hi\n")
            self.assertEqual(
                read_line(client), b"Server %d received: hi\n" % server.port
            )
            name = name_of(client)
        self.assertRegex(name, r"\A\[::1\]:\d+\Z")
        whole_story(self.folder / "server_log.txt", name)

    def test_max_message_sets_the_limit_that_the_error_names(self) -> None:
        server = self.start("server2.py", "0", "--max-message", "10")
        self.assertEqual(
            exchange(server, b"123456789\n" + b"1234567890\n", half_close=False),
            b"Server %d received: 123456789\n" % server.port
            + b"Server %d error: message longer than 10 bytes\n" % server.port,
        )

    def test_delay_is_waited_per_message_and_by_each_client_alone(self) -> None:
        server = self.start("server2.py", "0", "--delay", "0.4")

        def timed() -> float:
            with dial(server) as client:
                started = time.monotonic()
                client.sendall(b"work\n")
                read_line(client)
                return time.monotonic() - started

        started = time.monotonic()
        times = in_parallel(*([timed] * 20))
        self.assertGreaterEqual(min(times), 0.39)
        self.assertLess(time.monotonic() - started, 20 * 0.4)

    def test_an_idle_connection_is_closed_after_its_timeout(self) -> None:
        server = self.start("server2.py", "0", "--idle-timeout", "0.6")
        client, silent = self.dial(server), self.dial(server)
        client.sendall(b"hi\n")
        read_line(client)
        started = time.monotonic()
        self.assertEqual(read_to_end(client), b"")
        self.assertGreaterEqual(time.monotonic() - started, 0.5)
        self.assertEqual(read_to_end(silent), b"")
        story = whole_story(self.folder / "server_log.txt", name_of(client))
        self.assertNotIn("by client", story[-1])
        self.assertIn("1 message", story[-1])
        self.assertNotIn(name_of(silent), (self.folder / "server_log.txt").read_text())

    def test_without_an_idle_timeout_silence_ends_no_connection(self) -> None:
        server = self.start("server2.py", "0", "--idle-timeout", "0")
        client = self.dial(server)
        self.assertTrue(nothing_comes(client, 0.5))
        client.sendall(b"hi\n")
        self.assertEqual(read_line(client), b"Server %d received: hi\n" % server.port)

    def test_the_idle_timeout_holds_in_a_longer_pause_of_a_message(self) -> None:
        options = ["--idle-timeout", "0.5", "--message-pause", "20"]
        client = self.dial(self.start("server2.py", "0", *options))
        client.settimeout(15)
        client.sendall(b"no newline")
        self.assertEqual(read_to_end(client), b"")
        story = whole_story(self.folder / "server_log.txt", name_of(client))
        self.assertIn("closed: idle, 0 messages, 10 bytes in", story[-1])

    def test_messages_keep_a_connection_from_being_idle(self) -> None:
        server = self.start("server2.py", "0", "--idle-timeout", "0.9")
        client = self.dial(server)
        for _ in range(4):
            client.sendall(b"hi\n")
            read_line(client)
            self.assertTrue(nothing_comes(client, 0.3), "closed while in use")

    def test_more_than_max_connections_wait_for_their_turn(self) -> None:
        server = self.start("server2.py", "0", "--max-connections", "2")
        first, second, third = (self.dial(server) for _ in range(3))
        for client in (first, second):
            client.sendall(b"hi\n")
            read_line(client)
        third.sendall(b"and me\n")
        self.assertTrue(nothing_comes(third))
        first.close()
        self.assertEqual(
            read_line(third), b"Server %d received: and me\n" % server.port
        )
        second.sendall(b"still here\n")
        self.assertEqual(
            read_line(second), b"Server %d received: still here\n" % server.port
        )

    def test_help_names_every_option_and_fault(self) -> None:
        result = self.run_script("server2.py", "--help")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        words = (
            "--host --log --fsync --max-message --message-pause --idle-timeout "
            "--max-connections --delay --accept-proxy --quiet --fault refuse hang "
            "reset slow: close-early half-close 65536 3600 server_log.txt"
        )
        for word in words.split():
            self.assertIn(word, result.stdout)


class ProxyHeaders(ScriptTestCase):
    """PROXY protocol version 1, from the sources that may send it."""

    server: Running
    log_folder: Path
    log: Path

    VALID = (
        # Header, client address in the log (None: the connection's own).
        (
            b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
            "192.168.0.1:56324",
        ),
        (
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            "255.255.255.255:65535",
        ),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 4124 443\r\n", "[2001:db8::1]:4124"),
        (
            b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff "
            b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
        ),
        (b"PROXY UNKNOWN\r\n", None),
        (
            b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff "
            b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
            None,
        ),
        (b"PROXY UNKNOWN whatever this is\r\n", None),
    )
    INVALID = (
        b"Hello\r\n",
        b"\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\rHi\n",
        b"PROXY TCP4  192.168.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443 \r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443 1\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 056324 443\r\n",
        b"PROXY TCP4 192.168.0.01 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 65536 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 -1 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 +1 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.256 56324 443\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 56324 443\r\n",
        b"PROXY TCP6 192.168.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 localhost localhost 56324 443\r\n",
        b"PROXY TCP5 192.168.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY tcp4 192.168.0.1 192.168.0.11 56324 443\r\n",
        b"proxy TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 \xd9\xa1.0.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY TCP6 2001:db8::1%1 2001:db8::2 56324 443\r\n",
        b"PROXYTCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY\r\n",
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",  # 108 bytes
        b"PROXY " + b"x" * 4096,  # no CRLF within 107
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + b"\x7f\x00\x00\x01" * 3,  # v2
    )

    @classmethod
    def setUpClass(cls) -> None:
        cls.log_folder = cls.shared_folder()
        cls.server = cls.start_shared(
            "server2.py", "0", "--accept-proxy", "127.0.0.0/8", cwd=cls.log_folder
        )
        cls.log = cls.log_folder / "server_log.txt"

    def test_the_log_shows_the_client_that_the_header_names(self) -> None:
        confirmation = b"Server %d received: hi\n" % self.server.port
        for header, client_name in self.VALID:
            with self.subTest(header=header), dial(self.server) as client:
                self.assertLessEqual(len(header), 107)
                client.sendall(header + b"hi\n")
                self.assertEqual(read_line(client), confirmation)
                self.assertIn(
                    "received: hi", events(self.log, client_name or name_of(client))
                )

    def test_a_header_may_come_byte_by_byte(self) -> None:
        client = self.dial(self.server)
        for byte in b"PROXY TCP4 10.1.2.3 192.168.0.11 4711 443\r\nhi\n":
            client.sendall(bytes([byte]))
        self.assertEqual(
            read_line(client), b"Server %d received: hi\n" % self.server.port
        )
        self.assertIn("received: hi", events(self.log, "10.1.2.3:4711"))

    def test_an_invalid_header_ends_the_connection_without_an_answer(self) -> None:
        for header in self.INVALID:
            with self.subTest(header=header), dial(self.server) as client:
                client.sendall(header + b"hi\n")
                data = b""
                with contextlib.suppress(OSError):  # it may have been reset already
                    client.shutdown(socket.SHUT_WR)
                    data = read_to_end(client)
                self.assertNotIn(b"received", data)
                if self.log.exists():
                    self.assertEqual(
                        [
                            event
                            for event in events(self.log, name_of(client))
                            if event.startswith(("received", "replied"))
                        ],
                        [],
                    )

    def test_a_header_is_required_from_such_a_source(self) -> None:
        client = self.dial(self.server)
        client.sendall(b"PROXY TCP4 10.1")
        self.assertTrue(nothing_comes(client), "half a header was answered")

    def test_a_header_from_another_source_is_not_believed(self) -> None:
        server = self.start("server2.py", "0", "--accept-proxy", "192.0.2.0/24")
        with contextlib.suppress(ConnectionResetError):
            exchange(server, b"PROXY TCP4 10.66.6.6 10.0.0.1 666 443\r\nhi\n")
        log = self.folder / "server_log.txt"
        self.assertEqual(events(log, "10.66.6.6:666") if log.exists() else [], [])

    def test_a_source_is_the_same_where_ipv4_comes_as_ipv6(self) -> None:
        server = self.start(
            "server2.py", "0", "--host", "::", "--accept-proxy", "127.0.0.0/8"
        )
        try:
            client = self.dial(("127.0.0.1", server.port))
        except ConnectionRefusedError:
            self.skipTest("needs a system where :: listens on IPv4, too")
        client.sendall(b"PROXY TCP4 10.1.2.3 192.168.0.11 4711 443\r\nhi\n")
        self.assertEqual(read_line(client), b"Server %d received: hi\n" % server.port)
        log = self.folder / "server_log.txt"
        self.assertIn("received: hi", events(log, "10.1.2.3:4711"))

    def test_without_the_option_a_header_is_a_message(self) -> None:
        server = self.start("server2.py", "0")
        header = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
        self.assertEqual(
            exchange(server, header), b"Server %d received: " % server.port + header
        )


class BadInput(ScriptTestCase):
    """One line that says what to do, and an exit code; never a traceback."""

    def test_bad_arguments_end_with_one_line_and_2(self) -> None:
        cases = (
            ((), "PORT"),
            (("port",), "port"),
            (("-1",), ""),
            (("65536",), "65536"),
            (("99.5",), "99.5"),
            (("\u0663\u0664",), ""),
            (("",), ""),
            (("0", "1"), "1"),
            (("0", "--no-such-option"), "--no-such-option"),
            (("0", "--max-message", "0"), "--max-message"),
            (("0", "--max-message", "many"), "--max-message"),
            (("0", "--message-pause", "-1"), "--message-pause"),
            (("0", "--message-pause", "nan"), "--message-pause"),
            (("0", "--idle-timeout", "-1"), "--idle-timeout"),
            (("0", "--idle-timeout", "soon"), "--idle-timeout"),
            (("0", "--max-connections", "-1"), "--max-connections"),
            (("0", "--max-connections", "1.5"), "--max-connections"),
            (("0", "--delay", "-0.1"), "--delay"),
            (("0", "--delay", "inf"), "--delay"),
            (("0", "--delay", "exp:"), "--delay"),
            (("0", "--delay", "fixed:1:2"), "--delay"),
            (("0", "--delay", "exp:0"), "--delay"),
            (("0", "--delay", "exp:1:2"), "--delay"),
            (("0", "--delay", "uniform:1"), "--delay"),
            (("0", "--delay", "uniform:2:1"), "--delay"),
            (("0", "--delay", "normal:1"), "--delay"),
            (("0", "--parallel", "-1"), "--parallel"),
            (("0", "--parallel", "1.5"), "--parallel"),
            (("0", "--accept-proxy", "300.0.0.0/8"), "--accept-proxy"),
            (("0", "--accept-proxy", "all"), "--accept-proxy"),
            (("0", "--fault", "nonsense"), "--fault"),
            (("0", "--fault", "slow"), "--fault"),
            (("0", "--fault", "slow:soon"), "--fault"),
            (("0", "--fault", "slow:-1"), "--fault"),
            (("0", "--fault", "slow:nan"), "--fault"),
            (("0", "--host", "no-such-host.invalid"), "no-such-host.invalid"),
            (("0", "--host", "a..b"), "a..b"),
            (("0", "--host", "x" * 300), "xxx"),
            (("0", "--host", ""), ""),
            (("0", "--log", str(self.folder)), str(self.folder)),
            (("0", "--log", "no/such/folder/log"), "no/such/folder/log"),
        )
        results = run_main("server2.py", [args for args, _ in cases], cwd=self.folder)
        for (args, word), result in zip(cases, results, strict=True):
            with self.subTest(args=args):
                self.assert_one_line(result, 2, word)

    def test_a_port_in_use_is_named_and_gives_1(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as holder:
            port = holder.getsockname()[1]
            result = self.run_script("server2.py", port)
        self.assert_one_line(result, 1, str(port))

    def test_an_address_of_another_machine_is_refused_in_one_line(self) -> None:
        result = self.run_script("server2.py", "0", "--host", "192.0.2.1")
        self.assertIn(result.returncode, (1, 2))
        self.assert_one_line(result, result.returncode, "192.0.2.1")

    def test_a_system_without_threads_to_spare_is_told_in_one_line(self) -> None:
        env = self.without()
        starved = (
            "import threading\n"
            "def start(thread):\n"
            '    raise RuntimeError("can\'t start new thread")\n'
            "threading.Thread.start = start\n"
        )
        Path(env["PYTHONPATH"], "sitecustomize.py").write_text(starved)
        result = self.run_script("server2.py", "0", env=env)
        self.assert_one_line(result, 2, "can't start new thread")

    def test_a_bad_start_leaves_no_log_behind(self) -> None:
        self.run_script("server2.py", "99999")
        self.assertEqual(list(self.folder.iterdir()), [])


class Faults(ScriptTestCase):
    """`--fault KIND`: a server that fails as told."""

    def faulty(self, kind: str) -> Running:
        return self.start("server2.py", "0", "--fault", kind)

    def test_refuse_refuses_connections(self) -> None:
        server = self.faulty("refuse")
        with self.assertRaises(ConnectionRefusedError):
            dial(server)
        self.assertIsNone(server.returncode)
        self.assertEqual(server.stop(), 0)
        self.assertEqual(server.stderr_text(), "")

    def test_hang_accepts_and_never_answers(self) -> None:
        client = self.dial(self.faulty("hang"))
        client.sendall(b"hi\n")
        self.assertTrue(nothing_comes(client))

    def test_reset_answers_with_a_reset(self) -> None:
        client = self.dial(self.faulty("reset"))
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            client.sendall(b"hi\n")
        self.assertTrue(is_reset(client))

    def test_slow_answers_later_by_the_given_seconds(self) -> None:
        server = self.faulty("slow:0.5")
        client = self.dial(server)
        started = time.monotonic()
        client.sendall(b"hi\n")
        self.assertEqual(read_line(client), b"Server %d received: hi\n" % server.port)
        self.assertGreaterEqual(time.monotonic() - started, 0.49)

    def test_close_early_ends_before_the_confirmation_is_whole(self) -> None:
        server = self.faulty("close-early")
        client = self.dial(server)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            client.sendall(b"hi\n")
            reply = read_to_end(client)
            confirmation = b"Server %d received: hi\n" % server.port
            self.assertTrue(confirmation.startswith(reply), reply)
            self.assertNotEqual(reply, confirmation)

    def test_half_close_ends_one_direction_and_goes_on_reading(self) -> None:
        client = self.dial(self.faulty("half-close"))
        client.sendall(b"hi\n")
        read_to_end(client)
        for _ in range(2):  # a closed socket would reset this
            client.sendall(b"more\n" * 10_000)
            threading.Event().wait(0.3)


class Lifetime(ScriptTestCase):
    """Stopping, starving, and what is left afterwards: nothing."""

    def test_sigterm_and_ctrl_c_end_it_with_0(self) -> None:
        def stop_by(number: int) -> tuple[int, str]:
            server = self.start("server2.py", "0")
            with dial(server) as client:
                client.sendall(b"unfinished")
                exchange(server, b"hi\n")
                server.signal(number)
                return server.wait(10), server.stderr_text()

        ends = in_parallel(
            partial(stop_by, signal.SIGTERM), partial(stop_by, signal.SIGINT)
        )
        self.assertEqual(ends, [(0, ""), (0, "")])

    @unittest.skipUnless(hasattr(signal, "SIGSTOP"), "needs SIGSTOP")
    def test_clients_in_the_listen_queue_are_served_also_where_much_is_refused(
        self,
    ) -> None:
        refused = {"PYTHONPATH": str(ROOT / "tests/refused"), "LAB_REFUSED": "all"}
        server = self.start("server2.py", "0", env=script_environment() | refused)
        server.signal(signal.SIGSTOP)
        clients = [self.dial(server) for _ in range(20)]
        for client in clients:
            client.sendall(b"hi\n")
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGCONT)
        expected = b"Server %d received: hi\n" % server.port
        self.assertEqual([read_to_end(client) for client in clients], [expected] * 20)
        self.assertEqual(server.wait(10), 0)

    @unittest.skipUnless(sys.platform == "linux", "needs TCP_INFO (Linux)")
    def test_the_last_message_of_a_client_that_has_ended_is_confirmed_at_a_stop(
        self,
    ) -> None:
        server = self.start("server2.py", "0", "--delay", "30")
        client = self.dial(server)
        client.sendall(b"one\ntwo")
        client.shutdown(socket.SHUT_WR)
        other = self.dial(server)
        other.sendall(b"one\nunfinished")
        wait_until(lambda: len(server.stdout_lines()) > 3, what="both messages")
        server.signal(signal.SIGTERM)
        head = b"Server %d received: " % server.port
        self.assertEqual(read_to_end(client), head + b"one\n" + head + b"two")
        self.assertEqual(read_to_end(other), head + b"one\n")
        self.assertEqual(server.wait(10), 0)

    def test_a_stop_says_how_many_connections_are_live(self) -> None:
        server = self.start("server2.py", "0")
        clients = [self.dial(server) for _ in range(2)]
        for client in clients:
            client.sendall(b"unfinished")
        exchange(server, b"hi\n")
        server.wait_for_line("closed: by client")
        server.signal(signal.SIGINT)
        self.assertEqual(
            server.wait_for_line("stopping"),
            "stopping: 2 live connections, waiting 2 s at most; Ctrl-C again cuts them",
        )
        self.assertEqual(server.wait(10), 0)

    def test_a_stop_accepts_nobody_else(self) -> None:
        server = self.start("server2.py", "0", "--message-pause", "0")
        client = self.dial(server)  # without its message a stop waits for it
        client.sendall(b"half")
        exchange(server, b"hi\n")
        server.signal(signal.SIGTERM)
        server.wait_for_line("stopping")
        with self.assertRaises(OSError):
            dial(server)

    def test_a_stop_cuts_who_neither_ends_a_message_nor_leaves(self) -> None:
        server = self.start("server2.py", "0", "--message-pause", "0")
        client = self.dial(server)
        client.sendall(b"half")
        exchange(server, b"hi\n")
        self.assertEqual(server.stop(10), 0)
        self.assertEqual(read_to_end(client), b"")
        story = whole_story(self.folder / "server_log.txt", name_of(client))
        self.assertEqual(story[0], "connected")
        self.assertTrue(
            story[1].startswith("closed: shutdown, 0 messages, 4 bytes in, 0 bytes out")
        )

    def test_a_stop_lets_nobody_work_any_longer(self) -> None:
        server = self.start("server2.py", "0", "--delay", "60")
        client = self.dial(server)
        client.sendall(b"hi\n")
        self.assertTrue(nothing_comes(client))
        server.signal(signal.SIGTERM)
        self.assertEqual(read_to_end(client), b"Server %d received: hi\n" % server.port)
        self.assertEqual(server.wait(10), 0)

    @unittest.skipUnless(os.name == "posix", "needs signals that end a process")
    def test_a_second_signal_ends_it_at_once(self) -> None:
        patient = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); import server2; "
            "server2.GRACE_S = 1_000; server2.main(['0', '--message-pause', '0'])"
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number), subprocess.Popen(
                [sys.executable, "-c", patient],
                cwd=self.folder, env=script_environment(), stdout=subprocess.PIPE,
                text=True,
            ) as process:  # fmt: skip
                self.addCleanup(process.kill)
                assert process.stdout
                match = LISTENING.match(process.stdout.readline())
                assert match
                with dial(("127.0.0.1", int(match[2]))) as client:
                    client.sendall(b"half")
                    self.assertIn("logging", process.stdout.readline())
                    process.send_signal(signal.SIGTERM)
                    self.assertIn("stopping", process.stdout.readline())
                    process.send_signal(number)
                    self.assertEqual(process.wait(DEADLINE_S), -number)

    @unittest.skipUnless(os.name == "posix", "needs signals that end a process")
    def test_a_signal_that_comes_late_does_not_change_the_exit_status(self) -> None:
        env = self.without()
        late = "import atexit, os\natexit.register(os.kill, os.getpid(), 15)\n"
        Path(env["PYTHONPATH"], "sitecustomize.py").write_text(late)
        self.assertEqual(self.start("server2.py", "0", env=env).stop(), 0)

    def test_it_stops_while_clients_are_busy_and_confirms_nothing_unlogged(
        self,
    ) -> None:
        server = self.start("server2.py", "0", "--quiet")
        stopping = threading.Event()
        confirmed: list[bytes] = []  # list.append of each client, joined before use
        lock = threading.Lock()

        def talk(index: int) -> None:
            mine = []
            with contextlib.suppress(OSError), dial(server) as client:
                for number in range(100_000):
                    text = b"busy-%d-%d" % (index, number)
                    client.sendall(text + b"\n")
                    reply = read_line(client)
                    if not reply.endswith(text + b"\n"):
                        break
                    mine.append(text)
                    if number == 20:
                        stopping.set()
            with lock:
                confirmed.extend(mine)

        talkers = [
            threading.Thread(target=talk, args=(index,), name=f"talk-{index}")
            for index in range(8)
        ]
        for talker in talkers:
            talker.start()
        self.assertTrue(stopping.wait(30))
        self.assertEqual(server.stop(), 0)
        for talker in talkers:
            talker.join(30)
            self.assertFalse(talker.is_alive())
        text = (self.folder / "server_log.txt").read_bytes()
        logged = re.findall(rb" - received: (busy-\d+-\d+)\n", text)
        self.assertEqual(len(logged), len(set(logged)))
        self.assertEqual(set(confirmed) - set(logged), set())
        self.assertGreater(len(confirmed), 20)

    def test_what_was_received_before_sigterm_is_answered_also_to_a_slow_reader(
        self,
    ) -> None:
        server = self.start("server2.py", "0")
        message = b"x" * 999 + b"\n"
        with dial(server) as client:
            client.sendall(b"first\n")
            reply = read_line(client)
            client.setblocking(False)
            rest = memoryview(message * 20_000)
            # Until the replies, too, fill all buffers.
            while rest and select.select([], [client], [], 0.5)[1]:
                with contextlib.suppress(BlockingIOError):
                    rest = rest[client.send(rest) :]
            client.settimeout(20)
            server.signal(signal.SIGTERM)
            server.wait_for_line("stopping")
            replies = b""
            with contextlib.suppress(ConnectionResetError):  # it was still sending
                while data := client.recv(65536):
                    replies += data
        self.assertEqual(reply, b"Server %d received: first\n" % server.port)
        self.assertEqual(server.wait(10), 0)
        log = (self.folder / "server_log.txt").read_bytes()
        logged = log.count(b"replied: ") - 1
        expected = (b"Server %d received: " % server.port + message) * logged
        self.assertEqual(len(replies), len(expected))
        self.assertEqual(replies, expected)
        self.assertGreater(logged, 100)

    def test_a_pause_that_ends_the_first_message_ends_a_stopping_server_too(
        self,
    ) -> None:
        server = self.start("server2.py", "0", "--quiet")
        client = self.dial(server)
        client.sendall(b"hi")
        self.assertTrue(nothing_comes(client, 0.05))
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        self.assertEqual(read_to_end(client), b"Server %d received: hi" % server.port)
        self.assertEqual(server.wait(10), 0)
        self.assertLess(time.monotonic() - began, server2.GRACE_S / 2)

    @unittest.skipUnless(hasattr(signal, "SIGHUP"), "needs SIGHUP")
    def test_sighup_reopens_the_log_also_while_it_stops(self) -> None:
        log = self.folder / "server_log.txt"
        server = self.start("server2.py", "0", "--message-pause", "0")
        finished, unfinished = self.dial(server), self.dial(server)
        unfinished.sendall(b"ha")
        finished.sendall(b"whole\n")
        read_line(finished)
        server.signal(signal.SIGTERM)
        self.assertEqual(read_to_end(finished), b"")  # it stops
        log.rename(self.folder / "old.txt")
        server.signal(signal.SIGHUP)
        wait_until(log.exists, 5, "the new log")
        unfinished.sendall(b"lf\n")
        self.assertEqual(
            read_to_end(unfinished), b"Server %d received: half\n" % server.port
        )
        self.assertEqual(server.wait(10), 0)
        self.assertIn("received: half\n", log.read_text())

    def test_the_same_port_can_be_taken_again_at_once(self) -> None:
        server = self.start("server2.py", "0")
        port = server.port
        client = self.dial(server)
        client.sendall(b"hi\n")
        read_line(client)
        server.stop()
        again = self.start("server2.py", port)
        self.assertEqual(again.port, port)

    def test_threads_and_descriptors_come_back_after_many_clients(self) -> None:
        server = self.start("server2.py", "0", "--quiet")
        exchange(server, b"warm up\n")
        before = descriptors(server.pid)
        for _ in range(2):
            clients = [dial(server) for _ in range(200)]
            for index, client in enumerate(clients):
                if index % 2:
                    client.sendall(b"hi\n" if index % 3 else b"half")
            wait_until(
                lambda: descriptors(server.pid) >= before + 200, what="200 connections"
            )
            for index, client in enumerate(clients):
                (send_reset if index % 5 else socket.socket.close)(client)
            wait_until(
                lambda: descriptors(server.pid) <= before, what="closed connections"
            )
            # Some threads may be kept for the next clients: fewer than there were.
            wait_until(lambda: threads(server.pid) < 100, what="the threads' end")

    def test_a_client_that_never_reads_does_not_keep_it_from_stopping(self) -> None:
        server = self.start("server2.py", "0", "--quiet")
        client = self.dial(server, timeout=0.5)
        with contextlib.suppress(TimeoutError):
            for _ in range(1024):
                client.sendall(b"x" * 999 + b"\n" + b"y" * 64_535 + b"\n")
        self.assertEqual(
            exchange(server, b"me too\n"),
            b"Server %d received: me too\n" % server.port,
        )
        self.assertEqual(server.stop(20), 0)

    def with_output(self) -> tuple[subprocess.Popen[bytes], IO[bytes], int]:
        """Start a server whose output nobody reads after the first line, and full."""
        reading, writing = os.pipe()
        output = self.enterContext(open(reading, "rb", buffering=0))
        pipe = self.enterContext(open(writing, "wb", buffering=0))
        process = subprocess.Popen(
            script_command("server2.py", ["0"]),
            cwd=self.folder,
            env=script_environment(),
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=subprocess.PIPE,
            bufsize=0,
        )

        def finish() -> None:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=DEADLINE_S)

        self.addCleanup(finish)
        line = output.readline().decode()
        match = LISTENING.match(line)
        assert match, line
        fill(pipe.fileno())
        os.set_blocking(pipe.fileno(), True)
        pipe.close()
        return process, output, int(match[2])

    def check_service(self, process: subprocess.Popen[bytes], port: int) -> None:
        """Expect 2,003 confirmations, a clean end and no word on standard error."""
        line = b"x" * 99 + b"\n"
        with dial(("127.0.0.1", port)) as client:
            for number in (1, 1, 1, *[100] * 20):  # shown, and summed up
                client.sendall(line * number)
                expected = (b"Server %d received: " % port + line) * number
                self.assertEqual(read_exactly(client, len(expected)), expected)
        process.terminate()
        self.assertEqual(process.wait(DEADLINE_S), 0)
        assert process.stderr
        self.assertEqual(process.stderr.read(), b"")

    def test_nobody_reading_its_output_stops_no_service(self) -> None:
        process, _, port = self.with_output()
        self.check_service(process, port)

    def test_the_end_of_whoever_read_its_output_stops_no_service(self) -> None:
        process, output, port = self.with_output()
        output.close()
        self.check_service(process, port)

    def test_running_out_of_descriptors_hurts_only_the_late(self) -> None:
        server = self.start("server2.py", "0", preexec_fn=limit_to("RLIMIT_NOFILE", 24))
        early = self.dial(server)
        early.sendall(b"early\n")
        read_line(early)
        crowd = [dial(server) for _ in range(40)]
        for client in crowd:
            client.sendall(b"crowd\n")
        served = wait_until(
            lambda: [client for client in crowd if not nothing_comes(client, 0)],
            what="some of the crowd being served",
        )
        used = cpu_s(server.pid)
        self.assertTrue(nothing_comes(early, 1.0))
        self.assertLess(cpu_s(server.pid) - used, 0.2, "it spins")
        early.sendall(b"still here\n")
        self.assertEqual(
            read_line(early), b"Server %d received: still here\n" % server.port
        )
        self.assertLess(len(served), 40)
        expected = b"Server %d received: crowd\n" % server.port
        waiting = list(crowd)
        while waiting:  # whoever has an answer leaves to others
            ready = select.select(waiting, [], [], 20)[0]
            self.assertTrue(ready, f"{len(waiting)} clients are never served")
            for client in ready:
                self.assertEqual(read_line(client), expected)
                client.close()
                waiting.remove(client)

    @needs_permission("the raising of limits")
    def test_it_opens_as_many_files_as_the_system_lets_it(self) -> None:
        server = self.start(
            "server2.py", "0", preexec_fn=limit_to("RLIMIT_NOFILE", 30, 200)
        )
        clients = [self.dial(server) for _ in range(60)]
        for client in clients:
            client.sendall(b"hi\n")
        expected = b"Server %d received: hi\n" % server.port
        self.assertEqual([read_line(client) for client in clients], [expected] * 60)

    def test_it_works_without_what_only_some_systems_have(self) -> None:
        env = self.without(
            "resource",
            "signal.SIGHUP",
            "socket.SO_RCVTIMEO",
            "socket.SO_SNDTIMEO",
            "socket.SO_REUSEPORT",
            "socket.MSG_DONTWAIT",
            "socket.TCP_KEEPIDLE",
            "os.fdatasync",
            "os.sched_setscheduler",
            "os.SCHED_BATCH",
            "os.O_CLOEXEC",
            "os.O_NOCTTY",
            "os.writev",
            "os.posix_fadvise",
            "os.fork",
            "fcntl",
            "ctypes",
        )
        server = self.start("server2.py", "0", "--fsync", env=env)
        with dial(server) as client:
            client.sendall(b"Hello")
            expected = b"Server %d received: Hello" % server.port
            self.assertEqual(read_exactly(client, len(expected)), expected)
            client.sendall(b"line\n")
            self.assertEqual(
                read_line(client), b"Server %d received: line\n" % server.port
            )
            name = name_of(client)
        self.assertEqual(len(whole_story(self.folder / "server_log.txt", name)), 6)
        self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    unittest.main()
