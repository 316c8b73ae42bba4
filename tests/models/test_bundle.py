"""Bundles on disk: whole or not there, reproducible, and safe to unpack."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hls_foundry.config import ModelConfig
from hls_foundry.errors import BundleError
from hls_foundry.models import bundle as bundles
from hls_foundry.models.bundle import (
    BundleManifest,
    load_bundle,
    pack_bundle,
    render_model_card,
    save_bundle,
    unpack_bundle,
    weights_digest,
    with_metrics,
)
from hls_foundry.models.segmenter import Segmenter, build_segmenter
from hls_foundry.models.tuning import prepare_tuning

CONFIG = ModelConfig(variant="v2_tiny_tl", head="unet", head_channels=16, image_size=64, dropout=0.0)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(CONFIG).eval()


def manifest(model: Segmenter, **changes: Any) -> BundleManifest:
    values: dict[str, Any] = {
        "task": "burn_scars",
        "title": "Burn scars",
        "classes": ("background", "burn scar"),
        "mean": (0.03, 0.06, 0.06, 0.23, 0.2, 0.12),
        "std": (0.02, 0.03, 0.04, 0.08, 0.09, 0.07),
        "architecture": model.architecture(),
        "metrics": {"validation": {"iou": 0.81, "miou": 0.9}},
        "lineage": {"data_fingerprint": "abc123", "seed": 0},
        "created": "2026-01-01T00:00:00+00:00",
        **changes,
    }
    return BundleManifest(**values)


@pytest.fixture
def bundle(model: Segmenter, tmp_path: Path) -> Path:
    return save_bundle(tmp_path / "bundle", model, manifest(model))


def test_saved_bundle_loads_to_the_same_outputs(model: Segmenter, bundle: Path) -> None:
    loaded = load_bundle(bundle)
    x = torch.randn(1, 6, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), model(x))
    assert not loaded.model.training
    assert loaded.manifest == manifest(model)
    assert sorted(path.name for path in bundle.iterdir()) == ["README.md", "model.json", "model.safetensors"]
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_digest_covers_weights_and_manifest(model: Segmenter, bundle: Path, tmp_path: Path) -> None:
    first = load_bundle(bundle).sha256
    assert len(weights_digest(bundle)) == 64
    other = save_bundle(tmp_path / "other", model, manifest(model, tile=128))
    assert load_bundle(other).sha256 != first
    assert weights_digest(other) == weights_digest(bundle)


def test_lora_is_merged_into_the_bundle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = CONFIG.model_copy(update={"tune": "lora", "lora_rank": 4})
    model = prepare_tuning(build_segmenter(config), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    x = torch.randn(1, 6, 64, 64)
    loaded = load_bundle(save_bundle(tmp_path / "bundle", model, manifest(model))).model
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=1e-5)
    assert not any("lora" in name for name in loaded.state_dict())


def test_saving_again_replaces_the_bundle(model: Segmenter, bundle: Path) -> None:
    (bundle / "left over").write_text("x")
    save_bundle(bundle, model, manifest(model, title="Another"))
    assert load_bundle(bundle).manifest.title == "Another"
    assert not (bundle / "left over").exists()
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_with_metrics_copies_weights_and_completes_the_card(model: Segmenter, bundle: Path, tmp_path: Path) -> None:
    metrics = {"test": {"iou": 0.85, "miou": 0.91}, "baseline": {"name": "NBR", "iou": 0.6}}
    final = with_metrics(bundle, tmp_path / "final", metrics=metrics, version="7")
    assert weights_digest(final) == weights_digest(bundle)
    made = load_bundle(final).manifest
    assert made.metrics == {**manifest(model).metrics, **metrics}
    assert made.lineage["version"] == "7"
    assert "0.2500 above it" in (final / "README.md").read_text()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "model.json").unlink(), "has no model.json"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "model.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "model.json").write_text("[]"), "no schema_version"),
        (lambda f: edit(f, schema_version=2), "schema version 2.*update hls-foundry"),
        (lambda f: edit(f, classes=["a", "b", "c"]), "3 class names"),
        (lambda f: edit(f, std=[1, 1, 1, 1, 1, 0]), "std"),
        (lambda f: edit(f, surprise=1), "surprise"),
        (lambda f: edit(f, architecture={"classes": 2}), "architecture"),
        (lambda f: os.truncate(f / "model.safetensors", 100_000), "cut short"),
        (lambda f: os.truncate(f / "model.safetensors", 0), "cut short"),
        (lambda f: (f / "model.safetensors").write_bytes(b"PK" * 500), "damaged"),
    ],
)
def test_damaged_bundles_are_refused_in_one_line(bundle: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(bundle)
    with pytest.raises(BundleError, match=says) as error:
        load_bundle(bundle)
    assert "\n" not in str(error.value)


def edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**content, **changes}))


def test_weights_of_another_architecture_are_refused(model: Segmenter, bundle: Path) -> None:
    other = build_segmenter(CONFIG.model_copy(update={"head_channels": 32}))
    edit(bundle, architecture=other.architecture())
    with pytest.raises(BundleError, match="does not fit the architecture") as error:
        load_bundle(bundle)
    assert "\n" not in str(error.value)


def test_class_names_and_architecture_must_agree(model: Segmenter) -> None:
    with pytest.raises(ValueError, match="3 class names"):
        manifest(model, classes=("a", "b", "c"))


def test_packing_is_reproducible(model: Segmenter, bundle: Path, tmp_path: Path) -> None:
    first = pack_bundle(bundle, tmp_path / "first.tar.gz")
    elsewhere = save_bundle(tmp_path / "deep" / "elsewhere", model, manifest(model))
    (elsewhere / "scratch").write_text("not part of a bundle")
    for path in elsewhere.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    second = pack_bundle(elsewhere, tmp_path / "second.tar.gz")
    assert first == second
    assert (tmp_path / "first.tar.gz").read_bytes() == (tmp_path / "second.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "first.tar.gz") as tar:
        assert tar.getnames() == ["README.md", "model.json", "model.safetensors"]


def test_unpacking_gives_the_bundle_back(bundle: Path, tmp_path: Path) -> None:
    pack_bundle(bundle, tmp_path / "model.tar.gz")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new"):
        unpack_bundle(tmp_path / "model.tar.gz", folder)
        assert load_bundle(folder).sha256 == load_bundle(bundle).sha256


def test_archives_made_by_plain_tar_unpack_too(bundle: Path, tmp_path: Path) -> None:
    (bundle / "code").mkdir()
    (bundle / "code" / "inference.py").write_text("raise SystemExit")
    subprocess.run(["tar", "-czf", tmp_path / "model.tar.gz", "-C", bundle, "."], check=True)
    folder = unpack_bundle(tmp_path / "model.tar.gz", tmp_path / "new")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.json", "model.safetensors"]


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content) if kind == tarfile.REGTYPE else 0
    return info, content


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([entry("../escaped")], "leads out"),
        ([entry("a/../../escaped")], "leads out"),
        ([entry("/tmp/escaped")], "leads out"),
        ([entry("model.json", tarfile.SYMTYPE, "/etc/passwd")], "is a link"),
        ([entry("model.json", tarfile.LNKTYPE, "/etc/passwd")], "is a link"),
        ([entry("model.safetensors", tarfile.CHRTYPE)], "device"),
        ([entry("model.safetensors", tarfile.FIFOTYPE)], "device"),
        ([entry("model.json"), entry("model.json")], "twice"),
        ([entry("model.json", content=b" " * (5 << 20))], "at most"),
        ([entry("padding", content=b" " * (5 << 20))], "at most"),
        ([entry(f"file{i}") for i in range(100)], "more than 64 entries"),
        ([entry("model.json")], r"holds no model\.safetensors"),
        ([], r"holds no model\.json"),
    ],
)
def test_hostile_archives_are_refused_and_leave_nothing(entries: list[tuple[tarfile.TarInfo, bytes]], says: str, tmp_path: Path) -> None:
    archive = tmp_path / "in" / "model.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(BundleError, match=says) as error:
        unpack_bundle(archive, tmp_path / "out" / "bundle")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").iterdir())
    assert not Path("/tmp/escaped").exists()


def test_a_size_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = tarfile.TarInfo("model.safetensors")
    header.size = 9 << 30
    (tmp_path / "model.tar.gz").write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096))
    with pytest.raises(BundleError, match="9,663,676,416 bytes, at most"):
        unpack_bundle(tmp_path / "model.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 20, 300_000])
def test_truncated_archives_are_refused(bundle: Path, tmp_path: Path, keep: int) -> None:
    pack_bundle(bundle, tmp_path / "model.tar.gz")
    os.truncate(tmp_path / "model.tar.gz", keep)
    with pytest.raises(BundleError, match=r"no whole tar.gz|holds no") as error:
        unpack_bundle(tmp_path / "model.tar.gz", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        unpack_bundle(tmp_path / "model.tar.gz", tmp_path / "out")


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    """No file may grow beyond 300 kB: what a full disk is to a process, without root."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def check_that_nothing_is_half_written(model: Segmenter, bundle: Path, folder: Path, archive: Path) -> None:
    for write in (
        lambda: save_bundle(folder / "bundle", model, manifest(model)),
        lambda: with_metrics(bundle, folder / "bundle", metrics={}, version="1"),
        lambda: pack_bundle(bundle, folder / "model.tar.gz"),
        lambda: unpack_bundle(archive, folder / "bundle"),
    ):
        with pytest.raises(BundleError, match=r"cannot be written .*free some space") as error:
            write()
        assert "\n" not in str(error.value)
        assert list(folder.iterdir()) == []


def test_file_size_limit_leaves_nothing_half_written(
    model: Segmenter, bundle: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pack_bundle(bundle, tmp_path / "model.tar.gz")
    (tmp_path / "limited").mkdir()
    request.getfixturevalue("file_size_limit")
    check_that_nothing_is_half_written(model, bundle, tmp_path / "limited", tmp_path / "model.tar.gz")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root; the test with a file size limit covers the same code")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_leaves_nothing_half_written(model: Segmenter, bundle: Path, tmp_path: Path, small_disk: Path) -> None:
    pack_bundle(bundle, tmp_path / "model.tar.gz")
    check_that_nothing_is_half_written(model, bundle, small_disk, tmp_path / "model.tar.gz")


def test_failed_save_keeps_the_earlier_bundle(model: Segmenter, bundle: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("file_size_limit")
    with pytest.raises(BundleError):
        save_bundle(bundle, model, manifest(model, title="Another"))
    assert load_bundle(bundle).manifest.title == "Burn scars"


def test_card_says_what_the_model_is(model: Segmenter) -> None:
    metrics = {"test": {"iou": 0.85, "miou": 0.91, "f1": 0.92}, "baseline": {"name": "NBR", "iou": 0.6}}
    card = render_model_card(manifest(model, metrics=metrics))
    for text in (
        "# Burn scars: Prithvi v2_tiny_tl with unet head",
        "pretrained: false",
        "| test | 0.9100 | 0.8500 | 0.9200 |",
        "NBR",
        "IoU 0.6000",
        "0.2500 above it",
        "| data fingerprint | abc123 |",
        "## Intended use and limits",
    ):
        assert text in card
    pretrained = render_model_card(manifest(model, pretrained=True, weights="hf://a/b/c.pt", weights_sha256="f" * 64, metrics={}))
    assert "fine-tuned from hf://a/b/c.pt" in pretrained
    assert "Not measured yet." in pretrained


def test_loading_draws_no_random_weights(bundle: Path) -> None:
    state = torch.get_rng_state()
    load_bundle(bundle)
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_in_a_new_process_is_light(bundle: Path) -> None:
    """Cold start: sympy (a second) is what building on the meta device would import; the rest is for pipelines only."""
    code = (
        "import sys; from pathlib import Path; from hls_foundry.models.bundle import load_bundle; load_bundle(Path(sys.argv[1])); "
        "print([m for m in ('sympy', 'peft', 'pandas', 'huggingface_hub', 'zenml', 'scipy', 'accelerate') if m in sys.modules])"
    )
    root = Path(bundles.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
