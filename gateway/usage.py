"""What each key has used: requests of the last minute, open requests, and seconds of audio today (UTC)."""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .keys import Key
from .refusals import RateLimited

MINUTE, DAY = 60.0, 86400
logger = logging.getLogger(__name__)


class Usage:
    """Checks and counts. The seconds of audio are kept in SQLite, so that a restart does not forget them."""

    def __init__(self, file: Path) -> None:
        self._requests: dict[str, deque[float]] = defaultdict(deque)
        self._open: dict[str, int] = defaultdict(int)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute("CREATE TABLE IF NOT EXISTS usage (key TEXT, day INTEGER, seconds REAL, PRIMARY KEY (key, day))")

    @contextmanager
    def request(self, key: Key) -> Iterator[dict[str, str]]:
        """Count a request while it is open. Gives the x-ratelimit headers of its reply. Raises RateLimited (429)."""
        headers = self._admit(key)
        self._open[key.name] += 1
        try:
            yield headers
        finally:
            self._open[key.name] -= 1

    def add_audio(self, key: Key, seconds: float) -> None:
        """Count audio that has been transcribed. What cannot be stored is logged: the transcript is there and must be sent."""
        try:
            self._database.execute(
                "INSERT INTO usage VALUES (?, ?, ?) ON CONFLICT (key, day) DO UPDATE SET seconds = seconds + excluded.seconds",
                (key.name, _today(), seconds),
            )
        except sqlite3.Error as error:
            logger.error("%.1f s of audio of the key %s are not counted: %s", seconds, key.name, error)

    def audio_seconds(self, key: Key) -> float:
        """Seconds of audio that the key has had transcribed today."""
        row = self._database.execute("SELECT seconds FROM usage WHERE key = ? AND day = ?", (key.name, _today())).fetchone()
        return float(row[0]) if row else 0.0

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _admit(self, key: Key) -> dict[str, str]:
        headers: dict[str, str] = {}
        if key.open_requests and self._open[key.name] >= key.open_requests:
            message = f"this key may have {key.open_requests} requests open at once: wait for one of them"
            raise RateLimited(message, retry_after=1)
        if key.audio_seconds_per_day:
            left = key.audio_seconds_per_day - self.audio_seconds(key)
            until_midnight = DAY - time.time() % DAY
            if left <= 0:
                message = f"this key may transcribe {key.audio_seconds_per_day:g} s of audio a day: it is used up until midnight UTC"
                raise RateLimited(message, code="insufficient_quota", retry_after=until_midnight)
            headers |= _headers("audio-seconds", key.audio_seconds_per_day, left, until_midnight)
        if key.requests_per_minute:
            recent, now = self._requests[key.name], time.monotonic()
            while recent and now - recent[0] >= MINUTE:
                recent.popleft()
            if len(recent) >= key.requests_per_minute:
                message = f"this key may send {key.requests_per_minute} requests a minute"
                raise RateLimited(message, retry_after=MINUTE - (now - recent[0]))
            recent.append(now)
            headers |= _headers("requests", key.requests_per_minute, key.requests_per_minute - len(recent), MINUTE - (now - recent[0]))
        return headers


def _headers(kind: str, limit: float, left: float, reset: float) -> dict[str, str]:
    """OpenAI's headers: the limit, what is left of it, and when it is whole again."""
    return {
        f"x-ratelimit-limit-{kind}": f"{limit:.0f}",
        f"x-ratelimit-remaining-{kind}": f"{max(0.0, left):.0f}",
        f"x-ratelimit-reset-{kind}": f"{math.ceil(reset)}s",
    }


def _today() -> int:
    """Days since 1970, UTC."""
    return int(time.time() // DAY)
