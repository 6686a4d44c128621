"""A training that was killed, and how it goes on."""

import signal
from pathlib import Path

import torch
from recorded import run, steps

EPOCHS, STEPS = 3, 5  # six categories of six images, in batches of 8
ARGUMENTS = [
    "--model.class_labels=pseudo",
    "--model.n_pseudo_classes=3",
    "--data.train_batch_size=8",
    "--data.num_workers=1",
    f"--trainer.max_epochs={EPOCHS}",
]


def test_training_killed_in_an_epoch_resumes_as_if_it_had_not_been(sample_root: Path, tmp_path: Path) -> None:
    whole, killed, resumed = (tmp_path / name for name in ("whole", "killed", "resumed"))
    status, output = run(whole, "fit", sample_root, *ARGUMENTS)
    assert status == 0, output
    status, output = run(killed, "fit", sample_root, *ARGUMENTS, kill_at=STEPS + 3)
    assert status == -signal.SIGKILL, output
    checkpoint = killed / "results/CCL/MultiCategory/latest/weights/lightning/model.ckpt"
    status, output = run(resumed, "fit", sample_root, *ARGUMENTS, f"--ckpt_path={checkpoint}", seed=1)
    assert status == 0, output

    assert len(steps(whole)) == EPOCHS * STEPS
    assert steps(resumed) == steps(whole)[STEPS:]
    expected, found = (torch.load(folder / "0.pt") for folder in (whole, resumed))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
