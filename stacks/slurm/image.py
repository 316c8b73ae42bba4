"""What a container's image is, seen from where runs are submitted: its kind, architecture, size and digest.

A digest of gigabytes takes seconds, so it is kept in HOME/image-digests.json for as long as size and time of change stay the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hls_foundry.errors import ConfigError
from hls_foundry.home import foundry_home
from stacks.slurm.attempts import replacing
from stacks.slurm.container import MACHINES, ContainerSettings
from stacks.slurm.transport import Transport

SIF, SQUASHFS, FOLDER, REGISTRY = "SIF file", "SquashFS file", "folder", "registry image"
_SIF_HEADER = re.compile(rb".{32}SIF_MAGIC\0.{3}(..)\0", re.DOTALL)
_BLOCK = 2**20


@dataclass(frozen=True)
class Image:
    """`digest`: sha256:… of the file, of a folder's files with their names, or the registry's; empty where there is none.

    `size` in bytes, of a file; `machine`: as `uname -m` calls it, empty where the image does not say.
    """

    kind: str
    digest: str = ""
    size: int | None = None
    machine: str = ""

    @property
    def fits(self) -> bool:
        """Whether a machine like this one can run it, as far as the image says."""
        return self.machine in ("", platform.machine())


def inspect_image(settings: ContainerSettings, home: Path | None = None) -> Image:
    """The image on this machine's file system. Raises ConfigError, one line, where it is not there, or not what the runtime takes."""
    name = settings.image or ""
    if not settings.is_file:
        return Image(REGISTRY, digest=found[0] if (found := re.search(r"sha256:[0-9a-f]{64}", name)) else "")
    path = Path(name)
    try:
        if path.is_dir():
            kind, machine = FOLDER, _machine_of_program(path / "bin" / "sh", path)
        else:
            with path.open("rb") as file:
                kind, machine = _kind(file.read(64))
    except OSError as error:
        raise ConfigError(f"container.image {name} cannot be read ({error.strerror}): build it (docs/hpc.md), or mend the path") from None
    wanted = {"apptainer": (SIF, FOLDER), "charliecloud": (SQUASHFS, FOLDER), "pyxis": (SQUASHFS,)}[settings.runtime]
    if kind not in wanted:
        raise ConfigError(
            f"container.image {name} is a {kind or 'file of another kind'}, and {settings.runtime} takes a {' or a '.join(wanted)}"
        )
    try:
        return Image(kind, f"sha256:{_digest(path, home or foundry_home())}", None if kind == FOLDER else path.stat().st_size, machine)
    except OSError as error:
        raise ConfigError(f"container.image {name}: {error.filename} cannot be read ({error.strerror}): chmod it for this user") from None


def inspect_remote(settings: ContainerSettings, transport: Transport) -> Image:
    """The same across ssh, for a file; of a folder there is no digest."""
    name = settings.image or ""
    if not settings.is_file:
        return inspect_image(settings)
    said = transport.run(["sh", "-c", '[ ! -f "$1" ] || { stat -Lc %s "$1" && sha256sum < "$1"; }', "sh", name], timeout=600).stdout.split()
    return Image(FOLDER) if len(said) < 2 else Image("file", f"sha256:{said[1]}", int(said[0]))


def _kind(head: bytes) -> tuple[str, str]:
    """(kind, machine) by a file's first bytes."""
    if found := _SIF_HEADER.match(head):
        codes = {code: machine for machine, code in MACHINES.items()}
        return SIF, codes.get(found[1].decode("ascii", "replace"), "another architecture")
    return (SQUASHFS if head.startswith(b"hsqs") else ""), ""


def _machine_of_program(program: Path, root: Path) -> str:
    """The machine that an ELF file is for; its links lead on within `root`. Empty where that is not to be found out."""
    for _ in range(8):
        if not program.is_symlink():
            break
        target = program.readlink()
        program = root / str(target).lstrip("/") if target.is_absolute() else program.parent / target
    try:
        head = program.open("rb").read(20)
    except OSError:
        return ""
    machines = {0x03: "i386", 0x3E: "x86_64", 0x28: "armv7l", 0xB7: "aarch64", 0x15: "ppc64le", 0x16: "s390x", 0xF3: "riscv64"}
    return machines.get(int.from_bytes(head[18:20], "little"), "another architecture") if head.startswith(b"\x7fELF") else ""


def _digest(path: Path, home: Path) -> str:
    real = path.resolve()
    stamp = hashlib.sha256("\n".join(_stamps(real)).encode("utf-8", "surrogateescape")).hexdigest()
    notes = home / "image-digests.json"
    try:
        known: dict[str, list[str]] = json.loads(notes.read_bytes())
    except (OSError, ValueError):
        known = {}
    if known.get(str(real), [""])[0] == stamp:
        return known[str(real)][1]
    digest = hashlib.sha256()
    for file in _files(real):
        if real.is_dir():
            digest.update(
                f"\0{file.relative_to(real)}\0{file.readlink() if file.is_symlink() else ''}\0".encode("utf-8", "surrogateescape")
            )
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
    with suppress(OSError):  # then it is computed again
        home.mkdir(parents=True, exist_ok=True)
        with replacing(notes) as partial:
            partial.write_text(json.dumps(known | {str(real): [stamp, digest.hexdigest()]}), encoding="utf-8")
    return digest.hexdigest()


def _stamps(real: Path) -> Iterator[str]:
    for file in _files(real):
        status = file.lstat()
        yield f"{file} {status.st_size} {status.st_mtime_ns} {status.st_ino}"


def _files(real: Path) -> Iterator[Path]:
    """The file, or all files and links below a folder, sorted; not the devices and processes of a running system."""
    if not real.is_dir():
        yield real
        return
    for folder, below, names in os.walk(real):
        below.sort()
        links = [name for name in below if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in sorted([*names, *links]))
