"""The models of test_inference.py."""

import torch
from anomalib.models import ReverseDistillation
from anomalib.models.components import AnomalibModule

from anomalib_ccl import CCL
from anomalib_ccl.training.post_processor import LimitPostProcessor


def build(backbone: str, kind: str) -> AnomalibModule:
    """CCL with this kind of projection, or, as "plain", reverse distillation; with a threshold, as after a training."""
    torch.manual_seed(0)
    if kind == "plain" and backbone == "wide_resnet50_2":
        return ReverseDistillation(backbone, pre_trained=False, post_processor=LimitPostProcessor()).eval()
    projection = "none" if kind == "plain" else kind
    research = {"projection": projection}
    model = CCL(backbone, pre_trained=False, research=research, post_processor=LimitPostProcessor()).eval()
    if kind != "plain":
        with torch.inference_mode():
            dimensions = model.model(torch.rand(1, 3, 64, 64)).embedding.shape[1]
        model.model.calibration.fit(torch.randn(30, dimensions), torch.rand(30), torch.arange(30) // 2)
        model.classes.names = [f"{number:02}" for number in range(15)]
    return model
