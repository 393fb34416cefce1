"""PEFT's adapters of every kind: decoded as PEFT's own `generate` decodes them, or refused by name."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import truedepth
from truedepth import Request
from truedepth.engine.drafts.heads.exit_head import ExitHead
from truedepth.engine.drafts.heads.vocabulary import DraftVocabulary
from truedepth.engine.engine import Engine
from truedepth.errors import ModelLoadError, TruedepthError, UnsupportedModelError
from truedepth.evaluation.calibration import calibrate
from truedepth.evaluation.quality import compare_quality
from truedepth.measuring.speed import compare
from truedepth.models.adapters import IN_LAYERS

peft = pytest.importorskip("peft")
KINDS = sorted(kind.value for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)

OPTIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 4, "target_modules": None},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "CPT": {"cpt_token_ids": [3, 4, 5], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "FOURIERFT": {"n_frequency": 20},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4, "num_tasks": 2},
    "OFT": {"oft_block_size": 4, "r": 0},
    "POLY": {"n_tasks": 2, "n_skills": 2},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "ROAD": {"group_size": 8},
    "SHADOW": {"target_modules": None},
    "TRAINABLE_TOKENS": {"token_indices": [5, 9, 13], "target_modules": ["embed_tokens"]},
    "VBLORA": {"num_vectors": 8, "vector_length": 4, "target_modules": ["q_proj", "o_proj"]},
    "WAVEFT": {"n_frequency": 40},
    "XLORA": {"hidden_size": 32, "xlora_depth": 1},
}
"""What the configuration of a kind needs besides the layers that it adapts."""

PROMPTS = [[5, 9, 13, 40, 11, 7, 33], [21, 60, 13, 3, 9]]
NEW = 6


def config_of(kind: str) -> Any:
    config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    known = inspect.signature(config).parameters
    usual = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4}
    options = {name: value for name, value in usual.items() if name in known}
    return config(**{**options, "task_type": "CAUSAL_LM", **OPTIONS.get(kind, {})})


def shaken(model: Any, by: float = 0.5) -> Any:
    """Make every adapter do something: fresh ones have no effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=8 if "adaption_gate" in name else by)
    return model.eval()


def adapted(model: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return shaken(peft.get_peft_model(model, config))


@pytest.fixture
def small(tiny_model: Callable[..., Any]) -> Callable[..., Any]:
    """A tiny model of four layers."""
    return lambda name="llama", **others: tiny_model(name, num_hidden_layers=4, **others)


def batch() -> dict[str, Any]:
    """The prompts as `generate` takes them."""
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in PROMPTS])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in PROMPTS])
    return {"input_ids": ids, "attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}


def generated(model: Any, **others: Any) -> list[list[int]]:
    asked = batch()
    written: Tensor = model.generate(**asked, **others)
    return written[:, asked["input_ids"].shape[1] :].tolist()


def decoded(engine: Engine, **options: Any) -> list[list[int]]:
    requests = [Request(prompt, NEW, ignore_end=True) for prompt in PROMPTS]
    return [list(result.token_ids) for result in engine.generate(requests, **options)]


def check(model: Any, plain: list[list[int]] | None) -> None:
    """The engine's tokens are those of `generate`, through each entrance; open and closed, the model computes the same.

    Args:
        plain: the tokens without adapters, which are others.
    """
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        expected, logits = generated(model), model(ids).logits
        assert expected != plain
        with Engine(model) as engine:
            assert decoded(engine) == expected
            draft = engine.draft(truedepth.DepthPlan.parse("0-1", num_layers=4))
            assert decoded(engine, drafts=[draft]) == expected
            torch.testing.assert_close(model(ids).logits, logits, atol=1e-3, rtol=1e-3)
        assert generated(model, custom_generate=truedepth.speculate("exit:2")) == expected
        assert model(ids).logits.equal(logits)


@pytest.mark.parametrize("kind", sorted(set(KINDS) & IN_LAYERS))
def test_kinds_that_act_in_the_layers(kind: str, small: Any) -> None:
    check(adapted(small(), config_of(kind)), plain=generated(small()))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - IN_LAYERS))
def test_other_kinds_are_refused_by_name(kind: str, small: Any, tmp_path: Any) -> None:
    """New kinds too, until they are known to act in the layers."""
    if kind == "XLORA":
        peft.get_peft_model(small(), config_of("LORA")).save_pretrained(tmp_path)
        OPTIONS[kind]["adapters"] = {"0": str(tmp_path)}
    model = peft.get_peft_model(small(use_cache=kind != "XLORA"), config_of(kind)).eval()
    refused = pytest.raises(UnsupportedModelError, match=f"adapter of kind {kind}.*generate.*disable_adapter")
    with refused:
        Engine(model)
    others = {"task_ids": torch.tensor([0, 1])} if kind in ("POLY", "MULTITASK_PROMPT_TUNING") else {}
    with refused:
        generated(model, custom_generate=truedepth.speculate("exit:2"), **others)


def lora(**options: Any) -> Any:
    return peft.LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "down_proj"], **options})


LORAS: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "DoRA on all linear layers": {"use_dora": True, "target_modules": "all-linear"},
    "rank-stabilised": {"use_rslora": True, "target_modules": "all-linear"},
    "biases": {"bias": "all", "lora_bias": True},
    "a layer trained as a whole": {"modules_to_save": ["k_proj", "gate_proj"]},
    "the head trained as a whole": {"modules_to_save": ["lm_head"]},
    "the embedding trained as a whole": {"modules_to_save": ["embed_tokens"]},
    "on the head": {"target_modules": ["q_proj", "lm_head"]},
    "DoRA on the head": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "DoRA on the embedding": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "some tokens": {"trainable_token_indices": [5, 9, 13]},
    "a norm": {"modules_to_save": ["input_layernorm", "norm"]},
    "one layer": {"layers_to_transform": [2]},
    "a parameter": {"target_modules": [], "target_parameters": ["q_proj.weight", "down_proj.weight"]},
    "a norm's parameter": {"target_modules": ["v_proj"], "target_parameters": ["gate_proj.weight"]},
    "BD-LoRA": {"use_bdlora": peft.BdLoraConfig(target_modules_bd_a=["down_proj", "q_proj"], nblocks=2)},
    "KaSA": {"kasa_config": peft.KasaConfig()},
    "MiCA": {"init_lora_weights": "mica"},
    "MonteCLoRA": {"monteclora_config": peft.MontecloraConfig()},
    "VeLoRA": {"velora_config": peft.VeloraConfig()},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "repeated layers": {"layer_replication": [[0, 2], [1, 3]]},
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("way", LORAS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT, about ties
def test_ways_of_lora(way: str, tied: bool, small: Any) -> None:
    made = small(tie_word_embeddings=tied, attention_bias=way == "biases", mlp_bias=way == "biases")
    check(adapted(made, lora(**LORAS[way])), plain=generated(small()))


@pytest.mark.parametrize("targets", [["q_proj"], []], ids=["and a layer", "alone"])
def test_experts(targets: list[str], small: Any) -> None:
    config = lora(target_modules=targets, target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    check(adapted(small("qwen3_moe"), config), plain=generated(small("qwen3_moe")))


def test_activated_lora_is_refused(small: Any) -> None:
    """It acts on the tokens after some others only."""
    model = adapted(small(), lora(alora_invocation_tokens=[13, 40]))
    with pytest.raises(UnsupportedModelError, match="activated LoRA"):
        Engine(model)
    with pytest.raises(UnsupportedModelError, match="activated LoRA"):
        generated(model, custom_generate=truedepth.speculate())


def test_the_model_inside_and_other_wrappers(small: Any) -> None:
    """PEFT's model and its parts, a mixed model, an adapter of transformers' own, and one on top of another."""
    expected = generated(adapted(small(), lora(use_dora=True)))
    model = adapted(small(), lora(use_dora=True))
    for given in (model, model.base_model, model.get_base_model()):
        with Engine(given) as engine:
            assert decoded(engine) == expected
    mixed = peft.get_peft_model(small(), config_of("LOHA"), mixed=True)
    mixed.add_adapter("other", lora())
    mixed.set_adapter(["default", "other"])
    shaken(mixed)
    native = small()
    native.add_adapter(lora(use_dora=True))
    for made in (mixed, shaken(native)):
        expected = generated(made)
        assert expected != generated(small())
        with Engine(made) as engine:
            assert decoded(engine) == expected
    with pytest.raises(UnsupportedModelError, match="PROMPT_TUNING"):
        Engine(peft.get_peft_model(model, config_of("PROMPT_TUNING")))


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_adapters_may_be_changed_while_the_engine_is_open(dora: bool, small: Any) -> None:
    """Switched, several at once, disabled, removed, and one more put on."""

    def made() -> Any:
        model = adapted(small(), lora())
        model.add_adapter("other", lora(use_dora=dora, target_modules=["q_proj", "up_proj"]))
        model.set_adapter("other")
        return shaken(model, 0.7)

    def changes(model: Any) -> Iterator[str]:
        yield "as it was"
        model.base_model.set_adapter(["default", "other"])
        yield "both"
        with model.disable_adapter():
            yield "disabled"
        model.delete_adapter("other")
        model.set_adapter("default")
        yield "the first"
        torch.manual_seed(0)
        model.add_adapter("third", lora(use_dora=dora, target_modules=["k_proj", "lm_head"]))
        model.set_adapter("third")
        shaken(model)
        yield "one that came later"
        torch.manual_seed(0)
        model.add_adapter("fourth", lora(target_modules=["up_proj"], target_parameters=["v_proj.weight"]))
        model.base_model.set_adapter(["third", "fourth"])
        shaken(model)
        yield "on parameters"
        torch.manual_seed(0)
        model.add_adapter("fifth", lora(target_modules=["embed_tokens"]))
        model.base_model.set_adapter(["third", "fifth"])
        shaken(model)
        yield "on the embedding"

    model = made()
    expected = {change: generated(model) for change in changes(model)}
    assert len({str(tokens) for tokens in expected.values()}) == 7
    model = made()
    before = {name: held.clone() for name, held in model.named_parameters() if "layers.1.mlp.up_proj.base" in name}
    with Engine(model) as engine:
        for change in changes(model):
            assert decoded(engine) == expected[change], change
            assert generated(model) == expected[change], change
    after = dict(model.named_parameters())
    assert before and all(after[name].equal(held) for name, held in before.items())


def test_merging_waits_until_the_engine_is_closed(small: Any) -> None:
    model, ids = adapted(small(), lora()), torch.tensor([PROMPTS[0]])
    expected, before = generated(model), model(ids).logits
    with Engine(model) as engine:
        with pytest.raises(TruedepthError, match="close its Engine before changing"):
            model.merge_adapter()
        assert decoded(engine) == expected
    assert model(ids).logits.equal(before)
    check(model.merge_and_unload(), plain=generated(small()))


def test_adapters_by_row_are_refused(small: Any) -> None:
    for opened in (False, True):
        model = adapted(small(), lora())
        model.add_adapter("other", lora())
        with contextlib.ExitStack() as stack:
            engine = stack.enter_context(Engine(model)) if opened else None
            method = truedepth.speculate("exit:2", engine=engine)
            with pytest.raises(UnsupportedModelError, match=r"adapter_names.*set_adapter"):
                generated(model, adapter_names=["default", "other"], custom_generate=method)


def test_a_disabled_adapter_is_none(small: Any) -> None:
    """Also of the kinds that cannot be taken; once it is back, the open engine says so."""
    expected = generated(small())
    for kind in ("PROMPT_TUNING", "PREFIX_TUNING", "LILY"):
        model = adapted(small(), config_of(kind))
        with model.disable_adapter():
            assert generated(model.get_base_model(), custom_generate=truedepth.speculate("exit:2")) == expected
            engine = Engine(model)
            assert decoded(engine) == expected
        with engine, pytest.raises(UnsupportedModelError, match=kind):
            decoded(engine)


@pytest.mark.parametrize("form", ["lp", "par"])
@pytest.mark.parametrize("kind", ["LORA", "LOHA", "ADAPTION_PROMPT", "LN_TUNING"])
def test_plans(kind: str, form: Any, small: Any) -> None:
    """Layers left out and side by side, whose tokens are those of the model under the plan."""
    plan = truedepth.DepthPlan.parse("0 (1|2)", num_layers=4, form=form)
    check(truedepth.apply(adapted(small(), config_of(kind)), plan), plain=generated(truedepth.apply(small(), plan)))


def test_plans_on_layers_that_an_adapter_stands_around_are_refused(small: Any) -> None:
    model = peft.get_peft_model(small(), config_of("SHADOW"))
    with pytest.raises(UnsupportedModelError, match="SHADOW stands around the decoder layers"):
        truedepth.apply(model, truedepth.DepthPlan.parse("0 (1|2)", num_layers=4))


@pytest.mark.parametrize("way", ["on the head", "DoRA on the head", "the head trained as a whole", "on the embedding"])
def test_draft_vocabularies(way: str, small: Any) -> None:
    model = adapted(small(tie_word_embeddings=way == "on the embedding"), lora(**LORAS[way]))
    vocabulary = DraftVocabulary(torch.arange(0, 64, 2), "", 0.5)
    expected = generated(model)
    with Engine(model) as engine:
        draft = engine.draft(truedepth.DepthPlan.parse("0-2", num_layers=4), vocabulary=vocabulary)
        assert decoded(engine, drafts=[draft]) == expected


def test_arrow(small: Any, tmp_path: Any) -> None:
    """It routes each token to some of several adapters."""
    for index in (0, 1, 2):
        made = peft.get_peft_model(small(), lora(target_modules=["q_proj", "v_proj"]))
        torch.manual_seed(index)
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn_like(parameter)
        made.save_pretrained(tmp_path / str(index))
    paths = [str(tmp_path / str(index)) for index in (0, 1, 2)]
    config = peft.ArrowConfig(top_k=1, rng_seed=0)
    check(peft.create_arrow_model(small(), paths, config).eval(), plain=generated(small()))


def test_trained_heads(small: Any) -> None:
    """A head that was made for the model without an adapter drafts worse, but changes no token."""
    head = ExitHead.fresh(small(), truedepth.DepthPlan.parse("0-1", num_layers=4))
    for config in (lora(), config_of("LOHA"), lora(**LORAS["DoRA on the head"])):
        model = adapted(small(), config)
        expected = generated(model)
        with Engine(model) as engine:
            assert decoded(engine, drafts=[engine.draft_of(head)]) == expected


def test_measuring_a_model_with_virtual_tokens_is_refused(small: Any) -> None:
    """Its own forward would add them at every step; other kinds are measured with the adapter."""
    windows, plans = torch.randint(3, 64, (1, 80)), {"full": truedepth.DepthPlan.full(4)}
    model = peft.get_peft_model(small(), config_of("PREFIX_TUNING"))
    for measured in (
        lambda: compare(model, plans, prompt_tokens=4, new_tokens=2),
        lambda: compare_quality(model, plans, windows),
        lambda: calibrate(model, windows),
    ):
        with pytest.raises(UnsupportedModelError, match="PREFIX_TUNING"):
            measured()
    for kind in ("LORA", "HRA"):
        model = adapted(small(), config_of(kind))
        merged = adapted(small(), config_of(kind)).merge_and_unload()
        found, wanted = (compare_quality(made, plans, windows)["full"].perplexity for made in (model, merged))
        assert found == pytest.approx(wanted, rel=1e-3)
        others = [truedepth.DepthPlan.parse("0 (1|2) 3", num_layers=4)]
        found, wanted = (calibrate(made, windows).losses(others)[0] for made in (model, merged))
        assert found == pytest.approx(wanted, rel=1e-3)


def test_a_loaded_model_with_an_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    """What `load` gives, with PEFT's model in the place of its own: text, drafts, plans and a refusal."""
    loaded = truedepth.load(str(tiny_folder))
    plain = truedepth.generate(loaded, "Hi there", max_new_tokens=8).token_ids
    model = adapted(loaded.model, lora(use_dora=True))
    texts = [
        truedepth.generate(given, "Hi there", max_new_tokens=8, **options).token_ids
        for given in (loaded, replace(loaded, model=model))
        for options in ({}, {"draft": "exit:3"}, {"plan": "0-5"})
    ]
    assert set(texts) == {texts[0]} and texts[0] != plain
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=f"adapter of kind LORA for {re.escape(str(tiny_folder))}"):
        truedepth.load(str(tmp_path))
    soft = peft.get_peft_model(truedepth.load(str(tiny_folder)).model, config_of("PROMPT_TUNING"))
    with pytest.raises(UnsupportedModelError, match="PROMPT_TUNING"):
        truedepth.generate(replace(loaded, model=soft), "Hi there")
