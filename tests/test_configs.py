"""The base config declares what functions take, and refuses what isn't declared."""

import importlib
import inspect
from pathlib import Path

import pytest

from configs import base
from medjax.augment import pixel_ops
from medjax.data import sources
from medjax.data.sources import tables, volumes
from medjax.geometry import warp

RECIPES = sorted(
    path.stem
    for path in Path(base.__file__).parent.glob("*.py")
    if path.stem not in ("base", "__init__")
)
SHARED = {"source", "records", "max_quarantined", "tasks"}


def fields(section):
    return {*section.keys()}


def takes(function):
    return {*inspect.signature(function).parameters}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_fields_of_its_base(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    kind = "segmentation" if config.task == "segmentation" else "classification"
    whole = getattr(base, kind)(config.data.source)
    assert fields(config) == fields(whole)
    for section in fields(whole) - {*base.OPEN}:
        if hasattr(whole[section], "keys"):
            assert fields(config[section]) == fields(whole[section])


@pytest.mark.parametrize("field", ["splt", "split.tset", "data.patient", "augment.op"])
def test_a_misspelt_field_of_a_recipe_fails(field):
    *above, last = field.split(".")
    section = base.classification("phantom")
    for name in above:
        section = section[name]
    with pytest.raises(AttributeError, match=last):
        setattr(section, last, 1)


@pytest.mark.parametrize("source", sources.IMAGES)
def test_a_source_s_fields_are_what_its_function_takes(source):
    function = sources.IMAGES[source]
    parameters = {**inspect.signature(function).parameters}
    expected = takes(function) - {"task", "columns", "options"}
    if source in ("table", "volumes"):
        parameters |= inspect.signature(tables.listed).parameters
        expected |= takes(tables.listed)
    if source == "volumes":
        expected |= {"files", *volumes.OPTIONS}
    assert fields(base.data(source)) - SHARED == expected
    for name, parameter in parameters.items():
        if name == "channels" or name not in base.data(source):
            continue  # TFDS: photographs are likelier than films.
        if source != "phantom" and parameter.default is not parameter.empty:
            assert base.data(source)[name] == parameter.default


def test_the_numbers_of_an_op_are_what_it_takes():
    augment = base.classification().augment
    for name in fields(augment) - {"ops", "sided", "allow_unsafe"}:
        op = warp.MOVES.get(name) or getattr(pixel_ops, name)
        assert takes(op) - {"key", "image", "motion"} == fields(augment[name])
