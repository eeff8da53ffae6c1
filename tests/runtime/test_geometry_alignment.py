"""Aligned crops for face recognition, against scikit-image's similarity and OpenCV's warp."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pfld_edge_calib import portraits, read_photo
from pfld_edge_runtime import ARCFACE_POINTS, ImageError, LandmarkError, aligned_face, aligned_faces, five_points
from pfld_edge_runtime.arrays import Float64Array, Uint8Array
from pfld_edge_runtime.geometry.landmarks import fit_similarity


def landmarks_like(points: Float64Array) -> Float64Array:
    """98 points whose five points are those given."""
    face = np.zeros((98, 2))
    face[60:68], face[68:76] = points[0], points[1]
    face[[54, 76, 82]] = points[2:]
    return face


def warped_by_opencv(image: Uint8Array, landmarks: Float64Array, size: int) -> Uint8Array:
    template = ARCFACE_POINTS * (size / 112)
    matrix = fit_similarity(five_points(landmarks).astype(np.float64), template).matrix[0]
    return np.asarray(cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR), np.uint8)


@given(seed=st.integers(0, 2**32 - 1), noise=st.floats(0, 20))
def test_the_similarity_is_umeyamas(seed: int, noise: float) -> None:
    transform = pytest.importorskip("skimage.transform", reason="scikit-image is not installed")
    random = np.random.default_rng(seed)
    source = random.uniform(0, 500, (5, 2))
    target = ARCFACE_POINTS + random.normal(0, noise, (5, 2))
    # Umeyama's bars reflections, and so does ours; where he must bar one, his scale is not the least squares' in numpy.
    expected = transform.SimilarityTransform.from_estimate(source, target)
    np.testing.assert_allclose(fit_similarity(source[None], target).matrix[0], expected.params[:2], atol=1e-6)


@given(scale=st.floats(0.01, 100), degrees=st.floats(-180, 180), x=st.floats(-1e3, 1e3), y=st.floats(-1e3, 1e3))
def test_an_exact_similarity_is_found_exactly(scale: float, degrees: float, x: float, y: float) -> None:
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    matrix = np.array([[c, -s, x], [s, c, y]])
    target = ARCFACE_POINTS @ matrix[:, :2].T + matrix[:, 2]
    found = fit_similarity(ARCFACE_POINTS[None], target).matrix[0]
    np.testing.assert_allclose(found, matrix, atol=1e-6 * max(1, scale))
    by_opencv, _ = cv2.estimateAffinePartial2D(ARCFACE_POINTS, target)
    np.testing.assert_allclose(found, by_opencv, rtol=1e-4, atol=1e-3 * max(1, scale))


@settings(max_examples=40)
@given(
    degrees=st.floats(-180, 180),
    scale=st.floats(0.3, 3),
    x=st.floats(-60, 60),
    y=st.floats(-60, 60),
    size=st.sampled_from([64, 112, 160]),
)
def test_the_warp_is_opencvs(degrees: float, scale: float, x: float, y: float, size: int) -> None:
    smooth = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (150, 170, 3)).astype(np.uint8), (0, 0), 3)
    angle = np.radians(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    face = landmarks_like((ARCFACE_POINTS - 56) @ turn.T + (85 + x, 75 + y))
    ours, theirs = aligned_face(smooth, face, size), warped_by_opencv(smooth, face, size)
    apart = np.abs(ours.astype(int) - theirs)
    # OpenCV rounds positions to 1/32 pixel in some builds; where the crop leaves the photograph, black meets it.
    inner = cv2.erode(warped_by_opencv(np.full_like(smooth, 255), face, size), np.ones((3, 3), np.uint8)) == 255
    assert (apart[inner] <= 2).all()
    assert np.quantile(apart, 0.99) <= 8


def test_a_portraits_five_points_land_near_the_template_and_its_crop_is_opencvs() -> None:
    for portrait in portraits():
        assert portrait.landmarks is not None
        image = read_photo(portrait.image)
        five = five_points(portrait.landmarks).astype(np.float64)
        matrix = fit_similarity(five, ARCFACE_POINTS).matrix[0]
        landed = five[0] @ matrix[:, :2].T + matrix[:, 2]
        assert np.linalg.norm(landed - ARCFACE_POINTS, axis=1).max() < 8
        ours = aligned_face(image, portrait.landmarks)
        apart = np.abs(ours.astype(int) - warped_by_opencv(image, portrait.landmarks.astype(np.float64), 112))
        assert apart.mean() < 0.5
        assert np.quantile(apart, 0.99) <= 2


def test_a_face_that_lies_as_the_template_does_is_cut_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3)).astype(np.uint8)
    np.testing.assert_array_equal(aligned_face(image, landmarks_like(ARCFACE_POINTS)), image)


def test_outside_the_photograph_is_black_even_far_away() -> None:
    image = np.full((50, 50, 3), 200, np.uint8)
    far = landmarks_like(ARCFACE_POINTS + 1e5)
    assert aligned_face(image, far).max() == 0
    half = aligned_face(image, landmarks_like(ARCFACE_POINTS))
    assert half[60:].max() == 0
    assert (half[:49, :49] == 200).all()


@pytest.mark.parametrize("kind", ["grey", "grey1", "rgba", "float", "strided"])
def test_every_kind_of_photograph_gives_the_same_crop(kind: str) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (120, 130, 1)).astype(np.uint8)
    image: NDArray[np.generic] = np.repeat(grey, 3, axis=2)
    expected = aligned_face(image, landmarks_like(ARCFACE_POINTS * 0.9 + 3))
    given_image: dict[str, NDArray[np.generic]] = {
        "grey": grey[:, :, 0],
        "grey1": grey,
        "rgba": np.concatenate([image, grey], axis=2),
        "float": (image / np.float64(255)),
        "strided": np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)[::2, ::2],
    }
    found = aligned_face(given_image[kind], landmarks_like(ARCFACE_POINTS * 0.9 + 3))
    assert np.abs(found.astype(int) - expected).max() <= (1 if kind == "float" else 0)


def test_many_faces_are_cut_as_each_alone_and_none_gives_none() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8)
    faces = np.stack([landmarks_like(ARCFACE_POINTS * s) for s in (0.3, 0.7, 1.4)])
    together = aligned_faces(image, faces, 64)
    assert together.shape == (3, 64, 64, 3)
    for face, crop in zip(faces, together, strict=True):
        np.testing.assert_array_equal(aligned_face(image, face, 64), crop)
    assert aligned_faces(image, np.zeros((0, 98, 2))).shape == (0, 112, 112, 3)


def test_what_cannot_be_cut_is_refused() -> None:
    image = np.zeros((50, 50, 3), np.uint8)
    with pytest.raises(LandmarkError, match="one point"):
        aligned_face(image, np.full((98, 2), 3.0))
    with pytest.raises(LandmarkError, match="one face, found 2"):
        aligned_face(image, np.stack([landmarks_like(ARCFACE_POINTS)] * 2))
    with pytest.raises(ImageError, match="read as 0"):
        aligned_face(np.full((112, 112, 3), 200.0), landmarks_like(ARCFACE_POINTS))
    with pytest.raises(ImageError):
        aligned_face([[0]], landmarks_like(ARCFACE_POINTS))  # type: ignore[arg-type]
