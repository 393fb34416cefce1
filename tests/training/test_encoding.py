"""Which tokens an item comes to, and which of them the loss is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from truedepth.errors import TextError
from truedepth.training.data.encoding import Encoder
from truedepth.training.data.sources import Conversation, Document, Exchange, Where

WHERE = Where("items.jsonl", "line", 7)


def conversation(*turns: str) -> Conversation:
    """Turns of user and assistant, one after the other."""
    roles = ("user", "assistant")
    return Conversation(WHERE, tuple({"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)))


def written(tokenizer: Any, encoded: Any) -> tuple[str, str]:
    """The whole text, and the part of it in the loss, runs separated by `|`."""
    whole = tokenizer.decode(encoded.ids)
    runs, before = "", False
    for token, counts in zip(encoded.ids, encoded.loss_mask, strict=True):
        if counts:
            runs += ("" if before or not runs else "|") + tokenizer.decode([token])
        before = counts
    return whole, runs


def test_a_document_is_trained_on_whole(byte_tokenizer: Callable[..., Any]) -> None:
    tokenizer = byte_tokenizer()
    assert written(tokenizer, Encoder(tokenizer).encode(Document(WHERE, "abc"))) == ("abc</s>", "abc</s>")


def test_only_the_response_of_an_exchange_is_trained_on(byte_tokenizer: Callable[..., Any]) -> None:
    tokenizer = byte_tokenizer()
    assert written(tokenizer, Encoder(tokenizer).encode(Exchange(WHERE, "ab", "cd"))) == ("abcd</s>", "cd</s>")


def test_special_tokens_of_the_tokenizer_come_once(byte_tokenizer: Callable[..., Any]) -> None:
    """As with Llama 2, which puts a token at the start, and with those that put one at the end."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    encoder = Encoder(tokenizer)
    assert written(tokenizer, encoder.encode(Document(WHERE, "abc")))[0] == "<s>abc</s>"
    assert written(tokenizer, encoder.encode(Exchange(WHERE, "ab", "cd"))) == ("<s>abcd</s>", "cd</s>")


MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}[a]{% generation %}{{ m['content'] }}</s>"
    "{% endgeneration %}{% else %}[u]{{ m['content'] }}{% endif %}{% endfor %}"
)


class TestConversations:
    def test_by_prefixes(self, byte_tokenizer: Callable[..., Any]) -> None:
        tokenizer = byte_tokenizer()
        whole, loss_mask = written(tokenizer, Encoder(tokenizer).encode(conversation("hi", "ho", "on", "no")))
        assert whole == "[user]hi</s>[assistant]ho</s>[user]on</s>[assistant]no</s>"
        assert loss_mask == "ho</s>|no</s>"

    def test_by_the_marks_of_the_template(self, byte_tokenizer: Callable[..., Any]) -> None:
        tokenizer = byte_tokenizer(MARKED)
        whole, loss_mask = written(tokenizer, Encoder(tokenizer).encode(conversation("hi", "ho", "on", "no")))
        assert (whole, loss_mask) == ("[u]hi[a]ho</s>[u]on[a]no</s>", "ho</s>|no</s>")

    @pytest.mark.parametrize("template", [None, MARKED])
    def test_the_last_response_only(self, template: str | None, byte_tokenizer: Callable[..., Any]) -> None:
        tokenizer = byte_tokenizer(template) if template else byte_tokenizer()
        encoded = Encoder(tokenizer, responses="last").encode(conversation("hi", "ho", "on", "no"))
        assert written(tokenizer, encoded)[1] == "no</s>"

    def test_a_template_that_rewrites_earlier_turns(self, byte_tokenizer: Callable[..., Any]) -> None:
        """As those that take out what a model thought: earlier responses are then not trained on."""
        tokenizer = byte_tokenizer(
            "{% for m in messages %}[{{ m['role'] }}]"
            "{{ m['content'] if loop.last else m['content'].split('!')[-1] }}</s>{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}"
        )
        encoded = Encoder(tokenizer).encode(conversation("hi", "hm!ho", "on", "hm!no"))
        assert written(tokenizer, encoded)[1] == "hm!no</s>"

    def test_a_conversation_that_ends_with_the_user(self, byte_tokenizer: Callable[..., Any]) -> None:
        tokenizer = byte_tokenizer()
        assert written(tokenizer, Encoder(tokenizer).encode(conversation("hi", "ho", "on")))[1] == "ho</s>"

    def test_a_first_message_of_the_assistant_is_not_trained_on(self, byte_tokenizer: Callable[..., Any]) -> None:
        """Templates write things of their own before it, which no prefix tells apart from it."""
        tokenizer = byte_tokenizer()
        turns = conversation("", "hi", "on", "ho").messages[1:]
        assert written(tokenizer, Encoder(tokenizer).encode(Conversation(WHERE, turns)))[1] == "ho</s>"

    @pytest.mark.parametrize(
        ("template", "what"),
        [
            (None, "the tokenizer has no chat template"),
            ("{{ raise_exception('no system prompt') }}", "refuses this conversation: no system prompt"),
            ("{% if add_generation_prompt %}x{% else %}abc{% endif %}", "cannot be told where it starts"),
            (
                "{% for m in messages %}{% if m['role'] == 'tool' %}{% generation %}a{% endgeneration %}{% endif %}"
                "{{ m['content'] }}{% endfor %}",
                "leaves no token of a response",
            ),
        ],
    )
    def test_refused_with_file_and_line(
        self, template: str | None, what: str, byte_tokenizer: Callable[..., Any]
    ) -> None:
        with pytest.raises(TextError, match=f"items.jsonl, line 7: .*{what}"):
            Encoder(byte_tokenizer(template)).encode(conversation("hi", "ho"))
