"""The suite in stock Debian roots: Debian's own Python, an ordinary user, nothing else.

    python3 -m tests.interop.roots bookworm trixie      # what .ci/run does

debootstrap makes a root for each release (variant minbase, and python3), a clone of the
commit is put into it, and a user without rights runs README's command there, in mounts
and a process table of its own: nothing stays mounted, nothing goes on running. The
mirror is the one that this machine's apt uses. What cannot be had is skipped by name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = "python3 -m unittest"  # README's
ANSWER_TIMEOUT_S = 20  # for a mirror's first word
BUILD_TIMEOUT_S = 300  # half a minute on a quiet machine
SUITE_TIMEOUT_S = 900
# In namespaces of their own; the host's /dev, for terminals and shared memory.
INSIDE = """
mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" || exit 99
exec chroot --userspec="$1" "$0" env -i HOME=/home/lab \
  PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /bin/sh -c "$2"
"""


class Unavailable(Exception):  # noqa: N818 - a reason to skip
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
    return str(done.stdout)


def mirror() -> str:
    """Return the address of Debian's archive that this machine's apt is set up for."""
    fields = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    for line in run("apt-get", "indextargets", "--format", fields).splitlines():
        origin, label, address = line.split("|", 2)
        known = origin == label == "Debian"  # "" before the first apt-get update
        if known or (not origin and address.rstrip("/").endswith("/debian")):
            return address
    raise Unavailable("this machine's apt knows no mirror of Debian")


def apt_settings() -> str:
    """Return how this machine's apt downloads: proxies, time limits, what it checks."""
    lines = run("apt-config", "dump").splitlines()
    wanted = re.compile(r"Acquire::(http|https|ftp|Check|Max|Retries)\S* ")
    return "".join(f"{line}\n" for line in lines if wanted.match(line))


def proxy(settings: str) -> dict[str, str]:
    """Return apt's own HTTP proxy as the variable that other programs read."""
    match = re.search(r'(?m)^Acquire::http::Proxy "(http[^"]+)";', settings)
    return {"http_proxy": match[1]} if match else {}


def ask(mirror: str, release: str, proxies: dict[str, str]) -> None:
    """Raise Unavailable unless the mirror answers, and has the release."""
    through = {"http": proxies["http_proxy"]} if proxies else None
    handler = urllib.request.ProxyHandler(through)
    address = f"{mirror.rstrip('/')}/dists/{release}/Release"
    try:
        opener = urllib.request.build_opener(handler)
        opener.open(address, timeout=ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise Unavailable(f"{mirror} does not give it: {error}") from None


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
            self._make(release)
            clone = self.folder / "home/lab/clone"
            run("git", "clone", "--quiet", "--no-hardlinks", ROOT, clone)
            self.inside("a clone of one's own", "chown -R lab: /home/lab/clone")
        except BaseException:
            self.remove()
            raise

    def _make(self, release: str) -> None:
        """Install Debian, with an ordinary user and apt as it is set up here."""
        address, settings = mirror(), apt_settings()
        ask(address, release, proxy(settings))
        run(
            *("debootstrap", "--variant=minbase", "--include=python3", release),
            *(self.folder, address),
            env=os.environ | proxy(settings), timeout=BUILD_TIMEOUT_S,
        )  # fmt: skip
        (self.folder / "etc/apt/apt.conf.d/99lab").write_text(settings)
        self.inside("an ordinary user", "useradd --create-home lab")

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

    def inside(self, what: str, command: str, timeout: float = 60) -> None:
        """Run a shell command as root; Unavailable, naming `what`, if it fails."""
        code, output = self.enter(command, "root", timeout)
        if code:
            last = output.strip().rpartition("\n")[2]
            raise Unavailable(f"{what} in a chroot: {last or f'exit code {code}'}")

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
        took = time.monotonic() - built
        seconds = f"root in {built - began:.0f} s, suite in {took:.0f} s"
        last = output.strip().rpartition("\n")[2]
        if code:
            failed = 1
            print(output)
        print(f"Debian {release}, an ordinary user: {seconds}, {last}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
