"""Fractal random fields: white noise filtered in the Fourier domain, which is what landscapes, clouds and textures are cut from."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class FractalFields:
    """Independent fields of zero mean and unit variance on one n × n canvas, all drawn from one random generator.

    The canvas wraps around, so a caller crops it: opposite edges of a chip then do not continue each other.
    """

    def __init__(self, random: np.random.Generator, n: int) -> None:
        self.random = random
        self.n = n
        self._spare: dict[tuple[float, float, float], FloatArray] = {}

    def field(self, slope: float, longest: float = np.inf, shortest: float = 0.0) -> FloatArray:
        """float32 (n, n). Amplitude falls with frequency to the power −`slope` (1 rough, 2 like terrain, 3 smooth) for
        wavelengths between `shortest` and `longest` pixels."""
        key = (slope, longest, shortest)
        if key in self._spare:
            return self._spare.pop(key)
        noise = self.random.standard_normal((self.n, 2 * self.n), np.float32).view(np.complex64)
        # Real and imaginary part of one complex transform are two independent fields.
        pair = fft.ifft2(noise * _amplitude(self.n, *key), overwrite_x=True)
        self._spare[key] = _standardised(pair.imag)
        return _standardised(pair.real)

    def share(self, field: FloatArray, share: float) -> BoolArray:
        """The highest `share` of a field's pixels."""
        return field > np.quantile(field[::2, ::2], 1.0 - share)


@lru_cache(maxsize=48)
def _amplitude(n: int, slope: float, longest: float, shortest: float) -> FloatArray:
    along = np.fft.fftfreq(n).astype(np.float32)
    frequency = np.hypot(along[:, None], along[None, :])
    frequency[0, 0] = 1.0
    amplitude = frequency ** np.float32(-slope)
    if np.isfinite(longest):
        amplitude /= 1.0 + (1.0 / (frequency * longest)) ** 4
    if shortest > 0:
        amplitude *= np.exp(-((frequency * shortest) ** 2) / 2)
    amplitude[0, 0] = 0.0
    return amplitude.astype(np.float32)


def _standardised(field: FloatArray) -> FloatArray:
    field = field - field.mean()
    field /= field.std() + 1e-9
    return np.ascontiguousarray(field, np.float32)


def smoothstep(field: FloatArray, low: float, high: float) -> FloatArray:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((field - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t), np.float32)


def blur(image: FloatArray, sigma: float) -> FloatArray:
    """Gaussian blur of the last two axes."""
    sigmas = (0.0,) * (image.ndim - 2) + (sigma, sigma)
    return np.asarray(ndimage.gaussian_filter(image, sigmas, truncate=3.0, mode="nearest"), np.float32)


def coherent(mask: BoolArray, *, sigma: float, smallest: int) -> BoolArray:
    """The mask with its outline smoothed over `sigma` pixels, without pieces and holes under `smallest` pixels: what a
    person who draws labels leaves out too."""
    smooth = blur(mask.astype(np.float32), sigma) > 0.5
    for value in (True, False):
        pieces, count = ndimage.label(smooth == value)
        if count:
            sizes = np.bincount(pieces.ravel())
            small = sizes < smallest
            small[0] = False
            smooth[small[pieces]] = not value
    return np.asarray(smooth, np.bool_)


def hashed(*keys: npt.NDArray[Any] | int) -> npt.NDArray[np.int64]:
    """A pseudo-random number from 0 to 1023 for each combination of integers."""
    mixed = np.zeros(1, np.int64)
    for key, prime in zip(keys, (73_856_093, 19_349_663, 83_492_791, 49_979_687), strict=False):
        mixed = mixed ^ (np.asarray(key, np.int64) * prime)
    mixed = (mixed ^ (mixed >> 13)) * 1_274_126_177 & 0x7FFFFFFF
    return np.asarray((mixed ^ (mixed >> 16)) & 1023, np.int64)
