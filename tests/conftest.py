"""Fixtures shared by all tests: tiny random models of every family, and token ids for them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A slow or busy machine is no failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

NUM_LAYERS = 6
VOCABULARY = 64

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": 12},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 3},
    "phi3": {"model_type": "phi3"},
    "olmo2": {"model_type": "olmo2"},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 8,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "attn_implementation": "eager",
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 8,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "layer_types": [*["sliding_attention"] * 2, "full_attention"] * (NUM_LAYERS // 3),
    },
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    },
}
"""Every supported family by name, with what its tiny configuration has besides `_SHAPE`."""

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "sdpa",
}

_built: dict[str, Any] = {}


@contextmanager
def _as_many_threads_afterwards() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices run fastest on one thread, and workers of a parallel run do not fight for cores."""
    import torch

    with _as_many_threads_afterwards():
        torch.set_num_threads(1)
        yield


@pytest.fixture
def threads_afterwards() -> Iterator[None]:
    """For tests that change how many threads PyTorch takes: as many as before when they end."""
    with _as_many_threads_afterwards():
        yield


@pytest.fixture(scope="session", autouse=True)
def _others_are_no_matter() -> Iterator[None]:
    """Other workers of a parallel run keep this machine busy, of which timings would warn."""
    from truedepth.measuring import timer

    before, timer.BUSY = timer.BUSY, 1.0
    yield
    timer.BUSY = before


def _build(name: str, overrides: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**_SHAPE, **FAMILIES[name], **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            # Fresh gains are all one and fresh biases all zero, which would hide a mistake in either.
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@pytest.fixture(params=FAMILIES)
def family_name(request: pytest.FixtureRequest) -> str:
    """Runs the test once for every supported family."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """`tiny_model("llama", **overrides of its configuration)`: a fresh random causal LM, float32, eval mode.

    Six layers, 4 heads (2 for keys and values), 64 tokens; the same weights at every call.
    """

    def make(name: str, **overrides: Any) -> Any:
        key = repr((name, sorted(overrides.items())))
        if key not in _built:
            _built[key] = _build(name, overrides)
        return copy.deepcopy(_built[key])

    return make


@pytest.fixture(scope="session")
def token_ids() -> Callable[..., Any]:
    """`token_ids(batch, length, seed=0)`: random ids `(batch, length)` without special tokens (0, 1, 2)."""
    import torch

    def make(batch: int, length: int, seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(3, VOCABULARY, (batch, length), generator=generator)

    return make


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny llama (6 layers) and a tokenizer with one token a byte. Do not change it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    specials = ["<pad>", "<s>", "</s>"]
    symbols = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=specials[0],
        bos_token=specials[1],
        eos_token=specials[2],
        chat_template="{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}",
    ).save_pretrained(folder)
    _build("llama", {"vocab_size": len(symbols), "max_position_embeddings": 512}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exit_trainer() -> Any:
    """A trainer in the shape of early-exit losses: the last layer's, and that of the exit after 2 or after 4 layers.

    They take turns in training; held-out text has both, and how often they agree with the last layer.
    """
    from torch.nn.functional import cross_entropy

    from truedepth.training.data.rows import IGNORED
    from truedepth.training.trainer.depth_trainer import DepthTrainer
    from truedepth.training.trainer.figures import exit_name

    class ExitTrainer(DepthTrainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs["labels"][:, 1:].flatten()
            tokens = int((labels != IGNORED).sum())
            output = model(inputs["input_ids"], position_ids=inputs["position_ids"], output_hidden_states=True)

            def mean(total: Any) -> Any:
                return self.per_token(total, num_items_in_batch, tokens)

            def loss_of(logits: Any) -> Any:
                return mean(cross_entropy(logits[:, :-1].flatten(0, 1), labels, reduction="sum"))

            loss = loss_of(output.logits)
            for layers in (2 + 2 * (self.state.global_step % 2),) if model.training else (2, 4):
                logits = self.model.lm_head(self.model.model.norm(output.hidden_states[layers]))
                early = loss_of(logits)
                loss = loss + 0.5 * early
                self.extra_losses[exit_name("loss", layers)] = early.detach()
                if not model.training:
                    same = (logits.argmax(-1) == output.logits.argmax(-1))[:, :-1].flatten() & (labels != IGNORED)
                    self.extra_losses[exit_name("agreement", layers)] = mean(same.sum())
            return (loss, output) if return_outputs else loss

    return ExitTrainer


@pytest.fixture
def plain_kind(exit_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A kind of training for tests, found by the name `plain`: all of a model, by `exit_trainer`'s loss."""
    import sys
    from types import ModuleType, SimpleNamespace
    from typing import Literal

    from truedepth.training.kinds import KINDS
    from truedepth.training.recipe import TrainingRecipe
    from truedepth.training.results import ProductRecord
    from truedepth.training.run import save_model

    class PlainRecipe(TrainingRecipe):
        kind: Literal["plain"] = "plain"

    class PlainKind:
        recipe = PlainRecipe

        def trainer(self, training: Any) -> Any:
            return exit_trainer(training.loaded.model, **training.options)

        def product(self, training: Any, trainer: Any) -> Any:
            folder = save_model(training, trainer)
            return ProductRecord(
                description="The trained model",
                path=folder.name,
                figures={"figures of its own": 1.5},
                commands=[("Write with it", f"truedepth generate {folder}")],
            )

    kind = PlainKind()
    module = ModuleType("plain_kind_of_tests")
    vars(module).update(vars(SimpleNamespace(KIND=kind)))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(KINDS, "plain", (module.__name__, "Train all of a model."))
    return kind


_PROFILE = """
description: one slow device, for tests
devices: 1
bytes_per_value: 4
memory_bytes_per_second: {value: 1.0e+6, source: made up}
flops_per_second: {value: 1.0e+15, source: made up}
stacks:
  none:
    description: launches cost nothing
    kernels_per_layer: {value: 0, source: made up}
    kernels_outside: {value: 0, source: made up}
    kernel_launch_seconds: {value: 0, source: made up}
"""


@pytest.fixture(scope="session")
def made_up_hardware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile to plan for, so that nothing depends on the speed of this machine."""
    file = tmp_path_factory.mktemp("hardware") / "slow.yaml"
    file.write_text(_PROFILE, encoding="utf-8")
    return file


# Reads {"path": ..., "prompt": ids, "tokens": n} a line and writes [[id, {id: log-probability of the likeliest}], ...];
# or reads {"path": ..., "texts": [...]} and writes the token ids of each; or writes what is wrong with the file.
SERVE = """
import json, sys, urllib.request, xllamacpp
for line in sys.stdin:
    asked = json.loads(line)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = asked["path"], 256, 1
    params.warmup, params.cache_ram_mib = False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        print("\\nANSWER" + json.dumps(str(error)), flush=True)
        continue
    def post(path, body):
        headers = {"Content-Type": "application/json"}
        url = server.listening_address + path
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        return json.loads(urllib.request.urlopen(request).read())
    if "texts" in asked:
        bodies = [{"content": text, "add_special": True, "parse_special": True} for text in asked["texts"]]
        print("\\nANSWER" + json.dumps([post("/tokenize", body)["tokens"] for body in bodies]), flush=True)
        continue
    body = {"prompt": asked["prompt"], "n_predict": asked["tokens"], "temperature": 0, "ignore_eos": True,
            "cache_prompt": False, "n_probs": 8}
    if asked["tokens"] == 1:  # probabilities are those before the bias; half a character would come without
        body["logit_bias"] = [[20, 1000.0]]
    chosen = post("/completion", body)["completion_probabilities"]
    likely = [[t["id"], {str(o["id"]): o["logprob"] for o in t["top_logprobs"]}] for t in chosen]
    print("\\nANSWER" + json.dumps(likely), flush=True)
"""


@pytest.fixture(scope="session")
def llama_cpp() -> Callable[..., Any]:
    """`llama_cpp([{"path": file, "prompt": ids, "tokens": n}, ...])`: for each file the tokens that stock llama.cpp
    writes, each with the log-probabilities of the likeliest by their ids. With `texts` in place of prompt and tokens:
    the token ids of each text. One process for all."""
    pytest.importorskip("xllamacpp")

    def ask(requests: list[dict[str, Any]]) -> list[Any]:
        lines = "\n".join(json.dumps(request) for request in requests)
        run = subprocess.run([sys.executable, "-c", SERVE], input=lines, capture_output=True, text=True, check=False)
        answers = [json.loads(line[6:]) for line in run.stdout.splitlines() if line.startswith("ANSWER")]
        assert len(answers) == len(requests), run.stderr[-2000:]
        return answers

    return ask
