"""The suite under Pythons that are not here: the newest one, and one without the GIL.

Each in a root of Debian's (roots.py), as an ordinary user. They take downloads and a
quarter of an hour, so they run with LAB_LONG=1 only.
"""

from __future__ import annotations

import unittest
from typing import ClassVar

from tests.interop.roots import DebianRoot, Unavailable
from tests.support import LONG

BUILD_TIMEOUT_S = 1200
TOOLS = "gcc libc6-dev make pkgconf dpkg-dev zlib1g-dev libffi-dev"
# What Debian builds its own python3 of, without the parts that take long and are not
# needed here: no tests of Python itself, no profile-guided optimisation.
BUILD = f"""
set -e
export DEBIAN_FRONTEND=noninteractive
package=$(readlink "$(command -v python3)")
sed 's/^deb /deb-src /' /etc/apt/sources.list >/etc/apt/sources.list.d/source.list
apt-get -qq update
apt-get -qq install -y --no-install-recommends {TOOLS}
mkdir /build && cd /build && chmod 777 .
apt-get -qq source "$package"
cd "$package"*/
./configure -q --disable-gil --prefix=/opt/python --without-ensurepip \\
  --disable-test-modules
make -s -j "$(nproc)" && make -s install
ln -s /opt/python/bin/python3 /usr/local/bin/python3
"""


class InARoot(unittest.TestCase):
    """The suite in a root of this class's own."""

    alone = True
    RELEASE: ClassVar[str]
    root: ClassVar[DebianRoot]

    @classmethod
    def setUpClass(cls) -> None:
        """Make the root, or skip and say what is missing."""
        if not LONG:
            raise unittest.SkipTest("takes downloads and minutes: set LAB_LONG=1")
        try:
            cls.root = DebianRoot(cls.RELEASE)
        except Unavailable as reason:
            raise unittest.SkipTest(f"Debian {cls.RELEASE}: {reason}") from None
        cls.addClassCleanup(cls.root.remove)

    def check(self, command: str) -> None:
        """Run the suite by this command."""
        code, output = self.root.suite(command)
        self.assertEqual(code, 0, f"\n{output}")


class NewestPython(InARoot):
    """Debian testing's Python."""

    RELEASE = "testing"

    def test_the_suite_passes_under_the_newest_python(self) -> None:
        self.check("python3 -X dev -W error -m unittest")


class FreeThreadedPython(InARoot):
    """Debian 13's Python, built without the GIL."""

    RELEASE = "trixie"

    def test_the_suite_passes_without_the_gil(self) -> None:
        try:
            self.root.inside("a Python without the GIL", BUILD, BUILD_TIMEOUT_S)
        except Unavailable as reason:
            self.skipTest(str(reason))
        self.check(
            "export PYTHON_GIL=0;"
            " python3 -c 'import sys; sys.exit(sys._is_gil_enabled())' &&"
            " python3 -m unittest"
        )


del InARoot  # so that unittest does not find it

if __name__ == "__main__":
    unittest.main()
