"""TRD beside a fixed size: ``python -m pipelines.trd --data cifar10/train --val cifar10/test --output DIR``.

Trains one network three times on CIFAR-10, for as many epochs and thus as many images: at 32 px in every epoch, and
with 30 % and with half of the epochs at 16 px. Then compares accuracy and time.

By default a small network and few epochs, about ten minutes on two idle CPU cores with ``.beton`` files, which
``respipe convert`` makes. With ``--full`` the ResNet-56 and the 164 epochs of ``recipes/trd_cifar10.yaml``. The same
command again goes on where it was stopped. What it leaves in ``--output``:

    fixed/  p30/  p50/        the runs: log.jsonl, checkpoint.pt, TensorBoard's files
    results.json  runs.png    the comparison as data, and its picture where matplotlib is installed
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines import comparison
from pipelines.comparison import Comparison

COMPARISON = Comparison(
    name="trd",
    description="Compare TRD with a fixed size on CIFAR-10.",
    runs={
        "fixed": ("fixed 32 px", "trd_cifar10", ("schedule={name: Constant, size: 32}",)),
        "p30": ("TRD, P = 0.3", "trd_cifar10", ("schedule.participation=0.3",)),
        "p50": ("TRD, P = 0.5", "trd_cifar10", ("schedule.participation=0.5",)),
    },
    small=(
        "model={name: 'cifar:resnet14', options: {stem_stride: 2, zero_init_residual: true}}",
        "epochs=10",
        "learning_rate={peak: 0.1, decay: cosine, warmup_epochs: 1}",
        "schedule={name: TRD, full_size: 32, reduced_size: 16}",
        "evaluation.every=1",
    ),
    always=("evaluation.calibration_batches=50",),
    picture="runs",
    paper={"fixed": 0.9384, "p30": 0.9476, "p50": 0.9437},
)


def main(arguments: Sequence[str] | None = None) -> None:
    comparison.main(COMPARISON, arguments)


if __name__ == "__main__":
    main()
