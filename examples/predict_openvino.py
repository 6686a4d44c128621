"""Score one image with an exported model and save its heatmap.

    python examples/predict_openvino.py MODEL.xml IMAGE PICTURE.png

Nothing here needs CCL: an exported model runs with anomalib's own inferencer.
"""

import sys

from anomalib.deploy import OpenVINOInferencer
from anomalib.visualization import ImageVisualizer


def main(model: str, image: str, picture: str) -> None:
    """Score the image, print the result and save the picture."""
    prediction = OpenVINOInferencer(model, device="CPU").predict(image)
    score, anomalous = prediction.pred_score.item(), prediction.pred_label.item()
    print(f"{image}: score {score:.3f}, {'anomalous' if anomalous else 'normal'}")
    ImageVisualizer(fields=["image"]).visualize(prediction).save(picture)
    print(f"heatmap: {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
