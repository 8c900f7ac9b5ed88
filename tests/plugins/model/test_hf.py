"""`model.hf`: the slot's laws, shapes without weights, damaged checkpoints, and attention put into a model."""

import json
import shutil
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stackloom.core.errors import ArtifactError, ConfigError, EngineError, FitError
from stackloom.core.ref import use
from stackloom.core.shapes import ModelShape
from stackloom.plugins.attention.full.config import FullAttentionConfig
from stackloom.plugins.model.hf.config import HFConfig, known_checkpoints
from stackloom.testing import ModelContract, relative_error, tiny_tokenizer

EPS = torch.finfo(torch.float32).eps
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 260,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


def save(folder, model_class=LlamaForCausalLM, config_class=LlamaConfig, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config_class(**SIZES | changes))
        # Transformers starts biases at zero and norms at one; anything that forgets them should show.
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return {"checkpoint": str(folder)}


def tokens(length=30, batch=2):
    return torch.randint(0, 260, (batch, length), generator=torch.Generator().manual_seed(5))


def load(**options):
    return HFConfig(**options).build().load(device="cpu", dtype="float32")


class TestLlama(ModelContract):
    plugin = "model.hf"

    @classmethod
    def files(cls, folder):
        return save(folder, tie_word_embeddings=False)


class TestQwen2WithBiases(ModelContract):
    plugin = "model.hf"

    @classmethod
    def files(cls, folder):
        return save(folder, Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True)


class TestQwen3WithNorms(ModelContract):
    plugin = "model.hf"

    @classmethod
    def files(cls, folder):
        return save(folder, Qwen3ForCausalLM, Qwen3Config, head_dim=16, tie_word_embeddings=True)


class TestRetrofit(ModelContract):
    """A Llama with attention.full in two of its three layers."""

    plugin = "model.hf"
    options: ClassVar = {"attention": FullAttentionConfig(), "attention_layers": (0, 2)}

    @classmethod
    def files(cls, folder):
        return save(folder, tie_word_embeddings=True)

    @classmethod
    def reload(cls, folder, model):
        return load(checkpoint=str(folder), **cls.options)


# --- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "known"), known_checkpoints())
def test_table_gives_the_published_parameter_count(name, known):
    assert known.shape.parameters == known.published


def test_smollm2_has_134_515_008_parameters():
    shape = HFConfig(checkpoint="smollm2-135m-instruct").shape()
    assert shape.parameters == 134_515_008
    assert (
        shape.hidden,
        shape.layers,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.intermediate,
        shape.vocab,
        shape.tied,
    ) == (576, 30, 9, 3, 64, 1536, 49152, True)


def test_repository_of_the_hub_names_the_same_model_in_any_case():
    assert (
        HFConfig(checkpoint="huggingfacetb/smollm2-135m-instruct").shape()
        == HFConfig(checkpoint="smollm2-135m-instruct").shape()
    )


def test_table_agrees_with_the_config_json_of_its_family(tmp_path):
    known = dict(known_checkpoints())["qwen3-0.6b"]
    config = Qwen3Config(
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        vocab_size=151936,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path)
    assert ModelShape.from_folder(tmp_path).model_copy(update={"name": "qwen3-0.6b"}) == known.shape


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("smolm2-135m-instruct", "did you mean 'smollm2-135m-instruct'"),
        ("Qwen/Qwen3-0.6", "did you mean 'qwen3-0.6b'"),
        ("someone/something", "hf download someone/something --local-dir FOLDER"),
        ("./absent", "'./absent' is no folder"),
        ("/absent/model", "is no folder"),
        ("a/b/c", "'a/b/c' is no folder"),
    ],
)
def test_unknown_checkpoint_says_what_to_do(checkpoint, message):
    with pytest.raises(ConfigError, match=message):
        HFConfig(checkpoint=checkpoint).shape()


def test_folder_without_a_language_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        HFConfig(checkpoint=str(tmp_path)).shape()
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ConfigError, match="not a decoder-only language model"):
        HFConfig(checkpoint=str(tmp_path)).shape()
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ConfigError, match="cannot read"):
        HFConfig(checkpoint=str(tmp_path)).shape()


def test_file_is_no_folder(tmp_path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ConfigError, match="is no folder"):
        HFConfig(checkpoint=str(tmp_path / "model.gguf")).shape()


def test_folder_has_no_revision(tmp_path):
    with pytest.raises(ConfigError, match="a folder has no revisions"):
        HFConfig(checkpoint=str(tmp_path), revision="main").shape()


def test_shape_opens_no_weights(tmp_path):
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert HFConfig(checkpoint=str(tmp_path)).shape().layers == 3


# --- damaged checkpoints ----------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    save(tmp_path, tie_word_embeddings=False)
    return tmp_path


def refuses(folder, message):
    with pytest.raises(ArtifactError, match=message):
        load(checkpoint=str(folder))


def edit(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_weights_are_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    refuses(checkpoint, "cannot load the model")


def test_pickled_weights_are_refused(checkpoint):
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    refuses(checkpoint, "cannot load the model")


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_truncated_weights_are_refused(checkpoint, size):
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[:size])
    refuses(checkpoint, "damaged weights")


def test_missing_tensor_is_refused_not_drawn_at_random(checkpoint):
    edit(checkpoint, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    refuses(checkpoint, r"1 missing keys, the first: model\.layers\.1\.mlp\.up_proj\.weight")


def test_unknown_tensor_is_refused(checkpoint):
    edit(checkpoint, lambda weights: weights.update(surprise=torch.zeros(3)))
    refuses(checkpoint, "unexpected keys, the first: surprise")


def test_tensor_of_another_shape_is_refused(checkpoint):
    edit(checkpoint, lambda weights: weights.update({"lm_head.weight": torch.zeros(3, 32)}))
    refuses(checkpoint, "lm_head|mismatched")


def test_tensor_in_two_files_is_refused(checkpoint):
    shutil.copy(checkpoint / "model.safetensors", checkpoint / "model-00002.safetensors")
    refuses(checkpoint, r"is also in model-00002\.safetensors")


def test_checkpoint_with_its_own_code_is_refused(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "code.py").write_text("raise SystemExit('ran')")
    refuses(checkpoint, "cannot load the model")


def test_there_is_no_option_to_trust_code():
    assert "trust_remote_code" not in HFConfig.model_fields


def test_missing_tokenizer_is_refused(checkpoint):
    (checkpoint / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot load its tokenizer"):
        HFConfig(checkpoint=str(checkpoint)).build().tokenizer()


@pytest.mark.parametrize("dtype", ["int8", "float33", "nn"])
def test_dtype_that_is_none_is_refused(checkpoint, dtype):
    with pytest.raises(ConfigError, match="no floating-point dtype"):
        HFConfig(checkpoint=str(checkpoint)).build().load(device="cpu", dtype=dtype)


# --- attention put into a model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["all", (1,)])
@pytest.mark.parametrize(
    ("model_class", "config_class"), [(LlamaForCausalLM, LlamaConfig), (Qwen2ForCausalLM, Qwen2Config)]
)
def test_full_attention_reproduces_the_logits(tmp_path, model_class, config_class, layers):
    options = save(tmp_path, model_class, config_class)
    plain, fitted = load(**options), load(**options, attention=FullAttentionConfig(), attention_layers=layers)
    assert fitted.model.layers[1].self_attn.copied[0] == "q_proj.weight"
    with torch.no_grad():
        assert relative_error(fitted(tokens()).logits, plain(tokens()).logits) < 64 * EPS
    assert relative_error(fitted(tokens()).logits, plain(tokens()).logits) < 64 * EPS


@pytest.mark.parametrize("beams", [1, 3])
def test_full_attention_generates_the_same_text(tmp_path, beams):
    options = save(tmp_path)
    texts = [
        model.generate(
            tokens(),
            attention_mask=torch.ones(2, 30, dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            num_beams=beams,
        )
        for model in (load(**options), load(**options, attention=FullAttentionConfig()))
    ]
    assert torch.equal(*texts)


def test_cached_forward_in_pieces_is_the_whole(tmp_path):
    model, cache = load(**save(tmp_path), attention=FullAttentionConfig(), attention_layers=(0, 1)), DynamicCache()
    with torch.no_grad():
        pieces = [
            model(piece, past_key_values=cache, use_cache=True).logits for piece in tokens().split([11, 1, 18], dim=1)
        ]
        assert relative_error(torch.cat(pieces, dim=1), model(tokens(), use_cache=False).logits) < 64 * EPS
        cache.crop(-7)
        again = model(tokens()[:, 23:], past_key_values=cache, use_cache=True).logits
    assert relative_error(again, pieces[2][:, 11:]) < 64 * EPS


def test_training_gradients_are_those_of_the_plain_model(tmp_path):
    options, gradients = save(tmp_path), []
    for model in (load(**options).train(), load(**options, attention=FullAttentionConfig()).train()):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        gradients.append({name.replace(".mixer", ""): parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert relative_error(gradients[1][name], gradient) < 1024 * EPS, name


def test_gradients_through_cached_tokens_are_refused(tmp_path):
    model, cache = load(**save(tmp_path), attention=FullAttentionConfig()), DynamicCache()
    model(tokens(), past_key_values=cache, use_cache=True)
    with pytest.raises(EngineError, match="gradients do not flow through cached tokens"):
        model(tokens(), past_key_values=cache, use_cache=True)


def test_cache_of_another_model_is_refused(tmp_path):
    options, cache = save(tmp_path), DynamicCache()
    plain, fitted = load(**options), load(**options, attention=FullAttentionConfig())
    with torch.no_grad():
        plain(tokens(), past_key_values=cache, use_cache=True)
        with pytest.raises(ConfigError, match="filled by another model"):
            fitted(tokens(), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize(
    "inputs",
    [
        {"attention_mask": torch.tensor([[0] + [1] * 29, [1] * 30])},
        {"attention_mask": torch.tensor([[1] * 30, [1] * 29 + [0]])},
        {"attention_mask": torch.zeros(2, 1, 30, 30)},
        {"position_ids": torch.arange(15).repeat(2)[None]},
        {"position_ids": torch.arange(1, 31)[None]},
    ],
)
def test_padding_and_packing_are_refused(tmp_path, inputs):
    model = load(**save(tmp_path), attention=FullAttentionConfig())
    with pytest.raises(ConfigError, match=r"no padding and no mask|counts positions itself|packed into one row"):
        model(tokens(), **inputs)


def test_all_ones_mask_and_counting_positions_are_fine(tmp_path):
    model = load(**save(tmp_path), attention=FullAttentionConfig())
    with torch.no_grad():
        named = model(
            tokens(), attention_mask=torch.ones(2, 30, dtype=torch.long), position_ids=torch.arange(30)[None]
        ).logits
        assert torch.equal(named, model(tokens()).logits)


def test_model_saved_with_a_mixer_loads_only_with_it(tmp_path):
    fitted = load(**save(tmp_path / "plain"), attention=FullAttentionConfig(), attention_layers=(0,))
    fitted.save_pretrained(tmp_path / "fitted")
    with pytest.raises(ArtifactError, match="saved with an attention plugin"):
        load(checkpoint=str(tmp_path / "fitted"))
    with pytest.raises(ArtifactError, match="do not fit the attention plugin"):
        load(checkpoint=str(tmp_path / "fitted"), attention=FullAttentionConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rotary positions are scaled"),
        ({"attention_bias": True}, r"o_proj\.bias, which a replacement would lose"),
    ],
)
def test_attention_that_a_layer_shape_cannot_describe_is_refused(tmp_path, changes, message):
    with pytest.raises(FitError, match=message):
        load(**save(tmp_path, **changes), attention=FullAttentionConfig())


def test_query_norms_are_refused_in_plan_and_load(tmp_path):
    config = HFConfig(**save(tmp_path, Qwen3ForCausalLM, Qwen3Config, head_dim=16), attention=FullAttentionConfig())
    assert not config.fit(TestQwen3WithNorms.context()).ok
    with pytest.raises(FitError, match=r"k_norm\.weight, q_norm\.weight"):
        config.build().load(device="cpu", dtype="float32")


def test_layer_beyond_the_model_does_not_fit():
    config = HFConfig(**TestLlama.all_options(), attention=FullAttentionConfig(), attention_layers=(0, 3))
    assert config.fit(TestLlama.context()).reason == "attention_layers names layer 3, the model has 0 to 2"


def test_touches_the_chosen_layers():
    def nodes(**options):
        config = HFConfig(checkpoint="smollm2-135m-instruct", **options)
        return [node for touch in config.touches(TestLlama.context()) for node in touch.nodes]

    assert nodes() == []
    assert nodes(attention=use("attention.full")) == ["model.layers.*.self_attn"]
    assert nodes(attention=use("attention.full"), attention_layers=(2, 0)) == [
        "model.layers.0.self_attn",
        "model.layers.2.self_attn",
    ]


def test_options_of_an_absent_attention_are_refused():
    with pytest.raises(ValueError, match="say nothing without attention"):
        HFConfig(checkpoint="smollm2-135m-instruct", attention_layers=(0,))


def test_unresolved_reference_is_refused():
    with pytest.raises(ConfigError, match=r"attention\.full is not resolved yet"):
        HFConfig(checkpoint="smollm2-135m-instruct", attention=use("attention.full")).build()
