"""How true the client's figures are: `python3 -m tests.bench truth --help`.

client2.py is run against what is known: servers that are equal, or differ by a known
share; a client that is stopped on purpose; a long run, of which a window is a part. It
is counted how often what it says is so. One Markdown table comes out, for README.

system.py      servers, balancer, client, busy processes of one measurement
tenths.py      client2.py's own functions for ranges, for exchanges given here
ranges.py      does a range hold the percentile of the whole run?
differences.py is a server called slower that is not? a run that is the same run?
verdicts.py    is the verdict right, with the right reason?
alone.py       one client beside busy processes, and a plain one (plain.py)
crooked.py     a server that confirms too much

Windows of `ranges` are cut from the CSV of one longer run and given to the client's own
functions; everything else is a run of its own whose JSON is read.
"""

from tests.bench.truth.command import main

__all__ = ["main"]
