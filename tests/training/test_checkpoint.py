from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from hls_foundry.errors import Preempted, TrainingError
from hls_foundry.training.checkpoint import Claim, load_latest, save_checkpoint


def state(step: int, digest: str = "one") -> dict[str, object]:
    return {"step": step, "digest": digest, "model": {"w": torch.full((1000,), float(step))}, "best": None, "history": [{"loss": 0.5}]}


def test_the_newest_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10):
        save_checkpoint(tmp_path, state(step))
    loaded = load_latest(tmp_path, "one")
    assert loaded is not None
    assert loaded["step"] == 10
    assert loaded["model"]["w"][0] == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:08d}.{kind}" for step in (9, 10) for kind in ("pt", "sha256")
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "emptied", "without digest"])
def test_a_damaged_one_falls_back_to_the_one_before(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(tmp_path, state(1))
    path = save_checkpoint(tmp_path, state(2))
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "bit flipped":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        path.with_suffix(".sha256").unlink()
    with caplog.at_level(logging.WARNING):
        loaded = load_latest(tmp_path, "one")
    assert loaded is not None
    assert loaded["step"] == 1
    assert "step-00000002.pt is damaged" in caplog.text
    assert "going back to the one before" in caplog.text


def test_one_of_another_training_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1, digest="other"))
    with pytest.raises(TrainingError, match="another configuration or of other chips"):
        load_latest(tmp_path, "one")


def test_an_unwritable_folder_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(TrainingError, match=r"cannot be written .*free some space"):
        save_checkpoint(blocked, state(1))
    assert load_latest(tmp_path / "nowhere", "one") is None


def test_a_process_whose_training_went_on_elsewhere_saves_nothing(tmp_path: Path) -> None:
    """As after the death of a node's Slurm daemon, whose processes live on."""
    old = Claim(tmp_path)
    save_checkpoint(tmp_path, {"step": 1, "digest": "d"}, old)
    new = Claim(tmp_path)
    with pytest.raises(Preempted, match="another process goes on"):
        save_checkpoint(tmp_path, {"step": 2, "digest": "d"}, old)
    save_checkpoint(tmp_path, {"step": 3, "digest": "d"}, new)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["step-00000001.pt", "step-00000003.pt"]
