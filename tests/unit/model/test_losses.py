"""The losses against slow formulas, written out image by image as in the paper."""

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor
from torch.nn import functional as F

from anomalib_ccl.model import GlobalContrastiveLoss, LocalContrastiveLoss
from anomalib_ccl.model.local_loss import draw_negatives

LABELS = {
    "two_classes": [0, 0, 1, 1, 1],
    "with_singletons": [3, 0, 0, 7, 0, 1],
    "all_singletons": [0, 1, 2],
}
SILENT = {"one_class": [2, 2, 2], "one_image": [5]}


def slow_supcon(embeddings: Tensor, labels: list[int], temperature: float) -> Tensor:
    z = [e / e.norm() for e in embeddings]
    terms = []
    for i, label in enumerate(labels):
        others = [b for b in range(len(labels)) if b != i]
        positives = [a for a in others if labels[a] == label]
        if positives:
            denominator = sum(torch.exp(z[i] @ z[b] / temperature) for b in others)
            terms.append(
                -sum(torch.log(torch.exp(z[i] @ z[a] / temperature) / denominator) for a in positives) / len(positives)
            )
    return sum(terms) / len(terms) if terms else 0 * embeddings.sum()


def slow_released(embeddings: Tensor, labels: list[int], temperature: float) -> Tensor:
    z = [e / e.norm() for e in embeddings]
    images = range(len(labels))
    total = 0 * embeddings.sum()
    for i in images:
        denominator = sum(torch.exp(z[i] @ z[b] / temperature) for b in images)
        for group in (
            [a for a in images if labels[a] == labels[i]],
            [a for a in images if labels[a] != labels[i]],
        ):
            total = total - sum(torch.log(torch.exp(z[i] @ z[a] / temperature) / denominator) for a in group) / len(
                group
            )
    return total / len(labels)


def slow_local(maps: list[list[Tensor]], labels: list[int], negatives: Tensor, temperature: float) -> Tensor:
    scales = []
    for at_scale in zip(*maps, strict=True):
        f, g, p, k = (x.flatten(2) for x in at_scale)
        terms = []
        for i, label in enumerate(labels):
            if all(other == label for other in labels):
                continue
            for u in range(f.shape[2]):
                best = max(range(g.shape[2]), key=lambda v: F.cosine_similarity(f[i, :, u], g[i, :, v], dim=0).item())
                positive = torch.exp(F.cosine_similarity(p[i, :, u], k[i, :, best], dim=0) / temperature)
                negative = sum(
                    torch.exp(F.cosine_similarity(p[i, :, u], k[j, :, u], dim=0) / temperature) for j in negatives[i]
                )
                terms.append(-torch.log(positive / (positive + negative)))
        scales.append(sum(terms) / len(terms) if terms else 0 * (p.sum() + k.sum()))
    return sum(scales) / len(scales)


def random_maps(batch: int, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    """Query and key features of a teacher, then query and key projections, at two scales."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 6, 4, 5), (batch, 9, 2, 3)]
    return [
        [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(projected) for shape in shapes]
        for projected in (False, False, True, True)
    ]


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(6, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def assert_same_value_and_gradient(actual: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs))


@pytest.mark.parametrize("labels", (LABELS | SILENT).values(), ids=(LABELS | SILENT).keys())
def test_global_loss_is_the_supervised_contrastive_formula(embeddings: Tensor, labels: list[int]) -> None:
    z = embeddings[: len(labels)]
    expected = 0 * z.sum() if labels in SILENT.values() else slow_supcon(z, labels, 0.05)
    assert_same_value_and_gradient(GlobalContrastiveLoss(0.05)(z, torch.tensor(labels)), expected, [embeddings])


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_released_form_is_attraction_plus_repulsion_over_the_whole_row(embeddings: Tensor, labels: list[int]) -> None:
    z = embeddings[: len(labels)]
    actual = GlobalContrastiveLoss(0.1, form="released")(z, torch.tensor(labels))
    assert_same_value_and_gradient(actual, slow_released(z, labels, 0.1), [embeddings])


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_global_loss_agrees_with_pytorch_metric_learning(embeddings: Tensor, temperature: float) -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    expected = SupConLoss(temperature=temperature)(embeddings, labels)
    assert_same_value_and_gradient(GlobalContrastiveLoss(temperature)(embeddings, labels), expected, [embeddings])


@pytest.mark.parametrize("num_negatives", [1, 3])
@pytest.mark.parametrize("labels", (LABELS | SILENT).values(), ids=(LABELS | SILENT).keys())
def test_local_loss_is_the_formula_of_the_paper(labels: list[int], num_negatives: int) -> None:
    maps = random_maps(len(labels))
    torch.manual_seed(3)
    actual = LocalContrastiveLoss(0.2, num_negatives)(*maps, torch.tensor(labels))
    torch.manual_seed(3)
    negatives, _ = draw_negatives(torch.tensor(labels), num_negatives)
    assert_same_value_and_gradient(actual, slow_local(maps, labels, negatives, 0.2), [*maps[2], *maps[3]])


@pytest.mark.parametrize("chunk", [1, 50, 300])
def test_local_loss_does_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    labels, maps = torch.tensor([0, 1, 0, 1]), random_maps(4)
    torch.manual_seed(0)
    expected = LocalContrastiveLoss()(*maps, labels)
    monkeypatch.setattr("anomalib_ccl.model.local_loss._CHUNK_SIMILARITIES", chunk)
    monkeypatch.setattr("anomalib_ccl.model.local_loss._CHUNK_FEATURES", chunk)
    torch.manual_seed(0)
    assert_same_value_and_gradient(LocalContrastiveLoss()(*maps, labels), expected, [*maps[2], *maps[3]])


def test_negatives_are_drawn_from_all_other_classes_and_only_from_them() -> None:
    labels = torch.tensor([0, 0, 1, 2, 2])
    negatives, has_negative = draw_negatives(labels, 200)
    assert has_negative.all()
    for i, drawn in enumerate(negatives):
        assert set(drawn.tolist()) == {j for j in range(5) if labels[j] != labels[i]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_under_autocast_are_finite_and_close_to_single_precision(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 0, 1, 1])
    maps = random_maps(4, torch.float32)
    embeddings = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    local, contrast = LocalContrastiveLoss(), GlobalContrastiveLoss()
    torch.manual_seed(0)
    expected = local(*maps, labels), contrast(embeddings, labels)
    with torch.autocast("cpu", dtype=dtype):
        half = [[x.to(dtype) for x in scale] for scale in maps]
        torch.manual_seed(0)
        actual = local(*half, labels), contrast(embeddings.to(dtype), labels)
        gradients = torch.autograd.grad(actual[0], [*maps[2], *maps[3]])
    assert [x.dtype for x in actual] == [torch.float32, torch.float32]
    torch.testing.assert_close(actual, expected, rtol=0.03, atol=0.03)
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("labels", SILENT.values(), ids=SILENT.keys())
@pytest.mark.parametrize("form", ["supcon", "released"])
def test_losses_are_zero_with_a_graph_and_zero_gradient_without_another_class(labels: list[int], form: str) -> None:
    maps, y = random_maps(len(labels)), torch.tensor(labels)
    embeddings = torch.randn(len(labels), 4, requires_grad=True)
    local = LocalContrastiveLoss()(*maps, y)
    contrast = GlobalContrastiveLoss(form=form)(embeddings, y)
    (local + contrast).backward()
    assert local.item() == 0
    assert contrast.item() == 0
    assert all(x.grad is not None and not x.grad.any() for x in [embeddings, *maps[2], *maps[3]])


def test_losses_stay_finite_for_zero_features() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    zeros = [torch.zeros(4, 3, 2, 2, requires_grad=True)]
    embeddings = torch.zeros(4, 3, requires_grad=True)
    (
        LocalContrastiveLoss()(zeros, zeros, zeros, zeros, labels) + GlobalContrastiveLoss()(embeddings, labels)
    ).backward()
    assert zeros[0].grad.isfinite().all()
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("loss", [LocalContrastiveLoss, GlobalContrastiveLoss])
@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(loss: type, temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be greater than 0, got {temperature}"):
        loss(temperature=temperature)


def test_unknown_global_loss_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown global loss 'simclr'; choose one of supcon, released"):
        GlobalContrastiveLoss(form="simclr")


def test_number_of_negatives_must_be_positive() -> None:
    with pytest.raises(ValueError, match="num_negatives must be at least 1, got 0"):
        LocalContrastiveLoss(num_negatives=0)
