"""`data.jsonl`: the slot's laws per format, and every way in which a line can be bad."""

import json
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackloom.core.errors import ArtifactError, ConfigError, ErrorGroup
from stackloom.plugins.data.jsonl import jsonl
from stackloom.plugins.data.jsonl.config import JsonlConfig
from stackloom.testing import DataContract, tiny_tokenizer

END = "<|im_end|>"


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


CHATS = [
    chat(("user", "Hi"), ("assistant", "Hello")),
    chat(
        ("system", "Be brief."),
        ("user", "1 + 1?"),
        ("assistant", "2"),
        ("user", "naïve?"),
        ("assistant", "Yes, ïndeed"),
    ),
    {**chat(("user", "?"), ("assistant", "!")), "source": "elsewhere"},
]
NOT_CHATS = {
    "malformed": b'{"messages": [',
    "not an object": b"[1, 2]",
    "not UTF-8": b'{"messages": "\xff"}',
    "NaN": b'{"messages": NaN}',
    "nested too deep": b"[" * 100_000,
    "no field": b'{"mesages": []}',
    "no list": b'{"messages": "hi"}',
    "no messages": b'{"messages": []}',
    "unknown role": b'{"messages": [{"role": "bot", "content": "hi"}]}',
    "no content": b'{"messages": [{"role": "assistant"}]}',
    "content not text": b'{"messages": [{"role": "assistant", "content": 3}]}',
    "lone surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "assistant first": b'{"messages": [{"role": "assistant", "content": "hi"}]}',
    "no assistant": b'{"messages": [{"role": "user", "content": "hi"}]}',
    "tools not a list": b'{"tools": 3, "messages": [{"role": "assistant", "content": "hi"}]}',
}


def write(folder, records, name="data.jsonl"):
    path = folder / name
    path.write_bytes(
        b"".join((record if isinstance(record, bytes) else json.dumps(record).encode()) + b"\n" for record in records)
    )
    return str(path)


def read(folder, records, **options):
    return JsonlConfig(path=write(folder, records), **options).build(tiny_tokenizer())


def trained(data, index=0):
    tokens, mask = data[index]
    return data.tokenizer.decode([token for token, on in zip(tokens, mask, strict=True) if on])


class TestMessages(DataContract):
    plugin = "data.jsonl"
    trained = (f"Hello{END}", f"2{END}Yes, ïndeed{END}", f"!{END}")

    @classmethod
    def files(cls, folder):
        return {"path": write(folder, CHATS)}

    @classmethod
    def bad_options(cls, folder):
        found = [
            {"path": write(folder, [CHATS[0], line], f"{place}.jsonl")} for place, line in enumerate(NOT_CHATS.values())
        ]
        return [
            *found,
            {"path": str(folder)},
            {"path": str(folder / "absent")},
            {"path": write(folder, [], "empty.jsonl")},
        ]


class TestText(DataContract):
    plugin = "data.jsonl"
    options: ClassVar = {"format": "text"}
    trained = (f"Once upon a time{END}", f"naïve{END}")

    @classmethod
    def files(cls, folder):
        return {"path": write(folder, [{"text": "Once upon a time"}, {"text": "naïve"}])}

    @classmethod
    def bad_options(cls, folder):
        return [
            {"path": write(folder, [record])} for record in ({"text": ""}, {"text": " \n"}, {"text": 1}, {"txt": "a"})
        ]


class TestPromptCompletion(DataContract):
    plugin = "data.jsonl"
    options: ClassVar = {"format": "prompt-completion"}
    trained = (f" 2{END}", f"free{END}")

    @classmethod
    def files(cls, folder):
        return {
            "path": write(folder, [{"prompt": "1 + 1 =", "completion": " 2"}, {"prompt": "", "completion": "free"}])
        }

    @classmethod
    def bad_options(cls, folder):
        bad = (
            {"prompt": "a", "completion": ""},
            {"prompt": "a"},
            {"completion": "a"},
            {"prompt": ["a"], "completion": "b"},
        )
        return [{"path": write(folder, [record])} for record in bad]


@pytest.mark.parametrize("kind", NOT_CHATS)
def test_bad_line_is_named_by_its_number_or_left_out(tmp_path, kind):
    with pytest.raises(ErrorGroup) as caught:
        read(tmp_path, [CHATS[0], NOT_CHATS[kind], CHATS[1]])
    assert [error.where.endswith("data.jsonl:2") for error in caught.value.errors] == [True]
    data = read(tmp_path, [CHATS[0], NOT_CHATS[kind], CHATS[1]], on_bad="skip")
    assert len(data) == 2
    assert trained(data, 1) == TestMessages.trained[1]
    assert data.problems() == (f"line 2: {caught.value.errors[0].reason}",)


def test_misspelt_field_gets_a_suggestion(tmp_path):
    with pytest.raises(ErrorGroup, match="did you mean 'mesages'"):
        read(tmp_path, [NOT_CHATS["no field"]])


def test_only_bad_lines_are_an_error_even_when_skipped(tmp_path):
    with pytest.raises(ConfigError, match="all 2 lines are bad, the first: no assistant message"):
        read(tmp_path, [NOT_CHATS["no assistant"]] * 2, on_bad="skip")


def test_blank_lines_count_as_lines_but_not_as_examples(tmp_path):
    with pytest.raises(ErrorGroup) as caught:
        read(tmp_path, [b"", CHATS[0], b"  ", NOT_CHATS["malformed"]])
    assert caught.value.errors[0].where.endswith(":4")
    assert len(read(tmp_path, [b"", CHATS[0], b"\r"])) == 1


def test_last_line_needs_no_line_end(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(CHATS[0]))
    assert trained(JsonlConfig(path=str(path)).build(tiny_tokenizer())) == TestMessages.trained[0]


def test_oversized_line_is_refused_and_the_next_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 200)
    data = read(tmp_path, [CHATS[0], {"text": "x" * 999}, b"[" * 201, CHATS[2]], on_bad="skip")
    assert data.problems() == ("line 2: longer than 200 bytes", "line 3: longer than 200 bytes")
    assert trained(data, 1) == TestMessages.trained[2]


def test_many_bad_lines_are_counted(tmp_path):
    with pytest.raises(ErrorGroup, match="30 bad lines") as caught:
        read(tmp_path, [NOT_CHATS["malformed"]] * 30)
    assert len(caught.value.errors) == jsonl.MAX_PROBLEMS + 1
    assert caught.value.errors[-1].reason == "and 10 more"


def test_cut_examples_keep_their_beginning(tmp_path):
    whole, cut = read(tmp_path, CHATS), read(tmp_path, CHATS, max_tokens=45)
    for index in range(3):
        assert cut[index].input_ids == whole[index].input_ids[:45]
        assert cut[index].loss_mask == whole[index].loss_mask[:45]
    assert len(cut[1].input_ids) == 45 < len(whole[1].input_ids)


def test_example_cut_before_its_first_trained_token_is_bad(tmp_path):
    data = read(tmp_path, [CHATS[0], chat(("user", "x" * 50), ("assistant", "y"))], max_tokens=36, on_bad="skip")
    assert data.problems() == ("line 2: no token to train on within max_tokens 36",)


@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "assistant"]), st.text(st.characters(codec="utf-8"), max_size=12)),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=40, deadline=None)
def test_trained_text_is_what_the_assistant_said(tmp_path_factory, turns):
    turns = [("user", "start"), *turns, ("assistant", "end")]
    data = read(tmp_path_factory.mktemp("chat"), [chat(*turns)])
    said = "".join(f"{content}{END}" for role, content in turns if role == "assistant")
    assert trained(data) == said
    full = data.tokenizer.apply_chat_template(chat(*turns)["messages"], tokenize=False)
    assert data[0].input_ids == data.tokenizer.encode(full, add_special_tokens=False)


def test_template_that_rewrites_history_is_refused_not_masked_wrongly(tmp_path):
    forgetful = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = tiny_tokenizer(forgetful)
    path = write(tmp_path, [CHATS[0], CHATS[1]])
    with pytest.raises(
        ErrorGroup, match=r"messages\[2\]: the chat template renders the conversation up to here differently"
    ):
        JsonlConfig(path=path).build(tokenizer)
    assert len(JsonlConfig(path=path, on_bad="skip").build(tokenizer)) == 1


def test_what_a_template_writes_behind_the_end_marker_is_not_trained_and_without_a_marker_all_is(tmp_path):
    path = write(tmp_path, [chat(("user", "Hi"), ("assistant", "Hello"))])
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}END \n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    marked = JsonlConfig(path=path).build(tiny_tokenizer(template.replace("END", END)))
    assert trained(marked) == f"Hello{END}"
    assert trained(JsonlConfig(path=path).build(tiny_tokenizer(template))) == "HelloEND \n"


def test_template_that_raises_is_a_bad_line(tmp_path):
    with pytest.raises(ErrorGroup, match="the chat template refuses"):
        JsonlConfig(path=write(tmp_path, [CHATS[0]])).build(tiny_tokenizer("{{ raise_exception('no') }}"))


def test_tool_calls_and_tools_reach_the_template(tmp_path):
    template = (
        "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] or m['tool_calls'] | tojson }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    record = {
        "tools": [{"name": "add"}],
        "messages": [
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": 7}]},
        ],
    }
    data = JsonlConfig(path=write(tmp_path, [record])).build(tiny_tokenizer(template))
    assert trained(data) == f'[{{"id": 7}}]{END}'
    assert '"add"' in data.tokenizer.decode(data[0].input_ids)


def test_file_that_changes_under_the_run_is_noticed(tmp_path):
    data = read(tmp_path, CHATS)
    write(tmp_path, [CHATS[0], chat(("user", "some"), ("assistant", "other")), CHATS[2]])
    assert trained(data) == TestMessages.trained[0]
    with pytest.raises(ArtifactError, match="example 1 changed"):
        data[1]
    (tmp_path / "data.jsonl").unlink()
    with pytest.raises(ArtifactError, match="cannot read the file any more"):
        data[0]


def test_file_is_not_held_in_memory(tmp_path):
    data = read(tmp_path, [{"text": "a" * 5000}] * 200, format="text")
    held = [value for value in vars(data).values() if isinstance(value, bytes | str | list | dict | tuple)]
    assert len(data) == 200
    assert sum(len(value) for value in held) < 10
    assert data._offsets.itemsize + data._checksums.itemsize == 12
