"""Tables of accuracy and drift."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from pfld_edge_calib import Accuracy, Face
from pfld_edge_calib.drift import Drift

__all__ = ["accuracy_table", "drift_table"]


def accuracy_table(results: Mapping[str, Mapping[str, Accuracy]]) -> Table:
    """Lay out each model's figures, a line a subset."""
    table = Table(title="Accuracy (NME by outer eye corners)")
    table.add_column("model")
    table.add_column("subset")
    for name in ("faces", "NME", "FR@0.1", "AUC@0.1"):
        table.add_column(name, justify="right")
    for model, by_subset in results.items():
        for subset, found in by_subset.items():
            figures = (f"{found.faces}", f"{found.nme:.5f}", f"{found.failure_rate:.4f}", f"{found.auc:.4f}")
            table.add_row(Path(model).name if subset == "all" else "", subset, *figures)
        table.add_section()
    return table


def drift_table(
    names: Sequence[str], nmes: Sequence[float], drifts: Sequence[Drift], faces: Sequence[Face], max_drift: float | None
) -> Table:
    """Lay out what each conversion cost; the first model is the reference."""
    table = Table(title=f"Drift on {len(faces)} faces (deviations as fractions of the eye distance)")
    table.add_column("model")
    for name in ("NME", "drift", "mean deviation", "largest", "at landmark"):
        table.add_column(name, justify="right")
    table.add_column("on face")
    if max_drift is not None:
        table.add_column(f"drift <= {max_drift:.2%}")
    for index, (name, nme, drift) in enumerate(zip(names, nmes, drifts, strict=True)):
        if index == 0:
            table.add_row(name, f"{nme:.5f}", "reference")
            continue
        where = faces[drift.largest_face].image.name
        verdict = [] if max_drift is None else ["yes" if drift.nme <= max_drift else "NO"]
        deviations = (f"{drift.mean_deviation:.5f}", f"{drift.largest_deviation:.5f}", str(drift.largest_landmark))
        table.add_row(name, f"{nme:.5f}", f"{drift.nme:+.2%}", *deviations, where, *verdict)
    return table
