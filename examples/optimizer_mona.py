"""What MONA's three forms keep beside the weights, against Muon and AdamW.

One dial, the model. `python examples/optimizer_mona.py llama-3.1-8b` plans a training step on an H100, without a GPU.
"""

import sys

import stackloom as sl

ARMS = {
    "AdamW": sl.use("optimizer.adamw"),
    "Muon": sl.use("optimizer.muon"),
    "MONA, as printed": sl.use("optimizer.mona", buffers="three"),
    "MONA": sl.use("optimizer.mona"),
    "MONA-Lite": sl.use("optimizer.mona", buffers="lite", momentum_dtype="bfloat16"),
}


def main(checkpoint: str = "qwen3-1.7b") -> None:
    """Print one row per optimizer."""
    print(f"{'':18} {'optimizer state':>16} {'Newton-Schulz':>16}")
    for name, optimizer in ARMS.items():
        data = sl.use("data.jsonl", path="examples/first_stack.jsonl")
        train = sl.train(data=data, optimizer=optimizer, steps=100, sequence_length=2048)
        stack = sl.Stack("mona", model=sl.use("model.hf", checkpoint=checkpoint), stages=[train])
        plan = stack.plan(device="h100")
        mine = next(part.cost for part in plan.components() if part.plugin.startswith("optimizer."))
        print(f"{name:18} {mine.optimizer_bytes / 1e9:>13.2f} GB {mine.flops / 1e12:>9.2f} TFLOP")


if __name__ == "__main__":
    main(*sys.argv[1:])
