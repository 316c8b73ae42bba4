"""The proof that an endpoint computes what was evaluated: every test chip over HTTP, in each request format, for each reply format.

Where the endpoint reads S3, every chip is sent by its s3:// URI as well; one too large for a request goes by its URI only. Replies are
held against an in-process prediction of the same bundle: masks pixel by pixel, rasters by their grid, polygons by their geometry and
area. Requests that must be refused are sent as well.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hls_foundry.chips.reader import ChipReader, read_mask
from hls_foundry.chips.scene import Grid, Scene
from hls_foundry.config import DataConfig
from hls_foundry.endpoints.bad_requests import Refusal, send_bad_requests
from hls_foundry.endpoints.client import MAX_ATTRIBUTES, Invoker, Reply, format_attributes, limits_of
from hls_foundry.endpoints.inbox import S3Inbox
from hls_foundry.endpoints.replies import judge_polygons, mask_of_npy, mask_of_tiff, problem_of_png
from hls_foundry.errors import EndpointError
from hls_foundry.evaluation.evaluate import composite
from hls_foundry.inference.masks import mask_from_probabilities
from hls_foundry.models.bundle import load_bundle, unpack_bundle

if TYPE_CHECKING:
    from hls_foundry.inference.predictor import Predictor

TIFF, JSON, NPY, GEOJSON, PNG = "image/tiff", "application/json", "application/x-npy", "application/geo+json", "image/png"
REQUESTS = (TIFF, JSON, NPY)
REPLIES = (GEOJSON, TIFF, NPY, PNG)
S3_URI = "s3:// in application/json"  # a request format of its own, where there is an S3
MIN_AGREEMENT = 0.9999
_OTHERS = (GEOJSON, NPY, PNG)
PICTURES = 6  # chips whose imagery is kept for the map: those with the most class 1
PICTURE_SIDE = 384  # pixels, at most
Mask = npt.NDArray[np.int16]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ChipPrediction:
    """What the endpoint answered for one chip: for maps."""

    chip: str
    grid: Grid
    mask: Mask | None
    collection: dict[str, Any] | None  # the GeoJSON document
    picture: npt.NDArray[np.uint8] | None = None  # (h, w, 3), SWIR 2, NIR and red of every n-th pixel; of few chips

    @property
    def found(self) -> int:
        """Pixels of class 1."""
        return 0 if self.mask is None else int((self.mask == 1).sum())


@dataclass
class FormatResult:
    """All requests of one request format that asked for one reply format."""

    request: str
    reply: str
    requests: int = 0
    errors: int = 0
    too_large: int = 0  # bodies that were not sent, since the way to the endpoint does not carry them
    equal_pixels: int = 0
    pixels: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def agreement(self) -> float | None:
        """None where the reply holds no mask to compare (polygons, overlay)."""
        return self.equal_pixels / self.pixels if self.pixels else None

    @property
    def p50_ms(self) -> float | None:
        return round(float(np.percentile(self.seconds, 50)) * 1e3, 1) if self.seconds else None


@dataclass
class InferenceTestReport:
    """Result of the inference test. `agreement` and `iou` are shares (0–1), latencies milliseconds seen by the client."""

    formats: list[FormatResult]
    iou: float | None = None
    polygon_problems: list[str] = field(default_factory=list)
    raster_problems: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # requests that were not answered with 200
    bad_requests: list[Refusal] = field(default_factory=list)
    predictions: list[ChipPrediction] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Valid requests and those that must be refused."""
        return sum(result.requests for result in self.formats) + len(self.bad_requests)

    @property
    def errors(self) -> int:
        """Requests that were not answered as documented."""
        return sum(result.errors for result in self.formats) + sum(bool(refusal.problem) for refusal in self.bad_requests)

    @property
    def agreement(self) -> float:
        """Share of pixels on which the endpoint's masks equal the in-process prediction; 0 where none came."""
        pixels = sum(result.pixels for result in self.formats)
        return sum(result.equal_pixels for result in self.formats) / pixels if pixels else 0.0

    def latency_ms(self, percentile: float) -> float:
        """Over all valid requests; NaN where none was answered."""
        seconds = [second for result in self.formats for second in result.seconds]
        return round(float(np.percentile(seconds, percentile)) * 1e3, 1) if seconds else float("nan")

    @property
    def p50_ms(self) -> float:
        return self.latency_ms(50)

    @property
    def p95_ms(self) -> float:
        return self.latency_ms(95)

    def problems(self) -> list[str]:
        """Everything that keeps the test from passing, one line each."""
        found = [*self.failures, *self.raster_problems, *self.polygon_problems]
        found += [f"bad request '{refusal.name}': {refusal.problem}" for refusal in self.bad_requests if refusal.problem]
        if self.agreement < MIN_AGREEMENT:
            found.append(
                f"the endpoint's masks agree with the in-process prediction on {self.agreement:.6f} of the pixels, not {MIN_AGREEMENT}"
            )
        return found

    def notes(self) -> list[str]:
        """What was not sent, and why: nothing that keeps the test from passing."""
        found = [f"bad request '{refusal.name}': {refusal.note}" for refusal in self.bad_requests if refusal.note]
        if skipped := [result for result in self.formats if result.too_large]:
            count, kinds = sum(result.too_large for result in skipped), sorted({result.request for result in skipped})
            found.append(f"{count} bodies ({', '.join(kinds)}) are larger than one request carries: sent by s3:// URI only")
        return found

    def passes(self) -> bool:
        return not self.problems()

    def summary(self) -> dict[str, Any]:
        """The part `inference_test` of run.py's JSON summary."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "agreement": self.agreement,
            "iou": self.iou,
            "p50_ms": self.p50_ms,
            "p95_ms": self.p95_ms,
        }


def run_inference_test(
    client: Invoker,
    bundle: Path,
    chips: pd.DataFrame,
    root: Path,
    *,
    data: DataConfig,
    threshold: float | None = None,
    progress: Progress | None = None,
    s3: S3Inbox | None = None,
) -> InferenceTestReport:
    """Test the endpoint behind `client` against the bundle (folder or model.tar.gz) that it is meant to serve.

    `s3`: a place that the endpoint may read; every chip is then uploaded, sent by its URI too, and removed again. `chips`: columns chip,
    image and mask, paths relative to `root` (mask "" where there is none). Raises EndpointError without chips, and what reading a chip or
    the bundle raises; whatever the endpoint does wrong is in the report.
    """
    if chips.empty:
        raise EndpointError("the inference test has no chips: the test split is empty")
    predictor = _predictor(bundle)
    test = _Test(client, data, threshold, s3)
    for index, row in enumerate(chips.to_dict("records")):
        mask = root / row["mask"] if row["mask"] else None
        test.chip(index, len(chips), str(row["chip"]), root / row["image"], mask, predictor)
        if progress:
            progress(index + 1, len(chips))
    test.report.iou = test.iou()
    test.report.bad_requests = send_bad_requests(client)
    return test.report


def _predictor(bundle: Path) -> Predictor:
    from hls_foundry.inference.predictor import Predictor  # torch takes two seconds to import

    if bundle.is_dir():
        return Predictor(load_bundle(bundle))
    with tempfile.TemporaryDirectory(prefix="hls-bundle-") as folder:
        unpack_bundle(bundle, Path(folder))
        return Predictor(load_bundle(Path(folder)))


def _pairs(index: int, chips: int) -> Iterator[tuple[str, str]]:
    """Which formats chip `index` is sent in: each request and each reply format, and over three chips every pair of them."""
    if chips < len(REQUESTS):
        yield from product(REQUESTS, REPLIES)
        return
    for position, reply in enumerate(REPLIES):
        yield REQUESTS[(index + position) % len(REQUESTS)], reply


@dataclass
class _Chip:
    """A chip being sent: its bytes, what it holds, the mask that must come back, and what did come back."""

    name: str
    content: bytes
    scene: Scene
    expected: Mask
    uri: str = ""  # in S3, for as long as it is there
    answered: Mask | None = None
    collection: dict[str, Any] | None = None


class _Test:
    """Collects the report while the chips are sent."""

    def __init__(self, client: Invoker, data: DataConfig, threshold: float | None, s3: S3Inbox | None) -> None:
        self._client, self._data, self._threshold, self._s3 = client, data, threshold, s3
        self._max_body = limits_of(client).max_body
        self._formats = {pair: FormatResult(*pair) for pair in product((*REQUESTS, S3_URI), REPLIES)}
        self._hit = self._union = 0
        self.report = InferenceTestReport(list(self._formats.values()))

    def iou(self) -> float | None:
        """Of class 1 over all chips with labels, by the endpoint's masks; None without labels or without class 1."""
        return self._hit / self._union if self._union else None

    def chip(self, index: int, chips: int, name: str, image: Path, mask: Path | None, predictor: Predictor) -> None:
        """Send chip `index` of `chips` in its share of the formats."""
        with ChipReader(image, bands=self._data.bands, scale=self._data.scale, nodata=self._data.nodata) as reader:
            scene = reader.scene()
        probabilities = predictor.probabilities(scene.pixels, scene.acquired, scene.location)
        chip = _Chip(name, image.read_bytes(), scene, mask_from_probabilities(probabilities, self._threshold))
        del probabilities
        whole = True
        for request, reply in _pairs(index, chips):
            whole &= self._one(chip, request, reply)
        if self._s3 is not None:
            self._by_uri(chip, self._s3, (TIFF, _OTHERS[index % len(_OTHERS)]) if whole else REPLIES)
        elif not whole:
            self.report.failures.append(f"chip {name}: larger than one request carries, and there is no S3 to send it through")
        if mask is not None and chip.answered is not None:
            self._score(chip.answered, read_mask(mask))
        self.report.predictions.append(ChipPrediction(name, scene.grid, chip.answered, chip.collection, _picture(scene)))
        _keep_pictures(self.report.predictions)

    def _by_uri(self, chip: _Chip, s3: S3Inbox, replies: Sequence[str]) -> None:
        try:
            with s3.holding(chip.content, suffix=".tif") as chip.uri:
                for reply in replies:
                    self._one(chip, S3_URI, reply)
        except EndpointError as error:
            self.report.failures.append(f"chip {chip.name}: {error}")

    def _one(self, chip: _Chip, request: str, reply: str) -> bool:
        """Send the chip once and judge the answer; False where its body is larger than a request carries."""
        result, where = self._formats[request, reply], f"chip {chip.name}, {request} → {reply}"
        body, attributes, grid = self._request(request, chip)
        if self._max_body is not None and len(body) > self._max_body:
            result.too_large += 1
            return False
        result.requests += 1
        try:
            answer = self._client.invoke(body, content_type=JSON if request == S3_URI else request, accept=reply, attributes=attributes)
        except EndpointError as error:
            result.errors += 1
            self.report.failures.append(f"{where}: {error}")
            return True
        if answer.status != 200:
            result.errors += 1
            self.report.failures.append(f"{where}: {answer.status} {answer.body[:200].decode(errors='replace')}")
            return True
        result.seconds.append(answer.seconds)
        if reply == GEOJSON:
            found, problems = judge_polygons(answer, chip.expected, grid)
            chip.collection = found if found is not None else chip.collection
            self.report.polygon_problems += [f"{where}: {problem}" for problem in problems]
            return True
        got, problem = self._raster(reply, answer, grid)
        if problem:
            self.report.raster_problems.append(f"{where}: {problem}")
        if got is not None:
            chip.answered = got
            result.pixels += chip.expected.size
            result.equal_pixels += int((got == chip.expected).sum())
        return True

    def _raster(self, reply: str, answer: Reply, grid: Grid) -> tuple[Mask | None, str]:
        if reply == TIFF:
            return mask_of_tiff(answer, grid)
        if reply == NPY:
            return mask_of_npy(answer, grid, self._threshold)
        return None, problem_of_png(answer, grid)

    def _request(self, request: str, chip: _Chip) -> tuple[bytes, str, Grid]:
        """Body and attributes, and the grid that rasters in the reply must have."""
        options: dict[str, Any] = {"threshold": self._threshold}
        scene, grid = chip.scene, chip.scene.grid
        if request == NPY:
            options |= {"acquired": scene.acquired, "location": scene.location}
            placed = options | _place(grid)
            if len(format_attributes(placed)) <= MAX_ATTRIBUTES:
                options = placed
            else:  # a CRS whose text is too long for the header: the array goes without its place
                grid = Grid(grid.width, grid.height)
            return _npy_bytes(scene.pixels), format_attributes(options), grid
        options |= {"bands": self._data.bands, "scale": self._data.scale, "nodata": self._data.nodata}
        if request == TIFF:
            return chip.content, format_attributes(options), grid
        image = chip.uri if request == S3_URI else base64.b64encode(chip.content).decode("ascii")
        given = {key: value for key, value in options.items() if value is not None}
        return json.dumps({"image": image, **given}).encode(), "", grid

    def _score(self, answered: Mask, label: Mask) -> None:
        counted = (label >= 0) & (answered >= 0)
        self._hit += int(((answered == 1) & (label == 1) & counted).sum())
        self._union += int((((answered == 1) | (label == 1)) & counted).sum())


def _picture(scene: Scene) -> npt.NDArray[np.uint8]:
    step = -(-max(scene.grid.height, scene.grid.width) // PICTURE_SIDE)
    return composite(scene.pixels[:, ::step, ::step], (5, 3, 2))


def _keep_pictures(predictions: list[ChipPrediction]) -> None:
    """Drop the imagery of the chip with the least class 1, where more chips have theirs than are drawn."""
    shown = [number for number, prediction in enumerate(predictions) if prediction.picture is not None]
    if len(shown) > PICTURES:
        least = min(shown, key=lambda number: predictions[number].found)
        predictions[least] = replace(predictions[least], picture=None)


def _place(grid: Grid) -> dict[str, Any]:
    return {} if grid.crs is None else {"crs": grid.crs.to_string(), "transform": tuple(grid.transform)[:6]}


def _npy_bytes(pixels: npt.NDArray[np.float32]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, pixels, allow_pickle=False)
    return buffer.getvalue()


def merged(reports: Sequence[InferenceTestReport]) -> InferenceTestReport:
    """One report of the models behind one endpoint; `iou` is that of the first."""
    formats: dict[tuple[str, str], FormatResult] = {}
    for result in (result for report in reports for result in report.formats):
        total = formats.setdefault((result.request, result.reply), FormatResult(result.request, result.reply))
        for name in ("requests", "errors", "too_large", "equal_pixels", "pixels"):
            setattr(total, name, getattr(total, name) + getattr(result, name))
        total.seconds = total.seconds + result.seconds
    whole = InferenceTestReport(list(formats.values()), iou=reports[0].iou)
    for name in ("polygon_problems", "raster_problems", "failures", "bad_requests", "predictions"):
        setattr(whole, name, [item for report in reports for item in getattr(report, name)])
    return whole
