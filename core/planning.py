"""Planning: what fits, what clashes and what it costs, from configs and shapes alone."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict

from stackloom.core.catalogue import Catalogue, PluginRecord
from stackloom.core.config import ComponentConfig
from stackloom.core.cost import Cost, Work
from stackloom.core.devices import DTYPE_BYTES, find_device
from stackloom.core.errors import ConfigError, ErrorGroup, PluginError, StackloomError
from stackloom.core.fit import Fit, FitContext
from stackloom.core.loading import ask, blame, load_config, validate_options
from stackloom.core.manifest import Manifest
from stackloom.core.plan import Clash, Plan, PlannedComponent, PlannedStage
from stackloom.core.ref import Ref, as_ref
from stackloom.core.shapes import ModelShape
from stackloom.core.slots.model import ModelConfig
from stackloom.core.stack import StackSpec
from stackloom.core.stages import STAGES, StageConfig
from stackloom.core.touch import Touch

UTILISATION = {"cpu": 0.5, "cuda": 0.4}  # share of peak that a plain training step reaches [house estimate]
Unmet: TypeAlias = Callable[[Manifest], list[str]]


class _Resolved(BaseModel):
    """A component while its plan is being made."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    path: str
    record: PluginRecord
    config: ComponentConfig


def plan(
    spec: StackSpec, catalogue: Catalogue, *, device: str | None = None, unmet: Unmet = lambda manifest: []
) -> Plan:
    """Resolve a stack against the installed plugins; of those chosen, only the config modules are imported.

    Args:
        spec: the stack.
        catalogue: where plugins are found.
        device: a name of the device table; None takes the stack's own.
        unmet: says which of a manifest's needs this environment lacks.

    Returns:
        The plan, also when the stack cannot work: see `Plan.problems`.

    Raises:
        ConfigError: unknown plugins or bad options (all of them, as an ErrorGroup).
        PluginError: a chosen plugin breaks its contract.
    """
    target = find_device(device or spec.resources.device)
    resources = spec.resources.on(target)
    errors: list[StackloomError] = []
    model = _resolve(spec.model, "model", "model", catalogue, errors)
    stages = [_resolve_stage(index, one.kind, one.options, catalogue, errors) for index, one in enumerate(spec.stages)]
    trackers = [
        part
        for index, ref in enumerate(spec.trackers)
        for part in _resolve(ref, "tracker", f"trackers[{index}]", catalogue, errors)
    ]
    _raise(errors, spec.name)
    shape = _shape(model[0])

    base = Work(
        model=shape,
        device=target,
        dtype=resources.dtype,
        sequences=0,
        workers=resources.workers,
        activation_checkpointing=resources.activation_checkpointing,
    )
    context = FitContext(
        model=shape,
        device=target,
        dtype=resources.dtype,
        stage="model",
        workers=resources.workers,
        shard=resources.shard,
        neighbours=tuple(part.record.id for part in model),
    )
    planned_model = tuple(_planned(part, context, _cost(part, base), unmet) for part in model)
    held = sum((part.cost for part in planned_model), Cost(process_bytes=base.device.process_bytes))

    planned, contexts = [], [context]
    for index, (config, parts) in enumerate(stages):
        contexts.append(
            context.model_copy(
                update={
                    "stage": config.kind,
                    "neighbours": tuple(part.record.id for part in parts),
                    "stage_options": _own_options(config),
                }
            )
        )
        planned.append(_planned_stage(index, config, parts, contexts[-1], base, held, spec, unmet))
    touched = [("model", [(part, _touches(part, contexts[0])) for part in model])]
    touched += [
        (f"stages[{index}].{config.kind}", [(part, _touches(part, ctx)) for part in parts])
        for index, ((config, parts), ctx) in enumerate(zip(stages, contexts[1:], strict=True))
    ]
    return Plan(
        name=spec.name,
        seed=spec.seed,
        stack=spec.model_copy(update={"sweep": {}}).to_data(),
        device=target,
        resources=resources,
        shape=shape,
        model=planned_model,
        stages=tuple(planned),
        trackers=tuple(
            _planned(part, context.model_copy(update={"stage": "trackers"}), Cost(), unmet) for part in trackers
        ),
        clashes=tuple(_clashes(touched)),
    )


def seed_for(seed: int, *place: str | int) -> int:
    """Derive the seed of a place in the stack; stable across machines and Python versions."""
    digest = hashlib.sha256("/".join(map(str, (seed, *place))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _raise(errors: list[StackloomError], name: str) -> None:
    flat = [inner for error in errors for inner in (error.errors if isinstance(error, ErrorGroup) else (error,))]
    if len(flat) == 1:
        raise flat[0]
    if flat:
        raise ErrorGroup(flat, f"{name}: {len(flat)} problems")


def _resolve(
    ref: Ref | ComponentConfig, slot: str, where: str, catalogue: Catalogue, errors: list[StackloomError]
) -> list[_Resolved]:
    """Resolve a reference and what is nested in it, the owner first; errors are collected, not raised."""
    try:
        ref = as_ref(ref, where)
        if ref.use.partition(".")[0] != slot:
            known = [plugin for plugin in catalogue.ids() if plugin.startswith(f"{slot}.")]
            raise ConfigError(
                f"{ref.use!r} is no {slot} plugin",
                where=f"{where}.use",
                fix=f"plugins of this slot: {', '.join(sorted(known)) or 'none installed'}",
            )
        try:
            record = catalogue.get(ref.use)
        except ConfigError as error:
            raise ConfigError(error.reason, where=f"{where}.use", fix=error.fix) from None
        config = validate_options(load_config(record), ref.options, where)
    except StackloomError as error:
        errors.append(error)
        return []
    nested = [
        part
        for field, inner, value in config.nested()
        for part in _resolve(value, inner, f"{where}.{field}", catalogue, errors)
    ]
    children = {part.path: part.config for part in nested}
    update = {field: children[f"{where}.{field}"] for field, _, _ in config.nested() if f"{where}.{field}" in children}
    return [_Resolved(path=where, record=record, config=config.model_copy(update=update)), *nested]


def _resolve_stage(
    index: int, kind: str, options: dict[str, Any], catalogue: Catalogue, errors: list[StackloomError]
) -> tuple[StageConfig, list[_Resolved]]:
    where, stage = f"stages[{index}].{kind}", STAGES[kind]
    slotted = stage.slotted()
    try:
        refs = {
            field: slotted[field].read(value, f"{where}.{field}")
            for field, value in options.items()
            if field in slotted and value is not None
        }
        config = validate_options(stage, options | refs, where)
    except StackloomError as error:
        errors.append(error)
        return stage.model_construct(), []
    assert isinstance(config, StageConfig)
    parts = [
        part
        for field, slot, value in config.nested()
        for part in _resolve(value, slot, f"{where}.{field}", catalogue, errors)
    ]
    return config, parts


def _shape(model: _Resolved) -> ModelShape:
    assert isinstance(model.config, ModelConfig)
    try:
        shape = ask(model.record, model.config.shape)
    except ConfigError as error:
        raise ConfigError(
            error.reason, where=model.path if not error.where else f"{model.path}: {error.where}", fix=error.fix
        ) from None
    if not isinstance(shape, ModelShape):
        raise PluginError(f"shape() returned {type(shape).__name__}, not a ModelShape", where=blame(model.record))
    return shape


def _cost(part: _Resolved, work: Work) -> Cost:
    cost = ask(part.record, part.config.cost, work)
    if not isinstance(cost, Cost):
        raise PluginError(f"cost() returned {type(cost).__name__}, not a Cost", where=blame(part.record))
    return cost


def _touches(part: _Resolved, context: FitContext) -> list[Touch]:
    touches = ask(part.record, part.config.touches, context)
    if not all(isinstance(touch, Touch) for touch in touches):
        raise PluginError("touches() returned something that is no Touch", where=blame(part.record))
    return list(touches)


def _fits(part: _Resolved, context: FitContext) -> Iterator[Fit]:
    can = part.record.manifest.can
    if context.device.kind not in can.devices:
        yield Fit.no(f"runs on {', '.join(can.devices)}, not on {context.device.kind}")
    if context.dtype not in can.dtypes:
        yield Fit.no(f"computes in {', '.join(can.dtypes)}, not in {context.dtype}")
    if not context.device.supports(context.dtype):
        yield Fit.no(f"{context.device.title} does not compute in {context.dtype}")
    elif part.path == "model" and context.device.flops[context.dtype] < context.device.flops.get("float32", 0):
        yield Fit.warn(f"{context.dtype} is slower than float32 on {context.device.title}")
    if part.record.manifest.lifecycle == "deprecated":
        yield Fit.warn("deprecated")
    answer = ask(part.record, part.config.fit, context)
    for fit in answer if isinstance(answer, list) else [answer]:
        if not isinstance(fit, Fit):
            raise PluginError(f"fit() returned {type(fit).__name__}, not a Fit", where=blame(part.record))
        yield fit


def _planned(part: _Resolved, context: FitContext, cost: Cost, unmet: Unmet) -> PlannedComponent:
    nested = {field for field, _, _ in part.config.nested()}
    options = part.config.model_dump(mode="json", exclude=nested)
    options |= {field: as_ref(value, part.path).model_dump(mode="json") for field, _, value in part.config.nested()}
    record = part.record
    return PlannedComponent(
        path=part.path,
        plugin=record.id,
        distribution=record.distribution,
        version=record.version,
        digest=record.digest,
        lifecycle=record.manifest.lifecycle,
        options=options,
        fits=tuple(_fits(part, context)),
        missing=tuple(unmet(record.manifest)),
        cost=cost,
    )


def _own_options(config: StageConfig) -> dict[str, Any]:
    held = {field for field in config.slotted() if getattr(config, field)}
    return config.model_dump(mode="json", exclude=held)


def _stage_fits(config: StageConfig, context: FitContext) -> list[Fit]:
    answer = config.fit(context)
    return answer if isinstance(answer, list) else [answer]


def _own_dtype(cost: Cost, dtype: str) -> str:
    """The dtype of the parameters that a component adds: an optimizer keeps its state in that, not in the model's."""
    wide = DTYPE_BYTES["float32"]
    return "float32" if cost.trainable and cost.weight_bytes == wide * cost.trainable else dtype


def _planned_stage(
    index: int,
    config: StageConfig,
    parts: list[_Resolved],
    context: FitContext,
    base: Work,
    held: Cost,
    spec: StackSpec,
    unmet: Unmet,
) -> PlannedStage:
    work = seen = config.work(base)
    costs = []
    for part in parts:
        place = part.path.removeprefix(f"stages[{index}].{config.kind}.")
        costs.append(_cost(part, config.share(place, seen)))
        if costs[-1].trainable is not None:
            work = work.model_copy(update={"trainable": costs[-1].trainable})
            seen = work.model_copy(update={"dtype": _own_dtype(costs[-1], work.dtype)})
    total = sum([held, config.cost(work), *costs], Cost())
    if spec.resources.shard == "fsdp":
        total = total.model_copy(
            update={
                name: getattr(total, name) / work.workers
                for name in ("weight_bytes", "gradient_bytes", "optimizer_bytes")
            }
        )
    device = base.device
    rate = device.flops.get(base.dtype, min(device.flops.values())) * UTILISATION[device.kind]
    moved = total.weight_bytes + total.gradient_bytes + 2 * total.optimizer_bytes + 2 * total.activation_bytes
    return PlannedStage(
        index=index,
        kind=config.kind,
        seed=seed_for(spec.seed, index, config.kind),
        options=_own_options(config),
        fits=tuple(_stage_fits(config, context)),
        components=tuple(_planned(part, context, cost, unmet) for part, cost in zip(parts, costs, strict=True)),
        cost=total,
        seconds=work.steps * max(total.flops / rate, moved / device.bandwidth) if total.flops else None,
    )


def _clashes(scopes: list[tuple[str, list[tuple[_Resolved, list[Touch]]]]]) -> Iterator[Clash]:
    """Find every pair that does not go together, in an order that does not depend on the components' order."""
    left: list[tuple[Touch, str]] = []
    for where, parts in scopes:
        found = [
            clash
            for (one, mine), (two, theirs) in itertools.combinations(parts, 2)
            for clash in (*_declared(one, two, where), *_on_nodes(one, mine, two, theirs, where))
        ]
        found += [
            Clash(
                kind="state",
                plugins=_pair(owner, part.record.id),
                where=where,
                reason=f"{part.record.id} needs {node} in state {touch.needs!r}, {owner} left it {earlier.leaves!r}",
            )
            for part, touches in parts
            for touch in touches
            if touch.needs != "any"
            for earlier, owner in left
            if earlier.leaves != touch.needs and (node := touch.meets(earlier))
        ]
        yield from sorted(found, key=lambda clash: (clash.kind, clash.plugins, clash.reason))
        left += [(touch, part.record.id) for part, touches in parts for touch in touches if touch.leaves]


def _pair(one: str, two: str) -> tuple[str, str]:
    return (one, two) if one <= two else (two, one)


def _declared(one: _Resolved, two: _Resolved, where: str) -> Iterator[Clash]:
    for owner, other in ((one, two), (two, one)):
        for conflict in owner.record.manifest.conflicts:
            if conflict.plugin in (other.record.id, f"{other.record.manifest.slot}.*"):
                yield Clash(
                    kind="declared",
                    plugins=_pair(one.record.id, two.record.id),
                    where=where,
                    reason=f"{owner.record.id} does not go with {other.record.id}: {conflict.reason}",
                )


def _on_nodes(one: _Resolved, mine: list[Touch], two: _Resolved, theirs: list[Touch], where: str) -> Iterator[Clash]:
    if one.path.startswith(f"{two.path}.") or two.path.startswith(f"{one.path}."):
        return  # a nested component works on its owner's behalf
    for a, b in itertools.product(mine, theirs):
        if node := a.clash(b):
            first, second = sorted([(one.record.id, a.mode), (two.record.id, b.mode)])
            yield Clash(
                kind="node",
                plugins=(first[0], second[0]),
                where=f"{where}: {node}",
                reason=f"{first[0]} ({first[1]}) and {second[0]} ({second[1]}) both change {node}",
            )
            return
