"""One pipeline in several threads: each call has its own scheduler and state, and draws what it draws alone."""

import contextlib
import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from hfgen.pipelines.sampling import clone_of

import hfgen
from hfgen.registry import SAMPLERS
from tests.pipelines.sequences import ObservedSequencePipeline
from tests.pipelines.test_sampling import network as sequence_network
from tests.pipelines.test_sampling import scheduler_of, seeds

THREADS = 16
NAMES = ["rectified_flow", "dpmsolver++", "heun", "ddim"]


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "patch_size": 2, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
    network = hfgen.DiTModel(in_channels=1, out_channels=1, **sizes)
    pipeline = hfgen.DenoisingPipeline(network.eval(), scheduler_of())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, seed, **options):
    return pipeline(generator=seeds(seed), output_type="latent", num_inference_steps=4, **options).images


def in_threads(act, count=THREADS):
    """Call act(0), act(1), ... at once, one in each thread, and return the results."""
    barrier = threading.Barrier(count)

    def begin(number):
        barrier.wait()
        return act(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


@contextlib.contextmanager
def changed_by_others(pipeline):
    """Inside the block, another thread changes the scheduler of the pipeline over and over."""
    stop = threading.Event()

    def change():
        while not stop.wait(0.001):
            for name in NAMES:
                pipeline.use_scheduler(name)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        yield
    finally:
        stop.set()
        changer.join()
        pipeline.use_scheduler("rectified_flow")


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_scheduler_of_the_call_is_that_of_use_scheduler_and_leaves_the_pipelines(pipeline, name):
    before, other = pipeline.scheduler, copy.copy(pipeline)
    other.use_scheduler(name)
    expected = draw(other, 0)
    assert torch.equal(draw(pipeline, 0, scheduler=name), expected)
    assert torch.equal(draw(pipeline, 0, scheduler=other.scheduler), expected)
    assert pipeline.scheduler is before


def test_a_scheduler_of_diffusers_is_taken_and_one_of_another_model_refused(pipeline):
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    state = copy.deepcopy(vars(theirs))
    assert draw(pipeline, 0, scheduler=theirs).shape == (1, 1, 8, 8)
    assert vars(theirs).keys() == state.keys() and theirs.num_inference_steps == state["num_inference_steps"]
    with pytest.raises(ValueError, match=r"path is discrete, not straight.*from_config"):
        draw(pipeline, 0, scheduler=diffusers.DDIMScheduler())
    for wrong in ("no_such", 3, object()):
        with pytest.raises(ValueError, match=r"scheduler|no_such"):
            draw(pipeline, 0, scheduler=wrong)


def test_a_pipeline_without_hfgen_takes_no_names():
    with pytest.raises(ValueError, match=r"scheduler='ddim'.*from_config"):
        hfgen.pipelines.parts.PipelineParts().named_scheduler("ddim", None)


def test_sixteen_threads_draw_what_each_draws_alone_while_others_change_the_scheduler(pipeline):
    alone = [draw(pipeline, number, scheduler=NAMES[number % 4]) for number in range(THREADS)]
    with changed_by_others(pipeline):
        together = in_threads(lambda number: draw(pipeline, number, scheduler=NAMES[number % 4]))
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def there_and_back(pipeline, number):
    """The way from an image, which is inverted, to a seed, with a scheduler of its own."""
    image = torch.full((1, 1, 8, 8), number / THREADS)
    options = {"num_inference_steps": 2, "scheduler": NAMES[number % 4]}
    return pipeline.interpolate(image, number, 2, **options)


def test_sixteen_threads_go_to_the_noise_and_back_each_by_its_own_scheduler(pipeline):
    alone = [there_and_back(pipeline, number) for number in range(THREADS)]
    with changed_by_others(pipeline):
        together = in_threads(lambda number: there_and_back(pipeline, number))
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert len({tuple(a.flatten().tolist()) for a in alone}) == THREADS


def test_a_callback_sees_and_changes_its_own_call(pipeline):
    """Calls of 2, 3, 4, ... steps run at once; the even ones stop after their first step."""
    barrier, alone = threading.Barrier(THREADS), draw(pipeline, 0)

    def call(number):
        seen = []

        def watch(pipe, step, t, tensors):
            if step == 0:
                barrier.wait()  # all calls are running now
            seen.append((pipe.num_timesteps, pipe._num_timesteps, pipe.guidance_scale, pipe.interrupt))
            if number % 2 == 0:
                pipe._interrupt = True

        options = {"num_inference_steps": number + 2, "callback_on_step_end": watch}
        pipeline(generator=seeds(0), output_type="latent", **options)
        return seen, pipeline.num_timesteps

    for number, (seen, after) in enumerate(in_threads(call)):
        steps = number + 2
        assert len(seen) == (steps if number % 2 else 1) and after == steps
        assert set(seen) == {(steps, steps, 1.0, False)}
    assert torch.equal(draw(pipeline, 0), alone)


def test_a_call_inside_a_callback_has_its_own_state(pipeline):
    seen = []

    def inner(pipe, step, t, tensors):
        pipe._interrupt = True

    def outer(pipe, step, t, tensors):
        pipe(generator=seeds(1), num_inference_steps=2, output_type="latent", callback_on_step_end=inner)
        seen.append((pipe.num_timesteps, pipe.interrupt))

    draw(pipeline, 0, callback_on_step_end=outer)
    assert seen == [(4, False)] * 4


def test_a_thread_without_a_call_stops_those_that_run(pipeline):
    """A button that sets `pipeline._interrupt`, as with diffusers' pipelines."""
    running, seen = threading.Event(), []

    def watch(pipe, step, t, tensors):
        seen.append(step)
        running.set()
        while not pipe.interrupt:
            pass

    thread = threading.Thread(target=draw, args=(pipeline, 0), kwargs={"callback_on_step_end": watch})
    thread.start()
    running.wait(60)
    pipeline._interrupt = True
    thread.join(60)
    assert seen == [0] and not thread.is_alive()
    assert draw(pipeline, 0).shape == (1, 1, 8, 8) and pipeline.interrupt is False


def test_a_call_that_fails_leaves_no_state(pipeline):
    def fail(pipe, step, t, tensors):
        raise KeyError("mine")

    with pytest.raises(KeyError):
        draw(pipeline, 0, callback_on_step_end=fail)
    assert pipeline.interrupt is False and torch.equal(draw(pipeline, 3), draw(pipeline, 3))


def test_other_items_take_a_scheduler_through_the_same_method():
    pipeline = ObservedSequencePipeline(sequence_network(), scheduler_of())
    assert type(pipeline._scheduler_of("ddim")).__name__ == "DDIMScheduler"
    assert type(pipeline._scheduler_of(None)) is type(pipeline.scheduler)
    assert pipeline._scheduler_of(None) is not pipeline.scheduler


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_copy_of_a_scheduler_has_its_values_and_none_of_its_tables(name):
    kind, options = SAMPLERS[name]
    scheduler = getattr(hfgen, kind)(**options)
    scheduler.set_timesteps(5)
    copied = clone_of(scheduler)
    assert vars(copied).keys() == vars(scheduler).keys()
    for key, value in vars(scheduler).items():
        if isinstance(value, list | dict):
            assert getattr(copied, key) == value and getattr(copied, key) is not value, key
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(copied, key), value) and getattr(copied, key) is not value, key
