"""Heavy Thinking: what it costs on held-out word problems, and, with a server's URL, an answer from eight thinkers.

`python examples/heavy_thinking.py` plans three ways to spend compute on the same tasks and runs nothing.
`python examples/heavy_thinking.py http://127.0.0.1:8000/v1 "Is 1001 prime?"` asks an OpenAI-compatible server.
"""

import sys

import stackloom as sl


def spending(reasoner: str, **options: object) -> sl.Stack:
    """The stack that evaluates one way to answer."""
    return sl.Stack(
        "spending",
        model=sl.use("model.hf", checkpoint="smollm2-135m-instruct"),
        stages=[
            sl.evaluate(
                environment=sl.use("environment.arithmetic"),
                reasoner=sl.use(reasoner, **options),
                tasks=50,
                temperature=0.8,
            )
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        thought = sl.think(sys.argv[2], endpoints=[sys.argv[1]], width=8, deadline_s=120.0)
        print(thought.message.content)
        print(f"votes of the thinkers: {dict(thought.votes)}; {thought.tokens} tokens in all")
    else:
        for reasoner, options in (
            ("reasoner.single", {}),
            ("reasoner.self-consistency", {"width": 8}),
            ("reasoner.heavy-thinking", {"width": 8}),
        ):
            plan = spending(reasoner, **options).plan(device="h100")
            assert plan.ok, plan.problems()
            print(f"{reasoner:28} {plan.stages[0].cost.flops / 1e12:8.1f} TFLOP")
