"""Hosts and the wires between them: network namespaces joined by this process.

Each `Host` is a network namespace with one TUN device (Linux,
Documentation/networking/tuntap.rst); a thread of this process passes the packets on
between the devices, late, or not at all, as the `Wire` between two hosts says. So
delay, loss and cuts need nothing of the kernel but TUN, and follow from a seed. Needs
root; whatever was made is removed by `Network.close`.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import ipaddress
import itertools
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.faults.lab import Lab

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
MTU_BYTES = 1500
# Loaded here, not in a child between fork and exec, where another thread's lock stays.
LIBC: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None


def enter_namespace(name: str) -> None:
    """Move the calling thread into a named network namespace (setns(2))."""
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        if LIBC.setns(fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(fd)


def ip(*arguments: str) -> None:
    """Have the ip command do something; SkipTest when it cannot, as without root."""
    try:
        done = subprocess.run(
            ["ip", *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise unittest.SkipTest("needs ip (package iproute2)") from None
    if done.returncode:
        said = done.stderr.strip()
        raise unittest.SkipTest(f"needs root and network namespaces: {said}")


class Host:
    """A network namespace; `host.enter` is a `preexec_fn` for its processes."""

    _numbers = itertools.count(1)

    def __init__(self, number: int) -> None:
        """Make it, with the addresses 10.77.0.<number> and fd77::<number>."""
        self.name = f"lab{os.getpid()}-{next(self._numbers)}"
        self.ipv4 = f"10.77.0.{number}"
        self.ipv6 = f"fd77::{number}"
        ip("netns", "add", self.name)
        self.device = -1

    def enter(self) -> None:
        """Move the calling thread (in a child process: the process) here."""
        enter_namespace(self.name)

    def configure(self, setting: str, value: str) -> None:
        """Write a setting of this namespace, as sysctl(8) does."""
        command = [
            "netns",
            "exec",
            self.name,
            "sysctl",
            "-q",
            "-w",
            f"{setting}={value}",
        ]
        ip(*command)

    def loopback(self) -> None:
        """Bring the loopback device up."""
        ip("-n", self.name, "link", "set", "lo", "up")

    def connect_device(self) -> None:
        """Make the TUN device, and give it the addresses."""
        with self.entered():
            self.device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            request = struct.pack("16sH22x", b"lab0", IFF_TUN | IFF_NO_PI)
            fcntl.ioctl(self.device, TUNSETIFF, request)
        link = ("-n", self.name, "link", "set", "lab0")
        ip(*link, "mtu", str(MTU_BYTES), "up")
        ip("-n", self.name, "addr", "add", f"{self.ipv4}/24", "dev", "lab0")
        ip(
            "-n",
            self.name,
            "-6",
            "addr",
            "add",
            f"{self.ipv6}/64",
            "dev",
            "lab0",
            "nodad",
        )

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have the calling thread here meanwhile: its new sockets stay here."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            self.enter()
            yield
        finally:
            LIBC.setns(home, CLONE_NEWNET)
            os.close(home)

    def dial(self, address: tuple[str, int], timeout: float = 20.0) -> socket.socket:
        """Return a connection made from this host."""
        with self.entered():
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            sock = socket.socket(family)
        sock.settimeout(timeout)
        try:
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Remove the namespace; its devices go with it."""
        if self.device >= 0:
            os.close(self.device)
        ip("netns", "del", self.name)


@dataclass
class Wire:
    """What happens between two hosts, both ways."""

    delay_s: float = 0.0
    loss: float = 0.0  # share of packets
    is_cut: bool = False


class Network:
    """Hosts joined by wires. Set a wire's fields at any time.

    Only the thread "wires" touches the queue and the figures while it runs.
    """

    def __init__(self, lab: Lab, count: int) -> None:
        """Make `count` hosts, wired each to each; closed with the lab."""
        if (
            not hasattr(os, "geteuid")
            or os.geteuid()
            or not os.path.exists("/dev/net/tun")
        ):
            raise unittest.SkipTest("needs root and /dev/net/tun (Linux)")
        self.hosts: list[Host] = []
        self.passed = self.dropped = 0
        self._choices: random.Random = lab.chooser()
        self._wires: dict[frozenset[int], Wire] = {}
        self._queue: list[tuple[float, int, int, bytes]] = []  # due, order, to, packet
        self._order = itertools.count()
        self._ended, self._end = os.pipe()
        self._thread = threading.Thread(target=self._pass, name="wires", daemon=True)
        lab.at_end(self.close)
        for number in range(1, count + 1):
            self.hosts.append(Host(number))
        for host in self.hosts:
            host.loopback()
            host.connect_device()
        for pair in itertools.combinations(range(count), 2):
            self._wires[frozenset(pair)] = Wire()
        self._thread.start()

    def wire(self, one: Host, other: Host) -> Wire:
        """Return the wire between two hosts."""
        pair = self.hosts.index(one), self.hosts.index(other)
        return self._wires[frozenset(pair)]

    def wires(self) -> list[Wire]:
        """Return all wires."""
        return list(self._wires.values())

    def close(self) -> None:
        """Stop passing packets, remove the hosts."""
        os.close(self._end)
        if self._thread.ident:
            self._thread.join(10)
        os.close(self._ended)
        for host in self.hosts:
            host.close()

    def _pass(self) -> None:
        """Thread "wires": pass packets on until the end."""
        places = {
            ipaddress.ip_address(h.ipv4).packed: k for k, h in enumerate(self.hosts)
        }
        for number, host in enumerate(self.hosts):
            places[ipaddress.ip_address(host.ipv6).packed] = number
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        by_device = {host.device: k for k, host in enumerate(self.hosts)}
        for device in by_device:
            poll.register(device, select.POLLIN)
        while True:
            for device, _ in poll.poll(self._next_ms()):
                if device == self._ended:
                    return
                self._take(device, by_device[device], places)
            self._deliver()

    def _next_ms(self) -> float | None:
        if not self._queue:
            return None
        return max(0.0, self._queue[0][0] - time.monotonic()) * 1000

    def _take(self, device: int, sender: int, places: dict[bytes, int]) -> None:
        """Read what a host sent, and decide what becomes of it."""
        for _ in range(64):
            try:
                packet = os.read(device, MTU_BYTES + 100)
            except OSError:  # nothing more
                return
            target = packet[24:40] if packet[0] >> 4 == 6 else packet[16:20]
            to = places.get(target)
            if to is None or to == sender:
                continue
            wire = self._wires[frozenset((sender, to))]
            if wire.is_cut or self._choices.random() < wire.loss:
                self.dropped += 1
                continue
            due = time.monotonic() + wire.delay_s
            heapq.heappush(self._queue, (due, next(self._order), to, packet))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._queue and self._queue[0][0] <= now:
            _, _, to, packet = heapq.heappop(self._queue)
            with contextlib.suppress(OSError):  # its queue is full: lost, as on a wire
                os.write(self.hosts[to].device, packet)
            self.passed += 1
