"""Imports point down, from floor to floor, and never in a circle."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from configs import base

ROOT = Path(__file__).parents[1]
FLOORS = [  # From the top down.
    ("launch", "configs"),
    ("__init__",),  # The package's own two functions.
    ("commands",),
    ("tasks",),
    ("reports", "training"),
    ("evaluation",),
    ("augment",),
    ("data", "models", "cohort", "geometry", "losses", "config", "buckets"),
    ("errors", "files"),
]
SIDEWAYS = {("data", "geometry"), ("data", "cohort"), ("files", "errors")}
SIDEWAYS |= {("launch", "configs")}
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = [
    *(ROOT / "medjax").rglob("*.py"),
    *(ROOT / "configs").glob("*.py"),
    ROOT / "launch.py",
]


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path): path for path in FILES}


def room_of(module):
    parts = module.split(".")
    if parts[0] != "medjax":
        return parts[0]
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path):
    """The project's own modules that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name in MODULES}


FIELDS = {*base.classification(), *base.segmentation()}
GRAPH = {module: imports_of(path) - {module} for module, path in MODULES.items()}


def test_every_room_has_a_floor():
    assert {room_of(module) for module in MODULES} <= FLOOR.keys()


def test_no_import_points_up_or_across():
    for module, imported in GRAPH.items():
        for name in imported:
            here, there = room_of(module), room_of(name)
            if here != there and (here, there) not in SIDEWAYS:
                assert FLOOR[here] < FLOOR[there], f"{module} imports {name}"


def test_there_are_nine_floors_at_most():
    assert len(FLOORS) <= 9


def test_only_tasks_read_the_fields_of_a_config():
    readers = set()
    for path in (ROOT / "medjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in FIELDS:
                holder = node.value
                name = getattr(holder, "id", getattr(holder, "attr", None))
                if name in ("config", "configs") and path.parent.name != "tasks":
                    readers.add(f"{path.relative_to(ROOT)}: {ast.unparse(node)}")
    for path in (ROOT / "medjax").rglob("*.*"):  # Pages too.
        if path.suffix in (".py", ".html", ".md") and path.parent.name != "tasks":
            text = path.read_text()
            read = re.findall(r"\bconfigs?\[\"(\w+)|\{[{%][^}]*\bconfig\.(\w+)", text)
            fields = FIELDS & {name for pair in read for name in pair}
            readers |= {f"{path.relative_to(ROOT)}: {x}" for x in fields}
    assert not readers


def test_the_kind_of_task_is_asked_in_the_room_of_tasks_alone():
    asked = {
        str(path.relative_to(ROOT / "medjax"))
        for path in (ROOT / "medjax").rglob("*.py")
        if re.search(r"\bconfig\.task\b", path.read_text())
    }
    # films.py tells findings from classes, within one kind.
    assert asked <= {"tasks/__init__.py", "tasks/films.py"}


def test_there_is_no_circle():
    done, open_ = set(), []

    def visit(module):
        assert module not in open_, f"circle: {[*open_, module]}"
        if module not in done:
            open_.append(module)
            for name in GRAPH[module]:
                visit(name)
            open_.pop()
            done.add(module)

    for module in GRAPH:
        visit(module)
    assert done == set(MODULES)


def test_each_of_these_is_in_one_place():
    step, sliding = "medjax/training/step.py", "medjax/evaluation/sliding.py"
    for pattern, *homes in (
        (r"\bjax\.pmap\b", step),
        (r"\bjax\.shard_map\b", step, sliding),
        (r"^\s*(import|from) orbax", "medjax/training/checkpoint.py"),
        (r"ml_collections import ConfigDict", "medjax/config.py"),
    ):
        users = [p for p in FILES if re.search(pattern, p.read_text(), re.MULTILINE)]
        users = [p for p in users if p.parent.name != "configs"]
        assert {str(p.relative_to(ROOT)) for p in users} == {*homes}
    for path in FILES:
        if re.search(r"^\s*(import|from) flax", path.read_text(), re.MULTILINE):
            assert "models" in path.parts, path


def test_the_house_s_readme_names_every_module():
    text = (ROOT / "medjax/README.md").read_text()
    rooms = re.split(r"^\*\*(\w+)(?:/| the rooms)\*\*", text, flags=re.MULTILINE)[1:]
    named = {
        f"medjax.{room}.{name.replace('/', '.')}".replace(".Beside.", ".")
        for room, part in zip(rooms[::2], rooms[1::2], strict=True)
        for name in re.findall(r"^- `([\w/]+)`:", part, flags=re.MULTILINE)
    }
    modules = {
        module
        for module, path in MODULES.items()
        if module.startswith("medjax.") and path.name != "__init__.py"
    }
    assert named == modules


def test_the_project_holds_what_it_says_and_no_link():
    if shutil.which("git") is None:
        pytest.skip("no git")
    listed = ["git", "-C", str(ROOT), "ls-files", "--stage", "-z"]
    done = subprocess.run(listed, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no checkout: {done.stderr}")
    files = [line.split("\t") for line in done.stdout.strip("\0").split("\0")]
    top = {name.split("/")[0] for _, name in files}
    rooms = {"medjax", "configs", "tests", "launch.py", "pyproject.toml"}
    rooms |= {"README.md", "CHANGELOG.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} == rooms
    assert {mode.split()[0] for mode, _ in files} <= {"100644", "100755"}
