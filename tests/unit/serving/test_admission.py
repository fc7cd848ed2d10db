"""Which requests are accepted, by their number and their audio."""

from __future__ import annotations

import math
from typing import Any

import pytest

from whispercore.errors import Overloaded
from whispercore.serving.admission import Admission
from whispercore.serving.backlog import WATCHDOG
from whispercore.settings import Settings


def admission(speed: float = 0.0, devices: int = 1, **settings: Any) -> Admission:
    return Admission(Settings(**settings), devices, lambda: speed)


def refusal(places: Admission, client: str, seconds: float) -> Overloaded:
    with pytest.raises(Overloaded) as refused:
        places.enter(client, seconds)
    return refused.value


def test_a_client_gets_half_of_the_places_and_leaves_the_rest_to_others() -> None:
    places = admission(max_open_requests=10)
    held = [places.enter("a", 1.0) for _ in range(5)]
    refused = refusal(places, "a", 1.0)
    assert (refused.status, refused.code) == (503, "client_overloaded")
    for client in "bcdef":
        places.enter(client, 1.0)
    assert refusal(places, "g", 1.0).code == "overloaded"
    places.leave(held[0])
    places.leave(held[0])
    assert places.open_requests == 9
    places.enter("a", 1.0)


def test_the_share_is_a_setting_and_needs_a_name() -> None:
    places = admission(max_open_requests=10, max_open_requests_per_client=2)
    for _ in range(2):
        places.enter("a", 1.0)
    assert refusal(places, "a", 1.0).code == "client_overloaded"
    for _ in range(8):
        places.enter("", 1.0)
    assert refusal(places, "", 1.0).code == "overloaded"


def test_audio_that_waits_is_limited_and_a_recording_alone_is_always_accepted() -> None:
    places = admission(speed=10.0, max_waiting_seconds=100.0)
    long = places.enter("", 1000.0)
    refused = refusal(places, "", 50.0)
    assert refused.code == "overloaded" and refused.retry_after == pytest.approx(95.0), "950 s of audio too much, at 10 s of audio a second"
    long.seconds = 60.0  # the rest has been transcribed
    assert refusal(places, "", 50.0).retry_after == pytest.approx(1.0)
    places.enter("", 40.0)
    assert places.waiting_seconds == pytest.approx(100.0)


def test_each_device_adds_to_the_audio_and_zero_is_no_limit() -> None:
    two = admission(devices=2, max_waiting_seconds=100.0)
    for _ in range(2):
        two.enter("", 100.0)
    assert refusal(two, "", 1.0).code == "overloaded"
    unlimited = admission(max_waiting_seconds=0.0)
    for _ in range(100):
        unlimited.enter("a", 1e6)


def test_a_client_may_hold_half_of_the_audio() -> None:
    places = admission(speed=2.0, max_waiting_seconds=100.0)
    places.enter("a", 40.0)
    refused = refusal(places, "a", 20.0)
    assert refused.code == "client_overloaded" and refused.retry_after == pytest.approx(20.0)
    places.enter("a", 10.0)
    places.enter("b", 50.0)


def test_what_turns_out_to_be_too_long_is_refused_but_not_for_those_behind_it() -> None:
    places = admission(max_waiting_seconds=100.0)
    first, second, third = (places.enter("", 30.0) for _ in range(3))
    places.open(first, 90.0)
    with pytest.raises(Overloaded):
        places.open(second, 90.0)
    places.leave(second)
    places.open(third, 5.0)
    assert places.waiting_seconds == pytest.approx(95.0)


def test_the_watchdog_takes_no_place() -> None:
    places = admission(max_open_requests=1, max_waiting_seconds=1.0)
    places.enter("", 1.0)
    test = places.enter(WATCHDOG, 0.5)
    places.open(test, math.inf)
    places.leave(test)
    assert places.open_requests == 1 and places.waiting_seconds == 1.0
