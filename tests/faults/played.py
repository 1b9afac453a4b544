"""Part 7: server2.py --fault, seen through the balancer."""

from __future__ import annotations

import contextlib
import socket
import time

from tests.balancer import parse_ending
from tests.faults.lab import Lab, scenario
from tests.support import Running, dial, read_line, read_to_end

FAULTS = ("refuse", "hang", "reset", "slow:0.4", "close-early", "half-close")
PATIENCE_S = 15.0


@scenario(7, share=0.2, short_s=0)
def faults_to_play_with(lab: Lab) -> None:
    """Put each --fault of server2.py behind a balancer, and see what a client sees."""
    servers = {
        fault: lab.spawn("server2.py", 0, "--quiet", "--fault", fault)
        for fault in FAULTS
    }
    sound = lab.spawn("server2.py", 0, "--quiet")
    for server in (*servers.values(), sound):
        server.listening()
    balancers = {
        fault: lab.spawn(
            "load_balancer.py", "--listen=127.0.0.1:0", f"--server={server.address}",
            f"--server={sound.address}", "--no-checks",
        )
        for fault, server in servers.items()
    }  # fmt: skip
    for fault, balancer in balancers.items():
        port = (sound if fault == "refuse" else servers[fault]).port
        balancer.listening()
        seen, took_s = what_a_client_sees(balancer)
        whole = f"Server {port} received: Hello\n"
        expected = {
            "refuse": (whole, "nothing more"),  # by the other server
            "hang": ("", "silence"),
            "reset": ("", "reset"),
            "slow:0.4": (whole, "nothing more"),
            "close-early": (whole[: len(whole) // 2], "end"),
            "half-close": (whole, "end"),
        }[fault]
        lab.expect(seen == expected, f"{fault}: {seen}, not {expected}")
        if fault.startswith("slow"):
            lab.expect(took_s >= 0.4, f"{fault}: the reply took {took_s:.3f} s")
        lab.count("faults tried")
    line = parse_ending(balancers["refuse"].wait_for_line(" client="))
    lab.expect(line.tries == 2, f"not retried: {line.line}")
    line = parse_ending(balancers["reset"].wait_for_line(" client="))
    lab.expect(line.code == "SD", f"a reset ended as {line.line}")


def what_a_client_sees(balancer: Running) -> tuple[tuple[str, str], float]:
    """Return (reply, how it ended) for one message, and how long the reply took (s)."""
    with dial(balancer, PATIENCE_S) as sock:
        began = time.monotonic()
        sock.sendall(b"Hello\n")
        reply, ended = b"", ""
        try:
            sock.settimeout(1.0)  # twice the slow one's time
            reply = read_line(sock)
            took_s = time.monotonic() - began
            sock.settimeout(0.2)
            ended = "more" if read_to_end(sock) else "end"
        except ConnectionResetError:
            took_s, ended = time.monotonic() - began, "reset"
        except TimeoutError:
            took_s = time.monotonic() - began
            ended = "nothing more" if reply else "silence"
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
    return (reply.decode(), ended), took_s
