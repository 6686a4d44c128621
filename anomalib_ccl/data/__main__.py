"""Makes the sample data set: ``python -m anomalib_ccl.data ROOT``."""

import argparse
import sys

from anomalib_ccl.data.sample import make_sample_dataset


def main() -> None:
    """Read the command line and make the data set."""
    parser = argparse.ArgumentParser(
        prog="python -m anomalib_ccl.data",
        description="Make a small data set in the layout of MVTec AD: six products, two of them look-alikes.",
    )
    parser.add_argument("root", help="folder to make the data set in")
    parser.add_argument("--seed", type=int, default=0, help="seed of the crops and the defects (default: 0)")
    arguments = parser.parse_args()
    try:
        root = make_sample_dataset(arguments.root, seed=arguments.seed)
    except FileExistsError as error:
        sys.exit(f"error: {error}")
    print(f"{root} is ready. Train on it with")
    print(f"  anomalib train --model CCL --data MultiCategory --data.root {root}")


if __name__ == "__main__":
    main()
