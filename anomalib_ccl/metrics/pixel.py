"""Pixel metrics in constant memory: a histogram of the anomaly scores instead of the scores."""

import numpy as np
import torch
from scipy import ndimage
from sklearn.metrics import auc
from torch import Tensor
from torchmetrics import Metric

from anomalib_ccl.metrics.ranking import RANKING_METRICS, ranking_metrics

PIXEL_METRICS = (*RANKING_METRICS, "AUPRO")

_BINS = 2**17
_FPR_LIMIT = 0.3
# Magnitudes up to 2^-40 (9e-13) count as zero. Without such a limit, scores on both sides of zero would spend
# most of the bins on differences far below the rounding errors of a network.
_ZERO = torch.tensor(2.0**-40).view(torch.int32)
# Pixels that touch at a corner are one region, as in anomalib; those of different images never are.
_NEIGHBOURS = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])


class PixelMetrics(Metric):
    """AUROC, average precision, best F1 score and AUPRO of anomaly maps, for any number of images.

    The scores are counted in 131,072 bins, 4 MiB however many images come. The bins cover the scores seen so
    far; when one lies outside, bins are joined in pairs until it fits. Their width is about 1/1000 of the
    score where scores lie on both sides of zero and less the narrower the range, so that all four figures
    agree with scikit-learn and anomalib to 1e-3.

    AUPRO is the area under the mean overlap with the anomalous regions (8-connected) up to a false positive
    rate of 0.3, divided by 0.3 (Bergmann et al., 2021, https://doi.org/10.1007/s11263-020-01400-4). A mask without a
    normal pixel is a region like any other; anomalib takes it for normal on the CPU, so its AUPRO differs then.

    Example:
        >>> mask = torch.zeros(2, 8, 8, dtype=torch.bool)
        >>> mask[1, 2:5, 2:5] = True
        >>> metrics = PixelMetrics()
        >>> metrics.update(mask * 0.5, mask)
        >>> {name: round(value, 3) for name, value in metrics.compute().items()}
        {'AUROC': 1.0, 'AP': 1.0, 'F1Max': 1.0, 'AUPRO': 1.0}
    """

    full_state_update = False
    key: Tensor
    weight: Tensor
    regions: Tensor

    def __init__(self) -> None:
        super().__init__()
        # The rows of a histogram: the sortable score; normal and anomalous pixels, overlap with the regions.
        # The histograms of several processes, whose bins may differ in width, are put below each other.
        self.add_state("key", torch.zeros(_BINS, dtype=torch.int64), dist_reduce_fx="cat")
        self.add_state("weight", torch.zeros(_BINS, 3, dtype=torch.float64), dist_reduce_fx="cat")
        self.add_state("regions", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, anomaly_map: Tensor, mask: Tensor) -> None:
        """Count the pixels of a batch.

        Args:
            anomaly_map: (B, H, W) or (B, 1, H, W), higher means more anomalous; any range, infinite too.
            mask: Of the same height and width, nonzero where anomalous.

        Raises:
            ValueError: If the map and the mask differ in size or the map holds NaN.
        """
        size = anomaly_map.shape[-2:]
        if size != mask.shape[-2:]:
            msg = f"anomaly map of {[*size]} pixels for a mask of {[*mask.shape[-2:]]}; resize one of them"
            raise ValueError(msg)
        refuse(anomaly_map.isnan(), "anomaly map", "NaN")
        if not anomaly_map.numel():
            return
        key = sortable(anomaly_map.reshape(-1, *size).to(self.device))
        anomalous = mask.reshape(-1, *size).to(self.device) != 0

        counted = self.weight.any(dim=1)
        low, high = torch.cat([self.key[counted], torch.stack(key.aminmax())]).aminmax()
        shift = ((int(high) - int(low)) // (_BINS - 1)).bit_length()
        # Bins begin at multiples of their width, so that wider ones are unions of narrower ones.
        start = int(low) >> shift
        row = (key >> shift) - start

        defective = anomalous[anomalous.flatten(1).any(dim=1)]
        region, regions = ndimage.label(defective.cpu().numpy(), _NEIGHBOURS)
        region = torch.from_numpy(region).to(self.device)[defective]
        share = (1 / region.bincount(minlength=1).double())[region]
        anomalous_row = row[anomalous]
        anomalous_count = anomalous_row.bincount(minlength=_BINS)
        normal_count = row.flatten().bincount(minlength=_BINS) - anomalous_count
        overlap = anomalous_row.bincount(share, _BINS)

        weight = torch.stack([normal_count, anomalous_count, overlap], dim=1).double()
        self.weight = weight.index_add_(0, (self.key[counted] >> shift) - start, self.weight[counted])
        self.key = (start + torch.arange(_BINS, device=self.device)) << shift
        self.regions += regions

    def compute(self) -> dict[str, float]:
        """Compute the figures of all the pixels counted.

        Returns:
            ``AUROC``, ``AP``, ``F1Max`` and ``AUPRO``, each in [0, 1]. All are NaN if there were no normal or
            no anomalous pixels.
        """
        counted = self.weight.any(dim=-1)
        key, row = self.key[counted].unique(return_inverse=True)
        weight = torch.zeros(len(key), 3, dtype=torch.float64, device=self.device)
        normal, anomalous, overlap = weight.index_add_(0, row, self.weight[counted]).T.cpu().numpy()
        labels, scores = np.repeat([0, 1], len(key)), np.tile(np.arange(len(key)), 2)
        figures = ranking_metrics(labels, scores, weights=np.concatenate([normal, anomalous]))
        return {**figures, "AUPRO": _aupro(normal, overlap, int(self.regions))}


def refuse(invalid: Tensor, name: str, fault: str) -> None:
    """Say how many scores of a model are invalid, which a tensor of bool marks."""
    if count := int(invalid.sum()):
        msg = (
            f"{name}: {count} of {invalid.numel()} values are {fault}, so the model has diverged; "
            "train it with a lower learning rate or in full precision"
        )
        raise ValueError(msg)


def sortable(scores: Tensor) -> Tensor:
    """Turn scores into integers of the same order, whose steps are the rounding errors of float32."""
    scores = scores.float()
    # The bits of a positive float, read as an integer, grow with it: the exponent stands above the mantissa.
    magnitude = scores.abs().view(torch.int32) - _ZERO.to(scores.device)
    return scores.sign().int() * magnitude.clamp_(min=0)


def _aupro(normal: np.ndarray, overlap: np.ndarray, regions: int) -> float:
    """Compute AUPRO from each score's normal pixels and overlap with the regions, lowest score first."""
    if regions == 0 or normal.sum() == 0:
        return float("nan")
    false_positive_rate = np.append(0, normal[::-1].cumsum() / normal.sum())
    mean_overlap = np.append(0, overlap[::-1].cumsum() / regions)
    at_limit = np.interp(_FPR_LIMIT, false_positive_rate, mean_overlap)
    within = false_positive_rate < _FPR_LIMIT
    curve = np.append(false_positive_rate[within], _FPR_LIMIT), np.append(mean_overlap[within], at_limit)
    return float(auc(*curve) / _FPR_LIMIT)
