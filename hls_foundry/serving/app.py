"""The HTTP application: the SageMaker contract for one model or many.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
https://docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis.html
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from hls_foundry import __version__
from hls_foundry.errors import FoundryError, RequestError
from hls_foundry.serving.admission import RETRY_AFTER_S, Admission, Workers, content_length, disconnected, read_body
from hls_foundry.serving.front import Front
from hls_foundry.serving.logs import log
from hls_foundry.serving.negotiation import ReplyFormat, RequestFormat, reply_format, request_format
from hls_foundry.serving.options import ArrayOptions, Invocation, InvocationOptions, LoadRequest, parse_json
from hls_foundry.serving.registry import LoadedModel, ModelRegistry, load_model
from hls_foundry.serving.s3 import S3Images
from hls_foundry.serving.settings import ServingSettings
from hls_foundry.serving.spool import Spool

ONLY = "model"  # the name of a single-model server's model
CLIENT_GONE = 499  # only ever seen in the log
MAX_LOAD_BODY = 64 * 1024


class Problem(BaseModel):
    """Body of every error."""

    error: str = Field(description="a word that programs can switch on", examples=["bad_image"])
    detail: str = Field(description="one line for people: what is wrong and what to do", examples=["the image is not a TIFF file"])


class ModelEntry(BaseModel):
    """A loaded model, in the platform's spelling."""

    model_config = ConfigDict(protected_namespaces=())

    modelName: str
    modelUrl: str


class ModelList(BaseModel):
    """A page of the loaded models."""

    models: list[ModelEntry]
    nextPageToken: str | None = None


Attributes = Annotated[
    str | None,
    Header(
        alias="X-Amzn-SageMaker-Custom-Attributes",
        description="options of image/tiff and application/x-npy bodies as key=value;key=value: bands, scale, nodata, threshold, acquired, "
        "location (and crs, transform for arrays)",
        examples=["bands=2,3,4,9,12,13;threshold=0.4"],
    ),
]
Accept = Annotated[
    str | None,
    Header(description="reply format; q-values and wildcards are understood, GeoJSON is the default", examples=["image/tiff"]),
]
ContentType = Annotated[
    str | None, Header(description="format of the body; without it the body's first bytes decide", examples=["image/tiff"])
]

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the body is empty, incomplete or not valid JSON"},
    413: {"model": Problem, "description": "too many bytes or pixels"},
    415: {"model": Problem, "description": "Content-Type or Accept names no format of ours"},
    422: {"model": Problem, "description": "the image or an option cannot be used, or the image's address is refused"},
    500: {"model": Problem, "description": "the server failed; its log has the request id"},
    503: {"model": Problem, "description": "no model is loaded yet, or all places are taken: try again after Retry-After seconds"},
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REPLIES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The prediction",
        "content": {
            ReplyFormat.GEOJSON: {
                "schema": {"type": "object", "description": "FeatureCollection, EPSG:4326: class, area_ha, mean_probability"}
            },
            ReplyFormat.TIFF: _BINARY,
            ReplyFormat.NPY: _BINARY,
            ReplyFormat.PNG: _BINARY,
        },
    },
    **_PROBLEMS,
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            RequestFormat.TIFF: _BINARY,
            RequestFormat.JSON: {"schema": Invocation.model_json_schema()},
            RequestFormat.NPY: {
                "schema": {**_BINARY["schema"], "description": f"reflectance (6, H, W); options: {', '.join(ArrayOptions.model_fields)}"}
            },
        },
    }
}


class Serving:
    """What the routes share."""

    def __init__(self, settings: ServingSettings) -> None:
        self.settings = settings
        self.models = ModelRegistry(settings.model_memory_mb, partial(load_model, sha256=settings.model_sha256))
        self.admission = Admission(settings)
        self.workers = Workers(settings.workers)
        self.images = S3Images(settings)
        self.ready = asyncio.Event()  # a model is loaded, or the server waits for models to be loaded
        self.failed: FoundryError | None = None
        self.draining = False
        self.stop = asyncio.Event()  # set by signals and by a failed load; the server then drains

    async def prepare(self) -> None:
        """Get a multi-model server ready: import now what else the first model's load would wait for."""
        await asyncio.to_thread(importlib.import_module, "hls_foundry.serving.replies")
        self._get_ready()

    def _get_ready(self) -> None:
        gc.freeze()  # what the start made stays: collections need not look at it
        gc.enable()
        self.ready.set()

    async def load_only(self) -> None:
        """Load the single-model server's model; a failure stops the server."""
        started = time.monotonic()
        try:
            model = await asyncio.to_thread(load_model, ONLY, self.settings.model_dir, sha256=self.settings.model_sha256)
        except FoundryError as error:
            self.failed = error
            self.stop.set()
            return
        except Exception as error:
            log.exception("load_failed")
            self.failed = FoundryError(f"the model in {self.settings.model_dir} cannot be loaded: {type(error).__name__}, see above")
            self.stop.set()
            return
        self.models.put(model)
        self._get_ready()
        log.info(
            "model_loaded task=%s sha256=%s precision=%s seconds=%.2f",
            model.bundle.manifest.task, model.bundle.sha256[:12], model.predictor.precision, time.monotonic() - started,
        )  # fmt: skip

    async def invoke(self, request: Request, name: str, content_type: str | None, accept: str | None, attributes: str | None) -> Response:
        """Admit, read, wait for a worker, predict. Raises RequestError and ClientDisconnect."""
        model = self.models.get(name)
        reply, media = reply_format(accept)
        if content_type and "octet-stream" not in content_type:
            request_format(content_type, b"")  # refused before the body is read
        with self.admission.enter(content_length(request)) as ticket:
            with await read_body(request, ticket, self.settings.body_seconds) as body:
                kind = request_format(content_type, body.start())
                arrived = time.monotonic()
                request.state.log.update(body=kind.value, bytes_in=body.size, reply=reply.value)
                work = _Prediction(self, model, kind, body, attributes, reply)
                content, begun = await self.workers.run(work, disconnected(request))
            ended = time.monotonic()
        request.state.log.update(queue_ms=round((begun - arrived) * 1e3), predict_ms=round((ended - begun) * 1e3))
        return Response(content, media_type=media, headers={"X-Amzn-SageMaker-Custom-Attributes": f"model_sha256={model.bundle.sha256}"})


class _Prediction:
    """One request's work on a worker thread."""

    def __init__(
        self, serving: Serving, model: LoadedModel, kind: RequestFormat, body: Spool, attributes: str | None, reply: ReplyFormat
    ) -> None:
        self._serving, self._model, self._kind, self._body, self._attributes, self._reply = serving, model, kind, body, attributes, reply

    def __call__(self, checkpoint: Any) -> tuple[bytes | memoryview, float]:
        from hls_foundry.serving.decode import LargeScene, decode
        from hls_foundry.serving.replies import predict

        begun = time.monotonic()
        settings = self._serving.settings
        with decode(self._kind, self._body, self._attributes, images=self._serving.images, max_pixels=settings.max_pixels) as decoded:
            if not isinstance(decoded.scene, LargeScene):
                self._body.close()  # let go of it as soon as it is decoded
            checkpoint()
            return predict(self._model, decoded, self._reply, checkpoint), begun


def create_app(settings: ServingSettings) -> FastAPI:
    """The application; its `state.serving` is the Serving that it works with. The model loads when the application starts."""
    serving = Serving(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(serving.prepare() if settings.multi_model else serving.load_only())
        yield
        loading.cancel()
        serving.workers.close()

    app = FastAPI(title="HLS Foundry endpoint", version=__version__, description=__doc__, lifespan=lifespan, redoc_url=None)
    app.state.serving = serving
    app.add_middleware(Front, draining=lambda: serving.draining)
    _handle_errors(app)
    _add_ping(app, serving)
    if settings.multi_model:
        _add_models(app, serving)
    else:
        _add_invocations(app, serving)
    return app


def _add_ping(app: FastAPI, serving: Serving) -> None:
    @app.get("/ping", responses={503: {"model": Problem}})
    async def ping() -> Response:
        """200 when a model is loaded and healthy."""
        if not serving.ready.is_set():
            raise RequestError(503, "not_ready", "the model is not loaded yet")
        return Response(b"", 200)


def _add_invocations(app: FastAPI, serving: Serving) -> None:
    @app.post("/invocations", response_class=Response, responses=_REPLIES, openapi_extra=_BODY)
    async def invocations(
        request: Request, content_type: ContentType = None, accept: Accept = None, attributes: Attributes = None
    ) -> Response:
        """A scene in, what the model maps in it out: polygons, a mask, probabilities or a picture."""
        if not serving.ready.is_set():
            raise RequestError(503, "not_ready", "the model is not loaded yet")
        return await serving.invoke(request, ONLY, content_type, accept, attributes)


def _add_models(app: FastAPI, serving: Serving) -> None:
    """The multi-model API."""
    models = serving.models
    load = {"requestBody": {"required": True, "content": {"application/json": {"schema": LoadRequest.model_json_schema()}}}}
    short: dict[int | str, dict[str, Any]] = {507: {"model": Problem}, 409: {"model": Problem}, 422: {"model": Problem}}

    @app.post("/models", responses=short, openapi_extra=load)
    async def load_one(request: Request) -> ModelEntry:
        """Load the bundle in a local folder; 507 asks the platform to unload another first."""
        chunks = b""
        async for chunk in request.stream():
            chunks += chunk
            if len(chunks) > MAX_LOAD_BODY:
                raise RequestError(413, "body_too_large", "the body of POST /models is a name and a folder")
        wanted: LoadRequest = parse_json(LoadRequest, chunks)
        model = await asyncio.to_thread(models.load, wanted.model_name, wanted.url)
        log.info("model_loaded model=%s task=%s sha256=%s", model.name, model.bundle.manifest.task, model.bundle.sha256[:12])
        return ModelEntry(modelName=model.name, modelUrl=model.url)

    @app.get("/models", response_model_exclude_none=True)
    async def list_models(
        limit: Annotated[int, Query(ge=1, le=1000, description="models in a page", examples=[100])] = 100,
        next_page_token: Annotated[str | None, Query(description="nextPageToken of the page before", max_length=256)] = None,
    ) -> ModelList:
        """The loaded models, by name."""
        names = sorted(name for name in models.names() if next_page_token is None or name > next_page_token)
        page = names[:limit]
        entries = [ModelEntry(modelName=name, modelUrl=models.get(name).url) for name in page]
        return ModelList(models=entries, nextPageToken=page[-1] if len(names) > limit else None)

    @app.get("/models/{name}", responses={404: {"model": Problem}})
    async def get_model(name: str) -> ModelEntry:
        """Whether a model is loaded."""
        return ModelEntry(modelName=name, modelUrl=models.get(name).url)

    @app.delete("/models/{name}", responses={404: {"model": Problem}})
    async def unload(name: str) -> Response:
        """Unload a model; requests that it is answering finish."""
        models.unload(name)
        log.info("model_unloaded model=%s", name)
        return JSONResponse({})

    @app.post("/models/{name}/invoke", response_class=Response, responses={**_REPLIES, 404: {"model": Problem}}, openapi_extra=_BODY)
    async def invoke(
        name: str, request: Request, content_type: ContentType = None, accept: Accept = None, attributes: Attributes = None
    ) -> Response:
        """As POST /invocations, with the model of that name."""
        return await serving.invoke(request, name, content_type, accept, attributes)


def _handle_errors(app: FastAPI) -> None:
    """Every error is a Problem."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        request.state.log.update(error=error.error)
        headers = {"Retry-After": str(RETRY_AFTER_S)} if error.status == 503 else None
        return JSONResponse({"error": error.error, "detail": error.detail}, error.status, headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, _: ClientDisconnect) -> Response:
        request.state.log.update(error="client_gone")
        return Response(b"", CLIENT_GONE)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        known = {404: "not_found", 405: "method_not_allowed"}
        detail = f"{request.method} {request.url.path[:80]} is not part of this server: see /openapi.json"
        return JSONResponse({"error": known.get(error.status_code, "refused"), "detail": detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse({"error": "bad_option", "detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)


__all__ = ["InvocationOptions", "Serving", "create_app"]
