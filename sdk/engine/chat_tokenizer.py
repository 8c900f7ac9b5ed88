"""`HFChatTokenizer`: conversations to token ids with the model's own template, stable from one turn to the next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from stackloom.core.chat import Message, find_format, render_call, render_result
from stackloom.core.errors import ConfigError

# For models that were never taught a template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CACHED_PREFIXES = 256


class HFChatTokenizer:
    """Fulfils `core.generation.ChatTokenizer` over a tokenizer of transformers.

    The text is tokenized in pieces that end where an assistant's message begins, so what a model was given before its
    reply stays a prefix of every later rendering, and each piece is tokenized once.

    Args:
        tokenizer: with or without a chat template; without one, messages are written the way ChatML does.
        tool_format: how calls and results are written (see core.chat).

    Raises:
        ConfigError: an unknown tool format, or a template that cannot write a plain conversation.

    Example:
        >>> chat = HFChatTokenizer(tokenizer)
        >>> chat.render([Message("user", "Hi")], reply=True)[:3]
        [1, 9690, 198]
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, tool_format: str = "hermes") -> None:
        find_format(tool_format)
        self._tokenizer, self._format = tokenizer, tool_format
        self._template = None if tokenizer.chat_template else PLAIN_TEMPLATE
        self._cached: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        asked = [Message("user", "a"), Message("assistant", "b")]
        self._end = self._find_end(asked)
        self._tool_role = "tool"
        try:
            self._text([*asked, Message("tool", "c", name="d")], reply=False)
        except ConfigError:
            self._tool_role = "user"

    @property
    def end_of_message(self) -> str:
        """The string that ends an assistant's message, for instance "<|im_end|>"."""
        return self._end

    def render(self, messages: Sequence[Message], *, reply: bool) -> list[int]:
        """Return the ids of a conversation; with `reply`, up to where the assistant's next message begins.

        Rendering a conversation with `reply` gives a prefix of every rendering that goes on with an assistant's
        message, unless the template itself rewrites earlier messages.

        Raises:
            ConfigError: no messages, or the template refuses them.
        """
        if not messages:
            raise ConfigError("a conversation without messages", where="messages", fix="give at least one")
        text = self._text(messages, reply=reply)
        cuts = [0]
        for place, message in enumerate(messages):
            if message.role == "assistant" and place:
                before = self._text(messages[:place], reply=True)
                if text.startswith(before) and len(before) > cuts[-1]:
                    cuts.append(len(before))
        ids: list[int] = []
        for start, stop in zip(cuts, [*cuts[1:], len(text)], strict=True):
            ids += self._tokenize(text[start:stop])
        return ids

    def _text(self, messages: Sequence[Message], *, reply: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [self._plain(message) for message in messages],
                    chat_template=self._template,
                    add_generation_prompt=reply,
                    tokenize=False,
                )
            )
        except Exception as cause:
            raise ConfigError(f"the model's chat template refuses these messages: {cause}", where="messages") from cause

    def _plain(self, message: Message) -> dict[str, Any]:
        if message.role == "tool":
            content = render_result(message.name, message.content, format=self._format)
            return {"role": self._tool_role, "content": content}
        calls = [render_call(call, format=self._format) for call in message.tool_calls]
        return {"role": message.role, "content": "\n".join([*([message.content] if message.content else []), *calls])}

    def _tokenize(self, text: str) -> tuple[int, ...]:
        if text not in self._cached:
            self._cached[text] = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            if len(self._cached) > CACHED_PREFIXES:
                self._cached.popitem(last=False)
        self._cached.move_to_end(text)
        return self._cached[text]

    def _find_end(self, asked: Sequence[Message]) -> str:
        """Return what the template writes right after an assistant's content: its first special token if it has one."""
        marked = Message("assistant", "\u2042")
        after = self._text([asked[0], marked], reply=False).rpartition("\u2042")[2]
        specials = [token for token in self._tokenizer.get_added_vocab() if after.lstrip().startswith(token)]
        return max(specials, key=len) if specials else after.strip() or str(self._tokenizer.eos_token or "")
