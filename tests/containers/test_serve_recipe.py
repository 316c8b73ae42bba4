"""What goes into the serving image, told from its recipe and locks; no engine needed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTAINERS = ROOT / "containers"
SERVE = CONTAINERS / "serve"
LOCKS = ["serve/requirements.lock", "torch.cpu.lock", "torch.cuda.lock"]
RECIPE = (SERVE / "Dockerfile").read_text(encoding="utf-8")


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE))


def copied() -> set[str]:
    """The modules of hls_foundry that the recipe copies."""
    files: set[Path] = set()
    for line in re.findall(r"^COPY (hls_foundry.*)$", RECIPE, re.MULTILINE):
        for name in line.split()[:-1]:
            path = ROOT / name
            files |= set(path.rglob("*.py")) if path.is_dir() else {path}
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files}


def needed() -> set[str]:
    """The modules that `python -m hls_foundry.serving` imports, early or late, found in the source."""
    found: set[str] = set()
    waiting = ["hls_foundry.serving.__main__"]
    while waiting:
        module = waiting.pop()
        path = ROOT.joinpath(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module in found or not file.is_file():
            continue
        found.add(module)
        waiting.append(module.rpartition(".")[0])
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hls_foundry"):
                waiting += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"hls_foundry(\.\w+)+", node.value):
                waiting.append(node.value)  # importlib.import_module
    return found


def test_every_module_that_serving_imports_is_copied() -> None:
    assert needed() - copied() == set()


def test_nothing_of_training_pipelines_or_chip_making_is_copied() -> None:
    rooms = {module.split(".")[1] for module in copied() if "." in module}
    assert rooms == {"chips", "config", "errors", "inference", "models", "serving"}
    assert not any(module.startswith("hls_foundry.chips.synthetic") for module in copied())


@pytest.mark.parametrize("name", LOCKS)
def test_the_image_has_the_versions_that_the_tests_ran_with(name: str) -> None:
    tested = pins(ROOT / "requirements.lock")
    mine = {package: version.partition("+")[0] for package, version in pins(CONTAINERS / name).items()}
    gpu_only = {package for package in mine if name == "torch.cuda.lock" and package.startswith(("nvidia-", "cuda-", "triton"))}
    assert mine
    assert {package: version for package, version in mine.items() if package not in gpu_only and tested.get(package) != version} == {}


def test_all_that_serving_declares_is_locked() -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = {re.match(r"[a-z0-9-]+", requirement)[0] for requirement in declared}  # type: ignore[index]
    assert names - {"torch"} - pins(SERVE / "requirements.lock").keys() == set()
    assert "torch" in pins(CONTAINERS / "torch.cpu.lock")
    assert "torch" in pins(CONTAINERS / "torch.cuda.lock")


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_a_hash(name: str) -> None:
    packages = re.split(r"^(?=[a-z0-9])", (CONTAINERS / name).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert packages
    assert [package.split()[0] for package in packages if "--hash=sha256:" not in package] == []


def test_no_training_package_is_locked() -> None:
    assert pins(SERVE / "requirements.lock").keys() & {"zenml", "accelerate", "great-expectations", "pandas", "moto", "pytest"} == set()


def test_the_recipe_names_no_host() -> None:
    everything = "\n".join(path.read_text(encoding="utf-8") for path in [*SERVE.iterdir(), *(CONTAINERS / name for name in LOCKS)])
    assert re.findall(r"https?://|--(?:extra-)?index-url|--find-links", everything) == []
