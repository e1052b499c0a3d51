"""The command `export`: a finished run as a folder that jax and numpy alone can run."""

import shutil
from pathlib import Path
from typing import Any

import jax

from medjax import tasks
from medjax.config import as_json, read_config
from medjax.errors import InputError
from medjax.evaluation.bootstrap import as_json as numbers
from medjax.files import read_json, unfinished, write_json, write_text
from medjax.models import weights
from medjax.reports import report
from medjax.tasks.exported import Program

PLATFORMS = ("cpu", "cuda", "tpu")
# Exported.serialize needs another package, flatbuffers, on both sides. So the StableHLO
# alone is written, and predict.py puts it in the place of a function of these shapes.
LOAD = '''\
"""{what}

Needs jax and numpy; see README.md.
"""

import dataclasses, itertools, json, math, pathlib, sys
import jax, jax.export
import numpy as np

here = pathlib.Path(__file__).parent
task = json.loads((here / "task.json").read_text())
data = (here / "weights.safetensors").read_bytes()
start = 8 + int.from_bytes(data[:8], "little")
weights = {{
    name: np.frombuffer(data, "<f4", math.prod(x["shape"]), start + x["data_offsets"][0]).reshape(x["shape"])
    for name, x in json.loads(data[8:start]).items()
}}
platform = {{"gpu": "cuda"}}.get(jax.default_backend(), jax.default_backend())
shape, dtype = task["input"]
batch = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), *shape), dtype)
blank = jax.jit(lambda weights, x: [jax.numpy.zeros((x.shape[0], *s), d) for s, d in task["outputs"]], keep_unused=True)
module = dataclasses.replace(
    jax.export.export(blank, platforms=[platform])(weights, batch),
    mlir_module_serialized=(here / f"model.{{platform}}.stablehlo").read_bytes(),
    calling_convention_version=task["calling_convention"],
)
model = jax.jit(module.call)
'''
IMAGES = """
images = np.load(sys.argv[1])
images = np.broadcast_to(images, (len(images), *shape))  # Grey in all channels.
answers = [model(weights, images[i : i + 32]) for i in range(0, len(images), 32)]
probability, call = map(np.concatenate, zip(*answers))
names = [*task["names"], *(f"{name}_call" for name in task["names"])]
np.savetxt(sys.argv[2], np.hstack([probability, call]), "%.9g", ",", header=",".join(names), comments="")
"""
VOLUMES = '''
def windows(size, width):
    """Starts of the windows along an axis, and each one's weight at its voxels."""
    step = max(1, int(width * (1 - task["window"]["overlap"]) + 1e-6))
    count = -(-(size - width) // step) + 1
    first = np.rint(np.linspace(0, size - width, count)).astype(int)
    away = (np.arange(width) - (width - 1) / 2) / (width / 8)
    weight = np.tile(np.exp(-(away**2) / 2), (count, 1))
    place = first[:, None] + np.arange(width)
    return list(zip(first, weight / np.bincount(place.ravel(), weight.ravel())[place]))

volume = np.load(sys.argv[1]).astype(np.float32)
reads, answers = task["window"]["reads"], task["window"]["answers"]
half, size = (reads[0] - answers[0]) // 2, volume.shape[:3]
space = np.maximum(size, answers)
before = (space - size) // 2
volume = np.pad(volume, [(half, half), (0, 0), (0, 0), (0, 0)], "edge")
volume = np.pad(volume, [*zip(before, space - before - size), (0, 0)])
probability = np.zeros((*space, len(task["names"])), np.float32)
for corner in itertools.product(*map(windows, space.tolist(), answers)):
    (d, h, w), (wd, wh, ww) = zip(*corner)
    patch = volume[d : d + reads[0], h : h + reads[1], w : w + reads[2]]
    answer = np.asarray(model(weights, patch[None])[0][0])
    weight = (wd[:, None, None] * wh[:, None] * ww)[..., None]
    probability[d : d + answers[0], h : h + answers[1], w : w + answers[2]] += weight * answer
np.save(sys.argv[2], probability[tuple(slice(b, b + n) for b, n in zip(before, size))])
'''
SCRIPTS = {
    "classification": (
        "Probabilities and calls of prepared images: predict.py IMAGES.npy OUT.csv",
        IMAGES,
    ),
    "segmentation": (
        "Probabilities of a prepared volume: predict.py VOLUME.npy OUT.npy",
        VOLUMES,
    ),
}


def export(folder: Path, out: Path) -> None:
    """Writes what others need to run a finished run, without medjax.

    Raises:
      InputError: the run isn't finished, or `out` isn't empty.
    """
    config = read_config(folder)
    if out.is_file() or out.exists() and any(out.iterdir()):
        raise InputError(f"--out={out}: is there and isn't empty: give a new folder")
    task = tasks.of(config)
    run = task.finished(folder)
    results = None
    if (folder / "report.json").exists():
        results = read_json(folder / "report.json")
        if results["checkpoint"] != run.number:
            raise InputError(
                f"{folder}: report.json is of checkpoint {results['checkpoint']}, not "
                f"{run.number}: evaluate the run again first"
            )
    program = task.program(run)
    card = report.exported(
        results,
        program.facts,
        config=as_json(config),
        environment=read_json(folder / "environment.json"),
    )
    partial = unfinished(out.absolute())
    partial.mkdir(parents=True)
    try:
        write(program, partial)
        write_text(partial / "README.md", card)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"exported: {out} ({size:.1f} MB; see README.md)")


def write(program: Program, out: Path) -> None:
    """Writes the program's modules and weights, task.json and predict.py."""
    versions = set()
    for platform in PLATFORMS:
        module = lowered(program, platform)
        versions.add(module.calling_convention_version)
        path = out / f"model.{platform}.stablehlo"
        path.write_bytes(module.mlir_module_serialized)
    weights.write(out / "weights.safetensors", program.weights)
    facts: dict[str, Any] = {
        **program.facts,
        "input": program.image,
        "outputs": program.outputs,
        "calling_convention": versions.pop(),
        "jax": jax.__version__,
    }
    write_json(out / "task.json", numbers(facts))
    what, rest = SCRIPTS[program.facts["kind"]]
    write_text(out / "predict.py", LOAD.format(what=what) + rest)


def lowered(program: Program, platform: str) -> jax.export.Exported:
    """The program as StableHLO for any batch; the platform's own operations alone."""
    shape, dtype = program.image
    image = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), *shape), dtype)
    function = jax.jit(program.answer, keep_unused=True)
    # Else the module holds the paths of this machine's source files.
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        export = jax.export.export(function, platforms=[platform])
        return export(program.weights, image)
    finally:
        jax.config.update(name, limit)
