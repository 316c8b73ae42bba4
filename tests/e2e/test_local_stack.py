"""The whole local stack as a user runs it: run.py in processes of its own, a fresh home, a fresh ZenML store, a real endpoint."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.e2e.machines import SMALL, Machine

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("machine"))
    yield made
    for task in ("burn_scars", "flood"):
        subprocess.run(made.command("endpoints", "--delete", task), env=made.environment, capture_output=True)


@pytest.fixture(scope="module")
def first(machine: Machine) -> dict:
    return machine.summary("--task", "flood", *SMALL)


def test_summary_is_that_of_the_design(first: dict) -> None:
    assert first["status"] == "completed"
    assert [run["pipeline"] for run in first["runs"]] == ["train", "deploy"]
    assert {"pipeline", "id", "url", "status"} <= set(first["runs"][0])
    assert set(first["data"]) == {"chips", "valid", "quarantined", "fingerprint"}
    assert first["data"]["chips"] == 24
    assert {"miou", "iou", "f1", "accuracy"} <= set(first["metrics"]["test"])
    assert first["metrics"]["baseline"]["name"] == "MNDWI"
    assert {"name", "version", "stage", "uri", "sha256", "pretrained"} <= set(first["model"])
    assert (first["model"]["stage"], first["model"]["pretrained"]) == ("production", False)
    assert {"name", "target", "url", "kind"} <= set(first["endpoint"])
    assert {"requests", "errors", "agreement", "iou", "p50_ms", "p95_ms"} == set(first["inference_test"])
    assert first["inference_test"]["errors"] == 0
    assert first["inference_test"]["agreement"] >= 0.9999
    assert {"ingest", "validate", "split", "fine_tune", "evaluate", "promote", "publish", "deploy", "test_endpoint"} <= set(
        first["timings_s"]
    )


def test_published_archive_has_the_digest_of_the_summary(first: dict) -> None:
    digest = subprocess.run(["sha256sum", first["model"]["uri"]], capture_output=True, text=True, check=True).stdout.split()[0]
    assert digest == first["model"]["sha256"]


def test_endpoint_outlives_run_py_and_answers_polygons(machine: Machine, first: dict) -> None:
    chip = next((machine.folder / "foundry" / "data").rglob("S2Hand/*.tif"))
    request = urllib.request.Request(
        first["endpoint"]["url"] + "/invocations", data=chip.read_bytes(), headers={"Content-Type": "image/tiff"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert json.load(reply)["type"] == "FeatureCollection"
    listed = machine.run("endpoints").stdout
    assert "flood" in listed
    assert first["endpoint"]["url"] in listed


def test_predict_gives_the_same_mask_in_process_and_by_the_endpoint(machine: Machine, first: dict) -> None:
    chip = next((machine.folder / "foundry" / "data").rglob("S2Hand/*.tif"))
    here, there, vector = (machine.folder / name for name in ("here.tif", "there.tif", "polygons.gpkg"))
    machine.run("predict", str(chip), "--task", "flood", "--out", str(here))
    machine.run("predict", str(chip), "--endpoint", "flood", "--out", str(there))
    machine.run("predict", str(chip), "--task", "flood", "--out", str(vector))
    with rasterio.open(here) as a, rasterio.open(there) as b, rasterio.open(chip) as scene:
        assert (a.read(1) == b.read(1)).mean() >= 0.9999
        assert (a.crs, a.transform) == (scene.crs, scene.transform)
    assert vector.stat().st_size > 0
    assert "says no format" in machine.run("predict", str(chip), "--task", "flood", "--out", "x.docx", expect=2).stderr


def test_report_stands_alone(machine: Machine, first: dict) -> None:
    report = next((machine.folder / "foundry" / "runs").rglob("report.html")).read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", report)
    for heading in ("At a glance", "Best, median and worst chip", "Fine-tuning", "Data", "Endpoint", "Inference test", "Lineage"):
        assert f"<h2>{heading}</h2>" in report


@pytest.mark.browser
def test_report_draws_in_a_browser_without_a_network(machine: Machine, first: dict, chromium: str) -> None:
    report = next((machine.folder / "foundry" / "runs").rglob("report.html"))
    picture = machine.folder / "report.png"
    switches = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    )
    command = [chromium, *switches.split(), "--enable-logging=stderr", f"--user-data-dir={machine.folder / 'profile'}"]
    command += ["--proxy-server=127.0.0.1:9", "--window-size=1100,2400", f"--screenshot={picture}", report.as_uri()]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120).stderr
    assert "CONSOLE" not in told, "the page complains"
    with rasterio.open(picture) as drawn:
        pixels = drawn.read([1, 2, 3])
    colours = np.unique(pixels.reshape(3, -1)[:, ::50], axis=1).shape[1]
    assert colours > 500, "curves and chips were drawn"


def test_second_run_is_cached_keeps_the_version_and_the_endpoint(machine: Machine, first: dict) -> None:
    started = time.monotonic()
    second = machine.summary("--task", "flood", *SMALL)
    seconds = time.monotonic() - started
    assert all(second["timings_s"][step] == 0.0 for step in ("ingest", "validate", "split", "fine_tune", "evaluate", "test_endpoint"))
    assert second["model"]["version"] == first["model"]["version"]
    assert second["model"]["sha256"] == first["model"]["sha256"]
    assert second["endpoint"]["url"] == first["endpoint"]["url"]
    assert seconds < 60, "the target on a quiet machine is 20 s"


def test_status_and_logs_show_the_run(machine: Machine, first: dict) -> None:
    assert first["runs"][0]["name"] in machine.run("status").stdout
    steps = machine.run("status", first["runs"][0]["name"]).stdout
    assert re.search(r"fine_tune +completed", steps)
    assert "fine-tune" in machine.run("logs", first["runs"][0]["name"], "--step", "fine_tune").stdout
    assert "has no step 'bake'" in machine.run("logs", first["runs"][0]["name"], "--step", "bake", expect=2).stderr


def test_a_gate_that_is_not_passed_promotes_nothing_and_the_old_version_answers(machine: Machine, first: dict) -> None:
    summary = machine.summary("--task", "flood", *SMALL, "--set", "training.seed=1", "--set", "promotion.min_iou=0.999")
    assert summary["model"]["stage"] != "production"
    assert "below the gate" in summary["model"]["reason"]
    assert summary["endpoint"]["model_version"] == first["model"]["version"]


def test_a_nan_in_training_data_is_one_line_and_exit_code_2(machine: Machine, first: dict) -> None:
    answer = machine.run("--task", "flood", *SMALL, "--set", "training.learning_rate=1e30", "--set", "training.clip_norm=null", expect=2)
    assert "Traceback" not in answer.stderr
    assert "in step fine_tune" in answer.stdout


def test_stop_saves_and_the_same_command_goes_on(machine: Machine) -> None:
    arguments = ("--task", "burn_scars", *SMALL, "--set", "training.epochs=30", "--pipeline", "train")
    training = machine.folder / "foundry" / "training"
    before = set(training.iterdir()) if training.is_dir() else set()
    process = subprocess.Popen(
        machine.command(*arguments), env=machine.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for_steps(training, before, process)
        machine.run("stop")
        _, told = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 85, told
    assert "run the same command again" in told
    assert machine.run("status").stdout.splitlines()[0].split()[1] != "running"
    (work,) = set(training.iterdir()) - before
    interrupted = len((work / "metrics.jsonl").read_text().splitlines())
    summary = machine.summary(*arguments)
    assert summary["status"] == "completed"
    steps = [json.loads(line)["step"] for line in (work / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert steps == list(range(1, len(steps) + 1)), "resumed without a gap or a repetition"
    assert len(steps) > interrupted > 0


def wait_for_steps(training: Path, before: set[Path], process: subprocess.Popen[str]) -> None:
    """Until the new training's log has three steps."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        new = set(training.iterdir()) - before if training.is_dir() else set()
        if any((folder / "metrics.jsonl").is_file() and len((folder / "metrics.jsonl").read_text().splitlines()) >= 3 for folder in new):
            return
        time.sleep(0.1)
    raise AssertionError("training did not start")


def test_delete_stops_the_endpoint(machine: Machine, first: dict) -> None:
    machine.run("endpoints", "--delete", "flood")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(first["endpoint"]["url"] + "/ping", timeout=5)
    assert "flood" not in machine.run("endpoints").stdout
