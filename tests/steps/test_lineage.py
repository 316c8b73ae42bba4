"""What the metadata of artifacts says."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from hls_foundry.chips.inventory import Inventory
from hls_foundry.chips.splits import Splits
from hls_foundry.endpoints.publish import Published
from steps.artifacts import BundleFolder, PromotionRecord
from steps.lineage import facts_of, shown


def test_an_inventory_says_how_many_chips_and_which() -> None:
    inventory = Inventory(
        pd.DataFrame({"chip": ["a", "b"], "digest": ["1", "2"], "mask_digest": ["3", "4"], "error": ["", ""]}), Path("/chips"), "flood"
    )
    assert facts_of(inventory) == {"chips": 2, "fingerprint": inventory.fingerprint}


def test_splits_say_how_many_chips_each_has() -> None:
    splits = Splits(pd.DataFrame({"chip": list("abc"), "split": ["train", "train", "test"]}), Path("/chips"))
    assert facts_of(splits) == {"train": 2, "test": 1}


def test_a_bundle_says_weights_digest_encoder_metrics_and_what_decided_them(tmp_path: Path) -> None:
    manifest = {"pretrained": True, "weights": "hf://x/y", "weights_sha256": None, "metrics": {"validation": {"iou": 0.5}}}
    (tmp_path / "model.json").write_text(json.dumps({**manifest, "lineage": {"code": "0123", "seed": 1}}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    facts = facts_of(BundleFolder(tmp_path))
    assert len(str(facts.pop("weights_sha256"))) == 64
    assert facts == {
        "encoder": {"pretrained": True, "weights": "hf://x/y"},
        "metrics": {"validation": {"iou": 0.5}},
        "lineage": {"code": "0123", "seed": 1},
    }


def test_decisions_and_places_are_told_without_the_pictures() -> None:
    record = PromotionRecord(model="flood", version="2", stage="none", promoted=False, reason="below the gate")
    assert facts_of(record) == {"model": "flood", "version": "2", "stage": "none", "promoted": False, "reason": "below the gate"}
    assert facts_of(Published(uri="s3://b/m.tar.gz", sha256="ab", card="# Card")) == {"uri": "s3://b/m.tar.gz", "sha256": "ab"}
    assert facts_of("anything else") == {}


def test_what_json_lacks_is_said_in_words_or_left_out() -> None:
    assert shown({"iou": float("nan"), "of": {"none": None, "f1": 0.5}}) == {"iou": "n/a", "of": {"f1": 0.5}}
