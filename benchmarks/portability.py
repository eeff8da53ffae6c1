"""Shows whether a model gives the same landmarks on every processor, by emulating the processors that aren't here.

The same file runs on the same faces natively, then under QEMU's user-mode emulation of other processors, with
onnxruntime of the same version, whose choice of kernels follows the processor that it sees. INT8 files are why this
exists: x86 processors with AVX2 but without VNNI sum pairs of 8-bit products in 16 bits that saturate (VPMADDUBSW), and
the plain NEON kernels of arm64 sum pairs of them in 16 bits that wrap where weights are -128. AVX-512 without VNNI
saturates as AVX2 does; QEMU can't emulate it. What remains is rounding: where a float result lies on the border between
two 8-bit steps, kernels may fall on different sides of it (seen in QLinearAdd), and that step travels on.
Seconds are those of the emulator: they say nothing about a processor.

It needs an x86-64 Linux with QEMU's user-mode emulators, and for the arm64 processors a root file system with Python
and this machine's versions of numpy and onnxruntime:

    apt-get install qemu-user-static
    docker run --platform linux/arm64 --name arm python:3.11-slim pip install numpy==... onnxruntime==...
    mkdir arm64 && docker export arm | tar -x -C arm64
    python benchmarks/portability.py --arm64 arm64 MODEL.onnx
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from pfld_edge_calib import cut_faces, jittered, portraits
from pfld_edge_convert.landmark_models import open_landmark_model
from pfld_edge_runtime import BUNDLED_MODEL, Contract, PfldEdgeError, prepare_input
from pfld_edge_runtime.arrays import Float32Array

# Runs inside the emulator, where only numpy and onnxruntime are; numpy tells which instructions the processor has.
PROGRAM = """
import json, sys, time
import numpy, onnxruntime
from numpy._core._multiarray_umath import __cpu_features__ as seen

features = [name for name in ("SSE41", "AVX", "AVX2", "AVX512_CLX", "NEON", "ASIMDDP", "SVE") if seen.get(name)]
model, source, target = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
name, batch = session.get_inputs()[0].name, numpy.load(source)
start = time.perf_counter()
numpy.save(target, numpy.concatenate([session.run(None, {name: batch[i:i + 1]})[0] for i in range(len(batch))]))
print(json.dumps({"seconds": time.perf_counter() - start, "features": features}))
"""

# onnxruntime's processor detection crashes on arm64 where this file describes an x86 processor, as the host's does.
ARM_CPUINFO = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part}
CPU revision\t: 0

"""


class Emulated(NamedTuple):
    """A processor that QEMU can play: QEMU's names, what onnxruntime must see of it, an arm processor's part number."""

    name: str
    machine: str
    cpu: str
    features: str
    part: str = ""


PROCESSORS = (
    Emulated("x86-64 without AVX (Nehalem)", "x86_64", "Nehalem", "SSE41"),
    Emulated("x86-64 with AVX2, no VNNI (Haswell)", "x86_64", "Haswell", "SSE41 AVX AVX2"),
    Emulated("arm64, plain NEON (Cortex-A72)", "aarch64", "cortex-a72", "NEON", "0xd08"),
    Emulated("arm64, dot product (Cortex-A76)", "aarch64", "cortex-a76", "NEON ASIMDDP", "0xd0b"),
    Emulated("arm64, i8mm and SVE (QEMU's max)", "aarch64", "max", "NEON ASIMDDP SVE", "0xd40"),
)


class Answer(NamedTuple):
    """What a model answered on a processor."""

    output: Float32Array
    features: str
    seconds: float


@click.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@click.option("--faces", type=click.IntRange(2), default=8, show_default=True, help="Portraits under jittered boxes.")
@click.option("--arm64", type=click.Path(path_type=Path, exists=True), help="Root file system with an arm64 Python.")
def main(models: tuple[Path, ...], faces: int, arm64: Path | None) -> None:
    """Print how far the landmarks of MODELS (the bundled INT8 file by default) differ from processor to processor.

    Exit status 2 where no emulation could run.
    """
    root = arm64.resolve() if arm64 else None
    found = {machine: interpreter(machine, root) for machine in ("x86_64", "aarch64")}
    usable = {emulated: python for emulated in PROCESSORS if (python := found[emulated.machine])}
    try:
        done = sum(compare(model, faces, usable, root) for model in models or (BUNDLED_MODEL,)) if usable else 0
    except (PfldEdgeError, RuntimeError) as error:
        click.echo(f"Error: {error}", err=True)
        done = 0
    sys.exit(0 if done else 2)


def interpreter(machine: str, arm64: Path | None) -> list[str] | None:
    """Find the command of an emulated Python; what is missing is told in one line and gives None."""
    qemu = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    reason = ""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        reason = "the emulations need an x86-64 Linux: run this on one"
    elif not qemu:
        reason = f"qemu-{machine} is not on the PATH: install qemu-user-static"
    elif machine == "aarch64" and arm64 is None:
        reason = "give a root file system with Python by --arm64"
    if reason or qemu is None:
        click.echo(f"{machine} processors left out: {reason}", err=True)
        return None
    if machine == "x86_64" or arm64 is None:
        return [qemu, sys.executable]
    python = next(iter(sorted(arm64.glob("usr/local/bin/python3.*[0-9]"))), arm64 / "usr/bin/python3")
    return [qemu, "-L", str(arm64), str(python)]


def compare(model: Path, count: int, interpreters: dict[Emulated, list[str]], arm64: Path | None) -> int:
    """Run one model natively and on every emulated processor, print a line for each; how many emulations ran."""
    contract = open_landmark_model(model).contract
    known = portraits()
    crops = next(cut_faces(jittered(known, -(-count // len(known))), contract, count)).crops
    done = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "input.npy", prepare_input(crops, contract))
        native = run([sys.executable], model, folder)
        click.echo(f"\n{model.name}, {len(crops)} faces; natively: {native.features}, {native.seconds:.2f} s")
        click.echo(f"  {'processor':36} {'largest':>9} {'mean':>9} {'largest':>9} {'values that':>13}")
        click.echo(f"  {'':36} {'px':>9} {'px':>9} {'of eyes':>9} {'differ':>13} {'seconds':>8}  features seen")
        for emulated, python in interpreters.items():
            if emulated.part and arm64:
                # The emulator's -L finds this file before the host's.
                (arm64 / "proc").mkdir(exist_ok=True)
                (arm64 / "proc/cpuinfo").write_text(ARM_CPUINFO.format(part=emulated.part))
            try:
                answer = run(python, model, folder, emulated.cpu)
                if answer.features != emulated.features:
                    played = f"QEMU plays '{answer.features}', not '{emulated.features}'"
                    raise RuntimeError(f"{played}: use another (7.2 does)")
            except RuntimeError as error:
                click.echo(f"{emulated.name}: {error}", err=True)
                continue
            click.echo(f"  {emulated.name:36} {difference(native, answer, contract)}")
            done += 1
    return done


def difference(native: Answer, answer: Answer, contract: Contract) -> str:
    """Say how far two answers lie apart: pixels of the crop, share of the eyes' distance, values, seconds, features."""
    shape = (len(native.output), contract.landmarks.num_landmarks, 2)
    truth, found = (each.output.reshape(shape).astype(float) * contract.input_size for each in (native, answer))
    distances = np.linalg.norm(found - truth, axis=2)
    first, second = contract.landmarks.normalizing_points
    eyes = np.linalg.norm(truth[:, first] - truth[:, second], axis=1)
    changed = f"{np.count_nonzero(native.output != answer.output)}/{native.output.size}"
    return (
        f"{distances.max():9.4f} {distances.mean():9.4f} {(distances / eyes[:, None]).max():9.2%} {changed:>13} "
        f"{answer.seconds:8.2f}  {answer.features}"
    )


def run(python: list[str], model: Path, folder: Path, cpu: str = "") -> Answer:
    """Run the model on ``input.npy``; a RuntimeError holds the failed process's last words in one line."""
    # Nothing of the host's environment: its library paths and Python settings mean nothing to another processor.
    environment = {"PATH": os.defpath, "HOME": str(folder), "QEMU_CPU": cpu}
    files = [str(path) for path in (model.resolve(), folder / "input.npy", folder / "output.npy")]
    try:
        # The folder is the working directory too: a crashing emulator drops its core there.
        result = subprocess.run(  # noqa: S603, the commands are this file's own
            [*python, "-s", "-c", PROGRAM, *files],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
            env=environment,
            cwd=folder,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"the run failed: {error}") from error
    if result.returncode:
        words = [line for line in result.stderr.splitlines() if line.strip() and "warning" not in line.lower()]
        raise RuntimeError(f"the run failed: {words[-1] if words else f'exit status {result.returncode}'}")
    told = json.loads(result.stdout.splitlines()[-1])
    return Answer(np.load(folder / "output.npy"), " ".join(told["features"]), told["seconds"])


if __name__ == "__main__":
    main()
