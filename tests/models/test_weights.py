"""Checkpoints: every form that they are published in loads, and none that is damaged, unsafe or of another architecture."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hls_foundry.errors import WeightsError
from hls_foundry.models.prithvi import PrithviEncoder, position_embedding
from hls_foundry.models.variants import VARIANTS
from hls_foundry.models.weights import load_encoder_weights

GOLDEN = Path(__file__).parent / "golden"
TL = ("time", "location")


def small(**options: Any) -> PrithviEncoder:
    return PrithviEncoder(
        **{"embed_dim": 48, "depth": 3, "num_heads": 3, "image_size": 64, "num_frames": 3, "coords_encoding": TL, **options}
    )


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return load_file(GOLDEN / "three_frames_tl.safetensors")


def decoder() -> dict[str, Tensor]:
    return {
        "decoder.mask_token": torch.zeros(1, 1, 8),
        "decoder.decoder_pos_embed": torch.zeros(1, 4, 8),
        "decoder.decoder_pred.bias": torch.zeros(3),
    }


def same(encoder: PrithviEncoder, expected: dict[str, Tensor]) -> bool:
    state = encoder.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {f"encoder.{k}": v for k, v in s.items()} | decoder(),
        lambda s: {"model": {f"module.encoder.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {
            "state_dict": {f"model.encoder._timm_module.{k}": v for k, v in s.items()} | {"model.decoder.conv.weight": torch.zeros(1)}
        },
        lambda s: {f"backbone.{k}": v for k, v in s.items()} | {"mask_token": torch.zeros(1), "decoder_embed.weight": torch.zeros(2, 2)},
        lambda s: {k: v.double() for k, v in s.items()},
    ],
    ids=["plain", "with decoder", "nested module", "lightning", "backbone", "float64"],
)
def test_published_forms_of_a_pt_file_load(wrap: Callable[[dict[str, Tensor]], Any], published: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(wrap(published), tmp_path / "w.pt")
    encoder = small()
    report = load_encoder_weights(encoder, str(tmp_path / "w.pt"))
    assert same(encoder, published)
    assert report.fresh == []
    assert not report.resized_pos_embed
    assert report.sha256 == hashlib.sha256((tmp_path / "w.pt").read_bytes()).hexdigest()
    assert all("decoder" in key or "mask_token" in key for key in report.ignored)


def test_older_torch_format_and_safetensors_load(published: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(published, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file({f"encoder.{k}": v for k, v in published.items()}, tmp_path / "new.bin")
    for name in ("old.pt", "new.bin"):
        encoder = small()
        load_encoder_weights(encoder, str(tmp_path / name))
        assert same(encoder, published)


def test_digest_is_verified(tmp_path: Path) -> None:
    path = GOLDEN / "three_frames_tl.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_encoder_weights(small(), str(path), sha256=digest.upper()).sha256 == digest
    with pytest.raises(WeightsError, match="expected 0000"):
        load_encoder_weights(small(), str(path), sha256="0" * 64)


def test_fewer_frames_rebuild_the_position_embedding(published: dict[str, Tensor]) -> None:
    encoder = small(num_frames=1, image_size=224)
    state = small(image_size=224).state_dict() | {k: v for k, v in published.items() if k != "pos_embed"}
    assert state["pos_embed"].shape[1] == 1 + 3 * 14 * 14
    report = load(encoder, state)
    assert report.resized_pos_embed
    torch.testing.assert_close(encoder.pos_embed, position_embedding(48, (1, 14, 14)))


def load(encoder: PrithviEncoder, state: dict[str, Tensor]) -> Any:
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        save_file({k: v.contiguous() for k, v in state.items()}, file.name)
        return load_encoder_weights(encoder, file.name)


def test_larger_image_keeps_ground_under_the_same_embedding() -> None:
    encoder = small(num_frames=1, image_size=448, coords_encoding=())
    report = load(encoder, small(num_frames=1, image_size=224, coords_encoding=()).state_dict())
    assert report.resized_pos_embed
    corner, published = encoder.pos_embed[0, -1], position_embedding(48, (1, 14, 14))[0, -1]
    torch.testing.assert_close(corner, published, rtol=0, atol=1e-5)


def test_other_patch_size_leaves_the_patch_embedding_fresh() -> None:
    source, encoder = small(image_size=224, num_frames=1), small(image_size=224, num_frames=1, patch_size=(1, 8, 8))
    before = encoder.patch_embed.proj.weight.clone()
    report = load(encoder, source.state_dict())
    assert report.fresh == ["patch_embed.proj.weight", "patch_embed.proj.bias"]
    assert report.resized_pos_embed
    assert torch.equal(encoder.patch_embed.proj.weight, before)
    assert torch.equal(encoder.blocks[2].mlp.fc1.weight, source.blocks[2].mlp.fc1.weight)


@pytest.mark.parametrize("variant", ["v2_tiny_tl", "v1_100"])
def test_file_of_published_shape_loads_for_one_frame(variant: str, tmp_path: Path) -> None:
    v = VARIANTS[variant]
    with torch.device("meta"):
        source = PrithviEncoder(v.embed_dim, v.depth, v.num_heads, num_frames=v.num_frames, coords_encoding=v.coords_encoding)
        encoder = PrithviEncoder(v.embed_dim, v.depth, v.num_heads, num_frames=1, coords_encoding=v.coords_encoding)
    state = {f"encoder.{k}": torch.full(t.shape, 0.5, dtype=torch.float16) for k, t in source.state_dict().items()} | decoder()
    torch.save(state, tmp_path / "w.pt")
    encoder.to_empty(device="cpu")
    report = load_encoder_weights(encoder, str(tmp_path / "w.pt"))
    assert report.resized_pos_embed == (v.num_frames != 1)
    assert len(report.ignored) == 3
    assert all((p == 0.5).all() for p in encoder.parameters())


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pickled-code-ran",)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_pickled_code_is_refused_and_not_run(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: dict[str, Tensor]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {**published, "extra": Payload()}
    if form == "pickle":
        Path("w.pt").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, "w.pt", _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError) as error:
        load_encoder_weights(small(), "w.pt")
    assert "\n" not in str(error.value)
    assert not Path("pickled-code-ran").exists()
    if form == "zip":
        assert "holds pickled code" in str(error.value)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 500, 100_000, 600_000])
def test_truncated_files_are_refused_in_one_line(suffix: str, keep: int, published: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    save_file(published, path) if suffix == "safetensors" else torch.save(published, path)
    os.truncate(path, keep)
    with pytest.raises(WeightsError, match="fetch it again") as error:
        load_encoder_weights(small(), str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"<html>404</html>" * 100, bytes(range(256)) * 50, b"PK\x03\x04" + b"\0" * 5000])
def test_other_files_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(WeightsError) as error:
        load_encoder_weights(small(), str(tmp_path / "w.pt"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {k: v for k, v in s.items() if not k.startswith("blocks.2.")}, r"12 keys missing \(blocks\.2\."),
        (lambda s: s | {"blocks.3.norm1.weight": torch.zeros(48)}, "1 keys unexpected"),
        (lambda s: {k: v for k, v in s.items() if "scale" not in k}, "2 keys missing"),
        (lambda s: {k: v for k, v in s.items() if k.startswith("blocks")}, "no Prithvi encoder"),
        (lambda s: s | {"cls_token": torch.full((1, 1, 48), float("nan"))}, "not numbers"),
        (lambda s: {"a": torch.zeros(1)}, "no Prithvi encoder"),
    ],
)
def test_other_keys_are_refused_naming_them(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], says: str, published: dict[str, Tensor]
) -> None:
    with pytest.raises(WeightsError, match=says) as error:
        load(small(), change(published))
    assert "\n" not in str(error.value)


def test_other_architecture_is_named_on_both_sides() -> None:
    tiny = PrithviEncoder(192, 12, 3, coords_encoding=TL)
    with torch.device("meta"):
        large = PrithviEncoder(768, 12, 12, coords_encoding=TL)
    with pytest.raises(WeightsError, match=r"looks like v2_tiny_tl .*the model is v2_100_tl .*"):
        load(large, tiny.state_dict())
    with torch.device("meta"):
        v1 = PrithviEncoder(768, 12, 12)
    with pytest.raises(WeightsError, match=r"looks like v2_tiny_tl .*the model is v1_100 .*2 keys unexpected \(location_embed_enc"):
        load(v1, tiny.state_dict())


def test_missing_file_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint at nowhere/w.pt"):
        load_encoder_weights(small(), "nowhere/w.pt")


class Hub(BaseHTTPRequestHandler):
    """What the hub's client asks of the hub, for one file."""

    def __init__(self, *args: Any, content: bytes) -> None:
        self.content = content
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path != "/owner/name/resolve/main/sub/w.safetensors":
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.content)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    content = (GOLDEN / "three_frames_tl.safetensors").read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, content=content))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield "hf://owner/name/sub/w.safetensors"
    server.shutdown()
    server.server_close()
    thread.join()


def test_hub_file_is_downloaded_once(hub: str, published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small()
    report = load_encoder_weights(encoder, hub, cache=tmp_path)
    assert same(encoder, published)
    assert report.source == hub
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert load_encoder_weights(small(), hub, cache=tmp_path).sha256 == report.sha256


def test_file_that_the_hub_has_not_is_named(hub: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"other\.pt does not exist on the hub"):
        load_encoder_weights(small(), "hf://owner/name/other.pt", cache=tmp_path)


def test_unreachable_hub_is_said_quickly_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    started = time.monotonic()
    with pytest.raises(WeightsError, match=r"cannot be fetched .*check the network") as error:
        load_encoder_weights(small(), "hf://owner/name/w.pt", cache=tmp_path)
    assert time.monotonic() - started < 10
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("weights", ["hf://owner", "hf://owner/name", "hf://owner/name/"])
def test_incomplete_hub_addresses_are_refused(weights: str) -> None:
    with pytest.raises(WeightsError, match="is not hf://OWNER/NAME/FILE"):
        load_encoder_weights(small(), weights)
