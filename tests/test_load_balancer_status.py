"""load_balancer.py: the status port, its formats, and who may use it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import load_balancer
from tests.balancer import (
    SAME_ORIGIN,
    BalancerTestCase,
    command,
    figures,
    local_address,
    named,
    status_address,
    visit_once,
    wait_for_endings,
)
from tests.support import (
    ROOT,
    Backend,
    Running,
    dial,
    echo,
    http_request,
    in_parallel,
    read_exactly,
    read_to_end,
    refusing_address,
    split_address,
    wait_until,
)
from tests.test_surroundings import Terminal

SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"(?:,|\Z)')

Sample = tuple[str, tuple[tuple[str, str], ...]]


class Metrics:
    """The Prometheus text format, parsed by its rules (exposition format 0.0.4)."""

    def __init__(self, text: str) -> None:
        """Parse; AssertionError for what Prometheus would reject."""
        self.types: dict[str, str] = {}
        self.helps: set[str] = set()
        self.samples: dict[Sample, float] = {}
        if not text.endswith("\n"):
            raise AssertionError("the last line has no end")
        for line in text.split("\n")[:-1]:
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                if name in self.types:
                    raise AssertionError(f"two types for {name}")
                self.types[name] = kind
            elif line.startswith("# HELP "):
                self.helps.add(line.split(" ")[2])
            else:
                self._add(line)

    def _add(self, line: str) -> None:
        match = SAMPLE.fullmatch(line)
        if not match:
            raise AssertionError(f"not a sample: {line!r}")
        name, labels, value = match.groups()
        pairs = LABEL.findall(labels or "")
        if (
            labels
            and "".join(f'{k}="{v}",' for k, v in pairs) != labels.rstrip(",") + ","
        ):
            raise AssertionError(f"not labels: {line!r}")
        family = re.sub(r"_(bucket|sum|count)\Z", "", name)
        if name not in self.types and self.types.get(family) != "histogram":
            raise AssertionError(f"a sample before its type: {line!r}")
        key = (name, tuple(sorted(pairs)))
        if key in self.samples:
            raise AssertionError(f"twice: {line!r}")
        self.samples[key] = float(value)

    def value(self, name: str, **labels: str) -> float:
        """Return one sample."""
        return self.samples[f"load_balancer_{name}", tuple(sorted(labels.items()))]


def metrics(balancer: Running) -> Metrics:
    """Return `/metrics`, parsed."""
    status, headers, body = http_request(status_address(balancer), "/metrics")
    if status != 200 or not headers["content-type"].startswith("text/plain"):
        raise AssertionError(f"{status} {headers}")
    return Metrics(body.decode())


class Figures(BalancerTestCase):
    """Log, status document and metrics agree on every connection and byte."""

    def test_figures_are_exact_and_agree_with_log_and_metrics(self) -> None:
        with refusing_address() as dead:
            one, two = self.backend(echo), self.backend(echo)
            balancer = self.balance([dead, one, f"{two.address},weight=1,max=50"])
            for size in (0, 1, 1000, 70_000, 5, 0, 300_000):
                client = self.dial(balancer)
                client.sendall(bytes(size))
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(len(read_to_end(client)), size)
                client.close()
            live = self.dial(balancer)
            live.sendall(bytes(123))
            read_exactly(live, 123)
            lines = wait_for_endings(balancer, 7)
            wait_until(lambda: figures(balancer)["connections"]["active"] == 1)

            document = figures(balancer)
            self.assertEqual(
                document["connections"],
                {"active": 1, "total": 8, "failed": 0, "refused": 0, "queued": 0},
            )
            self.assertEqual(sum(line.to_server for line in lines), 371_006)
            self.assertEqual(sum(line.to_client for line in lines), 371_006)
            wait_until(
                lambda: (
                    figures(balancer)["bytes"]
                    == {"to_servers": 371_129, "to_clients": 371_129}
                ),
                what="the exact bytes",
            )
            document = figures(balancer)
            for address in (one.address, two.address):
                entry = self.entry(document, address)
                mine = [line for line in lines if line.server == address]
                live_here = entry["active"]
                self.assertEqual(entry["total"], len(mine) + live_here)
                expected = sum(line.to_server for line in mine) + 123 * live_here
                self.assertEqual(entry["bytes_to_server"], expected)
                self.assertEqual(entry["bytes_to_client"], expected)
            retries = sum(line.tries - 1 for line in lines)
            refused = self.entry(document, dead)
            # The live connection may have met the refusing server as well.
            self.assertIn(refused["connect_failures"], (retries, retries + 1))
            self.assertEqual(refused["retries"], refused["connect_failures"])
            self.compare(document, metrics(balancer))

    def entry(self, document: dict[str, Any], address: str) -> dict[str, Any]:
        """Return the entry of one server."""
        found: dict[str, Any] = next(
            entry for entry in document["servers"] if entry["address"] == address
        )
        return found

    def compare(self, document: dict[str, Any], parsed: Metrics) -> None:
        """Expect the same figures under the names of the contract."""
        connections = document["connections"]
        value = parsed.value
        self.assertEqual(value("connections_total"), connections["total"])
        self.assertEqual(value("connections_active"), connections["active"])
        self.assertEqual(value("connections_failed_total"), connections["failed"])
        self.assertEqual(value("refused_total"), connections["refused"])
        self.assertEqual(value("queued"), connections["queued"])
        self.assertEqual(value("stopping"), document["stopping"])
        for direction in ("to_server", "to_client"):
            expected = document["bytes"][f"{direction}s"]
            self.assertEqual(value("bytes_total", direction=direction), expected)
        ended = connections["total"] - connections["active"]
        self.assertEqual(value("ends_total", code="--"), ended)
        self.assertEqual(value("connection_seconds_count"), ended)
        self.assertEqual(value("queue_seconds_count"), 0)
        for entry in document["servers"]:
            name = entry["address"]
            up = 1 if entry["state"] == "UP" else 0
            self.assertEqual(value("server_up", server=name), up)
            for state in ("UP", "DOWN", "DRAIN", "MAINT"):
                got = value("server_state", server=name, state=state)
                self.assertEqual(got, entry["state"] == state)
            for metric, key in (
                ("connections_active", "active"),
                ("connections_total", "total"),
                ("connect_failures_total", "connect_failures"),
                ("retries_total", "retries"),
                ("weight", "weight"),
                ("max", "max"),
                ("backup", "backup"),
            ):
                self.assertEqual(value(f"server_{metric}", server=name), entry[key])
            for direction in ("to_server", "to_client"):
                got = value("server_bytes_total", server=name, direction=direction)
                self.assertEqual(got, entry[f"bytes_{direction}"])
            self.check_histogram(parsed, name, entry["total"])

    def check_histogram(self, parsed: Metrics, server: str, count: float) -> None:
        """Expect growing buckets that end at the number of connects."""
        name = "load_balancer_server_connect_seconds"
        buckets = sorted(
            (float(dict(labels)["le"]), value)
            for (sample, labels), value in parsed.samples.items()
            if sample == f"{name}_bucket" and dict(labels)["server"] == server
        )
        self.assertGreater(len(buckets), 2)
        self.assertEqual(buckets[-1], (float("inf"), count))
        values = [value for _, value in buckets]
        self.assertEqual(values, sorted(values))
        self.assertEqual(parsed.samples[f"{name}_count", (("server", server),)], count)
        total = parsed.samples[f"{name}_sum", (("server", server),)]
        self.assertTrue(0 <= total < 60)
        self.assertEqual(parsed.types[name], "histogram")


class FiguresWithTwoWorkers(Figures):
    """The same, summed over two processes."""

    WORKERS = 2


class Formats(BalancerTestCase):
    """Names and formats are those of the contract."""

    def test_status_document_has_the_keys_of_the_contract(self) -> None:
        backend, backup = self.backend(named), self.backend(named)
        balancer = self.balance(
            [f"{backend.address},weight=3,max=7", f"{backup.address},backup"],
            checks=True,
        )
        visit_once(balancer)
        document = figures(balancer)
        keys = "version listen uptime_s stopping connections bytes servers live"
        self.assertEqual(set(document), set(keys.split()))
        self.assertEqual((document["version"], document["stopping"]), (1, False))
        self.assertEqual(document["listen"], balancer.address)
        first, second = document["servers"]
        keys = (
            "address state weight backup max active total connect_failures retries"
            " bytes_to_server bytes_to_client last_change_s last_check"
        )
        self.assertEqual(set(first), set(keys.split()))
        self.assertEqual(
            [first["address"], first["weight"], first["max"], first["backup"]],
            [backend.address, 3, 7, False],
        )
        self.assertEqual(
            [second["address"], second["weight"], second["max"], second["backup"]],
            [backup.address, 1, 0, True],
        )
        self.assertLessEqual(first["last_change_s"], document["uptime_s"] + 1)

    def test_metrics_have_a_type_and_a_help_each(self) -> None:
        balancer = self.balance([self.backend(named)])
        parsed = metrics(balancer)
        self.assertEqual(set(parsed.types), parsed.helps)
        for name, kind in {
            "connections_total": "counter",
            "connections_active": "gauge",
            "connections_failed_total": "counter",
            "server_up": "gauge",
            "server_connections_active": "gauge",
            "server_connections_total": "counter",
            "server_connect_failures_total": "counter",
            "server_bytes_total": "counter",
            "server_connect_seconds": "histogram",
            "queued": "gauge",
            "refused_total": "counter",
            "ends_total": "counter",
            "queue_seconds": "histogram",
            "connection_seconds": "histogram",
            "server_state": "gauge",
            "server_weight": "gauge",
            "server_max": "gauge",
            "server_retries_total": "counter",
            "server_checks_failed_total": "counter",
            "start_time_seconds": "gauge",
            "build_info": "gauge",
        }.items():
            self.assertEqual(parsed.types.get(f"load_balancer_{name}"), kind, name)

    def test_wait_in_the_queue_and_each_end_are_counted_once(self) -> None:
        server = self.backend(named)
        balancer = self.balance([f"{server.address},max=1"], "--queue-timeout=0.2")
        holder, waiter, late = (self.dial(balancer) for _ in range(3))
        read_exactly(holder, 5)
        self.assertEqual((waiter.recv(1), late.recv(1)), (b"", b""))
        holder.close()
        wait_for_endings(balancer, 3)
        parsed = metrics(balancer)
        self.assertEqual(parsed.value("ends_total", code="sQ"), 2)
        self.assertEqual(parsed.value("ends_total", code="--"), 1)
        self.assertEqual(parsed.value("queue_seconds_count"), 2)
        self.assertEqual(parsed.value("queue_seconds_bucket", le="0.1"), 0)
        self.assertGreaterEqual(parsed.value("queue_seconds_sum"), 0.4)
        self.assertEqual(parsed.value("connection_seconds_count"), 3)

    def test_build_and_start_are_told(self) -> None:
        balancer = self.balance([self.backend(named)])
        parsed = metrics(balancer)
        self.assertAlmostEqual(
            parsed.value("start_time_seconds"), time.time(), delta=60
        )
        ((_, labels),) = (k for k in parsed.samples if k[0].endswith("_build_info"))
        found = dict(labels)
        self.assertEqual((found["version"], found["workers"]), ("2.0", "1"))
        self.assertRegex(found["python"], r"\A3\.\d+\.\d+\Z")
        self.assertIn(found["free_threaded"], ("yes", "no"))

    def test_client_of_prometheus_itself_reads_the_metrics(self) -> None:
        python = os.environ.get("LAB_PROMETHEUS_PYTHON")
        if not python:
            self.skipTest("LAB_PROMETHEUS_PYTHON names no Python that has it")
        balancer = self.balance([self.backend(named)])
        visit_once(balancer)
        wait_for_endings(balancer, 1)
        text = http_request(status_address(balancer), "/metrics")[2]
        program = (
            "import sys; from prometheus_client.parser import *\n"
            "for f in text_string_to_metric_families(sys.stdin.read()):\n"
            "    print(f.name, f.type, len(f.samples))\n"
        )
        result = subprocess.run(
            [python, "-c", program], input=text, capture_output=True, check=False
        )
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        families = result.stdout.decode().splitlines()
        for family in (
            "load_balancer_connections counter 1",
            "load_balancer_ends counter 19",
            "load_balancer_server_state gauge 4",
            "load_balancer_queue_seconds histogram 23",
            "load_balancer_build_info gauge 1",
        ):
            self.assertIn(family, families)

    def test_each_end_of_readme_has_its_counter(self) -> None:
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        rows = re.findall(r"(?m)^\| `[A-Za-z-]{2}` .*", readme)
        codes = re.findall(r"`([A-Za-z-]{2})`", " ".join(rows))
        self.assertGreater(len(codes), 15)
        parsed = metrics(self.balance([self.backend(named)]))
        for code in codes:
            self.assertEqual(parsed.value("ends_total", code=code), 0)

    def test_failed_and_refused_connections_are_counted_apart(self) -> None:
        with refusing_address() as dead:
            for option, counts in (("--hold=0", (3, 0)), ("--allow=192.0.2.1", (0, 3))):
                balancer = self.balance([dead], option)
                for _ in range(3):
                    with dial(balancer) as client, contextlib.suppress(ConnectionError):
                        client.recv(1)
                wait_for_endings(balancer, 3)
                wait_until(
                    lambda b=balancer: not figures(b)["connections"]["active"],  # type: ignore[misc]
                    what="no live connection",
                )
                found = figures(balancer)["connections"]
                self.assertEqual((found["failed"], found["refused"]), counts)
                self.assertEqual(found["total"], 3)

    def test_healthz_is_200_while_a_server_is_up_and_503_otherwise(self) -> None:
        backend = self.backend(named)
        options = ("--check-interval=0.2", "--rise=1", "--fall=1")
        balancer = self.balance([backend], *options, checks=True)
        where = status_address(balancer)
        self.assertEqual(http_request(where, "/healthz")[0], 200)
        backend.close()
        wait_until(lambda: http_request(where, "/healthz")[0] == 503, what="503")
        self.backend(named, port=backend.port)
        wait_until(lambda: http_request(where, "/healthz")[0] == 200, what="200")
        command(balancer, backend, "drain")
        self.assertEqual(http_request(where, "/healthz")[0], 503)


class Page(BalancerTestCase):
    """The page itself, and what may be asked of the status port by whom."""

    server: Backend
    running: Running
    where: str

    @classmethod
    def setUpClass(cls) -> None:
        """Start a balancer before one server, for all tests."""
        cls.server = Backend(named)
        cls.addClassCleanup(cls.server.close)
        cls.running = cls.start_shared(
            *("load_balancer.py", "--listen=127.0.0.1:0", "--status=127.0.0.1:0"),
            *("--no-checks", "--grace=2", f"--server={cls.server.address}"),
        )
        cls.where = status_address(cls.running)

    def setUp(self) -> None:
        """Begin with a server that is UP."""
        super().setUp()
        self.assertEqual(command(self.running, self.server, "ready"), 200)

    def ask(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Make one request; header names are given with `_` for `-`."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        body = b"" if method == "POST" else None
        return http_request(self.where, path, method, fields, body)

    def state(self) -> str:
        """Return the state of the server."""
        return str(figures(self.running)["servers"][0]["state"])

    def test_page_is_whole_and_needs_nothing_from_outside(self) -> None:
        status, headers, body = self.ask("/")
        page = body.decode()
        self.assertEqual(status, 200)
        self.assertRegex(headers["content-type"], r"\Atext/html; *charset=utf-8\Z")
        self.assertRegex(page, r"(?i)\A<!doctype html>")
        self.assertRegex(page, r'(?i)<html[^>]* lang="')
        self.assertIn('name="viewport"', page)
        self.assertIn("prefers-color-scheme", page)
        policy = headers["content-security-policy"]
        self.assertIn("default-src 'none'", policy)
        self.assertIn("frame-ancestors 'none'", policy)
        own = r"; script-src 'sha256-\S+'; style-src 'sha256-\S+'; connect-src 'self'; "
        self.assertRegex(policy, own)
        self.assertNotRegex(page, r"""(?i)(?:src|href)\s*=\s*["']?(?:https?:)?//""")
        self.assertNotRegex(page, r"(?i)@import|url\(\s*['\"]?(?:https?:)?//")

    def test_answers_are_never_cached_nor_sniffed(self) -> None:
        for path in ("/", "/status.json", "/metrics"):
            with self.subTest(path):
                headers = self.ask(path)[1]
                self.assertEqual(headers["cache-control"], "no-store")
                self.assertEqual(headers["x-content-type-options"], "nosniff")

    def test_head_is_answered_without_a_body(self) -> None:
        client = self.dial(self.where)
        client.sendall(b"HEAD /healthz HTTP/1.0\r\n\r\n")
        answer = read_to_end(client)
        self.assertRegex(answer, rb"(?s)\AHTTP/1\.0 200 .*\r\nContent-Length: 3\r\n")
        self.assertTrue(answer.endswith(b"\r\n\r\n"), answer)

    def test_page_that_is_not_there_is_404(self) -> None:
        for path in ("/nothing", "/status.json/", "/../etc/passwd", "/servers/"):
            with self.subTest(path):
                self.assertEqual(self.ask(path)[0], 404)

    def test_post_to_what_is_not_there_is_404_and_changes_nothing(self) -> None:
        port = self.server.port
        for path in (
            f"/servers/127.0.0.1:{port}/explode",
            "/servers/127.0.0.1:1/drain",
            f"/servers/127.0.0.1:{port}",
            "/servers//drain",
            "/",
        ):
            with self.subTest(path):
                status = http_request(self.where, path, "POST", SAME_ORIGIN, b"")[0]
                self.assertIn(status, (404, 405))
        self.assertEqual(self.state(), "UP")

    def test_get_never_changes_a_state(self) -> None:
        path = f"/servers/{self.server.address}/drain"
        for method in ("GET", "HEAD"):
            with self.subTest(method):
                status = http_request(self.where, path, method, SAME_ORIGIN)[0]
                self.assertIn(status, (404, 405))
        self.assertEqual(self.state(), "UP")

    def test_post_that_a_foreign_page_could_send_is_refused(self) -> None:
        path = f"/servers/{self.server.address}/drain"
        foreign = "http://evil.example"
        for headers in (
            {},
            {"Origin": foreign},
            {"Origin": "null"},
            {"Origin": foreign, **SAME_ORIGIN},
            {"Origin": "null", **SAME_ORIGIN},
            {"Referer": f"{foreign}/page"},
            {"Referer": f"{foreign}/page", **SAME_ORIGIN},
            {"X-Requested-With": "XMLHttpRequest", "Origin": foreign},
            {"Origin": f"http://{self.where}.evil.example", **SAME_ORIGIN},
            {"Origin": "http://127.0.0.1:1", **SAME_ORIGIN},
        ):
            with self.subTest(headers):
                status = http_request(self.where, path, "POST", headers, b"")[0]
                self.assertEqual(status, 403)
                self.assertEqual(self.state(), "UP")

    def test_post_of_the_page_itself_is_obeyed(self) -> None:
        address = self.server.address
        for action, state in (("drain", "DRAIN"), ("maint", "MAINT"), ("ready", "UP")):
            headers = {"Origin": f"http://{self.where}", **SAME_ORIGIN}
            path = f"/servers/{address}/{action}"
            self.assertEqual(
                http_request(self.where, path, "POST", headers, b"")[0], 200
            )
            self.assertEqual(self.state(), state)

    def test_foreign_host_is_refused(self) -> None:
        port = split_address(self.where)[1]
        for host in ("evil.example", f"evil.example:{port}", "", "127.0.0.1.evil:80"):
            for path in ("/", "/status.json"):
                with self.subTest(host=host, path=path):
                    status, _, body = self.ask(path, Host=host)
                    self.assertEqual(status, 421)
                    self.assertIn(b"--status-host NAME", body)
        for host in (self.where, f"localhost:{port}"):
            self.assertEqual(self.ask("/status.json", Host=host)[0], 200)

    def test_probe_and_prometheus_are_answered_whatever_their_host(self) -> None:
        for host in ("evil.example", "10.1.2.3:8080", "", "[::1"):
            for path in ("/healthz", "/metrics"):
                with self.subTest(host=host, path=path):
                    self.assertEqual(self.ask(path, Host=host)[0], 200)

    def test_page_on_a_loopback_address_has_buttons(self) -> None:
        self.assertIn(b'<button data-admin="drain">', self.ask("/")[2])

    def test_health_is_told_to_who_names_no_host_as_no_browser_does(self) -> None:
        with dial(self.where) as client:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            self.assertIn(b" 200 ", read_to_end(client).partition(b"\r\n")[0])
        with dial(self.where) as client:
            path = f"/servers/{self.server.address}/drain".encode()
            head = b"HTTP/1.0\r\nX-Requested-With: x\r\n\r\n"
            client.sendall(b"POST " + path + b" " + head)
            self.assertIn(b" 421 ", read_to_end(client).partition(b"\r\n")[0])

    def test_foreign_host_cannot_change_a_state(self) -> None:
        path = f"/servers/{self.server.address}/drain"
        headers = {"Host": "evil.example", "Origin": "http://evil.example"}
        status = http_request(self.where, path, "POST", headers | SAME_ORIGIN, b"")[0]
        self.assertIn(status, (403, 421))
        self.assertEqual(self.state(), "UP")

    def test_slow_and_silent_status_clients_keep_nobody_waiting(self) -> None:
        for first in (
            b"",
            b"GET / HT",
            b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
        ):
            for _ in range(15):
                self.dial(self.where).sendall(first)
        start = time.monotonic()
        self.assertEqual(self.ask("/healthz")[0], 200)
        self.assertEqual(visit_once(self.running), self.server.port)
        self.assertLess(time.monotonic() - start, 5)

    def test_oldest_status_clients_make_way_beyond_the_limit(self) -> None:
        clients = [self.dial(self.where) for _ in range(60)]
        for client in clients[:44]:
            self.assertEqual(client.recv(1), b"")
        for client in clients[44:]:
            client.setblocking(False)
            with self.assertRaises(BlockingIOError):
                client.recv(1)

    def test_hostile_requests_get_an_answer_or_an_end_and_harm_nothing(self) -> None:
        requests = [
            b"\x00\x01\x02\xff" * 100 + b"\r\n\r\n",
            b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"get / http/1.1\r\nhost: " + self.where.encode() + b"\r\n\r\n",
            b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            b"POST /servers/x/drain HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
            b"POST /servers/x/drain HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST /servers/x/drain HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"POST /servers/%ff%00%0a/drain HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: [\r\n\r\n",
            b"GET /\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\nGET / HTTP/1.1\r\n\r\n",
            b"\x1b]0;owned\x07 / HTTP/1.1\r\n\r\n",
        ]

        def send(request: bytes) -> bytes:
            # It may refuse at any point: OSError covers a reset before the shutdown.
            with dial(self.where, 20) as client, contextlib.suppress(OSError):
                client.sendall(request)
                client.shutdown(socket.SHUT_WR)
                return read_to_end(client)
            return b""

        answers = in_parallel(*(lambda r=request: send(r) for request in requests))
        for request, answer in zip(requests, answers, strict=True):
            with self.subTest(request[:60]):
                self.assertNotIn(b"Traceback", answer)
                self.assertNotRegex(answer, rb"\AHTTP/1\.[01] 200")
        self.assertEqual(self.ask("/healthz")[0], 200)
        self.assertEqual(self.state(), "UP")
        self.assertNotIn(
            "\x1b", self.running.stdout_text() + self.running.stderr_text()
        )
        self.assertEqual(self.running.stderr_text(), "")

    def test_reader_of_the_page_that_never_reads_slows_no_traffic(self) -> None:
        host = self.where.encode()
        stuck = [self.dial(self.where) for _ in range(5)]
        for client in stuck:
            with contextlib.suppress(OSError):
                client.settimeout(0.2)
                client.sendall(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n" * 5000)
        client = self.dial(self.running)
        for _ in range(20):
            client.sendall(b"x")
        self.assertEqual(len(read_exactly(client, 25)), 25)
        self.assertEqual(self.ask("/healthz")[0], 200)

    def test_live_list_shows_each_open_connection(self) -> None:
        clients = [self.dial(self.running) for _ in range(3)]
        names = {local_address(client) for client in clients}
        for client in clients:
            read_exactly(client, 5)
        wait_until(
            lambda: {live["client"] for live in figures(self.running)["live"]} >= names,
            what="three live connections",
        )
        for live in figures(self.running)["live"]:
            if live["client"] not in names:
                continue  # of a test before this one
            self.assertEqual(
                sorted(live),
                ["age_s", "client", "idle_s", "server", "to_client", "to_server"],
            )
            self.assertEqual(live["server"], self.server.address)
            self.assertGreater(live["age_s"], 0)
            self.assertLessEqual(live["idle_s"], live["age_s"])
            self.assertEqual((live["to_server"], live["to_client"]), (0, 5))

    def test_status_document_is_json_for_any_client(self) -> None:
        status, headers, body = self.ask("/status.json")
        self.assertEqual((status, headers["content-type"]), (200, "application/json"))
        self.assertIsInstance(json.loads(body), dict)
        self.assertEqual(int(headers["content-length"]), len(body))


def public_address() -> str:
    """Return an address of this machine that is not a loopback one, "" without."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if sock.connect_ex(("192.0.2.1", 9)):  # sends nothing (udp(7)); RFC 5737
            return ""
        host = str(sock.getsockname()[0])
        return "" if host.startswith("127.") else host


class History(BalancerTestCase):
    """The balancer keeps what the page draws: 90 s, and the last events."""

    def history(self, balancer: Running) -> dict[str, Any]:
        """Return /history.json."""
        status, _, body = http_request(status_address(balancer), "/history.json")
        self.assertEqual(status, 200)
        document: dict[str, Any] = json.loads(body)
        return document

    def texts(self, balancer: Running) -> list[str]:
        """Return what the events say, oldest first."""
        return [event["text"] for event in self.history(balancer)["events"]]

    def test_rates_of_all_servers_are_kept_though_nobody_looks(self) -> None:
        backends = [self.backend(named) for _ in range(2)]
        balancer = self.balance(backends, "--algorithm", "leastconn")
        wait_until(lambda: self.history(balancer)["ages_s"], what="a first second")
        for _ in range(6):
            visit_once(balancer)

        def counted() -> bool:
            found = [s["connections_per_s"] for s in self.history(balancer)["servers"]]
            return bool(found) and sum(map(sum, found)) > 0

        wait_until(counted, what="the rates")
        document = self.history(balancer)
        self.assertEqual(document["algorithm"], "leastconn")
        self.assertEqual(document["length_s"], 90)
        ages = document["ages_s"]
        self.assertEqual((ages[-1], ages), (0, sorted(ages, reverse=True)))
        self.assertEqual(
            [server["address"] for server in document["servers"]],
            [backend.address for backend in backends],
        )
        series = [document["queued"]]
        kinds = ("connections_per_s", "active", "bytes_per_s")
        for server in document["servers"]:
            series += [server[kind] for kind in kinds]
        self.assertEqual({len(one) for one in series}, {len(ages)})

    def test_client_that_waits_is_in_the_plot_of_the_queue(self) -> None:
        backend = self.backend(echo)
        balancer = self.balance([f"{backend.address},max=1"], "--queue-timeout", "60")
        for _ in range(2):
            self.dial(balancer).sendall(b"?")
        wait_until(lambda: 1 in self.history(balancer)["queued"], what="a queue")

    def test_state_and_refusals_are_events_even_when_quiet(self) -> None:
        backend = self.backend(named)
        balancer = self.balance([backend], "--quiet", "--allow", "192.0.2.0/24")
        command(balancer, backend, "maint")
        wait_until(
            lambda: any("state=MAINT" in text for text in self.texts(balancer)),
            what="the state",
        )
        with contextlib.suppress(ConnectionError):
            self.assertEqual(self.dial(balancer).recv(1), b"")
        wait_until(
            lambda: "1 client refused" in self.texts(balancer), what="the refusal"
        )
        last = self.history(balancer)["events"][-1]
        self.assertAlmostEqual(last["at"], time.time(), delta=60)
        for _ in range(6):
            command(balancer, backend, "drain")
            command(balancer, backend, "maint")
        self.assertEqual(len(self.texts(balancer)), 10)
        self.assertNotIn("state=", "".join(balancer.stdout_lines()))


class HistoryWithTwoWorkers(History):
    """The desk keeps it for all."""

    WORKERS = 2


class InPublic(BalancerTestCase):
    """A status address that others can reach: names that are known, and no commands."""

    def reach(self, *options: str) -> tuple[Backend, Running, str]:
        """Return a server, a balancer, and its status on an address that is public."""
        host = public_address()
        if not host:
            self.skipTest("this machine has loopback addresses only")
        server = self.backend(named)
        balancer = self.balance([server], "--status=0.0.0.0:0", *options)
        port = split_address(status_address(balancer))[1]
        return server, balancer, f"{host}:{port}"

    def drain(self, where: str, server: Backend, **headers: str) -> tuple[int, bytes]:
        """Ask for a drain; return the status and the answer."""
        path = f"/servers/{server.address}/drain"
        fields = {**SAME_ORIGIN, **headers}
        status, _, body = http_request(where, path, "POST", fields, b"")
        return status, body

    def test_post_is_refused_with_the_remedy_and_the_page_has_no_buttons(self) -> None:
        server, balancer, where = self.reach()
        status, body = self.drain(where, server)
        self.assertEqual(status, 403)
        self.assertIn(b"--status-control", body)
        status, _, page = http_request(where, "/")
        self.assertEqual(status, 200)
        self.assertNotIn(b"<button", page)
        near = f"127.0.0.1:{split_address(where)[1]}"
        self.assertEqual(self.drain(near, server)[0], 200)
        self.assertIn("at 127.0.0.1", balancer.wait_for_line("state=DRAIN"))

    def test_post_is_obeyed_where_control_was_given(self) -> None:
        server, balancer, where = self.reach("--status-control")
        self.assertIn(b"<button", http_request(where, "/")[2])
        self.assertEqual(self.drain(where, server)[0], 200)
        by_hand = f"by the operator at {split_address(where)[0]}"
        self.assertIn(by_hand, balancer.wait_for_line("state=DRAIN"))

    def test_names_that_are_given_are_known_in_any_case(self) -> None:
        names = ("--status-host=lb.example", "--status-host=Other.Example")
        balancer = self.balance([self.backend(named)], *names)
        where = status_address(balancer)
        for host, expected in {
            "lb.example": 200,
            "LB.example:8080": 200,
            "other.example": 200,
            "lb.example.evil": 421,
            "notlb.example": 421,
        }.items():
            with self.subTest(host):
                got = http_request(where, "/status.json", "GET", {"Host": host})[0]
                self.assertEqual(got, expected)


# ---- The log on a terminal -------------------------------------------------------

AT_S = time.mktime((2026, 11, 23, 14, 27, 45, 0, 0, -1))


def ended(server: str, code: str = "-- closed by both sides") -> str:
    """Return a line of the log."""
    return (
        f"client=127.0.0.1:38824 server={server} tries=1 connect_ms=0.21"
        f" duration_ms=8.1 to_server=21 to_client=43 undelivered=0 end={code}"
    )


class OnScreen(unittest.TestCase):
    """Short lines; sums when there are many; changes of state always."""

    def setUp(self) -> None:
        """Begin with an empty screen without colours."""
        with mock.patch.dict(os.environ, {"TERM": "dumb"}):
            self.screen = load_balancer.Screen()

    def show(self, *texts: str, at_s: float = 0.0) -> str:
        """Return what the screen shows for lines of a moment."""
        return "".join(self.screen.format(AT_S + at_s, text) for text in texts)

    def test_connection_has_a_short_line(self) -> None:
        self.assertEqual(
            self.show(ended("127.0.0.1:9992")),
            "14:27:45 client 38824 → 9992  8.1 ms  21/43 bytes  ok\n",
        )
        self.assertEqual(
            self.show(ended("-", "SC connection refused")),
            "14:27:45 client 38824 → no server  8.1 ms  21/43 bytes"
            "  SC connection refused\n",
        )

    def test_no_line_is_wider_than_80_columns(self) -> None:
        servers = [f"192.168.100.{n}:9991" for n in range(100, 130)]
        shown = self.show(*(ended(s, "cD " + "idle " * 20) for s in servers))
        shown += self.show(
            'server=10.0.0.1:1 state=DOWN reason="' + "no answer " * 9
            + '" checks=3/3 up=2/3',
            at_s=1,
        )
        self.assertEqual({len(line) > 80 for line in shown.splitlines()}, {False})

    def test_change_of_state_is_said_in_words_and_colour(self) -> None:
        text = 'server=127.0.0.1:9992 state=DOWN reason="refused" checks=3/3 up=2/3'
        self.assertEqual(
            self.show(text),
            "14:27:45 9992 is DOWN: refused; 3/3 checks, 2 of 3 UP\n",
        )
        with mock.patch.dict(os.environ, {"TERM": "xterm"}):
            os.environ.pop("NO_COLOR", None)
            self.screen = load_balancer.Screen()
        self.assertIn("\x1b[31m9992 is DOWN\x1b[0m", self.show(text))

    def test_many_connections_are_summed_up_once_a_second(self) -> None:
        texts = [ended(f"127.0.0.1:999{n % 2}") for n in range(50)]
        shown = self.show(*texts, ended("-", "sQ no place"))
        self.assertEqual(shown.count("client"), 20)
        change = 'server=127.0.0.1:9990 state=UP reason="ok" checks=2/2 up=2/2'
        self.assertEqual(
            self.show(ended("127.0.0.1:9991"), change, at_s=1.5),
            "14:27:45  9990\xa025/s  9991\xa025/s  no server\xa01/s  sQ\xa01\n"
            "14:27:46 9990 is UP: ok; 2/2 checks, 2 of 2 UP\n",
        )
        self.assertEqual(
            self.show(ended("127.0.0.1:9991"), at_s=2),
            "14:27:46  9991\xa01/s\n14:27:47 client 38824 → 9991  8.1 ms"
            "  21/43 bytes  ok\n",
        )

    @unittest.skipUnless(hasattr(os, "openpty"), "needs pseudo-terminals")
    def test_terminal_gets_short_lines_and_a_sum_without_a_further_line(self) -> None:
        with Backend(named) as server, tempfile.TemporaryDirectory() as folder:
            terminal = Terminal(
                [
                    *(sys.executable, str(ROOT / "load_balancer.py"), "--no-checks"),
                    *("--listen=127.0.0.1:0", f"--server={server.address}"),
                ],
                Path(folder),
            )
            self.addCleanup(terminal.finish)
            where = terminal.wait_for(r"listening on (\S+) ")[1]
            for _ in range(300):  # more than 20 a second, on a slow machine too
                with dial(where) as client:
                    read_exactly(client, 5)
            terminal.wait_for(r"\d\d:\d\d:\d\d client \d+ → \d+  \S+ ms  0/5 bytes  ok")
            terminal.wait_for(r"  \d+\xa0\d+/s")
