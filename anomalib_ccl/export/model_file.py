"""Exported models as they lie on disk."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino

# OpenVINO's names of the formats.
_FORMATS = {".xml": "ir", ".onnx": "onnx"}


def read_model(path: str | Path) -> "openvino.Model":
    """Read an exported model.

    Args:
        path: An ``.xml`` file with its ``.bin`` beside it, or an ``.onnx`` file with its ``.onnx.data``.

    Returns:
        The model, not compiled.

    Raises:
        FileNotFoundError: If it, or the file of its weights, is not there.
        ValueError: If it is of another format, or damaged.
    """
    import openvino  # noqa: PLC0415  # as anomalib does
    from openvino.frontend import FrontEndManager  # noqa: PLC0415

    path = Path(path)
    if path.suffix not in _FORMATS:
        msg = (
            f"{path} is no model that OpenVINO runs: give the .xml or .onnx file that `anomalib export` makes with "
            "--export_type openvino or onnx"
        )
        raise ValueError(msg)
    if not path.is_file():
        msg = f"there is no exported model {path}"
        raise FileNotFoundError(msg)
    if path.suffix == ".xml" and not path.with_suffix(".bin").is_file():
        msg = f"{path} lacks its weights: copy {path.with_suffix('.bin').name} too, which the export made beside it"
        raise FileNotFoundError(msg)
    # Asked for any file, OpenVINO tries every format it knows, and each prints what it minds.
    readable = FrontEndManager().load_by_framework(_FORMATS[path.suffix]).supported(str(path))
    try:
        if readable:
            return openvino.Core().read_model(path)
        reason: RuntimeError | None = None
    except RuntimeError as error:
        reason = error
    weights = ".bin" if path.suffix == ".xml" else ".onnx.data"
    msg = (
        f"{path} cannot be read: it, or {path.with_suffix(weights).name} beside it, is damaged or of another model; "
        "copy both from the folder of the export again"
    )
    raise ValueError(msg) from reason
