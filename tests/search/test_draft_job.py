"""The job that finds a draft, on tiny models and by a made-up clock: nothing depends on this machine's speed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from truedepth.engine.drafts.drafts import Draft
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.drafts.policy import FixedPolicy
from truedepth.engine.engine import Engine
from truedepth.engine.sampling.request import Request
from truedepth.errors import OutputError, SearchError, TextError
from truedepth.measuring.step_costs import StepCosts
from truedepth.models.loading.load import load
from truedepth.plan.plan_file import PLAN_FILE, load_plan
from truedepth.records.progress import Progress
from truedepth.records.recipe import RECIPE_FILE
from truedepth.report import write_report
from truedepth.search.draft_benchmark import DraftRun, Timer
from truedepth.search.draft_job import optimize_lossless
from truedepth.search.draft_results import LOSSLESS_FILE, LosslessResults
from truedepth.search.job import JOURNAL_FILE
from truedepth.search.recipe import LosslessRecipe, Windows, load_recipe

LAYERS, VOCABULARY = 6, 259
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PASSING = {"created", "seconds", "machine"}


class MadeUpTimer(Timer):
    """A clock on which every layer takes a second, and each further token of a pass a share of that."""

    def __init__(self, each: float = 0.05, head: float = 1.0, slower: float = 1.0) -> None:
        self.slower = slower
        counts = (1, 2, 3, 5, 9, 17)
        self.step_costs = StepCosts(
            num_layers=LAYERS,
            begin_seconds=0.0,
            layer_seconds={count: 1 + each * (count - 1) for count in counts},
            head_seconds={count: head * (1 + each * (count - 1)) for count in counts},
            draft_head_seconds={size: head * size / VOCABULARY for size in (VOCABULARY // 32, VOCABULARY // 8)},
            pair_seconds={"lp": 2.0, "par": 2.0},
        )

    def costs(self, engine: Engine, vocabularies: Sequence[DraftVocabulary], progress: Progress) -> StepCosts:
        assert [len(part.ids) for part in vocabularies] == list(self.step_costs.draft_head_seconds)
        return self.step_costs

    def run(
        self, engine: Engine, request: Request, draft: Draft | None, num_speculative_tokens: int | None
    ) -> DraftRun:
        drafts = () if draft is None else (draft,)
        policy = None if draft is None else FixedPolicy(num_speculative_tokens or 2)
        (result,) = engine.generate([request], drafts=drafts, policy=policy)
        drafted = [step.drafted for step in result.steps if step.drafted]
        seconds = sum(not step.drafted for step in result.steps) * self.step_costs.plain_seconds()
        if draft is not None:
            size = None if draft.head.vocabulary is None else len(draft.head.vocabulary)
            seconds += self.slower * sum(self.step_costs.round_seconds(draft.plan, size, count) for count in drafted)
        accepted = [step.accepted for step in result.steps if step.drafted]
        return DraftRun(result.token_ids, seconds, drafted, accepted)

    def bandwidth(self, device: torch.device) -> float:
        return 1e9


@pytest.fixture(scope="module", autouse=True)
def _short_texts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("truedepth.search.draft_job.NEW_TOKENS", 24)
        patch.setattr("truedepth.search.draft_job._COUNTED_WINDOWS", 40)
        yield


@pytest.fixture(scope="module")
def planted_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose last three layers do nothing, and which writes nothing but lower-case letters."""
    folder = tmp_path_factory.mktemp("planted") / "model"
    shutil.copytree(tiny_folder, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    letters = AutoTokenizer.from_pretrained(folder)(LETTERS, add_special_tokens=False).input_ids
    with torch.no_grad():
        for layer in model.model.layers[3:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        rows = model.lm_head.weight[letters].clone()
        model.lm_head.weight.zero_()
        model.lm_head.weight[letters] = rows
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's text."""
    file = tmp_path_factory.mktemp("text") / "mine.txt"
    file.write_text(f"the quick brown fox jumps over the lazy dog and {LETTERS} again " * 20, encoding="utf-8")
    return file


def recipe_of(model: Path, **settings: Any) -> LosslessRecipe:
    windows = Windows(calibration=2, validation=1, test=3)
    return LosslessRecipe(**{"model": str(model), "windows": windows, **settings})


@pytest.fixture(scope="module")
def recipe(planted_folder: Path, text: Path) -> LosslessRecipe:
    return recipe_of(planted_folder, text=text)


@pytest.fixture(scope="module")
def finished(recipe: LosslessRecipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[LosslessResults, Path]:
    folder = tmp_path_factory.mktemp("finished")
    return optimize_lossless(recipe, folder, timer=MadeUpTimer()), folder


def test_finds_the_exit_that_agrees_everywhere(finished: tuple[LosslessResults, Path]) -> None:
    results, _ = finished
    assert results.pays
    assert results.best.draft.exit is not None and results.best.draft.exit <= 3
    exits = {
        candidate.draft.exit: candidate.agreement
        for candidate in results.candidates
        if candidate.draft.vocabulary is None
    }
    assert exits[3] == exits[4] == exits[5] == 1.0
    assert exits[1] < 1
    assert results.best.accepted == results.best.drafted
    assert results.best.same_texts == results.best.runs == 3


def test_expects_what_timing_then_finds(finished: tuple[LosslessResults, Path]) -> None:
    results, _ = finished
    expected = next(candidate for candidate in results.candidates if candidate.draft == results.best.draft)
    record = next(
        record
        for record in expected.speculation
        if record.num_speculative_tokens == results.best.num_speculative_tokens
    )
    assert record.tokens_per_second == pytest.approx(results.best.tokens_per_second, rel=0.1)
    assert results.best.plain_tokens_per_second == pytest.approx(1 / MadeUpTimer().step_costs.plain_seconds())
    assert expected.break_even is not None and 0 < expected.break_even < 1


def page_of(results: LosslessResults, folder: Path) -> str:
    return write_report(results, folder).read_text(encoding="utf-8")


def test_writes_everything_and_it_reads_back(finished: tuple[LosslessResults, Path], recipe: LosslessRecipe) -> None:
    results, folder = finished
    assert LosslessResults.load(folder / LOSSLESS_FILE) == results
    assert load_plan(folder) == results.best.draft.to_plan()
    assert load_recipe(folder / RECIPE_FILE) == recipe
    page = page_of(results, folder)
    assert f"--draft {folder.as_posix()}" in page
    assert json.loads((folder / LOSSLESS_FILE).read_text(encoding="utf-8")) == results.to_dict()


def test_a_draft_vocabulary_is_written_where_it_pays(recipe: LosslessRecipe, tmp_path: Path) -> None:
    results = optimize_lossless(recipe, tmp_path, timer=MadeUpTimer(head=30.0))
    assert results.best.draft.vocabulary == VOCABULARY // 8
    loaded = load(recipe.model)
    vocabulary = DraftVocabulary.load(tmp_path, loaded.model, loaded.tokenizer)
    assert len(vocabulary.ids) == VOCABULARY // 8
    assert vocabulary.source == results.text.source == str(recipe.text)
    page = page_of(results, tmp_path)
    assert f"--draft {tmp_path.as_posix()}" in page


def test_a_plan_that_cannot_pay_is_said(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    results = optimize_lossless(recipe_of(tiny_folder, text=text), tmp_path, timer=MadeUpTimer(each=1.0))
    assert not results.pays
    assert results.best.speedup < 1
    assert results.finalists == []  # nothing but the best was worth timing
    assert results.aim.break_even is None
    assert all(candidate.break_even is None for candidate in results.candidates)
    assert not (tmp_path / PLAN_FILE).exists()
    page = page_of(results, tmp_path)
    assert "No draft pays" in page and "truedepth generate" not in page


def test_an_untrained_model_is_told_what_its_exits_would_need(tiny_folder: Path, tmp_path: Path) -> None:
    results = optimize_lossless(recipe_of(tiny_folder), tmp_path, timer=MadeUpTimer(each=0.1))
    assert not results.pays
    limits = [candidate.break_even for candidate in results.candidates if candidate.draft.exit == 2]
    assert results.aim.exit == 2
    assert results.aim.break_even == min(limit for limit in limits if limit is not None)
    page = page_of(results, tmp_path)
    assert re.search(r"one after 2 of the 6 layers would pay from \d+ % on", page)


def test_what_timing_does_not_confirm_is_not_recommended(recipe: LosslessRecipe, tmp_path: Path) -> None:
    """By its costs the draft would pay; on the clock it does not."""
    results = optimize_lossless(recipe, tmp_path, timer=MadeUpTimer(slower=8.0))
    expected = results.candidates[0].best.tokens_per_second
    assert expected > 1 / results.costs.plain_seconds()
    assert len(results.finalists) == 3
    assert not results.pays
    assert not (tmp_path / PLAN_FILE).exists()


@contextmanager
def _counted(count: Callable[[], None]) -> Iterator[Callable[[], None]]:
    yield count


def interrupting(after: int) -> Callable[[str, int], Any]:
    """A progress that counts `after` steps and then interrupts, as Ctrl-C would."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps > after:
            raise KeyboardInterrupt

    return lambda description, total: _counted(count)


@pytest.mark.parametrize("after", [0, 12, 32, 45])
def test_an_interrupted_run_resumes_to_the_same_results(
    after: int, recipe: LosslessRecipe, finished: tuple[LosslessResults, Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        optimize_lossless(recipe, tmp_path, progress=interrupting(after), timer=MadeUpTimer())
    assert not (tmp_path / LOSSLESS_FILE).exists()
    resumed = optimize_lossless(recipe, tmp_path, resume=True, timer=MadeUpTimer())
    assert resumed.model_dump(exclude=PASSING) == finished[0].model_dump(exclude=PASSING)


def test_a_finished_run_is_not_measured_again(
    recipe: LosslessRecipe, finished: tuple[LosslessResults, Path], tmp_path: Path
) -> None:
    class Stopped(MadeUpTimer):
        def costs(self, *_: Any) -> StepCosts:
            raise AssertionError("measured again")

        def run(self, *_: Any) -> DraftRun:
            raise AssertionError("timed again")

    journal = (finished[1] / JOURNAL_FILE).read_bytes()
    (tmp_path / JOURNAL_FILE).write_bytes(journal)
    again = optimize_lossless(recipe, tmp_path, resume=True, timer=Stopped())
    assert (tmp_path / JOURNAL_FILE).read_bytes() == journal
    assert again.model_dump(exclude=PASSING) == finished[0].model_dump(exclude=PASSING)


def test_resuming_with_other_settings_is_refused(
    recipe: LosslessRecipe, finished: tuple[LosslessResults, Path], tmp_path: Path
) -> None:
    (tmp_path / JOURNAL_FILE).write_bytes((finished[1] / JOURNAL_FILE).read_bytes())
    with pytest.raises(OutputError, match="other settings: seed was 0 and is 1"):
        optimize_lossless(recipe.model_copy(update={"seed": 1}), tmp_path, resume=True)


def test_a_model_that_ends_its_texts_at_once_is_said(planted_folder: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "silent"
    shutil.copytree(planted_folder, folder)
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    settings["eos_token_id"] = list(range(VOCABULARY))
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(SearchError, match=r"ends each text with its first token.*--text"):
        optimize_lossless(recipe_of(folder, text=text), tmp_path / "run", timer=MadeUpTimer())


def test_a_model_of_a_single_layer_is_refused(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "single"
    shutil.copytree(tiny_folder, folder)
    AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=1).save_pretrained(folder)
    with pytest.raises(SearchError, match="a single layer"):
        optimize_lossless(recipe_of(folder, text=text), tmp_path / "run", timer=MadeUpTimer())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"text": Path("missing.txt")}, TextError, r"missing\.txt"),
        ({"windows": Windows(calibration=1, validation=1, test=1), "text": "short"}, TextError, "too short"),
    ],
)
def test_what_cannot_be_done_is_said(
    settings: dict[str, Any], error: type[Exception], message: str, planted_folder: Path, tmp_path: Path
) -> None:
    if settings["text"] == "short":
        short = tmp_path / "short.txt"
        short.write_text("Too little.", encoding="utf-8")
        settings = {**settings, "text": short}
    with pytest.raises(error, match=message):
        optimize_lossless(recipe_of(planted_folder, **settings), tmp_path / "run", timer=MadeUpTimer())
    assert not (tmp_path / "run" / LOSSLESS_FILE).exists()
