"""Calibration of a network in one pass over the training images."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from anomalib.data import ImageBatch
from anomalib.models.components import AnomalibModule
from torch import Tensor, nn

from anomalib_ccl.training.training_pass import training_images
from anomalib_ccl.training.views import calibration_view


class Calibratable(Protocol):
    """What calibration needs of a network: raw scores of images, and a place for what they tell."""

    calibration: Any

    @property
    def network(self) -> nn.Module:
        """The reconstruction network, whose running statistics the processes must share."""

    def score(self, images: Tensor) -> Any:  # noqa: ANN401
        """Give embeddings of shape ``(B, D)`` and raw scores of shape ``(B, 1)`` of images."""


@torch.no_grad()
def calibrate(model: AnomalibModule, network: Calibratable, labels: Callable[[ImageBatch], Tensor]) -> None:
    """Fit a network's calibration to the training images of its model's Trainer.

    On several processes, each makes the whole pass, so that all get the same result.

    Args:
        model: A model in training.
        network: The part of it that is calibrated.
        labels: Gives the classes of training images, integers of shape ``(B,)``.
    """
    training = model.training
    model.eval()
    view = calibration_view()
    embeddings, scores, classes = [], [], []
    for batch in training_images(model, "Calibration"):
        raw = network.score(view(batch.image))  # type: ignore[arg-type]
        embeddings.append(raw.embedding)
        scores.append(raw.score.flatten())
        classes.append(labels(batch))
    network.calibration.fit(torch.cat(embeddings), torch.cat(scores), torch.cat(classes).to(model.device))
    model.train(training)
