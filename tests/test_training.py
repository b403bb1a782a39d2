import math

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.training import peak_of_batch
from mtvlib import network, training
from mtvlib.checkpoints import STATE_FILE, read_state
from mtvlib.errors import InputError, WorkError
from mtvlib.training import soft_dsc_by_class, train_fold, validation_soft_dsc
from tests.tiny_fold import PARAMS, TRAIN, VALIDATION, assert_same_weights, weights


def by_class(score):
    return torch.tensor([torch.nan, score, torch.nan])


def test_training_learns_the_lesions(tmp_path):
    result = train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 25}), 0, tmp_path)
    assert result.best_soft_dsc > 0.3 > 5 * result.history[0].validation_soft_dsc
    assert result.history[-1].train_loss < 0.5 * result.history[0].train_loss


def test_the_mean_of_the_weights_is_what_is_validated_and_kept(tmp_path, monkeypatch):
    validated, means = [], []
    monkeypatch.setattr(training, "soft_dsc_by_class", lambda network, *_: validated.append(network) or by_class(0.5))

    def remember(state):
        means.append({name: value.clone() for name, value in state.mean.state_dict().items()})

    params = PARAMS.model_copy(update={"ema": 0.9, "epochs": 2})
    result = train_fold(TRAIN, VALIDATION, params, 0, tmp_path, report=remember)
    assert all(network is result.mean for network in validated)
    assert all(torch.equal(value, means[0][name]) for name, value in result.best_weights.items())
    assert not torch.equal(means[0]["head.weight"], weights(result)["head.weight"])


def test_mirroring_turns_left_and_right_of_the_chosen_samples_only():
    batch = torch.arange(12.0).view(2, 1, 3, 2, 1)
    mirrored = training.mirror(batch, np.array([False, True]), 2)
    assert torch.equal(mirrored[0], batch[0])
    assert mirrored[1, 0, :, 0, 0].tolist() == [10.0, 8.0, 6.0]


def test_the_optimiser_learns_at_that_rate(tmp_path):
    rates = []
    params = PARAMS.model_copy(update={"learning_rate_power": 1.0})
    train_fold(
        TRAIN, VALIDATION, params, 0, tmp_path, report=lambda one: rates.append(one.optimizer.param_groups[0]["lr"])
    )
    assert rates == [1.0, 0.75, 0.5, 0.25]


def test_the_best_epoch_is_kept_and_training_stops_after_patience(tmp_path, monkeypatch):
    scores = iter([0.3, 0.5, 0.4, 0.5, 0.9])
    monkeypatch.setattr(training, "soft_dsc_by_class", lambda *_: by_class(next(scores)))
    seen = {}

    def remember(state):
        seen[len(state.history)] = {name: value.clone() for name, value in weights(state).items()}

    params = PARAMS.model_copy(update={"epochs": 50, "patience": 2})
    result = train_fold(TRAIN, VALIDATION, params, 0, tmp_path, report=remember)
    assert [len(result.history), result.best_epoch] == [4, 2]  # 0.5 again is no improvement
    assert all(torch.equal(value, seen[2][name]) for name, value in result.best_weights.items())


def test_soft_dsc_is_pooled_over_patients_and_leaves_out_an_absent_class():
    """The network below is sure of primary everywhere: soft DSC = 2 |primary| / (|primary| + all voxels)."""
    network = torch.nn.Module()
    network.config = training.network_config(PARAMS)
    network.forward = lambda x: torch.tensor([0.0, 50.0, 0.0]).view(1, 3, 1, 1, 1).expand(len(x), 3, *x.shape[2:])
    volumes = [(name, x[..., :16], (labels[..., :16] == 1).astype(np.uint8)) for name, x, labels in TRAIN[:3]]
    primary = sum(int(labels.sum()) for _, _, labels in volumes)
    pool = training.patch_pool(volumes, 16, 16)
    expected = 2 * primary / (primary + 3 * 16**3)
    found = soft_dsc_by_class(network, pool, 2)
    assert found.tolist() == pytest.approx([math.nan, expected, math.nan], rel=1e-5, nan_ok=True)
    assert validation_soft_dsc(found) == pytest.approx(expected, rel=1e-5)


def test_validation_without_any_lesion_is_refused(tmp_path):
    empty = [("P1", TRAIN[0][1], np.zeros_like(TRAIN[0][2]))]
    with pytest.raises(InputError, match="no validation patient has a lesion"):
        train_fold(TRAIN, empty, PARAMS, 0, tmp_path)


def test_divergence_stops_the_fold_and_keeps_the_last_good_epoch(tmp_path):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 2}), 0, tmp_path)
    poisoned = [(name, inputs + np.float32(np.nan), labels) for name, inputs, labels in TRAIN]
    with pytest.raises(WorkError, match="diverged in fold 0, epoch 3"):
        train_fold(poisoned, VALIDATION, PARAMS, 0, tmp_path)
    about, tensors = read_state(tmp_path / STATE_FILE)
    assert len(about["history"]) == 2
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_the_patient_whose_image_is_no_number_is_named(tmp_path):
    """One voxel of one patient; the other patients of the batch are not blamed."""
    broken = [(name, inputs.copy(), labels) for name, inputs, labels in TRAIN]
    broken[2][1][0, 8, 8, 10] = np.nan
    with pytest.raises(
        WorkError, match=r"epoch 1, step \d.*; the batch was of .*the images of P2 hold values"
    ) as error:
        train_fold(broken, VALIDATION, PARAMS, 0, tmp_path)
    assert error.value.patient == "P2"


def test_divergence_is_noticed_within_a_few_steps_and_its_first_step_named(tmp_path, monkeypatch):
    """The third step's gradient is no number; that shows at the look after the fifth step, not at the epoch's end."""
    seen, own = [], training.limit_gradient

    def third_breaks(network, longest):
        seen.append(own(network, longest))
        return torch.tensor(math.inf) if len(seen) == 3 else seen[-1]

    monkeypatch.setattr(training, "limit_gradient", third_breaks)
    monkeypatch.setattr(training, "LOOK_BACK", 5)
    params = PARAMS.model_copy(update={"steps_per_epoch": 20})
    with pytest.raises(WorkError, match=r"epoch 1, step 3: .* norm inf; .* the images are sound.*gradient_clip"):
        train_fold(TRAIN, VALIDATION, params, 0, tmp_path)
    assert len(seen) == 5


@pytest.mark.parametrize("steps", [4, 5, 10, 11])
def test_an_epoch_may_end_where_a_look_is_due(tmp_path, monkeypatch, steps):
    monkeypatch.setattr(training, "LOOK_BACK", 5)
    result = train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"steps_per_epoch": steps}), 0, tmp_path)
    assert len(result.history) == PARAMS.epochs


def test_a_loss_beyond_repair_stops_the_fold_though_it_is_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "DIVERGED", 0.1)
    with pytest.raises(WorkError, match="diverged in fold 0, epoch 1, step 1: the loss is 2"):
        train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path)


@pytest.mark.parametrize(
    ("raised", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the graphics card"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "the computer"),
        (MemoryError(), "the computer"),
    ],
)
@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({}, r"set checkpoint_activations to true.*; else raise accumulate \(at most 2\); else lower batch_size"),
        ({"checkpoint_activations": True, "accumulate": 2}, "Remedy: lower batch_size or filters"),
    ],
)
def test_a_want_of_memory_names_the_parameters_to_change(tmp_path, monkeypatch, raised, where, changes, remedy):
    def full(*_):
        raise raised

    monkeypatch.setattr(training, "step_gradient", full)
    params = PARAMS.model_copy(update=changes)
    with pytest.raises(WorkError, match=f"{where} ran out of memory .found: batch_size 2, accumulate .*{remedy}"):
        train_fold(TRAIN, VALIDATION, params, 0, tmp_path)


def test_another_error_of_the_device_is_left_as_it_is(tmp_path, monkeypatch):
    def odd(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(training, "step_gradient", odd)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path)


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"accumulate": 3}])
def test_saving_memory_makes_the_same_steps_but_for_rounding(tmp_path, changes):
    """Where the gradient is nothing but rounding Adam still makes a step, so all weights are compared at once."""
    base = PARAMS.model_copy(update={"epochs": 1, "batch_size": 3, "optimizer": "adamw", "learning_rate": 1e-4})
    usual = train_fold(TRAIN, VALIDATION, base, 0, tmp_path / "usual")
    other = train_fold(TRAIN, VALIDATION, base.model_copy(update=changes), 0, tmp_path / "other")
    assert_same_steps(base, usual, other)


def assert_same_steps(params, usual, other):
    """But for rounding."""
    first, second = usual.history[0], other.history[0]
    assert (second.train_loss, second.gradient_norm) == pytest.approx((first.train_loss, first.gradient_norm), rel=1e-4)
    start = training.start(params, 0, torch.device("cpu")).network.state_dict()
    moved = [torch.cat([(one[name] - start[name]).ravel() for name in start]) for one in map(weights, (usual, other))]
    assert float((moved[1] - moved[0]).norm()) < 0.1 * float(moved[0].norm())


def test_volumes_that_may_take_no_memory_are_read_from_disk_and_train_alike(tmp_path, monkeypatch):
    pools, own = [], training.patch_pool
    monkeypatch.setattr(
        training, "patch_pool", lambda *args, **options: pools.append(own(*args, **options)) or pools[-1]
    )
    params = PARAMS.model_copy(update={"epochs": 1})
    usual = train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "usual")
    assert all(isinstance(one, torch.Tensor) for pool in pools for one in pool.inputs)
    from_disk = train_fold(TRAIN, VALIDATION, params.model_copy(update={"volumes_gb": 0}), 0, tmp_path / "disk")
    assert not any(isinstance(one, torch.Tensor) for pool in pools[2:] for one in (*pool.inputs, *pool.labels))
    assert_same_weights(usual, from_disk)


def test_parts_and_recomputation_need_less_memory(monkeypatch):
    """By following every tensor of a step of 16 patches; weights and optimiser are part of it."""

    def peak(**changes):
        return peak_of_batch(PARAMS.model_copy(update={"batch_size": 16, **changes}))

    whole = peak()
    assert peak(accumulate=4) < 0.4 * whole
    assert peak(checkpoint_activations=True) < 0.95 * whole
    own = network._normalised_conv
    monkeypatch.setattr(network, "_normalised_conv", lambda norm, conv, x, keep=False: own(norm, conv, x, True))
    assert whole < 0.75 * peak()


def test_the_network_is_compiled_where_asked_for(tmp_path, monkeypatch):
    """By PyTorch's own compiler but for its last stage, which would need a minute to write C++."""
    compiled, compiler = [], torch.compile

    def without_inductor(network, **options):
        compiled.append(options)
        return compiler(network, backend="eager", dynamic=False)

    monkeypatch.setattr(torch, "compile", without_inductor)
    params = PARAMS.model_copy(update={"epochs": 1})
    result = train_fold(TRAIN, VALIDATION, params.model_copy(update={"compile": True}), 0, tmp_path / "compiled")
    assert compiled == [{"mode": "default", "dynamic": False}]
    assert_same_steps(params, train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "eager"), result)


def test_history_tells_what_a_watcher_wants_to_know(tmp_path):
    """Rates by hand: a warm-up of 2 epochs and 4 steps an epoch; the last steps of both epochs are 3.5 and 7.5 of 8."""
    params = PARAMS.model_copy(update={"epochs": 2, "warmup_epochs": 2, "foreground_share": 0.5})
    lines = []
    result = train_fold(
        TRAIN, VALIDATION, params, 0, tmp_path, report=training.reporter(tmp_path, params, lines.append)
    )
    table = pd.read_csv(tmp_path / "history.csv")
    assert table.columns.tolist() == [
        "epoch", "train_loss", "validation_soft_dsc", "seconds", "dice_loss", "cross_entropy", "soft_dsc_primary",
        "soft_dsc_nodes", "learning_rate", "gradient_norm", "patches_per_second", "foreground_share",
    ]  # fmt: skip
    assert table["epoch"].tolist() == [1, 2]
    assert table["learning_rate"].tolist() == pytest.approx([3.5 / 8, 7.5 / 8])
    assert (table["dice_loss"] + table["cross_entropy"]).tolist() == pytest.approx(
        table["train_loss"].tolist(), rel=1e-4
    )
    mean = (table["soft_dsc_primary"] + table["soft_dsc_nodes"]) / 2
    assert mean.tolist() == pytest.approx(table["validation_soft_dsc"].tolist(), rel=1e-4)
    assert table["foreground_share"].tolist() == [1, 1]  # every patch of these patients holds a lesion
    assert (table[["gradient_norm", "patches_per_second"]] > 0).all(axis=None)
    assert lines[-1].startswith("epoch 2 of 2, loss ")
    old = training.history_csv([training.Epoch(1, 2.0, 0.5, 3.0)])
    assert old.splitlines()[1] == "1,2,0.5,3,,,,,,,,"
    assert result.history[-1].epoch == 2


def test_patients_are_read_when_they_are_needed(tmp_path):
    read = []

    def one(name):
        read.append(name)
        return TRAIN[int(name[1])]

    lazy = training.Patients(["P0", "P1", "P2", "P3"], one)
    assert (len(lazy), read) == (4, [])
    params = PARAMS.model_copy(update={"epochs": 1})
    result = train_fold(lazy, VALIDATION, params, 0, tmp_path / "lazy")
    assert read == ["P0", "P1", "P2", "P3"]
    assert_same_weights(train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "list"), result)


def test_nobody_to_train_on_is_refused(tmp_path):
    with pytest.raises(InputError, match="0 patients to train"):
        train_fold([], VALIDATION, PARAMS, 0, tmp_path)


def test_cuda_is_refused_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(InputError, match="finds no CUDA device"):
        training.choose_device("cuda")
    assert training.choose_device("auto").type == "cpu"
