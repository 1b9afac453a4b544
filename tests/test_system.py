"""The three real scripts together, and what the repository as a whole promises."""

from __future__ import annotations

import ast
import collections
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import unittest
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from tests.support import (
    DEADLINE_S,
    LISTENING,
    LONG,
    ROOT,
    Running,
    ScriptTestCase,
    Visit,
    address_of,
    descriptors,
    dial,
    echo,
    family,
    in_parallel,
    marked_processes,
    memory_kib,
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

SCRIPTS = ("server2.py", "load_balancer.py", "client2.py")
BLOCK = 65536


def blocks(count: int) -> Any:
    """Yield `count` different blocks of 64 KiB, cheaply made."""
    for number in range(count):
        yield number.to_bytes(8, "big") * (BLOCK // 8)


@cache
def options_in_help() -> dict[str, set[str]]:
    """Return the options that each script's `--help` names."""
    found = {}
    for script in SCRIPTS:
        (result,) = run_main(script, [["--help"]], cwd=ROOT)
        found[script] = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", result.stdout))
    return found


class ThreeServers(ScriptTestCase):
    """Client, balancer and three servers, as the README starts them."""

    def system(self, *options: object) -> tuple[list[Running], Running]:
        """Start three servers and a balancer without checks of its own."""
        servers = self.servers(3, "--quiet")
        return servers, self.balancer(*options, servers=servers)

    def measure(self, balancer: Running, *args: object, code: int = 0) -> Any:
        """Run the client and return its `--json` document."""
        result = self.client(
            *args, "--target", balancer.address, "--json", "run.json", timeout=120
        )
        self.assertEqual(result.returncode, code, result)
        return json.loads((self.folder / "run.json").read_text())

    def test_nine_clients_are_shared_out_confirmed_and_logged(self) -> None:
        servers, balancer = self.system()
        document = self.measure(balancer, 9)
        self.assertEqual(document["exchanges"]["confirmed"], 9)
        self.assertEqual(
            {port: row["confirmed"] for port, row in document["servers"].items()},
            {str(server.port): 3 for server in servers},
        )
        wait_until(
            lambda: sum(" - closed: " in line for line in self.log_lines()) == 9,
            what="nine closing lines",
        )
        stories = collections.defaultdict(list)
        for line in self.log_lines():
            _, port, client, event = line.split(" - ", 3)
            stories[port, client].append(event)
        self.assertEqual(len(stories), 9)
        greetings = set()
        for (port, _), story in stories.items():
            greeting = story[1].removeprefix("received: ")
            greetings.add(greeting)
            self.assertEqual(
                story[:3],
                [
                    "connected",
                    f"received: {greeting}",
                    f"replied: Server {port} received: {greeting}",
                ],
            )
            out = 21 + len(f"Server {port} received: ")
            self.assertTrue(
                story[3].startswith(
                    f"closed: by client, 1 message, 21 bytes in, {out} bytes out, "
                ),
                story[3],
            )
        self.assertEqual(greetings, {f"Hello from client {n}!" for n in range(1, 10)})

    def test_the_balancer_logs_one_line_per_connection(self) -> None:
        servers, balancer = self.system("--no-checks")
        for server in servers + servers:  # one after the other: strict order
            with dial(balancer) as client:
                client.sendall(b"Hello\n")
                expected = b"Server %d received: Hello\n" % server.port
                self.assertEqual(read_line(client), expected)
                name = address_of(client.getsockname())
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_to_end(client), b"")
            line = balancer.wait_for_line(re.escape(f"client={name} "))
            self.assertRegex(
                line,
                r"\A\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
                rf"client={re.escape(name)} server={re.escape(server.address)} "
                r"tries=1 connect_ms=\d+(\.\d+)? duration_ms=\d+(\.\d+)? "
                rf"to_server=6 to_client={len(expected)} undelivered=0 end=-- \w",
            )
        pattern = re.compile(" client=")
        self.assertEqual(len(list(filter(pattern.search, balancer.stdout_lines()))), 6)

    def test_a_connection_per_message_is_dealt_out_evenly(self) -> None:
        servers, balancer = self.system("--quiet")
        clients = 1000 if LONG else 100
        document = self.measure(
            balancer, clients, "--messages", 10, "--reconnect", "--timeout", 60
        )
        self.assertEqual(document["exchanges"]["confirmed"], clients * 10)
        third = clients * 10 // 3
        self.assertEqual(
            [document["servers"][str(server.port)]["confirmed"] for server in servers],
            [third + 1, third, third],
        )

    def test_several_workers_and_processes_give_the_same_result(self) -> None:
        servers, balancer = self.system("--quiet", "--workers", 2)
        document = self.measure(
            balancer, 30, "--messages", 10, "--reconnect", "--workers", 2
        )
        self.assertEqual(document["exchanges"]["confirmed"], 300)
        self.assertEqual(
            [document["servers"][str(server.port)]["confirmed"] for server in servers],
            [100, 100, 100],
        )
        text = (self.folder / "server_log.txt").read_text()
        self.assertEqual(text.count(" - received: "), 300)

    def test_a_message_of_64_kib_goes_through_whole(self) -> None:
        _, balancer = self.system()
        document = self.measure(balancer, 3, "--size", 65536)
        self.assertEqual(document["exchanges"]["confirmed"], 3)
        self.assertEqual(document["bytes"]["sent"], 3 * 65536)

    def test_a_client_that_sends_no_newline_is_answered(self) -> None:
        servers, balancer = self.system()
        client = self.dial(balancer)
        client.sendall(b"Hello")
        expected = b"Server %d received: Hello" % servers[0].port
        self.assertEqual(read_exactly(client, len(expected)), expected)

    def test_100000_pipelined_messages_are_confirmed_in_order(self) -> None:
        servers, balancer = self.system("--workers=1")
        before = memory_kib(balancer.pid)
        lines = [b"message %d\n" % number for number in range(100_000)]
        client = self.dial(balancer, timeout=60)
        sender = threading.Thread(
            target=client.sendall, args=(b"".join(lines),), name="sender"
        )
        sender.start()
        prefix = b"Server %d received: " % servers[0].port
        expected = b"".join(prefix + line for line in lines)
        reply = read_exactly(client, len(expected))
        sender.join()
        self.assertTrue(reply == expected, "confirmations differ")
        self.assertLess(memory_kib(balancer.pid) - before, 16 * 1024)
        log = (self.folder / "server_log.txt").read_bytes()
        logged = re.findall(rb" - received: (message \d+\n)", log)
        self.assertTrue(logged == lines, "the log differs")

    def test_a_server_killed_in_mid_run_costs_only_what_it_was_doing(self) -> None:
        servers, balancer = self.system()
        client = self.spawn(
            *("client2.py", 12, "--duration", 60, "--rate", 600, "--reconnect"),
            *("--quiet", "--target", balancer.address, "--json", "run.json"),
        )
        log = self.folder / "server_log.txt"

        def messages(server: Running) -> int:
            """Return how many the server has received."""
            mine = f" - {server.port} - "
            lines = log.read_text().splitlines() if log.exists() else []
            return sum(mine in line and " - received: " in line for line in lines)

        wait_until(lambda: messages(servers[1]) > 40, what="messages at the second")
        servers[1].kill()
        least = messages(servers[1]) + 40
        wait_until(
            lambda: min(messages(servers[index]) for index in (0, 2)) > least,
            what="messages at the others",
        )
        client.signal(signal.SIGINT)
        self.assertEqual(client.wait(60), 130)
        document = json.loads((self.folder / "run.json").read_text())
        self.assertLessEqual(document["exchanges"]["failed"], 12)
        self.assertEqual(document["failures"]["connect"], 0)
        for server in servers:
            row = document["servers"].get(str(server.port), {"confirmed": 0})
            self.assertGreaterEqual(messages(server), row["confirmed"])
        balancer.wait_for_line(f"server=127.0.0.1:{servers[1].port} state=DOWN")

    def test_a_killed_balancer_gives_clients_an_error_not_silence(self) -> None:
        servers, balancer = self.system()
        client = self.spawn(
            *("client2.py", 5, "--duration", 2, "--timeout", 5),
            *("--target", balancer.address, "--json", "run.json"),
        )
        log = self.folder / "server_log.txt"
        wait_until(
            lambda: log.exists() and log.read_text().count("received: ") > 40,
            what="messages under way",
        )
        balancer.kill()
        self.assertEqual(client.wait(30), 1)
        document = json.loads((self.folder / "run.json").read_text())
        self.assertGreaterEqual(document["exchanges"]["failed"], 5)
        self.assertEqual(document["failures"]["timeout"], 0)
        for server in servers:
            with dial(server) as direct:
                direct.sendall(b"still here\n")
                self.assertIn(b"still here", read_line(direct))

    def test_the_servers_log_shows_the_true_client_by_the_proxy_header(self) -> None:
        server = self.start("server2.py", "0", "--accept-proxy", "127.0.0.1/32")
        balancer = self.balancer("--send-proxy", "v1", servers=[server])
        with dial(balancer) as client:
            client.sendall(b"who am I\n")
            read_line(client)
            name = address_of(client.getsockname())
        received = [line for line in self.log_lines() if " - received: who" in line]
        self.assertEqual(len(received), 1)
        self.assertEqual(received[0].split(" - ")[2], name)

    def test_nobody_reading_the_balancers_output_stops_no_connection(self) -> None:
        servers = self.servers(1, "--quiet")
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        with subprocess.Popen(
            script_command(
                "load_balancer.py",
                ["--listen=127.0.0.1:0", f"--server={servers[0].address}"],
            ),
            cwd=self.folder,
            env=script_environment(),
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
        ) as balancer:
            os.close(writing)
            line = os.read(reading, 4096).decode()
            match = LISTENING.match(line)
            assert match, line
            address = f"{match[1]}:{match[2]}"
            try:
                for _ in range(500):  # more lines than a pipe of 64 KiB holds
                    with dial(address) as client:
                        client.sendall(b"hi\n")
                        self.assertIn(b"received: hi\n", read_line(client))
            finally:
                balancer.terminate()
                assert balancer.stderr
                self.assertNotIn(b"Traceback", balancer.stderr.read())
                self.assertEqual(balancer.wait(DEADLINE_S), 0)

    def test_health_checks_leave_no_trace_in_the_servers_log(self) -> None:
        servers = self.servers(1)
        balancer = self.balancer("--check-interval", "0.05", servers=servers)
        with dial(balancer) as client:
            client.sendall(b"one\n")
            read_line(client)
            self.assertFalse(threading.Event().wait(0.5))  # ten checks' time
            client.sendall(b"two\n")
            read_line(client)
        wait_until(lambda: "closed" in self.log_lines()[-1], what="the last line")
        self.assertEqual(len(self.log_lines()), 6, self.log_lines())

    def test_nothing_is_left_of_many_connections(self) -> None:
        servers, balancer = self.system("--quiet", "--no-checks")
        running = [*servers, balancer]
        self.measure(balancer, 6)

        def figures() -> list[int]:
            return [descriptors(script.pid) for script in running]

        def counts() -> list[int]:
            return [
                max(threads(pid) for pid in family(script.pid)) for script in running
            ]

        wait_until(lambda: max(figures()) < 64, what="a quiet system")
        before = figures()
        for _ in range(2):
            clients = [dial(balancer) for _ in range(150)]
            for index, client in enumerate(clients):
                client.sendall((b"", b"half", b"whole\n")[index % 3])
            for index, client in enumerate(clients):
                if index % 6 == 2:
                    self.assertIn(b"whole", read_line(client))
                (send_reset if index % 2 else socket.socket.close)(client)
            wait_until(
                lambda: all(
                    now <= then for now, then in zip(figures(), before, strict=True)
                ),
                what=f"descriptors back to {before}",
            )
            # Each process may keep threads for the next clients: fewer than there were.
            wait_until(lambda: max(counts()) < 75, what="the threads' end")
        self.assertEqual([script.stop() for script in running], [0] * 4)


class ALargeTransfer(ScriptTestCase):
    """Any amount, both ways at once, unaltered, in bounded memory."""

    SIZE = (1 << 30) if LONG else (64 << 20)

    def test_bytes_arrive_unaltered_both_ways_and_memory_stays_flat(self) -> None:
        digests: dict[str, str] = {}
        count = self.SIZE // BLOCK

        def serve(visit: Visit) -> None:
            taken = hashlib.sha256()
            size = 0

            def give() -> None:
                for block in blocks(count):
                    visit.socket.sendall(block)
                visit.socket.shutdown(socket.SHUT_WR)

            giver = threading.Thread(target=give, name="giver")
            giver.start()
            while data := visit.socket.recv(1 << 18):
                taken.update(data)
                size += len(data)
            giver.join()
            digests["at the server"] = f"{size} {taken.hexdigest()}"

        backend = self.backend(serve)
        # One process: others that are forked meanwhile are no memory of a transfer.
        balancer = self.balancer("--no-checks", "--workers=1", servers=[backend])
        client = self.dial(balancer, timeout=60)
        before = memory_kib(balancer.pid)

        def send() -> None:
            for block in blocks(count):
                client.sendall(block)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send, name="sender")
        sender.start()
        taken, size, peak = hashlib.sha256(), 0, before
        while data := client.recv(1 << 18):
            taken.update(data)
            if size // (8 << 20) != (size + len(data)) // (8 << 20):
                peak = max(peak, memory_kib(balancer.pid))
            size += len(data)
        sender.join()
        digests["at the client"] = f"{size} {taken.hexdigest()}"
        backend.visit().done.wait(60)
        expected = hashlib.sha256()
        for block in blocks(count):
            expected.update(block)
        whole = f"{self.SIZE} {expected.hexdigest()}"
        self.assertEqual(digests, {"at the server": whole, "at the client": whole})
        self.assertLess(peak - before, 8 * 1024, "the balancer's memory grew")
        line = balancer.wait_for_line("client=")
        self.assertIn(
            f" to_server={self.SIZE} to_client={self.SIZE} undelivered=0 end=-- ", line
        )

    def test_a_reader_that_pauses_makes_the_sender_wait(self) -> None:
        backend = self.backend(echo, timeout=300)  # a busy machine takes its time
        balancer = self.balancer("--workers=1", servers=[backend])
        client = self.dial(balancer, timeout=3)
        before = memory_kib(balancer.pid)
        sent = hashlib.sha256()
        amount = 0
        supply = blocks(4096)
        client.settimeout(1.5)
        with contextlib.suppress(TimeoutError):
            for block in supply:  # 256 MiB: kernels keep up to 36 MiB on each way
                view = memoryview(block)
                while view:
                    size = client.send(view)
                    sent.update(view[:size])
                    amount += size
                    view = view[size:]
        self.assertLess(amount, 256 << 20, "256 MiB were buffered somewhere")
        self.assertLess(memory_kib(balancer.pid) - before, 8 * 1024)
        client.settimeout(300)
        client.shutdown(socket.SHUT_WR)
        try:
            reply = read_to_end(client)
        except OSError as error:
            line = balancer.wait_for_line("client=")
            self.fail(f"{error} after {amount} bytes: {line}; {backend.visit().error}")
        self.assertEqual(len(reply), amount)
        self.assertEqual(hashlib.sha256(reply).digest(), sent.digest())


class TheDemo(ScriptTestCase):
    """`client2.py N --demo`: the one command of the README."""

    takes_long = True

    def setUp(self) -> None:
        super().setUp()
        self.mark = {"LAB_DEMO": self.folder.name}

    def processes(self) -> list[int]:
        """Return what this test's demos have running: the client and its children."""
        return marked_processes("LAB_DEMO", self.folder.name)

    def check(self, result: subprocess.CompletedProcess[str], folder: Path) -> None:
        """Expect nine confirmed exchanges, three of each server, and their log."""
        self.assertEqual(result.returncode, 0, result)
        document = json.loads((folder / "run.json").read_text())
        self.assertEqual(document["exchanges"]["confirmed"], 9)
        self.assertEqual(
            sorted(row["confirmed"] for row in document["servers"].values()), [3, 3, 3]
        )
        text = (folder / "server_log.txt").read_text()
        for number in range(1, 10):
            self.assertIn(f" - received: Hello from client {number}!\n", text)
            self.assertIn(f"Hello from client {number}!", result.stdout)
        self.assertEqual(result.stderr, "")

    def test_it_runs_from_any_folder_also_side_by_side(self) -> None:
        folders = [self.folder / name for name in ("one", "two folders", "drei-é")]
        for folder in folders:
            folder.mkdir()
        args = (9, "--demo", "--json", "run.json")
        results = in_parallel(
            *(
                partial(self.client, *args, cwd=folder, env=self.mark)
                for folder in folders
            )
        )
        self.assertEqual(self.processes(), [])
        for result, folder in zip(results, folders, strict=True):
            self.check(result, folder)

    def test_it_runs_while_the_usual_ports_are_taken(self) -> None:
        with contextlib.ExitStack() as stack:
            for port in (9990, 9991, 9992, 9993):
                holder = stack.enter_context(socket.socket())
                with contextlib.suppress(OSError):  # somebody else holds it already
                    holder.bind(("127.0.0.1", port))
                    holder.listen()
            result = self.client(9, "--demo", "--json", "run.json")
        self.check(result, self.folder)

    def test_it_runs_copied_elsewhere_without_the_repository(self) -> None:
        copies = self.folder / "copies"
        copies.mkdir()
        for script in SCRIPTS:
            shutil.copy(ROOT / script, copies)
        result = subprocess.run(
            [sys.executable, copies / "client2.py", "9", "--demo", "--json=run.json"],
            cwd=self.folder,
            env=script_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(result.stderr, "")
        self.check(result, self.folder)

    def under_way(self, demo: Running, log: Path) -> bool:
        """Tell whether messages flow, or the demo ended instead."""
        flows = log.exists() and log.read_text().count("received: ") > 20
        return flows or demo.returncode is not None

    def test_no_child_is_left_however_it_ends(self) -> None:
        ends: dict[str, Callable[[Running], object]] = {
            "Ctrl-C in a terminal": lambda demo: demo.signal_group(signal.SIGINT),
            "SIGINT": lambda demo: demo.signal(signal.SIGINT),
            "SIGTERM": lambda demo: demo.signal(signal.SIGTERM),
            "SIGKILL": lambda demo: demo.kill(),
        }
        codes = {}
        for name, end in ends.items():
            folder = self.folder / name
            folder.mkdir()
            demo = self.spawn(
                *("client2.py", 3, "--demo", "--duration", 60),
                cwd=folder,
                env=self.mark,
            )
            log = folder / "server_log.txt"
            wait_until(partial(self.under_way, demo, log), what="a demo under way")
            self.assertIsNone(demo.returncode, demo.stderr_text())
            self.assertGreaterEqual(len(self.processes()), 5, name)
            end(demo)
            codes[name] = demo.wait(20)
            if name == "SIGKILL":  # nobody could wait for them: soon is enough
                wait_until(lambda: not self.processes(), what="the children's end")
            self.assertEqual(self.processes(), [], name)
        self.assertEqual(codes["Ctrl-C in a terminal"], 130)
        self.assertEqual(codes["SIGINT"], 130)
        self.assertNotEqual(codes["SIGTERM"], 0)

    def test_a_demo_that_cannot_start_says_why_and_leaves_nothing(self) -> None:
        (self.folder / "server_log.txt").mkdir()
        result = self.client(9, "--demo")
        self.assertIn(result.returncode, (1, 2), result)
        self.assertIn("server_log.txt", result.stderr)
        self.assertNotIn("Traceback", result.stderr)


class TheRepository(ScriptTestCase):
    """Three standalone scripts, and nothing else at the top."""

    def tree(self, script: str) -> ast.Module:
        return ast.parse((ROOT / script).read_text("utf-8"))

    def test_scripts_import_only_the_standard_library(self) -> None:
        for script in SCRIPTS:
            names = set()
            for node in ast.walk(self.tree(script)):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    self.assertEqual(node.level, 0)
                    names.add((node.module or "").partition(".")[0])
            self.assertEqual(names - sys.stdlib_module_names, set(), script)
            self.assertNotIn("asyncio", names)

    def test_shared_helpers_have_the_same_body_everywhere(self) -> None:
        found = collections.defaultdict(set)
        for script in SCRIPTS:
            source = (ROOT / script).read_text("utf-8")
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    lines = source.split("\n")[node.lineno - 1 : node.end_lineno]
                    found[node.name].add("\n".join(lines))
        shared = "Parser parse_address format_address usable_cores say_why"
        shared += " unacknowledged raise_descriptor_limit do_not_preempt who_listens"
        shared += " open_missing_streams has_terminal ignores_hangups"
        for name in shared.split():
            self.assertEqual(len(found[name]), 1, name)

    def test_importing_a_script_starts_nothing(self) -> None:
        probe = (
            "import os, signal, sys, threading\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            "sys.dont_write_bytecode = True\n"
            "handlers = [signal.getsignal(n) for n in (2, 15)]\n"
            "opened = os.listdir('/proc/self/fd') if os.path.exists('/proc') else 0\n"
            "import client2, load_balancer, server2\n"
            "assert threading.active_count() == 1\n"
            "assert [signal.getsignal(n) for n in (2, 15)] == handlers\n"
            "now = os.listdir('/proc/self/fd') if os.path.exists('/proc') else 0\n"
            "assert now == opened, (now, opened)\n"
            "for script in (client2, load_balancer, server2):\n"
            "    assert callable(script.main)\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", probe],
            cwd=self.folder,
            env=script_environment() | {"PYTHONPATH": ""},  # it reads /proc itself
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual((result.stdout, result.stderr), ("", ""))
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_main_takes_arguments_and_reports_bad_ones_by_code_2(self) -> None:
        for script in SCRIPTS:
            (result,) = run_main(script, [["--no-such-option"]], cwd=self.folder)
            self.assert_one_line(result, 2)

    def test_every_option_of_the_contract_is_in_help(self) -> None:
        contract = {
            "server2.py": "--host --log --fsync --max-message --message-pause "
            "--idle-timeout --max-connections --delay --accept-proxy --quiet --fault",
            "load_balancer.py": "--listen --server --algorithm --check-interval --rise "
            "--fall --check-timeout --no-checks --connect-timeout --idle-timeout "
            "--half-close-timeout --grace --queue-timeout --max-connections --allow "
            "--accept-proxy --send-proxy --workers --status --log --quiet",
            "client2.py": "--target --messages --duration --rate --ramp --message "
            "--size --reconnect --timeout --any-reply --workers --json --csv --report "
            "--merge --baseline --direct --fail-if --verbose --quiet --demo",
        }
        helps = options_in_help()
        for script, options in contract.items():
            self.assertEqual(set(options.split()) - helps[script], set(), script)

    def test_readme_and_help_name_the_same_options(self) -> None:
        readme = (ROOT / "README.md").read_text("utf-8")
        own = {"--help"}
        of_tests = {"--seconds", "--seed", "--quick", "--json", "--profile", "--table"}
        known = set().union(*options_in_help().values())
        named: set[str] = set()
        for line in readme.splitlines():
            # A line about another program's command may name its options.
            if not re.search(r"\b(git|haproxy|nginx|redis|iperf3|apt|docker)\b", line):
                named |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line))
        self.assertEqual(named - known - of_tests, set(), "in README, not in --help")
        self.assertEqual(known - named - own, set(), "in --help, not in README")

    def test_nothing_else_lies_at_the_top(self) -> None:
        if not (shutil.which("git") and (ROOT / ".git").exists()):
            self.skipTest("needs git and a checkout")
        listed = subprocess.run(
            ["git", "-C", ROOT, "ls-files"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout.split()
        top = {Path(name).parts[0] for name in listed}
        allowed = {*SCRIPTS, "server_log.txt", "README.md", "tests"}
        self.assertEqual({name for name in top if name[0] != "."} - allowed, set())

    def test_no_test_waits_by_a_bare_sleep(self) -> None:
        offenders = []
        for path in sorted(Path(ROOT, "tests").rglob("test_*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                called = node.func if isinstance(node, ast.Call) else None
                if isinstance(called, ast.Attribute | ast.Name):
                    name = getattr(called, "attr", getattr(called, "id", ""))
                    if name == "sleep":
                        offenders.append(f"{path.name}:{called.lineno}")
        self.assertEqual(offenders, [])


if __name__ == "__main__":
    unittest.main()
