"""What a step asks of Slurm (`SlurmSettings`), and what a stack says of its cluster (`SlurmOrchestratorConfig`)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from zenml.config import ResourceSettings
from zenml.config.base_settings import BaseSettings
from zenml.orchestrators import BaseOrchestratorConfig

from hls_foundry.errors import ConfigError
from stacks.slurm import values
from stacks.slurm.container import ContainerSettings
from stacks.slurm.script import Resources

__all__ = ["ContainerSettings", "Resources", "SlurmOrchestratorConfig", "SlurmSettings", "parse_settings", "resources_of"]

NAMES = ("partition", "account", "qos", "reservation", "constraint", "gres", "mail_user")
COUNTS = ("nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "warning_s", "max_restarts", "max_restarts_without_progress")


class SlurmSettings(BaseSettings):  # type: ignore[misc]  # ZenML's classes are not read by mypy
    """What one step's job asks for. A stack gives defaults, a step overrides them; None leaves it to the cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partition: str | None = Field(None, description="partition, or several with commas, of which Slurm takes the first that is free")
    account: str | None = Field(None, description="account (project) that is charged")
    qos: str | None = Field(None, description="quality of service")
    reservation: str | None = Field(None, description="reservation to run in")
    constraint: str | None = Field(None, description="features of the nodes: a, a&b, a|b, [a*2&b*4]")
    time: str | None = Field(None, description="limit of the whole job: '90' (minutes), '1:30:00', '1-12:00:00'; None: the partition's")
    nodes: int = Field(1, ge=1, le=65535, description="whole number of nodes")
    tasks_per_node: int | None = Field(None, ge=1, le=4096, description="tasks of one node; 1 where nothing is said")
    cpus_per_task: int | None = Field(None, ge=1, le=4096, description="CPUs of one task; else ResourceSettings.cpu_count of a node")
    memory: str | None = Field(None, description="of each node: '8GB', '8GiB'; '0': all it has; else ResourceSettings.memory")
    gpus_per_node: int | None = Field(None, ge=0, le=1024, description="GPUs of each node; else ResourceSettings.gpu_count")
    gres: str | None = Field(None, description="generic resources of each node, such as gpu:a100:4; where it names gpu, nothing else does")
    exclusive: bool = Field(False, description="no other job on the job's nodes")
    hint: Literal["compute_bound", "memory_bound", "multithread", "nomultithread"] | None = Field(None, description="binding to cores")
    mail_user: str | None = Field(None, description="who gets mail")
    mail_type: str | None = Field(None, description="on which events: END,FAIL,REQUEUE,…")
    flags: list[str] = Field(default_factory=list, description="further long options of sbatch, --name or --name=value")
    modules: list[str] = Field(default_factory=list, description="modules to load, in this order")
    setup: list[str] = Field(
        default_factory=list, description="shell lines that run before the step, each complete in itself; a failing one ends the job"
    )
    environment: dict[str, str] = Field(default_factory=dict, description="variables of the job; they are in its script, so no secrets")
    container: ContainerSettings = Field(default_factory=ContainerSettings, description="what the step and its ranks run in")
    warning_s: int = Field(
        120, ge=30, le=65535, description="seconds before the time limit at which training is told to save; at most half of the limit"
    )
    max_restarts: int = Field(10, ge=0, le=1000, description="by Slurm: preemption, time limit, node failure")
    max_restarts_without_progress: int = Field(3, ge=0, le=1000, description="restarts in a row without a new checkpoint")

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for key in given:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.0)[0]
                    raise ValueError(f"unknown key {str(key)!r} (the nearest known one is '{near}')")
        return given

    @field_validator(*NAMES, "time", "memory", "mail_type", "hint", mode="before", check_fields=True)
    @classmethod
    def _text(cls, given: Any, info: ValidationInfo) -> Any:
        # YAML reads 10:00:00 as 36000, 0123 as 83 and no as False: only text says what was meant. 0 for memory means itself.
        if info.field_name == "memory" and given == 0 and not isinstance(given, bool):
            return "0"
        if given is not None and not isinstance(given, str):
            raise ValueError(f"must be text, not {given!r}: put the value in quotes")
        return given

    @field_validator(*COUNTS, mode="before")
    @classmethod
    def _count(cls, given: Any) -> Any:
        if isinstance(given, bool):
            raise ValueError("must be a whole number")
        return given

    @field_validator(*NAMES)
    @classmethod
    def _name(cls, given: str | None, info: ValidationInfo) -> str | None:
        return given if given is None else values.name(str(info.field_name), given)

    @field_validator("time")
    @classmethod
    def _time(cls, given: str | None) -> str | None:
        return given if given is None else values.canonical_time(values.seconds(given))

    @field_validator("memory")
    @classmethod
    def _memory(cls, given: str | None) -> str | None:
        if given is not None:
            values.mebibytes(given)
        return given

    @field_validator("mail_type")
    @classmethod
    def _mail_type(cls, given: str | None) -> str | None:
        return given if given is None else values.mail_types(given)

    @field_validator("flags")
    @classmethod
    def _flags(cls, given: list[str]) -> list[str]:
        return [values.flag(option) for option in given]

    @field_validator("modules")
    @classmethod
    def _modules(cls, given: list[str]) -> list[str]:
        return [values.name("module", module) for module in given]

    @field_validator("setup")
    @classmethod
    def _setup(cls, given: list[str]) -> list[str]:
        return [values.one_line(line) for line in given]

    @field_validator("environment", mode="before")
    @classmethod
    def _environment(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {_variable(key): _value(key, value) for key, value in given.items()}

    @property
    def time_s(self) -> int | None:
        """The time limit in seconds; None where the partition's holds."""
        return None if self.time is None else values.seconds(self.time)

    @property
    def memory_mib(self) -> int | None:
        """Memory of each node in MiB; 0 is all of it."""
        return None if self.memory is None else values.mebibytes(self.memory)

    def merged(self, over: SlurmSettings | None) -> SlurmSettings:
        """These as defaults under what was set in `over`: lists are replaced, the environment is merged."""
        own = {key: value for key, value in self.model_dump(exclude_unset=True).items() if key in SlurmSettings.model_fields}
        chosen = {} if over is None else over.model_dump(exclude_unset=True)
        chosen = {key: value for key, value in chosen.items() if key in SlurmSettings.model_fields}
        if "environment" in chosen:
            chosen["environment"] = {**self.environment, **chosen["environment"]}
        return SlurmSettings(**{**own, **chosen})


class SlurmOrchestratorConfig(BaseOrchestratorConfig, SlurmSettings):  # type: ignore[misc]  # as above
    """A cluster, how to reach it, and the defaults of its jobs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(description="where run folders go, on a file system that login and compute nodes share")
    python: str | None = Field(None, description="Python on the cluster, with this project's packages; None: the submitting one")
    login: str | None = Field(None, description="user@host of a login node, reached by ssh; None: sbatch is on this machine")
    ssh_options: list[str] = Field(default_factory=list, description="arguments of ssh, such as -p 2222")
    slurm_conf: str | None = Field(None, description="SLURM_CONF of the Slurm commands; None: the system's")
    closing_partition: str | None = Field(None, description="partition of the job that writes a run's end; None: that of the steps")
    closing_account: str | None = Field(None, description="its account; None: that of the steps")
    closing_qos: str | None = Field(None, description="its quality of service; None: that of the steps")
    closing_time: str = Field("10", description="its time limit")
    closing_memory: str | None = Field(None, description="its memory; None: what writing the end needs")
    poll_s: float = Field(5, ge=0.2, le=3600, description="seconds between two looks at the queue")
    synchronous: bool = Field(True, description="wait for the run's end after submission")

    @field_validator("folder", "python", "slurm_conf")
    @classmethod
    def _path(cls, given: str | None) -> str | None:
        return given if given is None else values.path(given)

    @field_validator("login")
    @classmethod
    def _login(cls, given: str | None) -> str | None:
        return given if given is None else values.name("login", given)

    @field_validator("ssh_options")
    @classmethod
    def _ssh_options(cls, given: list[str]) -> list[str]:
        return [values.one_line(option) for option in given]

    @field_validator("closing_partition", "closing_account", "closing_qos", "closing_time", "closing_memory", mode="before")
    @classmethod
    def _closing(cls, given: Any, info: ValidationInfo) -> Any:
        checked = cls._text(given, info)
        field = str(info.field_name).removeprefix("closing_")
        if checked is None:
            return None
        if field == "time":
            return values.canonical_time(values.seconds(checked))
        if field == "memory":
            values.mebibytes(checked)
            return checked
        return values.name(field, checked)

    @model_validator(mode="after")
    def _remote_paths(self) -> SlurmOrchestratorConfig:
        if self.login is not None:
            for key in ("folder", "python"):
                if not str(getattr(self, key) or "").startswith("/"):
                    raise ValueError(f"'{key}' must be an absolute path on the cluster where 'login' is set")
        return self

    @property
    def is_synchronous(self) -> bool:
        """Whether `run` waits for the end."""
        return self.synchronous

    @property
    def handles_step_retries(self) -> bool:
        """True: the jobs' supervisor retries, without a client."""
        return True

    def defaults(self) -> SlurmSettings:
        """What the stack gives to every step."""
        return self.merged(None)

    def closing_settings(self) -> SlurmSettings:
        """What the job that writes a run's end asks for: one small node, without GPUs, with the stack's way of starting Python."""
        base = self.defaults().model_dump(
            exclude_unset=True,
            include={"partition", "account", "qos", "reservation", "constraint", "hint", "modules", "setup", "environment", "container"},
        )
        if self.closing_partition is not None:  # reservations and features are those of the other partition's nodes
            base = {key: value for key, value in base.items() if key not in ("reservation", "constraint")} | {
                "partition": self.closing_partition
            }
        chosen = {"account": self.closing_account, "qos": self.closing_qos, "memory": self.closing_memory}
        return SlurmSettings(**base | {key: value for key, value in chosen.items() if value is not None} | {"time": self.closing_time})


def parse_settings(given: Mapping[str, Any], where: str) -> SlurmSettings:
    """Settings from a stack file or a configuration. Raises ConfigError, one line that begins with `where` and names the key."""
    try:
        return SlurmSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        problem = " ".join(first["msg"].removeprefix("Value error, ").split())
        raise ConfigError(f"{where}: {f'{key!r}: ' if key else ''}{problem}") from None


def resources_of(settings: ResourceSettings) -> Resources:
    """ZenML's resources of a step, which are those of each of its nodes: CPUs, GPUs, and memory in MiB, rounded up.

    Raises ConfigError for a memory of nothing, which ZenML lets pass.
    """
    memory = settings.memory
    try:
        mib = None if memory is None else values.mebibytes(memory)
    except ValueError as error:
        raise ConfigError(f"ResourceSettings: 'memory': {error}") from None
    return Resources(cpus=settings.cpu_count, gpus=settings.gpu_count, memory_mib=mib)


def _variable(key: Any) -> str:
    checked = values.variable(str(key))
    if checked == "PYTHONPATH":
        raise ValueError("PYTHONPATH cannot be set: the job script points it at the run's own code")
    return checked


def _value(key: Any, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{key}: must be text, not {value!r}: put the value in quotes")
    text = str(value)
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError(f"{key}: a value in the job script is one line")
    return text
