"""Finds out how a landmark network of unknown origin must be fed and read, on faces whose landmarks are known.

Candidates are narrowed in three steps: every colour order, normalization and reading on easy crops; every margin with
the best of them; then the remaining colour orders and normalizations on crops of strongly varied brightness, contrast
and saturation, since an easy photograph hides a wrong one. A value is sure only where it wins on every face (on two
portraits) or over the faces (on a data set) by several standard errors and by an effect worth having, and the
equivariance error doesn't contradict it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby, product
from operator import attrgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_calib import Face, FaceSetError, portraits
from pfld_edge_calib.face import Skip, skipping
from pfld_edge_convert.contract_trial import (
    SCHEMES,
    Crops,
    Hypothesis,
    Network,
    Score,
    Subject,
    anchor_points,
    cut_crops,
    mean_and_scale,
    readings,
    score,
)
from pfld_edge_convert.errors import ConvertError
from pfld_edge_runtime import Contract, CropRule, LandmarkScheme

_TWIN = "127.5/128"
"""A normalization that differs from ``-1..1`` by 0.4 %, which no measurement resolves: ranked, but never the answer."""
_MARGINS = (1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
_BOXES = ("landmarks-tight", "detector")
_READING = ("output", "order", "space")
_HOPELESS = 1.1
"""Logarithm of the ratio of two errors, here 3, at which a candidate is dropped after the first step."""

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
    path: Path, faces: Sequence[Face] | None = None, input_size: int | None = None, skip: Skip | None = None
) -> ContractSearch:
    """Find the contract of an ONNX file with one image as its input and landmarks among its outputs.

    At most 24 of the faces, whose landmarks are known, are used; the two bundled portraits where None. A network of
    free size needs an input size, pixels. `skip` takes the error of each face that can't be read, which is raised where
    None.

    Raises:
        ConvertError: The network has another input, doesn't run, or no output that could be landmarks.
        FaceSetError: The faces' landmarks can't be compared with the network's.
        ModelFileError: The file is missing or no ONNX model.
    """
    network = Network(path, input_size)
    chosen = portraits() if faces is None else faces[:: -(-len(faces) // _MOST_FACES)]
    subjects = _subjects(chosen, skip)
    count = max(2, 2 * round(8 / len(subjects)))
    first = _first_step(network, subjects, count)
    best = _best(first)
    margins = _margin_step(network, subjects, best, count)
    placed = _middle(margins)
    final = _hard_step(network, subjects, placed, first, count)
    decisive = _deciding(final)
    best = _best(decisive)
    plausible, order_sure = _plausible(subjects, best, final[best])
    findings = [
        _finding(name, getattr(best, name), decisive if name in ("color_order", "normalization") else first)
        for name in ("layout", "color_order", "normalization", *_READING)
    ]
    findings.append(Finding("scheme", best.scheme, order_sure))
    boxed = {trial: item for trial, item in margins.items() if trial.box == placed.box}
    findings.append(_finding("box", placed.box, margins, _LEAST_MARGIN_EFFECT))
    findings.append(_finding("margin", placed.margin, boxed, _LEAST_MARGIN_EFFECT))
    named = [
        replace(item, value=network.names[int(item.value)]) if item.field == "output" else item for item in findings
    ]
    return ContractSearch(
        tuple(item if plausible else replace(item, sure=False) for item in named),
        _ranking(final, best),
        len(final[best].mirror),
        network.names[best.output],
        plausible,
        _contract(network, subjects, best, final[best]) if plausible else None,
    )


def _subjects(faces: Sequence[Face], skip: Skip | None) -> list[Subject]:
    subjects = []
    for face in faces:
        with skipping(skip):
            subjects.append(Subject.of(face))
    if not subjects:
        raise FaceSetError(f"none of the {len(faces)} faces that --find chose can be used")
    return subjects


def _first_step(network: Network, subjects: Sequence[Subject], count: int) -> _Scores:
    """Try every colour order, normalization and reading on easy crops; a named scheme only where it fits."""
    known = set.intersection(*(set(subject.known) for subject in subjects))
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
    named = {trial: crops for trial in trials if trial.scheme != "unknown"}
    if named:
        scores = _scored(network, subjects, named)
        if len(named) == len(trials) or scores[_best(scores)].error.mean() <= _NAMED_ERROR:
            return scores
    unnamed = {trial: crops for trial in trials if trial.scheme == "unknown"}
    return _scored(network, subjects, unnamed)


def _margin_step(network: Network, subjects: Sequence[Subject], best: Hypothesis, count: int) -> _Scores:
    """Try every margin and box on easy crops."""
    trials = {
        replace(best, box=box, margin=margin): cut_crops(subjects, network.size, margin, box, count, 1, 0)
        for box, margin in product(_BOXES, _MARGINS)
    }
    return _scored(network, subjects, trials)


def _scored(network: Network, subjects: Sequence[Subject], crops: Mapping[Hypothesis, Crops]) -> _Scores:
    """Score hypotheses; neighbours that feed the network alike share one run."""
    wanted = sorted({trial.output for trial in crops})
    scores: _Scores = {}
    for fed, group in groupby(crops, lambda trial: replace(trial, output=0, order="", space="", scheme="")):
        trials = list(group)
        outputs = network.run(crops[trials[0]].images, fed, wanted)
        for trial in trials:
            scores[trial] = score(subjects, crops[trial], outputs[trial.output], trial)
    return scores


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


def _hard_step(
    network: Network, subjects: Sequence[Subject], placed: Hypothesis, first: _Scores, count: int
) -> _Scores:
    """Try colour orders and normalizations on hard crops, until one has won or the rounds are over."""
    reading = attrgetter(*_READING)
    read = [trial for trial in first if reading(trial) == reading(placed)]
    best = first[_best({trial: first[trial] for trial in read})]
    hopeful = [trial for trial in read if _gains(best, first[trial])[0].mean() < _HOPELESS]
    trials = [replace(trial, box=placed.box, margin=placed.margin) for trial in hopeful]
    scores: _Scores = {}
    for turn in range(8 if len(subjects) < _FEW_FACES else 4):
        crops = cut_crops(subjects, network.size, placed.margin, placed.box, 2 * count, 2 + turn, (0.7, 1.3)[turn % 2])
        for trial in trials:
            output = network.run(crops.images, trial, [trial.output])[trial.output]
            found = score(subjects, crops, output, trial)
            scores[trial] = scores[trial].joined(found) if trial in scores else found
        decisive = _deciding(scores)
        best, gap = scores[_best(decisive)], _LEAST_EFFECT if turn else 2 * _LEAST_EFFECT
        # A few faces, or one kind of crop alone, decide only what is clear.
        if turn or len(subjects) >= _FEW_FACES:
            left = [trial for trial in decisive if not _beats(best, scores[trial], _LEAST_EFFECT, gap)]
            trials = [trial for trial in trials if trial in left]
        if len(trials) <= 1:
            break
    return scores


def _deciding(scores: _Scores) -> _Scores:
    return {trial: item for trial, item in scores.items() if trial.normalization != _TWIN}


def _best(scores: _Scores) -> Hypothesis:
    return min(scores, key=lambda trial: float(np.log(scores[trial].error + 1e-6).mean()))


def _gains(best: Score, other: Score) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of the ratios of errors and of equivariance errors, over the crops that both have seen."""
    count = min(best.error.shape[1], other.error.shape[1])
    pairs = ((best.error, other.error), (best.spread, other.spread))
    errors, spreads = (np.log(item[:, :count] + 1e-6) - np.log(mine[:, :count] + 1e-6) for mine, item in pairs)
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


def _plausible(subjects: Sequence[Subject], best: Hypothesis, found: Score) -> tuple[bool, bool]:
    """Whether the network finds landmarks at all, and whether the order of its points is sure."""
    from scipy.optimize import linear_sum_assignment

    count = len(found.mirror)
    if best.scheme == "unknown":
        pairs = float((found.mirror[found.mirror] == np.arange(count)).mean())
        return float(np.median(found.error)) <= _UNNAMED_ERROR and pairs >= _SAME_ORDER, False
    truth = np.stack([subject.known[count][0] for subject in subjects])
    labelled = np.stack([subject.known[count][1] for subject in subjects]).min(axis=0) > 0
    distances = np.linalg.norm(found.medians[:, :, None] - truth[:, None], axis=3).mean(axis=0)[labelled][:, labelled]
    same = float((linear_sum_assignment(distances)[1] == np.arange(len(distances))).mean())
    return float(np.median(found.error)) <= _NAMED_ERROR, same >= _SAME_ORDER


def _contract(network: Network, subjects: Sequence[Subject], best: Hypothesis, found: Score) -> Contract | None:
    """Put the best hypothesis in the contract's words; None where it has none."""
    if (best.order, best.space, best.box) != ("x0 y0 x1 y1", "0..1", "landmarks-tight"):
        return None
    mean, scale = mean_and_scale(best.normalization, best.color_order)
    named = {scheme.name: scheme for scheme in SCHEMES.values()}
    return Contract(
        model="pfld",
        input_size=network.size,
        color_order=best.color_order,
        mean=mean,
        scale=scale,
        layout=best.layout,
        input_dtype="uint8" if best.normalization == "uint8" else "float32",
        crop=CropRule(margin=best.margin),
        landmarks=named.get(best.scheme) or _scheme(subjects, found),
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
