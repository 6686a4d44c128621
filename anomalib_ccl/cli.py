"""The command ``anomalib-ccl``: limits, recalibrate, insight, sample, authors.

``anomalib-ccl --help`` lists the commands, ``anomalib-ccl limits --help`` explains one. Training, tests, predictions,
exports and benchmarks are anomalib's own commands.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt

from anomalib_ccl import __version__
from anomalib_ccl.errors import InputError

if TYPE_CHECKING:
    from anomalib.data import AnomalibDataModule

    from anomalib_ccl.data import MultiCategory

# All else is imported by the command that needs it: anomalib and torch take seconds.
# ruff: noqa: PLC0415


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: What was typed behind ``anomalib-ccl``; that of the process if not given.

    Returns:
        The exit code: 0, or 1 where the input was to blame, whose fault has been printed. A command line that cannot
        be read raises SystemExit with 2.
    """
    words = list(sys.argv[1:] if words is None else words)
    try:
        parser = _parser(words[0] if words else "")
        given = parser.parse_args(words)
        arguments = given[given.subcommand]
        if arguments.get("data") is not None:
            _take_layout(arguments, parser.parse_args(words, defaults=False)[given.subcommand])
            arguments.data = _made(arguments.data)
        COMMANDS[given.subcommand].run(**vars(arguments))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser(chosen: str) -> ArgumentParser:
    """Make the parser; only the chosen command gets its arguments, which may need anomalib."""
    description = "What CCL does beyond anomalib's own commands."
    parser = ArgumentParser(prog="anomalib-ccl", description=description, version=__version__)
    subcommands = parser.add_subcommands(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        part = ArgumentParser(description=command.description)
        if name == chosen:
            command.add_arguments(part)
        subcommands.add_subcommand(name, part, help=command.description)
    return parser


def _add_limits(parser: ArgumentParser) -> None:
    """Add the arguments of :func:`_limits`."""
    parser.add_argument("file", type=Path, help="checkpoint, or exported .onnx or .xml file")
    parser.add_argument("--false_alarm_rate", type=float, help="set the limits to those of this rate, in (0, 0.5]")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON instead of a table")


def _limits(file: Path, false_alarm_rate: float | None, as_json: bool) -> None:
    """Print the limits of a trained model, or set them and print the new ones."""
    import json

    from anomalib_ccl.export.limits import read_limits, set_false_alarm_rate

    limits = read_limits(file) if false_alarm_rate is None else set_false_alarm_rate(file, false_alarm_rate)
    names = [*limits.class_names, "unknown"]
    if as_json:
        rows = [{"product": name, "limit": limit} for name, limit in zip(names, limits.limits, strict=True)]
        others = {name: getattr(limits, name) for name in ("false_alarm_rate", "image_size", "version")}
        print(json.dumps({"products": rows, **others}, ensure_ascii=False, indent=2))
        return
    texts = [f"{limit:.4f}" for limit in limits.limits]
    _print_table(("product", "limit"), list(zip(names, texts, strict=True)))
    size = "the images' own size" if limits.image_size is None else " × ".join(map(str, limits.image_size)) + " pixels"
    print(f"False-alarm rate {limits.false_alarm_rate:g}, scored at {size}.")


def _add_recalibrate(parser: ArgumentParser) -> None:
    """Add the arguments of :func:`_recalibrate`."""
    from anomalib.data import AnomalibDataModule

    _add_model_and_data(parser, AnomalibDataModule, required=False)
    parser.add_argument("--add", action="store_true", help="the products of --data are new ones")
    parser.add_argument("--remove", metavar="NAME", type=str | None, help="forget a product")
    parser.add_argument("--output", type=Path | None, help="the new checkpoint; <name>-recalibrated.ckpt if not given")


def _recalibrate(
    ckpt_path: Path,
    data: "AnomalibDataModule | None",
    reconstruction: str | None,
    add: bool,
    remove: str | None,
    output: Path | None,
) -> None:
    """Write a checkpoint with new limits, and print them."""
    from anomalib_ccl.recalibrate import recalibrate

    made = recalibrate(ckpt_path, data, add, remove, output, reconstruction)
    if made.products:
        rows = [(row.name, str(row.images), f"{row.limit:.4f}", f"{100 * row.above:.1f}") for row in made.products]
        _print_table(("product", "images", "limit", "above, %"), rows)
        seen = sum(row.images for row in made.products)
        print(f"Limits for {100 * made.false_alarm_rate:g} % of false alarms, from {seen} normal images.")
        print(f"Left out: {made.left_out} normal images that the split keeps for a validation or a test.")
    for row in made.products:
        if row.above * row.images > 1 + 2 * made.false_alarm_rate * row.images:  # one image of a few is no sign
            print(f"Many images of {row.name} exceed its limit: are there defective ones among them?")
        if add and row.images < 20:
            print(f"{row.images} images of {row.name} are few: its limit is a guess.")
        if row.groups > 1:
            print(f"The images of {row.name} fall into {row.groups} groups: are several products mixed in its folder?")
    if add:
        print(
            "These products were only added: the network has not been trained on them, and may miss their defects. "
            "Test it on defective images, and train on with all products if it does."
        )
    print(f"Written: {made.path}")


def _add_insight(parser: ArgumentParser) -> None:
    """Add the arguments of :func:`_insight`."""
    from anomalib_ccl.data import MultiCategory

    _add_model_and_data(parser, MultiCategory, required=True)
    parser.add_argument("--output", type=Path, default=Path("results/insight"), help="folder to write into")


def _insight(ckpt_path: Path, data: "MultiCategory", reconstruction: str | None, output: Path) -> None:
    """Write the table and the pictures of what a model knows of its products."""
    from anomalib_ccl import CCL
    from anomalib_ccl.reports.insight import insight

    model = CCL.load_from_checkpoint(ckpt_path, evaluator=False, visualizer=False, reconstruction=reconstruction)
    insight(model, data, output)


def _add_sample(parser: ArgumentParser) -> None:
    """Add the arguments of :func:`_sample`."""
    parser.add_argument("root", type=Path, help="folder to make the data set in")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="seed of the crops and the defects")


def _sample(root: Path, seed: int) -> None:
    """Make the sample data set."""
    from anomalib_ccl.data.sample import make_sample_dataset, next_command

    print(next_command(make_sample_dataset(root, seed=seed)))


def _add_authors(parser: ArgumentParser) -> None:
    """Add the arguments of :func:`_authors`."""
    parser.add_argument("source", metavar="IN", type=Path, help="checkpoint of either kind")
    parser.add_argument("target", metavar="OUT", type=Path, help="file to write, which must not be there yet")
    parser.add_argument("--backbone", type=str, default="wide_resnet50_2", help="timm model that is the teacher")


def _authors(source: Path, target: Path, backbone: str) -> None:
    """Convert a checkpoint."""
    from anomalib_ccl.authors import convert

    print(convert(source, target, backbone))


def _add_model_and_data(parser: ArgumentParser, kind: type, required: bool) -> None:
    """Add the arguments that give a checkpoint and a datamodule of a kind."""
    import anomalib_ccl.data  # noqa: F401  # so that MultiCategory is known by its name

    parser.add_argument("--ckpt_path", type=Path, required=True, help="checkpoint of a calibrated CCL model")
    text = "MultiCategory, or a YAML file as for `anomalib train --data`"
    parser.add_subclass_arguments(kind, "data", required=required, instantiate=False, help=text)
    parser.add_argument("--reconstruction", type=str | None, help="class path of the network, where it is your own")


def _take_layout(given: Namespace, said: Namespace) -> None:
    """Have a MultiCategory read folders as the training of its checkpoint did, but for what was said itself."""
    if not said.data.class_path.endswith(".MultiCategory"):
        return
    from anomalib_ccl.export.checkpoint import read_checkpoint

    layout = read_checkpoint(given.ckpt_path).get("datamodule_hyper_parameters", {})
    own = said.data.get("init_args", Namespace())
    if "datasets" not in own and own.get("dataset", layout.get("dataset")) == layout.get("dataset"):
        for name in layout.keys() - vars(own).keys():
            given.data.init_args[name] = layout[name]


def _made(data: Namespace) -> "AnomalibDataModule":
    """Make the datamodule that was given, whose errors jsonargparse would wrap into a page about types."""
    module, _, name = data.class_path.rpartition(".")
    parser = ArgumentParser()
    parser.add_class_arguments(getattr(import_module(module), name), "data")
    return parser.instantiate_classes(Namespace(data=data.init_args)).data


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of words, the first column to the left and the others to the right."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, padding=0)
    for index, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # names are no markup
    Console().print(table)


class Command(NamedTuple):
    """A command: what it does, in a sentence, its arguments, and the function that is given them."""

    description: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[..., None]


COMMANDS = {
    "limits": Command("Print the limits of a trained CCL model, and set its false-alarm rate.", _add_limits, _limits),
    "recalibrate": Command(
        "Find the limits of a trained CCL model anew, add products or forget one without a training.",
        _add_recalibrate,
        _recalibrate,
    ),
    "insight": Command(
        "Show how well a calibrated CCL model knows its products: a table and three pictures.", _add_insight, _insight
    ),
    "sample": Command("Make a small data set of six products in the layout of MVTec AD.", _add_sample, _sample),
    "authors": Command(
        "Convert a checkpoint of the authors' released code to one of ours, or the other way round.",
        _add_authors,
        _authors,
    ),
}


if __name__ == "__main__":
    sys.exit(main())
