"""The reconstruction networks that CCL can be put on, behind one interface: encode, embed, decode."""

from anomalib_ccl.model.reconstruction.base import ReconstructionNetwork
from anomalib_ccl.model.reconstruction.recipe import Recipe, View

__all__ = ["Recipe", "ReconstructionNetwork", "View"]
