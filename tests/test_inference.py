import json

import numpy as np
import pytest
import torch

from mtvlib import execution, inference
from mtvlib.errors import InputError
from mtvlib.network import build
from mtvlib.params import Params
from mtvlib.patching import window_starts
from mtvlib.stitching import gaussian_window
from mtvlib.training import Epoch, Training, make_optimizer, network_config

PARAMS = Params(
    crop_shape=(16, 16),
    patch_shape=(16, 16, 16),
    patch_stride=4,
    filters=[4, 4, 8],
    units_per_level=1,
    attention_heads=2,
)


def trained(seed=1, params=PARAMS):
    network = build(network_config(params), seed)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    return Training(network, make_optimizer(network, params), None, [Epoch(1, 1.0, 0.5, 1.0)], 1, weights)


def saved(folder, seed=1, params=PARAMS):
    inference.save_model(trained(seed, params), folder, params, 0, {"train": 3, "validation": 1, "test": 1})
    return folder


def probabilities(networks, inputs):
    return inference.predict_probabilities(networks, inputs, 16, 4)


def test_a_model_tells_its_use_its_licence_and_where_its_patients_came_from(tmp_path):
    params = PARAMS.model_copy(update={"weights_licence": "CC BY 4.0"})
    data = {"sites": {"Berlin": 3}, "synthetic": True}
    inference.save_model(trained(), tmp_path, params, 0, {"train": 3, "validation": 1, "test": 1}, data)
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["licence"] == "CC BY 4.0"
    assert "No medical device" in about["intended_use"]
    assert about["training"]["sites"] == {"Berlin": 3}
    assert about["training"]["synthetic"] is True


@pytest.fixture
def inputs():
    return np.random.default_rng(0).random((2, 16, 16, 27), dtype=np.float32)


def test_a_saved_model_predicts_the_same(tmp_path, inputs):
    """But for rounding: a loaded model keeps its channels last in memory."""
    model = inference.load_model(saved(tmp_path))
    np.testing.assert_allclose(
        probabilities([model.network], inputs), probabilities([trained().network.eval()], inputs), atol=1e-5
    )


def test_probabilities_sum_to_one_over_a_volume_of_any_length(inputs):
    network = build(network_config(PARAMS), 1).eval()
    for length in (3, 16, 27):
        result = probabilities([network], inputs[..., :length])
        assert result.shape == (3, 16, 16, length)
        np.testing.assert_allclose(result.sum(0), 1, rtol=1e-5)


def test_agrees_with_monais_sliding_window(inputs):
    """Same network, windows and weights; MONAI adds the windows in another order, hence the tolerance."""
    inferers = pytest.importorskip("monai.inferers")
    network = build(network_config(PARAMS), 1).eval()
    inputs = inputs[..., :24]  # 16 + 2 x 4: no ragged last window, which MONAI would place elsewhere
    theirs = inferers.sliding_window_inference(
        torch.from_numpy(inputs)[None],
        (16, 16, 16),
        1,
        lambda x: torch.softmax(network(x), 1),
        overlap=0.75,
        mode="gaussian",
        sigma_scale=1 / (2 * np.sqrt(2 * np.log(2))),
    )
    with torch.no_grad():
        np.testing.assert_allclose(probabilities([network], inputs), theirs[0].detach().numpy(), atol=1e-5)


def test_a_model_of_a_study_with_test_time_flips_sees_both_sides(tmp_path, inputs):
    """Stitching is linear and treats left and right alike, so the map is the mean of the volume's and its mirror's."""
    flipped = inference.load_model(saved(tmp_path / "both", params=PARAMS.model_copy(update={"test_time_flip": True})))
    plain = inference.load_model(saved(tmp_path / "plain"))
    mirror = probabilities([plain.network], inputs[:, ::-1])[:, ::-1]
    expected = (probabilities([plain.network], inputs) + mirror) / 2
    np.testing.assert_allclose(probabilities([flipped.network], inputs), expected, atol=1e-6)


def test_a_model_from_before_that_parameter_sees_one_side(tmp_path):
    saved(tmp_path)
    about = json.loads((tmp_path / "model.json").read_text())
    del about["prediction"]
    (tmp_path / "model.json").write_text(json.dumps(about))
    assert type(inference.load_model(tmp_path).network).__name__ == "Network"


def test_the_ensemble_is_the_mean_of_the_models_maps(inputs):
    networks = [build(network_config(PARAMS), seed).eval() for seed in (1, 2, 3)]
    each = [probabilities([network], inputs) for network in networks]
    np.testing.assert_allclose(probabilities(networks, inputs), np.mean(each, axis=0), atol=1e-6)


def test_labels_are_the_most_probable_class_and_ties_go_to_the_lower():
    maps = np.array([[0.2, 0.4, 0.5], [0.3, 0.4, 0.2], [0.5, 0.2, 0.3]]).reshape(3, 3, 1, 1)
    assert inference.predict_labels(maps).flatten().tolist() == [2, 0, 0]


def test_a_model_says_what_it_is(tmp_path):
    saved(tmp_path)
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["classes"] == {"0": "background", "1": "primary", "2": "nodes"}
    assert about["architecture"]["filters"] == [4, 4, 8]
    assert about["preprocessing"]["spacing_mm"] == 2.5
    assert about["training"]["patients"] == {"train": 3, "validation": 1, "test": 1}


def test_changed_weights_are_refused(tmp_path):
    saved(tmp_path)
    path = tmp_path / "weights.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match="sha256 differs"):
        inference.load_model(tmp_path)


def test_weights_of_another_architecture_are_refused(tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.json"
    about = json.loads(path.read_text())
    about["architecture"]["filters"] = [4, 8, 8]
    path.write_text(json.dumps(about))
    with pytest.raises(InputError, match="do not fit the architecture"):
        inference.load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no model here"), ("{", "not the description"), ('{"format": "other"}', "another version")],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(InputError, match=message):
        inference.load_model(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "7", '"text"', "null", '{"format": {}}'])
def test_json_that_describes_no_model_is_refused(tmp_path, text):
    saved(tmp_path)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(InputError, match=r"model\.json: .*Remedy: "):
        inference.load_model(tmp_path)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (None, "no architecture, preprocessing, training, sha256"),
        (("sha256",), "no sha256"),
        (("sha256", "weights.safetensors"), r"no sha256\.weights\.safetensors"),
        (("architecture",), "no architecture"),
        (("preprocessing", "spacing_mm"), r"no preprocessing\.spacing_mm"),
        (("training", "params", "folds"), r"no training\.params\.folds"),
    ],
)
def test_half_a_description_is_refused_and_what_is_missing_named(tmp_path, place, said):
    saved(tmp_path)
    path = tmp_path / "model.json"
    about = json.loads(path.read_text())
    if place is None:
        about = {"format": about["format"]}
    else:
        inside = about
        for name in place[:-1]:
            inside = inside[name]
        del inside[place[-1]]
    path.write_text(json.dumps(about))
    with pytest.raises(InputError, match=rf"model\.json: .*not whole \(found: {said}\)\. Remedy: delete it"):
        inference.load_model(tmp_path)


def test_an_architecture_that_is_no_mapping_is_refused(tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architecture": [1, 2]}))
    with pytest.raises(InputError, match="do not fit the architecture"):
        inference.load_model(tmp_path)


def test_models_of_other_preprocessing_are_refused(tmp_path):
    model = inference.load_model(saved(tmp_path))
    inference.check_preprocessing([model], PARAMS)
    with pytest.raises(InputError, match=r"trained with spacing_mm 2\.5, the study has 3\.0"):
        inference.check_preprocessing([model], PARAMS.model_copy(update={"spacing_mm": 3.0}))


def with_each(networks, inputs):
    """The mean (K, x, y, z) and each network's labels (M, x, y, z), as they become votes."""
    slabs = inference._slabs(inference.predictor_of_each(networks), networks, inputs, 16, 4)
    parts = [inference._mean_and_labels(slab, len(networks)) for _, slab in slabs]
    return [np.concatenate(part, axis=-1) for part in zip(*parts, strict=True)]


def test_the_mean_is_the_same_to_the_last_bit_with_and_without_the_maps_of_each(inputs):
    networks = [build(network_config(PARAMS), seed).eval() for seed in (1, 2, 3)]
    mean, labels = with_each(networks, inputs)
    np.testing.assert_array_equal(mean, probabilities(networks, inputs))
    for network, own in zip(networks, labels, strict=True):
        np.testing.assert_array_equal(own, inference.predict_labels(probabilities([network], inputs)))


def test_the_stored_probability_is_that_of_a_lesion_of_either_class():
    maps = np.array([[1.0, 0.75, 0.1, 0.0], [0.0, 0.25, 0.5, 0.3], [0.0, 0.0, 0.4, 0.7]]).reshape(3, 4, 1, 1)
    stored = inference.quantised_lesion_probability(maps.astype(np.float32))
    assert (stored.dtype, stored.flatten().tolist()) == (np.uint8, [0, 64, 230, 255])
    beyond = inference.quantised_lesion_probability(np.array([1.0000001, -1e-7], np.float32).reshape(1, 2, 1, 1))
    assert beyond.flatten().tolist() == [0, 255]


@pytest.mark.parametrize(("models", "kind"), [(2, np.uint8), (8, np.uint8), (9, np.uint16), (17, np.uint32)])
def test_each_model_has_a_bit_of_the_votes(models, kind):
    labels = np.random.default_rng(models).integers(0, 3, (models, 3, 4, 5)).astype(np.uint8)
    found = inference.votes(labels)
    assert found.dtype == kind
    for number, one in enumerate(labels):
        np.testing.assert_array_equal((found >> kind(number)) & kind(1), one > 0)


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_the_maps_that_are_kept_are_those_of_the_whole_volume(inputs, seeds):
    networks = [build(network_config(PARAMS), seed).eval() for seed in seeds]
    maps, whole = inference.predict_maps(networks, inputs, 16, 4), probabilities(networks, inputs)
    np.testing.assert_array_equal(maps["labels"], inference.predict_labels(whole))
    np.testing.assert_array_equal(maps["probability"], inference.quantised_lesion_probability(whole))
    assert ("votes" in maps) == (len(seeds) > 1)
    if len(seeds) > 1:
        each = with_each(networks, inputs)[1]
        np.testing.assert_array_equal(maps["votes"], inference.votes(each))


def some():
    """Networks of different makes for the same windows."""
    params = [PARAMS, PARAMS.model_copy(update={"filters": [8, 4], "attention": False})]
    return [build(network_config(one), seed).eval() for seed, one in enumerate(params)]


def test_networks_of_different_makes_average(inputs):
    each = [probabilities([network], inputs) for network in some()]
    np.testing.assert_allclose(probabilities(some(), inputs), np.mean(each, axis=0), atol=1e-6)


def test_a_graphics_cards_way_gives_the_same(inputs, monkeypatch):
    """Four windows at once through `Network.forward`, tried on the processor."""
    ours = inference.predict_maps(some(), inputs, 16, 4), probabilities(some(), inputs)
    monkeypatch.setattr(execution, "_suits", lambda network, windows: False)
    monkeypatch.setattr(inference, "VOXELS_AT_ONCE", {"cpu": 4 * 16**3})
    maps, whole = inference.predict_maps(some(), inputs, 16, 4), probabilities(some(), inputs)
    np.testing.assert_allclose(whole, ours[1], atol=1e-5)
    assert np.abs(maps["probability"].astype(int) - ours[0]["probability"]).max() <= 1


@pytest.mark.parametrize("length", [5, 16, 27])
def test_again_is_the_same_bit_for_bit_also_where_air_is_left_out(inputs, length):
    """A window of air is predicted once; each predicted by itself and summed over the whole volume is the same."""
    network = some()[0]
    volume = np.concatenate([np.zeros((2, 16, 16, 40), np.float32), inputs[..., :length]], axis=-1)
    found = probabilities([network], volume)
    np.testing.assert_array_equal(found, probabilities([network], volume))
    starts = window_starts(volume.shape[-1], 16, 4)
    weights = torch.from_numpy(gaussian_window((16, 16, 16))).float()
    total, weight_sum = torch.zeros(3, 16, 16, 40 + length), torch.zeros(16, 16, 40 + length)
    turned = torch.from_numpy(np.ascontiguousarray(volume.T)).permute(3, 2, 1, 0)
    with torch.inference_mode():
        for z in starts:
            total[..., z : z + 16] += execution.probabilities_of(network, turned[None, ..., z : z + 16])[0] * weights
            weight_sum[..., z : z + 16] += weights
    np.testing.assert_array_equal(found, total / weight_sum)
