"""`python -m midefense.datasets list | check NAME --root DIR [KEY=VALUE ...] [--decode]`"""

import sys

from midefense.datasets.check import run

if __name__ == "__main__":
    sys.exit(run())
