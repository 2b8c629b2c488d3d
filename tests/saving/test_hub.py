"""Pushing and fetching over real HTTP, with the Hub's own client, against a stand-in for the Hub."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hfgen
from hfgen import HFGenPipeline
from hfgen.cli import main
from hfgen.saving import card as cards
from hfgen.saving import hub as pushing
from hfgen.saving.secrets import SECRETS
from tests.helpers.fuzz import time_limit
from tests.helpers.hub_server import Hub, environment, faults, use

ROOT = Path(__file__).resolve().parents[2]

KEPT = {
    "README.md",
    "config.yaml",
    "denoiser/config.json",
    "denoiser/diffusion_pytorch_model.safetensors",
    "denoising.gif",
    "loss.png",
    "metrics.json",
    "metrics.jsonl",
    "model_index.json",
    "samples.png",
    "samples/step-0000001.png",
    "scheduler/scheduler_config.json",
}
CODE = {"hfgen_DenoisingPipeline", "denoiser/hfgen_DiTModel", "scheduler/hfgen_RectifiedFlowScheduler"}
PRIVATE = {
    ".env",
    ".cache/huggingface/token",
    ".git/config",
    ".hidden.png",
    ".saving-checkpoint-2/optimizer.bin",
    "checkpoint-1/ema_denoiser.safetensors",
    "checkpoint-1/model.safetensors",
    "checkpoint-1/optimizer.bin",
    "checkpoint-1/config.json",
    "checkpoint-1/state.json",
    "denoiser/.hidden",
    "denoiser/.hidden.json",
    "denoiser/code.py",
    "denoiser/hfgen_DiTModel_00000000.py",
    "denoiser/pytorch_model.bin",
    "hfgen_Mine_00000000.py",
    "logs/hfgen/events.out.tfevents.1",
    "logs/hfgen/1/hparams.yml",
    "notes/token.json",
    "optimizer.bin",
    "optimizer.pt",
    "random_states_0.pkl",
    "samples/.hidden",
    "secret.txt",
    "token",
    "wandb/run.json",
    "weights.ckpt",
}


def tiny(seed=0):
    """A pipeline of a few kB, all of whose outputs matter."""
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
    network = hfgen.DiTModel(sample_size=8, in_channels=1, out_channels=1, num_class_embeds=3, **size)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return hfgen.DenoisingPipeline(network, hfgen.RectifiedFlowScheduler(), 2, ["cat", "dog"])


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(n) for n in range(2)]
    return pipeline(class_labels=["dog", "cat"], num_inference_steps=3, generator=seeds, output_type="latent").images


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the Hub, which this process's client takes for the Hub, logged in as one who may write."""
    with Hub() as server:
        use(server, monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a run's folder with all that a run and its user may leave in it, what it draws)."""
    folder = tmp_path_factory.mktemp("made") / "digits"
    pipeline = tiny()
    pipeline.save_pretrained(folder)
    card = {
        "title": "T",
        "summary": "S",
        "call": "",
        "facts": {"a": 1},
        "command": "hfgen train",
        "tags": ["diffusion"],
    }
    (folder / "config.yaml").write_text(f"output_dir: {folder}\ndataset: {folder.parent}\ncache_dir: null\nseed: 3\n")
    cards.write_card(folder, **card, data="digits")
    for name in (KEPT | PRIVATE) - {str(p.relative_to(folder)) for p in folder.rglob("*")}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"hf_secret in {name}" if name in PRIVATE else f"contents of {name}")
    return folder, draw(pipeline)


FETCH = """
import sys, torch
from hfgen import HFGenPipeline

pipeline = HFGenPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
seeds = [torch.Generator().manual_seed(n) for n in range(2)]
call = {"class_labels": ["dog", "cat"], "num_inference_steps": 3, "output_type": "latent"}
assert torch.equal(pipeline(**call, generator=seeds).images, torch.load(sys.argv[2]))
"""


def code_of(files):
    """The generated source files among these names, without their hashes."""
    return {re.sub(r"_[0-9a-f]{8}\.py$", "", name) for name in files if name.endswith(".py")}


# --- pushing ----------------------------------------------------------------------------------------------------------


def test_what_is_pushed_draws_the_same_bits_and_holds_nothing_private(hub, made, tmp_path):
    folder, expected = made
    assert pushing.push(folder, private=True) == f"{hub.url}/someone/digits"  # the folder's name, for the token's owner
    repo = hub.repos["someone/digits"]
    assert repo.private
    assert {name for name in repo.files if not name.endswith(".py")} == KEPT and code_of(repo.files) == CODE
    for name, content in repo.files.items():
        if name not in ("README.md", "config.yaml"):
            assert content == (folder / name).read_bytes()
        assert b"hf_secret" not in content and str(folder.parent).encode() not in content
    assert not any(b"hf_secret" in content for content in hub.objects.values())
    assert (
        repo.files["config.yaml"]
        == f"output_dir: digits\ndataset: {folder.parent.name}\ncache_dir: null\nseed: 3\n".encode()
    )
    card = repo.files["README.md"].decode()
    assert card.count('from_pretrained("someone/digits"') == 2 and '"digits"' not in card

    commits, uploads = list(repo.commits), sum(path.startswith("/upload/") for _, path in hub.calls)
    assert pushing.push(folder, "someone/digits", True, "writer") == f"{hub.url}/someone/digits"
    assert repo.commits == commits  # nothing new: no commit, no upload
    assert sum(path.startswith("/upload/") for _, path in hub.calls) == uploads

    torch.save(expected, tmp_path / "expected.pt")
    command = [sys.executable, "-c", FETCH, "someone/digits", str(tmp_path / "expected.pt")]
    done = subprocess.run(
        command, env=environment(hub, tmp_path, str(ROOT)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("token", "why"), [(None, "token"), ("wrong", "token"), ("reader", "no right to write")], ids=str
)
def test_a_push_that_is_not_allowed_says_why_in_one_line(hub, made, tmp_path, monkeypatch, token, why):
    use(hub, monkeypatch, tmp_path, token)
    with pytest.raises(ValueError, match=rf"^The Hub refused the push to someone/other: .*{why}") as refusal:
        pushing.push(made[0], "someone/other")
    assert "hf auth login" in str(refusal.value) and "\n" not in str(refusal.value)
    assert "someone/other" not in hub.repos


def test_impossible_names_and_folders_are_refused_before_anything_is_made(hub, made, tmp_path):
    with pytest.raises(ValueError, match=r"holds no pipeline \(no model_index\.json\); train one first"):
        pushing.push(tmp_path, "someone/empty")
    shutil.copytree(made[0], tmp_path / "leaky")
    (tmp_path / "leaky" / "metrics.json").write_text('{"note": "hf_' + "a" * 34 + '"}')
    with pytest.raises(ValueError, match=r"metrics\.json, line 1, seems to hold an access token"):
        pushing.push(tmp_path / "leaky", "someone/leaky")
    assert not hub.repos
    with pytest.raises(ValueError, match=r"can't be a repository's name|refused"):
        pushing.push(made[0], "not a name!")
    with pytest.raises(ValueError, match="'some one/mine' can't be a repository's name"):
        pushing.files_to_push(made[0], "some one/mine")


def test_a_public_repository_is_what_one_gets_without_asking(hub, made):
    pushing.push(made[0], "group/public")
    assert not hub.repos["group/public"].private


def test_what_would_be_pushed_can_be_asked_beforehand(hub, made, capsys):
    files = pushing.files_to_push(made[0], "someone/digits")
    assert {name for name in files if not name.endswith(".py")} == KEPT and code_of(files) == CODE
    main(["push", str(made[0]), "someone/digits", "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in lines[:-1]}
    assert not hub.calls
    main(["push", str(made[0]), "someone/digits", "--hub_private_repo", "--hub_token", "writer"])
    assert capsys.readouterr().out == f"Pushed to {hub.url}/someone/digits\n"
    pushed = hub.repos["someone/digits"]
    assert {name: len(content) for name, content in pushed.files.items()} == listed and pushed.private
    assert lines[-1].split()[0] == f"{sum(listed.values()):,}" and "someone/digits" in lines[-1]


def test_a_cut_connection_leaves_what_was_there_and_the_push_can_be_repeated(hub, made, tmp_path, monkeypatch):
    import huggingface_hub.utils._http as client

    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)  # the client waits before it tries again
    pushing.push(made[0], "someone/digits")
    repo, (before,) = hub.repos["someone/digits"], [hub.repos["someone/digits"].branches["main"]]
    other = tiny(seed=1)
    other.save_pretrained(tmp_path / "other")
    for place in ("/upload/", "/api/models/someone/digits/commit/"):
        hub.cut = (place,)
        with pytest.raises(OSError, match=r"^The push to someone/digits was cut off: .* push again\.$"):
            pushing.push(tmp_path / "other", "someone/digits")
        hub.cut = ()
        assert repo.branches["main"] == before
        cache = tmp_path / f"cache{place.count('/')}"
        assert torch.equal(draw(HFGenPipeline.from_pretrained("someone/digits", cache_dir=cache)), made[1])
    pushing.push(tmp_path / "other", "someone/digits")
    assert torch.equal(draw(HFGenPipeline.from_pretrained("someone/digits")), draw(other))


def test_a_pipeline_pushes_itself_and_leaves_the_card_alone(hub, made, tmp_path):
    pipeline = tiny()
    assert pipeline.push_to_hub("someone/mine", private=True) == f"{hub.url}/someone/mine"
    repo = hub.repos["someone/mine"]
    assert repo.private and code_of(repo.files) == CODE
    card = repo.files["README.md"].decode()
    assert 'HFGenPipeline.from_pretrained("someone/mine")' in card and not faults(card)
    repo.files["README.md"] = b"my own words"
    pipeline.push_to_hub("someone/mine")
    pipeline.save_pretrained(tmp_path / "here", push_to_hub=True, repo_id="someone/mine", token="writer")
    assert repo.files["README.md"] == b"my own words" and (tmp_path / "here" / "model_index.json").is_file()
    pushing.push(made[0], "someone/mine")  # a folder with a card of its own
    assert b"# T" in repo.files["README.md"]
    with pytest.raises(ValueError, match="pickles"):
        pipeline.save_pretrained(tmp_path / "bin", safe_serialization=False)


def test_old_source_files_go_and_branches_stay_apart(hub, made, tmp_path):
    pushing.push(made[0], "someone/digits")
    repo = hub.repos["someone/digits"]
    repo.files["denoiser/hfgen_DiTModel_12345678.py"] = repo.files["theirs.py"] = b"of an earlier release"
    before = dict(repo.files)
    other = tiny(seed=1)
    other.push_to_hub("someone/digits", revision="next", commit_message="Another seed")
    assert repo.files == before
    assert torch.equal(draw(HFGenPipeline.from_pretrained("someone/digits", revision="next")), draw(other))
    pushing.push(made[0], "someone/digits")
    assert "denoiser/hfgen_DiTModel_12345678.py" not in repo.files and "theirs.py" in repo.files


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_revision_stays_what_it_was_and_loads_without_the_hub(hub, made, monkeypatch):
    load = HFGenPipeline.from_pretrained
    pushing.push(made[0], "someone/digits")
    first = hub.repos["someone/digits"].commits[-1]
    assert torch.equal(draw(load("someone/digits")), made[1])
    other = tiny(seed=1)
    other.push_to_hub("someone/digits")
    pipeline = load("someone/digits", revision=first)
    assert torch.equal(draw(pipeline), made[1]) and pipeline.name_or_path == "someone/digits"
    assert torch.equal(draw(load("someone/digits")), draw(other))
    calls = len(hub.calls)
    assert torch.equal(draw(load("someone/digits", revision=first, local_files_only=True)), made[1])
    assert torch.equal(
        draw(hfgen.DenoisingPipeline.from_pretrained("someone/digits", local_files_only=True)), draw(other)
    )
    assert len(hub.calls) == calls
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert torch.equal(draw(load("someone/digits", revision=first)), made[1])
    with pytest.raises(OSError, match=r"no folder someone/other, and as a repository .* not in the cache"):
        load("someone/other")


def test_loading_options_work_from_a_repository_too(hub, made, tmp_path):
    tiny().push_to_hub("someone/half", variant="fp16")
    load = HFGenPipeline.from_pretrained
    with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model\.safetensors"):
        load("someone/half")
    half = load("someone/half", variant="fp16", torch_dtype=torch.bfloat16, cache_dir=tmp_path / "cache")
    assert half.denoiser.dtype == torch.bfloat16 and list((tmp_path / "cache").iterdir())
    pushing.push(made[0], "someone/digits")
    hub.calls.clear()
    heun = hfgen.RectifiedFlowScheduler(solver_type="heun")
    pipeline = load("someone/digits", denoiser=half.denoiser, scheduler=heun)
    assert pipeline.denoiser is half.denoiser and pipeline.scheduler is heun
    assert not any("safetensors" in path for path in hub.fetched())  # a component of the caller is not fetched
    assert torch.equal(draw(load("someone/digits", token="reader")), made[1])
    tiny().push_to_hub("someone/shards", max_shard_size="2KB")
    assert any("-00001-of-" in name for name in hub.repos["someone/shards"].files)
    assert torch.equal(draw(load("someone/shards")), made[1])
    folder = HFGenPipeline.download("someone/digits")
    assert {p.name for p in Path(folder).iterdir()} == {"model_index.json", "denoiser", "scheduler"}


def test_what_can_not_be_loaded_is_told_in_one_line(hub, made, tmp_path, monkeypatch):
    pushing.push(made[0], "someone/private", private=True)
    pushing.push(made[0], "someone/digits")
    (tmp_path / "plain").mkdir()
    hub.repos["someone/digits"].add("words", {"README.md": b"no pipeline here"})
    theirs = {"model_index.json": json.dumps({"_class_name": "StableDiffusionPipeline"}).encode()}
    hub.repos["someone/digits"].add("theirs", theirs)
    cases = [
        ("someone/nothing", {}, "There is no folder or repository someone/nothing"),
        ("someone/private", {"token": False}, "no folder or repository someone/private; .*log in with `hf auth login`"),
        (
            "someone/private",
            {"token": "wrong"},
            "Hub refused someone/private: Invalid credentials.* Check the token",
        ),
        ("someone/digits", {"revision": "gone"}, "someone/digits has no such revision"),
        ("someone/digits", {"revision": "words"}, "someone/digits is not a saved pipeline: there is no model_index"),
        ("someone/digits", {"revision": "theirs"}, "holds a StableDiffusionPipeline. The families hfgen can load are"),
        ("a/b/c", {}, "a/b/c is neither a folder with a saved pipeline nor a name of a repository"),
        (str(tmp_path / "plain"), {}, "is not a saved pipeline"),
    ]
    for name, options, why in cases:
        with pytest.raises(ValueError, match=why) as refusal:
            HFGenPipeline.from_pretrained(name, **options)
        assert "\n" not in str(refusal.value)
    assert torch.equal(draw(HFGenPipeline.from_pretrained("someone/private", token="reader")), made[1])
    hub.cut = ("/",)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with pytest.raises(OSError, match="the Hub is out of reach"):
        HFGenPipeline.from_pretrained("someone/elsewhere")


# --- no code ----------------------------------------------------------------------------------------------------------

MARK = "open({mark!r}, 'a').close()\n"
PLANTED = (
    "None.py",
    "pipeline.py",
    "hfgen.py",
    "denoiser/hfgen.py",
    "denoiser/diffusers.py",
    "denoiser/dit.py",
    "denoiser/modeling.py",
    "scheduler/hfgen.py",
    "denoiser/diffusion_pytorch_model.bin",
    "denoiser/pytorch_model.bin",
    "denoiser/weights.pkl",
    "denoiser/weights.ckpt",
    "denoiser/weights.pt",
    "diffusion_pytorch_model.bin",
    "checkpoint-1/optimizer.bin",
)


@pytest.fixture
def planted(hub, tmp_path, monkeypatch):
    """(repository whose every file of code or pickle leaves a mark, where the mark would be, what it draws)."""
    mark = tmp_path / "mark"
    monkeypatch.chdir(tmp_path)
    pipeline = tiny()
    pipeline.push_to_hub("someone/planted")
    repo = hub.repos["someone/planted"]
    for name in {*PLANTED, *(name for name in repo.files if name.endswith(".py"))}:
        code = MARK.format(mark=str(mark))
        pickled = b"cbuiltins\nexec\n(S" + repr(code).encode() + b"\ntR."
        repo.files[name] = code.encode() if name.endswith(".py") else pickled
    return "someone/planted", mark, draw(pipeline)


@pytest.fixture(scope="module")
def watch():
    """Lists to which the name of every file that this process opens is added, by Python's own account."""
    lists = []

    def note(event, details):
        for opened in lists if event == "open" else ():
            opened.append(str(details[0]))

    sys.addaudithook(note)  # can't be taken back: it is left with nothing to write to
    yield lists
    lists.clear()


@pytest.fixture
def opened(watch):
    """Names of the files that were opened during the test."""
    watch.append([])
    yield watch[-1]
    watch.clear()


ENTRIES = {
    "HFGenPipeline": lambda repo: HFGenPipeline.from_pretrained(repo),
    "DenoisingPipeline": lambda repo: hfgen.DenoisingPipeline.from_pretrained(repo),
    "download": lambda repo: HFGenPipeline.from_pretrained(HFGenPipeline.download(repo)),
    "folder": lambda repo: HFGenPipeline.from_pretrained(folder_of(repo)),
    "code in the index": lambda repo: HFGenPipeline.from_pretrained(folder_of(repo, denoiser=["dit", "DiTModel"])),
}


def folder_of(repo, **entries):
    """A folder with all of the repository's files, code and pickles too."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repo, local_dir="all"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **entries}))
    return folder


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_door_runs_or_opens_what_is_planted(hub, planted, opened, entry):
    repo, mark, expected = planted
    fetches = "folder" not in entry and "code" not in entry
    if not fetches:
        folder_of(repo)
    before = len(hub.calls)
    opened.clear()
    assert torch.equal(draw(ENTRIES[entry](repo)), expected)
    assert not mark.exists()
    bad = re.compile(r"\.(?:py|bin|pkl|ckpt|pt)$")
    if fetches:
        assert not [name for name in hub.fetched() if bad.search(name)] and len(hub.calls) > before
        looked_at = [name for name in opened if "planted" in name]
        assert looked_at and not [name for name in looked_at if bad.search(name)]


def test_the_command_samples_from_a_repository_without_its_code(hub, planted, tmp_path):
    repo, mark, _ = planted
    main(
        [
            "sample",
            repo,
            "--num_samples",
            "2",
            "--num_inference_steps",
            "2",
            "--class_labels",
            "cat",
            "--grid",
            str(tmp_path / "grid.png"),
        ]
    )
    assert (tmp_path / "grid.png").is_file() and not mark.exists()


@pytest.mark.parametrize("option", ["custom_pipeline", "trust_remote_code", "custom_revision"])
def test_nobody_can_ask_for_code(hub, planted, option):
    repo, mark, _ = planted
    for front in (HFGenPipeline, hfgen.DenoisingPipeline):
        with pytest.raises(ValueError, match=f"{option} would run code"):
            front.from_pretrained(repo, **{option: repo})
    with pytest.raises(ValueError, match=f"does not take {option}"):
        HFGenPipeline.download(repo, **{option: repo})
    with pytest.raises(ValueError, match="use_safetensors=False would read pickled weights"):
        HFGenPipeline.from_pretrained(repo, use_safetensors=False)
    assert not mark.exists() and not hub.fetched()


def test_after_others_code_was_run_hfgen_still_loads_its_own(hub, tmp_path, monkeypatch):
    import diffusers

    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    pipeline = tiny()
    pipeline.push_to_hub("someone/both")
    theirs = diffusers.DiffusionPipeline.from_pretrained("someone/both", trust_remote_code=True)
    assert type(theirs) is not hfgen.DenoisingPipeline and torch.equal(draw(theirs), draw(pipeline))
    for source in ("someone/both", theirs.name_or_path):  # the cache now holds the code beside the weights
        ours = HFGenPipeline.from_pretrained(source)
        assert type(ours) is hfgen.DenoisingPipeline and type(ours.denoiser) is hfgen.DiTModel
        assert torch.equal(draw(ours), draw(pipeline))


@pytest.mark.parametrize(
    ("file", "secret"),
    [
        ("config.yaml", "note: hf_" + "a" * 34),
        ("README.md", "aws AKIA" + "A1" * 8),
        ("README.md", "remote: https://someone:word@example.org/x"),
        ("metrics.json", '{"key": "ghp_' + "b" * 36 + '"}'),
        ("config.yaml", "# -----BEGIN RSA PRIVATE KEY-----"),
        ("README.md", "-----BEGIN PGP PRIVATE KEY BLOCK-----"),
        ("README.md", "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfi"),
        ("README.md", "export WANDB_API_KEY=" + "0a" * 20),
        ("metrics.json", '{"password": "hunter22"}'),
        ("README.md", "DefaultEndpointsProtocol=https;AccountKey=" + "Ab1/" * 10),
        ("README.md", "sk_live_" + "a1" * 12),
        ("README.md", "npm_" + "a1" * 18),
        ("README.md", "pypi-AgEIcHlwaS5vcmcCJGFiY2RlZmdo"),
        ("README.md", "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3.dozjgNryP4J3jVmNHl0w5N"),
        ("README.md", "redis://:word@example.org:6379"),
        ("README.md", "https://a.blob.example.org/b?sv=2020&sig=abcdefgh%3D"),
    ],
)
def test_a_secret_stops_the_push_by_file_and_line(made, tmp_path, file, secret):
    folder = Path(shutil.copytree(made[0], tmp_path / "made"))
    (folder / file).write_text(f"# first\n\n{secret}\n")
    with pytest.raises(ValueError, match=rf"{file}, line 3, seems to hold an access token or a key"):
        pushing.files_to_push(folder)


LETTERS, HEX, BASE64 = "aB3dE6gH9j" * 6, "0a1b" * 16, "dXNlcjpwYXNzd29yZDEyMw=="


@pytest.mark.parametrize(
    "line",
    [
        *(
            f"x {start}{LETTERS} y"
            for start in ("ya29.a0", "GOCSPX-", "LTAI", "hvs.", "ATATT3", "sk-proj-", "sk-ant-api03-")
        ),
        *(
            f"x {start}{LETTERS} y"
            for start in ("r8_", "gsk_", "wandb_v1_", "nvapi-", "xai-", "pplx-", "dckr_pat_", "glrt-")
        ),
        *(f"x {start}{HEX[:size]} y" for start, size in (("dop_v1_", 64), ("dapi", 32), ("SK", 32), ("shpat_", 32))),
        f"SG.{LETTERS[:22]}.{LETTERS[:43]}",
        f"AGE-SECRET-KEY-1{LETTERS.upper()[:58]}",
        f"https://hooks.slack.com/services/T00000000/B00000000/{LETTERS[:24]}",
        f"https://discord.com/api/webhooks/123456789012345678/{LETTERS}",
        f"123456789:AA{LETTERS[:33]}",
        f"Authorization: Bearer {LETTERS[:20]}",
        f"'authorization': 'Basic {BASE64}'",
        f"curl -H 'bearer {LETTERS[:20]}'",
        f'{{"auths": {{"x": {{"auth": "{BASE64}"}}}}}}',
        f"machine api.wandb.ai login user password {HEX[:40]}",
        f"  password {HEX[:40]}",
        f"MY_TOKEN={LETTERS[:20]}",
        f"neptune_api_token: {LETTERS}",
        f"client_secret: {LETTERS[:16]}",
    ],
)
def test_common_forms_of_keys_are_known(line):
    assert SECRETS.search(line)


@pytest.mark.parametrize("part", ["_token=", "bearer ", "SG.a", "login a ", "secret=", "://a", "?sig=a"])
def test_a_long_line_of_beginnings_of_secrets_is_searched_soon(part):
    with time_limit(1):
        SECRETS.search(part * (300_000 // len(part)))


@pytest.mark.parametrize(
    "line",
    [
        "global-average-pooling-of-features, gloss-and-more-words-than-one",
        "pad_token: reserved_special_token_0",
        "password protected archives are errors",
        "bearer of the rings of 2001",
        "the tokenizer: openai/clip-vit-large-patch14, image_token: 49407",
        "revision: 0123456789abcdef0123456789abcdef01234567",
        "time: 12:34:56@host, basic: true",
        '"password": 123456789,',
        '{"secret": 12345678}',
        "hub_token: null",
        "api_key: None",
        "https://example.org:80/a@b?x=1",
        "the secret: a word",
    ],
)
def test_words_of_vocabularies_and_empty_options_are_no_secrets(line):
    assert not SECRETS.search(line)


@pytest.mark.parametrize("file", ["README.md", "config.yaml"])
def test_a_text_that_is_no_utf_8_is_refused_by_name(made, tmp_path, file):
    folder = Path(shutil.copytree(made[0], tmp_path / "made"))
    (folder / file).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=rf"{file} is no text in UTF-8"):
        pushing.files_to_push(folder)


def test_a_value_that_is_too_long_for_a_path_is_none():
    assert "a" * 5000 in pushing.shareable_config(f"hub_license: {'a' * 5000}\n")


def test_links_and_files_that_the_format_does_not_know_are_not_pushed(made, tmp_path, capsys):
    folder, secret = Path(shutil.copytree(made[0], tmp_path / "made")), tmp_path / "secret"
    expected = set(pushing.files_to_push(folder))
    secret.mkdir()
    (secret / "config.json").write_text("{}")
    (folder / "LICENSE").symlink_to(secret / "config.json")
    (folder / "planted").symlink_to(secret)
    (folder / "private").mkdir()
    (folder / "private" / "data.json").write_text("{}")
    (folder / "denoiser" / "notes.json").write_text("{}")
    index = json.loads((folder / "model_index.json").read_text())
    for key in ("*", "checkpoint-*", "private", "planted"):
        index[key] = ["x", "y"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert set(pushing.files_to_push(folder)) == expected
    assert "LICENSE in" in capsys.readouterr().err
