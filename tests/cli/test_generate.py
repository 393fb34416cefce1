"""`truedepth generate`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import truedepth
from truedepth.cli import main
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.generation import Piece, Stream, generate
from truedepth.engine.loop import decoder
from truedepth.models.loading.load import LoadedModel, load
from truedepth.models.rewire import apply
from truedepth.plan import DepthPlan
from truedepth.plan.plan_file import save_plan

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    return load(str(tiny_folder), device="cpu", dtype="float32")


class FakeInput(io.TextIOWrapper):
    """Standard input with something in it, or a terminal."""

    def __init__(self, content: bytes, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def run(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`run(ARGS)`: exit code, output and errors of `truedepth generate tiny ARGS`."""

    def call(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["generate", str(tiny_folder), "--device", "cpu", *args])
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, captured.out, captured.err

    return call


def test_text_and_summary(run: Any, loaded: LoadedModel) -> None:
    code, out, err = run("--prompt", PROMPT, "--max-new-tokens", "12")
    assert code == 0
    assert out == generate(loaded, PROMPT, max_new_tokens=12).text + "\n"
    assert "12 tokens, " in err
    assert "tokens/s" in err
    assert "effective depth 6 of 6" in err


@pytest.fixture(scope="module")
def text(loaded: LoadedModel) -> str:
    """Twenty greedy tokens."""
    return generate(loaded, PROMPT, max_new_tokens=20).text


class TestJson:
    def test_one_object(self, run: Any, loaded: LoadedModel) -> None:
        code, out, err = run("--prompt", PROMPT, "--max-new-tokens", "6", "--raw", "--json")
        data, expected = json.loads(out), generate(loaded, PROMPT, max_new_tokens=6, raw=True)
        assert (code, err) == (0, "")
        assert (data["token_ids"], data["text"]) == (list(expected.token_ids), expected.text)
        assert (data["prompt_tokens"], data["finish_reason"]) == (len(PROMPT), "length")
        assert data["timings"]["total"] > data["timings"]["prefill"] > 0
        assert (data["plan"], data["drafts"]) == (DepthPlan.full(6).to_dict(), [])
        assert data["logprobs"] is None

    def test_drafts(self, run: Any) -> None:
        args = ("--draft", "0-5", "--draft-length", "3", "--json", "--logprobs")
        _, out, _ = run("--prompt", PROMPT, "--max-new-tokens", "9", *args)
        data = json.loads(out)
        assert (data["drafted"], data["accepted"], data["acceptance"]) == ([3, 3], [3, 3], 1.0)
        assert data["acceptance_by_position"] == [1.0, 1.0, 1.0]
        assert data["schema_version"] == 2
        assert data["drafts"] == [{"draft": "0-5", "plan": DepthPlan.full(6).to_dict(), "vocabulary_size": None}]
        assert len(data["logprobs"]) == 9 and max(data["logprobs"]) < 0
        assert data["rounding"] == "attention is PyTorch's, for heads of 8 are no multiple of 16"

    def test_a_draft_given_twice(self, run: Any) -> None:
        data = json.loads(run("--prompt", PROMPT, "--draft", "0-5", "--draft", "0-5", "--json")[1])
        assert [draft["draft"] for draft in data["drafts"]] == ["0-5", "0-5"]


@pytest.fixture
def lossless_run(loaded: LoadedModel, tmp_path: Path) -> Path:
    """What `optimize --lossless` leaves where a draft with a vocabulary of its own pays."""
    folder = tmp_path / "lossless"
    DraftVocabulary(torch.arange(200)).save(folder, loaded.model, loaded.tokenizer)
    save_plan(DepthPlan.of_layers(range(5), 6), folder / "plan.yaml")
    return folder


class TestDrafts:
    """What is drafted changes no text."""

    @pytest.mark.parametrize(
        "args",
        [
            ["--draft", "exit:4"],
            ["--draft", "early-exit@4", "--draft", "exit:2"],
            ["--draft", "0-3 (4|5)", "--draft-length", "3"],
            ["--draft", "exit:2", "--plan", "0-5"],
        ],
        ids=" ".join,
    )
    def test_text(self, args: list[str], run: Any, text: str) -> None:
        code, out, err = run("--prompt", PROMPT, "--max-new-tokens", "20", *args)
        assert (code, out) == (0, text + "\n")
        assert "20 tokens, " in err

    def test_summary_and_stats(self, run: Any) -> None:
        args = ("--draft", "0-5", "--draft-length", "3", "--stats")
        _, _, err = run("--prompt", PROMPT, "--max-new-tokens", "20", *args)
        assert "14 of 14 drafted tokens accepted, 100 %; 3.80 tokens a step" in err
        assert "5 rounds of drafting, 0 plain steps" in err
        assert "the same text but where two tokens are nearly equally likely: attention is PyTorch's" in err
        lines = [line.split() for line in err.splitlines()]
        assert ["3", "4", "100", "%"] in lines  # the last round drafts two
        assert [line[-2:] for line in lines if line[:1] == ["total"]] == [["100", "%"]]

    def test_a_draft_that_was_not_used(self, run: Any) -> None:
        _, _, err = run("--prompt", PROMPT, "--max-new-tokens", "1", "--draft", "exit:2")
        assert "1 token after" in err
        assert "no tokens were drafted" in err

    def test_vocabulary_and_head_from_files(self, run: Any, loaded: LoadedModel, text: str, tmp_path: Path) -> None:
        DraftVocabulary(torch.arange(200)).save(tmp_path / "part", loaded.model, loaded.tokenizer)
        ExitHead.fresh(loaded.model, DepthPlan.of_layers(range(5), 6)).save(tmp_path / "head")
        common = ("--prompt", PROMPT, "--max-new-tokens", "20", "--draft-length", "3")
        _, with_part, part_summary = run(*common, "--draft", "0-5", "--draft-vocabulary", str(tmp_path / "part"))
        _, with_head, head_summary = run(*common, "--draft", str(tmp_path / "head"))
        assert with_part == with_head == text + "\n"
        assert "drafted tokens accepted" in part_summary
        assert "14 of 14 drafted tokens accepted" in head_summary

    def test_all_of_a_finished_search_is_used(
        self, run: Any, loaded: LoadedModel, text: str, lossless_run: Path
    ) -> None:
        args = ("--draft", str(lossless_run), "--draft-length", "3", "--json")
        _, out, _ = run("--prompt", PROMPT, "--max-new-tokens", "20", *args)
        data = json.loads(out)
        (draft,) = data["drafts"]
        assert data["text"] == text
        assert (draft["draft"], draft["plan"]["notation"]) == (str(lossless_run), "0-4")
        assert draft["vocabulary_size"] == 200

    def test_the_head_of_a_training_is_used(self, run: Any, loaded: LoadedModel, text: str, tmp_path: Path) -> None:
        part = DraftVocabulary(torch.arange(100))
        ExitHead.fresh(loaded.model, DepthPlan.of_layers(range(5), 6), vocabulary=part).save(tmp_path / "head")
        args = ("--draft", str(tmp_path), "--draft-length", "3", "--json")
        data = json.loads(run("--prompt", PROMPT, "--max-new-tokens", "20", *args)[1])
        assert data["text"] == text
        assert (data["drafts"][0]["plan"]["notation"], data["drafts"][0]["vocabulary_size"]) == ("0-4", 100)

    @pytest.mark.parametrize(("variable", "coloured"), [("FORCE_COLOR", True), ("NO_COLOR", False)])
    def test_accepted_tokens_are_coloured(
        self, variable: str, coloured: bool, run: Any, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("FORCE_COLOR", "NO_COLOR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(variable, "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        _, out, err = run("--prompt", PROMPT, "--max-new-tokens", "20", "--draft", "0-5", "--draft-length", "3")
        assert ("\x1b[32m" in out, "green" in err) == (coloured, coloured)
        assert out.replace("\x1b[32m", "").replace("\x1b[0m", "") == text + "\n"


class TestInterrupted:
    """Ctrl-C after three pieces."""

    @pytest.fixture(autouse=True)
    def interrupt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        left = iter(range(3))
        go_on = Stream.__next__

        def step(stream: Stream) -> Piece:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return go_on(stream)

        monkeypatch.setattr(Stream, "__next__", step)

    def test_what_is_there_is_summed_up(self, run: Any, loaded: LoadedModel) -> None:
        code, out, err = run("--prompt", PROMPT, "--stats")
        assert code == 130
        assert out.endswith("\n")
        assert "3 tokens, " in err
        assert err.splitlines()[-1] == "truedepth: interrupted"

    def test_json_is_whole(self, run: Any) -> None:
        code, out, err = run("--prompt", PROMPT, "--json")
        data = json.loads(out)
        assert (code, err) == (130, "truedepth: interrupted\n")
        assert (data["finish_reason"], len(data["token_ids"])) == ("cancelled", 3)


class TestLongPrompt:
    """Read in several passes."""

    @pytest.fixture(autouse=True)
    def small_passes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoder, "PROMPT_CHUNK", 8)

    def test_says_how_far_it_is(self, run: Any, loaded: LoadedModel) -> None:
        code, _, err = run("--prompt", PROMPT, "--max-new-tokens", "2", "--draft", "exit:2")
        assert (code, err.splitlines()[0]) == (0, "Reading the prompt ...")
        shown: list[tuple[str, int]] = []
        steps: list[None] = []

        @contextmanager
        def progress(description: str, total: int) -> Iterator[Callable[[], None]]:
            shown.append((description, total))
            yield lambda: steps.append(None)

        tokens = generate(loaded, PROMPT, max_new_tokens=2, progress=progress).prompt_tokens
        assert shown == [("Reading the prompt", -(-tokens // 8))] and len(steps) == -(-tokens // 8)

    def test_ctrl_c_while_it_is_read(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(decoder.Batch, "run_target", interrupted)
        code, _, err = run("--prompt", PROMPT)
        assert (code, err.splitlines()[-1]) == (130, "truedepth: interrupted")
        code, out, _ = run("--prompt", PROMPT, "--json")
        assert (code, json.loads(out)["token_ids"]) == (130, [])


def test_compare(run: Any) -> None:
    code, _, err = run("--prompt", PROMPT, "--max-new-tokens", "12", "--draft", "exit:2", "--compare")
    assert code == 0
    compared = err.splitlines()[-1]
    assert compared.startswith("compared: ")
    assert compared.endswith("; the same text")


def test_compare_as_json(run: Any) -> None:
    code, out, _ = run("--prompt", PROMPT, "--max-new-tokens", "12", "--draft", "exit:2", "--compare", "--json")
    assert code == 0
    comparison = json.loads(out)["comparison"]
    assert comparison["same_text"] is True
    speedup = comparison["speedup"]
    assert 0 < speedup["low"] <= speedup["median"] <= speedup["high"]


def test_stop_strings(run: Any, loaded: LoadedModel) -> None:
    text = generate(loaded, PROMPT, max_new_tokens=12).text
    stop = next(letter for letter in text[3:] if letter.isascii())
    _, out, _ = run("--prompt", PROMPT, "--max-new-tokens", "12", "--stop", "nowhere", "--stop", stop)
    assert out == text[: text.index(stop)] + "\n"


def test_sampling_options_are_handed_on(run: Any, loaded: LoadedModel) -> None:
    args = {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 3}
    options = [part for name, value in args.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    _, out, _ = run("--prompt", PROMPT, "--max-new-tokens", "12", *options)
    sampling_params = truedepth.SamplingParams(**args)  # type: ignore[arg-type]
    assert out == generate(loaded, PROMPT, max_new_tokens=12, sampling_params=sampling_params).text + "\n"


@pytest.mark.parametrize("kind", ["notation", "file"])
def test_plan(kind: str, run: Any, tiny_folder: Path, tmp_path: Path) -> None:
    plan = DepthPlan.parse("0 (1|2) 4 5", 6, form="par")
    save_plan(plan, tmp_path / "plan.yaml")
    args = ["--plan", plan.notation, "--form", "par"] if kind == "notation" else ["--plan", str(tmp_path)]
    code, out, err = run("--prompt", PROMPT, "--max-new-tokens", "12", *args)
    other = load(str(tiny_folder), device="cpu")
    apply(other.model, plan)
    assert code == 0
    assert out == generate(other, PROMPT, max_new_tokens=12).text + "\n"
    assert "effective depth 4 of 6" in err


def test_prompt_file(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT)
    _, from_file, _ = run("--prompt-file", str(file), "--max-new-tokens", "8")
    _, from_option, _ = run("--prompt", PROMPT, "--max-new-tokens", "8")
    assert from_file == from_option


def test_prompt_from_standard_input(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", FakeInput(PROMPT.encode()))
    _, from_stdin, _ = run("--max-new-tokens", "8")
    _, from_option, _ = run("--prompt", PROMPT, "--max-new-tokens", "8")
    assert from_stdin == from_option


def test_no_prompt_at_a_terminal(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", FakeInput(b"", terminal=True))
    code, _, err = run()
    assert code == 2
    assert "there is no prompt; give --prompt, --prompt-file, or text on standard input" in err


def test_empty_standard_input(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", FakeInput(b""))
    code, _, err = run()
    assert code == 2
    assert "the prompt is empty" in err


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (["--prompt", ""], 2, "the prompt is empty"),
        (["--prompt", "a", "--prompt-file", "b"], 2, "both --prompt and --prompt-file"),
        (["--prompt-file", "no-such-file"], 1, "cannot read no-such-file"),
        (["--prompt", "a", "--max-new-tokens", "0"], 2, "the number of new tokens is 0"),
        (["--prompt", "a", "--temperature", "-1"], 2, "temperature is -1"),
        (["--prompt", "a", "--max-new-tokens", "9999"], 2, "the model's context of 512"),
        (["--prompt", "a", "--plan", "0-29"], 2, "the model has 6 layers"),
        (["--prompt", "a", "--plan", "none.yaml"], 2, "there is no plan file or run 'none.yaml'"),
        (["--prompt", "a", "--plan", "exit:9"], 2, "plan 'exit:9': method 'early-exit': exit is 9"),
        (["--prompt", "a", "--draft", "exit:9"], 2, "exit is 9, but the model has 6 layers"),
        (["--prompt", "a", "--draft", "exit:2", "--draft-length", "0"], 2, "the draft length is 0"),
        (["--prompt", "a", "--draft-length", "4"], 2, "a draft length is given, but no draft"),
        (["--prompt", "a", "--draft", "nowhere/head"], 2, "there is no plan file or run 'nowhere/head'"),
        (["--prompt", "a", "--draft", "exit:2", "--draft-vocabulary", "nowhere"], 1, "nowhere"),
        (["--prompt", "a", "--stop", ""], 2, "a stop string is empty"),
        (["--prompt", "a", "--json", "--stats"], 2, "--json has all figures without --stats"),
        (["--prompt", "a", "--logprobs"], 2, "--logprobs needs --json"),
        (["--prompt", "a", "--compare"], 2, "give --draft"),
        (["--prompt", "a", "--draft", "exit:2", "--compare", "--max-new-tokens", "1"], 2, "too soon to time anything"),
    ],
)
def test_errors(args: list[str], exit_code: int, message: str, run: Any) -> None:
    code, out, err = run(*args)
    assert code == exit_code
    assert out == "" or "--compare" in args  # by then the text is written
    assert err.splitlines()[-1].startswith("truedepth: error: ")
    assert message in err


def test_plan_file_for_another_depth_names_both(run: Any, tmp_path: Path) -> None:
    save_plan(DepthPlan.full(30), tmp_path / "plan.yaml")
    code, _, err = run("--prompt", PROMPT, "--plan", str(tmp_path))
    assert code == 2
    assert "is for 30 layers, but the model has 6" in err


def test_prompt_file_that_is_not_utf8(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"caf\xe9")
    code, _, err = run("--prompt-file", str(file))
    assert code == 1
    assert "is not UTF-8 text (byte 3)" in err


def test_files_of_other_systems(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbf" + PROMPT.encode())
    given = ("--raw", "--json", "--max-new-tokens", "4")
    with_mark = json.loads(run("--prompt-file", str(file), *given)[1])
    assert with_mark["token_ids"] == json.loads(run("--prompt", PROMPT, *given)[1])["token_ids"]
    for data, what in ((PROMPT.encode("utf-16"), "is UTF-16 text"), (b"a\0b", "has a NUL byte (byte 1)")):
        file.write_bytes(data)
        code, _, err = run("--prompt-file", str(file))
        assert code == 1
        assert what in err
