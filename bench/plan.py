"""How much is measured: everything in under 20 minutes on two cores, or a little of it to try the harness."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Rounds and requests. Plain requests are answered one after the other, so fewer of them measure the rate as well."""

    starts: int = 3
    overhead_sizes: tuple[str, ...] = ("nano", "base")
    overhead_rounds: int = 5
    overhead_calls: int = 10
    throughput_size: str = "base"
    throughput_rounds: int = 3
    concurrencies: tuple[int, ...] = (1, 8, 32)
    least_requests: int = 16
    memory_seconds: tuple[int, ...] = (1, 600, 7200)
    plain_memory_seconds: tuple[int, ...] = (1, 600)

    def requests(self, concurrency: int, *, patient: bool) -> int:
        """Of a round: `patient` for the plain handler."""
        return max(concurrency, self.least_requests // 2) if patient else max(3 * concurrency, self.least_requests)


FULL = Plan()
QUICK = Plan(
    starts=1,
    overhead_sizes=("nano",),
    overhead_rounds=2,
    overhead_calls=3,
    throughput_size="tiny",
    throughput_rounds=1,
    concurrencies=(1, 4),
    least_requests=4,
    memory_seconds=(1, 60),
    plain_memory_seconds=(1,),
)
