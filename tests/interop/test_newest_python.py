"""The whole suite under the newest Python that can be had: Debian testing, in a chroot.

It takes a download and about eight minutes, so it runs with LAB_LONG=1 only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from tests.support import ROOT

MIRROR = "http://deb.debian.org/debian"
# In a mount namespace of its own, so that nothing stays mounted whatever happens.
RUN = """
for folder in proc dev dev/pts; do mount --bind "/$folder" "$0/$folder" || exit 99; done
exec chroot "$0" /bin/sh -c "cd /lab && exec python3 -X dev -W error -m unittest"
"""
BUILD_TIMEOUT_S = 900
SUITE_TIMEOUT_S = 1800


def why_not() -> str:
    """Return why the chroot cannot be made here, "" if it can."""
    if "LAB_LONG" not in os.environ:
        return "takes a download and minutes: set LAB_LONG=1"
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root for a chroot"
    if not shutil.which("debootstrap"):
        return "needs debootstrap (apt-get install debootstrap)"
    return ""


class NewestPython(unittest.TestCase):
    """Debian testing's Python, in a chroot of the test's own."""

    def setUp(self) -> None:
        """Build the chroot, or skip and say what is missing."""
        if reason := why_not():
            self.skipTest(reason)
        self.chroot = Path(tempfile.mkdtemp(prefix="lab-newest-python-"))
        self.addCleanup(self.remove)
        built = subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=python3,iproute2,git",
             "testing", str(self.chroot), MIRROR],
            capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False,
        )  # fmt: skip
        if built.returncode:
            last = (built.stdout + built.stderr).strip().rpartition("\n")[2]
            self.skipTest(f"Debian testing cannot be had: {last}")
        ignore = shutil.ignore_patterns("__pycache__", ".*_cache")
        shutil.copytree(ROOT, self.chroot / "lab", ignore=ignore)

    def remove(self) -> None:
        """Remove the chroot, unless something is still mounted there."""
        self.assertNotIn(str(self.chroot), Path("/proc/mounts").read_text())
        shutil.rmtree(self.chroot)

    def test_the_whole_suite_passes(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "LAB_LONG"}
        result = subprocess.run(
            ["unshare", "--mount", "/bin/sh", "-c", RUN, str(self.chroot)],
            env=environment, capture_output=True, text=True,
            timeout=SUITE_TIMEOUT_S, check=False,
        )  # fmt: skip
        self.assertEqual(result.returncode, 0, result.stderr[-4000:])
