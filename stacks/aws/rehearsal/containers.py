"""A container of a rehearsed endpoint: the project's serving application as a process, or the image itself in a container of docker or
podman, with the environment that SageMaker gives.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from stacks.aws.rehearsal import engines
from stacks.aws.rehearsal.cloud import BadArchive, Cloud, LogStream, NoObject
from stacks.aws.rehearsal.orders import Order
from stacks.aws.rehearsal.processes import MARK, module_environment
from stacks.rehearsal.ports import free_ports

PING_S = 0.05
STOP_S = 1.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.3, 5.0
COMMAND = (sys.executable, "-P", "-m", "hls_foundry.serving", "serve")


class NotHealthy(Exception):
    """A container did not come up; the text is SageMaker's FailureReason."""


class Gone(Exception):
    """The container has no process that could answer, or its process ended before it did."""


@dataclass(frozen=True)
class Surroundings:
    """What all containers of a rehearsal have in common."""

    home: Path
    cloud: Cloud
    control_url: str
    runtime_url: str
    engine: str = ""
    """docker or podman; "": containers are rehearsed as processes."""


class Container:
    """One instance of an endpoint. Its process is started again when it ends, until `stop`."""

    def __init__(self, order: Order, surroundings: Surroundings) -> None:
        self.order = order
        self.id = f"i-{secrets.token_hex(9)[:17]}"
        self.folder = surroundings.home / "containers" / self.id
        self.healthy = False
        self.starts = 0
        self.port = 0
        self.process: asyncio.subprocess.Process | None = None
        self.http: httpx.AsyncClient | None = None
        self.log = LogStream(surroundings.cloud, order.region, f"/aws/sagemaker/Endpoints/{order.name}", f"{order.variant}/{self.id}")
        self._surroundings = surroundings
        self._stopping = False
        self._watch: asyncio.Task[None] | None = None

    async def start(self, seconds: float) -> None:
        """Fetch the model, start the process, and wait until it answers /ping. Raises NotHealthy."""
        await self._check_image()
        await self._fetch_model()
        await self._spawn()
        try:
            async with asyncio.timeout(seconds):
                answers = await self._answers()
        except TimeoutError:
            answers = False
        if not answers:
            await self.stop()
            raise NotHealthy(
                f"The primary container for production variant {self.order.variant} did not pass the ping health check. "
                "Please check CloudWatch logs for this endpoint."
            )
        self._watch = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End the process and forget the model."""
        self._stopping, self.healthy = True, False
        await self._hang_up()  # without connections that are kept, its process ends at once
        process = self.process
        if process is not None and process.returncode is None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    process.send_signal(number)
                with suppress(TimeoutError):
                    async with asyncio.timeout(STOP_S if number == signal.SIGTERM else None):
                        await process.wait()
                        break
        if self._surroundings.engine and self.starts:
            await asyncio.to_thread(engines.remove, self._surroundings.engine, self._name)
        if self._watch is not None and self._watch is not asyncio.current_task():
            self._watch.cancel()
        await self.log.flush()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    async def post(self, path: str, body: bytes | Path, headers: dict[str, str], seconds: float) -> httpx.Response:
        """One request to the container. Raises TimeoutError, and Gone where its process is not there or ends."""
        return await self.request("POST", path, body, headers, seconds)

    async def request(self, method: str, path: str, body: bytes | Path, headers: dict[str, str], seconds: float) -> httpx.Response:
        http = self.http
        if http is None:
            raise Gone
        if isinstance(body, Path):
            headers = {**headers, "content-length": str(body.stat().st_size)}
        content = body if isinstance(body, bytes) else _pieces(body)
        try:
            async with asyncio.timeout(seconds):
                return await http.request(method, path, content=content, headers=headers)
        except httpx.TransportError:
            raise Gone from None

    async def kill(self) -> None:
        """End its process at once, as if it had crashed."""
        if self._surroundings.engine:
            await asyncio.to_thread(engines.kill, self._surroundings.engine, self._name)
        else:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def seen(self, folder: Path) -> str:
        """One of its folders as its process sees it."""
        if not self._surroundings.engine:
            return str(folder)
        return f"{engines.MODELS}/{folder.relative_to(self.folder / 'models')}"

    @property
    def _name(self) -> str:
        return f"hls-rehearsal-{self.id}-{self.starts}"  # a new one for each start: that of before may not be removed yet

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0

    # -- parts of a start

    async def _check_image(self) -> None:
        engine = self._surroundings.engine
        if engine and not await asyncio.to_thread(engines.has_image, engine, self.order.image):
            raise NotHealthy(f"Failed to pull the image {self.order.image}: {engine} on this machine has none of that name.")

    async def _fetch_model(self) -> None:
        model = self.folder / "model"
        for folder in (model, self.folder / "models"):
            await asyncio.to_thread(folder.mkdir, mode=0o755, parents=True, exist_ok=True)
        if self.order.multi_model or not self.order.model_data:
            return
        uri = self.order.model_data
        try:
            await asyncio.to_thread(self._surroundings.cloud.unpack, uri, model)
        except NoObject:
            raise NotHealthy(
                f'Failed to download model data for container "container_1" from URL: "{uri}". Please ensure that there is an object '
                "located at the URL and that the role passed to CreateModel has permissions to download the object."
            ) from None
        except BadArchive:
            raise NotHealthy(
                f'Failed to extract model data archive for container "container_1" from URL "{uri}". '
                "Please ensure that the object located at the URL is a valid tar.gz archive."
            ) from None

    def _environment(self) -> dict[str, str]:
        around, region = self._surroundings, self.order.region
        threads = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
        of_a_process = {
            **module_environment(around.home),
            "SM_MODEL_DIR": str(self.folder / "model"),  # /opt/ml/model in a container; this machine's /opt is not ours
        }
        return {
            **({MARK: str(around.home)} if around.engine else of_a_process),
            **threads,
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
            # SageMaker's containers get the role's credentials from an address of this kind (…_RELATIVE_URI there).
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{around.runtime_url}/_rehearsal/role-credentials",
            "AWS_ENDPOINT_URL": around.control_url,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
            **self.order.environment,
            "SAGEMAKER_BIND_TO_PORT": str(self.port),
            "HLS_HOST": "127.0.0.1",  # at SageMaker it has a network of its own; here nobody else is to reach it
            **({"SAGEMAKER_MULTI_MODEL": "true"} if self.order.multi_model else {}),
        }

    async def _spawn(self) -> None:
        self.port = free_ports(1)[0]
        self.starts += 1
        command, environment = self._command()
        self.process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.folder,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=2**20,
        )
        self._reading = asyncio.create_task(self._read_log(self.process))
        await self._hang_up()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=None, trust_env=False, limits=limits)

    def _command(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """What is started, and with which environment."""
        around, order = self._surroundings, self.order
        if not around.engine:
            return COMMAND, self._environment()
        mounts = {engines.MODELS: self.folder / "models"} if order.multi_model else {engines.MODEL: self.folder / "model"}
        memory = order.serverless["memory_mb"] if order.serverless else None
        what = engines.Contained(self._name, order.image, mounts, self._environment(), memory)
        return engines.run_command(around.engine, around.home, what)

    async def _answers(self) -> bool:
        """True once /ping says 200; False where the process ends."""
        process, http = self.process, self.http
        assert process is not None
        assert http is not None
        while process.returncode is None:
            with suppress(httpx.HTTPError):
                if (await http.get("/ping", timeout=2.0)).status_code == 200:
                    self.healthy = True
                    return True
            await asyncio.sleep(PING_S)
        await self._reading
        return False

    async def _keep(self) -> None:
        """Start the process again whenever it ends, after a pause that grows while it keeps ending."""
        pause = SHORTEST_PAUSE_S
        while self.process is not None:
            code = await self.process.wait()
            if self._stopping:
                return
            self.healthy = False
            self.log.put(f"[rehearsal] the container's process ended with exit code {code}: it is started again")
            self.ended()
            await asyncio.sleep(pause)
            await self._spawn()
            pause = SHORTEST_PAUSE_S if await self._answers() else min(2 * pause, LONGEST_PAUSE_S)

    def ended(self) -> None:
        """The process has ended by itself; what it held is gone."""

    async def _hang_up(self) -> None:
        http, self.http = self.http, None
        if http is not None:
            await http.aclose()

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line of more than a megabyte; what follows is another
                continue
            if not line:
                return
            self.log.put(line.decode(errors="replace").rstrip("\n"))


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, 2**20):
            yield piece
