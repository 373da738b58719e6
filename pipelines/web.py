"""One GET with a time limit. A redirect is an answer and is not followed: credentials stay here."""

from __future__ import annotations

import http.client
import ssl
import urllib.request
from collections.abc import Mapping
from typing import Any


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """No other request: urllib then raises the redirect as an HTTPError."""


def get(
    address: str, timeout: float, headers: Mapping[str, str], authority: str | None = None
) -> str:
    """The answer's text.

    Args:
        timeout: seconds. authority: a file of certificates; by default the system's.

    Raises:
        urllib.error.HTTPError: any answer but 2xx, redirects too. OSError: no answer.
        ValueError: the address or a header is not of http, or the answer is not; no header's value
            is in the text, for it may be a secret.
    """
    if not address.startswith(("http://", "https://")):
        raise ValueError("not an http address")
    for name, value in headers.items():
        if not value.isprintable():
            raise ValueError(f"the value for {name} holds a line break or the like")
    secure = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=authority))
    request = urllib.request.Request(address, headers=dict(headers))
    try:
        with urllib.request.build_opener(_Stay, secure).open(request, timeout=timeout) as answer:
            return str(answer.read().decode())
    except http.client.HTTPException as error:
        raise ValueError(f"no answer of http: {error}") from error
