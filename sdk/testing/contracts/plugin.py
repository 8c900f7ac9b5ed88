"""What every plugin must hold: a true manifest, a strict config, planning that is pure and free of torch."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from stackloom.core.catalogue import PluginRecord
from stackloom.core.config import ComponentConfig
from stackloom.core.cost import Cost, Work
from stackloom.core.devices import DTYPE_BYTES, find_device
from stackloom.core.errors import ConfigError
from stackloom.core.fit import Fit, FitContext
from stackloom.core.loading import load_config
from stackloom.core.shapes import ModelShape
from stackloom.core.slots import slots
from stackloom.core.touch import Touch
from stackloom.testing import lookup
from stackloom.testing.tiny import tiny_shape

HEAVY = ("torch", "triton", "ray", "transformers")
PLANNING = """
import importlib, json, sys
module, name, options, work, context, heavy = json.load(sys.stdin)
config = getattr(importlib.import_module(module), name).model_validate(options)
from stackloom.core.cost import Work
from stackloom.core.fit import FitContext
context = FitContext.model_validate(context)
config.fit(context), config.cost(Work.model_validate(work)), config.touches(context)
if hasattr(config, "shape"):
    config.shape()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} & set(heavy))))
"""


class PluginContract:
    """Base of the slots' contracts. A subclass whose name starts with `Test` is collected by pytest.

    Attributes:
        plugin: id of the plugin under test.
        options: its options; what it reads from files is written by `files`.

    Example:
        >>> class TestMySGD(OptimizerContract):
        ...     plugin = "optimizer.my-sgd"
        ...     options = {"lr": 0.1}
    """

    is_contract = True
    plugin: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    @classmethod
    def files(cls, folder: Path) -> dict[str, Any]:
        """Write what the plugin reads into `folder` and return the options that name it.

        The default asks the plugin: `sample(folder)` in a `sample.py` beside its plugin.toml, if there is one.
        """
        module = f"{cls.record().package}.sample"
        found = importlib.util.find_spec(module)
        return dict(importlib.import_module(module).sample(folder)) if found else {}

    @classmethod
    def record(cls) -> PluginRecord:
        """Return the plugin under test."""
        return lookup.record(cls.plugin)

    @classmethod
    def all_options(cls) -> dict[str, Any]:
        """Return `options` together with those of `files`, which are written once per class and yield to `options`."""
        return {**_written(cls), **cls.options}  # type: ignore[arg-type]  # mypy doubts that a class has a hash

    @classmethod
    def config(cls, **changes: Any) -> Any:
        """Return the plugin's config with `options`, some of them changed."""
        return lookup.make_config(cls.record(), {**cls.all_options(), **changes})

    @classmethod
    def component(cls, *dependencies: Any, **changes: Any) -> Any:
        """Build the component under test."""
        return cls.config(**changes).build(*dependencies)

    @classmethod
    def shape(cls) -> ModelShape:
        """Return the model that planning is asked about."""
        return tiny_shape()

    @classmethod
    def work(cls, dtype: str = "float32", **changes: Any) -> Work:
        """Return one step on this machine's CPU: three sequences of 17 tokens, everything trainable."""
        shape = changes.pop("model", None) or cls.shape()
        sizes = {
            "model": shape,
            "device": find_device("cpu"),
            "dtype": dtype,
            "sequences": 3,
            "sequence_length": 17,
            "trainable": shape.parameters,
        }
        return Work.model_validate(sizes | changes)

    @classmethod
    def context(cls, dtype: str = "float32") -> FitContext:
        """Return the place that `fit` and `touches` are asked about."""
        stage = slots()[cls.plugin.partition(".")[0]].sits_in[0]
        return FitContext(
            model=cls.shape(), device=find_device("cpu"), dtype=dtype, stage=stage, neighbours=(cls.plugin,)
        )

    @classmethod
    def widest(cls) -> torch.dtype:
        """Return the most precise dtype that the manifest lists, for identities."""
        names = cls.record().manifest.can.dtypes
        return torch_dtype(max(names, key=lambda name: -torch.finfo(torch_dtype(name)).eps))

    def test_manifest_is_of_this_slots_version(self) -> None:
        manifest, slot = self.record().manifest, slots()[self.plugin.partition(".")[0]]
        assert manifest.slot_api == slot.api

    def test_features_are_the_slots(self) -> None:
        manifest = self.record().manifest
        assert set(manifest.can.features) <= slots()[manifest.slot].features.keys()

    def test_dtypes_are_known(self) -> None:
        assert set(self.record().manifest.can.dtypes) <= DTYPE_BYTES.keys()
        assert self.record().manifest.can.dtypes

    def test_every_option_says_what_it_does_and_where_its_default_comes_from(self) -> None:
        for name, field in load_config(self.record()).model_fields.items():
            extra = field.json_schema_extra
            assert field.description, name
            assert isinstance(extra, dict), name
            assert extra["source"] in ("paper", "official code", "inferred", "house"), name
        assert json.dumps(load_config(self.record()).model_json_schema())

    def test_unknown_option_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="unknown key"):
            self.config(no_such_option_0=1)

    def test_nan_and_infinity_are_refused(self) -> None:
        for name, field in load_config(self.record()).model_fields.items():
            if field.annotation in (float, float | None):
                for value in (float("nan"), float("inf")):
                    with pytest.raises(ConfigError):
                        self.config(**{name: value})

    def test_config_cannot_be_changed(self) -> None:
        config = self.config()
        for name in type(config).model_fields:
            with pytest.raises(ValueError, match="frozen"):
                setattr(config, name, getattr(config, name))

    def test_config_survives_json(self) -> None:
        written = _plain(self.config())
        again = load_config(self.record()).model_validate_json(json.dumps(written))
        assert _plain(again) == written
        if not list(again.nested()):  # a nested component's cost is known after planning only
            assert again.cost(self.work()) == self.config().cost(self.work())

    def test_planning_imports_no_torch(self) -> None:
        manifest = self.record().manifest
        module, _, name = manifest.config.partition(":")
        question = [
            f"{self.record().package}.{module}",
            name,
            _plain(self.config()),
            self.work().model_dump(mode="json"),
            self.context().model_dump(mode="json"),
            HEAVY,
        ]
        done = subprocess.run(
            [sys.executable, "-c", PLANNING],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == []

    def test_planning_is_pure(self, dtype: str) -> None:
        config, work, context = self.config(), self.work(dtype), self.context(dtype)
        before, draws = config.model_dump_json(), random.getstate()
        first, second = (((config.fit(context)), config.cost(work), config.touches(context)) for _ in range(2))
        assert first == second
        assert config.model_dump_json() == before
        assert random.getstate() == draws
        fits, cost, touches = first
        assert all(isinstance(fit, Fit) for fit in (fits if isinstance(fits, list) else [fits]))
        assert isinstance(cost, Cost)
        assert all(isinstance(touch, Touch) for touch in touches)

    def test_fits_where_its_manifest_says(self, dtype: str) -> None:
        answer = self.config().fit(self.context(dtype))
        assert [fit.reason for fit in (answer if isinstance(answer, list) else [answer]) if not fit.ok] == []

    def test_component_is_there(self) -> None:
        assert callable(self.config().component_class())


@cache
def _folder_of(contract: type[PluginContract]) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="contract-")  # removed when the process ends


@cache
def _written(contract: type[PluginContract]) -> dict[str, Any]:
    return contract.files(Path(_folder_of(contract).name))  # type: ignore[arg-type]


def _plain(config: ComponentConfig) -> dict[str, Any]:
    """Return the options that were set as JSON data, nested components as references."""
    data = config.as_ref().model_dump(mode="json")
    del data["use"]
    return data


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype of that name.

    Example:
        >>> torch_dtype("bfloat16")
        torch.bfloat16
    """
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found
