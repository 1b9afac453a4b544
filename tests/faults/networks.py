"""Part 4: five hosts, and what happens on the wires between them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
import socket
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.balancer import endings
from tests.faults.lab import LONG_ONLY, Lab, scenario
from tests.faults.records import read_log
from tests.faults.wires import Host, Network
from tests.support import Running, in_parallel, read_line, wait_until

IDLE_TIMEOUT_S = 4.0
PATIENCE_S = 30.0  # far beyond every timeout: the machine may be slow
PORT = 9991  # each host has its own


@dataclass
class Deployment:
    """A client (or more), a balancer and three servers, each on a host of its own."""

    lab: Lab
    network: Network
    clients: list[Host]
    middle: Host
    back: list[Host]
    servers: list[Running]
    balancer: Running
    address: tuple[str, int]

    @classmethod
    def start(
        cls, lab: Lab, ipv6: bool = False, *options: object, clients: int = 1
    ) -> Deployment:
        """Start them; every host has its own log."""
        network = Network(lab, clients + 4)
        middle, *back = network.hosts[clients:]
        servers = [
            lab.spawn(
                "server2.py", PORT, "--quiet", "--host", place(host, ipv6),
                "--log", f"{host.ipv4}.txt", preexec_fn=host.enter,
            )
            for host in back
        ]  # fmt: skip
        for server in servers:
            server.listening()
        front = place(middle, ipv6)
        where = f"[{front}]:9990" if ipv6 else f"{front}:9990"
        balancer = lab.balancer(
            servers, "--check-interval", 0.3, "--check-timeout", 0.5, "--rise", 1,
            "--fall", 2, "--connect-timeout", 1, *options,
            listen=where, preexec_fn=middle.enter,
        )  # fmt: skip
        address = (front, 9990)
        hosts = network.hosts[:clients]
        return cls(lab, network, hosts, middle, back, servers, balancer, address)

    @property
    def client(self) -> Host:
        """Return the first client's host."""
        return self.clients[0]

    def measuring(
        self, *options: object, client: int = 0, name: str = "run.json"
    ) -> Running:
        """Start client2.py on a client's host; its --json document goes to `name`."""
        host, port = self.address
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return self.lab.spawn(
            "client2.py", *options, "--target", target, "--json", name, "--quiet",
            preexec_fn=self.clients[client].enter,
        )  # fmt: skip

    def measure(self, *options: object) -> dict[str, Any]:
        """Run client2.py on the first client's host; return its --json document."""
        running = self.measuring(*options)
        code = running.wait(120)
        self.lab.release(running)
        document: dict[str, Any] = json.loads(
            (self.lab.folder / "run.json").read_text()
        )
        self.lab.expect(
            code == (1 if document["exchanges"]["failed"] else 0), f"exit {code}"
        )
        self.lab.count("messages confirmed", document["exchanges"]["confirmed"])
        return document

    def dial(self) -> socket.socket:
        """Return a connection from the client's host to the balancer."""
        return self.client.dial(self.address)

    def check_logs(self, document: dict[str, Any]) -> None:
        """Expect each host's log to have what its server confirmed, and no fault."""
        for host in self.back:
            book = read_log([self.lab.folder / f"{host.ipv4}.txt"])
            for fault in book.faults:
                self.lab.lost(fault)
        text = "".join(
            (self.lab.folder / f"{host.ipv4}.txt").read_text() for host in self.back
        )
        replied = len(re.findall(" - replied: ", text))
        confirmed = document["exchanges"]["confirmed"]
        self.lab.expect(
            replied >= confirmed, f"{confirmed} confirmed, {replied} logged"
        )


def place(host: Host, ipv6: bool) -> str:
    """Return the address that is used of a host."""
    return host.ipv6 if ipv6 else host.ipv4


@scenario(4, short_s=0)
def delay_and_loss(lab: Lab) -> None:
    """Delay and lose packets between five hosts: all is confirmed, and takes longer."""
    system = Deployment.start(lab)
    for wire in system.network.wires():
        wire.delay_s, wire.loss = 0.01, 0.02
    # Each exchange crosses two wires twice.
    count = max(3, min(500, int(lab.seconds * 10)))
    document = system.measure(9, "--messages", count, "--timeout", 30)
    lab.expect(not document["exchanges"]["failed"], f"failed: {document['failures']}")
    least = document["latency_ns"]["min"] / 1e6
    lab.expect(least >= 40, f"an exchange took {least:.1f} ms over 40 ms of wire")
    counts = {name: s["confirmed"] for name, s in document["servers"].items()}
    lab.expect(sum(counts.values()) == 9 * count, f"by server: {counts}")
    system.check_logs(document)
    lab.count("packets passed", system.network.passed)
    lab.count("packets lost", system.network.dropped)
    lab.note(f"fastest exchange {least:.1f} ms over four crossings of 10 ms")


@scenario(4, short_s=LONG_ONLY)
def ipv6_only(lab: Lab) -> None:
    """Use nothing but IPv6 between five hosts."""
    system = Deployment.start(lab, True)
    document = system.measure(30, "--messages", 10)
    lab.expect(not document["exchanges"]["failed"], f"failed: {document['failures']}")
    system.check_logs(document)
    clients = {line.client for line in endings(system.balancer.stdout_lines())}
    from_there = {client.rpartition(":")[0] for client in clients}
    lab.expect(from_there == {f"[{system.client.ipv6}]"}, f"clients: {from_there}")


@scenario(4, share=0.3, short_s=1)
def two_measuring_hosts(lab: Lab) -> None:
    """Measure from two hosts at once: merged, it is what one run of both has."""
    system = Deployment.start(lab, clients=2)
    for host, delay_s in zip(system.clients, (0.001, 0.02), strict=True):
        wire = system.network.wire(host, system.middle)
        wire.delay_s = delay_s  # so that the means of two percentiles would be wrong
    seconds = max(1.0, min(10.0, lab.seconds))
    names = [f"run{index}" for index in range(2)]
    running = [
        system.measuring(
            20 + 20 * index, "--duration", seconds, "--csv", f"{name}.csv",
            client=index, name=f"{name}.json",
        )
        for index, name in enumerate(names)
    ]  # fmt: skip
    for one in running:
        lab.expect(one.wait(60) == 0, f"exit {one.returncode}: {one.stderr_text()}")
        lab.release(one)
    files = [f"{name}.json" for name in names]
    merging = lab.spawn("client2.py", "--merge", *files, "--json", "both.json")
    lab.expect(merging.wait(60) == 0, merging.stderr_text())
    lab.release(merging)
    both = json.loads((lab.folder / "both.json").read_text())
    rows = []
    for name in names:
        text = (lab.folder / f"{name}.csv").read_text()
        rows += list(csv.DictReader(io.StringIO(text)))
    lab.count("messages confirmed", len(rows))
    lab.expect(both["exchanges"]["confirmed"] == len(rows), str(both["exchanges"]))
    lab.expect(both["clients"] == 60, f"{both['clients']} clients")
    for metric in ("latency_ns", "response_time_ns"):
        values = sorted(int(row[metric]) for row in rows)
        for key, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            true = values[math.ceil(share * len(values)) - 1]
            off = abs(both[metric][key] / true - 1)
            lab.expect(off <= 0.001, f"{metric} {key}: {both[metric][key]} for {true}")
        ends = (both[metric]["min"], both[metric]["max"], both[metric]["count"])
        expected = (values[0], values[-1], len(values))
        lab.expect(ends == expected, f"{metric}: {ends} for {expected}")


def converse(sock: socket.socket, text: bytes) -> bytes:
    """Return what one message is answered with, b"" for an end or a reset."""
    try:
        sock.sendall(text)
        return read_line(sock)
    except ConnectionError:
        return b""


@scenario(4, short_s=0)
def cut_behind_the_balancer(lab: Lab) -> None:
    """Cut the wire to a server without FIN: its clients get an end, others go on."""
    options = ("--idle-timeout", IDLE_TIMEOUT_S)
    system = Deployment.start(lab, False, *options)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(system.dial()) for _ in range(3)]
        for sock in socks:
            reply = converse(sock, b"Hello\n")
            lab.expect(reply == b"Server 9991 received: Hello\n", f"got {reply!r}")
        wire = system.network.wire(system.middle, system.back[0])
        wire.is_cut = True
        lab.count("cuts")
        began = time.monotonic()
        answers = in_parallel(*(partial(answer_or_end, sock) for sock in socks))
        took_s = time.monotonic() - began
        lab.expect(sorted(answers) == ["confirmed", "confirmed", "ended"], str(answers))
        lab.expect(took_s < PATIENCE_S, f"it took {took_s:.1f} s to give up")
        lost = f"server={system.back[0].ipv4}:{PORT} state="
        system.balancer.wait_for_line(lost + "DOWN")
        document = system.measure(9, "--timeout", 20)
        lab.expect(
            not document["exchanges"]["failed"], "new clients of the others fail"
        )
        wire.is_cut = False
        system.balancer.wait_for_line(lost + "UP")
    document = system.measure(9)
    lab.expect(len(document["servers"]) >= 1, "nothing was served after the cut")
    lab.expect(not document["exchanges"]["failed"], "clients fail after the cut")


def answer_or_end(sock: socket.socket) -> str:
    """Say something, and tell how the server answered."""
    sock.settimeout(PATIENCE_S)
    try:
        return "confirmed" if converse(sock, b"Hello again\n") else "ended"
    except TimeoutError:
        return "silence"


@scenario(4, short_s=LONG_ONLY)
def cut_before_the_balancer(lab: Lab) -> None:
    """Cut the wire to the client without FIN: its connections are freed everywhere."""
    options = ("--idle-timeout", IDLE_TIMEOUT_S)
    system = Deployment.start(lab, False, *options)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(system.dial()) for _ in range(6)]
        for sock in socks:
            lab.expect(converse(sock, b"Hello\n"), "no confirmation before the cut")
        system.network.wire(system.client, system.middle).is_cut = True
        lab.count("cuts")
        system.balancer.wait_for_line(" client=", PATIENCE_S, 6)
        codes = {line.code for line in endings(system.balancer.stdout_lines())}
        lab.expect(codes == {"cD"}, f"termination codes {codes}, not cD")
        closed = re.compile(r"closed: .*1 message,")
        logs = [lab.folder / f"{host.ipv4}.txt" for host in system.back]
        wait_until(
            lambda: sum(len(closed.findall(log.read_text())) for log in logs) == 6,
            what="the servers' closing records",
        )
        system.network.wire(system.client, system.middle).is_cut = False
    document = system.measure(9)
    lab.expect(not document["exchanges"]["failed"], "clients fail after the cut")


@scenario(4, short_s=LONG_ONLY)
def cut_in_the_middle_of_a_run(lab: Lab) -> None:
    """Cut each wire for a moment while clients talk: nothing is stuck or altered."""
    system = Deployment.start(lab, False, "--idle-timeout", IDLE_TIMEOUT_S)
    host, port = system.address
    seconds = max(4.0, lab.seconds)
    running = lab.spawn(
        "client2.py", 9, "--target", f"{host}:{port}", "--duration", seconds,
        "--timeout", 4, "--json", "run.json", "--quiet", preexec_fn=system.client.enter,
    )  # fmt: skip
    lab.begin()
    choices = lab.chooser()
    ended = threading.Event()  # never set: its waits are the lengths of the cuts
    while running.returncode is None and lab.left():
        one, other = choices.choice(
            [(system.client, system.middle), *((system.middle, b) for b in system.back)]
        )
        wire = system.network.wire(one, other)
        wire.is_cut = True
        lab.count("cuts")
        ended.wait(choices.choice((0.1, 0.5, 1.0, 3.0)))
        wire.is_cut = False
        ended.wait(choices.choice((0.1, 1.0)))
    running.wait(60)
    document = json.loads((lab.folder / "run.json").read_text())
    failures = document["failures"]
    lab.count("messages confirmed", document["exchanges"]["confirmed"])
    lab.expect(document["exchanges"]["confirmed"], "nothing was confirmed")
    lab.expect(not failures["mismatch"] and not failures["error_reply"], str(failures))
    lab.note(f"failures seen by clients while wires were cut: {failures}")
    system.check_logs(document)
