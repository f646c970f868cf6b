"""Write the numbers of docs/robustness.md and docs/robustness_further.md from the committed run folders.

python -m experiments.robustness_document
"""

from __future__ import annotations

from experiments.command import RESULTS
from experiments.robustness_study import document, further
from robustnn.report import update_block


def main() -> None:
    """Rewrite the blocks of both documents."""
    for page in (document, further):
        for name, content in page.blocks(RESULTS).items():
            update_block(page.DOCUMENT, name, content)


if __name__ == "__main__":
    main()
