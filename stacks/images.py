"""The images that were pushed last, for stack files: `containers.push` writes them down, and run.py fills variables that are not set."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hls_foundry.errors import ConfigError

FILE = "images.json"
"""In HLS_FOUNDRY_HOME: VARIABLE → image with its digest."""

VARIABLES = {"serve": "HLS_AWS_IMAGE", "train": "HLS_AWS_TRAIN_IMAGE"}
"""The variable of the stack files that names each image of containers/."""


def pushed_images(home: Path) -> dict[str, str]:
    """What was written down in `home`; empty where nothing was pushed. Raises ConfigError for a file that is none of ours."""
    file = home / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): delete it and push again") from None
    if not isinstance(found, dict) or not all(isinstance(image, str) for image in found.values()):
        raise ConfigError(f"{file} does not name images: delete it and push again")
    return {name: image for name, image in found.items() if name in VARIABLES.values()}


def note_pushed(home: Path, name: str, image: str) -> Path:
    """Write down that the image of containers/`name` is `image`, which has its digest; returns the file."""
    file = home / FILE
    known = {**pushed_images(home), VARIABLES[name]: image}
    home.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    fresh.replace(file)
    return file
