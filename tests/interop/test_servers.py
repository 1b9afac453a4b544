"""nginx, PostgreSQL and iperf3 behind the balancer, each with a real client."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import random
import shutil
from pathlib import Path

from tests.balancer import figures, local_address
from tests.interop.support import ProgramTestCase, find, needs
from tests.support import (
    Running,
    dial,
    free_port,
    http_request,
    in_parallel,
    read_to_end,
    wait_until,
)

NGINX = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{plain};
        root {folder};
    }}
    server {{
        listen 127.0.0.1:{proxy} proxy_protocol;
        default_type text/plain;
        location / {{
            return 200 "$proxy_protocol_addr:$proxy_protocol_port\\n";
        }}
    }}
}}
"""


class Nginx(ProgramTestCase):
    """HTTP passes, and nginx learns the client from the header."""

    def setUp(self) -> None:
        """Start nginx on two ports."""
        super().setUp()
        self.plain, self.proxy = free_port(), free_port()
        configuration = self.folder / "nginx.conf"
        user = "user root;" if os.getuid() == 0 else ""
        configuration.write_text(
            NGINX.format(
                user=user, folder=self.folder, plain=self.plain, proxy=self.proxy
            )
        )
        self.program(
            *("nginx", "-e", "stderr", "-p", self.folder, "-c", configuration),
            listens=self.plain,
        )

    def test_downloads_in_parallel_are_whole(self) -> None:
        content = random.Random(1).randbytes(3_000_000)
        (self.folder / "file").write_bytes(content)
        balancer = self.balance([f"127.0.0.1:{self.plain}"])

        def download() -> str:
            status, _, body = http_request(balancer, "/file", timeout=60)
            self.assertEqual(status, 200)
            return hashlib.sha256(body).hexdigest()

        digests = set(in_parallel(*[download] * 20))
        self.assertEqual(digests, {hashlib.sha256(content).hexdigest()})

    def test_nginx_names_the_client_of_both_header_versions(self) -> None:
        for version in ("v1", "v2"):
            with self.subTest(version):
                balancer = self.balance(
                    [f"127.0.0.1:{self.proxy}"], f"--send-proxy={version}"
                )
                with dial(balancer) as client:
                    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    answer = read_to_end(client)
                    expected = f"\r\n\r\n{local_address(client)}\n".encode()
                self.assertTrue(answer.endswith(expected), answer)


def postgres_folder() -> Path | None:
    """Return the folder of PostgreSQL's programs, the newest where there are more."""
    if initdb := find("initdb"):
        return Path(initdb).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


class PostgreSql(ProgramTestCase):
    """A database session works, and moves a lot both ways."""

    def as_postgres(self, *command: object) -> list[str]:
        """Return a command that runs as somebody PostgreSQL accepts: not root."""
        words = [str(word) for word in command]
        if os.getuid() != 0:
            return words
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            self.skipTest("PostgreSQL refuses root, and there is no user postgres")
        needs("setpriv")
        ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}"]
        return ["setpriv", *ids, "--clear-groups", *words]

    def start_database(self) -> int:
        """Start a database that trusts loopback; return its port."""
        programs = postgres_folder()
        if programs is None or not find("psql"):
            self.skipTest("PostgreSQL is not installed")
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        if os.getuid() == 0:
            self.folder.chmod(0o755)
            shutil.chown(data, "postgres", "postgres")
        self.run_program(
            *self.as_postgres(programs / "initdb", "-D", data, "-U", "postgres"),
            *("-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8"),
        )
        port = free_port()
        self.program(
            *self.as_postgres(programs / "postgres", "-D", data, "-p", port),
            *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
            *("-c", "fsync=off"),
            listens=port,
            name="postgres",
        )
        return port

    def test_psql_queries_and_copies_through_the_balancer(self) -> None:
        port = self.start_database()
        balancer = self.balance(
            [f"127.0.0.1:{port}"], "--check-interval=0.3", checks=True
        )
        sql = self.folder / "commands.sql"
        rows = "".join(f"{number}\t{'x' * 90}\n" for number in range(20_000))
        sql.write_text(
            "create table t (n integer, v text);\n"
            f"copy t from stdin;\n{rows}\\.\n"
            "select 'sum', sum(n), sum(length(v)) from t;\n"
            "copy t to stdout;\n"
        )

        def psql() -> str:
            return self.run_program(
                *("psql", "-h", balancer.host, "-p", balancer.port, "-U", "postgres"),
                *("-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-f", sql),
            ).stdout

        lines = wait_until(psql, what="the database to be ready").splitlines()
        self.assertEqual(lines[0], "sum|199990000|1800000")
        self.assertEqual("".join(f"{line}\n" for line in lines[1:]), rows)
        document = figures(balancer)
        self.assertGreater(document["bytes"]["to_servers"], len(rows))
        self.assertGreater(document["bytes"]["to_clients"], len(rows))
        self.assertEqual(document["connections"]["failed"], 0)


class Iperf(ProgramTestCase):
    """Bulk traffic passes in both directions, and every byte is counted."""

    def test_bulk_traffic_both_ways(self) -> None:
        port = free_port()
        self.program("iperf3", "-s", "-p", port, "-B", "127.0.0.1", listens=port)
        balancer = self.balance([f"127.0.0.1:{port}"])
        for label, options, way in (
            ("to the server", (), "to_servers"),
            ("to the client", ("-R",), "to_clients"),
        ):
            with self.subTest(label):
                before = figures(balancer)["bytes"][way]
                result = self.run_program(
                    *("iperf3", "-c", "127.0.0.1", "-p", balancer.port),
                    *("-n", "300M", "-P", 2, "-J", *options),
                )
                document = json.loads(result.stdout)
                self.assertNotIn("error", document)
                received = document["end"]["sum_received"]["bytes"]
                self.assertGreater(received, 200 << 20)
                self.wait_for_bytes(balancer, way, before + received)

    def wait_for_bytes(self, balancer: Running, way: str, count: int) -> None:
        """Wait until the balancer has counted so many bytes that way."""
        wait_until(
            lambda: figures(balancer)["bytes"][way] >= count, what="the bytes' count"
        )


class IperfWithTwoWorkers(Iperf):
    """The same, through two processes."""

    WORKERS = 2
