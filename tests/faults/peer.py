"""A server process for the balancer that keeps its own count of every byte.

    python peer.py PORT

Sends back what it gets, to the end of file. The first ten bytes of a connection are
its number; when it ends, one line on standard output tells what was seen of it:

    connection 0000000017 received=4711 sent=4711 sha256=9f86… end=eof

Stands alone: it is started, stopped and killed as a process.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading

BUFFER_BYTES = 65536
NUMBER_BYTES = 10
TIMEOUT_S = 60.0


def serve(connection: socket.socket) -> None:
    """Echo one connection, then say what was seen. Runs on a thread of its own."""
    connection.settimeout(TIMEOUT_S)
    seen, head = hashlib.sha256(), b""
    received = sent = 0
    end = "eof"
    with connection:
        try:
            while data := connection.recv(BUFFER_BYTES):
                received += len(data)
                seen.update(data)
                head = (head + data)[:NUMBER_BYTES]
                connection.sendall(data)
                sent += len(data)
            connection.shutdown(socket.SHUT_WR)
        except TimeoutError:
            end = "timeout"
        except OSError:
            end = "reset"
    if received:
        line = (
            f"connection {head.decode()} received={received} sent={sent} "
            f"sha256={seen.hexdigest()} end={end}\n"
        )
        os.write(1, line.encode())  # one write: lines of threads do not mix


def main() -> None:
    """Listen, and serve every connection on a thread of its own."""
    address = "127.0.0.1", int(sys.argv[1])
    with socket.create_server(address, backlog=1024) as listener:
        print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(
                target=serve, args=(connection,), name="connection", daemon=True
            ).start()


if __name__ == "__main__":
    main()
