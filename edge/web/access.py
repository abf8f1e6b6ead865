"""Who may ask: the rules every request passes before a route sees it. Pure: headers in, a refusal or None out.

A page on loopback has no password, so the browser is what has to be guarded against: another site may point its own
name at 127.0.0.1 (DNS rebinding), or make the visitor's browser send a POST here (cross-site request forgery).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

LOOPBACK_NAMES = frozenset({"127.0.0.1", "[::1]", "localhost"})
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(?::\d{1,5})?")


class Refusal(NamedTuple):
    """The HTTP status of a refused request, and why in words."""

    status: int
    detail: str


def refusal(method: str, headers: Mapping[str, str], *, allowed_hosts: Collection[str]) -> Refusal | None:
    """Why a request must not be answered, or None when it may be.

    Parameters
    ----------
    method
        ``GET``, ``POST``, ...
    headers
        The request's headers; looked up by their usual names, case-insensitively if the mapping is.
    allowed_hosts
        Names without port, in lower case, that the Host header may carry.

    Examples
    --------
    >>> refusal("GET", {"Host": "localhost:8080"}, allowed_hosts=LOOPBACK_NAMES) is None
    True
    >>> refusal("GET", {"Host": "evil.example"}, allowed_hosts=LOOPBACK_NAMES).status
    421
    >>> foreign = {"Host": "localhost", "Origin": "http://evil.example"}
    >>> refusal("POST", foreign, allowed_hosts=LOOPBACK_NAMES).status
    403
    """
    host = headers.get("Host", "").lower()
    named = _HOST.fullmatch(host)
    if named is None or named["name"] not in allowed_hosts:
        return Refusal(
            421,
            f"This box does not answer to the name {host or '(none)'!r}. Open it as 127.0.0.1 or localhost, "
            "or add the name to [web] allowed_hosts in the configuration.",
        )
    forwarded = sorted(
        name for name in headers if name.lower() == "forwarded" or name.lower().startswith("x-forwarded-")
    )
    if forwarded:
        return Refusal(403, f"The request came through a proxy ({forwarded[0]}), and no proxy is configured here.")
    # A browser says where a request comes from; other programs say nothing and are not a visitor's browser.
    if headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none") and (
        method not in ("GET", "HEAD") or headers.get("Sec-Fetch-Mode") != "navigate"
    ):
        return Refusal(403, "The request came from another site. Use the box's own page.")
    origin = headers.get("Origin")
    if method not in ("GET", "HEAD") and origin is not None and origin.lower() != f"http://{host}":
        return Refusal(403, f"The request came from {origin!r}, not from the box's own page. Use the page itself.")
    return None
