"""load_balancer.py: limits, queues, and who may come."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.balancer import (
    BalancerTestCase,
    command,
    endings,
    figures,
    local_address,
    named,
    other_lines,
    served_by,
    server_figures,
    visit_once,
    wait_for_endings,
)
from tests.support import (
    Running,
    Visit,
    banner,
    black_hole,
    cpu_s,
    descriptors,
    dial,
    echo,
    family,
    in_parallel,
    needs_permission,
    read_exactly,
    refusing_address,
    send_reset,
    wait_until,
)


def limit_descriptors(soft: int, hard: int) -> Callable[[], None]:
    """Return what sets the descriptor limit in a child before it starts."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class ServerLimit(BalancerTestCase):
    """`max=` is what the server counts, and the queue before it is fair."""

    takes_long = True

    def is_queued(self, balancer: Running, count: int) -> None:
        """Wait until `count` connections are in the queue."""
        wait_until(
            lambda: figures(balancer)["connections"]["queued"] == count,
            what=f"{count} in the queue",
        )

    def test_server_never_counts_more_connections_than_its_limit(self) -> None:
        lock = threading.Lock()
        inside: Counter[int] = Counter()
        peaks: Counter[int] = Counter()

        def work(visit: Visit) -> None:
            """Count from the first moment to just before the close."""
            port = visit.backend.port
            with lock:
                inside[port] += 1
                peaks[port] = max(peaks[port], inside[port])
            try:
                visit.pause(0.02)
                named(visit)
            finally:
                with lock:
                    inside[port] -= 1

        flipped, steady = backends = [self.backend(work), self.backend(work)]
        servers = [f"{backend.address},max=2" for backend in backends]
        balancer = self.balance(servers, "--queue-timeout=50")
        finished = threading.Event()

        def flip() -> None:
            """Drain and make ready meanwhile: the limit survives each change."""
            while not finished.wait(0.1):
                command(balancer, flipped, "drain")
                command(balancer, flipped, "ready")

        def race() -> None:
            try:
                in_parallel(*[lambda: visit_once(balancer)] * 50)
            finally:
                finished.set()

        in_parallel(race, flip)
        self.assertEqual(flipped.total + steady.total, 50)
        self.assertLessEqual(max(peaks.values()), 2)
        self.assertEqual(server_figures(balancer, steady)["max"], 2)

    def test_queue_is_first_in_first_out(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([f"{backend.address},max=1"], "--queue-timeout=30")
        holder = self.dial(balancer)
        served_by(holder)
        waiting = []
        for count in range(1, 6):
            waiting.append(self.dial(balancer))
            self.is_queued(balancer, count)
        self.assertEqual(figures(balancer)["connections"]["active"], 6)
        holder.close()
        for position, client in enumerate(waiting):
            served_by(client)
            for later in waiting[position + 1 :]:
                later.setblocking(False)
                with self.assertRaises(BlockingIOError):
                    later.recv(1)
                later.settimeout(10)
            client.close()

    def test_full_server_is_passed_over_for_one_with_a_place(self) -> None:
        small, large = self.backend(named), self.backend(named)
        balancer = self.balance([f"{small.address},max=1", large])
        ports = [served_by(self.dial(balancer)) for _ in range(6)]
        self.assertEqual(ports.count(small.port), 1)
        self.assertEqual(figures(balancer)["connections"]["queued"], 0)

    def test_whichever_server_is_free_first_takes_the_first_in_the_queue(self) -> None:
        one, two = self.backend(named), self.backend(named)
        balancer = self.balance([f"{one.address},max=1", f"{two.address},max=1"])
        first, second, third = (self.dial(balancer) for _ in range(3))
        self.assertEqual({served_by(first), served_by(second)}, {one.port, two.port})
        self.is_queued(balancer, 1)
        second.close()
        self.assertEqual(served_by(third), two.port)

    def test_queue_timeout_ends_the_wait_with_its_own_reason(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([f"{backend.address},max=1"], "--queue-timeout=0.6")
        holder = self.dial(balancer)
        served_by(holder)
        client = self.dial(balancer)
        name = local_address(client)
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(client.recv(1), b"")
        ending = self.ending(balancer, name)
        self.assertEqual((ending.code, ending.server), ("sQ", "-"))
        self.assertGreater(ending.duration_ms, 550)
        self.assertEqual(backend.total, 1)
        holder.sendall(b"still here")
        self.assertEqual(read_exactly(holder, 10), b"still here")
        self.is_queued(balancer, 0)

    def test_queue_timeout_holds_though_another_server_fails_meanwhile(self) -> None:
        # The other one passes its checks, refuses clients, and is tried every second.
        backend = self.backend(named)
        with refusing_address() as nobody:
            servers = [f"{backend.address},max=1", f"{nobody},check={backend.port}"]
            options = ("--queue-timeout=1.5", "--fall=1000")
            balancer = self.balance(servers, *options, checks=True)
            holders = [self.dial(balancer)]
            served_by(holders[0])
            client = self.dial(balancer)
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(client.recv(1), b"")
            ending = self.ending(balancer, local_address(client))
        self.assertEqual(ending.code, "sQ")
        self.assertGreaterEqual(ending.tries, 2)

    def test_queue_timeout_of_all_counts_from_their_own_proxy_headers(self) -> None:
        backend = self.backend(named)
        options = ("--queue-timeout=2", "--accept-proxy=127.0.0.1")
        balancer = self.balance([f"{backend.address},max=1"], *options)
        holder = self.dial(balancer)
        holder.sendall(b"PROXY UNKNOWN\r\n")
        served_by(holder)
        names = []
        for _ in range(4):
            client = self.dial(balancer)
            client.sendall(b"PROXY UNKNOWN\r\n")
            names.append(local_address(client))
        found = [self.ending(balancer, name) for name in names]
        self.assertEqual([ending.code for ending in found], ["sQ"] * 4)
        waited_ms = [ending.duration_ms for ending in found]
        self.assertGreater(min(waited_ms), 1950)
        # One after the other they would be 2 s apart.
        self.assertLess(max(waited_ms) - min(waited_ms), 1900, waited_ms)
        self.assertEqual(backend.total, 1)

    def test_client_that_leaves_the_queue_takes_no_place(self) -> None:
        for leave in (socket.socket.close, send_reset):
            with self.subTest(leave.__name__):
                backend = self.backend(named)
                balancer = self.balance(
                    [f"{backend.address},max=1"], "--queue-timeout=30"
                )
                holder = self.dial(balancer)
                served_by(holder)
                leaver = self.dial(balancer)
                name = local_address(leaver)
                self.is_queued(balancer, 1)
                patient = self.dial(balancer)
                self.is_queued(balancer, 2)
                leave(leaver)
                self.assertEqual(self.ending(balancer, name, 10).code, "CQ")
                self.is_queued(balancer, 1)
                holder.close()
                served_by(patient)
                self.assertEqual(backend.total, 2)
                failures = server_figures(balancer, backend)["connect_failures"]
                self.assertEqual(failures, 0)

    def test_queued_client_that_half_closed_after_its_request_is_served(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([f"{backend.address},max=1"], "--queue-timeout=30")
        holder = self.dial(balancer)
        served_by(holder)
        client = self.dial(balancer)
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        self.is_queued(balancer, 1)
        holder.close()
        served_by(client)
        self.assertEqual(read_exactly(client, 9), b"question")

    def test_main_process_has_a_descriptor_for_each_client_in_its_queue(self) -> None:
        backend = self.backend(named)
        balancer = self.spawn(
            "load_balancer.py",
            *("--listen=127.0.0.1:0", "--status=127.0.0.1:0", "--no-checks"),
            *("--workers=4", "--grace=0", "--queue-timeout=30"),
            f"--server={backend.address},max=1",
            preexec_fn=limit_descriptors(100, 100),
        )
        holder, *clients = [self.dial(balancer) for _ in range(120)]
        served_by(holder)
        wait_until(lambda: figures(balancer)["connections"]["queued"] > 50, what="50")
        holder.close()
        for client in clients:
            served_by(client)
            client.close()
        self.assertEqual({e.code for e in wait_for_endings(balancer, 120)}, {"--"})
        self.assertEqual(other_lines(balancer), [])

    def test_place_of_a_failed_connect_is_given_back(self) -> None:
        with black_hole() as hole:
            balancer = self.balance(
                [f"{hole.address},max=1"], "--connect-timeout=0.3", "--queue-timeout=20"
            )
            for _ in range(3):
                client = self.dial(balancer)
                name = local_address(client)
                self.assertEqual(self.ending(balancer, name).code, "sC")


class ServerLimitWithTwoWorkers(ServerLimit):
    """The same, through two processes."""

    WORKERS = 2


class TotalLimit(BalancerTestCase):
    """`--max-connections`: more wait in the listen queue, those inside go on."""

    def test_connection_above_the_limit_waits_until_one_ends(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([backend], "--max-connections=3")
        inside = [self.dial(balancer) for _ in range(3)]
        for client in inside:
            served_by(client)
        outside = self.dial(balancer)
        outside.settimeout(0.7)
        with self.assertRaises(TimeoutError):
            outside.recv(1)
        self.assertEqual(backend.total, 3)
        inside[1].sendall(b"undisturbed")
        self.assertEqual(read_exactly(inside[1], 11), b"undisturbed")
        inside[0].close()
        outside.settimeout(10)
        served_by(outside)
        self.assertEqual(backend.total, 4)

    def test_limit_holds_for_racing_clients(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([backend], "--max-connections=4")
        in_parallel(*[lambda: visit_once(balancer)] * 60)
        self.assertEqual(backend.total, 60)
        self.assertLessEqual(backend.peak, 4)


class TotalLimitWithTwoWorkers(TotalLimit):
    """The same, through two processes."""

    WORKERS = 2


class Starvation(BalancerTestCase):
    """Running out of descriptors harms nobody inside, and passes."""

    CLIENTS = 120

    def starve(self, balancer: Running, spare: int) -> None:
        """Take the descriptors away from the running balancer, all but `spare`."""
        if not hasattr(resource, "prlimit"):
            self.skipTest("needs prlimit (Linux)")
        for pid in family(balancer.pid):
            limit = descriptors(pid) + spare
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))

    def is_served(self, balancer: Running) -> bool:
        """Return whether a new connection gets a server."""
        with dial(balancer, 20) as client, contextlib.suppress(ConnectionError):
            return len(read_exactly(client, 5)) == 5
        return False

    def test_missing_descriptors_slow_new_connections_only(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([backend])
        live = self.dial(balancer)
        served_by(live)
        self.starve(balancer, 14)
        crowd = [self.dial(balancer) for _ in range(self.CLIENTS)]
        start, cpu = time.monotonic(), sum(cpu_s(p) for p in family(balancer.pid))
        for _ in range(20):
            live.sendall(b"hi")
            self.assertEqual(read_exactly(live, 2), b"hi")
            backend.closing.wait(0.1)
        elapsed = time.monotonic() - start
        used = sum(cpu_s(p) for p in family(balancer.pid)) - cpu
        # 5 % is the aim; an accept loop that spins takes all that it can get.
        self.assertLess(used / elapsed, 0.3)
        said = other_lines(balancer)
        self.assertTrue(said, "nothing in the log")
        # Two kinds of shortage, each said once per second.
        self.assertLessEqual(len(said), 2 * (elapsed + 1), said)
        for client in crowd:
            client.close()
        wait_until(lambda: self.is_served(balancer), what="service for a newcomer")

    def test_no_server_is_blamed_for_missing_descriptors(self) -> None:
        backend = self.backend(named)
        options = ("--check-interval=0.3", "--fall=1")
        balancer = self.balance([backend], *options, checks=True)
        visit_once(balancer)
        self.starve(balancer, 14)
        crowd = [self.dial(balancer) for _ in range(self.CLIENTS)]
        backend.closing.wait(1.5)
        for client in crowd:
            client.close()
        wait_until(lambda: not self.active(balancer), what="the crowd to be gone")
        lines = balancer.stdout_lines()
        self.assertEqual([line for line in lines if "state=DOWN" in line], [])
        self.assertEqual(server_figures(balancer, backend)["connect_failures"], 0)
        codes = {ending.code for ending in endings(lines)}
        self.assertLessEqual(codes, {"--", "CD", "CC", "RC", "CQ"})

    def active(self, balancer: Running) -> bool:
        """Return whether connections are active, or the status port is starved."""
        try:
            return bool(figures(balancer)["connections"]["active"])
        except OSError:
            return True

    def test_tiny_limit_serves_a_few_at_a_time(self) -> None:
        backend = self.backend(banner(b"."))
        balancer = self.balancer(
            "--no-checks",
            f"--workers={self.WORKERS}",
            servers=[backend],
            preexec_fn=limit_descriptors(64, 64),
        )
        crowd = [self.dial(balancer, 30) for _ in range(40)]

        def be_served(client: socket.socket) -> bytes:
            with client:
                return client.recv(1)

        answers = in_parallel(*(lambda c=client: be_served(c) for client in crowd))
        self.assertEqual(answers, [b"."] * 40)


class StarvationWithTwoWorkers(Starvation):
    """The same, through two processes."""

    WORKERS = 2


class DescriptorLimit(BalancerTestCase):
    """The start line says how many connections the descriptor limit allows."""

    @needs_permission("raised limits")
    def test_limit_is_raised_to_the_hard_limit_and_told(self) -> None:
        backend = self.backend()
        allowed = []
        for soft, hard in ((64, 4096), (64, 1024)):
            balancer = self.balancer(
                "--no-checks",
                "--workers=1",  # each has a limit of its own
                servers=[backend],
                preexec_fn=limit_descriptors(soft, hard),
            )
            first = balancer.stdout_lines()[0]
            match = re.search(r"\((?:.*?\D)?([\d,]+) connections?\b", first)
            self.assertIsNotNone(match, first)
            assert match
            allowed.append(int(match[1].replace(",", "")))
            limits = f"/proc/{balancer.pid}/limits"
            with contextlib.suppress(FileNotFoundError):  # where there is no /proc
                table = Path(limits).read_text()
                self.assertRegex(table, rf"Max open files\s+{hard}\s+{hard}")
        many, few = allowed
        self.assertTrue(1024 < many <= 2048, many)
        self.assertTrue(256 < few <= 512, few)

    def test_five_hundred_connections_stay_open_at_once(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([backend])
        clients = [self.dial(balancer) for _ in range(500)]
        self.assertEqual({served_by(client) for client in clients}, {backend.port})
        self.assertEqual(figures(balancer)["connections"]["active"], 500)
        for client in clients:
            client.sendall(b"x")
        for client in clients:
            self.assertEqual(client.recv(1), b"x")


class Access(BalancerTestCase):
    """`--allow`: only these networks come in; nobody else touches a server."""

    def dial_from(self, host: str, port: int, to: str = "127.0.0.1") -> socket.socket:
        """Dial from another loopback address."""
        client = socket.socket()
        self.addCleanup(client.close)
        client.settimeout(10)
        try:
            client.bind((host, 0))
        except OSError:
            self.skipTest("this system has no address but 127.0.0.1 on loopback")
        client.connect((to, port))
        return client

    def test_client_outside_is_closed_and_no_server_contacted(self) -> None:
        backend = self.backend(named)
        balancer = self.balance(
            [backend], "--allow=127.0.0.2/32", "--allow=127.9.0.0/16"
        )
        client = self.dial(balancer)
        name = local_address(client)
        with contextlib.suppress(ConnectionError):
            self.assertEqual(client.recv(1), b"")
        ending = self.ending(balancer, name)
        self.assertEqual((ending.code, ending.server), ("PC", "-"))
        self.assertEqual(backend.total, 0)
        connections = figures(balancer)["connections"]
        self.assertEqual((connections["refused"], connections["failed"]), (1, 0))
        for host in ("127.0.0.2", "127.9.8.7"):
            served_by(self.dial_from(host, balancer.port))

    def test_ipv4_rule_holds_for_ipv4_clients_of_an_ipv6_listener(self) -> None:
        if not socket.has_dualstack_ipv6():
            self.skipTest("this system has no listener for IPv4 and IPv6 at once")
        backend = self.backend(named)
        balancer = self.balancer(
            "--allow=127.0.0.2/32", "--no-checks", servers=[backend], listen="[::]:0"
        )
        served_by(self.dial_from("127.0.0.2", balancer.port))
        refused = self.dial_from("127.0.0.3", balancer.port)
        with contextlib.suppress(ConnectionError):
            self.assertEqual(refused.recv(1), b"")
        with contextlib.suppress(ConnectionError), dial(("::1", balancer.port)) as ipv6:
            self.assertEqual(ipv6.recv(1), b"")
        wait_for_endings(balancer, 2)
        self.assertEqual(backend.total, 1)

    def test_ipv6_rule_lets_ipv6_clients_in(self) -> None:
        backend = self.backend(echo)
        balancer = self.balancer(
            "--allow=::1/128", "--no-checks", servers=[backend], listen="[::1]:0"
        )
        client = self.dial(balancer)
        client.sendall(b"x")
        self.assertEqual(client.recv(1), b"x")
