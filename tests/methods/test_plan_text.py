"""What a user writes for a plan, and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from truedepth.errors import MethodError, PlanError
from truedepth.methods import all_methods
from truedepth.methods.base import LayerMethod
from truedepth.methods.layer_parallel import LayerParallel
from truedepth.methods.plan_text import names_a_file, read_plan
from truedepth.methods.unified_skipping import UnifiedSkipping
from truedepth.plan import DepthPlan
from truedepth.plan.plan_file import save_plan

SAVED = DepthPlan.parse("0-3 (4|5) 7", 8, form="par", prefill="full")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    save_plan(SAVED, tmp_path / "plan.yaml")
    return tmp_path


class TestNotation:
    def test_none_is_every_layer(self) -> None:
        assert read_plan(None, 8) == DepthPlan.full(8)

    def test_notation(self) -> None:
        assert read_plan("0-3 (4|5)", 8) == DepthPlan.parse("0-3 (4|5)", 8)
        assert read_plan("0 (1|2)", 8, "par", "full") == DepthPlan.parse("0 (1|2)", 8, "par", "full")

    @pytest.mark.parametrize("text", ["0-3 (4,5)", "0-3, 5", "(1|x)", "0..4", "3a", "1@2"])
    def test_misspelt_notation_names_the_token(self, text: str) -> None:
        with pytest.raises(PlanError, match=r"token '.*' at column"):
            read_plan(text, 8)

    def test_empty(self) -> None:
        with pytest.raises(PlanError, match="the plan is empty"):
            read_plan("", 8)


class TestFiles:
    def test_file_and_folder(self, run_folder: Path) -> None:
        assert read_plan(str(run_folder), 8) == SAVED
        assert read_plan(str(run_folder / "plan.yaml"), 8) == SAVED

    def test_form_and_prefill_override_the_file(self, run_folder: Path) -> None:
        plan = read_plan(str(run_folder), 8, "lp", "plan")
        assert (plan.stages, plan.form, plan.prefill) == (SAVED.stages, "lp", "plan")

    def test_other_number_of_layers_names_both(self, run_folder: Path) -> None:
        with pytest.raises(PlanError, match=r"is for 8 layers, but the model has 30"):
            read_plan(str(run_folder), 30)

    @pytest.mark.parametrize("text", ["plan.yaml", "0.yaml", "2024-run/plan.yaml", "run", "./run", "x" * 5000])
    def test_missing_file_is_called_missing(self, text: str) -> None:
        with pytest.raises(PlanError, match="there is no plan file or run"):
            read_plan(text, 8)

    @pytest.mark.parametrize("name", ["2nd-run", "run@2"])
    def test_a_folder_whose_name_looks_like_something_else(
        self, name: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(run_folder)
        Path(name).mkdir()
        save_plan(SAVED, f"{name}/plan.yaml")
        assert read_plan(name, 8) == SAVED

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("plan.yaml", True), ("run", True), ("exit:2", False), ("early-exit@2", False), ("0-3", False), ("", False)],
    )
    def test_which_texts_name_a_file(self, text: str, expected: bool) -> None:
        assert names_a_file(text) is expected


class TestExit:
    def test_the_first_layers(self) -> None:
        assert read_plan("exit:3", 8) == DepthPlan.of_layers(range(3), 8)

    def test_prefill(self) -> None:
        assert read_plan("exit:3", 8, prefill="full").prefill == "full"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("exit:9", r"plan 'exit:9': .*exit is 9, but the model has 8 layers; choose 1 to 8"),
            ("exit:0", r"plan 'exit:0': .*parameter 'exit' is '0'.*greater than or equal to 1"),
            ("exit:-1", r"plan 'exit:-1': .*parameter 'exit' is '-1'"),
            ("exit:", r"plan 'exit:': .*parameter 'exit' is ''.*valid integer"),
            ("exit:x", r"parameter 'exit' is 'x'.*valid integer"),
            ("exit:2.5", r"parameter 'exit' is '2.5'.*valid integer"),
        ],
    )
    def test_wrong_exit_is_named(self, text: str, message: str) -> None:
        with pytest.raises(MethodError, match=message):
            read_plan(text, 8)


class TestMethods:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("early-exit@3", DepthPlan.of_layers(range(3), 30)),
            ("unified-skipping@1.5", UnifiedSkipping(speedup=1.5).plan(30)),
            ("layer-parallel@27", LayerParallel(depth=27).plan(30)),
        ],
    )
    def test_one_value(self, text: str, expected: DepthPlan) -> None:
        assert read_plan(text, 30) == expected

    def test_the_methods_own_prefill_can_be_overridden(self) -> None:
        assert read_plan("unified-skipping@2", 8).prefill == "full"
        assert read_plan("unified-skipping@2", 8, prefill="plan").prefill == "plan"
        assert read_plan("layer-parallel@7", 8, "par").form == "par"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("early-exits@3", r"plan 'early-exits@3': there is no method 'early-exits' \(did you mean 'early-exit'"),
            ("early-exit@31", "but the model has 30 layers"),
            ("unified-skipping@0.5", "parameter 'speedup' is '0.5'"),
            ("unified-skipping@40", "keep at least 2"),
            ("layer-parallel@3.5", "parameter 'depth' is '3.5'"),
            ("prune-range@3", r"needs more than one value; run 'truedepth plan prune-range --layers 30 -o plan.yaml'"),
            ("block-influence@26", r"run 'truedepth plan block-influence --model MODEL -o plan.yaml' first"),
        ],
    )
    def test_what_cannot_be_is_refused(self, text: str, message: str) -> None:
        with pytest.raises(MethodError, match=message):
            read_plan(text, 30)

    def test_every_shorthand_is_a_parameter_that_is_enough(self) -> None:
        for method in all_methods().values():
            if issubclass(method, LayerMethod) and method.shorthand is not None:
                assert method.shorthand in method.model_fields
                method(**{method.shorthand: "2"})

    def test_a_third_partys_method(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Last(LayerMethod):
            name: ClassVar[str] = "last"
            summary: ClassVar[str] = "run the last layers"
            source: ClassVar[str] = "none"
            shorthand: ClassVar[str | None] = "count"

            count: int

            def plan(self, num_layers: int) -> DepthPlan:
                return DepthPlan.of_layers(range(num_layers - self.count, num_layers), num_layers)

        monkeypatch.setattr("truedepth.methods.registry.get_method", lambda name: Last)
        assert read_plan("last@2", 8).layers_used == (6, 7)
