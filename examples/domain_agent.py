"""The Python twin of domain_agent.yaml: teach a small model to serve users in tool worlds; measure it on new ones."""
# tested with: 2 5

import sys

import stackloom as sl

DOMAINS = ("airline", "banking", "calendar", "retail")
SMALL = {
    "domains": DOMAINS,
    "tools": 4,
    "low": 2,
    "high": 3,
}  # four tools, two or three calls: about 270 tokens of prompt


def domain_agent(steps: int = 200, tasks: int = 60) -> sl.Stack:
    """Return the stack; held-out tasks have other people, and every fifth is of a domain that is never trained on."""
    held_out = sl.use("environment.domain-graph", **SMALL, unseen_domains=["ticketing"])
    attempt = {"environment": held_out, "tasks": tasks, "max_tokens": 96, "turns": 6}
    shown = sl.use("environment.domain-graph", **SMALL, recovery=0.15)
    return sl.Stack(
        "domain-agent",
        model=sl.use("model.hf", checkpoint="smollm2-135m-instruct"),
        stages=[
            sl.evaluate(**attempt),
            sl.train(
                adapter=sl.use("adapter.lora", rank=16),
                optimizer=sl.use("optimizer.adamw", lr=2e-3, weight_decay=0),
                data=sl.use("data.environment-trajectories", environment=shown, count=600),
                steps=steps,
                batch_size=1,
                sequence_length=1024,
                warmup_steps=min(8, steps),
                checkpoint_every=40,
            ),
            sl.evaluate(**attempt),
        ],
        trackers=[sl.use("tracker.jsonl")],
        seed=7,
        device="cpu",
    )


if __name__ == "__main__":
    plan = domain_agent(*map(int, sys.argv[1:])).plan()
    print(plan)
    run = plan.run()
    for when, stage in (("before", 0), ("after", 2)):
        found = run.metrics(stage)["pass_rate"]
        low, high = found["interval"]
        print(f"solved {when}: {found['value']:.0%} of {found['count']} (95 %: {low:.0%} to {high:.0%})")
    print(f"report: {run.folder / 'report.html'}")
