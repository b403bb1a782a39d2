"""A study's folder: where everything lies, what the notebooks open, and how far the work has come."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

import mtvlib.params
from mtvlib import fingerprint
from mtvlib.errors import InputError
from mtvlib.files import read_table, write_text
from mtvlib.params import Params

VIEWER_INDEX = "cases.csv"  # in the folder of the viewers' files: written last, names all of them
_PLAIN = (str, int, float, bool, list, tuple, dict, type(None))


@dataclass(frozen=True)
class Study:
    """One study: its parameters, its folder (`studies/<name>`) and what the steps have written there so far."""

    params: Params
    base: Path = Path()  # what relative paths in the parameters count from
    own: Mapping[str, Any] | None = None  # the notebook's own parameters, such as `fold`

    # --- opening

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """The study in a folder that holds `params.yml`; raises `InputError` where there is none."""
        folder = Path(folder)
        if not (folder / "params.yml").exists():
            raise InputError(
                "is not the folder of a study: it has no params.yml",
                file=folder,
                remedy="name a folder that `mtv run` made, such as studies/demo.",
            )
        params = mtvlib.params.read(folder / "params.yml")
        # A study that was moved or renamed is still the same study: where it lies now wins over what its file says.
        return cls(params.model_copy(update={"name": folder.resolve().name, "studies": str(folder.parent)}))

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any], **own: Any) -> Study:
        """The study that a notebook's parameters describe; call it as `Study.from_notebook(globals())`.

        `own` names parameters that only this notebook has, with their defaults. Where the study's params.yml exists,
        parameters left at the paper's value follow it, unless papermill was given them; any other difference to it, an
        unknown name or a wrong value is an `InputError` (papermill itself would only warn).
        """
        given = _notebook_parameters(namespace)
        values = {name: value for name, value in given.items() if name not in own}
        params = mtvlib.params.from_dict(values)
        base = Path("..") if Path.cwd().name == "notebooks" else Path()
        file = base / params.study_folder / "params.yml"
        if file.exists():
            params = _follow(params, mtvlib.params.read(file), file, _injected(namespace))
        return cls(params, base, {name: given.get(name, default) for name, default in own.items()})

    # --- places

    @property
    def folder(self) -> Path:
        return self.base / self.params.study_folder

    @property
    def source(self) -> Path:
        """The cohort.csv that the study was made from."""
        return self.base / self.params.cohort

    @property
    def volumes(self) -> Path:
        return self.folder / "volumes"

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def viewers(self) -> Path:
        """What the report's slice viewer reads, a file a case; the report takes it along."""
        return self.folder / "viewers"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def fold_folder(self, fold: int) -> Path:
        return self.folder / "folds" / str(fold)

    def prediction_path(self, patient: str) -> Path:
        return self.predictions / f"{patient}.nii.gz"

    def prediction_paths(self, patient: str) -> dict[str, Path]:
        """Label map, probability of a lesion and votes of an ensemble, as `inference.predict_patients` writes them."""
        beside = {name: self.predictions / name / f"{patient}.nii.gz" for name in ("probability", "votes")}
        return {"labels": self.prediction_path(patient)} | beside

    # --- writing

    def begin(self) -> None:
        """Make the study's folder with its params.yml; a folder that is no study is left alone."""
        check_folder(self.folder)
        if not (self.folder / "params.yml").exists():
            mtvlib.params.write(self.params, self.folder / "params.yml")

    def write_cohort(self, cohort: pd.DataFrame) -> None:
        write_text(self.folder / "cohort.csv", cohort.to_csv(index=False))

    def say(self, step: str) -> Callable[[str], None]:
        """A function that appends a line to the step's log, which `mtv run` shows while the step runs."""
        path = self.logs / f"{step}.log"
        path.parent.mkdir(parents=True, exist_ok=True)

        def append(line: str) -> None:
            with open(path, "a", encoding="utf-8") as log:
                log.write(line.replace("\n", " ") + "\n")

        return append

    # --- what is there

    @cached_property
    def cohort(self) -> pd.DataFrame:
        """cohort.csv with `fold` and `split`; one row a patient, excluded ones too."""
        return _read_table(self.folder / "cohort.csv", "1_cohort")

    @cached_property
    def patients(self) -> pd.DataFrame:
        return _read_table(self.results / "patients.csv", "the evaluation")

    @cached_property
    def lesions(self) -> pd.DataFrame:
        return _read_table(self.results / "lesions.csv", "the evaluation")

    @cached_property
    def summary(self) -> dict[str, Any]:
        path = self.results / "summary.json"
        if not path.exists():
            raise _not_yet(path, "the evaluation")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # not JSON, not UTF-8
            raise InputError("is damaged", file=path, remedy="delete it and run the study again.") from None

    @cached_property
    def paper(self) -> dict[str, Any]:
        """The paper's own values, with the same keys as `summary`."""
        return json.loads((resources.files("mtvlib") / "data" / "paper_results.json").read_text(encoding="utf-8"))

    @property
    def synthetic(self) -> bool:
        """Whether any patient is a phantom: then figures verify the software and claim no clinical accuracy."""
        return "synthetic" in self.cohort and bool((pd.to_numeric(self.cohort["synthetic"]) == 1).any())

    def origin(self, patients: Sequence[str]) -> dict[str, Any]:
        """Where the data of these patients come from: number by site, and whether any is synthetic."""
        rows = self.cohort[self.cohort["patient"].isin(patients)]
        sites = {str(site): int(n) for site, n in rows["site"].value_counts().sort_index().items()}
        return {"sites": sites, "synthetic": self.synthetic}

    def history(self, fold: int) -> pd.DataFrame:
        return _read_table(self.fold_folder(fold) / "history.csv", f"2_train_fold, fold {fold}")

    def basis(self, modules: Sequence[str], patients: Sequence[str]) -> str:
        """Hash of code and prepared images: what is made from the same basis with the same parameters is the same."""
        images = _read_table(self.volumes / "prepared.csv", "1_cohort").fillna("").set_index("patient")
        lines = [f"{patient} {' '.join(images.loc[patient, ['pet', 'ct', 'reference']])}" for patient in patients]
        return fingerprint.of_modules(modules, *lines)

    def training_basis(self, patients: Sequence[str]) -> str:
        """`basis` of a fold's training on these patients."""
        return self.basis(["mtvlib.training", "mtvlib.prepare"], patients)

    def patients_of(self, split: str) -> list[str]:
        return self.cohort.loc[self.cohort["split"] == split, "patient"].tolist()


def check_folder(folder: Path) -> None:
    """Raise `InputError` if the place of a study's folder is taken by something else."""
    if folder.exists() and not folder.is_dir():
        raise InputError("is in the way of the study's folder", file=folder, remedy="move it, or change `name`.")
    if folder.exists() and not (folder / "params.yml").exists() and any(folder.glob("[!.]*")):
        raise InputError(
            "exists and is not a study: it has no params.yml", file=folder, remedy="move it away, or change `name`."
        )


def _read_table(path: Path, step: str) -> pd.DataFrame:
    if not path.exists():
        raise _not_yet(path, step)
    return read_table(path)


def _not_yet(path: Path, step: str) -> InputError:
    return InputError(
        f"is not there yet: {step} writes it",
        file=path,
        remedy="run that step first, or the whole study with `mtv run`.",
    )


def _follow(mine: Params, theirs: Params, file: Path, given: Collection[str]) -> Params:
    """The study's own parameters; `InputError` where the notebook's are neither these nor a default not `given`."""
    defaults, here, there = Params().model_dump(), mine.model_dump(), theirs.model_dump()
    place = ("name", "studies")
    clashes = [
        f"{name} is {here[name]!r} here, {there[name]!r} there"
        for name in here
        if name not in place and here[name] != there[name] and (name in given or here[name] != defaults[name])
    ]
    if clashes:
        raise InputError(
            "the study has other parameters: " + "; ".join(clashes),
            file=file,
            remedy="use another `name`, or change the study's parameter file and `mtv run` it.",
        )
    return theirs.model_copy(update={name: here[name] for name in place})


def _notebook_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Variables that the notebook's cells of plain assignments set: its own parameters and papermill's."""
    cells = namespace.get("In")
    if not isinstance(cells, list):  # not a notebook: every plain variable counts
        names = [name for name, value in namespace.items() if isinstance(value, _PLAIN) and not name.startswith("_")]
    else:
        names = [name for cell in cells for name in _assigned(cell)]
    return {name: namespace[name] for name in dict.fromkeys(names) if name in namespace}


def _injected(namespace: Mapping[str, Any]) -> set[str]:
    """Names that papermill was given (`-p`, `-f`): it sets them in a cell that begins with this comment."""
    cells = namespace.get("In")
    cells = cells if isinstance(cells, list) else []
    return {name for cell in cells if cell.startswith("# Parameters") for name in _assigned(cell)}


def _assigned(cell: str) -> list[str]:
    try:
        lines = ast.parse(cell).body
    except SyntaxError:  # a magic
        return []
    plain = all(isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name) for line in lines)
    return [line.targets[0].id for line in lines] if plain else []  # type: ignore[attr-defined]
