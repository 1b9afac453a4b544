"""A plain blocking client: `plain.py HOST:PORT SECONDS` prints its p50 in ns.

One connection, a line, its reply, the next line; user-space time (runs alone).
"""

from __future__ import annotations

import socket
import statistics
import sys
import time

SILENCE_S = 10


def main() -> None:
    """Exchange lines for some seconds, then print the median."""
    host, _, port = sys.argv[1].rpartition(":")
    found, end = [], time.monotonic() + float(sys.argv[2])
    with socket.create_connection((host, int(port)), SILENCE_S) as connection:
        connection.settimeout(None)  # a timeout would cost a poll(2) per message
        timeval = SILENCE_S.to_bytes(8, sys.byteorder) + bytes(8)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() < end:
            sent = time.perf_counter_ns()
            connection.sendall(b"Hello\n")
            connection.recv(4096)
            found.append(time.perf_counter_ns() - sent)
    print(statistics.median_low(found))


if __name__ == "__main__":
    main()
