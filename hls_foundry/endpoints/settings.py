"""What a stack file says of endpoints and of publishing, as typed data that steps can take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class EndpointSettings(BaseModel):
    """Where `deploy` goes. `{task}` in the name is filled with the task's name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: Literal["local"] = "local"
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9{][a-zA-Z0-9{}_-]{0,62}$")] = "{task}"
    kind: Literal["realtime"] = "realtime"
    port: Annotated[int, Field(ge=1, le=65535)] | None = Field(None, description="none: a free one, kept over redeployments")


class PublishSettings(BaseModel):
    """Where `publish` puts model.tar.gz."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str = Field(description="a folder; relative ones count from the repository")
