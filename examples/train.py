"""Train one model for all categories of a folder, test it and score one image, from Python.

anomalib-ccl sample ./datasets/sample
HF_HUB_OFFLINE=1 python examples/train.py ./datasets/sample --epochs 8
"""

import argparse
from pathlib import Path

from anomalib.data import PredictDataset
from anomalib.engine import Engine
from lightning import seed_everything

from anomalib_ccl import CCL, MultiCategory


def main(root: Path, epochs: int) -> None:
    """Train, test and predict."""
    seed_everything(0)
    engine = Engine(max_epochs=epochs, check_val_every_n_epoch=epochs)
    model = CCL(backbone="tf_efficientnet_lite0")
    # The test that follows the training prints a table of the categories.
    engine.train(model, datamodule=MultiCategory("MVTecAD", root))

    image = sorted(root.glob("*/test/*/*.png"))[0]
    (prediction,) = engine.predict(model, dataset=PredictDataset(image))
    verdict = "anomalous" if prediction.pred_label.item() else "normal"
    print(f"{image}: score {prediction.pred_score.item():.3f}, {verdict}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the categories, in the layout of MVTec AD")
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    main(arguments.root, arguments.epochs)
