"""The numbers that ``respipe evaluate`` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from respipe.cli.console import write_line, write_table

if TYPE_CHECKING:
    from respipe.cli.subject import Subject
    from respipe.evaluation import Activations, Evaluation


def evaluation_report(
    subject: Subject,
    runs: Mapping[str, Sequence[Evaluation]],
    activations: Sequence[Activations],
    **source: Any,
) -> dict[str, Any]:
    """Everything that ``respipe evaluate`` shows, ready for JSON and for :func:`respipe.plots.plot_evaluation`.

    Args:
        subject: what was evaluated.
        runs: results by how the model was adapted to the size.
        activations: of the model as trained, if measured.
        source: where model and data came from, and whether mirror images were shown too.
    """
    from respipe.cli.subject import suggestion_for

    suggestion = suggestion_for(subject)
    return {
        **source,
        "model": subject.name,
        "train_size": subject.train_size,
        "normalize": subject.normalize,
        "crop": repr(subject.crop),
        "interpolation": subject.interpolation,
        "precision": str(subject.autocast or "torch.float32").removeprefix("torch."),
        "num_samples": next(iter(runs.values()))[0].num_samples,
        "runs": [{"name": name, "results": [result.to_dict() for result in results]} for name, results in runs.items()],
        "activations": [one.to_dict() for one in activations],
        "suggestion": suggestion and {"size": suggestion.size, "reason": suggestion.reason},
    }


def show_evaluation(report: Mapping[str, Any]) -> None:
    """Write the report as tables."""
    flips = ", mean of the logits of image and mirror image" if report["flip"] else ""
    write_line(f"{report['model']} on {report['data']}", style="bold")
    write_line(
        f"{report['num_samples']:,} samples, {report['crop']}, {report['interpolation']}, {report['precision']}{flips}"
    )
    suggestion = report["suggestion"]
    notes = {report["train_size"]: "trained at"}
    if suggestion is not None:
        notes[suggestion["size"]] = "suggested"
    for run in report["runs"]:
        write_line()
        if len(report["runs"]) > 1:
            write_line(run["name"], style="bold")
        best = max(run["results"], key=lambda row: row["top1"])["size"]
        write_table(
            ("size", "top-1", "top-5", "loss", "GMACs", ""),
            [
                (
                    f"{row['size']} px",
                    f"{row['top1']:.2%}",
                    f"{row['top5']:.2%}",
                    f"{row['loss']:.3f}",
                    "?" if row["macs"] is None else f"{row['macs'] / 1e9:.4g}",
                    ", ".join(
                        note for note in (notes.get(row["size"]), "best" if row["size"] == best else None) if note
                    ),
                )
                for row in sorted(run["results"], key=lambda row: row["size"])
            ],
            left=("",),
        )
    if report["activations"]:
        write_line()
        write_table(
            ("size", "zeros after pooling", "mean", "std"),
            [
                (f"{row['size']} px", f"{row['zeros']:.2%}", f"{row['mean']:.4g}", f"{row['std']:.4g}")
                for row in sorted(report["activations"], key=lambda row: row["size"])
            ],
        )
    if suggestion is not None:
        write_line()
        write_line(suggestion["reason"])
