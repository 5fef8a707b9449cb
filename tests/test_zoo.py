from __future__ import annotations

import base64
import dataclasses
import functools
import http.server
import json
import shutil
import sys
import threading
import urllib.parse
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import tlkeras.registry
from tlkeras.backbones import Backbone, load_backbone
from tlkeras.card import ArtifactError, sha256
from tlkeras.heads import build_classifier
from tlkeras.modelcard import TOLERANCE, read_arrays, read_model_card
from tlkeras.registry import fetch_backbone, publish_backbone
from tlkeras.zoo import save_backbone

ABOUT = {"description": "A net for tests.", "data": "nothing: random weights", "licence": "Apache-2.0"}
SIZE = 32


@pytest.fixture(scope="module")
def trained() -> Backbone:
    """A small net whose weights no file holds."""
    keras.utils.set_random_seed(3)
    return load_backbone(weights=None, image_size=SIZE, alpha=0.35)


@pytest.fixture(scope="module")
def original(trained, tmp_path_factory) -> Path:
    """That net, saved; not to be written into."""
    return save_backbone(tmp_path_factory.mktemp("saved") / "mine", trained, about=ABOUT | {"metrics": {"top1": 0.5}})


@pytest.fixture
def folder(original, tmp_path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(original, tmp_path / "mine"))


def sign(folder: Path, **changes) -> None:
    """Write the card anew with right hashes, as somebody would who edits a saved backbone on purpose."""
    card = json.loads((folder / "card.json").read_text())
    card["files"] = {name: sha256(folder / name) for name in card["files"]}
    (folder / "card.json").write_text(json.dumps(card | changes))


def edit_net(folder: Path, **changes) -> None:
    sign(folder, net=json.loads((folder / "card.json").read_text())["net"] | changes)


def edit_weights(folder: Path, edit) -> None:
    """Change the arrays by a function of their list, and sign."""
    with np.load(folder / "weights.npz") as held:
        arrays = [held[name] for name in sorted(held.files)]
    edit(arrays)
    np.savez(folder / "weights.npz", **{f"{k:05d}": array for k, array in enumerate(arrays)})
    sign(folder)


def same_weights(one: keras.Model, other: keras.Model) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


# --- save and load ---------------------------------------------------------------------------------------------------


def test_a_saved_backbone_comes_back_bit_by_bit_with_name_and_width_from_its_card(trained, original):
    loaded = load_backbone("MobileNetV2", weights=original, alpha=0.35)  # to name them is no conflict
    assert same_weights(loaded.model, trained.model)
    assert (loaded.name, loaded.alpha, loaded.image_size) == ("MobileNetV2", 0.35, SIZE)
    assert loaded.stages == trained.stages and loaded.weights == str(original)
    card = read_model_card(original)
    assert card["about"]["metrics"] == {"top1": 0.5} and card["net"]["started_from"] == "random"
    text = (original / "README.md").read_text()
    assert all(
        words in text for words in ("A net for tests.", "nothing: random weights", "license: apache-2.0", "410,208")
    )


@pytest.mark.parametrize(
    ("weights", "said"), [("pretrained by SimCLR", "pretrained by SimCLR"), ("/home/me/secret.weights.h5", "a file")]
)
def test_the_card_says_what_training_started_from_and_no_path(trained, tmp_path, weights, said):
    saved = save_backbone(tmp_path / "mine", dataclasses.replace(trained, weights=weights), about=ABOUT)
    assert read_model_card(saved)["net"]["started_from"] == said
    assert "secret" not in (saved / "card.json").read_text() + (saved / "README.md").read_text()


def test_another_size_and_grey_pictures_take_the_same_weights(trained, original):
    loaded = load_backbone(weights=str(original), image_size=48, channels=1)
    assert loaded.model.input_shape == (None, 48, 48, 1) and same_weights(loaded.model, trained.model)


def test_under_mixed_precision_it_still_proves_itself(original):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert load_backbone(weights=original).model.get_layer("Conv1").compute_dtype == "bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_saved_under_mixed_precision_its_golden_features_are_whole(trained, original, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = load_backbone(weights=None, image_size=SIZE, alpha=0.35)
        half.model.set_weights(trained.model.get_weights())
        folder = save_backbone(tmp_path / "half", half, about=ABOUT)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert same_weights(load_backbone(weights=folder).model, trained.model)
    with np.load(folder / "golden.npz") as ours, np.load(original / "golden.npz") as theirs:
        np.testing.assert_allclose(ours["features"], theirs["features"], atol=1e-6)


def test_a_net_for_grey_pictures_comes_back_as_one(trained, tmp_path):
    grey = load_backbone(weights=None, image_size=np.int64(SIZE), alpha=np.float32(0.5), channels=1)
    assert (type(grey.image_size), type(grey.alpha)) == (int, float)
    folder = save_backbone(tmp_path / "grey", grey, about=ABOUT)
    assert load_backbone(weights=folder).model.input_shape == (None, SIZE, SIZE, 1)
    assert load_backbone(weights=folder, channels=3).model.input_shape == (None, SIZE, SIZE, 3)


@pytest.mark.parametrize("asked", [{"name": "ResNet50"}, {"alpha": 1.0}])
def test_what_contradicts_the_card_is_an_error(original, asked):
    with pytest.raises(ValueError, match=f"leave {next(iter(asked))} out"):
        load_backbone(weights=original, **asked)


def test_float16_rounds_the_weights_leaves_the_net_in_hand_and_halves_the_file(trained, original, tmp_path):
    before = trained.model.get_weights()
    half = save_backbone(tmp_path / "half", trained, about=ABOUT, dtype="float16")
    assert all(np.array_equal(a, b) for a, b in zip(before, trained.model.get_weights(), strict=True))
    with np.load(half / "weights.npz") as held:
        assert all(np.array_equal(a.astype("float16"), held[f"{k:05d}"]) for k, a in enumerate(before))
    assert (half / "weights.npz").stat().st_size < 0.6 * (original / "weights.npz").stat().st_size


def test_the_backbone_of_a_classifier_is_saved_as_it_was_tuned(trained, tmp_path):
    model = build_classifier(trained, 2)
    kernel = model.get_layer("Conv_1").kernel
    kernel.assign(2 * kernel)  # as fine-tuning would, only more
    loaded = load_backbone(weights=save_backbone(tmp_path / "tuned", model, about=ABOUT))
    for layer in loaded.model.layers:
        for got, before in zip(layer.get_weights(), trained.model.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(got, before * (2 if layer.name == "Conv_1" else 1))
    model.transfer = dataclasses.replace(model.transfer, stages=model.transfer.stages[:4])  # as `stage=` makes it
    with pytest.raises(ValueError, match="as in a classifier built without `stage`; a detector holds less"):
        save_backbone(tmp_path / "cut", model, about=ABOUT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"about": {"description": "x", "data": "y"}}, "licence"),
        ({"about": ABOUT | {"data": " "}}, "say 'unknown'"),
        ({"about": ABOUT | {"license": "MIT"}}, "no entry 'license'"),
        ({"about": ABOUT | {"metrics": {"a": float("nan")}}}, "plain numbers"),
        ({"about": ABOUT | {"metrics": 0.5}}, "must be a dictionary"),
        ({"dtype": "int8"}, "float32, float16"),
        ({"examples": np.zeros((3, SIZE, SIZE, 3))}, "must be 8 pictures"),
        ({"examples": np.full((8, SIZE, SIZE, 3), 300)}, "got 300 to 300"),
        ({"examples": np.full((8, SIZE, SIZE, 3), 0.5)}, "must be raw"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_written(trained, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        save_backbone(tmp_path / "mine", trained, **{"about": ABOUT, **options})
    assert not list(tmp_path.iterdir())


def test_a_net_that_strangers_could_not_build_is_not_saved(tiny_backbone, tmp_path):
    with pytest.raises(ValueError, match="'Tiny' is not one of list_backbones"):
        save_backbone(tmp_path / "tiny", tiny_backbone, about=ABOUT)


def test_a_backbone_with_spoilt_weights_is_not_saved_and_the_old_folder_stays(trained, folder):
    kernel = trained.model.get_layer("Conv1").kernel
    before = np.array(kernel)
    try:
        kernel.assign(before * np.nan)
        with pytest.raises(ArtifactError, match="NaN or infinity in 1 of 260 arrays"):
            save_backbone(folder, trained, about=ABOUT)
        kernel.assign(before * 1e6)
        with pytest.raises(ValueError, match="too large for float16"):
            save_backbone(folder, trained, about=ABOUT, dtype="float16")
    finally:
        kernel.assign(before)
    assert [path.name for path in folder.parent.iterdir()] == ["mine"] and read_model_card(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="notes.txt"):
        save_backbone(folder, trained, about=ABOUT)


@pytest.mark.parametrize("text", ['{"format": "sentence cards 3"}', "[]", "{"])
def test_the_card_of_somebody_else_is_not_overwritten(trained, tmp_path, text):
    (tmp_path / "card.json").write_text(text)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="card.json .*Choose another name"):
        save_backbone(tmp_path, trained, about=ABOUT)
    assert (tmp_path / "card.json").read_text() == text and len(list(tmp_path.iterdir())) == 2


def test_the_current_folder_is_not_replaced_and_a_tilde_is_the_home_folder(trained, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (".", ".."):
        with pytest.raises(FileExistsError, match="is or holds the current folder"):
            save_backbone(place, trained, about=ABOUT)
    save_backbone("~/mine", trained, about=ABOUT)
    assert publish_backbone("~/mine", "~/zoo").startswith(str(tmp_path / "zoo" / "mine"))
    assert not list(Path().iterdir())


# --- what strangers may do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.npz", "golden.npz", "README.md"])
def test_a_changed_byte_and_a_missing_file_are_named(folder, name):
    content = (folder / name).read_bytes()
    middle = len(content) // 2
    (folder / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(ArtifactError, match=f"{name} is not the file that was saved"):
        load_backbone(weights=folder)
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        load_backbone(weights=folder)


def test_a_file_that_the_card_does_not_list_is_refused_and_hidden_ones_are_never_opened(folder):
    (folder / ".gitattributes").write_text("*.npz filter=lfs")
    assert read_model_card(folder)
    (folder / "load_me.py").write_text("print('code')")
    with pytest.raises(ArtifactError, match="'load_me.py', which its card does not list"):
        load_backbone(weights=folder)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "load_me.py"])
def test_a_card_cannot_name_a_file_elsewhere(folder, name):
    (folder.parent / "x").write_text("secret")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"files": card["files"] | {name: "0" * 64}}))
    with pytest.raises(ArtifactError, match=f"no other file; look at '{name}'"):
        load_backbone(weights=folder)


@pytest.mark.parametrize("name", ["weights.npz", "card.json"])
def test_links_are_not_followed(folder, name):
    shutil.move(folder / name, folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    with pytest.raises(ArtifactError, match=f"{name} is a link"):
        load_backbone(weights=folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "EvilNet"}, "there is no net 'EvilNet'"),
        ({"name": ["MobileNetV2"]}, "there is no net"),
        ({"name": "ResNet50"}, "stages are not those of ResNet50"),
        ({"alpha": 1e9}, "alpha is 1000000000.0"),
        ({"alpha": "0.35"}, "alpha is '0.35'"),
        ({"alpha": 1.4}, "4,363,712 weights, not 410208"),
        ({"image_size": 10**6}, "image_size must be a whole number from 32 to 1024"),
        ({"image_size": True}, "image_size"),
        ({"num_weights": 10**8}, "410,208 weights, not 100000000"),
        ({"channels": 4}, "channels"),
        ({"stages": []}, "stages"),
    ],
)
def test_a_card_of_a_net_that_cannot_be_is_refused_before_it_is_built(folder, changes, words, monkeypatch):
    edit_net(folder, **changes)
    monkeypatch.setattr(keras, "Model", None)
    with pytest.raises(ArtifactError, match=words):
        load_backbone(weights=folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tolerance": 1.0}, "tolerance must lie in"),
        ({"tolerance": float("nan")}, "tolerance must lie in"),
        ({"dtype": "object"}, "dtype must be one of"),
        ({"net": None}, "'net' is missing"),
        ({"files": {}}, "look at 'README.md'"),
        ({"format": "tlkeras backbone 99"}, "not of the format"),
        ({"about": {"x": "y" * 2_000_000}}, "more than 1,000,000 bytes"),
    ],
)
def test_an_edited_card_is_refused(folder, changes, words):
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | changes))
    with pytest.raises(ArtifactError, match=words):
        load_backbone(weights=folder)


def test_a_folder_that_is_no_saved_backbone_is_called_so(tmp_path):
    with pytest.raises(ArtifactError, match="holds no card.json. save_backbone"):
        load_backbone(weights=tmp_path)


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    flag = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (flag,)

    np.savez(tmp_path / "a.npz", a=np.array([Bomb()], dtype=object))
    with pytest.raises(ArtifactError, match=r"array a is object \(1,\)"):
        read_arrays(tmp_path / "a.npz", {"a": ((1,), "float32")})
    assert not flag.exists()


def test_a_zip_bomb_is_refused_by_what_it_declares_and_by_what_it_holds(tmp_path):
    path, wanted = tmp_path / "a.npz", {"a": ((4,), "float32")}
    header = tmp_path / "header"

    def pack(shape, num_bytes, kind=zipfile.ZIP_DEFLATED):
        with header.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "w", kind) as archive:
            archive.writestr("a.npy", header.read_bytes() + bytes(num_bytes))

    pack((4,), 16)
    assert read_arrays(path, wanted)["a"].tolist() == [0] * 4
    pack((10**12,), 16)  # four terabytes, on paper
    with pytest.raises(ArtifactError, match=r"\(1000000000000,\); wanted is float32 \(4,\)"):
        read_arrays(path, wanted)
    pack((4,), 50_000_000)  # fifty megabytes of zeros in fifty kilobytes
    with pytest.raises(ArtifactError, match="goes on behind its end"):
        read_arrays(path, wanted)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # a header of as many bytes as it likes
        archive.writestr("a.npy", b"\x93NUMPY\x02\x00" + (50_000_000).to_bytes(4, "little") + b" " * 50_000_000)
    with pytest.raises(ArtifactError, match=r"of format \(2, 0\)"):
        read_arrays(path, wanted)
    pack((4,), 15)
    with pytest.raises(ArtifactError, match="cut off"):
        read_arrays(path, wanted)
    pack((4,), 16, zipfile.ZIP_BZIP2)
    with pytest.raises(ArtifactError, match="packed in a way"):
        read_arrays(path, wanted)
    path.write_bytes(b"PK\x05\x06 no archive")
    with pytest.raises(ArtifactError, match="a.npz is not what its card says"):
        read_arrays(path, wanted)


def test_a_file_larger_than_such_a_net_can_have_is_not_even_hashed(folder):
    with (folder / "weights.npz").open("ab") as file:
        file.truncate(50_000_000_000)  # sparse: takes no room on the disk
    with pytest.raises(ArtifactError, match="50,000,000,000 bytes, more than such a net can have"):
        load_backbone(weights=folder)


def test_weights_of_another_net_or_not_finite_are_refused_though_signed(folder):
    edit_weights(folder, lambda arrays: arrays[7].fill(np.inf))
    with pytest.raises(ArtifactError, match="NaN or infinity in 1 of 260 arrays"):
        load_backbone(weights=folder)
    edit_weights(folder, list.pop)
    with pytest.raises(ArtifactError, match="it holds 259 arrays, other than the 260"):
        load_backbone(weights=folder)


def test_a_wrong_number_of_features_is_refused_though_the_golden_ones_agree(folder):
    with np.load(folder / "golden.npz") as held:
        np.savez(folder / "golden.npz", pictures=held["pictures"], features=held["features"][:, :7])
    edit_net(folder, num_features=7)
    with pytest.raises(ArtifactError, match="num_features 7, but the net has 1280"):
        load_backbone(weights=folder)


def test_edited_weights_and_edited_golden_features_are_found_though_signed(folder):
    def brighten(arrays):
        arrays[0] *= 1.5

    edit_weights(folder, brighten)
    with pytest.raises(ArtifactError, match=f"Golden picture 0.* of 8 .*{TOLERANCE} is allowed"):
        load_backbone(weights=folder)
    edit_weights(folder, lambda arrays: arrays[0].__imul__(1 / 1.5))
    with np.load(folder / "golden.npz") as held:
        features = held["features"].copy()
        features[5] *= 2
        np.savez(folder / "golden.npz", pictures=held["pictures"], features=features)
    sign(folder)
    with pytest.raises(ArtifactError, match="Golden picture 5 of 8"):
        load_backbone(weights=folder)


# --- a registry: folders, web servers, the Hub -----------------------------------------------------------------------


@pytest.fixture
def web(tmp_path):
    """A web server on this machine that shows a folder; gives the folder and its address."""
    root = tmp_path / "www"
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        log_message = lambda *_: None  # noqa: E731

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=root)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield root, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "zoo"


def test_published_in_a_folder_it_is_found_by_its_address_and_none_is_overwritten(original, tmp_path):
    address = publish_backbone(original, tmp_path / "zoo")
    assert fetch_backbone(address) == tmp_path / "zoo" / "mine"
    with pytest.raises(FileExistsError, match="publish under another name"):
        publish_backbone(original, tmp_path / "zoo")
    with pytest.raises(ArtifactError, match="not the backbone that the checksum is of"):
        fetch_backbone(address[:-1] + ("0" if address[-1] != "0" else "1"))
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        fetch_backbone(address[:-1])


def test_a_checksum_told_elsewhere_finds_the_fraud_that_hashes_beside_the_files_do_not(original, folder):
    """Who may write the folder may make all of it anew: weights, golden features, hashes."""
    honest = f"{folder}#sha256={sha256(original / 'card.json')}"
    edit_weights(folder, lambda arrays: arrays[-5].__imul__(1.001))
    load_backbone(weights=folder)  # nothing in the folder contradicts anything else
    with pytest.raises(ArtifactError, match="not the backbone that the checksum is of"):
        load_backbone(weights=honest)


def test_it_is_downloaded_once_by_its_checksum_and_kept(web, original, fresh_cache, trained):
    root, url = web
    digest = publish_backbone(original, root).partition("#")[2]
    address = f"{url}/mine#{digest}"
    assert same_weights(load_backbone(weights=address).model, trained.model)
    shutil.rmtree(root / "mine")
    kept = fetch_backbone(address)
    assert kept.parent == fresh_cache and [path.name for path in fresh_cache.iterdir()] == [kept.name]
    (kept / "weights.npz").write_bytes(b"damaged")
    with pytest.raises(OSError, match="mine/card.json is out of reach"):  # it goes back to the address
        fetch_backbone(address)
    publish_backbone(original, root)
    assert read_model_card(fetch_backbone(address)) == read_model_card(original)


def test_an_address_may_have_any_letters_and_one_that_is_none_is_called_so(web, original, fresh_cache):
    root, url = web
    digest = publish_backbone(original, root / "größe 1").partition("#")[2]
    assert read_model_card(fetch_backbone(f"{url}/größe 1/mine#{digest}")) == read_model_card(original)
    with pytest.raises(ValueError, match=r"http://\[::1/mine/card.json is no address"):
        fetch_backbone(f"http://[::1/mine#sha256={'0' * 64}")


def test_an_address_in_the_web_needs_its_checksum(web):
    with pytest.raises(ValueError, match="needs a checksum"):
        load_backbone(weights=f"{web[1]}/mine")


def test_what_a_server_swapped_or_blew_up_is_not_kept(web, original, fresh_cache):
    root, url = web
    address = f"{url}/mine#{publish_backbone(original, root).partition('#')[2]}"
    whole = (root / "mine" / "weights.npz").read_bytes()
    (root / "mine" / "weights.npz").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="weights.npz is not the file that was saved"):
        fetch_backbone(address)
    (root / "mine" / "weights.npz").write_bytes(bytes(5_000_000))
    with pytest.raises(ArtifactError, match="weights.npz is larger than the 3,051,040 bytes"):
        fetch_backbone(address)
    sign(root / "mine")
    with pytest.raises(ArtifactError, match="not the backbone that the checksum is of"):
        fetch_backbone(address)
    (root / "mine" / "weights.npz").unlink()
    (root / "mine" / "card.json").write_bytes((original / "card.json").read_bytes())
    with pytest.raises(OSError, match="weights.npz is out of reach .*404"):
        fetch_backbone(address)
    assert not list(fresh_cache.iterdir())


def test_without_a_cache_it_is_fetched_for_this_process_only(web, original, monkeypatch):
    monkeypatch.setenv("TLKERAS_CACHE", "off")
    root, url = web
    folder = fetch_backbone(f"{url}/mine#{publish_backbone(original, root).partition('#')[2]}")
    assert read_model_card(folder) and str(folder).startswith(tlkeras.registry._folder_of_this_process().name)


class HubHandler(http.server.BaseHTTPRequestHandler):
    """As much of the Hub's protocol as it takes to make a model repository, commit files to it and read them."""

    repositories: dict[str, list[dict[str, bytes]]]  # a list of commits

    def log_message(self, *_):
        pass

    def answer(self, body, status=200, **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urllib.parse.urlparse(self.path).path
        url = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization', 'me')}/{wanted['name']}"
            self.repositories.setdefault(name, [{".gitattributes": b"*.npz filter=lfs\n"}])
            return self.answer({"url": f"{url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name, action = path.removeprefix("/api/models/").rsplit("/", 2)[:2]
        if action == "preupload":
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": modes})
        files = dict(self.repositories[name][-1])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.repositories[name].append(files)
        oid = f"{len(self.repositories[name]) - 1:040x}"
        return self.answer({"success": True, "commitUrl": f"{url}/{name}/commit/{oid}", "commitOid": oid})

    def do_GET(self):
        parts = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        if len(parts) < 4:
            return self.answer({}, 404)
        owner, name, action, revision, *rest = (parts[2:] if api else parts) + (["revision", "main"] if api else [])
        commits = self.repositories.get(f"{owner}/{name}")
        if commits is None:
            return self.answer({}, 404, X_Error_Code="RepoNotFound")
        number = len(commits) - 1 if revision == "main" else int(revision, 16)
        oid, files = f"{number:040x}", commits[number]
        if action == "revision":
            return self.answer({"id": f"{owner}/{name}", "sha": oid, "siblings": [{"rfilename": n} for n in files]})
        if action == "tree":
            rows = [{"type": "file", "path": n, "size": len(c), "oid": oid[:39] + "a"} for n, c in files.items()]
            return self.answer(rows)
        if rest[0] not in files:
            return self.answer({}, 404, X_Error_Code="EntryNotFound")
        digest = f'"{abs(hash(files[rest[0]])):x}"'
        return self.answer(files[rest[0]], ETag=digest, X_Repo_Commit=oid)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch, fresh_cache):
    """A stand-in of the Hub on this machine; gives its repositories."""
    pytest.importorskip("huggingface_hub")
    handler = type("Handler", (HubHandler,), {"repositories": {}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield handler.repositories
        server.shutdown()


def test_uploaded_to_the_hub_it_comes_back_by_its_address(hub, original, fresh_cache):
    address = publish_backbone(original, "hf://someone/small-net")
    assert address == f"hf://someone/small-net@{1:040x}#sha256={sha256(original / 'card.json')}"
    assert set(hub["someone/small-net"][-1]) == {
        ".gitattributes", "README.md", "card.json", "golden.npz", "weights.npz"
    }  # fmt: skip
    assert read_model_card(fetch_backbone("hf://someone/small-net")) == read_model_card(original)
    shutil.rmtree(fresh_cache)
    hub["someone/small-net"].append(hub["someone/small-net"][-1] | {"README.md": b"edited in the browser"})
    with pytest.raises(ArtifactError, match="README.md is not the file"):
        fetch_backbone("hf://someone/small-net")
    kept = fetch_backbone(address.partition("#")[0])  # a revision stays as it is
    assert kept.parent == fresh_cache and not any(file.is_symlink() for file in kept.iterdir())
    with pytest.raises(ArtifactError, match="not the backbone that the checksum is of"):
        fetch_backbone(f"hf://someone/small-net@{1:040x}#sha256={'0' * 64}")


def test_what_lies_in_the_hubs_own_cache_needs_no_network(hub, original, monkeypatch):
    publish_backbone(original, "hf://someone/small-net")
    first = fetch_backbone("hf://someone/small-net")
    shutil.rmtree(first)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert fetch_backbone("hf://someone/small-net") == first


def test_a_repository_that_is_none_of_ours_or_not_there_is_said_so(hub, original):
    hub["someone/other"] = [{"config.json": b"{}"}]
    with pytest.raises(ArtifactError, match="hf://someone/other is no saved backbone"):
        fetch_backbone("hf://someone/other")
    with pytest.raises(OSError, match="Repository Not Found|404"):
        fetch_backbone("hf://someone/nothing")
    with pytest.raises(ValueError, match="hf://OWNER/NAME"):
        fetch_backbone("hf://someone")


def test_without_the_hubs_library_its_address_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        load_backbone(weights="hf://someone/small-net")


def test_the_commands_take_a_saved_backbone_whatever_net_it_holds(insects, original):
    from tlkeras.runs import _load

    arguments = {
        "folder": insects,
        "image_size": SIZE,
        "seed": 0,
        "groups": None,
        "alpha": None,
        "weights": str(original),
    }
    assert _load(arguments | {"backbone": None})[1].weights == str(original)
    with pytest.raises(ValueError, match="leave name out"):
        _load(arguments | {"backbone": "ResNet50"})


def test_a_model_of_another_kind_on_the_hub_is_not_overwritten_and_a_backbone_gets_a_revision(hub, original):
    hub["someone/other"] = [{"README.md": b"not yours", "config.json": b"{}"}]
    with pytest.raises(FileExistsError, match="someone/other is a model of another kind"):
        publish_backbone(original, "hf://someone/other")
    assert len(hub["someone/other"]) == 1
    first, second = (publish_backbone(original, "hf://someone/small-net") for _ in range(2))
    assert first != second and read_model_card(fetch_backbone(first))
