"""What keys and values cost: the memory of one sequence's cache under full attention, by model and length.

One dial, the tokens. `python examples/attention_full.py 131072` compares models at that length, without a GPU.
"""

import sys

import stackloom as sl

MODELS = ("smollm2-135m-instruct", "qwen3-0.6b", "qwen2.5-7b-instruct", "llama-2-7b", "llama-3.1-8b", "llama-3.1-70b")


def main(tokens: str = "8192") -> None:
    """Print one row per model."""
    print(f"{'':22} {'heads':>6} {'kv heads':>9} {'per token':>10} {f'{tokens} tokens':>16}")
    for name in MODELS:
        train = sl.train(
            data=sl.use("data.jsonl", path="examples/first_stack.jsonl"), optimizer=sl.use("optimizer.adamw"), steps=1
        )
        shape = sl.Stack("cache", model=sl.use("model.hf", checkpoint=name), stages=[train]).plan(device="h100").shape
        one, all_of_them = (shape.cache_bytes(count, element_bytes=2) for count in (1, int(tokens)))
        sizes = f"{one / 1e3:.0f} kB", f"{all_of_them / 1e9:.2f} GB"
        print(f"{name:22} {shape.heads:>6} {shape.kv_heads:>9} {sizes[0]:>10} {sizes[1]:>16}")


if __name__ == "__main__":
    main(*sys.argv[1:])
