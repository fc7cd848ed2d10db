"""Which requests are accepted: limits on their number and on their audio, and a client's share of both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..errors import Overloaded
from ..settings import Settings
from .backlog import WATCHDOG

BYTES_PER_SECOND = 16_000
"""Of an upload that has not been opened yet: 128 kbit/s, between uncompressed sound and compressed speech."""
CLIENT_SHARE = 0.5
"""Of each limit, for one client."""
UNKNOWN_SPEED = 1.0
"""Seconds of audio in a second, while nothing has been decoded."""


@dataclass(slots=True, eq=False)
class Place:
    """What an open request holds. `seconds`: its audio that is not transcribed yet, an estimate until it is `opened`."""

    client: str
    seconds: float
    opened: bool = False


class Admission:
    """The places of open requests. Thread-safe.

    A request is refused beyond `max_open_requests`, `max_waiting_seconds` for each device, or its client's share of
    either. A recording beside which no other audio waits is accepted, whatever its length. Requests without a client's
    name have no share. The watchdog's are always accepted, and take no place.
    """

    def __init__(self, settings: Settings, devices: int, speed: Callable[[], float]) -> None:
        """`speed`: the seconds of audio that all devices decode in a second; 0.0 while it is unknown."""
        self._most = settings.max_open_requests
        self._most_of_client = settings.max_open_requests_per_client or max(1, round(CLIENT_SHARE * self._most))
        self._most_seconds = settings.max_waiting_seconds * devices
        self._speed = speed
        self._lock = threading.Lock()
        self._places: set[Place] = set()

    @property
    def open_requests(self) -> int:
        """The number of places that are taken."""
        return len(self._places)

    @property
    def waiting_seconds(self) -> float:
        """The seconds of audio that are accepted and not transcribed yet."""
        with self._lock:
            return _seconds(self._places)

    def enter(self, client: str, seconds: float) -> Place:
        """Take a place for a request with about `seconds` of audio. Raises Overloaded."""
        place = Place(client, seconds)
        if client == WATCHDOG:
            return place
        with self._lock:
            own = [other for other in self._places if other.client == client] if client else []
            self._check_number(client, len(self._places), len(own))
            self._check_seconds(place, self._places)
            self._places.add(place)
        return place

    def open(self, place: Place, seconds: float) -> None:
        """Set the seconds of audio of a recording that has been opened. Raises Overloaded when that is too much.

        What other recordings turn out to hold is not counted before they have been opened: the first of many would be
        refused for those behind it.
        """
        place.seconds, place.opened = seconds, True
        with self._lock:
            if place in self._places:
                self._check_seconds(place, [other for other in self._places if other.opened and other is not place])

    def leave(self, place: Place) -> None:
        """Give a place back; more than once is harmless."""
        with self._lock:
            self._places.discard(place)

    def check_number(self, client: str, requests: int, own: int) -> None:
        """Raise Overloaded when one more request is too many beside `requests`, of which `own` are the client's."""
        with self._lock:
            self._check_number(client, requests, own)

    def _check_number(self, client: str, requests: int, own: int) -> None:
        if requests >= self._most:
            message = f"{requests} requests are open already; try again later"
            raise Overloaded(message, retry_after=self._seconds_for(_seconds(self._places)))
        if client and own >= self._most_of_client:
            message = f"{own} requests of this client are open already, its share of the server; try again when one is answered"
            raise self._client_overloaded(client, message)

    def _check_seconds(self, place: Place, others: Iterable[Place]) -> None:
        others = list(others)
        waiting = _seconds(others)
        if not (self._most_seconds and waiting):
            return
        if (excess := waiting + place.seconds - self._most_seconds) > 0:
            message = f"{waiting / 3600:.1f} hours of audio wait to be transcribed already; try again later"
            raise Overloaded(message, retry_after=self._seconds_for(min(excess, waiting)))
        own = _seconds(other for other in others if other.client == place.client) if place.client else 0.0
        if own and own + place.seconds > CLIENT_SHARE * self._most_seconds:
            message = f"{own / 3600:.1f} hours of audio of this client wait already, its share of the server; try again later"
            raise self._client_overloaded(place.client, message)

    def _client_overloaded(self, client: str, message: str) -> Overloaded:
        own = _seconds(place for place in self._places if place.client == client)
        return Overloaded(message, code="client_overloaded", retry_after=self._seconds_for(own))

    def _seconds_for(self, audio_seconds: float) -> float:
        """The seconds in which so much audio is transcribed."""
        return audio_seconds / (self._speed() or UNKNOWN_SPEED)


def _seconds(places: Iterable[Place]) -> float:
    return sum(place.seconds for place in places)
