"""Score one image with an exported model, tell its product and save its heatmap.

    python examples/predict_openvino.py MODEL.xml IMAGE PICTURE.png

IMAGE is grey or in colour, with 8 or 16 bits. Without CCL, anomalib's own OpenVINOInferencer does the same with the
same file, except that it tells no product and reads 8 bits alone.
"""

import sys

from anomalib.visualization import ImageVisualizer

from anomalib_ccl import CCLInferencer
from anomalib_ccl.metrics.heatmaps import heatmap


def main(model: str, image: str, picture: str) -> None:
    """Score the image, print the result and save the picture."""
    prediction = CCLInferencer(model, device="CPU").predict(image)
    score, anomalous = prediction.pred_score.item(), prediction.pred_label.item()
    answer = f"{prediction.explanation[0]}, score {score:.3f}, {'anomalous' if anomalous else 'normal'}"
    print(f"{image}: {answer}")
    heatmap(prediction, answer, ImageVisualizer(fields=["image"])).save(picture)
    print(f"heatmap: {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
