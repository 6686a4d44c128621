"""The losses against slow formulas, written out image by image as in the paper."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor
from torch.nn import functional as F

from anomalib_ccl.errors import InputError
from anomalib_ccl.model import GlobalContrastiveLoss, LocalContrastiveLoss
from anomalib_ccl.model.local_loss import Positives, draw_in_class_positives, draw_negatives
from anomalib_ccl.model.matching import match_positions
from anomalib_ccl.model.outputs import TrainingOutput
from anomalib_ccl.model.total_loss import TotalLoss

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


def slow_local(
    maps: list[list[Tensor]],
    labels: list[int],
    negatives: Tensor,
    in_class: Tensor | None,
    temperature: float,
    on_projected: bool = False,
    of_view: bool = True,
    chosen: Sequence[slice] = (slice(None), slice(None)),
) -> Tensor:
    cosine = partial(F.cosine_similarity, dim=0)
    scales = []
    for f, g, p, k, queried in zip(*maps, chosen, strict=True):
        seen, seen_of_view = (p, k) if on_projected else (f, g)
        height, width = f.shape[2:]
        places = [(y, x) for y in range(height) for x in range(width)]

        def most_similar(feature: Tensor, candidates: Tensor, places: list = places) -> tuple[int, int]:
            return max(places, key=lambda at: cosine(feature, candidates[:, at[0], at[1]]).item())

        images = []
        for i, label in enumerate(labels):
            has_other = any(labels[o] == label for o in range(len(labels)) if o != i)
            if all(other == label for other in labels) or not (of_view or has_other):
                continue
            positions = []
            for y, x in places[queried]:
                feature = seen[i, :, y, x]
                positives = []
                if of_view:
                    v, w = most_similar(feature, seen_of_view[i])
                    positives.append(k[i, :, v, w])
                if in_class is not None and has_other:
                    other = int(in_class[i])
                    v, w = most_similar(feature, seen[other])
                    positives.append(p[other, :, v, w])
                query = p[i, :, y, x]
                repulsion = sum(torch.exp(cosine(query, k[j, :, y, x]) / temperature) for j in negatives[i])
                terms = []
                for positive in positives:
                    attraction = torch.exp(cosine(query, positive) / temperature)
                    terms.append(-torch.log(attraction / (attraction + repulsion)))
                positions.append(sum(terms) / len(terms))
            images.append(sum(positions) / len(positions))
        scales.append(sum(images) / len(images) if images else 0 * (p.sum() + k.sum()))
    return sum(scales) / len(scales)


def drawn_with_seed(labels: list[int], num_negatives: int = 1, seed: int = 3) -> tuple[Tensor, Tensor]:
    """The negatives and in_class that the local loss draws after this seed."""
    torch.manual_seed(seed)
    negatives, _ = draw_negatives(torch.tensor(labels), num_negatives)
    return negatives, draw_in_class_positives(torch.tensor(labels))[0]


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
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    close(actual, expected)
    close(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs))


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


@pytest.mark.parametrize("positives", ["both", "view", "class"])
@pytest.mark.parametrize("num_negatives", [1, 3])
@pytest.mark.parametrize("labels", (LABELS | SILENT).values(), ids=(LABELS | SILENT).keys())
def test_local_loss_is_the_formula_of_the_paper(labels: list[int], num_negatives: int, positives: Positives) -> None:
    maps = random_maps(len(labels))
    torch.manual_seed(3)
    actual = LocalContrastiveLoss(0.2, num_negatives, positives)(*maps, torch.tensor(labels))
    negatives, in_class = drawn_with_seed(labels, num_negatives)
    in_class_or_none = None if positives == "view" else in_class
    expected = slow_local(maps, labels, negatives, in_class_or_none, 0.2, of_view=positives != "class")
    assert_same_value_and_gradient(actual, expected, [*maps[2], *maps[3]])


@pytest.mark.parametrize("match_on", ["teacher", "projected"])
def test_local_loss_matches_on_teacher_or_projected_features(match_on: str) -> None:
    labels = LABELS["with_singletons"]
    maps = random_maps(len(labels))
    torch.manual_seed(3)
    actual = LocalContrastiveLoss(0.2, match_on=match_on)(*maps, torch.tensor(labels))
    expected = slow_local(maps, labels, *drawn_with_seed(labels), 0.2, match_on == "projected")
    assert_same_value_and_gradient(actual, expected, [*maps[2], *maps[3]])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_losses_as_released_have_one_view_and_one_positive(labels: list[int], layout: torch.memory_format) -> None:
    maps = [[x.detach().to(memory_format=layout).requires_grad_() for x in scale] for scale in random_maps(len(labels))]
    embedding, view_embedding = torch.randn(2, len(labels), 7, dtype=torch.float64).unbind()
    inputs = [*maps[2], *maps[3], embedding.requires_grad_()]
    output = TrainingOutput([], [], maps[0], maps[2], embedding, maps[1], maps[3], view_embedding)
    torch.manual_seed(3)
    loss = TotalLoss(temperature=0.1, losses="released")
    total, _ = loss(torch.zeros(()), output, torch.tensor(labels), lambda *batch: batch)
    negatives, _ = drawn_with_seed(labels)
    expected = slow_released(embedding, labels, 0.1) + slow_local(maps, labels, negatives, None, 0.1)
    assert_same_value_and_gradient(total, expected, inputs)


@pytest.mark.parametrize("labels", (LABELS | SILENT).values(), ids=(LABELS | SILENT).keys())
def test_global_loss_of_the_paper_compares_images_and_views(labels: list[int]) -> None:
    maps = random_maps(len(labels))
    z = torch.randn(2, len(labels), 7, dtype=torch.float64).requires_grad_()
    output = TrainingOutput([], [], maps[0], maps[2], z[0], maps[1], maps[3], z[1])
    _, terms = TotalLoss(temperature=0.1)(torch.zeros(()), output, torch.tensor(labels), lambda *batch: batch)
    both = [*labels, *labels]
    expected = 0 * z.sum() if labels in SILENT.values() else slow_supcon(z.flatten(0, 1), both, 0.1)
    assert_same_value_and_gradient(terms["global"], expected, [z])
    # Each image has a positive, though all may be alone in their classes.
    assert labels in SILENT.values() or terms["global"] > 0


@pytest.mark.parametrize("labels", (LABELS | SILENT).values(), ids=(LABELS | SILENT).keys())
def test_losses_of_a_single_view_are_the_papers_of_the_images_at_every_fourth_position(labels: list[int]) -> None:
    f, _, p, _ = random_maps(len(labels))
    embedding = torch.randn(len(labels), 7, dtype=torch.float64, requires_grad=True)
    output = TrainingOutput([], [], f, p, embedding, [], [], None)
    loss = TotalLoss(temperature=0.1, losses="single_view")
    assert not loss.needs_view
    torch.manual_seed(3)
    total, _ = loss(torch.zeros(()), output, torch.tensor(labels), lambda *batch: batch)
    negatives, in_class = drawn_with_seed(labels)
    chosen = [slice(int(torch.randint(4, ())), None, 4) for _ in f]
    expected = slow_local([f, f, p, p], labels, negatives, in_class, 0.1, of_view=False, chosen=chosen)
    if labels not in SILENT.values():
        expected = expected + slow_supcon(embedding, labels, 0.1)
    assert_same_value_and_gradient(total, expected + 0 * embedding.sum(), [*p, embedding])


def test_local_loss_at_some_positions_is_on_average_that_of_all() -> None:
    maps = [[x.detach() for x in scales[:1]] for scales in random_maps(4)]
    for scales in maps:
        scales[0][1], scales[0][3] = scales[0][0].clone(), scales[0][2].clone()  # so that no draw makes a difference
    labels = torch.tensor([0, 0, 1, 1])
    some = {LocalContrastiveLoss(0.2, every=4)(*maps, labels).item() for _ in range(60)}
    assert len(some) == 4
    assert sum(some) / 4 == pytest.approx(LocalContrastiveLoss(0.2)(*maps, labels).item())


@pytest.mark.parametrize("every", [1, 3, 50])
@pytest.mark.parametrize("chunk", [1, 50, 900])
def test_local_loss_does_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch, chunk: int, every: int) -> None:
    labels, maps = torch.tensor([0, 1, 0, 1]), random_maps(4)
    torch.manual_seed(0)
    expected = LocalContrastiveLoss(every=every)(*maps, labels)
    monkeypatch.setattr("anomalib_ccl.model.matching._CHUNK_SIMILARITIES", chunk)
    monkeypatch.setattr("anomalib_ccl.model.local_loss._CHUNK_FEATURES", chunk)
    torch.manual_seed(0)
    actual = LocalContrastiveLoss(every=every)(*maps, labels)
    assert_same_value_and_gradient(actual, expected, [*maps[2], *maps[3]])


def test_negatives_are_drawn_from_all_other_classes_and_only_from_them() -> None:
    labels = torch.tensor([0, 0, 1, 2, 2])
    negatives, has_negative = draw_negatives(labels, 200)
    assert has_negative.all()
    for i, drawn in enumerate(negatives):
        assert set(drawn.tolist()) == {j for j in range(5) if labels[j] != labels[i]}


def test_in_class_are_drawn_from_all_other_images_of_the_class_and_only_from_them() -> None:
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    drawn = torch.stack([draw_in_class_positives(labels)[0] for _ in range(100)])
    assert draw_in_class_positives(labels)[1].tolist() == [True, True, False, True, True, True]
    for i in (0, 1, 3, 4, 5):
        assert set(drawn[:, i].tolist()) == {j for j in range(6) if labels[j] == labels[i] and j != i}


def test_match_in_another_map_is_the_same_whether_found_for_one_image_or_for_all() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 6, 5, 5, generator=generator)
    of_query = [3, 0, 3, 1]
    expected = torch.cat([match_positions(query[[i]], key[[j]]) for i, j in enumerate(of_query)])
    assert torch.equal(match_positions(query, key, torch.tensor(of_query)), expected)


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


@pytest.mark.parametrize(
    ("loss", "argument", "message"),
    [
        (LocalContrastiveLoss, {"temperature": 0.0}, "temperature must be greater than 0, got 0.0"),
        (GlobalContrastiveLoss, {"temperature": -1.0}, "temperature must be greater than 0, got -1.0"),
        (LocalContrastiveLoss, {"num_negatives": 0}, "num_negatives must be at least 1, got 0"),
        (LocalContrastiveLoss, {"every": 0}, "every must be at least 1, got 0"),
        (LocalContrastiveLoss, {"positives": "none"}, "unknown positives 'none'; choose one of both, view, class"),
        (LocalContrastiveLoss, {"match_on": "features"}, "unknown match_on 'features'; choose one of teacher, proj"),
        (GlobalContrastiveLoss, {"form": "simclr"}, "unknown global loss 'simclr'; choose one of supcon, released"),
        (TotalLoss, {"losses": "official"}, "unknown losses 'official'; choose one of paper, released, single_view"),
        (LocalContrastiveLoss, {"temperature": float("nan")}, "temperature must be greater than 0, got nan"),
        (TotalLoss, {"global_weight": float("nan")}, "global_weight must not be negative, got nan; 0 switches"),
        (TotalLoss, {"local_weight": -1}, "local_weight must not be negative, got -1; 0 switches the loss off"),
    ],
)
def test_bad_options_are_named_with_the_way_out(loss: type, argument: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loss(**argument)
