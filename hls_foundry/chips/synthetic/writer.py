"""Writes a synthetic data set to disk: all of it or nothing, the same bytes for any number of workers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from hls_foundry.chips.bands import BANDS
from hls_foundry.chips.scene import Grid
from hls_foundry.chips.synthetic.catalogue import capacity, check_request, place_chip
from hls_foundry.chips.synthetic.chip import SyntheticChip, synthetic_chip
from hls_foundry.errors import SourceError

NODATA = -9999
_FOLDERS = {"train": "training", "validation": "validation", "test": "test"}
_LISTS = {"train": "flood_train_data.csv", "validation": "flood_valid_data.csv", "test": "flood_test_data.csv"}


def generate(
    task_name: str,
    folder: Path,
    *,
    chips: int,
    size: int,
    seed: int,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Write `chips` chips of `size` pixels in the layout hls_burn_scars (flood: sen1floods11) to the new folder `folder`.

    Images are int16 reflectance × 10000 with nodata −9999, labels int16 with nodata −1, both deflated GeoTIFFs. The files
    appear under `folder` only when all are written; an interruption leaves nothing. `workers` processes share the work
    (default: one a core). `progress` is called with (chips done, chips in all).

    Raises SourceError, one line, for arguments that allow no data set and for a folder that cannot be written.
    """
    _check(task_name, chips, size, seed, workers)
    workers = min(workers or len(os.sched_getaffinity(0)), chips)
    folder = folder.absolute()
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SourceError(f"synthetic chips need a new folder, but {folder} has content: remove it or name another")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, not in /tmp: a rename must not cross file systems.
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise SourceError(f"synthetic chips cannot be written beside {folder}: {error.strerror}") from None
    try:
        work = (task_name, partial, chips, size, seed)
        done = _write_share(*work, first=0, step=1) if workers == 1 else _write_in_processes(*work, workers=workers)
        with closing(done):  # ends the workers before the folder under them goes
            for count, _ in enumerate(done, start=1):
                if progress:
                    progress(count, chips)
        if task_name == "flood":
            _write_lists(partial, chips, size, seed)
        partial.chmod(0o755)
        partial.replace(folder)
    except (OSError, RasterioError) as error:
        raise SourceError(f"synthetic chips cannot be written to {folder}: {' '.join(str(error).split())}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_chip(task: str, folder: Path, chip: SyntheticChip) -> None:
    """Write one chip and its label where the layout wants them below `folder`."""
    if task == "flood":
        image = folder / "S2Hand" / f"{chip.name}_S2Hand.tif"
        label = folder / "LabelHand" / f"{chip.name}_LabelHand.tif"
    else:
        image = folder / _FOLDERS[chip.listed_split] / f"{chip.name}_merged.tif"
        label = image.with_name(f"{chip.name}.mask.tif")
    counts = np.where(np.isnan(chip.pixels), NODATA, np.rint(np.nan_to_num(chip.pixels) * 10000.0)).astype(np.int16)
    tags = {
        "ACQUISITION_DATE": chip.acquired.isoformat(),
        "TIFFTAG_DATETIME": f"{chip.acquired:%Y:%m:%d} 10:30:00",
        "TIFFTAG_IMAGEDESCRIPTION": f"synthetic chip, task {task}, tile {chip.tile}",
        "TIFFTAG_SOFTWARE": "hls_foundry.chips.synthetic",
    }
    _write_tiff(image, counts, chip.grid, NODATA, tags, BANDS)
    _write_tiff(label, chip.mask[None], chip.grid, -1, tags, ("label",))


def _write_tiff(
    path: Path, array: npt.NDArray[np.int16], grid: Grid, nodata: int, tags: dict[str, str], descriptions: tuple[str, ...]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "int16",
        "count": len(array),
        "width": grid.width,
        "height": grid.height,
        "crs": grid.crs,
        "transform": grid.transform,
        "nodata": nodata,
        "compress": "deflate",
        "predictor": 2,
        "zlevel": 3,  # a higher one is slower and hardly smaller: sensor noise does not compress
        "interleave": "band",
    }
    # By way of memory: GDAL does not raise when a disk fills up as it closes a file, Python does.
    with MemoryFile() as file:
        with file.open(**profile) as dataset:
            dataset.write(array)
            dataset.update_tags(**tags)
            for band, description in enumerate(descriptions, start=1):
                dataset.set_band_description(band, description)
        path.write_bytes(file.getbuffer())


def _write_lists(folder: Path, chips: int, size: int, seed: int) -> None:
    """The split lists as Sen1Floods11 has them: one line `image,label` a chip."""
    lists: dict[str, list[str]] = {split: [] for split in _LISTS}
    for index in range(chips):
        place = place_chip("flood", index, size, seed)
        lists[place.listed_split].append(f"{place.name}_S2Hand.tif,{place.name}_LabelHand.tif\n")
    (folder / "splits").mkdir()
    for split, lines in lists.items():
        (folder / "splits" / _LISTS[split]).write_text("".join(lines), encoding="utf-8")


def _check(task: str, chips: int, size: int, seed: int, workers: int | None) -> None:
    check_request(task, size, seed)
    if chips < 1:
        raise SourceError(f"synthetic chips cannot have chips={chips}: ask for 1 or more")
    if chips > capacity(size):
        room = capacity(size)
        raise SourceError(f"synthetic chips cannot have chips={chips}: the tiles hold {room} of size={size}, ask for fewer or smaller")
    if workers is not None and workers < 1:
        raise SourceError(f"synthetic chips cannot have workers={workers}: use 1 or more")


def _write_share(task: str, folder: Path, chips: int, size: int, seed: int, *, first: int, step: int) -> Generator[int, None, None]:
    for index in range(first, chips, step):
        write_chip(task, folder, synthetic_chip(task, index, size, seed))
        yield index


def _write_in_processes(task: str, folder: Path, chips: int, size: int, seed: int, *, workers: int) -> Generator[int, None, None]:
    """Share the work among `workers` fresh interpreters, and yield the numbers of the chips as they report them.

    Not multiprocessing: its spawned children import the caller's main script again (heavy for run.py, impossible for a
    script on standard input), and its forked ones inherit torch's and GDAL's threads in an unknown state.
    """
    root = str(Path(__file__).resolve().parents[3])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GDAL_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    reports, inbox = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as complaints, reports, inbox:
        try:
            for first in range(workers):
                share = json.dumps([task, str(folder), chips, size, seed, first, workers])
                command = [sys.executable, "-m", "hls_foundry.chips.synthetic", share]
                # A session of its own: Ctrl-C reaches this process alone, which then ends its children.
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=inbox, stderr=complaints, env=environment, start_new_session=True
                )
                children.append(child)
            # The last child to end then ends the lines.
            inbox.close()
            yield from map(int, reports)
            codes = [child.wait() for child in children]
            if any(codes):
                complaints.seek(0)
                last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
                raise OSError(last[0] if last else "a worker process was killed (is memory short?)")
        finally:
            for child in children:
                child.kill()
                child.wait()


def work_share(share: str) -> int:
    """One worker's part: write every `workers`-th chip and report each on standard output. Returns the exit code."""
    task, folder, chips, size, seed, first, workers = json.loads(share)
    try:
        for index in _write_share(task, Path(folder), chips, size, seed, first=first, step=workers):
            # One write a line, as several workers share the pipe.
            os.write(1, f"{index}\n".encode())
    except (OSError, RasterioError) as error:
        os.write(2, " ".join(str(error).split()).encode() + b"\n")
        return 1
    return 0
