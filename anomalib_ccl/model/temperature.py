"""The temperature of the contrastive losses."""


def check_temperature(temperature: float) -> None:
    """Refuse a temperature by which similarities cannot be divided.

    Args:
        temperature: Temperature of a contrastive loss. Both losses are computed in single precision at least, whatever
            the autocast state: at 0.05 their exponentials reach e^20, more than half precision holds.

    Raises:
        ValueError: If it is not greater than 0.
    """
    if temperature <= 0:
        msg = f"temperature must be greater than 0, got {temperature}; the paper uses 0.05"
        raise ValueError(msg)
