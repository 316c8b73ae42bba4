"""The models of one multi-model container: loaded at their first call, the least recently used unloaded for it when memory is short.

https://docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis.html
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections import OrderedDict

from stacks.aws.rehearsal.cloud import BadArchive, Cloud, NoObject
from stacks.aws.rehearsal.containers import Container
from stacks.aws.rehearsal.wire import model_error, validation

MEMORY_SHORT, LOADED_ALREADY, NOT_LOADED = 507, 409, 404


class LoadedModels:
    """Which models `container` holds, by target model; the first is the least recently used."""

    def __init__(self, container: Container, cloud: Cloud) -> None:
        self._container, self._cloud = container, cloud
        self._names: OrderedDict[str, str] = OrderedDict()
        self._loading = asyncio.Lock()

    @property
    def targets(self) -> list[str]:
        return list(self._names)

    def forget(self) -> None:
        """The container's process has ended."""
        self._names.clear()

    async def path(self, target: str, seconds: float) -> str:
        """Where the container answers for `target` (a key under the endpoint's prefix).

        Raises RuntimeFault: ValidationError for one that is not there, ModelError with the container's words where it does not load;
        Gone and TimeoutError as the container does.
        """
        if target not in self._names:
            async with self._loading:  # one after the other: each may need the memory of those before
                if target not in self._names:
                    self._names[target] = await self._load(target, seconds)
        self._names.move_to_end(target)
        return f"/models/{self._names[target]}/invoke"

    async def _load(self, target: str, seconds: float) -> str:
        order = self._container.order
        uri = f"{order.model_data.rstrip('/')}/{target.lstrip('/')}"
        name = hashlib.sha256(uri.encode()).hexdigest()[:32]
        folder = self._container.folder / "models" / name / "model"
        try:
            await asyncio.to_thread(self._cloud.unpack, uri, folder)
        except NoObject:
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            raise validation(
                f"Failed to download model data(bucket: {bucket}, key: {key}). Please ensure that there is an object located at the URL "
                "and that the role passed to CreateModel has permissions to download the model."
            ) from None
        except BadArchive:
            raise validation(f"Failed to extract model data archive ({uri}): it is not a valid tar.gz archive.") from None
        body = json.dumps({"model_name": name, "url": self._container.seen(folder)}).encode()
        while True:
            reply = await self._container.post("/models", body, {"content-type": "application/json"}, seconds)
            if reply.status_code != MEMORY_SHORT or not self._names:
                break
            await self._unload(next(iter(self._names)), seconds)
        if reply.status_code >= 300 and reply.status_code != LOADED_ALREADY:
            await asyncio.to_thread(shutil.rmtree, folder.parent, ignore_errors=True)
            raise model_error(order, reply.status_code, reply.text)
        self._container.log.put(f"[rehearsal] loaded {target}")
        return name

    async def _unload(self, target: str, seconds: float) -> None:
        name = self._names.pop(target)
        await self._container.request("DELETE", f"/models/{name}", b"", {}, seconds)
        await asyncio.to_thread(shutil.rmtree, self._container.folder / "models" / name, ignore_errors=True)
        self._container.log.put(f"[rehearsal] unloaded {target}, the least recently used: memory was short")
