"""`FaceTracker`: detection in some frames, landmarks in all, ids that stay; with the frame clock and scene cuts."""

from collections.abc import Callable
from math import isfinite, nan, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.arrays import Float64Array
from pfld_edge_runtime.contract import WFLW_98, Contract, LandmarkScheme
from pfld_edge_runtime.crop import check_color, check_image
from pfld_edge_runtime.detection.catalogue import as_detector
from pfld_edge_runtime.detection.detector import Detections, Detector
from pfld_edge_runtime.errors import TimestampError, TrackerError, check_counts, is_number
from pfld_edge_runtime.faces import Faces
from pfld_edge_runtime.geometry.roll import Predict
from pfld_edge_runtime.landmark_model import LandmarkModel, as_landmarker, locate_points, takes_roll
from pfld_edge_runtime.tracking.smoothing import OneEuro, Smoothing
from pfld_edge_runtime.tracking.track_manager import TrackManager, correlation

Image = NDArray[np.generic]

_BLOCKS = 12
_BLOCK = 2
"""So many blocks each way, and so many samples each way in a block, are read of a frame, or of a face's box. Blocks
suppress texture and noise."""

_GRID = (np.arange(_BLOCKS * _BLOCK) + 0.5) / (_BLOCKS * _BLOCK)

_FULL = 4
_FULL_AND_CERTAIN = 16
"""How many times more seldom the detector runs where it can only confirm the faces that are known, and where the
network is certain of them all too, in the last frame."""

_FLAT = 3.0
"""Deviation in grey levels under which a frame (black, white, fog) is not compared."""

_CUT = 0.35
_POSSIBLE_CUT = 0.6
"""Correlations below which a frame is a cut, and may be one. Of neighbouring clips of 250 video faces (youtube68), 89 %
correlate by less than 0.6 and 75 % by less than 0.35. Of pans by 5 % of the width in one frame (57 WFLW photographs),
99 % correlate by more than 0.56; a flash or half the exposure leaves more than 0.85."""


Landmarker = Callable[..., NDArray[np.floating]]
"""What gives `FaceTracker` landmarks: a `FaceLandmarker`, or any callable with its signature, ``(N, P, 2)`` pixels for
boxes that are tight around landmarks. Crops are turned where the callable has the argument `roll`."""


class FaceTracker:
    """Follows the faces of one video.

    The landmarks of a frame give the box and the roll of the next one's crop, so that faces may turn to any side; the
    detector only runs to find new faces and to confirm those whose landmarks changed implausibly. Not thread-safe,
    since it has state: use one tracker for each video, and one call at a time. Trackers of several threads may share a
    landmarker.

    Example:
        >>> tracker = FaceTracker()
        >>> for frame, seconds in video:
        ...     faces = tracker(frame, seconds)
        ...     print(faces.ids, faces.landmarks.shape)  # (N,), (N, 98, 2)
    """

    def __init__(
        self,
        detector: Detector | str | Path | None = None,
        landmarker: Landmarker | LandmarkModel | str | Path | bytes | None = None,
        *,
        every: int = 15,
        search_every: int = 3,
        check_every: int = 5,
        max_faces: int | None = None,
        smoothing: Smoothing | OneEuro | None = Smoothing(),  # noqa: B008 - frozen
        memory: float = 1.0,
        fps: float = 30.0,
    ) -> None:
        """Make a tracker.

        Args:
            detector: Finds faces; as for `FaceAnalyzer`, None for the bundled one.
            landmarker: Finds their landmarks; as for `FaceAnalyzer`, or a callable with its signature.
            every: Frames from one run of the detector to the next while no face is lost, at least 1; four times as many
                while `max_faces` are followed, all of which the detector found when it last ran; 16 times as many where
                the mean confidence of each face's points was 0.75 or more in the last frame too.
            search_every: The same while no face is visible or one is lost, at least 1.
            check_every: Frames from one presence check of a face to the next (see `track_manager`), at least 1; where
                the face looks otherwise than when it was checked last, it costs one more prediction.
            max_faces: Most faces to track, at least 1; those of the highest scores, or the largest. None for all.
            smoothing: How landmarks are smoothed; a `OneEuro` is used for motion and shape; None for raw landmarks.
            memory: Seconds, 0 or more, for which a lost face keeps its id.
            fps: Frames a second where frames come without timestamps.

        Raises:
            TrackerError: A setting is out of range.
            DetectorError: The named detector isn't there.
            ModelFileError: A file can't be opened.
            ModelContractError: The landmarker is neither a model nor a callable.
        """
        check_counts(TrackerError, 1, every=every, search_every=search_every, check_every=check_every)
        check_counts(TrackerError, 1, optional=True, max_faces=max_faces)
        if not (is_number(fps) and isfinite(fps) and fps > 0):
            raise TrackerError(f"fps is {fps!r}; it must be finite and above 0")
        if not (is_number(memory) and memory >= 0):
            raise TrackerError(f"memory is {memory!r}; it must be 0 seconds or more")
        if not isinstance(smoothing, Smoothing | OneEuro | None):
            raise TrackerError(f"smoothing is {smoothing!r}; it must be a Smoothing, a OneEuro or None")
        self._detector = as_detector(detector)
        self._landmarker: Landmarker = as_landmarker(landmarker)
        contract = getattr(self._landmarker, "contract", None)
        self._contract = contract if isinstance(contract, Contract) else None
        self._scheme: LandmarkScheme = WFLW_98 if self._contract is None else self._contract.landmarks
        self._every, self._search_every, self._check_every = every, search_every, check_every
        # Boxes always come from smoothed landmarks, whatever the caller gets (see `Track`).
        self._smooth = smoothing is not None
        settings = Smoothing(smoothing, smoothing) if isinstance(smoothing, OneEuro) else smoothing or Smoothing()
        turned = self._scheme if takes_roll(self._landmarker) else None
        self._tracks = TrackManager(settings, memory, max_faces, turned)
        self._interval = 1 / fps
        self.reset()

    def reset(self) -> None:
        """Forget all faces and the time, as before another video. Ids continue: none is given twice."""
        self._tracks.clear()
        self._frames = 0
        self._now: float | None = None
        self._signature: Float64Array | None = None  # of the last frame that had contrast
        self._size: tuple[int, ...] = ()
        self._searched: int | None = None  # the frame in which the detector ran last; None: it must run

    def __call__(self, frame: Image, timestamp: float | None = None, color: str = "rgb") -> Faces:
        """Find the faces of the next frame.

        Args:
            frame: As for `FaceLandmarker`; not kept. A frame of another size than the last begins a new scene.
            timestamp: Seconds, more than the last frame's; intervals may vary. None for 1 / fps after the last.
            color: Channel order of `frame`: ``rgb`` or ``bgr``.

        Returns:
            The visible faces, oldest id first, with the boxes of their crops and the scores of their last detection.

        Raises:
            ImageError: The frame can't be used.
            TimestampError: The time is not after the last frame's; the tracker's state is unchanged.
            BoxError: The detector returned something other than boxes.
            TrackerError: The landmarker returned an array of a wrong shape.
        """
        image = check_image(frame)
        check_color(color)
        now = self._time(timestamp)
        likeness = self._likeness(image)
        if likeness < _CUT:
            self._tracks.clear()
            self._searched = None
        width, height = image.shape[1], image.shape[0]
        predict = self._predict(frame, color)
        index, possible_cut = self._frames, _CUT <= likeness < _POSSIBLE_CUT

        def look(box: Float64Array) -> Float64Array | None:
            x0, y0, x1, y1 = (max(0, int(edge)) for edge in box.tolist())
            return None if possible_cut else _signature(image[y0:y1, x0:x1])

        # The presence checks of several faces fall on different frames, to even out the cost.
        unconfirmed = self._tracks.update(
            predict,
            now,
            (width, height),
            lambda track: possible_cut or (index + track.id) % self._check_every == 0,
            look,
        )
        if unconfirmed or self._search_is_due():
            found = Detections.find(self._detector, frame, color)
            self._tracks.associate(found, self._contract, predict, now, (width, height), unconfirmed)
            self._searched = index
        self._tracks.drop_expired(now)
        self._frames += 1
        return self._faces((width, height))

    def _time(self, timestamp: float | None) -> float:
        """The frame's time in seconds; without a timestamp, one frame interval after the last."""
        last = self._now
        if timestamp is None:
            timestamp = 0.0 if last is None else last + self._interval
        try:
            now = float(timestamp)
        except (TypeError, ValueError):
            now = nan
        if not isfinite(now):
            found = type(timestamp).__name__ if isinstance(timestamp, np.ndarray) else repr(timestamp)
            raise TimestampError(f"timestamp is {found}; it must be a finite number of seconds, or None")
        if last is not None and now <= last:
            raise TimestampError(
                f"timestamp {now:g} s is not after the last frame's {last:g} s: call reset() before another video, or "
                "leave out frames that come twice"
            )
        self._now = now
        return now

    def _likeness(self, image: Image) -> float:
        """Correlation of a frame with the last one that had contrast: 1 where there is none, -1 for another size."""
        last, size = self._signature, self._size
        signature, self._size = _signature(image), image.shape[:2]
        resized = size not in ((), self._size)
        if signature is not None or resized:
            self._signature = signature
        if resized:
            return -1.0
        return 1.0 if signature is None or last is None else correlation(signature, last)

    def _search_is_due(self) -> bool:
        if self._searched is None:
            return True
        complete = self._tracks.visible and not self._tracks.lost
        interval = self._every if complete else self._search_every
        if complete and self._tracks.is_full:
            interval *= _FULL_AND_CERTAIN if self._tracks.is_certain else _FULL
        return self._frames - self._searched >= interval

    def _predict(self, frame: Image, color: str) -> Predict:
        def predict(boxes: Float64Array, rolls: Float64Array) -> Float64Array:
            if len(boxes) == 0:
                return np.zeros((0, self._scheme.num_landmarks, 3))
            return locate_points(self._landmarker, frame, boxes, color, rolls, self._scheme, TrackerError)

        return predict

    def _faces(self, image_size: tuple[int, int]) -> Faces:
        tracks, points = self._tracks.visible, self._scheme.num_landmarks
        landmarks = [(track.smoothed if self._smooth else track.found).landmarks for track in tracks]
        return Faces(
            landmarks=np.array(landmarks, np.float32).reshape(-1, points, 2),
            boxes=np.array([track.box for track in tracks], np.float32).reshape(-1, 4),
            scores=np.array([track.score for track in tracks], np.float32),
            confidences=np.full(len(tracks), np.nan, np.float32),
            ids=np.array([track.id for track in tracks], np.int64),
            image_size=image_size,
            scheme=self._scheme,
            rolls=np.array([track.roll for track in tracks], np.float64),
            landmark_confidence=np.array([track.confidence for track in tracks], np.float32),
        )


def _signature(image: Image) -> Float64Array | None:
    """Block means of a grid of samples, standardized; None without contrast."""
    if image.size == 0:
        return None
    rows, columns = ((_GRID * length).astype(np.int64) for length in image.shape[:2])
    samples = image[rows[:, None], columns, image.shape[2] // 2].astype(np.float64)
    blocks: Float64Array = np.add.reduce(samples.reshape(_BLOCKS, _BLOCK, _BLOCKS, _BLOCK), (1, 3)) / _BLOCK**2
    middle = np.add.reduce(blocks, None) / blocks.size
    if not isfinite(middle):
        return None  # what looks for faces in the frame says what is wrong with it
    blocks -= middle
    deviation = sqrt(np.vdot(blocks, blocks) / blocks.size)
    contrast = deviation * (255 if image.dtype != np.uint8 else 1)
    if contrast < _FLAT:
        return None
    blocks /= deviation
    return blocks
