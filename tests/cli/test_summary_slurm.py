"""What run.py tells of a run on Slurm: its summary, and status, logs and stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stacks.slurm.plan import Outcome, StepOutcome, Submitted
from tests.cli.asked import Session
from tests.slurm.hand_made import plan_of

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"job_id", "state", "nodes", "elapsed_s", "wait_s", "node_hours", "cpu_efficiency", "max_rss_bytes", "restarts"}
INGEST = StepOutcome(
    zenml="completed",
    state="COMPLETED",
    reason="Slurm job 11 COMPLETED",
    job_id=11,
    nodes=1,
    elapsed_s=36,
    wait_s=3.5,
    node_hours=0.01,
    cpu_efficiency=0.5,
    max_rss_bytes=812_000_000,
)
FIT = StepOutcome(
    zenml="failed",
    state="TIMEOUT",
    reason="Slurm job 12 TIMEOUT: it did not end within its time limit (60 s)",
    job_id=12,
    nodes=2,
    elapsed_s=43.2,
    wait_s=1,
    node_hours=0.024,
    restarts=1,
)
OUTCOME = Outcome(status="failed", reason=f"step fit: {FIT.reason}", steps={"ingest": INGEST, "fit": FIT}, node_hours=0.034)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = Session(tmp_path_factory.mktemp("home"))
    yield session
    session.close()


@pytest.fixture(scope="module")
def ended(session: Session, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A failed run whose cluster is gone, with all that its closing job wrote; (name, folder)."""
    folder = tmp_path_factory.mktemp("runs") / "ended"
    for step, log in {
        "ingest": "reading chips\n",
        "fit": "epoch 1\n\x1b[31mlate\x1b[0m\nslurmstepd: error: CANCELLED DUE TO TIME LIMIT",
    }.items():
        (folder / "steps" / step).mkdir(parents=True)
        (folder / "steps" / step / "log").write_text(log)
    (folder / "plan.json").write_text(plan_of({"ingest": (), "fit": ("ingest",)}).model_dump_json())
    (folder / "jobs.json").write_text(Submitted(jobs={"ingest": 11, "fit": 12}, closing=13).model_dump_json())
    (folder / "outcome.json").write_text(OUTCOME.model_dump_json())
    conf = folder / "slurm.conf"
    conf.write_text(
        "ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=9\nMessageTimeout=1\nNodeName=n1\nPartitionName=p Nodes=n1\n"
    )
    metadata = {"slurm_folder": str(folder), "slurm_jobs": {"ingest": 11, "fit": 12}, "slurm_closing": 13, "slurm_conf": str(conf)}
    published = {name: step.model_dump(exclude_none=True) for name, step in OUTCOME.steps.items()}
    session.ask("make_run", "ended", {**metadata, "slurm_node_hours": 0.034}, published)
    return "ended", folder


def test_the_summary_has_the_slurm_block(session: Session, ended: tuple[str, Path]) -> None:
    content = session.ask("summarise", ended[0])["json"]
    block = content["slurm"]
    assert set(block) == {"folder", "steps", "node_hours"}
    assert block["folder"] == str(ended[1])
    assert block["node_hours"] == pytest.approx(0.034)
    assert list(block["steps"]) == ["ingest", "fit"]
    assert all(set(step) == KEYS for step in block["steps"].values())
    assert block["steps"]["fit"]["state"] == "TIMEOUT"
    assert block["steps"]["ingest"]["max_rss_bytes"] == 812_000_000


def test_a_failed_run_names_step_reason_log_and_next_command(session: Session, ended: tuple[str, Path]) -> None:
    summary = session.ask("summarise", ended[0])
    assert summary["exit_code"] == 1
    assert summary["json"]["status"] == "failed"
    assert summary["json"]["error"] == {"step": "fit", "message": "loss is nan"}
    text = "\n".join(summary["lines"])
    assert "error in step fit: loss is nan" in text
    assert "Slurm job 12 TIMEOUT: it did not end within its time limit (60 s)" in text
    assert str(ended[1] / "steps" / "fit" / "log") in text
    assert "run.py logs ended --step fit" in text
    assert "give the step more time (settings in stacks/hpc.yaml)" in text


def test_the_summary_shows_each_step_and_the_total(session: Session, ended: tuple[str, Path]) -> None:
    lines = session.ask("summarise", ended[0])["lines"]
    (fit,) = [line for line in lines if line.strip().startswith("fit ")]
    assert fit.split() == ["fit", "12", "TIMEOUT,", "1", "restart", "2", "43", "s", "1", "s", "0.0240"]
    assert "cost        0.0340 node-hours in 2 jobs, waited 4 s, 1 restart, most memory 812 MB" in lines


def test_the_report_has_a_section_on_slurm(session: Session, ended: tuple[str, Path]) -> None:
    page = session.ask("summarise", ended[0])["report"]
    section = page[page.index("<h2>Slurm</h2>") :]
    assert "TIMEOUT, 1 restart" in section
    assert "0.0340" in section
    assert str(ended[1]) in section


def test_status_without_its_cluster_is_zenmls_view_and_one_line(session: Session, ended: tuple[str, Path]) -> None:
    answer = session.run("status", ended[0])
    assert answer["code"] == 0, answer
    (ingest,) = [line for line in answer["out"].splitlines() if line.startswith("ingest")]
    assert "completed" in ingest
    assert len(answer["err"].splitlines()) == 1
    assert "Slurm's view is missing" in answer["err"]


def test_logs_are_slurms_files(session: Session, ended: tuple[str, Path]) -> None:
    answer = session.run("logs", ended[0])
    assert answer["code"] == 0, answer
    assert f"── ingest ({ended[1]}/steps/ingest/log)\nreading chips\n── fit" in answer["out"]
    assert answer["out"].endswith("DUE TO TIME LIMIT\n")
    only = session.run("logs", ended[0], "--step", "ingest")["out"]
    assert "reading chips" in only
    assert "epoch 1" not in only
    unknown = session.run("logs", ended[0], "--step", "nothing")
    assert unknown["code"] == 2
    assert "has no step 'nothing'" in unknown["err"]


def test_stopping_a_run_that_has_ended_is_one_line(session: Session, ended: tuple[str, Path]) -> None:
    answer = session.run("stop", ended[0])
    assert answer["code"] == 2
    assert answer["err"] == "error: run ended has ended already (failed): nothing to stop\n"


def test_without_its_folder_zenmls_logs_and_metadata_still_tell(session: Session, ended: tuple[str, Path]) -> None:
    away = ended[1].with_name("away")
    ended[1].rename(away)
    try:
        answer = session.run("logs", ended[0], "--step", "ingest")
        assert answer["code"] == 0, answer
        assert "stored by ZenML" in answer["out"]
        block = session.ask("summarise", ended[0])["json"]["slurm"]
        assert block["steps"]["fit"]["job_id"] == 12
        assert block["node_hours"] == pytest.approx(0.034)
        status = session.run("status", ended[0])
        assert status["code"] == 0, status
        assert "was removed, or is not mounted here" in status["err"]
    finally:
        away.rename(ended[1])


def test_a_local_run_is_shown_as_before(session: Session) -> None:
    session.ask("make_run", "local-run", {}, {})
    status = session.run("status", "local-run")["out"]
    assert "ingest           completed" in status
    assert "stored by ZenML" in session.run("logs", "local-run")["out"]
    assert "slurm" not in session.ask("summarise", "local-run")["json"]
    stop = session.run("stop", "local-run")
    assert stop["code"] == 2
    assert "run local-run is not running on this machine" in stop["err"]


@pytest.fixture(scope="module")
def live(session: Session, slurm_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a run that was really submitted and whose second step runs."""
    folder = tmp_path_factory.mktemp("live")
    session.ask("submit", "live", str(folder), slurm_cluster.environment["SLURM_CONF"])
    until(lambda: "waiting 60" in session.run("logs", "live", "--step", "wait")["out"], "the second step runs")
    return "live"


def until(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.5)


def table(answer: dict[str, Any]) -> dict[str, str]:
    """The lines of `status`, by their first word."""
    return {line.split()[0]: line for line in answer["out"].splitlines() if line.split()}


def test_status_joins_slurms_view_with_zenmls_and_stop_ends_the_run(session: Session, live: str) -> None:
    before = session.run("status", live)
    assert before["code"] == 0, before
    assert before["err"] == ""
    rows = table(before)
    assert rows[live].split()[1] == "running"
    assert rows["one"].split()[2:4] == ["COMPLETED", "completed"]
    assert rows["wait"].split()[2:4] == ["RUNNING", "running"]
    assert "waits for earlier steps (Dependency)" in rows["add"]
    stopped = session.run("stop", live)
    assert stopped["code"] == 0, stopped
    assert "run live: 1 waiting job cancelled, 1 running one asked to save its state and end" in stopped["out"]
    until(lambda: table(session.run("status", live))[live].split()[1] == "stopped", "the run has stopped")
    until(lambda: "wait" in session.ask("summarise", live)["json"]["slurm"]["steps"], "the closing job has written the end")
    summary = session.ask("summarise", live)
    assert summary["json"]["status"] == "failed"
    assert summary["json"]["error"]["step"] == "wait"
    assert summary["json"]["slurm"]["steps"]["one"]["state"] == "COMPLETED"
    assert summary["json"]["slurm"]["steps"]["wait"]["state"] in ("CANCELLED", "FAILED")
    assert summary["json"]["slurm"]["node_hours"] > 0
    assert "next: start the same command again: steps that are done are not repeated" in "\n".join(summary["lines"])
    assert "cancelled while it waited" in table(session.run("status", live))["add"]
    assert session.run("stop", live)["code"] == 2
