"""What the environment tells the serving application: SageMaker's variables, and the limits of ours (HLS_…)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hls_foundry.errors import ConfigError

MB = 1024 * 1024


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _names(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class ServingSettings(BaseModel):
    """One server's settings. Each field is read from the environment variable of its alias."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_dir: Path = Field(Path("/opt/ml/model"), alias="SM_MODEL_DIR", description="bundle folder, or a folder that holds model.tar.gz")
    model_sha256: Annotated[tuple[Digest, ...], BeforeValidator(_names)] = Field(
        (), alias="HLS_MODEL_SHA256", description="digests, comma-separated: a model of another one is not loaded; none: any"
    )
    host: str = Field("0.0.0.0", alias="HLS_HOST")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8080, alias="SAGEMAKER_BIND_TO_PORT")
    multi_model: bool = Field(False, alias="SAGEMAKER_MULTI_MODEL")
    model_memory_mb: Annotated[float, Field(gt=0)] | None = Field(
        None, alias="HLS_MODEL_MEMORY_MB", description="memory for all models together; none: what the container or machine has available"
    )
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        1, alias="HLS_WORKERS", description="predictions at the same time; torch threads share the cores"
    )
    queue: Annotated[int, Field(ge=0, le=10_000)] = Field(
        16, alias="HLS_QUEUE", description="requests that wait for a worker; beyond it 503"
    )
    max_body_mb: Annotated[int, Field(ge=1)] = Field(
        256, alias="HLS_MAX_BODY_MB", description="largest request body or S3 object; beyond it 413"
    )
    pending_mb: Annotated[int, Field(ge=1)] | None = Field(
        None, alias="HLS_PENDING_MB", description="bodies of all admitted requests together; none: twice HLS_MAX_BODY_MB; beyond it 503"
    )
    max_pixels: Annotated[int, Field(ge=4096)] = Field(
        4096 * 4096, alias="HLS_MAX_PIXELS", description="largest width × height (a whole HLS tile has 3660 × 3660); beyond it 413"
    )
    s3_allow: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), alias="HLS_S3_ALLOW", description="buckets that s3:// images may come from, comma-separated; none: all are refused"
    )
    body_seconds: Annotated[float, Field(gt=0)] = Field(60.0, alias="HLS_BODY_SECONDS", description="time for a client to send its body")
    drain_seconds: Annotated[float, Field(ge=0)] = Field(
        25.0, alias="HLS_DRAIN_SECONDS", description="time for requests in flight after SIGTERM"
    )

    @property
    def max_body_bytes(self) -> int:
        return self.max_body_mb * MB

    @property
    def pending_bytes(self) -> int:
        return max(self.pending_mb or 2 * self.max_body_mb, self.max_body_mb) * MB

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ServingSettings:
        """Settings from `environment` (default: the process's own); empty variables count as unset.

        Raises ConfigError with one line naming the variable.
        """
        given = {name: value for name, value in (os.environ if environment is None else environment).items() if value != ""}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"environment variable {first['loc'][0]}: {first['msg']}, got {first['input']!r:.80}") from None
