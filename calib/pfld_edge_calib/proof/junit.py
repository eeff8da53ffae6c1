"""A verification as JUnit XML, which CI servers show beside the tests."""

from xml.etree import ElementTree as ET

from pfld_edge_calib.proof.result import ModelProof, Verdict, Verification

__all__ = ["junit_xml"]


def junit_xml(found: Verification, seconds: float = 0.0) -> bytes:
    """Write one test case a network that was judged.

    Fails are failures, and so is what could not be decided unless that was accepted; then, and where there was no
    budget, the case counts as skipped.

    Args:
        found: The verification.
        seconds: How long it took.
    """
    judged = [model for model in found.models if model.verdict is not Verdict.REFERENCE]
    outcomes = [_outcome(model, found) for model in judged]
    counts = {
        "tests": str(len(judged)),
        "failures": str(outcomes.count("failure")),
        "errors": "0",
        "skipped": str(outcomes.count("skipped")),
        "time": f"{seconds:.3f}",
    }
    root = ET.Element("testsuites", {"name": "pfld-edge", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": "pfld-edge verify", **counts})
    properties = ET.SubElement(suite, "properties")
    settings = found.settings
    described = {"data": settings.data, "split": settings.split, "faces": str(len(found.faces))}
    for name, value in described.items():
        ET.SubElement(properties, "property", {"name": name, "value": value})
    for model, outcome in zip(judged, outcomes, strict=True):
        _case(suite, model, outcome, found, seconds / max(len(judged), 1))
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _outcome(model: ModelProof, found: Verification) -> str:
    if model.verdict is Verdict.FAIL:
        return "failure"
    if model.verdict is Verdict.UNDECIDED:
        return "skipped" if found.settings.accept_undecided else "failure"
    return "passed" if model.verdict is Verdict.PASS else "skipped"


def _case(suite: ET.Element, model: ModelProof, outcome: str, found: Verification, seconds: float) -> None:
    budget = found.settings.max_drift
    name = f"{model.name}: drift" + ("" if budget is None else f" within {100 * budget:.3g}%")
    case = ET.SubElement(suite, "testcase", {"classname": "pfld-edge.verify", "name": name, "time": f"{seconds:.3f}"})
    causes = [suspicion.sentence for suspicion in model.suspicions]
    message = model.reason or "no budget was given (--max-drift)"
    if outcome == "failure":
        failure = ET.SubElement(case, "failure", {"message": message, "type": model.verdict.value})
        failure.text = "\n".join([message, *(f"likely cause: {cause}" for cause in causes)])
    elif outcome == "skipped":
        ET.SubElement(case, "skipped", {"message": message})
    figures = model.accuracy["all"]
    lines = [f"kind {model.kind}", f"sha256 {model.sha256}", f"NME {figures.nme:.5f}", *causes]
    ET.SubElement(case, "system-out").text = "\n".join(lines)
