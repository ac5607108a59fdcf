# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import dataclass

import pytest

from fastvq import _config, _files


@dataclass(frozen=True)
class Example:
    steps: int = 1
    rate: float = 0.5
    name: str = "a"
    on: bool = False
    sizes: tuple[int, ...] = ()
    limit: int | None = None


def test_plain_values_become_a_config_and_return():
    values = {"steps": 2, "rate": 3, "name": "b", "on": True, "sizes": [1, 2], "limit": 4}
    config = _config.from_dict(Example, values, where="example")
    assert config == Example(2, 3.0, "b", True, (1, 2), 4)
    assert isinstance(config.rate, float)
    through_json = json.loads(json.dumps(_config.to_dict(config)))
    assert _config.from_dict(Example, through_json, where="example") == config


@dataclass(frozen=True)
class Special(Example):
    depth: int = 1


@dataclass(frozen=True)
class Holder:
    inner: Example
    many: tuple[Example, ...] = ()
    perhaps: Example | None = None


@pytest.mark.parametrize(
    "config",
    [
        Holder(Example(3)),
        Holder(Special(3, depth=2)),
        Holder(Example(), (Special(), Example(4)), Special(sizes=(1, 2))),
    ],
)
def test_a_config_in_a_config_returns_as_the_class_it_was(config):
    through_json = json.loads(json.dumps(_config.to_dict(config)))
    back = _config.from_dict(Holder, through_json, where="holder")
    assert back == config
    assert type(back.inner) is type(config.inner)


def test_a_config_in_a_config_is_by_default_what_the_field_says():
    assert _config.from_dict(Holder, {"inner": {"steps": 2}}, where="h") == Holder(Example(2))
    assert _config.from_dict(Holder, {"inner": Special()}, where="h").inner == Special()


@pytest.mark.parametrize(
    ("inner", "error", "message"),
    [
        ({"kind": "Specal"}, ValueError, "h.inner.kind must be.*did you mean 'Special'"),
        ({"kind": "Holder"}, ValueError, "h.inner.kind must be one of Example, Special, got"),
        ({"step": 1}, ValueError, "key of h.inner must be.*did you mean 'steps'"),
        ({"steps": "1"}, TypeError, "h.inner.steps must be int, got str"),
        ({"depth": 1}, ValueError, "key of h.inner must be one of"),
        (3, TypeError, "h.inner must be Example, got int 3"),
        (None, TypeError, "h.inner must be Example, got NoneType"),
    ],
)
def test_refused_configs_in_a_config(inner, error, message):
    with pytest.raises(error, match=message):
        _config.from_dict(Holder, {"inner": inner}, where="h")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"step": 2}, ValueError, "'step'; did you mean 'steps'"),
        ({"steps": 2.0}, TypeError, "example.steps must be int, got float 2.0"),
        ({"steps": True}, TypeError, "example.steps must be int, got bool True"),
        ({"steps": None}, TypeError, "example.steps must be int, got NoneType"),
        ({"rate": "1"}, TypeError, "example.rate must be float, got str '1'"),
        ({"rate": True}, TypeError, "example.rate must be float, got bool"),
        ({"on": 1}, TypeError, "example.on must be bool, got int 1"),
        ({"sizes": 3}, TypeError, r"example.sizes must be tuple\[int, ...\], got int 3"),
        ({"sizes": [1, "x"]}, TypeError, r"example.sizes\[1\] must be int, got str 'x'"),
        ({"limit": "x"}, TypeError, "example.limit must be int, got str 'x'"),
    ],
)
def test_refused_values(values, error, message):
    with pytest.raises(error, match=message):
        _config.from_dict(Example, values, where="example")


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    _files.write_json(path, {"a": 0.1})
    with pytest.raises(TypeError):
        _files.write_json(path, {"a": object()})
    assert _files.read_json(path) == {"a": 0.1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[1]", "one JSON object")])
def test_refused_json(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        _files.read_json(path)
