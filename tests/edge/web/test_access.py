"""The rules of access, as a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.web.access import LOOPBACK_NAMES, refusal

HERE = {"Host": "127.0.0.1:8080"}


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:80", "localhost", "LocalHost:9", "bench3"]
)
def test_the_names_of_the_box_are_answered(host: str) -> None:
    assert refusal("GET", {"Host": host}, allowed_hosts=LOOPBACK_NAMES | {"bench3"}) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.",
        "evil@localhost",
        "localhost/x",
        "127.0.0.1, evil",
        "::1",
        "localhost:x",
    ],
)
def test_any_other_name_is_misdirected(host: str) -> None:
    refused = refusal("GET", {"Host": host}, allowed_hosts=LOOPBACK_NAMES)
    assert refused is not None
    assert refused.status == 421


@given(st.text(max_size=40))
def test_only_the_names_on_the_list_pass(host: str) -> None:
    passes = refusal("GET", {"Host": host}, allowed_hosts=LOOPBACK_NAMES) is None
    name = host.lower()
    assert not passes or any(name == known or name.startswith(known + ":") for known in LOOPBACK_NAMES)


@pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "x-forwarded-proto"])
def test_a_forwarded_request_is_refused(name: str) -> None:
    refused = refusal("GET", {**HERE, name: "10.0.0.7"}, allowed_hosts=LOOPBACK_NAMES)
    assert refused is not None
    assert refused.status == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1", "http://127.0.0.1:3000", "https://127.0.0.1:8080", "null"]
)
def test_a_post_from_another_origin_is_refused(origin: str) -> None:
    refused = refusal("POST", {**HERE, "Origin": origin}, allowed_hosts=LOOPBACK_NAMES)
    assert refused is not None
    assert refused.status == 403


@pytest.mark.parametrize("more", [{}, {"Origin": "http://127.0.0.1:8080"}, {"Sec-Fetch-Site": "same-origin"}])
def test_a_post_from_the_page_or_from_a_program_passes(more: dict[str, str]) -> None:
    assert refusal("POST", {**HERE, **more}, allowed_hosts=LOOPBACK_NAMES) is None


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_may_link_here_but_neither_post_nor_embed_the_video(site: str) -> None:
    from_there = {**HERE, "Sec-Fetch-Site": site}
    assert refusal("GET", {**from_there, "Sec-Fetch-Mode": "navigate"}, allowed_hosts=LOOPBACK_NAMES) is None
    for method, mode in (("POST", "navigate"), ("GET", "no-cors")):
        refused = refusal(method, {**from_there, "Sec-Fetch-Mode": mode}, allowed_hosts=LOOPBACK_NAMES)
        assert refused is not None
        assert refused.status == 403
