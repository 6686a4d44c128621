"""What anomalib's commands do for a trained CCL model: they take its config, keep it, and ask for its checkpoint."""

from argparse import SUPPRESS
from typing import TYPE_CHECKING, Any

from anomalib.engine import Engine
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import SaveConfigCallback

from anomalib_ccl.model.lightning_model import CCL

if TYPE_CHECKING:
    from anomalib.cli.cli import AnomalibCLI as Base
else:
    Base = object  # imported by the module of the commands, and so not importing it

_TRAINING = ("fit", "train")
_TRAINED = ("validate", "test", "predict", "export")


class TrainedCommands(Base):
    """anomalib's ``AnomalibCLI``, in front of which it stands, made for models that a training has left."""

    def add_subcommands(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Have each command accept the options of all others, so that the config of a training goes with any."""
        super().add_subcommands(**kwargs)
        _share_options([self.subcommand_parsers[command] for command in (*_TRAINING, *_TRAINED)])

    def instantiate_engine(self) -> None:
        """Leave the config of the training in a run's folder when the model is tested there."""
        super().instantiate_engine()
        if self._is_ccl() and self.subcommand not in _TRAINING:
            _save_config_as(f"{self.subcommand}.yaml", self.engine)

    def _run_subcommand(self) -> None:
        if self.subcommand in _TRAINED and self._is_ccl() and not self._get(self.config_init, "ckpt_path"):
            msg = (
                f"anomalib {self.subcommand} needs a trained model: give its checkpoint with --ckpt_path; "
                "`anomalib train` writes one to results/…/weights/lightning/model.ckpt"
            )
            raise ValueError(msg)
        super()._run_subcommand()

    def _is_ccl(self) -> bool:
        return isinstance(self._get(self.config_init, "model"), CCL)


def _share_options(parsers: list[ArgumentParser]) -> None:
    """Have each parser accept and ignore the options that it lacks and another one has."""
    own = [{action.dest.partition(".")[0] for action in parser._actions} for parser in parsers]
    for parser, names in zip(parsers, own, strict=True):
        for name in sorted(set().union(*own) - names):
            parser.add_argument(f"--{name}", type=Any, default=SUPPRESS, help=SUPPRESS)


def _save_config_as(name: str, engine: Engine) -> None:
    for callback in engine._cache.args["callbacks"]:
        if isinstance(callback, SaveConfigCallback):
            callback.config_filename = name
