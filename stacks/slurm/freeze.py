"""Packs the working tree as it is now, so that a job runs what was submitted, however long it waits."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hls_foundry.errors import SlurmError
from hls_foundry.home import REVISION_FILE, foundry_home

LARGEST_FILE = 50 * 10**6
LARGEST_TREE = 250 * 10**6
LEFT_OUT = frozenset(
    (
        ".git",
        ".venv",
        ".foundry",
        "__pycache__",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".import_linter_cache",
        ".ipynb_checkpoints",
    )
)
"""Outside a Git checkout, where nothing says what is ignored."""

_EPOCH = 315532800  # 1980-01-01: a fixed time, so that the same files make the same bytes; zip knows none before


@dataclass(frozen=True)
class Frozen:
    """The tree as a tar.gz whose members are relative to it, with `.revision`; the same tree makes the same bytes."""

    archive: bytes
    revision: str
    files: int


@dataclass(frozen=True)
class _Member:
    name: str
    path: Path
    status: os.stat_result


def freeze(tree: Path, *, without: Sequence[Path] | None = None) -> Frozen:
    """Pack the files of `tree` that Git tracks or would track, or outside a checkout (or without Git) all but environments and caches.

    Folders in `without` (None: this installation's home) are left out. Symbolic links stay links.
    Raises SlurmError, one line: for a file over 50 MB, a tree over 250 MB, a link that leaves the tree, a file that cannot be read,
    and a checkout that Git refuses to read.
    """
    tree = tree.resolve()
    inside = _inside_checkout(tree)
    left_out = [folder.resolve() for folder in ([foundry_home()] if without is None else without)]
    names = set(_listed(tree)) if inside else set(_walked(tree))
    members = []
    for name in sorted(names - {REVISION_FILE}, key=os.fsencode):
        member = _member(tree, name)
        if member is not None and not any(member.path.is_relative_to(folder) for folder in left_out if folder != tree):
            members.append(member)
    _weigh(members)
    revision = _revision(tree) if inside else _carried_revision(tree)
    return Frozen(_pack(members, revision), revision, len(members))


def _inside_checkout(tree: Path) -> bool:
    """Whether Git says what belongs to `tree`: not in a frozen copy that lies in the ignored part of a checkout."""
    if shutil.which("git") is None or not any((folder / ".git").exists() for folder in (tree, *tree.parents)):
        return False
    return (tree / ".git").exists() or _git(tree, "check-ignore", "-q", ".", accept=(0, 1)).returncode == 1


def _git(tree: Path, *arguments: str, accept: Sequence[int] = (0,)) -> subprocess.CompletedProcess[bytes]:
    # Variables such as GIT_DIR, which hooks set, would speak of another checkout; a look must not rewrite the index either.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {"LC_ALL": "C"}
    command = ["git", "--no-optional-locks", "-C", str(tree), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise SlurmError(f"cannot run git in {tree}: {error}") from None
    if done.returncode not in accept:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[0]
        raise SlurmError(f"git cannot read the checkout {tree}: {said}; `git -C {tree} status` must work before its code can be submitted")
    return done


def _listed(tree: Path) -> Iterator[str]:
    """Names of tracked and of untracked, not ignored files; those of submodules and of checkouts within the tree come along."""
    for raw in _git(tree, "ls-files", "-coz", "--exclude-standard").stdout.split(b"\0"):
        name = os.fsdecode(raw).rstrip("/")
        if not name:
            continue
        inner = tree / name
        if inner.is_dir() and not inner.is_symlink():  # Git names another checkout by its folder alone
            if (inner / ".git").exists():
                yield from (f"{name}/{below}" for below in _listed(inner))
        else:
            yield name


def _walked(tree: Path) -> Iterator[str]:
    for folder, below, files in os.walk(tree):
        here = Path(folder)
        below[:] = [name for name in below if name not in LEFT_OUT and not (here / name / "pyvenv.cfg").exists()]
        links = [name for name in below if (here / name).is_symlink()]
        yield from (str((here / name).relative_to(tree)) for name in (*files, *links) if not name.endswith(".pyc"))


def _member(tree: Path, name: str) -> _Member | None:
    path = tree / name
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None  # tracked, but deleted in the working tree
    except OSError as error:
        raise _unreadable(path, error) from None
    if stat.S_ISLNK(status.st_mode):
        target = os.readlink(path)  # noqa: PTH115 (a Path would tidy the target up)
        lexical = os.path.normpath(Path(name).parent / target)
        if os.path.isabs(target) or lexical.split("/")[0] == ".." or not Path(os.path.realpath(path)).is_relative_to(tree):  # noqa: PTH117
            raise SlurmError(f"{_shown(path)} is a link that leaves the working tree (to {_shown(target)}): add it to .gitignore")
        return _Member(name, path, status)
    return _Member(name, path, status) if stat.S_ISREG(status.st_mode) else None


def _weigh(members: Sequence[_Member]) -> None:
    """Refuse what is data rather than code before reading it."""
    for member in members:
        if member.status.st_size > LARGEST_FILE:
            size = member.status.st_size / 1e6
            raise SlurmError(
                f"{_shown(member.path)} has {size:.0f} MB, and the code of a run takes files up to 50 MB: add it to .gitignore"
            )
    total = sum(member.status.st_size for member in members)
    if total > LARGEST_TREE:
        tops: Counter[str] = Counter()
        for member in members:
            tops[member.name.split("/")[0]] += member.status.st_size
        top, size = tops.most_common(1)[0]
        share = f"{size / 1e6:.0f} of its {total / 1e6:.0f} MB are in {_shown(top)}"
        raise SlurmError(f"the working tree is too large to submit (up to 250 MB): {share}; add data to .gitignore")


def _revision(tree: Path) -> str:
    head = _git(tree, "rev-parse", "--short=12", "--verify", "-q", "HEAD", accept=(0, 1)).stdout.decode().strip()
    if not head:
        return "unknown"  # nothing is committed yet
    return head + ("+changes" if _git(tree, "status", "--porcelain", "-z").stdout else "")


def _carried_revision(tree: Path) -> str:
    """That of a frozen copy, which a running pipeline may submit again; else there is none."""
    try:
        return (tree / REVISION_FILE).read_text(encoding="utf-8").strip() or "unknown"
    except FileNotFoundError:
        return "unknown"


def _pack(members: Sequence[_Member], revision: str) -> bytes:
    packed = io.BytesIO()
    # Level 1: a tenth of the time of level 9 for a fifth more bytes, and someone waits.
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0, filename="") as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as archive,
    ):
        for member in members:
            entry = _entry(member.name, 0o700 if member.status.st_mode & stat.S_IXUSR else 0o600)
            try:
                if stat.S_ISLNK(member.status.st_mode):
                    entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(member.path)  # noqa: PTH115
                    archive.addfile(entry)
                    continue
                content = member.path.read_bytes()
            except OSError as error:
                raise _unreadable(member.path, error) from None
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        text = f"{revision}\n".encode()
        entry = _entry(REVISION_FILE, 0o600)
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    return packed.getvalue()


def _entry(name: str, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = mode, _EPOCH
    return entry


def _unreadable(path: Path, error: OSError) -> SlurmError:
    return SlurmError(f"cannot read {_shown(path)}: {error.strerror or error}; make it readable or add it to .gitignore")


def _shown(path: Path | str) -> str:
    """On one line, whatever a file is called."""
    text = str(path)
    return text if text.isprintable() else ascii(text)
