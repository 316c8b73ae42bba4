"""Reflectance spectra of surfaces in the six HLS bands: the palette of the synthetic landscapes.

Surface reflectance (0–1) of blue, green, red, NIR, SWIR 1, SWIR 2. Values are typical of what the USGS and ECOSTRESS spectral
libraries give when convolved to Landsat 8 or Sentinel-2 bands and of clean pixels in HLS scenes; variety comes with texture and mixture.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

SPECTRA: dict[str, tuple[float, float, float, float, float, float]] = {
    "conifer": (0.020, 0.037, 0.027, 0.225, 0.098, 0.045),
    "broadleaf": (0.027, 0.055, 0.034, 0.350, 0.165, 0.072),
    "broadleaf_autumn": (0.036, 0.068, 0.078, 0.270, 0.190, 0.100),
    "shrub": (0.040, 0.064, 0.066, 0.220, 0.200, 0.120),
    "sagebrush": (0.058, 0.083, 0.102, 0.215, 0.265, 0.185),
    "grass_green": (0.034, 0.074, 0.048, 0.340, 0.215, 0.108),
    "grass_dry": (0.070, 0.105, 0.142, 0.275, 0.330, 0.225),
    "crop_full": (0.027, 0.064, 0.034, 0.450, 0.200, 0.095),
    "crop_early": (0.053, 0.084, 0.080, 0.270, 0.245, 0.160),
    "crop_ripe": (0.068, 0.110, 0.135, 0.310, 0.300, 0.180),
    "stubble": (0.085, 0.120, 0.160, 0.265, 0.350, 0.260),
    "soil_dark": (0.042, 0.056, 0.070, 0.112, 0.165, 0.150),
    "soil_brown": (0.068, 0.098, 0.135, 0.205, 0.285, 0.240),
    "soil_bright": (0.110, 0.160, 0.215, 0.305, 0.395, 0.340),
    "soil_red": (0.055, 0.085, 0.155, 0.240, 0.320, 0.270),
    "soil_wet": (0.042, 0.058, 0.070, 0.094, 0.055, 0.031),
    "rock": (0.100, 0.130, 0.155, 0.195, 0.245, 0.220),
    "basalt": (0.046, 0.053, 0.060, 0.080, 0.108, 0.103),
    "asphalt": (0.062, 0.070, 0.078, 0.092, 0.105, 0.098),
    "roof_dark": (0.055, 0.058, 0.058, 0.056, 0.045, 0.039),
    "roof_tile": (0.075, 0.100, 0.165, 0.215, 0.260, 0.235),
    "roof_bright": (0.270, 0.300, 0.320, 0.345, 0.355, 0.310),
    "water_clear": (0.034, 0.030, 0.017, 0.008, 0.005, 0.003),
    "water_turbid": (0.068, 0.104, 0.122, 0.078, 0.018, 0.011),
    "water_silty": (0.085, 0.130, 0.165, 0.135, 0.030, 0.019),
    "water_eutrophic": (0.030, 0.060, 0.034, 0.060, 0.014, 0.008),
    "reeds": (0.034, 0.060, 0.050, 0.235, 0.125, 0.062),
    "char": (0.032, 0.038, 0.044, 0.072, 0.118, 0.128),
    "scorched": (0.042, 0.058, 0.076, 0.145, 0.210, 0.168),
    "ash": (0.165, 0.178, 0.190, 0.220, 0.255, 0.245),
    "snow": (0.850, 0.840, 0.830, 0.740, 0.120, 0.085),
    "cloud": (0.640, 0.620, 0.615, 0.640, 0.470, 0.350),
}

DIFFUSE_SHARE: FloatArray = np.array([0.34, 0.26, 0.19, 0.11, 0.05, 0.04], np.float32)
"""Share of the light that comes from the sky, not the sun: what is left in a shadow."""

RAYLEIGH: FloatArray = np.array([0.082, 0.050, 0.028, 0.010, 0.003, 0.001], np.float32)
"""Path reflectance of clean air at 30° from the zenith (6S, mid-latitude): what top-of-atmosphere data adds to surface reflectance."""

HAZE: FloatArray = np.array([1.0, 0.78, 0.60, 0.32, 0.12, 0.06], np.float32)
"""Aerosol path reflectance relative to blue."""


def spectrum(name: str) -> FloatArray:
    """float32 (6,) of one surface."""
    return np.array(SPECTRA[name], np.float32)


def spectra(*names: str) -> FloatArray:
    """float32 (6, len(names)): one column a surface."""
    return np.array([SPECTRA[name] for name in names], np.float32).T


def mixed(palette: FloatArray, shares: FloatArray) -> FloatArray:
    """Linear mixture: float32 (6, n, n) of `palette` (6, surfaces) by `shares` (surfaces, n, n).

    Summed surface by surface, not by a matrix product: BLAS adds in an order that depends on its threads, and then the same
    chip would differ in the last bit.
    """
    image = np.zeros((len(palette), *shares.shape[1:]), np.float32)
    for band, row in enumerate(palette.astype(np.float32)):
        for surface, value in enumerate(row):
            image[band] += value * shares[surface]
    return image
