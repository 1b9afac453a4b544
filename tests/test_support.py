"""What the tests take away from the scripts, or refuse them, is really gone."""

from __future__ import annotations

import os
import subprocess
import sys
import unittest

from tests.support import ROOT, ScriptTestCase, script_environment

REFUSED = str(ROOT / "tests" / "refused")


class Surroundings(ScriptTestCase):
    """`without`, and LAB_REFUSED."""

    def says(self, expression: str, env: dict[str, str]) -> str:
        """Return what Python says to an expression, or the exception's name."""
        code = (
            "import fcntl, os, socket\nfrom pathlib import Path\n"
            f"try: print({expression})\n"
            "except BaseException as error: print(type(error).__name__)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=self.folder, env=script_environment(env),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        self.assertEqual(done.stderr, "")
        return done.stdout.strip()

    def test_modules_functions_and_methods_are_taken_away(self) -> None:
        names = ("resource", "os.splice", "socket.socket.recvmsg", "os.no_such_name")
        env = self.without(*names)
        for expression in (
            "hasattr(os, 'splice')",
            "hasattr(socket.socket, 'recvmsg')",
            "hasattr(socket.socket(), 'recvmsg')",
        ):
            with self.subTest(expression):
                self.assertEqual(self.says(expression, env), "False")
        said = self.says("__import__('resource')", env)
        self.assertEqual(said, "ModuleNotFoundError")

    @unittest.skipUnless(sys.platform == "linux", "the calls are those of Linux")
    def test_optional_calls_are_refused_and_others_are_not(self) -> None:
        env = {"PYTHONPATH": REFUSED, "LAB_REFUSED": "all"}
        option = "socket.socket().setsockopt(socket.SOL_SOCKET, socket.{}, 1)"
        for expression, answer in (
            (option.format("SO_KEEPALIVE"), "PermissionError"),
            (option.format("SO_REUSEADDR"), "None"),
            ("open('/proc/self/stat')", "PermissionError"),
            ("Path('/proc/self/stat').read_text()", "PermissionError"),
            ("os.listdir('/proc')", "PermissionError"),
            ("__import__('resource').setrlimit(7, (1, 1))", "PermissionError"),
            ("os.splice(0, 1, 1)", "PermissionError"),
            ("os.sched_setscheduler(0, 0, os.sched_param(0))", "PermissionError"),
            ("fcntl.fcntl(os.pipe()[1], fcntl.F_SETPIPE_SZ, 8192)", "PermissionError"),
            ("fcntl.fcntl(0, fcntl.F_GETFD)", "0"),
            ("len(os.listdir('.'))", "0"),
        ):
            with self.subTest(expression):
                self.assertEqual(self.says(expression, env), answer)

    def test_one_kind_alone_can_be_refused_beside_what_a_test_takes_away(self) -> None:
        taken = self.without("resource")["PYTHONPATH"]
        both = os.pathsep.join([REFUSED, taken])
        env = {"PYTHONPATH": both, "LAB_REFUSED": "proc"}
        self.assertEqual(self.says("open('/proc/stat')", env), "PermissionError")
        said = self.says("__import__('resource')", env)
        self.assertEqual(said, "ModuleNotFoundError")


if __name__ == "__main__":
    unittest.main()
