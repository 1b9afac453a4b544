"""A server that confirms wrongly: `crooked.py twice|early HOST`.

twice: every message is confirmed twice. early: the second confirmation comes, unasked,
as soon as somebody connects. Both shift all later replies by one message.
"""

from __future__ import annotations

import socketserver
import sys


class Crooked(socketserver.ThreadingTCPServer):
    """A thread per connection."""

    daemon_threads = True
    request_queue_size = 1024


class Handler(socketserver.StreamRequestHandler):
    """Serves one connection."""

    def handle(self) -> None:
        """Confirm line after line, one confirmation too many."""
        head = b"Server %d received: " % self.connection.getsockname()[1]
        if sys.argv[1] == "early":
            self.wfile.write(head + b"Hello\n")
        for line in self.rfile:
            self.wfile.write((head + line) * (2 if sys.argv[1] == "twice" else 1))


def main() -> None:
    """Serve on a free port until ended."""
    with Crooked((sys.argv[2], 0), Handler) as server:
        host, port = server.server_address[:2]
        print(f"listening on {host!s}:{port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
