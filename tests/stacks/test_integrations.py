"""A step's process does without ZenML's integrations until one is needed, and then answers as ZenML does."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import ROOT

ANSWERS = """
import json, sys
from zenml.integrations.registry import integration_registry
from zenml.materializers.materializer_registry import materializer_registry
if sys.argv[1] == "on demand":
    from stacks.integrations import activate_on_demand
    activate_on_demand()
    activate_on_demand()
integration_registry.activate_integrations()
found = {str(kind): materializer_registry[kind].__name__ for kind in (int, float, str, bool, dict, list, tuple, bytes)}
before = [name for name in ("torch", "pandas", "scipy") if name in sys.modules]
import numpy, pandas, torch
class Linear(torch.nn.Linear): ...
class Text(str): ...
class Other: ...
kinds = (numpy.ndarray, numpy.float64, pandas.DataFrame, torch.nn.Linear, Linear, Text, Other)
print(json.dumps([before, found | {str(kind): materializer_registry[kind].__name__ for kind in kinds}]))
"""


def answers(how: str) -> tuple[list[str], dict[str, str]]:
    """The libraries imported after simple types were asked for, and the materializer of each type."""
    done = subprocess.run([sys.executable, "-c", ANSWERS, how], cwd=ROOT, capture_output=True, text=True, check=True)
    imported, found = json.loads(done.stdout.splitlines()[-1])
    return imported, found


def test_integrations_are_imported_by_the_first_type_that_needs_one() -> None:
    imported, found = answers("on demand")
    assert imported == []
    assert found["<class 'numpy.ndarray'>"] == "NumpyMaterializer"
    assert (["torch", "pandas", "scipy"], found) == answers("as ZenML does")


def test_a_pipeline_can_be_named_without_the_libraries_that_its_steps_work_with() -> None:
    """Whoever submits, and most steps' jobs: torch alone takes two seconds to import."""
    code = (
        "import sys; sys.path.insert(0, '.'); from zenml.utils import source_utils; source_utils.set_custom_source_root('.'); "
        "from stacks.integrations import activate_on_demand; activate_on_demand(); import pipelines.train, pipelines.deploy; "
        "print([name for name in ('torch', 'great_expectations', 'matplotlib', 'scipy', 'geopandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
