"""What several processes have, joined."""

from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def gathered(own: T) -> list[T]:
    """What each process has, in the order of the ranks; outside of distributed training, one's own.

    Example:
        >>> gathered({"bottle": 3})
        [{'bottle': 3}]
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return [own]
    received: list[T | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(received, own)
    return received  # type: ignore[return-value]
