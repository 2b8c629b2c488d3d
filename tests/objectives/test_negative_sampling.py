"""word2vec's objective: shifted pointwise mutual information, windows, noise words."""

import itertools
import json
import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hfgen
from hfgen.data.text import WindowData, sentences_of
from hfgen.disk.reading import JSON_BYTES
from hfgen.models.word_vectors import WordVectorsModel
from hfgen.objectives.base import Step
from hfgen.objectives.negative_sampling import NegativeSampling

GENERATOR = np.random.default_rng(0)
TABLE = GENERATOR.dirichlet(np.full(6, 2.0), size=6)
TEXT = [[f"w{a}", f"w{GENERATOR.choice(6, p=TABLE[a])}"] for a in GENERATOR.integers(0, 6, 4000)]


def test_free_scores_are_the_shifted_mutual_information_and_their_factors_those_of_its_decomposition():
    """Vectors of as many dimensions as words, on pairs of words: against counts, and an SVD of the same matrix."""
    torch.manual_seed(0)
    data, k = WindowData(TEXT, window=1, min_count=1), 3
    objective = NegativeSampling(data.counts, negatives=k, subsample=0.0, power=1.0)
    network = WordVectorsModel(6, 6)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    batch = data.read(torch.arange(len(data)))
    for number in range(900):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - number / 900)
        optimizer.zero_grad()
        objective.loss("vectors", {"vectors": network}, batch, Step(number)).value.backward()
        optimizer.step()
    scores = (network.input.weight @ network.output.weight.T).detach().numpy()
    pairs = np.zeros((6, 6))
    for first, second in TEXT:
        a, b = data.words.index(first), data.words.index(second)
        pairs[a, b] += 1
        pairs[b, a] += 1
    share = data.counts.numpy() / data.counts.sum().item()
    expected = np.log(pairs / pairs.sum() / np.outer(share, share)) - math.log(k)
    assert np.abs(scores - expected).max() < 0.15
    left, sizes, right = np.linalg.svd(expected)
    for rank in (1, 2):  # the best matrices of low rank agree, too
        best = (left[:, :rank] * sizes[:rank]) @ right[:rank]
        u, s, v = np.linalg.svd(scores)
        assert np.abs((u[:, :rank] * s[:rank]) @ v[:rank] - best).max() < 0.25


def test_the_loss_of_a_window_by_hand():
    counts = torch.tensor([3, 2, 1])
    torch.manual_seed(1)
    network = WordVectorsModel(3, 4)
    torch.nn.init.normal_(network.output.weight)
    torch.nn.init.normal_(network.input.weight)
    v, u = network.input.weight, network.output.weight
    x = torch.tensor([[1, 0, 2], [-1, 2, 1]])  # reach is 1 in any case
    for method in ("skip_gram", "cbow"):
        objective = NegativeSampling(counts, method, negatives=2, subsample=0.0)
        loss = objective.loss("vectors", {"vectors": network}, {"x": x}, Step(5)).value
        n = objective.noise(2, Step(5))
        if method == "skip_gram":
            pairs = [(v[0], 1, n[0]), (v[0], 2, n[0]), (v[2], 1, n[1])]
        else:
            pairs = [((v[1] + v[2]) / 2, 0, n[0]), (v[1], 2, n[1])]
        each = [-F.logsigmoid(u[c] @ h) - F.logsigmoid(-(u[noise] @ h)).sum() for h, c, noise in pairs]
        torch.testing.assert_close(loss, torch.stack(each).mean())


def test_windows_lose_frequent_words_and_what_is_beyond_their_reach():
    counts = torch.tensor([900, 100])
    objective = NegativeSampling(counts, subsample=0.05)
    x = torch.tensor([0, 1]).repeat(3)[:5].expand(20_000, 5)  # 0 1 0 1 0
    windows = objective.windows(x, Step(0))
    ratio = 0.05 / 0.9
    kept = math.sqrt(ratio) + ratio
    share = (windows >= 0).double().mean(0)
    expected = torch.tensor([kept / 2, 1.0, kept, 1.0, kept / 2]).double()  # the reach is 1 or 2; all rare words stay
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)
    assert set(windows.unique().tolist()) == {-1, 0, 1}


def test_noise_words_have_powers_of_their_counts():
    counts = torch.tensor([16, 0, 1, 81])
    objective = NegativeSampling(counts, negatives=4)
    share = torch.bincount(objective.noise(25_000, Step(1)).flatten(), minlength=4) / 100_000
    torch.testing.assert_close(share, torch.tensor([8.0, 0, 1, 27]) / 36, atol=0.006, rtol=0)


def test_a_text_is_windows_that_end_with_its_sentences(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("The cat's 3 mice, the dog.\n\nThe cat’s dog\nrare\n", encoding="utf-8")
    assert sentences_of(file)[0] == ["the", "cat's", "mice", "the", "dog"]
    data = WindowData([["a", "b", "x", "a"], ["b", "a"]], window=2, min_count=2)
    assert data.words == ["a", "b"] and data.counts.tolist() == [3, 2] and len(data) == 5
    rows = data.read(torch.arange(5))["x"].tolist()
    expected = [[-1, -1, 0, 1, 0], [-1, 0, 1, 0, -1], [0, 1, 0, -1, -1], [-1, -1, 1, 0, -1], [-1, 1, 0, -1, -1]]
    assert rows == expected
    assert data.fingerprint != WindowData([["a", "b", "a"], ["a", "b"]], 2, 2).fingerprint
    with pytest.raises(ValueError, match="1 words that are there 3 times"):
        WindowData([["a", "b"], ["a", "a"]], min_count=3)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("latin", "latin is no text in UTF-8"),
        ("none", "No such file"),
        ("pipe", "pipe is a pipe, and only regular files are read"),
        ("", "is a folder"),
    ):
        with pytest.raises(ValueError, match=rf"{message}.*Give another --text"):
            sentences_of(tmp_path / name)


def test_a_vocabulary_that_no_index_can_name_is_refused():
    """Before the training, whose folder nobody could load."""
    most = [f"{number:x}" for number in range(250_000)]
    for words in (
        [f"{number:x}" for number in range(270_000)],
        ["\u4e2d" * 400_000, "\u4e2d" * 400_001],
        ["a" * 5_000_000, "b"],
    ):
        with pytest.raises(
            ValueError, match=r"text has .* at most 4 MiB and 262,144 entries\. Give a higher --min_count"
        ):
            WindowData([words], min_count=1)
    index = {"words": {str(number): word for number, word in enumerate(most[:150_000])}}
    assert len(json.dumps(index, indent=2)) < JSON_BYTES and len(WindowData([most[:150_000]], min_count=1)) == 150_000


@pytest.mark.parametrize(
    "options", [{"method": "glove"}, {"negatives": 0}, {"subsample": -1.0}, {"power": math.nan}, {"counts": [0, 0]}]
)
def test_options_out_of_range_are_refused(options):
    counts = torch.tensor(options.pop("counts", [1, 2]))
    with pytest.raises(ValueError):
        NegativeSampling(counts, **options)


def test_similar_words_and_analogies():
    network = WordVectorsModel(5, 2)
    points = [[1.0, 0.0], [2.0, 0.2], [0.0, 3.0], [0.1, 1.0], [-1.0, 0.0]]
    with torch.no_grad():
        network.input.weight.copy_(torch.tensor(points))
    words = ["east", "eastish", "north", "northish", "west"]
    pipeline = hfgen.WordVectorsPipeline(network, words)
    assert [word for word, _ in pipeline.most_similar("east", count=4)] == ["eastish", "northish", "north", "west"]
    cosine = np.dot(points[0], points[1]) / np.linalg.norm(points[0]) / np.linalg.norm(points[1])
    assert pipeline.most_similar("east", count=1)[0][1] == pytest.approx(cosine)
    assert pipeline.similarity("east", "eastish") == pytest.approx(cosine)
    assert pipeline.similarity("east", "west") == pytest.approx(-1)
    assert pipeline.analogy("east", "eastish", "north")[0][0] == "northish"
    assert pipeline.most_similar(["east"], ["west"], 1)[0][0] == "eastish"
    assert pipeline(["west", "east"]).vectors.tolist() == [[-1, 0], [1, 0]]
    assert len(pipeline.most_similar(words[:4])) == 1
    for call in (
        lambda: pipeline("up"),
        lambda: pipeline.similarity("east", "East"),
        lambda: pipeline.most_similar([]),
    ):
        with pytest.raises(ValueError):
            call()
    for given in (words[:4], [*words[:4], "east"], None):
        with pytest.raises(ValueError, match="give each word once"):
            hfgen.WordVectorsPipeline(network, given)


def test_scores_of_rows_without_words_are_zero():
    network = WordVectorsModel(3, 2)
    torch.nn.init.normal_(network.output.weight)
    scores = network(torch.tensor([[-1, -1], [0, -1]]), torch.tensor([[0, 1], [2, 2]]))
    assert scores[0].tolist() == [0, 0]
    torch.testing.assert_close(scores[1, 0], network.input.weight[0] @ network.output.weight[2])
    assert all(math.isfinite(x) for x in itertools.chain(*scores.tolist()))
