"""Tests of the lab: run `python -m unittest` from the top of the repository.

Nothing but Python is needed: no fixed port, no fixture, any order. What needs a
program that is not installed is skipped, and the reason names the program.

`LAB_DEV=1` starts every script under test with `-X dev -W error`.
`LAB_LONG=1` runs the long forms (a transfer of 1 GiB instead of 64 MiB) and variants
of test classes (two workers, no splice), which `.ci/run` runs, too.
"""
