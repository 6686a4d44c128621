"""Training on two processes: the losses and gradients of one batch."""

from pathlib import Path

import pytest
import torch
from anomalib.data import ImageBatch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from anomalib_ccl import CCL, GlobalContrastiveLoss
from anomalib_ccl.model.gather import gathered

LABELS = [0, 1, 0, 2, 1, 2, 0, 1]


class TrainingStep(nn.Module):
    """CCL's training step as a module's forward, which is how Lightning hands it to DDP.

    The local loss draws its negatives at random, and the normalisation layers take their statistics, from the images
    of one process: both are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = CCL("resnet18", pre_trained=False, image_size=(64, 64), noise_probability=0, local_weight=0)
        self.model.classes.index_of_image = {str(i): label for i, label in enumerate(LABELS)}
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def forward(self, part: slice) -> Tensor:
        images = torch.rand(len(LABELS), 3, 64, 64, generator=torch.Generator().manual_seed(1))
        paths = [str(i) for i in range(len(LABELS))]
        return self.model.training_step(ImageBatch(image=images[part], image_path=paths[part]))["loss"]


class GlobalLoss(nn.Module):
    """The global loss of embeddings that a layer makes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 8)

    def forward(self, part: slice) -> Tensor:
        inputs = torch.randn(len(LABELS), 16, generator=torch.Generator().manual_seed(1))
        return GlobalContrastiveLoss()(*gathered(self.layer(inputs[part]), torch.tensor(LABELS)[part]))


def gradients(module: nn.Module, part: slice) -> dict[str, Tensor]:
    """The loss of a part of the batch and its gradients, by the names of the parameters."""
    loss = module(part)
    loss.backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def train_a_part(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    halves, uneven = (slice(0, 4), slice(4, 8)), (slice(0, 3), slice(3, 8))
    step = gradients(DistributedDataParallel(TrainingStep()), halves[rank])
    loss = gradients(DistributedDataParallel(GlobalLoss()), uneven[rank])
    torch.save((step, loss), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_loss_and_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(train_a_part, (tmp_path,), nprocs=2)
    steps, losses = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    whole = slice(None)
    for module, found in ((TrainingStep(), steps), (GlobalLoss(), losses)):
        expected = gradients(module, whole)
        assert len(expected) > 2
        mean = {name: (found[0][name] + found[1][name]) / 2 for name in expected}
        print(
            {n: ((mean[n] - expected[n]).abs().max() / expected[n].abs().max()).item() for n in list(expected)},
            sep="\n",
        )
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-5)
