"""Waiting for Kubeflow through what passes by itself: a restart, a lost connection."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipelines.login import DENIED, KubeflowError, short

LONGEST_S = 60.0
BUSY = 429


def passes(error: Exception) -> bool:
    """Whether the same question may be answered later: a server's own fault, or none there."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        return error.status == BUSY or (error.status or 0) >= 500
    return isinstance(error, HTTPError)


class Patience:
    """limit_s: seconds from the first failure to giving up. first_s: of the first pause; each is
    twice as long as the one before, up to a minute."""

    def __init__(
        self, limit_s: float = 600.0, first_s: float = 5.0, say: Callable[[str], None] = print
    ) -> None:
        self.limit_s, self.first_s, self.say = limit_s, first_s, say
        self.over()

    def over(self) -> None:
        """Kubeflow answers again."""
        self.since: float | None = None
        self.pause_s = self.first_s

    def wait(self, error: Exception) -> None:
        """Say what happened, and pause.

        Raises:
            KubeflowError: this has gone on for `limit_s`.
        """
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        if now - self.since >= self.limit_s:
            gone = round(self.limit_s)
            text = f"no answer from Kubeflow for {gone} s: {told(error)}; what runs there goes on"
            raise KubeflowError(text) from error
        self.say(f"Kubeflow: {told(error)}; asked again in {self.pause_s:g} s")
        time.sleep(self.pause_s)
        self.pause_s = min(2 * self.pause_s, LONGEST_S)


def told(error: Exception) -> str:
    """One line."""
    status = getattr(error, "status", None)
    if not status:
        return short(error)
    again = "; the login may have expired: set KFP_TOKEN or KFP_COOKIES" if status in DENIED else ""
    return f"answered {status} {getattr(error, 'reason', '')}{again}"
