"""The study's parameters: typed, checked, each with its unit, its default (the paper's) and where it comes from.

A study is one flat YAML file (`params/*.yml`); what it leaves out takes the default, and the defaults are the paper's
protocol. The same names are the papermill parameters of the notebooks. `Paper` in a description means Nikulin et al.
2023; `choice` marks what the paper does not state and this project decided.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mtvlib.errors import InputError
from mtvlib.files import write_text


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):  # Python takes them for 1 and 0
        raise ValueError("must be a number, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_no_boolean)]
Float = Annotated[float, BeforeValidator(_no_boolean)]
Positive = Annotated[Int, Field(gt=0)]
PositiveFloat = Annotated[Float, Field(gt=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]


class Params(BaseModel):
    """All parameters of one study. Unknown names and wrong values are refused, with the nearest known name."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    # --- study
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = Field(
        "paper", description="name of the study and of its folder; choice"
    )
    cohort: str = Field("cohort/cohort.csv", description="path of cohort.csv; choice")
    studies: str = Field("studies", description="folder that holds the studies' folders; choice")
    seed: Int = Field(2023, ge=0, description="seed of folds, weights, sampling and bootstrap; choice")

    weights_licence: str = Field(
        "not stated: ask those whose patients the network learnt from",
        description="licence of the trained weights, written into model.json; choice",
    )

    # --- images
    channels: list[Literal["pet", "ct"]] = Field(["pet", "ct"], description="network input; Paper, Methods")
    spacing_mm: PositiveFloat = Field(2.5, description="isotropic voxel side, mm; Paper, Methods")
    crop_shape: tuple[Positive, Positive] = Field((128, 128), description="transaxial crop, voxels; Paper, Methods")
    axial_mm: PositiveFloat = Field(
        350.0, description="longest axial field kept, mm from the vertex down; choice (Paper: variable, mean 33 cm)"
    )
    ct_window_hu: tuple[Float, Float] = Field((-150.0, 150.0), description="CT window, HU, onto [0, 1]; Paper, Methods")
    pet_normalization: Literal["minmax", "window"] = Field(
        "minmax",
        description="PET onto [0, 1] by its own minimum and maximum, or by pet_window_suv; Paper read literally",
    )
    pet_window_suv: tuple[Float, Float] = Field(
        (0.0, 25.0), description="PET window, SUV, if pet_normalization is window; choice"
    )

    # --- patches
    patch_shape: tuple[Positive, Positive, Positive] = Field(
        (128, 128, 32), description="patch, voxels (x, y, z); Paper, Methods"
    )
    patch_stride: Positive = Field(8, description="axial step of patches, voxels (75 % overlap); Paper, Methods")

    # --- network
    filters: list[Positive] = Field(
        [16, 32, 64, 128, 256], min_length=2, description="channels of each level; choice (Paper: Supplement)"
    )
    units_per_level: Positive | list[Positive] = Field(
        2,
        description="residual units of each level of the encoder: one number, or one a level ([1, 3, 4, 6, 6] is "
        "nnU-Net's residual encoder, deeper where voxels are coarse and units cheap); choice",
    )
    attention: bool = Field(True, description="multi-head self-attention at the bottom; Paper, Methods")
    attention_heads: Positive = Field(8, description="heads of the self-attention; choice")

    # --- training
    folds: Annotated[Int, Field(ge=2)] = Field(5, description="folds of the cross-validation; Paper, Methods")
    split_by: Literal["patient", "site"] = Field(
        "patient",
        description="what a fold tests: patients of all sites, or one whole site (folds: as many as sites); "
        "choice (Paper: patient)",
    )
    validation_fraction: Annotated[Float, Field(gt=0, lt=1)] = Field(
        0.16, description="share of the main cohort that validates each fold; Paper, Methods"
    )
    epochs: Positive = Field(200, description="most epochs; Paper, Methods")
    patience: Positive = Field(30, description="epochs without a better soft DSC before the stop; Paper, Methods")
    batch_size: Positive = Field(16, description="patches of a training step; Paper, Methods")
    steps_per_epoch: Positive | None = Field(
        None, description="training steps of an epoch; null: every patch once; Paper (implied by 9535 patches)"
    )
    foreground_share: Fraction | None = Field(
        None, description="share of patches that hold a lesion; null: as they come; choice (Paper: all patches)"
    )
    flip: bool = Field(False, description="mirror half of the patches left to right; choice (Paper: no augmentation)")
    augment_share: Fraction = Field(
        0.3, description="share of the patches that each augmentation below changes; choice (Paper: no augmentation)"
    )
    augment_rotation_deg: Annotated[Float, Field(ge=0, le=90)] = Field(
        0.0,
        description="largest rotation about the body's axis, degrees: heads are turned in the mask, and a patch is too "
        "thin to be tilted; choice (Paper: none)",
    )
    augment_zoom: Annotated[Float, Field(ge=0, lt=1)] = Field(
        0.0, description="largest change of size, share: people are large and small; choice (Paper: none)"
    )
    augment_elastic_mm: Annotated[Float, Field(ge=0, le=5)] = Field(
        0.0,
        description="standard deviation of a smooth deformation, mm (more than 5 would fold): necks bend and anatomies "
        "differ; choice (Paper: none)",
    )
    augment_misalignment_mm: Annotated[Float, Field(ge=0)] = Field(
        0.0,
        description="largest shift of the CT against the PET along each axis, mm: patients move between the two; "
        "choice (Paper: none)",
    )
    augment_suv_scatter: Annotated[Float, Field(ge=0)] = Field(
        0.0,
        description="standard deviation of the logarithm of a factor on the normalised PET: calibration and time of "
        "uptake scatter by about 10 %; choice (Paper: none)",
    )
    augment_noise: Annotated[Float, Field(ge=0)] = Field(
        0.0,
        description="largest standard deviation of added noise, share of the normalised range: doses and "
        "reconstructions differ; choice (Paper: none)",
    )
    augment_blur_mm: Annotated[Float, Field(ge=0)] = Field(
        0.0,
        description="largest full width at half maximum by which the PET is blurred, mm: scanners resolve 4-8 mm; "
        "choice (Paper: none)",
    )
    augment_low_resolution: Annotated[Float, Field(ge=1)] = Field(
        1.0,
        description="largest factor by which voxels are made coarser before they are interpolated again, 1: "
        "none: sites store other voxels; choice (Paper: none)",
    )
    ema: Annotated[Float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="decay of a running mean of the weights, validated and kept in their place; null: none; choice",
    )
    optimizer: Literal["adadelta", "adamw"] = Field("adadelta", description="optimiser; Paper, Methods")
    warmup_epochs: Annotated[Int, Field(ge=0)] = Field(
        0,
        description="epochs in which the learning rate rises step by step to its value: AdamW's first steps are "
        "large while its averages are young; choice",
    )
    gradient_clip: PositiveFloat | None = Field(
        None,
        description="largest norm of a step's gradient, longer ones are shortened to it: one odd batch then cannot "
        "undo an epoch; null: none; choice",
    )
    learning_rate: PositiveFloat = Field(1.0, description="factor of the update (MXNet's Adadelta has none: 1); choice")
    learning_rate_power: Annotated[Float, Field(gt=0)] | None = Field(
        None,
        description="the learning rate falls as (1 - epochs done / epochs) to this power; null: constant; choice",
    )
    adadelta_rho: Annotated[Float, Field(gt=0, lt=1)] = Field(0.9, description="Adadelta's decay; MXNet's default")
    adadelta_eps: PositiveFloat = Field(1e-5, description="Adadelta's epsilon; MXNet's default")
    weight_decay: Annotated[Float, Field(ge=0)] = Field(0.0, description="weight decay; MXNet's default")
    loss: Literal["dice_cross_entropy", "dice", "cross_entropy"] = Field(
        "dice_cross_entropy", description="what training lowers; Paper, Methods"
    )
    dice_smooth: PositiveFloat = Field(1e-5, description="smoothing of the Dice loss, voxels; choice")
    dice_background: bool = Field(False, description="background counts in the Dice loss; choice")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the network runs; choice")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="arithmetic of training; choice")
    compile: bool = Field(
        False,
        description="torch.compile the network, on CUDA with CUDA graphs: pays where compiling (minutes) is short "
        "beside the training; choice",
    )
    accumulate: Positive = Field(
        1,
        description="parts into which a step's batch is cut to save memory: the same step but for rounding, a third "
        "slower; choice",
    )
    checkpoint_activations: bool = Field(
        False,
        description="compute convolutions inside residual units twice instead of keeping what they gave, to save "
        "memory: the same step, a quarter slower on a processor; choice",
    )
    devices_per_fold: Positive = Field(
        1,
        description="devices that train one fold together, each with its part of every batch: graphics cards, or "
        "processes of `threads` threads on a processor; the same steps but for rounding; choice",
    )
    volumes_gb: Annotated[Float, Field(ge=0)] | None = Field(
        None,
        description="most memory of the computer, GB, for a fold's prepared volumes, the rest is read from a file "
        "while it trains; null: 70 % of what is free; changes no number; choice",
    )
    threads: Positive = Field(
        2, description="processor threads of a step (part of what makes a run repeatable); choice"
    )

    # --- prediction
    test_time_flip: bool = Field(
        False,
        description="mean of the prediction and that of the left-right mirrored image: two looks err less than one, "
        "for twice the time; choice (Paper: no)",
    )

    # --- evaluation
    min_roi_ml: Annotated[Float, Field(ge=0)] = Field(0.1, description="smallest ROI kept, ml; Paper, Methods")
    connectivity: Literal[6, 18, 26] = Field(26, description="voxel neighbours that make one ROI; choice")
    lesion_coverage: Fraction = Field(0.5, description="covered share that makes a lesion found; Paper, Methods")
    outlier_percentile: Annotated[Float, Field(gt=0, le=100)] = Field(
        99.0, description="TTB differences above it are left out of the fit, %; Paper, Methods"
    )
    min_followup_months: Annotated[Float, Field(ge=0)] = Field(
        6.0, description="least follow-up for the survival analysis, months; Paper, Methods"
    )
    bootstrap_resamples: Annotated[Int, Field(ge=100)] = Field(
        2000, description="resamples of every 95 % interval; choice"
    )
    landmark_months: Annotated[list[PositiveFloat], Field(min_length=1)] = Field(
        [12.0, 24.0, 36.0, 60.0], description="times at which survival is looked at, months; choice"
    )
    horizon_months: PositiveFloat = Field(
        24.0, description="time of calibration, discordance and non-inferiority, months; choice"
    )
    noninferiority_margin: Annotated[Float, Field(gt=0, lt=0.5)] = Field(
        0.05, description="largest loss of C or AUC that is tolerated; choice (5 points, as Kovacs et al. 2026)"
    )

    # --- report
    show_faces: bool = Field(
        False,
        description="viewers show real patients' faces, from which they could be known, not cut away; choice",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Params:
        factor = 2 ** (len(self.filters) - 1)
        if any(side % factor for side in self.patch_shape):
            raise ValueError(
                f"patch_shape {list(self.patch_shape)} must be divisible by {factor} ({len(self.filters) - 1} poolings)"
            )
        if tuple(self.patch_shape[:2]) != tuple(self.crop_shape):
            raise ValueError(
                f"patch_shape {list(self.patch_shape)} must cover crop_shape {list(self.crop_shape)} in plane"
            )
        if self.patch_stride > self.patch_shape[2]:
            raise ValueError(f"patch_stride {self.patch_stride} leaves gaps between patches of {self.patch_shape[2]}")
        if isinstance(self.units_per_level, list) and len(self.units_per_level) != len(self.filters):
            raise ValueError(f"units_per_level {self.units_per_level} must name one number for each of {self.filters}")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate {self.accumulate} cuts a batch_size of {self.batch_size} into empty parts")
        if self.devices_per_fold > self.batch_size:
            raise ValueError(f"devices_per_fold {self.devices_per_fold} share a batch_size of {self.batch_size}")
        if self.attention and self.filters[-1] % self.attention_heads:
            raise ValueError(f"attention_heads {self.attention_heads} must divide the last of filters {self.filters}")
        if self.validation_fraction + 1 / self.folds >= 1:
            raise ValueError(f"validation_fraction {self.validation_fraction} leaves nobody to train on")
        for name in ("ct_window_hu", "pet_window_suv"):
            low, high = getattr(self, name)
            if not low < high:
                raise ValueError(f"{name} [{low}, {high}] must rise")
        if len(set(self.channels)) != len(self.channels) or "pet" not in self.channels:
            raise ValueError(f"channels {self.channels} must name pet once, and ct at most once")
        return self

    @property
    def study_folder(self) -> Path:
        return Path(self.studies) / self.name

    @property
    def augmentations(self) -> list[str]:
        """What is done to training patches, in words; empty for the paper."""
        kinds = {
            "mirroring": self.flip,
            "rotation": self.augment_rotation_deg,
            "zoom": self.augment_zoom,
            "elastic deformation": self.augment_elastic_mm,
            "misalignment of the CT": self.augment_misalignment_mm,
            "scatter of the SUV": self.augment_suv_scatter,
            "noise": self.augment_noise,
            "blur of the PET": self.augment_blur_mm,
            "coarser voxels": self.augment_low_resolution - 1,
        }
        return [name for name, on in kinds.items() if on and (name == "mirroring" or self.augment_share)]

    def part(self, names: Iterable[str]) -> dict[str, Any]:
        """These parameters as plain JSON values, for instance `params.part(IMAGES)`."""
        values = self.model_dump(mode="json")
        return {name: values[name] for name in names}


# Which step a parameter matters to: a step is redone, and a checkpoint or model refused, only when its own change.
STUDY = ("name", "cohort", "studies", "seed", "device", "volumes_gb", "threads", "checkpoint_activations")
IMAGES = ("channels", "spacing_mm", "crop_shape", "axial_mm")
NORMALIZATION = ("ct_window_hu", "pet_normalization", "pet_window_suv")
PATCHES = ("patch_shape", "patch_stride")
NETWORK = ("filters", "units_per_level", "attention", "attention_heads")
FOLDS = ("folds", "split_by", "validation_fraction")
AUGMENTATION = (
    "augment_share",
    "augment_rotation_deg",
    "augment_zoom",
    "augment_elastic_mm",
    "augment_misalignment_mm",
    "augment_suv_scatter",
    "augment_noise",
    "augment_blur_mm",
    "augment_low_resolution",
)
TRAINING = (
    "batch_size",
    "steps_per_epoch",
    "foreground_share",
    "flip",
    *AUGMENTATION,
    "ema",
    "optimizer",
    "learning_rate",
    "warmup_epochs",
    "gradient_clip",
    "learning_rate_power",
    "adadelta_rho",
    "adadelta_eps",
    "weight_decay",
    "loss",
    "dice_smooth",
    "dice_background",
    "precision",
    "compile",
    "accumulate",
    "devices_per_fold",
)
PREDICTION = ("test_time_flip",)
STOPPING = ("epochs", "patience")
SHARING = ("weights_licence",)
REPORT = ("show_faces",)
EVALUATION = (
    "min_roi_ml",
    "connectivity",
    "lesion_coverage",
    "outlier_percentile",
    "min_followup_months",
    "bootstrap_resamples",
    "landmark_months",
    "horizon_months",
    "noninferiority_margin",
)


def from_dict(values: dict[str, Any], *, file: str | Path | None = None) -> Params:
    """Checked parameters from a mapping; raises one `InputError` that lists everything wrong with it."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        problems = [_say(problem) for problem in error.errors()]
        raise InputError(
            "parameters: " + "; ".join(problems), file=file, remedy="correct these; `mtvlib/params.py` lists all."
        ) from None


def _say(problem: Any) -> str:
    first, *inside = problem["loc"] or ("",)
    # Of a parameter that may be of two kinds, pydantic names the kind that it tried as well.
    name = ".".join(str(part) for part in (first, *inside) if part is first or isinstance(part, int))
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Params.model_fields, n=1, cutoff=0.5)
        hint = f", did you mean '{near[0]}'?" if near else ""
        return f"unknown parameter '{name}'{hint} (found: {problem['input']!r})"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name} = {problem['input']!r}: {message}" if name else message


def read(path: str | Path) -> Params:
    """Read a study's YAML file. Raises `InputError` naming the file and every wrong or unknown parameter."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        lines, values = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except FileNotFoundError:
        raise InputError("there is no such parameter file", file=path, remedy="see params/ for examples.") from None
    except OSError as error:  # a folder, no permission
        raise InputError(
            f"cannot be read: {error.strerror or error}",
            file=path,
            remedy="name the study's parameter file, such as params/demo.yml.",
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or no number or date
        raise InputError(f"is not YAML: {' '.join(str(error).split())}", file=path, remedy="correct it.") from None
    if not isinstance(values, dict):
        raise InputError("must be a list of `name: value` lines", file=path, value=type(values).__name__)
    _refuse_repeated(lines, path)
    return from_dict(values, file=path)


def _refuse_repeated(lines: yaml.Node, path: Path) -> None:
    """Raise `InputError` if a name comes twice: YAML would silently take the last one."""
    at: dict[str, list[int]] = {}
    for name, _ in lines.value:
        at.setdefault(name.value, []).append(name.start_mark.line + 1)
    repeated = [f"{name} in lines {', '.join(map(str, where))}" for name, where in at.items() if len(where) > 1]
    if repeated:
        raise InputError("parameters that are given twice", file=path, value="; ".join(repeated), remedy="keep one.")


def write(params: Params, path: str | Path) -> None:
    """Write every parameter, resolved, with its meaning beside it (atomic)."""
    lines = []
    for name, value in params.model_dump(mode="json").items():
        text = yaml.safe_dump([value], default_flow_style=True, width=1000).strip()[1:-1]
        lines.append(f"{name}: {text}  # {Params.model_fields[name].description}")
    write_text(path, "\n".join(lines) + "\n")
