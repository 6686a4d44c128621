"""The models of test_inference.py."""

import torch
from anomalib.models import ReverseDistillation
from anomalib.models.components import AnomalibModule

from anomalib_ccl import CCL
from anomalib_ccl.training.post_processor import LimitPostProcessor


def build(backbone: str, kind: str) -> AnomalibModule:
    """CCL with this kind of projection, or, as "plain", reverse distillation; with a threshold, as after a training.

    "recommended 60 160" is the recommended recipe with the memories of 60 products, at 160 pixels.
    """
    torch.manual_seed(0)
    if kind.startswith("recommended"):
        classes, side = map(int, kind.split()[1:])
        model = CCL(backbone, (side, side), "recommended", memory=500 if classes else 0, pre_trained=False).eval()
        return known(model, max(classes, 15))
    if kind == "plain" and backbone == "wide_resnet50_2":
        return ReverseDistillation(backbone, pre_trained=False, post_processor=LimitPostProcessor()).eval()
    projection = "none" if kind == "plain" else kind
    research = {"projection": projection}
    model = CCL(backbone, pre_trained=False, research=research, post_processor=LimitPostProcessor()).eval()
    return model if kind == "plain" else known(model, 15)


def known(model: CCL, classes: int) -> CCL:
    """Calibrate by random numbers: as many classes, each with a memory where the model has one."""
    with torch.inference_mode():
        look = model.model.look(torch.rand(1, 3, 64, 64))[0]
    labels = torch.arange(2 * classes) // 2
    model.model.calibration.fit(torch.randn(len(labels), look.embedding.shape[1]), torch.rand(len(labels)), labels)
    model.model.calibration.novelty_threshold.fill_(2)  # no image is of an unknown product
    if look.patches is not None:
        model.model.memory.vectors = torch.rand(classes, model.model.memory.size, look.patches.shape[1])
    model.classes.names = [f"{number:02}" for number in range(classes)]
    return model
