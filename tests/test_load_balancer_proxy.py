"""load_balancer.py: the PROXY protocol, received and sent, by literal headers.

The headers are written out here from the specification (HAProxy's
doc/proxy-protocol.txt, sections 2.1 and 2.2), never made by the code under test.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from tests.balancer import (
    BalancerTestCase,
    OneServer,
    figures,
    local_address,
    parse_ending,
)
from tests.support import (
    Running,
    Visit,
    banner,
    dial,
    in_parallel,
    read_exactly,
    read_to_end,
    reply_after_eof,
    sink,
    wait_until,
)

SIGNATURE = bytes.fromhex("0D0A0D0A000D0A515549540A")
# 192.168.0.1:56324 to 192.168.0.11:443, as in the specification's example.
IPV4_BLOCK = bytes.fromhex("C0A80001 C0A8000B DC04 01BB")
# [2001:db8::1]:56324 to [2001:db8::2]:443.
IPV6_BLOCK = bytes.fromhex(
    "20010DB8000000000000000000000001 20010DB8000000000000000000000002 DC04 01BB"
)
UNIX_BLOCK = b"/run/a.sock".ljust(108, b"\0") + b"/run/b.sock".ljust(108, b"\0")
NOOP = bytes.fromhex("04 0003 000000")
ALPN = bytes.fromhex("01 0002 6832")
UNIQUE_ID = bytes.fromhex("05 0080") + b"u" * 128
# The checksum was worked out apart, by RFC 4960's polynomial, bit by bit, by a
# function that gives 0xE3069283 for "123456789", the customary check value.
CHECKSUM = bytes.fromhex("03 0004 1C1AE9C6")
WRONG_CHECKSUM = bytes.fromhex("03 0004 1C1AE9C7")

IPV4_CLIENT = "192.168.0.1:56324"
IPV6_CLIENT = "[2001:db8::1]:56324"
OWN = ""  # the connection's own address counts

VALID = {
    "v1: TCP over IPv4": (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        IPV4_CLIENT,
    ),
    "v1: the longest over IPv4": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        "255.255.255.255:65535",
    ),
    "v1: TCP over IPv6": (
        b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n",
        IPV6_CLIENT,
    ),
    "v1: the longest over IPv6": (
        b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        b" ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
    ),
    "v1: port 0": (b"PROXY TCP4 10.1.2.3 10.0.0.1 0 0\r\n", "10.1.2.3:0"),
    "v1: UNKNOWN, short": (b"PROXY UNKNOWN\r\n", OWN),
    "v1: UNKNOWN, the longest line": (
        b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        b" ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        OWN,
    ),
    "v1: UNKNOWN with anything behind it": (b"PROXY UNKNOWN what ever\r\n", OWN),
    "v2: TCP over IPv4": (SIGNATURE + b"\x21\x11\x00\x0c" + IPV4_BLOCK, IPV4_CLIENT),
    "v2: TCP over IPv6": (SIGNATURE + b"\x21\x21\x00\x24" + IPV6_BLOCK, IPV6_CLIENT),
    "v2: extensions behind the addresses": (
        SIGNATURE + b"\x21\x11\x00\x17" + IPV4_BLOCK + NOOP + ALPN,
        IPV4_CLIENT,
    ),
    "v2: the longest unique id": (
        SIGNATURE + b"\x21\x11\x00\x8f" + IPV4_BLOCK + UNIQUE_ID,
        IPV4_CLIENT,
    ),
    "v2: a checksum that is right": (
        SIGNATURE + b"\x21\x11\x00\x13" + IPV4_BLOCK + CHECKSUM,
        IPV4_CLIENT,
    ),
    "v2: LOCAL": (SIGNATURE + b"\x20\x00\x00\x00", OWN),
    "v2: LOCAL with a block to skip": (
        SIGNATURE + b"\x20\x11\x00\x12" + IPV4_BLOCK + NOOP,
        OWN,
    ),
    "v2: unspecified family": (SIGNATURE + b"\x21\x00\x00\x00", OWN),
    "v2: unspecified family with a block to skip": (
        SIGNATURE + b"\x21\x00\x00\x05\x00\x01\x02\x03\x04",
        OWN,
    ),
    "v2: UNIX stream": (SIGNATURE + b"\x21\x31\x00\xd8" + UNIX_BLOCK, OWN),
    "v2: UNIX datagram": (SIGNATURE + b"\x21\x32\x00\xd8" + UNIX_BLOCK, OWN),
}

# UDP's addresses may be used or not, as long as the block is skipped exactly.
VALID_EITHER_WAY = {
    "v2: UDP over IPv4": (SIGNATURE + b"\x21\x12\x00\x0c" + IPV4_BLOCK, IPV4_CLIENT),
    "v2: UDP over IPv6": (SIGNATURE + b"\x21\x22\x00\x24" + IPV6_BLOCK, IPV6_CLIENT),
}

# So that a header without its end is longer than the longest of its kind.
TEXT = b"x" * 100

INVALID = {
    "no header": b"Hello from client 1!\n",
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "v1: only LF": b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\n" + TEXT,
    "v1: only CR": b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r" + TEXT,
    "v1: CR inside": b"PROXY TCP4 192.168.0.1\r192.168.0.11 56324 443\r\n",
    "v1: LF before the end": b"PROXY UNKNOWN\n\r\n",
    "v1: lower case": b"proxy tcp4 192.168.0.1 192.168.0.11 56324 443\r\n",
    "v1: two spaces": b"PROXY TCP4  192.168.0.1 192.168.0.11 56324 443\r\n",
    "v1: a tab": b"PROXY TCP4\t192.168.0.1 192.168.0.11 56324 443\r\n",
    "v1: a space at the end": b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443 \r\n",
    "v1: one field more": b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443 1\r\n",
    "v1: one field less": b"PROXY TCP4 192.168.0.1 192.168.0.11 56324\r\n",
    "v1: no addresses": b"PROXY TCP4\r\n",
    "v1: no protocol": b"PROXY\r\n",
    "v1: an empty protocol": b"PROXY \r\n",
    "v1: an unknown protocol": b"PROXY UDP4 192.168.0.1 192.168.0.11 56324 443\r\n",
    "v1: UNKNOWN not ended": b"PROXY UNKNOWNX\r\n",
    "v1: IPv6 in TCP4": b"PROXY TCP4 ::1 ::1 56324 443\r\n",
    "v1: IPv4 in TCP6": b"PROXY TCP6 192.168.0.1 192.168.0.11 56324 443\r\n",
    "v1: leading zero in a port": b"PROXY TCP4 192.168.0.1 192.168.0.11 056324 443\r\n",
    "v1: leading zero in 00": b"PROXY TCP4 192.168.0.1 192.168.0.11 00 443\r\n",
    "v1: leading zero in IPv4": b"PROXY TCP4 192.168.00.1 192.168.0.11 56324 443\r\n",
    "v1: port 65536": b"PROXY TCP4 192.168.0.1 192.168.0.11 65536 443\r\n",
    "v1: a negative port": b"PROXY TCP4 192.168.0.1 192.168.0.11 -1 443\r\n",
    "v1: a plus sign": b"PROXY TCP4 192.168.0.1 192.168.0.11 +56324 443\r\n",
    "v1: an underscore": b"PROXY TCP4 192.168.0.1 192.168.0.11 5_6 443\r\n",
    "v1: digits of another script": "PROXY TCP4 1.2.3.4 1.2.3.4 ٣ 443\r\n".encode(),
    "v1: a byte of 256": b"PROXY TCP4 192.168.0.256 192.168.0.11 56324 443\r\n",
    "v1: a short IPv4 address": b"PROXY TCP4 192.168.1 192.168.0.11 56324 443\r\n",
    "v1: a host name": b"PROXY TCP4 localhost 192.168.0.11 56324 443\r\n",
    "v1: a zone": b"PROXY TCP6 fe80::1%lo fe80::2 56324 443\r\n",
    "v1: 108 bytes": b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n",
    "v1: no line end in 107 bytes": b"PROXY UNKNOWN ".ljust(300, b"x"),
    "v2: version 1": SIGNATURE + b"\x11\x11\x00\x0c" + IPV4_BLOCK,
    "v2: version 3": SIGNATURE + b"\x31\x11\x00\x0c" + IPV4_BLOCK,
    "v2: command 2": SIGNATURE + b"\x22\x11\x00\x0c" + IPV4_BLOCK,
    "v2: command 15": SIGNATURE + b"\x2f\x11\x00\x0c" + IPV4_BLOCK,
    "v2: family 4": SIGNATURE + b"\x21\x41\x00\x0c" + IPV4_BLOCK,
    "v2: family 15": SIGNATURE + b"\x21\xf1\x00\x0c" + IPV4_BLOCK,
    "v2: transport 3": SIGNATURE + b"\x21\x13\x00\x0c" + IPV4_BLOCK,
    "v2: too short for IPv4": SIGNATURE + b"\x21\x11\x00\x0b" + IPV4_BLOCK,
    "v2: too short for IPv6": SIGNATURE + b"\x21\x21\x00\x23" + IPV6_BLOCK,
    "v2: too short for UNIX": SIGNATURE + b"\x21\x31\x00\xd7" + UNIX_BLOCK,
    "v2: no addresses": SIGNATURE + b"\x21\x11\x00\x00",
    "v2: a wrong checksum": (
        SIGNATURE + b"\x21\x11\x00\x13" + IPV4_BLOCK + WRONG_CHECKSUM
    ),
    "v2: a broken signature": b"\r\n\r\n\x00\r\nQUIX\n\x21\x11\x00\x0c" + IPV4_BLOCK,
    "v2: half a signature, then text": SIGNATURE[:6] + b"GET / HTTP/1.1\r\n\r\n",
}

# Headers that end with the connection before they are complete.
INCOMPLETE = {
    "nothing": b"",
    "one byte": b"P",
    "a line without its LF": b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r",
    "half a line": b"PROXY TCP4 192.16",
    "half a signature": SIGNATURE[:7],
    "a signature alone": SIGNATURE,
    "half a block": SIGNATURE + b"\x21\x11\x00\x0c" + IPV4_BLOCK[:5],
    "a block with the rest missing": SIGNATURE + b"\x20\x00\xff\xff" + bytes(100),
}


class Receiving(OneServer):
    """`--accept-proxy`: the header is required, checked whole, and taken off."""

    OPTIONS = ("--accept-proxy=127.0.0.0/8",)
    silent_for_s: list[float]

    @classmethod
    def setUpClass(cls) -> None:
        """Let two clients without a complete header wait meanwhile."""
        super().setUpClass()
        cls.silent_for_s = []

        def wait_in_vain(first: bytes) -> None:
            with dial(cls.running, 30) as client, contextlib.suppress(ConnectionError):
                start = time.monotonic()
                client.sendall(first)
                if not client.recv(1):
                    cls.silent_for_s.append(time.monotonic() - start)

        for first in (b"", b"PROXY TCP4 192."):
            thread = threading.Thread(target=wait_in_vain, args=(first,))
            thread.start()
            cls.addClassCleanup(thread.join, 30)

    def exchange(self, header: bytes, step: int, payload: bytes) -> str:
        """Send header and payload in pieces of `step` bytes; return the log's client.

        The end of the connection follows, and everything must have come back.
        """
        with dial(self.running) as client:
            name = local_address(client)
            data = header + payload
            for start in range(0, len(data), step):
                client.sendall(data[start : start + step])
            client.shutdown(socket.SHUT_WR)
            if (answer := read_to_end(client)) != payload:
                raise AssertionError(
                    f"{header!r}: {answer!r} came back, not {payload!r}"
                )
        return name

    def test_every_valid_header_gives_the_client_and_is_taken_off(self) -> None:
        for number, (label, (header, expected)) in enumerate(VALID.items()):
            for step in (1, 7, 10_000):
                with self.subTest(label, step=step):
                    seen = len(self.running.stdout_lines())
                    payload = b"PROXY payload\r\n\x00%d" % number
                    own = self.exchange(header, step, payload)
                    name = expected or own
                    line = self.line_about(name, seen)
                    ending = parse_ending(line)
                    self.assertEqual(ending.to_server, len(payload))
                    self.assertEqual(ending.to_client, len(payload))

    def line_about(self, client: str, seen: int) -> str:
        """Return the line about a client behind the first `seen` lines."""

        def find() -> str:
            lines = self.running.stdout_lines()[seen:]
            return next((line for line in lines if f"client={client} " in line), "")

        wait_until(
            find, 10, f"a line about {client} after {self.running.stdout_text()}"
        )
        return find()

    def test_datagram_headers_are_taken_off_too(self) -> None:
        for label, (header, _) in VALID_EITHER_WAY.items():
            with self.subTest(label):
                self.exchange(header, 10_000, b"payload")

    def refused(self, label: str, data: bytes, end: bool) -> str:
        """Send what must be refused; return its own address once it is closed."""
        with dial(self.running) as client:
            name = local_address(client)
            with contextlib.suppress(ConnectionError):
                client.sendall(data)
                if end:
                    client.shutdown(socket.SHUT_WR)
                if answer := client.recv(1000):
                    raise AssertionError(f"{label}: answered {answer!r}")
        return name

    def test_no_byte_of_an_invalid_header_reaches_a_server(self) -> None:
        before = figures(self.running)["connections"]["refused"]
        names = in_parallel(
            *(
                lambda label=label, data=data: self.refused(label, data, end=False)
                for label, data in INVALID.items()
            )
        )
        for label, name in zip(INVALID, names, strict=True):
            with self.subTest(label):
                self.assert_end(name, "PC", server="-", to_server=0, to_client=0)
        self.assertEqual(self.backend_shared.total, self.before)
        after = figures(self.running)["connections"]["refused"]
        self.assertGreaterEqual(after - before, len(INVALID))

    def test_no_byte_of_an_incomplete_header_reaches_a_server(self) -> None:
        in_parallel(
            *(
                lambda label=label, data=data: self.refused(label, data, end=True)
                for label, data in INCOMPLETE.items()
            )
        )
        self.assertEqual(self.backend_shared.total, self.before)

    def test_peer_without_a_complete_header_is_closed_after_a_few_seconds(self) -> None:
        wait_until(lambda: len(self.silent_for_s) == 2, what="the header timeout")
        for waited in self.silent_for_s:
            self.assertGreater(waited, 3)  # the least that the specification allows

    def test_waiting_for_a_header_keeps_nobody_else_waiting(self) -> None:
        for _ in range(20):
            self.open()
        self.exchange(b"PROXY UNKNOWN\r\n", 10_000, b"payload")


class ReceivingWithTwoWorkers(Receiving):
    """The same, through two processes."""

    WORKERS = 2


class Trust(BalancerTestCase):
    """Whether a header is expected is a matter of the options, never of a guess."""

    def test_header_is_data_without_the_option(self) -> None:
        backend = self.backend()
        balancer = self.balance([backend])
        client = self.dial(balancer)
        name = local_address(client)
        header = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
        client.sendall(header)
        self.assertEqual(read_exactly(client, len(header)), header)
        client.close()
        self.assertEqual(self.ending(balancer, name).client, name)

    def test_source_that_is_not_trusted_is_refused(self) -> None:
        backend = self.backend()
        balancer = self.balance([backend], "--accept-proxy=127.1.0.0/16")
        client = self.dial(balancer)
        name = local_address(client)
        with contextlib.suppress(ConnectionError):
            client.sendall(b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\nx")
            self.assertEqual(client.recv(1), b"")
        self.assertEqual(self.ending(balancer, name).code, "PC")
        self.assertEqual(backend.total, 0)

    def test_allowed_networks_are_those_of_the_client_in_the_header(self) -> None:
        backend = self.backend()
        balancer = self.balance(
            [backend], "--accept-proxy=127.0.0.0/8", "--allow=192.168.0.0/24"
        )
        for source, served in (("192.168.0.1", True), ("192.168.1.1", False)):
            with self.subTest(source):
                answer = b""  # also when it is closed by a reset
                client = self.dial(balancer)
                header = f"PROXY TCP4 {source} 192.168.0.11 56324 443\r\n".encode()
                with contextlib.suppress(ConnectionError):
                    client.sendall(header + b"x")
                    answer = client.recv(1)
                self.assertEqual(answer, b"x" if served else b"")
                client.close()


class Sending(BalancerTestCase):
    """`--send-proxy`: the server learns the client's address before all else."""

    def test_version_1_line_comes_first_with_both_addresses(self) -> None:
        backend = self.backend(sink)
        balancer = self.balance([backend], "--send-proxy=v1")
        client = self.dial(balancer)
        own = client.getsockname()[1]
        line = f"PROXY TCP4 127.0.0.1 127.0.0.1 {own} {balancer.port}\r\n".encode()
        wait_until(lambda: backend.visit().received == line, what=repr(line))
        client.sendall(b"data")
        wait_until(lambda: backend.visit().received == line + b"data", what="data")
        client.close()
        ending = self.ending(balancer, f"127.0.0.1:{own}")
        self.assertEqual(ending.to_server, 4, "the header is not the client's bytes")

    def test_version_2_header_comes_first_with_both_addresses(self) -> None:
        backend = self.backend(sink)
        balancer = self.balance([backend], "--send-proxy=v2")
        client = self.dial(balancer)
        ports = client.getsockname()[1].to_bytes(2, "big")
        ports += balancer.port.to_bytes(2, "big")
        header = SIGNATURE + b"\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01" + ports
        wait_until(lambda: backend.visit().received == header, what=repr(header))

    def test_ipv6_addresses_are_sent_as_such(self) -> None:
        backend = self.backend(sink)
        loopback = bytes(15) + b"\x01"
        for version in ("v1", "v2"):
            with self.subTest(version):
                count = backend.total
                balancer = self.balancer(
                    f"--send-proxy={version}",
                    "--no-checks",
                    servers=[backend],
                    listen="[::1]:0",
                )
                client = self.dial(balancer)
                own, port = client.getsockname()[1], balancer.port
                expected = {
                    "v1": f"PROXY TCP6 ::1 ::1 {own} {port}\r\n".encode(),
                    "v2": SIGNATURE
                    + b"\x21\x21\x00\x24"
                    + loopback * 2
                    + own.to_bytes(2, "big")
                    + port.to_bytes(2, "big"),
                }[version]
                visit = backend.visit(count)
                self.assertTrue(self.received(visit, expected), visit.received)

    def received(self, visit: Visit, expected: bytes) -> bool:
        """Wait until the server has received exactly this so far."""
        wait_until(lambda: len(visit.received) >= len(expected), what=repr(expected))
        return visit.received == expected

    def test_header_does_not_wait_for_the_client_of_a_server_that_speaks_first(
        self,
    ) -> None:
        backend = self.backend(banner(b"220 ready\r\n"))
        balancer = self.balance([backend], "--send-proxy=v1")
        client = self.dial(balancer)
        answer = read_exactly(client, 11)
        self.assertEqual(answer, b"220 ready\r\n")
        wait_until(lambda: backend.visit().received.startswith(b"PROXY TCP4 "))

    def test_client_that_ends_its_direction_at_once_is_still_announced(self) -> None:
        backend = self.backend(reply_after_eof(b"done"))
        balancer = self.balance([backend], "--send-proxy=v1")
        client = self.dial(balancer)
        own = client.getsockname()[1]
        client.sendall(b"x")
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(read_to_end(client), b"done")
        line = f"PROXY TCP4 127.0.0.1 127.0.0.1 {own} {balancer.port}\r\nx".encode()
        self.assertEqual(backend.visit().received, line)

    def chain(self, version: str, header: bytes) -> tuple[bytes, int, Running]:
        """Receive `header`, send `version`: return what the server got, and ports."""
        backend = self.backend(reply_after_eof(b"ok"))
        balancer = self.balance(
            [backend], "--accept-proxy=127.0.0.1/32", f"--send-proxy={version}"
        )
        client = self.dial(balancer)
        own = client.getsockname()[1]
        client.sendall(header + b"payload")
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(read_to_end(client), b"ok")
        return bytes(backend.visit().received), own, balancer

    def test_chain_of_balancers_keeps_the_first_client(self) -> None:
        v1_ipv4 = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
        v2_ipv4 = SIGNATURE + b"\x21\x11\x00\x0c" + IPV4_BLOCK
        v1_ipv6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"
        v2_ipv6 = SIGNATURE + b"\x21\x21\x00\x24" + IPV6_BLOCK
        for received, version, sent in (
            (v1_ipv4, "v1", v1_ipv4),
            (v1_ipv4, "v2", v2_ipv4),
            (v2_ipv4, "v1", v1_ipv4),
            (v2_ipv6, "v2", v2_ipv6),
            (v1_ipv6, "v2", v2_ipv6),
            (v2_ipv6, "v1", v1_ipv6),
        ):
            with self.subTest(received=received, version=version):
                got, _, _ = self.chain(version, received)
                self.assertEqual(got, sent + b"payload")

    def test_chain_uses_real_addresses_where_the_header_has_none(self) -> None:
        for header in (b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x20\x00\x00\x00"):
            with self.subTest(header):
                got, own, balancer = self.chain("v1", header)
                line = f"PROXY TCP4 127.0.0.1 127.0.0.1 {own} {balancer.port}\r\n"
                self.assertEqual(got, line.encode() + b"payload")

    def test_checks_announce_themselves_and_no_client(self) -> None:
        backend = self.backend(sink)
        self.balance([backend], "--send-proxy=v2", "--check-interval=0.2", checks=True)
        self.assertTrue(backend.visit().done.wait(10))
        visit = backend.visit()
        local = SIGNATURE + b"\x20\x00\x00\x00"
        self.assertEqual((bytes(visit.received), visit.end), (local, "eof"))

        backend = self.backend(sink)
        self.balance([backend], "--send-proxy=v1", "--check-interval=0.2", checks=True)
        self.assertTrue(backend.visit().done.wait(10))
        visit = backend.visit()
        addresses = f"127.0.0.1 127.0.0.1 {visit.peer[1]} {backend.port}"
        line = f"PROXY TCP4 {addresses}\r\n".encode()
        self.assertEqual((bytes(visit.received), visit.end), (line, "eof"))

    def test_server2_logs_the_true_client(self) -> None:
        server = self.start("server2.py", "0", "--accept-proxy=127.0.0.1/32")
        balancer = self.balance([server], "--send-proxy=v1")
        client = self.dial(balancer)
        name = local_address(client)
        client.sendall(b"Hello\n")
        reply = f"Server {server.port} received: Hello\n".encode()
        self.assertEqual(read_exactly(client, len(reply)), reply)
        received = f" - {server.port} - {name} - received: Hello"
        self.assertTrue(any(line.endswith(received) for line in self.log_lines()))
