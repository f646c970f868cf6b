"""How much of an image classifier's accuracy is certified, and how much survives an attack, for every kind of layer?

Convolutional networks of equal architecture with layers of several kinds are trained for the same bound from pixels to
scores (Wang & Manchester, ICML 2023, section 6.2). The certificate is proved from the float32 weights in float64; the
same images are attacked by projected gradients. The share that survives can only lie above the certified one.

    python -m experiments.classification --mnist     # 10,000 digits, one core: a minute per training
    python -m experiments.classification --lipkernel # the same with LipKernel layers
    python -m experiments.classification --cifar     # CIFAR-10 as JPEG, for a GPU
    python -m experiments.classification --cifar100  # the tables of the paper, for a GPU; so is --certified
    python -m experiments.classification --digits    # needs scikit-learn
    python -m experiments.classification --smoke     # seconds, for the test suite
    python -m experiments.classification --report experiments/results/classification_mnist

Data sets other than digits are read from the folder that ROBUSTNN_DATA names: CIFAR in its binary version,
Tiny-ImageNet as it is distributed. An interrupted training goes on from its last epoch with the same command.
Several GPUs share every training under torch's launcher:

    python -m torch.distributed.run --standalone --nproc-per-node 4 -m experiments.classification --cifar
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from experiments.classification_study import distributed, report
from experiments.classification_study.config import (
    CERTIFIED,
    CIFAR,
    CIFAR100,
    DIGITS,
    LIPKERNEL,
    MNIST,
    SMOKE,
    Config,
)
from experiments.classification_study.train import train_along, train_and_measure
from experiments.command import Size, run_experiment
from robustnn.runs import RunFolder
from robustnn.sweep import Task

SIZES = {
    "full": Size(MNIST, "classification_mnist", "10,000 digits of MNIST", committed=True),
    "mnist": Size(MNIST, "classification_mnist", "10,000 digits of MNIST (the default)", committed=True),
    "lipkernel": Size(
        LIPKERNEL, "classification_mnist_lipkernel", "the same with LipKernel layers", committed=True
    ),
    "cifar": Size(
        CIFAR, "classification_cifar", "CIFAR-10 as JPEG, small network, for a GPU", committed=True
    ),
    "cifar100": Size(
        CIFAR100, "classification_cifar100", "CIFAR-100, small network, for a GPU", committed=True
    ),
    "certified": Size(CERTIFIED, "classification_certified", "CIFAR-100, network of Table 3", committed=True),
    "digits": Size(DIGITS, "classification_digits", "1,797 digits of 8 x 8 pixels, needs scikit-learn"),
    "smoke": Size(SMOKE, "classification_smoke", "tiny run for the test suite"),
}


def stages(run: RunFolder, config: Config) -> Iterable[tuple[str, list[Task]]]:
    """One task per network and seed."""
    checkpoints = str(run.path / "checkpoints")
    tasks: list[Task] = [
        (report.cell_key(model, seed), train_and_measure, (config, model, seed, checkpoints))
        for seed in config.training_seeds
        for model in config.models
    ]
    yield "training and measuring", tasks


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line; several processes of torch's launcher share every training."""
    with distributed.process_group():
        if not distributed.together():
            run_experiment(__doc__, SIZES, stages, report.write, argv)
        elif distributed.is_first():
            given = sys.argv[1:] if argv is None else argv
            run_experiment(__doc__, SIZES, stages, report.write, [*given, "--workers", "0"])
            distributed.announce(None)
        else:
            distributed.follow(train_along)


if __name__ == "__main__":
    main()
