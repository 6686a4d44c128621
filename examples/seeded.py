"""anomalib's command line with a seed, which its own option --seed_everything does not set.

    python examples/seeded.py 0 train --model CCL --data MultiCategory --data.root ./datasets/sample

The first word is the seed, the rest what follows "anomalib" in a shell.
"""

import sys

from anomalib.cli.cli import main
from lightning import seed_everything

if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        sys.exit(__doc__)
    seed_everything(int(sys.argv.pop(1)), workers=True)
    main()
