"""Benchmarks of servers and detectors in small: what an attack may change, and that a race counts what it should."""

import http.server
import threading

import pytest
import torch

from tests.test_benchmarks import module, on_the_path  # noqa: F401 - a fixture that every test here uses


def test_an_attack_on_a_linear_score_goes_to_the_corner_that_its_weights_name():
    attack = module("anomaly_attack")
    weights = torch.tensor([1.0, -2.0, 0.5, -0.1]).view(1, 1, 2, 2)
    x = torch.tensor([[0.0, 0.3, 0.99, -0.2]]).view(1, 1, 2, 2)

    def score(y):
        return (y * weights).flatten(1).sum(1)

    for sign in (1.0, -1.0):
        moved = attack.attacked(score, x, 0.05, 20, sign)
        assert torch.allclose(moved, (x + 0.05 * sign * weights.sign()).clamp(-1, 1), atol=1e-6)


def test_an_attack_never_returns_what_is_worse_than_its_start_or_farther_away():
    attack = module("anomaly_attack")
    x = 2 * torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)) - 1

    def score(y):
        return (40 * y).sin().flatten(1).sum(1)

    moved = attack.attacked(score, x, 0.1, 3, 1.0)
    assert (score(moved) >= score(x)).all() and (moved - x).abs().max() <= 0.1 + 1e-6 and moved.abs().max() <= 1


def test_each_training_is_for_the_defences_that_are_asked_for():
    attack = module("anomaly_attack")

    def names(text):
        return [defences for _, defences in attack.plan(attack.Options(defences=text))]

    assert names("none,smoothing,noise,adversarial") == [["none", "smoothing"], ["noise"], ["adversarial"]]
    assert names("adversarial,smoothing") == [["smoothing"], ["adversarial"]]
    assert attack.plan(attack.Options(defences="smoothing"))[0][0] is None  # the plain training
    with pytest.raises(ValueError, match=r"^--defences prayer is not known\. There are: smoothing, none, noise, "):
        names("noise,prayer")


def test_the_disturbed_elbo_without_a_disturbance_is_the_elbo():
    import hfgen
    from hfgen.distributions.likelihoods import build_likelihood
    from hfgen.models.autoencoder_with_prior import AutoencoderWithPrior
    from hfgen.objectives.base import Step

    attack = module("anomaly_attack")
    network = AutoencoderWithPrior(hfgen.build_autoencoder("mlp", "s", 8, 1, 1, 2))
    arguments = build_likelihood("gaussian", 0.2), (2, 1, 1)
    same = attack.DisturbedELBO(*arguments, disturb=lambda x, error, step: x)
    other = attack.DisturbedELBO(*arguments, disturb=lambda x, error, step: x + error(x).mean())
    batch = {"x": torch.rand(6, 1, 8, 8) * 2 - 1}
    losses = [
        float(each.loss("autoencoder", {"autoencoder": network}, batch, Step(0, 10, 0)).value.detach())
        for each in (hfgen.ELBO(*arguments), same, other)
    ]
    assert losses[0] == losses[1] != losses[2]


class Teapot(http.server.BaseHTTPRequestHandler):
    """Answers seeds that are even, and refuses the others."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        even = int(body.split(b'"seed": ')[1].split(b",")[0]) % 2 == 0
        self.send_response(200 if even else 418)
        self.send_header("Content-Length", "8")
        self.end_headers()
        self.wfile.write(b"\x89PNG\r\n\x1a\n")

    def log_message(self, *_):
        pass


def test_a_race_of_servers_counts_answers_and_failures(tmp_path):
    serving = module("serving")
    (tmp_path / "model_index.json").write_text('{"num_classes": 3}')
    options = serving.Options(pipeline=str(tmp_path), requests=6)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Teapot) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        rate, seconds, failed = serving.Clients(3, (server.server_port, "/generate"), options, 0).run()
        server.shutdown()
        thread.join()
    assert len(seconds) == len(failed) == 9 and rate > 0 and all(text.startswith("418") for text in failed)
    assert serving.labels(options, 7) == {"class_labels": 1}


def test_speed_is_measured_in_each_way_and_refusals_are_told(tmp_path, monkeypatch):
    """A network of convolutions is refused 8 bits, with or without torchao."""
    from tests.saving import test_portable as portable

    speed = module("inference_speed")
    pipeline = portable.denoising()["DiTModel-straight"]
    pipeline.save_pretrained(tmp_path / "digits")
    options = speed.Options(only=f"{tmp_path / 'digits'};bfloat16", steps=2, batch_size=3, repeats=1)
    monkeypatch.setattr(speed, "distances", lambda *_: {})
    row = speed.measure(options, None)
    assert row["bytes"] == 2 * sum(value.numel() for value in pipeline.denoiser.state_dict().values())
    assert row["rate"] > 0 and row["one"] > 0
    monkeypatch.setattr(speed, "prepared", lambda *_: (_ for _ in ()).throw(ValueError("no")))
    assert speed.measure(options, None) == {"refused": "no"}


def test_simulated_requests_take_the_time_that_a_pencil_finds():
    """Steps of 1 s for one sample and 1.5 s for two, two steps a sample, at most two in a batch."""
    joining = module("continuous_joining")
    options = joining.Options(steps=2, max_batch=2, max_wait=0.0)

    def at(count):
        return {1: 1.0, 2: 1.5}[count]

    arrivals = [0.0, 0.5, 0.6, 10.0]
    # the first alone in [0, 2], both others together in [2, 5], the last alone in [10, 12]
    assert joining.together(arrivals, at, options) == pytest.approx([2.0, 4.5, 4.4, 2.0])
    # steps: [0, 1] the first, [1, 2.5] with the second, [2.5, 4] second and third, [4, 5] the third, [10, 12] the last
    assert joining.joining(arrivals, at, options) == pytest.approx([2.5, 3.5, 4.4, 2.0])
