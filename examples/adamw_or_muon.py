"""What an optimizer's state costs: AdamW keeps two moments of every weight, Muon one of every matrix.

One dial, the model. `python examples/adamw_or_muon.py llama-3.1-8b` plans a training step on an H100, without a GPU.
"""

import sys

import stackloom as sl


def stack(optimizer: str, checkpoint: str) -> sl.Stack:
    """Train all weights of `checkpoint` with `optimizer`."""
    train = sl.train(
        data=sl.use("data.jsonl", path="examples/first_stack.jsonl"),
        optimizer=sl.use(optimizer),
        steps=100,
        sequence_length=2048,
    )
    return sl.Stack("adamw-or-muon", model=sl.use("model.hf", checkpoint=checkpoint), stages=[train])


def main(checkpoint: str = "qwen3-1.7b") -> None:
    """Print one row per optimizer."""
    print(f"{'':16} {'optimizer state':>16} {'all memory':>12} {'fits an H100':>13}")
    for optimizer in ("optimizer.adamw", "optimizer.muon"):
        plan = stack(optimizer, checkpoint).plan(device="h100")
        cost = plan.stages[0].cost
        gigabytes = f"{cost.optimizer_bytes / 1e9:.2f} GB", f"{cost.memory_bytes / 1e9:.1f} GB"
        print(f"{optimizer:16} {gigabytes[0]:>16} {gigabytes[1]:>12} {'yes' if plan.ok else 'no':>13}")


if __name__ == "__main__":
    main(*sys.argv[1:])
