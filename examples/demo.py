"""What a training on the sample data has come to: its table, three predictions of the exported model and a picture.

    python examples/demo.py results/CCL/MultiCategory/latest datasets/sample

RUN is the folder of a training that was exported to OpenVINO, ROOT the sample data. The picture is RUN/demo.png.
"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from anomalib_ccl import CCLInferencer
from anomalib_ccl.metrics.heatmaps import ANOMALOUS, NORMAL
from anomalib_ccl.metrics.table import report_table

IMAGES = ("brick/test/foreign/002.png", "retina/test/scratch/002.png", "gravel_fine/test/good/000.png")
# Of the heatmaps; 0.5 is the threshold.
COLOURS = ScalarMappable(Normalize(0.2, 0.8), "inferno")
LAYOUT = {"left": 0.01, "right": 0.99, "bottom": 0.13, "top": 0.88, "wspace": 0.02}


def main(run: Path, root: Path) -> None:
    """Print table and predictions, and save the picture."""
    Console().print(report_table(pd.read_csv(run / "categories.csv")))
    # In single precision, so that every processor gives the same answers.
    model = CCLInferencer(run / "weights/openvino/model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    figure = Figure((12, 2.8))
    *groups, beside = figure.subfigures(1, len(IMAGES) + 1, width_ratios=[*[1] * len(IMAGES), 0.13])
    for name, group in zip(IMAGES, groups, strict=True):
        prediction = model.predict(root / name)
        product, score, anomalous = (
            prediction.explanation[0],
            prediction.pred_score.item(),
            prediction.pred_label.item(),
        )
        verdict, colour = ("anomalous", ANOMALOUS) if anomalous else ("normal", NORMAL)
        print(f"{root / name}: {product}, score {score:.3f}, {verdict}")
        group.suptitle(product, weight="bold")
        group.supxlabel(f"{verdict}, score {score:.2f}", color=colour, weight="bold", size="large")
        photograph, heatmap = group.subplots(1, 2, gridspec_kw=LAYOUT)
        picture = Image.open(root / name)
        photograph.imshow(picture.convert("RGB"))
        whole = (0, 1, 0, 1)  # the map has fewer pixels than the photograph
        heatmap.imshow(picture.convert("L"), "gray", extent=whole)
        heatmap.imshow(prediction.anomaly_map.squeeze(), COLOURS.cmap, COLOURS.norm, extent=whole, alpha=0.7)
        for axes in (photograph, heatmap):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color=colour, linewidth=2)
    bar = beside.subplots(gridspec_kw={**LAYOUT, "left": 0.1, "right": 0.3})
    figure.colorbar(COLOURS, cax=bar, ticks=[0.2, 0.5, 0.8])
    figure.savefig(run / "demo.png", dpi=90)
    print(f"Everything is in {run}, the picture of these three in {run / 'demo.png'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
