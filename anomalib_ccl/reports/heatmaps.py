"""One picture of each image: the photograph, the map next to it, and whether the verdict was right."""

from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from anomalib.data import ImageBatch
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import LightningModule, Trainer
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import Normalize

from anomalib_ccl.errors import InputError
from anomalib_ccl.reports.predictions import KnownImages, Prediction, loaded, predictions

# White is the threshold, 0.5; what is redder is anomalous, what is bluer normal, for colour-blind people too.
_COLOURS = (255 * mpl.colormaps["coolwarm"](np.linspace(0, 1, 256))[:, :3]).round().astype(np.uint8)
#: Colours of the edge of the words where the verdict was right, wrong, or cannot be judged (Okabe and Ito).
RIGHT, WRONG, UNJUDGED = "#009E73", "#D55E00", "#999999"
#: Colour of the contour of the ground truth.
CONTOUR = "#00FFFF"

_SMALLEST_SIDE = 256  # of a panel; smaller maps are enlarged, so that the words are legible and fit
_GAP = 8
_BAR_WIDTH, _TICKS_WIDTH = 14, 58
_FONT_SIZE, _LINE = 14, 24
_DEJAVU = str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))  # Latin, Greek, Cyrillic, Hebrew, Arabic


class CCLVisualizer(ImageVisualizer):
    """Draws each image of a test or a prediction with :func:`heatmap`, none in the place of another.

    The picture of an image is in ``images`` in the Trainer's ``default_root_dir``, or in the folder given, under
    category and defect (``bottle/good/000.png``), or under the path that it has in the folder predicted. Results of an
    earlier run there are overwritten.

    Args:
        output_dir: The folder of the pictures.

    Raises:
        InputError: In a test or a prediction, if a picture would overwrite its photograph.

    Example:
        >>> CCLVisualizer(output_dir="pictures").output_dir
        'pictures'
    """

    def __init__(self, output_dir: str | Path | None = None) -> None:
        super().__init__(output_dir=output_dir)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the images, and have all processes write to the folder of the first."""
        del pl_module
        loaders = trainer.predict_dataloaders if trainer.predicting else trainer.test_dataloaders
        self._images = KnownImages(loaded(loaders))
        self._folder = trainer.strategy.broadcast(Path(self.output_dir or Path(trainer.default_root_dir, "images")))

    on_predict_start = on_test_start

    def on_test_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: ImageBatch,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the images of a batch, which the post-processor has seen before."""
        del trainer, batch
        if outputs.anomaly_map is None or outputs.image is None:
            return
        photographs = displayable(outputs.image, getattr(pl_module, "pre_processor", None)).cpu()
        maps = outputs.anomaly_map.float().cpu().flatten(0, -3)
        masks = [None] * len(outputs) if outputs.gt_mask is None else outputs.gt_mask.cpu().flatten(0, -3)
        rows = predictions(pl_module, outputs, self._images)
        for number, (row, *tensors) in enumerate(zip(rows, photographs, maps, masks, strict=True)):
            place = Path(f"{dataloader_idx}-{batch_idx:05}-{number:03}.png")
            path = self._folder / (place if row.path is None else self._images.place(row.path))
            if row.path is not None and path.exists() and path.samefile(row.path):
                msg = f"the heatmap of {path} would overwrite the photograph; give the visualizer another output_dir"
                raise InputError(msg)
            path.parent.mkdir(parents=True, exist_ok=True)
            heatmap(row, *tensors).save(path, compress_level=1, quality=90)

    on_predict_batch_end = on_test_batch_end


def displayable(images: Tensor, pre_processor: PreProcessor | None) -> Tensor:
    """Show images as a model was given them: upright, of any depth, resized."""
    images = images.float()
    for normalize in extract_transforms_by_type(getattr(pre_processor, "transform", None), Normalize):
        mean, std = (images.new_tensor(x)[:, None, None] for x in (normalize.mean, normalize.std))
        images = images * std + mean
    return images.clamp(0, 1)


def heatmap(prediction: Prediction, photograph: Tensor, anomaly_map: Tensor, mask: Tensor | None = None) -> Image.Image:
    """Draw a photograph, its anomaly map next to it with a bar of the colours, and a line of words under them.

    All maps have one scale, from 0 to 1, with the threshold at 0.5. On the photograph is nothing but the contour of the
    ground truth, one pixel wide, where there is one. The words are product, score, and how verdict and truth agree.

    Example:
        >>> import torch
        >>> row = Prediction(product="bottle", score=0.4213, verdict="normal", defective=True)
        >>> heatmap(row, torch.rand(3, 64, 64), torch.rand(64, 64)).size
        (592, 280)
    """
    height, width = anomaly_map.shape
    scale = max(1, _SMALLEST_SIDE / max(height, width))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    picture = Image.new("RGB", (_width(*size), size[1] + _LINE), "white")

    pixels = (255 * photograph.clamp(0, 1) + 0.5).byte().permute(1, 2, 0).numpy()
    shown = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    if mask is not None and mask.any():
        defect = Image.fromarray(255 * (mask != 0).byte().numpy()).resize(size, Image.Resampling.NEAREST)
        contour = ImageChops.subtract(defect.filter(ImageFilter.MaxFilter(3)), defect)
        shown.paste(CONTOUR, (0, 0, *size), contour)
    picture.paste(shown, (0, 0))
    smooth = Image.fromarray(anomaly_map.numpy()).resize(size, Image.Resampling.BILINEAR)
    picture.paste(Image.fromarray(coloured(np.asarray(smooth))), (size[0] + _GAP, 0))
    picture.paste(_bar(size[1]), (2 * (size[0] + _GAP), 0))
    _write(picture, prediction)
    return picture


def coloured(anomaly_map: NDArray) -> NDArray:
    """Colour a map: blue, white at 0.5, red."""
    return _COLOURS.take((255 * anomaly_map.clip(0, 1) + 0.5).astype(np.uint8), axis=0)


def _width(width: int, height: int) -> int:
    """The width of a picture, in which the words have room next to narrow panels too."""
    return max(2 * (width + _GAP) + _bar(height).width, 2 * _SMALLEST_SIDE)


@cache
def _bar(height: int) -> Image.Image:
    """The colours from 1 at the top to 0, with the limit marked."""
    picture = Image.new("RGB", (_BAR_WIDTH + _TICKS_WIDTH - _GAP, height), "white")
    picture.paste(Image.fromarray(coloured(np.linspace(1, 0, height)[:, None].repeat(_BAR_WIDTH, 1))), (0, 0))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.truetype(_DEJAVU, _FONT_SIZE - 3)
    draw.line((0, height // 2, _BAR_WIDTH + 3, height // 2), fill="black")
    for text, place, anchor in (("1", 0, "lt"), ("0.5 limit", height // 2, "lm"), ("0", height - 1, "lb")):
        if height > 3 * _FONT_SIZE or text != "0.5 limit":
            draw.text((_BAR_WIDTH + 5, place), text, fill="black", font=font, anchor=anchor)
    return picture


def _write(picture: Image.Image, prediction: Prediction) -> None:
    """Write the words into the line at the bottom, and mark at its edge whether the verdict was right."""
    top, outcome = picture.height - _LINE, prediction.outcome()
    judged = prediction.verdict is not None and prediction.defective is not None
    wrong = judged and (prediction.verdict == "anomalous") != prediction.defective
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, top, _GAP - 1, picture.height), fill=WRONG if wrong else RIGHT if judged else UNJUDGED)

    name = prediction.product or prediction.category or ""
    if prediction.product and prediction.category and prediction.product != prediction.category:
        name = f"{prediction.category} (recognised: {prediction.product})"
    score = "" if prediction.score is None else f"score {prediction.score:.2f}"
    rest = ", ".join(part for part in (score, outcome) if part)
    font = ImageFont.truetype(_font_for(frozenset(name)), _FONT_SIZE)
    joined = f"{name}, {rest}" if name else rest
    while font.getlength(joined) > picture.width - 3 * _GAP and len(name) > 1:
        name = f"{name[:-2]}…"
        joined = f"{name}, {rest}"
    draw.text((2 * _GAP, top + _LINE // 2), joined, fill="black", font=font, anchor="lm")


@cache
def _font_for(letters: frozenset[str]) -> str:
    """A font that has all letters, if this computer has one."""
    # Matplotlib's Last Resort has a box with a code for everything.
    fonts = [_DEJAVU, *(font.fname for font in fontManager.ttflist if "Last Resort" not in font.name)]
    return next((path for path in fonts if _has(path, letters)), _DEJAVU)


def _has(path: str, letters: frozenset[str]) -> bool:
    """Whether a font has letters, and is still there."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return False
    return all(font.get_char_index(ord(letter)) for letter in letters)
