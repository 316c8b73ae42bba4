"""What a step's container is (`ContainerSettings`), and the script that starts a command in it: a pure function, as script.py is.

The script cleans the environment down to `PASSED`, so that nothing of the host's Python reaches the image's, and binds the places that
a step works in. It runs on every node, in bash, and needs nothing there but the container's runtime.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hls_foundry.errors import ConfigError
from stacks.slurm import values
from stacks.slurm.container_host import PASSED

Runtime = Literal["apptainer", "charliecloud", "pyxis", "none"]
PROGRAMS = {"apptainer": "apptainer", "charliecloud": "ch-run", "pyxis": "srun"}
"""What starts a container where the settings name no other command."""
ON_THE_WAY = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "XDG_RUNTIME_DIR", "APPTAINER_*", "SINGULARITY_*", "ENROOT_*", "CH_*")
"""Variables that runtimes themselves read. What is for the inside of a container, APPTAINERENV_*, is not among them."""
MACHINES = {"i386": "01", "x86_64": "02", "armv7l": "03", "aarch64": "04", "ppc64le": "06", "s390x": "10", "riscv64": "11"}
"""`uname -m` and the architecture that a SIF file's header names."""


class ContainerSettings(BaseModel):
    """The image that a step and its ranks run in, and what starts it there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: Runtime = Field("none", description="what runs it; none: no container")
    image: str | None = Field(None, description="SIF file; SquashFS file or folder (charliecloud); also a registry's image (pyxis)")
    binds: list[str] = Field(default_factory=list, description="further places that are to be seen inside: PATH or PATH:INSIDE")
    command: list[str] = Field(default_factory=list, description="words that start the runtime, where its name on the PATH does not do")
    python: str = Field("python", description="the image's Python: a path in it, or a name on its PATH")

    @field_validator("command", mode="before")
    @classmethod
    def _words(cls, given: Any) -> Any:
        return shlex.split(given) if isinstance(given, str) else given

    @field_validator("command")
    @classmethod
    def _lines(cls, given: list[str]) -> list[str]:
        return [values.one_line(word) for word in given]

    @field_validator("image", "python")
    @classmethod
    def _text(cls, given: str | None) -> str | None:
        return given if given is None else values.path(given)

    @field_validator("binds")
    @classmethod
    def _binds(cls, given: list[str]) -> list[str]:
        for bind in given:
            if not re.fullmatch(r"/[^:,]*(:/[^:,]*)?", values.path(bind)):
                raise ValueError(f"{bind!r} is not PATH or PATH:INSIDE: absolute paths without colons and commas")
        return given

    @model_validator(mode="after")
    def _whole(self) -> ContainerSettings:
        if self.runtime == "none":
            return self
        if not self.image:
            raise ValueError(f"runtime {self.runtime} without an image: set 'image'")
        if not self.image.startswith("/") and (self.runtime != "pyxis" or self.image.startswith(".")):
            raise ValueError(f"image {self.image!r} must be an absolute path on the cluster")
        return self

    @property
    def active(self) -> bool:
        """Whether there is a container at all."""
        return self.runtime != "none"

    @property
    def is_file(self) -> bool:
        """Whether the image is a path, not a registry's name."""
        return bool(self.image and self.image.startswith("/"))


@dataclass(frozen=True)
class Container:
    """A container of one step: the settings with all that its script needs.

    `places` are bound where they are (or their nearest folder that exists); `variables` are passed on besides `PASSED`; `digest` of the
    image goes into the lineage, `size` in bytes is compared on the node; None where it is not known. `zenml`: the version to insist on.
    """

    settings: ContainerSettings
    folder: PurePosixPath
    code: PurePosixPath
    commands: PurePosixPath
    places: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    gpus: bool = False
    digest: str = ""
    size: int | None = None
    zenml: str = ""

    @property
    def name(self) -> str:
        """For the lineage: runtime, image, digest."""
        return " ".join(filter(None, (self.settings.runtime, self.settings.image, self.digest)))


def contained_command(python: str, folder: PurePosixPath, command: Sequence[str]) -> tuple[str, ...]:
    """`command`, whose first word is the image's Python, in the container of `folder`; `python` is the host's."""
    return (python, "-m", "stacks.slurm.container_host", str(folder), "--", *command)


def host_command_script() -> str:
    """The text of each program that stands in the container for one of Slurm's commands."""
    return '#!/bin/sh\nexec "$HLS_INSIDE_PYTHON" -m stacks.slurm.container_client "${0##*/}" "$@"\n'


def render_container_script(container: Container) -> str:
    """`container.sh COMMAND …`, as bash. Raises ConfigError, one line, for a place that no runtime can be told."""
    for place in container.places:
        if re.search(r"[:,\n]", place) or not place.startswith("/"):
            raise ConfigError(f"container: {place} cannot be bound: a path without colons and commas is needed")
    image = container.settings.image or ""
    lines = [
        "#!/bin/bash",
        "# container.sh COMMAND …: runs it in this step's container; what it may see of the host is all in here.",
        'give_up() { echo "container on $(hostname): $1" >&2; exit 1; }',
        f"image={shlex.quote(image)}",
        *(_image_checks(container) if container.settings.is_file else []),
        f"runtime=({shlex.join(container.settings.command or [PROGRAMS[container.settings.runtime]])})",
        _FIND_RUNTIME.format(name=container.settings.runtime),
        _clean(container),
        *_places(container),
        *_exports(container),
        *_STARTS[container.settings.runtime](container),
    ]
    return "\n".join(lines) + "\n"


_FIND_RUNTIME = """\
program=$(command -v "${{runtime[0]}}") || give_up "no ${{runtime[0]}} on the PATH, which is to run {name}: \
add its module to 'modules', or say where it is with container.command\""""

_PLACES = """\
binds=()
seen() {
  for known in "${binds[@]}"; do case "$1/" in "${known%%:*}"/*) [ "${known%%:*}" != "${known#*:}" ] || return 0 ;; esac; done
  return 1
}
place() {  # as it is called and as it really is; one that is yet to be made by the folder that it will be in
  local there=$1; while [ ! -e "$there" ]; do there=$(dirname "$there"); done
  for there in "$there" "$(readlink -f "$there")"; do [ "$there" = / ] || seen "$there" || binds+=("$there:$there"); done
}
given() { [ -e "${1%%:*}" ] || give_up "${1%%:*} is not there to be bound: see container.binds"; binds+=("${1%%:*}:${1#*:}"); }"""


def _image_checks(container: Container) -> list[str]:
    image_is = '[ "$(stat -Lc %s "$image")" = "{size}" ] || [ -d "$image" ]'
    lines = [
        '[ -e "$image" ] || give_up "no image $image: put it on a file system that this node sees (container.image)"',
        '[ -r "$image" ] || give_up "the image $image cannot be read by $(id -un): chmod a+r it, and a+x its folders"',
    ]
    if container.size is not None:
        lines.append(
            f'{image_is.format(size=container.size)} || give_up "the image $image is not the one of the submission any more: submit again"'
        )
    if container.settings.runtime == "apptainer":
        cases = " ".join(f"{machine}) arch={code} ;;" for machine, code in MACHINES.items())
        lines += [
            f'case $(uname -m) in {cases} *) arch="??" ;; esac',
            'header=$([ -d "$image" ] || head -c 64 "$image" | tr -d "\\0")',
            'if [ -f "$image" ]; then case "$header" in',
            "  *SIF_MAGIC01$arch*) ;;",
            '  *SIF_MAGIC*) give_up "the image $image is for another architecture than this node ($(uname -m)): build it for that" ;;',
            '  *) give_up "the image $image is no SIF file, or a damaged one: build or copy it again" ;;',
            "esac; fi",
        ]
    return lines


def _clean(container: Container) -> str:
    names = "|".join((*PASSED, *ON_THE_WAY, *sorted(container.variables)))
    return (
        'while read -r _ _ name; do unset -f "$name"; done < <(declare -Fx)\n'
        f'for name in $(compgen -e); do case $name in {names}) ;; *) unset "$name" ;; esac; done'
    )


def _places(container: Container) -> list[str]:
    own = (str(container.folder), str(container.code), str(container.commands))
    return [
        _PLACES,
        *(f"place {shlex.quote(place)}" for place in _outermost((*own, *container.places))),
        *(f"given {shlex.quote(bind)}" for bind in container.settings.binds),
    ]


def _outermost(places: Iterable[str]) -> list[str]:
    """Without those that lie in others."""
    paths = sorted({PurePosixPath(place) for place in places})
    return [str(path) for path in paths if not any(other != path and path.is_relative_to(other) for other in paths)]


def _exports(container: Container) -> list[str]:
    exported = {
        "PYTHONPATH": str(container.code),  # the frozen code, before the image's own
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "HLS_IMAGE": container.name,
        "HLS_INSIDE_PYTHON": container.settings.python,
        "HLS_INSIDE_HOME": str(container.folder / "home"),
        "HLS_INSIDE_COMMANDS": str(container.commands),
        "HLS_INSIDE_ZENML": container.zenml,
    }
    return [f"export {name}={shlex.quote(value)}" for name, value in exported.items()]


_SHIELD = """\
# Slurm may signal every process of a job; the one that serves the image's files has to outlive the others.
mkdir -p "$shield" && for name in squashfuse_ll squashfuse fuse2fs; do
  real=$(command -v "$name") || continue
  printf '#!/bin/bash\\ntrap "" TERM USR1 INT\\nexec %q "$@"\\n' "$real" > "$shield/.$$"
  chmod 700 "$shield/.$$" && mv "$shield/.$$" "$shield/$name"
done
# Under these names they win over an image's own: its HLS_FOUNDRY_HOME, say.
for name in $(compgen -e); do case $name in
  PATH|HOME|SHELL|SHLVL|PWD|OLDPWD|_|XDG_*|APPTAINER*|SINGULARITY*) ;;
  *) export "APPTAINERENV_$name=${!name}" ;;
esac; done
export PATH="$shield:$PATH\""""


def _apptainer(container: Container) -> list[str]:
    return [
        f"shield={shlex.quote(str(container.folder))}/shield/$(hostname)",
        _SHIELD,
        'options=(); for bind in "${binds[@]}"; do options+=(--bind "$bind"); done',
        f'exec "$program" "${{runtime[@]:1}}" --quiet exec --no-home --no-mount cwd{" --nv" if container.gpus else ""} \\',
        f'  --pwd {shlex.quote(str(container.code))} "${{options[@]}}" "$image" "$@"',
    ]


_CHARLIECLOUD = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin USER=${USER:-$(id -un)}
# It cannot make mount points in an image that is read only: whatever empty folder of the image leads to a place is bound instead.
look='for p; do q=$p; while [ ! -d "$q" ]; do q=$(dirname "$q"); done; [ "$q" = "$p" ] || [ -z "$(ls -A "$q")" ] || q=/; echo "$q"; done
[ ! -e /ch/environment ] || echo environment'
wanted=(); for bind in "${binds[@]}"; do case "${bind#*:}" in /tmp|/tmp/*) ;; *) wanted+=("$bind") ;; esac; done
said=$("$program" "${runtime[@]:1}" "$image" -- /bin/sh -c "$look" sh "${wanted[@]#*:}" 2>&1) \\
  || give_up "ch-run cannot run the image $image here: ${said##*$'\\n'}"
mapfile -t found <<< "$said"
options=()
for number in "${!wanted[@]}"; do
  from=${wanted[number]%%:*} to=${wanted[number]#*:} point=${found[number]}
  [ "$point" != / ] || give_up "the image $image has no folder $to to bind $from at: mkdir -p it in the image's folder (before ch-convert)"
  [ "$point" = "$to" ] || { [ "$from" = "$to" ] && from=$point to=$point; } \\
    || give_up "the image $image has no folder $to to bind $from at: mkdir -p it in the image's folder (before ch-convert)"
  case " ${options[*]} " in *" --bind=$from:$to "*) ;; *) options+=("--bind=$from:$to") ;; esac
done
own() {  # the variables that an image's own must not replace, in a file and so on no command line
  for name in $(compgen -e); do case "$name${!name}" in PATH*|*$'\n'*) ;; *) printf "%s='%s'\n" "$name" "${!name}" ;; esac; done
}
unset TMPDIR
[ "${found[-1]}" != environment ] || { exec {variables}< <(own); options+=(--set-env --env-no-expand "--set-env=/dev/fd/$variables"); }"""


def _charliecloud(container: Container) -> list[str]:
    code = shlex.quote(str(container.code))
    return [_CHARLIECLOUD, f'exec "$program" "${{runtime[@]:1}}" --cd={code} "${{options[@]}}" "$image" -- "$@"']


_PYXIS = """\
export HLS_SRUN_OPTIONS HLS_TASK_COMMAND
mounts=$(IFS=,; echo "/tmp:/tmp,${binds[*]}")
own=$(compgen -e | grep -Ev '^(PATH|LANG|LC_.*|TERM)$' | paste -sd,)  # of these an image's own values do not win
options=("--container-image=$image" "--container-mounts=$mounts" --no-container-mount-home "--container-workdir=$PYTHONPATH")
options+=("--container-env=$own")
HLS_SRUN_OPTIONS=$(printf '%q ' "${options[@]}") HLS_TASK_COMMAND="$1 -m stacks.slurm.container_inside"
# The plugin is srun's: the step is a task of its own on the first node, beside which the step's own srun finds room.
unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_CPU_BIND SLURM_DISTRIBUTION SLURM_HINT
exec "$program" "${runtime[@]:1}" --nodes=1 --ntasks=1 --overlap --nodelist="$SLURMD_NODENAME" --cpu-bind=none --export=ALL --input=none \\
  "${options[@]}" "$@"
"""


def _pyxis(container: Container) -> list[str]:
    return [_PYXIS]


_STARTS = {"apptainer": _apptainer, "charliecloud": _charliecloud, "pyxis": _pyxis}
