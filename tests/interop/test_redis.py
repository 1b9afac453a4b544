"""Three Redis servers behind the balancer, under redis-benchmark and client2.py."""

from __future__ import annotations

import json

from tests.balancer import figures
from tests.interop.support import ProgramTestCase, needs
from tests.support import Running, free_port, wait_until


def setUpModule() -> None:
    """Skip all where Redis is missing."""
    needs("redis-server", "redis-benchmark")


class Redis(ProgramTestCase):
    """A real server of small messages never notices the balancer."""

    def redis_servers(self) -> list[str]:
        """Start three Redis servers that keep nothing on disk."""
        ports = [free_port() for _ in range(3)]
        for port in ports:
            self.program(
                "redis-server",
                *("--port", port, "--bind", "127.0.0.1", "--save", ""),
                *("--appendonly", "no", "--dir", self.folder),
                listens=port,
            )
        return [f"127.0.0.1:{port}" for port in ports]

    def benchmark(self, balancer: Running, *options: object) -> None:
        """Run redis-benchmark; fail for any error that it reports."""
        result = self.run_program(
            "redis-benchmark", "-h", balancer.host, "-p", balancer.port, "-q", *options
        )
        said = result.stdout + result.stderr
        self.assertNotRegex(said, r"(?i)error|could not|reset|closed|refused")
        self.assertRegex(said, r"requests per second")

    def test_redis_benchmark_sees_no_error(self) -> None:
        servers = self.redis_servers()
        balancer = self.balance(servers)
        before = 0
        for label, options, least in (
            ("kept connections", ("-t", "ping,set,get", "-n", 4000, "-c", 50), 150),
            ("a connection per message", ("-t", "ping", "-k", 0, "-n", 1500), 1500),
            ("pipelined", ("-t", "set,get", "-n", 20000, "-P", 16), 100),
            ("large values", ("-t", "set,get", "-n", 200, "-d", 100_000), 100),
        ):
            with self.subTest(label):
                self.benchmark(balancer, *options)
                connections = figures(balancer)["connections"]
                self.assertEqual(connections["failed"], 0)
                self.assertGreaterEqual(connections["total"] - before, least)
                before = connections["total"]
        totals = [server["total"] for server in figures(balancer)["servers"]]
        self.assertLessEqual(max(totals) - min(totals), 1, "not strict round robin")
        wait_until(lambda: not figures(balancer)["connections"]["active"], what="none")
        self.assertNotIn("state=DOWN", balancer.stdout_text())

    def test_client2_speaks_to_redis_through_the_balancer(self) -> None:
        balancer = self.balance(self.redis_servers())
        path = self.folder / "result.json"
        result = self.client(
            *(20, "--messages", 20, "--target", balancer.address),
            *("--message", "PING", "--any-reply", "--json", path, "--quiet"),
        )
        self.assertEqual(result.returncode, 0, result)
        document = json.loads(path.read_text())
        exchanges = document["exchanges"]
        self.assertEqual((exchanges["confirmed"], exchanges["failed"]), (400, 0))
        self.assertEqual(document["bytes"]["received"], 400 * len("+PONG\r\n"))


class RedisWithTwoWorkers(Redis):
    """The same, through two processes."""

    WORKERS = 2
