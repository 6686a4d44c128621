"""The worst mistakes of a test as thumbnails: a few of each product, however many images there are."""

from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable
from io import BytesIO
from typing import NamedTuple

from anomalib.data import ImageBatch
from anomalib.pre_processing import PreProcessor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anomalib_ccl.reports.heatmaps import coloured, displayable
from anomalib_ccl.reports.predictions import Prediction
from anomalib_ccl.training.gathering import gathered

#: As many are kept of each kind of each product, and of all together: 8 MB if photographs and maps are noise.
EACH, MOST = 5, 600
_SIDE = 96  # of a thumbnail, in pixels
# Of missed images the lowest scores are the worst, of false alarms the highest.
_WORSE = {"defective, missed": -1, "false alarm": 1}


class Mistake(NamedTuple):
    """An image whose verdict was wrong, its photograph and its map as data URIs, and how wrong the verdict was."""

    prediction: Prediction
    photograph: str
    anomaly_map: str | None
    wrongness: float


#: The mistakes of a category and of an outcome, the worst first.
Worst = dict[tuple[str, str], list[Mistake]]


class Mistakes:
    """Keeps the worst missed images and false alarms of each category while a test runs.

    Memory grows with the number of categories, not with that of the images.
    """

    def __init__(self) -> None:
        self._worst: Worst = defaultdict(list)

    def add(
        self,
        rows: Iterable[tuple[int, Prediction]],
        batch: ImageBatch,
        scores: Tensor | None,
        pre_processor: PreProcessor | None,
    ) -> None:
        """Add images of a batch, in which each row has a number.

        Args:
            rows: Numbers and predictions of the images to add.
            batch: Whose images and maps are shown.
            scores: (B,) or (B, 1), by which mistakes are compared: before a post-processor cuts them off, after which
                the worst are equal.
            pre_processor: What the images have been through.
        """
        for number, row in rows:
            outcome = row.outcome()
            if outcome not in _WORSE:
                continue
            own = self._worst[row.category or "", outcome]
            wrongness = 0.0 if scores is None else _WORSE[outcome] * scores[number].item()
            if len(own) < EACH or wrongness > own[-1].wrongness:
                own.append(Mistake(row, *_pictures(batch, number, pre_processor), wrongness))
                own[:] = _sorted(own)

    def worst(self) -> Worst:
        """Find the worst mistakes of all processes, which must all ask; not more than :data:`MOST`."""
        joined: Worst = defaultdict(list)
        for part in gathered(self._worst):
            for key, mistakes in part.items():
                joined[key] += mistakes
        joined = {key: _sorted(mistakes) for key, mistakes in joined.items()}
        for _ in range(sum(map(len, joined.values())) - MOST):
            max(joined.values(), key=len).pop()
        return joined


def thumbnail(pixels: NDArray) -> str:
    """Make a small JPEG, as a data URI, of ``(H, W, 3)`` pixels in 8 bits.

    Example:
        >>> import numpy as np
        >>> thumbnail(np.zeros((500, 800, 3), np.uint8))[:31]
        'data:image/jpeg;base64,/9j/4AAQ'
    """
    picture = Image.fromarray(pixels)
    picture.thumbnail((_SIDE, _SIDE))
    file = BytesIO()
    picture.save(file, "JPEG", quality=70, optimize=True)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def _sorted(mistakes: list[Mistake]) -> list[Mistake]:
    """The worst, the very worst first."""
    return sorted(mistakes, key=lambda mistake: mistake.wrongness, reverse=True)[:EACH]


def _pictures(batch: ImageBatch, number: int, pre_processor: PreProcessor | None) -> tuple[str, str | None]:
    """The photograph and, if there is one, the map."""
    pixels = 255 * displayable(batch.image[number], pre_processor) + 0.5  # type: ignore[index]
    photograph = thumbnail(pixels.byte().permute(1, 2, 0).cpu().numpy())
    if batch.anomaly_map is None:
        return photograph, None
    return photograph, thumbnail(coloured(batch.anomaly_map.flatten(0, -3)[number].float().cpu().numpy()))
