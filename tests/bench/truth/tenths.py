"""The ranges that client2.py prints, by its own functions, for exchanges given here."""

from __future__ import annotations

import importlib.util
import math
import sys
from array import array
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

from tests.bench.machine import RunError

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
Range = tuple[float, float]
Sent = tuple[float, str, int, int]  # moment in s, server, client, latency in ns


@cache
def client2(path: Path) -> ModuleType:
    """Return client2.py as a module. Raises RunError when it has no tenths."""
    spec = importlib.util.spec_from_file_location("client2_measured", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    if not hasattr(module, "Parts"):
        raise RunError(f"{path} has no class Parts: its ranges are not tenths")
    return module


def ranges(path: Path, exchanges: Sequence[Sent]) -> dict[str, Range | None]:
    """Return the range of each percentile as client2.py prints it, None for none.

    The exchanges are in order of time; the client's own class gets them by client and
    server, as its threads report them.
    """
    module = client2(path)
    parts = module.Parts()
    grouped: dict[tuple[int, str], tuple[array[int], array[int]]] = {}
    for moment, server, client, latency in exchanges:
        sent, latencies = grouped.setdefault((client, server), (array("q"), array("q")))
        sent.append(int(moment * 1e9))
        latencies.append(latency)
    for (client, server), (sent, latencies) in grouped.items():
        parts.add(client, server, sent, latencies)
    return {name: module.range_of(parts.values(p)) for name, p in PERCENTILES.items()}


def nearest_rank(values: Iterable[int]) -> dict[str, int]:
    """Return the percentiles of values by nearest rank, ⌈p·n⌉."""
    ordered = sorted(values)
    return {
        name: ordered[max(1, math.ceil(p * len(ordered))) - 1]
        for name, p in PERCENTILES.items()
    }


def holds(found: Range | None, value: float, slack: float = 0.005) -> bool:
    """Tell whether a range holds a value; its ends are levels of half a percent."""
    if found is None:
        return False
    return found[0] * (1 - slack) <= value <= found[1] * (1 + slack)
