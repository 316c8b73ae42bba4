"""Turns what a step's job asks for into the text of its batch script: a pure function, free of ZenML."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from hls_foundry.errors import ConfigError
from stacks.slurm import values
from stacks.slurm.run_directory import StepFolder

if TYPE_CHECKING:
    from stacks.slurm.settings import SlurmSettings

SHORTEST_LIMIT_S = 60
"""Slurm rounds time limits up to whole minutes."""

_LOAD_MODULES = """\
if ! type module > /dev/null 2>&1; then
  for init in "${LMOD_PKG:-}/init/bash" "${MODULESHOME:-}/init/bash" /etc/profile.d/lmod.sh /etc/profile.d/modules.sh; do
    if [ -r "$init" ]; then source "$init"; break; fi
  done
fi
type module > /dev/null 2>&1 || give_up "the settings ask for modules, but this node has no 'module': see /etc/profile.d, or remove them"
""".rstrip()


@dataclass(frozen=True)
class Resources:
    """What a step needs on each of its nodes; Slurm settings that say the same thing win."""

    cpus: float | None = None
    gpus: int | None = None
    memory_mib: int | None = None


@dataclass(frozen=True)
class JobScript:
    """One job: what it asks for, where it writes, what it runs.

    `environment_files` are sourced in this order; `command` replaces the script's shell. `requeue`: Slurm may start the job again;
    `signal`: the command gets USR1 ahead of the time limit.
    """

    name: str
    settings: SlurmSettings
    resources: Resources
    step: StepFolder
    code: PurePosixPath
    environment_files: tuple[PurePosixPath, ...]
    command: tuple[str, ...]
    comment: str = ""
    requeue: bool = True
    signal: bool = True


def render_job_script(job: JobScript) -> str:
    """The batch script. Raises ConfigError, one line, for a path that Slurm cannot be given and a command that no process can have."""
    if not job.command or any("\0" in word for word in job.command):
        raise ConfigError(f"the command of the job {job.name!r} is empty or holds a NUL byte")
    directives = "\n".join(f"#SBATCH {option}" for option in _options(job))
    return f"#!/bin/bash\n{directives}\n\n{_body(job)}\nexec {shlex.join(job.command)}\n"


def render_environment(variables: Mapping[str, str]) -> str:
    """Shell text that exports `variables`; whatever a value holds stays a value. Raises ConfigError for bad names and NUL bytes."""
    return "".join(f"{line}\n" for line in _exports(variables))


def _exports(variables: Mapping[str, str]) -> list[str]:
    for key, value in variables.items():
        try:
            values.variable(key)
        except ValueError as error:
            raise ConfigError(f"environment of the job: {error}") from None
        if "\0" in value:
            raise ConfigError(f"environment of the job: the value of {key} holds a NUL byte")
    return [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]


def _options(job: JobScript) -> list[str]:
    settings = job.settings
    # %j and the like are for Slurm to fill in, in --output alone: a per cent sign of the path is written twice.
    log = _path(job.step.log).replace("%", "%%")
    return [
        f"--job-name={_quoted(job.name)}",
        f"--output={_quoted(log)}",
        "--open-mode=append",
        f"--chdir={_quoted(_path(job.code))}",
        *_size(settings, job.resources),
        *_places(settings),
        "--requeue" if job.requeue else "--no-requeue",
        *([f"--signal=B:USR1@{warning_ahead(settings)}"] if job.signal else []),
        "--export=NONE",
        "--kill-on-invalid-dep=yes",
        *([f"--comment={_quoted(job.comment)}"] if job.comment else []),
        *(_flag(flag) for flag in settings.flags),
    ]


def asks_for_gpus(settings: SlurmSettings, resources: Resources) -> bool:
    """Whether the job is to have GPUs, in whichever way that is said."""
    gpus = resources.gpus if settings.gpus_per_node is None else settings.gpus_per_node
    return bool(gpus) or _names_gpus(settings)


def _names_gpus(settings: SlurmSettings) -> bool:
    return settings.gres is not None and any(re.match(r"(gres[:/])?gpu\b", entry) for entry in settings.gres.split(","))


def _size(settings: SlurmSettings, resources: Resources) -> list[str]:
    tasks = settings.tasks_per_node or 1
    cpus = settings.cpus_per_task or (None if resources.cpus is None else max(1, math.ceil(resources.cpus / tasks)))
    memory = resources.memory_mib if settings.memory_mib is None else settings.memory_mib
    gpus = resources.gpus if settings.gpus_per_node is None else settings.gpus_per_node
    # The same GPUs asked for twice, as gres and as GPUs, is an error on some versions and twice the GPUs on none.
    options = [f"--nodes={settings.nodes}", f"--ntasks-per-node={tasks}"]
    options += [f"--cpus-per-task={cpus}"] if cpus else []
    options += [f"--mem={memory}M"] if memory else ["--mem=0"] if memory == 0 else []
    options += [f"--gpus-per-node={gpus}"] if gpus and not _names_gpus(settings) else []
    return options + ([f"--gres={_quoted(settings.gres)}"] if settings.gres else [])


def _places(settings: SlurmSettings) -> list[str]:
    named = {
        "time": settings.time,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "reservation": settings.reservation,
        "constraint": settings.constraint,
        "hint": settings.hint,
        "mail-user": settings.mail_user,
        "mail-type": settings.mail_type,
    }
    options = [f"--{option}={_quoted(value)}" for option, value in named.items() if value]
    return options + (["--exclusive"] if settings.exclusive else [])


def warning_ahead(settings: SlurmSettings) -> int:
    """Seconds before its time limit that a job gets USR1: as set, but at most half of the limit as Slurm rounds it."""
    if settings.time_s is None:
        return settings.warning_s
    limit = max(SHORTEST_LIMIT_S, math.ceil(settings.time_s / 60) * 60)
    return min(settings.warning_s, limit // 2)


def _body(job: JobScript) -> str:
    settings = job.settings
    modules = [
        _LOAD_MODULES,
        *(f"module load {shlex.quote(m)} || give_up {shlex.quote(f'cannot load the module {m}')}" for m in settings.modules),
    ]
    missing = "is not there: is the run's folder on a file system that this node sees?"
    files = {path: shlex.quote(str(path)) for path in job.environment_files}
    lines = [
        "umask 077",
        'give_up() { echo "job script on $(hostname): $1" >&2; exit 1; }',
        *(f"[ -r {file} ] || give_up {shlex.quote(f'{path} {missing}')}\nsource {file}" for path, file in files.items()),
        # Modules and activation scripts read variables that are not set, and test for failures that are none.
        *(modules if settings.modules else []),
        "set -eo pipefail",
        """trap 'give_up "line $LINENO failed with exit code $?"' ERR""",
        # eval: a quote or a here-document that a line leaves open ends with that line.
        *(f"eval {shlex.quote(line)}" for line in settings.setup),
        *_exports(settings.environment),
        "set -u",
        "unset SLURM_EXPORT_ENV  # srun passes the environment on",
        '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun no longer takes it from the job',
        f"cd {shlex.quote(str(job.code))}",
        f"export PYTHONPATH={shlex.quote(str(job.code))} PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1",
    ]
    return "\n".join(lines)


def _path(path: PurePosixPath) -> str:
    try:
        text = values.path(str(path))
    except ValueError as error:
        raise ConfigError(f"run folder: {error}; choose another 'folder'") from None
    if not path.is_absolute():
        raise ConfigError(f"run folder: {text} is not absolute")
    return text


def _flag(flag: str) -> str:
    option, equals, value = flag.partition("=")
    return f"{option}={_quoted(value)}" if equals else option


def _quoted(value: str) -> str:
    """`value` as sbatch reads one word of a directive: no shell is involved; quotes group, a backslash escapes, # begins a comment."""
    inert = "".join(character if character.isprintable() else "_" for character in value)
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", inert):
        return inert
    return '"' + inert.replace("\\", "\\\\").replace('"', '\\"') + '"'
