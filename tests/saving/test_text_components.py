"""Text encoders and tokenizers in saved pipelines: a closed list of classes, safetensors, and no code."""

import inspect
import json
import pickle
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import hfgen
from hfgen import HFGenPipeline
from hfgen.saving import hub as pushing
from hfgen.saving import load as loading
from hfgen.saving import text_components
from hfgen.saving.transformers_classes import TEXT_ENCODERS, TOKENIZERS
from tests.helpers.fuzz import damaged, mutated
from tests.helpers.hub_server import Hub, environment, use
from tests.helpers.text import text_encoder, text_encoders, tokenizer, tokenizers
from tests.pipelines import sequence_registry
from tests.pipelines.sequence_network import SequenceModel
from tests.pipelines.sequences import TextSequencePipeline

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "text_encoder/model.safetensors"


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.linspace(-2, 2, 30).reshape(2, 5, 3)
    return pipeline(["a cat", "dog"], latents=noise, num_inference_steps=3, guidance_scale=2.0).samples


CALL = inspect.getsource(draw)


@pytest.fixture(autouse=True, scope="module")
def family():
    """The family of sequences is in hfgen's registry."""
    sequence_registry.register()
    yield
    sequence_registry.unregister()


def tiny(encoder=None, tokens=None):
    torch.manual_seed(0)
    parts = text_encoder() if encoder is None else encoder, tokenizer() if tokens is None else tokens
    return TextSequencePipeline(SequenceModel().eval(), hfgen.RectifiedFlowScheduler(), *parts)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, family):
    """(the folder of a pipeline, what it draws)."""
    folder = tmp_path_factory.mktemp("text") / "saved"
    pipeline = tiny()
    pipeline.save_pretrained(folder)
    return folder, draw(pipeline)


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved[0], tmp_path / "folder"))


# --- round trips ------------------------------------------------------------------------------------------------------

OURS = f"""
import sys, torch
from hfgen import HFGenPipeline
from tests.pipelines.sequence_registry import register
from tests.pipelines.sequences import TextSequencePipeline
{CALL}
register()
for source in sys.argv[2:]:
    pipeline = HFGenPipeline.from_pretrained(source)
    assert type(pipeline) is TextSequencePipeline, source
    assert torch.equal(draw(pipeline), torch.load(sys.argv[1])), source
"""
THEIRS = f"""
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hfgen", "tests"):
            raise ModuleNotFoundError(f"no {{name}} on this machine")

sys.meta_path.insert(0, Blocker())
import torch
from diffusers import DiffusionPipeline
{CALL}
for source in sys.argv[2:]:
    pipeline = DiffusionPipeline.from_pretrained(source, trust_remote_code=True)
    assert torch.equal(draw(pipeline), torch.load(sys.argv[1])), source
"""


def test_a_fresh_process_draws_the_same_bits_with_and_without_hfgen(saved, tmp_path, monkeypatch):
    place, expected = saved
    torch.save(expected, tmp_path / "expected.pt")
    with Hub() as server:
        use(server, monkeypatch, tmp_path)
        pushing.push(place, "someone/text")
        for code, path in ((OURS, str(ROOT)), (THEIRS, "")):
            command = [sys.executable, "-c", code, str(tmp_path / "expected.pt"), str(place), "someone/text"]
            env = environment(server, tmp_path / str(len(path)), path)
            done = subprocess.run(
                command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, done.stderr[-3000:]


def test_a_repository_is_fetched_without_code_and_loads_offline(saved, tmp_path, monkeypatch):
    place, expected = saved
    with Hub() as server:
        use(server, monkeypatch, tmp_path)
        pushing.push(place, "someone/text")
        files = server.repos["someone/text"].files
        assert {name for name in files if name.startswith("tok")} == {
            "tokenizer/tokenizer.json",
            "tokenizer/tokenizer_config.json",
        }
        files["text_encoder/pytorch_model.bin"] = files["text_encoder/modeling.py"] = b"never read"
        assert torch.equal(draw(HFGenPipeline.from_pretrained("someone/text")), expected)
        assert not [name for name in server.fetched() if name.endswith((".py", ".bin"))]
        assert any(name == WEIGHTS for name in server.fetched())
        calls = len(server.calls)
        assert torch.equal(draw(HFGenPipeline.from_pretrained("someone/text", local_files_only=True)), expected)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert torch.equal(draw(HFGenPipeline.from_pretrained("someone/text")), expected)
        assert len(server.calls) == calls
        assert {path.name for path in Path(HFGenPipeline.download("someone/text")).iterdir()} == {
            *("denoiser", "model_index.json", "scheduler", "text_encoder", "tokenizer")
        }


@pytest.mark.parametrize("name", text_encoders())
def test_every_text_encoder_comes_back(name, tmp_path):
    encoder = text_encoders()[name]
    assert name in TEXT_ENCODERS
    tiny(encoder).save_pretrained(tmp_path)
    loaded = HFGenPipeline.from_pretrained(tmp_path).text_encoder
    assert type(loaded) is type(encoder) and not loaded.training
    state = loaded.state_dict()
    assert state.keys() == encoder.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in encoder.state_dict().items())
    tokens = torch.tensor([[0, 4, 5, 1]])
    assert torch.equal(loaded(tokens)[0], encoder(tokens)[0])


@pytest.mark.parametrize("name", tokenizers())
def test_every_tokenizer_comes_back(name, tmp_path):
    tokens = tokenizers()[name]
    assert type(tokens).__name__ == name and name in TOKENIZERS
    tiny(tokens=tokens).save_pretrained(tmp_path)
    loaded = HFGenPipeline.from_pretrained(tmp_path).tokenizer
    options = {"padding": "max_length", "max_length": 6, "truncation": True}
    assert type(loaded) is type(tokens)
    assert loaded(["a cat", "dog cat a"], **options).data == tokens(["a cat", "dog cat a"], **options).data


def test_the_list_of_classes_is_of_transformers_and_all_of_it_is_tried():
    classes = {name: text_components.transformers_class(name) for name in (*TEXT_ENCODERS, *TOKENIZERS)}
    assert set(TEXT_ENCODERS) == set(text_encoders())
    assert {cls.__name__ for name, cls in classes.items() if name in TOKENIZERS} == set(tokenizers())
    for name, cls in classes.items():
        assert cls.__module__.startswith("transformers.") and text_components.is_tokenizer(cls) == (name in TOKENIZERS)


def test_loading_options_work_for_text_components(saved, tmp_path):
    place, expected = saved
    half = HFGenPipeline.from_pretrained(place, torch_dtype=torch.bfloat16)
    assert half.text_encoder.dtype == half.denoiser.dtype == torch.bfloat16
    assert draw(half).dtype == torch.float32 and (draw(half) - expected).abs().max() < 0.2
    tiny().save_pretrained(tmp_path / "variant", variant="fp16")
    assert (tmp_path / "variant" / "text_encoder" / "model.fp16.safetensors").is_file()
    assert torch.equal(draw(HFGenPipeline.from_pretrained(tmp_path / "variant", variant="fp16")), expected)
    tiny().save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    assert list((tmp_path / "shards" / "text_encoder").glob("model-00001-of-*.safetensors"))
    assert torch.equal(draw(HFGenPipeline.from_pretrained(tmp_path / "shards")), expected)
    other = text_encoder()
    assert HFGenPipeline.from_pretrained(place, text_encoder=other).text_encoder is other


def test_saving_again_names_no_machine_and_changes_nothing(saved, tmp_path):
    place, _ = saved
    HFGenPipeline.from_pretrained(place).save_pretrained(tmp_path / "again")
    names = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    assert names == sorted(
        str(path.relative_to(tmp_path / "again")) for path in (tmp_path / "again").rglob("*") if path.is_file()
    )
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (place / name).read_bytes(), name
        assert b"/tmp" not in (place / name).read_bytes() or name.endswith(".safetensors")


def test_weights_under_names_of_another_release_load(folder, monkeypatch):
    """transformers itself maps the names: "text_model." is how release 4 called all of this encoder."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    save_file({f"text_model.{name}": value for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    loaded = HFGenPipeline.from_pretrained(folder).text_encoder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    save_file({f"strange.{name}.x": value for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"config\.json and weights do not belong together\. Only one of them has"):
        HFGenPipeline.from_pretrained(folder)


# --- what is refused --------------------------------------------------------------------------------------------------


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


CONFIG, TOKENS, VOCABULARY = "text_encoder/config.json", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"
REFUSED = [
    (CONFIG, {"auto_map": {"AutoModel": "modeling.Evil"}}, "has auto_map: it would run code"),
    (CONFIG, {"attn_implementation": "someone/kernel"}, "attn_implementation='someone/kernel', an option that hfgen"),
    (
        CONFIG,
        {"_attn_implementation_internal": "a/b"},
        "_attn_implementation_internal='a/b', an option that",
    ),
    (CONFIG, {"transformers_weights": "../evil.bin"}, "transformers_weights='../evil.bin', an option that"),
    (
        CONFIG,
        {"configuration_files": ["config.5.0.json"]},
        "configuration_files=.*, an option that hfgen does not",
    ),
    (CONFIG, {"fusion_config": {"a": 1}}, "fusion_config=.*, an option that hfgen does not"),
    (CONFIG, {"quantization_config": {"quant_method": "bitsandbytes"}}, "holds quantised weights"),
    (CONFIG, {"num_hidden_layers": 10_000_000}, "more than 20 parameters, and the weights have no more"),
    (CONFIG, {"num_hidden_layers": 2}, r"do not belong together\. encoder\.layers\.1\..* and has none at all"),
    (CONFIG, {"hidden_size": 2**40}, "hidden_size=1099511627776, which is out of all bounds"),
    (CONFIG, {"num_labels": 10**6}, "num_labels=1000000, which is out of all bounds"),
    (CONFIG, {"hidden_size": 16}, "do not belong together"),
    (CONFIG, {"hidden_size": "wide"}, r"config\.json describes no CLIPTextModel"),
    (CONFIG, {"hidden_act": "os.system"}, r"config\.json describes no CLIPTextModel"),
    (CONFIG, {"text_config": {"hidden_size": 16}}, "text_config=.*, an option that hfgen does not"),
    (
        TOKENS,
        {"auto_map": {"AutoTokenizer": ["tok.Evil", None]}},
        "has auto_map: it would run code",
    ),
    (TOKENS, {"trust_remote_code": True}, "has trust_remote_code: it would run code"),
    (TOKENS, {"tokenizer_file": "/etc/passwd"}, "tokenizer_file='/etc/passwd', an option that hfgen does not"),
    (TOKENS, {"vocab_file": "../x"}, "vocab_file='../x', an option that hfgen does not"),
    (TOKENS, {"init_inputs": ["/etc/passwd"]}, "init_inputs=.*, an option that hfgen does not"),
    (TOKENS, {"gguf_file": "evil.gguf"}, "gguf_file='evil.gguf', an option that hfgen does not"),
    (TOKENS, {"model_max_length": 10**9}, "model_max_length=1000000000; it must be from 1 to 1048576"),
    (TOKENS, {"model_max_length": "many"}, "model_max_length=many; it must be from 1 to 1048576"),
    (TOKENS, {"extra_ids": 10**6}, "extra_ids=1000000, which is out of all bounds"),
    (VOCABULARY, {"model": {"type": "Code"}}, "can't be loaded: "),
    (
        "model_index.json",
        {"text_encoder": ["transformers", "AutoModel"]},
        "as text_encoder, which is no network",
    ),
    (
        "model_index.json",
        {"text_encoder": ["transformers", "Trainer"]},
        "no text encoder or tokenizer",
    ),
    ("model_index.json", {"text_encoder": ["transformers.models.clip", "CLIPTextModel"]}, "as text_encoder, which is"),
    ("model_index.json", {"text_encoder": ["diffusers", "CLIPTextModel"]}, "as text_encoder, which is no network"),
    ("model_index.json", {"text_encoder": ["hfgen", "CLIPTextModel"]}, "as text_encoder, which is no network"),
    ("model_index.json", {"text_encoder": ["modeling", "Evil"]}, "as text_encoder, which is no network"),
    ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "an option that hfgen|do not belong"),
]


@pytest.mark.parametrize(("file", "values", "why"), REFUSED)
def test_claims_that_can_not_be_true_are_refused(folder, file, values, why):
    change(folder / file, **values)
    with pytest.raises(ValueError, match=why):
        HFGenPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"torch_dtype": "float32", "dropout": 0.0, "_name_or_path": "openai/clip", "tokenizer_class": None},
        {"decoder_start_token_id": 0, "output_past": True, "task_specific_params": {"summarization": {"prefix": "a"}}},
    ],
)
def test_options_of_earlier_releases_are_harmless(folder, saved, values):
    change(folder / CONFIG, **values)
    change(folder / TOKENS, name_or_path="openai/clip", special_tokens_map_file="./special_tokens_map.json")
    assert torch.equal(draw(HFGenPipeline.from_pretrained(folder)), saved[1])


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def plant(folder, mark):
    """Put into the folder whatever might run: modules, pickles, an adapter and a configuration that point elsewhere."""
    for part in ("text_encoder", "tokenizer"):
        for name in ("modeling.py", "transformers.py", "hfgen.py", "custom_generate/generate.py", "tokenization.py"):
            (folder / part / name).parent.mkdir(exist_ok=True)
            (folder / part / name).write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
        for name in ("pytorch_model.bin", "model.bin", "model.pkl", "adapter_model.bin"):
            (folder / part / name).write_bytes(pickle.dumps({"weight": Bomb(mark)}))
        (folder / part / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/evil"}')
        (folder / part / "chat_template.jinja").write_text("{{ 1/0 }}")
        (folder / part / "added_tokens.json").write_text("{broken")
        (folder / part / "special_tokens_map.json").write_text("{broken")


def test_nothing_that_is_planted_runs_or_is_read(folder, saved, tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    plant(folder, mark)
    monkeypatch.chdir(folder)
    assert torch.equal(draw(HFGenPipeline.from_pretrained(folder)), saved[1])
    (folder / WEIGHTS).unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors; no other weights are read"):
        HFGenPipeline.from_pretrained(folder)
    shutil.copy(saved[0] / WEIGHTS, folder / WEIGHTS)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(OSError, match=r"no file named tokenizer\.json; no other vocabulary is read"):
        HFGenPipeline.from_pretrained(folder)
    assert not mark.exists()


def test_transformers_reads_links_to_a_few_files_alone(folder, saved, tmp_path):
    plant(folder, tmp_path / "mark")
    classes = loading.component_classes(
        TextSequencePipeline,
        json.loads((folder / "model_index.json").read_text())
        | {"denoiser": ["hfgen", "SequenceModel"], "scheduler": ["hfgen", "RectifiedFlowScheduler"]},
        "x",
        {},
    )
    with loading.without_code(folder, classes) as links:
        names = {str(path.relative_to(links)) for path in links.rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("t")} == {
        *("text_encoder/config.json", WEIGHTS, TOKENS, VOCABULARY)
    }


def test_shards_of_a_text_encoder_are_safetensors_beside_their_list(folder):
    index = {"metadata": {}, "weight_map": {"embeddings.token_embedding.weight": "../evil.safetensors"}}
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="only safetensors beside it are read"):
        HFGenPipeline.from_pretrained(folder)


@pytest.mark.parametrize(("cases", "seed"), [(200, 0), pytest.param(4000, 1, marks=pytest.mark.slow)])
def test_damaged_text_components_are_refused_as_documented(saved, tmp_path, cases, seed):
    shutil.copytree(saved[0], tmp_path / "damaged")
    wrong, loaded = [], 0
    for case in range(cases):
        chance = random.Random(f"{seed}/{case}")
        name = chance.choice((CONFIG, TOKENS, VOCABULARY, WEIGHTS))
        content = damage(name, (saved[0] / name).read_bytes(), chance)
        (tmp_path / "damaged" / name).write_bytes(content)
        start = time.process_time()
        try:
            HFGenPipeline.from_pretrained(tmp_path / "damaged")
            loaded += 1
        except (ValueError, OSError) as error:
            if not str(error).strip():
                wrong.append((case, name, "no message"))
        except BaseException as error:
            wrong.append((case, name, f"{type(error).__name__}: {error}", content[:300]))
        if time.process_time() - start > 5:
            wrong.append((case, name, "took too long", content[:300]))
        shutil.copy(saved[0] / name, tmp_path / "damaged" / name)
    assert not wrong, wrong[:5]
    assert 0 < loaded < cases * 0.8


def damage(name, content, chance):
    """A file's content after an accident or an attack."""
    if name == WEIGHTS:
        return damaged("denoiser/diffusion_pytorch_model.safetensors", content, chance)
    if chance.random() < 0.2:
        return damaged(name, content, chance)
    values = json.loads(content)
    if name == VOCABULARY and chance.random() < 0.7:
        part = chance.choice([key for key, value in values.items() if isinstance(value, dict) and value])
        values[part] = mutated(values[part], chance)
        return json.dumps(values).encode()
    return json.dumps(mutated(values, chance)).encode()


def test_weights_have_the_dtype_that_the_configuration_says(folder):
    from safetensors.torch import load_file, save_file

    weights = {name: value.to(torch.float16) for name, value in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"text_encoder: config\.json says float32, and there are weights in float16"):
        HFGenPipeline.from_pretrained(folder)


def test_tokens_that_the_encoder_does_not_have_are_refused(folder):
    pipeline = HFGenPipeline.from_pretrained(folder)
    pipeline.tokenizer.model_max_length = 99
    with pytest.raises(ValueError, match="max_position_embeddings=99, and the text encoder has 6"):
        draw(pipeline)
