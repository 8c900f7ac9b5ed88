"""PEFT's files for a LoRA: adapter_config.json and adapter_model.safetensors, written and read with every check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stackloom.core.errors import ArtifactError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
MAX_CONFIG_BYTES = 16 * 1024 * 1024

# Fields that change what the matrices mean and that we do not read: each must be absent, null, false or empty. Fields
# outside of both lists are treated the same, so that a future field that is switched on is refused and not ignored.
INERT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "target_modules",
        "task_type",
    }
)
READ = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "bias", "init_lora_weights"})
# Other ways to start (pissa, olora, corda, loftq, ...) also change the base, which the matrices then belong to.
BASE_KEPT = (None, True, False, "gaussian", "orthogonal", "eva")


def write(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write both files.

    Args:
        folder: made if it is not there.
        tensors: by the names of `low_rank.matrices`; any device, stored as they are.
        config: the fields of adapter_config.json; peft_type is LORA unless it says otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps({"peft_type": "LORA", **config}, indent=2, sort_keys=True, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def read_config(
    folder: Path, expected: Mapping[str, Any], *, kinds: tuple[str, ...] = ("LORA",), own: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Check adapter_config.json and return its fields.

    Args:
        folder: where PEFT wrote.
        expected: r, lora_alpha and use_rslora of the injected adapter.
        kinds: values of peft_type that the caller reads.
        own: fields beside PEFT's that the caller reads.

    Raises:
        ArtifactError: the file is missing, no JSON object, no LoRA, or one that computes otherwise; names the field.
    """
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ArtifactError(f"larger than {MAX_CONFIG_BYTES} bytes", where=str(path))
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise ArtifactError(f"cannot read it: {cause.strerror}", where=str(path)) from None
    except (ValueError, RecursionError) as cause:
        raise ArtifactError(f"not JSON: {cause}", where=str(path)) from None
    if not isinstance(config, dict) or config.get("peft_type") not in kinds:
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ArtifactError(f"no LoRA: peft_type is {found!r}", where=str(path))
    for field, value in ({"r": 8, "lora_alpha": 8, "use_rslora": False} | config).items():
        if field in expected and (value != expected[field] or isinstance(value, bool) != (field == "use_rslora")):
            raise ArtifactError(
                f"{field} is {value!r}, the injected adapter has {expected[field]!r}",
                where=str(path),
                fix="give the adapter the options that the file was made with",
            )
        if field == "bias" and value != "none":
            raise ArtifactError(f"bias is {value!r}: trained biases are not supported", where=str(path))
        if field == "init_lora_weights" and value not in BASE_KEPT:
            raise ArtifactError(
                f"init_lora_weights is {value!r}, which also changed the base model",
                where=str(path),
                fix="save it again with PEFT's path_initial_model_for_weight_conversion",
            )
        if field not in INERT | READ | own and value:
            raise ArtifactError(f"{field} is {value!r}, which is not supported", where=str(path))
    return config


def read_tensors(folder: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return the tensors of adapter_model.safetensors on the CPU, in the dtype they are stored in.

    Args:
        folder: where PEFT wrote.
        shapes: what must be there, by the names of `low_rank.matrices`; and nothing else may.

    Raises:
        ArtifactError: the file is missing or damaged, or a tensor is missing, unknown, there twice, of another shape,
            not floating point or not finite; names the tensor.
    """
    path = folder / WEIGHTS
    _refuse_duplicates(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = set(file.keys())
            expected = {PREFIX + name for name in shapes}
            if missing := sorted(expected - names):
                raise ArtifactError(
                    f"tensor {missing[0]} is missing ({len(missing)} in all)",
                    where=str(path),
                    fix="give the adapter the targets that the file was made with",
                )
            if unknown := sorted(names - expected):
                raise ArtifactError(
                    f"tensor {unknown[0]} has no place in the adapter ({len(unknown)} in all)",
                    where=str(path),
                    fix="give the adapter the targets that the file was made with",
                )
            return {
                name: _checked(file.get_tensor(PREFIX + name), PREFIX + name, shapes[name], path) for name in shapes
            }
    except (SafetensorError, OSError) as cause:
        raise ArtifactError(f"damaged or no safetensors file: {cause}", where=str(path)) from None


def _checked(tensor: Tensor, name: str, shape: torch.Size, path: Path) -> Tensor:
    if tensor.shape != shape:
        raise ArtifactError(f"tensor {name} is {tuple(tensor.shape)}, the adapter's is {tuple(shape)}", where=str(path))
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise ArtifactError(f"tensor {name} is {tensor.dtype}, not a float of 16 bits or more", where=str(path))
    if not torch.isfinite(tensor).all():
        raise ArtifactError(f"tensor {name} is not finite", where=str(path))
    return tensor


def _refuse_duplicates(path: Path) -> None:
    """Refuse a header that names a tensor twice, which safetensors itself takes; other damage is left to it."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ArtifactError(f"tensor {twice[0]} is there twice", where=str(path))
        return dict(pairs)

    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ArtifactError("damaged: the header is longer than the file", where=str(path))
            json.loads(file.read(length), object_pairs_hook=once)
    except OSError as cause:
        raise ArtifactError(f"cannot read it: {cause.strerror}", where=str(path)) from None
    except (ValueError, RecursionError) as cause:
        raise ArtifactError(f"damaged: the header is no JSON: {cause}", where=str(path)) from None
