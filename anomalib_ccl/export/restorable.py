"""What a model saves of itself, and how it becomes what a checkpoint is of."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import AnomalibDataModule
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import Self

from anomalib_ccl.classes.training_classes import TrainingClasses
from anomalib_ccl.data.multi_category import share_ranges
from anomalib_ccl.data.reading import PixelRanges
from anomalib_ccl.export import checkpoint as checkpoints
from anomalib_ccl.model.reconstruction.recipe import Schedule
from anomalib_ccl.model.torch_model import CCLModel
from anomalib_ccl.model.total_loss import TotalLoss
from anomalib_ccl.training.completion import Completion
from anomalib_ccl.training.options import chosen, given_research, loss_of, network_of
from anomalib_ccl.training.post_processor import LimitPostProcessor

if TYPE_CHECKING:
    # Not a base class: anomalib lists the direct subclasses of its own as models.
    _Base = AnomalibModule
else:
    _Base = object

logger = logging.getLogger(__name__)

_RANGES = "pixel_ranges"  # where a checkpoint has them
# Arguments of Lightning's method that reading tensors and plain data alone leaves nothing to do for.
_LIGHTNINGS = ("hparams_file", "strict", "weights_only")


class Restorable(_Base):
    """Saves what belongs to a trained model, and makes a model that of the checkpoint that it loads."""

    model: CCLModel
    loss: TotalLoss
    schedule: Schedule | None
    classes: TrainingClasses
    calibrate: bool
    pixel_ranges: PixelRanges | None
    given: dict[str, Any]  # arguments of the user's, of those that a checkpoint could contradict
    _began_with: tuple[Trainer | None, str] | None = None

    def setup(self, stage: str) -> None:
        """Have a datamodule read its images as those of the training, unless it is a training."""
        super().setup(stage)
        if stage != "fit":
            share_ranges(self.trainer.datamodule, self.pixel_ranges)  # type: ignore[attr-defined]

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: str | torch.device | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Self:
        """Load a trained model. Nothing but tensors and plain data is read, and no code that a file names is run.

        Args:
            checkpoint_path: Path to the checkpoint.
            map_location: Where the model goes; the CPU if not given.
            **kwargs: Arguments of the model, which must not contradict the checkpoint; components of one's own.

        Raises:
            InputError: If it is not a checkpoint of this model, or arguments contradict it.
        """
        checkpoint = checkpoints.read_checkpoint(checkpoint_path, map_location or "cpu")
        given = {name: value for name, value in kwargs.items() if value is not None and name not in _LIGHTNINGS}
        given["research"] = given_research(kwargs.get("research"))
        saved = checkpoint["hyper_parameters"]
        checkpoints.check_given(given, saved, checkpoint_path)
        arguments = {**saved, **given, "research": {**saved["research"], **given["research"]}}
        if not saved["calibrate"]:
            arguments |= {"false_alarm_rate": given.get("false_alarm_rate"), "memory": None}
        model = cls(**arguments)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        return model.to(map_location or "cpu")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Calibrate for the weights that are saved, and save the classes and ranges too, all of it for any machine."""
        for completion in self._completion():
            completion.complete_checkpoint(self.trainer, self, checkpoint)
        super().on_save_checkpoint(checkpoint)
        checkpoint["training_classes"] = self.classes.state_dict()
        checkpoint[_RANGES] = None if self.pixel_ranges is None else asdict(self.pixel_ranges)
        # A Trainer on a processor could not restore the tensors of a GPU.
        checkpoint.update(move_data_to_device(dict(checkpoint), torch.device("cpu")))

    def on_validation_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Complete what users save from now on: this comes after all callbacks, ModelCheckpoints among them."""
        for completion in self._completion():
            completion.let_others_save()

    on_train_batch_end = on_validation_end

    def _completion(self) -> list[Completion]:
        """The callback that calibrates, while there is a training."""
        callbacks = self.trainer.callbacks if self.trainer.state.fn == TrainerFn.FITTING else []  # type: ignore[attr-defined]
        return [callback for callback in callbacks if isinstance(callback, Completion)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Become the model that a checkpoint is of: its network, classes, ranges and, unless one was given, rate."""
        trainer = self._trainer
        source = str(trainer.ckpt_path) if trainer is not None and trainer.ckpt_path else "the checkpoint"
        fitting = trainer is not None and trainer.state.fn == TrainerFn.FITTING
        began, self._began_with = self._began_with, (trainer, source) if fitting else None
        if trainer is not None and trainer.state.fn == TrainerFn.TESTING and began == (trainer, source):
            # anomalib's Engine.train tests the checkpoint that the training began with, not what it has trained.
            logger.info("Tested is the model as it is trained now, not %s, with which the training began.", source)
            checkpoint.update(state_dict=self.state_dict(), callbacks={})
            return
        checkpoints.check_model(checkpoint, source)
        saved = checkpoint["hyper_parameters"]
        checkpoints.check_given(self.given, saved, source, goes_on=fitting)
        self._become(saved)
        checkpoints.prepare_components(self, checkpoint, source)
        super().on_load_checkpoint(checkpoint)
        rate = self.given.get("false_alarm_rate", saved["false_alarm_rate"])
        self.model.calibration.false_alarm_rate = self.hparams["false_alarm_rate"] = rate
        self.hparams.update({name: self.given.get(name, saved[name]) for name in checkpoints.CLASSES})
        self.classes = TrainingClasses(*(self.hparams[name] for name in checkpoints.CLASSES))
        self.classes.load_state_dict(checkpoint["training_classes"])
        self.pixel_ranges = None if checkpoint[_RANGES] is None else PixelRanges(**checkpoint[_RANGES])
        if trainer is None:
            return
        if isinstance(trainer.datamodule, AnomalibDataModule):  # type: ignore[attr-defined]
            # It was set up before, to resize images as this model did then: large ones would lose their detail.
            trainer.datamodule._update_augmentations()  # type: ignore[attr-defined]
        share_ranges(self.trainer.datamodule, self.pixel_ranges)  # type: ignore[attr-defined]
        if fitting and not self.model.reconstructs:
            trainer.fit_loop.max_epochs = 1  # of a training that knew of no memory when it began
        if fitting and (self.classes.changed(trainer) or not self.model.reconstructs):
            checkpoints.forget_progress(checkpoint, type(trainer.datamodule).__qualname__)  # type: ignore[attr-defined]

    def _become(self, saved: Mapping[str, Any]) -> None:
        """Build the network anew where that of a checkpoint is another."""
        wanted = {name: self.given.get(name, saved[name]) for name in checkpoints.ARCHITECTURE}
        wanted["research"] = {**saved["research"], **self.given["research"]}
        if all(self.hparams[name] == value for name, value in wanted.items()):
            return
        self.save_hyperparameters(wanted)
        self.model = network_of({**self.hparams, **wanted}).train(self.model.training)
        if wanted["calibrate"] != self.calibrate:
            self._take_default_post_processor(wanted["calibrate"])
        settings, _ = chosen(wanted["recipe"], wanted["research"])
        self.loss, self.schedule = loss_of(settings, self.model), settings.schedule
        if self.pre_processor is not None and "pre_processor" not in self.given:
            size, backbone, tiles = (wanted[name] for name in ("image_size", "backbone", "tiles"))
            default = self.configure_pre_processor(size, backbone, tiles)  # type: ignore[call-arg]  # CCL's own
            self.pre_processor.load_checkpoint_config(default.checkpoint_config())  # type: ignore[operator]

    def _take_default_post_processor(self, calibrate: bool) -> None:
        """Threshold as a model that is calibrated does by default, or as one that is not."""
        before, self.calibrate = self.post_processor, calibrate
        if before is None or "post_processor" in self.given:
            return
        self.post_processor = LimitPostProcessor() if calibrate else PostProcessor()
        if (trainer := self._trainer) is not None:  # it has the model's parts among its callbacks
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            callbacks[:] = [self.post_processor if callback is before else callback for callback in callbacks]
