"""Accuracies of other programs and papers in per cent, typed from where they were published."""

from __future__ import annotations

from robustnn.report import Table

_PAPER = "Wang & Manchester, ICML 2023"
_LIPKERNEL = "Pauli et al., arXiv 2410.22258"

MNIST = Table(
    ("MNIST, network 2C2F on 32 x 32, 20 epochs", "bound", "test", "certified 36", "72", "108", "source"),
    tuple(
        ("Sandwich", bound, *numbers, _LIPKERNEL)
        for bound, *numbers in (
            ("1", "97.3", "96.3", "95.2", "93.8"),
            ("2", "98.9", "98.2", "97.0", "95.4"),
            ("4", "99.3", "98.4", "96.9", "93.6"),
        )
    ),
)

CIFAR100 = Table(
    ("CIFAR-100, test / AutoAttack 36 / 72 / 108", "S", "M", "L", "source"),
    (
        ("AOL", "30.4/25.1/21.1/17.6", "31.1/25.9/21.7/18.2", "31.6/26.5/22.2/18.7", _PAPER),
        ("Orthogonal", "48.7/38.6/30.6/24.0", "51.1/41.4/33.0/26.4", "52.2/42.5/34.3/27.4", _PAPER),
        ("SLL", "52.9/41.9/32.9/25.5", "53.8/43.1/33.9/26.6", "54.8/44.0/34.9/27.6", _PAPER),
        ("Sandwich", "54.2/44.3/35.5/28.4", "56.5/47.1/38.6/31.5", "57.5/48.5/40.2/32.9", _PAPER),
    ),
)

CERTIFIED = Table(
    ("data set", "network", "test", "certified 36", "parameters", "source"),
    (
        ("CIFAR-100", "Sandwich", "46.3", "35.3", "26M", _PAPER),
        ("CIFAR-100", "SLL-XL", "46.5", "36.5", "236M", _PAPER),
        ("Tiny-ImageNet", "Sandwich", "33.4", "24.7", "", _PAPER),
        ("Tiny-ImageNet", "SLL-XL", "32.1", "23.0", "", _PAPER),
    ),
)

CIFAR10 = Table(
    ("CIFAR-10", "test", "certified 36", "72", "108"),
    (("LipNeXt", "85.0", "73.2", "58.8", "43.3"), ("BRONet", "81.6", "70.6", "57.2", "42.5")),
)

# Key of a data set: what is shown beside our numbers.
BESIDE: dict[str, tuple[Table, ...]] = {
    "mnist10k": (MNIST,),
    "cifar10": (CIFAR10,),
    "cifar10_jpeg": (CIFAR10,),
    "cifar100": (CIFAR100, CERTIFIED),
    "tiny_imagenet": (CERTIFIED,),
}
