"""The registry of saved backbones: from an address to a folder on this machine, and from a folder to an address.

An address is a folder; `https://HOST/PATH#sha256=HEX`, a folder behind any web server; or `hf://OWNER/NAME@REVISION`,
a model of the Hugging Face Hub. The SHA-256 is that of `card.json`, which lists those of the other files, so it vouches
for all of them. It protects only if it comes to you by another way than the files.
"""

from __future__ import annotations

import functools
import http.client
import logging
import os
import re
import shutil
import tempfile
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

from tlkeras.cache import cache_root
from tlkeras.card import CARD, MAX_CARD_BYTES, ArtifactError, open_card, sha256
from tlkeras.modelcard import FILES, FORMAT, README, max_bytes, parse_model_card, read_model_card

log = logging.getLogger("tlkeras")

_STALL_SECONDS = 30
_CHUNK = 1 << 20
HUB = "hf://"


def is_saved_backbone(weights: object) -> bool:
    """Whether what was given as weights is the address of a saved backbone, not the name of weights or of a file."""
    if not isinstance(weights, str | os.PathLike):
        return False
    place, digest = _split(os.fspath(weights))
    if place in ("imagenet", "embedded", "auto"):
        return False
    return bool(digest) or _is_remote(place) or Path(place).expanduser().is_dir()


def fetch_backbone(address: str | os.PathLike) -> Path:
    """Get the folder of a saved backbone, downloaded unless it is here already.

    `load_backbone(weights=address)` does the same and opens it. What was downloaded is kept in the cache (TLKERAS_CACHE
    moves it) under the checksum of its card, whole or not at all, and is checked anew each time. From a web server no
    more is taken than such a net can have; from the Hub its library takes the four files whatever their size.

    Args:
        address: A folder; `https://HOST/PATH#sha256=HEX`, where the folder's four files lie under PATH, with the
            SHA-256 of its `card.json`, which is needed; or `hf://OWNER/NAME`, with `@REVISION` for one that stays as
            it is. `#sha256=HEX` may follow any of them.

    Returns:
        The folder.

    Raises:
        ArtifactError: If it is no saved backbone, or another than the checksum says.
        ValueError: If the address is not understood, or lacks its checksum.
        OSError: If the files are out of reach.
        ImportError: If `hf://` was asked for without the `huggingface_hub` package.
    """
    place, digest = _split(os.fspath(address))
    if not _is_remote(place):
        folder = Path(place).expanduser()
        read_model_card(folder)
        _compare(folder / CARD, digest)
        return folder
    if place.startswith(HUB):
        return _from_hub(place, digest)
    if not digest:
        raise ValueError(
            f"{place} needs a checksum: add #sha256= and the SHA-256 of its {CARD}, as its owner published it. Without "
            "one nobody can tell what the server, or someone on the way, has put there."
        )
    found = _known(digest)
    if found:
        return found
    with tempfile.TemporaryDirectory(dir=_zoo_folder()) as name:
        draft = Path(name)
        _download(f"{place.rstrip('/')}/{CARD}", draft / CARD, MAX_CARD_BYTES)
        _compare(draft / CARD, digest)
        card = parse_model_card(open_card(draft, FORMAT, "saved backbone", "save_backbone()"), place)
        for file in FILES:
            _download(f"{place.rstrip('/')}/{file}", draft / file, max_bytes(card, file))
        return _keep(draft)


def publish_backbone(folder: str | os.PathLike, to: str | os.PathLike) -> str:
    """Put a saved backbone where others get it; what you get is the address to tell them.

    Args:
        folder: Written by `save_backbone`; its name becomes the name there.
        to: A folder, such as one that a web server shows (the backbone becomes a folder in it); or `hf://OWNER/NAME`, a
            model of the Hugging Face Hub, made if it is not there. Log in before, with `hf auth login`.

    Returns:
        Its address with the checksum of its card. Behind a web server put the server's address in the folder's place.

    Raises:
        ArtifactError: If `folder` is no whole saved backbone.
        FileExistsError: If there is something of this name; on the Hub, if it is no saved backbone (of one, this is
            a new revision).
        ImportError: If `hf://` was asked for without the `huggingface_hub` package.
    """
    folder, to = Path(folder).expanduser(), os.fspath(to)
    read_model_card(folder)
    digest = sha256(folder / CARD)
    if to.startswith(("http://", "https://")):
        raise ValueError(f"{to} cannot be written to: publish to the folder that its web server shows.")
    if to.startswith(HUB):
        repository, revision = _hub_name(to)
        hub = _hub_library().HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        hub.create_repo(repository, repo_type="model", exist_ok=True)
        held = set(hub.list_repo_files(repository, revision=revision))
        if CARD not in held and held - {README, ".gitattributes"}:  # what the Hub itself begins a model with
            raise FileExistsError(f"{repository} is a model of another kind: publish under a name of your own.")
        commit = hub.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, allow_patterns=[CARD, *FILES],
            commit_message=f"Save {folder.absolute().name} by tlkeras",
        )  # fmt: skip
        return f"{HUB}{repository}@{commit.oid}#sha256={digest}"
    target = Path(to).expanduser() / folder.absolute().name
    if target.exists():
        raise FileExistsError(f"{target} exists: publish under another name, others may rely on this one.")
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        _copy(folder, draft)
        os.replace(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return f"{target}#sha256={digest}"


def _split(address: str) -> tuple[str, str | None]:
    """Take the checksum off an address."""
    place, mark, digest = address.partition("#sha256=")
    if not mark:
        return address, None
    if not re.fullmatch("[0-9a-f]{64}", digest.lower()):
        raise ValueError(f"A SHA-256 has 64 hexadecimal digits, got {digest!r}.")
    return place, digest.lower()


def _is_remote(place: str) -> bool:
    return place.startswith(("http://", "https://", HUB))


def _compare(card: Path, digest: str | None) -> None:
    if digest and sha256(card) != digest:
        raise ArtifactError(
            f"{card} has the SHA-256 {sha256(card)}, not {digest}: this is not the backbone that the checksum is of. "
            "Do not load it before its owner has told you why."
        )


@functools.cache
def _folder_of_this_process() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="tlkeras-")  # goes when the process ends


def _zoo_folder() -> Path:
    root = cache_root()
    folder = Path(_folder_of_this_process().name) if root is None else root / "zoo"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _known(digest: str) -> Path | None:
    """The folder in the cache, or None where there is none or it is damaged; then it goes."""
    folder = _zoo_folder() / digest
    if not folder.exists():
        return None
    try:
        read_model_card(folder)
        _compare(folder / CARD, digest)
        return folder
    except ArtifactError as error:
        log.warning("the cache is damaged (%s); it is fetched anew.", error)
        shutil.rmtree(folder)
        return None


def _keep(draft: Path) -> Path:
    """Check a folder of files and move them to their place in the cache."""
    read_model_card(draft)
    folder = _zoo_folder() / sha256(draft / CARD)
    whole = draft / "whole"  # a folder of its own: the draft's belongs to who made it
    _copy(draft, whole)
    try:
        os.replace(whole, folder)
    except OSError:  # another process was faster
        if not folder.is_dir():
            raise
    return folder


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in (CARD, *FILES):
        shutil.copyfile(source / name, target / name)


def _download(url: str, file: Path, limit: int) -> None:
    """Write an answer to a file; more than `limit` bytes are not taken."""
    taken = 0
    try:
        urllib.parse.urlsplit(url)
    except ValueError as error:
        raise ValueError(f"{url} is no address ({error}): it is https://HOST/PATH#sha256=HEX.") from error
    quoted = urllib.parse.quote(url, safe="!#$%&'()*+,/:;=?@[]~")  # letters beyond ASCII; what is quoted stays so
    try:
        with urllib.request.urlopen(quoted, timeout=_STALL_SECONDS) as answer, file.open("wb") as out:
            while chunk := answer.read(_CHUNK):
                taken += len(chunk)
                if taken > limit:
                    raise ArtifactError(f"{url} is larger than the {limit:,} bytes that it can have; it was left.")
                out.write(chunk)
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{url} is out of reach ({error}). Check the address; a saved backbone has 4 files.") from error


def _from_hub(place: str, digest: str | None) -> Path:
    if digest and (found := _known(digest)):
        return found
    repository, revision = _hub_name(place)
    # Its own cache holds links, so the files are copied into ours; it also answers where there is no network.
    snapshot = Path(
        _hub_library().snapshot_download(
            repository, revision=revision, allow_patterns=[CARD, *FILES], cache_dir=os.environ.get("HF_HUB_CACHE"),
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    )  # fmt: skip
    if not (snapshot / CARD).is_file():
        raise ArtifactError(f"{place} is no saved backbone: it holds no {CARD}. publish_backbone() puts one there.")
    with tempfile.TemporaryDirectory(dir=_zoo_folder()) as name:
        draft = Path(name)
        for file in (CARD, *FILES):
            if (snapshot / file).is_file():
                shutil.copyfile(snapshot / file, draft / file)
        _compare(draft / CARD, digest)
        return _known(sha256(draft / CARD)) or _keep(draft)


def _hub_name(place: str) -> tuple[str, str | None]:
    """Owner/name and revision of a Hub address."""
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", place)
    if not match:
        raise ValueError(f"A model of the Hub is hf://OWNER/NAME or hf://OWNER/NAME@REVISION, got {place!r}.")
    return match[1], match[2]


def _hub_library():
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("Addresses of the form hf:// need the Hub's library: pip install huggingface_hub") from error
    return huggingface_hub
