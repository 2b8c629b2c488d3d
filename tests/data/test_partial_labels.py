"""Class labels that are missing in part of a data set: read, hidden, refused, told, and streamed as pairs."""

import io
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import hfgen
from hfgen.data.batches import Batches
from hfgen.data.images import load_images
from hfgen.data.label_options import PartialLabelDataArgs, with_all_labels
from hfgen.data.partial_labels import LabelledPairs, hidden_labels, num_unlabelled, told_labels
from hfgen.data.relabelled import relabelled
from hfgen.data.selection import labelled_part
from hfgen.data.summary import describe
from hfgen.data.training_data import choose_data, record_of
from hfgen.options import DataArgs
from hfgen.training import train_classifier, train_diffusion, train_gan
from tests.helpers.doors import run_door

LABELS = [2, None, 0, 1, None, 2]


def saved(tmp_path, labels=LABELS):
    """The path of a parquet file of images of one grey level each, 10 times their row, with a column of labels."""
    cells = []
    for row in range(len(labels)):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8), 10 * row, np.uint8)).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    types = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    path = tmp_path / "data.parquet"
    datasets.Dataset.from_dict({"image": cells, "label": labels}, features=types).to_parquet(str(path))
    return str(path)


def load(tmp_path, labels=LABELS, kind=PartialLabelDataArgs, **options):
    return load_images(kind(dataset=saved(tmp_path, labels), cache_dir=str(tmp_path / "cache"), **options))


@pytest.mark.parametrize("missing", [None, -1])
def test_a_column_with_nulls_gives_missing_labels_where_they_are_asked_for(tmp_path, capsys, missing):
    labels = [missing if label is None else label for label in LABELS]
    data = load(tmp_path, labels)
    assert data.labels.tolist() == [2, -1, 0, 1, -1, 2] and data.label_names == ["0", "1", "2"]
    assert num_unlabelled(data) == 2 and "4 of 6 images have a label" in capsys.readouterr().err
    assert dict(describe(data))["classes"] == "3: 0 (1), 1 (1), 2 (2); 4 of 6 images have a label"
    with pytest.raises(ValueError, match=r"2 rows have no label .* A family that has the option --num_labels takes"):
        load(tmp_path, labels, DataArgs)


@pytest.mark.parametrize(("count", "sizes"), [(10, {1}), (30, {3}), (33, {3, 4}), (1499, {149, 150})])
def test_kept_labels_are_balanced_and_true(count, sizes):
    labels = torch.arange(2000) % 10
    kept = hidden_labels(labels, 10, count)
    rows = (kept >= 0).nonzero()[:, 0]
    assert len(rows) == count and torch.equal(kept[rows], labels[rows])
    assert set(torch.bincount(kept[rows]).tolist()) == sizes and set(kept[kept < 0].tolist()) <= {-1}


def test_kept_labels_depend_on_the_seed_alone_and_grow():
    labels = torch.randint(4, (500,), generator=torch.Generator().manual_seed(0))
    first, again, other, more = (hidden_labels(labels, 4, n, s) for n, s in ((20, 3), (20, 3), (20, 4), (40, 3)))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert bool((more >= 0)[first >= 0].all())
    rows = torch.stack([(hidden_labels(labels, 4, 4, seed) >= 0).float() for seed in range(400)]).sum(0)
    for label in range(4):  # each image of a class is kept as often as any other: 400 draws among about 125 images
        drawn, expected = rows[labels == label], 400 / int((labels == label).sum())
        assert float(((drawn - expected) ** 2 / expected).sum()) < 200  # chi squared of about 124 degrees of freedom


def test_too_few_labels_and_too_small_classes_are_refused():
    labels = torch.tensor([0, 0, 0, 1])
    with pytest.raises(ValueError, match="--num_labels 1 is too few for 2 classes: give 2 or more"):
        hidden_labels(labels, 2, 1)
    with pytest.raises(ValueError, match="--num_labels 4 keeps 2 labels of each class, and class 1 has 1"):
        hidden_labels(labels, 2, 4)


def test_hidden_labels_are_said_recorded_and_change_the_fingerprint(capsys):
    whole, part, other = (
        load_images(PartialLabelDataArgs(num_labels=n, label_seed=s)) for n, s in ((None, 0), (100, 0), (100, 1))
    )
    assert "100 of 1,797 images have a label" in capsys.readouterr().err
    assert len({data.fingerprint for data in (whole, part, other)}) == 3
    record = record_of(PartialLabelDataArgs(num_labels=100), part)
    assert (record["num_labels"], record["label_seed"]) == (100, 0)
    choice = choose_data(record, "outputs/x")
    assert type(choice.args) is DataArgs and choice.fingerprint is None  # measured with all labels
    assert choose_data(record_of(DataArgs(), whole), "outputs/x").fingerprint == whole.fingerprint
    args = with_all_labels(PartialLabelDataArgs(num_labels=100, label_seed=3, resolution=8))
    assert (args.num_labels, args.label_seed, args.resolution) == (None, 0, 8)
    with pytest.raises(ValueError, match="--num_labels 100: digits has no labels"):
        load_images(PartialLabelDataArgs(num_labels=100, label_column="none"))


def test_pairs_are_labelled_images_in_whole_passes_at_any_start(tmp_path):
    data = load(tmp_path)
    pairs = LabelledPairs(data)
    batches = Batches(pairs, 4, seed=5)
    first = [batch for batch, _ in zip(batches.iterate(), range(6), strict=False)]
    level = torch.cat([batch["pair_x"] for batch in first])[:, 0, 0, 0]
    rows, labels = ((level + 1) * 127.5 / 10).round().long(), torch.cat([batch["pair_labels"] for batch in first])
    assert labels.tolist() == [LABELS[row] for row in rows.tolist()]
    for start in range(0, 24, 4):  # each pass over the four of them
        assert sorted(rows[start : start + 4].tolist()) == [0, 2, 3, 5]
    later = next(iter(batches.iterate(4)))
    assert all(torch.equal(later[name], first[4][name]) for name in later)
    halves = [next(iter(Batches(pairs, 2, seed=5, rank=rank, world=2).iterate(3))) for rank in range(2)]
    assert all(torch.equal(torch.cat([half[name] for half in halves]), first[3][name]) for name in later)
    assert len(pairs) == 6 and pairs.fingerprint == data.fingerprint and pairs.num_classes == 3
    assert labelled_part(data).labels.tolist() == [2, 0, 1, 2]
    with pytest.raises(ValueError, match="has no labels, and pairs of image and class are learnt"):
        LabelledPairs(load(tmp_path, label_column="none"))


def test_missing_labels_are_the_null_class_and_stay_missing_under_other_numbers(tmp_path):
    labels = torch.tensor([2, -1, 0])
    condition = hfgen.ClassCondition(3)
    told = condition.kwargs({"labels": labels})["class_labels"]
    assert told.tolist() == [2, 3, 0]
    assert relabelled(load(tmp_path), ["2", "1", "0"]).labels.tolist() == [0, -1, 2, 1, -1, 0]
    assert told_labels(labels, 2).tolist() == [0, 1, 0]
    assert told_labels(labels.clamp(min=0), 2).tolist() == [2, 0, 0]


QUIET = ["--report_to", "none", "--mixed_precision", "no", "--max_train_steps", 2, "--train_batch_size", 8]
QUIET += ["--lr_warmup_steps", 1, "--model_size", "xs"]


def test_a_denoiser_takes_them_a_classifier_leaves_them_out_and_both_say_so(capsys, tmp_path):
    words = [*QUIET, "--num_labels", 20, "--label_seed", 1]
    status, _, errors = run_door(train_classifier.main, capsys, *words, "--no_noise", "--output_dir", tmp_path / "c")
    assert status == 0, errors
    assert "accuracy at t = 0, 20 training images" in (tmp_path / "c" / "README.md").read_text()
    more = ["--class_conditional", "--eval_batch_size", 10, "--num_inference_steps", 1]
    status, _, errors = run_door(train_diffusion.main, capsys, *words, *more, "--output_dir", tmp_path / "d")
    assert status == 0, errors
    card = (tmp_path / "d" / "README.md").read_text()
    assert "20 of 1,797 images have a label" in card and re.search(r"20 labels kept \(seed 1\)", card)


def test_families_that_need_all_labels_refuse(capsys, tmp_path):
    words = ["--class_conditional", "--num_labels", "20"]
    message = "--label_dropout 0: 20 of 1,797 images have a label in digits"
    status, _, errors = run_door(
        train_diffusion.main, capsys, *QUIET, *words, "--label_dropout", 0, "--output_dir", tmp_path / "b"
    )
    assert status == 2 and message in errors
    objective = hfgen.Denoising(hfgen.paths.StraightPath(), num_classes=10, label_dropout=0.0)
    network = hfgen.build_denoiser("dit", "xs", 8, 1, 10, null_class=False)
    data = load_images(PartialLabelDataArgs(num_labels=20))
    with pytest.raises(ValueError, match="10 classes and a null class"):
        hfgen.train({"denoiser": network}, objective, data, output_dir=str(tmp_path / "c"), max_train_steps=1)
    status, _, errors = run_door(train_gan.main, capsys, *words)
    assert status == 2 and "--num_labels is no option of" in errors
