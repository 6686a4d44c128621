"""The page of a test that is made up: how large it may be, what it shows, and what it says where there is nothing."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import ImageBatch
from parsed_page import ParsedPage

from anomalib_ccl.metrics.category import FIGURES, with_mean
from anomalib_ccl.reports.mistakes import EACH, MOST, Mistakes
from anomalib_ccl.reports.page import write_page
from anomalib_ccl.reports.predictions import KnownImages, Prediction, PredictionsFile

IMAGES = 8  # of each kind of each product, all of them wrong


def page(folder: Path, rows: list[Prediction], mistakes: Mistakes | None = None) -> ParsedPage:
    """Write the page of what was predicted."""
    file = PredictionsFile(folder / "predictions.csv", begin=True)
    file.add(rows)
    file.close()
    frame = pd.DataFrame(rows).groupby("category")["defective"].agg(["size", "sum"])
    counts = {"normal_images": frame["size"] - frame["sum"], "anomalous_images": frame["sum"]}
    report = pd.DataFrame({**counts, **dict.fromkeys(FIGURES, np.nan)}).reset_index()
    worst = (mistakes or Mistakes()).worst()
    return ParsedPage(write_page(folder, "Padim", with_mean(report), [], worst, KnownImages([]), None))


def row(category: str, number: int, defective: bool, score: float | None = 0.0, wrong: bool = True) -> Prediction:
    verdict = None if score is None else "anomalous" if wrong != defective else "normal"
    path, threshold = f"/{category}/{'bad' if defective else 'good'}/{number}.png", None if score is None else 0.5
    return Prediction(path, category, None, score, threshold, verdict, defective)  # type: ignore[arg-type]


def batch(count: int, anomaly_map: bool = True) -> ImageBatch:
    """Noise, of which no JPEG is larger."""
    maps = torch.rand(count, 96, 96) if anomaly_map else None
    return ImageBatch(image=torch.rand(count, 3, 96, 96), anomaly_map=maps)


@pytest.mark.parametrize("products", [60, 150])
def test_page_is_below_10_mb_however_many_products_and_images_there_are(tmp_path: Path, products: int) -> None:
    rows, mistakes = [], Mistakes()
    for product in range(products):
        own = [row(f"product {product}", n, n < IMAGES, n / 100) for n in range(2 * IMAGES)]
        mistakes.add(enumerate(own), batch(len(own)), torch.arange(len(own)), None)
        rows += own
    found = page(tmp_path, rows, mistakes)
    assert 6e6 < found.path.stat().st_size < 10e6
    assert sum(tag == "figure" for tag, _ in found.tags) == MOST == 60 * 2 * EACH
    each = MOST // (2 * products)  # a fair share, of the worst
    photographs = {name.removeprefix("Photograph ") for name in found.pictures if name.startswith("Photograph")}
    worst = range(2 * IMAGES - each, 2 * IMAGES)
    assert photographs == {*(f"bad/{n}.png" for n in range(each)), *(f"good/{n}.png" for n in worst)}


def test_worst_mistakes_are_those_of_a_sorted_list_in_whatever_order_and_batches_they_come(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    scores = generator.permutation(200) / 200
    rows = [row("bolt", n, n % 2 == 0, score) for n, score in enumerate(scores)]
    mistakes = Mistakes()
    for part in np.split(np.arange(200), 10):
        own = list(enumerate(rows[n] for n in part))
        mistakes.add(own, batch(len(own)), torch.tensor(scores[part])[:, None], None)
    worst = {outcome: [x.prediction for x in found] for (_, outcome), found in mistakes.worst().items()}
    ordered = sorted(rows, key=lambda x: x.score)  # type: ignore[arg-type, return-value]
    assert worst["defective, missed"] == [x for x in ordered if x.defective][:EACH]
    assert worst["false alarm"] == [x for x in reversed(ordered) if not x.defective][:EACH]


def test_what_there_is_none_of_is_said(tmp_path: Path) -> None:
    found = page(tmp_path, [row("bolt", n, True, 0.7, wrong=False) for n in range(3)])
    assert "Missed: none of 3 defective images" in found.words
    assert "No normal images were tested." in found.words
    assert not [tag for tag, _ in found.tags if tag == "figure"]


def test_models_without_scores_and_verdicts_have_a_page(tmp_path: Path) -> None:
    found = page(tmp_path, [row("bolt", n, n == 0, None) for n in range(3)])
    assert "The model gives no scores." in found.words
    assert found.words.count("The model gives no verdict.") == 2


def test_models_without_maps_have_photographs_alone(tmp_path: Path) -> None:
    rows, mistakes = [row("bolt", 0, True)], Mistakes()
    mistakes.add(enumerate(rows), batch(1, anomaly_map=False), torch.zeros(1), None)
    photograph, scale = sorted(page(tmp_path, rows, mistakes).pictures, reverse=True)
    assert photograph == "Photograph bad/0.png"
    assert scale.startswith("Colours")


def test_limit_is_where_the_scores_say_also_where_these_are_no_shares(tmp_path: Path) -> None:
    rows = [Prediction(f"/{n}.png", "bolt", None, n, 5, "normal", n > 7) for n in range(11)]  # type: ignore[arg-type]
    found = page(tmp_path, rows)
    drawings = SimpleNamespace(
        **{attributes["class"]: attributes["d"] for tag, attributes in found.tags if tag == "path"}
    )
    assert drawings.limit == "M125.0 -10V60"  # in the middle of 250
    assert drawings.normal.count("V0.0h5") == 8  # one in a bin each, which is the most
    assert drawings.defective.count("V0.0h5") == 3
