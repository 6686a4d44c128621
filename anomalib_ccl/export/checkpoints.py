"""What a checkpoint holds beside the weights, and how a model takes it back."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.models.components import AnomalibModule
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import Self

from anomalib_ccl.classes.training_classes import TrainingClasses
from anomalib_ccl.data.prediction import ranges_of
from anomalib_ccl.data.reading import PixelRanges
from anomalib_ccl.training.completion import Completion
from anomalib_ccl.training.further import is_test_after_training, start_from_weights

if TYPE_CHECKING:
    # Not a base class: anomalib lists the direct subclasses of its own as models.
    Base = AnomalibModule
else:
    Base = object


class Checkpoints(Base):
    """Saves the classes and the false-alarm rate with a model, and loads them."""

    model: Any  # with a ``calibration``
    classes: TrainingClasses
    pixel_ranges: PixelRanges | None

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **kwargs: Any) -> Self:  # type: ignore[override]  # noqa: ANN401
        """Load a trained model; see anomalib's ``AnomalibModule.load_from_checkpoint``.

        The checkpoint holds the teacher's weights, so neither a hub nor the file they once came from is needed.

        Args:
            checkpoint_path: Path to the checkpoint.
            **kwargs: Passed to anomalib.

        Returns:
            The model.
        """
        kwargs = {"pre_trained": False, "backbone_weights": None, **kwargs}
        return super().load_from_checkpoint(checkpoint_path, **kwargs)  # type: ignore[return-value]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the classes too.

        Args:
            checkpoint: What will be saved.
        """
        if self.trainer.state.fn == TrainerFn.FITTING:
            (completion,) = (callback for callback in self.trainer.callbacks if isinstance(callback, Completion))  # type: ignore[attr-defined]
            completion.complete_checkpoint(self.trainer, self, checkpoint)
        super().on_save_checkpoint(checkpoint)
        checkpoint["training_classes"] = self.classes.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take classes and ranges from a checkpoint, where it has them, and the false-alarm rate, where none was given.

        Args:
            checkpoint: What was saved.
        """
        if is_test_after_training():
            # Nor are the callbacks to forget the checkpoints that they have written.
            checkpoint.update(state_dict=self.state_dict(), callbacks={})
            return
        super().on_load_checkpoint(checkpoint)
        self.pixel_ranges = ranges_of(checkpoint)
        saved = checkpoint["hyper_parameters"].get("false_alarm_rate")
        if saved is not None and self.hparams["false_alarm_rate"] is None:
            self.model.calibration.false_alarm_rate = saved
        if "training_classes" in checkpoint:
            self.classes.load_state_dict(checkpoint["training_classes"])
        trainer = self._trainer
        if trainer is None:
            return
        if trainer.state.fn == TrainerFn.FITTING and self.classes.changed(trainer):
            start_from_weights(checkpoint, trainer)
