"""An RS-Net beside networks of one size: ``python -m pipelines.rsnet --data TRAIN --val VAL --output DIR``.

Trains one network four times on CIFAR-10, for as many epochs and thus as many images: at 32, at 24 and at 16 px alone,
and at all of them at once, with BatchNorm private to each. Then compares accuracy at these sizes, between them, where
the RS-Net's BatchNorms are interpolated, and beyond; with BatchNorm as training left it and with statistics that were
calibrated at each size.

By default a small network and few epochs, about seven minutes on two idle CPU cores with ``.beton`` files, which
``respipe convert`` makes. With ``--full`` the network, sizes and epochs of ``recipes/rsnet_cifar10.yaml``. The same
command again goes on where it was stopped. What it leaves in ``--output``:

    fixed/  fixed24/  fixed16/  rsnet/
                                  the runs: log.jsonl, checkpoint.pt, TensorBoard's files
    results.json  accuracy.png    the comparison as data, and its picture where matplotlib is installed
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines import comparison
from pipelines.comparison import Comparison

COMPARISON = Comparison(
    name="rsnet",
    description="Compare an RS-Net with networks of one size on CIFAR-10.",
    runs={
        "fixed": ("fixed 32 px", "rsnet_cifar10", ("schedule={name: Constant, size: 32}",)),
        "fixed24": ("fixed 24 px", "rsnet_cifar10", ("schedule={name: Constant, size: 24}",)),
        "fixed16": ("fixed 16 px", "rsnet_cifar10", ("schedule={name: Constant, size: 16}",)),
        "rsnet": ("RS-Net", "rsnet_cifar10", ()),
    },
    small=(
        "model={name: 'cifar:resnet14', options: {stem_stride: 2, zero_init_residual: true}}",
        "schedule={name: RSNet, sizes: [32, 24, 16]}",
        "epochs=6",
        "learning_rate.warmup_epochs=1",
        "evaluation.every=6",
        "evaluation.sizes=[40, 36, 32, 28, 24, 20, 16, 12]",
    ),
    always=("evaluation.calibration_batches=50",),
    picture="accuracy",
)


def main(arguments: Sequence[str] | None = None) -> None:
    comparison.main(COMPARISON, arguments)


if __name__ == "__main__":
    main()
