"""A real MariaDB: checks that connect make it block the balancer, a login does not."""

from __future__ import annotations

import subprocess

from tests.balancer import wait_for_states
from tests.interop.support import Program, ProgramTestCase, find, needs
from tests.support import Running, wait_until
from tests.test_load_balancer_faults import Namespace

# README's: the user `balancer`, no password; then COM_QUIT (protocol of MySQL 3.20).
LOGIN = (
    r"--check-send=\x0f\x00\x00\x01\x00\x80\x00\x00\x01balancer\x00\x00"
    r"\x01\x00\x00\x00\x01"
)
WELCOME = r"--check-expect=\x00\x00\x02\x00"
SERVER = "10.9.8.1:33306"
CHECKS = 150  # a host is blocked after 100 (max_connect_errors)


class ChecksOfMariaDB(ProgramTestCase):
    """In a network of its own, where the balancer's address has a name.

    MariaDB counts nothing of 127.0.0.1, nor of addresses that it finds no name for.
    """

    def setUp(self) -> None:
        """Start MariaDB."""
        super().setUp()
        needs("mariadbd", "mariadb-install-db", "mariadb")
        self.asked = 0
        self.space = Namespace()
        self.addCleanup(self.space.__exit__)
        self.space.ip("-n", self.space.name, "addr", "add", "10.9.8.1", "dev", "lo")
        hosts, data = self.folder / "hosts", self.folder / "data"
        hosts.write_text("127.0.0.1 localhost\n10.9.8.1 lab\n")
        self.run_program(
            "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}",
            "--auth-root-authentication-method=normal", "--skip-test-db",
        )  # fmt: skip
        port = SERVER.rpartition(":")[2]
        server = (
            f"mount --bind {hosts} /etc/hosts && exec {find('mariadbd')} --no-defaults "
            f"--user=root --datadir={data} --socket={self.folder}/sock --port={port} "
            "--bind-address=10.9.8.1 --performance-schema=ON"
        )
        inside = ("netns", "exec", self.space.name, "sh", "-c", server)
        self.server: Program = self.program("ip", *inside, name="mariadbd")
        wait_until(lambda: "ready for connections" in self.server.output())
        # Anonymous users would be taken for any name.
        self.ask(
            "delete from mysql.global_priv where User = ''; flush privileges;"
            "create user balancer@'%'; create user lab@'%' identified by 'secret'"
        )

    def ask(self, query: str) -> str:
        """Return the answer to a query by the administrator, past the balancer."""
        self.asked += 1
        way = ("--no-defaults", f"--socket={self.folder}/sock", "--user=root")
        return self.run_program("mariadb", *way, "-Ne", query).stdout.strip()

    def check(self, *options: str) -> Running:
        """Return a balancer that has checked often enough."""
        balancer = self.start(
            "load_balancer.py",
            "--listen=127.0.0.1:20000",
            f"--server={SERVER}",
            "--check-interval=0.02",
            f"--workers={self.WORKERS}",
            *options,
            preexec_fn=self.space.enter,
        )
        before = self.checks()
        wait_until(lambda: self.checks() > before + CHECKS, what="the checks")
        return balancer

    def checks(self) -> int:
        """Return how many connections MariaDB has had, but for our questions."""
        answer = self.ask("show global status like 'Connections'")
        return int(answer.split()[1]) - self.asked

    def log_in(self) -> subprocess.CompletedProcess[str]:
        """Log in through the balancer."""
        client = (find("mariadb"), "--no-defaults", "--host=127.0.0.1", "--port=20000")
        return subprocess.run(
            ["ip", "netns", "exec", self.space.name, *map(str, client),
             "--user=lab", "--password=secret", "-Ne", "select 'welcome'"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def test_after_150_connects_the_balancer_is_blocked(self) -> None:
        self.check()
        said = self.log_in().stderr
        self.assertIn("is blocked because of many connection errors", said)

    def test_after_150_logins_a_client_logs_in(self) -> None:
        balancer = self.check(LOGIN, WELCOME)
        result = self.log_in()
        self.assertEqual(result.stdout, "welcome\n", result.stderr)
        self.assertNotIn("state=", balancer.stdout_text())
        self.ask("drop user balancer@'%'")
        wait_for_states(balancer, SERVER, "DOWN")
