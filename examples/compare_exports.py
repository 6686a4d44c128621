"""Measure what each exported form of a trained model keeps of its accuracy, and what it costs, on your own images.

    python examples/compare_exports.py CHECKPOINT ./datasets/MVTecAD    # INT8_PTQ needs pip install '.[int8]'

The table has the size in MiB, the median latency of single images in milliseconds, the mean image AUROC of the
categories and the share of test images whose product is recognised, both in percent. The validation images give
INT8_PTQ its ranges.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.data import ImageBatch
from anomalib.deploy import CompressionType
from sklearn.metrics import roc_auc_score

from anomalib_ccl import CCL, CCLInferencer, MultiCategory

FORMS = {"FP32": None, "FP16": CompressionType.FP16, "INT8_PTQ": CompressionType.INT8_PTQ}


def main(checkpoint: Path, data: MultiCategory, config: dict[str, str]) -> None:
    """Predict all test images with the model in every form and print one table."""
    model = CCL.load_from_checkpoint(checkpoint).eval()

    def in_pytorch(image: np.ndarray) -> ImageBatch:
        return model.predict_step(ImageBatch(image=model.pre_processor(torch.from_numpy(image))))

    with TemporaryDirectory() as folder, torch.inference_mode():
        files = {"PyTorch": model.to_torch(folder)}
        for form, compression in FORMS.items():
            files[form] = model.to_openvino(Path(folder) / form, compression_type=compression, datamodule=data)
        data.setup("test")
        table = {}
        for form, path in files.items():
            predict = in_pytorch if form == "PyTorch" else CCLInferencer(path, "CPU", config).predict
            size = sum(file.stat().st_size for file in path.parent.iterdir()) / 2**20
            table[form] = {"size": size, **measure(predict, data)}
    print(pd.DataFrame(table).T.round(2).to_string())


def measure(predict: Callable[[np.ndarray], Any], data: MultiCategory) -> dict[str, float]:
    """Latency and accuracy on all test images, one by one."""
    samples = data.test_data.samples[["category", "label_index"]].copy()
    seconds, scores, products = [], [], []
    for item in data.test_data:
        start = time.perf_counter()
        prediction = predict(item.image.numpy()[None])
        seconds.append(time.perf_counter() - start)
        scores.append(prediction.pred_score.item())
        products.append(prediction.explanation[0])
    samples["score"] = scores
    of_category = [roc_auc_score(own["label_index"], own["score"]) for _, own in samples.groupby("category")]
    return {
        "latency": 1000 * np.median(seconds),
        "image AUROC": 100 * np.mean(of_category),
        "recognised": 100 * np.mean(samples["category"] == products),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("root", type=Path, help="folder of the categories")
    parser.add_argument("--dataset", default="MVTecAD", help="anomalib's datamodule that reads it")
    parser.add_argument("--precision", help="that OpenVINO computes in, such as f32; else it chooses by the processor")
    arguments = parser.parse_args()
    hint = {"INFERENCE_PRECISION_HINT": arguments.precision} if arguments.precision else {}
    main(arguments.checkpoint, MultiCategory(arguments.dataset, arguments.root), hint)
