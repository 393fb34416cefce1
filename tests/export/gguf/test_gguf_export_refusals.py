"""What cannot become a GGUF file is refused with the reason and what to do, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truedepth.errors import ModelLoadError, OutputError, PlanError, TruedepthError, UnsupportedModelError, UsageError

Make = Callable[..., Any]


def test_plans_that_one_file_cannot_express(saved: Make, export: Make) -> None:
    folder = saved("llama")
    with pytest.raises(PlanError, match=r"'\(2\|3\)' is in form par.*--form lp"):
        export(folder, "0 1 (2|3)", form="par")
    with pytest.raises(PlanError, match="--prefill plan"):
        export(folder, "0-3", prefill="full")
    with pytest.raises(UsageError, match="6 layers, but the model has 4"):
        export(saved("llama", num_hidden_layers=4), "0-3")


@pytest.mark.parametrize(
    ("family", "overrides", "plan", "message"),
    [
        ("gemma2", {}, None, "family gemma2 cannot do 'gguf'.*sliding from full layers by their number"),
        ("gemma3", {}, None, "family gemma3 cannot do 'gguf'"),
        ("mixtral", {}, None, "no mixtures of experts.*Families that can: llama"),
        ("qwen3_moe", {}, "0-3", "no mixtures of experts"),
        ("olmo2", {}, "0 (1|2)", "family olmo2 cannot do 'fuse'"),
        ("qwen3", {}, "0 (1|2)", "'deci' has no place for '.*q_norm.weight' of this qwen3.*only skips layers"),
        ("qwen3", {"attention_bias": True}, None, "'qwen3' has no place for '.*q_proj.bias'.*export hf"),
        ("smollm3", {}, "0 2-5", "block 2 has, but layer 3, which the plan puts there, has none"),
        ("smollm3", {}, "0 1 2 4 5", "block 3 has none, but layer 4, which the plan puts there, has"),
        ("smollm3", {"no_rope_layer_interval": 3}, None, "block 2 has, but layer 2"),
        ("smollm3", {}, "3 (0|1)", "block 0 has, but layer 3"),
        ("llama", {"hidden_act": "gelu"}, None, "activation is 'gelu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            None,
            "scales positions by 'dynamic'",
        ),
        (
            "phi3",
            {"hidden_size": 64, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "0 (1|2)",
            "rotates 50% of each head",
        ),
    ],
)
def test_models_that_llama_cpp_cannot_express(
    family: str, overrides: dict[str, Any], plan: str | None, message: str, saved: Make, export: Make, tmp_path: Path
) -> None:
    folder = saved(family, **overrides)
    with pytest.raises(UnsupportedModelError, match=message):
        export(folder, plan)
    assert not list(tmp_path.glob("*out.gguf*"))


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("yarn", {"mscale": 0.7}, "'yarn' with an 'mscale'"),
        ("yarn", {"truncate": False}, "bounds that are not rounded"),
    ],
)
def test_yarn_that_llama_cpp_cannot_be_told(
    kind: str, more: dict[str, Any], message: str, saved: Make, export: Make
) -> None:
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32, **more}
    with pytest.raises(UnsupportedModelError, match=message):
        export(saved("llama", rope_parameters=rope))


def test_llama_3_scaling_needs_an_architecture_that_reads_it(saved: Make, export: Make) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    with pytest.raises(UnsupportedModelError, match=r"'qwen3' has no place for 'rope_freqs.weight'"):
        export(saved("qwen3", rope_parameters=rope))


def test_outputs_that_would_change_the_model(saved: Make, export: Make, tmp_path: Path) -> None:
    folder = saved("llama")
    with pytest.raises(OutputError, match="lies in the model itself"):
        export(folder, name="model/out.gguf")
    file = export(folder).path
    before = file.read_bytes()
    with pytest.raises(OutputError, match="is the model itself"):
        export(file, "0-2")
    (tmp_path / "link.gguf").symlink_to(file)
    with pytest.raises(OutputError, match="is the model itself"):
        export(tmp_path / "link.gguf", "0-2")
    assert file.read_bytes() == before


def test_outputs_that_cannot_be_written(saved: Make, export: Make, tmp_path: Path) -> None:
    folder = saved("llama")
    with pytest.raises(OutputError, match="its folder does not exist"):
        export(folder, name="nowhere/out.gguf")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        export(folder, name="folder")


def test_a_full_disk_is_seen_before_anything_is_written(
    saved: Make, export: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"0\.00 GB are free; choose a smaller type"):
        export(saved("llama"))
    assert not list(tmp_path.glob("*out.gguf*"))


def test_weights_that_do_not_fit_the_configuration(saved: Make, export: Make, tiny_model: Make) -> None:
    folder = saved("llama")
    tiny_model("llama", intermediate_size=40).model.save_pretrained(folder)
    with pytest.raises(ModelLoadError, match="lack"):
        export(folder)
    config = (folder / "config.json").read_text()
    tiny_model("llama").save_pretrained(folder)
    (folder / "config.json").write_text(config.replace('"vocab_size": 64', '"vocab_size": 60'))
    with pytest.raises(
        ModelLoadError, match=r"has the shape \(64, 32\), but config.json asks for \(60, 32\)|intermediate"
    ):
        export(folder)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_what_was_there(
    error: BaseException, saved: Make, export: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from truedepth.export.gguf import export as module

    folder = saved("llama")
    before = export(folder, "exit:2").path.read_bytes()
    names: list[str] = []
    original = module.encode

    def stop_in_the_middle(name: str, *given: Any) -> Any:
        names.append(name)
        if len(names) == 20:
            raise error
        return original(name, *given)

    monkeypatch.setattr(module, "encode", stop_in_the_middle)
    with pytest.raises((KeyboardInterrupt, TruedepthError)):
        export(folder)
    assert len(names) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.gguf"]
    assert (tmp_path / "out.gguf").read_bytes() == before


def test_part_of_a_head_is_rotated_in_phi_3_only(saved: Make, export: Make) -> None:
    """transformers computes other families as if nothing had been said, and llama.cpp would not load the file."""
    folder = saved("llama", partial_rotary_factor=0.5)
    with pytest.raises(UnsupportedModelError, match=r"rotates 50% of each head.*'llama' all of it"):
        export(folder)
