"""Checkpoints that somebody has changed, or the disk: one line, whatever is wrong with them."""

import copy
import io
import random
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import network

from ersde_lit.networks.encoder import ClassifierEncoder
from ersde_lit.training import DiffusionModule, load
from ersde_lit.training.averaged import IMAGES_KEY, SPEC_KEY
from ersde_lit.training.checkpoint import read
from ersde_lit.training.noisy_classifier import KIND, NoisyClassifier, load_classifier


@pytest.fixture(scope="module")
def whole() -> bytes:
    module = DiffusionModule(network())
    file = io.BytesIO()
    torch.save({"state_dict": module.state_dict(), SPEC_KEY: module.spec, IMAGES_KEY: 8}, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tampered")


def refused(path, loads=load) -> str:
    """The one line that loading raises."""
    with pytest.raises(ValueError) as caught:
        loads(path)
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    return line


def changed(whole: bytes, path, *keys: object, value: object) -> None:
    """The checkpoint with another value at `keys`."""
    content = torch.load(io.BytesIO(whole), weights_only=True)
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    torch.save(content, path)


ENDLESS: list = []
ENDLESS.append(ENDLESS)
INIT = (SPEC_KEY, "network", "init_args")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["state_dict"], None),
        (["state_dict"], [1, 2]),
        (["state_dict", "denoiser.network.enter.weight"], "a weight"),
        (["state_dict", "denoiser.network.enter.weight"], torch.zeros(3)),
        (["state_dict", "denoiser.network.enter.weight"], torch.zeros(1).to_sparse()),
        (["state_dict", 3], torch.zeros(1)),
        ([IMAGES_KEY], "many"),
        ([SPEC_KEY], None),
        ([SPEC_KEY], [1]),
        ([SPEC_KEY], "spec"),
        ([SPEC_KEY], {}),
        ([SPEC_KEY, 3], 4),
        ([SPEC_KEY, "network"], None),
        ([SPEC_KEY, "network"], ENDLESS),
        ([SPEC_KEY, "network", "class_path"], "ersde_lit.networks.Network"),
        ([SPEC_KEY, "network", "class_path"], "ersde_lit.denoisers.VE"),
        ([SPEC_KEY, "network", "class_path"], "ersde_lit."),
        ([SPEC_KEY, "network", "class_path"], ""),
        ([SPEC_KEY, "network", "class_path"], None),
        ([SPEC_KEY, "network", "init_args"], None),
        ([SPEC_KEY, "network", "init_args"], [1]),
        ([*INIT, "width"], "a"),
        ([*INIT, "width"], -8),
        ([*INIT, "width"], 1.5),
        ([*INIT, "width"], 8 * 10**8),
        ([*INIT, "width"], 10**30),
        ([*INIT, "multipliers"], "abc"),
        ([*INIT, "multipliers"], None),
        ([*INIT, "blocks"], 1.5),
        ([*INIT, "blocks"], 10**9),
        ([*INIT, "num_classes"], -3),
        ([*INIT, "image_shape"], [1, 4]),
        ([*INIT, "image_shape"], 7),
        ([*INIT, 3], 7),
        ([SPEC_KEY, "process"], {"class_path": "ersde_lit.denoisers.VP", "init_args": {"steps": "many"}}),
        ([SPEC_KEY, "process"], 3),
        ([SPEC_KEY, "sigma_data"], "half"),
        ([SPEC_KEY, "prediction"], ["edm"]),
        ([SPEC_KEY, "label_dropout"], None),
    ],
    ids=str,
)
def test_what_a_checkpoint_should_not_say(whole, tmp_path, keys: list[object], value: object) -> None:
    changed(whole, tmp_path / "x.ckpt", *keys, value=value)
    refused(tmp_path / "x.ckpt")


PLAIN = st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=3) | st.lists(st.integers())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_change_of_a_description_is_read_or_refused(whole, folder, data) -> None:
    content = torch.load(io.BytesIO(whole), weights_only=True)
    place = content
    while True:
        keys = [key for key in place if key != "state_dict"]
        key = data.draw(st.sampled_from(sorted(keys)))
        if not (isinstance(place[key], dict) and place[key] and data.draw(st.booleans())):
            break
        place = place[key]
    place[key] = data.draw(PLAIN | st.dictionaries(st.text(max_size=3), PLAIN, max_size=2))
    torch.save(content, folder / "drawn.ckpt")
    try:
        load(folder / "drawn.ckpt")
    except ValueError:
        refused(folder / "drawn.ckpt")


def test_mutations_of_its_pickle_with_right_checksums_are_read_or_refused(whole, folder) -> None:
    path, draw = folder / "pickle.ckpt", random.Random(0)
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))
    outcomes = []
    for _ in range(120):
        content = bytearray(parts[pickled])
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        with zipfile.ZipFile(path, "w") as file:
            for name, part in (parts | {pickled: bytes(content)}).items():
                file.writestr(name, part)
        try:
            load(path)
            outcomes.append("read")
        except ValueError:
            outcomes.append(refused(path).removeprefix(f"checkpoint {path}")[:12])
    assert len(set(outcomes)) > 2


def test_a_flipped_bit_of_a_weight_is_noticed(whole, tmp_path) -> None:
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        weight = max(file.infolist(), key=lambda info: info.file_size)
    path, middle = tmp_path / "flipped.ckpt", weight.header_offset + weight.file_size // 2
    path.write_bytes(whole)
    assert read(path)[IMAGES_KEY] == 8
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    assert "damaged" in refused(path)


def test_a_weight_that_claims_more_than_it_holds_makes_no_large_network(whole, tmp_path) -> None:
    content = torch.load(io.BytesIO(whole), weights_only=True)
    content["state_dict"]["denoiser.network.enter.weight"] = torch.zeros(1).expand(10**12)
    content[SPEC_KEY]["network"]["init_args"]["width"] = 8000
    torch.save(content, tmp_path / "x.ckpt")
    assert "larger network" in refused(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    "change",
    [{"width": "a"}, {"blocks": 10**9}, {"num_classes": -3}, {"multipliers": 3}, {"image_shape": None}],
    ids=str,
)
def test_classifiers_too(tmp_path, change: dict[str, object]) -> None:
    network = ClassifierEncoder((1, 4, 4), 3, width=8, multipliers=[1], blocks=1, attention=[], head_width=8)
    made = NoisyClassifier(network)
    spec = copy.deepcopy(made.spec)
    torch.save({"state_dict": made.state_dict(), SPEC_KEY: {KIND: spec}}, tmp_path / "x.ckpt")
    load_classifier(tmp_path / "x.ckpt")
    spec["network"]["init_args"] |= change
    torch.save({"state_dict": made.state_dict(), SPEC_KEY: {KIND: spec}}, tmp_path / "x.ckpt")
    refused(tmp_path / "x.ckpt", load_classifier)
