"""What is saved comes back bit by bit; what is damaged is noticed and said."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil

import numpy as np
import pytest

from pnet_jax.checkpoint import (
    FORMAT,
    arrays,
    list_models,
    load_model,
    models,
    save_model,
)
from pnet_jax.checkpoint.digests import write_sums
from pnet_jax.encoder.model import Model

# Where orbax gives up on damaged files, it leaves callbacks behind that find their event loop closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def small_heap():
    """Every damaged file is followed by a search for garbage: seconds, where it goes through all that earlier tests left."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def model(toy, toy_model) -> Model:
    """With two atlases."""
    other = dataclasses.replace(toy.atlas, ids=np.arange(12, dtype=np.int32) + 100, names=tuple("abcdefghijkl"))
    card = {"scans": 2, "note": "found by this", "space": "größer", "list": [1, 2.5, None]}
    return dataclasses.replace(toy_model, atlases={12: toy.atlas, 13: other}, card=card)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return save_model(model, tmp_path_factory.mktemp("checkpoint") / "toy")


@pytest.fixture
def copy(saved, tmp_path):
    yield shutil.copytree(saved, tmp_path / "copy")
    gc.collect()


def metadata_file(folder):
    """The file that holds the card; found by its content, so that it may have any name."""
    return next(file for file in sorted(folder.rglob("*")) if file.is_file() and b"found by this" in file.read_bytes())


def edit(folder, change):
    file = metadata_file(folder)
    whole = json.loads(file.read_text("utf-8"))
    change(whole["custom_metadata"])
    file.write_text(json.dumps(whole), "utf-8")
    write_sums(folder)


def assert_equal_models(found, model):
    assert (found.name, found.card, found.digest, sorted(found.atlases)) == (model.name, model.card, model.digest, sorted(model.atlases))
    pairs = [(getattr(found.encoder, name), array) for name, array in model.encoder._asdict().items()]
    for k, prior in model.atlases.items():
        pairs += [(getattr(found.atlases[k], field.name), getattr(prior, field.name)) for field in dataclasses.fields(prior)]
    for a, b in pairs:
        assert type(a) is type(b)
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
        assert np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b


def test_everything_comes_back_bit_by_bit(model, saved):
    assert_equal_models(load_model(saved), model)


def test_a_checkpoint_can_be_moved_and_named_by_text(model, copy):
    assert load_model(str(copy)).digest == model.digest


def test_an_existing_folder_is_never_overwritten(model, saved):
    before = {file: file.read_bytes() for file in saved.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"already exists: expected a new folder"):
        save_model(model, saved)
    assert {file: file.read_bytes() for file in saved.rglob("*") if file.is_file()} == before


def test_a_missing_checkpoint_names_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint .*nowhere is missing: expected a folder or one of \["):
        load_model(tmp_path / "nowhere")


def test_an_unknown_name_is_refused_with_the_nearest_one():
    assert "pnet-linear" in list_models()
    with pytest.raises(ValueError, match=r"pnet-liner is missing: .*did you mean 'pnet-linear'\?"):
        load_model("pnet-liner")


def test_names_that_ship_win_over_the_working_folder(model, tmp_path, monkeypatch):
    save_model(model, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert load_model("elsewhere").name == "toy"
    monkeypatch.setattr(models, "list_models", lambda: ["elsewhere"])
    with pytest.raises(ValueError, match="elsewhere"):
        load_model("elsewhere")  # looked for among those that ship, where it is not


def flipped(data, share):
    position = int(share * (len(data) - 1))
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


@pytest.mark.parametrize("damage", [lambda data, share: data[: int(share * len(data))], flipped], ids=["truncated", "flipped byte"])
def test_a_damaged_data_file_is_noticed_unless_nothing_is_read_there(model, copy, damage):
    noticed, card = 0, metadata_file(copy)
    for file in (file for file in sorted(copy.rglob("*")) if file.is_file() and file != card and file.stat().st_size > 200):
        whole = file.read_bytes()
        for share in (0, 0.25, 0.5, 0.75):
            file.write_bytes(damage(whole, share))
            try:
                found = load_model(copy)
            except ValueError as error:
                assert "is damaged" in str(error)
                noticed += 1
            else:
                assert_equal_models(found, model)
        file.write_bytes(whole)
    assert noticed >= 4


def test_a_missing_data_folder_is_noticed(copy):
    for folder in copy.rglob("d"):
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"checkpoint .*copy is damaged"):
        load_model(copy)


def test_weights_that_do_not_fit_their_digest_are_noticed(copy):
    edit(copy, lambda metadata: metadata.update(digest="0" * 16))
    with pytest.raises(ValueError, match=r"damaged: expected weights digest 0000000000000000, found [0-9a-f]{16}"):
        load_model(copy)


def test_garbled_metadata_is_noticed(copy):
    file = metadata_file(copy)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"checkpoint .*copy (is damaged|was not written by pnet_jax)"):
        load_model(copy)


@pytest.mark.parametrize("lost", ["name", "digest", "card", "priors"])
def test_metadata_that_lack_an_entry_are_noticed(copy, lost):
    edit(copy, lambda metadata: metadata.pop(lost))
    with pytest.raises(ValueError, match=r"checkpoint .*copy is damaged"):
        load_model(copy)


def test_another_format_is_refused_with_what_to_do(copy):
    edit(copy, lambda metadata: metadata.update(format=FORMAT + 1))
    with pytest.raises(
        ValueError, match=rf"has format {FORMAT + 1}, expected {FORMAT}; use the version of pnet_jax that wrote it, or pre-train again"
    ):
        load_model(copy)


def test_a_checkpoint_of_another_program_is_refused(copy):
    edit(copy, lambda metadata: metadata.clear())
    with pytest.raises(ValueError, match="was not written by pnet_jax: it has no format number"):
        load_model(copy)


def test_any_other_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="is damaged or not a checkpoint"):
        load_model(tmp_path)


@pytest.mark.parametrize("part", ["references", "mean", "projection", "reliability", "decoder"])
def test_the_digest_changes_with_every_weight(model, part):
    array = getattr(model.encoder, part).copy()
    array.flat[3] += 1e-3
    assert dataclasses.replace(model, encoder=model.encoder._replace(**{part: array})).digest != model.digest


@pytest.mark.parametrize("part", ["xyz", "labels", "ids", "hemisphere"])
def test_the_digest_changes_with_every_part_of_a_prior_that_decides_a_result(model, part):
    array = getattr(model.atlases[13], part).copy()
    array.flat[0] = 1 - array.flat[0] if part == "hemisphere" else array.flat[0] + 1
    other = dataclasses.replace(model.atlases[13], **{part: array})
    assert dataclasses.replace(model, atlases={12: model.atlases[12], 13: other}).digest != model.digest


def test_damage_is_told_in_one_line_and_nothing_else(copy, capfd, caplog):
    for file in copy.rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    write_sums(copy)  # so that orbax meets the damage
    with pytest.raises(ValueError, match="is damaged: it cannot be read") as caught:
        load_model(copy)
    gc.collect()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "Traceback" not in capfd.readouterr().err
    assert not caplog.records


def test_a_full_disk_is_noticed_before_anything_is_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))
    with pytest.raises(OSError, match=r"No space left on device for the checkpoint: .* MB needed, 0\.0 MB free.*new"):
        save_model(model, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_finished_leaves_nothing(model, tmp_path, monkeypatch):
    from orbax.checkpoint import v1 as ocp

    def half(folder, *_, **__):
        folder.with_name(f"{folder.name}.orbax-checkpoint-tmp").mkdir()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ocp, "save", half)
    with pytest.raises(OSError, match=r"checkpoint not written \(.*Input/output error\).*new"):
        save_model(model, tmp_path / "new")
    assert not list(tmp_path.iterdir())
