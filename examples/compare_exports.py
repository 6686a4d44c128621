"""Measure what each exported form of a trained model keeps of its accuracy, and what it costs, on your own images.

    python examples/compare_exports.py CHECKPOINT ./datasets/MVTecAD    # INT8_PTQ needs pip install '.[int8]'

The table has the size in MiB, the median latency of single images in milliseconds, and in percent the mean image AUROC,
pixel AUROC and AUPRO of the categories and the share of test images whose product is recognised. The validation images
give INT8_PTQ its ranges.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from anomalib.data import ImageBatch, NumpyImageBatch
from anomalib.deploy import CompressionType
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from anomalib_ccl import CCL, CCLInferencer, MultiCategory
from anomalib_ccl.data.multi_category import share_ranges
from anomalib_ccl.metrics.category import CategoryMetrics

NEAREST = InterpolationMode.NEAREST
FIGURES = {
    "image_AUROC": "image AUROC",
    "pixel_AUROC": "pixel AUROC",
    "pixel_AUPRO": "AUPRO",
    "class_accuracy": "recognised",
}
FORMS = {"FP32": None, "FP16": CompressionType.FP16, "INT8_PTQ": CompressionType.INT8_PTQ}


def main(checkpoint: Path, data: MultiCategory, config: dict[str, str]) -> None:
    """Predict all test images with the model in every form and print one table."""
    # The default post-processor clips scores at twice the limit, and many defective images would be equal.
    model = CCL.load_from_checkpoint(checkpoint, post_processor=False).eval()
    names = [*model.class_names, "unknown"]

    @torch.inference_mode()  # not around the exports: torch cannot export tiles in it
    def in_pytorch(image: NDArray) -> ImageBatch:
        images = torch.from_numpy(image)
        found = model(images)
        products = [names[index] for index in found.class_index]
        return ImageBatch(images, pred_score=found.pred_score, anomaly_map=found.anomaly_map, explanation=products)

    with TemporaryDirectory() as folder:
        files = {"PyTorch": model.to_torch(folder)}
        for form, compression in FORMS.items():
            files[form] = model.to_openvino(Path(folder) / form, compression_type=compression, datamodule=data)
        data.setup("test")
        share_ranges(data, model.pixel_ranges)
        table = {}
        for form, path in files.items():
            predict = in_pytorch if form == "PyTorch" else CCLInferencer(path, "CPU", config).predict
            size = sum(file.stat().st_size for file in path.parent.iterdir()) / 2**20
            table[form] = {"size": size, **measure(predict, data)}
    print(pd.DataFrame(table).T.round(2).to_string())


def measure(predict: Callable[[NDArray], ImageBatch | NumpyImageBatch], data: MultiCategory) -> dict[str, float]:
    """Latency and accuracy on all test images, one by one."""
    samples = data.test_data.samples
    metrics, seconds = CategoryMetrics(samples["category"], samples["label_index"]), []
    for index, item in enumerate(data.test_data):
        start = time.perf_counter()
        prediction = predict(item.image.numpy()[None])
        seconds.append(time.perf_counter() - start)
        score, anomaly_map = (torch.as_tensor(x) for x in (prediction.pred_score, prediction.anomaly_map))
        anomaly_map = anomaly_map.reshape(1, *anomaly_map.shape[-2:])
        mask = None if item.gt_mask is None else resize(item.gt_mask[None], anomaly_map.shape[-2:], NEAREST)
        metrics.update(torch.tensor([index]), score.flatten(), anomaly_map, mask, classes=prediction.explanation)
    means = 100 * metrics.compute()[list(FIGURES)].mean()
    return {"latency": 1000 * np.median(seconds), **{name: means[key] for key, name in FIGURES.items()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("root", type=Path, help="folder of the categories")
    parser.add_argument("--dataset", default="MVTecAD", help="anomalib's datamodule that reads it")
    parser.add_argument("--precision", help="that OpenVINO computes in, such as f32; else it chooses by the processor")
    arguments = parser.parse_args()
    hint = {"INFERENCE_PRECISION_HINT": arguments.precision} if arguments.precision else {}
    main(arguments.checkpoint, MultiCategory(arguments.dataset, arguments.root), hint)
