"""`python -m robustnn.cli`, where the command is not installed."""

from __future__ import annotations

import sys

from robustnn.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
