"""`python -m midefense.store ...`: the former name of `midefense store`, `midefense import` and `midefense export`."""

import sys

from midefense.commands.main import main

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(words if words[:1] in (["import"], ["export"]) else ["store", *words]))
