"""Finds out how a landmark network of unknown origin must be fed and read, on faces whose landmarks are known.

Candidates are narrowed in three steps: every colour order, normalization and reading on a few easy crops; every margin
with the best of them; then the remaining colour orders and normalizations on crops of strongly varied brightness,
contrast and saturation, since an easy photograph hides a wrong one. Candidates that have lost see no further crops
(successive elimination), and a network that finds no face in easy crops sees no hard ones. A value is sure only where
it wins on every face (on two portraits) or over the faces (on a data set) by several standard errors and by an effect
worth having, and the equivariance error doesn't contradict it.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby, product
from operator import attrgetter
from pathlib import Path

import numpy as np

from pfld_edge_calib import Face, FaceSetError, portraits
from pfld_edge_calib.face import Skip, refuse, skipping
from pfld_edge_convert.contract_trial import (
    SCHEMES,
    Crops,
    Hypothesis,
    Network,
    Score,
    Subject,
    anchor_points,
    cut_crops,
    locate_points,
    mean_and_scale,
    readings,
    score,
)
from pfld_edge_convert.errors import ConvertError
from pfld_edge_convert.landmark_graph import POINT_BY_POINT
from pfld_edge_runtime import Contract, CropRule, LandmarkScheme
from pfld_edge_runtime.arrays import Float64Array
from pfld_edge_runtime.contract import KNOWN_SCHEMES

_MARGINS = (1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
_BOXES = ("landmarks-tight", "detector")
_READING = attrgetter("output", "order", "space")
_HOPELESS = 1.1
"""Logarithm of the ratio of two errors, here 3, at which a candidate is dropped after the first step."""
_FINDS_NOTHING = 1.1
"""Ratio of the error on easy crops to the largest of a network that finds landmarks, at which the search ends."""

_MOST_FACES, _FEW_FACES = 24, 8
_NAMED_ERROR, _UNNAMED_ERROR = 0.10, 0.08
"""Largest error, over the distance of the outer eye corners, of a network that finds landmarks at all."""
_LEAST_EFFECT, _LEAST_MARGIN_EFFECT = 0.05, 0.15
"""Logarithm of the ratio of two errors under which they count as equal; networks tolerate other margins well."""
_DEVIATIONS, _DEVIATIONS_FEW = 3.5, 4.5
"""Standard errors by which a hypothesis must win; more over the crops of few faces, which are alike."""
_SAME_ORDER = 0.9
"""Least share of the points that lie nearest to the known point of the same index, and of mirrored pairs."""


@dataclass(frozen=True, slots=True)
class RankedHypothesis:
    """A hypothesis with its mean error and equivariance error over the crops, fractions of the eye distance."""

    hypothesis: Hypothesis
    nme: float
    spread: float


@dataclass(frozen=True, slots=True)
class Finding:
    """The best value of one field of a hypothesis, sure where every other is significantly worse, else its rivals."""

    field: str
    value: str
    sure: bool
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContractSearch:
    """Result of `search_contract`: a finding a field, and the colour orders and normalizations by rank on hard crops.

    `output` names the one with the landmarks. Where the best hypothesis isn't `plausible`, since it finds no face's
    landmarks, nothing is sure. The contract is None then, and where it has no words for the best values.
    """

    findings: tuple[Finding, ...]
    ranking: tuple[RankedHypothesis, ...]
    num_landmarks: int
    output: str
    plausible: bool
    contract: Contract | None

    @property
    def sure(self) -> bool:
        """Whether every field is sure."""
        return all(finding.sure for finding in self.findings)


_Scores = dict[Hypothesis, Score]


def search_contract(
    path: Path, faces: Sequence[Face] | None = None, input_size: int | None = None, skip: Skip = refuse
) -> ContractSearch:
    """Find the contract of an ONNX file with one image as its input and landmarks among its outputs.

    At most 24 of the faces, whose landmarks are known, are used; the two bundled portraits where None. A network of
    free size needs an input size, pixels. `skip` takes the error of each face that can't be read.

    Raises:
        ConvertError: The network has another input, doesn't run, or no output that could be landmarks.
        FaceSetError: The faces' landmarks can't be compared with the network's.
        ModelFileError: The file is missing or no ONNX model.
    """
    network = Network(path, input_size)
    chosen = portraits() if faces is None else faces[:: -(-len(faces) // _MOST_FACES)]
    subjects = _subjects([face for start in range(3) for face in chosen[start::3]], skip)
    first = _first_step(network, subjects[:_FEW_FACES])
    placed, margins = _margin_step(network, subjects, _best(first))
    if _finds_nothing(placed, margins):
        final = {trial: item for trial, item in first.items() if _READING(trial) == _READING(placed)}
        plausible, order_sure = False, False
    else:
        final = _hard_step(network, subjects, placed, first)
        plausible, order_sure = _plausible(subjects, _best(final), final[_best(final)])
    best = _best(final)
    findings = [
        _finding(name, getattr(best, name), final if name in ("color_order", "normalization") else first)
        for name in ("layout", "color_order", "normalization", "output", "order", "space")
    ]
    findings.append(Finding("scheme", best.scheme, order_sure))
    boxed = {trial: item for trial, item in margins.items() if trial.box == placed.box}
    findings.append(_finding("box", placed.box, margins, _LEAST_MARGIN_EFFECT))
    findings.append(_finding("margin", placed.margin, boxed, _LEAST_MARGIN_EFFECT))
    named = [_with_names(item, network.names) if item.field == "output" else item for item in findings]
    return ContractSearch(
        tuple(item if plausible else replace(item, sure=False) for item in named),
        _ranking(final, best),
        len(final[best].mirror),
        network.names[best.output],
        plausible,
        _contract(network, subjects, best, final[best]) if plausible else None,
    )


def _subjects(faces: Sequence[Face], skip: Skip) -> list[Subject]:
    subjects = []
    for face in faces:
        with skipping(skip):
            subjects.append(Subject.of(face))
    if not subjects:
        raise FaceSetError(f"none of the {len(faces)} faces that --find chose can be used")
    return subjects


def _first_step(network: Network, subjects: Sequence[Subject]) -> _Scores:
    """Try every colour order, normalization and reading on easy crops; a named scheme only where it fits."""
    known = set.intersection(*(set(subject.known) for subject in subjects))
    count = max(2, 2 * round(4 / len(subjects)))
    crops = cut_crops(subjects, network.size, 1.2, "landmarks-tight", count, 0, 0)
    read = list(readings(network, crops.images[0, :1], known))
    if not read:
        expected = "a face's" if known & SCHEMES.keys() else " or ".join(map(str, sorted(known)))
        raise ConvertError(f"{network.path.name}: none of its outputs has the shape of {expected} landmarks")
    fed = product(network.layouts, ("bgr", "rgb"), network.normalizations)
    trials = [
        replace(reading, layout=layout, color_order=color, normalization=normalization)
        for layout, color, normalization in fed
        for reading in read
    ]
    found = _located(network, crops, [replace(trial, scheme="") for trial in trials])
    named, unnamed = ([item for item in trials if (item.scheme == "unknown") == flag] for flag in (False, True))
    for group in (named, unnamed):
        scores = {trial: score(subjects, found[replace(trial, scheme="")], trial) for trial in group}
        if scores and (group is unnamed or not unnamed or scores[_best(scores)].error.mean() <= _NAMED_ERROR):
            break
    return scores


def _margin_step(network: Network, subjects: Sequence[Subject], best: Hypothesis) -> tuple[Hypothesis, _Scores]:
    """Try every margin and box on easy crops: the hypothesis of the right one, and all scores."""
    trials = [replace(best, box=box, margin=margin) for box, margin in product(_BOXES, _MARGINS)]
    scores: _Scores = {}
    count = max(2, 2 * round(8 / len(subjects)))
    for some in (subjects[: -(-len(subjects) // 3)], subjects):
        for trial in trials:
            crops = cut_crops(some, network.size, trial.margin, trial.box, count, 1, 0)
            scores[trial] = score(some, _located(network, crops, [trial])[trial], trial)
        best = _best(scores)
        if _finds_nothing(best, scores):
            break
        if len(some) >= _FEW_FACES:
            gap = 2 * _LEAST_MARGIN_EFFECT
            trials = [trial for trial in trials if not _beats(scores[best], scores[trial], _LEAST_MARGIN_EFFECT, gap)]
    return _middle(scores), scores


def _finds_nothing(trial: Hypothesis, scores: _Scores) -> bool:
    return float(np.median(scores[trial].error)) > _FINDS_NOTHING * _largest_error(trial)


def _largest_error(trial: Hypothesis) -> float:
    return _UNNAMED_ERROR if trial.scheme == "unknown" else _NAMED_ERROR


def _located(network: Network, crops: Crops, trials: Sequence[Hypothesis]) -> dict[Hypothesis, Float64Array]:
    """Find the points of hypotheses; neighbours that feed the network alike share one run."""
    wanted = sorted({trial.output for trial in trials})
    found: dict[Hypothesis, Float64Array] = {}
    for fed, group in groupby(trials, lambda trial: replace(trial, output=0, order="", space="", scheme="")):
        outputs = network.run(crops.images, fed, wanted)
        found |= {trial: locate_points(crops, outputs[trial.output], trial) for trial in group}
    return found


def _middle(margins: _Scores) -> Hypothesis:
    """Choose the middle of the margins that can't be told from the best: the errors are flat near the right one.

    The landmarks' tight box, which a contract can name, is taken unless the detector's is better.
    """
    best = _best(margins)
    tight = _best({trial: item for trial, item in margins.items() if trial.box == _BOXES[0]})
    if not _beats(margins[best], margins[tight], _LEAST_MARGIN_EFFECT):
        best = tight
    same = [trial for trial in margins if trial.box == best.box]
    near = [trial.margin for trial in same if not _beats(margins[best], margins[trial], _LEAST_MARGIN_EFFECT)]
    middle = np.sqrt(min(near) * max(near))
    return min(same, key=lambda trial: abs(np.log(trial.margin / middle)))


def _hard_step(network: Network, subjects: Sequence[Subject], placed: Hypothesis, first: _Scores) -> _Scores:
    """Try colour orders and normalizations on hard crops, until one has won, none can, or the rounds are over."""
    read = {trial: item for trial, item in first.items() if _READING(trial) == _READING(placed)}
    hopeful = [trial for trial in read if _gains(read[_best(read)], read[trial])[0].mean() < _HOPELESS]
    trials = [replace(trial, box=placed.box, margin=placed.margin) for trial in hopeful]
    count, found, scores = 2 * max(2, 2 * round(8 / len(subjects))), dict[Hypothesis, Float64Array](), _Scores()
    for turn in range(8 if len(subjects) < _FEW_FACES else 4):
        crops = cut_crops(subjects, network.size, placed.margin, placed.box, count, 2 + turn, (0.7, 1.3)[turn % 2])
        for trial, points in _located(network, crops, trials).items():
            found[trial] = np.concatenate([found[trial], points], axis=1) if turn else points
            scores[trial] = score(subjects, found[trial], trial)
        best = scores[_best(scores)]
        # Few crops, or one kind of crop alone, decide only what is clear.
        gap = _LEAST_EFFECT if turn else 6 * _LEAST_EFFECT
        trials = [trial for trial in trials if not _beats(best, scores[trial], _LEAST_EFFECT, gap)]
        if turn > 1 and all(scores[trial] is best or _never_beats(best, scores[trial]) for trial in trials):
            break
    return scores


def _best(scores: _Scores) -> Hypothesis:
    return min(scores, key=lambda trial: float(np.log(scores[trial].error + 1e-6).mean()))


def _gains(best: Score, other: Score) -> tuple[Float64Array, Float64Array]:
    """Logarithms of the ratios of errors and of equivariance errors, over the crops that both have seen."""
    faces, count = np.minimum(best.error.shape, other.error.shape)
    pairs = ((best.error, other.error), (best.spread, other.spread))
    errors, spreads = (
        np.log(theirs[:faces, :count] + 1e-6) - np.log(own[:faces, :count] + 1e-6) for own, theirs in pairs
    )
    return errors, spreads


def _beats(best: Score, other: Score, least: float, gap: float = 0.0) -> bool:
    """Whether a hypothesis is significantly better than another.

    Known landmarks of another origin than the network's have a bias that grows as the crop shrinks, so another margin
    must be less equivariant as well.
    """
    gains, steadier = _gains(best, other)
    faces = gains.mean(axis=1)
    few = len(faces) < _FEW_FACES
    units, deviations = (gains.ravel(), _DEVIATIONS_FEW) if few else (faces, _DEVIATIONS)
    certain = units.mean() > deviations * units.std(ddof=1) / np.sqrt(len(units))
    agreed = not few or faces.min() > least / 2
    steady = steadier.mean() > (least / 2 if least == _LEAST_MARGIN_EFFECT else -least)
    return bool(certain and agreed and faces.mean() > max(least, gap) and steady)


def _never_beats(best: Score, other: Score) -> bool:
    """Whether more crops will hardly make a hypothesis significantly better: two standard errors more don't."""
    gains = _gains(best, other)[0]
    faces = gains.mean(axis=1)
    units = gains.ravel() if len(faces) < _FEW_FACES else faces
    reach = units.mean() + 2 * units.std(ddof=1) / np.sqrt(len(units))
    worst = faces + 2 * gains.std(axis=1, ddof=1) / np.sqrt(gains.shape[1])
    return bool(reach < _LEAST_EFFECT or (len(faces) < _FEW_FACES and worst.min() < _LEAST_EFFECT / 2))


def _ranking(scores: _Scores, best: Hypothesis) -> tuple[RankedHypothesis, ...]:
    """Order hypotheses by their errors on the crops that all have seen."""
    count = min(item.error.shape[1] for item in scores.values())
    ranked = [
        RankedHypothesis(trial, float(item.error[:, :count].mean()), float(item.spread[:, :count].mean()))
        for trial, item in scores.items()
    ]
    return tuple(sorted(ranked, key=lambda item: (item.hypothesis != best, item.nme)))


def _finding(field: str, value: object, scores: _Scores, least: float = _LEAST_EFFECT) -> Finding:
    """Compare the best hypothesis with every one of another value of a field."""
    best, values = scores[_best(scores)], attrgetter(field)
    rivals = dict.fromkeys(
        str(values(trial)) for trial, item in scores.items() if values(trial) != value and not _beats(best, item, least)
    )
    return Finding(field, str(value), not rivals, tuple(rivals))


def _with_names(finding: Finding, names: Sequence[str]) -> Finding:
    """Name outputs that are told by their index."""
    rivals = tuple(names[int(rival)] for rival in finding.rivals)
    return replace(finding, value=names[int(finding.value)], rivals=rivals)


def _plausible(subjects: Sequence[Subject], best: Hypothesis, found: Score) -> tuple[bool, bool]:
    """Whether the network finds landmarks at all, and whether the order of its points is sure."""
    from scipy.optimize import linear_sum_assignment

    count = len(found.mirror)
    if best.scheme == "unknown":
        pairs = float((found.mirror[found.mirror] == np.arange(count)).mean())
        return float(np.median(found.error)) <= _largest_error(best) and pairs >= _SAME_ORDER, False
    truth = np.stack([subject.known[count][0] for subject in subjects])
    labelled = np.stack([subject.known[count][1] for subject in subjects]).min(axis=0) > 0
    distances = np.linalg.norm(found.medians[:, :, None] - truth[:, None], axis=3).mean(axis=0)[labelled][:, labelled]
    same = float((linear_sum_assignment(distances)[1] == np.arange(len(distances))).mean())
    return float(np.median(found.error)) <= _largest_error(best), same >= _SAME_ORDER


def _contract(network: Network, subjects: Sequence[Subject], best: Hypothesis, found: Score) -> Contract | None:
    """Put the best hypothesis in the contract's words; None where it has none."""
    if (best.order, best.space, best.box) != (POINT_BY_POINT, "0..1", "landmarks-tight"):
        return None
    mean, scale = mean_and_scale(best.normalization, best.color_order)
    return Contract(
        model="pfld",
        input_size=network.size,
        color_order=best.color_order,
        mean=mean,
        scale=scale,
        layout=best.layout,
        input_dtype="uint8" if best.normalization == "uint8" else "float32",
        crop=CropRule(margin=best.margin),
        landmarks=KNOWN_SCHEMES.get(best.scheme) or _scheme(subjects, found),
    )


def _scheme(subjects: Sequence[Subject], found: Score) -> LandmarkScheme:
    """Name points of unknown order by their index, with the mirror image found and the outer corners of the eyes."""
    count = len(found.mirror)
    paired = found.mirror[found.mirror] == np.arange(count)
    mirror, eyes = np.where(paired, found.mirror, np.arange(count)), (0, 1)
    with suppress(FaceSetError):
        corners = anchor_points(subjects)[:, [0, 3]]
        distances = np.linalg.norm(found.medians[:, :, None] - corners[:, None], axis=3)
        first, second = (distances / np.array([s.unit for s in subjects])[:, None, None]).mean(axis=0).argmin(axis=0)
        eyes = (int(first), int(second))
    names = tuple(f"point_{index}" for index in range(count))
    return LandmarkScheme(f"unnamed-{count}", names, tuple(mirror.tolist()), eyes)
