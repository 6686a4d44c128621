"""How often a new normal image exceeds its limit, for scores of five distributions: the table of docs/products.md.

    python examples/limit_estimator.py

Each cell has the mean false alarms in percent for 0.1, 1 and 5 % asked, and, in brackets, how far the limit for 1 % is
from the median, in multiples of the true distance. It takes some minutes of one core; a number behind the command is
that of the simulations of each cell, 1,000 if not given.
"""

import sys

import numpy as np
import torch
from scipy import stats

from anomalib_ccl.model.limits import limits_at, tail_quantiles

SHAPES = {
    "normal": stats.norm(10, 1),
    "Gumbel": stats.gumbel_r(10, 1),
    "gamma(4)": stats.gamma(4),
    "log-normal, σ 0.5": stats.lognorm(0.5),
    "Student's t(3)": stats.t(3, loc=30),
}
RATES = (0.001, 0.01, 0.05)
SAMPLES = int(sys.argv[1]) if sys.argv[1:] else 1000


def cell(names: list[str], images: int, generator: np.random.Generator) -> dict[str, str]:
    """Simulate classes of these shapes that are calibrated together; describe each shape among them."""
    scales, places = np.exp(generator.normal(0, 0.5, (2, SAMPLES, len(names))))
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    labels = torch.arange(len(names)).repeat_interleave(images)
    for scale, place in zip(scales, 10 * places, strict=True):
        scores = [SHAPES[name].rvs(images, random_state=generator) for name in names]
        scaled = np.concatenate([place[i] + scale[i] * own for i, own in enumerate(scores)])
        table = tail_quantiles(torch.tensor(scaled, dtype=torch.float32), labels)
        limits = np.stack([limits_at(table, rate)[:-1].numpy() for rate in RATES])
        for i, name in enumerate(names):
            shape, own = SHAPES[name], (limits[:, i] - place[i]) / scale[i]
            distance = (own[1] - shape.median()) / (shape.isf(RATES[1]) - shape.median())
            found[name].append(np.append(100 * shape.sf(own), distance))
    means = {name: np.mean(values, axis=0) for name, values in found.items()}
    return {name: f"{m[0]:.2f} / {m[1]:.2f} / {m[2]:.2f} ({m[3]:.2f})" for name, m in means.items()}


def main() -> None:
    """Print the table."""
    generator = np.random.default_rng(0)
    print("| shape | images | one class | eleven classes of mixed shapes |")
    print("| --- | --- | --- | --- |")
    mixed = [*SHAPES, *SHAPES, "normal"]
    among = {images: cell(mixed, images, generator) for images in (20, 50, 100, 500)}
    for name in SHAPES:
        for images, others in among.items():
            alone = cell([name], images, generator)[name]
            print(f"| {name} | {images} | {alone} | {others[name]} |", flush=True)


if __name__ == "__main__":
    main()
