"""Makes the sample data set: ``python -m anomalib_ccl.data ROOT``."""

import sys

from jsonargparse import auto_cli

from anomalib_ccl.data.sample import make_sample_dataset, next_command
from anomalib_ccl.errors import InputError

if __name__ == "__main__":
    try:
        root = auto_cli(make_sample_dataset, prog="python -m anomalib_ccl.data")
    except InputError as error:
        sys.exit(f"error: {error}")
    print(next_command(root))
