"""Whether two checkouts of truedepth do the same: both command lines are run, and what they write is compared.

    python benchmarks/same_results.py OLD_CHECKOUT NEW_CHECKOUT --work FOLDER

For the embedded model and tiny random ones: greedy tokens and their probabilities, with and without plans and drafts;
what `optimize` finds, in one go and interrupted; exported files, tensor by tensor; losses and weights of trainings.
Nothing that depends on time is compared. All numbers must be equal to the last bit, so both run on one thread.

FOLDER keeps what the old checkout wrote, for comparing it with several new ones. Names that differ on purpose stand in
--renamed OLD=NEW; any other difference of names counts as one.

Commands run in forks of this process, which has imported libraries but nothing of truedepth: importing them takes ten
seconds, most commands one or two.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

RENAMED: dict[str, str] = {}
"""Keys of JSON files and fields of recipes, patterns of the old names, by `--renamed`: a tree may use either."""

LEFT_OUT = {
    *("truedepth_version", "transformers_version", "schema_version", "created", "seconds", "machine"),
    *("timings", "tokens_per_second", "drafts", "head"),
}
"""Keys whose values may differ."""

ADAPTIVE = {"token_ids", "text", "finish_reason", "prompt_tokens", "plan", "drafts"}
"""Keys that are compared where the number of drafted tokens depends on times."""

OUTPUTS = 1
"""Raised when a check changes, since kept outputs are then of no use."""

PROMPTS = ("Why is the sky blue?", "Name three uses of a paper clip, and say which is best.")
WRITING = ("--dtype", "float32", "--max-new-tokens", "48", "--json", "--logprobs")
FIXED = ("--draft-length", "3")
LIBRARIES = (
    *("torch", "transformers.trainer", "accelerate", "peft", "datasets", "gguf", "pydantic", "plotly.graph_objects"),
    *(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "qwen2", "gemma2")),
)

Facts = dict[str, Any]


class Failed(Exception):
    """A command did not do what it should."""


@dataclass
class Tree:
    """A checkout, the folder for what it writes, and the fields of recipes that it knows by their new names."""

    name: str
    checkout: Path
    folder: Path
    renamed: set[str] = field(default_factory=set)

    def word(self, new: str) -> str:
        """An option or a value as this tree knows it."""
        old = {value: key for key, value in RENAMED.items()}
        return old.get(new, new) if self.name == "old" else new

    def start(self, arguments: tuple[str, ...], log: Path) -> int:
        """Start a command; its process id. Its output goes to two files named as `log`."""
        source = self.checkout / "src"

        def command() -> None:
            os.environ["XDG_CACHE_HOME"] = str(self.folder / "cache")
            sys.path.insert(0, str(source))
            sys.argv = ["truedepth", *arguments]
            try:
                runpy.run_module("truedepth", run_name="__main__", alter_sys=True)
            finally:
                own = [module for name, module in sys.modules.items() if name.partition(".")[0] == "truedepth"]
                files = [path for module in own if (path := getattr(module, "__file__", None))]
                assert all(Path(path).is_relative_to(source) for path in files), f"of another checkout: {files}"

        return fork(command, log)

    def run(self, *arguments: str, log: Path) -> str:
        """Run a command; what it wrote on standard output."""
        code = ended(self.start(arguments, log))
        output, errors = (log.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
        if code:
            raise Failed(f"truedepth {' '.join(arguments)}\nexit code {code}: {errors[-1500:].strip()}")
        return output


def fork(action: Callable[[], Any], log: Path) -> int:
    """Do something in a process of its own; its id."""
    sys.stdout.flush()
    log.parent.mkdir(parents=True, exist_ok=True)
    if pid := os.fork():
        return pid
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(log.with_suffix(".out"), writing, 0o644), 1)
        os.dup2(os.open(log.with_suffix(".err"), writing, 0o644), 2)
        action()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a process; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass(frozen=True)
class Subject:
    """A model and what is asked of it: plans with pairs and with skips, drafts, a target without times, trainings."""

    name: str
    model: str
    plan: str
    skipping: str
    drafts: tuple[str, ...]
    target: tuple[str, ...]
    trainings: tuple[str, ...]

    @property
    def is_large(self) -> bool:
        return self.name == self.model


def subjects(folder: Path) -> list[Subject]:
    """All models; the tiny ones are made in the folder, where they are not there yet."""
    h100, h100s = ("--hardware", "h100"), ("--hardware", "h100-x2")
    both, heads = ("layerskip", "recover"), ("exit-head eagle", "exit-head exit")
    gemma = {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8, "attn_implementation": "eager"}
    return [
        tiny(folder, "llama", ("--depth", "4", *h100), (*both, *heads)),
        tiny(
            folder, "qwen2", ("--speedup", "1.3", *h100s), both, tie_word_embeddings=True, vocab_size=260
        ),  # its tokenizer adds one
        tiny(folder, "gemma2", ("--depth", "3", "--form", "par", *h100), both, **gemma),
        Subject(
            name="smollm2-135m",
            model="smollm2-135m",
            plan="0-19 (20|21) (22|23) 24-29",
            skipping="0-11 (12+13) 14-24 27-29",
            drafts=("exit:20", "0-17 (18|19) 24-29", "default"),
            target=("--depth", "28", "--form", "lp", *h100, "--windows", "1,1,1"),
            trainings=("layerskip",),
        ),
    ]


def tiny(folder: Path, name: str, target: tuple[str, ...], trainings: tuple[str, ...], **config: Any) -> Subject:
    """A random model of six layers with a token a byte."""
    path, aside = folder / name, folder / f"{name}.part"
    if not path.exists():
        if ended(fork(lambda: write_tiny({"model_type": name, **config}, aside), folder / f"{name}-log")):
            raise SystemExit((folder / f"{name}-log.err").read_text())
        aside.rename(path)
    return Subject(name, str(path), "0 1 (2|3) 4 5", "0 (1+2) 3 5", ("exit:3", "0 (1|2) 4 5"), target, trainings)


def write_tiny(config: dict[str, Any], folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>"]
    symbols = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    chat = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
    marks = dict(zip(("pad_token", "bos_token", "eos_token"), specials, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat, **marks).save_pretrained(folder)
    shape: dict[str, Any] = {
        "vocab_size": len(symbols),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
    }
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    shape |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**shape, **config}))
    with torch.no_grad():
        for parameter in made.parameters():  # fresh gains and biases, all one and zero, would hide mistakes
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    made.save_pretrained(folder)


Check = Callable[[Subject, Tree, Path], Facts]
"""What of a subject is compared, found by running a tree; logs and outputs go to a folder."""


def generate(subject: Subject, tree: Tree, folder: Path) -> Facts:
    """Greedy tokens and all figures of them that do not depend on time, by way and prompt."""
    ways: dict[str, tuple[str, ...]] = {
        "plain": (),
        "plan": ("--plan", subject.plan),
        "plan in form par": ("--plan", subject.plan, "--form", "par"),
        "plan and draft": ("--plan", subject.plan, "--draft", subject.drafts[0], *FIXED),
        **{f"draft {draft}": ("--draft", draft, *FIXED) for draft in subject.drafts},
        "adaptive": ("--draft", subject.drafts[-1]),
    }
    written_by = enumerate(ways.items())
    return {way: written(subject.model, options, tree, folder / f"{number}") for number, (way, options) in written_by}


def written(model: str, options: tuple[str, ...], tree: Tree, log: Path) -> Facts:
    found = {}
    adaptive = "--draft" in options and FIXED[0] not in options
    for number, prompt in enumerate(PROMPTS):
        output = tree.run("generate", model, "--prompt", prompt, *options, *WRITING, log=Path(f"{log}-{number}"))
        found[prompt] = {key: value for key, value in json.loads(output).items() if key in ADAPTIVE or not adaptive}
    return found


def optimize(subject: Subject, tree: Tree, folder: Path) -> Facts:
    """The plan and all figures of a run in one go, and of one that was interrupted twice."""
    asked = ("optimize", subject.model, "--dtype", "float32", "--seed", "3", *subject.target, "-o")
    straight, resumed = folder / "straight", folder / "resumed"
    tree.run(*asked, str(straight), log=folder / "straight-log")
    resume: tuple[str, ...] = ()
    for sort, share in {signal.SIGINT: 0.3, signal.SIGKILL: 0.6}.items():
        pid = tree.start((*asked, str(resumed), *resume), folder / f"{sort.name}-log")
        while _lines(resumed) < share * _lines(straight):
            time.sleep(0.001)
            if os.waitpid(pid, os.WNOHANG)[0]:
                raise Failed("the run ended before it could be interrupted")
        os.kill(pid, sort)
        if ended(pid) not in (130, -sort):
            raise Failed(f"{sort.name} did not interrupt the run")
        resume = ("--resume",)
    tree.run(*asked, str(resumed), *resume, log=folder / "resumed-log")
    return {
        run.name: {"plan file": _yaml(run / "plan.yaml"), "results": json.loads((run / "results.json").read_text())}
        for run in (straight, resumed)
    }


def _lines(run: Path) -> int:
    journal = run / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def _yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text())


def export(subject: Subject, tree: Tree, folder: Path) -> Facts:
    """Files for other programs. A family may refuse one; then both checkouts must."""
    found: Facts = {}
    kinds = {
        "hf-pairs": ("hf", subject.plan, "--dtype", "bfloat16" if subject.is_large else "auto"),
        "hf-skips": ("hf", subject.skipping),
        "gguf-pairs": ("gguf", subject.plan, "--type", "f16"),
        "gguf-skips": ("gguf", subject.skipping, "--type", "q8_0"),
    }
    for name, (kind, plan, *options) in kinds.items():
        path, log = folder / name, folder / f"{name}-log"
        try:
            tree.run("export", kind, subject.model, "--plan", plan, *options, "-o", str(path), log=log)
        except Failed as error:
            if "truedepth: error: this is a bug" in str(error) or "truedepth: error:" not in str(error):
                raise
            found[name] = "refused"
            print(f"[refused: {str(error).partition('error: ')[2][:80]}] ", end="")
        else:
            found[name] = _gguf(path) if kind == "gguf" else _checkpoint(path)
    return found


def _checkpoint(folder: Path) -> Facts:
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "plan": _yaml(folder / "plan.yaml"),
        "tokenizer": _digest((folder / "tokenizer.json").read_bytes()),
        **{path.name: json.loads(path.read_text()) for path in folder.glob("*config.json")},
        "tensors": weights(folder),
    }


def weights(folder: Path) -> dict[str, list[Any]]:
    """Type, shape and hash of each tensor in the safetensors files of a folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = memoryview(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        for name, facts in json.loads(bytes(data[8:start])).items():
            if name != "__metadata__":
                begin, end = facts["data_offsets"]
                found[name] = [facts["dtype"], facts["shape"], _digest(data[start + begin : start + end])]
    return found


def _gguf(path: Path) -> Facts:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    tensors = {one.name: [one.tensor_type.name, one.shape.tolist(), _digest(one.data)] for one in reader.tensors}
    return {"metadata": {name: entry.contents() for name, entry in reader.fields.items()}, "tensors": tensors}


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def train(kind: str, subject: Subject, tree: Tree, folder: Path) -> Facts:
    """All that was logged, and the weights that were made; of a head what it drafts, too."""
    command, _, shape = kind.partition(" ")
    recipe, output = folder / "recipe.yaml", folder / "run"
    folder.mkdir(parents=True, exist_ok=True)
    fields = recipe_of(command, shape, subject, tree.folder.parent / "subjects" / "sums.jsonl")
    if shape:
        fields["head"]["kind"] = tree.word(shape)
    while not output.exists():
        recipe.write_text(json.dumps(_renamed(fields, tree.renamed)))  # JSON is YAML, too
        try:
            tree.run("train", command, str(recipe), "-o", str(output), log=folder / "log")
        except Failed as error:
            # A tree says which names it does not know: the old ones of renamed fields.
            unknown = {name.rpartition(".")[2] for name in re.findall(r"unknown field '(.*?)'", str(error))}
            if not unknown & RENAMED.keys() - tree.renamed:
                raise
            tree.renamed |= unknown & RENAMED.keys()
    product = json.loads((output / "training-results.json").read_text())["product"]
    return {
        "logged": [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()],
        "figures": product["figures"],
        "tensors": weights(output / product["path"]),
        "written": written(subject.model, (tree.word("--draft"), str(output / "head"), *FIXED), tree, folder / "w")
        if shape
        else {},
    }


def recipe_of(command: str, shape: str, subject: Subject, file: Path) -> dict[str, Any]:
    """A recipe by its old names."""
    lines = [{"prompt": f"{number}+{number}=", "response": str(2 * number)} for number in range(60)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    source = {"file": str(file), "format": "prompt-response"}
    fields: dict[str, Any] = {
        "kind": command,
        "model": {"name": subject.model, "device": "cpu"},
        "data": {"train": [{**source, "limit": 50}], "held_out": [{**source, "skip": 50}], "length": 32},
        "steps": 3 if subject.is_large else 6,
        "batch": 4,
        "rate": 1e-4 if subject.is_large else 1e-2,
        "logging": {"log_every": 1, "evaluate_every": 3, "save_every": 3, "tensorboard": False},
    }
    if command == "layerskip":
        return {**fields, "micro_batch": 2, "layerskip": {"p_max": 0.2, "e_scale": 1.0, "every": 2, "watch": [2, 4]}}
    if command == "recover":
        objective = {"kind": "distillation", "hidden_states": 0.1}
        return {**fields, "micro_batch": 2, "recover": {"plans": [subject.plan], "objective": objective}}
    answer = {"source": {"file": str(file), "text_field": "prompt"}, "new_tokens": 24}
    held_out = {"sums": {"answer": [answer], "tokens": 60}}
    own = {"depths": [2, 4, 6], "rank": 2} if shape == "eagle" else {"exit": 3}
    return {
        **fields,
        "head": {"kind": shape, "vocabulary": 120, **own},
        "data": {"train": {"answer": [answer], "tokens": 300}, "held_out": held_out, "length": 48},
        "states": {"batch": 4},
        "places": 2,
    }


def _renamed(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {RENAMED[key] if key in names else key: _renamed(entry, names) for key, entry in value.items()}
    return [_renamed(entry, names) for entry in value] if isinstance(value, list) else value


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All that is in facts, by where it is, under new names."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if key not in LEFT_OUT:
                new = next((m.expand(RENAMED[old]) for old in RENAMED if (m := re.fullmatch(old, key))), key)
                yield from leaves(entry, f"{path} / {new}" if path else new)
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        for index, entry in enumerate(value):
            yield from leaves(entry, f"{path} / {index}")
    else:
        yield path, value


def differences(old: Facts, new: Facts) -> list[str]:
    """What differs, a line each. Numbers are compared as they are written: nan is nan, and 1 is not 1.0."""
    left, right = dict(leaves(old)), dict(leaves(new))
    found = [f"{path}: only in the {'old' if path in left else 'new'}" for path in left.keys() ^ right.keys()]
    for path in left.keys() & right.keys():
        one, other = left[path], right[path]
        if json.dumps(one) != json.dumps(other):
            where = ""
            if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
                place = next(at for at, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
                where, one, other = f" / {place}", one[place], other[place]
            found.append(f"{path}{where}: {str(one)[:60]} -> {str(other)[:60]}")
    return sorted(found)


def facts_of(tree: Tree, subject: Subject, name: str, check: Check) -> Facts:
    """What a check finds of a tree, kept on the disk: `facts` or the message `failed`, and `took` seconds."""
    folder = tree.folder / subject.name / name.replace(" ", "-")
    kept = folder / "facts.json"
    if not kept.exists():
        print(f"{tree.name}: {subject.name}, {name} ... ", end="", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        begun = time.monotonic()
        try:
            found: Facts = {"facts": check(subject, tree, folder)}
        except (Failed, OSError, KeyError, ValueError) as error:
            found = {"failed": f"{type(error).__name__}: {error}"}
        found["took"] = round(time.monotonic() - begun, 1)
        print(f"{'failed after ' if 'failed' in found else ''}{found['took']} s")
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_size > 10_000_000:  # gigabytes that no one needs any more
                path.unlink()
        if "failed" in found:
            return found
        text = json.dumps(found).replace(str(tree.folder), "FOLDER").replace(str(tree.folder.parent), "WORK")
        kept.write_text(text)
    known: Facts = json.loads(kept.read_text())
    return known


def compare(old: Facts, new: Facts) -> Facts:
    """The row of a check in the table."""
    failed = {tree: found["failed"] for tree, found in {"old": old, "new": new}.items() if "failed" in found}
    row = {"old_seconds": old["took"], "new_seconds": new["took"], "compared": 0, "failed": failed, "differences": []}
    if failed:
        return {**row, "result": f"FAILED in the {' and the '.join(failed)}"}
    left, right = old["facts"], new["facts"]
    found = differences(left, right)
    for tree, facts in {"old": left, "new": right}.items():
        if "resumed" in facts:
            found += [f"{tree}, resumed: {line}" for line in differences(facts["straight"], facts["resumed"])]
    refused = [kind for kind, facts in left.items() if facts == right.get(kind) == "refused"]
    same = "same" + (f"; both refuse {', '.join(refused)}" if refused else "")
    result = f"DIFFERS in {len(found)}" if found else same
    return {**row, "compared": len(list(leaves(left))), "differences": found, "result": result}


def show(rows: list[Facts]) -> None:
    print(f"\n{'model':14} {'check':24} {'values':>7} {'old s':>7} {'new s':>7}  result")
    for row in rows:
        seconds = f"{row['old_seconds']:7.1f} {row['new_seconds']:7.1f}"
        print(f"{row['model']:14} {row['check']:24} {row['compared']:7} {seconds}  {row['result']}")
    for row in rows:
        lines = [*row["differences"][:10], *(f"{tree}: {message}" for tree, message in row["failed"].items())]
        if lines:
            more = len(row["differences"]) - 10
            print(f"\n{row['model']}, {row['check']}:", *lines, *([f"and {more} more"] * (more > 0)), sep="\n  ")


def identity(checkout: Path) -> str:
    """A hash of all that the outputs of a checkout depend on."""
    found = hashlib.sha256(f"{OUTPUTS} {sys.version} {[version(name) for name in ('torch', 'transformers')]}".encode())
    for path in sorted((checkout / "src").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(f"{path.relative_to(checkout)} {_digest(path.read_bytes())}".encode())
    return found.hexdigest()[:12]


def main() -> NoReturn:
    parser = argparse.ArgumentParser(description="Whether two checkouts of truedepth do the same.")
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("new", type=Path, metavar="NEW_CHECKOUT")
    parser.add_argument("--only", metavar="NAME", action="append", help="a model, a check, or MODEL:CHECK; repeatable")
    parser.add_argument("--work", type=Path, default=Path("same-results"), help="keeps the old checkout's outputs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows and differences")
    parser.add_argument(
        "--renamed", metavar="OLD=NEW", action="append", default=[], help="a key or field, as a pattern; repeatable"
    )
    options = parser.parse_args()
    RENAMED.update(pair.split("=", 1) for pair in options.renamed)
    work, old, new = (path.resolve() for path in (options.work, options.old, options.new))
    for checkout in (old, new):
        if not (checkout / "src" / "truedepth" / "__main__.py").is_file():
            parser.error(f"{checkout} is no checkout of truedepth")
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    os.nice(10)
    sys.dont_write_bytecode = True  # checkouts stay as they are
    shutil.rmtree(work / "new", ignore_errors=True)
    (work / "subjects").mkdir(parents=True, exist_ok=True)
    trees = Tree("old", old, work / f"old-{identity(old)}"), Tree("new", new, work / "new")
    print("importing libraries", flush=True)
    for name in LIBRARIES:
        import_module(name)
    rows = []
    for subject in subjects(work / "subjects"):
        checks: dict[str, Check] = {"generate": generate, "optimize": optimize, "export": export}
        checks |= {f"train {kind}": partial(train, kind) for kind in subject.trainings}
        for name, check in checks.items():
            if not options.only or {subject.name, name, name.split()[0], f"{subject.name}:{name}"} & {*options.only}:
                row = compare(*(facts_of(tree, subject, name, check) for tree in trees))
                rows.append({"model": subject.name, "check": name, **row})
    if not rows:
        parser.error(f"nothing is named {', '.join(options.only)}")
    show(rows)
    if options.json:
        options.json.write_text(json.dumps({"old": str(old), "new": str(new), "rows": rows}, indent=2) + "\n")
    sys.exit(any(row["failed"] or row["differences"] for row in rows))


if __name__ == "__main__":
    main()
