"""The folder that a training writes to: one for all its processes, and fit for writing before it starts."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from anomalib.utils.path import create_versioned_dir
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_ccl.data.multi_category import MultiCategory
from anomalib_ccl.model import CCL
from anomalib_ccl.plugin.run_log import running

_WAY_OUT = "choose another folder with --default_root_dir"


class RunFolder(Callback):
    """Has all processes of a training write to one folder, and stops it at once if that would fail.

    In a run of one of anomalib's commands, the log goes to that folder too.

    anomalib makes a folder for each process that Lightning starts, and its link ``latest`` leads to the last one. The
    folder of the first process becomes that of all. Where nothing was trained yet, anomalib would have a test make a
    folder ``latest``, in whose place no training could put its link; it gets a folder with a number. Does nothing but
    for :class:`~anomalib_ccl.CCL` or on :class:`~anomalib_ccl.data.MultiCategory`.

    Example:
        >>> from anomalib.engine import Engine
        >>> engine = Engine(callbacks=[RunFolder()])  # needless where the plugin is installed
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on the folder of a run, and check that of a training; have the log written to the folder of a command.

        Raises:
            OSError: If the folder cannot be written to, or has no room for checkpoints.
        """
        ours = isinstance(pl_module, CCL) or isinstance(getattr(trainer, "datamodule", None), MultiCategory)
        if ours:
            self._agree(trainer)
        if ours and stage == "fit":
            check_folder(
                Path(trainer.default_root_dir), checkpoint_size(pl_module) if trainer.checkpoint_callbacks else 0
            )
        if log := running():
            log.open(Path(trainer.default_root_dir))

    @staticmethod
    def _agree(trainer: Trainer) -> None:
        own = Path(trainer.default_root_dir)
        latest = own.with_name("latest")
        if own == latest and trainer.is_global_zero and not own.exists():
            own = create_versioned_dir(own.parent)
        folder = Path(trainer.strategy.broadcast(str(own)))
        trainer._default_root_dir = str(folder)  # type: ignore[attr-defined]  # there is no other way to set it
        if own not in {folder, latest}:
            with suppress(OSError):  # where something is in it after all
                own.rmdir()
            if latest.is_symlink() and latest.readlink() == own:
                latest.unlink()
                latest.symlink_to(folder, target_is_directory=True)


def checkpoint_size(model: LightningModule) -> int:
    """Estimate how large the checkpoints of a model get that is trained with Adam.

    Args:
        model: The model.

    Returns:
        The bytes of its parameters and buffers, and of two numbers of the optimizer for each that is trained.

    Example:
        >>> from anomalib_ccl import CCL
        >>> checkpoint_size(CCL("mobilenetv3_small_100", pre_trained=False)) > 10**6
        True
    """
    state = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return state + 2 * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


def check_folder(folder: Path, size: int) -> None:
    """Check that checkpoints can be written to a folder, which is made if it is not there.

    Lightning writes a checkpoint to the folder for temporary files before it takes the place of the last one, so there
    must be room for one in each, and for two where both are on one disk.

    Args:
        folder: The folder.
        size: Bytes of a checkpoint.

    Raises:
        OSError: If the folder cannot be written to, or there is not enough room.

    Example:
        >>> check_folder(Path(tempfile.gettempdir()), size=10**18)
        Traceback (most recent call last):
        ...
        OSError: ... free for checkpoints of 1000000000000 MB; free some space, or choose another folder with ...
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        msg = f"results cannot be written to {folder}: {error.strerror}; {_WAY_OUT}"
        raise OSError(msg) from error
    temporary = Path(tempfile.gettempdir())
    copies = 2 if folder.stat().st_dev == temporary.stat().st_dev else 1
    for place, needed, way_out in ((folder, copies * size, _WAY_OUT), (temporary, size, "set TMPDIR")):
        free = shutil.disk_usage(place).free
        if free < needed:
            msg = (
                f"{place} has {free / 1e6:.0f} MB free for checkpoints of {size / 1e6:.0f} MB; "
                f"free some space, or {way_out}"
            )
            raise OSError(msg)
