"""A small hybrid language model from nothing: train on real text, export, read back with transformers, sample.

Three layers with the FG2-GDN+ rule to one with full attention, over single bytes. One dial, the steps:
`python examples/gated_delta_lm.py 200`.
"""
# tested with: 12

import importlib
import sys

import stackloom as sl

FG2_GDN_PLUS = sl.use("attention.fg2-gdn", variant="plus", beta_rank=48)


def gated_delta_lm(steps: int = 200) -> sl.Stack:
    """Return the stack: 2.6 million parameters, trained on Python's own documentation."""
    return sl.Stack(
        "gated-delta-lm",
        model=sl.use("model.gated-delta-lm", attention=FG2_GDN_PLUS, layers=4, hidden=192, heads=4, intermediate=768),
        stages=[
            sl.train(
                data=sl.use("data.pydoc", max_tokens=256),
                optimizer=sl.use("optimizer.muon", lr=2e-2),
                steps=steps,
                batch_size=4,
                micro_batch_size=4,
                sequence_length=256,
                warmup_steps=min(10, steps),
            ),
            sl.evaluate(data=sl.use("data.pydoc", split="held-out", max_tokens=256), sequences=16, sequence_length=256),
            sl.export(dtype="float32"),
        ],
        seed=3,
        device="cpu",
        dtype="float32",
    )


def sample(folder: str, prompt: str = "The following ") -> str:
    """Read the exported folder as any transformers model and let it write 120 bytes."""
    importlib.import_module("stackloom.plugins.model.gated_delta_lm.modeling")  # tells the Auto classes what it is
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    tokens = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**tokens, max_new_tokens=120, do_sample=True, temperature=0.7, top_k=20)
    return tokenizer.decode(written[0], skip_special_tokens=True)


if __name__ == "__main__":
    plan = gated_delta_lm(*map(int, sys.argv[1:])).plan()
    print(plan)
    run = plan.run()
    print(f"held-out perplexity per byte: {run.metrics(1)['perplexity']['value']:.1f}")
    print(sample(str(run.stages[2].folder)))
