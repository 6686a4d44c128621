"""A training step of WideResNet-50-2 at 256 × 256 pixels and batch 8, against the same mathematics written plainly.

Reading images, making their second views and the optimizer's step are left out: both sides do the same there.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from anomalib.models.components import TimmFeatureExtractor
from anomalib.models.components.backbone import get_decoder
from anomalib.models.image.reverse_distillation.components import get_bottleneck_layer
from peak_memory import peak_mebibytes
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_ccl import CCL
from anomalib_ccl.model.local_loss import draw_in_class_positives, draw_negatives
from anomalib_ccl.training.feature_cache import FeatureCache

BACKBONE, BATCH, STEPS, TEMPERATURE = "wide_resnet50_2", 8, 3, 0.05


class Straightforward(nn.Module):
    """The network and the losses as the paper's formulas read, without noise; the teacher is frozen here too."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = TimmFeatureExtractor(BACKBONE, ["layer1", "layer2", "layer3"], pre_trained=False).eval()
        self.projections = nn.ModuleList(self.projection(c) for c in self.teacher.out_dims)
        self.bottleneck, self.decoder = get_bottleneck_layer(BACKBONE), get_decoder(BACKBONE)

    @staticmethod
    def projection(c: int) -> nn.Sequential:
        layers = []
        for before, after in [(c, c // 2), (c // 2, c // 4), (c // 4, c // 2), (c // 2, c)]:
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.InstanceNorm2d(after), nn.LeakyReLU()]
        return nn.Sequential(*layers)

    def load(self, ours: CCL) -> None:
        for part in ("teacher", "bottleneck", "decoder"):
            # Not strictly: anomalib's bottleneck has layers that are not used, and ours has not.
            getattr(self, part).load_state_dict(getattr(ours.model.network, part).state_dict(), strict=False)
        self.projections.load_state_dict(ours.model.projections.state_dict())

    def forward(self, images: Tensor, view: Tensor, labels: Tensor) -> Tensor:
        f, g = list(self.teacher(images).values()), list(self.teacher(view).values())
        p = [project(x) for project, x in zip(self.projections, f, strict=True)]
        k = [project(x) for project, x in zip(self.projections, g, strict=True)]
        embedding = self.bottleneck(p)
        view_embedding = self.bottleneck(k)
        d = self.decoder(embedding)
        reconstruction = sum(
            (1 - F.cosine_similarity(x.flatten(1), y.flatten(1))).mean() for x, y in zip(f, d, strict=True)
        )
        both = torch.cat([embedding, view_embedding]).mean(dim=(2, 3))
        return reconstruction + self.local(f, g, p, k, labels) + self.contrast(both, labels.repeat(2))

    @staticmethod
    def local(f: list[Tensor], g: list[Tensor], p: list[Tensor], k: list[Tensor], labels: Tensor) -> Tensor:
        negatives = draw_negatives(labels, 1)[0][:, 0]
        in_class, has_in_class = draw_in_class_positives(labels)
        has_negative = (labels[:, None] != labels).any(dim=1)
        scales = []
        for maps in zip(f, g, p, k, strict=True):
            f_l, g_l, p_l, k_l = (F.normalize(x.flatten(2), dim=1) for x in maps)
            negative = torch.stack([(p_l[i] * k_l[j]).sum(dim=0) for i, j in enumerate(negatives)]) / TEMPERATURE
            losses = []
            for seen, projected in ((g_l, k_l), (f_l[in_class], p_l[in_class])):
                match = (f_l.transpose(1, 2) @ seen).argmax(dim=2)
                matched = projected.gather(2, match[:, None].expand_as(projected))
                positive = (p_l * matched).sum(dim=1) / TEMPERATURE
                losses.append((torch.logaddexp(positive, negative) - positive).mean(dim=1))
            of_image = torch.where(has_in_class, (losses[0] + losses[1]) / 2, losses[0])
            scales.append(of_image[has_negative].mean())
        return torch.stack(scales).mean()

    @staticmethod
    def contrast(embeddings: Tensor, labels: Tensor) -> Tensor:
        z = F.normalize(embeddings, dim=1)
        similarity = z @ z.T / TEMPERATURE
        terms = []
        for i in range(len(z)):
            others = torch.arange(len(z)) != i
            positives = others & (labels == labels[i])
            if positives.any():
                terms.append((similarity[i, others].logsumexp(dim=0) - similarity[i, positives]).mean())
        return torch.stack(terms).mean() if terms else 0 * z.sum()


def make_step(name: str, classes: int, dtype: torch.dtype) -> tuple[nn.Module, Callable[[int, int], Tensor]]:
    """The network that is trained, and a function that computes its loss on a batch of images of this size."""
    torch.manual_seed(0)
    forms = {"released": {"losses": "released"}, "single view": {"losses": "single_view"}}
    options = {**forms, "without global loss": {"global_weight": 0}}.get(name, {})
    ours = CCL(BACKBONE, pre_trained=False, research={"noise_probability": 0, **options}).to(dtype).train()
    plain = Straightforward().to(dtype)
    plain.load(ours)
    paths = [str(index) for index in range(BATCH)]
    drawn = torch.randint(classes, (BATCH,), generator=torch.Generator().manual_seed(classes))
    ours.classes.names = [str(index) for index in range(classes)]
    ours.classes.index_of_image = dict(zip(paths, drawn.tolist(), strict=True))
    opened = set()

    def loss(batch: int, side: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        images, view = torch.randn(2, batch, 3, side, side, generator=generator, dtype=dtype)
        torch.manual_seed(2)  # for the same negatives
        if name == "straightforward":
            return plain(images, view, drawn[:batch])
        ours._second_view = lambda _: view
        if name == "cached" and side not in opened:  # the step after this one finds the features
            ours.feature_cache = FeatureCache(tempfile.gettempdir())
            ours.feature_cache.open(ours.model.network.encode(images[:1]), batch)
            opened.add(side)
        # Not anomalib's batch, which would round the images to single precision.
        return ours.training_step(SimpleNamespace(image=images, image_path=paths[:batch]))["loss"]

    return (plain if name == "straightforward" else ours.model), loss


def measure(name: str, classes: int, mixed: bool) -> dict[str, float]:
    """Some steps in this fresh process: the seconds of one, and the memory that they add at their peak."""
    network, loss = make_step(name, classes, torch.float32)
    loss(2, 64).backward()  # start-up costs of torch
    before = peak_mebibytes()
    seconds = []
    for _ in range(STEPS):
        network.zero_grad()
        start = time.perf_counter()
        with torch.autocast("cpu", enabled=mixed):  # as with --trainer.precision bf16-mixed
            value = loss(BATCH, 256)
        value.backward()
        seconds.append(time.perf_counter() - start)
    peak = peak_mebibytes() - before
    return {"seconds": statistics.median(seconds), "mebibytes": peak}


def measure_in_subprocess(name: str, classes: int = 5, mixed: bool = False) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, name, str(classes), *["mixed"] * mixed]
    return json.loads(subprocess.check_output(command, text=True))


def gradients(name: str) -> dict[str, Tensor]:
    network, loss = make_step(name, 5, torch.float64)
    loss(BATCH, 64).backward()
    named = ((key.removeprefix("network."), parameter.grad) for key, parameter in network.named_parameters())
    return {key: gradient for key, gradient in named if gradient is not None}


@pytest.mark.benchmark(group="training step")
def test_gradients_are_those_of_the_plain_formulas(benchmark):
    """In double precision: in single precision, matches and rectifiers that lie near a tie fall either way."""
    ours, plain = benchmark.pedantic(gradients, ("ours",), rounds=1), gradients("straightforward")
    assert ours.keys() == plain.keys()
    difference = torch.stack([(ours[key] - plain[key]).norm() for key in plain]).norm()
    assert difference < 1e-4 * torch.stack([gradient.norm() for gradient in plain.values()]).norm()


@pytest.mark.benchmark(group="training step")
def test_training_step_against_the_plain_one(benchmark, record_ratio):
    pairs = [(measure_in_subprocess("ours"), measure_in_subprocess("straightforward")) for _ in range(3)]
    _, (ours, plain), _ = sorted(pairs, key=lambda pair: pair[0]["seconds"] / pair[1]["seconds"])
    mixed = benchmark.pedantic(measure_in_subprocess, ("ours",), {"mixed": True}, rounds=1)
    others = ("cached", "released", "single view", "without global loss")
    cached, released, single, local = map(measure_in_subprocess, others)
    rows = {
        "forward and backward": (ours, plain),
        "bf16-mixed against single": (mixed, ours),
        "feature_cache against none": (cached, ours),
        "losses paper against released": (ours, released),
        "losses paper against single_view": (ours, single),
        "global loss, both views, against none": (ours, local),
    }
    for quantity, unit in (("seconds", "s"), ("mebibytes", "MiB")):
        for what, (a, b) in rows.items():
            record_ratio(f"training step, {what}", quantity, a[quantity], b[quantity], unit)


@pytest.mark.benchmark(group="training step")
@pytest.mark.parametrize("classes", [60, 1000])
def test_cost_of_a_step_does_not_depend_on_the_number_of_classes(benchmark, record_ratio, classes):
    many = benchmark.pedantic(measure_in_subprocess, ("ours", classes), rounds=1)
    five = measure_in_subprocess("ours", 5)
    for quantity, unit in (("seconds", "s"), ("mebibytes", "MiB")):
        record_ratio(f"training step, {classes} classes against 5", quantity, many[quantity], five[quantity], unit)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), mixed="mixed" in sys.argv)))
