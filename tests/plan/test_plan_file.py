"""plan.yaml: what is written is read back, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from truedepth.errors import OutputError, PlanError
from truedepth.plan import DepthPlan
from truedepth.plan.plan_file import load_plan, save_plan

PLAN = DepthPlan.parse("0-3 (4|5) 7", 8, form="par", prefill="full")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "plan.yaml"


def refusal(file: Path, content: str | bytes) -> str:
    """The message with which a file of that content is refused."""
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(PlanError) as caught:
        load_plan(file)
    assert str(file) in str(caught.value)
    return str(caught.value)


class TestRoundTrip:
    @pytest.mark.parametrize("plan", [PLAN, DepthPlan.full(1), DepthPlan.parse("0 (1+2) 3", 40)])
    def test_reads_what_it_wrote(self, file: Path, plan: DepthPlan) -> None:
        save_plan(plan, file)
        assert load_plan(file) == plan

    def test_text(self, file: Path) -> None:
        save_plan(PLAN, file, comment="truedepth plan x\nsecond line")
        assert file.read_text() == (
            "# truedepth plan x\n# second line\nplan: 0-3 (4|5) 7\nlayers: 8\nform: par\nprefill: full\n"
        )
        assert load_plan(file) == PLAN

    def test_a_long_plan_stays_on_one_line(self, file: Path) -> None:
        plan = DepthPlan.of_layers(range(0, 200, 2), 200)
        save_plan(plan, file)
        assert len(file.read_text().splitlines()) == 4
        assert load_plan(file) == plan

    def test_one_layer(self, file: Path) -> None:
        """The notation '5' is text, not the number 5."""
        save_plan(DepthPlan.parse("5", 8), file)
        assert load_plan(file).layers_used == (5,)

    def test_a_run_folder(self, file: Path) -> None:
        save_plan(PLAN, file)
        assert load_plan(file.parent) == PLAN

    def test_form_and_prefill_may_be_left_out(self, file: Path) -> None:
        file.write_text("plan: (0|1) 2\nlayers: 3\n")
        assert load_plan(file) == DepthPlan.parse("(0|1) 2", 3)

    def test_writing_fails(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="its folder does not exist"):
            save_plan(PLAN, tmp_path / "none" / "plan.yaml")


class TestRefusals:
    def test_missing_file(self, file: Path) -> None:
        with pytest.raises(PlanError, match=f"cannot read {file}: No such file or directory; give a plan file"):
            load_plan(file)

    def test_folder_without_a_plan(self, file: Path) -> None:
        with pytest.raises(PlanError, match=f"cannot read {file}: No such file or directory; give a plan file"):
            load_plan(file.parent)

    def test_below_a_file(self, file: Path) -> None:
        file.touch()
        with pytest.raises(PlanError, match=r"cannot read .*: Not a directory"):
            load_plan(file / "plan.yaml")

    @pytest.mark.parametrize(
        ("content", "where"),
        [
            ("plan: [0, 1\nlayers: 3\n", "line 2, column 7"),
            ("plan: 0-3\n\tlayers: 4\n", "line 2, column 1"),
            ("plan: 'open\n", "line 2, column 1"),
            ("plan: 0: 1\n", "line 1, column 8"),
        ],
    )
    def test_malformed_yaml(self, file: Path, content: str, where: str) -> None:
        assert f"is not YAML at {where}" in refusal(file, content)

    def test_python_objects_are_not_made(self, file: Path) -> None:
        message = refusal(file, "plan: !!python/object/apply:os.getcwd []\nlayers: 3\n")
        assert "is not YAML at line 1, column 7" in message

    def test_deep_nesting(self, file: Path) -> None:
        assert "is not YAML" in refusal(file, "plan: " + "[" * 5000)

    def test_control_characters(self, file: Path) -> None:
        assert "is not YAML" in refusal(file, "plan: \x01\n")
        assert "has a NUL byte (byte 6)" in refusal(file, "plan: \x00\n")
        assert "has U+D800, which is half of a character" in refusal(file, 'plan: "\\ud800"\nlayers: 3\n')

    def test_not_utf8(self, file: Path) -> None:
        assert "is not UTF-8 text (byte 6)" in refusal(file, b"plan: \xff0-3\nlayers: 4\n")

    @pytest.mark.parametrize("content", ["", "0-3\n", "- 0\n- 1\n", "42\n"])
    def test_not_a_mapping(self, file: Path, content: str) -> None:
        assert "is not a plan file; its fields are plan, layers, form, prefill" in refusal(file, content)

    def test_unknown_field(self, file: Path) -> None:
        message = refusal(file, "plan: 0-3\nlayers: 4\nfrom: par\n")
        assert "unknown field 'from'; the fields are plan, layers, form, prefill" in message

    def test_missing_fields(self, file: Path) -> None:
        message = refusal(file, "form: par\n")
        assert "the field 'plan' is missing; the field 'layers' is missing" in message

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("plan: 5\nlayers: 8\n", "the field 'plan' must be text; put it in quotes"),
            ("plan: [0, 1]\nlayers: 8\n", "the field 'plan' must be text"),
            ("plan: 0-3\nlayers: '4'\n", "the field 'layers' is '4'"),
            ("plan: 0-3\nlayers: 4.0\n", "the field 'layers' is 4.0"),
            ("plan: 0-3\nlayers: true\n", "the field 'layers' is True"),
            ("plan: 0-3\nlayers: 0\n", "the field 'layers' is 0"),
            ("plan: 0-3\nlayers: 100000000\n", "the field 'layers' is 100000000"),
            ("plan: 0-3\nlayers: 4\nform: seq\n", "the field 'form' is 'seq'"),
            ("plan: 0-3\nlayers: 4\nprefill: null\n", "the field 'prefill' is None"),
        ],
    )
    def test_wrong_values(self, file: Path, content: str, problem: str) -> None:
        assert problem in refusal(file, content)

    def test_wrong_notation(self, file: Path) -> None:
        assert "token '3' at column 5: layer 3 appears twice" in refusal(file, "plan: 0-3 3\nlayers: 4\n")

    def test_number_as_field_name(self, file: Path) -> None:
        assert "unknown field '7'" in refusal(file, "plan: 0-3\nlayers: 4\n7: 8\n")
