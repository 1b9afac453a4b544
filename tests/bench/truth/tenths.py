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
Sent = tuple[float, int]  # moment in s, latency in ns


@cache
def client2(path: Path) -> ModuleType:
    """Return client2.py as a module. Raises RunError when it has no tenths."""
    spec = importlib.util.spec_from_file_location("client2_measured", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    if not hasattr(module.Distribution, "tenths"):
        raise RunError(f"the ranges of {path} are not tenths")
    return module


def ranges(path: Path, exchanges: Sequence[Sent]) -> dict[str, Range | None]:
    """Return the range of each percentile as client2.py prints it, None for none."""
    metric = client2(path).Distribution()
    metric.extend(
        array("q", [latency for _, latency in exchanges]),
        array("q", [round(moment * 1e9) for moment, _ in exchanges]),
    )
    return {name: metric.tenths(name) for name in PERCENTILES}


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
