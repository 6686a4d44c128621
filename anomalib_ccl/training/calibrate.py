"""Calibration of a network by the training images."""

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

    One pass over the images is enough, or two where the network learns first what is usual in the map of each class,
    and then how high maps are without it. On several processes, each makes all of it, so that all get the same result.

    Args:
        model: A model in training.
        network: The part of it that is calibrated.
        labels: Gives the classes of training images, integers of shape ``(B,)``.
    """
    training = model.training
    model.eval()
    network.calibration.reset()
    if network.calibration.subtract_usual:
        _fit(model, network, labels, "What is usual", learns_usual=True)
    _fit(model, network, labels, "Calibration")
    model.train(training)


def _fit(
    model: AnomalibModule,
    network: Calibratable,
    labels: Callable[[ImageBatch], Tensor],
    description: str,
    learns_usual: bool = False,
) -> None:
    """Fit prototypes and limits in one pass, and learn the mean map of each class on the way if that is asked for."""
    # What is usual is learnt from images as they are: views show each place of a product a little elsewhere.
    view = (lambda images: images) if learns_usual else calibration_view()
    embeddings, scores, classes = [], [], []
    sums: dict[int, Tensor] = {}
    for batch in training_images(model, description):
        raw = network.score(view(batch.image))  # type: ignore[arg-type]
        embeddings.append(raw.embedding)
        scores.append(raw.score.flatten())
        classes.append(labels(batch).to(model.device))
        for index in classes[-1].unique().tolist() if learns_usual else ():
            total = network.calibration.in_blocks(raw.anomaly_map[classes[-1] == index]).sum(dim=0)
            sums[index] = sums[index] + total if index in sums else total
    every = torch.cat(classes)
    network.calibration.fit(torch.cat(embeddings), torch.cat(scores), every)
    if learns_usual:
        counts = torch.bincount(every)[:, None, None, None]
        network.calibration.learn_usual(torch.stack([sums[index] for index in sorted(sums)]) / counts)
