"""When a retry may be sent, and how long to wait for it. No I/O; clock and randomness are injected."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from datetime import timezone
from email.utils import parsedate_to_datetime

_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")  # what Retry-After holds where it is no date


class RetryBudget:
    """Tokens that retries cost and successes earn, as gRPC's retry throttling: retries never multiply an overload.

    Half of the tokens are there for a short fault. Once they are spent, at most ``earned`` retries follow a success.
    Shared by all calls to one server; safe to share between threads.

    Args:
        tokens: most that can be saved, and what there is at the start; a retry needs more than half of it, and costs 1.
        earned: tokens that a success gives.
    """

    def __init__(self, tokens: float = 10.0, *, earned: float = 0.1) -> None:
        self._most = tokens
        self._earned = earned
        self._left = tokens
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Count a success."""
        with self._lock:
            self._left = min(self._most, self._left + self._earned)

    def spend(self) -> bool:
        """Pay for one retry; False if it must not be sent."""
        with self._lock:
            if self._left <= self._most / 2:
                return False
            self._left -= 1
            return True


def backoff_s(attempt: int, *, draw: Callable[[], float] = random.random) -> float:
    """Seconds to wait before a retry: full jitter, so that clients that failed together do not come back together.

    Args:
        attempt: attempts that failed already, less one; the bound of the wait doubles with each.
        draw: gives a number from 0 up to 1.
    """
    bound = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(attempt, 16))
    return draw() * bound


def retry_after_s(value: str | None, *, now: float) -> float | None:
    """Seconds that a ``Retry-After`` header asks to wait.

    Args:
        value: the header, in seconds or as an HTTP date.
        now: seconds since the epoch.

    Returns:
        0 for a date that has passed; None without a header, and for one that is neither.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):  # what the standard library raises on nonsense differs by version
        return None
    # a date without a zone is in GMT, as HTTP says
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp() - now)
