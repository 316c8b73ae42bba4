"""Which reply a client gets for what it says it accepts, and what a body is taken for."""

from __future__ import annotations

import pytest

from hls_foundry.errors import RequestError
from hls_foundry.serving.negotiation import ReplyFormat, RequestFormat, reply_format, request_format


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, ReplyFormat.GEOJSON),
        ("*/*", ReplyFormat.GEOJSON),
        ("application/*", ReplyFormat.GEOJSON),
        ("image/*", ReplyFormat.TIFF),
        ("image/png", ReplyFormat.PNG),
        ("IMAGE/TIFF; application=geotiff", ReplyFormat.TIFF),
        ("application/x-npy;q=0.9, image/png;q=0.2", ReplyFormat.NPY),
        ("image/png;q=0.2, application/x-npy;q=0.9", ReplyFormat.NPY),
        ("text/html, */*;q=0.1", ReplyFormat.GEOJSON),
        ("image/tiff;q=0, image/*", ReplyFormat.PNG),
        ("image/tiff, image/png", ReplyFormat.TIFF),
    ],
)
def test_accept_chooses_the_preferred_reply(accept: str | None, expected: ReplyFormat) -> None:
    assert reply_format(accept) == (expected, expected.value)


def test_a_client_that_asks_for_json_gets_geojson_under_that_name() -> None:
    assert reply_format("application/json") == (ReplyFormat.GEOJSON, "application/json")


@pytest.mark.parametrize("accept", ["text/html", "application/xml;q=1", "image/png;q=0", ";;;"])
def test_an_accept_that_nothing_fits_is_a_415(accept: str) -> None:
    with pytest.raises(RequestError, match=r"image/tiff") as refusal:
        reply_format(accept)
    assert refusal.value.status == 415


@pytest.mark.parametrize(
    ("content_type", "start", "expected"),
    [
        ("image/tiff", b"anything", RequestFormat.TIFF),
        ("application/json; charset=utf-8", b"", RequestFormat.JSON),
        ("application/octet-stream", b"II*\0....", RequestFormat.TIFF),
        ("application/octet-stream", b"MM\0+....", RequestFormat.TIFF),
        (None, b"\x93NUMPY\x01\x00", RequestFormat.NPY),
        (None, b'\n {"image"', RequestFormat.JSON),
    ],
)
def test_content_type_or_the_first_bytes_say_what_a_body_is(content_type: str | None, start: bytes, expected: RequestFormat) -> None:
    assert request_format(content_type, start) is expected


@pytest.mark.parametrize("content_type", ["text/plain", "image/png", None])
def test_a_body_of_no_known_format_is_a_415(content_type: str | None) -> None:
    with pytest.raises(RequestError) as refusal:
        request_format(content_type, b"hello")
    assert refusal.value.status == 415
