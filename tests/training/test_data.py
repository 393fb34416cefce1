"""Reading items: what each format gives, and that what is wrong is said by file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from truedepth.errors import TextError
from truedepth.training.data.sources import Conversation, DataSource, Document, Exchange, read_items

Write = Callable[..., Path]


def items_of(file: Path | str, **fields: Any) -> list[Any]:
    return list(read_items(DataSource(file=str(file), **fields)))


class TestFormats:
    def test_a_text_file_is_one_document(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("grün\n\nblau", encoding="utf-8")
        (item,) = items_of(tmp_path / "a.txt")
        assert isinstance(item, Document)
        assert (item.text, str(item.where)) == ("grün\n\nblau", str(tmp_path / "a.txt"))

    def test_a_pattern_is_all_files_by_name(self, tmp_path: Path) -> None:
        for name in ("b.py", "a.py", "c.txt", "deep/d.py"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name)
        assert [item.text for item in items_of(tmp_path / "**" / "*.py")] == ["a.py", "b.py", "deep/d.py"]

    def test_a_file_whose_name_looks_like_a_pattern(self, tmp_path: Path) -> None:
        (tmp_path / "a[1].txt").write_text("x")
        assert len(items_of(tmp_path / "a[1].txt")) == 1

    def test_lines_of_text(self, write_lines: Write) -> None:
        found = items_of(write_lines([{"text": "a"}, "", {"text": "b", "more": 1}]))
        assert [(item.text, item.where.number) for item in found] == [("a", 1), ("b", 3)]

    def test_prompt_and_response_with_names_of_their_own(self, write_lines: Write) -> None:
        file = write_lines([{"question": "2+2?", "answer": "4"}])
        names = {"prompt_field": "question", "response_field": "answer"}
        (item,) = items_of(file, format="prompt-response", **names)
        assert item == Exchange(item.where, "2+2?", "4")
        (item,) = items_of(file, format="prompt-response", chat_template=True, **names)
        assert item.messages == ({"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"})

    def test_chat(self, write_lines: Write) -> None:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        (item,) = items_of(write_lines([{"turns": messages}]), format="chat", messages_field="turns")
        assert item == Conversation(item.where, tuple(messages))

    @pytest.mark.parametrize("as_text", [False, True])
    def test_what_else_the_template_reads(self, as_text: bool, write_lines: Write) -> None:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        tools, others = [{"name": "f", "default": None}], {"enable_thinking": False}
        given: dict[str, Any] = {"tools": tools, "documents": [], "chat_template_kwargs": others}
        fields = {name: json.dumps(value) if as_text else value for name, value in given.items()}
        (item,) = items_of(write_lines([{"messages": messages, **fields, "id": 7, "system": None}]), format="chat")
        assert item.inputs == {"tools": tools, "documents": [], "enable_thinking": False}
        assert item.unread == ("id",)

    def test_line_ends_and_byte_order_marks(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n')
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\xef\xbb\xbf")
        assert [item.text for item in items_of(tmp_path / "a.jsonl")] == ["a", "b"]
        assert [item.text for item in items_of(tmp_path / "a.txt")] == ["a\ufeff"]

    def test_skip_and_limit(self, write_lines: Write) -> None:
        file = write_lines([{"text": str(number)} for number in range(9)])
        assert [item.text for item in items_of(file, skip=2, limit=3)] == ["2", "3", "4"]
        assert [item.text for item in items_of(file, skip=7)] == ["7", "8"]


class TestDatasets:
    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))

    @pytest.fixture
    def rows(self) -> list[dict[str, str]]:
        return [{"text": "one"}, {"text": "two"}]

    def test_a_folder_of_data_files(self, write_lines: Write, rows: list[dict[str, str]], tmp_path: Path) -> None:
        write_lines(rows)
        found = list(read_items(DataSource(dataset=str(tmp_path))))
        assert [(item.text, item.where.number) for item in found] == [("one", 0), ("two", 1)]  # type: ignore[union-attr]
        assert str(found[1].where) == f"dataset {tmp_path}, split train, row 1"

    def test_a_saved_dataset(self, rows: list[dict[str, str]], tmp_path: Path) -> None:
        from datasets import Dataset, DatasetDict

        DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:1])}).save_to_disk(tmp_path)
        assert len(list(read_items(DataSource(dataset=str(tmp_path))))) == 2
        assert len(list(read_items(DataSource(dataset=str(tmp_path), split="test")))) == 1

    def test_fields_that_other_rows_have(self, tmp_path: Path) -> None:
        from datasets import Dataset

        tools = [[{"properties": {"city": {"type": "string"}}}], [{"properties": {"day": {"type": "string"}}}]]
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        Dataset.from_list([{"messages": messages, "tools": each} for each in tools]).save_to_disk(tmp_path)
        found = read_items(DataSource(dataset=str(tmp_path), format="chat"))
        assert [item.inputs["tools"] for item in found] == tools  # type: ignore[union-attr]

    @pytest.mark.parametrize("split", ["train[:1]", "test"])
    def test_splits(self, split: str, write_lines: Write, rows: list[dict[str, str]], tmp_path: Path) -> None:
        write_lines(rows)
        source = DataSource(dataset=str(tmp_path), split=split)
        if split == "test":
            with pytest.raises(TextError, match=r"cannot read the dataset .* split 'test'"):
                list(read_items(source))
        else:
            assert len(list(read_items(source))) == 1

    def test_a_row_that_is_wrong(self, write_lines: Write, tmp_path: Path) -> None:
        write_lines([{"text": "one"}, {"text": " "}])
        with pytest.raises(TextError, match=r"split train, row 1: the field 'text' is empty"):
            list(read_items(DataSource(dataset=str(tmp_path))))


GOOD = {"prompt": "a", "response": "b"}
USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


class TestRefused:
    @pytest.mark.parametrize(
        ("line", "what"),
        [
            ('{"prompt": "a", "response"', "line 2 is not JSON: Expecting ':' delimiter"),
            ("[1, 2]", "line 2 is no JSON object but"),
            ("[" * 100_000, "line 2 is not JSON that can be read"),
            ({"prompt": "a"}, "line 2 has no field 'response'; its fields are 'prompt'"),
            ({"prompt": "a", "response": ""}, "line 2: the field 'response' is empty"),
            ({"prompt": " ", "response": "b"}, "line 2: the field 'prompt' is empty"),
            ({"prompt": "a", "response": None}, "line 2: the field 'response' is None; it must be text"),
            ({"prompt": ["a"], "response": "b"}, r"line 2: the field 'prompt' is \['a'\]; it must be text"),
        ],
    )
    def test_a_line(self, line: Any, what: str, write_lines: Write) -> None:
        file = write_lines([GOOD, line, GOOD])
        with pytest.raises(TextError, match=f"items.jsonl, {what}"):
            items_of(file, format="prompt-response")

    @pytest.mark.parametrize(
        ("messages", "what"),
        [
            ([], r"the field 'messages' is \[\]"),
            ("hello", "the field 'messages' is 'hello'"),
            ([USER], "no message of 'messages' has the role assistant"),
            ([USER, {"role": "assistant", "content": "\n"}], "message 2 of 'messages' is an empty response"),
            ([USER, {"role": "assistant", "content": None}], "the content of message 2 of 'messages' is None"),
            ([{"content": "a"}, ASSISTANT], "message 1 of 'messages' is .*; it needs a 'role' and a 'content'"),
            (["a", ASSISTANT], "message 1 of 'messages' is 'a'"),
        ],
    )
    def test_messages(self, messages: Any, what: str, write_lines: Write) -> None:
        with pytest.raises(TextError, match=f"items.jsonl, line 1: {what}"):
            items_of(write_lines([{"messages": messages}]), format="chat")

    @pytest.mark.parametrize(
        ("fields", "what"),
        [
            ({"tools": "[{"}, "the field 'tools' is no JSON"),
            ({"tools": {"name": "f"}}, "the field 'tools' is {'name': 'f'}; it must be a list of objects"),
            (
                {"chat_template_kwargs": {"tokenize": False}},
                "the field 'chat_template_kwargs' is .*must be an object",
            ),
            ({"chat_template_kwargs": [1]}, "the field 'chat_template_kwargs' is"),
            ({"tools": '[{"name": "\\ud800"}]'}, "has U\\+D800, which is half of a character"),
        ],
    )
    def test_what_else_the_template_reads(self, fields: dict[str, Any], what: str, write_lines: Write) -> None:
        with pytest.raises(TextError, match=f"items.jsonl, line 1:? {what}"):
            items_of(write_lines([{"messages": [USER, ASSISTANT], **fields}]), format="chat")

    @pytest.mark.parametrize(
        ("settings", "fields"),
        [
            ({}, {"text": "a\ud800"}),
            ({"format": "prompt-response"}, {"prompt": "a", "response": "\udfff"}),
            ({"format": "chat"}, {"messages": [USER, {"role": "assistant", "content": "\ud83d"}]}),
        ],
    )
    def test_halves_of_characters(self, settings: dict[str, Any], fields: dict[str, Any], write_lines: Write) -> None:
        with pytest.raises(TextError, match=r"items.jsonl, line 2 has U\+D.*half of a character"):
            items_of(write_lines(["", fields]), **settings)

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
    def test_other_encodings(self, name: str, tmp_path: Path) -> None:
        for data, what in (
            ('{"text": "a"}'.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
            ('{"text": "a"}'.encode("utf-16-le"), r"has a NUL byte \(byte 1\)"),
        ):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(TextError, match=what):
                items_of(tmp_path / name)

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
        with pytest.raises(TextError, match=r"a.jsonl, line 2 is not UTF-8 text \(byte 10\)"):
            items_of(tmp_path / "a.jsonl")
        (tmp_path / "a.txt").write_bytes(b"a\xff")
        with pytest.raises(TextError, match=r"a.txt is not UTF-8 text \(byte 1\)"):
            items_of(tmp_path / "a.txt")

    def test_files_that_are_not_there(self, tmp_path: Path) -> None:
        for name in ("a.txt", "a.jsonl"):
            with pytest.raises(TextError, match=f"{name}: No such file"):
                items_of(tmp_path / name)
        with pytest.raises(TextError, match="no file fits the pattern"):
            items_of(tmp_path / "*.txt")
        with pytest.raises(TextError, match=r"cannot read the dataset '.*none'"):
            list(read_items(DataSource(dataset=str(tmp_path / "none"))))

    def test_a_text_file_of_responses(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("a")
        with pytest.raises(TextError, match=r"no JSON lines file.*ends in .jsonl"):
            items_of(tmp_path / "a.txt", format="prompt-response")

    @pytest.mark.parametrize(
        ("fields", "what"),
        [
            ({}, "exactly one of 'file' and 'dataset'"),
            ({"file": "a", "dataset": "b"}, "exactly one of"),
            ({"file": "a", "subset": "b"}, "'subset' goes with 'dataset' only"),
            ({"file": "a", "chat_template": True}, "'chat_template' goes with"),
            ({"file": "a", "lines": 3}, "Extra inputs"),
        ],
    )
    def test_settings_that_do_not_go_together(self, fields: dict[str, Any], what: str) -> None:
        with pytest.raises(ValidationError, match=what):
            DataSource(**fields)


def test_nothing_is_read_before_it_is_needed(write_lines: Write) -> None:
    found = read_items(DataSource(file=str(write_lines([{"text": "a"}, "broken"]))))
    assert json.dumps(next(found).text) == '"a"'  # type: ignore[union-attr]
