"""What server2.py is compared with: `peers.py threading|asyncio LOG [--fsync]`.

Both do server2.py's work the usual way: a line comes, two records are written to the
log, then the confirmation is sent. `threading` is socketserver.ThreadingTCPServer with
the logging module; `asyncio` is a stream server. With --fsync each message's records
are flushed to the disk on their own before it is confirmed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socketserver
import sys

FORMAT = "%(asctime)s - %(message)s"


class FlushingHandler(logging.FileHandler):
    """A log file whose every reply record is on disk when it was written."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; logging holds this handler's lock meanwhile."""
        super().emit(record)
        if record.msg == REPLIED and self.stream:
            os.fsync(self.stream.fileno())


RECEIVED = "%d - %s:%d - received: %s"
REPLIED = "%d - %s:%d - replied: %s"


def confirm(line: bytes, port: int, client: tuple[str, int]) -> bytes:
    """Record a line and its confirmation; return the confirmation."""
    reply = b"Server %d received: " % port + line
    for words, data in ((RECEIVED, line), (REPLIED, reply)):
        text = data.decode("utf-8", "backslashreplace").rstrip("\r\n")
        logging.info(words, port, *client, text)
    return reply


class Server(socketserver.ThreadingTCPServer):
    """A thread per connection."""

    daemon_threads = True
    request_queue_size = 4096  # the default of 5 would lose connects of 50 clients


class Handler(socketserver.StreamRequestHandler):
    """Serves one connection on its thread."""

    def handle(self) -> None:
        """Confirm line after line until the client closes."""
        port: int = self.connection.getsockname()[1]
        logging.info("%d - %s:%d - connected", port, *self.client_address)
        for line in self.rfile:
            self.wfile.write(confirm(line, port, self.client_address))
        logging.info("%d - %s:%d - closed", port, *self.client_address)


async def serve_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Confirm line after line until the client closes."""
    port: int = writer.get_extra_info("sockname")[1]
    client: tuple[str, int] = writer.get_extra_info("peername")
    logging.info("%d - %s:%d - connected", port, *client)
    while line := await reader.readline():
        writer.write(confirm(line, port, client))
        await writer.drain()
    logging.info("%d - %s:%d - closed", port, *client)
    writer.close()


async def serve_asyncio() -> None:
    """Serve on a free port until the process is ended."""
    server = await asyncio.start_server(serve_stream, "127.0.0.1", 0, backlog=4096)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    """Set up the log, serve on a free port, and say which."""
    kind, log = sys.argv[1:3]
    handler = FlushingHandler(log) if "--fsync" in sys.argv else None
    handlers = [handler or logging.FileHandler(log)]
    logging.basicConfig(level=logging.INFO, format=FORMAT, handlers=handlers)
    if kind == "asyncio":
        asyncio.run(serve_asyncio())
        return
    with Server(("127.0.0.1", 0), Handler) as server:
        print(f"listening on 127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
