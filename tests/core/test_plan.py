from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from stackloom.core import devices
from stackloom.core.devices import device_table, find_device
from stackloom.core.errors import ArtifactError, ConfigError, ErrorGroup, PluginError
from stackloom.core.plan import Plan
from stackloom.core.planning import plan, seed_for
from stackloom.core.ref import use
from stackloom.core.stack import StackSpec, StageSpec


def stack(
    *,
    optimizer: Any = "optimizer.plain",
    model: Any = "model.tiny",
    stages: int = 1,
    train: dict[str, Any] | None = None,
    **frame: Any,
) -> StackSpec:
    options = {"optimizer": optimizer, "data": "data.lines", "steps": 10, "sequence_length": 64} | (train or {})
    return StackSpec.from_data({"name": "test", "model": model, "stages": [{"train": options}] * stages, **frame})


def misfits(made: Plan) -> list[str]:
    return [str(problem) for problem in made.problems()]


REPLACE = """
        def touches(self, ctx):
            return [Touch(nodes=("model.layers.*.self_attn.q_proj",), mode="replace")]
"""
REWRITE = """
        def touches(self, ctx):
            return [Touch(nodes=("model.layers.1.self_attn",), mode="rewrite")]
"""


def test_a_fitting_stack_has_no_problems_and_every_pick_is_pinned(site) -> None:
    made = plan(stack(), site, device="h100")
    assert made.ok
    assert [part.path for part in made.components()] == ["model", "stages[0].train.data", "stages[0].train.optimizer"]
    assert all(len(part.digest) == 64 and part.distribution.startswith("dist-") for part in made.components())


def test_planning_is_a_pure_function(site) -> None:
    assert plan(stack(), site, device="a100") == plan(stack(), site, device="a100")


def test_a_plan_survives_json(site, tmp_path: Path) -> None:
    made = plan(stack(), site, device="h100")
    path = tmp_path / "plan.json"
    path.write_text(made.to_json())
    assert Plan.from_file(path) == made
    assert Plan.from_file(path).digest == made.digest


@pytest.mark.parametrize("content", ["", "{}", "[]", "\x00", '{"version": 99}'])
def test_a_file_that_is_no_plan_is_an_artifact_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match="not a plan"):
        Plan.from_file(path)


def test_an_unknown_option_names_its_path_and_suggests(site) -> None:
    with pytest.raises(ConfigError, match="did you mean 'lr'") as caught:
        plan(stack(optimizer=use("optimizer.plain", lrr=0.1)), site)
    assert caught.value.where == "stages[0].train.optimizer.lrr"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fast", "valid number"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (-1, "greater than 0"),
        (None, "valid number"),
    ],
)
def test_a_wrong_value_names_its_path(site, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plan(stack(optimizer=use("optimizer.plain", lr=value)), site)
    assert caught.value.where == "stages[0].train.optimizer.lr"


def test_an_unknown_stage_option_suggests(site) -> None:
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        plan(stack(train={"step": 3}), site)


def test_a_plugin_that_is_not_installed_suggests_its_neighbour(site) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'optimizer\.plain'") as caught:
        plan(stack(optimizer="optimizer.plian"), site)
    assert caught.value.where == "stages[0].train.optimizer.use"


def test_a_plugin_of_another_slot_is_refused(site) -> None:
    with pytest.raises(ConfigError, match="is no optimizer plugin"):
        plan(stack(optimizer="data.lines"), site)


def test_errors_of_several_components_come_at_once(site) -> None:
    with pytest.raises(ErrorGroup) as caught:
        plan(stack(optimizer=use("optimizer.plain", lr=-1, x=2), train={"data": "data.nothing"}), site)
    assert {error.where for error in caught.value.errors} == {
        "stages[0].train.optimizer.lr",
        "stages[0].train.optimizer.x",
        "stages[0].train.data.use",
    }


def test_a_nested_reference_is_resolved_with_its_path(site) -> None:
    site.add("attention.mix")
    made = plan(stack(model=use("model.tiny", attention={"use": "attention.mix", "lr": 0.5})), site)
    assert [part.path for part in made.model] == ["model", "model.attention"]
    assert made.model[0].options["attention"] == {"use": "attention.mix", "lr": 0.5}
    with pytest.raises(ConfigError) as caught:
        plan(stack(model=use("model.tiny", attention={"use": "attention.mix", "lr": "?"})), site)
    assert caught.value.where == "model.attention.lr"


@pytest.mark.parametrize("order", list(itertools.permutations(["optimizer.replaces", "data.rewrites"])))
def test_two_plugins_on_one_node_clash_by_name_whatever_their_order(site, order: tuple[str, str]) -> None:
    site.add("optimizer.replaces", body=REPLACE)
    site.add("data.rewrites", body=REWRITE)
    fields = {name.partition(".")[0]: name for name in order}
    made = plan(stack(train=fields), site)
    assert not made.ok
    (clash,) = made.clashes
    assert clash.plugins == ("data.rewrites", "optimizer.replaces")
    assert "model.layers.*.self_attn.q_proj" in clash.where


def test_a_declared_conflict_names_both_plugins_and_the_reason(site) -> None:
    site.add(
        "optimizer.shy",
        manifest="""
        [can]
        dtypes = ["bfloat16"]
        [[conflicts]]
        with = "data.*"
        reason = "it reads its own data"
    """,
    )
    (clash,) = plan(stack(optimizer="optimizer.shy"), site, device="cpu").clashes
    assert clash.kind == "declared"
    assert "optimizer.shy does not go with data.lines: it reads its own data" in clash.reason


def test_a_later_stage_that_needs_what_an_earlier_one_took_away_is_refused(site) -> None:
    site.add(
        "optimizer.quantizes",
        body="""
        def touches(self, ctx):
            return [Touch(nodes=("model.layers.*.mlp",), mode="replace", needs="float", leaves="int4")]
    """,
    )
    alone = plan(stack(optimizer="optimizer.quantizes"), site)
    twice = plan(stack(optimizer="optimizer.quantizes", stages=2), site)
    assert alone.ok
    (clash,) = twice.clashes
    assert (clash.kind, clash.where) == ("state", "stages[1].train")
    assert "needs model.layers.*.mlp in state 'float', optimizer.quantizes left it 'int4'" in clash.reason


def test_a_misfit_keeps_the_plan_and_its_reason(site) -> None:
    site.add(
        "optimizer.picky",
        body="""
        def fit(self, ctx):
            return Fit.no(f"needs head_dim 128, got {ctx.model.head_dim}")
    """,
    )
    made = plan(stack(optimizer="optimizer.picky"), site)
    assert misfits(made) == ["stages[0].train.optimizer (optimizer.picky): needs head_dim 128, got 16"]


def test_dtype_and_device_of_the_manifest_are_checked(site) -> None:
    site.add("optimizer.old", manifest='[can]\ndtypes = ["float32"]\ndevices = ["cpu"]\n')
    assert misfits(plan(stack(optimizer="optimizer.old"), site, device="h100")) == [
        "stages[0].train.optimizer (optimizer.old): runs on cpu, not on cuda",
        "stages[0].train.optimizer (optimizer.old): computes in float32, not in bfloat16",
    ]


def test_a_device_without_the_dtype_is_a_misfit(site) -> None:
    explicit = plan(stack(resources={"dtype": "bfloat16"}), site, device="t4")
    assert any("does not compute in bfloat16" in text for text in misfits(explicit))


def test_auto_is_bfloat16_where_the_device_is_faster_in_it_and_float32_elsewhere(site) -> None:
    assert {name: plan(stack(), site, device=name).resources.dtype for name in ("h100", "t4")} == {
        "h100": "bfloat16",
        "t4": "float32",
    }


@pytest.mark.parametrize(("features", "dtype"), [("avx2 avx512_bf16", "bfloat16"), ("avx2 f16c", "float32")])
def test_auto_on_this_cpu_follows_its_instructions(site, monkeypatch, features: str, dtype: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags : fpu {features}")
    device = devices._this_cpu(devices._cpu_core())
    assert device.dtype == dtype
    assert ("no bf16" in device.title) is (dtype == "float32")


def test_a_dtype_slower_than_float32_is_warned_of_once(site) -> None:
    slow = device_table()["h100"].model_copy(update={"flops": {"float32": 2.0, "bfloat16": 1.0}})
    assert slow.dtype == "float32"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stackloom.core.planning.find_device", lambda name: slow)
        made = plan(stack(resources={"dtype": "bfloat16"}), site)
    warned = [fit.reason for part in made.components() for fit in part.fits if fit.severity == "warning"]
    assert warned == ["bfloat16 is slower than float32 on NVIDIA H100 SXM 80 GB"]


def test_sequences_longer_than_the_model_s_positions_are_refused(site) -> None:
    assert misfits(plan(stack(train={"sequence_length": 4096}), site, device="h100")) == [
        "stages[0].train: sequence_length 4096 exceeds the model's 2048 positions"
    ]


def test_a_module_that_the_slot_s_plugins_share_is_part_of_their_digest(site) -> None:
    record = site.add("optimizer.nested", package="site_nested")
    inner = record.folder / "plugins" / "nested"
    inner.mkdir(parents=True)
    before, after = (
        type(record)(record.manifest, record.distribution, record.version, "site_nested.plugins.nested", inner)
        for _ in range(2)
    )
    first = before.digest
    (inner.parent / "shared.py").write_text("x = 1")
    assert after.digest != first


def test_a_model_too_large_for_the_device_says_how_large(site) -> None:
    made = plan(
        stack(train={"micro_batch_size": 8192, "batch_size": 8192, "sequence_length": 2048}), site, device="rtx4090"
    )
    assert any("needs" in text and "NVIDIA GeForce RTX 4090" in text for text in misfits(made))


def test_unmet_needs_stop_a_run_and_not_a_plan(site) -> None:
    made = plan(stack(), site, unmet=lambda manifest: [f"{manifest.id} needs torch"])
    assert made.ok
    assert made.missing() == ["model.tiny needs torch", "data.lines needs torch", "optimizer.plain needs torch"]


@pytest.mark.parametrize("method", ["fit", "cost", "touches"])
def test_a_config_method_that_raises_is_the_plugin_s_error_and_names_its_distribution(site, method: str) -> None:
    site.add(
        "optimizer.bug",
        body=f"""
        def {method}(self, ctx):
            return 1 / 0
    """,
    )
    with pytest.raises(PluginError, match=rf"{method}\(\) failed: ZeroDivisionError") as caught:
        plan(stack(optimizer="optimizer.bug"), site)
    assert "dist-optimizer-bug 1.0" in caught.value.where


@pytest.mark.parametrize("method", ["fit", "cost", "touches"])
def test_a_config_method_that_returns_the_wrong_type_is_the_plugin_s_error(site, method: str) -> None:
    site.add(
        "optimizer.odd",
        body=f"""
        def {method}(self, ctx):
            return ["yes"] if "{method}" == "touches" else "yes"
    """,
    )
    with pytest.raises(PluginError, match="returned"):
        plan(stack(optimizer="optimizer.odd"), site)


def test_costs_add_up_and_scale_with_the_work(site) -> None:
    bf16 = {"dtype": "bfloat16"}
    small, large = (
        plan(spec, site, device="cpu").stages[0].cost
        for spec in (stack(train={"sequence_length": length}, resources=bf16) for length in (64, 128))
    )
    assert large.activation_bytes == 2 * small.activation_bytes
    assert large.weight_bytes == small.weight_bytes == plan(stack(), site).shape.parameters * 2
    assert large.process_bytes > 0
    held = large.process_bytes + large.weight_bytes + large.gradient_bytes + large.activation_bytes
    assert large.memory_bytes == held


def test_checkpointing_trades_memory_for_flops(site) -> None:
    model = use("model.tiny", layers=8)
    plain, saved = (
        plan(stack(model=model, resources={"activation_checkpointing": flag}), site).stages[0].cost
        for flag in (False, True)
    )
    assert saved.activation_bytes < plain.activation_bytes
    assert saved.flops == pytest.approx(plain.flops * 4 / 3)


def test_one_worker_sends_nothing(site) -> None:
    alone, pair = (plan(stack(resources={"workers": workers}), site).stages[0].cost for workers in (1, 2))
    assert alone.wire_bytes == 0
    assert pair.wire_bytes == pair.gradient_bytes


def test_sharding_divides_what_is_held(site) -> None:
    whole, shards = (
        plan(stack(resources={"workers": 4, "shard": shard}), site).stages[0].cost for shard in ("none", "fsdp")
    )
    assert shards.weight_bytes * 4 == whole.weight_bytes


def test_seeds_differ_by_place_and_do_not_move() -> None:
    assert seed_for(0, 0, "train") == 7837614351644460945
    assert len({seed_for(0, index, "train") for index in range(100)}) == 100


def test_a_saved_plan_refuses_changed_files_and_names_the_plugin(site) -> None:
    made = plan(stack(), site)
    made.verify(site)
    record = site.records["optimizer.plain"]
    (record.folder / "config.py").write_text((record.folder / "config.py").read_text() + "\n# changed\n")
    site.add("optimizer.plain", package=record.package, body="x = 1")
    with pytest.raises(ErrorGroup, match=r"optimizer\.plain: its files changed"):
        made.verify(site)


def test_a_saved_plan_refuses_another_version_and_a_missing_plugin(site) -> None:
    made = plan(stack(), site)
    old = site.records["optimizer.plain"]
    site.records["optimizer.plain"] = type(old)(old.manifest, old.distribution, "2.0", old.package, old.folder)
    del site.records["data.lines"]
    with pytest.raises(ErrorGroup) as caught:
        made.verify(site)
    text = str(caught.value)
    assert "planned: dist-optimizer-plain 1.0, installed: dist-optimizer-plain 2.0" in text
    assert "data.lines" in text


def test_compiled_python_does_not_change_a_digest(site) -> None:
    record = site.get("data.lines")
    before = record.digest
    (record.folder / "__pycache__").mkdir(exist_ok=True)
    (record.folder / "__pycache__" / "config.cpython-311.pyc").write_bytes(b"compiled")
    assert site.add("data.lines").digest == before


def test_an_unknown_device_suggests() -> None:
    with pytest.raises(ConfigError, match="did you mean 'h100'"):
        find_device("h10O")


@pytest.mark.parametrize("name", list(device_table()))
def test_every_device_of_the_table_can_be_planned_for(site, name: str) -> None:
    dtype = "bfloat16" if device_table()[name].supports("bfloat16") else "float16"
    made = plan(stack(resources={"dtype": dtype}), site, device=name)
    assert made.seconds > 0
    assert json.loads(made.to_json())["device"]["name"] == name


def test_stages_take_a_stage_spec_as_python_spells_it(site) -> None:
    spec = StackSpec.from_data(
        {
            "name": "x",
            "model": "model.tiny",
            "stages": [
                StageSpec(kind="train", options={"optimizer": use("optimizer.plain"), "data": "data.lines", "steps": 1})
            ],
        }
    )
    assert plan(spec, site).ok


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3, "micro_batch_size": 2}, "not a multiple"),
        ({"warmup_steps": 11}, "exceeds steps"),
        ({"steps": 0}, "greater than 0"),
    ],
)
def test_stage_options_that_do_not_add_up_are_refused(site, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(stack(train=options), site)


def test_a_stage_that_states_no_flops_has_no_time_rather_than_none_at_all(site) -> None:
    spec = StackSpec.from_data({"name": "x", "model": "model.tiny", "stages": [{"export": {}}]})
    made = plan(spec, site)
    assert made.stages[0].seconds is None
    assert made.seconds == 0
