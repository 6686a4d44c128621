"""Results of earlier runs, which a new one in the same folder would otherwise mix with its own or destroy."""

from itertools import count
from pathlib import Path

PREDICTIONS, HEATMAPS = "predictions.csv", "images"


def set_aside(folder: Path, *names: str) -> Path | None:
    """Move what an earlier test or prediction has left in a run's folder.

    anomalib makes a new folder for each training alone: a test or a prediction writes to that of the last training or,
    if it is on other data, to one that it shares with all others like it.

    Args:
        folder: The folder of the run.
        *names: The files and folders in it that are moved.

    Returns:
        ``earlier/1``, ``earlier/2``, … in it, to which they were moved, or None if there were none.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Path(folder, "predictions.csv").touch()
        ...     moved = set_aside(Path(folder), PREDICTIONS, HEATMAPS)
        ...     print(moved.relative_to(folder).as_posix(), [path.name for path in moved.iterdir()])
        earlier/1 ['predictions.csv']
    """
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        return None
    place = next(place for n in count(1) if not (place := folder / "earlier" / str(n)).exists())
    place.mkdir(parents=True)
    for path in found:
        path.rename(place / path.name)
    return place
