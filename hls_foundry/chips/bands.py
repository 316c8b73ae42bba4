"""The six HLS bands, in the order every array of this project has them, and the names other products give them."""

from __future__ import annotations

BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")
"""Blue, Green, Red, NIR narrow, SWIR 1, SWIR 2 (HLS user guide v2, table 2)."""

SENTINEL2_13 = (2, 3, 4, 9, 12, 13)
"""Band numbers (from 1) of the six in a 13-band Sentinel-2 stack: B02, B03, B04, B8A, B11, B12."""

ALIASES = {
    # HLS S30 and Sentinel-2 / HLS L30 and Landsat 8: B05 is NIR on Landsat and a red-edge band on Sentinel-2, so the sensor decides.
    "sentinel2": {"B02": "blue", "B03": "green", "B04": "red", "B8A": "nir", "B11": "swir1", "B12": "swir2"},
    "landsat": {"B02": "blue", "B03": "green", "B04": "red", "B05": "nir", "B06": "swir1", "B07": "swir2"},
}
