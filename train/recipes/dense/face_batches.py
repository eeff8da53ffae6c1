"""Batches of augmented faces from the pack, cut as the contract says: 1.2 times the tight box, 112 px, BGR."""

from pathlib import Path

import cv2
import numpy as np

from pfld_edge_runtime import WFLW_98

MIRROR = np.array(WFLW_98.mirror)
SIDE, MARGIN = 112, 1.2
LINE = np.linspace(-1, 1, SIDE, dtype=np.float32)
# Drawn once: any stretch of it is noise, and drawing anew takes longer than all the rest of a face.
NOISE = np.random.default_rng(0).standard_normal(SIDE * SIDE * 12, dtype=np.float32)


class Faces:
    """The packed faces, mapped from disk."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.reload()

    def reload(self) -> None:
        """Take the newest pack."""
        packed = np.load(self.data / "faces.npz")
        self.crops = np.load(self.data / "crops.npy", mmap_mode="r")
        self.points, self.trust, self.source = packed["points"], packed["trust"], packed["source"]
        if len(self.crops) != len(self.points):
            raise SystemExit("crops.npy and faces.npz are of two packs: run pack_faces.py again")
        self.train = np.flatnonzero(~packed["held_out"])
        self.held_out = np.flatnonzero(packed["held_out"])
        self.stamp = (self.data / "faces.npz").stat().st_mtime
        self.chance = sampling_weights(self.points[self.train], self.source[self.train])

    @property
    def changed(self) -> bool:
        return (self.data / "faces.npz").stat().st_mtime != self.stamp


def openness(points: np.ndarray) -> np.ndarray:
    """Mean of the three lid distances over the eye's width, mean of both eyes; ``(N,)``."""
    eyes = []
    for start in (60, 68):
        lids = [np.linalg.norm(points[:, start + a] - points[:, start + b], axis=1) for a, b in ((1, 7), (2, 6), (3, 5))]
        width = np.linalg.norm(points[:, start] - points[:, start + 4], axis=1)
        eyes.append(np.mean(lids, 0) / np.maximum(width, 1e-6))
    return np.mean(eyes, 0)


def eye_share(points: np.ndarray) -> np.ndarray:
    """Distance of the outer eye corners over the longer side of the box: small in large pose; ``(N,)``."""
    eyes = np.linalg.norm(points[:, 60] - points[:, 72], axis=1)
    return eyes / np.ptp(points, axis=1).max(1)


def sampling_weights(points: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Chances to be drawn: large pose and closed eyes up to 2.5 times, easy sets less."""
    weight = 1 + 1.0 * np.clip((0.48 - eye_share(points)) / 0.2, 0, 1) + 0.5 * (openness(points) < 0.15)
    weight = weight * np.where(source == "lfw", 0.5, 1) * np.where(source == "youtube68", 0.4, 1)
    return weight / weight.sum()


class Augmentation:
    """Turns, shifts, stretches, mirrors; then looks. `strength` 0 to 1 scales all but the mirror."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.strength = 1.0

    def matrix(self, points: np.ndarray) -> np.ndarray:
        """Linear map ``(2, 3)`` from packed pixels to network pixels, around the tight box of the mapped points."""
        rng, s = self.random, self.strength
        angle = np.radians(rng.normal(0, 12) if rng.random() < 0.8 else rng.uniform(-45, 45)) * s
        stretch, shear = rng.normal(0, 0.05) * s, rng.normal(0, 0.07) * s
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = turn @ np.array([[1 + stretch, shear], [0, 1 - stretch]])
        if rng.random() < 0.5:
            linear = linear @ np.diag([-1.0, 1.0])
        mapped = points @ linear.T
        low, high = mapped.min(0), mapped.max(0)
        box = (high - low).max() * MARGIN
        box *= np.exp(rng.normal(0.01, 0.05) * s)
        middle = (low + high) / 2 + rng.normal(0, 0.025, 2) * box * s
        scale = SIDE / box
        # Pixel centres lie at half: a fraction f of the crop is pixel f * SIDE - 0.5.
        return np.concatenate([linear * scale, (SIDE / 2 - 0.5 - scale * middle)[:, None]], 1), np.linalg.det(linear) < 0

    def face(self, crop: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """Crop ``(176, 176, 3)`` and points in its pixels to ``(112, 112, 3)`` and fractions of that."""
        matrix, flipped = self.matrix(points)
        image = cv2.warpAffine(crop, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
        points = (points @ matrix[:, :2].T + matrix[:, 2] + 0.5) / SIDE
        if flipped:
            points = points[MIRROR]
        return self.look(image), points, flipped

    def look(self, image: np.ndarray) -> np.ndarray:
        rng, s = self.random, self.strength
        if rng.random() < 0.25 * s:
            side = int(rng.uniform(28, 84))
            small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
            image = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        elif rng.random() < 0.15 * s:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2.2))
        elif rng.random() < 0.08 * s:
            length = int(rng.integers(3, 12))
            kernel = np.zeros((length, length), np.float32)
            dx, dy = np.array([np.cos(t := rng.uniform(0, np.pi)), np.sin(t)]) * length / 2
            middle = length / 2
            cv2.line(kernel, (int(middle - dx), int(middle - dy)), (int(middle + dx), int(middle + dy)), 1.0)
            image = cv2.filter2D(image, -1, kernel / max(kernel.sum(), 1))
        if rng.random() < 0.15 * s:
            coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.uniform(15, 70))])[1]
            image = cv2.imdecode(coded, cv2.IMREAD_COLOR)
        if rng.random() < 0.3 * s:
            self.cover(image)
        return image

    def cover(self, image: np.ndarray) -> None:
        """A patch of one colour, of noise, or of another place of the picture, in place."""
        rng = self.random
        width, height = (int(v) for v in rng.uniform(12, 56, 2))
        x, y = int(rng.integers(-10, SIDE - 10)), int(rng.integers(-10, SIDE - 10))
        target = image[max(y, 0) : y + height, max(x, 0) : x + width]
        kind = rng.random()
        if kind < 0.4:
            target[:] = rng.integers(0, 256, 3)
        elif kind < 0.6:
            target[:] = rng.integers(0, 256, target.shape)
        else:
            u, v = (int(rng.integers(0, SIDE - n + 1)) for n in target.shape[:2])
            target[:] = image[u : u + target.shape[0], v : v + target.shape[1]].copy()

    def colors(self, image: np.ndarray) -> np.ndarray:
        """Light, contrast, colour cast, grey, noise: ``(112, 112, 3)`` uint8 to float32 as the network takes it."""
        rng, s = self.random, self.strength
        saturation = 0.0 if rng.random() < 0.1 * s else np.exp(rng.normal(0, 0.25 * s))
        contrast, gain = np.exp(rng.normal(0, 0.25 * s)), np.exp(rng.normal(0, 0.06 * s, 3))
        # Grey is the mean of the channels; contrast turns about the picture's mean grey.
        mixing = contrast * gain[:, None] * (saturation * np.eye(3) + (1 - saturation) / 3)
        level = np.mean(cv2.mean(image)[:3]) * (1 - contrast) + rng.normal(0, 22 * s)
        out = cv2.transform(image.astype(np.float32), np.concatenate([mixing, np.full((3, 1), level)], 1))
        if rng.random() < 0.4 * s:
            slope = rng.normal(0, 25, 2).astype(np.float32)
            out += (slope[0] * LINE[None, :] + slope[1] * LINE[:, None])[..., None]
        if rng.random() < 0.25 * s:
            sigma = rng.uniform(2, 14)
            start = int(rng.integers(0, len(NOISE) - out.size))
            out += NOISE[start : start + out.size].reshape(out.shape) * np.float32(sigma)
        np.clip(out, 0, 255, out=out)
        return normalized(out)


def train_batch(faces: Faces, augmentation: Augmentation, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs ``(N, 112, 112, 3)`` float32 normalized, points as fractions, trust ``(N, 98)``."""
    chosen = augmentation.random.choice(faces.train, size, p=faces.chance)
    images = np.empty((size, SIDE, SIDE, 3), np.float32)
    points, trust = np.empty((size, 98, 2), np.float32), np.empty((size, 98), np.float32)
    for place, i in enumerate(chosen):
        crop = faces.crops[i]
        image, points[place], flipped = augmentation.face(crop, faces.points[i] * len(crop) - 0.5)
        images[place] = augmentation.colors(image)
        trust[place] = faces.trust[i][MIRROR] if flipped else faces.trust[i]
    return images, points, trust


def normalized(pixels: np.ndarray) -> np.ndarray:
    """Pixels 0..255 to what the network takes, -1..1."""
    return (pixels * np.float32(2 / 255) - np.float32(1)).astype(np.float32)


def plain_crops(faces: Faces, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Undistorted faces ``(N, 112, 112, 3)`` uint8 and points as fractions of them."""
    quiet = Augmentation(0)
    quiet.strength = 0.0
    images, points = [], []
    for i in chosen:
        crop = np.asarray(faces.crops[i])
        pixels = faces.points[i].astype(np.float64) * len(crop) - 0.5
        low, high = pixels.min(0), pixels.max(0)
        scale = SIDE / ((high - low).max() * MARGIN)
        shift = SIDE / 2 - 0.5 - scale * (low + high) / 2
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        images.append(cv2.warpAffine(crop, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR))
        points.append((pixels * scale + shift + 0.5) / SIDE)
    return np.stack(images), np.array(points, np.float32)


def figures(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """NME, of large pose and of lids, and openness, of ``(N, 98, 2)``."""
    error = np.linalg.norm(found - true, axis=2) / np.linalg.norm(true[:, 60] - true[:, 72], axis=1)[:, None]
    turned = eye_share(true) < 0.40
    size = np.maximum(np.linalg.norm(true[:, 60] - true[:, 72], axis=1), 0.35 * np.ptp(true, axis=1).max(1))
    straight = ~turned
    opened, truth = openness(found[straight]), openness(true[straight])
    closed = truth <= np.quantile(truth, 0.15)
    return {
        "nme": float(error.mean()),
        "nme_size": float((np.linalg.norm(found - true, axis=2) / size[:, None]).mean()),
        "nme_turned": float(error[turned].mean()),
        "nme_lids": float(error[:, 60:76].mean()),
        "openness_r": float(np.corrcoef(opened, truth)[0, 1]),
        "closed_true": float(truth[closed].mean()),
        "closed_found": float(opened[closed].mean()),
    }
