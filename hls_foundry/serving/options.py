"""The options of an invocation, declared once: they validate requests and document themselves in /docs and /openapi.json.

A JSON body carries them as keys. Binary bodies (image/tiff, application/x-npy) carry them in the header
`X-Amzn-SageMaker-Custom-Attributes`, which SageMaker hands through: `bands=2,3,4,9,12,13;threshold=0.4`.
"""

from __future__ import annotations

import math
from datetime import date
from typing import Annotated, Any, Literal

from affine import Affine
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hls_foundry.errors import RequestError


def _list(value: Any) -> Any:
    """`2,3,4` from a header as a list; what JSON brought stays as it is."""
    if not isinstance(value, str) or value.strip() == "auto":
        return value
    return [int(part) if part.strip().isdecimal() else part.strip() for part in value.split(",")]


def _numbers(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


Image = Annotated[
    str,
    Field(
        min_length=1,
        description="the scene: `s3://BUCKET/KEY` of a GeoTIFF in an allowed bucket, or the GeoTIFF itself in base64",
        examples=["s3://my-scenes/HLS.S30.T10TGS.2018285.tif"],
    ),
]
Bands = Annotated[
    Literal["auto"] | Annotated[tuple[Annotated[int, Field(ge=1)] | str, ...], Field(min_length=6, max_length=6)],
    BeforeValidator(_list),
    Field(
        description="band numbers (from 1) or names of blue, green, red, nir, swir1, swir2 in the file; auto: by the file's descriptions, "
        "6 bands as they are, 13 as Sentinel-2",
        examples=[[2, 3, 4, 9, 12, 13]],
    ),
]
Threshold = Annotated[
    Annotated[float, Field(gt=0, lt=1)] | None,
    Field(description="probability from which a pixel counts as class 1; none: the more probable class", examples=[0.4]),
]
Scale = Annotated[
    Literal["auto"] | Annotated[float, Field(gt=0, allow_inf_nan=False)],
    Field(description="file value × scale = reflectance; auto: 0.0001 for integers, 1 for floats", examples=[0.0001]),
]
Nodata = Annotated[
    Annotated[float, Field(allow_inf_nan=False)] | None,
    Field(description="value of pixels without data; none: the file's own, else −9999", examples=[-9999]),
]
Acquired = Annotated[
    date | None, Field(description="date of acquisition, for models with time; none: from the file", examples=["2018-10-12"])
]
Location = Annotated[
    tuple[Annotated[float, Field(ge=-90, le=90)], Annotated[float, Field(ge=-180, le=180)]] | None,
    BeforeValidator(_numbers),
    Field(description="latitude, longitude of the centre in degrees; none: from the file", examples=[[40.2, -122.3]]),
]
Crs = Annotated[
    Annotated[str, Field(max_length=4000)] | None,
    Field(description="coordinate system of an array (application/x-npy), which has none of its own", examples=["EPSG:32610"]),
]
Transform = Annotated[
    tuple[float, float, float, float, float, float] | None,
    BeforeValidator(_numbers),
    Field(
        description="affine transform a, b, c, d, e, f of an array: x = a·column + b·row + c, y = d·column + e·row + f",
        examples=[[30, 0, 699960, 0, -30, 4100040]],
    ),
]


class InvocationOptions(BaseModel):
    """How a scene is to be read and its prediction cut."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bands: Bands = "auto"
    scale: Scale = "auto"
    nodata: Nodata = None
    threshold: Threshold = None
    acquired: Acquired = None
    location: Location = None


class ArrayOptions(InvocationOptions):
    """Options of application/x-npy: an array also needs to be told where it lies (without: the polygons are in pixels)."""

    crs: Crs = None
    transform: Transform = None

    @model_validator(mode="after")
    def _both(self) -> ArrayOptions:
        if (self.crs is None) != (self.transform is None):
            raise ValueError("crs and transform belong together: give both or none")
        if self.transform is not None:
            affine = Affine(*self.transform)
            if not all(math.isfinite(value) for value in self.transform) or affine.determinant == 0:
                raise ValueError("transform must be finite and invertible")
        if self.bands != "auto" or self.scale != "auto" or self.nodata is not None:
            raise ValueError("an array is already six bands of reflectance, NaN where there is no data: leave out bands, scale, nodata")
        return self


class Invocation(InvocationOptions):
    """Body of an application/json request."""

    image: Image


class LoadRequest(BaseModel):
    """Body of POST /models."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    model_name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^/]+$", examples=["burn_scars"])]
    url: Annotated[
        str, Field(min_length=1, description="local folder of the unpacked bundle", examples=["/opt/ml/models/burn_scars/model"])
    ]


def parse_json(model: type[BaseModel], body: bytes) -> Any:
    """`body` as `model`. Raises RequestError: 400 for what is not JSON, 422 for what is not what the model says."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None


def parse_attributes(header: str | None, *, array: bool) -> InvocationOptions:
    """Options from `key=value;key=value`. Raises RequestError: 400 for another syntax, 422 for unknown keys and bad values."""
    values: dict[str, str] = {}
    for part in (header or "").split(";"):
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        if not equals:
            raise RequestError(400, "bad_attributes", "X-Amzn-SageMaker-Custom-Attributes must read key=value;key=value")
        values[key.strip()] = value.strip()
    try:
        return (ArrayOptions if array else InvocationOptions).model_validate(values)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> RequestError:
    """The first problem as one line; the input itself is not echoed, since it may be megabytes."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return RequestError(400, "bad_json", f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    key = ".".join(str(part) for part in first["loc"][:1]) or "the body"
    if first["type"] == "extra_forbidden":
        return RequestError(422, "bad_option", f"unknown option '{key[:40]}'")
    return RequestError(422, "bad_option", f"{key}: {first['msg'].removeprefix('Value error, ')}")
