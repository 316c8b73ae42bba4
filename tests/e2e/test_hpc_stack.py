"""`--stack hpc` as a user runs it: on nodes without a route outside, then deployed here; and as a user without privileges."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from stacks.aws.rehearsal import Rehearsal
from stacks.slurm.rehearsal_network import can_name_hosts
from stacks.slurm.rehearsal_processes import missing_programs
from tests.conftest import ROOT, missing
from tests.e2e.login_node import SMALL, STEPS, LoginNode, ended, on_a_cluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

SHAPE = ("--nodes", "2", "--cpus", "2", "--memory", "3300")
QUICK = ("--set", "training.max_steps=4")
NOBODY = 65534
AS_NOBODY = (
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"
)  # fmt: skip
ISOLATED = os.geteuid() == 0 and can_name_hosts() and not missing_programs(["ip", "nsenter"])
# Where the way to the interpreter is closed to others (/root), show them a file tree in which it is not; nothing else is changed.
OPEN_WAY = """
mkdir -p "$2" && mount --bind "$1" "$2" && mount -t tmpfs -o mode=755 tmpfs "$3" && mkdir -p "$1" && mount --bind "$2" "$1" || exit 99
shift 3; exec "$@"
"""


# What ZenML's store says of a model version: which run made its bundle, which ones put it in S3 and tested its endpoint.
LINEAGE = """
import json, sys
from zenml.client import Client
version = Client().get_model_version(sys.argv[1], sys.argv[2])
facts = version.run_metadata
print(json.dumps({
    "made_by": str(version.get_artifact("model bundle").producer_pipeline_run_id),
    "placed_by": facts["placed_by"], "tested_by": facts["inference_test"]["run"], "s3": facts["s3_uri"],
}))
"""


# Of an object in S3, from outside.
DIGEST = """
import hashlib, sys, boto3
print(hashlib.sha256(boto3.client("s3").get_object(Bucket=sys.argv[1], Key=sys.argv[2])["Body"].read()).hexdigest(), end="")
"""
TREE = ("cli", "configs", "hls_foundry", "pipelines", "stacks", "steps", "run.py")


@dataclass
class Finished:
    """A run of run.py that ended well: what it printed, and its summary."""

    login: LoginNode
    stdout: str
    stderr: str
    summary: dict[str, Any]


def train(login: LoginNode, name: str) -> Finished:
    file = login.folder / f"{name}.json"
    answer = login.run(*login.hpc(*QUICK, "--json", str(file)))
    return Finished(login, answer.stdout, answer.stderr, json.loads(file.read_text()))


def publishing_to_s3(login: LoginNode, rehearsal: Rehearsal) -> LoginNode:
    """The same user with a copy of the code whose site s3 publishes to the rehearsal; credentials are in a profile of the user's own."""
    here, bucket = rehearsal.environment, rehearsal.prepare().bucket
    profile = {
        "endpoint_url": here["AWS_ENDPOINT_URL"],
        "region": here["AWS_REGION"],
        "aws_access_key_id": here["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": here["AWS_SECRET_ACCESS_KEY"],
    }
    config, tree = login.folder / "aws-config", login.folder / "tree"
    config.write_text("\n".join(["[profile lab]", *(f"{key} = {value}" for key, value in profile.items())]))
    for name in TREE:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tree / name)
    site = yaml.safe_load((tree / "stacks" / "sites" / "rehearsal.yaml").read_text())
    site["settings"]["slurm"]["environment"] = {"AWS_CONFIG_FILE": str(config)}
    site["publish"] = {"folder": "", "bucket": bucket, "prefix": "from-the-cluster", "aws": {"profile": "lab"}}
    (tree / "stacks" / "sites" / "s3.yaml").write_text(yaml.safe_dump(site))
    return LoginNode(login.folder, login.before, login.more, tree)


@pytest.fixture(scope="module")
def unprivileged(aws_rehearsal: Rehearsal) -> Iterator[tuple[LoginNode, subprocess.Popen[str]] | None]:
    """A user without privileges, on a cluster of its own that publishes to S3, and its run.py; None where that is what all tests are."""
    if os.geteuid() != 0:
        yield None
        return
    folder = Path("/tmp") / f"hls-nobody-{os.getpid()}"  # pytest's own folders are root's
    folder.mkdir(mode=0o700)
    try:
        (folder / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")  # the checkout is root's
        environment = {"HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        user = publishing_to_s3(LoginNode(folder, (*open_way(folder), *AS_NOBODY), environment), aws_rehearsal)
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(folder)], check=True)
        asked = (*QUICK, "--site", "s3", "--json", str(folder / "run.json"))
        with on_a_cluster(user, *SHAPE) as login, login.start(*login.hpc(*asked)) as process:
            yield login, process
            process.kill()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, unprivileged: object) -> Iterator[Finished]:
    """The whole pipeline, on nodes without a network where this machine can have such."""
    network = ("--network", "isolated") if ISOLATED else ()
    with on_a_cluster(LoginNode(tmp_path_factory.mktemp("login")), *SHAPE, *network) as login:
        yield train(login, "first")


def test_summary_has_all_that_was_promised(first: Finished) -> None:
    summary = first.summary
    assert (summary["status"], summary["stack"]) == ("completed", "hpc")
    assert [run["pipeline"] for run in summary["runs"]] == ["train"]
    assert summary["data"]["chips"] == summary["data"]["valid"] == 16
    assert {"miou", "iou", "f1", "accuracy"} <= set(summary["metrics"]["test"])
    assert summary["metrics"]["baseline"]["name"] == "MNDWI"
    assert (summary["model"]["version"], summary["model"]["stage"]) == ("1", "production")
    assert set(summary["timings_s"]) == set(STEPS)


def test_published_archive_has_the_digest_of_the_summary(first: Finished) -> None:
    digest = subprocess.run(["sha256sum", first.summary["model"]["uri"]], capture_output=True, text=True, check=True).stdout.split()[0]
    assert digest == first.summary["model"]["sha256"]


def test_cost_of_every_step_is_told_and_plausible(first: Finished) -> None:
    slurm = first.summary["slurm"]
    assert list(slurm["steps"]) == STEPS
    for name, step in slurm["steps"].items():
        nodes = 2 if name == "fine_tune" else 1
        assert (step["state"], step["nodes"], step["restarts"]) == ("COMPLETED", nodes, 0), name
        assert step["node_hours"] == pytest.approx(nodes * step["elapsed_s"] / 3600, rel=1e-3)
        assert step["elapsed_s"] >= first.summary["timings_s"][name] * 0.9
        assert 0 <= step["wait_s"] < 300
        assert 0.01 < step["cpu_efficiency"] <= 1
        assert 1e8 < step["max_rss_bytes"] < 3.3e9
    assert slurm["node_hours"] == pytest.approx(sum(step["node_hours"] for step in slurm["steps"].values()), rel=1e-3)
    assert len({step["job_id"] for step in slurm["steps"].values()}) == len(STEPS)


def test_what_happens_is_told_while_it_happens(first: Finished) -> None:
    told = first.stderr
    for step in STEPS:
        jobs = re.findall(rf"^{step}: job (\d+) (\w+)", told, re.MULTILINE)
        assert {number for number, _ in jobs} == {str(first.summary["slurm"]["steps"][step]["job_id"])}
        assert jobs[-1][1] == "COMPLETED"
    assert re.search(r"^fine_tune +│ .*fine-tuning on 2 nodes,", told, re.MULTILINE)
    assert "Traceback" not in told


def test_report_has_a_section_on_slurm(first: Finished) -> None:
    report = Path(re.findall(r"^report +(\S+)", first.stdout, re.MULTILINE)[0]).read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", report)
    for heading in ("At a glance", "Fine-tuning", "Data", "Slurm", "Lineage"):
        assert f"<h2>{heading}</h2>" in report
    section = report.partition("<h2>Slurm</h2>")[2].partition("</section>")[0]
    assert all(step in section for step in STEPS)
    assert first.summary["slurm"]["folder"] in section


def test_run_folder_is_the_user_s_alone_and_so_is_what_it_says_of_the_environment(first: Finished) -> None:
    folder = Path(first.summary["slurm"]["folder"])
    assert folder.stat().st_mode & 0o777 == 0o700
    environments = [folder / "environment", *folder.glob("steps/*/environment"), *folder.glob("steps/*/job.sh")]
    assert len(environments) == 1 + 2 * len(STEPS)
    assert {path.stat().st_mode & 0o777 for path in environments} == {0o600}


def test_no_node_had_a_route_outside(first: Finished) -> None:
    if not ISOLATED:
        missing("network namespaces need root, its right to make them, and iproute2")
    look = "ip route get 8.8.8.8 2>&1; ip -o route | grep -c default"
    answer = first.login.slurm("srun", "--nodes=2", "--ntasks-per-node=1", "bash", "-c", f"{look}; true")
    assert answer.count("unreachable") == 2, answer
    assert re.findall(r"^\d+$", answer, re.MULTILINE) == ["0", "0"]
    assert "network isolated" in first.login.run("cluster", "status").stdout


def test_the_model_from_the_cluster_is_deployed_here_and_answers_as_evaluated(first: Finished) -> None:
    login, file = first.login, first.login.folder / "deployed.json"
    try:
        login.run("--stack", "local", "--pipeline", "deploy", *SMALL, "--json", str(file))
        deployed = json.loads(file.read_text())
        for key in ("name", "version", "stage", "sha256"):
            assert deployed["model"][key] == first.summary["model"][key]
        test = deployed["inference_test"]
        assert (test["errors"], test["agreement"]) == (0, 1.0)
        assert test["requests"] > 0
        assert "flood" in login.run("endpoints").stdout
    finally:
        login.run("endpoints", "--delete", "flood")
    assert "no endpoints" in login.run("endpoints").stdout


def test_the_model_from_the_cluster_is_deployed_on_aws_and_lineage_links_both_runs(first: Finished) -> None:
    login, file = first.login, first.login.folder / "on_aws.json"
    try:
        login.run("--stack", "aws", "--rehearse", *SMALL, "--json", str(file))
        deployed = json.loads(file.read_text())
        for key in ("name", "version", "stage", "sha256"):
            assert deployed["model"][key] == first.summary["model"][key]
        assert (deployed["status"], deployed["endpoint"]["target"]) == ("completed", "sagemaker")
        test = deployed["inference_test"]
        assert test["errors"] == 0
        assert test["agreement"] >= 0.9999
        ask = [sys.executable, "-c", LINEAGE, first.summary["model"]["name"], first.summary["model"]["version"]]
        told = json.loads(subprocess.run(ask, env=login.environment, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
        trained, placed = first.summary["runs"][-1], deployed["runs"][-1]
        assert told == {"made_by": trained["id"], "placed_by": placed["name"], "tested_by": placed["name"], "s3": told["s3"]}
        assert f"/{deployed['model']['version']}-{deployed['model']['sha256'][:12]}/" in told["s3"]
    finally:
        login.run("endpoints", "--stack", "aws", "--rehearse", "--delete", "hls-flood")
        login.run("rehearsal", "down")


def test_a_second_run_takes_everything_but_promotion_and_publication_from_the_cache(first: Finished) -> None:
    second = train(first.login, "second").summary
    assert second["status"] == "completed"
    assert list(second["slurm"]["steps"]) == ["promote", "publish"]
    assert [name for name, seconds in second["timings_s"].items() if seconds > 0] == ["promote", "publish"]
    for key in ("version", "stage", "sha256"):
        assert second["model"][key] == first.summary["model"][key]
    assert second["metrics"] == first.summary["metrics"]


def test_a_user_without_privileges_has_it_all_on_a_cluster_of_its_own(
    unprivileged: tuple[LoginNode, subprocess.Popen[str]] | None,
) -> None:
    if unprivileged is None:
        pytest.skip("all other tests run as a normal user here")
    login, process = unprivileged
    ended(process)
    summary = json.loads((login.folder / "run.json").read_text())
    assert (summary["status"], summary["model"]["stage"]) == ("completed", "production")
    assert [(name, step["state"]) for name, step in summary["slurm"]["steps"].items()] == [(name, "COMPLETED") for name in STEPS]
    logs = list(Path(summary["slurm"]["folder"]).rglob("log"))
    assert len(logs) == len(STEPS) + 1
    assert {log.stat().st_uid for log in logs} == {NOBODY}
    may = login.slurm("srun", "--nodes=2", "grep", "-hE", "^(Uid|CapPrm|CapEff|CapBnd)", "/proc/self/status")
    assert {line.split()[1] for line in may.splitlines() if line.startswith("Uid")} == {str(NOBODY)}
    assert {int(line.split()[1], 16) for line in may.splitlines() if line.startswith("Cap")} == {0}


def test_jobs_publish_to_s3_where_the_site_says_so(
    first: Finished, unprivileged: tuple[LoginNode, subprocess.Popen[str]] | None, aws_rehearsal: Rehearsal
) -> None:
    """Of the user without privileges, on nodes with a network."""
    if unprivileged is not None:
        login, process = unprivileged
        if process.returncode is None:
            ended(process)
    else:
        login = publishing_to_s3(first.login, aws_rehearsal)
        login.run(*login.hpc(*QUICK, "--site", "s3", "--json", str(login.folder / "run.json")))
    model, bucket = json.loads((login.folder / "run.json").read_text())["model"], aws_rehearsal.prepare().bucket
    assert model["uri"] == f"s3://{bucket}/from-the-cluster/flood/{model['version']}-{model['sha256'][:12]}/model.tar.gz"
    told = {"AWS_CONFIG_FILE": str(login.folder / "aws-config"), "AWS_PROFILE": "lab"}
    ask = [sys.executable, "-c", DIGEST, bucket, model["uri"].removeprefix(f"s3://{bucket}/")]
    assert subprocess.run(ask, env={**login.environment, **told}, capture_output=True, text=True, check=True).stdout == model["sha256"]


def open_way(folder: Path) -> list[str]:
    """Words before a command that run it where everybody may come to the interpreter; none where they may anyway."""
    interpreter = Path(sys.base_prefix).resolve()
    closed = [place for place in interpreter.parents if not place.stat().st_mode & 0o001]
    if not closed:
        return []
    if not can_name_hosts():
        missing(f"{closed[-1]} is closed to other users, and with it Python; opening it for them takes a mount namespace")
    return [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        OPEN_WAY,
        "sh",
        str(interpreter),
        str(folder / "python"),
        str(closed[-1]),
    ]
