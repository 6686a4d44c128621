"""The CCL model: a reconstruction network trained with two class-aware contrastive losses.

Class-aware contrastive learning is described in Fan et al., "Salvaging the Overlooked: Leveraging Class-Aware
Contrastive Learning for Multi-Class Anomaly Detection", ICCV 2025, https://arxiv.org/abs/2412.04769.
"""

# anomalib's own models come first: importing them runs the plug-in's import hook, which needs the modules here.
import anomalib.models  # noqa: F401

from anomalib_ccl.model.global_loss import GlobalContrastiveLoss
from anomalib_ccl.model.local_loss import LocalContrastiveLoss
from anomalib_ccl.model.torch_model import CCLModel

__all__ = ["CCLModel", "GlobalContrastiveLoss", "LocalContrastiveLoss"]
