"""One of two processes of test_wisca.py: prints every tensor that differs from a single process."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import AutoModelForCausalLM, Phi3Config

from stackloom.core.errors import FitError
from stackloom.plugins.transform.wisca.claims import llama
from stackloom.testing import build

OPTIONS = {
    "tensor": {"up_down": "tensor", "pow2": "always"},
    "channel": {"qk": "channel", "vo": "channel", "up_down": "channel", "norm": 2},
}
COLUMNS = ("o_proj.weight", "down_proj.weight")
ROWS = ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj")


def fsdp(model):
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)


def tensor_parallel(model):
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    for path, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            full = f"{path}.{name}"
            if full.endswith(COLUMNS):
                layout = [Shard(1)]
            elif any(row in full for row in ROWS):
                layout = [Shard(0)]
            else:
                continue
            setattr(module, name, torch.nn.Parameter(distribute_tensor(parameter.detach(), mesh, layout)))


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def rewritten(options, lay_out):
    """Every parameter and moment after one AdamW step of given gradients and a rewrite."""
    model = llama(kv_heads=2, hidden_size=84, intermediate_size=63)
    if lay_out:
        lay_out(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=draw)
        if hasattr(parameter, "placements"):
            gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
        parameter.grad = gradient
    optimizer.step()
    build("transform.wisca", **options).apply(model, (optimizer,))
    found = {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            found[f"{name} {key}"] = whole(value)
    return found


def refuses_fused():
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 6,
        "vocab_size": 97,
    }
    model = AutoModelForCausalLM.from_config(Phi3Config(**sizes, pad_token_id=0, bos_token_id=0, eos_token_id=1))
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    fused = model.model.layers[0].self_attn.qkv_proj
    fused.weight = torch.nn.Parameter(distribute_tensor(fused.weight.detach(), mesh, [Shard(0)]))
    try:
        build("transform.wisca").apply(model)
    except FitError as error:
        return "which rows are whose" in str(error)
    return False


def main(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    wrong = [] if refuses_fused() else ["a fused projection under tp passes"]
    for name, options in OPTIONS.items():
        alone = rewritten(options, None)
        for lay_out in (fsdp, tensor_parallel):
            found = rewritten(options, lay_out)
            exact = options.get("pow2") == "always"
            for key, tensor in alone.items():
                same = torch.equal if exact else lambda a, b: torch.allclose(a, b, rtol=4 * 2.0**-23, atol=0)
                if not same(found[key], tensor):
                    wrong.append(f"{name} {lay_out.__name__} {key}")
    print("\n".join(wrong) or "equal")
    dist.destroy_process_group()


main(int(sys.argv[1]), sys.argv[2])
