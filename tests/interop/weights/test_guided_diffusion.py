"""Parity with guided-diffusion.

tests/data/guided_networks.npz holds inputs and outputs of the public implementation (openai/guided-diffusion on
GitHub, run in float32 on a CPU, 128 channels wide), with the names and shapes of its parameters, but no weights: they
are `hashed()` of these, in the file's order.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hashed_weights import hashed

from ersde_lit.denoisers import VP, Cosine
from ersde_lit.interop.weights.guided_diffusion import import_guided
from ersde_lit.interop.weights.guided_flags import GuidedFlags
from ersde_lit.interop.weights.model import ImportedModel, checked_network, write
from ersde_lit.interop.weights.published import published
from ersde_lit.interop.weights.sources import read_source
from ersde_lit.training import load, load_classifier

VECTORS = dict(np.load(Path(__file__).parents[2] / "data" / "guided_networks.npz"))
CASES = json.loads(str(VECTORS["cases"]))  # name -> parameter -> shape
LABELS = torch.from_numpy(VECTORS["labels"])
WIDE = {"image_size": 8, "noise_schedule": "linear", "num_head_channels": 64}
FLAGS = {
    "new_order_cond": {**WIDE, "noise_schedule": "cosine", "use_new_attention_order": True},
    "legacy": {**WIDE, "use_new_attention_order": False},
    "legacy_four_heads": {"image_size": 8, "noise_schedule": "linear", "num_heads": 4,
                          "use_new_attention_order": False},
    "half_width": {**WIDE, "use_new_attention_order": False},
    "classifier": {"noise_schedule": "cosine"},
}  # fmt: skip


def vector(name: str) -> torch.Tensor:
    return torch.from_numpy(VECTORS[name])


def imported(case: str, folder: Path, **changes) -> Path:
    torch.save(hashed(CASES[case]), folder / "net.pt")
    write(read_source(folder / "net.pt", GuidedFlags(**{**FLAGS[case], **changes})), folder / "net.ckpt")
    return folder / "net.ckpt"


def assert_same(ours: torch.Tensor, published: torch.Tensor) -> None:
    torch.testing.assert_close(ours, published, rtol=0, atol=5e-6 * published.abs().max().item())


@pytest.mark.parametrize("case", [case for case in FLAGS if case != "classifier"])
@torch.no_grad()
def test_denoisers(case: str, tmp_path: Path) -> None:
    module = load(imported(case, tmp_path))
    x, t, expected = vector(f"{case}/x"), vector(f"{case}/t"), vector(f"{case}/y")[:, :3]
    labels = LABELS if module.num_classes else None
    for denoiser in (module.denoiser, module.ema_denoiser):
        assert_same(denoiser.network(x, t, labels), expected)
        lam = denoiser.levels[t.long()].float()
        alpha = torch.rsqrt(1 + lam**2).view(-1, 1, 1, 1)
        x0 = (x - lam.view(-1, 1, 1, 1) * alpha * expected) / alpha
        assert_same(denoiser(x / alpha, lam, labels), x0)


@torch.no_grad()
def test_classifiers(tmp_path: Path) -> None:
    classifier = load_classifier(imported("classifier", tmp_path))
    x, t, logits = vector("classifier/x"), vector("classifier/t"), vector("classifier/y")
    assert_same(classifier.network(x, t), logits)
    lam = Cosine().levels[t.long()].float()
    assert_same(classifier(x * (1 + lam**2).sqrt().view(-1, 1, 1, 1), lam), logits.log_softmax(1))


def test_the_order_of_attention_matters(tmp_path: Path) -> None:
    module = load(imported("legacy", tmp_path, use_new_attention_order=True))
    with torch.no_grad(), pytest.raises(AssertionError):
        assert_same(module.denoiser.network(vector("legacy/x"), vector("legacy/t")), vector("legacy/y"))


def test_processes_and_settings() -> None:
    state = hashed(CASES["new_order_cond"])
    model = import_guided(state, GuidedFlags(**FLAGS["new_order_cond"], dropout=0.1, predict_xstart=True))
    module = model.module()
    assert module.denoiser.process == Cosine()
    assert (module.denoiser.preconditioning, module.denoiser.prediction) == ("iddpm", "x0")
    assert module.denoiser.network.spec["init_args"]["dropout"] == 0.1
    assert "3,459 parameters of learned variances are left out" in model.report(module)
    linear = import_guided(state, GuidedFlags(**{**FLAGS["new_order_cond"], "noise_schedule": "linear"})).module()
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = torch.from_numpy((1 - betas).cumprod())
    assert linear.denoiser.process == VP(steps=1000)
    torch.testing.assert_close(linear.denoiser.levels, (1 / alpha_bar - 1).sqrt(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("rescale", [None, False, True])
@pytest.mark.parametrize(("schedule", "process"), [("cosine", Cosine(4000)), ("linear", VP(steps=4000))])
@torch.no_grad()
def test_other_numbers_of_steps(schedule: str, process, rescale: bool | None, tmp_path: Path) -> None:
    path = imported(
        "new_order_cond", tmp_path, noise_schedule=schedule, diffusion_steps=4000, rescale_timesteps=rescale
    )
    denoiser = load(path).denoiser
    assert denoiser.process == process
    told = []
    denoiser.network.map_noise.register_forward_pre_hook(lambda module, arguments: told.append(arguments[0]))
    steps = torch.tensor([0, 1, 1234, 3999])
    y = torch.zeros(4, 3, 8, 8)
    denoiser(y, denoiser.levels[steps].float(), torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(told[0], steps.float() / (4 if rescale else 1), rtol=1e-6, atol=1e-4)


@torch.no_grad()
def test_a_classifier_of_other_steps(tmp_path: Path) -> None:
    classifier = load_classifier(imported("classifier", tmp_path, diffusion_steps=500, rescale_timesteps=True))
    told = []
    classifier.ema_network.map_noise.register_forward_pre_hook(lambda module, arguments: told.append(arguments[0]))
    classifier(torch.zeros(1, 3, *classifier.network.image_shape[1:]), Cosine(500).levels[[499]].float())
    torch.testing.assert_close(told[0], torch.tensor([998.0]), rtol=1e-6, atol=0)


def test_what_is_assumed_is_said() -> None:
    def notes(case: str, **changes) -> list[str]:
        model = import_guided(hashed(CASES[case]), GuidedFlags(**{**FLAGS[case], **changes}))
        return [note for note in model.notes if note.startswith("assumed")]

    assert notes("legacy") == ["assumed, as guided-diffusion does: diffusion_steps 1000, predict_xstart False"]
    assert notes("legacy", diffusion_steps=1000, predict_xstart=True) == []
    assert notes("legacy", diffusion_steps=4000, predict_xstart=True) == [
        "assumed, as guided-diffusion does: rescale_timesteps False"
    ]
    assert notes("classifier") == [
        "assumed, as published: num_head_channels 64, use_new_attention_order False",
        "assumed, as guided-diffusion does: diffusion_steps 1000",
    ]
    published = import_guided(shapes(192, (1, 2, 3, 4), 3, 3, 1000), GuidedFlags(noise_schedule="cosine")).notes
    assert published[0] == (
        "assumed, as published: num_head_channels 64, use_new_attention_order True, image_size 64, dropout 0.1"
    )


RECIPE = {"learn_sigma": True, "class_cond": True, "num_channels": 128, "attention_resolutions": "16,4",
          "resblock_updown": True, "use_scale_shift_norm": True, "num_heads_upsample": -1}  # fmt: skip


def test_flags_that_say_what_the_weights_say_and_those_of_sampling_change_nothing() -> None:
    state, flags = hashed(CASES["new_order_cond"]), FLAGS["new_order_cond"]
    others = {"timestep_respacing": "ddim25", "use_kl": True, "rescale_learned_sigmas": True, "sigma_small": True,
              "use_fp16": True, "use_checkpoint": True}  # fmt: skip
    plain, told = (import_guided(state, GuidedFlags(**flags, **more)) for more in ({}, RECIPE | others))
    assert (plain.network, plain.settings, plain.notes) == (told.network, told.settings, told.notes)


@pytest.mark.parametrize(
    ("case", "flags", "message"),
    [
        ("new_order_cond", {"learn_sigma": False}, "--learn_sigma False is not what its weights say, which is True"),
        ("new_order_cond", {"class_cond": False}, "--class_cond False"),
        ("new_order_cond", {"num_channels": 64}, "--num_channels 64 is not .*, which is 128"),
        ("new_order_cond", {"num_res_blocks": 7}, "--num_res_blocks 7"),
        ("new_order_cond", {"channel_mult": "1,7"}, "--channel_mult 1,7"),
        ("new_order_cond", {"attention_resolutions": "8"}, "--attention_resolutions 8 is not .*, which is 4"),
        ("new_order_cond", {"resblock_updown": False}, "--resblock_updown False"),
        ("new_order_cond", {"use_scale_shift_norm": False}, "--use_scale_shift_norm False"),
        ("classifier", {"num_channels": 128}, "--num_channels is a flag of denoisers"),
        ("classifier", {"use_new_attention_order": True}, "--use_new_attention_order is a flag of denoisers"),
        ("classifier", {"num_head_channels": 32}, "--num_head_channels is a flag of denoisers"),
        ("classifier", {"num_heads": 4}, "--num_heads is a flag of denoisers"),
    ],
)
def test_flags_that_say_something_else_than_the_weights(case: str, flags: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_guided(hashed(CASES[case]), GuidedFlags(**FLAGS[case], **flags))


def shapes(width: int, mult: tuple[float, ...], blocks: int, attending: int, classes: int) -> dict[str, torch.Tensor]:
    """The state dict of a model with variances on the meta device, the last levels of which attend."""
    state: dict[str, list[int]] = {"time_embed.0": [4 * width, width], "time_embed.2": [4 * width, 4 * width]}

    def residual(name: str, c_in: int, c: int) -> None:
        state.update({f"{name}.in_layers.0": [c_in], f"{name}.in_layers.2": [c, c_in, 3, 3]})
        state.update({f"{name}.emb_layers.1": [2 * c, 4 * width], f"{name}.out_layers.0": [c]})
        state[f"{name}.out_layers.3"] = [c, c, 3, 3]
        if c_in != c:
            state[f"{name}.skip_connection"] = [c, c_in, 1, 1]

    def attention(name: str, c: int) -> None:
        state.update({f"{name}.norm": [c], f"{name}.qkv": [3 * c, c, 1], f"{name}.proj_out": [c, c, 1]})

    c = int(mult[0] * width)
    state["input_blocks.0.0"] = [c, 3, 3, 3]
    skips, i, finest = [c], 1, len(mult) - attending
    for level, m in enumerate(mult):
        for _ in range(blocks):
            residual(f"input_blocks.{i}.0", c, c := int(m * width))
            if level >= finest:
                attention(f"input_blocks.{i}.1", c)
            skips.append(c)
            i += 1
        if level < len(mult) - 1:
            residual(f"input_blocks.{i}.0", c, c)
            skips.append(c)
            i += 1
    residual("middle_block.0", c, c)
    attention("middle_block.1", c)
    residual("middle_block.2", c, c)
    i = 0
    for level, m in reversed(list(enumerate(mult))):
        for block in range(blocks + 1):
            residual(f"output_blocks.{i}.0", c + skips.pop(), c := int(m * width))
            if level >= finest:
                attention(f"output_blocks.{i}.1", c)
            if level and block == blocks:
                residual(f"output_blocks.{i}.{2 if level >= finest else 1}", c, c)
            i += 1
    state |= {"out.0": [c], "out.2": [6, c, 3, 3]}
    whole = {f"{name}.weight": shape for name, shape in state.items()}
    whole |= {f"{name}.bias": shape[:1] for name, shape in state.items()}
    if classes:
        whole["label_emb.weight"] = [classes, 4 * width]
    return {name: torch.empty(shape, device="meta") for name, shape in whole.items()}


@pytest.mark.parametrize(
    ("sizes", "count", "keys", "size", "process", "dropout", "name"),
    [
        ((192, (1, 2, 3, 4), 3, 3, 1000), 295_904_454, 541, 64, Cosine(), 0.1, "ImageNet-64, ADM"),
        ((256, (1, 1, 2, 3, 4), 2, 3, 1000), 421_529_606, 493, 128, VP(steps=1000), 0.0, "ImageNet-128, ADM"),
        ((256, (1, 1, 2, 2, 4, 4), 2, 3, 1000), 553_838_086, 567, 256, VP(steps=1000), 0.0, "ImageNet-256, ADM"),
        ((256, (1, 1, 2, 2, 4, 4), 2, 3, 0), 552_814_086, 566, 256, VP(steps=1000), 0.0, None),
    ],
    ids=["64", "128", "256", "256 unconditional, LSUN"],
)
def test_published_models_need_no_flags(sizes, count, keys, size, process, dropout, name, monkeypatch) -> None:
    state = shapes(*sizes)
    assert (sum(value.numel() for value in state.values()), len(state)) == (count, keys)
    model = import_guided(state, GuidedFlags())
    assert isinstance(model, ImportedModel)
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda self: torch.ones(1))  # there are no values
    network = checked_network(model.network, model.averaged)
    assert network.image_shape == (3, size, size)
    assert model.settings["process"] == process
    arguments = network.spec["init_args"]
    assert (arguments["attn_resolutions"], arguments["dropout"]) == ([32, 16, 8], dropout)
    assert (arguments["num_heads"], arguments["channels_per_head"]) == (4 if size == 128 else None, 64)
    assert (own := sum(p.numel() for p in network.parameters())) == count - 3 * (9 * sizes[0] + 1)
    assert published(network, own) == name


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        ({}, {"use_new_attention_order": True}, "none of the published .* say --image_size and --noise_schedule and"),
        ({}, {"image_size": 8, "noise_schedule": "linear", "num_heads": 1}, "say --use_new_attention_order"),
        ({}, {**FLAGS["legacy"], "num_head_channels": 96}, "are not cut into attention heads by these flags"),
        ({}, {**FLAGS["legacy"], "image_size": 9}, "does not allow 2 levels"),
        ({"input_blocks.0.0.weight": [128, 6, 3, 3]}, FLAGS["legacy"], "6 channels: models that enlarge images"),
        ({"input_blocks.1.0.emb_layers.1.weight": [128, 512]}, FLAGS["legacy"], "use_scale_shift_norm False"),
        ({"input_blocks.2.0.op.weight": [128, 128, 3, 3]}, FLAGS["legacy"], "resblock_updown False"),
        ({"input_blocks.9.0.in_layers.0.weight": [1]}, FLAGS["legacy"], "do not fall into 2 equal levels"),
        ({"out.2.weight": [4, 128, 3, 3]}, FLAGS["legacy"], "gives 4 channels, not 3, or 6"),
        ({"input_blocks.3.0.out_layers.3.weight": [64, 64, 3, 3]}, FLAGS["legacy"], "multiples of 32"),
        ({"extra.weight": [1]}, FLAGS["legacy"], "weights that are not known, among them 'extra.weight'"),
        ({"middle_block.0.in_layers.0.bias": None}, FLAGS["legacy"], "lacks 1 weights"),
        ({"middle_block.0.in_layers.0.bias": [7]}, FLAGS["legacy"], r"is \[7\], in its network \[256\]"),
        ({"time_embed.0.weight": None}, FLAGS["legacy"], "not those of guided-diffusion"),
        ({"time_embed.0.weight": [1]}, FLAGS["legacy"], "is missing"),
        ({"input_blocks.x.weight": [1]}, FLAGS["legacy"], "names that are not guided-diffusion's"),
    ],
)
def test_what_cannot_be_imported_is_said(change: dict, flags: dict, message: str) -> None:
    state = {name: torch.zeros(shape) for name, shape in {**CASES["legacy"], **change}.items() if shape is not None}
    with pytest.raises(ValueError, match=message):
        import_guided(state, GuidedFlags(**flags)).module()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_heads": 4, "num_head_channels": 64}, "not both"),
        ({"image_size": 0}, "at least 1"),
        ({"dropout": 1.0}, "below 1"),
        ({"diffusion_steps": 1}, "at least 2"),
        ({"attention_resolutions": "32, 16"}, "commas"),
        ({"channel_mult": ""}, "commas"),
        ({"num_heads": 4, "num_heads_upsample": 2}, "num_heads_upsample must be"),
    ],
)
def test_flags_that_cannot_be(flags: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuidedFlags(**flags)
