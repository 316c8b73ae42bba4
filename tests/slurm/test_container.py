"""The script that starts a command in a step's container: what it tells each runtime, what it lets through, and what it refuses."""

from __future__ import annotations

import ast
import json
import os
import platform
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from hls_foundry.errors import ConfigError
from stacks.slurm import contained
from stacks.slurm.container import MACHINES, Container, ContainerSettings, render_container_script
from stacks.slurm.container_inside import difference, refusal
from stacks.slurm.image import FOLDER, REGISTRY, SIF, SQUASHFS, Image, inspect_image
from stacks.slurm.run_directory import RunDirectory
from stacks.slurm.settings import Resources, SlurmSettings, parse_settings
from stacks.slurm.submission import StepJob
from stacks.slurm.transport import LocalTransport

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).resolve().parents[2]
RUN = RunDirectory(PurePosixPath("/shared/runs/0b54c1"))
SIF_HEAD = b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\0" + b"01\0" + b"%s\0" + bytes(16)
ECHO = "#!/usr/bin/python3\nimport json, os, sys; print(json.dumps({'argv': sys.argv[1:], 'env': dict(os.environ)}))\n"


def container(runtime: str = "apptainer", run: RunDirectory = RUN, **chosen: Any) -> Container:
    image = chosen.pop("image", "/shared/images/train.sif")
    known = {key: chosen.pop(key) for key in ("places", "variables", "gpus", "digest", "size", "zenml") if key in chosen}
    return Container(
        settings=ContainerSettings(runtime=runtime, image=image, **chosen),
        folder=run.step("fine_tune").root,
        code=run.code,
        commands=run.commands,
        **known,
    )


WHOLE = {
    "places": (str(RUN.root), "/shared/home", "/shared/zenml"),
    "variables": ("HLS_FOUNDRY_HOME", "NOTE"),
    "gpus": True,
    "digest": "sha256:" + 64 * "0",
    "zenml": "0.98.0",
}
SCRIPTS = {
    "apptainer": container("apptainer", size=700, binds=["/data:/chips"], **WHOLE),
    "charliecloud": container("charliecloud", image="/shared/images/train.sqfs", **WHOLE),
    "pyxis": container("pyxis", image="registry.example.org#hls/train:1", python="/opt/foundry/bin/python", **WHOLE),
}


@pytest.mark.parametrize("runtime", SCRIPTS)
def test_scripts_are_as_on_file(runtime: str) -> None:
    assert render_container_script(SCRIPTS[runtime]) == (GOLDEN / f"container_{runtime}.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", [render_container_script(made) for made in SCRIPTS.values()])
def test_scripts_are_bash(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


# --- settings ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"runtime": "docker", "image": "/a"}, "apptainer"),
        ({"runtime": "apptainer"}, "without an image"),
        ({"runtime": "apptainer", "image": "train.sif"}, "absolute path"),
        ({"runtime": "charliecloud", "image": "train:1"}, "absolute path"),
        ({"runtime": "pyxis", "image": "./train.sqsh"}, "absolute path"),
        ({"runtime": "apptainer", "image": "/a\nb"}, "not a path"),
        ({"runtime": "apptainer", "image": "/a", "binds": ["data"]}, "PATH:INSIDE"),
        ({"runtime": "apptainer", "image": "/a", "binds": ["/a:/b:ro"]}, "PATH:INSIDE"),
        ({"runtime": "apptainer", "image": "/a", "imge": "/b"}, "imge"),
    ],
)
def test_settings_that_no_runtime_can_be_told_are_refused_in_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=r"site\.yaml: 'container") as refused:
        parse_settings({"container": given}, "site.yaml")
    assert said in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_step_may_have_another_image_or_none() -> None:
    stack = SlurmSettings(container={"runtime": "apptainer", "image": "/a.sif", "binds": ["/data"]})
    assert stack.merged(SlurmSettings(time="10")).container == stack.container
    assert not stack.merged(SlurmSettings(container={"runtime": "none"})).container.active
    assert stack.merged(SlurmSettings(container={"runtime": "apptainer", "image": "/b.sif"})).container.image == "/b.sif"
    assert not SlurmSettings().container.active


def test_a_place_with_a_colon_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be bound"):
        render_container_script(container(places=("/a:b",)))


# --- under a real bash, with a program in the runtime's place that shows what it was told ----------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(PurePosixPath(tmp_path / "run"))
    for folder in (run.step("fine_tune").root, run.code, run.commands, PurePosixPath(tmp_path / "bin")):
        Path(folder).mkdir(parents=True)
    for name in ("apptainer", "srun"):
        program = tmp_path / "bin" / name
        program.write_text(ECHO)
        program.chmod(0o755)
    image = tmp_path / "train.sif"
    image.write_bytes(SIF_HEAD % MACHINES[platform.machine()].encode())
    return run


def start(run: RunDirectory, made: Container, **environment: str) -> subprocess.CompletedProcess[str]:
    folder = Path(run.root).parent
    script = folder / "container.sh"
    script.write_text(render_container_script(made))
    told = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(folder), **environment}
    return subprocess.run(["bash", str(script), "python", "-m", "one"], env=told, capture_output=True, text=True, check=False)


def test_nothing_of_the_host_s_python_comes_along_and_what_a_step_needs_does(run: RunDirectory, tmp_path: Path) -> None:
    leaks = {"PYTHONPATH": "/a", "PYTHONHOME": "/a", "VIRTUAL_ENV": "/a", "CONDA_PREFIX": "/a", "LD_LIBRARY_PATH": "/a", "LD_PRELOAD": "",
             "APPTAINERENV_PYTHONPATH": "/a", "SECRET": "hush", "BASH_FUNC_ls%%": "() { id; }"}  # fmt: skip
    kept = {"SLURM_JOB_ID": "7", "HLS_RUN_ID": "r", "ZENML_STORE_API_KEY": "hush", "OMP_NUM_THREADS": "1", "NCCL_DEBUG": "INFO",
            "CUDA_VISIBLE_DEVICES": "0", "NOTE": "it's $5;\nreally"}  # fmt: skip
    made = container(run=run, image=str(tmp_path / "train.sif"), variables=("NOTE",), places=(str(run.root),))
    answer = json.loads(start(run, made, **leaks, **kept).stdout)
    code = str(run.code)
    assert {name: value for name, value in answer["env"].items() if name in {**leaks, **kept}} == {
        **kept, "PYTHONPATH": code, "APPTAINERENV_PYTHONPATH": code
    }  # fmt: skip
    assert not [name for name in answer["env"] if name.startswith("BASH_FUNC")]
    assert (answer["env"]["PYTHONNOUSERSITE"], answer["env"]["HLS_INSIDE_PYTHON"]) == ("1", "python")
    won = {name.removeprefix("APPTAINERENV_"): value for name, value in answer["env"].items() if name.startswith("APPTAINERENV_")}
    assert won.items() >= {**kept, "PYTHONPATH": code}.items()
    assert not {"PATH", "HOME"} & won.keys()
    assert "hush" not in " ".join(answer["argv"])
    assert answer["argv"][-4:] == [str(tmp_path / "train.sif"), "python", "-m", "one"]


def test_places_are_bound_once_as_they_are_called_and_as_they_are(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "real" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    places = (str(run.root), str(tmp_path / "link" / "data"), str(tmp_path / "real" / "yet" / "to" / "come"))
    made = container(run=run, image=str(tmp_path / "train.sif"), places=places, binds=[f"{tmp_path / 'real'}:/chips"])
    argv = json.loads(start(run, made).stdout)["argv"]
    bound = [argv[number + 1] for number, word in enumerate(argv) if word == "--bind"]
    same = [tmp_path / "link" / "data", tmp_path / "real" / "data", tmp_path / "real", run.root]
    assert bound == [*(f"{path}:{path}" for path in same), f"{tmp_path / 'real'}:/chips"]
    assert "--nv" not in argv
    assert "--nv" in json.loads(start(run, replace(made, gpus=True)).stdout)["argv"]


def test_pyxis_is_told_by_srun_s_options_for_the_step_and_for_its_ranks(run: RunDirectory, tmp_path: Path) -> None:
    made = container("pyxis", run, image="registry#hls/train:1", places=(str(run.root),))
    answer = json.loads(start(run, made, SLURMD_NODENAME="n1", SLURM_NTASKS="4").stdout)
    options = ["--container-image=registry#hls/train:1", f"--container-mounts=/tmp:/tmp,{run.root}:{run.root}"]
    assert [word for word in answer["argv"] if word.startswith(("--container-i", "--container-mo"))] == options
    assert {"--overlap", "--nodes=1", "--ntasks=1", "--nodelist=n1"} <= set(answer["argv"])
    assert answer["env"]["HLS_TASK_COMMAND"] == "python -m stacks.slurm.container_inside"
    assert all(option in shlex.split(answer["env"]["HLS_SRUN_OPTIONS"]) for option in options)
    assert "SLURM_NTASKS" not in answer["env"]


BAD = {
    "missing": ("no image", lambda image: image.unlink()),
    "of another size": ("not the one of the submission", lambda image: image.write_bytes(b"1")),
    "no SIF": ("no SIF file", lambda image: image.write_bytes(bytes(67))),
    "another machine's": ("another architecture", lambda image: image.write_bytes(SIF_HEAD % b"99")),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_image_that_cannot_run_is_refused_in_one_line(kind: str, run: RunDirectory, tmp_path: Path) -> None:
    said, spoil = BAD[kind]
    image = tmp_path / "train.sif"
    made = container(run=run, image=str(image), size=image.stat().st_size if "size" in kind else None)
    assert start(run, made).returncode == 0
    spoil(image)
    answer = start(run, made)
    assert answer.returncode == 1
    assert said in answer.stderr
    assert (answer.stderr.count("\n"), answer.stderr.startswith(f"container on {platform.node()}: ")) == (1, True)


def test_a_runtime_that_is_not_there_is_told_in_one_line(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "bin" / "apptainer").unlink()
    answer = start(run, container(run=run, image=str(tmp_path / "train.sif")))
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert "no apptainer on the PATH" in answer.stderr
    other = container(run=run, image=str(tmp_path / "train.sif"), command=[str(tmp_path / "bin" / "srun"), "--debug"])
    assert json.loads(start(run, other).stdout)["argv"][:2] == ["--debug", "--quiet"]


def test_a_bind_that_is_not_there_is_told_in_one_line(run: RunDirectory, tmp_path: Path) -> None:
    answer = start(run, container(run=run, image=str(tmp_path / "train.sif"), binds=["/not/there"]))
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert "/not/there is not there to be bound" in answer.stderr


# --- images ----------------------------------------------------------------------------------------------------------------------


def test_images_are_known_by_their_first_bytes_and_their_digest(tmp_path: Path) -> None:
    sif, squash, folder = tmp_path / "a.sif", tmp_path / "a.sqfs", tmp_path / "a"
    sif.write_bytes(SIF_HEAD % MACHINES[platform.machine()].encode())
    squash.write_bytes(b"hsqs" + bytes(92))
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "sh").symlink_to("/bin/dash")
    (folder / "bin" / "dash").write_bytes(Path("/bin/sh").resolve().read_bytes())
    found = inspect_image(ContainerSettings(runtime="apptainer", image=str(sif)), tmp_path / "home")
    told = subprocess.run(["sha256sum", sif], capture_output=True, text=True, check=True).stdout.split()[0]
    assert (found.kind, found.digest, found.size, found.machine) == (SIF, f"sha256:{told}", sif.stat().st_size, platform.machine())
    assert inspect_image(ContainerSettings(runtime="charliecloud", image=str(squash)), tmp_path / "home").kind == SQUASHFS
    unpacked = ContainerSettings(runtime="charliecloud", image=str(folder))
    before = inspect_image(unpacked, tmp_path / "home")
    assert (before.kind, before.machine, before.fits) == (FOLDER, platform.machine(), True)
    (folder / "bin" / "more").write_text("1")
    assert inspect_image(unpacked, tmp_path / "home").digest != before.digest
    named = inspect_image(ContainerSettings(runtime="pyxis", image=f"registry#hls/train@sha256:{64 * 'a'}"), tmp_path / "home")
    assert (named.kind, named.digest) == (REGISTRY, f"sha256:{64 * 'a'}")


def test_a_digest_is_computed_again_only_where_the_file_has_changed(tmp_path: Path) -> None:
    image, home = tmp_path / "a.sqfs", tmp_path / "home"
    image.write_bytes(b"hsqs" + bytes(92))
    settings = ContainerSettings(runtime="charliecloud", image=str(image))
    first = inspect_image(settings, home)
    noted = json.loads((home / "image-digests.json").read_text())
    (home / "image-digests.json").write_text(json.dumps({name: [stamp, "noted"] for name, (stamp, _) in noted.items()}))
    assert inspect_image(settings, home).digest == "sha256:noted"
    os.utime(image, ns=(1, 1))
    assert inspect_image(settings, home).digest == first.digest


def test_the_jobs_of_a_submission_look_at_an_image_once(run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def looks(settings: ContainerSettings) -> Image:
        looked.append(str(settings.image))
        return inspect_image(settings, tmp_path / "home")

    monkeypatch.setattr(contained, "inspect_image", looks)
    monkeypatch.setattr(contained, "_places", lambda job: ())
    other = tmp_path / "other.sif"
    other.write_bytes((tmp_path / "train.sif").read_bytes() + b"more")
    jobs: list[StepJob] = []
    for image, binds in ((tmp_path / "train.sif", []), (tmp_path / "train.sif", ["/data"]), (other, []), (tmp_path / "train.sif", [])):
        asked = SlurmSettings(container=ContainerSettings(runtime="apptainer", image=str(image), binds=binds))
        jobs.append(contained.contained_job(StepJob(asked, Resources()), run, run.step("a"), LocalTransport(), beside=jobs))
    assert looked == [str(tmp_path / "train.sif"), str(other)]
    made = [job.container for job in jobs if job.container]
    assert [container.digest for container in made[:2]] == [made[3].digest] * 2 != [made[2].digest] * 2
    assert [container.size for container in made] == [
        image.stat().st_size for image in (tmp_path / "train.sif",) * 2 + (other, tmp_path / "train.sif")
    ]
    assert made[1].settings.binds == ["/data"]


@pytest.mark.parametrize(
    ("runtime", "content", "said"),
    [("apptainer", None, "cannot be read"), ("apptainer", b"hsqs", "takes a SIF file"), ("charliecloud", b"junk", "of another kind")],
)
def test_an_image_that_is_none_is_refused_before_anything_is_submitted(
    tmp_path: Path, runtime: str, content: bytes | None, said: str
) -> None:
    image = tmp_path / "image"
    if content is not None:
        image.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as refused:
        inspect_image(ContainerSettings(runtime=runtime, image=str(image)), tmp_path / "home")
    assert str(refused.value).isprintable()


# --- what is inside ----------------------------------------------------------------------------------------------------------------


def test_an_image_with_another_zenml_or_none_is_refused_and_other_packages_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from importlib import metadata

    monkeypatch.setattr(metadata, "version", {"zenml": "0.98.0", "torch": "2.13.0+cpu", "numpy": "2.0.0"}.__getitem__)
    assert refusal("0.98.0") == refusal("") == ""
    assert "has ZenML 0.98.0, and the run was submitted by 0.99.0" in refusal("0.99.0")
    lock = tmp_path / "requirements.lock"
    lock.write_text("# by hand\nnumpy==2.4.0\ntorch==2.13.0\n")
    assert difference(lock).endswith("requirements.lock of the code: numpy 2.0.0 for 2.4.0")
    assert difference(tmp_path / "none") == ""

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert "has no ZenML" in refusal("0.98.0")
    assert difference(lock) == ""


HOST_SIDE = ("supervisor", "attempts", "node_usage", "own_job", "processes", "verdicts", "container_host")


@pytest.mark.parametrize("name", HOST_SIDE)
def test_what_runs_on_the_host_takes_any_python_from_3_9_and_no_packages(name: str) -> None:
    source = (ROOT / "stacks" / "slurm" / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.rpartition(".")[2] for module in imported if module.startswith(("stacks", "hls_foundry"))} <= set(HOST_SIDE)
    assert not {"UTC", "pairwise", "StrEnum"} & {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
