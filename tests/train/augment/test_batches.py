"""Batches depend on seed, epoch and number alone, and come in their order; validation sees plain and hard faces."""

import threading

import cv2
import numpy as np
import pytest
import torch

from pfld_edge_calib import cut_faces, portraits
from pfld_edge_runtime import Contract
from pfld_edge_train.batches import Batch, LazySequence, prefetched, training_batches, validation_batches
from pfld_edge_train.config import AugmentConfig
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.face_cache import FaceCache

CONTRACT = Contract()
CONFIG = AugmentConfig()


def equal(first: Batch, second: Batch) -> bool:
    names = ("faces", "landmarks", "weights", "attributes")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


def joined(batches: list[Batch]) -> Batch:
    names = ("faces", "landmarks", "weights", "attributes")
    return Batch(*(torch.cat([getattr(batch, name) for batch in batches]) for name in names))


def shared_out(batches: list[Batch]) -> Batch:
    """Put the parts of several processes together: they took turns."""
    names = ("faces", "landmarks", "weights", "attributes")
    parts = (torch.stack([getattr(batch, name) for batch in batches], dim=1) for name in names)
    return Batch(*(part.flatten(0, 1) for part in parts))


def test_an_epoch_repeats_and_others_differ(cache: FaceCache) -> None:
    first, again = (list(training_batches(cache, CONTRACT, CONFIG, 8, 3, 1)) for _ in range(2))
    assert len(first) == 32 // 8
    assert all(equal(*pair) for pair in zip(first, again, strict=True))
    assert not equal(first[0], training_batches(cache, CONTRACT, CONFIG, 8, 3, 2)[0])
    assert not equal(first[0], training_batches(cache, CONTRACT, CONFIG, 8, 4, 1)[0])


def test_a_run_goes_on_at_any_batch(cache: FaceCache) -> None:
    whole = list(training_batches(cache, CONTRACT, CONFIG, 8, 3, 1))
    rest = list(training_batches(cache, CONTRACT, CONFIG, 8, 3, 1, first_batch=2))
    assert len(rest) == 2
    assert all(equal(*pair) for pair in zip(whole[2:], rest, strict=True))
    assert not list(training_batches(cache, CONTRACT, CONFIG, 8, 3, 1, first_batch=9))


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_see_what_one_sees(cache: FaceCache, world_size: int) -> None:
    one = training_batches(cache, CONTRACT, CONFIG, 8, 3, 1)
    shares = [
        training_batches(cache, CONTRACT, CONFIG, 8, 3, 1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for number, batch in enumerate(one):
        assert equal(batch, shared_out([share[number] for share in shares]))


def test_on_a_device_too_processes_together_see_what_one_sees(
    cache: FaceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The batched way computes for all faces at once: sums may be ordered otherwise in a smaller batch.
    from pfld_edge_train import batches
    from pfld_edge_train.augment import render_on_device

    def render(crops: np.ndarray, plan: object, size: int, order: str) -> np.ndarray:
        faces = render_on_device(crops, plan, size, order, torch.device("cpu"))  # type: ignore[arg-type]
        return faces.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()

    monkeypatch.setattr(batches, "render_on_cpu", render)
    one = training_batches(cache, CONTRACT, CONFIG, 8, 3, 1)[0]
    shares = [training_batches(cache, CONTRACT, CONFIG, 8, 3, 1, rank=rank, world_size=2)[0] for rank in range(2)]
    difference = (one.faces - shared_out(shares).faces).abs() * 127.5
    assert difference.mean() < 0.01
    assert torch.equal(one.landmarks, shared_out(shares).landmarks)


def test_a_batch_that_can_not_be_shared_is_refused(cache: FaceCache) -> None:
    with pytest.raises(TrainConfigError, match="batch_size 8 does not divide among 3 processes"):
        training_batches(cache, CONTRACT, CONFIG, 8, 0, 0, rank=0, world_size=3)


def test_weights_are_mirrored_with_their_landmarks(cache: FaceCache) -> None:
    mirror = np.array(CONTRACT.landmarks.mirror)
    straight = cache.weights[0]
    seen = [tuple(row) for batch in training_batches(cache, CONTRACT, CONFIG, 8, 0, 0) for row in batch.weights.numpy()]
    assert set(seen) == {tuple(straight), tuple(straight[mirror])}


def test_batches_are_channels_last_and_normalized(cache: FaceCache) -> None:
    contract = Contract(mean=(100.0, 110.0, 120.0), scale=(50.0, 60.0, 70.0))
    batch = training_batches(cache, contract, CONFIG, 8, 0, 0)[0]
    assert batch.faces.is_contiguous(memory_format=torch.channels_last)
    assert batch.faces.dtype == torch.float32
    mean, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (contract.mean, contract.scale))
    levels = batch.faces * scale + mean
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


def test_plain_validation_faces_are_the_runtimes_crops(cache: FaceCache) -> None:
    faces = [face for face, out in zip(portraits() * 20, cache.held_out, strict=True) if out][:2]
    device = next(cut_faces(faces, CONTRACT))
    truth = np.stack([face.landmarks for face in faces if face.landmarks is not None])
    batch = validation_batches(cache, CONTRACT, len(faces))[0]
    np.testing.assert_allclose(batch.landmarks.numpy(), device.windows.to_crop(truth), atol=1e-6)
    for face, expected in zip(batch.faces.numpy(), device.crops, strict=True):
        seen = np.ascontiguousarray(face.mean(axis=0), np.float32)
        found, _ = cv2.phaseCorrelate(expected.mean(axis=2, dtype=np.float32), seen)
        # The cached crop was sampled once before: pixels differ a little, places don't.
        np.testing.assert_allclose(found, 0, atol=0.1)


def test_hard_views_are_fixed_for_every_batch_size(cache: FaceCache) -> None:
    whole = joined(list(validation_batches(cache, CONTRACT, 8, views=(1,))))
    parts = joined(list(validation_batches(cache, CONTRACT, 3, views=(1,))))
    plain = joined(list(validation_batches(cache, CONTRACT, 3)))
    assert equal(whole, parts)
    assert len(whole.faces) == len(plain.faces) == cache.held_out.sum()
    assert (whole.faces - plain.faces).abs().mean() > 0.05
    both = joined(list(validation_batches(cache, CONTRACT, 8, views=(0, 1))))
    assert equal(both, joined([plain, whole]))
    assert not equal(whole, joined(list(validation_batches(cache, CONTRACT, 8, views=(2,)))))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("depth", [1, 4])
def test_items_come_in_order(depth: int, workers: int) -> None:
    assert list(prefetched(LazySequence(20, lambda i: i * i), depth, workers)) == [i * i for i in range(20)]
    assert not list(prefetched(LazySequence(0, lambda i: i)))


def test_an_error_is_raised_after_the_items_before_it() -> None:
    def make(number: int) -> int:
        if number == 1:
            raise ValueError("no more faces")
        return number

    ahead = prefetched(LazySequence(3, make))
    assert next(ahead) == 0
    with pytest.raises(ValueError, match="no more faces"):
        next(ahead)


def test_items_are_made_ahead_while_one_is_out() -> None:
    made = threading.Semaphore(0)

    def make(number: int) -> int:
        made.release()
        return number

    items = prefetched(LazySequence(10, make), depth=3)
    next(items)
    assert all(made.acquire(timeout=10) for _ in range(4))
    assert not made.acquire(timeout=0.05)
    items.close()  # type: ignore[attr-defined]


def test_leaving_early_ends_the_threads() -> None:
    before = threading.active_count()
    items = prefetched(LazySequence(1000, lambda i: i), workers=2)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_lazy_sequence_makes_only_what_is_asked_for() -> None:
    made: list[int] = []
    numbers = LazySequence(10, lambda i: made.append(i) or i)
    assert len(numbers) == 10
    assert numbers[4] == 4
    assert numbers[-1] == 9
    assert made == [4, 9]
    with pytest.raises(IndexError):
        numbers[10]
