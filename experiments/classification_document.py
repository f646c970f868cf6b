"""Write the numbers of docs/classification.md from the committed run folders.

python -m experiments.classification_document
"""

from __future__ import annotations

from experiments.classification_study.document import DOCUMENT, blocks
from experiments.command import RESULTS
from robustnn.report import update_block


def main() -> None:
    """Rewrite the blocks of the document."""
    for name, content in blocks(RESULTS).items():
        update_block(DOCUMENT, name, content)


if __name__ == "__main__":
    main()
