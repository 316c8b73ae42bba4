"""Whole trainings in this process and in others: reproducible, resumable, the same however many processes share them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from safetensors.torch import load_file

from hls_foundry.errors import Preempted, TrainingError
from hls_foundry.models.segmenter import segmenter_from_architecture
from hls_foundry.training.launcher import launch
from hls_foundry.training.loop import train
from hls_foundry.training.request import TrainingRequest, TrainingResult

MakeRequest = Callable[..., TrainingRequest]
ROOT = Path(__file__).resolve().parents[2]


def records(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(record["step"], record["loss"], record["grad_norm"]) for record in records(folder)]


def scores(folder: Path) -> list[tuple[int, float, float]]:
    return [(record["step"], record["miou"], record["loss"]) for record in records(folder, "validation")]


def worker(request: TrainingRequest, **environment: str) -> subprocess.Popen[str]:
    request.folder.mkdir(parents=True, exist_ok=True)
    request.save(request.folder / "request.json")
    return subprocess.Popen(
        [sys.executable, "-m", "hls_foundry.training", str(request.folder / "request.json")],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_steps(folder: Path, steps: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "metrics.jsonl").is_file() and len(losses(folder)) >= steps:
            return
        time.sleep(0.01)
    raise AssertionError(
        f"no {steps} steps: exit {process.poll()}, {process.stderr.read() if process.stderr and process.poll() is not None else ''}"
    )


def test_same_seed_same_weights_and_a_result_that_can_be_bundled(make_request: MakeRequest) -> None:
    torch.manual_seed(123)
    expected_draw = torch.rand(3)
    torch.manual_seed(123)
    one, two = train(make_request("one")), train(make_request("two"))
    torch.testing.assert_close(torch.rand(3), expected_draw, rtol=0, atol=0)  # the caller's generator is left alone
    first, second = load_file(one.state), load_file(two.state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses(one.state.parent) == losses(two.state.parent)
    other = train(make_request("other", **{"training.seed": 1}))
    assert losses(other.state.parent) != losses(one.state.parent)

    segmenter_from_architecture(one.architecture).load_state_dict(first)
    assert (one.steps, one.stopped, one.resumed_from, one.pretrained, one.precision) == (6, "finished", None, False, "fp32")
    assert [(record["kind"], record["step"]) for record in one.history] == [
        ("train", 1), ("train", 2), ("train", 3), ("validation", 3), ("train", 4), ("train", 5), ("train", 6), ("validation", 6),
    ]  # fmt: skip
    assert one.best["miou"] == max(record["miou"] for record in records(one.state.parent, "validation"))
    assert {"learning_rate", "grad_norm", "samples_per_s", "epoch", "loss"} <= set(one.history[0])
    assert TrainingResult.load(one.state.parent) == one


def test_it_learns(make_request: MakeRequest) -> None:
    result = train(
        make_request(**{"training.epochs": 40, "training.max_steps": 40, "training.validate_every": 20, "training.precision": "auto"})
    )
    first = np.mean([record["loss"] for record in records(result.state.parent)[:5]])
    assert np.mean([record["loss"] for record in records(result.state.parent)[-5:]]) < 0.75 * first
    assert result.best["iou"] > 0.7


def test_accumulation_changes_nothing_but_memory(make_request: MakeRequest) -> None:
    same = {"model.dropout": 0.0, "training.loss": "dice_cross_entropy", "training.class_weights": "[0.3, 0.7]"}
    whole = train(make_request("whole", **same))
    parts = train(make_request("parts", **same, **{"training.accumulation": 2}))
    np.testing.assert_allclose(losses(parts.state.parent), losses(whole.state.parent), rtol=2e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(make_request: MakeRequest, number: signal.Signals) -> None:
    settings = {"training.max_steps": 20, "training.epochs": 100, "training.validate_every": 10, "training.checkpoint_every": 7}
    whole = train(make_request("whole", **settings))
    request = make_request("cut", **settings)
    process = worker(request)
    wait_for_steps(request.folder, 4, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 85, said
    assert f"stopped by signal {number}" in said
    done = len(losses(request.folder))
    assert done < 20
    with (request.folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 19, "half a li')  # as a kill at the wrong moment would leave
    resumed = train(request)
    assert resumed.resumed_from == done
    assert losses(request.folder) == losses(whole.state.parent)
    assert scores(request.folder) == scores(whole.state.parent)
    first, second = load_file(whole.state), load_file(resumed.state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_signal_during_validation_is_heeded_and_the_validation_done_again(make_request: MakeRequest) -> None:
    """The signal comes in this process, to the main thread's handler; the handlers of before are back afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    whole = train(make_request("whole"))
    request = make_request("cut")

    def stop_in_validation() -> None:
        path = request.folder / "metrics.jsonl"
        while not (path.is_file() and len(losses(request.folder)) == 3):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_in_validation)
    thread.start()
    with pytest.raises(Preempted) as stopped:
        train(request)
    thread.join()
    assert stopped.value.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    train(request)
    assert scores(request.folder) == scores(whole.state.parent)


def test_training_runs_outside_the_main_thread(make_request: MakeRequest) -> None:
    results: list[TrainingResult] = []
    thread = threading.Thread(target=lambda: results.append(train(make_request(**{"training.max_steps": 1}))))
    thread.start()
    thread.join()
    assert results[0].steps == 1


def test_a_truncated_checkpoint_costs_the_steps_since_the_one_before(make_request: MakeRequest) -> None:
    request = make_request(**{"training.checkpoint_every": 2})
    whole = train(request)
    newest = max((request.folder / "checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    expected = losses(request.folder)
    again = train(request)
    assert (again.resumed_from, again.steps) == (4, 6)
    assert losses(request.folder) == expected
    assert again.best == {**whole.best, "seconds": again.best["seconds"]}


def test_another_configuration_in_the_same_folder_is_refused(make_request: MakeRequest) -> None:
    train(make_request())
    with pytest.raises(TrainingError, match="another configuration"):
        train(make_request(**{"training.seed": 9}))


def test_a_loss_that_is_no_number_names_the_chips(make_request: MakeRequest, chips: Path, tmp_path: Path) -> None:
    table = pd.read_csv(chips / "splits.csv")
    with rasterio.open(chips / table["image"][4]) as file:
        pixels, profile = file.read(), file.profile
    pixels[:, 40:, 40:] = 1e36  # finite, also after normalisation; not after the first product
    with rasterio.open(chips / "huge_merged.tif", "w", **profile) as file:
        file.write(pixels)
    table.loc[4, "image"] = "huge_merged.tif"
    table.to_csv(tmp_path / "splits.csv", index=False)
    request = make_request(splits=tmp_path / "splits.csv", **{"training.batch_size": 6, "training.clip_norm": None})
    with pytest.raises(TrainingError, match=r"is (nan|inf) at step 1, on the chips .*T10TGW.*: look at their pixels") as error:
        train(request)
    assert "\n" not in str(error.value)


def test_early_stopping_keeps_the_best(make_request: MakeRequest) -> None:
    request = make_request(
        **{"training.validate_every": 1, "training.patience": 1, "training.max_steps": 40, "training.learning_rate": 1e-12}
    )
    result = train(request)
    assert result.stopped == "early"
    assert result.steps < 40
    assert result.best["step"] < result.steps
    again = train(request)
    assert (again.steps, again.stopped) == (result.steps, "early")


@pytest.mark.parametrize("tune", ["frozen", "last_blocks", "lora"])
def test_ways_of_tuning_train_what_they_should(make_request: MakeRequest, tune: str) -> None:
    result = train(make_request(**{"model.tune": tune, "training.max_steps": 2, "model.lora_rank": 2}))
    segmenter_from_architecture(result.architecture).load_state_dict(load_file(result.state))


def test_the_fcn_recipe_with_auxiliary_head_and_coordinates(make_request: MakeRequest) -> None:
    changes = {
        "model.head": "fcn",
        "model.auxiliary_weight": 0.2,
        "model.coordinates": "true",
        "training.max_steps": 2,
        "training.precision": "auto",
    }
    result = train(make_request(**changes))
    assert result.architecture["coordinates"] is True


def test_two_processes_do_as_one_and_stop_and_go_on(make_request: MakeRequest) -> None:
    """The signal goes to the launching process, which hands it on; the resumed pair ends where one uninterrupted process does."""
    settings = {
        "training.max_steps": 12,
        "training.epochs": 50,
        "model.dropout": 0.0,
        "training.validate_every": 6,
        "training.loss": "dice_cross_entropy",
    }
    alone = train(make_request("alone", **settings))
    request = make_request("pair", **settings, **{"training.processes": 2})

    def stop_early() -> None:
        path = request.folder / "metrics.jsonl"
        while not (path.is_file() and len(losses(request.folder)) >= 2):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=stop_early)
    thread.start()
    with pytest.raises(Preempted) as stopped:
        launch(request)
    thread.join()
    assert stopped.value.signal_number == signal.SIGUSR1
    done = len(losses(request.folder))
    assert 2 <= done < 12
    result = launch(request)
    assert (result.processes, result.resumed_from) == (2, done)
    np.testing.assert_allclose(losses(request.folder), losses(alone.state.parent), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        [loss for _, loss, _ in losses(request.folder)], [loss for _, loss, _ in losses(alone.state.parent)], atol=1e-4
    )
    np.testing.assert_allclose(scores(request.folder), scores(alone.state.parent), atol=2e-3)


def test_the_error_of_the_rank_that_failed_is_reported(make_request: MakeRequest, chips: Path, tmp_path: Path) -> None:
    table = pd.read_csv(chips / "splits.csv")
    (chips / "broken_merged.tif").write_bytes((chips / table["image"][0]).read_bytes()[:5000])
    table.loc[7, "image"] = "broken_merged.tif"  # the second validation chip, which rank 1 reads
    table.to_csv(tmp_path / "splits.csv", index=False)
    request = make_request(splits=tmp_path / "splits.csv", **{"training.processes": 2, "training.validate_every": 1})
    started = time.monotonic()
    with pytest.raises(Exception, match=r"broken_merged\.tif is (truncated|a truncated)") as error:
        launch(request)
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 60
