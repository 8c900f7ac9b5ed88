"""Tiny random models built in code."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stackloom.engine.engine import Engine

VOCABULARY, CONTEXT = 260, 96


def build(model_class=LlamaForCausalLM, config_class=LlamaConfig, *, dtype=torch.float32, seed=0, **changes):
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config_class(**sizes | changes))
        for name, parameter in model.named_parameters():
            # Drawn wide, so that logits differ by more than rounding; norms and biases are not left at one and zero.
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    model.generation_config.eos_token_id = None
    return model.to(dtype).eval()


def continue_alone(model, prompt, tokens):
    """What transformers makes of one unpadded sequence."""
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)
    return tuple(ids[0, len(prompt) :].tolist())


def prompts(count, *, longest=20, seed=0):
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, longest + 1, (count,), generator=draw).tolist()
    return [tuple(torch.randint(0, 256, (size,), generator=draw).tolist()) for size in sizes]


def endless(model, tokenizer, **options):
    """An engine that no token stops."""
    return Engine(model, tokenizer, end_tokens=(), **options)


def filled(runner, given):
    """Give a runner more prompts and return the logits after each."""
    first = len(runner.lengths)
    runner.join(given)
    found = {}
    while runner.filling:
        found |= runner.fill(10_000)
    return torch.stack([found[row] for row in range(first, len(runner.lengths))])


def fed(runner, tokens):
    """Feed every row of a runner a token and return the logits after it."""
    rows = list(range(len(tokens)))
    assert runner.reserve(rows)
    return runner.step(tokens, rows)
