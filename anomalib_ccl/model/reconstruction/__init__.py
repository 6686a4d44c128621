"""The reconstruction networks that CCL can be put on, behind one interface: encode, embed, decode."""

from .base import ReconstructionNetwork
from .reverse_distillation import ReverseDistillation

__all__ = ["ReconstructionNetwork", "ReverseDistillation"]
