"""Makes the table and the pictures: ``python -m anomalib_ccl.insight --ckpt_path CKPT --data DATA.yaml``."""

from pathlib import Path

from anomalib.data import AnomalibDataModule
from jsonargparse import ArgumentParser
from rich.console import Console

from anomalib_ccl.insight import (
    calibration_figures,
    calibration_tables,
    collect_scores,
    confusion_picture,
    embedding_picture,
    score_picture,
)
from anomalib_ccl.model import CCL
from anomalib_ccl.plugin.own_commands import run


def main() -> None:
    """Read the command line, score the images, and write and print what comes of it."""
    parser = ArgumentParser(
        prog="python -m anomalib_ccl.insight",
        description="How well a calibrated CCL model knows its products: a table (printed, and as CSV) of recognition, "
        "false alarms and detection in each category before and after calibration, and pictures of the embedding, "
        "the scores and the recognised classes.",
    )
    parser.add_argument("--ckpt_path", type=Path, required=True, help="checkpoint of a calibrated CCL model")
    parser.add_subclass_arguments(
        AnomalibDataModule, "data", required=True, help="MultiCategory, or a YAML file as for `anomalib train --data`"
    )
    parser.add_argument("--output", type=Path, default=Path("results/insight"), help="folder to write into")
    run(parser, lambda given: make_insight(given.ckpt_path, given.data, given.output), lambda given: given.output)


def make_insight(ckpt_path: Path, datamodule: AnomalibDataModule, output: Path) -> None:
    """Write ``calibration.csv``, ``embedding.png``, ``scores.png`` and ``classes.png``, and print the tables.

    Args:
        ckpt_path: Checkpoint of a calibrated :class:`~anomalib_ccl.CCL`.
        datamodule: Datamodule that tells the category of each image.
        output: Folder to write into.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is not one of CCL, or the model or the datamodule does not fit; see
            :func:`~anomalib_ccl.insight.collect_scores`.
    """
    model = CCL.load_from_checkpoint(ckpt_path, map_location="cpu", evaluator=False, visualizer=False)
    scores = collect_scores(model, datamodule)
    figures = calibration_figures(scores.images, scores.embeddings, scores.f1_threshold)

    output.mkdir(parents=True, exist_ok=True)
    figures.to_csv(output / "calibration.csv", index=False)
    pictures = {
        "embedding": embedding_picture(scores),
        "scores": score_picture(scores.images),
        "classes": confusion_picture(scores.images),
    }
    for name, picture in pictures.items():
        picture.savefig(output / f"{name}.png", dpi=150, bbox_inches="tight")
    console = Console()
    for table in calibration_tables(figures):
        console.print(table)
    print(f"Written to {output}: calibration.csv, {', '.join(f'{name}.png' for name in pictures)}")


if __name__ == "__main__":
    main()
