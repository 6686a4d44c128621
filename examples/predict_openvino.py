"""Score one image with an exported model, name its product and save its heatmap.

    python examples/predict_openvino.py MODEL.xml IMAGE PICTURE.png

IMAGE is grey or in colour, with 8 or 16 bits. Without CCL, anomalib's own OpenVINOInferencer scores it with the same
file; it names no product and reads 8 bits alone.
"""

import argparse

import torch

from anomalib_ccl import CCLInferencer
from anomalib_ccl.errors import InputError
from anomalib_ccl.reports.heatmaps import heatmap
from anomalib_ccl.reports.predictions import Prediction


def main(model: str, image: str, picture: str) -> None:
    """Score the image, print the result and save the picture."""
    found = CCLInferencer(model, device="CPU").predict(image)
    verdict = "anomalous" if found.pred_label.item() else "normal"
    row = Prediction(product=found.explanation[0], score=found.pred_score.flat[0], verdict=verdict)
    print(f"{image}: {row.product}, score {row.score:.3f}, {verdict}")
    photograph, anomaly_map = (torch.from_numpy(values) for values in (found.image, found.anomaly_map))
    heatmap(row, photograph[0].permute(2, 0, 1), anomaly_map[0, 0]).save(picture)
    print(f"heatmap: {picture}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "image", "picture"):
        parser.add_argument(name)
    try:
        main(**vars(parser.parse_args()))
    except InputError as error:
        parser.error(str(error))
