"""Whatever a scale or the matrix holds: a plan that makes sense, or one sentence; never a traceback or a hang."""

import copy
import dataclasses
import math
import typing
from datetime import date
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dearkd.errors import InputError
from dearkd.plan import data, model, plan, scale, stage, synthesis, tables, teacher, training
from dearkd.plan.experiments import MATRIX, load
from dearkd.plan.scale import Scale
from dearkd.plan.scale_file import load_scale
from dearkd.ranges import LARGEST, Within
from dearkd.schema import build, to_json

HOSTILE = [
    *(-1, 0, 1, 3, 10**6, 10**12, 10**40, -(10**40), 0x7 << 20_000),
    *(0.5, -0.5, 2.5, 1e-300, 1e300, math.nan, math.inf, -math.inf),
    *(
        "",
        " ",
        "abc",
        "nan",
        "../up",
        "/etc/passwd",
        "a\0b",
        "a\nb",
        "é" * 300,
        "\ud800",
        "<script>",
        "-rf",
        "rand-m9-q5",
    ),
    *(True, False, None, b"bytes", date(2026, 1, 1), {1}),
    *([], [0], [-1], [1, 1], ["a"], [[]], [[0, 0]], [[99, 99]], [math.nan, 1.0], {}, {"a": 1}, {1: 2}, {"": {}}),
]
SPECS = [
    cls
    for module in (data, model, training, teacher, synthesis, stage, scale, plan, tables)
    for cls in vars(module).values()
    if dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__ and cls is not plan.Paths
]


def small_scale():
    """The smoke scale with one of each thing, since the same keys mean the same everywhere."""
    values = to_json(load_scale("smoke"))
    for kind in ("students", "peers"):
        values[kind] = dict(list(values[kind].items())[:1])
    values["data"] = {name: values["data"][name] for name in ("main", "parity")}
    values["teachers"]["again"] = {**values["teachers"]["main"], "training": None}
    values["peers"]["ResNet-18"]["training"] = None
    values["quoted"], values["only"], values["transfer"]["targets"] = {"t1": ["a"]}, [], ["parity"]
    values["transfer"]["titles"] = {"parity": "odd or even"}
    return values


SCALE = [scale.Scale, scale.Student, scale.Diversity, scale.Transfer, scale.Peer, scale.Throughput, scale.Resources]
SCALE += [
    stage.Data,
    stage.Augment,
    stage.Training,
    stage.Rpe,
    stage.Distillation,
    stage.Teacher,
    stage.Phase,
    stage.Synthesis,
]


BOMB = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))


def quickly(examples):
    """A case takes a tenth of a second, so that shrinking one would take minutes."""
    checks = list(HealthCheck)
    return settings(max_examples=examples, phases=[Phase.generate], suppress_health_check=checks)


def places(values, path=()):
    """Path of every value inside, containers included."""
    if path:
        yield path
    for key in values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ():
        yield from places(values[key], (*path, key))


def put(values, path, value):
    changed = copy.deepcopy(values)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def ranges(hint):
    """Every number's type inside a type, with its limits."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated and args[0] in (int, float):
        return [(args[0], args[1:])]
    if hint in (int, float):
        return [(hint, ())]
    return [found for arg in args for found in ranges(arg)]


@pytest.mark.parametrize("cls", SPECS, ids=lambda c: c.__name__)
def test_every_number_of_every_spec_has_a_range(cls):
    """Those that the program itself fills in are exempt: they come from specs that have one."""
    inner = (plan.Run, plan.Labels, plan.Cell)
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        for _, limits in ranges(hint):
            assert cls in inner or any(isinstance(limit, Within) for limit in limits), f"{cls.__name__}.{name}"


def instances(value):
    """A spec and every spec inside it, one of each class."""
    found = {}
    if dataclasses.is_dataclass(value):
        found[type(value)] = value
        value = [getattr(value, f.name) for f in dataclasses.fields(value)]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        found = {**instances(inner), **found}
    return found


@pytest.mark.parametrize("cls", SCALE, ids=lambda c: c.__name__)
def test_no_value_of_any_key_of_a_scale_breaks_out(cls):
    base = to_json(instances(build(Scale, small_scale(), "small"))[cls])
    for i, field in enumerate(dataclasses.fields(cls)):
        refused, values = 0, HOSTILE[i % 3 :: 3] if cls is scale.Scale else HOSTILE  # a whole scale takes 30 ms
        for value in values:
            try:
                built = build(cls, {**base, field.name: value}, "own.yaml")
            except InputError as error:
                assert "own.yaml" in str(error) and len(str(error)) < 600 and "\n" not in str(error), (field, value)
                refused += 1
                continue
            assert build(cls, to_json(built), "again") == built, (field, value)
            if type(value) in (int, float):
                assert math.isfinite(value) and abs(value) <= LARGEST, field
        assert refused > len(values) / 3, f"{field.name} takes nearly anything"


SMALL = {
    "tables": {
        "t1": {
            "title": "t",
            "metric": "top1",
            "also": ["top5"],
            "note": "n",
            "reads": "metrics",
            "paper": {"file": "table1.csv", "value": "top1"},
            "columns": ["mhca"],
            "gap_to": "b",
            "defaults": {"method": "dearkd", "student": "Ti"},
            "rows": [{"label": "a", "mhca": False, "rpe.drop": 0.2, "paper": {"row": 1}}, {"label": "b", "long": True}],
        },
        "t2": {
            "title": "t",
            "metric": "top1",
            "across": {"key": "fraction", "paper": "train_pct"},
            "rows": [{"label": "a", "method": "deit", "student": "Ti", "training.augment": {"mixup": 0.1}}],
        },
        "t4": {
            "title": "t",
            "metric": "top1",
            "across": {"key": "target", "paper": "dataset", "values": ["cifar10"]},
            "rows": [{"label": "a", "method": "transfer", "student": "Ti", "pretraining": "dearkd"}, {"label": "b"}],
        },
        "t5": {
            "title": "t",
            "metric": "top1",
            "across": {"key": "student", "paper": "student", "values": {"Ti": "DeiT-Ti"}},
            "rows": [{"label": "a", "method": "dearkd", "images": "df_dearkd", "architecture": "resnet18"}],
        },
        "t6": {"title": "t", "metric": "lpips", "reads": "diversity", "rows": [{"label": "a", "images": "real"}]},
    },
    "figures": {
        "f1": {"title": "t", "kind": "accuracy_against_data", "table": "t2"},
        "f4": {
            "title": "t",
            "kind": "attention_distance",
            "reads": "curves",
            "rows": [{"label": "a", "method": "deit", "student": "Ti", "fraction": 50}],
        },
    },
}


SMOKE = load_scale("smoke")


def resolved(scale, values, folder):
    """The plan of a matrix, or None where it is refused with a sentence."""
    path = folder / "experiments.yaml"
    try:
        path.write_text(values if isinstance(values, str) else yaml.dump(values), encoding="utf-8")
    except (ValueError, yaml.YAMLError):  # yaml writes no such thing
        return None
    try:
        return load(scale, path)
    except InputError as error:
        assert len(str(error)) < 900 and "\n" not in str(error)
        return None


def test_the_small_matrix_is_one(tmp_path):
    assert len(resolved(SMOKE, SMALL, tmp_path).tables) == len(SMALL["tables"])


@pytest.mark.parametrize("method", [[0], {"a": 1}, {"": {}}, 3, True, "deitt"])
def test_a_method_that_is_none_is_a_sentence(tmp_path, method):
    assert resolved(SMOKE, put(SMALL, ("tables", "t2", "rows", 0, "method"), method), tmp_path) is None


@quickly(50)
@given(path=st.sampled_from(list(places(SMALL))), value=st.sampled_from(HOSTILE))
def test_no_value_of_any_key_of_the_matrix_breaks_out(tmp_path_factory, path, value):
    found = resolved(SMOKE, put(SMALL, path, value), tmp_path_factory.mktemp("fuzz"))
    for name in (*found.runs, *found.tables, *found.figures) if found else ():
        assert "/" not in name and len(name.encode()) < 250 and name.isprintable()


@quickly(20)
@given(data=st.data())
def test_several_hostile_values_at_once(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    values, matrix = small_scale(), SMALL
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            values = put(values, data.draw(st.sampled_from(list(places(values)))), data.draw(st.sampled_from(HOSTILE)))
        else:
            matrix = put(matrix, data.draw(st.sampled_from(list(places(matrix)))), data.draw(st.sampled_from(HOSTILE)))
    path = folder / "own.yaml"
    try:
        path.write_text(yaml.dump(values), encoding="utf-8")
        base = load_scale(str(path))
    except (InputError, ValueError):
        base = SMOKE
    resolved(base, matrix, folder)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"summary: Bl\xfcten\n", "line 1 is not UTF-8; save it as UTF-8"),
        (b"name: a\nname: b\n", "line 2: the key 'name' is there twice"),
        (b"training: {epochs: 3, lr: 1, epochs: 4}\n", "line 1: the key 'epochs' is there twice"),
        (b"a: &a {<<: {x: 1}, y: *a}\n", "contains itself"),
        (b"a: &a [*a]\n", "contains itself"),
        (BOMB, "aliases"),
        ("a: " + "[" * 5000, "not valid YAML|nested more than"),
        ("a: " + "[" * 100 + "]" * 100, "values are nested more than 50 deep"),
        ("seeds: [" + "9" * 6000 + "]", "not valid YAML|seeds"),
        (
            "extends: digits\nname: own\nseeds: [0x" + "f" * 6000 + "]",
            "seeds is a number of thousands of digits|seeds: ",
        ),
        ("a: !!int x", "not valid YAML"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("? [1, 2]\n: 3\n", "not valid YAML|unknown key"),
        ("1: 2\n", "unknown key '1'"),
        ("extends: 3\nname: own\n", "extends: expected the name of a scale or a .yaml file, got 3"),
        ("extends: [digits]\nname: own\n", "extends: expected the name of a scale"),
        ("extends: digit\nname: own\n", "extends: unknown scale 'digit'; did you mean 'digits'"),
        ("", "expected a mapping"),
        ("\ufeffseed: 3", "unknown key 'seed'"),
    ],
    ids=range(21),
)
def test_files_that_are_no_scale(tmp_path, content, message):
    path = tmp_path / "own.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as error:
        load_scale(str(path))
    assert "own.yaml" in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("name", ["", "\0", "a" * 5000, "..", "/", 7, None, ["digits"], "/dev/zero"])
def test_names_that_are_no_scale(name):
    with pytest.raises(InputError):
        load_scale(name)


def test_a_folder_called_like_a_scale_is_none(tmp_path):
    (tmp_path / "own.yaml").mkdir()
    with pytest.raises(InputError, match=r"own\.yaml is a folder, not a scale; no \.yaml file is there"):
        load_scale(str(Path(tmp_path, "own.yaml")))


def test_the_matrix_is_what_the_fuzz_is_small_of():
    """Every key of the project's own matrix is one that the small one has, but for switches and dotted keys."""
    own, small = yaml.safe_load(MATRIX.read_text()), SMALL
    for kind in ("tables", "figures"):
        keys = {key for entry in own[kind].values() for key in entry}
        assert keys - {key for entry in small[kind].values() for key in entry} <= {"delta_to"}
