"""The Python twin of first_stack.yaml: one dial, the optimizer, and what it costs."""

import sys

import stackloom as sl


def first_stack(optimizer: str = "optimizer.muon") -> sl.Stack:
    """Fine-tune SmolLM2-135M on the chats of first_stack.jsonl with the optimizer of your choice."""
    return sl.Stack(
        "first-stack",
        model=sl.use("model.hf", checkpoint="smollm2-135m-instruct"),
        stages=[
            sl.train(
                data=sl.use("data.jsonl", path="examples/first_stack.jsonl", format="messages"),
                optimizer=sl.use(optimizer, lr=2e-3),
                steps=20,
                batch_size=2,
                micro_batch_size=1,
                sequence_length=512,
            ),
        ],
        device="auto",
    )


if __name__ == "__main__":
    print(first_stack(*sys.argv[1:]).plan(device="h100"))
