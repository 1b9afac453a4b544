"""load_balancer.py: health checks, states, and names that move."""

from __future__ import annotations

import contextlib
import socket
import time

from tests.balancer import (
    BalancerTestCase,
    changes,
    command,
    endings,
    figures,
    local_address,
    named,
    served_by,
    server_figures,
    shares,
    visit_once,
    wait_for_states,
)
from tests.support import (
    Behaviour,
    Running,
    accept_then_close,
    banner,
    black_hole,
    dial,
    in_parallel,
    read_exactly,
    refusing_address,
    silent,
    sink,
    wait_until,
)

FAST = ("--check-interval=0.1", "--rise=2", "--fall=3", "--check-timeout=0.5")


class Checks(BalancerTestCase):
    """Checks see what clients would see, and are seen by nobody else."""

    def accept_from(self, listener: socket.socket, first: bytes) -> socket.socket:
        """Return the connection that begins with these bytes: checks come as well."""
        while True:
            connection, _ = listener.accept()
            connection.settimeout(10)
            self.addCleanup(connection.close)
            if read_exactly(connection, len(first)) == first:
                return connection
            connection.close()

    def test_check_ends_with_a_clean_end_of_file_and_sends_nothing(self) -> None:
        backend = self.backend(sink)
        balancer = self.balance([backend], *FAST, checks=True)
        self.assertTrue(backend.visit(3).done.wait(20))
        for index in range(4):
            visit = backend.visit(index)
            self.assertEqual((visit.end, bytes(visit.received)), ("eof", b""))
        entry = server_figures(balancer, backend)
        self.assertEqual(
            (entry["state"], entry["total"], entry["active"]), ("UP", 0, 0)
        )
        self.assertRegex(entry["last_check"], r"\Aconnected in \d+(\.\d+)? ms\Z")
        document = figures(balancer)
        self.assertEqual(document["connections"]["total"], 0)
        self.assertEqual(document["bytes"], {"to_servers": 0, "to_clients": 0})
        self.assertEqual(endings(balancer.stdout_lines()), [])

    def test_server_goes_down_and_up_with_one_line_per_change_in_order(self) -> None:
        backend, other = self.backend(named), self.backend(named)
        balancer = self.balance([backend, other], *FAST, checks=True)
        backend.visit()  # it was up, and checked
        backend.close()
        balancer.wait_for_line(f"server={backend.address} state=DOWN")
        self.assertEqual({visit_once(balancer) for _ in range(6)}, {other.port})
        again = self.backend(named, port=backend.port)
        balancer.wait_for_line(f"server={backend.address} state=UP")
        self.assertEqual(
            {visit_once(balancer) for _ in range(6)}, {backend.port, other.port}
        )
        again.visit(12)  # further checks, which must not say anything
        down, up = wait_for_states(balancer, backend, "DOWN", "UP")
        self.assertEqual(
            (down.state, down.reason, down.checks, down.up),
            ("DOWN", "connection refused", "3/3", "1/2"),
        )
        self.assertEqual((up.state, up.checks, up.up), ("UP", "2/2", "2/2"))
        self.assertRegex(up.reason, "connected")
        self.assertEqual(len(changes(balancer.stdout_lines())), 2)

    def test_server_comes_back_only_after_as_many_passed_checks_as_rise_says(
        self,
    ) -> None:
        backend = self.backend()
        options = ("--check-interval=0.1", "--rise=4", "--fall=1")
        balancer = self.balance([backend], *options, checks=True)
        backend.visit()
        backend.close()
        balancer.wait_for_line(f"server={backend.address} state=DOWN")
        again = self.backend(port=backend.port)
        balancer.wait_for_line(f"server={backend.address} state=UP")
        self.assertGreaterEqual(len(again.visits), 4)

    def test_one_passed_check_between_failures_starts_the_count_again(self) -> None:
        backend = self.backend()
        options = ("--check-interval=0.4", "--fall=3", "--check-timeout=0.3")
        balancer = self.balance([backend], *options, checks=True)
        backend.visit()
        for _ in range(3):
            backend.close()
            self.wait_for_failed_check(balancer, backend.address)
            backend = self.backend(port=backend.port)
            backend.visit()
        self.assertEqual(changes(balancer.stdout_lines()), [])

    def wait_for_failed_check(self, balancer: Running, address: str) -> None:
        """Wait until the status port shows a failed check."""
        wait_until(
            lambda: "connected" not in server_figures(balancer, address)["last_check"],
            what="a failed check",
        )

    def test_server_that_never_answers_is_up_for_a_connect_check(self) -> None:
        backends = [self.backend(silent), self.backend(accept_then_close)]
        balancer = self.balance(backends, *FAST, checks=True)
        for backend in backends:
            backend.visit(4)  # as many checks ended as make a server DOWN, and one
            self.assertEqual(server_figures(balancer, backend)["state"], "UP")
        self.assertEqual(changes(balancer.stdout_lines()), [])

    def test_server_that_hangs_goes_down_with_a_timeout_as_reason(self) -> None:
        with black_hole() as hole:
            balancer = self.balance([hole, self.backend(named)], *FAST, checks=True)
            balancer.wait_for_line("state=DOWN")
            (down,) = wait_for_states(balancer, hole, "DOWN")
            self.assertRegex(down.reason, "time")
            before = server_figures(balancer, hole)["connect_failures"]
            visit_once(balancer)
            after = server_figures(balancer, hole)["connect_failures"]
            self.assertEqual(after, before, "tried the hanging server")

    def test_failures_of_real_traffic_count_as_failed_checks(self) -> None:
        with refusing_address() as dead:
            alive = self.backend(named)
            options = ("--check-interval=60", "--fall=3")
            # The check at the start is one failure, two more come from clients.
            balancer = self.balance([dead, alive], *options, checks=True)
            for _ in range(12):
                visit_once(balancer)
            (down,) = wait_for_states(balancer, dead, "DOWN")
            self.assertEqual((down.reason, down.checks), ("connection refused", "3/3"))
            failures = server_figures(balancer, dead)["connect_failures"]
            self.assertLessEqual(failures, 3, "a server that is down was tried")

    def test_live_connections_stay_at_a_server_that_goes_down(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            listener.settimeout(10)
            balancer = self.balance([address], *FAST, checks=True)
            client = self.dial(balancer)
            name = local_address(client)
            client.sendall(b"first")
            server_side = self.accept_from(listener, b"first")
        balancer.wait_for_line("state=DOWN")
        server_side.sendall(b"still here")
        self.assertEqual(read_exactly(client, 10), b"still here")
        client.sendall(b"me too")
        self.assertEqual(read_exactly(server_side, 6), b"me too")
        client.close()
        server_side.close()
        self.assertEqual(self.ending(balancer, name).code, "--")

    def test_end_of_an_old_session_brings_no_server_up(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            listener.settimeout(10)
            balancer = self.balance([address], *FAST, "--rise=1", checks=True)
            client = self.dial(balancer)
            name = local_address(client)
            client.sendall(b"first")
            server_side = self.accept_from(listener, b"first")
        (down,) = wait_for_states(balancer, address, "DOWN")
        self.assertEqual(down.reason, "connection refused")
        client.close()
        server_side.close()
        self.assertEqual(self.ending(balancer, name).code, "--")
        self.assertEqual(server_figures(balancer, address)["state"], "DOWN")
        balancer.stop()
        self.assertEqual(changes(balancer.stdout_lines()), [down])

    def test_killing_one_of_three_fails_nobody_and_splits_evenly(self) -> None:
        backends = [self.backend(named) for _ in range(3)]
        balancer = self.balance(backends, *FAST, checks=True)
        backends[0].close()

        def ten_visits() -> list[int]:
            return [visit_once(balancer) for _ in range(10)]

        ports = [port for part in in_parallel(*[ten_visits] * 30) for port in part]
        share = shares(ports, backends)
        self.assertEqual((share[0], sum(share)), (0, 300))
        self.assertLessEqual(abs(share[1] - share[2]), 6, share)
        self.assertEqual(figures(balancer)["connections"]["failed"], 0)

    def test_without_checks_a_server_is_never_visited_unasked(self) -> None:
        backend = self.backend()
        balancer = self.balance([backend], "--check-interval=0.1")
        self.assertEqual(server_figures(balancer, backend)["state"], "UP")
        backend.closing.wait(0.6)
        self.assertEqual(backend.total, 0)


class ChecksOfSeveral(BalancerTestCase):
    """Several processes check each server once."""

    WORKERS = 2

    def test_each_server_is_checked_by_one_process_only(self) -> None:
        backend = self.backend(sink)
        start = time.monotonic()
        self.balance([backend], "--check-interval=0.4", checks=True)
        backend.closing.wait(1.5)
        elapsed = time.monotonic() - start
        self.assertLessEqual(backend.total, elapsed / 0.35 + 1)


class Draining(BalancerTestCase):
    """A drained server finishes what it has."""

    def test_drained_server_keeps_its_connections_and_gets_no_new_ones(self) -> None:
        one, two = self.backend(named), self.backend(named)
        balancer = self.balance([one, two])
        held: dict[int, list[socket.socket]] = {}
        for _ in range(4):
            client = self.dial(balancer)
            held.setdefault(served_by(client), []).append(client)
        self.assertEqual(command(balancer, one, "drain"), 200)
        self.assertEqual({visit_once(balancer) for _ in range(6)}, {two.port})
        entry = server_figures(balancer, one)
        self.assertEqual((entry["state"], entry["active"]), ("DRAIN", 2))
        for client in held[one.port]:
            client.sendall(b"x")
            self.assertEqual(client.recv(1), b"x")
            client.close()
        wait_until(lambda: not server_figures(balancer, one)["active"], what="0 left")
        self.assertEqual(command(balancer, one, "ready"), 200)
        self.assertEqual(server_figures(balancer, one)["state"], "UP")
        ports = {visit_once(balancer) for _ in range(6)}
        self.assertEqual(ports, {one.port, two.port})
        balancer.wait_for_line("state=UP")
        states = [change.state for change in changes(balancer.stdout_lines())]
        self.assertEqual(states, ["DRAIN", "UP"])


class DrainingWithTwoWorkers(Draining):
    """The same, through two processes."""

    WORKERS = 2


class States(BalancerTestCase):
    """drain, maint and ready at the status port."""

    def test_server_in_maintenance_is_neither_used_nor_checked(self) -> None:
        one, two = self.backend(named), self.backend(named)
        balancer = self.balance([one, two], *FAST, checks=True)
        self.assertEqual(command(balancer, one, "maint"), 200)
        self.assertEqual(server_figures(balancer, one)["state"], "MAINT")
        port = one.port
        one.close()
        two.visit(two.total + 4)  # time for the checks of `one` to have failed
        self.assertEqual({visit_once(balancer) for _ in range(6)}, {two.port})
        self.assertEqual(server_figures(balancer, one)["state"], "MAINT")
        again = self.backend(named, port=port)
        two.visit(two.total + 4)
        self.assertEqual(again.total, 0)
        self.assertEqual(command(balancer, again, "ready"), 200)
        wait_until(
            lambda: server_figures(balancer, again)["state"] == "UP", what="it is UP"
        )
        self.assertEqual({visit_once(balancer) for _ in range(6)}, {port, two.port})

    def test_command_that_changes_nothing_is_not_logged(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([backend])
        for action in ("ready", "drain", "drain", "ready", "ready"):
            self.assertEqual(command(balancer, backend, action), 200)
        balancer.wait_for_line("state=UP")
        states = [change.state for change in changes(balancer.stdout_lines())]
        self.assertEqual(states, ["DRAIN", "UP"])

    def test_all_servers_drained_means_no_server_for_new_clients(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([backend], "--queue-timeout=0.3")
        command(balancer, backend, "maint")
        client = self.dial(balancer)
        name = local_address(client)
        with contextlib.suppress(ConnectionError):
            self.assertEqual(client.recv(1), b"")
        ending = self.ending(balancer, name)
        self.assertRegex(ending.code, r"\A(SC|sQ)\Z")
        self.assertEqual((ending.server, backend.total), ("-", 0))


RESOLVER = '''
import socket
system_answer = socket.getaddrinfo

def answer(host, port, *args, **options):
    """Answer for lab.test what the file says now; for others what the system says."""
    if host not in ("lab.test", b"lab.test"):
        return system_answer(host, port, *args, **options)
    with open({path!r}) as names:
        hosts = names.read().split()
    if not hosts:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    found = []
    for name in hosts:
        found += system_answer(name, port, 0, socket.SOCK_STREAM)
    return found

socket.getaddrinfo = answer
'''


def served_host(mark: str) -> Behaviour:
    """Say one byte at once, then echo."""
    return banner(mark.encode())


def host_of(balancer: Running) -> bytes:
    """Return the byte of the server that serves a new connection."""
    with dial(balancer) as client:
        return client.recv(1)


class Names(BalancerTestCase):
    """A name with several addresses is several servers, and may change."""

    def resolve(self, *hosts: str) -> dict[str, str]:
        """Let lab.test mean these addresses from now on; return the environment."""
        names = self.folder / "names"
        names.write_text(" ".join(hosts))
        module = self.folder / "sitecustomize.py"
        module.write_text(RESOLVER.format(path=str(names)))
        return {"PYTHONPATH": str(self.folder)}

    def start_for_name(self, port: int, env: dict[str, str]) -> Running:
        """Start a balancer for lab.test."""
        return self.balancer(
            f"--workers={self.WORKERS}",
            "--status=127.0.0.1:0",
            *FAST,
            servers=[f"lab.test:{port}"],
            env=env,
        )

    def addresses(self, balancer: Running) -> set[str]:
        """Return the servers' addresses as the status port lists them."""
        return {entry["address"] for entry in figures(balancer)["servers"]}

    def test_each_address_of_a_name_is_a_server(self) -> None:
        one = self.backend(served_host("1"))
        two = self.backend(served_host("2"), host="127.0.0.2", port=one.port)
        balancer = self.start_for_name(one.port, self.resolve("127.0.0.1", "127.0.0.2"))
        self.assertEqual(self.addresses(balancer), {one.address, two.address})
        self.assertEqual({host_of(balancer) for _ in range(4)}, {b"1", b"2"})

    def test_name_that_moves_takes_new_connections_along(self) -> None:
        one = self.backend(served_host("1"))
        two = self.backend(served_host("2"), host="127.0.0.2", port=one.port)
        three = self.backend(served_host("3"), host="127.0.0.3", port=one.port)
        balancer = self.start_for_name(one.port, self.resolve("127.0.0.1", "127.0.0.2"))
        held = [self.dial(balancer) for _ in range(2)]
        self.assertEqual({client.recv(1) for client in held}, {b"1", b"2"})
        self.resolve("127.0.0.1", "127.0.0.3")
        wait_until(lambda: three.address in self.addresses(balancer), what="the new")
        wait_until(lambda: host_of(balancer) == b"3", what="a connection to the new")
        self.assertEqual({host_of(balancer) for _ in range(6)}, {b"1", b"3"})
        for client in held:
            client.sendall(b"undisturbed")
            self.assertEqual(read_exactly(client, 11), b"undisturbed")
            client.close()
        wait_until(
            lambda: self.addresses(balancer) == {one.address, three.address},
            what="the old address to be gone",
        )
        self.assertGreaterEqual(two.total, 1)

    def test_name_that_cannot_be_resolved_for_a_while_keeps_its_servers(self) -> None:
        one = self.backend(served_host("1"))
        balancer = self.start_for_name(one.port, self.resolve("127.0.0.1"))
        self.resolve()
        one.visit(one.total + 4)  # the name was asked for again meanwhile
        self.assertEqual(host_of(balancer), b"1")
        self.assertEqual(self.addresses(balancer), {one.address})
