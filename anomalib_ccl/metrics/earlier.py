"""Results of earlier runs, which a new one in the same folder would otherwise mix with its own or destroy."""

from itertools import count
from pathlib import Path

PREDICTIONS, HEATMAPS = "predictions.csv", "images"
# Beside the heatmaps, if the folder is ours: one that was there before may hold photographs.
_MARK = ".heatmaps"


def set_aside(folder: Path) -> Path | None:
    """Move what an earlier test or prediction has left in a run's folder.

    anomalib makes a new folder for each training alone: a test or a prediction writes to that of the last training or,
    if it is on other data, to one that it shares with all others like it.

    Args:
        folder: The folder of the run. ``predictions.csv`` is moved, and ``images`` if :func:`heatmap_folder` has made
            it.

    Returns:
        ``earlier/1``, ``earlier/2``, … in it, to which they were moved, or None if there was nothing.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Path(folder, "predictions.csv").touch()
        ...     moved = set_aside(Path(folder))
        ...     print(moved.relative_to(folder).as_posix(), [path.name for path in moved.iterdir()])
        earlier/1 ['predictions.csv']
    """
    names = [PREDICTIONS, *([HEATMAPS, _MARK] if (folder / _MARK).exists() else [])]
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        return None
    place = next(place for n in count(1) if not (place := folder / "earlier" / str(n)).exists())
    place.mkdir(parents=True)
    for path in found:
        path.rename(place / path.name)
    return place


def heatmap_folder(folder: Path) -> Path:
    """Make the folder for the heatmaps of a run.

    Args:
        folder: The folder of the run.

    Returns:
        ``images`` in it, which may be there already.
    """
    images = folder / HEATMAPS
    if not images.exists():
        images.mkdir()
        (folder / _MARK).touch()
    return images
