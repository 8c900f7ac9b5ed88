"""Conversations to ids: the model's template, tool calls and results, and prefixes that stay."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackloom.core.chat import Message, ToolCall, parse_tool_calls, render_call, render_result
from stackloom.core.errors import ConfigError
from stackloom.core.generation import ChatTokenizer
from stackloom.engine.chat_tokenizer import HFChatTokenizer
from stackloom.testing import tiny_tokenizer

# What SmolLM2-135M-Instruct ships.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_TOOLS = (
    "{% for message in messages %}{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role') }}{% endif %}[{{ message['role'] }}] {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TOKENIZERS = {name: tiny_tokenizer(template) for name, template in (("smollm2", SMOLLM2), ("no-tools", NO_TOOLS))}
TOKENIZERS["none"] = tiny_tokenizer("")
TEXT = st.text("ab \n<|é{", max_size=6)
CALLS = st.lists(st.builds(ToolCall, st.sampled_from(["add", "now"]), st.just({"a": 1})), max_size=2).map(tuple)
CONVERSATIONS = st.lists(
    st.one_of(
        st.builds(Message, st.sampled_from(["system", "user"]), TEXT),
        st.builds(Message, st.just("assistant"), TEXT, CALLS),
        st.builds(Message, st.just("tool"), TEXT, name=st.just("add")),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None)
@given(messages=CONVERSATIONS, reply=TEXT, calls=CALLS, later=CONVERSATIONS, name=st.sampled_from(sorted(TOKENIZERS)))
def test_a_prompt_is_a_prefix_of_every_later_rendering(messages, reply, calls, later, name):
    chat = HFChatTokenizer(TOKENIZERS[name])
    prompt = chat.render(messages, reply=True)
    answered = [*messages, Message("assistant", reply, calls)]
    for longer in (chat.render(answered, reply=False), chat.render([*answered, *later], reply=True)):
        assert longer[: len(prompt)] == prompt


def test_the_text_is_the_templates_own():
    chat: ChatTokenizer = HFChatTokenizer(TOKENIZERS["smollm2"])
    messages = [Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "Hm")]
    expected = TOKENIZERS["smollm2"].apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert TOKENIZERS["smollm2"].decode(chat.render(messages, reply=True)) == expected
    assert chat.end_of_message == "<|im_end|>"


def test_calls_and_results_are_written_as_core_writes_them():
    chat = HFChatTokenizer(TOKENIZERS["smollm2"])
    call = ToolCall("add", {"a": 1, "b": 2})
    messages = [Message("user", "1+2?"), Message("assistant", "Hm.", (call, call)), Message("tool", "3", name="add")]
    text = TOKENIZERS["smollm2"].decode(chat.render(messages, reply=True))
    assert f"<|im_start|>assistant\nHm.\n{render_call(call)}\n{render_call(call)}<|im_end|>" in text
    assert f"<|im_start|>tool\n{render_result('add', '3')}<|im_end|>" in text
    spoken = text.split("assistant\n")[1].split("<|im_end|>")[0]
    assert [found.arguments for found in parse_tool_calls(spoken).calls] == [{"a": 1, "b": 2}] * 2


def test_a_template_without_tools_reads_results_as_a_users():
    chat = HFChatTokenizer(TOKENIZERS["no-tools"], tool_format="json")
    ids = chat.render([Message("user", "?"), Message("tool", "3", name="add")], reply=False)
    assert TOKENIZERS["no-tools"].decode(ids) == f"[user] ?</s>[user] {render_result('add', '3', format='json')}</s>"
    assert chat.end_of_message == "</s>"


def test_a_tokenizer_without_a_template_writes_chatml():
    chat = HFChatTokenizer(TOKENIZERS["none"])
    ids = chat.render([Message("user", "Hi")], reply=True)
    assert TOKENIZERS["none"].decode(ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_text_that_was_tokenized_before_is_not_tokenized_again():
    class Counting:
        def __init__(self, tokenizer):
            self.tokenizer, self.seen = tokenizer, []

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def __call__(self, text, **options):
            self.seen.append(text)
            return self.tokenizer(text, **options)

    counting = Counting(TOKENIZERS["smollm2"])
    chat = HFChatTokenizer(counting)
    messages = [Message("user", "one")]
    chat.render(messages, reply=True)
    messages += [Message("assistant", "two"), Message("user", "three")]
    chat.render(messages, reply=True)
    assert "one" in counting.seen[0]
    assert counting.seen[1] == "two<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"
    assert len(counting.seen) == 2


def test_what_cannot_be_rendered_is_a_config_error():
    with pytest.raises(ConfigError, match="without messages"):
        HFChatTokenizer(TOKENIZERS["smollm2"]).render([], reply=True)
    with pytest.raises(ConfigError, match="tool-call format"):
        HFChatTokenizer(TOKENIZERS["smollm2"], tool_format="hermse")
    with pytest.raises(ConfigError, match="chat template refuses"):
        HFChatTokenizer(tiny_tokenizer("{{ raise_exception('never') }}"))
