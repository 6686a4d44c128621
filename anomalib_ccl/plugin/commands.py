"""anomalib's commands, with less to read: what libraries say goes to a file, and misspelt names get the nearest one."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any, NoReturn

import torch.onnx
from anomalib.engine.engine import UnassignedError
from jsonargparse import ArgumentParser, Namespace
from lightning import seed_everything
from lightning.pytorch.callbacks import ModelSummary

from anomalib_ccl.data.multi_category import MultiCategory
from anomalib_ccl.model.lightning_model import CCL
from anomalib_ccl.plugin import run_log
from anomalib_ccl.plugin.shipped import with_shipped_configs
from anomalib_ccl.plugin.spelling import correction, nearest_class

if TYPE_CHECKING:
    from anomalib.cli.cli import AnomalibCLI as Base
else:
    Base = object  # imported by the module of the commands, and so not importing it


class Commands(Base):
    """anomalib's ``AnomalibCLI``, in front of which it stands, saying less in a run of ours.

    A run is ours if its model is :class:`~anomalib_ccl.CCL` or its data :class:`~anomalib_ccl.data.MultiCategory`; all
    others are as without this package.

    Args:
        args: Command line, that of the process if None.
        run: Whether to run the command at once.
    """

    def __init__(self, args: Sequence[str] | None = None, run: bool = True) -> None:
        self._log = run_log.held()
        self._words = with_shipped_configs(sys.argv[1:] if args is None else args)
        self._runs = run
        if not run:
            self._log.release()
        try:
            super().__init__(self._words, run)
        except BaseException as error:
            self._end(error)
            raise
        self._end()

    def add_subcommands(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Add anomalib's subcommands, and explain misspelt words."""
        super().add_subcommands(**kwargs)
        for parser in (self.parser, *self.subcommand_parsers.values()):
            parser.error = partial(self._refuse, parser, parser.error)  # type: ignore[method-assign]

    def _refuse(
        self, parser: ArgumentParser, refuse: Callable[..., NoReturn], message: str, ex: Exception | None = None
    ) -> NoReturn:
        text = correction(message, getattr(ex, "subcommand_parser", None) or parser, self._words)
        if text is None:
            self._log.release()
            refuse(message, ex)
        self._quit(text)

    def _quit(self, text: str) -> NoReturn:
        self._log.drop()
        self.parser.exit(2, f"error: {text}\n")

    def before_instantiate_classes(self) -> None:
        """Find out whose run it is, now that the configuration is known, and heed its seed, as anomalib does not."""
        ours = self._is_ours()
        seed = self.config[self.subcommand].get("seed_everything") if ours else None
        if isinstance(seed, int) and not isinstance(seed, bool):
            seed_everything(seed, workers=True)
        if self._runs and ours:
            self._log.keep()
            data = self.config[self.subcommand].get("data")
            if isinstance(data, str | Path) and not Path(data).exists() and (name := nearest_class(str(data))):
                self._quit(f"no images at {str(data)!r}; did you mean {name!r}?")
        else:
            self._log.release()
        super().before_instantiate_classes()

    def instantiate_engine(self) -> None:
        """Make the engine, with a summary of the model that is logged rather than printed."""
        trainer = self.config_init[self.subcommand]["trainer"]
        callbacks = trainer["callbacks"] or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        if self._log.kept and not any(isinstance(callback, ModelSummary) for callback in callbacks):
            trainer["callbacks"] = [*callbacks, ModelSummary()]
        super().instantiate_engine()

    def _run_subcommand(self) -> None:
        if not self._log.kept or self.subcommand != "export":
            super()._run_subcommand()
            return
        # An export has no callbacks that would learn of a folder.
        arguments = self.config_init["export"]
        self._log.open(Path(arguments["export_root"] or arguments["default_root_dir"]))
        export: Any = torch.onnx.export

        def export_silently(*args: Any, **kwargs: Any) -> object:  # noqa: ANN401
            with self._log.prints():
                return export(*args, **kwargs)

        torch.onnx.export = export_silently  # type: ignore[assignment]
        try:
            super()._run_subcommand()
        finally:
            torch.onnx.export = export

    def _is_ours(self) -> bool:
        if self.subcommand not in {*self.subcommands(), *self.anomalib_subcommands()}:
            return False
        values = [self.config[self.subcommand].get(key) for key in ("model", "data")]
        classes = [locate(value["class_path"]) for value in values if isinstance(value, Namespace)]
        return any(isinstance(found, type) and issubclass(found, CCL | MultiCategory) for found in classes)

    def _end(self, error: BaseException | None = None) -> None:
        if not self._log.kept:
            self._log.release()
            return
        folder = None
        with suppress(AttributeError, UnassignedError):  # where there is no engine yet, or no trainer
            folder = Path(self.engine.trainer.default_root_dir)
        self._log.finish(folder, error)
