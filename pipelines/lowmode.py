"""Low mode beside training as usual: ``python -m pipelines.lowmode --data TRAIN --val VAL --output DIR``.

Trains one network twice on CIFAR-10, for as many epochs and thus as many images: at 32 px in every step, and with half
of the steps, drawn at random, in low mode: 16 px images, 3 x 3 kernels pooled to 1 x 1. Then compares accuracy and
time. A full and a low step are comparable on a busy machine too, because they take turns in one run.

By default a small network and few epochs, about five minutes on two idle CPU cores with ``.beton`` files, which
``respipe convert`` makes. With ``--full`` the ResNet-18 and the 200 epochs of
``recipes/lowmode_cifar10_resnet18.yaml``. The same command again goes on where it was stopped. What it leaves in
``--output``:

    full/  low/               the runs: log.jsonl, checkpoint.pt, TensorBoard's files
    results.json  runs.png    the comparison as data, and its picture where matplotlib is installed
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines import comparison
from pipelines.comparison import Comparison

COMPARISON = Comparison(
    name="lowmode",
    description="Compare low mode with training as usual on CIFAR-10.",
    runs={
        "full": ("full mode", "lowmode_cifar10_resnet18", ("schedule={name: Constant, size: 32}",)),
        "low": ("low mode", "lowmode_cifar10_resnet18", ()),
    },
    small=(
        "model={name: 'cifar:resnet14', options: {stem_stride: 2, zero_init_residual: true}}",
        "epochs=6",
        "learning_rate={peak: 0.1, decay: cosine, warmup_epochs: 1}",
        "schedule={name: LowMode, full_size: 32}",
        "evaluation.every=1",
    ),
    always=("evaluation.calibration_batches=50",),
    picture="runs",
    paper={"full": 0.933, "low": 0.931},
)


def main(arguments: Sequence[str] | None = None) -> None:
    comparison.main(COMPARISON, arguments)


if __name__ == "__main__":
    main()
