"""The amount of measuring: `FULL` takes under 20 minutes on two cores, `QUICK` only tries the harness."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Numbers of starts, rounds and calls, and lengths of recordings."""

    starts: int = 3
    overhead_sizes: tuple[str, ...] = ("nano", "base")
    overhead_rounds: int = 5
    overhead_calls: int = 10
    memory_seconds: tuple[int, ...] = (1, 600, 7200)
    plain_memory_seconds: tuple[int, ...] = (1, 600)


FULL = Plan()
QUICK = Plan(
    starts=1,
    overhead_sizes=("nano",),
    overhead_rounds=2,
    overhead_calls=3,
    memory_seconds=(1, 60),
    plain_memory_seconds=(1,),
)
