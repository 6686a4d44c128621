"""One line instead of a traceback when the input of one of anomalib's commands is bad."""

import sys
import traceback
from pathlib import Path
from types import TracebackType

_PACKAGE = str(Path(__file__).parents[1])


def explain_bad_input() -> None:
    """Have errors that this package raises about its input end a command with their message alone.

    So do those of a folder for results that cannot be written to. All other errors, those of this package's own
    mistakes included, keep their traceback.
    """
    previous = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = input_error(error)
        if message is None:
            previous(kind, error, trace)
        else:
            print(f"error: {message}", file=sys.stderr)

    sys.excepthook = excepthook


def input_error(error: BaseException) -> str | None:
    """Find the message of an error that this package raised about its input, or of one about the folder for results.

    Args:
        error: An error that was raised, in this process or in a worker that reads images.

    Returns:
        The message, or None if the error is of another kind or was raised elsewhere.

    Example:
        >>> from anomalib_ccl import LocalContrastiveLoss
        >>> try:
        ...     LocalContrastiveLoss(num_negatives=0)
        ... except ValueError as error:
        ...     input_error(error)
        'num_negatives must be at least 1, got 0'
        >>> input_error(ValueError("raised nowhere")) is None
        True
    """
    if not isinstance(error, ValueError | OSError):
        return None
    text = str(error)
    frames = traceback.extract_tb(error.__traceback__)
    if frames and frames[-1].filename.startswith(_PACKAGE):
        return text
    if isinstance(error, OSError):
        from anomalib_ccl.metrics.full_disk import FULL  # noqa: PLC0415  # brings anomalib along, which takes seconds

        # Wherever a disk turns out to be full, the code is not to blame.
        if error.errno in FULL or any(f.name == "create_versioned_dir" for f in frames):
            return (
                f"results cannot be written: {text}; free some space, or choose another folder with --default_root_dir"
            )
    # torch raises a worker's error again with the worker's traceback, as text, before the message.
    if "DataLoader worker process" in text and _PACKAGE in text:
        return text.strip().splitlines()[-1].partition(": ")[2]
    # jsonargparse tries every type that an argument may have and lists what each of them said, ours last.
    if "Given value: Namespace(class_path='anomalib_ccl." in text:
        return text.partition("\nErrors:")[2].partition("\nGiven value type:")[0].rpartition("\n  - ")[2]
    return None
