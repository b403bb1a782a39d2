import json
import resource

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mtvlib import training
from mtvlib.errors import InputError, WorkError
from mtvlib.params import Params
from mtvlib.training import batches, dice_cross_entropy, read_state, train_fold, validation_soft_dsc

PARAMS = Params(
    crop_shape=(16, 16),
    patch_shape=(16, 16, 16),
    patch_stride=8,
    filters=[4, 4, 8],
    units_per_level=1,
    attention_heads=2,
    epochs=4,
    batch_size=2,
    threads=1,
)


def patient(number):
    """Noise with a bright primary and a less bright node at random places."""
    random = np.random.default_rng(number)
    inputs = random.random((2, 16, 16, 20), dtype=np.float32) * 0.2
    labels = np.zeros((16, 16, 20), np.uint8)
    for label in (1, 2):
        x, y, z = random.integers(0, 11, 3)
        labels[x : x + 4, y : y + 4, z : z + 4] = label
        inputs[:, x : x + 4, y : y + 4, z : z + 4] += 0.8 / label
    return f"P{number}", inputs, labels


TRAIN, VALIDATION = [patient(i) for i in range(4)], [patient(9)]


def weights(result):
    return result.network.state_dict()


def assert_same_weights(one, other):
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())
    assert all(torch.equal(value, other.best_weights[name]) for name, value in one.best_weights.items())


def test_loss_by_hand():
    """Two voxels, three classes, probabilities (.5, .25, .25) everywhere; truth: primary, background.

    Dice with s = 1: primary (2 * .25 + 1) / (.5 + 1 + 1) = .6, nodes (0 + 1) / (.5 + 0 + 1) = 2/3.
    Cross-entropy: -(ln .25 + ln .5) / 2.
    """
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25])).view(1, 3, 1, 1, 1).expand(1, 3, 2, 1, 1)
    labels = torch.tensor([1, 0]).view(1, 2, 1, 1)
    expected = 1 - (0.6 + 2 / 3) / 2 - (np.log(0.25) + np.log(0.5)) / 2
    assert float(dice_cross_entropy(logits, labels, smooth=1.0, background=False)) == pytest.approx(expected, rel=1e-6)


def test_loss_agrees_with_monai():
    losses = pytest.importorskip("monai.losses")
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 5, 6, 7), torch.randint(0, 3, (2, 5, 6, 7))
    theirs = losses.DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1.0, smooth_dr=1.0
    )(logits, labels[:, None])
    ours = dice_cross_entropy(logits, labels, smooth=1.0, background=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_perfect_prediction_has_no_loss():
    labels = torch.randint(0, 3, (1, 4, 4, 4))
    logits = 100.0 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    assert float(dice_cross_entropy(logits, labels, smooth=1.0, background=True)) == pytest.approx(0, abs=1e-5)


def test_adadelta_is_mxnets():
    """MXNet's update by hand: g2 = .9 g2 + .1 g^2; d = sqrt(d2 + e) / sqrt(g2 + e) g; d2 = .9 d2 + .1 d^2; w -= d."""
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    network = torch.nn.Module()
    network.weight = weight
    optimizer = training.make_optimizer(network, Params())
    w, g2, d2, e = 2.0, 0.0, 0.0, 1e-5
    for _ in range(3):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
        g = 2 * w
        g2 = 0.9 * g2 + 0.1 * g * g
        d = (d2 + e) ** 0.5 / (g2 + e) ** 0.5 * g
        d2 = 0.9 * d2 + 0.1 * d * d
        w -= d
    assert weight.item() == pytest.approx(w, rel=1e-6)


def test_an_epoch_takes_every_patch_once_and_depends_on_seed_fold_and_epoch():
    pool = [True] * 21
    order = [patch for batch in batches(pool, PARAMS, fold=1, epoch=3) for patch in batch]
    assert sorted(order) == list(range(21))
    assert batches(pool, PARAMS, 1, 3) == batches(pool, PARAMS, 1, 3)
    assert batches(pool, PARAMS, 1, 3) != batches(pool, PARAMS, 1, 4)
    assert batches(pool, PARAMS, 1, 3) != batches(pool, PARAMS, 2, 3)


def test_steps_per_epoch_is_kept_whatever_the_number_of_patches():
    params = PARAMS.model_copy(update={"steps_per_epoch": 7})
    assert [len(batch) for batch in batches([True] * 5, params, 0, 1)] == [2] * 7


@pytest.mark.parametrize(
    ("with_lesion", "expected"), [([True, False, False, False], 15), ([True] * 4, 20), ([False] * 4, 0)]
)
def test_a_share_of_the_patches_holds_a_lesion_if_there_are_such(with_lesion, expected):
    params = PARAMS.model_copy(update={"steps_per_epoch": 10, "foreground_share": 0.75})
    drawn = [patch for batch in batches(with_lesion, params, 0, 1) for patch in batch]
    assert len(drawn) == 20
    assert sum(with_lesion[patch] for patch in drawn) == expected


def test_training_learns_the_lesions(tmp_path):
    result = train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 25}), 0, tmp_path)
    assert result.best_soft_dsc > 0.3 > 5 * result.history[0].validation_soft_dsc
    assert result.history[-1].train_loss < 0.5 * result.history[0].train_loss


@pytest.mark.parametrize(
    ("killed_after", "extras"),
    [
        (1, {}),
        (2, {"flip": True, "ema": 0.9, "foreground_share": 0.5}),
        (3, {"optimizer": "adamw", "learning_rate": 1e-3, "learning_rate_power": 0.9}),
    ],
)
def test_killed_and_resumed_is_bit_for_bit_the_same(tmp_path, killed_after, extras):
    params = PARAMS.model_copy(update=extras)
    whole = train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "whole")

    class KilledError(Exception):
        pass

    def kill(state):
        if len(state.history) == killed_after:
            raise KilledError

    with pytest.raises(KilledError):
        train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "resumed", report=kill)
    resumed = train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "resumed")
    assert_same_weights(whole, resumed)
    assert [e.validation_soft_dsc for e in whole.history] == [e.validation_soft_dsc for e in resumed.history]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_resume_after_the_best_epoch_keeps_its_weights(tmp_path, monkeypatch, ema):
    scores = iter([0.3, 0.5, 0.4, 0.2])
    monkeypatch.setattr(training, "validation_soft_dsc", lambda *_: next(scores))
    params = PARAMS.model_copy(update={"ema": ema})
    best = train_fold(TRAIN, VALIDATION, params.model_copy(update={"epochs": 2}), 0, tmp_path).best_weights
    train_fold(TRAIN, VALIDATION, params.model_copy(update={"epochs": 3}), 0, tmp_path)  # ends in a worse epoch
    resumed = train_fold(TRAIN, VALIDATION, params, 0, tmp_path)
    assert [len(resumed.history), resumed.best_epoch, resumed.best_soft_dsc] == [4, 2, 0.5]
    assert all(torch.equal(value, resumed.best_weights[name]) for name, value in best.items())
    assert not torch.equal(best["head.weight"], resumed.validated.head.weight)


def test_the_mean_of_the_weights_is_what_is_validated_and_kept(tmp_path, monkeypatch):
    validated, means = [], []
    monkeypatch.setattr(training, "validation_soft_dsc", lambda network, *_: validated.append(network) or 0.5)

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


def test_the_mean_of_the_weights_by_hand():
    """Decay 0.5 from step 8 on ((1 + 8) / (10 + 8)); at step 0 it is 0.1."""
    network, mean = (
        training.build(training.network_config(PARAMS), 1),
        training.build(training.network_config(PARAMS), 2),
    )
    before = mean.head.weight.clone()
    training.update_mean(mean, network, 0.5, step=0)
    torch.testing.assert_close(mean.head.weight, 0.1 * before + 0.9 * network.head.weight)
    before = mean.head.weight.clone()
    training.update_mean(mean, network, 0.5, step=99)
    torch.testing.assert_close(mean.head.weight, 0.5 * before + 0.5 * network.head.weight)


def test_a_finished_fold_can_be_extended(tmp_path):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 2}), 0, tmp_path / "part")
    extended = train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path / "part")
    assert_same_weights(train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path / "whole"), extended)


def test_the_learning_rate_is_constant_or_falls_towards_the_last_epoch():
    falling = PARAMS.model_copy(update={"learning_rate": 0.5, "learning_rate_power": 2.0})
    assert [training.learning_rate(PARAMS, done) for done in range(4)] == [1.0] * 4
    assert [training.learning_rate(falling, done) for done in range(4)] == [0.5, 0.5 * 9 / 16, 0.125, 0.5 / 16]


def test_the_optimiser_learns_at_that_rate(tmp_path):
    rates = []
    params = PARAMS.model_copy(update={"learning_rate_power": 1.0})
    train_fold(
        TRAIN, VALIDATION, params, 0, tmp_path, report=lambda one: rates.append(one.optimizer.param_groups[0]["lr"])
    )
    assert rates == [1.0, 0.75, 0.5, 0.25]


def test_more_epochs_start_anew_where_the_learning_rate_falls_towards_the_last(tmp_path):
    falling, lines = PARAMS.model_copy(update={"learning_rate_power": 1.0}), []
    train_fold(TRAIN, VALIDATION, falling.model_copy(update={"epochs": 2}), 0, tmp_path)
    train_fold(TRAIN, VALIDATION, falling, 0, tmp_path, say=lines.append)
    assert "epochs was 2, is 4" in lines[0]


def test_the_best_epoch_is_kept_and_training_stops_after_patience(tmp_path, monkeypatch):
    scores = iter([0.3, 0.5, 0.4, 0.5, 0.9])
    monkeypatch.setattr(training, "validation_soft_dsc", lambda *_: next(scores))
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
    volumes = [(inputs[..., :16], (labels[..., :16] == 1).astype(np.uint8)) for _, inputs, labels in TRAIN[:3]]
    primary = sum(int(labels.sum()) for _, labels in volumes)
    pool = training.patch_pool(volumes, 16, 16)
    expected = 2 * primary / (primary + 3 * 16**3)
    assert validation_soft_dsc(network, pool, 2) == pytest.approx(expected, rel=1e-5)


def test_validation_without_any_lesion_is_refused(tmp_path):
    empty = [("P1", TRAIN[0][1], np.zeros_like(TRAIN[0][2]))]
    with pytest.raises(InputError, match="no validation patient has a lesion"):
        train_fold(TRAIN, empty, PARAMS, 0, tmp_path)


def test_divergence_stops_the_fold_and_keeps_the_last_good_epoch(tmp_path):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 2}), 0, tmp_path)
    poisoned = [(name, inputs + np.float32(np.nan), labels) for name, inputs, labels in TRAIN]
    with pytest.raises(WorkError, match="diverged in fold 0, epoch 3"):
        train_fold(poisoned, VALIDATION, PARAMS, 0, tmp_path)
    about, tensors = read_state(tmp_path / training.STATE_FILE)
    assert len(about["history"]) == 2
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_nobody_to_train_on_is_refused(tmp_path):
    with pytest.raises(InputError, match="0 patients to train"):
        train_fold([], VALIDATION, PARAMS, 0, tmp_path)


def test_a_damaged_checkpoint_is_refused_and_named(tmp_path):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path)
    state = tmp_path / training.STATE_FILE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"training_state.safetensors.*not a readable checkpoint"):
        train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path)


def rewrite(state, *, about=None, without=""):
    """The checkpoint with other metadata, or without the tensors whose name begins so."""
    with safe_open(state, framework="pt") as file:
        metadata = file.metadata() if about is None else {"mtv_training": about}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(
        {name: value for name, value in tensors.items() if not (without and name.startswith(without))}, state, metadata
    )


@pytest.mark.parametrize("about", ["{}", "[]", "7", '"text"', "null", "{", '{"study": "paper", "fold": 0}'])
def test_a_checkpoint_with_damaged_metadata_is_refused_and_named(tmp_path, about):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path)
    rewrite(tmp_path / training.STATE_FILE, about=about)
    with pytest.raises(InputError, match=r"training_state.safetensors.*not a readable checkpoint.*Remedy: delete it"):
        train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path)


@pytest.mark.parametrize("change", [{"history": [{}]}, {"history": 3}, {"best_epoch": 9}, {"params": []}])
def test_a_checkpoint_whose_history_makes_no_sense_is_refused(tmp_path, change):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path)
    about, _ = read_state(tmp_path / training.STATE_FILE)
    rewrite(tmp_path / training.STATE_FILE, about=json.dumps(about | change))
    with pytest.raises(InputError, match=r"not a readable checkpoint.*Remedy: delete it"):
        train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path)


@pytest.mark.parametrize(
    "missing", ["network.head.bias", "mean.head.bias", "best.head.bias", "best.", "optimizer.0.step"]
)
def test_a_checkpoint_that_lacks_a_tensor_is_refused_and_the_tensor_named(tmp_path, missing):
    params = PARAMS.model_copy(update={"ema": 0.9})
    train_fold(TRAIN, VALIDATION, params.model_copy(update={"epochs": 1}), 0, tmp_path)
    rewrite(tmp_path / training.STATE_FILE, without=missing)
    with pytest.raises(InputError, match=rf"not a whole checkpoint.*found: {missing}.*Remedy: delete it") as error:
        train_fold(TRAIN, VALIDATION, params, 0, tmp_path)
    assert error.value.file == tmp_path / training.STATE_FILE


def test_a_full_disk_during_a_checkpoint_is_said_and_the_one_before_kept(tmp_path, monkeypatch):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path)
    before = (tmp_path / training.STATE_FILE).read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(training, "save_file", full)
    with pytest.raises(WorkError, match=r"training_state.*No space left on device\. Remedy: free disk space"):
        train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path)
    assert (tmp_path / training.STATE_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [training.STATE_FILE]


def test_a_checkpoint_larger_than_files_may_be_is_said(tmp_path):
    """The system itself refuses to write, as it does where the disk is full or a quota is used up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    result = train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path / "whole")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(WorkError, match=r"training_state.*File too large\. Remedy: free disk space"):
            training.save_state(result, tmp_path / training.STATE_FILE, PARAMS, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_a_pickle_in_place_of_a_checkpoint_is_not_opened(tmp_path):
    class Attack:
        def __reduce__(self):
            return (tmp_path.joinpath("opened").touch, ())

    torch.save({"state": Attack()}, tmp_path / training.STATE_FILE)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path)
    assert not (tmp_path / "opened").exists()


def test_a_foreign_checkpoint_is_refused(tmp_path):
    train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"epochs": 1}), 0, tmp_path)
    with pytest.raises(InputError, match="belongs to study paper, fold 0"):
        train_fold(TRAIN, VALIDATION, PARAMS, 1, tmp_path)
    with pytest.raises(InputError, match="belongs to study paper, fold 0"):
        train_fold(TRAIN, VALIDATION, PARAMS.model_copy(update={"name": "other"}), 0, tmp_path)


@pytest.mark.parametrize(
    ("changed", "basis", "said"), [({"batch_size": 3}, "a", "batch_size was 2, is 3"), ({}, "b", "the images")]
)
def test_a_changed_training_starts_anew_and_keeps_the_old_checkpoint(tmp_path, changed, basis, said):
    train_fold(TRAIN, VALIDATION, PARAMS, 0, tmp_path / "changed", basis="a")
    old = (tmp_path / "changed" / training.STATE_FILE).read_bytes()
    params, lines = PARAMS.model_copy(update=changed), []
    anew = train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "changed", basis=basis, say=lines.append)
    assert said in lines[0]
    assert (tmp_path / "changed" / training.PREVIOUS_FILE).read_bytes() == old
    assert_same_weights(anew, train_fold(TRAIN, VALIDATION, params, 0, tmp_path / "fresh"))


def test_cuda_is_refused_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(InputError, match="finds no CUDA device"):
        training.choose_device("cuda")
    assert training.choose_device("auto").type == "cpu"
