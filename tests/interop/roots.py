"""The suite in stock Debian roots: Debian's own Python, an ordinary user, nothing else.

    python3 -m tests.interop.roots bookworm trixie      # what .ci/run does

debootstrap makes a root for each release (variant minbase, and python3), a clone of the
commit is put into it, and a user without rights runs README's command there, in mounts
and a process table of its own: nothing stays mounted, nothing goes on running. The
mirror is the one that this machine's apt uses. What cannot be had is skipped by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = "python3 -m unittest"  # README's
BUILD_TIMEOUT_S = 300  # half a minute on a quiet machine
SUITE_TIMEOUT_S = 900
# In namespaces of their own; the host's /dev, for terminals and shared memory.
INSIDE = """
mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" || exit 99
exec chroot --userspec="$1" "$0" env -i HOME=/home/lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /bin/sh -c "$2"
"""


class Unavailable(Exception):
    """Something that this machine cannot do or have, in a line."""


def run(*command: object, timeout: float = 60, **options: Any) -> str:
    """Return what a command printed; Unavailable with its last line if it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=timeout, check=False, **options,
        )  # fmt: skip
    except FileNotFoundError:
        raise Unavailable(f"{words[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{words[0]} took more than {timeout:g} s") from None
    if done.returncode:
        last = done.stdout.strip().rpartition("\n")[2]
        raise Unavailable(f"{words[0]} failed: {last}")
    return done.stdout


def mirror() -> str:
    """Return the address of Debian's archive that this machine's apt is set up for."""
    fields = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    for line in run("apt-get", "indextargets", "--format", fields).splitlines():
        origin, label, address = line.split("|", 2)
        known = origin == label == "Debian"  # "" before the first apt-get update
        if known or (not origin and address.rstrip("/").endswith("/debian")):
            return address
    raise Unavailable("this machine's apt knows no mirror of Debian")


def proxy() -> dict[str, str]:
    """Return apt's own HTTP proxy as the variable that other programs read."""
    line = run("apt-config", "shell", "proxy", "Acquire::http::Proxy").strip()
    address = line.removeprefix("proxy=").strip("'")
    return {"http_proxy": address} if address else {}


class DebianRoot:
    """A Debian in a temporary folder: `with DebianRoot("trixie") as root:`."""

    def __init__(self, release: str) -> None:
        """Make it, with the user `lab` and a clone of the commit in /home/lab/clone.

        Raises Unavailable where that cannot be had.
        """
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            raise Unavailable("needs root for a chroot")
        self.folder = Path(tempfile.mkdtemp(prefix=f"lab-{release}-"))
        try:
            self.folder.chmod(0o755)
            self.mirror = mirror()
            run(
                *("debootstrap", "--variant=minbase", "--include=python3", release),
                *(self.folder, self.mirror),
                env=os.environ | proxy(), timeout=BUILD_TIMEOUT_S,
            )  # fmt: skip
            self.inside("useradd --create-home lab", user="root")
            clone = self.folder / "home/lab/clone"
            run("git", "clone", "--quiet", "--no-hardlinks", ROOT, clone)
            self.inside("chown -R lab: /home/lab/clone", user="root")
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> DebianRoot:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the folder, unless something of it is still mounted."""
        if str(self.folder) in Path("/proc/mounts").read_text():
            raise AssertionError(f"{self.folder} is still mounted")
        shutil.rmtree(self.folder)

    def enter(self, command: str, user: str, timeout: float) -> tuple[int, str]:
        """Run a shell command inside; return its exit code (99: no mounts), output."""
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        owner = "root:root" if user == "root" else f"{user}:{user}"
        with tempfile.TemporaryFile("w+", errors="replace") as out:
            process = subprocess.Popen(
                [*unshare, "/bin/sh", "-c", INSIDE, str(self.folder), owner, command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                code = 124
            finally:
                process.kill()
                process.wait()
            out.seek(0)
            return code, out.read()

    def inside(self, command: str, user: str, timeout: float = 60) -> None:
        """Run a shell command that prepares the root; Unavailable if it fails."""
        code, output = self.enter(command, user, timeout)
        if code:
            last = output.strip().rpartition("\n")[2]
            raise Unavailable(f"{command.split()[0]} in a chroot ended with {last!r}")

    def suite(self, command: str = COMMAND) -> tuple[int, str]:
        """Run the suite in the clone as the user; return exit code and output."""
        return self.enter(f"cd ~/clone && {command}", "lab", SUITE_TIMEOUT_S)


def main() -> int:
    """Run the suite in the releases that the command line names; 1 if one fails."""
    failed = 0
    for release in sys.argv[1:]:
        began = time.monotonic()
        try:
            root = DebianRoot(release)
        except Unavailable as reason:
            print(f"skipped: the suite in Debian {release}: {reason}", flush=True)
            continue
        built = time.monotonic()
        with root:
            code, output = root.suite()
        seconds = f"root in {built - began:.0f} s, suite in {time.monotonic() - built:.0f} s"
        last = output.strip().rpartition("\n")[2]
        if code:
            failed = 1
            print(output)
        print(f"Debian {release}, an ordinary user: {seconds}, {last}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
