"""One pass of a trained model over images, outside of any Trainer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from anomalib_ccl.data.prediction import read_alike
from anomalib_ccl.training.training_pass import plain_loader


@torch.no_grad()
def raw_scores(
    model: Any,  # noqa: ANN401  # with a network that scores images, and the ranges that it was trained with
    loader: DataLoader,
    description: str,
    view: Callable[[Tensor], Tensor] = lambda images: images,
) -> tuple[Tensor, Tensor, Tensor]:
    """Score images as a model sees them, before any calibration.

    Args:
        model: A trained :class:`~anomalib_ccl.CCL` in eval mode.
        loader: Loader of one of a datamodule's subsets.
        description: What the progress bar says.
        view: Makes of each batch of pre-processed images what is scored.

    Returns:
        Embeddings of shape ``(N, D)``, raw scores of shape ``(N, 1)``, and raw maps in the calibration's blocks, of
        shape ``(N, 1, h, w)``, in the order of the data set.
    """
    transform: Any = getattr(model.pre_processor, "transform", None)
    read_alike([loader.dataset], model.pixel_ranges)
    embeddings, scores, maps = [], [], []
    for batch in tqdm(plain_loader(loader, model.pre_processor), description):
        images = batch.image.to(model.device)
        raw = model.model.score(view(transform(images) if transform else images))
        embeddings.append(raw.embedding.float().cpu())
        scores.append(raw.score.float().cpu())
        maps.append(model.model.calibration.in_blocks(raw.anomaly_map).float().cpu())
    return torch.cat(embeddings), torch.cat(scores), torch.cat(maps)
