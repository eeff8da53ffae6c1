"""Faces through a video: the detector now and then, landmarks in every frame, ids that stay."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pfld_edge_runtime.contract import Contract
from pfld_edge_runtime.crop import check_image
from pfld_edge_runtime.detectors import Detector, find_boxes
from pfld_edge_runtime.errors import ImageError, TrackerError
from pfld_edge_runtime.faces import Faces
from pfld_edge_runtime.landmarker import FaceLandmarker
from pfld_edge_runtime.schemes import WFLW_98, LandmarkScheme
from pfld_edge_runtime.tracking.frame_clock import FrameClock
from pfld_edge_runtime.tracking.one_euro import OneEuro
from pfld_edge_runtime.tracking.roster import Look, Roster
from pfld_edge_runtime.tracking.scene_cut import Change, SceneCuts
from pfld_edge_runtime.tracking.smoothing import Smoothing

__all__ = ["FaceTracker", "Landmarker"]

Array = NDArray[np.float64]
Image = NDArray[np.generic]


class Landmarker(Protocol):
    """What `FaceTracker` asks for landmarks: a `FaceLandmarker`, or anything that is called like one."""

    def __call__(self, image: Image, boxes: object, color: str = "rgb") -> NDArray[np.float32]:
        """Give ``(N, P, 2)`` pixels for ``(N, 4)`` boxes that are tight around landmarks."""
        ...


class FaceTracker:
    """Follows the faces of one video.

    The landmarks of a frame give the box of the next one; the detector only runs to find new faces and to check on
    those that behave oddly. Not thread-safe, since it remembers: one tracker a video and one call at a time. Trackers
    of several threads may share a landmarker.

    Example:
        >>> tracker = FaceTracker(detector)
        >>> for frame, seconds in video:
        ...     faces = tracker(frame, seconds)
        ...     print(faces.ids, faces.landmarks.shape)  # (N,), (N, 98, 2)
    """

    def __init__(
        self,
        detector: Detector,
        landmarker: Landmarker | None = None,
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
            detector: Finds faces; asked through `find_boxes`.
            landmarker: Finds their landmarks; None for the bundled model.
            every: Frames from one run of the detector to the next while all is well, at least 1.
            search_every: The same while no face is in view or one went out of view, at least 1.
            check_every: Frames from one second look at a face to the next (see `presence`), at least 1; each look costs
                one more face in the landmarker's batch.
            max_faces: Most faces to follow, at least 1; the detector's surest first, or the largest. None for all.
            smoothing: How landmarks are smoothed; a `OneEuro` serves for place and shape alike; None for raw landmarks.
            memory: Seconds, 0 or more, for which a face that went out of view keeps its id.
            fps: Frames a second where frames come without timestamps.

        Raises:
            TrackerError: A setting is out of range.
        """
        for name, value in {"every": every, "search_every": search_every, "check_every": check_every}.items():
            if value < 1:
                raise TrackerError(f"{name} is {value!r}; it counts frames and must be at least 1")
        if max_faces is not None and max_faces < 1:
            raise TrackerError(f"max_faces is {max_faces!r}; it must be at least 1, or None for all")
        if not memory >= 0:
            raise TrackerError(f"memory is {memory!r}; it must be 0 seconds or more")
        self._detector = detector
        self._landmarker = FaceLandmarker() if landmarker is None else landmarker
        self._contract = _contract(self._landmarker)
        self._scheme: LandmarkScheme = WFLW_98 if self._contract is None else self._contract.landmarks
        self._every, self._search_every, self._check_every = every, search_every, check_every
        # The boxes always come from smoothed landmarks, whatever the caller gets (see `Track`).
        self._smooth = smoothing is not None
        settings = Smoothing(smoothing, smoothing) if isinstance(smoothing, OneEuro) else smoothing or Smoothing()
        self._roster = Roster(settings, memory, max_faces)
        self._clock = FrameClock(fps)
        self._cuts = SceneCuts()
        self.reset()

    def reset(self) -> None:
        """Forget all faces and the time, as before another video. Ids go on: none is given twice."""
        self._clock.reset()
        self._cuts.reset()
        self._roster.clear()
        self._frames = 0
        self._searched: int | None = None  # the frame in which the detector ran last; None: it has to run

    def __call__(self, frame: Image, timestamp: float | None = None, color: str = "rgb") -> Faces:
        """Find the faces of the next frame.

        Args:
            frame: As for `FaceLandmarker`; not kept. A frame of another size than the last begins a new scene.
            timestamp: Seconds, more than the last frame's; intervals may vary. None for 1 / fps after the last.
            color: Channel order of `frame`: ``rgb`` or ``bgr``.

        Returns:
            The faces in view, oldest id first. `boxes` are what they were cut by, `scores` those of the detector when
            it last found them.

        Raises:
            ImageError: The frame can't be used.
            TimestampError: The time is not after the last frame's; the tracker goes on as if the frame had not come.
            BoxError: What the detector gave can't be read as boxes.
            TrackerError: The landmarker gave an array of another shape than asked for.
        """
        image = check_image(frame)
        if color not in ("rgb", "bgr"):
            raise ImageError(f"color must be 'rgb' or 'bgr', not {color!r}")
        now = self._clock(timestamp)
        change = self._cuts(image)
        if change is Change.CUT:
            self._roster.clear()
            self._searched = None
        width, height = image.shape[1], image.shape[0]
        look = self._look(frame, color)
        turn, doubtful = self._frames, change is Change.DOUBTFUL
        # Faces take turns with the second look, so that no frame has to pay for all of them.
        doubted = self._roster.follow(
            look, now, (width, height), lambda track: doubtful or (turn + track.id) % self._check_every == 0
        )
        if doubted or self._search_is_due():
            found = find_boxes(self._detector, frame, color, self._contract)
            self._roster.take(found, look, now, (width, height), doubted)
            self._searched = turn
        self._roster.forget(now)
        self._frames += 1
        return self._faces((width, height))

    def _search_is_due(self) -> bool:
        well = self._roster.in_view and not self._roster.hidden
        return self._searched is None or self._frames - self._searched >= (self._every if well else self._search_every)

    def _look(self, frame: Image, color: str) -> Look:
        """The landmarker for one frame, its answer checked."""
        points = self._scheme.num_landmarks

        def look(boxes: Array) -> Array:
            if len(boxes) == 0:
                return np.zeros((0, points, 2))
            found = np.asarray(self._landmarker(frame, boxes, color), np.float64)
            if found.shape != (len(boxes), points, 2):
                raise TrackerError(
                    f"the landmarker gave {found.shape} for {len(boxes)} boxes; its scheme {self._scheme.name} "
                    f"asks for {(len(boxes), points, 2)}"
                )
            return found

        return look

    def _faces(self, image_size: tuple[int, int]) -> Faces:
        tracks, points = self._roster.in_view, self._scheme.num_landmarks
        landmarks = [track.steady if self._smooth else track.landmarks for track in tracks]
        return Faces(
            landmarks=np.array(landmarks, np.float32).reshape(-1, points, 2),
            boxes=np.array([track.box for track in tracks], np.float32).reshape(-1, 4),
            scores=np.array([track.score for track in tracks], np.float32),
            confidences=np.full(len(tracks), np.nan, np.float32),
            ids=np.array([track.id for track in tracks], np.int64),
            image_size=image_size,
            scheme=self._scheme,
        )


def _contract(landmarker: Landmarker) -> Contract | None:
    """What the landmarker promises, where it says anything."""
    contract = getattr(landmarker, "contract", None)
    return contract if isinstance(contract, Contract) else None
