"""`python -m midefense COMMAND ...`"""

import sys

from midefense.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
