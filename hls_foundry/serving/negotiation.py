"""Which request format a body has and which reply format a client wants (RFC 9110, sections 8.3 and 12.5.1)."""

from __future__ import annotations

from enum import StrEnum

from hls_foundry.errors import RequestError


class RequestFormat(StrEnum):
    """Media types that a request's body may have."""

    TIFF = "image/tiff"
    JSON = "application/json"
    NPY = "application/x-npy"


class ReplyFormat(StrEnum):
    """Media types that a reply may have."""

    GEOJSON = "application/geo+json"
    TIFF = "image/tiff"
    NPY = "application/x-npy"
    PNG = "image/png"


TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, either byte order
NPY_MAGIC = b"\x93NUMPY"
_UNTYPED = ("", "application/octet-stream", "binary/octet-stream")


def request_format(content_type: str | None, start: bytes) -> RequestFormat:
    """The format that `content_type` names; without a type (or octet-stream) the one that the body's first bytes show.

    Raises RequestError 415.
    """
    media = (content_type or "").partition(";")[0].strip().lower()
    if media in _UNTYPED:
        if start[:4] in TIFF_MAGIC:
            return RequestFormat.TIFF
        if start.startswith(NPY_MAGIC):
            return RequestFormat.NPY
        if start.lstrip()[:1] == b"{":
            return RequestFormat.JSON
    elif media in tuple(RequestFormat):
        return RequestFormat(media)
    raise RequestError(415, "unsupported_content_type", f"Content-Type {media[:80] or 'missing'}: send one of {', '.join(RequestFormat)}")


def reply_format(accept: str | None) -> tuple[ReplyFormat, str]:
    """The reply format that `accept` prefers and the media type to name it by.

    By q-value, then the order written; wildcards take the first of ours that fits. `application/json` gets GeoJSON
    under that name. Raises RequestError 415 where nothing fits (the contract knows no 406).
    """
    ranges: list[tuple[float, int, str]] = []
    for position, part in enumerate((accept or "*/*").split(",")):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        if media:
            ranges.append((-weight, position, media))
    refused = {media for weight, _, media in ranges if weight >= 0}
    for weight, _, media in sorted(ranges):
        if weight >= 0:
            continue
        if media == "application/json":
            return ReplyFormat.GEOJSON, media
        for ours in ReplyFormat:
            kind = ours.partition("/")[0]
            if ours not in refused and media in (ours, f"{kind}/*", "*/*"):
                return ours, ours.value
    raise RequestError(415, "unsupported_accept", f"Accept {(accept or '')[:80]}: ask for one of {', '.join(ReplyFormat)}")
