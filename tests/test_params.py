import pytest
import yaml

from mtvlib import params as room
from mtvlib.errors import InputError
from mtvlib.params import Params, from_dict, read, write


def test_defaults_are_the_papers_protocol():
    """Paper, Methods: every number it states about the method."""
    paper = Params()
    assert (paper.spacing_mm, paper.crop_shape, paper.patch_shape) == (2.5, (128, 128), (128, 128, 32))
    assert paper.ct_window_hu == (-150, 150)
    assert 1 - paper.patch_stride / paper.patch_shape[2] == 0.75
    assert (paper.folds, paper.validation_fraction, paper.epochs, paper.patience) == (5, 0.16, 200, 30)
    assert (paper.batch_size, paper.optimizer, paper.attention) == (16, "adadelta", True)
    assert (paper.min_roi_ml, paper.outlier_percentile, paper.min_followup_months) == (0.1, 99, 6)


def test_paper_yml_is_the_defaults(project):
    assert read(project / "params" / "paper.yml") == Params()


def test_every_shipped_parameter_file_is_valid(project):
    files = sorted((project / "params").glob("*.yml"))
    assert {"paper.yml", "demo.yml", "sts.yml"} <= {file.name for file in files}
    for file in files:
        assert read(file).name == file.stem


def test_every_parameter_says_unit_and_source():
    for name, field in Params.model_fields.items():
        assert field.description, name
        assert "choice" in field.description or "Paper" in field.description or "MXNet" in field.description, name


def test_every_parameter_belongs_to_one_step():
    parts = [
        room.STUDY,
        room.IMAGES,
        room.NORMALIZATION,
        room.PATCHES,
        room.NETWORK,
        room.FOLDS,
        room.TRAINING,
        room.STOPPING,
        room.SHARING,
        room.EVALUATION,
    ]
    names = [name for part in parts for name in part]
    assert sorted(names) == sorted(Params.model_fields)


def test_written_parameters_read_back_the_same(tmp_path):
    params = Params(
        name="x", adadelta_eps=1e-7, filters=[4, 8], patch_shape=(128, 128, 16), steps_per_epoch=3, attention_heads=2
    )
    write(params, tmp_path / "params.yml")
    assert read(tmp_path / "params.yml") == params
    plain = yaml.safe_load((tmp_path / "params.yml").read_text())
    assert isinstance(plain["adadelta_eps"], float)  # YAML reads 1e-07 as text, 1.0e-07 as a number


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown parameter 'epoch', did you mean 'epochs'"),
        ({"spacing": 2}, "did you mean 'spacing_mm'"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"batch_size": "many"}, "batch_size = 'many'"),
        ({"optimizer": "sgd"}, "optimizer = 'sgd'"),
        ({"patch_shape": [128, 128, 30]}, "divisible by 16"),
        ({"patch_shape": [64, 64, 32]}, "must cover crop_shape"),
        ({"patch_stride": 33}, "leaves gaps"),
        ({"attention_heads": 7}, "must divide"),
        ({"ct_window_hu": [150, -150]}, "must rise"),
        ({"channels": ["ct"]}, "must name pet once"),
        ({"validation_fraction": 0.9}, "leaves nobody to train"),
        ({"name": "../up"}, "name = '../up'"),
    ],
)
def test_a_wrong_parameter_is_named(values, message):
    with pytest.raises(InputError, match="parameters: ") as error:
        from_dict(values)
    assert message in str(error.value)


def test_all_wrong_parameters_are_listed_at_once():
    with pytest.raises(InputError) as error:
        from_dict({"epoch": 3, "batch_size": 0, "folds": 1})
    assert all(name in str(error.value) for name in ("epoch", "batch_size", "folds"))


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1", "is not YAML"), ("- a\n- b", "must be a list of"), ("", "must be")]
)
def test_a_file_that_is_no_parameter_file_is_named(tmp_path, text, message):
    (tmp_path / "x.yml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path / "x.yml")
    assert "x.yml" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such parameter file"):
        read(tmp_path / "none.yml")
