"""A run from its folder to its last line: epochs of steps, evaluation, checkpoints, and all ways in which it can end.

A run is a pure function of its settings and data: the parameters and the order come from the seed, the augmentation
from seed and step, and where it stands is one number, the steps done. So a run that is killed and resumed repeats the
steps since its last checkpoint and ends with the same bits.

It ends 0 when all steps are done, and after SIGTERM, once a checkpoint is written; 1 where a loss or gradient is not
finite, with the step and the layer named and the checkpoints before it kept.
"""

import contextlib
import dataclasses
import fcntl
import json
import shutil
import signal
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.train import checkpoints, data, metrics, nonfinite, report, sharding, shown, spatial
from experiments.train import step as steps
from experiments.train.models import MODELS
from experiments.train.report import files
from experiments.train.settings import Settings, as_dict

EVALUATION_BATCH = 500
FILES = (  # what a run writes, and --overwrite removes
    *("settings.json", "classes.json", "images.json", "metrics.jsonl", "metrics_automatic.jsonl", "agreement.jsonl"),
    *("checkpoints", "initial.npz", "final.npz", "final_automatic.npz", "predictions.npz", "report.html"),
)


class NotFinite(RuntimeError):
    """A step's loss or gradient was not finite."""


# The folder.


@contextlib.contextmanager
def claimed(settings: Settings) -> Iterator[Path]:
    """The run's folder, for this process alone; ValueError where a run is in it and neither resumed nor overwritten."""
    folder = Path(settings.out)
    found = [name for name in FILES if (folder / name).exists()]
    if found and not (settings.resume or settings.overwrite):
        raise ValueError(
            f"out={settings.out}: holds a run already ({found[0]}); --resume goes on with it, --overwrite replaces it"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={settings.out}: is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"out={settings.out}: another process is training there") from error
        yield folder


def remove_run(folder: Path) -> None:
    """Removes what a run wrote, and nothing else."""
    for name in FILES:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for picture in folder.glob("*.png"):
        picture.unlink()


# The trainings: one, or with both rules two.


@dataclasses.dataclass
class Training:
    """One training: its compiled step, where it stands, and what it has measured since its last line."""

    rules: str
    step: Any
    state: steps.State
    evaluate: Any  # logits(params, state, images)
    final_evaluate: Any
    lines: metrics.Lines | None = None
    last: dict[str, Any] = dataclasses.field(default_factory=dict)  # its last logged values
    latest: steps.Metrics | None = None  # of the newest step, perhaps not computed yet
    interval_seconds: float = 0.0
    interval_images: int = 0
    seconds: float = 0.0  # in all steps, also those before a resume
    images: int = 0

    def take(self, batch: steps.Batch, wait: bool) -> None:
        """One step; looks whether the one before was finite, and with `wait` whether this one is."""
        before = self.latest
        self.state, self.latest = self.step(self.state, batch)
        if before is not None and not before["fine"]:
            raise NotFinite(self.rules)
        if wait:
            self.check()

    def check(self) -> None:
        """Waits for the newest step; NotFinite where it is not."""
        if self.latest is not None and not self.latest["fine"]:
            raise NotFinite(self.rules)

    def spent(self, seconds: float, images: int) -> None:
        """So many seconds went into steps on so many images."""
        self.interval_seconds += seconds
        self.interval_images += images
        self.seconds += seconds
        self.images += images

    def log(self, step: int, epoch: int) -> dict[str, Any]:
        """Writes the line of a step and begins a new interval."""
        assert self.latest is not None
        assert self.lines is not None
        values = {
            "step": step,
            "epoch": epoch,
            "loss": float(self.latest["loss"]),
            "accuracy": float(self.latest["accuracy"]),
            "images_per_second": self.interval_images / max(self.interval_seconds, 1e-9),
            "learning_rate": float(self.latest["learning_rate"]),
            "seconds": self.seconds,
        }
        self.lines.write(**values)
        self.interval_seconds, self.interval_images, self.last = 0.0, 0, values
        return values


@dataclasses.dataclass(frozen=True)
class Plan:
    """What does not change in a run."""

    settings: Settings
    model: types.ModuleType
    dataset: data.Dataset
    per_epoch: int  # steps
    total: int  # steps
    mirror: np.ndarray  # alternating flip: whether an image is mirrored in even epochs
    layout: sharding.Layout = sharding.ONE_DEVICE

    def batch(self, images: np.ndarray, labels: np.ndarray, epoch: int, place: int) -> steps.Batch:
        """A batch as the step takes it; `place` is its number in the epoch."""
        size = self.settings.batch
        if self.settings.flip == "alternating":
            places = data.order(self.settings.seed, epoch, len(self.dataset.train.labels))[
                place * size : (place + 1) * size
            ]
            mirror = self.mirror[places] ^ bool(epoch % 2)
        else:
            mirror = np.zeros(size, bool)
        return {"images": images, "labels": labels, "mirror": mirror}


def make_plan(settings: Settings, dataset: data.Dataset, layout: sharding.Layout = sharding.ONE_DEVICE) -> Plan:
    """Counts the steps; ValueError where there are none."""
    size = len(dataset.train.labels)
    per_epoch = size // settings.batch
    if per_epoch == 0:
        raise ValueError(f"batch={settings.batch}: there are only {size} training images")
    if settings.crop >= min(dataset.train.images.shape[1:3]):
        raise ValueError(f"crop={settings.crop}: must be less than the images' {dataset.train.images.shape[1:3]}")
    total = min(settings.epochs * per_epoch, settings.steps or settings.epochs * per_epoch)
    mirror = np.random.default_rng(settings.seed).random(size) < 0.5
    model = spatial.divided(MODELS[settings.model], layout, dataset.train.images.shape[1:], settings.width)
    return Plan(settings, model, dataset, per_epoch, total, mirror, layout)


def first_state(plan: Plan) -> steps.State:
    """The state before the first step."""
    settings, train = plan.settings, plan.dataset.train
    key = jax.random.fold_in(jax.random.key(settings.seed), 2**31)  # no step's
    params, state = plan.model.init(key, train.images.shape[1:], len(plan.dataset.classes), width=settings.width)
    if hasattr(plan.model, "prepare"):  # from the training images, those that come first in the order
        places = np.sort(data.order(settings.seed, 0, len(train.labels))[: plan.model.WHITENED_IMAGES])
        images = steps.normalise(jnp.asarray(train.images[places]), plan.dataset.mean, plan.dataset.std)
        state = plan.model.prepare(state, np.asarray(images))
    return steps.init(settings, plan.model, params, state, plan.total)


def make_training(plan: Plan, rules: str, state: steps.State) -> Training:
    """A training at `state`, everything that it runs compiled: no step after this compiles anything."""
    settings, dataset, layout = plan.settings, plan.dataset, plan.layout
    like = lambda images, size: np.zeros((size, *images.shape[1:]), np.uint8)
    arguments = (settings, plan.model, rules)
    step = steps.make_step(*arguments, plan.total, dataset.mean, dataset.std, layout)
    step = layout.jit(step, state, None, donate_argnums=0)
    batch = plan.batch(like(dataset.train.images, settings.batch), np.zeros(settings.batch, np.int32), 0, 0)
    params, model_state = state.evaluated
    images = layout.put_batch(like(dataset.test.images, _evaluation_batch(dataset.test, layout)))

    def evaluation(views: int) -> Any:
        logits = steps.make_logits(*arguments, dataset.mean, dataset.std, views)
        whole = layout.jit(lambda params, *rest: logits(layout.gathered(params), *rest))
        return whole.lower(params, model_state, images).compile()

    evaluate = evaluation(1)
    final = evaluate if settings.views == 1 else evaluation(settings.views)
    return Training(rules, step.lower(state, layout.put_batch(batch)).compile(), state, evaluate, final)


def _evaluation_batch(split: data.Split, layout: sharding.Layout) -> int:
    return layout.rows(min(EVALUATION_BATCH, len(split.labels)))


def test(
    logits: Any, state: steps.State, split: data.Split, layout: sharding.Layout
) -> tuple[float, float, np.ndarray]:
    """(accuracy, mean cross-entropy, logits) on the test images."""
    params, model_state = state.evaluated
    found = []
    for images, _, mask in data.evaluation_batches(split, _evaluation_batch(split, layout)):
        found.append(np.asarray(logits(params, model_state, layout.put_batch(images)))[np.asarray(mask, bool)])
    values = np.concatenate(found)
    wide = values.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    loss = np.log(np.exp(wide).sum(1)) - wide[np.arange(len(wide)), split.labels]
    return float((values.argmax(1) == split.labels).mean()), float(loss.mean()), values


def make_agreement(plan: Plan) -> Any:
    """agreement(state, batch) -> for each layer, |jconv's gradient - jax's| / |jax's| at the same parameters."""

    def agreement(state: steps.State, batch: steps.Batch) -> dict[str, jax.Array]:
        images, labels = steps.prepare(plan.settings, state, batch, plan.dataset.mean, plan.dataset.std)
        params = plan.layout.gathered(state.params)
        ours, theirs = (
            steps.make_gradients(plan.settings, plan.model, rules, plan.layout)(params, state.state, images, labels)[-1]
            for rules in ("jconv", "automatic")
        )
        norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x)))
        apart = jax.tree.map(lambda a, b: norm(a - b) / jnp.maximum(norm(b), 1e-30), ours, theirs)
        return {steps.path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(apart)}

    return agreement


# The run.


class Run:
    """A run that has been set up: `train` it, then `finish`."""

    def __init__(self, plan: Plan, folder: Path, console: Console):
        self.plan, self.folder, settings = plan, folder, plan.settings
        self.names = ("jconv", "automatic") if settings.rules == "both" else (settings.rules,)
        self.shown = shown.Shown(console, plan.total, self.names)
        self.store = checkpoints.Checkpoints(folder / "checkpoints", settings.keep)
        self.asked, self.stopping = False, False  # to stop: this process by a signal; all processes, agreed
        self.accuracy: float | None = None  # the first training's, on the test images, at the end of an epoch
        state = first_state(plan)
        if not (folder / "initial.npz").exists():
            with metrics.naming(folder / "initial.npz"):
                files.save_parameters(folder / "initial.npz", state.params, state.state)
        states = {name: jax.tree.map(jnp.array, state) for name in self.names}
        found, info, problems = self.store.restore(states) if sharding.leads() else (None, {}, [])
        for problem in problems:
            self.shown.tell(f"{problem}; going on from the one before it")
        resumed = sharding.any_process(found is not None)
        states = sharding.sent(states if found is None else found) if resumed else states
        states = plan.layout.put_state(states)
        self.trainings = [make_training(plan, name, states[name]) for name in self.names]
        self.step = int(self.trainings[0].state.step)
        if resumed:
            self.shown.tell(f"going on from step {self.step}")
        for training, file in zip(self.trainings, ("metrics.jsonl", "metrics_automatic.jsonl")):
            training.lines = metrics.Lines(folder / file, self.step)
            told = info.get("trainings", {}).get(training.rules, {})
            training.seconds, training.images = told.get("seconds", 0.0), told.get("images", 0)
            training.last = told.get("last", {})
        self.agreement, self.agreed = None, None
        if len(self.names) > 1:
            batch = plan.layout.put_batch(self._batch_of(0))
            self.agreement = plan.layout.jit(make_agreement(plan)).lower(self.trainings[0].state, batch).compile()
            self.agreed = metrics.Lines(folder / "agreement.jsonl", self.step)
        self.store.warm(plan.layout.local({each.rules: each.state for each in self.trainings}))

    def _batch_of(self, step: int) -> steps.Batch:
        """The batch of any step, read again."""
        epoch, place = divmod(step, self.plan.per_epoch)
        settings, train = self.plan.settings, self.plan.dataset.train
        with contextlib.closing(
            data.Batches(train, settings.batch, seed=settings.seed, epoch=epoch, start=place)
        ) as batches:
            images, labels = next(iter(batches))
        return self.plan.batch(images, labels, epoch, place)

    def stop(self, *_: Any) -> None:
        """Asks the run to end after this step, with a checkpoint: what SIGTERM and Ctrl-C do."""
        self.asked = True

    def train(self) -> bool:
        """All steps that are left; False where it was asked to stop before the last."""
        with self.shown.running(self.step):
            while self.step < self.plan.total:
                try:
                    self._epoch()
                except NotFinite as error:
                    raise NotFinite(self._explained(str(error))) from None
                if self.stopping and self.step < self.plan.total:
                    self._save()
                    self.store.wait()
                    self.shown.tell(f"stopped after step {self.step}, checkpoint written; --resume goes on")
                    return False
        return True

    def _epoch(self) -> None:
        """To the end of the epoch, or to where the run is asked to stop."""
        plan, settings = self.plan, self.plan.settings
        epoch, place = divmod(self.step, plan.per_epoch)
        batches = data.Batches(plan.dataset.train, settings.batch, seed=settings.seed, epoch=epoch, start=place)
        with contextlib.closing(batches):
            mark = time.perf_counter()
            for images, labels in batches:
                batch = plan.layout.put_batch(plan.batch(images, labels, epoch, self.step % plan.per_epoch))
                last = self.step + 1 in (plan.total, (epoch + 1) * plan.per_epoch)
                logged = (self.step + 1) % settings.log_every == 0 or self.step + 1 == plan.total
                due = (self.step + 1) % settings.checkpoint_every == 0
                if logged and self.agreement is not None:
                    agreed = jax.block_until_ready(self.agreement(self.trainings[0].state, batch))
                    mark = time.perf_counter()
                for training in self.trainings:
                    training.take(batch, wait=logged or last or due or len(self.trainings) > 1)
                    mark, before = time.perf_counter(), mark
                    training.spent(mark - before, settings.batch)
                self.stopping = sharding.agreed(self.asked, ask=logged or last)
                self.step += 1
                self.shown.advance(self.step)
                if logged:
                    self._log(epoch, agreed if self.agreement is not None else None)  # pyright: ignore
                if last:
                    break
                if due or self.stopping:
                    self._save()
                if self.stopping:
                    return
                if logged or due:
                    mark = time.perf_counter()
            waited = batches.waited_seconds
        self._evaluate(epoch, waited)
        self._save()

    def _log(self, epoch: int, agreed: dict[str, jax.Array] | None) -> None:
        for number, training in enumerate(self.trainings):
            self.shown.logged(self.step, number, training.log(self.step, epoch))
        if agreed is not None and self.agreed is not None:
            loss, automatic = (training.last["loss"] for training in self.trainings)
            layers = {name: float(value) for name, value in agreed.items()}
            self.agreed.write(step=self.step, loss=loss, loss_automatic=automatic, layers=layers)

    def _evaluate(self, epoch: int, waited: float) -> None:
        """The line of an epoch."""
        for training in self.trainings:
            training.check()
            accuracy, loss, _ = test(training.evaluate, training.state, self.plan.dataset.test, self.plan.layout)
            assert training.lines is not None
            values = {"test_accuracy": accuracy, "test_loss": loss, "waited_seconds": waited}
            training.lines.write(step=self.step, epoch=epoch, **values)
            self.shown.tell(f"epoch {epoch} {training.rules}: test accuracy {accuracy:.2%}, test loss {loss:.4f}")
            if training is self.trainings[0]:
                self.accuracy = accuracy

    def _save(self) -> None:
        """Begins the checkpoint of this step."""
        for training in self.trainings:
            training.check()
        told = {
            each.rules: {"seconds": each.seconds, "images": each.images, "last": each.last} for each in self.trainings
        }
        states = self.plan.layout.local({each.rules: each.state for each in self.trainings})
        if sharding.leads():
            self.store.save(self.step, states, {"test_accuracy": self.accuracy, "trainings": told})
        self.accuracy = None  # measured for this step alone

    def _explained(self, rules: str) -> str:
        training = next(each for each in self.trainings if each.rules == rules)
        done = int(training.state.step)
        dataset = self.plan.dataset
        arguments = (
            self.plan.settings,
            MODELS[self.plan.settings.model],
            rules,
            self.plan.layout.local(training.state),
            self._batch_of(done),
        )
        layer = nonfinite.where(*arguments, dataset.mean, dataset.std)
        self.store.wait()
        last = self.store.steps()
        kept = f"the checkpoint of step {last[-1]} is kept" if last else "no checkpoint was due before"
        return f"step {done + 1} ({rules}): the loss or its gradient is not finite; {layer}; {kept}"

    def finish(self) -> None:
        """Writes the files and lines of the end."""
        dataset = self.plan.dataset
        for number, training in enumerate(self.trainings):
            accuracy, loss, logits = test(training.final_evaluate, training.state, dataset.test, self.plan.layout)
            values = {
                "step": self.step,
                "loss": training.last.get("loss"),
                "test_accuracy": accuracy,
                "test_loss": loss,
                "seconds": training.seconds,
                "images_per_second": training.images / max(training.seconds, 1e-9),
            }
            params, state = self.plan.layout.local(training.state).evaluated
            name = "final.npz" if number == 0 else f"final_{training.rules}.npz"
            with metrics.naming(self.folder / name):
                files.save_parameters(self.folder / name, params, state)
            if number == 0:
                split, moments = dataset.test, {"mean": dataset.mean, "std": dataset.std}
                path = self.folder / files.PREDICTIONS
                with metrics.naming(path):
                    files.save_predictions(path, split.images, split.labels, logits, **moments)
            assert training.lines is not None
            training.lines.write(final=True, **values)

    def close(self) -> None:
        """Waits for the last checkpoint and closes every file."""
        try:
            self.store.close()
        finally:
            for lines in (self.agreed, *(training.lines for training in self.trainings)):
                if lines is not None:
                    lines.close()


@contextlib.contextmanager
def signals(stop: Any) -> Iterator[None]:
    """While the body runs, SIGTERM and Ctrl-C call `stop`."""
    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def run(settings: Settings, console: Console) -> None:
    """Trains as the settings say.

    Raises:
      ValueError: a setting does not fit the data or the folder.
      NotFinite, CheckpointError, OSError: the run could not go on.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            sharding.processes(settings.distributed, settings.coordinator, settings.process, settings.processes)
        )
        devices = 0 if settings.distributed else settings.devices
        layout = sharding.make_layout(devices, settings.fsdp, settings.batch, settings.accumulate, settings.spatial)
        folder = stack.enter_context(claimed(settings) if sharding.leads() else sharding.scratch())
        _run(settings, layout, folder, console if sharding.leads() else Console(quiet=True))


def _run(settings: Settings, layout: sharding.Layout, folder: Path, console: Console) -> None:
    with sharding.leader_first("data"):  # it fills the cache that the others may share
        dataset = data.open_dataset(
            settings.data,
            cache_dir=settings.cache or None,
            strict=settings.strict,
            workers=settings.workers or None,
            image_size=settings.image_size or None,
        )
    plan = make_plan(settings, dataset, layout)
    if settings.overwrite:
        remove_run(folder)
    kept = {"resume": False, "overwrite": False, "distributed": False, "coordinator": "", "process": -1, "processes": 0}
    metrics.write_whole(
        folder / "settings.json", (json.dumps(dict(as_dict(settings)) | kept, indent=1) + "\n").encode()
    )
    metrics.write_whole(folder / "classes.json", (json.dumps(list(dataset.classes)) + "\n").encode())
    images = {"shape": dataset.train.images.shape[1:], "mean": dataset.mean, "std": dataset.std}
    metrics.write_whole(folder / "images.json", (json.dumps(images) + "\n").encode())
    for line in (*dataset.notes, *([data.describe(dataset.problems)] if dataset.problems else [])):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    with contextlib.ExitStack() as stack:
        going = Run(plan, folder, console)
        stack.callback(going.close)
        with signals(going.stop):
            ended = going.train()
        if ended:
            going.finish()
    if ended and sharding.leads():
        console.print(report.table.table(report.read(folder)))
    if ended and sharding.leads() and settings.report:
        console.print(f"report: {report.write(folder)}", markup=False, highlight=False, soft_wrap=True)
