"""The order of the queue."""

from __future__ import annotations

import numpy as np
import pytest

from whispercore.serving.backlog import Backlog, QueuedRequest
from whispercore.types import Decoding, Window


def turns(wide: Decoding, count: int = 40) -> list[str]:
    """Whose window is next, of two requests with as many windows each, the first with a wide search."""
    backlog, requests = Backlog(), {"wide": QueuedRequest(), "plain": QueuedRequest()}
    for _ in range(count):
        for name, decoding in (("wide", wide), ("plain", Decoding())):
            backlog.push(0, requests[name], Window(np.zeros(16, np.float32), 0.0, decoding), lambda outcome: None)
    names = {id(request): name for name, request in requests.items()}
    return [names[id(backlog.pop(0, 1)[0].request)] for _ in range(count)]


@pytest.mark.parametrize(
    ("decoding", "cost"),
    [
        (Decoding(), 1.0),
        (Decoding(beam_size=5), 2.0),
        (Decoding(best_of=9, temperature=0.2), 3.0),
        (Decoding(beam_size=5, patience=2.0), 3.25),
    ],
)
def test_a_wide_search_gets_fewer_turns(decoding: Decoding, cost: float) -> None:
    assert decoding.cost == cost
    order = turns(decoding)
    assert order.count("plain") / order.count("wide") == pytest.approx(cost, rel=0.1)
    assert set(order[:2]) == {"wide", "plain"}, "a request's first window never waits longer for its options"
