"""Every setting of a run, its default, its bounds, and where it comes from.

The command line, a TOML file and a finished run's settings.json all speak of the fields of Settings, and `resolve`
puts them together: what the command line says wins over the file, the file over the run that is resumed, that over
the defaults.
"""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.train.models import MODELS

RULES = ("jconv", "automatic", "both")
LEARNING_RATES = {"sgd": 0.05, "adamw": 1e-3, "lion": 3e-4, "muon": 0.02}  # where none is given
SCHEDULES = ("triangular", "one_cycle", "cosine", "constant")
AVERAGES = ("none", "ema", "lookahead")
FLIPS = ("none", "random", "alternating")
DTYPES = ("float32", "bfloat16")


def _setting(
    default: Any,
    text: str,
    *,
    choices: tuple[Any, ...] = (),
    low: float | None = None,
    high: float | None = None,
    changes: bool = True,
) -> Any:
    """A field; `changes` says that a run resumed with another value would not end as it began."""
    metadata = {"help": text, "choices": choices, "low": low, "high": high, "changes": changes}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A run. Every value is checked when one is made; ValueError names the setting, the value and what was expected."""

    data: str = _setting("", "The folder or file of images: an image folder, IDX, CIFAR's binary version or .npz.")
    out: str = _setting("", "The folder that the run writes.", changes=False)
    model: str = _setting("lenet", "The network.", choices=tuple(MODELS))
    width: float = _setting(1.0, "Multiplies every number of channels.", low=0.01, high=100)
    optimizer: str = _setting("sgd", "The optimizer; sgd has Nesterov momentum.", choices=tuple(LEARNING_RATES))
    epochs: int = _setting(10, "Times that every training image is seen.", low=1)
    steps: int = _setting(0, "End after so many steps, whatever epochs says; 0: do not.", low=0)
    batch: int = _setting(128, "Images a step.", low=1)
    seed: int = _setting(0, "Draws the parameters, the order and the augmentation.", low=0, high=2**31 - 1)
    rules: str = _setting(
        "jconv", "Who derives the layers: jconv's rules, jax itself, or both side by side.", choices=RULES
    )
    learning_rate: float = _setting(0.0, "The largest learning rate; 0: the optimizer's own.", low=0)
    schedule: str = _setting("cosine", "How the learning rate goes.", choices=SCHEDULES)
    warmup: float = _setting(0.1, "Share of the steps in which the learning rate rises.", low=0, high=0.99)
    first_rate: float = _setting(0.0, "The first learning rate, as a share of the largest.", low=0, high=1)
    last_rate: float = _setting(0.0, "The last learning rate, as a share of the largest.", low=0, high=1)
    momentum: float = _setting(0.9, "Momentum of sgd.", low=0, high=0.9999)
    weight_decay: float = _setting(5e-4, "Weight decay of all but biases and normalisations.", low=0)
    bias_rate: float = _setting(1.0, "Multiplies the learning rate of normalisations' biases.", low=0)
    clip: float = _setting(0.0, "Largest norm of the whole gradient; 0: any.", low=0)
    average: str = _setting("none", "The average of the parameters that is evaluated.", choices=AVERAGES)
    average_decay: float = _setting(0.999, "Share of the average that an ema keeps at each step.", low=0, high=0.999999)
    label_smoothing: float = _setting(0.0, "Share of each label given to all classes alike.", low=0, high=0.999)
    dtype: str = _setting("float32", "Of the computation; parameters are float32.", choices=DTYPES)
    accumulate: int = _setting(1, "Parts that a batch is computed in, their gradients summed.", low=1)
    remat: bool = _setting(False, "Compute the inside of every block again in the backward pass, to save memory.")
    flip: str = _setting("none", "Left and right changed: at random, or every other epoch.", choices=FLIPS)
    crop: int = _setting(0, "Pixels that an image is moved by at most, its border reflected.", low=0)
    cutout: int = _setting(0, "Side of the square that is cut out of an image; 0: none.", low=0)
    views: int = _setting(
        1, "Views of a test image averaged at the end: 2 mirrored, 6 moved by a pixel too.", choices=(1, 2, 6)
    )
    image_size: int = _setting(0, "Resize images to this height and width; 0: as they are.", low=0)
    strict: bool = _setting(
        False, "Refuse a folder with files that cannot be read, in place of skipping them.", changes=False
    )
    workers: int = _setting(0, "Processes that decode images; 0: one a core.", low=0, changes=False)
    cache: str = _setting("", "Folder of the decoded images; empty: in the user's cache.", changes=False)
    log_every: int = _setting(50, "Steps between two lines of metrics.", low=1)
    checkpoint_every: int = _setting(
        500, "Steps between two checkpoints; there is one an epoch too.", low=1, changes=False
    )
    keep: int = _setting(3, "Last checkpoints that are kept, beside the best.", low=1, changes=False)
    report: bool = _setting(True, "Make the pictures and report.html at the end.", changes=False)
    devices: int = _setting(1, "Devices that share every batch; 0: all there are.", low=0, changes=False)
    fsdp: bool = _setting(False, "Divide the parameters and the optimizer's state among the devices.", changes=False)
    spatial: int = _setting(
        1, "Devices, out of all, that share the height of each image; for large ones.", low=1, changes=False
    )
    distributed: bool = _setting(False, "This process is one of several that share the run.", changes=False)
    coordinator: str = _setting("", "ADDRESS:PORT of the first process; empty: ask the cluster.", changes=False)
    process: int = _setting(-1, "Number of this process, from 0; -1: ask the cluster.", low=-1, changes=False)
    processes: int = _setting(0, "How many processes there are; 0: ask the cluster.", low=0, changes=False)
    resume: bool = _setting(False, "Go on from what is in the folder.", changes=False)
    overwrite: bool = _setting(False, "Replace the run that is in the folder.", changes=False)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if not self.data:
            raise ValueError("data: no folder of images given")
        if not self.out:
            raise ValueError("out: no folder for the run given")
        if self.resume and self.overwrite:
            raise ValueError("overwrite: cannot be with resume")
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate}: must divide the batch of {self.batch}")
        if not self.learning_rate:
            object.__setattr__(self, "learning_rate", LEARNING_RATES[self.optimizer])


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def kind(field: dataclasses.Field) -> type:
    """The type of a setting: str, int, float or bool."""
    return typing.get_type_hints(Settings)[field.name]


def _checked(field: dataclasses.Field, value: Any) -> Any:
    name, wanted = field.name, kind(field)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if wanted is str and isinstance(value, Path):
        value = str(value)
    if type(value) is not wanted:
        names = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
        raise ValueError(f"{name}={value!r}: must be {names[wanted]}, got {type(value).__name__}")
    choices, low, high = (field.metadata[key] for key in ("choices", "low", "high"))
    if choices and value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(str, choices))}")
    # Written so that a NaN is refused too.
    if low is not None and not value >= low:
        raise ValueError(f"{name}={value!r}: must be at least {low:g}")
    if high is not None and not value <= high:
        raise ValueError(f"{name}={value!r}: must be at most {high:g}")
    if wanted is float and value in (float("inf"), float("-inf")):
        raise ValueError(f"{name}={value!r}: must be finite")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """The settings that a TOML file gives, its keys with - or _; ValueError where one is unknown."""
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ValueError(f"config={path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config={path}: {error}") from error
    return {_known(key, str(path)): value for key, value in table.items()}


def _known(key: str, where: str) -> str:
    name = key.replace("-", "_")
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1)
        meant = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(FIELDS)}"
        raise ValueError(f"config={where}: unknown setting {key!r}{meant}")
    return name


def read_run(folder: Path) -> dict[str, Any]:
    """The settings of the run in a folder; empty where there is none."""
    path = folder / "settings.json"
    try:
        return {_known(key, str(path)): value for key, value in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"out={folder}: its settings.json cannot be read ({error})") from error


def resolve(given: Mapping[str, Any], config: Path | None = None) -> Settings:
    """The settings of a run from those of the command line, a TOML file and, with resume, the run in `out`.

    A relative `data` in a TOML file is seen from where the command runs, as on the command line.

    Raises:
      ValueError: a setting is unknown or wrong, or not that of the run to be resumed.
    """
    told: dict[str, Any] = (read_toml(config) if config is not None else {}) | dict(given)
    before: dict[str, Any] = {}
    if told.get("resume") is True and isinstance(told.get("out"), (str, Path)) and str(told["out"]):
        before = read_run(Path(told["out"]))
    own: dict[str, Any] = {"resume": False, "overwrite": False}
    settings = Settings(**(before | own | told))
    if before:
        first: dict[str, Any] = before | own | {"out": settings.out}
        began = Settings(**first)
        for name, field in FIELDS.items():
            old, new = getattr(began, name), getattr(settings, name)
            if field.metadata["changes"] and old != new:
                raise ValueError(
                    f"{name}={new!r}: the run in {settings.out} has {old!r}; resume with that, or overwrite it"
                )
    return settings


def as_dict(settings: Settings) -> Mapping[str, Any]:
    """The settings by name, as settings.json has them."""
    return types.MappingProxyType(dataclasses.asdict(settings))
