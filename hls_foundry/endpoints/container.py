"""Servers of local endpoints in containers: docker or podman runs the serving image, without rights, network or a place to write to.

The server shares one folder with us, which holds its control socket, and is sent the endpoint's listening socket over that. So the
container answers on 127.0.0.1 of this machine, as a process would, and has no network of its own; and a redeployment hands the socket
from container to container, or between a container and a process.
"""

from __future__ import annotations

import platform
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hls_foundry import __version__
from hls_foundry.endpoints.control import SOCKET, hand_over, open_port, taken_over
from hls_foundry.endpoints.engine import find_engine, refusal
from hls_foundry.endpoints.process import KILL_AFTER_S, ServerProcess, born_at
from hls_foundry.endpoints.settings import ContainerSettings
from hls_foundry.errors import EndpointError

MODEL, SHARED = "/opt/ml/model", "/run/foundry"  # in the container
LABEL = "hls-foundry.endpoint"
"""Of each container: the endpoint's folder."""

ENGINE_S, NOTICED_S = 120.0, 3.0
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
LEAST_MB, TIMES = 2048, 4  # memory of a container: torch and scenes, and the weights as archive, as files, as tensors and in passing
_GONE = ("no such container", "no such object", "no container with name")


@dataclass(frozen=True)
class ContainerSpec:
    """What a container is made of. `image_id`, the digest of the image's configuration, is what runs; `image` is how it was asked for."""

    engine: str
    image: str
    image_id: str  # sha256:…
    memory_mb: int
    cpus: float | None = None


def container_spec(settings: ContainerSettings, bundle: Path) -> ContainerSpec:
    """What `settings` ask for with this bundle. Raises EndpointError: no engine, no such image, one for another processor."""
    engine, name = find_engine(settings.engine).program, image_name(settings)
    sizes = sum(path.stat().st_size for path in ([bundle] if bundle.is_file() else bundle.rglob("*")) if path.is_file())
    memory = settings.memory_mb or LEAST_MB + TIMES * sizes // 2**20
    return ContainerSpec(engine, name, image_id(engine, name), memory, settings.cpus)


def image_name(settings: ContainerSettings) -> str:
    """The image that is asked for; by default what `make images` of this version makes."""
    return settings.image or f"hls-foundry-serve:{__version__}"


def image_label(engine: str, name: str, label: str) -> str:
    """A label of the image; "" where it has none. Raises EndpointError."""
    return _call(engine, "image", "inspect", "--format", f'{{{{index .Config.Labels "{label}"}}}}', name) or ""


def image_id(engine: str, name: str) -> str:
    """The digest of image `name`. Raises EndpointError where the engine has none of that name, or one for another processor."""
    told = _call(engine, "image", "inspect", "--format", "{{.Id}} {{.Architecture}}", name)
    if told is None:
        raise EndpointError(f"{engine} has no image {name}: build it (make images), or fetch it ({engine} pull {name})")
    digest, architecture = told.split()
    here = ARCHITECTURES.get(platform.machine(), platform.machine())
    if architecture != here:
        raise EndpointError(f"image {name} is for {architecture}, this machine is {here}: build it here (make images)")
    return f"sha256:{digest.removeprefix('sha256:')}"


@dataclass(frozen=True)
class ServerContainer:
    """One server. On file from before its start on, when it has no `pid` yet; `born` as a ServerProcess has it."""

    engine: str
    name: str
    control: str  # folder of its control socket, in the endpoint's folder
    log: str  # where its log is kept once it is gone
    memory_mb: int
    pid: int = 0
    born: str = ""

    def alive(self) -> bool:
        """Needs no engine: a container's first process is one of this machine's."""
        return bool(self.pid) and ServerProcess(self.pid, self.born, "").alive()

    def start(
        self, spec: ContainerSpec, folder: Path, bundle: Path, sockets: Sequence[socket.socket], environment: Mapping[str, str]
    ) -> ServerContainer:
        """Run it with `bundle`, and send it its `sockets`, public and check; returns it with its process. Raises EndpointError.

        `folder`, the endpoint's, must let nobody else in: what is shared with the container is open to every user.
        """
        shared = folder / self.control
        shared.mkdir()
        shared.chmod(0o777)
        told = _run(self.engine, *self._command(spec, folder, shared, bundle, environment), folder=folder)
        if told.returncode:
            raise EndpointError(f"{self.engine} cannot start {spec.image}: {refusal(self.engine, told.stderr)}")
        pid = int(self._tells("{{.State.Pid}}") or 0)
        started = replace(self, pid=pid, born=born_at(pid)[0] if pid else "")
        started._wait_for_control(shared)
        try:
            hand_over(shared, SOCKET, public=sockets[0], check=sockets[1])
        except EndpointError:
            started._check_alive()
            raise
        return started

    def stop(self, seconds: float = KILL_AFTER_S) -> None:
        """Ask it to drain and end, kill it after `seconds`, keep its log and remove it. Nothing happens where it is gone already.

        Raises EndpointError where the engine does not answer.
        """
        if self._tells("{{.Id}}") is None:
            return
        if self.alive():
            self._ask("stop", "-t", str(int(seconds)), self.name)
        lines = self.last_lines(100_000)
        if lines and Path(self.log).parent.is_dir():
            Path(self.log).write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._ask("rm", "--force", "--volumes", self.name)

    def open_port(self, folder: Path) -> None:
        """Tell it to answer on its public socket. Raises EndpointError."""
        open_port(folder / self.control, SOCKET)

    def public_socket(self, folder: Path) -> socket.socket:
        """The listening socket that it answers on, shared with us. Raises EndpointError."""
        return taken_over(folder / self.control, SOCKET)

    def last_lines(self, lines: int) -> list[str]:
        """The end of its log, also after it has ended; nothing where it is gone. Raises EndpointError where the engine does not answer."""
        told = _run(self.engine, "logs", "--tail", str(lines), self.name, merged=True)
        if told.returncode and any(sign in told.stdout.lower() for sign in _GONE):
            return []
        if told.returncode:
            raise EndpointError(f"the log of container {self.name} cannot be read: {refusal(self.engine, told.stdout)}")
        return told.stdout.splitlines()

    def ending(self) -> str:
        """Why it does not run, in a few words; "" where its log says it better."""
        deadline = time.monotonic() + NOTICED_S
        try:
            while (told := self._tells("{{.State.Running}} {{.State.OOMKilled}} {{.State.ExitCode}}")) and told.startswith("true"):
                if time.monotonic() > deadline:  # the engine notices a little later than we do
                    break
                time.sleep(0.1)
        except EndpointError as error:
            return str(error)
        if told is None:
            return "its container was removed"
        running, short, code = told.split()
        if short == "true":
            return f"out of memory: memory_mb is {self.memory_mb}"
        if code == "137":
            return f"killed, perhaps for want of memory: memory_mb is {self.memory_mb}"
        return "" if running == "false" else "its container was started again by somebody: delete the endpoint, or deploy it again"

    # -- what is said to the engine

    def _command(self, spec: ContainerSpec, folder: Path, shared: Path, bundle: Path, environment: Mapping[str, str]) -> list[str]:
        variables = {} if spec.cpus is None else {"OMP_NUM_THREADS": str(max(1, round(spec.cpus)))}
        memory = f"{spec.memory_mb}m"
        command = ["run", "--detach", "--pull", "never", "--name", self.name, "--label", f"{LABEL}={folder}"]
        command += ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        command += ["--security-opt", "label=disable"]  # SELinux would keep the bundle and the sockets from it
        command += ["--memory", memory, "--memory-swap", memory, "--pids-limit", "1024"]
        command += [] if spec.cpus is None else ["--cpus", f"{spec.cpus:g}"]
        command += [
            "--mount",
            f"type=bind,source={bundle},target={MODEL},readonly",
            "--mount",
            f"type=bind,source={shared},target={SHARED}",
        ]
        for name, value in {**variables, **environment}.items():
            command += ["--env", f"{name}={value}"]
        return [*command, spec.image_id, "serve", "--control", f"{SHARED}/{SOCKET}"]

    def _wait_for_control(self, shared: Path, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not (shared / SOCKET).exists():
            self._check_alive()
            if time.monotonic() > deadline:
                raise EndpointError(f"the container made no control socket in {seconds:g} s: is {self.name}'s image of this version?")
            time.sleep(0.02)

    def _check_alive(self) -> None:
        """Raises EndpointError with its last words where it has ended."""
        if not self.alive():
            why = self.ending() or " ".join(self.last_lines(50)[-1:]) or "it said nothing"
            raise EndpointError(f"the container ended at once: {why[:400]}")

    def _tells(self, template: str) -> str | None:
        return _call(self.engine, "container", "inspect", "--format", template, self.name)

    def _ask(self, *command: str) -> None:
        _call(self.engine, *command)


def _call(engine: str, *command: str) -> str | None:
    """What the engine prints; None where it knows no such container or image. Raises EndpointError where it does not do it."""
    told = _run(engine, *command)
    if told.returncode == 0:
        return told.stdout.strip()
    if any(sign in told.stderr.lower() for sign in (*_GONE, "no such image", "image not known", "unable to find")):
        return None
    raise EndpointError(refusal(engine, told.stderr))


def _run(engine: str, *command: str, merged: bool = False, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`merged`: what it says on stderr is among what it prints. Raises EndpointError where there is no such program, or it hangs.

    `folder`: where it runs; podman's monitor leaves a file `oom` there once a container is out of memory.
    """
    errors = subprocess.STDOUT if merged else subprocess.PIPE
    try:
        return subprocess.run(
            [engine, *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            timeout=ENGINE_S,
            check=False,
            cwd=folder,
        )
    except FileNotFoundError:
        raise EndpointError(f"{engine} is not on the PATH: install it again, or put it there") from None
    except subprocess.TimeoutExpired:
        raise EndpointError(f"{engine} {command[0]} did not end within {ENGINE_S:g} s: is the engine stuck?") from None
