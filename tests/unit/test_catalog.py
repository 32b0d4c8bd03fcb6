"""The catalogue: what it says of each model, a user's own entries, and what is said of wrong ones."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from local_runner.mock_server import twin as world
from local_runner.mock_server.cli.main import main as mock
from local_runner.templates import compile_template
from maas_client.cli.main import run_cli
from maas_client.errors import SettingsError
from maas_client.spec import catalog_file
from maas_client.spec.catalog import (
    catalog,
    find_model,
    find_outsider,
    template_text,
    token_facts,
    whole,
)
from maas_client.spec.job import ModelInput
from maas_client.spec.limits import hosted_limits, local_limits

TODAY = dt.date(2026, 1, 1)
MINE = """\
[model.my-phi]
like = "Phi-4-mini-instruct"
hub_id = "me/my-phi"
context = 4096
template = "mine"
"""


NUMBERED = """\
[tokenizer.t]
pieces = "some"
tokens = {{ "<e>" = 1 }}
bos = "<e>"
eos = "<e>"
pad = "<e>"
numbered = [{{ name = "{}", first = 1, id = 2, count = {} }}]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a place for the user's own file, and a template."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(catalog_file.VARIABLE, raising=False)
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    return tmp_path / catalog_file.USER_FILE


def model(name: str, version: str = "") -> ModelInput:
    end = f"/versions/{version}" if version else "/labels/latest"
    return ModelInput(path=f"azureml://registries/azureml/models/{name}{end}", type="mlflow_model")


def test_every_phi_of_the_registry_is_there_whole() -> None:
    assert list(catalog()) == [
        *(f"Phi-3-mini-{size}-instruct" for size in ("4k", "128k")),
        *(f"Phi-3-small-{size}-instruct" for size in ("8k", "128k")),
        *(f"Phi-3-medium-{size}-instruct" for size in ("4k", "128k")),
        "Phi-3.5-mini-instruct",
        "Phi-3.5-MoE-instruct",
        "Phi-4-mini-instruct",
        "Phi-4",
    ]
    for entry in catalog().values():
        facts, ids = token_facts(entry), token_facts(entry).all_tokens()
        assert len(set(ids.values())) == len(ids), "two tokens share an id"
        assert max(ids.values()) < entry.shape.vocabulary
        assert entry.end_token in entry.stop_tokens
        assert facts.eos in entry.stop_tokens
        assert (
            entry.shape.hidden % entry.shape.heads == entry.shape.heads % entry.shape.kv_heads == 0
        )
        assert entry.retired is None or find_model(entry.replacement or "") is not None


PHI3 = [entry.name for entry in catalog().values() if entry.architecture == "phi3"]


@pytest.mark.parametrize("name", PHI3)
def test_a_phi3_has_as_many_parameters_as_its_shape_makes(name: str) -> None:
    found = catalog()[name]
    shape = found.shape
    size = shape.hidden // shape.heads
    attention = shape.hidden * (2 * shape.heads + 2 * shape.kv_heads) * size
    layer = attention + 3 * shape.hidden * shape.ffn + 2 * shape.hidden
    embedding = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    assert found.parameters == shape.layers * layer + embedding + shape.hidden


def test_the_small_models_tokens_fill_the_vocabulary() -> None:
    for name in ("Phi-3-small-8k-instruct", "Phi-4"):
        entry = find_model(name)
        assert entry is not None
        ids = token_facts(entry).all_tokens()
        assert sorted(ids.values()) == list(range(100256, 100352))
    assert ids["<|dummy_85|>"] == 100349


CHAT = [
    {"role": "system", "content": "Short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
]
TURNS = "<|system|>\nShort.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nYes?<|end|>\n"
ENDS = {"bos_token": "BOS", "eos_token": "EOS"}
IM = "<|im_start|>{}<|im_sep|>{}<|im_end|>"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("phi-3-mini", f"{TURNS}EOS"),
        ("phi-3.5", f"{TURNS}EOS"),
        ("phi-3-small", f"BOS{TURNS}EOS"),
        ("phi-3-medium", "<|user|>\nHi<|end|>\n<|assistant|>\nYes?<|end|>\n"),
        ("phi-4-mini", "<|system|>Short.<|end|><|user|>Hi<|end|><|assistant|>Yes?<|end|>EOS"),
        ("phi-4", "".join(IM.format(turn["role"], turn["content"]) for turn in CHAT)),
    ],
)
def test_each_template_renders_as_the_familys_does(name: str, text: str) -> None:
    template = compile_template(catalog_file.template(name))
    told = template.render(messages=CHAT, **ENDS)
    assert told == text
    asked = template.render(messages=CHAT[:2], add_generation_prompt=True, **ENDS)
    assert text.startswith(asked)
    assert text.removeprefix(asked).startswith("Yes?")


def test_an_empty_system_turn_is_left_out_by_phi_3_5_only() -> None:
    chat = [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]
    texts = {
        name: compile_template(catalog_file.template(name)).render(messages=chat)
        for name in ("phi-3-mini", "phi-3.5")
    }
    assert "<|system|>" in texts["phi-3-mini"]
    assert "<|system|>" not in texts["phi-3.5"]


def test_tools_of_a_system_turn_stand_in_phi_4_minis() -> None:
    chat = [{"role": "system", "content": "Help.", "tools": "[{}]"}]
    text = compile_template(catalog_file.template("phi-4-mini")).render(messages=chat)
    assert text == "<|system|>Help.<|tool|>[{}]<|/tool|><|end|>"


def test_a_users_model_is_like_another_and_beside_ours(own: Path) -> None:
    own.write_text(MINE)
    entry, like = find_model("MY-PHI"), find_model("Phi-4-mini-instruct")
    assert entry is not None
    assert like is not None
    assert (entry.hub_id, entry.context, entry.shape) == ("me/my-phi", 4096, like.shape)
    assert (entry.origin, entry.price) == (str(own), None)
    assert template_text(entry) == "{{ messages[0].content }}"
    assert local_limits(model("my-phi")).model == entry
    own.unlink()
    assert find_model("my-phi") is None


def test_the_twins_registry_has_them_and_a_wrong_file_stops_it_at_once(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(catalog_file.VARIABLE, "")
    own.write_text(MINE)
    assert "my-phi" in [entry.name for entry in world.known_models()]
    own.write_text(MINE + "contxt = 1\n")
    assert mock(["--home", str(own.parent / "mock"), "serve", "--engine", "simulate"]) == 1
    assert "model.my-phi.contxt is unknown" in capsys.readouterr().err


def test_the_file_is_found_above_and_by_the_environment(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write_text(MINE)
    below = own.parent / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert find_model("my-phi") is not None
    monkeypatch.setenv(catalog_file.VARIABLE, str(own.parent / "nosuch.toml"))
    with pytest.raises(SettingsError, match=r"nosuch\.toml: No such file"):
        catalog()


def test_a_built_in_model_is_replaced_with_a_reason_only(own: Path) -> None:
    own.write_text('[model.phi-4]\nversions = ["9"]\n')
    with pytest.raises(SettingsError, match=r"model\.phi-4\.note is missing"):
        catalog()
    own.write_text('[model.phi-4]\nversions = ["9"]\nnote = "seen in the portal"\n')
    entry = find_model("Phi-4")
    assert entry is not None
    assert (entry.name, entry.versions, entry.note) == ("Phi-4", ("9",), "seen in the portal")
    assert entry.price is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[modell.x]\n", "modell is unknown; a file has [model.NAME]"),
        ("model = 3\n", "model must be tables, [model.NAME]"),
        (
            '[model.x]\nlike = "Phi-5"\n',
            "model.x.like there is no model Phi-5 (did you mean Phi-4?)",
        ),
        ('[model.x]\nversions = ["1"]\n', "model.x.hub_id is missing"),
        (
            '[model.x]\nlike = "Phi-4"\ncontxt = 1\n',
            "model.x.contxt is unknown (did you mean context?)",
        ),
        (
            '[model.x]\nlike = "Phi-4"\ncontext = "1"\n',
            'model.x.context is "1": input should be a valid',
        ),
        ('[model.x]\nlike = "Phi-4"\nshape = { hidden = 1 }\n', "model.x.shape.layers is missing"),
        ('[model.x]\nlike = "Phi-4"\narchitecture = "llama"\n', 'model.x.architecture is "llama"'),
        ('[model.x]\nlike = "Phi-4"\ntokenizer = "phi4"\n', "(did you mean phi-4?)"),
        (
            '[model.x]\nlike = "Phi-4"\ntemplate = "no"\n',
            "model.x.template there is no template no",
        ),
        ('[model.x]\nlike = "Phi-4"\nend_token = "<|end|>"\n', "<|end|> is not a token of phi-4"),
        ('[model.x]\nlike = "Phi-4"\nversions = []\n', "model.x.versions names no version"),
        ('[model.x]\nlike = "Phi-4"\ndefaults = { rank = "8" }\n', "model.x.defaults.rank is no"),
        ('[model.x]\nlike = "Phi-4"\nbounds = { seed = [2, 1] }\n', "2 to 1 holds no value"),
        ('[model.x]\nlike = ["Phi-4"]\n', "model.x.like there is no model ['Phi-4']"),
        (
            '[model.x]\nlike = "Phi-4"\ncontext = -4\n',
            "model.x.context is -4: it must be 1 or more",
        ),
        ('[model.x]\nlike = "Phi-4"\nmax_output = 0\n', "model.x.max_output is 0"),
        ('[model.x]\nlike = "Phi-4"\nminimum_sku = "big"\n', 'model.x.minimum_sku is "big"'),
        (NUMBERED.format("{x}", 1), "tokenizer.t.numbered {x} must have {} once"),
        (NUMBERED.format("<{}>", 10**9), "has the count 1000000000"),
        ("[model.x", "Expected ']'"),
    ],
)
def test_a_wrong_entry_is_named_by_file_model_and_key(own: Path, text: str, said: str) -> None:
    own.write_text(text)
    with pytest.raises(SettingsError) as caught:
        catalog()
    assert str(own) in str(caught.value)
    assert said in str(caught.value)


def test_a_model_is_shown_by_the_asset_that_a_job_file_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_cli(["models", model("Phi-4", "7").path]) == 0
    assert "microsoft/phi-4" in capsys.readouterr().out
    assert run_cli(["models", "azureml:nothing"]) == 1
    assert "there is no model" in capsys.readouterr().err


def test_every_fault_is_said_at_once(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own.write_text('[model.x]\nlike = "Phi-4"\na = 1\nb = 2\n[other.y]\nwhy = "so"\n')
    assert run_cli(["models"]) == 2
    said = capsys.readouterr().err
    assert all(f"model.x.{key} is unknown" in said for key in "ab")
    assert "other.y.hub_id is missing" in said


def test_a_model_that_is_not_done_here_says_why_and_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    vision = find_outsider("phi-3.5-VISION-instruct")
    assert vision is not None
    for limits in (
        local_limits(model(vision.name)),
        hosted_limits(
            model(vision.name), target="azure", managed_compute=False, region=None, today=TODAY
        ),
    ):
        assert vision.why in limits.refusals[0]
        assert vision.instead in limits.refusals[0]
    assert run_cli(["models", vision.name]) == 1
    assert "it takes images" in capsys.readouterr().err


def test_models_shows_all_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["models", "phi-3-medium-4k-instruct"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "retired since 2025-08-30",
        "use instead Phi-4",
        "turn ends <|end|> 32007",
        "price, read 0.17 USD for a million tokens",
        "price, trained unknown",
        "prices from litellm 1.109.1, its price map, read 2026-11-24",
        "tuned in eastus2",
        "white space behind </s> <|assistant|>",
    ):
        assert words in said
    assert run_cli(["models", "Phi-4-mini-instruct"]) == 0
    assert "not confirmed versions, managed" in " ".join(capsys.readouterr().out.split())
    assert run_cli(["models", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in shown] == list(whole().models)
    assert shown[0]["retired"] == "2025-08-30"


def test_a_retired_model_is_warned_about_wherever_it_is_planned() -> None:
    phi = model("Phi-3-mini-4k-instruct", "15")
    hosted = hosted_limits(phi, target="azure", managed_compute=False, region=None, today=TODAY)
    local = local_limits(phi, today=TODAY)
    for limits in (hosted, local):
        assert "retired on 2025-08-30; use Phi-4-mini-instruct instead." in limits.warnings[0]
        assert not limits.refusals
    assert not local_limits(phi, today=dt.date(2025, 8, 29)).warnings


def test_a_version_that_the_catalogue_is_not_sure_of_is_the_services_to_judge() -> None:
    def limits(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        found = hosted_limits(
            model(name, "77"), target="azure", managed_compute=False, region=None, today=TODAY
        )
        return found.refusals, found.warnings

    refusals, warnings = limits("Phi-4-mini-instruct")
    assert not refusals
    assert "version 77 is not in the catalogue" in warnings[0]
    refusals, _ = limits("Phi-3.5-mini-instruct")
    assert "has no version 77" in refusals[0]
