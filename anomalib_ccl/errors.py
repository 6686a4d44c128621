"""The error of input that cannot be used."""


class InputError(ValueError):
    """An argument, a file or a folder cannot be used; the message names it, its value and the way out.

    Example:
        >>> issubclass(InputError, ValueError)
        True
    """
