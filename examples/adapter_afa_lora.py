"""Fine-tune with AFA-LoRA and MONA, and see before any training what each choice of optimizer keeps in memory.

One dial, what to do. `python examples/adapter_afa_lora.py` plans; with `run` it also trains, merges and measures
SmolLM2-135M on two cores.
"""

import sys

import stackloom as sl

OPTIMIZERS = {
    "AdamW": sl.use("optimizer.adamw", lr=1e-3),
    "Muon": sl.use("optimizer.muon", lr=1e-3),
    "MONA": sl.use("optimizer.mona", lr=1e-3),
    "MONA-Lite": sl.use("optimizer.mona", lr=1e-3, buffers="lite", momentum_dtype="bfloat16"),
}
ADAPTERS = {
    "all weights": None,
    "LoRA": sl.use("adapter.lora", rank=16, alpha=32),
    "AFA-LoRA": sl.use("adapter.afa-lora", rank=16, alpha=32, activation="silu", rho=0.3),
}


ARITHMETIC = sl.use("environment.arithmetic")


def stack(adapter: str, optimizer: str) -> sl.Stack:
    """Return a stack that learns to call a calculator, merges what it learnt, and solves unseen problems."""
    with_adapter = {"adapter": ADAPTERS[adapter]} if ADAPTERS[adapter] else {}
    train = sl.train(
        data=sl.use("data.environment-trajectories", environment=ARITHMETIC, count=600),
        optimizer=OPTIMIZERS[optimizer],
        steps=80,
        batch_size=1,
        sequence_length=768,
        warmup_steps=6,
        **with_adapter,
    )
    solve = sl.evaluate(environment=ARITHMETIC, tasks=57, max_tokens=64, turns=4)
    model = sl.use("model.hf", checkpoint="smollm2-135m-instruct")
    return sl.Stack("afa-lora", model=model, stages=[train, solve], seed=7, device="cpu", dtype="bfloat16")


def main(what: str = "plan") -> None:
    """Print the optimizer state of every pair, and run AFA-LoRA with MONA if asked."""
    print(f"{'optimizer state, MiB':22}" + "".join(f"{name:>12}" for name in OPTIMIZERS))
    for adapter in ADAPTERS:
        cells = []
        for optimizer in OPTIMIZERS:
            plan = stack(adapter, optimizer).plan()
            mine = next(part.cost for part in plan.components() if part.plugin.startswith("optimizer."))
            cells.append(mine.optimizer_bytes / 2**20)
        print(f"{adapter:22}" + "".join(f"{cell:12.1f}" for cell in cells))
    if what == "run":
        solved = stack("AFA-LoRA", "MONA").plan().run().metrics(1)["pass_rate"]
        print(f"solved after training: {solved['value']:.0%} of {solved['count']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
