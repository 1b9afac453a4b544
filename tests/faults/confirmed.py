"""Parts 1 and 2: what was confirmed is in the log, exactly once, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import unittest
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.disk import Disk
from tests.faults.lab import LONG_ONLY, Lab, Preparation, scenario, steady_port
from tests.faults.records import Book, message, read_log
from tests.faults.talkers import CONFIRMED, Talkers
from tests.support import Running, dial, read_line, wait_until

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

LOG_BYTES = 64 << 10  # the small disks' size
SIGNALS = all(hasattr(signal, name) for name in ("SIGKILL", "SIGHUP"))


# ---- 1: killed servers, rotated logs ---------------------------------------------


class Fleet:
    """Three servers behind a balancer, which one thread kills and restarts."""

    def __init__(self, lab: Lab, folder: Path | None = None) -> None:
        """Start them; the log is in `folder`, or in the lab's."""
        self.lab = lab
        self.log = (folder or lab.folder) / "server_log.txt"
        self.options = ("--quiet", "--log", self.log)
        self.servers = lab.servers(3, *self.options)
        self.balancer = lab.balancer(
            self.servers, "--check-interval", 0.2, "--rise", 1, "--log", "balancer.log"
        )
        self.rotated: list[Path] = []

    def kill(self, index: int) -> None:
        """End a server with SIGKILL, and wait until it is gone."""
        self.servers[index].kill()
        self.lab.release(self.servers[index])
        self.lab.count("kills")

    def restart(self, index: int) -> None:
        """Start a server again on the port that it had."""
        port = self.servers[index].port
        self.servers[index] = self.lab.start("server2.py", port, *self.options)

    def rotate(self) -> None:
        """Rename the log, tell the servers, wait until they write the new one."""
        old = self.rename()
        for server in self.servers:
            server.signal(signal.SIGHUP)
        for server in self.servers:
            wait_until_closed(server, old)
        self.lab.count("log rotations")

    def rename(self) -> Path:
        """Rename the log, as the first step of a rotation."""
        old = self.log.with_name(f"server_log.{len(self.rotated):05d}.txt")
        os.rename(self.log, old)
        self.rotated.append(old)
        return old

    def read(self, talkers: Talkers) -> Book:
        """Read the whole log, and report what is wrong with it."""
        book = read_log([*self.rotated, self.log])
        for fault in (*book.faults, *book.missing(talkers.confirmed)):
            self.lab.lost(fault)
        self.lab.expect(not book.foreign, f"{book.foreign} records of nobody")
        self.lab.count("records", book.records)
        self.lab.count("records mended", book.blanks)
        return book


def has_open(pid: int, path: Path) -> bool:
    """Tell whether a process has the file open (proc(5), /proc/pid/fd)."""
    with contextlib.suppress(FileNotFoundError):  # the process has ended
        for entry in Path("/proc", str(pid), "fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.path.samefile(entry, path):
                    return True
    return False


def wait_until_closed(server: Running, path: Path) -> None:
    """Wait until a server has left a renamed log."""
    wait_until(
        lambda: server.returncode is not None or not has_open(server.pid, path),
        what="the new log",
    )
    if server.returncode is not None:
        raise AssertionError(f"a server ended at SIGHUP: {server.returncode}")


def folder_in_memory(lab: Lab) -> Path:
    """Return a folder where a write goes page by page (tmpfs), and may be cut there."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        return lab.folder
    folder = Path(tempfile.mkdtemp(prefix="lab-faults-", dir=memory))
    lab.at_end(lambda: shutil.rmtree(folder))
    return folder


def needs_signals() -> None:
    """Skip where a process cannot be killed and told like on Unix."""
    if not SIGNALS or not Path("/proc/self/fd").exists():
        raise unittest.SkipTest("needs SIGKILL, SIGHUP and /proc (Linux)")


@scenario(1, share=6, short_s=1)
def killed_servers(lab: Lab) -> None:
    """Kill servers and rotate the log: nothing that was confirmed is lost."""
    needs_signals()
    fleet = Fleet(lab)
    lab.begin()
    talkers = Talkers(lab, lambda: fleet.balancer.address, 4, batch=250, messages=5000)
    pause = lab.chooser()
    while lab.left():
        index = pause.randrange(3)
        wait_for_more(talkers, pause.randrange(2000), lab)
        fleet.kill(index)
        fleet.restart(index)
        if pause.random() < 0.3:
            fleet.rotate()
    talkers.stop()
    lab.expect(talkers.total(), "nothing was confirmed at all")
    fleet.read(talkers)


def wait_for_more(talkers: Talkers, messages: int, lab: Lab) -> None:
    """Wait until so many more messages are confirmed, or a second has passed."""
    enough = talkers.total() + messages
    with contextlib.suppress(AssertionError):
        wait_until(lambda: talkers.total() >= enough or not lab.left(), 1)


@scenario(1, share=2, short_s=LONG_ONLY)
def killed_while_writing(lab: Lab) -> None:
    """Kill all servers at once, in the middle of large writes: no record is torn."""
    needs_signals()
    fleet = Fleet(lab, folder_in_memory(lab))
    lab.begin()
    addresses = [server.address for server in fleet.servers]
    choices = lab.chooser()
    picks = random.Random(choices.random())
    talkers = Talkers(lab, lambda: picks.choice(addresses), 6, batch=256)
    while lab.left():
        wait_for_more(talkers, choices.randrange(1000), lab)
        for index in range(3):
            os.kill(fleet.servers[index].pid, signal.SIGKILL)
        for index in range(3):
            fleet.kill(index)
        for index in range(3):
            fleet.restart(index)
    talkers.stop()
    fleet.read(talkers)


@scenario(1, short_s=LONG_ONLY)
def rotation_while_a_server_is_dead(lab: Lab) -> None:
    """Rename the log between a server's death and its return."""
    needs_signals()
    fleet = Fleet(lab, folder_in_memory(lab))
    lab.begin()
    talkers = Talkers(lab, lambda: fleet.balancer.address, 4, batch=250)
    choices = lab.chooser()
    while lab.left():
        index = choices.randrange(3)
        wait_for_more(talkers, choices.randrange(2000), lab)
        fleet.servers[index].kill()
        old = fleet.rename()
        others = [s for s in fleet.servers if s is not fleet.servers[index]]
        for server in others:
            server.signal(signal.SIGHUP)
        fleet.kill(index)
        fleet.restart(index)
        for server in others:
            wait_until_closed(server, old)
        lab.count("log rotations")
    talkers.stop()
    fleet.read(talkers)


SLOW_SIGNALS = """
import signal, time
_signal = signal.signal
def signal_late(*arguments):
    time.sleep(0.05)
    return _signal(*arguments)
signal.signal = signal_late
"""


@scenario(1, share=0.1, short_s=0)
def rotation_of_a_starting_server(lab: Lab) -> None:
    """Send SIGHUP to a server as soon as it says where it listens: it lives on."""
    needs_signals()
    folder = lab.folder / "late"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SLOW_SIGNALS)  # widens any gap
    server = lab.start("server2.py", 0, env={"PYTHONPATH": str(folder)})
    server.signal(signal.SIGHUP)
    lab.count("log rotations")
    with contextlib.suppress(ConnectionError), dial(server) as sock:
        sock.sendall(b"Hello\n")
        if read_line(sock) == b"Server %d received: Hello\n" % server.port:
            return
    lab.lost(f"the server ended: exit code {server.returncode}")


def records_of(port: int, connection: int, numbers: range) -> bytes:
    """Return what a server writes at once for messages, as DESIGN has the format."""
    client = f"127.0.0.1:{40_000 + connection}"
    head = f"2026-11-23 14:50:15,613 - {port} - {client} - "
    text = ""
    for number in numbers:
        said = message(connection, number).decode()
        text += f"{head}received: {said}\n"
        text += f"{head}replied: Server {port} received: {said}\n"
    return text.encode()


@scenario(1, share=0.5, short_s=0.3)
def cut_record(lab: Lab) -> None:
    """Cut a write anywhere, let others write on: the server's return mends the log."""
    choices = lab.chooser()
    port = steady_port()
    lab.begin()
    while True:
        before = records_of(port + 1, 1, range(3)) + records_of(port, 2, range(3))
        torn = records_of(port, 3, range(choices.randint(1, 3)))
        torn = torn[: choices.randrange(1, len(torn))]
        others = choices.randrange(3)
        after = b"".join(records_of(port + k, 3 + k, range(2)) for k in (1, 2)[:others])
        lab.log.write_bytes(before + torn + after)
        lab.release(lab.start("server2.py", port, "--quiet"))
        book = read_log([lab.log])
        whole = {1: 3, 2: 3, 4: 2, 5: 2}
        expected = {c: n for c, n in whole.items() if c < 4 + others}
        for text in (*book.faults, *book.missing(expected)):
            lab.lost(f"cut after {torn[-60:]!r}, {others} others: {text}")
        lab.expect(not book.foreign, f"cut after {torn[-60:]!r}: a record of nobody")
        lab.count("records cut")
        if not lab.left():
            break


@scenario(1, share=0.1, short_s=0)
def cut_record_long_ago(lab: Lab) -> None:
    """Cut a write, let others write 20 MiB more on its line: it is mended as well."""
    port = steady_port()
    count = 20_000
    torn = records_of(port, 3, range(1))
    after = records_of(port + 1, 4, range(count))
    lab.log.write_bytes(torn[: lab.random.randrange(60, len(torn))] + after)
    lab.release(lab.start("server2.py", port, "--quiet"))
    book = read_log([lab.log])
    for text in (*book.faults, *book.missing({4: count})):
        lab.lost(f"{len(after)} bytes after the cut: {text}")
    lab.expect(not book.foreign, f"{len(after)} bytes after the cut: mixed")
    lab.count("records cut")


@scenario(1, share=0.1, short_s=0)
def cut_record_in_a_rotated_log(lab: Lab) -> None:
    """Cut a write, then rotate the log: who leaves the old one mends it."""
    needs_signals()
    port = steady_port()
    record = records_of(port, 3, range(1)).partition(b"\n")[0]
    torn = record[: lab.random.randrange(1, len(record))]
    server = lab.start("server2.py", 0, "--quiet")
    lab.log.write_bytes(torn + records_of(port + 1, 4, range(2)) + torn)
    old = lab.log.with_name("server_log.old.txt")
    lab.log.rename(old)
    server.signal(signal.SIGHUP)
    wait_until_closed(server, old)
    lab.release(server)
    book = read_log([old])
    for text in (*book.faults, *book.missing({4: 2})):
        lab.lost(f"cut after {torn[-60:]!r}: {text}")
    lab.expect(not book.foreign, f"cut after {torn[-60:]!r}: mixed")
    lab.count("records cut", 2)


@scenario(1, share=0.2, short_s=0)
def forged_records(lab: Lab) -> None:
    """Send messages that look like parts of records: mending the log spares them."""
    port = steady_port()
    server = lab.start("server2.py", port, "--quiet")
    record = records_of(port, 1, range(1)).splitlines()
    pieces = [record[0], record[1], record[0][:40], record[1][:20], b"20", b" - "]
    messages = [a + b for a in (b"", b"x", *pieces) for b in pieces]
    lab.random.shuffle(messages)
    closed = 0
    for some in (messages[:20], messages[20:40], messages[40:]):
        for text in some:  # a connection each: some are the last words before a kill
            with dial(server) as sock:
                sock.sendall(text + b"\n")
                reply = read_line(sock)
                expected = b"Server %d received: %b\n" % (port, text)
                lab.expect(reply == expected, f"{reply!r} for {text!r}")
        held = dial(server)  # not closed: its last record is no "closed"
        with held:
            held.sendall(some[-1] + b"\n")
            read_line(held)
            closed += len(some)
            wait_until_closings(lab.log, closed)  # so that the kill cuts no write
            server.kill()
        lab.release(server)
        before = lab.log.read_bytes()
        lab.count("bad inputs", len(some) + 1)
        server = lab.start("server2.py", port, "--quiet")
        kept = lab.log.read_bytes().startswith(before)
        lab.expect(kept, "the log was changed although nothing was cut")


def wait_until_closings(path: Path, count: int) -> None:
    """Wait until the log has so many closing records."""
    wait_until(
        lambda: len(re.findall(rb" - closed: .* ms\n", path.read_bytes())) >= count,
        what=f"{count} closing records",
    )


@scenario(1, short_s=0.5)
def power_cut(lab: Lab) -> None:
    """Lose all that was not flushed: with --fsync nothing confirmed is lost (FUSE)."""
    needs_signals()
    with Disk.mounted(lab) as disk:
        options = ("--quiet", "--fsync", "--log", disk.path / "server_log.txt")
        server = lab.start("server2.py", steady_port(), *options)
        where = server.address
        lab.begin()
        talkers = Talkers(lab, lambda: where, 4, batch=20)
        choices = lab.chooser()
        while True:
            wait_for_more(talkers, choices.randrange(20, 200), lab)
            confirmed = dict(talkers.confirmed)  # first: what is safe can only grow
            check_safe(lab, disk.safe(), confirmed)
            server.kill()
            lab.release(server)
            disk.cut_power(choices)
            lab.count("power cuts")
            server = lab.start("server2.py", where.rpartition(":")[2], *options)
            if not lab.left():
                break
        talkers.stop()
        lab.expect(talkers.total(), "nothing was confirmed at all")
        lab.expect(disk.flushes, "the server never flushed")
        check_safe(lab, disk.safe(), talkers.confirmed, whole=True)


def check_safe(
    lab: Lab, safe: bytes, confirmed: dict[int, int], whole: bool = False
) -> None:
    """Report what was confirmed and is not among the bytes that survive a power cut."""
    path = lab.folder / "after-power-cut.txt"
    path.write_bytes(safe)
    book = read_log([path])
    for text in book.missing(confirmed):
        lab.lost(f"after a power cut: {text}")
    for fault in book.faults if whole else ():
        lab.lost(f"after a power cut and a restart: {fault}")


# ---- 2: a log that cannot be written ---------------------------------------------


@dataclass
class Fault:
    """A way to make the log fail: `break_` begins it, `mend` ends it."""

    log: Path
    break_: Callable[[], object]
    mend: Callable[[], object]
    reason: str  # in the line that clients get
    logs: list[Path]  # where the records are in the end, oldest first
    times: int = 3
    preexec_fn: Preparation | None = None
    gather: Callable[[], object] = bool  # called before the logs are read


def small_disk(lab: Lab) -> Fault:
    """Give a tmpfs of 64 KiB; broken, a file fills it up to a random rest."""
    folder = lab.folder / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={LOG_BYTES}", "lab", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise unittest.SkipTest("needs root to mount a small tmpfs")
    filler = folder / "filler"

    def fill() -> None:
        room = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        filler.write_bytes(b"x" * max(0, room - 4096))

    lab.at_end(lambda: subprocess.run(["umount", str(folder)], check=True))
    log = folder / "server_log.txt"

    def empty() -> None:
        filler.unlink()
        if log.stat().st_size > LOG_BYTES // 2:  # move it away, as a person would
            logs.insert(-1, lab.folder / f"server_log.{len(logs)}.txt")
            shutil.copy(log, logs[-2])
            os.truncate(log, 0)

    logs = [log]
    return Fault(log, fill, empty, "No space left", logs)


def small_files(lab: Lab) -> Fault:
    """Limit the size of files (RLIMIT_FSIZE); mended, the log is rotated."""
    if resource is None or not SIGNALS:
        raise unittest.SkipTest("needs resource limits and SIGHUP (Unix)")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LOG_BYTES, LOG_BYTES))

    def rotate() -> None:
        logs.insert(-1, lab.folder / f"server_log.{len(logs)}.txt")
        os.rename(lab.log, logs[-2])
        for running in lab.running("server2.py"):
            running.signal(signal.SIGHUP)

    logs = [lab.log]
    return Fault(lab.log, lambda: None, rotate, "File too large", logs, 3, limit)


def removed_folder(lab: Lab) -> Fault:
    """Remove the folder of the log, and make it again."""
    if os.name != "posix":
        raise unittest.SkipTest("needs a system that removes open files (Unix)")
    folder = lab.folder / "logs"
    folder.mkdir()
    log = folder / "server_log.txt"

    def remove() -> None:
        logs.insert(-1, lab.folder / f"server_log.{len(logs)}.txt")
        shutil.copy(log, logs[-2])  # what was confirmed so far: nobody talks just now
        shutil.rmtree(folder)

    logs = [log]
    return Fault(log, remove, folder.mkdir, "No such file or directory", logs)


class Steady:
    """One connection that goes on talking whatever it is told."""

    def __init__(self, lab: Lab, server: Running, number: int) -> None:
        """Be connection `number` of the lab's talk."""
        self.lab = lab
        self.number = number
        self.confirmed: set[int] = set()
        self.choices = lab.chooser()
        self._next = 0
        self._sock = dial(server)
        self._replies = self._sock.makefile("rb")

    def close(self) -> None:
        """End the connection."""
        self._replies.close()
        self._sock.close()

    def say(self) -> set[str]:
        """Send a few messages at once; return what they were answered with."""
        count = self.choices.randint(1, 12)
        numbers = range(self._next, self._next + count)
        self._next += count
        texts = [message(self.number, number) for number in numbers]
        self._sock.sendall(b"".join(text + b"\n" for text in texts))
        return {self._answer(n, text) for n, text in zip(numbers, texts, strict=True)}

    def _answer(self, number: int, text: bytes) -> str:
        reply = self._replies.readline().removesuffix(b"\n")
        match = CONFIRMED.fullmatch(reply)
        if match and match[2] == text:
            self.confirmed.add(number)
            self.lab.count("messages confirmed")
            return "confirmed"
        self.lab.count("told: cannot log")
        return reply.decode("utf-8", "replace")

    def until(self, wanted: Callable[[set[str]], object], what: str) -> None:
        """Talk until the answers are as wanted."""
        seen: list[set[str]] = []

        def answered() -> object:
            seen.append(self.say())
            return wanted(seen[-1])

        try:
            wait_until(answered, what=what)
        except AssertionError:
            self.lab.lost(f"{what}: it said {seen[-1]}")


def confirm_through(lab: Lab, fault: Fault, *options: object) -> None:
    """Confirm, break the log, see that nothing is confirmed, mend it, confirm again."""
    how = {"preexec_fn": fault.preexec_fn} if fault.preexec_fn else {}
    fleet = lab.servers(2, "--log", fault.log, *options, **how)
    told = re.compile(rf"Server \d+ error: cannot log: .*{fault.reason}.*")
    with contextlib.ExitStack() as stack:
        talkers = [Steady(lab, server, 1 + k) for k, server in enumerate(fleet)]
        for talker in talkers:
            stack.callback(talker.close)
        while True:
            for talker in talkers:
                talker.until(lambda said: said == {"confirmed"}, "service resumes")
            if fault.times == 0:
                break
            fault.times -= 1
            fault.break_()
            for talker in talkers:
                talker.until(lambda said: all(map(told.fullmatch, said)), "an error")
            lab.count("log failures")
            fault.mend()
    fault.gather()
    book = read_log(fault.logs, gaps=True)
    for text in book.faults:
        lab.lost(text)
    for talker in talkers:
        missing = talker.confirmed - book.numbers.get(talker.number, set())
        lab.expect(not missing, f"confirmed and not in the log: {sorted(missing)[:5]}")


@scenario(2, short_s=0)
def full_disk(lab: Lab) -> None:
    """Fill the disk in the middle of a record, then make room again (tmpfs)."""
    confirm_through(lab, small_disk(lab))


@scenario(2, short_s=0)
def full_file(lab: Lab) -> None:
    """Let the log reach the largest size of a file (RLIMIT_FSIZE), then rotate it."""
    confirm_through(lab, small_files(lab))


@scenario(2, short_s=0)
def removed_log(lab: Lab) -> None:
    """Remove the log's folder, then make it again."""
    confirm_through(lab, removed_folder(lab))


@scenario(2, short_s=0)
def failing_disk(lab: Lab) -> None:
    """Fail writes (I/O error, no space in mid-record, read-only) for a while (FUSE)."""
    words = {errno.EIO: "Input/output", errno.EROFS: "Read-only", errno.ENOSPC: "space"}
    for code in words:
        fail_on_disk(lab, code, words[code])


@scenario(2, short_s=LONG_ONLY)
def full_copy_on_write_disk(lab: Lab) -> None:
    """Fill a disk where overwriting needs room as well, in mid-record (FUSE)."""
    fail_on_disk(lab, errno.ENOSPC, "space", copies_on_write=True)


def fail_on_disk(
    lab: Lab, code: int, words: str, copies_on_write: bool = False
) -> None:
    """Let every write fail with `code`, or the room end in the middle of a record."""
    with Disk.mounted(lab) as disk:
        copy = lab.folder / "copy.txt"  # so that nobody here reads the disk
        disk.copies_on_write = copies_on_write

        def fail() -> None:
            if code == errno.ENOSPC:
                disk.room = lab.random.randrange(20_000)
            else:
                disk.error = code

        def work() -> None:
            disk.error, disk.room = 0, None

        def gather() -> None:
            copy.write_bytes(disk.content())

        log = disk.path / "server_log.txt"
        confirm_through(lab, Fault(log, fail, work, words, [copy], gather=gather))


@scenario(2, short_s=0)
def failing_flush(lab: Lab) -> None:
    """Fail flushes for a while: with --fsync nothing is confirmed meanwhile (FUSE)."""
    with Disk.mounted(lab) as disk:
        copy = lab.folder / "copy.txt"

        def set_error(code: int) -> None:
            disk.flush_error = code

        fault = Fault(
            disk.path / "server_log.txt",
            lambda: set_error(errno.EIO),
            lambda: set_error(0),
            "Input/output error",
            [copy],
            gather=lambda: copy.write_bytes(disk.safe()),
        )
        confirm_through(lab, fault, "--fsync")
