import functools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import bench_device
import bench_step
import jax
import jax.numpy as jnp
import pytest

from medjax.models import architectures

SCRIPT = Path(__file__).with_name("bench_device.py")


@pytest.mark.slow  # Large networks and a U-Net are compiled.
def test_every_part_runs_on_a_cpu_at_tiny_sizes(tmp_path):
    out = tmp_path / "device.json"
    command = [sys.executable, SCRIPT, "--tiny", f"--out={out}", "--seconds=3000"]
    four = os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
    done = subprocess.run(
        command, check=True, cwd=tmp_path, env=four, capture_output=True, text=True
    )
    results = json.loads(out.read_text())
    device = results.pop("device")
    assert device["platform"] == "cpu" and device["peak_tflops"] is None
    assert device["jaxlib"] and device["platform_version"]
    results = {name: row for name, row in results.items() if "peer" not in name}
    assert list(results) == list(bench_device.PARTS)
    for name, row in results.items():
        assert all(math.isfinite(x) and x > 0 for x in row.values()), (name, row)
    population = results["population"]
    for runs in (2, 8):
        times = population[f"updates/s of {runs}"] / population["updates/s of 1"]
        assert population[f"times of {runs}"] == pytest.approx(times)
    resnet = results["resnet50"]["train images/s"]
    has = results["loader"]["images/s on the device"]
    assert results["loader"]["times resnet50"] == pytest.approx(has / resnet)
    slower = results["deterministic"]["train images/s"]
    assert results["deterministic"]["times resnet50"] == pytest.approx(slower / resnet)
    lines = done.stdout.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("device   "))
    assert len(lines) - first == len(device) + sum(map(len, results.values()))


def test_what_no_time_is_left_for_is_left_out():
    def last(seconds, code):
        until = time.monotonic() + seconds
        return bench_device.last_line(sys.executable, "-c", code, until=until)

    assert last(60, "print('rest'); print('{\"x\": 1}')") == {"x": 1}
    assert last(60, "raise ValueError('why')") == {"error": "ValueError: why"}
    assert list(last(0.2, "import time; time.sleep(60)")) == ["left out"]
    assert last(-5, "print('{}')") == {"left out": "0 s were left"}


def test_the_table_has_a_line_for_each_number_in_columns():
    rows = {"a": {"images/s": 1234.5678, "s": 2}, "b": {"left out": "0 s were left"}}
    lines = bench_device.table(rows).splitlines()
    assert [line[:18].strip() for line in lines] == ["a", "", "b"]
    assert [line[18:42].strip() for line in lines] == ["images/s", "s", "left out"]
    assert [line[42:] for line in lines] == ["1,235", "2", "0 s were left"]


def test_operations_are_those_of_the_literature():
    """ResNet-50: 4.089e9 multiplications and additions of an image, by torchvision."""
    model = architectures.resnet50(1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), image)
    apply = functools.partial(model.apply, train=False)
    once = bench_step.operations(apply, variables, image)
    assert once == pytest.approx(2 * 4.089e9, rel=1e-3)

    def total(params, variables, image):
        variables = {**variables, "params": params}
        return model.apply(variables, image, train=True, mutable=["batch_stats"])[0][
            0, 0
        ]

    gradient = jax.grad(total)
    trained = bench_step.operations(gradient, variables["params"], variables, image)
    first = 2 * 112 * 112 * 64 * 7 * 7 * 3  # Nothing asks for the image's gradient.
    assert trained == pytest.approx(3 * once - first, rel=1e-3)


def test_operations_count_loops_and_devices():
    def loop(x):
        return jax.lax.scan(lambda x, _: (x @ x, x @ x), x, length=5)[0]

    square = jnp.ones((4, 4))
    assert bench_step.operations(loop, square) == 2 * 5 * 2 * 4**3
    each = jax.pmap(jnp.matmul, in_axes=(None, 0))
    assert bench_step.operations(each, square, jnp.ones((4, 4, 4))) == 2 * 4**3


def test_the_peer_s_steps_stand_beside_ours(tmp_path):
    script = tmp_path / "train_step.py"
    script.write_text(
        "import json, sys\n"
        "batch = float(sys.argv[2].removeprefix('--batch='))\n"
        "print(json.dumps({'model': sys.argv[1], 'device': sys.argv[4],\n"
        "    'train_samples_per_s': batch, 'infer_samples_per_s': 2 * batch}))\n"
    )
    row = {"train patches/s": 8.0, "infer patches/s": 24.0, "issue_ms": 1.0}
    command = "unet", row, sys.executable, str(script)
    soon = {"until": time.monotonic() + 60}
    found = bench_device.peer(*command, platform="gpu", tiny=False, **soon)
    assert found["device"] == "--device=cuda" and found["model"] == "unet3d"
    assert found["times train"] == 2 and found["times infer"] == 3
    broken = "unet", row, sys.executable, str(tmp_path / "none.py")
    found = bench_device.peer(*broken, platform="cpu", tiny=True, **soon)
    assert list(found) == ["error"]
    failed = "unet", {"error": "out of memory"}, *command[2:]
    found = bench_device.peer(*failed, platform="gpu", tiny=False, **soon)
    assert "times train" not in found
    found = bench_device.peer(*command, platform="cpu", tiny=True, **soon)
    assert "times train" not in found
