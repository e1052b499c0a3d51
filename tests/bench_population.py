"""Arms in one program against the same arms one after the other, in one go.

    python tests/bench_population.py [--arms=8] [--steps=200] [--rounds=1]

The quickstart's model and data, half of the arms without class weights and half with
them, each half with seeds 0, 1, ... Every way is a process of its own and does all
that a run does: imports, compilation, training, validation and the test report.
`separate` runs `launch.py train` for one arm after the other: `cold` begins with an
empty compilation cache, which its later arms find filled, `warm` with what `cold` left,
`none` has no cache at all. `population` is `populating.train`, with an empty cache and
with a filled one. The records are prepared beforehand.

Seconds by the clock, and of the processors (user and system of all its processes): where
others use the machine only the latter tell something, and they tell nothing of cores
that lie idle. The table has medians over the rounds, which alternate the ways.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
WAYS = (
    "population cold",
    "separate cold",
    "population warm",
    "separate warm",
    "separate none",
)


def flags(arm: int, records: Path, steps: int) -> list[str]:
    """Of arm number so much."""
    return [
        "--config=configs/quickstart.py",
        f"--config.seed={arm // 2}",
        f"--config.imbalance={('none', 'balanced')[arm % 2]}",
        f"--config.data.records={records}",
        f"--config.train.steps={steps}",
        f"--config.train.evaluate_every={max(steps // 2, 1)}",
        "--config.explore=False",
    ]


def population(arms: int, records: Path, steps: int, out: Path) -> None:
    """This process is the population."""
    sys.path[:0] = [str(ROOT), str(ROOT / "configs")]
    import quickstart

    from medjax.commands import train_population
    from medjax.training import devices

    devices.keep()
    configs = []
    for arm in range(arms):
        config = quickstart.get_config()
        for flag in flags(arm, records, steps)[1:]:
            name, value = flag.removeprefix("--config.").split("=")
            *sections, field = name.split(".")
            part = config[sections[0]] if sections else config
            part[field] = type(part[field])(value) if value != "False" else False
        configs.append(config)
    train_population.use_cores(configs)
    found = train_population.train_arms(
        configs, [out / str(arm) for arm in range(arms)]
    )
    assert all(outcome.finished for outcome in found), found


def measured(way: str, arms: int, records: Path, steps: int, cache: Path) -> tuple:
    """Seconds by the clock and of the processors of all arms in one way."""
    kind, state = way.split()
    environment = dict(os.environ, PYTHONPATH=str(ROOT), XLA_FLAGS="")
    environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    if state == "cold":
        shutil.rmtree(cache, ignore_errors=True)
    if state == "none":
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    with tempfile.TemporaryDirectory() as out:
        commands = [
            [sys.executable, "launch.py", "train", f"--workdir={out}/{arm}"]
            + flags(arm, records, steps)
            for arm in range(arms)
        ]
        if kind == "population":
            asked = {"arms": arms, "steps": steps, "records": records, "child": out}
            commands = [
                [sys.executable, __file__, *(f"--{k}={v}" for k, v in asked.items())]
            ]
        start, before = time.perf_counter(), spent()
        for command in commands:
            done = subprocess.run(
                command,
                check=False,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if done.returncode:
                sys.exit(done.stdout[-5000:])
    return time.perf_counter() - start, spent() - before


def spent() -> float:
    """Seconds of the processors in the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def prepare(records: Path) -> None:
    """Makes the records, and looks for equal images, as the first run would."""
    command = [sys.executable, "launch.py", "prepare", *flags(0, records, 1)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arms", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=WAYS[:4], choices=WAYS)
    parser.add_argument("--records", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return population(asked.arms, asked.records, asked.steps, asked.child)
    with tempfile.TemporaryDirectory() as folder:
        records = asked.records or Path(folder) / "records"
        prepare(records)
        found = {way: [] for way in asked.ways}
        for number in range(asked.rounds):
            for way in asked.ways:
                cache = Path(folder) / way.split()[0]
                one = measured(way, asked.arms, records, asked.steps, cache)
                found[way].append(one)
                load = os.getloadavg()[0]
                print(
                    f"round {number + 1}  {way:16}  {one[0]:7.1f} s  "
                    f"{one[1]:7.1f} s of processors  load {load:.1f}",
                    flush=True,
                )
    print(f"\n{asked.arms} arms, {asked.steps} steps, {os.cpu_count()} cores")
    medians = {
        way: [statistics.median(column) for column in zip(*rows, strict=True)]
        for way, rows in found.items()
    }
    for way, (clock, processors) in medians.items():
        kind, state = way.split()
        line = f"{way:16}  {clock:7.1f} s  {processors:7.1f} s of processors"
        other = medians.get(f"population {'warm' if state == 'warm' else 'cold'}")
        if kind == "separate" and other:
            line += f"  population: {clock / other[0]:.2f} times, "
            line += f"{processors / other[1]:.2f} in processors"
        print(line)


if __name__ == "__main__":
    main()
