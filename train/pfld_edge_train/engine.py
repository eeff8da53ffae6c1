"""One training step, one epoch, and the measurement of the validation faces."""

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from pfld_edge_runtime import Contract
from pfld_edge_train.batches import Batch, prefetched, training_batches, validation_batches
from pfld_edge_train.config import TrainConfig
from pfld_edge_train.dense_loss import DenseLandmarkLoss
from pfld_edge_train.errors import TrainingDivergedError, TrainingInterruptedError
from pfld_edge_train.face_cache import FaceCache
from pfld_edge_train.learner import Learner, training_mode, update_ema
from pfld_edge_train.losses import LandmarkLoss
from pfld_edge_train.processes import Processes
from pfld_edge_train.run_log import Callback
from pfld_edge_train.run_state import REMEDY, RunState, save_run

_GPU_WORKERS = 4
"""Threads that prepare batches for a GPU; for training on the CPU one is enough."""
_LAG = 4
"""Steps that a GPU may run ahead of the figures that are read from it."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what schedulers of clusters and ``docker stop`` send before they kill."""


def train_step(
    learner: Learner,
    batch: Batch,
    loss_of: LandmarkLoss | DenseLandmarkLoss,
    config: TrainConfig,
    steps_per_epoch: int,
    processes: Processes,
    save: bool = False,
    stop: bool = False,
) -> Tensor:
    """Update the weights of a learner in training mode once, in place.

    `batch` is this process's part of the whole batch, on its device. `save` and `stop` tell whether this process wants
    a checkpoint, or was asked to stop; all processes learn of it. Gives ``(4,)`` on the device, the fields of
    `_StepFigures`. After a loss that is not finite the weights are spoilt: read the figures before saving them.
    """
    rate = learning_rate_at(learner.step, steps_per_epoch, config)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)
    # Gradients are averaged over processes, so each process's normalizer is smaller by their number.
    weight = processes.summed(batch.weights.sum()).clamp_min(1e-6) / processes.count
    precision = torch.float16 if config.fp16 else torch.bfloat16
    with torch.autocast(processes.device.type, precision, enabled=config.bf16 or config.fp16):
        predicted, angles = learner.predict(batch.faces)
    loss = loss_of(predicted, batch, angles, weight)
    learner.optimizer.zero_grad(set_to_none=True)
    learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    learner.scaler.unscale_(learner.optimizer)
    norm = clip_grad_norm_(learner.runner.parameters(), config.optimizer.clip_norm)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    update_ema(learner.average, learner.model, config.optimizer.ema_decay, learner.step)
    learner.step += 1
    share = processes.count
    figures = [loss.detach() / share, norm.to(loss.dtype) / share, loss.new_full((), save), loss.new_full((), stop)]
    return processes.summed(torch.stack(figures))


def learning_rate_at(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Learning rate after `step` steps: linear warm-up to the peak, then half a cosine to zero, or the peak.

    The cosine is that of Loshchilov & Hutter, "SGDR", ICLR 2017, without restarts.
    """
    optimizer = config.optimizer
    warmup = max(1.0, optimizer.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / warmup
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    progress = min(1.0, (step - warmup) / max(1.0, config.epochs * steps_per_epoch - warmup))
    return optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


class CheckpointClock:
    """Says when a checkpoint is due: after a number of steps of an epoch, or of minutes."""

    def __init__(self, steps: int, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        """Start; 0 steps or minutes turn that rule off."""
        self._steps, self._seconds, self._now = steps, 60 * minutes, now
        self._saved_at = now()

    def due(self, epoch_step: int) -> bool:
        """Whether to save after `epoch_step` steps of the epoch; if so, count from now."""
        by_steps = self._steps > 0 and epoch_step % self._steps == 0
        due = by_steps or (self._seconds > 0 and self._now() - self._saved_at >= self._seconds)
        if due:
            self.restart()
        return due

    def restart(self) -> None:
        """Count from now."""
        self._saved_at = self._now()


@contextmanager
def listening_for_signals() -> Iterator[list[int]]:
    """Record the first signal that asks the run to stop; a second one has its usual effect.

    Outside of the main thread, where Python receives no signals, nothing is recorded.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        restore()

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        restore()


class _StepFigures(NamedTuple):
    """Figures of one step, equal in all processes: loss in pixels, gradient norm before clipping, save and stop."""

    loss: float
    gradient_norm: float
    save: bool
    stop: bool


class _FigureReader:
    """Reads the figures of steps in order; on a GPU some steps later, so that it never waits for Python.

    All processes read a step at the same moment, so that they agree on when to save and to stop.
    """

    def __init__(self, device: torch.device) -> None:
        self._lag = _LAG if device.type == "cuda" else 0
        self._waiting: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def add(self, figures: Tensor) -> Iterator[_StepFigures]:
        """Take a step's ``(4,)`` figures; yield those that are due."""
        event = None
        if figures.is_cuda:
            host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
            host.copy_(figures, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            figures = host
        self._waiting.append((figures, event))
        while len(self._waiting) > self._lag:
            yield self._next()

    def rest(self) -> Iterator[_StepFigures]:
        """Yield all that were not read yet."""
        while self._waiting:
            yield self._next()

    def _next(self) -> _StepFigures:
        figures, event = self._waiting.popleft()
        if event is not None:
            event.synchronize()
        loss, norm, save, stop = figures.tolist()
        return _StepFigures(loss, norm, save > 0, stop > 0)


def train_epoch(
    state: RunState,
    cache: FaceCache,
    loss_of: LandmarkLoss | DenseLandmarkLoss,
    steps: int,
    path: Path,
    clock: CheckpointClock,
    signals: list[int],
    callback: Callback,
) -> None:
    """Train from the current step of an epoch of `steps` steps to its end.

    The checkpoint at `path` is written when `clock` says so, and after a signal; see `listening_for_signals`.

    Raises:
        TrainingDivergedError: A loss or a gradient is not finite; nothing computed with it is saved.
        TrainingInterruptedError: A signal came; the run is saved.
    """
    config, processes = state.config, state.processes
    batches = training_batches(
        cache,
        state.contract,
        config.augment,
        config.batch_size,
        config.seed,
        state.next_epoch,
        first_batch=state.epoch_step,
        rank=processes.rank,
        world_size=processes.count,
        device=processes.device,
    )
    reader = _FigureReader(processes.device)
    callback.epoch(state.next_epoch, state.epoch_step)
    training_mode(state.learner.runner, freeze_statistics=state.freezes_statistics(cache.training_faces))

    def taken(known: Iterable[_StepFigures]) -> list[_StepFigures]:
        read = []
        for figures in known:
            _check(figures, state)
            state.epoch_step += 1
            state.epoch_loss += figures.loss
            callback.step(figures.loss)
            read.append(figures)
        return read

    workers = _GPU_WORKERS if processes.device.type == "cuda" else 1
    for number, part in enumerate(prefetched(batches, workers=workers), start=state.epoch_step + 1):
        tensors = {item.name: getattr(part, item.name) for item in fields(part)}
        batch = replace(part, **{name: t.to(processes.device, non_blocking=True) for name, t in tensors.items()})
        save = processes.first and number < steps and clock.due(number)
        read = taken(
            reader.add(train_step(state.learner, batch, loss_of, config, steps, processes, save, bool(signals)))
        )
        if any(known.save or known.stop for known in read):
            read += taken(reader.rest())
            if processes.first:
                save_run(state, path)
        if any(known.stop for known in read):
            raise processes.everywhere(_interrupted(state, steps, signals))
    taken(reader.rest())


def _check(figures: _StepFigures, state: RunState) -> None:
    """Refuse what is not finite; in float16 the scaler handles infinite gradients."""
    names = {"loss": figures.loss} if state.config.fp16 else {"loss": figures.loss, "gradient": figures.gradient_norm}
    for name, value in names.items():
        if not math.isfinite(value):
            place = f"epoch {state.next_epoch + 1}, step {state.epoch_step + 1}"
            rate = state.config.optimizer.learning_rate
            message = f"the {name} is {value} in {place}, at learning_rate {rate:g}: {REMEDY}"
            raise state.processes.everywhere(TrainingDivergedError(message))


def _interrupted(state: RunState, steps: int, signals: list[int]) -> TrainingInterruptedError:
    number = signals[0] if signals else signal.SIGTERM
    return TrainingInterruptedError(
        f"stopped by {signal.Signals(number).name} in epoch {state.next_epoch + 1} after step {state.epoch_step} of "
        f"{steps}; it is saved, --resume goes on from there",
        number,
    )


class ValidationErrors(NamedTuple):
    """NME of the validation faces, and of their hard views; that of the plain faces where there is none."""

    nme: float
    hard_nme: float

    @property
    def score(self) -> float:
        """What the best checkpoint is chosen by: the mean of both errors."""
        return (self.nme + self.hard_nme) / 2


def validate(
    model: nn.Module, cache: FaceCache, contract: Contract, batch_size: int, hard_views: int, processes: Processes
) -> ValidationErrors:
    """Measure a network on the validation faces and on `hard_views` augmented views of each.

    It is put into evaluation mode. Several processes share the work; all get the same errors.
    """

    def error(views: range) -> float:
        made = validation_batches(cache, contract, batch_size, views, processes.device, processes.rank, processes.count)
        return mean_error(model, prefetched(made), contract.landmarks.normalizing_points, processes)

    nme = error(range(1))
    return ValidationErrors(nme, error(range(1, 1 + hard_views)) if hard_views else nme)


@torch.no_grad()
def mean_error(
    model: nn.Module, batches: Iterable[Batch], normalizing_points: tuple[int, int], processes: Processes | None = None
) -> float:
    """Mean NME over all landmarks of the batches, weighted by the weight of each; `model` is put into evaluation mode.

    Faces whose normalizing points are unlabelled or coincide have no NME and are left out; NaN where all are. The
    batches lie on the network's device; those of all `processes` count together.
    """
    model.eval()
    first, second = normalizing_points
    sums = torch.zeros(2, dtype=torch.float64, device="cpu" if processes is None else processes.device)
    for batch in batches:
        landmarks, weights = batch.landmarks, batch.weights
        predicted = model(batch.faces.contiguous(memory_format=torch.channels_last)).view(landmarks.shape)
        distance = (landmarks[:, first] - landmarks[:, second]).norm(dim=1)
        measurable = (distance > 0) & (weights[:, first] > 0) & (weights[:, second] > 0)
        errors = (predicted - landmarks).norm(dim=2) / torch.where(measurable, distance, 1.0)[:, None]
        counted = weights * measurable[:, None]
        sums += torch.stack([(errors * counted).sum(), counted.sum()])
    total, weight = (sums if processes is None else processes.summed(sums)).tolist()
    return total / weight if weight else float("nan")
