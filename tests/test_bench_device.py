import json
import math
import subprocess
import sys
from pathlib import Path

import bench_device
import pytest

SCRIPT = Path(__file__).with_name("bench_device.py")


@pytest.mark.slow  # A large network and a U-Net are compiled.
def test_every_part_runs_on_a_cpu_at_tiny_sizes(tmp_path):
    out = tmp_path / "device.json"
    parts = [name for name in bench_device.PARTS if name != "densenet121"]
    command = [sys.executable, SCRIPT, "--tiny", f"--out={out}", "--parts", *parts]
    subprocess.run(command, check=True, cwd=tmp_path)
    results = json.loads(out.read_text())
    device = results.pop("device")
    assert device["platform"] == "cpu" and device["peak_tflops"] is None
    assert list(results) == parts
    for name, row in results.items():
        assert all(math.isfinite(x) and x > 0 for x in row.values()), (name, row)
    population = results["population"]
    together, alone = population["updates/s of 8"], population["updates/s alone"]
    assert population["times"] == pytest.approx(together / alone)
    has = results["loader"]["images/s on the device"]
    times = has / results["resnet50"]["train images/s"]
    assert results["loader"]["times resnet50"] == pytest.approx(times)


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
    found = bench_device.peer(*command, platform="gpu", tiny=False)
    assert found["device"] == "--device=cuda" and found["model"] == "unet3d"
    assert found["times train"] == 2 and found["times infer"] == 3
    broken = "unet", row, sys.executable, str(tmp_path / "none.py")
    assert list(bench_device.peer(*broken, platform="cpu", tiny=True)) == ["error"]
    failed = "unet", {"error": "out of memory"}, *command[2:]
    assert "times train" not in bench_device.peer(*failed, platform="gpu", tiny=False)
    assert "times train" not in bench_device.peer(*command, platform="cpu", tiny=True)
