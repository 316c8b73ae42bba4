"""Registering with a real ZenML store in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, os, sys
from cli.session import start_zenml
start_zenml()
from zenml.client import Client
from stacks.definition import load_stack
from stacks.registry import register_stack, use_stack
before = Client().active_stack_model.name
first = register_stack(load_stack("local", os.environ))
again = register_stack(load_stack("local", os.environ))
changed = load_stack("local", os.environ)
moved = changed.model_copy(update={"components": tuple(
    part.model_copy(update={"configuration": {"path": sys.argv[1]}}) if part.type == "artifact_store" else part
    for part in changed.components)})
updated = register_stack(moved)
active_elsewhere = Client().active_stack_model.name
use_stack(updated)
store = Client().active_stack.artifact_store
print(json.dumps({"before": before, "same": first.id == again.id == updated.id, "stacks": Client().list_stacks(name="hls-local").total,
                  "elsewhere": active_elsewhere, "here": Client().active_stack_model.name, "path": store.path,
                  "components": len(Client().list_stack_components(name="startswith:hls-local").items)}))
"""


def test_registering_is_idempotent_updates_in_place_and_leaves_the_active_stack_alone(tmp_path: Path) -> None:
    environment = {**os.environ, "ZENML_CONFIG_PATH": str(tmp_path / "zenml"), "PYTHONPATH": str(ROOT)}
    store = tmp_path / "store"
    answer = subprocess.run([sys.executable, "-c", SCRIPT, store], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert json.loads(answer.stdout.splitlines()[-1]) == {
        "before": "default", "same": True, "stacks": 1, "elsewhere": "default", "here": "hls-local", "path": str(store), "components": 2,
    }  # fmt: skip
