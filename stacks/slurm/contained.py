"""Puts a step's job into its container: which places it needs to see, and the digest of the image that it is going to run in."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from zenml.client import Client
from zenml.config.global_config import GlobalConfiguration

from stacks.slurm.container import Container
from stacks.slurm.image import Image, inspect_image, inspect_remote
from stacks.slurm.run_directory import RunDirectory, StepFolder
from stacks.slurm.script import asks_for_gpus
from stacks.slurm.submission import StepJob
from stacks.slurm.transport import LocalTransport, Transport

HOME = "HLS_FOUNDRY_HOME"


def contained_job(
    job: StepJob,
    run: RunDirectory,
    step: StepFolder,
    transport: Transport,
    outer: RunDirectory | None = None,
    beside: Iterable[StepJob] = (),
) -> StepJob:
    """`job` with the container that its settings ask for; as it is where they ask for none. Raises ConfigError for an image that is none.

    `outer`: the run whose frozen code an isolated step shares. `beside`: jobs of the same submission, whose images are known by now: to
    look at a folder of many files, or at a file across ssh, takes seconds.
    """
    settings = job.settings.container
    if not settings.active:
        return job
    base = outer or run
    image = _known(job, beside) or _image(job, transport)
    container = Container(
        settings=settings,
        folder=step.root,
        code=base.code,
        commands=base.commands,
        places=(str(base.root), *_places(job)),
        variables=tuple(job.settings.environment),
        gpus=asks_for_gpus(job.settings, job.resources),
        digest=image.digest,
        size=image.size,
        zenml=metadata.version("zenml"),
    )
    return replace(job, container=container)


def _known(job: StepJob, beside: Iterable[StepJob]) -> Image | None:
    wanted = job.settings.container
    for other in (other.container for other in beside if other.container):
        if (other.settings.runtime, other.settings.image) == (wanted.runtime, wanted.image):
            return Image("", digest=other.digest, size=other.size)
    return None


def _image(job: StepJob, transport: Transport) -> Image:
    settings, here = job.settings.container, os.environ.get("HLS_IMAGE", "")
    if here.startswith(f"{settings.runtime} {settings.image} "):  # in that very container, where its own file is not to be seen
        return Image("", digest=here.rpartition(" ")[2])
    return inspect_image(settings) if isinstance(transport, LocalTransport) else inspect_remote(settings, transport)


def _places(job: StepJob) -> Iterator[str]:
    """ZenML's store and artifacts, and this project's home, as far as they are folders."""
    configuration = GlobalConfiguration()
    yield configuration.local_stores_path
    url = configuration.store_configuration.url
    if url.startswith("sqlite:"):
        yield str(Path(url.removeprefix("sqlite:///")).parent)
    artifacts = str(Client().active_stack.artifact_store.path)
    if artifacts.startswith("/"):
        yield artifacts
    if home := job.settings.environment.get(HOME) or os.environ.get(HOME):
        yield home


def image_names(jobs: Sequence[StepJob]) -> list[str]:
    """The images of a run: runtime, image, digest, each once."""
    return sorted({job.container.name for job in jobs if job.container})
