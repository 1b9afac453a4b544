"""load_balancer.py: what people who run balancers ask for.

Written from the contract alone, and against real programs where there are any: Redis,
HAProxy, systemd. Those that are not installed are skipped by name.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.balancer import (
    SAME_ORIGIN,
    BalancerTestCase,
    Ending,
    changes,
    command,
    endings,
    figures,
    local_address,
    server_figures,
    status_address,
    wait_for_endings,
    wait_for_states,
)
from tests.interop.support import ProgramTestCase, needs
from tests.support import (
    ROOT,
    Behaviour,
    Running,
    ScriptTestCase,
    Target,
    Visit,
    accept_then_close,
    address_of,
    banner,
    black_hole,
    cpu_s,
    dial,
    echo,
    family,
    free_port,
    http_request,
    in_parallel,
    is_reset,
    read_exactly,
    read_line,
    refusing_address,
    run_main,
    script_command,
    silent,
    sink,
    wait_until,
)
from tests.test_load_balancer_faults import Namespace, Surrounded

FAST = ("--check-interval=0.1", "--rise=1", "--fall=1", "--check-timeout=1")
HAPROXY = """
global
    log stdout format raw local0
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout check 10s
    retries 0
frontend front
    bind 127.0.0.1:{port}
    default_backend balancers
backend balancers
    balance roundrobin
    option httpchk GET /healthz
    default-server inter 100ms fall 1 rise 1
{servers}
"""


def wait_for_total(balancer: Running, count: int) -> None:
    """Wait until a balancer has had more connections than that."""
    wait_until(
        lambda: figures(balancer)["connections"]["total"] > count,
        what=f"more than {count} connections",
    )


class Gate:
    """A server at a port of its own that can go away and come back.

    While it is away its port refuses, and nobody else can take it.
    """

    def __init__(self, host: str = "127.0.0.1", greeting: bytes = b".") -> None:
        """Take a port; refuse connections until `open`."""
        self._greeting = greeting
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind((host, 0))
        self.address = address_of(self._holder.getsockname())
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._live: list[socket.socket] = []

    def open(self) -> None:
        """Listen: greet each client, then echo."""
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(self._holder.getsockname())
        self._listener.listen(512)
        self._start(self._accept, self._listener)

    def shut(self) -> None:
        """Refuse connections from now on; live ones go on."""
        if self._listener:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def close(self) -> None:
        """End all."""
        self.shut()
        for connection in self._live:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        self._holder.close()

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="gate", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = listener.accept()[0]
                connection.settimeout(60)
                self._live.append(connection)
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(self._greeting)
            while data := connection.recv(65536):
                connection.sendall(data)


class Asked(BalancerTestCase):
    """What the classes below share."""

    def gate(self, host: str = "127.0.0.1", greeting: bytes = b".") -> Gate:
        """Make a `Gate` that ends with the test."""
        gate = Gate(host, greeting)
        self.addCleanup(gate.close)
        return gate

    def ending_of(self, balancer: Running, client: socket.socket) -> Ending:
        """Return the closing line of a connection."""
        return self.ending(balancer, local_address(client))

    def wait_for_state(self, balancer: Running, server: Target, state: str) -> None:
        """Wait until a server is UP, DOWN, DRAIN or MAINT."""
        wait_until(
            lambda: server_figures(balancer, server)["state"] == state, what=state
        )

    def wait_for_check(self, balancer: Running, server: Target, words: str) -> None:
        """Wait until the last check of a server said so."""
        wait_until(
            lambda: words in server_figures(balancer, server)["last_check"], what=words
        )

    def wait_for_active(self, balancer: Running, count: int) -> None:
        """Wait until so many connections are there."""
        wait_until(
            lambda: figures(balancer)["connections"]["active"] == count,
            what=f"{count} connections",
        )


# ---- 1: checks that speak --------------------------------------------------------


class ChecksThatSpeak(Asked):
    """A server is UP when it answers what is expected, not when it can be reached."""

    def check(
        self, behaviour: Behaviour, *options: str, state: str, reason: str = "."
    ) -> str:
        """Expect a state of a server of this behaviour; return the reason for it."""
        backend = self.backend(behaviour)
        balancer = self.balance([backend], *FAST, *options, checks=True)
        if state == "UP":
            seen = backend.total
            wait_until(lambda: backend.total >= seen + 4, what="four checks")
            self.assertEqual(changes(balancer.stdout_lines()), [])
            self.assertEqual(server_figures(balancer, backend)["state"], "UP")
            return ""
        change = wait_for_states(balancer, backend, state)[0]
        self.assertEqual(change.state, state)
        self.assertRegex(change.reason, reason)
        return change.reason

    def test_greeting_is_waited_for(self) -> None:
        greeting = banner(b"220 mail.example ESMTP\r\n")
        self.check(greeting, "--check-expect=220 ", state="UP")
        self.check(greeting, r"--check-expect=ESMTP\r\n", state="UP")
        self.check(greeting, "--check-expect=221 ", state="DOWN", reason="220 mail")

    def test_reason_says_what_came_instead(self) -> None:
        refusal = banner(b"554 no service today\r\n")
        reason = self.check(refusal, "--check-expect=220 ", state="DOWN")
        self.assertIn("554 no service today", reason)

    def test_reason_has_forty_printable_bytes_at_most(self) -> None:
        noise = banner(b'\x1b[31m"\n\0\xff' + b"A" * 5000)
        reason = self.check(noise, "--check-expect=220 ", state="DOWN")
        self.assertRegex(reason, "A{10}")
        self.assertNotRegex(reason, "A{41}")
        self.assertTrue(reason.isprintable(), reason)

    def test_silent_server_goes_down_at_the_timeout(self) -> None:
        reason = self.check(
            silent, "--check-expect=220 ", "--check-timeout=0.3", state="DOWN"
        )
        self.assertTrue(reason)
        self.check(silent, state="UP")

    def test_server_that_closes_without_an_answer_goes_down(self) -> None:
        self.check(accept_then_close, "--check-expect=220 ", state="DOWN")

    def test_what_is_sent_has_its_escapes_and_the_answer_may_come_in_pieces(
        self,
    ) -> None:
        seen: list[bytes] = []

        def behave(visit: Visit) -> None:
            seen.append(read_exactly(visit.socket, 9))
            for piece in (b"well ", b"+P", b"ON", b"G\x00", b"\xff"):
                visit.send(piece)
                visit.pause(0.02)
            sink(visit)

        self.check(
            behave,
            r"--check-send=a\x00\xFF\\n\t\r\nz",
            r"--check-expect=+PONG\x00\xff",
            state="UP",
        )
        self.assertEqual(set(seen), {b"a\x00\xff\\n\t\r\nz"})

    def test_server_that_talks_without_end_has_the_timeout_in_all(self) -> None:
        def drip(visit: Visit) -> None:
            with contextlib.suppress(OSError):
                while not visit.pause(0.1):
                    visit.send(b"never what is wanted ")

        start = time.monotonic()
        self.check(drip, "--check-expect=220 ", state="DOWN")
        self.assertLess(time.monotonic() - start, 15)

    def test_expected_bytes_after_very_many_others_are_found_or_the_check_ends(
        self,
    ) -> None:
        def flood(visit: Visit) -> None:
            with contextlib.suppress(OSError):
                while not visit.backend.closing.is_set():
                    visit.send(b"x" * 65536)

        self.check(flood, "--check-expect=220 ", state="DOWN")

    def test_check_may_ask_another_port(self) -> None:
        served, asked = self.backend(banner(b".")), self.gate()
        asked.open()
        port = asked.address.rpartition(":")[2]
        for where in (port, asked.address):
            with self.subTest(where):
                asked.shut()
                asked.open()
                before = served.total
                server = f"{served.address},check={where}"
                balancer = self.balance([server], *FAST, checks=True)
                self.wait_for_check(balancer, served, "connected")
                self.assertEqual(served.total, before, "its own port was checked")
                asked.shut()
                change = wait_for_states(balancer, served, "DOWN")[0]
                self.assertEqual(change.server, served.address)
                asked.open()
                wait_for_states(balancer, served, "DOWN", "UP")
                with dial(balancer) as client:
                    self.assertEqual(client.recv(1), b".")
                balancer.stop()

    def test_check_of_another_host_gets_no_proxy_header(self) -> None:
        asked = self.backend(sink, host="127.0.0.2")
        for version in ("v1", "v2"):
            with self.subTest(version):
                server = f"{self.backend(echo).address},check={asked.address}"
                before = asked.total
                self.balance([server], *FAST, f"--send-proxy={version}", checks=True)
                visit = asked.visit(before)
                self.assertTrue(visit.done.wait(30))
                self.assertEqual((bytes(visit.received), visit.end), (b"", "eof"))

    def test_bad_escapes_and_ports_are_named(self) -> None:
        listen = "--listen=127.0.0.1:0"
        cases = [
            ("--check-send", listen, r"--check-send=\q"),
            ("--check-expect", listen, r"--check-expect=\x4"),
            ("--check-expect", listen, "--check-expect=end\\"),
            ("check", listen, "--server=127.0.0.1:1,check="),
            ("check", listen, "--server=127.0.0.1:1,check=0"),
            ("check", listen, "--server=127.0.0.1:1,check=a..b:80"),
            ("check", listen, "--server=127.0.0.1:1,check=65536"),
            ("check", listen, "--server=127.0.0.1:1,check=there:x"),
        ]
        results = run_main(
            "load_balancer.py", [case for _, *case in cases], cwd=self.folder
        )
        for (word, *case), result in zip(cases, results, strict=True):
            with self.subTest(case):
                self.assert_one_line(result, 2, word)

    def test_http_server_is_asked_for_its_health(self) -> None:
        answers = [200]

        class Health(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(answers[0] if self.path == "/health" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        where = address_of(("127.0.0.1", server.server_port))
        balancer = self.balance(
            [where],
            *FAST,
            r"--check-send=GET /health HTTP/1.0\r\n\r\n",
            "--check-expect= 200 ",
            checks=True,
        )
        self.wait_for_state(balancer, where, "UP")
        answers[0] = 503
        change = wait_for_states(balancer, where, "DOWN")[0]
        self.assertIn("503", change.reason)
        answers[0] = 200
        wait_for_states(balancer, where, "DOWN", "UP")


class ChecksThatSpeakWithTwoWorkers(ChecksThatSpeak):
    """The same, through two processes."""

    WORKERS = 2


class ChecksOfRedis(ProgramTestCase):
    """A Redis that hangs is DOWN, which a connect never notices."""

    def test_stopped_redis_goes_down_and_comes_back(self) -> None:
        needs("redis-server")
        port = free_port()
        redis = self.program(
            "redis-server",
            *("--port", port, "--bind", "127.0.0.1", "--save", ""),
            *("--appendonly", "no", "--dir", self.folder),
            listens=port,
        )
        self.addCleanup(redis_continue := functools.partial(continue_, redis.pid))
        where = f"127.0.0.1:{port}"
        options = ["--check-interval=0.1", "--check-timeout=2", "--fall=2", "--rise=2"]
        speaks = self.balance(
            [where],
            *options,
            r"--check-send=PING\r\n",
            "--check-expect=+PONG",
            checks=True,
        )
        connects = self.balance([where], *options, checks=True)
        with dial(speaks) as client:
            client.sendall(b"PING\r\n")
            self.assertEqual(read_line(client), b"+PONG\r\n")

        os.kill(redis.pid, signal.SIGSTOP)
        wait_for_states(speaks, where, "DOWN")
        self.assertEqual(changes(connects.stdout_lines()), [])
        redis_continue()
        wait_for_states(speaks, where, "DOWN", "UP")
        with dial(speaks) as client:
            client.sendall(b"PING\r\n")
            self.assertEqual(read_line(client), b"+PONG\r\n")


def continue_(pid: int) -> None:
    """Let a stopped process go on."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


# ---- 2: names that do not resolve at the start -----------------------------------


class NamesAtTheStart(Surrounded):
    """A name without an address is a server that is DOWN until it has one."""

    def test_name_without_an_address_is_down_and_comes_in_later(self) -> None:
        one = self.backend(banner(b"1"))
        two = self.backend(banner(b"2"))
        self.name("lab")
        balancer = self.run_before(f"lab.test:{one.port}", two.address)
        balancer.wait_for_line("cannot resolve")
        servers = figures(balancer)["servers"]
        states = sorted(server["state"] for server in servers)
        self.assertEqual(states, ["DOWN", "UP"], servers)
        down = next(s for s in servers if s["state"] == "DOWN")
        self.assertIn("cannot resolve", down["last_check"])
        for _ in range(4):
            with dial(balancer) as client:
                self.assertEqual(client.recv(1), b"2")
        self.name("lab", "127.0.0.1")

        def answers() -> set[bytes]:
            found = set()
            for _ in range(2):
                with dial(balancer) as client:
                    found.add(client.recv(1))
            return found

        wait_until(lambda: answers() == {b"1", b"2"}, what="both to serve")
        self.assertEqual(self.addresses(balancer), {one.address, two.address})

    def test_only_name_without_an_address_starts_all_the_same(self) -> None:
        one = self.backend(banner(b"1"))
        self.name("lab")
        balancer = self.run_before(
            f"lab.test:{one.port}", options=(*self.FAST, "--hold=30")
        )
        status = status_address(balancer)
        self.assertEqual(http_request(status, "/healthz")[0], 503)
        client = self.dial(balancer)
        self.name("lab", "127.0.0.1")
        self.assertEqual(client.recv(1), b"1")
        wait_until(lambda: http_request(status, "/healthz")[0] == 200, what="200")

    def test_name_without_an_address_and_without_checks(self) -> None:
        one = self.backend(banner(b"1"))
        self.name("lab")
        options = ("--no-checks", "--check-interval=0.1", "--hold=30")
        balancer = self.run_before(f"lab.test:{one.port}", options=options)
        balancer.wait_for_line("cannot resolve")
        client = self.dial(balancer)
        self.name("lab", "127.0.0.1")
        self.assertEqual(client.recv(1), b"1")

    def test_two_names_with_one_address_are_one_server(self) -> None:
        one = self.backend(banner(b"1"))
        self.name("lab", "127.0.0.1")
        self.name("other", "127.0.0.1")
        balancer = self.run_before(
            f"lab.test:{one.port},weight=5,max=7", f"other.test:{one.port},weight=2"
        )
        servers = figures(balancer)["servers"]
        found = [(s["address"], s["weight"], s["max"]) for s in servers]
        self.assertEqual(found, [(one.address, 5, 7)])
        wait_until(
            lambda: "other.test" in balancer.stdout_text() + balancer.stderr_text(),
            what="a line that says so",
        )


    def test_name_that_comes_to_anothers_address_is_left_out_with_one_line(
        self,
    ) -> None:
        one = self.backend(banner(b"1"))
        self.name("lab", "127.0.0.1")
        self.name("other")
        balancer = self.run_before(f"lab.test:{one.port}", f"other.test:{one.port}")
        self.name("other", "127.0.0.1")
        said = rf"other\.test:{one.port}: {one.address} is a server already"
        balancer.wait_for_line(said)
        seen = one.total
        wait_until(lambda: one.total >= seen + 10, what="ten checks")
        lines = [line for line in balancer.stdout_lines() if "already" in line]
        self.assertEqual(len(lines), 1, lines)
        listed = [server["address"] for server in figures(balancer)["servers"]]
        self.assertEqual(listed, [one.address])


class NamesAtTheStartWithTwoWorkers(NamesAtTheStart):
    """The same, through two processes."""

    WORKERS = 2


# ---- 3: nobody UP for a moment ---------------------------------------------------


class Hold(Asked):
    """A client for whom every server has failed waits for the first that is there."""

    def exchange(self, balancer: Running) -> bytes:
        """Make one connection from open to close; return what came."""
        with dial(balancer) as client:
            client.sendall(b"hello")
            answer = read_exactly(client, 6)
            client.shutdown(socket.SHUT_WR)
            return answer + client.recv(1)

    def test_restart_of_the_only_server_fails_nobody(self) -> None:
        for checks in (False, True):
            with self.subTest(checks=checks):
                gate = self.gate()
                balancer = self.balance(
                    [gate.address], "--hold=20", "--check-interval=0.2", checks=checks
                )

                def loop(balancer: Running = balancer) -> set[bytes]:
                    return {self.exchange(balancer) for _ in range(3)}

                def reopen(gate: Gate = gate) -> set[bytes]:
                    threading.Event().wait(1)
                    gate.open()
                    return set()

                results = in_parallel(reopen, *[loop] * 50)
                self.assertEqual(set().union(*results), {b".hello"})
                ends = wait_for_endings(balancer, 150)
                self.assertEqual({end.code for end in ends}, {"--"})

    def test_default_is_three_seconds_of_patience(self) -> None:
        gate = self.gate()
        balancer = self.balance([gate.address])
        client = self.dial(balancer)
        threading.Event().wait(0.7)
        gate.open()
        self.assertEqual(client.recv(1), b".")

    def test_held_client_tries_again_once_a_second_whoever_else_comes(self) -> None:
        with refusing_address() as nobody:
            balancer = self.balance([nobody], "--hold=5", "--max-connections=1000")
            client = self.dial(balancer)
            self.wait_for_active(balancer, 1)
            crowd = [self.dial(balancer) for _ in range(100)]
            self.wait_for_active(balancer, 101)
            with contextlib.suppress(ConnectionError):
                self.assertEqual(client.recv(1), b"")
            self.assertLessEqual(self.ending_of(balancer, client).tries, 8)
            for other in crowd:
                other.close()

    def test_time_is_anew_for_each_outage(self) -> None:
        backend = self.backend(banner(b"."))
        balancer = self.balance([f"{backend.address},max=1"], "--hold=2")
        holder = self.dial(balancer)
        self.assertEqual(holder.recv(1), b".")
        waiter = self.dial(balancer)

        def queued() -> bool:
            return bool(figures(balancer)["connections"]["queued"])

        wait_until(queued, what="one in the queue")
        for word, seconds in (("drain", 0.3), ("ready", 2.5), ("drain", 0.3)):
            command(balancer, backend, word)
            threading.Event().wait(seconds)
        command(balancer, backend, "ready")
        holder.close()
        self.assertEqual(waiter.recv(1), b".")

    def test_client_in_the_queue_tries_again_what_has_failed(self) -> None:
        gate, full = self.gate(), self.backend(banner(b"2"))
        # Without checks, which would tell of the gate's opening, too.
        options = ["--fall=1000", "--rise=1", "--queue-timeout=60"]
        servers = [gate.address, f"{full.address},max=1"]
        balancer = self.balance(servers, *options)
        clients = [self.dial(balancer)]
        self.assertEqual(clients[0].recv(1), b"2")
        clients.append(self.dial(balancer))

        def queued() -> bool:
            return bool(figures(balancer)["connections"]["queued"])

        wait_until(queued, what="one in the queue")
        gate.open()
        self.assertEqual(clients[1].recv(1), b".")

    def test_client_is_ended_after_that_time(self) -> None:
        for checks in (False, True):
            with self.subTest(checks=checks), refusing_address() as nobody:
                balancer = self.balance([nobody], "--hold=1.5", checks=checks)
                client = self.dial(balancer)
                with contextlib.suppress(ConnectionError):
                    self.assertEqual(client.recv(1), b"")
                ending = self.ending_of(balancer, client)
                self.assertEqual((ending.code, ending.to_client), ("SC", 0))
                self.assertGreaterEqual(ending.duration_ms, 1400)
                self.assertGreater(ending.tries, 1)

    def test_hold_0_ends_it_at_once(self) -> None:
        with refusing_address() as one, refusing_address() as two:
            balancer = self.balance([one, two], "--hold=0")
            client = self.dial(balancer)
            with contextlib.suppress(ConnectionError):
                self.assertEqual(client.recv(1), b"")
            ending = self.ending_of(balancer, client)
        self.assertEqual((ending.code, ending.tries), ("SC", 2))
        self.assertLess(ending.duration_ms, 2500)  # the default holds it for 3 s

    def test_client_that_leaves_meanwhile_is_noticed(self) -> None:
        with refusing_address() as nobody:
            balancer = self.balance([nobody], "--hold=300")
            for reset in (False, True):
                with self.subTest(reset=reset):
                    client = self.dial(balancer)
                    name = local_address(client)
                    self.wait_for_active(balancer, 1)
                    if reset:
                        client.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                        )
                    client.close()
                    ending = self.ending(balancer, name)
                    self.assertRegex(ending.code, r"\AC[CQ]\Z")

        def at_rest() -> bool:
            connections = figures(balancer)["connections"]
            return (connections["active"], connections["queued"]) == (0, 0)

        wait_until(at_rest, what="no connection left")

    def test_client_that_half_closed_is_served_whole(self) -> None:
        gate = self.gate()
        balancer = self.balance([gate.address], "--hold=30")
        client = self.dial(balancer)
        client.sendall(b"a request and its end")
        client.shutdown(socket.SHUT_WR)
        threading.Event().wait(0.5)
        gate.open()
        self.assertEqual(read_exactly(client, 100), b".a request and its end")

    def test_held_clients_hear_of_the_stop(self) -> None:
        with refusing_address() as nobody:
            balancer = self.balance([nobody], "--hold=300", "--grace=0.5")
            client = self.dial(balancer)
            self.wait_for_active(balancer, 1)
            start = time.monotonic()
            self.assertEqual(balancer.stop(), 0)
            self.assertLess(time.monotonic() - start, 15)
            with contextlib.suppress(ConnectionError):
                self.assertEqual(client.recv(1), b"")
            self.assertRegex(self.ending_of(balancer, client).code, r"\AK[CQ]\Z")

    def test_waiting_costs_nearly_nothing(self) -> None:

        with refusing_address() as nobody:
            balancer = self.balance([nobody], "--hold=300")
            crowd = [self.dial(balancer) for _ in range(50)]
            self.wait_for_active(balancer, 50)
            used = sum(cpu_s(pid) for pid in family(balancer.pid))
            threading.Event().wait(3)
            used = sum(cpu_s(pid) for pid in family(balancer.pid)) - used
            self.assertLess(used, 0.5)
            for client in crowd:
                client.close()

    def test_servers_that_are_drained_are_not_waited_for_past_the_hold(self) -> None:
        backend = self.backend(banner(b"."))
        balancer = self.balance([backend], "--hold=20")
        command(balancer, backend, "drain")
        client = self.dial(balancer)
        self.wait_for_active(balancer, 1)
        command(balancer, backend, "ready")
        self.assertEqual(client.recv(1), b".")

    def test_black_hole_counts_its_connect_timeout(self) -> None:
        with black_hole() as hole:
            options = ("--hold=0.5", "--connect-timeout=0.5")
            balancer = self.balance([hole], *options)
            client = self.dial(balancer)
            with contextlib.suppress(ConnectionError):
                self.assertEqual(client.recv(1), b"")
            ending = self.ending_of(balancer, client)
            self.assertEqual(ending.code, "sC")
            self.assertLess(ending.duration_ms, 10_000)


class HoldWithTwoWorkers(Hold):
    """The same, through two processes."""

    WORKERS = 2


# ---- 4: a server that goes DOWN --------------------------------------------------


class OnDown(Asked):
    """Live connections of a server that goes DOWN stay, or are reset at once."""

    def connect(self, *options: str) -> tuple[Running, Gate, socket.socket]:
        """Return a balancer before a gate, and a client that is being served."""
        gate = self.gate()
        gate.open()
        balancer = self.balance([gate.address], *FAST, *options, checks=True)
        client = self.dial(balancer)
        client.sendall(b"hello")
        self.assertEqual(read_exactly(client, 6), b".hello")
        return balancer, gate, client

    def test_live_connections_stay_by_default(self) -> None:
        for options in ([], ["--on-down=keep"]):
            with self.subTest(options):
                balancer, gate, client = self.connect(*options)
                gate.shut()
                wait_for_states(balancer, gate, "DOWN")
                client.sendall(b"still there?")
                self.assertEqual(read_exactly(client, 12), b"still there?")

    def test_live_connections_are_reset_with_an_end_of_their_own(self) -> None:
        balancer, gate, client = self.connect("--on-down=reset")
        others = [self.dial(balancer) for _ in range(20)]
        for other in others:
            self.assertEqual(other.recv(1), b".")
        gate.shut()
        self.assertTrue(is_reset(client), "a clean end looks like a whole reply")
        for other in others:
            self.assertTrue(is_reset(other))
        wait_for_states(balancer, gate, "DOWN")
        ends = [self.ending_of(balancer, one) for one in (client, *others)]
        codes = {end.code for end in ends}
        self.assertEqual(len(codes), 1, codes)
        ordinary = {"--", "CD", "SD", "cD", "sD", "CL", "cL", "KD", "ID", "RC", "SC"}
        self.assertEqual(codes & ordinary, set())
        self.assertRegex(ends[0].words, r"(?i)\bdown\b")
        self.assertEqual((ends[0].to_server, ends[0].to_client), (5, 6))
        wait_until(
            lambda: server_figures(balancer, gate)["active"] == 0, what="free places"
        )
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        code = codes.pop()
        self.assertTrue(f"`{code}`" in readme, f"README has no {code}")

    def test_connections_to_other_servers_stay(self) -> None:
        gone, stays = self.gate(), self.gate()
        for gate in (gone, stays):
            gate.open()
        balancer = self.balance(
            [gone.address, stays.address], *FAST, "--on-down=reset", checks=True
        )
        clients = [self.dial(balancer) for _ in range(8)]
        for client in clients:
            self.assertEqual(client.recv(1), b".")
        gone.shut()
        wait_for_states(balancer, gone, "DOWN")
        wait_for_endings(balancer, 4)
        alive = 0
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"x")
                alive += client.recv(1) == b"x"
        self.assertEqual(alive, 4)

    def test_drain_and_maintenance_reset_nobody(self) -> None:
        balancer, gate, client = self.connect("--on-down=reset")
        for action in ("drain", "maint"):
            self.assertEqual(command(balancer, gate, action), 200)
            threading.Event().wait(0.3)  # a worker hears of it a moment later
            client.sendall(b"x")
            self.assertEqual(client.recv(1), b"x")

    def test_idle_client_learns_it_though_nothing_moves(self) -> None:
        balancer, gate, client = self.connect("--on-down=reset", "--idle-timeout=0")
        gate.shut()
        with self.assertRaises(ConnectionResetError):
            client.recv(1)
        self.assertTrue(self.ending_of(balancer, client))


    def test_half_closed_client_that_does_not_read_is_reset_too(self) -> None:
        gate = self.gate(greeting=bytes(40_000_000))
        gate.open()
        options = (*FAST, "--on-down=reset")
        balancer = self.balance([gate.address], *options, checks=True)
        client = self.dial(balancer)
        client.sendall(b"x")
        client.shutdown(socket.SHUT_WR)

        def sent() -> int:
            return int(figures(balancer)["bytes"]["to_clients"])

        wait_until(lambda: sent() > 1_000_000, what="a full pipe")
        gate.shut()
        ending = self.ending_of(balancer, client)
        self.assertEqual((ending.code, ending.to_server), ("DD", 1))


class OnDownWithTwoWorkers(OnDown):
    """The same, through two processes."""

    WORKERS = 2


# ---- 5: leaving slowly -----------------------------------------------------------


class StopDelay(ProgramTestCase):
    """A balancer that is to stop says so before it refuses anybody."""

    def test_clients_are_served_while_health_says_that_it_leaves(self) -> None:
        backend = self.backend(banner(b"."))
        balancer = self.balance([backend], "--stop-delay=3")
        status = status_address(balancer)
        self.assertEqual(http_request(status, "/healthz")[0], 200)
        start = time.monotonic()
        balancer.signal(signal.SIGTERM)
        wait_until(lambda: http_request(status, "/healthz")[0] == 503, 2.5, "503")
        with dial(balancer) as client:
            self.assertEqual(client.recv(1), b".")
        self.assertEqual(balancer.wait(), 0)
        self.assertGreater(time.monotonic() - start, 2.8)

    def test_second_signal_ends_it_at_once(self) -> None:
        balancer = self.balance([self.backend(banner(b"."))], "--stop-delay=300")
        status = status_address(balancer)
        balancer.signal(signal.SIGTERM)
        wait_until(lambda: http_request(status, "/healthz")[0] == 503, what="503")
        balancer.signal(signal.SIGTERM)
        self.assertEqual(balancer.wait(), 0)

    def test_without_it_nobody_comes_any_more(self) -> None:
        balancer = self.balance([self.backend(banner(b"."))], "--grace=100")
        holder = self.dial(balancer)
        self.assertEqual(holder.recv(1), b".")
        balancer.signal(signal.SIGTERM)
        balancer.wait_for_line("stopping")

        def refused() -> bool:
            try:
                with dial(balancer) as client:
                    return client.recv(1) == b""
            except (ConnectionRefusedError, ConnectionResetError):
                return True

        wait_until(refused, what="a refusal")
        holder.close()

    def test_rolling_restart_of_two_behind_haproxy_fails_nobody(self) -> None:
        needs("haproxy")
        backend = self.backend(echo)
        places = [(free_port(), free_port()) for _ in range(2)]

        def start(place: tuple[int, int]) -> Running:
            port, status = place
            return self.start(
                "load_balancer.py",
                f"--listen=127.0.0.1:{port}",
                f"--status=127.0.0.1:{status}",
                f"--server={backend.address}",
                "--no-checks",
                "--stop-delay=2",
                f"--workers={self.WORKERS}",
            )

        balancers = [start(place) for place in places]
        lines = [
            f"    server b{port} 127.0.0.1:{port} check port {status}"
            for port, status in places
        ]
        front = free_port()
        path = self.folder / "haproxy.cfg"
        path.write_text(HAPROXY.format(port=front, servers="\n".join(lines)))
        self.program("haproxy", "-db", "-f", path, listens=front)
        over = threading.Event()

        def loop() -> list[str]:
            problems = []
            while not over.is_set():
                try:
                    with dial(("127.0.0.1", front)) as client:
                        client.sendall(b"hello")
                        if (answer := read_exactly(client, 5)) != b"hello":
                            problems.append(f"got {answer!r}")
                except OSError as error:
                    problems.append(repr(error))
            return problems

        def restart() -> list[str]:
            try:
                for index, place in enumerate(places):
                    balancers[index].stop()
                    balancers[index] = fresh = start(place)
                    wait_for_total(fresh, 10)
            finally:
                over.set()
            return []

        results = in_parallel(restart, *[loop] * 4, timeout=120)
        self.assertEqual([problem for result in results for problem in result], [])


class StopDelayWithTwoWorkers(StopDelay):
    """The same, through two processes."""

    WORKERS = 2


# ---- 6: itself as a server -------------------------------------------------------


class Itself(Surrounded):
    """A balancer that would be its own server is refused."""

    def test_own_address_as_a_server_is_refused_at_the_start(self) -> None:
        space = Namespace()  # where nobody else takes the port
        self.addCleanup(space.__exit__)
        space.ip("-n", space.name, "link", "add", "lab0", "type", "veth")
        space.ip("-n", space.name, "link", "set", "lab0", "up")
        local = ("address", "add", "fe80::77/64", "dev", "lab0", "nodad")
        space.ip("-n", space.name, *local)
        port = 20000
        pairs = [
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            ("127.0.0.1", "0.0.0.0"),
            ("0.0.0.0", "127.0.0.5"),
            ("127.0.0.1", "[::ffff:127.0.0.1]"),
            ("127.0.0.1", "127.1"),
            ("[::]", "127.0.0.1"),
            ("[::]", "[::1]"),
            ("[::1]", "[::]"),
            ("[::1]", "[0:0::1]"),
            ("127.0.0.1", "localhost"),
            ("[::]", "[fe80::77%lab0]"),
            ("[fe80::77%lab0]", "[fe80::77%lab0]"),
        ]
        cases: list[tuple[str, ...]] = [
            (f"--listen={listen}:{port}", f"--server={server}:{port}")
            for listen, server in pairs
        ]
        more = ["--listen=127.0.0.1:0", f"--listen=127.0.0.2:{port}"]
        cases.append((*more, "--server=127.0.0.1:9", f"--server=127.0.0.2:{port}"))
        for case in cases:
            with self.subTest(case):
                # One that starts would serve for ever: it is given a time.
                running = self.spawn(
                    "load_balancer.py", "--no-checks", *case, preexec_fn=space.enter
                )
                code = running.wait(20)
                said = running.stderr_text()
                self.assertEqual((code, running.stdout_text()), (2, ""), said)
                self.assertRegex(said, r"\Aload_balancer.py: [^\n]*--server[^\n]*\n\Z")

    def test_same_port_of_another_address_is_another_server(self) -> None:
        backend = self.backend(banner(b"."), host="127.0.0.2")
        balancer = self.start(
            "load_balancer.py",
            f"--listen=127.0.0.1:{backend.port}",
            f"--server={backend.address}",
            "--no-checks",
        )
        with dial(balancer) as client:
            self.assertEqual(client.recv(1), b".")

    def test_name_that_moves_to_itself_is_left_out_with_a_line(self) -> None:
        backend = self.backend(banner(b"."), host="127.0.0.2")
        self.name("lab", "127.0.0.2")
        balancer = self.start(
            "load_balancer.py",
            f"--listen=127.0.0.1:{backend.port}",
            f"--server=lab.test:{backend.port}",
            "--status=127.0.0.1:0",
            f"--workers={self.WORKERS}",
            *self.FAST,
            env={"PYTHONPATH": str(self.folder)},
        )
        self.name("lab", "127.0.0.1", "127.0.0.2")
        mine = f"lab.test:{backend.port}: 127.0.0.1:{backend.port}"
        balancer.wait_for_line(f"{mine} is this balancer itself: left out")
        self.assertEqual(self.addresses(balancer), {backend.address})
        for _ in range(4):
            with dial(balancer) as client:
                self.assertEqual(client.recv(1), b".")


    def test_loop_through_another_balancer_ends_by_its_proxy_header(self) -> None:
        ports = [free_port(), free_port()]
        both = [
            self.start(
                "load_balancer.py",
                f"--listen=127.0.0.1:{own}",
                f"--server=127.0.0.1:{other}",
                "--accept-proxy=127.0.0.0/8",
                "--send-proxy=v1",
                "--no-checks",
                "--hold=0",
                f"--workers={self.WORKERS}",
            )
            for own, other in (ports, reversed(ports))
        ]
        client = self.dial(both[0], 60)
        client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 80\r\n")
        with contextlib.suppress(ConnectionError):
            self.assertEqual(client.recv(1), b"")

        def refused() -> list[str]:
            lines = [line for b in both for line in b.stdout_lines()]
            return [line for line in lines if "end=PC refused: a loop" in line]

        wait_until(refused, what="a loop that is refused")


# ---- 7: several --listen ---------------------------------------------------------


class SeveralListen(Asked):
    """Each --listen has the same servers; the log names it if there are several."""

    def run_at(self, *listen: str, options: Sequence[str] = ()) -> Running:
        """Start a balancer that listens there, before a server that says a byte."""
        self.server = self.backend(banner(b"."))
        return self.start(
            "load_balancer.py",
            *[f"--listen={where}" for where in listen],
            f"--server={self.server.address}",
            "--no-checks",
            "--status=127.0.0.1:0",
            f"--workers={self.WORKERS}",
            *options,
        )

    def lines_of_a_visit(self, balancer: Running, where: Target) -> str:
        """Be served there; return the closing line."""
        with dial(where) as client:
            name = local_address(client)
            self.assertEqual(client.recv(1), b".")
        return balancer.wait_for_line(f" client={re.escape(name)} ")

    def test_each_serves_and_the_log_names_it(self) -> None:
        ports = [free_port() for _ in range(3)]
        places = [f"127.0.0.1:{port}" for port in ports]
        balancer = self.run_at(*places)
        for place in places:
            line = self.lines_of_a_visit(balancer, place)
            named = [other for other in places if other in line]
            self.assertEqual(named, [place], line)
        self.assertEqual(figures(balancer)["connections"]["total"], 3)
        self.assertEqual(balancer.stop(), 0)

    def test_log_names_none_when_there_is_only_one(self) -> None:
        balancer = self.run_at("127.0.0.1:0")
        line = self.lines_of_a_visit(balancer, balancer)
        self.assertNotIn(balancer.address, line)
        endings([line])

    def test_limits_hold_over_all_of_them(self) -> None:
        places = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        balancer = self.run_at(*places, options=["--max-connections=2"])
        one, two = self.dial(places[0]), self.dial(places[1])
        self.assertEqual((one.recv(1), two.recv(1)), (b".", b"."))
        late = [self.dial(place) for place in places]
        late[0].settimeout(0.5)
        with self.assertRaises(TimeoutError):
            late[0].recv(1)
        one.close()
        two.close()
        for client in late:
            client.settimeout(30)
            self.assertEqual(client.recv(1), b".")
        self.assertLessEqual(self.server.peak, 2)
        self.assertEqual(figures(balancer)["connections"]["total"], 4)

    def test_two_of_one_address_are_refused(self) -> None:
        place = f"--listen=127.0.0.1:{free_port()}"
        result = self.run_script("load_balancer.py", place, place, timeout=30)
        self.assert_one_line(result, 2, "--listen: an address is given more than once")

    def test_port_in_use_of_the_second_one_is_named(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            result = self.run_script(
                "load_balancer.py",
                "--listen=127.0.0.1:0",
                f"--listen=127.0.0.1:{port}",
                timeout=30,
            )
        self.assert_one_line(result, 1, str(port))

    def test_colon_and_a_port_are_all_addresses(self) -> None:
        with socket.create_server(("", 0)) as probe:  # free on all of them
            port = probe.getsockname()[1]
        balancer = self.run_at(f":{port}")
        self.lines_of_a_visit(balancer, f"127.0.0.1:{port}")
        if socket.has_dualstack_ipv6():
            self.lines_of_a_visit(balancer, f"[::1]:{port}")

    def test_forms_of_all_ipv6_addresses_are_one(self) -> None:
        if not socket.has_dualstack_ipv6():
            self.skipTest("this system has no listener for IPv4 and IPv6 at once")
        for form in ("[::]", "[::0]", "[0:0:0:0:0:0:0:0]"):
            with self.subTest(form):
                balancer = self.run_at(f"{form}:0")
                port = balancer.port
                self.lines_of_a_visit(balancer, f"127.0.0.1:{port}")
                self.lines_of_a_visit(balancer, f"[::1]:{port}")

    def test_link_local_address_keeps_its_zone(self) -> None:
        with Namespace() as space:
            space.ip("-n", space.name, "link", "add", "lab0", "type", "veth")
            space.ip("-n", space.name, "link", "set", "lab0", "up")
            address = ("address", "add", "fe80::77/64", "dev", "lab0", "nodad")
            space.ip("-n", space.name, *address)
            backend = space.call(lambda: self.backend(banner(b".")))
            balancer = self.spawn(
                "load_balancer.py",
                "--listen=[fe80::77%lab0]:20003",
                f"--server={backend.address}",
                "--no-checks",
                preexec_fn=space.enter,
            )
            balancer.wait_for_line(r"listening on \[fe80::77%lab0\]:20003")

            def visit() -> bytes:
                with socket.socket(socket.AF_INET6) as client:
                    client.settimeout(30)
                    zone = socket.if_nametoindex("lab0")
                    client.connect(("fe80::77", 20003, 0, zone))
                    return client.recv(1)

            self.assertEqual(space.call(visit), b".")


class SeveralListenWithTwoWorkers(SeveralListen):
    """The same, through two processes."""

    WORKERS = 2


class Sockets(ProgramTestCase):
    """systemd's sockets, however many, take the place of --listen."""

    def activate(self, places: Sequence[str], *options: str, server: str) -> Any:
        """Let systemd-socket-activate(1) start a balancer at the first connection."""
        needs("systemd-socket-activate")
        listen = [word for place in places for word in ("-l", place)]
        script = script_command("load_balancer.py", [f"--server={server}", *options])
        return self.program("systemd-socket-activate", *listen, *script)

    def wait_for_port(self, place: str) -> None:
        """Wait until somebody listens there, without a connection."""
        port = int(place.rpartition(":")[2])

        def listens() -> bool:
            lines = Path("/proc/net/tcp").read_text().splitlines()
            return any(f":{port:04X} 00000000:0000 0A" in line for line in lines)

        wait_until(listens, what=place)

    def test_each_of_three_sockets_serves(self) -> None:
        backend = self.backend(banner(b"."))
        places = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        program = self.activate(places, "--no-checks", server=backend.address)
        for place in places:
            self.wait_for_port(place)
        for place in (*places, *reversed(places)):
            with dial(place) as client:
                self.assertEqual(client.recv(1), b".", program.output())
        wait_until(lambda: program.output().count(" client=") >= 6, what="six lines")
        lines = [line for line in program.output().splitlines() if " client=" in line]
        for place in places:
            self.assertEqual(sum(place in line for line in lines), 2, lines)

    def test_what_is_no_tcp_socket_is_refused_in_words(self) -> None:
        script = script_command("load_balancer.py", [])
        unix, udp = socket.socket(socket.AF_UNIX), socket.socket(type=socket.SOCK_DGRAM)
        with unix, udp, open(os.devnull, "rb") as file:
            shell = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 </dev/null'
            for given in (unix, udp, file):
                with self.subTest(given):
                    result = subprocess.run(
                        ["sh", "-c", shell, "sh", *script], stdin=given.fileno(),
                        capture_output=True, text=True, timeout=30, check=False,
                    )  # fmt: skip
                    self.assertEqual(result.returncode, 2, result)
                    pattern = r"\Aload_balancer.py: LISTEN_FDS: [^\n]+\n\Z"
                    self.assertRegex(result.stderr, pattern)

    def test_another_listen_beside_them_is_refused_in_words(self) -> None:
        place = f"127.0.0.1:{free_port()}"
        other = f"--listen=127.0.0.1:{free_port()}"
        program = self.activate([place], other, "--no-checks", server="127.0.0.1:9")
        self.wait_for_port(place)
        with contextlib.suppress(OSError), dial(place) as client:
            client.recv(1)
        code = program.wait(30)
        self.assertNotEqual(code, 0)
        said = [x for x in program.output().splitlines() if "load_balancer.py:" in x]
        self.assertEqual(len(said), 1, program.output())
        self.assertIn("--listen", said[0])


# ---- 8: the status address, safely in public -------------------------------------


class StatusInPublic(Asked):
    """Health and metrics are for all; the rest for who knows the name."""

    def ask(
        self, status: str, path: str, host: str, method: str = "GET"
    ) -> tuple[int, str]:
        """Return (status, body) of a request with this Host."""
        headers = {"Host": host, **(SAME_ORIGIN if method == "POST" else {})}
        body = b"" if method == "POST" else None
        code, _, answer = http_request(status, path, method, headers, body)
        return code, answer.decode()

    def test_health_and_metrics_answer_whatever_the_host(self) -> None:
        balancer = self.balance([self.backend(echo)])
        status = status_address(balancer)
        for host in ("evil.example", "10.1.2.3:8080", "", "pod-7.svc", "[::1"):
            for path in ("/healthz", "/metrics"):
                with self.subTest(host=host, path=path):
                    self.assertEqual(self.ask(status, path, host)[0], 200)

    def test_page_needs_a_known_host_and_the_refusal_says_how(self) -> None:
        backend = self.backend(echo)
        balancer = self.balance([backend])
        status = status_address(balancer)
        post = f"/servers/{backend.address}/drain"
        for path, method in (("/", "GET"), ("/status.json", "GET"), (post, "POST")):
            with self.subTest(path):
                code, body = self.ask(status, path, "evil.example", method)
                self.assertIn(code, (403, 421))
                self.assertIn("--status-host", body)
        self.assertEqual(server_figures(balancer, backend)["state"], "UP")
        port = status.rpartition(":")[2]
        for host in (status, f"localhost:{port}", f"LOCALHOST:{port}"):
            with self.subTest(host):
                self.assertEqual(self.ask(status, "/status.json", host)[0], 200)

    def test_names_that_are_given_are_known(self) -> None:
        backend = self.backend(echo)
        names = ["--status-host=lb.example", "--status-host=Other.Example"]
        balancer = self.balance([backend], *names)
        status = status_address(balancer)
        for host in ("lb.example", "lb.example:8080", "LB.example", "other.example"):
            with self.subTest(host):
                self.assertEqual(self.ask(status, "/", host)[0], 200)
                self.assertEqual(self.ask(status, "/status.json", host)[0], 200)
        for host in ("lb.example.evil", "notlb.example", "example", "lb.example@evil"):
            with self.subTest(host):
                self.assertIn(self.ask(status, "/", host)[0], (400, 403, 421))

    def test_state_is_changed_on_a_loopback_address_only(self) -> None:
        with Namespace() as space:
            where = ("address", "add", "10.9.8.1/32", "dev", "lo")
            space.ip("-n", space.name, *where)
            backend = space.call(lambda: self.backend(echo))
            for options, expected, state in (
                (["--status=10.9.8.1:20004"], 403, "UP"),
                (["--status=10.9.8.1:20005", "--status-control"], 200, "DRAIN"),
                (["--status=127.0.0.1:20006"], 200, "DRAIN"),
                (["--status=0.0.0.0:20007"], 403, "UP"),
            ):
                with self.subTest(options):
                    self.start(
                        "load_balancer.py",
                        "--listen=127.0.0.1:0",
                        f"--server={backend.address}",
                        "--no-checks",
                        *options,
                        preexec_fn=space.enter,
                    )
                    status = options[0].partition("=")[2]
                    reach = status.replace("0.0.0.0", "10.9.8.1")
                    path = f"/servers/{backend.address}/drain"
                    ask = functools.partial(self.ask, reach, host=reach)
                    code, body = space.call(functools.partial(ask, path, method="POST"))
                    self.assertEqual(code, expected, body)
                    if expected == 403:
                        self.assertIn("--status-control", body)
                    document = space.call(functools.partial(ask, "/status.json"))[1]
                    self.assertIn(f'"{state}"', document)
                    page = space.call(functools.partial(ask, "/"))[1]
                    buttons = re.search(r"<button|maint</", page) is not None
                    self.assertEqual(buttons, expected == 200, "buttons on the page")

    def test_change_by_hand_is_logged_with_the_address_it_came_from(self) -> None:
        backend = self.backend(echo)
        balancer = self.balance([backend])
        command(balancer, backend, "drain")
        change = wait_for_states(balancer, backend, "DRAIN")[0]
        self.assertIn("127.0.0.1", change.reason)


# ---- 9 and 10: metrics, and a version --------------------------------------------

SAMPLE = re.compile(r"([a-z_]+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'([a-z]+)="((?:[^"\\]|\\.)*)"')


class Metrics(Asked):
    """What alerts need is there, and agrees with the log and /status.json."""

    def samples(self, balancer: Running) -> dict[tuple[str, frozenset[Any]], float]:
        """Return the values by name and labels."""
        text = http_request(status_address(balancer), "/metrics")[2].decode()
        found = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                match = SAMPLE.fullmatch(line)
                assert match, line
                labels = frozenset(LABEL.findall(match[2] or ""))
                found[f"{match[1]}", labels] = float(match[3])
        return found

    def run_with_traffic(self) -> tuple[Running, Any, Gate]:
        """Return a balancer, a server of it that is UP and one that is not there."""
        up, down = self.backend(echo), self.gate()
        balancer = self.balance(
            [f"{up.address},weight=3,max=9", down.address], "--fall=1", "--hold=0"
        )
        for _ in range(5):
            with dial(balancer) as client:
                client.sendall(b"hello")
                self.assertEqual(read_exactly(client, 5), b"hello")
        wait_for_endings(balancer, 5)
        return balancer, up, down

    def test_each_alert_has_its_figure(self) -> None:
        balancer, up, down = self.run_with_traffic()
        command(balancer, up, "drain")
        samples = self.samples(balancer)
        name = "load_balancer_"

        def value(metric: str, **labels: str) -> float:
            return samples[name + metric, frozenset(labels.items())]

        self.assertEqual(value("queued"), 0)
        self.assertEqual(value("refused_total"), 0)
        self.assertEqual(value("ends_total", code="--"), 5)
        self.assertEqual(value("server_state", server=up.address, state="DRAIN"), 1)
        self.assertEqual(value("server_state", server=down.address, state="DOWN"), 1)
        for state in ("UP", "DOWN", "MAINT"):
            key = (
                name + "server_state",
                frozenset({("server", up.address), ("state", state)}),
            )
            self.assertEqual(samples.get(key, 0.0), 0)
        self.assertEqual(value("server_weight", server=up.address), 3)
        self.assertEqual(value("server_max", server=up.address), 9)
        self.assertEqual(value("server_retries_total", server=up.address), 0)
        self.assertGreaterEqual(
            value("server_retries_total", server=down.address)
            + value("server_connect_failures_total", server=down.address),
            1,
        )
        self.assertEqual(value("server_checks_failed_total", server=up.address), 0)
        started = value("start_time_seconds")
        self.assertLess(abs(time.time() - started), 300)
        info = [dict(key[1]) for key in samples if key[0] == name + "build_info"]
        self.assertEqual(len(info), 1)
        self.assertEqual(info[0]["version"], "2.0")
        self.assertRegex(info[0]["python"], r"\A3\.\d+\.\d+")
        for metric, count in (("queue_seconds", None), ("connection_seconds", 5)):
            buckets = [
                (float(dict(labels)["le"]), number)
                for (key, labels), number in samples.items()
                if key == f"{name}{metric}_bucket"
            ]
            buckets.sort()
            numbers = [number for _, number in buckets]
            self.assertEqual(numbers, sorted(numbers), metric)
            self.assertEqual(buckets[-1][0], float("inf"))
            self.assertEqual(numbers[-1], value(f"{metric}_count"))
            self.assertGreaterEqual(value(f"{metric}_sum"), 0)
            if count is not None:
                self.assertEqual(numbers[-1], count)

    def test_failed_checks_are_counted(self) -> None:
        gate = self.gate()
        balancer = self.balance([gate.address], *FAST, checks=True)
        wait_for_states(balancer, gate, "DOWN")
        key = (
            "load_balancer_server_checks_failed_total",
            frozenset({("server", gate.address)}),
        )
        wait_until(lambda: self.samples(balancer)[key] >= 3, what="failed checks")

    def test_waiting_is_counted_while_and_after_it_lasts(self) -> None:
        backend = self.backend(banner(b"."))
        balancer = self.balance([f"{backend.address},max=1"], "--queue-timeout=30")
        holder, waiter = self.dial(balancer), self.dial(balancer)
        self.assertEqual(holder.recv(1), b".")
        key = "load_balancer_queued", frozenset[Any]()
        wait_until(lambda: self.samples(balancer)[key] == 1, what="one in the queue")
        threading.Event().wait(0.3)
        holder.close()
        self.assertEqual(waiter.recv(1), b".")
        waiter.close()
        wait_for_endings(balancer, 2)
        samples = self.samples(balancer)
        self.assertEqual(samples[key], 0)
        total = samples["load_balancer_queue_seconds_sum", frozenset[Any]()]
        self.assertGreaterEqual(total, 0.25)

    def test_version_is_told_in_three_places(self) -> None:
        (result,) = run_main("load_balancer.py", [["--version"]], cwd=self.folder)
        self.assertEqual(result.stdout, "load_balancer.py 2.0\n")
        self.assertEqual(result.returncode, 0)
        log = self.folder / "log"
        balancer = self.balance([self.backend(echo)], f"--log={log}")
        wait_until(lambda: log.exists() and log.read_text().strip(), what="a log line")
        self.assertIn("2.0", log.read_text().splitlines()[0])
        text = http_request(status_address(balancer), "/metrics")[2].decode()
        self.assertIn('version="2.0"', text)


class MetricsWithTwoWorkers(Metrics):
    """The same, through two processes."""

    WORKERS = 2


# ---- 11: systemd -----------------------------------------------------------------


class Units(ScriptTestCase):
    """README's unit files are right in systemd's own eyes."""

    def units(self) -> Iterator[tuple[str, str]]:
        """Give (name, text) of each unit in README's code blocks."""
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
            parts = re.split(r"(?m)^#\s*(\S+\.(?:service|socket))\b.*$", block)
            if len(parts) > 1:
                yield from zip(parts[1::2], parts[2::2], strict=True)
            elif "[Service]" in block or "[Socket]" in block:
                yield (
                    "load-balancer."
                    + ("service" if "[Service]" in block else "socket"),
                    block,
                )

    def test_unit_files_are_verified(self) -> None:
        if not shutil.which("systemd-analyze"):
            self.skipTest("systemd-analyze is not installed")
        units = dict(self.units())
        self.assertTrue(units, "README has no unit file")
        all_text = "".join(units.values())
        for word in ("Type=notify", "Restart=", "ListenStream="):
            self.assertIn(word, all_text)
        for name, text in units.items():
            text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text)
            text = re.sub(r"(?m)^(User|Group)=.*$", "", text)
            (self.folder / Path(name).name).write_text(text)
        paths = [str(self.folder / Path(name).name) for name in units]
        result = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        ours = [line for line in result.stderr.splitlines() if str(self.folder) in line]
        self.assertEqual((result.returncode, ours), (0, []), result.stderr)
