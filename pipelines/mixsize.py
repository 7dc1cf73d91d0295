"""MixSize beside a fixed size: ``python -m pipelines.mixsize --data cifar10/train --val cifar10/test --output DIR``.

Trains one network three times, for as many epochs and thus as many images: at the fixed size of 32 px, with MixSize B+
and with MixSize D+, which shows several crops of an image where it is small. Then compares accuracy at several sizes,
with the BatchNorm statistics that training left and with such as were calibrated at each size.

By default a small network and few epochs, half an hour or less on two CPU cores with ``.beton`` files, which
``respipe convert`` makes. With ``--full`` ResNet-44 and 200 epochs, as in Table 1 of the paper: see
``recipes/mixsize_cifar10_b.yaml``. The same command again goes on where it was stopped. What it leaves in ``--output``:

    fixed/  b/  d/                the runs: log.jsonl, checkpoint.pt, TensorBoard's files
    results.json  accuracy.png    the comparison as data, and its picture where matplotlib is installed
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines import comparison
from pipelines.comparison import Comparison

COMPARISON = Comparison(
    name="mixsize",
    description="Compare MixSize with a fixed size on CIFAR-10.",
    runs={
        "fixed": ("fixed 32 px", "mixsize_cifar10_d", ("schedule={name: Constant, size: 32}",)),
        "b": ("MixSize B+", "mixsize_cifar10_b", ()),
        "d": ("MixSize D+", "mixsize_cifar10_d", ()),
    },
    small=(
        "model={name: 'cifar:resnet14', options: {zero_init_residual: true}}",
        "epochs=6",
        "learning_rate.decay=cosine",
        "learning_rate.milestones=[]",
        "learning_rate.warmup_epochs=1",
        "evaluation.every=6",
    ),
    always=("evaluation.sizes=[40, 32, 24, 16]",),
    picture="accuracy",
    paper={"fixed": 0.9284, "b": 0.9430, "d": 0.9446},
)


def main(arguments: Sequence[str] | None = None) -> None:
    comparison.main(COMPARISON, arguments)


if __name__ == "__main__":
    main()
