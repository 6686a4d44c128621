"""Which datamodules have categories that can be joined."""

from __future__ import annotations

import inspect

from anomalib.data import AnomalibDataModule
from anomalib.data.datamodules import image as image_datamodules

from anomalib_ccl.data.manta import MANTA


def joinable_datamodules() -> dict[str, type[AnomalibDataModule]]:
    """The image datamodules of anomalib that have categories, ``Folder``, and our own, by class name.

    Example:
        >>> "MVTecAD" in joinable_datamodules(), "Kolektor" in joinable_datamodules()
        (True, False)
    """
    found = {
        name: cls
        for name, cls in vars(image_datamodules).items()
        if inspect.isclass(cls)
        and issubclass(cls, AnomalibDataModule)
        and (name == "Folder" or "category" in inspect.signature(cls).parameters)
    }
    return found | {"MANTA": MANTA}
