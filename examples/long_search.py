"""Attempts longer than the context: four ways of cutting them, planned, or run on some tasks.

`python examples/long_search.py` plans each and runs nothing; with `4` behind it, 4 tasks are attempted each way.
"""

import sys

import stackloom as sl

CONTEXTS = {
    "context.none": {},
    "context.discard": {"tokens": 1500},
    "context.summary": {"tokens": 1500},
    "context.hybrid": {"tokens": 1500, "turns": 20},
}


def long_search(context: str, tasks: int) -> sl.Stack:
    """Questions that need 10 to 40 entries of an archive."""
    return sl.Stack(
        "long-search",
        model=sl.use("model.hf", checkpoint="smollm2-135m-instruct"),
        stages=[
            sl.evaluate(
                environment=sl.use("environment.search-world"),
                context=sl.use(context, **CONTEXTS[context]),
                tasks=tasks,
                turns=60,
                max_tokens=64,
            )
        ],
    )


if __name__ == "__main__":
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    for context in CONTEXTS:
        plan = long_search(context, tasks or 30).plan(device="cpu")
        print(f"{context}: {'fits' if plan.ok else plan.problems()}")
        if tasks:
            found = plan.run().metrics(0)
            print(f"  solved {found['pass_rate']['value']:.0%}; attempts ended: {found['ended']}")
