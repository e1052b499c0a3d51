"""The command `export`: a finished run as a folder that jax and numpy alone can run."""

import math
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from chex import Array

from medjax import tasks
from medjax.config import read_config
from medjax.errors import InputError
from medjax.evaluation import bootstrap
from medjax.files import read_json, unfinished, write_json, write_text
from medjax.models import weights
from medjax.reports import report
from medjax.tasks import parts
from medjax.tasks.exported import ExportedModel

PLATFORMS = ("cpu", "cuda", "tpu")
LOAD = "predict_load.txt"
# predict.py: how to call it, and what follows predict_load.txt in it.
SCRIPTS = {
    "classification": (
        "Probabilities and calls of prepared images: predict.py IMAGES.npy OUT.csv",
        "predict_images.txt",
    ),
    "segmentation": (
        "Probabilities of a prepared volume: predict.py VOLUME.npy OUT.npy",
        "predict_volumes.txt",
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
        recipe=parts.recipe(config),
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


def write(program: ExportedModel, out: Path) -> None:
    """Writes the program's modules and weights, task.json and predict.py."""
    path = out / "weights.safetensors"
    weights.write(path, program.weights)
    places, versions = weights.places(path), set()
    for platform in PLATFORMS:
        module = lowered(program, places, platform)
        versions.add(module.calling_convention_version)
        path = out / f"model.{platform}.stablehlo"
        path.write_bytes(module.mlir_module_serialized)
    facts: dict[str, Any] = {
        **program.facts,
        "input": f"b, {', '.join(map(str, program.image))}",
        "dtype": program.dtype,
        "outputs": program.outputs,
        "convention": versions.pop(),
        "jax": jax.__version__,
    }
    write_json(out / "task.json", bootstrap.as_json(facts))
    what, rest = SCRIPTS[program.facts["kind"]]
    parts = [resources.files(__package__).joinpath(name) for name in (LOAD, rest)]
    head = f'"""{what}\n\nNeeds jax and numpy; see README.md.\n"""\n\n'
    write_text(out / "predict.py", head + "".join(part.read_text() for part in parts))


def lowered(
    program: ExportedModel, places: weights.Places, platform: str
) -> jax.export.Exported:
    """The program as StableHLO for any batch; the platform's own operations alone.

    places: of the weights, in the one array [W] float32 that the function takes.
    """
    size = sum(math.prod(shape) for _, shape in places.values())
    arguments = (
        jax.ShapeDtypeStruct((size,), np.float32),
        jax.ShapeDtypeStruct(
            (*jax.export.symbolic_shape("b"), *program.image), program.dtype
        ),
    )

    def answer(numbers: Array, image: Array) -> tuple[Array, ...]:
        arrays = {
            name: numbers[at : at + math.prod(shape)].reshape(shape)
            for name, (at, shape) in places.items()
        }
        return program.answer(arrays, image)

    function = jax.jit(answer, keep_unused=True)
    # Else the module holds the paths of this machine's source files.
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        return jax.export.export(function, platforms=[platform])(*arguments)
    finally:
        jax.config.update(name, limit)
