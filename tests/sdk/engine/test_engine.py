"""Continuations: equal to transformers' own, whatever the batch; bad requests; failures."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stackloom.core.errors import ArtifactError, ConfigError, EngineError
from stackloom.core.generation import Request, Sampling
from stackloom.engine.decoder import Decoder, supports
from stackloom.engine.engine import Engine
from stackloom.engine.runner import RowByRow
from stackloom.plugins.attention.full.config import FullAttentionConfig
from stackloom.plugins.model.hf.config import HFConfig

from .tiny_models import CONTEXT, VOCABULARY, build, continue_alone, endless, fed, filled, prompts

FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-untied-no-groups": (
        LlamaForCausalLM,
        LlamaConfig,
        {"tie_word_embeddings": False, "num_key_value_heads": 4},
    ),
    "llama-biases-llama3-rope": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2-biases": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3-norms": (Qwen3ForCausalLM, Qwen3Config, {}),
}
GENERIC = {
    "mistral-window": (MistralForCausalLM, MistralConfig, {"sliding_window": 5}),
    "llama-dynamic-rope": (
        LlamaForCausalLM,
        LlamaConfig,
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}},
    ),
}


def with_attention_plugin(folder, tokenizer, dtype="float32", layers=(0, 2)):
    build().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = HFConfig(checkpoint=str(folder), attention=FullAttentionConfig(), attention_layers=layers)
    model = config.build().load(device="cpu", dtype=dtype)
    model.generation_config.eos_token_id = None
    return model


def greedy(tokens, **options):
    return Sampling(max_tokens=tokens, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_equals_unpadded_generate(family, tokenizer):
    model_class, config_class, changes = FAMILIES[family]
    model = build(model_class, config_class, **changes)
    assert supports(model)
    given = prompts(7)
    found = endless(model, tokenizer, max_batch=4).generate_all([Request(prompt, greedy(12)) for prompt in given])
    assert [completion.token_ids for completion in found] == [continue_alone(model, prompt, 12) for prompt in given]


@pytest.mark.parametrize("family", GENERIC)
def test_a_model_of_another_kind_runs_its_own_forward_pass(family, tokenizer):
    model_class, config_class, changes = GENERIC[family]
    model = build(model_class, config_class, **changes)
    assert not supports(model)
    given = prompts(4)
    found = endless(model, tokenizer, max_batch=3).generate_all([Request(prompt, greedy(8)) for prompt in given])
    assert [completion.token_ids for completion in found] == [continue_alone(model, prompt, 8) for prompt in given]


def test_gpt2_runs_its_own_forward_pass(tokenizer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_positions=64, n_embd=32, n_layer=2, n_head=4)).eval()
    model.generation_config.eos_token_id = None
    engine = endless(model, tokenizer, max_batch=3)
    assert engine.context == 64
    given = prompts(4)
    found = engine.generate_all([Request(prompt, greedy(8)) for prompt in given])
    assert [completion.token_ids for completion in found] == [continue_alone(model, prompt, 8) for prompt in given]


@pytest.mark.parametrize("layers", ["all", (1,)])
def test_layers_with_an_attention_plugin_batch_like_plain_ones(layers, tokenizer, tmp_path):
    model = with_attention_plugin(tmp_path, tokenizer, layers=layers)
    assert supports(model)
    given = prompts(7)
    requests = [Request(prompt, greedy(5 + 3 * (place % 3))) for place, prompt in enumerate(given)]
    found = endless(model, tokenizer, max_batch=4).generate_all(requests)
    assert [completion.token_ids for completion in found] == [
        continue_alone(model, request.input_ids, request.sampling.max_tokens) for request in requests
    ]


def test_bf16_differs_from_transformers_only_within_the_bf16_error(tokenizer):
    from stackloom.engine_bench import compare

    model, exact = build(dtype=torch.bfloat16), build(dtype=torch.bfloat16).float()
    given = prompts(9)
    found = endless(model, tokenizer).generate_all([Request(prompt, greedy(20)) for prompt in given])
    agreement = compare(model, exact, given, found)
    assert agreement.error < 2 * agreement.baseline_error
    shifted = [replace(item, token_ids=tuple((token + 1) % 256 for token in item.token_ids)) for item in found]
    with pytest.raises(EngineError, match="below transformers' choice"):
        compare(model, exact, given, shifted)


def test_logprobs_are_those_of_the_models_own_distribution(llama, tokenizer):
    request = Request((1, 2, 3), Sampling(temperature=1.7, top_k=5, max_tokens=6, seed=3))
    (found,) = endless(llama, tokenizer).generate_all([request])
    ids = torch.tensor([[*request.input_ids, *found.token_ids]])
    with torch.inference_mode():
        expected = llama(ids).logits[0, 2:-1].double().log_softmax(-1)
    picked = expected.gather(1, torch.tensor(found.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found.logprobs, dtype=torch.float64), picked, rtol=1e-5, atol=1e-5)


def test_every_end_token_of_the_generation_config_ends_a_sequence(llama, tokenizer):
    free = continue_alone(llama, (5, 6, 7), 12)
    model = build()
    model.generation_config.eos_token_id = [free[4], free[2]]
    (found,) = Engine(model, tokenizer).generate_all([Request((5, 6, 7), greedy(12))])
    first = min(free.index(free[4]), free.index(free[2]))
    assert found.token_ids == free[: first + 1]
    assert found.finish == "stop"


def test_a_sequence_ends_with_the_context(llama, tokenizer):
    prompt = tuple(range(1, CONTEXT - 3))
    (found,) = endless(llama, tokenizer).generate_all([Request(prompt, greedy(50))])
    assert (len(prompt) + len(found.token_ids), found.finish) == (CONTEXT, "length")


def test_more_requests_than_rows_all_finish_in_order(llama, tokenizer):
    told = []
    requests = [Request((place + 1,), greedy(1 + place % 4)) for place in range(11)]
    found = endless(llama, tokenizer, max_batch=3).generate_all(
        requests, lambda done, total: told.append((done, total))
    )
    assert [len(completion.token_ids) for completion in found] == [1 + place % 4 for place in range(11)]
    assert told[-1] == (11, 11)
    assert told == sorted(told)


def test_no_requests_give_no_completions(llama, tokenizer):
    assert endless(llama, tokenizer).generate_all([]) == []


BAD_SAMPLING = [
    ("temperature", -0.5),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "hot"),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("top_k", -1),
    ("top_k", 1.5),
    ("min_p", 1.5),
    ("min_p", math.nan),
    ("presence_penalty", math.inf),
    ("frequency_penalty", "much"),
    ("repetition_penalty", 1e-300),
    ("frequency_penalty", 1e39),
    ("json_schema", {"type": "object"}),
    ("json_schema", "{"),
    ("json_schema", "[" * 100_000),
    ("json_schema", '{"type": "nonsense"}'),
    ("json_schema", '{"$ref": "http://127.0.0.1/schema"}'),
    ("json_schema", "false"),
    ("max_tokens", 0),
    ("max_tokens", 2.0),
    ("seed", 0.5),
    ("stop", ("",)),
    ("stop", "END"),
]


@pytest.mark.parametrize(("option", "value"), BAD_SAMPLING)
def test_sampling_options_out_of_range_are_refused_by_name(option, value, llama, tokenizer):
    with pytest.raises(ConfigError) as caught:
        endless(llama, tokenizer).generate_all([Request((1,)), Request((1,), replace(Sampling(), **{option: value}))])
    assert caught.value.where == f"requests[1].sampling.{option}"


@pytest.mark.parametrize(
    "ids", [(), (1, -1), (VOCABULARY,), (2**63,), (True,), (1.0,), (None,), tuple([1] * CONTEXT), tuple([1] * 10_000)]
)
def test_prompts_that_cannot_be_computed_are_refused(ids, llama, tokenizer):
    engine = endless(llama, tokenizer)
    with pytest.raises(ConfigError) as caught:
        engine.generate_all([Request(ids)])
    assert caught.value.where.startswith("requests[0].input_ids")
    assert len(engine.generate_all([Request((1,), greedy(2))])[0].token_ids) == 2


@pytest.mark.parametrize("max_batch", [0, -1, 1.5, True])
def test_an_engine_needs_rows(max_batch, llama, tokenizer):
    with pytest.raises(ConfigError, match="max_batch"):
        endless(llama, tokenizer, max_batch=max_batch)


def test_an_unknown_end_token_is_refused(llama, tokenizer):
    with pytest.raises(ConfigError, match="end_tokens"):
        Engine(llama, tokenizer, end_tokens=(VOCABULARY,))


def test_logits_that_are_no_numbers_are_an_error_and_leave_no_trace(tokenizer):
    model = build()
    engine = endless(model, tokenizer, max_batch=2)
    before = engine.generate_all([Request((1, 2), greedy(4))])
    with torch.no_grad():
        kept = model.model.norm.weight.clone()
        model.model.norm.weight[3] = math.nan
        engine.refresh()
        with pytest.raises(ArtifactError, match="not finite"):
            engine.generate_all([Request((1, 2), greedy(4)), Request((1,), greedy(4)), Request((3,), greedy(4))])
        model.model.norm.weight.copy_(kept)
    engine.refresh()
    (after,) = engine.generate_all([Request((1, 2), greedy(4))])
    assert [replace(after, versions=(0,) * 4)] == before
    assert after.versions == (2,) * 4


def test_refresh_reads_changed_weights(tokenizer):
    model = build()
    engine = endless(model, tokenizer)
    engine.generate_all([Request((1, 2), greedy(4))])
    model.load_state_dict(build(seed=1).state_dict())
    engine.refresh()
    (found,) = engine.generate_all([Request((1, 2), greedy(10))])
    assert found.token_ids == continue_alone(model, (1, 2), 10)


# --- rollback -------------------------------------------------------------------------------------------------------


def runners(tokenizer, folder):
    plain, hosted = build(), with_attention_plugin(folder, tokenizer)
    yield Decoder(plain, max_batch=4, deterministic=False), plain
    yield Decoder(plain, max_batch=4, deterministic=True), plain
    yield Decoder(hosted, max_batch=4, deterministic=False), hosted
    yield Decoder(hosted, max_batch=4, deterministic=True), hosted
    yield RowByRow(plain), plain


def test_rolled_back_rows_continue_as_if_nothing_had_been(tokenizer, tmp_path):
    given = prompts(3)
    checked = 0
    for runner, model in runners(tokenizer, tmp_path):
        with torch.inference_mode():
            tokens = [filled(runner, given).argmax(-1).tolist()]
            for _ in range(9):
                tokens.append(fed(runner, tokens[-1]).argmax(-1).tolist())
            assert runner.rollback(6) == 0
            assert runner.lengths == [len(prompt) + 3 for prompt in given]
            fed(runner, [7, 7, 7])  # a draft that is refused
            assert runner.rollback(1) == 0
            again = tokens[:4]
            for _ in range(6):
                again.append(fed(runner, again[-1]).argmax(-1).tolist())
        assert again == tokens
        for row, prompt in enumerate(given):
            assert tuple(step[row] for step in tokens) == continue_alone(model, prompt, 10)
        with pytest.raises(EngineError, match="cannot roll"):
            runner.rollback(min(runner.lengths) + 1)
        checked += 1
    assert checked == 5
