"""What `docs/rewiring.md` shows runs as it stands, on a tiny model in the place of the embedded one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import truedepth
from truedepth.models.loading.load import LoadedModel

PAGE = (Path(__file__).parents[2] / "docs" / "rewiring.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.+?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_examples_run(tiny_model: Any, tiny_tokenizer: Any, monkeypatch: Any, tmp_path: Any, capsys: Any) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    pytest.importorskip("peft")
    pytest.importorskip("accelerate")
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", num_hidden_layers=30, vocab_size=len(tokenizer))
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    monkeypatch.setattr(truedepth, "load", lambda source: LoadedModel(model, tokenizer, source))
    monkeypatch.setattr(lm_eval, "simple_evaluate", lambda evaluated, tasks: evaluated.model)  # tasks are downloads
    monkeypatch.chdir(tmp_path)

    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(block, names)

    assert "0-19 (20|21) (22|23) 28 29" in capsys.readouterr().out
    assert names["results"] is model
    assert truedepth.applied_plan(model) == names["plan"]
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    trained = truedepth.restore(model).model.layers[20].mlp.up_proj.weight
    assert not torch.equal(trained, weights["model.layers.20.mlp.up_proj.weight"])
