"""``python -m pfld_edge_runtime``: report versions, providers and processor of this device, and run the self-test."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pfld_edge_runtime.device_check import INT8_DOT_PRODUCTS, environment, self_test
from pfld_edge_runtime.errors import PfldEdgeError
from pfld_edge_runtime.landmark_model import BUNDLED_MODEL, FAST_MODEL
from pfld_edge_runtime.session import DEVICES

PASSED, DIFFERS, UNUSABLE = 0, 1, 2
_BUNDLED = [str(BUNDLED_MODEL), str(FAST_MODEL)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; 0: every model computes what its exporter computed, 1: one differs, 2: one can't be opened."""
    parser = argparse.ArgumentParser(
        prog="python -m pfld_edge_runtime",
        description="Report this device, and test that models compute here what their exporter computed.",
        epilog="Exit status: 0 all right, 1 a model differs, 2 a model, the device or the output can't be used.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="ONNX files (default: the bundled models)")
    parser.add_argument("--device", default="cpu", help=f"{', '.join(DEVICES)}, auto (default: cpu)")
    parser.add_argument("--strict", action="store_true", help="fail where the device can't run the model")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    report = environment()
    report["models"] = [_tested(name, options.device, options.strict) for name in options.models or _BUNDLED]
    try:
        print(json.dumps(report, indent=2) if options.json else _text(report), flush=True)  # noqa: T201 - the output
    except OSError as error:
        # What could not be written is still waiting, and would be tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"standard output: {error.strerror}", file=sys.stderr)  # noqa: T201
        return UNUSABLE
    return int(max(test["status"] for test in report["models"]))


def _tested(model: str, device: str, strict: bool) -> dict[str, Any]:
    """Exit status, sentence, warnings and figures of one model."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = self_test(model, device, strict=strict)
        except PfldEdgeError as error:
            return {"model": model, "status": UNUSABLE, "verdict": str(error), "warnings": []}
    result = asdict(found)
    if not np.isfinite(found.difference):
        result["difference"] = None  # JSON has no NaN
    status = PASSED if found.passed else DIFFERS
    said = [str(warning.message) for warning in caught]
    return {**result, "status": status, "verdict": found.verdict, "warnings": said}


def _text(report: dict[str, Any]) -> str:
    features = report["cpu_features"]
    if features is None:
        processor = "unknown on this system"
    else:
        has = "has" if INT8_DOT_PRODUCTS & set(features) else "has no"
        processor = f"{' '.join(features) or 'none known'} ({has} INT8 dot products)"
    lines = [
        f"pfld-edge-runtime {report['pfld-edge-runtime']}, Python {report['python']}, {report['system']}",
        f"numpy {report['numpy']}, onnxruntime {report['onnxruntime']}",
        f"wheels: {', '.join(f'{name} {number}' for name, number in report['wheels'].items()) or 'none found'}",
        f"providers: {', '.join(report['providers'])}",
        f"processor: {processor}",
    ]
    lines += [f"WARNING: {report['clash']}"] if report["clash"] else []
    for test in report["models"]:
        lines += [f"WARNING: {said}" for said in test["warnings"]]
        lines.append(f"{('ok', 'FAILED', 'ERROR')[test['status']]}: {test['verdict']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
