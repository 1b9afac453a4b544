"""A disk that forgets what was not flushed: a file system in this process (FUSE).

The kernel sends requests through /dev/fuse (fuse(4); structures and numbers are those
of linux/fuse.h), a thread here answers them. Each file has its bytes as a process
reads them, and as a power cut would leave them: the latter change on fsync(2) only.
Needs root, for mount(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import stat
import struct
import tempfile
import threading
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.lab import Lab

HEADER = struct.Struct("=IIQQIII4x")  # length, opcode, unique, node, uid, gid, pid
ATTRIBUTES = struct.Struct("=6Q10I")
ROOT = 1
WRITE_BYTES = 1 << 20  # the most one request carries: a log's batch is one request
INIT_FLAGS = 1 << 5 | 1 << 22  # FUSE_BIG_WRITES, FUSE_MAX_PAGES
DIRECT_IO = 1  # FOPEN_DIRECT_IO: every write(2) comes here, whole, before it returns
MNT_DETACH = 2
SIZE_VALID = 1 << 3  # FATTR_SIZE


@dataclass
class File:
    """One file's bytes: as read, and as they would be after a power cut."""

    data: bytearray = field(default_factory=bytearray)
    safe: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)  # since the flush

    def write(self, offset: int, data: bytes) -> None:
        """Write where every process sees it, and a power cut undoes it."""
        put(self.data, offset, data)
        self.pending.append((offset, data))

    def flush(self) -> None:
        """Make all that was written safe."""
        for offset, data in self.pending:
            put(self.safe, offset, data)
        self.pending = []

    def forget(self, choices: random.Random) -> None:
        """Lose what is not safe, but for a part that reached the disk by chance."""
        if self.pending and choices.random() < 0.5:
            offset, data = self.pending[0]
            put(self.safe, offset, data[: choices.randrange(len(data) + 1)])
        self.data, self.pending = bytearray(self.safe), []


def put(place: bytearray, offset: int, data: bytes) -> None:
    """Overwrite from `offset` on, growing when needed."""
    place.extend(bytes(max(0, offset - len(place))))
    place[offset : offset + len(data)] = data


class Disk:
    """A mounted file system with files in one folder.

    `_lock` guards `_files`, `flushes`, `error`, `flush_error` and `room`.
    """

    def __init__(self, path: Path) -> None:
        """Mount it on the empty folder `path`; OSError without the right to."""
        self.path = path
        self.flushes = 0
        self.error = 0  # of every write, as an errno; 0: they succeed
        self.flush_error = 0  # of every flush
        self.room: int | None = None  # bytes that still fit; None: any number
        self.copies_on_write = False  # overwriting needs room as well
        self._lock = threading.Lock()
        self._files: dict[str, File] = {}
        self._nodes: list[str] = []  # node ROOT + 1 + index: its name
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0"
        if self._libc.mount(b"lab", os.fsencode(path), b"fuse", 6, options.encode()):
            os.close(self._device)
            raise OSError(ctypes.get_errno(), "mount")
        self._answers: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup, 3: self._getattr, 4: self._setattr, 14: self._open,
            15: self._read, 16: self._write, 17: self._statfs, 18: self._nothing,
            20: self._fsync, 25: self._nothing, 26: self._init, 27: self._open,
            29: self._nothing, 34: self._nothing, 35: self._create,
        }  # fmt: skip
        self._thread = threading.Thread(target=self._serve, name="disk", daemon=True)
        self._thread.start()

    @classmethod
    @contextlib.contextmanager
    def mounted(cls, lab: Lab) -> Iterator[Disk]:
        """Give a disk that is unmounted when the lab closes; skip without the right."""
        path = Path(tempfile.mkdtemp(prefix="disk-", dir=lab.folder))
        try:
            disk = cls(path)
        except (OSError, AttributeError) as error:
            raise unittest.SkipTest(f"needs root and FUSE (Linux): {error}") from None
        lab.at_end(disk.close)
        yield disk

    def close(self) -> None:
        """Unmount; the thread ends with that."""
        self._libc.umount2(os.fsencode(self.path), MNT_DETACH)
        self._thread.join(10)
        os.close(self._device)

    def safe(self, name: str = "server_log.txt") -> bytes:
        """Return what a power cut now would leave of a file."""
        with self._lock:
            return bytes(self._files[name].safe)

    def content(self, name: str = "server_log.txt") -> bytes:
        """Return what a process would read from a file."""
        with self._lock:
            return bytes(self._files[name].data)

    def cut_power(self, choices: random.Random) -> None:
        """Lose what was not flushed."""
        with self._lock:
            for file in self._files.values():
                file.forget(choices)

    # Requests -------------------------------------------------------------------------

    def _serve(self) -> None:
        """Thread "disk": answer requests until the file system is unmounted."""
        while True:
            try:
                request = os.read(self._device, WRITE_BYTES + 4096)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue  # the request was withdrawn
                return
            _, opcode, unique, node, *_ = HEADER.unpack_from(request)
            if opcode in (2, 42, 36):  # FORGET, BATCH_FORGET, INTERRUPT: no answer
                continue
            code, answer = 0, b""
            try:
                with self._lock:
                    answer = self._answers[opcode](node, request[HEADER.size :])
            except KeyError:
                code = errno.ENOSYS
            except OSError as error:
                code = error.errno or errno.EIO
            head = struct.pack("=IiQ", 16 + len(answer), -code, unique)
            with contextlib.suppress(OSError):  # the process was killed meanwhile
                os.write(self._device, head + answer)

    def _file(self, node: int) -> File:
        return self._files[self._nodes[node - ROOT - 1]]

    def _attributes(self, node: int) -> bytes:
        folder = node == ROOT
        size = 0 if folder else len(self._file(node).data)
        mode = stat.S_IFDIR | 0o755 if folder else stat.S_IFREG | 0o644
        times = (0,) * 6
        return ATTRIBUTES.pack(
            node, size, size // 512 + 1, *times, mode, 1 + folder, 0, 0, 0, 4096, 0
        )

    def _entry(self, name: str) -> bytes:
        node = ROOT + 1 + self._nodes.index(name)
        return struct.pack("=5Q", node, 0, 0, 0, 0) + self._attributes(node)

    def _init(self, _node: int, body: bytes) -> bytes:
        major, minor, ahead, _ = struct.unpack_from("=4I", body)
        numbers = (major, minor, ahead, INIT_FLAGS, 16, 16, WRITE_BYTES, 1, 256)
        return struct.pack("=4I2H2I2H", *numbers, 0) + bytes(32)

    def _lookup(self, _node: int, body: bytes) -> bytes:
        name = os.fsdecode(body.rstrip(b"\0"))
        if name not in self._files:
            raise OSError(errno.ENOENT, "")
        return self._entry(name)

    def _getattr(self, node: int, _body: bytes) -> bytes:
        return bytes(16) + self._attributes(node)

    def _setattr(self, node: int, body: bytes) -> bytes:
        valid, size = struct.unpack_from("=I12xQ", body)
        if valid & SIZE_VALID:
            file = self._file(node)
            del file.data[size:], file.safe[size:]
        return self._getattr(node, body)

    def _open(self, _node: int, _body: bytes) -> bytes:
        return struct.pack("=QIi", 0, DIRECT_IO, 0)

    def _create(self, node: int, body: bytes) -> bytes:
        name = os.fsdecode(body[16:].rstrip(b"\0"))
        if name not in self._files:
            self._files[name] = File()
            self._nodes.append(name)
        return self._entry(name) + self._open(node, body)

    def _read(self, node: int, body: bytes) -> bytes:
        offset, size = struct.unpack_from("=8xQI", body)
        return bytes(self._file(node).data[offset : offset + size])

    def _write(self, node: int, body: bytes) -> bytes:
        offset, size = struct.unpack_from("=8xQI", body)
        if self.error:
            raise OSError(self.error, "")
        file = self._file(node)
        if self.room is not None and (
            self.copies_on_write or offset + size > len(file.data)
        ):
            size = min(size, self.room)
            self.room -= size
            if not size:
                raise OSError(errno.ENOSPC, "")
        file.write(offset, body[40 : 40 + size])
        return struct.pack("=II", size, 0)

    def _fsync(self, node: int, _body: bytes) -> bytes:
        if self.flush_error:
            raise OSError(self.flush_error, "")
        self.flushes += 1
        self._file(node).flush()
        return b""

    def _statfs(self, _node: int, _body: bytes) -> bytes:
        blocks = 1 << 20
        numbers = (blocks, blocks, blocks, 99, 99, 4096, 255, 4096, 0)
        return struct.pack("=5Q4I", *numbers) + bytes(24)

    def _nothing(self, _node: int, _body: bytes) -> bytes:
        return b""
