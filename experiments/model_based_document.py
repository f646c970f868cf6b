"""Write the numbers of docs/model_based.md from the committed run folder.

python -m experiments.model_based_document
"""

from __future__ import annotations

from experiments.command import RESULTS
from experiments.model_based_study.document import DOCUMENT, blocks
from robustnn.report import update_block


def main() -> None:
    """Rewrite the blocks of the document."""
    for name, content in blocks(RESULTS).items():
        update_block(DOCUMENT, name, content)


if __name__ == "__main__":
    main()
