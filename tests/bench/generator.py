"""A process of the load for server2.py: `generator.py HOST:PORT SECONDS [--redis] N`.

It holds N connections on one epoll, with one message under way on each: send, wait for
the confirmation, compare it byte for byte, send again. Messages and expected replies
are built before the start, so that a message costs it two system calls and a dict
look-up. It prints "ready", starts when a line comes on standard input, and prints
exchanges, seconds and its own CPU seconds. That it is not what limits the run is seen
by the share of a core that it used, and by what it reaches against Redis (--redis).
"""

from __future__ import annotations

import select
import socket
import sys
import time

CONNECT_TIMEOUT_S = 10.0
SILENCE_S = 10.0  # no reply to any of N connections: the server hangs
PING, PONG = b"PING\r\n", b"+PONG\r\n"


def connect(host: str, port: int, count: int) -> dict[int, socket.socket]:
    """Return `count` connected non-blocking sockets by descriptor."""
    found = {}
    for _ in range(count):
        connection = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        found[connection.fileno()] = connection
    return found


def exchange(
    connections: dict[int, socket.socket], pair: tuple[bytes, bytes], seconds: float
) -> int:
    """Exchange messages for some seconds; return how many were confirmed."""
    message, expected = pair
    calls = {fd: (c.recv, c.send) for fd, c in connections.items()}
    poller = select.epoll()
    for descriptor, connection in connections.items():
        poller.register(descriptor, select.EPOLLIN)
        connection.send(message)
    confirmed, clock = 0, time.perf_counter
    end = clock() + seconds
    while clock() < end:
        ready = poller.poll(SILENCE_S)
        if not ready:
            sys.exit("generator.py: no reply")
        for descriptor, _ in ready:
            receive, send = calls[descriptor]
            reply = receive(256)
            if reply != expected:
                sys.exit(f"generator.py: wrong reply {reply!r}")
            send(message)
        confirmed += len(ready)
    poller.close()
    return confirmed


def main() -> None:
    """Connect, wait for the word, exchange, print the figures."""
    host, _, port = sys.argv[1].rpartition(":")
    message, reply = b"Hello from client 1!\n", b"Server %s received: "
    pair = (message, reply % port.encode() + message)
    if "--redis" in sys.argv:
        pair = (PING, PONG)
    connections = connect(host, int(port), int(sys.argv[-1]))
    print("ready", flush=True)
    sys.stdin.readline()
    started, cpu = time.perf_counter(), time.process_time()
    confirmed = exchange(connections, pair, float(sys.argv[2]))
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    print(confirmed, wall_s, cpu_s, flush=True)
    for connection in connections.values():
        connection.close()


if __name__ == "__main__":
    main()
