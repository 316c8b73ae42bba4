"""What is submitted is the working tree as it is: tracked and untracked files, nothing ignored, nothing from outside."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from hls_foundry.errors import SlurmError
from stacks.slurm import freeze as freezing
from stacks.slurm.freeze import Frozen, freeze

ROOT = Path(__file__).resolve().parents[2]


def git(tree: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *identity, *arguments], cwd=tree, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with one commit: `a.py`, and a .gitignore that ignores `*.tif`."""
    tree = tmp_path / "tree"
    tree.mkdir()
    git(tree, "init", "-q")
    (tree / "a.py").write_text("print(1)\n")
    (tree / ".gitignore").write_text("*.tif\n")
    git(tree, "add", "-A")
    git(tree, "commit", "-qm", "first")
    return tree


def unpacked(frozen: Frozen, into: Path) -> Path:
    into.mkdir()
    with tarfile.open(fileobj=io.BytesIO(frozen.archive)) as archive:
        archive.extractall(into, filter="data")
    return into


def names(frozen: Frozen) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(frozen.archive)) as archive:
        return set(archive.getnames())


def test_tracked_edited_and_untracked_files_are_in_and_ignored_ones_are_not(tree: Path, tmp_path: Path) -> None:
    (tree / "a.py").write_text("print(2)\n")
    (tree / "new.py").write_text("print(3)\n")
    (tree / "chip.tif").write_bytes(b"pixels")
    frozen = freeze(tree)
    code = unpacked(frozen, tmp_path / "code")
    assert names(frozen) == {"a.py", "new.py", ".gitignore", ".revision"}
    assert frozen.files == 3
    assert (code / "a.py").read_text() == "print(2)\n"
    assert (code / "new.py").read_text() == "print(3)\n"


def test_the_revision_tells_of_uncommitted_and_of_untracked_changes(tree: Path, tmp_path: Path) -> None:
    head = git(tree, "rev-parse", "--short=12", "HEAD")
    clean = freeze(tree)
    assert clean.revision == head
    assert (unpacked(clean, tmp_path / "clean") / ".revision").read_text() == f"{head}\n"
    (tree / "new.py").touch()
    assert freeze(tree).revision == f"{head}+changes"
    (tree / "new.py").unlink()
    (tree / "a.py").write_text("")
    assert freeze(tree).revision == f"{head}+changes"


def test_a_checkout_without_a_commit_has_an_unknown_revision(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").touch()
    frozen = freeze(tmp_path)
    assert (frozen.revision, frozen.files) == ("unknown", 1)


def test_the_same_tree_makes_the_same_bytes_whatever_the_clock_and_the_permissions_of_others(tree: Path) -> None:
    first = freeze(tree)
    os.utime(tree / "a.py", (1, 1))
    (tree / "a.py").chmod(0o666)
    assert freeze(tree).archive == first.archive
    (tree / "a.py").write_text("print(9)\n")
    assert freeze(tree).archive != first.archive


def test_a_file_deleted_in_the_working_tree_is_not_in(tree: Path) -> None:
    (tree / "folder").mkdir()
    (tree / "folder" / "b.py").touch()
    git(tree, "add", "-A")
    git(tree, "commit", "-qm", "second")
    shutil.rmtree(tree / "folder")
    (tree / "folder").touch()  # a file where Git knows a folder
    (tree / "a.py").unlink()
    assert names(freeze(tree)) == {"folder", ".gitignore", ".revision"}


def test_names_with_spaces_line_breaks_and_bytes_of_no_encoding_survive(tree: Path, tmp_path: Path) -> None:
    odd = [b"two words.py", b"line\nbreak.py", b"latin-\xe9.py", "ünï.py".encode(), b"-o.py", b"d" * 90 + b"/" + b"f" * 90]
    for name in odd:
        path = Path(os.fsdecode(name))
        (tree / path.parent).mkdir(exist_ok=True)
        (tree / path).write_bytes(name)
    code = unpacked(freeze(tree), tmp_path / "code")
    assert [(code / os.fsdecode(name)).read_bytes() for name in odd] == odd


def test_programs_stay_executable_and_nothing_is_for_others(tree: Path, tmp_path: Path) -> None:
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o775)
    code = unpacked(freeze(tree), tmp_path / "code")
    assert (code / "run.sh").stat().st_mode & 0o777 == 0o700
    assert (code / "a.py").stat().st_mode & 0o777 == 0o600


def test_links_within_the_tree_stay_links(tree: Path, tmp_path: Path) -> None:
    (tree / "sub").mkdir()
    (tree / "sub" / "back.py").symlink_to("../a.py")
    (tree / "folder").symlink_to("sub")
    (tree / "broken").symlink_to("nowhere")
    code = unpacked(freeze(tree), tmp_path / "code")
    assert (code / "sub" / "back.py").readlink() == Path("../a.py")
    assert (code / "folder").readlink() == Path("sub")
    assert (code / "broken").readlink() == Path("nowhere")


@pytest.mark.parametrize("target", ["../outside.py", "/etc/hostname", "sub/up/../../../outside.py"])
def test_a_link_that_leaves_the_tree_is_refused_in_one_line(tree: Path, target: str) -> None:
    (tree / "sub").mkdir()
    (tree / "link.py").symlink_to(target)
    with pytest.raises(SlurmError, match=r"link\.py is a link that leaves the working tree .*\.gitignore") as refused:
        freeze(tree)
    assert "\n" not in str(refused.value)


def test_an_absolute_link_into_the_tree_is_refused_for_it_would_show_later_edits(tree: Path) -> None:
    (tree / "link.py").symlink_to(tree / "a.py")
    with pytest.raises(SlurmError, match=r"link\.py"):
        freeze(tree)


def test_a_large_file_is_refused_by_name_until_it_is_ignored(tree: Path) -> None:
    with (tree / "weights.pt").open("wb") as file:
        file.truncate(freezing.LARGEST_FILE + 1)
    with pytest.raises(SlurmError, match=r"weights\.pt has 50 MB.*\.gitignore"):
        freeze(tree)
    (tree / ".gitignore").write_text("*.pt\n")
    assert freeze(tree).files == 2


def test_many_files_of_data_are_refused_with_the_folder_that_holds_them(tree: Path) -> None:
    (tree / "chips").mkdir()
    for number in range(6):
        with (tree / "chips" / f"{number}.bin").open("wb") as file:
            file.truncate(freezing.LARGEST_FILE - 1)
    started = time.process_time()
    with pytest.raises(SlurmError, match=r"300 of its 300 MB are in chips"):
        freeze(tree)
    assert time.process_time() - started < 0.2  # refused before anything is read


def test_submodules_and_checkouts_within_the_tree_come_along(tree: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    (library / "lib.py").write_text("library\n")
    (library / ".gitignore").write_text("*.log\n")
    git(library, "add", "-A")
    git(library, "commit", "-qm", "library")
    git(tree, "submodule", "--quiet", "add", str(library), "ext/library")
    git(tree, "commit", "-qm", "add")
    (tree / "ext" / "library" / "noise.log").touch()
    (tree / "ext" / "library" / "draft.py").touch()
    shutil.copytree(library, tree / "clone")
    found = names(freeze(tree))
    assert {"ext/library/lib.py", "ext/library/draft.py", "clone/lib.py"} <= found
    assert "ext/library/noise.log" not in found
    assert not any(".git/" in name or name.endswith(".git") for name in found)


def test_a_submodule_that_was_not_fetched_is_an_empty_folder_not_the_whole_checkout(tree: Path, tmp_path: Path) -> None:
    git(tree, "submodule", "--quiet", "add", str(_other(tmp_path)), "ext")
    git(tree, "commit", "-qm", "add")
    git(tree, "submodule", "--quiet", "deinit", "-f", "ext")
    assert names(freeze(tree)) == {"a.py", ".gitignore", ".gitmodules", ".revision"}


def _other(tmp_path: Path) -> Path:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    (other / "x.py").touch()
    git(other, "add", "-A")
    git(other, "commit", "-qm", "other")
    return other


def test_a_home_inside_the_tree_is_left_out_though_nothing_ignores_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "work" / "runs").mkdir(parents=True)
    (tree / "work" / "runs" / "log").write_text("earlier run\n")
    monkeypatch.setenv("HLS_FOUNDRY_HOME", str(tree / "work"))
    assert names(freeze(tree)) == {"a.py", ".gitignore", ".revision"}
    assert "work/runs/log" in names(freeze(tree, without=[]))


def test_outside_a_checkout_everything_but_environments_and_caches_is_in(tmp_path: Path) -> None:
    for name in (
        "a.py",
        "sub/b.py",
        ".venv/bin/python",
        "env/pyvenv.cfg",
        "env/lib.py",
        ".foundry/runs/x",
        "__pycache__/a.pyc",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("sub")
    frozen = freeze(tmp_path)
    assert names(frozen) == {"a.py", "sub/b.py", "link", ".revision"}
    assert frozen.revision == "unknown"


def test_without_git_the_tree_is_walked(tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tree / "chip.tif").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    frozen = freeze(tree)
    assert names(frozen) == {"a.py", ".gitignore", "chip.tif", ".revision"}
    assert frozen.revision == "unknown"


def test_a_frozen_copy_in_the_ignored_part_of_a_checkout_can_be_frozen_again(tree: Path) -> None:
    (tree / ".gitignore").write_text(".foundry/\n")
    first = freeze(tree)
    (tree / ".foundry").mkdir()
    code = unpacked(first, tree / ".foundry" / "code")
    again = freeze(code)
    assert again.revision == first.revision
    assert names(again) == names(first)


def test_a_checkout_that_git_refuses_is_one_line(tree: Path) -> None:
    (tree / ".git" / "HEAD").write_text("nonsense")
    with pytest.raises(SlurmError, match=r"git cannot read the checkout .*git -C .* status") as refused:
        freeze(tree)
    assert "\n" not in str(refused.value)


def test_git_variables_of_a_hook_do_not_lead_elsewhere(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert freeze(tree).files == 2


def test_a_file_that_cannot_be_read_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root, who may run this, can read every file
    with pytest.raises(SlurmError, match=r"cannot read .*\.gitignore: Permission denied; make it readable"):
        freeze(tree)


def test_this_repository_is_frozen_in_a_moment() -> None:
    """In CPU time, that of Git included: the wall's depends on what else the machine does."""
    spent = []
    for _ in range(3):
        before = sum(os.times()[:4])
        frozen = freeze(ROOT)
        spent.append(sum(os.times()[:4]) - before)
    assert {"run.py", "stacks/slurm/freeze.py", ".revision"} <= names(frozen)
    assert min(spent) < 0.3, spent
