"""`python -m llmcourse`, the same as the command `llmcourse`."""

import sys

from llmcourse.cli import main

if __name__ == "__main__":
    sys.exit(main())
