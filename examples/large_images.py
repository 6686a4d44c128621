"""Small parts in large images, resized to what the network sees and cut into tiles of that size: a table of both.

HF_HUB_OFFLINE=1 python examples/large_images.py ./datasets/trays --epochs 20
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from anomalib.engine import Engine
from lightning import seed_everything
from PIL import Image, ImageDraw

from anomalib_ccl import CCL, MultiCategory

HEIGHT, WIDTH, PITCH = 512, 768, 64  # in pixels; each image shows 8 × 12 parts
DRAWN = 4  # times larger, because PIL's shapes have hard edges


def part(product, generator):
    """A square with a ring or a bar of about 24 pixels, white on black."""
    canvas = Image.new("L", (PITCH * DRAWN, PITCH * DRAWN))
    draw, centre = ImageDraw.Draw(canvas), PITCH * DRAWN / 2 + generator.normal(0, 3 * DRAWN, 2)
    if product == "washers":
        draw.circle(tuple(centre), 12 * DRAWN, outline=255, width=5 * DRAWN)
    else:
        angle = generator.uniform(0, np.pi)
        along = 14 * DRAWN * np.array([np.cos(angle), np.sin(angle)])
        draw.line([tuple(centre - along), tuple(centre + along)], fill=255, width=6 * DRAWN)
    return np.asarray(canvas.resize((PITCH, PITCH), Image.Resampling.BOX)) / 255


def spot(centre, radius):
    """Where a round spot lies in an image."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.hypot(rows - centre[0], columns - centre[1]) <= radius


def tray(product, defect, generator):
    """An image of one product, and the mask of its defect."""
    parts = np.block([[part(product, generator) for _ in range(WIDTH // PITCH)] for _ in range(HEIGHT // PITCH)])
    mask = np.zeros((HEIGHT, WIDTH), bool)
    if defect == "notch":  # a part that lacks a piece
        mask = spot(generator.choice(np.argwhere(parts > 0.9)), generator.uniform(2.5, 4)) & (parts > 0)
        parts = np.where(mask, 0, parts)
    image = 0.25 + 0.45 * parts[..., None] * np.array([1, 0.95, 0.8])
    if defect == "speck":
        mask = spot(generator.uniform(32, [HEIGHT - 32, WIDTH - 32]), generator.uniform(1.5, 2.5))
        image[mask] += generator.choice([-0.15, 0.2])
    light = 1 + 0.1 * generator.normal() * np.linspace(-1, 1, WIDTH)[None, :, None]
    image = np.clip(image * light + generator.normal(0, 0.02, image.shape), 0, 1)
    return Image.fromarray((255 * image).astype(np.uint8)), Image.fromarray(mask)


def make(root, train=24, test=12):
    """Make the set, in the layout of MVTec AD."""
    for number, product in enumerate(["washers", "pins"]):
        folders = {"train/good": train, "test/good": test, "test/notch": test, "test/speck": test}
        for place, (folder, count) in enumerate(folders.items()):
            defect = Path(folder).name
            for index in range(count):
                image, mask = tray(product, defect, np.random.default_rng([number, place, index]))
                save(image, root / product / folder / f"{index:03}.png")
                if defect != "good":
                    save(mask, root / product / "ground_truth" / defect / f"{index:03}_mask.png")


def save(picture, path):
    """Write a file, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def measure(root, epochs, **arguments):
    """Train and test one model, and give a row of the table."""
    seed_everything(0)
    model = CCL("tf_efficientnet_lite0", recipe="recommended", visualizer=False, **arguments)
    engine = Engine(max_epochs=epochs, check_val_every_n_epoch=epochs, default_root_dir=root.parent / "runs")
    data = MultiCategory("MVTecAD", root, train_batch_size=8, eval_batch_size=8, num_workers=0)
    start = time.perf_counter()
    engine.fit(model, datamodule=data)
    seconds = time.perf_counter() - start
    (figures,) = engine.test(model, datamodule=data)
    names = ["mean_image_AUROC", "mean_pixel_AUROC", "mean_pixel_AUPRO"]
    row = {name.removeprefix("mean_"): f"{100 * figures[name]:.1f}" for name in names}
    return {"pixels": " × ".join(map(str, model.input_size)), **row, "training": f"{seconds:.0f} s"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder to make the set in")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--size", type=int, default=256, help="height and width that the network sees, in pixels")
    given = parser.parse_args()
    if not given.root.exists():
        make(given.root)
    size = (given.size, given.size)
    ways = {"resized": {"image_size": size}, "tiles [2, 3]": {"image_size": size, "tiles": (2, 3)}}
    rows = {name: measure(given.root, given.epochs, **arguments) for name, arguments in ways.items()}
    print(pd.DataFrame.from_dict(rows, orient="index").to_string())
