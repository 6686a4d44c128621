"""Checkpoint files, and what is said of those that cannot be read."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from anomalib.engine.plugins import AnomalibCheckpointIO


class CheckpointFiles(AnomalibCheckpointIO):
    """anomalib's reader of checkpoints, which names the file that it cannot read, and needs no GPU for that of one.

    Args:
        extra_safe_globals: Types that a checkpoint may hold besides plain data.

    Example:
        >>> CheckpointFiles().load_checkpoint("absent.ckpt")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no checkpoint at absent.ckpt; `anomalib train` writes one to ...
    """

    def load_checkpoint(  # type: ignore[override]
        self, path: str | Path, map_location: str | torch.device | None = None, weights_only: bool = True
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: Path to the file.
            map_location: Where tensors go, as for ``torch.load``; to the CPU if not given.
            weights_only: Whether nothing but tensors and plain data are read.

        Returns:
            What was saved.

        Raises:
            FileNotFoundError: If there is no such file.
            OSError: If it cannot be read.
            ValueError: If it is not a checkpoint, or damaged.
        """
        if Path(path).is_dir():
            msg = f"{path} is a folder; give the checkpoint itself, such as …/weights/lightning/model.ckpt"
            raise IsADirectoryError(msg)
        try:
            # anomalib's default, unlike Lightning's, fails where a model was trained on a GPU and there is none here.
            checkpoint = super().load_checkpoint(path, map_location or "cpu", weights_only)
        except FileNotFoundError as error:
            msg = f"no checkpoint at {path}; `anomalib train` writes one to results/…/weights/lightning/model.ckpt"
            raise FileNotFoundError(msg) from error
        except OSError as error:
            msg = f"the checkpoint {path} cannot be read: {error.strerror or error}"
            raise OSError(msg) from error
        except Exception as error:  # each kind of file has errors of its own
            msg = f"{path} is not a checkpoint, or a damaged one; give one that `anomalib train` wrote"
            raise ValueError(msg) from error
        if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
            msg = f"{path} is not the checkpoint of a training; give one that `anomalib train` wrote"
            raise ValueError(msg)
        return checkpoint


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint that takes its place when it is whole.

    Args:
        checkpoint: What to save.
        path: Path to the file, replaced if it is there.
    """
    with TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        torch.save(checkpoint, written)
        written.replace(path)
