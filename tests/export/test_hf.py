"""Exported checkpoints against the plan on a live model: written, loaded in each way, and compared."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import truedepth
from truedepth.errors import ModelLoadError, OutputError, PlanError, UnsupportedModelError, UsageError
from truedepth.export.hf import shards
from truedepth.export.hf.export import export_hf
from truedepth.models.loading.embedded import embedded_model
from truedepth.models.rewire import apply
from truedepth.plan import DepthPlan
from truedepth.plan.plan_file import load_plan
from truedepth.search.plan_results import Results

NUM_LAYERS = 6
WIDE = "0 (1|3) 4 5"
FUSABLE = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3")
DENSE = (*FUSABLE, "olmo2", "gemma2", "gemma3")
MIXTURES = ("mixtral", "qwen3_moe")


def plan_of(notation: str, **others: Any) -> DepthPlan:
    return DepthPlan.parse(notation, NUM_LAYERS, **others)


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits
    return logits


@pytest.mark.parametrize("name", FUSABLE)
def test_wide_checkpoint_computes_what_the_plan_does(
    name: str, tmp_path: Path, tiny_checkpoint: Any, token_ids: Any
) -> None:
    folder, model = tiny_checkpoint(name)
    written = export_hf(str(folder), plan_of(WIDE), tmp_path / "wide")
    assert written.architecture.startswith("Truedepth")
    assert written.stages == 4
    assert written.check is not None
    assert written.check.max_abs_error < 1e-4
    assert written.check.agreement == 1

    wide = truedepth.load(str(tmp_path / "wide")).model
    apply(model, plan_of(WIDE))
    ids = token_ids(3, 20)
    torch.testing.assert_close(logits_of(wide, ids), logits_of(model, ids), atol=1e-4, rtol=1e-4)

    # With a cache, and sequences of different lengths.
    mask = torch.ones_like(ids)
    mask[0, :7] = mask[1, :2] = 0
    options = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    assert torch.equal(wide.generate(ids, **options), model.generate(ids, **options))


@pytest.mark.parametrize("name", DENSE)
def test_skipping_plan_keeps_the_architecture(name: str, tmp_path: Path, tiny_checkpoint: Any, token_ids: Any) -> None:
    folder, model = tiny_checkpoint(name)
    plan = plan_of("0 2 3 5")
    written = export_hf(str(folder), plan, tmp_path / "shallow")
    assert written.architecture == type(model).__name__
    assert written.check is None
    shallow = truedepth.load(str(tmp_path / "shallow")).model
    assert type(shallow) is type(model)
    assert not (tmp_path / "shallow" / "modeling_truedepth.py").exists()
    ids = token_ids(2, 20)
    torch.testing.assert_close(logits_of(shallow, ids), logits_of(apply(model, plan), ids), atol=1e-5, rtol=1e-5)


def test_merged_layers_keep_the_architecture(tmp_path: Path, tiny_checkpoint: Any, token_ids: Any) -> None:
    folder, model = tiny_checkpoint("qwen3")
    plan = plan_of("0 (1+2+4) 5")
    written = export_hf(str(folder), plan, tmp_path / "merged")
    assert written.architecture == "Qwen3ForCausalLM"
    assert written.check is not None
    assert written.check.max_abs_error < 1e-4
    ids = token_ids(2, 20)
    merged = truedepth.load(str(tmp_path / "merged")).model
    torch.testing.assert_close(logits_of(merged, ids), logits_of(apply(model, plan), ids), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_checkpoint_loads_without_truedepth(tmp_path: Path, tiny_checkpoint: Any, token_ids: Any) -> None:
    folder, model = tiny_checkpoint("qwen3")
    export_hf(str(folder), plan_of(WIDE), tmp_path / "wide")
    ids = token_ids(1, 9)
    asked = logits_of(apply(model, plan_of(WIDE)), ids)[0, -1]
    code = f"""
import sys
sys.modules["truedepth"] = None  # importing it fails
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
path = {str(tmp_path / "wide")!r}
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
assert type(AutoModel.from_pretrained(path, trust_remote_code=True)).__name__ == "TruedepthQwen3Model"
assert model.tp_plan["model.layers.*.self_attn.q_norm.weight"] == "colwise"
AutoTokenizer.from_pretrained(path, trust_remote_code=True)
print(model(torch.tensor({ids.tolist()})).logits[0, -1].tolist())
"""
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    given = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(given, asked, atol=1e-4, rtol=1e-4)


def test_wide_model_can_be_saved_changed_and_exported_again(
    tmp_path: Path, tiny_checkpoint: Any, token_ids: Any
) -> None:
    folder, model = tiny_checkpoint("qwen3")
    export_hf(str(folder), plan_of("0 (1|2) (3|4) 5"), tmp_path / "wide")
    loaded = truedepth.load(str(tmp_path / "wide"))
    loaded.model.save_pretrained(tmp_path / "again")
    loaded.tokenizer.save_pretrained(tmp_path / "again")
    ids = token_ids(2, 12)
    again = truedepth.load(str(tmp_path / "again")).model
    torch.testing.assert_close(logits_of(again, ids), logits_of(loaded.model, ids))

    # A group of wide layers: as wide as all their layers.
    export_hf(str(tmp_path / "wide"), DepthPlan.parse("0 (1|2)", 4), tmp_path / "wider")
    wider = truedepth.load(str(tmp_path / "wider")).model
    assert wider.config.per_layer_config[1].num_attention_heads == 16
    expected = logits_of(apply(model, plan_of("0 (1|2|3|4)")), ids)
    torch.testing.assert_close(logits_of(wider, ids), expected, atol=1e-4, rtol=1e-4)


def test_the_engine_runs_a_wide_checkpoint(tmp_path: Path, tiny_checkpoint: Any) -> None:
    folder, _ = tiny_checkpoint("llama")
    export_hf(str(folder), plan_of(WIDE), tmp_path / "wide")
    wide = truedepth.generate(truedepth.load(str(tmp_path / "wide")), "tides", raw=True, max_new_tokens=12)
    source = truedepth.load(str(folder))
    apply(source.model, plan_of(WIDE))
    ids = source.tokenizer("tides", return_tensors="pt").input_ids
    asked = source.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert list(wide.token_ids) == asked.tolist()


def test_attention_can_be_chosen_after_loading(tmp_path: Path, tiny_checkpoint: Any, token_ids: Any) -> None:
    folder, _ = tiny_checkpoint("phi3")
    export_hf(str(folder), plan_of(WIDE), tmp_path / "wide")
    model = truedepth.load(str(tmp_path / "wide")).model
    ids = token_ids(2, 12)
    before = logits_of(model, ids)
    model.set_attn_implementation("eager")
    assert {layer.self_attn.config._attn_implementation for layer in model.model.layers} == {"eager"}
    torch.testing.assert_close(logits_of(model, ids), before, atol=1e-5, rtol=1e-5)


def test_what_is_written_beside_the_weights(tmp_path: Path, tiny_checkpoint: Any) -> None:
    folder, _ = tiny_checkpoint("llama")
    generation = {"eos_token_id": [2, 7], "temperature": 0.5, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    output = tmp_path / "wide"
    export_hf(str(folder), plan_of(WIDE), output)
    assert load_plan(output) == plan_of(WIDE)
    assert json.loads((output / "generation_config.json").read_text()) == generation
    source, loaded = truedepth.load(str(folder)).tokenizer, truedepth.load(str(output)).tokenizer
    assert loaded.encode("Tides, tides!") == source.encode("Tides, tides!")
    assert loaded.chat_template == source.chat_template
    config = json.loads((output / "config.json").read_text())
    assert list(config["per_layer_config"]) == ["1"]
    card = (output / "README.md").read_text()
    assert WIDE in card
    assert "largest difference" in card
    assert str(tmp_path) not in card
    assert "## Measured" not in card


def test_card_has_the_figures_of_its_own_plan_only(tmp_path: Path, tiny_checkpoint: Any) -> None:
    folder, _ = tiny_checkpoint("llama")
    sample = json.loads((Path(__file__).parents[1] / "report" / "sample_results.json").read_text())
    sample["plan"] |= {"notation": WIDE, "num_layers": NUM_LAYERS, "form": "lp", "prefill": "plan"}
    measured = Results.model_validate(sample)
    export_hf(str(folder), plan_of(WIDE), tmp_path / "wide", measured=measured)
    card = (tmp_path / "wide" / "README.md").read_text()
    assert "## Measured" in card
    assert f"| perplexity, this plan | {measured.perplexity.plan:.2f} |" in card
    export_hf(str(folder), plan_of("0 1 2"), tmp_path / "other", measured=measured)
    assert "## Measured" not in (tmp_path / "other" / "README.md").read_text()


def test_weights_keep_their_type_or_take_the_one_asked_for(tmp_path: Path, tiny_checkpoint: Any) -> None:
    folder, model = tiny_checkpoint("llama")
    model.to(torch.bfloat16).save_pretrained(folder)
    for dtype, expected in (("auto", "BF16"), ("float32", "F32"), ("float16", "F16")):
        output = tmp_path / dtype
        export_hf(str(folder), plan_of(WIDE), output, dtype=dtype)
        with safe_open(output / "model.safetensors", framework="pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {expected}  # noqa: SIM118
    assert json.loads((tmp_path / "auto" / "config.json").read_text())["dtype"] == "bfloat16"


def test_shards_have_the_tensors_of_one_file(
    tmp_path: Path, tiny_checkpoint: Any, token_ids: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = tiny_checkpoint("llama")
    export_hf(str(folder), plan_of(WIDE), tmp_path / "one")
    monkeypatch.setattr(shards, "SMALLEST_SHARD", 40_000)
    export_hf(str(folder), plan_of(WIDE), tmp_path / "many")
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    ids = token_ids(1, 8)
    one, many = (truedepth.load(str(tmp_path / name)).model for name in ("one", "many"))
    assert torch.equal(logits_of(one, ids), logits_of(many, ids))


@pytest.mark.parametrize(
    ("notation", "others", "message"),
    [
        (WIDE, {"form": "par"}, "--form lp"),
        ("0-3", {"prefill": "full"}, "--prefill plan"),
    ],
)
def test_plans_that_no_checkpoint_expresses(
    notation: str, others: dict[str, Any], message: str, tmp_path: Path, tiny_checkpoint: Any
) -> None:
    folder, _ = tiny_checkpoint("llama")
    with pytest.raises(PlanError, match=message):
        export_hf(str(folder), plan_of(notation, **others), tmp_path / "wide")
    assert not (tmp_path / "wide").exists()


@pytest.mark.parametrize("name", ["olmo2", "gemma2", "gemma3"])
def test_families_that_cannot_be_fused_are_named(name: str, tmp_path: Path, tiny_checkpoint: Any) -> None:
    folder, _ = tiny_checkpoint(name)
    with pytest.raises(UnsupportedModelError, match=f"family {name} cannot do 'fuse'.*llama"):
        export_hf(str(folder), plan_of(WIDE), tmp_path / "wide")


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_experts_are_refused(name: str, tmp_path: Path, tiny_checkpoint: Any) -> None:
    folder, _ = tiny_checkpoint(name)
    with pytest.raises(UnsupportedModelError, match=f"family {name} cannot do 'checkpoint'"):
        export_hf(str(folder), plan_of("0-3"), tmp_path / "shallow")


def test_layers_that_differ_in_kind_are_not_fused(tmp_path: Path, tiny_checkpoint: Any) -> None:
    folder, _ = tiny_checkpoint("smollm3")
    with pytest.raises(UnsupportedModelError, match=r"stage '\(4\|5\)'.*no_rope_layers"):
        export_hf(str(folder), plan_of("0-3 (4|5)"), tmp_path / "wide")


def test_output_folders_that_are_refused(tmp_path: Path, tiny_checkpoint: Any) -> None:
    folder, _ = tiny_checkpoint("llama")
    (tmp_path / "there").mkdir()
    for output, message in ((folder / "wide", "the model itself"), (tmp_path / "there", "exists already")):
        with pytest.raises(OutputError, match=message):
            export_hf(str(folder), plan_of(WIDE), output)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        export_hf(str(folder), plan_of(WIDE), tmp_path / "file" / "wide")


def test_an_earlier_export_is_replaced_when_asked(tmp_path: Path, tiny_checkpoint: Any) -> None:
    """And nothing else: not what somebody put beside it, and not a folder that no export has written."""
    folder, _ = tiny_checkpoint("llama")
    output, mine = tmp_path / "out", tmp_path / "mine"
    export_hf(str(folder), plan_of(WIDE), output)
    before = (output / "config.json").read_bytes()
    mine.mkdir()
    (output / "notes.txt").touch()
    for there, message in ((output, r"truedepth has not written notes\.txt in it"), (mine, "delete it yourself")):
        with pytest.raises(OutputError, match=message):
            export_hf(str(folder), plan_of("0-2"), there, overwrite=True)
    assert (output / "config.json").read_bytes() == before and mine.is_dir()
    (output / "notes.txt").unlink()
    export_hf(str(folder), plan_of("0-2"), output, overwrite=True)
    assert json.loads((output / "config.json").read_text())["num_hidden_layers"] == 3
    assert not list(output.glob("*.py"))  # the earlier one's
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out", folder.name]


def test_written_files_have_the_modes_of_the_umask(tmp_path: Path, tiny_checkpoint: Any) -> None:
    folder, _ = tiny_checkpoint("llama")
    export_hf(str(folder), plan_of(WIDE), tmp_path / "out")
    plain = tmp_path / "plain"
    plain.touch()
    assert {file.stat().st_mode for file in (tmp_path / "out").iterdir()} == {plain.stat().st_mode}


def test_wrong_types_and_models(tmp_path: Path, tiny_checkpoint: Any) -> None:
    folder, _ = tiny_checkpoint("llama")
    with pytest.raises(UsageError, match="unknown dtype 'int8'"):
        export_hf(str(folder), plan_of(WIDE), tmp_path / "wide", dtype="int8")
    with pytest.raises(PlanError, match="for 7 layers, but the model has 6"):
        export_hf(str(folder), DepthPlan.full(7), tmp_path / "wide")
    tensors = {}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if "layers.3.mlp" not in name}  # noqa: SIM118
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"lack 3 of the model's tensors"):
        export_hf(str(folder), plan_of(WIDE), tmp_path / "wide")


def test_a_tokenizer_of_another_model(tmp_path: Path, tiny_checkpoint: Any) -> None:
    folder, _ = tiny_checkpoint("llama", vocab_size=40)
    with pytest.raises(ModelLoadError, match=r"gives token \d+, but the model's embedding ends at 39"):
        export_hf(str(folder), plan_of(WIDE), tmp_path / "wide")
    assert not (tmp_path / "wide").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_is_interrupted_leaves_nothing(
    error: Any, tmp_path: Path, tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = tiny_checkpoint("llama")
    before = sorted(tmp_path.iterdir())

    class Failing(shards.ShardWriter):
        def finish(self) -> None:
            super().finish()
            raise error

    monkeypatch.setattr(shards, "ShardWriter", Failing)
    expected: Callable[..., Any] = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected):  # type: ignore[call-overload]
        export_hf(str(folder), plan_of(WIDE), tmp_path / "wide")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_the_embedded_model(tmp_path: Path) -> None:
    embedded = embedded_model("smollm2-135m")
    assert embedded is not None
    if not embedded.installed:
        pytest.skip(f"the embedded model is not installed: {embedded.install_command}")
    plan = DepthPlan.parse("0-19 (20|21) (22|23) (24|25) (26|27) 28 29", 30)
    written = export_hf("smollm2-135m", plan, tmp_path / "wide")
    assert written.check is not None
    assert written.check.max_abs_error < 1e-4 * written.check.max_abs_logit
    wide, source = truedepth.load(str(tmp_path / "wide")), truedepth.load("smollm2-135m")
    apply(source.model, plan)
    for prompt in ("The tide is", "def tides(hours):"):
        ids = source.tokenizer(prompt, return_tensors="pt").input_ids
        texts = [one.model.generate(ids, max_new_tokens=16, do_sample=False) for one in (wide, source)]
        assert torch.equal(*texts)
