"""The Python twin of fine_tune_smollm2.yaml: one dial, the optimizer, and what each choice keeps of the adapter.

`python examples/fine_tune_smollm2.py` plans the choices, without torch; `... run` runs the stack.
"""

import sys

import stackloom as sl

OPTIMIZERS = {
    "AdamW": sl.use("optimizer.adamw", lr=2e-3, weight_decay=0),
    "Muon": sl.use("optimizer.muon", lr=2e-3, weight_decay=0),
    "MONA": sl.use("optimizer.mona", lr=2e-3, weight_decay=0),
    "MONA-Lite": sl.use("optimizer.mona", lr=2e-3, weight_decay=0, buffers="lite", momentum_dtype="bfloat16"),
}


def fine_tune(optimizer: sl.Ref = OPTIMIZERS["MONA"]) -> sl.Stack:
    """Teach SmolLM2-135M a calculator: AFA-LoRA with a ReLU, stepped by `optimizer`, balanced by WISCA."""
    arithmetic = sl.use("environment.arithmetic")
    return sl.Stack(
        "fine-tune-smollm2",
        seed=3,
        device="cpu",
        model=sl.use("model.hf", checkpoint="smollm2-135m-instruct"),
        stages=[
            sl.train(
                data=sl.use("data.environment-trajectories", environment=arithmetic, count=200),
                adapter=sl.use("adapter.afa-lora", rank=16, activation="relu", rho=0.3),
                optimizer=optimizer,
                transform=[sl.use("transform.wisca", qk="off", vo="off", lora="tensor", every_n_steps=8)],
                steps=24,
                batch_size=1,
                sequence_length=512,
                warmup_steps=3,
                checkpoint_every=8,
            ),
            sl.evaluate(environment=arithmetic, tasks=19, turns=4, max_tokens=64),
        ],
    )


if __name__ == "__main__":
    for name, optimizer in OPTIMIZERS.items():
        plan = fine_tune(optimizer).plan()
        state = next(part.cost.optimizer_bytes for part in plan.components() if part.plugin == optimizer.use)
        print(f"{name:10} {state / 2**20:6.1f} MiB of state, {plan.peak_bytes / 2**30:.2f} GiB at the peak")
    if sys.argv[1:] == ["run"]:
        print(fine_tune().plan().run().folder)
