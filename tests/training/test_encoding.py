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

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
WITH_TOOLS = (
    "{% if tools %}{{ tools | tojson }}</s>{% endif %}{% if documents %}{{ documents[0].text }}{% endif %}"
    "{% if enable_thinking %}[think]{% endif %}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class TestInputs:
    @pytest.mark.parametrize("inputs", [{"tools": TOOLS}, {"documents": [{"text": "d"}]}, {"enable_thinking": True}])
    def test_the_template_is_given_them(self, inputs: dict[str, Any], byte_tokenizer: Callable[..., Any]) -> None:
        tokenizer = byte_tokenizer(WITH_TOOLS)
        messages = conversation("hi", "ho").messages
        whole, loss_mask = written(tokenizer, Encoder(tokenizer).encode(Conversation(WHERE, messages, inputs)))
        assert whole == tokenizer.apply_chat_template(list(messages), tokenize=False, **inputs)
        assert loss_mask == "ho</s>"

    def test_the_template_for_tools_is_taken(self, byte_tokenizer: Callable[..., Any]) -> None:
        tokenizer = byte_tokenizer({"default": "{{ messages[1].content }}", "tool_use": WITH_TOOLS})
        item = Conversation(WHERE, conversation("hi", "ho").messages, {"tools": TOOLS})
        assert written(tokenizer, Encoder(tokenizer).encode(item))[0].startswith('[{"type": "function"')

    def test_a_field_that_the_template_would_read(self, byte_tokenizer: Callable[..., Any]) -> None:
        item = Conversation(WHERE, conversation("hi", "ho").messages, unread=("enable_thinking", "id"))
        with pytest.raises(TextError, match=r"line 7: the chat template reads enable_thinking, .*chat_template_kwargs"):
            Encoder(byte_tokenizer(WITH_TOOLS)).encode(item)
        Encoder(byte_tokenizer()).encode(item)

    def test_a_field_of_another_format_is_said_once(
        self, byte_tokenizer: Callable[..., Any], recwarn: pytest.WarningsRecorder
    ) -> None:
        encoder = Encoder(byte_tokenizer())
        for _ in range(2):
            encoder.encode(Conversation(WHERE, conversation("hi", "ho").messages, unread=("functions", "id")))
        assert ["the field functions is not read" in str(warning.message) for warning in recwarn] == [True]

    def test_arguments_in_quotes(self, byte_tokenizer: Callable[..., Any]) -> None:
        """Refused where the template would quote them once more, and kept where it writes them as they are."""
        call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        item = Conversation(WHERE, (*conversation("hi").messages, turn))
        with pytest.raises(TextError, match=r"quotes around the arguments of a tool call.*as a JSON object"):
            Encoder(byte_tokenizer(WITH_TOOLS)).encode(item)
        tokenizer = byte_tokenizer(WITH_TOOLS.replace("call['function'] | tojson", "call['function']['arguments']"))
        assert written(tokenizer, Encoder(tokenizer).encode(item))[1] == '{"city": "Ulm"}</s>'


def by_words() -> Any:
    """A tokenizer with words that hold their space, whose tokens leave it out when asked where they come from."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "Ġb"]
    backend = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [("Ġ", "a"), ("Ġ", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


class TestMarks:
    PLAIN = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}<u>{{ m['content'] }}{% endif %}{% endfor %}"
    )

    @pytest.mark.parametrize(
        ("turns", "loss_mask"),
        [
            (("", "A", "user", "no"), "A|no"),
            (("wie?", "so é", "und 你?", "好😀"), "so é|好😀"),
            (("a", " \n", "b", "c "), " \n|c "),
        ],
    )
    def test_exactly_the_tokens_of_responses(
        self, turns: tuple[str, ...], loss_mask: str, byte_tokenizer: Callable[..., Any]
    ) -> None:
        tokenizer = byte_tokenizer(self.PLAIN.replace("<u>", "") if not turns[0] else self.PLAIN)
        encoded = Encoder(tokenizer).encode(conversation(*turns))
        runs: list[list[int]] = [[]]
        for token, counts in zip(encoded.ids, encoded.loss_mask, strict=True):
            runs[-1:] = [[*runs[-1], token]] if counts else [runs[-1], []]
        assert "|".join(tokenizer.decode(run) for run in runs if run) == loss_mask

    @pytest.mark.parametrize(
        "template",
        [
            "{% for m in messages %}{{ m['role'] }}:\n  {%- generation -%}\n{{ m['content'] }}\n{% endgeneration %}\n"
            "{% endfor %}",
            "{% for m in messages %}\n  {% generation %}\n{{ m['content'] }}{%- endgeneration -%}\n x{% endfor %}",
        ],
    )
    def test_the_text_is_the_templates(self, template: str, byte_tokenizer: Callable[..., Any]) -> None:
        tokenizer = byte_tokenizer(template)
        item = conversation("hi", "ho")
        ids = tokenizer.apply_chat_template(list(item.messages))["input_ids"]
        encoded = Encoder(tokenizer).encode(item)
        assert encoded.ids == ids
        assert written(tokenizer, encoded)[1].replace("\n", "") == "hi|ho"

    def test_a_token_across_the_border(self) -> None:
        tokenizer = by_words()
        tokenizer.chat_template = self.PLAIN
        encoded = Encoder(tokenizer).encode(conversation("x", " a", "x", "b a "))
        assert written(tokenizer, encoded) == ("<u>x a<u>xb a ", " a|b a ")
        tokenizer.chat_template = self.PLAIN.replace("{% generation %}", " {% generation %}")
        with pytest.raises(TextError, match="line 7: the token ' a' is in a response with one part"):
            Encoder(tokenizer).encode(conversation("x", "a"))

    def test_a_tokenizer_that_does_not_say_where_tokens_come_from(self) -> None:
        from transformers import ByT5Tokenizer

        tokenizer = ByT5Tokenizer()
        tokenizer.chat_template = self.PLAIN
        with pytest.raises(TextError, match=r"ByT5Tokenizer does not say .* tokenizer\.json"):
            Encoder(tokenizer).encode(conversation("a", "b"))


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
            ({"rag": "x", "tool_use": "x"}, "chat templates named rag, tool_use, but none named default"),
            ("{{ messages[0].content.nothing.here }}", "refuses this conversation: 'str object' has no attribute"),
            ("{% if %}", "refuses this conversation: Expected an expression"),
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
