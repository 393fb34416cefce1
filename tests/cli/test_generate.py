"""`truedepth generate` and the library function below it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from truedepth.cli import main
from truedepth.errors import UsageError
from truedepth.generation import Sampling, generate
from truedepth.models.load import LoadedModel, load
from truedepth.models.rewire import apply
from truedepth.plan import DepthPlan
from truedepth.plan_file import save_plan

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


class TestLibrary:
    def test_greedy_equals_generate(self, loaded: LoadedModel) -> None:
        model: Any = loaded.model
        inputs = loaded.tokenizer(PROMPT, return_tensors="pt")
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs.input_ids.shape[1] :]
        written = generate(loaded, PROMPT, max_new_tokens=12, raw=True)
        assert written.text == loaded.tokenizer.decode(expected, skip_special_tokens=True)
        assert written.tokens == len(expected)
        assert written.prompt_tokens == len(PROMPT)
        assert written.first_token_seconds > 0

    def test_pieces_make_the_text(self, loaded: LoadedModel) -> None:
        pieces: list[str] = []
        written = generate(loaded, PROMPT, max_new_tokens=40, on_text=pieces.append)
        assert "".join(pieces) == written.text

    def test_chat_template(self, loaded: LoadedModel) -> None:
        in_chat = generate(loaded, PROMPT, max_new_tokens=4)
        assert in_chat.prompt_tokens == len(PROMPT) + 2

    def test_without_chat_template(self, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loaded.tokenizer, "chat_template", None)
        assert generate(loaded, PROMPT, max_new_tokens=4).prompt_tokens == len(PROMPT)

    def test_seed(self, loaded: LoadedModel) -> None:
        first, again, other = (
            generate(loaded, PROMPT, max_new_tokens=24, sampling=Sampling(temperature=1.5, seed=seed)).text
            for seed in (1, 1, 2)
        )
        assert first == again != other

    def test_seed_leaves_the_random_state(self, loaded: LoadedModel) -> None:
        import torch

        before = torch.random.get_rng_state()
        generate(loaded, PROMPT, max_new_tokens=4, sampling=Sampling(temperature=1.0, seed=1))
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_sampling_from_one_token_is_greedy(self, loaded: LoadedModel) -> None:
        greedy = generate(loaded, PROMPT, max_new_tokens=12)
        for sampling in (Sampling(temperature=2.0, top_k=1), Sampling(temperature=2.0, top_p=1e-6)):
            assert generate(loaded, PROMPT, max_new_tokens=12, sampling=sampling).text == greedy.text

    def test_the_models_own_settings_do_not_leak(self, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        greedy = generate(loaded, PROMPT, max_new_tokens=12)
        for name, value in (("do_sample", True), ("temperature", 9.0), ("top_k", 3)):
            monkeypatch.setattr(loaded.model.generation_config, name, value)
        assert generate(loaded, PROMPT, max_new_tokens=12).text == greedy.text

    def test_one_token_has_no_speed(self, loaded: LoadedModel) -> None:
        assert generate(loaded, PROMPT, max_new_tokens=1).decode_tokens_per_second is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"temperature": -0.1}, "temperature is -0.1"),
            ({"temperature": float("nan")}, "temperature is nan"),
            ({"temperature": float("inf")}, "temperature is inf"),
            ({"temperature": 1.0, "top_k": 0}, "top-k is 0"),
            ({"temperature": 1.0, "top_p": 0.0}, "top-p is 0"),
            ({"temperature": 1.0, "top_p": 1.5}, "top-p is 1.5"),
            ({"top_p": 0.9}, "give a temperature above 0"),
            ({"top_k": 5}, "give a temperature above 0"),
        ],
    )
    def test_wrong_sampling(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Sampling(**arguments)

    @pytest.mark.parametrize(
        ("prompt", "new", "message"),
        [
            ("", 4, "the prompt is empty"),
            (" \n", 4, "the prompt is empty"),
            (PROMPT, 0, "the number of new tokens is 0"),
            ("x" * 512, 1, "the prompt has 512 tokens, but the model's context is 512"),
            ("x" * 500, 20, "ask for at most 12 new tokens"),
        ],
    )
    def test_wrong_input(self, loaded: LoadedModel, prompt: str, new: int, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            generate(loaded, prompt, max_new_tokens=new, raw=True)

    def test_the_context_can_be_filled(self, loaded: LoadedModel) -> None:
        assert generate(loaded, "x" * 510, max_new_tokens=2, raw=True).prompt_tokens == 510


class TestCommand:
    @pytest.fixture
    def run(self, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
        """`run(ARGS)`: exit code, output and errors of `truedepth generate tiny ARGS`."""

        def call(*args: str) -> tuple[int, str, str]:
            with pytest.raises(SystemExit) as caught:
                main(["generate", str(tiny_folder), "--device", "cpu", *args])
            captured = capsys.readouterr()
            assert isinstance(caught.value.code, int)
            return caught.value.code, captured.out, captured.err

        return call

    def test_text_and_summary(self, run: Any, loaded: LoadedModel) -> None:
        code, out, err = run("--prompt", PROMPT, "--max-new-tokens", "12")
        assert code == 0
        assert out == generate(loaded, PROMPT, max_new_tokens=12).text + "\n"
        assert "12 tokens, " in err
        assert "tokens/s" in err
        assert "effective depth 6 of 6" in err

    def test_json(self, run: Any) -> None:
        code, out, _ = run("--prompt", PROMPT, "--max-new-tokens", "3", "--raw", "--json")
        assert code == 0
        data = json.loads(out)
        assert (data["prompt_tokens"], data["tokens"]) == (len(PROMPT), 3)
        assert data["plan"] == DepthPlan.full(6).to_dict()

    @pytest.mark.parametrize("kind", ["notation", "file"])
    def test_plan(self, kind: str, run: Any, tiny_folder: Path, tmp_path: Path) -> None:
        plan = DepthPlan.parse("0 (1|2) 4 5", 6, form="par")
        save_plan(plan, tmp_path / "plan.yaml")
        args = ["--plan", plan.notation, "--form", "par"] if kind == "notation" else ["--plan", str(tmp_path)]
        code, out, err = run("--prompt", PROMPT, "--max-new-tokens", "12", *args)
        other = load(str(tiny_folder), device="cpu")
        apply(other.model, plan)
        assert code == 0
        assert out == generate(other, PROMPT, max_new_tokens=12).text + "\n"
        assert "effective depth 4 of 6" in err

    def test_prompt_file(self, run: Any, tmp_path: Path) -> None:
        file = tmp_path / "prompt.txt"
        file.write_text(PROMPT)
        _, from_file, _ = run("--prompt-file", str(file), "--max-new-tokens", "8")
        _, from_option, _ = run("--prompt", PROMPT, "--max-new-tokens", "8")
        assert from_file == from_option

    def test_prompt_from_standard_input(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", FakeInput(PROMPT.encode()))
        _, from_stdin, _ = run("--max-new-tokens", "8")
        _, from_option, _ = run("--prompt", PROMPT, "--max-new-tokens", "8")
        assert from_stdin == from_option

    def test_no_prompt_at_a_terminal(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", FakeInput(b"", terminal=True))
        code, _, err = run()
        assert code == 2
        assert "there is no prompt; give --prompt, --prompt-file, or text on standard input" in err

    def test_empty_standard_input(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", FakeInput(b""))
        code, _, err = run()
        assert code == 2
        assert "the prompt is empty" in err

    @pytest.mark.parametrize(
        ("args", "exit_code", "message"),
        [
            (["--prompt", ""], 2, "the prompt is empty"),
            (["--prompt", "a", "--prompt-file", "b"], 2, "both --prompt and --prompt-file"),
            (["--prompt-file", "no-such-file"], 1, "cannot read the prompt from no-such-file"),
            (["--prompt", "a", "--max-new-tokens", "0"], 2, "the number of new tokens is 0"),
            (["--prompt", "a", "--temperature", "-1"], 2, "temperature is -1"),
            (["--prompt", "a", "--max-new-tokens", "9999"], 2, "the model's context of 512"),
            (["--prompt", "a", "--plan", "0-29"], 2, "the model has 6 layers"),
            (["--prompt", "a", "--plan", "none.yaml"], 2, "there is no plan file or run 'none.yaml'"),
        ],
    )
    def test_errors(self, args: list[str], exit_code: int, message: str, run: Any) -> None:
        code, out, err = run(*args)
        assert (code, out) == (exit_code, "")
        assert err.splitlines()[-1].startswith("truedepth: error: ")
        assert message in err

    def test_plan_file_for_another_depth_names_both(self, run: Any, tmp_path: Path) -> None:
        save_plan(DepthPlan.full(30), tmp_path / "plan.yaml")
        code, _, err = run("--prompt", PROMPT, "--plan", str(tmp_path))
        assert code == 2
        assert "is for 30 layers, but the model has 6" in err

    def test_prompt_file_that_is_not_utf8(self, run: Any, tmp_path: Path) -> None:
        file = tmp_path / "prompt.txt"
        file.write_bytes(b"caf\xe9")
        code, _, err = run("--prompt-file", str(file))
        assert code == 1
        assert "is not UTF-8 text (byte 3)" in err
