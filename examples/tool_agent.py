"""The Python twin of tool_agent.yaml: teach a small model to use a calculator, quantize it, measure each step."""
# tested with: 2 19

import sys

import stackloom as sl

ARITHMETIC = sl.use("environment.arithmetic")


def tool_agent(steps: int = 80, tasks: int = 209) -> sl.Stack:
    """Return the stack; 19 kinds of held-out tasks take turns, 7 of them are never trained on."""
    attempt = {"environment": ARITHMETIC, "tasks": tasks, "max_tokens": 64, "turns": 4}
    return sl.Stack(
        "tool-agent",
        model=sl.use("model.hf", checkpoint="smollm2-135m-instruct"),
        stages=[
            sl.evaluate(**attempt),
            sl.train(
                adapter=sl.use("adapter.lora", rank=16),
                optimizer=sl.use("optimizer.adamw", lr=2e-3, weight_decay=0),
                data=sl.use("data.environment-trajectories", environment=ARITHMETIC, count=600),
                steps=steps,
                batch_size=1,
                sequence_length=768,
                warmup_steps=min(6, steps),
                checkpoint_every=15,
            ),
            sl.quantize(quantizer=sl.use("quantizer.rtn", scheme="w8a8")),
            sl.evaluate(**attempt),
            sl.evaluate(**attempt, reasoner=sl.use("reasoner.self-consistency", width=4), temperature=0.7),
        ],
        trackers=[sl.use("tracker.jsonl")],
        seed=7,
        device="cpu",
    )


if __name__ == "__main__":
    plan = tool_agent(*map(int, sys.argv[1:])).plan()
    print(plan)
    run = plan.run()
    before, after, voted = (run.metrics(stage)["pass_rate"] for stage in (0, 3, 4))
    print(f"solved before {before['value']:.0%}, after {after['value']:.0%}, with four votes {voted['value']:.0%}")
    print(f"report: {run.folder / 'report.html'}")
