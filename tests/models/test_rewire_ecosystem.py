"""A model under a plan in the hands of PEFT, Trainer, lm-eval and accelerate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from truedepth.errors import UnsupportedModelError
from truedepth.models.rewire import applied_plan, apply, restore
from truedepth.plan import DepthPlan

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

NUM_LAYERS = 6


def plan_of(notation: str, form: Any = "lp", prefill: Any = "plan") -> DepthPlan:
    return DepthPlan.parse(notation, NUM_LAYERS, form, prefill)


# PEFT


def with_adapters(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    return peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )


def train_a_step(model: Any, ids: Tensor) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize("notation", ["1 3 5", "0 (1|2|3) 5"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_adapters_before_and_after_apply_are_the_same(
    name: str, notation: str, tiny_model: Any, token_ids: Any
) -> None:
    """Put on before or after, or with the plan applied to the PEFT model: same function, same training step."""
    ids, plan = token_ids(2, 12), plan_of(notation)
    before = with_adapters(tiny_model(name))
    apply(before.base_model.model, plan)
    after = with_adapters(apply(tiny_model(name), plan))
    wrapped = apply(with_adapters(tiny_model(name)), plan)
    for model in (before, after, wrapped):
        assert applied_plan(model) == plan
        train_a_step(model, ids)
    with torch.inference_mode():
        logits = [model(input_ids=ids).logits for model in (before, after, wrapped)]
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=0)
    torch.testing.assert_close(logits[2], logits[0], rtol=0, atol=0)


def test_adapters_learn_only_where_layers_run(tiny_model: Any, token_ids: Any) -> None:
    ids = token_ids(2, 12)
    model = apply(with_adapters(tiny_model("llama")), plan_of("0 (2|3)"))
    model(input_ids=ids, labels=ids).loss.backward()
    learning = {name.split("layers.")[1][0] for name, p in model.named_parameters() if p.grad is not None}
    assert learning == {"0", "2", "3"}


def test_adapters_trained_under_a_plan_load_onto_the_unmodified_model(
    tiny_model: Any, token_ids: Any, tmp_path: Any
) -> None:
    peft = pytest.importorskip("peft")
    ids, plan = token_ids(2, 12), plan_of("0 (1|2) 4")
    trained = with_adapters(apply(tiny_model("llama"), plan))
    train_a_step(trained, ids)
    trained.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path).eval()
    with torch.inference_mode():
        under_plan = trained(input_ids=ids).logits
        assert torch.equal(loaded(input_ids=ids).logits, restore(trained)(input_ids=ids).logits)
        assert torch.equal(apply(loaded, plan)(input_ids=ids).logits, under_plan)


@torch.inference_mode()
def test_adapters_merged_into_the_weights(tiny_model: Any, token_ids: Any) -> None:
    """merge_and_unload under a plan, then restore: the model with the adapters in it, at full depth."""
    ids = token_ids(2, 12)
    expected = with_adapters(tiny_model("llama")).merge_and_unload()(ids).logits
    model = apply(with_adapters(tiny_model("llama")), plan_of("0 (1|2) 5")).merge_and_unload()
    assert applied_plan(model) == plan_of("0 (1|2) 5")
    assert torch.equal(restore(model)(ids).logits, expected)


@torch.inference_mode()
def test_peft_model_generates_and_restores(tiny_model: Any, token_ids: Any) -> None:
    model, ids = with_adapters(tiny_model("llama")), token_ids(2, 8)
    base = model(input_ids=ids).logits
    apply(model, plan_of("1 (3|4)", prefill="full"), free_skipped_cache=True)
    model.generation_config.eos_token_id = None
    generated = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    bare = model.merge_and_unload()
    assert torch.equal(bare.generate(ids, max_new_tokens=5, do_sample=False), generated)
    assert not torch.equal(restore(bare).generate(ids, max_new_tokens=5, do_sample=False), generated)
    torch.testing.assert_close(bare(ids).logits, base, rtol=0, atol=1e-5)


def test_mean_of_layers_with_adapters_is_refused(tiny_model: Any, token_ids: Any) -> None:
    """The mean of two products of factors is not the product of their means."""
    model = with_adapters(tiny_model("llama"))
    with pytest.raises(UnsupportedModelError, match=r"stage '\(1\+2\)'.*adapters.*merge_and_unload"):
        apply(model, plan_of("0 (1+2)"))
    assert applied_plan(model) is None
    # The other way round is sound: the adapters are trained beside the mean.
    merged = with_adapters(apply(tiny_model("llama"), plan_of("0 (1+2)")))
    train_a_step(merged, token_ids(2, 12))
    restore(merged)
    own = tiny_model("llama").model.layers[1].self_attn.q_proj.weight
    assert torch.equal(merged.base_model.model.model.layers[1].self_attn.q_proj.base_layer.weight, own)


# Trainer


@pytest.mark.parametrize(("notation", "checkpointing"), [("0 2 4", False), ("(1|2) 5", True)])
def test_trainer(notation: str, checkpointing: bool, tiny_model: Any, token_ids: Any, tmp_path: Any) -> None:
    """Two steps: the layers that run change, the others do not, and a checkpoint is the whole model."""
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    model, plan = tiny_model("llama"), plan_of(notation)
    before = [layer.mlp.up_proj.weight.detach().clone() for layer in model.model.layers]
    rows = [{"input_ids": row, "labels": row} for row in token_ids(8, 12)]
    trainer = Trainer(
        model=apply(model, plan),
        args=TrainingArguments(
            output_dir=tmp_path,
            max_steps=2,
            per_device_train_batch_size=2,
            per_device_eval_batch_size=2,
            learning_rate=0.01,
            gradient_checkpointing=checkpointing,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        eval_dataset=rows[:4],
    )
    trainer.train()
    assert trainer.state.global_step == 2
    changed = {
        index
        for index, layer in enumerate(model.model.layers)
        if not torch.equal(layer.mlp.up_proj.weight, before[index])
    }
    assert changed == set(plan.layers_used)

    with torch.inference_mode():
        losses = [model(row["input_ids"][None], labels=row["labels"][None]).loss for row in rows[:4]]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(sum(losses) / 4), rel=1e-5)  # type: ignore[arg-type]

    trainer.save_model(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(saved[key], tensor) for key, tensor in restore(model).state_dict().items())


# lm-eval


SPECIAL = ("<pad>", "<s>", "</s>")
"""The tokens 0, 1 and 2; token 3 is the word `w3`."""


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*SPECIAL, *(f"w{token}" for token in range(3, 64))]
    tokenizer = Tokenizer(models.WordLevel({name: token for token, name in enumerate(names)}, unk_token="w63"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)


@pytest.mark.parametrize("notation", ["1-5", "0 (1|2) 5"])
@torch.inference_mode()
def test_lm_eval(notation: str, tiny_model: Any, token_ids: Any) -> None:
    """Batches of questions of different lengths, scored and continued as by hand."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = apply(tiny_model("llama"), plan_of(notation))
    evaluated = HFLM(pretrained=model, tokenizer=word_tokenizer(), batch_size=2, max_length=64)
    rows = [token_ids(1, length, seed=length)[0].tolist() for length in (9, 5, 7)]

    def words(ids: list[int]) -> str:
        return " ".join(f"w{token}" for token in ids)

    pairs = [(row[:-3], row[-3:]) for row in rows]
    requests = [
        Instance("loglikelihood", {}, (words(context), " " + words(answer)), index)
        for index, (context, answer) in enumerate(pairs)
    ]
    for (context, answer), (score, is_greedy) in zip(pairs, evaluated.loglikelihood(requests), strict=True):
        logits = model(torch.tensor([context + answer]), use_cache=False).logits[0, -4:-1]
        scores = logits.log_softmax(-1)[range(3), answer]
        assert score == pytest.approx(scores.sum().item(), abs=1e-4)
        assert is_greedy == (logits.argmax(-1).tolist() == answer)

    options = {"until": ["</s>"], "max_gen_toks": 4, "do_sample": False}
    asked = [Instance("generate_until", {}, (words(row), options), index) for index, row in enumerate(rows)]
    for row, text in zip(rows, evaluated.generate_until(asked), strict=True):
        ids = row
        while len(ids) < len(row) + 4 and ids[-1] != 2:
            ids = [*ids, int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
        assert text.split() == [f"w{token}" for token in ids[len(row) :] if token not in (0, 1, 2)]


# accelerate


def dispatched(model: Any) -> Any:
    hooks = pytest.importorskip("accelerate.hooks")
    for layer in model.model.layers:
        hooks.add_hook_to_module(layer, hooks.AlignDevicesHook("cpu"))
    return model


@torch.inference_mode()
def test_layers_over_several_devices_can_be_skipped(tiny_model: Any, token_ids: Any) -> None:
    ids = token_ids(2, 12)
    for plan in (plan_of("1-5"), plan_of("5 2 0"), plan_of("0 3", prefill="full")):
        expected = apply(tiny_model("gemma3"), plan).generate(ids, max_new_tokens=4, do_sample=False)
        model = dispatched(tiny_model("gemma3"))
        base = model(ids).logits
        assert torch.equal(apply(model, plan).generate(ids, max_new_tokens=4, do_sample=False), expected)
        assert torch.equal(restore(model)(ids).logits, base)


@torch.inference_mode()
def test_offloaded_layers_can_be_skipped(tiny_model: Any, token_ids: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, ids, plan = tiny_model("llama"), token_ids(2, 12), plan_of("1 4")
    expected = apply(tiny_model("llama"), plan)(ids).logits
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert torch.equal(apply(model, plan)(ids).logits, expected)


@pytest.mark.parametrize("notation", ["1 4", "0 (1|2) 5"])
@torch.inference_mode()
def test_hooks_put_on_under_a_plan(notation: str, tiny_model: Any, token_ids: Any) -> None:
    """They keep the forward that they found; it must still be there after `restore`."""
    model, ids = tiny_model("llama"), token_ids(2, 12)
    base = model(ids).logits
    expected = apply(model, plan_of(notation))(ids).logits
    assert torch.equal(dispatched(model)(ids).logits, expected)
    assert torch.equal(restore(model)(ids).logits, base)


@pytest.mark.parametrize("notation", ["0 (1|2) 3", "0 (1+2) 3"])
def test_layers_over_several_devices_cannot_run_side_by_side(notation: str, tiny_model: Any) -> None:
    model = dispatched(tiny_model("llama"))
    with pytest.raises(UnsupportedModelError, match=r"needs its layers on one device.*load it on one device"):
        apply(model, plan_of(notation))
    assert applied_plan(model) is None


def test_device_map_of_an_applied_model_splits_between_layers(tiny_model: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    limits = {0: 60_000, 1: 60_000, "cpu": 10_000_000}
    model = tiny_model("llama")
    options = {"max_memory": limits, "no_split_module_classes": list(model._no_split_modules)}
    expected = accelerate.infer_auto_device_map(model, **options)
    assert accelerate.infer_auto_device_map(apply(model, plan_of("0 (1|2) 5")), **options) == expected
    assert not [name for name in expected if "self_attn" in name or "mlp" in name]
