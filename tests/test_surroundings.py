"""What all three scripts owe to their surroundings: Python, terminals, streams, ports.

A class for each surrounding; the scripts are tested side by side, for they share it.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import unittest
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import ClassVar

from tests.support import (
    DEADLINE_S,
    LISTENING,
    ROOT,
    Running,
    ScriptTestCase,
    confirm,
    descriptors,
    dial,
    free_port,
    group_members,
    read_line,
    read_to_end,
    run_main,
    script_command,
    script_environment,
    wait_until,
)
from tests.test_server2 import fill

try:
    import fcntl
    import pty
    import resource
    import termios
except ImportError:  # Windows: what needs them is skipped
    resource = None  # type: ignore[assignment]

SCRIPTS = ("server2.py", "load_balancer.py", "client2.py")
SERVING = ("server2.py", "load_balancer.py")
RECORD = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - \d+ - \S+:\d+ - "
    r"(connected|received: |replied: |closed: ).*"
)
ESCAPE = "\x1b"
FREE = "--listen=127.0.0.1:0"
needs_terminals = unittest.skipUnless(
    hasattr(os, "setsid") and hasattr(os, "openpty"), "needs pseudo-terminals"
)


def send_and_read(address: str, text: str) -> str:
    """Exchange one line on a connection of its own; return the answer."""
    with dial(address) as client:
        client.sendall(f"{text}\n".encode())
        client.shutdown(socket.SHUT_WR)
        return read_to_end(client).decode()


def is_free(address: str) -> bool:
    """Tell whether somebody else could listen on an address now."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_server((host, int(port))).close()
    except OSError:
        return False
    return True


# ---- Python ------------------------------------------------------------------------


@cache
def older_pythons() -> dict[str, str]:
    """Return the interpreters from 3.8 on that are too old, by version."""
    places = [shutil.which(f"python3.{minor}") for minor in (8, 9, 10)]
    with contextlib.suppress(RuntimeError):  # nobody's home
        places += sorted(map(str, Path.home().glob(".pyenv/versions/3.*/bin/python3")))
    found = {}
    for place in filter(None, places):
        probe = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
        try:
            done = subprocess.run(
                [place, "-c", probe], capture_output=True, text=True,
                timeout=DEADLINE_S, check=False,
            )  # fmt: skip
        except OSError:
            continue
        match = re.fullmatch(r"3\.(\d+)\.\d+", done.stdout.strip())
        if match and 8 <= int(match[1]) < 11:
            found[match[0]] = place
    return found


class OldPython(ScriptTestCase):
    """Python 3.11 or newer is needed; an older one says so."""

    def test_an_older_python_gets_one_line_and_exit_code_2(self) -> None:
        if not older_pythons():
            self.skipTest("needs a Python 3.8, 3.9 or 3.10")
        for version, python in older_pythons().items():
            for script in SCRIPTS:
                with self.subTest(script=script, version=version):
                    done = subprocess.run(
                        [python, ROOT / script, "--help"],
                        cwd=self.folder, env=script_environment(),
                        stdin=subprocess.DEVNULL, capture_output=True, text=True,
                        timeout=DEADLINE_S, check=False,
                    )  # fmt: skip
                    line = f"{script} needs Python 3.11 or newer, this is {version}\n"
                    self.assertEqual(
                        (done.returncode, done.stdout, done.stderr), (2, "", line)
                    )

    def test_the_text_of_each_script_parses_on_python_3_8(self) -> None:
        for script in SCRIPTS:
            with self.subTest(script=script):
                text = (ROOT / script).read_text("utf-8")
                body = ast.parse(text, feature_version=(3, 8)).body
                # Nothing that an old Python may lack comes before the question.
                first = [ast.unparse(statement) for statement in body[1:4]]
                if first[0] == "from __future__ import annotations":
                    del first[0]
                self.assertEqual(first[0], "import sys")
                self.assertIn("if sys.version_info < (3, 11):", first[1])

    def test_version_is_that_of_the_system(self) -> None:
        for script in SCRIPTS:
            with self.subTest(script=script):
                (result,) = run_main(script, [["--version"]], cwd=self.folder)
                self.assertEqual(result.returncode, 0, result)
                self.assertEqual(result.stdout, f"{script} 2.0\n")

    def test_python3_is_the_command_in_every_text(self) -> None:
        bare = re.compile(r"(?<![\w./-])python (?=-m |\w+\.py)")
        for name in ("README.md", *SCRIPTS):
            with self.subTest(name=name):
                lines = (ROOT / name).read_text("utf-8").splitlines()
                self.assertEqual([line for line in lines if bare.search(line)], [])


# ---- Terminals ---------------------------------------------------------------------


def be_as_in_a_window() -> None:
    """Take the terminal; hear of its end, though this suite was started by nohup."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Terminal:
    """A program with a terminal of its own, whose window can be closed."""

    def __init__(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Start the program as the leader of the terminal's session."""
        self._window, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, b"\x18\0\x50\0\0\0\0\0")  # 24 by 80
        self._seen = b""
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=script_environment({"TERM": "xterm", **(env or {})}),
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            preexec_fn=be_as_in_a_window,
        )
        os.close(inside)

    def read(self, seconds: float) -> bool:
        """Take what comes within some seconds; False at the end."""
        if select.select([self._window], [], [], seconds)[0]:
            try:
                data = os.read(self._window, 65536)
            except OSError:  # EIO: nobody has the terminal any more
                return False
            self._seen += data
            return bool(data)
        return True

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first match in what it showed."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            if match := re.search(pattern, self.text()):
                return match
            if time.monotonic() > deadline or not self.read(1):
                raise AssertionError(f"no {pattern!r} in {self.text()!r}")

    def text(self) -> str:
        """Return what it showed so far."""
        return self._seen.decode("utf-8", "surrogateescape")

    def read_to_end(self) -> str:
        """Return all that it shows until the program ends."""
        deadline = time.monotonic() + DEADLINE_S
        while self.read(1) and time.monotonic() < deadline:
            pass
        return self.text()

    def type(self, text: str) -> None:
        """Press keys."""
        with contextlib.suppress(OSError):  # nobody has the terminal any more
            os.write(self._window, text.encode())

    def close_window(self) -> None:
        """Close the window: the kernel hangs up."""
        if self._window >= 0:
            os.close(self._window)
            self._window = -1

    def finish(self) -> None:
        """End whatever still runs."""
        self.close_window()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)


class TerminalTestCase(ScriptTestCase):
    """A test whose scripts run in terminals."""

    def terminal(
        self,
        *command: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Terminal:
        """Start a program in a terminal that is closed when the test ends."""
        terminal = Terminal(command, cwd or self.folder, env)
        self.addCleanup(terminal.finish)
        return terminal

    def options(self) -> dict[str, list[str]]:
        """Return what starts the server and the balancer on free ports."""
        backend = self.backend(confirm())
        return {
            "server2.py": ["0"],
            "load_balancer.py": [FREE, f"--server={backend.address}"],
        }

    def commands(self) -> dict[str, list[str]]:
        """Return the command lines of the two."""
        return {name: script_command(name, a) for name, a in self.options().items()}

    def stopped(self, terminal: Terminal, address: str) -> None:
        """Expect that the program and its children end, and give the port back."""
        wait_until(lambda: not group_members(terminal.process.pid), what="the end")
        wait_until(lambda: is_free(address), what=f"{address} free again")


@needs_terminals
class ClosedWindow(TerminalTestCase):
    """A terminal that is closed takes along what was started in it."""

    def test_closing_the_window_stops_it_as_sigterm_does(self) -> None:
        for script, command in self.commands().items():
            with self.subTest(script=script):
                terminal = self.terminal(*command)
                address = ":".join(terminal.wait_for(LISTENING.pattern).groups())
                self.assertIn("received: hi", send_and_read(address, "hi"))
                terminal.close_window()
                self.assertEqual(terminal.process.wait(DEADLINE_S), 0)
                self.stopped(terminal, address)

    def test_it_stops_when_a_shell_was_between_and_with_its_output_in_a_file(
        self,
    ) -> None:
        for script, command in self.commands().items():
            with self.subTest(script=script):
                folder = self.folder / script.partition(".")[0]
                folder.mkdir()
                line = f"{shlex.join(command)} >out 2>&1 </dev/null; true"
                terminal = self.terminal("/bin/sh", "-c", line, cwd=folder)
                address = self.listening_in(folder / "out")
                terminal.close_window()
                self.stopped(terminal, address)

    def listening_in(self, path: Path) -> str:
        """Return the address that the first line of a file names."""
        match = wait_until(
            lambda: path.exists() and LISTENING.search(path.read_text()),
            what=f"an address in {path}",
        )
        return ":".join(match.groups())

    def test_with_nohup_it_goes_on(self) -> None:
        if not shutil.which("nohup"):
            self.skipTest("nohup is not installed")
        for script, command in self.commands().items():
            with self.subTest(script=script):
                folder = self.folder / f"{script}-nohup"
                folder.mkdir()
                terminal = self.terminal("nohup", *command, cwd=folder)
                address = self.listening_in(folder / "nohup.out")
                terminal.close_window()
                with self.assertRaises(subprocess.TimeoutExpired):
                    terminal.process.wait(0.5)
                self.assertIn("received: still", send_and_read(address, "still here"))
                terminal.process.terminate()
                self.assertEqual(terminal.process.wait(DEADLINE_S), 0)

    def test_sighup_reopens_the_log_while_the_terminal_is_there(self) -> None:
        for script, command in self.commands().items():
            with self.subTest(script=script):
                log = self.folder / f"{script}.log"
                terminal = self.terminal(*command, f"--log={log}")
                address = ":".join(terminal.wait_for(LISTENING.pattern).groups())
                send_and_read(address, "before")
                wait_until(log.exists, what="a log")
                log.rename(f"{log}.1")
                terminal.process.send_signal(signal.SIGHUP)

                def new_log(address: str = address, log: Path = log) -> bool:
                    self.assertIn("received: ", send_and_read(address, "after"))
                    return log.exists() and log.stat().st_size > 0

                wait_until(new_log, what="a record in the new log")
                self.assertIsNone(terminal.process.poll())

    @unittest.skipUnless(hasattr(resource, "prlimit"), "needs prlimit (Linux)")
    def test_sighup_stops_nothing_where_descriptors_are_used_up(self) -> None:
        for script, command in self.commands().items():
            with self.subTest(script=script):
                terminal = self.terminal(*command)
                address = ":".join(terminal.wait_for(LISTENING.pattern).groups())
                send_and_read(address, "before")
                pid, kind = terminal.process.pid, resource.RLIMIT_NOFILE
                before = resource.prlimit(pid, kind)
                resource.prlimit(pid, kind, (3, before[1]))
                terminal.process.send_signal(signal.SIGHUP)
                with self.assertRaises(subprocess.TimeoutExpired):
                    terminal.process.wait(0.5)
                resource.prlimit(pid, kind, before)
                self.assertIn("received: after", send_and_read(address, "after"))

    def test_sighup_reopens_the_log_where_there_never_was_a_terminal(self) -> None:
        for script, options in self.options().items():
            with self.subTest(script=script):
                log = self.folder / f"{script}.log"
                running = self.start(script, *options, f"--log={log}")
                send_and_read(running.address, "before")
                log.rename(f"{log}.1")
                running.signal(signal.SIGHUP)

                def new_log(address: str = running.address, log: Path = log) -> bool:
                    self.assertIn("received: ", send_and_read(address, "after"))
                    return log.exists() and log.stat().st_size > 0

                wait_until(new_log, what="a record in the new log")
                self.assertEqual(running.stop(), 0)


@needs_terminals
class PlainTerminals(TerminalTestCase):
    """What a terminal cannot show is not sent to it."""

    def test_a_dumb_terminal_gets_no_escape_sequence(self) -> None:
        backend = self.backend(confirm(0.02))
        dumb = {"TERM": "dumb"}
        args = [9, "--messages", 40, "--target", backend.address]
        client = self.terminal(*script_command("client2.py", args), env=dumb)
        shown = client.read_to_end()
        self.assertIn("confirmed", shown)
        self.assertNotIn(ESCAPE, shown)
        for script, command in self.commands().items():
            with self.subTest(script=script):
                terminal = self.terminal(*command, env=dumb)
                address = ":".join(terminal.wait_for(LISTENING.pattern).groups())
                send_and_read(address, "hi")
                terminal.process.terminate()
                self.assertNotIn(ESCAPE, terminal.read_to_end())
                self.assertEqual(terminal.process.wait(DEADLINE_S), 0)

    def test_ctrl_c_says_what_is_live_how_long_it_waits_and_that_a_second_cuts(
        self,
    ) -> None:
        backend = self.backend(confirm(2 * DEADLINE_S))
        options = {
            "server2.py": ["0", "--delay=60"],
            "load_balancer.py": [
                FREE, f"--server={backend.address}", "--grace=300",
                "--workers=1", "--no-checks",
            ],
        }  # fmt: skip
        for script, args in options.items():
            with self.subTest(script=script):
                terminal = self.terminal(*script_command(script, args))
                address = ":".join(terminal.wait_for(LISTENING.pattern).groups())
                pid = terminal.process.pid
                before = descriptors(pid)
                clients = [self.dial(address) for _ in range(2)]
                for client in clients:
                    client.sendall(b"work\n")
                sides = 1 if script == "server2.py" else 2  # of each connection
                more = partial(self.has_descriptors, pid, before + 2 * sides)
                wait_until(more, what="two clients")
                terminal.type("\x03")
                said = terminal.wait_for(r"(?m)^.*\b2\b.*connections.*$")[0]
                self.assertRegex(said, r"\d s\b|\d seconds")
                self.assertRegex(said, "(second|another|again).*Ctrl-C|Ctrl-C.*again")
                terminal.type("\x03")
                terminal.read_to_end()
                terminal.process.wait(DEADLINE_S)
                self.assertNotIn("Traceback", terminal.text())

    def has_descriptors(self, pid: int, count: int) -> bool:
        """Tell whether a process has so many descriptors open."""
        return descriptors(pid) >= count


# ---- Streams -----------------------------------------------------------------------


def close_streams(*descriptors: int) -> None:
    """Close descriptors, in a child that is about to become a script."""
    for descriptor in descriptors:
        os.close(descriptor)


@unittest.skipUnless(hasattr(os, "fork"), "needs descriptors as POSIX has them")
class ClosedStreams(ScriptTestCase):
    """Init scripts and ssh start programs without standard streams."""

    CLOSED: ClassVar = ((0,), (1,), (0, 1), (1, 2), (0, 1, 2))

    def serve(self, script: str, *args: object, closed: Sequence[int]) -> None:
        """Serve 20 clients without these streams, then stop."""
        port = free_port()
        where = port if script == "server2.py" else f"--listen=127.0.0.1:{port}"
        running = self.spawn(
            script, where, *args, preexec_fn=partial(close_streams, *closed)
        )
        address = f"127.0.0.1:{port}"

        def listens() -> bool:
            self.assertIsNone(running.returncode, running.stderr_text())
            with contextlib.suppress(OSError):
                dial(address).close()
                return True
            return False

        wait_until(listens, what=f"{script} without {closed}")
        for number in range(20):
            answer = send_and_read(address, f"number {number}")
            self.assertRegex(answer, rf"\AServer \d+ received: number {number}\n\Z")
        self.assertIsNone(running.returncode, running.stderr_text())
        self.assertEqual(running.stop(), 0)

    def test_a_server_serves_and_its_log_has_nothing_but_records(self) -> None:
        for closed in self.CLOSED:
            with self.subTest(closed=closed):
                log = self.folder / f"log-{closed}.txt"
                self.serve("server2.py", f"--log={log}", closed=closed)
                lines = log.read_text().splitlines()
                self.assertEqual(len(lines), 80)
                for line in lines:
                    self.assertRegex(line, rf"\A{RECORD.pattern}\Z")

    def test_a_balancer_serves_and_its_log_has_nothing_but_lines_of_it(self) -> None:
        server = self.backend(confirm())
        for closed in self.CLOSED:
            for log in (None, self.folder / f"balancer-{closed}.log"):
                with self.subTest(closed=closed, log=log):
                    options = [f"--server={server.address}", "--workers=1"]
                    options += [f"--log={log}"] if log else []
                    self.serve("load_balancer.py", *options, closed=closed)
                    if log:
                        self.check_log(log.read_text())

    def check_log(self, text: str) -> None:
        """Expect the lines of 20 connections among dated lines, and no other line."""
        self.assertEqual(text.count(" to_server="), 20 + 1)  # one only looked
        for line in text.splitlines():
            self.assertRegex(line, r"\A(listening|\d{4}-\d\d-\d\d )")

    def test_a_client_measures_without_streams(self) -> None:
        server = self.backend(confirm())
        for closed in self.CLOSED:
            with self.subTest(closed=closed):
                running = self.spawn(
                    *("client2.py", 9, "--target", server.address),
                    *("--json", f"run-{closed}.json"),
                    preexec_fn=partial(close_streams, *closed),
                )
                self.assertEqual(running.wait(), 0)
                document = json.loads((self.folder / f"run-{closed}.json").read_text())
                self.assertEqual(document["exchanges"]["confirmed"], 9)

    def test_a_balancers_output_that_does_not_block_loses_no_line(self) -> None:
        server = self.backend(confirm())
        names: list[str] = []

        def use(address: str) -> None:
            for _ in range(300):
                with dial(address) as client:
                    client.sendall(b"hi\n")
                    read_line(client)
                    names.append("client={}:{} ".format(*client.getsockname()))

        lines = self.through(
            "load_balancer.py",
            [FREE, f"--server={server.address}"],
            use,
            lambda said: said.count(" to_server=") >= 300,
        )
        ended = [line for line in lines if " to_server=" in line]
        self.assertEqual(len(ended), 300)
        for name, line in zip(sorted(names), sorted(ended), strict=True):
            self.assertRegex(line, r"\A\d{4}-.* end=-- \w[\w ]*\Z")
            self.assertTrue(any(name in other for other in ended))

    def test_a_servers_output_that_does_not_block_loses_no_line(self) -> None:
        def use(address: str) -> None:
            for number in range(300):
                send_and_read(address, f"number-{number}-")

        def accounted(said: str) -> int:
            """Return how many messages are shown, or counted where they are not."""
            counted = re.findall(r"(\d+) more messages?", said)
            return said.count(" received: number-") + sum(map(int, counted))

        lines = self.through("server2.py", ["0"], use, lambda t: accounted(t) >= 300)
        self.assertEqual(accounted("\n".join(lines)), 300)
        for line in lines[2:]:
            self.assertRegex(line, r"\A127\.0\.0\.1:\d+ (received|closed): |\d more ")

    def test_a_clients_output_that_does_not_block_loses_no_line(self) -> None:
        server = self.backend(confirm())
        lines = self.through(
            "client2.py",
            [20, "--messages", 20, "--verbose", "--target", server.address],
            lambda _: wait_until(lambda: server.received.count(b"\n") > 80),
            None,
        )
        rows = [line for line in lines if re.match(r" +\d+ +\d+ ", line)]
        pairs = {tuple(row.split()[:2]) for row in rows if " Server " in row}
        self.assertEqual(len(pairs), 400)
        self.assertRegex("\n".join(lines), "(?i)valid|doubtful")

    def through(
        self,
        script: str,
        args: Sequence[object],
        use: Callable[[str], object],
        all_there: Callable[[str], bool] | None,
    ) -> list[str]:
        """Return the lines that it says into a small pipe that does not block.

        The pipe is read after `use(address)` is through: it is full by then. What
        serves is stopped when `all_there(text)`; a client ends by itself.
        """
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        os.set_blocking(writing, False)
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        process = subprocess.Popen(
            script_command(script, args),
            cwd=self.folder, env=script_environment(), stdin=subprocess.DEVNULL,
            stdout=writing, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait, DEADLINE_S)
        self.addCleanup(process.kill)
        said = b""
        while all_there and b"\n" not in said:
            said += self.take(reading, 1)
        match = LISTENING.search(said.decode())
        if match:
            fill(writing)
        os.close(writing)
        use(":".join(match.groups()) if match else "")
        while data := self.take(reading, 65536):
            said += data
            if all_there and all_there(said.decode("utf-8", "replace")):
                process.terminate()
                all_there = None
        self.assertEqual(process.wait(DEADLINE_S), 0, process.stderr.read())
        return said.decode().replace("#", "").splitlines()

    def take(self, reading: int, size: int) -> bytes:
        """Return what a pipe has within the deadline, b"" at its end."""
        if not select.select([reading], [], [], DEADLINE_S)[0]:
            self.fail("lines are missing: nothing more comes, and it does not end")
        return os.read(reading, size)


# ---- Characters --------------------------------------------------------------------

NARROW: dict[str, dict[str, str]] = {
    "ascii, by the locale": {
        "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"
    },
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "cp437": {"PYTHONIOENCODING": "cp437"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
}  # fmt: skip


class Characters(ScriptTestCase):
    """Where a character cannot be shown, ASCII stands in its place, never "?"."""

    takes_long = True

    def said(self, env: Mapping[str, str], encoding: str) -> dict[str, str]:
        """Return what the demo, a server and a balancer say with these variables."""
        demo = self.client(9, "--demo", "--messages", 40, env=env)
        self.assertEqual(demo.returncode, 0, demo)
        server = self.start("server2.py", "0", env=env)
        balancer = self.start(
            "load_balancer.py", FREE, f"--server={server.address}",
            "--status=127.0.0.1:0", env=env,
        )  # fmt: skip
        send_and_read(balancer.address, "hi")
        send_and_read(server.address, "a tick: ✓")
        running: list[Running] = [balancer, server]
        texts = {"client2.py": demo.stdout + demo.stderr}
        for script in running:
            self.assertEqual(script.stop(), 0)
            texts[script.script] = script.stdout_text() + script.stderr_text()
        for name, text in texts.items():
            data = text.encode("utf-8", "surrogateescape")
            texts[name] = data.decode(encoding)
        return texts

    def test_a_narrow_encoding_gets_ascii_and_no_question_marks(self) -> None:
        for name, env in NARROW.items():
            encoding = name.partition(",")[0]
            for script, text in self.said(env, encoding).items():
                with self.subTest(name, script=script):
                    # A notice may ask; what stands for a character follows no letter.
                    self.assertNotRegex(text, r"(?<![A-Za-z])\?|\?\S")
                    self.assertNotIn(ESCAPE, text)
                    self.assertTrue(text.isascii() or encoding != "ascii", text)

    def test_a_wide_encoding_gets_the_characters_and_no_escape_sequence(self) -> None:
        for env in ({"PYTHONIOENCODING": "utf-8"}, {"LC_ALL": "C", "PYTHONUTF8": "1"}):
            with self.subTest(env=env):
                texts = self.said(env, "utf-8")
                self.assertFalse(texts["client2.py"].isascii())
                for text in texts.values():
                    self.assertNotIn("?", text)
                    self.assertNotIn(ESCAPE, text)

    def test_help_can_be_read_in_ascii(self) -> None:
        for script in SCRIPTS:
            with self.subTest(script=script):
                result = self.run_script(
                    script, "--help", env={"PYTHONIOENCODING": "ascii"}
                )
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                self.assertTrue(result.stdout.isascii())


# ---- Ports -------------------------------------------------------------------------


class PortsInUse(ScriptTestCase):
    """A port that cannot be had: one line says why and what to type."""

    def test_a_port_in_use_is_one_line_with_the_cause_and_how_to_find_it(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for script, *args in (
                ("server2.py", port),
                ("load_balancer.py", f"--listen=127.0.0.1:{port}"),
                ("load_balancer.py", FREE, f"--status=127.0.0.1:{port}"),
            ):
                with self.subTest(script=script, args=args):
                    result = self.run_script(script, *args)
                    self.assert_one_line(result, 1, "is in use", "earlier")
                    self.assertNotRegex(result.stderr, "(?i)errno|address already")
                    tool = "ss -ltnp" if shutil.which("ss") else "lsof|netstat"
                    self.assertRegex(result.stderr, rf"({tool}).*{port}")

    def test_an_address_that_cannot_be_had_is_one_plain_line(self) -> None:
        for script, *args in (
            ("server2.py", 0, "--host=192.0.2.1"),
            ("load_balancer.py", "--listen=192.0.2.1:0"),
        ):
            with self.subTest(script=script):
                result = self.run_script(script, *args)
                self.assertIn(result.returncode, (1, 2))
                self.assert_one_line(result, result.returncode, "192.0.2.1")
                self.assertNotRegex(result.stderr, "(?i)errno|cannot assign")

    @unittest.skipIf(
        not hasattr(os, "geteuid") or os.geteuid() == 0, "needs an ordinary user"
    )
    def test_a_privileged_port_is_one_plain_line(self) -> None:
        try:
            socket.create_server(("127.0.0.1", 81)).close()
        except PermissionError:
            pass
        except OSError:
            self.skipTest("port 81 is in use")
        else:
            self.skipTest("this system lets everybody have port 81")
        where = {"server2.py": "81", "load_balancer.py": "--listen=127.0.0.1:81"}
        for script, arg in where.items():
            with self.subTest(script=script):
                result = self.run_script(script, arg)
                self.assertIn(result.returncode, (1, 2))
                self.assert_one_line(result, result.returncode, "81")
                self.assertNotRegex(result.stderr, "(?i)errno|permission denied")


# ---- Names -------------------------------------------------------------------------

# In namespaces of its own, where 127.0.0.1:53 hears every question and answers none:
# start the script, press Ctrl-C when the first question has come, tell how it ended.
SILENT_RESOLVER = """
import fcntl, json, os, signal, socket, struct, subprocess, sys, time
up = struct.pack("16sh", b"lo", 0x49)  # IFF_UP, IFF_LOOPBACK, IFF_RUNNING
resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(resolver, 0x8914, up)  # SIOCSIFFLAGS, netdevice(7)
resolver.bind(("127.0.0.1", 53))
resolver.settimeout(30)
script = subprocess.Popen(
    sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT, text=True, start_new_session=True)
try:
    resolver.recv(512)
    os.killpg(script.pid, signal.SIGINT)
    began = time.monotonic()
    try:
        said, _ = script.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        said = "nothing"
    print(json.dumps([script.returncode, time.monotonic() - began, said]))
finally:
    script.kill()
"""
MOUNT = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
ANSWER_TIMEOUT_S = 30  # the most that resolv.conf(5) takes


@unittest.skipUnless(sys.platform == "linux", "needs namespaces (Linux)")
class SlowNames(ScriptTestCase):
    """Ctrl-C does not wait for a name server."""

    def in_namespaces(self, command: Sequence[str]) -> str:
        """Run a command where no name server answers; skip where it cannot be."""
        resolver = self.folder / "resolv.conf"
        resolver.write_text(
            f"nameserver 127.0.0.1\noptions timeout:{ANSWER_TIMEOUT_S} attempts:2\n"
        )
        rights = [] if os.geteuid() == 0 else ["--map-root-user"]
        unshare = ["unshare", *rights, "--mount", "--net", "/bin/sh", "-c", MOUNT]
        try:
            done = subprocess.run(
                [*unshare, str(resolver), *command],
                cwd=self.folder, env=script_environment(), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            self.skipTest("unshare is not installed")
        if done.returncode and "Traceback" not in done.stderr:
            self.skipTest(f"no namespaces here: {done.stderr.strip()}")
        self.assertEqual(done.stderr, "")
        return done.stdout

    def test_ctrl_c_during_a_name_lookup_ends_all_three_at_once(self) -> None:
        self.in_namespaces(["true"])
        for script, *args in (
            ("server2.py", "0", "--host=slow.example"),
            ("load_balancer.py", FREE, "--server=slow.example:9991"),
            ("client2.py", "9", "--target=slow.example:9990"),
        ):
            with self.subTest(script=script):
                command = [sys.executable, "-c", SILENT_RESOLVER]
                told = self.in_namespaces([*command, *script_command(script, args)])
                code, seconds, said = json.loads(told)
                self.assertNotIn("Traceback", said)
                self.assertLess(seconds, ANSWER_TIMEOUT_S / 2)
                # Ended by the signal is 130 to a shell, too.
                expected = (130,) if script == "client2.py" else (0, 130, -2)
                self.assertIn(code, expected)


if __name__ == "__main__":
    unittest.main()
