"""What every model plugin must hold.

Shape legend: B sequences, T tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from stackloom.core.shapes import ModelShape
from stackloom.testing.comparison import eps, relative_error
from stackloom.testing.contracts.plugin import PluginContract, torch_dtype


class ModelContract(PluginContract):
    """The laws of slot `model`. Give a model of at most a few million parameters.

    Example:
        >>> class TestMyModel(ModelContract):
        ...     plugin = "model.my-model"
        ...     options = {"layers": 2}
    """

    @classmethod
    def shape(cls) -> ModelShape:
        """Return the model's own shape."""
        shape = cls.config().shape()
        assert isinstance(shape, ModelShape)
        return shape

    @classmethod
    def load(cls, dtype: str = "") -> PreTrainedModel:
        """Load the model on the CPU; in float32 if the manifest lists it."""
        names = cls.record().manifest.can.dtypes
        model = cls.component().load(device="cpu", dtype=dtype or ("float32" if "float32" in names else names[0]))
        assert isinstance(model, PreTrainedModel)
        return model

    @classmethod
    def reload(cls, folder: Path, model: PreTrainedModel) -> PreTrainedModel:
        """Load what `save_pretrained` wrote; a model that needs its plugin for that says how."""
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
        assert isinstance(loaded, PreTrainedModel)
        return loaded  # from_pretrained leaves it in eval mode

    @classmethod
    def tokens(cls, length: int, seed: int = 0) -> Tensor:
        """Return (2, T) random token ids."""
        return torch.randint(0, cls.shape().vocab, (2, length), generator=torch.Generator().manual_seed(seed))

    def test_parameters_are_what_shape_and_cost_say(self, dtype: str) -> None:
        """Nested components count their own; here they are added as a plan does."""
        model = self.load(dtype)
        held = sum(parameter.numel() for parameter in model.parameters())
        config, work = self.config(), self.work(dtype)
        costs = [config.cost(work), *(part.cost(work) for _, _, part in config.nested())]
        assert sum(cost.parameters for cost in costs) == held
        assert sum(cost.weight_bytes for cost in costs) == sum(
            parameter.numel() * parameter.element_size() for parameter in model.parameters()
        )
        if len(costs) == 1:
            assert self.shape().parameters == held

    def test_shape_is_the_loaded_models(self) -> None:
        found = ModelShape.from_hf_config(self.shape().name, self.load().config.to_dict())
        for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "tied", "max_positions"):
            assert getattr(self.shape(), field) == getattr(found, field), field

    def test_loads_in_the_dtype_and_in_eval_mode(self, dtype: str) -> None:
        model = self.load(dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {torch_dtype(dtype)}
        assert not any(module.training for module in model.modules())
        with torch.no_grad():
            assert torch.isfinite(model(self.tokens(7)).logits).all()

    @pytest.mark.parametrize("tokens", [1, 63])
    def test_logits_depend_on_the_past_alone(self, tokens: int) -> None:
        model, one = self.load(), self.tokens(tokens)
        other = torch.cat((one[:, :-1], (one[:, -1:] + 1) % self.shape().vocab), dim=1)
        with torch.no_grad():
            logits, changed = model(one).logits, model(other).logits
        assert logits.shape == (2, tokens, self.shape().vocab)
        assert tokens == 1 or relative_error(changed[:, :-1], logits[:, :-1]) <= 64 * eps(logits.dtype)
        assert not torch.equal(changed[:, -1], logits[:, -1])

    def test_generation_with_a_cache_is_generation_without(self) -> None:
        model, prompt = self.load(), self.tokens(9)
        options = {
            "max_new_tokens": 8,
            "min_new_tokens": 8,
            "do_sample": False,
            "attention_mask": torch.ones_like(prompt),
            "pad_token_id": 0,
        }
        cached, plain = (model.generate(prompt, use_cache=use_cache, **options) for use_cache in (True, False))  # type: ignore[operator]
        assert cached.shape == (2, 17)
        assert torch.equal(cached, plain)

    def test_saved_model_comes_back_bit_exactly(self, tmp_path: Path) -> None:
        model, tokens = self.load(), self.tokens(20)
        model.save_pretrained(tmp_path)
        assert list(tmp_path.glob("*.safetensors"))
        again = self.reload(tmp_path, model)
        with torch.no_grad():
            assert torch.equal(model(tokens).logits, again(tokens).logits)

    def test_two_loads_are_bit_equal(self) -> None:
        states = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            states.append(self.load().state_dict())
        assert states[0].keys() == states[1].keys()
        assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []

    def test_gradients_reach_every_parameter(self) -> None:
        model, tokens = self.load().train(), self.tokens(20)
        model(input_ids=tokens, labels=tokens).loss.backward()
        bare = [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (parameter.grad is None or not torch.isfinite(parameter.grad).all())
        ]
        assert bare == []

    def test_tokenizer_belongs_to_the_model(self) -> None:
        tokenizer: Any = self.component().tokenizer()
        text = "Hello, world"
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert tokens
        assert max(tokens) < self.shape().vocab
        assert tokenizer.decode(tokens) == text

    def test_attention_feature_is_true(self) -> None:
        slots = {
            mark.slot
            for field in type(self.config()).model_fields.values()
            for mark in field.metadata
            if hasattr(mark, "slot")
        }
        assert ("attention" in slots) == ("attention" in self.record().manifest.can.features)
