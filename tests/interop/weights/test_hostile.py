"""Files that are damaged, that lie, or that want their code run: each is refused in one line, and costs nothing."""

import io
import json
import os
import pickle
import re
import resource
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from edm_files import ADM, Persistent, dumps, edm2_model, edm2_snapshot, network, snapshot, state
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ersde_lit.cli import main
from ersde_lit.interop.weights.sources import read_source

CANARY = Path("canary")
MEGABYTES = 300  # by which no refusal may raise the memory in use: the bombs below ask for gigabytes


class Evil:
    """Opens a file when it is unpickled as usual."""

    def __reduce__(self):
        return open, ("canary", "w")


class Call:
    """Pickled as a call of any function with any arguments."""

    def __init__(self, function: Callable, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


MODEL = network("DhariwalUNet", ADM)
SNAPSHOT = snapshot(MODEL, "EDMPrecond", **ADM)
WHOLE = dumps(SNAPSHOT)


def with_weight(value: object) -> bytes:
    """The snapshot with something else in the place of a weight."""
    content = snapshot(MODEL, "EDMPrecond", **ADM)
    content["ema"].state["_modules"]["model"].state["_modules"]["map_layer0"].state["_parameters"]["bias"] = value
    return dumps(content)


def storage(
    numel: int = 128,
    data: bytes | None = None,
    magic: int = 0x1950A86A20F9469CFC6C,
    system=None,
    key="0",
    length: int | None = None,
) -> bytes:
    """The bytes of a storage as torch.save writes them, or nearly."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", numel, None) if value is CANARY else None

    stream = io.BytesIO()
    for part in (magic, 1001, {"little_endian": True} if system is None else system):
        pickle.dump(part, stream, 2)
    Pickler(stream, 2).dump(CANARY)
    pickle.dump([key], stream, 2)
    stream.write(struct.pack("<q", numel if length is None else length) + (b"\0" * 512 if data is None else data))
    return stream.getvalue()


def view(offset=0, size=(128,), stride=(1,), content: bytes | None = None):
    """A tensor of theirs in the place of a weight of 128 numbers, with the view that it is said to be."""
    inner = Call(torch.storage._load_from_bytes, storage() if content is None else content)
    return with_weight(Call(torch._utils._rebuild_tensor_v2, inner, offset, size, stride, False, {}))


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def cyclic() -> bytes:
    loop = Persistent("UNetBlock", state())
    plain = torch.nn.ModuleDict()
    plain.__dict__["_modules"] = {"again": plain}
    loop.state["_modules"] = {"model": plain}
    loop.state["_init_kwargs"] = {"img_resolution": 8, "img_channels": 3, **ADM}
    loop.cls = "EDMPrecond"
    return dumps({"ema": loop})


def doubled() -> bytes:
    """Modules that hold the next one twice each, so that 2^15 paths lead to the last."""
    made = Persistent("Linear", {})
    for _ in range(15):
        made = Persistent("Sequential", {"_modules": {"0": made, "1": made}})
    return dumps(snapshot(MODEL, "EDMPrecond", modules={"model": made}, **ADM))


PICKLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "code in the outer pickle": (lambda: pickle.dumps(Evil()), "it names '_?io.open'"),
    "code among what is not read": (lambda: dumps(SNAPSHOT | {"augment_pipe": Evil()}), "it names '_?io.open'"),
    "code in the place of a weight": (lambda: with_weight(Evil()), "it names '_?io.open'"),
    "code by eval": (lambda: with_weight(Call(eval, "open('canary', 'w')")), "it names 'builtins.eval'"),
    "code by os.system": (lambda: with_weight(Call(os.system, "touch canary")), "it names 'posix.system'"),
    "code by torch.load": (lambda: with_weight(Call(torch.load, "x")), "it names 'torch.serialization.load'"),
    "code by an old opcode": (lambda: opcodes(b"(ios\nsystem\nS'touch canary'\n"), "opcode INST"),
    "code by an extension": (lambda: opcodes(b"\x82\x01)R"), "opcode EXT1"),
    "a function that is changed": (
        lambda: opcodes(b"ctorch._utils\n_rebuild_tensor_v2\n", b"}\x8c\x01a\x8c\x01bsb"),
        "a GlobalName on the stack where it does not belong",
    ),
    "a function made an object": (
        lambda: opcodes(b"ctorch._utils\n_rebuild_tensor_v2\n)\x81"), "it makes a 'torch._utils._rebuild_tensor_v2'"
    ),
    "a class that is called": (
        lambda: opcodes(b"ctorch.nn.modules.container\nModuleDict\n)R"), "it calls 'torch.nn.modules.container.ModuleD"
    ),
    "code in a storage": (lambda: view(content=pickle.dumps(Evil())), "it names '_?io.open'"),
    "code in a storage's description": (lambda: view(content=storage(system=Evil())), "it names '_?io.open'"),
    "a storage in a storage": (
        lambda: view(content=pickle.dumps(Call(torch.storage._load_from_bytes, storage()))),
        "it names 'torch.storage._load_from_bytes'",
    ),
    "a storage with another magic number": (lambda: view(content=storage(magic=1)), "not as torch.save writes it"),
    "a storage of another byte order": (lambda: view(content=storage(system={})), "big-endian"),
    "a storage of many": (lambda: view(content=storage(key="1")), "holds something else"),
    "a storage read again and again": (
        lambda: opcodes(
            b"B" + struct.pack("<I", len(large := storage(2**18, data=bytes(2**20)))) + large + b"\x94",
            b"ctorch.storage\n_load_from_bytes\n\x94" + b"h\x01h\x00\x85R" * 1000,
        ),
        "holds nothing as 'ema'",
    ),
    "words in a set again and again": (
        lambda: opcodes(
            b"](" + b"\x8c\x01a" * 1000 + b"e\x94", b"cbuiltins\nset\n\x94" + b"h\x01h\x00\x85R" * 1000
        ),
        "a set of something else than a few words",
    ),
    "a huge number as a key": (lambda: opcodes(b"}", b"\x8a\x08" + b"\xff" * 7 + b"\x1f", b"Ns"), "a int as a key"),
    "a storage smaller than it claims": (lambda: view(content=storage(2**40)), "512 bytes that claims 1,099,511,627,7"),
    "a storage larger than it claims": (lambda: view(content=storage(127)), "of 512 bytes that claims 127 numbers"),
    "a storage of two lengths": (lambda: view(content=storage(256, length=128)), "of 512 bytes that claims 256"),
    "a storage of negative size": (lambda: view(content=storage(-128)), "not as torch.save writes it"),
    "a storage that is cut": (lambda: view(content=storage()[:-1]), "of 511 bytes that claims 128 numbers"),
    "a storage that is a zip": (lambda: view(content=b"PK\x03\x04" + bytes(500)), "damaged or truncated pickle"),
    "a storage that is no bytes": (
        lambda: with_weight(Call(torch.storage._load_from_bytes, 7)), "a storage that is no bytes"
    ),
    "a huge view": (lambda: view(size=(2**40,)), "leaves its storage of 128 numbers"),
    "a view whose size overflows": (lambda: view(size=(2**62, 4), stride=(4, 1)), "is none"),
    "a view beyond the end": (lambda: view(offset=1), "leaves its storage of 128 numbers"),
    "a view before the start": (lambda: view(offset=-1), "is none"),
    "a view of negative size": (lambda: view(size=(-128,)), "is none"),
    "a view of negative stride": (lambda: view(offset=127, stride=(-1,)), "is none"),
    "a view of one number, a billion times": (lambda: view(size=(2**30,), stride=(0,)), "overlap"),
    "a view that overlaps": (lambda: view(size=(2, 64), stride=(1, 1)), "overlap"),
    "a view with gaps": (lambda: view(size=(64,), stride=(2,)), "overlap or leave gaps"),
    "a view of truth values": (lambda: view(offset=True), "is none"),
    "a view without strides": (lambda: view(stride=()), "overlap"),
    "a tensor without a storage": (
        lambda: with_weight(Call(torch._utils._rebuild_tensor_v2, 1, 0, (1,), (1,))), "is none"
    ),
    "a call with too few arguments": (lambda: with_weight(Call(torch._utils._rebuild_tensor_v2)), "missing"),
    "a weight that is a word": (lambda: with_weight("weight"), "is no tensor"),
    "a tensor elsewhere": (lambda: opcodes(b"X\x01\0\0\0aQ"), "refers to an object outside"),
    "a module in itself": (cyclic, "is none"),
    "modules that are there twice": (doubled, "is none"),
    "a deeply nested key": (lambda: opcodes(b"})", b"\x85" * 100_000, b"Ns"), "a tuple as a key"),
    "a huge memo": (lambda: opcodes(b"Nr\xff\xff\xff\x7f0"), "opcode POP"),
    "a string of gigabytes": (lambda: opcodes(b"\x8d" + struct.pack("<Q", 2**40)), "damaged or truncated"),
    "bytes of gigabytes": (lambda: opcodes(b"\x8e" + struct.pack("<Q", 2**62)), "damaged or truncated"),
    "millions of opcodes": (lambda: opcodes(b"N" * 1_000_001), "more than 1,000,000 opcodes"),
    "a later protocol": (lambda: b"\x80\x63N.", "pickle protocol 99"),
    "nothing on the stack": (lambda: b"\x80\x04.", "damaged"),
    "another object": (lambda: pickle.dumps([1, 2]), "holds nothing as 'ema'"),
    "torch.save before 1.6": (lambda: storage(), "holds nothing as 'ema'"),
}  # fmt: skip


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(path: str, capsys, *options: str) -> str:
    """The line in which a file is refused: without anything run or written, and within the memory at hand."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = sorted(Path.cwd().iterdir())
    assert main(["import", path, "--out=model.ckpt", *options]) == 2
    assert sorted(Path.cwd().iterdir()) == files
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024
    error = capsys.readouterr().err
    assert error.startswith("ersde_lit: import: ")
    assert error.count("\n") == 1
    assert len(error) < 400
    return error


def test_what_is_not_spoilt_is_read(inside) -> None:
    Path("net.pkl").write_bytes(view())
    assert read_source("net.pkl").averaged["map_layer0.bias"].equal(torch.zeros(128))
    assert main(["import", "net.pkl", "--out=model.ckpt"]) == 0


def test_evil_is_evil(inside) -> None:
    pickle.loads(pickle.dumps(Evil()))
    assert CANARY.exists()


@pytest.mark.parametrize("case", PICKLES)
def test_pickles(inside, capsys, case: str) -> None:
    make, message = PICKLES[case]
    Path("net.pkl").write_bytes(make())
    error = refuse("net.pkl", capsys)
    assert re.search(message, error), error


def zipped(method: int, hostile: bool) -> None:
    """A state dict as torch.save writes it, but compressed, or with a bomb in it."""
    torch.save({"time_embed.0.weight": torch.zeros(2**22)}, "plain.pt")
    with zipfile.ZipFile("plain.pt") as plain, zipfile.ZipFile("net.pt", "w", method) as made:
        for name in plain.namelist():
            made.writestr(name, pickle.dumps(Evil()) if hostile and name.endswith(".pkl") else plain.read(name))
    Path("plain.pt").unlink()


def claimed(numel: int, size: int) -> None:
    """A state dict of 1024 numbers, followed by a million others, whose storage and size are said to be others."""
    torch.save({"a": torch.zeros(2**10), "b": torch.zeros(2**20)}, "plain.pt")
    with zipfile.ZipFile("plain.pt") as plain, zipfile.ZipFile("net.pt", "w") as made:
        for name in plain.namelist():
            content = plain.read(name)
            for number in (numel, size) if name.endswith(".pkl") else ():
                content = content.replace(b"M\x00\x04", b"\x8a\x08" + struct.pack("<q", number), 1)
            made.writestr(name, content)
    Path("plain.pt").unlink()


def before_zip(content: object, numel: int = 2**10) -> None:
    """In torch.save's older format; a storage of 1024 numbers is said to be of others."""
    torch.save(content, "plain.pt", _use_new_zipfile_serialization=False)
    whole = Path("plain.pt").read_bytes()
    place = whole.find(b"M\x00\x04", whole.find(b"storage"))  # the storage's length comes first, and the size after it
    if numel != 2**10:
        whole = whole[:place] + b"\x8a\x08" + struct.pack("<q", numel) + whole[place + 3 :]
    Path("net.pt").write_bytes(whole)
    Path("plain.pt").unlink()


TORCH: dict[str, tuple[Callable[[], object], str]] = {
    "code in a zip": (lambda: zipped(zipfile.ZIP_STORED, True), "holds more than weights"),
    "storages larger than they are": (lambda: claimed(2**20, 2**20), "not as large as they claim"),
    "storages of gigabytes": (lambda: claimed(2**34, 2**34), "is damaged, truncated or hostile"),
    "a view beyond its storage": (lambda: claimed(2**10, 2**20), "is damaged, truncated or hostile"),
    "a zip bomb": (lambda: zipped(zipfile.ZIP_DEFLATED, False), "is compressed, which torch.save does not do"),
    "a number, a billion times": (
        lambda: torch.save({"a": torch.zeros(1).expand(2**30)}, "net.pt"), "the weight 'a' is no dense tensor"
    ),
    "overlapping rows": (
        lambda: torch.save({"a": torch.zeros(9).as_strided((4, 4), (1, 1))}, "net.pt"), "is no dense tensor"
    ),
    "an object in a zip": (lambda: torch.save({"a": Evil()}, "net.pt"), "holds more than weights"),
    "words in a zip": (lambda: torch.save({"a": "b"}, "net.pt"), "is no state dict: it has 'a', a str"),
    "a list in a zip": (lambda: torch.save([1], "net.pt"), "holds no dictionary"),
    "another network": (lambda: torch.save({"a": torch.zeros(1)}, "net.pt"), "not those of guided-diffusion"),
    "a zip of nothing": (lambda: zipfile.ZipFile("net.pt", "w").close() or Path("net.pt").write_bytes(
        b"PK\x03\x04" + Path("net.pt").read_bytes()), "is damaged"),
    "a checkpoint of ours": (
        lambda: torch.save({"ersde_lit": {}, "state_dict": {}}, "net.pt"), "needs no import"
    ),
    "code before 1.6": (lambda: before_zip({"a": Evil()}), "it names '_?io.open'"),
    "code under another name before 1.6": (lambda: before_zip({"model": {}, "args": Evil()}), "it names '_?io.open'"),
    "a number, a billion times, before 1.6": (lambda: before_zip({"a": torch.zeros(1).expand(2**30)}), "overlap"),
    "storages of gigabytes before 1.6": (lambda: before_zip({"a": torch.zeros(2**10)}, 2**34), "claim 68,719,476,736"),
    "storages cut short before 1.6": (lambda: before_zip({"a": torch.zeros(2**10)}, 2**9), "leaves its storage"),
    "an empty file": (lambda: Path("net.pt").touch(), "cannot be imported"),
    "text": (lambda: Path("net.pt").write_text("a picture"), "cannot be imported"),
}  # fmt: skip


@pytest.mark.parametrize("case", TORCH)
def test_files_of_torch(inside, capsys, case: str) -> None:
    make, message = TORCH[case]
    make()
    error = refuse("net.pt", capsys)
    assert re.search(message, error), error


NETWORK = {"class_path": "ersde_lit.networks.DhariwalUNet",
           "init_args": {"img_resolution": 8, "in_channels": 3, "out_channels": 3, **ADM}}  # fmt: skip
VE = {"class_path": "ersde_lit.denoisers.processes.VE", "init_args": {}}


def ours(network=NETWORK, metadata: str | None = None, prefix: str = "averaged.", **settings) -> None:
    about = {"ersde_lit": {"network": network, "process": VE, **settings}, "images_seen": 0}
    tensors = {prefix + name: value for name, value in MODEL.state_dict().items()}
    save_file(tensors, "net.safetensors", {"ersde_lit": json.dumps(about) if metadata is None else metadata})


def changed(**arguments) -> dict:
    return {**NETWORK, "init_args": {**NETWORK["init_args"], **arguments}}


def called(path: str, **arguments) -> dict:
    return {"class_path": path, "init_args": arguments}


def header(change: Callable[[dict], object] = lambda h: None, length: int | None = None) -> None:
    """A safetensors file whose header says something else than is there."""
    ours()
    content = Path("net.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    description = json.loads(content[8:end])
    change(description)
    text = json.dumps(description).encode()
    size = struct.pack("<Q", len(text) if length is None else length)
    Path("net.safetensors").write_bytes(size + text + content[end:])


def set_first(key: str, value: object, description: dict) -> None:
    description[next(name for name in description if name.endswith("map_layer0.bias"))][key] = value


SAFETENSORS: dict[str, tuple[Callable[[], object], str]] = {
    "a header longer than the file": (lambda: header(length=2**20), "no safetensors file"),
    "a header of exabytes": (lambda: header(length=2**63 - 1), "no safetensors file"),
    "offsets beyond the end": (lambda: header(partial(set_first, "data_offsets", [0, 2**40])), "no safetensors file"),
    "offsets that overlap": (lambda: header(partial(set_first, "data_offsets", [0, 512])), "no safetensors file"),
    "a shape larger than its bytes": (lambda: header(partial(set_first, "shape", [2**40])), "no safetensors file"),
    "a negative shape": (lambda: header(partial(set_first, "shape", [-128])), "no safetensors file"),
    "an unknown type": (lambda: header(partial(set_first, "dtype", "F99")), "no safetensors file"),
    "no description": (lambda: header(lambda h: h.pop("__metadata__")), "no description of its weights"),
    "a description that is no JSON": (lambda: ours(metadata="{"), "cannot be read"),
    "a description that is a list": (lambda: ours(metadata="[]"), "cannot be read"),
    "a description without end": (lambda: ours(metadata="[" * 100_000), "cannot be read"),
    "a class that runs code": (lambda: ours(called("os.system", command="touch canary")), "not part of ersde_lit"),
    "a function of ours": (lambda: ours(called("ersde_lit.cli.main", argv=[])), "neither a Network nor a dataclass"),
    "a setting that runs code": (
        lambda: ours(density=called("os.system", command="touch canary")), "not part of ersde_lit"
    ),
    "billions of blocks": (lambda: ours(changed(num_blocks=10**9)), "a larger network than its"),
    "billions of channels": (lambda: ours(changed(model_channels=2**20)), "a larger network than its"),
    "billions of steps": (lambda: ours(process=called("ersde_lit.denoisers.Cosine", steps=10**10)), "at most 100,000"),
    "a network that is a number": (lambda: ours(7), "not one of a network"),
    "a network that is a process": (lambda: ours(VE), "not one of a network"),
    "a setting that is unknown": (lambda: ours(trust=True), "makes no model"),
    "weights of something else": (lambda: ours(prefix="other."), "no weight of a network"),
    "weights of a classifier": (lambda: ours(prefix="network."), "weights of a classifier"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors(inside, capsys, case: str) -> None:
    make, message = SAFETENSORS[case]
    make()
    assert message in refuse("net.safetensors", capsys)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict[str, bytes]:
    """One whole file of each kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        ours()
        torch.save(MODEL.state_dict(), "net.pt")
        edm2 = dumps(edm2_snapshot(*edm2_model()))
        return {
            "net.pkl": WHOLE,
            "edm2.pkl": edm2,
            **{name: Path(name).read_bytes() for name in ("net.safetensors", "net.pt")},
        }


@pytest.mark.parametrize("name", ["net.pkl", "edm2.pkl", "net.safetensors", "net.pt"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True))
@example(where=0.0)
@example(where=0.999999)
def test_files_that_are_cut_anywhere(inside, samples, name: str, where: float) -> None:
    content = samples[name]
    Path(name).write_bytes(content[: int(where * len(content))])
    with pytest.raises(ValueError) as caught:
        read_source(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["net.pkl", "edm2.pkl", "net.safetensors", "net.pt"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_that_are_changed_anywhere(inside, samples, name: str, data) -> None:
    content = bytearray(samples[name])
    early = st.integers(0, min(len(content), 4000) - 1)  # where descriptions are
    for place in data.draw(st.lists(early | st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    Path(name).write_bytes(content)
    with suppress(ValueError):
        read_source(name).module()
    assert not CANARY.exists()
