"""HAProxy in front of the balancer, and behind it: the PROXY protocol both ways."""

from __future__ import annotations

import socket

from tests.balancer import local_address
from tests.interop.support import ProgramTestCase, needs
from tests.support import (
    Backend,
    Target,
    address_of,
    dial,
    echo,
    free_port,
    read_exactly,
    read_to_end,
    reply_after_eof,
    sink,
    wait_until,
)

CONFIGURATION = """
global
    maxconn 200
defaults
    mode tcp
    timeout connect 10s
    timeout client 60s
    timeout server 60s
listen relay
    bind 127.0.0.1:{port} {bind}
    server next {server} {options}
"""


def setUpModule() -> None:
    """Skip all where HAProxy is missing."""
    needs("haproxy")


class Chain(ProgramTestCase):
    """Two balancers of different make understand each other."""

    def haproxy(self, server: Target, bind: str = "", options: str = "") -> str:
        """Start HAProxy before `server`; return its address."""
        port = free_port()
        path = self.folder / f"haproxy-{port}.cfg"
        path.write_text(
            CONFIGURATION.format(
                port=port, bind=bind, server=address_of(server), options=options
            )
        )
        self.program("haproxy", "-db", "-f", path, listens=port)
        return f"127.0.0.1:{port}"

    def test_client_of_haproxy_in_front_is_known_by_its_header(self) -> None:
        for options in (
            "send-proxy",
            "send-proxy-v2",
            "send-proxy-v2 proxy-v2-options crc32c",
        ):
            with self.subTest(options):
                backend = self.backend(echo)
                balancer = self.balance([backend], "--accept-proxy=127.0.0.0/8")
                front = self.haproxy(balancer, options=options)
                with dial(front) as client:
                    name = local_address(client)
                    client.sendall(b"through both")
                    self.assertEqual(read_exactly(client, 12), b"through both")
                ending = self.ending(balancer, name)
                self.assertEqual((ending.to_server, ending.to_client), (12, 12))
                self.wait_for_received(backend, 0, b"through both")

    def test_checks_of_haproxy_in_front_are_accepted(self) -> None:
        for options in ("send-proxy", "send-proxy-v2"):
            with self.subTest(options):
                backend = self.backend(sink)
                balancer = self.balance([backend], "--accept-proxy=127.0.0.0/8")
                front = self.haproxy(balancer, options=f"{options} check inter 200ms")
                backend.visit(3)  # HAProxy's checks, relayed
                with dial(front) as client:
                    client.sendall(b"still up")
                    name = local_address(client)
                self.assertEqual(self.ending(balancer, name).to_server, 8)

    def test_haproxy_behind_learns_the_client(self) -> None:
        for version in ("v1", "v2"):
            with self.subTest(version):
                backend = self.backend(reply_after_eof(b"done"))
                behind = self.haproxy(backend, "accept-proxy", "send-proxy")
                balancer = self.balance(
                    [behind],
                    f"--send-proxy={version}",
                    "--check-interval=0.2",
                    checks=True,
                )
                seen = backend.total
                client = self.dial(balancer)
                own = client.getsockname()[1]
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_to_end(client), b"done")
                addresses = f"127.0.0.1 127.0.0.1 {own} {balancer.port}"
                expected = f"PROXY TCP4 {addresses}\r\nhello".encode()
                self.wait_for_received(backend, seen, expected)
                balancer_lines = balancer.stdout_lines()
                down = [line for line in balancer_lines if "state=DOWN" in line]
                self.assertEqual(down, [], "HAProxy refused the checks' headers")

    def wait_for_received(self, backend: Backend, seen: int, expected: bytes) -> None:
        """Wait until a later connection of the backend received exactly this."""
        wait_until(
            lambda: expected in [visit.received for visit in backend.visits[seen:]],
            what=repr(expected),
        )
