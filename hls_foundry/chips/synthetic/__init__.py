"""Synthetic HLS chips with labels: the data set that comes with the project, so that a first run needs no download.

`synthetic_chip` makes one chip as a pure function of its arguments; `generate` writes a whole data set in the task's layout.
The imagery is a model of a landscape and of how a sensor sees it, not a learnt or copied picture: read in this order,
`catalogue` (where and when), `terrain`, `landcover`, `burning` or `flooding`, `atmosphere`, and `chip` that joins them.
"""

from hls_foundry.chips.synthetic.chip import SyntheticChip, synthetic_chip
from hls_foundry.chips.synthetic.writer import generate

__all__ = ["SyntheticChip", "generate", "synthetic_chip"]
