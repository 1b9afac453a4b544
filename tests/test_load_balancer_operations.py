"""load_balancer.py: starting, stopping, restarting, its log, and other systems."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Sequence
from pathlib import Path

from tests.balancer import (
    TIME,
    BalancerTestCase,
    changes,
    command,
    endings,
    figures,
    local_address,
    named,
    other_lines,
    served_by,
    server_figures,
    status_address,
    visit_once,
    wait_for_endings,
    workers_of,
)
from tests.support import (
    DEADLINE_S,
    LISTENING,
    Running,
    ScriptTestCase,
    Visit,
    children,
    dial,
    echo,
    free_port,
    group_members,
    half_close_first,
    http_request,
    in_parallel,
    is_reset,
    read_exactly,
    read_line,
    read_to_end,
    run_main,
    script_command,
    send_reset,
    status_json,
    wait_until,
)


def wait_for_standstill(balancer: Running, way: str) -> None:
    """Wait until bytes have moved one way, and no more for a tenth of a second."""
    seen = [(0, 0.0)]

    def stands() -> bool:
        moved, (before, since) = figures(balancer)["bytes"][way], seen[0]
        if moved != before or not moved:
            seen[0] = (moved, time.monotonic())
            return False
        return time.monotonic() - since > 0.1

    wait_until(stands, what="a standstill")


class Stopping(BalancerTestCase):
    """SIGTERM lets live connections end, for a while; a second one does not."""

    takes_long = True

    def hold(self, balancer: Running, count: int = 1) -> list[socket.socket]:
        """Return live connections, served already."""
        clients = [self.dial(balancer) for _ in range(count)]
        for client in clients:
            served_by(client)
        return clients

    def wait_until_refused(self, balancer: Running) -> None:
        """Wait until new connections are refused."""

        def refused() -> bool:
            try:
                dial(balancer).close()
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:
                return False
            return False

        wait_until(refused, what="new connections to be refused")

    def test_live_connections_end_normally_within_the_grace(self) -> None:
        balancer = self.balance([self.backend(named)], "--grace=100")
        clients = self.hold(balancer, 10)
        names = [local_address(client) for client in clients]
        balancer.signal(signal.SIGTERM)
        self.wait_until_refused(balancer)
        for client in clients:
            client.sendall(b"still served")
            self.assertEqual(read_exactly(client, 12), b"still served")
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(client.recv(1), b"")
        self.assertEqual(balancer.wait(), 0)
        for name in names:
            self.assertEqual(self.ending(balancer, name).code, "--")
        self.assertEqual(balancer.stderr_text(), "")

    def test_start_and_stop_have_a_line_each_in_the_log(self) -> None:
        balancer = self.balance([self.backend(named)], "--grace=100")
        clients = self.hold(balancer, 2)
        balancer.signal(signal.SIGTERM)
        balancer.wait_for_line(" stopping")
        for client in clients:
            client.close()
        self.assertEqual(balancer.wait(), 0)
        workers = "1 worker" if self.WORKERS == 1 else f"{self.WORKERS} workers"
        lines = [line for line in balancer.stdout_lines()[1:] if "client=" not in line]
        self.assertEqual(
            [re.sub(rf"\A{TIME} ", "", line) for line in lines],
            [
                f"listening on 127.0.0.1:{balancer.port} with {workers}, version 2.0",
                "stopping: 2 live connections, waiting 100 s at most; "
                "Ctrl-C again cuts them",
                "stopped",
            ],
        )

    def test_connections_left_at_the_end_of_the_grace_are_closed(self) -> None:
        balancer = self.balance([self.backend(named)], "--grace=0.8")
        (client,) = self.hold(balancer)
        name = local_address(client)
        start = time.monotonic()
        balancer.signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(client.recv(1), b"")
        self.assertGreater(time.monotonic() - start, 0.75)
        self.assertEqual(balancer.wait(), 0)
        ending = self.ending(balancer, name)
        self.assertEqual(ending.code, "KD")
        self.assertRegex(ending.words, "shutdown|stop")

    def test_second_signal_ends_it_at_once(self) -> None:
        for first, second in (
            (signal.SIGTERM, signal.SIGTERM),
            (signal.SIGINT, signal.SIGTERM),
        ):
            with self.subTest(first=first, second=second):
                balancer = self.balance([self.backend(named)], "--grace=100")
                (client,) = self.hold(balancer)
                balancer.signal(first)
                self.wait_until_refused(balancer)
                balancer.signal(second)
                balancer.wait(15)
                with contextlib.suppress(ConnectionResetError):
                    self.assertEqual(client.recv(1), b"")

    def test_connection_cut_in_data_is_reset_on_both_sides(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([backend], "--grace=0")
        (client,) = self.hold(balancer)
        client.sendall(b"half a request")
        self.assertEqual(read_exactly(client, 14), b"half a request")
        balancer.signal(signal.SIGTERM)
        self.assertTrue(is_reset(client))
        self.assertTrue(backend.visit().done.wait(10))
        self.assertEqual(backend.visit().end, "reset")

    def test_finished_reply_reaches_its_client_though_the_connection_is_cut(
        self,
    ) -> None:
        backend = self.backend(half_close_first(b"x" * 3_000_000))
        balancer = self.balance([backend], "--grace=0.5")
        client = self.dial(balancer)
        self.assertEqual(read_exactly(client, 1_000_000), b"x" * 1_000_000)
        wait_until(lambda: figures(balancer)["live"][0]["to_client"] == 3e6, what="all")
        balancer.signal(signal.SIGTERM)
        self.assertEqual(balancer.wait(), 0)
        self.assertEqual(len(read_to_end(client)), 2_000_000)

    def test_bytes_lost_by_the_cut_are_counted(self) -> None:
        def flood(visit: Visit) -> None:
            visit.send(b"x" * 10_000_000)

        for shutdown in (False, True):
            with self.subTest(client_has_ended=shutdown):
                balancer = self.balance([self.backend(flood)], "--grace=0")
                client = self.dial(balancer)
                name = local_address(client)
                if shutdown:
                    client.shutdown(socket.SHUT_WR)
                wait_for_standstill(balancer, "to_clients")
                balancer.signal(signal.SIGTERM)
                self.assertEqual(balancer.wait(), 0)
                ending = self.ending(balancer, name)
                self.assertEqual(ending.code, "KD")
                received = 0
                with contextlib.suppress(ConnectionResetError):
                    while data := client.recv(65536):
                        received += len(data)
                    self.fail("a reply that was cut looks complete")
                self.assertGreaterEqual(ending.to_client, received)
                self.assertGreaterEqual(
                    ending.undelivered, ending.to_client - received, ending.line
                )

    def test_connection_is_logged_though_nobody_takes_its_last_bytes(self) -> None:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            balancer = self.balance([listener.getsockname()], "--grace=0.5")
            client = self.dial(balancer)
            name = local_address(client)
            server, _ = listener.accept()
        with server:
            client.sendall(b"x" * 60_000)
            client.shutdown(socket.SHUT_WR)
            wait_for_standstill(balancer, "to_servers")
            server.sendall(b"too early")
            self.assertEqual(read_exactly(client, 9), b"too early")
            send_reset(client)
            server.shutdown(socket.SHUT_WR)
            balancer.signal(signal.SIGTERM)
            self.assertEqual(balancer.wait(), 0)
        ending = self.ending(balancer, name)
        self.assertEqual((ending.code, ending.to_server), ("KD", 60_000))
        self.assertGreater(ending.undelivered, 40_000)

    def test_cut_before_the_proxy_header_is_no_end_in_data(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([backend], "--grace=0", "--accept-proxy=127.0.0.1")
        name = local_address(self.dial(balancer))
        wait_until(lambda: figures(balancer)["connections"]["active"], what="a session")
        balancer.signal(signal.SIGTERM)
        self.assertEqual(balancer.wait(), 0)
        self.assertEqual(self.ending(balancer, name).code, "KC")

    def test_second_signal_after_the_grace_ends_it_at_once_with_each_line_logged(
        self,
    ) -> None:
        balancer = self.balance([self.backend(named)], "--workers=2", "--grace=0")
        clients = self.hold(balancer, 2)
        for worker in workers_of(balancer):  # they are at rest: none has the lock
            os.kill(worker, signal.SIGSTOP)
        balancer.signal(signal.SIGTERM)
        self.wait_until_refused(balancer)
        start = time.monotonic()
        balancer.signal(signal.SIGTERM)
        self.assertEqual(balancer.wait(), 0)
        self.assertLess(time.monotonic() - start, 4)  # stalled for 5 s is killed anyway
        wait_until(lambda: not group_members(balancer.pid), what="no process")
        found = [self.ending(balancer, local_address(client)) for client in clients]
        self.assertEqual([ending.code for ending in found], ["KD", "KD"])

    def test_stop_lets_connections_end_though_nobody_reads_its_output(self) -> None:
        go_on, port = threading.Event(), free_port()

        def slow(visit: Visit) -> None:
            visit.read()
            go_on.wait(DEADLINE_S)
            visit.send(b"the reply")

        backend, (ours, its) = self.backend(slow), os.pipe()
        balancer = self.spawn(
            *("load_balancer.py", f"--listen=127.0.0.1:{port}", "--no-checks"),
            *(f"--server={backend.address}", f"--workers={self.WORKERS}"),
            *("--grace=30", "--log=log"),
            preexec_fn=functools.partial(os.dup2, its, 1),  # type: ignore[arg-type]
        )
        os.close(its)
        with open(ours, "rb") as output:
            self.assertIn(b"listening on", output.readline())
        client = self.dial(f"127.0.0.1:{port}")
        client.sendall(b"a request")
        wait_until(lambda: backend.received, what="the request")
        balancer.signal(signal.SIGTERM)
        log = self.folder / "log"
        wait_until(lambda: " stopping: 1 live" in log.read_text(), what="the stop")
        go_on.set()
        self.assertEqual(read_to_end(client), b"the reply")
        client.close()
        self.assertEqual((balancer.wait(), balancer.stderr_text()), (0, ""))

    def test_second_signal_resets_half_a_reply_for_a_slow_client_that_half_closed(
        self,
    ) -> None:
        def reply(visit: Visit) -> None:
            visit.read()
            with contextlib.suppress(OSError):
                visit.socket.sendall(bytes(64 << 20))

        backend = self.backend(reply)
        balancer = self.balance([backend], "--grace=30")
        client = self.dial(balancer)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"a request")
        client.shutdown(socket.SHUT_WR)
        read_exactly(client, 1000)
        balancer.signal(signal.SIGTERM)
        self.wait_until_refused(balancer)
        balancer.signal(signal.SIGTERM)
        self.assertEqual(balancer.wait(), 0)
        with self.assertRaises(ConnectionResetError):
            read_to_end(client)
        ending = self.ending(balancer, local_address(client))
        self.assertEqual(ending.code, "KD")
        self.assertGreater(ending.undelivered, 0)

    def test_second_signal_resets_half_a_reply(self) -> None:
        def half(visit: Visit) -> None:
            visit.send(b"half a reply")
            visit.pause(60)

        balancer = self.balance([self.backend(half)])
        client = self.dial(balancer)
        self.assertEqual(read_exactly(client, 12), b"half a reply")
        balancer.signal(signal.SIGTERM)
        self.wait_until_refused(balancer)
        balancer.signal(signal.SIGTERM)
        self.assertTrue(is_reset(client), "a clean end looks like a whole reply")
        self.assertEqual(balancer.wait(), 0)
        self.assertEqual(self.ending(balancer, local_address(client)).code, "KD")

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_child_of_somebody_else_is_no_worker(self) -> None:
        backend = self.backend(named)
        script = script_command(
            "load_balancer.py",
            ["--listen=127.0.0.1:0", "--workers=2", f"--server={backend.address}"],
        )
        words = " ".join(map(shlex.quote, script))
        command = ["bash", "-c", f"sleep 0.2 & exec {words}"]
        balancer = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.addCleanup(balancer.kill)
        assert balancer.stdout
        first = balancer.stdout.readline()
        self.assertRegex(first, r"\Alistening on 127.0.0.1:\d+ ")
        where = re.findall(r"127.0.0.1:\d+", first)[0]
        wait_until(lambda: len(children(balancer.pid)) == 3, what="the sleep's end")
        with dial(where) as client:
            self.assertTrue(served_by(client))
        balancer.terminate()
        self.assertNotIn("Traceback", balancer.communicate(timeout=30)[0])
        self.assertEqual(balancer.returncode, 0)

    def test_stopped_worker_is_killed_and_its_connections_are_logged(self) -> None:
        balancer = self.balance([self.backend(named)], "--workers=2", "--grace=0")
        clients = self.hold(balancer, 2)
        os.kill(children(balancer.pid)[0], signal.SIGSTOP)
        balancer.signal(signal.SIGTERM)
        self.assertEqual(balancer.wait(8), 0)
        wait_until(lambda: not group_members(balancer.pid), what="no process")
        found = [self.ending(balancer, local_address(client)) for client in clients]
        self.assertEqual([ending.code for ending in found], ["KD", "KD"])

    def test_log_is_reopened_also_while_it_stops(self) -> None:
        log, old = self.folder / "balancer.log", self.folder / "balancer.log.1"
        balancer = self.balance([self.backend(named)], "--log", log, "--grace=20")
        (client,) = self.hold(balancer)
        balancer.signal(signal.SIGTERM)
        self.wait_until_refused(balancer)
        log.rename(old)
        balancer.signal(signal.SIGHUP)
        wait_until(log.exists, what="the new log")
        name = local_address(client)
        client.close()
        self.assertEqual(balancer.wait(), 0)
        self.assertIn(f" client={name} ", log.read_text())
        self.assertNotIn(f" client={name} ", old.read_text())

    def test_interrupt_from_the_keyboard_stops_it_like_a_term_signal(self) -> None:
        balancer = self.balance([self.backend(named)], "--grace=20")
        (client,) = self.hold(balancer)
        balancer.signal_group(signal.SIGINT)  # a terminal signals the whole group
        self.wait_until_refused(balancer)
        client.sendall(b"still served")
        self.assertEqual(read_exactly(client, 12), b"still served")
        client.close()
        self.assertEqual(balancer.wait(), 0)
        self.assertEqual(balancer.stderr_text(), "")

    def test_idle_balancer_stops_at_once(self) -> None:
        balancer = self.balance([self.backend(named)], "--grace=100", checks=True)
        self.assertEqual(balancer.stop(15), 0)

    def test_status_says_that_it_is_stopping(self) -> None:
        balancer = self.balance([self.backend(named)], "--grace=20")
        (client,) = self.hold(balancer)
        where = status_address(balancer)
        balancer.signal(signal.SIGTERM)
        self.wait_until_refused(balancer)
        wait_until(lambda: figures(balancer)["stopping"] is True, what="stopping")
        self.assertEqual(http_request(where, "/healthz")[0], 503)
        client.close()
        self.assertEqual(balancer.wait(), 0)

    def test_queued_clients_are_told_when_it_stops(self) -> None:
        backend = self.backend(named)
        servers = [f"{backend.address},max=1"]
        balancer = self.balance(servers, "--queue-timeout=60", "--grace=0.5")
        (served,) = self.hold(balancer)
        waiting = self.dial(balancer)
        wait_until(lambda: figures(balancer)["connections"]["queued"], what="a queue")
        balancer.signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(waiting.recv(1), b"")
        self.assertEqual(balancer.wait(), 0)
        self.assertEqual(self.ending(balancer, local_address(served)).code, "KD")
        self.assertEqual(self.ending(balancer, local_address(waiting)).code, "KQ")

    def test_killed_balancer_leaves_no_process_and_no_silent_client(self) -> None:
        balancer = self.balance([self.backend(named)])
        clients = self.hold(balancer, 4)
        balancer.kill()
        for client in clients:
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(client.recv(1), b"")
        wait_until(lambda: not group_members(balancer.pid), what="no process")


class StoppingWithTwoWorkers(Stopping):
    """The same, with two processes to stop."""

    WORKERS = 2


class Workers(BalancerTestCase):
    """Several processes are one balancer to everybody outside."""

    WORKERS = 2

    def test_worker_that_dies_takes_only_its_own_connections(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([backend])
        workers = set(children(balancer.pid))
        self.assertGreaterEqual(len(workers), 2)
        clients = [self.dial(balancer) for _ in range(12)]
        for client in clients:
            served_by(client)
        os.kill(min(workers), signal.SIGKILL)
        wait_until(
            lambda: (
                min(workers) not in children(balancer.pid)
                and len(children(balancer.pid)) == len(workers)
            ),
            what="a new worker",
        )
        alive = 0
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"x")
                alive += client.recv(1) == b"x"
        self.assertTrue(0 < alive < 12, alive)
        wait_until(
            lambda: figures(balancer)["connections"]["active"] == alive,
            what="the figures to know",
        )
        self.assertEqual(server_figures(balancer, backend)["active"], alive)
        wait_until(
            lambda: any("worker" in line for line in other_lines(balancer)),
            what="a line in the log",
        )
        ports = [visit_once(balancer) for _ in range(8)]
        self.assertEqual(set(ports), {backend.port})
        for client in clients:
            client.close()
        wait_until(lambda: not figures(balancer)["connections"]["active"], what="none")

    def test_limits_survive_the_death_of_a_worker(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([f"{backend.address},max=4"], "--queue-timeout=30")
        clients = [self.dial(balancer) for _ in range(4)]
        for client in clients:
            served_by(client)
        for worker in children(balancer.pid):
            os.kill(worker, signal.SIGKILL)
        for client in clients:
            with contextlib.suppress(ConnectionError):
                self.assertEqual(client.recv(1), b"")
        again = [self.dial(balancer) for _ in range(4)]
        for client in again:
            client.settimeout(20)
            served_by(client)

    def test_one_log_holds_one_line_for_each_connection(self) -> None:
        backend = self.backend(named)
        log = self.folder / "balancer.log"
        balancer = self.balance([backend], "--log", log)
        in_parallel(*[lambda: [visit_once(balancer) for _ in range(20)]] * 10)
        wait_until(lambda: log.read_text().count(" client=") >= 200, what="200 lines")
        lines = endings(log.read_text().splitlines())
        self.assertEqual(len(lines), 200)  # a port of a client may come twice

    def test_auto_starts_one_worker_per_core(self) -> None:
        balancer = self.balance([self.backend(named)], "--workers=auto")
        cores = len(os.sched_getaffinity(0))
        found = len(children(balancer.pid))
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            self.assertEqual(found, 0)  # its threads use all cores
        elif cores > 1:
            # One may be the first process itself, one may do what all share.
            self.assertIn(found, (cores, cores - 1, cores + 1))
        visit_once(balancer)


SYSTEMD = """
import os
given = os.environ.pop("TEST_LISTEN_FD", "")
if given:
    if int(given) != 3:
        os.dup2(int(given), 3, inheritable=True)
    os.environ["LISTEN_FDS"] = "1"
    os.environ["LISTEN_PID"] = os.environ.pop("TEST_LISTEN_PID", str(os.getpid()))
"""


class Activation(BalancerTestCase):
    """systemd may own the listening socket, and is told what happens."""

    def setUp(self) -> None:
        """Own a listening socket, as systemd does (sd_listen_fds(3))."""
        super().setUp()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.addCleanup(self.listener.close)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        (self.folder / "sitecustomize.py").write_text(SYSTEMD)

    def activate(self, *options: object, **env: str) -> Running:
        """Start a balancer on this socket, as descriptor 3."""
        number = self.listener.fileno()
        return self.spawn(
            "load_balancer.py",
            "--no-checks",
            f"--workers={self.WORKERS}",
            *options,
            env={
                "PYTHONPATH": str(self.folder),
                "TEST_LISTEN_FD": str(number),
                **env,
            },
            pass_fds=[number],
        )

    def test_given_socket_is_used_and_named(self) -> None:
        backend = self.backend(named)
        balancer = self.activate(f"--server={backend.address}")
        self.assertEqual(balancer.address, self.address)
        self.assertEqual(visit_once(self.address), backend.port)

    def test_restart_refuses_no_connection(self) -> None:
        backend = self.backend(named)
        option = f"--server={backend.address}"
        stop = threading.Event()
        served: list[int] = []

        def knock() -> None:
            while not stop.is_set():
                with dial(self.address, 30) as client:
                    served.append(served_by(client))

        threads = [threading.Thread(target=knock, name="knock") for _ in range(4)]
        balancer = self.activate(option)
        balancer.listening()
        try:
            for thread in threads:
                thread.start()
            for _ in range(2):
                self.wait_for_more(served)
                self.assertEqual(balancer.stop(), 0)
                balancer = self.activate(option)
                balancer.listening()
            self.wait_for_more(served)
        finally:
            stop.set()
            for thread in threads:
                thread.join(40)
        self.assertEqual(set(served), {backend.port})
        # Each knock that ended otherwise would have ended its thread with an error,
        # and the count of connections at the server would differ.
        self.assertEqual(len(served), backend.total)

    def wait_for_more(self, served: list[int]) -> None:
        """Wait until twenty more visits were served."""
        count = len(served)
        wait_until(lambda: len(served) > count + 20, what="twenty visits")

    def test_bad_option_leaves_the_old_one_running(self) -> None:
        backend = self.backend(named)
        self.activate(f"--server={backend.address}").listening()
        new = self.activate("--algorithm=fastest")
        self.assertEqual(new.wait(), 2)
        self.assertEqual(visit_once(self.address), backend.port)

    def test_socket_meant_for_another_process_is_left_alone(self) -> None:
        backend = self.backend(named)
        balancer = self.activate(
            f"--server={backend.address}", "--listen=127.0.0.1:0", TEST_LISTEN_PID="1"
        )
        self.assertNotEqual(balancer.address, self.address)
        self.assertEqual(visit_once(balancer), backend.port)

    def test_service_manager_is_told_ready_and_stopping(self) -> None:
        path = str(self.folder / "notify")
        places = {path: path}
        if sys.platform == "linux":
            places[f"@{path}"] = f"\0{path}"  # abstract (unix(7))
        for name, place in places.items():
            with (
                self.subTest(name),
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
            ):
                manager.settimeout(20)
                manager.bind(place)
                backend = self.backend(named)
                balancer = self.balancer(
                    "--no-checks",
                    f"--workers={self.WORKERS}",
                    servers=[backend],
                    env={"NOTIFY_SOCKET": name},
                )
                self.assertIn(b"READY=1", manager.recv(1000).split(b"\n"))
                visit_once(balancer)
                balancer.signal(signal.SIGTERM)
                self.assertIn(b"STOPPING=1", manager.recv(1000).split(b"\n"))
                self.assertEqual(balancer.wait(), 0)

    def test_service_manager_that_is_gone_does_no_harm(self) -> None:
        for path in (str(self.folder / "nobody"), "@lab-test-nobody", "nonsense"):
            with self.subTest(path):
                backend = self.backend(named)
                balancer = self.balancer(
                    "--no-checks", servers=[backend], env={"NOTIFY_SOCKET": path}
                )
                visit_once(balancer)
                self.assertEqual(balancer.stop(), 0)


class RollingRestart(BalancerTestCase):
    """Three servers are restarted one by one, and no client notices."""

    LOOPING = 50

    def test_rolling_restart_under_looping_clients_fails_nobody(self) -> None:
        servers = self.servers(3)
        balancer = self.balance(
            servers, "--check-interval=0.2", "--rise=1", "--fall=1", checks=True
        )
        stop = threading.Event()
        counts = [0] * self.LOOPING

        def loop(number: int) -> None:
            message = f"Hello from client {number}!\n".encode()
            pattern = re.compile(rb"Server (\d+) received: " + re.escape(message))
            while not stop.wait(0.02):
                with dial(balancer, 30) as client:
                    client.sendall(message)
                    reply = read_line(client)
                if not pattern.fullmatch(reply):
                    raise AssertionError(f"client {number} got {reply!r}")
                counts[number] += 1

        def restart_all() -> None:
            try:
                for server in servers:
                    self.restart(balancer, server)
            finally:
                stop.set()

        loops = [lambda n=n: loop(n) for n in range(self.LOOPING)]
        in_parallel(restart_all, *loops, timeout=120)
        self.assertGreater(min(counts), 0)
        connections = figures(balancer)["connections"]
        self.assertEqual((connections["failed"], connections["refused"]), (0, 0))
        wait_for_endings(balancer, sum(counts))
        self.assertEqual(
            {ending.code for ending in endings(balancer.stdout_lines())}, {"--"}
        )

    def restart(self, balancer: Running, server: Running) -> None:
        """Drain, stop, start again on the same port, and make ready."""
        self.assertEqual(command(balancer, server, "drain"), 200)
        wait_until(lambda: not server_figures(balancer, server)["active"], what="none")
        self.assertEqual(server.stop(), 0)
        again = self.start("server2.py", server.port)
        self.assertEqual(command(balancer, again, "ready"), 200)
        before = server_figures(balancer, again)["total"]
        wait_until(
            lambda: server_figures(balancer, again)["total"] > before + 5,
            what="clients at the restarted server",
        )


class RollingRestartWithTwoWorkers(RollingRestart):
    """The same, through two processes."""

    WORKERS = 2


class Log(BalancerTestCase):
    """One line per connection, one per change of state, in the written format."""

    def test_a_minus_is_standard_output(self) -> None:
        balancer = self.balance([self.backend(echo)], "--log=-")
        balancer.wait_for_line("listening on .* with")
        self.assertFalse(Path(self.folder, "-").exists())

    def test_lines_have_the_literal_format(self) -> None:
        backend = self.backend(echo)
        balancer = self.balance([backend])
        client = self.dial(balancer)
        name = local_address(client)
        client.sendall(b"Hello from client 2!\n")
        read_exactly(client, 21)
        client.close()
        line = self.ending(balancer, name).line
        self.assertRegex(
            line,
            r"\A\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
            rf"client={name} server={backend.address} tries=1 "
            r"connect_ms=\d+\.\d+ duration_ms=\d+(\.\d+)? to_server=21 to_client=21 "
            r"undelivered=0 end=-- closed by both sides\Z",
        )
        stamp = time.mktime(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S"))
        self.assertLess(abs(time.time() - stamp), 60, "not local time")

    def test_every_connection_has_exactly_one_line(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([backend])
        in_parallel(*[lambda: [visit_once(balancer) for _ in range(10)]] * 10)
        lines = wait_for_endings(balancer, 100)
        self.assertEqual(len({line.client for line in lines}), 100)
        self.assertEqual(other_lines(balancer), [])
        self.assertEqual(balancer.stop(), 0)
        self.assertEqual(len(endings(balancer.stdout_lines())), 100)

    def test_log_file_takes_the_lines_instead_of_standard_output(self) -> None:
        log = self.folder / "balancer.log"
        log.write_text("kept from before\n")
        balancer = self.balance([self.backend(named)], "--log", log)
        visit_once(balancer)
        wait_until(lambda: log.read_text().count(" client=") == 1, what="the line")
        self.assertEqual(log.read_text().splitlines()[0], "kept from before")
        self.assertNotIn(" client=", balancer.stdout_text())

    def test_quiet_balancer_still_writes_its_log_file(self) -> None:
        log = self.folder / "balancer.log"
        balancer = self.balance([self.backend(named)], "--quiet", "--log", log)
        visit_once(balancer)
        wait_until(lambda: " client=" in log.read_text(), what="the line")
        self.assertEqual(len(balancer.stdout_lines()), 1)

    def test_log_that_cannot_be_opened_anew_goes_on_in_the_old_file(self) -> None:
        log, old = self.folder / "balancer.log", self.folder / "old.log"
        balancer = self.balance([self.backend(named)], "--log", log)
        visit_once(balancer)
        log.rename(old)
        log.mkdir()
        balancer.signal(signal.SIGHUP)
        wait_until(
            lambda: f" cannot reopen {log}: is a directory\n" in old.read_text(),
            what="the reason",
        )
        visit_once(balancer)
        wait_until(lambda: old.read_text().count(" client=") == 2, what="the line")

    def test_quiet_balancer_prints_nothing_but_its_first_line(self) -> None:
        balancer = self.balance([self.backend(named)], "--quiet")
        visit_once(balancer)
        self.assertEqual(balancer.stop(), 0)
        self.assertEqual(len(balancer.stdout_lines()), 1)

    def test_stop_is_told_on_standard_output_though_the_log_is_a_file(self) -> None:
        for option, told in (("--no-checks", ["stopping"]), ("--quiet", [])):
            with self.subTest(option):
                log = self.folder / f"log{option}"
                balancer = self.balance([self.backend(named)], option, "--log", log)
                self.assertEqual(balancer.stop(), 0)
                self.assertEqual(balancer.stdout_lines()[1:], told)
                self.assertIn(" stopped\n", log.read_text())

    def test_log_that_cannot_be_written_stops_no_traffic(self) -> None:
        if not Path("/dev/full").exists():
            self.skipTest("needs /dev/full (Linux)")
        backend = self.backend(named)
        balancer = self.balance([backend], "--log=/dev/full")
        for _ in range(5):
            self.assertEqual(visit_once(balancer), backend.port)
        self.assertNotIn("Traceback", balancer.stderr_text())

    def test_log_that_nobody_reads_stops_no_service(self) -> None:
        read_fd, write_fd = os.pipe()
        self.addCleanup(os.close, read_fd)
        self.addCleanup(os.close, write_fd)
        os.set_blocking(read_fd, False)

        def write_there() -> None:
            os.dup2(write_fd, 1)

        backend = self.backend(named)
        status = f"127.0.0.1:{free_port()}"
        balancer = self.spawn(
            "load_balancer.py",
            "--listen=127.0.0.1:0",
            f"--server={backend.address}",
            f"--status={status}",
            "--check-interval=0.1",
            "--rise=1",
            "--fall=1",
            preexec_fn=write_there,
        )
        select.select([read_fd], [], [], DEADLINE_S)
        first = LISTENING.match(os.read(read_fd, 65536).decode())
        assert first
        address = f"{first[1]}:{first[2]}"

        def wait_for_state(state: str) -> None:
            wait_until(
                lambda: status_json(status)["servers"][0]["state"] == state, what=state
            )

        wait_for_state("UP")
        while select.select([], [write_fd], [], 0)[1]:
            os.write(write_fd, bytes(select.PIPE_BUF))
        self.assertEqual(visit_once(address), backend.port)  # its line fits no more
        backend.close()
        wait_for_state("DOWN")
        for _ in range(2):  # fail-open has something to say, too
            with dial(address) as client, contextlib.suppress(ConnectionResetError):
                self.assertEqual(client.recv(1), b"")
        self.backend(named, port=backend.port)
        wait_for_state("UP")
        self.assertEqual(visit_once(address), backend.port)
        self.assertEqual(balancer.stop(10), 0)

    def test_first_lines_say_where_it_listens(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([backend])
        first = balancer.stdout_lines()[0]
        self.assertRegex(first, r"\Alistening on 127\.0\.0\.1:[1-9]\d* \(.+\)\Z")
        visit_once(f"127.0.0.1:{balancer.port}")
        host, _, port = status_address(balancer).rpartition(":")
        self.assertEqual(host, "127.0.0.1")
        self.assertNotEqual(port, "0")


class Ipv6(BalancerTestCase):
    """IPv6 works at every place where an address stands."""

    def test_listener_server_status_and_log_speak_ipv6(self) -> None:
        if not socket.has_ipv6:
            self.skipTest("this Python has no IPv6")
        backend = self.backend(named, host="::1")
        balancer = self.balancer(
            "--status=[::1]:0",
            "--check-interval=0.3",
            servers=[backend],
            listen="[::1]:0",
        )
        self.assertRegex(balancer.stdout_lines()[0], r"\Alistening on \[::1\]:\d+ \(")
        client = self.dial(balancer)
        name = local_address(client)
        self.assertEqual(served_by(client), backend.port)
        client.close()
        ending = self.ending(balancer, name)
        self.assertEqual(ending.client, f"[::1]:{name.rpartition(':')[2]}")
        self.assertEqual(ending.server, f"[::1]:{backend.port}")
        document = figures(balancer)
        self.assertEqual(document["listen"], balancer.address)
        self.assertEqual(document["servers"][0]["address"], backend.address)
        self.assertEqual(command(balancer, backend, "drain"), 200)
        self.assertEqual(figures(balancer)["servers"][0]["state"], "DRAIN")


WINDOWS_LACKS = (
    *("os.splice", "os.fork", "os.sched_getaffinity", "os.pipe2", "resource"),
    *("socket.send_fds", "socket.recv_fds", "socket.SO_REUSEPORT"),
    *("signal.SIGHUP", "select.poll", "select.epoll", "fcntl", "termios"),
)
OPTIONS = (
    "listen server algorithm check-interval rise fall check-timeout no-checks"
    " connect-timeout idle-timeout half-close-timeout grace queue-timeout"
    " max-connections allow accept-proxy send-proxy workers status log quiet"
)


class OtherSystems(BalancerTestCase):
    """What only Linux has is used where it is there, and not missed elsewhere."""

    def check_without(self, names: Sequence[str], workers: str) -> None:
        """Take `names` away; relay a lot both ways, half-close, count, stop."""
        backend = self.backend(named)
        balancer = self.spawn(
            *("load_balancer.py", "--listen=127.0.0.1:0", "--status=127.0.0.1:0"),
            *(f"--server={backend.address}", f"--workers={workers}", "--no-checks"),
            "--grace=5",
            env=self.without(*names),
        )
        data = bytes(range(256)) * 8192
        client = self.dial(balancer, 30)

        def send() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        _, answer = in_parallel(send, lambda: read_to_end(client))
        self.assertEqual(answer, b"%05d" % backend.port + data)
        for _ in range(5):
            self.assertEqual(visit_once(balancer), backend.port)
        self.assertEqual(figures(balancer)["connections"]["total"], 6)
        wait_for_endings(balancer, 6)
        self.assertEqual(balancer.stop(), 0)
        self.assertEqual(balancer.stderr_text(), "")

    def test_each_linux_only_call_may_be_missing(self) -> None:
        for names in (
            ("os.splice",),
            ("socket.send_fds", "socket.recv_fds"),
            ("resource",),
            ("signal.SIGHUP",),
            ("socket.SO_REUSEPORT",),
            ("socket.TCP_KEEPIDLE", "socket.TCP_KEEPINTVL", "socket.TCP_KEEPCNT"),
            ("select.poll", "select.epoll"),
            ("os.fork", "os.sched_getaffinity"),
            ("fcntl", "termios"),
            WINDOWS_LACKS,
        ):
            with self.subTest(names=names):
                check = functools.partial(self.check_without, names)
                in_parallel(
                    functools.partial(check, "1"), functools.partial(check, "auto")
                )

    def test_workers_that_a_system_cannot_have_are_refused_in_one_line(self) -> None:
        for names in (("os.fork",), WINDOWS_LACKS):
            result = self.run_script(
                *("load_balancer.py", "--listen=127.0.0.1:0", "--workers=2"),
                env=self.without(*names),
            )
            self.assert_one_line(result, 2, "--workers 1")


NO_THREADS = """
import threading
def start(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
"""


class BadOptions(ScriptTestCase):
    """What cannot work is said in one line, with the exit code for it."""

    def test_each_bad_value_is_named_with_exit_code_2(self) -> None:
        listen = "--listen=127.0.0.1:0"
        unwritable = self.folder / "missing" / "folder" / "log"
        cases: list[tuple[str, ...]] = [  # a word of the answer, then options
            ("nonsense", "--listen=nonsense"),
            ("65536", "--listen=127.0.0.1:65536"),
            ("::1:80", "--listen=::1:80"),
            ("no-such-host.invalid", "--listen=no-such-host.invalid:0"),
            ("9991x", listen, "--server=127.0.0.1:9991x"),
            ("--server", listen, "--server=127.0.0.1:1,weight=x"),
            ("--server", listen, "--server=127.0.0.1:1,weight=-1"),
            ("--server", listen, "--server=127.0.0.1:1,max=-1"),
            ("--server", listen, "--server=127.0.0.1:1,max="),
            ("color", listen, "--server=127.0.0.1:1,color=red"),
            ("backup", listen, "--server=127.0.0.1:1,backup=maybe"),
            ("more than once", listen, *["--server=127.0.0.1:1"] * 2),
            ("more than once", *["--server=127.1:1", "--server=127.0.0.1:1"]),
            ("fastest", listen, "--algorithm=fastest"),
            ("--check-interval", listen, "--check-interval=0"),
            ("--check-interval", listen, "--check-interval=nan"),
            ("--rise", listen, "--rise=0"),
            ("--fall", listen, "--fall=-1"),
            ("--fall", listen, "--fall=1.5"),
            ("--check-timeout", listen, "--check-timeout=0"),
            ("--connect-timeout", listen, "--connect-timeout=-1"),
            ("--idle-timeout", listen, "--idle-timeout=never"),
            ("--half-close-timeout", listen, "--half-close-timeout=-0.1"),
            ("--grace", listen, "--grace=-1"),
            ("--queue-timeout", listen, "--queue-timeout=inf"),
            ("--max-connections", listen, "--max-connections=-1"),
            ("--allow", listen, "--allow=300.0.0.0/8"),
            ("--accept-proxy", listen, "--accept-proxy=everybody"),
            ("v3", listen, "--send-proxy=v3"),
            ("--workers", listen, "--workers=0"),
            ("--workers", listen, "--workers=many"),
            ("--status", listen, "--status=nowhere"),
            ("log", listen, f"--log={unwritable}"),
            ("extra", listen, "extra"),
            ("--no-such-option", listen, "--no-such-option"),
        ]
        results = run_main(
            "load_balancer.py", [options for _, *options in cases], cwd=self.folder
        )
        for (word, *options), result in zip(cases, results, strict=True):
            with self.subTest(options=options):
                self.assert_one_line(result, 2, word)

    def test_system_without_threads_is_named_with_exit_code_1(self) -> None:
        (self.folder / "sitecustomize.py").write_text(NO_THREADS)
        result = self.run_script(
            *("load_balancer.py", "--listen=127.0.0.1:0", "--workers=2"),
            env={"PYTHONPATH": str(self.folder)},
        )
        self.assertEqual(result.returncode, 1)
        words = "load_balancer.py: cannot start: can't start new thread\n"
        self.assertEqual(result.stderr, words)

    def test_port_in_use_is_named_with_exit_code_1(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            for options in (
                (f"--listen={address}",),
                (f"--listen={address}", "--workers=2"),
                (f"--listen=127.0.0.1:{free_port()}", f"--status={address}"),
            ):
                with self.subTest(options=options):
                    result = self.run_script("load_balancer.py", *options)
                    self.assert_one_line(result, 1, address)

    def test_address_of_another_machine_cannot_be_listened_on(self) -> None:
        result = self.run_script("load_balancer.py", "--listen=192.0.2.1:0")
        self.assertIn(result.returncode, (1, 2))
        self.assert_one_line(result, result.returncode, "192.0.2.1")

    def test_help_names_every_option_of_the_contract(self) -> None:
        result = self.run_script("load_balancer.py", "--help")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        for option in OPTIONS.split():
            self.assertRegex(result.stdout, rf"--{option}\b")
        for default in ("127.0.0.1:9990", "9991", "9993", "3600", "300", "30"):
            self.assertIn(default, result.stdout)


class Defaults(ScriptTestCase):
    """What happens without options."""

    def test_servers_are_the_three_usual_ones(self) -> None:
        balancer = self.start(
            "load_balancer.py",
            "--listen=127.0.0.1:0",
            "--status=127.0.0.1:0",
            "--no-checks",
        )
        addresses = [entry["address"] for entry in figures(balancer)["servers"]]
        self.assertEqual(
            addresses, ["127.0.0.1:9991", "127.0.0.1:9992", "127.0.0.1:9993"]
        )
        self.assertEqual(changes(balancer.stdout_lines()), [])

    def test_importing_the_script_starts_nothing(self) -> None:
        count = threading.active_count()
        module = __import__("load_balancer")
        self.assertEqual(threading.active_count(), count)
        quiet = contextlib.redirect_stderr(io.StringIO())
        with quiet, self.assertRaises(SystemExit) as stopped:
            module.main(["--algorithm=fastest"])
        self.assertEqual(stopped.exception.code, 2)
