"""Every member on a small random copy: loaded, asked, trained, merged, saved; and what is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from local_runner import adapters, evaluate, lean
from local_runner.data import Example
from local_runner.generate import Answerer, Ask
from local_runner.learning import open_learner
from local_runner.models import base as bases
from local_runner.models import tiny
from local_runner.optimizers import make_optimizer
from local_runner.update import update
from maas_client.errors import BaseModelError
from maas_client.plan import BaseInfo, Plan
from maas_client.spec.limits import local_limits
from maas_client.spec.rundir import RunDir, read_json
from tests.training.family_members import FULL, MEMBERS, SHORT, write

MakeRun = Callable[..., RunDir]


def base_at(folder: Path) -> bases.Base:
    return bases.Base(folder, BaseInfo(str(folder), folder.name, ""), folder.name)


@pytest.fixture
def plan(make_run: MakeRun) -> Plan:
    from maas_client.plan import plan_from_json

    return plan_from_json(read_json(make_run(learning_rate="0.01", lora_r="2").plan_file))


def rows(length: int) -> list[Example]:
    ids = tuple(3 + n * n % 80 for n in range(length))
    return [Example(ids, (False,) * 4 + (True,) * (length - 4), length)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    place = tmp_path_factory.mktemp("members")

    def folder(name: str) -> Path:
        return place / name if (place / name).exists() else write(place / name, MEMBERS[name])

    return folder


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_is_loaded_asked_trained_merged_and_saved(
    name: str, folders: Callable[[str], Path], plan: Plan, tmp_path: Path
) -> None:
    folder = folders(name)
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = bases.load(base_at(folder))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    ids = torch.tensor([rows(SHORT + 8)[0].ids])
    with torch.inference_mode():
        plain = model.eval()(ids).logits
    assert bool(plain.isfinite().all())
    if lean.serves(model):  # else it is served by the model itself
        part = lean.Lean(model).forward([], [], [lean.Chunk(0, ids[0, :24].tolist(), 0)], None)
        torch.testing.assert_close(part[0], model(ids[:, :24]).logits[0, -1], atol=1e-4, rtol=1e-4)
    else:
        assert model.config.model_type in {"phi3small", "phimoe"}

    tuned: Any = adapters.attach(model, plan, name=name).train()
    learner, optimizer = open_learner(tuned, pad_id=2), make_optimizer(tuned, plan)
    text = rows(24)
    before = evaluate.mean_loss(tuned, text, pad_id=2)
    for _ in range(8):
        update(learner, optimizer, [text], rate=0.01, ceiling=1.0)
    after = evaluate.mean_loss(tuned, text, pad_id=2)
    assert after < before
    adapters.save(tuned, tmp_path / "adapter")

    reopened = adapters.open_on(bases.load(base_at(folder)), tmp_path / "adapter")
    assert evaluate.mean_loss(reopened, text, pad_id=2) == pytest.approx(after, abs=1e-6)
    reopened.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = bases.load(base_at(tmp_path / "merged"))
    assert evaluate.mean_loss(merged, text, pad_id=2) == pytest.approx(after, abs=1e-4)
    out = merged.eval().generate(
        input_ids=ids[:, :8], attention_mask=torch.ones(1, 8, dtype=torch.long),
        max_new_tokens=4, do_sample=False, eos_token_id=2,
    )  # fmt: skip
    assert out[0, :8].tolist() == ids[0, :8].tolist()


@pytest.mark.parametrize("name", [name for name in MEMBERS if "4k" not in name])
def test_saving_gives_back_the_bits_that_were_loaded(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folders(name)
    bases.load(base_at(folder), dtype="bfloat16").save_pretrained(tmp_path)
    before: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        before |= load_file(file)
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", [name for name in MEMBERS if MEMBERS[name].get("rope_scaling")])
def test_a_text_beyond_the_first_context_is_turned_by_the_long_factors_alone(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """The same weights with only the long, or only the short set: which one was taken?"""
    config = json.loads((folders(name) / "config.json").read_text())
    models = {"both": bases.load(base_at(folders(name))).eval()}
    for kept in ("short", "long"):
        scaling = dict(config["rope_scaling"])
        for other in ("short", "long"):
            scaling[f"{other}_factor"] = config["rope_scaling"][f"{kept}_factor"]
            if f"{kept}_mscale" in scaling:
                scaling[f"{other}_mscale"] = config["rope_scaling"][f"{kept}_mscale"]
        copy = tmp_path / kept
        copy.mkdir()
        for file in folders(name).iterdir():
            (copy / file.name).symlink_to(file)
        (copy / "config.json").unlink()
        (copy / "config.json").write_text(json.dumps(config | {"rope_scaling": scaling}))
        models[kept] = bases.load(base_at(copy)).eval()
    for length, wanted, other in ((SHORT, "short", "long"), (SHORT + 1, "long", "short")):
        ids = torch.tensor([rows(length)[0].ids])
        with torch.inference_mode():
            logits = {key: model(ids).logits for key, model in models.items()}
        torch.testing.assert_close(logits["both"], logits[wanted], atol=0, rtol=0)
        assert not torch.allclose(logits["both"], logits[other])


@pytest.mark.parametrize("name", ["Phi-3.5-mini-instruct", "Phi-3.5-MoE-instruct"])
def test_an_answer_that_outgrows_the_first_context_is_that_of_generate(
    name: str, tmp_path: Path
) -> None:
    sure = {"initializer_range": 0.1}  # of what comes next: a key that was turned wrongly shows
    config = MEMBERS[name] | {"vocab_size": 262, "eos_token_id": 257, "pad_token_id": 257} | sure
    folder = write(tmp_path / "base", config)
    for file in tiny.install().iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            (folder / file.name).write_bytes(file.read_bytes())
    answerer = Answerer(bases.resolve(str(folder), model=""))
    ask = Ask([{"role": "user", "content": "x" * 44}], max_tokens=20)
    answer = answerer.begin(ask)
    prompt = list(answer.row.ids)
    assert len(prompt) < SHORT < len(prompt) + 20 < FULL
    while not answer.over:
        answerer.step()
    ids = torch.tensor([prompt])
    out = answerer._plain.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False,
        eos_token_id=257, pad_token_id=257,
    )  # fmt: skip
    assert answer.row.ids == out[0].tolist()


def test_weights_in_the_wanted_type_stay_in_the_file_that_they_came_from(
    folders: Callable[[str], Path],
) -> None:
    folder = folders("Phi-3-medium-4k-instruct")
    model = bases.load(base_at(folder), dtype="bfloat16")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(folder) in line:
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            mapped.append(range(start, end))
    weights = [weight for weight in model.parameters() if weight.ndim > 1]
    assert all(any(weight.data_ptr() in part for part in mapped) for weight in weights)


def test_every_model_of_the_family_may_be_planned_here() -> None:
    from maas_client.spec.job import ModelInput

    for name in MEMBERS:
        path = f"azureml://registries/azureml/models/{name}/versions/1"
        limits = local_limits(ModelInput(path=path, type="mlflow_model"))
        assert not limits.refusals, name


def test_layers_that_do_not_exist_are_no_targets_of_lora(
    folders: Callable[[str], Path], plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from maas_client.spec.catalog import find_model

    entry = find_model("Phi-3-mini-4k-instruct")
    assert entry is not None
    wrong = replace(entry, lora_targets=("q_proj", "o_proj"))
    monkeypatch.setattr(adapters, "find_model", lambda _: wrong)
    model = bases.load(base_at(folders("Phi-3-mini-4k-instruct")))
    with pytest.raises(BaseModelError, match=r"no layer q_proj .* gate_up_proj"):
        adapters.attach(model, plan, name="x")


def shard_of(folder: Path, key: str) -> Path:
    return folder / read_json(folder / "model.safetensors.index.json")["weight_map"][key]


Break = Callable[[Path], None]


def change(key: str, make: Callable[[torch.Tensor], torch.Tensor | None]) -> Break:
    def act(folder: Path) -> None:
        file = shard_of(folder, key)
        tensors = load_file(file)
        made = make(tensors.pop(key))
        save_file(tensors if made is None else tensors | {key: made}, file)

    return act


def add(key: str) -> Break:
    def act(folder: Path) -> None:
        file = min(folder.glob("*.safetensors"))
        save_file(load_file(file) | {key: torch.zeros(2)}, file)

    return act


def cut(folder: Path) -> None:
    file = shard_of(folder, NORM)
    file.write_bytes(file.read_bytes()[:-7])


def spoil(folder: Path) -> None:
    file = shard_of(folder, NORM)
    file.write_bytes(struct.pack("<Q", 12) + b"not json at all")


NORM = "model.norm.weight"
QKV = "model.layers.1.self_attn.qkv_proj.weight"
EXPERT = "model.layers.1.block_sparse_moe.experts.7.w3.weight"
MINI, MOE = "Phi-3-mini-4k-instruct", "Phi-3.5-MoE-instruct"


@pytest.mark.parametrize(
    ("name", "act", "words"),
    [
        (MINI, lambda folder: shard_of(folder, NORM).unlink(), r"places .* in model-0.*not there"),
        (MINI, cut, r"model-0\S+ is cut off.*"),
        (MINI, spoil, r"model-0\S+ is no safetensors file"),
        (MINI, change(QKV, lambda _: None), rf"places {QKV} in model-0\S+, which lacks it"),
        (MINI, change(QKV, lambda x: x[:-1]), rf"{QKV} in model-0\S+ is 1151x384 and should be 1152x384"),
        (MINI, change(QKV, lambda x: x.to(torch.int8)), rf"{QKV} in model-0\S+ is I8"),
        (MINI, change(NORM, lambda x: x * float("nan")), rf"{NORM} holds numbers that are not finite"),
        (MINI, add("model.layers.9.mlp.down_proj.weight"), r"not of this .*layers\.9.* in model-0"),
        (MOE, change(EXPERT, lambda x: x[:, 1:].contiguous()), rf"{EXPERT} in model-0\S+ is 200x511"),
        (MOE, add("model.layers.1.block_sparse_moe.experts.16.w1.weight"), r"experts\.16\.w1"),
    ],
    ids=["absent", "cut", "garbage", "lacking", "shape", "kind", "nan", "extra", "expert", "17th"],
)  # fmt: skip
def test_a_checkpoint_that_is_not_whole_is_told_by_tensor_and_file(
    folders: Callable[[str], Path], tmp_path: Path, name: str, act: Break, words: str
) -> None:
    import shutil

    folder = Path(shutil.copytree(folders(name), tmp_path / "base"))
    act(folder)
    with pytest.raises(BaseModelError, match=words):
        bases.load(base_at(folder))


def test_a_head_that_is_tied_and_is_not_is_no_model(tmp_path: Path) -> None:
    folder = write(tmp_path, MEMBERS["Phi-4-mini-instruct"], shard="1GB")
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
    bases.load(base_at(folder))  # the same twice is what some checkpoints hold
    save_file(tensors | {"lm_head.weight": head + 1}, folder / "model.safetensors")
    with pytest.raises(BaseModelError, match="ties lm_head"):
        bases.load(base_at(folder))


def test_code_that_a_checkpoint_brings_is_not_run(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(folders("Phi-3-small-8k-instruct"), tmp_path / "base"))
    trap = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    for name in ("configuration_phi3_small.py", "modeling_phi3_small.py"):
        (folder / name).write_text(trap)
    bases.load(base_at(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear' is not known"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(
    folders: Callable[[str], Path], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    import shutil

    folder = Path(shutil.copytree(folders("Phi-3-small-8k-instruct"), tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match=words):
        bases.load(base_at(folder))
