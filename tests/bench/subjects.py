"""What is measured: the three scripts and their peers, each on its own address."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from tests.bench.machine import START_DEADLINE_S, RunError, Stage, free_port, loopback

BALANCER = "load_balancer.py"
SERVER = "server2.py"
CLIENT = "client2.py"

FREE_THREADED_FOLDER = "/opt/lab-python-freethreaded"
FREE_THREADED_NAMES = ("python3.14t", "python3.13t", "python3t")
IS_FREE = "import sys; raise SystemExit(sys._is_gil_enabled())"

INSTALL = {
    "haproxy": "HAProxy: apt install haproxy",
    "nginx": "nginx stream: apt install nginx libnginx-mod-stream",
    "redis-server": "Redis (the servers behind): apt install redis-server",
    "redis-benchmark": "redis-benchmark (the load): apt install redis-tools",
    "iperf3": "iperf3 (the bulk load): apt install iperf3",
    "cc": "a C compiler (a thread per connection, in C): apt install gcc libc6-dev",
}

Address = tuple[str, int]


@dataclass(slots=True)
class Subject:
    """Something to send load to; `process` is None where nothing is in between."""

    name: str
    address: Address
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Return the process whose family is measured."""
        return self.process.pid if self.process else None


def missing(programs: Sequence[str]) -> list[str]:
    """Return those of the programs that are not installed."""
    return [name for name in programs if not shutil.which(name)]


def free_threaded_python(given: str = "") -> str:
    """Return a free-threaded interpreter, or "" where there is none.

    The one that is given, or named by the environment, may be its folder.
    """
    named = given or os.environ.get("LAB_FREE_THREADED", "")
    places = [named] if named else [FREE_THREADED_FOLDER]
    found = [str(path) for place in places for path in interpreters(Path(place))]
    if not named:
        found += filter(None, map(shutil.which, FREE_THREADED_NAMES))
    for python in found:
        done = subprocess.run([python, "-c", IS_FREE], capture_output=True, check=False)
        if done.returncode == 0:
            return python
    if given:
        raise RunError(f"{given} is no free-threaded Python")
    return ""


def interpreters(place: Path) -> list[Path]:
    """Return the programs that may be meant by a path: itself, or those in a folder."""
    if not place.is_dir():
        return [place] if place.is_file() else []
    found = [*place.glob("bin/python3*"), *place.glob("usr/bin/python3*")]
    return [path for path in found if re.fullmatch(r"python3(\.\d+)?t?", path.name)]


# ---- Behind the balancer ---------------------------------------------------------


def start_redis(stage: Stage, number: int) -> Address:
    """Start a Redis that stores nothing, on 127.x.y.`number`; return its address."""
    host = loopback(number)
    port = free_port(host)
    command = f"redis-server --bind {host} --port {port} --save --appendonly no"
    process = stage.start([*command.split(), "--maxclients", "10000"])
    stage.wait_until_listening(process, host, port)
    return host, port


# ---- Peers of the balancer -------------------------------------------------------

HAPROXY_CONFIG = """\
global
    nbthread {threads}
    maxconn {connections}
    maxpipes 40
    {buffer}
defaults
    mode tcp
    option splice-auto
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen bench
    bind {host}:{port}
    balance roundrobin
    {servers}
"""

NGINX_CONFIG = """\
{module}
daemon off;
worker_processes {workers};
worker_rlimit_nofile {descriptors};
pid {folder}/nginx-{number}.pid;
error_log {folder}/nginx.log;
events {{ worker_connections {descriptors}; }}
stream {{
    upstream servers {{ {servers} }}
    server {{ listen {host}:{port} backlog=4096; proxy_pass servers; }}
}}
"""


def start_haproxy(
    stage: Stage,
    number: int,
    servers: Sequence[Address],
    *,
    threads: int = 1,
    buffer_kib: int = 0,
    connections: int = 9_900,
) -> Subject:
    """Start an HAProxy; `buffer_kib` 0 leaves its default buffers (16 KiB)."""
    host = loopback(number)
    port = free_port(host)
    config = stage.folder / f"haproxy-{number}.cfg"
    lines = [f"server s{i} {h}:{p}" for i, (h, p) in enumerate(servers, 1)]
    config.write_text(
        HAPROXY_CONFIG.format(
            threads=threads,
            connections=connections,
            buffer=f"tune.bufsize {buffer_kib * 1024}" if buffer_kib else "",
            host=host,
            port=port,
            servers="\n    ".join(lines),
        )
    )
    process = stage.start(["haproxy", "-db", "-f", str(config)])
    stage.wait_until_listening(process, host, port)
    name = "HAProxy" + (f" {buffer_kib} KiB" if buffer_kib else "")
    name += f" {threads} threads" if threads > 1 else ""
    return Subject(name, (host, port), process)


def nginx_stream_module() -> str:
    """Return the line that loads nginx's stream module, empty if it is built in.

    Raises RunError when this nginx has none.
    """
    built = subprocess.run(["nginx", "-V"], capture_output=True, text=True, check=True)
    if re.search(r"--with-stream(\s|$)", built.stderr):
        return ""
    found = glob("/usr/lib*/nginx/modules/ngx_stream_module.so")
    if not found:
        raise RunError(INSTALL["nginx"])
    return f"load_module {found[0]};"


def start_nginx(
    stage: Stage,
    number: int,
    servers: Sequence[Address],
    *,
    workers: int = 1,
    connections: int = 9_900,
) -> Subject:
    """Start an nginx that forwards streams; one master and `workers` processes."""
    host = loopback(number)
    port = free_port(host)
    config = stage.folder / f"nginx-{number}.conf"
    config.write_text(
        NGINX_CONFIG.format(
            module=nginx_stream_module(),
            workers=workers,
            descriptors=2 * connections + 100,
            folder=stage.folder,
            number=number,
            servers=" ".join(f"server {h}:{p};" for h, p in servers),
            host=host,
            port=port,
        )
    )
    command = ["nginx", "-p", str(stage.folder), "-c", str(config)]
    process = stage.start([*command, "-e", str(stage.folder / "nginx.log")])
    stage.wait_until_listening(process, host, port)
    name = "nginx" + (f" {workers} workers" if workers > 1 else "")
    return Subject(name, (host, port), process)


C_RELAY = "C, a thread each"


def start_c_relay(stage: Stage, number: int, servers: Sequence[Address]) -> Subject:
    """Compile and start relay.c: a thread per connection, and no more than that."""
    program = stage.folder / "relay"
    source = Path(__file__).with_name("relay.c")
    command = ["cc", "-O2", "-pthread", str(source), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        raise RunError(f"cc cannot build {source.name}: {built.stderr[:200]}")
    addresses = [f"{host}:{port}" for host, port in servers]
    process = stage.start([str(program), loopback(number), *addresses], subprocess.PIPE)
    return Subject(C_RELAY, address_in(first_line(stage, process)), process)


# ---- The scripts, and what server2.py is compared with ---------------------------


def first_line(stage: Stage, process: subprocess.Popen[bytes]) -> str:
    """Return the first line that a script prints. Raises RunError if none comes."""
    assert process.stdout is not None
    deadline = time.monotonic() + START_DEADLINE_S
    line = b""
    while not line.endswith(b"\n"):
        left = max(0.0, deadline - time.monotonic())
        ready = select.select([process.stdout], [], [], left)[0]
        byte = process.stdout.read(1) if ready else b""
        if not byte:
            stage.stop(process)
            raise RunError(f"{process.args!r} did not start: {stage.last_error()}")
        line += byte
    return line.decode()


def start_script(
    stage: Stage, name: str, script: Path, args: Sequence[str], python: str = ""
) -> Subject:
    """Start a script that prints `listening on HOST:PORT` first."""
    command = [python or sys.executable, str(script), *args]
    process = stage.start(command, subprocess.PIPE)
    return Subject(name, address_in(first_line(stage, process)), process)


def address_in(line: str) -> Address:
    """Return the address in "listening on HOST:PORT". Raises RunError if none is."""
    match = re.match(r"listening on (\S+):(\d+)", line)
    if not match:
        raise RunError(f"{line!r} is no address that something listens on")
    return match[1], int(match[2])


def balancer_args(number: int, servers: Sequence[Address], log: Path) -> list[str]:
    """Return the options of a balancer beside its peers.

    Neither it nor its peers check their servers here: a check would be a second
    client of iperf3, which serves one. It logs its connections, as it always does.
    """
    args = ["--listen", f"{loopback(number)}:0", "--no-checks", "--log", str(log)]
    for host, port in servers:
        args += ["--server", f"{host}:{port}"]
    return args
