"""Side by side with the peers, in one run: `python3 -m tests.bench --help`.

    load ──► subject A ──► servers     one round: A, B, C …; then the next round
    load ──► subject B ──► servers     ratio: ours / theirs of the same round

The machine drifts by half between hours, so nothing here is judged by an absolute
figure: every target is a ratio of two subjects that took turns in the same run, and is
shown with its median and its spread over the rounds.

figures.py     pure: medians, ratios, what redis-benchmark and iperf3 print, the table
machine.py     processes started and stopped by id; CPU and memory from /proc
subjects.py    what is measured: HAProxy, nginx, the three scripts, and what is behind
loads.py       what is sent: redis-benchmark, iperf3, one prober, many held connections
generator.py   a process of the load for server2.py (runs alone)
peers.py       the servers that server2.py is compared with (runs alone)
rows.py        the rows of the table: subjects × load × what is to be reached
readme.py      the table of README, as Markdown
profiling.py   where the CPU of a balancer goes while a row runs

Needs Linux (/proc, and the whole of 127.0.0.0/8 on loopback). It is never part of
`python -m unittest`; test_bench.py checks its arithmetic.
"""
