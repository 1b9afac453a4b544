"""load_balancer.py with several processes: deaths at any point, turns, one queue."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import threading
import unittest
from collections import Counter
from pathlib import Path

from tests.balancer import (
    BalancerTestCase,
    endings,
    figures,
    local_address,
    named,
    processes,
    served_by,
    title,
    wait_for_endings,
    workers_of,
)
from tests.support import (
    DEADLINE_S,
    LONG,
    THOROUGH,
    Backend,
    Running,
    Visit,
    dial,
    family,
    in_parallel,
    wait_until,
)

KILLS = 500 if LONG else 30
ESTABLISHED = 1  # tcp_states.h
SEED = int(os.environ.get("LAB_SEED", "1"))


@unittest.skipUnless(Path("/proc/self/comm").exists(), "needs /proc (Linux)")
class Several(BalancerTestCase):
    """Tests with several workers, whose sets of processes are waited for."""

    def balance_with(
        self, workers: int, *arguments: object, servers: object
    ) -> Running:
        """Start a balancer, and wait until it has its workers."""
        self.WORKERS = workers
        balancer = self.balance(servers, *arguments)  # type: ignore[arg-type]
        if workers > 1:
            wait_until(lambda: len(workers_of(balancer)) == workers, what="workers")
        return balancer

    def assert_at_rest(self, balancer: Running) -> None:
        """Expect that no count is left of connections that have ended."""

        def left() -> list[int]:
            told = figures(balancer)
            active = [server["active"] for server in told["servers"]]
            connections = told["connections"]
            return [connections["active"], connections["queued"], *active]

        try:
            wait_until(lambda: not any(left()))
        except AssertionError:
            self.fail(f"active, queued, each server's active: {left()}")


class Deaths(Several):
    """Workers that die at random moments under load cost only their connections."""

    pause = threading.Event()  # never set: nobody tells when it is time to kill

    MAX = 8
    most = 0

    def at_once(self) -> Backend:
        """Return a `named` backend that notes in `most` how many are connected to it.

        The kernel is asked (TCP_INFO, its first byte is the state): a thread of the
        backend may hear of an end late.
        """

        def behave(visit: Visit) -> None:
            count = 0
            for other in list(visit.backend.visits):
                with contextlib.suppress(OSError):
                    info = other.socket.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 1)
                    count += info[0] == ESTABLISHED
            self.most = max(self.most, count)
            named(visit)

        return self.backend(behave)

    @unittest.skipUnless(THOROUGH, "takes a quarter of a minute: set LAB_LONG=1")
    def test_killed_and_stopped_workers_leave_no_count_and_no_line_behind(self) -> None:
        backends = [self.at_once() for _ in range(2)]
        log = self.folder / "balancer.log"
        balancer = self.balance_with(
            2,
            "--queue-timeout=60",
            f"--log={log}",
            servers=[f"{backend.address},max={self.MAX}" for backend in backends],
        )
        over = threading.Event()
        served: Counter[str] = Counter()
        counting = threading.Lock()

        def come_and_go() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError, AssertionError), dial(
                    balancer
                ) as client:
                    name = local_address(client)
                    served_by(client)
                    client.sendall(b"x" * 10)
                    if client.recv(1) == b"x":
                        with counting:
                            served[name] += 1

        clients = [threading.Thread(target=come_and_go) for _ in range(24)]
        for client in clients:
            client.start()
        dice = random.Random(SEED)
        try:
            for index in range(KILLS):
                victims = wait_until(lambda: workers_of(balancer), what="a worker")
                victim = dice.choice(victims)
                with contextlib.suppress(ProcessLookupError):
                    if index % 10 == 9:  # maybe with the lock: it must not stay there
                        os.kill(victim, signal.SIGSTOP)
                        self.pause.wait(dice.random() / 10)
                    os.kill(victim, signal.SIGKILL)
                self.pause.wait(dice.random() / 5)
        finally:
            over.set()
            for client in clients:
                client.join(60)
        self.assertFalse(any(client.is_alive() for client in clients), "stuck")
        self.assertLessEqual(self.most, self.MAX, "max= was exceeded")
        self.assert_at_rest(balancer)
        total = figures(balancer)["connections"]["total"]
        wait_until(
            lambda: log.read_text().count(" client=") >= total, what=f"{total} lines"
        )
        found = endings(log.read_text().splitlines())
        self.assertEqual(len(found), total)
        self.assertGreater(sum(end.code == "ID" for end in found), 0)
        told = Counter(end.client for end in found)
        self.assertEqual([name for name in served if not told[name]], [])
        again = [self.dial(balancer) for _ in range(2 * self.MAX)]
        for connection in again:  # every place is free
            served_by(connection)

    def test_connections_of_other_workers_go_on_and_those_that_wait_are_served(
        self,
    ) -> None:
        backend = self.backend(named)
        balancer = self.balance_with(
            4, "--queue-timeout=60", servers=[f"{backend.address},max=8"]
        )
        clients = [self.dial(balancer) for _ in range(8)]
        for client in clients:
            served_by(client)
        waiting = self.dial(balancer)
        wait_until(lambda: figures(balancer)["connections"]["queued"] == 1)
        os.kill(workers_of(balancer)[0], signal.SIGKILL)
        wait_until(lambda: len(workers_of(balancer)) == 4, what="a new worker")
        alive = []
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"x")
                if client.recv(1) == b"x":
                    alive.append(client)
        lines = wait_for_endings(balancer, 8 - len(alive))
        dead = {local_address(c) for c in clients} - {local_address(c) for c in alive}
        waiter = local_address(waiting)
        codes = {line.client: line.code for line in lines if line.client != waiter}
        self.assertEqual(codes, dict.fromkeys(dead, "ID"))
        died = r" worker=[1-4] died by signal 9 with \d connections?, and is replaced$"
        balancer.wait_for_line(died)
        for client in alive:
            client.close()

    def test_killed_desk_is_replaced(self) -> None:
        backend = self.backend(named)
        balancer = self.balance_with(2, servers=[backend])
        with self.dial(balancer) as client:
            served_by(client)
            wait_until(lambda: processes(balancer)[1], what="a desk")
            (desk,) = processes(balancer)[1]
            os.kill(desk, signal.SIGKILL)
            wait_until(
                lambda: [pid for pid in processes(balancer)[1] if pid != desk],
                what="a new desk",
            )
            client.sendall(b"x")
            self.assertEqual(client.recv(1), b"x")
            wait_until(lambda: self.answers(balancer), what="the status page")
            name = local_address(client)
        self.assertEqual(self.ending(balancer, name).code, "--")
        self.assert_at_rest(balancer)

    def answers(self, balancer: Running) -> bool:
        """Tell whether the status page is there."""
        with contextlib.suppress(OSError):
            return bool(figures(balancer))
        return False

    def test_stop_that_all_processes_hear_lets_live_connections_end(self) -> None:
        backend = self.backend(named)
        balancer = self.balance_with(2, servers=[backend])
        wait_until(lambda: self.answers(balancer), what="the desk")
        client = self.dial(balancer)
        served_by(client)
        for pid in reversed(family(balancer.pid)):  # as systemd stops a service
            os.kill(pid, signal.SIGTERM)
        balancer.wait_for_line("stopping: 1 live connection")
        client.sendall(b"x")
        self.assertEqual(client.recv(1), b"x")
        name = local_address(client)
        client.close()
        self.assertEqual(balancer.wait(), 0)
        self.assertEqual(self.ending(balancer, name).code, "--")
        self.assertNotIn(" died ", balancer.stdout_text())

    def test_killed_parent_leaves_no_process(self) -> None:
        balancer = self.balance_with(4, servers=[self.backend(named)])
        clients = [self.dial(balancer) for _ in range(8)]
        for client in clients:
            served_by(client)
        members = family(balancer.pid)
        os.kill(balancer.pid, signal.SIGKILL)
        wait_until(lambda: not any(title(p) for p in members[1:]), what="no process")
        for client in clients:
            with contextlib.suppress(ConnectionError):
                self.assertEqual(client.recv(1), b"")


class Turns(Several):
    """Servers and workers take turns, however many accept."""

    def test_servers_take_turns_in_the_order_of_accept(self) -> None:
        for workers in (1, 2, 4):
            with self.subTest(workers=workers):
                backends = [self.backend(named) for _ in range(3)]
                balancer = self.balance_with(workers, servers=backends)
                clients = [self.dial(balancer) for _ in range(60)]
                ports = [served_by(client) for client in clients]
                self.assertEqual(ports, ports[:3] * 20)
                self.assertEqual(len(set(ports[:3])), 3)

    def test_clients_that_come_at_once_are_spread_over_servers_evenly(self) -> None:
        backends = [self.backend(named) for _ in range(4)]
        balancer = self.balance_with(4, servers=backends)
        clients = in_parallel(*[lambda: self.held(balancer)] * 100)
        self.assertEqual(
            Counter(port for _, port in clients), {b.port: 25 for b in backends}
        )

    def test_clients_that_come_at_once_are_spread_over_the_workers(self) -> None:
        backend = self.backend(named)
        balancer = self.balance_with(4, servers=[backend])
        clients = [self.dial(balancer) for _ in range(200)]
        for client in clients:
            served_by(client)
        lost = []
        for worker in workers_of(balancer):
            before = self.alive(clients)
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda pid=worker: not title(pid), what="its end")  # type: ignore[misc]
            clients = self.alive(before)
            lost.append(len(before) - len(clients))
        self.assertEqual(sum(lost), 200)
        self.assertGreaterEqual(min(lost), 1, lost)  # not all by the first one

    def test_limit_of_all_workers_lets_the_next_one_in_at_any(self) -> None:
        balancer = self.balance_with(
            3, "--max-connections=1", servers=[self.backend(named)]
        )
        first = self.dial(balancer)
        for _ in range(12):
            served_by(first)
            second = self.dial(balancer)  # the kernel wakes one worker for it
            self.assertEqual(select.select([second], [], [], 0.05)[0], [])
            first.close()
            first = second
        served_by(first)

    def held(self, balancer: Running) -> tuple[socket.socket, int]:
        """Return a client that stays, and who serves it."""
        client = self.dial(balancer)
        return client, served_by(client)

    def alive(self, clients: list[socket.socket]) -> list[socket.socket]:
        """Return those that are still answered."""
        found = []
        for client in clients:
            with contextlib.suppress(OSError):
                client.sendall(b"x")
                if client.recv(1) == b"x":
                    found.append(client)
        return found

    def test_queue_is_first_come_first_served_over_all_workers(self) -> None:
        backend = self.backend(named)
        balancer = self.balance_with(
            4, "--queue-timeout=60", servers=[f"{backend.address},max=1"]
        )
        first, *waiting = [self.dial(balancer) for _ in range(21)]
        served_by(first)

        def queued() -> int:
            return int(figures(balancer)["connections"]["queued"])

        wait_until(lambda: queued() == 20, DEADLINE_S, "20")
        first.close()
        for left, client in zip(range(19, -1, -1), waiting, strict=True):
            served_by(client)  # one place: each in turn, or this waits in vain
            self.assertEqual(queued(), left)
            client.close()
        names = [local.client for local in wait_for_endings(balancer, 21)]
        self.assertEqual(len(set(names)), 21)


if __name__ == "__main__":
    unittest.main()
